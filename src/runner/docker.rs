//! Drives the Docker CLI: the one place that spawns a process. Argument vectors, answers and verdicts are pure, in
//! the files below this one.
//!
//! Every answer comes from asking the engine about a container's name, never from how the CLI that started it ended.

pub mod argv;
pub mod daemon;
pub mod inspect;
mod process;
pub mod verdict;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::outage::Listener;
pub use argv::{Bind, RunSpec, run_argv};
pub use inspect::{ContainerState, EngineInfo, Inspect};
pub use process::{CliEnd, EngineError, RunChild};
pub use verdict::{CrashCause, StopReason, Verdict, verdict, verdict_gone};

/// Longest time a short command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time a pull may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Connect, send and receive timeout of a ping, each.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes that one short command may print on one stream.
const OUTPUT_BYTES_MAX: u64 = 8 << 20;
/// How often a waiting thread looks at its stop flag and at the CLI it waits for.
const WAIT_STEP: Duration = Duration::from_millis(50);
/// Back-off while the engine is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A configuration directory that does not exist. The user's own may hold `proxies`, which the CLI would copy into
/// the environment of every container, and so make two nodes run the same execution differently.
const NO_CONFIG: &str = "/nonexistent/hackbrain";
/// Where an engine listens unless it is told otherwise.
const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// A container as `docker ps` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// As in [`ContainerState::status`].
    pub status: String,
}

/// A Docker Engine, reached through its CLI.
#[derive(Debug)]
pub struct Docker {
    program: PathBuf,
    /// `DOCKER_HOST` for every command; none leaves the choice to the CLI's context.
    host: Option<String>,
    /// Image ids pinned by this process.
    pinned: Mutex<BTreeSet<String>>,
}

