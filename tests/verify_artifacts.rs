//! `hackbrain verify --artifacts` where files cannot be read, or the user has seen enough. What it finds is in tampering.rs.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent::{Ended, Site, hackbrain, job_id, manifest};

/// A data directory with one sealed job, and its id.
fn sealed(site: &Site) -> String {
    let id = job_id("verify");
    let agent = site.start(&[]);
    agent.accepted(&manifest(&id, &["sh", "-c", "echo out; echo made > made"]));
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    assert_eq!(agent.terminate(), Some(0));
    id
}

fn verify(site: &Site) -> Command {
    let mut command = hackbrain();
    command.args(["verify", "--artifacts", "--data"]).arg(site.data());
    command
}

/// For anybody to read, but not to write.
fn open_up(path: &Path) {
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for below in path.is_dir().then(|| fs::read_dir(path).unwrap()).into_iter().flatten() {
        open_up(&below.unwrap().path());
    }
}

#[test]
fn what_cannot_be_read_is_no_verdict() {
    let site = Site::new("verify-unreadable");
    let id = sealed(&site);
    assert_eq!(verify(&site).output().unwrap().status.code(), Some(0));
    if fs::metadata(site.data()).unwrap().uid() != 0 {
        // Only root can become somebody who may not read it.
        return;
    }
    // Before everything is opened up: `made` must keep its mode.
    let made = site.data().join(format!("scratch/{id}/made"));
    let mode = fs::metadata(&made).unwrap().permissions();
    open_up(&site.data());
    fs::set_permissions(&made, mode).unwrap();
    let program = site.dir().join("hackbrain");
    fs::copy(hackbrain().get_program(), &program).unwrap();
    let nobody = || {
        let mut command = Command::new(&program);
        command.args(["verify", "--artifacts", "--data"]).arg(site.data()).uid(65_533).gid(65_533);
        Ended::of(&mut command)
    };
    let log = format!("logs/{id}/1.stdout");
    let close = |path: PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    close(site.data().join(&log));
    let ended = nobody();
    assert_eq!(ended.code, Some(74), "{ended:?}");
    assert!(ended.stdout.contains(&format!("\nunreadable {id} {log}: ")), "{ended:?}");
    assert!(ended.stdout.lines().last().unwrap().starts_with("head "), "{ended:?}");
    // The rest was checked all the same, and a fault weighs more.
    fs::write(site.data().join(format!("seals/{id}.sha256")), "other").unwrap();
    let ended = nobody();
    assert_eq!(ended.code, Some(65), "{ended:?}");
    assert!(ended.stdout.contains("\nunreadable ") && ended.stdout.contains("\nfault list_changed "), "{ended:?}");
    // A directory that cannot be looked into, and one that cannot be opened.
    fs::create_dir(site.data().join(format!("scratch/{id}/closed"))).unwrap();
    close(site.data().join(format!("scratch/{id}/closed")));
    let ended = nobody();
    assert!(ended.stdout.contains(&format!("\nunreadable {id} /job/workdir/closed: ")), "{ended:?}");
    close(site.data().join("scratch"));
    let ended = nobody();
    assert!(ended.stdout.contains(&format!("\nunreadable {id} /job/workdir: ")), "{ended:?}");
    assert!(!ended.stdout.contains("fault artifact"), "{ended:?}");
    open_up(&site.data());
}

#[test]
fn ctrl_c_ends_with_what_was_checked_until_then() {
    let site = Site::new("verify-interrupted");
    let id = sealed(&site);
    // A seal that takes hours to hash.
    let seal = fs::File::options().write(true).open(site.data().join(format!("seals/{id}.json"))).unwrap();
    seal.set_len(1 << 42).unwrap();
    fs::remove_file(site.data().join(format!("logs/{id}/1.stdout"))).unwrap();
    let mut child = verify(&site).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    // The log comes before the seal.
    let mut text = String::new();
    while !text.contains("fault log_missing ") {
        assert!(out.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    let lines: Vec<&str> = text.lines().rev().collect();
    assert!(lines[0].starts_with("head "), "{text}");
    assert!(
        lines[1].starts_with("interrupted; files checked until then: 0 of 1 jobs, ") && lines[1].contains("1 faults")
    );
    assert!(!text.contains("fault seal"), "what was not read to its end has no verdict: {text}");
}
