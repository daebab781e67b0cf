//! `hackbrain backup` with the real agent and the real engine: what it copies, what it refuses, and what is left of it wherever
//! it ends. Mounts need root; without, those parts are left out.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod job_support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use agent::{Agent, Ended, Site, debug_build, eventually, hackbrain, job_id, manifest};
use hackbrain::backup::{BackupError, backup};
use hackbrain::config::Backup;
use hackbrain::seal::{Tree, hash_tree};
use hackbrain::sys::dir::{Dir, effective_uid, may_mount};
use hackbrain::sys::lock::backup_guard;
use job_support::{sealed, shell, states};
use std::ops::ControlFlow;

const NOBODY: u32 = 65_534;

fn command(data: &Path, dest: &Path) -> Command {
    let mut command = hackbrain();
    command.arg("backup").arg(dest).arg("--data").arg(data);
    command
}

fn run(data: &Path, dest: &Path) -> Ended {
    Ended::of(&mut command(data, dest))
}

#[track_caller]
fn made(data: &Path, dest: &Path) -> String {
    let ended = run(data, dest);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let head = ended.stdout.lines().last().unwrap().to_owned();
    assert!(head.starts_with("head ") && ended.stdout.starts_with("copied: "), "{ended:?}");
    assert!(!partial(dest).exists(), "{ended:?}");
    head
}

fn partial(dest: &Path) -> PathBuf {
    dest.with_file_name(format!("{}.partial", dest.file_name().unwrap().display()))
}

fn offline(what: &str, data: &Path, args: &[&str]) -> Ended {
    Ended::of(hackbrain().arg(what).arg("--data").arg(data).args(args))
}

#[track_caller]
fn is_sound(copy: &Path, head: &str) {
    let verified = offline("verify", copy, &["--artifacts"]);
    assert_eq!(verified.code, Some(0), "{verified:?}");
    assert_eq!(verified.stdout.lines().last(), Some(head), "{verified:?}");
    assert!(!verified.stdout.contains("note:"), "{verified:?}");
}

#[track_caller]
fn refused(ended: &Ended, code: i32, says: &str, dest: &Path) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    assert!(ended.stderr.contains(says) && ended.stdout.is_empty(), "{says}: {ended:?}");
    assert!(!partial(dest).exists(), "{ended:?}");
}

/// A ledger that nothing runs on any more.
fn ledger(site: &Site) -> PathBuf {
    assert_eq!(site.start(&[]).terminate(), Some(0));
    site.data()
}

fn tree(path: &Path) -> Tree {
    hash_tree(&Dir::open(path).unwrap(), &|_| ControlFlow::Continue(())).unwrap()
}

fn ran(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Something that is mounted, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(path: &Path, args: &[&str]) -> Self {
        fs::create_dir_all(path).unwrap();
        let output = Command::new("mount").args(args).arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
    }
}

/// Submits jobs that write, print markers and end, until told to stop; the ids that were acknowledged.
fn submit_on(agent: &Agent, stop: &AtomicBool, acknowledged: &Mutex<Vec<String>>) {
    let line = "i=0; while [ $i -lt 20 ]; do echo \"[D1_STABLE] $i\"; echo $i > f$((i % 5)); i=$((i + 1)); done";
    while !stop.load(Ordering::SeqCst) {
        // Some run, most wait: each is an event or more.
        let id = job_id("load");
        agent.accepted(&shell(&id, &[], line));
        acknowledged.lock().unwrap().push(id);
        for _ in 0..20 {
            let id = job_id("refused");
            let mut job = manifest(&id, &["true"]);
            job["image_hash"] = "no.such/image:1".into();
            agent.accepted(&job);
            acknowledged.lock().unwrap().push(id);
        }
    }
}

