//! Directories that serve several jobs, one after the other: what a later job did there is no fault of an earlier one.
//!
//! Of paths only digests are kept, and only of those below a directory that several jobs name: a ledger may hold a million
//! jobs, each with a directory of its own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::content::{Content, Found, dir_below};
use super::report::{Excuse, Meter, Stop};
use crate::hash::Hash;
use crate::manifest::{Manifest, PlaceSource};
use crate::seal::tree::MAX_PATHS_BYTES;
use crate::sys::dir::{Dir, FileType};

/// Digests of files that are kept for further jobs of the same directory, at most.
const CONTENTS_MAX: usize = 1 << 19;
/// Listings that are kept, at most, and the bytes of paths of one that is.
const LISTINGS_MAX: usize = 4;
const LISTING_BYTES_KEPT_MAX: usize = 32 << 20;

/// A path of the host: the first half of its SHA-256.
type Key = [u8; 16];

fn key(path: &[u8]) -> Key {
    let Hash(digest) = Hash::of(path);
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

/// The directories above an absolute path, but for the root.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(at, byte)| *at > 0 && **byte == b'/').map(|(at, _)| &path[..at])
}

/// The directories of the host that a job mounts.
pub(super) fn host_dirs(manifest: &Manifest) -> Vec<Box<str>> {
    let of = |source| match source {
        PlaceSource::Host(path) => Some(path.into()),
        PlaceSource::Scratch | PlaceSource::CopyOf(_) | PlaceSource::ArtifactsOf(_) => None,
    };
    manifest.places().iter().filter_map(|place| of(place.source)).collect()
}

/// The directories that the jobs of a ledger mount.
#[derive(Default)]
pub(super) struct Dirs {
    /// How often each is mounted.
    counts: HashMap<Key, u32>,
    /// Those that hold one of them.
    above: HashSet<Key>,
}

impl Dirs {
    pub(super) fn add(&mut self, dir: &str) {
        let count = self.counts.entry(key(dir.as_bytes())).or_default();
        *count = count.saturating_add(1);
        if *count == 1 {
            self.above.extend(above(dir.as_bytes()).map(key));
        }
    }

    /// Whether another mount is this directory, lies in it or holds it.
    pub(super) fn is_shared(&self, dir: &[u8]) -> bool {
        let own = key(dir);
        self.counts.get(&own).is_some_and(|count| *count > 1)
            || self.above.contains(&own)
            || above(dir).any(|dir| self.counts.contains_key(&key(dir)))
    }
}

/// What a job's evidence says of a path.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Trace {
    Artifact = 1,
    Removed = 2,
    Input = 4,
}

/// What jobs that were sealed later than the one at hand, and those that have not ended, have to do with paths of the host.
#[derive(Default)]
pub(super) struct Others {
    traces: HashMap<Key, u8>,
    in_use: HashSet<Key>,
    contents: HashMap<Key, Content>,
    listings: VecDeque<(PathBuf, Rc<Listing>)>,
}

impl Others {
    /// A job that has not ended may write in this directory.
    pub(super) fn uses(&mut self, dir: &str) {
        self.in_use.insert(key(dir.as_bytes()));
    }

    /// A job that was sealed has this to say of a path; of all that are asked about afterwards it was sealed later.
    pub(super) fn note(&mut self, path: &[u8], trace: Trace) {
        *self.traces.entry(key(path)).or_default() |= trace as u8;
    }

    /// Why a missing or changed artifact at this path of the host is no fault, if so.
    pub(super) fn excuse_artifact(&self, path: &[u8]) -> Option<Excuse> {
        self.excuse(path, Trace::Artifact as u8 | Trace::Removed as u8)
    }

    /// Why an extra file is none.
    pub(super) fn excuse_extra(&self, path: &[u8]) -> Option<Excuse> {
        self.excuse(path, Trace::Artifact as u8 | Trace::Input as u8)
    }

    fn excuse(&self, path: &[u8], by: u8) -> Option<Excuse> {
        if self.traces.get(&key(path)).is_some_and(|traces| traces & by != 0) {
            return Some(Excuse::Superseded);
        }
        (!self.in_use.is_empty() && above(path).any(|dir| self.in_use.contains(&key(dir)))).then_some(Excuse::InUse)
    }

