//! Telemetry: a cgroup of the attempt's own, above the container's, read directly.
//!
//! The container's cgroup vanishes with its last process; this parent keeps CPU time and peaks until it is removed.
//! Both versions are read; with the `systemd` driver a parent would have to be a slice, which is not done.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// What an attempt used so far. A value that the kernel does not offer is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// When it was read, microseconds since the Unix epoch.
    pub time_us: u64,
    /// CPU time, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory now, bytes, page cache included.
    pub memory_bytes: Option<u64>,
    /// Most memory so far, bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Most processes and threads so far.
    pub pids_peak: Option<u64>,
    /// Bytes read from block devices.
    pub io_read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub io_write_bytes: Option<u64>,
    /// Processes ended by the OOM killer. On version 1 only while the container runs: there this file does not count
    /// what happened below it, and the container's state is the witness.
    pub oom_kills: Option<u64>,
}

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

    /// Those of this host, if the engine uses them in a way that we can join.
    ///
    /// # Errors
    /// The driver is not `cgroupfs`, the versions differ, or nothing is mounted.
    pub fn detect(engine: &EngineInfo) -> Result<Self, Unavailable> {
        if engine.cgroup_driver != "cgroupfs" {
            return Err(Unavailable(format!(
                "the engine's cgroup driver is {:?}; an attempt's own group needs \"cgroupfs\"",
                engine.cgroup_driver
            )));
        }
        let mountinfo = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Unavailable(format!("/proc/self/mountinfo: {error}")))?;
        let found = Self::parse(&mountinfo)?;
        let version = if matches!(found, Self::V1 { .. }) { "1" } else { "2" };
        if engine.cgroup_version != version {
            return Err(Unavailable(format!(
                "the engine uses cgroup version {}, this host shows version {version}",
                engine.cgroup_version
            )));
        }
        Ok(found)
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

/// One attempt's cgroup.
#[derive(Debug)]
pub struct AttemptGroup {
    hierarchies: Hierarchies,
    /// Relative to every mount point: `hackbrain-<log>/<container>`.
    path: PathBuf,
}

