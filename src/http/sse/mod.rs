//! The event stream: resumes from any seq ever written, from memory or from disk, and never blocks the ledger.
//!
//! A subscriber's own thread brings it up to where the [`Hub`] stands, then the hub's one thread feeds all of them without
//! ever waiting for one. No queue is kept for anybody: whose socket is full goes back to its own thread, which reads what it
//! lacks from memory or disk as fast as the peer takes it, and is cut if that is too slow. It can resume with its last id.

mod counters;
mod hub;
mod text;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

pub use self::counters::Counters;
pub use self::hub::Hub;
use self::hub::{Joined, Subscriber, Verdict};
use self::text::{Place, Text};
use super::reply::StreamWriter;
use crate::sys::socket::{self, Writable};
use crate::view::Cursor;

/// What the kernel may hold of a stream's unsent bytes; it doubles that. Enough for a burst, and what 512 subscribers that
/// never read can cost.
const SEND_BUFFER: u32 = 64 << 10;
/// A subscriber whose socket is full and that takes nothing for this long is cut.
const STALL: Duration = Duration::from_secs(5);
/// One that is behind has to take so many bytes a second, as every reader of a response,
const BYTES_PER_SECOND: f64 = 64.0 * 1024.0;
/// but for this allowance.
const ALLOWANCE: Duration = Duration::from_secs(10);
/// How often a thread that waits for its peer looks whether the agent stops.
const LOOK: Duration = Duration::from_millis(100);
/// How long such a stream may still take to come to the end of a message then.
const FAREWELL: Duration = Duration::from_millis(300);
/// Events read at once.
const BATCH: usize = 512;
/// What a browser waits before it reconnects, in milliseconds.
const RETRY_MS: u32 = 2000;
/// The last comment.
const LAST_WORDS: &str = ": the agent stops; resume with the last id";
/// The last comment to one whose token has been taken away.
const REVOKED: &str = ": the token is not valid any more";

/// A subscriber's place under the cap, free again when this is dropped.
pub struct Subscription {
    hub: Arc<Hub>,
    after: u64,
    job: Option<Arc<str>>,
    is_allowed: IsAllowed,
}

/// Whether a subscriber may still listen.
type IsAllowed = Arc<dyn Fn() -> bool + Send + Sync>;

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.unsubscribe();
    }
}

/// How a stream ends before its end.
enum Cut {
    /// The peer has left.
    Left(io::Error),
    Stalled,
    Slow,
    /// The last words did not fit.
    Draining,
    /// It may not listen any more.
    Revoked,
    /// The ledger cannot be read back.
    Unreadable(io::Error),
}

impl Subscription {
    /// Writes every durable event after the one it began with (with a job, only that job's), then those to come, until the
    /// agent stops. In between come telemetry and log growth, without an id: they are no part of the ledger, and who is
    /// too slow for some of them misses them. Writes the end of the body, too.
    ///
    /// # Errors
    /// The peer is gone or too slow, or the ledger cannot be read back.
    pub fn stream(self, to: &mut StreamWriter<'_>) -> io::Result<()> {
        let (socket, chunked) = to.take_over();
        socket::limit_send_buffer(&socket, SEND_BUFFER)?;
        let stream = Stream { subscription: &self, socket, chunked };
        let cut = match stream.run() {
            Ok(()) => return Ok(()),
            Err(cut) => cut,
        };
        let counters = self.hub.counters();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        let too_slow = |why| io::Error::new(io::ErrorKind::TimedOut, why);
        Err(match cut {
            Cut::Left(error) => {
                count(&counters.left);
                return Err(error);
            }
            Cut::Unreadable(error) => {
                log::error!("an event stream ends: {error}");
                count(&counters.unreadable);
                return Err(error);
            }
            Cut::Stalled => {
                count(&counters.stalled);
                too_slow("the subscriber takes nothing")
            }
            Cut::Slow => {
                count(&counters.slow);
                too_slow("the subscriber takes too little")
            }
            Cut::Revoked => {
                count(&counters.revoked);
                return Ok(());
            }
            Cut::Draining => {
                count(&counters.draining);
                too_slow("the subscriber did not take the end")
            }
        })
        .inspect_err(|_: &io::Error| {
            // What it did not take would else be kept for it by the kernel.
            let _ = socket::reset_on_close(&stream.socket);
        })
    }
}

/// A subscriber's stream in its own thread.
struct Stream<'s> {
    subscription: &'s Subscription,
    socket: Arc<TcpStream>,
    chunked: bool,
}

