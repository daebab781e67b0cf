//! Writes one frame after the other at the tail of the log, each synced before the next.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::frame::{
    BLOCK, Digest, FRAME_BLOCKS_MAX, FrameHeader, SEGMENT_DATA_START, body_capacity, encode_frame, frame_blocks,
    segment_name,
};
use super::meters::Meters;
use super::prepare::Preparation;
use super::reader::Reader;
use super::segments::{self, Position, Witness};
use super::storage::{BlockFile, Storage};
use super::writer::{Options, SEGMENT_BYTES_MIN};
use crate::sys::block::AlignedBuf;

/// Each segment is this many times its predecessor, until the full size is reached.
const SEGMENT_GROWTH: u64 = 4;
/// The next segment is prepared once this part of the current one is used.
const PREPARE_AT_FRACTION: u64 = 16;
/// Kept free at the end of each segment for a mark: one frame without records.
const MARK_RESERVE: u64 = BLOCK as u64;

/// Records that become durable together.
pub(super) struct StagedFrame {
    pub first_seq: u64,
    pub prev_hash: Digest,
    pub head_hash: Digest,
    pub records: u32,
    /// When its first record was staged.
    pub staged: Instant,
    pub body: Vec<u8>,
}

/// The longest body of a frame that gathers records, in a log with these sizes.
pub(super) fn frame_body_max(options: &Options) -> usize {
    let smallest = options.first_segment_size.min(options.segment_size) - SEGMENT_DATA_START - MARK_RESERVE;
    body_capacity(FRAME_BLOCKS_MAX.min(smallest as usize / BLOCK))
}

/// Owns the tail of the log. Whoever holds it writes; there is one.
pub(super) struct Committer {
    pub storage: Arc<dyn Storage>,
    pub reader: Arc<Reader>,
    pub meters: Arc<Meters>,
    /// Bytes of a full-grown segment.
    pub segment_size: u64,
    /// Whether marks are written at all.
    pub marks: bool,
    pub position: Position,
    pub file: Arc<dyn BlockFile>,
    /// Held open: changing segments must not fail for want of a descriptor.
    pub witness: Arc<dyn BlockFile>,
    pub buf: AlignedBuf,
    /// Whether the last frame in the present segment holds records, with nothing behind it that would show its loss.
    pub unmarked: bool,
}

impl Committer {
    /// Makes a frame durable. An error ends the log.
    pub fn commit(
        &mut self,
        frame: &StagedFrame,
        preparation: &Preparation,
        stuck: &AtomicBool,
        stopping: impl Fn() -> bool,
    ) -> Result<(), String> {
        let len = (frame_blocks(frame.body.len()) * BLOCK) as u64;
        if self.position.offset + len + MARK_RESERVE > self.position.size {
            self.want_next(preparation);
            if self.marks && !preparation.is_ready() {
                // It may take long, or never be, where the disk is full.
                self.mark()?;
            }
            stuck.store(true, Ordering::Relaxed);
            let taken = preparation.take(stopping);
            stuck.store(false, Ordering::Relaxed);
            let (size, file) = taken?;
            self.change_segment(size, file)?;
            assert!(
                self.position.offset + len + MARK_RESERVE <= self.position.size,
                "a frame of {len} bytes fits into an empty segment of {} bytes",
                self.position.size
            );
        }
        self.write(frame)?;
        self.unmarked = true;
        if self.position.offset >= self.position.size / PREPARE_AT_FRACTION {
            self.want_next(preparation);
        }
        Ok(())
    }

    /// Writes a frame without records behind the last one that has some, unless there is one. From then on damage to that
    /// frame cannot be taken for a commit that a crash tore.
    pub fn mark(&mut self) -> Result<(), String> {
        if !self.unmarked {
            return Ok(());
        }
        let Position { next_seq, head_hash, .. } = self.position;
        let staged = Instant::now();
        let nothing =
            StagedFrame { first_seq: next_seq, prev_hash: head_hash, head_hash, records: 0, staged, body: Vec::new() };
        self.write(&nothing)?;
        self.unmarked = false;
        Ok(())
    }

    fn write(&mut self, frame: &StagedFrame) -> Result<(), String> {
        let blocks = frame_blocks(frame.body.len());
        let len = blocks * BLOCK;
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
        let fault =
            |what: &str, error: io::Error| format!("{what} {} at {at}: {error}", segment_name(self.position.segno));
        let began = Instant::now();
        self.file.write_at(&self.buf[..len], at).map_err(|e| fault("writing", e))?;
        self.file.sync().map_err(|e| fault("syncing", e))?;
        self.meters.sync.observe(began.elapsed());
        self.meters.written(frame.records, len);
        self.reader.committed(self.position.segno, at, frame.first_seq);
        self.position.offset += len as u64;
        self.position.next_commit += 1;
        self.position.next_seq += u64::from(frame.records);
        self.position.head_hash = frame.head_hash;
        Ok(())
    }

    fn want_next(&self, preparation: &Preparation) {
        // At least so much that every record fits, however small a segment recovery had to make do with.
        let size = (self.position.size * SEGMENT_GROWTH).max(SEGMENT_BYTES_MIN).min(self.segment_size);
        preparation.want(self.position.segno + 1, size);
    }

    fn change_segment(&mut self, size: u64, file: Arc<dyn BlockFile>) -> Result<(), String> {
        let activate = || -> io::Result<Position> {
            let header = segments::successor_header(&self.position, size)?;
            segments::activate(&*self.storage, &*file, &header)?;
            Witness { log_id: header.log_id, last: header.segno }.update(&*self.witness)?;
            Ok(segments::position_at_start(&header))
        };
        self.position = activate().map_err(|e| format!("opening segment {}: {e}", self.position.segno + 1))?;
        self.file = file;
        self.meters.segments.store(self.position.segno, Ordering::Relaxed);
        Ok(())
    }
}
