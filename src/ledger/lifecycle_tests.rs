//! Is any order of commands legal, and does recovery see what was decided live?
#![allow(clippy::unwrap_used)]

use super::*;
use crate::hash::Hash;
use crate::ledger::event::Stored;
use crate::ledger::event::Usage;

#[path = "lifecycle_parents_tests.rs"]
mod parents;

const LIMITS: Limits = Limits { jobs_open_max: 3, manifest_bytes_max: 100_000 };

/// A ledger driven by commands, whose every event goes through its bytes, as on disk.
#[derive(Default)]
struct Bench {
    ledger: Ledger,
    bytes: Vec<Vec<u8>>,
    prev: Option<Hash>,
    clock: u64,
    /// [`LIMITS`] where there are none.
    limits: Option<Limits>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::default();
        bench.run(Command::Genesis(Genesis { log_id: "ab".repeat(16), format: 1 })).unwrap();
        bench
    }

    fn run(&mut self, command: Command) -> Result<Vec<State>, Rejection> {
        self.clock += 1000;
        let events = self.ledger.decide(command, Time(self.clock), self.limits.unwrap_or(LIMITS))?;
        let mut states = Vec::new();
        for event in events {
            let (seq, prev) = (self.bytes.len() as u64 + 1, self.prev.unwrap_or(Hash::ZERO));
            let mut bytes = Vec::new();
            event.write(seq, &prev, &mut bytes);
            let stored = Stored::parse(&bytes).unwrap();
            assert_eq!(stored.event, event, "what is written is what is read");
            states.push(event.detail.state());
            let fact = Fact::parse(&bytes).unwrap();
            self.ledger.apply(&fact, &bytes).unwrap();
            self.prev = Some(Hash::of(&bytes));
            self.bytes.push(bytes);
        }
        Ok(states)
    }

    fn submit(&mut self, id: &str, more: &str) -> Result<Vec<State>, Rejection> {
        let body = format!(r#"{{"job_id":"{id}","image_hash":"busybox","command":["true"]{more}}}"#);
        self.run(Command::Submit(Box::new(crate::manifest::parse(body.as_bytes()).unwrap())))
    }

    fn job(&self) -> &Job {
        self.ledger.job("j").unwrap()
    }
}

fn scheduled() -> Scheduled {
    let image_id = format!("sha256:{}", "cd".repeat(32));
    Scheduled { image_id, input_hash: Hash([1; 32]), execution_hash: Hash([2; 32]), mounts: Vec::new() }
}

fn sealed() -> Sealed {
    Sealed { seal_hash: Hash([3; 32]), artifacts_root: Hash([4; 32]), files: 0, bytes: 0, reproduction: None }
}

fn mark() -> D1Stable {
    D1Stable { line: "[D1_STABLE] step=1".into(), stream: "stdout".into(), offset: 0, count: 1 }
}

fn ask(word: &str) -> Stopping {
    Stopping { asked: word.into(), by: "127.0.0.1".into() }
}

fn ending(exit_code: i32) -> Ending {
    Ending { exit_code: Some(exit_code), usage: Some(Usage::default()), ..Ending::default() }
}

