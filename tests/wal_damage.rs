//! Is damage refused? Flipped bits, and segments that are missing, swapped, cut short or foreign.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use hackbrain::wal::frame::BLOCK;
use hackbrain::wal::recovery::scan;
use sim::log::{Files, append, open, record};
use sim::{Random, SimDisk};

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
