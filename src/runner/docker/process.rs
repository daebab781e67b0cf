//! Child processes that end: short commands with a deadline and bounded output, long ones that are always reaped.

use std::fmt;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Why a question to the engine has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// The engine (or its CLI) is not there or does not answer: nothing is known, ask again later.
    Unavailable(String),
    /// The engine answered with a refusal, in its own words.
    Other(String),
}

impl EngineError {
    /// Sorts by what the CLI prints; its exit code says only that something failed.
    pub fn from_words(words: &str) -> Self {
        let words = words.trim();
        let lower = words.to_ascii_lowercase();
        let unavailable = [
            "cannot connect to the docker daemon",
            "is the docker daemon running",
            "error during connect",
            "dial unix",
            "unexpected eof",
            "connection refused",
            "connection reset by peer",
            "broken pipe",
            "context deadline exceeded",
            "i/o timeout",
        ];
        if unavailable.iter().any(|sign| lower.contains(sign)) || lower.ends_with(": eof") {
            Self::Unavailable(words.to_owned())
        } else {
            Self::Other(words.to_owned())
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(words) => write!(f, "the engine does not answer: {words}"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl std::error::Error for EngineError {}

/// What a short command left behind.
#[derive(Debug)]
pub(super) struct Finished {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Runs `command` to its end; kills and reaps it at the deadline. Output beyond `limit_bytes` is read, so that the
/// child is never blocked, and makes the command fail: half an answer is not an answer.
pub(super) fn run_bounded(mut command: Command, timeout: Duration, limit_bytes: u64) -> Result<Finished, EngineError> {
    let deadline = Instant::now() + timeout;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn_apart(&mut command)?;
    let (stdout, stderr) = child.pipes();
    let readers = (read_aside(stdout, limit_bytes), read_aside(stderr, limit_bytes));
    let overdue = |child: &mut RunChild| {
        child.kill();
        EngineError::Unavailable(format!("{:?} did not end within {timeout:?}", command.get_program()))
    };
    let (Ok(stdout), Ok(stderr)) = (
        readers.0.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        readers.1.recv_timeout(deadline.saturating_duration_since(Instant::now())),
    ) else {
        return Err(overdue(&mut child));
    };
    let Some(status) = child.wait_until(deadline) else { return Err(overdue(&mut child)) };
    if stdout.len() as u64 > limit_bytes || stderr.len() as u64 > limit_bytes {
        return Err(EngineError::Other(format!("docker printed more than {limit_bytes} bytes")));
    }
    Ok(Finished { success: status.success(), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

/// Spawns in a process group of its own: a Ctrl-C in the agent's terminal, or a kill of its group, ends the agent
/// alone.
pub(super) fn spawn_apart(command: &mut Command) -> Result<RunChild, EngineError> {
    match command.process_group(0).spawn() {
        Ok(child) => Ok(RunChild { child: Some(child) }),
        // This one is the caller's doing: the command and environment do not fit into one argument list.
        Err(error) if error.kind() == io::ErrorKind::ArgumentListTooLong => {
            Err(EngineError::Other("the command and its environment are too long for one argument list".into()))
        }
        Err(error) => Err(EngineError::Unavailable(format!("{:?}: {error}", command.get_program()))),
    }
}

/// A running CLI. Dropped before its end, it lives on and is reaped by a thread: the CLI writes the payload's output,
/// so an agent that lets go of it must not end it.
#[derive(Debug)]
pub struct RunChild {
    child: Option<Child>,
}

/// How a CLI process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CliEnd {
    /// Its exit code, 0 to 255.
    Exited(i32),
    /// The signal that ended it.
    Signalled(i32),
}

/// How often a child with a deadline is asked whether it has ended.
const WAIT_STEP: Duration = Duration::from_millis(5);

impl RunChild {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Blocks until the CLI has ended.
    ///
    /// # Errors
    /// What `waitpid` reports.
    pub fn wait(&mut self) -> io::Result<CliEnd> {
        self.child.as_mut().map_or_else(|| Err(io::ErrorKind::NotFound.into()), |child| child.wait().map(end_of))
    }

    /// How it ended, or none while it lives.
    ///
    /// # Errors
    /// What `waitpid` reports.
    pub fn try_wait(&mut self) -> io::Result<Option<CliEnd>> {
        match self.child.as_mut() {
            Some(child) => Ok(child.try_wait()?.map(end_of)),
            None => Ok(None),
        }
    }

    pub(super) fn wait_until(&mut self, deadline: Instant) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(WAIT_STEP);
        }
    }

    /// Kills the CLI (never the container) and reaps it.
    pub fn kill(&mut self) {
        if let Some(child) = self.child.as_mut() {
            // Both fail only where the child has already been reaped.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// The read ends of a child spawned with pipes; none where it has no pipe, or at a second call.
    pub(crate) fn pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        self.child.as_mut().map_or((None, None), |child| (child.stdout.take(), child.stderr.take()))
    }
}

impl Drop for RunChild {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take()
            && matches!(child.try_wait(), Ok(None))
        {
            // Without a thread it stays a zombie until the agent ends, which is the lesser evil.
            drop(thread::Builder::new().name("reap".into()).spawn(move || child.wait()));
        }
    }
}

fn end_of(status: ExitStatus) -> CliEnd {
    status.code().map_or_else(|| CliEnd::Signalled(status.signal().unwrap_or(0)), CliEnd::Exited)
}

/// Reads to the end on a thread of its own, keeping one byte more than the limit as a sign that it was passed.
/// The thread is not joined: a grandchild that holds the pipe must not hold the caller beyond its deadline.
fn read_aside(pipe: Option<impl Read + Send + 'static>, limit_bytes: u64) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut kept = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the output like its end does; the exit code tells the rest.
            drop(pipe.by_ref().take(limit_bytes + 1).read_to_end(&mut kept));
            drop(io::copy(&mut pipe, &mut io::sink()));
        }
        drop(sender.send(kept));
    };
    // Where no thread can be had the sender is dropped, and the receiver reports that at once.
    drop(thread::Builder::new().name("docker-read".into()).spawn(read));
    receiver
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn words_tell_an_absent_engine_from_a_refusal() {
        let absent = [
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "error during connect: Get \"http://x\": EOF",
            "Error response from daemon: dial unix /run/containerd.sock: connect: no such file or directory",
            "error waiting for container: unexpected EOF\n",
        ];
        for words in absent {
            assert!(matches!(EngineError::from_words(words), EngineError::Unavailable(_)), "{words}");
        }
        for words in ["Error: No such container: x", "docker: Error response from daemon: Conflict.", ""] {
            assert!(matches!(EngineError::from_words(words), EngineError::Other(_)), "{words}");
        }
    }

    #[test]
    fn a_short_command_is_bounded_in_time_and_size() {
        let ok = run_bounded(sh("echo out; echo err >&2; exit 3"), Duration::from_secs(10), 100).unwrap();
        assert_eq!((ok.success, ok.stdout.as_slice(), ok.stderr.as_str()), (false, &b"out\n"[..], "err\n"));

        let before = Instant::now();
        let late = run_bounded(sh("sleep 60"), Duration::from_millis(200), 100).unwrap_err();
        assert!(matches!(late, EngineError::Unavailable(_)));
        // A grandchild that keeps the pipe open does not keep the caller.
        let held = run_bounded(sh("sleep 3 & exit 0"), Duration::from_millis(200), 100).unwrap_err();
        assert!(matches!(held, EngineError::Unavailable(_)));
        assert!(before.elapsed() < Duration::from_secs(3));

        let much = run_bounded(sh("head -c 200000 /dev/zero"), Duration::from_secs(10), 100).unwrap_err();
        assert!(matches!(much, EngineError::Other(_)));
        let missing = run_bounded(Command::new("/nonexistent/docker"), Duration::from_secs(1), 100).unwrap_err();
        assert!(matches!(missing, EngineError::Unavailable(_)));
    }

    #[test]
    fn a_dropped_child_lives_on_and_leaves_no_zombie() {
        let child = spawn_apart(&mut sh("sleep 0.2")).unwrap();
        let stat = format!("/proc/{}/stat", child.pid());
        drop(child);
        assert!(std::fs::metadata(&stat).is_ok(), "it was killed");
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::fs::metadata(&stat).is_ok() {
            assert!(Instant::now() < deadline, "it stays a zombie");
            thread::sleep(Duration::from_millis(20));
        }
    }
}
