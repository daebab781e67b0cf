//! `/metrics` of a real agent: what promtool says of it, and that every figure of events is what the ledger holds.
//! Needs a running Docker Engine, `busybox:latest`, and `promtool` (scripts/test provides it).
#![allow(clippy::unwrap_used)]

mod agent;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use agent::{Agent, Answer, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

/// Figures by name and labels, as they are written.
type Figures = BTreeMap<String, f64>;

fn figures(text: &str) -> Figures {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parsed: Vec<_> = lines.map(|line| line.rsplit_once(' ').unwrap()).collect();
    let figures: Figures = parsed.iter().map(|(name, value)| ((*name).to_owned(), value.parse().unwrap())).collect();
    assert_eq!(figures.len(), parsed.len(), "a figure stands twice: {text}");
    figures
}

fn scrape(agent: &Agent) -> Figures {
    let answer = agent.get("/metrics");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = answer.text();
    promtool(&text);
    let figures = figures(&text);
    histograms_are_sound(&figures);
    figures
}

fn promtool(text: &str) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}; scripts/test provides it"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

/// Buckets hold those before them, and the last holds all.
fn histograms_are_sound(figures: &Figures) {
    for name in ["hackbrain_ledger_commit_duration_seconds", "hackbrain_ledger_sync_duration_seconds"] {
        let prefix = format!("{name}_bucket{{le=\"");
        let mut buckets: Vec<(f64, f64)> = figures
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(&prefix)?.strip_suffix("\"}")?, *value)))
            .map(|(bound, value)| (if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, value))
            .collect();
        buckets.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(buckets.len() > 10 && buckets.is_sorted_by_key(|(_, value)| *value), "{buckets:?}");
        assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, figures[&format!("{name}_count")]));
        assert!(figures[&format!("{name}_sum")] > 0.0);
    }
}

/// What the figures of events must be, from the ledger's own lines, after the event `after`.
fn expected(lines: &str, after: u64) -> Figures {
    let mut expected = Figures::new();
    let mut before: BTreeMap<String, String> = BTreeMap::new();
    for line in lines.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let state = event["state"].as_str().unwrap().to_owned();
        let counts = event["seq"].as_u64().unwrap() > after;
        let mut count = |name: String| *expected.entry(name).or_default() += f64::from(u8::from(counts));
        count(format!("hackbrain_events_total{{state=\"{state}\"}}"));
        let Some(job) = event["job_id"].as_str() else { continue };
        let detail = &event["detail"];
        let reason = match state.as_str() {
            "CRASH" => detail["cause"].as_str().unwrap(),
            "FAILED" => detail["reason"].as_str().unwrap(),
            _ => "",
        };
        let ran = before.get(job).is_some_and(|b| ["RUNNING", "RECOVERY", "D1_STABLE", "STOPPING"].contains(&&**b));
        if ["RUNNING", "RECOVERY"].contains(&&*state) {
            count("hackbrain_attempts_begun_total".to_owned());
        }
        if ran && ["CRASH", "COMPLETED", "FAILED", "CANCELLED"].contains(&&*state) {
            count(format!("hackbrain_attempts_ended_total{{state=\"{state}\",reason=\"{reason}\"}}"));
        }
        if ["SEALED", "FAILED", "CANCELLED"].contains(&&*state) {
            count(format!("hackbrain_jobs_ended_total{{state=\"{state}\",reason=\"{reason}\"}}"));
        }
        before.insert(job.to_owned(), state);
    }
    for state in before.values() {
        *expected.entry(format!("hackbrain_jobs{{state=\"{state}\"}}")).or_default() += 1.0;
    }
    expected.insert("hackbrain_ledger_head_seq".to_owned(), lines.lines().count() as f64);
    expected
}

