//! `docker run`'s argument vector for one attempt. Pure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::manifest::Network;

/// Bytes of one log file that the engine keeps for `docker logs`, MiB.
pub const ENGINE_LOG_MIB: u64 = 64;
/// Rotated log files that the engine keeps. Output beyond `ENGINE_LOG_MIB × ENGINE_LOG_FILES` cannot be completed
/// after the CLI died.
pub const ENGINE_LOG_FILES: u64 = 8;
/// Open files a payload may have: the kernel's default hard limit. More than the engine itself may have makes every
/// start fail where it lacks CAP_SYS_RESOURCE.
pub const NOFILE_MAX: u64 = 4096;
/// The engine takes `--cpus 0` for "no limit", so a request never rounds down to it.
pub const CPUS_MIN: f64 = 0.01;
/// Host name inside every container: the same for all, since payloads may hash or print it.
pub const HOSTNAME: &str = "hb-job";

/// Environment that every payload gets, so that two runs of the same execution see the same; a manifest may override it.
pub const BASE_ENV: [(&str, &str); 5] =
    [("HOME", "/tmp"), ("PYTHONHASHSEED", "0"), ("TZ", "UTC"), ("LC_ALL", "C.UTF-8"), ("SOURCE_DATE_EPOCH", "0")];

/// Everything that decides what one attempt runs and may reach.
#[derive(Debug, Clone, PartialEq)]
pub struct RunSpec {
    /// Container name, `hb-<job>-<attempt>`: the witness of what was started.
    pub container: String,
    /// Labels, e.g. `hackbrain.log`, `hackbrain.job`, `hackbrain.attempt`, `hackbrain.execution`.
    pub labels: BTreeMap<String, String>,
    /// `sha256:<64 hex>`.
    pub image_id: String,
    /// What runs; at least one string, the first not empty.
    pub command: Vec<String>,
    /// Bind mounts, in order.
    pub binds: Vec<Bind>,
    /// Absolute working directory inside the container.
    pub workdir: String,
    /// Numeric user and group of the payload.
    pub user: (u32, u32),
    /// The manifest's environment; wins over [`BASE_ENV`].
    pub env: BTreeMap<String, String>,
    /// CPUs, e.g. 1.5.
    pub cpus: f64,
    /// Memory in MiB; `/tmp` and `/dev/shm` count to it.
    pub memory_mib: u64,
    /// Whether the engine can limit swap (`EngineInfo::swap_limit`). Where it cannot, asking makes the CLI print a
    /// warning into the payload's stderr.
    pub swap_limit: bool,
    /// Processes and threads.
    pub pids: u64,
    /// GPUs; 0 asks for none.
    pub gpus: u32,
    /// What the payload may reach.
    pub network: Network,
    /// Absolute cgroup path below which the engine puts the container, e.g. `/hackbrain-1f2e/hb-x-1`.
    pub cgroup_parent: Option<String>,
    /// Where the CLI writes the container's id, after it was created and before it is started. Must not exist.
    pub cidfile: Option<PathBuf>,
}

/// One bind mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the engine's host; it must exist.
    pub source: PathBuf,
    /// Absolute path inside the container.
    pub container: String,
    /// Whether the payload may only read.
    pub read_only: bool,
}

