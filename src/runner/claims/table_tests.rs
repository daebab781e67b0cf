//! The table of claims, case by case, and against a model that compares every pair.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use super::*;

fn id(job: &str) -> Arc<str> {
    job.into()
}

/// A claim on `path`, read-only where it ends in `?`.
fn claim(path: &str) -> Claim {
    let plain = path.trim_end_matches('?');
    Claim::of_path(plain, Path::new(plain), plain != path)
}

fn request(table: &mut Table, job: &str, paths: &[&str]) -> Option<String> {
    let claims: Vec<_> = paths.iter().map(|path| claim(path)).collect();
    table.request(&id(job), &claims).err().map(|blocker| blocker.job.to_string())
}

fn release(table: &mut Table, job: &str) -> Vec<String> {
    table.release(job).iter().map(ToString::to_string).collect()
}

fn is_empty(table: &Table) -> bool {
    table.entries.is_empty()
        && table.turns.is_empty()
        && table.named.is_empty()
        && table.nodes.iter().all(Node::is_unused)
}

#[test]
fn what_conflicts() {
    for (one, other, conflict) in [
        ("/d", "/d", true),
        ("/d", "/d/e/f", true),
        ("/d", "/d?", true),
        ("/d", "/d/e?", true),
        ("/d?", "/d/e", true),
        ("/d?", "/d?", false),
        ("/d?", "/d/e?", false),
        ("/d", "/e", false),
        ("/d/e", "/d/f", false),
        ("/d/e", "/d/ef", false),
        ("/d/e?", "/d/f", false),
    ] {
        for (first, second) in [(one, other), (other, one)] {
            let mut table = Table::default();
            assert_eq!(request(&mut table, "a", &[first]), None);
            assert_eq!(request(&mut table, "b", &[second]).is_some(), conflict, "{first} {second}");
            assert_eq!(release(&mut table, "a").len(), usize::from(conflict));
            assert_eq!(release(&mut table, "b"), [""; 0]);
            assert!(is_empty(&table));
        }
    }
}

#[test]
fn any_name_of_a_directory_is_the_directory() {
    let place = |path: &str| Key::Place("8:1".into(), path.into());
    let claimed = |own: Vec<Key>, above: Vec<Key>| Claim { name: "/x".into(), own, above, read_only: false };
    let by_inode = claimed(vec![Key::Inode(1, 7), Key::Path("/a/x".into())], vec![Key::Inode(1, 2)]);
    for (other, conflict) in [
        (claimed(vec![Key::Inode(1, 7), Key::Path("/b".into())], vec![]), true),
        (claimed(vec![Key::Inode(1, 9), Key::Path("/a/x".into())], vec![]), true),
        (claimed(vec![Key::Inode(1, 2)], vec![]), true),
        (claimed(vec![Key::Inode(1, 8)], vec![Key::Inode(1, 7)]), true),
        (claimed(vec![Key::Inode(2, 7)], vec![]), false),
        (claimed(vec![place("/a/x")], vec![]), false),
    ] {
        let mut table = Table::default();
        table.request(&id("a"), std::slice::from_ref(&by_inode)).unwrap();
        assert_eq!(table.request(&id("b"), std::slice::from_ref(&other)).is_err(), conflict, "{other:?}");
    }
}

#[test]
fn who_came_first_goes_first_and_nobody_is_passed_over() {
    let mut table = Table::default();
    assert_eq!(request(&mut table, "reader", &["/d?"]), None);
    assert_eq!(request(&mut table, "writer", &["/d"]).as_deref(), Some("reader"));
    // It could read beside the first, but then a stream of readers would keep the writer waiting for ever.
    assert_eq!(request(&mut table, "late", &["/d?", "/e"]).as_deref(), Some("writer"));
    assert_eq!(request(&mut table, "other", &["/e/f"]).as_deref(), Some("late"), "what waits is waited for");
    assert_eq!(request(&mut table, "free", &["/f"]), None);
    assert_eq!(request(&mut table, "late", &["/f"]).as_deref(), Some("writer"), "asking again changes nothing");
    assert_eq!(release(&mut table, "nobody"), [""; 0]);
    assert_eq!(release(&mut table, "reader"), ["writer"]);
    assert_eq!(request(&mut table, "writer", &[]), None, "asking again where it is held");
    assert_eq!(release(&mut table, "late"), ["other"], "one that waited and was cancelled lets go, too");
    assert_eq!(release(&mut table, "writer"), [""; 0]);
    assert_eq!(request(&mut table, "reader", &["/d?"]), None, "anew");
    for job in ["other", "free", "reader"] {
        assert_eq!(release(&mut table, job), [""; 0]);
    }
    assert!(is_empty(&table));
}

