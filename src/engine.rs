//! The ledger thread: decides and appends in batches, and only after the sync publishes, replies, acts.
//!
//! It may decide on state that is not durable yet, because a failed append or sync ends the process: nobody is ever told of
//! what did not become durable.

mod answers;

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased, unbounded};

pub use self::answers::Asked;
use self::answers::{Reply, Waking, answer};
use crate::hash::Hash;
use crate::ledger::event::Event;
use crate::ledger::fact::{Change, Fact};
use crate::ledger::lifecycle::{BATCH_BYTES_MAX, Command, Job, Ledger, Limits};
use crate::ledger::time::Time;
use crate::manifest::Parsed;
use crate::rejection::Rejection;
use crate::view::{Published, Seqs, View};
use crate::wal::AbortOnPanic;
use crate::wal::meters::Meters;
use crate::wal::recovery::{Reading, Record, Scan, ScanError};
use crate::wal::storage::Storage;
use crate::wal::writer::{Latched, Options, Outcome, RECORD_BYTES_MAX, Wal};

/// Commands that may wait at the engine's door; senders block beyond that.
const COMMANDS_QUEUED_MAX: usize = 1024;
// What is decided at once is appended at once.
const _: () = assert!(BATCH_BYTES_MAX <= RECORD_BYTES_MAX);

/// A command that took effect, durably.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The job as its last event left it; `None` for node commands.
    pub job: Option<Arc<Job>>,
    /// Whether events were written. A repeated request writes none.
    pub changed: bool,
    /// Of a submission of several: each job, and whether it is new, in the order given.
    pub batch: Vec<(Arc<Job>, bool)>,
}

/// Called with each job whose event has just become durable, in order, by the engine's thread: it must not block.
pub type OnJob = Box<dyn FnMut(&Arc<Job>) + Send>;
/// Called once, when the ledger latches.
pub type OnFault = Box<dyn FnOnce(&Latched) + Send>;

/// Handle to the ledger thread; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    messages: Sender<Message>,
    view: Arc<View>,
    waking: Arc<Waking>,
    meters: Arc<Meters>,
}

/// The ledger as it was found, before its thread starts.
pub struct Recovered {
    wal: Wal,
    outcomes: Receiver<Outcome>,
    view: Arc<View>,
    ledger: Ledger,
    /// What the log's scan found.
    pub scan: Scan,
}

/// The thread behind an [`Engine`].
pub struct EngineThread(JoinHandle<()>);

/// What comes of a command.
pub type Answer = Result<Accepted, Rejection>;

enum Message {
    Command(Box<Command>, Reply),
    /// With a last command, whose answer nobody waits for: on a full disk it might never come.
    Close(Option<Box<Command>>),
}

impl Recovered {
    /// Opens the log and folds its events.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<Self, ScanError> {
        let (outcome_sender, outcomes) = unbounded();
        let mut ledger = Ledger::default();
        let mut seqs: Vec<Seqs> = Vec::new();
        let mut prev = Hash::ZERO;
        let mut visit = |record: &Record<'_>, fact| {
            let job = fold(&mut ledger, record, &prev, fact)?;
            prev = Hash(record.hash);
            if let Some(job) = job {
                let number = job.number as usize;
                if number == seqs.len() {
                    seqs.push(Seqs::default());
                }
                seqs[number].push(record.seq);
            }
            Ok(())
        };
        let on_outcome = Box::new(move |outcome| {
            // The engine outlives the log; should it not, there is nobody left to tell.
            let _ = outcome_sender.send(outcome);
        });
        let reading = Reading { parse: &Fact::parse, visit: &mut visit };
        let (wal, scan) = Wal::open_parsed(storage, options, reading, on_outcome)?;
        ledger.check_unfinished().map_err(ScanError::Unreadable)?;
        let head = (scan.position.next_seq - 1, prev);
        let view = View::new(wal.reader(), head, ledger.jobs().into_iter().zip(seqs), ledger.pruned().clone());
        Ok(Self { wal, outcomes, view: Arc::new(view), ledger, scan })
    }

    /// What the events say.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Starts the ledger thread.
    pub fn start(self, limits: Limits, on_job: OnJob, on_fault: OnFault) -> std::io::Result<(Engine, EngineThread)> {
        let (messages, inbox) = bounded(COMMANDS_QUEUED_MAX);
        let waking = Arc::new(Waking::default());
        let (view, meters) = (self.view.clone(), self.wal.meters());
        let engine = Engine { messages, view, waking: waking.clone(), meters };
        let worker = Worker {
            wal: Some(self.wal),
            ledger: self.ledger,
            view: self.view,
            limits,
            staged: VecDeque::new(),
            replies: VecDeque::new(),
            waking,
            durable_below: self.scan.position.next_seq,
            on_job,
            on_fault: Some(on_fault),
        };
        let outcomes = self.outcomes;
        let thread = thread::Builder::new().name("engine".into()).spawn(move || {
            let _guard = AbortOnPanic;
            worker.run(&inbox, &outcomes);
        })?;
        Ok((engine, EngineThread(thread)))
    }
}

