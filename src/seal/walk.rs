//! Two passes over a tree, by descriptors only. The first notes what everything is and has the files hashed; the second
//! compares what everything is with that. Whatever is the same in both was so in the moment between them, so the digest is of
//! that moment.

use std::ffi::OsStr;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::SealError;
use super::files::{Batch, FileFault, Hashers, Outcome, Shared};
use super::tree::{Entry, Kind, MAX_DEPTH, MAX_PATHS_BYTES, listing_hash};
use crate::hash::Hash;
use crate::sys::dir::{Dir, FileType, Stat};

/// Entries looked at between two looks at whether that is still wanted.
const TELL_EVERY: usize = 1024;

/// What an inode was. Reading changes none of it; whatever writes, renames or sets attributes changes some of it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mark {
    id: (u64, u64),
    size: u64,
    seconds: [i64; 2],
    nanoseconds: [u32; 2],
    mode: u32,
    file_type: FileType,
}

impl Mark {
    fn of(stat: &Stat) -> Self {
        let (modified, changed) = (stat.modified, stat.changed);
        Self {
            id: stat.id,
            size: stat.size,
            seconds: [modified.0, changed.0],
            // Always below 10^9.
            nanoseconds: [modified.1 as u32, changed.1 as u32],
            mode: stat.mode,
            file_type: stat.file_type,
        }
    }
}

/// A directory, in the order in which they are entered: one before those in it.
#[derive(Clone, Copy)]
struct Listing {
    /// Its place among the entries; the root has none.
    own: Option<usize>,
    /// The places of its entries, sorted by name.
    first: usize,
    end: usize,
    mark: Mark,
}

/// A walk, and what it has found so far.
pub(super) struct Walk<'scope, 'env> {
    hashers: Hashers<'scope, 'env>,
    shared: &'env Shared,
    entries: Vec<Entry>,
    /// One for each entry.
    marks: Vec<Mark>,
    listings: Vec<Listing>,
    paths_bytes: usize,
    /// Hashed, and not yet noted.
    outcomes: Vec<Outcome>,
}

type Visit<'scope, 'env> = fn(&mut Walk<'scope, 'env>, &Arc<Dir>, usize, &[u8], Option<usize>) -> Result<(), SealError>;

impl<'scope, 'env> Walk<'scope, 'env> {
    pub(super) fn new(hashers: Hashers<'scope, 'env>, shared: &'env Shared) -> Self {
        Self {
            hashers,
            shared,
            entries: Vec::new(),
            marks: Vec::new(),
            listings: Vec::new(),
            paths_bytes: 0,
            outcomes: Vec::new(),
        }
    }

    /// Everything below `root`, unsorted, and the root's hash.
    pub(super) fn run(mut self, root: &Dir) -> Result<(Hash, Vec<Entry>), SealError> {
        let shared = self.shared;
        let found = self.both_passes(root);
        // Nobody waits for the files that threads still have.
        found.inspect_err(|_| shared.stop())?;
        // Those in a directory come after it.
        for listing in self.listings.iter().rev() {
            let hash = listing_hash(&self.entries[listing.first..listing.end]);
            match listing.own {
                Some(own) => self.entries[own].sha256 = hash,
                None => return Ok((hash, self.entries)),
            }
        }
        unreachable!("the root is listed first")
    }

    fn both_passes(&mut self, root: &Dir) -> Result<(), SealError> {
        self.traverse(root, Self::note)?;
        let finished = self.hashers.finish(&mut self.outcomes);
        self.take_in(finished)?;
        self.traverse(root, Self::look_again)
    }

