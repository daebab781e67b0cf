//! A sound log, altered as the bytes say, or even sealed again after it: recovery answers, always the same, and never with
//! other records than the files hold.

use std::sync::OnceLock;

use hackbrain::wal::frame::{
    BLOCK, Digest, FrameHeader, SECTOR, SEGMENT_DATA_START, SegmentHeader, decode_header, decode_segment_header,
    encode_frame, encode_segment_header, frame_blocks, frame_is_sound, push_record, records, segment_name, unpack_body,
};
use hackbrain::wal::recovery::{Ending, Scan, ScanError, Visit, recover, scan};
use hackbrain::wal::segments::WITNESS;
use sha2::{Digest as _, Sha256};

use super::seal;
use crate::memory::{Files, MemoryDir};

/// One execution stays short.
const EDITS_MAX: usize = 48;
const FILE_BYTES_MAX: usize = 12 * BLOCK;
const FILES_MAX: usize = 7;
/// What recovery opens behind a torn tail.
const SEGMENT_SIZE: u64 = 4 * BLOCK as u64;
const LOG_ID: [u8; 16] = [0x4C; 16];
/// Frames of each segment, as lengths of their records.
const SHAPE: [&[&[usize]]; 3] = [&[&[9, 300, 40], &[5000]], &[&[30; 60], &[]], &[&[12], &[700, 1, 600, 20]]];
const SEGMENT_BLOCKS: usize = 6;

/// The records that came, and how it ended; an error as its text.
type Read = (Vec<Vec<u8>>, Result<Option<Scan>, String>);

pub fn run(data: &[u8]) {
    let mut files = sound_log().clone();
    let mut input = Input(data);
    for _ in 0..EDITS_MAX {
        let Some(edit) = input.byte() else { break };
        apply(edit, &mut input, &mut files);
    }
    check(&files);
}

fn check(files: &Files) {
    let dir = MemoryDir::of(files);
    let (found, outcome) = read(|visit| scan(&dir, visit));
    assert_eq!(dir.changes(), 0, "a scan changes nothing");
    if let Ok(Some(scan)) = &outcome {
        assert_eq!(found, held(files), "the records of a sound log are those that its files hold");
        assert_eq!(scan.position.next_seq, found.len() as u64 + 1);
        let head = found.last().map_or([0; 32], |last| Sha256::digest(last).into());
        assert_eq!(scan.position.head_hash, head);
    }
    let (recovered, answer) = read(|visit| recover(&dir, SEGMENT_SIZE, visit).map(Some));
    assert_eq!(recovered, found, "recovery finds what the scan found");
    let scan_before = match (outcome, answer) {
        (Err(refused), Err(again)) => {
            assert_eq!(refused, again);
            assert!(dir.changes() == 0 && dir.files() == *files, "a damaged log is left as it was found");
            return;
        }
        (Ok(scan), Ok(_)) => scan,
        (before, after) => panic!("scan: {before:?}, recovery: {after:?}"),
    };
    let after = dir.files();
    if let Some(Scan { position, ending, .. }) = scan_before {
        let unchanged = (1..=position.segno).all(|segno| files[&segment_name(segno)] == after[&segment_name(segno)]);
        assert!(unchanged, "recovery never writes into an old segment");
        let opened = after.contains_key(&segment_name(position.segno + 1));
        assert_eq!(opened, ending != Ending::Clean, "a new segment seals a torn tail, and nothing else");
    }
    let (again, outcome) = read(|visit| recover(&dir, SEGMENT_SIZE, visit).map(Some));
    assert_eq!(outcome.unwrap().map(|scan| scan.ending), Some(Ending::Clean));
    assert_eq!(again, found, "a second recovery finds the same");
    assert!(dir.files() == after, "and changes nothing");
}

