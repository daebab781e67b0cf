//! RECEIVED → SCHEDULED: the image is resolved to an id and pinned, the inputs are hashed. RETRIGGERED → ready to run: the
//! same execution once more, so its image and what it may only read must still be there.

use std::sync::Arc;

use super::Runner;
use super::copying;
use super::docker::EngineError;
use super::workspace;
use crate::config::Pull;
use crate::ledger::event::Scheduled;
use crate::ledger::lifecycle::{Command, Job};
use crate::manifest::Resources;
use crate::sys::kill_point;

/// What a thread may do for a job that takes long, and must hold up nobody else.
#[derive(Clone, Copy)]
struct May {
    pull: bool,
    copy: bool,
}

/// Takes a received job on; what cannot run is refused with the reason, and a stopping agent leaves it as it is. A job whose
/// image must be pulled first, or that is shown copies, goes to the threads that do that.
pub(super) fn schedule(runner: &Arc<Runner>, job: &Arc<Job>) {
    advance(runner, job, May { pull: false, copy: false });
}

/// The same, with the pull.
pub(super) fn pull_and_schedule(runner: &Arc<Runner>, job: &Arc<Job>) {
    advance(runner, job, May { pull: true, copy: false });
}

/// The same, with the copies.
pub(super) fn copy_and_schedule(runner: &Arc<Runner>, job: &Arc<Job>) {
    if copying::wait_for_turn(runner, job) {
        advance(runner, job, May { pull: false, copy: true });
    }
}

fn advance(runner: &Arc<Runner>, job: &Arc<Job>, may: May) {
    match &job.image_id {
        // SCHEDULED once, and not to be scheduled anew: what it runs on is in the ledger.
        Some(image_id) => match prepare_again(runner, job, image_id, may) {
            Ok(()) => runner.queues.offer(&runner.queues.run.0, job),
            Err(hitch) => record(runner, job, Err(hitch)),
        },
        None => record(runner, job, prepare(runner, job, may)),
    }
}

/// Why a job does not become SCHEDULED now.
enum Hitch {
    /// One of the reasons of FAILED, and a message.
    Refused(&'static str, String),
    /// Its image must be pulled.
    Pull,
    /// Copies must be made for it.
    Copy,
    /// The agent stops, or the job has ended.
    Over,
}

fn record(runner: &Arc<Runner>, job: &Arc<Job>, prepared: Result<Scheduled, Hitch>) {
    let command = match prepared {
        Ok(scheduled) => Command::Schedule(job.job_id.clone(), job.seq, scheduled),
        Err(Hitch::Refused(reason, message)) => Command::Refuse(job.job_id.clone(), job.seq, reason.into(), message),
        Err(Hitch::Pull) => return runner.queues.offer(&runner.queues.pull.0, job),
        Err(Hitch::Copy) => return runner.queues.offer(&runner.queues.copy.0, job),
        Err(Hitch::Over) => return,
    };
    let recorded = runner.setup.engine.execute(command);
    kill_point::reached("scheduling-durable");
    if let Err(error) = recorded {
        // Cancelled meanwhile, or the agent goes down.
        log::info!("job {}: not scheduled: {error}", job.job_id);
    }
}

fn prepare(runner: &Arc<Runner>, job: &Arc<Job>, may: May) -> Result<Scheduled, Hitch> {
    let manifest = job.open.as_ref().ok_or(Hitch::Over)?.manifest.get().clone();
    check_capacity(runner, job, &manifest.resources)?;
    let image_id = image(runner, job, &manifest.image_hash, may.pull)?;
    if !may.copy && copying::is_shown_copies(&manifest) {
        return Err(Hitch::Copy);
    }
    runner
        .until_there_is_space(&job.job_id, &|| runner.has_ended(&job.job_id), || {
            workspace::inputs(runner, job, &manifest, &image_id)
        })
        .ok_or(Hitch::Over)?
        .map_err(|fault| Hitch::Refused(fault.reason, fault.message))
}

fn prepare_again(runner: &Arc<Runner>, job: &Arc<Job>, image_id: &Arc<str>, may: May) -> Result<(), Hitch> {
    let manifest = job.open.as_ref().ok_or(Hitch::Over)?.manifest.get().clone();
    if pinned(runner, job, image_id, false)?.is_none() {
        let message = format!(
            "image {image_id}, which the job was scheduled with, is not on this host any more; load it and retrigger the job, \
             or submit it under a new job_id"
        );
        return Err(Hitch::Refused("image", message));
    }
    check_capacity(runner, job, &manifest.resources)?;
    if !may.copy && copying::is_shown_copies(&manifest) {
        return Err(Hitch::Copy);
    }
    runner
        .until_there_is_space(&job.job_id, &|| runner.has_ended(&job.job_id), || {
            workspace::inputs_still(runner, job, &manifest)
        })
        .ok_or(Hitch::Over)?
        .map_err(|fault| Hitch::Refused(fault.reason, fault.message))
}

/// Whether the engine can give what was asked for. A submission is checked too, but not while the engine is away.
fn check_capacity(runner: &Arc<Runner>, job: &Arc<Job>, asked: &Resources) -> Result<(), Hitch> {
    let ended = || runner.has_ended(&job.job_id);
    // Looked at before: only an answer of the engine's may count as one.
    let answer = match runner.capacity_for(asked) {
        Some(engine) => Ok(engine),
        None => runner
            .until_engine_answers(&job.job_id, &ended, || runner.learn().map(|info| info.capacity()))
            .ok_or(Hitch::Over)?,
    };
    match answer {
        Ok(engine) => runner
            .setup
            .resources
            .check_engine(asked, &engine)
            .map_err(|rejection| Hitch::Refused("resources", rejection.message)),
        // An engine that cannot tell of itself has words for what it cannot do.
        Err(_) => Ok(()),
    }
}

/// The id that the manifest's image means now, pinned.
fn image(runner: &Arc<Runner>, job: &Arc<Job>, reference: &str, may_pull: bool) -> Result<String, Hitch> {
    match pinned(runner, job, reference, may_pull)? {
        Some(image_id) => Ok(image_id),
        None if runner.setup.pull == Pull::Missing && !may_pull => Err(Hitch::Pull),
        None => {
            let message =
                format!("there is no image {reference:?} on this host, and --pull never was given; load it first");
            Err(Hitch::Refused("image", message))
        }
    }
}

/// The id of an image, if it is there or may be pulled; pinned, so that nobody prunes it before the job has ended.
fn pinned(runner: &Arc<Runner>, job: &Arc<Job>, reference: &str, may_pull: bool) -> Result<Option<String>, Hitch> {
    let docker = &runner.setup.docker;
    let ended = || runner.has_ended(&job.job_id);
    let answer = runner.until_engine_answers(&job.job_id, &ended, || {
        let mut image_id = docker.resolve_image(reference)?;
        if image_id.is_none() && may_pull {
            runner.note_waiting(&job.job_id, &format!("pulling {reference}"));
            docker.pull(reference)?;
            image_id = docker.resolve_image(reference)?;
        }
        if let Some(image_id) = &image_id {
            runner.pins.hold(docker, image_id, &job.job_id)?;
            kill_point::reached("image-pinned");
        }
        Ok(image_id)
    });
    // Cancelled while the engine was asked, it may have been let go of before it held anything.
    runner.pins.release_if(&job.job_id, &ended);
    answer.ok_or(Hitch::Over)?.map_err(|error| {
        let (EngineError::Unavailable(words) | EngineError::Other(words)) = error;
        Hitch::Refused("image", words)
    })
}
