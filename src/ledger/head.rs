//! Reads what stands before an event's detail. Pure.

use super::event::State;
use super::time::Time;
use crate::hash::Hash;
use crate::manifest::is_job_id;

/// What stands before an event's detail, and the detail's text. There is one way to write it, so it is read as text, and not
/// as any JSON.
pub(super) struct Head<'a> {
    pub seq: u64,
    pub prev: Hash,
    pub time: Time,
    pub subject: Option<(&'a str, u32)>,
    pub state: State,
    pub detail: &'a str,
}

impl<'a> Head<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| format!("not an event: {error}"))?;
        let (head, state) = Self::split(text).ok_or_else(|| {
            let shown: String = text.chars().take(200).collect();
            format!("not an event: it does not have the fields of one in their order: {shown}")
        })?;
        let state = State::parse(state).ok_or_else(|| format!("unknown state {state:?}"))?;
        if head.subject.is_some() == state.is_of_node() {
            return Err(format!("{state}: job_id and attempt do not fit the state"));
        }
        // It becomes the name of files; later events are of jobs that were received.
        if let (State::Received, Some((job_id, _))) = (state, head.subject)
            && !is_job_id(job_id)
        {
            return Err(format!("{state}: {job_id:?} is no job id"));
        }
        Ok(Self { state, ..head })
    }

    /// With a state that is yet to be read.
    fn split(text: &'a str) -> Option<(Self, &'a str)> {
        let (seq, rest) = text.strip_prefix("{\"seq\":")?.split_once(',')?;
        let (prev, rest) = rest.strip_prefix("\"prev\":\"")?.split_at_checked(64)?;
        let (time, rest) = rest.strip_prefix("\",\"time\":\"")?.split_at_checked(27)?;
        let mut rest = rest.strip_prefix("\",\"")?;
        let mut subject = None;
        if let Some(behind) = rest.strip_prefix("job_id\":\"") {
            let (job_id, behind) = behind.split_once('"')?;
            let (attempt, behind) = behind.strip_prefix(",\"attempt\":")?.split_once(',')?;
            subject = Some((job_id, u32::try_from(number(attempt)?).ok()?));
            rest = behind.strip_prefix('"')?;
        }
        let (state, rest) = rest.strip_prefix("state\":\"")?.split_once('"')?;
        let detail = rest.strip_prefix(",\"detail\":")?.strip_suffix('}').filter(|detail| detail.starts_with('{'))?;
        let (seq, prev, time) = (number(seq)?, prev.parse().ok()?, Time::parse(time)?);
        Some((Self { seq, prev, time, subject, state: State::Genesis, detail }, state))
    }
}

/// A number in its one spelling.
fn number(text: &str) -> Option<u64> {
    let is_plain = text.bytes().all(|c| c.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}
