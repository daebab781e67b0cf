//! How far long work on a job's files is, for the job's summary; and whether it is still wanted.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};

use super::Runner;
use crate::ledger::lifecycle::Job;
use crate::seal::Progress;

/// What each job's files are being hashed for, and how far that is.
#[derive(Default)]
pub(super) struct Progresses(Mutex<HashMap<Arc<str>, Step>>);

/// What is done with a job's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Copying,
    HashingInputs,
    Sealing,
}

struct Step {
    doing: Doing,
    mount: Arc<str>,
    done: Progress,
}

/// Work on one job's files. What it told is forgotten when this is dropped.
pub(super) struct Underway<'r> {
    runner: &'r Runner,
    job: &'r Job,
    doing: Doing,
}

impl Runner {
    /// How far what is done with this job's files is: null, or `doing`, `mount`, `files`, `bytes`.
    pub fn progress(&self, job_id: &str) -> Value {
        let steps = self.progresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(step) = steps.get(job_id) else { return Value::Null };
        let doing = match step.doing {
            Doing::Copying => "copying inputs",
            Doing::HashingInputs => "hashing inputs",
            Doing::Sealing => "sealing",
        };
        json!({ "doing": doing, "mount": &*step.mount, "files": step.done.files, "bytes": step.done.bytes })
    }

    /// `job` as it was when the work on its files began.
    pub(super) fn begin<'r>(&'r self, job: &'r Job, doing: Doing) -> Underway<'r> {
        Underway { runner: self, job, doing }
    }

    /// Whether anything has happened to the job since.
    pub(super) fn is_superseded(&self, job: &Job) -> bool {
        self.setup.engine.view().job(&job.job_id).is_none_or(|now| now.seq != job.seq)
    }
}

impl Underway<'_> {
    /// Notes how far it is with a mount, and says whether to go on.
    pub(super) fn tell(&self, mount: &str, done: Progress) -> ControlFlow<()> {
        if self.runner.is_stopping() || self.runner.is_superseded(self.job) {
            return ControlFlow::Break(());
        }
        let mut steps = self.runner.progresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        let step = match steps.get_mut(&self.job.job_id) {
            Some(step) => step,
            None => {
                let step = Step { doing: self.doing, mount: mount.into(), done };
                steps.entry(self.job.job_id.clone()).or_insert(step)
            }
        };
        if *step.mount != *mount {
            step.mount = mount.into();
        }
        (step.doing, step.done) = (self.doing, done);
        ControlFlow::Continue(())
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.runner.progresses.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job.job_id);
    }
}
