//! Does a scan that reads ahead on all cores find just what one does that reads frame by frame? Sound, torn and damaged logs.
#![allow(clippy::unwrap_used, missing_docs)]

mod memory;
mod sim;

use std::sync::Arc;

use hackbrain::hash::Hash;
use hackbrain::wal::frame::{BLOCK, SECTOR};
use hackbrain::wal::recovery::{LookAhead, Reading, scan_on};
use hackbrain::wal::writer::{Options, Wal};
use memory::{Files, MemoryDir};
use sim::Random;

const DAMAGES: u32 = 600;

fn record(seq: u64) -> Vec<u8> {
    let len = [40, 600, 5000, 20_000, 3][(seq % 5) as usize];
    (0..len).map(|i| (seq + i) as u8).collect()
}

/// Several segments, frames of one and of many records, of one and of many blocks, one of them longer than what is read at
/// once, and a mark at the end.
fn log() -> Files {
    let dir = Arc::new(MemoryDir::default());
    let options = Options { segment_size: 2 << 20, first_segment_size: 128 << 10, ..Options::new(2 << 20) };
    let (wal, _) = Wal::open(dir.clone(), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
    for seq in 1..=400 {
        wal.append(|seq, _, body| body.extend(record(seq))).unwrap();
        if seq % 7 == 0 {
            wal.wait(seq).unwrap();
        }
    }
    wal.append(|_, _, body| body.resize(3 << 19, 7)).unwrap();
    wal.wait(401).unwrap();
    wal.append(|seq, _, body| body.extend(record(seq))).unwrap();
    wal.close();
    let mut files = dir.files();
    files.retain(|name, _| !name.ends_with(".tmp"));
    assert!(files.len() >= 4, "{} files", files.len());
    files
}

/// All that a scan tells: the records that it visited, and its outcome.
fn tell(dir: &MemoryDir, look_ahead: LookAhead) -> (Vec<(u64, Hash, usize)>, String) {
    let mut seen = Vec::new();
    let reading = Reading {
        parse: &|bytes: &[u8]| (Hash::of(bytes), bytes.len()),
        visit: &mut |record, (hash, len)| {
            assert_eq!((hash, len), (Hash(record.hash), record.bytes.len()), "what was parsed is this record");
            seen.push((record.seq, hash, len));
            Ok(())
        },
    };
    let outcome = scan_on(dir, look_ahead, reading);
    (seen, format!("{outcome:?}"))
}

#[test]
fn reading_ahead_changes_nothing_that_a_scan_tells() {
    let files = log();
    let dir = MemoryDir::of(&files);
    let (seen, sound) = tell(&dir, LookAhead::Never);
    assert_eq!(seen.len(), 402, "{sound}");
    assert_eq!(tell(&dir, LookAhead::Always), (seen, sound));
    let seed = std::env::var("HACKBRAIN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0x5EED_A4EA);
    let mut random = Random(seed);
    let names: Vec<&String> = files.keys().collect();
    let (mut refused, mut shorter) = (0, 0);
    for damage in 0..DAMAGES {
        let name = names[random.below(names.len() as u64) as usize];
        let written = files[name].len() - files[name].iter().rev().take_while(|byte| **byte == 0).count();
        let at = random.below(written as u64) as usize;
        let (from, len) = match random.below(3) {
            0 => {
                dir.flip(name, at * 8);
                (at, 1)
            }
            1 => (at / SECTOR * SECTOR, SECTOR),
            _ => (at / BLOCK * BLOCK, BLOCK),
        };
        if len > 1 {
            dir.overwrite(name, from, &vec![0; len]);
        }
        let alone = tell(&dir, LookAhead::Never);
        assert_eq!(tell(&dir, LookAhead::Always), alone, "seed {seed}, damage {damage}: {name}, {len} bytes at {from}");
        refused += u32::from(alone.1.starts_with("Err"));
        shorter += u32::from(alone.1.starts_with("Ok") && alone.0.len() < 402);
        dir.overwrite(name, from, &files[name][from..from + len]);
    }
    assert!(refused > DAMAGES / 2, "{refused} refused");
    assert_eq!(shorter, 0, "a log with a mark loses nothing silently");
}
