//! Checks and parses frames on all cores, ahead of a scan that takes them in order.
//!
//! It only saves time. What it hands out is just what the scan would have accepted frame by frame; at the first thing that is
//! not sound it ends, and the scan looks for itself, since telling a torn tail from corruption needs more than one frame.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, Scope};

use crossbeam_channel::{Receiver, Sender, bounded};
use sha2::{Digest as _, Sha256};

use super::frame::{
    BLOCK, Digest, FrameHeader, SEGMENT_DATA_START, decode_header, decode_segment_header, frame_is_sound, records,
    segment_name, unpack_body,
};
use super::recovery::LookAhead;
use super::storage::{BlockFile, Storage};

/// Bytes read at once, but for a single longer frame.
const CHUNK: usize = 1 << 20;
/// Below this many bytes of log, threads cost more than they save.
const WORTH_IT: u64 = 8 << 20;
/// Beyond this many the one that takes the frames in order cannot keep up.
const WORKERS_MAX: usize = 8;

/// A frame whose sectors are sound, with its records.
pub(super) struct Checked<T> {
    pub segno: u64,
    pub header: FrameHeader,
    pub records: Records<T>,
}

/// The records of a frame.
pub(super) struct Records<T> {
    pub body: Vec<u8>,
    /// Where each lies in `body`, its SHA-256, and what was made of it.
    pub each: Vec<(Range<usize>, Digest, T)>,
}

/// Frames of one segment as they lie on the medium, back to back.
struct Chunk {
    segno: u64,
    salt: u64,
    offset: u64,
    frames: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

type Batch<T> = Vec<Checked<T>>;

/// The frames to come. Dropping it ends its threads.
pub(super) struct Ahead<T> {
    /// In the log's order; each delivers one chunk's frames once a worker is through with it.
    batches: Option<Receiver<Receiver<Batch<T>>>>,
    frames: VecDeque<Checked<T>>,
    /// Takes memory back to the workers: large pieces freed by another thread than theirs make both wait.
    spent: Option<Sender<Records<T>>>,
}

impl<T: Send> Ahead<T> {
    /// Starts reading segments 1 to `last`, if that is wanted.
    pub fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        storage: &'env dyn Storage,
        last: u64,
        look_ahead: LookAhead,
        parse: &'env (dyn Fn(&[u8]) -> T + Sync),
    ) -> Self
    where
        T: 'scope,
    {
        let mut ahead = Self { batches: None, frames: VecDeque::new(), spent: None };
        let is_wanted = match look_ahead {
            LookAhead::Always => true,
            LookAhead::WhereItSavesTime => is_worth_it(storage, last),
            LookAhead::Never => false,
        };
        if !is_wanted {
            return ahead;
        }
        let workers = thread::available_parallelism().map_or(2, usize::from).clamp(2, WORKERS_MAX);
        let (chunks, chunks_in) = bounded::<(Chunk, Sender<Batch<T>>)>(workers);
        let (order, batches) = bounded(2 * workers);
        let (spent, spare) = bounded(2 * workers);
        // Where a thread cannot be had, the channels are hung up, and the scan reads for itself.
        let reader = thread::Builder::new().name("scan-read".into()).spawn_scoped(scope, move || {
            let _ = read_chunks(storage, last, &mut |chunk| {
                let (done, batch) = bounded(1);
                order.send(batch).is_ok() && chunks.send((chunk, done)).is_ok()
            });
        });
        for _ in 0..workers {
            let (chunks, spare) = (chunks_in.clone(), spare.clone());
            let _ = thread::Builder::new().name("scan-check".into()).spawn_scoped(scope, move || {
                for (chunk, done) in chunks {
                    // Nobody may be interested any more.
                    let _ = done.send(check(&chunk, parse, &spare));
                }
            });
        }
        ahead.batches = reader.is_ok().then_some(batches);
        ahead.spent = Some(spent);
        ahead
    }

    /// Gives back what [`Ahead::take`] gave.
    pub fn give_back(&self, records: Records<T>) {
        // Where there is enough of it, it is freed.
        let _ = self.spent.as_ref().map(|spent| spent.try_send(records));
    }

