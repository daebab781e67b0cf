//! The viewer's model beside the agent's: folding the same events must give, as of every seq, the summaries that
//! `GET /api/jobs` serves. Needs `node`, and says so where it is not there. `SEED` repeats a run.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::print_stdout, missing_docs)]

mod agent;
mod lives;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::Arc;

use agent::{Ended, Site};
use hackbrain::engine::fold;
use hackbrain::hash::Hash;
use hackbrain::ledger::fact::Fact;
use hackbrain::ledger::lifecycle::{Command, Job, Ledger};
use hackbrain::ledger::time::Time;
use hackbrain::manifest;
use hackbrain::sys::block::Caching;
use hackbrain::verify::wal_dir;
use hackbrain::wal::recovery::Record;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use lives::{Fault, Lives, manifest_text};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What the page of jobs has of a job: the handler writes just these bytes.
fn summary(job: &Job) -> Value {
    serde_json::to_value(job.summary()).unwrap()
}

/// Appends a ledger to what `node` reads: each event with the summary that its job had then. Returns the ledger as it ends.
fn write_ledger(out: &mut impl Write, name: &str, events: &[Vec<u8>]) -> Ledger {
    writeln!(out, "{}", serde_json::json!({ "ledger": name })).unwrap();
    let (mut ledger, mut prev) = (Ledger::default(), Hash::ZERO);
    for (seq, bytes) in (1..).zip(events) {
        let hash = Hash::of(bytes);
        let record = Record { seq, bytes, hash: hash.0 };
        let job = fold(&mut ledger, &record, &prev, Fact::parse(bytes)).unwrap();
        prev = hash;
        out.write_all(b"{\"event\":").unwrap();
        out.write_all(bytes).unwrap();
        writeln!(out, ",\"summary\":{}}}", job.map_or(Value::Null, |job| summary(&job))).unwrap();
    }
    ledger
}

/// Events of many jobs at once, some of which wait for others.
fn random_ledger(seed: u64, events_min: usize) -> Vec<Vec<u8>> {
    let mut lives = Lives::new(seed);
    let (mut events, mut prev, mut clock) = (Vec::<Vec<u8>>::new(), Hash::ZERO, 1_795_421_387_000_000);
    let mut ids: Vec<Arc<str>> = Vec::new();
    let mut waiting = VecDeque::from([lives.genesis(), lives.node_up("none")]);
    while events.len() < events_min {
        // Several commands may have one time; what is decided at once always has.
        clock += [0, 1, 1_000, 2_000_000, 3_600_000_000][lives.random.below(5) as usize];
        let command = match waiting.pop_front() {
            Some(command) => Some(command),
            None => next(&mut lives, &mut ids, &mut waiting),
        };
        let Some(command) = command else { continue };
        let mut append = |event: &hackbrain::ledger::event::Event| -> Result<Vec<u8>, Fault> {
            let mut bytes = Vec::new();
            event.write(events.len() as u64 + 1, &prev, &mut bytes);
            prev = Hash::of(&bytes);
            events.push(bytes.clone());
            Ok(bytes)
        };
        lives.run(command, Time(clock), &mut append).unwrap();
    }
    events
}

fn next(lives: &mut Lives, ids: &mut Vec<Arc<str>>, waiting: &mut VecDeque<Command>) -> Option<Command> {
    let chance = lives.random.below(1000);
    if chance < 5 {
        let last_run = if chance < 3 {
            waiting.push_back(lives.node_down());
            "clean"
        } else {
            "killed"
        };
        waiting.push_back(lives.node_up(last_run));
        return waiting.pop_front();
    }
    if ids.is_empty() || chance < 60 {
        let count = if lives.random.percent(20) { 1 + lives.random.below(5) } else { 1 };
        let batch: Vec<_> = (0..count).map(|_| submission(lives, ids)).collect();
        return Some(Command::SubmitAll(batch));
    }
    // Of late jobs rather than of early ones, so that some end while others come.
    let back = lives.random.below(30).min(ids.len() as u64 - 1) as usize;
    let job = lives.ledger.job(&ids[ids.len() - 1 - back])?.clone();
    if job.waits_for_parents() && lives.random.percent(50) {
        return Some(Command::FailByDependency(job.job_id.clone(), job.seq));
    }
    lives.next(&job, back > 5)
}

