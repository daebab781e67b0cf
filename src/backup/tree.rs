//! The files' part of a copy. By descriptors only: nothing is followed, nothing that is mounted is entered, and a payload may
//! be at work in what is copied.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::vec;

use super::{BackupError, io_error};
use crate::manifest::{scratch, staged};
use crate::sys::copy::{make_fifo, make_socket, next_data, set_modified};
use crate::sys::dir::{Dir, FileType, Stat, leads_nowhere, stat_file};
use crate::sys::lock::BACKUP_LOCK;
use crate::verify::Progress;

/// Bytes copied between two looks at whether it is still wanted. Each such piece of a large file is made durable at once, so
/// that the last sync does not hold up the agent's by gigabytes.
const CHUNK_BYTES: u64 = 64 << 20;
/// Things left out that are named; the others are only counted.
const NAMED_MAX: u64 = 20;
/// Characters of a path that are told of, at most.
const SHOWN_MAX: usize = 512;
/// As deep as a tree may be that is hashed.
const MAX_DEPTH: usize = 4096;

/// Rooms whose every file an event may name. One that the operator has put elsewhere, by a mount or a symlink, is copied as
/// the agent sees it.
const VOUCHED: [&str; 3] = ["inputs", "logs", "seals"];

/// Why an entry is not copied.
enum Skip {
    /// It is not there any more, or not what it was.
    Gone,
    /// For a person.
    Because(String),
    Fault(io::Error),
}

impl From<io::Error> for Skip {
    fn from(error: io::Error) -> Self {
        // What is removed meanwhile no event names; whatever one does stays.
        if leads_nowhere(&error) { Self::Gone } else { Self::Fault(error) }
    }
}

/// A directory that is being copied.
struct Level {
    from: Dir,
    to: Dir,
    name: OsString,
    stat: Stat,
    names: vec::IntoIter<OsString>,
}

/// A copy, as far as it is.
pub(super) struct Replica<'r, 'p> {
    root: PathBuf,
    interrupted: &'r AtomicBool,
    note: &'r mut dyn FnMut(&str),
    progress: &'r mut Progress<'p>,
    /// Files that have another name, too, of the job at hand: where the first copy stands in its directory.
    links: HashMap<Link, PathBuf>,
    keeps_owners: bool,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) left_out: u64,
}

/// Two names of one file. An inode's number may be used again; not with the same times.
#[derive(PartialEq, Eq, Hash)]
struct Link {
    id: (u64, u64),
    size: u64,
    modified: (i64, i64),
}

