//! Properties of the tree hash and of the seal, on a real file system.

#![allow(clippy::unwrap_used)]

use super::*;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// A name, and what to do to a directory.
type Case<'a> = (&'a str, &'a dyn Fn(&Path));

pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hackbrain-seal-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(super) fn at(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.join(relative)
    }

    pub(super) fn dir(&self, relative: &str) -> PathBuf {
        fs::create_dir_all(self.at(relative)).unwrap();
        self.at(relative)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(super) fn tree(path: &Path) -> Tree {
    let tree = hash_tree(&Dir::open(path).unwrap(), &go_on).unwrap();
    assert!(tree.is_consistent());
    tree
}

pub(super) fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(super) fn mkfifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// The tree of the test vector in `hash_tree`'s documentation.
pub(super) fn vector_tree(path: &Path) {
    fs::create_dir_all(path.join("d")).unwrap();
    fs::write(path.join("a"), "abc").unwrap();
    fs::write(path.join("run"), "").unwrap();
    chmod(&path.join("run"), 0o755);
    symlink("a", path.join("l")).unwrap();
}

#[test]
fn the_documented_vector() {
    let scratch = Scratch::new("vector");
    vector_tree(&scratch.dir("t"));
    let tree = tree(&scratch.at("t"));
    let documented = include_str!("tree.rs").split("/// # ").find_map(|rest| rest.get(..64)?.parse::<Hash>().ok());
    assert_eq!(Some(tree.root), documented);
    assert_eq!(tree.root.to_string(), "918dff66aa842daaee8e0a0fd5baddf913b68d03d505070f97aac5d99a0f1f70");
    assert_eq!((tree.files, tree.bytes, tree.entries.len()), (2, 3, 4));
    assert_eq!(super::tests::tree(&scratch.dir("empty")), Tree::empty());
}

#[test]
fn place_times_and_order_of_creation_do_not_count() {
    let scratch = Scratch::new("same");
    vector_tree(&scratch.dir("one"));
    let first = tree(&scratch.at("one"));
    let other = scratch.dir("some/where/else");
    symlink("a", other.join("l")).unwrap();
    fs::write(other.join("run"), "").unwrap();
    fs::create_dir(other.join("d")).unwrap();
    fs::write(other.join("a"), "abc").unwrap();
    chmod(&other.join("run"), 0o711);
    chmod(&other.join("a"), 0o600);
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    File::options().write(true).open(other.join("a")).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(tree(&other).root, first.root);
}

#[test]
fn every_change_counts() {
    let changes: [Case<'_>; 15] = [
        ("content", &|t| fs::write(t.join("a"), "abd").unwrap()),
        ("length", &|t| fs::write(t.join("a"), "abcd").unwrap()),
        ("name", &|t| fs::rename(t.join("a"), t.join("b")).unwrap()),
        ("a directory's name", &|t| fs::rename(t.join("d"), t.join("e")).unwrap()),
        ("place", &|t| fs::rename(t.join("a"), t.join("d/a")).unwrap()),
        ("executable set", &|t| chmod(&t.join("a"), 0o744)),
        ("executable cleared", &|t| chmod(&t.join("run"), 0o644)),
        ("symlink text", &|t| {
            fs::remove_file(t.join("l")).unwrap();
            symlink("b", t.join("l")).unwrap();
        }),
        ("symlink becomes a file of its text", &|t| {
            fs::remove_file(t.join("l")).unwrap();
            fs::write(t.join("l"), "a").unwrap();
        }),
        ("directory becomes an empty file", &|t| {
            fs::remove_dir(t.join("d")).unwrap();
            fs::write(t.join("d"), "").unwrap();
        }),
        ("file gone", &|t| fs::remove_file(t.join("a")).unwrap()),
        ("directory gone", &|t| fs::remove_dir(t.join("d")).unwrap()),
        ("new empty file", &|t| fs::write(t.join("n"), "").unwrap()),
        ("new fifo", &|t| mkfifo(&t.join("n"))),
        ("new empty directory below", &|t| fs::create_dir(t.join("d/n")).unwrap()),
    ];
    let scratch = Scratch::new("changes");
    let mut seen = BTreeMap::new();
    vector_tree(&scratch.dir("base"));
    seen.insert(tree(&scratch.at("base")).root, "base");
    for (index, (what, change)) in changes.into_iter().enumerate() {
        let path = scratch.dir(&index.to_string());
        vector_tree(&path);
        change(&path);
        if let Some(other) = seen.insert(tree(&path).root, what) {
            panic!("{what} and {other} have one hash");
        }
    }
}

#[test]
fn a_file_cannot_stand_for_a_directory() {
    let scratch = Scratch::new("confuse");
    fs::write(scratch.dir("dir/sub").join("x"), "1").unwrap();
    let listing = format!("f {} x\0", Hash::of(b"1"));
    fs::write(scratch.dir("file").join("sub"), &listing).unwrap();
    let (real, fake) = (tree(&scratch.at("dir")), tree(&scratch.at("file")));
    assert_eq!(real.get(b"sub").unwrap().sha256, fake.get(b"sub").unwrap().sha256, "one digest, by construction");
    assert_ne!(real.root, fake.root, "but not one kind");
}

#[test]
fn nothing_but_files_is_opened() {
    let scratch = Scratch::new("special");
    let path = scratch.dir("t");
    mkfifo(&path.join("fifo"));
    let _socket = std::os::unix::net::UnixListener::bind(path.join("sock")).unwrap();
    symlink("/etc/passwd", path.join("link")).unwrap();
    symlink("..", path.join("up")).unwrap();
    symlink(OsStr::from_bytes(b"\xff%"), path.join("odd")).unwrap();
    fs::write(path.join(OsStr::from_bytes(b"\xff\n")), "x").unwrap();
    let tree = tree(&path);
    let kinds: Vec<_> = tree.entries.iter().map(|entry| (text::encode(&entry.path), entry.kind)).collect();
    let expected = [
        ("fifo", Kind::Fifo),
        ("link", Kind::Symlink),
        ("odd", Kind::Symlink),
        ("sock", Kind::Socket),
        ("up", Kind::Symlink),
        ("%FF\n", Kind::File),
    ];
    assert_eq!(kinds, expected.map(|(path, kind)| (path.to_owned(), kind)));
    assert_eq!(tree.get(b"link").unwrap().target.as_deref(), Some(&b"/etc/passwd"[..]));
    let again: Tree = serde_json::from_slice(&serde_json::to_vec(&tree).unwrap()).unwrap();
    assert_eq!(again, tree, "JSON loses nothing");
}

/// Made and removed by descriptors, since no path can name its bottom.
#[test]
fn depth_4000_needs_no_stack_and_beyond_the_bound_is_an_error() {
    let scratch = Scratch::new("deep");
    let script = |levels: usize| {
        format!("import os\nfor i in range({levels}):\n os.mkdir('d'); os.chdir('d')\nopen('bottom','w').write('x')")
    };
    let make = |name: &str, levels| {
        let status = Command::new("python3").arg("-c").arg(script(levels)).current_dir(scratch.dir(name)).status();
        status.is_ok_and(|status| status.success())
    };
    if !make("t", 4000) {
        return;
    }
    let path = scratch.at("t");
    let tree = std::thread::Builder::new().stack_size(256 << 10).spawn(move || tree(&path)).unwrap().join().unwrap();
    assert_eq!((tree.files, tree.entries.len()), (1, 4001));
    assert!(make("u", tree::MAX_DEPTH + 1));
    let error = hash_tree(&Dir::open(&scratch.at("u")).unwrap(), &go_on).unwrap_err();
    assert!(matches!(error, SealError::TooLarge { .. }) && error.to_string().len() < 400, "{error}");
    assert!(Command::new("rm").arg("-rf").arg(&scratch.0).status().unwrap().success());
}

#[test]
fn what_changes_while_it_is_hashed_is_named() {
    let changes: [Case<'_>; 5] = [
        ("big", &|t| File::options().append(true).open(t.join("big")).unwrap().write_all(b"x").unwrap()),
        ("big", &|t| {
            // The same length, and the old time put back: only the change time tells.
            let time = fs::metadata(t.join("big")).unwrap().modified().unwrap();
            fs::write(t.join("big"), vec![1; 1 << 20]).unwrap();
            File::options().write(true).open(t.join("big")).unwrap().set_modified(time).unwrap();
        }),
        ("big", &|t| File::options().write(true).open(t.join("big")).unwrap().set_len(3).unwrap()),
        ("new", &|t| fs::write(t.join("new"), "").unwrap()),
        ("zlast", &|t| fs::remove_file(t.join("zlast")).unwrap()),
    ];
    let scratch = Scratch::new("race");
    for (index, (named, change)) in changes.into_iter().enumerate() {
        let path = scratch.dir(&index.to_string());
        fs::write(path.join("big"), vec![0; 1 << 20]).unwrap();
        fs::write(path.join("zlast"), "").unwrap();
        let pending = RefCell::new(Some(change));
        let result = hash_tree(&Dir::open(&path).unwrap(), &|progress| {
            if let Some(change) = (progress.bytes > 0).then(|| pending.take()).flatten() {
                change(&path);
            }
            go_on(progress)
        });
        match result {
            Err(SealError::Changed { path }) => assert_eq!(text::encode(&path), named, "case {index}"),
            other => panic!("case {index}: {other:?}"),
        }
    }
}

#[test]
fn progress_adds_up() {
    let scratch = Scratch::new("progress");
    fs::write(scratch.at("big"), vec![7; 700_000]).unwrap();
    fs::write(scratch.at("small"), "x").unwrap();
    let told = RefCell::new(Vec::new());
    let listen = |progress| {
        told.borrow_mut().push(progress);
        go_on(progress)
    };
    hash_tree(&Dir::open(&scratch.0).unwrap(), &listen).unwrap();
    let told = told.into_inner();
    assert!(told.is_sorted_by_key(|progress| (progress.bytes, progress.files)) && told.len() > 3, "{told:?}");
    assert_eq!(told.last(), Some(&Progress { files: 2, bytes: 700_001 }));
}

#[test]
fn a_damaged_listing_is_found() {
    let scratch = Scratch::new("damage");
    vector_tree(&scratch.dir("t/sub"));
    let sound = tree(&scratch.at("t"));
    let damages: [&dyn Fn(&mut Tree); 8] = [
        &|tree| tree.root = Hash::ZERO,
        &|tree| tree.files += 1,
        &|tree| tree.entries[1].size += 1,
        &|tree| tree.entries[1].sha256 = Hash::ZERO,
        &|tree| tree.entries[1].mode |= 0o100,
        &|tree| tree.entries[1].kind = Kind::Fifo,
        &|tree| drop(tree.entries.pop()),
        &|tree| tree.entries.swap(0, 1),
    ];
    for (index, damage) in damages.into_iter().enumerate() {
        let mut tree = sound.clone();
        damage(&mut tree);
        assert!(!tree.is_consistent(), "damage {index}");
    }
}

fn inputs(job_id: &str, mounts: &[(&str, Tree)]) -> Inputs {
    let mounts = mounts.iter().map(|(container, tree)| InputMount {
        container: (*container).to_owned(),
        read_only: false,
        tree: tree.clone(),
        artifacts_of: None,
    });
    Inputs { format: FORMAT, job_id: job_id.to_owned(), mounts: mounts.collect() }
}

fn seal(data: &Path, writable: &[(&str, &Dir)]) -> Result<SealSummary, SealError> {
    let digest = LogDigest { bytes: 0, sha256: Hash::of(b""), complete: true };
    let logs = [AttemptLogs { attempt: 1, stdout: Some(digest), stderr: None }];
    let request = SealRequest {
        job_id: "j",
        attempt: 1,
        node_up: Some(7),
        execution_hash: Hash::ZERO,
        image_id: "sha256:x",
        writable,
        logs: &logs,
        usage: &json!({ "cpu_ns": u64::MAX }),
        original: None,
    };
    write_seal(data, &request, &|_, progress| go_on(progress))
}

#[test]
fn a_seal_lists_what_the_run_changed_and_sha256sum_agrees() {
    let scratch = Scratch::new("seal");
    let (data, work, second) = (scratch.dir("data"), scratch.dir("art/job/workdir"), scratch.dir("art/out"));
    for (name, content) in [("kept", "k"), ("edited", "1"), ("mode", "m"), ("gone", "g"), ("becomes-link", "b")] {
        fs::write(work.join(name), content).unwrap();
    }
    write_inputs(&data, &inputs("j", &[("/job/workdir", tree(&work)), ("/out", Tree::empty())])).unwrap();

    fs::write(work.join("edited"), "2").unwrap();
    chmod(&work.join("mode"), 0o755);
    fs::remove_file(work.join("gone")).unwrap();
    fs::remove_file(work.join("becomes-link")).unwrap();
    symlink("/etc/passwd", work.join("becomes-link")).unwrap();
    mkfifo(&work.join("fifo"));
    fs::create_dir(work.join("sub")).unwrap();
    fs::write(work.join("sub/x"), "new").unwrap();
    fs::write(work.join("sub.txt"), "before sub/x in bytes").unwrap();
    fs::write(work.join(OsStr::from_bytes(b"odd \\\n\r\xff% name")), "odd").unwrap();
    fs::write(work.join("suid"), "s").unwrap();
    chmod(&work.join("suid"), 0o6755);
    fs::write(second.join("a"), "aa").unwrap();
    fs::hard_link(second.join("a"), second.join("b")).unwrap();

    let (one, two) = (Dir::open(&work).unwrap(), Dir::open(&second).unwrap());
    let summary = seal(&data, &[("/job/workdir", &one), ("/out", &two)]).unwrap();
    let (read, hash) = read_seal(&data, "j").unwrap();
    assert_eq!(hash, summary.seal_hash);
    let artifacts: Vec<_> = read.artifacts.iter().map(|file| (text::encode(&file.path.0), file.change)).collect();
    let expected = [
        ("/job/workdir/edited", Change::Changed),
        ("/job/workdir/mode", Change::Changed),
        ("/job/workdir/odd \\\n\r%FF%25 name", Change::New),
        ("/job/workdir/sub.txt", Change::New),
        ("/job/workdir/sub/x", Change::New),
        ("/job/workdir/suid", Change::New),
        ("/out/a", Change::New),
        ("/out/b", Change::New),
    ];
    assert_eq!(artifacts, expected.map(|(path, change)| (path.to_owned(), change)));
    assert_eq!((summary.files, summary.bytes), (8, 1 + 1 + 3 + 21 + 3 + 1 + 2 + 2));
    let removed: Vec<_> = read.removed.iter().map(|path| text::encode(&path.0)).collect();
    assert_eq!(removed, ["/job/workdir/becomes-link", "/job/workdir/gone"]);
    let notes: Vec<_> = read.notes.iter().map(|noted| (text::encode(&noted.path.0), noted.note)).collect();
    let expected = [
        ("/job/workdir/becomes-link", Note::Symlink),
        ("/job/workdir/fifo", Note::Fifo),
        ("/job/workdir/suid", Note::Setuid),
        ("/job/workdir/suid", Note::Setgid),
        ("/out/a", Note::HardLink),
        ("/out/b", Note::HardLink),
    ];
    assert_eq!(notes, expected.map(|(path, note)| (path.to_owned(), note)));
    assert_eq!(read.mounts[0].after, tree(&work).root);
    assert_ne!(read.mounts[0].before, read.mounts[0].after);

    let list = data.join("seals/j.sha256");
    assert_eq!(digest_file(&list).unwrap().1, summary.artifacts_root);
    let check =
        || Command::new("sha256sum").args(["--check", "--strict"]).arg(&list).current_dir(scratch.at("art")).output();
    let output = check().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches(": OK").count(), 8);
    fs::write(work.join("sub/x"), "NEW").unwrap();
    assert!(!check().unwrap().status.success());
}