fn submission(lives: &mut Lives, ids: &mut Vec<Arc<str>>) -> manifest::Parsed {
    let mut parents: Vec<Arc<str>> = Vec::new();
    while !ids.is_empty() && lives.random.percent(25) {
        parents.push(ids[ids.len() - 1 - lives.random.below(ids.len().min(12) as u64) as usize].clone());
    }
    parents.sort();
    parents.dedup();
    let parents: Vec<&str> = parents.iter().map(|parent| &**parent).collect();
    let id = format!("{}.{:03}", lives.random.one_of(&["m", "a", "Z", "9"]), ids.len());
    let image = lives.random.one_of(&["busybox:latest", "python:3.9-slim"]);
    let parsed = manifest::parse(manifest_text(&id, image, &parents).as_bytes()).unwrap();
    ids.push(id.into());
    parsed
}

/// The events of the golden ledgers, as `dump` prints them.
fn golden() -> Vec<(String, PathBuf)> {
    let versions = fs::read_dir(root().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = versions.map(|dir| dir.join("ledger")).filter(|dir| dir.is_dir()).collect();
    found.sort();
    assert!(!found.is_empty());
    found.into_iter().map(|dir| (dir.strip_prefix(root()).unwrap().display().to_string(), dir)).collect()
}

fn has_node() -> bool {
    let is_missing = |error: std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    if !Process::new("node").arg("--version").output().is_err_and(is_missing) {
        return true;
    }
    eprintln!("SKIPPED: `node` is not there, so the viewer's model was not compared: install Debian's package nodejs");
    false
}

/// What a real agent on these events serves of the jobs that it has left as they were.
fn assert_served(site: &Site, name: &str, ledger: &Ledger, head: u64) {
    let agent = site.start_command(site.serve(&[]).env("DOCKER_HOST", format!("unix://{}/none", site.dir().display())));
    let page = agent.get("/api/jobs?limit=1000").json();
    let served = page["jobs"].as_array().unwrap();
    let ours: Vec<Value> = ledger.jobs().iter().rev().map(|job| summary(job)).collect();
    assert_eq!(served.len(), ours.len(), "{name}");
    let mut same = 0;
    for (served, ours) in served.iter().zip(&ours) {
        assert_eq!(served["job_id"], ours["job_id"], "{name}: order");
        if served["seq"].as_u64().unwrap() <= head {
            assert_eq!(served, ours, "{name}");
            same += 1;
        }
    }
    assert!(same * 2 > ours.len(), "{name}: {same} of {} jobs are as they were", ours.len());
}

#[test]
fn folding_the_events_gives_what_the_agent_serves_as_of_every_seq() {
    if !has_node() {
        return;
    }
    let seed: u64 = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_127);
    println!("SEED={seed}");
    let site = Site::new("viewer-model");
    let file = site.dir().join("replay.jsonl");
    let mut count = 0;
    let mut out = BufWriter::new(fs::File::create(&file).unwrap());
    for (name, dir) in golden() {
        let site = Site::new("viewer-golden");
        let wal = wal_dir(&site.data());
        fs::create_dir_all(&wal).unwrap();
        for entry in fs::read_dir(dir.join("wal")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), wal.join(entry.file_name())).unwrap();
        }
        let events: Vec<Vec<u8>> = site.dump(&[]).stdout.lines().map(|line| line.as_bytes().to_vec()).collect();
        assert!(events.len() > 10);
        count += events.len();
        let ledger = write_ledger(&mut out, &name, &events);
        assert_served(&site, &name, &ledger, events.len() as u64);
    }
    for seed in seed..seed + 4 {
        let events = random_ledger(seed, 1000);
        count += events.len();
        let name = format!("SEED={seed}");
        let ledger = write_ledger(&mut out, &name, &events);
        let site = Site::new("viewer-random");
        let storage = Directory::open(&wal_dir(&site.data()), Caching::Buffered).unwrap();
        let (wal, _) = Wal::open(Arc::new(storage), Options::new(4 << 20), &mut |_| Ok(()), Box::new(|_| {})).unwrap();
        for event in &events {
            wal.append(|_, _, out| out.extend_from_slice(event)).unwrap();
        }
        wal.wait(events.len() as u64).unwrap();
        wal.close();
        assert_served(&site, &name, &ledger, events.len() as u64);
    }
    out.into_inner().unwrap().sync_all().unwrap();
    let ended = Ended::of(Process::new("node").arg(root().join("tests/viewer/replay_check.js")).arg(&file));
    assert_eq!(ended.code, Some(0), "SEED={seed}: {}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.stdout, format!("checked {count} events\n"));
}