#[test]
fn a_copy_made_under_load_is_sound_and_an_agent_goes_on_with_it() {
    let site = Site::new("backup-load");
    let agent = site.start(&["--pull", "never", "--workers", "3"]);
    let done = sealed(&agent, &shell(&job_id("done"), &[], "echo kept > kept; echo said"));
    let child =
        sealed(&agent, &shell(&job_id("child"), &[format!("job:{done}:/job/in/p")], "cat /job/in/p/kept > own"));
    let long = job_id("long");
    let on = "test -e on && exit 0; touch on; while :; do echo \"[D1_STABLE] on\"; date > now; sleep 0.1; done";
    agent.accepted(&shell(&long, &[format!("job:{done}:/job/in/p")], on));
    eventually("it has come to a marker", || states(&agent, &long).contains(&"D1_STABLE".to_owned()).then_some(()));
    let (stop, acknowledged) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let copies: Vec<PathBuf> = (0..5).map(|number| site.dir().join(format!("copy-{number}"))).collect();
    let heads = thread::scope(|scope| {
        scope.spawn(|| submit_on(&agent, &stop, &acknowledged));
        let each = copies.iter().map(|copy| {
            let count = acknowledged.lock().unwrap().len();
            eventually("more was acknowledged", || (acknowledged.lock().unwrap().len() > count + 20).then_some(()));
            let before = acknowledged.lock().unwrap().clone();
            let outcome = run(&site.data(), copy);
            (outcome, before)
        });
        let heads: Vec<_> = each.collect();
        stop.store(true, Ordering::SeqCst);
        heads
    });
    let all = site.dump(&[]).stdout;
    for (copy, (ended, before)) in copies.iter().zip(&heads) {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let head = ended.stdout.lines().last().unwrap();
        is_sound(copy, head);
        let events = offline("dump", copy, &[]).stdout;
        assert!(all.starts_with(&events), "{} is no prefix", copy.display());
        let told = head.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        assert_eq!(events.lines().count(), told);
        for id in before {
            assert!(events.contains(&format!("\"job_id\":\"{id}\"")), "{id} was acknowledged and is not in it");
        }
        for left in ["mnt", "LOCK", "BACKUP", "staged"] {
            assert!(!copy.join(left).exists(), "{left}");
        }
        assert!(tree(&copy.join("scratch").join(&child)) == tree(&site.data().join("scratch").join(&child)));
        assert_eq!(fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o700);
    }
    let log_id = agent.get("/api/node").json()["log_id"].as_str().unwrap().to_owned();
    agent.kill();
    // As docs/operations.md has it: the containers of the ledger go before it is gone on with from a copy.
    let filter = format!("label=hackbrain.log={log_id}");
    let found = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output().unwrap().stdout;
    for id in String::from_utf8(found).unwrap().split_whitespace() {
        ran("docker", &[Path::new("rm"), Path::new("-f"), Path::new(id)]);
    }
    let copy = copies.last().unwrap();
    let mut serve = hackbrain();
    serve.arg("serve").arg("--data").arg(copy).args(["--listen", "127.0.0.1:0", "--pull", "never", "--workers", "3"]);
    let agent = site.start_command(&mut serve);
    assert_eq!(agent.get(&format!("/api/jobs/{done}/stdout")).text(), "said\n");
    assert_eq!(agent.ended(&long)["state"], "SEALED");
    let states = states(&agent, &long);
    assert!(states.contains(&"RECOVERY".to_owned()), "{states:?}");
    sealed(&agent, &shell(&job_id("after"), &[format!("job:{done}:/job/in/p")], "cat /job/in/p/kept > own"));
    let mut left = acknowledged.into_inner().unwrap();
    left.retain(|id| heads.last().unwrap().1.contains(id));
    for id in left.iter().rev().take(60) {
        agent.ended(id);
    }
    assert_eq!(agent.terminate(), Some(0));
    let verified = offline("verify", copy, &["--artifacts"]);
    assert!(verified.code == Some(0) && verified.stdout.contains("0 faults"), "{verified:?}");
}

