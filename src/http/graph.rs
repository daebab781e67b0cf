//! Many jobs at once: a batch is submitted, the graph is read.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use super::api::Call;
use super::files;
use super::pieces::{list, pieces};
use super::reply::Reply;
use super::routes::{Answer, App};
use crate::ledger::event::State;
use crate::ledger::lifecycle::{Command, Job};
use crate::manifest::{self, Parsed, Resources};
use crate::rejection::Rejection;
use crate::view::Graph;

/// Jobs of one graph, unless asked otherwise.
const JOBS: u64 = 1000;

impl App {
    pub(super) fn submit_all(&self, call: &Call<'_>) -> Answer {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; submit again when it is back"));
        }
        let batch = manifest::parse_all(&call.request.body)?;
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

    pub(super) fn graph(&self, call: &Call<'_>) -> Answer {
        let limit = usize::try_from(call.query.number("limit").unwrap_or(JOBS)).unwrap_or(usize::MAX);
        let view = self.engine.view();
        let Graph { jobs, edges, truncated } = match call.query.text("job") {
            Some(id) => {
                self.find(id)?;
                view.around(id, limit).unwrap_or_default()
            }
            None => view.graph(limit),
        };
        let large = Large::of(jobs.len() + edges.len())?;
        pieces("application/json", move |each| {
            let _held = &large;
            let brief = |job: &Arc<Job>, text: &mut Vec<u8>| {
                let members = json!({
                    "job_id": &*job.job_id,
                    "state": job.state.as_str(),
                    "phase": job.phase(),
                    "attempt": job.attempt,
                    "reason": job.reason.as_deref(),
                });
                write!(text, "{members}")
            };
            // An id needs no escapes.
            let edge =
                |(parent, child): &(Arc<str>, Arc<str>), text: &mut Vec<u8>| write!(text, "[\"{parent}\",\"{child}\"]");
            if each(b"{\"jobs\":") && list(&jobs, brief, each)? && each(b",\"edges\":") && list(&edges, edge, each)? {
                each(format!(",\"truncated\":{truncated}}}").as_bytes());
            }
            Ok(())
        })
    }
}

/// Jobs and edges of a graph that is not large.
const SMALL: usize = 2_000;
/// Large graphs in memory at once: their clients may be slow, and one may have some megabytes.
const LARGE_MAX: usize = 4;

/// The right to hold a large graph; a small one needs none.
struct Large(bool);

static LARGE: AtomicUsize = AtomicUsize::new(0);

impl Large {
    fn of(size: usize) -> Result<Self, Rejection> {
        if size <= SMALL {
            return Ok(Self(false));
        }
        let one_more = |held| (held < LARGE_MAX).then_some(held + 1);
        if LARGE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_err() {
            let message = "as many large graphs are being sent as may be; ask again, or for less with ?limit= or ?job=";
            return Err(Rejection::new(503, "too_many_graphs", message));
        }
        Ok(Self(true))
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        if self.0 {
            LARGE.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
