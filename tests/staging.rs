//! `job:` mounts, with the real agent and the real engine: a child sees what its parents have sealed, and nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod job_support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use agent::{Agent, Site, debug_build, eventually, job_id};
use hackbrain::hash::Hash;
use job_support::{at, detail, failure, shell};
use serde_json::{Value, json};

/// A job that must be sealed; its id.
fn sealed(agent: &Agent, what: &str, spec: &[String], line: &str) -> String {
    job_support::sealed(agent, &shell(&job_id(what), spec, line))
}

/// What a child prints.
fn shown(agent: &Agent, spec: &[String], line: &str) -> String {
    let id = sealed(agent, "child", spec, line);
    agent.get(&format!("/api/jobs/{id}/stdout")).text()
}

/// Everything below DATA/staged.
fn staged(site: &Site) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![site.data().join("staged")];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            found.push(entry.path());
            dirs.push(entry.path());
        }
    }
    found
}

fn nothing_is_staged(site: &Site) {
    eventually("what was staged is removed", || staged(site).is_empty().then_some(()));
}

#[test]
fn a_child_sees_the_artifacts_of_its_parents_and_nothing_else() {
    let site = Site::new("staging-two");
    let agent = site.start(&[]);
    let dir = site.mountable("first");
    fs::write(dir.join("input"), "given").unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"a\xff b\nc");
    let first = sealed(
        &agent,
        "first",
        &[at(&dir, "/job/workdir")],
        "echo hi > result; chmod 600 result; mkdir -p d/e empty; echo deep > d/e/deep; ln -s result link; mkfifo fifo
         printf '#!/bin/sh\\necho ran\\n' > run; chmod 4755 run; printf odd > \"$(printf 'a\\377 b\\nc')\"",
    );
    assert!(dir.join(odd).exists());
    let second = sealed(&agent, "second", &[], "echo b > b");
    let spec = [format!("job:{first}:/job/in/a"), format!("job:{second}:/job/in/b")];
    let child = sealed(
        &agent,
        "child",
        &spec,
        "pwd; echo own > own; cd /job/in; find . -type f -exec echo one \\; | wc -l; find . -type d | sort; find . ! -type d ! -type f
         cat a/result a/d/e/deep b/b; a/run; cat \"$(printf 'a/a\\377 b\\nc')\"; echo
         stat -c '%a %u' a a/d/e a/result a/run
         touch a/new 2>/dev/null && echo written; chmod 777 a/result 2>/dev/null && echo changed; rm -f a/result 2>/dev/null
         test -e a/result && echo still",
    );
    let told = agent.get(&format!("/api/jobs/{child}/stdout")).text();
    let expected =
        "/job/workdir\n5\n.\n./a\n./a/d\n./a/d/e\n./b\nhi\ndeep\nb\nran\nodd\n755 0\n755 0\n444 0\n555 0\nstill\n";
    assert_eq!(told, expected);
    assert_eq!(fs::read_to_string(site.data().join("scratch").join(&child).join("own")).unwrap(), "own\n");

    let scheduled = detail(&agent, &child, "SCHEDULED");
    let seals: Vec<Value> = [&first, &second].map(|id| detail(&agent, id, "SEALED")).into();
    let inputs: Value =
        serde_json::from_slice(&fs::read(site.data().join(format!("inputs/{child}.json"))).unwrap()).unwrap();
    let empty = Hash::of(b"");
    let mut hashed = format!(r#"{{"container":"/job/workdir","mode":"rw","tree":"{empty}"}}"#);
    for (number, (seal, (id, container))) in
        seals.iter().zip([(&first, "/job/in/a"), (&second, "/job/in/b")]).enumerate()
    {
        let root = &seal["artifacts_root"];
        let totals = json!({
            "container": container, "mode": "ro", "tree": root, "files": seal["files"], "bytes": seal["bytes"],
            "artifacts_of": id,
        });
        assert_eq!(scheduled["mounts"][number + 1], totals);
        let of = json!({ "job_id": id, "seal_hash": seal["seal_hash"], "artifacts_root": root });
        assert_eq!(inputs["mounts"][number + 1]["artifacts_of"], of);
        assert_ne!(inputs["mounts"][number + 1]["tree"]["root"], *root, "that of the directory that it saw");
        hashed += &format!(r#",{{"artifacts":{root},"container":"{container}","mode":"ro"}}"#);
    }
    assert_eq!(scheduled["input_hash"], json!(Hash::of(format!("[{hashed}]").as_bytes())), "[{hashed}]");
    nothing_is_staged(&site);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(site.left_behind(), Vec::<String>::new());
    assert_eq!(site.verify(&["--artifacts"]).code, Some(0));
}

#[test]
fn artifacts_of_several_directories_lie_at_their_paths_also_beside_the_directories_themselves() {
    let site = Site::new("staging-several");
    let agent = site.start(&[]);
    let (one, two) = (site.mountable("one"), site.mountable("two"));
    let spec = [at(&one, "/w/one"), at(&two, "/w/two")];
    let parent = sealed(&agent, "parent", &spec, "echo 1 > x; echo 2 > /w/two/x");
    // It writes where its parent did, and sees what that one has sealed.
    let spec = [at(&one, "/job/workdir"), format!("job:{parent}:/job/in/p")];
    let line = "echo other > x; cd /job/in/p; find . -type f | sort; cat w/one/x w/two/x";
    assert_eq!(shown(&agent, &spec, line), "./w/one/x\n./w/two/x\n1\n2\n");
    // Now it is not there any more for the next one.
    let child = job_id("late");
    agent.accepted(&shell(&child, &[format!("job:{parent}:/job/in/p")], "true"));
    let message = failure(&agent, &child);
    assert!(message.contains("/w/one/x") && message.contains(&parent) && message.contains("6 bytes"), "{message}");
    nothing_is_staged(&site);
}

#[test]
fn what_is_not_as_it_was_sealed_is_named() {
    let site = Site::new("staging-tampered");
    let agent = site.start(&[]);
    let dir = site.mountable("dir");
    let parent = sealed(&agent, "parent", &[at(&dir, "/job/workdir")], "mkdir d; echo one > d/a; echo two > b");
    let spec = [format!("job:{parent}:/job/in/p")];
    let refused = |what: &str, says: &[&str]| {
        let child = job_id(what);
        agent.accepted(&shell(&child, &spec, "true"));
        let message = failure(&agent, &child);
        for part in says.iter().chain(&[parent.as_str(), "new job_id"]) {
            assert!(message.contains(part), "{what}: {part:?} is not in {message:?}");
        }
    };
    let hash = |content: &str| Hash::of(content.as_bytes()).to_string();
    fs::write(dir.join("d/a"), "ONE\n").unwrap();
    refused("content", &["/job/workdir/d/a", &hash("one\n"), &hash("ONE\n")]);
    fs::write(dir.join("d/a"), "longer\n").unwrap();
    refused("size", &["/job/workdir/d/a", "4 bytes", "7 bytes"]);
    fs::remove_file(dir.join("d/a")).unwrap();
    refused("gone", &["/job/workdir/d/a", "there is nothing"]);
    symlink("../b", dir.join("d/a")).unwrap();
    refused("link", &["/job/workdir/d/a", "a symlink"]);
    fs::remove_file(dir.join("d/a")).unwrap();
    fs::create_dir(dir.join("elsewhere")).unwrap();
    fs::write(dir.join("elsewhere/a"), "one\n").unwrap();
    fs::remove_dir(dir.join("d")).unwrap();
    symlink("elsewhere", dir.join("d")).unwrap();
    refused("link.above", &["/job/workdir/d/a", "there is nothing"]);
    fs::remove_file(dir.join("d")).unwrap();
    fs::rename(dir.join("elsewhere"), dir.join("d")).unwrap();
    assert_eq!(shown(&agent, &spec, "cat /job/in/p/d/a"), "one\n", "put back, it is there again");

    let seal = site.data().join(format!("seals/{parent}.json"));
    let bytes = fs::read(&seal).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    fs::write(&seal, text.replacen("\"usage\":{", "\"usage\":{\"x\":1,", 1)).unwrap();
    refused("seal", &["seals/", "not the one that was recorded"]);
    fs::remove_file(&seal).unwrap();
    refused("no.seal", &["seals/"]);
    fs::write(&seal, bytes).unwrap();
    fs::rename(&dir, site.root().join("moved")).unwrap();
    let child = job_id("moved");
    agent.accepted(&shell(&child, &spec, "true"));
    let message = failure(&agent, &child);
    assert!(message.contains("/job/workdir") && message.contains("does not exist"), "{message}");
    nothing_is_staged(&site);
}

#[test]
fn a_killed_agent_leaves_nothing_half_done() {
    let site = Site::new("staging-kill");
    let agent = site.start(&[]);
    let parent = sealed(&agent, "parent", &[], "for i in 1 2 3 4; do echo $i > $i; done");
    agent.kill();
    for point in ["file-copied:2", "copy-synced", "artifacts-staged", "scheduling-durable", "intent-durable"] {
        let child = job_id(&point.replace(':', "."));
        let job = shell(&child, &[format!("job:{parent}:/job/in/p")], "cd /job/in/p; ls; cat *");
        let mut dying = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", point));
        dying.try_submit(&job);
        assert_eq!(dying.wait().signal(), Some(9), "{point}");
        assert!(!staged(&site).is_empty(), "{point}: it died in the middle");
        if point == "intent-durable" {
            // As after a reboot of a host that has lost it.
            fs::remove_dir_all(site.data().join("staged")).unwrap();
        }
        if point.starts_with("file") {
            assert!(site.data().join(format!("staged/{child}/1.partial/1")).exists());
            fs::write(site.data().join(format!("staged/{child}/1.partial/stale")), "").unwrap();
        }
        let agent = site.start(&[]);
        agent.accepted(&job);
        assert_eq!(agent.ended(&child)["state"], "SEALED", "{point}");
        let told = agent.get(&format!("/api/jobs/{child}/stdout")).text();
        assert_eq!(told, "1\n2\n3\n4\n1\n2\n3\n4\n", "{point}");
        nothing_is_staged(&site);
        agent.kill();
    }
    // One that ended while nobody could remove what was staged for it.
    let child = job_id("left");
    let mut dying = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", "end-durable"));
    dying.try_submit(&shell(&child, &[format!("job:{parent}:/job/in/p")], "exit 3"));
    assert_eq!(dying.wait().signal(), Some(9));
    fs::create_dir_all(site.data().join(format!("staged/{child}/1"))).unwrap();
    let agent = site.start(&[]);
    assert_eq!(agent.ended(&child)["reason"], "exit");
    nothing_is_staged(&site);
}

#[test]
fn a_retriggered_child_gets_them_anew_and_only_the_same() {
    let site = Site::new("staging-retrigger");
    let agent = site.start(&[]);
    let (made, work) = (site.mountable("made"), site.mountable("work"));
    let parent = sealed(&agent, "parent", &[at(&made, "/job/workdir")], "echo data > a");
    let child = job_id("child");
    let spec = [at(&work, "/job/workdir"), format!("job:{parent}:/job/in/p")];
    let mut job = shell(&child, &spec, "cat /job/in/p/a >> seen; kill -9 $$; sleep 9");
    job["max_attempts"] = 2.into();
    agent.accepted(&job);
    let retrigger = || {
        assert_eq!(agent.ended(&child)["reason"], "attempt_limit");
        nothing_is_staged(&site);
        assert_eq!(agent.post(&format!("/api/jobs/{child}/retrigger"), b"").status, 200);
    };
    retrigger();
    retrigger();
    assert_eq!(agent.ended(&child)["attempt"], 6);
    assert_eq!(fs::read_to_string(work.join("seen")).unwrap(), "data\n".repeat(6));
    fs::write(made.join("a"), "DATA\n").unwrap();
    retrigger();
    let message = failure(&agent, &child);
    assert!(message.contains("/job/workdir/a") && message.contains(&parent), "{message}");
    nothing_is_staged(&site);
}

#[test]
fn two_thousand_artifacts_and_a_full_disk() {
    let site = Site::new("staging-many");
    let agent = site.start(&[]);
    let parent = sealed(
        &agent,
        "parent",
        &[],
        "for d in 0 1 2 3 4 5 6 7 8 9; do mkdir $d; for i in $(seq 200); do echo $d.$i > $d/$i; done; done",
    );
    let spec = [format!("job:{parent}:/job/in/p")];
    assert_eq!(detail(&agent, &parent, "SEALED")["files"], 2000);
    let line = "cd /job/in/p; find . -type f | wc -l; cat 7/113; cat */* | sort | sha256sum";
    let expected: Vec<String> = (0..10).flat_map(|d| (1..=200).map(move |i| format!("{d}.{i}\n"))).collect();
    let mut sorted = expected.clone();
    sorted.sort();
    let sum = Hash::of(sorted.concat().as_bytes());
    assert_eq!(shown(&agent, &spec, line), format!("2000\n7.113\n{sum}  -\n"));
    nothing_is_staged(&site);

    // The copies alone have no space: one page for each file is twice as much as there is.
    let place = site.data().join("staged");
    let run = |program: &str, args: &[&str]| assert!(Command::new(program).args(args).status().unwrap().success());
    run("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs", place.to_str().unwrap()]);
    let child = job_id("full");
    agent.accepted(&shell(&child, &spec, line));
    eventually("it waits for space", || {
        let waits = agent.get(&format!("/api/jobs/{child}")).json()["waiting_for"].take();
        waits.as_str().is_some_and(|why| why.contains("disk space")).then_some(())
    });
    run("mount", &["-o", "remount,size=64m", place.to_str().unwrap()]);
    assert_eq!(agent.ended(&child)["state"], "SEALED");
    nothing_is_staged(&site);
    run("umount", &[place.to_str().unwrap()]);
}

