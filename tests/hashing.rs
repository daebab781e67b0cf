//! Hashing that takes long, with the real agent and the real engine: it is seen, it is given up, and nothing waits for it.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use agent::{Agent, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

/// A file without blocks that nobody hashes while a test runs.
const ENDLESS: u64 = 4 << 40;

fn summary(agent: &Agent, id: &str) -> Value {
    agent.get(&format!("/api/jobs/{id}")).json()
}

fn events(agent: &Agent, id: &str) -> Vec<Value> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn states(agent: &Agent, id: &str) -> Vec<String> {
    events(agent, id).iter().map(|event| event["state"].as_str().unwrap().to_owned()).collect()
}

/// A new job on a directory of its own, not submitted yet.
fn on_directory(site: &Site, what: &str, line: &str) -> (String, Value, PathBuf) {
    let id = job_id(what);
    let dir = site.mountable(&id);
    let mut job = manifest(&id, &["sh", "-c", line]);
    job["mount_spec"] = format!("{}:/w", dir.display()).into();
    (id, job, dir)
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
        let running = events(&agent, id).into_iter().find(|event| event["state"] == "RUNNING").unwrap();
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
    let recovery = events(&agent, &id).into_iter().find(|event| event["state"] == "RECOVERY").unwrap();
    assert_eq!((&seal["attempt"], &seal["node_up"]), (&json!(2), &recovery["detail"]["node_up"]));
    let ledger = agent.get(&format!("/api/ledger?from={}&limit=1", seal["node_up"])).json();
    assert_eq!(ledger["state"], "NODE_UP");
}
