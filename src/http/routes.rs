//! Request → action → response: the API of the contract.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};
use tiny_http::{Header, Method, Response};

use super::access::Access;
use super::artifacts;
use super::files;
use super::query::Query;
use super::reply::{Reply, header};
use super::request::{Request, not_utf8};
use super::server::Handler;
use super::sse;
use crate::admission::Admission;
use crate::engine::Engine;
use crate::ledger::event::{Detail, Event, Received, State, Stopping, Stored};
use crate::ledger::lifecycle::{Command, Job, Phase};
use crate::manifest::{self, Parsed};
use crate::rejection::Rejection;
use crate::runner::Runner;
use crate::runner::output::OutputPaths;
use crate::runner::sealed::Verified;
use crate::runner::telemetry;
use crate::view::Filter;

/// Jobs on a page, unless asked otherwise, and at most.
const PAGE: (usize, usize) = (100, 1000);
/// Events of one `/api/ledger` answer, unless asked otherwise, and at most.
const LEDGER_PAGE: (u64, u64) = (1000, 100_000);
/// `?timeout_s=` of `?wait=`, unless asked otherwise, and at most.
const WAIT_S: (u64, u64) = (60, 3600);
/// How often a waiting request looks whether the agent stops.
const LOOK: Duration = Duration::from_millis(500);
/// Lines up to this many bytes are answered whole; longer answers are streamed.
const LINES_WHOLE_BYTES: usize = 16 << 10;

/// What the routes need.
pub struct App {
    /// The ledger.
    pub engine: Engine,
    /// The attempts.
    pub runner: Arc<Runner>,
    /// Which manifests are let in.
    pub admission: Admission,
    /// Who may call.
    pub access: Access,
    /// Which artifacts were found to be what was sealed.
    pub verified: Verified,
    /// `--data`.
    pub data: PathBuf,
    /// What `/api/node` tells that does not change.
    pub node: Value,
    /// When the agent started.
    pub started: Instant,
    /// Set once NODE_UP is durable and work is taken.
    pub ready: Arc<OnceLock<()>>,
    /// Set once the agent stops.
    pub stopping: Arc<AtomicBool>,
}

/// What a route answers.
pub(super) type Answer = Result<Reply, Rejection>;

impl Handler for App {
    fn handle(&self, request: &Request) -> Reply {
        let reply = match self.answer(request) {
            Ok(reply) => reply,
            Err(rejection) => {
                log::info!(
                    "http: {} {} from {}: {} {}",
                    request.method,
                    request.raw_path.escape_debug(),
                    request.remote.ip(),
                    rejection.status,
                    rejection.code
                );
                Reply::rejection(&rejection)
            }
        };
        match self.access.allowed_origin(request) {
            Some(origin) => with_headers(reply, cors(origin)),
            None => reply,
        }
    }
}

