//! Copies into directories of the agent's own, which a payload is shown: all of it or nothing, durable, and given up soon
//! where nobody wants it any more.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::progress::{Doing, Underway};
use super::{Fault, Runner};
use crate::ledger::lifecycle::Job;
use crate::manifest::{Manifest, Place, PlaceSource, scratch, staged};
use crate::seal::compare::{descend, split};
use crate::seal::{Progress, Tree, hash_tree};
use crate::sys::copy::{space_of, sync_file_system};
use crate::sys::dir::{self, Dir, FileType, is_absence, stat_file};
use crate::sys::kill_point;

/// How much is copied before somebody looks whether it is still wanted, in bytes. Whole blocks, so that file systems that
/// can share them do.
const CHUNK_BYTES: u64 = 64 << 20;
/// Jobs that hold copies beyond those that run, so that the next ones need not wait for theirs.
const COPIES_AHEAD: usize = 2;
/// How often a job that waits for its turn to copy looks.
const TURN_LOOK: Duration = Duration::from_millis(200);
/// What copies leave free for the ledger, logs and seals, in bytes; a twentieth of a small file system.
const RESERVE_BYTES: u64 = 256 << 20;

/// Ends the name of an empty directory among what is staged for a job: elsewhere there may be an unfinished copy of this
/// number, which nobody else would find.
const MARK: &str = ".begun";

/// A copy under way. Until [`Copy::finish`] it stands under another name, which is removed where it comes to nothing.
pub(super) struct Copy<'r> {
    runner: &'r Runner,
    job: &'r Arc<Job>,
    /// What is copied, for a person.
    what: String,
    place: PathBuf,
    partial: PathBuf,
    root: Dir,
    container: String,
    underway: Underway<'r>,
    done: Progress,
    is_finished: bool,
}

/// Why a file is not copied.
pub(super) enum NotCopied {
    /// It is not what it should be: what is there instead.
    Differs(String),
    /// Anything else.
    Fault(Fault),
}

impl<'r> Copy<'r> {
    /// An empty directory that is to stand at the job's `place`; what stood there is gone.
    pub(super) fn begin(runner: &'r Runner, job: &'r Arc<Job>, place: &Place<'_>, what: String) -> Result<Self, Fault> {
        let data = &runner.setup.data;
        let marks = data.join(staged(&job.job_id));
        let is_staged = matches!(place.source, PlaceSource::ArtifactsOf(_));
        let container = place.container.to_owned();
        let mark = (!is_staged).then(|| marks.join(format!("{}{MARK}", place.index)));
        let place = data.join(place.dir(&job.job_id));
        let partial = partial_of(&place);
        let made = || {
            DirBuilder::new().recursive(true).mode(0o750).create(mark.as_ref().unwrap_or(&marks))?;
            remove(&place)?;
            remove(&partial)?;
            DirBuilder::new().mode(0o755).create(&partial)?;
            let root = Dir::open(&partial)?;
            fs::set_permissions(root.proc_path(), Permissions::from_mode(0o755))?;
            Ok(root)
        };
        let root =
            made().map_err(|error| Fault::io("inputs", &format!("{} cannot be made", place.display()), &error))?;
        let underway = runner.begin(job, Doing::Copying);
        let done = Progress::default();
        Ok(Self { runner, job, what, place, partial, root, container, underway, done, is_finished: false })
    }

