//! The queues that hand work out, and who is at work on what.
//!
//! The ledger's state is the truth: an entry is void once something has happened to its job since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Runner;
use super::claims::Turn;
use super::cleanup::Clean;
use super::gate::Look;
use crate::engine::OnJob;
use crate::ledger::event::State;
use crate::ledger::lifecycle::Job;

/// Something happened to an attempt under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// The CLI has ended, or the container that was adopted without one.
    Ended,
    /// A stop request is durable.
    Stop,
    /// The agent stops; the container goes on.
    Shutdown,
}

/// Jobs, each as the event left it that put it there: what has happened to it since makes the entry void.
pub(super) type Queue = (Sender<Arc<Job>>, Receiver<Arc<Job>>);

/// What is done for a job by one thread at a time, whatever becomes of the job meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// It is scheduled, its image pulled.
    Prepare,
    /// Its attempts are run and sealed.
    Run,
}

/// The queues. They exist before the engine, which fills them, and the runner, which empties them.
#[derive(Clone)]
pub struct Queues {
    /// Jobs that want their directories, and jobs that need them no more, in the order their events became durable.
    pub(super) claim: (Sender<Turn>, Receiver<Turn>),
    /// Jobs that wait for their parents, and jobs that have ended, in the same order.
    pub(super) gate: (Sender<Look>, Receiver<Look>),
    pub(super) schedule: Queue,
    /// Jobs whose image is not on the host. Apart, since a registry that does not answer must hold up nobody else.
    pub(super) pull: Queue,
    /// Jobs that are shown copies. Apart, since those may be large, and wait for space.
    pub(super) copy: Queue,
    pub(super) run: Queue,
    pub(super) clean: (Sender<Clean>, Receiver<Clean>),
    pub(super) active: Arc<Mutex<HashMap<Arc<str>, Sender<Signal>>>>,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            claim: unbounded(),
            gate: unbounded(),
            schedule: unbounded(),
            pull: unbounded(),
            copy: unbounded(),
            run: unbounded(),
            clean: unbounded(),
            active: Arc::default(),
        }
    }
}

impl Queues {
    /// What the engine calls with each job whose event has become durable.
    pub fn on_job(&self) -> OnJob {
        let queues = self.clone();
        Box::new(move |job| match job.state {
            State::Received | State::Retriggered if job.waits_for_parents() => {
                let _ = queues.gate.0.send(Look::Waits(job.clone()));
            }
            State::Received | State::Retriggered => drop(queues.claim.0.send(Turn::Wants(job.clone()))),
            State::Scheduled => queues.offer(&queues.run.0, job),
            State::Stopping => queues.signal(&job.job_id, Signal::Stop),
            state if state.is_end() => {
                let _ = queues.claim.0.send(Turn::Ended(job.job_id.clone()));
                let _ = queues.gate.0.send(Look::Ended(job.job_id.clone()));
                let _ = queues.clean.0.send(Clean::Job(job.job_id.clone()));
            }
            _ => {}
        })
    }

    pub(super) fn offer(&self, queue: &Sender<Arc<Job>>, job: &Arc<Job>) {
        // The receivers live as long as the process does.
        let _ = queue.send(job.clone());
    }

    fn signal(&self, job_id: &str, signal: Signal) {
        let active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = active.get(job_id) {
            let _ = sender.send(signal);
        }
    }

    pub(super) fn signal_all(&self, signal: Signal) {
        for sender in self.active.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let _ = sender.send(signal);
        }
    }
}

/// A job that a thread is at work on.
pub(super) struct Busy(Arc<Runner>, Stage, Arc<str>);

impl Busy {
    /// None where another thread is.
    pub(super) fn enter(runner: &Arc<Runner>, stage: Stage, job_id: &Arc<str>) -> Option<Self> {
        let mut busy = runner.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.insert((stage, job_id.clone())).then(|| Self(runner.clone(), stage, job_id.clone()))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&(self.1, self.2.clone()));
    }
}
