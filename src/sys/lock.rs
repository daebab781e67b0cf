//! `flock(2)`: advisory locks that belong to an open file description, not to a process.
//!
//! That is the point of using them: a child that inherited the descriptor keeps the lock for as long as it lives,
//! and the kernel releases it however the child ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::dir::retry;

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

/// Releases the lock of `file`'s open file description, also for every duplicate of the descriptor.
///
/// # Errors
/// What `flock` reports.
pub fn unlock(file: &File) -> io::Result<()> {
    flock(file, libc::LOCK_UN)
}

/// Keeps a backup and the removal of files apart, until it is dropped.
#[derive(Debug)]
pub struct Guard {
    _file: File,
}

/// Takes the lock of `data`'s file BACKUP without waiting: shared for a backup, exclusive for who removes files.
///
/// `Ok(None)`: the other side holds it.
///
/// # Errors
/// What creating the file and `flock` give.
pub fn backup_guard(data: &Path, exclusive: bool) -> io::Result<Option<Guard>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(data.join("BACKUP"))?;
    let kind = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    match flock(&file, kind | libc::LOCK_NB) {
        Ok(()) => Ok(Some(Guard { _file: file })),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
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

    #[test]
    fn backups_bear_each_other_and_who_removes_files_bears_nobody() {
        let data = std::env::temp_dir().join(format!("hb-backup-{}", std::process::id()));
        std::fs::create_dir(&data).unwrap();
        let guard = |exclusive| backup_guard(&data, exclusive).unwrap();
        let backups = [guard(false).unwrap(), guard(false).unwrap()];
        assert!(guard(true).is_none());
        drop(backups);
        let removal = guard(true).unwrap();
        assert!(guard(false).is_none() && guard(true).is_none());
        drop(removal);
        assert!(guard(false).is_some());
        std::fs::remove_dir_all(&data).unwrap();
    }

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
}
