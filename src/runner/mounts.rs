//! Which host directories a job may mount, and how they stay what they were when they were checked. Nothing else touches a
//! path that a user gave.
//!
//! Invariant: between [`MountPolicy::check`] and the container's start only the descriptor is used. Swapping the path for a
//! symlink in between, which a path-based engine follows, therefore changes nothing.

use crate::rejection::Rejection;
use crate::sys::dir::{self, Dir, FileType, Stat};
use crate::sys::place::Place;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// Below the data directory: where sources are bound, `<container>/<index>`.
const BIND_DIR: &str = "mnt";
/// Deepest directory that is walked up from; deeper than PATH_MAX allows to name.
const MAX_ANCESTORS: usize = 4096;
/// A root here would open the kernel's or the engine's own controls to every user.
const FORBIDDEN_ROOTS: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Roots that would hold what rules the host, directly or as sockets of services.
const FORBIDDEN_AS_ROOT: [&str; 2] = ["/", "/run"];
/// Where container engines listen, besides `DOCKER_HOST`: whoever can write there rules the host.
const ENGINE_SOCKETS: [&str; 3] =
    ["/run/docker.sock", "/run/containerd/containerd.sock", "/run/docker/containerd/containerd.sock"];

/// How a mount is kept from being swapped after it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// The checked descriptor is bind-mounted below the data directory; the engine gets that path. Needs CAP_SYS_ADMIN.
    PrivateBind,
    /// The engine gets the path itself; every directory above it may be written by root and the agent's user only.
    TrustedAncestors,
}

impl Protection {
    /// Stable text for the ledger and `/api/node`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PrivateBind => "private_bind",
            Self::TrustedAncestors => "trusted_ancestors",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PrivateBind => "private bind mounts of the checked directories",
            Self::TrustedAncestors => "paths whose ancestors only root and the agent's user can write",
        })
    }
}

/// The rules for host directories. One for the agent's life, shared by its threads.
#[derive(Debug)]
pub struct MountPolicy {
    roots: Vec<Root>,
    data: Dir,
    data_dir: PathBuf,
    /// Directories in which a container engine listens, or may come to.
    engine_dirs: Vec<PathBuf>,
    protection: Protection,
}

#[derive(Debug)]
struct Root {
    /// As the operator wrote it, made absolute; users write their paths the same way.
    given: PathBuf,
    /// Without symlinks.
    canonical: PathBuf,
    dir: Dir,
}

/// A directory that may be mounted, held open.
#[derive(Debug)]
pub struct CheckedMount {
    dir: Dir,
    stat: Stat,
    /// One of the agent's own directories, not a user's.
    own: bool,
}

impl CheckedMount {
    /// The directory itself. Its submounts are visible through it; through a [`BoundMount`] they are not.
    pub fn dir(&self) -> &Dir {
        &self.dir
    }

    /// Whether one is the other or lies below it.
    ///
    /// # Errors
    /// 503 `mount_unavailable`.
    pub fn overlaps(&self, other: &Self) -> Result<bool, Rejection> {
        touches(&self.dir, &other.dir).map_err(|error| {
            reject(503, "mount_unavailable", format!("the directories of mount_spec cannot be compared now: {error}"))
        })
    }

    /// Device and inode number.
    pub fn id(&self) -> (u64, u64) {
        self.stat.id
    }

    /// User and group that own the directory: whom the payload runs as.
    pub fn owner(&self) -> (u32, u32) {
        (self.stat.uid, self.stat.gid)
    }
}

/// A source that the engine can be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundMount {
    /// What the engine mounts. Free of `,`, `:`, `"` and control characters.
    pub path: PathBuf,
    /// Whether the payload may not write; the engine must be told as well.
    pub read_only: bool,
}

impl BoundMount {
    /// Opens what the payload sees, to hash it.
    ///
    /// # Errors
    /// What `open` gives, e.g. after [`MountPolicy::release`].
    pub fn open(&self) -> io::Result<Dir> {
        Dir::open(&self.path)
    }
}

