//! How many connections may wait to be accepted.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

/// Lets up to `backlog` connections wait, or as many as the kernel allows (`net.core.somaxconn`). The standard library asks
/// for 128; where a flood fills those, a newcomer's first packet is dropped, and he tries again a whole second later.
///
/// # Errors
/// What `listen` reports; the listener then stays as it is.
pub fn deepen_backlog(listener: &TcpListener, backlog: u16) -> io::Result<()> {
    // SAFETY: `listen` takes no pointers, and `listener` keeps the descriptor open. On a listening socket it changes the
    // length of the queue alone.
    match unsafe { libc::listen(listener.as_raw_fd(), i32::from(backlog)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
