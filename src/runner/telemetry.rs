//! One thread samples every attempt under way, once a second: to the attempt's file and to the event stream.
//!
//! Nothing waits for it: a subscriber of the stream takes the newest batch when it comes by, and an attempt that ends takes
//! its own last sample.

mod file;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::file::SampleFile;
use super::cgroup::{AttemptGroup, Sample};
use super::kernel_log::{KernelLog, Kills, is_in, is_of};

/// How often an attempt's sample is written and published.
const EVERY: Duration = Duration::from_secs(1);
/// How often a group that does not keep its counters is read in between, so that a short attempt's are not lost with it.
const LOOKS: u32 = 5;

/// Where the samples of an attempt lie; `logs` is the job's directory, `DATA/logs/<job>`.
pub fn path(logs: &Path, attempt: u32) -> PathBuf {
    SampleFile::path(logs, attempt)
}

/// A sample's line, as file and stream have it.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    job_id: &'a str,
    attempt: u32,
    #[serde(flatten)]
    sample: Sample,
}

impl Line<'_> {
    fn text(job_id: &str, attempt: u32, sample: &Sample) -> String {
        serde_json::to_string(&Line { job_id, attempt, sample: *sample }).expect("a sample is plain data")
    }

    fn parse(text: &str) -> Option<Sample> {
        // A job id has nothing that JSON would escape.
        serde_json::from_str::<Line<'_>>(text).ok().map(|line| line.sample)
    }
}

/// The samples of one second.
#[derive(Debug, Default)]
pub struct Batch {
    /// Counts from 1; 0 before the first.
    pub number: u64,
    /// Job and JSON line of each.
    pub lines: Vec<(Arc<str>, String)>,
}

/// The attempts under way, and their newest samples.
#[derive(Debug, Default)]
pub struct Telemetry {
    meters: Mutex<Vec<Arc<Meter>>>,
    begun: Condvar,
    newest: Mutex<Arc<Batch>>,
    /// Last samples of attempts that ended since the last batch.
    last: Mutex<Vec<(Arc<str>, String)>>,
    kernel_log: KernelLog,
}

impl Telemetry {
    /// The newest batch of samples; those before it are not kept.
    pub fn newest(&self) -> Arc<Batch> {
        lock(&self.newest).clone()
    }

    /// Takes an attempt in, until the meter is dropped. `group` may be found later. What an earlier agent saw of the attempt
    /// is taken over from its file.
    pub(super) fn begin(
        self: &Arc<Self>,
        job_id: &Arc<str>,
        attempt: u32,
        logs: &Path,
        group: Option<AttemptGroup>,
    ) -> Metered {
        let path = path(logs, attempt);
        let mut book = Book::default();
        if path.exists() {
            book.open(&path);
        }
        let meter = Meter { job_id: job_id.clone(), attempt, path, group: OnceLock::new(), book: Mutex::new(book) };
        let meter = Arc::new(meter);
        if let Some(group) = group {
            meter.found(group);
        }
        lock(&self.meters).push(meter.clone());
        self.begun.notify_all();
        Metered { telemetry: self.clone(), meter }
    }

    /// Samples until `is_stopping`; calls `wake` when there is a new batch.
    pub(super) fn run(&self, is_stopping: &dyn Fn() -> bool, wake: &dyn Fn()) {
        let (mut next, mut look) = (Instant::now(), 0);
        while !is_stopping() {
            let meters = lock(&self.meters);
            if meters.is_empty() && lock(&self.last).is_empty() {
                drop(self.begun.wait_timeout(meters, EVERY).unwrap_or_else(PoisonError::into_inner));
                (next, look) = (Instant::now(), 0);
                continue;
            }
            // Let go of at once: whoever begins or ends waits for this lock.
            let under_way = Vec::clone(&meters);
            drop(meters);
            let is_turn = look % LOOKS == 0;
            let lines: Vec<_> = under_way.iter().filter_map(|meter| meter.look(is_turn)).collect();
            if is_turn {
                // Before the ring can turn over.
                self.kernel_log.read_on();
                if self.publish(lines) {
                    wake();
                }
            }
            look += 1;
            next += EVERY / LOOKS;
            let now = Instant::now();
            // After a stall, e.g. of the disk, what was missed is not made up for.
            next = if next + EVERY < now { now } else { next };
            thread::sleep(next.saturating_duration_since(now));
        }
    }

