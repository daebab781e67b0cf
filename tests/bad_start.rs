//! Every bad start of the real binary: flags, files, a second agent, a damaged ledger, an absent engine, a full disk. Each ends
//! with its exit code and words that say what to change, or is lived through, and nothing that was accepted is lost.
//! Needs a running Docker Engine and `busybox:latest`; the full disk also needs the right to mount.
#![allow(clippy::unwrap_used)]

mod agent;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use agent::{Agent, Ended, Site, eventually, hackbrain, job_id, manifest};
use hackbrain::wal::frame::decode_header;
use serde_json::{Value, json};

/// An engine that is not there.
const NO_ENGINE: (&str, &str) = ("DOCKER_HOST", "unix:///nonexistent.sock");
const BLOCK: usize = 4096;
const FRAME_HEADER: usize = 128;
const RECORD_HEADER: usize = 4;

#[track_caller]
fn ends(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for words in says {
        assert!(ended.stderr.contains(words), "standard error should say {words:?}: {ended:?}");
    }
}

#[track_caller]
fn sound(site: &Site, receipts: &[Value]) {
    let expected: Vec<String> = receipts
        .iter()
        .map(|receipt| format!("--expect={}:{}", receipt["seq"], receipt["hash"].as_str().unwrap()))
        .collect();
    let verified = site.verify(&expected.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(verified.code, Some(0), "{verified:?}");
}

#[test]
fn usage() {
    let site = Site::new("usage");
    let plain = |args: &[&str]| Ended::of(hackbrain().args(args));
    ends(&plain(&["srve"]), 64, &["srve", "Usage"]);
    ends(&plain(&[]), 64, &["Usage"]);
    ends(&plain(&["serve", "--no-such-flag"]), 64, &["--no-such-flag"]);
    ends(&plain(&["serve", "stray"]), 64, &["stray"]);
    assert_eq!((plain(&["--help"]).code, plain(&["--version"]).code), (Some(0), Some(0)));
    let help = plain(&["serve", "--help"]).stdout;
    for flag in help.split_whitespace().filter_map(|word| word.strip_prefix("--")).filter(|word| *word != "help") {
        let variable = format!("HACKBRAIN_{}", flag.trim_matches(|c: char| !c.is_alphanumeric()).to_uppercase());
        assert!(help.contains(&variable.replace('-', "_")), "the help does not tell of {variable}");
    }

    let nowhere = site.dir().join("nowhere").display().to_string();
    let empty = site.dir().join("empty");
    fs::create_dir(&empty).unwrap();
    for command in ["verify", "dump"] {
        for dir in [&nowhere, &empty.display().to_string()] {
            ends(&plain(&[command, "--data", dir]), 64, &[dir, "not a data directory"]);
        }
        ends(&plain(&[command, "--data", &nowhere, "--bogus"]), 64, &["--bogus"]);
    }
    assert!(!Path::new(&nowhere).exists() && fs::read_dir(&empty).unwrap().next().is_none(), "they create nothing");
    for expect in ["7", "x:00", "7:00", ""] {
        ends(&site.verify(&["--expect", expect]), 64, &["SEQ:HASH"]);
    }
    ends(&site.dump(&["--from", "one"]), 64, &["--from"]);

    for (args, says) in [
        (["--listen", "localhost"], "such as 127.0.0.1:4005"),
        (["--listen", "0.0.0.0:0"], "--trust-network"),
        (["--listen", "[::]:0"], "--token-file"),
        (["--pull", "always"], "missing, never"),
        (["--workers", "0"], "--workers"),
        (["--max-queue", "many"], "--max-queue"),
        (["--mount-root", &nowhere], "nowhere"),
        (["--mount-root", "/"], "can be a mount root"),
        (["--mount-root", "/proc/self"], "can be a mount root"),
        (["--token-file", &nowhere], "nowhere"),
        (["--allow-host", "http://node.mesh"], "such as node.mesh"),
        (["--allow-host", "*"], "such as node.mesh"),
        (["--allow-origin", "lab.example"], "such as https://lab.example"),
        (["--allow-origin", "https://lab.example/"], "such as https://lab.example"),
    ] {
        ends(&site.refused(&args), 64, &[says]);
    }
    let sizes = Ended::of(hackbrain().args(["serve", "--data", &nowhere, "--segment-size", "4194305"]));
    ends(&sizes, 64, &["multiple of 4096"]);
    let data = site.data().display().to_string();
    ends(&site.refused(&["--mount-root", &data]), 64, &["data directory"]);
    let file = site.dir().join("file");
    fs::write(&file, "x").unwrap();
    let on_file = Ended::of(hackbrain().args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&file));
    ends(&on_file, 74, &["file"]);
    assert!(!site.data().join("wal").exists(), "no ledger is begun by an agent that does not start");
}