impl<'r, 'p> Replica<'r, 'p> {
    pub(super) fn new(
        root: PathBuf,
        interrupted: &'r AtomicBool,
        note: &'r mut dyn FnMut(&str),
        progress: &'r mut Progress<'p>,
    ) -> Self {
        let (links, keeps_owners) = (HashMap::new(), true);
        Self { root, interrupted, note, progress, links, keeps_owners, files: 0, bytes: 0, left_out: 0 }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Copies everything of a data directory but the ledger, locks, binds, and what the agent makes anew.
    pub(super) fn rooms(&mut self, data: &Path) -> Result<(), BackupError> {
        let from = Dir::open(data).map_err(io_error(data))?;
        let to = Dir::open(&self.root).map_err(io_error(&self.root))?;
        let mut names = from.names().map_err(io_error(data))?;
        names.sort_unstable();
        let left: [&OsStr; 5] = [
            "wal".as_ref(),
            "LOCK".as_ref(),
            BACKUP_LOCK.as_ref(),
            "mnt".as_ref(),
            // Copies of parents' artifacts, which go in the middle of a backup; lost ones are made anew from the parents.
            "staged".as_ref(),
        ];
        names.retain(|name| !left.contains(&name.as_os_str()));
        let stat = from.stat().map_err(io_error(data))?;
        self.walk(Level { from, to, name: OsString::new(), stat, names: names.into_iter() }, data)?;
        // Nobody else may look into it, whoever may look into the original.
        let root = self.root.clone();
        self.own(&root, &stat).and_then(|()| set_modified(&root, stat.modified)).map_err(io_error(&root))
    }

    /// Depth first, with a stack of its own.
    fn walk(&mut self, top: Level, data: &Path) -> Result<(), BackupError> {
        let mut path = PathBuf::new();
        let mut levels = vec![top];
        while let Some(level) = levels.last_mut() {
            self.go_on()?;
            let Some(name) = level.names.next() else {
                let done = levels.pop().expect("just looked at");
                if let Some(above) = levels.last() {
                    self.attributes(&above.to, &done.name, &done.stat, FileType::Directory)
                        .map_err(io_error(&data.join(&path)))?;
                }
                path.pop();
                continue;
            };
            path.push(&name);
            let depth = levels.len();
            if depth == 2 {
                self.links.clear();
            }
            let level = levels.last().expect("just looked at");
            let entered = if is_unfinished(data, &path) {
                Err(Skip::Gone)
            } else if depth >= MAX_DEPTH {
                Err(Skip::Because("nested too deep".into()))
            } else {
                self.entry(level, &name, &path, depth)
            };
            match entered {
                Ok(Some(below)) => {
                    levels.push(below);
                    continue;
                }
                Ok(None) | Err(Skip::Gone) => {}
                Err(Skip::Because(why)) => self.leave_out(&path, &why),
                Err(Skip::Fault(error)) => return Err(fault(&data.join(&path), error)),
            }
            path.pop();
        }
        Ok(())
    }

    /// Copies an entry; a directory is only made, for the walk to go on in.
    fn entry(&mut self, level: &Level, name: &OsStr, path: &Path, depth: usize) -> Result<Option<Level>, Skip> {
        let (from, to) = (&level.from, &level.to);
        let is_room = depth == 1 && (VOUCHED.iter().any(|room| name == *room) || name == "scratch");
        let is_vouched = VOUCHED.iter().any(|room| path.starts_with(room));
        let denied = |error: io::Error| match error.kind() {
            // A payload may do that to its own; of what events name, nothing may be missing.
            io::ErrorKind::PermissionDenied if !is_vouched => Skip::Because(error.to_string()),
            io::ErrorKind::CrossesDevices => Skip::Fault(error),
            _ => error.into(),
        };
        let target = to.proc_path().join(name);
        let mut stat = from.stat_child(name).map_err(denied)?;
        if is_room && stat.file_type == FileType::Symlink {
            stat.file_type = FileType::Directory;
        }
        match stat.file_type {
            FileType::Directory => {
                let from =
                    if is_room { Dir::open(&from.proc_path().join(name)) } else { from.open_child_unmounted(name) };
                let from = from.map_err(denied)?;
                let names = from.names().map_err(denied)?.into_iter();
                let stat = from.stat().map_err(Skip::Fault)?;
                DirBuilder::new().mode(0o700).create(&target).map_err(Skip::Fault)?;
                let to = to.open_child(name).map_err(Skip::Fault)?;
                return Ok(Some(Level { from, to, name: name.to_owned(), stat, names }));
            }
            FileType::Regular => return self.file(from, name, to, path, &denied).map(|()| None),
            FileType::Symlink => symlink(from.read_link(name)?, &target).map_err(Skip::Fault)?,
            FileType::Fifo => make_fifo(&target, 0o600).map_err(Skip::Fault)?,
            FileType::Socket => make_socket(&target, 0o600).map_err(Skip::Fault)?,
            FileType::CharDevice | FileType::BlockDevice => return Err(Skip::Because("a device".into())),
        }
        self.attributes(to, name, &stat, stat.file_type).map_err(Skip::Fault)?;
        Ok(None)
    }

    fn file(
        &mut self,
        from: &Dir,
        name: &OsStr,
        to: &Dir,
        path: &Path,
        denied: &dyn Fn(io::Error) -> Skip,
    ) -> Result<(), Skip> {
        let source = from.open_child_file_unmounted(name).map_err(|error| match from.stat_child(name) {
            Ok(now) if now.file_type == FileType::Regular => denied(error),
            _ => Skip::Gone,
        })?;
        let stat = stat_file(&source).map_err(Skip::Fault)?;
        if stat.file_type != FileType::Regular {
            return Err(Skip::Gone);
        }
        let target = to.proc_path().join(name);
        let link = (stat.links > 1).then_some(Link { id: stat.id, size: stat.size, modified: stat.modified });
        if let Some(first) = link.as_ref().and_then(|link| self.links.get(link))
            // Where it cannot be had, as with a path that is too long, it is a copy.
            && fs::hard_link(self.root.join(first), &target).is_ok()
        {
            self.files += 1;
            return Ok(());
        }
        let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target).map_err(Skip::Fault)?;
        self.content(&source, stat.size, &copy).map_err(Skip::Fault)?;
        drop(copy);
        self.attributes(to, name, &stat, FileType::Regular).map_err(Skip::Fault)?;
        if let Some(link) = link {
            self.links.insert(link, path.to_owned());
        }
        self.files += 1;
        Ok(())
    }

