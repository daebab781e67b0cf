//! Offline `verify` and `dump`, over the same recovery and event code as the agent. They change nothing.

mod artifacts;
mod content;
mod given;
mod report;
mod shared;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::config::{Expectation, Verify};
use crate::engine::fold;
use crate::hash::Hash;
use crate::ledger::fact::Fact;
use crate::ledger::lifecycle::Ledger;
use crate::sys::lock::{Guard, reading_guard};
use crate::wal::reader::Reader;
use crate::wal::recovery::{Ending, Reading, Record, Scan, ScanError, scan, scan_parsed};
use crate::wal::storage::Directory;
use artifacts::Index;
pub use report::Progress;
use report::{Meter, Report, Stop};

/// How often a ledger that looks damaged is read again, and after which pause: an agent may be writing to it.
const SECOND_LOOKS: u32 = 2;
pub(crate) const SECOND_LOOK_AFTER: Duration = Duration::from_millis(50);
/// Events between two looks at the clock.
const LOOK_EVERY: u64 = 1024;

/// What `verify` found.
#[derive(Debug)]
pub enum Verdict {
    /// Everything holds.
    Sound,
    /// Something does not.
    NotSound,
    /// Nothing was found that does not, and some files could not be read.
    Unreadable,
    /// The user ended it; what was checked until then holds.
    Interrupted,
}

/// Where the ledger lies below a data directory.
pub fn wal_dir(data: &Path) -> std::path::PathBuf {
    data.join("wal")
}

/// Checks a ledger, and with `--artifacts` the files that it vouches for, and prints what it found, the head last. `progress`
/// gets a line that overwrites itself, on a terminal.
pub fn verify<'a>(
    options: &Verify,
    interrupted: &'a AtomicBool,
    out: &mut (dyn Write + 'a),
    progress: Option<&'a mut dyn Write>,
) -> Result<Verdict, VerifyError> {
    let data = &options.data;
    let storage = open(data)?;
    // What is removed meanwhile would be missed, although an event tells of it that came too late to be read.
    let Some(_nothing_goes) = keep(data, options.artifacts, interrupted) else {
        writeln!(out, "interrupted; nothing was checked, for a prune is running")?;
        return Ok(Verdict::Interrupted);
    };
    let (meter, mut progress) = (Meter::new(interrupted), Progress::new(progress));
    let mut ledger = Ledger::default();
    let mut index = options.artifacts.then(Index::default);
    let (mut prev, mut count, mut bytes) = (Hash::ZERO, 0_u64, 0_u64);
    let mut missing: Vec<Expectation> = options.expect.clone();
    let parse = |bytes: &[u8]| {
        let fact = Fact::parse(bytes);
        let dirs = match &fact {
            Ok(fact) if options.artifacts => Index::dirs_of(fact, bytes),
            _ => Vec::new(),
        };
        (fact, dirs)
    };
    let mut visit = |record: &Record<'_>, (fact, dirs): (Result<Fact, String>, Vec<Box<str>>)| {
        if meter.is_interrupted() {
            return Err(INTERRUPTED.to_owned());
        }
        let job = fold(&mut ledger, record, &prev, fact)?;
        if let (Some(index), Some(job)) = (&mut index, job) {
            index.note(record.seq, job.number, job.state, &dirs);
        }
        prev = Hash(record.hash);
        count = record.seq;
        bytes += record.bytes.len() as u64;
        missing.retain(|expected| !(expected.seq == count && expected.hash == prev));
        // The clock costs more than an event.
        if count.is_multiple_of(LOOK_EVERY) {
            progress.show(|| format!("checked {count} events, {} MiB", bytes >> 20));
        }
        Ok(())
    };
    let outcome = scan_live(&storage, &parse, &mut visit);
    progress.clear();
    let scan = match outcome {
        Ok(Some(scan)) => scan,
        Ok(None) => {
            writeln!(out, "there is no ledger below {}", data.display())?;
            return Ok(if options.expect.is_empty() { Verdict::Sound } else { Verdict::NotSound });
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
    if let Some(index) = index {
        let reader = Reader::new(Arc::new(storage), scan.index);
        let mut report = Report::new(out, &mut progress, &meter);
        let outcome = artifacts::check(data, &ledger, index, &reader, &mut report);
        report.summary(matches!(outcome, Err(Stop::Interrupted)))?;
        verdict = match (outcome, verdict) {
            (Err(Stop::Error(error)), _) => return Err(error),
            (Err(Stop::Interrupted), _) => Verdict::Interrupted,
            (Ok(()), Verdict::Sound) if report.faults > 0 => Verdict::NotSound,
            (Ok(()), Verdict::Sound) if report.unreadable > 0 => Verdict::Unreadable,
            (Ok(()), verdict) => verdict,
        };
    }
    writeln!(out, "head {count} {prev}")?;
    Ok(verdict)
}

/// Keeps `prune` away from the files that are to be read, and waits for one that is running; where the lock of that cannot be
/// had, as in a copy, there is no guard. `None`: the user has ended it.
fn keep(data: &Path, reads_files: bool, interrupted: &AtomicBool) -> Option<Option<Guard>> {
    while reads_files && !interrupted.load(Ordering::Relaxed) {
        match reading_guard(data) {
            Ok(None) => thread::sleep(SECOND_LOOK_AFTER),
            Ok(guard) => return Some(guard),
            Err(_) => return Some(None),
        }
    }
    (!reads_files).then_some(None)
}

/// What a ledger's events say, read as `verify` does: an agent may be writing to it.
///
/// # Errors
/// It is damaged, or cannot be read.
pub fn ledger(data: &Path) -> Result<Ledger, VerifyError> {
    let (mut ledger, mut prev) = (Ledger::default(), Hash::ZERO);
    let mut visit = |record: &Record<'_>, fact| {
        fold(&mut ledger, record, &prev, fact)?;
        prev = Hash(record.hash);
        Ok(())
    };
    scan_live(&open(data)?, &Fact::parse, &mut visit)?;
    Ok(ledger)
}

/// Prints events, exactly the stored bytes, one a line. Gives how many.
pub fn dump(data: &Path, from: u64, job: Option<&str>, out: &mut dyn Write) -> Result<u64, VerifyError> {
    let storage = open(data)?;
    let marker = job.map(|id| format!("\"job_id\":\"{id}\",\"attempt\":"));
    let (mut failed, mut printed) = (None, 0);
    let mut prev = Hash::ZERO;
    let mut visit = |record: &Record<'_>, ()| {
        crate::ledger::event::check_link(record.bytes, record.seq, &prev)?;
        prev = Hash(record.hash);
        // The job id stands before the detail, where no user's text can imitate it.
        let is_wanted = marker.as_deref().is_none_or(|marker| is_of_job(record.bytes, marker));
        if record.seq >= from && is_wanted && failed.is_none() {
            failed = out.write_all(record.bytes).and_then(|()| out.write_all(b"\n")).err();
            printed += 1;
        }
        if failed.is_some() { Err("the output is closed".to_owned()) } else { Ok(()) }
    };
    let outcome = scan_live(&storage, &|_| (), &mut visit);
    match failed {
        // `hackbrain dump | head` is a fine thing to do.
        Some(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(printed),
        Some(error) => Err(error.into()),
        None => outcome.map(|_| printed).map_err(VerifyError::from),
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

/// The ledger of a data directory, for reading.
///
/// # Errors
/// `NotFound` where it is no data directory.
pub fn open(data: &Path) -> io::Result<Directory> {
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
