//! Removal of what sealed jobs have left: which jobs, what of them, what answers afterwards, and crashes in the middle.
//! Needs a running Docker Engine, `busybox:latest` and `python3`.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use agent::{Agent, Answer, Ended, Site, debug_build, eventually, hackbrain, job_id, manifest};
use hackbrain::config::Verify;
use hackbrain::sys::dir::{effective_uid, may_mount};
use hackbrain::sys::lock::backup_guard;
use hackbrain::verify::{Verdict, verify};
use serde_json::{Value, json};

/// A job that prints and leaves a file in its scratch directory.
fn scratch_job(id: &str) -> Value {
    manifest(id, &["sh", "-c", "echo said; echo kept > file; ln -s /etc/passwd link; mkdir -m 0 closed"])
}

fn sealed(agent: &Agent, job: &Value) -> String {
    agent.accepted(job);
    let id = job["job_id"].as_str().unwrap().to_owned();
    assert_eq!(agent.ended(&id)["state"], "SEALED", "{id}");
    id
}

fn post(agent: &Agent, body: &Value) -> Answer {
    agent.post("/api/prune", body.to_string().as_bytes())
}

#[track_caller]
fn pruned(agent: &Agent, older_than: &str) -> Value {
    let answer = post(agent, &json!({ "older_than": older_than }));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[track_caller]
fn is_gone(answer: &Answer, event: u64) {
    assert_eq!(answer.status, 410, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "pruned");
    assert!(error["message"].as_str().unwrap().contains(&format!("event {event} ")), "{error}");
}

fn prune(site: &Site, args: &[&str]) -> Ended {
    Ended::of(hackbrain().arg("prune").arg("--data").arg(site.data()).args(args))
}

fn events(site: &Site) -> Vec<Value> {
    site.dump(&[]).stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn prunings(site: &Site) -> Vec<Value> {
    events(site).into_iter().filter(|event| event["state"] == "PRUNED").collect()
}

/// Every file and directory below, with its content.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        all.insert(path.clone(), if kind.is_file() { fs::read(&path).unwrap() } else { Vec::new() });
        if kind.is_dir() {
            all.extend(content(&path));
        }
    }
    all
}

/// What there is of a job that may be pruned.
fn left_of(site: &Site, id: &str) -> Vec<PathBuf> {
    ["logs", "scratch", "staged"]
        .map(|place| site.data().join(place).join(id))
        .into_iter()
        .filter(|p| p.exists())
        .collect()
}

/// A small disk, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(path: &Path, size: &str) -> Self {
        let options = format!("size={size}");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status().unwrap();
        assert!(status.success());
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-R", "-l"]).arg(&self.0).status();
    }
}