fn read(reader: impl FnOnce(&mut Visit<'_>) -> Result<Option<Scan>, ScanError>) -> Read {
    let mut found = Vec::new();
    let outcome = reader(&mut |record| {
        found.push(record.bytes.to_vec());
        assert_eq!(record.seq, found.len() as u64);
        assert_eq!(record.hash[..], Sha256::digest(record.bytes)[..]);
        Ok(())
    });
    if let Err(ScanError::Io { what, error }) = &outcome {
        panic!("this medium always answers: {what}: {error}");
    }
    (found, outcome.map_err(|error| error.to_string()))
}

/// The records of the sound frames that continue each other: a reader that never refuses, to compare with one that does.
fn held(files: &Files) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let (mut commit, mut head) = (1, [0; 32]);
    let mut body = Vec::new();
    for segno in 1.. {
        let Some((file, segment)) = open(files, segno) else { break };
        if segment.first_seq != found.len() as u64 + 1 || segment.prev_hash != head {
            break;
        }
        let declared_end = open(files, segno + 1).map(|(_, next)| next.prev_end);
        let mut at = SEGMENT_DATA_START;
        while declared_end != Some(at) {
            let Some(header) = file.get(at as usize..).and_then(decode_header) else { break };
            let end = at as usize + header.blocks as usize * BLOCK;
            let Some(frame) = file.get(at as usize..end) else { break };
            let continues = header.first_seq == found.len() as u64 + 1 && header.prev_hash == head;
            if !continues || header.commit != commit || !frame_is_sound(frame, header.salt, at, commit) {
                break;
            }
            unpack_body(&header, frame, &mut body);
            found.extend(records(&body).map_while(|record| record).map(<[u8]>::to_vec));
            head = found.last().map_or([0; 32], |last| Sha256::digest(last).into());
            at = end as u64;
            commit += 1;
        }
    }
    found
}

fn open(files: &Files, segno: u64) -> Option<(&Vec<u8>, SegmentHeader)> {
    let file = files.get(&segment_name(segno))?;
    let header = file.chunks(BLOCK).take(2).find_map(|block| decode_segment_header(block).ok())?;
    Some((file, header))
}

/// One alteration, its operands taken from the input. The numbers are the corpus's: a new one goes to the end.
fn apply(edit: u8, input: &mut Input<'_>, files: &mut Files) {
    match edit % 16 {
        0 => {
            let (name, at) = (input.file(files), input.half());
            let value = input.byte().unwrap_or(1);
            if let Some(byte) = files.get_mut(&name).and_then(|file| file.get_mut(at)) {
                *byte ^= value;
            }
        }
        1 => {
            let (name, at) = (input.file(files), input.half());
            let value = input.bytes(8).to_vec();
            overwrite(files, &name, at, &value);
        }
        2 => {
            let (name, at) = (input.file(files), input.small() * SECTOR);
            overwrite(files, &name, at, &[0; SECTOR]);
        }
        3 | 4 => {
            let (from, i) = (input.file(files), input.small() * BLOCK);
            let (to, j) = (input.file(files), input.small() * BLOCK);
            let block = |name, at: usize| files.get(name).and_then(|file| file.get(at..at + BLOCK)).map(<[u8]>::to_vec);
            if let (Some(one), Some(other)) = (block(&from, i), block(&to, j)) {
                overwrite(files, &to, j, &one);
                if edit % 16 == 4 {
                    overwrite(files, &from, i, &other);
                }
            }
        }
        5 => {
            let (name, len) = (input.file(files), input.half());
            files.entry(name).or_default().resize(len.min(FILE_BYTES_MAX), 0);
        }
        6 => {
            let name = input.file(files);
            files.remove(&name);
        }
        7 => {
            let (name, segno) = (input.file(files), u64::from(input.byte().unwrap_or(4)) % 6);
            if let Some(copy) = files.get(&name).filter(|_| files.len() < FILES_MAX).cloned() {
                files.insert(segment_name(segno), copy);
            }
        }
        8 => {
            // Every sector of a block that holds anything, as if just this had been written there.
            let (name, at, commit) = (input.file(files), input.small() * BLOCK, input.small() as u64);
            let Some(file) = files.get_mut(&name) else { return };
            let Some(salt) = salt_of(file) else { return };
            for offset in (at..at + BLOCK).step_by(SECTOR) {
                if let Some(sector) = file.get_mut(offset..offset + SECTOR).filter(|s| s.iter().any(|b| *b != 0)) {
                    seal::sector(sector, salt, offset as u64, commit);
                }
            }
        }
        9 | 10 => {
            let (name, at) = (input.file(files), input.small() * BLOCK);
            if let Some(block) = files.get_mut(&name).and_then(|file| file.get_mut(at..at + BLOCK)) {
                if edit % 16 == 9 { seal::frame_header(block) } else { seal::segment_header(block) }
            }
        }
        11 => {
            let slot = input.small() % 2 * BLOCK;
            let log_id = if input.small().is_multiple_of(4) { "7" } else { "4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c4c" };
            let len = input.small() % 24;
            let last = String::from_utf8_lossy(input.bytes(len)).into_owned();
            let Some(block) = files.get_mut(WITNESS).and_then(|file| file.get_mut(slot..slot + BLOCK)) else { return };
            seal::witness_slot(block, log_id, &last);
        }
        12 => put_frame(input, files),
        13 => put_segment(input, files),
        14 => {
            let (name, at, len) = (input.file(files), input.half(), input.small());
            let value = input.bytes(len).to_vec();
            overwrite(files, &name, at, &value);
        }
        _ => {
            if files.len() < FILES_MAX {
                let len = input.small();
                let name = String::from_utf8_lossy(input.bytes(len)).into_owned();
                files.insert(name, vec![0; 3 * BLOCK]);
            }
        }
    }
}

