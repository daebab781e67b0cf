//! What if a call fails, or the disk is full? The log ends, or waits, and loses nothing acknowledged.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use std::io;

use sim::log::{append, check, open, read_back};
use sim::{Fault, SimDisk};

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
