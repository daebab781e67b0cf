//! The agent dies exactly at each named point between the intent to run an attempt and its seal, and a bit around it; the next
//! agent brings the job to its end as if nothing had been. Only a debug build has the points (`src/sys/kill_point.rs`).
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use agent::{Agent, Site, debug_build, eventually, job_id, manifest};
use serde_json::{Value, json};

/// Steps of the payload; each prints a marker and all byte values on both streams.
const STEPS: u64 = 10;
/// Cases at a time.
const LANES: usize = 3;
/// Counts its starts, keeps a copy of what it prints, ends with 40 kB that no newline ends. Told to, its first start kills it.
const PAYLOAD: &str = "
import os,sys,time
open('starts','a').write('start\\n')
n=len(open('starts').readlines())
open('copy','a').write(''.join(open('/job/in/'+name).read() for name in ('one','two')))
copies=[open('%s.%d'%(s,n),'wb') for s in ('stdout','stderr')]
def put(data):
    for stream,copy in zip((sys.stdout.buffer,sys.stderr.buffer),copies):
        copy.write(data);copy.flush();stream.write(data);stream.flush()
for step in range(10):
    put(b'[D1_STABLE] step=%d\\n'%step+bytes(range(256))+b'\\n')
    time.sleep(0.04)
if n==1 and 'CRASH' in os.environ: os.kill(os.getpid(),9)
put(b'q'*40000)
";

struct Case {
    /// `POINT` or `POINT:N`.
    point: String,
    /// Whether the payload's first attempt is killed, too.
    crashes: bool,
    /// Whether the CLI dies with the agent, so many milliseconds later.
    cli_dies_ms: Option<u64>,
}

fn case(point: impl Into<String>, crashes: bool, cli_dies_ms: Option<u64>) -> Case {
    Case { point: point.into(), crashes, cli_dies_ms }
}

/// Every point that the source names.
fn points(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            points(&path, found);
        } else {
            let text = fs::read_to_string(&path).unwrap();
            found.extend(
                text.split("kill_point::reached(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
            );
        }
    }
}

