//! Lets go of what attempts and jobs held, once their end is durable: containers, mounts, control groups, pins. First what an
//! earlier agent left. What another agent, or a ledger that knows more than this one, may hold is left alone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::cgroup::{self, AttemptGroup};
use super::docker::Inspect;
use super::{BUSY_PAUSE, Runner, claims, staging};
use crate::ledger::event::State;
use crate::sys::kill_point;

/// When a container that could not be removed is tried again.
const REMOVE_AGAIN: Duration = Duration::from_secs(30);

/// What is left to do after an end that is durable.
pub(super) enum Clean {
    /// Of an attempt: its container is removed, with its mounts and its control group.
    Attempt(String),
    /// Of a job: its image is let go of, and what was staged for it removed.
    Job(Arc<str>),
}

/// What the ledger knows of a container, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Its attempt has not ended.
    UnderWay,
    /// Its attempt has ended.
    Over,
    /// There is no such attempt.
    Unknown,
}

impl Runner {
    /// Gives the clean-up of attempts that have ended until `deadline`, then removes the ledger's own control group.
    pub fn finish_cleaning(self: &Arc<Self>, deadline: Instant) {
        while self.cleaning.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        // An engine that does not answer must not keep the agent; the next one lets go of what is left.
        let (done, swept) = bounded::<()>(1);
        let sweep = move |runner: &Arc<Self>| {
            runner.pins.sweep(&runner.setup.docker, true);
            // What an earlier agent left may not have been come to yet.
            let _ = runner.pins.sweep_stale(&runner.setup.docker);
            drop(done);
        };
        if self.spawn("unpin", sweep).is_ok() {
            let _ = swept.recv_deadline(deadline);
        }
        if let Some(hierarchies) = self.hierarchies() {
            // Where attempts go on it is not empty, and stays.
            let _ = cgroup::remove_log_group(&hierarchies, self.short_log_id());
        }
    }

    /// Lets go of an attempt whose end is durable: container, mounts, control group. In a thread of its own, since nothing
    /// waits for it.
    pub(super) fn clean_up(&self, container: String) {
        self.cleaning.fetch_add(1, Ordering::SeqCst);
        let _ = self.queues.clean.0.send(Clean::Attempt(container));
    }

    /// First what an earlier agent left, then what comes in.
    pub(super) fn keep_clean(self: &Arc<Self>) {
        for job_id in staging::left_over(self) {
            let _ = self.queues.clean.0.send(Clean::Job(job_id));
        }
        let label = format!("hackbrain.log={}", self.setup.log_id);
        let nobody: Arc<str> = "".into();
        let never = || false;
        if let Some(Ok(found)) = self.until_engine_answers(&nobody, &never, || self.setup.docker.list(&label)) {
            for left in found {
                match self.fate(&left.name) {
                    Fate::UnderWay => {}
                    Fate::Over => {
                        log::info!("removing container {}, whose end is recorded", left.name);
                        if !self.remove(&left.name) {
                            self.clean_up(left.name);
                        }
                    }
                    // As after a data directory was put back from a copy: what runs there may be somebody's days of work.
                    Fate::Unknown => log::warn!(
                        "container {} says that it is this ledger's, which knows nothing of it; it is left as it is",
                        left.name
                    ),
                }
            }
        }
        if let Some(Err(error)) =
            self.until_engine_answers(&nobody, &never, || self.pins.sweep_stale(&self.setup.docker))
        {
            log::warn!("a pin that an earlier agent left is not removed: {error}");
        }
        if let Err(error) = self.setup.mounts.clean_stale(&|container| self.is_under_way(container)) {
            log::warn!("a mount that an earlier agent left is not released: {error}");
        }
        if let Some(hierarchies) = self.hierarchies() {
            for left in cgroup::attempts_of(&hierarchies, self.short_log_id()) {
                if !self.is_under_way(&left) {
                    self.remove_group(&left);
                }
            }
        }
        // Those that the engine would not remove, and when they are tried again: they must not hold up the others.
        let mut later: VecDeque<(Instant, String)> = VecDeque::new();
        loop {
            match self.queues.clean.1.recv_timeout(REMOVE_AGAIN) {
                Ok(Clean::Job(job_id)) => {
                    self.pins.release_if(&job_id, &|| self.has_ended(&job_id));
                    if !staging::remove(self, &job_id) {
                        thread::sleep(BUSY_PAUSE);
                        let _ = self.queues.clean.0.send(Clean::Job(job_id));
                    }
                }
                Ok(Clean::Attempt(container)) => {
                    if !self.remove(&container) {
                        later.push_back((Instant::now() + REMOVE_AGAIN, container));
                    }
                    self.cleaning.fetch_sub(1, Ordering::SeqCst);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if let Some((_, container)) = later.pop_front_if(|(due, _)| *due <= Instant::now())
                && !self.remove(&container)
            {
                later.push_back((Instant::now() + REMOVE_AGAIN, container));
            }
        }
    }

    /// Whether a container, or what was made for it, belongs to an attempt that has not ended. An intent is published before
    /// anything is made, so what is seen first and looked up here afterwards is never somebody's who is just starting.
    fn fate(&self, container: &str) -> Fate {
        let named = container.strip_prefix("hb-").and_then(|rest| rest.rsplit_once('-'));
        let attempt = named.and_then(|(job_id, attempt)| Some((job_id, attempt.parse::<u32>().ok()?)));
        let Some((job_id, attempt)) = attempt else { return Fate::Unknown };
        match self.setup.engine.view().job(job_id) {
            Some(job) if attempt <= job.attempt => {
                let is_over = job.open.is_none()
                    || match attempt {
                        // What was bound to hash the inputs, also when a retriggered job's are looked at again.
                        0 => !claims::waits(&job),
                        _ => attempt < job.attempt || matches!(job.state, State::Crash | State::Retriggered),
                    };
                if is_over { Fate::Over } else { Fate::UnderWay }
            }
            _ => Fate::Unknown,
        }
    }

    fn is_under_way(&self, container: &str) -> bool {
        self.fate(container) == Fate::UnderWay
    }

    /// Whether all of it is gone. An engine that is away is waited for.
    fn remove(&self, container: &str) -> bool {
        let nobody: Arc<str> = "".into();
        // Only our own: the name alone may be somebody else's. By its id, in case the name changes hands meanwhile.
        let ask = || match self.setup.docker.inspect(container)? {
            Inspect::Present(state) if state.labels.get("hackbrain.log") == Some(&self.setup.log_id) => {
                self.setup.docker.remove(&state.id, true)
            }
            _ => Ok(()),
        };
        // An agent that stops tries once; what it leaves the next one removes.
        while let Err(error) = ask() {
            let is_there = || self.setup.docker.ping();
            if self.is_stopping() || is_there().is_ok() {
                // Whatever words it has: one container that cannot be removed is no absent engine.
                log::warn!("container {container} is not removed: {error}");
                return false;
            }
            let _ = self.until_engine_answers(&nobody, &|| false, is_there);
        }
        kill_point::reached("container-removed");
        if let Err(error) = self.setup.mounts.release(&self.setup.data.join("mnt").join(container)) {
            log::warn!("the mounts of {container} are not released: {error}");
        }
        kill_point::reached("mounts-released");
        self.remove_group(container);
        true
    }

    fn remove_group(&self, container: &str) {
        let group = self.hierarchies().and_then(|h| AttemptGroup::create(&h, self.short_log_id(), container).ok());
        if let Some(Err(error)) = group.map(|group| group.remove()) {
            log::warn!("the control group of {container} is not removed: {error}");
        }
    }
}
