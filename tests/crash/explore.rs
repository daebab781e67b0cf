//! Walks through the states of a run, opens each with the real recovery, and checks the promises.

use std::collections::HashSet;
use std::sync::Arc;

use hackbrain::wal::frame::{BLOCK, SECTOR};
use hackbrain::wal::recovery::{Ending, Scan, ScanError, recover};
use hackbrain::wal::writer::Wal;

use super::scenario::{Run, Start};
use super::tally::{Column, Tally};
use crate::sim::medium::{Fate, Garbage, Medium, View};
use crate::sim::{Image, Op, Random, SimDisk};

/// Every combination is tried where there are no more than of eight sectors, each old, new or garbage.
const EXHAUSTIVE_MAX: u64 = 3_u64.pow(8);
/// Longer writes are probed at so many of their sectors.
const PROBES_MAX: usize = 64;
/// At each point of a run that is explored in full.
const RANDOM_STATES: u64 = 60;
const TORN_INSIDE_STATES: u64 = 24;
const DAMAGED_STATES: u64 = 24;
/// Every so many states the whole log is opened, appended to and looked up.
const GO_ON_EVERY: u64 = 64;

#[derive(Clone, Copy, Debug)]
pub enum Depth {
    Full,
    /// So many random states for each way the names may have gone, at each point.
    Sample(u64),
}

/// Some of the states of a run, to go on from.
pub struct Keep {
    pub torn_only: bool,
    pub most: usize,
    pub seen: u64,
    pub kept: Vec<Start>,
}

impl Keep {
    pub fn new(torn_only: bool, most: usize) -> Self {
        Self { torn_only, most, seen: 0, kept: Vec::new() }
    }

    /// Reservoir sampling: each state that was offered is kept with the same probability.
    fn offer(&mut self, torn: bool, random: &mut Random, start: impl FnOnce() -> Start) {
        if self.most == 0 || (self.torn_only && !torn) {
            return;
        }
        self.seen += 1;
        if self.kept.len() < self.most {
            self.kept.push(start());
        } else if let Some(place) = self.kept.get_mut(random.below(self.seen) as usize) {
            *place = start();
        }
    }
}

/// What a recovery found.
struct Found {
    below: u64,
    ending: Ending,
}

pub struct Explorer {
    pub tally: Tally,
    pub random: Random,
    seed: u64,
    /// Where it is; told when a promise does not hold.
    place: String,
    state: u64,
}

impl Drop for Explorer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nfailed: seed {:#x}, {}, state {}", self.seed, self.place, self.state);
            eprintln!("again: HACKBRAIN_SEED={:#x} HACKBRAIN_CRASH_STATES=1 cargo test --test wal_crash", self.seed);
        }
    }
}

