//! The routes as data: what there is, what each takes, and who answers. Dispatch, 404, 405 with `Allow`, OPTIONS and the
//! query parameters that are known all come from here; `openapi.json` is held against it by a test.

use std::fmt;

use tiny_http::Method;

use super::access::TokenId;
use super::files;
use super::query::Query;
use super::request::{Request, decode_bytes, not_utf8};
use super::routes::{Answer, App};
use crate::hash::Hash;
use crate::ledger::event::State;
use crate::ledger::lifecycle::Phase;
use crate::manifest;
use crate::rejection::Rejection;

/// The document that `/openapi.json` answers.
pub const DOCUMENT: &[u8] = include_bytes!("openapi.json");
/// Jobs on a page, at most.
pub const PAGE_MAX: u64 = 10_000;
/// Events of one `/api/ledger` answer, at most.
pub const LEDGER_MAX: u64 = 100_000;
/// Jobs of one graph, at most.
pub const GRAPH_MAX: u64 = 10_000;
/// Lines that one search of a log tells, at most.
pub const MATCHES_MAX: u64 = 10_000;
/// Longest text that is searched for, in bytes.
pub const FIND_MAX: usize = 256;
/// Longest wait for a state, in seconds.
pub const WAIT_S_MAX: u64 = 3600;
/// What may be done at `OPTIONS *`, which stands for all of the agent.
pub const ALL_METHODS: &str = "GET, HEAD, POST, OPTIONS";

/// What a query parameter may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Decimal digits alone, a number within these bounds.
    Number {
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// A state that a job can be in.
    State,
    /// `waiting`, `active` or `ended`.
    Phase,
    /// A SHA-256 in lower-case hex.
    Hash,
    /// What can be a job's id, whether or not there is such a job.
    JobId,
    /// `yes` or `no`.
    YesNo,
    /// A part of a line: any bytes but a newline.
    Text {
        /// The most bytes.
        most: usize,
    },
}

impl Kind {
    /// Whether `text` is one.
    pub fn admits(self, text: &str) -> bool {
        match self {
            Self::Number { least, most } => {
                let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
                is_digits && text.parse::<u64>().is_ok_and(|number| (least..=most).contains(&number))
            }
            Self::State => State::parse(text).is_some_and(|state| !state.is_of_node()),
            Self::Phase => Phase::parse(text).is_some(),
            Self::Hash => text.parse::<Hash>().is_ok(),
            Self::JobId => manifest::is_job_id(text),
            Self::YesNo => matches!(text, "yes" | "no"),
            Self::Text { most } => (1..=most).contains(&text.len()) && !text.contains('\n'),
        }
    }
}

/// What it must be, for a person.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { least, most } => write!(f, "a whole number from {least} to {most}"),
            Self::State => f.write_str("a state of a job such as SEALED"),
            Self::Phase => f.write_str("waiting, active or ended"),
            Self::Hash => f.write_str("64 lower-case hex digits"),
            Self::JobId => f.write_str("a job id: [A-Za-z0-9][A-Za-z0-9_.-]{0,99}"),
            Self::YesNo => f.write_str("yes or no"),
            Self::Text { most } => write!(f, "1 to {most} bytes without a newline"),
        }
    }
}

/// A query parameter of a route; none must be given, each at most once.
#[derive(Debug, Clone, Copy)]
pub struct Parameter {
    /// As it stands in the query.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
}

/// A request on its way to the route's handler.
pub(super) struct Call<'r> {
    /// Its path and method are the route's, its token is right.
    pub(super) request: &'r Request,
    /// Its parameters, each of its kind.
    pub(super) query: Query<'r>,
    /// What stands for `{id}`; empty where the route has none.
    pub(super) id: &'r str,
    /// What stands for `{path}`, decoded; empty where there is nothing.
    pub(super) path: &'r [u8],
    /// The token it came with, where the route asks for one.
    pub(super) token: TokenId,
}

type Run = fn(&App, &Call<'_>) -> Answer;

/// A route: one method at one path.
pub struct Route {
    /// `GET`, which answers HEAD as well, or `POST`.
    pub method: Method,
    /// The path: `{id}` stands for one segment, `{path}` for all that follow.
    pub template: &'static str,
    /// The query parameters that it knows; `None` where any are taken and none has a meaning.
    pub parameters: Option<&'static [Parameter]>,
    /// Whether it asks for a token, where the agent has tokens.
    pub token: bool,
    pub(super) run: Run,
}

impl Route {
    const fn get(template: &'static str, parameters: &'static [Parameter], run: Run) -> Self {
        Self { method: Method::Get, template, parameters: Some(parameters), token: true, run }
    }

    const fn post(template: &'static str, run: Run) -> Self {
        Self { method: Method::Post, template, parameters: Some(&[]), token: true, run }
    }

    const fn open(mut self) -> Self {
        self.token = false;
        self
    }

    const fn any_query(mut self) -> Self {
        self.parameters = None;
        self
    }

    /// What of a path stands for `{id}` and `{path}`; `None` where the path is not this route's. The segments are split
    /// as they were sent and decoded then: an encoded slash is a part of a name.
    fn take(&self, raw_path: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut id, mut rest) = (Vec::new(), Some(raw_path.strip_prefix('/')?));
        for part in self.template.strip_prefix('/')?.split('/') {
            if part == "{path}" {
                return Some((id, decode_bytes(rest.unwrap_or_default(), false).ok()?));
            }
            let (segment, others) = match rest?.split_once('/') {
                Some((segment, others)) => (segment, Some(others)),
                None => (rest?, None),
            };
            let segment = decode_bytes(segment, false).ok()?;
            match part {
                "{id}" if segment.is_empty() => return None,
                "{id}" => id = segment,
                literal if literal.as_bytes() != segment => return None,
                _ => {}
            }
            rest = others;
        }
        rest.is_none().then_some((id, Vec::new()))
    }
}