/// What [`Bench::submit`] submits as `j` with nothing more.
fn manifest() -> Box<RawValue> {
    let parsed = crate::manifest::parse(br#"{"job_id":"j","image_hash":"busybox","command":["true"]}"#).unwrap();
    RawValue::from_string(parsed.canonical).unwrap()
}

/// Every command that a job can meet, by name, as it stands.
fn commands(job: &Job) -> Vec<(&'static str, Command)> {
    let (id, attempt, seq): (Arc<str>, _, _) = ("j".into(), job.attempt, job.seq);
    let failed = Outcome::Failed { reason: "exit".into(), message: "1".into() };
    let crashed = |cause: &str| Outcome::Crashed { cause: cause.into() };
    vec![
        ("schedule", Command::Schedule(id.clone(), seq, scheduled())),
        ("refuse", Command::Refuse(id.clone(), seq, "image".into(), "none".into())),
        ("fail by dependency", Command::FailByDependency(id.clone(), seq)),
        ("start", Command::Start(id.clone(), seq)),
        ("mark", Command::Mark(id.clone(), attempt, mark())),
        ("cancel", Command::Stop(id.clone(), ask("cancel"))),
        ("timeout", Command::Stop(id.clone(), ask("timeout"))),
        ("complete", Command::End(id.clone(), attempt, Outcome::Completed, ending(0))),
        ("fail", Command::End(id.clone(), attempt, failed, ending(1))),
        ("kill", Command::End(id.clone(), attempt, crashed("killed"), ending(137))),
        ("oom", Command::End(id.clone(), attempt, crashed("oom"), ending(137))),
        ("seal", Command::Seal(id.clone(), attempt, sealed())),
        ("cannot seal", Command::SealFailed(id.clone(), attempt, "gone".into())),
        ("retrigger", Command::Retrigger(id, "127.0.0.1".into(), manifest())),
    ]
}

/// The states that `path` of command names leads through, or the rejection of its last.
fn walk(path: &str) -> Result<Vec<State>, Rejection> {
    let mut bench = Bench::new();
    let mut states = bench.submit("j", "")?;
    for name in path.split(", ").filter(|name| !name.is_empty()) {
        let command = commands(bench.job()).into_iter().find(|(known, _)| *known == name).unwrap().1;
        states.extend(bench.run(command)?);
    }
    Ok(states)
}

#[test]
fn lives_that_are_legal() {
    use State::{
        Cancelled, Completed, Crash, D1Stable, Failed, Received, Recovery, Retriggered, Running, Scheduled, Sealed,
        Stopping,
    };
    for (path, expected) in [
        ("", vec![Received]),
        ("schedule, start, mark, complete, seal", vec![Received, Scheduled, Running, D1Stable, Completed, Sealed]),
        (
            "schedule, start, kill, start, mark, complete, seal",
            vec![Received, Scheduled, Running, Crash, Recovery, D1Stable, Completed, Sealed],
        ),
        ("schedule, start, fail", vec![Received, Scheduled, Running, Failed]),
        ("schedule, start, oom", vec![Received, Scheduled, Running, Crash, Failed]),
        (
            "schedule, start, kill, start, kill, start, kill",
            vec![Received, Scheduled, Running, Crash, Recovery, Crash, Recovery, Crash, Failed],
        ),
        ("refuse", vec![Received, Failed]),
        ("schedule, refuse", vec![Received, Scheduled, Failed]),
        ("cancel", vec![Received, Cancelled]),
        ("cancel, cancel", vec![Received, Cancelled]),
        ("schedule, cancel", vec![Received, Scheduled, Cancelled]),
        (
            "schedule, start, cancel, cancel, mark, complete",
            vec![Received, Scheduled, Running, Stopping, D1Stable, Cancelled],
        ),
        ("schedule, start, cancel, timeout, kill", vec![Received, Scheduled, Running, Stopping, Cancelled]),
        ("schedule, start, timeout, complete", vec![Received, Scheduled, Running, Stopping, Failed]),
        ("schedule, start, kill, cancel", vec![Received, Scheduled, Running, Crash, Cancelled]),
        ("schedule, start, complete, cancel", vec![Received, Scheduled, Running, Completed, Cancelled]),
        ("schedule, start, complete, cannot seal", vec![Received, Scheduled, Running, Completed, Failed]),
        ("cancel, retrigger, retrigger, schedule", vec![Received, Cancelled, Retriggered, Scheduled]),
        ("schedule, cancel, retrigger, start", vec![Received, Scheduled, Cancelled, Retriggered, Running]),
        ("cancel, retrigger, cancel, retrigger", vec![Received, Cancelled, Retriggered, Cancelled, Retriggered]),
        (
            "schedule, start, oom, retrigger, start, complete, seal",
            vec![Received, Scheduled, Running, Crash, Failed, Retriggered, Recovery, Completed, Sealed],
        ),
        (
            // Three attempts, and three more.
            "schedule, start, kill, start, kill, start, kill, retrigger, start, kill, start, kill, start, kill",
            vec![
                Received,
                Scheduled,
                Running,
                Crash,
                Recovery,
                Crash,
                Recovery,
                Crash,
                Failed,
                Retriggered,
                Recovery,
                Crash,
                Recovery,
                Crash,
                Recovery,
                Crash,
                Failed,
            ],
        ),
    ] {
        assert_eq!(walk(path), Ok(expected), "{path}");
    }
}

#[test]
fn whatever_order_commands_come_in_none_breaks_the_ledger_and_recovery_agrees() {
    // Every path of four commands, from each of a few lives: decided or refused, never an event that apply refuses.
    let starts = [
        "",
        "schedule, start",
        "schedule, start, kill",
        "schedule, start, cancel",
        "schedule, start, complete",
        "schedule, start, oom, retrigger",
    ];
    let mut any = Bench::new();
    any.submit("j", "").unwrap();
    let names: Vec<&str> = commands(any.job()).iter().map(|(name, _)| *name).collect();
    let mut refused = 0;
    for start in starts {
        for a in 0..names.len() {
            for b in 0..names.len() {
                for c in 0..names.len() {
                    let mut bench = Bench::new();
                    bench.submit("j", "").unwrap();
                    let path = start.split(", ").filter(|name| !name.is_empty()).chain([names[a], names[b], names[c]]);
                    for name in path {
                        let before = bench.bytes.len();
                        let was_over = bench.job().open.is_none();
                        let command = commands(bench.job()).into_iter().find(|(n, _)| *n == name).unwrap().1;
                        if let Err(rejection) = bench.run(command) {
                            refused += 1;
                            assert_eq!((rejection.status, bench.bytes.len()), (409, before));
                        }
                        let silent = !was_over || name == "retrigger" || bench.bytes.len() == before;
                        assert!(silent, "an ended job gets no other event");
                    }
                    let mut recovered = Ledger::default();
                    for bytes in &bench.bytes {
                        recovered.apply(&Fact::parse(bytes).unwrap(), bytes).unwrap();
                    }
                    assert_eq!(recovered.job("j"), bench.ledger.job("j"), "recovery sees what was decided live");
                    assert_eq!((recovered.open, recovered.open_bytes), (bench.ledger.open, bench.ledger.open_bytes));
                }
            }
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn only_what_ended_by_a_crash_or_a_cancel_is_retriggered() {
    for path in [
        "retrigger",
        "schedule, start, retrigger",
        "schedule, start, fail, retrigger",
        "schedule, start, timeout, complete, retrigger",
        "schedule, start, complete, seal, retrigger",
        "refuse, retrigger",
    ] {
        let rejection = walk(path).unwrap_err();
        assert_eq!((rejection.status, rejection.code), (409, "wrong_state"), "{path}");
    }
    // With its own manifest and no other, and only where there is room.
    let mut bench = Bench::new();
    bench.submit("j", r#","timeout_s":5"#).unwrap();
    bench.run(Command::Stop("j".into(), ask("cancel"))).unwrap();
    let retrigger = || Command::Retrigger("j".into(), "127.0.0.1".into(), manifest());
    let events = bench.ledger.decide(retrigger(), Time(bench.clock), LIMITS).unwrap();
    let mut bytes = Vec::new();
    events[0].write(bench.bytes.len() as u64 + 1, &Hash::ZERO, &mut bytes);
    assert!(Fact::parse(&bytes).and_then(|fact| bench.ledger.apply(&fact, &bytes)).is_err());
    for id in ["k", "l", "m"] {
        bench.submit(id, "").unwrap();
    }
    assert_eq!(bench.run(retrigger()).unwrap_err().status, 429);
}

#[test]
fn what_was_decided_for_a_jobs_first_life_is_refused_in_its_second() {
    // Prepared, started or sealed by somebody who has not heard that the job was cancelled and retriggered meanwhile.
    for (before, late) in [("", "schedule"), ("", "refuse"), ("schedule", "start"), ("schedule", "refuse")] {
        let mut bench = Bench::new();
        bench.submit("j", "").unwrap();
        let names = before.split(", ").filter(|name| !name.is_empty());
        for name in names {
            bench.run(commands(bench.job()).into_iter().find(|(n, _)| *n == name).unwrap().1).unwrap();
        }
        let late_command = commands(bench.job()).into_iter().find(|(n, _)| *n == late).unwrap().1;
        for name in ["cancel", "retrigger"] {
            bench.run(commands(bench.job()).into_iter().find(|(n, _)| *n == name).unwrap().1).unwrap();
        }
        assert_eq!(bench.run(late_command).unwrap_err().code, "superseded", "{before}: {late}");
    }
    for late in ["seal", "cannot seal"] {
        let mut bench = Bench::new();
        bench.submit("j", "").unwrap();
        let mut late_command = None;
        for name in ["schedule", "start", "complete", "cancel", "retrigger", "start", "complete"] {
            bench.run(commands(bench.job()).into_iter().find(|(n, _)| *n == name).unwrap().1).unwrap();
            if name == "complete" && late_command.is_none() {
                late_command = commands(bench.job()).into_iter().find(|(n, _)| *n == late).map(|(_, command)| command);
            }
        }
        assert_eq!(bench.run(late_command.unwrap()).unwrap_err().code, "wrong_attempt", "{late}");
        assert_eq!(bench.job().state, State::Completed);
    }
}

#[test]
fn a_crash_without_its_failure_gets_no_further_attempt() {
    // Both are written together; a ledger that holds only the first must not lead to an attempt too many.
    for (more, cause, reason) in [(r#","max_attempts":1"#, "killed", "attempt_limit"), ("", "oom", "oom")] {
        let mut bench = Bench::new();
        bench.submit("j", more).unwrap();
        let id: Arc<str> = "j".into();
        bench.run(Command::Schedule(id.clone(), bench.job().seq, scheduled())).unwrap();
        bench.run(Command::Start(id.clone(), bench.job().seq)).unwrap();
        let crash = Crash { cause: cause.into(), ending: ending(137) };
        let subject = Some(Subject { job_id: id.clone(), attempt: 1 });
        let seq = bench.bytes.len() as u64 + 1;
        let event = Event { time: Time(bench.clock), subject, detail: Detail::Crash(crash) };
        let mut bytes = Vec::new();
        event.write(seq, &Hash::ZERO, &mut bytes);
        bench.ledger.apply(&Fact::parse(&bytes).unwrap(), &bytes).unwrap();
        let events = bench.ledger.decide(Command::Start(id, seq), Time(bench.clock), LIMITS).unwrap();
        assert!(
            matches!(&events[..], [Event { detail: Detail::Failed(failed), .. }] if failed.reason == reason),
            "{events:?}"
        );
    }
}

#[test]
fn a_repeated_submission_is_the_same_job_and_another_manifest_is_refused() {
    let mut bench = Bench::new();
    assert_eq!(bench.submit("j", ""), Ok(vec![State::Received]));
    assert_eq!(bench.submit("j", ""), Ok(Vec::new()));
    assert_eq!(bench.submit("j", r#","timeout_s":5"#).unwrap_err().code, "job_exists");
    bench.submit("k", "").unwrap();
    bench.submit("l", "").unwrap();
    assert_eq!(bench.submit("m", "").unwrap_err().status, 429, "three are open");
    let seq = bench.ledger.job("k").unwrap().seq;
    bench.run(Command::Refuse("k".into(), seq, "image".into(), "none".into())).unwrap();
    assert_eq!(bench.submit("m", ""), Ok(vec![State::Received]), "one has ended");
}

#[test]
fn time_never_goes_back_though_the_clock_does() {
    let mut bench = Bench::new();
    bench.clock = 5_000_000;
    bench.submit("j", "").unwrap();
    bench.clock = 0;
    bench.run(Command::Schedule("j".into(), bench.job().seq, scheduled())).unwrap();
    let times: Vec<Time> = bench.bytes.iter().map(|bytes| Stored::parse(bytes).unwrap().event.time).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn events_that_do_not_follow_are_refused_and_change_nothing() {
    let mut bench = Bench::new();
    bench.submit("j", "").unwrap();
    let subject = |attempt| Some(Subject { job_id: "j".into(), attempt });
    let time = Time(bench.clock);
    for (seq, time, subject, detail) in [
        (4, time, subject(0), Detail::Scheduled(scheduled())),
        (3, Time(0), subject(0), Detail::Scheduled(scheduled())),
        (3, time, subject(1), Detail::Scheduled(scheduled())),
        (3, time, subject(0), Detail::Sealed(sealed())),
        (3, time, None, Detail::Genesis(Genesis { log_id: "x".into(), format: 1 })),
        (3, time, Some(Subject { job_id: "unknown".into(), attempt: 0 }), Detail::Scheduled(scheduled())),
    ] {
        let event = Event { time, subject, detail };
        let mut bytes = Vec::new();
        event.write(seq, &Hash::ZERO, &mut bytes);
        let fact = Fact::parse(&bytes).unwrap();
        assert!(bench.ledger.apply(&fact, &bytes).is_err(), "{fact:?}");
    }
    assert_eq!(bench.job().state, State::Received);
}

#[test]
fn a_message_fits_in_an_event_whatever_paths_it_carries() {
    use crate::ledger::event::FAILED_MESSAGE_MAX;
    for (character, length) in [("x", 3), ("é", 2 << 20), ("\u{1}", FAILED_MESSAGE_MAX), ("x", FAILED_MESSAGE_MAX + 1)]
    {
        let message = character.repeat(length);
        let kept = Failed::new("inputs", message.clone(), Ending::default()).message;
        if message.len() <= FAILED_MESSAGE_MAX {
            assert_eq!(kept, message);
        } else {
            assert!(kept.len() <= FAILED_MESSAGE_MAX + '…'.len_utf8() && kept.ends_with('…'), "{} bytes", kept.len());
            assert!(message.starts_with(kept.trim_end_matches('…')));
        }
    }
}

/// Prunes these jobs, as far as they may go; the event's ids.
fn prune(bench: &mut Bench, older_than_s: u64, ids: &[&str]) -> Vec<String> {
    let jobs = ids.iter().map(|id| ((*id).into(), 1, 10)).collect();
    let states = bench.run(Command::Prune(Prune { by: "command".into(), older_than_s, jobs })).unwrap();
    if states.is_empty() {
        return Vec::new();
    }
    match Stored::parse(bench.bytes.last().unwrap()).unwrap().event.detail {
        Detail::Pruned(pruned) => {
            assert_eq!((pruned.files, pruned.bytes), (pruned.jobs.len() as u64, 10 * pruned.jobs.len() as u64));
            pruned.jobs
        }
        other => panic!("{other:?}"),
    }
}

fn seal(bench: &mut Bench, id: &str) {
    let seq = bench.ledger.job(id).unwrap().seq;
    bench.run(Command::Schedule(id.into(), seq, scheduled())).unwrap();
    let seq = bench.ledger.job(id).unwrap().seq;
    bench.run(Command::Start(id.into(), seq)).unwrap();
    bench.run(Command::End(id.into(), 1, Outcome::Completed, ending(0))).unwrap();
    bench.run(Command::Seal(id.into(), 1, sealed())).unwrap();
}

#[test]
fn what_nobody_needs_may_be_pruned_once_and_only_when_it_is_old() {
    let mut bench = Bench::new();
    for id in ["parent", "original", "alone", "open"] {
        bench.limits = Some(Limits { jobs_open_max: 10, ..LIMITS });
        bench.submit(id, "").unwrap();
    }
    ["parent", "original", "alone"].iter().for_each(|id| seal(&mut bench, id));
    bench.submit("child", r#","depends_on":["parent"]"#).unwrap();
    bench.submit("repeat", r#","reproduces":"original""#).unwrap();
    let all = ["alone", "child", "nobody", "open", "original", "parent", "repeat"];
    let listed = |bench: &Bench, now: u64, older_than_s| -> Vec<String> {
        let found = prunable(&bench.ledger.jobs(), bench.ledger.pruned(), Time(now), older_than_s);
        found.iter().map(|job| job.job_id.to_string()).collect()
    };
    // A second is a million ticks, and the clock stands at thousands.
    assert_eq!(prune(&mut bench, 1, &all), [""; 0], "too young");
    assert_eq!(listed(&bench, bench.clock, 1), [""; 0]);
    assert_eq!(listed(&bench, 0, 1), [""; 0], "the clock was set back");
    assert_eq!(listed(&bench, 0, 0), ["alone"]);
    assert_eq!(listed(&bench, 2_000_000, 1), ["alone"], "the others are needed");
    bench.clock += 2_000_000;
    assert_eq!(prune(&mut bench, 1, &all), ["alone"]);
    assert_eq!(prune(&mut bench, 1, &all), [""; 0], "once");
    let alone = bench.ledger.job("alone").unwrap().clone();
    assert_eq!((alone.state, bench.ledger.pruned().of(&alone)), (State::Sealed, Some(bench.bytes.len() as u64)));
    // Who is retriggered needs again what it needed.
    bench.run(Command::Stop("child".into(), ask("cancel"))).unwrap();
    let manifest = r#"{"job_id":"child","image_hash":"busybox","command":["true"],"depends_on":["parent"]}"#;
    let canonical = crate::manifest::parse(manifest.as_bytes()).unwrap().canonical;
    let raw = RawValue::from_string(canonical).unwrap();
    bench.run(Command::Retrigger("child".into(), "x".into(), raw)).unwrap();
    assert_eq!(prune(&mut bench, 0, &all), [""; 0]);
    for id in ["child", "repeat"] {
        bench.run(Command::Stop(id.into(), ask("cancel"))).unwrap();
    }
    let found = listed(&bench, bench.clock, 0);
    assert_eq!(prune(&mut bench, 0, &all), ["original", "parent"]);
    assert_eq!(found, ["parent", "original"]);
    assert!(bench.ledger.needed.is_empty(), "nothing is counted for ever");
}
