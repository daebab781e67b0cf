//! The tree hash: what a directory holds, as one digest and as a list of entries.

use super::SealError;
use super::files::{Hashers, Shared, Tell};
use super::text;
use super::walk::Walk;
use crate::hash::Hash;
use crate::sys::dir::Dir;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::Write;
use std::thread;

pub use super::files::digest;

/// Deepest directory below the root that is walked.
pub const MAX_DEPTH: usize = 4096;
/// All paths of one tree together, in bytes: a bound on memory that no honest tree meets.
pub const MAX_PATHS_BYTES: usize = 512 << 20;

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
/// Files are hashed by as many threads as there are cores, 16 at most; a tree of little content by this one alone. `progress`
/// is told by this thread, at least every 50 ms or so, and ends the walk by [`ControlFlow::Break`](std::ops::ControlFlow).
/// Memory grows with the number of entries; stack and descriptors do not.
///
/// The digest is of one moment: after the last file was hashed, everything is looked at once more, and whatever is not what
/// it was when it was hashed ends it. Only what is written through a mapping that was made before leaves no trace until the
/// kernel writes it back.
///
/// # Errors
/// [`SealError::Changed`] naming what changed before that second look; [`SealError::Io`] naming what could not be read;
/// [`SealError::TooLarge`] beyond [`MAX_DEPTH`] or [`MAX_PATHS_BYTES`]; [`SealError::Stopped`] where `progress` said so.
pub fn hash_tree(dir: &Dir, progress: Tell<'_>) -> Result<Tree, SealError> {
    let shared = Shared::default();
    let (root, mut entries) =
        thread::scope(|scope| Walk::new(Hashers::new(scope, &shared, progress), &shared).run(dir))?;
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    let Progress { files, bytes } = shared.progress();
    Ok(Tree { root, files, bytes, entries })
}

/// The hash of a directory with these entries, sorted by name.
pub(super) fn listing_hash<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Hash {
    let mut hasher = Sha256::new();
    let mut line = Vec::new();
    for entry in entries {
        line.clear();
        write!(line, "{} {} ", entry.letter(), entry.sha256).expect("memory takes everything");
        line.extend_from_slice(entry.name());
        line.push(0);
        hasher.update(&line);
    }
    Hash::finish(hasher)
}