impl MountPolicy {
    /// Opens every root and the data directory; all of them must exist.
    ///
    /// # Errors
    /// A message for the operator that names the directory: missing, not a directory, `/`, `/run`, or below `/proc`, `/sys`, `/dev`,
    /// the data directory or below it, characters the engine's `--mount` cannot carry; or a kernel without `openat2`.
    pub fn new(roots: &[PathBuf], data_dir: &Path) -> io::Result<Self> {
        let protection = if dir::may_mount()? { Protection::PrivateBind } else { Protection::TrustedAncestors };
        Self::with_protection(roots, data_dir, protection)
    }

    fn with_protection(roots: &[PathBuf], data_dir: &Path, protection: Protection) -> io::Result<Self> {
        let data_dir = named(data_dir, "data directory", fs::canonicalize(data_dir))?;
        check_characters(&data_dir, "data directory")?;
        let data = named(&data_dir, "data directory", Dir::open(&data_dir))?;
        data.open_beneath(Path::new(".")).map_err(|error| {
            io::Error::new(error.kind(), format!("safe mounts need openat2 (Linux 5.6 or newer): {error}"))
        })?;
        let roots = roots.iter().map(|root| Root::open(root, &data)).collect::<io::Result<_>>()?;
        let host = std::env::var("DOCKER_HOST").unwrap_or_default();
        let sockets = host.strip_prefix("unix://").into_iter().chain(ENGINE_SOCKETS);
        let engine_dirs = sockets.filter_map(|socket| Path::new(socket).parent()).map(Path::to_owned).collect();
        Ok(Self { roots, data, data_dir, engine_dirs, protection })
    }

    /// Which protection is in force.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Opens the directory `host` if a job may mount it.
    ///
    /// # Errors
    /// 403 `mount_outside_roots`, `mount_symlink`, `mount_of_data_dir`, `mount_of_engine`, `mount_unprotected`; 400 `invalid_mount`,
    /// `mount_missing`, `mount_not_directory`, `mount_unreadable`; 503 `mount_unavailable` for an I/O error. The field is
    /// always `mount_spec`.
    pub fn check(&self, host: &str) -> Result<CheckedMount, Rejection> {
        let plain = |component: &str| !matches!(component, "" | "." | "..");
        if !host.strip_prefix('/').is_some_and(|relative| relative.split('/').all(plain)) {
            return Err(reject(
                400,
                "invalid_mount",
                format!("{host:?} must be absolute, without `.`, `..` and empty components"),
            ));
        }
        let (root, relative) = self.root_of(Path::new(host)).ok_or_else(|| self.outside(host))?;
        let dir = root.dir.open_beneath(relative).map_err(|error| diagnose(root, relative, &error))?;
        let stat = dir.stat().map_err(|error| unavailable(Path::new(host), &error))?;
        let checked = CheckedMount { dir, stat, own: false };

        if touches(&checked.dir, &self.data).map_err(|error| unavailable(Path::new(host), &error))? {
            return Err(reject(
                403,
                "mount_of_data_dir",
                format!("{host:?} is, holds or lies in the agent's data directory; mount another directory"),
            ));
        }
        if let Some(engine_dir) = self.engine_dirs.iter().find(|engine_dir| {
            Dir::open(engine_dir).is_ok_and(|dir| is_at_or_below(&dir, checked.stat.id).unwrap_or(true))
        }) {
            return Err(reject(
                403,
                "mount_of_engine",
                format!(
                    "{host:?} is or holds {engine_dir:?}, where a container engine listens, and whoever reaches that rules \
                     the host; mount another directory"
                ),
            ));
        }
        if self.protection == Protection::TrustedAncestors {
            let fault = unprotected(&checked.dir).map_err(|error| unavailable(Path::new(host), &error))?;
            if let Some(fault) = fault {
                let message = format!("{host:?}: {fault}; take that away, or run the agent with the right to mount");
                return Err(reject(403, "mount_unprotected", message));
            }
        }
        Ok(checked)
    }

    /// The path of `host` without the symlinks that an operator's root may hold: the name by which jobs share a directory,
    /// whether it can be opened or not.
    pub fn canonical(&self, host: &str) -> PathBuf {
        let found = self.root_of(Path::new(host));
        found.map_or_else(|| host.into(), |(root, relative)| root.canonical.join(relative))
    }

