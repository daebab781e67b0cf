//! A further attempt of a job that was cancelled or ended by a crash, on real containers.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::path::Path;
use std::process::Command;

use agent::{Agent, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn states(agent: &Agent, id: &str) -> Vec<String> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.map(|event| event["state"].as_str().unwrap().to_owned()).collect()
}

/// A job that counts its starts in a directory of its own and then runs a shell line.
fn shell(site: &Site, id: &str, line: &str) -> (Value, std::path::PathBuf) {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["sh", "-c", &format!("echo start >> starts; {line}")]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn starts(dir: &Path) -> usize {
    fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
}

fn retrigger(agent: &Agent, id: &str) -> (u16, Value) {
    let answer = agent.post(&format!("/api/jobs/{id}/retrigger"), b"");
    (answer.status, answer.json())
}

#[track_caller]
fn retriggered(agent: &Agent, id: &str) {
    let (status, body) = retrigger(agent, id);
    assert_eq!((status, &body["state"], &body["duplicate"]), (200, &json!("RETRIGGERED"), &json!(false)), "{body}");
}

#[test]
fn a_job_at_its_attempt_limit_gets_as_many_attempts_again() {
    let site = Site::new("retrigger-limit");
    let agent = site.start(&[]);
    let id = job_id("limit");
    let (mut job, dir) = shell(&site, &id, "echo try; test -e mended || kill -9 $$; sleep 1");
    job["max_attempts"] = 2.into();
    agent.accepted(&job);
    assert_eq!(agent.ended(&id)["reason"], "attempt_limit");
    retriggered(&agent, &id);
    let again = agent.ended(&id);
    assert_eq!((again["attempt"].as_u64(), &again["reason"]), (Some(4), &json!("attempt_limit")), "two more");
    fs::write(dir.join("mended"), "").unwrap();
    retriggered(&agent, &id);
    let (status, body) = retrigger(&agent, &id);
    assert_eq!((status, &body["duplicate"]), (200, &json!(true)), "while it goes on, once is enough: {body}");
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("SEALED"), Some(5)), "{summary}");
    assert_eq!(starts(&dir), 5);
    let expected = "RECEIVED SCHEDULED RUNNING CRASH RECOVERY CRASH FAILED RETRIGGERED RECOVERY CRASH RECOVERY CRASH FAILED \
                    RETRIGGERED RECOVERY COMPLETED SEALED";
    assert_eq!(states(&agent, &id).join(" "), expected);
    let seal = agent.get(&format!("/api/jobs/{id}/seal")).json();
    assert_eq!(seal["logs"].as_array().unwrap().len(), 5, "every attempt's output is sealed");
    let (status, body) = retrigger(&agent, &id);
    assert_eq!((status, &body["error"]["code"]), (409, &json!("wrong_state")), "{body}");
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(site.verify(&[]).code, Some(0));
}

#[test]
fn a_cancelled_job_goes_on_wherever_it_was_and_through_a_kill() {
    let site = Site::new("retrigger-cancel");
    let agent = site.start(&["--workers", "1"]);
    let (running, scheduled) = (job_id("running"), job_id("scheduled"));
    let (job, dir) = shell(&site, &running, "test -e again || { touch again; exec sleep 600; }; sleep 2");
    agent.accepted(&job);
    eventually("it runs", || (starts(&dir) == 1).then_some(()));
    let (job, other_dir) = shell(&site, &scheduled, "true");
    agent.accepted(&job);
    eventually("it waits", || (states(&agent, &scheduled).len() == 2).then_some(()));
    for id in [&scheduled, &running] {
        assert_eq!(retrigger(&agent, id).0, 409, "it has not ended");
        assert_eq!(agent.post(&format!("/api/jobs/{id}/cancel"), b"").status, 200);
        assert_eq!(agent.ended(id)["state"], "CANCELLED");
    }
    retriggered(&agent, &running);
    eventually("its second attempt runs", || (starts(&dir) == 2).then_some(()));
    // The only worker is taken, so this one is recorded and not started when the agent dies.
    retriggered(&agent, &scheduled);
    agent.kill();
    let agent = site.start(&["--workers", "1"]);
    for (id, dir, attempt) in [(&running, &dir, 2), (&scheduled, &other_dir, 1)] {
        let summary = agent.ended(id);
        assert_eq!((&summary["state"], &summary["attempt"]), (&json!("SEALED"), &json!(attempt)), "{summary}");
        assert_eq!(starts(dir), attempt);
    }
    assert_eq!(states(&agent, &scheduled)[2..], ["CANCELLED", "RETRIGGERED", "RUNNING", "COMPLETED", "SEALED"]);
    assert_eq!(
        states(&agent, &running)[3..],
        ["STOPPING", "CANCELLED", "RETRIGGERED", "RECOVERY", "COMPLETED", "SEALED"]
    );
}

