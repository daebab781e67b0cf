//! What the engine knows of a container, and of itself: its JSON → our types. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::process::EngineError;
use crate::resources::EngineCapacity;

/// Answer to "is there a container of this name?".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inspect {
    /// None of this name.
    Absent,
    /// Its state.
    Present(ContainerState),
}

/// A container's state at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerState {
    /// 64 hex digits.
    pub id: String,
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: String,
    /// Whether its first process lives (also while paused).
    pub running: bool,
    /// Whether its first process ever ran. Where not, `exit_code` 0 means nothing: the container may yet be started.
    pub started: bool,
    /// 0 to 255; 0 while it runs.
    pub exit_code: i32,
    /// The OOM killer took a process of the container; not necessarily the first one.
    pub oom_killed: bool,
    /// The engine's own words on why it could not start, else empty.
    pub error: String,
    /// RFC 3339; the year 1 where it never started.
    pub started_at: String,
    /// RFC 3339; the year 1 where it has not ended.
    pub finished_at: String,
    /// Labels of the container, those of its image included.
    pub labels: BTreeMap<String, String>,
    /// `sha256:<64 hex>` of the image it really has.
    pub image_id: String,
    /// Host pid of its first process; 0 where it does not run.
    pub pid: u32,
}

/// An image at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// `sha256:<64 hex>`.
    pub id: String,
    /// Its names, `repository:tag`.
    pub names: Vec<String>,
}

/// The engine as a part of the host's fingerprint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineInfo {
    /// E.g. `20.10.24+dfsg1`.
    pub version: String,
    /// `cgroupfs` or `systemd`.
    pub cgroup_driver: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Names of the OCI runtimes, sorted.
    pub runtimes: Vec<String>,
    /// The one that containers get.
    pub default_runtime: String,
    /// What confines containers, e.g. `name=seccomp,profile=default`.
    pub security_options: Vec<String>,
    /// Version of the API that the CLI and the engine have agreed on; empty where the CLI does not tell.
    pub api_version: String,
    /// Version of the `docker` command.
    pub cli_version: String,
    /// Version of containerd as the engine tells it; empty where it does not.
    pub containerd_version: String,
    /// Version of runc, likewise.
    pub runc_version: String,
    /// E.g. `overlay2`.
    pub storage_driver: String,
    /// Kernel release of the engine's host.
    pub kernel: String,
    /// CPUs of the engine's host.
    pub cpus: u32,
    /// Memory of the engine's host in bytes.
    pub memory_bytes: u64,
    /// Whether swap can be limited; see `RunSpec::swap_limit`.
    pub swap_limit: bool,
    /// Whether an NVIDIA runtime is there.
    pub nvidia: bool,
    /// Whether containers go on while the engine is stopped.
    pub live_restore: bool,
}

impl EngineInfo {
    /// What it can give to an attempt.
    pub fn capacity(&self) -> EngineCapacity {
        EngineCapacity { cpus: self.cpus, memory_mib: self.memory_bytes >> 20, nvidia: self.nvidia }
    }
}

/// The start of every time the engine has not set.
const NEVER: &str = "0001-01-01T";

/// Parses what `docker inspect --type container` prints for one container.
pub(super) fn parse_containers(json: &[u8]) -> Result<ContainerState, EngineError> {
    let mut list: Vec<RawContainer> = serde_json::from_slice(json).map_err(|error| unexpected("inspect", &error))?;
    match list.pop() {
        Some(raw) if list.is_empty() => Ok(raw.into()),
        _ => Err(EngineError::Other("docker inspect told of none or several containers instead of one".into())),
    }
}

/// Parses the engine's own answer about one container.
pub(super) fn parse_container(json: &[u8]) -> Result<ContainerState, EngineError> {
    serde_json::from_slice(json).map(RawContainer::into).map_err(|error| unexpected("inspect", &error))
}

/// Parses an image, as the engine or `docker image inspect` tells of it.
pub(super) fn parse_image(json: &[u8]) -> Result<Image, EngineError> {
    let raw: RawImage = serde_json::from_slice(json).map_err(|error| unexpected("image inspect", &error))?;
    Ok(Image { id: raw.id, names: raw.repo_tags.unwrap_or_default() })
}

fn unexpected(what: &str, error: &serde_json::Error) -> EngineError {
    EngineError::Other(format!("docker {what} printed unexpected JSON: {error}"))
}

impl From<RawContainer> for ContainerState {
    fn from(raw: RawContainer) -> Self {
        Self {
            id: raw.id,
            running: raw.state.running,
            started: !raw.state.started_at.is_empty() && !raw.state.started_at.starts_with(NEVER),
            status: raw.state.status,
            exit_code: raw.state.exit_code,
            oom_killed: raw.state.oom_killed,
            error: raw.state.error,
            started_at: raw.state.started_at,
            finished_at: raw.state.finished_at,
            labels: raw.config.labels.unwrap_or_default(),
            image_id: raw.image,
            pid: raw.state.pid,
        }
    }
}

