//! Mount safety on a real file system; what needs the right to mount is skipped without it.

#![allow(clippy::unwrap_used)]

use super::*;
use std::os::unix::fs::{MetadataExt, symlink};

/// `root/a/b/c` (a file `f` in it), `outside/secret`, `data/`; removed at the end, after all mounts below it.
struct World(PathBuf);

impl World {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hackbrain-mounts-{}-{name}", std::process::id()));
        for directory in ["root/a/b/c", "outside/secret", "data/jobs/x"] {
            fs::create_dir_all(path.join(directory)).unwrap();
        }
        let world = Self(path.canonicalize().unwrap());
        fs::write(world.at("root/a/b/c/f"), "mine").unwrap();
        fs::write(world.at("outside/secret/f"), "secret").unwrap();
        world
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    fn text(&self, relative: &str) -> String {
        self.at(relative).to_str().unwrap().to_owned()
    }

    fn policy(&self, roots: &[&str]) -> MountPolicy {
        let roots: Vec<_> = roots.iter().map(|root| self.at(root)).collect();
        MountPolicy::with_protection(&roots, &self.at("data"), Protection::PrivateBind).unwrap()
    }

    fn code(&self, policy: &MountPolicy, relative: &str) -> (u16, &'static str) {
        let rejection = policy.check(&self.text(relative)).unwrap_err();
        assert_eq!(rejection.field.as_deref(), Some("mount_spec"));
        (rejection.status, rejection.code)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for mounted in dir::mounts_below(&self.0).unwrap_or_default().iter().rev() {
            let _ = dir::unmount(mounted);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn only_below_the_roots() {
    let world = World::new("roots");
    let policy = world.policy(&["root"]);
    let checked = policy.check(&world.text("root/a/b/c")).unwrap();
    let meta = fs::metadata(world.at("root/a/b/c")).unwrap();
    assert_eq!((checked.id(), checked.owner()), ((meta.dev(), meta.ino()), (meta.uid(), meta.gid())));
    fs::create_dir(world.at("root-not")).unwrap();
    for outside in ["outside", "outside/secret", "root", "root-not", "", "none"] {
        let rejection = policy.check(world.text(outside).trim_end_matches('/')).unwrap_err();
        assert_eq!((rejection.status, rejection.code), (403, "mount_outside_roots"), "{outside}");
        assert!(rejection.message.contains(&world.text("root")) && rejection.message.contains("--mount-root"));
    }
    let none = world.policy(&[]).check("/etc").unwrap_err();
    assert!(none.code == "mount_outside_roots" && none.message.contains("--mount-root"), "{none}");
    for bad in ["", "root/a", "/root/../etc", "/a//b", "/a/", "/a/."] {
        assert_eq!(policy.check(bad).unwrap_err().code, "invalid_mount", "{bad}");
    }
    let sneaky = format!("{}/../outside", world.text("root"));
    assert_eq!(policy.check(&sneaky).unwrap_err().code, "invalid_mount");
}

#[test]
fn a_symlink_at_any_level_is_refused_and_named() {
    let world = World::new("symlinks");
    let policy = world.policy(&["root"]);
    for (link, target, path) in [
        ("root/l1", world.text("root/a"), "root/l1/b/c"),
        ("root/a/l2", "b".to_owned(), "root/a/l2/c"),
        ("root/a/b/l3", "c".to_owned(), "root/a/b/l3"),
        ("root/a/up", "../../outside/secret".to_owned(), "root/a/up"),
        ("root/a/dangling", "/nowhere".to_owned(), "root/a/dangling"),
        ("root/a/self", "self".to_owned(), "root/a/self/x"),
        ("root/a/magic", "/proc/self/root".to_owned(), "root/a/magic/etc"),
    ] {
        symlink(target, world.at(link)).unwrap();
        assert_eq!(world.code(&policy, path), (403, "mount_symlink"), "{path}");
        assert!(policy.check(&world.text(path)).unwrap_err().message.contains(&world.text(link)), "{path}");
    }
}

#[test]
fn what_is_no_directory_is_refused() {
    let world = World::new("types");
    let policy = world.policy(&["root"]);
    let _socket = std::os::unix::net::UnixListener::bind(world.at("root/sock")).unwrap();
    for (path, code, says) in [
        ("root/none", "mount_missing", "does not exist"),
        ("root/none/x", "mount_missing", "root/none\" does not exist"),
        ("root/a/b/c/f", "mount_not_directory", "is a file"),
        ("root/a/b/c/f/x", "mount_not_directory", "c/f\" is a file"),
        ("root/sock", "mount_not_directory", "is a socket"),
    ] {
        assert_eq!(world.code(&policy, path), (400, code), "{path}");
        let message = policy.check(&world.text(path)).unwrap_err().message;
        assert!(message.contains(says), "{message}");
    }
}

#[test]
fn the_data_directory_its_ancestors_and_what_it_holds_are_refused() {
    let world = World::new("data");
    fs::create_dir_all(world.at("root/deep/er")).unwrap();
    fs::rename(world.at("data"), world.at("root/deep/er/data")).unwrap();
    let data = world.at("root/deep/er/data");
    let policy = MountPolicy::with_protection(&[world.at("root")], &data, Protection::PrivateBind).unwrap();
    for path in ["root/deep", "root/deep/er", "root/deep/er/data", "root/deep/er/data/jobs", "root/deep/er/data/jobs/x"]
    {
        assert_eq!(world.code(&policy, path), (403, "mount_of_data_dir"), "{path}");
    }
    assert!(policy.check(&world.text("root/a")).is_ok());
    assert!(policy.check_own(Path::new("jobs/x")).is_ok());
    assert!(policy.check_own(Path::new("../..")).is_err());
    if dir::may_mount().unwrap() {
        dir::bind_mount(&Dir::open(&world.at("root/deep")).unwrap(), &world.at("root/a/b"), false).unwrap();
        assert_eq!(world.code(&policy, "root/a/b"), (403, "mount_of_data_dir"), "by another name");
        assert_eq!(world.code(&policy, "root/a/b/er/data"), (403, "mount_of_data_dir"), "by another name");
        // A part of it: nothing above it, as it is reached here, is the data directory.
        fs::create_dir(world.at("root/part")).unwrap();
        dir::bind_mount(&Dir::open(&data.join("jobs")).unwrap(), &world.at("root/part"), false).unwrap();
        assert_eq!(world.code(&policy, "root/part/x"), (403, "mount_of_data_dir"), "by another name");
    }
}

#[test]
fn roots_are_checked_at_the_start() {
    let world = World::new("start");
    symlink("root", world.at("alias")).unwrap();
    fs::create_dir(world.at("a,b")).unwrap();
    let open = |root: PathBuf| MountPolicy::new(&[root], &world.at("data"));
    for (root, says) in [
        (world.at("none"), "none"),
        (world.at("root/a/b/c/f"), "c/f"),
        (world.at("data"), "data directory"),
        (world.at("data/jobs"), "data directory"),
        (world.at("a,b"), "comma"),
        ("/".into(), "neither /"),
        ("/run".into(), "neither /"),
        ("/proc/self".into(), "neither /"),
        ("/dev".into(), "neither /"),
    ] {
        let error = open(root.clone()).unwrap_err().to_string();
        assert!(error.contains(says), "{root:?}: {error}");
    }
    assert!(MountPolicy::new(&[], &world.at("no-data")).unwrap_err().to_string().contains("no-data"));
    let aliased = open(world.at("alias")).unwrap();
    let by_alias = aliased.check(&world.text("alias/a")).unwrap();
    assert_eq!(by_alias.id(), aliased.check(&world.text("root/a")).unwrap().id(), "both spellings of a root count");
}

#[test]
fn a_swap_after_the_check_changes_nothing() {
    if !dir::may_mount().unwrap() {
        return;
    }
    let world = World::new("swap");
    let policy = world.policy(&["root"]);
    assert_eq!(policy.protection(), Protection::PrivateBind);
    let checked = policy.check(&world.text("root/a/b/c")).unwrap();
    fs::rename(world.at("root/a/b"), world.at("root/a/moved")).unwrap();
    symlink(world.at("outside"), world.at("root/a/b")).unwrap();
    fs::rename(world.at("outside/secret"), world.at("outside/c")).unwrap();
    let place = policy.place("hb-j-1", 0);
    let bound = policy.bind(&checked, &place, false).unwrap();
    assert_eq!(fs::read_to_string(world.at("root/a/b/c/f")).unwrap(), "secret", "the path leads elsewhere now");
    assert_eq!(fs::read_to_string(bound.path.join("f")).unwrap(), "mine", "the mount does not");
    assert_eq!(bound.open().unwrap().stat().unwrap().id, checked.id());
    // Binding again at the same place replaces the mount instead of stacking one on it.
    let read_only = policy.bind(&checked, &place, true).unwrap();
    assert_eq!(dir::mounts_below(&place).unwrap().len(), 1);
    assert!(read_only.read_only && fs::write(place.join("g"), "x").is_err());
    policy.release(place.parent().unwrap()).unwrap();
    assert!(!place.parent().unwrap().exists() && world.at("root/a/moved/c/f").exists());
    policy.release(place.parent().unwrap()).unwrap();
}

#[test]
fn submounts_do_not_come_along() {
    if !dir::may_mount().unwrap() {
        return;
    }
    let world = World::new("submounts");
    let policy = world.policy(&["root"]);
    dir::bind_mount(&Dir::open(&world.at("outside/secret")).unwrap(), &world.at("root/a/b/c"), false).unwrap();
    let bound = policy.bind(&policy.check(&world.text("root/a")).unwrap(), &policy.place("c", 0), false).unwrap();
    assert_eq!(fs::read_to_string(bound.path.join("b/c/f")).unwrap(), "mine");
    // Nor what is mounted over the directory itself once it was checked.
    let checked = policy.check(&world.text("root/a")).unwrap();
    dir::bind_mount(&Dir::open(&world.at("outside")).unwrap(), &world.at("root/a"), false).unwrap();
    assert!(world.at("root/a/secret").exists());
    let bound = policy.bind(&checked, &policy.place("c", 0), false).unwrap();
    assert_eq!(fs::read_to_string(bound.path.join("b/c/f")).unwrap(), "mine");
}

#[test]
fn stale_mounts_go_and_data_stays() {
    if !dir::may_mount().unwrap() {
        return;
    }
    let world = World::new("stale");
    let policy = world.policy(&["root"]);
    assert_eq!(policy.clean_stale(&|_| false).unwrap(), 0);
    let checked = policy.check(&world.text("root/a/b/c")).unwrap();
    for (container, index) in [("keep", 0), ("drop", 0), ("drop", 1), ("junk", 0)] {
        policy.bind(&checked, &policy.place(container, index), false).unwrap();
    }
    let junk = policy.place("junk", 0);
    dir::unmount(&junk).unwrap();
    fs::write(junk.join("precious"), "x").unwrap();
    let later = world.policy(&["root"]);
    assert!(later.clean_stale(&|name| name == "keep").is_err(), "what is no mount is reported");
    assert!(junk.join("precious").exists() && !policy.place("drop", 0).exists());
    assert_eq!(dir::mounts_below(&world.at("data")).unwrap(), [policy.place("keep", 0)]);
    assert_eq!(fs::read_to_string(world.at("root/a/b/c/f")).unwrap(), "mine");
}

#[test]
fn only_places_of_mounts_are_bound_or_released() {
    let world = World::new("places");
    let policy = world.policy(&["root"]);
    let checked = policy.check(&world.text("root/a")).unwrap();
    let mnt = world.at("data/mnt");
    for place in ["", "c", "c/x", "c/00", "c/0/1", "../x/0", "c/../0", "c/-1"] {
        assert_eq!(
            policy.bind(&checked, &mnt.join(place), false).unwrap_err().kind(),
            io::ErrorKind::InvalidInput,
            "{place}"
        );
    }
    for dir in [mnt.clone(), world.at("data"), world.at("root/a"), mnt.join("c/0"), mnt.join("..")] {
        assert_eq!(policy.release(&dir).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{dir:?}");
    }
}

#[test]
fn without_the_right_to_mount_every_ancestor_must_be_trusted() {
    let world = World::new("trusted");
    let weak =
        |root: &Path| MountPolicy::with_protection(&[root.to_owned()], &world.at("data"), Protection::TrustedAncestors);
    // The temporary directory is writable for everybody, so nothing below it can be trusted.
    let rejection = weak(&world.at("root")).unwrap().check(&world.text("root/a")).unwrap_err();
    assert_eq!((rejection.status, rejection.code), (403, "mount_unprotected"));
    let system = weak(Path::new("/usr")).unwrap();
    let bound = system.bind(&system.check("/usr/share").unwrap(), &system.place("c", 0), true).unwrap();
    assert_eq!(bound.path, Path::new("/usr/share"));
    assert!(!system.place("c", 0).exists(), "nothing is made where nothing is mounted");
    let own = system.bind(&system.check_own(Path::new("jobs/x")).unwrap(), &system.place("c", 1), false).unwrap();
    assert_eq!(own.path, world.at("data/jobs/x"));
}