impl App {
    fn answer(&self, request: &Request) -> Answer {
        self.access.check_origin(request)?;
        let path = request.path.as_str();
        // Only the names of artifacts may be any bytes.
        if !artifacts::is_below(path) && path.as_bytes() != request.path_bytes() {
            return Err(not_utf8());
        }
        let Some(allowed) = methods(path) else {
            return Err(Rejection::new(404, "no_such_route", format!("there is nothing at {path:?}")));
        };
        if request.method == Method::Options {
            return Ok(no_content(allowed));
        }
        let reads = matches!(request.method, Method::Get | Method::Head);
        if !(reads && allowed == READ || request.method == Method::Post && allowed == WRITE) {
            let message = format!("{} is not allowed here; use {allowed}", request.method);
            let reply = Reply::rejection(&Rejection::new(405, "method_not_allowed", message));
            return Ok(with_headers(reply, vec![header("Allow", allowed)]));
        }
        // A page must load before it can ask for a token, and a probe has none.
        match path {
            "/healthz" => return Ok(Reply::json(200, b"{\"ok\":true}".to_vec())),
            "/readyz" => return self.ready(),
            _ => {}
        }
        if let Some(reply) = files::viewer(path) {
            return Ok(reply);
        }
        self.access.check_token(request)?;
        if allowed == WRITE {
            require_json(request)?;
            // A run's first event is its NODE_UP.
            self.ready.wait();
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match segments[1..] {
            ["submit_job"] => self.submit(request),
            ["submit_jobs"] => self.submit_all(request),
            ["graph"] => self.graph(request),
            ["jobs"] => self.jobs(request),
            ["jobs", id] => self.job(request, id),
            ["jobs", id, "trace"] => self.trace(request, id),
            ["jobs", id, stream @ ("stdout" | "stderr")] => self.output(request, id, stream),
            ["jobs", id, "telemetry"] => self.telemetry(request, id),
            ["jobs", id, "seal"] => self.seal(request, id),
            ["jobs", id, "artifacts", ..] => self.artifact(request, id),
            ["jobs", id, "bundle"] => self.bundle(request, id),
            ["jobs", id, "cancel"] => self.cancel(request, id),
            ["jobs", id, "retrigger"] => self.retrigger(request, id),
            ["jobs", id, "reproduce"] => self.reproduce(request, id),
            ["events"] => self.events(request),
            ["ledger"] => self.ledger(request),
            ["ledger", "head"] => self.head(request),
            ["node"] => self.node(request),
            _ => Err(Rejection::new(404, "no_such_route", format!("there is nothing at {path:?}"))),
        }
    }

    fn ready(&self) -> Answer {
        if let Some(reason) = self.engine.view().latched() {
            return Err(Rejection::new(503, "ledger_latched", reason));
        }
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping"));
        }
        if self.ready.get().is_none() {
            return Err(Rejection::new(503, "starting", "the agent is starting"));
        }
        Ok(Reply::json(200, b"{\"ready\":true}".to_vec()))
    }

    fn submit(&self, request: &Request) -> Answer {
        Query::new(request, &[])?;
        self.accept(manifest::parse(&request.body)?).map(|(reply, _)| reply)
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

    fn jobs(&self, request: &Request) -> Answer {
        let query = Query::new(request, &["phase", "state", "execution_hash", "after", "limit"])?;
        let filter = Filter {
            phase: query.read("phase", "waiting, active or ended", Phase::parse)?,
            state: query.read("state", "a state such as SEALED", State::parse)?,
            execution_hash: query.read("execution_hash", "64 lower-case hex digits", |text| text.parse().ok())?,
        };
        let limit = query.number("limit")?.unwrap_or(PAGE.0).clamp(1, PAGE.1);
        let (jobs, next) = self.engine.view().page(&filter, query.number("after")?, limit);
        page(jobs, next)
    }

    fn job(&self, request: &Request, id: &str) -> Answer {
        let query = Query::new(request, &["wait", "timeout_s"])?;
        let wait = query.read("wait", "a state such as SEALED", State::parse)?;
        let timeout_s = query.number("timeout_s")?.unwrap_or(WAIT_S.0).min(WAIT_S.1);
        let deadline = Instant::now() + Duration::from_secs(timeout_s);
        let mut job = self.find(id)?;
        if let Some(state) = wait {
            let done = |job: &Job| job.has_seen(state) || job.phase() == Phase::Ended;
            while !done(&job) && !self.stopping.load(Ordering::Relaxed) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let (head, _) = self.engine.view().head();
                job = self.find(id)?;
                if !done(&job) {
                    self.engine.view().wait_past(head, left.min(LOOK));
                    job = self.find(id)?;
                }
            }
        }
        let mut summary = serde_json::to_value(job.summary())
            .map_err(|error| Rejection::new(500, "internal", format!("the summary cannot be written: {error}")))?;
        // Not in lists of jobs: a thousand of them may have a thousand parents each.
        summary["depends_on"] = job.parents().iter().map(|parent| &**parent).collect();
        if let Some(open) = &job.open {
            // What waits, and why, is worth more to the one who waits than the bare state.
            summary["waiting_for"] = self.runner.waiting_for(&job).map_or(Value::Null, Value::String);
            summary["progress"] = self.runner.progress(&job.job_id);
            summary["stop_requested"] = open.stop.as_ref().map_or(Value::Null, |stop| json!(**stop.get()));
        }
        Ok(Reply::json(200, summary.to_string().into_bytes()))
    }

