//! Every way in which an attempt can end, on real containers through the real agent: states in order, cause or reason, exit
//! code, words, usage, output, and one start per attempt.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use agent::{Agent, Site, eventually, job_id, manifest};
use hackbrain::hash::Hash;
use hackbrain::ledger::time::Time;
use serde_json::{Value, json};

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// One way to end.
struct Row {
    name: &'static str,
    job: Value,
    /// Its working directory on the host.
    dir: PathBuf,
    meddle: Option<Meddle>,
    /// States behind RUNNING, markers left out.
    states: &'static [&'static str],
    reason: Option<&'static str>,
    exit_code: Option<i64>,
    /// Part of FAILED's message.
    says: &'static str,
    /// All of the last attempt's stdout, where it matters.
    stdout: Option<&'static str>,
    /// Whether the payload gets to count its starts.
    counts: bool,
    /// Container, and output, are gone or may be.
    is_lost: bool,
}

/// What somebody does while the first attempt runs.
type Meddle = fn(&Scene<'_>);

struct Scene<'a> {
    agent: &'a Agent,
    id: &'a str,
    dir: &'a Path,
    container: String,
}

impl Scene<'_> {
    fn cancel(&self) {
        let answer = self.agent.post(&format!("/api/jobs/{}/cancel", self.id), b"{}");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Host process id of the payload: the only child of the container's init.
    fn payload(&self) -> String {
        let init = docker(&["inspect", "--format", "{{.State.Pid}}", &self.container]);
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).unwrap();
        children.split_whitespace().next().unwrap().to_owned()
    }
}

struct Rows<'s> {
    site: &'s Site,
    rows: Vec<Row>,
}

impl Rows<'_> {
    /// A shell line in a directory of its own, where it counts its starts. `expected`: states, reason, exit code.
    fn shell(&mut self, name: &'static str, line: &str, expected: Expected) -> &mut Row {
        let command = format!("echo start >> starts; {line}");
        self.command(name, &["sh", "-c", &command], expected);
        let row = self.rows.last_mut().unwrap();
        row.counts = true;
        row
    }

    fn command(&mut self, name: &'static str, command: &[&str], expected: Expected) -> &mut Row {
        let id = job_id(&name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let dir = self.site.mountable(&id);
        let mut job = manifest(&id, command);
        job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
        job["max_attempts"] = 1.into();
        let (states, reason, exit_code) = expected;
        self.rows.push(Row {
            name,
            job,
            dir,
            meddle: None,
            states,
            reason,
            exit_code,
            says: "",
            stdout: None,
            counts: false,
            is_lost: false,
        });
        self.rows.last_mut().unwrap()
    }
}

type Expected = (&'static [&'static str], Option<&'static str>, Option<i64>);

impl Row {
    fn set(&mut self, field: &str, value: impl Into<Value>) -> &mut Self {
        self.job[field] = value.into();
        self
    }

    fn says(&mut self, words: &'static str) -> &mut Self {
        self.says = words;
        self
    }

    fn prints(&mut self, text: &'static str) -> &mut Self {
        self.stdout = Some(text);
        self
    }

    fn meddle(&mut self, meddle: Meddle) -> &mut Self {
        self.meddle = Some(meddle);
        self
    }
}

const SEALED: &[&str] = &["COMPLETED", "SEALED"];
const FAILED: &[&str] = &["FAILED"];
const CRASHED: &[&str] = &["CRASH", "FAILED"];
const RECOVERED: &[&str] = &["CRASH", "RECOVERY", "COMPLETED", "SEALED"];
const STOPPED: &[&str] = &["STOPPING", "FAILED"];
const CANCELLED: &[&str] = &["STOPPING", "CANCELLED"];
/// Runs until the test says so, then ends well; the second attempt ends well at once.
const UNTIL_TOLD: &str = "test -e up && exit 0; touch up; while [ ! -e go ]; do sleep 0.05; done";

