//! The host's fingerprint, read from the system itself.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::hash::Hash;

/// What an attempt may be given, and what the ledger says of the machine.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/proc/sys/kernel/hostname`.
    pub name: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// CPUs that this process may use.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// Reads it. What the system does not tell is empty or zero.
    pub fn read() -> Self {
        let meminfo = read("/proc/meminfo");
        let memory_kib = meminfo
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        Self {
            name: read("/proc/sys/kernel/hostname"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            cpus: thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
        }
    }

    /// For NODE_UP: what a result may depend on.
    pub fn fingerprint(&self) -> Value {
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let release = read("/etc/os-release");
        let distribution = release
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map(|name| name.trim_matches('"').to_owned())
            .unwrap_or_default();
        json!({
            "hostname": self.name,
            "kernel": read("/proc/sys/kernel/osrelease"),
            "distribution": distribution,
            "cpu_model": cpu("model name"),
            "cpu_flags_sha256": Hash::of(cpu("flags").as_bytes()),
            "cpus": self.cpus,
            "memory_mib": self.memory_mib,
            "cgroup_version": if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { 2 } else { 1 },
        })
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_tells_of_itself() {
        let host = Host::read();
        assert!(host.cpus >= 1 && host.memory_mib > 64, "{host:?}");
        assert_eq!(host.boot_id.len(), 36);
        let fingerprint = host.fingerprint();
        assert!(fingerprint["kernel"].as_str().is_some_and(|kernel| !kernel.is_empty()), "{fingerprint}");
    }
}
