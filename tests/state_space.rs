//! The state space of docs/architecture/phase_diagram.md, explored to its end: every order of commands, with at most two
//! decisions staged, a sync and a loss of what is not durable at every step. The document's tables are read from it and have to
//! be just what was seen.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use hackbrain::hash::Hash;
use hackbrain::ledger::event::{
    Cancelled, Crash, D1Stable, Detail, Ending, Event, Failed, Genesis, Intent, NodeDown, NodeUp, Received,
    Retriggered, Scheduled, Sealed, State, Stopping, Subject,
};
use hackbrain::ledger::fact::Fact;
use hackbrain::ledger::graph::Fate;
use hackbrain::ledger::lifecycle::{Command, Job, Ledger, Limits, Outcome};
use hackbrain::ledger::time::Time;
use hackbrain::manifest::{self, Parsed};
use serde_json::value::RawValue;

const DOCUMENT: &str = include_str!("../docs/architecture/phase_diagram.md");
const LIMITS: Limits = Limits { jobs_open_max: 2, manifest_bytes_max: 100_000 };
/// Decisions that are staged at once.
const STAGED_MAX: usize = 2;
/// Reasons of FAILED after which a job may be retriggered.
const CIRCUMSTANCE: [&str; 3] = ["attempt_limit", "oom", "dependency"];

/// One event as it lies in the log.
struct Entry {
    bytes: Vec<u8>,
    fact: Fact,
    /// Number of the decision that it belongs to.
    decision: usize,
    job: Option<usize>,
    state: State,
    /// The job as the agent that decided this saw it.
    live: Option<Arc<Job>>,
}

/// The log, how much of it survives a crash, and what was done in the world.
#[derive(Clone)]
struct Node {
    log: Vec<Rc<Entry>>,
    durable: usize,
    /// Of each job: the highest attempt whose container was made, and the one that was signalled.
    containers: Vec<u32>,
    signalled: Vec<u32>,
}

/// What is explored.
struct Model {
    manifests: Vec<Parsed>,
    /// A job with more attempts is not retriggered: that makes the space finite.
    retriggered_up_to: u32,
    marks: bool,
    /// A mistake on purpose: what is done as soon as it is decided.
    hasty: Option<Act>,
}

/// What can be seen from outside.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Tell,
    StartContainer,
    Signal,
}

/// What was seen.
#[derive(Default)]
struct Seen {
    nodes: usize,
    steps: usize,
    crashes: usize,
    refused: usize,
    /// Where a job stands → states that followed.
    follows: BTreeMap<String, BTreeSet<String>>,
    /// Command, and what it gave → where.
    given: BTreeMap<(String, String), BTreeSet<String>>,
}

