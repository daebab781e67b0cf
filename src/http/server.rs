//! The accept loop, its slots and its deadlines: one thread per connection, never more than the caps allow.
//!
//! Nothing here ends but by [`Server::stop_accepting`] and [`Server::drain`]: accept errors are waited out, a thread that
//! cannot be started and a connection over a cap are answered 503, a panicking handler is answered 500.

use super::body::ChunkDecoder;
use super::memory::{self, Budget, Lease, PARSED, SMALL_BODY, TURN_WAIT, too_many_bodies};
use super::refusals::Refused;
use super::refused::{MAX_REFUSED_HELD, hold_refused};
use super::reply::{Target, encode_refusal};
use super::request::{Framing, Head, HeadParser};
use super::slots::{Connection, Full, Phase, Slots, share_of};
use super::wire::Wire;
use crate::rejection::Rejection;
use crate::sys::wait;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tiny_http::Method;

pub use super::counters::Counters;
pub use super::limits::Limits;
pub use super::reply::{Reply, StreamBody, StreamCloser, StreamWriter};
pub use super::request::Request;

/// How long an accept loop waits after an error that says resources are short.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How long streams get to end by themselves when the server drains.
const STREAM_GRACE: Duration = Duration::from_secs(1);
/// Most evicted connections whose threads have not ended: what evictions may add to the threads of `max_connections`.
const MAX_LEAVING: usize = 64;
/// How long an accept loop waits for such a thread to end, which takes no longer than it takes to be scheduled.
const LEAVING_WAIT: Duration = Duration::from_secs(1);
/// How often and after what pause a thread is tried to be started once another has ended for it.
const THREAD_RETRIES: usize = 5;
const THREAD_PAUSE: Duration = Duration::from_millis(2);

/// Answers requests. Called in many threads at once; a panic is answered 500 and counted.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: &Request) -> Reply;

    /// Refuses a request whose body has not arrived: a stranger's body is not worth its memory.
    fn before_body(&self, _request: &Request) -> Option<Reply> {
        None
    }
}

/// A running front. Dropping it stops accepting.
pub struct Server {
    shared: Arc<Shared>,
    loops: Mutex<Vec<JoinHandle<()>>>,
    /// Its end tells every accept loop to end. They do not accept once more: a socket of a service manager outlives this
    /// process, and who comes now is the next agent's.
    stop: Mutex<Option<PipeWriter>>,
}

impl Server {
    /// Starts an accept loop for each listener.
    ///
    /// # Errors
    /// A listener has no address, or a thread cannot be started.
    pub fn start(listeners: Vec<TcpListener>, handler: Arc<dyn Handler>, limits: Limits) -> io::Result<Server> {
        Self::start_counting(listeners, handler, limits, Arc::default())
    }

    /// The same, with counters that others read, or add to, as well.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_counting(
        listeners: Vec<TcpListener>,
        handler: Arc<dyn Handler>,
        limits: Limits,
        counters: Arc<Counters>,
    ) -> io::Result<Server> {
        let telling = counters.clone();
        thread::Builder::new().name("http-log".into()).stack_size(256 << 10).spawn(move || telling.refusals.keep())?;
        let (refused, held) = sync_channel(MAX_REFUSED_HELD);
        let (linger, body_max) = (limits.linger, limits.max_body);
        thread::Builder::new().name("http-refuse".into()).spawn(move || hold_refused(&held, linger))?;
        let shared = Arc::new(Shared {
            handler,
            limits,
            counters,
            accepting: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            slots: Mutex::default(),
            slot_freed: Condvar::new(),
            bodies: memory::of_bodies(body_max),
            turns: memory::of_parsed(body_max),
        });
        let (stopped, stop) = io::pipe()?;
        let server = Server { shared, loops: Mutex::default(), stop: Mutex::new(Some(stop)) };
        for listener in listeners {
            // Who was seen to wait may have left by the time that it is accepted.
            listener.set_nonblocking(true)?;
            let (shared, refused, stopped) = (Arc::clone(&server.shared), refused.clone(), stopped.try_clone()?);
            let thread = thread::Builder::new()
                .name("http-accept".into())
                .spawn(move || accept_loop(&shared, &listener, &stopped, &refused))?;
            lock(&server.loops).push(thread);
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
        drop(lock(&self.stop).take());
        for accept_thread in lock(&self.loops).drain(..) {
            let _ = accept_thread.join();
        }
    }

    /// Stops accepting, closes connections between two requests, hears out for a second who has just come, tells streams to stop ([`StreamWriter::stopping`]) and cuts them after
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
        self.shared.shutdown_where(Phase::Fresh, Shutdown::Read);
        self.shared.shutdown_where(Phase::Streaming, Shutdown::Both);
        let left = self.shared.wait_until_empty(end);
        for phase in
            [Phase::Fresh, Phase::Idle, Phase::Head, Phase::Body, Phase::Lingering, Phase::Busy, Phase::Streaming]
        {
            self.shared.shutdown_where(phase, Shutdown::Both);
        }
        left
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        self.shared.counters.refusals.close();
    }
}