impl Explorer {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds begin far apart, and none with zero.
        let random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Self { tally: Tally::default(), random, seed, place: "recording".into(), state: 0 }
    }

    /// Cuts the disk after every operation of the run.
    pub fn explore(&mut self, run: &Run, depth: Depth, keep: &mut Keep) {
        let mut medium = Medium::new(&run.start.image, run.start.below);
        for (number, op) in run.ops.iter().enumerate() {
            medium.apply(op);
            if number < run.start.ops.len() {
                continue;
            }
            // A word that came too early shows where what it tells of is not durable. It changes no state, so few will do.
            let depth = if matches!(op, Op::Acknowledged(_)) { Depth::Sample(4) } else { depth };
            let unsynced = match &medium.unsynced()[..] {
                [] => "nothing".to_owned(),
                kinds => kinds.join(" + "),
            };
            self.place = format!("{}, after operation {number}, unsynced: {unsynced}", run.scenario);
            self.state = 0;
            let mut point = Point { run, medium: &medium, unsynced: &unsynced, keep: &mut *keep };
            let mut enumerated = HashSet::new();
            for view in medium.views() {
                match depth {
                    // What is still being prepared is not read: one enumeration for all views that differ in that alone.
                    Depth::Full => self.view_in_full(&mut point, &view, enumerated.insert(view.of_the_log())),
                    Depth::Sample(n) => self.random_states(&mut point, &view, n),
                }
                let halves = if matches!(depth, Depth::Full) { TORN_INSIDE_STATES } else { 1 };
                self.states_torn_inside(&mut point, &view, halves);
                let damaged = if matches!(depth, Depth::Full) { DAMAGED_STATES } else { 2 };
                (0..damaged).for_each(|_| self.damaged_state(&point, &view));
            }
        }
    }

    fn view_in_full(&mut self, point: &mut Point<'_>, view: &View, is_new: bool) {
        let choices: Vec<&[Fate]> = view
            .open
            .iter()
            .map(
                |(.., same)| {
                    if *same { &[Fate::New, Fate::Garbage][..] } else { &[Fate::New, Fate::Old, Fate::Garbage] }
                },
            )
            .collect();
        let all = choices.iter().try_fold(1_u64, |all, some| all.checked_mul(some.len() as u64));
        if let Some(all) = all.filter(|all| *all <= if is_new { EXHAUSTIVE_MAX } else { 1 }) {
            for mut nth in 0..all {
                let pick = |some: &&[Fate]| {
                    let fate = some[(nth % some.len() as u64) as usize];
                    nth /= some.len() as u64;
                    fate
                };
                let fates: Vec<Fate> = choices.iter().map(pick).collect();
                self.state(point, view, &fates, false, Column::Exhaustive);
            }
            return;
        }
        let mut seen = HashSet::new();
        for mut fates in systematic(view.open.len()) {
            normalise(view, &mut fates);
            if seen.insert(fates.clone()) {
                self.state(point, view, &fates, false, Column::Systematic);
            }
        }
        self.random_states(point, view, RANDOM_STATES);
    }

    fn random_fates(&mut self, view: &View) -> Vec<Fate> {
        // Some lean to one side, so that "all old" and "all new but one" occur even in long writes.
        let (old, garbage) = [(1, 1), (9, 0), (0, 0), (1, 0), (0, 1), (9, 9)][self.random.below(6) as usize];
        let mut fates: Vec<Fate> = view
            .open
            .iter()
            .map(|_| match self.random.below(old + garbage + 2) {
                pick if pick < old => Fate::Old,
                pick if pick < old + garbage => Fate::Garbage,
                _ => Fate::New,
            })
            .collect();
        normalise(view, &mut fates);
        fates
    }

    fn random_states(&mut self, point: &mut Point<'_>, view: &View, count: u64) {
        let mut seen = HashSet::new();
        for _ in 0..count {
            let fates = self.random_fates(view);
            // The same choice with other garbage is another state; without any it is the same.
            if fates.contains(&Fate::Garbage) || seen.insert(fates.clone()) {
                self.state(point, view, &fates, true, Column::Random);
            }
        }
    }

    fn states_torn_inside(&mut self, point: &mut Point<'_>, view: &View, count: u64) {
        let differing: Vec<usize> = (0..view.open.len()).filter(|at| !view.open[*at].2).collect();
        for _ in 0..count.min(differing.len() as u64 * count) {
            let mut fates = self.random_fates(view);
            for _ in 0..=self.random.below(3) {
                fates[differing[self.random.below(differing.len() as u64) as usize]] = Fate::Half;
            }
            self.state(point, view, &fates, true, Column::BeyondFine);
        }
    }

    /// Cuts, recovers and checks one state.
    fn state(&mut self, point: &mut Point<'_>, view: &View, fates: &[Fate], wild: bool, column: Column) {
        self.state += 1;
        let Point { run, medium, unsynced, .. } = *point;
        let (image, garbage) = medium.cut(view, fates, wild, &mut self.random);
        let disk = disk_of(&image, run);
        let found = match recover_and_compare(&disk, run) {
            Ok(found) => found,
            Err(ScanError::Corrupt(_)) if garbage.beyond_assumptions() => {
                assert!(disk.image() == image, "a refused log is left as it is");
                self.note(&garbage);
                return self.tally.count(run.scenario, unsynced, Column::BeyondRefused);
            }
            Err(error) => panic!("a crash was called: {error}"),
        };
        assert!(
            found.below >= medium.acknowledged_below,
            "lost: found below {}, acknowledged below {}",
            found.below,
            medium.acknowledged_below
        );
        assert!(
            found.below <= medium.written_below,
            "found below {}, written below {}",
            found.below,
            medium.written_below
        );
        let after_first = disk.image();
        let again = recover_and_compare(&disk, run).unwrap_or_else(|error| panic!("second recovery: {error}"));
        assert_eq!(again.below, found.below, "a second recovery finds the same");
        assert!(disk.image() == after_first, "a second recovery changes nothing");
        assert_eq!(again.ending, Ending::Clean, "the torn tail is sealed");
        if self.state.is_multiple_of(GO_ON_EVERY) {
            go_on(&disk, run, found.below);
            self.tally.note("opened, appended to and looked up", true);
        }
        let torn = found.ending != Ending::Clean;
        self.tally.note("ended torn", torn);
        self.tally.note("ended clean", !torn);
        self.tally.note("with an unacknowledged frame that was whole", found.below > medium.acknowledged_below);
        self.note(&garbage);
        let column = if garbage.beyond_assumptions() { Column::BeyondFine } else { column };
        self.tally.count(run.scenario, unsynced, column);
        let start = || Start {
            image,
            below: found.below,
            records: run.records[..found.below as usize - 1].to_vec(),
            ops: Vec::new(),
        };
        point.keep.offer(torn, &mut self.random, start);
    }

    fn note(&mut self, garbage: &Garbage) {
        for (fact, so) in [
            ("with garbage: noise", garbage.noise),
            ("with garbage: a stale sector of the same segment", garbage.stale_here),
            ("with garbage: a stale sector of another file", garbage.stale_elsewhere),
            ("beyond assumptions: a sector torn inside", garbage.torn_inside),
            ("beyond assumptions: an old frame header at the front of a block", garbage.stale_header),
            ("beyond assumptions: a stale sector with the mark of the same commit", garbage.same_mark),
        ] {
            self.tally.note(fact, so);
        }
    }

    /// A crash, and a sector of a durable frame is damaged as well. That must never be taken for a torn tail.
    fn damaged_state(&mut self, point: &Point<'_>, view: &View) {
        let Point { run, medium, unsynced, .. } = *point;
        let durable = || medium.frames.iter().filter(|frame| frame.durable);
        let Some(last) = durable().map(|frame| frame.commit).max() else { return };
        self.state += 1;
        let nth = self.random.below(durable().count() as u64) as usize;
        let frame = durable().nth(nth).unwrap();
        let fates = self.random_fates(view);
        let (mut image, _) = medium.cut(view, &fates, false, &mut self.random);
        let content = image.get_mut(Medium::name_of(view, frame.file).unwrap()).unwrap();
        let sector = (frame.offset + self.random.below((frame.blocks * BLOCK) as u64) as usize) / SECTOR;
        let mut bytes = content.sector(sector).to_vec();
        let flip = self.random.one_in(2);
        if flip {
            let bit = self.random.below(SECTOR as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        } else {
            bytes.fill(0);
        }
        content.write(sector * SECTOR, &bytes);
        let disk = disk_of(&image, run);
        let column = match recover_and_compare(&disk, run) {
            Err(ScanError::Corrupt(_)) => {
                assert!(disk.image() == image, "a refused log is left as it is");
                Column::DamageRefused
            }
            Err(error) => panic!("damage was called: {error}"),
            Ok(found) => {
                let what = format!("sector {sector} of {frame:?}, last durable commit {last}, flipped: {flip}");
                assert!(!flip && frame.commit == last, "damage was taken for a torn tail: {what}");
                assert_eq!(found.below, frame.first_seq, "only the last frame may be lost: {what}");
                Column::DamageResidue
            }
        };
        self.tally.count(run.scenario, unsynced, column);
    }
}

