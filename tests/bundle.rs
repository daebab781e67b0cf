//! Bundles of jobs: that anybody's tools read and check them, and that none with wrong content is whole. Real agent,
//! real containers, real tar, sha256sum and Python.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod sealed_support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use agent::{Agent, Answer, Site, eventually, hackbrain, job_id, manifest};
use hackbrain::hash::Hash;
use sealed_support::{odd_files, path, refused, sealed, shell, write_file};
use serde_json::Value;

fn bundle_url(id: &str) -> String {
    format!("/api/jobs/{id}/bundle")
}

/// A bundle that must come whole.
#[track_caller]
fn fetch(agent: &Agent, url: &str) -> Answer {
    let answer = agent.get(url);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/x-tar"));
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()), "it came whole");
    answer
}

fn run(program: &str, args: &[&str], dir: &Path) -> Output {
    let command = Command::new(program).args(args).current_dir(dir).env("LC_ALL", "C.UTF-8").output();
    command.unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[track_caller]
fn succeeds(program: &str, args: &[&str], dir: &Path) -> String {
    let output = run(program, args, dir);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The check that docs/evidence.md and README.txt tell, where JOB.tar lies: its last line, or all that was said.
fn check(dir: &Path, id: &str) -> Result<String, String> {
    let line = format!(
        "tar xf {id}.tar && (cd {id} && sha256sum -c --quiet SHA256SUMS) && python3 {id}/verify.py --bundle {id}.tar"
    );
    let output = run("sh", &["-c", &line], dir);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let last = said.lines().last().filter(|last| output.status.success() && last.starts_with("head "));
    last.map(str::to_owned).ok_or(said)
}

/// Puts a bundle into an empty directory and takes it apart there, and checks its sums; where its files lie.
#[track_caller]
fn unpack(site: &Site, id: &str, what: &str, bytes: &[u8]) -> std::path::PathBuf {
    let dir = site.dir().join("unpacked").join(what);
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("{id}.tar")), bytes).unwrap();
    succeeds("tar", &["xf", &format!("{id}.tar")], &dir);
    let unpacked = dir.join(id);
    succeeds("sha256sum", &["-c", "--quiet", "--strict", "SHA256SUMS"], &unpacked);
    let sums = fs::read(unpacked.join("SHA256SUMS")).unwrap();
    let lines = sums.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count();
    assert_eq!(lines, files_below(&unpacked).len() - 1, "every other file has a line");
    let last = check(&dir, id).unwrap_or_else(|said| panic!("{what}: {said}"));
    let events = events(&fs::read_to_string(unpacked.join("events.jsonl")).unwrap());
    assert_eq!(last.split(' ').nth(1), Some(events.last().unwrap()["seq"].to_string().as_str()), "{last}");
    unpacked
}

/// Regular files, relative.
fn files_below(dir: &Path) -> BTreeSet<Vec<u8>> {
    let (mut found, mut left) = (BTreeSet::new(), vec![dir.to_owned()]);
    while let Some(below) = left.pop() {
        for entry in fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(dir).unwrap().as_os_str().as_bytes().to_vec());
            }
        }
    }
    found
}

