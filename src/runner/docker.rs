//! Drives the Docker CLI: the one place that spawns a process. Argument vectors, answers and verdicts are pure, in
//! the files below this one. The questions that every attempt asks go to the engine's unix socket, where it has one; for an
//! engine elsewhere the CLI asks them.
//!
//! Every answer comes from asking the engine about a container's name, never from how the CLI that started it ended.

mod api;
pub mod argv;
pub mod daemon;
pub mod init;
pub mod inspect;
mod process;
pub mod verdict;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::outage::Listener;
use api::{Api, escape};
pub use argv::{Bind, RunSpec, run_argv};
pub use inspect::{ContainerState, EngineInfo, Image, Inspect};
pub use process::{CliEnd, EngineError, RunChild};
pub use verdict::{CrashCause, StopReason, Verdict, verdict, verdict_gone};

/// Longest time a short command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time a pull may take.
const PULL_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Longest time a ping may take.
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
    /// The same engine's socket, where it is one of this host's.
    api: Option<Api>,
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
        let api = host.as_deref().and_then(Api::at);
        Self { program: program.into(), host, api }
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
        if let Some(api) = &self.api {
            let path = format!("/containers/{}/json", escape(container));
            let found = api.ask("GET", &path, COMMAND_TIMEOUT)?.found()?;
            let whole =
                |json: Vec<u8>| inspect::parse_container(&json).map(Inspect::Present).map_err(|error| cut_off(&error));
            return found.map_or(Ok(Inspect::Absent), whole);
        }
        match self.run(&["inspect", "--type=container", "--", container]) {
            Ok(json) => inspect::parse_containers(&json).map(Inspect::Present),
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
        if let Some(api) = &self.api {
            let path = format!("/containers/{}?v=1&force={}", escape(container), u8::from(force));
            return api.ask("DELETE", &path, COMMAND_TIMEOUT)?.found().map(drop);
        }
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
        self.image(reference).map(|image| image.map(|image| image.id))
    }

    /// The image that a reference means now, with its names; none where the engine has no such image.
    ///
    /// # Errors
    /// As for [`Docker::resolve_image`].
    pub fn image(&self, reference: &str) -> Result<Option<Image>, EngineError> {
        if let Some(api) = &self.api {
            let path = format!("/images/{}/json", escape(reference));
            let found = api.ask("GET", &path, COMMAND_TIMEOUT)?.found()?;
            return found.map(|json| inspect::parse_image(&json).map_err(|error| cut_off(&error))).transpose();
        }
        match self.run(&["image", "inspect", "--format={{json .}}", "--", reference]) {
            Ok(json) => inspect::parse_image(&json).map(Some),
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

    /// Gives an image one more name, `repository:tag`.
    ///
    /// # Errors
    /// The engine is away, or has no such image.
    pub fn tag(&self, image_id: &str, repository: &str, tag: &str) -> Result<(), EngineError> {
        if let Some(api) = &self.api {
            let path = format!("/images/{}/tag?repo={repository}&tag={tag}", escape(image_id));
            let answer = api.ask("POST", &path, COMMAND_TIMEOUT)?;
            let words = answer.words();
            return answer.found()?.map(drop).ok_or(EngineError::Other(words));
        }
        self.run(&["tag", "--", image_id, &format!("{repository}:{tag}")]).map(drop)
    }

    /// Takes a name away; one that is absent is a success. An image without a name left is deleted, so ask first
    /// ([`Docker::image`]) whether it has another.
    ///
    /// # Errors
    /// The engine is away, or refuses.
    pub fn untag(&self, name: &str) -> Result<(), EngineError> {
        if let Some(api) = &self.api {
            let answer = api.ask("DELETE", &format!("/images/{}?noprune=1", escape(name)), COMMAND_TIMEOUT)?;
            return answer.found().map(drop);
        }
        match self.run(&["image", "rm", "--no-prune", "--", name]) {
            Err(error) if is_no_such(&error) => Ok(()),
            result => result.map(drop),
        }
    }

    /// Every name, `repository:tag`, that an image has in this repository.
    ///
    /// # Errors
    /// The engine is away.
    pub fn names_in(&self, repository: &str) -> Result<Vec<String>, EngineError> {
        let lines = self.run(&["images", "--format={{.Repository}}:{{.Tag}}", "--", repository])?;
        Ok(String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect())
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
        let Some(api) = &self.api else {
            return self.run(&["version", "--format={{.Server.Version}}"]).map(drop);
        };
        let answer = api.ask("GET", "/_ping", PING_TIMEOUT)?;
        if answer.status == 200 { Ok(()) } else { Err(EngineError::Unavailable(answer.words())) }
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

/// An answer ends with its connection, so one of an engine that dies in the middle looks whole.
fn cut_off(error: &EngineError) -> EngineError {
    EngineError::Unavailable(error.to_string())
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
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
