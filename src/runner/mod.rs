//! Runs jobs: queues that hand work out, the threads that take it, and what is known of the engine.
//!
//! The ledger's state is the truth; the channels only hand work out. They are empty after a crash and refilled from it.

mod attempt;
pub mod cgroup;
mod claims;
mod cleanup;
mod copying;
mod depths;
pub mod docker;
mod fault;
mod gate;
pub mod growth;
mod kernel_log;
pub mod mounts;
mod namespace;
pub mod outage;
pub mod output;
mod pins;
mod progress;
pub mod prune;
mod queues;
mod reproduce;
mod schedule;
pub mod sealed;
mod staging;
mod stray;
pub mod telemetry;
mod watch;
mod witness;
mod workspace;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use serde_json::{Value, json};

use self::cgroup::{AttemptGroup, Hierarchies, Unavailable};
use self::claims::{Table, Turn};
use self::docker::{Docker, EngineError, EngineInfo};
use self::fault::Fault;
use self::gate::Look;
use self::growth::Growth;
use self::mounts::MountPolicy;
use self::outage::Outages;
use self::pins::Pins;
use self::progress::Progresses;
pub use self::queues::Queues;
use self::queues::{Busy, Queue, Signal, Stage};
use self::telemetry::Telemetry;
use crate::config::Pull;
use crate::engine::Engine;
use crate::host::Host;
use crate::ledger::event::State;
use crate::ledger::lifecycle::{Job, Open};
use crate::manifest::Resources;
use crate::resources::{EngineCapacity, ResourceLimits};
use crate::sys::AbortOnPanic;

/// How often the engine is asked whether it is there, while nothing else asks it.
const PING_EVERY: Duration = Duration::from_secs(2);
/// The same while it is away: when its process was gone, and when it was back, are told by this.
const PING_EVERY_AWAY: Duration = Duration::from_millis(200);
/// How often a tree that changes while it is hashed is hashed again.
const HOLD_STILL_TRIES: u32 = 5;
/// Pauses while the engine is away: the first, and the longest.
const ENGINE_BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long the start of the agent waits for the engine's fingerprint.
const FINGERPRINT_WAIT: Duration = Duration::from_secs(2);
/// Before a job is offered again of which another thread still has what it was before.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Threads that resolve images and hash inputs, as many that pull, and as many that copy.
const SCHEDULERS: usize = 2;

/// What a runner needs.
pub struct Setup {
    /// The ledger.
    pub engine: Engine,
    /// The container engine.
    pub docker: Docker,
    /// Mount safety.
    pub mounts: Arc<MountPolicy>,
    /// `--data`.
    pub data: PathBuf,
    /// Identity of the ledger; labels containers.
    pub log_id: String,
    /// The host.
    pub host: Host,
    /// What attempts get.
    pub resources: Arc<ResourceLimits>,
    /// `--workers`.
    pub workers: usize,
    /// `--pull`.
    pub pull: Pull,
}

struct Slot(Arc<Runner>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.slots.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.slot_freed.notify_one();
    }
}

/// Takes jobs from RECEIVED to their end.
pub struct Runner {
    setup: Setup,
    queues: Queues,
    stopping: AtomicBool,
    /// Attempts under way.
    slots: Mutex<usize>,
    slot_freed: Condvar,
    busy: Mutex<HashSet<(Stage, Arc<str>)>>,
    /// Containers whose clean-up is not done yet.
    cleaning: AtomicUsize,
    pins: Pins,
    /// What is known of the engine; `None` until it answered once.
    info: Mutex<Option<EngineInfo>>,
    away: Mutex<Option<String>>,
    /// When it was there, and as which process.
    outages: Mutex<Outages>,
    /// Why a job does not go on, for its summary.
    waiting: Mutex<HashMap<Arc<str>, String>>,
    progresses: Progresses,
    telemetry: Arc<Telemetry>,
    growth: Arc<Growth>,
    /// Who may use which directories.
    claims: Mutex<Table>,
    /// Jobs that hold copies, or are being given some.
    copies: Mutex<HashSet<Arc<str>>>,
    /// Held while a request compares inputs with what is there.
    comparing: Mutex<()>,
    /// Held while files of pruned jobs are removed.
    pruning: Mutex<()>,
    /// Look-ups of directories that have not come back.
    looking_up: AtomicUsize,
}

