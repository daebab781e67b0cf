//! A tree's digest is of one moment, whoever hashes it, and is given up at once when nobody wants it any more.

#![allow(clippy::unwrap_used)]

use super::tests::{Scratch, chmod, go_on, mkfifo, tree, vector_tree};
use super::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// So much that threads are started.
const MUCH: u64 = 8 << 20;
/// So much that nobody hashes it while a test runs.
const ENDLESS: u64 = 1 << 40;
/// Longest wait for what must happen; far above what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where there may be another file system than that of the temporary directory.
const PLACES: [&str; 5] = ["/dev/shm", "/run", "/tmp", "/var/tmp", env!("CARGO_MANIFEST_DIR")];

fn sparse(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

/// The documented hash, said once more and as simply as possible: by paths, one after the other, all in memory.
fn by_the_book(path: &Path) -> Hash {
    let mut listing = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        let (meta, path) = (fs::symlink_metadata(entry.path()).unwrap(), entry.path());
        let (letter, hash) = match meta.file_type() {
            kind if kind.is_dir() => ('d', by_the_book(&path)),
            kind if kind.is_symlink() => ('l', Hash::of(fs::read_link(&path).unwrap().as_os_str().as_bytes())),
            kind if kind.is_file() => {
                (if meta.mode() & 0o111 == 0 { 'f' } else { 'x' }, Hash::of(&fs::read(&path).unwrap()))
            }
            _ => ('p', Hash::of(b"")),
        };
        listing.insert(entry.file_name(), (letter, hash));
    }
    let line = |(name, (letter, hash)): (&std::ffi::OsString, &(char, Hash))| {
        [format!("{letter} {hash} ").as_bytes(), name.as_bytes(), b"\0"].concat()
    };
    Hash::of(&listing.iter().flat_map(line).collect::<Vec<u8>>())
}

#[test]
fn threads_give_what_the_format_says() {
    let scratch = Scratch::new("threads");
    for directory in 0..40 {
        let path = scratch.dir(&format!("t/{}/below.{directory}/deep", directory % 7));
        for file in 0..30 {
            fs::write(path.join(format!("f{file}")), vec![file; 500 * usize::from(file) + directory]).unwrap();
        }
        chmod(&path.join("f7"), 0o755);
        symlink("f1", path.join("link")).unwrap();
        fs::create_dir(path.join("f1.d")).unwrap();
    }
    mkfifo(&scratch.at("t/fifo"));
    for (name, bytes) in [("a", 5 << 20), ("b", 1), ("z", 3 << 20), ("zero", 0)] {
        fs::write(scratch.at("t").join(name), vec![7; bytes]).unwrap();
    }
    let path = scratch.at("t");
    let several = tree(&path);
    assert_eq!(several.root, by_the_book(&path));
    assert_eq!(several.files, 40 * 30 + 4);
    for _ in 0..5 {
        assert_eq!(tree(&path), several, "whichever thread is first");
    }
}

#[test]
fn another_file_system_day_and_owner_give_the_same() {
    let scratch = Scratch::new("elsewhere");
    let here = scratch.dir("t");
    vector_tree(&here);
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
    let elsewhere = PLACES.iter().filter(|place| device(Path::new(place)).is_some_and(|it| Some(it) != device(&here)));
    let other = elsewhere
        .map(|place| Scratch(Path::new(place).join(format!("hackbrain-seal-{}-there", std::process::id()))))
        .find(|there| fs::create_dir(&there.0).is_ok())
        .unwrap_or_else(|| {
            panic!(
                "not to be tested: none of {PLACES:?} is writable and on another file system than {here:?}; set TMPDIR"
            )
        });
    let there = other.dir("t");
    vector_tree(&there);
    assert_ne!(device(&there), device(&here), "two file systems");
    for name in ["a", "run", "d", "l"] {
        match std::os::unix::fs::lchown(there.join(name), Some(12_345), Some(54_321)) {
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
            Ok(()) => assert_eq!(fs::symlink_metadata(there.join(name)).unwrap().uid(), 12_345),
        }
    }
    chown(&there, Some(12_345), None).ok();
    let day = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
    for name in ["a", "d", ""] {
        File::open(there.join(name)).unwrap().set_modified(day).unwrap();
    }
    let both = (tree(&here), tree(&there));
    assert_eq!(both.0, both.1, "down to every entry");
    assert_eq!(both.0.root.to_string(), "918dff66aa842daaee8e0a0fd5baddf913b68d03d505070f97aac5d99a0f1f70");
}