    fn trace(&self, request: &Request, id: &str) -> Answer {
        Query::new(request, &[])?;
        self.find(id)?;
        let (view, id) = (self.engine.view().clone(), id.to_owned());
        lines(move |each| view.trace(&id, each))
    }

    fn ledger(&self, request: &Request) -> Answer {
        let query = Query::new(request, &["from", "limit"])?;
        let from = query.number::<u64>("from")?.unwrap_or(1).max(1);
        let limit = query.number("limit")?.unwrap_or(LEDGER_PAGE.0).clamp(1, LEDGER_PAGE.1);
        let view = self.engine.view().clone();
        let upto = view.head().0.min(from.saturating_add(limit - 1));
        lines(move |each| view.ledger(from, upto, &mut |_, bytes| each(bytes)))
    }

    fn output(&self, request: &Request, id: &str, stream: &str) -> Answer {
        let (job, attempt) = self.attempt(request, id)?;
        let paths = OutputPaths::new(&self.data.join("logs").join(id), attempt);
        let path = if stream == "stdout" { &paths.stdout } else { &paths.stderr };
        // Nothing was started yet, or it has not opened its output: it has printed nothing so far.
        let may_lack = job.phase() != Phase::Ended;
        of_attempt(
            files::serve(path, "application/octet-stream", request),
            "application/octet-stream",
            attempt,
            may_lack,
        )
    }

    fn telemetry(&self, request: &Request, id: &str) -> Answer {
        let (_, attempt) = self.attempt(request, id)?;
        let path = telemetry::path(&self.data.join("logs").join(id), attempt);
        let content_type = "application/x-ndjson";
        // Not every attempt has samples: it never ran, the host cannot measure it, or they were pruned.
        of_attempt(files::serve(&path, content_type, request), content_type, attempt, true)
    }

    /// The job, and the attempt of it that is asked for: the latest, or `?attempt=N`.
    fn attempt(&self, request: &Request, id: &str) -> Result<(Arc<Job>, u32), Rejection> {
        let query = Query::new(request, &["attempt"])?;
        let job = self.find(id)?;
        let attempt = query.number("attempt")?.unwrap_or(job.attempt);
        if attempt > job.attempt {
            let message = format!("job {id:?} is at attempt {}, there is no attempt {attempt}", job.attempt);
            return Err(Rejection::new(404, "no_such_attempt", message).field("attempt"));
        }
        Ok((job, attempt))
    }

    fn seal(&self, request: &Request, id: &str) -> Answer {
        Query::new(request, &[])?;
        let job = self.find(id)?;
        if job.state != State::Sealed {
            let message = format!("job {id:?} is {}; only SEALED jobs have a seal", job.state);
            return Err(Rejection::new(404, "not_sealed", message));
        }
        files::serve(&self.data.join("seals").join(format!("{id}.json")), "application/json", request)
    }

    fn cancel(&self, request: &Request, id: &str) -> Answer {
        Query::new(request, &[])?;
        self.find(id)?;
        let stopping = Stopping { asked: "cancel".into(), by: request.remote.ip().to_string() };
        self.change(id, Command::Stop(id.into(), stopping))
    }

