//! States, legal transitions, `decide(state, command, now) → events`, `apply(state, event)`. Pure.
//!
//! **Architecture Invariant**: `apply` is the same function live and in recovery, and the only one that changes a job.

mod parents;
mod prune;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::event::{
    Cancelled, Crash, D1Stable, Detail, Ending, Event, Failed, Genesis, Intent, NodeDown, NodeUp, Retriggered,
    Scheduled, Sealed, State, Stopping, Subject,
};
use super::fact::{Change, Fact};
use super::time::Time;

pub use self::parents::BATCH_BYTES_MAX;
pub use self::prune::{Prune, Prunings, prunable};
pub use super::job::{Job, Open, Phase, StoredJson, Summary, container_name};
use crate::manifest::Parsed;
use crate::rejection::Rejection;

/// How an attempt ended, as the runner saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Exit 0.
    Completed,
    /// The payload, or what Docker said before it ran, is to blame.
    Failed {
        /// See [`Failed::reason`].
        reason: String,
        /// See [`Failed::message`].
        message: String,
    },
    /// See [`Crash::cause`].
    Crashed {
        /// One of the causes.
        cause: String,
    },
}

/// What someone wants of the ledger.
#[derive(Debug)]
pub enum Command {
    /// A new ledger begins.
    Genesis(Genesis),
    /// The agent started.
    NodeUp(NodeUp),
    /// The agent stops.
    NodeDown(NodeDown),
    /// A manifest arrived.
    Submit(Box<Parsed>),
    /// Several arrived, all or none of which are taken, in whatever order.
    SubmitAll(Vec<Parsed>),
    /// A job, whose last event had this seq, was validated and hashed.
    Schedule(Arc<str>, u64, Scheduled),
    /// A job, whose last event had this seq and which was not yet started, cannot run: reason, message.
    Refuse(Arc<str>, u64, String, String),
    /// A parent of a job, whose last event had this seq and which waits for its parents, has ended and is not SEALED.
    FailByDependency(Arc<str>, u64),
    /// The runner is about to ask the engine for the next attempt of a job whose last event had this seq.
    Start(Arc<str>, u64),
    /// A marker was seen in this attempt's output.
    Mark(Arc<str>, u32, D1Stable),
    /// A cancel request, or the time limit: `asked`, `by`.
    Stop(Arc<str>, Stopping),
    /// This attempt ended.
    End(Arc<str>, u32, Outcome, Ending),
    /// The seal of this attempt is durable.
    Seal(Arc<str>, u32, Sealed),
    /// The seal of this attempt cannot be made: why.
    SealFailed(Arc<str>, u32, String),
    /// Somebody asks for a further attempt of a job that has ended: who, and the manifest as RECEIVED has it.
    Retrigger(Arc<str>, String, Box<RawValue>),
    /// The files of these jobs are to be removed.
    Prune(Prune),
}

/// Limits that decisions depend on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Jobs not yet ended, at most.
    pub jobs_open_max: usize,
    /// Bytes of their canonical manifests, at most: those are kept in memory.
    pub manifest_bytes_max: usize,
}

/// Everything the ledger's events say.
#[derive(Debug, Default)]
pub struct Ledger {
    jobs: HashMap<Arc<str>, Arc<Job>>,
    /// Texts that many jobs share: images, reasons.
    texts: HashSet<Arc<str>>,
    /// How many jobs that have not ended need a job, or what it left: as a parent, or to repeat it.
    needed: HashMap<Arc<str>, u32>,
    pruned: Prunings,
    open: usize,
    open_bytes: usize,
    log_id: Option<String>,
    boot_id: Option<Arc<str>>,
    node_up_seq: u64,
    node_is_up: bool,
    last_time: Time,
    last_seq: u64,
}

impl Ledger {
    /// A job by its id.
    pub fn job(&self, job_id: &str) -> Option<&Arc<Job>> {
        self.jobs.get(job_id)
    }

    /// Number of jobs.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there are no jobs.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Which jobs were pruned.
    pub fn pruned(&self) -> &Prunings {
        &self.pruned
    }

    /// Identity of the ledger, once GENESIS was applied.
    pub fn log_id(&self) -> Option<&str> {
        self.log_id.as_deref()
    }

    /// Whether the last NODE_UP has no NODE_DOWN behind it.
    pub fn node_is_up(&self) -> bool {
        self.node_is_up
    }

    /// All jobs, in the order they were received.
    pub fn jobs(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.jobs.values().cloned().collect();
        jobs.sort_unstable_by_key(|job| job.number);
        jobs
    }