    /// Opens the directory `host`, refusing only what cannot be opened without following symlinks: for telling whether two
    /// jobs name the same one, never for mounting it.
    pub fn look_up(&self, host: &str) -> Option<Dir> {
        let (root, relative) = self.root_of(Path::new(host))?;
        root.dir.open_beneath(relative).ok()
    }

    /// Opens one of the agent's own directories, `relative` to the data directory: a scratch workspace.
    ///
    /// # Errors
    /// What `openat2` gives; symlinks are refused here too.
    pub fn check_own(&self, relative: &Path) -> io::Result<CheckedMount> {
        let dir = self.data.open_beneath(relative)?;
        let stat = dir.stat()?;
        Ok(CheckedMount { dir, stat, own: true })
    }

    /// Where the mount number `index` of `container` is bound.
    pub fn place(&self, container: &str, index: usize) -> PathBuf {
        self.data_dir.join(BIND_DIR).join(container).join(index.to_string())
    }

    /// Makes `checked` available to the engine. `at` is a [`MountPolicy::place`]; what was bound there before is let go.
    /// A mount outlives the agent: it ends with [`MountPolicy::release`], or with the host.
    ///
    /// # Errors
    /// `InvalidInput` for another `at`; what `mount` gives; `PermissionDenied` where an ancestor has become writable for others.
    pub fn bind(&self, checked: &CheckedMount, at: &Path, read_only: bool) -> io::Result<BoundMount> {
        let container = at.parent().unwrap_or(at);
        let index = at.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        if !self.is_container_dir(container) || index.is_none_or(|index: usize| container.join(index.to_string()) != at)
        {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{at:?} is no place for a mount")));
        }
        if self.protection == Protection::TrustedAncestors {
            return self.bind_nothing(checked, read_only);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(at)?;
        for mounted in dir::mounts_below(at)?.iter().rev() {
            dir::unmount(mounted)?;
        }
        dir::bind_mount(&checked.dir, at, read_only)?;
        let seen = Dir::open(at)?.stat()?;
        if seen.id != checked.stat.id {
            dir::unmount(at)?;
            return Err(io::Error::other(format!("{at:?} shows another directory than the one that was checked")));
        }
        Ok(BoundMount { path: at.to_owned(), read_only })
    }

    /// Ends every mount of one container and removes its empty places. `dir` is `DATA/mnt/<container>`; its absence is fine.
    ///
    /// # Errors
    /// `InvalidInput` for another `dir`; what `umount` gives; `ENOTEMPTY` where something lies there that is no mount: it is
    /// never deleted.
    pub fn release(&self, dir: &Path) -> io::Result<()> {
        if !self.is_container_dir(dir) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{dir:?} holds no mounts")));
        }
        for mounted in dir::mounts_below(dir)?.iter().rev() {
            dir::unmount(mounted)?;
        }
        let places = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            places => places?,
        };
        // Only ever rmdir: were a mount still there, a recursive removal would delete the user's data.
        for place in places {
            fs::remove_dir(place?.path())?;
        }
        fs::remove_dir(dir)
    }

    /// Releases what an earlier agent left bound for containers that `keep` does not name. Gives their number.
    ///
    /// # Errors
    /// The first failure, after all others were tried.
    pub fn clean_stale(&self, keep: &dyn Fn(&str) -> bool) -> io::Result<usize> {
        let containers = match fs::read_dir(self.data_dir.join(BIND_DIR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            containers => containers?,
        };
        let mut released = Ok(0);
        for container in containers {
            let container = container?;
            if container.file_name().to_str().is_some_and(keep) {
                continue;
            }
            match self.release(&container.path()) {
                Ok(()) => released = released.map(|count| count + 1),
                Err(error) => released = released.and(Err(error)),
            }
        }
        released
    }

    fn bind_nothing(&self, checked: &CheckedMount, read_only: bool) -> io::Result<BoundMount> {
        if let Some(fault) = unprotected(&checked.dir)?.filter(|_| !checked.own) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, fault));
        }
        let path = checked.dir.real_path()?;
        check_characters(&path, "directory")?;
        if Dir::open(&path)?.stat()?.id != checked.stat.id {
            return Err(io::Error::other(format!("{path:?} is another directory than the one that was checked")));
        }
        Ok(BoundMount { path, read_only })
    }

    fn is_container_dir(&self, path: &Path) -> bool {
        let relative = path.strip_prefix(self.data_dir.join(BIND_DIR));
        relative.is_ok_and(|relative| {
            let mut components = relative.components();
            matches!((components.next(), components.next()), (Some(Component::Normal(_)), None))
        })
    }

    /// The innermost root that `host` lies strictly below, and the rest of the path.
    fn root_of<'a>(&self, host: &'a Path) -> Option<(&Root, &'a Path)> {
        let spellings = self.roots.iter().flat_map(|root| [(root, &root.given), (root, &root.canonical)]);
        spellings
            .filter_map(|(root, prefix)| Some((root, host.strip_prefix(prefix).ok()?)))
            .filter(|(_, relative)| !relative.as_os_str().is_empty())
            .min_by_key(|(_, relative)| relative.as_os_str().len())
    }

    fn outside(&self, host: &str) -> Rejection {
        let message = if self.roots.is_empty() {
            format!("{host:?} cannot be mounted: this agent allows no host directories; start it with --mount-root DIR")
        } else {
            let roots: Vec<_> = self.roots.iter().map(|root| root.given.display().to_string()).collect();
            format!(
                "{host:?} does not lie below an allowed root ({}); use a directory below one, or start the agent with a further --mount-root",
                roots.join(", ")
            )
        };
        reject(403, "mount_outside_roots", message)
    }
}

