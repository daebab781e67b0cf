//! Reading a log back: a clean end, a torn tail, or corruption. Three different answers, never confused.
//!
//! What a crash can leave: of the one frame that was in flight, each sector new, or still zero, or garbage. What it cannot
//! leave: damage to a frame that was durable, a sound sector of a *later* commit behind a bad frame (the writer never issues
//! commit k+1 before k is durable), or a sector that carries its commit's mark and no longer its checksum. Those are corruption.

use std::io;
use std::sync::Arc;
use std::thread;

use sha2::{Digest as _, Sha256};

use super::ahead::{Ahead, Checked, Records};
use super::frame::{
    BLOCK, BadHeader, Digest, FrameHeader, SECTOR, SEGMENT_DATA_START, Sector, SegmentHeader, classify_sector,
    commit_tag, decode_header, decode_segment_header, frame_is_sound, parse_segment_name, records, segment_name,
    unpack_body,
};
use super::reader::IndexEntry;
pub(super) use super::scan_error::io_error;
pub use super::scan_error::{Corruption, ScanError, SoundFrame};
use super::segments::{self, Position, WITNESS, Witness};
use super::storage::{BlockFile, Storage};
use crate::sys::block::AlignedBuf;

const WINDOW: usize = 4 << 20;
/// What recovery falls back to on a full disk.
const SMALLEST_SEGMENT: u64 = 64 << 10;

/// One record on its way through a scan.
pub struct Record<'a> {
    /// Counts from 1.
    pub seq: u64,
    /// The stored bytes.
    pub bytes: &'a [u8],
    /// Their SHA-256.
    pub hash: Digest,
}

/// Called for each record in order; an error makes the record's frame corrupt, with that reason.
pub type Visit<'v> = dyn FnMut(&Record<'_>) -> Result<(), String> + 'v;

/// A reader in two parts: `parse` is given each record's bytes, on any thread and out of order; `visit` sees the records in
/// order, each with what was made of it. An error makes the record's frame corrupt, with that reason.
pub struct Reading<'r, T> {
    /// May be called more than once for a record.
    pub parse: &'r (dyn Fn(&[u8]) -> T + Sync),
    /// See [`Visit`].
    pub visit: &'r mut (dyn FnMut(&Record<'_>, T) -> Result<(), String> + 'r),
}

/// How a log ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Nothing was ever written behind the last sound frame.
    Clean,
    /// A commit that was never acknowledged was being written when the machine or the agent died.
    Torn {
        /// The file.
        file: String,
        /// Where the torn frame starts.
        offset: u64,
    },
}

/// A log that was read whole and found sound.
#[derive(Debug)]
pub struct Scan {
    /// Where it ends.
    pub position: Position,
    /// How it ended.
    pub ending: Ending,
    /// Sparse index for look-ups.
    pub index: Vec<IndexEntry>,
    /// Frames read.
    pub frames: u64,
    /// Bytes of sound frames.
    pub bytes: u64,
    /// Damage that a redundant copy made good.
    pub repaired: Vec<String>,
}

/// Makes what is visible durable, before anything of it is believed: after `kill -9` the page cache may show bytes that a
/// power cut would still take away.
pub fn settle(storage: &dyn Storage) -> Result<(), ScanError> {
    let names = storage.list().map_err(io_error("listing the log's directory"))?;
    for name in &names {
        if parse_segment_name(name).is_some() || name == WITNESS {
            let sync = || storage.open(name)?.sync();
            sync().map_err(io_error(format!("syncing {}", storage.describe(name))))?;
        }
    }
    storage.sync_dir().map_err(io_error("syncing the log's directory"))
}

/// Reads a whole log, checking everything; changes nothing. `Ok(None)`: there is no log, or its creation never ended.
pub fn scan(storage: &dyn Storage, visit: &mut Visit<'_>) -> Result<Option<Scan>, ScanError> {
    scan_parsed(storage, Reading { parse: &|_| (), visit: &mut |record, ()| visit(record) })
}

/// The same, parsing on all cores, where the log is so long that it saves time.
pub fn scan_parsed<T: Send>(storage: &dyn Storage, reading: Reading<'_, T>) -> Result<Option<Scan>, ScanError> {
    scan_on(storage, LookAhead::WhereItSavesTime, reading)
}

/// Whether frames are read ahead of the scan, on all cores. The outcome is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookAhead {
    /// However short the log.
    Always,
    /// In a log of 8 MiB or more.
    WhereItSavesTime,
    /// However long it is.
    Never,
}

