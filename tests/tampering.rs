//! Tampered ledgers and evidence: what `hackbrain verify --artifacts` and `scripts/verify.py` say of each.
//!
//! A real agent makes one data directory with every kind of job. Each case takes a copy, changes something, and both programs
//! must give the verdict that the table tells: exit code, damaged file, faults, notes and head.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod forgery;
#[path = "tampering/parents.rs"]
mod parents;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use agent::{Agent, Ended, Site, eventually, hackbrain, job_id, manifest};
use forgery::{Events, chained, json, with_detail};
use hackbrain::hash::Hash;
use hackbrain::sys::block::Caching;
use hackbrain::wal::frame::{
    BLOCK, FRAME_HEADER, SECTOR, SEGMENT_DATA_START, decode_header, decode_segment_header, segment_name,
};
use hackbrain::wal::segments::{WITNESS, Witness};
use hackbrain::wal::storage::Directory;
use serde_json::{Value, json};

/// Where the other program lies.
const VERIFY_PY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/verify.py");
/// Bytes of the forger's segments: fourteen frames of one block.
const SMALL: u64 = 64 << 10;
/// For a forged log in one segment.
const LARGE: u64 = 1 << 20;

/// What both programs should say.
#[derive(Debug, Clone, PartialEq)]
struct Verdict {
    code: i32,
    /// The file that the `damaged:` line names.
    damaged: Option<String>,
    /// Kind, job, path.
    faults: BTreeSet<(String, String, String)>,
    /// Word, job, path.
    notes: BTreeSet<(String, String, String)>,
    /// How many events are missed.
    unexpected: usize,
    head: String,
}

impl Verdict {
    fn of(ended: &Ended) -> Self {
        let lines: Vec<&str> = ended.stdout.lines().collect();
        let triples = |begin: &str| {
            let of = |line: &&str| {
                let rest = line.strip_prefix(begin)?;
                // No name here holds a colon and a space.
                let (head, why) = rest.split_once(": ").unwrap_or_else(|| panic!("{line}"));
                assert!(!why.trim().is_empty(), "{line}");
                let mut words = head.splitn(3, ' ').map(str::to_owned);
                Some((words.next()?, words.next()?, words.next()?))
            };
            lines.iter().filter_map(of).collect()
        };
        let damaged = lines.iter().find_map(|line| line.strip_prefix("damaged: ")).map(|line| {
            let file = line.split(": ").next().unwrap();
            Path::new(file).file_name().unwrap().to_str().unwrap().to_owned()
        });
        Self {
            code: ended.code.unwrap_or(-1),
            damaged,
            faults: triples("fault "),
            notes: triples("note ").into_iter().filter(|(word, ..)| !word.ends_with(':')).collect(),
            unexpected: lines.iter().filter(|line| line.starts_with("expected event ")).count(),
            head: (*lines.last().unwrap_or(&"")).to_owned(),
        }
    }
}

/// Ids of the jobs.
struct Jobs {
    sealed: String,
    scratch: String,
    failed: String,
    crashed: String,
    cancelled: String,
    first: String,
    second: String,
    reader: String,
    parent: String,
    /// Has sealed the same as `parent`.
    twin: String,
    /// Mounts what `parent` has sealed, then a directory of its own.
    child: String,
    /// The reproduction of `child`.
    again: String,
    /// Failed by itself.
    blamed: String,
    /// Failed because `blamed` did.
    orphan: String,
    /// Failed because `orphan` did; has a parent that was sealed besides.
    below: String,
}

/// What the agent left behind, and how it was.
struct World {
    site: Site,
    jobs: Jobs,
    events: Events,
    wrong: RefCell<Vec<String>>,
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn shell(id: &str, dir: Option<&Path>, line: &str) -> Value {
    let mut job = manifest(id, &["sh", "-c", line]);
    if let Some(dir) = dir {
        job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    }
    job
}

fn run(agent: &Agent, job: &Value, state: &str) {
    agent.accepted(job);
    let summary = agent.ended(job["job_id"].as_str().unwrap());
    assert_eq!(summary["state"], state, "{summary}");
}

/// Runs the jobs that hang on others.
fn kin(site: &Site, agent: &Agent, jobs: &Jobs) {
    for job in [&jobs.parent, &jobs.twin] {
        run(agent, &shell(job, None, "mkdir d; echo p > d/p; echo q > q"), "SEALED");
    }
    let dir = site.mountable("child");
    fs::write(dir.join("in"), "in").unwrap();
    let mut job = shell(&jobs.child, None, "cd /job/workdir; cat /job/in/p/d/p in > out; echo done");
    job["mount_spec"] = json!([format!("job:{}:/job/in/p", jobs.parent), format!("{}:/job/workdir", dir.display())]);
    run(agent, &job, "SEALED");
    let answer = agent.post(&format!("/api/jobs/{}/reproduce", jobs.child), b"{}");
    assert_eq!((answer.status, &answer.json()["job_id"]), (200, &json!(jobs.again)), "{}", answer.text());
    assert_eq!(agent.ended(&jobs.again)["state"], "SEALED");
    run(agent, &shell(&jobs.blamed, None, "exit 4"), "FAILED");
    for (job, parents) in [(&jobs.orphan, vec![&jobs.blamed]), (&jobs.below, vec![&jobs.orphan, &jobs.sealed])] {
        let mut manifest = shell(job, None, "true");
        manifest["depends_on"] = json!(parents);
        run(agent, &manifest, "FAILED");
        assert_eq!(agent.get(&format!("/api/jobs/{job}")).json()["ancestor"], jobs.blamed);
    }
    let is_empty = || fs::read_dir(site.data().join("staged")).map_or(true, |mut dir| dir.next().is_none());
    eventually("what was staged is removed", || is_empty().then_some(()));
}

impl World {
    fn new() -> Self {
        let site = Site::new("tampering");
        let child = job_id("child");
        let jobs = Jobs {
            sealed: job_id("sealed"),
            scratch: job_id("scratch"),
            failed: job_id("failed"),
            crashed: job_id("crashed"),
            cancelled: job_id("cancelled"),
            first: job_id("first"),
            second: job_id("second"),
            reader: job_id("reader"),
            parent: job_id("parent"),
            twin: job_id("twin"),
            again: format!("{child}.r1"),
            child,
            blamed: job_id("blamed"),
            orphan: job_id("orphan"),
            below: job_id("below"),
        };
        let (work, again, shared) = (site.mountable("work"), site.mountable("again"), site.mountable("shared"));
        for (name, text) in [("keep.txt", "kept"), ("edit.txt", "one\n"), ("gone.txt", "gone"), ("sub/in.txt", "in")] {
            fs::create_dir_all(work.join("sub")).unwrap();
            fs::write(work.join(name), text).unwrap();
        }
        symlink("keep.txt", work.join("sub/to-keep")).unwrap();
        let agent = site.start(&["--workers", "1"]);
        let line = "echo two >> edit.txt; rm gone.txt; mkdir -p out/deep; echo result > out/result.bin; \
                    echo x > out/deep/x; chmod 755 out/result.bin; echo a > 'ä ö'; echo b > \"$(printf 'n\\nl')\"; \
                    echo c > 'back\\slash'; echo d > \"$(printf '\\377')\"; echo e > 100%; ln -s edit.txt link; \
                    echo '[D1_STABLE] 1'; echo done; echo err >&2";
        let mut job = shell(&jobs.sealed, Some(&work), line);
        job["env"] = json!({ "TZ": "Europe/Berlin", "B": "ü\n" });
        job["resources"] = json!({ "cpus": 0.5, "memory_mib": 64 });
        job["mount_spec"] = json!([job["mount_spec"], format!("{}:/job/again:ro", again.display())]);
        run(&agent, &job, "SEALED");
        run(&agent, &shell(&jobs.scratch, None, "echo scratch > s.txt; echo out"), "SEALED");
        run(&agent, &shell(&jobs.failed, None, "echo failing; exit 3"), "FAILED");
        let line = "echo try; test -e again && exit 0; touch again; kill -9 $$";
        run(&agent, &shell(&jobs.crashed, Some(&again), line), "SEALED");
        agent.accepted(&shell(&jobs.cancelled, None, "echo started; exec sleep 600"));
        let said = || agent.get(&format!("/api/jobs/{}/stdout", jobs.cancelled)).body == b"started\n";
        eventually("it runs", || said().then_some(()));
        agent.post(&format!("/api/jobs/{}/cancel", jobs.cancelled), b"");
        assert_eq!(agent.ended(&jobs.cancelled)["state"], "CANCELLED");
        agent.kill();
        let agent = site.start(&["--workers", "1"]);
        run(&agent, &shell(&jobs.first, Some(&shared), "echo 1 > a; echo 1 > b; echo 1 > same"), "SEALED");
        run(
            &agent,
            &shell(&jobs.second, Some(&shared), "echo 22 > a; rm b; echo 2 > c; echo '[D1_STABLE] 1'"),
            "SEALED",
        );
        // By hand, and found by a job that only reads there.
        fs::write(shared.join("note"), "found").unwrap();
        let mut job = shell(&jobs.reader, None, "cat /job/in/note");
        let own = site.mountable("reader");
        job["mount_spec"] =
            json!([format!("{}:/job/workdir", own.display()), format!("{}:/job/in:ro", shared.display())]);
        run(&agent, &job, "SEALED");
        kin(&site, &agent, &jobs);
        assert_eq!(agent.terminate(), Some(0));

        let events: Events = site.dump(&[]).stdout.lines().map(str::to_owned).collect();
        let world = Self { site, jobs, events, wrong: RefCell::default() };
        for entry in fs::read_dir(world.site.data().join("wal")).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.extension().is_some_and(|extension| extension == "tmp") {
                fs::remove_file(entry).unwrap();
            }
        }
        copy(&world.site.data(), &world.site.dir().join("pristine-data"));
        copy(&world.site.root(), &world.site.dir().join("pristine-root"));
        world
    }

