//! `bench wal`: slices of all backends, interleaved, each against its own floor; then the table.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::backends::Kind;
use crate::slice::{Case, Slice, Timing, Workplace};
use crate::stats::{Random, Spread, grouped};
use crate::{Fault, INTERRUPTED, machine};

/// What is to be measured.
pub struct Plan {
    pub kinds: Vec<Kind>,
    pub payloads: Vec<usize>,
    pub threads: Vec<usize>,
    pub rounds: usize,
    pub seed: u64,
    pub timing: Timing,
}

impl Plan {
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> {
        self.payloads.iter().flat_map(|payload| self.threads.iter().map(move |threads| (*payload, *threads)))
    }

    fn cases_of(&self, (payload, threads): (usize, usize)) -> Vec<Case> {
        self.kinds.iter().map(|kind| Case { kind: *kind, payload, threads }).collect()
    }

    fn cases(&self) -> Vec<Case> {
        self.groups().flat_map(|group| self.cases_of(group)).collect()
    }

    /// One round in random order. Backends that are compared with each other run side by side, so that they meet the same
    /// minute of the device.
    fn shuffled(&self, random: &mut Random) -> Vec<Case> {
        let mut groups: Vec<_> = self.groups().map(|group| self.cases_of(group)).collect();
        random.shuffle(&mut groups);
        groups.iter_mut().for_each(|cases| random.shuffle(cases));
        groups.concat()
    }
}

/// Measures and prints.
pub fn run(dir: &Path, plan: &Plan) -> Result<(), Fault> {
    let mut workplace = Workplace::create(dir)?;
    println!("## Appends, each acknowledged when durable\n");
    println!("{}", machine::facts(dir));
    let Timing { floor, warm_up, measured, .. } = plan.timing;
    println!(
        "* {} rounds; slices of {measured:?} after {warm_up:?} of warm-up, a floor of {floor:?} before and after; seed {}",
        plan.rounds, plan.seed
    );
    println!("* floor: 4 KiB pwrites, O_DIRECT and O_DSYNC, by one thread; `-b`: behind a batching thread\n");
    let slices = measure(&mut workplace, plan)?;
    let kept: Vec<&Slice> = slices.iter().filter(|slice| slice.floors.is_stable()).collect();
    print_noise(&slices, &kept);
    print_table(plan, &kept);
    print_summary(plan, &kept);
    Ok(())
}

fn measure(workplace: &mut Workplace, plan: &Plan) -> Result<Vec<Slice>, Fault> {
    let mut random = Random(plan.seed);
    let total = plan.cases().len() * plan.rounds;
    let mut slices = Vec::with_capacity(total);
    for _ in 0..plan.rounds {
        // Anew in each round: what one backend leaves behind must not always meet the same other.
        for case in plan.shuffled(&mut random) {
            if INTERRUPTED.load(Ordering::Relaxed) {
                return Ok(slices);
            }
            let measured = workplace.measure(case, &plan.timing);
            if INTERRUPTED.load(Ordering::Relaxed) {
                // Cut short: no number of it holds.
                return Ok(slices);
            }
            let slice = measured?;
            eprintln!("{}", progress(slices.len() + 1, total, &slice));
            slices.push(slice);
        }
    }
    Ok(slices)
}

fn progress(number: usize, total: usize, slice: &Slice) -> String {
    let Case { kind, payload, threads } = slice.case;
    let note = if slice.floors.is_stable() { "" } else { ", dropped" };
    format!(
        "{number}/{total} {} {payload} B, {threads} threads: {}/s, {:.2} x floor ({}/s, {}/s){note}",
        kind.name(),
        grouped(slice.per_second),
        slice.ratio(),
        grouped(slice.floors.before.per_second),
        grouped(slice.floors.after.per_second)
    )
}

