//! The lines of a log over HTTP, held against a plain reading and against `grep`. The agent has no engine: what a job's
//! attempt wrote is put where an attempt puts it.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use agent::{Agent, Answer, Site, job_id, manifest};
use serde_json::{Value, json};

/// A job that waits, and the file of its standard output.
fn waiting_job(site: &Site) -> (Agent, String, PathBuf) {
    let agent = site.start_command(site.serve(&[]).env("DOCKER_HOST", format!("unix://{}/none", site.dir().display())));
    let id = job_id("lines");
    agent.accepted(&manifest(&id, &["true"]));
    let dir = site.data().join("logs").join(&id);
    fs::create_dir_all(&dir).unwrap();
    (agent, id, dir.join("0.stdout"))
}

fn ask(agent: &Agent, id: &str, query: &str) -> Answer {
    agent.get(&format!("/api/jobs/{id}/stdout/lines?{query}"))
}

#[track_caller]
fn told(agent: &Agent, id: &str, query: &str) -> Value {
    let answer = ask(agent, id, query);
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    assert_eq!(answer.header("x-attempt"), Some("0"));
    answer.json()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn encoded(text: &[u8]) -> String {
    text.iter().map(|byte| format!("%{byte:02x}")).collect()
}

/// `LC_ALL=C grep -acF TEXT`, from an offset on. Without -a, grep takes a NUL for the end of a line.
fn grep(path: &Path, from: u64, text: &str) -> u64 {
    let script = r#"tail -c +"$2" -- "$1" | LC_ALL=C grep -acF -e "$3""#;
    let from = (from + 1).to_string();
    let said = Command::new("sh").args(["-c", script, "sh"]).arg(path).args([&from, text]).output().unwrap();
    let count = String::from_utf8(said.stdout).unwrap().trim().parse();
    count.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&said.stderr)))
}

/// Numbers that the same seed gives again.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    /// Bytes of all kinds, some lines of them longer than what is read at once.
    fn log(&mut self, lines: u64) -> Vec<u8> {
        let mut log = Vec::new();
        for _ in 0..lines {
            let length = match self.below(200) {
                0 => self.below(600_000),
                1..=40 => 0,
                _ => self.below(120),
            };
            let plain = self.below(3) > 0;
            for _ in 0..length {
                let byte = if plain { b"step =0123"[self.below(10) as usize] } else { self.below(256) as u8 };
                log.push(if byte == b'\n' { 0 } else { byte });
            }
            if self.below(5) == 0 {
                log.extend_from_slice("énergie".as_bytes());
            }
            log.push(b'\n');
        }
        if self.below(2) == 0 {
            log.extend_from_slice(b"no newline = 0");
        }
        log
    }
}

#[test]
fn any_log_has_the_lines_that_a_plain_reading_and_grep_find() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_127);
    let random = &mut Random(seed);
    let site = Site::new("lines-random");
    let (agent, id, path) = waiting_job(&site);
    for round in 0..12 {
        let lines = [0, 1, 3, 400, 3000][random.below(5) as usize];
        let log = random.log(lines);
        fs::write(&path, &log).unwrap();
        let mut starts: Vec<u64> = vec![0];
        starts.extend(log.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at as u64 + 1));
        let size = log.len() as u64;
        for text in
            ["e", "st", "step", "= ", "=0", "énergie", "é", "\u{1}", "\t", "nowhere", "no newline", "-0", "0 =1"]
        {
            let context = format!("seed {seed}, round {round}, {size} bytes, {text:?}");
            let from = starts[random.below(starts.len() as u64) as usize];
            let limit = 1 + random.below(1200);
            let query = format!("from={from}&find={}&limit={limit}", encoded(text.as_bytes()));
            let found = told(&agent, &id, &query);
            let of_log: Vec<&[u8]> = log[from as usize..].split_inclusive(|&byte| byte == b'\n').collect();
            let begins = &starts[starts.iter().position(|&start| start == from).unwrap()..];
            let holds = |line: &[u8]| line.windows(text.len()).any(|window| window == text.as_bytes());
            let matches: Vec<_> = of_log.iter().zip(begins).enumerate().filter(|(_, (line, _))| holds(line)).collect();
            let matches: Vec<_> = matches.iter().map(|(line, (_, offset))| json!([line, offset])).collect();
            let is_open = log.last().is_some_and(|&byte| byte != b'\n') && from < size;
            let expected = json!({
                "from": from, "end": size, "size": size, "lines": of_log.len(), "every": 1024,
                "unfinished": is_open.then(|| begins.last()),
                "offsets": begins.iter().take(of_log.len()).step_by(1024).collect::<Vec<_>>(),
                "matching": matches.len(), "matches": matches.iter().take(limit as usize).collect::<Vec<_>>(),
            });
            assert_eq!(found, expected, "{context}");
            assert_eq!(number(&found["matching"]), grep(&path, from, text), "{context}: grep");
        }
        let without = told(&agent, &id, "");
        assert_eq!((&without["matching"], &without["matches"]), (&Value::Null, &json!([])));
    }
}