    /// Whether so many bytes fit, before any is written: half of what does not would only take the space of others, among
    /// them the ledger, again and again.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), Fault> {
        let space = File::open(&self.partial).and_then(|dir| space_of(&dir));
        match space.map_err(|error| self.fault(b"", &error))? {
            Some(space) if bytes.saturating_add((space.total / 20).min(RESERVE_BYTES)) > space.free => {
                let message = format!(
                    "{}: {} MiB are to be copied, and {} MiB are free below --data",
                    self.what,
                    bytes.div_ceil(1 << 20),
                    space.free >> 20
                );
                Err(Fault { disk_is_full: true, ..Fault::new("inputs", message) })
            }
            _ => Ok(()),
        }
    }

    /// Where it goes.
    pub(super) fn root(&self) -> &Dir {
        &self.root
    }

    /// The directory `path` of the copy; what is missing of it is made.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Dir, Fault> {
        let made = || match descend(&self.root, path) {
            Err(error) if is_absence(&error) => {
                let mut dir = self.root.try_clone()?;
                for name in path.split(|&byte| byte == b'/') {
                    dir = self.child(&dir, std::os::unix::ffi::OsStrExt::from_bytes(name))?;
                }
                Ok(dir)
            }
            found => found,
        };
        made().map_err(|error| self.fault(path, &error))
    }

    fn child(&self, dir: &Dir, name: &OsStr) -> io::Result<Dir> {
        match dir.open_child(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = dir.proc_path().join(name);
                DirBuilder::new().mode(0o755).create(&path)?;
                // The umask has no say in what a payload is shown.
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                dir.open_child(name)
            }
            found => found,
        }
    }

    /// Copies the regular file `name` of `from`, which should have `size` bytes, to `path`. Whether its content is right is for
    /// a hash of the copy to tell.
    pub(super) fn file(
        &mut self,
        from: &Dir,
        name: &OsStr,
        path: &[u8],
        size: u64,
        permissions: u32,
    ) -> Result<File, NotCopied> {
        let differs = |what: &str| Err(NotCopied::Differs(what.to_owned()));
        let to = self.directory(split(path).0).map_err(NotCopied::Fault)?;
        let fault = |error: &io::Error| NotCopied::Fault(self.fault(path, error));
        let stat = match from.stat_child(name) {
            Ok(stat) => stat,
            Err(error) if is_absence(&error) => return differs("nothing"),
            Err(error) => return Err(fault(&error)),
        };
        if stat.file_type != FileType::Regular {
            return differs(kind_of(stat.file_type));
        }
        if stat.size != size {
            return differs(&format!("a file of {} bytes", stat.size));
        }
        let changed = "a file that was another while it was copied";
        let source = match from.open_child_file(name) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return differs(changed),
            Err(error) => return Err(fault(&error)),
        };
        let opened = stat_file(&source).map_err(|error| fault(&error))?;
        if opened.id != stat.id || opened.file_type != FileType::Regular {
            return differs(changed);
        }
        let target = to.proc_path().join(split(path).1);
        let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target);
        let target = target.map_err(|error| fault(&error))?;
        let mut copied = 0;
        loop {
            if self.is_given_up() {
                return Err(NotCopied::Fault(Fault::abandoned()));
            }
            // One byte more than there should be shows that it has grown.
            let part = CHUNK_BYTES.min(size + 1 - copied);
            let read = io::copy(&mut (&source).take(part), &mut &target)
                .map_err(|error| NotCopied::Fault(self.fault(path, &error)))?;
            copied += read;
            self.tell(0, read);
            if read == 0 || copied > size {
                break;
            }
        }
        if copied != size {
            return differs(changed);
        }
        target
            .set_permissions(Permissions::from_mode(permissions))
            .map_err(|error| NotCopied::Fault(self.fault(path, &error)))?;
        self.tell(1, 0);
        kill_point::reached("file-copied");
        Ok(target)
    }

    /// The tree hash of the copy.
    pub(super) fn hash(&self, what: &str) -> Result<Tree, Fault> {
        let underway = self.runner.begin(self.job, Doing::HashingInputs);
        let tree = hash_tree(&self.root, &|done| underway.tell(what, done));
        tree.map_err(|error| Fault::of_seal("inputs", what, &error))
    }

    /// Makes it durable, and then makes it stand where it belongs.
    ///
    /// One sync of the whole file system: thousands of small files, each synced for itself, and each of their directories,
    /// would be as many commits of its journal. It waits for what others have written there, too.
    pub(super) fn finish(mut self) -> Result<(), Fault> {
        let above = self.place.parent().unwrap_or(&self.place);
        let finished = || {
            sync_file_system(&File::open(&self.partial)?)?;
            kill_point::reached("copy-synced");
            fs::rename(&self.partial, &self.place)?;
            File::open(above)?.sync_all()
        };
        finished().map_err(|error| self.fault(b"", &error))?;
        self.is_finished = true;
        Ok(())
    }

    /// For an error of the file system at `path` of the copy.
    pub(super) fn fault(&self, path: &[u8], error: &io::Error) -> Fault {
        let path = crate::seal::text::encode(path);
        Fault::io("inputs", &format!("{}: {path} cannot be copied", self.what), error)
    }

    /// Whether nobody wants the copy any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.runner.is_stopping() || self.runner.is_superseded(self.job)
    }

    fn tell(&mut self, files: u64, bytes: u64) {
        self.done = Progress { files: self.done.files + files, bytes: self.done.bytes + bytes };
        // Whether it is still wanted is asked before each piece.
        let _ = self.underway.tell(&self.container, self.done);
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        // A disk that is full must not stay so because of half a copy.
        if !self.is_finished
            && let Err(error) = remove(&self.partial)
        {
            log::warn!("{} is not removed: {error}", self.partial.display());
        }
    }
}