    /// Whether there was anything to publish.
    fn publish(&self, mut lines: Vec<(Arc<str>, String)>) -> bool {
        // An attempt's last sample comes behind one that was taken just before.
        lines.append(&mut lock(&self.last));
        if lines.is_empty() {
            return false;
        }
        let mut newest = lock(&self.newest);
        *newest = Arc::new(Batch { number: newest.number + 1, lines });
        true
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there is to measure of one attempt.
#[derive(Debug)]
pub(super) struct Meter {
    job_id: Arc<str>,
    attempt: u32,
    path: PathBuf,
    group: OnceLock<AttemptGroup>,
    book: Mutex<Book>,
}

/// What was seen of it.
#[derive(Debug, Default)]
struct Book {
    file: Option<SampleFile>,
    /// The file's trouble was told.
    told: bool,
    /// The last sample, with the largest figures so far.
    seen: Sample,
    /// First and last look at which it lived.
    alive: Option<(Instant, Instant)>,
    /// The look that first showed the present count of OOM kills, where this agent saw it change.
    last_kill: Option<Instant>,
    /// Its last sample was taken.
    is_over: bool,
}

/// What an attempt used, at its end.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The last sample: what only grows is the most that was seen.
    pub sample: Sample,
    /// Who tells of memory that ran out.
    pub witnesses: Witnesses,
}

/// Who tells of memory that ran out.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    /// The engine's flag.
    pub engine: bool,
    /// The group's largest count.
    pub counted: u64,
    /// The kernel's log, where it can be read.
    pub log: Option<Kills>,
    /// The attempt lived at least so long after the last kill. None where that is not known for certain.
    pub lived_on: Option<Duration>,
}

impl Witnesses {
    /// Processes that were killed: nobody counts too many, so the largest count is the best one.
    pub fn kills(&self) -> u64 {
        self.counted.max(self.log.map_or(0, Kills::total)).max(self.engine.into())
    }
}

impl Meter {
    /// The group, once there is one.
    pub fn group(&self) -> Option<&AttemptGroup> {
        self.group.get()
    }

    /// Sets the group; the first one stays.
    pub fn found(&self, group: AttemptGroup) {
        let _ = self.group.set(group);
    }

    /// Takes a sample of an attempt that lives. Gives its line, and stores it, if it is the `turn` for one.
    fn look(&self, turn: bool) -> Option<(Arc<str>, String)> {
        let group = self.group.get().filter(|group| turn || !group.outlives_container())?;
        let mut book = lock(&self.book);
        if book.is_over {
            return None;
        }
        let reading = group.sample();
        if !reading.shows_life() {
            return None;
        }
        let now = Instant::now();
        let sample = reading.after(&book.seen);
        if sample.oom_kills.unwrap_or(0) > book.seen.oom_kills.unwrap_or(0) {
            book.last_kill = Some(now);
        }
        let began = book.alive.map_or(now, |(began, _)| began);
        book.alive = Some((began, now));
        book.seen = sample;
        if !turn {
            return None;
        }
        let line = Line::text(&self.job_id, self.attempt, &sample);
        book.store(&self.path, |file| file.add(&line));
        Some((self.job_id.clone(), line))
    }
}

impl Book {
    fn open(&mut self, path: &Path) {
        match SampleFile::open(path) {
            Ok((file, last)) => {
                // Opened again after an error it has nothing new to tell.
                self.seen = if self.seen.is_empty() { last.unwrap_or_default() } else { self.seen };
                self.file = Some(file);
            }
            Err(error) => self.trouble(path, &error),
        }
    }

