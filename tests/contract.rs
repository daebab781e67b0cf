//! Every route against the contract: the table, the document at /openapi.json and the real agent say the same. Needs a
//! running Docker Engine and `busybox:latest` for the tests that read what a job has left.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use agent::{Agent, Answer, PATIENCE, Site, eventually, job_id, manifest};
use hackbrain::hash::Hash;
use hackbrain::http::api::{DOCUMENT, Kind, ROUTES};
use serde_json::{Value, json};

fn document() -> Value {
    serde_json::from_slice(DOCUMENT).unwrap()
}

/// Follows `$ref`, of which none leads out of the document.
fn resolved<'d>(document: &'d Value, mut value: &'d Value) -> &'d Value {
    while let Some(reference) = value["$ref"].as_str() {
        value = document.pointer(reference.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{reference}"));
    }
    value
}

/// An agent without an engine: what is submitted waits.
fn without_engine(site: &Site, args: &[&str]) -> Agent {
    site.start_command(site.serve(args).env("DOCKER_HOST", format!("unix://{}/none", site.dir().display())))
}

#[test]
fn the_document_has_the_routes_of_the_table_and_no_others() {
    let document = document();
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
            let common = item["parameters"].as_array().cloned().unwrap_or_default();
            operations.insert((path.as_str(), method.to_uppercase()), (operation, common));
        }
    }
    let table: BTreeSet<_> = ROUTES.iter().map(|route| (route.template, route.method.to_string())).collect();
    assert_eq!(operations.keys().cloned().collect::<BTreeSet<_>>(), table);
    assert_eq!(table.len(), ROUTES.len(), "a route stands once");

    for route in ROUTES {
        let name = format!("{} {}", route.method, route.template);
        let (operation, common) = &operations[&(route.template, route.method.to_string())];
        let own = operation["parameters"].as_array().cloned().unwrap_or_default();
        let parameters: Vec<Value> =
            common.iter().chain(&own).map(|parameter| resolved(&document, parameter).clone()).collect();
        let place = |place: &str| -> BTreeSet<String> {
            let there = parameters.iter().filter(|parameter| parameter["in"] == place);
            there.map(|parameter| parameter["name"].as_str().unwrap().to_owned()).collect()
        };
        let in_template: BTreeSet<String> =
            route.template.split(['{', '}']).skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(place("path"), in_template, "{name}");
        let known = route.parameters.unwrap_or_default();
        assert_eq!(place("query"), known.iter().map(|parameter| parameter.name.to_owned()).collect(), "{name}");
        for parameter in known {
            let told = parameters.iter().find(|told| told["in"] == "query" && told["name"] == parameter.name).unwrap();
            let schema = resolved(&document, &told["schema"]);
            let name = format!("{name} {}", parameter.name);
            assert_ne!(told["required"], true, "{name}");
            match parameter.kind {
                Kind::Number { least, most } => {
                    assert_eq!((&schema["minimum"], &schema["maximum"]), (&json!(least), &json!(most)), "{name}");
                }
                Kind::Hash => assert_eq!(schema["pattern"], "^[0-9a-f]{64}$", "{name}"),
                Kind::Text { most } => {
                    assert_eq!((&schema["minLength"], &schema["maxLength"]), (&json!(1), &json!(most)), "{name}");
                    assert_eq!(schema["pattern"], "^[^\\u0000\\n]+$", "{name}");
                }
                Kind::JobId => assert_eq!(schema["pattern"], "^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", "{name}"),
                kind => {
                    let all = [JOB_STATES, NODE_STATES, &["waiting", "active", "ended", "yes", "no"]].concat();
                    let admitted: BTreeSet<&str> = all.into_iter().filter(|text| kind.admits(text)).collect();
                    let listed: BTreeSet<&str> =
                        schema["enum"].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
                    assert_eq!(listed, admitted, "{name}");
                }
            }
            if let Some(default) = schema["default"].as_u64() {
                assert!(parameter.kind.admits(&default.to_string()), "{name}");
            }
        }
        let asks = operation.get("security").is_none();
        assert_eq!(asks, route.token, "{name}: security");
        let responses = operation["responses"].as_object().unwrap();
        assert_eq!(responses.contains_key("401"), route.token, "{name}: 401");
        assert_eq!(responses.contains_key("415"), route.method.to_string() == "POST", "{name}: 415");
        assert_eq!(
            responses.contains_key("404"),
            route.template.contains('{') || route.template == "/api/graph",
            "{name}"
        );
    }
    assert_eq!(document["security"], json!([{ "bearer": [] }, {}]), "a token is needed where there are tokens");
}

