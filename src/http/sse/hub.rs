//! One thread that feeds every subscriber that is up to date, and what it shares with those that are not yet.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::text::{Place, Text};
use super::{Counters, IsAllowed, LAST_WORDS, REVOKED, Subscription};
use crate::rejection::Rejection;
use crate::runner::growth::Growth;
use crate::runner::telemetry::Telemetry;
use crate::sys::AbortOnPanic;
use crate::sys::socket::{self, Poller};
use crate::view::{Published, View};

/// Rounds begin at least so far apart: a burst of events is one write to each subscriber. A lone event goes out at once.
const ROUND: Duration = Duration::from_millis(2);
/// Bytes of events that one round takes at once; one event may be more.
const ROUND_BYTES: usize = 64 << 10;
/// A subscriber that lacks no more than this gets it under the lock, and so cannot lose the race for the hub's place.
const JOIN_BYTES: usize = 16 << 10;
/// A comment goes out when there was nothing else for this long.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Most bytes that a subscriber may send into its stream; they are thrown away.
const STRAY_BYTES: usize = 64 << 10;
/// Threads that read for their subscribers at the same time; each holds one batch of events.
const READERS: usize = 4;
/// Pause after a poll that failed.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// Feeds the subscribers.
pub struct Hub {
    view: Arc<View>,
    telemetry: Arc<Telemetry>,
    growth: Arc<Growth>,
    max_subscribers: u64,
    poller: Poller,
    /// The bell rings once for all that came since the last round.
    is_rung: AtomicBool,
    draining: AtomicBool,
    /// Who may call has changed.
    is_to_be_asked: AtomicBool,
    state: Mutex<State>,
    reading: Mutex<usize>,
    read: Condvar,
    counters: Counters,
}

#[derive(Default)]
struct State {
    /// Every subscriber in `live` has all events up to here.
    position: u64,
    live: HashMap<u64, Subscriber>,
    next_id: u64,
    /// Number of the last batch of samples that was sent.
    samples: u64,
    /// When the next subscriber may be due for a comment.
    next_heartbeat: Option<Instant>,
    /// Nobody joins any more.
    ended: bool,
}

/// Somebody who is up to date, as the hub knows it.
pub(super) struct Subscriber {
    socket: Arc<TcpStream>,
    chunked: bool,
    job: Option<Arc<str>>,
    is_allowed: IsAllowed,
    verdict: Option<Sender<Verdict>>,
    sent: Instant,
    stray: usize,
}

/// Why the hub lets go of a subscriber.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Its socket is full; it has to go on from here by itself.
    Behind(Place),
    /// The peer has left.
    Left,
    /// It has the whole body, with its end.
    Ended,
    /// The end did not fit into its socket.
    Cut,
    /// It may not listen any more, and has been told.
    Revoked,
}

/// What came of joining.
pub(super) enum Joined {
    /// The verdict comes here.
    Yes(Receiver<Verdict>),
    /// It lacks too much.
    Behind,
    /// Its socket is full.
    Full,
    /// The agent stops.
    Stopping,
    /// It may not listen any more.
    Revoked,
}

/// A thread's turn to read for its subscriber.
pub(super) struct Turn<'h>(&'h Hub);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.reading) -= 1;
        self.0.read.notify_one();
    }
}

impl Subscriber {
    pub fn new(socket: &Arc<TcpStream>, chunked: bool, job: Option<Arc<str>>, is_allowed: IsAllowed) -> Self {
        Self { socket: socket.clone(), chunked, job, is_allowed, verdict: None, sent: Instant::now(), stray: 0 }
    }

    fn wants(&self, job: Option<&str>) -> bool {
        self.job.as_deref().is_none_or(|wanted| Some(wanted) == job)
    }

    /// Sends `text`, before which it stood at `position`.
    fn send(&mut self, text: &Text, position: u64, now: Instant, counters: &Counters) -> Result<(), Verdict> {
        let sent = socket::send_now(&self.socket, &text.bytes).map_err(|_| Verdict::Left)?;
        self.sent = now;
        counters.sent(text.events_within(sent), sent as u64);
        if sent == text.bytes.len() { Ok(()) } else { Err(Verdict::Behind(text.place(sent, position))) }
    }

    /// Throws away what the peer sent; whether it is still there.
    fn listen(&mut self) -> bool {
        let mut scratch = [0; 4096];
        while self.stray <= STRAY_BYTES {
            match socket::receive_now(&self.socket, &mut scratch) {
                Ok(Some(0)) | Err(_) => return false,
                Ok(Some(count)) => self.stray += count,
                Ok(None) => return true,
            }
        }
        false
    }
}

