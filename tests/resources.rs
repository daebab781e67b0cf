//! What an attempt gets of CPUs, memory, processes and GPUs: what is refused, where and in which words, and what is in force
//! in real containers. There is no GPU here: of those, only the refusals and what reaches the engine.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use agent::{Agent, Site, eventually, job_id, manifest};
use hackbrain::manifest::Network;
use hackbrain::runner::docker::{Docker, Inspect, RunSpec, Verdict, verdict};
use hackbrain::runner::outage::Evidence;
use hackbrain::runner::output::{OutputFiles, OutputPaths};
use serde_json::{Value, json};

/// What the payload's own control group says, in the words of either version: memory, swap on top of it, processes, CPU.
const SEES: &str = "cd /sys/fs/cgroup; if [ -e cgroup.controllers ]; then
    echo memory $(cat memory.max) swap $(cat memory.swap.max) pids $(cat pids.max) cpu $(cat cpu.max); else
    m=$(cat memory/memory.limit_in_bytes); s=$(cat memory/memory.memsw.limit_in_bytes)
    echo memory $m swap $((s - m)) pids $(cat pids/pids.max) cpu $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi";

fn with(id: &str, command: &[&str], resources: Value) -> Value {
    let mut job = manifest(id, command);
    job["resources"] = resources;
    job
}

fn limits(agent: &Agent) -> Value {
    agent.get("/api/node").json()["limits"].clone()
}

fn stdout(agent: &Agent, id: &str) -> String {
    agent.get(&format!("/api/jobs/{id}/stdout")).text()
}

fn last(agent: &Agent, id: &str, state: &str) -> Value {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    events.into_iter().rfind(|event| event["state"] == state).unwrap_or_else(|| panic!("no {state} in {text}"))
}

#[test]
fn what_cannot_be_had_is_refused_at_submission() {
    let site = Site::new("resources-refused");
    let agent = site.start(&[]);
    let pid_max: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    let host = limits(&agent);
    let cpus = host["cpus"].as_u64().unwrap();
    let memory = host["memory_mib"].as_u64().unwrap();
    eventually("NODE_UP is recorded", || (agent.get("/readyz").status == 200).then_some(()));
    let before = agent.get("/api/ledger/head").json();
    let refused = |agent: &Agent, resources: Value, code: &str, says: &str| {
        let field = format!("resources.{}", resources.as_object().unwrap().keys().next().unwrap());
        let answer = agent.submit(&with(&job_id("refused"), &["true"], resources.clone()));
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["code"].as_str(), error["field"].as_str()), (400, Some(code), Some(&*field)));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{resources}: {message}");
    };
    let exceeds = "resources_exceed_host";
    for (resources, code, says) in [
        (json!({ "cpus": cpus as f64 + 0.001 }), exceeds, format!("this host has {cpus}")),
        (json!({ "memory_mib": memory + 1 }), exceeds, format!("this host has {memory}")),
        (json!({ "pids": pid_max + 1 }), exceeds, format!("this host has {pid_max}")),
        (json!({ "pids": 1 }), "invalid_value", "ask for 2 or more".into()),
        (
            json!({ "gpus": 1 }),
            "no_gpus",
            "1 GPU was asked for; the container engine here has no NVIDIA runtime".into(),
        ),
        (json!({ "gpus": 3 }), "no_gpus", "3 GPUs were".into()),
    ] {
        refused(&agent, resources, code, &says);
    }
    assert_eq!(agent.get("/api/ledger/head").json(), before, "a refusal is no event");
    assert_eq!((&host["max_pids"], &host["max_gpus"]), (&pid_max.into(), &Value::Null));
    assert_eq!(agent.get("/api/node").json()["engine"]["nvidia"], false);
    // All there is, and no GPU, is no contradiction.
    let id = job_id("all");
    let most = json!({ "cpus": cpus, "memory_mib": memory, "pids": pid_max, "gpus": 0 });
    agent.accepted(&with(&id, &["true"], most));
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    drop(agent);

    let flags = ["--max-cpus", "1.5", "--max-memory-mib", "64", "--max-pids", "50", "--max-gpus", "0"];
    let agent = site.start(&flags);
    let exceeds = "resources_exceed_limit";
    for (resources, code, says) in [
        (json!({ "cpus": 1.6 }), exceeds, "at most 1.5 (--max-cpus)"),
        (json!({ "cpus": 4096 }), exceeds, "at most 1.5 (--max-cpus)"),
        (json!({ "memory_mib": 65 }), exceeds, "at most 64 (--max-memory-mib)"),
        (json!({ "pids": 51 }), exceeds, "at most 50 (--max-pids)"),
        (json!({ "gpus": 1 }), exceeds, "at most 0 (--max-gpus)"),
    ] {
        refused(&agent, resources, code, says);
    }
}

