//! How a directory differs from what was recorded of it, and a seal from another.

use super::tree::{digest, parent_of};
use super::{Artifact, AttemptLogs, Entry, Kind, Seal, Tree, text};
use crate::hash::Hash;
use crate::ledger::reproduction::{Likeness, Reproduction};
use crate::sys::dir::{Dir, FileType, is_absence};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Paths that are named; the others are only counted.
const NAMED_MAX: usize = 20;
/// A relative path is walked in steps of at most so many bytes, well below PATH_MAX.
const STEP_BYTES: usize = 3000;

/// Paths that are not as they were recorded, for a person.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Differences {
    named: Vec<String>,
    more: u64,
}

impl Differences {
    /// Adds the path `relative` of the mount at `container`; `how`: changed, missing or extra.
    pub fn add(&mut self, container: &str, relative: &[u8], how: &str) {
        if self.named.len() < NAMED_MAX {
            self.named.push(format!("{container}/{} {how}", text::shown(relative)));
        } else {
            self.more += 1;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.named.join(", "))?;
        if self.more > 0 { write!(f, " and {} more", self.more) } else { Ok(()) }
    }
}

/// Compares what was recorded of the mount at `container` with what was found. Of a directory that one of them lacks, only
/// the top is named.
pub fn compare(container: &str, recorded: &Tree, found: &Tree, differences: &mut Differences) {
    let differs = |old: &Entry, new: &Entry| {
        (old.letter(), old.sha256) != (new.letter(), new.sha256)
            && !(old.kind == Kind::Directory && new.kind == Kind::Directory)
    };
    let mut gone: HashSet<&[u8]> = HashSet::new();
    for old in &recorded.entries {
        if gone.contains(old.parent()) {
            gone.insert(&old.path);
            continue;
        }
        match found.get(&old.path) {
            Some(new) if !differs(old, new) => continue,
            Some(_) => differences.add(container, &old.path, "changed"),
            None => differences.add(container, &old.path, "missing"),
        }
        gone.insert(&old.path);
    }
    let mut new: HashSet<&[u8]> = HashSet::new();
    for entry in found.entries.iter().filter(|entry| recorded.get(&entry.path).is_none()) {
        if !new.contains(entry.parent()) {
            differences.add(container, &entry.path, "extra");
        }
        new.insert(&entry.path);
    }
}

/// Looks whether a directory still holds what was recorded: names, types, sizes, execute bits and texts of symlinks, and
/// `contents`, too, if asked. What is there besides counts only where nothing may be: with `alone`.
///
/// # Errors
/// What could not be read.
pub fn look(
    container: &str,
    dir: &Dir,
    recorded: &Tree,
    (alone, contents): (bool, bool),
    differences: &mut Differences,
) -> io::Result<()> {
    let mut gone: HashSet<&[u8]> = HashSet::new();
    for entry in &recorded.entries {
        if gone.contains(entry.parent()) {
            gone.insert(&entry.path);
        } else if let Some(how) = look_at(dir, entry, contents)? {
            differences.add(container, &entry.path, how);
            gone.insert(&entry.path);
        }
    }
    if alone {
        let directories = recorded.entries.iter().filter(|entry| entry.kind == Kind::Directory);
        let paths = directories.map(|entry| entry.path.as_slice()).filter(|path| !gone.contains(path));
        for path in std::iter::once(&b""[..]).chain(paths) {
            let mut names = descend(dir, path)?.names()?;
            names.sort_unstable();
            for name in names {
                let full =
                    if path.is_empty() { name.as_bytes().to_vec() } else { [path, b"/", name.as_bytes()].concat() };
                if recorded.get(&full).is_none() {
                    differences.add(container, &full, "extra");
                }
            }
        }
    }
    Ok(())
}

