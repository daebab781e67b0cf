//! Request → action → response: the API of the contract.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde_json::{Value, json};
use tiny_http::{Header, Method, Response};

use super::access::{Access, TokenId};
use super::api::{self, Call, Found, Kind, Route};
use super::files;
use super::metrics::Observed;
use super::pieces::{add_line, lines};
use super::protect::protect;
use super::query::Query;
use super::refusals::Refused;
use super::reply::{Reply, StreamBody, header};
use super::request::Request;
use super::server::Handler;
use super::sse::Hub;
use crate::admission::Admission;
use crate::engine::Engine;
use crate::ledger::event::State;
use crate::rejection::Rejection;
use crate::runner::Runner;
use crate::runner::sealed::Verified;
use crate::view::Cursor;

/// What `Last-Event-ID` may hold.
const SEQ: Kind = Kind::Number { least: 0, most: u64::MAX };
/// Events of one `/api/ledger` answer, unless asked otherwise.
const LEDGER_PAGE: u64 = 1000;

/// What the routes need.
pub struct App {
    /// The ledger.
    pub engine: Engine,
    /// The attempts.
    pub runner: Arc<Runner>,
    /// The event stream.
    pub events: Arc<Hub>,
    /// Which manifests are let in.
    pub admission: Admission,
    /// Who may call.
    pub access: Arc<Access>,
    /// Which artifacts were found to be what was sealed.
    pub verified: Verified,
    /// `--data`.
    pub data: PathBuf,
    /// What `/api/node` tells that does not change.
    pub node: Value,
    /// What `/metrics` tells besides.
    pub observed: Observed,
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
        self.finish(request, self.answer(request))
    }

    fn before_body(&self, request: &Request) -> Option<Reply> {
        match self.check_head(request) {
            Ok(Checked::Route(..)) => None,
            Ok(Checked::Answered(_)) if request.method == Method::Options => None,
            Ok(Checked::Answered(reply)) => Some(self.finish(request, Ok(reply))),
            Err(rejection) => Some(self.finish(request, Err(rejection))),
        }
    }
}

/// What became of a request's head.
enum Checked<'r> {
    /// Its route takes it.
    Route(&'static Route, Found, Query<'r>, TokenId),
    /// It is answered without one.
    Answered(Reply),
}

impl App {
    /// The answer as it goes out: what is refused is told in the log, and nothing shows a token.
    fn finish(&self, request: &Request, answer: Answer) -> Reply {
        let reply = match answer {
            Ok(reply) => {
                match &reply {
                    Reply::Full(response) if response.status_code() == 405 => {
                        self.note_refused(request, 405, "method_not_allowed");
                    }
                    Reply::Full(response) if response.status_code() == 416 => self.note_refused(request, 416, "range"),
                    _ => {}
                }
                reply
            }
            Err(rejection) => {
                self.note_refused(request, rejection.status, rejection.code);
                // RFC 9110 §15.5.2: a 401 says how to do better.
                let challenge = (rejection.status == 401).then(|| header("WWW-Authenticate", "Bearer"));
                let reply = Reply::rejection(&self.masked(request, rejection));
                with_headers(reply, challenge.into_iter().collect())
            }
        };
        let reply = protect(reply, files::is_viewer(&request.path));
        match self.access.allowed_origin(request) {
            Some(origin) => with_headers(reply, cors(origin)),
            None => reply,
        }
    }

    /// A message may hold a part of a token: texts are cut where they are long. So where the body has one, nothing is quoted.
    fn masked(&self, request: &Request, rejection: Rejection) -> Rejection {
        let has_one = !request.body.is_empty()
            && matches!(self.access.mask(&String::from_utf8_lossy(&request.body)), std::borrow::Cow::Owned(_));
        if has_one {
            let message = "it is refused, and not said why, since it holds a token in the wrong place: a token is sent as \
                           `Authorization: Bearer TOKEN` and nowhere else";
            return Rejection::new(rejection.status, rejection.code, message);
        }
        self.access.mask_rejection(rejection)
    }

    /// The path is told as the client meant it, not as it was encoded: a token in it is found there.
    fn note_refused(&self, request: &Request, status: u16, code: &'static str) {
        let (method, path) = (request.method.to_string(), self.access.mask(&request.path));
        let refused = Refused { status, code, method: &method, path: &path, remote: request.remote };
        self.observed.counters.refusals.note(&refused);
    }

