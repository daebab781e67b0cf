//! Hashing that takes long, with the real agent and the real engine: it is seen, it is given up, and nothing waits for it.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod job_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use agent::{Agent, Site, eventually, job_id, manifest};
use job_support::{at, failed_for, shell, states, summary, trace};
use serde_json::{Value, json};

/// A file without blocks that nobody hashes while a test runs.
const ENDLESS: u64 = 4 << 40;
/// So much that whoever rewrites it without pause does so while it is hashed, however the two are scheduled.
const LONG: u64 = 64 << 20;

/// A new job on a directory of its own, not submitted yet.
fn on_directory(site: &Site, what: &str, line: &str) -> (String, Value, PathBuf) {
    let id = job_id(what);
    let dir = site.mountable(&id);
    (id.clone(), shell(&id, &[at(&dir, "/w")], line), dir)
}

fn endless(path: &Path) {
    File::create(path).unwrap().set_len(ENDLESS).unwrap();
}

/// The job's progress, once some of the endless file is hashed.
fn underway(agent: &Agent, id: &str) -> Value {
    eventually(&format!("{id} is hashed"), || {
        let job = summary(agent, id);
        assert_ne!(job["phase"], "ended", "{job}");
        let is_underway = job["progress"]["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20);
        is_underway.then(|| job.clone())
    })
}

fn cancelled(agent: &Agent, id: &str) {
    assert_eq!(agent.post(&format!("/api/jobs/{id}/cancel"), b"{}").status, 200);
    assert_eq!(summary(agent, id)["state"], "CANCELLED", "at once");
    assert!(summary(agent, id).get("progress").is_none(), "it has ended");
}

/// Waits until no thread of the agent hashes.
fn none_hashes(agent: &Agent) {
    eventually("its threads end", || {
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten();
        let mut names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default());
        (!names.any(|name| name.trim() == "hash")).then_some(())
    });
}

fn plain(agent: &Agent) {
    let id = job_id("plain");
    agent.accepted(&manifest(&id, &["true"]));
    assert_eq!(agent.ended(&id)["state"], "SEALED");
}

#[test]
fn a_cancel_frees_whoever_hashes_the_inputs() {
    let site = Site::new("hashing-inputs");
    let agent = site.start(&[]);
    // As many as there are threads that hash inputs: one that went on would hold up everybody who comes later.
    let jobs: Vec<_> = (0..2).map(|_| on_directory(&site, "inputs", "true")).collect();
    for (id, job, dir) in &jobs {
        fs::write(dir.join("a"), "x").unwrap();
        endless(&dir.join("big"));
        agent.accepted(job);
        let seen = underway(&agent, id);
        assert_eq!((&seen["state"], &seen["waiting_for"]), (&json!("RECEIVED"), &Value::Null));
        assert_eq!((&seen["progress"]["doing"], &seen["progress"]["mount"]), (&json!("hashing inputs"), &json!("/w")));
        assert_eq!(seen["progress"]["files"], 1, "the other one is not done");
    }
    for (id, ..) in &jobs {
        cancelled(&agent, id);
    }
    plain(&agent);
    none_hashes(&agent);
    // Nothing but its end came of it, and it may be tried again.
    let (id, _, dir) = &jobs[0];
    assert_eq!(states(&agent, id), ["RECEIVED", "CANCELLED"]);
    fs::remove_file(dir.join("big")).unwrap();
    assert_eq!(agent.post(&format!("/api/jobs/{id}/retrigger"), b"").status, 200);
    assert_eq!(agent.ended(id)["state"], "SEALED");
}

#[test]
fn a_cancel_frees_whoever_seals() {
    let site = Site::new("hashing-seal");
    let agent = site.start(&["--workers", "1"]);
    let (id, job, _) = on_directory(&site, "seal", "echo x > a; truncate -s 4096G big");
    agent.accepted(&job);
    let seen = underway(&agent, &id);
    assert_eq!((&seen["state"], &seen["waiting_for"]), (&json!("COMPLETED"), &Value::Null));
    assert_eq!((&seen["progress"]["doing"], &seen["progress"]["mount"]), (&json!("sealing"), &json!("/w")));
    cancelled(&agent, &id);
    plain(&agent);
    none_hashes(&agent);
    assert_eq!(states(&agent, &id), ["RECEIVED", "SCHEDULED", "RUNNING", "COMPLETED", "CANCELLED"]);
    // What the attempt held is let go of, though it was never sealed.
    let mounts = site.data().join("mnt");
    eventually("its mounts are released", || fs::read_dir(&mounts).unwrap().next().is_none().then_some(()));
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(site.left_behind(), Vec::<String>::new());
}

