//! One connection's socket under absolute deadlines.
//!
//! A socket timeout alone restarts with every byte, so a peer that trickles one byte a second is never late. Here every
//! read and write first sees to it that the timeout is what is left of its deadline, give or take [`TOLERANCE`]: a kept
//! connection, whose deadlines are always equally far ahead, then needs no system call for it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most bytes of one read: also how far a client can make us read ahead of the request being served.
const READ_PIECE: usize = 8 * 1024;
/// Most bytes of one write, so that progress is noticed on a slow link.
const WRITE_PIECE: usize = 64 * 1024;
/// Most bytes of a buffer kept between two responses.
const SCRATCH_KEPT: usize = 4 * 1024;
/// The part of what is left of a deadline by which the socket's timeout may differ from it. A timeout that is too short
/// costs another round, one that is too long makes the deadline late by that part at most.
const TOLERANCE: u32 = 16;
/// Most bytes that a lingering close throws away.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes thrown away that a peer sends into a stream, which has no more requests to take.
const STREAM_INPUT_BYTES: usize = 64 * 1024;

/// A socket and the bytes read from it but not yet taken.
pub(super) struct Wire {
    stream: Arc<TcpStream>,
    /// Its length only grows, so that reading into it does not mean writing zeros first.
    buffer: Vec<u8>,
    /// What of the buffer has been read and not yet taken.
    held: Range<usize>,
    stray: usize,
    scratch: Vec<u8>,
    read_timeout: SocketTimeout,
    write_timeout: SocketTimeout,
}

/// A timeout of a socket as it was last set; zero before that. Nobody else may set it.
#[derive(Default)]
struct SocketTimeout(Duration);

impl SocketTimeout {
    fn set(&mut self, deadline: Instant, set: impl FnOnce(Option<Duration>) -> io::Result<()>) -> io::Result<()> {
        let left = left(deadline)?;
        if self.0.abs_diff(left) > left / TOLERANCE {
            set(Some(left))?;
            self.0 = left;
        }
        Ok(())
    }
}

/// When a response must be out: a fixed time for its first byte and for any stall, and more for every byte the peer has
/// really taken. Long bodies may take long; a peer that stops reading may not.
pub(super) struct WriteDeadline {
    at: Instant,
    stall: Duration,
    bytes_per_second: u64,
}

impl WriteDeadline {
    pub(super) fn new(stall: Duration, bytes_per_second: u64) -> Self {
        Self { at: Instant::now() + stall, stall, bytes_per_second: bytes_per_second.max(1) }
    }

    /// Time that the peer was not waited for does not count.
    pub(super) fn paused(&mut self, time: Duration) {
        self.at += time;
    }

    fn took(&mut self, bytes: usize) {
        self.at += Duration::from_secs(1).mul_f64(bytes as f64 / self.bytes_per_second as f64);
        // Without this bound a fast start would buy hours of silence later.
        self.at = self.at.min(Instant::now() + self.stall);
    }
}