    fn retrigger(&self, request: &Request, id: &str) -> Answer {
        Query::new(request, &[])?;
        self.find(id)?;
        if self.stopping.load(Ordering::Relaxed) {
            return Err(Rejection::new(503, "stopping", "the agent is stopping; retrigger the job when it is back"));
        }
        let manifest = self.received(id)?;
        if self.find(id)?.open.is_none() {
            // What this agent allows may have changed since the job was submitted.
            self.admit(&manifest::parse(manifest.get().as_bytes())?.manifest)?;
        }
        self.change(id, Command::Retrigger(id.into(), request.remote.ip().to_string(), manifest))
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

    fn events(&self, request: &Request) -> Answer {
        let query = Query::new(request, &["after", "job"])?;
        let from_header = request.header("last-event-id").map(|text| {
            text.parse::<u64>().map_err(|_| {
                Rejection::new(400, "bad_header", format!("Last-Event-ID {text:?} must be a seq"))
                    .field("Last-Event-ID")
            })
        });
        // A reconnecting browser repeats the first URL, so what it has seen since goes before what it asked for then.
        let after = match from_header.transpose()? {
            Some(seq) => seq,
            None => query.number("after")?.unwrap_or(0),
        };
        let head = self.engine.view().head().0;
        if after > head {
            let message = format!(
                "you have seen event {after}, but this ledger ends at {head}: it is another one, or was rolled back; \
                 compare GET /api/ledger/head with what you noted"
            );
            return Err(Rejection::new(409, "ahead_of_ledger", message).field("after"));
        }
        let job = query.text("job").map(str::to_owned);
        let (view, telemetry) = (self.engine.view().clone(), self.runner.telemetry().clone());
        Ok(Reply::Stream {
            status: 200,
            headers: vec![
                header("Content-Type", "text/event-stream"),
                header("Cache-Control", "no-store"),
                // nginx would hold events back.
                header("X-Accel-Buffering", "no"),
            ],
            run: Box::new(move |to| sse::stream(&view, &telemetry, after, job.as_deref(), to)),
        })
    }

    fn head(&self, request: &Request) -> Answer {
        Query::new(request, &[])?;
        let (seq, hash) = self.engine.view().head();
        Ok(Reply::json(200, json!({ "seq": seq, "hash": hash }).to_string().into_bytes()))
    }

    fn node(&self, request: &Request) -> Answer {
        Query::new(request, &[])?;
        let mut node = self.node.clone();
        node["uptime_s"] = self.started.elapsed().as_secs().into();
        node["engine"] = self.runner.engine_status();
        let view = self.engine.view();
        let counts: serde_json::Map<String, Value> = State::ALL
            .into_iter()
            .filter(|state| !state.is_of_node())
            .map(|state| (state.as_str().to_owned(), view.count(state).into()))
            .collect();
        node["jobs"] = Value::Object(counts);
        node["ledger"] = json!({ "latched": view.latched() });
        Ok(Reply::json(200, node.to_string().into_bytes()))
    }

    pub(super) fn find(&self, id: &str) -> Result<Arc<Job>, Rejection> {
        self.engine.view().job(id).ok_or_else(|| {
            Rejection::new(404, "no_such_job", format!("no job {id:?}; GET /api/jobs lists them")).field("job_id")
        })
    }
}

const READ: &str = "GET, HEAD, OPTIONS";
const WRITE: &str = "POST, OPTIONS";

/// What may be done at a path; `None` where there is nothing.
fn methods(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    match segments[..] {
        ["healthz" | "readyz"] => Some(READ),
        ["api", "submit_job" | "submit_jobs"] | ["api", "jobs", _, "cancel" | "retrigger" | "reproduce"] => Some(WRITE),
        ["api", "jobs" | "events" | "graph" | "ledger" | "node"]
        | ["api", "ledger", "head"]
        | ["api", "jobs", _]
        | ["api", "jobs", _, "trace" | "stdout" | "stderr" | "telemetry" | "seal" | "bundle"] => Some(READ),
        ["api", "jobs", _, "artifacts", ..] => Some(READ),
        _ => files::viewer(path).map(|_| READ),
    }
}

/// A page of another site can post forms without asking, but not this content type.
fn require_json(request: &Request) -> Result<(), Rejection> {
    let media_type = request.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
    if media_type.trim().eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = "send the header `Content-Type: application/json`";
    Err(Rejection::new(415, "content_type", message).field("Content-Type"))
}

/// Calls back with stored bytes until told to stop.
/// A page of jobs, written one by one: a thousand summaries in memory for each of a thousand clients would be too much.
fn page(jobs: Vec<Arc<Job>>, next: Option<u64>) -> Answer {
    let produce = move |each: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
        each(b"{\"jobs\":[")?;
        for (index, job) in jobs.iter().enumerate() {
            if index > 0 {
                each(b",")?;
            }
            each(&serde_json::to_vec(&job.summary())?)?;
        }
        each(format!("],\"next\":{}}}", json!(next)).as_bytes())
    };
    let mut length = 0;
    let mut count = |bytes: &[u8]| {
        length += bytes.len() as u64;
        Ok(())
    };
    produce(&mut count)
        .map_err(|error| Rejection::new(500, "internal", format!("the summaries cannot be written: {error}")))?;
    let run = move |to: &mut super::reply::StreamWriter<'_>| produce(&mut |bytes| to.send(bytes));
    Ok(Reply::Sized {
        status: 200,
        headers: vec![header("Content-Type", "application/json")],
        length,
        run: Box::new(run),
    })
}