#[test]
fn a_stopping_agent_lets_go_and_the_next_one_does_it_again() {
    let site = Site::new("hashing-stop");
    let agent = site.start(&[]);
    let (sealing, job, sealing_dir) = on_directory(&site, "seal", "truncate -s 4096G big");
    agent.accepted(&job);
    assert_eq!(underway(&agent, &sealing)["progress"]["doing"], "sealing");
    let (inputs, job, inputs_dir) = on_directory(&site, "inputs", "true");
    endless(&inputs_dir.join("big"));
    agent.accepted(&job);
    assert_eq!(underway(&agent, &inputs)["progress"]["doing"], "hashing inputs");
    assert_eq!(agent.terminate(), Some(0));
    for dir in [&sealing_dir, &inputs_dir] {
        fs::remove_file(dir.join("big")).unwrap();
    }
    let agent = site.start(&[]);
    for id in [&sealing, &inputs] {
        assert_eq!(agent.ended(id)["state"], "SEALED", "{}", agent.said());
        assert!(!states(&agent, id).contains(&"FAILED".to_owned()));
    }
    // The attempt ran under the first NODE_UP, and was sealed under the second one.
    for id in [&sealing, &inputs] {
        let seal = agent.get(&format!("/api/jobs/{id}/seal")).json();
        let running = trace(&agent, id).into_iter().find(|event| event["state"] == "RUNNING").unwrap();
        assert!(seal["node_up"].as_u64().is_some_and(|seq| seq > 1), "{seal}");
        assert_eq!(seal["node_up"], running["detail"]["node_up"]);
    }
    let under = |id: &str| agent.get(&format!("/api/jobs/{id}/seal")).json()["node_up"].as_u64();
    assert!(under(&sealing) < under(&inputs));
}

#[test]
fn a_seal_names_the_node_up_of_the_attempt_that_completed() {
    let site = Site::new("hashing-node-up");
    let agent = site.start(&[]);
    let (id, job, _) = on_directory(&site, "twice", "test -e once || { touch once; kill -9 $$; }");
    let mut job = job;
    job["max_attempts"] = 2.into();
    agent.accepted(&job);
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    let seal = agent.get(&format!("/api/jobs/{id}/seal")).json();
    let recovery = trace(&agent, &id).into_iter().find(|event| event["state"] == "RECOVERY").unwrap();
    assert_eq!((&seal["attempt"], &seal["node_up"]), (&json!(2), &recovery["detail"]["node_up"]));
    let ledger = agent.get(&format!("/api/ledger?from={}&limit=1", seal["node_up"])).json();
    assert_eq!(ledger["state"], "NODE_UP");
}

/// Rewrites a file's first bytes and its length without pause, and counts how often.
fn rewrite(path: &Path, times: &AtomicU64, is_over: &AtomicBool) {
    let file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    for round in 0_u64.. {
        file.write_all_at(&round.to_ne_bytes(), 0).unwrap();
        file.set_len(LONG + round % 2).unwrap();
        times.fetch_add(1, Ordering::Relaxed);
        if is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Ends what runs beside a test, also where that fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_file_that_does_not_hold_still_fails_the_job_by_its_name() {
    let site = Site::new("hashing-changes");
    let agent = site.start(&["--workers", "2"]);
    let (inputs, inputs_job, inputs_dir) = on_directory(&site, "inputs", "true");
    let (seal, seal_job, seal_dir) = on_directory(&site, "seal", "until test -e go; do sleep 0.05; done");
    let (is_over, counts) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; 2]);
    thread::scope(|scope| {
        let _over = Over(&is_over);
        let rewrites = |number: usize, path: PathBuf| {
            let (is_over, times) = (&is_over, &counts[number]);
            scope.spawn(move || rewrite(&path, times, is_over));
            eventually("it is written", || (times.load(Ordering::Relaxed) > 1).then_some(()));
        };
        rewrites(0, inputs_dir.join("restless-input"));
        agent.accepted(&inputs_job);
        // Nobody writes yet where the other one begins: once it runs, its inputs are hashed.
        agent.accepted(&seal_job);
        eventually("it runs", || (summary(&agent, &seal)["state"] == "RUNNING").then_some(()));
        rewrites(1, seal_dir.join("restless-result"));
        fs::write(seal_dir.join("go"), "").unwrap();
        let cases = [
            (&inputs, "inputs", "restless-input", "RECEIVED FAILED"),
            (&seal, "seal", "restless-result", "RECEIVED SCHEDULED RUNNING COMPLETED FAILED"),
        ];
        for (id, _, file, _) in cases {
            // It gets a few chances, and meanwhile one sees why nothing goes on.
            eventually("it waits for the file to hold still", || {
                let job = summary(&agent, id);
                assert_ne!(job["phase"], "ended", "{job}");
                let why = job["waiting_for"].as_str()?.to_owned();
                (why.contains(file) && why.contains("changed")).then_some(())
            });
        }
        for (id, reason, file, all) in cases {
            let message = failed_for(&agent, id, reason);
            assert!(message.contains(file) && message.contains("changed"), "{message}");
            assert_eq!(states(&agent, id).join(" "), all);
        }
        plain(&agent);
    });
    none_hashes(&agent);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(site.left_behind(), Vec::<String>::new());
}
