//! One attempt, one start, one verdict: real containers, and somebody who interferes.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use agent::{Agent, Site, eventually, job_id, manifest};
use serde_json::Value;

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn events(agent: &Agent, id: &str) -> Vec<Value> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn states(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["state"].as_str().unwrap()).filter(|state| *state != "D1_STABLE").collect()
}

fn marks(events: &[Value]) -> u64 {
    let of = |event: &Value| event["detail"]["count"].as_u64().unwrap();
    events.iter().filter(|event| event["state"] == "D1_STABLE").map(of).sum()
}

/// A job that runs a shell line in a directory of its own, where it counts its starts.
fn shell(site: &Site, id: &str, line: &str) -> (Value, std::path::PathBuf) {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["sh", "-c", &format!("echo start >> starts; {line}")]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn starts(dir: &std::path::Path) -> usize {
    fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
}

fn running(agent: &Agent, id: &str, dir: &std::path::Path) {
    eventually(&format!("{id} runs"), || {
        (starts(dir) > 0 && agent.get(&format!("/api/jobs/{id}")).json()["state"] != "SCHEDULED").then_some(())
    });
}

/// As after a kill of agent and CLI while a slow engine makes the container: it holds the name, and shows nothing under it.
/// No real engine can be held there, so its words of that moment are said for it.
#[test]
fn a_name_that_the_engine_still_holds_is_waited_for() {
    let site = Site::new("held");
    let dir = site.dir().join("bin");
    fs::create_dir_all(&dir).unwrap();
    let script = "#!/bin/sh\nn=$(cat \"$0.runs\" 2>/dev/null || echo 0)\n\
        if [ \"$1\" = run ]; then\n  echo $((n + 1)) > \"$0.runs\"\n  if [ $n -lt 2 ]; then\n\
        echo 'docker: Error response from daemon: Conflict. The container name \"/x\" is already in use by container \"0a\". You \
        have to remove (or rename) that container to be able to reuse that name.' >&2\n    exit 125\n  fi\nfi\n\
        PATH=${PATH#*:} exec docker \"$@\"\n";
    let wrapper = dir.join("docker");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let agent = site.start_command(site.serve(&[]).env("PATH", path));
    let id = job_id("held");
    let (job, work) = shell(&site, &id, "true");
    agent.accepted(&job);
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    assert_eq!(fs::read_to_string(dir.join("docker.runs")).unwrap().trim(), "3");
    assert_eq!(
        (starts(&work), states(&events(&agent, &id)).iter().filter(|state| **state == "RUNNING").count()),
        (1, 1)
    );
}

#[test]
fn a_container_of_somebody_else_is_left_alone() {
    let site = Site::new("foreign");
    let agent = site.start(&[]);
    let id = job_id("foreign");
    let name = format!("hb-{id}-1");
    docker(&["run", "-d", "--name", &name, "busybox:latest", "sleep", "600"]);
    agent.accepted(&manifest(&id, &["true"]));
    let summary = agent.ended(&id);
    // Long enough for a clean-up that should not happen.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let status = docker(&["inspect", "--format", "{{.State.Status}}", &name]);
    docker(&["rm", "-f", &name]);
    assert_eq!((summary["state"].as_str(), summary["reason"].as_str()), (Some("FAILED"), Some("not_started")));
    assert_eq!(status, "running");
}

#[test]
fn a_container_that_was_removed_is_lost_and_never_started_twice_in_one_attempt() {
    let site = Site::new("lost");
    let agent = site.start(&[]);
    let id = job_id("lost");
    // It prints nothing: only the id that the CLI noted tells that it was ever there.
    let (job, dir) = shell(&site, &id, "test -e again || { touch again; sleep 600; }");
    agent.accepted(&job);
    running(&agent, &id, &dir);
    agent.kill();
    docker(&["rm", "-f", &format!("hb-{id}-1")]);
    let agent = site.start(&[]);
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("SEALED"), Some(2)));
    let events = events(&agent, &id);
    let crash = events.iter().find(|event| event["state"] == "CRASH").unwrap();
    assert_eq!(crash["detail"]["cause"], "lost");
    assert_eq!(starts(&dir), 2, "once for each attempt");
}