/// Where the states of one cut are counted and kept.
struct Point<'p> {
    run: &'p Run,
    medium: &'p Medium,
    unsynced: &'p str,
    keep: &'p mut Keep,
}

fn disk_of(image: &Image, run: &Run) -> SimDisk {
    let disk = SimDisk::forgetful(image);
    disk.limit(run.capacity);
    disk
}

/// One sector unlike all the others, and every first or last part, also with garbage where it ends.
fn systematic(sectors: usize) -> impl Iterator<Item = Vec<Fate>> {
    let step = sectors.div_ceil(PROBES_MAX).max(1);
    let ends = [vec![Fate::New; sectors], vec![Fate::Old; sectors], vec![Fate::Garbage; sectors]];
    let probes = (0..sectors).step_by(step).flat_map(move |at| {
        let one = |all, odd| {
            let mut fates = vec![all; sectors];
            fates[at] = odd;
            fates
        };
        let parts = |first, there, rest| {
            let mut fates = vec![rest; sectors];
            fates[..at].fill(first);
            fates[at] = there;
            fates
        };
        use Fate::{Garbage, New, Old};
        [
            one(New, Old),
            one(New, Garbage),
            one(Old, New),
            one(Old, Garbage),
            parts(New, Old, Old),
            parts(New, Garbage, Old),
            parts(Old, New, New),
            parts(Old, Garbage, New),
        ]
    });
    ends.into_iter().chain(probes)
}

