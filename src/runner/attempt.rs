//! One attempt from intent to verdict; adoption after a restart.
//!
//! The intent is durable before the engine is asked. After that the container's name is the only witness of what was
//! started, and its inspection the only source of a verdict: never the CLI's exit code.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::cgroup::AttemptGroup;
use super::docker::{
    CliEnd, ContainerState, Docker, EngineError, Inspect, RunChild, RunSpec, StopReason, Verdict, verdict, verdict_gone,
};
use super::output::{Completeness, OutputFiles, OutputPaths, SettleError, Settled, follow, settle};
use super::watch::OutputWatch;
use super::workspace::{self, Workspace};
use super::{Fault, Runner, Signal};
use crate::config::{MEMORY_MIB_MIN, PIDS_DEFAULT, STOP_GRACE_S};
use crate::ledger::event::{Ending, LogDigest, State, Stopping, Usage};
use crate::ledger::lifecycle::{Command, Job, Outcome, container_name};
use crate::ledger::time::Time;
use crate::manifest::Manifest;
use crate::seal;
use crate::sys::block::sync_dir;

/// How often a CLI that this agent did not start is looked at.
const ADOPTED_LOOK: Duration = Duration::from_millis(100);
/// Pause before something that failed for an unknown reason is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a log that the engine cannot give is asked for, before the output counts as incomplete.
const SETTLE_TRIES_MAX: u32 = 5;
/// How often a container that was created is asked to start before that counts as the engine's crash.
const STARTS_MAX: u32 = 3;

/// Takes a scheduled job to its end, or an interrupted one on from where it stands.
pub(super) fn run(runner: &Arc<Runner>, job: &Arc<Job>) {
    let mut job = job.clone();
    while job.open.is_some() {
        let next =
            if job.state == State::Completed { workspace::seal(runner, &job) } else { one_attempt(runner, &job) };
        match next {
            Some(next) => job = next,
            None => return,
        }
    }
}

/// The job after its attempt ended, or `None` where the agent stops or somebody else ended the job.
fn one_attempt(runner: &Arc<Runner>, job: &Arc<Job>) -> Option<Arc<Job>> {
    let (sender, signals) = unbounded();
    let active = || runner.queues.active.lock().unwrap_or_else(PoisonError::into_inner);
    active().insert(job.job_id.clone(), sender.clone());
    let next = begin(runner, job, sender, signals);
    active().remove(&job.job_id);
    next
}

fn begin(runner: &Arc<Runner>, job: &Arc<Job>, sender: Sender<Signal>, signals: Receiver<Signal>) -> Option<Arc<Job>> {
    let is_new = matches!(job.state, State::Scheduled | State::Crash);
    let job = if is_new {
        let ended = || runner.setup.engine.view().job(&job.job_id).is_none_or(|now| now.open.is_none());
        // Whatever it says instead of answering, it is not there: only its answer lets the attempt begin.
        let ping = || runner.setup.docker.ping().map_err(|error| EngineError::Unavailable(error.to_string()));
        runner.until_engine_answers(&job.job_id, &ended, ping)?.ok()?;
        // A refusal here means that the job was cancelled meanwhile, or that the ledger is shut.
        runner.setup.engine.execute(Command::Start(job.job_id.clone())).ok()?.job?
    } else {
        job.clone()
    };
    let open = job.open.as_ref()?;
    let container = container_name(&job.job_id, job.attempt);
    let deadline = open.manifest.get().timeout_s.map(|timeout_s| {
        let spent = Duration::from_micros(Time::now().0.saturating_sub(open.attempt_began.0));
        Instant::now() + Duration::from_secs(timeout_s).saturating_sub(spent)
    });
    let attempt = Attempt {
        paths: OutputPaths::new(&runner.setup.data.join("logs").join(&*job.job_id), job.attempt),
        group: runner.hierarchies().and_then(|h| match AttemptGroup::create(&h, runner.short_log_id(), &container) {
            Ok(group) => Some(group),
            Err(error) => {
                log::warn!("job {}: {error}", job.job_id);
                None
            }
        }),
        manifest: open.manifest.get().clone(),
        boot_id: open.boot_id.clone(),
        marks: open.marks,
        runner,
        job: job.clone(),
        container,
        sender,
        signals,
        deadline,
        ended: Arc::new(AtomicBool::new(false)),
        seen_started: AtomicBool::new(false),
    };
    log::info!("job {}: attempt {}: {}", job.job_id, job.attempt, if is_new { "starts" } else { "is taken up again" });
    let next = attempt.live(is_new);
    attempt.ended.store(true, Ordering::SeqCst);
    next
}