    /// Copies so many bytes: what a file has had when it was opened. Holes stay holes; the kernel shares blocks where it can.
    fn content(&mut self, mut source: &File, size: u64, mut copy: &File) -> io::Result<()> {
        let is_sparse = source.metadata()?.blocks().saturating_mul(512) < size;
        let mut at = 0;
        while at < size {
            let end = if is_sparse {
                let Some(data) = next_data(source, at)? else { break };
                at = data.start.min(size);
                source.seek(SeekFrom::Start(at))?;
                copy.seek(SeekFrom::Start(at))?;
                data.end.min(size)
            } else {
                size
            };
            while at < end {
                let part = CHUNK_BYTES.min(end - at);
                let read = io::copy(&mut source.take(part), &mut copy)?;
                at += read;
                self.bytes += read;
                self.go_on().map_err(|_| io::ErrorKind::Interrupted)?;
                if read < part {
                    // It is shorter now; nobody vouches for a file that changes.
                    return Ok(());
                }
                if read == CHUNK_BYTES {
                    copy.sync_data()?;
                }
            }
        }
        if is_sparse { copy.set_len(size) } else { Ok(()) }
    }

    /// Gives an entry of a directory of the copy the owner, mode and time of the original.
    pub(super) fn attributes(&mut self, dir: &Dir, name: &OsStr, stat: &Stat, file_type: FileType) -> io::Result<()> {
        let path = dir.proc_path().join(name);
        self.own(&path, stat)?;
        if file_type != FileType::Symlink {
            // After the owner, whose change takes setuid away.
            fs::set_permissions(&path, Permissions::from_mode(stat.mode))?;
        }
        set_modified(&path, stat.modified)
    }

    /// Without the right to give files away, what the agent may read is its own.
    fn own(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        match lchown(path, Some(stat.uid), Some(stat.gid)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if self.keeps_owners {
                    self.keeps_owners = false;
                    (self.note)("owners of files that are not this user's are not kept; root would keep them");
                }
                Ok(())
            }
            other => other,
        }
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        self.left_out += 1;
        self.progress.clear();
        if self.left_out <= NAMED_MAX {
            let mut shown = format!("{path:?}");
            if let Some((end, _)) = shown.char_indices().nth(SHOWN_MAX) {
                shown.truncate(end);
                shown += "…";
            }
            (self.note)(&format!("{shown} is left out: {why}"));
        } else if self.left_out == NAMED_MAX + 1 {
            (self.note)("and more is left out, see the last lines");
        }
    }

    /// Shows how far it is; an error once the user has ended it.
    pub(super) fn go_on(&mut self) -> Result<(), BackupError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(BackupError::Interrupted);
        }
        let (files, bytes) = (self.files, self.bytes);
        self.progress.show(|| format!("copied {files} files, {} MiB", bytes >> 20));
        Ok(())
    }
}

fn fault(at: &Path, error: io::Error) -> BackupError {
    match error.kind() {
        io::ErrorKind::CrossesDevices => BackupError::Usage(format!(
            "{}: something is mounted there, and a backup enters no mounts; unmount it",
            at.display()
        )),
        io::ErrorKind::Interrupted => BackupError::Interrupted,
        _ => io_error(at)(error),
    }
}

/// What an agent is still writing under another name: evidence before it gets its own, and copies of inputs.
fn is_unfinished(data: &Path, path: &Path) -> bool {
    let parts: Vec<&str> = path.iter().take(4).map_while(OsStr::to_str).collect();
    match parts[..] {
        ["seals" | "inputs", name] => name.ends_with(".tmp"),
        ["logs", _, name] => name.ends_with(".telemetry.new"),
        // Such a name may also be a payload's own: the agent marks its copies elsewhere.
        [_, job, name] if path == scratch(job).join(name) => name
            .strip_suffix(".partial")
            .is_some_and(|index| data.join(staged(job)).join(format!("{index}.begun")).is_dir()),
        _ => false,
    }
}
