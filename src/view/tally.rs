//! How many events of which kind were published since the agent's start.

use super::Published;
use crate::ledger::event::State;
use crate::ledger::fact::Fact;

/// What an attempt, or a job, may end as: the state, and of CRASH its cause, of FAILED its reason. What a later version's
/// ledger might hold besides counts as `other`.
pub const ENDS: [(State, &str); 21] = [
    (State::Completed, ""),
    (State::Sealed, ""),
    (State::Cancelled, ""),
    (State::Crash, "killed"),
    (State::Crash, "oom"),
    (State::Crash, "host"),
    (State::Crash, "engine"),
    (State::Crash, "lost"),
    (State::Crash, "other"),
    (State::Failed, "exit"),
    (State::Failed, "timeout"),
    (State::Failed, "not_started"),
    (State::Failed, "image"),
    (State::Failed, "mount"),
    (State::Failed, "inputs"),
    (State::Failed, "resources"),
    (State::Failed, "attempt_limit"),
    (State::Failed, "oom"),
    (State::Failed, "seal"),
    (State::Failed, "dependency"),
    (State::Failed, "other"),
];

/// Counts that only grow.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Events by state, indexed by its discriminant.
    pub events: [u64; State::ALL.len()],
    /// RUNNING and RECOVERY events: attempts that were begun.
    pub attempts_begun: u64,
    /// Attempts that ended, indexed as [`ENDS`]. One that ends in CRASH counts there, whatever follows for its job.
    pub attempts_ended: [u64; ENDS.len()],
    /// Jobs that ended, indexed as [`ENDS`]. One that is retriggered may end once more.
    pub jobs_ended: [u64; ENDS.len()],
}

impl Tally {
    /// Takes in a durable event; `before` is the state that its job was in.
    pub(super) fn count(&mut self, before: Option<State>, event: &Published) {
        let Some(job) = &event.job else {
            // Which of the node's events it is stands in its bytes alone.
            if let Ok(fact) = Fact::parse(&event.bytes) {
                self.events[fact.state as usize] += 1;
            }
            return;
        };
        let state = job.state;
        self.events[state as usize] += 1;
        self.attempts_begun += u64::from(matches!(state, State::Running | State::Recovery));
        let end = || {
            let reason = match state {
                State::Crash | State::Failed => job.reason.as_deref().unwrap_or_default(),
                _ => "",
            };
            let place = |reason: &str| ENDS.iter().position(|end| *end == (state, reason));
            place(reason).or_else(|| place("other"))
        };
        let ran = matches!(before, Some(State::Running | State::Recovery | State::D1Stable | State::Stopping));
        let ends_attempt = ran && matches!(state, State::Completed | State::Crash | State::Failed | State::Cancelled);
        if ends_attempt && let Some(end) = end() {
            self.attempts_ended[end] += 1;
        }
        if state.is_end()
            && let Some(end) = end()
        {
            self.jobs_ended[end] += 1;
        }
    }
}
