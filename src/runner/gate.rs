//! A job goes on once its parents are SEALED, and fails with them. In front of the claims, so that who waits here holds
//! nothing: neither a directory nor a worker, only an entry in a map.
//!
//! One thread looks at who waits when it begins to wait and when a parent has ended; in between it sleeps. What becomes
//! of a job is decided by the ledger: the thread only asks, and who has gone on since is refused.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Runner;
use super::claims::Turn;
use crate::ledger::event::State;
use crate::ledger::graph::Standing;
use crate::ledger::lifecycle::{Command, Job};

/// What the thread is told, in the order of the ledger.
pub(super) enum Look {
    /// A job, as its event left it, waits for its parents.
    Waits(Arc<Job>),
    /// A job has ended.
    Ended(Arc<str>),
}

/// Who waits, with the seq of the event since which it does. An entry stays until its job goes on, or has ended and that
/// is durable: what is asked for may be refused, because an ancestor was retriggered meanwhile, and then it waits again.
type Waiting = HashMap<Arc<str>, u64>;

/// Whether a job that was found when the agent started has to wait here.
pub(super) fn is_shut(runner: &Runner, job: &Job) -> bool {
    job.waits_for_parents()
        && runner.setup.engine.view().standing(&job.job_id).is_none_or(|(_, standing)| standing != Standing::Ready)
}

/// Why a job waits here, if it does.
pub(super) fn waiting_for(runner: &Runner, job: &Job) -> Option<String> {
    let view = runner.setup.engine.view();
    match view.standing(&job.job_id)? {
        (now, _) if !now.waits_for_parents() => None,
        (_, Standing::Ready) => None,
        (_, Standing::Waits { on, more }) => {
            let state = view.job(&on)?.state;
            let others = if more > 0 { format!(", and {more} more") } else { String::new() };
            Some(format!("parent {on:?}, which is {state}{others}"))
        }
        (_, Standing::Fails { parent, .. }) => {
            let state = view.job(&parent)?.state;
            Some(format!("parent {parent:?}, which is {state}: so it fails, too"))
        }
    }
}

/// The thread.
pub(super) fn keep(runner: &Arc<Runner>) {
    let mut waiting = Waiting::new();
    while let Ok(look) = runner.queues.gate.1.recv() {
        if runner.is_stopping() {
            return;
        }
        match look {
            Look::Waits(job) => {
                waiting.insert(job.job_id.clone(), job.seq);
                examine(runner, &job.job_id, &mut waiting);
            }
            Look::Ended(job_id) => {
                waiting.remove(&job_id);
                let view = runner.setup.engine.view();
                match view.job(&job_id).map(|job| job.state) {
                    Some(State::Sealed) => {
                        for child in view.children(&job_id) {
                            examine(runner, &child.job_id, &mut waiting);
                        }
                    }
                    Some(state) if state.is_end() => fail_descendants(runner, &job_id, &waiting),
                    // It was retriggered since, so its children go on waiting.
                    _ => {}
                }
            }
        }
    }
}

fn examine(runner: &Arc<Runner>, job_id: &Arc<str>, waiting: &mut Waiting) {
    let Some(seq) = waiting.get(job_id).copied() else { return };
    let Some((job, standing)) = runner.setup.engine.view().standing(job_id) else { return };
    if job.seq != seq {
        // It has ended; if it waits again, that was told behind this.
        waiting.remove(job_id);
        return;
    }
    match standing {
        Standing::Ready => {
            waiting.remove(job_id);
            // The receiver lives as long as the process does.
            let _ = runner.queues.claim.0.send(Turn::Wants(job));
        }
        Standing::Waits { .. } => {}
        Standing::Fails { .. } => {
            ask_to_fail(runner, &job);
            fail_descendants(runner, job_id, waiting);
        }
    }
}

/// All who wait for `job_id`, and for those in turn, at once: the ledger decides on what was decided before, durable or
/// not, so that the longest chain fails in one commit.
fn fail_descendants(runner: &Arc<Runner>, job_id: &Arc<str>, waiting: &Waiting) {
    let (mut asked, mut next) = (HashSet::new(), vec![job_id.clone()]);
    while let Some(parent) = next.pop() {
        for child in runner.setup.engine.view().children(&parent) {
            if waiting.get(&child.job_id) == Some(&child.seq) && asked.insert(child.job_id.clone()) {
                ask_to_fail(runner, &child);
                next.push(child.job_id.clone());
            }
        }
    }
}

/// Without waiting for the answer: its outcome comes back as an event. The ledger thread never waits for this one, so
/// this one may wait for room in its queue.
fn ask_to_fail(runner: &Runner, job: &Job) {
    drop(runner.setup.engine.ask(Command::FailByDependency(job.job_id.clone(), job.seq)));
}
