//! What a copy needs beyond the standard library: fifos, and a whole file system made durable.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Makes a fifo, `mode` less the umask.
///
/// # Errors
/// What `mkfifo` gives.
pub fn make_fifo(path: &Path, mode: u32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    match unsafe { libc::mkfifo(path.as_ptr(), mode & 0o7777) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes everything durable that was written to the file system on which `file` lies; also names, owners and modes.
///
/// # Errors
/// What `syncfs` gives; since Linux 5.8 that includes what could not be written back.
pub fn sync_file_system(file: &File) -> io::Result<()> {
    // SAFETY: syncfs takes no pointers; the descriptor is open.
    match unsafe { libc::syncfs(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