    /// Depth first with an explicit stack and one descriptor: the way up is `..`, whose identity is compared, so that a tree
    /// of any depth needs neither stack nor descriptors. Each directory is visited with its number before those in it.
    fn traverse(&mut self, root: &Dir, visit: Visit<'scope, 'env>) -> Result<(), SealError> {
        let mut path: Vec<u8> = Vec::new();
        let mut current = Arc::new(root.try_clone().map_err(|error| SealError::io(&path, error))?);
        visit(self, &current, 0, &path, None)?;
        let mut entered = 1;
        // A directory's number, and the next of its entries.
        let mut levels = vec![(0, self.listings[0].first)];
        while let Some((number, next)) = levels.last_mut() {
            let listing = self.listings[*number];
            if let Some(own) = (*next..listing.end).find(|index| self.entries[*index].kind == Kind::Directory) {
                *next = own + 1;
                path.clone_from(&self.entries[own].path);
                if levels.len() >= MAX_DEPTH {
                    return Err(SealError::TooLarge { path, limit: "directories are nested too deep" });
                }
                let name = OsStr::from_bytes(self.entries[own].name());
                let child = current.open_child(name).map_err(|error| match current.stat_child(name) {
                    Ok(now) if now.id == self.marks[own].id => SealError::io(&path, error),
                    _ => SealError::Changed { path: path.clone() },
                })?;
                current = Arc::new(child);
                visit(self, &current, entered, &path, Some(own))?;
                levels.push((entered, self.listings[entered].first));
                entered += 1;
                continue;
            }
            levels.pop();
            if let Some((parent, _)) = levels.last() {
                let above = current.open_parent().map_err(|error| SealError::io(&path, error))?;
                let now = above.stat().map_err(|error| SealError::io(&path, error))?;
                if now.id != self.listings[*parent].mark.id {
                    return Err(SealError::Changed { path });
                }
                current = Arc::new(above);
                let length = listing.own.map_or(0, |own| self.entries[own].parent().len());
                path.truncate(length);
            }
        }
        Ok(())
    }

    /// First pass: notes a directory and its entries, and hands its files in.
    fn note(&mut self, dir: &Arc<Dir>, number: usize, path: &[u8], own: Option<usize>) -> Result<(), SealError> {
        let stat = dir.stat().map_err(|error| SealError::io(path, error))?;
        let mark = Mark::of(&stat);
        if let Some(own) = own {
            if stat.id != self.marks[own].id {
                return Err(SealError::Changed { path: path.to_vec() });
            }
            // What came before this look at it is no change.
            self.marks[own] = mark;
            self.entries[own].mode = stat.mode;
        }
        let mut names = dir.names().map_err(|error| SealError::io(path, error))?;
        names.sort_unstable();
        let first = self.entries.len();
        debug_assert_eq!(number, self.listings.len());
        self.listings.push(Listing { own, first, end: first + names.len(), mark });
        let mut batch = Batch::new(dir);
        for name in names {
            let child = joined(path, name.as_bytes());
            let stat = dir.stat_child(&name).map_err(|error| SealError::vanished(&child, error))?;
            let index = self.entries.len();
            if index.is_multiple_of(TELL_EVERY) {
                self.tell()?;
            }
            let entry = leaf(dir, &name, child, &stat)?;
            self.paths_bytes += entry.path.len();
            if self.paths_bytes > MAX_PATHS_BYTES {
                return Err(SealError::TooLarge { path: entry.path, limit: "the paths are too long together" });
            }
            self.entries.push(entry);
            self.marks.push(Mark::of(&stat));
            if stat.file_type == FileType::Regular {
                batch.push(index, name, stat);
                if batch.is_full() {
                    self.hand_in(mem::replace(&mut batch, Batch::new(dir)))?;
                }
            }
        }
        if !batch.is_empty() {
            self.hand_in(batch)?;
        }
        self.tell()
    }