impl Runner {
    /// A runner whose threads do not run yet.
    pub fn new(setup: Setup, queues: Queues) -> Arc<Self> {
        let pins = Pins::new(short(&setup.log_id));
        Arc::new(Self {
            setup,
            queues,
            pins,
            stopping: AtomicBool::new(false),
            slots: Mutex::default(),
            slot_freed: Condvar::new(),
            busy: Mutex::default(),
            cleaning: AtomicUsize::new(0),
            info: Mutex::default(),
            away: Mutex::default(),
            outages: Mutex::default(),
            waiting: Mutex::default(),
            progresses: Progresses::default(),
            telemetry: Arc::default(),
            growth: Arc::default(),
            claims: Mutex::default(),
            copies: Mutex::default(),
            comparing: Mutex::default(),
            pruning: Mutex::default(),
            looking_up: AtomicUsize::new(0),
        })
    }

    /// What the engine says of itself, for NODE_UP: its fingerprint, or why it does not answer. An engine that hangs must
    /// not keep the agent from starting, so the question is asked in a thread of its own.
    pub fn fingerprint(self: &Arc<Self>) -> Value {
        let (sender, answer) = bounded(1);
        let asked = self.spawn("engine-info", move |runner| drop(sender.send(runner.learn())));
        let answer = asked.ok().and_then(|()| answer.recv_timeout(FINGERPRINT_WAIT).ok());
        match answer.unwrap_or_else(|| Err(EngineError::Unavailable("it takes too long to answer".into()))) {
            Ok(info) => json!({
                "available": true,
                "version": info.version,
                "api_version": info.api_version,
                "cli_version": info.cli_version,
                "containerd_version": info.containerd_version,
                "runc_version": info.runc_version,
                "runtimes": info.runtimes,
                "default_runtime": info.default_runtime,
                "security_options": info.security_options,
                "storage_driver": info.storage_driver,
                "cgroup_driver": info.cgroup_driver,
                "cgroup_version": info.cgroup_version,
                "kernel": info.kernel,
            }),
            Err(error) => json!({ "available": false, "message": error.to_string() }),
        }
    }