    /// Whether what is needed of all unfinished jobs can be read; the error names the first of which it cannot.
    pub fn check_unfinished(&self) -> Result<(), String> {
        for job in self.unfinished() {
            if let Some(Err(error)) = job.open.as_ref().map(|open| open.check()) {
                return Err(format!("job {:?} has not ended, and its events cannot be read: {error}", job.job_id));
            }
        }
        Ok(())
    }

    /// The jobs that have not ended, in the order they were received.
    pub fn unfinished(&self) -> Vec<Arc<Job>> {
        let mut jobs: Vec<_> = self.jobs.values().filter(|job| job.open.is_some()).cloned().collect();
        jobs.sort_by_key(|job| job.received_seq);
        jobs
    }

    /// What `command` makes of the present state: events to append, in order. None where it changes nothing (a repeated
    /// request). A rejection is the caller's mistake; commands of the runner that do not fit are told to it as such, too.
    pub fn decide(&self, command: Command, now: Time, limits: Limits) -> Result<Vec<Event>, Rejection> {
        let time = now.max(self.last_time);
        let node = |detail| Ok(vec![Event { time, subject: None, detail }]);
        let event = |job_id: &Arc<str>, attempt: u32, detail| Event {
            time,
            subject: Some(Subject { job_id: job_id.clone(), attempt }),
            detail,
        };
        match command {
            Command::Genesis(genesis) => node(Detail::Genesis(genesis)),
            Command::NodeUp(up) => node(Detail::NodeUp(up)),
            Command::NodeDown(down) => node(Detail::NodeDown(down)),
            Command::Prune(prune) => Ok(self
                .prune(prune, now)
                .map(Detail::Pruned)
                .map_or(Vec::new(), |detail| vec![Event { time, subject: None, detail }])),
            Command::Submit(parsed) => self.submit(&parsed, time, limits),
            Command::SubmitAll(batch) => self.submit_all(&batch, time, limits),
            Command::Schedule(id, seq, scheduled) => {
                self.expect_seq(&id, seq)?;
                let job = self.expect(&id, State::Scheduled)?;
                self.expect_ready(job)?;
                Ok(vec![event(&id, job.attempt, Detail::Scheduled(scheduled))])
            }
            Command::Refuse(id, seq, reason, message) => {
                self.expect_seq(&id, seq)?;
                let job = self.expect(&id, State::Failed)?;
                let failed = Failed::new(reason, message, Ending::default());
                Ok(vec![event(&id, job.attempt, Detail::Failed(failed))])
            }
            Command::FailByDependency(id, seq) => {
                self.expect_seq(&id, seq)?;
                let job = self.expect(&id, State::Failed)?;
                Ok(vec![event(&id, job.attempt, Detail::Failed(self.fail_by_dependency(job)?))])
            }
            Command::Start(id, seq) => {
                self.expect_seq(&id, seq)?;
                let job = self.get(&id)?;
                if let Some(failed) = give_up(job).filter(|_| job.state == State::Crash) {
                    // The agent died between the crash and this; see `end`.
                    return Ok(vec![event(&id, job.attempt, Detail::Failed(failed))]);
                }
                let first = job.attempt == 0;
                let job = self.expect(&id, if first { State::Running } else { State::Recovery })?;
                let attempt = job.attempt + 1;
                let resumed_after = if first { None } else { job.last_d1_stable.as_deref().map(str::to_owned) };
                let intent =
                    Intent { container: container_name(&id, attempt), node_up: self.node_up_seq, resumed_after };
                let detail = if first { Detail::Running(intent) } else { Detail::Recovery(intent) };
                Ok(vec![event(&id, attempt, detail)])
            }
            Command::Mark(id, attempt, mark) => {
                self.expect_attempt(&id, attempt, State::D1Stable)?;
                Ok(vec![event(&id, attempt, Detail::D1Stable(mark))])
            }
            Command::Stop(id, stopping) => {
                let job = self.get(&id)?;
                if job.stop().is_some() || job.state == State::Cancelled {
                    return Ok(Vec::new());
                }
                if job.is_running() {
                    return Ok(vec![event(&id, job.attempt, Detail::Stopping(stopping))]);
                }
                let job = self.expect(&id, State::Cancelled)?;
                let cancelled = Cancelled { by: stopping.by, ending: Ending::default() };
                Ok(vec![event(&id, job.attempt, Detail::Cancelled(cancelled))])
            }
            Command::End(id, attempt, outcome, ending) => {
                let job = self.get(&id)?;
                let details = end(job, outcome, ending);
                self.expect_attempt(&id, attempt, details[0].state())?;
                Ok(details.into_iter().map(|detail| event(&id, attempt, detail)).collect())
            }
            Command::Seal(id, attempt, sealed) => {
                self.expect_attempt(&id, attempt, State::Sealed)?;
                Ok(vec![event(&id, attempt, Detail::Sealed(sealed))])
            }
            Command::SealFailed(id, attempt, message) => {
                // Where it could be sealed, it can fail to be; elsewhere it is another attempt's affair.
                self.expect_attempt(&id, attempt, State::Sealed)?;
                let failed = Failed::new("seal", message, Ending::default());
                Ok(vec![event(&id, attempt, Detail::Failed(failed))])
            }
            Command::Retrigger(id, by, manifest) => {
                let job = self.get(&id)?;
                if job.open.as_ref().is_some_and(|open| open.retriggered_at.is_some()) {
                    return Ok(Vec::new());
                }
                if !job.allows(State::Retriggered) {
                    let why = match &job.open {
                        Some(_) => "has not ended".to_owned(),
                        None => format!("ended {} ({})", job.state, job.reason.as_deref().unwrap_or("exit 0")),
                    };
                    let message = format!(
                        "job {id:?} {why}; only jobs that are CANCELLED, or FAILED by a crash (attempt_limit, oom) or \
                         because of another job (dependency), can be retriggered: submit it under a new job_id"
                    );
                    return Err(Rejection::new(409, "wrong_state", message));
                }
                self.expect_parents(job)?;
                self.check_room(1, manifest.get().len(), limits)?;
                let retriggered = Retriggered { by, manifest, manifest_hash: job.manifest_hash };
                Ok(vec![event(&id, job.attempt, Detail::Retriggered(retriggered))])
            }
        }
    }

