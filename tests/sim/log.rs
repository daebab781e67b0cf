//! A plain log on the simulated disk: what tests append to it, and what they must find in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hackbrain::wal::recovery::{Ending, Scan, ScanError, recover};
use hackbrain::wal::writer::{Latched, Options, Outcome, Wal};

use super::SimDisk;

pub const OPTIONS: Options = Options { segment_size: 128 << 10, first_segment_size: 32 << 10, mark_after: None };

pub type Files = BTreeMap<String, Vec<u8>>;

pub fn record(seq: u64) -> Vec<u8> {
    // Lengths from a few bytes to several blocks, so that frames of all shapes occur.
    let len = [3, 300, 504, 5000, 12_000][(seq % 5) as usize];
    let mut bytes = format!("record {seq} ").into_bytes();
    bytes.resize(bytes.len() + len, b'a' + (seq % 26) as u8);
    bytes
}

pub fn open(disk: &SimDisk) -> Result<(Wal, Vec<Vec<u8>>), ScanError> {
    let mut found = Vec::new();
    let noting = disk.clone();
    let on_outcome = Box::new(move |outcome: Outcome| {
        if let Outcome::DurableBelow(below) = outcome {
            noting.note_acknowledged(below);
        }
    });
    let (wal, _) = Wal::open(
        Arc::new(disk.clone()),
        OPTIONS,
        &mut |record| {
            found.push(record.bytes.to_vec());
            Ok(())
        },
        on_outcome,
    )?;
    Ok((wal, found))
}

/// Appends `count` records, waiting after every third, so that frames of one and of several records are written.
pub fn append(wal: &Wal, from: u64, count: u64) -> Result<u64, Latched> {
    for seq in from..from + count {
        let (got, _) = wal.append(|seq, _, body| body.extend_from_slice(&record(seq)))?;
        assert_eq!(got, seq);
        if seq % 3 == 0 {
            wal.wait(seq)?;
        }
    }
    wal.wait(from + count - 1)?;
    Ok(from + count - 1)
}

pub fn read_back(disk: &SimDisk) -> Result<(Scan, Vec<Vec<u8>>), ScanError> {
    let mut found = Vec::new();
    let scan = recover(disk, OPTIONS.first_segment_size, &mut |record| {
        found.push(record.bytes.to_vec());
        Ok(())
    })?;
    Ok((scan, found))
}

/// Recovers the log in `files`, checks the promises, and goes on with it.
pub fn check(files: &Files, acknowledged_below: u64, appended_below: u64, what: &str) {
    let disk = SimDisk::from_files(files);
    let (_, found) = read_back(&disk).unwrap_or_else(|error| panic!("{what}: a crash was called: {error}"));
    let below = found.len() as u64 + 1;
    assert!(below >= acknowledged_below, "{what}: acknowledged below {acknowledged_below}, found below {below}");
    assert!(below <= appended_below, "{what}: appended below {appended_below}, found below {below}");
    for (seq, bytes) in (1..).zip(&found) {
        assert_eq!(*bytes, record(seq), "{what}: record {seq}");
    }
    let after_first = disk.files();
    let (scan, again) = read_back(&disk).unwrap_or_else(|error| panic!("{what}: second recovery: {error}"));
    assert_eq!(again, found, "{what}: a second recovery finds the same");
    assert_eq!(disk.files(), after_first, "{what}: a second recovery changes nothing");
    assert_eq!(scan.ending, Ending::Clean, "{what}: the torn tail is sealed");
    // What was recovered can be looked up, too, across whatever was torn, and together with what is written now.
    let (wal, _) = open(&disk).unwrap_or_else(|error| panic!("{what}: opening: {error}"));
    let (seq, _) = wal.append(|seq, _, body| body.extend_from_slice(&record(seq))).unwrap();
    wal.wait(seq).unwrap();
    let mut looked_up = 0;
    let outcome = wal.reader().read(1, seq, &mut |seq, bytes| {
        looked_up += 1;
        assert_eq!((seq, bytes), (looked_up, &record(seq)[..]), "{what}: look-up");
        true
    });
    assert!(outcome.is_ok() && looked_up == seq, "{what}: {outcome:?}, {looked_up} of {seq}");
}