/// The same; for comparison.
pub fn scan_on<T: Send>(
    storage: &dyn Storage,
    look_ahead: LookAhead,
    reading: Reading<'_, T>,
) -> Result<Option<Scan>, ScanError> {
    let names = storage.list().map_err(io_error("listing the log's directory"))?;
    let last_seen = names.iter().filter_map(|name| parse_segment_name(name)).max().unwrap_or(0);
    let witness = match Witness::read(storage) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(corrupt_name(storage, WITNESS, 1, error.to_string()));
        }
        other => other.map_err(io_error(format!("reading {}", storage.describe(WITNESS))))?,
    };
    let last = last_seen.max(witness.map_or(0, |w| w.last));
    if last == 0 {
        return Ok(None);
    }
    let Reading { parse, visit } = reading;
    let scan = thread::scope(|scope| {
        let ahead = Ahead::start(scope, storage, last, look_ahead, parse);
        let mut scanner = Scanner::new(storage, witness.map(|w| w.log_id), ahead, Reading { parse, visit });
        for segno in 1..=last {
            scanner.segment(segno, segno == last)?;
        }
        Ok(scanner.scan)
    })?;
    match witness {
        // Created, but not yet witnessed: no frame can have been acknowledged.
        None if last == 1 && scan.frames == 0 => {}
        None => return Err(corrupt_name(storage, WITNESS, 1, "the list of segments is missing".into())),
        Some(witness) if witness.last + 1 < last => {
            let reason = format!("it knows of {} segments, but there are {last}", witness.last);
            return Err(corrupt_name(storage, WITNESS, 1, reason));
        }
        Some(_) => {}
    }
    Ok(Some(scan))
}

fn corrupt_name(storage: &dyn Storage, name: &str, expected_seq: u64, reason: String) -> ScanError {
    ScanError::Corrupt(Box::new(Corruption {
        file: storage.describe(name),
        offset: 0,
        expected_seq,
        reason,
        next_sound: None,
    }))
}

/// Reads a log and makes it ready for writing. `None` in, a new log out. A torn tail is sealed by a new segment; the old
/// file is left as it is. Idempotent: a crash in here is met by the next call.
pub fn recover(storage: &dyn Storage, segment_size: u64, visit: &mut Visit<'_>) -> Result<Scan, ScanError> {
    recover_parsed(storage, segment_size, Reading { parse: &|_| (), visit: &mut |record, ()| visit(record) })
}

/// The same, parsing on all cores.
pub fn recover_parsed<T: Send>(
    storage: &dyn Storage,
    segment_size: u64,
    reading: Reading<'_, T>,
) -> Result<Scan, ScanError> {
    settle(storage)?;
    let found = scan_parsed(storage, reading)?;
    // Only now, so that a damaged log stays just as it is found: what was being prepared and never got its name.
    for name in storage.list().map_err(io_error("listing the log's directory"))? {
        if name.ends_with(".tmp") {
            storage.remove(&name).map_err(io_error(format!("removing {}", storage.describe(&name))))?;
        }
    }
    match found {
        None => {
            let before = segments::position_of_new_log().map_err(io_error("creating the log"))?;
            let position = open_successor(storage, &before, segment_size)?;
            Ok(Scan { position, ending: Ending::Clean, index: Vec::new(), frames: 0, bytes: 0, repaired: Vec::new() })
        }
        Some(mut scan) => {
            witness(storage, &scan.position)?;
            if let Ending::Torn { .. } = scan.ending {
                scan.position = open_successor(storage, &scan.position, segment_size)?;
            }
            Ok(scan)
        }
    }
}

fn open_successor(storage: &dyn Storage, end: &Position, size: u64) -> Result<Position, ScanError> {
    let name = segment_name(end.segno + 1);
    let create = |size| -> io::Result<Position> {
        let header = segments::successor_header(end, size)?;
        let file = segments::prepare_zeroed(storage, &name, size)?;
        segments::activate(storage, &*file, &header)?;
        Ok(segments::position_at_start(&header))
    };
    // On a nearly full disk a small segment still seals the old one, and the agent can serve what it has.
    let position = match create(size) {
        // A file system that fills up in the middle of a write may say so by a short one.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::WriteZero) => {
            create(SMALLEST_SEGMENT.min(size))
        }
        other => other,
    };
    let position = position.map_err(io_error(format!("creating {}", storage.describe(&name))))?;
    witness(storage, &position)?;
    Ok(position)
}

