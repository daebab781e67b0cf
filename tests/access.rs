//! Who may call a real agent, and that its files are read again on SIGHUP, as a whole, while requests go on. Other sites'
//! pages, and what a browser may make of what payloads wrote.
//! Needs `busybox:latest` in a running Docker Engine for the payload; nothing else starts a container.
#![allow(clippy::unwrap_used)]

mod agent;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use agent::{Agent, Answer, PATIENCE, Site, eventually, job_id, manifest};

const NO_ENGINE: (&str, &str) = ("DOCKER_HOST", "unix:///nonexistent.sock");
const FIRST: &str = "the-first-token-0123456789";
const SECOND: &str = "the-second-token-0123456789";

/// A file whose content is exchanged at once, as an operator's tools do it.
fn write(path: &Path, text: &str, mode: u32) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
    fs::rename(new, path).unwrap();
}

/// SIGHUP, and waits until the agent has said one more time what came of it.
fn hang_up(agent: &Agent) -> String {
    let count = |said: &str| said.lines().filter(|line| line.contains("SIGHUP: ")).count();
    let before = count(&agent.said());
    assert!(Command::new("kill").args(["-HUP", &agent.pid().to_string()]).status().unwrap().success());
    eventually("it says what it has read", || (count(&agent.said()) > before).then_some(()));
    agent.said().lines().rfind(|line| line.contains("SIGHUP: ")).unwrap().to_owned()
}

fn with_token(agent: &Agent, token: &str, path: &str) -> Answer {
    agent.request("GET", path, &[("Authorization", &format!("Bearer {token}"))], b"")
}

struct Files {
    tokens: PathBuf,
    hosts: PathBuf,
    origins: PathBuf,
    images: PathBuf,
}

fn files(site: &Site) -> Files {
    let file = |name: &str| site.dir().join(name);
    let files =
        Files { tokens: file("tokens"), hosts: file("hosts"), origins: file("origins"), images: file("images") };
    write(&files.tokens, &format!("{FIRST}\n"), 0o600);
    write(&files.hosts, "# names\none.mesh\n", 0o644);
    write(&files.origins, "https://one.example\n", 0o644);
    write(&files.images, "busybox:*\n", 0o644);
    files
}