fn parsed(id: &str, more: &str) -> Parsed {
    let body = format!(r#"{{"job_id":"{id}","image_hash":"busybox","command":["true"]{more}}}"#);
    manifest::parse(body.as_bytes()).unwrap()
}

fn raw(parsed: &Parsed) -> Box<RawValue> {
    RawValue::from_string(parsed.canonical.clone()).unwrap()
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

fn stopping(asked: &str) -> Stopping {
    Stopping { asked: asked.into(), by: "127.0.0.1".into() }
}

fn node_up() -> Command {
    Command::NodeUp(match detail(State::NodeUp, &parsed("x", "")) {
        Detail::NodeUp(up) => up,
        _ => unreachable!(),
    })
}

/// Where a job stands, by the names of the document.
fn place(job: Option<&Arc<Job>>) -> String {
    let Some(job) = job else { return "none".into() };
    let more = match job.state {
        State::D1Stable if job.stop().is_some() => " (stopping)",
        State::Failed if CIRCUMSTANCE.contains(&job.reason.as_deref().unwrap_or_default()) => " (by circumstance)",
        State::Failed => " (final)",
        State::Retriggered if job.image_id.is_none() => " (new)",
        State::Retriggered if job.attempt == 0 => " (scheduled)",
        State::Retriggered => " (attempted)",
        _ => "",
    };
    format!("{}{more}", job.state)
}

/// All of a job that a decision depends on.
fn shape(job: Option<&Arc<Job>>) -> String {
    let Some(job) = job else { return "none".into() };
    let open = job.open.as_ref();
    format!(
        "{}/{}/{:?}/{:?}/{:?}/{}/{}",
        place(Some(job)),
        job.attempt,
        open.and_then(|open| open.retriggered_at),
        job.reason,
        job.stop().map(|stop| stop.asked.as_str()),
        job.image_id.is_some(),
        job.last_d1_stable.is_some(),
    )
}

/// The invariants of single steps: by induction they hold of every history.
fn check_step(before: &Job, after: &Job, event: &Event, ledger: &Ledger) {
    let state = event.detail.state();
    let starts = matches!(state, State::Running | State::Recovery);
    assert_eq!(after.attempt, before.attempt + u32::from(starts), "M2: {before:?} {state}");
    assert!(after.seq > before.seq, "M1");
    assert_eq!(state == State::Running, starts && before.attempt == 0, "M2: RUNNING is attempt 1 and no other");
    assert!(before.state != State::Sealed, "M3: {state} behind SEALED");
    assert!(!before.state.is_end() || state == State::Retriggered, "I1: {state} behind {}", before.state);
    assert!(state != State::Sealed || before.state == State::Completed, "M3: SEALED behind {}", before.state);
    let kept = |job: &Job| (job.number, job.received_seq, job.received, job.manifest_hash, job.image_hash.clone());
    assert_eq!(kept(before), kept(after), "M4");
    assert_eq!(before.seen & after.seen, before.seen, "M4: what was seen stays seen");
    assert!(before.started.is_none() || before.started == after.started, "M4");
    if before.image_id.is_some() {
        assert!(state != State::Scheduled, "M5: SCHEDULED twice");
        assert_eq!((&before.image_id, before.execution_hash), (&after.image_id, after.execution_hash), "M5");
    }
    if before.stop().is_some() {
        assert!(matches!(state, State::D1Stable | State::Failed | State::Cancelled), "I3: {state} behind STOPPING");
    }
    if let Detail::Running(intent) | Detail::Recovery(intent) = &event.detail {
        let first = before.attempt == 0;
        assert_eq!(intent.resumed_after.as_deref(), before.last_d1_stable.as_deref().filter(|_| !first), "I5");
        let open = before.open.as_ref().expect("it has not ended");
        let earlier = open.retriggered_at.unwrap_or(0);
        assert!(after.attempt - earlier <= open.manifest.get().max_attempts, "I4: an attempt too many");
        assert!(before.reason.as_deref() != Some("oom") || before.state == State::Retriggered, "I4");
    }
    let fates = || before.parents().iter().map(|parent| ledger.job(parent).expect("received before").fate());
    if state == State::Scheduled {
        assert!(fates().all(|fate| fate == Fate::Sealed), "I6: SCHEDULED before its parents are SEALED");
    }
    if let Detail::Failed(failed) = &event.detail {
        assert_eq!(failed.reason == "dependency", failed.ancestor.is_some(), "I6");
        if failed.ancestor.is_some() {
            assert!(before.image_id.is_none(), "I6: a job that was SCHEDULED needs its parents no more");
            assert!(fates().any(|fate| matches!(fate, Fate::Over { .. })), "I6");
        }
    }
}

impl Model {
    fn id(&self, index: usize) -> Arc<str> {
        self.manifests[index].manifest.job_id.as_str().into()
    }

    fn job<'a>(&self, ledger: &'a Ledger, index: usize) -> Option<&'a Arc<Job>> {
        ledger.job(&self.manifests[index].manifest.job_id)
    }

    /// What a recovery makes of these events.
    fn fold(&self, log: &[Rc<Entry>]) -> Ledger {
        let mut ledger = Ledger::default();
        for entry in log {
            ledger.apply(&entry.fact, &entry.bytes).expect("what was decided is legal");
        }
        for index in 0..self.manifests.len() {
            let live = log.iter().rev().find(|entry| entry.job == Some(index)).and_then(|entry| entry.live.as_ref());
            assert_eq!(self.job(&ledger, index), live, "recovery sees what was decided live");
        }
        ledger
    }

    fn key(&self, node: &Node, full: &Ledger, durable: &Ledger) -> String {
        let mut key = String::new();
        for index in 0..self.manifests.len() {
            key += &shape(self.job(durable, index));
            key += " | ";
            key += &shape(self.job(full, index));
            key += &format!(" {} {} ; ", node.containers[index], node.signalled[index]);
        }
        for entry in &node.log[node.durable..] {
            key += &format!("{:?} {} {}, ", entry.job, entry.state, entry.decision - node.log[node.durable].decision);
        }
        key
    }

    /// Everything that may be asked about a job, by those who know what is visible.
    fn commands(&self, index: usize, visible: &Ledger) -> Vec<(&'static str, Command)> {
        let parsed = &self.manifests[index];
        let id = self.id(index);
        let known = self.job(visible, index);
        let mut commands =
            vec![("Submit", Command::Submit(Box::new(manifest::parse(parsed.canonical.as_bytes()).unwrap())))];
        let (attempt, seq) = known.map_or((0, 0), |job| (job.attempt, job.seq));
        let crashed = |cause: &str| {
            let ending = Ending { exit_code: Some(137), ..Ending::default() };
            Command::End(id.clone(), attempt, Outcome::Crashed { cause: cause.into() }, ending)
        };
        let failed = Outcome::Failed { reason: "exit".into(), message: "1".into() };
        commands.extend([
            ("Schedule", Command::Schedule(id.clone(), seq, scheduled())),
            ("Refuse", Command::Refuse(id.clone(), seq, "image".into(), "none".into())),
            ("FailByDependency", Command::FailByDependency(id.clone(), seq)),
            ("Start", Command::Start(id.clone(), seq)),
            ("Stop (cancel)", Command::Stop(id.clone(), stopping("cancel"))),
            ("Stop (timeout)", Command::Stop(id.clone(), stopping("timeout"))),
            ("End (completed)", Command::End(id.clone(), attempt, Outcome::Completed, Ending::default())),
            ("End (failed)", Command::End(id.clone(), attempt, failed, Ending::default())),
            ("End (crashed)", crashed("killed")),
            ("End (crashed)", crashed("oom")),
            ("Seal", Command::Seal(id.clone(), attempt, sealed())),
            ("SealFailed", Command::SealFailed(id.clone(), attempt, "gone".into())),
        ]);
        if self.marks {
            commands.push(("Mark", Command::Mark(id.clone(), attempt, mark())));
        }
        if attempt <= self.retriggered_up_to {
            commands.push(("Retrigger", Command::Retrigger(id, "127.0.0.1".into(), raw(parsed))));
        }
        commands
    }

    /// Appends an event of this decision, and checks the step against the promises.
    fn append(&self, log: &mut Vec<Rc<Entry>>, ledger: &mut Ledger, event: &Event, decision: usize) {
        let prev = log.last().map_or(Hash::ZERO, |entry| Hash::of(&entry.bytes));
        let mut bytes = Vec::new();
        event.write(log.len() as u64 + 1, &prev, &mut bytes);
        let fact = Fact::parse(&bytes).expect("what is written can be read");
        let job = event.subject.as_ref().map(|subject| {
            let is_it = |parsed: &Parsed| parsed.manifest.job_id == *subject.job_id;
            self.manifests.iter().position(is_it).expect("a job of this model")
        });
        let before = job.and_then(|index| self.job(ledger, index).cloned());
        let live = ledger.apply(&fact, &bytes).expect("M1: what is decided is legal");
        if let (Some(before), Some(after)) = (&before, &live) {
            check_step(before, after, event, ledger);
        }
        assert!(log.last().is_none_or(|last| fact.time >= last.fact.time), "M1: time went back");
        log.push(Rc::new(Entry { bytes, fact, decision, job, state: event.detail.state(), live }));
    }

    /// A node command, durable at once: the agent does nothing before.
    fn at_node(&self, node: &mut Node, command: Command) {
        let mut ledger = self.fold(&node.log);
        let decision = node.log.len();
        for event in ledger.decide(command, Time(0), LIMITS).expect("nothing forbids it") {
            self.append(&mut node.log, &mut ledger, &event, decision);
        }
        node.durable = node.log.len();
    }

    /// The invariants of what is decided, durable, and done in the world.
    fn check_node(&self, node: &Node, full: &Ledger) -> Result<(), String> {
        for index in 0..self.manifests.len() {
            let job = self.job(full, index);
            let attempt = job.map_or(0, |job| job.attempt);
            if node.containers[index] > attempt {
                return Err(format!("W1: a container of attempt {}, and no event of it", node.containers[index]));
            }
            if let Some(job) = job.filter(|job| node.signalled[index] > 0 && node.signalled[index] == job.attempt) {
                let own_verdict = matches!(job.state, State::Completed | State::Crash | State::Sealed);
                let runs = matches!(job.state, State::Running | State::Recovery | State::D1Stable);
                if own_verdict || (runs && job.stop().is_none()) {
                    return Err(format!("W2: signalled, and {}", shape(Some(job))));
                }
            }
        }
        let open = full.jobs().iter().filter(|job| !job.state.is_end()).count();
        assert_eq!(full.unfinished().len(), open, "I2: who has not ended is open");
        assert!(open <= LIMITS.jobs_open_max);
        Ok(())
    }

    /// The engine, and whoever is told, act on what is visible.
    fn act(&self, node: &Node, full: &Ledger, durable: &Ledger) -> Vec<Node> {
        let visible = |act| if self.hasty == Some(act) { full } else { durable };
        let mut next = Vec::new();
        for index in 0..self.manifests.len() {
            let to_start = self.job(visible(Act::StartContainer), index).filter(|job| {
                matches!(job.state, State::Running | State::Recovery) && node.containers[index] < job.attempt
            });
            if let Some(job) = to_start {
                let mut node = node.clone();
                node.containers[index] = job.attempt;
                next.push(node);
            }
            let to_stop = self
                .job(visible(Act::Signal), index)
                .filter(|job| job.stop().is_some() && node.signalled[index] < job.attempt);
            if let Some(job) = to_stop {
                let mut node = node.clone();
                node.signalled[index] = job.attempt;
                next.push(node);
            }
        }
        next
    }

    /// All that can be reached. The error is the first broken promise about the world.
    fn explore(&self) -> Result<Seen, String> {
        let mut seen = Seen::default();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut looked_at = BTreeSet::new();
        // Edges that need nobody from outside, backwards; and the nodes where all is over.
        let mut back: Vec<Vec<usize>> = Vec::new();
        let mut over = Vec::new();
        let count = self.manifests.len();
        let mut start = Node { log: Vec::new(), durable: 0, containers: vec![0; count], signalled: vec![0; count] };
        self.at_node(&mut start, Command::Genesis(Genesis { log_id: "ab".repeat(16), format: 1 }));
        self.at_node(&mut start, node_up());
        let mut queue = VecDeque::from([(start, None::<usize>)]);
        while let Some((node, from)) = queue.pop_front() {
            let full = self.fold(&node.log);
            let durable = self.fold(&node.log[..node.durable]);
            self.check_node(&node, &full)?;
            let key = self.key(&node, &full, &durable);
            let known = numbers.get(&key).copied();
            let number = known.unwrap_or(back.len());
            if known.is_none() {
                numbers.insert(key, number);
                back.push(Vec::new());
            }
            back[number].extend(from);
            if known.is_some() {
                continue;
            }
            if durable.unfinished().is_empty() && node.durable == node.log.len() {
                over.push(number);
            }
            for index in 0..count {
                if looked_at.insert((index, (0..count).map(|i| shape(self.job(&full, i))).collect::<String>())) {
                    self.try_every_event(&node, &full, index, &mut seen);
                }
            }
            let told = if self.hasty == Some(Act::Tell) { node.log.len() } else { node.durable };
            // A crash keeps what is durable and any part of the rest, even of one decision; then an agent starts.
            for kept in node.durable..=node.log.len() {
                seen.crashes += 1;
                let mut after = node.clone();
                if kept < told {
                    return Err(format!("W3: told of event {told}, and it is gone"));
                }
                after.log.truncate(kept);
                self.at_node(&mut after, node_up());
                queue.push_back((after, None));
            }
            // A sync: the next staged decision, or all of them.
            for upto in node.durable + 1..=node.log.len() {
                if upto == node.log.len() || node.log[upto].decision != node.log[upto - 1].decision {
                    queue.push_back((Node { durable: upto, ..node.clone() }, Some(number)));
                }
            }
            for after in self.act(&node, &full, &durable) {
                queue.push_back((after, Some(number)));
            }
            let staged: BTreeSet<usize> = node.log[node.durable..].iter().map(|entry| entry.decision).collect();
            if staged.len() >= STAGED_MAX {
                continue;
            }
            // The clock jumps to and fro.
            let now = Time(if node.log.len().is_multiple_of(3) { 0 } else { node.log.len() as u64 * 1000 });
            for index in 0..count {
                let stands = place(self.job(&full, index));
                for (name, command) in self.commands(index, &durable) {
                    let outside = matches!(name, "Submit" | "Stop (cancel)" | "Retrigger" | "Refuse");
                    let events = match full.decide(command, now, LIMITS) {
                        Ok(events) => events,
                        Err(rejection) => {
                            seen.refused += 1;
                            assert!(matches!(rejection.status, 400 | 404 | 409 | 429), "{rejection}");
                            continue;
                        }
                    };
                    let gives: Vec<String> = events.iter().map(|event| event.detail.state().to_string()).collect();
                    let gives = if gives.is_empty() { "nothing".into() } else { gives.join(" + ") };
                    seen.given.entry((name.into(), gives)).or_default().insert(stands.clone());
                    if events.is_empty() {
                        continue;
                    }
                    seen.steps += 1;
                    let mut after = node.clone();
                    let mut ledger = self.fold(&after.log);
                    // Events of one decision are numbered alike: they become durable together.
                    for event in events {
                        let state = event.detail.state();
                        let from = place(self.job(&ledger, index));
                        seen.follows.entry(from).or_default().insert(state.to_string());
                        let attempt = event.subject.as_ref().map_or(0, |subject| subject.attempt);
                        if matches!(state, State::Running | State::Recovery) && node.containers[index] >= attempt {
                            return Err(format!("W1: attempt {attempt} has a container before its intent"));
                        }
                        self.append(&mut after.log, &mut ledger, &event, node.log.len());
                    }
                    queue.push_back((after, Some(number).filter(|_| !outside)));
                }
            }
        }
        // I7: whatever has happened, the runner alone brings every job to an end.
        let mut reached = vec![false; back.len()];
        while let Some(number) = over.pop() {
            if !std::mem::replace(&mut reached[number], true) {
                over.extend(&back[number]);
            }
        }
        let stuck: Vec<_> =
            numbers.iter().filter(|(_, number)| !reached[**number]).map(|(key, _)| key).take(3).collect();
        assert!(stuck.is_empty(), "I7: no end can be reached from {stuck:#?}");
        seen.nodes = back.len();
        Ok(seen)
    }

    /// `apply` takes in the events that the document lists, and no others; what it refuses changes nothing.
    fn try_every_event(&self, node: &Node, full: &Ledger, index: usize, seen: &mut Seen) {
        let job = self.job(full, index);
        let attempt = job.map_or(0, |job| job.attempt);
        let parsed = &self.manifests[index];
        let ready = parsed
            .manifest
            .parents()
            .iter()
            .all(|parent| full.job(parent).is_some_and(|parent| parent.state == State::Sealed));
        let known = parsed.manifest.parents().iter().all(|parent| full.job(parent).is_some());
        let stands = place(job);
        for state in State::ALL.into_iter().filter(|state| !state.is_of_node()) {
            let next = attempt + u32::from(matches!(state, State::Running | State::Recovery));
            let mut ledger = self.fold(&node.log);
            let taken =
                apply(&mut ledger, &node.log, Subject { job_id: self.id(index), attempt: next }, detail(state, parsed))
                    .is_ok();
            let mut expected = transitions().get(&stands).is_some_and(|states| states.contains(state.as_str()));
            expected &= ready || state != State::Scheduled;
            expected &= known || state != State::Received;
            assert_eq!(taken, expected, "{state} behind {stands}");
            if !taken {
                assert_eq!(self.job(&ledger, index), job, "what is refused changes nothing");
            }
            seen.refused += usize::from(!taken);
            // The same event of another attempt never fits.
            for wrong in [next.wrapping_sub(1), next + 1] {
                let mut ledger = self.fold(&node.log);
                let subject = Subject { job_id: self.id(index), attempt: wrong };
                assert!(apply(&mut ledger, &node.log, subject, detail(state, parsed)).is_err(), "{state} {wrong}");
            }
        }
    }
}

