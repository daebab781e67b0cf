//! Mount safety, with the real agent over HTTP and the real engine: what is refused, what a payload sees, and somebody who
//! swaps directories while jobs start. `HACKBRAIN_SWAP_STARTS`: how many starts the last of these takes.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs, unsafe_code)]

mod agent;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, PATIENCE, Site, eventually, job_id, manifest};
use serde_json::{Value, json};

/// Status, code, what the message says.
type Refusal<'a> = (u16, &'a str, &'a str);

/// Everything below a directory, and what it is; nothing is followed.
fn listing(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let meta = entry.metadata().unwrap();
        found.insert(format!("{:?} {:o} {}", entry.path(), meta.mode(), meta.len() * u64::from(meta.is_file())));
        if meta.is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found
}

/// What a refused submission could leave anywhere in the site; the ledger's segments are none of it.
fn world(site: &Site) -> BTreeSet<String> {
    let wal = format!("{:?}", site.data().join("wal"));
    let mut all = listing(site.dir());
    all.retain(|line| !line.starts_with(wal.trim_end_matches('"')));
    all
}

/// Submits a job with this `mount_spec`, which must be refused, and leave nothing behind.
fn refused(site: &Site, agent: &Agent, spec: &Value, (status, code, says): Refusal<'_>) {
    let before = world(site);
    let id = job_id("refused");
    let mut job = manifest(&id, &["true"]);
    job["mount_spec"] = spec.clone();
    let answer = agent.submit(&job);
    let error = &answer.json()["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert_eq!((answer.status, error["code"].as_str()), (status, Some(code)), "{spec}: {}", answer.text());
    assert!(message.contains(says), "{spec}: {says:?} is not in {message:?}");
    assert!(error["field"].as_str().is_some_and(|field| field.starts_with("mount_spec")), "{}", answer.text());
    assert_eq!(agent.get(&format!("/api/jobs/{id}")).status, 404, "{spec} is in the ledger");
    assert_eq!(world(site), before, "{spec} changed something");
}

fn at(host: &Path) -> Value {
    format!("{}:/w", host.display()).into()
}

fn ended(agent: &Agent, id: &str) -> Value {
    eventually(&format!("{id} ends"), || {
        Some(agent.get(&format!("/api/jobs/{id}")).json()).filter(|job| job["phase"] == "ended")
    })
}

/// What FAILED says.
fn failure(agent: &Agent, id: &str) -> (String, String) {
    let trace = agent.get(&format!("/api/jobs/{id}/trace")).text();
    let last: Value = serde_json::from_str(trace.lines().last().unwrap()).unwrap();
    let of = |name: &str| last["detail"][name].as_str().unwrap_or_default().to_owned();
    (of("reason"), of("message"))
}

/// Runs a shell line in busybox to its end; what it printed.
fn output(agent: &Agent, spec: &Value, line: &str) -> String {
    let id = job_id("shown");
    let mut job = manifest(&id, &["sh", "-c", line]);
    job["mount_spec"] = spec.clone();
    agent.accepted(&job);
    let summary = agent.ended(&id);
    let text = |stream: &str| agent.get(&format!("/api/jobs/{id}/{stream}")).text();
    assert_eq!(summary["state"], "SEALED", "{summary} {:?} {}", failure(agent, &id), text("stderr"));
    text("stdout")
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_a_path_leads_to_is_refused_unless_it_is_a_directory_in_plain_sight() {
    let site = Site::new("leads");
    let root = site.root();
    site.mountable("a/b/c");
    let outside = site.dir().join("outside");
    fs::create_dir_all(outside.join("b/c")).unwrap();
    fs::write(root.join("a/file"), "x").unwrap();
    run("mkfifo", &[root.join("a/fifo").to_str().unwrap()]);
    let _socket = UnixListener::bind(root.join("a/socket")).unwrap();
    run("mknod", &[root.join("a/device").to_str().unwrap(), "c", "1", "3"]);
    assert!(fs::metadata(root.join("a/device")).unwrap().file_type().is_char_device());
    for (link, target) in [
        ("first", root.join("a")),
        ("a/middle", "b".into()),
        ("a/b/last", "c".into()),
        ("a/out", "../../outside/b".into()),
        ("a/dangling", "/nowhere".into()),
        ("a/loop", "loop".into()),
        ("a/ping", "pong".into()),
        ("a/pong", "ping".into()),
        ("a/magic", "/proc/self/root".into()),
        ("a/cwd", "/proc/self/cwd".into()),
        ("a/fd", "/proc/self/fd/0".into()),
        ("a/up", "..".into()),
        ("a/self", ".".into()),
    ] {
        symlink(target, root.join(link)).unwrap();
    }
    let agent = site.start(&[]);
    let path = |relative: &str| format!("{}/{relative}", root.display());
    for (relative, link) in [
        ("first/b/c", "first"),
        ("a/middle/c", "a/middle"),
        ("a/b/last", "a/b/last"),
        ("a/out", "a/out"),
        ("a/out/c", "a/out"),
        ("a/dangling", "a/dangling"),
        ("a/dangling/x", "a/dangling"),
        ("a/loop", "a/loop"),
        ("a/ping/x", "a/ping"),
        ("a/magic/etc", "a/magic"),
        ("a/cwd", "a/cwd"),
        ("a/fd", "a/fd"),
        ("a/up/a", "a/up"),
        ("a/self/b", "a/self"),
    ] {
        let says = format!("{:?} is a symbolic link", path(link));
        refused(&site, &agent, &at(&root.join(relative)), (403, "mount_symlink", &says));
    }
    for (relative, code, says) in [
        ("a/file", "mount_not_directory", "is a file; only directories"),
        ("a/file/x", "mount_not_directory", "a/file\" is a file"),
        ("a/fifo", "mount_not_directory", "is a fifo"),
        ("a/socket", "mount_not_directory", "is a socket"),
        ("a/device", "mount_not_directory", "is a device"),
        ("missing", "mount_missing", "create it first"),
        ("a/missing/x/y", "mount_missing", "a/missing\" does not exist"),
    ] {
        refused(&site, &agent, &at(&root.join(relative)), (400, code, says));
        refused(&site, &agent, &format!("{}:/w:ro", path(relative)).into(), (400, code, says));
    }
    for (host, says) in [
        (path("a/../a/b"), "`..`"),
        (path("a/./b"), "`..`"),
        (path("a//b"), "empty component"),
        (path("a/b/"), "empty component"),
        (path(".."), "`..`"),
        (path("a/../../outside"), "`..`"),
        ("a/b".into(), "absolute"),
        ("./a".into(), "absolute"),
        ("~/a".into(), "absolute"),
        ("$HOME/a".into(), "absolute"),
    ] {
        refused(&site, &agent, &format!("{host}:/w").into(), (400, "invalid_mount", says));
    }
    assert_eq!(output(&agent, &at(&root.join("a/b")), "ls").trim(), "c\nlast", "the plain path is fine");
}

#[test]
fn nothing_is_smuggled_in() {
    let site = Site::new("smuggle");
    let agent = site.start(&[]);
    let good = site.mountable("good").display().to_string();
    let long = format!("{good}/{}", "x".repeat(256));
    let longer = format!("{good}{}", "/x".repeat(2048));
    for (spec, says) in [
        (format!("{good}:/w:rw,shared"), "`ro` or `rw`"),
        (format!("{good}:/w:ro,z"), "`ro` or `rw`"),
        (format!("{good}:/w:ro:z"), "write HOST:CONTAINER"),
        (format!("{good}:/w:Z"), "`ro` or `rw`"),
        (format!("{good}:/w:"), "`ro` or `rw`"),
        (format!("{good}:/w:RO"), "`ro` or `rw`"),
        (format!("{good}:/w:ro "), "`ro` or `rw`"),
        (format!("{good}:/w,readonly"), "','"),
        (format!("{good},readonly:/w"), "','"),
        (format!("{good}:/w,src=/etc"), "','"),
        (format!("{good}\",src=/etc,\":/w"), "'\"'"),
        (format!("{good}:/w\""), "'\"'"),
        (format!("{good}\n:/w"), "'\\n'"),
        (format!("{good}:/w\n--privileged"), "'\\n'"),
        (format!("{good}\r:/w"), "'\\r'"),
        (format!("{good}\t:/w"), "'\\t'"),
        (format!("{good}\u{1b}[2J:/w"), "'\\u{1b}'"),
        (format!("{good}\u{7f}:/w"), "'\\u{7f}'"),
        (format!("{good}\u{9b}:/w"), "'\\u{9b}'"),
        (good.clone(), "write HOST:CONTAINER"),
        (format!("{good}:"), "absolute"),
        (format!(":{good}"), "absolute"),
        (String::new(), "write HOST:CONTAINER"),
        (format!("{long}:/w"), "at most 255 bytes"),
        (format!("{longer}:/w"), "at most 4095 bytes"),
        (format!("{good}:/{}", "x".repeat(256)), "at most 255 bytes"),
        ("job:../x:/w".into(), "names the job"),
    ] {
        refused(&site, &agent, &spec.into(), (400, "invalid_mount", says));
    }
    for spec in [format!("{good}\0:/w"), format!("{good}:/w\0"), format!("{good}:/w\0:ro")] {
        refused(&site, &agent, &spec.as_str().into(), (400, "invalid_mount", "'\\0'"));
        refused(&site, &agent, &json!([spec]), (400, "invalid_value", "NUL"));
    }
    for spec in [json!(7), json!({ "src": good }), json!([["a"]]), json!([good, null])] {
        refused(&site, &agent, &spec, (400, "wrong_type", "must be"));
    }
    let many: Vec<String> = (0..17).map(|number| format!("{good}:/w{number}:ro")).collect();
    refused(&site, &agent, &json!(many), (400, "invalid_mount", "at most 16"));
}

#[test]
fn what_the_host_and_the_agent_live_on_is_refused() {
    let site = Site::new("host");
    // The whole site is a root, with the data directory in it.
    let whole = site.dir().to_str().unwrap();
    let engine_dir = site.mountable("deep/engine");
    let _engine = UnixListener::bind(engine_dir.join("docker.sock")).unwrap();
    let host = format!("unix://{}/docker.sock", engine_dir.display());
    let agent = site.start_command(site.serve(&["--mount-root", whole]).env("DOCKER_HOST", &host));
    for host in [
        "/proc",
        "/proc/1/root",
        "/proc/self/root",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/shm",
        "/etc",
        "/etc/ssl",
        "/root",
        "/home",
        "/var/lib/docker",
        "/var/run",
        "/run",
        "/run/docker",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/var",
        "/usr",
        "/tmp",
    ] {
        refused(&site, &agent, &at(Path::new(host)), (403, "mount_outside_roots", "--mount-root"));
    }
    refused(&site, &agent, &"/:/w".into(), (400, "invalid_mount", "root directory"));
    // Neither a root itself nor what it lies in.
    for outside in [site.dir().to_owned(), site.dir().parent().unwrap().to_owned()] {
        refused(&site, &agent, &at(&outside), (403, "mount_outside_roots", whole));
    }
    let data = site.data();
    for inside in ["", "wal", "logs", "mnt", "inputs", "seals", "scratch"] {
        let path = data.join(inside);
        if path.is_dir() {
            let path = path.to_str().unwrap().trim_end_matches('/').to_owned();
            refused(&site, &agent, &at(Path::new(&path)), (403, "mount_of_data_dir", "the agent's data directory"));
        }
    }
    for holds in ["deep", "deep/engine"] {
        let expected = (403, "mount_of_engine", "where a container engine listens");
        refused(&site, &agent, &at(&site.root().join(holds)), expected);
    }
    refused(&site, &agent, &at(&engine_dir.join("docker.sock")), (400, "mount_not_directory", "is a socket"));
    drop(agent);
    // The data directory one level further down: its ancestors are refused as well.
    let nested = Site::new("host-nested");
    let mut serve = nested.serve(&["--mount-root", nested.dir().to_str().unwrap()]);
    serve.args(["--data"]).arg(nested.root().join("x/y/data"));
    // The last of two `--data` is not taken; it is a usage error, so it is given alone.
    let args: Vec<_> = serve.get_args().map(ToOwned::to_owned).collect();
    let mut alone = agent::hackbrain();
    alone.arg("serve").args(&args[3..]);
    let agent = Agent::spawn(&mut alone).unwrap();
    for above in ["root", "root/x", "root/x/y", "root/x/y/data"] {
        let path = nested.dir().join(above);
        refused(&nested, &agent, &at(&path), (403, "mount_of_data_dir", "is, holds or lies in"));
    }
    for root in ["/", "/proc", "/sys", "/dev", "/run", "/dev/shm", data.to_str().unwrap()] {
        let ended = site.refused(&["--mount-root", root]);
        assert_eq!(ended.code, Some(64), "{root}: {}", ended.stderr);
        assert!(ended.stderr.contains(root) && ended.stderr.contains("mount root"), "{}", ended.stderr);
    }
}

#[test]
fn container_paths_and_mounts_that_meet_are_refused() {
    let site = Site::new("container");
    let agent = site.start(&[]);
    let (good, other) = (site.mountable("good"), site.mountable("other"));
    let inner = site.mountable("good/inner");
    let spec = |container: &str| Value::from(format!("{}:{container}", good.display()));
    for reserved in [
        "/proc",
        "/proc/self",
        "/sys",
        "/dev",
        "/dev/shm",
        "/etc",
        "/etc/passwd",
        "/usr/bin",
        "/usr/bin/env",
        "/usr/sbin",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64",
        "/tmp",
        "/tmp/x",
        "/run",
        "/var/run",
        "/usr",
        "/var",
    ] {
        refused(&site, &agent, &spec(reserved), (400, "invalid_mount", "would cover"));
    }
    for (path, says) in [
        ("/", "root directory"),
        ("w", "absolute"),
        ("./w", "absolute"),
        ("/w/../etc", "`..`"),
        ("/../etc", "`..`"),
        ("/w/.", "`..`"),
        ("/w//x", "empty component"),
        ("/w/", "empty component"),
    ] {
        refused(&site, &agent, &spec(path), (400, "invalid_mount", says));
    }
    for (one, two) in [("/w", "/w"), ("/w", "/w/x"), ("/w/x", "/w")] {
        let both = json!([format!("{}:{one}", good.display()), format!("{}:{two}:ro", other.display())]);
        refused(&site, &agent, &both, (400, "invalid_mount", "none lies in another"));
    }
    // On the host's side: one would change what the other has hashed.
    for (one, two) in [
        (format!("{}:/w", good.display()), format!("{}:/x", good.display())),
        (format!("{}:/w:ro", good.display()), format!("{}:/x", good.display())),
        (format!("{}:/w", good.display()), format!("{}:/x:ro", inner.display())),
        (format!("{}:/w:ro", inner.display()), format!("{}:/x", good.display())),
    ] {
        refused(&site, &agent, &json!([one, two]), (400, "mounts_overlap", "one lies in the other"));
    }
    let both_read = json!([
        at(&other),
        format!("{}:/x:ro", good.display()),
        format!("{}:/y:ro", inner.display()),
        format!("{}:/z:ro", good.display()),
    ]);
    assert_eq!(output(&agent, &both_read, "ls / | grep -c '^[wxyz]$'"), "4\n", "readers do not disturb each other");
    // `/usr/local` hides nothing of the image that matters.
    assert_eq!(output(&agent, &spec("/usr/local/w"), "pwd"), "/usr/local/w\n");
    // An agent that was given no root.
    let bare = Site::new("bare");
    let mut serve = agent::hackbrain();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--segment-size", "4194304", "--data"]).arg(bare.data());
    let agent = bare.start_command(&mut serve);
    for host in ["/etc", "/tmp", good.to_str().unwrap()] {
        let expected = (403, "mount_outside_roots", "start it with --mount-root DIR");
        refused(&bare, &agent, &at(Path::new(host)), expected);
    }
    let id = job_id("scratch");
    agent.accepted(&manifest(&id, &["pwd"]));
    assert_eq!(agent.ended(&id)["state"], "SEALED", "a job without mounts runs all the same");
}

#[test]
fn a_payload_sees_its_mounts_as_their_owner_and_nothing_else_of_the_host() {
    let site = Site::new("sees");
    // A mount that passes mounts on to its copies, as the root of most hosts is.
    let root = site.root();
    let root_text = root.to_str().unwrap();
    run("mount", &["--bind", root_text, root_text]);
    run("mount", &["--make-shared", root_text]);
    let (rw, ro, secret) = (site.mountable("rw"), site.mountable("ro"), site.dir().join("secret"));
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("f"), "secret").unwrap();
    fs::create_dir(rw.join("before")).unwrap();
    fs::create_dir(rw.join("later")).unwrap();
    fs::write(ro.join("f"), "input").unwrap();
    chown(&rw, Some(4711), Some(4712)).unwrap();
    // Even where everybody could write.
    fs::set_permissions(&ro, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(ro.join("f"), fs::Permissions::from_mode(0o666)).unwrap();
    let bind = |at: &str| run("mount", &["--bind", secret.to_str().unwrap(), rw.join(at).to_str().unwrap()]);
    bind("before");
    let agent = site.start(&[]);
    let spec = json!([format!("{}:/job/rw", rw.display()), format!("{}:/job/ro:ro", ro.display())]);
    let line = "id -u; id -g; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status | tr '\\t\\n' '  '; echo; \
        pwd; touch made && echo made; cat /job/ro/f; echo; \
        for c in 'touch /job/ro/x' 'rm /job/ro/f' 'mv /job/ro/f /job/ro/g' 'mkdir /job/ro/d' 'chmod 700 /job/ro' 'touch /x' \
        'mount -t tmpfs t /job/rw/later' 'mount -o remount,rw /job/ro' 'mknod d c 1 3'; do \
        $c >/dev/null 2>&1 && echo \"could $c\"; done; (echo no > /job/ro/f) 2>/dev/null && echo 'could write'; \
        ls before; cut -d' ' -f5 /proc/self/mountinfo | grep -vE '^/(proc|sys|dev)(/|$)' | sort | tr '\\n' ' '; echo; \
        grep -E 'shared:|master:' /proc/self/mountinfo | cut -d' ' -f5; \
        touch ready; until test -e go; do sleep 0.05; done; ls later";
    let id = job_id("sees");
    let mut job = manifest(&id, &["sh", "-c", line]);
    job["mount_spec"] = spec;
    agent.accepted(&job);
    eventually("the payload is ready", || rw.join("ready").exists().then_some(()));
    // What is mounted below the directory once the payload runs must not come in either.
    bind("later");
    fs::write(rw.join("go"), "").unwrap();
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    let seen = agent.get(&format!("/api/jobs/{id}/stdout")).text();
    let expected = [
        "4711",
        "4712",
        "CapBnd: 0000000000000000 CapEff: 0000000000000000 NoNewPrivs: 1 ",
        "/job/rw",
        "made",
        "input",
        "/ /etc/hostname /etc/hosts /etc/resolv.conf /job/ro /job/rw /sbin/docker-init /tmp ",
        // The engine's own; none of the mounts.
        "/",
    ];
    let plain: Vec<String> = seen
        .lines()
        .map(|line| {
            let mut words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).collect();
            if line.starts_with("Cap") {
                // The kernel's order of these lines is its own.
                let mut pairs: Vec<_> = words.chunks(2).map(|pair| pair.join(" ")).collect();
                pairs.sort();
                return pairs.join(" ") + " ";
            }
            if line.starts_with("/ ") {
                words.push("");
            }
            words.join(" ")
        })
        .collect();
    assert_eq!(plain, expected);
    assert_eq!(fs::metadata(rw.join("made")).unwrap().uid(), 4711);
    assert_eq!(listing(&secret).len(), 1, "nothing was written behind what is mounted");
    for below in ["before", "later"] {
        run("umount", &[rw.join(below).to_str().unwrap()]);
    }
    // A directory of root's: its payload is root by number, without a single right of root's.
    let line = "id -u; grep CapEff /proc/self/status | tr '\\t' ' '; touch made; \
        for c in 'chown 1:1 made' 'cat /etc/shadow' 'mknod d b 8 0' 'chroot / true' 'mount -t tmpfs t /tmp' 'hostname x' \
        'kill -0 2' 'sh -c \"echo 1 > /proc/sys/kernel/panic\"'; do eval $c >/dev/null 2>&1 && echo \"could $c\"; done; true";
    let shown = output(&agent, &at(&site.mountable("roots")), line);
    assert_eq!(shown.replace("could cat /etc/shadow\n", ""), "0\nCapEff: 0000000000000000\n");
}

#[test]
fn names_that_are_hard_to_type_are_only_names() {
    let odd = Site::new("odd names");
    let names = [
        "two words",
        " lead and trail ",
        "-rf",
        "--mount=x",
        "$(touch pwned)",
        "`id`",
        "a;b|c&d",
        "it's",
        "back\\slash",
        "\\040",
        "*?[x]",
        "%s%n",
        "=src=",
        "ä e\u{301} 日本 🧪",
        "\u{202e}rtl",
        &"n".repeat(255),
    ];
    let specs: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let dir = odd.mountable(name);
            fs::write(dir.join("f"), format!("{number}\n")).unwrap();
            format!("{}:/m/{}{}", dir.display(), number, [":ro", ""][usize::from(number == 0)])
        })
        .collect();
    // The data directory has such a name itself: the engine is given paths below it.
    let data = odd.dir().join("data of \\134 日 $(x) 'q'");
    let mut serve = agent::hackbrain();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--segment-size", "4194304", "--data"]).arg(&data);
    serve.arg("--mount-root").arg(odd.root());
    let agent = Agent::spawn(&mut serve).unwrap();
    odd.cleans_up(&agent);
    let shown = output(&agent, &json!(specs), "for n in $(seq 0 15); do cat /m/$n/f; done");
    assert_eq!(
        shown.lines().map(|line| line.parse::<usize>().unwrap()).collect::<Vec<_>>(),
        (0..16).collect::<Vec<_>>()
    );
    // As long as a path may be, and deeper than most.
    let mut deep = odd.root().join("deep");
    while deep.as_os_str().len() < 4000 {
        deep = deep.join("x".repeat(60));
    }
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(output(&agent, &at(&deep), "touch here; ls"), "here\n");
    assert!(deep.join("here").exists());
    let site = odd.dir().file_name().unwrap().to_str().unwrap().rsplit(' ').next().unwrap();
    eventually("the binds are released", || {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        (!table.contains(site)).then_some(())
    });
}