#[test]
fn files_are_read_again_as_a_whole_while_requests_go_on() {
    let site = Site::new("reload");
    let files = files(&site);
    let at = |path: &Path| format!("@{}", path.display());
    let (tokens, hosts, origins) = (files.tokens.display().to_string(), at(&files.hosts), at(&files.origins));
    let mut command = site.serve(&["--token-file", &tokens, "--allow-origin", &origins, "--allow-host", &hosts]);
    // The same from the environment.
    command.env("HACKBRAIN_ALLOW_IMAGE", at(&files.images)).env(NO_ENGINE.0, NO_ENGINE.1);
    let agent = site.start_command(&mut command);
    let host = |name: &str| agent.request("GET", "/healthz", &[("Host", name)], b"").status;
    let origin = |name: &str| agent.request("GET", "/healthz", &[("Origin", name)], b"").status;
    let submit = |token: &str, image: &str| {
        let manifest = format!(r#"{{"job_id":"{}","image_hash":"{image}","command":["true"]}}"#, job_id("image"));
        let headers = [("Authorization", &*format!("Bearer {token}")), ("Content-Type", "application/json")];
        agent.request("POST", "/api/submit_job", &headers, manifest.as_bytes()).status
    };
    let state = |token: &str, n: &str| {
        (
            host(&format!("{n}.mesh")),
            origin(&format!("https://{n}.example")),
            with_token(&agent, token, "/api/jobs").status,
        )
    };
    assert_eq!((state(FIRST, "one"), state(SECOND, "two")), ((200, 200, 200), (403, 403, 401)));
    assert_eq!((submit(FIRST, "busybox:1"), submit(FIRST, "alpine:1")), (200, 403));

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whoever has a token before and after is never refused.
        write(&files.tokens, &format!("{FIRST}\n{SECOND}\n"), 0o600);
        hang_up(&agent);
        let steady = scope.spawn(|| {
            let mut answers = 0;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(with_token(&agent, SECOND, "/api/jobs").status, 200);
                answers += 1;
            }
            answers
        });
        for round in 0..20 {
            let also = if round % 2 == 0 { FIRST } else { "" };
            write(&files.tokens, &format!("{also}\n{SECOND}\n"), 0o600);
            hang_up(&agent);
            assert_eq!(with_token(&agent, FIRST, "/api/jobs").status, if round % 2 == 0 { 200 } else { 401 });
        }
        done.store(true, Ordering::Relaxed);
        assert!(steady.join().unwrap() > 0);
    });

    write(&files.hosts, "two.mesh\n", 0o644);
    write(&files.origins, "https://two.example\n", 0o644);
    write(&files.images, "alpine:*\n", 0o644);
    let said = hang_up(&agent);
    assert!(said.contains(" INFO ") && said.contains("1 tokens, 1 hosts, 1 origins and 1 images"), "{said}");
    assert_eq!((state(FIRST, "one"), state(SECOND, "two")), ((403, 403, 401), (200, 200, 200)));
    assert_eq!((submit(SECOND, "busybox:1"), submit(SECOND, "alpine:1")), (403, 200));
    let node = with_token(&agent, SECOND, "/api/node").json();
    assert_eq!(node["limits"]["allow_image"], serde_json::json!(["alpine:*"]));
    assert!(!agent.said().contains(FIRST) && !agent.said().contains(SECOND), "a token in the log");
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing_and_is_named() {
    let site = Site::new("badreload");
    let files = files(&site);
    let tokens = files.tokens.display().to_string();
    let hosts = format!("@{}", files.hosts.display());
    // Everybody could submit if it were left without tokens.
    let args = ["--listen", "0.0.0.0:0", "--token-file", &tokens, "--allow-host", &hosts];
    let agent = site.start_command(site.serve(&args).env(NO_ENGINE.0, NO_ENGINE.1));
    let holds = |said: String, file: &Path, says: &str| {
        assert!(
            said.contains(" ERROR ") && said.contains(&file.display().to_string()) && said.contains(says),
            "{said}"
        );
        assert_eq!(with_token(&agent, FIRST, "/api/jobs").status, 200);
        assert_eq!(with_token(&agent, SECOND, "/api/jobs").status, 401);
        assert_eq!(agent.get("/api/jobs").status, 401);
        let host = |name: &str| agent.request("GET", "/healthz", &[("Host", name)], b"").status;
        assert_eq!((host("one.mesh"), host("two.mesh")), (200, 403));
    };
    // Sound ones beside a bad one change nothing either.
    write(&files.hosts, "two.mesh\n", 0o644);
    for (text, mode, says) in [
        ("", 0o600, "no token"),
        ("\n  \n", 0o600, "no token"),
        (&*format!("{SECOND}\n"), 0o644, "chmod 600"),
        (&"x".repeat(300_000), 0o600, "bytes"),
    ] {
        write(&files.tokens, text, mode);
        holds(hang_up(&agent), &files.tokens, says);
    }
    fs::remove_file(&files.tokens).unwrap();
    holds(hang_up(&agent), &files.tokens, "No such file");
    assert!(Command::new("mkfifo").args(["-m", "600", &tokens]).status().unwrap().success());
    holds(hang_up(&agent), &files.tokens, "regular file");
    write(&files.tokens, &format!("{SECOND}\n"), 0o600);
    write(&files.hosts, "two words\n", 0o644);
    holds(hang_up(&agent), &files.hosts, "line 1");
    write(&files.hosts, "two.mesh\n", 0o644);
    hang_up(&agent);
    assert_eq!(with_token(&agent, SECOND, "/api/jobs").status, 200, "{}", agent.said());
    assert_eq!(with_token(&agent, FIRST, "/api/jobs").status, 401);
}

#[test]
fn starts_with_bad_lists_end_and_short_tokens_are_warned_of() {
    let site = Site::new("badlists");
    let list = site.dir().join("list");
    let given = format!("@{}", list.display());
    for flag in ["--allow-host", "--allow-origin", "--allow-image"] {
        let ended = site.refused(&[flag, &given]);
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(flag) && ended.stderr.contains(&given), "{ended:?}");
    }
    let tokens = site.dir().join("tokens");
    write(&tokens, "short\na-token-that-is-long-enough\n", 0o600);
    let path = tokens.display().to_string();
    let agent = site.start_command(site.serve(&["--token-file", &path]).env(NO_ENGINE.0, NO_ENGINE.1));
    let said = agent.said();
    let warned = said.lines().find(|line| line.contains(" WARN ") && line.contains("16 characters")).expect(&said);
    assert!(warned.contains("1 of 2 tokens") && warned.contains(&path) && !said.contains("short\n"), "{warned}");
    if fs::metadata("/proc/self").is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0) {
        std::os::unix::fs::chown(&tokens, Some(65534), None).unwrap();
        let ended = Site::new("foreign").refused(&["--token-file", &path]);
        assert!(ended.code == Some(64) && ended.stderr.contains("belongs to user 65534"), "{ended:?}");
    }
}