/// Whether a job is shown copies of the agent's own.
pub(super) fn is_shown_copies(manifest: &Manifest) -> bool {
    let is_copy = |source| matches!(source, PlaceSource::ArtifactsOf(_) | PlaceSource::CopyOf(_));
    manifest.places().iter().any(|place| is_copy(place.source))
}

/// Waits until few enough jobs hold copies: those of a thousand children of one job, made at once, might not fit where those
/// of the few that run do. `false`: the agent stops, or the job has ended.
pub(super) fn wait_for_turn(runner: &Runner, job: &Arc<Job>) -> bool {
    let given_up = || runner.has_ended(&job.job_id);
    loop {
        if runner.is_stopping() || given_up() {
            return false;
        }
        if hold(runner, job, runner.setup.workers + COPIES_AHEAD) {
            return true;
        }
        runner.note_waiting(&job.job_id, "copies of its inputs: other jobs that hold some run first");
        runner.pause(TURN_LOOK, &given_up);
    }
}

/// Notes that a job holds copies, if at most `holders_max` do.
pub(super) fn hold(runner: &Runner, job: &Job, holders_max: usize) -> bool {
    let mut holders = runner.copies.lock().unwrap_or_else(PoisonError::into_inner);
    holders.retain(|id| !runner.has_ended(id));
    if holders.contains(&job.job_id) {
        return true;
    }
    holders.len() < holders_max && holders.insert(job.job_id.clone())
}

/// Removes what is staged for a job, and what is left of other copies for it that were never finished.
pub(super) fn remove_all(data: &Path, job_id: &str) -> io::Result<()> {
    let marks = data.join(staged(job_id));
    for mark in fs::read_dir(&marks)? {
        let mark = mark?.file_name();
        if let Some(index) = mark.to_str().and_then(|name| name.strip_suffix(MARK)) {
            remove(&partial_of(&data.join(scratch(job_id)).join(index)))?;
        }
    }
    remove(&marks)
}

fn partial_of(place: &Path) -> PathBuf {
    let mut partial = place.to_owned().into_os_string();
    partial.push(".partial");
    partial.into()
}

/// Removes a directory of the agent's own, and never what is mounted in it.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    if let Err(error) = fs::symlink_metadata(path)
        && error.kind() == io::ErrorKind::NotFound
    {
        return Ok(());
    }
    if let Some(mounted) = dir::mounts_below(path)?.first() {
        return Err(io::Error::other(format!("something is mounted at {}; unmount it", mounted.display())));
    }
    fs::remove_dir_all(path)
}

/// For a person.
pub(super) fn kind_of(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "a file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symlink",
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharDevice | FileType::BlockDevice => "a device",
    }
}
