//! The floor: what the device does at best for one thread that writes a block and waits until it is durable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use hackbrain::sys::block::AlignedBuf;
use rustix::fs::OFlags;

use crate::stats::percentile;
use crate::{Fault, INTERRUPTED};

const BLOCK: u64 = 4096;
/// Zero-filled ahead, and written over and over: no write waits for the file system to allocate.
const FILE_BYTES: u64 = 64 << 20;
const CHUNK: usize = 1 << 20;

/// Two floors around a slice that differ by more than this factor say nothing of it.
const UNSTABLE_FACTOR: f64 = 1.5;
/// A device slower than this is being throttled. Asked of the median and of the mean: one that is throttled in bursts has a
/// fair median and a few writes that take tens of milliseconds.
const LATENCY_MAX_US: f64 = 400.0;
/// Tells whether it is, and takes little from it.
const PROBE: Duration = Duration::from_millis(30);
const PAUSE: Duration = Duration::from_millis(500);

/// What one measurement gave.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Floor {
    fn is_throttled(&self) -> bool {
        self.p50_us > LATENCY_MAX_US || 1e6 / self.per_second > LATENCY_MAX_US
    }
}

/// The floors before and after a slice.
#[derive(Debug, Clone, Copy)]
pub struct Bracket {
    pub before: Floor,
    pub after: Floor,
}

impl Bracket {
    pub fn per_second(&self) -> f64 {
        (self.before.per_second + self.after.per_second) / 2.0
    }

    /// Whether the device stood still enough for the slice between to be compared with others.
    pub fn is_stable(&self) -> bool {
        let (a, b) = (self.before.per_second, self.after.per_second);
        a.max(b) <= a.min(b) * UNSTABLE_FACTOR && !self.before.is_throttled() && !self.after.is_throttled()
    }
}

/// The file that the floor is measured with.
pub struct FloorFile {
    file: File,
    block: AlignedBuf,
    offset: u64,
}

impl FloorFile {
    /// Makes and fills the file below `dir`.
    pub fn create(dir: &Path) -> Result<Self, Fault> {
        let refused = |error: io::Error| -> Fault {
            if error.kind() == io::ErrorKind::InvalidInput {
                format!("the file system below {} refuses O_DIRECT; give another with --dir", dir.display()).into()
            } else {
                format!("measuring the floor in {}: {error}", dir.display()).into()
            }
        };
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .custom_flags(flags.cast_signed())
            .open(dir.join("floor"))
            .map_err(refused)?;
        let zeros = AlignedBuf::new(CHUNK);
        for offset in (0..FILE_BYTES).step_by(CHUNK) {
            file.write_all_at(&zeros, offset).map_err(refused)?;
        }
        file.sync_all()?;
        let mut block = AlignedBuf::new(BLOCK as usize);
        block.fill(0xA5);
        Ok(Self { file, block, offset: 0 })
    }

    /// As [`FloorFile::measure`], but waits, up to `patience`, while the device is throttled: an allowance of operations
    /// that is used up fills again only while nobody takes from it. Also gives how long it waited.
    pub fn measure_patiently(&mut self, time: Duration, patience: Duration) -> Result<(Floor, Duration), Fault> {
        let began = Instant::now();
        loop {
            let waited = began.elapsed();
            if !self.measure(PROBE)?.is_throttled() || waited >= patience || INTERRUPTED.load(Ordering::Relaxed) {
                return Ok((self.measure(time)?, waited));
            }
            thread::sleep(PAUSE);
        }
    }

    /// Writes block after block for so long, each durable before the next.
    pub fn measure(&mut self, time: Duration) -> Result<Floor, Fault> {
        let mut took_ns = Vec::with_capacity(1 << 16);
        let began = Instant::now();
        let mut now = began;
        while now - began < time {
            self.file.write_all_at(&self.block, self.offset)?;
            self.offset = (self.offset + BLOCK) % FILE_BYTES;
            let end = Instant::now();
            took_ns.push((end - now).as_nanos() as u64);
            now = end;
        }
        took_ns.sort_unstable();
        let micros = |share| percentile(&took_ns, share).map(|ns| ns as f64 / 1e3).ok_or("no floor was measured");
        let per_second = took_ns.len() as f64 / (now - began).as_secs_f64();
        Ok(Floor { per_second, p50_us: micros(0.5)?, p99_us: micros(0.99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bracket(before: f64, after: f64, p50_us: f64) -> Bracket {
        let floor = |per_second, p50_us| Floor { per_second, p50_us, p99_us: p50_us };
        Bracket { before: floor(before, 100.0), after: floor(after, p50_us) }
    }

    #[test]
    fn a_slice_counts_only_between_like_floors_of_a_device_that_is_not_throttled() {
        assert!(bracket(6000.0, 9000.0, 120.0).is_stable());
        assert!(bracket(9000.0, 6000.0, 120.0).is_stable());
        assert!(!bracket(6000.0, 9100.0, 120.0).is_stable());
        assert!(!bracket(9100.0, 6000.0, 120.0).is_stable());
        assert!(!bracket(9000.0, 9000.0, 401.0).is_stable());
        assert!(bracket(2600.0, 2600.0, 120.0).is_stable());
        assert!(!bracket(2400.0, 2400.0, 120.0).is_stable());
        assert_eq!(bracket(6000.0, 9000.0, 120.0).per_second(), 7500.0);
    }
}
