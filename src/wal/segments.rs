//! Making segments durable, and the witness that remembers how many there are.

use std::io;
use std::sync::Arc;

use super::frame::{BLOCK, Digest, SEGMENT_DATA_START, SegmentHeader, encode_segment_header, segment_name};
use super::storage::{BlockFile, Storage};
use crate::sys::block::{AlignedBuf, random_bytes};

/// The witness's file name. Without it a removed last segment would look like a shorter ledger.
pub const WITNESS: &str = "segments";
const WITNESS_MAGIC: &str = "hackbrain-wal segments";
const ZERO_CHUNK: usize = 1 << 20;

/// Where a log ends: all that is needed to go on writing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Random identity of the log.
    pub log_id: [u8; 16],
    /// The last segment.
    pub segno: u64,
    /// Its length in bytes.
    pub size: u64,
    /// Its random number.
    pub salt: u64,
    /// Where the next frame goes, in bytes from its start.
    pub offset: u64,
    /// Number of the next commit.
    pub next_commit: u64,
    /// Seq of the next record.
    pub next_seq: u64,
    /// SHA-256 of the last record (zeros where there is none).
    pub head_hash: Digest,
}

/// Writes `size` zeros to a new file `name`.tmp and syncs it; a leftover of that name is replaced. The file is never
/// extended afterwards, so that no commit waits for the file system to allocate.
pub fn prepare_zeroed(storage: &dyn Storage, name: &str, size: u64) -> io::Result<Arc<dyn BlockFile>> {
    let tmp = tmp_name(name);
    match storage.remove(&tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = storage.create(&tmp)?;
    let outcome = fill_with_zeros(&*file, size).and_then(|()| file.sync());
    if let Err(error) = outcome {
        // Give the space back: where the disk is full, someone else needs it now.
        let _ = storage.remove(&tmp);
        return Err(error);
    }
    Ok(file)
}

fn fill_with_zeros(file: &dyn BlockFile, size: u64) -> io::Result<()> {
    let zeros = AlignedBuf::new(ZERO_CHUNK.min(size as usize));
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(zeros.len() as u64);
        file.write_at(&zeros[..len as usize], offset)?;
        offset += len;
    }
    Ok(())
}

/// Gives a zeroed `.tmp` its header, twice, and its final name; durable on return. The header seals the predecessor.
pub fn activate(storage: &dyn Storage, file: &dyn BlockFile, header: &SegmentHeader) -> io::Result<()> {
    let mut blocks = AlignedBuf::new(SEGMENT_DATA_START as usize);
    encode_segment_header(header, &mut blocks[..BLOCK]);
    encode_segment_header(header, &mut blocks[BLOCK..]);
    file.write_at(&blocks, 0)?;
    file.sync()?;
    let name = segment_name(header.segno);
    storage.rename(&tmp_name(&name), &name)?;
    storage.sync_dir()
}

/// The header of the segment that follows `end`, with a new salt.
pub fn successor_header(end: &Position, size: u64) -> io::Result<SegmentHeader> {
    let mut salt = [0; 8];
    random_bytes(&mut salt)?;
    Ok(SegmentHeader {
        log_id: end.log_id,
        segno: end.segno + 1,
        size,
        salt: u64::from_le_bytes(salt),
        first_seq: end.next_seq,
        first_commit: end.next_commit,
        prev_hash: end.head_hash,
        prev_end: end.offset,
    })
}

/// The position at the front of a fresh segment.
pub fn position_at_start(header: &SegmentHeader) -> Position {
    Position {
        log_id: header.log_id,
        segno: header.segno,
        size: header.size,
        salt: header.salt,
        offset: SEGMENT_DATA_START,
        next_commit: header.first_commit,
        next_seq: header.first_seq,
        head_hash: header.prev_hash,
    }
}

