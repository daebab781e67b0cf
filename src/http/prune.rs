//! `POST /api/prune`, and what is said of a job whose files it has removed.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::api::Call;
use super::reply::Reply;
use super::reproduce::small_object;
use super::routes::{Answer, App};
use crate::ledger::lifecycle::Job;
use crate::ledger::time::{AGE_FORM, parse_age};
use crate::rejection::Rejection;

/// What a body looks like.
const EXPECTED: &str = "send {\"older_than\":\"30d\"}, and \"dry_run\":true to be told only";

impl App {
    /// `POST /api/prune`. Takes as long as the removal does.
    pub(super) fn prune(&self, call: &Call<'_>) -> Answer {
        let object = small_object(&call.request.body, &["older_than", "dry_run"], EXPECTED)?;
        let wrong = |code, message: String, field: &str| Rejection::new(400, code, message).field(field);
        let older_than_s = match object.get("older_than") {
            None => {
                let message = format!("`older_than` is required; {EXPECTED}");
                return Err(Rejection::new(400, "missing_field", message).field("older_than"));
            }
            Some(Value::String(text)) => parse_age(text).ok_or_else(|| {
                let message = format!("`older_than` is {text:?}; it must be {AGE_FORM}");
                Rejection::new(400, "invalid_value", message).field("older_than")
            })?,
            Some(other) => {
                return Err(wrong("wrong_type", format!("`older_than` is {other}; it must be a string"), "older_than"));
            }
        };
        let dry_run = match object.get("dry_run") {
            None => false,
            Some(Value::Bool(dry_run)) => *dry_run,
            Some(other) => {
                return Err(wrong("wrong_type", format!("`dry_run` is {other}; it must be true or false"), "dry_run"));
            }
        };
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; prune when it is back"));
        }
        let done = self.runner.prune(older_than_s, dry_run)?;
        let body = json!({
            "dry_run": dry_run,
            "jobs": done.jobs,
            "files": done.files,
            "bytes": done.bytes,
            "left": done.left,
            "events": done.events,
        });
        Ok(Reply::json(200, body.to_string().into_bytes()))
    }

    /// Refuses what a pruned job has no more: `what` says what that is.
    pub(super) fn check_kept(&self, job: &Job, what: &str) -> Result<(), Rejection> {
        let Some(seq) = self.engine.view().pruned(job) else { return Ok(()) };
        let message = format!(
            "{what} of job {:?} were pruned, as event {seq} tells; its events and its seal are kept, and a backup may have \
             the files",
            job.job_id
        );
        Err(Rejection::new(410, "pruned", message))
    }
}
