//! Telemetry: a cgroup of the attempt's own, above the container's, read directly.
//!
//! The container's cgroup vanishes with its last process; this parent keeps CPU time and peaks until it is removed.
//! Both versions are read. With the `systemd` driver a parent would have to be a slice, which is not made: there the
//! container's own cgroup is found and read while it lives.

mod files;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

pub use self::files::Sample;
use self::files::{counts_a_device, field, parse_process, parse_v1, parse_v2};
use crate::ledger::time::Time;
use crate::runner::docker::EngineInfo;

/// Why there is no telemetry. Attempts run without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no telemetry: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// The host's cgroup hierarchies, as far as they concern a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// Version 1, also beside an unused version 2 ("hybrid").
    V1 {
        /// Mount point of each controller; a controller that is not mounted is absent.
        controllers: Vec<(String, PathBuf)>,
        /// Every cgroup mount, named and version 2 ones too: the engine makes directories in all of them.
        mounts: Vec<PathBuf>,
    },
    /// Version 2 alone, at this mount point.
    V2(PathBuf),
}

/// The version 1 controllers that telemetry reads.
const V1_CONTROLLERS: [&str; 4] = ["memory", "cpuacct", "pids", "blkio"];
/// The host's disks, as directories.
const DISKS: &str = "/sys/block";
/// How often the removal of a busy directory is tried again, and the pause between.
const REMOVE_TRIES: (u32, Duration) = (20, Duration::from_millis(25));

impl Hierarchies {
    /// Reads `/proc/self/mountinfo`'s text. Pure. Mounts that show only a part of their hierarchy (in a container)
    /// are left out, since the engine's paths do not hold there.
    ///
    /// # Errors
    /// No cgroup hierarchy is mounted whole.
    pub fn parse(mountinfo: &str) -> Result<Self, Unavailable> {
        let mut controllers: Vec<(String, PathBuf)> = Vec::new();
        let mut mounts: Vec<PathBuf> = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mut left = left.split(' ').skip(3);
            let (Some("/"), Some(mount_point)) = (left.next(), left.next()) else { continue };
            let mount_point = PathBuf::from(unescape(mount_point));
            let mut right = right.split(' ');
            match right.next() {
                Some("cgroup2") => unified = Some(mount_point.clone()),
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default();
                    for name in options.split(',').filter(|option| V1_CONTROLLERS.contains(option)) {
                        // The first mount of a hierarchy is the one that everybody uses.
                        if !controllers.iter().any(|(known, _)| known == name) {
                            controllers.push((name.to_owned(), mount_point.clone()));
                        }
                    }
                }
                _ => continue,
            }
            if !mounts.contains(&mount_point) {
                mounts.push(mount_point);
            }
        }
        match unified {
            _ if !controllers.is_empty() => Ok(Self::V1 { controllers, mounts }),
            Some(root) => Ok(Self::V2(root)),
            None => Err(Unavailable("no cgroup hierarchy is mounted whole".into())),
        }
    }

    /// Those of this host, if an attempt can have a group of its own there.
    ///
    /// # Errors
    /// The driver is not `cgroupfs`, or as for [`Hierarchies::of_host`].
    pub fn detect(engine: &EngineInfo) -> Result<Self, Unavailable> {
        if engine.cgroup_driver != "cgroupfs" {
            return Err(Unavailable(format!(
                "the engine's cgroup driver is {:?}; an attempt's own group needs \"cgroupfs\"",
                engine.cgroup_driver
            )));
        }
        Self::of_host(engine)
    }

    /// Those of this host, if the engine uses them.
    ///
    /// # Errors
    /// The versions differ, or nothing is mounted.
    pub fn of_host(engine: &EngineInfo) -> Result<Self, Unavailable> {
        let found = Self::mounted()?;
        let version = if matches!(found, Self::V1 { .. }) { "1" } else { "2" };
        if engine.cgroup_version != version {
            return Err(Unavailable(format!(
                "the engine uses cgroup version {}, this host shows version {version}",
                engine.cgroup_version
            )));
        }
        Ok(found)
    }

    /// Those of this host, whatever the engine does.
    ///
    /// # Errors
    /// Nothing is mounted.
    pub fn mounted() -> Result<Self, Unavailable> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Unavailable(format!("/proc/self/mountinfo: {error}")))?;
        Self::parse(&mountinfo)
    }

    /// The directories that this agent makes and reads.
    fn own(&self) -> Vec<&Path> {
        let mut own: Vec<&Path> = match self {
            Self::V1 { controllers, .. } => controllers.iter().map(|(_, mount)| mount.as_path()).collect(),
            Self::V2(root) => vec![root],
        };
        own.dedup();
        own
    }

    /// All directories in which the engine may have made the group too.
    fn all(&self) -> Vec<&Path> {
        match self {
            Self::V1 { mounts, .. } => mounts.iter().map(PathBuf::as_path).collect(),
            Self::V2(root) => vec![root],
        }
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::V1 { controllers, .. } => {
                controllers.iter().find(|(known, _)| known == name).map(|(_, m)| m.as_path())
            }
            Self::V2(root) => Some(root),
        }
    }
}