/// Both verifiers; the lines of the first but for its head.
#[track_caller]
fn verified(site: &Site, code: i32) -> String {
    let own = site.verify(&["--artifacts"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify.py");
    let other = Ended::of(Command::new("python3").arg(script).arg(site.data()));
    let told = format!("{own:?}\n{other:?}");
    assert_eq!((own.code, other.code), (Some(code), Some(code)), "{told}");
    let of = |text: &str, begin: &str| -> Vec<String> {
        let kept = text.lines().filter(|line| line.starts_with(begin));
        kept.map(|line| line.split(": ").take(if begin == "fault" { 1 } else { 9 }).collect::<Vec<_>>().join(": "))
            .collect()
    };
    for begin in ["pruned", "fault", "head"] {
        assert_eq!(of(&own.stdout, begin), of(&other.stdout, begin), "{told}");
    }
    own.stdout
}

#[test]
fn old_sealed_jobs_go_what_is_needed_or_young_stays_and_everybody_is_told() {
    let site = Site::new("prune");
    let agent = site.start(&["--workers", "2"]);
    let [a, host, parent, child, failed, mounts_a] = ["a", "host", "parent", "child", "failed", "mounts"].map(job_id);
    sealed(&agent, &scratch_job(&a));
    let dir = site.mountable("host");
    let mut on_host = manifest(&host, &["sh", "-c", "echo said; echo kept > file"]);
    on_host["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    sealed(&agent, &on_host);
    let mut reads = manifest(&mounts_a, &["cat", "/job/in/file"]);
    reads["mount_spec"] = json!([format!("job:{a}:/job/in")]);
    sealed(&agent, &reads);
    sealed(&agent, &scratch_job(&parent));
    agent.accepted(&manifest(&failed, &["false"]));
    assert_eq!(agent.ended(&failed)["state"], "FAILED");
    let mut runs = manifest(&child, &["sleep", "1000"]);
    runs["depends_on"] = json!([parent]);
    agent.accepted(&runs);
    eventually("the child runs", || {
        (agent.get(&format!("/api/jobs/{child}")).json()["state"] == "RUNNING").then_some(())
    });

    // Nothing is old enough.
    let before = content(&site.data());
    let none = pruned(&agent, "1d");
    assert_eq!((&none["jobs"], &none["events"]), (&json!(0), &json!([])), "{none}");
    let head = agent.get("/api/ledger/head").text();
    let dry = post(&agent, &json!({ "older_than": "0s", "dry_run": true })).json();
    assert_eq!((&dry["jobs"], &dry["events"], &dry["dry_run"]), (&json!(3), &json!([]), &json!(true)), "{dry}");
    assert_eq!(agent.get("/api/ledger/head").text(), head, "a dry run records nothing");
    for place in ["logs", "scratch", "seals", "inputs"] {
        let is_of_child = |path: &Path| path.to_str().unwrap().contains(&child);
        let now: Vec<_> =
            content(&site.data().join(place)).into_iter().filter(|(path, _)| !is_of_child(path)).collect();
        for (path, bytes) in now {
            assert_eq!(before.get(&path), Some(&bytes), "{}", path.display());
        }
    }
    assert!(agent.get(&format!("/api/jobs/{a}")).json()["pruned"].is_null());

    let done = pruned(&agent, "0s");
    assert_eq!((&done["jobs"], &done["left"]), (&json!(3), &json!(0)), "{done}");
    assert_eq!((&done["files"], &done["bytes"]), (&dry["files"], &dry["bytes"]));
    let told = prunings(&site);
    assert_eq!(told.len(), 1, "{told:?}");
    let (event, detail) = (told[0]["seq"].as_u64().unwrap(), &told[0]["detail"]);
    assert_eq!(done["events"], json!([event]));
    assert_eq!(detail["jobs"], json!([a, host, mounts_a]), "neither a parent in need, nor who failed or runs");
    assert_eq!((&detail["by"], &detail["older_than_s"]), (&json!("request"), &json!(0)));
    assert_eq!((&detail["files"], &detail["bytes"]), (&dry["files"], &dry["bytes"]));
    assert!(told[0].get("job_id").is_none());
    for id in [&a, &host, &mounts_a] {
        assert_eq!(left_of(&site, id), Vec::<PathBuf>::new(), "{id}");
        let job = agent.get(&format!("/api/jobs/{id}")).json();
        assert_eq!((&job["state"], &job["pruned"]), (&json!("SEALED"), &json!(event)), "{job}");
        for path in ["stdout", "stderr", "stdout/lines", "telemetry", "bundle", "bundle?artifacts=no"] {
            is_gone(&agent.get(&format!("/api/jobs/{id}/{path}")), event);
        }
        assert_eq!(agent.get(&format!("/api/jobs/{id}/seal")).status, 200);
        assert!(agent.get(&format!("/api/jobs/{id}/trace")).text().contains("SEALED"));
    }
    is_gone(&agent.get(&format!("/api/jobs/{a}/artifacts/job/workdir/file")), event);
    assert_eq!(agent.get(&format!("/api/jobs/{host}/artifacts/job/workdir/file")).text(), "kept\n", "the host's own");
    for id in [&parent, &failed, &child] {
        assert!(agent.get(&format!("/api/jobs/{id}")).json()["pruned"].is_null());
        assert!(left_of(&site, id).len() >= 2, "{id}");
    }
    assert_eq!(agent.get(&format!("/api/jobs/{parent}/stdout")).text(), "said\n");

    // A second time there is nothing to do.
    assert_eq!(pruned(&agent, "0s")["events"], json!([]));
    assert!(verified(&site, 0).contains(&format!("pruned by event {event}: 6 logs and 1 artifacts of 3 jobs\n")));

    // Who wants what is gone hears of it.
    is_gone(&agent.post(&format!("/api/jobs/{mounts_a}/reproduce"), b"{}"), event);
    let late = job_id("late");
    reads["job_id"] = late.clone().into();
    agent.accepted(&reads);
    let ended = agent.ended(&late);
    assert_eq!((&ended["state"], &ended["reason"]), (&json!("FAILED"), &json!("inputs")), "{ended}");
    assert!(agent.get(&format!("/api/jobs/{late}/trace")).text().contains(&format!("pruned, as event {event} tells")));

    // Once nobody needs it any more, the parent may go.
    assert_eq!(agent.post(&format!("/api/jobs/{child}/cancel"), b"").status, 200);
    assert_eq!(agent.ended(&child)["state"], "CANCELLED");
    assert_eq!(pruned(&agent, "0s")["jobs"], 1);
    assert_eq!(prunings(&site)[1]["detail"]["jobs"], json!([parent]));
    assert_eq!(agent.terminate(), Some(0));
    verified(&site, 0);

    // What is lacking of others is a fault still, and so is a changed file of the host.
    let again = site.start(&[]);
    assert_eq!(again.get(&format!("/api/jobs/{a}")).json()["pruned"], event, "read back");
    drop(again);
    fs::remove_file(site.data().join("logs").join(&failed).join("1.stdout")).unwrap();
    fs::remove_file(dir.join("file")).unwrap();
    let faults = verified(&site, 65);
    assert!(faults.contains(&format!("fault log_missing {failed} ")), "{faults}");
    assert!(faults.contains(&format!("fault artifact_missing {host} ")), "{faults}");
}

#[test]
fn the_command_asks_for_an_age_leaves_a_running_agent_alone_and_a_backup_in_peace() {
    let site = Site::new("prune-command");
    let ended = prune(&site, &["--older-than", "1s"]);
    assert_eq!(ended.code, Some(64), "{ended:?}");
    assert!(!site.data().exists(), "nothing is made");
    let agent = site.start(&[]);
    let id = sealed(&agent, &scratch_job(&job_id("old")));
    for bad in ["", "30", "1w", "-1d", "1.5h", "30 d", "99999999999999999999d"] {
        let ended = prune(&site, &[&format!("--older-than={bad}")]);
        assert_eq!(ended.code, Some(64), "{bad}: {ended:?}");
        assert!(ended.stderr.contains("30d, 12h, 90m or 45s") || bad.is_empty(), "{bad}: {ended:?}");
        let answer = post(&agent, &json!({ "older_than": bad }));
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!("invalid_value")), "{bad}");
    }
    assert_eq!(prune(&site, &[]).code, Some(64));
    for (body, code) in [
        (json!({}), "missing_field"),
        (json!({ "older_than": 30 }), "wrong_type"),
        (json!({ "older_than": "1d", "dry_run": "yes" }), "wrong_type"),
        (json!({ "older_than": "1d", "force": true }), "unknown_field"),
    ] {
        let answer = post(&agent, &body);
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (400, &json!(code)), "{body}");
    }
    let ended = prune(&site, &["--older-than", "2m"]);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(
        ended.stderr.contains("curl -X POST") && ended.stderr.contains(r#"-d '{"older_than":"120s"}'"#),
        "{ended:?}"
    );
    let ended = prune(&site, &["--older-than", "0s", "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.stdout.starts_with(&format!("{id}: ")) && ended.stdout.contains("\nwould prune 1 jobs: "),
        "{ended:?}"
    );

    let backup = File::options().create(true).truncate(false).write(true).open(site.data().join("BACKUP")).unwrap();
    backup.lock_shared().unwrap();
    let answer = post(&agent, &json!({ "older_than": "0s" }));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (409, &json!("backup_running")));
    assert_eq!(agent.terminate(), Some(0));
    let before = content(&site.data());
    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.stderr.contains("a backup is being made"), "{ended:?}");
    drop(backup);
    let ended = prune(&site, &["--older-than", "0s", "--dry-run"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let now = content(&site.data());
    let files = |all: &BTreeMap<PathBuf, Vec<u8>>| {
        let is_probed = |path: &&PathBuf| !path.starts_with(site.data().join("wal"));
        all.keys().filter(is_probed).cloned().collect::<Vec<_>>()
    };
    assert_eq!(files(&before), files(&now));
    let same = content(&site.data());
    prune(&site, &["--older-than", "0s", "--dry-run"]);
    assert!(content(&site.data()) == same, "a dry run changes no byte");

    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let seq = prunings(&site)[0]["seq"].as_u64().unwrap();
    assert_eq!(prunings(&site)[0]["detail"]["by"], "command");
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines[0].starts_with(&format!("{id}: ")), "{ended:?}");
    assert!(
        lines[1].starts_with("pruned 1 jobs: ") && lines[1].ends_with(&format!("recorded as event {seq}")),
        "{ended:?}"
    );
    assert_eq!(left_of(&site, &id), Vec::<PathBuf>::new());
    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!((ended.code, &*ended.stdout), (Some(0), "pruned 0 jobs: 0 files, 0 bytes\n"));
    assert_eq!(prunings(&site).len(), 1);
    verified(&site, 0);
    // An agent goes on with that ledger.
    let agent = site.start(&[]);
    assert_eq!(agent.get(&format!("/api/jobs/{id}")).json()["pruned"], seq);
    sealed(&agent, &scratch_job(&job_id("new")));
}

#[test]
fn what_a_crash_leaves_goes_at_the_next_start_or_the_next_prune() {
    let site = Site::new("prune-crash");
    let agent = site.start(&[]);
    let ids = ["1", "2", "3"].map(|what| sealed(&agent, &scratch_job(&job_id(what))));
    agent.kill();
    let killed_at = |point: &str, command: &Command| {
        let mut command = debug_build(command);
        let output = command.env("HACKBRAIN_KILL_AT", point).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {output:?}");
    };
    let mut command = hackbrain();
    command.arg("prune").arg("--data").arg(site.data()).args(["--older-than", "0s"]);
    // The event is there, and all the files are.
    killed_at("prune-durable", &command);
    assert_eq!(prunings(&site).len(), 1);
    assert_eq!(prunings(&site)[0]["detail"]["jobs"], json!(ids));
    assert!(ids.iter().all(|id| left_of(&site, id).len() == 2));
    assert!(!verified(&site, 0).contains("pruned by"), "nothing lacks yet");
    // In the middle of the first job: its logs are gone.
    killed_at("pruned-in-part", &command);
    assert_eq!(left_of(&site, &ids[0]), [site.data().join("scratch").join(&ids[0])]);
    assert!(verified(&site, 0).contains("2 logs and 0 artifacts of 1 jobs"));
    // The next prune goes on with it, and has nothing to record.
    killed_at("pruned-in-part:3", &command);
    assert!(left_of(&site, &ids[0]).is_empty() && !left_of(&site, &ids[1]).is_empty());
    let agent = site.start(&[]);
    eventually("the start of the agent has removed the rest", || {
        ids.iter().all(|id| left_of(&site, id).is_empty()).then_some(())
    });
    assert_eq!(prunings(&site).len(), 1);
    assert_eq!(pruned(&agent, "0s")["jobs"], 0);
    assert!(verified(&site, 0).contains("6 logs and 3 artifacts of 3 jobs"));

    // The agent itself, at a request.
    let id = sealed(&agent, &scratch_job(&job_id("4")));
    assert_eq!(agent.terminate(), Some(0));
    let mut agent = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", "prune-durable"));
    let body = br#"{"older_than":"0s"}"#;
    let request = format!(
        "POST /api/prune HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        agent.address,
        body.len()
    );
    let mut stream = TcpStream::connect(agent.address).unwrap();
    stream.write_all(&[request.as_bytes(), body].concat()).unwrap();
    assert_eq!(agent.wait().signal(), Some(9));
    assert!(!left_of(&site, &id).is_empty());
    // What a backup holds on to waits for its end.
    let backup = File::options().write(true).open(site.data().join("BACKUP")).unwrap();
    backup.lock_shared().unwrap();
    let agent = site.start(&[]);
    eventually("it says that it waits", || agent.said().contains("a backup is being made").then_some(()));
    assert!(!left_of(&site, &id).is_empty());
    drop(backup);
    eventually("it is gone", || left_of(&site, &id).is_empty().then_some(()));
}

#[test]
fn rooms_that_lie_elsewhere_are_pruned_and_what_root_makes_is_the_owners() {
    let site = Site::new("prune-elsewhere");
    fs::create_dir_all(site.dir().join("elsewhere")).unwrap();
    fs::create_dir(site.data()).unwrap();
    symlink("../elsewhere", site.data().join("logs")).unwrap();
    let agent = site.start(&[]);
    let ids = ["1", "2"].map(|what| sealed(&agent, &scratch_job(&job_id(what))));
    assert_eq!(pruned(&agent, "0s")["left"], 0);
    assert!(ids.iter().all(|id| left_of(&site, id).is_empty()));
    let id = sealed(&agent, &scratch_job(&job_id("3")));
    assert_eq!(agent.terminate(), Some(0));
    if effective_uid() != 0 {
        return;
    }
    // As after a restore by the user whose agent it is.
    let status = Command::new("chown").args(["-R", "65534:65534"]).arg(site.data()).status().unwrap();
    assert!(status.success());
    for name in ["LOCK", "BACKUP", "wal/probe.tmp"] {
        let _ = fs::remove_file(site.data().join(name));
    }
    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(left_of(&site, &id).is_empty());
    for path in ["LOCK", "BACKUP"].map(|name| site.data().join(name)).iter().chain(&site.segments()) {
        assert_eq!(fs::metadata(path).unwrap().uid(), 65_534, "{}", path.display());
    }
}

#[test]
fn a_ledger_that_is_full_is_told_and_not_waited_for() {
    if !may_mount().unwrap() {
        return;
    }
    let site = Site::new("prune-full");
    fs::create_dir(site.data()).unwrap();
    let disk = Mounted::tmpfs(&site.data(), "8m");
    let agent = site.start(&["--wal-buffered"]);
    let id = sealed(&agent, &scratch_job(&job_id("old")));
    let [runs, waits] = ["runs", "waits"].map(job_id);
    agent.accepted(&manifest(&runs, &["sleep", "1000"]));
    let mut child = manifest(&waits, &["true"]);
    child["depends_on"] = json!([runs]);
    agent.accepted(&child);
    // Less is left than the next segment of the ledger takes.
    let filler = site.data().join("filler");
    fs::write(&filler, vec![1; 4 << 20]).unwrap();
    let stopped = |what: &str| {
        let head = format!("POST /api/jobs/{waits}/{what} HTTP/1.1\r\nHost: {}\r\n", agent.address);
        let mut stream = TcpStream::connect(agent.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let rest = "Content-Type: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{head}{rest}").as_bytes()).unwrap();
        let mut answer = String::new();
        let is_answered = stream.read_to_string(&mut answer).is_ok();
        assert!(!is_answered || answer.starts_with("HTTP/1.1 200") || answer.contains("ledger_full"), "{answer}");
        !is_answered || answer.contains("ledger_full")
    };
    // One event after another, until the segment is full.
    assert!((0..400).any(|_| stopped("cancel") || stopped("retrigger")), "it was never full");
    let answer = post(&agent, &json!({ "older_than": "0s" }));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (503, &json!("ledger_full")), "{}", answer.text());
    agent.kill();
    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!(ended.code, Some(74), "{ended:?}");
    assert!(ended.stderr.contains("the disk is full") && ended.stderr.contains("prune again"), "{ended:?}");
    assert!(!left_of(&site, &id).is_empty());
    fs::remove_file(&filler).unwrap();
    let ended = prune(&site, &["--older-than", "0s"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(left_of(&site, &id).is_empty());
    drop(disk);
}

/// Tries to take what a removal needs as soon as something is written.
struct Meddler<'d>(&'d Path, Vec<bool>);