/// Swaps two names at once, so that there is never a moment without either.
fn exchange(one: &Path, other: &Path) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (one, other) = (text(one), text(other));
    // SAFETY: both strings are NUL-terminated and outlive the call.
    let result =
        unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_directory_that_is_swapped_for_a_link_to_a_secret_while_jobs_start() {
    const DIRS: usize = 8;
    let starts = std::env::var("HACKBRAIN_SWAP_STARTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    let site = Site::new("swap");
    let agent = site.start(&["--workers", "4"]);
    let secret = site.dir().join("secret");
    // Two ways in: the directory itself is swapped, or one above it.
    fs::create_dir_all(secret.join("work")).unwrap();
    for dir in [secret.clone(), secret.join("work")] {
        fs::write(dir.join("f"), "SECRET\n").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let untouched = listing(&secret);
    let mut pairs = Vec::new();
    let mut mounts = Vec::new();
    for number in 0..DIRS {
        let dir = site.mountable(&format!("d{number}"));
        let work = if number % 2 == 0 { dir.clone() } else { site.mountable(&format!("d{number}/work")) };
        fs::write(work.join("f"), "mine\n").unwrap();
        let link = site.root().join(format!("link{number}"));
        symlink(&secret, &link).unwrap();
        pairs.push((dir, link));
        mounts.push(work);
    }
    let over = AtomicBool::new(false);
    let deadline = Instant::now() + PATIENCE * 5;
    let (mut ran, mut refused, mut failed) = (0, 0, 0);
    let swaps = thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u64;
            while !over.load(Ordering::Relaxed) && Instant::now() < deadline {
                for (dir, link) in &pairs {
                    exchange(dir, link);
                    // Some of the way in is walked by the agent, some by the engine: of every length, the link stands.
                    thread::sleep(Duration::from_micros(swaps % 7 * 20));
                    exchange(dir, link);
                    swaps += 1;
                }
                // In place for most of the time, or nothing would ever be let in.
                thread::sleep(Duration::from_micros(200 + swaps % 5 * 400));
            }
            swaps
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut jobs = Vec::new();
            let mut number = 0;
            while jobs.len() < starts {
                assert!(Instant::now() < deadline, "{} of {starts} were let in", jobs.len());
                let id = job_id("swap");
                let read_only = number % 3 == 0;
                let work = &mounts[number % DIRS];
                number += 1;
                let line = if read_only { "cat f" } else { "cat f; echo written >> written" };
                let mut job = manifest(&id, &["sh", "-c", line]);
                job["mount_spec"] = format!("{}:/w{}", work.display(), if read_only { ":ro" } else { "" }).into();
                job["resources"] = json!({ "memory_mib": 16 });
                let answer = agent.submit(&job);
                if answer.status == 200 {
                    jobs.push(id);
                    continue;
                }
                let error = &answer.json()["error"];
                let code = error["code"].as_str().unwrap();
                assert!(matches!(code, "mount_symlink" | "mount_unavailable"), "{}", answer.text());
                refused += 1;
            }
            for id in jobs {
                let summary = ended(&agent, &id);
                let text = agent.get(&format!("/api/jobs/{id}/stdout")).text();
                let said = agent.get(&format!("/api/jobs/{id}/stderr")).text();
                if summary["state"] == "SEALED" {
                    assert_eq!((text.as_str(), said.as_str()), ("mine\n", ""), "{summary}");
                    ran += 1;
                    continue;
                }
                let (reason, message) = failure(&agent, &id);
                let is_clear = message.contains("is a symbolic link") || message.contains("was another one while");
                assert!(reason == "mount" && is_clear, "{summary}: {reason}: {message}: {text}{said}");
                assert!(!text.contains("SECRET"), "{summary}");
                failed += 1;
            }
        }));
        over.store(true, Ordering::Relaxed);
        let swaps = swapper.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        swaps
    });
    eprintln!("{starts} starts under {swaps} swaps: {ran} ran, {failed} failed; {refused} more were refused at once");
    assert_eq!(listing(&secret), untouched, "something was written into the secret directory");
    let written = |work: &PathBuf| fs::read_to_string(work.join("written")).unwrap_or_default().lines().count();
    assert!(mounts.iter().map(written).sum::<usize>() <= ran && ran > 0 && refused + failed > 0);
    assert_eq!(fs::read_to_string(secret.join("f")).unwrap(), "SECRET\n");
}

