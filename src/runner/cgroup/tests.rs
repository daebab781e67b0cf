//! Fixture trees as the kernel shows them; what this host has is tested with real containers.
#![allow(clippy::unwrap_used)]

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

/// A directory tree as a hierarchy shows it; gone at the end.
struct Tree(PathBuf);

impl Tree {
    fn new(what: &str) -> Self {
        let root = std::env::temp_dir().join(format!("hb-cgroup-{what}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        Self(root)
    }

    fn write(&self, directory: &str, files: &[(&str, &str)]) {
        let directory = self.0.join(directory);
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// What Linux 6.1 shows of a container; an older one lacks both peaks.
const V2_FILES: &[(&str, &str)] = &[
    ("cpu.stat", "usage_usec 2500\nuser_usec 2000\nsystem_usec 500\nnr_periods 0\nnr_throttled 0\n"),
    ("memory.current", "8192\n"),
    ("memory.events", "low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\noom_group_kill 0\n"),
    ("io.stat", "254:0 rbytes=4096 wbytes=1024 rios=1 wios=1 dbytes=0 dios=0\n7:0\n"),
    ("pids.current", "3\n"),
    ("memory.peak", "16384\n"),
    ("pids.peak", "9\n"),
];

#[test]
fn the_systemd_drivers_containers_are_found_on_version_2() {
    let tree = Tree::new("v2");
    let scope = format!("system.slice/docker-{ID}.scope");
    tree.write(&scope, V2_FILES);
    let hierarchies = Hierarchies::V2(tree.0.clone());
    let group = AttemptGroup::of_process(&hierarchies, &format!("0::/{scope}\n")).unwrap();
    assert_eq!(group.memory_path(), Some(format!("/{scope}")));
    assert_eq!((group.parent_argument(), group.outlives_container()), (None, false));
    let sample = group.sample();
    assert!(sample.time > Time::default());
    let expected = Sample {
        time: sample.time,
        cpu_ns: Some(2_500_000),
        memory_bytes: Some(8192),
        memory_peak_bytes: Some(16_384),
        pids: Some(3),
        pids_peak: Some(9),
        io_read_bytes: Some(4096),
        io_write_bytes: Some(1024),
        oom_kills: Some(2),
    };
    assert_eq!(sample, expected);
    for peak in ["memory.peak", "pids.peak"] {
        fs::remove_file(tree.0.join(&scope).join(peak)).unwrap();
    }
    assert_eq!(group.sample().memory_peak_bytes, None);
    assert_eq!(group.sample().after(&expected).memory_peak_bytes, Some(16_384));
    // It is the engine's to remove, and takes its figures with it.
    group.remove().unwrap();
    assert!(!group.sample().is_empty());
    fs::remove_dir_all(tree.0.join(&scope)).unwrap();
    assert!(group.sample().is_empty());
    // A path of another cgroup namespace, which happens to lead somewhere.
    let climbs = format!("0::/../{}/system.slice\n", tree.0.file_name().unwrap().display());
    for elsewhere in
        [climbs.as_str(), "0::/\n", "0::/../x\n", "0::/system.slice/other.scope\n", "4:memory:/system.slice\n", ""]
    {
        assert!(AttemptGroup::of_process(&hierarchies, elsewhere).is_err(), "{elsewhere}");
    }
}

#[test]
fn the_systemd_drivers_containers_are_found_on_version_1() {
    let tree = Tree::new("v1");
    let scope = format!("system.slice/docker-{ID}.scope");
    tree.write(&format!("cpu,cpuacct/{scope}"), &[("cpuacct.usage", "77\n")]);
    tree.write(
        &format!("memory/{scope}"),
        &[
            ("memory.usage_in_bytes", "10\n"),
            ("memory.max_usage_in_bytes", "20\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ],
    );
    // The blkio controller is mounted, and the container is not in it: what it reads and writes is nobody's.
    tree.write("blkio", &[]);
    let controllers = [("memory", "memory"), ("cpuacct", "cpu,cpuacct"), ("blkio", "blkio")]
        .map(|(name, mount)| (name.to_owned(), tree.0.join(mount)));
    let hierarchies = Hierarchies::V1 { controllers: controllers.to_vec(), mounts: vec![] };
    let text = format!("5:memory:/{scope}\n3:cpu,cpuacct:/{scope}\n2:blkio:/\n1:name=systemd:/{scope}\n0::/{scope}\n");
    let group = AttemptGroup::of_process(&hierarchies, &text).unwrap();
    let sample = group.sample();
    assert_eq!((sample.cpu_ns, sample.memory_bytes, sample.memory_peak_bytes), (Some(77), Some(10), Some(20)));
    assert_eq!((sample.oom_kills, sample.pids, sample.io_read_bytes), (Some(3), None, None));
    assert_eq!(group.memory_path(), Some(format!("/{scope}")));
}

#[test]
fn an_own_group_on_version_2_and_what_is_left_of_it() {
    let tree = Tree::new("own");
    let hierarchies = Hierarchies::V2(tree.0.clone());
    assert!(AttemptGroup::left_behind(&hierarchies, "l", "hb-a-1").is_none());
    let group = AttemptGroup::create(&hierarchies, "l", "hb-a-1").unwrap();
    assert_eq!(group.parent_argument().as_deref(), Some("/hackbrain-l/hb-a-1"));
    assert!(group.outlives_container());
    tree.write("hackbrain-l/hb-a-1", V2_FILES);
    let left = AttemptGroup::left_behind(&hierarchies, "l", "hb-a-1").unwrap();
    assert_eq!((left.memory_path(), left.sample().cpu_ns), (group.parent_argument(), Some(2_500_000)));
    assert!(AttemptGroup::left_behind(&hierarchies, "l", "hb-a-10").is_none());
}

#[test]
fn disks_that_nobody_counts_are_counted_from_now_on() {
    let tree = Tree::new("disks");
    tree.write("blkio", &[("blkio.throttle.io_service_bytes", "8:0 Read 4096\n8:0 Total 4096\nTotal 4096\n")]);
    tree.write("disks/sda/device", &[]);
    tree.write("disks/sda", &[("dev", "8:0\n")]);
    tree.write("disks/dm-0", &[("dev", "253:0\n")]);
    let (mount, disks) = (tree.0.join("blkio"), tree.0.join("disks"));
    let rule = mount.join("blkio.throttle.read_bps_device");
    assert!(count_io(&mount, &disks));
    assert!(!rule.exists(), "a disk that is counted may have a limit, which stays; a virtual one is left alone");
    tree.write("disks/vda/device", &[]);
    tree.write("disks/vda", &[("dev", "254:0\n")]);
    assert!(count_io(&mount, &disks));
    assert_eq!(fs::read_to_string(&rule).unwrap(), "254:0 0");
    fs::write(mount.join("blkio.throttle.io_service_bytes"), "Total 0\n").unwrap();
    assert!(!count_io(&mount, &disks), "it was of no use");
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
