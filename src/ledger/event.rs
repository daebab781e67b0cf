//! Event ↔ bytes, and the hash chain. The only place that knows an event's JSON.
//!
//! An event is serialised once; the bytes that come out of [`Event::write`] are what is hashed, stored, streamed and dumped.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::head::Head;
use super::reproduction::Reproduction;
use super::time::Time;
use crate::hash::Hash;

/// Version of the event format, in GENESIS.
pub const EVENT_FORMAT: u32 = 1;

/// What an event's `state` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// First event of a ledger.
    Genesis,
    /// The agent started.
    NodeUp,
    /// The agent stopped on request.
    NodeDown,
    /// A well-formed manifest arrived.
    Received,
    /// Validated and hashed.
    Scheduled,
    /// The engine is about to be asked for attempt 1.
    Running,
    /// The payload reported a stable step.
    D1Stable,
    /// The attempt ended without a verdict of its own.
    Crash,
    /// The engine is about to be asked for a further attempt.
    Recovery,
    /// Somebody, or the time limit, asked the attempt to stop; written before anything is signalled.
    Stopping,
    /// Exit 0.
    Completed,
    /// Ended without success.
    Failed,
    /// A cancel request took effect.
    Cancelled,
    /// The artifacts are hashed and the seal is durable.
    Sealed,
    /// Somebody asked for a further attempt of a job that had ended; written before anything is done about it.
    Retriggered,
    /// Files of jobs that had been sealed are removed; written before the first of them goes.
    Pruned,
}

impl State {
    /// All states.
    pub const ALL: [Self; 16] = [
        Self::Genesis,
        Self::NodeUp,
        Self::NodeDown,
        Self::Received,
        Self::Scheduled,
        Self::Running,
        Self::D1Stable,
        Self::Crash,
        Self::Recovery,
        Self::Stopping,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Sealed,
        Self::Retriggered,
        Self::Pruned,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Genesis => "GENESIS",
            Self::NodeUp => "NODE_UP",
            Self::NodeDown => "NODE_DOWN",
            Self::Received => "RECEIVED",
            Self::Scheduled => "SCHEDULED",
            Self::Running => "RUNNING",
            Self::D1Stable => "D1_STABLE",
            Self::Crash => "CRASH",
            Self::Recovery => "RECOVERY",
            Self::Stopping => "STOPPING",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
            Self::Sealed => "SEALED",
            Self::Retriggered => "RETRIGGERED",
            Self::Pruned => "PRUNED",
        }
    }

    /// The state written as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        // By length first: a restart asks this for each event.
        Self::ALL.into_iter().find(|state| state.as_str().len() == text.len() && state.as_str() == text)
    }

    /// Whether it is the node's and not a job's.
    pub fn is_of_node(self) -> bool {
        matches!(self, Self::Genesis | Self::NodeUp | Self::NodeDown | Self::Pruned)
    }

    /// Whether a job in this state has ended.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled | Self::Sealed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// First event of a ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Genesis {
    /// Random identity of the ledger, 32 hex digits.
    pub log_id: String,
    /// [`EVENT_FORMAT`].
    pub format: u32,
}

/// The agent started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeUp {
    /// `--node-name`.
    pub node_name: String,
    /// The agent's version.
    pub version: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// How the last run ended: `none`, `clean`, `killed` or `torn` (a commit was being written).
    pub last_run: String,
    /// Fingerprint of the host, as read from it.
    pub host: Value,
    /// Fingerprint of the container engine, or why it does not answer.
    pub engine: Value,
    /// How mounts are protected against swapped paths.
    pub mount_protection: String,
}

/// The agent stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeDown {
    /// What asked it to, e.g. `SIGTERM`.
    pub reason: String,
}

/// A well-formed manifest arrived.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Received {
    /// RFC 8785.
    pub manifest: Box<RawValue>,
    /// SHA-256 of it.
    pub manifest_hash: Hash,
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        self.manifest_hash == other.manifest_hash && self.manifest.get() == other.manifest.get()
    }
}