#[test]
fn token_files_that_others_may_read() {
    let site = Site::new("tokenfile");
    let file = site.dir().join("tokens");
    let path = file.display().to_string();
    fs::write(&file, "secret\n").unwrap();
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let ended = site.refused(&["--token-file", &path]);
        ends(&ended, 64, &[&path, "chmod 600"]);
        assert!(!ended.stderr.contains("secret"));
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&file, "\n \n").unwrap();
    ends(&site.refused(&["--token-file", &path]), 64, &[&path, "no token"]);
    assert!(!site.data().exists());
}

#[test]
fn a_port_and_a_data_directory_have_one_agent_each() {
    let site = Site::new("second");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    ends(&site.refused(&["--listen", &address]), 64, &[&address, "another --listen"]);

    let mut first = site.start(&[]);
    let id = job_id("second");
    let receipt = first.accepted(&manifest(&id, &["sleep", "2"]));
    let data = site.data().display().to_string();
    for _ in 0..3 {
        ends(&site.refused(&[]), 75, &[&data, "in use by another agent", "--data"]);
    }
    assert!(first.is_running());
    assert_eq!(first.ended(&id)["state"], "SEALED", "{}", first.said());
    let ups = first.get("/api/ledger").text().matches("\"state\":\"NODE_UP\"").count();
    assert_eq!(ups, 1, "the second agent wrote nothing");
    assert_eq!(first.terminate(), Some(0));
    sound(&site, std::slice::from_ref(&receipt));
    let none = site.dump(&["--job", "misspelt"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    ends(&none, 0, &["no event of job \"misspelt\""]);
    // The lock is the process's, not the file's: it is free again, also after a kill.
    site.start(&[]).kill();
    assert_eq!(site.start(&[]).get(&format!("/api/jobs/{id}")).json()["state"], "SEALED");
}

/// Names, contents and times of what lies in the ledger's directory.
type Files = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;

fn ledger_files(site: &Site) -> Files {
    let entries = fs::read_dir(site.data().join("wal")).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.path(), (fs::read(e.path()).unwrap(), e.metadata().unwrap().modified().unwrap()))).collect()
}