fn look_at(dir: &Dir, entry: &Entry, contents: bool) -> io::Result<Option<&'static str>> {
    let name = OsStr::from_bytes(entry.name());
    let opened = descend(dir, entry.parent()).and_then(|parent| Ok((parent.stat_child(name)?, parent)));
    let (stat, parent) = match opened {
        Ok(found) => found,
        Err(error) if is_absence(&error) => return Ok(Some("missing")),
        Err(error) => return Err(error),
    };
    let is_same = match (entry.kind, stat.file_type) {
        (Kind::File, FileType::Regular) => {
            let looks_same = stat.size == entry.size && (stat.mode & 0o111 != 0) == (entry.mode & 0o111 != 0);
            // No further than it should go: somebody may be appending to it.
            let digest_of = |file: File| digest(&mut file.take(entry.size + 1));
            looks_same && (!contents || digest_of(parent.open_child_file(name)?)? == (entry.size, entry.sha256))
        }
        (Kind::Symlink, FileType::Symlink) => Some(parent.read_link(name)?.as_bytes()) == entry.target.as_deref(),
        (Kind::Directory, FileType::Directory)
        | (Kind::Fifo, FileType::Fifo)
        | (Kind::Socket, FileType::Socket)
        | (Kind::CharDevice, FileType::CharDevice)
        | (Kind::BlockDevice, FileType::BlockDevice) => true,
        _ => false,
    };
    Ok((!is_same).then_some("changed"))
}

/// Opens a directory below `dir`, at a path of any length; nothing is followed.
///
/// # Errors
/// As [`Dir::open_beneath`].
pub fn descend(dir: &Dir, relative: &[u8]) -> io::Result<Dir> {
    let (mut current, mut rest) = (dir.try_clone()?, relative);
    while !rest.is_empty() {
        let slash = || rest[..STEP_BYTES].iter().rposition(|&byte| byte == b'/');
        let end = if rest.len() <= STEP_BYTES { rest.len() } else { slash().unwrap_or(rest.len()) };
        current = current.open_beneath(Path::new(OsStr::from_bytes(&rest[..end])))?;
        rest = rest[end..].strip_prefix(b"/").unwrap_or_default();
    }
    Ok(current)
}

/// A path's last component, and the path of the directory that holds it.
pub fn split(path: &[u8]) -> (&[u8], &OsStr) {
    let parent = parent_of(path);
    let name = &path[if parent.is_empty() { 0 } else { parent.len() + 1 }..];
    (parent, OsStr::from_bytes(name))
}

/// Compares what a reproduction left with what `original` left.
pub(super) fn reproduction(
    original: (&Seal, Hash),
    artifacts: &[Artifact],
    attempt: u32,
    logs: &[AttemptLogs],
) -> Reproduction {
    let (original, seal_hash) = original;
    let theirs: BTreeMap<&[u8], &Artifact> = original.artifacts.iter().map(|one| (&*one.path.0, one)).collect();
    let ours: HashSet<&[u8]> = artifacts.iter().map(|one| &*one.path.0).collect();
    let likeness = |one: &Artifact| match theirs.get(&*one.path.0) {
        None => Likeness::Extra,
        Some(other) if (other.sha256, other.mode) == (one.sha256, one.mode) => Likeness::Identical,
        Some(_) => Likeness::Differs,
    };
    let mut compared: Vec<_> = artifacts.iter().map(|one| (text::encode(&one.path.0), likeness(one))).collect();
    let missing = original.artifacts.iter().filter(|one| !ours.contains(&*one.path.0));
    compared.extend(missing.map(|one| (text::encode(&one.path.0), Likeness::Missing)));
    let of_attempt = |logs: &[AttemptLogs], attempt: u32| logs.iter().find(|log| log.attempt == attempt).cloned();
    let (before, now) = (of_attempt(&original.logs, original.attempt), of_attempt(logs, attempt));
    let log = |of: fn(AttemptLogs) -> Option<crate::ledger::event::LogDigest>| {
        let (before, now) = (before.clone().and_then(of), now.clone().and_then(of));
        let known = before.as_ref().is_some_and(|digest| digest.complete);
        if known && before == now { Likeness::Identical } else { Likeness::Differs }
    };
    let logs = (log(|logs| logs.stdout), log(|logs| logs.stderr));
    Reproduction::new(original.job_id.clone(), seal_hash, logs, compared)
}