/// A sector that was overwritten with what it held is not told apart as old or new.
fn normalise(view: &View, fates: &mut [Fate]) {
    for ((.., same), fate) in view.open.iter().zip(fates) {
        if *same && *fate == Fate::Old {
            *fate = Fate::New;
        }
    }
}

/// The real recovery; every record that it finds is the one that was appended, byte for byte, and in order.
fn recover_and_compare(disk: &SimDisk, run: &Run) -> Result<Found, ScanError> {
    let mut below = 1;
    let Scan { position, ending, .. } = recover(disk, run.options.first_segment_size, &mut |found| {
        assert_eq!(found.seq, below, "the order holds");
        let Some((bytes, hash)) = run.records.get(below as usize - 1) else { panic!("seq {below} was never appended") };
        assert!(found.bytes == bytes && found.hash == *hash, "seq {below} is not what was appended");
        below += 1;
        Ok(())
    })?;
    assert_eq!(position.next_seq, below);
    let head = below.checked_sub(2).map_or([0; 32], |last| run.records[last as usize].1);
    assert_eq!(position.head_hash, head, "the log goes on from its last record");
    Ok(Found { below, ending })
}

/// A log that was recovered goes on: one more record, and all of them can be looked up across whatever was torn.
fn go_on(disk: &SimDisk, run: &Run, below: u64) {
    const NEW: &[u8] = b"one more";
    let (wal, _) = Wal::open(Arc::new(disk.clone()), run.options, &mut |_| Ok(()), Box::new(|_| {}))
        .expect("a recovered log opens");
    let (seq, _) = wal.append(|_, _, body| body.extend_from_slice(NEW)).unwrap();
    assert_eq!(seq, below);
    wal.wait(seq).unwrap();
    let mut next = 1;
    let outcome = wal.reader().read(1, seq, &mut |seq, bytes| {
        let expected = if seq == below { NEW } else { &run.records[seq as usize - 1].0 };
        assert!(seq == next && bytes == expected, "looking up seq {seq}");
        next += 1;
        true
    });
    assert!(outcome.is_ok() && next == below + 1, "looked up below {next} of {below}: {outcome:?}");
    wal.close();
    let mut found = 0;
    recover(disk, run.options.first_segment_size, &mut |_| {
        found += 1;
        Ok(())
    })
    .expect("it opens again");
    assert_eq!(found, below, "what was appended is found again");
}
