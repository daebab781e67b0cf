//! The accept loop, its slots and its deadlines: one thread per connection, never more than the caps allow.
//!
//! Nothing here ends but by [`Server::stop_accepting`] and [`Server::drain`]: accept errors are waited out, a thread that
//! cannot be started and a connection over a cap are answered 503, a panicking handler is answered 500.

use super::body::ChunkDecoder;
use super::reply::{Target, WriteLimits, encode_refusal};
use super::request::{Framing, Head, HeadParser};
use super::slots::{Connection, Full, Phase, Slots};
use super::wire::Wire;
use crate::rejection::Rejection;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tiny_http::Method;

pub use super::reply::{Reply, StreamBody, StreamCloser, StreamWriter};
pub use super::request::Request;

/// How long an accept loop waits after an error that says resources are short.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How long streams get to end by themselves when the server drains.
const STREAM_GRACE: Duration = Duration::from_secs(1);
/// Most refused connections kept open for a moment so that their 503 is read.
const MAX_REFUSED_HELD: usize = 64;
/// How often held refused connections are looked at.
const REFUSED_POLL: Duration = Duration::from_millis(20);
/// How long an accept loop is tried to be woken by connecting to it.
const WAKE_LIMIT: Duration = Duration::from_secs(2);
/// Bound of one such attempt.
const WAKE_TIMEOUT: Duration = Duration::from_millis(50);
/// Pause between two of them.
const WAKE_PAUSE: Duration = Duration::from_millis(5);

/// Answers requests. Called in many threads at once; a panic is answered 500 and counted.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: &Request) -> Reply;
}

/// Every limit of the front.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at once, and so most threads.
    pub max_connections: usize,
    /// Most connections at once from one address; of IPv6, from one /64.
    pub max_per_address: usize,
    /// Slots of `max_connections` that only loopback may take, so that its operator can reach a besieged node.
    pub reserved_for_loopback: usize,
    /// From the accept, or from the first byte on a kept connection, to the end of the head.
    pub head_deadline: Duration,
    /// From the end of the head to the end of the body.
    pub body_deadline: Duration,
    /// Between two requests on a kept connection.
    pub idle_deadline: Duration,
    /// For a response to be taken, beside the allowance of `write_bytes_per_second`; also the longest single stall.
    pub write_deadline: Duration,
    /// Slowest reader tolerated in bytes per second: each such many bytes taken earn one more second.
    pub write_bytes_per_second: u64,
    /// Longest lingering close.
    pub linger: Duration,
    /// Largest head in bytes.
    pub max_head: usize,
    /// Largest body in bytes, after transfer decoding.
    pub max_body: usize,
    /// Stack of a connection's thread in bytes.
    pub stack: usize,
}

impl Limits {
    /// Default of [`Limits::max_connections`].
    pub const MAX_CONNECTIONS: usize = 512;
    /// Default of [`Limits::max_per_address`].
    pub const MAX_PER_ADDRESS: usize = 256;
    /// Default of [`Limits::reserved_for_loopback`].
    pub const RESERVED_FOR_LOOPBACK: usize = 16;
    /// Default of [`Limits::head_deadline`].
    pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
    /// Default of [`Limits::body_deadline`].
    pub const BODY_DEADLINE: Duration = Duration::from_secs(15);
    /// Default of [`Limits::idle_deadline`].
    pub const IDLE_DEADLINE: Duration = Duration::from_secs(30);
    /// Default of [`Limits::write_deadline`].
    pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
    /// Default of [`Limits::write_bytes_per_second`]: 64 KiB.
    pub const WRITE_BYTES_PER_SECOND: u64 = 64 * 1024;
    /// Default of [`Limits::linger`].
    pub const LINGER: Duration = Duration::from_secs(1);
    /// Default of [`Limits::max_head`]: 16 KiB.
    pub const MAX_HEAD: usize = 16 * 1024;
    /// Default of [`Limits::max_body`]: 1 MiB.
    pub const MAX_BODY: usize = 1024 * 1024;
    /// Default of [`Limits::stack`]: 256 KiB.
    pub const STACK: usize = 256 * 1024;

