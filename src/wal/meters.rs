//! What the log has done since it was opened. Whoever writes adds to it, by atomics alone; a scraper reads it at any time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::metrics::Histogram;

/// Counts and times. What tells of a frame is added after that is durable.
#[derive(Debug, Default)]
pub struct Meters {
    /// From the staging of a frame's first record until the frame was durable; marks are not among them.
    pub commit: Histogram,
    /// Writing and syncing a frame; marks are among them.
    pub sync: Histogram,
    /// Frames written, marks among them.
    pub frames: AtomicU64,
    /// Records written.
    pub records: AtomicU64,
    /// Bytes written: whole frames, padding and headers included.
    pub bytes: AtomicU64,
    /// Segments of the log, those of earlier runs included.
    pub segments: AtomicU64,
    /// The disk is too full for the next segment.
    pub out_of_space: AtomicBool,
}

impl Meters {
    /// A frame of so many records and bytes is durable.
    pub(super) fn written(&self, records: u32, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(u64::from(records), Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
