//! One attempt from intent to verdict; adoption after a restart.
//!
//! The intent is durable before the engine is asked. After that the container's name is the only witness of what was
//! started, and its inspection the only source of a verdict: never the CLI's exit code.

mod judge;
mod launch;
mod locate;
mod usage;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::docker::{CliEnd, Docker, EngineError, Inspect, RunChild, StopReason};
use super::output::{OutputPaths, follow};
use super::telemetry::Metered;
use super::watch::OutputWatch;
use super::{Runner, Signal, workspace};
use crate::config::STOP_GRACE_S;
use crate::ledger::event::{Ending, State, Stopping};
use crate::ledger::lifecycle::{Command, Job, Outcome, container_name};
use crate::ledger::time::Time;
use crate::manifest::Manifest;
use crate::sys::kill_point;

/// How often a CLI that this agent did not start is looked at.
const ADOPTED_LOOK: Duration = Duration::from_millis(100);
/// Pause before something that failed for an unknown reason is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

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
    let next = begin(runner, job, sender.clone(), signals);
    let mut now = active();
    if now.get(&job.job_id).is_some_and(|current| current.same_channel(&sender)) {
        now.remove(&job.job_id);
    }
    next
}

fn begin(runner: &Arc<Runner>, job: &Arc<Job>, sender: Sender<Signal>, signals: Receiver<Signal>) -> Option<Arc<Job>> {
    let is_new = matches!(job.state, State::Scheduled | State::Crash | State::Retriggered);
    let job = if is_new {
        let ended = || runner.has_ended(&job.job_id);
        // Whatever it says instead of answering, it is not there: only its answer lets the attempt begin.
        let ping = || match runner.knows_engine() {
            true => runner.setup.docker.ping(),
            // What an attempt is given depends on what the engine can do.
            false => runner.learn().map(drop),
        };
        let ping = || ping().map_err(|error| EngineError::Unavailable(error.to_string()));
        runner.until_engine_answers(&job.job_id, &ended, ping)?.ok()?;
        // A refusal here means that the job was cancelled meanwhile, or that the ledger is shut.
        let started = runner.setup.engine.execute(Command::Start(job.job_id.clone(), job.seq)).ok()?.job?;
        kill_point::reached("intent-durable");
        started
    } else {
        job.clone()
    };
    let open = job.open.as_ref()?;
    let container = container_name(&job.job_id, job.attempt);
    let deadline = open.manifest.get().timeout_s.map(|timeout_s| {
        let spent = Duration::from_micros(Time::now().0.saturating_sub(open.attempt_began.0));
        Instant::now() + Duration::from_secs(timeout_s).saturating_sub(spent)
    });
    let logs = runner.setup.data.join("logs").join(&*job.job_id);
    let attempt = Attempt {
        paths: OutputPaths::new(&logs, job.attempt),
        metered: runner.telemetry.begin(&job.job_id, job.attempt, &logs, runner.group(&job.job_id, &container)),
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
    kill_point::reached("group-made");
    if !is_new {
        log::info!("job {}: attempt {} is taken up again", job.job_id, job.attempt);
    }
    if attempt.metered.meter().group().is_none() {
        locate::start(runner, &attempt.container, attempt.metered.meter(), &attempt.ended);
    }
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
    metered: Metered,
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
    End(Box<Over>),
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
                let (engine, growth) = (self.runner.setup.engine.clone(), self.runner.growth.clone());
                OutputWatch::start(engine, growth, &self.job, self.paths.clone(), self.marks)
            });
            match next {
                Next::LetGo => {
                    output.abandon();
                    return None;
                }
                Next::End(over) => {
                    if over.outcome != Outcome::Completed && !self.end_strays() {
                        output.abandon();
                        return None;
                    }
                    output.finish();
                    kill_point::reached("markers-recorded");
                    let Over { outcome, ending, complete } = *over;
                    let ending = self.with_digests(ending, complete);
                    kill_point::reached("output-digested");
                    break (outcome, ending);
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
        kill_point::reached("end-durable");
        if after.state != State::Completed {
            // A completed job's workspace is needed once more, for the seal.
            self.runner.clean_up(self.container.clone());
        }
        Some(after)
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
                kill_point::reached("writer-ended");
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
                    let stopping = Stopping { asked: "timeout".into(), by: "timeout_s".into() };
                    // Durable first; it comes back as a signal.
                    let stop = Command::Stop(self.job.job_id.clone(), stopping);
                    deadline = match self.runner.setup.engine.execute(stop) {
                        // A full disk must not make the limit void.
                        Err(error) if error.status == 503 => Some(Instant::now() + RETRY_PAUSE),
                        _ => None,
                    };
                }
            }
        }
    }

    /// SIGTERM, then SIGKILL, in a thread of its own; the wait goes on. Only ever of this attempt's own container, by its id:
    /// the name may be somebody else's.
    fn stop_container(&self) {
        let (runner, container, ended) = (self.runner.clone(), self.container.clone(), self.ended.clone());
        let job = self.job.clone();
        let stopper = thread::Builder::new().name("stop".into()).stack_size(128 << 10).spawn(move || {
            while !ended.load(Ordering::Relaxed) && !runner.is_stopping() {
                match runner.setup.docker.inspect(&container) {
                    Ok(Inspect::Present(state)) if !judge::is_of(&state, &runner.setup.log_id, &job) => return,
                    Ok(Inspect::Present(state)) if state.running => {
                        if let Err(error) = runner.setup.docker.stop(&state.id, STOP_GRACE_S) {
                            log::debug!("stopping {container}: {error}");
                        }
                    }
                    Ok(Inspect::Present(state)) if state.started => return,
                    // Not created or not started yet, or the engine is away.
                    Ok(_) => {}
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

    fn is_stop_asked(&self) -> bool {
        self.stop_reason().is_some()
    }

    fn stop_reason(&self) -> Option<StopReason> {
        let job = self.runner.setup.engine.view().job(&self.job.job_id)?;
        job.stop().map(|stop| if stop.asked == "timeout" { StopReason::Timeout } else { StopReason::Cancel })
    }
}
