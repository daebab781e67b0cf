//! Keeps images from being pruned while unfinished jobs refer to them by id: each gets a name of this ledger's own,
//! `hackbrain/pin:<log>-<image>`, for as long as a job needs it and a little longer, since the next job often has the same image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::docker::{Docker, EngineError};

/// Repository of all pins of all agents.
const REPOSITORY: &str = "hackbrain/pin";
/// Hex digits of an image's id in its pin.
const IMAGE_DIGITS: usize = 24;
/// How long a pin stays that no job needs.
const LINGER: Duration = Duration::from_secs(5);

/// The pins of one ledger.
#[derive(Debug)]
pub(super) struct Pins {
    /// Short id of the ledger: agents that share an engine leave each other's pins alone.
    log: String,
    images: Mutex<BTreeMap<Arc<str>, Pin>>,
}

#[derive(Debug, Default)]
struct Pin {
    /// Unfinished jobs that need the image.
    jobs: BTreeSet<Arc<str>>,
    /// Whether the engine knows the name.
    tagged: bool,
    /// Since when no job needs it.
    idle_since: Option<Instant>,
}

impl Pins {
    pub(super) fn new(log: &str) -> Self {
        Self { log: log.to_owned(), images: Mutex::default() }
    }

    /// Pins `image_id` for a job, and gives up what the job held before. Free where the image is pinned already.
    pub(super) fn hold(&self, docker: &Docker, image_id: &str, job_id: &Arc<str>) -> Result<(), EngineError> {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked for under the lock, so that nobody takes away meanwhile what this job counts on.
        if !images.get(image_id).is_some_and(|pin| pin.tagged) {
            docker.tag(image_id, REPOSITORY, &self.tag(image_id))?;
        }
        leave(&mut images, job_id);
        note(&mut images, image_id, job_id);
        Ok(())
    }

    /// Notes what an earlier agent has pinned for an unfinished job.
    pub(super) fn inherit(&self, image_id: &str, job_id: &Arc<str>) {
        note(&mut self.images.lock().unwrap_or_else(PoisonError::into_inner), image_id, job_id);
    }

    /// Gives up what a job holds, if it has `ended`: asked under the lock, since a job may be retriggered, and hold anew, at
    /// any moment.
    pub(super) fn release_if(&self, job_id: &str, ended: &dyn Fn() -> bool) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if ended() {
            leave(&mut images, job_id);
        }
    }

    /// Removes the pins that no job has needed for a while; all that none needs where the agent `stops`.
    pub(super) fn sweep(&self, docker: &Docker, stops: bool) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        let idle: Vec<Arc<str>> = images
            .iter()
            .filter(|(_, pin)| pin.idle_since.is_some_and(|since| stops || since.elapsed() >= LINGER))
            .map(|(image_id, _)| image_id.clone())
            .collect();
        for image_id in idle {
            match remove(docker, &format!("{REPOSITORY}:{}", self.tag(&image_id))) {
                Ok(()) => drop(images.remove(&image_id)),
                // Asked again at the next sweep, or by the next agent.
                Err(error) => log::debug!("the pin of {image_id} stays for now: {error}"),
            }
        }
    }

    /// Removes what an earlier agent of this ledger left pinned for jobs that have ended since.
    pub(super) fn sweep_stale(&self, docker: &Docker) -> Result<(), EngineError> {
        let prefix = format!("{REPOSITORY}:{}-", self.log);
        for name in docker.names_in(REPOSITORY)?.iter().filter(|name| name.starts_with(&prefix)) {
            let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            if !images.keys().any(|image_id| *name == format!("{REPOSITORY}:{}", self.tag(image_id))) {
                remove(docker, name)?;
            }
        }
        Ok(())
    }

    fn tag(&self, image_id: &str) -> String {
        let hex = image_id.strip_prefix("sha256:").unwrap_or(image_id);
        format!("{}-{}", self.log, hex.get(..IMAGE_DIGITS).unwrap_or(hex))
    }
}

fn note(images: &mut BTreeMap<Arc<str>, Pin>, image_id: &str, job_id: &Arc<str>) {
    let pin = images.entry(image_id.into()).or_default();
    pin.jobs.insert(job_id.clone());
    (pin.tagged, pin.idle_since) = (true, None);
}

fn leave(images: &mut BTreeMap<Arc<str>, Pin>, job_id: &str) {
    for pin in images.values_mut() {
        if pin.jobs.remove(job_id) && pin.jobs.is_empty() {
            pin.idle_since = Some(Instant::now());
        }
    }
}

/// Takes a pin's name away, unless it is the image's only one: then the engine would delete the image, which is its owner's to do.
fn remove(docker: &Docker, name: &str) -> Result<(), EngineError> {
    match docker.image(name)? {
        Some(image) if image.names.iter().all(|other| other == name) => {
            log::info!("image {} has no other name than {name}; remove that to delete it", image.id);
            Ok(())
        }
        Some(_) => docker.untag(name),
        None => Ok(()),
    }
}
