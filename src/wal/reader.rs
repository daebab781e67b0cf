//! Looking up durable records by seq: a sparse index in memory, the records themselves from the segments.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::frame::{BLOCK, FrameHeader, RECORD_HEADER, decode_header, record_len, segment_name};
use super::part::{Part, Spare};
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

/// Where a read stopped, for who reads on later. It holds neither bytes of the log nor a file: thousands may be kept.
#[derive(Debug, Default)]
pub struct Cursor(Option<Place>);

/// A place in a frame all of whose sectors were found sound.
#[derive(Debug)]
struct Place {
    segno: u64,
    header: FrameHeader,
    /// Seq of the record there.
    next: u64,
    /// Where in the frame's body it begins, with its length.
    at: usize,
}

impl Place {
    fn front(segno: u64, header: FrameHeader) -> Self {
        Self { segno, next: header.first_seq, header, at: 0 }
    }

    /// Calls `each` with those of the records `from..=upto` that lie in this frame, from here on; whether the read goes on
    /// behind them.
    fn read(
        &mut self,
        file: &dyn BlockFile,
        part: &mut Part,
        from: u64,
        upto: u64,
        each: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<bool> {
        while self.next <= upto && self.next < self.header.next_seq() {
            let seq = self.next;
            let start = self.at + RECORD_HEADER;
            let len = part.get(file, &self.header, self.at..start)?.and_then(record_len);
            let end = start + len.ok_or_else(|| damaged(seq))?;
            let wants_more = seq < from || {
                let record = part.get(file, &self.header, start..end)?;
                each(seq, record.ok_or_else(|| damaged(seq))?)
            };
            (self.next, self.at) = (seq + 1, end);
            if !wants_more {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Reads durable records. Shared by all threads.
pub struct Reader {
    storage: Arc<dyn Storage>,
    index: RwLock<Vec<IndexEntry>>,
    files: Mutex<HashMap<u64, OpenSegment>>,
    spare: Spare,
}

#[derive(Clone)]
struct OpenSegment {
    file: Arc<dyn BlockFile>,
    size: u64,
}

impl Reader {
    /// A reader over what a scan found.
    pub fn new(storage: Arc<dyn Storage>, index: Vec<IndexEntry>) -> Self {
        Self { storage, index: RwLock::new(index), files: Mutex::default(), spare: Spare::default() }
    }

    /// Tells of a frame that is now durable.
    pub(super) fn committed(&self, segno: u64, offset: u64, first_seq: u64) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        IndexEntry::extend(&mut index, segno, offset, first_seq);
    }

    /// Calls `each` with the records `from..=upto`, in order, until it returns `false`. The caller sees to it that `upto` is
    /// durable. An error of kind `InvalidData` means that the log was damaged since it was opened.
    pub fn read(&self, from: u64, upto: u64, each: &mut dyn FnMut(u64, &[u8]) -> bool) -> io::Result<()> {
        self.read_on(&mut Cursor::default(), from, upto, each)
    }

    /// The same, leaving `cursor` behind the last record that `each` was called with. Where `from` lies there or in the same
    /// frame behind it, nothing before it is read again; elsewhere it is looked for.
    pub fn read_on(
        &self,
        cursor: &mut Cursor,
        from: u64,
        upto: u64,
        each: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<()> {
        self.spare.lend(|part| self.read_with(part, cursor, from, upto, each))
    }

    fn read_with(
        &self,
        part: &mut Part,
        cursor: &mut Cursor,
        from: u64,
        upto: u64,
        each: &mut dyn FnMut(u64, &[u8]) -> bool,
    ) -> io::Result<()> {
        part.forget();
        let mut next = from;
        while next <= upto {
            // After an error the next read looks for its place anew.
            let mut place = match cursor.0.take() {
                Some(place) if (place.next..place.header.next_seq()).contains(&next) => place,
                before => self.find(next, before.as_ref(), part)?,
            };
            let wants_more = place.read(&*self.segment(place.segno)?.file, part, next, upto, each)?;
            next = place.next;
            cursor.0 = Some(place);
            if !wants_more {
                break;
            }
        }
        Ok(())
    }

    /// The front of the frame that holds `seq`, which is sound from end to end. `before` may be in the frame before it.
    fn find(&self, seq: u64, before: Option<&Place>, part: &mut Part) -> io::Result<Place> {
        let (mut segno, mut offset) = match before.filter(|place| place.header.next_seq() == seq) {
            Some(Place { segno, header, .. }) => (*segno, header.end()),
            None => self.entry_before(seq).map(|entry| (entry.segno, entry.offset)).ok_or_else(|| damaged(seq))?,
        };
        let mut block = [0; BLOCK];
        loop {
            // A segment ends where the index says that the next seq lies in a later one. What is at its end may look like a
            // frame and be the rest of a torn commit; and a segment that recovery opened may have been sealed empty.
            if let Some(later) = self.entry_before(seq).filter(|entry| entry.segno > segno) {
                (segno, offset) = (later.segno, later.offset);
            }
            let segment = self.segment(segno)?;
            let header = read_header(&segment, offset, &mut block)?.ok_or_else(|| damaged(seq))?;
            if header.first_seq > seq {
                return Err(damaged(seq));
            }
            if header.next_seq() > seq {
                let is_sound = part.check(&*segment.file, &header)?;
                return if is_sound { Ok(Place::front(segno, header)) } else { Err(damaged(seq)) };
            }
            offset = header.end();
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
    Ok(decode_header(buf).filter(|h| h.offset == offset && h.end() <= segment.size))
}

fn damaged(seq: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("seq {seq} cannot be read back; run `hackbrain verify`"))
}