#[test]
fn a_damaged_ledger_is_refused_in_the_words_of_verify() {
    let site = Site::new("backup-damaged");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let segment = &site.segments()[0];
    let file = fs::OpenOptions::new().read(true).write(true).open(segment).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8192 + 200).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 8192 + 200).unwrap();
    let verified = offline("verify", &data, &[]);
    let damage = verified.stdout.lines().find(|line| line.starts_with("damaged: ")).unwrap();
    refused(&run(&data, &dest), 65, damage, &dest);
    assert!(!dest.exists());
    fs::remove_file(segment).unwrap();
    refused(&run(&data, &dest), 65, "the segment is missing", &dest);
}

#[test]
fn what_was_never_acknowledged_does_not_come_along() {
    let site = Site::new("backup-torn");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let sound = made(&data, &dest);
    let segment = site.segments().pop().unwrap();
    let bytes = fs::read(&segment).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    assert!(end.is_multiple_of(4096), "{end}");
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(&[b'x'; 700], end).unwrap();
    assert!(offline("verify", &data, &[]).stdout.contains("is torn, or being written"));
    let again = site.dir().join("again");
    assert_eq!(made(&data, &again), sound);
    is_sound(&again, &sound);
    let copied = fs::read(again.join("wal").join(segment.file_name().unwrap())).unwrap();
    assert!(copied == bytes, "the copy is the ledger without what was torn");
    assert_eq!(
        fs::metadata(again.join("wal").join(segment.file_name().unwrap())).unwrap().blocks() * 512,
        copied.len() as u64
    );
}

#[test]
fn places_that_no_copy_can_go_to() {
    let site = Site::new("backup-places");
    let (data, dir) = (ledger(&site), site.dir().to_owned());
    let below = |name: &str| dir.join(name);
    fs::write(below("file"), "x").unwrap();
    fs::create_dir(below("full")).unwrap();
    fs::write(below("full/x"), "x").unwrap();
    fs::create_dir(below("empty")).unwrap();
    symlink("empty", below("link")).unwrap();
    symlink(&data, below("to-data")).unwrap();
    fs::create_dir(below("elsewhere")).unwrap();
    symlink("../elsewhere", data.join("logs")).unwrap();
    for (dest, says) in [
        (below("file"), "is no directory"),
        (below("full"), "is not empty"),
        (below("link"), "is no directory"),
        (below("none/copy"), "make that directory first"),
        (data.join("copy"), "would lie in the data directory"),
        (data.join("wal/copy"), "would lie in the data directory"),
        (below("to-data/copy"), "would lie in the data directory"),
        (data.clone(), "is the data directory itself"),
        (dir.clone(), "lies in"),
        (PathBuf::from(".."), "give the copy a name"),
        // It would be copied into itself.
        (below("elsewhere/copy"), "would lie in"),
        (below("elsewhere"), "would lie in"),
    ] {
        let ended = run(&data, &dest);
        assert_eq!(ended.code, Some(64), "{dest:?} {ended:?}");
        assert!(ended.stderr.contains(says), "{dest:?} {ended:?}");
    }
    let ended = run(&below("full"), &below("copy"));
    refused(&ended, 64, "it has no wal/ below it", &below("copy"));
    fs::create_dir_all(below("unborn/wal")).unwrap();
    refused(&run(&below("unborn"), &below("copy")), 64, "there is no ledger below", &below("copy"));
    // Somebody's directory of that name is left alone, a data directory above all.
    for name in ["wal", "data"] {
        fs::create_dir_all(below("copy.partial").join(name)).unwrap();
        let ended = run(&data, &below("copy"));
        assert!(ended.code == Some(64) && ended.stderr.contains("move it away"), "{ended:?}");
        assert!(below("copy.partial").join(name).exists());
        fs::remove_dir_all(below("copy.partial")).unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["data", "elsewhere", "empty", "file", "full", "link", "root", "to-data", "unborn"]);
    if may_mount().unwrap() {
        let mounted = Mounted::at(&below("disk"), &["-t", "tmpfs", "tmpfs"]);
        refused(&run(&data, &mounted.0), 64, "is a mount point", &mounted.0);
        made(&data, &mounted.0.join("copy"));
    }
    // Relative, in a directory that is there and empty, with a slash at its end.
    let mut relative = command(&data, Path::new("empty/"));
    let ended = Ended::of(relative.current_dir(&dir));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    is_sound(&below("empty"), ended.stdout.lines().last().unwrap());
}