    /// Everything that can be known of a request without its body.
    fn check_head<'r>(&self, request: &'r Request) -> Result<Checked<'r>, Rejection> {
        self.access.check_origin(request)?;
        if request.path == "*" {
            return Ok(Checked::Answered(no_content(api::ALL_METHODS)));
        }
        let found = api::find(request)?;
        if request.method == Method::Options {
            return Ok(Checked::Answered(no_content(found.allowed())));
        }
        let Some(route) = found.route(&request.method) else {
            let allowed = found.allowed();
            let message = format!("{} is not allowed here; use {allowed}", request.method);
            let reply = Reply::rejection(&Rejection::new(405, "method_not_allowed", message));
            return Ok(Checked::Answered(with_headers(reply, vec![header("Allow", allowed)])));
        };
        let token = if route.token { self.access.check_token(request)? } else { TokenId::none() };
        let query = Query::new(request, route.parameters)?;
        if route.method == Method::Post {
            require_json(request)?;
        }
        Ok(Checked::Route(route, found, query, token))
    }

    fn answer(&self, request: &Request) -> Answer {
        let (route, found, query, token) = match self.check_head(request)? {
            Checked::Answered(reply) => return Ok(reply),
            Checked::Route(route, found, query, token) => (route, found, query, token),
        };
        if route.method == Method::Post {
            // A run's first event is its NODE_UP.
            self.ready.wait();
        }
        (route.run)(self, &Call { request, query, id: &found.id, path: &found.path, token })
    }

    pub(super) fn alive(&self) -> Answer {
        Ok(Reply::json(200, b"{\"ok\":true}".to_vec()))
    }

    pub(super) fn ready(&self) -> Answer {
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

    pub(super) fn ledger(&self, call: &Call<'_>) -> Answer {
        let from = call.query.number("from").unwrap_or(1);
        let limit = call.query.number("limit").unwrap_or(LEDGER_PAGE);
        let view = self.engine.view().clone();
        let upto = view.head().0.min(from.saturating_add(limit - 1));
        let (mut next, mut cursor) = (from, Cursor::default());
        lines(move |text| {
            if next > upto {
                return Ok(());
            }
            view.ledger_on(&mut cursor, next, upto, &mut |seq, bytes| {
                next = seq + 1;
                add_line(text, bytes)
            })
        })
    }

    pub(super) fn events(&self, call: &Call<'_>) -> Answer {
        let (request, query) = (call.request, &call.query);
        let from_header = request.header("last-event-id").map(|text| {
            let seq = Some(text).filter(|text| SEQ.admits(text)).and_then(|text| text.parse::<u64>().ok());
            seq.ok_or_else(|| {
                Rejection::new(400, "bad_header", format!("Last-Event-ID {text:?} must be a seq"))
                    .field("Last-Event-ID")
            })
        });
        // A reconnecting browser repeats the first URL, so what it has seen since goes before what it asked for then.
        let after = match from_header.transpose()? {
            Some(seq) => seq,
            None => query.number("after").unwrap_or(0),
        };
        let head = self.engine.view().head().0;
        if after > head {
            let message = format!(
                "you have seen event {after}, but this ledger ends at {head}: it is another one, or was rolled back; \
                 compare GET /api/ledger/head with what you noted"
            );
            return Err(Rejection::new(409, "ahead_of_ledger", message).field("after"));
        }
        // One that is not there yet may be submitted later.
        let job = query.text("job");
        let run: StreamBody = if request.method == Method::Head {
            Box::new(|_| Ok(()))
        } else {
            let subscription = self.events.subscribe(after, job, self.access.watch(call.token))?;
            Box::new(move |to| subscription.stream(to))
        };
        Ok(Reply::Stream {
            status: 200,
            headers: vec![
                header("Content-Type", "text/event-stream"),
                header("Cache-Control", "no-store"),
                // nginx would hold events back.
                header("X-Accel-Buffering", "no"),
            ],
            ends: false,
            run,
        })
    }

    pub(super) fn head(&self, _: &Call<'_>) -> Answer {
        let (seq, hash) = self.engine.view().head();
        Ok(Reply::json(200, json!({ "seq": seq, "hash": hash }).to_string().into_bytes()))
    }

    pub(super) fn node(&self, _: &Call<'_>) -> Answer {
        let mut node = self.node.clone();
        node["uptime_s"] = self.started.elapsed().as_secs().into();
        node["engine"] = self.runner.engine_status();
        node["limits"]["allow_image"] = json!(*self.admission.images.get());
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

fn no_content(allowed: &'static str) -> Reply {
    Reply::Full(Response::from_data(Vec::new()).with_status_code(204).with_header(header("Allow", allowed)).boxed())
}

fn cors(origin: &str) -> Vec<Header> {
    vec![
        header("Access-Control-Allow-Origin", origin),
        header("Access-Control-Allow-Methods", "GET, HEAD, POST"),
        header(
            "Access-Control-Allow-Headers",
            "Authorization, Content-Type, If-None-Match, If-Range, Last-Event-ID, Range",
        ),
        header(
            "Access-Control-Expose-Headers",
            "Accept-Ranges, Allow, Content-Disposition, Content-Range, ETag, Retry-After, WWW-Authenticate, X-Attempt",
        ),
        header("Access-Control-Max-Age", "600"),
        header("Vary", "Origin"),
    ]
}

/// The reply with further header fields.
pub(super) fn with_headers(reply: Reply, more: Vec<Header>) -> Reply {
    match reply {
        Reply::Full(mut response) => {
            more.into_iter().for_each(|header| response.add_header(header));
            Reply::Full(response)
        }
        Reply::Stream { status, mut headers, ends, run } => {
            headers.extend(more);
            Reply::Stream { status, headers, ends, run }
        }
        Reply::Sized { status, mut headers, length, run } => {
            headers.extend(more);
            Reply::Sized { status, headers, length, run }
        }
    }
}