    /// Second pass: a directory has the same names, each of them is what it was, and so is the directory.
    fn look_again(&mut self, dir: &Arc<Dir>, number: usize, path: &[u8], _: Option<usize>) -> Result<(), SealError> {
        let listing = self.listings[number];
        let changed = |name: &[u8]| SealError::Changed { path: joined(path, name) };
        let mut names = dir.names().map_err(|error| SealError::io(path, error))?;
        names.sort_unstable();
        let entries = &self.entries[listing.first..listing.end];
        let came_or_went = || {
            let differs = names.iter().zip(entries).find(|(now, then)| now.as_bytes() != then.name());
            match differs {
                // Sorted, so the smaller one is missing on the other side.
                Some((now, then)) => Some(now.as_bytes().min(then.name())),
                None => names
                    .get(entries.len())
                    .map(|name| name.as_bytes())
                    .or_else(|| entries.get(names.len()).map(Entry::name)),
            }
        };
        if let Some(name) = came_or_went() {
            return Err(changed(name));
        }
        for (index, (entry, name)) in (listing.first..).zip(entries.iter().zip(&names)) {
            if index.is_multiple_of(TELL_EVERY) {
                self.tell()?;
            }
            let now = dir.stat_child(name).map_err(|error| SealError::vanished(&entry.path, error))?;
            let (now, then) = (Mark::of(&now), self.marks[index]);
            let is_same = match entry.kind {
                // The rest when it is entered: then it can be told what in it has changed.
                Kind::Directory => (now.id, now.file_type) == (then.id, then.file_type),
                _ => now == then,
            };
            if !is_same {
                return Err(SealError::Changed { path: entry.path.clone() });
            }
            if let Some(target) = &entry.target {
                let text = dir.read_link(name).map_err(|error| SealError::vanished(&entry.path, error))?;
                if text.as_bytes() != target.as_slice() {
                    return Err(SealError::Changed { path: entry.path.clone() });
                }
            }
        }
        // After the names were read: one that came before is among them, one that came since has changed the times.
        let now = dir.stat().map_err(|error| SealError::io(path, error))?;
        if Mark::of(&now) != listing.mark {
            return Err(SealError::Changed { path: path.to_vec() });
        }
        self.tell()
    }

    fn hand_in(&mut self, batch: Batch) -> Result<(), SealError> {
        let handed_in = self.hashers.hand_in(batch, &mut self.outcomes);
        self.take_in(handed_in)
    }

    fn tell(&self) -> Result<(), SealError> {
        self.hashers.tell().map_err(|fault| fault_at(b"", fault))
    }

    /// Notes what is hashed by now; a file's fault says more than that there was one.
    fn take_in(&mut self, outcome: Result<(), FileFault>) -> Result<(), SealError> {
        for Outcome { index, result } in self.outcomes.drain(..) {
            let entry = &mut self.entries[index];
            let (stat, sha256) = result.map_err(|fault| fault_at(&entry.path, fault))?;
            (entry.size, entry.mode, entry.links, entry.sha256) = (stat.size, stat.mode, stat.links, sha256);
            self.marks[index] = Mark::of(&stat);
        }
        outcome.map_err(|fault| fault_at(b"", fault))
    }
}

fn fault_at(path: &[u8], fault: FileFault) -> SealError {
    match fault {
        FileFault::Changed => SealError::Changed { path: path.to_vec() },
        FileFault::Stopped => SealError::Stopped,
        FileFault::Io(error) => SealError::io(path, error),
    }
}

/// An entry as it is without being opened.
fn leaf(dir: &Dir, name: &OsStr, path: Vec<u8>, stat: &Stat) -> Result<Entry, SealError> {
    let kind = match stat.file_type {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
    };
    let mut entry = Entry { path, kind, size: 0, mode: stat.mode, links: 1, sha256: Hash::of(b""), target: None };
    if kind == Kind::Symlink {
        let target = dir.read_link(name).map_err(|error| SealError::vanished(&entry.path, error))?;
        entry.size = target.as_bytes().len() as u64;
        entry.sha256 = Hash::of(target.as_bytes());
        entry.target = Some(target.as_bytes().to_vec());
    }
    Ok(entry)
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    // Of just the length needed: a tree has very many.
    let mut child = Vec::with_capacity(path.len() + 1 + name.len());
    child.extend_from_slice(path);
    if !path.is_empty() {
        child.push(b'/');
    }
    child.extend_from_slice(name);
    child
}
