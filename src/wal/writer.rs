//! Group commit: callers stage records, one thread writes frame after frame, and tells when they are durable.
//!
//! While one frame is being synced the next one gathers. The first I/O error latches: every waiter and every later append
//! gets it, nothing is retried, and the agent ends (a failed `fdatasync` may have dropped the pages it could not write).
//! A full disk cannot fail a commit, since segments are allocated ahead; it only holds up the preparation of the next one.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::AbortOnPanic;
use super::frame::{
    BLOCK, Digest, FRAME_BLOCKS_MAX, FrameHeader, RECORD_HEADER, SEGMENT_DATA_START, body_capacity, encode_frame,
    frame_blocks, push_record, segment_name,
};
use super::reader::Reader;
use super::recovery::{Scan, ScanError, Visit, recover};
use super::segments::{self, Position, WITNESS, Witness};
use super::storage::{BlockFile, Storage};
use crate::sys::block::{AlignedBuf, is_shortage};

/// The longest record, in bytes; it fits into the smallest segment that [`Options`] allows.
pub const RECORD_BYTES_MAX: usize = 2 << 20;
/// The smallest `segment_size` that takes every record.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// The first segment of a log, in bytes: small, because zeros take time and an agent should listen at once.
pub const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Each segment is this many times its predecessor, until the full size is reached.
const SEGMENT_GROWTH: u64 = 4;
/// The next segment is prepared once this part of the current one is used.
const PREPARE_AT_FRACTION: u64 = 16;
/// How long to wait before trying again to prepare a segment on a full disk.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Sizes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of a full-grown segment, a multiple of the block size.
    pub segment_size: u64,
    /// Bytes of a log's first segment, and of one that recovery opens.
    pub first_segment_size: u64,
}