    /// Everything as the agent left it.
    fn restore(&self) {
        for (name, place) in [("pristine-data", self.data()), ("pristine-root", self.site.root())] {
            fs::remove_dir_all(&place).unwrap();
            copy(&self.site.dir().join(name), &place);
        }
    }

    fn data(&self) -> PathBuf {
        self.site.data()
    }

    fn wal(&self) -> PathBuf {
        self.data().join("wal")
    }

    /// The one segment.
    fn segment(&self) -> PathBuf {
        self.wal().join(segment_name(1))
    }

    fn work(&self, name: &str) -> PathBuf {
        self.site.root().join("work").join(name)
    }

    fn shared(&self, name: &str) -> PathBuf {
        self.site.root().join("shared").join(name)
    }

    fn own(&self, path: &str) -> PathBuf {
        self.data().join(path)
    }

    /// Seq of a job's event, counted among those of this state from 0.
    fn seq_of(&self, job: &str, state: &str, nth: usize) -> u64 {
        let fits = |event: &&String| {
            let event = json(event);
            event["job_id"] == job && event["state"] == state
        };
        json(self.events.iter().filter(fits).nth(nth).unwrap())["seq"].as_u64().unwrap()
    }

    fn hash(&self, seq: u64) -> Hash {
        match seq {
            0 => Hash::ZERO,
            seq => Hash::of(self.events[seq as usize - 1].as_bytes()),
        }
    }

    fn head_at(&self, seq: u64) -> String {
        format!("head {seq} {}", self.hash(seq))
    }

    fn expect(&self, seq: u64) -> String {
        format!("{seq}:{}", self.hash(seq))
    }

    /// What an untouched directory has: the second job in `shared` undid what the first one left, and a third one found what
    /// neither knows.
    fn sound(&self) -> Verdict {
        let (first, second) = (&self.jobs.first, &self.jobs.second);
        let superseded = [(first, "a"), (first, "b"), (first, "c"), (first, "note"), (second, "note")]
            .map(|(job, name)| ("superseded".into(), job.clone(), format!("/job/workdir/{name}")));
        Verdict {
            code: 0,
            damaged: None,
            faults: BTreeSet::new(),
            notes: superseded.into(),
            unexpected: 0,
            head: self.head_at(self.events.len() as u64),
        }
    }

    fn faults(&self, faults: &[(&str, &str, &str)]) -> Verdict {
        let owned =
            |(kind, job, path): &(&str, &str, &str)| ((*kind).to_owned(), (*job).to_owned(), (*path).to_owned());
        Verdict { code: 65, faults: faults.iter().map(owned).collect(), ..self.sound() }
    }

    /// Damage in this file; `seq` is the last sound event.
    fn damaged(&self, file: &str, seq: u64) -> Verdict {
        let head = self.head_at(seq);
        Verdict { code: 65, damaged: Some(file.into()), notes: BTreeSet::new(), head, ..self.sound() }
    }

    /// What `program` says, where it is not what was expected.
    fn run(&self, program: &mut Command, expected: &Verdict, expect: &[String]) -> Option<String> {
        for noted in expect {
            program.args(["--expect", noted]);
        }
        let ended = Ended::of(program);
        let verdict = Verdict::of(&ended);
        (verdict != *expected).then(|| {
            let said = format!("{}{}", ended.stdout, ended.stderr);
            format!("{:?}:\nexpected {expected:#?}\nfound {verdict:#?}\n{said}", program.get_program())
        })
    }

    /// Runs both programs on the directory as it is now.
    fn check(&self, what: &str, expected: &Verdict, expect: &[String]) {
        let ours = self.run(hackbrain().args(["verify", "--artifacts", "--data"]).arg(self.data()), expected, expect);
        let theirs = self.run(Command::new("python3").arg(VERIFY_PY).arg(self.data()), expected, expect);
        let wrong = [ours, theirs];
        self.wrong.borrow_mut().extend(wrong.into_iter().flatten().map(|wrong| format!("{what}: {wrong}")));
    }

