//! Opening and reading what may be anything: by descriptors, following no symlink, and never more than a regular file.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::report::{Meter, PROGRESS_EVERY};
use crate::hash::Hash;
use crate::sys::dir::{Dir, FileType, Stat, leads_nowhere, stat_file};

/// How much is read at once, in bytes.
const CHUNK_BYTES: usize = 256 << 10;
/// A path that the kernel is given at once has at most about so many bytes; PATH_MAX is 4096, and a tree may be deeper.
const STEP_BYTES: usize = 2048;
/// How often a file that changes while it is read is read again.
const LOOKS: u32 = 3;
/// Below so many bytes together, threads cost more than they save.
const PARALLEL_FROM_BYTES: u64 = 4 << 20;
/// Threads that read files at most.
const THREADS_MAX: usize = 8;

/// What a look at a name gives.
pub(super) enum Found<T> {
    /// There is no such thing, or something else, or only through a symlink.
    Absent,
    /// It cannot be told.
    Unreadable(io::Error),
    /// Here it is.
    There(T),
}

impl<T> Found<T> {
    pub(super) fn of(outcome: io::Result<T>) -> Self {
        match outcome {
            Ok(found) => Self::There(found),
            Err(error) if leads_nowhere(&error) => Self::Absent,
            Err(error) => Self::Unreadable(error),
        }
    }
}

/// A regular file's length, mode and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) sha256: Hash,
}

/// Whether a relative path has only components that lead down.
pub(super) fn leads_down(path: &[u8]) -> bool {
    path.split(|&b| b == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
}

/// The directory at `path`, which leads down, below `root`; empty for the root itself.
pub(super) fn dir_below(root: &Dir, path: &[u8]) -> io::Result<Dir> {
    let mut dir = root.try_clone()?;
    let mut rest = path;
    while !rest.is_empty() {
        // As many whole components as fit; a single one is at most 255 bytes, or the kernel refuses it.
        let cut = match rest.len() {
            0..=STEP_BYTES => rest.len(),
            _ => rest[..STEP_BYTES].iter().rposition(|&b| b == b'/').unwrap_or(rest.len()),
        };
        dir = dir.open_beneath(Path::new(OsStr::from_bytes(&rest[..cut])))?;
        rest = rest.get(cut + 1..).unwrap_or_default();
    }
    Ok(dir)
}

/// The regular file at `path` below `root`.
pub(super) fn file_below(root: &Dir, path: &[u8]) -> Found<(File, Stat)> {
    if !leads_down(path) {
        return Found::Absent;
    }
    let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    match Found::of(dir_below(root, parent)) {
        Found::There(dir) => file_in(&dir, OsStr::from_bytes(name)),
        Found::Absent => Found::Absent,
        Found::Unreadable(error) => Found::Unreadable(error),
    }
}

/// The regular file `name` in `dir`.
fn file_in(dir: &Dir, name: &OsStr) -> Found<(File, Stat)> {
    // Looked at before it is opened: a device may do something on being opened.
    let open = || {
        if dir.stat_child(name)?.file_type != FileType::Regular {
            return Ok(None);
        }
        let file = dir.open_child_file(name)?;
        let stat = stat_file(&file)?;
        Ok((stat.file_type == FileType::Regular).then_some((file, stat)))
    };
    match Found::of(open()) {
        Found::There(Some(there)) => Found::There(there),
        Found::There(None) | Found::Absent => Found::Absent,
        Found::Unreadable(error) => Found::Unreadable(error),
    }
}

/// What a file's content is against what it should be.
#[derive(Debug)]
pub(super) enum Judgement {
    Same,
    Absent,
    /// How it differs; its digest, where it was needed to tell.
    Differs(String, Option<Content>),
    Unreadable(io::Error),
    /// The user has ended the check.
    Unjudged,
}

/// A file to judge. `mode` is not looked at where it is `None`.
pub(super) struct Task<'a> {
    pub(super) root: &'a Dir,
    pub(super) path: &'a [u8],
    pub(super) size: u64,
    pub(super) mode: Option<u32>,
    pub(super) sha256: Hash,
}

