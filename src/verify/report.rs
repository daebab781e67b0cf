//! What a check says: lines for faults, notes and what could not be read, and how far it is.

use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::VerifyError;

/// How often progress is shown.
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What is wrong with a file, or with what SCHEDULED tells; docs/evidence.md has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ExecutionHash,
    LogMissing,
    LogChanged,
    SealMissing,
    SealChanged,
    ListMissing,
    ListChanged,
    InputsMissing,
    InputsChanged,
    ArtifactMissing,
    ArtifactChanged,
    ArtifactExtra,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::ExecutionHash => "execution_hash",
            Self::LogMissing => "log_missing",
            Self::LogChanged => "log_changed",
            Self::SealMissing => "seal_missing",
            Self::SealChanged => "seal_changed",
            Self::ListMissing => "list_missing",
            Self::ListChanged => "list_changed",
            Self::InputsMissing => "inputs_missing",
            Self::InputsChanged => "inputs_changed",
            Self::ArtifactMissing => "artifact_missing",
            Self::ArtifactChanged => "artifact_changed",
            Self::ArtifactExtra => "artifact_extra",
        }
    }
}

/// Why a difference is no fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excuse {
    /// A job that was sealed later did it, or found it so.
    Superseded,
    /// A job that has not ended works there.
    InUse,
}

/// Why a check ends before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The user asked for it.
    Interrupted,
    /// The ledger cannot be read back, or the output is closed.
    Error(VerifyError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Error(error.into())
    }
}

/// What all threads of a check share.
pub(super) struct Meter<'a> {
    interrupted: &'a AtomicBool,
    /// Files whose content was read.
    pub(super) files: AtomicU64,
    /// Their bytes.
    pub(super) bytes: AtomicU64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(interrupted: &'a AtomicBool) -> Self {
        Self { interrupted, files: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// An error once the user has ended it.
    pub(super) fn go_on(&self) -> Result<(), Stop> {
        if self.is_interrupted() { Err(Stop::Interrupted) } else { Ok(()) }
    }
}

/// A line that overwrites itself, on a terminal.
pub struct Progress<'a> {
    to: Option<&'a mut dyn Write>,
    shown: Instant,
    stands: bool,
}

impl<'a> Progress<'a> {
    /// Shown on `to`, if anywhere.
    pub fn new(to: Option<&'a mut dyn Write>) -> Self {
        Self { to, shown: Instant::now(), stands: false }
    }

    /// Shows what `text` says, where it is time to.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if let Some(to) = self.to.as_mut().filter(|_| self.shown.elapsed() >= PROGRESS_EVERY) {
            self.shown = Instant::now();
            self.stands = true;
            // Progress is a courtesy; a terminal that went away does not stop a verification.
            let _ = write!(to, "\r\x1b[K{}", text()).and_then(|()| to.flush());
        }
    }

    /// Takes the line away, before another is written.
    pub fn clear(&mut self) {
        if let Some(to) = self.to.as_mut().filter(|_| self.stands) {
            self.stands = false;
            let _ = write!(to, "\r\x1b[K").and_then(|()| to.flush());
        }
    }
}

/// Where findings go.
pub(super) struct Report<'a, 'o> {
    out: &'a mut (dyn Write + 'o),
    progress: &'a mut Progress<'o>,
    pub(super) meter: &'a Meter<'o>,
    /// Jobs to check, and how many are.
    pub(super) jobs: (usize, usize),
    pub(super) faults: u64,
    pub(super) notes: u64,
    pub(super) unreadable: u64,
}

impl<'a, 'o> Report<'a, 'o> {
    pub(super) fn new(out: &'a mut (dyn Write + 'o), progress: &'a mut Progress<'o>, meter: &'a Meter<'o>) -> Self {
        Self { out, progress, meter, jobs: (0, 0), faults: 0, notes: 0, unreadable: 0 }
    }

    /// `why` is a clause that says what it means and what to do.
    pub(super) fn fault(&mut self, kind: Kind, job: &str, path: &[u8], why: &str) -> io::Result<()> {
        self.faults += 1;
        self.line(format_args!("fault {} {job} {}: {why}", kind.as_str(), shown(path)))
    }

    pub(super) fn note(&mut self, excuse: Excuse, job: &str, path: &[u8], what: &str) -> io::Result<()> {
        self.notes += 1;
        let (word, why) = match excuse {
            Excuse::Superseded => ("superseded", "and a job that was sealed later did so, or found it so"),
            Excuse::InUse => ("in_use", "and a job that has not ended works there, so nothing can be told of it yet"),
        };
        self.line(format_args!("note {word} {job} {}: {what}, {why}", shown(path)))
    }

    /// Of a file that no verdict is possible on.
    pub(super) fn unreadable(&mut self, job: &str, path: &[u8], error: &dyn fmt::Display) -> io::Result<()> {
        self.unreadable += 1;
        self.line(format_args!(
            "unreadable {job} {}: {error}; nothing can be told of it, so check again as a user who may read it",
            shown(path)
        ))
    }

    /// Shows how far it is, where it is time to.
    pub(super) fn tick(&mut self) {
        let (jobs, meter, faults) = (self.jobs, self.meter, self.faults);
        self.progress.show(|| {
            let (files, bytes) = (meter.files.load(Ordering::Relaxed), meter.bytes.load(Ordering::Relaxed));
            format!("checked {} of {} jobs, {files} files, {} MiB; {faults} faults", jobs.1, jobs.0, bytes >> 20)
        });
    }

    /// What was checked, in one line.
    pub(super) fn summary(&mut self, interrupted: bool) -> io::Result<()> {
        let (files, bytes) = (self.meter.files.load(Ordering::Relaxed), self.meter.bytes.load(Ordering::Relaxed));
        let (all, done) = self.jobs;
        let begin = if interrupted { "interrupted; files checked until then" } else { "files" };
        let (faults, notes, unreadable) = (self.faults, self.notes, self.unreadable);
        self.line(format_args!(
            "{begin}: {done} of {all} jobs, {files} files read, {bytes} bytes; {faults} faults, {notes} notes, \
             {unreadable} unreadable"
        ))
    }

    fn line(&mut self, text: fmt::Arguments<'_>) -> io::Result<()> {
        self.progress.clear();
        writeln!(self.out, "{text}")
    }
}

/// A path in one line: as JSON files have it, and control characters as `%XX`, too.
fn shown(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for character in crate::seal::text::encode(path).chars() {
        if character.is_control() {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                text.push_str(&format!("%{byte:02X}"));
            }
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_line_whatever_it_holds() {
        assert_eq!(shown(b"/w/a b%\xff"), "/w/a b%25%FF");
        assert_eq!(shown("/w/ä\n\x1b[2J\u{85}\x7f".as_bytes()), "/w/ä%0A%1B[2J%C2%85%7F");
    }
}
