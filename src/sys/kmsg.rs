//! The kernel's log, opened so that reading it never waits.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

/// Opens `/dev/kmsg` at the oldest record there is. Each read gives one record; `WouldBlock` means that there is none yet,
/// `BrokenPipe` that some were overwritten before they were read, and that the next read goes on behind them.
///
/// # Errors
/// There is none, or this process may not read it.
pub fn open() -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open("/dev/kmsg")
}
