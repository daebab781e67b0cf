//! What attempts use, as real control groups count it: samples on disk and on the stream, the figures at the end, and whose
//! fault it was that the memory ran out.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use agent::{Agent, PATIENCE, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

const KEYS: [&str; 11] = [
    "job_id",
    "attempt",
    "time",
    "cpu_ns",
    "memory_bytes",
    "memory_peak_bytes",
    "pids",
    "pids_peak",
    "io_read_bytes",
    "io_write_bytes",
    "oom_kills",
];
/// What never falls within an attempt.
const GROWING: [&str; 7] =
    ["time", "cpu_ns", "memory_peak_bytes", "pids_peak", "io_read_bytes", "io_write_bytes", "oom_kills"];

fn events(agent: &Agent, id: &str) -> Vec<Value> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn detail(agent: &Agent, id: &str, state: &str) -> Value {
    let events = events(agent, id);
    let found = events.iter().find(|event| event["state"] == state);
    found.unwrap_or_else(|| panic!("no {state}: {events:?}"))["detail"].clone()
}

fn samples(agent: &Agent, id: &str) -> Vec<Value> {
    let answer = agent.get(&format!("/api/jobs/{id}/telemetry"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    // What comes behind the last newline is being written, or is what a killed agent left of a line.
    let text = answer.text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A Python payload in a directory of its own.
fn python(site: &Site, id: &str, program: &str) -> (Value, PathBuf) {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["python", "-c", program]);
    job["image_hash"] = "python:3.9-slim".into();
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn micros(sample: &Value) -> u64 {
    hackbrain::ledger::time::Time::parse(sample["time"].as_str().unwrap()).unwrap().0
}

/// Each is well-formed, of this attempt, and not before or below the one before it.
fn check(samples: &[Value], id: &str) {
    for sample in samples {
        assert_eq!((sample["job_id"].as_str(), sample["attempt"].as_u64()), (Some(id), Some(1)), "{sample}");
    }
    for pair in samples.windows(2) {
        for key in GROWING {
            let [before, after] = [&pair[0][key], &pair[1][key]];
            match before {
                Value::String(text) => assert!(text.as_str() < after.as_str().unwrap(), "{key}: {pair:?}"),
                _ => assert!(before.as_u64() <= after.as_u64(), "{key}: {pair:?}"),
            }
        }
    }
}

/// The figures of an ending are those of the last sample, and no smaller than any before.
fn check_usage(usage: &Value, samples: &[Value]) {
    let unmeasured = |key: &str| {
        usage["not_measured"].as_array().is_some_and(|names| names.iter().any(|name| name.as_str() == Some(key)))
    };
    let last = samples.last().unwrap();
    for key in ["cpu_ns", "memory_peak_bytes", "pids_peak", "io_read_bytes", "io_write_bytes", "oom_kills"] {
        if unmeasured(key) {
            assert_eq!((usage[key].as_u64(), last[key].as_u64()), (Some(0), None), "{key}: {usage}");
        } else {
            assert!(usage[key].is_u64(), "{key}: {usage}");
            assert_eq!(usage[key], last[key], "{key}");
        }
    }
}

/// Computes, allocates, forks, writes and syncs, then goes on for a while. `go` ends it.
const BUSY: &str = "import os,time\nblock=b'x'*(48<<20)\nend=time.process_time()+0.7\nwhile time.process_time()<end:pass\n\
    if os.fork()==0:\n time.sleep(1.5)\n os._exit(0)\nos.wait()\nf=open('out','wb',0)\n\
    for n in range(8):\n f.write(b'y'*(256<<10))\n os.fsync(f.fileno())\ndel block\nopen('written','w').close()\n\
    while not os.path.exists('go'):time.sleep(0.05)\nf.write(b'z'*(1<<20))\nos.fsync(f.fileno())\n";

#[test]
fn an_attempt_is_sampled_every_second_and_its_end_tells_the_sum() {
    let site = Site::new("samples");
    let agent = site.start(&["--pull", "never"]);
    let id = job_id("samples");
    let (mut job, dir) = python(&site, &id, BUSY);
    job["resources"] = json!({ "memory_mib": 96 });
    agent.accepted(&job);
    eventually("it wrote", || dir.join("written").exists().then_some(()));
    let before = samples(&agent, &id).len();
    eventually("more samples", || (samples(&agent, &id).len() >= before + 3).then_some(()));
    let live = samples(&agent, &id);
    assert!(live.iter().any(|sample| sample["memory_bytes"].as_u64() > Some(48 << 20)), "{live:?}");
    assert!(live.iter().all(|sample| sample["pids"].as_u64() > Some(0)), "only while it runs: {live:?}");
    fs::write(dir.join("go"), "").unwrap();
    assert_eq!(agent.ended(&id)["state"], "SEALED");

    let answer = agent.get(&format!("/api/jobs/{id}/telemetry?attempt=1"));
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(answer.header("x-attempt"), Some("1"));
    let lines = answer.text();
    let samples = samples(&agent, &id);
    assert!(samples.len() > live.len(), "the last one came at the end");
    assert_eq!(samples[..live.len()], live);
    for line in lines.lines() {
        let places: Vec<_> = KEYS.iter().map(|key| line.find(&format!("\"{key}\":")).expect("every key")).collect();
        assert!(places.is_sorted(), "{line}");
        assert_eq!(serde_json::from_str::<Value>(line).unwrap().as_object().unwrap().len(), KEYS.len());
    }
    check(&samples, &id);
    let mut gaps: Vec<u64> = live.windows(2).map(|pair| micros(&pair[1]) - micros(&pair[0])).collect();
    gaps.sort_unstable();
    let middle = gaps[gaps.len() / 2];
    assert!((700_000..3_000_000).contains(&middle), "once a second: {gaps:?}");

    let usage = detail(&agent, &id, "COMPLETED")["usage"].clone();
    check_usage(&usage, &samples);
    assert!(usage["cpu_ns"].as_u64() > Some(700_000_000), "{usage}");
    assert!(usage["memory_peak_bytes"].as_u64() > Some(48 << 20), "{usage}");
    assert!(usage["pids_peak"].as_u64() >= Some(3), "init, the payload and its child: {usage}");
    assert_eq!(usage["oom_kills"], 0);
    if usage["not_measured"].is_null() {
        assert!(usage["io_write_bytes"].as_u64() >= Some(2 << 20), "{usage}");
    }
    assert_eq!(agent.get(&format!("/api/jobs/{id}/telemetry?attempt=2")).status, 404);
    assert_eq!(agent.get("/api/jobs/nobody/telemetry").status, 404);
    assert_eq!(agent.get(&format!("/api/jobs/{id}/telemetry?attempts=1")).status, 400);

    // What ended without ever running has none, and that is no error.
    let never = job_id("never");
    let mut job = manifest(&never, &["true"]);
    job["image_hash"] = "hackbrain/no-such-image:none".into();
    agent.accepted(&job);
    assert_eq!(agent.ended(&never)["state"], "FAILED");
    let answer = agent.get(&format!("/api/jobs/{never}/telemetry"));
    assert_eq!((answer.status, answer.text().as_str()), (200, ""));
    // A short one has its last sample.
    let short = job_id("short");
    agent.accepted(&manifest(&short, &["true"]));
    agent.ended(&short);
    check_usage(&detail(&agent, &short, "COMPLETED")["usage"], &self::samples(&agent, &short));
}

#[test]
fn a_new_agent_goes_on_in_the_same_file() {
    let site = Site::new("again");
    let agent = site.start(&[]);
    let id = job_id("again");
    let (job, dir) = python(&site, &id, BUSY);
    agent.accepted(&job);
    eventually("it wrote", || dir.join("written").exists().then_some(()));
    eventually("samples of it", || {
        samples(&agent, &id).last().is_some_and(|last| last["pids_peak"].as_u64() >= Some(3)).then_some(())
    });
    agent.kill();
    let file = site.data().join("logs").join(&id).join("1.telemetry");
    let before = fs::read_to_string(&file).unwrap();
    // As if it had been killed while it wrote.
    fs::write(&file, format!("{before}{}", &before[..before.len().min(100)])).unwrap();
    let agent = site.start(&[]);
    let whole = before.lines().count();
    eventually("two more", || (samples(&agent, &id).len() >= whole + 2).then_some(()));
    fs::write(dir.join("go"), "").unwrap();
    assert_eq!(agent.ended(&id)["attempt"], 1);
    assert!(fs::read_to_string(&file).unwrap().starts_with(&before), "what was there stays");
    let samples = samples(&agent, &id);
    check(&samples, &id);
    check_usage(&detail(&agent, &id, "COMPLETED")["usage"], &samples);
}

#[test]
fn a_container_that_was_removed_has_used_what_it_used() {
    let site = Site::new("removed");
    let agent = site.start(&[]);
    let id = job_id("removed");
    let (mut job, dir) = python(&site, &id, BUSY);
    job["max_attempts"] = 1.into();
    agent.accepted(&job);
    eventually("it wrote", || dir.join("written").exists().then_some(()));
    // Nobody sees it end: its own group is all that is left of it.
    agent.kill();
    let name = format!("hb-{id}-1");
    assert!(Command::new("docker").args(["rm", "-f", &name]).output().unwrap().status.success());
    let agent = site.start(&[]);
    assert_eq!(agent.ended(&id)["state"], "FAILED");
    let crash = detail(&agent, &id, "CRASH");
    assert_eq!(crash["cause"], "lost", "{crash}");
    assert!(crash["usage"]["cpu_ns"].as_u64() > Some(700_000_000), "{crash}");
    check_usage(&crash["usage"], &samples(&agent, &id));
}

/// Reads the stream until `enough` says so of the text so far.
fn stream(agent: &Agent, path: &str, enough: impl Fn(&str) -> bool) -> String {
    let mut socket = TcpStream::connect(agent.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // HTTP/1.0 has no chunks, so the bytes are the stream's.
    socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", agent.address).as_bytes()).unwrap();
    let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
    while !enough(&String::from_utf8_lossy(&bytes)) {
        let read = socket.read(&mut piece).unwrap();
        assert!(read > 0, "the stream ended: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_stream_tells_of_samples_beside_the_ledger() {
    let site = Site::new("stream");
    let agent = site.start(&["--workers", "2"]);
    let (id, other) = (job_id("stream"), job_id("stream-other"));
    for id in [&id, &other] {
        agent.accepted(&manifest(id, &["sleep", "4"]));
    }
    let ended = |text: &str, id: &str| {
        let of_it = format!("\"job_id\":\"{id}\"");
        text.lines().any(|line| line.contains(&of_it) && line.contains("\"state\":\"SEALED\""))
    };
    let (all, one) = thread::scope(|scope| {
        let all = scope.spawn(|| stream(&agent, "/api/events?after=0", |text| ended(text, &id) && ended(text, &other)));
        let one =
            scope.spawn(|| stream(&agent, &format!("/api/events?after=0&job={other}"), |text| ended(text, &other)));
        (all.join().unwrap(), one.join().unwrap())
    });
    let mut ids = Vec::new();
    let mut told = Vec::new();
    let (_, body) = all.split_once("\r\n\r\n").unwrap();
    // The last one may be cut short.
    for message in body.rsplit_once("\n\n").unwrap().0.split("\n\n") {
        let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
        match field("event: ") {
            Some(event) => {
                assert_eq!((event, field("id: ")), ("telemetry", None), "{message}");
                told.push(field("data: ").unwrap());
            }
            None => ids.extend(field("id: ").map(|id| id.parse::<u64>().unwrap())),
        }
    }
    assert!(ids.iter().copied().eq(1..=ids.len() as u64), "the ledger's events come whole and in order: {ids:?}");
    for id in [&id, &other] {
        let mine = format!("\"job_id\":\"{id}\"");
        let mine = told.iter().filter(|line| line.contains(&mine)).count();
        assert!(mine >= 2, "{mine} samples of {id}: {told:?}");
        let stored = agent.get(&format!("/api/jobs/{id}/telemetry")).text();
        assert!(told.iter().all(|line| line.contains(&**id) != stored.lines().all(|known| known != *line)), "{told:?}");
    }
    assert!(one.contains("event: telemetry") && !one.contains(&format!("\"job_id\":\"{id}\"")), "{one}");
}

/// Keeps the processor busy while it lives.
struct Load(std::sync::Arc<AtomicBool>);

impl Load {
    fn new() -> Self {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        for _ in 0..4 {
            let over = over.clone();
            thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Self(over)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

const EATS: &str = "a=x; while true; do a=$a$a; done";

/// A job that runs out of memory itself, and one whose child does; what the ledger says of them.
fn out_of_memory(agent: &Agent, rounds: usize, is_measured: bool) {
    let ids: Vec<[String; 2]> = (0..rounds)
        .map(|_| {
            [EATS, &format!("(exec sh -c '{EATS}'); exit 0")].map(|line| {
                let id = job_id("oom");
                let mut job = manifest(&id, &["sh", "-c", line]);
                job["resources"] = json!({ "memory_mib": 16 });
                agent.accepted(&job);
                id
            })
        })
        .collect();
    for [itself, child] in ids {
        let summary = agent.ended(&itself);
        assert_eq!((summary["state"].as_str(), summary["reason"].as_str()), (Some("FAILED"), Some("oom")), "{summary}");
        let crash = detail(agent, &itself, "CRASH");
        assert_eq!((crash["cause"].as_str(), crash["exit_code"].as_i64()), (Some("oom"), Some(137)), "{crash}");
        assert_eq!(crash["oom_seen"], true, "{crash}");
        assert!(!is_measured || crash["usage"]["oom_kills"].as_u64() >= Some(1), "{crash}");

        assert_eq!(agent.ended(&child)["state"], "SEALED");
        let completed = detail(agent, &child, "COMPLETED");
        assert_eq!(completed["oom_seen"], true, "{completed}");
        assert!(!is_measured || completed["usage"]["oom_kills"].as_u64() >= Some(1), "{completed}");
    }
}

#[test]
fn memory_that_runs_out_is_called_so_ten_times_out_of_ten_on_a_busy_machine() {
    let _turn = KERNEL_LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let site = Site::new("oom");
    let agent = site.start(&["--workers", "2"]);
    let _load = Load::new();
    out_of_memory(&agent, 10, true);
}

/// A directory for PATH with a `docker` that changes what the real one prints for some of its commands.
fn changed_docker(site: &Site, commands: &str, sed: &str) -> String {
    let dir = site.dir().join("bin");
    fs::create_dir_all(&dir).unwrap();
    let path = std::env::var("PATH").unwrap();
    let real = path.split(':').map(|dir| Path::new(dir).join("docker")).find(|file| file.exists()).unwrap();
    let real = real.display();
    let script = format!(
        "#!/bin/sh\ncase \"$1\" in\n{commands})\n touch \"$0.$1\"; out=$({real} \"$@\") || exit\n printf '%s\\n' \"$out\" | sed '{sed}';;\n\
         *) exec {real} \"$@\";;\nesac\n"
    );
    let wrapper = dir.join("docker");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{path}", dir.display())
}

/// The kernel writes down ten kills in five seconds at most, and the log is one for all: tests of it take turns.
static KERNEL_LOG: Mutex<()> = Mutex::new(());
const KERNEL_LOG_INTERVAL: Duration = Duration::from_secs(5);

#[test]
fn memory_that_runs_out_is_seen_without_the_engines_word() {
    let _turn = KERNEL_LOG.lock().unwrap_or_else(PoisonError::into_inner);
    thread::sleep(KERNEL_LOG_INTERVAL);
    let site = Site::new("flag");
    // As it is where the engine hears of the exit first.
    let path = changed_docker(&site, "inspect", "s/\"OOMKilled\": true/\"OOMKilled\": false/");
    let agent = site.start_command(through_cli(&mut site.serve(&["--workers", "2"])).env("PATH", path));
    out_of_memory(&agent, 2, true);
    assert!(site.dir().join("bin/docker.inspect").exists(), "the engine's word was never changed");
}

#[test]
fn without_a_group_of_its_own_an_attempt_is_measured_in_the_engines() {
    let _turn = KERNEL_LOG.lock().unwrap_or_else(PoisonError::into_inner);
    thread::sleep(KERNEL_LOG_INTERVAL);
    let site = Site::new("driver");
    // As an engine with the other driver says; where it put the container is found from the container's first process.
    let sed =
        "s/\"CgroupDriver\":\"cgroupfs\"/\"CgroupDriver\":\"systemd\"/; s/\"OOMKilled\": true/\"OOMKilled\": false/";
    let path = changed_docker(&site, "info|inspect", sed);
    let agent = site.start_command(through_cli(&mut site.serve(&[])).env("PATH", path));
    let id = job_id("driver");
    let (job, dir) = python(&site, &id, BUSY);
    agent.accepted(&job);
    eventually("it wrote", || dir.join("written").exists().then_some(()));
    let before = samples(&agent, &id).len();
    eventually("more samples", || (samples(&agent, &id).len() >= before + 2).then_some(()));
    let log_id = events_of_node(&site);
    assert!(!Path::new(&format!("/sys/fs/cgroup/memory/hackbrain-{}", &log_id[..8])).exists());
    fs::write(dir.join("go"), "").unwrap();
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    let samples = samples(&agent, &id);
    check(&samples, &id);
    let usage = detail(&agent, &id, "COMPLETED")["usage"].clone();
    check_usage(&usage, &samples);
    assert!(usage["cpu_ns"].as_u64() > Some(700_000_000), "{usage}");
    assert!(usage["memory_peak_bytes"].as_u64() > Some(48 << 20), "{usage}");
    // Too short, perhaps, for its group to be found in time; the kernel's log names the container.
    out_of_memory(&agent, 2, false);
    for asked in ["info", "inspect"] {
        assert!(site.dir().join(format!("bin/docker.{asked}")).exists(), "{asked} was never changed");
    }
}

/// With a context to find the engine by, the agent asks through the CLI alone.
fn through_cli(command: &mut Command) -> &mut Command {
    command.env("DOCKER_CONTEXT", "default").env_remove("DOCKER_HOST")
}

fn events_of_node(site: &Site) -> String {
    let genesis: Value = serde_json::from_str(site.dump(&[]).stdout.lines().next().unwrap()).unwrap();
    genesis["detail"]["log_id"].as_str().unwrap().to_owned()
}