impl Stream<'_> {
    fn run(&self) -> Result<(), Cut> {
        let hub = &self.subscription.hub;
        let after = self.subscription.after;
        let mut greeting = Text::new(self.chunked);
        greeting.lines(&format!("retry: {RETRY_MS}\n: after {after}"));
        let mut at = Place { after, skip: 0, rest: greeting.bytes };
        let mut cursor = Cursor::default();
        loop {
            let Some(verdict) = self.catch_up(&mut at, &mut cursor)? else { return self.say_farewell(at) };
            // The hub never drops a subscriber without a word.
            match verdict.recv().unwrap_or(Verdict::Cut) {
                Verdict::Behind(place) => at = place,
                Verdict::Left => return Err(Cut::Left(io::ErrorKind::ConnectionReset.into())),
                Verdict::Ended => return Ok(()),
                Verdict::Cut => return Err(Cut::Draining),
                Verdict::Revoked => return Err(Cut::Revoked),
            }
            hub.counters().behind.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Brings the stream up to the hub and hands it over; `None` where the agent stops.
    fn catch_up(&self, at: &mut Place, cursor: &mut Cursor) -> Result<Option<Receiver<Verdict>>, Cut> {
        let hub = &self.subscription.hub;
        let mut pace = Pace::new();
        while !hub.is_stopping() {
            if !(self.subscription.is_allowed)() {
                return Err(Cut::Revoked);
            }
            let is_full = if !at.rest.is_empty() || at.skip > 0 {
                !self.send_some(at, cursor, &mut pace, BATCH)?
            } else {
                let subscriber = Subscriber::new(
                    &self.socket,
                    self.chunked,
                    self.subscription.job.clone(),
                    self.subscription.is_allowed.clone(),
                );
                match hub.join(subscriber, at).map_err(Cut::Left)? {
                    Joined::Yes(verdict) => return Ok(Some(verdict)),
                    Joined::Stopping => break,
                    Joined::Revoked => return Err(Cut::Revoked),
                    Joined::Full => true,
                    Joined::Behind => !self.send_some(at, cursor, &mut pace, BATCH)?,
                }
            };
            if is_full {
                self.wait(&mut pace)?;
            }
        }
        Ok(None)
    }

    /// Sends what is next, as far as the socket takes it; whether it took all of it. Nothing is held in memory after that: a
    /// thousand such streams may wait.
    fn send_some(&self, at: &mut Place, cursor: &mut Cursor, pace: &mut Pace, limit: usize) -> Result<bool, Cut> {
        if !at.rest.is_empty() {
            let sent = self.send(&at.rest, pace)?;
            at.rest.drain(..sent);
            return Ok(at.rest.is_empty());
        }
        let hub = &self.subscription.hub;
        let began = Instant::now();
        let _turn = hub.turn_to_read();
        let job = self.subscription.job.as_deref();
        let (events, reached) = hub.view().events_on(cursor, at.after, job, limit).map_err(Cut::Unreadable)?;
        // It did not wait for its peer.
        pace.paused(began.elapsed());
        let mut text = Text::new(self.chunked);
        events.iter().for_each(|(seq, bytes)| text.event(*seq, bytes));
        let begun = at.skip;
        let sent = begun + self.send(&text.bytes[begun..], pace)?;
        hub.counters().sent(text.events_within(sent), (sent - begun) as u64);
        let is_whole = sent == text.bytes.len();
        *at = if is_whole { Place { after: reached, ..Place::default() } } else { text.place(sent, at.after) };
        Ok(is_whole)
    }

    fn send(&self, bytes: &[u8], pace: &mut Pace) -> Result<usize, Cut> {
        let sent = socket::send_now(&self.socket, bytes).map_err(Cut::Left)?;
        pace.took(sent);
        Ok(sent)
    }

    /// Waits until the socket takes more, or the agent stops.
    fn wait(&self, pace: &mut Pace) -> Result<(), Cut> {
        while !self.subscription.hub.is_stopping() {
            match socket::wait_writable(&self.socket, LOOK).map_err(Cut::Left)? {
                Writable::Yes => return pace.check_rate(),
                Writable::Gone => return Err(Cut::Left(io::ErrorKind::ConnectionReset.into())),
                Writable::NotYet if !(self.subscription.is_allowed)() => return Err(Cut::Revoked),
                Writable::NotYet => pace.check()?,
            }
        }
        Ok(())
    }

    /// Ends the message under way, then the body, if the peer takes that soon.
    fn say_farewell(&self, mut at: Place) -> Result<(), Cut> {
        let deadline = Instant::now() + FAREWELL;
        let mut pace = Pace::new();
        let wait = || match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(Cut::Draining),
            left => match socket::wait_writable(&self.socket, left).map_err(Cut::Left)? {
                Writable::Gone => Err(Cut::Draining),
                Writable::Yes | Writable::NotYet => Ok(()),
            },
        };
        while !at.rest.is_empty() || at.skip > 0 {
            if !self.send_some(&mut at, &mut Cursor::default(), &mut pace, 1)? {
                wait()?;
            }
        }
        let mut words = Text::new(self.chunked);
        words.lines(LAST_WORDS);
        words.end();
        let mut left = &words.bytes[..];
        loop {
            left = &left[self.send(left, &mut pace)?..];
            if left.is_empty() {
                self.subscription.hub.counters().draining.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            wait()?;
        }
    }
}

/// How fast a subscriber takes what it lacks.
struct Pace {
    took: Instant,
    deadline: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { took: Instant::now(), deadline: Instant::now() + ALLOWANCE }
    }

    /// Time in which the peer was not waited for.
    fn paused(&mut self, time: Duration) {
        self.took += time;
        self.deadline += time;
    }

    fn took(&mut self, bytes: usize) {
        if bytes > 0 {
            self.took = Instant::now();
            let earned = Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND);
            // Without this bound a fast start would buy hours of trickling.
            self.deadline = (self.deadline + earned).min(self.took + ALLOWANCE);
        }
    }

    fn check(&self) -> Result<(), Cut> {
        if self.took.elapsed() >= STALL { Err(Cut::Stalled) } else { self.check_rate() }
    }

    fn check_rate(&self) -> Result<(), Cut> {
        if Instant::now() > self.deadline { Err(Cut::Slow) } else { Ok(()) }
    }
}