/// The cgroup in which an attempt's processes run.
#[derive(Debug)]
pub struct AttemptGroup {
    hierarchies: Hierarchies,
    place: Place,
    /// Version 1: whether the block devices are counted at all.
    io_is_counted: bool,
}

/// Where a group lies, relative to the mount points.
#[derive(Debug)]
enum Place {
    /// `hackbrain-<log>/<container>` everywhere. The container's own is below it.
    Own(PathBuf),
    /// The container's, where the engine put it: for each controller (one without a name on version 2) its path.
    Containers(Vec<(String, PathBuf)>),
}

impl AttemptGroup {
    /// Makes `/hackbrain-<log>/<container>` in every hierarchy that telemetry reads; one that exists is taken over, as
    /// after a restart. `log` is the ledger's short id, so that agents of one host stay apart.
    ///
    /// # Errors
    /// No right to make it, or the kernel refuses.
    pub fn create(hierarchies: &Hierarchies, log: &str, container: &str) -> Result<Self, Unavailable> {
        let path = PathBuf::from(group_of(log)).join(container);
        for mount in hierarchies.own() {
            let directory = mount.join(&path);
            if let Hierarchies::V2(_) = hierarchies {
                fs::create_dir_all(mount.join(group_of(log))).map_err(|error| unavailable(&directory, &error))?;
                // A controller counts for a child only where its parent hands it down. The engine does the same for
                // the levels it makes; a controller that is missing leaves its values none.
                for parent in [mount.to_owned(), mount.join(group_of(log))] {
                    for controller in ["+cpu", "+memory", "+pids", "+io"] {
                        drop(fs::write(parent.join("cgroup.subtree_control"), controller));
                    }
                }
            }
            fs::create_dir_all(&directory).map_err(|error| unavailable(&directory, &error))?;
        }
        Ok(Self::at(hierarchies, Place::Own(path)))
    }

    /// The group that an earlier agent made for this container, if it did: no engine need be asked for that.
    pub fn left_behind(hierarchies: &Hierarchies, log: &str, container: &str) -> Option<Self> {
        let path = PathBuf::from(group_of(log)).join(container);
        let is_there = hierarchies.own().into_iter().all(|mount| mount.join(&path).is_dir());
        is_there.then(|| Self::at(hierarchies, Place::Own(path)))
    }

    /// The group of a container, from the `/proc/<pid>/cgroup` of its first process. It goes with its last process.
    ///
    /// # Errors
    /// It is not below a mount point that is seen here.
    pub fn of_process(hierarchies: &Hierarchies, cgroup: &str) -> Result<Self, Unavailable> {
        let mut paths = Vec::new();
        for (controllers, path) in parse_process(cgroup) {
            for name in controllers.split(',') {
                let is_ours = match hierarchies {
                    Hierarchies::V1 { .. } => V1_CONTROLLERS.contains(&name),
                    Hierarchies::V2(_) => name.is_empty(),
                };
                // The root is everybody's; a path that climbs is of another cgroup namespace.
                let path = Path::new(path.trim_start_matches('/'));
                let is_below = path.components().next().is_some() && !path.components().any(|c| c.as_os_str() == "..");
                let mount = hierarchies.controller(name);
                if is_ours && is_below && mount.is_some_and(|mount| mount.join(path).is_dir()) {
                    paths.push((name.to_owned(), path.to_owned()));
                }
            }
        }
        if paths.is_empty() {
            return Err(Unavailable(format!("no group of the container is seen here: {}", cgroup.trim_end())));
        }
        Ok(Self::at(hierarchies, Place::Containers(paths)))
    }

    fn at(hierarchies: &Hierarchies, place: Place) -> Self {
        let io_is_counted = match hierarchies {
            Hierarchies::V1 { .. } => {
                hierarchies.controller("blkio").is_some_and(|mount| count_io(mount, Path::new(DISKS)))
            }
            Hierarchies::V2(_) => true,
        };
        Self { hierarchies: hierarchies.clone(), place, io_is_counted }
    }

    /// For `--cgroup-parent`, e.g. `/hackbrain-1f2e3d4c/hb-job-1`; none where the engine chooses.
    pub fn parent_argument(&self) -> Option<String> {
        match &self.place {
            Place::Own(path) => Some(format!("/{}", path.display())),
            Place::Containers(_) => None,
        }
    }

    /// Its path as the kernel log writes it; the processes are in it or below it.
    pub fn memory_path(&self) -> Option<String> {
        let path = match &self.place {
            Place::Own(path) => path,
            Place::Containers(paths) => {
                &paths.iter().find(|(controller, _)| ["memory", ""].contains(&controller.as_str()))?.1
            }
        };
        Some(format!("/{}", path.display()))
    }