    /// The frame at `offset` of segment `segno`, if it was reached and found sound. Once it was not, nothing comes any more.
    pub fn take(&mut self, segno: u64, offset: u64) -> Option<Checked<T>> {
        while self.frames.is_empty() {
            match self.batches.as_ref()?.recv().ok().and_then(|batch| batch.recv().ok()) {
                Some(batch) => self.frames = batch.into(),
                None => self.batches = None,
            }
        }
        let frame = self.frames.pop_front().filter(|frame| frame.segno == segno && frame.header.offset == offset);
        if frame.is_none() {
            self.batches = None;
            self.frames.clear();
        }
        frame
    }
}

fn is_worth_it(storage: &dyn Storage, last: u64) -> bool {
    // The first segments are small; the second or third tells. `last` may come from a damaged name, and have no end.
    let mut lengths = (1..=last).map_while(|segno| storage.open_for_lookup(&segment_name(segno)).ok()?.len().ok());
    let mut bytes = 0_u64;
    lengths.any(|len| {
        bytes = bytes.saturating_add(len);
        bytes >= WORTH_IT
    })
}

/// Hands chunk after chunk to `each`, until it refuses or a frame header is not what it should be.
fn read_chunks(storage: &dyn Storage, last: u64, each: &mut dyn FnMut(Chunk) -> bool) -> Option<()> {
    let mut next = open(storage, 1)?;
    for segno in 1..=last {
        let (file, header) = next;
        let following = if segno == last { None } else { Some(open(storage, segno + 1)?) };
        let end = following.as_ref().map_or(header.size, |(_, following)| following.prev_end);
        let mut offset = SEGMENT_DATA_START;
        while offset < end {
            let chunk = read_chunk(&*file, segno, header.salt, offset, end)?;
            offset += chunk.frames.last()?.end as u64;
            if !each(chunk) {
                return None;
            }
        }
        next = following?;
    }
    None
}

fn open(storage: &dyn Storage, segno: u64) -> Option<(Arc<dyn BlockFile>, super::frame::SegmentHeader)> {
    let file = storage.open_for_lookup(&segment_name(segno)).ok()?;
    let mut block = vec![0; BLOCK];
    [0, BLOCK as u64].into_iter().find_map(|offset| {
        file.read_at(&mut block, offset).ok()?;
        let header = decode_segment_header(&block).ok()?;
        Some((file.clone(), header))
    })
}

fn read_chunk(file: &dyn BlockFile, segno: u64, salt: u64, offset: u64, end: u64) -> Option<Chunk> {
    let mut bytes = vec![0; CHUNK.min((end - offset) as usize)];
    file.read_at(&mut bytes, offset).ok()?;
    let mut frames = Vec::new();
    let mut at = 0;
    while at + BLOCK <= bytes.len() {
        let Some(header) = decode_header(&bytes[at..]) else { break };
        let len = header.blocks as usize * BLOCK;
        if header.salt != salt || header.offset != offset + at as u64 || header.offset + len as u64 > end {
            break;
        }
        if at + len > bytes.len() {
            if at > 0 {
                break;
            }
            bytes.resize(len, 0);
            file.read_at(&mut bytes, offset).ok()?;
        }
        frames.push(at..at + len);
        at += len;
    }
    (!frames.is_empty()).then_some(Chunk { segno, salt, offset, frames, bytes })
}

/// The frames of a chunk up to the first that is not sound.
fn check<T>(chunk: &Chunk, parse: &(dyn Fn(&[u8]) -> T + Sync), spare: &Receiver<Records<T>>) -> Batch<T> {
    let checked = chunk.frames.iter().map_while(|range| {
        let bytes = &chunk.bytes[range.clone()];
        let header = decode_header(bytes)?;
        if !frame_is_sound(bytes, chunk.salt, chunk.offset + range.start as u64, header.commit) {
            return None;
        }
        let Records { mut body, mut each } =
            spare.try_recv().unwrap_or_else(|_| Records { body: Vec::new(), each: Vec::new() });
        each.clear();
        unpack_body(&header, bytes, &mut body);
        let start = body.as_ptr() as usize;
        for record in records(&body) {
            let record = record?;
            let at = record.as_ptr() as usize - start;
            each.push((at..at + record.len(), Sha256::digest(record).into(), parse(record)));
        }
        Some(Checked { segno: chunk.segno, header, records: Records { body, each } })
    });
    checked.collect()
}