    /// Whether so many more jobs, with manifests of so many bytes together, may be unfinished.
    fn check_room(&self, jobs: usize, manifest_bytes: usize, limits: Limits) -> Result<(), Rejection> {
        if self.open + jobs > limits.jobs_open_max {
            let message = format!("{} jobs have not ended yet; submit again later", self.open);
            return Err(Rejection::new(429, "queue_full", message));
        }
        if self.open_bytes + manifest_bytes > limits.manifest_bytes_max {
            let message =
                format!("the manifests of unfinished jobs take {} bytes; submit again later", self.open_bytes);
            return Err(Rejection::new(429, "queue_full", message));
        }
        Ok(())
    }

    fn get(&self, job_id: &str) -> Result<&Arc<Job>, Rejection> {
        self.jobs.get(job_id).ok_or_else(|| {
            Rejection::new(404, "no_such_job", format!("no job {job_id:?}; GET /api/jobs lists them")).field("job_id")
        })
    }

    fn expect(&self, job_id: &str, to: State) -> Result<&Arc<Job>, Rejection> {
        let job = self.get(job_id)?;
        if job.allows(to) {
            return Ok(job);
        }
        let message = format!("job {job_id:?} is {}; it cannot become {to}", job.state);
        Err(Rejection::new(409, "wrong_state", message))
    }

    /// What the runner decides on must still be so: a job may have been cancelled and retriggered since.
    fn expect_seq(&self, job_id: &str, seq: u64) -> Result<(), Rejection> {
        let job = self.get(job_id)?;
        if job.seq == seq {
            return Ok(());
        }
        let message = format!("job {job_id:?} has gone on from event {seq} to event {}", job.seq);
        Err(Rejection::new(409, "superseded", message))
    }

    fn expect_attempt(&self, job_id: &str, attempt: u32, to: State) -> Result<(), Rejection> {
        let job = self.expect(job_id, to)?;
        if job.attempt == attempt {
            return Ok(());
        }
        let message = format!("job {job_id:?} is at attempt {}, not {attempt}", job.attempt);
        Err(Rejection::new(409, "wrong_attempt", message))
    }

    /// Takes in the next event, which was read from `bytes`. The error says which rule it breaks; then nothing has changed.
    pub fn apply(&mut self, fact: &Fact, bytes: &[u8]) -> Result<Option<Arc<Job>>, String> {
        if fact.seq != self.last_seq + 1 {
            return Err(format!("seq {} follows seq {}", fact.seq, self.last_seq));
        }
        if fact.time < self.last_time {
            return Err(format!("time goes back from {} to {}", self.last_time, fact.time));
        }
        if (fact.seq == 1) != (fact.state == State::Genesis) {
            return Err("GENESIS must be the first event, and only the first".into());
        }
        let changed = match &fact.subject {
            None => {
                self.apply_to_node(fact, bytes)?;
                None
            }
            Some((job_id, attempt)) => Some(self.apply_to_job(fact, bytes, job_id.of(bytes), *attempt)?),
        };
        self.last_seq = fact.seq;
        self.last_time = fact.time;
        Ok(changed)
    }

