//! Attempts on a real engine: needs a running Docker Engine and `busybox:latest` (scripts/engine-up, scripts/images).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hackbrain::manifest::Network;
use hackbrain::runner::cgroup::{AttemptGroup, Hierarchies, remove_log_group};
use hackbrain::runner::docker::{
    Bind, CliEnd, ContainerState, CrashCause, Docker, EngineError, Inspect, RunChild, RunSpec, Verdict, verdict,
};
use hackbrain::runner::outage::Evidence;
use hackbrain::runner::output::{Completeness, OutputFiles, OutputPaths, follow, settle};

const COMPLETE: Completeness = Completeness::Complete { appended: 0 };

/// One container and one directory, both gone at the end whatever happens.
struct Case {
    docker: Docker,
    name: String,
    dir: PathBuf,
    paths: OutputPaths,
}

impl Case {
    fn new(what: &str) -> Self {
        Self::on(Docker::from_env(), what)
    }

    fn on(docker: Docker, what: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("hb-test-{what}-{}-{random}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&name);
        fs::create_dir(&dir).unwrap();
        let paths = OutputPaths::new(&dir.join("logs"), 1);
        Self { docker, name, dir, paths }
    }

    fn spec(&self, command: &[&str]) -> RunSpec {
        let image = self.docker.resolve_image("busybox:latest").unwrap();
        RunSpec {
            container: self.name.clone(),
            labels: BTreeMap::from([("hackbrain.test".to_owned(), self.name.clone())]),
            image_id: image.expect("busybox:latest is missing: run scripts/images"),
            command: command.iter().map(|part| (*part).to_owned()).collect(),
            binds: vec![],
            workdir: "/".into(),
            user: (4242, 4242),
            env: BTreeMap::new(),
            cpus: 1.0,
            memory_mib: 64,
            swap_limit: true,
            pids: 64,
            gpus: 0,
            network: Network::None,
            cgroup_parent: None,
            cidfile: None,
        }
    }

    fn spawn(&self, spec: &RunSpec) -> RunChild {
        let files = OutputFiles::create(&self.paths).unwrap();
        self.docker.spawn_run(spec, files.stdout, files.stderr).unwrap()
    }

    /// Runs a shell script to its end.
    fn run(&self, script: &str) -> (CliEnd, ContainerState) {
        let end = self.spawn(&self.spec(&["sh", "-c", script])).wait().unwrap();
        (end, self.ended())
    }

    fn ended(&self) -> ContainerState {
        match Docker::from_env().wait_exit(&self.name, &AtomicBool::new(false)).unwrap() {
            Some(Inspect::Present(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    fn wait_until_running(&self) {
        let running = || matches!(Docker::from_env().inspect(&self.name), Ok(Inspect::Present(state)) if state.running);
        wait_for("the container to run", running);
    }

    fn output(&self) -> (Vec<u8>, Vec<u8>) {
        (fs::read(&self.paths.stdout).unwrap(), fs::read(&self.paths.stderr).unwrap())
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let removed = Docker::from_env().remove(&self.name, true);
        drop(fs::remove_dir_all(&self.dir));
        assert!(thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn judge(state: &ContainerState) -> Verdict {
    verdict(state, None, "boot", "boot", Evidence::default())
}

/// kill -9 of the CLI, whatever the container does.
fn kill_cli(cli: &mut RunChild) {
    cli.kill();
    assert_eq!(cli.wait().unwrap(), CliEnd::Signalled(9));
}

#[test]
fn exit_codes_and_streams() {
    for (script, code) in [("exit 0", 0), ("exit 3", 3), ("exit 125", 125), ("exit 255", 255), ("kill -9 $$", 137)] {
        let case = Case::new("exit");
        let (end, state) = case.run(&format!("echo out; echo err >&2; {script}"));
        assert_eq!((end, state.exit_code), (CliEnd::Exited(code), code), "{script}");
        let expected = match code {
            0 => Verdict::Completed { oom_seen: false },
            137 => Verdict::Crash { cause: CrashCause::Killed, exit_code: Some(137) },
            _ => Verdict::Failed { reason: "exit".into(), exit_code: Some(code) },
        };
        assert_eq!(judge(&state), expected, "{script}");
        let settled = settle(&case.docker, &case.name, &case.paths, &state, Some(end)).unwrap();
        assert_eq!((settled.stdout, settled.stderr, settled.dockers_words.as_str()), (COMPLETE, COMPLETE, ""));
        assert_eq!(case.output(), (b"out\n".to_vec(), b"err\n".to_vec()));
        assert!(state.started && state.labels.contains_key("hackbrain.test") && state.image_id.starts_with("sha256:"));
        assert_eq!(case.docker.list(&format!("hackbrain.test={}", case.name)).unwrap().len(), 1);
        let (inspected, same) = (case.docker.inspect(&case.name).unwrap(), Inspect::Present(state));
        assert_eq!(inspected, same);
        case.docker.remove(&case.name, false).unwrap();
        assert_eq!(case.docker.inspect(&case.name).unwrap(), Inspect::Absent);
        case.docker.remove(&case.name, false).unwrap();
    }
}

#[test]
fn what_cannot_be_executed_fails_with_words() {
    for (command, code) in [("nope", 127), ("/etc", 126)] {
        let case = Case::new("noexec");
        let end = case.spawn(&case.spec(&[command])).wait().unwrap();
        assert_eq!(end, CliEnd::Exited(code));
        assert!(matches!(judge(&case.ended()), Verdict::Failed { exit_code, .. } if exit_code == Some(code)));
        assert!(!case.output().1.is_empty());
    }
    // The engine refuses before anything runs: all of stderr is Docker's, none the payload's.
    let case = Case::new("badmount");
    let mut spec = case.spec(&["true"]);
    spec.binds = vec![Bind { source: "/nonexistent/x".into(), container: "/x".into(), read_only: true }];
    assert_eq!(case.spawn(&spec).wait().unwrap(), CliEnd::Exited(125));
    assert_eq!(case.docker.inspect(&case.name).unwrap(), Inspect::Absent);
    let words = case.paths.take_dockers_words().unwrap();
    assert!(words.contains("bind source path does not exist"), "{words}");
    assert!(case.output().1.is_empty());
    // The same name again is refused, and does not disturb the first.
    let mut first = case.spawn(&case.spec(&["sleep", "30"]));
    case.wait_until_running();
    let second = Case::new("conflict");
    let files = OutputFiles::create(&second.paths).unwrap();
    let spec = case.spec(&["true"]);
    assert_eq!(case.docker.spawn_run(&spec, files.stdout, files.stderr).unwrap().wait().unwrap(), CliEnd::Exited(125));
    assert!(second.paths.take_dockers_words().unwrap().contains("already in use"));
    case.docker.stop(&case.name, 5).unwrap();
    assert_eq!(first.wait().unwrap(), CliEnd::Exited(143), "init passes SIGTERM on");
    case.docker.kill(&case.name).unwrap();
}

#[test]
fn memory_runs_out() {
    // On a busy machine the engine may hear of the exit before it hears of the memory, and then does not say so.
    let state = (0..5).find_map(|_| {
        let case = Case::new("oom");
        let (_, state) = case.run("head -c 200000000 /dev/zero | tail -c 190000000 >/dev/null; exit $?");
        assert_eq!(state.exit_code, 137, "{state:?}");
        state.oom_killed.then_some(state)
    });
    let state = state.expect("the engine tells of memory that ran out");
    assert_eq!(judge(&state), Verdict::Crash { cause: CrashCause::Oom, exit_code: Some(137) });

    let seen = (0..5).any(|_| {
        let case = Case::new("oomchild");
        let (_, state) = case.run("(head -c 200000000 /dev/zero | tail -c 190000000 >/dev/null); exit 0");
        // On a busy machine the kernel takes the shell as well, before the child's memory is free.
        if state.exit_code == 137 {
            return false;
        }
        assert!(matches!(judge(&state), Verdict::Completed { .. }), "{state:?}");
        state.oom_killed
    });
    assert!(seen, "the engine tells of a child that ran out of memory");
}

#[test]
fn the_sandbox_holds() {
    let case = Case::new("sandbox");
    let bind = case.dir.join("work");
    fs::create_dir(&bind).unwrap();
    let mut spec = case.spec(&[
        "sh",
        "-c",
        "id -u; hostname; echo $HOME $TZ $A; pwd; echo x > /file || echo read-only; echo y > /tmp/ok && cat /tmp/ok; \
         touch z 2>/dev/null || echo mount-read-only; ls /sys/class/net; grep CapEff /proc/self/status",
    ]);
    spec.binds = vec![Bind { source: bind, container: "/job".into(), read_only: true }];
    spec.workdir = "/job".into();
    spec.env = BTreeMap::from([("A".into(), "b c".into()), ("TZ".into(), "X".into())]);
    assert_eq!(case.spawn(&spec).wait().unwrap(), CliEnd::Exited(0));
    let expected = "4242\nhb-job\n/tmp X b c\n/job\nread-only\ny\nmount-read-only\nlo\nCapEff:\t0000000000000000\n";
    assert_eq!(String::from_utf8(case.output().0).unwrap(), expected);
}

#[test]
fn a_killed_cli_is_noticed_and_its_output_completed_to_the_byte() {
    // All 256 byte values, then a 40 kB line without a newline; a part before and a part after the CLI's death.
    let script = "i=0; while [ $i -lt 256 ]; do printf \"\\\\x$(printf %x $i)\"; i=$((i+1)); done; \
        echo early >&2; sleep 2; \
        i=0; while [ $i -lt 256 ]; do printf \"\\\\x$(printf %x $i)\"; i=$((i+1)); done; echo; echo late >&2; \
        head -c 40000 /dev/zero | tr '\\0' q; exit 7";
    let case = Case::new("adopt");
    let mut cli = case.spawn(&case.spec(&["sh", "-c", script]));
    case.wait_until_running();
    wait_for("the first bytes", || fs::metadata(&case.paths.stderr).unwrap().len() == 6);
    assert!(case.paths.writer_alive().unwrap());
    kill_cli(&mut cli);
    assert!(!case.paths.writer_alive().unwrap());

    let state = case.ended();
    assert_eq!(judge(&state), Verdict::Failed { reason: "exit".into(), exit_code: Some(7) });
    assert_eq!(case.output().0.len(), 256, "the CLI died before the rest");
    let bytes: Vec<u8> = (0..=255).collect();
    let exact = [&bytes[..], &bytes, b"\n", &[b'q'; 40_000]].concat();
    for round in 0..2 {
        let settled = settle(&case.docker, &case.name, &case.paths, &state, None).unwrap();
        let (stdout, stderr) = case.output();
        assert!(stdout == exact, "round {round}: {} bytes instead of {}", stdout.len(), exact.len());
        assert_eq!(stderr, b"early\nlate\n");
        if round == 0 {
            // Whether a newline ended the long line is what this engine's log cannot tell.
            let at = 513 + (16 << 10);
            assert_eq!(settled.stdout, Completeness::LongLines { appended: 40_257, at });
            assert_eq!(settled.stderr, Completeness::Complete { appended: 5 });
        } else {
            assert_eq!((settled.stdout, settled.stderr), (COMPLETE, COMPLETE), "settling twice adds nothing");
        }
    }
}

#[test]
fn a_running_container_is_followed_after_its_cli_died() {
    let case = Case::new("follow");
    let mut cli = case.spawn(&case.spec(&["sh", "-c", "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done"]));
    wait_for("the first line", || fs::metadata(&case.paths.stdout).unwrap().len() >= 2);
    kill_cli(&mut cli);
    let before = case.output().0.len();
    thread::scope(|scope| {
        let follower = scope.spawn(|| follow(&case.docker, &case.name, &case.paths, &AtomicBool::new(false)));
        wait_for("growth", || fs::metadata(&case.paths.stdout).unwrap().len() > before as u64);
        assert!(matches!(case.docker.inspect(&case.name), Ok(Inspect::Present(state)) if state.running));
        follower.join().unwrap().unwrap();
    });
    assert_eq!(case.output().0, b"1\n2\n3\n4\n5\n6\n7\n8\n");
    let settled = settle(&case.docker, &case.name, &case.paths, &case.ended(), None).unwrap();
    assert_eq!((settled.stdout, settled.stderr), (COMPLETE, COMPLETE));
}

#[test]
fn the_agents_end_reaches_neither_cli_nor_payload() {
    let case = Case::new("group");
    let mut cli = case.spawn(&case.spec(&["sh", "-c", "sleep 2; echo done"]));
    case.wait_until_running();
    let pid = cli.pid().to_string();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let group = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap().to_owned();
    assert_eq!(group, pid, "a process group of its own");
    // A service manager's SIGTERM to the CLI is not passed on to the payload.
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let end = cli.wait().unwrap();
    let state = case.ended();
    assert_eq!(judge(&state), Verdict::Completed { oom_seen: false });
    settle(&case.docker, &case.name, &case.paths, &state, Some(end)).unwrap();
    assert_eq!(case.output(), (b"done\n".to_vec(), vec![]));
}

#[test]
fn a_lost_engine_leaves_the_payloads_own_words() {
    let proxy = Proxy::start();
    let case = Case::on(Docker::new("docker", Some(proxy.host())), "cut");
    let script = "echo one >&2; printf unterminated >&2; sleep 2; echo -e ' two\\nthree' >&2; echo out; exit 0";
    let mut cli = case.spawn(&case.spec(&["sh", "-c", script]));
    wait_for("the first bytes", || fs::metadata(&case.paths.stderr).unwrap().len() == 16);
    proxy.cut();
    let end = cli.wait().unwrap();
    assert_eq!(end, CliEnd::Exited(125));
    assert!(case.output().1.len() > 16, "the CLI added words of its own");
    assert!(matches!(case.docker.inspect(&case.name), Err(EngineError::Unavailable(_))));
    assert!(matches!(case.docker.ping(), Err(EngineError::Unavailable(_))));

    let docker = Docker::from_env();
    docker.ping().unwrap();
    let settled = settle(&docker, &case.name, &case.paths, &case.ended(), Some(end)).unwrap();
    assert_eq!(String::from_utf8(case.output().1).unwrap(), "one\nunterminated two\nthree\n");
    assert_eq!(case.output().0, b"out\n");
    assert!(!settled.dockers_words.is_empty());
    assert_eq!(settled.stdout, Completeness::Complete { appended: 4 });
    // A log that cannot be had leaves the file as it is.
    let gone = Case::new("gone");
    drop(OutputFiles::create(&gone.paths).unwrap());
    assert!(settle(&docker, &gone.name, &gone.paths, &case.ended(), None).is_err());
    assert_eq!(gone.output(), (vec![], vec![]));
}

#[test]
fn a_wait_ends_when_it_is_given_up_and_a_created_container_is_run_anew() {
    let case = Case::new("created");
    let created = Command::new("docker")
        .args(["create", "--name", &case.name, "--network=none", "busybox:latest", "echo", "hello"])
        .output()
        .unwrap();
    assert!(created.status.success());
    let Inspect::Present(state) = case.docker.inspect(&case.name).unwrap() else { panic!("absent") };
    assert!(!state.started && !state.running);
    assert_eq!(case.ended(), state, "it does not run, so there is nothing to wait for");
    case.docker.remove(&case.name, false).unwrap();
    let end = case.spawn(&case.spec(&["echo", "hello"])).wait().unwrap();
    assert_eq!((end, case.output().0.as_slice()), (CliEnd::Exited(0), &b"hello\n"[..]));

    let long = Case::new("giveup");
    let mut cli = long.spawn(&long.spec(&["sleep", "60"]));
    long.wait_until_running();
    let give_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| long.docker.wait_exit(&long.name, &give_up));
        thread::sleep(Duration::from_millis(300));
        give_up.store(true, Ordering::Relaxed);
        assert_eq!(waiter.join().unwrap(), Ok(None));
    });
    long.docker.kill(&long.name).unwrap();
    cli.wait().unwrap();
    assert_eq!(judge(&long.ended()), Verdict::Crash { cause: CrashCause::Killed, exit_code: Some(137) });
}

#[test]
fn images_resolve_get_names_and_are_pulled() {
    // The socket and the CLI, which is left to find the engine by itself, say the same.
    for docker in [Docker::from_env(), Docker::new("docker", None)] {
        let id = docker.resolve_image("busybox:latest").unwrap().expect("run scripts/images");
        assert_eq!(docker.resolve_image(&id).unwrap(), Some(id.clone()));
        assert_eq!(docker.resolve_image("hackbrain/absent:none").unwrap(), None);
        assert!(matches!(docker.resolve_image("Not A Reference"), Ok(None) | Err(EngineError::Other(_))));
        let (repository, tag) = (format!("hackbrain/test-{}", std::process::id()), "a-b");
        let name = format!("{repository}:{tag}");
        for _ in 0..2 {
            docker.tag(&id, &repository, tag).unwrap();
        }
        assert!(docker.image(&id).unwrap().unwrap().names.contains(&name));
        assert_eq!(docker.names_in(&repository).unwrap(), [name.as_str()]);
        assert_eq!(docker.resolve_image(&name).unwrap(), Some(id.clone()));
        for _ in 0..2 {
            docker.untag(&name).unwrap();
        }
        assert_eq!(docker.names_in(&repository).unwrap(), Vec::<String>::new());
        assert_eq!(docker.resolve_image("busybox:latest").unwrap(), Some(id), "only the name is gone");
        let absent = format!("sha256:{}", "0".repeat(64));
        assert!(matches!(docker.tag(&absent, &repository, tag), Err(EngineError::Other(_))));
        assert_eq!(docker.inspect("hackbrain-absent").unwrap(), Inspect::Absent);
        docker.remove("hackbrain-absent", true).unwrap();
        docker.ping().unwrap();
    }
    let docker = Docker::from_env();
    // A registry that refuses the connection is not an absent engine.
    assert!(matches!(docker.pull("127.0.0.1:9/absent:none"), Err(EngineError::Other(_))));
    let info = docker.info().unwrap();
    assert!(!info.version.is_empty() && !info.runc_version.is_empty() && info.cpus > 0, "{info:?}");
}

#[test]
fn an_attempts_group_keeps_what_it_used() {
    let case = Case::new("cgroup");
    let hierarchies = match Hierarchies::detect(&case.docker.info().unwrap()) {
        Ok(hierarchies) => hierarchies,
        Err(reason) => {
            // What this host cannot offer must at least be said.
            assert!(!reason.0.is_empty());
            return;
        }
    };
    let log = format!("test{}", std::process::id());
    let group = AttemptGroup::create(&hierarchies, &log, &case.name).unwrap();
    let mut spec = case.spec(&[
        "sh",
        "-c",
        "head -c 20000000 /dev/zero > /tmp/x; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; sleep 1",
    ]);
    spec.cgroup_parent = group.parent_argument();
    let mut cli = case.spawn(&spec);
    wait_for("memory in use", || group.sample().memory_bytes.unwrap_or(0) > 20_000_000);
    assert!(group.sample().pids.unwrap() >= 2, "init and the shell");
    assert_eq!(cli.wait().unwrap(), CliEnd::Exited(0));
    let last = group.sample();
    assert!(last.cpu_ns.unwrap() > 10_000_000, "{last:?}");
    assert!(last.memory_peak_bytes.unwrap() > 20_000_000, "{last:?}");
    assert_eq!(last.pids, Some(0), "{last:?}");
    assert!(last.io_write_bytes.is_some());
    group.remove().unwrap();
    group.remove().unwrap();
    assert_eq!(group.sample().cpu_ns, None);
    remove_log_group(&hierarchies, &log).unwrap();
}

/// A unix socket in front of the engine that can be cut: what a CLI sees of it is what it sees of a dying engine.
struct Proxy {
    path: PathBuf,
    open: Arc<Mutex<Vec<UnixStream>>>,
}

impl Proxy {
    fn start() -> Self {
        let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".into());
        let engine = PathBuf::from(host.strip_prefix("unix://").expect("a test of engines on a unix socket"));
        let random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
        let path = std::env::temp_dir().join(format!("hb-proxy-{}-{random}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let open = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&open);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&engine).unwrap());
                known.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let (c, s) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pump(c, s));
                thread::spawn(move || pump(server, client));
            }
        });
        Self { path, open }
    }

    fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    fn cut(&self) {
        remove(&self.path);
        for stream in self.open.lock().unwrap().drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    drop(fs::remove_file(path));
}

fn pump(mut from: UnixStream, mut to: UnixStream) {
    // Half-closed like the original: an attached CLI closes its side first.
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
