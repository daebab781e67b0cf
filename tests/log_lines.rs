//! What a real agent's log tells: a line for each transition once it is durable, a line for each refusal, no flood of them,
//! nothing of what a client sends that could pass for a line of its own, and never a token.
//! Needs a running Docker Engine and `busybox:latest`.
#![allow(clippy::unwrap_used)]

mod agent;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use agent::{Agent, PATIENCE, Site, eventually, job_id, manifest};
use serde_json::Value;

const NO_ENGINE: (&str, &str) = ("DOCKER_HOST", "unix:///nonexistent.sock");
const TOKEN: &str = "S3cret/of+the=Operator";

/// Level and text of the lines of a target.
fn lines(agent: &Agent, target: &str) -> Vec<(String, String)> {
    let needle = format!("hackbrain::{target}: ");
    let of_target = |line: &str| {
        let mut words = line.splitn(3, ' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.strip_prefix(&needle)?.to_owned()))
    };
    agent.said().lines().filter_map(of_target).collect()
}

/// What the ledger says the lines of a job should be: with its markers, or without.
fn expected(site: &Site, id: &str, markers: bool) -> Vec<String> {
    let dump = site.dump(&["--job", id]).stdout;
    let events = dump.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events
        .filter(|event| markers || event["state"] != "D1_STABLE")
        .map(|event| {
            let state = event["state"].as_str().unwrap();
            let mut line = format!("job job_id={id} attempt={} state={state} seq={}", event["attempt"], event["seq"]);
            for (key, value) in [("reason", &event["detail"]["reason"]), ("reason", &event["detail"]["cause"])] {
                if let Some(value) = value.as_str() {
                    line += &format!(" {key}={value}");
                }
            }
            match &event["detail"]["exit_code"] {
                Value::Number(code) => line + &format!(" exit_code={code}"),
                _ => line,
            }
        })
        .collect()
}

#[test]
fn a_line_for_each_transition_with_the_seq_of_its_event() {
    let site = Site::new("joblines");
    for (filter, markers) in [(None, false), (Some("debug"), true), (Some("warn,hackbrain::serve=info"), false)] {
        let mut command = site.serve(&[]);
        command.envs(filter.map(|filter| ("RUST_LOG", filter)));
        let agent = site.start_command(&mut command);
        let (sealed, fails) = (job_id("sealed"), job_id("fails"));
        agent.accepted(&manifest(&sealed, &["sh", "-c", "echo '[D1_STABLE] one'; sleep 1; echo '[D1_STABLE] two'"]));
        agent.accepted(&manifest(&fails, &["sh", "-c", "exit 3"]));
        assert_eq!(
            (&agent.ended(&sealed)["state"], &agent.ended(&fails)["state"]),
            (&"SEALED".into(), &"FAILED".into())
        );
        for id in [&sealed, &fails] {
            let wanted = if filter.is_some_and(|filter| filter.starts_with("warn")) {
                Vec::new()
            } else {
                expected(&site, id, markers)
            };
            assert!(wanted.is_empty() || wanted.len() >= 4, "{wanted:?}");
            let needle = format!("job_id={id} ");
            let told =
                || lines(&agent, "job").into_iter().filter(|(_, line)| line.contains(&needle)).collect::<Vec<_>>();
            // The thread that writes is behind the answer by a moment.
            eventually("all lines are written", || (told().len() >= wanted.len()).then_some(()));
            let texts: Vec<String> = told().into_iter().map(|(_, line)| line).collect();
            assert_eq!(texts, wanted, "{filter:?}");
            for (level, line) in told() {
                assert_eq!(level, if line.contains("D1_STABLE") { "DEBUG" } else { "INFO" }, "{line}");
            }
            let others =
                agent.said().lines().filter(|line| line.contains(&**id) && line.contains("attempt 1:")).count();
            assert_eq!(others, 0, "the same is told twice");
        }
        assert_eq!(agent.terminate(), Some(0));
    }
}

#[test]
fn a_flood_of_refusals_makes_few_lines_and_says_how_many_are_missing() {
    const REQUESTS: usize = 10_000;
    let site = Site::new("flood");
    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let flood = || {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET /api/nothing HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address);
        let mut reader = stream.try_clone().unwrap();
        let reading = std::thread::spawn(move || {
            let (mut piece, mut text) = (vec![0; 1 << 16], Vec::new());
            let mut count = 0;
            while count < REQUESTS / 4 {
                let n = reader.read(&mut piece).unwrap();
                assert!(n > 0, "it hung up after {count} answers");
                text.extend_from_slice(&piece[..n]);
                count += text.windows(12).filter(|window| *window == b"HTTP/1.1 404").count();
                text.drain(..text.len().saturating_sub(11));
            }
        });
        for _ in 0..REQUESTS / 4 {
            stream.write_all(request.as_bytes()).unwrap();
        }
        reading.join().unwrap();
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(flood))));

    let left_out = |lines: &[(String, String)]| -> usize {
        lines.iter().filter_map(|(_, line)| line.strip_prefix("http lines_left_out=")?.parse::<usize>().ok()).sum()
    };
    let told =
        |lines: &[(String, String)]| lines.iter().filter(|(_, line)| line.contains("code=no_such_route")).count();
    // The last are told of when the flood is over, by nobody's further request.
    let lines = eventually("each request is told of, or counted as left out", || {
        let lines = lines(&agent, "http");
        (told(&lines) + left_out(&lines) == REQUESTS).then_some(lines)
    });
    let mut seconds: BTreeMap<String, usize> = BTreeMap::new();
    for line in agent.said().lines().filter(|line| line.contains(" hackbrain::http: ")) {
        *seconds.entry(line[.."2026-11-26T00:00:00".len()].to_owned()).or_default() += 1;
    }
    // Windows are no clock seconds: twenty lines and a number for each that began.
    assert!(lines.len() <= 21 * (seconds.len() + 1), "{} lines in {seconds:?}", lines.len());
    assert!(told(&lines) >= 20);
}