impl AttemptGroup {
    /// Makes `/hackbrain-<log>/<container>` in every hierarchy that telemetry reads; one that exists is taken over, as
    /// after a restart. `log` is the ledger's short id, so that agents of one host stay apart.
    ///
    /// # Errors
    /// No right to make it, or the kernel refuses.
    pub fn create(hierarchies: &Hierarchies, log: &str, container: &str) -> Result<Self, Unavailable> {
        let group = Self { hierarchies: hierarchies.clone(), path: PathBuf::from(group_of(log)).join(container) };
        for mount in hierarchies.own() {
            let directory = mount.join(&group.path);
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
        Ok(group)
    }

    /// For `--cgroup-parent`, e.g. `/hackbrain-1f2e3d4c/hb-job-1`.
    pub fn parent_argument(&self) -> String {
        format!("/{}", self.path.display())
    }

    /// Reads the group; about 0.1 ms. What cannot be read is none.
    pub fn sample(&self) -> Sample {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let read = |controller: &str, file: &str| {
            let directory = self.hierarchies.controller(controller)?.join(&self.path);
            fs::read_to_string(directory.join(file)).ok()
        };
        match &self.hierarchies {
            Hierarchies::V1 { .. } => Sample { time_us, oom_kills: self.v1_oom_kills(), ..parse_v1(&read) },
            Hierarchies::V2(_) => Sample { time_us, ..parse_v2(&|file| read("", file)) },
        }
    }

    /// Removes the group from every hierarchy, also what the engine made in those we do not read. An absent group is a
    /// success. Its last processes may still be on their way out, so a busy directory is tried again for half a second.
    ///
    /// # Errors
    /// A directory is still busy, or cannot be removed.
    pub fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for mount in self.hierarchies.all() {
            let removed = remove_tree(&mount.join(&self.path));
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
    /// The container's own count, one level down: version 1 does not add it up.
    fn v1_oom_kills(&self) -> Option<u64> {
        let directory = self.hierarchies.controller("memory")?.join(&self.path);
        let children = fs::read_dir(directory).ok()?.flatten().filter(|entry| entry.path().is_dir());
        children
            .filter_map(|child| field(&fs::read_to_string(child.path().join("memory.oom_control")).ok()?, "oom_kill"))
            .reduce(u64::saturating_add)
    }
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

/// `read(controller, file)` → values; pure but for `read`.
fn parse_v1(read: &dyn Fn(&str, &str) -> Option<String>) -> Sample {
    let number = |controller: &str, file: &str| read(controller, file)?.trim().parse().ok();
    // The recursive file counts the container below us; a kernel without it offers no I/O figures here.
    let io = read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let io_sum = |direction: &str| {
        let lines = io.as_deref()?.lines();
        Some(lines.filter_map(|line| line.split_once(' ')?.1.strip_prefix(direction)?.trim().parse::<u64>().ok()).sum())
    };
    Sample {
        time_us: 0,
        cpu_ns: number("cpuacct", "cpuacct.usage"),
        memory_bytes: number("memory", "memory.usage_in_bytes"),
        memory_peak_bytes: number("memory", "memory.max_usage_in_bytes"),
        pids: number("pids", "pids.current"),
        pids_peak: number("pids", "pids.peak"),
        io_read_bytes: io_sum("Read "),
        io_write_bytes: io_sum("Write "),
        oom_kills: None,
    }
}

/// `read(file)` → values; pure but for `read`.
fn parse_v2(read: &dyn Fn(&str) -> Option<String>) -> Sample {
    let number = |file: &str| read(file)?.trim().parse().ok();
    let io = read("io.stat");
    let io_sum = |key: &str| {
        let fields = io.as_deref()?.split_whitespace();
        Some(fields.filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok()).sum())
    };
    Sample {
        time_us: 0,
        cpu_ns: read("cpu.stat").and_then(|stat| field(&stat, "usage_usec")).map(|us| us.saturating_mul(1_000)),
        memory_bytes: number("memory.current"),
        memory_peak_bytes: number("memory.peak"),
        pids: number("pids.current"),
        pids_peak: number("pids.peak"),
        io_read_bytes: io_sum("rbytes="),
        io_write_bytes: io_sum("wbytes="),
        oom_kills: read("memory.events").and_then(|events| field(&events, "oom_kill")),
    }
}

/// The number behind a name in a file of `name number` lines.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
42 31 0:36 /docker/ab /mnt/pids rw - cgroup cgroup rw,pids
";

    #[test]
    fn hierarchies_come_from_mountinfo() {
        let Hierarchies::V1 { controllers, mounts } = Hierarchies::parse(V1).unwrap() else { panic!("not v1") };
        let names: Vec<&str> = controllers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpuacct", "memory", "blkio", "pids"]);
        assert_eq!(controllers[0].1, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(controllers[3].1, Path::new("/sys/fs/cgroup/pids"));
        assert_eq!(mounts.len(), 6);

        let v2 = "30 23 0:26 / /sys/fs/my\\040cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(Hierarchies::parse(v2), Ok(Hierarchies::V2("/sys/fs/my cgroup".into())));
        assert!(Hierarchies::parse("30 23 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n").is_err());
        assert!(Hierarchies::parse("").is_err());
    }

    #[test]
    fn version_1_files() {
        let read = |controller: &str, file: &str| {
            let text = match (controller, file) {
                ("cpuacct", "cpuacct.usage") => "123456789\n",
                ("memory", "memory.usage_in_bytes") => "4096\n",
                ("memory", "memory.max_usage_in_bytes") => "108003328\n",
                ("pids", "pids.current") => "3\n",
                ("blkio", "blkio.throttle.io_service_bytes_recursive") => {
                    "8:0 Read 100\n8:0 Write 7\n8:0 Sync 107\n8:0 Total 107\n8:16 Read 5\n8:16 Write 1\nTotal 113\n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        };
        let expected = Sample {
            time_us: 0,
            cpu_ns: Some(123_456_789),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(108_003_328),
            pids: Some(3),
            pids_peak: None,
            io_read_bytes: Some(105),
            io_write_bytes: Some(8),
            oom_kills: None,
        };
        assert_eq!(parse_v1(&read), expected);
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), Some(2));
    }

    #[test]
    fn version_2_files() {
        let read = |file: &str| {
            let text = match file {
                "cpu.stat" => "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
                "memory.current" => "8192\n",
                "memory.peak" => "16384\n",
                "memory.events" => "low 0\nhigh 0\nmax 4\noom 1\noom_kill 1\noom_group_kill 0\n",
                "pids.current" => "0\n",
                "pids.peak" => "9\n",
                "io.stat" => {
                    "8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1 wios=1\n"
                }
                _ => return None,
            };
            Some(text.to_owned())
        };
        let expected = Sample {
            time_us: 0,
            cpu_ns: Some(1_500_000),
            memory_bytes: Some(8192),
            memory_peak_bytes: Some(16_384),
            pids: Some(0),
            pids_peak: Some(9),
            io_read_bytes: Some(101),
            io_write_bytes: Some(22),
            oom_kills: Some(1),
        };
        assert_eq!(parse_v2(&read), expected);
        assert_eq!(parse_v2(&|_| None), Sample::default());
    }

    #[test]
    fn another_driver_or_version_is_told() {
        let engine = |driver: &str, version: &str| EngineInfo {
            cgroup_driver: driver.into(),
            cgroup_version: version.into(),
            ..EngineInfo::default()
        };
        let Unavailable(words) = Hierarchies::detect(&engine("systemd", "2")).unwrap_err();
        assert!(words.contains("systemd"), "{words}");
        assert!(Hierarchies::detect(&engine("cgroupfs", "3")).is_err());
        let nowhere = Hierarchies::V2("/proc/nowhere".into());
        assert!(AttemptGroup::create(&nowhere, "l", "c").is_err());
    }
}
