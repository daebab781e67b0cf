//! One job: taken in, looked at, waited for, stopped; and the pages that list them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tiny_http::Response;

use super::api::Call;
use super::files;
use super::pieces::{add_line, lines, list, pieces};
use super::reply::{Reply, header};
use super::reproduce::small_object;
use super::routes::{Answer, App, with_headers};
use crate::ledger::event::{Detail, Event, Received, State, Stopping, Stored};
use crate::ledger::job::Brief;
use crate::ledger::lifecycle::{Command, Job, Phase};
use crate::manifest::{self, Parsed};
use crate::rejection::Rejection;
use crate::runner::output::OutputPaths;
use crate::runner::telemetry;
use crate::view::{Filter, Page, TraceCursor, View};

/// Jobs on a page, unless asked otherwise.
const PAGE: u64 = 100;
/// Jobs of a page that are held at a time: hundreds of clients may be slow to read theirs.
const HELD: usize = 1000;
/// `?timeout_s=` of `?wait=`, unless asked otherwise.
const WAIT_S: u64 = 60;
/// How often a waiting request looks whether the agent stops.
const LOOK: Duration = Duration::from_millis(500);

/// The jobs of an answer, newest first, looked up some at a time.
#[derive(Clone)]
struct Pages {
    view: Arc<View>,
    filter: Filter,
    page: Page,
    given: usize,
    /// How many there may be behind this page.
    left: usize,
}

impl Pages {
    fn new(view: Arc<View>, filter: Filter, before: Option<u64>, limit: usize) -> Self {
        let page = view.page(&filter, before, limit.min(HELD));
        let mut pages = Self { view, filter, page, given: 0, left: limit };
        pages.turned(limit.min(HELD));
        pages
    }

    /// A page of `asked` has come. Where it has fewer, enough was looked at for one answer.
    fn turned(&mut self, asked: usize) {
        self.given = 0;
        self.left = if self.page.jobs.len() == asked { self.left - asked } else { 0 };
    }
}

impl Iterator for Pages {
    type Item = Arc<Job>;

    fn next(&mut self) -> Option<Arc<Job>> {
        if self.given == self.page.jobs.len() && self.left > 0 && self.page.next.is_some() {
            let asked = self.left.min(HELD);
            self.page = self.view.page(&self.filter, self.page.next, asked);
            self.turned(asked);
        }
        let job = self.page.jobs.get(self.given)?.clone();
        self.given += 1;
        Some(job)
    }
}

impl App {
    /// `POST /api/submit_job`.
    pub(super) fn submit(&self, call: &Call<'_>) -> Answer {
        self.accept(manifest::parse(&call.request.body)?).map(|(reply, _)| reply)
    }