fn names(files: &BTreeSet<Vec<u8>>) -> Vec<&str> {
    files.iter().map(|name| std::str::from_utf8(name).unwrap()).collect()
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What Python's tarfile reads: names in order, type, mode, size, owner, time.
fn members(dir: &Path, tar: &str) -> Vec<String> {
    let script = "import sys, tarfile\n\
         for m in tarfile.open(sys.argv[1]):\n\
         \x20   print(ascii(m.name), m.type.decode(), oct(m.mode), m.size, m.uid, m.gid, m.mtime, sep='\\t')\n";
    succeeds("python3", &["-c", script, tar], dir).lines().map(str::to_owned).collect()
}

#[test]
fn a_sealed_job_is_whole_and_every_tool_reads_it() {
    let site = Site::new("bundle");
    let agent = site.start(&[]);
    let id = job_id("bundle");
    let lines: String = odd_files().iter().map(|(name, content)| write_file(name, content)).collect();
    let line = lines
        + "echo '#!/bin/sh' > run; chmod 750 run; ln -s run link; echo out; echo err >&2; \
           head -c 3000000 /dev/zero > big";
    sealed(&agent, &site, &id, &line);
    let url = bundle_url(&id);
    let answer = fetch(&agent, &url);
    let disposition = format!("attachment; filename=\"{id}.tar\"");
    assert_eq!(answer.header("content-disposition"), Some(disposition.as_str()));
    assert!(fetch(&agent, &url).body == answer.body, "the same again");
    let head = agent.request("HEAD", &url, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), answer.header("content-length"));

    let unpacked = unpack(&site, &id, "gnu", &answer.body);
    let read = |name: &str| fs::read_to_string(unpacked.join(name)).unwrap();
    for (name, content) in odd_files() {
        let file = unpacked.join("artifacts/job/workdir").join(path(&name));
        assert_eq!(fs::read(&file).unwrap(), content, "{:?}", String::from_utf8_lossy(&name));
    }
    let mode = |name: &str| fs::metadata(unpacked.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("artifacts/job/workdir/run"), mode("artifacts/job/workdir/plain.csv")), (0o755, 0o644));
    assert_eq!(fs::metadata(unpacked.join("seal.json")).unwrap().mtime(), 0);
    assert!(fs::symlink_metadata(unpacked.join("artifacts/job/workdir/link")).is_err());

    assert_eq!(read("events.jsonl"), agent.get(&format!("/api/jobs/{id}/trace")).text());
    assert_eq!(read("seal.json"), agent.get(&format!("/api/jobs/{id}/seal")).text());
    assert_eq!((read("logs/1.stdout").as_str(), read("logs/1.stderr").as_str()), ("out\n", "err\n"));
    let trace = events(&read("events.jsonl"));
    assert_eq!(trace[0]["detail"]["manifest_hash"], Hash::of(read("manifest.json").as_bytes()).to_string());
    assert_eq!(
        trace.last().unwrap()["detail"]["artifacts_root"],
        Hash::of(&fs::read(unpacked.join("seal.sha256")).unwrap()).to_string()
    );
    assert_eq!(read("inputs.json"), fs::read_to_string(site.data().join(format!("inputs/{id}.json"))).unwrap());
    let ledger = agent.get("/api/ledger").text();
    assert_eq!(read("node.jsonl").lines().collect::<Vec<_>>(), ledger.lines().take(2).collect::<Vec<_>>());
    assert!(read("README.txt").contains(&format!("python3 {id}/verify.py --bundle {id}.tar")));

    // bsdtar is not everywhere; where it is, it must agree.
    let dir = unpacked.parent().unwrap();
    if Command::new("bsdtar").arg("--version").output().is_ok() {
        fs::create_dir(dir.join("bsd")).unwrap();
        succeeds("bsdtar", &["-xf", &format!("{id}.tar"), "-C", "bsd"], dir);
        assert_eq!(files_below(&dir.join("bsd").join(&id)), files_below(&unpacked));
        succeeds("sha256sum", &["-c", "--quiet", "--strict", "SHA256SUMS"], &dir.join("bsd").join(&id));
    }
    let members = members(dir, &format!("{id}.tar"));
    let first: Vec<&str> = members.iter().take(4).map(|line| line.split('\t').next().unwrap()).collect();
    let expected = ["", "/README.txt", "/SHA256SUMS", "/verify.py"].map(|name| format!("'{id}{name}'"));
    assert_eq!(first, expected);
    assert!(members.iter().all(|line| line.ends_with("\t0\t0\t0")), "no owner, no time: {members:#?}");
    let listed: BTreeSet<&String> = members.iter().collect();
    assert_eq!(listed.len(), members.len(), "each entry once, directories too");
    let files = members.iter().filter(|line| line.split('\t').nth(1) == Some("0")).count();
    assert_eq!(files, files_below(&unpacked).len());

    // Whichever byte of a file's content changes, a check says so.
    let tampered = site.dir().join("tampered");
    fs::create_dir(&tampered).unwrap();
    let whole = &answer.body;
    let at = |content: &[u8]| whole.windows(content.len()).position(|window| window == content).unwrap();
    let places = [
        at(b"Evidence of the job"),
        at(b"Checks what HackBrain"),
        at(b",\"state\":\"RECEIVED\"") + 12,
        at(b"\"state\":\"NODE_UP\"") + 10,
        at(b"out\n"),
        at(b"in plain.csv"),
        at(b"in \xff\xfe/\x01"),
        at(b"\"artifacts_root\":\"") + 20,
    ];
    for place in places {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        fs::write(tampered.join(format!("{id}.tar")), &bytes).unwrap();
        assert!(check(&tampered, &id).is_err(), "byte {place} is another");
    }

    let without = fetch(&agent, &format!("{url}?artifacts=no"));
    let unpacked = unpack(&site, &id, "without", &without.body);
    assert!(!unpacked.join("artifacts").exists() && unpacked.join("seal.sha256").exists());
    assert!(fetch(&agent, &format!("{url}?artifacts=yes")).body == answer.body);

    for (query, code) in
        [("artifacts=maybe", "bad_parameter"), ("x=1", "unknown_parameter"), ("artifacts", "bad_parameter")]
    {
        let (status, found, _) = refused(&agent, &format!("{url}?{query}"));
        assert_eq!((status, found.as_str()), (400, code), "{query}");
    }
    let post = agent.post(&url, b"{}");
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(refused(&agent, &bundle_url("none")).1, "no_such_job");
}

