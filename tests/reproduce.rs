//! `POST /api/jobs/{id}/reproduce`, with the real agent and the real engine: the same execution, and what came of it.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod job_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::{Agent, Answer, Site, debug_build, eventually, job_id, manifest};
use job_support::{at, detail, failure, is_sealed, sealed, shell};
use serde_json::{Value, json};

fn reproduce(agent: &Agent, id: &str, body: &Value) -> Answer {
    agent.post(&format!("/api/jobs/{id}/reproduce"), body.to_string().as_bytes())
}

/// Its id.
fn accepted(agent: &Agent, id: &str) -> String {
    let answer = reproduce(agent, id, &json!({}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["job_id"].as_str().unwrap().to_owned()
}

/// Status, code and message of what must be refused.
fn refused(agent: &Agent, id: &str) -> (u16, String, String) {
    let answer = reproduce(agent, id, &json!({}));
    let error = &answer.json()["error"];
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (answer.status, text("code"), text("message"))
}

/// Everything below a directory as far as a copy of it must be the same.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap()) {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            found.push(format!("{name} {:o} {}:{}", meta.mode(), meta.uid(), meta.gid()));
            if meta.is_dir() {
                dirs.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A worker that is busy until the file `go` is there, in a directory that nobody else mounts.
fn blocker(agent: &Agent, site: &Site) -> PathBuf {
    let dir = site.mountable(&job_id("blocker"));
    let id = job_id("blocker");
    agent.accepted(&shell(&id, &[at(&dir, "/w")], "touch on; until test -e go; do sleep 0.1; done"));
    eventually("it runs", || dir.join("on").exists().then_some(()));
    dir
}

#[test]
fn the_demo_payload_is_reproduced_byte_for_byte_and_so_is_its_reproduction() {
    let site = Site::new("reproduce-demo");
    let agent = site.start(&["--allow-image", "python:*"]);
    let dir = site.mountable("work");
    let payload = Path::new(env!("CARGO_MANIFEST_DIR")).join("chaos/payloads/wal_physics.py");
    fs::copy(payload, dir.join("wal_physics.py")).unwrap();
    let id = job_id("demo");
    let mut job = manifest(&id, &["python", "wal_physics.py"]);
    job["image_hash"] = "python:3.9-slim".into();
    job["mount_spec"] = at(&dir, "/job/workdir").into();
    job["env"] = json!({ "WAL_PHYSICS_STEPS": "30", "WAL_PHYSICS_STEP_MS": "0" });
    sealed(&agent, &job);
    let again = accepted(&agent, &id);
    assert_eq!(again, format!("{id}.r1"));
    is_sealed(&agent, &again);
    let (first, second) = (detail(&agent, &id, "SEALED"), detail(&agent, &again, "SEALED"));
    let reproduction = json!({
        "of": id, "seal_hash": first["seal_hash"], "identical": 2, "differs": 0, "missing": 0, "extra": 0,
        "stdout": "identical", "stderr": "identical", "omitted": 0,
        "artifacts": { "/job/workdir/physics.wal": "identical", "/job/workdir/result.txt": "identical" },
    });
    assert_eq!(second["reproduction"], reproduction);
    assert_eq!(agent.get(&format!("/api/jobs/{again}/seal")).json()["reproduction"], reproduction);
    assert_eq!(first["artifacts_root"], second["artifacts_root"]);
    assert_eq!(first.get("reproduction"), None);

    let third = accepted(&agent, &again);
    is_sealed(&agent, &third);
    let reproduction = &detail(&agent, &third, "SEALED")["reproduction"];
    assert_eq!((&reproduction["of"], &reproduction["identical"]), (&json!(again), &json!(2)), "{reproduction}");
    let execution = agent.get(&format!("/api/jobs/{id}")).json()["execution_hash"].as_str().unwrap().to_owned();
    let found = agent.get(&format!("/api/jobs?execution_hash={execution}")).json();
    let ids: Vec<_> = found["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].clone()).collect();
    assert_eq!(ids, [json!(third), json!(again), json!(id)]);
    assert_eq!(fs::read_dir(site.data().join(format!("scratch/{again}/0"))).unwrap().count(), 3);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(site.left_behind(), Vec::<String>::new());
    assert_eq!(site.verify(&["--artifacts"]).code, Some(0));
}

#[test]
fn what_differs_is_told_artifact_by_artifact() {
    let site = Site::new("reproduce-differs");
    let agent = site.start(&[]);
    let dir = site.mountable("work");
    let id = job_id("differs");
    let line = "head -c 8 /dev/urandom | tee random > named.$(cat /proc/sys/kernel/random/uuid); echo same > same
                cat /proc/sys/kernel/random/uuid; echo same >&2; mkdir -p d; echo x > d/x";
    sealed(&agent, &shell(&id, &[at(&dir, "/job/workdir")], line));
    let again = is_sealed(&agent, &accepted(&agent, &id));
    let reproduction = &detail(&agent, &again, "SEALED")["reproduction"];
    let counts = ["identical", "differs", "missing", "extra"].map(|name| reproduction[name].as_u64().unwrap());
    assert_eq!(counts, [2, 1, 1, 1], "{reproduction}");
    assert_eq!((&reproduction["stdout"], &reproduction["stderr"]), (&json!("differs"), &json!("identical")));
    let named = |dir: &Path| {
        let mut names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        format!("/job/workdir/{}", names.find(|name| name.starts_with("named.")).unwrap())
    };
    let artifacts = &reproduction["artifacts"];
    assert_eq!(artifacts[named(&dir)], "missing", "{artifacts}");
    assert_eq!(artifacts[named(&site.data().join(format!("scratch/{again}/0")))], "extra", "{artifacts}");
    assert_eq!(artifacts["/job/workdir/random"], "differs", "{artifacts}");
    assert_eq!(artifacts["/job/workdir/same"], "identical", "{artifacts}");
}

#[test]
fn who_could_not_read_an_input_cannot_read_its_copy() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let site = Site::new("reproduce-owner");
    let agent = site.start(&[]);
    let dir = site.mountable("work");
    fs::create_dir(dir.join("closed")).unwrap();
    for (name, mode) in [("secret", 0o600), ("closed/x", 0o644), ("closed", 0o700)] {
        if !dir.join(name).is_dir() {
            fs::write(dir.join(name), "hidden").unwrap();
        }
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    chown(&dir, Some(1000), Some(1000)).unwrap();
    let id = job_id("owner");
    sealed(&agent, &shell(&id, &[at(&dir, "/job/workdir")], "cat secret closed/x && exit 1; id -u > whoami"));
    let again = is_sealed(&agent, &accepted(&agent, &id));
    let reproduction = &detail(&agent, &again, "SEALED")["reproduction"];
    let same = json!("identical");
    assert_eq!((&reproduction["stdout"], &reproduction["stderr"]), (&same, &same), "{reproduction}");
    assert_eq!((&reproduction["identical"], &reproduction["artifacts"]["/job/workdir/whoami"]), (&json!(1), &same));
}

#[test]
fn it_begins_with_the_recorded_inputs_alone_and_leaves_the_original_as_it_is() {
    let site = Site::new("reproduce-inputs");
    let agent = site.start(&[]);
    let (work, reference) = (site.mountable("work"), site.mountable("reference"));
    fs::create_dir_all(work.join("sub/empty")).unwrap();
    fs::write(work.join("input"), "in").unwrap();
    fs::write(work.join("sub/tool"), "#!/bin/sh\necho tool\n").unwrap();
    for (name, mode) in [("input", 0o640), ("sub/tool", 0o755), ("sub", 0o750), ("sub/empty", 0o711), ("", 0o770)] {
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("input", work.join("link")).unwrap();
    symlink("/nowhere/ä", work.join("sub/dangling")).unwrap();
    assert!(Command::new("mkfifo").arg(work.join("fifo")).status().unwrap().success());
    fs::write(reference.join("table"), "ref").unwrap();
    let all = ["", "input", "link", "fifo", "sub", "sub/tool", "sub/empty", "sub/dangling"];
    for name in all {
        std::os::unix::fs::lchown(work.join(name), Some(1234), Some(2345)).unwrap();
    }
    let given = listing(&work);
    let parent = sealed(&agent, &shell(&job_id("parent"), &[], "echo from parent > p"));
    let id = job_id("inputs");
    let line = "id -u; find . ! -name out | sort; sub/tool; cat link /ref/table /in/p > out; cat out";
    let spec = [at(&work, "/w"), at(&reference, "/ref:ro"), format!("job:{parent}:/in")];
    sealed(&agent, &shell(&id, &spec, line));
    fs::write(work.join("sub/empty/beside"), "came later").unwrap();
    let before = listing(&work);
    let again = is_sealed(&agent, &accepted(&agent, &id));
    let reproduction = &detail(&agent, &again, "SEALED")["reproduction"];
    assert_eq!((&reproduction["identical"], &reproduction["stdout"]), (&json!(1), &json!("identical")));
    let copy = site.data().join(format!("scratch/{again}/0"));
    fs::remove_file(copy.join("out")).unwrap();
    assert_eq!(listing(&copy), given, "modes and owners, too");
    let (meta, own) = (fs::metadata(&work).unwrap(), fs::metadata(&copy).unwrap());
    assert_eq!((meta.mode(), meta.uid(), meta.gid()), (own.mode(), own.uid(), own.gid()));
    assert_eq!(fs::read_link(copy.join("sub/dangling")).unwrap(), Path::new("/nowhere/ä"));
    assert_eq!(listing(&work), before);

    // A scratch directory is empty again.
    let id = job_id("scratch");
    sealed(&agent, &shell(&id, &[], "ls | wc -l; echo x > x"));
    let again = is_sealed(&agent, &accepted(&agent, &id));
    assert_eq!(detail(&agent, &again, "SEALED")["reproduction"]["stdout"], "identical");
}

#[test]
fn inputs_that_have_changed_are_named_before_and_after_the_answer() {
    let site = Site::new("reproduce-changed");
    let agent = site.start(&[]);
    let (work, reference) = (site.mountable("work"), site.mountable("reference"));
    let restore = || {
        fs::create_dir_all(work.join("d/e")).unwrap();
        fs::write(work.join("kept"), "kept").unwrap();
        fs::write(work.join("d/a"), "aaaa").unwrap();
        fs::set_permissions(work.join("d/a"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(reference.join("r"), "r").unwrap();
    };
    restore();
    let id = job_id("changed");
    let spec = [at(&work, "/w"), at(&reference, "/ref:ro")];
    sealed(&agent, &shell(&id, &spec, "echo new > new"));
    let changed = |says: &[&str]| {
        let (status, code, message) = refused(&agent, &id);
        assert_eq!((status, code.as_str()), (409, "inputs_changed"), "{message}");
        assert!(says.iter().all(|part| message.contains(part)), "{says:?} is not in {message:?}");
        assert_eq!(message.matches(" changed").count() + message.matches(" missing").count(), {
            says.iter().filter(|part| part.ends_with("changed") || part.ends_with("missing")).count()
        });
        restore();
    };
    fs::write(work.join("d/a"), "bbbb").unwrap();
    changed(&["/w/d/a changed"]);
    fs::set_permissions(work.join("d/a"), fs::Permissions::from_mode(0o755)).unwrap();
    changed(&["/w/d/a changed"]);
    fs::remove_dir_all(work.join("d")).unwrap();
    changed(&["/w/d missing"]);
    fs::write(reference.join("extra"), "").unwrap();
    changed(&["/ref/extra extra"]);
    fs::remove_file(reference.join("extra")).unwrap();
    fs::write(reference.join("r"), "s").unwrap();
    fs::remove_dir(work.join("d/e")).unwrap();
    symlink("x", work.join("d/e")).unwrap();
    let (_, _, message) = refused(&agent, &id);
    assert!(message.contains("/w/d/e changed, /ref/r changed;"), "{message}");
    fs::remove_file(work.join("d/e")).unwrap();
    restore();
    is_sealed(&agent, &accepted(&agent, &id));

    // Changed once it was accepted: another job has its directory, so it waits.
    let hold = site.mountable("hold");
    let holder = job_id("holder");
    let spec = [at(&hold, "/hold"), at(&work, "/w")];
    agent.accepted(&shell(&holder, &spec, "touch on; until test -e go; do sleep 0.1; done"));
    eventually("it runs", || hold.join("on").exists().then_some(()));
    let late = accepted(&agent, &id);
    fs::write(work.join("d/a"), "cccc").unwrap();
    fs::remove_file(work.join("kept")).unwrap();
    fs::write(hold.join("go"), "").unwrap();
    let message = failure(&agent, &late);
    assert!(message.contains("/w/kept missing") && !message.contains("d/a"), "{message}");
    fs::write(work.join("kept"), "kept").unwrap();
    for name in ["on", "go"] {
        fs::remove_file(hold.join(name)).unwrap();
    }
    restore();
    let holder = job_id("holder");
    agent.accepted(&shell(&holder, &spec, "touch on; until test -e go; do sleep 0.1; done"));
    eventually("it runs", || hold.join("on").exists().then_some(()));
    let late = accepted(&agent, &id);
    fs::write(work.join("d/a"), "cccc").unwrap();
    fs::write(reference.join("extra"), "").unwrap();
    fs::write(hold.join("go"), "").unwrap();
    let message = failure(&agent, &late);
    assert!(message.contains("/w/d/a changed"), "found by the hash of the copy: {message}");
    assert_eq!(fs::read_dir(site.data().join(format!("scratch/{late}"))).unwrap().count(), 0, "nothing half done");
    restore();
    fs::remove_file(reference.join("extra")).unwrap();

    // Twenty are named.
    for n in 0..30 {
        fs::write(reference.join(format!("x{n:02}")), "").unwrap();
    }
    let (_, _, message) = refused(&agent, &id);
    assert!(message.contains("/ref/x19 extra and 10 more;"), "{message}");
}

#[test]
fn a_read_only_input_that_changes_after_the_answer_fails_the_job() {
    let site = Site::new("reproduce-late");
    let agent = site.start(&[]);
    let (work, reference) = (site.mountable("work"), site.mountable("reference"));
    fs::write(reference.join("r"), "r").unwrap();
    let id = job_id("late");
    sealed(&agent, &shell(&id, &[at(&work, "/w"), at(&reference, "/ref:ro")], "true"));
    let hold = site.mountable("hold");
    let spec = [at(&hold, "/hold"), at(&reference, "/w")];
    agent.accepted(&shell(&job_id("holder"), &spec, "touch on; until test -e go; do sleep 0.1; done"));
    eventually("it runs", || hold.join("on").exists().then_some(()));
    let late = accepted(&agent, &id);
    fs::write(reference.join("extra"), "").unwrap();
    fs::write(hold.join("go"), "").unwrap();
    let message = failure(&agent, &late);
    assert!(message.contains("/ref/extra extra") && message.contains(&id), "{message}");
}

#[test]
fn what_cannot_be_reproduced_is_refused() {
    let site = Site::new("reproduce-refused");
    let agent = site.start(&[]);
    let failed = job_id("failed");
    agent.accepted(&manifest(&failed, &["false"]));
    assert_eq!(agent.ended(&failed)["state"], "FAILED");
    let (status, code, message) = refused(&agent, &failed);
    assert_eq!((status, code.as_str()), (409, "not_sealed"), "{message}");
    assert_eq!(refused(&agent, &job_id("nobody")).0, 404);
    let by_hand = |change: &dyn Fn(&mut Value)| {
        let mut job = manifest(&job_id("hand"), &["true"]);
        change(&mut job);
        let answer = agent.submit(&job);
        let error = &answer.json()["error"];
        (answer.status, error["code"].as_str().map(str::to_owned), error["field"].as_str().map(str::to_owned))
    };
    let told = |status, code: &str, field: &str| (status, Some(code.to_owned()), Some(field.to_owned()));
    assert_eq!(by_hand(&|job| job["reproduces"] = failed.as_str().into()), told(409, "not_sealed", "reproduces"));
    assert_eq!(by_hand(&|job| job["reproduces"] = "nobody".into()), told(400, "unknown_job", "reproduces"));

    let work = site.mountable("work");
    let id = job_id("good");
    sealed(&agent, &shell(&id, &[at(&work, "/w")], "true"));
    for (field, value) in [
        ("command", json!(["false"])),
        ("env", json!({ "A": "1" })),
        ("resources", json!({ "cpus": 1 })),
        ("mount_spec", json!([at(&work, "/other")])),
    ] {
        let answer = by_hand(&|job| {
            job["command"] = json!(["sh", "-c", "true"]);
            job["mount_spec"] = json!([at(&work, "/w")]);
            job["reproduces"] = id.as_str().into();
            job[field] = value.clone();
        });
        assert_eq!(answer, told(400, "other_execution", field));
    }
    // The same by hand, under the image's name; and one whose image is another, which only the engine can tell.
    let mut job = shell(&job_id("hand"), &[at(&work, "/w")], "true");
    job["reproduces"] = id.as_str().into();
    let hand = sealed(&agent, &job);
    assert_eq!(detail(&agent, &hand, "SEALED")["reproduction"]["of"], id.as_str());
    job["job_id"] = job_id("image").into();
    job["image_hash"] = "python:3.9-slim".into();
    agent.accepted(&job);
    let summary = agent.ended(job["job_id"].as_str().unwrap());
    assert_eq!((&summary["state"], &summary["reason"]), (&json!("FAILED"), &json!("image")), "{summary}");

    // An id of one's own, twice; one that is taken; what is no answer to anything.
    let own = job_id("own");
    let body = json!({ "job_id": own });
    for duplicate in [false, true] {
        let answer = reproduce(&agent, &id, &body);
        assert_eq!((answer.status, &answer.json()["duplicate"]), (200, &json!(duplicate)), "{}", answer.text());
    }
    is_sealed(&agent, &own);
    let answer = reproduce(&agent, &id, &json!({ "job_id": id }));
    assert_eq!(answer.status, 400, "it cannot repeat itself: {}", answer.text());
    assert_eq!(reproduce(&agent, &id, &json!({ "job_id": failed })).status, 409);
    for body in ["[]", "{", "{\"job\":\"x\"}", "{\"job_id\":7}", "{\"job_id\":\"\"}"] {
        let answer = agent.post(&format!("/api/jobs/{id}/reproduce"), body.as_bytes());
        assert_eq!(answer.status, 400, "{body}: {}", answer.text());
    }
    let ids: Vec<String> = (0..2).map(|_| accepted(&agent, &id)).collect();
    assert_eq!(ids, [format!("{id}.r1"), format!("{id}.r2")]);
    let long = format!("{id}{}", "x".repeat(98 - id.len()));
    sealed(&agent, &manifest(&long, &["true"]));
    let (status, _, message) = refused(&agent, &long);
    assert!(status == 400 && message.contains("job_id"), "{message}");

    let socket = site.mountable("socket");
    let listener = UnixListener::bind(socket.join("s")).unwrap();
    let id = job_id("socket");
    sealed(&agent, &shell(&id, &[at(&socket, "/w")], "true"));
    let (status, code, message) = refused(&agent, &id);
    assert_eq!((status, code.as_str()), (409, "inputs_not_copyable"), "{message}");
    assert!(message.contains("/w/s"), "{message}");
    drop(listener);
    let record = site.data().join(format!("inputs/{own}.json"));
    fs::remove_file(record).unwrap();
    let (status, code, message) = refused(&agent, &own);
    assert_eq!((status, code.as_str()), (409, "inputs_lost"), "{message}");
}

#[test]
fn an_agent_that_is_killed_while_it_copies_is_followed_by_one_that_does_it_anew() {
    let site = Site::new("reproduce-kill");
    let agent = site.start(&[]);
    let work = site.mountable("work");
    for n in 0..5 {
        fs::write(work.join(format!("in{n}")), format!("{n}")).unwrap();
    }
    chown(&work, Some(1234), Some(1234)).unwrap();
    let id = job_id("kill");
    sealed(&agent, &shell(&id, &[at(&work, "/w")], "cat in* | tee out; ls | wc -l"));
    agent.kill();
    for point in ["file-copied:3", "copy-synced", "inputs-written", "scheduling-durable"] {
        let mut dying = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", point));
        let again = accepted(&dying, &id);
        assert_eq!(dying.wait().signal(), Some(9), "{point}");
        let copies = site.data().join(format!("scratch/{again}"));
        assert_eq!(fs::read_dir(&copies).unwrap().count(), 1, "{point}: it died in the middle");
        if point.starts_with("file") {
            fs::write(copies.join("0.partial/stale"), "").unwrap();
        }
        let agent = site.start(&[]);
        is_sealed(&agent, &again);
        let reproduction = &detail(&agent, &again, "SEALED")["reproduction"];
        assert_eq!((&reproduction["identical"], &reproduction["extra"]), (&json!(1), &json!(0)), "{point}");
        assert_eq!(reproduction["stdout"], "identical", "{point}");
        agent.kill();
    }
    // Of one that is cancelled before the next agent comes to it, nothing is left.
    let mut dying = site.start_command(debug_build(&site.serve(&[])).env("HACKBRAIN_KILL_AT", "file-copied:3"));
    let again = accepted(&dying, &id);
    assert_eq!(dying.wait().signal(), Some(9));
    let partial = site.data().join(format!("scratch/{again}/0.partial"));
    assert!(partial.join("in0").exists());
    let agent = site.start_command(debug_build(&site.serve(&[])).env("DOCKER_HOST", "unix:///nonexistent.sock"));
    assert_eq!(agent.post(&format!("/api/jobs/{again}/cancel"), b"").status, 200);
    agent.kill();
    let agent = site.start(&[]);
    eventually("the copy is removed", || (!partial.exists()).then_some(()));
    agent.kill();

    // With only one worker it waits, scheduled, while its original goes; it has what it needs.
    let agent = site.start(&["--workers", "1"]);
    let gate = blocker(&agent, &site);
    let again = accepted(&agent, &id);
    eventually("it is scheduled", || {
        (agent.get(&format!("/api/jobs/{again}")).json()["state"] == "SCHEDULED").then_some(())
    });
    fs::remove_dir_all(&work).unwrap();
    fs::write(gate.join("go"), "").unwrap();
    is_sealed(&agent, &again);
}
