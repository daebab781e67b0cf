//! Offline `verify` and `dump`, over the same recovery and event code as the agent. They change nothing.

use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Expectation;
use crate::engine::fold;
use crate::hash::Hash;
use crate::ledger::fact::Fact;
use crate::ledger::lifecycle::Ledger;
use crate::wal::recovery::{Ending, Reading, Record, Scan, ScanError, scan, scan_parsed};
use crate::wal::storage::Directory;

/// How often a ledger that looks damaged is read again, and after which pause: an agent may be writing to it.
const SECOND_LOOKS: u32 = 2;
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(50);
/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Events between two looks at the clock.
const LOOK_EVERY: u64 = 1024;

/// What `verify` found.
#[derive(Debug)]
pub enum Verdict {
    /// Everything holds.
    Sound,
    /// Something does not.
    NotSound,
    /// The user ended it; what was checked until then holds.
    Interrupted,
}

/// Where the ledger lies below a data directory.
pub fn wal_dir(data: &Path) -> std::path::PathBuf {
    data.join("wal")
}

/// Checks a ledger and prints what it found, the head last. `progress` gets a line that overwrites itself, on a terminal.
pub fn verify(
    data: &Path,
    expectations: &[Expectation],
    interrupted: &AtomicBool,
    out: &mut dyn Write,
    mut progress: Option<&mut dyn Write>,
) -> Result<Verdict, VerifyError> {
    let storage = open(data)?;
    let mut ledger = Ledger::default();
    let (mut prev, mut count, mut bytes) = (Hash::ZERO, 0_u64, 0_u64);
    let mut missing: Vec<Expectation> = expectations.to_vec();
    let mut shown = Instant::now();
    let mut visit = |record: &Record<'_>, fact| {
        if interrupted.load(Ordering::Relaxed) {
            return Err(INTERRUPTED.to_owned());
        }
        fold(&mut ledger, record, &prev, fact)?;
        prev = Hash(record.hash);
        count = record.seq;
        bytes += record.bytes.len() as u64;
        missing.retain(|expected| !(expected.seq == count && expected.hash == prev));
        // The clock costs more than an event.
        let look = count.is_multiple_of(LOOK_EVERY);
        if let Some(to) = progress.as_mut().filter(|_| look && shown.elapsed() >= PROGRESS_EVERY) {
            shown = Instant::now();
            // Progress is a courtesy; a terminal that went away does not stop a verification.
            let _ = write!(to, "\rchecked {count} events, {} MiB", bytes >> 20).and_then(|()| to.flush());
        }
        Ok(())
    };
    let outcome = scan_live(&storage, &Fact::parse, &mut visit);
    if let Some(to) = progress {
        let _ = write!(to, "\r\x1b[K").and_then(|()| to.flush());
    }
    let scan = match outcome {
        Ok(Some(scan)) => scan,
        Ok(None) => {
            writeln!(out, "there is no ledger below {}", data.display())?;
            return Ok(if expectations.is_empty() { Verdict::Sound } else { Verdict::NotSound });
        }
        Err(ScanError::Corrupt(corruption)) if corruption.reason == INTERRUPTED => {
            writeln!(out, "interrupted; sound so far: {count} events")?;
            writeln!(out, "head {count} {prev}")?;
            return Ok(Verdict::Interrupted);
        }
        Err(ScanError::Corrupt(corruption)) => {
            writeln!(out, "damaged: {corruption}")?;
            writeln!(out, "sound before that: {count} events")?;
            writeln!(out, "head {count} {prev}")?;
            return Ok(Verdict::NotSound);
        }
        Err(other) => return Err(other.into()),
    };
    if let Err(reason) = ledger.check_unfinished() {
        writeln!(out, "the chain is sound, and an agent could not start on it: {reason}")?;
        writeln!(out, "head {count} {prev}")?;
        return Ok(Verdict::NotSound);
    }
    for note in &scan.repaired {
        writeln!(out, "note: {note}; its copy is sound")?;
    }
    if let Ending::Torn { file, offset } = &scan.ending {
        writeln!(
            out,
            "note: {file}: a commit that was never acknowledged is torn, or being written, at byte offset {offset}"
        )?;
    }
    writeln!(
        out,
        "sound: {count} events in {} frames and {} segments; {} jobs",
        scan.frames,
        scan.position.segno,
        ledger.len()
    )?;
    let mut verdict = Verdict::Sound;
    for expected in missing {
        writeln!(out, "expected event {}:{} is not in this ledger", expected.seq, expected.hash)?;
        verdict = Verdict::NotSound;
    }
    writeln!(out, "head {count} {prev}")?;
    Ok(verdict)
}

