//! `bench chain`: what the hashes and checksums of the records cost, as a share of one core.

use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hackbrain::wal::frame::{SECTOR, SECTOR_PAYLOAD};
use hackbrain::wal::recovery::scan;
use hackbrain::wal::storage::Directory;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};

use crate::backends::Kind;
use crate::slice::{Case, FULL, Workplace};
use crate::stats::{Random, Spread, grouped};
use crate::{Fault, INTERRUPTED, machine};

const CASE: Case = Case { kind: Kind::Hackbrain, payload: 256, threads: 64 };
const LOOP_TIME: Duration = Duration::from_millis(100);
const LOOPS: usize = 7;
/// Bytes that a sector's checksum takes in beside its payload: salt, offset, mark.
const PLACE_BYTES: usize = 20;

/// Measures and prints.
pub fn run(dir: &Path, rounds: usize) -> Result<(), Fault> {
    let mut workplace = Workplace::create(dir)?;
    println!("## Hash chain at {} threads, {} bytes\n", CASE.threads, CASE.payload);
    println!("{}\n", machine::facts(dir));
    let mut slices = Vec::new();
    let (mut sectors, mut records, mut frames) = (0, 0, 0);
    for _ in 0..rounds {
        let measured = workplace.measure(CASE, &FULL);
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Ok(());
        }
        slices.push(measured?);
        let log = Directory::read_only(&workplace.store());
        let read = scan(&log, &mut |_| Ok(()))?.ok_or("the slice left no log")?;
        sectors += read.bytes / SECTOR as u64;
        frames += read.frames;
        records += read.position.next_seq - 1;
    }
    let stable: Vec<f64> = slices.iter().filter(|s| s.floors.is_stable()).map(|s| s.per_second).collect();
    println!("{} of {} slices had a stable floor.", stable.len(), slices.len());
    let all = slices.iter().map(|slice| slice.per_second).collect();
    let rates = if stable.is_empty() { all } else { stable };
    let rate = Spread::of(rates).ok_or("no slice was measured")?.median;
    let (sha, crc) = (sha256_ns(CASE.payload), crc32c_ns());
    let sectors_per_record = sectors as f64 / records as f64;
    let crc_of_record = crc * sectors_per_record;
    let share = |ns: f64| ns * rate / 1e9 * 100.0;
    println!(
        "{} appends/s; {:.1} records and {:.1} sectors in a frame, {sectors_per_record:.3} sectors for a record.\n",
        grouped(rate),
        records as f64 / frames as f64,
        sectors as f64 / frames as f64
    );
    println!("| | ns per record | % of one core |\n|:--|--:|--:|");
    println!("| SHA-256 of the record | {sha:.0} | {:.2} |", share(sha));
    println!("| CRC-32C of its share of sectors | {crc_of_record:.0} | {:.2} |", share(crc_of_record));
    println!("| both | {:.0} | {:.2} |", sha + crc_of_record, share(sha + crc_of_record));
    Ok(())
}

/// Nanoseconds for SHA-256 of one record of a chain: each one holds the hash of the one before, so none can start early.
pub fn sha256_ns(len: usize) -> f64 {
    let mut record = Random(len as u64).bytes(len);
    ns_per_call(|| {
        let digest = Sha256::digest(black_box(&record));
        record[..digest.len()].copy_from_slice(&digest);
    })
}

/// Nanoseconds for the checksum of one sector.
fn crc32c_ns() -> f64 {
    let payload = Random(1).bytes(SECTOR_PAYLOAD);
    let mut place = [0; PLACE_BYTES];
    ns_per_call(|| {
        let crc = crc32c::crc32c_append(crc32c::crc32c(black_box(&place)), black_box(&payload));
        place[..4].copy_from_slice(&crc.to_le_bytes());
    })
}

/// The median of some loops, in time of the processor: what others do on the core in between does not count.
fn ns_per_call(mut call: impl FnMut()) -> f64 {
    const CALLS: usize = 1000;
    let one_loop = |_| {
        let began = cpu_time();
        let mut calls = 0;
        while cpu_time() - began < LOOP_TIME {
            for _ in 0..CALLS {
                call();
            }
            calls += CALLS;
        }
        (cpu_time() - began).as_nanos() as f64 / calls as f64
    };
    Spread::of((0..LOOPS).map(one_loop)).map_or(f64::NAN, |ns| ns.median)
}

/// What this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
