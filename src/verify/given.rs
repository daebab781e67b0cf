//! What a job was given, as SCHEDULED and the inputs file tell it. Computed here a second time, from docs/evidence.md and not
//! by what wrote it.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::{fs::File, io};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::canonical::to_canonical;
use crate::hash::Hash;
use crate::manifest::{Manifest, PlaceSource};
use crate::seal::{Entry, FORMAT, Kind, Tree};

/// What every payload's environment holds unless its manifest says otherwise, as docs/evidence.md tells.
const AGENTS_ENV: [(&str, &str); 5] =
    [("HOME", "/tmp"), ("LC_ALL", "C.UTF-8"), ("PYTHONHASHSEED", "0"), ("SOURCE_DATE_EPOCH", "0"), ("TZ", "UTC")];
/// The longest inputs file that is read, in bytes.
pub(super) const INPUTS_BYTES_MAX: u64 = 4 << 30;

/// The detail of SCHEDULED.
#[derive(Deserialize)]
pub(super) struct Scheduled {
    pub(super) image_id: String,
    input_hash: Hash,
    pub(super) execution_hash: Hash,
    mounts: Vec<ScheduledMount>,
}

#[derive(Deserialize)]
struct ScheduledMount {
    container: String,
    mode: String,
    tree: Hash,
    #[serde(default)]
    artifacts_of: Option<String>,
}

/// `DATA/inputs/<job>.json`. Fields that are not known here vouch for nothing.
#[derive(Deserialize)]
struct Inputs {
    format: u32,
    job_id: String,
    mounts: Vec<InputMount>,
}

#[derive(Deserialize)]
pub(super) struct InputMount {
    pub(super) container: String,
    pub(super) read_only: bool,
    pub(super) tree: Tree,
    #[serde(default)]
    artifacts_of: Option<ArtifactsOf>,
}

#[derive(Deserialize)]
struct ArtifactsOf {
    job_id: String,
    artifacts_root: Hash,
}

impl Scheduled {
    /// Why its hashes are not what the manifest and its own mounts give, if so. `root_of` tells a sealed job's
    /// `artifacts_root`.
    pub(super) fn fault(&self, manifest: &Manifest, root_of: &dyn Fn(&str) -> Option<Hash>) -> Option<String> {
        let places = manifest.places();
        let fits = |(place, mount): (&crate::manifest::Place<'_>, &ScheduledMount)| {
            let parent = match place.source {
                PlaceSource::ArtifactsOf(parent) => Some(parent),
                PlaceSource::Host(_) | PlaceSource::Scratch | PlaceSource::CopyOf(_) => None,
            };
            place.container == mount.container
                && mode(place.read_only) == mount.mode
                && parent == mount.artifacts_of.as_deref()
        };
        if places.len() != self.mounts.len() || !places.iter().zip(&self.mounts).all(fits) {
            return Some("its mounts are not those of the manifest".into());
        }
        for mount in &self.mounts {
            if let Some(parent) = &mount.artifacts_of
                && root_of(parent) != Some(mount.tree)
            {
                return Some(format!("{} is not what job {parent} has sealed", mount.container));
            }
        }
        let mounts: Vec<Value> = self.mounts.iter().map(ScheduledMount::to_json).collect();
        let mut env: BTreeMap<&str, &str> = AGENTS_ENV.into_iter().collect();
        env.extend(manifest.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let execution = json!({
            "command": manifest.command,
            "env": env,
            "image_id": self.image_id,
            "mounts": mounts,
            "network": manifest.network.as_str(),
            "resources": manifest.resources.to_json(),
        });
        let hash = |value: &Value| to_canonical(value).ok().map(|bytes| Hash::of(&bytes));
        for (name, value, told) in
            [("input_hash", Value::from(mounts), self.input_hash), ("execution_hash", execution, self.execution_hash)]
        {
            if hash(&value) != Some(told) {
                return Some(format!("its {name} is not that of what it names"));
            }
        }
        None
    }
}

impl ScheduledMount {
    fn to_json(&self) -> Value {
        let tree = if self.artifacts_of.is_some() { "artifacts" } else { "tree" };
        json!({ "container": self.container, "mode": self.mode, tree: self.tree })
    }
}

/// Reads an inputs file.
///
/// # Errors
/// An error of the medium. What is wrong with the file itself comes inside.
pub(super) fn read_inputs(
    file: &File,
    job_id: &str,
    scheduled: &Scheduled,
) -> io::Result<Result<Vec<InputMount>, String>> {
    let inputs: Inputs = match serde_json::from_reader(BufReader::with_capacity(256 << 10, file)) {
        Ok(inputs) => inputs,
        Err(error) if error.is_io() => return Err(error.into()),
        Err(error) => return Ok(Err(format!("it cannot be read ({error})"))),
    };
    Ok(match inputs.fault(job_id, scheduled) {
        Some(fault) => Err(fault),
        None => Ok(inputs.mounts),
    })
}

impl Inputs {
    fn fault(&self, job_id: &str, scheduled: &Scheduled) -> Option<String> {
        if self.format != FORMAT || self.job_id != job_id {
            return Some("it is no inputs file of this job".into());
        }
        let fits = |(given, told): (&InputMount, &ScheduledMount)| {
            given.container == told.container
                && mode(given.read_only) == told.mode
                && given.artifacts_of.as_ref().map(|of| of.job_id.as_str()) == told.artifacts_of.as_deref()
        };
        if self.mounts.len() != scheduled.mounts.len() || !self.mounts.iter().zip(&scheduled.mounts).all(fits) {
            return Some("its mounts are not those of SCHEDULED".into());
        }
        for (given, told) in self.mounts.iter().zip(&scheduled.mounts) {
            if !gives_its_root(&given.tree) {
                return Some(format!("the entries of {} do not give its tree hash", given.container));
            }
            let root = given.artifacts_of.as_ref().map_or(given.tree.root, |of| of.artifacts_root);
            if root != told.tree {
                return Some(format!("{} is not what SCHEDULED tells", given.container));
            }
        }
        None
    }
}

/// Whether a tree's entries are what its hash is of, whatever sizes somebody wrote into it. A file's content and a
/// directory's listing are no part of its entry; all else that is hashed is.
fn gives_its_root(tree: &Tree) -> bool {
    let mut files = tree.entries.iter().filter(|entry| entry.kind == Kind::File);
    let has_its_hash = |entry: &Entry| match entry.kind {
        Kind::File | Kind::Directory => true,
        _ => entry.sha256 == Hash::of(entry.target.as_deref().unwrap_or_default()),
    };
    files.try_fold(0_u64, |sum, file| sum.checked_add(file.size)).is_some()
        && tree.entries.iter().all(has_its_hash)
        && tree.is_consistent()
}

fn mode(read_only: bool) -> &'static str {
    if read_only { "ro" } else { "rw" }
}