#[test]
fn the_agent_dies_at_every_named_point_and_the_job_ends_as_if_nothing_had_been() {
    let mut all = BTreeSet::new();
    points(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    // No agent comes by those: tests/backup.rs.
    all.retain(|point| !point.starts_with("backup-"));
    assert!(all.len() > 20, "{all:?}");
    let mut cases: Vec<Case> = all.iter().map(|point| case(point, false, None)).collect();
    // The later times at which a point is reached: the seal's two files, a marker in the middle, the second attempt.
    for point in ["before-rename:2", "before-rename:3", "file-copied:2", "marker-durable:5"] {
        cases.push(case(point, false, None));
    }
    for point in [
        "end-durable",
        "intent-durable:2",
        "cli-spawned:2",
        "marked-output-durable:9",
        "marker-durable:12",
        "output-settled:2",
    ] {
        cases.push(case(point, true, None));
    }
    // The CLI before it asked, around the creation, around the start, and while it copies output.
    for cli_dies_ms in [0, 10, 20, 30, 45, 70, 120] {
        cases.push(case("cli-spawned", false, Some(cli_dies_ms)));
    }
    cases.push(case("marker-durable:4", false, Some(0)));
    cases.push(case("marker-durable:11", true, Some(0)));

    let queue = Mutex::new(cases);
    thread::scope(|scope| {
        for _ in 0..LANES {
            scope.spawn(|| {
                loop {
                    let Some(next) = queue.lock().unwrap().pop() else { break };
                    let id = job_id(&next.point.replace(':', "."));
                    play(&next, &id);
                }
            });
        }
    });
}

fn play(case: &Case, id: &str) {
    let site = Site::new(id);
    let dir = site.mountable("work");
    let mut job = manifest(id, &["python", "-c", PAYLOAD]);
    job["image_hash"] = "python:3.9-slim".into();
    // It mounts what another has sealed, too, so that it comes by the points of that.
    let parent = job_id("parent");
    let before = site.start(&[]);
    before.accepted(&manifest(&parent, &["sh", "-c", "echo one > one; echo two > two"]));
    assert_eq!(before.ended(&parent)["state"], "SEALED");
    assert_eq!(before.terminate(), Some(0));
    job["mount_spec"] = json!([format!("{}:/job/workdir", dir.display()), format!("job:{parent}:/job/in")]);
    if case.crashes {
        job["env"] = json!({ "CRASH": "1" });
    }
    let told = format!("{} crashes={} cli={:?}", case.point, case.crashes, case.cli_dies_ms);

    let mut first = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", &case.point));
    // At the first points it may die before it has answered; then the same is submitted once more, and is the same job.
    let receipt = first.try_submit(&job);
    assert_eq!(first.wait().signal(), Some(9), "{told}: the point is reached");
    if let Some(wait_ms) = case.cli_dies_ms {
        thread::sleep(Duration::from_millis(wait_ms));
        kill_cli(id);
    }

    let agent = site.start(&[]);
    let receipt = receipt.unwrap_or_else(|| agent.accepted(&job));
    let summary = agent.ended(id);
    let attempts = if case.crashes { 2 } else { 1 };
    assert_eq!((&summary["state"], &summary["attempt"]), (&json!("SEALED"), &json!(attempts)), "{told}: {summary}");
    let starts = fs::read_to_string(dir.join("starts")).unwrap().lines().count();
    assert_eq!(starts, attempts, "{told}: once for each attempt");
    check_output(&agent, id, &dir, attempts, &told);
    check_markers(&agent, id, attempts, &told);
    let copy = fs::read_to_string(dir.join("copy")).unwrap();
    assert_eq!(copy, "one\ntwo\n".repeat(attempts), "{told}: what the parent has sealed");
    let seal = agent.get(&format!("/api/jobs/{id}/seal"));
    assert_eq!(seal.status, 200, "{told}: {}", seal.text());

    // What is cleaned up behind an end is nobody's to wait for but a test's.
    eventually("the attempts are cleaned up", || {
        let left =
            site.left_behind().into_iter().filter(|what| !what.starts_with("hackbrain/pin") && !is_empty_group(what));
        (left.count() == 0).then_some(())
    });
    assert_eq!(agent.terminate(), Some(0), "{told}");
    assert_eq!(site.left_behind(), Vec::<String>::new(), "{told}");
    let expect = format!("--expect={}:{}", receipt["seq"], receipt["hash"].as_str().unwrap());
    let verified = site.verify(&[&expect]);
    assert_eq!(verified.code, Some(0), "{told}: {verified:?}");
}

/// A ledger's own control group goes with its agent, once those of its attempts are gone.
fn is_empty_group(what: &str) -> bool {
    let holds = |entry: fs::DirEntry| entry.path().is_dir();
    what.contains("cgroup") && !fs::read_dir(what).into_iter().flatten().flatten().any(holds)
}

fn check_output(agent: &Agent, id: &str, dir: &Path, attempts: usize, told: &str) {
    for attempt in 1..=attempts {
        for stream in ["stdout", "stderr"] {
            let stored = agent.get(&format!("/api/jobs/{id}/{stream}?attempt={attempt}")).body;
            let printed = fs::read(dir.join(format!("{stream}.{attempt}"))).unwrap();
            assert!(
                stored == printed,
                "{told}: {stream} of attempt {attempt}: {} bytes stored, {} printed",
                stored.len(),
                printed.len()
            );
        }
    }
}

/// Neither lost nor doubled: on each stream the counts add up, and the last one is an event.
fn check_markers(agent: &Agent, id: &str, attempts: usize, told: &str) {
    let trace = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let mut counts: BTreeMap<(u64, String), (u64, u64)> = BTreeMap::new();
    for event in trace.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if event["state"] == "D1_STABLE" {
            let detail = &event["detail"];
            let key = (event["attempt"].as_u64().unwrap(), detail["stream"].as_str().unwrap().to_owned());
            let (count, last) = counts.entry(key).or_default();
            *count += detail["count"].as_u64().unwrap();
            assert!(*last <= detail["offset"].as_u64().unwrap(), "{told}: a marker comes before an earlier one");
            *last = detail["offset"].as_u64().unwrap();
            if *count == STEPS {
                assert_eq!(detail["line"], format!("[D1_STABLE] step={}", STEPS - 1), "{told}");
            }
        }
    }
    assert_eq!(counts.len(), 2 * attempts, "{told}: {trace}");
    assert!(counts.values().all(|(count, _)| *count == STEPS), "{told}: {counts:?}");
}

/// Kills the CLI that runs a job's latest attempt, if it lives. It is found by what only its command line holds.
fn kill_cli(id: &str) {
    let name = format!("--name=hb-{id}-");
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|b| *b == 0).any(|part| part.starts_with(name.as_bytes())) {
            let pid = entry.file_name().into_string().unwrap();
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
    }
}
