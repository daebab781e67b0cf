//! Does who reads a log piece by piece, going on with a cursor, get just what who reads it in one go gets? And of a damaged
//! one nothing that is not sound, and of a frame that was damaged before it is entered nothing at all?
#![allow(clippy::unwrap_used, missing_docs)]

mod memory;
mod sim;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use hackbrain::wal::frame::{BLOCK, FrameHeader, SECTOR, decode_header};
use hackbrain::wal::reader::{Cursor, Reader};
use hackbrain::wal::writer::{Options, Wal};
use memory::MemoryDir;
use sim::Random;

/// Bytes of a piece, as answers have it.
const PIECE: usize = 16 << 10;

struct Log {
    dir: Arc<MemoryDir>,
    /// Holds the reader's index; nothing is appended any more.
    wal: Wal,
    records: Vec<Vec<u8>>,
}

/// Lengths that lie in a sector and over many, and one that takes more than is read at once.
fn record(seq: u64) -> Vec<u8> {
    let len = match seq {
        300 => 90_000,
        _ => [40, 600, 496, 497, 5000, 3, 1200][(seq % 7) as usize],
    };
    (0..len).map(|i| (seq + i) as u8).collect()
}

/// Frames of a record, of some, of hundreds, and of one that is longer than they may have together; in several segments.
fn log() -> Log {
    let dir = Arc::new(MemoryDir::default());
    let options = Options { first_segment_size: 1 << 20, ..Options::new(4 << 20) };
    let (wal, _) = Wal::open(dir.clone(), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
    let mut records = Vec::new();
    for count in [1, 3, 400, 1, 500, 20, 1, 500, 300] {
        wal.append_all(
            count,
            |_, seq, _, body| {
                records.push(record(seq));
                body.extend(record(seq));
            },
            |_, _| {},
        )
        .unwrap();
        wal.wait(records.len() as u64).unwrap();
    }
    records.push(vec![7; 3 << 19]);
    wal.append(|_, _, body| body.extend(vec![7; 3 << 19])).unwrap();
    records.push(record(records.len() as u64 + 1));
    wal.append(|seq, _, body| body.extend(record(seq))).unwrap();
    wal.wait(records.len() as u64).unwrap();
    let log = Log { dir, wal, records };
    let frames = log.frames();
    assert!(frames.iter().any(|(_, frame)| frame.records > 300 && frame.blocks as usize * BLOCK > 16 * PIECE));
    assert!(frames.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len() > 1, "several segments");
    log
}

impl Log {
    fn reader(&self) -> Arc<Reader> {
        self.wal.reader()
    }

    fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// The frames that have records, in order, each with the name of its segment.
    fn frames(&self) -> Vec<(String, FrameHeader)> {
        let mut found = Vec::new();
        for (name, bytes) in self.dir.files().into_iter().filter(|(name, _)| name.ends_with(".log")) {
            let headers = bytes.chunks_exact(BLOCK).filter_map(decode_header).filter(|header| header.records > 0);
            found.extend(headers.map(|header| (name.clone(), header)));
        }
        found
    }

    /// Reads from `next` on until there are `most` bytes: each record once, in order, as it was written.
    fn piece(&self, reader: &Reader, cursor: &mut Cursor, next: &mut u64, most: usize) -> io::Result<()> {
        let mut bytes = 0;
        reader.read_on(cursor, *next, self.last(), &mut |seq, record| {
            assert_eq!(seq, *next);
            assert!(record == self.records[seq as usize - 1], "record {seq}");
            *next += 1;
            bytes += record.len();
            bytes < most
        })
    }
}

#[test]
fn pieces_of_any_length_join_to_the_whole() {
    let log = log();
    let reader = log.reader();
    for most in [1, 600, PIECE, PIECE + 1, 1 << 18, usize::MAX] {
        let (mut cursor, mut next) = (Cursor::default(), 1);
        while next <= log.last() {
            let before = next;
            log.piece(&reader, &mut cursor, &mut next, most).unwrap();
            assert!(next > before, "a piece has a record at least");
        }
        log.piece(&reader, &mut cursor, &mut next, most).unwrap();
        assert_eq!(next, log.last() + 1, "nothing follows the last");
    }
}

#[test]
fn a_cursor_may_be_used_for_any_other_place() {
    let log = log();
    let reader = log.reader();
    let mut random = Random(0x5EED);
    let (mut cursor, mut next) = (Cursor::default(), 1);
    for round in 0..4000 {
        // A little ahead, as in a trace; the same again; anywhere.
        next = match random.below(4) {
            0 | 1 => (next + random.below(80)).min(log.last()),
            2 => (next - 1).max(1),
            _ => 1 + random.below(log.last()),
        };
        let most = [1, 700, PIECE][random.below(3) as usize];
        log.piece(&reader, &mut cursor, &mut next, most).unwrap_or_else(|error| panic!("round {round}: {error}"));
        next = next.min(log.last());
    }
}

#[test]
fn only_what_is_sound_is_told() {
    let log = log();
    let reader = log.reader();
    for (name, frame) in log.frames() {
        let sectors = frame.sectors();
        let mut seen = BTreeSet::new();
        for sector in (0..sectors).step_by(1 + sectors / 40).chain([sectors - 1]) {
            let bit = (frame.offset as usize + sector * SECTOR + 77) * 8 + 3;
            let (mut entered, mut inside, mut next) = (Cursor::default(), Cursor::default(), frame.first_seq);
            log.piece(&reader, &mut inside, &mut next, 1).unwrap();
            log.dir.flip(&name, bit);
            // Who comes to the frame now is told none of it.
            let mut other = frame.first_seq;
            let refused = log.piece(&reader, &mut entered, &mut other, 1).unwrap_err();
            assert_eq!((refused.kind(), other), (io::ErrorKind::InvalidData, frame.first_seq));
            // Who is within it gets no further than to what is damaged; whatever came was as it was written.
            let ended = loop {
                match log.piece(&reader, &mut inside, &mut next, PIECE) {
                    Ok(()) if next >= frame.next_seq() => break Ok(()),
                    Ok(()) => {}
                    Err(error) => break Err(error.kind()),
                }
            };
            seen.insert(next);
            if next < frame.next_seq() {
                assert_eq!(ended, Err(io::ErrorKind::InvalidData), "{name} {frame:?} sector {sector}");
                let again = log.piece(&reader, &mut inside, &mut next, PIECE).unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::InvalidData, "and no further when it asks again");
            }
            log.dir.flip(&name, bit);
            log.piece(&reader, &mut inside, &mut next, PIECE).unwrap();
        }
        assert!(frame.records < 300 || seen.len() > 10, "what is before the damage is told: {seen:?}");
    }
}