/// A line beside the ledger.
struct Aside {
    name: &'static str,
    job: Arc<str>,
    line: String,
}

/// What one round sends, written once for each framing and job that somebody wants.
struct Texts<'r> {
    asides: &'r [Aside],
    events: &'r [Published],
    /// Of which there is something.
    jobs: HashSet<&'r str>,
    written: HashMap<(Option<Arc<str>>, bool), Text>,
}

impl<'r> Texts<'r> {
    fn new(asides: &'r [Aside], events: &'r [Published]) -> Self {
        let of_events = events.iter().filter_map(|event| event.job.as_ref().map(|job| &*job.job_id));
        let jobs = of_events.chain(asides.iter().map(|aside| &*aside.job)).collect();
        Self { asides, events, jobs, written: HashMap::new() }
    }

    /// What `who` gets, if anything.
    fn of(&mut self, who: &Subscriber) -> Option<&Text> {
        if who.job.as_deref().is_some_and(|job| !self.jobs.contains(job)) {
            return None;
        }
        let (asides, events) = (self.asides, self.events);
        let text = self.written.entry((who.job.clone(), who.chunked)).or_insert_with(|| {
            let mut text = Text::new(who.chunked);
            // The sizes at an attempt's end come before the event of its end.
            let asides = asides.iter().filter(|aside| who.wants(Some(&aside.job)));
            asides.for_each(|aside| text.aside(aside.name, &aside.line));
            let events = events.iter().filter(|event| who.wants(event.job.as_ref().map(|job| &*job.job_id)));
            events.for_each(|event| text.event(event.seq, &event.bytes));
            text
        });
        Some(text)
    }
}