impl Docker {
    /// The CLI named `docker` on PATH, with the engine of `DOCKER_HOST`, of `DOCKER_CONTEXT`, or at the default socket.
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = set("DOCKER_HOST").or_else(|| set("DOCKER_CONTEXT").is_none().then(|| DEFAULT_HOST.to_owned()));
        Self::new("docker", host)
    }

    /// A CLI at `program` with the engine at `host`, e.g. `unix:///var/run/docker.sock`.
    pub fn new(program: impl Into<PathBuf>, host: Option<String>) -> Self {
        Self { program: program.into(), host, pinned: Mutex::default() }
    }

    /// Starts an attempt: `docker run`, stdin closed, its streams going straight into the two files. The child lives
    /// in a process group of its own and outlives the agent.
    ///
    /// A container that was created and never started (its CLI died in between) is removed and run anew: `docker start`
    /// would attach without `--sig-proxy=false`, and hand a signal to the CLI on to the payload. One that has run is
    /// never started again under its name.
    ///
    /// # Errors
    /// The CLI cannot be spawned. What the engine thinks of the spec is found by [`Docker::inspect`].
    pub fn spawn_run(&self, spec: &RunSpec, stdout: File, stderr: File) -> Result<RunChild, EngineError> {
        let mut command = self.command();
        command.args(run_argv(spec)).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        if self.host.is_some() {
            command.env("DOCKER_CONFIG", NO_CONFIG);
        }
        process::spawn_apart(&mut command)
    }

    /// `docker logs` with both streams piped; with `follow` until the container ends.
    ///
    /// # Errors
    /// The CLI cannot be spawned.
    pub(crate) fn spawn_logs(&self, container: &str, follow: bool) -> Result<RunChild, EngineError> {
        let mut command = self.command();
        command.arg("logs");
        if follow {
            command.arg("--follow");
        }
        command.args(["--", container]);
        process::spawn_apart(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// What the engine knows of a container.
    ///
    /// # Errors
    /// The engine is away, or says something unknown.
    pub fn inspect(&self, container: &str) -> Result<Inspect, EngineError> {
        match self.run(&["inspect", "--type=container", "--", container]) {
            Ok(json) => inspect::parse_container(&json).map(Inspect::Present),
            Err(error) if is_no_such(&error) => Ok(Inspect::Absent),
            Err(error) => Err(error),
        }
    }

    /// Blocks until the container does not run, through engine restarts of any length, and tells its last state.
    /// One that was created and not yet started does not run either. `None`: `give_up` was set.
    ///
    /// # Errors
    /// The engine answered with something unknown; an absent engine is waited for.
    pub fn wait_exit(&self, container: &str, give_up: &AtomicBool) -> Result<Option<Inspect>, EngineError> {
        let mut backoff = BACKOFF.0;
        while !give_up.load(Ordering::Relaxed) {
            match self.inspect(container) {
                Ok(Inspect::Present(state)) if state.running => {
                    if self.wait_once(container, give_up) {
                        backoff = BACKOFF.0;
                        continue;
                    }
                }
                Ok(ended) => return Ok(Some(ended)),
                Err(EngineError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
            sleep_until(Instant::now() + backoff, give_up);
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        Ok(None)
    }

    /// SIGTERM, after `grace_s` seconds SIGKILL; returns when the container has ended.
    ///
    /// # Errors
    /// The engine is away, or there is no such container.
    pub fn stop(&self, container: &str, grace_s: u32) -> Result<(), EngineError> {
        let mut command = self.command();
        command.args(["stop", &format!("--time={grace_s}"), "--", container]);
        self.finish(command, COMMAND_TIMEOUT + Duration::from_secs(grace_s.into())).map(drop)
    }

    /// SIGKILL. A container that has already ended is a success: it is what the caller wants.
    ///
    /// # Errors
    /// The engine is away, or there is no such container.
    pub fn kill(&self, container: &str) -> Result<(), EngineError> {
        match self.run(&["kill", "--", container]) {
            Err(EngineError::Other(words)) if words.contains("is not running") => Ok(()),
            result => result.map(drop),
        }
    }

    /// Removes the container and the anonymous volumes its image asked for; one that is absent is a success.
    /// Only after its end state is durable. `force` kills it first.
    ///
    /// # Errors
    /// The engine is away, or refuses, e.g. a running container without `force`.
    pub fn remove(&self, container: &str, force: bool) -> Result<(), EngineError> {
        let flags: &[&str] = if force { &["rm", "--volumes", "--force", "--"] } else { &["rm", "--volumes", "--"] };
        match self.run(&[flags, &[container]].concat()) {
            Err(error) if is_no_such(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// All containers with this label, `name` or `name=value`, whatever their state.
    ///
    /// # Errors
    /// The engine is away.
    pub fn list(&self, label: &str) -> Result<Vec<Listed>, EngineError> {
        let filter = format!("--filter=label={label}");
        let format = "--format={{.ID}}\t{{.Names}}\t{{.State}}";
        let lines = self.run(&["ps", "--all", "--no-trunc", &filter, format])?;
        let lines = String::from_utf8_lossy(&lines);
        Ok(lines
            .lines()
            .filter_map(|line| {
                let mut fields = line.split('\t').map(str::to_owned);
                Some(Listed { id: fields.next()?, name: fields.next()?, status: fields.next()? })
            })
            .collect())
    }

    /// The image id, `sha256:<64 hex>`, that a reference means now; none where the engine has no such image.
    ///
    /// # Errors
    /// The engine is away, or the reference is malformed.
    pub fn resolve_image(&self, reference: &str) -> Result<Option<String>, EngineError> {
        match self.run(&["image", "inspect", "--format={{.Id}}", "--", reference]) {
            Ok(id) => Ok(Some(String::from_utf8_lossy(&id).trim().to_owned())),
            Err(error) if is_no_such(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Pulls an image; takes at most half an hour.
    ///
    /// # Errors
    /// Docker's own words; `Unavailable` only where the engine itself is away, not the registry.
    pub fn pull(&self, reference: &str) -> Result<(), EngineError> {
        let mut command = self.command();
        command.args(["pull", "--quiet", "--", reference]);
        match self.finish(command, PULL_TIMEOUT) {
            Err(EngineError::Unavailable(words)) if self.ping().is_ok() => Err(EngineError::Other(words)),
            result => result.map(drop),
        }
    }

    /// Keeps an image from being pruned while jobs refer to it by id: `hackbrain/pin:<12 hex>`. Free when this process
    /// did it before.
    ///
    /// # Errors
    /// The engine is away, or has no such image.
    pub fn pin(&self, image_id: &str) -> Result<(), EngineError> {
        if self.pinned.lock().unwrap_or_else(PoisonError::into_inner).contains(image_id) {
            return Ok(());
        }
        let hex = image_id.strip_prefix("sha256:").unwrap_or(image_id);
        self.run(&["tag", "--", image_id, &format!("hackbrain/pin:{}", hex.get(..12).unwrap_or(hex))])?;
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).insert(image_id.to_owned());
        Ok(())
    }

    /// The engine's part of the host's fingerprint; two commands.
    ///
    /// # Errors
    /// The engine is away.
    pub fn info(&self) -> Result<EngineInfo, EngineError> {
        let info = self.run(&["info", "--format={{json .}}"])?;
        let version = self.run(&["version", "--format={{json .}}"])?;
        inspect::parse_engine(&info, &version)
    }

    /// Whether the engine answers: about a millisecond on a unix socket, else a `docker version`.
    ///
    /// # Errors
    /// `Unavailable` with the reason.
    pub fn ping(&self) -> Result<(), EngineError> {
        match self.host.as_deref().and_then(|host| host.strip_prefix("unix://")) {
            Some(socket) => {
                ping_socket(Path::new(socket)).map_err(|error| EngineError::Unavailable(format!("{socket}: {error}")))
            }
            None => self.run(&["version", "--format={{.Server.Version}}"]).map(drop),
        }
    }

    /// Who listens where the engine should.
    pub fn listener(&self) -> Listener {
        self.host
            .as_deref()
            .and_then(|host| host.strip_prefix("unix://"))
            .map_or(Listener::Unknown, |socket| daemon::listener(Path::new(socket)))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("DOCKER_CLI_HINTS", "false");
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Vec<u8>, EngineError> {
        let mut command = self.command();
        command.args(arguments);
        self.finish(command, COMMAND_TIMEOUT)
    }

    fn finish(&self, command: Command, timeout: Duration) -> Result<Vec<u8>, EngineError> {
        let finished = process::run_bounded(command, timeout, OUTPUT_BYTES_MAX)?;
        if finished.success { Ok(finished.stdout) } else { Err(EngineError::from_words(&finished.stderr)) }
    }

    /// One `docker wait`; whether it ended well. Its output is ignored: it prints 0 for a container that never started.
    fn wait_once(&self, container: &str, give_up: &AtomicBool) -> bool {
        let mut command = self.command();
        command.args(["wait", "--", container]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(mut child) = process::spawn_apart(&mut command) else { return false };
        loop {
            match child.try_wait() {
                Ok(Some(end)) => return end == CliEnd::Exited(0),
                Ok(None) if !give_up.load(Ordering::Relaxed) => thread::sleep(WAIT_STEP),
                Ok(None) | Err(_) => {
                    child.kill();
                    return false;
                }
            }
        }
    }
}

fn is_no_such(error: &EngineError) -> bool {
    let EngineError::Other(words) = error else { return false };
    let words = words.to_ascii_lowercase();
    ["no such container", "no such image", "no such object"].iter().any(|sign| words.contains(sign))
}

fn sleep_until(until: Instant, give_up: &AtomicBool) {
    while Instant::now() < until && !give_up.load(Ordering::Relaxed) {
        thread::sleep(WAIT_STEP.min(until.saturating_duration_since(Instant::now())));
    }
}

fn ping_socket(socket: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PING_TIMEOUT))?;
    stream.set_write_timeout(Some(PING_TIMEOUT))?;
    stream.write_all(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if status.starts_with(b"HTTP/1.") && status.ends_with(b" 200") {
        Ok(())
    } else {
        Err(io::Error::other(format!("answers {}", String::from_utf8_lossy(&status))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_ping_asks_the_socket_and_waits_two_seconds_at_most() {
        let path = std::env::temp_dir().join(format!("hb-ping-{}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let docker = Docker::new("/nonexistent/docker", Some(format!("unix://{}", path.display())));
        let answers = thread::spawn(move || {
            for answer in ["HTTP/1.0 200 OK\r\n\r\nOK", "HTTP/1.0 500 no\r\n\r\n"] {
                let (mut stream, _) = listener.accept().unwrap();
                let asked = stream.read(&mut [0; 256]).unwrap();
                assert!(asked > 0);
                stream.write_all(answer.as_bytes()).unwrap();
            }
            listener
        });
        assert_eq!(docker.ping(), Ok(()));
        assert!(matches!(docker.ping(), Err(EngineError::Unavailable(words)) if words.contains("500")));
        let listener = answers.join().unwrap();
        // Connected by the backlog, never answered.
        let began = Instant::now();
        assert!(matches!(docker.ping(), Err(EngineError::Unavailable(_))));
        assert!(began.elapsed() < Duration::from_secs(10));
        drop(listener);
        assert!(matches!(docker.ping(), Err(EngineError::Unavailable(_))));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_missing_cli_is_an_absent_engine() {
        let docker = Docker::new("/nonexistent/docker", None);
        assert!(matches!(docker.inspect("x"), Err(EngineError::Unavailable(_))));
        assert!(matches!(docker.ping(), Err(EngineError::Unavailable(_))));
        let gave_up = docker.wait_exit("x", &AtomicBool::new(true));
        assert_eq!(gave_up, Ok(None));
    }
}
