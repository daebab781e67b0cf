//! Where a copy goes. `DEST.partial` holds a lock and, in `data`, the copy until it is whole; then that is renamed to DEST. So
//! a DEST that is there is complete, whenever the run that made it was killed.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{BackupError, io_error};
use crate::sys::copy::sync_file_system;
use crate::sys::dir::{Dir, FileType, mounts_below};
use crate::sys::kill_point;
use crate::sys::lock::{BACKUP_LOCK, Guard, backup_guard};

/// Below `DEST.partial`: what becomes DEST.
const COPY: &str = "data";

/// Directories of a data directory that may lie elsewhere, by a mount or a symlink, and are copied all the same.
const ROOMS: [&str; 5] = ["inputs", "logs", "scratch", "seals", "wal"];

/// A copy that is being made. Dropped before [`Destination::finish`], it is removed.
pub(super) struct Destination {
    dest: PathBuf,
    partial: PathBuf,
    /// Keeps another run from taking it for one that was killed.
    _lock: Guard,
    /// The copy's directory, open from the beginning: what could not be written back since then its sync tells, also where
    /// somebody else's sync of that file system was told before.
    opened: Option<File>,
    is_finished: bool,
}

/// A place that a copy may go to: its path, and the directory that it lies in.
pub(super) struct Checked {
    dest: PathBuf,
    parent: PathBuf,
}

/// Looks whether a copy of `data` may go to `dest`; changes nothing.
pub(super) fn check(data: &Path, dest: &Path) -> Result<Checked, BackupError> {
    let shown = dest.display();
    let usage = |message: String| Err(BackupError::Usage(message));
    let Some(name) = dest.file_name() else {
        return usage(format!("{shown}: give the copy a name, such as {}", dest.join("hackbrain-backup").display()));
    };
    let above = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = match above.canonicalize() {
        Err(error) => return usage(format!("{}: {error}; make that directory first", above.display())),
        Ok(parent) => parent,
    };
    let dest = parent.join(name);
    let opened = Dir::open(&parent).map_err(io_error(&parent))?;
    let data_dir = Dir::open(data).map_err(io_error(data))?;
    let data_id = data_dir.stat().map_err(io_error(data))?.id;
    if lies_in(&opened, data_id).map_err(io_error(&parent))? {
        return usage(format!("{shown} would lie in the data directory, {}; name a place elsewhere", data.display()));
    }
    let in_no_room = |dir: &Dir| {
        // A copy in what it is made from would be copied into itself, again and again.
        for room in ROOMS.map(|name| data.join(name)) {
            let Ok(id) = Dir::open(&room).and_then(|dir| dir.stat()).map(|stat| stat.id) else { continue };
            if lies_in(dir, id).map_err(io_error(&parent))? {
                let of = room.display();
                let message = format!("{shown} would lie in {of}, which is to be copied; name a place elsewhere");
                return Err(BackupError::Usage(message));
            }
        }
        Ok(())
    };
    in_no_room(&opened)?;
    let stat = match opened.stat_child(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Checked { dest, parent }),
        stat => stat.map_err(io_error(&dest))?,
    };
    if stat.file_type != FileType::Directory {
        return usage(format!("{shown} is there, and is no directory; name one that is not there, or an empty one"));
    }
    let found = Dir::open(&dest).map_err(io_error(&dest))?;
    if found.stat().map_err(io_error(&dest))?.id == data_id {
        return usage(format!("{shown} is the data directory itself; name a place elsewhere"));
    }
    in_no_room(&found)?;
    if lies_in(&data_dir, stat.id).map_err(io_error(data))? {
        return usage(format!("the data directory, {}, lies in {shown}; name a place elsewhere", data.display()));
    }
    if mounts_below(&dest).map_err(io_error(&dest))?.first() == Some(&dest) {
        return usage(format!(
            "{shown} is a mount point, which no copy can be renamed to; name a directory in it, such as {}",
            dest.join("hackbrain-backup").display()
        ));
    }
    if !found.names().map_err(io_error(&dest))?.is_empty() {
        return usage(format!("{shown} is not empty; name a directory that is not there, or an empty one"));
    }
    Ok(Checked { dest, parent })
}