#[test]
fn a_copy_that_was_killed_is_not_there_and_the_next_one_succeeds() {
    let site = Site::new("backup-killed");
    let data = ledger(&site);
    let file = data.join("scratch/j/d/f");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "x").unwrap();
    let dest = site.dir().join("copy");
    for point in ["backup-ledger", "backup-files", "backup-synced"] {
        let killed = debug_build(command(&data, &dest).env("HACKBRAIN_KILL_AT", point)).output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "{point} {killed:?}");
        assert!(!dest.exists() && partial(&dest).join("data/wal").exists(), "{point}");
        // Each is made over the last one's remains.
    }
    let head = made(&data, &dest);
    is_sound(&dest, &head);
    let other = site.dir().join("other");
    let killed = debug_build(command(&data, &other).env("HACKBRAIN_KILL_AT", "backup-renamed")).output().unwrap();
    assert_eq!(killed.status.signal(), Some(9));
    is_sound(&other, &head);
    // One that fails removes what it has made before it lets go of the lock: who comes next must find nothing of it.
    let large = data.join("scratch/j/large");
    fs::write(&large, vec![1; 32 << 20]).unwrap();
    let failing = site.dir().join("failing");
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        "trap '' XFSZ; ulimit -f 32768; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_hackbrain"),
        "backup",
    ]);
    limited.arg(&failing).arg("--data").arg(&data);
    let ended = Ended::of(&mut limited);
    refused(&ended, 74, "large: File too large", &failing);
    let killed = limited.env("HACKBRAIN_KILL_AT", "backup-removed").output().unwrap();
    assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
    let names: Vec<_> = fs::read_dir(partial(&failing)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["BACKUP"]);
    fs::remove_file(&large).unwrap();
    made(&data, &failing);
    // Whenever it is killed.
    for number in 0..200 {
        fs::write(data.join(format!("scratch/j/{number}")), vec![1; 20_000]).unwrap();
    }
    for round in 0..20 {
        let dest = site.dir().join("third");
        let mut child = command(&data, &dest).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !partial(&dest).exists() && child.try_wait().unwrap().is_none() {}
        let seen = partial(&dest).join("data/scratch/j").join((round * 10).to_string());
        while !seen.exists() && child.try_wait().unwrap().is_none() {}
        child.kill().unwrap();
        child.wait().unwrap();
        if dest.exists() {
            is_sound(&dest, &head);
            assert_eq!(fs::read_dir(dest.join("scratch/j")).unwrap().count(), 201);
            fs::remove_dir_all(&dest).unwrap();
            let _ = fs::remove_dir_all(partial(&dest));
        }
    }
    assert_eq!(made(&data, &site.dir().join("third")), head);
}