    fn apply_to_node(&mut self, fact: &Fact, bytes: &[u8]) -> Result<(), String> {
        match &fact.change {
            Change::Genesis { log_id } => self.log_id = Some(log_id.of(bytes).to_owned()),
            Change::NodeUp { boot_id } => {
                self.boot_id = Some(boot_id.of(bytes).into());
                self.node_up_seq = fact.seq;
                self.node_is_up = true;
            }
            Change::NodeDown => self.node_is_up = false,
            Change::Pruned { jobs } => self.apply_pruned(fact.seq, jobs, bytes)?,
            _ => return Err(format!("{} without a job", fact.state)),
        }
        Ok(())
    }

    fn apply_to_job(&mut self, fact: &Fact, bytes: &[u8], job_id: &str, attempt: u32) -> Result<Arc<Job>, String> {
        let state = fact.state;
        let Some(known) = self.jobs.get_mut(job_id) else {
            return self.receive(fact, bytes, job_id);
        };
        if !known.allows(state) {
            return Err(format!("job {job_id:?}: {state} does not follow {}", known.state));
        }
        if matches!(&fact.change, Change::Retriggered { manifest_hash, .. } if *manifest_hash != known.manifest_hash) {
            return Err(format!("job {job_id:?}: it is retriggered with another manifest"));
        }
        let starts = matches!(state, State::Running | State::Recovery);
        if attempt != known.attempt + u32::from(starts) {
            return Err(format!("job {job_id:?}: {state} of attempt {attempt} at attempt {}", known.attempt));
        }
        let mut lineage = known.lineage.clone();
        let mut known = known;
        if lineage.is_some() || state == State::Failed {
            let job = known.clone();
            lineage = self.lineage_after(&job, fact, bytes).map_err(|error| format!("job {job_id:?}: {error}"))?;
            drop(job);
            known = self.jobs.get_mut(job_id).expect("it was there before");
        }
        // In place where nobody else looks at it, as in recovery; otherwise a copy, and readers keep what they have.
        let job = Arc::make_mut(known);
        job.state = state;
        job.seq = fact.seq;
        job.attempt = attempt;
        job.seen |= 1 << state as u16;
        let texts = &mut self.texts;
        change(job, fact, bytes, self.boot_id.as_ref(), &mut |text| share(texts, text));
        job.lineage = lineage;
        if state == State::Retriggered {
            self.open += 1;
            self.open_bytes += job.open.as_ref().map_or(0, |open| open.manifest.bytes());
            prune::need(&mut self.needed, job);
        }
        if state.is_end() {
            job.ended = Some(fact.time);
            prune::need_no_more(&mut self.needed, job);
            self.open -= 1;
            self.open_bytes -= job.open.take().map_or(0, |open| open.manifest.bytes());
        }
        Ok(known.clone())
    }

    fn receive(&mut self, fact: &Fact, bytes: &[u8], job_id: &str) -> Result<Arc<Job>, String> {
        let Change::Received { manifest, manifest_hash, image_hash, parents, reproduces } = &fact.change else {
            return Err(format!("{} of an unknown job {job_id:?}", fact.state));
        };
        let lineage = self.lineage_of(parents, bytes).map_err(|error| format!("job {job_id:?}: {error}"))?;
        let manifest = StoredJson::new(manifest.of(bytes));
        let number = u32::try_from(self.jobs.len()).map_err(|_| "there are more jobs than a ledger can hold")?;
        self.open += 1;
        self.open_bytes += manifest.bytes();
        let job = Arc::new(Job {
            job_id: job_id.into(),
            number,
            state: State::Received,
            attempt: 0,
            seq: fact.seq,
            received_seq: fact.seq,
            received: fact.time,
            started: None,
            ended: None,
            image_hash: share(&mut self.texts, image_hash.of(bytes)),
            manifest_hash: *manifest_hash,
            image_id: None,
            execution_hash: None,
            exit_code: None,
            reason: None,
            last_d1_stable: None,
            seen: 1 << State::Received as u16,
            lineage,
            open: Some(Box::new(Open {
                reproduces: reproduces.as_ref().map(|of| of.of(bytes).into()),
                ..Open::new(manifest, fact.time)
            })),
        });
        prune::need(&mut self.needed, &job);
        self.jobs.insert(job.job_id.clone(), job.clone());
        Ok(job)
    }
}

