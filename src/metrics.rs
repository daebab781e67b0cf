//! Figures for a scraper: Prometheus's text form, and a histogram that threads write without a lock. Knows nobody.

use std::fmt::{Display, Write as _};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Media type of what [`encode`] writes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of a histogram's buckets: in nanoseconds, and in seconds as they are written.
const BOUNDS: [(u64, &str); 16] = [
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (25_000_000, "0.025"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (250_000_000, "0.25"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (2_500_000_000, "2.5"),
    (5_000_000_000, "5"),
];

/// Times, sorted into buckets from 50 µs to 5 s and one for all that took longer. Two atomic additions an observation.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Observations by bucket, each counted in one of them only: their sum is the count, whenever they are read.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < ns);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

/// What a figure may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It grows, and begins at 0 with the process.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Buckets, each holding those before it, their sum and count.
    Histogram,
}

/// All figures of one name.
#[derive(Debug, Clone)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    suffix: &'static str,
    labels: Vec<(&'static str, String)>,
    value: String,
}

/// Names and values that tell the figures of a family apart. The values must come from a bounded set.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

impl Family {
    /// A family without figures yet. `name` is of the form `[a-z_]+`.
    pub fn new(kind: Kind, name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind, samples: Vec::new() }
    }

    /// A counter's only figure.
    pub fn counter(name: &'static str, help: &'static str, value: impl Display) -> Self {
        Self::new(Kind::Counter, name, help).with(&[], value)
    }

    /// A gauge's only figure.
    pub fn gauge(name: &'static str, help: &'static str, value: impl Display) -> Self {
        Self::new(Kind::Gauge, name, help).with(&[], value)
    }

    /// One more figure.
    #[must_use]
    pub fn with(self, labels: Labels<'_>, value: impl Display) -> Self {
        self.sample("", labels, value)
    }

    /// What a histogram holds, in seconds.
    pub fn histogram(name: &'static str, help: &'static str, of: &Histogram) -> Self {
        let mut family = Self::new(Kind::Histogram, name, help);
        let mut count = 0;
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        for (bucket, bound) in of.buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            family = family.sample("_bucket", &[("le", bound)], count);
        }
        family.sample("_sum", &[], seconds(of.sum_ns.load(Ordering::Relaxed))).sample("_count", &[], count)
    }

    fn sample(mut self, suffix: &'static str, labels: Labels<'_>, value: impl Display) -> Self {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.samples.push(Sample { suffix, labels, value: value.to_string() });
        self
    }
}

/// Nanoseconds as seconds, exactly.
pub fn seconds(ns: u64) -> String {
    format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// The text form, version 0.0.4. Families without figures are left out.
pub fn encode(families: &[Family]) -> String {
    let mut out = String::with_capacity(16 << 10);
    for Family { name, help, kind, samples } in families.iter().filter(|family| !family.samples.is_empty()) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for Sample { suffix, labels, value } in samples {
            let _ = write!(out, "{name}{suffix}");
            for (index, (label, value)) in labels.iter().enumerate() {
                let open = if index == 0 { '{' } else { ',' };
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                let _ = write!(out, "{open}{label}=\"{value}\"");
            }
            let _ = writeln!(out, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
    }
    out
}

/// What the kernel tells of this process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Its peak since the start.
    pub resident_peak_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

impl Process {
    /// As it is now; 0 for what cannot be read.
    pub fn read() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        // One of them is the look itself.
        let descriptors = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
        Self {
            resident_bytes: field("VmRSS") << 10,
            resident_peak_bytes: field("VmHWM") << 10,
            threads: field("Threads"),
            descriptors: descriptors as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_with_everything_that_has_to_be_escaped() {
        let families = [
            Family::new(Kind::Gauge, "empty", "Not told of."),
            Family::new(Kind::Counter, "a_total", "A \\ and\na line.")
                .with(&[("code", "q\"b\\s\nn"), ("state", "X")], 3)
                .with(&[], u64::MAX),
            Family::gauge("g", "G.", "1.5"),
        ];
        let expected = concat!(
            "# HELP a_total A \\\\ and\\na line.\n# TYPE a_total counter\n",
            "a_total{code=\"q\\\"b\\\\s\\nn\",state=\"X\"} 3\na_total 18446744073709551615\n",
            "# HELP g G.\n# TYPE g gauge\ng 1.5\n",
        );
        assert_eq!(encode(&families), expected);
    }

    #[test]
    fn a_time_on_a_bound_is_in_its_bucket_and_the_rest_is_in_the_last() {
        let histogram = Histogram::default();
        for us in [0, 50, 51, 5_000_000, 5_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let text = encode(&[Family::histogram("h_seconds", "H.", &histogram)]);
        let told = |line: &str| assert!(text.lines().any(|told| told == line), "{line} in {text}");
        told("h_seconds_bucket{le=\"0.00005\"} 2");
        told("h_seconds_bucket{le=\"0.0001\"} 3");
        told("h_seconds_bucket{le=\"2.5\"} 3");
        told("h_seconds_bucket{le=\"5\"} 4");
        told("h_seconds_bucket{le=\"+Inf\"} 5");
        told("h_seconds_count 5");
        told("h_seconds_sum 10.000102000");
        assert!(BOUNDS.is_sorted() && BOUNDS.iter().all(|(ns, text)| text.parse() == Ok(*ns as f64 / 1e9)));
    }

    #[test]
    fn the_process_tells_of_itself() {
        let process = Process::read();
        assert!(process.resident_bytes > 0 && process.resident_peak_bytes >= process.resident_bytes >> 1);
        assert!(process.threads > 0 && process.descriptors > 2, "{process:?}");
    }
}
