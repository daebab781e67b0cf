//! Sockets that are written without waiting, and how one thread hears of many of them: `send`, `poll`, `epoll`, `eventfd`.

use std::io;
use std::mem::size_of;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Sends what the kernel takes at once, and gives how many bytes that were: 0 where its buffer is full. Does not wait,
/// whatever mode the socket is in, and raises no SIGPIPE.
///
/// # Errors
/// What `send` reports of a connection that has ended.
pub fn send_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: pointer and length describe memory that we may read; `socket` keeps the descriptor open.
        let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
        match taken(sent) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            outcome => return outcome,
        }
    }
}

/// Receives what is there; `None` where nothing is, `Some(0)` at the end of input. Does not wait.
///
/// # Errors
/// What `recv` reports of a connection that has ended.
pub fn receive_now(socket: &TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        // SAFETY: pointer and length describe memory that is ours to write; `socket` keeps the descriptor open.
        let got = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
        match taken(got) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            outcome => return outcome.map(Some),
        }
    }
}

/// Whether something has arrived that was not read.
pub fn has_unread(socket: &TcpStream) -> bool {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: one byte of ours may be written; `socket` keeps the descriptor open.
    unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) == 1 }
}

fn taken(count: isize) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// What came of waiting for a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writable {
    /// There is room to send.
    Yes,
    /// Not in that time.
    NotYet,
    /// The peer has closed or reset the connection.
    Gone,
}

/// Waits until there is room to send, or the peer has left, or `timeout` (rounded up to milliseconds) is over.
///
/// # Errors
/// What `poll` reports.
pub fn wait_writable(socket: &TcpStream, timeout: Duration) -> io::Result<Writable> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLOUT | libc::POLLRDHUP, revents: 0 };
    // SAFETY: `entry` is ours to write, and there is one of it.
    if unsafe { libc::poll(&raw mut entry, 1, millis(timeout)) } < 0 {
        return match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(Writable::NotYet),
            error => Err(error),
        };
    }
    Ok(match entry.revents {
        0 => Writable::NotYet,
        libc::POLLOUT => Writable::Yes,
        _ => Writable::Gone,
    })
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// Limits what the kernel holds of unsent bytes; it counts its own overhead, and so doubles the number.
///
/// # Errors
/// What `setsockopt` reports.
pub fn limit_send_buffer(socket: &TcpStream, bytes: u32) -> io::Result<()> {
    set(socket, libc::SO_SNDBUF, &libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX))
}

/// Makes the close of a connection a reset: what its peer has not taken is dropped, instead of being kept by the kernel for
/// a peer that may never take it.
///
/// # Errors
/// What `setsockopt` reports.
pub fn reset_on_close(socket: &TcpStream) -> io::Result<()> {
    set(socket, libc::SO_LINGER, &libc::linger { l_onoff: 1, l_linger: 0 })
}