    fn store(&mut self, path: &Path, add: impl FnOnce(&mut SampleFile) -> std::io::Result<()>) {
        if self.file.is_none() {
            self.open(path);
        }
        let Some(file) = &mut self.file else { return };
        match add(file) {
            Ok(()) => self.told = false,
            Err(error) => {
                // It is opened anew at the next sample, behind its last whole line.
                self.file = None;
                self.trouble(path, &error);
            }
        }
    }

    fn trouble(&mut self, path: &Path, error: &std::io::Error) {
        if !self.told {
            log::warn!("{}: samples are not stored: {error}", path.display());
        }
        self.told = true;
    }
}

/// An attempt that is being measured, for as long as this lives.
#[derive(Debug)]
pub(super) struct Metered {
    telemetry: Arc<Telemetry>,
    meter: Arc<Meter>,
}

impl Metered {
    /// The meter.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Takes the last sample of an attempt whose container runs no more, and stores it. `id` is the container's, empty where it
    /// is gone; `engine` says that the engine saw the memory run out.
    pub fn finish(&self, id: &str, engine: bool) -> Measured {
        let meter = &self.meter;
        let mut book = lock(&meter.book);
        let group = meter.group.get();
        let mut sample = group.map(AttemptGroup::sample).unwrap_or_default().after(&book.seen);
        let path = group.and_then(AttemptGroup::memory_path);
        let ours = |found: &str| path.as_ref().is_some_and(|path| is_in(found, path)) || is_of(found, id);
        let log = self.telemetry.kernel_log.kills(&ours);
        let mut witnesses = Witnesses { engine, counted: sample.oom_kills.unwrap_or(0), log, lived_on: None };
        let kills = witnesses.kills();
        // A kill after the last look would be known to whoever counts to the end.
        let seen = book.seen.oom_kills.unwrap_or(0);
        let all_seen = seen == kills
            && (group.is_some_and(AttemptGroup::outlives_container) || log.is_some_and(|log| log.total() == kills));
        witnesses.lived_on = book
            .alive
            .filter(|_| all_seen && kills > 0)
            .map(|(began, last)| last.saturating_duration_since(book.last_kill.unwrap_or(began)));
        if !sample.is_empty() {
            sample.oom_kills = Some(kills);
        }
        // A container that never started has nothing to tell.
        let has_lived = sample.cpu_ns.unwrap_or(0) > 0 || sample.pids_peak.unwrap_or(0) > 0;
        if has_lived && !book.is_over {
            let line = Line::text(&meter.job_id, meter.attempt, &sample);
            book.store(&meter.path, |file| file.add_last(&line));
            lock(&self.telemetry.last).push((meter.job_id.clone(), line));
        }
        book.is_over = true;
        Measured { sample, witnesses }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        lock(&self.telemetry.meters).retain(|meter| !Arc::ptr_eq(meter, &self.meter));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::cgroup::Hierarchies;
    use super::*;

    /// An attempt with a group of its own on version 2, whose files the test writes.
    struct Case {
        dir: PathBuf,
        telemetry: Arc<Telemetry>,
        metered: Metered,
    }

    impl Case {
        fn new(what: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("hb-meter-{what}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            let telemetry = Arc::<Telemetry>::default();
            let group = AttemptGroup::create(&Hierarchies::V2(dir.clone()), "l", "hb-a-1").unwrap();
            let metered = telemetry.begin(&"a".into(), 1, &dir.join("logs"), Some(group));
            Self { dir, telemetry, metered }
        }

        fn kernel_says(&self, cpu_us: u64, memory: u64, pids: u64, oom_kills: u64) {
            let group = self.dir.join("hackbrain-l/hb-a-1");
            for (name, text) in [
                ("cpu.stat", format!("usage_usec {cpu_us}\n")),
                ("memory.current", format!("{memory}\n")),
                ("pids.current", format!("{pids}\n")),
                ("memory.events", format!("oom 9\noom_kill {oom_kills}\n")),
            ] {
                std::fs::write(group.join(name), text).unwrap();
            }
        }

        fn lines(&self) -> Vec<Sample> {
            let text = std::fs::read_to_string(path(&self.dir.join("logs"), 1)).unwrap_or_default();
            text.lines().map(|line| Line::parse(line).unwrap()).collect()
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    #[test]
    fn an_attempt_has_samples_while_it_lives_and_one_at_its_end() {
        let case = Case::new("life");
        let meter = case.metered.meter();
        assert_eq!(meter.look(true), None, "no container yet");
        case.kernel_says(5, 100, 3, 0);
        assert_eq!(meter.look(false), None, "not its turn, and nothing would be lost");
        let (job_id, line) = meter.look(true).unwrap();
        assert_eq!((&*job_id, Line::parse(&line)), ("a", Some(meter.book.lock().unwrap().seen)));
        assert!(line.starts_with("{\"job_id\":\"a\",\"attempt\":1,\"time\":\"2"), "{line}");
        assert!(
            line.contains("\"memory_peak_bytes\":100,\"pids\":3,\"pids_peak\":3,\"io_read_bytes\":null,"),
            "{line}"
        );
        case.kernel_says(7, 0, 0, 0);
        assert_eq!(meter.look(true), None, "nothing runs");
        let measured = case.metered.finish("", false);
        assert_eq!((measured.sample.cpu_ns, measured.sample.memory_peak_bytes), (Some(7000), Some(100)));
        assert_eq!((measured.sample.pids_peak, measured.sample.oom_kills), (Some(3), Some(0)));
        assert_eq!(meter.look(true), None, "it is over");
        assert_eq!(case.lines().len(), 2);
        assert_eq!(case.lines()[1], measured.sample);

        // Its last sample is in the next batch, and only there.
        assert_eq!(case.telemetry.newest().number, 0);
        assert!(case.telemetry.publish(vec![("b".into(), "{}".into())]));
        let batch = case.telemetry.newest();
        assert_eq!((batch.number, batch.lines.len(), &*batch.lines[1].0), (1, 2, "a"));
        assert!(!case.telemetry.publish(vec![]));
        assert_eq!(case.telemetry.newest().number, 1);
    }

    #[test]
    fn how_long_an_attempt_lived_on_is_told_only_where_every_kill_was_seen() {
        let case = Case::new("kills");
        let meter = case.metered.meter();
        for kills in [0, 2, 2] {
            case.kernel_says(5, 100, 3, kills);
            meter.look(true).unwrap();
        }
        let witnesses = case.metered.finish("", true).witnesses;
        assert_eq!((witnesses.kills(), witnesses.counted), (2, 2));
        let book = meter.book.lock().unwrap();
        assert_eq!(witnesses.lived_on, Some(book.alive.unwrap().1 - book.last_kill.unwrap()));
        assert!(witnesses.lived_on > Some(Duration::ZERO));
        drop(book);
        // One more behind the last look.
        case.kernel_says(5, 100, 0, 3);
        let witnesses = case.metered.finish("", true).witnesses;
        assert_eq!((witnesses.kills(), witnesses.lived_on), (3, None));
    }

    #[test]
    fn what_an_earlier_agent_saw_is_not_forgotten() {
        let case = Case::new("earlier");
        case.kernel_says(5, 100, 3, 4);
        case.metered.meter().look(true).unwrap();
        let again = case.telemetry.begin(&"a".into(), 1, &case.dir.join("logs"), None);
        assert_eq!(case.telemetry.meters.lock().unwrap().len(), 2);
        let measured = again.finish("", false);
        assert_eq!((measured.sample.cpu_ns, measured.sample.memory_peak_bytes), (Some(5000), Some(100)));
        assert_eq!(measured.witnesses.kills(), 4);
        drop(again);
        assert_eq!(case.telemetry.meters.lock().unwrap().len(), 1);
        // An attempt without a group has nothing, and no file.
        let none = case.telemetry.begin(&"b".into(), 1, &case.dir.join("other"), None);
        let measured = none.finish("", true);
        assert_eq!((measured.sample.is_empty(), measured.witnesses.kills()), (true, 1));
        assert!(!case.dir.join("other").exists());
    }
}