struct Shared {
    handler: Arc<dyn Handler>,
    limits: Limits,
    counters: Arc<Counters>,
    accepting: AtomicBool,
    draining: AtomicBool,
    slots: Mutex<Slots>,
    slot_freed: Condvar,
    bodies: Arc<Budget>,
    turns: Arc<Budget>,
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

    /// Room for one more connection from `remote`, where need be at the cost of one that asks for nothing.
    fn make_room(&self, remote: IpAddr) -> Result<MutexGuard<'_, Slots>, Full> {
        let mut slots = lock(&self.slots);
        let end = Instant::now() + LEAVING_WAIT;
        while let Err(full) = slots.check(remote, &self.limits) {
            let left = end.saturating_duration_since(Instant::now());
            if slots.leaving() >= MAX_LEAVING {
                if left.is_zero() {
                    return Err(full);
                }
                slots = self.slot_freed.wait_timeout(slots, left).unwrap_or_else(PoisonError::into_inner).0;
            } else if !self.evict(&mut slots, (full == Full::Address).then_some(remote)) {
                return Err(full);
            }
        }
        Ok(slots)
    }

    fn evict(&self, slots: &mut Slots, only: Option<IpAddr>) -> bool {
        let evicted = slots.evict(only);
        if evicted {
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
            self.counters.active.fetch_sub(1, Ordering::Relaxed);
        }
        evicted
    }

    /// Makes one connection give way and waits for its thread to end: what it held may be what another lacks. False where
    /// none can, or does not end in time.
    fn evict_and_wait(&self) -> bool {
        let mut slots = lock(&self.slots);
        let before = slots.leaving();
        if before >= MAX_LEAVING || !self.evict(&mut slots, None) {
            return false;
        }
        let waiting = self.slot_freed.wait_timeout_while(slots, LEAVING_WAIT, |slots| slots.leaving() > before);
        waiting.unwrap_or_else(PoisonError::into_inner).0.leaving() <= before
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No invariant spans a panic in the few lines that hold these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the slot when the connection's thread ends, however it ends, and where it never began.
struct Slot {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Who was evicted is no longer counted.
        if lock(&self.shared.slots).free(&self.connection) {
            self.shared.counters.active.fetch_sub(1, Ordering::Relaxed);
        }
        self.shared.slot_freed.notify_all();
    }
}