    /// Takes a manifest in; the receipt, and whether it is new.
    pub(super) fn accept(&self, parsed: Parsed) -> Result<(Reply, bool), Rejection> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; submit again when it is back"));
        }
        let id = parsed.manifest.job_id.clone();
        // A repeated submission is answered from the ledger, whatever became of its mounts since.
        if self.engine.view().job(&id).is_none_or(|job| job.manifest_hash != parsed.hash) {
            self.admit(&parsed.manifest)?;
            // A sealed job stays sealed, so what is found here still holds when it is recorded.
            self.runner.check_reproduction(&parsed.manifest)?;
        }
        let accepted = self.engine.execute(Command::Submit(Box::new(parsed)))?;
        let job =
            accepted.job.ok_or_else(|| Rejection::new(500, "internal", "the job was accepted and is not there"))?;
        Ok((Reply::json(200, self.receipt(&job, accepted.changed)?.to_string().into_bytes()), accepted.changed))
    }

    /// `GET /api/jobs`.
    pub(super) fn jobs(&self, call: &Call<'_>) -> Answer {
        let query = &call.query;
        let filter = Filter {
            phase: query.read("phase", Phase::parse),
            state: query.read("state", State::parse),
            execution_hash: query.read("execution_hash", |text| text.parse().ok()),
        };
        let limit = usize::try_from(query.number("limit").unwrap_or(PAGE)).unwrap_or(usize::MAX);
        let is_brief = query.text("brief") == Some("yes");
        let first = Pages::new(self.engine.view().clone(), filter, query.number("after"), limit);
        let (seq, hash) = first.page.head;
        let head = format!("{{\"head\":{},\"jobs\":", json!({ "seq": seq, "hash": hash }));
        pieces("application/json", move |each| {
            let summary = |job: Arc<Job>, text: &mut Vec<u8>| match job.summary() {
                all if is_brief => Ok(serde_json::to_writer(text, &Brief::from(all))?),
                all => Ok(serde_json::to_writer(text, &all)?),
            };
            let mut jobs = first.clone();
            if each(head.as_bytes()) && list(jobs.by_ref(), summary, each)? {
                each(format!(",\"next\":{}}}", json!(jobs.page.next)).as_bytes());
            }
            Ok(())
        })
    }

    /// `GET /api/jobs/{id}`.
    pub(super) fn job(&self, call: &Call<'_>) -> Answer {
        let (id, wait) = (call.id, call.query.read("wait", State::parse));
        let timeout_s = call.query.number("timeout_s").unwrap_or(WAIT_S);
        let deadline = Instant::now() + Duration::from_secs(timeout_s);
        let mut job = self.find(id)?;
        if let Some(state) = wait {
            let done = |job: &Job| job.has_seen(state) || job.phase() == Phase::Ended;
            // Who has left keeps no connection.
            while !done(&job) && !self.stopping.load(Ordering::Relaxed) && !call.request.peer_gone() {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                self.engine.view().wait_for_job(&job.job_id, job.seq, left.min(LOOK));
                job = self.find(id)?;
            }
        }
        let mut summary = serde_json::to_value(job.summary())
            .map_err(|error| Rejection::new(500, "internal", format!("the summary cannot be written: {error}")))?;
        // Not in lists of jobs: a thousand of them may have a thousand parents each.
        summary["depends_on"] = job.parents().iter().map(|parent| &**parent).collect();
        summary["pruned"] = json!(self.engine.view().pruned(&job));
        if let Some(open) = &job.open {
            // What waits, and why, is worth more to the one who waits than the bare state.
            summary["waiting_for"] = self.runner.waiting_for(&job).map_or(Value::Null, Value::String);
            summary["progress"] = self.runner.progress(&job.job_id);
            summary["stop_requested"] = open.stop.as_ref().map_or(Value::Null, |stop| json!(**stop.get()));
        }
        Ok(Reply::json(200, summary.to_string().into_bytes()))
    }

    /// `GET /api/jobs/{id}/trace`.
    pub(super) fn trace(&self, call: &Call<'_>) -> Answer {
        self.find(call.id)?;
        let (view, id) = (self.engine.view().clone(), call.id.to_owned());
        let mut cursor = TraceCursor::default();
        lines(move |text| view.trace_on(&id, &mut cursor, &mut |bytes| add_line(text, bytes)))
    }

    /// `GET /api/jobs/{id}/stdout` and `/stderr`.
    pub(super) fn output(&self, call: &Call<'_>, stream: &str) -> Answer {
        let (path, attempt, may_lack) = self.log(call, stream)?;
        let content_type = "application/octet-stream";
        let reply = of_attempt(files::serve(&path, content_type, call.request), content_type, attempt, may_lack)?;
        // Whatever a payload prints, it is no page.
        let disposition = format!("attachment; filename=\"{}.{attempt}.{stream}\"", call.id);
        Ok(with_headers(reply, vec![header("Content-Disposition", &disposition)]))
    }

    /// The file of a stream of the attempt that is asked for, the attempt, and whether the file may be lacking.
    pub(super) fn log(&self, call: &Call<'_>, stream: &str) -> Result<(PathBuf, u32, bool), Rejection> {
        let (job, attempt) = self.attempt(call)?;
        let OutputPaths { stdout, stderr, .. } = OutputPaths::new(&self.data.join("logs").join(call.id), attempt);
        // Nothing was started yet, or it has not opened its output: it has printed nothing so far.
        Ok((if stream == "stdout" { stdout } else { stderr }, attempt, job.phase() != Phase::Ended))
    }

    /// `GET /api/jobs/{id}/telemetry`.
    pub(super) fn telemetry(&self, call: &Call<'_>) -> Answer {
        let (_, attempt) = self.attempt(call)?;
        let path = telemetry::path(&self.data.join("logs").join(call.id), attempt);
        let content_type = "application/x-ndjson";
        // Not every attempt has samples: it never ran, or the host cannot measure it.
        of_attempt(files::serve(&path, content_type, call.request), content_type, attempt, true)
    }

    /// The job, and the attempt of it that is asked for: the latest, or `?attempt=N`.
    fn attempt(&self, call: &Call<'_>) -> Result<(Arc<Job>, u32), Rejection> {
        let (id, job) = (call.id, self.find(call.id)?);
        let attempt = call.query.read("attempt", |text| text.parse().ok()).unwrap_or(job.attempt);
        if attempt > job.attempt {
            let message = format!("job {id:?} is at attempt {}, there is no attempt {attempt}", job.attempt);
            return Err(Rejection::new(404, "no_such_attempt", message).field("attempt"));
        }
        self.check_kept(&job, "the logs and samples")?;
        Ok((job, attempt))
    }

    /// `POST /api/jobs/{id}/cancel`.
    pub(super) fn cancel(&self, call: &Call<'_>) -> Answer {
        let id = call.id;
        small_object(&call.request.body, &[], "send {} or nothing")?;
        self.find(id)?;
        let stopping = Stopping { asked: "cancel".into(), by: call.request.remote.ip().to_string() };
        self.change(id, Command::Stop(id.into(), stopping))
    }

    /// `POST /api/jobs/{id}/retrigger`.
    pub(super) fn retrigger(&self, call: &Call<'_>) -> Answer {
        let id = call.id;
        small_object(&call.request.body, &[], "send {} or nothing")?;
        self.find(id)?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; retrigger the job when it is back"));
        }
        let manifest = self.received(id)?;
        if self.find(id)?.open.is_none() {
            // What this agent allows may have changed since the job was submitted.
            self.admit(&manifest::parse(manifest.get().as_bytes())?.manifest)?;
        }
        self.change(id, Command::Retrigger(id.into(), call.request.remote.ip().to_string(), manifest))
    }

    /// The manifest as RECEIVED has it.
    pub(super) fn received(&self, id: &str) -> Result<Box<RawValue>, Rejection> {
        let mut received = None;
        self.engine
            .view()
            .trace(id, &mut |bytes| {
                received = Some(Stored::parse(bytes));
                false
            })
            .map_err(|error| files::unreadable(&error))?;
        let Some(Ok(Stored { event: Event { detail: Detail::Received(Received { manifest, .. }), .. }, .. })) =
            received
        else {
            return Err(Rejection::new(500, "unreadable", "the job's RECEIVED event cannot be read back"));
        };
        Ok(manifest)
    }

    /// Carries out what somebody asks of a job, and says what came of it.
    fn change(&self, id: &str, command: Command) -> Answer {
        let accepted = self.engine.execute(command)?;
        let job = accepted.job.ok_or_else(|| Rejection::new(500, "internal", "the job is not there any more"))?;
        let body = json!({ "job_id": id, "state": job.state.as_str(), "duplicate": !accepted.changed });
        Ok(Reply::json(200, body.to_string().into_bytes()))
    }

    /// The job of this id, or 404.
    pub(super) fn find(&self, id: &str) -> Result<Arc<Job>, Rejection> {
        self.engine.view().job(id).ok_or_else(|| {
            Rejection::new(404, "no_such_job", format!("no job {id:?}; GET /api/jobs lists them")).field("job_id")
        })
    }
}

/// A file of an attempt; one that is not there is empty if it `may_lack`.
fn of_attempt(file: Answer, content_type: &str, attempt: u32, may_lack: bool) -> Answer {
    let reply = match file {
        Err(rejection) if rejection.status == 404 && may_lack => {
            Reply::Full(Response::from_data(Vec::new()).with_header(header("Content-Type", content_type)).boxed())
        }
        other => other?,
    };
    Ok(with_headers(reply, vec![header("X-Attempt", &attempt.to_string())]))
}
