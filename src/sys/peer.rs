//! Who listens on a unix socket: `SO_PEERCRED`.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// Process id of whoever made the socket that `stream` is connected to listen, as this process's pid namespace counts it; 0
/// for a process outside of it. It is told at once, whether or not the connection is ever accepted.
///
/// # Errors
/// What `getsockopt` reports.
pub fn listener_pid(stream: &UnixStream) -> io::Result<u32> {
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call; `length` is the size of the first, and the kernel writes no
    // more than that. `stream` keeps the descriptor open.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeros is a valid `ucred`, and the kernel has written a valid one over it.
    let credentials = unsafe { credentials.assume_init() };
    Ok(u32::try_from(credentials.pid).unwrap_or(0))
}

/// Clock ticks per second of the times in `/proc/PID/stat`.
pub fn ticks_per_second() -> u64 {
    // SAFETY: sysconf takes no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_listener_is_known_before_it_accepts() {
        let path = std::env::temp_dir().join(format!("hb-peer-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(listener_pid(&UnixStream::connect(&path).unwrap()).unwrap(), std::process::id());
        drop(listener);
        assert!(UnixStream::connect(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(ticks_per_second() >= 1);
    }
}