/// Checks an event's place in the chain and takes it into `ledger`; the same for recovery and offline verification.
/// `fact` is what [`Fact::parse`] made of the record.
pub fn fold(
    ledger: &mut Ledger,
    record: &Record<'_>,
    prev: &Hash,
    fact: Result<Fact, String>,
) -> Result<Option<Arc<Job>>, String> {
    let fact = fact?;
    if fact.seq != record.seq || fact.prev != *prev {
        // Said by the check that needs no JSON.
        crate::ledger::event::check_link(record.bytes, record.seq, prev)?;
    }
    ledger.apply(&fact, record.bytes)
}

impl Engine {
    /// Carries out `command` and returns once its events are durable. An error of status 503 means that the ledger cannot
    /// be written; any other is the caller's.
    pub fn execute(&self, command: Command) -> Result<Accepted, Rejection> {
        self.ask(command).wait().unwrap_or_else(|| Err(stopped()))
    }

    /// The same for those who cannot wait for ever, as a full disk may make them.
    pub fn ask(&self, command: Command) -> Asked {
        let (reply, asked) = answer(&self.waking);
        // If nobody takes it, it is dropped, and so hung up.
        let _ = self.messages.send(Message::Command(Box::new(command), reply));
        asked
    }

    /// The durable world.
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// What the log has done since the agent's start.
    pub fn log_meters(&self) -> &Meters {
        &self.meters
    }

    /// Commands that wait to be decided, and how many may.
    pub fn commands_waiting(&self) -> (usize, usize) {
        (self.messages.len(), COMMANDS_QUEUED_MAX)
    }

    /// Carries out `last`, if any, and ends the ledger thread once everything is durable, or is known not to become so:
    /// then [`View::latched`] tells.
    pub fn close(&self, thread: EngineThread, last: Option<Command>) {
        let _ = self.messages.send(Message::Close(last.map(Box::new)));
        let _ = thread.0.join();
    }
}

fn stopped() -> Rejection {
    Rejection::new(503, "stopping", "the agent is stopping; try again when it is back")
}

fn latched(reason: &Latched) -> Rejection {
    Rejection::new(
        503,
        "ledger_latched",
        format!("{reason}; the agent ends, and it is unknown whether this was recorded: repeat it when it is back"),
    )
}

struct Worker {
    wal: Option<Wal>,
    ledger: Ledger,
    view: Arc<View>,
    limits: Limits,
    /// Staged events that are not durable yet, in order.
    staged: VecDeque<Published>,
    /// Answers that wait for every event below a seq to be durable; the seqs never fall.
    replies: VecDeque<(u64, Reply, Answer)>,
    waking: Arc<Waking>,
    durable_below: u64,
    on_job: OnJob,
    on_fault: Option<OnFault>,
}

impl Worker {
    fn run(mut self, inbox: &Receiver<Message>, outcomes: &Receiver<Outcome>) {
        let mut live = outcomes.clone();
        loop {
            select_biased! {
                recv(live) -> outcome => match outcome {
                    Ok(outcome) => self.outcome(&outcome),
                    // The log has latched and its thread is gone. Commands still come, and each must hear of it.
                    Err(_) => live = never(),
                },
                recv(inbox) -> message => match message {
                    Ok(Message::Command(command, reply)) => self.command(*command, reply),
                    Ok(Message::Close(last)) => {
                        let outcome = last.map(|last| self.decide_and_append(*last));
                        if let Some(Err(rejection)) = outcome {
                            log::error!("the last event is not recorded: {rejection}");
                        }
                        break;
                    }
                    Err(_) => break,
                },
            }
        }
        // Closing the log commits what is staged and hangs up the outcomes' channel.
        drop(self.wal.take());
        for outcome in outcomes.iter() {
            self.outcome(&outcome);
        }
    }

    fn command(&mut self, command: Command, reply: Reply) {
        let answer = self.decide_and_append(command);
        if answer.as_ref().is_err_and(|rejection| rejection.status == 503) {
            reply.send(answer, &self.waking);
            self.waking.begin();
            return;
        }
        // A refusal waits, too: it was decided on staged events, and tells of them.
        let wait_below = self.wal.as_ref().map_or(0, |wal| wal.staged_head().0);
        self.replies.push_back((wait_below, reply, answer));
        self.answer();
    }