fn print_noise(slices: &[Slice], kept: &[&Slice]) {
    if INTERRUPTED.load(Ordering::Relaxed) {
        println!("Interrupted: not all rounds were measured.");
    }
    println!(
        "{} of {} slices kept; {} dropped, since their floors differed by more than 1.5x or were throttled.",
        kept.len(),
        slices.len(),
        slices.len() - kept.len()
    );
    let waited: Duration = slices.iter().map(|slice| slice.waited).sum();
    println!("Waited {:.0} s in all for a throttled device.", waited.as_secs_f64());
    let floors = slices.iter().flat_map(|slice| [slice.floors.before, slice.floors.after]);
    let rates: Vec<f64> = floors.map(|floor| floor.per_second).collect();
    if let Some(all) = Spread::of(rates) {
        let (min, median, max) = (grouped(all.min), grouped(all.median), grouped(all.max));
        println!("Floor over the whole run: {median}/s ({min}..{max}).");
    }
    let ours: Vec<f64> =
        kept.iter().filter(|s| s.case.kind == Kind::Hackbrain).map(|s| s.segment_changes as f64).collect();
    if let Some(changes) = Spread::of(ours) {
        println!(
            "hackbrain changed segments {:.0} times in a slice (median; {:.0}..{:.0}); a log starts with small ones.",
            changes.median, changes.min, changes.max
        );
    }
}

fn print_table(plan: &Plan, kept: &[&Slice]) {
    println!("\n| payload | threads | backend | slices | ÷ floor (min..max) | appends/s | p50 µs | p99 µs |");
    println!("|--:|--:|:--|--:|:--|--:|--:|--:|");
    for case in plan.cases() {
        let of_case = || kept.iter().filter(|slice| slice.case == case);
        let spread = |value: fn(&Slice) -> f64| Spread::of(of_case().map(|slice| value(slice)));
        let head = format!("| {} | {} | {} | {} |", case.payload, case.threads, case.kind.name(), of_case().count());
        let columns = (spread(Slice::ratio), spread(|s| s.per_second), spread(|s| s.p50_us), spread(|s| s.p99_us));
        let (Some(ratio), Some(rate), Some(p50), Some(p99)) = columns else {
            println!("{head} – | – | – | – |");
            continue;
        };
        println!(
            "{head} {:.2} ({:.2}..{:.2}) | {} | {:.0} | {:.0} |",
            ratio.median,
            ratio.min,
            ratio.max,
            grouped(rate.median),
            p50.median,
            p99.median
        );
    }
}

/// Medians of appends per floor are compared, not of appends per second: the slices met different minutes of the device.
fn print_summary(plan: &Plan, kept: &[&Slice]) {
    let ratio_of = |kind, (payload, threads)| {
        let case = Case { kind, payload, threads };
        Spread::of(kept.iter().filter(|slice| slice.case == case).map(|slice| slice.ratio())).map(|ratio| ratio.median)
    };
    let best = |group, wanted: fn(Kind) -> bool| {
        let peers = plan.kinds.iter().filter(|kind| wanted(**kind));
        peers.filter_map(|kind| ratio_of(*kind, group).map(|ratio| (*kind, ratio))).max_by(|a, b| a.1.total_cmp(&b.1))
    };
    println!("\n| payload | threads | hackbrain ÷ floor | ÷ best batched peer | ÷ best peer of all |");
    println!("|--:|--:|--:|:--|:--|");
    for group in plan.groups() {
        let Some(ours) = ratio_of(Kind::Hackbrain, group) else { continue };
        let against = |peer: Option<(Kind, f64)>| {
            peer.map_or_else(|| "–".into(), |(kind, ratio)| format!("{:.2} ({})", ours / ratio, kind.name()))
        };
        println!(
            "| {} | {} | {ours:.2} | {} | {} |",
            group.0,
            group.1,
            against(best(group, Kind::is_batched_peer)),
            against(best(group, |kind| kind != Kind::Hackbrain))
        );
    }
}