struct Attempt<'r> {
    runner: &'r Arc<Runner>,
    job: Arc<Job>,
    manifest: Arc<Manifest>,
    container: String,
    /// Boot id of the host when the intent was recorded.
    boot_id: Arc<str>,
    paths: OutputPaths,
    group: Option<AttemptGroup>,
    marks: [Option<u64>; 2],
    sender: Sender<Signal>,
    signals: Receiver<Signal>,
    deadline: Option<Instant>,
    /// Tells helper threads that there is nothing left to do.
    ended: Arc<AtomicBool>,
    /// An inspection has shown that the payload was started.
    seen_started: AtomicBool,
}

/// What there is to wait for.
enum Writer {
    /// A CLI that this agent started.
    Ours(RunChild),
    /// A CLI of an earlier agent, which may have ended long ago.
    Adopted,
}

/// What to do about the container's present state.
enum Next {
    /// Wait for this, then look again.
    Wait(Writer),
    /// The CLI is dead, the container is not: go on from the engine's log, then look again.
    Follow,
    /// It is over.
    End(Over),
    /// The agent stops.
    LetGo,
}

/// How an attempt ended.
struct Over {
    outcome: Outcome,
    ending: Ending,
    /// Whether stdout and stderr hold all that the payload printed.
    complete: [bool; 2],
}