/// Whether `dir` is the directory of that identity, or lies somewhere below it.
fn lies_in(dir: &Dir, id: (u64, u64)) -> io::Result<bool> {
    let mut dir = dir.try_clone()?;
    loop {
        let here = dir.stat()?.id;
        if here == id {
            return Ok(true);
        }
        dir = dir.open_parent()?;
        if dir.stat()?.id == here {
            return Ok(false);
        }
    }
}

impl Checked {
    /// Makes `DEST.partial`; what a run that was killed has left there goes.
    pub(super) fn begin(self) -> Result<Destination, BackupError> {
        let Self { dest, parent } = self;
        let mut name = dest.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = parent.join(name);
        let is_left_over = match DirBuilder::new().mode(0o700).create(&partial) {
            Ok(()) => false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => true,
            Err(error) => return Err(io_error(&partial)(error)),
        };
        if is_left_over && !is_ours(&partial).map_err(io_error(&partial))? {
            return Err(BackupError::Usage(format!(
                "{} is there, and is not what a killed backup leaves; move it away, or name another DEST",
                partial.display()
            )));
        }
        let Some(lock) = backup_guard(&partial, true).map_err(io_error(&partial))? else {
            return Err(BackupError::InUse(format!("another backup to {} is being made", dest.display())));
        };
        let mut made = Destination { dest, partial, _lock: lock, opened: None, is_finished: false };
        let copy = made.copy();
        if is_left_over {
            remove(&copy).map_err(io_error(&copy))?;
        }
        DirBuilder::new().mode(0o700).create(&copy).map_err(io_error(&copy))?;
        made.opened = Some(File::open(&copy).map_err(io_error(&copy))?);
        Ok(made)
    }
}

impl Destination {
    /// The directory that becomes DEST, empty at first.
    pub(super) fn copy(&self) -> PathBuf {
        self.partial.join(COPY)
    }

    /// Makes the copy durable, and then makes it stand where it belongs. One sync of the whole file system: each of very many
    /// files and directories synced for itself would be as many commits of its journal, which the agent may share.
    pub(super) fn finish(mut self) -> Result<(), BackupError> {
        let copy = self.copy();
        let above = self.dest.parent().unwrap_or(Path::new("/")).to_owned();
        let sync = |path: &Path| File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error(path));
        self.opened.as_ref().map_or(Ok(()), sync_file_system).map_err(io_error(&copy))?;
        kill_point::reached("backup-synced");
        fs::rename(&copy, &self.dest).map_err(io_error(&self.dest))?;
        self.is_finished = true;
        sync(&above)?;
        kill_point::reached("backup-renamed");
        // What is left of it holds nothing, and its name tells what it was.
        let _ = remove(&self.partial);
        Ok(())
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // The lock goes last: another run to the same DEST must not write what is still being removed.
        let removed = |copy: &Path| {
            remove(copy)?;
            kill_point::reached("backup-removed");
            remove(&self.partial)
        };
        if !self.is_finished
            && let Err(error) = removed(&self.copy())
        {
            log::warn!("{} is not removed: {error}; the next backup to the same DEST does so", self.partial.display());
        }
    }
}

/// Whether `partial` holds nothing, or what a backup makes there. A data directory has other names in it.
fn is_ours(partial: &Path) -> io::Result<bool> {
    if !fs::symlink_metadata(partial)?.is_dir() {
        return Ok(false);
    }
    let names: Vec<OsString> = Dir::open(partial)?.names()?;
    let has_lock = names.iter().any(|name| name == BACKUP_LOCK);
    let is_known = |name: &OsString| name == BACKUP_LOCK || name == COPY;
    Ok(names.is_empty() || (has_lock && names.iter().all(is_known)))
}

/// Removes a directory with all that is in it, whatever its modes, but for what is mounted there.
fn remove(path: &Path) -> io::Result<()> {
    if let Err(error) = fs::symlink_metadata(path) {
        return if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) };
    }
    if let Some(mounted) = mounts_below(path)?.first() {
        return Err(io::Error::other(format!("something is mounted at {}; unmount it", mounted.display())));
    }
    let above = Dir::open(path.parent().unwrap_or(Path::new("/")))?;
    above.remove_tree(path.file_name().unwrap_or_default()).1
}
