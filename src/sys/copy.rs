//! What a copy needs beyond the standard library: fifos, and a whole file system made durable.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
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

/// Bytes of a file system.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// All of them.
    pub total: u64,
    /// Those that a process without privileges may still fill.
    pub free: u64,
}

/// How much fits on the file system of `file`; `None` where copies may share their blocks, so that it does not tell.
///
/// # Errors
/// What `fstatfs` gives.
pub fn space_of(file: &File) -> io::Result<Option<Space>> {
    /// Magic numbers of btrfs, XFS, ZFS and bcachefs.
    const SHARING: [i64; 4] = [0x9123_683E, 0x5846_5342, 0x2FC1_2FC1, 0xCA45_1A4E];
    let mut found = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: fstatfs fills the struct it is given where it returns 0; the descriptor is open.
    let found = match unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) } {
        // SAFETY: just filled.
        0 => unsafe { found.assume_init() },
        _ => return Err(io::Error::last_os_error()),
    };
    let block = u64::try_from(found.f_bsize).unwrap_or(0);
    let space = Space { total: found.f_blocks.saturating_mul(block), free: found.f_bavail.saturating_mul(block) };
    Ok((!SHARING.contains(&found.f_type)).then_some(space))
}
