//! Any bytes as sectors, frames, records, headers: nothing panics, what is written comes back, what is altered does not.

use hackbrain::wal::frame::{
    BLOCK, FRAME_HEADER, FrameHeader, RECORD_HEADER, SECTOR, SEGMENT_DATA_START, Sector, classify_sector, commit_tag,
    decode_header, decode_segment_header, encode_frame, encode_segment_header, frame_blocks, frame_is_sound,
    parse_segment_name, push_record, records, segment_name, unpack_body,
};

use super::seal;

/// A frame is encoded again only up to this length: a header may tell of 4 GiB.
const BODY_MAX: u32 = 256 << 10;
/// Bytes 20 to 23 and 56 to 63 of a frame header mean nothing; a reader lets them be.
const UNUSED: [std::ops::Range<usize>; 2] = [20..24, 56..64];

pub fn run(data: &[u8]) {
    header(data);
    let mut block = vec![0; BLOCK];
    let len = data.len().min(BLOCK);
    block[..len].copy_from_slice(&data[..len]);
    seal::frame_header(&mut block);
    header(&block);
    segment(data);
    seal::segment_header(&mut block);
    segment(&block);
    sectors(data);
    lengths(data);
    round_trip(data);
    name(data);
}

fn header(data: &[u8]) {
    let Some(header) = decode_header(data) else { return };
    let mut body = Vec::new();
    unpack_body(&header, &data[..data.len() / BLOCK * BLOCK], &mut body);
    assert!(body.len() <= header.body_len as usize && body.len() <= data.len());
    // A frame lies within a file, and nobody writes one that does not.
    if header.body_len > BODY_MAX || header.offset > i64::MAX as u64 {
        return;
    }
    let mut out = vec![0; header.blocks as usize * BLOCK];
    encode_frame(&header, &vec![1; header.body_len as usize], &mut out);
    assert_eq!(decode_header(&out), Some(header.clone()), "a header comes back as it was");
    assert!(frame_is_sound(&out, header.salt, header.offset, header.commit));
    let mut before = data[..FRAME_HEADER].to_vec();
    UNUSED.into_iter().for_each(|range| before[range].fill(0));
    assert_eq!(out[8..FRAME_HEADER], before[8..], "the same bytes are written that were read");
}

fn segment(data: &[u8]) {
    let Ok(header) = decode_segment_header(data) else { return };
    let mut out = vec![0; BLOCK];
    encode_segment_header(&header, &mut out);
    assert_eq!(decode_segment_header(&out), Ok(header), "a segment header comes back as it was");
    assert_eq!(out[..112], data[..112], "the same bytes are written that were read");
}

fn sectors(data: &[u8]) {
    let (salt, commit) = (number(data, 0), number(data, 8));
    for (index, chunk) in data.chunks(SECTOR).enumerate().take(16) {
        let mut sector = vec![0; SECTOR];
        sector[..chunk.len()].copy_from_slice(chunk);
        let offset = SEGMENT_DATA_START + (index * SECTOR) as u64;
        let blank = sector.iter().all(|b| *b == 0);
        assert_eq!(classify_sector(&sector, salt, offset, commit) == Sector::Unwritten, blank);
        seal::sector(&mut sector, salt, offset, commit);
        let sound = Sector::Sound(commit_tag(commit));
        for expected in [commit, commit.wrapping_add(1)] {
            assert_eq!(classify_sector(&sector, salt, offset, expected), sound, "sealed, it is sound to everyone");
        }
        let bit = number(chunk, 16) as usize % (SECTOR * 8);
        sector[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(classify_sector(&sector, salt, offset, commit), Sector::Rotten, "one bit flipped");
    }
}

fn lengths(data: &[u8]) {
    let mut again = Vec::new();
    let mut whole = true;
    for record in records(data) {
        assert!(whole, "nothing comes after lengths that do not add up");
        match record {
            Some(bytes) => drop(push_record(&mut again, |out| out.extend_from_slice(bytes))),
            None => whole = false,
        }
    }
    assert!(data.starts_with(&again) && (again.len() == data.len()) == whole);
}

/// The bytes as records of a frame: each begins with a byte that tells its length.
fn round_trip(data: &[u8]) {
    let (mut body, mut given, mut rest) = (Vec::new(), Vec::new(), data);
    while let Some((len, behind)) = rest.split_first() {
        let (record, behind) = behind.split_at(behind.len().min(1 + usize::from(*len) * 8));
        rest = behind;
        if !record.is_empty() {
            push_record(&mut body, |out| out.extend_from_slice(record));
            given.push(record);
        }
    }
    let header = FrameHeader {
        blocks: frame_blocks(body.len()) as u32,
        body_len: body.len() as u32,
        records: given.len() as u32,
        salt: number(data, 0),
        commit: number(data, 8),
        first_seq: number(data, 16),
        offset: number(data, 24) >> 16 << 12,
        prev_hash: [3; 32],
        head_hash: [4; 32],
    };
    let mut out = vec![0; header.blocks as usize * BLOCK];
    encode_frame(&header, &body, &mut out);
    assert_eq!(decode_header(&out), Some(header.clone()));
    assert!(frame_is_sound(&out, header.salt, header.offset, header.commit));
    let mut unpacked = Vec::new();
    unpack_body(&header, &out, &mut unpacked);
    assert_eq!(unpacked, body);
    assert_eq!(records(&unpacked).map(Option::unwrap).collect::<Vec<_>>(), given);
    assert_eq!(body.len(), given.iter().map(|record| record.len() + RECORD_HEADER).sum::<usize>());
    let bit = number(data, 32) as usize % (out.len() * 8);
    out[bit / 8] ^= 1 << (bit % 8);
    assert!(!frame_is_sound(&out, header.salt, header.offset, header.commit), "bit {bit} flipped");
}

fn name(data: &[u8]) {
    let given = String::from_utf8_lossy(&data[..data.len().min(64)]);
    for name in [given.to_string(), format!("wal-{given}.log")] {
        if let Some(segno) = parse_segment_name(&name) {
            assert_eq!(segment_name(segno), name);
        }
    }
    assert_eq!(parse_segment_name(&segment_name(number(data, 0))), Some(number(data, 0)));
}

fn number(data: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(data.iter().skip(at)) {
        *to = *from;
    }
    u64::from_le_bytes(bytes)
}
