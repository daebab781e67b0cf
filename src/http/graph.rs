//! Many jobs at once: a batch is submitted, the graph is read.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::files;
use super::query::Query;
use super::reply::Reply;
use super::request::Request;
use super::routes::{Answer, App};
use crate::ledger::event::State;
use crate::ledger::lifecycle::{Command, Job};
use crate::manifest::{self, Parsed, Resources};
use crate::rejection::Rejection;

/// Jobs of one graph, unless asked otherwise, and at most.
const JOBS: (usize, usize) = (1000, 10_000);

impl App {
    pub(super) fn submit_all(&self, request: &Request) -> Answer {
        Query::new(request, &[])?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; submit again when it is back"));
        }
        let batch = manifest::parse_all(&request.body)?;
        self.admit_all(&batch)?;
        let accepted = self.engine.execute(Command::SubmitAll(batch))?;
        let receipts: Vec<Value> =
            accepted.batch.iter().map(|(job, is_new)| self.receipt(job, *is_new)).collect::<Result<_, _>>()?;
        Ok(Reply::json(200, json!({ "jobs": receipts }).to_string().into_bytes()))
    }

    /// Each as a submission by itself is checked.
    fn admit_all(&self, batch: &[Parsed]) -> Result<(), Rejection> {
        // The engine may have to be asked anew before GPUs are refused: once, not for each.
        let gpus = batch.iter().filter_map(|parsed| parsed.manifest.resources.gpus).max();
        let engine = self.runner.capacity_for(&Resources { gpus, ..Resources::default() });
        for (index, parsed) in batch.iter().enumerate() {
            let known = self.engine.view().job(&parsed.manifest.job_id);
            if known.is_none_or(|job| job.manifest_hash != parsed.hash) {
                let admitted = self
                    .admit_on(&parsed.manifest, engine.as_ref())
                    .and_then(|()| self.runner.check_reproduction(&parsed.manifest));
                admitted.map_err(|rejection| rejection.within(&format!("jobs[{index}]")))?;
            }
        }
        Ok(())
    }

    /// What a submission is answered with.
    pub(super) fn receipt(&self, job: &Job, is_new: bool) -> Result<Value, Rejection> {
        let state = if is_new { State::Received } else { job.state };
        Ok(json!({
            "job_id": &*job.job_id,
            "state": state.as_str(),
            "seq": job.received_seq,
            "hash": self.engine.view().hash_of(job.received_seq).map_err(|error| files::unreadable(&error))?,
            "duplicate": !is_new,
        }))
    }

    pub(super) fn graph(&self, request: &Request) -> Answer {
        let query = Query::new(request, &["job", "limit"])?;
        let limit = query.number("limit")?.unwrap_or(JOBS.0).clamp(1, JOBS.1);
        let view = self.engine.view();
        let graph = match query.text("job") {
            Some(id) => {
                self.find(id)?;
                view.around(id, limit).unwrap_or_default()
            }
            None => view.graph(limit),
        };
        let brief = |job: &Job| {
            json!({
                "job_id": &*job.job_id,
                "state": job.state.as_str(),
                "phase": job.phase(),
                "attempt": job.attempt,
                "reason": job.reason.as_deref(),
            })
        };
        let body = json!({
            "jobs": graph.jobs.iter().map(|job| brief(job)).collect::<Vec<_>>(),
            "edges": graph.edges.iter().map(|(parent, child)| [&**parent, &**child]).collect::<Vec<_>>(),
            "truncated": graph.truncated,
        });
        Ok(Reply::json(200, body.to_string().into_bytes()))
    }
}