    fn decide_and_append(&mut self, command: Command) -> Result<Accepted, Rejection> {
        if let Some(reason) = self.view.latched() {
            return Err(latched(&Latched(reason.into())));
        }
        let wal = self.wal.as_ref().ok_or_else(stopped)?;
        let mut subject = None;
        let submitted = match &command {
            Command::Submit(parsed) => {
                subject = Some(parsed.manifest.job_id.clone());
                std::slice::from_ref(&**parsed)
            }
            Command::SubmitAll(batch) => batch,
            _ => &[],
        };
        let is_new = |parsed: &Parsed| self.ledger.job(&parsed.manifest.job_id).is_none();
        let mut batch: Vec<(String, bool)> = Vec::new();
        if !submitted.is_empty() {
            batch.extend(submitted.iter().map(|parsed| (parsed.manifest.job_id.clone(), is_new(parsed))));
            if let Some(reason) = wal.out_of_space().filter(|_| batch.iter().any(|(_, is_new)| *is_new)) {
                let message = format!("{reason}; free space below --data and submit again");
                return Err(Rejection::new(503, "ledger_full", message));
            }
        } else if matches!(command, Command::Stop(..) | Command::Retrigger(..) | Command::Prune(_)) && wal.is_stuck() {
            // It would be answered when there is space again; until then it only holds its connection.
            let message = "the disk is full and nothing can be recorded; free space below --data and ask again";
            return Err(Rejection::new(503, "ledger_full", message));
        }
        if let Some(id) = job_of(&command) {
            subject = Some(id.to_string());
        }
        let events = self.ledger.decide(command, Time::now(), self.limits)?;
        let changed = !events.is_empty();
        append(wal, &mut self.ledger, &mut self.staged, &events).map_err(|reason| latched(&reason))?;
        let job = subject.and_then(|id| self.ledger.job(&id).cloned());
        let known = |(id, is_new): (String, bool)| self.ledger.job(&id).map(|job| (job.clone(), is_new));
        Ok(Accepted { job, changed, batch: batch.into_iter().filter_map(known).collect() })
    }

    fn outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::DurableBelow(seq) => {
                self.durable_below = *seq;
                let count = self.staged.partition_point(|event| event.seq < *seq);
                let durable: Vec<Published> = self.staged.drain(..count).collect();
                self.view.publish(durable.iter().cloned());
                self.answer();
                for job in durable.iter().filter_map(|event| event.job.as_ref()) {
                    (self.on_job)(job);
                }
            }
            Outcome::Failed(reason) => {
                log::error!("{reason}");
                self.view.latch(&reason.0);
                self.staged.clear();
                for (_, reply, _) in self.replies.drain(..) {
                    reply.send(Err(latched(reason)), &self.waking);
                }
                self.waking.begin();
                if let Some(on_fault) = self.on_fault.take() {
                    on_fault(reason);
                }
            }
        }
    }

    /// Sends the answers whose events are durable.
    fn answer(&mut self) {
        while let Some((_, reply, answer)) = self.replies.pop_front_if(|(below, ..)| *below <= self.durable_below) {
            reply.send(answer, &self.waking);
        }
        self.waking.begin();
    }
}

/// Stages the events of one decision; they become durable together.
fn append(wal: &Wal, ledger: &mut Ledger, staged: &mut VecDeque<Published>, events: &[Event]) -> Result<(), Latched> {
    if events.is_empty() {
        return Ok(());
    }
    let mut written: Vec<Arc<[u8]>> = Vec::with_capacity(events.len());
    let mut hashes = Vec::with_capacity(events.len());
    wal.append_all(
        events.len(),
        |index, seq, prev, body| {
            let start = body.len();
            events[index].write(seq, &Hash(*prev), body);
            written.push(body[start..].into());
        },
        |seq, hash| hashes.push((seq, Hash(hash))),
    )?;
    wal.flush();
    for (bytes, (seq, hash)) in written.into_iter().zip(hashes) {
        // From its bytes, as a restart will read it. What `decide` proposes, `apply` accepts; otherwise the two rules have
        // come apart, and no event may follow.
        let fact = Fact::parse(&bytes).expect("what was written can be read");
        let job = ledger.apply(&fact, &bytes).expect("a decided event is legal");
        let pruned = match &fact.change {
            Change::Pruned { jobs } => {
                jobs.iter().filter_map(|id| ledger.job(id.of(&bytes)).map(|job| job.number)).collect()
            }
            _ => Box::default(),
        };
        staged.push_back(Published { seq, hash, bytes, job, pruned });
    }
    Ok(())
}

fn job_of(command: &Command) -> Option<&Arc<str>> {
    match command {
        Command::Genesis(_)
        | Command::NodeUp(_)
        | Command::NodeDown(_)
        | Command::Submit(_)
        | Command::SubmitAll(_)
        | Command::Prune(_) => None,
        Command::Schedule(id, ..)
        | Command::Refuse(id, ..)
        | Command::FailByDependency(id, _)
        | Command::Start(id, _)
        | Command::Mark(id, ..)
        | Command::Stop(id, _)
        | Command::End(id, ..)
        | Command::Seal(id, ..)
        | Command::SealFailed(id, ..)
        | Command::Retrigger(id, ..) => Some(id),
    }
}
