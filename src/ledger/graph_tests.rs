//! Random graphs against models so plain that they need no check.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;

use super::*;

const ROUNDS: u64 = 3000;

/// xorshift64*; the seed is printed and taken back from the environment.
struct Chance(u64);

impl Chance {
    fn rounds(mut each: impl FnMut(&mut Self)) {
        let fixed = std::env::var("HACKBRAIN_SEED").ok().map(|text| text.parse().unwrap());
        let seeds = fixed.map_or(1..=ROUNDS, |seed| seed..=seed);
        for seed in seeds {
            let mut chance = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| each(&mut chance))).err();
            if let Some(failed) = failed {
                eprintln!("HACKBRAIN_SEED={seed}");
                std::panic::resume_unwind(failed);
            }
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }

    /// Up to 12 jobs; with `cycles`, anybody may wait for anybody, else only for earlier ones.
    fn graph(&mut self, cycles: bool) -> Vec<Vec<usize>> {
        let jobs = 1 + self.below(12);
        let density = 1 + self.below(6);
        let mut parents = vec![Vec::new(); jobs];
        for (job, parents) in parents.iter_mut().enumerate() {
            for other in 0..if cycles { jobs } else { job } {
                if other != job && self.below(density + 2) == 0 {
                    parents.push(other);
                }
            }
        }
        parents
    }
}

/// Everyone that can be reached, over one step or more.
fn closure(steps: &[Vec<usize>], from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    loop {
        let next: BTreeSet<usize> =
            std::iter::once(from).chain(reached.iter().copied()).flat_map(|job| steps[job].iter().copied()).collect();
        if next.is_subset(&reached) {
            return reached;
        }
        reached.extend(next);
    }
}

fn turned(parents: &[Vec<usize>]) -> Vec<Vec<usize>> {
    (0..parents.len()).map(|job| (0..parents.len()).filter(|child| parents[*child].contains(&job)).collect()).collect()
}

fn id(job: usize) -> Arc<str> {
    format!("j{job:02}").into()
}

#[test]
fn an_order_respects_edges_and_a_cycle_is_told_just_where_there_is_one() {
    let (mut ordered, mut cyclic) = (0, 0);
    Chance::rounds(|chance| {
        let has_cycles = chance.below(2) == 0;
        let parents = chance.graph(has_cycles);
        let is_cyclic = (0..parents.len()).any(|job| closure(&parents, job).contains(&job));
        match order(&parents) {
            Ok(found) => {
                ordered += 1;
                assert!(!is_cyclic, "{parents:?}");
                let place: BTreeMap<usize, usize> = found.iter().enumerate().map(|(at, job)| (*job, at)).collect();
                assert_eq!(place.len(), parents.len(), "each once");
                for (job, parents) in parents.iter().enumerate() {
                    assert!(parents.iter().all(|parent| place[parent] < place[&job]), "{found:?}");
                }
                // Stable: of those that may come next it is always the first.
                for (at, job) in found.iter().enumerate() {
                    let before: BTreeSet<usize> = found[..at].iter().copied().collect();
                    let may = |job: &usize| !before.contains(job) && parents[*job].iter().all(|p| before.contains(p));
                    assert_eq!((0..parents.len()).find(may), Some(*job), "{found:?}");
                }
            }
            Err(cycle) => {
                cyclic += 1;
                assert!(is_cyclic && cycle.len() > 1, "{cycle:?} of {parents:?}");
                assert_eq!(cycle.iter().collect::<BTreeSet<_>>().len(), cycle.len(), "each once: {cycle:?}");
                for (at, job) in cycle.iter().enumerate() {
                    assert!(parents[cycle[(at + 1) % cycle.len()]].contains(job), "{cycle:?} of {parents:?}");
                }
            }
        }
    });
    assert!(std::env::var("HACKBRAIN_SEED").is_ok() || ordered > 500 && cyclic > 500, "{ordered} {cyclic}");
}

#[test]
fn a_cycle_through_a_job_is_the_shortest_there_is_and_is_found_just_where_there_is_one() {
    Chance::rounds(|chance| {
        let parents = chance.graph(true);
        let names: Vec<String> = (0..parents.len()).map(|job| job.to_string()).collect();
        let parents_of =
            |name: &str| parents[name.parse::<usize>().unwrap()].iter().map(|p| names[*p].as_str()).collect();
        for (job, name) in names.iter().enumerate() {
            // Length by levels: who can be reached over exactly n steps.
            let mut level = BTreeSet::from([job]);
            let shortest = (1..=parents.len()).find(|_| {
                level = level.iter().flat_map(|job| parents[*job].iter().copied()).collect();
                level.contains(&job)
            });
            let found = cycle_through(name, parents_of, usize::MAX);
            assert_eq!(found.as_ref().map(Vec::len), shortest, "{job} in {parents:?}");
            for (at, parent) in found.iter().flatten().enumerate() {
                let found = found.as_ref().unwrap();
                assert_eq!(found[0], name);
                let child: usize = found[(at + 1) % found.len()].parse().unwrap();
                assert!(parents[child].contains(&parent.parse().unwrap()), "{found:?} in {parents:?}");
            }
        }
    });
}