#[test]
fn copies_that_do_not_fit_are_not_begun_and_hold_up_nobody_else() {
    let site = Site::new("staging-space");
    let agent = site.start(&[]);
    let parent = sealed(&agent, "parent", &[], "head -c 30000000 /dev/zero > large");
    let place = site.data().join("staged");
    fs::create_dir(&place).unwrap();
    let run = |program: &str, args: &[&str]| assert!(Command::new(program).args(args).status().unwrap().success());
    run("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", place.to_str().unwrap()]);
    let spec = [format!("job:{parent}:/job/in/p")];
    // More than there are threads that copy, and that schedule.
    let children: Vec<String> = (0..4).map(|_| job_id("child")).collect();
    for child in &children {
        agent.accepted(&shell(child, &spec, "wc -c /job/in/p/large"));
    }
    let waits_for_space = |child: &String| {
        let waits = agent.get(&format!("/api/jobs/{child}")).json()["waiting_for"].take();
        waits.as_str().is_some_and(|why| why.contains("29 MiB are to be copied"))
    };
    // Which two come first is not said.
    eventually("two wait for space", || {
        (children.iter().filter(|child| waits_for_space(child)).count() == 2).then_some(())
    });
    // Others go on meanwhile, and nothing was written that would have to go again.
    for _ in 0..3 {
        sealed(&agent, "other", &[], "true");
        assert!(staged(&site).iter().all(|path| path.is_dir()), "{:?}", staged(&site));
    }
    run("mount", &["-o", "remount,size=256m", place.to_str().unwrap()]);
    for child in &children {
        assert_eq!(agent.ended(child)["state"], "SEALED");
        assert_eq!(agent.get(&format!("/api/jobs/{child}/stdout")).text(), "30000000 /job/in/p/large\n");
    }
    nothing_is_staged(&site);
    run("umount", &[place.to_str().unwrap()]);
}

