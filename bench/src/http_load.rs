//! The load: one thread and epoll, so that it takes little of what it measures. Each connection has one request under way.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

use crate::stats::percentile;
use crate::{Fault, INTERRUPTED};

/// A server that is silent for so long is taken for dead.
const SILENCE: Duration = Duration::from_secs(20);
/// Longest response taken.
const RESPONSE_MAX: usize = 64 << 10;

/// Writes the next request into an empty buffer.
pub type NextRequest<'a> = &'a mut dyn FnMut(&mut Vec<u8>);

/// What a slice gave.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Answered in all, warm-up included.
    pub answered: u64,
}

struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    response: Vec<u8>,
    due: Instant,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self, Fault> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, request: Vec::new(), response: Vec::with_capacity(4096), due: Instant::now() })
    }

    fn send(&mut self, due: Instant, next: NextRequest<'_>) -> Result<(), Fault> {
        self.request.clear();
        next(&mut self.request);
        self.due = due;
        // Nothing else is on its way: a request of a few hundred bytes always fits.
        match self.stream.write(&self.request)? {
            n if n == self.request.len() => Ok(()),
            n => Err(format!("the socket took {n} of a request's {} bytes", self.request.len()).into()),
        }
    }

    /// Takes what has arrived; true once the response is whole.
    fn receive(&mut self) -> Result<bool, Fault> {
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => return Err("the server closed a connection that it should have kept".into()),
            Ok(n) => self.response.extend_from_slice(&piece[..n]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        match whole(&self.response)? {
            Some(length) if length == self.response.len() => {
                self.response.clear();
                Ok(true)
            }
            Some(_) => Err("more bytes arrived than the one response that was asked for".into()),
            None => Ok(false),
        }
    }
}

/// Length of the response at the front, once its head is there and its body is, too. Anything but 200 is a fault.
fn whole(bytes: &[u8]) -> Result<Option<usize>, Fault> {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > RESPONSE_MAX { Err("a response's head has no end".into()) } else { Ok(None) };
    };
    if !bytes.starts_with(b"HTTP/1.1 200 ") {
        return Err(format!("not a 200: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(600)])).into());
    }
    let length = bytes[..head]
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split_at_checked("content-length:".len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(b"content-length:"))
        .and_then(|(_, value)| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok())
        .ok_or("a response without Content-Length")?;
    let end = head + 4 + length;
    Ok((bytes.len() >= end).then_some(end))
}

/// How a slice is driven.
#[derive(Debug, Clone, Copy)]
pub struct Drive {
    pub connections: usize,
    /// Requests per second, each timed from when it was due, whether a connection was free then or not. `None`: a closed
    /// loop, each connection asks again once it is answered.
    pub per_second: Option<f64>,
    pub warm_up: Duration,
    pub measured: Duration,
}

/// Runs one slice over kept connections. Ends with no request under way.
pub fn run(address: SocketAddr, drive: Drive, next: NextRequest<'_>) -> Result<Rate, Fault> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut open = (0..drive.connections).map(|_| Connection::open(address)).collect::<Result<Vec<_>, _>>()?;
    for (index, connection) in open.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, &connection.stream, data, epoll::EventFlags::IN)?;
    }
    let began = Instant::now();
    let from = began + drive.warm_up;
    let until = from + drive.measured;
    let mut latencies_ns: Vec<u32> = Vec::with_capacity(1 << 18);
    let mut events: Vec<epoll::Event> = Vec::with_capacity(drive.connections);
    // First in, first out, so that all connections take part.
    let mut free: VecDeque<usize> = (0..drive.connections).collect();
    let (mut sent, mut answered) = (0u64, 0u64);
    loop {
        let mut now = Instant::now();
        let stopped = INTERRUPTED.load(Ordering::Relaxed);
        let due = loop {
            let due = drive.per_second.map_or(now, |rate| began + Duration::from_secs_f64(sent as f64 / rate));
            if stopped || due >= until || due > now {
                break due;
            }
            let Some(index) = free.pop_front() else { break due };
            open[index].send(due, next)?;
            sent += 1;
            now = Instant::now();
        };
        if free.len() == drive.connections && (stopped || due >= until) {
            break;
        }
        // With every connection busy, or nothing more to send, only answers are waited for.
        let wait =
            if free.is_empty() || due >= until || stopped { SILENCE } else { due.saturating_duration_since(now) };
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::try_from(wait)?)) {
            Ok(0) if wait == SILENCE => return Err(format!("a request was not answered within {SILENCE:?}").into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let index = event.data.u64() as usize;
            if !open[index].receive()? {
                continue;
            }
            answered += 1;
            let now = Instant::now();
            if now > from && now <= until {
                latencies_ns.push(u32::try_from((now - open[index].due).as_nanos()).unwrap_or(u32::MAX));
            }
            free.push_back(index);
            // At once, so that in a closed loop the server is never without work.
            if drive.per_second.is_none() && now < until && !stopped {
                free.pop_back();
                open[index].send(now, next)?;
                sent += 1;
            }
        }
    }
    latencies_ns.sort_unstable();
    let micros = |share| percentile(&latencies_ns, share).map(|ns| f64::from(ns) / 1e3);
    let nothing = "not one request was answered in the measured time";
    Ok(Rate {
        per_second: latencies_ns.len() as f64 / drive.measured.as_secs_f64(),
        p50_us: micros(0.5).ok_or(nothing)?,
        p99_us: micros(0.99).ok_or(nothing)?,
        answered,
    })
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn a_response_is_whole_with_its_last_byte_and_must_be_a_200() {
        let response = b"HTTP/1.1 200 OK\r\nA: b\r\ncontent-length: 3\r\n\r\nabc";
        for end in 0..response.len() {
            assert_eq!(whole(&response[..end]).ok(), Some(None), "{end}");
        }
        assert_eq!(whole(response).ok(), Some(Some(response.len())));
        assert!(whole(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
        assert!(whole(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