fn accept_loop(
    shared: &Arc<Shared>,
    listener: &TcpListener,
    stopped: &PipeReader,
    refused: &SyncSender<Arc<TcpStream>>,
) {
    let mut failing = false;
    while shared.accepting.load(Ordering::SeqCst) {
        let accepted = match wait::readable(listener, stopped) {
            Ok((_, true)) => return,
            Ok(_) => listener.accept(),
            Err(error) => Err(error),
        };
        match accepted {
            Ok((socket, remote)) => {
                failing = false;
                shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
                admit(shared, Arc::new(socket), remote, refused);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
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
    let (cause, message) = match shared.make_room(remote.ip()) {
        Ok(mut slots) => {
            let connection = slots.take(Arc::clone(&socket), remote);
            drop(slots);
            counters.active.fetch_add(1, Ordering::Relaxed);
            match start_thread(shared, connection) {
                Ok(()) => return,
                Err(e) => {
                    if counters.refused_no_thread.load(Ordering::Relaxed) == 0 {
                        log::warn!("cannot start a thread for a connection; said once: {e}");
                    }
                }
            }
            (&counters.refused_no_thread, "the node cannot start a thread for this connection; try again")
        }
        Err(Full::All) => (&counters.refused_full, "all connections the node can serve are being answered; try again"),
        Err(Full::Address) => {
            let message = "all connections this address may have are being answered; close some or try again";
            (&counters.refused_address, message)
        }
    };
    cause.fetch_add(1, Ordering::Relaxed);
    note_unread(counters, 503, "too_many_connections", remote);
    // Fresh sockets have room for this; one that has not is not worth waiting for.
    let answer = encode_refusal(&Rejection::new(503, "too_many_connections", message));
    if socket.set_nonblocking(true).is_ok() && (&*socket).write(&answer).is_ok() {
        let _ = socket.shutdown(Shutdown::Write);
        let _ = refused.try_send(socket);
    }
}

/// Where threads are short, one that waits for a request gives way to this one.
fn start_thread(shared: &Arc<Shared>, connection: Arc<Connection>) -> io::Result<()> {
    // The closure is dropped where it cannot be run; the slot must outlive the retries.
    let slot = Arc::new(Slot { shared: Arc::clone(shared), connection });
    let spawn = || {
        let slot = Arc::clone(&slot);
        let thread = thread::Builder::new().name("http".into()).stack_size(shared.limits.stack);
        thread.spawn(move || serve(&slot.shared, &slot.connection)).map(drop)
    };
    let mut outcome = spawn();
    // Busy first, so that it is not this very connection that gives way.
    if outcome.is_err() && slot.connection.enter(Phase::Busy) && shared.evict_and_wait() {
        for _ in 0..THREAD_RETRIES {
            // The slot was free a moment before its thread has ended.
            thread::sleep(THREAD_PAUSE);
            outcome = spawn();
            if outcome.is_ok() {
                break;
            }
        }
    }
    outcome
}

/// A connection or a request was refused of which nothing is known.
fn note_unread(counters: &Counters, status: u16, code: &'static str, remote: SocketAddr) {
    counters.refusals.note(&Refused { status, code, method: "-", path: "-", remote });
}

/// How reading a request ended without one.
enum Unread {
    /// Answer this, then close.
    Rejected {
        rejection: Rejection,
        /// The request is a HEAD, whose answer has no body.
        head_only: bool,
    },
    /// The handler wants nothing of it: answer this, then close.
    Refused(Box<Request>, Box<Reply>),
    /// The peer left, or never began: close without a word.
    Gone,
}

fn serve(shared: &Shared, connection: &Connection) {
    connection.is_served_here();
    // A thread that was hard to come by is no reason to keep a silent connection.
    if !connection.enter(Phase::Fresh) {
        return;
    }
    let mut wire = Wire::new(Arc::clone(&connection.socket));
    let mut first_byte_by = Instant::now() + shared.limits.head_deadline;
    let mut head_by = Some(first_byte_by);
    loop {
        let kept = match read_request(shared, connection, &mut wire, first_byte_by, head_by) {
            Ok((request, memory)) => respond(shared, connection, &mut wire, request, memory),
            Err(Unread::Gone) => return,
            Err(Unread::Refused(request, reply)) => {
                shared.counters.rejected.fetch_add(1, Ordering::Relaxed);
                target(shared, connection, &mut wire).shape(&request, false).write(*reply)
            }
            Err(Unread::Rejected { rejection, head_only }) => {
                shared.counters.rejected.fetch_add(1, Ordering::Relaxed);
                note_unread(&shared.counters, rejection.status, rejection.code, connection.remote);
                Target { head_only, ..target(shared, connection, &mut wire) }.write(Reply::rejection(&rejection))
            }
        };
        match kept {
            Ok(true) if !shared.draining.load(Ordering::SeqCst) => {}
            Ok(_) if connection.enter(Phase::Lingering) => return wire.linger(shared.limits.linger),
            Ok(_) => return,
            Err(_) => {
                shared.counters.responses_cut.fetch_add(1, Ordering::Relaxed);
                // No lingering: the client must see that the answer is not whole.
                let _ = connection.socket.shutdown(Shutdown::Both);
                return;
            }
        }
        first_byte_by = Instant::now() + shared.limits.idle_deadline;
        head_by = None;
        // Where many connections are busy, the next request is there once others have had their turn, and this thread need
        // not be put to sleep and woken for it. Where they are not, this is one short system call.
        thread::yield_now();
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
) -> Result<(Request, Option<Lease>), Unread> {
    let limits = &shared.limits;
    if wire.buffered().is_empty() {
        let is_first = head_by.is_some();
        let entered = is_first || connection.enter(Phase::Idle);
        // After entering, so that a drain either sees us idle or is seen by us. Who has just come is heard out: it was
        // taken from those who wait for the next agent.
        let ends = !entered || !is_first && shared.draining.load(Ordering::SeqCst);
        if ends || !matches!(wire.fill(first_byte_by), Ok(1..)) {
            return Err(Unread::Gone);
        }
    }
    enter(connection, Phase::Head)?;
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
        enter(connection, Phase::Busy)?;
        return Ok((request, None));
    }
    enter(connection, Phase::Body)?;
    let has_arrived = matches!(framing, Framing::Length(length) if length <= wire.buffered().len());
    if !has_arrived && let Some(reply) = shared.handler.before_body(&request) {
        return Err(Unread::Refused(Box::new(request), Box::new(reply)));
    }
    let mut body_by = Instant::now() + limits.body_deadline;
    if expect_continue && wire.buffered().is_empty() {
        let mut deadline = limits.write_limits().deadline();
        wire.write_all(b"HTTP/1.1 100 Continue\r\n\r\n", &mut deadline).map_err(|_| Unread::Gone)?;
    }
    let head_only = request.method == Method::Head;
    let rejected = |rejection| Unread::Rejected { rejection, head_only };
    // Room grows with what has really arrived, never with what was announced.
    let mut decoder = ChunkDecoder::new(limits.max_body);
    let mut memory = None;
    loop {
        // Asked for when it is needed, not when it is announced; then for all there can be, so that it need not ask again.
        if memory.is_none() && request.body.len() + wire.buffered().len() > SMALL_BODY {
            let whole = if let Framing::Length(length) = framing { length } else { limits.max_body };
            let client = share_of(connection.remote.ip());
            let began = Instant::now();
            let is_over = || connection.is_in(Phase::Evicted);
            let lease = shared.bodies.lease(client, whole, body_by, &is_over);
            if is_over() {
                return Err(Unread::Gone);
            }
            memory = Some(lease.ok_or_else(|| rejected(too_many_bodies()))?);
            // The client did not wait for us to be late.
            body_by += began.elapsed();
        }
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
            // A body that means nothing (RFC 9110 §9.3.1) is not held while its request is answered, which may take long.
            if matches!(request.method, Method::Get | Method::Head | Method::Options) {
                (request.body, memory) = (Vec::new(), None);
            }
            enter(connection, Phase::Busy)?;
            return Ok((request, memory));
        }
        fill(wire, body_by, "body", head_only)?;
    }
}

fn enter(connection: &Connection, phase: Phase) -> Result<(), Unread> {
    if connection.enter(phase) { Ok(()) } else { Err(Unread::Gone) }
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

/// Large bodies are handled a few at a time: parsed, each takes many times its size.
fn handle(shared: &Shared, connection: &Connection, request: &Request) -> Reply {
    if request.body.len() <= SMALL_BODY {
        return shared.handler.handle(request);
    }
    let (client, deadline) = (share_of(connection.remote.ip()), Instant::now() + TURN_WAIT);
    match shared.turns.lease(client, request.body.len() * PARSED, deadline, &|| false) {
        Some(_turn) => shared.handler.handle(request),
        None => {
            let rejection = too_many_bodies();
            note_unread(&shared.counters, rejection.status, rejection.code, connection.remote);
            Reply::rejection(&rejection)
        }
    }
}

fn respond(
    shared: &Shared,
    connection: &Connection,
    wire: &mut Wire,
    mut request: Request,
    memory: Option<Lease>,
) -> io::Result<bool> {
    let counters = &shared.counters;
    counters.requests.fetch_add(1, Ordering::Relaxed);
    let answer = catch_unwind(AssertUnwindSafe(|| handle(shared, connection, &request)));
    // However slowly the answer is read, the body has served.
    request.body = Vec::new();
    drop(memory);
    let keep = answer.is_ok() && shared.accepting.load(Ordering::SeqCst);
    let reply = answer.unwrap_or_else(|_| {
        counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        note_unread(counters, 500, "internal_error", request.remote);
        let message = "the node failed on this request; its log says why";
        Reply::rejection(&Rejection::new(500, "internal_error", message))
    });
    let streams = matches!(reply, Reply::Stream { ends: false, .. });
    if streams {
        // Never evicted: it is busy.
        let _ = connection.enter(Phase::Streaming);
        counters.streams.fetch_add(1, Ordering::Relaxed);
    }
    let target = target(shared, connection, wire).shape(&request, keep);
    let written = catch_unwind(AssertUnwindSafe(|| target.write(reply)));
    if streams {
        counters.streams.fetch_sub(1, Ordering::Relaxed);
    }
    written.unwrap_or_else(|_| {
        counters.handler_panics.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::other("the handler's body panicked"))
    })
}
