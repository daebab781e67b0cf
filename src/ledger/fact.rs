//! What an event means to the lifecycle, read from its stored bytes: little, and without copies of its texts, since a restart
//! meets millions. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event::{State, Stopping};
use super::head::Head;
use super::time::Time;
use crate::hash::Hash;

/// An event as [`Ledger::apply`](super::lifecycle::Ledger::apply) takes it in, together with the bytes it was read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Fact {
    /// Counts from 1.
    pub seq: u64,
    /// SHA-256 of the bytes of the event before it.
    pub prev: Hash,
    /// When.
    pub time: Time,
    /// Job and attempt; `None` for node events.
    pub subject: Option<(Text, u32)>,
    /// Its state.
    pub state: State,
    /// What its detail changes.
    pub change: Change,
}

/// What of an event's detail changes a job or the node; see [`Detail`](super::event::Detail).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Change {
    Genesis { log_id: Text },
    NodeUp { boot_id: Text },
    NodeDown,
    Received { manifest: Text, manifest_hash: Hash, image_hash: Text, parents: Vec<Text>, reproduces: Option<Text> },
    Scheduled { image_id: Text, execution_hash: Hash },
    Started,
    Marked { line: Text, on_stderr: bool, offset: u64 },
    Stopping { detail: Text },
    Ended { exit_code: Option<i32>, reason: Option<Text>, ancestor: Option<Text> },
    Sealed,
    Retriggered { manifest: Text, manifest_hash: Hash, reproduces: Option<Text> },
    Pruned { jobs: Vec<Text> },
}

/// A text in an event: where it lies in the bytes, unless JSON escapes something in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// From the first byte to before the second.
    At(u32, u32),
    /// Unescaped.
    Own(Box<str>),
}

impl Text {
    fn new(text: Cow<'_, str>, bytes: &[u8]) -> Self {
        match text {
            Cow::Owned(text) => Self::Own(text.into()),
            Cow::Borrowed(text) => {
                let start = text.as_ptr() as usize - bytes.as_ptr() as usize;
                match (u32::try_from(start), u32::try_from(start + text.len())) {
                    (Ok(start), Ok(end)) => Self::At(start, end),
                    _ => Self::Own(text.into()),
                }
            }
        }
    }

    /// The text; `bytes` are those that the fact was read from.
    pub fn of<'a>(&'a self, bytes: &'a [u8]) -> &'a str {
        match self {
            Self::At(start, end) => {
                std::str::from_utf8(&bytes[*start as usize..*end as usize]).expect("a fact and its own bytes")
            }
            Self::Own(text) => text,
        }
    }
}

#[derive(Deserialize)]
struct Genesis<'a> {
    #[serde(borrow)]
    log_id: Cow<'a, str>,
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

/// What of a manifest every job keeps.
#[derive(Deserialize)]
struct Manifest<'a> {
    #[serde(borrow)]
    job_id: Cow<'a, str>,
    #[serde(borrow)]
    image_hash: Cow<'a, str>,
    // Left as they are where they name nobody: nearly always.
    #[serde(default, borrow)]
    depends_on: Option<&'a RawValue>,
    #[serde(default, borrow)]
    mount_spec: Option<&'a RawValue>,
    #[serde(default, borrow)]
    reproduces: Option<Cow<'a, str>>,
}

impl<'a> Manifest<'a> {
    /// [`parents`](crate::manifest::Manifest::parents), in the manifest's order. Reads the canonical form, whose mounts are a
    /// list.
    fn parents(&self) -> serde_json::Result<Vec<Cow<'a, str>>> {
        let list = |raw: &'a RawValue| serde_json::from_str::<Vec<Name<'a>>>(raw.get());
        let mut parents: Vec<_> = match self.depends_on {
            Some(ids) => list(ids)?.into_iter().map(|Name(id)| id).collect(),
            None => Vec::new(),
        };
        if let Some(mounts) = self.mount_spec.filter(|mounts| mounts.get().contains("\"job:")) {
            for Name(mount) in list(mounts)? {
                if let Some((parent, _)) = mount.strip_prefix("job:").and_then(|rest| rest.split_once(':')) {
                    parents.push(Cow::Owned(parent.to_owned()));
                }
            }
        }
        Ok(parents)
    }
}

/// A string of a list, borrowed where it can be.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct Scheduled<'a> {
    #[serde(borrow)]
    image_id: Cow<'a, str>,
    execution_hash: Hash,
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
    #[serde(default, borrow)]
    ancestor: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Pruned<'a> {
    #[serde(borrow)]
    jobs: Vec<Name<'a>>,
}

