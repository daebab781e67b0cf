//! Is every crash survivable? The log over a disk that is cut after each operation of many scenarios.
//!
//! `HACKBRAIN_CRASH_STATES` asks for more states, `HACKBRAIN_SEED` for others; `scripts/crash-states` sets both.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod crash;
mod sim;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crash::explore::{Depth, Explorer, Keep};
use crash::scenario::{Start, Step};
use crash::tally::{Column, Tally};
use hackbrain::wal::writer::Options;
use sim::Random;

const STATES: u64 = 100_000;
const SEED: u64 = 0x5EED_0001;
/// A round has somewhat more.
const ROUND_STATES_MIN: u64 = 50_000;

/// Two or three frames in each segment.
const SMALL: Options = Options { segment_size: 28 << 10, first_segment_size: 28 << 10, mark_after: None };
const LARGE: Options = Options { segment_size: 96 << 10, first_segment_size: 48 << 10, mark_after: None };
/// A recovery opens a segment of this size, or one of 64 KiB where that does not fit.
const ROOMY: Options = Options { segment_size: 128 << 10, first_segment_size: 128 << 10, mark_after: None };
/// A mark whenever the log is closed, and at no other time.
const MARKED: Options = Options { mark_after: Some(Duration::from_secs(3600)), ..LARGE };

/// What must have been unsynced at some cut of each scenario.
const COVERED: [(&str, &[&str]); 10] = [
    ("creation", &["nothing", "names", "zeros", "segment header", "new witness", "frame of one block"]),
    ("one record", &["nothing", "names", "zeros", "frame of one block"]),
    ("many records", &["nothing", "zeros", "frame of one block", "frame of many blocks"]),
    ("large frames", &["nothing", "frame of many blocks"]),
    ("marks", &["nothing", "mark", "frame of one block", "frame of many blocks"]),
    ("segment change", &["nothing", "names", "zeros", "segment header", "witness", "frame of many blocks"]),
    ("killed, then cut", &["nothing", "names", "zeros", "segment header", "witness", "frame of many blocks"]),
    ("torn, goes on", &["nothing", "names", "zeros", "segment header", "witness", "frame of one block"]),
    ("recovery, cut again", &["nothing", "names", "zeros", "segment header", "witness"]),
    ("recovery, disk full", &["nothing", "names", "zeros", "segment header", "witness"]),
];

/// All scenarios once. What differs with the seed: lengths and contents of records, where the preparation of segments
/// falls, garbage, random states.
fn round(seed: u64) -> Tally {
    let mut explorer = Explorer::new(seed);
    let mut random = Random(explorer.random.next() | 1);
    let mut length = |from: u64, upto: u64| (from + random.below(upto - from)) as usize;
    let one_block = |length: &mut dyn FnMut(u64, u64) -> usize| Step::One(length(1, 3900));
    let mut nothing = Keep::new(true, 0);
    let mut torn = Keep::new(true, 8);

    let steps = [one_block(&mut length)];
    let run = Start::default().play("creation", LARGE, &steps, &mut explorer.random);
    explorer.explore(&run, Depth::Full, &mut nothing);

    let steps = [one_block(&mut length), Step::Batch((0..5).map(|_| length(1, 900)).collect())];
    let base = Start::default().play("", LARGE, &steps, &mut explorer.random).ended();

    let steps = [one_block(&mut length)];
    let run = base.play("one record", LARGE, &steps, &mut explorer.random);
    explorer.explore(&run, Depth::Full, &mut torn);

    let batch = (0..12).map(|_| length(1, 900)).chain([4000]).collect();
    let gathered = (0..5).map(|_| length(900, 2500)).collect();
    let run = base.play("many records", LARGE, &[Step::Batch(batch), Step::Gather(gathered)], &mut explorer.random);
    explorer.explore(&run, Depth::Full, &mut torn);

    let steps = [Step::One(length(4000, 12_000)), Step::One(length(12_000, 18_000))];
    let large = base.play("large frames", LARGE, &steps, &mut explorer.random);
    explorer.explore(&large, Depth::Full, &mut torn);

    let steps = [one_block(&mut length), Step::Reopen, Step::One(length(4100, 8000))];
    let run = base.play("marks", MARKED, &steps, &mut explorer.random);
    explorer.explore(&run, Depth::Full, &mut torn);

    let steps: Vec<Step> = (0..6).map(|_| Step::One(length(4100, 8000))).collect();
    let small = Start::default().play("", SMALL, &steps[..1], &mut explorer.random).ended();
    let change = small.play("segment change", SMALL, &steps, &mut explorer.random);
    explorer.explore(&change, Depth::Full, &mut torn);

    for run in [&large, &change] {
        for op in 0..run.ops.len() {
            let killed = run.killed_after(op).recover("killed, then cut", run.options, None, &mut explorer.random);
            explorer.explore(&killed, Depth::Sample(4), &mut nothing);
        }
    }

    for start in &torn.kept {
        let mut again = Keep::new(false, 6);
        let steps = [one_block(&mut length)];
        let run = start.play("torn, goes on", LARGE, &steps, &mut explorer.random);
        explorer.explore(&run, Depth::Sample(12), &mut again);
        for start in &again.kept {
            let run = start.recover("recovery, cut again", LARGE, None, &mut explorer.random);
            explorer.explore(&run, Depth::Sample(6), &mut nothing);
        }
    }
    for start in &torn.kept[..2] {
        let run = start.recover("recovery, disk full", ROOMY, Some(70 << 10), &mut explorer.random);
        let fell_back = run.end.iter().any(|(name, content)| name.ends_with(".log") && content.len() == 64 << 10);
        assert!(fell_back, "the disk is full");
        explorer.explore(&run, Depth::Sample(40), &mut nothing);
    }
    std::mem::take(&mut explorer.tally)
}