fn rows(site: &Site) -> Vec<Row> {
    let mut all = Rows { site, rows: Vec::new() };
    // The slow ones first: they wait for a grace period.
    all.shell(
        "cancel, SIGTERM is ignored",
        "trap '' TERM; touch up; while :; do sleep 0.2; done",
        (CANCELLED, Some("cancelled"), Some(137)),
    )
    .meddle(|scene| scene.cancel());
    all.shell(
        "timeout, SIGTERM is ignored",
        "trap '' TERM; touch up; while :; do sleep 0.2; done",
        (STOPPED, Some("timeout"), Some(137)),
    )
    .set("timeout_s", 1)
    .says("longer than timeout_s");

    all.shell("exit 0", "true", (SEALED, None, Some(0)));
    all.shell("exit 7", "echo out; echo err >&2; exit 7", (FAILED, Some("exit"), Some(7)))
        .says("the payload exited with 7")
        .prints("out\n");
    // The engine's own codes, when they are the payload's.
    all.shell("exit 1", "exit 1", (FAILED, Some("exit"), Some(1)));
    all.shell("exit 125", "echo x; exit 125", (FAILED, Some("exit"), Some(125))).prints("x\n");
    all.shell("exit 126", "exit 126", (FAILED, Some("exit"), Some(126)));
    all.shell("exit 127", "no-such-program", (FAILED, Some("exit"), Some(127))).says("the payload exited with 127");
    all.shell("exit 137", "exit 137", (CRASHED, Some("attempt_limit"), Some(137))).says("crashed (killed)");
    all.shell("exit 143", "exit 143", (FAILED, Some("exit"), Some(143)));
    all.shell("exit 255", "exit 255", (FAILED, Some("exit"), Some(255)));
    all.shell("kills itself", "kill -9 $$", (CRASHED, Some("attempt_limit"), Some(137)));
    all.shell("ends itself", "kill -TERM $$", (FAILED, Some("exit"), Some(143)));
    all.shell("segmentation fault", "kill -SEGV $$", (FAILED, Some("exit"), Some(139)));
    all.shell(
        "three crashes",
        "kill -9 $$",
        (&["CRASH", "RECOVERY", "CRASH", "RECOVERY", "CRASH", "FAILED"], Some("attempt_limit"), Some(137)),
    )
    .set("max_attempts", 3)
    .says("attempt 3 of 3 crashed (killed)");
    all.shell("crash, then well", "test -e again && exit 0; touch again; kill -9 $$", (RECOVERED, None, Some(0)))
        .set("max_attempts", 2);

    all.shell("out of memory", "a=x; while true; do a=$a$a; done", (CRASHED, Some("oom"), Some(137)))
        .set("resources", json!({ "memory_mib": 16 }))
        .set("max_attempts", 3)
        .says("raise resources.memory_mib");
    all.shell(
        "a child is out of memory",
        "sh -c 'a=x; while true; do a=$a$a; done'; echo survived $?",
        (SEALED, None, Some(0)),
    )
    .set("resources", json!({ "memory_mib": 16 }))
    .prints("survived 137\n");

    all.command("no such command", &["/no/such/command"], (FAILED, Some("not_started"), Some(127)))
        .says("exec /no/such/command failed: No such file or directory");
    all.command("not on the path", &["no-such-command", "x"], (FAILED, Some("not_started"), Some(127)))
        .says("exec no-such-command failed: No such file or directory");
    let file = all.command("not executable", &["/job/workdir/plain"], (FAILED, Some("not_started"), Some(126)));
    fs::write(file.says("failed: Permission denied").dir.join("plain"), "echo no\n").unwrap();
    all.command("a directory", &["/job/workdir"], (FAILED, Some("not_started"), Some(126)))
        .says("exec /job/workdir failed: Permission denied");
    let file = all.command("no such interpreter", &["/job/workdir/script"], (FAILED, Some("not_started"), Some(127)));
    executable(&file.says("No such file or directory").dir.join("script"), b"#!/no/such/interpreter\n");
    // As execvp does it: what the kernel has no format for is given to the shell.
    let file = all.command("text without interpreter", &["/job/workdir/text"], (SEALED, None, Some(0)));
    executable(&file.prints("by the shell\n").dir.join("text"), b"echo by the shell\n");
    let file = all.command("no program", &["/job/workdir/junk"], (FAILED, Some("exit"), Some(127)));
    executable(&file.dir.join("junk"), b"\x7fELFjunk\n");

    all.shell("stdin is empty", "cat; read x; echo $? \"[$x]\"", (SEALED, None, Some(0))).prints("1 []\n");
    all.shell("timeout", "sleep 60", (STOPPED, Some("timeout"), Some(143))).set("timeout_s", 1);
    all.shell(
        "timeout, ends well on SIGTERM",
        "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done",
        (STOPPED, Some("timeout"), Some(0)),
    )
    .set("timeout_s", 1)
    .prints("bye\n");
    all.shell(
        "cancel, ends well on SIGTERM",
        "trap 'echo bye; exit 0' TERM; touch up; while :; do sleep 0.1; done",
        (CANCELLED, Some("cancelled"), Some(0)),
    )
    .meddle(|scene| scene.cancel())
    .prints("bye\n");
    all.shell("cancel", "touch up; sleep 60", (CANCELLED, Some("cancelled"), Some(143))).meddle(|scene| scene.cancel());

    all.shell("docker kill", UNTIL_TOLD, (RECOVERED, None, Some(0)))
        .set("max_attempts", 2)
        .meddle(|scene| drop(docker(&["kill", &scene.container])));
    all.shell("kill -9 on the host", UNTIL_TOLD, (RECOVERED, None, Some(0))).set("max_attempts", 2).meddle(|scene| {
        assert!(Command::new("kill").args(["-9", &scene.payload()]).status().unwrap().success());
    });
    all.shell("docker stop", "touch up; sleep 60", (FAILED, Some("exit"), Some(143)))
        .set("max_attempts", 3)
        .meddle(|scene| drop(docker(&["stop", &scene.container])));
    all.shell("docker pause", UNTIL_TOLD, (SEALED, None, Some(0))).meddle(|scene| {
        docker(&["pause", &scene.container]);
        assert_eq!(scene.agent.get(&format!("/api/jobs/{}", scene.id)).json()["state"], "RUNNING");
        // Told while it cannot hear.
        fs::write(scene.dir.join("go"), "").unwrap();
        docker(&["unpause", &scene.container]);
    });
    all.shell("cancel while paused", "touch up; sleep 60", (CANCELLED, Some("cancelled"), Some(143))).meddle(|scene| {
        docker(&["pause", &scene.container]);
        scene.cancel();
    });
    let lost = all.shell("docker rm -f", UNTIL_TOLD, (RECOVERED, None, Some(0)));
    lost.set("max_attempts", 2).meddle(|scene| drop(docker(&["rm", "-f", &scene.container])));
    lost.is_lost = true;
    all.shell(
        "its directory vanishes between attempts",
        UNTIL_TOLD,
        (&["CRASH", "RECOVERY", "FAILED"], Some("mount"), Some(137)),
    )
    .set("max_attempts", 3)
    .meddle(|scene| {
        fs::rename(scene.dir, scene.dir.with_extension("moved")).unwrap();
        docker(&["kill", &scene.container]);
    });
    all.rows
}