    fn write_limits(&self) -> WriteLimits {
        WriteLimits { stall: self.write_deadline, bytes_per_second: self.write_bytes_per_second }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: Self::MAX_CONNECTIONS,
            max_per_address: Self::MAX_PER_ADDRESS,
            reserved_for_loopback: Self::RESERVED_FOR_LOOPBACK,
            head_deadline: Self::HEAD_DEADLINE,
            body_deadline: Self::BODY_DEADLINE,
            idle_deadline: Self::IDLE_DEADLINE,
            write_deadline: Self::WRITE_DEADLINE,
            write_bytes_per_second: Self::WRITE_BYTES_PER_SECOND,
            linger: Self::LINGER,
            max_head: Self::MAX_HEAD,
            max_body: Self::MAX_BODY,
            stack: Self::STACK,
        }
    }
}

/// What the front has done so far. All but `active` and `streams` only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted, the refused ones included.
    pub accepted: AtomicU64,
    /// Connections open now, the refused ones not included.
    pub active: AtomicU64,
    /// Streams open now.
    pub streams: AtomicU64,
    /// Connections answered 503 because all slots were taken.
    pub refused_full: AtomicU64,
    /// Connections answered 503 because their address had its share.
    pub refused_address: AtomicU64,
    /// Connections answered 503 because no thread could be started.
    pub refused_no_thread: AtomicU64,
    /// Failed accepts.
    pub accept_errors: AtomicU64,
    /// Requests handed to the handler.
    pub requests: AtomicU64,
    /// Requests refused before the handler: malformed, too large or too slow.
    pub rejected: AtomicU64,
    /// Panics of the handler, or of the body it gave.
    pub handler_panics: AtomicU64,
    /// Responses cut off: the peer left or was too slow, or the body failed.
    pub responses_cut: AtomicU64,
}

/// A running front. Dropping it stops accepting.
pub struct Server {
    shared: Arc<Shared>,
    loops: Mutex<Vec<(SocketAddr, JoinHandle<()>)>>,
}

impl Server {
    /// Starts an accept loop for each listener.
    ///
    /// # Errors
    /// A listener has no address, or a thread cannot be started.
    pub fn start(listeners: Vec<TcpListener>, handler: Arc<dyn Handler>, limits: Limits) -> io::Result<Server> {
        let (refused, held) = sync_channel(MAX_REFUSED_HELD);
        let linger = limits.linger;
        thread::Builder::new().name("http-refuse".into()).spawn(move || hold_refused(&held, linger))?;
        let shared = Arc::new(Shared {
            handler,
            limits,
            counters: Counters::default(),
            accepting: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            slots: Mutex::default(),
            slot_freed: Condvar::new(),
        });
        let server = Server { shared, loops: Mutex::default() };
        for listener in listeners {
            listener.set_nonblocking(false)?;
            let address = listener.local_addr()?;
            let (shared, refused) = (Arc::clone(&server.shared), refused.clone());
            let thread = thread::Builder::new()
                .name("http-accept".into())
                .spawn(move || accept_loop(&shared, &listener, &refused))?;
            lock(&server.loops).push((address, thread));
        }
        Ok(server)
    }

    /// What the front has done so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Closes the listeners and returns once their loops have ended. Open connections go on; each is closed after the
    /// response under way.
    pub fn stop_accepting(&self) {
        self.shared.accepting.store(false, Ordering::SeqCst);
        for (address, accept_thread) in lock(&self.loops).drain(..) {
            // A blocked accept returns only for a connection, so we make one.
            let end = Instant::now() + WAKE_LIMIT;
            while !accept_thread.is_finished() && Instant::now() < end {
                let _ = TcpStream::connect_timeout(&reachable(address), WAKE_TIMEOUT);
                thread::sleep(WAKE_PAUSE);
            }
            if accept_thread.is_finished() {
                let _ = accept_thread.join();
            } else {
                log::warn!("the listener on {address} could not be woken; it stays open until the process ends");
            }
        }
    }

