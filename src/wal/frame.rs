//! The on-disk format, over slices: sectors, frames, segment headers. Pure; docs/wal-format.md has the same as tables.
//!
//! Everything is little-endian. A **sector** is 512 bytes: 504 of payload, a mark, a checksum. The mark names the commit
//! and is never zero, so each sector of a zero-filled segment can be told apart as unwritten, sound or bad. A **frame** is
//! one commit: whole blocks of sectors, a header at their front, then records, then non-zero padding.

use std::ops::Range;

/// Writes start and end at multiples of this many bytes.
pub const BLOCK: usize = 4096;
/// What a medium writes whole or not at all.
pub const SECTOR: usize = 512;
/// Payload bytes of a sector; the rest is mark and checksum.
pub const SECTOR_PAYLOAD: usize = SECTOR - 8;
/// Bytes of a frame header, at the front of the frame's payload.
pub const FRAME_HEADER: usize = 128;
/// Bytes before each record: its length, never zero.
pub const RECORD_HEADER: usize = 4;
/// A frame gathers records up to this many blocks (1 MiB); only a single larger record makes it longer.
pub const FRAME_BLOCKS_MAX: usize = 256;
/// The first frame of a segment starts here; blocks 0 and 1 hold the segment header, twice.
pub const SEGMENT_DATA_START: u64 = 2 * BLOCK as u64;
/// Version written into segment headers; a reader refuses others.
pub const FORMAT_VERSION: u32 = 1;

const FRAME_MAGIC: [u8; 4] = *b"HBF1";
const SEGMENT_MAGIC: [u8; 8] = *b"HBWAL\0\0\x01";
const MARK_BIT: u32 = 1 << 31;
const PADDING: u8 = 0xA5;

/// SHA-256.
pub type Digest = [u8; 32];

/// What a frame says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the frame in blocks.
    pub blocks: u32,
    /// Bytes of records behind the header, their length fields included.
    pub body_len: u32,
    /// Number of records; zero is legal and commits nothing.
    pub records: u32,
    /// Random number of the segment.
    pub salt: u64,
    /// Counts commits over the whole log, from 1.
    pub commit: u64,
    /// Seq of the first record.
    pub first_seq: u64,
    /// Where the frame starts in its segment; a misdirected write shows here.
    pub offset: u64,
    /// SHA-256 of the record before the first (zeros before seq 1).
    pub prev_hash: Digest,
    /// SHA-256 of the last record.
    pub head_hash: Digest,
}

impl FrameHeader {
    /// Number of the frame's sectors.
    pub fn sectors(&self) -> usize {
        self.blocks as usize * (BLOCK / SECTOR)
    }

    /// Where the frame ends in its segment.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.blocks) * BLOCK as u64
    }

    /// Seq of the record that follows its last one.
    pub fn next_seq(&self) -> u64 {
        self.first_seq + u64::from(self.records)
    }
}

/// Blocks that a frame with `body_len` bytes of records takes.
pub fn frame_blocks(body_len: usize) -> usize {
    (FRAME_HEADER + body_len).div_ceil(SECTOR_PAYLOAD).div_ceil(BLOCK / SECTOR)
}

/// The longest body that fits in `blocks` blocks.
pub const fn body_capacity(blocks: usize) -> usize {
    blocks * (BLOCK / SECTOR) * SECTOR_PAYLOAD - FRAME_HEADER
}

/// Encodes a frame into the first `header.blocks` blocks of `out`.
///
/// `body` holds the records, each behind its length; `header.body_len` must be its length.
pub fn encode_frame(header: &FrameHeader, body: &[u8], out: &mut [u8]) {
    assert_eq!(header.body_len as usize, body.len(), "the header describes this body");
    assert_eq!(header.blocks as usize, frame_blocks(body.len()), "a frame takes just the blocks it needs");
    let head = encode_header(header);
    let (first, rest) = body.split_at(body.len().min(SECTOR_PAYLOAD - FRAME_HEADER));
    let mut rest = rest.chunks(SECTOR_PAYLOAD);
    for (index, sector) in out[..header.blocks as usize * BLOCK].chunks_exact_mut(SECTOR).enumerate() {
        let payload = &mut sector[..SECTOR_PAYLOAD];
        let filled = if index == 0 {
            payload[..FRAME_HEADER].copy_from_slice(&head);
            payload[FRAME_HEADER..FRAME_HEADER + first.len()].copy_from_slice(first);
            FRAME_HEADER + first.len()
        } else {
            let part = rest.next().unwrap_or_default();
            payload[..part.len()].copy_from_slice(part);
            part.len()
        };
        payload[filled..].fill(PADDING);
        seal_sector(sector, header.salt, header.offset + (index * SECTOR) as u64, header.commit);
    }
}