    /// Hands out what `unfinished` jobs wait for, and starts the threads.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start(self: &Arc<Self>, unfinished: &[Arc<Job>]) -> io::Result<()> {
        let held: Vec<_> = unfinished.iter().filter(|job| !claims::waits(job)).cloned().collect();
        held.iter().for_each(|job| claims::hold(self, job));
        for job in unfinished {
            let has_copies = |open: &Open| !claims::waits(job) && copying::is_shown_copies(open.manifest.get());
            if job.open.as_deref().is_some_and(has_copies) {
                copying::hold(self, job, usize::MAX);
            }
            if let Some(image_id) = &job.image_id {
                self.pins.inherit(image_id, &job.job_id);
            }
            match job.state {
                State::Received | State::Retriggered if gate::is_shut(self, job) => {
                    let _ = self.queues.gate.0.send(Look::Waits(job.clone()));
                }
                State::Received | State::Retriggered => drop(self.queues.claim.0.send(Turn::Wants(job.clone()))),
                State::Scheduled | State::Crash => self.queues.offer(&self.queues.run.0, job),
                // Its container may run already, so it is looked after at once, however few the workers. It counts as one
                // of them: what is launched has to wait until there is room again.
                _ => {
                    let slot = self.take_slot(false);
                    let job = job.clone();
                    self.spawn("adopt", move |runner| {
                        let _slot = slot;
                        let _busy = Busy::enter(runner, Stage::Run, &job.job_id);
                        attempt::run(runner, &job);
                        runner.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.job_id);
                    })?;
                }
            }
        }
        self.spawn("gate", gate::keep)?;
        self.spawn("claims", move |runner| claims::keep(runner, held))?;
        self.spawn("engine-watch", Self::watch_engine)?;
        self.spawn("clean-up", |runner| runner.keep_clean())?;
        self.spawn("prune", Self::finish_pruning)?;
        self.spawn("telemetry", |runner| {
            runner.telemetry.run(&|| runner.is_stopping(), &|| runner.setup.engine.view().ring());
        })?;
        for _ in 0..SCHEDULERS {
            self.spawn("schedule", |runner| {
                runner.take_from(&runner.queues.schedule, Stage::Prepare, schedule::schedule)
            })?;
            self.spawn("pull", |runner| {
                runner.take_from(&runner.queues.pull, Stage::Prepare, schedule::pull_and_schedule)
            })?;
            self.spawn("copy", |runner| {
                runner.take_from(&runner.queues.copy, Stage::Prepare, schedule::copy_and_schedule)
            })?;
        }
        for _ in 0..self.setup.workers {
            self.spawn("worker", |runner| {
                runner.take_from(&runner.queues.run, Stage::Run, |runner, job| {
                    let _slot = runner.take_slot(true);
                    if !runner.is_stopping() {
                        attempt::run(runner, job);
                    }
                });
            })?;
        }
        Ok(())
    }

    /// Lets go of everything; containers go on and are adopted by the next agent.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.queues.signal_all(Signal::Shutdown);
    }

    /// Why a job does not go on.
    pub fn waiting_for(&self, job: &Job) -> Option<String> {
        let noted = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).get(&job.job_id).cloned();
        noted.or_else(|| claims::waiting_for(self, &job.job_id)).or_else(|| gate::waiting_for(self, job))
    }

    /// The samples of attempts under way.
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.telemetry
    }

    /// How much attempts under way have printed.
    pub fn growth(&self) -> &Arc<Growth> {
        &self.growth
    }

    /// For `/api/node`.
    pub fn engine_status(&self) -> Value {
        let away = self.away.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "available": away.is_none(),
            "message": away,
            "version": info.as_ref().map(|info| info.version.clone()),
            "nvidia": info.as_ref().map(|info| info.nvidia),
        })
    }

    /// What the engine can give, if it has told. Before GPUs are refused it is asked anew: somebody may just have given it
    /// the runtime for them.
    pub fn capacity_for(&self, asked: &Resources) -> Option<EngineCapacity> {
        let known = || self.info.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(EngineInfo::capacity);
        match known() {
            Some(engine) if asked.gpus.is_some_and(|gpus| gpus > 0) && !engine.nvidia => {
                self.learn().ok().map(|info| info.capacity())
            }
            known => known,
        }
    }

    /// One of `--workers` places for a container; waits for one if `patient`, else takes one too many.
    fn take_slot(self: &Arc<Self>, patient: bool) -> Slot {
        let mut taken = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        while patient && *taken >= self.setup.workers && !self.is_stopping() {
            taken = self.slot_freed.wait_timeout(taken, PING_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        *taken += 1;
        Slot(self.clone())
    }

    fn spawn(self: &Arc<Self>, name: &str, run: impl FnOnce(&Arc<Self>) + Send + 'static) -> io::Result<()> {
        let runner = self.clone();
        let run = move || {
            // Half the runner's threads would be worse than none: the next agent takes everything up again.
            let _guard = AbortOnPanic;
            run(&runner);
        };
        thread::Builder::new().name(name.into()).spawn(run).map(drop)
    }

    fn take_from(self: &Arc<Self>, queue: &Queue, stage: Stage, work: fn(&Arc<Self>, &Arc<Job>)) {
        while let Ok(job) = queue.1.recv() {
            if self.is_stopping() {
                return;
            }
            // Whoever was cancelled while it waited has ended, or was even retriggered, and then has another entry.
            if self.setup.engine.view().job(&job.job_id).is_none_or(|now| now.open.is_none() || now.seq != job.seq) {
                continue;
            }
            let Some(_busy) = Busy::enter(self, stage, &job.job_id) else {
                // Somebody is not done yet with what the job was before.
                self.pause(BUSY_PAUSE, &|| false);
                let _ = queue.0.send(job);
                continue;
            };
            work(self, &job);
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&job.job_id);
        }
    }

    /// Whether the engine has told of itself.
    fn knows_engine(&self) -> bool {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn has_ended(&self, job_id: &str) -> bool {
        self.setup.engine.view().job(job_id).is_none_or(|now| now.open.is_none())
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn note_waiting(&self, job_id: &Arc<str>, why: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.insert(job_id.clone(), why.to_owned()).is_none_or(|before| before != why) {
            log::info!("job {job_id}: waits: {why}");
        }
    }

    fn watch_engine(self: &Arc<Self>) {
        while !self.is_stopping() {
            let asked = self.glance();
            match self.setup.docker.ping() {
                Ok(()) => {
                    self.note_answer(asked);
                    self.engine_is_there();
                    self.pins.sweep(&self.setup.docker, false);
                    thread::sleep(PING_EVERY);
                }
                Err(error) => {
                    self.engine_is_away(&error);
                    thread::sleep(PING_EVERY_AWAY);
                }
            }
        }
    }

    fn engine_is_there(&self) {
        let was_away = self.away.lock().unwrap_or_else(PoisonError::into_inner).take();
        if was_away.is_some() {
            log::info!("the container engine answers again");
        }
        // One that has started anew may be another version, or have other settings.
        if self.info.lock().unwrap_or_else(PoisonError::into_inner).is_none() || self.outages().is_to_be_asked() {
            let _ = self.learn();
        }
    }

    fn engine_is_away(&self, error: &EngineError) {
        self.note_silence();
        let words = error.to_string();
        let before = self.away.lock().unwrap_or_else(PoisonError::into_inner).replace(words.clone());
        if before.is_none() {
            log::warn!("the container engine does not answer; jobs wait: {words}");
        }
    }

    fn learn(&self) -> Result<EngineInfo, EngineError> {
        let asked = self.glance();
        let outcome = self.setup.docker.ping().and_then(|()| self.setup.docker.info());
        match &outcome {
            Ok(info) => {
                if self.note_answer(asked) {
                    self.outages().told(info.live_restore);
                }
                self.away.lock().unwrap_or_else(PoisonError::into_inner).take();
                *self.info.lock().unwrap_or_else(PoisonError::into_inner) = Some(info.clone());
            }
            Err(error) => self.engine_is_away(error),
        }
        outcome
    }

    fn short_log_id(&self) -> &str {
        short(&self.setup.log_id)
    }

    fn hierarchies(&self) -> Option<Hierarchies> {
        let info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        info.as_ref().and_then(|info| Hierarchies::detect(info).ok())
    }

    /// None until the engine has told of itself.
    fn host_hierarchies(&self) -> Option<Result<Hierarchies, Unavailable>> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Hierarchies::of_host)
    }

    /// An attempt's own control group: what an earlier agent made, or a new one. None where the engine's driver, or the right
    /// to make one, is missing.
    fn group(&self, job_id: &str, container: &str) -> Option<AttemptGroup> {
        let left =
            Hierarchies::mounted().ok().and_then(|h| AttemptGroup::left_behind(&h, self.short_log_id(), container));
        left.or_else(|| match AttemptGroup::create(&self.hierarchies()?, self.short_log_id(), container) {
            Ok(group) => Some(group),
            Err(error) => {
                log::warn!("job {job_id}: {error}");
                None
            }
        })
    }

    /// Repeats `ask` until the engine answers. `None`: the agent stops, or `give_up` says so.
    fn until_engine_answers<T>(
        &self,
        job_id: &Arc<str>,
        give_up: &dyn Fn() -> bool,
        mut ask: impl FnMut() -> Result<T, EngineError>,
    ) -> Option<Result<T, EngineError>> {
        let mut pause = ENGINE_BACKOFF.0;
        loop {
            if self.is_stopping() || give_up() {
                return None;
            }
            let asked = self.glance();
            match ask() {
                Err(error @ EngineError::Unavailable(_)) => {
                    self.engine_is_away(&error);
                    self.note_waiting(job_id, &format!("the container engine: {error}"));
                }
                answer => {
                    self.note_answer(asked);
                    self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(job_id);
                    return Some(answer);
                }
            }
            self.pause(pause, give_up);
            pause = (pause * 2).min(ENGINE_BACKOFF.1);
        }
    }

    /// Repeats `work` until it does not fail for want of disk space: a full disk is nobody's fault. Inputs that change while
    /// they are hashed get a few chances to hold still. `None`: the agent stops, or `give_up` says so.
    fn until_there_is_space<T>(
        &self,
        job_id: &Arc<str>,
        give_up: &dyn Fn() -> bool,
        mut work: impl FnMut() -> Result<T, Fault>,
    ) -> Option<Result<T, Fault>> {
        let mut tries = 0;
        loop {
            match work() {
                Err(fault) if fault.given_up => {
                    self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(job_id);
                    return None;
                }
                Err(fault) if fault.may_hold_still && tries < HOLD_STILL_TRIES => {
                    tries += 1;
                    self.note_waiting(job_id, &fault.message);
                }
                Err(fault) if fault.disk_is_full => {
                    self.note_waiting(job_id, &format!("disk space: {}", fault.message))
                }
                outcome => {
                    self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(job_id);
                    return Some(outcome);
                }
            }
            self.pause(ENGINE_BACKOFF.1, give_up);
            if self.is_stopping() || give_up() {
                return None;
            }
        }
    }

    fn pause(&self, time: Duration, give_up: &dyn Fn() -> bool) {
        let step = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() && !self.is_stopping() && !give_up() {
            thread::sleep(step.min(left));
            left = left.saturating_sub(step);
        }
    }
}

fn short(log_id: &str) -> &str {
    log_id.get(..8).unwrap_or(log_id)
}