impl Attempt<'_> {
    fn live(&self, is_new: bool) -> Option<Arc<Job>> {
        let mut watch = None;
        let mut cli_end = None;
        let mut starts = 0;
        let mut next = if is_new { self.launch() } else { self.look(None, &mut starts) };
        if self.is_stop_asked() {
            // It was asked for before this thread could hear of it.
            self.stop_container();
        }
        let (outcome, ending) = loop {
            let output = watch.get_or_insert_with(|| {
                OutputWatch::start(self.runner.setup.engine.clone(), &self.job, self.paths.clone(), self.marks)
            });
            match next {
                Next::LetGo => {
                    output.abandon();
                    return None;
                }
                Next::End(over) => {
                    output.finish();
                    break (over.outcome, self.with_digests(over.ending, over.complete));
                }
                Next::Wait(writer) => {
                    cli_end = match self.wait(writer) {
                        Some(end) => end,
                        None => {
                            output.abandon();
                            return None;
                        }
                    };
                }
                Next::Follow => {
                    if !self.follow() {
                        output.abandon();
                        return None;
                    }
                }
            }
            next = self.look(cli_end, &mut starts);
        };
        let command = Command::End(self.job.job_id.clone(), self.job.attempt, outcome, ending);
        let after = match self.runner.setup.engine.execute(command) {
            Ok(accepted) => accepted.job?,
            Err(error) => {
                // 503 while the agent goes down; the next one finds the container and judges it again.
                log::warn!("job {}: the end of attempt {} is not recorded: {error}", self.job.job_id, self.job.attempt);
                return None;
            }
        };
        log::info!("job {}: attempt {}: {}", after.job_id, after.attempt, after.state);
        if after.state != State::Completed {
            // A completed job's workspace is needed once more, for the seal.
            self.runner.clean_up(self.container.clone());
        }
        Some(after)
    }

    /// Asks the engine for this attempt's container.
    fn launch(&self) -> Next {
        let prepared = self.runner.until_there_is_space(&self.job.job_id, || {
            let workspace = workspace::bind(self.runner, &self.job, &self.container)?;
            let files = OutputFiles::create(&self.paths)
                .map_err(|error| Fault::io("not_started", "the output files cannot be made", &error))?;
            Ok((workspace, files))
        });
        let (workspace, files) = match prepared {
            Some(Ok(prepared)) => prepared,
            Some(Err(fault)) => return failed(fault.reason, fault.message),
            None => return Next::LetGo,
        };
        let spec = self.spec(workspace);
        match self.docker().spawn_run(&spec, files.stdout, files.stderr) {
            Ok(child) => Next::Wait(Writer::Ours(child)),
            Err(error) => failed("not_started", format!("docker cannot be run: {error}")),
        }
    }

    fn spec(&self, workspace: Workspace) -> RunSpec {
        let (setup, manifest) = (&self.runner.setup, &self.manifest);
        let execution = self.job.execution_hash.map(|hash| hash.to_string()).unwrap_or_default();
        let labels = [
            ("hackbrain.log", setup.log_id.clone()),
            ("hackbrain.job", self.job.job_id.to_string()),
            ("hackbrain.attempt", self.job.attempt.to_string()),
            ("hackbrain.execution", execution),
        ];
        let info = self.runner.info.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let share_mib = setup.host.memory_mib / setup.workers as u64;
        RunSpec {
            container: self.container.clone(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            image_id: self.job.image_id.as_deref().unwrap_or_default().to_owned(),
            command: manifest.command.clone(),
            binds: workspace.binds,
            workdir: workspace.workdir,
            user: workspace.user,
            env: manifest.env.clone(),
            cpus: manifest.resources.cpus.unwrap_or(f64::from(setup.host.cpus)),
            memory_mib: manifest.resources.memory_mib.unwrap_or(share_mib.max(MEMORY_MIB_MIN)),
            swap_limit: info.is_some_and(|info| info.swap_limit),
            pids: manifest.resources.pids.unwrap_or(PIDS_DEFAULT),
            gpus: 0,
            network: manifest.network,
            cgroup_parent: self.group.as_ref().map(AttemptGroup::parent_argument),
            cidfile: Some(self.paths.cidfile.clone()),
        }
    }

    /// Looks at the container by its name and says what is to be done. `cli` is how our CLI ended, if it was ours.
    fn look(&self, cli: Option<CliEnd>, starts: &mut u32) -> Next {
        loop {
            // A writer that lives may be about to create, start or complete: what is seen under it may be half done.
            match self.paths.writer_alive() {
                Ok(false) => {}
                Ok(true) => return Next::Wait(Writer::Adopted),
                Err(error) => {
                    let why = format!("its output files cannot be probed: {error}");
                    if !self.try_again_later(&why) {
                        return Next::LetGo;
                    }
                    continue;
                }
            }
            let Some(found) = self.ask(|docker| docker.inspect(&self.container)) else { return Next::LetGo };
            let state = match found {
                Inspect::Absent => return self.absent(cli),
                Inspect::Present(state) => state,
            };
            if let Some(owner) = self.foreign_owner(&state) {
                let words = self.paths.take_dockers_words().unwrap_or_default();
                let message = format!(
                    "container {} belongs to {owner}; remove it, or use another job_id. {words}",
                    self.container
                );
                return failed("not_started", message);
            }
            if state.started {
                self.seen_started.store(true, Ordering::Relaxed);
            }
            if state.running {
                return Next::Follow;
            }
            if !state.started && state.exit_code == 0 && *starts < STARTS_MAX && !self.is_stop_asked() {
                // Its CLI died between create and start.
                // A created container cannot be started attached without passing on the agent's signals, so it makes way
                // for one that is run. Nothing of the payload has run yet.
                *starts += 1;
                match self.docker().remove(&self.container, false) {
                    Ok(()) => return self.launch(),
                    // Perhaps it is being started after all: look again, and never launch on an old look.
                    Err(error) if self.try_again_later(&format!("the container engine says: {error}")) => continue,
                    Err(_) => return Next::LetGo,
                }
            }
            return self.judge(&state, cli);
        }
    }

    /// There is no container of this name.
    fn absent(&self, cli: Option<CliEnd>) -> Next {
        let asked = self.stop_reason();
        let was_started = self.seen_started.load(Ordering::Relaxed)
            || self.marks != [None; 2]
            || self.paths.was_created()
            || std::fs::metadata(&self.paths.stdout).is_ok_and(|meta| meta.len() > 0);
        // There was one, and somebody removed it; or nothing was started, and nobody wants it any more.
        if was_started {
            return gone(asked, cli);
        }
        if asked.is_some() {
            return end(verdict_gone(asked), &untouched(), Ending::default());
        }
        // Nothing was created, so what is in stderr are Docker's own words.
        let words = self.paths.take_dockers_words().unwrap_or_default();
        match (EngineError::from_words(&words), cli) {
            (EngineError::Unavailable(words), _) => {
                if self.try_again_later(&words) {
                    self.launch()
                } else {
                    Next::LetGo
                }
            }
            // The CLI was killed before it could ask: the intent stands, so it is started now, in the same attempt.
            (EngineError::Other(words), None | Some(CliEnd::Signalled(_))) if words.is_empty() => self.launch(),
            (EngineError::Other(words), _) => failed("not_started", words),
        }
    }

    fn judge(&self, state: &ContainerState, cli: Option<CliEnd>) -> Next {
        let mut tries = 0;
        let settled = loop {
            match settle(self.docker(), &self.container, &self.paths, state, cli) {
                Ok(settled) => break settled,
                Err(SettleError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    break if state.started { incomplete() } else { untouched() };
                }
                // The engine has lost its log, perhaps with the container: what was captured stays, and is called incomplete.
                Err(SettleError::Engine(error)) if tries == SETTLE_TRIES_MAX => {
                    log::warn!("job {}: its output may be incomplete: {error}", self.job.job_id);
                    break incomplete();
                }
                Err(error) => {
                    // An engine that answers and cannot give the log is not away, whatever words it has for that.
                    let is_there = || self.docker().ping().is_ok();
                    tries += u32::from(matches!(error, SettleError::Engine(_)) && is_there());
                    if !self.try_again_later(&format!("its output cannot be completed yet: {error}")) {
                        return Next::LetGo;
                    }
                }
            }
        };
        let asked = self.stop_reason();
        let sample = self.group.as_ref().map(AttemptGroup::sample);
        let ending = Ending {
            exit_code: (state.started || state.exit_code != 0).then_some(state.exit_code),
            usage: sample.map(|sample| Usage {
                cpu_ns: sample.cpu_ns.unwrap_or(0),
                memory_peak_bytes: sample.memory_peak_bytes.unwrap_or(0),
                io_read_bytes: sample.io_read_bytes.unwrap_or(0),
                io_write_bytes: sample.io_write_bytes.unwrap_or(0),
                pids_peak: sample.pids_peak.unwrap_or(0),
            }),
            oom_seen: state.oom_killed,
            ..Ending::default()
        };
        end(verdict(state, asked, &self.boot_id, &self.runner.setup.host.boot_id), &settled, ending)
    }

    /// Waits for the end of what writes the output; serves requests to stop meanwhile. `None`: the agent stops.
    fn wait(&self, writer: Writer) -> Option<Option<CliEnd>> {
        let (sender, paths, ended) = (self.sender.clone(), self.paths.clone(), self.ended.clone());
        let waiter = thread::Builder::new().name("cli-wait".into()).stack_size(128 << 10).spawn(move || {
            let end = match writer {
                Writer::Ours(mut child) => child.wait().ok(),
                Writer::Adopted => {
                    while !ended.load(Ordering::Relaxed) && paths.writer_alive().unwrap_or(false) {
                        thread::sleep(ADOPTED_LOOK);
                    }
                    None
                }
            };
            let _ = sender.send(Signal::Ended);
            end
        });
        match waiter {
            Ok(waiter) => {
                if !self.serve_signals() {
                    return None;
                }
                Some(waiter.join().unwrap_or(None))
            }
            Err(error) => {
                // The CLI is let go of, not lost: it is found again by its lock.
                let why = format!("no thread to wait for it: {error}");
                self.try_again_later(&why).then_some(None)
            }
        }
    }

    /// Goes on with the output of a container whose CLI died. `false`: the agent stops.
    fn follow(&self) -> bool {
        let give_up = AtomicBool::new(false);
        thread::scope(|scope| {
            let sender = &self.sender;
            scope.spawn(|| {
                if let Err(error) = follow(self.docker(), &self.container, &self.paths, &give_up) {
                    log::warn!("job {}: its output is not followed: {error}", self.job.job_id);
                    thread::sleep(RETRY_PAUSE);
                }
                let _ = sender.send(Signal::Ended);
            });
            let goes_on = self.serve_signals();
            give_up.store(true, Ordering::SeqCst);
            goes_on
        })
    }

    /// Until `Ended`. `false`: the agent stops.
    fn serve_signals(&self) -> bool {
        let mut deadline = self.deadline;
        loop {
            let signal = match deadline {
                Some(at) => self.signals.recv_deadline(at),
                None => self.signals.recv().map_err(|_| crossbeam_channel::RecvTimeoutError::Disconnected),
            };
            match signal {
                Ok(Signal::Ended) => return true,
                Ok(Signal::Stop) => self.stop_container(),
                Ok(Signal::Shutdown) => return false,
                Err(_) => {
                    deadline = None;
                    let stopping = Stopping { asked: "timeout".into(), by: "timeout_s".into() };
                    // Durable first; it comes back as a signal.
                    let _ = self.runner.setup.engine.execute(Command::Stop(self.job.job_id.clone(), stopping));
                }
            }
        }
    }

    /// SIGTERM, then SIGKILL, in a thread of its own; the wait goes on.
    fn stop_container(&self) {
        let (runner, container, ended) = (self.runner.clone(), self.container.clone(), self.ended.clone());
        let stopper = thread::Builder::new().name("stop".into()).stack_size(128 << 10).spawn(move || {
            while !ended.load(Ordering::Relaxed) && !runner.is_stopping() {
                match runner.setup.docker.stop(&container, STOP_GRACE_S) {
                    // A stop of a container that was created and not started yet succeeds and does nothing.
                    Ok(()) => match runner.setup.docker.inspect(&container) {
                        Ok(Inspect::Present(state)) if state.started && !state.running => return,
                        _ => {}
                    },
                    // Not created yet, or the engine is away.
                    Err(error) => log::debug!("stopping {container}: {error}"),
                }
                thread::sleep(ADOPTED_LOOK);
            }
        });
        if let Err(error) = stopper {
            log::error!("job {}: no thread to stop it: {error}", self.job.job_id);
        }
    }

    fn docker(&self) -> &Docker {
        &self.runner.setup.docker
    }

    /// Asks until the engine answers something known. `None`: the agent stops.
    fn ask<T>(&self, mut question: impl FnMut(&Docker) -> Result<T, EngineError>) -> Option<T> {
        loop {
            match self.runner.until_engine_answers(&self.job.job_id, &|| false, || question(self.docker()))? {
                Ok(answer) => return Some(answer),
                Err(error) => {
                    if !self.try_again_later(&format!("the container engine says: {error}")) {
                        return None;
                    }
                }
            }
        }
    }

    /// `false`: the agent stops.
    fn try_again_later(&self, why: &str) -> bool {
        self.runner.note_waiting(&self.job.job_id, why);
        self.runner.pause(RETRY_PAUSE, &|| false);
        !self.runner.is_stopping()
    }

    /// Who owns the container, if it is not this attempt of this ledger.
    fn foreign_owner(&self, state: &ContainerState) -> Option<String> {
        let label = |name: &str| state.labels.get(name).map_or("", String::as_str);
        let is_ours = label("hackbrain.log") == self.runner.setup.log_id
            && label("hackbrain.job") == &*self.job.job_id
            && label("hackbrain.attempt") == self.job.attempt.to_string();
        match label("hackbrain.log") {
            _ if is_ours => None,
            "" => Some("somebody else".to_owned()),
            other => Some(format!("another ledger ({other})")),
        }
    }

    fn is_stop_asked(&self) -> bool {
        self.stop_reason().is_some()
    }

    fn stop_reason(&self) -> Option<StopReason> {
        let job = self.runner.setup.engine.view().job(&self.job.job_id)?;
        job.stop().map(|stop| if stop.asked == "timeout" { StopReason::Timeout } else { StopReason::Cancel })
    }

    /// Syncs the output, since the ledger is about to vouch for it, and adds its digests.
    fn with_digests(&self, mut ending: Ending, complete: [bool; 2]) -> Ending {
        let sync = |path: &Path| std::fs::File::open(path).and_then(|file| file.sync_all());
        let named = self.paths.stdout.parent().map_or(Ok(()), sync_dir);
        let digest = |path: &Path, complete| {
            let synced = sync(path).is_ok() && named.is_ok();
            if !synced {
                log::warn!("{}: it cannot be synced, and may be lost with the host", path.display());
            }
            let (bytes, sha256) = seal::digest_file(path).ok()?;
            Some(LogDigest { bytes, sha256, complete: complete && synced })
        };
        ending.stdout = digest(&self.paths.stdout, complete[0]);
        ending.stderr = digest(&self.paths.stderr, complete[1]);
        ending
    }
}

