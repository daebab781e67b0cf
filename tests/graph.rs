//! Jobs that wait for others, on real containers: who goes on when, who fails with whom, and through a killed agent.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod job_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use agent::{Agent, Site, debug_build, eventually, job_id, manifest};
use hackbrain::hash::Hash;
use hackbrain::ledger::event::{Ending, Genesis, Scheduled, Sealed};
use hackbrain::ledger::fact::Fact;
use hackbrain::ledger::lifecycle::{Command, Ledger, Limits, Outcome};
use hackbrain::ledger::time::Time;
use hackbrain::sys::block::Caching;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use job_support::{summary, trace};
use serde_json::{Value, json};

/// A job that runs a shell line behind its parents.
fn job(id: &str, parents: &[&String], line: &str) -> Value {
    let mut job = manifest(id, &["sh", "-c", line]);
    if !parents.is_empty() {
        job["depends_on"] = json!(parents);
    }
    job
}

/// Until the file `go` is in a directory of its own.
fn held(site: &Site, id: &str, parents: &[&String]) -> (Value, PathBuf) {
    let dir = site.mountable(id);
    let mut job = job(id, parents, "until test -e go; do sleep 0.05; done");
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn go(dir: &Path) {
    fs::write(dir.join("go"), "").unwrap();
}

fn ids<const N: usize>(names: [&str; N]) -> [String; N] {
    names.map(job_id)
}

fn batch(agent: &Agent, jobs: &[Value]) -> agent::Answer {
    agent.post("/api/submit_jobs", json!({ "jobs": jobs }).to_string().as_bytes())
}

#[track_caller]
fn accepted(agent: &Agent, jobs: &[Value]) -> Vec<Value> {
    let answer = batch(agent, jobs);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let receipts = answer.json()["jobs"].as_array().unwrap().clone();
    let names = |list: &[Value]| list.iter().map(|job| job["job_id"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&receipts), names(jobs), "in the order given");
    receipts
}

fn states(agent: &Agent, id: &str) -> String {
    job_support::states(agent, id).join(" ")
}

fn seq_of(agent: &Agent, id: &str, state: &str) -> u64 {
    let trace = trace(agent, id);
    trace.iter().find(|event| event["state"] == state).unwrap()["seq"].as_u64().unwrap()
}

fn running(agent: &Agent, id: &str) {
    eventually("it runs", || (summary(agent, id)["state"] == "RUNNING").then_some(()));
}

#[track_caller]
fn failed_with(agent: &Agent, id: &str, ancestor: &str) -> String {
    let summary = agent.ended(id);
    let told = (&summary["state"], &summary["reason"], &summary["ancestor"], &summary["attempt"]);
    assert_eq!(told, (&json!("FAILED"), &json!("dependency"), &json!(ancestor), &json!(0)), "{summary}");
    let last = trace(agent, id).pop().unwrap();
    assert_eq!(last["detail"]["ancestor"], ancestor, "{last}");
    last["detail"]["message"].as_str().unwrap().to_owned()
}

fn post(agent: &Agent, id: &str, what: &str) -> (u16, Value) {
    let answer = agent.post(&format!("/api/jobs/{id}/{what}"), b"");
    (answer.status, answer.json())
}

fn sound(site: &Site, agent: Agent) {
    assert_eq!(agent.terminate(), Some(0));
    let verified = site.verify(&["--artifacts"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn a_diamond_runs_in_its_order_and_the_graph_shows_it() {
    let site = Site::new("graph-diamond");
    let agent = site.start(&[]);
    let all = ids(["a", "b", "c", "d", "e", "alone"]);
    let [a, b, c, d, e, alone] = &all;
    let (first, dir) = held(&site, a, &[]);
    let jobs = [
        job(e, &[d], "true"),
        job(d, &[c, b], "true"),
        job(c, &[a], "true"),
        first,
        job(b, &[a], "true"),
        job(alone, &[], "true"),
    ];
    let receipts = accepted(&agent, &jobs);
    assert!(receipts.iter().all(|receipt| receipt["state"] == "RECEIVED" && receipt["duplicate"] == false));
    running(&agent, a);
    assert_eq!(agent.ended(alone)["state"], "SEALED");
    for (id, parents, why) in [
        (b, vec![a], format!("parent {a:?}, which is RUNNING")),
        (d, vec![b, c], format!("parent {b:?}, which is RECEIVED, and 1 more")),
        (e, vec![d], format!("parent {d:?}, which is RECEIVED")),
    ] {
        let waits = summary(&agent, id);
        let told = (&waits["state"], &waits["phase"], &waits["depends_on"], &waits["waiting_for"], &waits["ancestor"]);
        let expected = (&json!("RECEIVED"), &json!("waiting"), &json!(parents), &json!(why), &Value::Null);
        assert_eq!(told, expected, "{waits}");
    }
    assert_eq!(summary(&agent, alone)["depends_on"], json!([]));
    go(&dir);
    assert_eq!(agent.ended(e)["state"], "SEALED");
    for (child, parents) in [(b, vec![a]), (c, vec![a]), (d, vec![b, c]), (e, vec![d])] {
        for parent in parents {
            assert!(seq_of(&agent, parent, "SEALED") < seq_of(&agent, child, "SCHEDULED"), "{parent} {child}");
        }
    }
    let again = accepted(&agent, &jobs);
    assert!(again.iter().all(|receipt| receipt["duplicate"] == true && receipt["state"] == "SEALED"), "{again:?}");
    for (receipt, again) in receipts.iter().zip(&again) {
        assert_eq!((&receipt["seq"], &receipt["hash"]), (&again["seq"], &again["hash"]));
    }

    let graph = |query: &str| agent.get(&format!("/api/graph{query}")).json();
    let names = |graph: &Value| -> Vec<String> {
        graph["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
    };
    let edges = |graph: &Value| -> Vec<(String, String)> {
        let mut edges: Vec<(String, String)> = serde_json::from_value(graph["edges"].clone()).unwrap();
        edges.sort();
        edges
    };
    let mut every = vec![(a, b), (a, c), (b, d), (c, d), (d, e)]
        .into_iter()
        .map(|(p, c)| (p.clone(), c.clone()))
        .collect::<Vec<_>>();
    every.sort();
    let whole = graph("");
    let mut newest_first = names(&whole);
    assert_eq!(newest_first[0], *e);
    newest_first.sort();
    assert_eq!(
        newest_first,
        {
            let mut five = all[..5].to_vec();
            five.sort();
            five
        },
        "without the one that has nobody"
    );
    assert_eq!((edges(&whole), &whole["truncated"]), (every.clone(), &json!(false)));
    let brief = &whole["jobs"][0];
    assert_eq!(*brief, json!({ "job_id": e, "state": "SEALED", "phase": "ended", "attempt": 1, "reason": null }));
    let around = graph(&format!("?job={b}"));
    let mut expected = vec![b.clone(), a.clone(), d.clone(), e.clone()];
    assert_eq!((&names(&around)[..1], names(&around).last().unwrap()), (&expected[..1], e), "nearest first: {around}");
    let mut found = names(&around);
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "its ancestors and descendants");
    assert_eq!(edges(&around).len(), 3);
    let cut = graph(&format!("?job={a}&limit=3"));
    assert_eq!((names(&cut).len(), edges(&cut).len(), &cut["truncated"]), (3, 2, &json!(true)), "{cut}");
    assert_eq!(names(&graph(&format!("?job={alone}"))).as_slice(), std::slice::from_ref(alone));
    assert_eq!(agent.get("/api/graph?job=nobody").status, 404);
    assert_eq!(agent.get("/api/graph?jobs=x").status, 400);
    sound(&site, agent);
}

#[test]
fn descendants_fail_with_the_job_that_began_it_however_late_they_come() {
    let site = Site::new("graph-failed");
    let agent = site.start(&[]);
    let [a, b, c, d, other] = &ids(["a", "b", "c", "d", "other"]);
    accepted(
        &agent,
        &[job(c, &[b, other], "true"), job(b, &[a], "true"), job(a, &[], "sleep 0.3; exit 3"), job(other, &[], "true")],
    );
    assert_eq!(failed_with(&agent, b, a), format!("parent {a:?} ended FAILED (exit, exit code 3)"));
    let message = failed_with(&agent, c, a);
    assert_eq!(message, format!("ancestor {a:?} ended FAILED (exit, exit code 3); through parent {b:?}"));
    let receipt = agent.accepted(&job(d, &[c], "true"));
    assert_eq!(receipt["state"], "RECEIVED", "accepted, whenever it comes");
    failed_with(&agent, d, a);
    for id in [b, c, d] {
        assert_eq!(states(&agent, id), "RECEIVED FAILED");
        let (status, body) = post(&agent, id, "retrigger");
        assert_eq!((status, &body["error"]["code"]), (409, &json!("dependency")), "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(a.as_str()), "{body}");
    }
    sound(&site, agent);
}

#[test]
fn a_cancelled_parent_fails_who_waits_though_another_parent_runs() {
    let site = Site::new("graph-cancelled");
    let agent = site.start(&["--workers", "2"]);
    let [a, b, both, below, late, waits] = &ids(["a", "b", "both", "below", "late", "waits"]);
    let ((first, dir), (second, _)) = (held(&site, a, &[]), held(&site, b, &[]));
    accepted(&agent, &[first, second, job(both, &[a, b], "true"), job(below, &[both], "true")]);
    agent.accepted(&job(waits, &[a], "true"));
    agent.accepted(&job(late, &[waits], "true"));
    [a, b].iter().for_each(|id| running(&agent, id));
    assert_eq!(post(&agent, b, "cancel").0, 200);
    assert_eq!(failed_with(&agent, both, b), format!("parent {b:?} ended CANCELLED"));
    failed_with(&agent, below, b);
    assert_eq!(summary(&agent, a)["state"], "RUNNING");
    // Whoever waits can be cancelled, and then it began it.
    assert_eq!(post(&agent, waits, "cancel").1["state"], "CANCELLED");
    failed_with(&agent, late, waits);
    // It waits again, and so does who failed with it.
    for id in [waits, late] {
        assert_eq!(post(&agent, id, "retrigger").1["state"], "RETRIGGERED");
    }
    eventually("it waits", || {
        (summary(&agent, waits)["waiting_for"] == format!("parent {a:?}, which is RUNNING")).then_some(())
    });
    assert_eq!(summary(&agent, late)["ancestor"], Value::Null);
    go(&dir);
    for id in [a, waits, late] {
        assert_eq!(agent.ended(id)["state"], "SEALED");
    }
    assert_eq!(states(&agent, waits), "RECEIVED CANCELLED RETRIGGERED SCHEDULED RUNNING COMPLETED SEALED");
    assert_eq!(states(&agent, late), "RECEIVED FAILED RETRIGGERED SCHEDULED RUNNING COMPLETED SEALED");
    sound(&site, agent);
}

#[test]
fn an_ancestor_at_its_attempt_limit_is_retriggered_and_then_its_descendants() {
    let site = Site::new("graph-limit");
    let agent = site.start(&[]);
    let [a, b, c] = &ids(["a", "b", "c"]);
    let dir = site.mountable(a);
    let mut first = job(a, &[], "test -e mended || kill -9 $$; until test -e go; do sleep 0.05; done");
    first["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    first["max_attempts"] = 2.into();
    accepted(&agent, &[first, job(b, &[a], "true"), job(c, &[b], "true")]);
    let message = failed_with(&agent, c, a);
    assert!(message.contains("ended FAILED (attempt_limit, exit code 137)"), "{message}");
    failed_with(&agent, b, a);
    assert_eq!(summary(&agent, a)["attempt"], 2);
    for id in [b, c] {
        let (status, body) = post(&agent, id, "retrigger");
        assert_eq!(status, 409, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(&format!("retrigger {a:?} first")), "{body}");
    }
    fs::write(dir.join("mended"), "").unwrap();
    for id in [a, b, c] {
        let (status, body) = post(&agent, id, "retrigger");
        assert_eq!((status, &body["state"]), (200, &json!("RETRIGGERED")), "{body}");
    }
    eventually("it waits for its parent", || {
        let why = summary(&agent, b)["waiting_for"].as_str().unwrap_or_default().to_owned();
        why.contains(&format!("{a:?}, which is RECOVERY")).then_some(())
    });
    // Those who wait wait on, whoever looks after them.
    agent.kill();
    let agent = site.start(&[]);
    go(&dir);
    for id in [a, b, c] {
        assert_eq!(agent.ended(id)["state"], "SEALED");
    }
    assert!(seq_of(&agent, a, "SEALED") < seq_of(&agent, b, "SCHEDULED"));
    sound(&site, agent);
}

#[test]
fn a_batch_is_all_or_none_and_faults_name_the_job_and_the_field() {
    let site = Site::new("graph-refused");
    let agent = site.start(&["--max-queue", "4"]);
    let [a, b, c, outside] = &ids(["a", "b", "c", "outside"]);
    let (first, dir) = held(&site, a, &[]);
    agent.accepted(&first);
    running(&agent, a);
    agent.accepted(&job(b, &[a], "true"));
    let mut outside_root = job(outside, &[], "true");
    outside_root["mount_spec"] = "/etc:/job/workdir".into();
    let mut empty = job(c, &[a], "true");
    empty["command"] = json!([""]);
    let mut repeats_nobody = job(c, &[], "true");
    repeats_nobody["reproduces"] = "nobody".into();
    let head = agent.get("/api/ledger/head").json();
    let new = |parents: &[&String]| job(c, parents, "true");
    let nobody = &"nobody".to_owned();
    for (jobs, status, code, field, says) in [
        (vec![new(&[]), job("x", &[nobody], "true")], 400, "unknown_dependency", "jobs[1].depends_on", "\"nobody\""),
        (vec![job("x", &[], "true"), empty], 400, "invalid_value", "jobs[1].command[0]", "jobs[1]: "),
        (vec![new(&[]), outside_root], 403, "mount_outside_roots", "jobs[1].mount_spec", "jobs[1]: "),
        (vec![new(&[]), new(&[])], 400, "duplicate_job", "jobs[1].job_id", "jobs[0]"),
        (vec![new(&[b]), job(b, &[c], "true")], 400, "dependency_cycle", "jobs[0].depends_on", " → "),
        (vec![new(&[]), job(a, &[], "true")], 409, "job_exists", "jobs[1].job_id", "another manifest"),
        (vec![new(&[c])], 400, "invalid_value", "jobs[0].depends_on[0]", &format!("{c} → {c}")),
        (vec![repeats_nobody], 400, "unknown_job", "jobs[0].reproduces", "jobs[0]: "),
    ] {
        let answer = batch(&agent, &jobs);
        let error = &answer.json()["error"];
        let told = (answer.status, error["code"].as_str().unwrap(), error["field"].as_str());
        if code == "mount_outside_roots" {
            // Which code a mount gets is not told here.
            assert_eq!((told.0, told.2), (status, Some(field)), "{error}");
        } else {
            assert_eq!(told, (status, code, Some(field)), "{error}");
        }
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
    let single = agent.submit(&job(c, &[nobody], "true"));
    assert_eq!((single.status, &single.json()["error"]["code"]), (400, &json!("unknown_dependency")));
    assert_eq!(single.json()["error"]["field"], "depends_on");
    let own = agent.submit(&job(c, &[c], "true"));
    assert_eq!((own.status, &own.json()["error"]["field"]), (400, &json!("depends_on[0]")));
    let circle = agent.submit(&job(a, &[b], "true"));
    assert_eq!((circle.status, &circle.json()["error"]["code"]), (400, &json!("dependency_cycle")));
    assert!(circle.json()["error"]["message"].as_str().unwrap().contains(&format!("{a} → {b} → {a}")));
    // Two have not ended and four may.
    let full = batch(&agent, &[new(&[a]), job("x", &[], "true"), job("y", &[], "true")]);
    assert_eq!((full.status, &full.json()["error"]["code"]), (429, &json!("queue_full")));
    assert!(full.header("retry-after").is_some());
    for body in ["{\"jobs\":[]}", "[]", "{\"jobs\":[1]}", "{", "{\"jobs\":[],\"x\":1}"] {
        assert_eq!(agent.post("/api/submit_jobs", body.as_bytes()).status, 400, "{body}");
    }
    assert_eq!(agent.get("/api/submit_jobs").status, 405);
    assert_eq!(agent.request("POST", "/api/submit_jobs", &[], b"{}").status, 415);
    let now = agent.get("/api/ledger/head").json();
    assert_eq!(seqs_of_others(&site, &[a, b]), 0, "nothing of them is in the ledger");
    assert!(now["seq"].as_u64() <= head["seq"].as_u64().map(|seq| seq + 2), "{head} {now}");
    accepted(&agent, &[new(&[b]), job(b, &[a], "true")]);
    go(&dir);
    assert_eq!(agent.ended(c)["state"], "SEALED");
    sound(&site, agent);
}

/// RECEIVED events of jobs that are not among `known`.
fn seqs_of_others(site: &Site, known: &[&String]) -> usize {
    let dump = site.dump(&[]).stdout;
    let received = dump.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    received
        .filter(|event| event["state"] == "RECEIVED" && !known.iter().any(|id| event["job_id"] == id.as_str()))
        .count()
}

#[test]
fn a_thousand_are_durable_together_and_fail_together() {
    let site = Site::new("graph-wide");
    let agent = site.start(&["--workers", "2"]);
    let root = &job_id("root");
    let (first, _) = held(&site, root, &[]);
    // Half of them wait for the root, half of them in one long chain below it.
    let names: Vec<String> = (0..999).map(|n| format!("{root}.{n:03}")).collect();
    let mut jobs = vec![first];
    for (n, name) in names.iter().enumerate() {
        let parent = if n <= 500 { root } else { &names[n - 1] };
        jobs.push(job(name, &[parent], "true"));
    }
    jobs.reverse();
    accepted(&agent, &jobs);
    agent.kill();
    let agent = site.start(&["--workers", "2"]);
    let count = |agent: &Agent, state: &str| agent.get("/api/node").json()["jobs"][state].as_u64().unwrap();
    running(&agent, root);
    assert_eq!(count(&agent, "RECEIVED"), 999, "all of them, after the kill");
    let (threads, memory_kib) = (agent.status("Threads"), agent.memory_kib("VmRSS"));
    assert!(threads < 60, "who waits has no thread: {threads}");
    assert_eq!(post(&agent, root, "cancel").0, 200);
    failed_with(&agent, names.last().unwrap(), root);
    eventually("all have failed", || (count(&agent, "FAILED") == 999).then_some(()));
    assert!(agent.status("Threads") < 60);
    let grown_kib = agent.memory_kib("VmRSS").saturating_sub(memory_kib);
    assert!(grown_kib < 64 << 10, "{grown_kib} KiB more");
    for id in [&names[0], &names[499], &names[600], &names[998]] {
        failed_with(&agent, id, root);
        assert_eq!(states(&agent, id), "RECEIVED FAILED");
    }
    let cut = agent.get("/api/graph?limit=100").json();
    assert_eq!((cut["jobs"].as_array().unwrap().len(), &cut["truncated"]), (100, &json!(true)));
    let all = agent.get(&format!("/api/graph?job={root}")).json();
    let (jobs, edges) = (all["jobs"].as_array().unwrap().len(), all["edges"].as_array().unwrap().len());
    assert_eq!((jobs, edges, &all["truncated"]), (1000, 999, &json!(false)));
    sound(&site, agent);
}

/// Writes a ledger as a killed agent may have left it.
struct Left {
    wal: Wal,
    ledger: Ledger,
    clock: u64,
}

impl Left {
    fn new(site: &Site) -> Self {
        fs::create_dir_all(site.data()).unwrap();
        let storage = Directory::open(&site.data().join("wal"), Caching::Direct).unwrap();
        let options = Options::new(4 << 20);
        let (wal, _) = Wal::open(Arc::new(storage), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
        let mut left = Self { wal, ledger: Ledger::default(), clock: 1_760_000_000_000_000 };
        left.run(Command::Genesis(Genesis { log_id: format!("{:032x}", std::process::id()), format: 1 }));
        left
    }

    fn run(&mut self, command: Command) {
        self.clock += 1000;
        let limits = Limits { jobs_open_max: 100, manifest_bytes_max: 1 << 20 };
        for event in self.ledger.decide(command, Time(self.clock), limits).unwrap() {
            let mut bytes = Vec::new();
            let write = |seq, prev: &[u8; 32], body: &mut Vec<u8>| {
                event.write(seq, &Hash(*prev), &mut bytes);
                body.extend_from_slice(&bytes);
            };
            self.wal.append(write).unwrap();
            self.ledger.apply(&Fact::parse(&bytes).unwrap(), &bytes).unwrap();
        }
    }

    fn submit(&mut self, job: &Value) {
        self.run(Command::Submit(Box::new(hackbrain::manifest::parse(job.to_string().as_bytes()).unwrap())));
    }

    fn schedule_and_start(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        let image_id = format!("sha256:{}", "ab".repeat(32));
        let scheduled = Scheduled { image_id, input_hash: Hash::ZERO, execution_hash: Hash::ZERO, mounts: Vec::new() };
        self.run(Command::Schedule(id.clone(), self.ledger.job(&id).unwrap().seq, scheduled));
        self.run(Command::Start(id.clone(), self.ledger.job(&id).unwrap().seq));
    }
}

#[test]
fn what_a_killed_agent_did_not_come_to_the_next_one_does() {
    let site = Site::new("graph-left");
    let [a, b, c, sealed, ready] = &ids(["a", "b", "c", "sealed", "ready"]);
    let mut left = Left::new(&site);
    for job in [
        job(a, &[], "true"),
        job(sealed, &[], "true"),
        job(b, &[a], "true"),
        job(ready, &[sealed], "echo done"),
        job(c, &[b, ready], "true"),
    ] {
        left.submit(&job);
    }
    left.schedule_and_start(a);
    let failed = Outcome::Failed { reason: "exit".into(), message: "it exited with 1".into() };
    left.run(Command::End(a.as_str().into(), 1, failed, Ending { exit_code: Some(1), ..Ending::default() }));
    left.schedule_and_start(sealed);
    left.run(Command::End(sealed.as_str().into(), 1, Outcome::Completed, Ending::default()));
    let seal = Sealed { seal_hash: Hash::ZERO, artifacts_root: Hash::ZERO, files: 0, bytes: 0, reproduction: None };
    left.run(Command::Seal(sealed.as_str().into(), 1, seal));
    let Left { wal, .. } = left;
    wal.close();

    let agent = site.start(&[]);
    failed_with(&agent, b, a);
    failed_with(&agent, c, a);
    assert_eq!(agent.ended(ready)["state"], "SEALED");
    assert_eq!(agent.terminate(), Some(0));
    // Not with `--artifacts`: no files are behind the hashes of those made-up events.
    assert_eq!(site.verify(&[]).code, Some(0));
}

#[test]
fn the_agent_dies_around_a_parents_end_and_children_go_on_or_fail_as_if_nothing_had_been() {
    let mut cases: Vec<(&str, bool)> = Vec::new();
    for point in [
        "end-durable",
        "end-durable:2",
        "seal-durable",
        "seal-durable:2",
        "before-rename:3",
        "scheduling-durable:2",
        "intent-durable:2",
    ] {
        cases.push((point, false));
    }
    for point in ["end-durable", "intent-durable", "container-removed"] {
        cases.push((point, true));
    }
    let queue = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((point, fails)) = queue.lock().unwrap().pop() else { break };
                    play(point, fails);
                }
            });
        }
    });
}

fn play(point: &str, fails: bool) {
    let site = Site::new("graph-kill");
    let told = format!("{point} fails={fails}");
    let names = ids(["a", "b", "c"]);
    let [a, b, c] = &names;
    let line = if fails { "exit 3" } else { "true" };
    let jobs = [job(a, &[], line), job(b, &[a], "true"), job(c, &[a, b], "true")];
    let mut first = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", point));
    for job in &jobs {
        first.try_submit(job);
    }
    assert_eq!(first.wait().signal(), Some(9), "{told}: the point is reached");
    let agent = site.start(&[]);
    accepted(&agent, &jobs);
    if fails {
        assert_eq!(agent.ended(a)["reason"], "exit", "{told}");
        failed_with(&agent, b, a);
        failed_with(&agent, c, a);
    } else {
        for id in &names {
            let summary = agent.ended(id);
            assert_eq!((&summary["state"], &summary["attempt"]), (&json!("SEALED"), &json!(1)), "{told}: {summary}");
        }
        let scheduled: BTreeMap<&String, u64> = names.iter().map(|id| (id, seq_of(&agent, id, "SCHEDULED"))).collect();
        assert!(seq_of(&agent, a, "SEALED") < scheduled[b], "{told}");
        assert!(seq_of(&agent, b, "SEALED") < scheduled[c], "{told}");
    }
    sound(&site, agent);
}
