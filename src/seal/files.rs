//! Hashing files: one after the other, or by several threads where there is enough to do.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded, unbounded};
use sha2::{Digest, Sha256};

use super::tree::Progress;
use crate::hash::Hash;
use crate::sys::dir::{Dir, FileType, Stat, stat_file};

/// How much is read at once, in bytes: it stays in a core's own cache.
const CHUNK_BYTES: usize = 256 << 10;
/// Most threads that hash one tree.
const THREADS_MAX: usize = 16;
/// Files, their bytes, and directories up to which no thread is started: hashing takes no longer than that would.
const ALONE: (usize, u64, usize) = (128, 2 << 20, 32);
/// Files of one directory, and their bytes, that are handed out together.
const BATCH: (usize, u64) = (64, 1 << 20);
/// How often progress is told while threads are waited for.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Older kernels stamp files once a tick, of at most 10 ms: of two changes in one tick, the second leaves no trace.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// Who is told how far it is, and says whether to go on.
pub(super) type Tell<'a> = &'a dyn Fn(Progress) -> ControlFlow<()>;

/// Files of one directory.
pub(super) struct Batch {
    dir: Arc<Dir>,
    files: Vec<ToHash>,
    bytes: u64,
}

struct ToHash {
    index: usize,
    name: OsString,
    listed: Stat,
}

impl Batch {
    pub(super) fn new(dir: &Arc<Dir>) -> Self {
        Self { dir: dir.clone(), files: Vec::new(), bytes: 0 }
    }

    /// Adds the file that has this place among the entries.
    pub(super) fn push(&mut self, index: usize, name: OsString, listed: Stat) {
        self.bytes = self.bytes.saturating_add(listed.size);
        self.files.push(ToHash { index, name, listed });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.files.len() >= BATCH.0 || self.bytes >= BATCH.1
    }
}

/// What became of the file that has this place among the entries.
pub(super) struct Outcome {
    pub(super) index: usize,
    pub(super) result: Result<(Stat, Hash), FileFault>,
}

/// Why a file has no digest.
#[derive(Debug)]
pub(super) enum FileFault {
    Changed,
    Stopped,
    Io(io::Error),
}

/// How far all of it is, and whether it is still wanted.
#[derive(Default)]
pub(super) struct Shared {
    files: AtomicU64,
    bytes: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    pub(super) fn progress(&self) -> Progress {
        // Files first: what they hold is among the bytes then.
        Progress { files: self.files.load(Ordering::Acquire), bytes: self.bytes.load(Ordering::Acquire) }
    }

    /// Ends the threads soon.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Takes files to hash, gives digests. Memory and descriptors are bounded, however much is handed in: who hands in waits.
pub(super) struct Hashers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    shared: &'env Shared,
    tell: Tell<'env>,
    threads_max: usize,
    threads: usize,
    /// None once nothing more comes.
    work: Option<Sender<Batch>>,
    takes: Receiver<Batch>,
    gives: Sender<Vec<Outcome>>,
    done: Receiver<Vec<Outcome>>,
    /// Batches that threads have not given back.
    out: usize,
    /// What was handed in before there were threads.
    waiting: Vec<Batch>,
    buffer: Vec<u8>,
}

