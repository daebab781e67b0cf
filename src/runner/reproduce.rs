//! An execution that is repeated: it must be given what the original was given, and that is compared before it runs. What it
//! may write begins as a copy of the original's recorded inputs, without whatever came to lie beside them.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, fchown, lchown, symlink};
use std::sync::Arc;

use super::copying::{Copy, NotCopied};
use super::{Fault, Runner, claims, staging, workspace};
use crate::ledger::event::{Detail, Scheduled, State};
use crate::ledger::lifecycle::Job;
use crate::manifest::{self, Manifest, Place, PlaceSource};
use crate::rejection::Rejection;
use crate::seal::compare::{Differences, compare, descend, look, split};
use crate::seal::{Entry, InputMount, Inputs, Kind, Tree, read_inputs};
use crate::sys::copy::make_fifo;
use crate::sys::dir::{Dir, FileType, is_absence};

/// Inputs of up to so many bytes in all are read while the request waits; of larger ones only what `stat` tells.
const READ_AT_ONCE_BYTES: u64 = 256 << 20;
/// Of a file's mode: setuid and setgid would mean another owner's rights in a copy.
const MODE_BITS: u32 = 0o1777;
/// What to do about inputs that have changed.
const RESTORE: &str = "restore them, or submit the job as a new one";

/// The job whose execution is repeated.
pub(super) struct Original {
    job_id: String,
    manifest: Manifest,
    scheduled: Scheduled,
    inputs: Inputs,
}

impl Original {
    /// Of a job that repeats another's execution.
    pub(super) fn of(runner: &Runner, manifest: &Manifest) -> Result<Option<Self>, Fault> {
        let read = |of: &String| Self::read(runner, of).map_err(|message| Fault::new("inputs", message));
        manifest.reproduces.as_ref().map(read).transpose()
    }

    fn read(runner: &Runner, job_id: &str) -> Result<Self, String> {
        let (mut text, mut scheduled) = (None, None);
        workspace::details(runner, job_id, &[State::Received, State::Scheduled], &mut |_, detail| match detail {
            Detail::Received(received) => text = Some(received.manifest),
            Detail::Scheduled(of) => scheduled = Some(of),
            _ => {}
        })
        .map_err(|error| format!("job {job_id}: the ledger cannot be read back: {error}"))?;
        let is_sealed = runner.setup.engine.view().job(job_id).is_some_and(|job| job.state == State::Sealed);
        let (Some(text), Some(scheduled), true) = (text, scheduled, is_sealed) else {
            return Err(format!("job {job_id} is not SEALED; name one that is"));
        };
        let manifest = manifest::parse(text.get().as_bytes())
            .map_err(|rejection| format!("job {job_id}: its manifest cannot be read: {rejection}"))?
            .manifest;
        let record = format!("the record of job {job_id}'s inputs, DATA/inputs/{job_id}.json");
        let inputs = read_inputs(&runner.setup.data, job_id)
            .map_err(|error| format!("{record}: {error}; restore it, or submit the job as a new one"))?;
        let agrees = inputs.mounts.len() == scheduled.mounts.len()
            && inputs.mounts.iter().zip(&scheduled.mounts).all(|(mount, then)| {
                let tree = mount.artifacts_of.as_ref().map_or(mount.tree.root, |of| of.artifacts_root);
                (mount.container.as_str(), tree) == (then.container.as_str(), then.tree)
            });
        if !agrees {
            return Err(format!("{record}, is not what SCHEDULED tells; {RESTORE}"));
        }
        Ok(Self { job_id: job_id.to_owned(), manifest, scheduled, inputs })
    }

    fn tree(&self, container: &str) -> Option<&Tree> {
        self.inputs.mounts.iter().find(|mount| mount.container == container).map(|mount| &mount.tree)
    }

    /// What makes `manifest` another execution, as far as the manifests tell.
    fn other_part(&self, manifest: &Manifest) -> Option<&'static str> {
        let mounts = |of: &Manifest| -> Vec<(String, bool, Option<String>)> {
            let of_place = |place: Place<'_>| {
                let parent = match place.source {
                    PlaceSource::ArtifactsOf(parent) => Some(parent.to_owned()),
                    _ => None,
                };
                (place.container.to_owned(), place.read_only, parent)
            };
            of.places().into_iter().map(of_place).collect()
        };
        let ours = &self.manifest;
        let parts = [
            ("command", ours.command == manifest.command),
            ("env", ours.env == manifest.env),
            ("resources", ours.resources == manifest.resources),
            ("network", ours.network == manifest.network),
            ("mount_spec", mounts(ours) == mounts(manifest)),
        ];
        parts.into_iter().find_map(|(part, is_same)| (!is_same).then_some(part))
    }

    /// Whether what was found is what the original was given.
    pub(super) fn check_same(
        &self,
        manifest: &Manifest,
        found: &Scheduled,
        mounts: &[InputMount],
    ) -> Result<(), Fault> {
        if found.execution_hash == self.scheduled.execution_hash {
            return Ok(());
        }
        let of = &self.job_id;
        if found.image_id != self.scheduled.image_id {
            let message = format!(
                "job {of} ran image {}, and this would run {}; give that as image_hash",
                self.scheduled.image_id, found.image_id
            );
            return Err(Fault::new("image", message));
        }
        if let Some(part) = self.other_part(manifest) {
            let message =
                format!("{part} is not what job {of} has; POST /api/jobs/{of}/reproduce makes the right manifest");
            return Err(Fault::new("inputs", message));
        }
        let mut differences = Differences::default();
        for mount in mounts {
            if let Some(recorded) = self.tree(&mount.container) {
                compare(&mount.container, recorded, &mount.tree, &mut differences);
            }
        }
        if differences.is_empty() {
            let message = format!("this agent gives its payloads other variables than the one that ran job {of}");
            return Err(Fault::new("inputs", message));
        }
        Err(changed(of, &differences))
    }
}