/// Somebody asked for a further attempt of a job that had ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retriggered {
    /// Who asked.
    pub by: String,
    /// The job's manifest once more: nothing of it is kept in memory once a job has ended.
    pub manifest: Box<RawValue>,
    /// SHA-256 of it, the same as in RECEIVED.
    pub manifest_hash: Hash,
}

impl PartialEq for Retriggered {
    fn eq(&self, other: &Self) -> bool {
        self.by == other.by && self.manifest_hash == other.manifest_hash && self.manifest.get() == other.manifest.get()
    }
}

/// A mount as it was found when the job was scheduled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MountTotals {
    /// Path inside the container.
    pub container: String,
    /// `rw` or `ro`.
    pub mode: String,
    /// Tree hash.
    pub tree: Hash,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The job whose sealed artifacts it shows; `tree` is then that job's `artifacts_root`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts_of: Option<String>,
}

/// Validated and hashed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scheduled {
    /// `sha256:…`; what runs.
    pub image_id: String,
    /// Hash over the mounts' trees.
    pub input_hash: Hash,
    /// Hash of what makes this execution this execution.
    pub execution_hash: Hash,
    /// One per mount, in the manifest's order.
    pub mounts: Vec<MountTotals>,
}

/// The engine is about to be asked for an attempt (RUNNING, RECOVERY).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The container's name.
    pub container: String,
    /// Seq of the NODE_UP this attempt runs under.
    pub node_up: u64,
    /// RECOVERY only: the last D1_STABLE line that was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_after: Option<String>,
}

/// The payload reported a stable step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct D1Stable {
    /// The line, at most 1 KiB.
    pub line: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Where the line starts in that stream, in bytes.
    pub offset: u64,
    /// How many markers this event stands for.
    pub count: u64,
}

/// What an attempt used, as its own cgroup counted it. A figure that the host does not offer is 0, and named in
/// `not_measured`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_ns: u64,
    /// Peak memory in bytes.
    pub memory_peak_bytes: u64,
    /// Bytes read from block devices.
    pub io_read_bytes: u64,
    /// Bytes written to block devices.
    pub io_write_bytes: u64,
    /// Most processes and threads at once.
    pub pids_peak: u64,
    /// Processes that the OOM killer ended, at least; none in events of versions that did not count them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Names of the figures above that could not be measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_measured: Vec<String>,
}

/// A file's length and SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogDigest {
    /// Length.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: Hash,
    /// False where part of the stream was lost with the engine or the CLI; what there is, is exact.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub complete: bool,
}

fn yes() -> bool {
    true
}

/// Longest message of a FAILED event, in bytes. It may carry paths that a payload chose, and an event has to fit in a frame.
pub const FAILED_MESSAGE_MAX: usize = 8 << 10;

impl Failed {
    /// Of a job by itself. What is too long of the message is cut off.
    pub fn new(reason: impl Into<String>, message: impl Into<String>, ending: Ending) -> Self {
        let mut message = message.into();
        if message.len() > FAILED_MESSAGE_MAX {
            message.truncate(message.floor_char_boundary(FAILED_MESSAGE_MAX));
            message.push('…');
        }
        Self { reason: reason.into(), message, ancestor: None, ending }
    }
}

/// What is known of an attempt after it ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ending {
    /// The payload's exit code, where there is one.
    pub exit_code: Option<i32>,
    /// What it used; null where the host could not measure it.
    pub usage: Option<Usage>,
    /// Its standard output; null where nothing ran.
    pub stdout: Option<LogDigest>,
    /// Its standard error; null where nothing ran.
    pub stderr: Option<LogDigest>,
    /// Whether the kernel killed a process of it for want of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_seen: bool,
}

/// The attempt ended without a verdict of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crash {
    /// `killed`, `oom`, `host`, `engine` or `lost`.
    pub cause: String,
    /// What is known of the attempt.
    #[serde(flatten)]
    pub ending: Ending,
}

