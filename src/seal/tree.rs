//! The tree hash: what a directory holds, as one digest and as a list of entries.

use super::SealError;
use super::text;
use crate::hash::Hash;
use crate::sys::dir::{Dir, FileType, Stat, stat_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

/// Deepest directory below the root that is walked.
pub const MAX_DEPTH: usize = 4096;
/// All paths of one tree together, in bytes: a bound on memory that no honest tree meets.
pub const MAX_PATHS_BYTES: usize = 512 << 20;
/// How much is read at once, and how often progress is told within a file, in bytes.
const CHUNK_BYTES: usize = 256 << 10;

/// What an entry is. Only files and directories have content; a symlink's content is its text; the rest is only noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Relative to the tree's root, components joined by `/`; bytes, as Linux has them. In JSON see [`text::encode`].
    #[serde(with = "text::path")]
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file or of a symlink's text; 0 for the rest.
    pub size: u64,
    /// Permission, setuid, setgid and sticky bits; in JSON four octal digits.
    #[serde(with = "text::octal")]
    pub mode: u32,
    /// Hard links of a file, 1 for the rest: more than 1 means that the same bytes can change under another name.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub links: u64,
    /// SHA-256 of a file's content, of a symlink's text, of a directory's listing (see [`hash_tree`]), of nothing for the rest.
    pub sha256: Hash,
    /// A symlink's text.
    #[serde(default, with = "text::optional_path", skip_serializing_if = "Option::is_none")]
    pub target: Option<Vec<u8>>,
}

fn one() -> u64 {
    1
}

fn is_one(links: &u64) -> bool {
    *links == 1
}

impl Entry {
    /// The letter that stands for it in its directory's listing.
    pub(super) fn letter(&self) -> char {
        match self.kind {
            Kind::File if self.mode & 0o111 != 0 => 'x',
            Kind::File => 'f',
            Kind::Directory => 'd',
            Kind::Symlink => 'l',
            Kind::Fifo => 'p',
            Kind::Socket => 's',
            Kind::CharDevice => 'c',
            Kind::BlockDevice => 'b',
        }
    }

    pub(crate) fn name(&self) -> &[u8] {
        self.path.rsplit(|&b| b == b'/').next().unwrap_or_default()
    }

    pub(crate) fn parent(&self) -> &[u8] {
        parent_of(&self.path)
    }
}

/// The path of the directory that a path lies in.
pub(super) fn parent_of(path: &[u8]) -> &[u8] {
    &path[..path.iter().rposition(|&byte| byte == b'/').unwrap_or(0)]
}

/// A directory's content at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tree {
    /// The tree hash.
    pub root: Hash,
    /// Number of regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Everything below the root, sorted by the bytes of the path.
    pub entries: Vec<Entry>,
}

impl Tree {
    /// The tree of an empty directory.
    pub fn empty() -> Self {
        Self { root: Hash::of(b""), files: 0, bytes: 0, entries: Vec::new() }
    }

    /// The entry with this path. Binary search: O(log n).
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.entries.binary_search_by(|entry| entry.path.as_slice().cmp(path)).ok().map(|index| &self.entries[index])
    }

    /// Whether the entries give the root: each directory's hash is that of its listing, the counts are right, and nothing
    /// lies outside. Finds a listing that was damaged on disk.
    pub fn is_consistent(&self) -> bool {
        if !self.entries.is_sorted_by(|a, b| a.path < b.path) {
            return false;
        }
        let mut children: HashMap<&[u8], Vec<&Entry>> = HashMap::from([(&b""[..], Vec::new())]);
        for directory in self.entries.iter().filter(|entry| entry.kind == Kind::Directory) {
            children.insert(&directory.path, Vec::new());
        }
        for entry in &self.entries {
            match children.get_mut(entry.parent()) {
                Some(siblings) => siblings.push(entry),
                None => return false,
            }
        }
        let files = || self.entries.iter().filter(|entry| entry.kind == Kind::File);
        files().count() as u64 == self.files
            && files().map(|file| file.size).sum::<u64>() == self.bytes
            && children.into_iter().all(|(path, entries)| {
                let expected = if path.is_empty() { Some(self.root) } else { self.get(path).map(|entry| entry.sha256) };
                expected == Some(listing_hash(entries))
            })
    }
}

/// How far a walk is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Regular files hashed.
    pub files: u64,
    /// Bytes hashed, those of the file under way included.
    pub bytes: u64,
}