fn put_back(site: &Site, files: &Files) {
    let dir = site.data().join("wal");
    fs::remove_dir_all(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    for (path, (bytes, _)) in files {
        fs::write(path, bytes).unwrap();
    }
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// A row: its name, what it does to the files, what is said of it.
type Damage<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

/// Where the frames of a small ledger start, the seq each begins with, and whether it holds an event: a mark does not.
fn frames(segment: &Path) -> Vec<(usize, u64, bool)> {
    let bytes = fs::read(segment).unwrap();
    let blocks = bytes.chunks(BLOCK).enumerate().skip(2).take_while(|(_, block)| block.iter().any(|b| *b != 0));
    blocks
        .filter_map(|(index, block)| {
            let header = decode_header(block)?;
            Some((index * BLOCK, header.first_seq, header.records > 0))
        })
        .collect()
}

/// A ledger with one sealed job and one that waits, left behind by a killed agent.
fn ledger_of_a_killed_agent(site: &Site) -> Vec<Value> {
    let agent = site.start(&[]);
    let id = job_id("damage");
    let sealed = agent.accepted(&manifest(&id, &["echo", "[D1_STABLE] 1"]));
    assert_eq!(agent.ended(&id)["state"], "SEALED", "{}", agent.said());
    agent.kill();
    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let waits = agent.accepted(&manifest(&job_id("damage"), &["true"]));
    agent.kill();
    vec![sealed, waits]
}

#[test]
fn a_damaged_ledger_is_refused_and_not_touched() {
    let site = Site::new("damage");
    let receipts = ledger_of_a_killed_agent(&site);
    let whole = ledger_files(&site);
    let events = site.dump(&[]).stdout;
    let segment = site.segments().pop().unwrap();
    let frames = frames(&segment);
    assert!(frames.len() > 6, "{frames:?}");
    let with_events: Vec<usize> = (0..frames.len()).filter(|index| frames[*index].2).collect();
    let (middle, last) = (with_events[with_events.len() / 2], with_events[with_events.len() - 1]);

    // Frame by index, and the byte within it.
    let rows = [
        ("the first event", 0, 200),
        ("a frame's magic", middle, 0),
        ("a frame's header", middle, 20),
        ("an event in the middle", middle, FRAME_HEADER + RECORD_HEADER + 100),
        ("a record's length", middle, FRAME_HEADER),
        ("the padding of a frame in the middle", middle, BLOCK - 100),
        ("a sector's checksum in the middle", middle, 511),
        ("a sector's mark in the middle", middle, 505),
        ("the last event", last, FRAME_HEADER + RECORD_HEADER + 100),
        ("the last frame's header", last, 20),
        ("the last frame's padding", last, BLOCK - 100),
        ("a checksum in the last frame", last, BLOCK - 1),
    ];
    for (row, frame, byte) in rows {
        put_back(&site, &whole);
        let (offset, seq, _) = frames[frame];
        flip(&segment, offset + byte);
        let place = format!("{}: byte offset {offset}: expected seq {seq}: ", segment.display());
        let next = frames.get(frame + 1).map_or("no sound frame behind it".to_owned(), |(offset, seq, _)| {
            format!("next sound frame: seq {seq} at byte offset {offset} of {}", segment.display())
        });
        refused_untouched(&site, row, &[&place, &next]);
        let before: String = events.lines().take(seq as usize - 1).map(|line| format!("{line}\n")).collect();
        let dumped = site.dump(&[]);
        assert!(
            dumped.code == Some(65) && dumped.stdout == before,
            "{row}: up to the damage it can be read: {dumped:?}"
        );
    }

    let name = segment.display().to_string();
    let witness = site.data().join("wal/segments");
    let both_headers = || [8, BLOCK + 8].into_iter().for_each(|at| flip(&segment, at));
    let shorter = || fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(8192).unwrap();
    let damages: [Damage<'_>; 6] = [
        ("both headers", &both_headers, &[&name, "no header"]),
        ("a shorter file", &shorter, &[&name, "length"]),
        ("an empty file", &|| fs::write(&segment, "").unwrap(), &[&name, "0 bytes"]),
        ("a missing segment", &|| fs::remove_file(&segment).unwrap(), &[&name, "missing"]),
        ("both slots of the witness", &|| [3, BLOCK + 3].into_iter().for_each(|at| flip(&witness, at)), &["slots"]),
        ("a missing witness", &|| fs::remove_file(&witness).unwrap(), &["missing"]),
    ];
    for (row, damage, says) in damages {
        put_back(&site, &whole);
        damage();
        refused_untouched(&site, row, says);
    }

    // Damage that a second copy makes good, and a stray byte where nothing was ever written: no event is touched by these.
    let survived: [(&str, &dyn Fn()); 4] = [
        ("one header", &|| flip(&segment, 8)),
        ("the other header", &|| flip(&segment, BLOCK + 8)),
        ("one slot of the witness", &|| flip(&witness, 3)),
        ("the unwritten tail", &|| flip(&segment, frames[last].0 + 5 * BLOCK + 77)),
    ];
    for (row, damage) in survived {
        put_back(&site, &whole);
        damage();
        sound(&site, &receipts);
        let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
        assert_eq!(agent.get("/api/jobs").json()["jobs"].as_array().unwrap().len(), 2, "{row}");
        assert_eq!(agent.terminate(), Some(0), "{row}");
        assert!(site.dump(&[]).stdout.starts_with(&events), "{row}: no event is lost");
        sound(&site, &receipts);
    }
}

fn refused_untouched(site: &Site, row: &str, says: &[&str]) {
    let before = ledger_files(site);
    let served = site.refused(&[]);
    let verified = site.verify(&[]);
    assert_eq!((served.code, verified.code), (Some(65), Some(65)), "{row}: {served:?} {verified:?}");
    for words in says {
        assert!(served.stderr.contains(words), "{row}: serve should say {words:?}: {served:?}");
        assert!(verified.stdout.contains(words), "{row}: verify should say {words:?}: {verified:?}");
    }
    assert!(served.stderr.contains("was not touched"), "{served:?}");
    let after = ledger_files(site);
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before), names(&after), "{row}");
    assert!(before == after, "{row}: the attempt changed a file");
}