const fn parameter(name: &'static str, kind: Kind) -> Parameter {
    Parameter { name, kind }
}

const fn number(name: &'static str, least: u64, most: u64) -> Parameter {
    Parameter { name, kind: Kind::Number { least, most } }
}

const LIST: &[Parameter] = &[
    parameter("phase", Kind::Phase),
    parameter("state", Kind::State),
    parameter("execution_hash", Kind::Hash),
    number("after", 0, u64::MAX),
    number("limit", 1, PAGE_MAX),
    parameter("brief", Kind::YesNo),
];
const WAIT: &[Parameter] = &[parameter("wait", Kind::State), number("timeout_s", 0, WAIT_S_MAX)];
const ATTEMPT: &[Parameter] = &[number("attempt", 0, u32::MAX as u64)];
const LINES: &[Parameter] = &[
    number("attempt", 0, u32::MAX as u64),
    number("from", 0, u64::MAX),
    parameter("find", Kind::Text { most: FIND_MAX }),
    number("limit", 1, MATCHES_MAX),
];
const BUNDLE: &[Parameter] = &[parameter("artifacts", Kind::YesNo)];
const GRAPH: &[Parameter] = &[parameter("job", Kind::JobId), number("limit", 1, GRAPH_MAX)];
const EVENTS: &[Parameter] = &[number("after", 0, u64::MAX), parameter("job", Kind::JobId)];
const LEDGER: &[Parameter] = &[number("from", 1, u64::MAX), number("limit", 1, LEDGER_MAX)];

/// Every route but the files of the viewer's page, which are served at their names.
pub const ROUTES: &[Route] = &[
    // A page must load before it can ask for a token, with whatever its own links carry; a probe has no token.
    Route::get("/", &[], |_, call| files::viewer(&call.request.path)).open().any_query(),
    Route::get("/healthz", &[], |app, _| app.alive()).open(),
    Route::get("/readyz", &[], |app, _| app.ready()).open(),
    Route::get("/openapi.json", &[], |_, _| Ok(files::embedded(DOCUMENT, "application/json"))).open(),
    Route::get("/metrics", &[], App::metrics),
    Route::post("/api/submit_job", App::submit),
    Route::post("/api/submit_jobs", App::submit_all),
    Route::get("/api/jobs", LIST, App::jobs),
    Route::get("/api/jobs/{id}", WAIT, App::job),
    Route::post("/api/jobs/{id}/cancel", App::cancel),
    Route::post("/api/jobs/{id}/retrigger", App::retrigger),
    Route::post("/api/jobs/{id}/reproduce", App::reproduce),
    Route::get("/api/jobs/{id}/trace", &[], App::trace),
    Route::get("/api/jobs/{id}/stdout", ATTEMPT, |app, call| app.output(call, "stdout")),
    Route::get("/api/jobs/{id}/stderr", ATTEMPT, |app, call| app.output(call, "stderr")),
    Route::get("/api/jobs/{id}/stdout/lines", LINES, |app, call| app.lines(call, "stdout")),
    Route::get("/api/jobs/{id}/stderr/lines", LINES, |app, call| app.lines(call, "stderr")),
    Route::get("/api/jobs/{id}/telemetry", ATTEMPT, App::telemetry),
    Route::get("/api/jobs/{id}/seal", &[], App::seal),
    Route::get("/api/jobs/{id}/artifacts/{path}", &[], App::artifact),
    Route::get("/api/jobs/{id}/bundle", BUNDLE, App::bundle),
    Route::post("/api/prune", App::prune),
    Route::get("/api/graph", GRAPH, App::graph),
    Route::get("/api/events", EVENTS, App::events),
    Route::get("/api/ledger", LEDGER, App::ledger),
    Route::get("/api/ledger/head", &[], App::head),
    Route::get("/api/node", &[], App::node),
];

/// The files that the viewer's page loads.
static VIEWER_FILE: Route = Route::get("/{file}", &[], |_, call| files::viewer(&call.request.path)).open().any_query();

/// What there is at a path.
pub(super) struct Found {
    routes: Vec<&'static Route>,
    /// What stands for `{id}`.
    pub(super) id: String,
    /// What stands for `{path}`.
    pub(super) path: Vec<u8>,
}