/// Hashes everything below `dir`, by descriptors only: symlinks are not followed, and nothing but regular files and
/// directories is opened. Names, types, executable bits, contents and symlink texts count; times, owners, inode numbers
/// and the other mode bits do not.
///
/// A directory's hash is the SHA-256 of its listing: for each entry, sorted by the bytes of its name,
///
/// ```text
/// <letter> <64 hex digits> <name>\0
/// ```
///
/// with the letter `f` for a file, `x` for one that anybody may execute, `d` directory, `l` symlink, `p` fifo, `s` socket,
/// `c` and `b` devices; the digits are the SHA-256 of the file's content, of the subdirectory's listing, of the symlink's
/// text, or of nothing. The tree's hash is that of the root's listing; an empty directory's is the SHA-256 of nothing.
///
/// Test vector: a directory with the file `a` holding `abc`, an executable `run` holding nothing, an empty directory `d`
/// and a symlink `l` to `a` has the hash of
///
/// ```sh
/// A=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad # printf abc | sha256sum
/// E=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 # printf '' | sha256sum
/// L=ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb # printf a | sha256sum
/// printf 'f %s a\0d %s d\0l %s l\0x %s run\0' $A $E $L $E | sha256sum
/// # 918dff66aa842daaee8e0a0fd5baddf913b68d03d505070f97aac5d99a0f1f70
/// ```
///
/// `progress` is told after every file and every 256 KiB. Memory grows with the number of entries; the stack does not.
///
/// # Errors
/// [`SealError::Changed`] naming what changed while it was hashed; [`SealError::Io`] naming what could not be read;
/// [`SealError::TooLarge`] beyond [`MAX_DEPTH`] or [`MAX_PATHS_BYTES`].
pub fn hash_tree(dir: &Dir, progress: &dyn Fn(Progress)) -> Result<Tree, SealError> {
    let mut walk =
        Walk { progress, done: Progress::default(), entries: Vec::new(), paths_bytes: 0, buffer: vec![0; CHUNK_BYTES] };
    let root = walk.run(dir)?;
    let mut entries = walk.entries;
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(Tree { root, files: walk.done.files, bytes: walk.done.bytes, entries })
}

/// Length and SHA-256 of what `file` holds from its position on.
///
/// # Errors
/// What `read` gives.
pub fn digest(file: &mut File) -> io::Result<(u64, Hash)> {
    digest_with(file, &mut vec![0; CHUNK_BYTES], &mut |_| ())
}

struct Walk<'a> {
    progress: &'a dyn Fn(Progress),
    done: Progress,
    entries: Vec<Entry>,
    paths_bytes: usize,
    buffer: Vec<u8>,
}

/// A directory under way.
struct Level {
    /// As it was before its names were read.
    before: Stat,
    /// Subdirectories still to walk, the next one last.
    directories: Vec<OsString>,
    /// Its entries so far, as indices into the walk's list.
    listed: Vec<usize>,
    /// Its own entry; the root has none.
    own: Option<usize>,
}

