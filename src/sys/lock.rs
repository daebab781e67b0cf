//! `flock(2)`: advisory locks that belong to an open file description, not to a process.
//!
//! That is the point of using them: a child that inherited the descriptor keeps the lock for as long as it lives,
//! and the kernel releases it however the child ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::block::give_to_owner;
use super::dir::retry;

/// Below a data directory: whoever reads all of it holds the lock of this file shared, whoever removes evidence exclusively.
pub const BACKUP_LOCK: &str = "BACKUP";

/// Takes the exclusive lock of `file`'s open file description without waiting.
///
/// `Ok(false)`: another open file description holds it.
///
/// # Errors
/// What `flock` reports other than `EWOULDBLOCK`, e.g. `ENOLCK` or a file system without locks.
pub fn try_lock_exclusive(file: &File) -> io::Result<bool> {
    match flock(file, libc::LOCK_EX | libc::LOCK_NB) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Keeps whoever copies a data directory and whoever removes evidence from it apart, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// Takes the lock of `DATA/BACKUP`, which is made where it is missing: shared for a copy, `exclusive` for a removal.
///
/// `Ok(None)`: somebody holds it the other way.
///
/// # Errors
/// The file cannot be made or opened, or what `flock` reports.
pub fn backup_guard(data: &Path, exclusive: bool) -> io::Result<Option<Guard>> {
    let file = open_backup_lock(data)?;
    let operation = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    match flock(&file, operation | libc::LOCK_NB) {
        Ok(()) => Ok(Some(Guard { _file: file })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The shared lock of `DATA/BACKUP` for who only reads, and makes nothing: it must be there.
///
/// `Ok(None)`: something is being removed.
///
/// # Errors
/// The file is not there or cannot be read, or what `flock` reports.
pub fn reading_guard(data: &Path) -> io::Result<Option<Guard>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(data.join(BACKUP_LOCK))?;
    match flock(&file, libc::LOCK_SH | libc::LOCK_NB) {
        Ok(()) => Ok(Some(Guard { _file: file })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes the file of that lock, as far as that can be had, in a data directory that somebody takes: who only reads makes none.
pub fn make_backup_lock(data: &Path) {
    if let Err(error) = open_backup_lock(data) {
        log::debug!("{}: {error}", data.join(BACKUP_LOCK).display());
    }
}

fn open_backup_lock(data: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(data.join(BACKUP_LOCK))?;
    give_to_owner(&file, data);
    Ok(file)
}

/// Releases the lock of `file`'s open file description, also for every duplicate of the descriptor.
///
/// # Errors
/// What `flock` reports.
pub fn unlock(file: &File) -> io::Result<()> {
    flock(file, libc::LOCK_UN)
}

fn flock(file: &File, operation: libc::c_int) -> io::Result<()> {
    // SAFETY: flock takes no pointers, and `file` keeps the descriptor open for the length of the call.
    retry(|| unsafe { libc::flock(file.as_raw_fd(), operation) }).map(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_duplicate_keeps_the_lock_and_a_fresh_descriptor_sees_it() {
        let path = std::env::temp_dir().join(format!("hb-lock-{}", std::process::id()));
        let open = || OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let first = open();
        assert!(try_lock_exclusive(&first).unwrap());
        assert!(try_lock_exclusive(&first).unwrap(), "the same description may take it again");
        let inherited = first.try_clone().unwrap();
        drop(first);
        assert!(!try_lock_exclusive(&open()).unwrap(), "the duplicate still holds it");
        drop(inherited);
        let fresh = open();
        assert!(try_lock_exclusive(&fresh).unwrap());
        unlock(&fresh).unwrap();
        assert!(try_lock_exclusive(&open()).unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn copies_share_a_data_directory_and_a_removal_has_it_alone() {
        let data = std::env::temp_dir().join(format!("hb-backup-lock-{}", std::process::id()));
        std::fs::create_dir_all(&data).unwrap();
        let first = backup_guard(&data, false).unwrap().expect("nobody has it");
        let second = backup_guard(&data, false).unwrap().expect("copies do not disturb each other");
        assert!(backup_guard(&data, true).unwrap().is_none());
        drop(first);
        assert!(backup_guard(&data, true).unwrap().is_none(), "the second copy goes on");
        drop(second);
        let alone = backup_guard(&data, true).unwrap().expect("nobody copies any more");
        assert!(backup_guard(&data, false).unwrap().is_none());
        assert!(backup_guard(&data, true).unwrap().is_none());
        drop(alone);
        assert_eq!(std::fs::metadata(data.join(BACKUP_LOCK)).unwrap().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(&data).unwrap();
    }
}