/// What [`furnish`] makes of regular files, before the big one.
const SMALL_FILES: u64 = 6;

/// Something of every kind. `z/big` is the last to be listed: once some of it is hashed, all else is known.
fn furnish(path: &Path, big: u64) {
    for directory in ["d/empty", "d/full", "z"] {
        fs::create_dir_all(path.join(directory)).unwrap();
    }
    for file in ["early", "d/one", "d/other", "d/full/x", "swap", "zap"] {
        fs::write(path.join(file), file).unwrap();
    }
    symlink("early", path.join("d/link")).unwrap();
    mkfifo(&path.join("d/fifo"));
    sparse(&path.join("z/big"), big);
}

/// A name, and what is done to the tree.
type Change = (&'static str, fn(&Path));

/// Every change, and what the error names.
const CHANGES: [Change; 22] = [
    ("early", |t| fs::write(t.join("early"), "EARLY").unwrap()),
    ("early", |t| {
        // The same length, and the old time put back: only the change time tells.
        let time = fs::metadata(t.join("early")).unwrap().modified().unwrap();
        fs::write(t.join("early"), "later").unwrap();
        File::options().write(true).open(t.join("early")).unwrap().set_modified(time).unwrap();
    }),
    ("early", |t| File::options().append(true).open(t.join("early")).unwrap().write_all(b"x").unwrap()),
    ("early", |t| chmod(&t.join("early"), 0o755)),
    ("early", |t| fs::remove_file(t.join("early")).unwrap()),
    ("early", |t| {
        // Another file of the same content.
        fs::write(t.join("z.new"), "early").unwrap();
        fs::rename(t.join("z.new"), t.join("early")).unwrap();
    }),
    ("early", |t| {
        fs::remove_file(t.join("early")).unwrap();
        fs::create_dir(t.join("early")).unwrap();
    }),
    ("early", |t| {
        fs::rename(t.join("early"), t.join("d/one.tmp")).unwrap();
        fs::rename(t.join("swap"), t.join("early")).unwrap();
        fs::rename(t.join("d/one.tmp"), t.join("swap")).unwrap();
    }),
    ("early", |t| fs::hard_link(t.join("early"), t.join("z/hard")).unwrap()),
    ("a", |t| fs::write(t.join("a"), "").unwrap()),
    ("zz", |t| fs::write(t.join("zz"), "").unwrap()),
    ("zap", |t| fs::remove_file(t.join("zap")).unwrap()),
    ("d/new", |t| mkfifo(&t.join("d/new"))),
    ("d/full/y", |t| fs::create_dir(t.join("d/full/y")).unwrap()),
    ("d/empty", |t| fs::remove_dir(t.join("d/empty")).unwrap()),
    // Which of the two depends on whether it gets the old inode number.
    ("d/empty or d", |t| {
        // Made anew, and empty again.
        fs::remove_dir(t.join("d/empty")).unwrap();
        fs::create_dir(t.join("d/empty")).unwrap();
        chmod(&t.join("d/empty"), 0o711);
    }),
    ("d/link", |t| {
        fs::remove_file(t.join("d/link")).unwrap();
        symlink("other", t.join("d/link")).unwrap();
    }),
    ("d/fifo", |t| fs::remove_file(t.join("d/fifo")).unwrap()),
    ("d/fifo", |t| {
        fs::remove_file(t.join("d/fifo")).unwrap();
        fs::write(t.join("d/fifo"), "").unwrap();
    }),
    ("z/big", |t| File::options().append(true).open(t.join("z/big")).unwrap().write_all(b"x").unwrap()),
    ("z/big", |t| {
        use std::os::unix::fs::FileExt;
        File::options().write(true).open(t.join("z/big")).unwrap().write_all_at(b"x", 0).unwrap();
    }),
    ("z/big", |t| File::options().write(true).open(t.join("z/big")).unwrap().set_len(3).unwrap()),
];

#[test]
fn whatever_somebody_changes_before_the_end_is_named() {
    let scratch = Scratch::new("moment");
    // Hashed by this thread, and by others.
    for big in [1 << 20, MUCH] {
        for (number, (named, change)) in CHANGES.into_iter().enumerate() {
            let path = scratch.dir(&format!("{number}.{big}"));
            furnish(&path, big);
            let (asks, asked) = channel::<()>();
            let (tells, told) = channel();
            let theirs = path.clone();
            let somebody = thread::spawn(move || {
                asked.recv().unwrap();
                change(&theirs);
                tells.send(()).unwrap();
            });
            let is_done = Cell::new(false);
            let result = hash_tree(&Dir::open(&path).unwrap(), &|progress| {
                if progress.files >= SMALL_FILES && progress.bytes > 1000 && !is_done.replace(true) {
                    asks.send(()).unwrap();
                    told.recv().unwrap();
                }
                go_on(progress)
            });
            somebody.join().unwrap();
            match result {
                Err(SealError::Changed { path }) => {
                    let path = text::encode(&path);
                    assert!(
                        named.split(" or ").any(|named| named == path),
                        "case {number} of {big}: {path}, not {named}"
                    );
                }
                other => panic!("case {number} of {big}: {other:?}"),
            }
            let again = tree(&path);
            assert_eq!(again.root, by_the_book(&path), "once it holds still: case {number}");
        }
    }
}

#[test]
fn a_change_in_the_tick_of_the_last_one_would_show() {
    let scratch = Scratch::new("tick");
    fs::write(scratch.at("f"), "x").unwrap();
    let path = scratch.at("f");
    let stat = files::settled(&File::open(&path).unwrap()).unwrap();
    let age = files::age(&stat).unwrap();
    assert!(age >= files::TICK, "written just now, and looked at after {age:?}");
    // Whoever goes on writing is not waited for.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                fs::write(&path, "y").unwrap();
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let mut is_seen = false;
        while !is_seen && Instant::now() < deadline {
            is_seen = files::settled(&File::open(&path).unwrap()).is_err();
        }
        // Before anything can fail: the scope waits for the writer.
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(is_seen, "a change is never seen");
    });
}

