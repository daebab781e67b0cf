//! What a copy needs beyond the standard library: fifos and sockets, times, holes, and a whole file system made durable.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
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

/// Makes a socket that nobody listens on, `mode` less the umask: what is left of one whose owner has ended.
///
/// # Errors
/// What `mknod` gives.
pub fn make_socket(path: &Path, mode: u32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    match unsafe { libc::mknod(path.as_ptr(), libc::S_IFSOCK | (mode & 0o7777), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets when the content of `path` was last changed, in seconds and nanoseconds since 1970; of a symlink, its own.
///
/// # Errors
/// What `utimensat` gives.
pub fn set_modified(path: &Path, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let omitted = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast, reason = "the widths differ between architectures")]
    let modified = libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: nanoseconds as _ };
    let times = [omitted, modified];
    // SAFETY: `path` is NUL-terminated, `times` are the two that the call reads; both outlive it.
    match unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The first stretch of `file` at or behind `from` that is no hole; `None` where only a hole is left. Moves the position of
/// the file. On a file system without holes all of it is one stretch.
///
/// # Errors
/// What `lseek` gives.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |from: u64, whence| {
        let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: lseek takes no pointers; the descriptor is open.
        let found = unsafe { libc::lseek64(file.as_raw_fd(), from, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    let start = match seek(from, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Some(from..u64::MAX)),
        other => other?,
    };
    Ok(Some(start..seek(start, libc::SEEK_HOLE)?))
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