/// The one copy of a text.
fn share(texts: &mut HashSet<Arc<str>>, text: &str) -> Arc<str> {
    match texts.get(text) {
        Some(known) => known.clone(),
        None => {
            let text: Arc<str> = text.into();
            texts.insert(text.clone());
            text
        }
    }
}

fn change(
    job: &mut Job,
    fact: &Fact,
    bytes: &[u8],
    boot_id: Option<&Arc<str>>,
    share: &mut dyn FnMut(&str) -> Arc<str>,
) {
    if let Change::Retriggered { manifest, reproduces, .. } = &fact.change {
        let open = Open::new(StoredJson::new(manifest.of(bytes)), fact.time);
        let reproduces = reproduces.as_ref().map(|of| of.of(bytes).into());
        job.open = Some(Box::new(Open { retriggered_at: Some(job.attempt), reproduces, ..open }));
        job.ended = None;
    }
    let open = job.open.as_mut().expect("an ended job allows no other event");
    match &fact.change {
        Change::Scheduled { image_id, execution_hash } => {
            job.image_id = Some(share(image_id.of(bytes)));
            job.execution_hash = Some(*execution_hash);
        }
        Change::Started => {
            job.started.get_or_insert(fact.time);
            open.attempt_began = fact.time;
            open.boot_id = boot_id.cloned().unwrap_or_else(|| "".into());
            open.marks = [None; 2];
        }
        Change::Marked { line, on_stderr, offset } => {
            job.last_d1_stable = Some(line.of(bytes).into());
            open.marks[usize::from(*on_stderr)] = Some(*offset);
        }
        Change::Stopping { detail } => open.stop = Some(StoredJson::new(detail.of(bytes))),
        Change::Ended { exit_code, reason, .. } => {
            // A failure to seal, and one that follows a crash, leave the attempt's exit code as it is.
            job.exit_code = if fact.state == State::Failed { exit_code.or(job.exit_code) } else { *exit_code };
            job.reason = reason.as_ref().map(|reason| share(reason.of(bytes)));
        }
        Change::Genesis { .. }
        | Change::NodeUp { .. }
        | Change::NodeDown
        | Change::Received { .. }
        | Change::Retriggered { .. }
        | Change::Pruned { .. }
        | Change::Sealed => {}
    }
}

/// Why a crashed job gets no further attempt, if so.
fn give_up(job: &Job) -> Option<Failed> {
    let open = job.open.as_ref();
    let attempts_max = open.map_or(1, |open| open.manifest.get().max_attempts);
    let earlier = open.and_then(|open| open.retriggered_at).unwrap_or(0);
    let cause = job.reason.as_deref().unwrap_or_default();
    let (reason, message) = if cause == "oom" {
        ("oom", "the attempt ran out of memory; raise resources.memory_mib".to_owned())
    } else if job.attempt - earlier >= attempts_max {
        let after = if earlier > 0 { format!(", after {earlier} before it was retriggered") } else { String::new() };
        ("attempt_limit", format!("attempt {} of {attempts_max} crashed ({cause}){after}", job.attempt - earlier))
    } else {
        return None;
    };
    let ending = Ending { exit_code: job.exit_code, ..Ending::default() };
    Some(Failed::new(reason, message, ending))
}

/// The events that end an attempt.
fn end(job: &Job, outcome: Outcome, ending: Ending) -> Vec<Detail> {
    if let Some(stop) = job.stop() {
        return vec![match stop.asked.as_str() {
            "timeout" => Detail::Failed(Failed::new("timeout", "the attempt ran longer than timeout_s", ending)),
            _ => Detail::Cancelled(Cancelled { by: stop.by.clone(), ending }),
        }];
    }
    match outcome {
        Outcome::Completed => vec![Detail::Completed(ending)],
        Outcome::Failed { reason, message } => vec![Detail::Failed(Failed::new(reason, message, ending))],
        Outcome::Crashed { cause } => {
            let mut crashed = Job::clone(job);
            crashed.reason = Some(cause.as_str().into());
            crashed.exit_code = ending.exit_code;
            let mut details = vec![Detail::Crash(Crash { cause, ending })];
            details.extend(give_up(&crashed).map(Detail::Failed));
            details
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