impl Found {
    /// The route for a method; HEAD is that of GET.
    pub(super) fn route(&self, method: &Method) -> Option<&'static Route> {
        let method = if *method == Method::Head { &Method::Get } else { method };
        self.routes.iter().copied().find(|route| route.method == *method)
    }

    /// What may be done here: the value of `Allow`.
    pub(super) fn allowed(&self) -> &'static str {
        let has = |method| self.route(&method).is_some();
        match (has(Method::Get), has(Method::Post)) {
            (true, true) => ALL_METHODS,
            (true, false) => "GET, HEAD, OPTIONS",
            (false, _) => "POST, OPTIONS",
        }
    }
}

/// Looks up what there is at the request's path.
///
/// # Errors
/// 404 where there is nothing, 400 where the path is no text. Only the names of artifacts may be any bytes.
pub(super) fn find(request: &Request) -> Result<Found, Rejection> {
    let mut found = Found { routes: Vec::new(), id: String::new(), path: Vec::new() };
    for route in ROUTES {
        if let Some((id, path)) = route.take(&request.raw_path) {
            found.routes.push(route);
            found.id = String::from_utf8(id).map_err(|_| not_utf8())?;
            found.path = path;
        }
    }
    if found.routes.is_empty() {
        let path = request.path.as_str();
        if path.as_bytes() != request.path_bytes() {
            return Err(not_utf8());
        }
        if !files::is_viewer(path) {
            return Err(Rejection::new(
                404,
                "no_such_route",
                format!("there is nothing at {path:?}; GET /openapi.json has every route"),
            ));
        }
        found.routes.push(&VIEWER_FILE);
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn at(raw_path: &str) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
        let taken = ROUTES.iter().filter_map(|route| route.take(raw_path).map(|(id, path)| (route.template, id, path)));
        taken.collect()
    }

    #[test]
    fn paths_and_their_routes() {
        for (raw_path, template, id, path) in [
            ("/", "/", &b""[..], &b""[..]),
            ("/api/jobs", "/api/jobs", b"", b""),
            ("/%61pi/jobs", "/api/jobs", b"", b""),
            ("/api/jobs/a", "/api/jobs/{id}", b"a", b""),
            ("/api/jobs/a%2Fstdout", "/api/jobs/{id}", b"a/stdout", b""),
            ("/api/jobs/a/stdout", "/api/jobs/{id}/stdout", b"a", b""),
            ("/api/jobs/a/stdout/lines", "/api/jobs/{id}/stdout/lines", b"a", b""),
            ("/api/jobs/%FF/seal", "/api/jobs/{id}/seal", b"\xff", b""),
            ("/api/jobs/a/artifacts", "/api/jobs/{id}/artifacts/{path}", b"a", b""),
            ("/api/jobs/a/artifacts/", "/api/jobs/{id}/artifacts/{path}", b"a", b""),
            ("/api/jobs/a/artifacts/b/c", "/api/jobs/{id}/artifacts/{path}", b"a", b"b/c"),
            ("/api/jobs/a/artifacts/b%2Fc%ff//", "/api/jobs/{id}/artifacts/{path}", b"a", b"b/c\xff//"),
        ] {
            assert_eq!(at(raw_path), [(template, id.to_vec(), path.to_vec())], "{raw_path}");
        }
        for raw_path in [
            "*",
            "",
            "/x",
            "/api",
            "/api/",
            "//",
            "/api/jobs/",
            "/api/jobs//seal",
            "/api/jobs/a/b",
            "/api/jobs/a/seal/",
            "/api/jobs/a/stdout/",
            "/api/jobs/a/telemetry/lines",
        ] {
            assert!(at(raw_path).is_empty(), "{raw_path}: {:?}", at(raw_path));
        }
    }

    #[test]
    fn kinds() {
        let number = Kind::Number { least: 1, most: 1000 };
        for (kind, good, bad) in [
            (
                number,
                &["1", "0001", "1000"][..],
                &["", "0", "1001", "+1", "-1", " 1", "1.0", "1e2", "99999999999999999999"][..],
            ),
            (Kind::State, &["SEALED", "RECEIVED"], &["", "sealed", "NODE_UP", "PRUNED"]),
            (Kind::Phase, &["waiting", "ended"], &["", "Ended", "done"]),
            (Kind::JobId, &["a", "9.x_-"], &["", ".", "-a", "a/b", "é"]),
            (Kind::YesNo, &["yes", "no"], &["", "Yes", "true", "1"]),
            (Kind::Text { most: 4 }, &["a", " ", "\r", "éé"], &["", "a\n", "\n", "abcde", "ééx"]),
        ] {
            assert!(good.iter().all(|text| kind.admits(text)), "{kind:?} {good:?}");
            assert!(!bad.iter().any(|text| kind.admits(text)), "{kind:?} {bad:?}");
        }
        let hash = "0123456789abcdef".repeat(4);
        assert!(Kind::Hash.admits(&hash) && !Kind::Hash.admits(&hash.to_uppercase()) && !Kind::Hash.admits(&hash[1..]));
        assert!(Kind::Number { least: 0, most: u64::MAX }.admits("18446744073709551615"));
    }
}