/// Ended without success.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// One word of a fixed set: `exit`, `timeout`, `not_started`, `image`, `mount`, `inputs`, `resources`,
    /// `attempt_limit`, `oom`, `seal`, `dependency`.
    pub reason: String,
    /// For a person, with Docker's own words where it has any.
    pub message: String,
    /// `dependency` only: the job whose own end began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<String>,
    /// What is known of the attempt.
    #[serde(flatten)]
    pub ending: Ending,
}

/// Somebody, or the time limit, asked the attempt to stop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stopping {
    /// `cancel` or `timeout`.
    pub asked: String,
    /// Who asked.
    pub by: String,
}

/// A cancel request took effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// Who asked.
    pub by: String,
    /// What is known of the attempt.
    #[serde(flatten)]
    pub ending: Ending,
}

/// The artifacts are hashed and the seal is durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sealed {
    /// SHA-256 of the seal file.
    pub seal_hash: Hash,
    /// Root over the artifacts.
    pub artifacts_root: Hash,
    /// Number of artifacts.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of a job that repeats another's execution: how the two compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduction: Option<Reproduction>,
}

/// Files of sealed jobs are about to be removed. The jobs stay SEALED, with their seals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    /// `command` or `request`.
    pub by: String,
    /// How long ago, in seconds, the jobs had been sealed at least.
    pub older_than_s: u64,
    /// Ids of the jobs, at most [`PRUNED_JOBS_MAX`].
    pub jobs: Vec<String>,
    /// Regular files that were there to be removed, when they were counted just before.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Jobs of one PRUNED event, at most: it stays below 104 KiB.
pub const PRUNED_JOBS_MAX: usize = 1000;

/// An event's `detail`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Detail {
    Genesis(Genesis),
    NodeUp(NodeUp),
    NodeDown(NodeDown),
    Received(Received),
    Scheduled(Scheduled),
    Running(Intent),
    D1Stable(D1Stable),
    Crash(Crash),
    Recovery(Intent),
    Stopping(Stopping),
    Completed(Ending),
    Failed(Failed),
    Cancelled(Cancelled),
    Sealed(Sealed),
    Retriggered(Retriggered),
    Pruned(Pruned),
}

impl Detail {
    /// The state that this detail belongs to.
    pub fn state(&self) -> State {
        match self {
            Self::Genesis(_) => State::Genesis,
            Self::NodeUp(_) => State::NodeUp,
            Self::NodeDown(_) => State::NodeDown,
            Self::Received(_) => State::Received,
            Self::Scheduled(_) => State::Scheduled,
            Self::Running(_) => State::Running,
            Self::D1Stable(_) => State::D1Stable,
            Self::Crash(_) => State::Crash,
            Self::Recovery(_) => State::Recovery,
            Self::Stopping(_) => State::Stopping,
            Self::Completed(_) => State::Completed,
            Self::Failed(_) => State::Failed,
            Self::Cancelled(_) => State::Cancelled,
            Self::Sealed(_) => State::Sealed,
            Self::Retriggered(_) => State::Retriggered,
            Self::Pruned(_) => State::Pruned,
        }
    }

    fn write(&self, out: &mut Vec<u8>) -> serde_json::Result<()> {
        match self {
            Self::Genesis(d) => serde_json::to_writer(out, d),
            Self::NodeUp(d) => serde_json::to_writer(out, d),
            Self::NodeDown(d) => serde_json::to_writer(out, d),
            Self::Received(d) => serde_json::to_writer(out, d),
            Self::Scheduled(d) => serde_json::to_writer(out, d),
            Self::Running(d) | Self::Recovery(d) => serde_json::to_writer(out, d),
            Self::D1Stable(d) => serde_json::to_writer(out, d),
            Self::Crash(d) => serde_json::to_writer(out, d),
            Self::Stopping(d) => serde_json::to_writer(out, d),
            Self::Completed(d) => serde_json::to_writer(out, d),
            Self::Failed(d) => serde_json::to_writer(out, d),
            Self::Cancelled(d) => serde_json::to_writer(out, d),
            Self::Sealed(d) => serde_json::to_writer(out, d),
            Self::Retriggered(d) => serde_json::to_writer(out, d),
            Self::Pruned(d) => serde_json::to_writer(out, d),
        }
    }