#[test]
fn a_cancel_is_recorded_first_takes_effect_and_can_be_repeated() {
    let site = Site::new("cancel");
    let agent = site.start(&["--workers", "1"]);
    let (id, waiting) = (job_id("cancel"), job_id("cancel-waiting"));
    let (job, dir) = shell(&site, &id, "trap 'exit 0' TERM; while :; do sleep 0.1; done");
    agent.accepted(&job);
    running(&agent, &id, &dir);
    // The only worker is taken.
    agent.accepted(&manifest(&waiting, &["true"]));
    for (id, first) in [(&waiting, true), (&id, true), (&id, false)] {
        let answer = agent.post(&format!("/api/jobs/{id}/cancel"), b"{}");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["duplicate"], !first);
    }
    assert_eq!(agent.ended(&id)["state"], "CANCELLED");
    assert_eq!(agent.ended(&waiting)["attempt"], 0);
    assert_eq!(states(&events(&agent, &id)), ["RECEIVED", "SCHEDULED", "RUNNING", "STOPPING", "CANCELLED"]);
    let answer = agent.post(&format!("/api/jobs/{id}/cancel"), b"{}");
    assert_eq!((answer.status, answer.json()["duplicate"].as_bool()), (200, Some(true)));
    assert_eq!(agent.post(&format!("/api/jobs/{}/cancel", job_id("nobody")), b"{}").status, 404);
}

#[test]
fn a_stop_that_was_asked_for_outlives_the_agent() {
    let site = Site::new("stop-and-kill");
    let agent = site.start(&[]);
    let (cancelled, late) = (job_id("cancelled"), job_id("late"));
    let line = "trap '' TERM; touch up; while :; do sleep 0.1; done";
    let (job, dir) = shell(&site, &cancelled, line);
    agent.accepted(&job);
    let (mut job, late_dir) = shell(&site, &late, line);
    job["timeout_s"] = 3.into();
    agent.accepted(&job);
    eventually("both run", || (dir.join("up").exists() && late_dir.join("up").exists()).then_some(()));
    assert_eq!(agent.post(&format!("/api/jobs/{cancelled}/cancel"), b"{}").status, 200);
    // The grace period has begun; the time limit of the other one passes while no agent lives.
    agent.kill();
    std::thread::sleep(std::time::Duration::from_secs(3));
    let agent = site.start(&[]);
    for (id, dir, state, asked) in [(&cancelled, &dir, "CANCELLED", "cancel"), (&late, &late_dir, "FAILED", "timeout")]
    {
        let summary = agent.ended(id);
        assert_eq!((&summary["state"], &summary["attempt"]), (&state.into(), &1.into()), "{summary}");
        let events = events(&agent, id);
        assert_eq!(states(&events), ["RECEIVED", "SCHEDULED", "RUNNING", "STOPPING", state]);
        assert_eq!(events.iter().find(|event| event["state"] == "STOPPING").unwrap()["detail"]["asked"], asked);
        assert_eq!(starts(dir), 1);
    }
}

#[test]
fn the_cli_dies_and_no_byte_and_no_marker_is_lost() {
    let site = Site::new("cli");
    let agent = site.start(&[]);
    let id = job_id("cli");
    let (mut job, dir) = shell(&site, &id, "");
    job["image_hash"] = "python:3.9-slim".into();
    let program = "import sys,time\nopen('starts','a').write('start\\n')\nw=open('out','wb');v=open('err','wb')\n\
        for n in range(60):\n b=b'[D1_STABLE] step=%d\\n'%n+bytes(range(256))+b'\\n'\n\
        \x20for s,f in((sys.stdout,w),(sys.stderr,v)):\n  s.buffer.write(b);s.buffer.flush();f.write(b);f.flush()\n time.sleep(0.03)\n";
    job["command"] = serde_json::json!(["python", "-c", program]);
    agent.accepted(&job);
    running(&agent, &id, &dir);
    // The CLI is found by what only its command line holds, and killed by its process id.
    let name = format!("--name=hb-{id}-1");
    let cli = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        line.split(|b| *b == 0).any(|part| part == name.as_bytes()).then_some(pid)
    });
    let status = Command::new("kill").args(["-9", &cli.unwrap().to_string()]).status().unwrap();
    assert!(status.success());
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("SEALED"), Some(1)), "{summary}");
    assert_eq!(starts(&dir), 1);
    for (stream, printed) in [("stdout", "out"), ("stderr", "err")] {
        let stored = agent.get(&format!("/api/jobs/{id}/{stream}")).body;
        assert!(stored == fs::read(dir.join(printed)).unwrap(), "{stream} is not what was printed");
    }
    assert_eq!(marks(&events(&agent, &id)), 120, "60 markers on each stream");
    let seal = agent.get(&format!("/api/jobs/{id}/seal")).json();
    let names: Vec<&str> = seal["artifacts"].as_array().unwrap().iter().map(|a| a["path"].as_str().unwrap()).collect();
    assert_eq!(names, ["/job/workdir/err", "/job/workdir/out", "/job/workdir/starts"]);
}
