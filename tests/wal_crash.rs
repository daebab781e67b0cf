//! Is every crash survivable? The log over a disk that is cut, fails, or is damaged at every point of a scenario.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use hackbrain::wal::frame::{BLOCK, SECTOR};
use hackbrain::wal::recovery::{Ending, Scan, ScanError, recover, scan};
use hackbrain::wal::writer::{Latched, Options, Outcome, Wal};
use sim::{Fault, Medium, Random, SimDisk};

const OPTIONS: Options = Options { segment_size: 128 << 10, first_segment_size: 32 << 10, mark_after: None };
/// States per point of the scenario. `HACKBRAIN_CRASH_STATES` asks for more.
const STATES_PER_POINT: u64 = 200;

type Files = BTreeMap<String, Vec<u8>>;

fn record(seq: u64) -> Vec<u8> {
    // Lengths from a few bytes to several blocks, so that frames of all shapes occur.
    let len = [3, 300, 504, 5000, 12_000][(seq % 5) as usize];
    let mut bytes = format!("record {seq} ").into_bytes();
    bytes.resize(bytes.len() + len, b'a' + (seq % 26) as u8);
    bytes
}

fn open(disk: &SimDisk) -> Result<(Wal, Vec<Vec<u8>>), ScanError> {
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
fn append(wal: &Wal, from: u64, count: u64) -> Result<u64, Latched> {
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

fn read_back(disk: &SimDisk) -> Result<(Scan, Vec<Vec<u8>>), ScanError> {
    let mut found = Vec::new();
    let scan = recover(disk, OPTIONS.first_segment_size, &mut |record| {
        found.push(record.bytes.to_vec());
        Ok(())
    })?;
    Ok((scan, found))
}

/// Recovers a cut disk and checks the promises.
fn check(files: &Files, acknowledged_below: u64, appended_below: u64, what: &str) {
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

fn states_per_point() -> u64 {
    std::env::var("HACKBRAIN_CRASH_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(STATES_PER_POINT)
}

/// Cuts the disk after every operation that `disk` recorded since it held `start`.
fn cut_everywhere(start: &Files, disk: &SimDisk, appended_below: u64, acknowledged: u64, random: &mut Random) -> u64 {
    let mut medium = Medium::new(start);
    medium.acknowledged_below = acknowledged;
    let mut states = 0;
    for (point, op) in disk.ops().iter().enumerate() {
        medium.apply(op);
        for _ in 0..states_per_point() {
            let what = format!("seed {:#x}, after op {point}", random.0);
            check(&medium.cut(random), medium.acknowledged_below, appended_below, &what);
            states += 1;
        }
    }
    states
}

#[test]
fn every_cut_of_appends_and_of_segment_changes_is_survived() {
    let mut random = Random(0x5EED_0001);
    let disk = SimDisk::default();
    let (wal, found) = open(&disk).unwrap();
    assert!(found.is_empty());
    append(&wal, 1, 40).unwrap();
    wal.close();
    let segments = disk.files().keys().filter(|name| name.ends_with(".log")).count();
    assert!(segments >= 3, "the scenario changes segments: {segments}");
    let states = cut_everywhere(&Files::new(), &disk, 41, 1, &mut random);
    assert!(states >= 10_000 || states_per_point() < STATES_PER_POINT, "{states} states");
}

#[test]
fn every_cut_of_a_recovery_from_a_torn_tail_is_survived() {
    let mut random = Random(0x5EED_0002);
    let disk = SimDisk::default();
    let (wal, _) = open(&disk).unwrap();
    append(&wal, 1, 7).unwrap();
    wal.close();
    let whole = disk.files();
    let name = whole.keys().rfind(|name| name.ends_with(".log")).unwrap().clone();
    let mut torn_cases = 0;
    // Tear the last frame at each of its sectors, then cut its recovery everywhere.
    let content = &whole[&name];
    let end =
        content.rchunks(SECTOR).position(|s| s.iter().any(|b| *b != 0)).map(|n| content.len() - n * SECTOR).unwrap();
    for tear_at in (end - 2 * BLOCK..end).step_by(SECTOR) {
        let mut files = whole.clone();
        files.get_mut(&name).unwrap()[tear_at..].fill(0);
        let disk = SimDisk::from_files(&files);
        let (scan, found) = read_back(&disk).unwrap();
        torn_cases += u64::from(scan.ending != Ending::Clean);
        let kept = found.len() as u64 + 1;
        cut_everywhere(&files, &disk, kept, kept, &mut random);
    }
    assert!(torn_cases >= 7, "{torn_cases} tears");
}

#[test]
fn every_failing_call_ends_the_log_and_loses_nothing_acknowledged() {
    let calls = {
        let disk = SimDisk::default();
        let (wal, _) = open(&disk).unwrap();
        append(&wal, 1, 30).unwrap();
        wal.close();
        disk.calls()
    };
    let mut failed = 0;
    for fault in [Fault::Error(io::ErrorKind::Other), Fault::ShortWrite] {
        for call in 0..calls {
            let disk = SimDisk::default();
            disk.fail_at(call, fault);
            let outcome = open(&disk).map(|(wal, _)| {
                let outcome = append(&wal, 1, 30);
                if let Err(latched) = &outcome {
                    let later = wal.append(|_, _, body| body.push(b'x'));
                    assert_eq!(later.as_ref().unwrap_err(), latched, "call {call}: the first error is everyone's");
                }
                wal.close();
                outcome
            });
            failed += u64::from(!matches!(outcome, Ok(Ok(_))));
            let acknowledged = disk.ops().iter().rev().find_map(|op| match op {
                sim::Op::Acknowledged(below) => Some(*below),
                _ => None,
            });
            disk.heal();
            check(&disk.files(), acknowledged.unwrap_or(1), 31, &format!("{fault:?} at call {call}"));
        }
    }
    // Not every call is one that the log depends on: a segment may be prepared that is never needed.
    assert!(failed as usize > calls / 2, "{failed} of {calls} calls, twice");
}

#[test]
fn a_full_disk_holds_up_the_next_segment_and_heals() {
    let disk = SimDisk::default();
    let (wal, _) = open(&disk).unwrap();
    disk.fill_up(2);
    append(&wal, 1, 3).unwrap();
    // The second segment cannot be prepared: that is told, and what has room in the first is still acknowledged.
    let told = (0..5000).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        wal.out_of_space()
    });
    assert!(told.is_some_and(|reason| reason.contains("no space")), "nobody was told of the full disk");
    assert_eq!(append(&wal, 4, 57), Ok(60), "it went on once there was space");
    assert!(!disk.is_full() && wal.out_of_space().is_none());
    wal.close();
    assert_eq!(read_back(&disk).unwrap().1.len(), 60);
}

/// A sound log of several segments, and the names of its files.
fn sound_log() -> Files {
    let disk = SimDisk::default();
    let (wal, _) = open(&disk).unwrap();
    append(&wal, 1, 24).unwrap();
    wal.close();
    let mut files = disk.files();
    // What was being prepared is nobody's yet.
    files.retain(|name, _| !name.ends_with(".tmp"));
    files
}

fn open_damaged(files: &Files) -> Result<usize, String> {
    let mut count = 0;
    let outcome = scan(&SimDisk::from_files(files), &mut |found| {
        count += 1;
        assert_eq!(found.bytes, record(found.seq), "what is read is what was written");
        Ok(())
    });
    outcome.map(|scan| if scan.is_some() { count } else { 0 }).map_err(|error| error.to_string())
}

#[test]
fn a_flipped_bit_is_refused_or_harmless_and_never_costs_an_event_silently() {
    let files = sound_log();
    let mut random = Random(0x5EED_0003);
    let (mut refused, mut harmless) = (0, 0);
    for (name, content) in &files {
        let written = content.len() - content.iter().rev().take_while(|b| **b == 0).count();
        for _ in 0..2000 {
            let bit = random.below(written as u64 * 8) as usize;
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[bit / 8] ^= 1 << (bit % 8);
            match open_damaged(&damaged) {
                Ok(24) => harmless += 1,
                Ok(count) => panic!("{name} bit {bit}: {count} of 24 events, without a word"),
                Err(message) => {
                    assert!(message.contains(name.as_str()) && message.contains("expected seq"), "{message}");
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0 && harmless > 0, "refused {refused}, harmless {harmless}");
}

#[test]
fn missing_swapped_and_truncated_segments_are_refused() {
    let files = sound_log();
    let logs: Vec<&String> = files.keys().filter(|name| name.ends_with(".log")).collect();
    assert!(logs.len() >= 2);
    let refuse = |what: &str, files: &Files| {
        let error = open_damaged(files).expect_err(what);
        assert!(error.contains("expected seq"), "{what}: {error}");
    };
    for name in &files {
        let mut without = files.clone();
        without.remove(name.0);
        refuse(&format!("{} removed", name.0), &without);
    }
    let mut swapped = files.clone();
    swapped.insert(logs[0].clone(), files[logs[1]].clone());
    swapped.insert(logs[1].clone(), files[logs[0]].clone());
    refuse("swapped", &swapped);
    for log in &logs {
        let blocks = files[*log].len() / BLOCK;
        for keep in 0..blocks {
            let mut short = files.clone();
            short.get_mut(*log).unwrap().truncate(keep * BLOCK);
            refuse(&format!("{log} cut to {keep} blocks"), &short);
        }
    }
    let other = sound_log();
    let mut foreign = files.clone();
    foreign.insert(logs[1].clone(), other[logs[1]].clone());
    refuse("a segment of another log", &foreign);
}