/// The arguments after the program's name, beginning with `run`.
///
/// The command's first string goes to `--entrypoint` and the rest behind the image: an image's own ENTRYPOINT would
/// otherwise receive the command as arguments and could run something else, while the ledger says that the manifest's
/// command ran. The price: an image whose entrypoint prepares the environment needs it named in the command.
/// Nothing after the image is read as an option, and all that precedes it is ours or in `--flag=value` form.
pub fn run_argv(spec: &RunSpec) -> Vec<OsString> {
    let mut argv: Vec<OsString> = Vec::with_capacity(96);
    let mut push = |argument: &str| argv.push(argument.into());
    push("run");
    push(&format!("--name={}", spec.container));
    for (name, value) in &spec.labels {
        push(&format!("--label={name}={value}"));
    }
    let network = match spec.network {
        Network::None => "none",
        Network::Bridge => "bridge",
    };
    push(&format!("--network={network}"));
    let memory_mib = spec.memory_mib;
    // Half the memory: a payload that fills /tmp gets ENOSPC, which it can report, before it meets the OOM killer.
    // exec, because wheels and JITs load code from there.
    push(&format!("--tmpfs=/tmp:rw,exec,nosuid,nodev,size={}m,mode=1777", (memory_mib / 2).max(1)));
    for flag in [
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--ulimit=core=0",
        "--ipc=private",
        // Without an init, PID 1 ignores its own SIGKILL, and SIGTERM waits out the grace period.
        "--init",
        "--pull=never",
        "--restart=no",
        // Neither the image's health check nor its stop signal may change what an attempt is.
        "--no-healthcheck",
        "--stop-signal=SIGTERM",
        // A SIGTERM to the CLI (a service manager ends whole groups) must not become one for the payload.
        "--sig-proxy=false",
        // `json-file` turns bytes that are not UTF-8 into U+FFFD; `local` keeps them.
        "--log-driver=local",
        "--log-opt=compress=false",
    ] {
        push(flag);
    }
    push(&format!("--log-opt=max-size={ENGINE_LOG_MIB}m"));
    push(&format!("--log-opt=max-file={ENGINE_LOG_FILES}"));
    push(&format!("--pids-limit={}", spec.pids));
    push(&format!("--memory={memory_mib}m"));
    push(&if spec.swap_limit { format!("--memory-swap={memory_mib}m") } else { "--memory-swap=-1".to_owned() });
    push(&format!("--cpus={:.3}", spec.cpus.max(CPUS_MIN)));
    if spec.gpus > 0 {
        push(&format!("--gpus={}", spec.gpus));
    }
    push(&format!("--user={}:{}", spec.user.0, spec.user.1));
    push(&format!("--ulimit=nofile={NOFILE_MAX}:{NOFILE_MAX}"));
    push(&format!("--hostname={HOSTNAME}"));
    push(&format!("--workdir={}", spec.workdir));
    if let Some(path) = &spec.cidfile {
        push(&format!("--cidfile={}", path.display()));
    }
    if let Some(parent) = &spec.cgroup_parent {
        push(&format!("--cgroup-parent={parent}"));
    }
    // Overridden names are left out rather than repeated: which of two equal names wins is the engine's affair.
    for (name, value) in BASE_ENV.iter().filter(|(name, _)| !spec.env.contains_key(*name)) {
        push(&format!("--env={name}={value}"));
    }
    for (name, value) in &spec.env {
        push(&format!("--env={name}={value}"));
    }
    for bind in &spec.binds {
        argv.push(mount_argument(bind));
    }
    let (program, arguments) = spec.command.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    argv.push(format!("--entrypoint={program}").into());
    argv.push("--".into());
    argv.push(spec.image_id.as_str().into());
    argv.extend(arguments.iter().map(Into::into));
    argv
}