#[test]
fn gpus_are_refused_at_scheduling_where_the_engine_was_away() {
    let site = Site::new("gpus-later");
    let nowhere = format!("unix://{}", site.dir().join("no.sock").display());
    let agent = site.start_command(site.serve(&[]).env("DOCKER_HOST", nowhere));
    let (with_gpu, without) = (job_id("gpu"), job_id("no-gpu"));
    // Nobody knows yet what the engine can give.
    agent.accepted(&with(&with_gpu, &["true"], json!({ "gpus": 1 })));
    agent.accepted(&with(&without, &["true"], json!({ "gpus": 0 })));
    agent.kill();
    let agent = site.start(&[]);
    let summary = agent.ended(&with_gpu);
    assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("FAILED"), Some(0)), "{summary}");
    assert_eq!(summary["reason"], "resources");
    let message = last(&agent, &with_gpu, "FAILED")["detail"]["message"].clone();
    assert!(message.as_str().unwrap().contains("no NVIDIA runtime"), "{message}");
    assert_eq!(agent.ended(&without)["state"], "SEALED");
}

#[test]
fn gpus_reach_the_engine_and_its_words_come_back() {
    let site = Site::new("gpus-engine");
    let docker = Docker::from_env();
    if docker.info().unwrap().nvidia {
        // The payload would run; what it may reach is the driver's affair.
        return;
    }
    let paths = OutputPaths::new(&site.dir().join("logs"), 1);
    let files = OutputFiles::create(&paths).unwrap();
    let spec = RunSpec {
        container: format!("hb-{}", job_id("gpus")),
        labels: BTreeMap::new(),
        image_id: docker.resolve_image("busybox:latest").unwrap().unwrap(),
        command: vec!["true".into()],
        binds: Vec::new(),
        workdir: "/".into(),
        user: (4242, 4242),
        env: BTreeMap::new(),
        cpus: 1.0,
        memory_mib: 64,
        swap_limit: true,
        pids: 64,
        gpus: 1,
        network: Network::None,
        cgroup_parent: None,
        cidfile: None,
    };
    docker.spawn_run(&spec, files.stdout, files.stderr).unwrap().wait().unwrap();
    let found = docker.inspect(&spec.container).unwrap();
    docker.remove(&spec.container, true).unwrap();
    let Inspect::Present(state) = found else { panic!("it is not even created: {found:?}") };
    let Verdict::Failed { reason, .. } = verdict(&state, None, "b", "b", Evidence::default()) else {
        panic!("{state:?}")
    };
    assert!(reason.starts_with("not started: could not select device driver"), "{reason}");
}