fn apply(ledger: &mut Ledger, log: &[Rc<Entry>], subject: Subject, detail: Detail) -> Result<(), String> {
    let last = log.last().unwrap();
    let subject = Some(subject);
    let mut bytes = Vec::new();
    Event { time: last.fact.time, subject, detail }.write(log.len() as u64 + 1, &Hash::of(&last.bytes), &mut bytes);
    ledger.apply(&Fact::parse(&bytes)?, &bytes).map(drop)
}

fn detail(state: State, parsed: &Parsed) -> Detail {
    let intent = Intent { container: "c".into(), node_up: 2, resumed_after: None };
    match state {
        State::Genesis => Detail::Genesis(Genesis { log_id: "ab".repeat(16), format: 1 }),
        State::NodeUp => Detail::NodeUp(NodeUp {
            node_name: "n".into(),
            version: "0".into(),
            boot_id: "b".into(),
            last_run: "killed".into(),
            host: serde_json::Value::Null,
            engine: serde_json::Value::Null,
            mount_protection: "bind".into(),
        }),
        State::NodeDown => Detail::NodeDown(NodeDown { reason: "SIGTERM".into() }),
        State::Received => Detail::Received(Received { manifest: raw(parsed), manifest_hash: parsed.hash }),
        State::Scheduled => Detail::Scheduled(scheduled()),
        State::Running => Detail::Running(intent),
        State::D1Stable => Detail::D1Stable(mark()),
        State::Crash => Detail::Crash(Crash { cause: "killed".into(), ending: Ending::default() }),
        State::Recovery => Detail::Recovery(intent),
        State::Stopping => Detail::Stopping(stopping("cancel")),
        State::Completed => Detail::Completed(Ending::default()),
        State::Failed => Detail::Failed(Failed::new("exit", "1", Ending::default())),
        State::Cancelled => Detail::Cancelled(Cancelled { by: "x".into(), ending: Ending::default() }),
        State::Sealed => Detail::Sealed(sealed()),
        State::Retriggered => {
            Detail::Retriggered(Retriggered { by: "x".into(), manifest: raw(parsed), manifest_hash: parsed.hash })
        }
    }
}