/// Joins `docker info` and `docker version`.
pub(super) fn parse_engine(info: &[u8], version: &[u8]) -> Result<EngineInfo, EngineError> {
    let info: RawInfo = serde_json::from_slice(info).map_err(|error| unexpected("info", &error))?;
    if let Some(words) = info.server_errors.unwrap_or_default().into_iter().next() {
        return Err(EngineError::Unavailable(words));
    }
    let version: RawVersion = serde_json::from_slice(version).map_err(|error| unexpected("version", &error))?;
    let components = version.server.map(|server| server.components.unwrap_or_default()).unwrap_or_default();
    let component = |name: &str| {
        components.iter().find(|component| component.name == name).map(|c| c.version.clone()).unwrap_or_default()
    };
    let client = version.client.unwrap_or_default();
    let runtimes: Vec<String> = info.runtimes.unwrap_or_default().into_keys().collect();
    Ok(EngineInfo {
        version: info.server_version,
        cgroup_driver: info.cgroup_driver,
        // Engines before 20.10 know only version 1 and do not say so.
        cgroup_version: if info.cgroup_version.is_empty() { "1".into() } else { info.cgroup_version },
        nvidia: runtimes.iter().any(|name| name.contains("nvidia")),
        runtimes,
        default_runtime: info.default_runtime,
        security_options: info.security_options.unwrap_or_default(),
        api_version: client.api_version,
        cli_version: client.version,
        containerd_version: component("containerd"),
        runc_version: component("runc"),
        storage_driver: info.driver,
        kernel: info.kernel_version,
        cpus: info.ncpu,
        memory_bytes: info.mem_total,
        swap_limit: info.swap_limit,
        live_restore: info.live_restore_enabled,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawContainer {
    id: String,
    state: RawState,
    image: String,
    config: RawConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawImage {
    id: String,
    repo_tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawState {
    status: String,
    running: bool,
    #[serde(rename = "OOMKilled", default)]
    oom_killed: bool,
    #[serde(default)]
    pid: u32,
    exit_code: i32,
    #[serde(default)]
    error: String,
    started_at: String,
    finished_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct RawInfo {
    server_errors: Option<Vec<String>>,
    server_version: String,
    cgroup_driver: String,
    cgroup_version: String,
    runtimes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    default_runtime: String,
    security_options: Option<Vec<String>>,
    driver: String,
    kernel_version: String,
    #[serde(rename = "NCPU")]
    ncpu: u32,
    mem_total: u64,
    swap_limit: bool,
    live_restore_enabled: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawVersion {
    client: Option<RawClient>,
    server: Option<RawServer>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawClient {
    version: String,
    api_version: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawServer {
    components: Option<Vec<RawComponent>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawComponent {
    name: String,
    version: String,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn container(started_at: &str, labels: &str) -> Result<ContainerState, EngineError> {
        let json = format!(
            r#"{{"Id":"ab","Image":"sha256:1","Name":"/x","Config":{{"Labels":{labels}}},"State":{{"Status":"exited",
            "Running":false,"OOMKilled":true,"Pid":0,"ExitCode":137,"Error":"","StartedAt":"{started_at}",
            "FinishedAt":"2026-11-23T08:00:01Z"}}}}"#
        );
        let listed = parse_containers(format!("[{json}]").as_bytes());
        assert_eq!(parse_container(json.as_bytes()), listed, "the CLI and the socket tell the same");
        listed
    }

    #[test]
    fn a_container_that_never_started_is_told_apart() {
        let ran = container("2026-11-23T08:00:00Z", r#"{"hackbrain.job":"a"}"#).unwrap();
        assert!(ran.started && ran.oom_killed && !ran.running);
        assert_eq!((ran.exit_code, ran.image_id.as_str()), (137, "sha256:1"));
        assert_eq!(ran.labels.get("hackbrain.job").map(String::as_str), Some("a"));
        assert!(!container("0001-01-01T00:00:00Z", "null").unwrap().started);
        assert!(matches!(parse_containers(b"[]"), Err(EngineError::Other(_))));
        assert!(matches!(parse_container(b"what"), Err(EngineError::Other(_))));
    }

    #[test]
    fn the_engine_tells_of_itself() {
        let info = br#"{"ServerVersion":"20.10.24","CgroupDriver":"cgroupfs","CgroupVersion":"1","SwapLimit":true,
            "Runtimes":{"runc":{"path":"runc"},"nvidia":{"path":"x"}},"Driver":"overlay2","NCPU":2,"MemTotal":8,
            "KernelVersion":"6.18","LiveRestoreEnabled":true,"DefaultRuntime":"runc","SecurityOptions":["name=seccomp"]}"#;
        let version = br#"{"Client":{"Version":"28.2.2","ApiVersion":"1.41"},"Server":{"Components":[
            {"Name":"containerd","Version":"1.6.20"},{"Name":"runc","Version":"1.1.5"}]}}"#;
        let engine = parse_engine(info, version).unwrap();
        assert!(engine.nvidia && engine.swap_limit && engine.live_restore);
        assert_eq!((engine.runc_version.as_str(), engine.runtimes.len(), engine.cpus), ("1.1.5", 2, 2));
        let versions = [&engine.cli_version, &engine.api_version, &engine.containerd_version, &engine.default_runtime];
        assert_eq!(versions, ["28.2.2", "1.41", "1.6.20", "runc"]);
        assert_eq!(engine.security_options, ["name=seccomp"]);
        // Engines tell less where they are older, or another program stands in for the CLI.
        let bare = parse_engine(br#"{"SecurityOptions":null}"#, br#"{"Client":{},"Server":null}"#).unwrap();
        assert_eq!((bare.containerd_version.as_str(), bare.security_options.len()), ("", 0));
        let down = parse_engine(br#"{"ServerErrors":["Cannot connect"]}"#, version);
        assert_eq!(down, Err(EngineError::Unavailable("Cannot connect".into())));
    }
}