#[test]
fn it_waits_for_whoever_uses_its_directory_now() {
    let site = Site::new("retrigger-claim");
    let agent = site.start(&[]);
    let (first, second) = (job_id("first"), job_id("second"));
    let (mut job, dir) = shell(&site, &first, "test -e again || { touch again; exec sleep 600; }");
    agent.accepted(&job);
    eventually("it runs", || (starts(&dir) == 1).then_some(()));
    agent.post(&format!("/api/jobs/{first}/cancel"), b"");
    assert_eq!(agent.ended(&first)["state"], "CANCELLED");
    job["job_id"] = second.as_str().into();
    job["command"] = json!(["sh", "-c", "echo start >> starts; until test -e go; do sleep 0.1; done"]);
    agent.accepted(&job);
    eventually("the other runs", || (starts(&dir) == 2).then_some(()));
    retriggered(&agent, &first);
    let waits = || agent.get(&format!("/api/jobs/{first}")).json()["waiting_for"].as_str().map(str::to_owned);
    let words = eventually("it says what it waits for", waits);
    assert!(words.contains(&second), "{words}");
    fs::write(dir.join("go"), "").unwrap();
    for id in [&second, &first] {
        assert_eq!(agent.ended(id)["state"], "SEALED");
    }
    let ended = |id: &str| agent.get(&format!("/api/jobs/{id}")).json();
    assert!(ended(&second)["ended"].as_str() < ended(&first)["ended"].as_str());
}

/// Keeps `workers` workers busy until the file `go` is there.
fn blockers(agent: &Agent, site: &Site, workers: usize) -> std::path::PathBuf {
    let dir = site.mountable("blockers");
    let ids: Vec<String> = (0..workers).map(|_| job_id("blocker")).collect();
    for id in &ids {
        let mut job = manifest(id, &["sh", "-c", "until test -e /in/go; do sleep 0.1; done"]);
        let own = site.mountable(id);
        job["mount_spec"] = json!([format!("{}:/job/workdir", own.display()), format!("{}:/in:ro", dir.display())]);
        agent.accepted(&job);
    }
    for id in &ids {
        eventually("it runs", || (states(agent, id).len() == 3).then_some(()));
    }
    dir
}

#[test]
fn a_job_that_is_cancelled_and_retriggered_while_it_waits_is_run_by_one_thread() {
    let site = Site::new("retrigger-waiting");
    let agent = site.start(&["--workers", "2"]);
    let gate = blockers(&agent, &site, 2);
    let id = job_id("waiting");
    let line = "i=0; while [ $i -lt 10 ]; do echo \"[D1_STABLE] $i\"; i=$((i+1)); sleep 0.1; done";
    let (job, dir) = shell(&site, &id, line);
    agent.accepted(&job);
    for round in 0..3 {
        eventually("it waits", || (states(&agent, &id).len() == 2 + 2 * round).then_some(()));
        assert_eq!(agent.post(&format!("/api/jobs/{id}/cancel"), b"").status, 200);
        retriggered(&agent, &id);
    }
    fs::write(gate.join("go"), "").unwrap();
    let summary = agent.ended(&id);
    assert_eq!((&summary["state"], &summary["attempt"]), (&json!("SEALED"), &json!(1)), "{summary}");
    assert_eq!(starts(&dir), 1);
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let counts = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["detail"]["count"].as_u64());
    assert_eq!(counts.flatten().sum::<u64>(), 10, "markers once each: {text}");
}