impl Root {
    fn open(given: &Path, data: &Dir) -> io::Result<Self> {
        let canonical = named(given, "mount root", fs::canonicalize(given))?;
        let refuse = |why: &str| {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("mount root {}: {why}", given.display())))
        };
        if FORBIDDEN_AS_ROOT.iter().any(|forbidden| canonical == Path::new(forbidden))
            || FORBIDDEN_ROOTS.iter().any(|forbidden| canonical.starts_with(forbidden))
        {
            return refuse("neither / and /run nor what belongs to the kernel (/proc, /sys, /dev) can be a mount root");
        }
        check_characters(&canonical, "mount root")?;
        let dir = named(given, "mount root", Dir::open(&canonical))?;
        if is_at_or_below(&dir, data.stat()?.id)? {
            return refuse("it is, or lies in, the agent's data directory");
        }
        Ok(Self { given: std::path::absolute(given)?, canonical, dir })
    }
}

/// Says which component stands in the way. Only words depend on it: what it looks at may have changed since.
fn diagnose(root: &Root, relative: &Path, error: &io::Error) -> Rejection {
    let mut path = root.canonical.clone();
    let Ok(mut dir) = root.dir.try_clone() else { return unavailable(&path.join(relative), error) };
    for component in relative {
        path.push(component);
        let stat = match dir.stat_child(component) {
            Ok(stat) => stat,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return reject(400, "mount_missing", format!("{path:?} does not exist on this host; create it first"));
            }
            Err(error) => return unavailable(&path, &error),
        };
        let is = match stat.file_type {
            FileType::Directory => None,
            FileType::Symlink => {
                return reject(
                    403,
                    "mount_symlink",
                    format!(
                        "{path:?} is a symbolic link, which could be turned elsewhere; write the real path of the directory"
                    ),
                );
            }
            FileType::Regular => Some("a file"),
            FileType::Fifo => Some("a fifo"),
            FileType::Socket => Some("a socket"),
            FileType::CharDevice | FileType::BlockDevice => Some("a device"),
        };
        if let Some(is) = is {
            return reject(400, "mount_not_directory", format!("{path:?} is {is}; only directories can be mounted"));
        }
        match dir.open_child(component) {
            Ok(child) => dir = child,
            Err(error) => return unavailable(&path, &error),
        }
    }
    let unavailable = unavailable(&path, error);
    if unavailable.status != 503 {
        return unavailable;
    }
    let message =
        format!("{path:?} was another one while it was opened ({error}); leave the directories above a mount in place");
    reject(503, "mount_unavailable", message)
}

