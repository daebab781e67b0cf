//! What a payload works on: its mounts bound, hashed before the run and sealed after it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::docker::Bind;
use super::docker::argv::BASE_ENV;
use super::mounts::{BoundMount, CheckedMount};
use super::progress::Doing;
use super::{Fault, Runner, claims, namespace, reproduce, staging};
use crate::ledger::event::{Detail, Ending, MountTotals, Scheduled, Sealed, State, Stored};
use crate::ledger::lifecycle::{Command, Job, container_name};
use crate::ledger::reproduction::Reproduction;
use crate::manifest::{Manifest, Place, PlaceSource};
use crate::seal::{
    self, AttemptLogs, InputMount, Inputs, MountTree, SealError, SealRequest, hash_tree, write_inputs, write_seal,
};
use crate::sys::dir::Dir;
use crate::sys::kill_point;

/// Owner of scratch directories where the agent may give them away: nobody, on every Linux.
const SCRATCH_OWNER: (u32, u32) = (65_534, 65_534);

/// A workspace that the engine can be given.
pub(super) struct Workspace {
    pub(super) binds: Vec<Bind>,
    pub(super) workdir: String,
    pub(super) user: (u32, u32),
}

/// Checks and binds every mount for `container`.
pub(super) fn bind(runner: &Runner, job: &Arc<Job>, container: &str) -> Result<Workspace, Fault> {
    let manifest = &job.open.as_ref().ok_or_else(|| Fault::new("mount", "the job has ended"))?.manifest.get();
    staging::stage_lost(runner, job, manifest)?;
    let (bound, user) = bind_all(runner, &job.job_id, manifest, container)?;
    let engine = runner.outages().process();
    if let Some(engine) = engine {
        namespace::check_seen(engine.pid, &bound).map_err(|message| Fault::new("mount", message))?;
    }
    let places = manifest.places();
    let workdir = places.first().map(|place| place.container.to_owned()).unwrap_or_default();
    let binds = places
        .iter()
        .zip(bound)
        .map(|(place, bound)| Bind {
            source: bound.path,
            container: place.container.to_owned(),
            read_only: place.read_only,
        })
        .collect();
    Ok(Workspace { binds, workdir, user })
}

/// Hashes every mount, records the listing durably, and gives what SCHEDULED tells.
pub(super) fn inputs(runner: &Runner, job: &Arc<Job>, manifest: &Manifest, image_id: &str) -> Result<Scheduled, Fault> {
    make_scratch(runner, &job.job_id).map_err(|error| Fault::io("mount", "the scratch directory", &error))?;
    let original = reproduce::Original::of(runner, manifest)?;
    let mut copies = BTreeMap::new();
    for place in manifest.places() {
        let copy = match place.source {
            PlaceSource::ArtifactsOf(parent) => staging::stage(runner, job, &place, parent)?,
            PlaceSource::CopyOf(path) => reproduce::copy(runner, job, &place, path, original.as_ref())?,
            PlaceSource::Host(_) | PlaceSource::Scratch => continue,
        };
        copies.insert(place.index, copy);
    }
    // Hashed through the binds, and so just as the payload will see it; copies were hashed as they were made.
    let container = container_name(&job.job_id, 0);
    let hashed = bind_all(runner, &job.job_id, manifest, &container)
        .and_then(|(bound, _)| hash_all(runner, job, manifest, &bound, &|index| !copies.contains_key(&index)));
    release(runner, &container);
    let mut mounts = hashed?;
    for (index, copy) in copies {
        mounts.insert(index, copy);
    }
    let trees: Vec<MountTree<'_>> = mounts.iter().map(mount_tree).collect();
    let mut env: BTreeMap<String, String> =
        BASE_ENV.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    env.extend(manifest.env.clone());
    let scheduled = Scheduled {
        execution_hash: seal::execution_hash(image_id, manifest, &env, &trees),
        input_hash: seal::input_hash(&trees),
        mounts: mounts.iter().map(totals).collect(),
        image_id: image_id.to_owned(),
    };
    if let Some(original) = &original {
        original.check_same(manifest, &scheduled, &mounts)?;
    }
    let inputs = Inputs { format: seal::FORMAT, job_id: job.job_id.to_string(), mounts };
    write_inputs(&runner.setup.data, &inputs)
        .map_err(|error| Fault::io("inputs", "the listing of the inputs cannot be written", &error))?;
    kill_point::reached("inputs-written");
    Ok(scheduled)
}