#[test]
fn few_jobs_hold_copies_at_a_time() {
    let site = Site::new("staging-few");
    let agent = site.start(&["--workers", "1"]);
    let parent = sealed(&agent, "parent", &[], "echo x > artifact");
    let go = site.mountable("go");
    let spec = [format!("job:{parent}:/job/in/p"), format!("{}:/go:ro", go.display())];
    let children: Vec<String> = (0..8).map(|_| job_id("child")).collect();
    for child in &children {
        agent.accepted(&shell(child, &spec, "until [ -e /go/go ]; do sleep 0.1; done; cat /job/in/p/artifact"));
    }
    let copies = || staged(&site).iter().filter(|path| path.is_file()).count();
    // The one that runs, and two that come next.
    eventually("three hold copies", || (copies() == 3).then_some(()));
    eventually("others wait for their turn", || {
        let waits = |child| agent.get(&format!("/api/jobs/{child}")).json()["waiting_for"].take();
        let told = |why: Value| why.as_str().is_some_and(|why| why.contains("other jobs that hold some"));
        children.iter().any(|child| told(waits(child))).then_some(())
    });
    assert_eq!(copies(), 3);
    fs::write(go.join("go"), "").unwrap();
    for child in &children {
        assert_eq!(agent.ended(child)["state"], "SEALED");
    }
    nothing_is_staged(&site);
}