impl Write for Meddler<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.1.push(backup_guard(self.0, true)?.is_some());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_removed_while_it_is_verified() {
    let site = Site::new("prune-verify");
    let agent = site.start(&[]);
    let id = sealed(&agent, &scratch_job(&job_id("old")));
    let (data, running) = (site.data(), AtomicBool::new(false));
    let mut out = Meddler(&data, Vec::new());
    let mut options = Verify { data: data.clone(), expect: Vec::new(), artifacts: true };
    let verdict = verify(&options, &running, &mut out, None).unwrap();
    assert!(matches!(verdict, Verdict::Sound), "{verdict:?}");
    assert!(!out.1.is_empty() && !out.1.contains(&true), "{:?}", out.1);
    // The ledger alone is not pruned.
    options.artifacts = false;
    out.1.clear();
    verify(&options, &running, &mut out, None).unwrap();
    assert!(out.1.contains(&true), "{:?}", out.1);
    // One that waits for a prune can be ended.
    options.artifacts = true;
    // A process that another test is just starting may hold on to a lock for a moment.
    let prune = eventually("nobody holds it", || backup_guard(&data, true).unwrap());
    let verdict = verify(&options, &AtomicBool::new(true), &mut Vec::new(), None).unwrap();
    assert!(matches!(verdict, Verdict::Interrupted), "{verdict:?}");
    drop(prune);
    eventually("it is pruned", || (post(&agent, &json!({ "older_than": "0s" })).status == 200).then_some(()));
    assert!(left_of(&site, &id).is_empty());
}
