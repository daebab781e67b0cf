//! Group commit: callers stage records; whoever waits first writes for all who staged, and tells them when it is durable.
//!
//! While one frame is being synced the next one gathers. A lone caller writes its frame itself, with no thread to wake;
//! under load the commit thread takes over. The first I/O error latches: every waiter and every later append gets it,
//! nothing is retried, and the agent ends (a failed `fdatasync` may have dropped the pages it could not write). A full disk
//! cannot fail a commit, since segments are allocated ahead; it only holds up the preparation of the next one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::AbortOnPanic;
use super::commit::{Committer, StagedFrame, frame_body_max};
use super::frame::{BLOCK, Digest, RECORD_HEADER, push_record, segment_name};
use super::meters::Meters;
use super::prepare::Preparation;
use super::reader::Reader;
use super::recovery::{Reading, Scan, ScanError, Visit, io_error, recover_parsed};
use super::segments::WITNESS;
use super::storage::Storage;
use super::waiters::{FEW, Waiters};
use crate::sys::block::AlignedBuf;

/// The longest record, in bytes; it fits into the smallest segment that [`Options`] allows.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// The smallest `segment_size` that takes every record.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// The first segment of a log, in bytes: small, because zeros take time and an agent should listen at once.
pub const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// A log that was idle for so long marks its end.
const MARK_AFTER: Duration = Duration::from_millis(100);
/// [`FEW`] callers are waited for before the next frame, since one sync for all of them is cheaper than two. More of them
/// keep the disk busy in two halves, one staging while the other's frame is written. Few callers have this part of the last frame's I/O time to stage again …
const GATHER_FRACTION: u32 = 2;
/// … and no more than this, however slow the disk.
const GATHER_MAX: Duration = Duration::from_micros(200);

/// Sizes and times.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of a full-grown segment, a multiple of the block size.
    pub segment_size: u64,
    /// Bytes of a log's first segment, and of one that recovery opens.
    pub first_segment_size: u64,
    /// After so much idleness, and when it is closed, the log writes a frame without records, a *mark*: damage to the frame
    /// before it is then corruption, and cannot be taken for a torn tail. `None`: never.
    pub mark_after: Option<Duration>,
}

impl Options {
    /// `segment_size` bytes, beginning small.
    pub fn new(segment_size: u64) -> Self {
        Self { segment_size, first_segment_size: FIRST_SEGMENT_BYTES.min(segment_size), mark_after: Some(MARK_AFTER) }
    }
}

/// The log takes no more records: an I/O error, told to everyone from then on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Latched(pub Arc<str>);

impl fmt::Display for Latched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the ledger cannot be written: {}", self.0)
    }
}

impl std::error::Error for Latched {}

/// What is told after each frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every record below this seq is durable.
    DurableBelow(u64),
    /// Nothing more will become durable.
    Failed(Latched),
}

/// Called in order, by whichever thread wrote.
pub type OnOutcome = Box<dyn FnMut(Outcome) + Send>;

/// An open log.
pub struct Wal {
    shared: Arc<Shared>,
    commit_thread: Option<JoinHandle<()>>,
    prepare_thread: Option<JoinHandle<()>>,
}

struct Shared {
    options: Options,
    reader: Arc<Reader>,
    meters: Arc<Meters>,
    staging: Mutex<Staging>,
    /// Where the commit thread sleeps.
    work: Condvar,
    /// The right to write. Whoever gives it up looks at the staging afterwards: others may have staged, found it taken, and
    /// gone to sleep.
    tail: Mutex<Tail>,
    /// Records that are staged and in no frame on its way to the disk.
    staged_records: AtomicU64,
    /// Every record below this seq is durable.
    durable_below: AtomicU64,
    failed: AtomicBool,
    waiters: Waiters,
    preparation: Preparation,
    /// The writer waits for the next segment.
    stuck: AtomicBool,
    /// The last frame has records, and nothing stands behind it. Whoever writes sets it.
    unmarked: AtomicBool,
}

struct Staging {
    frames: VecDeque<StagedFrame>,
    next_seq: u64,
    head_hash: Digest,
    latched: Option<Latched>,
    stopping: bool,
    /// The commit thread has something to do.
    called: bool,
    /// It sleeps, and with no time set.
    asleep: bool,
    /// Emptied bodies, kept for their capacity.
    spare: Vec<Vec<u8>>,
}

struct Tail {
    committer: Committer,
    on_outcome: OnOutcome,
    last: Last,
}

/// The last frame, as far as the next one depends on it.
struct Last {
    /// Its records, and those that were staged when it was durable: so many may be staged soon.
    expected: u64,
    /// What writing and syncing it took.
    io_time: Duration,
    /// When it was durable.
    at: Instant,
}