    /// Fails where a verdict was not the expected one, with all of those.
    fn done(&self) {
        let wrong = self.wrong.borrow();
        assert!(wrong.is_empty(), "{} wrong verdicts:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// Takes `events` for the ledger, chained anew, and tells what is said where only the head is another.
    fn forged(&self, events: &[String]) -> Verdict {
        let events = chained(events);
        forgery::write(&self.wal(), &events, LARGE);
        Verdict { head: head_of(&events), ..self.sound() }
    }

    /// The same; the event of this seq is refused.
    fn refused(&self, events: &[String], seq: u64) -> Verdict {
        let events = chained(events);
        self.refused_unchained(&events, seq)
    }

    fn refused_unchained(&self, events: &[String], seq: u64) -> Verdict {
        forgery::write(&self.wal(), events, LARGE);
        Verdict { head: head_of(&events[..seq as usize - 1]), ..self.damaged(&segment_name(1), 0) }
    }

    /// The events, one of them changed.
    fn edited(&self, seq: u64, change: impl FnOnce(&str) -> String) -> Events {
        let mut events = self.events.clone();
        let event = &mut events[seq as usize - 1];
        *event = change(event);
        assert_ne!(*event, self.events[seq as usize - 1], "the edit edits");
        events
    }

    /// The same; the detail is changed.
    fn edited_detail(&self, seq: u64, change: impl FnOnce(&mut Value)) -> Events {
        self.edited(seq, |event| with_detail(event, change))
    }

    /// The event of this seq was edited and nothing else, so the next one does not follow it.
    fn refused_edit(&self, events: &[String], seq: u64) -> Verdict {
        self.refused_unchained(events, seq + 1)
    }

    /// Offset and blocks of the frame that holds this event, and the last one before it.
    fn frame_of(&self, seq: u64) -> (usize, usize, u64) {
        let bytes = fs::read(self.segment()).unwrap();
        let mut at = SEGMENT_DATA_START as usize;
        loop {
            let header = decode_header(&bytes[at..at + BLOCK]).unwrap();
            if seq < header.first_seq + u64::from(header.records) {
                return (at, header.blocks as usize, header.first_seq - 1);
            }
            at += header.blocks as usize * BLOCK;
        }
    }

    /// Changes one byte of the segment.
    fn flip(&self, at: usize) {
        flip(&self.segment(), at);
    }

    /// The seal of a job, changed, written with a list that fits, and SEALED with all hashes made to fit.
    fn reseal(&self, job: &str, change: impl FnOnce(&mut Value)) -> Events {
        let path = self.own(&format!("seals/{job}.json"));
        let mut seal = json(&fs::read_to_string(&path).unwrap());
        change(&mut seal);
        let mut list = Vec::new();
        for artifact in seal["artifacts"].as_array().unwrap() {
            let path = hackbrain::seal::text::decode(artifact["path"].as_str().unwrap()).unwrap();
            let escaped = path.iter().skip(1).flat_map(|&byte| match byte {
                b'\\' => b"\\\\".to_vec(),
                b'\n' => b"\\n".to_vec(),
                other => vec![other],
            });
            let escaped: Vec<u8> = escaped.collect();
            if escaped.len() + 1 != path.len() {
                list.push(b'\\');
            }
            list.extend_from_slice(format!("{}  ", artifact["sha256"].as_str().unwrap()).as_bytes());
            list.extend_from_slice(&escaped);
            list.push(b'\n');
        }
        fs::write(self.own(&format!("seals/{job}.sha256")), &list).unwrap();
        seal["artifacts_root"] = json!(Hash::of(&list));
        seal["files"] = seal["artifacts"].as_array().unwrap().len().into();
        let text = seal.to_string();
        fs::write(&path, &text).unwrap();
        self.edited_detail(self.seq_of(job, "SEALED", 0), |detail| {
            for name in ["artifacts_root", "files", "bytes"] {
                detail[name] = seal[name].clone();
            }
            detail["seal_hash"] = json!(Hash::of(text.as_bytes()));
        })
    }
}

fn head_of(events: &[String]) -> String {
    format!("head {} {}", events.len(), events.last().map_or(Hash::ZERO, |event| Hash::of(event.as_bytes())))
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    let before = bytes.clone();
    change(&mut bytes);
    assert_ne!(bytes, before, "the edit edits");
    fs::write(path, bytes).unwrap();
}

fn flip(path: &Path, at: usize) {
    edit(path, |bytes| bytes[at] ^= 0x10);
}

fn edit_json(path: &Path, change: impl FnOnce(&mut Value)) {
    edit(path, |bytes| {
        let mut value: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut value);
        *bytes = value.to_string().into_bytes();
    });
}

/// The artifact with this path.
fn artifact<'s>(seal: &'s mut Value, path: &str) -> &'s mut Value {
    seal["artifacts"].as_array_mut().unwrap().iter_mut().find(|artifact| artifact["path"] == path).unwrap()
}