/// The position before the first segment of a new log.
pub fn position_of_new_log() -> io::Result<Position> {
    let mut log_id = [0; 16];
    random_bytes(&mut log_id)?;
    Ok(Position { log_id, segno: 0, size: 0, salt: 0, offset: 0, next_commit: 1, next_seq: 1, head_hash: [0; 32] })
}

/// Name under which a file is prepared.
pub fn tmp_name(name: &str) -> String {
    format!("{name}.tmp")
}

/// How many segments there are, and of which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Witness {
    /// Random identity of the log.
    pub log_id: [u8; 16],
    /// The last segment's number.
    pub last: u64,
}

impl Witness {
    /// Creates the file, durably, with both of its slots telling of `self`.
    pub fn create(&self, storage: &dyn Storage) -> io::Result<()> {
        let tmp = tmp_name(WITNESS);
        match storage.remove(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = storage.create(&tmp)?;
        let mut slots = AlignedBuf::new(2 * BLOCK);
        self.encode(&mut slots[..BLOCK]);
        self.encode(&mut slots[BLOCK..]);
        file.write_at(&slots, 0)?;
        file.sync()?;
        storage.rename(&tmp, WITNESS)?;
        storage.sync_dir()
    }

    /// Overwrites the older slot, durably. A crash in the middle leaves the other slot, one segment behind, which
    /// recovery allows. Nothing is allocated, so a full disk cannot fail it.
    pub fn update(&self, file: &dyn BlockFile) -> io::Result<()> {
        let mut slot = AlignedBuf::new(BLOCK);
        self.encode(&mut slot);
        file.write_at(&slot, (self.last % 2) * BLOCK as u64)?;
        file.sync()
    }

    /// Reads the newer sound slot. `Ok(None)`: there is no such file. An error of kind `InvalidData`: no slot is sound.
    pub fn read(storage: &dyn Storage) -> io::Result<Option<Self>> {
        let file = match storage.open_for_lookup(WITNESS) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut slots = AlignedBuf::new(2 * BLOCK);
        if file.len()? != slots.len() as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not have its two blocks"));
        }
        file.read_at(&mut slots, 0)?;
        slots
            .chunks_exact(BLOCK)
            .filter_map(Self::decode)
            .max_by_key(|witness| witness.last)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "neither of its two slots is sound"))
    }

    /// Text, so that a person with `head -4` can read it; the checksum is over the lines before it.
    fn encode(&self, slot: &mut [u8]) {
        let text = format!("{WITNESS_MAGIC}\nlog {}\nlast {}\n", crate::wal::hex(&self.log_id), self.last);
        let line = format!("{text}crc {:08x}\n", crc32c::crc32c(text.as_bytes()));
        slot.fill(b'\n');
        slot[..line.len()].copy_from_slice(line.as_bytes());
    }

    fn decode(slot: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(slot).ok()?;
        let at = text.find("crc ")?;
        let (body, check) = text.split_at(at);
        let stored = u32::from_str_radix(check.get(4..12)?, 16).ok()?;
        if stored != crc32c::crc32c(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        (lines.next()? == WITNESS_MAGIC).then_some(())?;
        let log_id = u128::from_str_radix(lines.next()?.strip_prefix("log ")?, 16).ok()?.to_be_bytes();
        let last = lines.next()?.strip_prefix("last ")?.parse().ok()?;
        Some(Self { log_id, last })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_slot_comes_back_and_no_flipped_bit_in_its_text_passes() {
        let witness = Witness { log_id: [0xAB; 16], last: 12 };
        let mut slot = vec![0; BLOCK];
        witness.encode(&mut slot);
        assert_eq!(Witness::decode(&slot), Some(witness));
        let text_len = slot.iter().rposition(|b| *b != b'\n').unwrap();
        for bit in 0..(text_len + 1) * 8 {
            slot[bit / 8] ^= 1 << (bit % 8);
            let got = Witness::decode(&slot);
            assert!(got.is_none() || got == Some(witness), "bit {bit}: {got:?}");
            slot[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