#[test]
fn a_stream_ends_with_its_token_and_no_other_does() {
    let site = Site::new("revoked");
    let tokens = site.dir().join("tokens");
    write(&tokens, &format!("{FIRST}\n{SECOND}\n"), 0o600);
    let path = tokens.display().to_string();
    let agent = site.start_command(site.serve(&["--token-file", &path]).env(NO_ENGINE.0, NO_ENGINE.1));
    let open = |token: &str| {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head =
            format!("GET /api/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {token}\r\n\r\n", agent.address);
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = Vec::new();
        while !text.windows(7).any(|window| window == b"NODE_UP") {
            let mut piece = [0; 4096];
            let n = stream.read(&mut piece).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&piece[..n]);
        }
        stream
    };
    let (mut revoked, mut kept) = (open(FIRST), open(SECOND));
    hang_up(&agent);
    write(&tokens, &format!("{SECOND}\n"), 0o600);
    hang_up(&agent);
    let (mut rest, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        let mut piece = [0; 4096];
        match revoked.read(&mut piece).unwrap() {
            0 => break,
            n => rest.extend_from_slice(&piece[..n]),
        }
        assert!(Instant::now() < deadline, "it goes on: {}", String::from_utf8_lossy(&rest));
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("not valid any more"), "{rest}");
    assert_eq!(with_token(&agent, FIRST, "/api/events?after=1").status, 401);
    let headers = [("Authorization", &*format!("Bearer {SECOND}")), ("Content-Type", "application/json")];
    let id = job_id("seen");
    let submitted = agent.request("POST", "/api/submit_job", &headers, manifest(&id, &["true"]).to_string().as_bytes());
    assert_eq!(submitted.status, 200, "{}", submitted.text());
    let mut text = String::new();
    while !text.contains(&id) {
        let mut piece = [0; 4096];
        let n = kept.read(&mut piece).unwrap();
        assert!(n > 0, "it ended: {text}");
        text += &String::from_utf8_lossy(&piece[..n]);
    }
}

