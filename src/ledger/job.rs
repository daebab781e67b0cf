//! A job as its events made it, and what may follow. Pure.

use std::sync::{Arc, OnceLock};

use serde::Serialize;

use super::event::{State, Stopping};
use super::graph::{Fate, Lineage};
use super::time::Time;
use crate::hash::Hash;
use crate::manifest::{self, Manifest};

/// A job as its events made it. Small, since a ledger may hold millions; what only an unfinished job needs is in [`Open`].
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Its id.
    pub job_id: Arc<str>,
    /// Counts the ledger's jobs in the order they were received, from 0.
    pub number: u32,
    /// State of its last event.
    pub state: State,
    /// 0 before the first attempt.
    pub attempt: u32,
    /// Seq of its last event.
    pub seq: u64,
    /// Seq of its RECEIVED event.
    pub received_seq: u64,
    /// When it was received.
    pub received: Time,
    /// When its first attempt was recorded.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
    /// The image as the manifest names it.
    pub image_hash: Arc<str>,
    /// SHA-256 of the canonical manifest.
    pub manifest_hash: Hash,
    /// The image that runs, `sha256:…`.
    pub image_id: Option<Arc<str>>,
    /// What makes this execution this execution.
    pub execution_hash: Option<Hash>,
    /// Exit code of the last attempt that had one.
    pub exit_code: Option<i32>,
    /// Why it failed or crashed last.
    pub reason: Option<Arc<str>>,
    /// The last D1_STABLE line.
    pub last_d1_stable: Option<Arc<str>>,
    /// Bit `n` is set once an event of the state with discriminant `n` was written.
    pub seen: u16,
    /// Whom it waits for; `None` for nobody.
    pub lineage: Option<Arc<Lineage>>,
    /// `None` once it ended.
    pub open: Option<Box<Open>>,
}

/// What only an unfinished job needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Open {
    /// The manifest.
    pub manifest: StoredJson<Manifest>,
    /// When the current attempt was recorded.
    pub attempt_began: Time,
    /// Boot id of the host at that time.
    pub boot_id: Arc<str>,
    /// Byte offsets of the last D1_STABLE lines of the current attempt, on stdout and stderr.
    pub marks: [Option<u64>; 2],
    /// A stop that was asked for and has not taken effect.
    pub stop: Option<StoredJson<Stopping>>,
    /// Attempts that it had when it was retriggered last; they do not count against `max_attempts`.
    pub retriggered_at: Option<u32>,
    /// The job that it repeats.
    pub reproduces: Option<Arc<str>>,
}

/// A part of an event, kept as its JSON and read when somebody asks: most of the jobs that a restart meets have ended.
#[derive(Debug, Clone)]
pub struct StoredJson<T> {
    text: Arc<str>,
    read: OnceLock<Result<Arc<T>, String>>,
}

/// What can be read from a part of an event.
pub trait FromStored: Sized {
    /// The error says what is wrong with it.
    fn from_stored(json: &str) -> Result<Self, String>;
}

impl FromStored for Manifest {
    fn from_stored(json: &str) -> Result<Self, String> {
        manifest::parse(json.as_bytes()).map(|parsed| parsed.manifest).map_err(|rejection| rejection.to_string())
    }
}

impl FromStored for Stopping {
    fn from_stored(json: &str) -> Result<Self, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }
}

impl<T: FromStored> StoredJson<T> {
    /// From the JSON.
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), read: OnceLock::new() }
    }

    /// Length of the JSON.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// What it says, or what is wrong with it.
    pub fn read(&self) -> Result<&Arc<T>, &str> {
        self.read.get_or_init(|| T::from_stored(&self.text).map(Arc::new)).as_ref().map_err(String::as_str)
    }

    /// What it says. It was written by this agent, or read when the agent started.
    pub fn get(&self) -> &Arc<T> {
        self.read().unwrap_or_else(|error| panic!("an unfinished job's {} cannot be read: {error}", self.text))
    }
}

impl<T> PartialEq for StoredJson<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Open {
    /// Of a job that was received, or retriggered, at `time`.
    pub(super) fn new(manifest: StoredJson<Manifest>, time: Time) -> Self {
        Self {
            manifest,
            attempt_began: time,
            boot_id: "".into(),
            marks: [None; 2],
            stop: None,
            retriggered_at: None,
            reproduces: None,
        }
    }

    /// Whether all of it can be read; the error says what cannot.
    pub fn check(&self) -> Result<(), &str> {
        self.manifest.read()?;
        self.stop.as_ref().map_or(Ok(()), |stop| stop.read().map(drop))
    }
}

/// Where a job stands, coarsely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// RECEIVED, SCHEDULED, RETRIGGERED.
    Waiting,
    /// RUNNING to COMPLETED.
    Active,
    /// SEALED, FAILED, CANCELLED.
    Ended,
}

impl Phase {
    /// The phase written as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        [(Self::Waiting, "waiting"), (Self::Active, "active"), (Self::Ended, "ended")]
            .into_iter()
            .find_map(|(phase, name)| (name == text).then_some(phase))
    }
}