fn encode_header(h: &FrameHeader) -> [u8; FRAME_HEADER] {
    let mut b = [0; FRAME_HEADER];
    b[0..4].copy_from_slice(&FRAME_MAGIC);
    b[8..12].copy_from_slice(&h.blocks.to_le_bytes());
    b[12..16].copy_from_slice(&h.body_len.to_le_bytes());
    b[16..20].copy_from_slice(&h.records.to_le_bytes());
    b[24..32].copy_from_slice(&h.salt.to_le_bytes());
    b[32..40].copy_from_slice(&h.commit.to_le_bytes());
    b[40..48].copy_from_slice(&h.first_seq.to_le_bytes());
    b[48..56].copy_from_slice(&h.offset.to_le_bytes());
    b[64..96].copy_from_slice(&h.prev_hash);
    b[96..128].copy_from_slice(&h.head_hash);
    let crc = crc32c::crc32c(&b[8..]);
    b[4..8].copy_from_slice(&crc.to_le_bytes());
    b
}

/// Reads a frame header from the front of a block. `None` unless magic and the header's own checksum hold, so that its
/// length may be trusted even where the records behind it are damaged.
pub fn decode_header(block: &[u8]) -> Option<FrameHeader> {
    let b = block.get(..FRAME_HEADER)?;
    if b[0..4] != FRAME_MAGIC || u32_at(b, 4) != crc32c::crc32c(&b[8..]) {
        return None;
    }
    let header = FrameHeader {
        blocks: u32_at(b, 8),
        body_len: u32_at(b, 12),
        records: u32_at(b, 16),
        salt: u64_at(b, 24),
        commit: u64_at(b, 32),
        first_seq: u64_at(b, 40),
        offset: u64_at(b, 48),
        prev_hash: digest_at(b, 64),
        head_hash: digest_at(b, 96),
    };
    let consistent = header.blocks as usize == frame_blocks(header.body_len as usize)
        && u64::from(header.records) * (RECORD_HEADER as u64 + 1) <= u64::from(header.body_len)
        && (header.records > 0) == (header.body_len > 0);
    consistent.then_some(header)
}

/// Copies the records' bytes of a frame, whose sectors are known to be sound, into `body`.
pub fn unpack_body(header: &FrameHeader, frame: &[u8], body: &mut Vec<u8>) {
    unpack_sectors(header, 0, frame, body);
}

/// The same of a part of a frame: `sectors`, of which the first has the number `first`. Returns where in the frame's body
/// that part begins.
pub fn unpack_sectors(header: &FrameHeader, first: usize, sectors: &[u8], body: &mut Vec<u8>) -> usize {
    body.clear();
    let at = first * SECTOR_PAYLOAD;
    let mut skip = FRAME_HEADER.saturating_sub(at);
    let start = at + skip - FRAME_HEADER;
    let mut left = (header.body_len as usize).saturating_sub(start);
    for sector in sectors.chunks_exact(SECTOR) {
        let take = left.min(SECTOR_PAYLOAD - skip);
        body.extend_from_slice(&sector[skip..skip + take]);
        left -= take;
        skip = 0;
        if left == 0 {
            break;
        }
    }
    start
}

/// The numbers of the sectors in which these bytes of a frame's body lie.
pub fn sectors_of(part: &Range<usize>) -> Range<usize> {
    (FRAME_HEADER + part.start) / SECTOR_PAYLOAD..(FRAME_HEADER + part.end).div_ceil(SECTOR_PAYLOAD)
}