/// A directory below nothing that others may write, gone at the end; `None` where this machine has no such place.
struct Trusted(PathBuf);

impl Trusted {
    fn new() -> Option<Self> {
        let sound = |dir: &Path| {
            dir.ancestors().all(|above| {
                fs::symlink_metadata(above).is_ok_and(|m| m.is_dir() && m.uid() == 0 && m.mode() & 0o022 == 0)
            })
        };
        let home = std::env::var("HOME").unwrap_or_default();
        let base =
            [env!("CARGO_TARGET_TMPDIR"), &home, "/var/lib"].map(PathBuf::from).into_iter().find(|dir| sound(dir))?;
        let dir = base.join(format!("hb-{}", job_id("trusted")));
        fs::create_dir(&dir).unwrap();
        Some(Self(dir))
    }
}

impl Drop for Trusted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.join("root/a/mounted/sub")).output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn without_the_right_to_mount_every_directory_above_must_be_trusted() {
    let site = Site::new("weak");
    let Some(trusted) = Trusted::new() else { return };
    let root = trusted.0.join("root");
    for name in ["a/work", "a/other", "a/mounted/sub"] {
        fs::create_dir_all(root.join(name)).unwrap();
        fs::write(root.join(name).join("f"), "mine\n").unwrap();
    }
    let plain = site.serve(&["--mount-root", root.to_str().unwrap(), "--workers", "4"]);
    let mut weak = Command::new("setpriv");
    weak.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]).arg(plain.get_program()).args(plain.get_args());
    weak.stdin(std::process::Stdio::null());
    let agent = site.start_command(&mut weak);
    let node = agent.get("/api/node").json();
    assert!(node["mount_protection"].as_str().unwrap().contains("ancestors"), "{node}");
    // The site lies below a directory for temporary files, where everybody may rename what is theirs.
    let open = site.mountable("open");
    refused(&site, &agent, &at(&open), (403, "mount_unprotected", "the path could be swapped"));
    let work = root.join("a/work");
    assert_eq!(output(&agent, &at(&work), "cat f; echo x > g; cat g"), "mine\nx\n");
    assert!(work.join("g").exists());
    let id = job_id("weak-scratch");
    agent.accepted(&manifest(&id, &["sh", "-c", "echo x > f; cat f"]));
    assert_eq!(agent.ended(&id)["state"], "SEALED");
    // What is mounted below would come along, and be writable where the mount is read-only.
    let mounted = root.join("a/mounted");
    run("mount", &["-t", "tmpfs", "t", mounted.join("sub").to_str().unwrap()]);
    let read_only = format!("{}:/w:ro", mounted.display()).into();
    refused(&site, &agent, &read_only, (403, "mount_unprotected", "is mounted below it"));
    run("umount", &[mounted.join("sub").to_str().unwrap()]);
    assert_eq!(output(&agent, &read_only, "cat sub/f; touch sub/x 2>/dev/null || echo no"), "mine\nno\n");
    // A directory above becomes writable while the job waits for its turn, or for its next attempt.
    let (holder, waiting) = (job_id("weak-holder"), job_id("weak-waiting"));
    let mut job = manifest(&holder, &["sh", "-c", "touch busy; sleep 600"]);
    job["mount_spec"] = at(&root.join("a/other"));
    agent.accepted(&job);
    eventually("the holder runs", || root.join("a/other/busy").exists().then_some(()));
    job["job_id"] = waiting.clone().into();
    agent.accepted(&job);
    eventually("the other waits", || {
        agent.get(&format!("/api/jobs/{waiting}")).json()["waiting_for"].as_str().map(|_| ())
    });
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(root.join("a/other/busy")).unwrap();
    assert_eq!(agent.post(&format!("/api/jobs/{holder}/cancel"), b"{}").status, 200);
    assert_eq!(agent.ended(&waiting)["state"], "FAILED");
    let (reason, message) = failure(&agent, &waiting);
    assert!(reason == "mount" && message.contains("may be written by others"), "{reason}: {message}");
    assert!(!root.join("a/other/busy").exists(), "it was never started");
}