fn failed(reason: &str, message: String) -> Next {
    let outcome = Outcome::Failed { reason: reason.into(), message };
    Next::End(Over { outcome, ending: Ending::default(), complete: [true; 2] })
}

fn end(verdict: Verdict, settled: &Settled, ending: Ending) -> Next {
    let outcome = match verdict {
        Verdict::Completed { .. } => Outcome::Completed,
        // A stop was asked for, and what was asked decides; the ledger knows it.
        Verdict::Cancelled => Outcome::Crashed { cause: "killed".into() },
        Verdict::Crash { cause, .. } => Outcome::Crashed { cause: cause.as_str().into() },
        Verdict::Failed { reason, .. } => match reason.strip_prefix("not started: ") {
            Some(words) => Outcome::Failed { reason: "not_started".into(), message: words.into() },
            None => {
                let message = match ending.exit_code {
                    Some(code) if reason == "exit" => format!("the payload exited with {code}"),
                    _ => settled.dockers_words.clone(),
                };
                Outcome::Failed { reason, message }
            }
        },
    };
    let complete =
        [settled.stdout, settled.stderr].map(|completeness| matches!(completeness, Completeness::Complete { .. }));
    Next::End(Over { outcome, ending, complete })
}

/// The end of an attempt whose container is gone. Only a CLI that passed an exit code on is known to have written all of
/// the output, and no words of its own; 125 is its own, too.
fn gone(asked: Option<StopReason>, cli: Option<CliEnd>) -> Next {
    let settled = match cli {
        Some(CliEnd::Exited(code)) if code != 125 => untouched(),
        _ => incomplete(),
    };
    end(verdict_gone(asked), &settled, Ending::default())
}

fn incomplete() -> Settled {
    let differs = Completeness::Differs { at: 0 };
    Settled { stdout: differs, stderr: differs, ..untouched() }
}

fn untouched() -> Settled {
    let nothing = Completeness::Complete { appended: 0 };
    Settled { stdout: nothing, stderr: nothing, dockers_words: String::new(), leading_warnings: 0 }
}