#[test]
fn pages_of_other_sites_get_nothing() {
    let site = Site::new("crosssite");
    let args = ["--allow-origin", "https://lab.example", "--allow-host", "node.mesh"];
    let agent = site.start_command(site.serve(&args).env(NO_ENGINE.0, NO_ENGINE.1));
    let own = agent.address.to_string();
    let other_port = format!("http://127.0.0.1:{}", agent.address.port() ^ 1);
    let own_origin = format!("http://{own}");
    let plain = &[("Content-Type", "text/plain")];
    let json = &[("Content-Type", "application/json")];
    for (host, origin, status) in [
        (&*own, None, 200),
        (&own, Some(&*own_origin), 200),
        (&own, Some("https://lab.example"), 200),
        ("node.mesh", Some("http://node.mesh"), 200),
        ("localhost", None, 200),
        // A foreign page, one without an origin of its own, and one on another port of ours.
        (&own, Some("https://evil.example"), 403),
        (&own, Some("null"), 403),
        (&own, Some(""), 403),
        (&own, Some(&other_port), 403),
        (&own, Some("https://lab.example.evil.example"), 403),
        (&own, Some("http://lab.example"), 403),
        // A name that was made to mean our address.
        ("evil.example", None, 403),
        ("evil.example:4005", Some("http://evil.example:4005"), 403),
        ("node.mesh.evil.example", None, 403),
        ("127.0.0.1.evil.example", None, 403),
        ("localhost.evil.example", None, 403),
    ] {
        for path in ["/", "/healthz", "/api/jobs", "/metrics", "/api/jobs/none/stdout"] {
            let mut headers = vec![("Host", host)];
            headers.extend(origin.map(|origin| ("Origin", origin)));
            let answer = agent.request("GET", path, &headers, b"");
            let wanted = if status == 200 && path.ends_with("stdout") { 404 } else { status };
            assert_eq!(answer.status, wanted, "{host} {origin:?} {path}: {}", answer.text());
            let shared = answer.header("access-control-allow-origin");
            assert_eq!(shared, origin.filter(|_| status == 200), "{host} {origin:?} {path}");
            assert_eq!(answer.header("access-control-allow-credentials"), None);
        }
    }
    // Without Host there is nothing to rebind; a page's request always has one, and an Origin alone is not believed.
    assert_eq!(agent.raw(b"GET /api/jobs HTTP/1.0\r\n\r\n").status, 200);
    assert_eq!(agent.raw(format!("GET /api/jobs HTTP/1.0\r\nOrigin: {own_origin}\r\n\r\n").as_bytes()).status, 403);
    assert_eq!(agent.raw(b"GET /api/jobs HTTP/1.1\r\n\r\n").status, 400);

    let preflight = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type"),
        ];
        agent.request("OPTIONS", "/api/submit_job", &headers, b"")
    };
    let allowed = preflight("https://lab.example");
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (204, Some("https://lab.example")));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("Authorization"));
    for origin in ["https://evil.example", "null"] {
        let refused = preflight(origin);
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
        // What needs no preflight is refused all the same, and does nothing.
        let body = manifest(&job_id("csrf"), &["true"]).to_string();
        for headers in [plain, json] {
            let headers = [&headers[..], &[("Origin", origin)]].concat();
            assert_eq!(agent.request("POST", "/api/submit_job", &headers, body.as_bytes()).status, 403);
        }
    }
    assert_eq!(agent.request("POST", "/api/submit_job", plain, b"{}").status, 415);
    assert_eq!(agent.get("/api/jobs").json()["jobs"], serde_json::json!([]));
}

#[test]
fn what_payloads_wrote_is_never_a_page_of_ours() {
    let site = Site::new("pages");
    let agent = site.start(&[]);
    let id = job_id("page");
    let script = "echo '<script>alert(1)</script>' | tee evil.html";
    agent.accepted(&manifest(&id, &["sh", "-c", script]));
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    let of = |answer: &Answer, name: &str| answer.header(name).unwrap_or_default().to_owned();
    for path in ["stdout", "stderr", "artifacts/job/workdir/evil.html", "seal", "telemetry", "trace", "bundle", ""] {
        let answer = agent.get(format!("/api/jobs/{id}/{path}").trim_end_matches('/'));
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let content_type = of(&answer, "content-type");
        assert!(content_type.starts_with("application/"), "{path}: {content_type}");
        assert_eq!(of(&answer, "x-content-type-options"), "nosniff", "{path}");
        assert_eq!(of(&answer, "cache-control"), "no-store", "{path}");
        assert_eq!(of(&answer, "cross-origin-resource-policy"), "same-origin", "{path}");
        assert!(of(&answer, "content-security-policy").ends_with("sandbox"), "{path}");
        if path.starts_with("std") || path.starts_with("artifacts") || path == "bundle" {
            assert!(of(&answer, "content-disposition").starts_with("attachment; filename=\""), "{path}");
        }
    }
    for (path, content_type) in [("/", "text/html; charset=utf-8"), ("/app.js", "text/javascript; charset=utf-8")] {
        let answer = agent.get(path);
        assert_eq!((answer.status, &*of(&answer, "content-type")), (200, content_type));
        let policy = of(&answer, "content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert!(!policy.contains("sandbox") && !policy.contains("unsafe"), "{policy}");
        // The checks' worker is made of the page's own functions, by the page's own policy; nothing else becomes a worker.
        for part in ["worker-src blob:;", "require-trusted-types-for 'script'; trusted-types hackbrain"] {
            assert!(policy.contains(part), "{policy}");
            assert!(include_str!("../static/index.html").contains(part), "the page from a file lacks {part}");
        }
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(of(&answer, name), value, "{path} {name}");
        }
        assert!(of(&answer, "permissions-policy").contains("camera=()"));
    }
    // Of an error, too.
    let error = agent.get("/api/jobs/none");
    assert_eq!(
        (error.status, of(&error, "cache-control"), of(&error, "x-frame-options")),
        (404, "no-store".into(), "DENY".into())
    );
}