#[test]
fn a_retriggered_job_does_not_come_to_its_directory_by_what_it_was_before() {
    let site = Site::new("retrigger-turn");
    let agent = site.start(&["--workers", "1"]);
    let gate = blockers(&agent, &site, 1);
    let (first, second) = (job_id("first"), job_id("second"));
    let (mut job, dir) = shell(&site, &first, "mkdir lock || exit 9; sleep 1; rmdir lock");
    agent.accepted(&job);
    eventually("it waits for a worker", || (states(&agent, &first).len() == 2).then_some(()));
    job["job_id"] = second.as_str().into();
    agent.accepted(&job);
    assert_eq!(agent.post(&format!("/api/jobs/{first}/cancel"), b"").status, 200);
    eventually("the other has its turn", || (states(&agent, &second).len() == 2).then_some(()));
    retriggered(&agent, &first);
    fs::write(gate.join("go"), "").unwrap();
    let ended: Vec<Value> = [&second, &first].into_iter().map(|id| agent.ended(id)).collect();
    assert!(ended.iter().all(|job| job["state"] == "SEALED"), "never both at once: {ended:?}");
    assert!(ended[0]["ended"].as_str() < ended[1]["started"].as_str(), "in turn: {ended:?}");
    assert_eq!(starts(&dir), 2);
}

#[test]
fn only_what_was_cancelled_or_crashed_can_be_retriggered() {
    let site = Site::new("retrigger-refused");
    let agent = site.start(&[]);
    let id = job_id("exit");
    agent.accepted(&manifest(&id, &["false"]));
    assert_eq!(agent.ended(&id)["reason"], "exit");
    let (status, body) = retrigger(&agent, &id);
    assert_eq!((status, &body["error"]["code"]), (409, &json!("wrong_state")));
    assert!(body["error"]["message"].as_str().unwrap().contains("new job_id"), "{body}");
    assert_eq!(retrigger(&agent, &job_id("nobody")).0, 404);
    assert_eq!(agent.get(&format!("/api/jobs/{id}/retrigger")).status, 405);
    assert_eq!(states(&agent, &id).last().unwrap(), "FAILED", "a refusal changes nothing");
}

#[test]
fn what_it_was_scheduled_with_must_still_be_there() {
    let site = Site::new("retrigger-inputs");
    let agent = site.start(&[]);
    // An image of its own, and an input that changes.
    let name = format!("hackbrain/test-retrigger-{}:latest", std::process::id());
    docker(&["tag", "busybox:latest", &name]);
    let container = docker(&["create", &name, "true"]);
    docker(&["commit", "--message", &name, &container, &name]);
    docker(&["rm", &container]);
    let input = site.mountable("input");
    fs::write(input.join("data"), "1").unwrap();
    let (changed, gone) = (job_id("changed"), job_id("gone"));
    for (id, image) in [(&changed, "busybox:latest"), (&gone, name.as_str())] {
        let (mut job, dir) = shell(&site, id, "exec sleep 600");
        job["image_hash"] = image.into();
        job["mount_spec"] = json!([job["mount_spec"], format!("{}:/job/in:ro", input.display())]);
        agent.accepted(&job);
        eventually("it runs", || (starts(&dir) == 1).then_some(()));
        agent.post(&format!("/api/jobs/{id}/cancel"), b"");
        assert_eq!(agent.ended(id)["state"], "CANCELLED");
    }
    fs::write(input.join("data"), "2").unwrap();
    // The agent's own name for it goes as nobody needs it any more; then the image can be deleted.
    eventually("the image is not pinned", || {
        (docker(&["image", "inspect", "--format={{len .RepoTags}}", &name]) == "1").then_some(())
    });
    docker(&["rmi", &name]);
    for (id, reason, words) in [(&changed, "inputs", "/job/in"), (&gone, "image", "sha256:")] {
        retriggered(&agent, id);
        assert_eq!(agent.ended(id)["reason"], reason);
        let trace = agent.get(&format!("/api/jobs/{id}/trace")).text();
        let failed: Value = serde_json::from_str(trace.lines().last().unwrap()).unwrap();
        let message = failed["detail"]["message"].as_str().unwrap();
        assert!(message.contains(words) && message.contains("new job_id"), "{message}");
    }
}
