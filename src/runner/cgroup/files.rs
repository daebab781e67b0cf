//! What the kernel's cgroup files say, both versions: their text → a [`Sample`]. Pure.

use serde::{Deserialize, Serialize};

use crate::ledger::time::Time;

/// What an attempt used so far. A value that the kernel does not offer is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was read.
    pub time: Time,
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
    /// Bytes written to block devices. Version 1 counts what the attempt's own processes hand to the device, e.g. in an
    /// fsync, and not what the kernel writes back for them later.
    pub io_write_bytes: Option<u64>,
    /// Processes ended by the OOM killer. On version 1 only while the container runs: there this file does not count
    /// what happened below it.
    pub oom_kills: Option<u64>,
}

impl Sample {
    /// This reading after `earlier` ones: what only grows does not fall because a part of the group, with its counters, is
    /// gone by now, and a peak that the kernel does not keep is the most that was seen.
    pub fn after(self, earlier: &Self) -> Self {
        // None is less than any number.
        Self {
            cpu_ns: self.cpu_ns.max(earlier.cpu_ns),
            memory_peak_bytes: self.memory_peak_bytes.or(self.memory_bytes).max(earlier.memory_peak_bytes),
            pids_peak: self.pids_peak.or(self.pids).max(earlier.pids_peak),
            io_read_bytes: self.io_read_bytes.max(earlier.io_read_bytes),
            io_write_bytes: self.io_write_bytes.max(earlier.io_write_bytes),
            oom_kills: self.oom_kills.max(earlier.oom_kills),
            ..self
        }
    }

    /// Whether nothing could be read.
    pub fn is_empty(&self) -> bool {
        Self { time: Time::default(), ..*self } == Self::default()
    }

    /// Whether processes run, as far as can be told.
    pub fn shows_life(&self) -> bool {
        !self.is_empty() && self.pids != Some(0)
    }
}

/// `read(controller, file)` → values; pure but for `read`. Without `io_is_counted` no device in the file means that nobody
/// looked, else that nothing was read or written.
pub(super) fn parse_v1(read: &dyn Fn(&str, &str) -> Option<String>, io_is_counted: bool) -> Sample {
    let number = |controller: &str, file: &str| read(controller, file)?.trim().parse().ok();
    // The recursive file counts the container below us; a kernel without it offers no I/O figures here.
    let io = read("blkio", "blkio.throttle.io_service_bytes_recursive");
    let io = io.filter(|text| io_is_counted || counts_a_device(text));
    let io_sum = |direction: &str| {
        let lines = io.as_deref()?.lines();
        Some(lines.filter_map(|line| line.split_once(' ')?.1.strip_prefix(direction)?.trim().parse::<u64>().ok()).sum())
    };
    Sample {
        time: Time::default(),
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
pub(super) fn parse_v2(read: &dyn Fn(&str) -> Option<String>) -> Sample {
    let number = |file: &str| read(file)?.trim().parse().ok();
    let io = read("io.stat");
    let io_sum = |key: &str| {
        let fields = io.as_deref()?.split_whitespace();
        Some(fields.filter_map(|field| field.strip_prefix(key)?.parse::<u64>().ok()).sum())
    };
    Sample {
        time: Time::default(),
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
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Whether a version 1 `io_service_bytes` file has the line of any device, e.g. `8:0 Read 4096`.
pub(super) fn counts_a_device(text: &str) -> bool {
    text.lines().any(|line| line.split_once(' ').is_some_and(|(device, _)| device.contains(':')))
}

/// The paths of a process's groups: for each line of `/proc/<pid>/cgroup` its controllers (none on version 2) and path.
pub(super) fn parse_process(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            time: Time::default(),
            cpu_ns: Some(123_456_789),
            memory_bytes: Some(4096),
            memory_peak_bytes: Some(108_003_328),
            pids: Some(3),
            pids_peak: None,
            io_read_bytes: Some(105),
            io_write_bytes: Some(8),
            oom_kills: None,
        };
        assert_eq!(parse_v1(&read, false), expected);
        let idle = |_: &str, _: &str| Some("Total 0\n".to_owned());
        assert_eq!(parse_v1(&idle, false).io_read_bytes, None, "nobody counts");
        assert_eq!(parse_v1(&idle, true).io_read_bytes, Some(0), "nothing to count");
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
            time: Time::default(),
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
    fn what_only_grows_never_falls() {
        let at = |micros, cpu, memory, peak, pids, io| Sample {
            time: Time(micros),
            cpu_ns: cpu,
            memory_bytes: memory,
            memory_peak_bytes: peak,
            pids,
            io_write_bytes: io,
            ..Sample::default()
        };
        let first = at(1, Some(5), Some(100), Some(150), Some(3), Some(7)).after(&Sample::default());
        let gone = at(2, Some(6), Some(1), None, Some(0), Some(0)).after(&first);
        assert_eq!(gone, Sample { pids_peak: Some(3), ..at(2, Some(6), Some(1), Some(150), Some(0), Some(7)) });
        let nothing = at(3, None, None, None, None, None).after(&gone);
        assert_eq!((nothing.cpu_ns, nothing.memory_bytes, nothing.io_write_bytes), (Some(6), None, Some(7)));
        // A kernel without memory.peak and pids.peak.
        let seen = at(4, None, Some(100), None, Some(4), None).after(&Sample::default());
        let less = at(5, None, Some(50), None, Some(2), None).after(&seen);
        assert_eq!((less.memory_peak_bytes, less.pids_peak), (Some(100), Some(4)));
        assert!(less.shows_life() && !gone.shows_life() && !Sample { time: Time(9), ..Sample::default() }.shows_life());
    }

    #[test]
    fn a_processs_groups() {
        let v1 = "12:blkio:/a:b\n4:cpu,cpuacct:/x\n1:name=systemd:/x\n0::/y\n";
        let found: Vec<_> = parse_process(v1).collect();
        assert_eq!(found, [("blkio", "/a:b"), ("cpu,cpuacct", "/x"), ("name=systemd", "/x"), ("", "/y")]);
        assert_eq!(parse_process("").count(), 0);
    }
}
