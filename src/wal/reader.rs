//! Looking up durable records by seq: a sparse index in memory, the records themselves from the segments.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::frame::{BLOCK, FrameHeader, decode_header, frame_is_sound, records, segment_name, unpack_body};
use super::storage::{BlockFile, Storage};

/// Segments held open for look-ups. A reader of a whole ledger passes through all of them, and descriptors are few.
const OPEN_SEGMENTS_MAX: usize = 16;
/// A look-up reads at most about this many bytes before the record it wants.
const INDEX_STEP: u64 = 64 << 10;

/// Where a frame starts; there is one entry for every 64 KiB of log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Seq of the frame's first record.
    pub first_seq: u64,
    /// Its segment.
    pub segno: u64,
    /// Its byte offset there.
    pub offset: u64,
}

impl IndexEntry {
    /// Adds the frame to `index` if it is far enough from the last entry.
    pub fn extend(index: &mut Vec<Self>, segno: u64, offset: u64, first_seq: u64) {
        let near = index.last().is_some_and(|last| last.segno == segno && offset - last.offset < INDEX_STEP);
        if !near {
            index.push(Self { first_seq, segno, offset });
        }
    }
}

/// Reads durable records. Shared by all threads.
pub struct Reader {
    storage: Arc<dyn Storage>,
    index: RwLock<Vec<IndexEntry>>,
    files: Mutex<HashMap<u64, OpenSegment>>,
}

#[derive(Clone)]
struct OpenSegment {
    file: Arc<dyn BlockFile>,
    size: u64,
}

impl Reader {
    /// A reader over what a scan found.
    pub fn new(storage: Arc<dyn Storage>, index: Vec<IndexEntry>) -> Self {
        Self { storage, index: RwLock::new(index), files: Mutex::default() }
    }

    /// Tells of a frame that is now durable.
    pub(super) fn committed(&self, segno: u64, offset: u64, first_seq: u64) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        IndexEntry::extend(&mut index, segno, offset, first_seq);
    }

    /// Calls `each` with the records `from..=upto`, in order, until it returns `false`. The caller sees to it that `upto` is
    /// durable. An error of kind `InvalidData` means that the log was damaged since it was opened.
    pub fn read(&self, from: u64, upto: u64, each: &mut dyn FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
        if from > upto {
            return Ok(());
        }
        let Some(mut at) = self.entry_before(from) else { return Err(damaged(from)) };
        let mut next = from;
        let (mut frame, mut body) = (vec![0; BLOCK], Vec::new());
        let mut segment = self.segment(at.segno)?;
        loop {
            // A segment ends where the index says that the next seq lies in a later one. What is at its end may look like a
            // frame and be the rest of a torn commit; and a segment that recovery opened may have been sealed empty.
            if let Some(later) = self.entry_before(next).filter(|entry| entry.segno > at.segno) {
                at = later;
                segment = self.segment(at.segno)?;
            }
            let Some(header) = read_header(&segment, at.offset, &mut frame)? else { return Err(damaged(next)) };
            let len = header.blocks as usize * BLOCK;
            if header.first_seq > next {
                return Err(damaged(next));
            }
            if header.first_seq + u64::from(header.records) > next {
                frame.resize(len.max(frame.len()), 0);
                segment.file.read_at(&mut frame[..len], at.offset)?;
                if !frame_is_sound(&frame[..len], header.salt, at.offset, header.commit) {
                    return Err(damaged(next));
                }
                unpack_body(&header, &frame[..len], &mut body);
                for (seq, record) in (header.first_seq..).zip(records(&body)) {
                    if seq < next {
                        continue;
                    }
                    if seq > upto || !each(seq, record.ok_or_else(|| damaged(seq))?) {
                        return Ok(());
                    }
                    next = seq + 1;
                }
                if next > upto {
                    return Ok(());
                }
            }
            at.offset += len as u64;
        }
    }

    /// One record.
    pub fn get(&self, seq: u64) -> io::Result<Vec<u8>> {
        let mut found = Vec::new();
        self.read(seq, seq, &mut |_, bytes| {
            found.extend_from_slice(bytes);
            false
        })?;
        Ok(found)
    }

    fn entry_before(&self, seq: u64) -> Option<IndexEntry> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let after = index.partition_point(|entry| entry.first_seq <= seq);
        index.get(after.checked_sub(1)?).copied()
    }

    fn segment(&self, segno: u64) -> io::Result<OpenSegment> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = files.get(&segno) {
            return Ok(segment.clone());
        }
        let file = self.storage.open_for_lookup(&segment_name(segno))?;
        let segment = OpenSegment { size: file.len()?, file };
        if files.len() >= OPEN_SEGMENTS_MAX {
            // Any will do: opening one again costs little, and readers who hold it keep it.
            let other = files.keys().next().copied();
            other.and_then(|other| files.remove(&other));
        }
        files.insert(segno, segment.clone());
        Ok(segment)
    }
}

/// The frame header at `offset`, or `None` where no frame of this segment starts.
fn read_header(segment: &OpenSegment, offset: u64, buf: &mut [u8]) -> io::Result<Option<FrameHeader>> {
    if offset + BLOCK as u64 > segment.size {
        return Ok(None);
    }
    segment.file.read_at(&mut buf[..BLOCK], offset)?;
    Ok(decode_header(buf).filter(|h| h.offset == offset && offset + u64::from(h.blocks) * BLOCK as u64 <= segment.size))
}

fn damaged(seq: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("seq {seq} cannot be read back; run `hackbrain verify`"))
}
