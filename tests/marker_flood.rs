//! Payloads that print D1_STABLE markers faster than the ledger takes events: at most twenty a second of an attempt, none
//! uncounted, the last one always there; and output that is no text.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::path::Path;

use agent::{Agent, Site, eventually, job_id, manifest};
use hackbrain::hash::Hash;
use hackbrain::ledger::time::Time;
use serde_json::Value;

/// Events per second that an attempt may make, both streams together.
const PER_S: usize = 20;
/// What an agent may take beyond what it took before the flood, KiB: a few buffers, and nothing that grows with the output.
const GROWTH_KIB_MAX: u64 = 24 << 10;

fn shell(site: &Site, id: &str, line: &str) -> (Value, std::path::PathBuf) {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["sh", "-c", &format!("echo start >> starts; {line}")]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

fn starts(dir: &Path) -> usize {
    fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count()
}

fn trace(agent: &Agent, id: &str) -> Vec<Value> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

struct Mark {
    attempt: u64,
    /// Microseconds.
    time: u64,
    stream: String,
    offset: u64,
    count: u64,
    line: String,
}

fn marks(events: &[Value]) -> Vec<Mark> {
    let of = |event: &Value| {
        let detail = &event["detail"];
        Mark {
            attempt: event["attempt"].as_u64().unwrap(),
            time: Time::parse(event["time"].as_str().unwrap()).unwrap().0,
            stream: detail["stream"].as_str().unwrap().to_owned(),
            offset: detail["offset"].as_u64().unwrap(),
            count: detail["count"].as_u64().unwrap(),
            line: detail["line"].as_str().unwrap().to_owned(),
        }
    };
    events.iter().filter(|event| event["state"] == "D1_STABLE").map(of).collect()
}

fn count_of(marks: &[Mark], stream: &str) -> u64 {
    marks.iter().filter(|mark| mark.stream == stream).map(|mark| mark.count).sum()
}

fn last_of<'m>(marks: &'m [Mark], stream: &str) -> &'m Mark {
    marks.iter().rfind(|mark| mark.stream == stream).unwrap_or_else(|| panic!("no marker of {stream}"))
}

/// Marks of one attempt under one agent, and of its end: the last of each stream may come at once.
fn keep_the_pace(marks: &[Mark], is_end: bool) {
    let paced = if is_end { &marks[..marks.len() - marks.len().min(2)] } else { marks };
    for window in paced.windows(PER_S + 1) {
        let span = window[PER_S].time - window[0].time;
        assert!(span >= 1_000_000, "{} events in {span} microseconds", PER_S + 1);
    }
}

#[test]
fn a_million_markers_as_fast_as_they_can_be_printed() {
    let site = Site::new("million");
    let agent = site.start(&[]);
    // Once, so that its threads and buffers are there.
    let warm = job_id("warm");
    agent.accepted(&manifest(&warm, &["echo", "[D1_STABLE] warm"]));
    agent.ended(&warm);
    let before = agent.memory_kib("VmHWM");
    let id = job_id("million");
    let (job, dir) = shell(
        &site,
        &id,
        "yes '[D1_STABLE] err' | head -n 499999 >&2 & yes '[D1_STABLE] out' | head -n 499999; wait; \
         echo '[D1_STABLE] last out'; echo '[D1_STABLE] last err' >&2",
    );
    agent.accepted(&job);
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), starts(&dir)), (Some("SEALED"), 1), "{summary}");
    let marks = marks(&trace(&agent, &id));
    for (stream, last) in [("stdout", "[D1_STABLE] last out"), ("stderr", "[D1_STABLE] last err")] {
        assert_eq!(count_of(&marks, stream), 500_000, "{stream}");
        let found = last_of(&marks, stream);
        assert_eq!((found.line.as_str(), found.offset), (last, 499_999 * 16), "{stream}");
    }
    keep_the_pace(&marks, true);
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < GROWTH_KIB_MAX, "the agent grew by {grown} KiB");
}

#[test]
fn a_flood_that_outlives_two_agents_is_counted_to_the_last_marker() {
    let site = Site::new("outlives");
    let mut agent = site.start(&[]);
    let id = job_id("outlives");
    // Each burst waits for its word, so that agents can be killed in the middle.
    let (job, dir) = shell(
        &site,
        &id,
        "n=0; while [ $n -lt 5 ]; do yes \"[D1_STABLE] $n\" | head -n 100000 >&2 & yes \"[D1_STABLE] $n\" | head -n 100000; \
         wait; touch at$n; while [ ! -e go$n ]; do sleep 0.02; done; n=$((n + 1)); done",
    );
    agent.accepted(&job);
    for n in 0..5 {
        eventually(&format!("burst {n}"), || dir.join(format!("at{n}")).exists().then_some(()));
        // In the middle of counting this burst, or of the next.
        if n == 1 {
            agent.kill();
            agent = site.start(&[]);
            // It has taken the attempt up before it is killed, too.
            eventually("the second agent counts", || (agent.get("/readyz").status == 200).then_some(()));
        }
        fs::write(dir.join(format!("go{n}")), "").unwrap();
        if n == 2 {
            agent.kill();
            agent = site.start(&[]);
        }
        assert!(agent.memory_kib("VmRSS") < 96 << 10, "{} KiB", agent.memory_kib("VmRSS"));
    }
    let summary = agent.ended(&id);
    assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("SEALED"), Some(1)), "{summary}");
    assert_eq!(starts(&dir), 1);
    let marks = marks(&trace(&agent, &id));
    for stream in ["stdout", "stderr"] {
        assert_eq!(count_of(&marks, stream), 500_000, "{stream}");
        let found = last_of(&marks, stream);
        assert_eq!((found.line.as_str(), found.offset), ("[D1_STABLE] 4", 499_999 * 14), "{stream}");
        let mine: Vec<u64> = marks.iter().filter(|mark| mark.stream == stream).map(|mark| mark.offset).collect();
        assert!(mine.windows(2).all(|pair| pair[0] < pair[1]), "no marker twice: {mine:?}");
    }
    // Each agent begins a pace of its own.
    let ledger = agent.get("/api/ledger?from=1&limit=100000").text();
    let starts = ledger.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let starts = starts.filter(|event| event["state"] == "NODE_UP");
    let starts: Vec<u64> = starts.map(|event| Time::parse(event["time"].as_str().unwrap()).unwrap().0).collect();
    assert_eq!(starts.len(), 3);
    for (nth, from) in starts.iter().enumerate() {
        let to = starts.get(nth + 1).copied().unwrap_or(u64::MAX);
        let first = marks.partition_point(|mark| mark.time < *from);
        let end = marks.partition_point(|mark| mark.time < to);
        keep_the_pace(&marks[first..end], nth == 2);
    }
}