impl Walk<'_> {
    /// Depth first with an explicit stack and one descriptor: the way up is `..`, whose identity is compared, so that a
    /// tree of any depth needs neither stack nor descriptors.
    fn run(&mut self, root: &Dir) -> Result<Hash, SealError> {
        let mut path: Vec<u8> = Vec::new();
        let mut current = root.try_clone().map_err(|error| SealError::io(&path, error))?;
        let mut levels = vec![self.enter(&current, &path, None)?];
        loop {
            let depth = levels.len();
            let Some(level) = levels.last_mut() else { unreachable!("the root's level returns below") };
            if let Some(name) = level.directories.pop() {
                join(&mut path, name.as_bytes());
                if depth >= MAX_DEPTH {
                    return Err(SealError::TooLarge { path, limit: "directories are nested too deep" });
                }
                let child = current.open_child(&name).map_err(|error| SealError::io(&path, error))?;
                let stat = child.stat().map_err(|error| SealError::io(&path, error))?;
                let own = self.push(Entry {
                    path: path.clone(),
                    kind: Kind::Directory,
                    size: 0,
                    mode: stat.mode,
                    links: 1,
                    sha256: Hash::ZERO,
                    target: None,
                })?;
                level.listed.push(own);
                levels.push(self.enter(&child, &path, Some(own))?);
                current = child;
                continue;
            }
            // All of this directory is hashed; nothing may have come, gone or been renamed in the meantime.
            let after = current.stat().map_err(|error| SealError::io(&path, error))?;
            if !same(&level.before, &after) {
                return Err(SealError::Changed { path });
            }
            let hash = listing_hash(level.listed.iter().map(|&index| &self.entries[index]).collect());
            let own = level.own;
            levels.pop();
            let (Some(own), Some(parent)) = (own, levels.last()) else { return Ok(hash) };
            self.entries[own].sha256 = hash;
            let above = current.open_parent().map_err(|error| SealError::io(&path, error))?;
            let moved = above.stat().map_err(|error| SealError::io(&path, error))?.id != parent.before.id;
            if moved {
                return Err(SealError::Changed { path });
            }
            current = above;
            path.truncate(self.entries[own].parent().len());
        }
    }

    /// Reads a directory and hashes everything in it but its subdirectories.
    fn enter(&mut self, dir: &Dir, path: &[u8], own: Option<usize>) -> Result<Level, SealError> {
        let before = dir.stat().map_err(|error| SealError::io(path, error))?;
        let mut names = dir.names().map_err(|error| SealError::io(path, error))?;
        names.sort_unstable();
        let mut level = Level { before, directories: Vec::new(), listed: Vec::new(), own };
        for name in names {
            let mut child = path.to_vec();
            join(&mut child, name.as_bytes());
            let stat = dir.stat_child(&name).map_err(|error| SealError::vanished(&child, error))?;
            if stat.file_type == FileType::Directory {
                level.directories.push(name);
                continue;
            }
            let entry = self.leaf(dir, &name, child, &stat)?;
            level.listed.push(self.push(entry)?);
        }
        level.directories.reverse();
        Ok(level)
    }

    fn leaf(&mut self, dir: &Dir, name: &OsStr, path: Vec<u8>, stat: &Stat) -> Result<Entry, SealError> {
        let mut entry =
            Entry { path, kind: Kind::File, size: 0, mode: stat.mode, links: 1, sha256: Hash::of(b""), target: None };
        entry.kind = match stat.file_type {
            FileType::Regular => {
                self.file(dir, name, stat, &mut entry)?;
                Kind::File
            }
            FileType::Symlink => {
                let target = dir.read_link(name).map_err(|error| SealError::vanished(&entry.path, error))?;
                entry.size = target.as_bytes().len() as u64;
                entry.sha256 = Hash::of(target.as_bytes());
                entry.target = Some(target.as_bytes().to_vec());
                Kind::Symlink
            }
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Directory => Kind::Directory,
        };
        Ok(entry)
    }

    fn file(&mut self, dir: &Dir, name: &OsStr, listed: &Stat, entry: &mut Entry) -> Result<(), SealError> {
        let mut file = dir.open_child_file(name).map_err(|error| SealError::vanished(&entry.path, error))?;
        let before = stat_file(&file).map_err(|error| SealError::io(&entry.path, error))?;
        let changed = || SealError::Changed { path: entry.path.clone() };
        if before.id != listed.id || before.file_type != FileType::Regular {
            return Err(changed());
        }
        let (progress, done) = (self.progress, self.done);
        let mut tell = |bytes| progress(Progress { bytes: done.bytes + bytes, ..done });
        let (size, sha256) =
            digest_with(&mut file, &mut self.buffer, &mut tell).map_err(|error| SealError::io(&entry.path, error))?;
        let after = stat_file(&file).map_err(|error| SealError::io(&entry.path, error))?;
        if !same(&before, &after) || size != after.size {
            return Err(changed());
        }
        (entry.size, entry.sha256, entry.links) = (size, sha256, after.links);
        self.done = Progress { files: done.files + 1, bytes: done.bytes + size };
        progress(self.done);
        Ok(())
    }

    fn push(&mut self, entry: Entry) -> Result<usize, SealError> {
        self.paths_bytes += entry.path.len();
        if self.paths_bytes > MAX_PATHS_BYTES {
            return Err(SealError::TooLarge { path: entry.path, limit: "the paths are too long together" });
        }
        self.entries.push(entry);
        Ok(self.entries.len() - 1)
    }
}

fn listing_hash(mut entries: Vec<&Entry>) -> Hash {
    entries.sort_unstable_by(|a, b| a.name().cmp(b.name()));
    let mut hasher = Sha256::new();
    for entry in entries {
        hasher.update(format!("{} {} ", entry.letter(), entry.sha256));
        hasher.update(entry.name());
        hasher.update([0]);
    }
    Hash::finish(hasher)
}

fn digest_with(file: &mut File, buffer: &mut [u8], tell: &mut dyn FnMut(u64)) -> io::Result<(u64, Hash)> {
    let mut hasher = Sha256::new();
    let mut total = 0;
    loop {
        match file.read(buffer) {
            Ok(0) => return Ok((total, Hash::finish(hasher))),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                total += read as u64;
                tell(total);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reading changes none of these; whatever writes, renames or sets attributes changes one.
fn same(before: &Stat, after: &Stat) -> bool {
    (before.id, before.size, before.modified, before.changed) == (after.id, after.size, after.modified, after.changed)
}

fn join(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}