impl Task<'_> {
    /// How `content` differs from what is expected.
    pub(super) fn difference(&self, content: &Content) -> Option<String> {
        if content.size != self.size {
            return Some(format!("it has {} bytes, not {}", content.size, self.size));
        }
        if let Some(mode) = self.mode.filter(|mode| *mode != content.mode) {
            return Some(format!("its mode is {:04o}, not {mode:04o}", content.mode));
        }
        (content.sha256 != self.sha256).then(|| format!("its SHA-256 is {}, not {}", content.sha256, self.sha256))
    }

    fn judge(&self, buffer: &mut Vec<u8>, meter: &Meter<'_>, tick: &mut dyn FnMut()) -> Judgement {
        for _ in 0..LOOKS {
            let (mut file, before) = match file_below(self.root, self.path) {
                Found::Absent => return Judgement::Absent,
                Found::Unreadable(error) => return Judgement::Unreadable(error),
                Found::There(there) => there,
            };
            // Length and mode are told without reading it.
            let looks = Content { size: before.size, mode: before.mode, sha256: self.sha256 };
            if let Some(difference) = self.difference(&looks) {
                return Judgement::Differs(difference, None);
            }
            let digest = match digest(&mut file, before.size, buffer, meter, tick) {
                Ok(Some(digest)) => digest,
                Ok(None) => return Judgement::Unjudged,
                Err(error) => return Judgement::Unreadable(error),
            };
            let after = match stat_file(&file) {
                Ok(after) => after,
                Err(error) => return Judgement::Unreadable(error),
            };
            if (before.size, before.modified, before.changed) != (after.size, after.modified, after.changed) {
                continue;
            }
            let content = Content { sha256: digest, ..looks };
            return match self.difference(&content) {
                None => Judgement::Same,
                Some(difference) => Judgement::Differs(difference, Some(content)),
            };
        }
        Judgement::Differs("somebody is writing to it".into(), None)
    }
}

/// Judges all of them, on several threads where there is much to read; `tick` is called now and then.
pub(super) fn judge_all(tasks: &[Task<'_>], meter: &Meter<'_>, tick: &mut dyn FnMut()) -> Vec<Judgement> {
    let bytes = tasks.iter().fold(0_u64, |sum, task| sum.saturating_add(task.size));
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = cores.min(THREADS_MAX).min(tasks.len());
    if threads < 2 || bytes < PARALLEL_FROM_BYTES {
        let mut buffer = Vec::new();
        return tasks.iter().map(|task| task.judge(&mut buffer, meter, tick)).collect();
    }
    let mut judgements: Vec<Judgement> = tasks.iter().map(|_| Judgement::Unjudged).collect();
    let next = AtomicUsize::new(0);
    let (sender, results) = channel();
    thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                let mut buffer = Vec::new();
                while let Some((index, task)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|index| Some((index, tasks.get(index)?)))
                    .filter(|_| !meter.is_interrupted())
                {
                    // The other end goes only after all senders have.
                    let _ = sender.send((index, task.judge(&mut buffer, meter, &mut || ())));
                }
            });
        }
        drop(sender);
        loop {
            match results.recv_timeout(PROGRESS_EVERY) {
                Ok((index, judgement)) => judgements[index] = judgement,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            tick();
        }
    });
    judgements
}