    /// Whether a reading at the end tells all. Version 2 adds up what happened below a group, and keeps it; version 1 does so
    /// for CPU time and peaks only; a container's own group is gone by then.
    pub fn outlives_container(&self) -> bool {
        matches!((&self.place, &self.hierarchies), (Place::Own(_), Hierarchies::V2(_)))
    }

    /// Reads the group; about 0.1 ms. What cannot be read is none.
    pub fn sample(&self) -> Sample {
        let time = Time::now();
        let read = |controller: &str, file: &str| fs::read_to_string(self.directory(controller)?.join(file)).ok();
        match &self.hierarchies {
            Hierarchies::V1 { .. } => {
                Sample { time, oom_kills: self.v1_oom_kills(), ..parse_v1(&read, self.io_is_counted) }
            }
            Hierarchies::V2(_) => Sample { time, ..parse_v2(&|file| read("", file)) },
        }
    }

    fn directory(&self, controller: &str) -> Option<PathBuf> {
        let path = match &self.place {
            Place::Own(path) => path,
            Place::Containers(paths) => &paths.iter().find(|(name, _)| name == controller)?.1,
        };
        Some(self.hierarchies.controller(controller)?.join(path))
    }

    /// Removes the group from every hierarchy, also what the engine made in those we do not read. An absent group is a
    /// success, and one that the engine made is left to it. Its last processes may still be on their way out, so a busy
    /// directory is tried again for half a second.
    ///
    /// # Errors
    /// A directory is still busy, or cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        let Place::Own(path) = &self.place else { return Ok(()) };
        let mut result = Ok(());
        for mount in self.hierarchies.all() {
            let removed = remove_tree(&mount.join(path));
            if result.is_ok() {
                result = removed;
            }
        }
        result
    }
}

/// Removes the group of a whole ledger, once no attempt of it is left; for the end of an agent's run.
///
/// # Errors
/// An attempt's group is still in it.
pub fn remove_log_group(hierarchies: &Hierarchies, log: &str) -> io::Result<()> {
    for mount in hierarchies.all() {
        match fs::remove_dir(mount.join(group_of(log))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The containers that have a group of this ledger, whether or not they still exist.
pub fn attempts_of(hierarchies: &Hierarchies, log: &str) -> BTreeSet<String> {
    let groups = hierarchies.all().into_iter().filter_map(|mount| fs::read_dir(mount.join(group_of(log))).ok());
    let directories = groups.flat_map(|group| group.flatten()).filter(|entry| entry.path().is_dir());
    directories.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

impl AttemptGroup {
    /// The counts of the group and of those one level down: version 1 does not add them up.
    fn v1_oom_kills(&self) -> Option<u64> {
        let directory = self.directory("memory")?;
        let below = fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
        let count = |group: &Path| field(&fs::read_to_string(group.join("memory.oom_control")).ok()?, "oom_kill");
        // Our own has no processes, so its count is 0 and says nothing once the container's is gone.
        let itself = matches!(self.place, Place::Containers(_)).then(|| count(&directory)).flatten();
        below.filter_map(|child| count(&child)).chain(itself).reduce(u64::saturating_add)
    }
}

/// Makes the kernel count I/O below version 1's `blkio` mount; whether it does. Since Linux 6.10 a disk is counted only once
/// a limit was set on it, wherever. 0 stands for no limit, and a disk that is not counted yet has none.
fn count_io(mount: &Path, disks: &Path) -> bool {
    let counted = || fs::read_to_string(mount.join("blkio.throttle.io_service_bytes")).unwrap_or_default();
    let before = counted();
    for disk in fs::read_dir(disks).into_iter().flatten().flatten() {
        // A virtual disk's bytes are counted on the disks below it.
        if !disk.path().join("device").exists() {
            continue;
        }
        let device = fs::read_to_string(disk.path().join("dev")).unwrap_or_default();
        let device = device.trim();
        let has_line = before.lines().any(|line| line.split_once(' ').is_some_and(|(known, _)| known == device));
        if !device.is_empty() && !has_line {
            drop(fs::write(mount.join("blkio.throttle.read_bps_device"), format!("{device} 0")));
        }
    }
    counts_a_device(&counted())
}

fn group_of(log: &str) -> String {
    format!("hackbrain-{log}")
}

fn unavailable(directory: &Path, error: &io::Error) -> Unavailable {
    Unavailable(format!("{}: {error}", directory.display()))
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    match fs::read_dir(directory) {
        Ok(entries) => {
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                remove_tree(&entry.path())?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let (tries, pause) = REMOVE_TRIES;
    for attempt in 1.. {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < tries => thread::sleep(pause),
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    Ok(())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
mod tests;