fn witness(storage: &dyn Storage, position: &Position) -> Result<(), ScanError> {
    let witness = Witness { log_id: position.log_id, last: position.segno };
    let bring_up_to_date = || match Witness::read(storage)? {
        None => witness.create(storage),
        Some(known) if known == witness => Ok(()),
        Some(_) => witness.update(&*storage.open(WITNESS)?),
    };
    bring_up_to_date().map_err(io_error(format!("writing {}", storage.describe(WITNESS))))
}

struct Scanner<'s, T> {
    storage: &'s dyn Storage,
    log_id: Option<[u8; 16]>,
    scan: Scan,
    ahead: Ahead<T>,
    reading: Reading<'s, T>,
}

impl<'s, T: Send> Scanner<'s, T> {
    fn new(storage: &'s dyn Storage, log_id: Option<[u8; 16]>, ahead: Ahead<T>, reading: Reading<'s, T>) -> Self {
        let position = Position {
            log_id: log_id.unwrap_or_default(),
            segno: 0,
            size: 0,
            salt: 0,
            offset: 0,
            next_commit: 1,
            next_seq: 1,
            head_hash: [0; 32],
        };
        let scan =
            Scan { position, ending: Ending::Clean, index: Vec::new(), frames: 0, bytes: 0, repaired: Vec::new() };
        Self { storage, log_id, scan, ahead, reading }
    }

    fn segment(&mut self, segno: u64, is_last: bool) -> Result<(), ScanError> {
        let (file, header) = self.open(segno)?;
        self.check_header(&*file, &header)?;
        let declared_end = if is_last { None } else { Some(self.declared_end(segno + 1, &header)?) };
        self.scan.position = segments::position_at_start(&header);
        self.log_id = Some(header.log_id);
        let mut window = Window::new(file, header.size);
        while declared_end != Some(self.scan.position.offset) {
            if !self.frame(&mut window)? {
                return self.ended(&mut window, declared_end);
            }
        }
        Ok(())
    }

    /// Where the next segment says that this one, with `header`, ends.
    fn declared_end(&mut self, next: u64, header: &SegmentHeader) -> Result<u64, ScanError> {
        let successor = self.open(next)?.1;
        // Looked at before it is believed: else the sound segment would be blamed for what the next one says of it.
        if successor.segno != next || successor.log_id != header.log_id {
            return Err(self.corrupt(&segment_name(next), 0, "the header is of another segment or log"));
        }
        Ok(successor.prev_end)
    }