/// SHA-256 of the first `size` bytes and one more where there are more; `None` where the user ends it.
fn digest(
    file: &mut File,
    size: u64,
    buffer: &mut Vec<u8>,
    meter: &Meter<'_>,
    tick: &mut dyn FnMut(),
) -> io::Result<Option<Hash>> {
    buffer.resize(CHUNK_BYTES, 0);
    let mut hasher = Sha256::new();
    // A file that grows as fast as it is read would never end.
    let mut limited = file.take(size.saturating_add(1));
    loop {
        if meter.is_interrupted() {
            return Ok(None);
        }
        match limited.read(buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                meter.bytes.fetch_add(read as u64, Ordering::Relaxed);
                tick();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    meter.files.fetch_add(1, Ordering::Relaxed);
    Ok(Some(Hash::finish(hasher)))
}

/// What became of reading a file that one digest vouches for.
pub(super) enum Vouched {
    /// It has that digest.
    Bytes(Vec<u8>),
    /// It has another.
    Other,
    /// The user has ended the check.
    Unjudged,
}

/// Reads a file of `size` bytes that should have this digest. Nothing is kept of what was not vouched for, however large.
pub(super) fn vouched(
    file: &mut File,
    size: u64,
    hash: Hash,
    meter: &Meter<'_>,
    tick: &mut dyn FnMut(),
) -> io::Result<Vouched> {
    match digest(file, size, &mut Vec::new(), meter, tick)? {
        None => return Ok(Vouched::Unjudged),
        Some(found) if found != hash => return Ok(Vouched::Other),
        Some(_) => {}
    }
    file.rewind()?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes)?;
    Ok(if Hash::of(&bytes) == hash { Vouched::Bytes(bytes) } else { Vouched::Other })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn only_what_is_reached_without_a_symlink_is_there_however_deep() {
        let path = std::env::temp_dir().join(format!("hackbrain-content-{}", std::process::id()));
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/f"), "x").unwrap();
        symlink("b", path.join("a/l")).unwrap();
        symlink("f", path.join("a/b/g")).unwrap();
        let root = Dir::open(&path).unwrap();
        let is_there = |path: &[u8]| matches!(file_below(&root, path), Found::There(_));
        assert!(is_there(b"a/b/f"));
        for absent in ["a/l/f", "a/b/g", "a/b", "a/b/f/x", "a/../a/b/f", "./a/b/f", "/a/b/f", "a//b/f", "", "a/b/f\0"] {
            assert!(!is_there(absent.as_bytes()), "{absent:?}");
        }
        // Deeper than a path may be long.
        let (mut dir, mut deep) = (path.clone(), Vec::new());
        let name = "n".repeat(200);
        for _ in 0..18 {
            dir.push(&name);
            deep.extend_from_slice(format!("{name}/").as_bytes());
        }
        fs::create_dir_all(&dir).unwrap();
        let moved = path.join("moved");
        fs::rename(path.join(&name), &moved).unwrap();
        fs::create_dir_all(&dir).unwrap();
        // One tree below the other: twice as deep.
        let inner = Dir::open(&dir).unwrap();
        fs::rename(&moved, inner.proc_path().join("moved")).unwrap();
        let mut below = deep.clone();
        below.extend_from_slice(b"moved/");
        below.extend_from_slice(&deep[name.len() + 1..]);
        let bottom = dir_below(&root, &below[..below.len() - 1]).unwrap();
        fs::write(bottom.proc_path().join("f"), "deep").unwrap();
        below.extend_from_slice(b"f");
        assert!(below.len() > 4096 && is_there(&below));
        drop((inner, bottom));
        fs::remove_dir_all(&path).unwrap();
    }

    #[test]
    fn many_files_are_judged_as_one_is() {
        let path = std::env::temp_dir().join(format!("hackbrain-judge-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        for name in &names[1..] {
            fs::write(path.join(name), name.repeat(300_000)).unwrap();
        }
        let root = Dir::open(&path).unwrap();
        let text = |name: &str| name.repeat(300_000);
        let mut tasks = Vec::new();
        for name in &names {
            let sha256 = Hash::of(text(if name == "7" { "6" } else { name }).as_bytes());
            tasks.push(Task { root: &root, path: name.as_bytes(), size: text(name).len() as u64, mode: None, sha256 });
        }
        let interrupted = AtomicBool::new(false);
        let meter = Meter::new(&interrupted);
        let judgements = judge_all(&tasks, &meter, &mut || ());
        for (name, judgement) in names.iter().zip(&judgements) {
            match (name.as_str(), judgement) {
                ("0", Judgement::Absent) | ("7", Judgement::Differs(_, Some(_))) => {}
                (name, Judgement::Same) => assert!(!["0", "7"].contains(&name)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(meter.files.load(Ordering::Relaxed), 19);
        interrupted.store(true, Ordering::Relaxed);
        assert!(judge_all(&tasks[1..], &meter, &mut || ()).iter().all(|one| matches!(one, Judgement::Unjudged)));
        fs::remove_dir_all(&path).unwrap();
    }
}
