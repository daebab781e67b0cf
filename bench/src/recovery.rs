//! `bench recovery`: writes a log, then reads it back with every check, over and over.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hackbrain::wal::recovery::{Ending, Scan, scan};
use hackbrain::wal::storage::Directory;

use crate::chain::sha256_ns;
use crate::slice::Workplace;
use crate::stats::{Random, Spread, grouped};
use crate::{Fault, INTERRUPTED, backends, machine};

/// About as long as the ledger's events.
const RECORD_BYTES: usize = 400;
/// Appended together.
const TOGETHER: usize = 256;
/// So many are staged before the first of them must be durable: memory stays small, frames are well filled.
const STAGED_MAX: u64 = 64 * TOGETHER as u64;

/// Writes `mib` MiB of records, reads them `passes` times, prints.
pub fn run(dir: &Path, mib: u64, passes: usize) -> Result<(), Fault> {
    let workplace = Workplace::create(dir)?;
    println!("## Reading a log back with every check\n\n{}\n", machine::facts(dir));
    let store = workplace.empty()?;
    let records = (mib << 20) / RECORD_BYTES as u64;
    let began = Instant::now();
    write(&store, records)?;
    eprintln!("written in {:.1} s", began.elapsed().as_secs_f64());
    let log = Directory::read_only(&store);
    let (first, read) = pass(&log, records)?;
    let mut rates = Vec::new();
    for _ in 0..passes {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        rates.push(pass(&log, records)?.0);
    }
    println!(
        "{} records of {RECORD_BYTES} bytes, {} frames in {} segments, {} MB.\n",
        grouped(records as f64),
        grouped(read.frames as f64),
        backends::segments(&store)?,
        read.bytes / 1_000_000
    );
    println!("| | MB/s |\n|:--|--:|");
    println!("| first pass, from the device | {first:.0} |");
    if let Some(rate) = Spread::of(rates.iter().copied()) {
        println!(
            "| {} passes from the page cache | {:.0} ({:.0}..{:.0}) |",
            rates.len(),
            rate.median,
            rate.min,
            rate.max
        );
    }
    let sha_limit = read.bytes as f64 / records as f64 / sha256_ns(RECORD_BYTES) * 1e3;
    println!("| SHA-256 of the records alone, one core: no serial reader is faster | {sha_limit:.0} |");
    Ok(())
}

fn write(store: &Path, records: u64) -> Result<(), Fault> {
    let log = backends::open_log(store)?;
    let mut record = Random(records).bytes(RECORD_BYTES);
    let mut left = records;
    let mut last = 0;
    while left > 0 {
        let together = left.min(TOGETHER as u64);
        log.append_all(
            together as usize,
            |_, seq, prev, body| {
                record[..8].copy_from_slice(&seq.to_le_bytes());
                record[8..40].copy_from_slice(prev);
                body.extend_from_slice(&record);
            },
            |seq, _| last = seq,
        )?;
        if last > STAGED_MAX {
            log.wait(last - STAGED_MAX)?;
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        left -= together;
    }
    log.wait(last)?;
    log.close();
    Ok(())
}

/// Reads everything once; MB/s. A log that is not just what was written is an error, not a number.
fn pass(log: &Directory, records: u64) -> Result<(f64, Scan), Fault> {
    let mut seen = 0;
    let began = Instant::now();
    let read = scan(log, &mut |record| {
        seen += u64::from(record.bytes.len() == RECORD_BYTES);
        Ok(())
    })?;
    let took = began.elapsed().as_secs_f64();
    let read = read.ok_or("there is no log")?;
    if seen != records || read.position.next_seq != records + 1 || read.ending != Ending::Clean {
        return Err(format!("{records} records were written, {seen} read; the end is {:?}", read.ending).into());
    }
    Ok((read.bytes as f64 / took / 1e6, read))
}