#[test]
fn who_goes_on_while_the_log_grows_has_every_line_once() {
    let site = Site::new("lines-grow");
    let (agent, id, path) = waiting_job(&site);
    assert_eq!(told(&agent, &id, "find=x")["size"], 0, "nothing was written yet");
    let (ended, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let random = &mut Random(7);
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            for step in 0..20_000 {
                // Somebody looks at it now and then, however fast either side is.
                while rounds.load(Ordering::SeqCst) < step / 400 {
                    thread::yield_now();
                }
                let line = format!("step={step} {}\n", "=".repeat(random.below(40) as usize));
                // In two parts: a line that is begun is seen.
                let (first, second) = line.split_at(random.below(line.len() as u64) as usize);
                file.write_all(first.as_bytes()).unwrap();
                file.write_all(second.as_bytes()).unwrap();
            }
            ended.store(true, Ordering::SeqCst);
        });
        let (mut at, mut lines, mut found) = (0, 0, Vec::new());
        loop {
            rounds.fetch_add(1, Ordering::SeqCst);
            let is_last = ended.load(Ordering::SeqCst);
            let part = told(&agent, &id, &format!("from={at}&find=%3D7&limit=10000"));
            let unfinished = part["unfinished"].as_u64();
            at = unfinished.unwrap_or(number(&part["end"]));
            for matched in part["matches"].as_array().unwrap() {
                if unfinished != Some(number(&matched[1])) {
                    found.push((lines + number(&matched[0]), number(&matched[1])));
                }
            }
            lines += number(&part["lines"]) - u64::from(unfinished.is_some());
            if is_last {
                break;
            }
        }
        let whole = told(&agent, &id, "find=%3D7&limit=10000");
        assert_eq!((json!(lines), json!(found)), (json!(20_000), whole["matches"].clone()));
        assert_eq!(number(&whole["matching"]), grep(&path, 0, "=7"));
    });
}

#[test]
fn what_cannot_be_looked_at_is_refused() {
    let site = Site::new("lines-refused");
    let (agent, id, path) = waiting_job(&site);
    fs::write(&path, "one\ntwo\n").unwrap();
    for (query, status, code, field) in [
        ("from=9", 416, "range", "from"),
        ("find=", 400, "bad_parameter", "find"),
        ("find=a%0ab", 400, "bad_parameter", "find"),
        (&format!("find={}", "x".repeat(257)), 400, "bad_parameter", "find"),
        (&format!("find={}", "%C3%A9".repeat(129)), 400, "bad_parameter", "find"),
        ("limit=0", 400, "bad_parameter", "limit"),
        ("attempt=1", 404, "no_such_attempt", "attempt"),
        ("line=1", 400, "unknown_parameter", "line"),
    ] {
        let answer = ask(&agent, &id, query);
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["code"], &error["field"]), (status, &json!(code), &json!(field)), "{query}");
    }
    let behind = ask(&agent, &id, "from=9");
    assert_eq!((behind.header("content-range"), behind.header("x-attempt")), (Some("bytes */8"), Some("0")));
    assert_eq!(told(&agent, &id, "from=8&find=one")["lines"], 0, "its end is no mistake");
    assert_eq!(told(&agent, &id, &format!("find={}", "x".repeat(256)))["matching"], 0);
    assert_eq!(told(&agent, &id, "find=%0d")["matching"], 0);
    assert_eq!(agent.get("/api/jobs/nobody/stdout/lines").json()["error"]["code"], "no_such_job");
    // Once the job has ended, a log that is not there has been lost, as for /stdout.
    assert_eq!(agent.post(&format!("/api/jobs/{id}/cancel"), b"{}").status, 200);
    assert_eq!(told(&agent, &id, "find=one")["matches"], json!([[0, 0]]));
    fs::remove_file(&path).unwrap();
    for path in ["stdout", "stdout/lines", "stderr/lines"] {
        assert_eq!(agent.get(&format!("/api/jobs/{id}/{path}")).json()["error"]["code"], "no_such_file", "{path}");
    }
}