#[test]
fn the_last_marker_before_a_crash_is_always_there() {
    let site = Site::new("before-crash");
    let agent = site.start(&["--workers", "4"]);
    // A steady flood of a hundred a second, and one that ends in the same breath as the payload.
    let mut jobs = Vec::new();
    for round in 0..4 {
        let id = job_id("before-crash");
        let pause = if round % 2 == 0 { "usleep 10000" } else { ":" };
        let line = format!(
            "n=0; while [ $n -lt 150 ]; do n=$((n + 1)); echo \"[D1_STABLE] out $n\"; echo \"[D1_STABLE] err $n\" >&2; {pause}; \
             done; test -e again && exit 0; touch again; kill -9 $$"
        );
        let (job, dir) = shell(&site, &id, &line);
        agent.accepted(&job);
        jobs.push((id, dir));
    }
    for (id, dir) in jobs {
        let summary = agent.ended(&id);
        assert_eq!((summary["state"].as_str(), summary["attempt"].as_u64()), (Some("SEALED"), Some(2)), "{summary}");
        assert_eq!(starts(&dir), 2);
        let events = trace(&agent, &id);
        let crash = events.iter().position(|event| event["state"] == "CRASH").unwrap();
        assert_eq!(events[crash]["detail"]["cause"], "killed");
        for (attempt, of_attempt) in [(1, &events[..crash]), (2, &events[crash..])] {
            let marks = marks(of_attempt);
            assert!(marks.iter().all(|mark| mark.attempt == attempt));
            for (stream, last) in [("stdout", "[D1_STABLE] out 150"), ("stderr", "[D1_STABLE] err 150")] {
                assert_eq!(count_of(&marks, stream), 150, "{stream} of attempt {attempt}");
                assert_eq!(last_of(&marks, stream).line, last, "attempt {attempt}");
            }
            keep_the_pace(&marks, true);
        }
        // What attempt 2 is told to go on from is what attempt 1 said last, on whichever stream.
        let resumed = events[crash + 1]["detail"]["resumed_after"].as_str().unwrap();
        assert!(resumed == "[D1_STABLE] out 150" || resumed == "[D1_STABLE] err 150", "{resumed}");
    }
}

#[test]
fn lines_without_end_and_bytes_that_are_no_text() {
    let site = Site::new("no-text");
    let agent = site.start(&[]);
    let warm = job_id("warm");
    agent.accepted(&manifest(&warm, &["echo", "[D1_STABLE] warm"]));
    agent.ended(&warm);
    let before = agent.memory_kib("VmHWM");
    let id = job_id("no-text");
    // A hundred megabytes that are no line, one that is a marker, NULs in and around markers, and a last one without an end.
    let (job, _) = shell(
        &site,
        &id,
        "head -c 100000000 /dev/zero; printf '\\n[D1_STABLE] after zeros\\n[D1_STABLE]'; head -c 100000000 /dev/zero | tr '\\0' x; \
         printf '\\n[D1_STABLE] a\\0b\\377c\\n\\0[D1_STABLE] no\\n[D1_STABLE] end'",
    );
    agent.accepted(&job);
    let summary = agent.ended(&id);
    assert_eq!(summary["state"], "SEALED", "{summary}");
    let events = trace(&agent, &id);
    let marks = marks(&events);
    let long = format!("[D1_STABLE]{}", "x".repeat(1024 - 11));
    let expected = ["[D1_STABLE] after zeros", long.as_str(), "[D1_STABLE] a\0b\u{fffd}c", "[D1_STABLE] end"];
    assert_eq!(marks.iter().map(|mark| mark.count).sum::<u64>(), expected.len() as u64);
    // Those that came together may have become one; whatever is told is one of them, at its place.
    let starts = [100_000_001, 100_000_025, 200_000_037, 200_000_071];
    for mark in &marks {
        let which = expected.iter().position(|line| *line == mark.line).unwrap_or_else(|| panic!("{:?}", mark.line));
        assert_eq!(mark.offset, starts[which], "{:?}", mark.line);
    }
    assert_eq!(marks.last().unwrap().line, "[D1_STABLE] end");
    assert_eq!(summary["last_d1_stable"], "[D1_STABLE] end");
    let stdout = agent.get(&format!("/api/jobs/{id}/stdout")).body;
    let completed = events.iter().find(|event| event["state"] == "COMPLETED").unwrap();
    assert_eq!(completed["detail"]["stdout"]["bytes"], stdout.len());
    assert_eq!(completed["detail"]["stdout"]["sha256"], Hash::of(&stdout).to_string());
    assert_eq!(stdout.len(), 200_000_071 + 15);
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < GROWTH_KIB_MAX, "the agent grew by {grown} KiB");
}