/// Whether what a job may only read is still what SCHEDULED tells of: days may lie between that and a further attempt that
/// somebody asks for.
pub(super) fn inputs_still(runner: &Runner, job: &Arc<Job>, manifest: &Manifest) -> Result<(), Fault> {
    make_scratch(runner, &job.job_id).map_err(|error| Fault::io("mount", "the scratch directory", &error))?;
    let mut recorded = Vec::new();
    details(runner, &job.job_id, &[State::Scheduled], &mut |_, detail| {
        if let Detail::Scheduled(scheduled) = detail {
            recorded = scheduled.mounts;
        }
    })
    .map_err(|error| Fault::io("inputs", "the ledger cannot be read back", &error))?;
    let mut staged = Vec::new();
    for place in manifest.places() {
        if let PlaceSource::ArtifactsOf(parent) = place.source {
            staged.push(staging::stage(runner, job, &place, parent)?);
        }
    }
    let container = container_name(&job.job_id, 0);
    let hashed = bind_all(runner, &job.job_id, manifest, &container).and_then(|(bound, _)| {
        let places = manifest.places();
        let is_wanted = |index: usize| {
            places.get(index).is_some_and(|place| matches!(place.source, PlaceSource::Host(_)) && place.read_only)
        };
        hash_all(runner, job, manifest, &bound, &is_wanted)
    });
    release(runner, &container);
    for mount in staged.into_iter().chain(hashed?) {
        let then = recorded.iter().find(|then| then.container == mount.container);
        if then.is_none_or(|then| then.tree != mount_tree(&mount).tree) {
            let message = format!(
                "{} is read-only, and does not hold any more what it held when the job was scheduled; restore it, or submit \
                 the job under a new job_id",
                mount.container
            );
            return Err(Fault::new("inputs", message));
        }
    }
    Ok(())
}

/// COMPLETED → SEALED. `None` where the agent stops before that.
pub(super) fn seal(runner: &Arc<Runner>, job: &Arc<Job>) -> Option<Arc<Job>> {
    let container = container_name(&job.job_id, job.attempt);
    let superseded = || runner.is_superseded(job);
    let outcome = runner.until_there_is_space(&job.job_id, &superseded, || {
        try_seal(runner, job, &container)
            .map_err(|error| Fault::of_seal("seal", "the artifacts cannot be sealed", &error))
    });
    if outcome.is_none() && superseded() {
        // Cancelled while it was being sealed.
        runner.clean_up(container);
        return None;
    }
    let command = match outcome? {
        Ok(sealed) => {
            kill_point::reached("seal-written");
            Command::Seal(job.job_id.clone(), job.attempt, sealed)
        }
        Err(fault) => Command::SealFailed(job.job_id.clone(), job.attempt, fault.message),
    };
    match runner.setup.engine.execute(command) {
        Ok(accepted) => {
            kill_point::reached("seal-durable");
            runner.clean_up(container);
            accepted.job
        }
        Err(error) => {
            log::warn!("job {}: its seal is not recorded: {error}", job.job_id);
            if error.status != 503 {
                // Cancelled just now.
                runner.clean_up(container);
            }
            None
        }
    }
}