    /// Stops accepting, closes idle connections, tells streams to stop ([`StreamWriter::stopping`]) and cuts them after
    /// a second's grace, waits for the rest up to `deadline`, then cuts those too. Returns how many had to be cut at the
    /// deadline.
    pub fn drain(&self, deadline: Duration) -> usize {
        let end = Instant::now() + deadline;
        self.shared.draining.store(true, Ordering::SeqCst);
        self.stop_accepting();
        // Reading alone is ended: a request that arrived in the same moment still gets its answer.
        self.shared.shutdown_where(Phase::Idle, Shutdown::Read);
        if self.shared.wait_until_empty(end.min(Instant::now() + STREAM_GRACE)) == 0 {
            return 0;
        }
        self.shared.shutdown_where(Phase::Streaming, Shutdown::Both);
        let left = self.shared.wait_until_empty(end);
        for phase in [Phase::Idle, Phase::Busy, Phase::Streaming] {
            self.shared.shutdown_where(phase, Shutdown::Both);
        }
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
    }
}

struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    counters: Counters,
    accepting: AtomicBool,
    draining: AtomicBool,
    slots: Mutex<Slots>,
    slot_freed: Condvar,
}

impl Shared {
    fn shutdown_where(&self, phase: Phase, how: Shutdown) {
        for connection in lock(&self.slots).open.values() {
            if connection.is_in(phase) {
                // An error means that the peer was quicker.
                let _ = connection.socket.shutdown(how);
            }
        }
    }

    fn wait_until_empty(&self, end: Instant) -> usize {
        let mut slots = lock(&self.slots);
        while !slots.open.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            slots = self.slot_freed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        slots.open.len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No invariant spans a panic in the few lines that hold these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where to connect to reach a listener: the unspecified address is reached over loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// Frees the slot when the connection's thread ends, however it ends, and where it never began.
struct Slot {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.shared.slots).free(&self.connection);
        self.shared.counters.active.fetch_sub(1, Ordering::Relaxed);
        self.shared.slot_freed.notify_all();
    }
}

fn accept_loop(shared: &Arc<Shared>, listener: &TcpListener, refused: &SyncSender<Arc<TcpStream>>) {
    let mut failing = false;
    while shared.accepting.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((socket, remote)) => {
                failing = false;
                if shared.accepting.load(Ordering::SeqCst) {
                    shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
                    admit(shared, Arc::new(socket), remote, refused);
                }
            }
            Err(e) => {
                shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                // One connection's own failure; anything else, known or not, is waited out and tried again.
                if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
                    continue;
                }
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("cannot accept connections, trying again every {ACCEPT_BACKOFF:?}: {e}");
                }
                thread::sleep(ACCEPT_BACKOFF);
            }
        }
    }
}

