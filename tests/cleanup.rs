//! What an agent leaves behind, and what it leaves alone: several agents on one engine, kills, a ledger that was put back.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::process::Command;

use agent::{Agent, Site, eventually, job_id, manifest};

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn is_running(id: &str, attempt: u32) -> bool {
    docker(&["inspect", "--format", "{{.State.Running}}", &format!("hb-{id}-{attempt}")]) == "true"
}

/// Runs until the file `go` appears in its directory.
fn waiting_job(agent: &Agent, site: &Site, id: &str) -> std::path::PathBuf {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["sh", "-c", "echo start >> starts; until test -e go; do sleep 0.1; done"]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    agent.accepted(&job);
    eventually("it runs", || dir.join("starts").exists().then_some(()));
    dir
}

#[test]
fn agents_on_one_engine_leave_each_other_alone() {
    let (mine, theirs) = (Site::new("cleanup-mine"), Site::new("cleanup-theirs"));
    let (agent, other) = (mine.start(&[]), theirs.start(&[]));
    let (id, their_id) = (job_id("mine"), job_id("theirs"));
    let dir = waiting_job(&agent, &mine, &id);
    let their_dir = waiting_job(&other, &theirs, &their_id);
    // One that ends while nobody looks, so that there is something to clean.
    let ended = job_id("ended");
    let ended_dir = waiting_job(&agent, &mine, &ended);
    agent.kill();
    fs::write(ended_dir.join("go"), "").unwrap();
    eventually("it ends", || (!is_running(&ended, 1)).then_some(()));
    let agent = mine.start(&[]);
    assert_eq!(agent.ended(&ended)["state"], "SEALED");
    eventually("it is removed", || {
        docker(&["ps", "-aq", "--filter", &format!("name=hb-{ended}-")]).is_empty().then_some(())
    });
    assert!(is_running(&id, 1) && is_running(&their_id, 1), "those under way go on");
    fs::write(dir.join("go"), "").unwrap();
    assert_eq!(agent.ended(&id)["attempt"], 1);
    eventually("it is removed", || {
        docker(&["ps", "-aq", "--filter", &format!("name=hb-{id}-")]).is_empty().then_some(())
    });
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(mine.left_behind(), Vec::<String>::new());

    // The other agent's mounts, control group and pin are as they were.
    let held = theirs.left_behind();
    for what in ["/data/mnt/", "hackbrain/pin:", "/sys/fs/cgroup/"] {
        assert!(held.iter().any(|held| held.contains(what)), "{what} is gone: {held:?}");
    }
    fs::write(their_dir.join("go"), "").unwrap();
    assert_eq!(other.ended(&their_id)["state"], "SEALED");
    eventually("it is removed", || {
        docker(&["ps", "-aq", "--filter", &format!("name=hb-{their_id}-")]).is_empty().then_some(())
    });
    assert_eq!(other.terminate(), Some(0));
    assert_eq!(theirs.left_behind(), Vec::<String>::new());
}

#[test]
fn a_container_that_the_ledger_does_not_know_is_left_running() {
    let site = Site::new("cleanup-unknown");
    let agent = site.start(&[]);
    assert_eq!(agent.terminate(), Some(0));
    let copy = site.dir().join("copy");
    assert!(Command::new("cp").arg("-a").arg(site.data()).arg(&copy).status().unwrap().success());
    let agent = site.start(&[]);
    let id = job_id("later");
    let dir = waiting_job(&agent, &site, &id);
    agent.kill();
    // The ledger is put back to before the job was received.
    fs::rename(site.data().join("wal"), site.dir().join("wal-newer")).unwrap();
    fs::rename(copy.join("wal"), site.data().join("wal")).unwrap();
    let agent = site.start(&[]);
    eventually("it says so", || agent.said().contains("knows nothing of it").then_some(()));
    assert!(is_running(&id, 1));
    assert_eq!(fs::read_to_string(dir.join("starts")).unwrap().lines().count(), 1);
}