#[test]
fn sealing_again_gives_the_same_bytes() {
    let scratch = Scratch::new("again");
    let (data, work) = (scratch.dir("data"), scratch.dir("work"));
    write_inputs(&data, &inputs("j", &[("/w", Tree::empty())])).unwrap();
    fs::write(work.join("x"), "1").unwrap();
    let dir = Dir::open(&work).unwrap();
    let first = seal(&data, &[("/w", &dir)]).unwrap();
    // As a crash would leave it.
    fs::write(data.join("seals/j.json.tmp"), "half").unwrap();
    assert_eq!(seal(&data, &[("/w", &dir)]).unwrap(), first);
    assert!(!data.join("seals/j.json.tmp").exists());
    fs::write(work.join("x"), "2").unwrap();
    assert_ne!(seal(&data, &[("/w", &dir)]).unwrap().seal_hash, first.seal_hash);
}

#[test]
fn damaged_or_missing_records_are_refused() {
    let scratch = Scratch::new("records");
    let (data, work) = (scratch.dir("data"), scratch.dir("work"));
    fs::write(work.join("x"), "1").unwrap();
    let dir = Dir::open(&work).unwrap();
    let kind = |result: io::Result<Inputs>| result.unwrap_err().kind();
    assert_eq!(kind(read_inputs(&data, "j")), io::ErrorKind::NotFound);
    assert_eq!(kind(read_inputs(&data, "../j")), io::ErrorKind::InvalidInput);
    assert!(seal(&data, &[("/w", &dir)]).is_err(), "no recorded inputs");
    let recorded = inputs("j", &[("/w", tree(&work))]);
    write_inputs(&data, &recorded).unwrap();
    assert_eq!(read_inputs(&data, "j").unwrap(), recorded);
    assert!(seal(&data, &[("/other", &dir)]).unwrap_err().to_string().contains("/other"));
    let file = data.join("inputs/j.json");
    let text = fs::read_to_string(&file).unwrap();
    for damaged in [text.replace("\"x\"", "\"y\""), text.replace("\"size\":1", "\"size\":2"), text[..50].to_owned()] {
        assert_ne!(damaged, text);
        fs::write(&file, damaged).unwrap();
        assert_eq!(kind(read_inputs(&data, "j")), io::ErrorKind::InvalidData);
    }
    fs::write(&file, text).unwrap();
    seal(&data, &[("/w", &dir)]).unwrap();
    fs::rename(data.join("seals/j.json"), data.join("seals/k.json")).unwrap();
    assert_eq!(read_seal(&data, "k").unwrap_err().kind(), io::ErrorKind::InvalidData, "another job's seal");
}