fn admit(shared: &Arc<Shared>, socket: Arc<TcpStream>, remote: SocketAddr, refused: &SyncSender<Arc<TcpStream>>) {
    // Without it, a small response waits for the peer's delayed acknowledgement; worse is only slower.
    let _ = socket.set_nodelay(true);
    let counters = &shared.counters;
    let mut slots = lock(&shared.slots);
    let (cause, message) = match slots.check(remote.ip(), &shared.limits) {
        Ok(()) => {
            let connection = slots.take(Arc::clone(&socket), remote);
            drop(slots);
            counters.active.fetch_add(1, Ordering::Relaxed);
            let slot = Slot { shared: Arc::clone(shared), connection };
            let thread = thread::Builder::new().name("http".into()).stack_size(shared.limits.stack);
            // A failed spawn drops the closure, and with it the slot.
            match thread.spawn(move || serve(&slot.shared, &slot.connection)) {
                Ok(_) => return,
                Err(e) => log::warn!("cannot start a thread for a connection: {e}"),
            }
            (&counters.refused_no_thread, "the node cannot start a thread for this connection; try again")
        }
        Err(Full::All) => {
            drop(slots);
            (&counters.refused_full, "all connection slots are taken; close idle connections or try again")
        }
        Err(Full::Address) => {
            drop(slots);
            (&counters.refused_address, "this address has all the connections it may; close some or try again")
        }
    };
    cause.fetch_add(1, Ordering::Relaxed);
    // Fresh sockets have room for this; one that has not is not worth waiting for.
    let answer = encode_refusal(&Rejection::new(503, "too_many_connections", message));
    if socket.set_nonblocking(true).is_ok() && (&*socket).write(&answer).is_ok() {
        let _ = socket.shutdown(Shutdown::Write);
        let _ = refused.try_send(socket);
    }
}

/// Lingering close for refused connections, all of them in one thread: their 503 must survive what the client sends.
fn hold_refused(arriving: &Receiver<Arc<TcpStream>>, linger: Duration) {
    let mut held: VecDeque<(Arc<TcpStream>, Instant)> = VecDeque::new();
    let mut scratch = [0; 4096];
    loop {
        let next = if held.is_empty() {
            arriving.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            arriving.recv_timeout(REFUSED_POLL)
        };
        let first = match next {
            Ok(socket) => Some(socket),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let until = Instant::now() + linger;
        held.extend(first.into_iter().chain(arriving.try_iter().take(MAX_REFUSED_HELD)).map(|socket| (socket, until)));
        held.drain(..held.len().saturating_sub(MAX_REFUSED_HELD));
        held.retain(|(socket, until)| {
            let open = match (&**socket).read(&mut scratch) {
                Ok(n) => n > 0,
                Err(e) => e.kind() == io::ErrorKind::WouldBlock,
            };
            open && Instant::now() < *until
        });
    }
}

/// How reading a request ended without one.
enum Unread {
    /// Answer this, then close.
    Rejected {
        rejection: Rejection,
        /// The request is a HEAD, whose answer has no body.
        head_only: bool,
    },
    /// The peer left, or never began: close without a word.
    Gone,
}

fn serve(shared: &Shared, connection: &Connection) {
    let mut wire = Wire::new(Arc::clone(&connection.socket));
    let mut first_byte_by = Instant::now() + shared.limits.head_deadline;
    let mut head_by = Some(first_byte_by);
    loop {
        let kept = match read_request(shared, connection, &mut wire, first_byte_by, head_by) {
            Ok(request) => respond(shared, connection, &mut wire, &request),
            Err(Unread::Gone) => return,
            Err(Unread::Rejected { rejection, head_only }) => {
                shared.counters.rejected.fetch_add(1, Ordering::Relaxed);
                Target { head_only, ..target(shared, connection, &mut wire) }.write(Reply::rejection(&rejection))
            }
        };
        match kept {
            Ok(true) if !shared.draining.load(Ordering::SeqCst) => {}
            Ok(_) => return wire.linger(shared.limits.linger),
            Err(_) => {
                shared.counters.responses_cut.fetch_add(1, Ordering::Relaxed);
                // No lingering: the client must see that the answer is not whole.
                let _ = connection.socket.shutdown(Shutdown::Both);
                return;
            }
        }
        first_byte_by = Instant::now() + shared.limits.idle_deadline;
        head_by = None;
    }
}

fn target<'a>(shared: &'a Shared, connection: &'a Connection, wire: &'a mut Wire) -> Target<'a> {
    let (socket, draining, limits) = (&connection.socket, &shared.draining, shared.limits.write_limits());
    Target { wire, socket, draining, limits, head_only: false, minor_version: 1, keep: false }
}