type EachLine<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// Events as JSON lines: a short answer whole, so that the connection can be kept, a long one as a stream.
fn lines(produce: impl Fn(EachLine<'_>) -> io::Result<()> + Send + 'static) -> Answer {
    let mut whole = Vec::new();
    produce(&mut |line| {
        whole.extend_from_slice(line);
        whole.push(b'\n');
        whole.len() <= LINES_WHOLE_BYTES
    })
    .map_err(|error| Rejection::new(500, "unreadable", error.to_string()))?;
    let content_type = header("Content-Type", "application/x-ndjson");
    if whole.len() <= LINES_WHOLE_BYTES {
        return Ok(Reply::Full(Response::from_data(whole).with_header(content_type).boxed()));
    }
    let run = move |to: &mut super::reply::StreamWriter<'_>| {
        let (mut buffer, mut sent) = (Vec::with_capacity(LINES_WHOLE_BYTES), Ok(()));
        produce(&mut |line| {
            buffer.extend_from_slice(line);
            buffer.push(b'\n');
            if buffer.len() >= LINES_WHOLE_BYTES {
                sent = to.send(&buffer);
                buffer.clear();
            }
            sent.is_ok()
        })?;
        sent.and_then(|()| to.send(&buffer))
    };
    Ok(Reply::Stream { status: 200, headers: vec![content_type], run: Box::new(run) })
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

fn no_content(allowed: &'static str) -> Reply {
    Reply::Full(Response::from_data(Vec::new()).with_status_code(204).with_header(header("Allow", allowed)).boxed())
}

fn cors(origin: &str) -> Vec<Header> {
    vec![
        header("Access-Control-Allow-Origin", origin),
        header("Access-Control-Allow-Methods", "GET, HEAD, POST"),
        header("Access-Control-Allow-Headers", "Authorization, Content-Type, Last-Event-ID, Range"),
        header("Access-Control-Expose-Headers", "Content-Range, Accept-Ranges, Allow, Retry-After, X-Attempt"),
        header("Access-Control-Max-Age", "600"),
        header("Vary", "Origin"),
    ]
}

fn with_headers(reply: Reply, more: Vec<Header>) -> Reply {
    match reply {
        Reply::Full(mut response) => {
            more.into_iter().for_each(|header| response.add_header(header));
            Reply::Full(response)
        }
        Reply::Stream { status, mut headers, run } => {
            headers.extend(more);
            Reply::Stream { status, headers, run }
        }
        Reply::Sized { status, mut headers, length, run } => {
            headers.extend(more);
            Reply::Sized { status, headers, length, run }
        }
    }
}
