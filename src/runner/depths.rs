//! How much waits where, for those who look from outside.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::Runner;

impl Runner {
    /// Entries of each queue, by its name. An entry may be void: something has happened to its job since.
    pub fn queue_depths(&self) -> [(&'static str, usize); 7] {
        let queues = &self.queues;
        [
            ("gate", queues.gate.1.len()),
            ("claim", queues.claim.1.len()),
            ("schedule", queues.schedule.1.len()),
            ("pull", queues.pull.1.len()),
            ("copy", queues.copy.1.len()),
            ("run", queues.run.1.len()),
            ("clean", queues.clean.1.len()),
        ]
    }

    /// Containers that are looked after now, those that are taken up again included; and `--workers`.
    pub fn slots(&self) -> (usize, usize) {
        (*self.slots.lock().unwrap_or_else(PoisonError::into_inner), self.setup.workers)
    }

    /// Containers that have ended and are not removed yet.
    pub fn cleaning(&self) -> usize {
        self.cleaning.load(Ordering::Relaxed)
    }

    /// Whether the container engine answered when it was asked last.
    pub fn engine_is_available(&self) -> bool {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }
}
