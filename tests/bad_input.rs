//! Every bad request against the real binary: refused with its status and code, in words that say what to change, and
//! nothing that was accepted before is lost. Needs a running Docker Engine and `busybox:latest`.
#![allow(clippy::unwrap_used)]

mod agent;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use agent::{Agent, Answer, Site, job_id, manifest};
use serde_json::{Value, json};

/// A job that was accepted before the bad input came, and must be as it was afterwards.
struct Earlier {
    id: String,
    receipt: Value,
}

impl Earlier {
    fn sealed_on(agent: &Agent) -> Self {
        let id = job_id("earlier");
        let receipt = agent.accepted(&manifest(&id, &["true"]));
        assert_eq!(agent.ended(&id)["state"], "SEALED", "{}", agent.said());
        Self { id, receipt }
    }

    /// It is still there, the only one, and the ledger with its event is sound.
    fn alone_is_there(&self, site: &Site, agent: &Agent) {
        let jobs = agent.get("/api/jobs").json();
        assert_eq!(jobs["jobs"].as_array().unwrap().len(), 1, "{jobs}");
        assert_eq!((&jobs["jobs"][0]["job_id"], &jobs["jobs"][0]["state"]), (&json!(self.id), &json!("SEALED")));
        self.is_in_the_ledger(site);
    }

