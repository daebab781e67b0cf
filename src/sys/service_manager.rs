//! What a service manager such as systemd and the agent tell each other: sockets that are listened on already (socket
//! activation, sd_listen_fds(3)), and how far the agent is (sd_notify(3)). Both are small protocols over the environment.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::fd::{FromRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};

/// The first descriptor that is handed over (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// More of them are a mistake.
const DESCRIPTORS_MAX: i32 = 64;

/// The listening TCP sockets that this process was started with, for itself and not for a parent of it; none where there
/// are none. They are handed out once: a second call gives none. Call it before the process opens anything of its own.
///
/// # Errors
/// `LISTEN_FDS` is no number, or one of the descriptors is no listening TCP socket; the message names it.
pub fn inherited_listeners() -> io::Result<Vec<TcpListener>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let for_us = env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let Some(count) = env::var_os("LISTEN_FDS").filter(|_| for_us) else { return Ok(Vec::new()) };
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let count: i32 = count
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|count| (0..=DESCRIPTORS_MAX).contains(count))
        .ok_or_else(|| wrong(format!("LISTEN_FDS={count:?} is not a number from 0 to {DESCRIPTORS_MAX}")))?;
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let checked = |fd: RawFd| {
        let option = |name| socket_option(fd, name);
        let listens = option(libc::SO_ACCEPTCONN)? != 0 && option(libc::SO_TYPE)? == libc::SOCK_STREAM;
        if !listens || !matches!(option(libc::SO_DOMAIN)?, libc::AF_INET | libc::AF_INET6) {
            return Err(io::Error::other("it is not a TCP socket that is listened on"));
        }
        close_on_exec(fd)
    };
    let fds = FIRST..FIRST + count;
    for fd in fds.clone() {
        checked(fd).map_err(|error| {
            wrong(format!(
                "descriptor {fd} of the service manager: {error}; let ListenStream= name an address and a port"
            ))
        })?;
    }
    // SAFETY: each is open, as was just seen. The service manager opened it for this process, which has opened nothing
    // itself yet, and `TAKEN` lets nobody else have it.
    Ok(fds.map(|fd| unsafe { TcpListener::from_raw_fd(fd) }).collect())
}

/// Tells the service manager of the agent's state, e.g. `READY=1`; does nothing where none wants to know.
///
/// # Errors
/// `NOTIFY_SOCKET` cannot be reached.
pub fn notify(state: &str) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &socket_address(&path)?).map(drop)
}

/// A name that begins with `@` is in the abstract namespace.
fn socket_address(path: &OsStr) -> io::Result<SocketAddr> {
    match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(path),
    }
}

fn socket_option(fd: RawFd, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to locals that outlive the call, and `length` is the size of the first. A descriptor that is
    // not open is an error.
    let outcome = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
    if outcome == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Payloads' processes must not inherit it.
fn close_on_exec(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_SETFD takes no pointers.
    let outcome = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_listens_is_told_from_what_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(socket_option(listener.as_raw_fd(), libc::SO_ACCEPTCONN).unwrap(), 1);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(socket_option(client.as_raw_fd(), libc::SO_ACCEPTCONN).unwrap(), 0);
        assert!(socket_option(std::fs::File::open("/dev/null").unwrap().as_raw_fd(), libc::SO_ACCEPTCONN).is_err());
        assert!(socket_option(-1, libc::SO_ACCEPTCONN).is_err());
    }

    #[test]
    fn both_kinds_of_addresses_are_understood() {
        assert_eq!(socket_address(OsStr::new("@hb")).unwrap().as_abstract_name(), Some(&b"hb"[..]));
        assert!(socket_address(OsStr::new("/run/x")).unwrap().as_pathname().is_some());
    }
}
