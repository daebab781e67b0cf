//! Two jobs never write one directory at once: real jobs on shared directories, cancels, crashes and restarts.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use agent::{Agent, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

/// A job that mounts `spec`, says in its first mount that it is at work, waits until `NAME.go` is there, and tells what it
/// found: `alone`, or who else was at work.
fn worker(id: &str, spec: Value) -> Value {
    let line = format!(
        "ls | grep busy > {id}.found; touch {id}.busy; until test -e {id}.go; do sleep 0.05; done; rm {id}.busy; \
         test -s {id}.found || echo alone"
    );
    let mut job = manifest(id, &["sh", "-c", &line]);
    job["mount_spec"] = spec;
    job
}

fn on(dir: &Path) -> Value {
    format!("{}:/job/workdir", dir.display()).into()
}

fn job(agent: &Agent, id: &str) -> Value {
    agent.get(&format!("/api/jobs/{id}")).json()
}

fn is_at_work(dir: &Path, id: &str) -> bool {
    dir.join(format!("{id}.busy")).exists()
}

fn at_work(dir: &Path, id: &str) {
    eventually(&format!("{id} is at work"), || is_at_work(dir, id).then_some(()));
}

fn go(dir: &Path, id: &str) {
    fs::write(dir.join(format!("{id}.go")), "").unwrap();
}

/// Until it waits, and why.
fn waits(agent: &Agent, id: &str) -> String {
    eventually(&format!("{id} waits"), || job(agent, id)["waiting_for"].as_str().map(str::to_owned))
}

fn sealed_alone(agent: &Agent, id: &str) {
    let summary = agent.ended(id);
    assert_eq!(summary["state"], "SEALED", "{summary}");
    assert_eq!(agent.get(&format!("/api/jobs/{id}/stdout")).text(), "alone\n");
}

#[test]
fn one_after_the_other_in_the_order_they_came() {
    let site = Site::new("turns");
    let agent = site.start(&["--workers", "4"]);
    let (outer, elsewhere) = (site.mountable("outer"), site.mountable("elsewhere"));
    let inner = site.mountable("outer/inner");
    let [first, second, third, fourth, beside] = ["1", "2", "3", "4", "5"].map(job_id);
    agent.accepted(&worker(&first, on(&outer)));
    at_work(&outer, &first);
    // What lies in it is in use, too; and who comes first goes first, whatever is free.
    agent.accepted(&worker(&second, json!([on(&elsewhere), format!("{}:/in", inner.display())])));
    agent.accepted(&worker(&third, on(&elsewhere)));
    agent.accepted(&worker(&fourth, on(&inner)));
    agent.accepted(&worker(&beside, on(&site.mountable("beside"))));
    at_work(&site.root().join("beside"), &beside);
    go(&site.root().join("beside"), &beside);
    sealed_alone(&agent, &beside);
    assert_eq!(
        waits(&agent, &second),
        format!("directory {} is in use by job {first} (as {}), which has not ended", inner.display(), outer.display())
    );
    assert_eq!(
        waits(&agent, &third),
        format!("directory {} goes first to job {second}, which came before and waits itself", elsewhere.display())
    );
    for id in [&second, &third, &fourth] {
        assert_eq!(job(&agent, id)["state"], "RECEIVED", "nothing is hashed while somebody may write");
    }
    go(&outer, &first);
    sealed_alone(&agent, &first);
    at_work(&elsewhere, &second);
    assert!(waits(&agent, &third).ends_with("which has not ended"));
    go(&elsewhere, &second);
    sealed_alone(&agent, &second);
    for (dir, id) in [(&elsewhere, &third), (&inner, &fourth)] {
        at_work(dir, id);
        go(dir, id);
        sealed_alone(&agent, id);
        assert_eq!(job(&agent, id)["waiting_for"], Value::Null);
    }
}