    fn parse(state: State, json: &str) -> serde_json::Result<Self> {
        Ok(match state {
            State::Genesis => Self::Genesis(serde_json::from_str(json)?),
            State::NodeUp => Self::NodeUp(serde_json::from_str(json)?),
            State::NodeDown => Self::NodeDown(serde_json::from_str(json)?),
            State::Received => Self::Received(serde_json::from_str(json)?),
            State::Scheduled => Self::Scheduled(serde_json::from_str(json)?),
            State::Running => Self::Running(serde_json::from_str(json)?),
            State::D1Stable => Self::D1Stable(serde_json::from_str(json)?),
            State::Crash => Self::Crash(serde_json::from_str(json)?),
            State::Recovery => Self::Recovery(serde_json::from_str(json)?),
            State::Stopping => Self::Stopping(serde_json::from_str(json)?),
            State::Completed => Self::Completed(serde_json::from_str(json)?),
            State::Failed => Self::Failed(serde_json::from_str(json)?),
            State::Cancelled => Self::Cancelled(serde_json::from_str(json)?),
            State::Sealed => Self::Sealed(serde_json::from_str(json)?),
            State::Retriggered => Self::Retriggered(serde_json::from_str(json)?),
            State::Pruned => Self::Pruned(serde_json::from_str(json)?),
        })
    }
}

/// Whose event it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The job.
    pub job_id: Arc<str>,
    /// 0 before the first attempt.
    pub attempt: u32,
}

/// An event without its place in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Never before that of the event before it.
    pub time: Time,
    /// `None` for node events.
    pub subject: Option<Subject>,
    /// Says the state, too.
    pub detail: Detail,
}

impl Event {
    /// Appends the event's bytes to `out`: compact JSON, keys in the contract's order.
    pub fn write(&self, seq: u64, prev: &Hash, out: &mut Vec<u8>) {
        let mut head = String::with_capacity(256);
        let _ = write!(head, "{{\"seq\":{seq},\"prev\":\"{prev}\",\"time\":\"{}\"", self.time);
        if let Some(Subject { job_id, attempt }) = &self.subject {
            // The manifest's rules leave nothing in a job id that JSON would escape.
            let _ = write!(head, ",\"job_id\":\"{job_id}\",\"attempt\":{attempt}");
        }
        let _ = write!(head, ",\"state\":\"{}\",\"detail\":", self.detail.state());
        out.extend_from_slice(head.as_bytes());
        self.detail.write(out).expect("an event's detail is plain data");
        let _ = out.write_all(b"}");
    }
}

/// An event read back, with its place in the chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// Counts from 1.
    pub seq: u64,
    /// SHA-256 of the bytes of the event before it.
    pub prev: Hash,
    /// The event.
    pub event: Event,
}

impl Stored {
    /// Reads an event's bytes, which must be just what [`Event::write`] writes around the detail. The error says what is
    /// wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Head { seq, prev, time, subject, state, detail } = Head::parse(bytes)?;
        let subject = subject.map(|(job_id, attempt)| Subject { job_id: job_id.into(), attempt });
        let detail = Detail::parse(state, detail).map_err(|error| format!("{state}: detail: {error}"))?;
        Ok(Self { seq, prev, event: Event { time, subject, detail } })
    }
}

/// Checks the chain link of stored bytes without reading them as JSON: they must begin with just this seq and prev.
pub fn check_link(bytes: &[u8], seq: u64, prev: &Hash) -> Result<(), String> {
    let expected = format!("{{\"seq\":{seq},\"prev\":\"{prev}\",");
    if bytes.starts_with(expected.as_bytes()) {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&bytes[..bytes.len().min(expected.len())]).into_owned();
    Err(format!("the chain is broken: the event should begin with {expected} and begins with {found}"))
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