/// Every figure that the ledger's lines give, and 0 for every other of the same families.
fn agree(told: &Figures, expected: &Figures) {
    let families = ["events_total", "attempts_begun", "attempts_ended", "jobs_ended", "jobs{", "ledger_head_seq"];
    let of_events = |name: &str| families.iter().any(|family| name.starts_with(&format!("hackbrain_{family}")));
    for (name, value) in told.iter().filter(|(name, _)| of_events(name)) {
        assert_eq!(*value, expected.get(name).copied().unwrap_or(0.0), "{name}");
    }
    for name in expected.keys() {
        assert!(told.contains_key(name), "{name} is not told");
    }
}

#[test]
fn the_figures_are_what_the_ledger_holds_before_and_after_a_restart() {
    let site = Site::new("metrics");
    let agent = site.start(&["--pull", "never"]);
    let first = scrape(&agent);
    let ids: Vec<String> =
        ["sealed", "exits", "crashes", "image", "cancelled"].iter().map(|what| job_id(what)).collect();
    let [sealed, exits, crashes, image, cancelled] = &ids[..] else { unreachable!() };
    agent.accepted(&manifest(sealed, &["sh", "-c", "echo '[D1_STABLE] one'; echo x > out"]));
    agent.accepted(&manifest(exits, &["sh", "-c", "exit 3"]));
    agent.accepted(&manifest(crashes, &["sh", "-c", "[ -e again ] && exit 0; touch again; sleep 600"]));
    agent.accepted(&json!({ "job_id": image, "image_hash": "hackbrain.test/absent:1", "command": ["true"] }));
    agent.accepted(&manifest(cancelled, &["sleep", "600"]));

    eventually("the attempt has got so far that it may be killed", || {
        let inside = Command::new("docker").args(["exec", &format!("hb-{crashes}-1"), "test", "-e", "again"]).output();
        inside.unwrap().status.success().then_some(())
    });
    let killed = Command::new("docker").args(["kill", &format!("hb-{crashes}-1")]).output().unwrap();
    assert!(killed.status.success(), "{killed:?}");
    agent.get(&format!("/api/jobs/{cancelled}?wait=RUNNING&timeout_s=50"));
    assert_eq!(agent.post(&format!("/api/jobs/{cancelled}/cancel"), b"").status, 200);
    let states: Vec<_> = ids.iter().map(|id| agent.ended(id)["state"].as_str().unwrap().to_owned()).collect();
    assert_eq!(states, ["SEALED", "FAILED", "SEALED", "FAILED", "CANCELLED"]);

    let told = scrape(&agent);
    agree(&told, &expected(&site.dump(&[]).stdout, 0));
    for (name, value) in [
        ("hackbrain_attempts_ended_total{state=\"CRASH\",reason=\"killed\"}", 1.0),
        ("hackbrain_attempts_ended_total{state=\"FAILED\",reason=\"exit\"}", 1.0),
        ("hackbrain_attempts_ended_total{state=\"CANCELLED\",reason=\"\"}", 1.0),
        ("hackbrain_attempts_ended_total{state=\"COMPLETED\",reason=\"\"}", 2.0),
        ("hackbrain_attempts_ended_total{state=\"FAILED\",reason=\"image\"}", 0.0),
        ("hackbrain_jobs_ended_total{state=\"FAILED\",reason=\"image\"}", 1.0),
        ("hackbrain_attempts_begun_total", 5.0),
        ("hackbrain_jobs_by_phase{phase=\"ended\"}", 5.0),
        ("hackbrain_jobs_by_phase{phase=\"active\"}", 0.0),
        ("hackbrain_ledger_latched", 0.0),
        ("hackbrain_ledger_out_of_space", 0.0),
        ("hackbrain_container_engine_available", 1.0),
        ("hackbrain_ready", 1.0),
        ("hackbrain_ledger_recovered_events", 0.0),
        ("hackbrain_http_handler_panics_total", 0.0),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
    // GENESIS and what followed were all written by this process.
    assert_eq!(told["hackbrain_ledger_records_total"], told["hackbrain_ledger_head_seq"]);
    assert_eq!(told["hackbrain_ledger_sync_duration_seconds_count"], told["hackbrain_ledger_frames_total"]);
    assert!(told["hackbrain_ledger_commit_duration_seconds_count"] <= told["hackbrain_ledger_frames_total"]);
    assert!(told["hackbrain_ledger_bytes_total"] >= 4096.0 * told["hackbrain_ledger_frames_total"]);
    assert_eq!(told["hackbrain_ledger_segments"], site.segments().len() as f64);
    for (name, before) in first.iter().filter(|(name, _)| name.contains("_total") || name.contains("_bucket")) {
        assert!(told[name] >= *before, "{name} went back from {before}");
    }
    // Between the two looks it may clear up after its jobs.
    eventually("it tells of the descriptors that it has", || {
        let told = scrape(&agent)["hackbrain_process_open_fds"];
        let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count() as f64;
        ((told - descriptors).abs() <= 4.0).then_some(())
    });
    assert!(told["hackbrain_process_resident_memory_bytes"] > 1e6);

    assert_eq!(agent.terminate(), Some(0));
    let lines = site.dump(&[]).stdout;
    let agent = site.start(&["--pull", "never"]);
    // The node's own events of this start are there at the latest when it is ready.
    eventually("it is ready", || (agent.get("/readyz").status == 200).then_some(()));
    let told = scrape(&agent);
    let recovered = lines.lines().count() as u64;
    agree(&told, &expected(&site.dump(&[]).stdout, recovered));
    assert_eq!(told["hackbrain_events_total{state=\"NODE_UP\"}"], 1.0);
    assert_eq!(told["hackbrain_ledger_recovered_events"], recovered as f64);
    assert!(told["hackbrain_ledger_recovery_seconds"] > 0.0);
    assert_eq!(told["hackbrain_ledger_records_total"], 1.0);
}

#[test]
fn what_the_front_did_is_told_by_code_and_only_to_those_who_have_a_token() {
    let site = Site::new("frontmetrics");
    let file = site.dir().join("tokens");
    fs::write(&file, "a-token-of-the-operator\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let path = file.display().to_string();
    let agent = site.start_command(site.serve(&["--token-file", &path]).env("DOCKER_HOST", "unix:///nonexistent.sock"));
    let ask = |method: &str, path: &str| -> Answer {
        agent.request(method, path, &[("Authorization", "Bearer a-token-of-the-operator")], b"")
    };
    assert_eq!(agent.get("/metrics").status, 401);
    assert_eq!(agent.request("GET", "/metrics", &[("Authorization", "Bearer another")], b"").status, 401);
    assert_eq!(ask("POST", "/metrics").status, 405);
    assert_eq!(ask("GET", "/metrics?x=1").status, 400);
    assert_eq!(ask("GET", "/api/jobs/nobody").status, 404);
    assert_eq!(agent.raw(b"nonsense\r\n\r\n").status, 400);
    assert_eq!(agent.raw(b"GET / HTTP/1.1\r\n\r\n").status, 400);
    let head = ask("HEAD", "/metrics");
    assert_eq!((head.status, head.body.len()), (200, 0));

    let answer = ask("GET", "/metrics");
    promtool(&answer.text());
    let told = figures(&answer.text());
    for (code, count) in
        [("unauthorized", 2.0), ("method_not_allowed", 1.0), ("unknown_parameter", 1.0), ("no_such_job", 1.0)]
    {
        assert_eq!(told[&format!("hackbrain_http_requests_refused_total{{code=\"{code}\"}}")], count, "{code}");
    }
    assert_eq!(told["hackbrain_http_requests_unread_total"], 2.0);
    // Those before it may not have ended yet.
    eventually("this connection is the only one", || {
        (figures(&ask("GET", "/metrics").text())["hackbrain_http_connections"] == 1.0).then_some(())
    });
    assert!(told["hackbrain_http_connections_total"] >= 9.0);
    eventually("the engine is found to be away", || {
        (figures(&ask("GET", "/metrics").text())["hackbrain_container_engine_available"] == 0.0).then_some(())
    });
}