#[test]
fn readers_share_and_writers_wait_for_them() {
    let site = Site::new("readers");
    let agent = site.start(&["--workers", "4"]);
    let shared = site.mountable("shared");
    let reader = |id: &str| {
        let own = site.mountable(id);
        let spec = json!([on(&own), format!("{}:/shared:ro", shared.display())]);
        agent.accepted(&worker(id, spec));
        own
    };
    let [one, two, late, writer] = ["r1", "r2", "r3", "w"].map(job_id);
    let (own, own_too) = (reader(&one), reader(&two));
    at_work(&own, &one);
    at_work(&own_too, &two);
    agent.accepted(&worker(&writer, on(&shared)));
    let own_late = reader(&late);
    assert!(waits(&agent, &late).contains(&format!("goes first to job {writer}")), "a writer is not starved");
    go(&own, &one);
    go(&own_too, &two);
    at_work(&shared, &writer);
    assert!(!is_at_work(&own_late, &late));
    go(&shared, &writer);
    sealed_alone(&agent, &writer);
    at_work(&own_late, &late);
    go(&own_late, &late);
    sealed_alone(&agent, &late);
}

#[test]
fn a_cancel_lets_the_next_one_go() {
    let site = Site::new("claim-cancel");
    let agent = site.start(&["--workers", "4"]);
    let (dir, other) = (site.mountable("d"), site.mountable("e"));
    let [running, waiting, behind, missing] = ["1", "2", "3", "4"].map(job_id);
    agent.accepted(&worker(&running, on(&dir)));
    at_work(&dir, &running);
    agent.accepted(&worker(&waiting, json!([on(&dir), format!("{}:/e", other.display())])));
    agent.accepted(&worker(&behind, on(&other)));
    assert!(waits(&agent, &behind).contains(&waiting));
    // One that waits for nothing but the one that waits.
    assert_eq!(agent.post(&format!("/api/jobs/{waiting}/cancel"), b"{}").status, 200);
    at_work(&other, &behind);
    go(&other, &behind);
    sealed_alone(&agent, &behind);
    // One whose directory goes away while it waits is refused when its turn comes.
    let gone = site.mountable("d/gone");
    agent.accepted(&worker(&missing, on(&gone)));
    assert!(waits(&agent, &missing).contains(&running));
    fs::remove_dir(&gone).unwrap();
    assert_eq!(agent.post(&format!("/api/jobs/{running}/cancel"), b"{}").status, 200);
    assert_eq!(agent.ended(&running)["state"], "CANCELLED");
    let summary = agent.ended(&missing);
    assert_eq!((summary["state"].as_str(), summary["reason"].as_str()), (Some("FAILED"), Some("mount")), "{summary}");
}

#[test]
fn a_claim_outlives_crashes_and_agents() {
    let site = Site::new("claim-restart");
    let agent = site.start(&["--workers", "4"]);
    let dir = site.mountable("d");
    let [first, second, third] = ["1", "2", "3"].map(job_id);
    agent.accepted(&worker(&first, on(&dir)));
    at_work(&dir, &first);
    agent.accepted(&worker(&second, on(&dir)));
    agent.accepted(&worker(&third, on(&dir)));
    // Its payload dies, and the directory stays its own for the next attempt.
    fs::remove_file(dir.join(format!("{first}.busy"))).unwrap();
    let killed = Command::new("docker").args(["kill", "-s", "KILL", &format!("hb-{first}-1")]).output().unwrap();
    assert!(killed.status.success());
    at_work(&dir, &first);
    assert_eq!(job(&agent, &first)["attempt"], 2);
    assert!(!is_at_work(&dir, &second) && !is_at_work(&dir, &third));
    // The agent dies, and meanwhile the directory is replaced: by its path it is still in use.
    agent.kill();
    let old = site.root().join("old");
    fs::rename(&dir, &old).unwrap();
    fs::create_dir(&dir).unwrap();
    let agent = site.start(&["--workers", "4"]);
    assert!(waits(&agent, &second).contains(&first));
    assert!(waits(&agent, &third).contains(&second));
    go(&old, &first);
    sealed_alone(&agent, &first);
    for id in [&second, &third] {
        at_work(&dir, id);
        go(&dir, id);
        sealed_alone(&agent, id);
    }
}