impl<'scope, 'env> Hashers<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, shared: &'env Shared, tell: Tell<'env>) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads_max = if cores > 1 { cores.min(THREADS_MAX) } else { 0 };
        let (work, takes) = bounded(2 * threads_max);
        let (gives, done) = unbounded();
        Self {
            scope,
            shared,
            tell,
            threads_max,
            threads: 0,
            work: Some(work),
            takes,
            gives,
            done,
            out: 0,
            waiting: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Tells how far it is.
    pub(super) fn tell(&self) -> Result<(), FileFault> {
        go_on((self.tell)(self.shared.progress()))
    }

    /// Hands files in; what is done by now is added to `outcomes`.
    pub(super) fn hand_in(&mut self, batch: Batch, outcomes: &mut Vec<Outcome>) -> Result<(), FileFault> {
        self.waiting.push(batch);
        let files: usize = self.waiting.iter().map(|batch| batch.files.len()).sum();
        let bytes = self.waiting.iter().map(|batch| batch.bytes).fold(0, u64::saturating_add);
        if self.threads > 0 || files > ALONE.0 || bytes > ALONE.1 || self.waiting.len() > ALONE.2 {
            for batch in std::mem::take(&mut self.waiting) {
                self.hand_out(batch, outcomes)?;
            }
        }
        Ok(())
    }

    /// Waits until all is done.
    pub(super) fn finish(&mut self, outcomes: &mut Vec<Outcome>) -> Result<(), FileFault> {
        for batch in std::mem::take(&mut self.waiting) {
            self.hash_here(&batch, outcomes)?;
        }
        self.work = None;
        while self.out > 0 {
            match self.done.recv_timeout(TELL_EVERY) {
                Ok(some) => self.take_back(some, outcomes)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this holds a sender"),
            }
            self.tell()?;
        }
        Ok(())
    }

    fn hand_out(&mut self, batch: Batch, outcomes: &mut Vec<Outcome>) -> Result<(), FileFault> {
        if self.threads < self.threads_max && self.start() {
            self.threads += 1;
        }
        let Some(work) = self.work.as_ref().filter(|_| self.threads > 0) else {
            return self.hash_here(&batch, outcomes);
        };
        let (work, mut batch) = (work.clone(), batch);
        while let Err(error) = work.send_timeout(batch, TELL_EVERY) {
            let (SendTimeoutError::Timeout(back) | SendTimeoutError::Disconnected(back)) = error;
            batch = back;
            self.tell()?;
        }
        self.out += 1;
        let some: Vec<_> = self.done.try_iter().collect();
        some.into_iter().try_for_each(|some| self.take_back(some, outcomes))?;
        self.tell()
    }

    /// Nothing more is done after a fault: it is the last of the outcomes then.
    fn take_back(&mut self, some: Vec<Outcome>, outcomes: &mut Vec<Outcome>) -> Result<(), FileFault> {
        self.out -= 1;
        outcomes.extend(some);
        unless_failed(outcomes)
    }

    fn hash_here(&mut self, batch: &Batch, outcomes: &mut Vec<Outcome>) -> Result<(), FileFault> {
        self.buffer.resize(CHUNK_BYTES, 0);
        let (shared, tell) = (self.shared, self.tell);
        hash_batch(batch, &mut self.buffer, shared, &|| tell(shared.progress()), outcomes);
        unless_failed(outcomes)
    }

    /// Whether there is one more thread.
    fn start(&self) -> bool {
        let (takes, gives, shared) = (self.takes.clone(), self.gives.clone(), self.shared);
        let run = move || {
            // A panic would leave whoever waits for this batch waiting for ever.
            let _guard = crate::sys::AbortOnPanic;
            let mut buffer = vec![0; CHUNK_BYTES];
            let is_wanted = || match shared.stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            while let Ok(batch) = takes.recv() {
                let mut outcomes = Vec::with_capacity(batch.files.len());
                hash_batch(&batch, &mut buffer, shared, &is_wanted, &mut outcomes);
                if gives.send(outcomes).is_err() {
                    return;
                }
            }
        };
        let started = thread::Builder::new().name("hash".into()).stack_size(128 << 10).spawn_scoped(self.scope, run);
        // Where the host has no thread to give, those that there are have more to do.
        started.inspect_err(|error| log::debug!("one thread less hashes: {error}")).is_ok()
    }
}

fn unless_failed(outcomes: &[Outcome]) -> Result<(), FileFault> {
    if outcomes.last().is_some_and(|last| last.result.is_err()) { Err(FileFault::Stopped) } else { Ok(()) }
}