fn try_seal(runner: &Runner, job: &Job, container: &str) -> Result<Sealed, SealError> {
    let fault = |what: &str, source: io::Error| SealError::Io { path: what.as_bytes().to_vec(), source };
    let open = job.open.as_ref().ok_or_else(|| fault("job", io::Error::other("it has ended")))?;
    let manifest = open.manifest.get();
    let bound =
        bound_still(runner, &job.job_id, manifest, container).map_err(|e| fault("mounts", io::Error::other(e)))?;
    let original = manifest.reproduces.as_deref().map(|of| staging::Parent::read(runner, of)).transpose();
    // The original's seal may be lost. A run of days is not thrown away because its comparison cannot be made.
    let original = original.unwrap_or_else(|why| {
        log::warn!("job {}: it is sealed without a comparison: {why}", job.job_id);
        None
    });
    let mut writable = Vec::new();
    for (place, bound) in &bound {
        writable.push((place.container, bound.open().map_err(|error| fault(place.container, error))?));
    }
    let writable: Vec<(&str, &Dir)> = writable.iter().map(|(container, dir)| (*container, dir)).collect();
    kill_point::reached("mounts-opened");
    let (endings, node_up) = endings(runner, job).map_err(|error| fault("ledger", error))?;
    let underway = runner.begin(job, Doing::Sealing);
    let usage = endings.get(&job.attempt).map_or(Value::Null, |ending| json!(ending.usage));
    let summary = write_seal(
        &runner.setup.data,
        &SealRequest {
            job_id: &job.job_id,
            attempt: job.attempt,
            node_up,
            execution_hash: job.execution_hash.unwrap_or(crate::hash::Hash::ZERO),
            image_id: job.image_id.as_deref().unwrap_or_default(),
            writable: &writable,
            logs: &logs(&endings),
            usage: &usage,
            original: original.as_ref().map(|original| (&original.seal, original.seal_hash)),
        },
        &|mount, done| underway.tell(mount, done),
    )?;
    Ok(Sealed {
        seal_hash: summary.seal_hash,
        artifacts_root: summary.artifacts_root,
        files: summary.files,
        bytes: summary.bytes,
        reproduction: summary.reproduction.map(Reproduction::for_event),
    })
}

fn check(runner: &Runner, job_id: &str, place: &Place<'_>) -> Result<CheckedMount, String> {
    let policy = &runner.setup.mounts;
    let PlaceSource::Host(path) = place.source else {
        let own = policy.check_own(&place.dir(job_id));
        return own.map_err(|error| format!("the agent's own directory for {}: {error}", place.container));
    };
    let checked = policy.check(path).map_err(|rejection| rejection.message)?;
    claims::confirm(runner, job_id, path, &checked, place.read_only)?;
    Ok(checked)
}

fn bind_all(
    runner: &Runner,
    job_id: &str,
    manifest: &Manifest,
    container: &str,
) -> Result<(Vec<BoundMount>, (u32, u32)), Fault> {
    let policy = &runner.setup.mounts;
    let (mut bound, mut user) = (Vec::new(), None);
    for (index, place) in manifest.places().iter().enumerate() {
        let checked = check(runner, job_id, place).map_err(|message| Fault::new("mount", message))?;
        if !matches!(place.source, PlaceSource::ArtifactsOf(_)) {
            // What parents have sealed lies in copies of the agent's own.
            user.get_or_insert(checked.owner());
        }
        let mount = policy.bind(&checked, &policy.place(container, index), place.read_only);
        bound.push(mount.map_err(|error| Fault::io("mount", &format!("{} cannot be bound", place.container), &error))?);
    }
    Ok((bound, user.unwrap_or(SCRATCH_OWNER)))
}

/// The writable mounts as the payload had them; bound anew only where the host has lost them, as in a reboot.
fn bound_still<'m>(
    runner: &Runner,
    job_id: &str,
    manifest: &'m Manifest,
    container: &str,
) -> Result<Vec<(Place<'m>, BoundMount)>, String> {
    let policy = &runner.setup.mounts;
    let mut bound = Vec::new();
    for place in manifest.places().into_iter().filter(|place| !place.read_only) {
        let path = policy.place(container, place.index);
        let is_there = crate::sys::dir::mounts_below(&path).is_ok_and(|mounts| !mounts.is_empty());
        let mount = if is_there {
            BoundMount { path, read_only: false }
        } else {
            let checked = check(runner, job_id, &place)?;
            policy.bind(&checked, &path, false).map_err(|error| error.to_string())?
        };
        bound.push((place, mount));
    }
    Ok(bound)
}

/// Hashes the mounts, by their index, that are `wanted`.
fn hash_all(
    runner: &Runner,
    job: &Arc<Job>,
    manifest: &Manifest,
    bound: &[BoundMount],
    wanted: &dyn Fn(usize) -> bool,
) -> Result<Vec<InputMount>, Fault> {
    let underway = runner.begin(job, Doing::HashingInputs);
    let mut mounts = Vec::new();
    for (_, (place, bound)) in manifest.places().iter().zip(bound).enumerate().filter(|(index, _)| wanted(*index)) {
        let tree = bound
            .open()
            .map_err(|source| SealError::Io { path: Vec::new(), source })
            .and_then(|dir| hash_tree(&dir, &|done| underway.tell(place.container, done)))
            .map_err(|error| Fault::of_seal("inputs", place.container, &error))?;
        let (container, read_only) = (place.container.to_owned(), place.read_only);
        mounts.push(InputMount { container, read_only, tree, artifacts_of: None });
    }
    Ok(mounts)
}

