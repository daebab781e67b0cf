//! `flock(2)`: advisory locks that belong to an open file description, not to a process.
//!
//! That is the point of using them: a child that inherited the descriptor keeps the lock for as long as it lives,
//! and the kernel releases it however the child ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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