impl Runner {
    /// Whether a job that repeats another's execution can be given what that one was given, as far as can be told at once. A
    /// manifest without `reproduces` passes.
    ///
    /// # Errors
    /// 400 `unknown_job`, `other_execution`; 409 `not_sealed`, `inputs_lost`, `inputs_changed`, `inputs_not_copyable`; what
    /// the mount policy says of a directory; 410 `pruned` where the artifacts that it mounts are gone.
    pub fn check_reproduction(&self, manifest: &Manifest) -> Result<(), Rejection> {
        let Some(of) = &manifest.reproduces else { return Ok(()) };
        let Some(job) = self.setup.engine.view().job(of) else {
            let message = format!("there is no job {of:?} to repeat; GET /api/jobs lists them");
            return Err(Rejection::new(400, "unknown_job", message).field("reproduces"));
        };
        if job.state != State::Sealed {
            let message = format!("job {of:?} is {}; only SEALED jobs can be reproduced", job.state);
            return Err(Rejection::new(409, "not_sealed", message).field("reproduces"));
        }
        // A listing may be large, and a directory too: one request at a time.
        let Ok(_turn) = self.comparing.try_lock() else {
            let message = "the inputs of another reproduction are being compared; ask again in a moment";
            return Err(Rejection::new(503, "busy", message));
        };
        let original = Original::read(self, of).map_err(|message| Rejection::new(409, "inputs_lost", message))?;
        if let Some(part) = original.other_part(manifest) {
            let message = format!(
                "{part} is not what job {of:?} has, so this is another execution; leave out reproduces, or take \
                 {part} over, as POST /api/jobs/{of}/reproduce does"
            );
            return Err(Rejection::new(400, "other_execution", message).field(part));
        }
        let mut differences = Differences::default();
        let contents = original.inputs.mounts.iter().map(|mount| mount.tree.bytes).sum::<u64>() <= READ_AT_ONCE_BYTES;
        for place in manifest.places() {
            let (path, alone) = match place.source {
                PlaceSource::CopyOf(path) => (path, false),
                PlaceSource::Host(path) => (path, true),
                PlaceSource::ArtifactsOf(parent) => {
                    // What became of an artifact otherwise is found when it is copied.
                    let pruned = staging::Parent::read(self, parent).ok().and_then(|of| of.pruned(self, parent));
                    match pruned {
                        Some(message) => return Err(Rejection::new(410, "pruned", message)),
                        None => continue,
                    }
                }
                PlaceSource::Scratch => continue,
            };
            let Some(recorded) = original.tree(place.container) else { continue };
            if let Some(entry) = recorded.entries.iter().find(|entry| !alone && !is_copyable(entry)) {
                return Err(Rejection::new(409, "inputs_not_copyable", not_copyable(&place, entry)));
            }
            let checked = self.setup.mounts.check(path)?;
            look(place.container, checked.dir(), recorded, (alone, contents), &mut differences).map_err(|error| {
                Rejection::new(503, "mount_unavailable", format!("{path:?} cannot be read now: {error}"))
            })?;
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(Rejection::new(409, "inputs_changed", changed(of, &differences).message))
    }
}

/// Copies what `original` found in the host directory `path`, as recorded, to where the job `job` may write.
pub(super) fn copy(
    runner: &Runner,
    job: &Arc<Job>,
    place: &Place<'_>,
    path: &str,
    original: Option<&Original>,
) -> Result<InputMount, Fault> {
    let missing = || Fault::new("inputs", format!("{}: there is no record of what it should hold", place.container));
    let original = original.ok_or_else(missing)?;
    let recorded = original.tree(place.container).ok_or_else(missing)?;
    if let Some(entry) = recorded.entries.iter().find(|entry| !is_copyable(entry)) {
        return Err(Fault::new("inputs", not_copyable(place, entry)));
    }
    let source = runner.setup.mounts.check(path).map_err(|rejection| Fault::new("mount", rejection.message))?;
    claims::confirm(runner, &job.job_id, path, &source, true).map_err(|message| Fault::new("mount", message))?;
    let what = format!("the inputs of {}", original.job_id);
    let mut copy = Copy::begin(runner, job, place, what)?;
    copy.make_room(recorded.bytes)?;
    let mut differences = Differences::default();
    for entry in &recorded.entries {
        if copy.is_given_up() {
            return Err(Fault::abandoned());
        }
        if let Some(how) = copy_entry(&mut copy, source.dir(), entry)? {
            differences.add(place.container, &entry.path, how);
        }
    }
    if !differences.is_empty() {
        return Err(changed(&original.job_id, &differences));
    }
    let fault = |copy: &Copy<'_>, path: &[u8], error: &io::Error| copy.fault(path, error);
    // From below, since a directory may forbid what is still to be done in it.
    for entry in recorded.entries.iter().rev().filter(|entry| entry.kind == Kind::Directory) {
        let set = descend(source.dir(), &entry.path).and_then(|from| from.stat()).and_then(|from| {
            let dir = descend(copy.root(), &entry.path)?;
            finish_directory(&dir, (from.uid, from.gid), entry.mode)
        });
        set.map_err(|error| fault(&copy, &entry.path, &error))?;
    }
    source
        .dir()
        .stat()
        .and_then(|stat| finish_directory(copy.root(), source.owner(), stat.mode))
        .map_err(|error| fault(&copy, b"", &error))?;
    let tree = copy.hash(place.container)?;
    if tree.root != recorded.root {
        compare(place.container, recorded, &tree, &mut differences);
        return Err(changed(&original.job_id, &differences));
    }
    copy.finish()?;
    Ok(InputMount { container: place.container.to_owned(), read_only: false, tree, artifacts_of: None })
}

/// How the entry differs from what was recorded, if it does.
fn copy_entry(copy: &mut Copy<'_>, source: &Dir, entry: &Entry) -> Result<Option<&'static str>, Fault> {
    let (above, name) = split(&entry.path);
    let found = descend(source, above).and_then(|dir| Ok((dir.stat_child(name)?, dir)));
    let (stat, from) = match found {
        Ok(found) => found,
        Err(error) if is_absence(&error) => return Ok(Some("missing")),
        Err(error) => return Err(copy.fault(&entry.path, &error)),
    };
    // Whoever could not read it in the original must not in the copy.
    let owner = (stat.uid, stat.gid);
    match (entry.kind, stat.file_type) {
        (Kind::File, FileType::Regular) if (stat.mode & 0o111 != 0) == (entry.mode & 0o111 != 0) => {
            match copy.file(&from, name, &entry.path, entry.size, entry.mode & MODE_BITS) {
                Ok(file) => given(fchown(&file, Some(owner.0), Some(owner.1))),
                Err(NotCopied::Differs(_)) => return Ok(Some("changed")),
                Err(NotCopied::Fault(fault)) => return Err(fault),
            }
        }
        (Kind::Directory, FileType::Directory) => return copy.directory(&entry.path).map(|_| None),
        (Kind::Symlink, FileType::Symlink) => {
            let text = from.read_link(name).map_err(|error| copy.fault(&entry.path, &error))?;
            if Some(text.as_bytes()) != entry.target.as_deref() {
                return Ok(Some("changed"));
            }
            let to = copy.directory(above)?;
            let path = to.proc_path().join(name);
            symlink(&text, &path).and_then(|()| given(lchown(&path, Some(owner.0), Some(owner.1))))
        }
        (Kind::Fifo, FileType::Fifo) => {
            let to = copy.directory(above)?;
            let path = to.proc_path().join(name);
            make_fifo(&path, 0o600)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(entry.mode & MODE_BITS)))
                .and_then(|()| given(lchown(&path, Some(owner.0), Some(owner.1))))
        }
        _ => return Ok(Some("changed")),
    }
    .map_err(|error| copy.fault(&entry.path, &error))?;
    Ok(None)
}

fn finish_directory(dir: &Dir, owner: (u32, u32), mode: u32) -> io::Result<()> {
    let path = dir.proc_path();
    given(std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)))?;
    fs::set_permissions(&path, Permissions::from_mode(mode & MODE_BITS))
}

/// An agent without the right to give files away runs its payloads as itself.
fn given(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other,
    }
}

fn is_copyable(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::File | Kind::Directory | Kind::Symlink | Kind::Fifo)
}

fn not_copyable(place: &Place<'_>, entry: &Entry) -> String {
    format!(
        "{}/{} is a socket or a device, which cannot be copied, so this execution cannot be repeated; submit the job as a \
         new one, without it",
        place.container,
        crate::seal::text::encode(&entry.path)
    )
}

fn changed(of: &str, differences: &Differences) -> Fault {
    Fault::new("inputs", format!("the inputs are not those of job {of} any more: {differences}; {RESTORE}"))
}
