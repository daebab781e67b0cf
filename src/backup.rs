//! `hackbrain backup`: a copy of a data directory, also while its agent runs, that `verify` accepts. It takes no lock of the
//! agent's and asks it nothing.
//!
//! **Why the copy is consistent.** Whatever an event names is whole, and durable, before the event, and does not change
//! afterwards. So the ledger comes first, up to its head of that moment, and the files after it: they are at least those that
//! this ledger vouches for. What is removed of them, `prune` removes, and the lock of `DATA/BACKUP` keeps it away meanwhile.

mod destination;
mod ledger;
mod tree;

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::config::Backup;
use crate::hash::Hash;
use crate::sys::block::raise_descriptor_limit;
use crate::sys::kill_point;
use crate::sys::lock::backup_guard;
use crate::verify::{self, Progress};
use tree::Replica;

/// What a backup has made. Shown as two lines, the head last, as `verify` does.
#[derive(Debug)]
pub struct Made {
    head: (u64, Hash),
    files: u64,
    bytes: u64,
    left_out: u64,
    took: Duration,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { head: (seq, hash), files, bytes, left_out, took } = self;
        writeln!(
            f,
            "copied: {seq} events, {files} files, {bytes} bytes in {:.1} s; {left_out} left out",
            took.as_secs_f64()
        )?;
        writeln!(f, "head {seq} {hash}")
    }
}

/// Why there is no copy. Nothing stands at DEST then.
#[derive(Debug)]
pub enum BackupError {
    /// 64: what was asked for cannot be done.
    Usage(String),
    /// 65: the ledger is damaged.
    Damaged(String),
    /// 74: a file could not be read or written.
    Io(String),
    /// 75: another program is at it.
    InUse(String),
    /// 130: the user ended it.
    Interrupted,
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(message) | Self::InUse(message) => f.write_str(message),
            Self::Damaged(message) | Self::Io(message) => write!(f, "{message}; no backup was made"),
            Self::Interrupted => f.write_str("interrupted; no backup was made"),
        }
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.display().to_string();
    move |error| match error.kind() {
        // A file system that fills up in the middle of a write may say so by a short one.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero => {
            BackupError::Io(format!("{path}: {error}; is the disk full?"))
        }
        _ => BackupError::Io(format!("{path}: {error}")),
    }
}

/// Copies a data directory. `note` hears of what is left out; `progress` gets a line that overwrites itself, on a terminal.
///
/// # Errors
/// See [`BackupError`].
pub fn backup(
    options: &Backup,
    interrupted: &AtomicBool,
    note: &mut dyn FnMut(&str),
    progress: Option<&mut dyn Write>,
) -> Result<Made, BackupError> {
    let started = Instant::now();
    // Each level of a tree takes two.
    if let Err(error) = raise_descriptor_limit() {
        log::debug!("the limit on open files stays as it is: {error}");
    }
    let storage = verify::open(&options.data).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => BackupError::Usage(error.to_string()),
        _ => io_error(&options.data)(error),
    })?;
    let data = options.data.canonicalize().map_err(io_error(&options.data))?;
    let place = destination::check(&data, &options.dest)?;
    let _nothing_goes = match backup_guard(&data, false) {
        Ok(Some(guard)) => Some(guard),
        Ok(None) => {
            return Err(BackupError::InUse("prune is running; make the backup when it has ended".into()));
        }
        // Nobody can remove anything there.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
        Err(error) => return Err(io_error(&data.join(crate::sys::lock::BACKUP_LOCK))(error)),
    };
    let mut progress = Progress::new(progress);
    let outcome = (|| {
        let Some(end) = ledger::check(&storage, interrupted, &mut progress)? else {
            let message = format!("there is no ledger below {}, so nothing to back up", data.display());
            return Err(BackupError::Usage(message));
        };
        let destination = place.begin()?;
        let mut replica = Replica::new(destination.copy(), interrupted, note, &mut progress);
        let mut bytes = ledger::copy(&data, &storage, &end, &mut replica)?;
        kill_point::reached("backup-ledger");
        replica.rooms(&data)?;
        kill_point::reached("backup-files");
        bytes += replica.bytes;
        let (files, left_out) = (replica.files + end.segno + 1, replica.left_out);
        destination.finish()?;
        Ok(Made { head: (end.next_seq - 1, Hash(end.head_hash)), files, bytes, left_out, took: started.elapsed() })
    })();
    progress.clear();
    outcome
}