fn unavailable(path: &Path, error: &io::Error) -> Rejection {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return reject(400, "mount_unreadable", format!("the agent's user may not enter {path:?}; give it that right"));
    }
    reject(503, "mount_unavailable", format!("{path:?} cannot be opened now: {error}"))
}

fn reject(status: u16, code: &'static str, message: String) -> Rejection {
    Rejection::new(status, code, message).field("mount_spec")
}

/// Whether one directory is the other or lies below it. By identity, so that other names for it (bind mounts) count too,
/// and by their places, since a bind mount of a part of a tree does not lead up to the rest of it.
///
/// # Errors
/// What `open` and `stat` give.
pub fn touches(one: &Dir, other: &Dir) -> io::Result<bool> {
    let places = || Some(Place::of(one).ok()?.overlaps(&Place::of(other).ok()?));
    Ok(is_at_or_below(one, other.stat()?.id)? || is_at_or_below(other, one.stat()?.id)? || places().unwrap_or(false))
}

/// Device and inode number of every directory above `dir`, the nearest first.
///
/// # Errors
/// What `open` and `stat` give.
pub fn ids_above(dir: &Dir) -> io::Result<Vec<(u64, u64)>> {
    let mut ids = Vec::new();
    find_ancestor(dir, |_, stat| {
        ids.push(stat.id);
        false
    })?;
    Ok(ids)
}

fn is_at_or_below(dir: &Dir, id: (u64, u64)) -> io::Result<bool> {
    Ok(dir.stat()?.id == id || find_ancestor(dir, |_, stat| stat.id == id)?.is_some())
}

/// Why the path of `dir` cannot be given to the engine, which follows symlinks and binds what is mounted below, too; a mount
/// there would be writable even where the directory is read-only.
fn unprotected(dir: &Dir) -> io::Result<Option<String>> {
    if let Some(ancestor) = untrusted_ancestor(dir)? {
        let words = "may be written by others than root and the agent's user, so the path could be swapped";
        return Ok(Some(format!("{ancestor:?} above it {words}")));
    }
    let path = dir.real_path()?;
    let below = dir::mounts_below(&path)?.into_iter().find(|mounted| *mounted != path);
    Ok(below.map(|mounted| format!("{mounted:?} is mounted below it, and would come along")))
}

/// The path of the nearest directory above `dir` that others than root and this user may write. Group rights count: what an
/// access control list grants shows up in them.
fn untrusted_ancestor(dir: &Dir) -> io::Result<Option<PathBuf>> {
    let user = dir::effective_uid();
    let untrusted = |stat: &Stat| (stat.uid != 0 && stat.uid != user) || stat.mode & 0o022 != 0;
    find_ancestor(dir, |_, stat| untrusted(stat))?.map(|ancestor| ancestor.real_path()).transpose()
}

/// The nearest directory above `dir`, `dir` not included, that `is_it`.
fn find_ancestor(dir: &Dir, mut is_it: impl FnMut(&Dir, &Stat) -> bool) -> io::Result<Option<Dir>> {
    let mut current = dir.try_clone()?;
    for _ in 0..MAX_ANCESTORS {
        let parent = current.open_parent()?;
        let stat = parent.stat()?;
        if stat.id == current.stat()?.id {
            return Ok(None);
        }
        if is_it(&parent, &stat) {
            return Ok(Some(parent));
        }
        current = parent;
    }
    Err(io::Error::other("nested too deep"))
}

/// The engine's `--mount` separates its fields with these.
fn check_characters(path: &Path, what: &str) -> io::Result<()> {
    let bad = path.as_os_str().as_bytes().iter().any(|byte| byte.is_ascii_control() || b",:\"".contains(byte));
    if bad {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the {what} {path:?} may not hold a comma, colon, quote or control character in its path"),
        ));
    }
    Ok(())
}

fn named<T>(path: &Path, what: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display())))
}

#[cfg(test)]
mod tests;