type Case = (&'static str, fn(&World) -> Verdict);

#[test]
fn both_programs_give_the_verdict_of_each_tampering() {
    let world = World::new();
    world.check("untouched", &world.sound(), &[]);
    let plain = world.site.verify(&[]);
    assert_eq!(plain.code, Some(0));
    assert_eq!(plain.stdout.lines().count(), 2, "without --artifacts no file is looked at: {plain:?}");
    let cases = [MEDIUM, FORGED, FILES, EVIDENCE, parents::PARENTS];
    assert!(cases.iter().map(|cases| cases.len()).sum::<usize>() >= 40);
    for (name, tamper) in cases.into_iter().flatten() {
        world.restore();
        let expected = tamper(&world);
        world.check(name, &expected, &[]);
    }
    world.done();
}

#[test]
fn what_was_noted_elsewhere_catches_what_nothing_else_can() {
    let world = World::new();
    let (sealed, head) = (&world.jobs.sealed, world.events.len() as u64);
    let received = world.seq_of(sealed, "RECEIVED", 0);
    let later = world.seq_of(&world.jobs.scratch, "RECEIVED", 0);
    world.check("untouched", &world.sound(), &[received, later, head].map(|seq| world.expect(seq)));
    world.check(
        "another hash",
        &Verdict { code: 65, unexpected: 1, ..world.sound() },
        &[format!("{head}:{}", Hash::ZERO)],
    );

    // A whole new history: artifact, seal, list and SEALED fit, and everything from there on is chained anew.
    fs::write(world.work("out/result.bin"), "forged").unwrap();
    let events = world.reseal(sealed, |seal| {
        let (old, new) = ("result\n".len() as u64, "forged".len() as u64);
        seal["bytes"] = (seal["bytes"].as_u64().unwrap() - old + new).into();
        let artifact = artifact(seal, "/job/workdir/out/result.bin");
        artifact["size"] = new.into();
        artifact["sha256"] = json!(Hash::of(b"forged"));
    });
    let forged = world.forged(&events);
    world.check("a new history", &forged, &[]);
    world.check("a hash from before the lie", &forged, &[world.expect(received)]);
    let caught = Verdict { code: 65, unexpected: 1, ..forged };
    for seq in [later, head] {
        world.check("a hash from behind it", &caught, &[world.expect(seq)]);
    }

    // A clean end, earlier.
    world.restore();
    let (at, blocks, before) = world.frame_of(head);
    edit(&world.segment(), |bytes| bytes[at..at + (blocks + 1) * BLOCK].fill(0));
    let earlier = Verdict { head: world.head_at(before), ..world.sound() };
    world.check("the last frame and its mark are zeros", &earlier, &[]);
    world.check("and the head was noted", &Verdict { code: 65, unexpected: 1, ..earlier }, &[world.expect(head)]);
    world.done();
}

/// The medium, or somebody with a hex editor.
const MEDIUM: &[Case] = &[
    ("a bit of a frame's header", |w| {
        let (at, _, before) = w.frame_of(9);
        w.flip(at + 20);
        w.damaged(&segment_name(1), before)
    }),
    ("a bit of a record", |w| {
        let (at, _, before) = w.frame_of(9);
        w.flip(at + FRAME_HEADER + 40);
        w.damaged(&segment_name(1), before)
    }),
    ("a bit of a sector's mark", |w| {
        let (at, _, before) = w.frame_of(9);
        w.flip(at + 504);
        w.damaged(&segment_name(1), before)
    }),
    ("a bit of a sector's checksum", |w| {
        let (at, _, before) = w.frame_of(9);
        w.flip(at + 510);
        w.damaged(&segment_name(1), before)
    }),
    ("a bit of the padding", |w| {
        let (at, blocks, before) = w.frame_of(9);
        w.flip(at + blocks * BLOCK - 20);
        w.damaged(&segment_name(1), before)
    }),
    ("a sector is zeros", |w| {
        let (at, _, before) = w.frame_of(9);
        edit(&w.segment(), |bytes| bytes[at..at + SECTOR].fill(0));
        w.damaged(&segment_name(1), before)
    }),
    ("the last frame is zeros, its mark is not", |w| {
        let (at, blocks, before) = w.frame_of(w.events.len() as u64);
        edit(&w.segment(), |bytes| bytes[at..at + blocks * BLOCK].fill(0));
        w.damaged(&segment_name(1), before)
    }),
    ("one header of a segment", |w| {
        w.flip(40);
        w.sound()
    }),
    ("both headers of a segment", |w| {
        w.flip(40);
        w.flip(BLOCK + 40);
        w.damaged(&segment_name(1), 0)
    }),
    ("a segment is cut", |w| {
        edit(&w.segment(), |bytes| bytes.truncate(bytes.len() - BLOCK));
        w.damaged(&segment_name(1), 0)
    }),
    ("a segment is longer", |w| {
        edit(&w.segment(), |bytes| bytes.resize(bytes.len() + BLOCK, 0));
        w.damaged(&segment_name(1), 0)
    }),
    ("one slot of the witness", |w| {
        flip(&w.wal().join("segments"), 30);
        w.sound()
    }),
    ("both slots of the witness", |w| {
        flip(&w.wal().join("segments"), 30);
        flip(&w.wal().join("segments"), BLOCK + 30);
        w.damaged("segments", 0)
    }),
    ("no witness", |w| {
        fs::remove_file(w.wal().join("segments")).unwrap();
        w.damaged("segments", w.events.len() as u64)
    }),
    ("the last segment is gone", |w| {
        let last = segmented(w);
        fs::remove_file(w.wal().join(segment_name(last.number))).unwrap();
        Verdict { head: last.before, ..w.damaged(&segment_name(last.number), 0) }
    }),
    ("the last segment is gone, and the witness says so", |w| {
        let last = segmented(w);
        fs::remove_file(w.wal().join(segment_name(last.number))).unwrap();
        let storage = Directory::open(&w.wal(), Caching::Buffered).unwrap();
        let known = Witness::read(&storage).unwrap().unwrap();
        fs::remove_file(w.wal().join(WITNESS)).unwrap();
        Witness { last: last.number - 1, ..known }.create(&storage).unwrap();
        Verdict { head: last.kept, ..w.sound() }
    }),
    ("two segments are swapped", |w| {
        segmented(w);
        let [two, three] = [2, 3].map(|number| w.wal().join(segment_name(number)));
        let bytes = fs::read(&two).unwrap();
        fs::copy(&three, &two).unwrap();
        fs::write(&three, bytes).unwrap();
        w.damaged(&segment_name(2), 0)
    }),
    ("a segment is there twice", |w| {
        let last = segmented(w);
        let [from, to] = [last.number, last.number + 1].map(|number| w.wal().join(segment_name(number)));
        fs::copy(from, to).unwrap();
        Verdict { head: last.kept, ..w.damaged(&segment_name(last.number + 1), 0) }
    }),
    ("a segment of another log", |w| {
        segmented(w);
        let other = w.site.dir().join("other-wal");
        fs::create_dir_all(&other).unwrap();
        forgery::write(&other, &chained(&w.events), SMALL);
        fs::copy(other.join(segment_name(2)), w.wal().join(segment_name(2))).unwrap();
        w.damaged(&segment_name(2), 0)
    }),
];

/// The last segment of a log in small segments.
struct LastSegment {
    number: u64,
    /// The head where the segment before it begins.
    before: String,
    /// The head where it begins.
    kept: String,
}

/// Writes the log in small segments, with more of the agent's starts and stops at its end: so many that the last segment holds
/// nothing else.
fn segmented(w: &World) -> LastSegment {
    let up = w.events.iter().rfind(|event| event.contains(",\"state\":\"NODE_UP\",")).unwrap();
    let (down, mut events) = (w.events.last().unwrap(), w.events.clone());
    for _ in 0..20 {
        events.extend([up, down].map(|event| at_time_of(event, down)));
    }
    let events = chained(&events);
    forgery::write(&w.wal(), &events, SMALL);
    let number = fs::read_dir(w.wal()).unwrap().count() as u64 - 1;
    assert!(number > 4 && sealed_by(&w.wal(), number) > w.events.len() as u64, "{number} segments");
    let head = |number| head_of(&events[..sealed_by(&w.wal(), number) as usize]);
    LastSegment { number, before: head(number - 1), kept: head(number) }
}

/// The event at the time of another one.
fn at_time_of(event: &str, other: &str) -> String {
    let time = |event: &str| event.split("\"time\":\"").nth(1).unwrap()[..27].to_owned();
    event.replacen(&time(event), &time(other), 1)
}

/// The events, with a PRUNED of these jobs behind the first `after`.
fn with_pruned(w: &World, after: usize, jobs: &[&str]) -> Events {
    let time = &w.events[after - 1].split("\"time\":\"").nth(1).unwrap()[..27];
    let detail = json!({ "by": "command", "older_than_s": 0, "jobs": jobs, "files": 1, "bytes": 1 });
    let event = format!(
        "{{\"seq\":1,\"prev\":\"{}\",\"time\":\"{time}\",\"state\":\"PRUNED\",\"detail\":{detail}}}",
        Hash::ZERO
    );
    let mut events = w.events.clone();
    events.insert(after, event);
    events
}

/// Seq of the last event before this segment, as its header tells.
fn sealed_by(wal: &Path, number: u64) -> u64 {
    let bytes = fs::read(wal.join(segment_name(number))).unwrap();
    decode_segment_header(&bytes[..BLOCK]).unwrap().first_seq - 1
}

/// Ledgers that a forger wrote with right frames, checksums and witness.
const FORGED: &[Case] = &[
    ("written anew as it was", |w| w.forged(&w.events)),
    ("an event is dropped", |w| {
        let mut events = w.events.clone();
        events.remove(8);
        w.refused_unchained(&events, 9)
    }),
    ("a RUNNING is dropped, and all chained anew", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        let mut events = w.events.clone();
        events.remove(seq as usize - 1);
        w.refused(&events, seq)
    }),
    ("a D1_STABLE is dropped, and all chained anew", |w| {
        let mut events = w.events.clone();
        events.remove(w.seq_of(&w.jobs.sealed, "D1_STABLE", 0) as usize - 1);
        w.forged(&events)
    }),
    ("two events are swapped", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "SCHEDULED", 0);
        let mut events = w.events.clone();
        events.swap(seq as usize - 1, seq as usize);
        w.refused_unchained(&events, seq)
    }),
    ("two events are swapped and chained anew", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "SCHEDULED", 0);
        let mut events = w.events.clone();
        events.swap(seq as usize - 1, seq as usize);
        let [early, late] = [seq as usize - 1, seq as usize].map(|at| events[at].clone());
        events[seq as usize - 1] = at_time_of(&early, &late);
        w.refused(&events, seq)
    }),
    ("an exit code", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        let events = w.edited(seq, |event| event.replace("\"exit_code\":3", "\"exit_code\":4"));
        w.refused_edit(&events, seq)
    }),
    ("an exit code, chained anew", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        w.forged(&w.edited(seq, |event| event.replace("\"exit_code\":3", "\"exit_code\":4")))
    }),
    ("a time", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        let events = w.edited(seq, |event| at_time_of(event, &w.events[seq as usize - 2]));
        w.refused_edit(&events, seq)
    }),
    ("a time goes back", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        w.refused(&w.edited(seq, |event| at_time_of(event, &w.events[0])), seq)
    }),
    ("no such time", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        let time = "9999-02-30T00:00:00.000000Z";
        w.refused(&w.edited(seq, |event| at_time_of(event, &format!("\"time\":\"{time}"))), seq)
    }),
    ("a log's digest", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "COMPLETED", 0);
        let events = w.edited_detail(seq, |detail| detail["stdout"]["sha256"] = json!(Hash::of(b"other")));
        let log = format!("logs/{}/1.stdout", w.jobs.scratch);
        Verdict { head: w.forged(&events).head, ..w.faults(&[("log_changed", &w.jobs.scratch, &log)]) }
    }),
    ("a log's length", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        let events = w.edited_detail(seq, |detail| detail["stdout"]["bytes"] = u64::MAX.into());
        let log = format!("logs/{}/1.stdout", w.jobs.failed);
        Verdict { head: w.forged(&events).head, ..w.faults(&[("log_changed", &w.jobs.failed, &log)]) }
    }),
    ("seal_hash", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "SEALED", 0);
        let events = w.edited_detail(seq, |detail| detail["seal_hash"] = json!(Hash::of(b"other")));
        let seal = format!("seals/{}.json", w.jobs.scratch);
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_changed", &w.jobs.scratch, &seal)]) }
    }),
    ("artifacts_root", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "SEALED", 0);
        let events = w.edited_detail(seq, |detail| detail["artifacts_root"] = json!(Hash::of(b"other")));
        let [seal, list] = ["json", "sha256"].map(|extension| format!("seals/{}.{extension}", w.jobs.scratch));
        let job = &*w.jobs.scratch;
        Verdict {
            head: w.forged(&events).head,
            ..w.faults(&[("seal_changed", job, &seal), ("list_changed", job, &list)])
        }
    }),
    ("a command", |w| {
        let seq = w.seq_of(&w.jobs.sealed, "RECEIVED", 0);
        w.refused(&w.edited(seq, |event| event.replace("echo done", "echo DONE")), seq)
    }),
    ("a command, and manifest_hash fits", |w| {
        let seq = w.seq_of(&w.jobs.sealed, "RECEIVED", 0);
        let events = w.edited(seq, |event| {
            let event = event.replace("echo done", "echo DONE");
            let begin = event.find("{\"manifest\":").unwrap() + "{\"manifest\":".len();
            let end = event.find(",\"manifest_hash\":").unwrap();
            let hash = Hash::of(&event.as_bytes()[begin..end]);
            format!("{},\"manifest_hash\":\"{hash}\"}}}}", &event[..end])
        });
        Verdict { head: w.forged(&events).head, ..w.faults(&[("execution_hash", &w.jobs.sealed, "-")]) }
    }),
    ("execution_hash", |w| {
        let seq = w.seq_of(&w.jobs.crashed, "SCHEDULED", 0);
        let events = w.edited_detail(seq, |detail| detail["execution_hash"] = json!(Hash::of(b"other")));
        let seal = format!("seals/{}.json", w.jobs.crashed);
        let faults = [("execution_hash", &*w.jobs.crashed, "-"), ("seal_changed", &w.jobs.crashed, &seal)];
        Verdict { head: w.forged(&events).head, ..w.faults(&faults) }
    }),
    ("a tree hash", |w| {
        let seq = w.seq_of(&w.jobs.crashed, "SCHEDULED", 0);
        let events = w.edited_detail(seq, |detail| detail["mounts"][0]["tree"] = json!(Hash::of(b"other")));
        let inputs = format!("inputs/{}.json", w.jobs.crashed);
        let faults = [("execution_hash", &*w.jobs.crashed, "-"), ("inputs_changed", &w.jobs.crashed, &inputs)];
        Verdict { head: w.forged(&events).head, ..w.faults(&faults) }
    }),
    ("an event is there twice", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        let mut events = w.events.clone();
        events.insert(seq as usize, events[seq as usize - 1].clone());
        w.refused(&events, seq + 1)
    }),
    ("RECEIVED is there twice", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RECEIVED", 0);
        let mut events = w.events.clone();
        events.insert(seq as usize, events[seq as usize - 1].clone());
        w.refused(&events, seq + 1)
    }),
    ("SEALED of a job that was cancelled", |w| {
        let seq = w.seq_of(&w.jobs.cancelled, "CANCELLED", 0);
        let event = sealed_event(w, &w.jobs.cancelled, &w.events[seq as usize - 1]);
        let mut events = w.events.clone();
        events.insert(seq as usize, event);
        w.refused(&events, seq + 1)
    }),
    ("COMPLETED in place of FAILED", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        w.forged(&w.edited(seq, |event| event.replace("FAILED", "COMPLETED")))
    }),
    ("COMPLETED in place of FAILED, and SEALED", |w| {
        let seq = w.seq_of(&w.jobs.failed, "FAILED", 0);
        let mut events = w.edited(seq, |event| event.replace("FAILED", "COMPLETED"));
        events.insert(seq as usize, sealed_event(w, &w.jobs.failed, &w.events[seq as usize - 1]));
        let [seal, list] = ["json", "sha256"].map(|extension| format!("seals/{}.{extension}", w.jobs.failed));
        let job = &*w.jobs.failed;
        Verdict {
            head: w.forged(&events).head,
            ..w.faults(&[("seal_missing", job, &seal), ("list_missing", job, &list)])
        }
    }),
    ("another job's id", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        w.refused(&w.edited(seq, |event| event.replacen(&w.jobs.scratch, &w.jobs.sealed, 1)), seq)
    }),
    ("nobody's id", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        w.refused(&w.edited(seq, |event| event.replacen(&w.jobs.scratch, "nobody", 1)), seq)
    }),
    ("an id that leads out", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RECEIVED", 0);
        let events = w.edited(seq, |event| {
            let event = event.replace(&w.jobs.scratch, "../../etc");
            let begin = event.find("{\"manifest\":").unwrap() + "{\"manifest\":".len();
            let end = event.find(",\"manifest_hash\":").unwrap();
            let hash = Hash::of(&event.as_bytes()[begin..end]);
            format!("{},\"manifest_hash\":\"{hash}\"}}}}", &event[..end])
        });
        w.refused(&events, seq)
    }),
    ("another attempt", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "COMPLETED", 0);
        w.refused(&w.edited(seq, |event| event.replacen("\"attempt\":1", "\"attempt\":2", 1)), seq)
    }),
    ("a recovery of the attempt that crashed", |w| {
        let seq = w.seq_of(&w.jobs.crashed, "RECOVERY", 0);
        w.refused(&w.edited(seq, |event| event.replacen("\"attempt\":2", "\"attempt\":1", 1)), seq)
    }),
    ("a gap in seq", |w| {
        let mut events = w.events.clone();
        for at in 9..events.len() {
            let prev = Hash::of(events[at - 1].as_bytes());
            let rest = events[at][events[at].find(",\"time\":").unwrap()..].to_owned();
            events[at] = format!("{{\"seq\":{},\"prev\":\"{prev}\"{rest}", at + 2);
        }
        w.refused_unchained(&events, 10)
    }),
    ("GENESIS twice", |w| {
        let mut events = w.events.clone();
        events.insert(1, events[0].clone());
        w.refused(&events, 2)
    }),
    ("no GENESIS", |w| w.refused(&w.events[1..], 1)),
    ("an unknown state", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        w.refused(&w.edited(seq, |event| event.replace("\"RUNNING\"", "\"RAN\"")), seq)
    }),
    ("a node event of a job", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        w.refused(&w.edited(seq, |event| event.replace("\"RUNNING\"", "\"NODE_DOWN\"")), seq)
    }),
    ("jobs pruned, and what they left is gone", |w| {
        let jobs = [&*w.jobs.scratch, &*w.jobs.again, &*w.jobs.sealed];
        let events = with_pruned(w, w.events.len(), &jobs);
        for job in jobs {
            fs::remove_dir_all(w.own(&format!("logs/{job}"))).unwrap();
            let _ = fs::remove_dir_all(w.own(&format!("scratch/{job}")));
        }
        w.forged(&events)
    }),
    ("a job pruned, and its seal is gone", |w| {
        let events = with_pruned(w, w.events.len(), &[&w.jobs.scratch]);
        let seal = format!("seals/{}.json", w.jobs.scratch);
        fs::remove_file(w.own(&seal)).unwrap();
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_missing", &w.jobs.scratch, &seal)]) }
    }),
    ("a job pruned, and what is left of its log is changed", |w| {
        let events = with_pruned(w, w.events.len(), &[&w.jobs.scratch]);
        let log = format!("logs/{}/1.stdout", w.jobs.scratch);
        flip(&w.own(&log), 0);
        Verdict { head: w.forged(&events).head, ..w.faults(&[("log_changed", &w.jobs.scratch, &log)]) }
    }),
    ("PRUNED of a job that has failed", |w| {
        w.refused(&with_pruned(w, w.events.len(), &[&w.jobs.failed]), w.events.len() as u64 + 1)
    }),
    ("PRUNED of nobody", |w| w.refused(&with_pruned(w, w.events.len(), &["nobody"]), w.events.len() as u64 + 1)),
    ("PRUNED of a job before it is sealed", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "SEALED", 0);
        w.refused(&with_pruned(w, seq as usize - 1, &[&w.jobs.scratch]), seq)
    }),
    ("PRUNED of a job twice, in one event", |w| {
        let job = &*w.jobs.scratch;
        w.refused(&with_pruned(w, w.events.len(), &[job, job]), w.events.len() as u64 + 1)
    }),
    ("PRUNED of a job twice, in two events", |w| {
        let mut events = with_pruned(w, w.events.len(), &[&w.jobs.scratch]);
        events.push(events[w.events.len()].clone());
        w.refused(&events, w.events.len() as u64 + 2)
    }),
    ("PRUNED of a job whose child goes on", |w| {
        let seq = w.seq_of(&w.jobs.child, "SEALED", 0);
        w.refused(&with_pruned(w, seq as usize - 1, &[&w.jobs.parent]), seq)
    }),
    ("PRUNED of a job that is being repeated", |w| {
        let seq = w.seq_of(&w.jobs.again, "SEALED", 0);
        w.refused(&with_pruned(w, seq as usize - 1, &[&w.jobs.child]), seq)
    }),
    ("no event at all", |w| {
        let seq = w.seq_of(&w.jobs.scratch, "RUNNING", 0);
        let mut events = w.events.clone();
        events[seq as usize - 1] = "not an event".into();
        w.refused_unchained(&events, seq)
    }),
    ("a job that is at work in a directory", |w| {
        let seq = w.seq_of(&w.jobs.second, "D1_STABLE", 0);
        fs::write(w.shared("theirs"), "").unwrap();
        let path = |name: &str| ("in_use".to_owned(), w.jobs.first.clone(), format!("/job/workdir/{name}"));
        let verdict = w.forged(&w.events[..seq as usize]);
        Verdict { notes: ["a", "b", "c", "note", "theirs"].map(path).into(), ..verdict }
    }),
    ("a seal with paths that lead out", |w| {
        let job = &*w.jobs.scratch;
        let paths = ["/job/workdir/../../../../../../etc/hostname", "/job/workdir//etc/hostname", "/etc/hostname"];
        let text = fs::read("/etc/hostname").unwrap();
        let events = w.reseal(job, |seal| {
            seal["bytes"] = (seal["bytes"].as_u64().unwrap() + 3 * text.len() as u64).into();
            let artifact = |path: &&str| {
                json!({ "path": path, "size": text.len(), "mode": "0644", "sha256": Hash::of(&text), "change": "new" })
            };
            seal["artifacts"].as_array_mut().unwrap().extend(paths.iter().map(artifact));
        });
        let head = w.forged(&events).head;
        Verdict { head, ..w.faults(&paths.map(|path| ("artifact_missing", job, path))) }
    }),
    ("a seal with sizes beyond all bounds", |w| {
        let job = &*w.jobs.scratch;
        let events = w.reseal(job, |seal| {
            let artifact = json!({ "path": "/job/workdir/t", "size": u64::MAX, "mode": "0644", "sha256": Hash::ZERO, "change": "new" });
            seal["artifacts"].as_array_mut().unwrap().push(artifact);
        });
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_changed", job, &format!("seals/{job}.json"))]) }
    }),
    ("a seal of brackets", |w| {
        let job = &*w.jobs.scratch;
        let text = "[".repeat(300_000);
        let path = format!("seals/{job}.json");
        fs::write(w.own(&path), &text).unwrap();
        let seq = w.seq_of(job, "SEALED", 0);
        let events = w.edited_detail(seq, |detail| detail["seal_hash"] = json!(Hash::of(text.as_bytes())));
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_changed", job, &path)]) }
    }),
    ("another job's seal, and SEALED says so", |w| {
        let (job, other) = (&*w.jobs.scratch, &*w.jobs.crashed);
        for extension in ["json", "sha256"] {
            let of = |job: &str| w.own(&format!("seals/{job}.{extension}"));
            fs::copy(of(other), of(job)).unwrap();
        }
        let detail = json(&w.events[w.seq_of(other, "SEALED", 0) as usize - 1])["detail"].clone();
        let events = w.edited_detail(w.seq_of(job, "SEALED", 0), |own| *own = detail);
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_changed", job, &format!("seals/{job}.json"))]) }
    }),
    ("an artifact's digest in the seal only", |w| {
        let job = &*w.jobs.scratch;
        let path = format!("seals/{job}.json");
        fs::write(w.data().join(format!("scratch/{job}/s.txt")), "SCRATCH\n").unwrap();
        edit_json(&w.own(&path), |seal| {
            artifact(seal, "/job/workdir/s.txt")["sha256"] = json!(Hash::of(b"SCRATCH\n"));
        });
        let hash = Hash::of(&fs::read(w.own(&path)).unwrap());
        let seq = w.seq_of(job, "SEALED", 0);
        let events = w.edited_detail(seq, |detail| detail["seal_hash"] = json!(hash));
        Verdict { head: w.forged(&events).head, ..w.faults(&[("seal_changed", job, &path)]) }
    }),
];