#[test]
fn dump_and_verify_find_what_they_are_asked_for() {
    let site = Site::new("offline");
    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let ids: Vec<String> = (0..3).map(|_| job_id("offline")).collect();
    let receipts: Vec<Value> = ids
        .iter()
        .map(|id| {
            let mut large = manifest(id, &["true"]);
            // More than a pipe holds, so that a closed one is noticed.
            large["env"] = json!({"A": "a".repeat(100_000), "B": "b".repeat(100_000)});
            agent.accepted(&large)
        })
        .collect();

    // Both also while the agent runs.
    let mut dump = hackbrain();
    dump.arg("dump").arg("--data").arg(site.data()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = dump.spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(512, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"state\":\"GENESIS\""), "{line}");
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "dump | head is no fault");

    let of_one = site.dump(&["--job", &ids[1]]).stdout;
    assert_eq!(of_one.lines().count(), 1, "{} bytes", of_one.len());
    assert!(of_one.contains(&format!("\"job_id\":\"{}\"", ids[1])));
    let none = site.dump(&["--job", "nobody"]);
    assert_eq!((none.code, none.stdout.as_str()), (Some(0), ""));
    let behind = site.dump(&["--from", "9999"]);
    assert_eq!((behind.code, behind.stdout.as_str()), (Some(0), ""));

    let last = &receipts[2];
    let (seq, hash) = (last["seq"].as_u64().unwrap(), last["hash"].as_str().unwrap());
    assert_eq!(agent.terminate(), Some(0));
    sound(&site, &receipts);
    let other = "0".repeat(64);
    for (wrong, why) in [(format!("{seq}:{other}"), "another hash"), (format!("9999:{hash}"), "a seq beyond the end")] {
        let verified = site.verify(&["--expect", &format!("{seq}:{hash}"), "--expect", &wrong]);
        assert_eq!(verified.code, Some(65), "{why}: {verified:?}");
        assert!(verified.stdout.contains(&format!("expected event {wrong} is not in this ledger")), "{verified:?}");
        assert!(!verified.stdout.contains(&format!("expected event {seq}:{hash}")), "{verified:?}");
    }
}

