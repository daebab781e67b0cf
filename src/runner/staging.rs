//! What a `job:` mount shows: copies of a sealed parent's artifacts, checked against its seal, in a directory of the child's
//! own, `DATA/staged/<job>/<index>`. They go when the job has ended. Where such a directory stands, it is whole.

use std::fs;
use std::io;
use std::sync::Arc;

use super::copying::{self, Copy, NotCopied};
use super::mounts::CheckedMount;
use super::queues::{Busy, Stage};
use super::{Fault, Runner, workspace};
use crate::hash::Hash;
use crate::ledger::event::{Detail, State};
use crate::ledger::lifecycle::Job;
use crate::manifest::{self, Manifest, Place, PlaceSource, staged};
use crate::seal::compare::{descend, split};
use crate::seal::{Artifact, ArtifactsOf, InputMount, Seal, read_seal, text};
use crate::sys::dir::is_absence;
use crate::sys::kill_point;

/// A sealed job, as the ledger and its files tell.
pub(super) struct Parent {
    pub(super) manifest: Manifest,
    pub(super) seal: Seal,
    pub(super) seal_hash: Hash,
}

impl Parent {
    /// Reads what a job has sealed. The error is for a person.
    pub(super) fn read(runner: &Runner, job_id: &str) -> Result<Self, String> {
        let (mut text, mut recorded) = (None, None);
        let wanted = [State::Received, State::Sealed];
        workspace::details(runner, job_id, &wanted, &mut |_, detail| match detail {
            Detail::Received(received) => text = Some(received.manifest),
            Detail::Sealed(sealed) => recorded = Some(sealed.seal_hash),
            _ => {}
        })
        .map_err(|error| format!("job {job_id}: the ledger cannot be read back: {error}"))?;
        let (Some(text), Some(recorded)) = (text, recorded) else {
            return Err(format!(
                "job {job_id} is not SEALED, so it has no artifacts; wait for it, or name another job"
            ));
        };
        let manifest = manifest::parse(text.get().as_bytes())
            .map_err(|rejection| format!("job {job_id}: its manifest cannot be read: {rejection}"))?
            .manifest;
        let again = format!("restore it, or run {job_id} again under a new job_id");
        let (seal, seal_hash) = read_seal(&runner.setup.data, job_id)
            .map_err(|error| format!("the seal of job {job_id}, DATA/seals/{job_id}.json: {error}; {again}"))?;
        if seal_hash != recorded {
            return Err(format!(
                "the seal of job {job_id}, DATA/seals/{job_id}.json, is not the one that was recorded: SEALED has \
                 {recorded}, the file {seal_hash}; {again}"
            ));
        }
        Ok(Self { manifest, seal, seal_hash })
    }