/// A job's summary (contract §3).
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Summary<'a> {
    pub job_id: &'a str,
    pub state: &'static str,
    pub phase: Phase,
    pub attempt: u32,
    pub seq: u64,
    pub received: Time,
    pub started: Option<Time>,
    pub ended: Option<Time>,
    pub image_hash: &'a str,
    pub image_id: Option<&'a str>,
    pub execution_hash: Option<Hash>,
    pub exit_code: Option<i32>,
    pub reason: Option<&'a str>,
    pub last_d1_stable: Option<&'a str>,
    pub ancestor: Option<&'a str>,
}

/// What a long list shows of a job: as in its [`Summary`], nothing where that has null, and no hashes of the execution.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Brief<'a> {
    pub job_id: &'a str,
    pub state: &'static str,
    pub phase: Phase,
    pub attempt: u32,
    pub seq: u64,
    pub received: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    pub image_hash: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_d1_stable: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ancestor: Option<&'a str>,
}

impl<'a> From<Summary<'a>> for Brief<'a> {
    fn from(summary: Summary<'a>) -> Self {
        let Summary { job_id, state, phase, attempt, seq, received, started, ended, image_hash, .. } = summary;
        let Summary { exit_code, reason, last_d1_stable, ancestor, .. } = summary;
        Self {
            job_id,
            state,
            phase,
            attempt,
            seq,
            received,
            started,
            ended,
            image_hash,
            exit_code,
            reason,
            last_d1_stable,
            ancestor,
        }
    }
}

impl Job {
    /// Where it stands.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Received | State::Scheduled | State::Retriggered => Phase::Waiting,
            state if state.is_end() => Phase::Ended,
            _ => Phase::Active,
        }
    }

    /// Whether an event of this state was ever written for it.
    pub fn has_seen(&self, state: State) -> bool {
        self.seen & (1 << state as u16) != 0
    }

    /// What readers are shown.
    pub fn summary(&self) -> Summary<'_> {
        Summary {
            job_id: &self.job_id,
            state: self.state.as_str(),
            phase: self.phase(),
            attempt: self.attempt,
            seq: self.seq,
            received: self.received,
            started: self.started,
            ended: self.ended,
            image_hash: &self.image_hash,
            image_id: self.image_id.as_deref(),
            execution_hash: self.execution_hash,
            exit_code: self.exit_code,
            reason: self.reason.as_deref(),
            last_d1_stable: self.last_d1_stable.as_deref(),
            ancestor: self.ancestor().map(|ancestor| &**ancestor),
        }
    }

    /// Ids of the jobs it waits for, sorted.
    pub fn parents(&self) -> &[Arc<str>] {
        self.lineage.as_ref().map_or(&[], |lineage| &lineage.parents)
    }

    /// Where it is FAILED because of a parent: the job whose own end began it.
    pub fn ancestor(&self) -> Option<&Arc<str>> {
        self.lineage.as_ref()?.ancestor.as_ref()
    }

    /// Whether it may only go on once its parents are SEALED. Once it was SCHEDULED they are, for ever.
    pub fn waits_for_parents(&self) -> bool {
        self.lineage.is_some() && self.image_id.is_none() && matches!(self.state, State::Received | State::Retriggered)
    }

    /// What its children need to know of it.
    pub fn fate(&self) -> Fate {
        match self.state {
            State::Sealed => Fate::Sealed,
            state if state.is_end() => Fate::Over { ancestor: self.ancestor().unwrap_or(&self.job_id).clone() },
            _ => Fate::Open,
        }
    }

    /// A stop that was asked for and has not taken effect.
    pub fn stop(&self) -> Option<&Stopping> {
        self.open.as_ref()?.stop.as_ref().map(|stop| &**stop.get())
    }

    /// Whether it is FAILED, and not by its own doing.
    fn failed_by_circumstance(&self) -> bool {
        matches!(self.reason.as_deref(), Some("attempt_limit" | "oom" | "dependency"))
    }

    /// Whether an attempt is, or may be, under way.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.state, State::Running | State::Recovery | State::D1Stable | State::Stopping)
    }

    pub(super) fn allows(&self, to: State) -> bool {
        use State::{
            Cancelled, Completed, Crash, D1Stable, Failed, Recovery, Retriggered, Running, Scheduled, Sealed, Stopping,
        };
        match self.state {
            State::Received => matches!(to, Scheduled | Failed | Cancelled),
            Scheduled => matches!(to, Running | Failed | Cancelled),
            // It goes on from where it had come to.
            Retriggered if self.image_id.is_none() => matches!(to, Scheduled | Failed | Cancelled),
            Retriggered if self.attempt == 0 => matches!(to, Running | Failed | Cancelled),
            Retriggered => matches!(to, Recovery | Failed | Cancelled),
            Failed if self.failed_by_circumstance() => to == Retriggered,
            Cancelled => to == Retriggered,
            // A stop that was asked for decides how the attempt ends, whatever it does on the way.
            _ if self.is_running() && self.stop().is_some() => matches!(to, D1Stable | Failed | Cancelled),
            _ if self.is_running() => matches!(to, D1Stable | Crash | Stopping | Completed | Failed),
            Crash => matches!(to, Recovery | Failed | Cancelled),
            Completed => matches!(to, Sealed | Failed | Cancelled),
            _ => false,
        }
    }
}

/// Name of an attempt's container: deterministic, so that it can be found after a crash.
pub fn container_name(job_id: &str, attempt: u32) -> String {
    format!("hb-{job_id}-{attempt}")
}