#[test]
fn jobs_wait_for_an_engine_that_is_not_there() {
    let site = Site::new("noengine");
    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let engine = agent.get("/api/node").json()["engine"].clone();
    assert_eq!(engine["available"], false, "{engine}");
    assert!(engine["message"].as_str().unwrap().contains("/nonexistent.sock"), "{engine}");
    // It listens before its NODE_UP is durable.
    eventually("it is ready", || (agent.get("/readyz").status == 200).then_some(()));
    // More than there are threads that schedule.
    let ids: Vec<String> = (0..4).map(|_| job_id("noengine")).collect();
    let receipts: Vec<Value> = ids.iter().map(|id| agent.accepted(&manifest(id, &["echo", id]))).collect();
    let waiting = eventually("the first job says what it waits for", || {
        agent.get(&format!("/api/jobs/{}", ids[0])).json()["waiting_for"].as_str().map(str::to_owned)
    });
    assert!(waiting.contains("/nonexistent.sock"), "{waiting}");
    let cancelled = job_id("noengine");
    agent.accepted(&manifest(&cancelled, &["true"]));
    let answer = agent.post(&format!("/api/jobs/{cancelled}/cancel"), b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(agent.ended(&cancelled)["state"], "CANCELLED", "a job that waits can be cancelled without an engine");
    for id in &ids {
        assert_eq!(agent.get(&format!("/api/jobs/{id}")).json()["state"], "RECEIVED");
    }
    agent.kill();
    sound(&site, &receipts);

    let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    assert_eq!(agent.get("/api/jobs?phase=waiting").json()["jobs"].as_array().unwrap().len(), ids.len());
    assert_eq!(agent.terminate(), Some(0), "the absent engine does not hold up the end");

    let agent = site.start(&[]);
    for id in &ids {
        assert_eq!(agent.ended(id)["state"], "SEALED", "{}", agent.said());
        assert_eq!(agent.get(&format!("/api/jobs/{id}/stdout")).text(), format!("{id}\n"));
    }
    assert_eq!(agent.get("/api/node").json()["engine"]["available"], true);
    assert_eq!(agent.ended(&cancelled)["state"], "CANCELLED");
    sound(&site, &receipts);
}

/// Submits jobs until the answer is 503; the receipts of those before.
fn submit_until_full(agent: &Agent) -> Vec<Value> {
    let mut receipts = Vec::new();
    for _ in 0..400 {
        let answer = agent.submit(&manifest(&job_id("full"), &["true"]));
        if answer.status != 200 {
            assert_eq!(answer.status, 503, "{}", answer.text());
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "ledger_full", "{error}");
            assert!(error["message"].as_str().unwrap().contains("free space below --data"), "{error}");
            assert!(answer.header("retry-after").is_some(), "{:?}", answer.headers);
            return receipts;
        }
        receipts.push(answer.json());
    }
    panic!("400 jobs were accepted on a full disk");
}

/// A site whose data directory is a file system of 24 MiB; `None`, said on standard output, without the right to mount.
#[allow(clippy::print_stdout)]
fn site_on_a_small_disk() -> Option<Site> {
    let site = Site::new("full");
    fs::create_dir(site.data()).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(site.data()).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        return Some(site);
    }
    println!("skipped: a full disk needs the right to mount a tmpfs");
    None
}

/// The file that takes all the space.
fn fill_the_disk(site: &Site) -> PathBuf {
    let path = site.data().join("fill");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[b'x'; BLOCK]).is_ok() {}
    path
}

#[test]
fn a_full_disk_refuses_new_jobs_and_heals() {
    let Some(site) = site_on_a_small_disk() else { return };
    let without_engine = || site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let agent = without_engine();
    let first = manifest(&job_id("full"), &["true"]);
    let mut receipts = vec![agent.accepted(&first)];
    let fill = fill_the_disk(&site);
    receipts.extend(submit_until_full(&agent));
    assert!(receipts.len() > 2, "what fits into the segment at hand is accepted");
    let all_there = |agent: &Agent, receipts: &[Value]| {
        assert_eq!(agent.get("/readyz").status, 200);
        let jobs = agent.get("/api/jobs?limit=1000").json()["jobs"].as_array().unwrap().len();
        assert_eq!(jobs, receipts.len());
        for receipt in receipts {
            let trace = agent.get(&format!("/api/jobs/{}/trace", receipt["job_id"].as_str().unwrap()));
            assert_eq!(trace.status, 200);
            assert!(trace.text().starts_with(&format!("{{\"seq\":{},", receipt["seq"])), "{}", trace.text());
        }
        let again = agent.submit(&first);
        assert_eq!((again.status, &again.json()["duplicate"]), (200, &json!(true)), "{}", again.text());
    };
    all_there(&agent, &receipts);
    let cancel = format!("/api/jobs/{}/cancel", receipts[1]["job_id"].as_str().unwrap());
    assert_eq!(agent.post(&cancel, b"").status, 200, "what frees space is not refused");
    sound(&site, &receipts);

    agent.kill();
    let agent = without_engine();
    receipts.extend(submit_until_full(&agent));
    all_there(&agent, &receipts);

    fs::remove_file(&fill).unwrap();
    let healed = eventually("jobs are accepted again", || {
        let answer = agent.submit(&manifest(&job_id("full"), &["true"]));
        (answer.status == 200).then(|| answer.json())
    });
    receipts.push(healed);
    for _ in 0..20 {
        receipts.push(agent.accepted(&manifest(&job_id("full"), &["true"])));
    }
    all_there(&agent, &receipts);
    assert_eq!(agent.terminate(), Some(0));
    sound(&site, &receipts);

    let agent = site.start(&[]);
    for receipt in &receipts[2..4] {
        let id = receipt["job_id"].as_str().unwrap();
        assert_eq!(agent.ended(id)["state"], "SEALED", "{}", agent.said());
    }
}