/// A SEALED of `job` behind its event `last`.
fn sealed_event(w: &World, job: &str, last: &str) -> String {
    let event = &w.events[w.seq_of(&w.jobs.scratch, "SEALED", 0) as usize - 1];
    at_time_of(&event.replacen(&w.jobs.scratch, job, 1), last)
}

/// Files in the mounts.
const FILES: &[Case] = &[
    ("same size, same time", |w| {
        let path = w.work("out/result.bin");
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        flip(&path, 2);
        fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        w.faults(&[("artifact_changed", &w.jobs.sealed, "/job/workdir/out/result.bin")])
    }),
    ("a byte more", |w| {
        edit(&w.work("edit.txt"), |bytes| bytes.push(b'x'));
        w.faults(&[("artifact_changed", &w.jobs.sealed, "/job/workdir/edit.txt")])
    }),
    ("removed", |w| {
        fs::remove_file(w.work("ä ö")).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.sealed, "/job/workdir/ä ö")])
    }),
    ("odd names", |w| {
        for name in [&b"n\nl"[..], b"back\\slash", b"\xff", b"100%"] {
            edit(&w.work("").join(OsStr::from_bytes(name)), |bytes| bytes.push(b'x'));
        }
        let path = |name: &'static str| ("artifact_changed", &*w.jobs.sealed, name);
        w.faults(&[
            path("/job/workdir/n%0Al"),
            path("/job/workdir/back\\slash"),
            path("/job/workdir/%FF"),
            path("/job/workdir/100%25"),
        ])
    }),
    ("another mode", |w| {
        fs::set_permissions(w.work("edit.txt"), fs::Permissions::from_mode(0o666)).unwrap();
        w.faults(&[("artifact_changed", &w.jobs.sealed, "/job/workdir/edit.txt")])
    }),
    ("a symlink to the same bytes", |w| {
        let aside = w.site.dir().join("aside");
        fs::copy(w.work("edit.txt"), &aside).unwrap();
        fs::remove_file(w.work("edit.txt")).unwrap();
        symlink(&aside, w.work("edit.txt")).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.sealed, "/job/workdir/edit.txt")])
    }),
    ("a directory", |w| {
        fs::remove_file(w.work("edit.txt")).unwrap();
        fs::create_dir(w.work("edit.txt")).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.sealed, "/job/workdir/edit.txt")])
    }),
    ("an extra file", |w| {
        fs::write(w.work("extra"), "").unwrap();
        w.faults(&[("artifact_extra", &w.jobs.sealed, "/job/workdir/extra")])
    }),
    ("an extra file in a subdirectory", |w| {
        fs::write(w.work("sub/extra"), "").unwrap();
        w.faults(&[("artifact_extra", &w.jobs.sealed, "/job/workdir/sub/extra")])
    }),
    ("an input is gone or changed, and what may only be read is none of its business", |w| {
        fs::remove_file(w.work("keep.txt")).unwrap();
        fs::write(w.work("sub/in.txt"), "other").unwrap();
        w.sound()
    }),
    ("what the job removed is there again", |w| {
        fs::write(w.work("gone.txt"), "gone").unwrap();
        w.sound()
    }),
    ("a symlink instead of the directory above", |w| {
        let aside = w.site.dir().join("aside-out");
        copy(&w.work("out"), &aside);
        fs::remove_dir_all(w.work("out")).unwrap();
        symlink(&aside, w.work("out")).unwrap();
        let missing = |path| ("artifact_missing", &*w.jobs.sealed, path);
        w.faults(&[missing("/job/workdir/out/result.bin"), missing("/job/workdir/out/deep/x")])
    }),
    ("the mount is gone", |w| {
        fs::remove_dir_all(w.site.root().join("again")).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.crashed, "/job/workdir/again")])
    }),
    ("in a scratch directory", |w| {
        let job = &*w.jobs.scratch;
        flip(&w.own(&format!("scratch/{job}/s.txt")), 0);
        fs::write(w.own(&format!("scratch/{job}/extra")), "").unwrap();
        let (changed, extra) = ("/job/workdir/s.txt", "/job/workdir/extra");
        w.faults(&[("artifact_changed", job, changed), ("artifact_extra", job, extra)])
    }),
    ("what two jobs wrote, one after the other", |w| {
        // Both made `a`: it is the later one's. Only the earlier one made `same`; neither knows `extra`.
        for name in ["a", "same", "extra"] {
            fs::write(w.shared(name), "by hand").unwrap();
        }
        let (first, second) = (&*w.jobs.first, &*w.jobs.second);
        w.faults(&[
            ("artifact_changed", second, "/job/workdir/a"),
            ("artifact_changed", first, "/job/workdir/same"),
            ("artifact_extra", first, "/job/workdir/extra"),
            ("artifact_extra", second, "/job/workdir/extra"),
        ])
    }),
];

