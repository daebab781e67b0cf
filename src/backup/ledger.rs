//! The ledger's part of a copy: checked as `verify` checks it, up to the head of the moment, and copied up to there.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::tree::Replica;
use super::{BackupError, io_error};
use crate::engine::fold;
use crate::hash::Hash;
use crate::ledger::fact::Fact;
use crate::ledger::lifecycle::Ledger;
use crate::sys::block::Caching;
use crate::sys::dir::{Dir, FileType};
use crate::verify::{Progress, SECOND_LOOK_AFTER, wal_dir};
use crate::wal::duplicate::{duplicate, names, settle_up_to};
use crate::wal::recovery::{Ending, Reading, Record, ScanError, scan, scan_parsed};
use crate::wal::segments::Position;
use crate::wal::storage::{Directory, Storage};

/// Events between two looks at the clock.
const LOOK_EVERY: u64 = 1024;
const INTERRUPTED: &str = "interrupted by the user";

/// Reads the whole ledger; where it ends. `None`: there is none.
///
/// An agent may be writing to it. A frame that was in flight when it was read, and had a successor when the blocks behind it
/// were read, looks damaged; read again, it does not. So damage is what is found twice at one place.
pub(super) fn check(
    storage: &Directory,
    interrupted: &AtomicBool,
    progress: &mut Progress<'_>,
) -> Result<Option<Position>, BackupError> {
    let mut suspect = None;
    loop {
        let (mut ledger, mut prev, mut refused) = (Ledger::default(), Hash::ZERO, false);
        let mut visit = |record: &Record<'_>, fact: Result<Fact, String>| {
            let outcome = match interrupted.load(Ordering::Relaxed) {
                true => Err(INTERRUPTED.to_owned()),
                false => fold(&mut ledger, record, &prev, fact).map(drop),
            };
            refused = outcome.is_err();
            prev = Hash(record.hash);
            if record.seq.is_multiple_of(LOOK_EVERY) {
                progress.show(|| format!("checked {} events", record.seq));
            }
            outcome
        };
        let outcome = scan_parsed(storage, Reading { parse: &Fact::parse, visit: &mut visit });
        match outcome {
            Ok(None) => return Ok(None),
            Ok(Some(found)) => {
                return match ledger.check_unfinished() {
                    Ok(()) => Ok(Some(found.position)),
                    Err(reason) => Err(BackupError::Damaged(format!(
                        "the chain is sound, and an agent could not start on it: {reason}"
                    ))),
                };
            }
            Err(ScanError::Corrupt(damage)) if damage.reason == INTERRUPTED => return Err(BackupError::Interrupted),
            Err(ScanError::Corrupt(damage)) => {
                let place = Some((damage.file.clone(), damage.offset));
                if refused || suspect == place {
                    return Err(BackupError::Damaged(format!("damaged: {damage}")));
                }
                suspect = place;
                thread::sleep(SECOND_LOOK_AFTER);
            }
            Err(error @ ScanError::Io { .. }) => return Err(BackupError::Io(error.to_string())),
            Err(other) => return Err(BackupError::Damaged(other.to_string())),
        }
    }
}

/// Copies the ledger `from` up to `end` into the copy, and reads it back. Returns its bytes.
pub(super) fn copy(
    data: &Path,
    from: &Directory,
    end: &Position,
    replica: &mut Replica<'_, '_>,
) -> Result<u64, BackupError> {
    let wal = wal_dir(data);
    settle_up_to(from, end).map_err(io_error(&wal))?;
    let target = wal_dir(replica.root());
    let to = Directory::open(&target, Caching::Buffered).map_err(io_error(&target))?;
    let bytes = duplicate(from, end, &to, &mut || replica.go_on().map_err(|_| io::ErrorKind::Interrupted.into()));
    let bytes = bytes.map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => BackupError::Interrupted,
        _ => io_error(&target)(error),
    })?;
    to.sync_dir().map_err(io_error(&target))?;
    // What was copied is what was checked, or there is no copy.
    let copied = scan(&to, &mut |_| Ok(())).map_err(|error| BackupError::Io(format!("read back: {error}")))?;
    if copied.is_none_or(|copied| copied.position != *end || copied.ending != Ending::Clean) {
        let message = format!("{}: what is read back is not what was written", target.display());
        return Err(BackupError::Io(message));
    }
    let (source, dir) = (Dir::open(&wal).map_err(io_error(&wal))?, Dir::open(&target).map_err(io_error(&target))?);
    for name in names(end) {
        match source.stat_child(name.as_ref()) {
            Ok(stat) => replica.attributes(&dir, name.as_ref(), &stat, FileType::Regular),
            // A witness that was never written.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
        .map_err(io_error(&target.join(&name)))?;
    }
    let above = Dir::open(replica.root()).map_err(io_error(&target))?;
    let stat = source.stat().map_err(io_error(&wal))?;
    replica.attributes(&above, "wal".as_ref(), &stat, FileType::Directory).map_err(io_error(&target))?;
    Ok(bytes)
}