impl Wire {
    pub(super) fn new(stream: Arc<TcpStream>) -> Self {
        let (read_timeout, write_timeout) = Default::default();
        Self { stream, buffer: Vec::new(), held: 0..0, stray: 0, scratch: Vec::new(), read_timeout, write_timeout }
    }

    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.held.clone()]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.held.start = (self.held.start + n).min(self.held.end);
    }

    /// Reads more behind what is buffered; 0 at the end of input. Callers bound the buffer: they only call while what
    /// is buffered is an unfinished head or line, each of which has a limit.
    pub(super) fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        self.buffer.copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        let end = self.held.end + READ_PIECE;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let n = read_until(&self.stream, &mut self.buffer[self.held.end..end], deadline, &mut self.read_timeout)?;
        self.held.end += n;
        Ok(n)
    }

    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: &mut WriteDeadline) -> io::Result<()> {
        while !bytes.is_empty() {
            self.write_timeout.set(deadline.at, |timeout| self.stream.set_write_timeout(timeout))?;
            match (&*self.stream).write(&bytes[..bytes.len().min(WRITE_PIECE)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    bytes = &bytes[n..];
                    deadline.took(n);
                }
                Err(e) if is_retry(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// An empty buffer to put a response together in.
    pub(super) fn take_scratch(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.scratch)
    }

    /// Keeps it for the next response, unless it has become large: connections may be idle, and many.
    pub(super) fn give_scratch(&mut self, mut scratch: Vec<u8>) {
        if scratch.capacity() <= SCRATCH_KEPT {
            scratch.clear();
            self.scratch = scratch;
        }
    }

    /// Looks, without waiting, whether the peer has closed or reset; throws away what it sends instead. A peer that
    /// sends a lot into a stream counts as gone.
    pub(super) fn peer_gone(&mut self) -> bool {
        if self.stream.set_nonblocking(true).is_err() {
            return true;
        }
        let mut scratch = [0; 1024];
        let gone = loop {
            match (&*self.stream).read(&mut scratch) {
                Ok(0) => break true,
                Ok(n) => self.stray += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e.kind() != io::ErrorKind::WouldBlock,
            }
            if self.stray > STREAM_INPUT_BYTES {
                break true;
            }
        };
        self.stream.set_nonblocking(false).is_err() || gone
    }

    /// Lingering close: ends our side, then reads on for a bounded while. Closing a socket with unread input resets the
    /// connection, and a reset can overtake the answer just written, so that the client never learns of its 413.
    pub(super) fn linger(mut self, limit: Duration) {
        if self.stream.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let deadline = Instant::now() + limit;
        let mut scratch = vec![0; READ_PIECE];
        let mut total = 0;
        while total < LINGER_BYTES {
            match read_until(&self.stream, &mut scratch, deadline, &mut self.read_timeout) {
                Ok(n) if n > 0 => total += n,
                _ => return,
            }
        }
    }
}

fn read_until(
    stream: &TcpStream,
    into: &mut [u8],
    deadline: Instant,
    timeout: &mut SocketTimeout,
) -> io::Result<usize> {
    loop {
        timeout.set(deadline, |timeout| stream.set_read_timeout(timeout))?;
        match (&*stream).read(into) {
            Err(e) if is_retry(&e) => {}
            result => return result,
        }
    }
}

/// A timeout comes as WouldBlock on Linux; going round asks the deadline itself.
fn is_retry(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What is left of a deadline, never zero (a timeout of zero would mean none).
fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
        left => Ok(left.max(Duration::from_millis(1))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_set_anew_only_where_it_would_miss_its_deadline() {
        let (mut timeout, mut calls) = (SocketTimeout::default(), Vec::new());
        let mut ask = |left: u64| {
            let deadline = Instant::now() + Duration::from_secs(left);
            timeout
                .set(deadline, |set| {
                    calls.push(set.unwrap().as_secs_f64().ceil() as u64);
                    Ok(())
                })
                .unwrap();
        };
        // Kept: the same again, a little less, a little more. Anew: a deadline that is near, and then one that is far.
        [3000, 3000, 2900, 3100, 1000, 990, 3000, 1, 3000].into_iter().for_each(&mut ask);
        assert_eq!(calls, [3000, 1000, 3000, 1, 3000]);
        let past = Instant::now();
        assert_eq!(timeout.set(past, |_| Ok(())).map_err(|e| e.kind()), Err(io::ErrorKind::TimedOut));
    }

    #[test]
    fn a_fast_start_buys_no_long_stall() {
        let stall = Duration::from_secs(30);
        let mut deadline = WriteDeadline::new(stall, 64 * 1024);
        deadline.took(1024 * 1024 * 1024);
        assert!(deadline.at <= Instant::now() + stall);
    }

    #[test]
    fn slow_bytes_earn_only_their_rate() {
        let mut deadline = WriteDeadline::new(Duration::from_secs(30), 64 * 1024);
        let before = deadline.at;
        deadline.at -= Duration::from_secs(20);
        deadline.took(128 * 1024);
        assert_eq!(deadline.at, before - Duration::from_secs(18));
    }
}