fn totals(mount: &InputMount) -> MountTotals {
    MountTotals {
        container: mount.container.clone(),
        mode: if mount.read_only { "ro" } else { "rw" }.to_owned(),
        tree: mount_tree(mount).tree,
        files: mount.tree.files,
        bytes: mount.tree.bytes,
        artifacts_of: mount.artifacts_of.as_ref().map(|of| of.job_id.clone()),
    }
}

/// What goes into the hashes: for what a parent has sealed, that and not how it lies here.
fn mount_tree(mount: &InputMount) -> MountTree<'_> {
    let artifacts = mount.artifacts_of.as_ref().map(|of| of.artifacts_root);
    MountTree {
        container: &mount.container,
        read_only: mount.read_only,
        tree: artifacts.unwrap_or(mount.tree.root),
        is_artifacts: artifacts.is_some(),
    }
}

fn make_scratch(runner: &Runner, job_id: &str) -> io::Result<()> {
    let path = runner.setup.data.join("scratch").join(job_id);
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
    match std::os::unix::fs::chown(&path, Some(SCRATCH_OWNER.0), Some(SCRATCH_OWNER.1)) {
        // An agent without the right to give files away runs its payloads as itself.
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

fn release(runner: &Runner, container: &str) {
    if let Err(error) = runner.setup.mounts.release(&runner.setup.data.join("mnt").join(container)) {
        log::warn!("the mounts of {container} are not released: {error}");
    }
}

/// How each attempt that ran ended, as its events tell: the seal repeats what the ledger vouched for. And the NODE_UP that
/// the latest ran under.
fn endings(runner: &Runner, job: &Job) -> io::Result<(BTreeMap<u32, Ending>, Option<u64>)> {
    let (mut endings, mut node_up) = (BTreeMap::new(), None);
    let states = [State::Running, State::Recovery, State::Crash, State::Completed, State::Cancelled];
    details(runner, &job.job_id, &states, &mut |attempt, detail| {
        let ending = match detail {
            Detail::Running(intent) | Detail::Recovery(intent) => {
                node_up = Some(intent.node_up);
                return;
            }
            Detail::Completed(ending) => ending,
            Detail::Crash(crash) => crash.ending,
            // Of a job that was retriggered; it may have been cancelled while nothing ran.
            Detail::Cancelled(cancelled) if cancelled.ending.stdout.is_some() => cancelled.ending,
            _ => return,
        };
        endings.insert(attempt, ending);
    })?;
    Ok((endings, node_up))
}

/// Calls `each` with attempt and detail of a job's events in one of `states`. Markers may be many, so others are not read.
pub(super) fn details(
    runner: &Runner,
    job_id: &str,
    states: &[State],
    each: &mut dyn FnMut(u32, Detail),
) -> io::Result<()> {
    let signs: Vec<String> = states.iter().map(|state| format!(",\"state\":\"{state}\",")).collect();
    runner.setup.engine.view().trace(job_id, &mut |bytes| {
        let head = &bytes[..HEAD_BYTES.min(bytes.len())];
        let fits = |sign: &String| head.windows(sign.len()).any(|window| window == sign.as_bytes());
        if signs.iter().any(fits)
            && let Ok(stored) = Stored::parse(bytes)
        {
            each(stored.event.subject.map_or(0, |subject| subject.attempt), stored.event.detail);
        }
        true
    })
}

/// An event's state stands within this many bytes: seq, prev, time, the longest job id, attempt.
const HEAD_BYTES: usize = 400;

fn logs(endings: &BTreeMap<u32, Ending>) -> Vec<AttemptLogs> {
    let of_attempt = |(attempt, ending): (&u32, &Ending)| AttemptLogs {
        attempt: *attempt,
        stdout: ending.stdout.clone(),
        stderr: ending.stderr.clone(),
    };
    endings.iter().map(of_attempt).collect()
}