#[test]
fn a_job_that_did_not_succeed_has_what_there_is() {
    let site = Site::new("bundle-failed");
    let agent = site.start(&["--pull", "never"]);
    let (failing, never, running) = (job_id("failing"), job_id("never"), job_id("running"));
    let (job, _) = shell(&site, &failing, "echo out; echo file > file; exit 3");
    agent.accepted(&job);
    assert_eq!(agent.ended(&failing)["reason"], "exit");
    let mut job = manifest(&never, &["true"]);
    job["image_hash"] = "no-such-image:0".into();
    agent.accepted(&job);
    assert_eq!(agent.ended(&never)["reason"], "image");
    // Its first attempt crashes under the second agent, and so its second one runs under that.
    let (mut job, dir) = shell(
        &site,
        &running,
        "echo start >> starts; while ! test -e go; do sleep 0.1; done; \
         test $(wc -l < starts) = 2 || kill -9 $$; exec sleep 600",
    );
    job["max_attempts"] = 2.into();
    agent.accepted(&job);
    let starts = |count| {
        eventually("it starts", || {
            (fs::read_to_string(dir.join("starts")).unwrap_or_default().lines().count() == count).then_some(())
        });
    };
    starts(1);
    let (status, code, message) = refused(&agent, &bundle_url(&running));
    assert_eq!((status, code.as_str()), (409, "not_ended"), "{message}");
    agent.kill();
    let agent = site.start(&["--pull", "never"]);
    fs::write(dir.join("go"), "").unwrap();
    starts(2);
    agent.post(&format!("/api/jobs/{running}/cancel"), b"");
    assert_eq!(agent.ended(&running)["state"], "CANCELLED");

    let plain = ["README.txt", "SHA256SUMS", "events.jsonl", "manifest.json", "node.jsonl", "verify.py"];
    let with = |more: &[&'static str]| {
        let mut names: Vec<&str> = plain.iter().chain(more).copied().collect();
        names.sort_unstable();
        names
    };
    let tar = fetch(&agent, &bundle_url(&failing)).body;
    let unpacked = unpack(&site, &failing, "failing", &tar);
    let files = files_below(&unpacked);
    assert_eq!(names(&files), with(&["inputs.json", "logs/1.stdout", "logs/1.stderr"]));
    assert_eq!(fs::read_to_string(unpacked.join("logs/1.stdout")).unwrap(), "out\n");
    let tar = fetch(&agent, &bundle_url(&never)).body;
    let files = files_below(&unpack(&site, &never, "never", &tar));
    assert_eq!(names(&files), with(&[]), "it never was scheduled");
    let tar = fetch(&agent, &bundle_url(&running)).body;
    let unpacked = unpack(&site, &running, "cancelled", &tar);
    let logs = ["inputs.json", "logs/1.stdout", "logs/1.stderr", "logs/2.stdout", "logs/2.stderr"];
    assert_eq!(names(&files_below(&unpacked)), with(&logs));
    let node = events(&fs::read_to_string(unpacked.join("node.jsonl")).unwrap());
    let states: Vec<&str> = node.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["GENESIS", "NODE_UP", "NODE_UP"]);

    // Once it goes on, it has not ended.
    agent.post(&format!("/api/jobs/{running}/retrigger"), b"");
    assert_eq!(refused(&agent, &bundle_url(&running)).1, "not_ended");
}