const JOB_STATES: &[&str] = &[
    "RECEIVED",
    "SCHEDULED",
    "RUNNING",
    "D1_STABLE",
    "CRASH",
    "RECOVERY",
    "STOPPING",
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "SEALED",
    "RETRIGGERED",
];
const NODE_STATES: &[&str] = &["GENESIS", "NODE_UP", "NODE_DOWN", "PRUNED"];

/// What must hold of any OpenAPI document, as far as this one uses it; scripts/schemathesis has all of it checked.
#[test]
fn the_document_is_an_openapi_document() {
    let document = document();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let mut used = BTreeSet::new();
    references(&document, &mut |reference| {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leads out of the document"));
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        used.insert(reference.to_owned());
    });
    for kind in ["schemas", "parameters", "headers", "responses"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            let reference = format!("#/components/{kind}/{name}");
            // It stands for every path, and so at none.
            let is_for_all = reference == "#/components/responses/MethodNotAllowed";
            assert!(used.contains(&reference) || is_for_all, "nothing uses {reference}");
        }
    }
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        assert!(path.starts_with('/'), "{path}");
        for operation in ["get", "post"].iter().filter_map(|method| item.get(method)) {
            assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{path}: its operationId stands twice");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let response = resolved(&document, response);
                assert!(response["description"].is_string(), "{path} {status}");
                let status: u16 = status.parse().unwrap();
                let error = &response["content"]["application/json"]["schema"]["$ref"];
                assert_eq!(error == "#/components/schemas/Error", status >= 400, "{path} {status}");
                for (name, header) in response["headers"].as_object().into_iter().flatten() {
                    assert!(resolved(&document, header)["schema"].is_object(), "{path} {status} {name}");
                }
            }
            for (_, response) in operation["responses"].as_object().unwrap() {
                for (_, link) in response["links"].as_object().into_iter().flatten() {
                    let target = link["operationId"].as_str().unwrap();
                    let known = document["paths"]
                        .as_object()
                        .unwrap()
                        .values()
                        .any(|item| ["get", "post"].iter().any(|method| item[method]["operationId"] == target));
                    assert!(known, "{path}: a link to {target}");
                }
            }
        }
    }
}

fn references(value: &Value, each: &mut dyn FnMut(&str)) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(reference)) = members.get("$ref") {
                each(reference);
            }
            members.values().for_each(|member| references(member, each));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, each)),
        _ => {}
    }
}

#[test]
fn the_document_lists_every_code_and_no_other() {
    let mut found = BTreeSet::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |text| {
        let text = text.split("#[cfg(test)]").next().unwrap();
        for opening in ["Rejection::new(", "reject(", "refuse("] {
            for behind in text.split(opening).skip(1) {
                // A status may stand before the code.
                let (first, second) = behind.split_once(',').unwrap_or_default();
                let second = second.split(',').next().unwrap();
                let literal = |text: &str| Some(text.trim().strip_prefix('"')?.strip_suffix('"')?.to_owned());
                let is_code = |code: &String| code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
                found.extend(literal(first).or_else(|| literal(second)).filter(is_code));
            }
        }
    });
    assert!(found.len() > 70, "{found:?}");
    let listed =
        document()["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]["enum"].clone();
    let listed: Vec<String> = serde_json::from_value(listed).unwrap();
    assert!(listed.is_sorted(), "the list is sorted");
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), found);
}

fn sources(dir: &Path, each: &mut dyn FnMut(&str)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, each);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !path.file_name().unwrap().to_str().unwrap().ends_with("tests.rs")
        {
            each(&fs::read_to_string(path).unwrap());
        }
    }
}

/// The path of a route, of a job that is there.
fn path_of(template: &str, id: &str) -> String {
    template.replace("{id}", id).replace("{path}", "job/workdir/result")
}

/// Every error is the same document.
#[track_caller]
fn is_error(answer: &Answer, status: u16, code: &str, context: &str) {
    let context = format!("{context}: {} {}", answer.status, answer.text());
    assert_eq!(answer.status, status, "{context}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{context}");
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{context}");
    let error = body["error"].as_object().unwrap();
    assert_eq!(error.keys().collect::<Vec<_>>(), ["code", "field", "message"], "{context}");
    assert_eq!(error["code"], code, "{context}");
    assert!(error["message"].is_string() && (error["field"].is_string() || error["field"].is_null()), "{context}");
}