/// The records of a body, in order; ends early (with `None`) where lengths do not add up.
pub fn records(body: &[u8]) -> impl Iterator<Item = Option<&[u8]>> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        match rest.get(..RECORD_HEADER).and_then(record_len) {
            Some(len) if len <= rest.len() - RECORD_HEADER => {
                let (record, behind) = rest[RECORD_HEADER..].split_at(len);
                rest = behind;
                Some(Some(record))
            }
            _ => {
                rest = &[];
                Some(None)
            }
        }
    })
}

/// The length of a record, from the bytes before it; `None` where it is zero, which is illegal.
pub fn record_len(header: &[u8]) -> Option<usize> {
    Some(u32_at(header, 0) as usize).filter(|len| *len > 0)
}

/// Appends a record to a body under construction: `write` adds its bytes, the length goes before them. Returns the
/// record's range in `body`.
pub fn push_record(body: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Range<usize> {
    let at = body.len();
    body.extend_from_slice(&[0; RECORD_HEADER]);
    write(body);
    let start = at + RECORD_HEADER;
    let len = u32::try_from(body.len() - start).expect("records are far below 4 GiB");
    assert!(len > 0, "an empty record is illegal: a length of zero never means anything");
    body[at..start].copy_from_slice(&len.to_le_bytes());
    start..body.len()
}

/// What one sector on the medium is, seen from the commit that is expected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sector {
    /// All zero: never written.
    Unwritten,
    /// Sound, and of the commit with these low 31 bits.
    Sound(u32),
    /// It was written whole by the expected commit and has changed since: its mark, or all but its mark, still holds.
    /// No crash leaves this.
    Rotten,
    /// Anything else: what a torn write may leave.
    Garbage,
}

/// The low 31 bits of a commit number, as sectors carry them.
pub fn commit_tag(commit: u64) -> u32 {
    (commit & u64::from(!MARK_BIT)) as u32
}

/// Classifies the sector at `offset` of a segment with `salt`, where `expected` is the commit that belongs there.
pub fn classify_sector(sector: &[u8], salt: u64, offset: u64, expected: u64) -> Sector {
    if sector.iter().all(|b| *b == 0) {
        return Sector::Unwritten;
    }
    let mark = u32_at(sector, SECTOR_PAYLOAD);
    let stored = u32_at(sector, SECTOR_PAYLOAD + 4);
    let expected_mark = MARK_BIT | commit_tag(expected);
    if mark & MARK_BIT != 0 && stored == sector_crc(&sector[..SECTOR_PAYLOAD], salt, offset, mark) {
        Sector::Sound(mark & !MARK_BIT)
    } else if mark == expected_mark || stored == sector_crc(&sector[..SECTOR_PAYLOAD], salt, offset, expected_mark) {
        Sector::Rotten
    } else {
        Sector::Garbage
    }
}

/// Whether every sector of `frame`, which starts at `offset`, is sound and of `commit`.
pub fn frame_is_sound(frame: &[u8], salt: u64, offset: u64, commit: u64) -> bool {
    sectors_are_sound(frame, salt, offset, commit)
}

/// The same of some sectors, of which the first lies at `offset` of the segment.
pub fn sectors_are_sound(sectors: &[u8], salt: u64, offset: u64, commit: u64) -> bool {
    let mark = MARK_BIT | commit_tag(commit);
    sectors.chunks_exact(SECTOR).enumerate().all(|(index, sector)| {
        u32_at(sector, SECTOR_PAYLOAD) == mark
            && u32_at(sector, SECTOR_PAYLOAD + 4)
                == sector_crc(&sector[..SECTOR_PAYLOAD], salt, offset + (index * SECTOR) as u64, mark)
    })
}

fn seal_sector(sector: &mut [u8], salt: u64, offset: u64, commit: u64) {
    let mark = MARK_BIT | commit_tag(commit);
    let crc = sector_crc(&sector[..SECTOR_PAYLOAD], salt, offset, mark);
    sector[SECTOR_PAYLOAD..SECTOR_PAYLOAD + 4].copy_from_slice(&mark.to_le_bytes());
    sector[SECTOR_PAYLOAD + 4..].copy_from_slice(&crc.to_le_bytes());
}