fn executable(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn check(row: &Row, agent: &Agent) {
    let (name, id) = (row.name, row.job["job_id"].as_str().unwrap());
    let summary = agent.ended(id);
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<&str> = events.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(states[..3], ["RECEIVED", "SCHEDULED", "RUNNING"], "{name}: {summary}");
    assert_eq!(states[3..], *row.states, "{name}: {text}");
    assert_eq!(summary["reason"].as_str(), row.reason, "{name}: {text}");
    assert_eq!(summary["exit_code"].as_i64(), row.exit_code, "{name}: {text}");
    let last = |state: &str| &events[states.iter().rposition(|s| *s == state).unwrap()];
    if states.last() == Some(&"FAILED") {
        let message = last("FAILED")["detail"]["message"].as_str().unwrap();
        assert!(message.contains(row.says), "{name}: {message}");
        assert!(!message.is_empty(), "{name}");
    }
    let attempts = states.iter().filter(|state| matches!(**state, "RUNNING" | "RECOVERY")).count();
    assert_eq!(summary["attempt"], attempts, "{name}");
    let moved = row.dir.with_extension("moved");
    let dir = if moved.exists() { &moved } else { &row.dir };
    let starts = fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count();
    let expected = match row.reason {
        _ if !row.counts => 0,
        // The last attempt found nothing to work on.
        Some("mount") => attempts - 1,
        _ => attempts,
    };
    assert_eq!(starts, expected, "{name}: once per attempt");

    for event in events.iter().filter(|event| event["detail"].get("stdout").is_some()) {
        let (detail, attempt) = (&event["detail"], &event["attempt"]);
        if event["state"] == "CRASH" {
            let cause = match row.reason {
                Some("oom") => "oom",
                _ if row.is_lost => "lost",
                _ => "killed",
            };
            assert_eq!(detail["cause"], cause, "{name}: {event}");
            assert!(row.is_lost || detail["exit_code"] == 137, "{name}: {event}");
        }
        // What repeats a crash, or never began, has nothing of its own.
        let Some(usage) = detail["usage"].as_object() else {
            let is_end = event["state"] == "FAILED" && (states.contains(&"CRASH") || row.reason == Some("mount"));
            assert!(is_end || row.is_lost, "{name}: {event}");
            continue;
        };
        assert!(usage["cpu_ns"].as_u64().unwrap() > 0, "{name}: {event}");
        assert!(usage["memory_peak_bytes"].as_u64().unwrap() > 0, "{name}: {event}");
        for stream in ["stdout", "stderr"] {
            let served = agent.get(&format!("/api/jobs/{id}/{stream}?attempt={attempt}")).body;
            assert_eq!(detail[stream]["bytes"], served.len(), "{name}: {event}");
            assert_eq!(detail[stream]["sha256"], Hash::of(&served).to_string(), "{name}: {event}");
            assert!(row.is_lost || detail[stream].get("complete").is_none(), "{name}: {event}");
        }
        assert!(detail.get("oom_seen").is_none() || name.contains("memory"), "{name}: {event}");
        if name.contains("memory") {
            assert_eq!(detail["oom_seen"], true, "{name}: {event}");
        }
    }
    if let Some(expected) = row.stdout {
        assert_eq!(agent.get(&format!("/api/jobs/{id}/stdout")).text(), expected, "{name}");
    }
    if name == "cancel, SIGTERM is ignored" {
        let time = |state: &str| Time::parse(last(state)["time"].as_str().unwrap()).unwrap().0;
        let grace = Duration::from_micros(time("CANCELLED") - time("STOPPING"));
        assert!(grace >= Duration::from_secs(10), "SIGKILL came after {grace:?}");
    }
}

#[test]
fn every_end_has_its_verdict() {
    let site = Site::new("verdicts");
    let agent = site.start(&["--workers", "4"]);
    let rows = rows(&site);
    for row in &rows {
        agent.accepted(&row.job);
    }
    thread::scope(|scope| {
        let agent = &agent;
        for row in &rows {
            let Some(meddle) = row.meddle else { continue };
            scope.spawn(move || {
                let id = row.job["job_id"].as_str().unwrap();
                eventually(&format!("{}: runs", row.name), || row.dir.join("up").exists().then_some(()));
                meddle(&Scene { agent, id, dir: &row.dir, container: format!("hb-{id}-1") });
            });
        }
        for row in &rows {
            check(row, agent);
        }
    });
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn an_image_that_is_removed_before_the_start_fails_with_dockers_words() {
    let site = Site::new("image-gone");
    let agent = site.start(&["--workers", "1"]);
    let (busy, id) = (job_id("busy"), job_id("image-gone"));
    // An image of this test's own: busybox with a file more.
    let (name, made) = (format!("hb-{id}-image"), format!("hb-{id}-made"));
    docker(&["run", "--name", &made, "busybox:latest", "touch", "/of-its-own"]);
    docker(&["commit", &made, &name]);
    docker(&["rm", &made]);
    let dir = site.mountable(&busy);
    let mut job = manifest(&busy, &["sh", "-c", "touch up; while [ ! -e go ]; do sleep 0.05; done"]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    agent.accepted(&job);
    eventually("the only worker is taken", || dir.join("up").exists().then_some(()));
    let mut job = manifest(&id, &["true"]);
    job["image_hash"] = name.as_str().into();
    agent.accepted(&job);
    let scheduled = agent.get(&format!("/api/jobs/{id}?wait=SCHEDULED&timeout_s=30")).json();
    assert_eq!(scheduled["state"], "SCHEDULED");
    let image_id = scheduled["image_id"].as_str().unwrap();
    docker(&["rmi", "-f", image_id]);
    fs::write(dir.join("go"), "").unwrap();
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), summary["reason"].as_str()), (Some("FAILED"), Some("image")), "{summary}");
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let failed: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let message = failed["detail"]["message"].as_str().unwrap();
    assert!(message.contains("No such image") && message.contains(image_id), "{message}");
    assert_eq!(agent.ended(&busy)["state"], "SEALED");
}
