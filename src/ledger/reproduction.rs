//! What became of an execution that was repeated: how its output compares with the first run's. Pure.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hash::Hash;

/// Artifacts that an event lists, at most; the seal file lists all.
pub const LISTED_MAX: usize = 1000;
/// Bytes of their paths, at most: an event is kept in memory for a while.
const LISTED_BYTES_MAX: usize = 256 << 10;

/// How what one run left compares with what the other did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likeness {
    /// Both have it, with other content or mode.
    Differs,
    /// Only the original has it.
    Missing,
    /// Only the reproduction has it.
    Extra,
    /// Both have it, the same bytes and the same mode.
    Identical,
}

/// A reproduction, compared with its original artifact by artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reproduction {
    /// The original job.
    pub of: String,
    /// Its seal's hash.
    pub seal_hash: Hash,
    /// Number of artifacts by their likeness.
    pub identical: u64,
    /// See [`Likeness`].
    pub differs: u64,
    /// See [`Likeness`].
    pub missing: u64,
    /// See [`Likeness`].
    pub extra: u64,
    /// The standard output of the attempts that completed: identical or differs.
    pub stdout: Likeness,
    /// Their standard error.
    pub stderr: Likeness,
    /// By path, as in the seal files; those that are not identical come first. A JSON object.
    #[serde(with = "listing")]
    pub artifacts: Vec<(String, Likeness)>,
    /// How many more there are than are listed here.
    pub omitted: u64,
}

impl Reproduction {
    /// Of these artifacts, in any order.
    pub fn new(
        of: String,
        seal_hash: Hash,
        (stdout, stderr): (Likeness, Likeness),
        mut artifacts: Vec<(String, Likeness)>,
    ) -> Self {
        artifacts.sort_by_cached_key(|(path, likeness)| (*likeness == Likeness::Identical, path.clone()));
        let count = |wanted| artifacts.iter().filter(|(_, likeness)| *likeness == wanted).count() as u64;
        Self {
            of,
            seal_hash,
            identical: count(Likeness::Identical),
            differs: count(Likeness::Differs),
            missing: count(Likeness::Missing),
            extra: count(Likeness::Extra),
            stdout,
            stderr,
            artifacts,
            omitted: 0,
        }
    }

    /// The same with no more artifacts than an event may list.
    pub fn for_event(mut self) -> Self {
        let mut bytes = 0;
        let fits = |(path, _): &&(String, Likeness)| {
            bytes += path.len();
            bytes <= LISTED_BYTES_MAX
        };
        let listed = self.artifacts.iter().take(LISTED_MAX).take_while(fits).count();
        self.omitted += (self.artifacts.len() - listed) as u64;
        self.artifacts.truncate(listed);
        self
    }
}

/// A JSON object in the list's order.
mod listing {
    use super::{Deserializer, Likeness, Listing, Serializer};

    pub fn serialize<S: Serializer>(list: &[(String, Likeness)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(list.iter().map(|(path, likeness)| (path, likeness)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Likeness)>, D::Error> {
        deserializer.deserialize_map(Listing)
    }
}

struct Listing;

impl<'de> Visitor<'de> for Listing {
    type Value = Vec<(String, Likeness)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of paths")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut list = Vec::new();
        while let Some(entry) = map.next_entry()? {
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_identical_comes_first_and_an_event_lists_only_so_much() {
        let mut all: Vec<(String, Likeness)> = (0..1500).map(|n| (format!("/w/{n:04}"), Likeness::Identical)).collect();
        all[1499].1 = Likeness::Differs;
        all[700].1 = Likeness::Extra;
        let logs = (Likeness::Identical, Likeness::Differs);
        let whole = Reproduction::new("o".into(), Hash::ZERO, logs, all);
        assert_eq!((whole.identical, whole.differs, whole.missing, whole.extra), (1498, 1, 0, 1));
        let event = whole.clone().for_event();
        assert_eq!((event.artifacts.len(), event.omitted), (1000, 500));
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains(r#""artifacts":{"/w/0700":"extra","/w/1499":"differs","/w/0000":"identical""#), "{text}");
        assert_eq!(serde_json::from_str::<Reproduction>(&text).unwrap(), event);
        let long: Vec<_> = (0..100).map(|n| (format!("/{n}{}", "x".repeat(4000)), Likeness::Missing)).collect();
        let event = Reproduction::new("o".into(), Hash::ZERO, logs, long).for_event();
        assert_eq!(event.artifacts.len() as u64 + event.omitted, 100);
        assert!(event.omitted > 30 && event.missing == 100, "{}", event.omitted);
    }
}