#[test]
fn nothing_that_a_client_sends_passes_for_a_line_or_reaches_the_terminal() {
    let site = Site::new("inject");
    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let long = "y".repeat(5000);
    for (path, told) in [
        (
            "/x%0a2026-01-01T00:00:00.000000Z%20INFO%20hackbrain::job:%20job",
            r#"path="/x\n2026-01-01T00:00:00.000000Z INFO hackbrain::job: job""#,
        ),
        ("/%1b%5b2J%07", r#"path="/\u001b[2J\u0007""#),
        ("/a%22%20status=200%20b=%22", r#"path="/a\" status=200 b=\"""#),
        ("/%e2%80%ae", r#"path="/\u202e""#),
        ("/plain?after=query", "path=/plain "),
        (&format!("/{long}"), &format!("path=/{}... ", "y".repeat(199))),
    ] {
        assert_eq!(agent.get(path).status, 404, "{path}");
        let needle = format!("http status=404 code=no_such_route method=GET {told}");
        eventually(&needle, || agent.said().contains(&needle).then_some(()));
    }
    assert_eq!(agent.request("GET", "/x", &[("Host", "evil.example")], b"").status, 403);
    assert_eq!(agent.request("DELETE", "/api/jobs", &[], b"").status, 405);
    assert_eq!(agent.raw(b"GET /\x01 HTTP/1.1\r\n\r\n").status, 400);
    for line in [
        "http status=403 code=foreign_host method=GET path=/x remote=127.0.0.1",
        "http status=405 code=method_not_allowed method=DELETE path=/api/jobs remote=127.0.0.1",
        "http status=400 code=bad_request method=- path=- remote=127.0.0.1",
    ] {
        eventually(line, || lines(&agent, "http").contains(&("INFO".to_owned(), line.to_owned())).then_some(()));
    }
    let said = agent.said();
    assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{said:?}");
    assert!(!said.contains("query") && lines(&agent, "job").is_empty(), "{said}");
}

#[test]
fn a_token_in_the_wrong_place_is_neither_logged_nor_repeated() {
    let site = Site::new("masked");
    let file = site.dir().join("tokens");
    fs::write(&file, format!("{TOKEN}\nanother-token-of-twenty\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let path = file.display().to_string();
    let mut command = site.serve(&["--token-file", &path]);
    let agent = site.start_command(command.env(NO_ENGINE.0, NO_ENGINE.1).env("RUST_LOG", "trace"));
    let encoded = TOKEN.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    let bearer = format!("Bearer {TOKEN}");
    let ask = |path: &str, headers: &[(&str, &str)], body: &str| {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let known = [("Authorization", &*bearer), ("Content-Type", "application/json")];
        agent.request(method, path, &[&known, headers].concat(), body.as_bytes())
    };
    let manifest = |field: &str| format!(r#"{{"job_id":"x","image_hash":"busybox","command":["true"],{field}}}"#);
    let answers = [
        ask(&format!("/api/events?after={encoded}"), &[], ""),
        ask(&format!("/api/jobs?state={encoded}"), &[], ""),
        ask(&format!("/api/jobs?{encoded}=1"), &[], ""),
        ask(&format!("/api/jobs?after={TOKEN}"), &[], ""),
        ask(&format!("/api/jobs/{encoded}"), &[], ""),
        ask(&format!("/{TOKEN}"), &[], ""),
        ask(&format!("/{}{encoded}", "y".repeat(190)), &[], ""),
        ask("/api/events", &[("Last-Event-ID", TOKEN)], ""),
        ask("/api/jobs", &[("Host", TOKEN)], ""),
        ask("/api/jobs", &[("Host", "S3cret.example"), ("Origin", TOKEN)], ""),
        ask("/api/jobs", &[("Origin", TOKEN)], ""),
        ask("/api/jobs", &[("Expect", TOKEN)], ""),
        ask("/api/submit_job", &[], &manifest(&format!(r#""{TOKEN}":1"#))),
        ask("/api/submit_job", &[], &manifest(&format!(r#""timeout_s":"{TOKEN}""#))),
        ask("/api/submit_job", &[], &manifest(&format!(r#""depends_on":["{TOKEN}"]"#))),
        ask("/api/submit_job", &[], &manifest(&format!(r#""network":"{TOKEN}""#))),
        agent.request("GET", "/api/jobs", &[("Authorization", &format!("Basic {TOKEN}"))], b""),
        agent.request("GET", "/api/jobs", &[("Authorization", &format!("Bearer {TOKEN}x"))], b""),
    ];
    for (number, answer) in answers.iter().enumerate() {
        assert!((400..500).contains(&answer.status), "{number}: {} {}", answer.status, answer.text());
        let text = answer.text();
        assert!(!text.to_lowercase().contains("s3cret/"), "{number}: {text}");
        assert!(answer.headers.iter().all(|(_, value)| !value.contains(TOKEN)), "{number}: {:?}", answer.headers);
    }
    assert_eq!(agent.get("/nothing").status, 404);
    eventually("the last refusal is told", || agent.said().contains("path=/nothing ").then_some(()));
    let said = agent.said();
    for part in ["S3cret", "s3cret", &encoded[..12], "another-token"] {
        // The host that begins like the token is no token.
        let found = said.lines().find(|line| line.contains(part) && !line.contains("S3cret.example"));
        assert!(found.is_none(), "{part}: {found:?}");
    }
    assert_eq!(Command::new("grep").args(["-c", TOKEN]).arg(&file).output().unwrap().stdout, b"1\n");
}