#[test]
fn execution_and_input_hashes() {
    let manifest = |extra: &str| {
        let body = format!(r#"{{"job_id":"a","image_hash":"i","command":["c"],"mount_spec":"/h:/w"{extra}}}"#);
        crate::manifest::parse(body.as_bytes()).unwrap().manifest
    };
    let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    let mount = MountTree { container: "/w", read_only: false, tree: Hash::of(b""), is_artifacts: false };
    let base = execution_hash("sha256:i", &manifest(""), &env, &[mount]);
    let written = format!(
        r#"{{"command":["c"],"env":{{"A":"1"}},"image_id":"sha256:i","mounts":[{{"container":"/w","mode":"rw","tree":"{}"}}],"network":"none","resources":{{}}}}"#,
        Hash::of(b"")
    );
    assert_eq!(base, Hash::of(written.as_bytes()), "as documented");

    let mut elsewhere = manifest(r#","timeout_s":5,"max_attempts":2,"depends_on":["p"]"#);
    elsewhere.job_id = "b".to_owned();
    elsewhere.mounts[0].source = crate::manifest::MountSource::Host("/other".to_owned());
    assert_eq!(execution_hash("sha256:i", &elsewhere, &env, &[mount]), base, "no job id, no host path");

    let with = |mount: MountTree<'_>| execution_hash("sha256:i", &manifest(""), &env, &[mount]);
    let others = [
        execution_hash("sha256:j", &manifest(""), &env, &[mount]),
        execution_hash("sha256:i", &manifest(""), &BTreeMap::new(), &[mount]),
        execution_hash("sha256:i", &manifest(r#","network":"bridge""#), &env, &[mount]),
        execution_hash("sha256:i", &manifest(r#","resources":{"cpus":1}"#), &env, &[mount]),
        execution_hash("sha256:i", &manifest(""), &env, &[]),
        with(MountTree { container: "/v", ..mount }),
        with(MountTree { read_only: true, ..mount }),
        with(MountTree { tree: Hash::ZERO, ..mount }),
        with(MountTree { is_artifacts: true, ..mount }),
    ];
    for (index, other) in others.iter().enumerate() {
        assert!(*other != base && !others[..index].contains(other), "case {index}");
    }
    let read_only = MountTree { container: "/v", read_only: true, ..mount };
    assert_ne!(input_hash(&[mount, read_only]), input_hash(&[read_only, mount]), "the first is the working directory");

    let artifacts = MountTree { container: "/job/in/a", read_only: true, is_artifacts: true, ..mount };
    let written = format!(r#"[{{"artifacts":"{}","container":"/job/in/a","mode":"ro"}}]"#, Hash::of(b""));
    assert_eq!(input_hash(&[artifacts]), Hash::of(written.as_bytes()), "as documented");
}