#[test]
fn every_method_at_every_route() {
    let site = Site::new("contract-methods");
    let tokens = site.dir().join("tokens");
    fs::write(&tokens, "secret\n").unwrap();
    fs::set_permissions(&tokens, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = without_engine(&site, &["--token-file", &tokens.display().to_string()]);
    let with_token = ("Authorization", "Bearer secret");
    let json_type = ("Content-Type", "application/json");
    let origin = format!("http://{}", agent.address);
    let id = job_id("contract");
    let body = manifest(&id, &["true"]).to_string();
    assert_eq!(agent.request("POST", "/api/submit_job", &[with_token, json_type], body.as_bytes()).status, 200);

    for route in ROUTES {
        let path = path_of(route.template, &id);
        let reads = route.method.to_string() == "GET";
        let allow = if reads { "GET, HEAD, OPTIONS" } else { "POST, OPTIONS" };
        for method in ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "POST", "GET", "HEAD", "BREW"] {
            let is_there = if reads { matches!(method, "GET" | "HEAD") } else { method == "POST" };
            if is_there {
                continue;
            }
            // Without a token: what may be done is no secret, and a token would change nothing.
            let answer = agent.request(method, &path, &[("Content-Length", "0")], b"");
            assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
            if method != "HEAD" {
                is_error(&answer, 405, "method_not_allowed", &format!("{method} {path}"));
            }
        }
        let options = agent.request("OPTIONS", &format!("{path}?any=thing"), &[], b"");
        assert_eq!((options.status, options.header("allow"), options.body.len()), (204, Some(allow), 0), "{path}");
        assert_eq!(options.header("access-control-allow-origin"), None, "{path}");
        let preflight = [
            ("Origin", origin.as_str()),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let preflight = agent.request("OPTIONS", &path, &preflight, b"");
        assert_eq!((preflight.status, preflight.header("allow")), (204, Some(allow)), "{path}");
        assert_eq!(preflight.header("access-control-allow-origin"), Some(origin.as_str()), "{path}");
        for (name, value) in [("methods", "POST"), ("headers", "Authorization"), ("headers", "If-None-Match")] {
            let told = preflight.header(&format!("access-control-allow-{name}")).unwrap();
            assert!(told.split(", ").any(|word| word == value), "{path}: {name}: {told}");
        }
        let foreign = agent.request("OPTIONS", &path, &[("Origin", "http://elsewhere.example")], b"");
        is_error(&foreign, 403, "foreign_origin", &path);

        let method = route.method.to_string();
        let headers: &[(&str, &str)] = if reads { &[] } else { &[json_type] };
        if route.token {
            let answer = agent.request(&method, &path, headers, b"");
            is_error(&answer, 401, "unauthorized", &path);
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
        }
        let headers = [headers, &[with_token]].concat();
        let unknown = agent.request(&method, &format!("{path}?no_such=1"), &headers, b"");
        match route.parameters {
            Some(_) => is_error(&unknown, 400, "unknown_parameter", &path),
            None => assert_eq!(unknown.status, 200, "{path}"),
        }
        for parameter in route.parameters.unwrap_or_default() {
            for (query, fault) in [(format!("{0}=!&{0}=!", parameter.name), "!"), (format!("{}=", parameter.name), "")]
            {
                let answer = agent.request(&method, &format!("{path}?{query}"), &headers, b"");
                is_error(&answer, 400, "bad_parameter", &format!("{path}?{query}"));
                assert_eq!(answer.json()["error"]["field"], parameter.name, "{fault}");
            }
        }
        if !reads {
            let answer = agent.request("POST", &path, &[with_token, ("Content-Type", "text/plain")], b"{}");
            is_error(&answer, 415, "content_type", &path);
        }
    }

    let all = agent.request("OPTIONS", "*", &[], b"");
    assert_eq!((all.status, all.header("allow")), (204, Some("GET, HEAD, POST, OPTIONS")));
    for (path, query) in [("/app.js", "?v=1"), ("/", "?node=http://127.0.0.1:4005"), ("/style.css", "")] {
        assert_eq!(agent.get(&format!("{path}{query}")).status, 200, "the viewer takes any query: {path}");
    }
    let answer = agent.get("/openapi.json");
    assert_eq!((answer.status, &answer.body[..]), (200, DOCUMENT), "without a token");
    for path in ["/nothing", "/api", "/api/jobs/", "/api/jobs//seal", "/healthz/", "//", "/api/jobs/x/seal/x"] {
        is_error(&agent.request("GET", path, &[with_token], b""), 404, "no_such_route", path);
        is_error(&agent.request("OPTIONS", path, &[], b""), 404, "no_such_route", path);
    }
    // An encoded slash is a part of the id, and no id has one.
    let answer = agent.request("GET", &format!("/api/jobs/{id}%2Fstdout"), &[with_token], b"");
    is_error(&answer, 404, "no_such_job", "an encoded slash");
    // The body of what needs none.
    for verb in ["cancel", "retrigger"] {
        for (body, code) in [("{", "not_json"), ("[]", "not_an_object"), ("{\"job_id\":\"x\"}", "unknown_field")] {
            let path = format!("/api/jobs/{id}/{verb}");
            is_error(&agent.request("POST", &path, &[with_token, json_type], body.as_bytes()), 400, code, body);
        }
    }
}

/// The header fields of an answer that do not concern the moment.
fn told(answer: &Answer) -> Vec<(String, String)> {
    let mut headers = answer.headers.clone();
    headers.retain(|(name, _)| name != "date");
    headers.sort();
    headers
}

#[test]
fn what_a_job_left_is_read_whole_in_parts_and_not_again() {
    let site = Site::new("contract-files");
    let agent = site.start(&[]);
    let id = job_id("files");
    let script = "printf 0123456789; printf abcdefghij >&2; sleep 2; printf ABCDEFGHIJ > result";
    agent.accepted(&manifest(&id, &["sh", "-c", script]));
    assert_eq!(agent.ended(&id)["state"], "SEALED", "{}", agent.said());

    for route in ROUTES.iter().filter(|route| route.method.to_string() == "GET" && route.template != "/api/events") {
        let path = path_of(route.template, &id);
        let [get, head] = ["GET", "HEAD"].map(|method| agent.request(method, &path, &[("Accept", "image/png")], b""));
        assert_eq!((get.status, head.status, head.body.len()), (200, 200, 0), "{path}");
        let [mut of_head, mut of_get] = [told(&head), told(&get)];
        if matches!(route.template, "/metrics" | "/api/node") {
            // Their figures gain digits from one moment to the next.
            for fields in [&mut of_head, &mut of_get] {
                fields.retain(|(name, _)| name != "content-length");
            }
        }
        assert_eq!(of_head, of_get, "{path}: HEAD tells what GET tells");
        // A longer one comes in chunks.
        let told_length = get.header("content-length");
        assert!(told_length.is_none_or(|length| length == get.body.len().to_string()), "{path}");
    }
    // To an old client, whose answer has no coding that would have to end.
    let head = agent.raw(format!("HEAD /api/events HTTP/1.0\r\nHost: {}\r\n\r\n", agent.address).as_bytes());
    assert_eq!((head.status, head.header("content-type"), head.body.len()), (200, Some("text/event-stream"), 0));
    let missing = agent.request("HEAD", "/api/jobs/nobody", &[], b"");
    assert_eq!(
        (missing.status, missing.body.len(), missing.header("content-type")),
        (404, 0, Some("application/json"))
    );

    for (below, sealed) in [
        ("stdout", false),
        ("stderr", false),
        ("telemetry", false),
        ("seal", true),
        ("artifacts/job/workdir/result", true),
    ] {
        let path = format!("/api/jobs/{id}/{below}");
        let ask = |headers: &[(&str, &str)]| agent.request("GET", &path, headers, b"");
        let whole = ask(&[]);
        let len = whole.body.len();
        assert!(len >= 10, "{path}: {}", whole.text());
        let last = len - 1;
        for (range, first, last) in [
            ("bytes=0-0".to_owned(), 0, 0),
            ("bytes=0-".to_owned(), 0, last),
            ("bytes=3-6".to_owned(), 3, 6),
            (format!("bytes={last}-{last}"), last, last),
            (format!("bytes=4-{}", len + 1000), 4, last),
            ("bytes=-3".to_owned(), len - 3, last),
            (format!("bytes=-{}", len + 5), 0, last),
        ] {
            let part = ask(&[("Range", &range)]);
            assert_eq!((part.status, &part.body[..]), (206, &whole.body[first..=last]), "{path} {range}");
            let content_range = format!("bytes {first}-{last}/{len}");
            assert_eq!(part.header("content-range"), Some(content_range.as_str()), "{path} {range}");
            assert_eq!(part.header("content-length"), Some((last + 1 - first).to_string().as_str()), "{path} {range}");
            assert_eq!(part.header("content-type"), whole.header("content-type"), "{path} {range}");
            assert_eq!(part.header("etag"), whole.header("etag"), "{path} {range}");
        }
        for range in [format!("bytes={len}-"), format!("bytes={}-{}", len + 7, len + 9), "bytes=-0".to_owned()] {
            let beyond = ask(&[("Range", &range)]);
            is_error(&beyond, 416, "range", &format!("{path} {range}"));
            assert_eq!(beyond.header("content-range"), Some(format!("bytes */{len}").as_str()), "{path} {range}");
        }
        for range in ["bytes=0-1,3-4", "bytes=0-0, -1", "bytes=3-2", "lines=0-1", "bytes=x-", "bytes", "", "bytes=1"] {
            let all = ask(&[("Range", range)]);
            assert_eq!((all.status, &all.body), (200, &whole.body), "{path} {range:?}");
            assert_eq!(all.header("content-range"), None, "{path} {range:?}");
        }
        let head = agent.request("HEAD", &path, &[("Range", "bytes=0-0")], b"");
        assert_eq!((head.status, told(&head)), (200, told(&whole)), "{path}: Range has no meaning for HEAD");

        let never_given = ["\"x\"", "W/\"x\"", "Tue, 24 Nov 2026 00:00:00 GMT", "*", ""];
        for validator in never_given {
            let all = ask(&[("Range", "bytes=0-1"), ("If-Range", validator)]);
            assert_eq!((all.status, &all.body), (200, &whole.body), "{path}: If-Range: {validator}");
        }
        let Some(etag) = whole.header("etag").filter(|_| sealed) else {
            assert_eq!((sealed, whole.header("etag")), (false, None), "{path}");
            assert_eq!(ask(&[("If-None-Match", "\"x\"")]).status, 200, "{path}");
            continue;
        };
        // Behind a range that is beyond the end as well: another file may be longer.
        for (validator, range, status) in [
            (etag.to_owned(), "bytes=0-1", 206),
            (format!("W/{etag}"), "bytes=0-1", 200),
            (etag.to_owned(), "bytes=9999999-", 416),
            ("\"x\"".to_owned(), "bytes=9999999-", 200),
        ] {
            assert_eq!(ask(&[("Range", range), ("If-Range", &validator)]).status, status, "{path} {validator} {range}");
        }
        for (validator, status) in [
            (etag.to_owned(), 304),
            (format!("W/{etag}"), 304),
            (format!("\"x\", {etag}"), 304),
            ("*".to_owned(), 304),
            ("\"x\"".to_owned(), 200),
            (etag.trim_matches('"').to_owned(), 200),
        ] {
            for method in ["GET", "HEAD"] {
                let answer = agent.request(method, &path, &[("If-None-Match", &validator)], b"");
                assert_eq!(answer.status, status, "{path}: If-None-Match: {validator}");
                assert_eq!(answer.header("etag"), Some(etag), "{path}");
                assert_eq!(answer.body.len(), if status == 200 && method == "GET" { len } else { 0 }, "{path}");
            }
        }
        // Before the range: RFC 9110 §13.2.2.
        let both = ask(&[("If-None-Match", etag), ("Range", "bytes=0-1"), ("If-Range", etag)]);
        assert_eq!((both.status, both.body.len()), (304, 0), "{path}");
    }

    let seal = site.data().join(format!("seals/{id}.json"));
    let sound = fs::read(&seal).unwrap();
    let sealed: Value = agent.get(&format!("/api/jobs/{id}/trace")).text().lines().last().unwrap().parse().unwrap();
    let etag = format!("\"{}\"", sealed["detail"]["seal_hash"].as_str().unwrap());
    let path = format!("/api/jobs/{id}/seal");
    assert_eq!(agent.get(&path).header("etag"), Some(etag.as_str()), "the tag is the hash that SEALED tells");
    let mut forged = sound.clone();
    *forged.last_mut().unwrap() = b' ';
    for damaged in [forged, sound[..sound.len() - 1].to_vec(), [&sound[..], b"\n"].concat(), Vec::new()] {
        fs::write(&seal, damaged).unwrap();
        is_error(&agent.get(&path), 409, "seal_changed", "a seal with other bytes");
    }
    fs::remove_file(&seal).unwrap();
    is_error(&agent.get(&path), 409, "seal_changed", "no seal");
    fs::write(&seal, &sound).unwrap();
    assert_eq!(agent.get(&path).body, sound);
}

#[test]
fn numbers_outside_their_bounds_are_refused() {
    let site = Site::new("contract-numbers");
    let agent = without_engine(&site, &[]);
    let id = job_id("numbers");
    agent.accepted(&manifest(&id, &["true"]));
    let job = format!("/api/jobs/{id}?wait=RECEIVED&timeout_s");
    let stdout = format!("/api/jobs/{id}/stdout?attempt");
    let lines = format!("/api/jobs/{id}/stderr/lines?limit");
    let huge = "18446744073709551616";
    for (path, good, bad) in [
        (
            "/api/jobs?limit",
            &["1", "10000", "007"][..],
            &["0", "10001", huge, "-1", "+1", "1.0", "1e2", " 1", "x", ""][..],
        ),
        ("/api/jobs?after", &["0", "18446744073709551615"], &[huge, "-1", "x", ""]),
        ("/api/ledger?limit", &["1", "100000"], &["0", "100001", huge, "-1", ""]),
        ("/api/ledger?from", &["1", "18446744073709551615"], &["0", huge, "-1", ""]),
        ("/api/graph?limit", &["1", "10000"], &["0", "10001", huge]),
        (&job, &["0", "3600"], &["3601", huge, "-1", "0.5"]),
        (&stdout, &["0"], &["4294967296", huge, "-1"]),
        (&lines, &["1", "10000"], &["0", "10001", huge]),
    ] {
        for value in good {
            assert_eq!(agent.get(&format!("{path}={value}")).status, 200, "{path}={value}");
        }
        for value in bad {
            let query = value.replace('+', "%2B").replace(' ', "%20");
            is_error(&agent.get(&format!("{path}={query}")), 400, "bad_parameter", &format!("{path}={value}"));
        }
    }
    for (path, field) in [
        ("/api/jobs?state=NODE_UP", "state"),
        ("/api/jobs/x?wait=GENESIS", "wait"),
        ("/api/graph?job=a/b", "job"),
        ("/api/events?job=%20", "job"),
        ("/api/jobs/x/bundle?artifacts=maybe", "artifacts"),
        ("/api/jobs?brief=1", "brief"),
    ] {
        let answer = agent.get(path);
        is_error(&answer, 400, "bad_parameter", path);
        assert_eq!(answer.json()["error"]["field"], field);
    }
    is_error(&agent.get(&format!("{stdout}=1")), 404, "no_such_attempt", "an attempt that was not made");
    let mut nothing = agent.get("/api/jobs?after=0").json();
    nothing.as_object_mut().unwrap().remove("head").expect("the head that it is of");
    assert_eq!(nothing, json!({ "jobs": [], "next": null }));
    assert_eq!(agent.get("/api/ledger?from=1000000").text(), "");
}

fn batch(agent: &Agent, ids: impl Iterator<Item = String>) {
    let jobs: Vec<Value> = ids.map(|id| manifest(&id, &["true"])).collect();
    let answer = agent.post("/api/submit_jobs", json!({ "jobs": jobs }).to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_brief_page_is_the_page_without_hashes_and_nulls() {
    let site = Site::new("contract-brief");
    let agent = without_engine(&site, &[]);
    let waits = job_id("waits");
    let mut manifest = manifest(&job_id("needs"), &["true"]);
    manifest["depends_on"] = json!([waits]);
    agent.accepted(&self::manifest(&waits, &["true"]));
    agent.accepted(&manifest);
    assert_eq!(agent.post(&format!("/api/jobs/{waits}/cancel"), b"{}").status, 200);
    agent.get(&format!("/api/jobs/{waits}?wait=CANCELLED&timeout_s=60"));
    let needs = manifest["job_id"].as_str().unwrap();
    agent.get(&format!("/api/jobs/{needs}?wait=FAILED&timeout_s=60"));
    let mut page = agent.get("/api/jobs?brief=no").json();
    assert_eq!(page, agent.get("/api/jobs").json());
    for job in page["jobs"].as_array_mut().unwrap() {
        let job = job.as_object_mut().unwrap();
        job.remove("image_id").expect("an image id, or null");
        job.remove("execution_hash").expect("a hash, or null");
        job.retain(|_, value| !value.is_null());
    }
    assert_eq!(page["jobs"][0]["ancestor"], json!(waits));
    assert_eq!(page, agent.get("/api/jobs?brief=yes").json());
}

#[test]
fn a_page_is_of_one_moment_and_tells_its_head() {
    let site = Site::new("contract-moment");
    let agent = without_engine(&site, &[]);
    let pages: Vec<Value> = thread::scope(|scope| {
        let batches = scope.spawn(|| {
            for n in 0..20 {
                batch(&agent, (0..30).map(|i| format!("moment.{n}.{i}")));
            }
        });
        let mut pages = Vec::new();
        while !batches.is_finished() || pages.is_empty() {
            pages.push(agent.get("/api/jobs?limit=1000").json());
        }
        batches.join().unwrap();
        pages
    });
    let ledger = agent.get("/api/ledger?limit=100000").text();
    let events: Vec<Value> = ledger.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for page in &pages {
        let seq = page["head"]["seq"].as_u64().unwrap();
        let line = ledger.lines().nth(seq as usize - 1).unwrap();
        assert_eq!(page["head"]["hash"], json!(Hash::of(line.as_bytes())), "event {seq}");
        let jobs = page["jobs"].as_array().unwrap();
        let received = events[..seq as usize].iter().filter(|event| event["state"] == "RECEIVED").count();
        assert_eq!(jobs.len(), received, "as of event {seq}");
        assert!(jobs.iter().all(|job| job["seq"].as_u64().unwrap() <= seq), "none of them is newer than event {seq}");
    }
}

#[test]
fn pages_lose_no_job_and_show_none_twice_while_jobs_are_added() {
    let site = Site::new("contract-pages");
    let agent = without_engine(&site, &[]);
    let name = |n: usize| format!("page.{n:05}");
    batch(&agent, (0..1000).map(name));
    batch(&agent, (1000..1500).map(name));
    for limit in [10_000, 1000, 333, 1] {
        let (mut seen, mut after, mut added) = (Vec::new(), String::new(), 0);
        loop {
            let page = agent.get(&format!("/api/jobs?limit={limit}{after}")).json();
            let jobs = page["jobs"].as_array().unwrap();
            assert!(jobs.len() <= limit);
            seen.extend(jobs.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()));
            // Some come between two pages; more than enough pages of one are looked at after a few.
            agent.accepted(&manifest(&format!("late.{limit}.{added}"), &["true"]));
            added += 1;
            match page["next"].as_u64() {
                Some(next) if seen.len() < 1500.min(limit * 20) => after = format!("&after={next}"),
                _ => break,
            }
        }
        let old: Vec<&String> = seen.iter().filter(|id| id.starts_with("page.")).collect();
        let whole = seen.len() >= 1500;
        let upto = if whole { 0 } else { 1500 - old.len() };
        assert_eq!(old, (upto..1500).rev().map(name).collect::<Vec<_>>().iter().collect::<Vec<_>>(), "limit {limit}");
        let late = format!("late.{limit}.");
        assert!(!seen.iter().any(|id| id.starts_with(&late)), "what comes later does not move the pages: {limit}");
        if whole {
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len());
        }
    }

    // The ledger, page by page, is the ledger.
    let head = agent.get("/api/ledger/head").json()["seq"].as_u64().unwrap();
    let whole = agent.get("/api/ledger?limit=100000").text();
    let (mut from, mut text) = (1, String::new());
    while from <= head {
        let page = agent.get(&format!("/api/ledger?from={from}&limit=700")).text();
        let count = page.lines().count() as u64;
        assert_eq!(count, 700.min(head + 1 - from), "from {from} of {head}");
        from += count;
        text += &page;
    }
    assert!(text == whole && whole.lines().count() as u64 == head, "pages of the ledger");
    assert_eq!(agent.get(&format!("/api/ledger?from={}&limit=100000", head + 1)).text(), "");
}

#[test]
fn a_wait_ends_with_the_state_the_job_the_time_or_the_agent() {
    let site = Site::new("contract-wait");
    let agent = without_engine(&site, &[]);
    let (id, cancelled) = (job_id("wait"), job_id("cancelled"));
    agent.accepted(&manifest(&id, &["true"]));
    agent.accepted(&manifest(&cancelled, &["true"]));
    let wait = |id: &str, state: &str, seconds: &str| {
        let answer = agent.get(&format!("/api/jobs/{id}?wait={state}&timeout_s={seconds}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(wait(&id, "RECEIVED", "3600"), "RECEIVED", "it is there already");
    assert_eq!(wait(&id, "SEALED", "0"), "RECEIVED", "no time at all");
    assert_eq!(wait(&id, "SEALED", "1"), "RECEIVED", "the time is over");
    thread::scope(|scope| {
        let ended = scope.spawn(|| wait(&cancelled, "SEALED", "3600"));
        let reached = scope.spawn(|| wait(&cancelled, "CANCELLED", "3600"));
        assert_eq!(agent.post(&format!("/api/jobs/{cancelled}/cancel"), b"{}").status, 200);
        assert_eq!((ended.join().unwrap().as_str(), reached.join().unwrap().as_str()), ("CANCELLED", "CANCELLED"));
    });
    is_error(&agent.get("/api/jobs/nobody?wait=SEALED"), 404, "no_such_job", "a job that is not there");

    // The agent stops: who waits is told how it stands.
    let mut socket = TcpStream::connect(agent.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = format!("/api/jobs/{id}?wait=SEALED&timeout_s=3600");
    socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address).as_bytes()).unwrap();
    // Its thread has read the request: nothing is left in the connection's buffer.
    eventually("the request was read", || (received(&agent, &socket) == 0).then_some(()));
    assert_eq!(agent.terminate(), Some(0));
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"state\":\"RECEIVED\""), "{answer}");
}

/// Bytes that the agent has not read yet from this connection.
fn received(agent: &Agent, socket: &TcpStream) -> u64 {
    let (local, remote) = (agent.address.port(), socket.local_addr().unwrap().port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = format!(":{local:04X} 0100007F:{remote:04X} ");
    let line = table.lines().find(|line| line.contains(&ends)).unwrap_or_else(|| panic!("{ends} in {table}"));
    let queues = line.split_whitespace().nth(4).unwrap();
    u64::from_str_radix(queues.split_once(':').unwrap().1, 16).unwrap()
}

#[test]
fn the_stream_of_events_begins_where_it_is_asked_to() {
    let site = Site::new("contract-events");
    let agent = without_engine(&site, &[]);
    let id = job_id("events");
    agent.accepted(&manifest(&id, &["true"]));
    agent.accepted(&manifest(&job_id("events-other"), &["true"]));
    let head = agent.get("/api/ledger/head").json()["seq"].as_u64().unwrap();
    let stored = agent.get("/api/ledger").text();
    // Up to the event that is expected last.
    let seqs = |path: &str, headers: &str, last: u64| -> Vec<u64> {
        let mut socket = TcpStream::connect(agent.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\nAccept: text/plain\r\n{headers}\r\n", agent.address);
        socket.write_all(request.as_bytes()).unwrap();
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        let end = format!("id: {last}\n");
        while !text.split_once(&end).is_some_and(|(_, rest)| rest.contains("\n\n")) {
            let read = socket.read(&mut piece).unwrap();
            assert!(read > 0, "the stream ended: {text}");
            text += std::str::from_utf8(&piece[..read]).unwrap();
        }
        assert!(text.starts_with("HTTP/1.0 200 ") || text.starts_with("HTTP/1.1 200 "), "{text}");
        assert!(text.contains("\r\nContent-Type: text/event-stream\r\n"), "{text}");
        let mut seqs = Vec::new();
        for message in text.split("\n\n").filter(|message| message.contains("id: ")) {
            let field = |name: &str| message.lines().find_map(|line| line.strip_prefix(name));
            let seq: u64 = field("id: ").unwrap().parse().unwrap();
            assert_eq!(field("data: "), stored.lines().nth(seq as usize - 1), "the bytes that are stored");
            seqs.push(seq);
        }
        seqs
    };
    let all: Vec<u64> = (1..=head).collect();
    assert_eq!(seqs("/api/events", "", head), all);
    assert_eq!(seqs("/api/events?after=0", "", head), all);
    assert_eq!(seqs("/api/events?after=2", "", head), all[2..]);
    assert_eq!(seqs("/api/events?after=0", "Last-Event-ID: 3\r\n", head), all[3..], "what it has seen goes first");
    let of_job: Vec<u64> =
        all.iter().copied().filter(|seq| stored.lines().nth(*seq as usize - 1).unwrap().contains(&id)).collect();
    assert_eq!(seqs(&format!("/api/events?job={id}"), "", *of_job.last().unwrap()), of_job);
    for (path, headers) in [
        (format!("/api/events?after={}", head + 1), vec![]),
        ("/api/events".to_owned(), vec![("Last-Event-ID", "99999")]),
    ] {
        is_error(&agent.request("GET", &path, &headers, b""), 409, "ahead_of_ledger", &path);
    }
    for value in ["-1", "1.5", "x", "18446744073709551616", "+1", ""] {
        let mut socket = TcpStream::connect(agent.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET /api/events HTTP/1.1\r\nHost: {}\r\nLast-Event-ID: {value}\r\n\r\n", agent.address);
        socket.write_all(request.as_bytes()).unwrap();
        // No more than the start: what is taken by mistake is a stream that does not end.
        let mut start = [0; 12];
        socket.read_exact(&mut start).unwrap();
        assert_eq!(std::str::from_utf8(&start), Ok("HTTP/1.1 400"), "Last-Event-ID: {value:?}");
    }
    let answer = agent.request("GET", "/api/events", &[("Last-Event-ID", "x")], b"");
    is_error(&answer, 400, "bad_header", "Last-Event-ID: x");
}