fn read_request(
    shared: &Shared,
    connection: &Connection,
    wire: &mut Wire,
    first_byte_by: Instant,
    head_by: Option<Instant>,
) -> Result<Request, Unread> {
    let limits = &shared.limits;
    if wire.buffered().is_empty() {
        connection.enter(Phase::Idle);
        // After entering, so that a drain either sees us idle or is seen by us.
        if shared.draining.load(Ordering::SeqCst) || !matches!(wire.fill(first_byte_by), Ok(1..)) {
            return Err(Unread::Gone);
        }
    }
    connection.enter(Phase::Busy);
    let head_by = head_by.unwrap_or_else(|| Instant::now() + limits.head_deadline);
    let mut parser = HeadParser::new(limits.max_head, limits.max_body);
    let Head { mut request, framing, expect_continue, consumed } = loop {
        // A refused head still tells its method by its bytes.
        let head_only = wire.buffered().trim_ascii_start().starts_with(b"HEAD ");
        let rejected = |rejection| Unread::Rejected { rejection, head_only };
        match parser.feed(wire.buffered(), connection.remote).map_err(rejected)? {
            Some(head) => break head,
            None => fill(wire, head_by, "head", head_only)?,
        }
    };
    wire.consume(consumed);
    request.socket = Arc::downgrade(&connection.socket);
    if framing == Framing::None {
        return Ok(request);
    }
    let body_by = Instant::now() + limits.body_deadline;
    if expect_continue && wire.buffered().is_empty() {
        let mut deadline = limits.write_limits().deadline();
        wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n", &mut deadline).map_err(|_| Unread::Gone)?;
    }
    let head_only = request.method == Method::Head;
    let rejected = |rejection| Unread::Rejected { rejection, head_only };
    // Room grows with what has really arrived, never with what was announced.
    let mut decoder = ChunkDecoder::new(limits.max_body);
    loop {
        let (taken, done) = match framing {
            Framing::Length(length) => {
                let n = (length - request.body.len()).min(wire.buffered().len());
                request.body.extend_from_slice(&wire.buffered()[..n]);
                (n, request.body.len() == length)
            }
            _ => (decoder.decode(wire.buffered(), &mut request.body).map_err(rejected)?, decoder.is_done()),
        };
        wire.consume(taken);
        if done {
            return Ok(request);
        }
        fill(wire, body_by, "body", head_only)?;
    }
}

fn fill(wire: &mut Wire, deadline: Instant, what: &str, head_only: bool) -> Result<(), Unread> {
    match wire.fill(deadline) {
        Ok(0) => Err(Unread::Gone),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {
            let message = format!("the {what} did not arrive in time; send it at once");
            Err(Unread::Rejected { rejection: Rejection::new(408, "request_timeout", message), head_only })
        }
        Err(_) => Err(Unread::Gone),
    }
}

fn respond(shared: &Shared, connection: &Connection, wire: &mut Wire, request: &Request) -> io::Result<bool> {
    let counters = &shared.counters;
    counters.requests.fetch_add(1, Ordering::Relaxed);
    let answer = catch_unwind(AssertUnwindSafe(|| shared.handler.handle(request)));
    let keep = answer.is_ok() && shared.accepting.load(Ordering::SeqCst);
    let reply = answer.unwrap_or_else(|_| {
        counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        let message = "the node failed on this request; its log says why";
        Reply::rejection(&Rejection::new(500, "internal_error", message))
    });
    let streams = matches!(reply, Reply::Stream { .. });
    if streams {
        connection.enter(Phase::Streaming);
        counters.streams.fetch_add(1, Ordering::Relaxed);
    }
    let target = target(shared, connection, wire).shape(request, keep);
    let written = catch_unwind(AssertUnwindSafe(|| target.write(reply)));
    if streams {
        counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
    written.unwrap_or_else(|_| {
        counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::other("the handler's body panicked"))
    })
}