    fn is_in_the_ledger(&self, site: &Site) {
        let (seq, hash) = (&self.receipt["seq"], self.receipt["hash"].as_str().unwrap());
        let verified = site.verify(&["--expect", &format!("{seq}:{hash}")]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
    }
}

#[track_caller]
fn refused(row: &str, answer: &Answer, status: u16, code: &str, field: Option<&str>, says: &str) {
    let context = format!("{row}\n{} {}", answer.status, answer.text());
    assert_eq!(answer.status, status, "{context}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{context}");
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{context}");
    assert_eq!(error["field"].as_str(), field, "{context}");
    assert!(error["message"].as_str().unwrap().contains(says), "it should say {says:?}: {context}");
}

#[test]
fn manifests_that_are_none() {
    let site = Site::new("manifests");
    let agent = site.start(&[]);
    let earlier = Earlier::sealed_on(&agent);
    let with = |more: &str| format!(r#"{{"job_id":"bad","image_hash":"busybox:latest","command":["true"]{more}}}"#);
    let named = |id: &str| format!(r#"{{"job_id":{id},"image_hash":"busybox:latest","command":["true"]}}"#);
    let long_id = named(&format!("\"{}\"", "x".repeat(101)));
    let deep = with(&format!(r#","env":{}{}"#, "[".repeat(200), "]".repeat(200)));
    let argument = format!(r#"{{"job_id":"bad","image_hash":"b","command":["{}"]}}"#, "x".repeat(200_000));
    let rows: Vec<(String, &str, Option<&str>, &str)> = vec![
        (String::new(), "not_json", None, "send one JSON object"),
        ("{".into(), "not_json", None, "line 1 column 1"),
        ("{'job_id':'bad'}".into(), "not_json", None, "line 1 column 2"),
        (with("") + " {}", "not_json", None, "trailing"),
        (with(r#","timeout_s":1e999"#), "not_json", None, "number out of range"),
        (with(r#","env":{"A":"\ud800"}"#), "not_json", None, "column"),
        (deep, "not_json", None, "recursion"),
        ("[]".into(), "not_an_object", None, "one JSON object"),
        ("null".into(), "not_an_object", None, "one JSON object"),
        ("{}".into(), "missing_field", Some("job_id"), "required"),
        (r#"{"job_id":"bad","image_hash":"b"}"#.into(), "missing_field", Some("command"), "required"),
        (named("null"), "missing_field", Some("job_id"), "required"),
        (named("7"), "wrong_type", Some("job_id"), "a string"),
        (r#"{"job_id":"bad","image_hash":"b","command":"ls -l"}"#.into(), "wrong_type", Some("command"), "a list"),
        (r#"{"job_id":"bad","image_hash":"b","command":["a",1]}"#.into(), "wrong_type", Some("command[1]"), "a string"),
        (
            r#"{"job_id":"bad","image_hash":"b","command":[]}"#.into(),
            "invalid_value",
            Some("command"),
            "give the program",
        ),
        (
            r#"{"job_id":"bad","image_hash":"b","command":["a\u0000"]}"#.into(),
            "invalid_value",
            Some("command[0]"),
            "NUL",
        ),
        (argument, "too_large", Some("command[0]"), "put it into a file"),
        (with(r#","env":["A=b"]"#), "wrong_type", Some("env"), "an object of strings"),
        (with(r#","env":{"A":1}"#), "wrong_type", Some("env.A"), "a string"),
        (with(r#","env":{"A=B":"x"}"#), "invalid_value", Some("env"), "[A-Za-z_]"),
        (with(r#","timeout_s":"60""#), "wrong_type", Some("timeout_s"), "a whole number"),
        (with(r#","timeout_s":0"#), "invalid_value", Some("timeout_s"), "from 1"),
        (with(r#","timeout_s":-1"#), "invalid_value", Some("timeout_s"), "from 1"),
        (with(r#","max_attempts":1.5"#), "wrong_type", Some("max_attempts"), "a whole number"),
        (with(r#","max_attempts":0"#), "invalid_value", Some("max_attempts"), "from 1 to 100"),
        (with(r#","network":"host""#), "invalid_value", Some("network"), "`none` or `bridge`"),
        (with(r#","network":false"#), "wrong_type", Some("network"), "a string"),
        (with(r#","resources":{"memory":64}"#), "unknown_field", Some("resources.memory"), "resources.memory_mib"),
        (with(r#","resources":{"cpus":"2"}"#), "wrong_type", Some("resources.cpus"), "a number"),
        (with(r#","resources":{"cpus":0}"#), "invalid_value", Some("resources.cpus"), "from 0.01"),
        (with(r#","resources":{"memory_mib":1}"#), "invalid_value", Some("resources.memory_mib"), "from 6"),
        (with(r#","resources":{"pids":0}"#), "invalid_value", Some("resources.pids"), "from 1"),
        (with(r#","depends_on":["bad"]"#), "invalid_value", Some("depends_on[0]"), "own id"),
        (with(r#","depends_on":["a","a"]"#), "invalid_value", Some("depends_on[1]"), "second time"),
        (with(r#","priority":1"#), "unknown_field", Some("priority"), "the fields are"),
        (with(r#","timeout":1"#), "unknown_field", Some("timeout"), "did you mean `timeout_s`?"),
        (with(r#","job_id":"bad""#), "duplicate_field", Some("job_id"), "give it once"),
        (with(r#","env":{"A":"1","A":"1"}"#), "duplicate_field", Some("env.A"), "give it once"),
        (with(r#","mount_spec":7"#), "wrong_type", Some("mount_spec"), "HOST:CONTAINER"),
        (named(r#""""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#""-rf""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#"".hidden""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#""../../etc""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#""a/b""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#""a b""#), "invalid_value", Some("job_id"), "letter or digit"),
        (named(r#""a\nb""#), "invalid_value", Some("job_id"), r"`a\nb`"),
        (named(r#""jöb""#), "invalid_value", Some("job_id"), "letter or digit"),
        (long_id, "invalid_value", Some("job_id"), "at most 100"),
        (
            r#"{"job_id":"bad","image_hash":"","command":["a"]}"#.into(),
            "invalid_value",
            Some("image_hash"),
            "image reference",
        ),
        (
            r#"{"job_id":"bad","image_hash":"--privileged","command":["a"]}"#.into(),
            "invalid_value",
            Some("image_hash"),
            "image reference",
        ),
        (
            r#"{"job_id":"bad","image_hash":"sha256:12","command":["a"]}"#.into(),
            "invalid_value",
            Some("image_hash"),
            "64",
        ),
    ];
    for (body, code, field, says) in &rows {
        let row: String = body.chars().take(200).collect();
        refused(&row, &agent.post("/api/submit_job", body.as_bytes()), 400, code, *field, says);
    }
    let not_utf8 = b"{\"job_id\":\"\xff\"}";
    refused("not UTF-8", &agent.post("/api/submit_job", not_utf8), 400, "not_json", None, "column");
    earlier.alone_is_there(&site, &agent);
}

#[test]
fn what_this_agent_does_not_allow() {
    let site = Site::new("admission");
    let agent = site.start(&["--allow-image", "busybox:*"]);
    let earlier = Earlier::sealed_on(&agent);
    let rows = [
        (json!({"image_hash": "python:3.9-slim"}), 403, "image_not_allowed", "image_hash", "busybox:*"),
        (json!({"image_hash": "evil/busybox:latest"}), 403, "image_not_allowed", "image_hash", "allowed are"),
        (json!({"network": "bridge"}), 403, "network_not_allowed", "network", "--allow-network"),
        (
            json!({"resources": {"memory_mib": 1 << 30}}),
            400,
            "resources_exceed_host",
            "resources.memory_mib",
            "this host has",
        ),
        (json!({"resources": {"cpus": 4096}}), 400, "resources_exceed_host", "resources.cpus", "this host has"),
    ];
    for (change, status, code, field, says) in rows {
        let mut bad = manifest(&job_id("refused"), &["true"]);
        bad.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        refused(&bad.to_string(), &agent.submit(&bad), status, code, Some(field), says);
    }
    earlier.alone_is_there(&site, &agent);
}

#[test]
fn mounts() {
    let site = Site::new("mounts");
    let agent = site.start(&[]);
    let earlier = Earlier::sealed_on(&agent);
    let root = site.root().display().to_string();
    let outside = site.dir().join("outside");
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::create_dir_all(site.dir().join("root2/x")).unwrap();
    let inside = site.mountable("inside/deep");
    symlink(&outside, site.root().join("out")).unwrap();
    symlink(&inside, site.root().join("in")).unwrap();
    symlink("../..", site.mountable("a").join("up")).unwrap();
    symlink(site.root().join("nowhere"), site.root().join("dangling")).unwrap();
    symlink(site.root().join("round"), site.root().join("round")).unwrap();
    fs::write(site.root().join("file"), "x").unwrap();
    let (beside, data) = (site.dir().display(), site.data());
    let deep = "d/".repeat(2100) + "d";
    let rows: Vec<(String, u16, &str, &str)> = vec![
        ("/etc".into(), 403, "mount_outside_roots", "--mount-root"),
        (format!("{beside}/outside"), 403, "mount_outside_roots", "--mount-root"),
        (format!("{beside}/root2/x"), 403, "mount_outside_roots", "--mount-root"),
        (root.clone(), 403, "mount_outside_roots", "below"),
        (format!("{beside}"), 403, "mount_outside_roots", "--mount-root"),
        (format!("{}", data.display()), 403, "mount_outside_roots", "--mount-root"),
        (format!("{root}/../outside"), 400, "invalid_mount", "`..`"),
        (format!("{root}/inside/../../outside"), 400, "invalid_mount", "`..`"),
        (format!("{root}/./inside"), 400, "invalid_mount", "`.`"),
        (format!("{root}//inside"), 400, "invalid_mount", "empty component"),
        (format!("{root}/inside/"), 400, "invalid_mount", "empty component"),
        ("root/inside".into(), 400, "invalid_mount", "absolute"),
        ("/".into(), 400, "invalid_mount", "root directory"),
        (format!("{root}/a,readonly"), 400, "invalid_mount", "rename"),
        (format!("{root}/{deep}"), 400, "invalid_mount", "4095"),
        (format!("{root}/out"), 403, "mount_symlink", "real path"),
        (format!("{root}/out/deep"), 403, "mount_symlink", "real path"),
        (format!("{root}/in"), 403, "mount_symlink", "real path"),
        (format!("{root}/a/up"), 403, "mount_symlink", "real path"),
        (format!("{root}/a/up/outside/deep"), 403, "mount_symlink", "real path"),
        (format!("{root}/dangling"), 403, "mount_symlink", "real path"),
        (format!("{root}/round/x"), 403, "mount_symlink", "real path"),
        (format!("{root}/missing"), 400, "mount_missing", "create it first"),
        (format!("{root}/inside/missing/deeper"), 400, "mount_missing", "create it first"),
        (format!("{root}/file"), 400, "mount_not_directory", "only directories"),
        (format!("{root}/file/x"), 400, "mount_not_directory", "only directories"),
    ];
    for (host, status, code, says) in &rows {
        let mut bad = manifest(&job_id("mount"), &["true"]);
        bad["mount_spec"] = json!(format!("{host}:/job/workdir"));
        let answer = agent.submit(&bad);
        let row: String = host.chars().take(200).collect();
        refused(&row, &answer, *status, code, Some("mount_spec"), says);
    }
    let mut bad = manifest(&job_id("mount"), &["true"]);
    for (spec, field, says) in [
        (json!(["/x"]), "mount_spec[0]", "HOST:CONTAINER"),
        (json!([format!("{root}/inside:/etc")]), "mount_spec[0]", "cover /etc"),
        (json!([format!("{root}/inside:/w"), format!("{root}/a:/w/b")]), "mount_spec[1]", "none lies in another"),
        (json!(format!("{root}/inside:/w:rx")), "mount_spec", "`ro` or `rw`"),
        (json!(format!("{root}/inside:/w/../../etc")), "mount_spec", "`..`"),
        (json!("job:../x:/w"), "mount_spec", "names the job"),
    ] {
        bad["mount_spec"] = spec.clone();
        refused(&spec.to_string(), &agent.submit(&bad), 400, "invalid_mount", Some(field), says);
    }
    earlier.alone_is_there(&site, &agent);

    // What is not bad at all: the directory behind the links, by its own name.
    let id = job_id("mount");
    let mut good = manifest(&id, &["touch", "/job/workdir/made"]);
    good["mount_spec"] = json!(format!("{}:/job/workdir", inside.display()));
    agent.accepted(&good);
    assert_eq!(agent.ended(&id)["state"], "SEALED", "{}", agent.get(&format!("/api/jobs/{id}/trace")).text());
    assert!(inside.join("made").exists());
}

#[test]
fn the_data_directory_is_never_mounted() {
    let site = Site::new("datamount");
    let data = site.root().join("holds/data");
    let data_text = data.display().to_string();
    let mut command = site.serve(&["--data", &data_text]);
    // The last --data counts, were it given twice; it is not allowed to be.
    let twice = agent::Ended::of(&mut command);
    assert_eq!(twice.code, Some(64), "{twice:?}");
    let mut command = agent::hackbrain();
    command.args(["serve", "--listen", "127.0.0.1:0", "--segment-size", "4194304", "--data", &data_text]);
    command.arg("--mount-root").arg(site.root());
    let agent = Agent::spawn(&mut command).unwrap();
    let holds = site.root().join("holds").display().to_string();
    for host in [&holds, &data_text, &format!("{data_text}/wal")] {
        let mut bad = manifest(&job_id("mount"), &["true"]);
        bad["mount_spec"] = json!(format!("{host}:/w:ro"));
        refused(host, &agent.submit(&bad), 403, "mount_of_data_dir", Some("mount_spec"), "mount another directory");
    }
    assert_eq!(agent.get("/api/jobs").json()["jobs"], json!([]));
}

#[test]
fn requests() {
    let site = Site::new("requests");
    let agent = site.start(&[]);
    let earlier = Earlier::sealed_on(&agent);
    let id = &earlier.id;
    let get = |path: &str, status, code, field, says| refused(path, &agent.get(path), status, code, field, says);

    for path in ["/api/node", "/api/ledger/head", &format!("/api/jobs/{id}/trace"), &format!("/api/jobs/{id}/seal")] {
        get(&format!("{path}?x=1"), 400, "unknown_parameter", Some("x"), "takes: none");
    }
    get("/api/jobs?pahse=ended", 400, "unknown_parameter", Some("pahse"), "phase, state");
    get("/api/jobs?limit=1&limit=2", 400, "bad_parameter", Some("limit"), "send it once");
    get("/api/jobs?limit=ten", 400, "bad_parameter", Some("limit"), "a whole number");
    get("/api/jobs?limit=-1", 400, "bad_parameter", Some("limit"), "a whole number");
    get("/api/jobs?after=xyz", 400, "bad_parameter", Some("after"), "a whole number");
    get("/api/jobs?after=", 400, "bad_parameter", Some("after"), "a whole number");
    get("/api/jobs?after=18446744073709551616", 400, "bad_parameter", Some("after"), "a whole number");
    get("/api/jobs?state=sealed", 400, "bad_parameter", Some("state"), "SEALED");
    get("/api/jobs?phase=done", 400, "bad_parameter", Some("phase"), "waiting, active or ended");
    get("/api/jobs?execution_hash=12", 400, "bad_parameter", Some("execution_hash"), "64");
    get("/api/ledger?from=one", 400, "bad_parameter", Some("from"), "a whole number");
    get(&format!("/api/jobs/{id}?wait=forever"), 400, "bad_parameter", Some("wait"), "SEALED");
    get(&format!("/api/jobs/{id}?wait=SEALED&timeout_s=soon"), 400, "bad_parameter", Some("timeout_s"), "whole number");
    get(&format!("/api/jobs/{id}/stdout?attempt=x"), 400, "bad_parameter", Some("attempt"), "whole number");
    get(&format!("/api/jobs/{id}/stdout?attempt=9"), 404, "no_such_attempt", Some("attempt"), "at attempt 1");
    get("/api/events?after=9999", 409, "ahead_of_ledger", Some("after"), "/api/ledger/head");
    get("/api/events?since=1", 400, "unknown_parameter", Some("since"), "after, job");
    let answer = agent.request("GET", "/api/events", &[("Last-Event-ID", "abc")], b"");
    refused("Last-Event-ID", &answer, 400, "bad_header", Some("Last-Event-ID"), "must be a seq");
    get("/api/node?a=%zz", 400, "bad_target", None, "two hex digits");

    get("/api/jobs/nobody", 404, "no_such_job", Some("job_id"), "GET /api/jobs");
    for below in ["trace", "stdout", "stderr", "seal"] {
        get(&format!("/api/jobs/nobody/{below}"), 404, "no_such_job", Some("job_id"), "GET /api/jobs");
    }
    for path in ["/api", "/api/", "/api/nodes", "/api/jobs/", "/api/jobs/a/b/c", "/../etc/passwd", "/%2e%2e/etc/passwd"]
    {
        assert_eq!(agent.get(path).status, 404, "{path}");
    }
    for hostile in ["..%2f..%2f..%2fetc%2fpasswd", "%2e%2e", "a%0ab", "%2e%2e%2fwal", &format!("{id}%2f..%2f{id}")] {
        assert_eq!(agent.get(&format!("/api/jobs/{hostile}/stdout")).status, 404, "{hostile}");
    }
    refused("cancel", &agent.post("/api/jobs/nobody/cancel", b""), 404, "no_such_job", Some("job_id"), "GET /api/jobs");

    let json = [("Content-Type", "application/json")];
    for (method, path, allow) in [
        ("GET", "/api/submit_job", "POST, OPTIONS"),
        ("POST", "/api/jobs", "GET, HEAD, OPTIONS"),
        ("PUT", "/api/submit_job", "POST, OPTIONS"),
        ("DELETE", &format!("/api/jobs/{id}"), "GET, HEAD, OPTIONS"),
        ("GET", &format!("/api/jobs/{id}/cancel"), "POST, OPTIONS"),
        ("POST", "/", "GET, HEAD, OPTIONS"),
        ("TRACE", "/healthz", "GET, HEAD, OPTIONS"),
    ] {
        let length: &[_] = if method == "PUT" { &[("Content-Length", "0")] } else { &[] };
        let answer = agent.request(method, path, length, b"");
        refused(&format!("{method} {path}"), &answer, 405, "method_not_allowed", None, allow);
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
    }

    let raw = |text: &str| agent.raw(text.as_bytes());
    let no_length = "POST /api/submit_job HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\r\n";
    refused("411", &raw(no_length), 411, "length_required", Some("content-length"), "Content-Length");
    let big = vec![b' '; (1 << 20) + 1];
    refused("413", &agent.post("/api/submit_job", &big), 413, "body_too_large", None, "1048576");
    let huge = [json[0], ("Content-Length", "1152921504606846976")];
    refused(
        "413, told",
        &agent.request("POST", "/api/submit_job", &huge, b""),
        413,
        "body_too_large",
        None,
        "send less",
    );
    let chunked = [json[0], ("Transfer-Encoding", "chunked")];
    let answer = agent.request("POST", "/api/submit_job", &chunked, b"100001\r\n");
    refused("413, chunked", &answer, 413, "body_too_large", None, "send less");
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        let answer = agent.request("POST", "/api/submit_job", &[("Content-Type", content_type)], b"{}");
        refused(content_type, &answer, 415, "content_type", Some("Content-Type"), "application/json");
    }
    refused(
        "415",
        &agent.request("POST", "/api/submit_job", &[], b"{}"),
        415,
        "content_type",
        Some("Content-Type"),
        "send",
    );
    let cookie = "x".repeat(17 << 10);
    let answer = agent.request("GET", "/api/node", &[("Cookie", &cookie)], b"");
    refused("431", &answer, 431, "head_too_large", None, "16384");
    let answer = raw("GET /api/node HTTP/2.0\r\nHost: a\r\n\r\n");
    refused("505", &answer, 505, "version_not_supported", None, "HTTP/1.1");
    refused("400", &raw("GET /api/node HTTP/1.1\r\n\r\n"), 400, "bad_host", Some("host"), "Host");
    let both = [json[0], ("Content-Length", "2"), ("Transfer-Encoding", "chunked")];
    let answer = agent.request("POST", "/api/submit_job", &both, b"{}");
    refused("two lengths", &answer, 400, "bad_framing", Some("content-length"), "not both");

    for host in ["evil.example", "evil.example:4005", "127.0.0.1.evil.example"] {
        let answer = agent.request("GET", "/api/node", &[("Host", host)], b"");
        refused(host, &answer, 403, "foreign_host", Some("Host"), "--allow-host");
    }
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        let answer = agent.request("POST", "/api/submit_job", &[json[0], ("Origin", origin)], b"{}");
        refused(origin, &answer, 403, "foreign_origin", Some("Origin"), "--allow-origin");
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let own = format!("http://{}", agent.address);
    let answer = agent.request("GET", "/api/node", &[("Origin", &own)], b"");
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(own.as_str())));
    earlier.alone_is_there(&site, &agent);
}

#[test]
fn a_missing_image_fails_the_job_with_the_engines_words() {
    let site = Site::new("image");
    let image = |agent: &Agent, reference: &str| {
        let id = job_id("image");
        let mut bad = manifest(&id, &["true"]);
        bad["image_hash"] = json!(reference);
        agent.accepted(&bad);
        let job = agent.ended(&id);
        assert_eq!((&job["state"], &job["reason"]), (&json!("FAILED"), &json!("image")), "{reference}: {job}");
        let trace = agent.get(&format!("/api/jobs/{id}/trace")).text();
        let last: Value = serde_json::from_str(trace.lines().last().unwrap()).unwrap();
        assert_eq!(last["state"], "FAILED", "{trace}");
        last["detail"]["message"].as_str().unwrap().to_owned()
    };
    let absent = format!("sha256:{}", "0".repeat(64));

    // Nothing listens on port 1. More such jobs than there are threads that schedule, so that none may hold one up.
    let agent = site.start(&[]);
    for _ in 0..3 {
        let message = image(&agent, "localhost:1/none:1");
        assert!(message.contains("Error response from daemon") && message.contains("localhost:1"), "{message}");
    }
    let message = image(&agent, &absent);
    assert!(!message.is_empty());
    let earlier = Earlier::sealed_on(&agent);
    assert_eq!(agent.get("/api/node").json()["engine"]["available"], true, "an absent image is no absent engine");
    assert_eq!(agent.terminate(), Some(0));

    let agent = site.start(&["--pull", "never"]);
    for reference in ["localhost:1/none:1", &absent] {
        let message = image(&agent, reference);
        assert!(message.contains("--pull never") && message.contains(reference), "{message}");
    }
    assert_eq!(agent.get("/api/jobs?state=FAILED").json()["jobs"].as_array().unwrap().len(), 6);
    earlier.is_in_the_ledger(&site);
}

#[test]
fn one_id_is_one_manifest_also_after_a_crash() {
    let site = Site::new("sameid");
    let agent = site.start(&[]);
    let id = job_id("same");
    let first = manifest(&id, &["sh", "-c", "echo once >> /job/workdir/runs"]);
    let receipt = agent.accepted(&first);
    assert_eq!((&receipt["duplicate"], &receipt["state"]), (&json!(false), &json!("RECEIVED")));
    let mut other = first.clone();
    other["command"] = json!(["false"]);
    let mut same_in_other_words = first.clone();
    same_in_other_words["timeout_s"] = Value::Null;
    let spelled = format!(
        " {{ \"command\":{}, \"image_hash\":\"busybox:latest\",\n\"job_id\":\"\\u{:04x}{}\" }}",
        first["command"],
        u32::from(id.chars().next().unwrap()),
        &id[1..]
    );
    let repeats = |agent: &Agent| {
        for body in [first.to_string(), same_in_other_words.to_string(), spelled.clone()] {
            let answer = agent.post("/api/submit_job", body.as_bytes());
            assert_eq!(answer.status, 200, "{body}: {}", answer.text());
            let again = answer.json();
            assert_eq!(again["duplicate"], true, "{again}");
            assert_eq!((&again["seq"], &again["hash"]), (&receipt["seq"], &receipt["hash"]));
        }
    };
    let check = |agent: &Agent| {
        let answer = agent.submit(&other);
        refused("another manifest", &answer, 409, "job_exists", Some("job_id"), &id);
        repeats(agent);
    };
    check(&agent);
    agent.kill();
    let agent = site.start(&[]);
    check(&agent);
    assert_eq!(agent.ended(&id)["state"], "SEALED", "{}", agent.said());
    check(&agent);
    agent.kill();
    // The image is not allowed any more: what was accepted stays accepted.
    let agent = site.start(&["--allow-image", "nothing"]);
    repeats(&agent);
    let received = site.dump(&["--job", &id]).stdout.matches("\"state\":\"RECEIVED\"").count();
    assert_eq!(received, 1, "a repeated submission writes no event");
    assert_eq!(agent.get("/api/jobs").json()["jobs"].as_array().unwrap().len(), 1);
    let expected = format!("{}:{}", receipt["seq"], receipt["hash"].as_str().unwrap());
    assert_eq!(site.verify(&["--expect", &expected]).code, Some(0));
}

#[test]
fn tokens() {
    let site = Site::new("tokens");
    let file = site.dir().join("tokens");
    fs::write(&file, "first-token\nsecond-token\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = site.start(&["--token-file", &file.display().to_string()]);
    let body = manifest(&job_id("token"), &["true"]).to_string();
    let ask = |method: &str, path: &str, authorization: Option<&str>| {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(authorization.map(|value| ("Authorization", value)));
        agent.request(method, path, &headers, if method == "POST" { body.as_bytes() } else { b"" })
    };
    let routes = [
        ("POST", "/api/submit_job"),
        ("POST", "/api/jobs/x/cancel"),
        ("GET", "/api/jobs"),
        ("GET", "/api/jobs/x"),
        ("GET", "/api/jobs/x/trace"),
        ("GET", "/api/jobs/x/stdout"),
        ("GET", "/api/jobs/x/seal"),
        ("GET", "/api/events"),
        ("GET", "/api/ledger"),
        ("GET", "/api/ledger/head"),
        ("GET", "/api/node"),
    ];
    for (method, path) in routes {
        for wrong in [None, Some("Bearer first-toke"), Some("Bearer"), Some("Basic first-token"), Some("first-token")] {
            let answer = ask(method, path, wrong);
            let row = format!("{method} {path} {wrong:?}");
            refused(&row, &answer, 401, "unauthorized", Some("Authorization"), "Authorization: Bearer TOKEN");
        }
    }
    assert_eq!(agent.get("/healthz").status, 200, "a probe has no token");
    assert_eq!(ask("GET", "/api/jobs", Some("Bearer first-token")).json()["jobs"], json!([]), "nobody got in");
    assert_eq!(ask("POST", "/api/submit_job", Some("Bearer second-token")).status, 200);
    assert!(!agent.said().contains("first-token"), "a token in the log");
}