#[test]
fn another_name_of_a_directory_is_the_same_directory() {
    let site = Site::new("claim-alias");
    let agent = site.start(&["--workers", "4"]);
    let (tree, part) = (site.mountable("tree"), site.mountable("tree/mid/part"));
    let alias = site.mountable("alias");
    let mount = Command::new("mount").arg("--bind").arg(site.root().join("tree/mid")).arg(&alias).output().unwrap();
    if !mount.status.success() {
        return;
    }
    let [first, second, third] = ["1", "2", "3"].map(job_id);
    agent.accepted(&worker(&first, on(&tree)));
    at_work(&tree, &first);
    // A part of the tree: nothing above it, as it is reached here, is the tree.
    agent.accepted(&worker(&second, on(&alias.join("part"))));
    assert!(waits(&agent, &second).contains(&format!("in use by job {first} (as {})", tree.display())));
    // A name that was free when its job came, and then leads to somebody else's directory.
    let (own, aside) = (site.mountable("own"), site.root().join("aside"));
    agent.accepted(&worker(&third, json!([on(&own), format!("{}:/tree", tree.display())])));
    assert!(waits(&agent, &third).contains(&second));
    go(&tree, &first);
    sealed_alone(&agent, &first);
    at_work(&part, &second);
    let fourth = job_id("4");
    agent.accepted(&worker(&fourth, on(&site.mountable("mine"))));
    at_work(&site.root().join("mine"), &fourth);
    fs::rename(&own, &aside).unwrap();
    fs::rename(site.root().join("mine"), &own).unwrap();
    go(&part, &second);
    sealed_alone(&agent, &second);
    let summary = agent.ended(&third);
    assert_eq!((summary["state"].as_str(), summary["reason"].as_str()), (Some("FAILED"), Some("mount")), "{summary}");
    let trace = agent.get(&format!("/api/jobs/{third}/trace")).text();
    assert!(trace.contains("is now \\\"") && trace.contains(&fourth), "{trace}");
    go(&own, &fourth);
    sealed_alone(&agent, &fourth);
    unmount(&alias);
}

/// Whoever still looks at it is on the way out.
fn unmount(dir: &Path) {
    eventually("it is unmounted", || Command::new("umount").arg(dir).output().unwrap().status.success().then_some(()));
}

/// A file system that never answers; gone with its process.
struct Hanging(Child);

impl Hanging {
    fn over(dir: &Path) -> Self {
        let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
        let line = format!(
            "exec 3<>/dev/fuse && mount -i -t fuse -o {options} hanging '{}' && echo mounted && exec sleep 600",
            dir.display()
        );
        let mut child = Command::new("sh").args(["-c", &line]).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let hanging = Self(child);
        assert_eq!(said, "mounted\n");
        hanging
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_system_that_hangs_holds_up_nobody_else() {
    let site = Site::new("claim-hang");
    let agent = site.start(&["--workers", "4"]);
    let (shared, sick) = (site.mountable("shared"), site.mountable("sick"));
    let below = site.mountable("sick/below");
    let [holder, waiting, behind, other, scratch] = ["1", "2", "3", "4", "5"].map(job_id);
    agent.accepted(&worker(&holder, on(&shared)));
    at_work(&shared, &holder);
    agent.accepted(&worker(&waiting, json!([on(&shared), format!("{}:/sick", sick.display())])));
    agent.accepted(&worker(&behind, on(&below)));
    assert!(waits(&agent, &behind).contains(&waiting));
    agent.kill();
    let hanging = Hanging::over(&sick);
    let agent = site.start(&["--workers", "4"]);
    // Their turns are known by their paths, and others have theirs.
    assert!(waits(&agent, &waiting).contains(&holder));
    assert!(waits(&agent, &behind).contains(&waiting));
    agent.accepted(&manifest(&scratch, &["true"]));
    assert_eq!(agent.ended(&scratch)["state"], "SEALED");
    let dir = site.mountable("other");
    agent.accepted(&worker(&other, on(&dir)));
    at_work(&dir, &other);
    go(&dir, &other);
    sealed_alone(&agent, &other);
    // Once it is gone, all goes on.
    drop(hanging);
    unmount(&sick);
    go(&shared, &holder);
    sealed_alone(&agent, &holder);
    at_work(&shared, &waiting);
    go(&shared, &waiting);
    sealed_alone(&agent, &waiting);
    at_work(&below, &behind);
    go(&below, &behind);
    sealed_alone(&agent, &behind);
}
