//! The durable world, as readers may see it: jobs, head, recent events. HTTP reads here and nowhere else.
//!
//! **Architecture Invariant**: nothing gets in here before it is durable; only the engine publishes.

mod links;
mod tally;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::hash::Hash;
use crate::ledger::event::State;
use crate::ledger::lifecycle::{Job, Phase, Prunings};
use crate::wal::reader::Reader;

pub use self::links::Graph;
use self::links::Links;
pub use self::tally::{ENDS, Tally};
pub use crate::wal::reader::Cursor;

/// Events kept in memory for subscribers that are nearly up to date; older ones come from the segments.
const RECENT_EVENTS_MAX: usize = 4096;
/// Bytes of them, at most.
const RECENT_BYTES_MAX: usize = 4 << 20;
/// Jobs looked at for one page: publishing waits while a page is gathered.
const SCAN_MAX: usize = 20_000;
/// A trace is read in one sweep where a job's events lie closer together than this, else looked up one by one.
const SWEEP_GAP: u64 = 64;
/// Events of a trace that are looked up at once.
const TRACE_SEQS: usize = 1024;

/// A durable event.
#[derive(Debug, Clone)]
pub struct Published {
    /// Counts from 1.
    pub seq: u64,
    /// SHA-256 of the bytes.
    pub hash: Hash,
    /// The stored bytes.
    pub bytes: Arc<[u8]>,
    /// The job as this event left it; `None` for node events.
    pub job: Option<Arc<Job>>,
    /// Numbers of the jobs that PRUNED names; none for other events.
    pub pruned: Box<[u32]>,
}

/// Which jobs a list shows.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    /// Only jobs in this phase.
    pub phase: Option<Phase>,
    /// Only jobs in this state.
    pub state: Option<State>,
    /// Only runs of this execution.
    pub execution_hash: Option<Hash>,
}

/// Jobs, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// Seq and hash of the last event that they tell of.
    pub head: (u64, Hash),
    /// As they are after it.
    pub jobs: Vec<Arc<Job>>,
    /// The `before` of the next page, if there may be more.
    pub next: Option<u64>,
}

/// The durable world.
pub struct View {
    inner: RwLock<Inner>,
    reader: Arc<Reader>,
    /// Who waits for an event of a job.
    waiting: Mutex<HashMap<Arc<str>, Vec<Thread>>>,
    /// Rung when there is something new.
    bell: OnceLock<Bell>,
    latched: OnceLock<String>,
}

/// Called by whoever publishes: it must not block.
pub type Bell = Box<dyn Fn() + Send + Sync>;

struct Inner {
    /// In the order they were received: a job's number is its index.
    jobs: Vec<Entry>,
    numbers: HashMap<Arc<str>, u32>,
    links: Links,
    pruned: Prunings,
    head: (u64, Hash),
    recent: VecDeque<Published>,
    recent_bytes: usize,
    by_state: [u64; State::ALL.len()],
    tally: Tally,
}

/// How many of what, all of one moment.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Seq of the last durable event.
    pub head: u64,
    /// Number of jobs by the state of their last event, indexed by its discriminant.
    pub jobs: [u64; State::ALL.len()],
    /// What was published since the agent's start.
    pub tally: Tally,
}

struct Entry {
    job: Arc<Job>,
    seqs: Seqs,
}

/// Seqs that only grow, as their differences, seven bits to a byte, the last byte of each without the high bit: a ledger
/// holds millions.
#[derive(Debug, Default)]
pub struct Seqs {
    bytes: Vec<u8>,
    last: u64,
}

impl Seqs {
    /// Adds one; it must be greater than those before.
    pub fn push(&mut self, seq: u64) {
        assert!(seq > self.last, "seqs grow: {seq} after {}", self.last);
        let mut rest = seq - self.last;
        self.last = seq;
        while rest > 0x7F {
            self.bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        let mut place = SeqsPlace::default();
        std::iter::from_fn(move || self.next(&mut place))
    }

    /// The next `most` of them behind `place`, which goes on. It may be used again after more were pushed.
    fn take(&self, place: &mut SeqsPlace, most: usize) -> Vec<u64> {
        std::iter::from_fn(|| self.next(place)).take(most).collect()
    }

    fn next(&self, place: &mut SeqsPlace) -> Option<u64> {
        let (mut difference, mut shift) = (0, 0);
        for byte in self.bytes.get(place.byte..)? {
            place.byte += 1;
            difference |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                place.seq += difference;
                return Some(place.seq);
            }
        }
        None
    }
}

/// A place among [`Seqs`].
#[derive(Debug, Default)]
struct SeqsPlace {
    /// Of the next one.
    byte: usize,
    /// The one before it.
    seq: u64,
}