    /// What the file at this path was found to hold, when a later job was checked.
    pub(super) fn content(&self, path: &[u8]) -> Option<Content> {
        self.contents.get(&key(path)).copied()
    }

    pub(super) fn keep_content(&mut self, path: &[u8], content: Content) {
        if self.contents.len() < CONTENTS_MAX {
            self.contents.insert(key(path), content);
        }
    }

    /// The regular files in a directory; looked up where it is shared and was listed not long ago.
    pub(super) fn listing(
        &mut self,
        dir: &Path,
        open: &Dir,
        shared: bool,
        meter: &Meter<'_>,
    ) -> Result<Rc<Listing>, Stop> {
        if let Some((_, listing)) = self.listings.iter().find(|(known, _)| known == dir) {
            return Ok(listing.clone());
        }
        let listing = Rc::new(Listing::of(open, meter)?);
        if shared && listing.bytes <= LISTING_BYTES_KEPT_MAX {
            if self.listings.len() == LISTINGS_MAX {
                self.listings.pop_front();
            }
            self.listings.push_back((dir.to_owned(), listing.clone()));
        }
        Ok(listing)
    }
}

/// The regular files below a directory, relative to it, and what could not be looked into.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Vec<u8>>,
    pub(super) unreadable: Vec<(Vec<u8>, String)>,
    bytes: usize,
}

impl Listing {
    /// By descriptors; no symlink is followed. What comes or goes meanwhile is listed or not.
    fn of(root: &Dir, meter: &Meter<'_>) -> Result<Self, Stop> {
        let mut listing = Self::default();
        let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            meter.go_on()?;
            let look = || {
                let dir = dir_below(root, &path)?;
                let names = dir.names()?;
                Ok((dir, names))
            };
            let (dir, names) = match Found::of(look()) {
                Found::There(found) => found,
                Found::Absent => continue,
                Found::Unreadable(error) => {
                    listing.unreadable.push((path, error.to_string()));
                    continue;
                }
            };
            for name in names {
                let below = joined(&path, name.as_bytes());
                match dir.stat_child(OsStr::new(&name)).map(|stat| stat.file_type) {
                    Ok(FileType::Directory) => todo.push(below),
                    Ok(FileType::Regular) => {
                        listing.bytes += below.len();
                        listing.files.push(below);
                    }
                    // It went meanwhile, or is nothing that is sealed.
                    Ok(_) | Err(_) => continue,
                }
                if listing.bytes > MAX_PATHS_BYTES {
                    listing.unreadable.push((Vec::new(), "it holds more files than can be listed".into()));
                    return Ok(listing);
                }
            }
        }
        listing.files.sort_unstable();
        Ok(listing)
    }
}

/// A path and what lies below it; either may be empty.
pub(super) fn joined(path: &[u8], below: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if path.is_empty() || below.is_empty() { b"" } else { b"/" };
    [path, slash, below].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_shared_with_whatever_is_it_lies_in_it_or_holds_it() {
        let mut dirs = Dirs::default();
        for dir in ["/d/one", "/d/two", "/d/two", "/e/f/g", "/e", "/d/onemore"] {
            dirs.add(dir);
        }
        for (dir, shared) in
            [("/d/one", false), ("/d/onemore", false), ("/d/two", true), ("/e/f/g", true), ("/e", true)]
        {
            assert_eq!(dirs.is_shared(dir.as_bytes()), shared, "{dir}");
        }
    }

    #[test]
    fn excuses_go_by_what_the_later_job_says_of_the_path() {
        let mut others = Others::default();
        others.uses("/u");
        for (path, trace) in [("/d/a", Trace::Artifact), ("/d/r", Trace::Removed), ("/d/i", Trace::Input)] {
            others.note(path.as_bytes(), trace);
        }
        let superseded = Some(Excuse::Superseded);
        for (path, artifact, extra) in [
            ("/d/a", superseded, superseded),
            ("/d/r", superseded, None),
            ("/d/i", None, superseded),
            ("/d/x", None, None),
            ("/u/v/w", Some(Excuse::InUse), Some(Excuse::InUse)),
            ("/uv/w", None, None),
        ] {
            assert_eq!(others.excuse_artifact(path.as_bytes()), artifact, "{path}");
            assert_eq!(others.excuse_extra(path.as_bytes()), extra, "{path}");
        }
    }
}
