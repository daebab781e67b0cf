//! The host's fingerprint, read from the system itself.

mod nvidia;

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::hash::Hash;

/// Where NVIDIA's driver lists its GPUs.
const GPUS: &str = "/proc/driver/nvidia/gpus";

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
    /// `/proc/sys/kernel/pid_max`: processes and threads that there can be at once.
    pub pids_max: u64,
    /// NVIDIA GPUs; none where the host does not tell, as without their driver.
    pub gpus: Option<u32>,
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
            pids_max: read("/proc/sys/kernel/pid_max").parse().unwrap_or(0),
            gpus: gpus(Path::new(GPUS), Path::new("/dev")),
        }
    }

    /// For NODE_UP: what a result may depend on. The CPU's flags are hashed as the kernel lists them, one space between two:
    /// it lists them in the order of their bits, so the same kernel on the same model gives the same hash.
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
            "machine": machine(),
            "distribution": distribution,
            "cpu_model": cpu("model name"),
            "cpu_flags_sha256": Hash::of(cpu("flags").as_bytes()),
            "cpus": self.cpus,
            "memory_mib": self.memory_mib,
            "boot_id": self.boot_id,
            "cgroup_version": if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) { 2 } else { 1 },
            "gpus": nvidia::gpus(Path::new(GPUS)),
            "gpu_driver": nvidia::driver_version(&read("/proc/driver/nvidia/version")),
        })
    }
}

/// One directory each where the driver lists them; else the device files that it has made so far.
fn gpus(listed: &Path, devices: &Path) -> Option<u32> {
    let count = |dir: &Path, counts: fn(&str) -> bool| {
        let names = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.file_name());
        u32::try_from(names.filter(|name| name.to_str().is_some_and(counts)).count()).ok()
    };
    let is_device = |name: &str| {
        name.strip_prefix("nvidia").is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    count(listed, |_| true).or_else(|| count(devices, is_device).filter(|found| *found > 0))
}

/// What `uname -m` says; kernels before 6.1 have no file for it, and then it is what this program was built for.
fn machine() -> String {
    let told = read("/proc/sys/kernel/arch");
    if told.is_empty() { std::env::consts::ARCH.to_owned() } else { told }
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
    #[test]
    fn gpus_are_counted_where_the_driver_tells_of_them() {
        let dir = std::env::temp_dir().join(format!("hb-gpus-{}", std::process::id()));
        let (listed, devices) = (dir.join("gpus"), dir.join("dev"));
        for name in ["nvidiactl", "nvidia-uvm", "nvidia", "null", "nvidia1x"] {
            fs::create_dir_all(devices.join(name)).expect("a temporary directory");
        }
        assert_eq!(gpus(&listed, &devices), None, "no driver");
        for name in ["nvidia0", "nvidia10"] {
            fs::create_dir_all(devices.join(name)).expect("a temporary directory");
        }
        assert_eq!(gpus(&listed, &devices), Some(2));
        fs::create_dir_all(listed.join("0000:01:00.0")).expect("a temporary directory");
        assert_eq!(gpus(&listed, &devices), Some(1), "the driver's own list goes before");
        fs::remove_dir_all(&dir).expect("it is ours");
    }
}
