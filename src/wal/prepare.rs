//! The next segment, zeroed ahead of time by a thread of its own, so that only this meets a full disk.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::AbortOnPanic;
use super::frame::segment_name;
use super::segments;
use super::storage::{BlockFile, Storage};
use crate::sys::block::is_shortage;

/// How long to wait before trying again to prepare a segment on a full disk.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Hands prepared segments from the preparing thread to whoever commits.
#[derive(Default)]
pub(super) struct Preparation {
    next: Mutex<NextSegment>,
    changed: Condvar,
}

#[derive(Default)]
enum NextSegment {
    /// Not needed yet.
    #[default]
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

impl Preparation {
    /// Asks for the segment, unless one was asked for already.
    pub fn want(&self, segno: u64, size: u64) {
        let mut next = self.next();
        if matches!(*next, NextSegment::Idle) {
            *next = NextSegment::Wanted { segno, size };
            self.changed.notify_all();
        }
    }

    /// Whether [`Preparation::take`] would not wait.
    pub fn is_ready(&self) -> bool {
        matches!(*self.next(), NextSegment::Ready { .. })
    }

    /// Waits for the prepared segment and its size. An error ends the log; while the disk is full it waits, unless
    /// `stopping`.
    pub fn take(&self, stopping: impl Fn() -> bool) -> Result<(u64, Arc<dyn BlockFile>), String> {
        let mut next = self.next();
        loop {
            match std::mem::take(&mut *next) {
                NextSegment::Ready { size, file } => return Ok((size, file)),
                NextSegment::Failed(reason) => return Err(reason),
                other => *next = other,
            }
            if let NextSegment::Full { reason, .. } = &*next {
                let reason = reason.clone();
                drop(next);
                if stopping() {
                    return Err(reason);
                }
                next = self.next();
            }
            next = self.wait_for(next, FULL_RETRY);
        }
    }

    /// Why there is no next segment, while the disk is full.
    pub fn out_of_space(&self) -> Option<String> {
        match &*self.next() {
            NextSegment::Full { reason, .. } => Some(reason.clone()),
            _ => None,
        }
    }

    /// Ends the preparing thread.
    pub fn close(&self) {
        *self.next() = NextSegment::Closed;
        self.changed.notify_all();
    }

    /// The preparing thread. `out_of_space` tells those who only look whether the disk is full.
    pub fn run(&self, storage: &dyn Storage, out_of_space: &AtomicBool) {
        let _guard = AbortOnPanic;
        let mut next = self.next();
        loop {
            next = match &*next {
                NextSegment::Closed => return,
                NextSegment::Wanted { segno, size } | NextSegment::Full { segno, size, .. } => {
                    let (segno, size) = (*segno, *size);
                    let was_full = matches!(*next, NextSegment::Full { .. });
                    drop(next);
                    let outcome = segments::prepare_zeroed(storage, &segment_name(segno), size);
                    next = self.next();
                    if matches!(*next, NextSegment::Closed) {
                        return;
                    }
                    *next = prepared(outcome, segno, size, was_full);
                    let full = matches!(*next, NextSegment::Full { .. });
                    out_of_space.store(full, Ordering::Relaxed);
                    self.changed.notify_all();
                    if full { self.wait_for(next, FULL_RETRY) } else { next }
                }
                _ => self.changed.wait(next).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn next(&self) -> MutexGuard<'_, NextSegment> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'g>(&self, next: MutexGuard<'g, NextSegment>, time: Duration) -> MutexGuard<'g, NextSegment> {
        self.changed.wait_timeout(next, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

fn prepared(outcome: io::Result<Arc<dyn BlockFile>>, segno: u64, size: u64, was_full: bool) -> NextSegment {
    match outcome {
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
    }
}

/// A file system that fills up in the middle of a write may also say so by a short one. A shortage of descriptors or memory
/// passes, too, and nothing was lost by it.
fn disk_is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero)
        || is_shortage(error)
}