    /// Opens a segment and reads its header, from the second copy where the first is damaged.
    fn open(&mut self, segno: u64) -> Result<(Arc<dyn BlockFile>, SegmentHeader), ScanError> {
        let name = segment_name(segno);
        let file = match self.storage.open_for_lookup(&name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(self.corrupt(&name, 0, "the segment is missing"));
            }
            other => other.map_err(io_error(format!("opening {}", self.storage.describe(&name))))?,
        };
        let len = file.len().map_err(io_error(format!("reading {}", self.storage.describe(&name))))?;
        if len < SEGMENT_DATA_START {
            return Err(self.corrupt(&name, 0, &format!("the file has only {len} bytes")));
        }
        let mut blocks = AlignedBuf::new(SEGMENT_DATA_START as usize);
        file.read_at(&mut blocks, 0).map_err(io_error(format!("reading {}", self.storage.describe(&name))))?;
        let copies = [decode_segment_header(&blocks[..BLOCK]), decode_segment_header(&blocks[BLOCK..])];
        let header = match copies {
            [Ok(first), Ok(second)] if first == second => first,
            [Ok(header), Err(BadHeader::Damaged)] | [Err(BadHeader::Damaged), Ok(header)] => {
                let note = format!("{}: one of the two headers is damaged", self.storage.describe(&name));
                if !self.scan.repaired.contains(&note) {
                    self.scan.repaired.push(note);
                }
                header
            }
            [Err(BadHeader::Version(version)), _] | [_, Err(BadHeader::Version(version))] => {
                return Err(ScanError::Version { file: self.storage.describe(&name), version });
            }
            _ => return Err(self.corrupt(&name, 0, "no header of the segment is sound")),
        };
        Ok((file, header))
    }

    fn check_header(&self, file: &dyn BlockFile, header: &SegmentHeader) -> Result<(), ScanError> {
        let end = &self.scan.position;
        let name = segment_name(end.segno + 1);
        let len = file.len().map_err(io_error(format!("reading {}", self.storage.describe(&name))))?;
        let fault = if self.log_id.is_some_and(|id| id != header.log_id) {
            "the segment belongs to another log"
        } else if header.segno != end.segno + 1 {
            "the header is of another segment"
        } else if len != header.size || !len.is_multiple_of(BLOCK as u64) {
            "the file does not have the length that its header tells"
        } else if header.prev_end != end.offset || header.first_commit != end.next_commit {
            "it does not continue where the segment before it ends"
        } else if header.first_seq != end.next_seq || header.prev_hash != end.head_hash {
            "its chain does not continue the segment before it"
        } else {
            return Ok(());
        };
        Err(self.corrupt(&name, 0, fault))
    }

    /// Reads the frame at the current offset; `false` where there is no sound one.
    fn frame(&mut self, window: &mut Window) -> Result<bool, ScanError> {
        let Position { segno, offset: at, .. } = self.scan.position;
        if let Some(checked) = self.ahead.take(segno, at).filter(|checked| self.expects(&checked.header)) {
            let Checked { header, records: Records { body, mut each }, .. } = checked;
            let records = each.drain(..).map(|(range, hash, parsed)| Some((&body[range], hash, parsed)));
            self.take_in(&header, records)?;
            self.ahead.give_back(Records { body, each });
            return Ok(true);
        }
        let name = segment_name(segno);
        let read_error = || io_error(format!("reading {} at {at}", self.storage.describe(&name)));
        if at + BLOCK as u64 > window.size {
            return Ok(false);
        }
        let Some(header) = decode_header(window.get(at, BLOCK).map_err(read_error())?) else { return Ok(false) };
        if !self.expects(&header) || at + u64::from(header.blocks) * BLOCK as u64 > window.size {
            return Ok(false);
        }
        let frame = window.get(at, header.blocks as usize * BLOCK).map_err(read_error())?;
        if !frame_is_sound(frame, header.salt, at, header.commit) {
            return Ok(false);
        }
        let mut body = Vec::new();
        unpack_body(&header, frame, &mut body);
        let parse = self.reading.parse;
        self.take_in(
            &header,
            records(&body).map(|record| record.map(|bytes| (bytes, Sha256::digest(bytes).into(), parse(bytes)))),
        )?;
        Ok(true)
    }

    /// Visits the records of the frame at the current offset and goes on behind it. An item that is `None` stands for record
    /// lengths that do not add up.
    fn take_in<'b>(
        &mut self,
        header: &FrameHeader,
        records: impl Iterator<Item = Option<(&'b [u8], Digest, T)>>,
    ) -> Result<(), ScanError> {
        let Position { segno, offset: at, .. } = self.scan.position;
        let name = segment_name(segno);
        let mut head_hash = header.prev_hash;
        let mut count = 0;
        for record in records {
            let Some((bytes, hash, parsed)) = record else {
                return Err(self.corrupt(&name, at, "record lengths do not add up"));
            };
            head_hash = hash;
            let record = Record { seq: header.first_seq + count, bytes, hash };
            (self.reading.visit)(&record, parsed).map_err(|reason| {
                let position = Position { next_seq: header.first_seq + count, ..self.scan.position.clone() };
                corrupt_at(self.storage, &position, &name, at, &reason)
            })?;
            count += 1;
        }
        if count != u64::from(header.records) || head_hash != header.head_hash {
            return Err(self.corrupt(&name, at, "the frame's records do not match its header"));
        }
        let scan = &mut self.scan;
        IndexEntry::extend(&mut scan.index, segno, at, header.first_seq);
        scan.frames += 1;
        scan.bytes += u64::from(header.blocks) * BLOCK as u64;
        let position = &mut scan.position;
        position.offset += u64::from(header.blocks) * BLOCK as u64;
        position.next_commit += 1;
        position.next_seq += count;
        position.head_hash = head_hash;
        Ok(())
    }

    fn expects(&self, header: &FrameHeader) -> bool {
        let p = &self.scan.position;
        header.salt == p.salt
            && header.commit == p.next_commit
            && header.first_seq == p.next_seq
            && header.offset == p.offset
            && header.prev_hash == p.head_hash
    }

    /// Decides what the absence of a sound frame at the current offset means.
    fn ended(&mut self, window: &mut Window, declared_end: Option<u64>) -> Result<(), ScanError> {
        let position = self.scan.position.clone();
        let name = segment_name(position.segno);
        if let Some(end) = declared_end {
            let reason = format!("a frame is damaged; the next segment says that this one is sound up to {end}");
            return Err(self.corrupt_searching(window, &name, &reason));
        }
        let mut written = false;
        let mut at = position.offset;
        while at < window.size {
            let block =
                window.get(at, BLOCK).map_err(io_error(format!("reading {} at {at}", self.storage.describe(&name))))?;
            if let Some(fault) = fault_of_block(block, at, &position, &mut written) {
                return Err(self.corrupt_searching(window, &name, fault));
            }
            at += BLOCK as u64;
        }
        if written {
            self.scan.ending = Ending::Torn { file: self.storage.describe(&name), offset: position.offset };
        }
        Ok(())
    }

    fn corrupt(&self, name: &str, offset: u64, reason: &str) -> ScanError {
        corrupt_at(self.storage, &self.scan.position, name, offset, reason)
    }

    /// A corruption at the current offset that also tells where reading could go on.
    fn corrupt_searching(&self, window: &mut Window, name: &str, reason: &str) -> ScanError {
        let error = self.corrupt(name, self.scan.position.offset, reason);
        let ScanError::Corrupt(mut corruption) = error else { return error };
        corruption.next_sound = self.next_sound(window, name);
        ScanError::Corrupt(corruption)
    }

    fn next_sound(&self, window: &mut Window, name: &str) -> Option<SoundFrame> {
        let mut at = self.scan.position.offset + BLOCK as u64;
        while at < window.size {
            if let Some(header) = window.get(at, BLOCK).ok().and_then(decode_header) {
                let len = header.blocks as usize * BLOCK;
                let fits =
                    header.offset == at && header.salt == self.scan.position.salt && at + len as u64 <= window.size;
                if fits && window.get(at, len).is_ok_and(|f| frame_is_sound(f, header.salt, at, header.commit)) {
                    let file = self.storage.describe(name);
                    return Some(SoundFrame { file, offset: at, first_seq: header.first_seq });
                }
            }
            at += BLOCK as u64;
        }
        None
    }
}