#[test]
fn nothing_that_is_mounted_is_entered() {
    if !may_mount().unwrap() {
        return;
    }
    let site = Site::new("backup-mounts");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let host = site.mountable("host");
    fs::write(host.join("of-the-host"), "x").unwrap();
    let source = host.to_str().unwrap();
    let bound = Mounted::at(&data.join("mnt/hb-j-1/0"), &["--bind", source]);
    made(&data, &dest);
    assert!(!dest.join("mnt").exists());
    // Elsewhere there should be no mount; whoever has made one is told, and nothing is left out in silence.
    let other = site.dir().join("other");
    let below = Mounted::at(&data.join("scratch/j/below"), &["--bind", source]);
    refused(&run(&data, &other), 64, "something is mounted there", &other);
    drop(below);
    fs::write(data.join("scratch/j/file"), "x").unwrap();
    let output =
        Command::new("mount").arg("--bind").arg(host.join("of-the-host")).arg(data.join("scratch/j/file")).output();
    assert!(output.unwrap().status.success());
    let on_file = Mounted(data.join("scratch/j/file"));
    refused(&run(&data, &other), 64, "something is mounted there", &other);
    drop((on_file, bound));
    // A room of the agent's own that the operator has put on another disk is copied as the agent sees it.
    let room = Mounted::at(&data.join("logs"), &["-t", "tmpfs", "tmpfs"]);
    fs::create_dir(data.join("logs/j")).unwrap();
    fs::write(data.join("logs/j/1.stdout"), "said").unwrap();
    fs::create_dir(site.dir().join("seals")).unwrap();
    fs::write(site.dir().join("seals/j.json"), "{}").unwrap();
    symlink("../seals", data.join("seals")).unwrap();
    made(&data, &other);
    drop(room);
    assert_eq!(fs::read_to_string(other.join("logs/j/1.stdout")).unwrap(), "said");
    assert!(fs::symlink_metadata(other.join("seals")).unwrap().is_dir());
    assert_eq!(fs::read_to_string(other.join("seals/j.json")).unwrap(), "{}");
}

#[test]
fn whatever_a_payload_makes_is_copied_as_it_is() {
    let site = Site::new("backup-payload");
    let agent = site.start(&[]);
    let line = "echo x > file; ln file twin; ln -s /etc/passwd out; ln -s nowhere dangling; mkfifo -m 640 fifo; mkdir -m 3777 d
        printf odd > \"$(printf 'a\\377 b\\nc')\"; echo hid > hidden; mkdir shut; echo y > shut/y; echo run > run; chmod 4755 run
        ln -s \"$(printf '\\376')\" l; echo p > x.partial; echo t > x.tmp; : > empty; mkdir none
        dd if=/dev/zero of=sparse bs=1 count=1 seek=50000000 2>/dev/null; printf end >> sparse
        p=$(i=0; while [ $i -lt 60 ]; do printf dddddddddddddddddddddddddddddddddddddddddddddddddd/; i=$((i + 1)); done)
        mkdir -p A/$p B/$p; echo bottom > B/${p}bottom; mv B A/$p
        touch -d '2001-02-03 04:05:06' file d; touch -h -d '2002-03-04 05:06:07' out
        chmod 0 hidden shut";
    let id = sealed(&agent, &shell(&job_id("odd"), &[], line));
    let (data, dest) = (site.data(), site.dir().join("copy"));
    let work = data.join("scratch").join(&id);
    let _listening = std::os::unix::net::UnixListener::bind(work.join("socket")).unwrap();
    let with_socket = tree(&work);
    let head = made(&data, &dest);
    is_sound(&dest, &head);
    let copied = dest.join("scratch").join(&id);
    // Names, types, modes, links, contents.
    assert!(tree(&copied) == with_socket);
    assert!(with_socket.entries.iter().any(|entry| entry.path.len() > 6000 && entry.path.ends_with(b"/bottom")));
    for name in ["file", "out", "dangling", "fifo", "d", "hidden", "shut", "sparse", "l", "none", "x.partial", "x.tmp"]
    {
        let [was, is] = [&work, &copied].map(|dir| fs::symlink_metadata(dir.join(name)).unwrap());
        let told = |of: &fs::Metadata| (of.mode(), of.uid(), of.gid(), of.mtime(), of.mtime_nsec(), of.nlink());
        assert_eq!(told(&was), told(&is), "{name}");
    }
    let [file, twin] = ["file", "twin"].map(|name| fs::metadata(copied.join(name)).unwrap().ino());
    assert_eq!(file, twin, "a file with two names is one");
    assert!(fs::metadata(copied.join("sparse")).unwrap().blocks() < 1000, "a hole is no zeros");
    assert_eq!(fs::metadata(work.join("file")).unwrap().nlink(), 2, "the original is none of the copy's");
    // What a payload cannot make is left out and told.
    if effective_uid() == 0 {
        ran("mknod", &[&work.join("null"), Path::new("c"), Path::new("1"), Path::new("3")]);
        let other = site.dir().join("other");
        let ended = run(&data, &other);
        assert!(ended.code == Some(0) && ended.stdout.contains("1 left out"), "{ended:?}");
        assert!(ended.stderr.contains("null\" is left out: a device"), "{ended:?}");
    }
}