/// Salt and place are part of the checksum: a sector of another segment, or written to the wrong place, is not sound.
fn sector_crc(payload: &[u8], salt: u64, offset: u64, mark: u32) -> u32 {
    let mut place = [0; 20];
    place[..8].copy_from_slice(&salt.to_le_bytes());
    place[8..16].copy_from_slice(&offset.to_le_bytes());
    place[16..].copy_from_slice(&mark.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), payload)
}

/// What a segment says of itself and of its predecessor, which it seals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Random identity of the log.
    pub log_id: [u8; 16],
    /// Counts segments from 1 without gaps.
    pub segno: u64,
    /// Length of the file in bytes.
    pub size: u64,
    /// Random number that marks this segment's sectors.
    pub salt: u64,
    /// Seq of the first record that this segment will hold.
    pub first_seq: u64,
    /// Commit number of its first frame.
    pub first_commit: u64,
    /// SHA-256 of the record before `first_seq` (zeros before seq 1).
    pub prev_hash: Digest,
    /// Where the predecessor ends, in bytes from its start (0 for the first segment).
    pub prev_end: u64,
}

/// Encodes a segment header into the first block of `out`.
pub fn encode_segment_header(h: &SegmentHeader, out: &mut [u8]) {
    let b = &mut out[..BLOCK];
    b.fill(PADDING);
    b[0..8].copy_from_slice(&SEGMENT_MAGIC);
    b[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    b[12..16].copy_from_slice(&(BLOCK as u32).to_le_bytes());
    b[16..32].copy_from_slice(&h.log_id);
    b[32..40].copy_from_slice(&h.segno.to_le_bytes());
    b[40..48].copy_from_slice(&h.size.to_le_bytes());
    b[48..56].copy_from_slice(&h.salt.to_le_bytes());
    b[56..64].copy_from_slice(&h.first_seq.to_le_bytes());
    b[64..72].copy_from_slice(&h.first_commit.to_le_bytes());
    b[72..80].copy_from_slice(&h.prev_end.to_le_bytes());
    b[80..112].copy_from_slice(&h.prev_hash);
    let crc = crc32c::crc32c(&b[..BLOCK - 4]);
    b[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// Why a block is no segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadHeader {
    /// Its checksum or magic does not hold.
    Damaged,
    /// It is of a format version that this reader does not know.
    Version(u32),
}

/// Reads a segment header from one block.
pub fn decode_segment_header(block: &[u8]) -> Result<SegmentHeader, BadHeader> {
    let b = block.get(..BLOCK).ok_or(BadHeader::Damaged)?;
    if b[0..8] != SEGMENT_MAGIC || u32_at(b, BLOCK - 4) != crc32c::crc32c(&b[..BLOCK - 4]) {
        return Err(BadHeader::Damaged);
    }
    let version = u32_at(b, 8);
    if version != FORMAT_VERSION || u32_at(b, 12) != BLOCK as u32 {
        return Err(BadHeader::Version(version));
    }
    let mut log_id = [0; 16];
    log_id.copy_from_slice(&b[16..32]);
    Ok(SegmentHeader {
        log_id,
        segno: u64_at(b, 32),
        size: u64_at(b, 40),
        salt: u64_at(b, 48),
        first_seq: u64_at(b, 56),
        first_commit: u64_at(b, 64),
        prev_end: u64_at(b, 72),
        prev_hash: digest_at(b, 80),
    })
}

/// File name of a segment.
pub fn segment_name(segno: u64) -> String {
    format!("wal-{segno:016x}.log")
}

/// The segment number in a file name, if it is one.
pub fn parse_segment_name(name: &str) -> Option<u64> {
    let hex = name.strip_prefix("wal-")?.strip_suffix(".log")?;
    let segno = u64::from_str_radix(hex, 16).ok()?;
    (segment_name(segno) == name).then_some(segno)
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from(u32_at(b, at)) | u64::from(u32_at(b, at + 4)) << 32
}

fn digest_at(b: &[u8], at: usize) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(&b[at..at + 32]);
    digest
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn frame(record: &[u8]) -> (FrameHeader, Vec<u8>) {
        let mut body = Vec::new();
        push_record(&mut body, |b| b.extend_from_slice(record));
        push_record(&mut body, |b| b.extend_from_slice(b"second"));
        let header = FrameHeader {
            blocks: frame_blocks(body.len()) as u32,
            body_len: body.len() as u32,
            records: 2,
            salt: 0x1122_3344_5566_7788,
            commit: 9,
            first_seq: 40,
            offset: SEGMENT_DATA_START,
            prev_hash: [1; 32],
            head_hash: [2; 32],
        };
        let mut out = vec![0; header.blocks as usize * BLOCK];
        encode_frame(&header, &body, &mut out);
        (header, out)
    }

    #[test]
    fn a_frame_comes_back_as_it_was_at_every_length() {
        for len in [1, 375, 376, 377, 504, 4000, 4031, 9000, 100_000] {
            let record: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let (header, bytes) = frame(&record);
            assert_eq!(decode_header(&bytes), Some(header.clone()));
            assert!(frame_is_sound(&bytes, header.salt, header.offset, header.commit));
            let mut body = Vec::new();
            unpack_body(&header, &bytes, &mut body);
            let got: Vec<_> = records(&body).collect();
            assert_eq!(got, [Some(&record[..]), Some(&b"second"[..])]);
            assert!(bytes.chunks(SECTOR).all(|s| s.iter().any(|b| *b != 0)), "no written sector is all zero");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_written_sector_reads_as_rot_and_never_as_sound() {
        let (h, bytes) = frame(&[0; 600]);
        for bit in 0..SECTOR * 8 {
            let mut sector = bytes[SECTOR..2 * SECTOR].to_vec();
            sector[bit / 8] ^= 1 << (bit % 8);
            let got = classify_sector(&sector, h.salt, h.offset + SECTOR as u64, h.commit);
            assert_eq!(got, Sector::Rotten, "bit {bit}");
        }
    }

    #[test]
    fn sectors_are_told_apart() {
        let (h, bytes) = frame(b"x");
        let at = h.offset + SECTOR as u64;
        let sector = &bytes[SECTOR..2 * SECTOR];
        assert_eq!(classify_sector(&[0; SECTOR], h.salt, at, 9), Sector::Unwritten);
        assert_eq!(classify_sector(sector, h.salt, at, 9), Sector::Sound(9));
        assert_eq!(classify_sector(sector, h.salt, at, 4), Sector::Sound(9), "a later commit shows itself");
        assert_eq!(classify_sector(sector, h.salt, at + 512, 4), Sector::Garbage, "misdirected");
        assert_eq!(classify_sector(sector, h.salt + 1, at, 4), Sector::Garbage, "of another segment");
        assert_eq!(classify_sector(&[0x5A; SECTOR], h.salt, at, 9), Sector::Garbage);
    }

    #[test]
    fn a_header_with_any_flipped_bit_is_none() {
        let (_, bytes) = frame(b"record");
        for bit in 0..FRAME_HEADER * 8 {
            let mut block = bytes.clone();
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_header(&block), None, "bit {bit}");
        }
    }

    #[test]
    fn lengths_that_do_not_add_up_end_the_records() {
        for body in [&[0, 0, 0, 0][..], &[5, 0, 0, 0, 1], &[1, 0], &[255, 255, 255, 255, 9]] {
            assert_eq!(records(body).collect::<Vec<_>>(), [None]);
        }
    }

    #[test]
    fn a_segment_header_comes_back_and_no_flipped_bit_passes() {
        let h = SegmentHeader {
            log_id: [7; 16],
            segno: 3,
            size: 1 << 20,
            salt: 5,
            first_seq: 100,
            first_commit: 50,
            prev_hash: [9; 32],
            prev_end: 40960,
        };
        let mut block = vec![0; BLOCK];
        encode_segment_header(&h, &mut block);
        assert_eq!(decode_segment_header(&block), Ok(h));
        for bit in 0..BLOCK * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_segment_header(&block), Err(BadHeader::Damaged), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn names_go_both_ways() {
        assert_eq!(parse_segment_name(&segment_name(0x2A)), Some(42));
        for bad in ["wal-2a.log", "wal-000000000000002A.log", "wal-0000000000000001.log.tmp", "segments"] {
            assert_eq!(parse_segment_name(bad), None);
        }
    }
}
