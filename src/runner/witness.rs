//! Watches the engine for what a verdict needs to know of it: notes each answer and each silence.

use std::sync::{Arc, PoisonError};

use super::Runner;
use super::docker::{ContainerState, daemon};
use super::outage::{self, Evidence, Listener, Outages};
use crate::ledger::time::Time;

/// How often the engine is asked for an answer that is certainly its own; only one that restarts meanwhile gives none.
const SURE_TRIES: u32 = 5;

/// Who listened when a question was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glance {
    listener: Listener,
    at: Time,
}

impl Runner {
    /// To be taken before a question is asked.
    pub(super) fn glance(&self) -> Glance {
        Glance { at: Time::now(), listener: self.setup.docker.listener() }
    }

    /// The question was answered. Whether it is known by whom.
    pub(super) fn note_answer(&self, asked: Glance) -> bool {
        let came = Time::now();
        let now = self.setup.docker.listener();
        self.outages().answered([asked.listener, now], asked.at, came)
    }

    /// A question was not answered.
    pub(super) fn note_silence(&self) {
        let listener = self.setup.docker.listener();
        let mut outages = self.outages();
        outages.silent(listener);
        if let Some(process) = outages.process().filter(|process| !daemon::is_alive(*process)) {
            outages.gone(process, Time::now());
            log::info!("the container engine's process {} has ended", process.pid);
        }
    }

    /// What is known of the end of a container. `None`: the agent stops.
    pub(super) fn evidence(&self, job_id: &Arc<str>, state: &ContainerState) -> Option<Evidence> {
        let (Some(started), Some(ended)) = (outage::parse(&state.started_at), outage::parse(&state.finished_at)) else {
            return Some(Evidence::default());
        };
        // In which outage it lies is only known once that is over.
        self.know_engine(job_id, ended)?;
        Some(self.outages().evidence(started, ended, state.exit_code))
    }

    /// Returns when it is known which engine answers what is asked at `since` or later, and what it says of itself. `None`: the
    /// agent stops.
    pub(super) fn know_engine(&self, job_id: &Arc<str>, since: Time) -> Option<()> {
        for _ in 0..SURE_TRIES {
            if !self.outages().has_answered(since) {
                let _ = self.until_engine_answers(job_id, &|| false, || self.setup.docker.ping())?;
            } else if !self.outages().is_to_be_asked() || self.learn().is_ok() {
                break;
            }
        }
        Some(())
    }

    pub(super) fn outages(&self) -> std::sync::MutexGuard<'_, Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