#[test]
fn flags_that_contradict_something_end_the_agent_with_words() {
    let site = Site::new("resource-flags");
    for (args, says) in [
        (vec!["--default-memory-mib", "5"], "--default-memory-mib is 5; an attempt can have from 6"),
        (vec!["--default-memory-mib", "64", "--max-memory-mib", "32"], "and --max-memory-mib is 32"),
        (vec!["--default-memory-mib", "1073741824"], "this host has"),
        (vec!["--default-cpus", "0"], "--default-cpus is 0; an attempt can have from 0.01"),
        (vec!["--default-cpus", "60000"], "this host has"),
        (vec!["--default-cpus", "0.5", "--max-cpus", "0.25"], "--default-cpus is 0.5, and --max-cpus is 0.25"),
        (vec!["--max-cpus", "nan"], "--max-cpus is NaN"),
        (vec!["--default-pids", "1"], "--default-pids is 1; an attempt can have from 2"),
        (vec!["--default-pids", "4194304"], "this host has"),
        (vec!["--max-pids", "0"], "--max-pids is 0"),
        (vec!["--max-gpus", "one"], "--max-gpus"),
        (vec!["--max-memory-mib", "64M"], "--max-memory-mib"),
    ] {
        let ended = site.refused(&args);
        assert_eq!(ended.code, Some(64), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{args:?}: {}", ended.stderr);
        assert!(!site.data().exists(), "{args:?}: nothing is touched");
    }
}

#[test]
fn flags_and_variables_are_told_and_are_in_force() {
    let site = Site::new("resource-defaults");
    let mut serve = site.serve(&["--default-cpus", "0.5", "--max-cpus", "1", "--default-memory-mib", "48"]);
    let agent = site.start_command(serve.envs([
        ("HACKBRAIN_DEFAULT_PIDS", "40"),
        ("HACKBRAIN_MAX_PIDS", "100"),
        ("HACKBRAIN_MAX_MEMORY_MIB", "96"),
        ("HACKBRAIN_MAX_GPUS", "4"),
        // The flag goes before.
        ("HACKBRAIN_DEFAULT_CPUS", "0.75"),
    ]));
    let told = limits(&agent);
    for (name, value) in [
        ("default_cpus", 0.5.into()),
        ("default_memory_mib", 48.into()),
        ("default_pids", 40.into()),
        ("max_cpus", 1.0.into()),
        ("max_memory_mib", 96.into()),
        ("max_pids", 100.into()),
        ("max_gpus", Value::from(4)),
    ] {
        assert_eq!(told[name], value, "{name} in {told}");
    }
    let (by_default, asked) = (job_id("default"), job_id("asked"));
    agent.accepted(&manifest(&by_default, &["sh", "-c", SEES]));
    agent.accepted(&with(&asked, &["sh", "-c", SEES], json!({ "cpus": 1, "memory_mib": 96, "pids": 100 })));
    for (id, expected) in [
        (&by_default, "memory 50331648 swap 0 pids 40 cpu 50000 100000\n"),
        (&asked, "memory 100663296 swap 0 pids 100 cpu 100000 100000\n"),
    ] {
        assert_eq!(agent.ended(id)["state"], "SEALED");
        assert_eq!(stdout(&agent, id), expected);
    }
}

#[test]
fn what_was_accepted_runs_whatever_the_flags_are_later() {
    let site = Site::new("resource-earlier");
    let nowhere = format!("unix://{}", site.dir().join("no.sock").display());
    let agent = site.start_command(site.serve(&[]).env("DOCKER_HOST", nowhere));
    let (asked, by_default) = (job_id("asked"), job_id("default"));
    let job = with(&asked, &["sh", "-c", SEES], json!({ "cpus": 1, "memory_mib": 128, "pids": 100 }));
    agent.accepted(&job);
    agent.accepted(&manifest(&by_default, &["sh", "-c", SEES]));
    agent.kill();
    let agent =
        site.start(&["--max-cpus", "0.5", "--max-memory-mib", "64", "--max-pids", "30", "--default-pids", "20"]);
    assert_eq!(agent.ended(&asked)["state"], "SEALED");
    assert_eq!(stdout(&agent, &asked), "memory 134217728 swap 0 pids 100 cpu 100000 100000\n");
    // It named nothing, and gets what a job gets now that names nothing; built-in defaults stay below the ceilings.
    assert_eq!(agent.ended(&by_default)["state"], "SEALED");
    assert_eq!(stdout(&agent, &by_default), "memory 67108864 swap 0 pids 20 cpu 50000 100000\n");
    assert_eq!(agent.accepted(&job)["duplicate"], true, "a repetition is answered from the ledger");
    let mut other = job.clone();
    other["job_id"] = job_id("asked-later").into();
    assert_eq!(agent.submit(&other).json()["error"]["code"], "resources_exceed_limit");
}

/// A python job in a directory of its own.
fn python(site: &Site, id: &str, program: &str, resources: Value) -> (Value, std::path::PathBuf) {
    let dir = site.mountable(id);
    let mut job = with(id, &["python", "-c", program], resources);
    job["image_hash"] = "python:3.9-slim".into();
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn is_there(path: &Path) -> Option<()> {
    path.exists().then_some(())
}

#[test]
fn a_fork_bomb_is_contained_and_everybody_else_goes_on() {
    let site = Site::new("bomb");
    let mut agent = site.start(&["--workers", "2"]);
    let id = job_id("bomb");
    // Every process forks as long as it may, until told to stop.
    let program = "import os, time\n\
        while not os.path.exists('stop'):\n\
        \x20   try: os.fork()\n\
        \x20   except OSError:\n\
        \x20       open('full', 'w').close()\n\
        \x20       time.sleep(0.05)\n";
    let (job, dir) = python(&site, &id, program, json!({ "pids": 24, "memory_mib": 512, "cpus": 1 }));
    agent.accepted(&job);
    eventually("the bomb has all the processes it can get", || is_there(&dir.join("full")));
    let other = job_id("beside");
    agent.accepted(&manifest(&other, &["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 0.01 & done; wait; echo well"]));
    assert_eq!(agent.ended(&other)["state"], "SEALED");
    assert_eq!(stdout(&agent, &other), "well\n");
    let bomb = agent.get(&format!("/api/jobs/{id}")).json();
    assert_eq!(bomb["phase"], "active", "it still goes on: {bomb}");
    assert!(agent.is_running());
    fs::write(dir.join("stop"), "").unwrap();
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    let usage = last(&agent, &id, "COMPLETED")["detail"]["usage"].clone();
    let peak = usage["pids_peak"].as_u64().unwrap();
    assert!((20..=24).contains(&peak), "{usage}");
}

#[test]
fn cpu_and_memory_limits_are_in_force() {
    let site = Site::new("in-force");
    let agent = site.start(&["--workers", "2"]);
    let (throttled, hungry, full) = (job_id("throttled"), job_id("hungry"), job_id("tmp-full"));
    // The kernel itself counts how often it made the payload wait for its next period.
    let busy = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass\n\
        import os\nv2 = '/sys/fs/cgroup/cpu.stat'\n\
        print([l for l in open(v2 if os.path.exists(v2) else '/sys/fs/cgroup/cpu/cpu.stat') if l.startswith('nr_throttled')][0])";
    agent.accepted(&python(&site, &throttled, busy, json!({ "cpus": 0.1 })).0);
    // More than its memory, and no swap to go to.
    let eats = "b = bytearray(200 << 20)\nfor i in range(0, len(b), 4096): b[i] = 1\n";
    let mut job = python(&site, &hungry, eats, json!({ "memory_mib": 64 })).0;
    job["max_attempts"] = 1.into();
    agent.accepted(&job);
    // /tmp holds half of it, and is full before memory is.
    let fills = "head -c 60000000 /dev/zero > /tmp/x; ls -l /tmp/x | tr -s ' ' | cut -d' ' -f5";
    agent.accepted(&with(&full, &["sh", "-c", fills], json!({ "memory_mib": 64 })));

    assert_eq!(agent.ended(&throttled)["state"], "SEALED");
    let text = stdout(&agent, &throttled);
    let times: u64 = text.trim().strip_prefix("nr_throttled ").unwrap().parse().unwrap();
    assert!(times >= 3, "{text}");
    let summary = agent.ended(&hungry);
    assert_eq!((summary["state"].as_str(), summary["exit_code"].as_i64()), (Some("FAILED"), Some(137)), "{summary}");
    let peak = last(&agent, &hungry, "CRASH")["detail"]["usage"]["memory_peak_bytes"].as_u64().unwrap();
    // Counted one level above the limit, where a few pages of the group itself come on top.
    assert!((32 << 20..65 << 20).contains(&peak), "{peak}");
    assert_eq!(agent.ended(&full)["state"], "SEALED");
    assert_eq!(stdout(&agent, &full), format!("{}\n", 32 << 20));
}

#[test]
fn the_engine_holds_the_same_limits() {
    let site = Site::new("inspected");
    let agent = site.start(&[]);
    let id = job_id("inspected");
    let (job, dir) = python(
        &site,
        &id,
        "import os, time\nopen('up', 'w').close()\nwhile not os.path.exists('stop'): time.sleep(0.05)\n",
        json!({ "cpus": 0.25, "memory_mib": 80, "pids": 30 }),
    );
    agent.accepted(&job);
    eventually("it runs", || is_there(&dir.join("up")));
    let format = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.PidsLimit}}";
    let output = Command::new("docker").args(["inspect", "--format", format, &format!("hb-{id}-1")]).output().unwrap();
    fs::write(dir.join("stop"), "").unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "250000000 83886080 83886080 30");
    assert_eq!(agent.ended(&id)["state"], "SEALED");
}