/// Hashes one file after the other, up to the first fault.
fn hash_batch(
    batch: &Batch,
    buffer: &mut [u8],
    shared: &Shared,
    is_wanted: &dyn Fn() -> ControlFlow<()>,
    outcomes: &mut Vec<Outcome>,
) {
    for file in &batch.files {
        let result = hash_file(&batch.dir, file, buffer, shared, is_wanted);
        let failed = result.is_err();
        outcomes.push(Outcome { index: file.index, result });
        if failed {
            return;
        }
    }
}

fn hash_file(
    dir: &Dir,
    file: &ToHash,
    buffer: &mut [u8],
    shared: &Shared,
    is_wanted: &dyn Fn() -> ControlFlow<()>,
) -> Result<(Stat, Hash), FileFault> {
    let mut open = dir.open_child_file(&file.name).map_err(|error| {
        let is_there = dir.stat_child(&file.name).is_ok_and(|now| is_same_file(&now, &file.listed));
        if is_there { FileFault::Io(error) } else { FileFault::Changed }
    })?;
    let before = settled(&open)?;
    if !is_same_file(&before, &file.listed) {
        return Err(FileFault::Changed);
    }
    // No further than it should go: somebody may append to it as fast as it is read.
    let (size, hash) = digest_with(&mut (&mut open).take(before.size.saturating_add(1)), buffer, &mut |read| {
        shared.bytes.fetch_add(read as u64, Ordering::Release);
        go_on(is_wanted())
    })?;
    let after = stat_file(&open)?;
    // The second pass would find it as well, but that may be hours away.
    if !is_unchanged(&before, &after) || size != after.size {
        return Err(FileFault::Changed);
    }
    shared.files.fetch_add(1, Ordering::Release);
    go_on(is_wanted())?;
    Ok((before, hash))
}

/// What an open file is, once any further change must show in its times.
pub(super) fn settled(file: &File) -> Result<Stat, FileFault> {
    let stat = stat_file(file)?;
    match age(&stat) {
        Some(age) if age < TICK => thread::sleep(TICK.saturating_sub(age)),
        // Stamped by a clock that is ahead of ours: a change from now on has another time.
        _ => return Ok(stat),
    }
    if is_unchanged(&stat, &stat_file(file)?) { Ok(stat) } else { Err(FileFault::Changed) }
}

/// How long ago a file was changed; none where that is in the future.
pub(super) fn age(stat: &Stat) -> Option<Duration> {
    let (seconds, nanoseconds) = stat.changed;
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?);
    SystemTime::now().duration_since(UNIX_EPOCH.checked_add(since)?).ok()
}

/// Whether a file that was listed is what was opened; it may have been written since.
fn is_same_file(now: &Stat, listed: &Stat) -> bool {
    now.id == listed.id && now.file_type == FileType::Regular
}

/// Reading changes none of these; whatever writes, renames or sets attributes changes one.
pub(super) fn is_unchanged(before: &Stat, after: &Stat) -> bool {
    let key = |stat: &Stat| (stat.id, stat.file_type, stat.mode, stat.size, stat.modified, stat.changed);
    key(before) == key(after)
}

/// Length and SHA-256 of what `file` holds from its position on.
///
/// # Errors
/// What `read` gives.
pub fn digest(file: &mut impl Read) -> io::Result<(u64, Hash)> {
    digest_with(file, &mut vec![0; CHUNK_BYTES], &mut |_| Ok(()))
}

/// The same; `tell` hears how much was read after each read.
fn digest_with<E: From<io::Error>>(
    file: &mut impl Read,
    buffer: &mut [u8],
    tell: &mut dyn FnMut(usize) -> Result<(), E>,
) -> Result<(u64, Hash), E> {
    let mut hasher = Sha256::new();
    let mut total = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((total, Hash::finish(hasher))),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                total += read as u64;
                tell(read)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), FileFault> {
    match flow {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FileFault::Stopped),
    }
}

impl From<io::Error> for FileFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