#[test]
fn a_full_disk_loses_no_output_and_fails_no_job() {
    let Some(site) = site_on_a_small_disk() else { return };
    let shared = site.mountable("shared");
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    let agent = site.start(&["--workers", "4"]);
    // What they print goes to the full disk; the directory they look at does not lie on it. A CLI that cannot write ends with
    // 1 itself, so that code must not be taken for the payload's.
    let late = |code: u8| {
        let id = job_id("full");
        let script = format!("while [ ! -e go ]; do sleep 0.1; done; echo late; exit {code}");
        let mut manifest = manifest(&id, &["sh", "-c", &script]);
        manifest["mount_spec"] = json!(format!("{}:/w:ro", shared.display()));
        let receipt = agent.accepted(&manifest);
        assert_eq!(agent.get(&format!("/api/jobs/{id}?wait=RUNNING")).json()["state"], "RUNNING", "{}", agent.said());
        (id, receipt)
    };
    let jobs = [(0, "SEALED"), (1, "FAILED"), (7, "FAILED")].map(|(code, state)| (late(code), state));
    let fill = fill_the_disk(&site);
    fs::write(shared.join("go"), "").unwrap();
    let new = manifest(&job_id("full"), &["echo", "late"]);
    let new_receipt = agent.accepted(&new);
    let new_id = new["job_id"].as_str().unwrap();
    for id in [jobs[0].0.0.as_str(), new_id] {
        eventually("it waits for space", || {
            let job = agent.get(&format!("/api/jobs/{id}")).json();
            assert_ne!(job["phase"], "ended", "{job}\n{}", agent.said());
            job["waiting_for"].as_str().filter(|why| why.contains("No space left")).map(drop)
        });
    }
    fs::remove_file(&fill).unwrap();
    for (id, state) in jobs.iter().map(|((id, _), state)| (id.as_str(), *state)).chain([(new_id, "SEALED")]) {
        assert_eq!(agent.ended(id)["state"], state, "{}", agent.said());
        assert_eq!(agent.get(&format!("/api/jobs/{id}/stdout")).text(), "late\n", "{id} {state}: {}", agent.said());
    }
    assert_eq!(agent.terminate(), Some(0));
    let receipts: Vec<Value> = jobs.into_iter().map(|((_, receipt), _)| receipt).chain([new_receipt]).collect();
    sound(&site, &receipts);
}

#[test]
fn an_agent_without_any_space_left_can_be_stopped() {
    let Some(site) = site_on_a_small_disk() else { return };
    let start = || site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
    let agent = start();
    let fill = fill_the_disk(&site);
    let mut large = manifest(&job_id("full"), &["true"]);
    large["env"] =
        ["A", "B", "C", "D", "E"].iter().map(|name| (name.to_string(), json!("x".repeat(100_000)))).collect();
    let receipt = agent.accepted(&large);
    agent.kill();
    let segment = site.segments().pop().unwrap();
    let blocks_left = || {
        let bytes = fs::read(&segment).unwrap();
        bytes.chunks(BLOCK).rev().take_while(|block| block.iter().all(|b| *b == 0)).count()
    };
    // Each start writes one event and, when it has been idle for a while, a mark; an event leaves a block free for its mark.
    let start_and_mark = || {
        let before = blocks_left();
        let agent = start();
        eventually("an event and a mark are written", || (blocks_left() + 2 == before).then_some(()));
        agent
    };
    while blocks_left() > 3 {
        start_and_mark().kill();
    }
    let agent = start_and_mark();
    assert_eq!(agent.get("/api/jobs").json()["jobs"].as_array().unwrap().len(), 1);
    let code = agent.terminate();
    assert!(matches!(code, Some(0 | 74)), "{code:?}");
    sound(&site, std::slice::from_ref(&receipt));
    fs::remove_file(fill).unwrap();
    assert_eq!(start().terminate(), Some(0));
    sound(&site, &[receipt]);
}