/// The end of a stream.
fn last_text(chunked: bool, words: &str) -> Text {
    let mut text = Text::new(chunked);
    text.lines(words);
    text.end();
    text
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The hub's thread aborts on a panic; the others leave nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Default of the most subscribers at once.
    pub const MAX_SUBSCRIBERS: u64 = 512;

    /// Starts the hub's thread, which ends after [`Hub::drain`] or when the ledger latches. The view rings for it from now
    /// on, so there is one hub for each view.
    ///
    /// # Errors
    /// Descriptors, memory or threads are short.
    pub fn start(
        view: &Arc<View>,
        telemetry: &Arc<Telemetry>,
        growth: &Arc<Growth>,
        max_subscribers: u64,
    ) -> io::Result<Arc<Self>> {
        let state = State { position: view.head().0, samples: telemetry.newest().number, ..State::default() };
        let hub = Arc::new(Self {
            view: view.clone(),
            telemetry: telemetry.clone(),
            growth: growth.clone(),
            max_subscribers,
            poller: Poller::new()?,
            is_rung: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            is_to_be_asked: AtomicBool::new(false),
            state: Mutex::new(state),
            reading: Mutex::default(),
            read: Condvar::new(),
            counters: Counters::default(),
        });
        let (bell, ringing) = (Arc::downgrade(&hub), hub.clone());
        view.on_news(Box::new(move || {
            if let Some(hub) = bell.upgrade() {
                hub.ring();
            }
        }));
        thread::Builder::new().name("sse".into()).stack_size(256 << 10).spawn(move || {
            let _guard = AbortOnPanic;
            ringing.run();
        })?;
        // What came before the bell was there.
        hub.ring();
        Ok(hub)
    }

    /// What it has done so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes a place under the cap, for a stream that begins after the event `after`; with `job`, only that job's events. It
    /// ends when `is_allowed` says so: see [`Hub::ask_again`].
    ///
    /// # Errors
    /// 503 where all places are taken.
    pub fn subscribe(
        self: &Arc<Self>,
        after: u64,
        job: Option<&str>,
        is_allowed: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Subscription, Rejection> {
        let state = lock(&self.state);
        // Counted under the lock.
        if self.counters.subscribers.load(Ordering::Relaxed) >= self.max_subscribers {
            drop(state);
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            let most = self.max_subscribers;
            let message = format!("there are {most} subscribers of the event stream, the most there may be; try again");
            return Err(Rejection::new(503, "too_many_subscribers", message));
        }
        self.counters.subscribers.fetch_add(1, Ordering::Relaxed);
        self.counters.subscribed.fetch_add(1, Ordering::Relaxed);
        Ok(Subscription { hub: self.clone(), after, job: job.map(Arc::from), is_allowed: Arc::new(is_allowed) })
    }

    pub(super) fn unsubscribe(&self) {
        let _state = lock(&self.state);
        self.counters.subscribers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends every stream, with what is durable by now, a last comment and the proper end of the body. Returns at once.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Asks every subscriber's `is_allowed` again, soon. Returns at once.
    pub fn ask_again(&self) {
        self.is_to_be_asked.store(true, Ordering::SeqCst);
        self.ring();
    }

    /// Whether streams have to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.draining.load(Ordering::SeqCst) || self.view.latched().is_some()
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Waits for a turn to read: the memory that catching up takes does not grow with the subscribers.
    pub(super) fn turn_to_read(&self) -> Turn<'_> {
        let reading = lock(&self.reading);
        let free = self.read.wait_while(reading, |reading| *reading >= READERS);
        *free.unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(self)
    }

    /// Takes over a subscriber that stands at `at`, between two messages.
    ///
    /// # Errors
    /// The peer has left.
    pub(super) fn join(&self, mut subscriber: Subscriber, at: &mut Place) -> io::Result<Joined> {
        let mut state = lock(&self.state);
        // Under the lock: whatever changes from now on, the hub asks it again.
        if !(subscriber.is_allowed)() {
            return Ok(Joined::Revoked);
        }
        if at.after > state.position {
            // It has seen what the hub has not come to yet.
            self.round(&mut state);
        }
        if state.ended {
            return Ok(Joined::Stopping);
        }
        if at.after < state.position {
            let Some((events, true)) = self.view.recent(at.after, state.position, JOIN_BYTES) else {
                return Ok(Joined::Behind);
            };
            let mut texts = Texts::new(&[], &events);
            let sent = match texts.of(&subscriber) {
                Some(text) => subscriber.send(text, at.after, Instant::now(), &self.counters),
                None => Ok(()),
            };
            match sent {
                Ok(()) => at.after = state.position,
                Err(Verdict::Behind(place)) => {
                    *at = place;
                    return Ok(Joined::Full);
                }
                Err(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
        let id = state.next_id;
        state.next_id += 1;
        self.poller.add(&subscriber.socket, id)?;
        let (sender, verdict) = bounded(1);
        subscriber.verdict = Some(sender);
        let due = subscriber.sent + HEARTBEAT;
        if state.next_heartbeat.is_none_or(|next| due < next) {
            state.next_heartbeat = Some(due);
            self.ring();
        }
        state.live.insert(id, subscriber);
        Ok(Joined::Yes(verdict))
    }

    fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            self.poller.ring();
        }
    }

    fn run(&self) {
        let mut ready = Vec::new();
        let mut not_before = Instant::now();
        let mut next_heartbeat = None::<Instant>;
        loop {
            let timeout = next_heartbeat.map(|at| at.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poller.wait(timeout, &mut ready) {
                log::error!("the event stream's sockets cannot be watched: {error}");
                thread::sleep(POLL_PAUSE);
            }
            thread::sleep(not_before.saturating_duration_since(Instant::now()));
            // Before the look: whatever comes after it rings again.
            self.is_rung.store(false, Ordering::SeqCst);
            let began = Instant::now();
            let mut state = lock(&self.state);
            for id in &ready {
                if state.live.get_mut(id).is_some_and(|subscriber| !subscriber.listen()) {
                    self.let_go(&mut state, *id, Verdict::Left);
                }
            }
            if self.is_to_be_asked.swap(false, Ordering::SeqCst) {
                self.revoke(&mut state);
            }
            let is_last = self.is_stopping();
            self.round(&mut state);
            if is_last {
                self.end(&mut state);
                return;
            }
            self.beat(&mut state);
            next_heartbeat = state.next_heartbeat;
            drop(state);
            // It never takes more than half of a processor.
            not_before = (began + ROUND).max(Instant::now() + began.elapsed());
        }
    }

    /// Sends everything that is new to everybody who is up to date.
    fn round(&self, state: &mut State) {
        // Asked for first: what was told of an attempt before its end is among the asides.
        let head = self.view.head().0;
        let mut asides = self.asides(state);
        while state.position < head || !asides.is_empty() {
            let position = state.position;
            let batch =
                if position < head { self.view.recent(position, head, ROUND_BYTES) } else { Some(Default::default()) };
            let Some((events, _)) = batch else {
                // This thread was kept waiting for very long. Everybody reads for himself what was missed.
                state.position = head;
                let all: Vec<u64> = state.live.keys().copied().collect();
                for id in all {
                    self.let_go(state, id, Verdict::Behind(Place { after: position, ..Place::default() }));
                }
                return;
            };
            state.position = events.last().map_or(position, |event| event.seq);
            let mut texts = Texts::new(&asides, &events);
            self.send_to_all(state, position, &mut texts);
            asides.clear();
        }
    }

    fn send_to_all(&self, state: &mut State, position: u64, texts: &mut Texts<'_>) {
        let now = Instant::now();
        let mut verdicts = Vec::new();
        let mut any = false;
        for (id, subscriber) in &mut state.live {
            let Some(text) = texts.of(subscriber) else { continue };
            any = true;
            if let Err(verdict) = subscriber.send(text, position, now, &self.counters) {
                verdicts.push((*id, verdict));
            }
        }
        if any {
            self.counters.batches.fetch_add(1, Ordering::Relaxed);
        }
        for (id, verdict) in verdicts {
            self.let_go(state, id, verdict);
        }
    }

    /// What there is beside the ledger, and was not sent yet.
    fn asides(&self, state: &mut State) -> Vec<Aside> {
        let grown = self.growth.take().into_iter();
        let mut asides: Vec<Aside> =
            grown.map(|grown| Aside { name: "log", line: grown.line(), job: grown.job_id }).collect();
        let newest = self.telemetry.newest();
        if newest.number != state.samples {
            state.samples = newest.number;
            let lines = newest.lines.iter();
            asides.extend(lines.map(|(job, line)| Aside { name: "telemetry", job: job.clone(), line: line.clone() }));
        }
        if state.live.is_empty() {
            // What is told now is of the past for whoever comes later.
            asides.clear();
        }
        asides
    }

    /// Sends a comment to everybody who has heard nothing for long.
    fn beat(&self, state: &mut State) {
        let now = Instant::now();
        if state.next_heartbeat.is_none_or(|next| now < next) {
            return;
        }
        let texts = [false, true].map(|chunked| {
            let mut text = Text::new(chunked);
            text.lines(": still here");
            text
        });
        let mut verdicts = Vec::new();
        for (id, subscriber) in &mut state.live {
            if now < subscriber.sent + HEARTBEAT {
                continue;
            }
            let text = &texts[usize::from(subscriber.chunked)];
            if let Err(verdict) = subscriber.send(text, state.position, now, &self.counters) {
                verdicts.push((*id, verdict));
            }
        }
        for (id, verdict) in verdicts {
            self.let_go(state, id, verdict);
        }
        state.next_heartbeat = state.live.values().map(|subscriber| subscriber.sent + HEARTBEAT).min();
    }

    /// Ends all streams that are up to date; those that are not hear of it by themselves.
    fn end(&self, state: &mut State) {
        state.ended = true;
        let texts = [false, true].map(|chunked| last_text(chunked, LAST_WORDS));
        for (_, mut subscriber) in state.live.drain() {
            let text = &texts[usize::from(subscriber.chunked)];
            let verdict = match subscriber.send(text, state.position, Instant::now(), &self.counters) {
                Ok(()) => {
                    self.counters.draining.fetch_add(1, Ordering::Relaxed);
                    Verdict::Ended
                }
                Err(Verdict::Left) => Verdict::Left,
                Err(_) => Verdict::Cut,
            };
            self.tell(subscriber, verdict);
        }
    }

    /// Ends the streams of those who may not listen any more.
    fn revoke(&self, state: &mut State) {
        let is_over = |subscriber: &Subscriber| !(subscriber.is_allowed)();
        let over: Vec<u64> = state.live.iter().filter(|(_, s)| is_over(s)).map(|(id, _)| *id).collect();
        for id in over {
            if let Some(subscriber) = state.live.get_mut(&id) {
                // One that is full hears nothing more, and is ended all the same.
                let _ = subscriber.send(&last_text(subscriber.chunked, REVOKED), 0, Instant::now(), &self.counters);
            }
            self.let_go(state, id, Verdict::Revoked);
        }
    }

    fn let_go(&self, state: &mut State, id: u64, verdict: Verdict) {
        if let Some(subscriber) = state.live.remove(&id) {
            self.tell(subscriber, verdict);
        }
    }

    fn tell(&self, mut subscriber: Subscriber, verdict: Verdict) {
        self.poller.remove(&subscriber.socket);
        if let Some(sender) = subscriber.verdict.take() {
            // There is room for one, and there is one.
            let _ = sender.send(verdict);
        }
    }
}