/// What becomes of each job, parents first: `own` says how it ends if it gets to run; None where it has not ended yet.
fn fates(parents: &[Vec<usize>], own: &[Option<bool>]) -> (Vec<Fate>, Vec<Standing>) {
    let (mut fates, mut standings): (Vec<Fate>, Vec<Standing>) = (Vec::new(), Vec::new());
    for (job, parents) in parents.iter().enumerate() {
        let ids: Vec<Arc<str>> = parents.iter().map(|parent| id(*parent)).collect();
        let standing = standing(ids.iter().zip(parents.iter().map(|parent| fates[*parent].clone())));
        fates.push(match (&standing, own[job]) {
            (Standing::Fails { ancestor, .. }, _) => Fate::Over { ancestor: ancestor.clone() },
            (Standing::Waits { .. }, _) | (_, None) => Fate::Open,
            (Standing::Ready, Some(true)) => Fate::Sealed,
            (Standing::Ready, Some(false)) => Fate::Over { ancestor: id(job) },
        });
        standings.push(standing);
    }
    (fates, standings)
}

#[test]
fn descendants_of_a_failed_job_fail_with_its_name_and_nobody_else_does() {
    Chance::rounds(|chance| {
        let parents = chance.graph(false);
        let own: Vec<Option<bool>> =
            parents.iter().map(|_| [None, Some(true), Some(true), Some(false)][chance.below(4)]).collect();
        let (fates, standings) = fates(&parents, &own);
        let began = |job: usize| fates[job] == Fate::Over { ancestor: id(job) };
        for job in 0..parents.len() {
            let above = closure(&parents, job);
            let causes: BTreeSet<Arc<str>> = above.iter().filter(|job| began(**job)).map(|job| id(*job)).collect();
            match &standings[job] {
                Standing::Fails { ancestor, parent } => {
                    assert!(causes.contains(ancestor), "{ancestor} of {causes:?}");
                    let parent: usize = parent[1..].parse().unwrap();
                    assert!(parents[job].contains(&parent));
                    assert_eq!(fates[parent], Fate::Over { ancestor: ancestor.clone() });
                }
                Standing::Ready => assert!(parents[job].iter().all(|parent| fates[*parent] == Fate::Sealed)),
                Standing::Waits { on, more } => {
                    assert!(causes.is_empty(), "nobody waits who must fail");
                    let open: Vec<Arc<str>> =
                        parents[job].iter().filter(|p| fates[**p] == Fate::Open).map(|p| id(*p)).collect();
                    assert_eq!((on, *more), (&open[0], open.len() - 1));
                }
            }
            assert_eq!(matches!(standings[job], Standing::Fails { .. }), !causes.is_empty());
        }
    });
}

#[test]
fn who_is_ready_or_fails_stays_so_as_more_jobs_end() {
    Chance::rounds(|chance| {
        let parents = chance.graph(false);
        let mut own = vec![None; parents.len()];
        let mut before = fates(&parents, &own).1;
        while let Some(job) = (0..own.len()).find(|job| own[*job].is_none()) {
            own[job] = Some(chance.below(3) > 0);
            let now = fates(&parents, &own).1;
            for (before, now) in before.iter().zip(&now) {
                match before {
                    Standing::Waits { .. } => {}
                    Standing::Ready => assert_eq!(now, before),
                    Standing::Fails { .. } => assert!(matches!(now, Standing::Fails { .. })),
                }
            }
            before = now;
        }
        assert!(!before.iter().any(|standing| matches!(standing, Standing::Waits { .. })), "nobody waits for ever");
    });
}

#[test]
fn around_a_job_are_its_ancestors_and_descendants_nearest_first() {
    Chance::rounds(|chance| {
        let parents = chance.graph(false);
        let children = turned(&parents);
        let job = chance.below(parents.len());
        let steps = |of: &[Vec<usize>], job: u32| -> Vec<u32> { of[job as usize].iter().map(|j| *j as u32).collect() };
        let find = |limit| around(job as u32, limit, |job| steps(&parents, job), |job| steps(&children, job));
        let (all, truncated) = find(usize::MAX);
        assert!(!truncated);
        let mut expected = closure(&parents, job);
        expected.extend(closure(&children, job));
        expected.insert(job);
        assert_eq!(all.iter().map(|job| *job as usize).collect::<BTreeSet<_>>(), expected);
        assert_eq!(all.len(), expected.len(), "each once");
        let distance = |to: usize| {
            let along = |steps: &[Vec<usize>]| {
                let mut level = BTreeSet::from([job]);
                (0..=parents.len()).find(|_| {
                    let there = level.contains(&to);
                    level = level.iter().flat_map(|job| steps[*job].iter().copied()).collect();
                    there
                })
            };
            along(&parents).into_iter().chain(along(&children)).min().unwrap()
        };
        assert!(all.iter().map(|to| distance(*to as usize)).is_sorted(), "{all:?}");
        for limit in 1..=all.len() {
            assert_eq!(find(limit), (all[..limit].to_vec(), limit < all.len()));
        }
    });
}

#[test]
fn a_long_cycle_is_printed_with_its_middle_left_out() {
    assert_eq!(cycle_text(&["a", "b", "c"]), "a → b → c → a");
    let ids: Vec<String> = (0..100).map(|job| job.to_string()).collect();
    let text = cycle_text(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(text, "0 → 1 → 2 → 3 → 4 → 5 → 6 → 7 → … (85 more) … → 93 → 94 → 95 → 96 → 97 → 98 → 99 → 0");
}
