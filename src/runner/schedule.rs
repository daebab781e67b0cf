//! RECEIVED → SCHEDULED: the image is resolved to an id and pinned, the inputs are hashed.

use std::sync::Arc;

use super::Runner;
use super::docker::EngineError;
use super::workspace;
use crate::config::Pull;
use crate::ledger::event::Scheduled;
use crate::ledger::lifecycle::{Command, Job};

/// Takes a received job on; what cannot run is refused with the reason, and a stopping agent leaves it as it is.
pub(super) fn schedule(runner: &Arc<Runner>, job: &Arc<Job>) {
    let command = match prepare(runner, job) {
        Some(Ok(scheduled)) => Command::Schedule(job.job_id.clone(), scheduled),
        Some(Err((reason, message))) => Command::Refuse(job.job_id.clone(), reason.into(), message),
        None => return,
    };
    if let Err(error) = runner.setup.engine.execute(command) {
        // Cancelled meanwhile, or the agent goes down.
        log::info!("job {}: not scheduled: {error}", job.job_id);
    }
}

type Refusal = (&'static str, String);

fn prepare(runner: &Arc<Runner>, job: &Arc<Job>) -> Option<Result<Scheduled, Refusal>> {
    let manifest = job.open.as_ref()?.manifest.clone();
    let image_id = match image(runner, job, &manifest.image_hash)? {
        Ok(image_id) => image_id,
        Err(message) => return Some(Err(("image", message))),
    };
    Some(workspace::inputs(runner, job, &manifest, image_id))
}

/// The id that the manifest's image means now, pinned so that nobody prunes it before the job has ended.
fn image(runner: &Arc<Runner>, job: &Arc<Job>, reference: &str) -> Option<Result<String, String>> {
    let docker = &runner.setup.docker;
    let ended = || runner.setup.engine.view().job(&job.job_id).is_none_or(|now| now.open.is_none());
    let answer = runner.until_engine_answers(&job.job_id, &ended, || {
        let mut image_id = docker.resolve_image(reference)?;
        if image_id.is_none() && runner.setup.pull == Pull::Missing {
            log::info!("job {}: pulling {reference}", job.job_id);
            docker.pull(reference)?;
            image_id = docker.resolve_image(reference)?;
        }
        let Some(image_id) = image_id else {
            let message =
                format!("there is no image {reference:?} on this host, and --pull never was given; load it first");
            return Err(EngineError::Other(message));
        };
        docker.pin(&image_id)?;
        Ok(image_id)
    })?;
    Some(answer.map_err(|error| error.to_string()))
}