#[test]
fn the_words_name_both_directories_and_the_job() {
    let mut table = Table::default();
    request(&mut table, "a", &["/i?", "/d"]);
    request(&mut table, "b", &["/j", "/d/e"]);
    request(&mut table, "c", &["/j"]);
    let blocker = |job: &str, holds, wanted: &str, claimed: &str| {
        Some(Blocker { job: id(job), holds, wanted: id(wanted), claimed: id(claimed) })
    };
    assert_eq!(table.waits_for("a"), None);
    assert_eq!(table.waits_for("nobody"), None);
    assert_eq!(table.waits_for("b"), blocker("a", true, "/d/e", "/d"));
    assert_eq!(table.waits_for("c"), blocker("b", false, "/j", "/j"));
    release(&mut table, "a");
    assert_eq!(table.waits_for("c"), blocker("b", true, "/j", "/j"));
}

#[test]
fn what_is_held_from_before_and_what_it_turns_out_to_be() {
    let mut table = Table::default();
    // Two that an agent without claims let run together.
    table.hold(&id("a"), &[claim("/d")]);
    table.hold(&id("b"), &[claim("/d")]);
    assert_eq!(request(&mut table, "c", &["/d"]).as_deref(), Some("b"));
    assert_eq!(release(&mut table, "b"), [""; 0], "a holds it, too");
    assert_eq!(release(&mut table, "a"), ["c"]);
    assert_eq!(request(&mut table, "d", &["/e"]), None);
    let refused = table.extend(&id("d"), &[claim("/f"), claim("/d/x")], false).unwrap_err();
    assert_eq!((&*refused.job, &*refused.wanted, &*refused.claimed), ("c", "/d/x", "/d"));
    assert_eq!(request(&mut table, "e", &["/f"]), None, "what was refused added nothing");
    table.extend(&id("d"), &[claim("/g"), claim("/e")], false).unwrap();
    assert_eq!(request(&mut table, "f", &["/g"]).as_deref(), Some("d"));
    table.extend(&id("nobody"), &[claim("/c")], false).unwrap();
    assert_eq!(request(&mut table, "g", &["/c"]), None, "one that has ended gets nothing more");
    // Somebody who came first and waits is not passed over by what a holder took in behind it.
    assert_eq!(request(&mut table, "h", &["/d", "/k"]).as_deref(), Some("c"));
    assert_eq!(request(&mut table, "i", &["/l"]), None);
    table.extend(&id("i"), &[claim("/k")], false).unwrap();
    assert_eq!(release(&mut table, "c"), [""; 0]);
    assert_eq!(release(&mut table, "i"), ["h"]);
    for job in ["d", "e", "f", "g", "h"] {
        release(&mut table, job);
    }
    assert!(is_empty(&table));
}

/// xorshift64*, S. Vigna.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound
    }
}

/// The rule, pair by pair.
#[derive(Default)]
struct Model {
    /// In the order they came: the job, its claims, whether it holds them.
    jobs: Vec<(String, Vec<String>, bool)>,
}

impl Model {
    fn overlap(one: &[String], other: &[String]) -> bool {
        let pair = |a: &String, b: &String| {
            let (x, y) = (Path::new(a.trim_end_matches('?')), Path::new(b.trim_end_matches('?')));
            !(a.ends_with('?') && b.ends_with('?')) && (x.starts_with(y) || y.starts_with(x))
        };
        one.iter().any(|a| other.iter().any(|b| pair(a, b)))
    }