fn number(variable: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(variable) else { return default };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{variable}={text} is no number"))
}

#[test]
fn every_crash_state_is_survived_and_no_damage_is_taken_for_one() {
    let (states, seed) = (number("HACKBRAIN_CRASH_STATES", STATES), number("HACKBRAIN_SEED", SEED));
    let began = Instant::now();
    let (rounds, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let total = Mutex::new(Tally::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // A round depends on its seed alone, whichever thread has it.
                    let nth = rounds.fetch_add(1, Ordering::Relaxed);
                    if nth * ROUND_STATES_MIN >= states || done.load(Ordering::Relaxed) >= states {
                        return;
                    }
                    let tally = round(seed + nth);
                    assert!(tally.states() >= ROUND_STATES_MIN, "a round of {} states", tally.states());
                    let before = done.fetch_add(tally.states(), Ordering::Relaxed);
                    total.lock().unwrap().add(&tally);
                    if (before + tally.states()) / 1_000_000 > before / 1_000_000 {
                        let per_second = (before + tally.states()) as f64 / began.elapsed().as_secs_f64();
                        eprintln!("{} states, {per_second:.0} states/s", before + tally.states());
                    }
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    let (count, seconds) = (total.states(), began.elapsed().as_secs_f64());
    eprintln!("{total}");
    eprintln!("{count} states, seed {seed:#x}, {seconds:.1} s, {:.0} states/s", count as f64 / seconds);
    assert!(count >= states, "{count} of {states} states");
    for (scenario, kinds) in COVERED {
        for kind in kinds {
            assert!(total.of_kind(scenario, kind) > 0, "{scenario}: no state with unsynced {kind}");
        }
    }
    for column in [
        Column::Exhaustive,
        Column::Systematic,
        Column::Random,
        Column::BeyondFine,
        Column::BeyondRefused,
        Column::DamageRefused,
        Column::DamageResidue,
    ] {
        assert!(total.of_column(column) > 0, "no state: {column:?}");
    }
    for (fact, n) in &total.facts {
        assert!(*n > 0, "no state: {fact}");
    }
}

#[test]
fn a_log_that_was_recovered_goes_on_through_crash_after_crash() {
    let mut explorer = Explorer::new(SEED);
    let mut random = Random(SEED);
    let mut start = Start::default();
    let (mut torn, mut longest) = (0, 0);
    for life in 0..30 {
        let steps: Vec<Step> = (0..3).map(|_| Step::One(1 + random.below(8000) as usize)).collect();
        let options = if life % 2 == 0 { SMALL } else { MARKED };
        let run = start.play("crash after crash", options, &steps, &mut explorer.random);
        // The next life begins with one of the states that this one may have left, torn where there is such a one.
        let mut keep = Keep::new(life % 3 > 0, 1);
        explorer.explore(&run, Depth::Sample(1), &mut keep);
        torn += u64::from(keep.torn_only && !keep.kept.is_empty());
        start = keep.kept.pop().unwrap_or_else(|| run.ended());
        longest = longest.max(start.records.len());
    }
    assert!(torn > 10 && longest > 15, "{torn} torn lives, {longest} records");
}