fn set<T>(socket: &TcpStream, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` outlives the call and has that length; both options take exactly such a value.
    let outcome = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, std::ptr::from_ref(value).cast(), length)
    };
    checked(outcome).map(drop)
}

fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// Tells one thread of input from many sockets, and of what other threads ring for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
    bell: OwnedFd,
}

/// The bell's own token.
const BELL: u64 = u64::MAX;
/// Sockets told of at once; the others come next time.
const READY_MAX: usize = 64;

impl Poller {
    /// One that watches nothing yet.
    ///
    /// # Errors
    /// Descriptors or memory are short.
    pub fn new() -> io::Result<Self> {
        // SAFETY: neither call takes a pointer; the descriptors are new, and nobody else owns them.
        let poller = unsafe {
            let epoll = OwnedFd::from_raw_fd(checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?);
            let bell = OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?);
            Self { epoll, bell }
        };
        poller.watch(poller.bell.as_raw_fd(), BELL, libc::EPOLLIN)?;
        Ok(poller)
    }

    /// Tells of new input, or of the peer's end, of a socket by its `token`, which is not `u64::MAX`; each time once, so all
    /// input has to be taken. A socket that is closed is not watched any more.
    ///
    /// # Errors
    /// What `epoll_ctl` reports.
    pub fn add(&self, socket: &TcpStream, token: u64) -> io::Result<()> {
        self.watch(socket.as_raw_fd(), token, libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET)
    }

    /// Watches a socket no more. One that was not watched is no fault.
    pub fn remove(&self, socket: &TcpStream) {
        // SAFETY: deleting reads no event.
        unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                socket.as_raw_fd(),
                std::ptr::null_mut::<libc::epoll_event>(),
            );
        }
    }

    fn watch(&self, fd: RawFd, token: u64, events: libc::c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: `event` is valid and only read.
        checked(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) }).map(drop)
    }

    /// Makes the wait under way, or else the next one, end.
    pub fn ring(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes of a local. A full counter rings as well, so the outcome does not matter.
        unsafe { libc::write(self.bell.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }

    /// Waits for a ring, or for something of a socket, or for the end of `timeout` (rounded up to milliseconds; `None`: for
    /// ever). Puts the tokens into `ready`; whether it rang.
    ///
    /// # Errors
    /// What `epoll_wait` reports.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<u64>) -> io::Result<bool> {
        ready.clear();
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; READY_MAX];
        let timeout = timeout.map_or(-1, millis);
        // SAFETY: the array is ours to write and has that many places.
        let count =
            unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), READY_MAX as libc::c_int, timeout) };
        let count = match checked(count) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            count => usize::try_from(count?).unwrap_or(0),
        };
        ready.extend(events[..count].iter().map(|event| event.u64).filter(|token| *token != BELL));
        let rang = ready.len() < count;
        if rang {
            let mut rings = 0_u64;
            // SAFETY: eight bytes of a local.
            unsafe { libc::read(self.bell.as_raw_fd(), (&raw mut rings).cast(), size_of::<u64>()) };
        }
        Ok(rang)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, client)
    }

    #[test]
    fn a_full_socket_takes_nothing_and_is_writable_again_once_it_is_read() {
        let (server, mut client) = pair();
        limit_send_buffer(&server, 16 << 10).unwrap();
        let piece = [7; 8 << 10];
        let mut sent = 0;
        while let n @ 1.. = send_now(&server, &piece).unwrap() {
            sent += n;
        }
        assert_eq!(wait_writable(&server, Duration::from_millis(1)).unwrap(), Writable::NotYet);
        client.read_exact(&mut vec![0; sent]).unwrap();
        assert_eq!(wait_writable(&server, Duration::from_secs(60)).unwrap(), Writable::Yes);
        drop(client);
        assert_eq!(wait_writable(&server, Duration::from_secs(60)).unwrap(), Writable::Gone);
    }

    #[test]
    fn a_reset_reaches_a_peer_that_did_not_read() {
        let (server, mut client) = pair();
        send_now(&server, b"unread").unwrap();
        reset_on_close(&server).unwrap();
        drop(server);
        let mut bytes = Vec::new();
        assert_eq!(client.read_to_end(&mut bytes).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_poller_tells_of_input_of_leaving_and_of_rings() {
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        let (server, mut client) = pair();
        poller.add(&server, 5).unwrap();
        assert!(!poller.wait(Some(Duration::ZERO), &mut ready).unwrap() && ready.is_empty());
        poller.ring();
        poller.ring();
        assert!(poller.wait(None, &mut ready).unwrap() && ready.is_empty());
        client.write_all(b"x").unwrap();
        assert!(!poller.wait(None, &mut ready).unwrap());
        assert_eq!(ready, [5]);
        assert_eq!(receive_now(&server, &mut [0; 9]).unwrap(), Some(1));
        assert_eq!(receive_now(&server, &mut [0; 9]).unwrap(), None);
        drop(client);
        assert!(!poller.wait(None, &mut ready).unwrap());
        assert_eq!((ready[0], receive_now(&server, &mut [0; 9]).unwrap()), (5, Some(0)));
        poller.remove(&server);
        poller.remove(&server);
    }
}
