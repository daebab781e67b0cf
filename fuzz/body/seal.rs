//! The format's checksums, written down once more from docs/wal-format.md: they let the fuzzer's bytes get past them.

use hackbrain::wal::frame::{BLOCK, FRAME_HEADER, SECTOR, SECTOR_PAYLOAD};

const MARK_BIT: u32 = 1 << 31;

/// Gives a sector the mark of `commit` and the checksum that goes with it, `salt` and its place.
pub fn sector(sector: &mut [u8], salt: u64, offset: u64, commit: u64) {
    let mark = MARK_BIT | (commit as u32 & !MARK_BIT);
    let mut covered = Vec::with_capacity(20 + SECTOR_PAYLOAD);
    covered.extend_from_slice(&salt.to_le_bytes());
    covered.extend_from_slice(&offset.to_le_bytes());
    covered.extend_from_slice(&mark.to_le_bytes());
    covered.extend_from_slice(&sector[..SECTOR_PAYLOAD]);
    sector[SECTOR_PAYLOAD..SECTOR - 4].copy_from_slice(&mark.to_le_bytes());
    sector[SECTOR - 4..].copy_from_slice(&crc32c::crc32c(&covered).to_le_bytes());
}

/// Gives the front of a block a frame header's magic and checksum.
pub fn frame_header(block: &mut [u8]) {
    block[..4].copy_from_slice(b"HBF1");
    let crc = crc32c::crc32c(&block[8..FRAME_HEADER]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Gives a block a segment header's magic and checksum.
pub fn segment_header(block: &mut [u8]) {
    block[..8].copy_from_slice(b"HBWAL\0\0\x01");
    let crc = crc32c::crc32c(&block[..BLOCK - 4]);
    block[BLOCK - 4..BLOCK].copy_from_slice(&crc.to_le_bytes());
}

/// The text of a witness slot, whatever log and number it tells of, with its checksum.
pub fn witness_slot(slot: &mut [u8], log_id: &str, last: &str) {
    let text = format!("hackbrain-wal segments\nlog {log_id}\nlast {last}\n");
    let line = format!("{text}crc {:08x}\n", crc32c::crc32c(text.as_bytes()));
    slot.fill(b'\n');
    let len = line.len().min(slot.len());
    slot[..len].copy_from_slice(&line.as_bytes()[..len]);
}