#[test]
fn it_is_given_up_wherever_it_is() {
    let scratch = Scratch::new("stop");
    let path = scratch.dir("small");
    furnish(&path, 1 << 20);
    let dir = Dir::open(&path).unwrap();
    let stop_at = |call: Option<usize>| {
        let calls = Cell::new(0);
        let result = hash_tree(&dir, &|_| {
            calls.set(calls.get() + 1);
            if call == Some(calls.get()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        (calls.get(), result)
    };
    let (calls, whole) = stop_at(None);
    assert!(whole.is_ok() && calls > 10, "{calls} {whole:?}");
    for call in 1..=calls {
        let (made, result) = stop_at(Some(call));
        assert!(matches!(result, Err(SealError::Stopped)), "call {call}: {result:?}");
        assert_eq!(made, call, "and nobody is asked again");
    }
    assert_eq!(hash_tree(&dir, &go_on).unwrap().root, whole.unwrap().root);
}

#[test]
fn threads_let_go_of_what_would_take_hours() {
    let scratch = Scratch::new("hours");
    for name in ["a", "b", "c", "d/e"] {
        scratch.dir("t/d");
        sparse(&scratch.at("t").join(name), ENDLESS);
    }
    let seen = RefCell::new(Progress::default());
    let result = hash_tree(&Dir::open(&scratch.at("t")).unwrap(), &|progress| {
        *seen.borrow_mut() = progress;
        if progress.bytes > MUCH { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(result, Err(SealError::Stopped)), "{result:?}");
    let seen = seen.into_inner();
    assert!(seen.files == 0 && seen.bytes > MUCH, "{seen:?}");
}

#[test]
fn descriptors_are_bounded() {
    let scratch = Scratch::new("descriptors");
    for directory in 0..3000 {
        fs::write(scratch.dir(&format!("t/{directory}")).join("f"), "x").unwrap();
    }
    let most = Cell::new(0);
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let tree = hash_tree(&Dir::open(&scratch.at("t")).unwrap(), &|progress| {
        most.set(most.get().max(open()));
        go_on(progress)
    });
    assert_eq!(tree.unwrap().files, 3000);
    // Other tests of this process open some, too.
    assert!(most.get() < before + 500, "{before} before, then {}", most.get());
}
