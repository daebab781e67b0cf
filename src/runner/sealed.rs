//! What jobs have sealed, opened where it lies and compared with its digest. Only descriptors are used, and nothing is
//! followed: what was sealed was reached so, too.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::mounts::MountPolicy;
use crate::hash::Hash;
use crate::manifest::{Manifest, PlaceSource};
use crate::rejection::Rejection;
use crate::sys::dir::{Dir, FileType, Stat, stat_file};

pub use crate::seal::Artifact;
pub use crate::seal::listing::{Found, Listing, find, inputs_path, list_path, seal_path};
pub use crate::seal::text::encode as path_text;

/// Digests that are remembered.
const VERIFIED_MAX: usize = 1024;
/// A file changed this recently may change again without a new time: clocks of file systems tick, some by the second.
const SETTLED_SECONDS: i64 = 3;
/// How much is read at once, in bytes.
const PIECE_BYTES: usize = 256 << 10;
/// How often whoever waits for another's digest of the same file looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(500);

/// What tells that a file is still the same: device and inode, bytes, times of the last change of content and of
/// attributes. Reading changes none of these.
pub type Identity = ((u64, u64), u64, (i64, i64), (i64, i64));

/// A regular file, held open, and what it was when it was opened.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    stat: Stat,
}

impl OpenFile {
    /// One of the agent's own files.
    ///
    /// # Errors
    /// What `open` gives; `InvalidData` where it is no regular file.
    pub fn own(path: &Path) -> io::Result<Self> {
        Self::new(File::open(path)?)
    }

    fn new(file: File) -> io::Result<Self> {
        let stat = stat_file(&file)?;
        if stat.file_type != FileType::Regular {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
        }
        Ok(Self { file, stat })
    }

    /// Bytes, when it was opened.
    pub fn size(&self) -> u64 {
        self.stat.size
    }

    /// What it was when it was opened.
    pub fn identity(&self) -> Identity {
        identity(&self.stat)
    }

    /// Whether it is as it was when it was opened.
    ///
    /// # Errors
    /// What `fstat` gives.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(identity(&stat_file(&self.file)?) == self.identity())
    }

    /// Reads at `offset`; 0 at the end.
    ///
    /// # Errors
    /// What `pread` gives.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match self.file.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    /// The SHA-256 of its content; `None` where `keep_on`, asked now and then, says no.
    ///
    /// # Errors
    /// What reading gives; `InvalidData` where it changed meanwhile, for which there is no digest.
    pub fn digest(&self, keep_on: &dyn Fn() -> bool) -> io::Result<Option<Hash>> {
        let (mut hasher, mut at, mut pieces) = (Sha256::new(), 0, 0);
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = self.read_at(&mut buffer, at)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            at += read as u64;
            pieces += 1;
            if at > self.stat.size {
                // Somebody appends to it, perhaps as fast as it is read.
                break;
            }
            if pieces % 64 == 0 && !keep_on() {
                return Ok(None);
            }
        }
        if at != self.stat.size || !self.is_unchanged()? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is being changed"));
        }
        Ok(Some(Hash::finish(hasher)))
    }
}

fn identity(stat: &Stat) -> Identity {
    (stat.id, stat.size, stat.modified, stat.changed)
}

/// Why there is no sealed file to open.
#[derive(Debug)]
pub enum Absent {
    /// Its directory may not be opened now: 403 or 503, as [`MountPolicy::check`] says.
    Refused(Rejection),
    /// What is there instead of it, for a person.
    Gone(&'static str),
    /// It cannot be reached or read.
    Failed(io::Error),
}

/// A job's writable directories, each opened when it is first asked for, and held.
#[derive(Debug)]
pub struct SealedDirs {
    mounts: Arc<MountPolicy>,
    places: Vec<WritablePlace>,
    /// The directory that was opened last: neighbours in a seal are often neighbours on disk.
    last: Option<(usize, Vec<u8>, Dir)>,
}

#[derive(Debug)]
struct WritablePlace {
    container: String,
    dir: PathBuf,
    own: bool,
    opened: Option<Dir>,
}

impl SealedDirs {
    /// Opens nothing yet.
    pub fn new(mounts: Arc<MountPolicy>, job_id: &str, manifest: &Manifest) -> Self {
        let places = manifest.places();
        let writable = places.iter().filter(|place| !place.read_only).map(|place| WritablePlace {
            container: place.container.to_owned(),
            dir: place.dir(job_id),
            own: !matches!(place.source, PlaceSource::Host(_)),
            opened: None,
        });
        Self { mounts, places: writable.collect(), last: None }
    }

    /// The same, with what is open; nothing is left behind in `self`.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self { mounts: self.mounts.clone(), places: std::mem::take(&mut self.places), last: self.last.take() }
    }

    /// Whether `path`, inside the container, lies in a directory of the agent's own.
    pub fn is_own(&self, path: &[u8]) -> bool {
        self.places.iter().any(|place| {
            let below = path.strip_prefix(place.container.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"));
            place.own && below
        })
    }

    /// Bytes of the regular file at `path`, inside the container. It is not opened.
    ///
    /// # Errors
    /// [`Absent`].
    pub fn size(&mut self, path: &[u8]) -> Result<u64, Absent> {
        let (dir, name) = self.parent(path)?;
        regular(dir, name).map(|stat| stat.size)
    }

    /// Opens the regular file at `path`, inside the container.
    ///
    /// # Errors
    /// [`Absent`].
    pub fn open(&mut self, path: &[u8]) -> Result<OpenFile, Absent> {
        let (dir, name) = self.parent(path)?;
        let listed = regular(dir, name)?;
        let file = dir.open_child_file(name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Absent::Gone("nothing"),
            _ => Absent::Failed(error),
        })?;
        let stat = stat_file(&file).map_err(Absent::Failed)?;
        // Put in its place between the two looks; it may be something that must not be read.
        if stat.id != listed.id || stat.file_type != FileType::Regular {
            return Err(Absent::Gone("another file at each look"));
        }
        Ok(OpenFile { file, stat })
    }