impl Wal {
    /// Recovers the log behind `storage`, or creates it, and starts its threads. `visit` sees every record.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: Options,
        visit: &mut Visit<'_>,
        on_outcome: OnOutcome,
    ) -> Result<(Self, Scan), ScanError> {
        let reading = Reading { parse: &|_| (), visit: &mut |record, ()| visit(record) };
        Self::open_parsed(storage, options, reading, on_outcome)
    }

    /// The same, parsing the records on all cores.
    pub fn open_parsed<T: Send>(
        storage: Arc<dyn Storage>,
        options: Options,
        reading: Reading<'_, T>,
        on_outcome: OnOutcome,
    ) -> Result<(Self, Scan), ScanError> {
        let scan = recover_parsed(&*storage, options.first_segment_size, reading)?;
        let position = scan.position.clone();
        let open = |name: &str| storage.open(name).map_err(io_error(format!("opening {}", storage.describe(name))));
        let file = open(&segment_name(position.segno))?;
        let witness = open(WITNESS)?;
        let reader = Arc::new(Reader::new(storage.clone(), scan.index.clone()));
        let meters = Arc::new(Meters::default());
        meters.segments.store(position.segno, Ordering::Relaxed);
        let staging = Staging {
            frames: VecDeque::new(),
            next_seq: position.next_seq,
            head_hash: position.head_hash,
            latched: None,
            stopping: false,
            called: false,
            asleep: false,
            spare: Vec::new(),
        };
        let durable_below = AtomicU64::new(position.next_seq);
        let committer = Committer {
            storage: storage.clone(),
            reader: reader.clone(),
            meters: meters.clone(),
            segment_size: options.segment_size,
            marks: options.mark_after.is_some(),
            position,
            file,
            witness,
            buf: AlignedBuf::new(BLOCK),
            unmarked: false,
        };
        let last = Last { expected: 0, io_time: Duration::ZERO, at: Instant::now() };
        let shared = Arc::new(Shared {
            options,
            reader,
            meters,
            staging: Mutex::new(staging),
            work: Condvar::new(),
            tail: Mutex::new(Tail { committer, on_outcome, last }),
            staged_records: AtomicU64::new(0),
            durable_below,
            failed: AtomicBool::new(false),
            waiters: Waiters::default(),
            preparation: Preparation::default(),
            stuck: AtomicBool::new(false),
            unmarked: AtomicBool::new(false),
        });
        // Dropping it ends the threads that were started.
        let mut wal = Self { shared: shared.clone(), commit_thread: None, prepare_thread: None };
        let start = |name: &str, work: Box<dyn FnOnce(&Shared) + Send>| {
            let shared = shared.clone();
            thread::Builder::new()
                .name(name.into())
                .stack_size(256 << 10)
                .spawn(move || work(&shared))
                .map_err(io_error("starting the log's threads"))
        };
        wal.commit_thread = Some(start("wal-commit", Box::new(Shared::run_commit_thread))?);
        wal.prepare_thread = Some(start(
            "wal-prepare",
            Box::new(move |shared| shared.preparation.run(&*storage, &shared.meters.out_of_space)),
        )?);
        Ok((wal, scan))
    }

    /// Stages one record; see [`Wal::append_all`].
    pub fn append(&self, write: impl FnOnce(u64, &Digest, &mut Vec<u8>)) -> Result<(u64, Digest), Latched> {
        let mut write = Some(write);
        let mut staged = (0, [0; 32]);
        self.append_all(
            1,
            |_, seq, prev, body| {
                if let Some(write) = write.take() {
                    write(seq, prev, body);
                }
            },
            |seq, hash| staged = (seq, hash),
        )?;
        Ok(staged)
    }

    /// Stages `count` records that become durable together or not at all (they share a frame), once somebody waits for them
    /// or calls [`Wal::flush`]. `write` gets each one's index, its seq and the hash of the record before it, and adds its
    /// bytes: at least one, all of them together at most [`RECORD_BYTES_MAX`]. `staged` is told each one's seq and SHA-256.
    /// Nothing may be told of them before they are durable.
    pub fn append_all(
        &self,
        count: usize,
        mut write: impl FnMut(usize, u64, &Digest, &mut Vec<u8>),
        mut staged: impl FnMut(u64, Digest),
    ) -> Result<(), Latched> {
        if count == 0 {
            return Ok(());
        }
        // Half a record must not be committed by whoever comes next.
        let _guard = AbortOnPanic;
        let mut staging = self.shared.staging();
        if let Some(latched) = &staging.latched {
            return Err(latched.clone());
        }
        let staging = &mut *staging;
        let (first_seq, prev_hash) = (staging.next_seq, staging.head_hash);
        if staging.frames.is_empty() {
            let body = staging.spare.pop().unwrap_or_default();
            let staged = Instant::now();
            let frame = StagedFrame { first_seq, prev_hash, head_hash: prev_hash, records: 0, staged, body };
            staging.frames.push_back(frame);
        }
        let frame = staging.frames.back_mut().expect("one was pushed");
        let before = (frame.body.len(), frame.records, frame.head_hash);
        for index in 0..count {
            let seq = staging.next_seq;
            let range = push_record(&mut frame.body, |body| write(index, seq, &staging.head_hash, body));
            let hash: Digest = Sha256::digest(&frame.body[range]).into();
            frame.records += 1;
            frame.head_hash = hash;
            staging.next_seq += 1;
            staging.head_hash = hash;
            staged(seq, hash);
        }
        let added = frame.body.len() - before.0;
        assert!(added <= RECORD_BYTES_MAX + count * RECORD_HEADER, "{added} bytes at once; the caller bounds them");
        if frame.body.len() > frame_body_max(&self.shared.options) && before.0 > 0 {
            // It was too much for this frame: the next one starts with these records.
            let body = frame.body.split_off(before.0);
            let records = frame.records - before.1;
            let head_hash = frame.head_hash;
            (frame.records, frame.head_hash) = (before.1, before.2);
            let staged = Instant::now();
            staging.frames.push_back(StagedFrame { first_seq, prev_hash, head_hash, records, staged, body });
        }
        self.shared.staged_records.fetch_add(count as u64, Ordering::Release);
        Ok(())
    }

    /// Has what is staged committed by the commit thread, for those who do not wait.
    pub fn flush(&self) {
        self.shared.call_commit_thread(&mut self.shared.staging());
    }

    /// Blocks until the record with this seq, which was staged, is durable or never will be. Where nobody else writes, this
    /// thread does.
    pub fn wait(&self, seq: u64) -> Result<(), Latched> {
        let shared = &*self.shared;
        let mut waiter = None;
        let outcome = loop {
            if shared.durable_below.load(Ordering::Acquire) > seq {
                break Ok(());
            }
            if shared.failed.load(Ordering::Acquire) {
                // What became durable before the failure still counts.
                if shared.durable_below.load(Ordering::Acquire) > seq {
                    break Ok(());
                }
                break Err(shared.staging().latched.clone().expect("set before `failed`"));
            }
            match shared.tail.try_lock() {
                Ok(mut tail) => {
                    let _guard = AbortOnPanic;
                    shared.commit_staged(&mut tail, Some(seq));
                    drop(tail);
                    shared.after_writing();
                }
                Err(TryLockError::Poisoned(_)) => unreachable!("a panic while writing aborts"),
                Err(TryLockError::WouldBlock) if waiter.is_some() => thread::park(),
                Err(TryLockError::WouldBlock) => waiter = Some(shared.waiters.enter(seq)),
            }
        };
        if let Some(waiter) = waiter {
            shared.waiters.leave(&waiter);
        }
        outcome
    }

    /// Seq of the next record and hash of the last staged one.
    pub fn staged_head(&self) -> (u64, Digest) {
        let staging = self.shared.staging();
        (staging.next_seq, staging.head_hash)
    }

    /// `Some(reason)` while the disk is too full to prepare the next segment: take no new work. It heals by itself.
    pub fn out_of_space(&self) -> Option<String> {
        self.shared.preparation.out_of_space()
    }

    /// Whether nothing at all becomes durable until the disk has space again.
    pub fn is_stuck(&self) -> bool {
        self.shared.stuck.load(Ordering::Relaxed) && self.out_of_space().is_some()
    }

    /// What it has done since it was opened.
    pub fn meters(&self) -> Arc<Meters> {
        self.shared.meters.clone()
    }

    /// For look-ups.
    pub fn reader(&self) -> Arc<Reader> {
        self.shared.reader.clone()
    }

    /// Commits what is staged and ends the threads. On a full disk what does not fit is given up; nobody was told of it.
    pub fn close(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.shared.staging().stopping = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.commit_thread.take() {
            let _ = thread.join();
        }
        self.shared.preparation.close();
        if let Some(thread) = self.prepare_thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// What the commit thread was woken for.
enum Task {
    Commit,
    /// If the log is still idle: nothing is durable from this seq on.
    Mark(u64),
    Stop,
}

impl Shared {
    fn run_commit_thread(&self) {
        let _guard = AbortOnPanic;
        loop {
            let task = self.next_task();
            let mut tail = self.tail();
            match task {
                Task::Commit => self.commit_staged(&mut tail, None),
                Task::Mark(seen) if seen == self.durable_below.load(Ordering::Relaxed) => self.mark(&mut tail),
                Task::Mark(_) => {}
                Task::Stop => {
                    self.commit_staged(&mut tail, None);
                    if self.options.mark_after.is_some() {
                        self.mark(&mut tail);
                    }
                    return;
                }
            }
            drop(tail);
            self.after_writing();
        }
    }

    fn next_task(&self) -> Task {
        let mut staging = self.staging();
        let mut idle_since = None;
        loop {
            if std::mem::take(&mut staging.called) {
                return Task::Commit;
            }
            if staging.stopping {
                return Task::Stop;
            }
            let seen = self.durable_below.load(Ordering::Relaxed);
            let pause =
                self.options.mark_after.filter(|_| staging.latched.is_none() && self.unmarked.load(Ordering::Relaxed));
            staging = match pause {
                Some(_) if idle_since == Some(seen) => return Task::Mark(seen),
                Some(pause) => {
                    let (staging, waited) =
                        self.work.wait_timeout(staging, pause).unwrap_or_else(PoisonError::into_inner);
                    idle_since = waited.timed_out().then_some(seen);
                    staging
                }
                None => {
                    staging.asleep = true;
                    let mut staging = self.work.wait(staging).unwrap_or_else(PoisonError::into_inner);
                    staging.asleep = false;
                    staging
                }
            };
        }
    }

    /// Commits what is staged, until there is nothing more or `upto` is durable.
    fn commit_staged(&self, tail: &mut Tail, upto: Option<u64>) {
        let enough = || upto.is_some_and(|seq| self.durable_below.load(Ordering::Relaxed) > seq);
        while self.staged_records.load(Ordering::Acquire) > 0 && !enough() {
            self.gather(&tail.last);
            let Some(mut frame) = self.take_frame() else { return };
            let began = Instant::now();
            let stopping = || self.staging().stopping;
            if let Err(reason) = tail.committer.commit(&frame, &self.preparation, &self.stuck, stopping) {
                self.latch(tail, &reason);
                return;
            }
            self.unmarked.store(true, Ordering::Relaxed);
            let at = Instant::now();
            self.meters.commit.observe(at - frame.staged);
            let expected = u64::from(frame.records) + self.staged_records.load(Ordering::Acquire);
            tail.last = Last { expected, io_time: at - began, at };
            self.announce(tail);
            frame.body.clear();
            let mut staging = self.staging();
            if staging.spare.len() < 4 {
                staging.spare.push(frame.body);
            }
            drop(staging);
        }
    }

    /// Lets few callers, who were just told of the last frame, stage again.
    fn gather(&self, last: &Last) {
        if !(2..=FEW as u64).contains(&last.expected) {
            return;
        }
        let limit = (last.io_time / GATHER_FRACTION).min(GATHER_MAX);
        while self.staged_records.load(Ordering::Acquire) < last.expected && last.at.elapsed() < limit {
            thread::yield_now();
        }
    }

    fn take_frame(&self) -> Option<StagedFrame> {
        let frame = self.staging().frames.pop_front()?;
        self.staged_records.fetch_sub(u64::from(frame.records), Ordering::Release);
        Some(frame)
    }

    fn mark(&self, tail: &mut Tail) {
        if self.failed.load(Ordering::Acquire) {
            return;
        }
        match tail.committer.mark() {
            Ok(()) => self.unmarked.store(false, Ordering::Relaxed),
            Err(reason) => self.latch(tail, &reason),
        }
    }

    /// To be called by whoever gave up the right to write.
    fn after_writing(&self) {
        let mut staging = self.staging();
        // The second: it sleeps without a time set, and now there is a mark due.
        if !staging.frames.is_empty() {
            self.call_commit_thread(&mut staging);
        } else if staging.asleep && self.options.mark_after.is_some() {
            staging.asleep = false;
            self.work.notify_one();
        }
    }

    fn call_commit_thread(&self, staging: &mut Staging) {
        if !staging.called {
            staging.called = true;
            self.work.notify_one();
        }
    }

    fn announce(&self, tail: &mut Tail) {
        let below = tail.committer.position.next_seq;
        self.durable_below.store(below, Ordering::Release);
        (tail.on_outcome)(Outcome::DurableBelow(below));
        self.waiters.durable_below(below);
    }

    fn latch(&self, tail: &mut Tail, reason: &str) {
        let latched = Latched(reason.into());
        let mut staging = self.staging();
        staging.latched = Some(latched.clone());
        staging.frames.clear();
        drop(staging);
        self.failed.store(true, Ordering::Release);
        self.waiters.wake_all();
        (tail.on_outcome)(Outcome::Failed(latched));
    }

    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const _: () =
    assert!(SEGMENT_BYTES_MIN as usize > RECORD_BYTES_MAX + RECORD_BYTES_MAX / 32 + 5 * BLOCK + RECORD_HEADER);