/// Files of the data directory.
const EVIDENCE: &[Case] = &[
    ("an artifact's digest in the seal", |w| {
        let path = format!("seals/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |seal| seal["artifacts"][0]["sha256"] = json!(Hash::of(b"other")));
        w.faults(&[("seal_changed", &w.jobs.sealed, &path)])
    }),
    ("an artifact's path in the seal, and the list fits", |w| {
        let [seal, list] = ["json", "sha256"].map(|extension| format!("seals/{}.{extension}", w.jobs.scratch));
        let job = w.jobs.scratch.clone();
        w.reseal(&job, |seal| artifact(seal, "/job/workdir/s.txt")["path"] = "/job/workdir/t.txt".into());
        w.faults(&[("seal_changed", &job, &seal), ("list_changed", &job, &list)])
    }),
    ("another job's seal", |w| {
        let path = format!("seals/{}.json", w.jobs.scratch);
        fs::copy(w.own(&format!("seals/{}.json", w.jobs.crashed)), w.own(&path)).unwrap();
        w.faults(&[("seal_changed", &w.jobs.scratch, &path)])
    }),
    ("a seal is cut", |w| {
        let path = format!("seals/{}.json", w.jobs.sealed);
        edit(&w.own(&path), |bytes| bytes.truncate(100));
        w.faults(&[("seal_changed", &w.jobs.sealed, &path)])
    }),
    ("a seal is empty", |w| {
        let path = format!("seals/{}.json", w.jobs.scratch);
        edit(&w.own(&path), Vec::clear);
        w.faults(&[("seal_changed", &w.jobs.scratch, &path)])
    }),
    ("a seal is gone", |w| {
        let path = format!("seals/{}.json", w.jobs.scratch);
        fs::remove_file(w.own(&path)).unwrap();
        w.faults(&[("seal_missing", &w.jobs.scratch, &path)])
    }),
    ("the seal of the later job of two", |w| {
        // What it did is not known any more, so the earlier one's evidence is on its own.
        let path = format!("seals/{}.json", w.jobs.second);
        flip(&w.own(&path), 10);
        let first = &*w.jobs.first;
        let verdict = w.faults(&[
            ("seal_changed", &w.jobs.second, &path),
            ("artifact_changed", first, "/job/workdir/a"),
            ("artifact_missing", first, "/job/workdir/b"),
        ]);
        // The third one found `c` there.
        let found = |path: &str| ["/job/workdir/note", "/job/workdir/c"].contains(&path);
        let notes = w.sound().notes.into_iter().filter(|(_, job, path)| job == first && found(path)).collect();
        Verdict { notes, ..verdict }
    }),
    ("the inputs of a job that found what another one did not leave", |w| {
        let path = format!("inputs/{}.json", w.jobs.reader);
        edit_json(&w.own(&path), |inputs| inputs["mounts"][1]["tree"]["entries"] = json!([]));
        let verdict = w.faults(&[
            ("inputs_changed", &w.jobs.reader, &path),
            ("artifact_extra", &w.jobs.first, "/job/workdir/note"),
            ("artifact_extra", &w.jobs.second, "/job/workdir/note"),
        ]);
        let notes = w.sound().notes.into_iter().filter(|(.., path)| path != "/job/workdir/note").collect();
        Verdict { notes, ..verdict }
    }),
    ("the list", |w| {
        let path = format!("seals/{}.sha256", w.jobs.sealed);
        flip(&w.own(&path), 10);
        w.faults(&[("list_changed", &w.jobs.sealed, &path)])
    }),
    ("the list is gone", |w| {
        let path = format!("seals/{}.sha256", w.jobs.sealed);
        fs::remove_file(w.own(&path)).unwrap();
        w.faults(&[("list_missing", &w.jobs.sealed, &path)])
    }),
    ("an input's digest", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |inputs| {
            inputs["mounts"][0]["tree"]["entries"][0]["sha256"] = json!(Hash::of(b"other"));
        });
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("an input's path", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |inputs| inputs["mounts"][0]["tree"]["entries"][0]["path"] = "a.txt".into());
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("an input's target", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |inputs| {
            let entries = inputs["mounts"][0]["tree"]["entries"].as_array_mut().unwrap();
            entries.iter_mut().find(|entry| entry["kind"] == "symlink").unwrap()["target"] = "gone.txt".into();
        });
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("the mode of a mount", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |inputs| inputs["mounts"][1]["read_only"] = false.into());
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("an input's size beyond all bounds", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit_json(&w.own(&path), |inputs| {
            for entry in inputs["mounts"][0]["tree"]["entries"].as_array_mut().unwrap() {
                entry["size"] = u64::MAX.into();
            }
        });
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("another job's inputs", |w| {
        let path = format!("inputs/{}.json", w.jobs.failed);
        fs::copy(w.own(&path), w.own(&format!("inputs/{}.json", w.jobs.scratch))).unwrap();
        w.faults(&[("inputs_changed", &w.jobs.scratch, &format!("inputs/{}.json", w.jobs.scratch))])
    }),
    ("the inputs are cut", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        edit(&w.own(&path), |bytes| bytes.truncate(100));
        w.faults(&[("inputs_changed", &w.jobs.sealed, &path)])
    }),
    ("the inputs are gone", |w| {
        let path = format!("inputs/{}.json", w.jobs.sealed);
        fs::remove_file(w.own(&path)).unwrap();
        // Without them it is not known which files are extra.
        fs::write(w.work("extra"), "").unwrap();
        w.faults(&[("inputs_missing", &w.jobs.sealed, &path)])
    }),
    ("a log, same length", |w| {
        let path = format!("logs/{}/1.stderr", w.jobs.sealed);
        flip(&w.own(&path), 0);
        w.faults(&[("log_changed", &w.jobs.sealed, &path)])
    }),
    ("a log is cut", |w| {
        let path = format!("logs/{}/1.stdout", w.jobs.failed);
        edit(&w.own(&path), |bytes| bytes.truncate(3));
        w.faults(&[("log_changed", &w.jobs.failed, &path)])
    }),
    ("a log is longer", |w| {
        let path = format!("logs/{}/2.stdout", w.jobs.crashed);
        edit(&w.own(&path), |bytes| bytes.push(b'x'));
        w.faults(&[("log_changed", &w.jobs.crashed, &path)])
    }),
    ("the log of an attempt that crashed", |w| {
        let path = format!("logs/{}/1.stdout", w.jobs.crashed);
        flip(&w.own(&path), 0);
        w.faults(&[("log_changed", &w.jobs.crashed, &path)])
    }),
    ("a log is gone", |w| {
        let path = format!("logs/{}/1.stdout", w.jobs.cancelled);
        fs::remove_file(w.own(&path)).unwrap();
        w.faults(&[("log_missing", &w.jobs.cancelled, &path)])
    }),
    ("a job's logs are gone", |w| {
        let dir = format!("logs/{}", w.jobs.failed);
        fs::remove_dir_all(w.own(&dir)).unwrap();
        let [out, err] = ["stdout", "stderr"].map(|stream| format!("{dir}/1.{stream}"));
        w.faults(&[("log_missing", &w.jobs.failed, &out), ("log_missing", &w.jobs.failed, &err)])
    }),
    ("a symlink instead of a log", |w| {
        let path = format!("logs/{}/1.stdout", w.jobs.failed);
        let aside = w.site.dir().join("aside-log");
        fs::rename(w.own(&path), &aside).unwrap();
        symlink(&aside, w.own(&path)).unwrap();
        w.faults(&[("log_missing", &w.jobs.failed, &path)])
    }),
];