    /// The directory that holds `path`, and its name there.
    fn parent<'d, 'p>(&'d mut self, path: &'p [u8]) -> Result<(&'d Dir, &'p OsStr), Absent> {
        let below = |place: &WritablePlace| {
            path.strip_prefix(place.container.as_bytes())?.strip_prefix(b"/").filter(|rest| !rest.is_empty())
        };
        // No mount lies in another one of the same job.
        let found = self.places.iter().enumerate().find_map(|(index, place)| Some((index, below(place)?)));
        let (index, relative) = found.ok_or(Absent::Gone("no writable mount"))?;
        let end = relative.iter().rposition(|&byte| byte == b'/');
        let (above, name) = end.map_or((&b""[..], relative), |end| (&relative[..end], &relative[end + 1..]));
        let known = matches!(&self.last, Some((place, path, _)) if *place == index && path == above);
        if !known {
            let mut dir = self.places[index].open(&self.mounts)?.try_clone().map_err(Absent::Failed)?;
            for component in above.split(|&byte| byte == b'/').filter(|component| !component.is_empty()) {
                // Refuses a symlink as no directory.
                dir = dir.open_child(OsStr::from_bytes(component)).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => Absent::Gone("nothing"),
                    io::ErrorKind::NotADirectory => Absent::Gone("no directory, or a symlink to one, above it"),
                    _ => Absent::Failed(error),
                })?;
            }
            self.last = Some((index, above.to_vec(), dir));
        }
        let (_, _, dir) = self.last.as_ref().expect("it was found or put there");
        Ok((dir, OsStr::from_bytes(name)))
    }
}

impl WritablePlace {
    fn open(&mut self, mounts: &MountPolicy) -> Result<&Dir, Absent> {
        if self.opened.is_none() {
            let checked = if self.own {
                mounts.check_own(&self.dir).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => Absent::Gone("nothing: the job's own directory was removed"),
                    _ => Absent::Failed(error),
                })?
            } else {
                // A manifest's paths are UTF-8.
                let host = self.dir.to_str().unwrap_or_default();
                mounts.check(host).map_err(|rejection| match rejection.code {
                    "mount_missing" => Absent::Gone("nothing: the mounted directory is gone"),
                    "mount_not_directory" => Absent::Gone("nothing: no directory is where the mounted one was"),
                    "mount_unreadable" => Absent::Failed(io::Error::other(rejection.message)),
                    _ => Absent::Refused(Rejection { field: None, ..rejection }),
                })?
            };
            self.opened = Some(checked.dir().try_clone().map_err(Absent::Failed)?);
        }
        Ok(self.opened.as_ref().expect("opened above"))
    }
}

fn regular(dir: &Dir, name: &OsStr) -> Result<Stat, Absent> {
    let stat = dir.stat_child(name).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Absent::Gone("nothing"),
        _ => Absent::Failed(error),
    })?;
    match stat.file_type {
        FileType::Regular => Ok(stat),
        FileType::Directory => Err(Absent::Gone("a directory")),
        FileType::Symlink => Err(Absent::Gone("a symlink")),
        FileType::Fifo => Err(Absent::Gone("a fifo")),
        FileType::Socket => Err(Absent::Gone("a socket")),
        FileType::CharDevice | FileType::BlockDevice => Err(Absent::Gone("a device")),
    }
}

/// Digests of files as they were: whoever asks for a large file piece by piece has it hashed once.
#[derive(Debug, Default)]
pub struct Verified {
    known: Mutex<Known>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    digests: VecDeque<(Identity, Hash)>,
    /// What somebody is hashing now: others wait for that.
    busy: Vec<Identity>,
}

impl Verified {
    /// The SHA-256 of a file; `None` where `keep_on` says no.
    ///
    /// # Errors
    /// As [`OpenFile::digest`].
    pub fn digest(&self, file: &OpenFile, keep_on: &dyn Fn() -> bool) -> io::Result<Option<Hash>> {
        let identity = file.identity();
        let mut known = self.lock();
        loop {
            if let Some((_, hash)) = known.digests.iter().find(|(other, _)| *other == identity) {
                return Ok(Some(*hash));
            }
            if !known.busy.contains(&identity) {
                break;
            }
            known = self.done.wait_timeout(known, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            if !keep_on() {
                return Ok(None);
            }
        }
        known.busy.push(identity);
        drop(known);
        let _turn = Turn { verified: self, identity };
        let digest = file.digest(keep_on)?;
        if let Some(hash) = digest.filter(|_| is_settled(&file.stat)) {
            let mut known = self.lock();
            known.digests.truncate(VERIFIED_MAX - 1);
            known.digests.push_front((identity, hash));
        }
        Ok(digest)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // No invariant spans a panic in the few lines that hold it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a turn however it ends.
struct Turn<'v> {
    verified: &'v Verified,
    identity: Identity,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.verified.lock().busy.retain(|busy| *busy != self.identity);
        self.verified.done.notify_all();
    }
}

/// Whether the file's times will tell of its next change.
fn is_settled(stat: &Stat) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    now - stat.changed.0.max(stat.modified.0) >= SETTLED_SECONDS
}