/// A frame that is sound in itself, whatever it says of its place in the log.
fn put_frame(input: &mut Input<'_>, files: &mut Files) {
    let (name, at) = (input.file(files), input.small() * BLOCK);
    let Some(salt) = files.get(&name).and_then(|file| salt_of(file)) else { return };
    let (mut body, mut count, mut head_hash) = (Vec::new(), 0, [0; 32]);
    for _ in 0..input.small() % 4 {
        let record = vec![b'x'; 1 + input.half() % 3000];
        push_record(&mut body, |out| out.extend_from_slice(&record));
        head_hash = Sha256::digest(&record).into();
        count += 1;
    }
    let mut header = FrameHeader {
        blocks: frame_blocks(body.len()) as u32,
        body_len: body.len() as u32,
        records: count,
        salt,
        commit: input.small() as u64,
        first_seq: input.small() as u64,
        offset: at as u64,
        prev_hash: hash_at(input.small()),
        head_hash,
    };
    if count == 0 {
        header.head_hash = header.prev_hash;
    }
    if input.small() % 8 == 1 {
        header.records += 1;
    }
    let mut frame = vec![0; header.blocks as usize * BLOCK];
    encode_frame(&header, &body, &mut frame);
    overwrite(files, &name, at, &frame);
}

/// A sound segment header, whatever it says of its predecessor.
fn put_segment(input: &mut Input<'_>, files: &mut Files) {
    let segno = input.small() as u64 % 6;
    let header = SegmentHeader {
        log_id: if input.small() % 8 == 1 { [9; 16] } else { LOG_ID },
        segno,
        size: (input.half() % FILE_BYTES_MAX) as u64,
        salt: 77 + segno,
        first_seq: input.small() as u64,
        first_commit: input.small() as u64,
        prev_hash: hash_at(input.small()),
        prev_end: (input.small() * BLOCK) as u64,
    };
    let mut blocks = vec![0; 2 * BLOCK];
    encode_segment_header(&header, &mut blocks[..BLOCK]);
    encode_segment_header(&header, &mut blocks[BLOCK..]);
    let name = segment_name(segno);
    if files.len() < FILES_MAX || files.contains_key(&name) {
        files.entry(name.clone()).or_default().resize(header.size as usize, 0);
        overwrite(files, &name, 0, &blocks);
    }
}

