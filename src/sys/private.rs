//! Files that decide who may do what: opened without waiting, and who they belong to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Opens for reading; a pipe that nobody writes to does not hold up whoever opens it. What is checked is to be checked on
/// the file returned: the name may mean another one by then.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

/// The user as whom this process acts.
pub fn user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}