    /// Gives everybody what they may have now; the names of those who got it.
    fn settle(&mut self) -> Vec<String> {
        let mut granted = Vec::new();
        for at in 0..self.jobs.len() {
            let conflicts = |other: &usize| *other != at && Self::overlap(&self.jobs[at].1, &self.jobs[*other].1);
            let in_the_way = |other: &usize| *other < at || self.jobs[*other].2;
            if !self.jobs[at].2 && !(0..self.jobs.len()).filter(in_the_way).any(|other| conflicts(&other)) {
                self.jobs[at].2 = true;
                granted.push(self.jobs[at].0.clone());
            }
        }
        granted
    }

    fn check(&self) {
        let holders: Vec<_> = self.jobs.iter().filter(|job| job.2).collect();
        for (at, one) in holders.iter().enumerate() {
            for other in &holders[at + 1..] {
                assert!(!Self::overlap(&one.1, &other.1), "{one:?} and {other:?}");
            }
        }
    }
}

#[test]
fn the_table_does_what_the_rule_says() {
    let seed = std::env::var("HACKBRAIN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0xC1A1_3005);
    eprintln!("HACKBRAIN_SEED={seed}");
    let mut random = Random(seed);
    let paths = ["/a", "/a/b", "/a/b/c", "/a/b/d", "/a/e", "/f", "/f/g", "/h", "/h/i/j", "/h/i/k"];
    for round in 0..300 {
        let (mut table, mut model) = (Table::default(), Model::default());
        let (mut number, mut waited) = (0, 0);
        for step in 0..120 {
            // At the end everybody ends, in any order: then all others must get their turn.
            let leaving = step > 60 || random.below(3) == 0;
            if !leaving {
                let job = format!("j{number}");
                number += 1;
                let claims: Vec<String> = (0..1 + random.below(3))
                    .map(|_| format!("{}{}", paths[random.below(paths.len())], ["", "?"][random.below(2)]))
                    .collect();
                let granted =
                    request(&mut table, &job, &claims.iter().map(String::as_str).collect::<Vec<_>>()).is_none();
                waited += usize::from(!granted);
                model.jobs.push((job.clone(), claims, false));
                assert_eq!(model.settle(), if granted { vec![job] } else { vec![] }, "round {round} step {step}");
            } else if !model.jobs.is_empty() {
                // Also one that waits: it may be cancelled. After a while only those that hold end.
                let candidates: Vec<usize> =
                    (0..model.jobs.len()).filter(|at| step < 60 || model.jobs[*at].2).collect();
                let (job, ..) = model.jobs.remove(candidates[random.below(candidates.len())]);
                let granted = release(&mut table, &job);
                assert_eq!(granted, model.settle(), "round {round} step {step}: after {job}");
            }
            model.check();
            for (at, (job, claims, holds)) in model.jobs.iter().enumerate() {
                let blocker = table.waits_for(job);
                assert_eq!(blocker.is_none(), *holds, "{job}");
                let Some(blocker) = blocker else { continue };
                let other = model.jobs.iter().position(|(name, ..)| **name == *blocker.job).unwrap();
                assert!(Model::overlap(claims, &model.jobs[other].1) && (other < at || model.jobs[other].2), "{job}");
                assert_eq!(blocker.holds, model.jobs[other].2);
            }
        }
        assert!(waited > 0 && model.jobs.is_empty() && is_empty(&table), "round {round}");
    }
}

#[test]
fn ten_thousand_on_one_directory() {
    let deep = Path::new("/srv/data/group/project/run");
    let mut table = Table::default();
    let name = |number: usize| id(&format!("j{number}"));
    let began = std::time::Instant::now();
    for number in 0..10_000 {
        // A stretch of readers among the writers: they get their turn together.
        let read_only = (5_000..6_000).contains(&number);
        let claims = [Claim::of_path("/srv/data/group/project/run", deep, read_only)];
        assert_eq!(table.request(&name(number), &claims).is_ok(), number == 0);
    }
    let requested = began.elapsed();
    let mut offers = Vec::new();
    for number in 0..10_000 {
        offers.push(table.release(&name(number)).len());
    }
    eprintln!("10,000 requests {requested:?}, 10,000 releases {:?}", began.elapsed() - requested);
    assert_eq!(offers.iter().sum::<usize>(), 9_999, "each is offered once, and only once");
    assert_eq!((offers[4_999], offers.iter().filter(|count| **count == 1).count()), (1_000, 8_999));
    assert!(is_empty(&table));
}