/// Rows of the document's table below this heading.
fn table(heading: &str) -> Vec<Vec<String>> {
    let (_, section) = DOCUMENT.split_once(&format!("\n## {heading}\n")).expect("the document has this heading");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

fn names(cell: &str) -> BTreeSet<String> {
    cell.split(", ").filter(|name| *name != "nothing").map(str::to_owned).collect()
}

fn transitions() -> BTreeMap<String, BTreeSet<String>> {
    table("Transitions").into_iter().map(|row| (row[0].clone(), names(&row[1]))).collect()
}

fn commands() -> BTreeMap<(String, String), BTreeSet<String>> {
    table("Commands").into_iter().map(|row| ((row[0].clone(), row[1].clone()), names(&row[2]))).collect()
}

fn one_job() -> Model {
    let manifests = vec![parsed("j", r#","max_attempts":2"#)];
    Model { manifests, retriggered_up_to: 2, marks: true, hasty: None }
}

fn two_jobs() -> Model {
    let manifests = vec![parsed("p", r#","max_attempts":1"#), parsed("c", r#","max_attempts":1,"depends_on":["p"]"#)];
    Model { manifests, retriggered_up_to: 0, marks: false, hasty: None }
}

#[test]
fn a_job_alone_and_a_parent_with_its_child_keep_every_promise_in_every_order() {
    let alone = one_job().explore().unwrap();
    let family = two_jobs().explore().unwrap();
    let size = |seen: &Seen| [seen.nodes, seen.steps, seen.crashes].map(|count| count.to_string()).to_vec();
    let sizes: Vec<Vec<String>> = table("The exploration").iter().map(|row| row[1..].to_vec()).collect();
    assert_eq!([size(&alone), size(&family)], sizes[..], "the table of sizes");
    let (mut follows, mut given) = (alone.follows, alone.given);
    for (stands, states) in family.follows {
        follows.entry(stands).or_default().extend(states);
    }
    for (key, places) in family.given {
        given.entry(key).or_default().extend(places);
    }
    // Both ways: the document has nothing that does not occur.
    let written: BTreeMap<_, _> = transitions().into_iter().filter(|(_, states)| !states.is_empty()).collect();
    assert_eq!(follows, written, "the table of transitions");
    assert_eq!(given, commands(), "the table of commands");
}

#[test]
fn an_agent_that_acts_before_its_events_are_durable_is_found_out() {
    for (act, promise) in [(Act::StartContainer, "W1"), (Act::Signal, "W2"), (Act::Tell, "W3")] {
        let error = Model { hasty: Some(act), ..one_job() }.explore().err();
        assert!(error.as_ref().is_some_and(|error| error.starts_with(promise)), "{promise}: {error:?}");
    }
}