/// Prints events, exactly the stored bytes, one a line.
pub fn dump(data: &Path, from: u64, job: Option<&str>, out: &mut dyn Write) -> Result<(), VerifyError> {
    let storage = open(data)?;
    let marker = job.map(|id| format!("\"job_id\":\"{id}\",\"attempt\":"));
    let mut failed = None;
    let mut prev = Hash::ZERO;
    let mut visit = |record: &Record<'_>, ()| {
        crate::ledger::event::check_link(record.bytes, record.seq, &prev)?;
        prev = Hash(record.hash);
        // The job id stands before the detail, where no user's text can imitate it.
        let is_wanted = marker.as_deref().is_none_or(|marker| is_of_job(record.bytes, marker));
        if record.seq >= from && is_wanted && failed.is_none() {
            failed = out.write_all(record.bytes).and_then(|()| out.write_all(b"\n")).err();
        }
        if failed.is_some() { Err("the output is closed".to_owned()) } else { Ok(()) }
    };
    let outcome = scan_live(&storage, &|_| (), &mut visit);
    match failed {
        // `hackbrain dump | head` is a fine thing to do.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Some(error) => Err(error.into()),
        None => outcome.map(drop).map_err(VerifyError::from),
    }
}

/// Scans a ledger that an agent may be writing to. A frame that was in flight when it was read, and had a successor when the
/// blocks behind it were read, looks damaged; read again, it does not. Damage does.
fn scan_live<T: Send>(
    storage: &Directory,
    parse: &(dyn Fn(&[u8]) -> T + Sync),
    visit: &mut dyn FnMut(&Record<'_>, T) -> Result<(), String>,
) -> Result<Option<Scan>, ScanError> {
    let mut refused = false;
    let mut visit = |record: &Record<'_>, parsed| {
        let outcome = visit(record, parsed);
        refused = outcome.is_err();
        outcome
    };
    let first = scan_parsed(storage, Reading { parse, visit: &mut visit });
    match first {
        Err(ScanError::Corrupt(damage)) if !refused => {
            for _ in 0..SECOND_LOOKS {
                thread::sleep(SECOND_LOOK_AFTER);
                if let Ok(scan) = scan(storage, &mut |_| Ok(())) {
                    return Ok(scan);
                }
            }
            Err(ScanError::Corrupt(damage))
        }
        other => other,
    }
}

fn is_of_job(event: &[u8], marker: &str) -> bool {
    let detail = b",\"detail\":";
    let head_len = event.windows(detail.len()).position(|w| w == detail).unwrap_or(event.len());
    event[..head_len].windows(marker.len()).any(|w| w == marker.as_bytes())
}

fn open(data: &Path) -> io::Result<Directory> {
    let dir = wal_dir(data);
    if !dir.is_dir() {
        let message = format!("{} is not a data directory: it has no wal/ below it", data.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, message));
    }
    Ok(Directory::read_only(&dir))
}

const INTERRUPTED: &str = "interrupted by the user";

/// Why a ledger could not be checked at all.
#[derive(Debug)]
pub enum VerifyError {
    /// The log could not be read, or is damaged.
    Scan(ScanError),
    /// Files or the terminal.
    Io(io::Error),
}

impl std::fmt::Display for VerifyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Scan(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl From<ScanError> for VerifyError {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

impl From<io::Error> for VerifyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