impl Options {
    /// `segment_size` bytes, beginning small.
    pub fn new(segment_size: u64) -> Self {
        Self { segment_size, first_segment_size: FIRST_SEGMENT_BYTES.min(segment_size) }
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

/// What the commit thread tells after each frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every record below this seq is durable.
    DurableBelow(u64),
    /// Nothing more will become durable.
    Failed(Latched),
}

/// Called by the commit thread, in order.
pub type OnOutcome = Box<dyn FnMut(Outcome) + Send>;

/// An open log.
pub struct Wal {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    storage: Arc<dyn Storage>,
    options: Options,
    reader: Arc<Reader>,
    staging: Mutex<Staging>,
    staged: Condvar,
    /// Every record below this seq is durable. Written by the commit thread only.
    durable_below: AtomicU64,
    failed: AtomicBool,
    /// Threads in [`Wal::wait`], each with the seq it waits for. They are unparked one by one: a broadcast on a condition
    /// variable would send all of them through one mutex.
    waiters: Mutex<Vec<(u64, Thread)>>,
    next_segment: Mutex<NextSegment>,
    next_segment_changed: Condvar,
    /// The commit thread waits for space: nothing becomes durable until there is some.
    stuck: AtomicBool,
}

struct Staging {
    frames: VecDeque<StagedFrame>,
    next_seq: u64,
    head_hash: Digest,
    latched: Option<Latched>,
    stopping: bool,
    /// Emptied bodies, kept for their capacity.
    spare: Vec<Vec<u8>>,
}

struct StagedFrame {
    first_seq: u64,
    prev_hash: Digest,
    head_hash: Digest,
    records: u32,
    body: Vec<u8>,
}

enum NextSegment {
    /// Not needed yet.
    Idle,
    /// The preparing thread is, or should be, at it.
    Wanted { segno: u64, size: u64 },
    /// The disk is full; it will be tried again.
    Full { segno: u64, size: u64, reason: String },
    /// Zeroed and synced, under its temporary name.
    Ready { size: u64, file: Arc<dyn BlockFile> },
    /// It failed for another reason.
    Failed(String),
    /// The log is being closed.
    Closed,
}

impl Wal {
    /// Recovers the log behind `storage`, or creates it, and starts its threads. `visit` sees every record.
    pub fn open(
        storage: Arc<dyn Storage>,
        options: Options,
        visit: &mut Visit<'_>,
        on_outcome: OnOutcome,
    ) -> Result<(Self, Scan), ScanError> {
        let scan = recover(&*storage, options.first_segment_size, visit)?;
        let position = scan.position.clone();
        let name = segment_name(position.segno);
        let file =
            storage.open(&name).map_err(super::recovery::io_error(format!("opening {}", storage.describe(&name))))?;
        let reader = Arc::new(Reader::new(storage.clone(), scan.index.clone()));
        let shared = Arc::new(Shared {
            storage,
            options,
            reader,
            staging: Mutex::new(Staging {
                frames: VecDeque::new(),
                next_seq: position.next_seq,
                head_hash: position.head_hash,
                latched: None,
                stopping: false,
                spare: Vec::new(),
            }),
            staged: Condvar::new(),
            durable_below: AtomicU64::new(position.next_seq),
            failed: AtomicBool::new(false),
            waiters: Mutex::default(),
            next_segment: Mutex::new(NextSegment::Idle),
            next_segment_changed: Condvar::new(),
            stuck: AtomicBool::new(false),
        });
        let witness = storage_witness(&*shared.storage)?;
        let committer =
            Committer { shared: shared.clone(), position, file, witness, buf: AlignedBuf::new(BLOCK), on_outcome };
        let preparing = shared.clone();
        let spawn_error = |error| ScanError::Io { what: "starting the log's threads".into(), error };
        let threads = vec![
            thread::Builder::new().name("wal-commit".into()).spawn(move || committer.run()).map_err(spawn_error)?,
            thread::Builder::new()
                .name("wal-prepare".into())
                .stack_size(128 << 10)
                .spawn(move || preparing.prepare_segments())
                .map_err(spawn_error)?,
        ];
        Ok((Self { shared, threads }, scan))
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

    /// Stages `count` records that become durable together or not at all (they share a frame). `write` gets each one's
    /// index, its seq and the hash of the record before it, and adds its bytes: at least one, all of them together at most
    /// [`RECORD_BYTES_MAX`]. `staged` is told each one's seq and SHA-256. Nothing may be told of them before they are durable.
    pub fn append_all(
        &self,
        count: usize,
        mut write: impl FnMut(usize, u64, &Digest, &mut Vec<u8>),
        mut staged: impl FnMut(u64, Digest),
    ) -> Result<(), Latched> {
        let mut staging = self.shared.staging();
        if let Some(latched) = &staging.latched {
            return Err(latched.clone());
        }
        let staging = &mut *staging;
        let (first_seq, prev_hash) = (staging.next_seq, staging.head_hash);
        if staging.frames.is_empty() {
            let body = staging.spare.pop().unwrap_or_default();
            staging.frames.push_back(StagedFrame { first_seq, prev_hash, head_hash: prev_hash, records: 0, body });
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
        if frame.body.len() > self.shared.frame_body_max() && before.0 > 0 {
            // It was too much for this frame: the next one starts with these records.
            let body = frame.body.split_off(before.0);
            let records = frame.records - before.1;
            let head_hash = frame.head_hash;
            (frame.records, frame.head_hash) = (before.1, before.2);
            staging.frames.push_back(StagedFrame { first_seq, prev_hash, head_hash, records, body });
        }
        self.shared.staged.notify_one();
        Ok(())
    }

    /// Blocks until the record with this seq is durable, or never will be.
    pub fn wait(&self, seq: u64) -> Result<(), Latched> {
        let shared = &*self.shared;
        let mut registered = false;
        loop {
            if shared.durable_below.load(Ordering::Acquire) > seq {
                return Ok(());
            }
            if shared.failed.load(Ordering::Acquire) {
                // What became durable before the failure still counts.
                if shared.durable_below.load(Ordering::Acquire) > seq {
                    return Ok(());
                }
                return Err(shared.staging().latched.clone().expect("set before `failed`"));
            }
            if registered {
                thread::park();
            } else {
                shared.waiters().push((seq, thread::current()));
                registered = true;
            }
        }
    }

    /// Seq of the next record and hash of the last staged one.
    pub fn staged_head(&self) -> (u64, Digest) {
        let staging = self.shared.staging();
        (staging.next_seq, staging.head_hash)
    }

    /// `Some(reason)` while the disk is too full to prepare the next segment: take no new work. It heals by itself.
    pub fn out_of_space(&self) -> Option<String> {
        match &*self.shared.next_segment() {
            NextSegment::Full { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Whether nothing at all becomes durable until the disk has space again.
    pub fn is_stuck(&self) -> bool {
        self.shared.stuck.load(Ordering::Relaxed)
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
        self.shared.staged.notify_all();
        let mut threads = std::mem::take(&mut self.threads).into_iter();
        if let Some(committer) = threads.next() {
            let _ = committer.join();
        }
        *self.shared.next_segment() = NextSegment::Closed;
        self.shared.next_segment_changed.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Vec<(u64, Thread)>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_segment(&self) -> MutexGuard<'_, NextSegment> {
        self.next_segment.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn frame_body_max(&self) -> usize {
        let smallest = self.options.first_segment_size.min(self.options.segment_size) - SEGMENT_DATA_START;
        body_capacity(FRAME_BLOCKS_MAX.min(smallest as usize / BLOCK))
    }

    fn latch(&self, reason: &str) -> Latched {
        let latched = Latched(reason.into());
        let mut staging = self.staging();
        staging.latched = Some(latched.clone());
        staging.frames.clear();
        drop(staging);
        self.failed.store(true, Ordering::Release);
        for (_, thread) in self.waiters().drain(..) {
            thread.unpark();
        }
        latched
    }

    fn want_segment(&self, segno: u64, size: u64) {
        let mut next = self.next_segment();
        if matches!(*next, NextSegment::Idle) {
            *next = NextSegment::Wanted { segno, size };
            self.next_segment_changed.notify_all();
        }
    }

    /// The preparing thread.
    fn prepare_segments(&self) {
        let _guard = AbortOnPanic;
        let mut next = self.next_segment();
        loop {
            next = match &*next {
                NextSegment::Closed => return,
                NextSegment::Wanted { segno, size } | NextSegment::Full { segno, size, .. } => {
                    let (segno, size) = (*segno, *size);
                    let was_full = matches!(*next, NextSegment::Full { .. });
                    drop(next);
                    let outcome = segments::prepare_zeroed(&*self.storage, &segment_name(segno), size);
                    next = self.next_segment();
                    if matches!(*next, NextSegment::Closed) {
                        return;
                    }
                    let full = self.prepared(outcome, segno, size, was_full, &mut next);
                    self.next_segment_changed.notify_all();
                    if full { self.wait_for(next, FULL_RETRY) } else { next }
                }
                _ => self.next_segment_changed.wait(next).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn prepared(
        &self,
        outcome: io::Result<Arc<dyn BlockFile>>,
        segno: u64,
        size: u64,
        was_full: bool,
        next: &mut NextSegment,
    ) -> bool {
        *next = match outcome {
            Ok(file) => {
                if was_full {
                    log::warn!("ledger: there is space again; segment {segno} is ready");
                }
                NextSegment::Ready { size, file }
            }
            Err(error) if disk_is_full(&error) => {
                let reason = format!("no space for the next ledger segment of {size} bytes: {error}");
                if !was_full {
                    log::error!("ledger: {reason}; new submissions are refused until there is space");
                }
                NextSegment::Full { segno, size, reason }
            }
            Err(error) => {
                log::error!("ledger: preparing segment {segno}: {error}; the ledger ends when the present one is full");
                NextSegment::Failed(format!("preparing segment {segno}: {error}"))
            }
        };
        matches!(next, NextSegment::Full { .. })
    }

    fn wait_for<'g>(&self, next: MutexGuard<'g, NextSegment>, time: Duration) -> MutexGuard<'g, NextSegment> {
        self.next_segment_changed.wait_timeout(next, time).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for the prepared segment. An error ends the log; while the disk is full it waits, unless the log is closing.
    fn take_segment(&self) -> Result<(u64, Arc<dyn BlockFile>), String> {
        let mut next = self.next_segment();
        loop {
            match std::mem::replace(&mut *next, NextSegment::Idle) {
                NextSegment::Ready { size, file } => return Ok((size, file)),
                NextSegment::Failed(reason) => return Err(reason),
                other => *next = other,
            }
            if let NextSegment::Full { reason, .. } = &*next {
                let reason = reason.clone();
                drop(next);
                if self.staging().stopping {
                    return Err(reason);
                }
                next = self.next_segment();
            }
            next = self.wait_for(next, FULL_RETRY);
        }
    }
}

/// A file system that fills up in the middle of a write may also say so by a short one. A shortage of descriptors or memory
/// passes, too, and nothing was lost by it.
fn disk_is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero)
        || is_shortage(error)
}

fn storage_witness(storage: &dyn Storage) -> Result<Arc<dyn BlockFile>, ScanError> {
    storage.open(WITNESS).map_err(super::recovery::io_error(format!("opening {}", storage.describe(WITNESS))))
}

/// The thread that owns the tail of the log.
struct Committer {
    shared: Arc<Shared>,
    position: Position,
    file: Arc<dyn BlockFile>,
    /// Held open: changing segments must not fail for want of a descriptor.
    witness: Arc<dyn BlockFile>,
    buf: AlignedBuf,
    on_outcome: OnOutcome,
}

impl Committer {
    fn run(mut self) {
        let _guard = AbortOnPanic;
        while let Some(mut frame) = self.next_frame() {
            match self.commit(&frame) {
                Ok(()) => self.announce(),
                Err(reason) => {
                    let latched = self.shared.latch(&reason);
                    (self.on_outcome)(Outcome::Failed(latched));
                    return;
                }
            }
            frame.body.clear();
            let mut staging = self.shared.staging();
            if staging.spare.len() < 4 {
                staging.spare.push(frame.body);
            }
        }
    }

    fn next_frame(&self) -> Option<StagedFrame> {
        let mut staging = self.shared.staging();
        loop {
            if let Some(frame) = staging.frames.pop_front() {
                return Some(frame);
            }
            if staging.stopping {
                return None;
            }
            staging = self.shared.staged.wait(staging).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn commit(&mut self, frame: &StagedFrame) -> Result<(), String> {
        let blocks = frame_blocks(frame.body.len());
        let len = blocks * BLOCK;
        if self.position.offset + len as u64 > self.position.size {
            self.change_segment()?;
            assert!(
                self.position.offset + len as u64 <= self.position.size,
                "a frame of {len} bytes fits into an empty segment of {} bytes",
                self.position.size
            );
        }
        assert_eq!(frame.first_seq, self.position.next_seq, "frames are written in the order they were staged");
        let header = FrameHeader {
            blocks: blocks as u32,
            body_len: frame.body.len() as u32,
            records: frame.records,
            salt: self.position.salt,
            commit: self.position.next_commit,
            first_seq: frame.first_seq,
            offset: self.position.offset,
            prev_hash: frame.prev_hash,
            head_hash: frame.head_hash,
        };
        self.buf.reserve(len);
        encode_frame(&header, &frame.body, &mut self.buf);
        let at = self.position.offset;
        let name = segment_name(self.position.segno);
        let fault = |what: &str, error: io::Error| format!("{what} {name} at {at}: {error}");
        self.file.write_at(&self.buf[..len], at).map_err(|e| fault("writing", e))?;
        self.file.sync().map_err(|e| fault("syncing", e))?;
        self.shared.reader.committed(self.position.segno, at, frame.first_seq);
        self.position.offset += len as u64;
        self.position.next_commit += 1;
        self.position.next_seq += u64::from(frame.records);
        self.position.head_hash = frame.head_hash;
        if self.position.offset >= self.position.size / PREPARE_AT_FRACTION {
            self.want_next();
        }
        Ok(())
    }

    fn want_next(&self) {
        // At least so much that every record fits, however small a segment recovery had to make do with.
        let size = (self.position.size * SEGMENT_GROWTH).max(SEGMENT_BYTES_MIN).min(self.shared.options.segment_size);
        self.shared.want_segment(self.position.segno + 1, size);
    }

    fn change_segment(&mut self) -> Result<(), String> {
        self.want_next();
        self.shared.stuck.store(true, Ordering::Relaxed);
        let taken = self.shared.take_segment();
        self.shared.stuck.store(false, Ordering::Relaxed);
        let (size, file) = taken?;
        let storage = &*self.shared.storage;
        let activate = || -> io::Result<Position> {
            let header = segments::successor_header(&self.position, size)?;
            segments::activate(storage, &*file, &header)?;
            Witness { log_id: header.log_id, last: header.segno }.update(&*self.witness)?;
            Ok(segments::position_at_start(&header))
        };
        self.position = activate().map_err(|e| format!("opening segment {}: {e}", self.position.segno + 1))?;
        self.file = file;
        Ok(())
    }

    fn announce(&mut self) {
        let below = self.position.next_seq;
        self.shared.durable_below.store(below, Ordering::Release);
        (self.on_outcome)(Outcome::DurableBelow(below));
        let mut waiters = self.shared.waiters();
        waiters.retain(|(seq, thread)| {
            let durable = *seq < below;
            if durable {
                thread.unpark();
            }
            !durable
        });
    }
}

const _: () =
    assert!(SEGMENT_BYTES_MIN as usize > RECORD_BYTES_MAX + RECORD_BYTES_MAX / 32 + 4 * BLOCK + RECORD_HEADER);