    /// Why there are no artifacts to copy, where they lay in a directory of the agent's own and were pruned.
    pub(super) fn pruned(&self, runner: &Runner, job_id: &str) -> Option<String> {
        let view = runner.setup.engine.view();
        let seq = view.job(job_id).and_then(|job| view.pruned(&job))?;
        let places = self.manifest.places();
        let own = places.iter().filter(|place| !matches!(place.source, PlaceSource::Host(_)));
        let is_in = |artifact: &Artifact, container: &str| {
            artifact.path.0.strip_prefix(container.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
        };
        let lost = own
            .filter(|place| !place.read_only)
            .any(|place| self.seal.artifacts.iter().any(|artifact| is_in(artifact, place.container)));
        lost.then(|| {
            format!(
                "the artifacts of job {job_id} were pruned, as event {seq} tells; run {job_id} again under a new job_id, \
                 and mount that one's artifacts"
            )
        })
    }
}

/// Copies what the parent of a `job:` mount has sealed; what stood there before is gone.
pub(super) fn stage(runner: &Runner, job: &Arc<Job>, place: &Place<'_>, parent_id: &str) -> Result<InputMount, Fault> {
    let parent = Parent::read(runner, parent_id).map_err(|message| Fault::new("inputs", message))?;
    if let Some(message) = parent.pruned(runner, parent_id) {
        return Err(Fault::new("inputs", message));
    }
    let places = parent.manifest.places();
    let writable: Vec<&Place<'_>> = places.iter().filter(|place| !place.read_only).collect();
    let mut opened: Vec<Option<CheckedMount>> = writable.iter().map(|_| None).collect();
    let what = format!("the artifacts of {parent_id}");
    let mut copy = Copy::begin(runner, job, place, what)?;
    copy.make_room(parent.seal.bytes)?;
    let mut copied: Vec<(&Artifact, Vec<u8>)> = Vec::with_capacity(parent.seal.artifacts.len());
    for artifact in &parent.seal.artifacts {
        let Some((number, relative)) = writable.iter().enumerate().find_map(|(number, writable)| {
            let below = artifact.path.0.strip_prefix(writable.container.as_bytes())?.strip_prefix(b"/")?;
            Some((number, below))
        }) else {
            let message = format!("job {parent_id}: its artifact {} lies in none of its mounts", shown(artifact));
            return Err(Fault::new("inputs", message));
        };
        if opened[number].is_none() {
            opened[number] = Some(open(runner, parent_id, writable[number])?);
        }
        let from = opened[number].as_ref().expect("just opened");
        // Of several directories, each goes where it is in the parent's container.
        let path = match writable.len() {
            1 => relative.to_vec(),
            _ => artifact.path.0.strip_prefix(b"/").unwrap_or(&artifact.path.0).to_vec(),
        };
        let permissions = if artifact.mode & 0o111 != 0 { 0o555 } else { 0o444 };
        let (above, name) = split(relative);
        let outcome = match descend(from.dir(), above) {
            Ok(dir) => copy.file(&dir, name, &path, artifact.size, permissions),
            Err(error) if is_absence(&error) => Err(NotCopied::Differs("nothing".into())),
            Err(error) => Err(NotCopied::Fault(copy.fault(&path, &error))),
        };
        match outcome {
            Ok(_) => copied.push((artifact, path)),
            Err(NotCopied::Differs(found)) => return Err(other(parent_id, artifact, &found)),
            Err(NotCopied::Fault(fault)) => return Err(fault),
        }
    }
    // The copy is hashed and not what it was made from: it is what the payload will see.
    let tree = copy.hash(place.container)?;
    for (artifact, path) in &copied {
        match tree.get(path) {
            Some(entry) if (entry.size, entry.sha256) == (artifact.size, artifact.sha256) => {}
            Some(entry) => {
                let found = format!("a file of {} bytes, SHA-256 {}", entry.size, entry.sha256);
                return Err(other(parent_id, artifact, &found));
            }
            None => return Err(other(parent_id, artifact, "nothing")),
        }
    }
    if tree.files != copied.len() as u64 {
        return Err(Fault::new("inputs", format!("{}: somebody else writes there", place.container)));
    }
    copy.finish()?;
    kill_point::reached("artifacts-staged");
    Ok(InputMount {
        container: place.container.to_owned(),
        read_only: true,
        tree,
        artifacts_of: Some(ArtifactsOf {
            job_id: parent_id.to_owned(),
            seal_hash: parent.seal_hash,
            artifacts_root: parent.seal.artifacts_root,
        }),
    })
}

/// Stages what a job had staged and has lost, so that a further attempt sees what the first one saw.
pub(super) fn stage_lost(runner: &Runner, job: &Arc<Job>, manifest: &Manifest) -> Result<(), Fault> {
    for place in manifest.places() {
        if let PlaceSource::ArtifactsOf(parent) = place.source
            && !runner.setup.data.join(place.dir(&job.job_id)).is_dir()
        {
            stage(runner, job, &place, parent)?;
        }
    }
    Ok(())
}

/// Removes what was staged for a job that has ended, and copies for it that nobody finished. `false`: a thread is still at work on it, so ask again.
pub(super) fn remove(runner: &Arc<Runner>, job_id: &Arc<str>) -> bool {
    let path = runner.setup.data.join(staged(job_id));
    if !path.exists() {
        return true;
    }
    // Whoever makes it anew for a retriggered job does so at this stage, and either sees it gone or comes before this looks.
    let Some(_busy) = Busy::enter(runner, Stage::Prepare, job_id) else { return false };
    if runner.has_ended(job_id)
        && let Err(error) = copying::remove_all(&runner.setup.data, job_id)
    {
        log::warn!("job {job_id}: {} is not removed: {error}", path.display());
    }
    true
}

/// Jobs for which an earlier agent has staged something and that have ended. What this ledger does not know is left alone.
pub(super) fn left_over(runner: &Runner) -> Vec<Arc<str>> {
    let found = fs::read_dir(runner.setup.data.join(staged(""))).into_iter().flatten().flatten();
    let ids = found.filter_map(|entry| entry.file_name().into_string().ok());
    ids.filter_map(|id| runner.setup.engine.view().job(&id))
        .filter(|job| job.open.is_none())
        .map(|job| job.job_id.clone())
        .collect()
}

/// Opens one of the parent's directories, under the rules for those that are mounted.
fn open(runner: &Runner, parent_id: &str, place: &Place<'_>) -> Result<CheckedMount, Fault> {
    let policy = &runner.setup.mounts;
    let opened = match place.source {
        PlaceSource::Host(path) => policy.check(path).map_err(|rejection| rejection.message),
        _ => policy.check_own(&place.dir(parent_id)).map_err(|error: io::Error| {
            let dir = place.dir(parent_id);
            format!("DATA/{}: {error}; restore it, or run {parent_id} again under a new job_id", dir.display())
        }),
    };
    opened.map_err(|why| {
        Fault::new("inputs", format!("the directory of job {parent_id}'s artifacts in {}: {why}", place.container))
    })
}

fn other(parent_id: &str, artifact: &Artifact, found: &str) -> Fault {
    let message = format!(
        "artifact {} of job {parent_id} is not what was sealed: the seal has a file of {} bytes, SHA-256 {}; there is \
         {found}; restore it, or run {parent_id} again under a new job_id and mount that one's artifacts",
        shown(artifact),
        artifact.size,
        artifact.sha256
    );
    Fault::new("inputs", message)
}

fn shown(artifact: &Artifact) -> String {
    text::shown(&artifact.path.0)
}