#[test]
fn no_whole_bundle_has_wrong_content() {
    let site = Site::new("bundle-wrong");
    let agent = site.start(&[]);
    let id = job_id("wrong");
    let line = "echo out; i=10; while test $i -lt 40; do echo artifact > f$i; i=$((i+1)); done; \
                head -c 1000000 /dev/zero > zeros";
    let dir = sealed(&agent, &site, &id, line);
    let url = bundle_url(&id);
    let whole = fetch(&agent, &url).body;
    let conflict = |code: &str, words: &[&str]| {
        let (status, found, message) = refused(&agent, &url);
        assert_eq!((status, found.as_str()), (409, code), "{message}");
        words.iter().for_each(|words| assert!(message.contains(words), "{words}: {message}"));
        assert_eq!(agent.request("HEAD", &url, &[], b"").status, 409);
        message
    };
    fs::remove_file(dir.join("f20")).unwrap();
    fs::write(dir.join("f30"), "longer artifact\n").unwrap();
    let message = conflict("artifacts_changed", &["/job/workdir/f20", "/job/workdir/f30", "16 bytes instead of 9"]);
    assert!(!message.contains("f21") && !message.contains("more"), "{message}");
    (10..40).for_each(|n| drop(fs::remove_file(dir.join(format!("f{n}")))));
    let message = conflict("artifacts_changed", &["f10", "f29", ", and 10 more", "artifacts=no"]);
    assert!(!message.contains("f30"), "{message}");
    let without = fetch(&agent, &format!("{url}?artifacts=no")).body;
    unpack(&site, &id, "without", &without);
    (10..40).for_each(|n| fs::write(dir.join(format!("f{n}")), "artifact\n").unwrap());
    std::os::unix::fs::symlink("f10", dir.join("link")).unwrap();
    fs::rename(dir.join("link"), dir.join("f11")).unwrap();
    conflict("artifacts_changed", &["f11", "a symlink"]);
    fs::remove_file(dir.join("f11")).unwrap();
    fs::write(dir.join("f11"), "artifact\n").unwrap();
    assert!(fetch(&agent, &url).body == whole, "put back, it is the same");

    // Of the same length, but others: noticed only when they are read.
    let cut = |agent: &Agent, of: &[u8]| {
        let answer = agent.get(&url);
        let told: usize = answer.header("content-length").unwrap().parse().unwrap();
        assert_eq!((answer.status, told), (200, whole.len()));
        assert!(answer.body.len() < told, "the transfer is not whole");
        assert!(!answer.body.windows(of.len()).any(|window| window == of), "what is wrong was not sent");
        let tar = site.dir().join("cut.tar");
        fs::write(&tar, &answer.body).unwrap();
        assert!(!run("tar", &["tf", tar.to_str().unwrap()], site.dir()).status.success(), "tar notices");
        eventually("the agent's log says so", || agent.said().contains("is cut off").then_some(()));
    };
    fs::write(dir.join("f25"), "ARTIFACT\n").unwrap();
    cut(&agent, b"ARTIFACT");
    assert!(agent.said().contains("/artifacts/job/workdir/f25"), "{}", agent.said());
    fs::write(dir.join("f25"), "artifact\n").unwrap();
    let mut zeros = vec![0; 1_000_000];
    zeros[999_999] = b'!';
    fs::write(dir.join("zeros"), &zeros).unwrap();
    cut(&agent, b"!\0\0\0\0");
    fs::write(dir.join("zeros"), vec![0; 1_000_000]).unwrap();
    let log = site.data().join(format!("logs/{id}/1.stdout"));
    fs::write(&log, "OUT\n").unwrap();
    cut(&agent, b"OUT\n");

    fs::write(&log, "more\n").unwrap();
    conflict("log_changed", &["stdout of attempt 1", "4 bytes", "5"]);
    fs::remove_file(&log).unwrap();
    conflict("log_changed", &["missing"]);
    fs::write(&log, "out\n").unwrap();
    for (name, code) in
        [("seals", "json"), ("seals", "sha256")].map(|(dir, end)| (format!("{dir}/{id}.{end}"), "seal_changed"))
    {
        let file = site.data().join(name);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, [bytes.as_slice(), b"\n"].concat()).unwrap();
        conflict(code, &["not the one"]);
        fs::remove_file(&file).unwrap();
        conflict(code, &["missing"]);
        fs::write(&file, bytes).unwrap();
    }
    let inputs = site.data().join(format!("inputs/{id}.json"));
    let bytes = fs::read(&inputs).unwrap();
    fs::remove_file(&inputs).unwrap();
    conflict("inputs_changed", &["missing"]);
    fs::write(&inputs, bytes).unwrap();
    assert!(fetch(&agent, &url).body == whole);
    assert_eq!(agent.terminate(), Some(0));

    let other = site.dir().join("other-root");
    fs::create_dir(&other).unwrap();
    let mut command = hackbrain();
    command.arg("serve").arg("--data").arg(site.data()).arg("--mount-root").arg(&other);
    command.args(["--listen", "127.0.0.1:0", "--segment-size", "4194304"]);
    let agent = site.start_command(&mut command);
    let (status, code, _) = refused(&agent, &url);
    assert_eq!((status, code.as_str()), (403, "mount_outside_roots"));
    assert!(fetch(&agent, &format!("{url}?artifacts=no")).body == without, "it needs no mount");
}

#[test]
fn many_files_and_large_ones_cost_little_memory() {
    let site = Site::new("bundle-many");
    let agent = site.start(&[]);
    let id = job_id("many");
    let line = "i=0; while test $i -lt 50; do mkdir d$i; i=$((i+1)); done; \
                for d in d*; do (cd $d; seq 1 100 | xargs touch); done; head -c 150000000 /dev/urandom > big";
    sealed(&agent, &site, &id, line);
    fetch(&agent, &format!("{}?artifacts=no", bundle_url(&id)));
    let before = agent.memory_kib("VmHWM");
    let tar = fetch(&agent, &bundle_url(&id)).body;
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(tar.len() > 152_000_000 && grown < 8 << 10, "{grown} KiB more memory at most");
    let unpacked = unpack(&site, &id, "many", &tar);
    assert!(files_below(&unpacked).len() > 5_000);
}
