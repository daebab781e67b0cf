//! Flags about an attempt's resources. What they may say, beside each other and on this host, is `crate::resources`'s affair.

use clap::Args;

/// `--default-*`: what a manifest that names none gets. `--max-*`: the most that one may ask for.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ResourceFlags {
    /// CPUs of an attempt whose manifest names none [default: all].
    #[arg(long, value_name = "CPUS", env = "HACKBRAIN_DEFAULT_CPUS")]
    pub default_cpus: Option<f64>,
    /// Memory of an attempt whose manifest names none, in MiB [default: the host's, shared among --workers; 256 at least].
    #[arg(long, value_name = "MIB", env = "HACKBRAIN_DEFAULT_MEMORY_MIB")]
    pub default_memory_mib: Option<u64>,
    /// Processes and threads of an attempt whose manifest names none [default: 512].
    #[arg(long, value_name = "N", env = "HACKBRAIN_DEFAULT_PIDS")]
    pub default_pids: Option<u64>,
    /// Most CPUs that a manifest may ask for [default: what the host has].
    #[arg(long, value_name = "CPUS", env = "HACKBRAIN_MAX_CPUS")]
    pub max_cpus: Option<f64>,
    /// Most memory that a manifest may ask for, in MiB [default: what the host has].
    #[arg(long, value_name = "MIB", env = "HACKBRAIN_MAX_MEMORY_MIB")]
    pub max_memory_mib: Option<u64>,
    /// Most processes and threads that a manifest may ask for [default: the kernel's pid_max].
    #[arg(long, value_name = "N", env = "HACKBRAIN_MAX_PIDS")]
    pub max_pids: Option<u64>,
    /// Most GPUs that a manifest may ask for; 0 allows none [default: what the host has].
    #[arg(long, value_name = "N", env = "HACKBRAIN_MAX_GPUS")]
    pub max_gpus: Option<u32>,
}