/// What fits of `bytes`; a file keeps its length.
fn overwrite(files: &mut Files, name: &str, at: usize, bytes: &[u8]) {
    let Some(room) = files.get_mut(name).and_then(|file| file.get_mut(at..)) else { return };
    let len = room.len().min(bytes.len());
    room[..len].copy_from_slice(&bytes[..len]);
}

fn salt_of(file: &[u8]) -> Option<u64> {
    file.chunks(BLOCK).take(2).find_map(|block| decode_segment_header(block).ok()).map(|header| header.salt)
}

/// The hash of the sound log's record `seq`, and zeros where there is none.
fn hash_at(seq: usize) -> Digest {
    let lengths = SHAPE.concat().concat();
    let known = seq.checked_sub(1).and_then(|index| lengths.get(index));
    known.map_or([0; 32], |len| Sha256::digest(record(seq as u64, *len)).into())
}

fn record(seq: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{seq} ").into_bytes();
    bytes.resize(len, b'a' + (seq % 26) as u8);
    bytes
}

/// Three segments of a few frames. The same bytes in every run, so that a corpus keeps its meaning.
fn sound_log() -> &'static Files {
    static LOG: OnceLock<Files> = OnceLock::new();
    LOG.get_or_init(|| {
        let mut files = Files::new();
        let (mut seq, mut commit, mut head, mut end) = (1, 1, [0; 32], 0);
        for (segno, frames) in (1..).zip(SHAPE) {
            let header = SegmentHeader {
                log_id: LOG_ID,
                segno,
                size: (SEGMENT_BLOCKS * BLOCK) as u64,
                salt: 0x5A17_0000 + segno,
                first_seq: seq,
                first_commit: commit,
                prev_hash: head,
                prev_end: end as u64,
            };
            let mut file = vec![0; SEGMENT_BLOCKS * BLOCK];
            encode_segment_header(&header, &mut file[..BLOCK]);
            encode_segment_header(&header, &mut file[BLOCK..]);
            end = SEGMENT_DATA_START as usize;
            for lengths in frames {
                let (first_seq, prev_hash, mut body) = (seq, head, Vec::new());
                for len in *lengths {
                    let bytes = record(seq, *len);
                    push_record(&mut body, |out| out.extend_from_slice(&bytes));
                    head = Sha256::digest(&bytes).into();
                    seq += 1;
                }
                let frame = FrameHeader {
                    blocks: frame_blocks(body.len()) as u32,
                    body_len: body.len() as u32,
                    records: lengths.len() as u32,
                    salt: header.salt,
                    commit,
                    first_seq,
                    offset: end as u64,
                    prev_hash,
                    head_hash: head,
                };
                encode_frame(&frame, &body, &mut file[end..]);
                end += frame.blocks as usize * BLOCK;
                commit += 1;
            }
            files.insert(segment_name(segno), file);
        }
        let mut witness = vec![0; 2 * BLOCK];
        for (slot, last) in [(0, "2"), (1, "3")] {
            seal::witness_slot(&mut witness[slot * BLOCK..(slot + 1) * BLOCK], &"4c".repeat(16), last);
        }
        files.insert(WITNESS.to_owned(), witness);
        check_is_sound(&files);
        files
    })
}

/// Were the log that everything starts from not sound, nothing would be tested.
fn check_is_sound(files: &Files) {
    let (found, outcome) = read(|visit| scan(&MemoryDir::of(files), visit));
    assert_eq!(found.len(), SHAPE.concat().concat().len());
    assert_eq!(outcome.unwrap().map(|scan| scan.ending), Some(Ending::Clean));
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn small(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn half(&mut self) -> usize {
        self.small() | self.small() << 8
    }

    fn bytes(&mut self, len: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// The name of a file that is there, or the witness's.
    fn file(&mut self, files: &Files) -> String {
        let index = self.small() % files.len().max(1);
        files.keys().nth(index).cloned().unwrap_or_else(|| WITNESS.to_owned())
    }
}