/// Any JSON object.
#[derive(Deserialize)]
struct Anything {}

impl Fact {
    /// Reads stored bytes. The error says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let Head { seq, prev, time, subject, state, detail } = Head::parse(bytes)?;
        let change = match state {
            State::Received => {
                let (manifest, manifest_hash, known) = Self::manifest(subject, detail)?;
                if subject.is_some_and(|(_, attempt)| attempt != 0) {
                    return Err("a job is received before its first attempt".into());
                }
                let parents = known.parents().map_err(|error| format!("the manifest: its parents: {error}"))?;
                Change::Received {
                    manifest: Text::new(manifest.into(), bytes),
                    manifest_hash,
                    image_hash: Text::new(known.image_hash, bytes),
                    parents: parents.into_iter().map(|parent| Text::new(parent, bytes)).collect(),
                    reproduces: known.reproduces.map(|of| Text::new(of, bytes)),
                }
            }
            State::Retriggered => {
                let (manifest, manifest_hash, known) = Self::manifest(subject, detail)?;
                let reproduces = known.reproduces.map(|of| Text::new(of, bytes));
                Change::Retriggered { manifest: Text::new(manifest.into(), bytes), manifest_hash, reproduces }
            }
            _ => Self::change(bytes, state, detail).map_err(|error| format!("{state}: detail: {error}"))?,
        };
        let subject = subject.map(|(job_id, attempt)| (Text::new(job_id.into(), bytes), attempt));
        Ok(Self { seq, prev, time, subject, state, change })
    }

    /// The manifest that an event carries, its hash, and what every job keeps of it.
    fn manifest<'a>(subject: Option<(&str, u32)>, detail: &'a str) -> Result<(&'a str, Hash, Manifest<'a>), String> {
        let read = |error| format!("the manifest: {error}");
        let Received { manifest, manifest_hash } = serde_json::from_str::<Received<'a>>(detail).map_err(read)?;
        let manifest = manifest.get();
        let known: Manifest<'a> = serde_json::from_str(manifest).map_err(read)?;
        if Hash::of(manifest.as_bytes()) != manifest_hash || subject.map(|(id, _)| id) != Some(&*known.job_id) {
            return Err("the manifest does not have the hash, or the job_id, that its event tells".into());
        }
        Ok((manifest, manifest_hash, known))
    }

    fn change(bytes: &[u8], state: State, detail: &str) -> serde_json::Result<Change> {
        let text = |text| Text::new(text, bytes);
        Ok(match state {
            State::Genesis => Change::Genesis { log_id: text(serde_json::from_str::<Genesis<'_>>(detail)?.log_id) },
            State::NodeUp => Change::NodeUp { boot_id: text(serde_json::from_str::<NodeUp<'_>>(detail)?.boot_id) },
            State::Scheduled => {
                let Scheduled { image_id, execution_hash } = serde_json::from_str(detail)?;
                Change::Scheduled { image_id: text(image_id), execution_hash }
            }
            State::D1Stable => {
                let Marked { line, stream, offset } = serde_json::from_str(detail)?;
                Change::Marked { line: text(line), on_stderr: stream == "stderr", offset }
            }
            State::Crash | State::Completed | State::Failed => {
                let Ended { exit_code, reason, cause, ancestor } = serde_json::from_str(detail)?;
                Change::Ended { exit_code, reason: reason.or(cause).map(text), ancestor: ancestor.map(text) }
            }
            State::Cancelled => {
                let Ended { exit_code, .. } = serde_json::from_str(detail)?;
                Change::Ended { exit_code, reason: Some(Text::Own("cancelled".into())), ancestor: None }
            }
            State::Stopping => {
                // Read again when the attempt ends; it must be readable then.
                let _: Stopping = serde_json::from_str(detail)?;
                Change::Stopping { detail: text(detail.into()) }
            }
            State::Pruned => {
                let Pruned { jobs } = serde_json::from_str(detail)?;
                Change::Pruned { jobs: jobs.into_iter().map(|Name(id)| text(id)).collect() }
            }
            other => {
                let Anything {} = serde_json::from_str(detail)?;
                match other {
                    State::NodeDown => Change::NodeDown,
                    State::Sealed => Change::Sealed,
                    _ => Change::Started,
                }
            }
        })
    }
}
