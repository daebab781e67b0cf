//! One slice: a fresh store, a closed loop of threads, and the floor before and after.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::backends::{self, Backend, Kind};
use crate::floor::{Bracket, FloorFile};
use crate::stats::{Random, percentile};
use crate::{Fault, INTERRUPTED};

/// A payload begins with its number and its thread's, so that no two are alike.
pub const PAYLOAD_MIN: usize = 16;

/// How long the parts of a slice take.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub floor: Duration,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long a slice waits at most for a throttled device.
    pub patience: Duration,
}

/// What a number that is to be believed needs.
pub const FULL: Timing = Timing {
    floor: Duration::from_millis(400),
    warm_up: Duration::from_millis(300),
    measured: Duration::from_millis(900),
    patience: Duration::from_secs(20),
};

/// Enough to see that it works.
pub const QUICK: Timing = Timing {
    floor: Duration::from_millis(150),
    warm_up: Duration::from_millis(100),
    measured: Duration::from_millis(300),
    patience: Duration::ZERO,
};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Case {
    pub kind: Kind,
    pub payload: usize,
    pub threads: usize,
}

/// What a slice gave.
#[derive(Debug, Clone)]
pub struct Slice {
    pub case: Case,
    pub floors: Bracket,
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// For a device that was throttled.
    pub waited: Duration,
    /// How often this project's log went to its next segment, warm-up included.
    pub segment_changes: usize,
}

impl Slice {
    /// Appends per floor write.
    pub fn ratio(&self) -> f64 {
        self.per_second / self.floors.per_second()
    }
}

/// Where slices run: an own directory that goes when this value goes.
pub struct Workplace {
    path: PathBuf,
    floor: FloorFile,
}

impl Workplace {
    /// Makes a directory below `dir`. Whatever else lies in `dir` is not touched.
    pub fn create(dir: &Path) -> Result<Self, Fault> {
        let path = dir.join(format!("hackbrain-bench-{}", std::process::id()));
        let made = std::fs::create_dir_all(dir).and_then(|()| std::fs::create_dir(&path));
        made.map_err(|error| format!("making {}: {error}", path.display()))?;
        let floor = FloorFile::create(&path).inspect_err(|_| drop(std::fs::remove_dir_all(&path)))?;
        Ok(Self { path, floor })
    }

    /// A directory for one store, empty.
    pub fn empty(&self) -> Result<PathBuf, Fault> {
        let path = self.path.join("store");
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir(&path)?;
        // What the file system still has to do for the store before must not be this one's burden.
        std::fs::File::open(&self.path)?.sync_all()?;
        Ok(path)
    }

    /// Runs one slice; its store, closed, is there until [`Workplace::empty`] is called again.
    pub fn measure(&mut self, case: Case, timing: &Timing) -> Result<Slice, Fault> {
        let store = self.empty()?;
        let blame = |fault: Fault| -> Fault { format!("{}: {fault}", case.kind.name()).into() };
        let (before, waited) = self.floor.measure_patiently(timing.floor, timing.patience)?;
        let backend = case.kind.open(&store, case.payload).map_err(blame)?;
        let mut latencies_ns = closed_loop(&*backend, case, timing).map_err(blame)?;
        drop(backend);
        let after = self.floor.measure(timing.floor)?;
        latencies_ns.sort_unstable();
        let micros = |share| percentile(&latencies_ns, share).map(|ns| f64::from(ns) / 1e3);
        let nothing = || blame("not one append became durable in the measured time".into());
        Ok(Slice {
            case,
            floors: Bracket { before, after },
            per_second: latencies_ns.len() as f64 / timing.measured.as_secs_f64(),
            p50_us: micros(0.5).ok_or_else(nothing)?,
            p99_us: micros(0.99).ok_or_else(nothing)?,
            waited,
            segment_changes: backends::segments(&store)?.saturating_sub(1),
        })
    }

    /// What the device is measured with.
    pub fn floor(&mut self) -> &mut FloorFile {
        &mut self.floor
    }

    /// The directory of the last slice's store.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("left behind: {}: {error}", self.path.display());
        }
        // Only if nobody else has something there.
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

/// Each thread appends, waits until that is durable, and appends again. Gives the latencies of the appends that ended in
/// the measured time, in nanoseconds.
fn closed_loop(backend: &dyn Backend, case: Case, timing: &Timing) -> Result<Vec<u32>, Fault> {
    let from = Instant::now() + timing.warm_up;
    let until = from + timing.measured;
    let worker = |number: usize| -> Result<Vec<u32>, Fault> {
        let mut payload = Random(number as u64).bytes(case.payload);
        payload[8..PAYLOAD_MIN].copy_from_slice(&number.to_le_bytes());
        let mut latencies = Vec::with_capacity(1 << 14);
        for count in 0u64.. {
            payload[..8].copy_from_slice(&count.to_le_bytes());
            let start = Instant::now();
            if start >= until || INTERRUPTED.load(Ordering::Relaxed) {
                break;
            }
            backend.append(&payload)?;
            let end = Instant::now();
            if end > from && end <= until {
                latencies.push(u32::try_from((end - start).as_nanos()).unwrap_or(u32::MAX));
            }
        }
        Ok(latencies)
    };
    let worker = &worker;
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..case.threads).map(|number| scope.spawn(move || worker(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let mut merged = Vec::new();
    for outcome in outcomes {
        merged.append(&mut outcome?);
    }
    Ok(merged)
}
