//! Untrusted JSON → [`Manifest`]. Pure.

use std::collections::BTreeMap;

/// A validated job manifest (contract §3).
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `[A-Za-z0-9][A-Za-z0-9_.-]{0,99}`.
    pub job_id: String,
    /// Tag, `name@sha256:…` or `sha256:<image id>`, as the user wrote it.
    pub image_hash: String,
    /// 1 to 256 strings; what runs in the container.
    pub command: Vec<String>,
    /// In the user's order; the first is the working directory. Empty: a scratch directory at `/job/workdir`.
    pub mounts: Vec<Mount>,
    /// Environment of the payload, sorted by name.
    pub env: BTreeMap<String, String>,
    /// Job ids that must be SEALED first.
    pub depends_on: Vec<String>,
    /// Limits asked for.
    pub resources: Resources,
    /// Seconds per attempt; none means without limit.
    pub timeout_s: Option<u64>,
    /// Attempts at most, 1 or more.
    pub max_attempts: u32,
    /// Whether the payload may reach a network.
    pub network: Network,
}

/// One entry of `mount_spec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path inside the container.
    pub container: String,
    /// `:ro`.
    pub read_only: bool,
}

/// The left side of a `mount_spec` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// An absolute directory on the host.
    Host(String),
    /// The sealed artifacts of a parent job.
    Job(String),
}

/// `resources`; `None` means the agent's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// CPUs, e.g. 1.5.
    pub cpus: Option<f64>,
    /// Memory in MiB, swap included.
    pub memory_mib: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// GPUs.
    pub gpus: Option<u32>,
}

/// `network`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// No network but loopback.
    #[default]
    None,
    /// Docker's bridge; only where the agent allows it.
    Bridge,
}
