//! What an event means to the lifecycle: little, and borrowed from the event, since a restart meets millions. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::{Detail, Event, Genesis, Head, Scheduled, State, Stopping};
use super::time::Time;
use crate::hash::Hash;

/// An event as [`Ledger::apply`](super::lifecycle::Ledger::apply) takes it in: from stored bytes, or from one just decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact<'a> {
    /// Counts from 1.
    pub seq: u64,
    /// SHA-256 of the bytes of the event before it.
    pub prev: Hash,
    /// When.
    pub time: Time,
    /// Job and attempt; `None` for node events.
    pub subject: Option<(&'a str, u32)>,
    /// Its state.
    pub state: State,
    /// What its detail changes.
    pub change: Change<'a>,
}

/// What of an event's detail changes a job or the node; see [`Detail`].
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Change<'a> {
    Genesis(Cow<'a, Genesis>),
    NodeUp { boot_id: Cow<'a, str> },
    NodeDown,
    Received { manifest: &'a str, manifest_hash: Hash },
    Scheduled(Cow<'a, Scheduled>),
    Started,
    Marked { line: Cow<'a, str>, on_stderr: bool, offset: u64 },
    Stopping(Cow<'a, Stopping>),
    Ended { exit_code: Option<i32>, reason: Option<Cow<'a, str>> },
    Sealed,
}

#[derive(Deserialize)]
struct NodeUp<'a> {
    #[serde(borrow)]
    boot_id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Received<'a> {
    #[serde(borrow)]
    manifest: &'a RawValue,
    manifest_hash: Hash,
}

#[derive(Deserialize)]
struct Marked<'a> {
    #[serde(borrow)]
    line: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    offset: u64,
}

#[derive(Deserialize)]
struct Ended<'a> {
    exit_code: Option<i32>,
    #[serde(default, borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    cause: Option<Cow<'a, str>>,
}

/// Any JSON object.
#[derive(Deserialize)]
struct Anything {}

impl<'a> Fact<'a> {
    /// Reads stored bytes. The error says what is wrong with them.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let head = Head::parse(bytes)?;
        let change = Change::parse(head.state, head.detail).map_err(|e| format!("{}: detail: {e}", head.state))?;
        let Head { seq, prev, time, subject, state, .. } = head;
        Ok(Self { seq, prev, time, subject, state, change })
    }

    /// The same of an event that was not written yet, in its place in the chain.
    pub fn of(seq: u64, prev: Hash, event: &'a Event) -> Self {
        let subject = event.subject.as_ref().map(|subject| (&*subject.job_id, subject.attempt));
        let change = Change::of(&event.detail);
        Self { seq, prev, time: event.time, subject, state: event.detail.state(), change }
    }
}

impl<'a> Change<'a> {
    fn parse(state: State, json: &'a str) -> serde_json::Result<Self> {
        Ok(match state {
            State::Genesis => Self::Genesis(Cow::Owned(serde_json::from_str(json)?)),
            State::NodeUp => Self::NodeUp { boot_id: serde_json::from_str::<NodeUp<'_>>(json)?.boot_id },
            State::Received => {
                let Received { manifest, manifest_hash } = serde_json::from_str(json)?;
                Self::Received { manifest: manifest.get(), manifest_hash }
            }
            State::Scheduled => Self::Scheduled(Cow::Owned(serde_json::from_str(json)?)),
            State::D1Stable => {
                let Marked { line, stream, offset } = serde_json::from_str(json)?;
                Self::Marked { line, on_stderr: stream == "stderr", offset }
            }
            State::Stopping => Self::Stopping(Cow::Owned(serde_json::from_str(json)?)),
            State::Crash | State::Completed | State::Failed => {
                let Ended { exit_code, reason, cause } = serde_json::from_str(json)?;
                Self::Ended { exit_code, reason: reason.or(cause) }
            }
            State::Cancelled => {
                let Ended { exit_code, .. } = serde_json::from_str(json)?;
                Self::Ended { exit_code, reason: Some("cancelled".into()) }
            }
            State::NodeDown | State::Running | State::Recovery | State::Sealed => {
                let Anything {} = serde_json::from_str(json)?;
                Self::plain(state)
            }
        })
    }

    fn of(detail: &'a Detail) -> Self {
        match detail {
            Detail::Genesis(genesis) => Self::Genesis(Cow::Borrowed(genesis)),
            Detail::NodeUp(up) => Self::NodeUp { boot_id: Cow::Borrowed(&up.boot_id) },
            Detail::Received(received) => {
                Self::Received { manifest: received.manifest.get(), manifest_hash: received.manifest_hash }
            }
            Detail::Scheduled(scheduled) => Self::Scheduled(Cow::Borrowed(scheduled)),
            Detail::D1Stable(mark) => Self::Marked {
                line: Cow::Borrowed(&mark.line),
                on_stderr: mark.stream == "stderr",
                offset: mark.offset,
            },
            Detail::Stopping(stopping) => Self::Stopping(Cow::Borrowed(stopping)),
            Detail::Crash(crash) => {
                Self::Ended { exit_code: crash.ending.exit_code, reason: Some(Cow::Borrowed(&crash.cause)) }
            }
            Detail::Completed(ending) => Self::Ended { exit_code: ending.exit_code, reason: None },
            Detail::Failed(failed) => {
                Self::Ended { exit_code: failed.ending.exit_code, reason: Some(Cow::Borrowed(&failed.reason)) }
            }
            Detail::Cancelled(cancelled) => {
                Self::Ended { exit_code: cancelled.ending.exit_code, reason: Some("cancelled".into()) }
            }
            Detail::NodeDown(_) | Detail::Running(_) | Detail::Recovery(_) | Detail::Sealed(_) => {
                Self::plain(detail.state())
            }
        }
    }

    /// What an event changes by its state alone.
    fn plain(state: State) -> Self {
        match state {
            State::NodeDown => Self::NodeDown,
            State::Sealed => Self::Sealed,
            _ => Self::Started,
        }
    }
}