fn corrupt_at(storage: &dyn Storage, position: &Position, name: &str, offset: u64, reason: &str) -> ScanError {
    ScanError::Corrupt(Box::new(Corruption {
        file: storage.describe(name),
        offset,
        expected_seq: position.next_seq,
        reason: reason.to_owned(),
        next_sound: None,
    }))
}

/// What in a block behind the last sound frame no crash could have left there. Notes whether anything was written.
fn fault_of_block(block: &[u8], at: u64, end: &Position, written: &mut bool) -> Option<&'static str> {
    if block.iter().all(|b| *b == 0) {
        return None;
    }
    *written = true;
    if let Some(header) = decode_header(block) {
        if header.salt != end.salt || header.offset != at {
            return Some("a frame of another place or segment lies here");
        }
        if at == end.offset && (header.first_seq != end.next_seq || header.prev_hash != end.head_hash) {
            return Some("the frame does not continue the chain");
        }
    }
    let expected = commit_tag(end.next_commit);
    for (index, sector) in block.chunks_exact(SECTOR).enumerate() {
        match classify_sector(sector, end.salt, at + (index * SECTOR) as u64, end.next_commit) {
            Sector::Unwritten | Sector::Garbage => {}
            Sector::Sound(tag) if tag == expected => {}
            Sector::Sound(_) => return Some("a frame is damaged, and a sound sector of another commit lies behind it"),
            Sector::Rotten => return Some("a sector was written whole and has changed since"),
        }
    }
    None
}

/// A read-ahead view of one file.
struct Window {
    file: Arc<dyn BlockFile>,
    size: u64,
    buf: AlignedBuf,
    start: u64,
    filled: usize,
}

impl Window {
    fn new(file: Arc<dyn BlockFile>, size: u64) -> Self {
        let buf = AlignedBuf::new(WINDOW.min(size as usize));
        Self { file, size, buf, start: 0, filled: 0 }
    }

    /// The `len` bytes at `offset`, which must lie within the file.
    fn get(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.filled as u64;
        if !inside {
            self.buf.reserve(len);
            self.filled = 0;
            let want = (self.size - offset).min(self.buf.len() as u64) as usize;
            self.file.read_at(&mut self.buf[..want], offset)?;
            self.start = offset;
            self.filled = want;
        }
        let from = (offset - self.start) as usize;
        Ok(&self.buf[from..from + len])
    }
}