/// How far a job's trace has been read.
#[derive(Debug, Default)]
pub struct TraceCursor {
    place: SeqsPlace,
    seqs: Vec<u64>,
    /// Of them, the next one.
    at: usize,
    /// Where in the log the one before it ends.
    log: Cursor,
}

impl View {
    /// The world as recovery found it: the head, and the jobs in the order they were received, each with the seqs of its
    /// events, and which of them were pruned. `reader` looks up those events.
    pub fn new(
        reader: Arc<Reader>,
        head: (u64, Hash),
        jobs: impl IntoIterator<Item = (Arc<Job>, Seqs)>,
        pruned: Prunings,
    ) -> Self {
        let jobs: Vec<Entry> = jobs.into_iter().map(|(job, seqs)| Entry { job, seqs }).collect();
        let mut by_state = [0; State::ALL.len()];
        let mut numbers = HashMap::with_capacity(jobs.len());
        for (number, entry) in (0..).zip(&jobs) {
            by_state[entry.job.state as usize] += 1;
            numbers.insert(entry.job.job_id.clone(), number);
        }
        let with_parents: Vec<Arc<Job>> =
            jobs.iter().filter(|entry| entry.job.lineage.is_some()).map(|entry| entry.job.clone()).collect();
        let links = Links::default();
        let (recent, tally) = (VecDeque::new(), Tally::default());
        let mut inner = Inner { jobs, numbers, links, pruned, head, recent, recent_bytes: 0, by_state, tally };
        with_parents.iter().for_each(|job| inner.link(job));
        Self {
            inner: RwLock::new(inner),
            reader,
            waiting: Mutex::default(),
            bell: OnceLock::new(),
            latched: OnceLock::new(),
        }
    }

    /// Takes in events that are durable, in order, and wakes who waits for them.
    pub fn publish(&self, events: impl IntoIterator<Item = Published>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let mut jobs = Vec::new();
        for event in events {
            jobs.extend(event.job.as_ref().map(|job| job.job_id.clone()));
            inner.admit(event);
        }
        drop(inner);
        self.ring();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.is_empty() {
            jobs.iter().filter_map(|job| waiting.remove(job)).flatten().for_each(|thread| thread.unpark());
        }
    }

    /// A job by its id.
    pub fn job(&self, job_id: &str) -> Option<Arc<Job>> {
        self.read().entry(job_id).map(|entry| entry.job.clone())
    }