/// `--mount` takes one record of CSV: a field with a comma or a quote would add options unless it is quoted.
/// Such paths are refused earlier; this is the second lock on that door.
fn mount_argument(bind: &Bind) -> OsString {
    let mut argument = b"--mount=type=bind".to_vec();
    for (key, value) in [("src=", bind.source.as_os_str().as_bytes()), ("dst=", bind.container.as_bytes())] {
        argument.extend_from_slice(b",\"");
        argument.extend_from_slice(key.as_bytes());
        for byte in value {
            if *byte == b'"' {
                argument.push(b'"');
            }
            argument.push(*byte);
        }
        argument.push(b'"');
    }
    argument.extend_from_slice(b",bind-propagation=rprivate");
    if bind.read_only {
        argument.extend_from_slice(b",readonly");
    }
    OsString::from_vec(argument)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn spec() -> RunSpec {
        RunSpec {
            container: "hb-a-1".into(),
            labels: BTreeMap::from([("hackbrain.job".into(), "a".into())]),
            image_id: "sha256:00".into(),
            command: vec!["python".into(), "-c".into(), "--privileged".into()],
            binds: vec![Bind { source: "/data/x".into(), container: "/job".into(), read_only: false }],
            workdir: "/job".into(),
            user: (1000, 1001),
            env: BTreeMap::new(),
            cpus: 1.5,
            memory_mib: 256,
            swap_limit: true,
            pids: 64,
            gpus: 0,
            network: Network::None,
            cgroup_parent: None,
            cidfile: None,
        }
    }

    fn argv_of(spec: &RunSpec) -> Vec<String> {
        run_argv(spec).into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn the_sandbox_is_always_there_and_nothing_interactive_is() {
        let argv = argv_of(&spec());
        assert_eq!(argv[0], "run");
        for flag in [
            "--name=hb-a-1",
            "--label=hackbrain.job=a",
            "--network=none",
            "--read-only",
            "--tmpfs=/tmp:rw,exec,nosuid,nodev,size=128m,mode=1777",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--pids-limit=64",
            "--memory=256m",
            "--memory-swap=256m",
            "--cpus=1.500",
            "--user=1000:1001",
            "--ulimit=nofile=4096:4096",
            "--ulimit=core=0",
            "--ipc=private",
            "--init",
            "--hostname=hb-job",
            "--pull=never",
            "--restart=no",
            "--log-driver=local",
            "--log-opt=max-size=64m",
            "--log-opt=max-file=8",
            "--log-opt=compress=false",
            "--mount=type=bind,\"src=/data/x\",\"dst=/job\",bind-propagation=rprivate",
            "--workdir=/job",
            "--env=HOME=/tmp",
            "--env=PYTHONHASHSEED=0",
            "--env=TZ=UTC",
            "--env=LC_ALL=C.UTF-8",
            "--env=SOURCE_DATE_EPOCH=0",
            "--entrypoint=python",
        ] {
            assert_eq!(argv.iter().filter(|argument| *argument == flag).count(), 1, "{flag} in {argv:?}");
        }
        let options_end = argv.iter().position(|argument| argument == "--").unwrap();
        for refused in ["--rm", "-i", "-t", "--interactive", "--tty", "--privileged", "--detach", "-d"] {
            assert!(!argv[..options_end].iter().any(|argument| argument == refused), "{refused}");
        }
        assert_eq!(argv[options_end..], ["--", "sha256:00", "-c", "--privileged"]);
    }

    #[test]
    fn what_a_spec_changes() {
        type Case = (fn(&mut RunSpec), &'static [&'static str], &'static [&'static str]);
        let table: [Case; 7] = [
            (|s| s.network = Network::Bridge, &["--network=bridge"], &["--network=none"]),
            (|s| s.cpus = 0.0001, &["--cpus=0.010"], &[]),
            (|s| s.gpus = 2, &["--gpus=2"], &[]),
            (|s| s.swap_limit = false, &["--memory-swap=-1"], &["--memory-swap=256m"]),
            (|s| s.cgroup_parent = Some("/hackbrain-1/x".into()), &["--cgroup-parent=/hackbrain-1/x"], &[]),
            (
                |s| s.env = BTreeMap::from([("TZ".into(), "Asia/Tokyo".into()), ("A".into(), "b=c d".into())]),
                &["--env=TZ=Asia/Tokyo", "--env=A=b=c d"],
                &["--env=TZ=UTC"],
            ),
            (
                |s| s.binds = vec![Bind { source: "/a,readonly".into(), container: "/q\"".into(), read_only: true }],
                &["--mount=type=bind,\"src=/a,readonly\",\"dst=/q\"\"\",bind-propagation=rprivate,readonly"],
                &[],
            ),
        ];
        for (change, present, absent) in table {
            let mut changed = spec();
            change(&mut changed);
            let argv = argv_of(&changed);
            for flag in present {
                assert!(argv.iter().any(|argument| argument == flag), "{flag} missing in {argv:?}");
            }
            for flag in absent {
                assert!(!argv.iter().any(|argument| argument == flag), "{flag} in {argv:?}");
            }
        }
    }
}