#[test]
fn what_the_agent_is_still_writing_is_left_out() {
    let site = Site::new("backup-unfinished");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let unfinished =
        ["seals/j.json.tmp", "inputs/j.json.tmp", "logs/j/1.telemetry.new", "scratch/j/0.partial/f", "wal/x.tmp"];
    let whole = ["seals/j.json", "logs/j/1.tmp", "scratch/j/f.tmp", "scratch/k/0.partial/f", "scratch/j/1.partial/f"];
    for name in unfinished.iter().chain(&whole) {
        fs::create_dir_all(data.join(name).parent().unwrap()).unwrap();
        fs::write(data.join(name), name).unwrap();
    }
    fs::create_dir_all(data.join("staged/j/0.begun")).unwrap();
    made(&data, &dest);
    for name in unfinished {
        assert!(!dest.join(name).exists(), "{name}");
    }
    for name in whole {
        assert_eq!(fs::read_to_string(dest.join(name)).unwrap(), name);
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left() {
    if !may_mount().unwrap() {
        return;
    }
    let site = Site::new("backup-full");
    let data = ledger(&site);
    fs::create_dir_all(data.join("logs/j")).unwrap();
    for (size, large) in [("512k", 0), ("8m", 16 << 20)] {
        fs::write(data.join("logs/j/1.stdout"), vec![b'x'; large]).unwrap();
        let disk = Mounted::at(&site.dir().join("disk"), &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        let dest = disk.0.join("copy");
        let ended = run(&data, &dest);
        refused(&ended, 74, "is the disk full?", &dest);
        assert!(ended.stderr.contains("no backup was made"), "{ended:?}");
        assert_eq!(fs::read_dir(&disk.0).unwrap().count(), 0);
    }
}

#[test]
fn prune_and_a_second_backup_are_waited_out_by_nobody() {
    let site = Site::new("backup-locks");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let prune = backup_guard(&data, true).unwrap().unwrap();
    refused(&run(&data, &dest), 75, "prune is running; make the backup when it has ended", &dest);
    drop(prune);
    let other = backup_guard(&data, false).unwrap().unwrap();
    made(&data, &dest);
    drop(other);
    let second = site.dir().join("second");
    fs::create_dir(partial(&second)).unwrap();
    let guard = backup_guard(&partial(&second), true).unwrap().unwrap();
    let ended = run(&data, &second);
    assert!(ended.code == Some(75) && ended.stderr.contains("another backup to"), "{ended:?}");
    assert!(partial(&second).exists(), "it is the other one's");
    drop(guard);
    made(&data, &second);
    assert_eq!(fs::metadata(data.join("BACKUP")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_backup_that_the_user_ends_leaves_nothing() {
    let site = Site::new("backup-interrupted");
    let (data, dest) = (ledger(&site), site.dir().join("copy"));
    let work = data.join("scratch/j");
    fs::create_dir_all(&work).unwrap();
    // In the middle of the files, where the first thing that is left out is told.
    let options = Backup { dest: dest.clone(), data: data.clone() };
    if effective_uid() == 0 {
        fs::create_dir(work.join("d")).unwrap();
        for number in 0..10 {
            ran("mknod", &[&work.join(format!("d/{number}")), Path::new("c"), Path::new("1"), Path::new("3")]);
        }
        let interrupted = AtomicBool::new(false);
        let mut told = 0;
        let mut note = |_: &str| {
            told += 1;
            assert!(partial(&dest).join("data/wal").exists());
            interrupted.store(true, Ordering::SeqCst);
        };
        let outcome = backup(&options, &interrupted, &mut note, None);
        assert!(matches!(outcome, Err(BackupError::Interrupted)), "{outcome:?}");
        assert_eq!(told, 1);
        assert!(!dest.exists() && !partial(&dest).exists());
        fs::remove_dir_all(work.join("d")).unwrap();
    }
    for number in 0..3000 {
        fs::write(work.join(number.to_string()), "x").unwrap();
    }
    let mut ends = Vec::new();
    for _ in 0..20 {
        let mut child = command(&data, &dest).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let at_work = partial(&dest).join("data/scratch");
        while !at_work.exists() && child.try_wait().unwrap().is_none() {}
        let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).output();
        let code = child.wait().unwrap().code();
        assert!(!partial(&dest).exists());
        assert_eq!(dest.exists(), code == Some(0), "{code:?}");
        ends.push(code);
        if code == Some(130) {
            return;
        }
        fs::remove_dir_all(&dest).unwrap();
    }
    panic!("none was interrupted: {ends:?}");
}

#[test]
fn it_works_as_the_agents_user_and_says_what_that_may_not_read() {
    if effective_uid() != 0 {
        return;
    }
    let site = Site::new("backup-user");
    let data = ledger(&site);
    let work = data.join("scratch/j");
    fs::create_dir_all(work.join("ro/below")).unwrap();
    fs::create_dir_all(work.join("shut")).unwrap();
    for name in ["ro/f", "hidden", "shut/f", "ro/below/f"] {
        fs::write(work.join(name), "x").unwrap();
    }
    // Root was the first to make one; that must not keep the agent's user from it.
    ran("chown", &[Path::new("-R"), Path::new("65534:65534"), &data]);
    made(&data, &site.dir().join("roots"));
    let roots = fs::metadata(site.dir().join("roots")).unwrap();
    assert_eq!((roots.uid(), roots.mode() & 0o777), (NOBODY, 0o700), "the agent's user can read it");
    for (name, mode) in [("hidden", 0), ("shut", 0), ("ro/below", 0o555), ("ro", 0o555)] {
        fs::set_permissions(work.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(work.join("roots"), "x").unwrap();
    chown(work.join("roots"), Some(0), Some(0)).unwrap();
    let home = site.dir().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let dest = home.join("copy");
    let as_user = |command: &mut Command| {
        command.uid(NOBODY).gid(NOBODY);
        Ended::of(command)
    };
    // What a killed one leaves has directories that may not be written.
    let killed = as_user(debug_build(command(&data, &dest).env("HACKBRAIN_KILL_AT", "backup-files")).current_dir("/"));
    assert_eq!(killed.code, None, "{killed:?}");
    assert!(partial(&dest).join("data/scratch/j/ro/below/f").exists(), "{killed:?}");
    let ended = as_user(command(&data, &dest).current_dir("/"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("2 left out"), "{ended:?}");
    for says in ["scratch/j/hidden\" is left out: Permission denied", "scratch/j/shut\" is left out", "owners of files"]
    {
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
    }
    assert!(dest.join("scratch/j/ro/below/f").exists() && dest.join("scratch/j/roots").exists());
    // Of what events name nothing may be missing.
    fs::create_dir_all(data.join("logs/j")).unwrap();
    fs::write(data.join("logs/j/1.stdout"), "x").unwrap();
    fs::set_permissions(data.join("logs/j/1.stdout"), fs::Permissions::from_mode(0o000)).unwrap();
    let other = home.join("other");
    refused(&as_user(command(&data, &other).current_dir("/")), 74, "logs/j/1.stdout: Permission denied", &other);
    assert_eq!(fs::read_dir(&home).unwrap().count(), 1);
}