    /// All jobs, in the order they were received. Those that come meanwhile may be lacking.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<Arc<Job>> = Vec::new();
        loop {
            // Publishing waits while some are gathered.
            let from = jobs.len();
            jobs.extend(self.read().jobs[from..].iter().take(SCAN_MAX).map(|entry| entry.job.clone()));
            if jobs.len() == from {
                return jobs;
            }
        }
    }

    /// The seq of the PRUNED event that names a job, if there is one.
    pub fn pruned(&self, job: &Job) -> Option<u64> {
        self.read().pruned.of(job)
    }

    /// Which jobs were pruned.
    pub fn prunings(&self) -> Prunings {
        self.read().pruned.clone()
    }

    /// Hash of a durable event.
    pub fn hash_of(&self, seq: u64) -> io::Result<Hash> {
        let inner = self.read();
        let recent = inner.recent.front().and_then(|oldest| inner.recent.get(seq.checked_sub(oldest.seq)? as usize));
        if let Some(event) = recent {
            return Ok(event.hash);
        }
        drop(inner);
        self.reader.get(seq).map(|bytes| Hash::of(&bytes))
    }

    /// Seq and hash of the last durable event; 0 and zeros where there is none.
    pub fn head(&self) -> (u64, Hash) {
        self.read().head
    }

    /// How many of what. Takes as long however many jobs there are.
    pub fn figures(&self) -> Figures {
        let inner = self.read();
        Figures { head: inner.head.0, jobs: inner.by_state, tally: inner.tally.clone() }
    }

    /// Number of jobs by the state of their last event.
    pub fn count(&self, state: State) -> u64 {
        self.read().by_state[state as usize]
    }

    /// Up to `limit` jobs, newest first, whose RECEIVED events have seqs below `before`. A page may be short, even empty,
    /// before the last.
    pub fn page(&self, filter: &Filter, before: Option<u64>, limit: usize) -> Page {
        let inner = self.read();
        let head = inner.head;
        let end = match before {
            Some(seq) => inner.jobs.partition_point(|entry| entry.job.received_seq < seq),
            None => inner.jobs.len(),
        };
        let mut jobs = Vec::new();
        for (looked_at, Entry { job, .. }) in inner.jobs[..end].iter().rev().enumerate() {
            let fits = filter.phase.is_none_or(|phase| job.phase() == phase)
                && filter.state.is_none_or(|state| job.state == state)
                && filter.execution_hash.is_none_or(|hash| job.execution_hash == Some(hash));
            if jobs.len() == limit || looked_at == SCAN_MAX {
                return Page { head, jobs, next: Some(job.received_seq + 1) };
            }
            if fits {
                jobs.push(job.clone());
            }
        }
        Page { head, jobs, next: None }
    }

    /// Calls `each` with the stored bytes of the events of a job, in order, until it returns `false`: those that there are
    /// when it is called, and of a job that goes on perhaps some that come meanwhile.
    ///
    /// # Errors
    /// What reading the segments gives.
    pub fn trace(&self, job_id: &str, each: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
        self.trace_on(job_id, &mut TraceCursor::default(), each)
    }

    /// The same from where `cursor` stands: behind the last event that `each` was called with before.
    ///
    /// # Errors
    /// What reading the segments gives.
    pub fn trace_on(
        &self,
        job_id: &str,
        cursor: &mut TraceCursor,
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> io::Result<()> {
        let mut wanted = true;
        while wanted {
            if cursor.at == cursor.seqs.len() {
                // A run of many days has millions of events: their seqs are not all held at once.
                cursor.seqs = match self.read().entry(job_id) {
                    Some(entry) => entry.seqs.take(&mut cursor.place, TRACE_SEQS),
                    None => return Ok(()),
                };
                cursor.at = 0;
            }
            let TraceCursor { seqs, at, log, .. } = &mut *cursor;
            let Some(&last) = seqs.last() else { return Ok(()) };
            self.reader.read_on(log, seqs[*at], last, &mut |seq, bytes| {
                if seq == seqs[*at] {
                    wanted = each(bytes);
                    *at += 1;
                }
                wanted && *at < seqs.len() && seqs[*at] - seq <= SWEEP_GAP
            })?;
        }
        Ok(())
    }

    /// Durable events after `after`, at most `limit` of them or about 64 KiB, with where to go on. From memory where
    /// it reaches back so far, else from the segments. With `job`, only that job's.
    pub fn events_after(&self, after: u64, job: Option<&str>, limit: usize) -> io::Result<(Vec<EventBytes>, u64)> {
        self.events_on(&mut Cursor::default(), after, job, limit)
    }

    /// The same, for who reads on from where the last call ended: `cursor` knows where that is.
    ///
    /// # Errors
    /// What reading the segments gives.
    pub fn events_on(
        &self,
        cursor: &mut Cursor,
        after: u64,
        job: Option<&str>,
        limit: usize,
    ) -> io::Result<(Vec<EventBytes>, u64)> {
        const BATCH_BYTES: usize = 64 << 10;
        let (mut events, mut bytes_left) = (Vec::new(), BATCH_BYTES);
        let inner = self.read();
        let head = inner.head.0;
        if after >= head {
            return Ok((events, after));
        }
        if let Some(oldest) = inner.recent.front().filter(|oldest| oldest.seq <= after + 1) {
            let mut reached = after;
            for event in inner.recent.range((after + 1 - oldest.seq) as usize..) {
                if events.len() == limit || bytes_left == 0 {
                    break;
                }
                reached = event.seq;
                if job.is_none_or(|id| event.job.as_ref().is_some_and(|job| *job.job_id == *id)) {
                    bytes_left = bytes_left.saturating_sub(event.bytes.len());
                    events.push((event.seq, event.bytes.clone()));
                }
            }
            return Ok((events, reached));
        }
        match job {
            None => {
                drop(inner);
                let mut reached = after;
                self.reader.read_on(cursor, after + 1, head, &mut |seq, bytes| {
                    reached = seq;
                    bytes_left = bytes_left.saturating_sub(bytes.len());
                    events.push((seq, bytes.into()));
                    events.len() < limit && bytes_left > 0
                })?;
                Ok((events, reached))
            }
            Some(id) => {
                let entry = inner.entry(id);
                let wanted: Vec<u64> = entry
                    .iter()
                    .flat_map(|entry| entry.seqs.iter())
                    .skip_while(|seq| *seq <= after)
                    .take(limit)
                    .collect();
                drop(inner);
                let all = wanted.len() < limit;
                for seq in wanted {
                    self.reader.read_on(cursor, seq, seq, &mut |_, bytes| {
                        bytes_left = bytes_left.saturating_sub(bytes.len());
                        events.push((seq, bytes.into()));
                        true
                    })?;
                    if bytes_left == 0 {
                        return Ok((events, seq));
                    }
                }
                let last = events.last().map_or(after, |(seq, _)| *seq);
                Ok((events, if all { head } else { last }))
            }
        }
    }

    /// Calls `each` with the stored bytes of the events `from..=upto` that are durable, until it returns `false`.
    pub fn ledger(&self, from: u64, upto: u64, each: &mut dyn FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
        self.ledger_on(&mut Cursor::default(), from, upto, each)
    }

    /// The same, for who reads on from where the last call ended: `cursor` knows where that is.
    ///
    /// # Errors
    /// What reading the segments gives.
    pub fn ledger_on(
        &self,
        cursor: &mut Cursor,
        from: u64,
        upto: u64,
        each: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<()> {
        self.reader.read_on(cursor, from.max(1), upto.min(self.head().0), each)
    }

    /// Durable events after `after` up to `upto`, from memory alone: about `bytes_max` of them, but at least one, and whether
    /// these are all. `None` where memory does not reach back so far.
    pub fn recent(&self, after: u64, upto: u64, bytes_max: usize) -> Option<(Vec<Published>, bool)> {
        let inner = self.read();
        let oldest = inner.recent.front().filter(|oldest| oldest.seq <= after + 1)?.seq;
        let mut bytes_left = bytes_max;
        let mut events = Vec::new();
        for event in inner.recent.range((after + 1 - oldest) as usize..).take_while(|event| event.seq <= upto) {
            if bytes_left == 0 {
                return Some((events, false));
            }
            bytes_left = bytes_left.saturating_sub(event.bytes.len());
            events.push(event.clone());
        }
        Some((events, true))
    }

    /// Blocks until there is an event of the job after its event `seq`, or `timeout` is over, or everyone was woken.
    pub fn wait_for_job(&self, job_id: &Arc<str>, seq: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let waiting = || self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting().entry(job_id.clone()).or_default().push(thread::current());
        // Looked at after registering: an event published in between has either been seen here or unparks this thread.
        if self.job(job_id).is_some_and(|job| job.seq <= seq) {
            thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let me = thread::current().id();
        let mut waiting = waiting();
        if let Some(threads) = waiting.get_mut(job_id) {
            threads.retain(|thread| thread.id() != me);
            if threads.is_empty() {
                waiting.remove(job_id);
            }
        }
    }

    /// Wakes everyone who waits, without an event: something else they look at has changed.
    pub fn wake_all(&self) {
        self.ring();
        for (_, threads) in self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            threads.iter().for_each(Thread::unpark);
        }
    }

    /// Sets what is rung when there is something new; the first one stays.
    pub fn on_news(&self, bell: Bell) {
        let _ = self.bell.set(bell);
    }

    /// Rings, without an event: there is something new beside the ledger.
    pub fn ring(&self) {
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }

    /// Records that the ledger takes no more events.
    pub fn latch(&self, reason: &str) {
        let _ = self.latched.set(reason.to_owned());
        self.wake_all();
    }

    /// Why the ledger takes no more events, if so.
    pub fn latched(&self) -> Option<&str> {
        self.latched.get().map(String::as_str)
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seq and stored bytes.
pub type EventBytes = (u64, Arc<[u8]>);

impl Inner {
    fn entry(&self, job_id: &str) -> Option<&Entry> {
        self.numbers.get(job_id).map(|number| &self.jobs[*number as usize])
    }

    fn admit(&mut self, event: Published) {
        let before = event.job.as_ref().and_then(|job| self.jobs.get(job.number as usize)).map(|entry| entry.job.state);
        self.tally.count(before, &event);
        event.pruned.iter().for_each(|number| self.pruned.note(*number, event.seq));
        self.note(event.seq, event.hash, event.job.as_ref());
        self.recent_bytes += event.bytes.len();
        self.recent.push_back(event);
        while self.recent.len() > RECENT_EVENTS_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let Some(old) = self.recent.pop_front() else { break };
            self.recent_bytes -= old.bytes.len();
        }
    }

    fn note(&mut self, seq: u64, hash: Hash, job: Option<&Arc<Job>>) {
        assert_eq!(seq, self.head.0 + 1, "events are published in order, each once");
        self.head = (seq, hash);
        let Some(job) = job else { return };
        self.by_state[job.state as usize] += 1;
        if job.number as usize == self.jobs.len() {
            self.numbers.insert(job.job_id.clone(), job.number);
            self.jobs.push(Entry { job: job.clone(), seqs: Seqs::default() });
            self.link(job);
        } else {
            let entry = &mut self.jobs[job.number as usize];
            self.by_state[entry.job.state as usize] -= 1;
            entry.job = job.clone();
        }
        self.jobs[job.number as usize].seqs.push(seq);
    }
}
