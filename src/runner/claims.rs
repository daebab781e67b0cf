//! Two jobs never write one directory at once: a job's directories are its own from before its inputs are hashed until it
//! has ended, through crashes, retries and restarts of the agent. Whoever comes later waits, in the order of RECEIVED.
//!
//! One thread takes all jobs' turns in that order, and looks up directories where it must; nobody waits in it. What waits is
//! only an entry in the table. A job without host directories passes through and leaves no trace.

mod table;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::unbounded;

use self::table::{Blocker, Claim, Key};
use super::Runner;
use super::mounts::{CheckedMount, MountPolicy, ids_above};
use crate::ledger::event::State;
use crate::ledger::lifecycle::Job;
use crate::manifest::{Place, PlaceSource};
use crate::sys::dir::Dir;
use crate::sys::place;

pub(super) use self::table::Table;

/// How long a turn waits for what a file system tells of a directory. After that its path alone counts.
const LOOK_UP_WAIT: Duration = Duration::from_secs(1);
/// Look-ups that hang, at most; then no file system is asked before one of them answers.
const HANGING_MAX: usize = 4;

/// Turns that are looked up together, at most.
const BATCH_TURNS: usize = 1024;

/// What the thread is told, in the order of the ledger.
pub(super) enum Turn {
    /// A job, as its event left it, waits for its directories: it is RECEIVED, or RETRIGGERED.
    Wants(Arc<Job>),
    /// A job has ended.
    Ended(Arc<str>),
}

/// Whether an unfinished job has yet to get its directories; any other holds them.
pub(super) fn waits(job: &Job) -> bool {
    matches!(job.state, State::Received | State::Retriggered)
}

/// Gives a job what it held when the last agent died. Only by path: a start must not hang where a file system does.
pub(super) fn hold(runner: &Runner, job: &Job) {
    let claims = by_path(runner, job);
    if !claims.is_empty() {
        table(runner).hold(&job.job_id, &claims);
    }
}

/// The thread. `held`: the jobs that were given what they held; what their directories are is looked up first.
pub(super) fn keep(runner: &Arc<Runner>, held: Vec<Arc<Job>>) {
    for (job, claims) in held.iter().zip(looked_up(runner, &held)) {
        // Where two hold one directory, an agent that knew no claims let them.
        let _ = table(runner).extend(&job.job_id, &claims, true);
    }
    drop(held);
    let turns = &runner.queues.claim.1;
    // What each job was when it asked: by the time it gets its turn it may have been cancelled, and even be another.
    let mut asked: HashMap<Arc<str>, Arc<Job>> = HashMap::new();
    while let Ok(first) = turns.recv() {
        let (mut batch, mut jobs) = (Vec::new(), Vec::new());
        for turn in std::iter::once(first).chain(turns.try_iter().take(BATCH_TURNS)) {
            match turn {
                Turn::Wants(job) if by_path(runner, &job).is_empty() => offer(runner, &job),
                Turn::Wants(job) => {
                    jobs.push(job.clone());
                    batch.push(Turn::Wants(job));
                }
                ended @ Turn::Ended(_) => batch.push(ended),
            }
        }
        let mut found = looked_up(runner, &jobs).into_iter();
        for turn in batch {
            if runner.is_stopping() {
                return;
            }
            match turn {
                Turn::Wants(job) => request(runner, &job, &found.next().unwrap_or_default(), &mut asked),
                Turn::Ended(job_id) => {
                    asked.remove(&job_id);
                    let released = table(runner).release(&job_id);
                    for granted in released {
                        asked.remove(&granted).iter().for_each(|job| offer(runner, job));
                    }
                }
            }
        }
    }
}

/// Makes sure, before it is used, that a directory is one that its job holds: the path may lead to another one than when the
/// job got its turn, and that one may be somebody else's.
///
/// # Errors
/// It is; for a person.
pub(super) fn confirm(
    runner: &Runner,
    job_id: &str,
    path: &str,
    checked: &CheckedMount,
    read_only: bool,
) -> Result<(), String> {
    let claim = of_dir(&runner.setup.mounts, path, read_only, checked.dir());
    table(runner).extend(&job_id.into(), &[claim], false).map_err(|blocker| {
        format!(
            "{path:?} is now {:?} of job {}, which has not ended, or one of the two lies in the other; leave directories in \
             their places while jobs use them, and submit it again under another job_id",
            blocker.claimed, blocker.job
        )
    })
}

/// Why a job does not get its turn, if so.
pub(super) fn waiting_for(runner: &Runner, job_id: &str) -> Option<String> {
    table(runner).waits_for(job_id).as_ref().map(words)
}

fn request(runner: &Arc<Runner>, job: &Arc<Job>, claims: &[Claim], asked: &mut HashMap<Arc<str>, Arc<Job>>) {
    // Whoever was cancelled meanwhile wants nothing any more.
    if runner.setup.engine.view().job(&job.job_id).is_none_or(|now| now.seq != job.seq) {
        return;
    }
    match table(runner).request(&job.job_id, claims) {
        Ok(()) => offer(runner, job),
        Err(blocker) => {
            log::info!("job {}: waits: {}", job.job_id, words(&blocker));
            asked.insert(job.job_id.clone(), job.clone());
        }
    }
}

/// Where a job goes that has its directories.
fn offer(runner: &Runner, job: &Arc<Job>) {
    // The receiver lives as long as the process does.
    let _ = runner.queues.schedule.0.send(job.clone());
}

fn table(runner: &Runner) -> MutexGuard<'_, Table> {
    runner.claims.lock().unwrap_or_else(PoisonError::into_inner)
}

fn words(blocker: &Blocker) -> String {
    let Blocker { job, holds, wanted, claimed } = blocker;
    let other_name = if wanted == claimed { String::new() } else { format!(" (as {claimed})") };
    if *holds {
        format!("directory {wanted} is in use by job {job}{other_name}, which has not ended")
    } else {
        format!("directory {wanted} goes first to job {job}{other_name}, which came before and waits itself")
    }
}

/// One for each host directory; none for the agent's own, which are nobody else's. What is only copied from is read.
fn claims(job: &Job, mut of: impl FnMut(&str, bool) -> Claim) -> Vec<Claim> {
    let Some(open) = &job.open else { return Vec::new() };
    let of_place = |place: &Place<'_>| match place.source {
        PlaceSource::Host(path) => Some(of(path, place.read_only)),
        PlaceSource::CopyOf(path) => Some(of(path, true)),
        PlaceSource::Scratch | PlaceSource::ArtifactsOf(_) => None,
    };
    open.manifest.get().places().iter().filter_map(of_place).collect()
}

fn by_path(runner: &Runner, job: &Job) -> Vec<Claim> {
    let policy = &runner.setup.mounts;
    claims(job, |path, read_only| Claim::of_path(path, &policy.canonical(path), read_only))
}

/// The claims of each of `jobs`. File systems are asked in a thread of its own: one that hangs must hold up nobody else's
/// turn. A job that got its turn by its path alone looks again before it uses the directory.
fn looked_up(runner: &Arc<Runner>, jobs: &[Arc<Job>]) -> Vec<Vec<Claim>> {
    let mut all = Vec::with_capacity(jobs.len());
    while all.len() < jobs.len() {
        let rest = jobs[all.len()..].to_vec();
        if runner.looking_up.load(Ordering::SeqCst) >= HANGING_MAX {
            all.extend(rest.iter().map(|job| by_path(runner, job)));
            break;
        }
        let (sender, answers) = unbounded();
        runner.looking_up.fetch_add(1, Ordering::SeqCst);
        let asked = runner.spawn("look-up", move |runner| {
            // Many may wait for one directory. What was seen a moment ago will do: it is looked at again before it is used.
            let mut known: HashMap<(String, bool), Claim> = HashMap::new();
            for job in rest {
                let found = claims(&job, |path, read_only| {
                    let seen = known.entry((path.to_owned(), read_only));
                    seen.or_insert_with(|| look_up(&runner.setup.mounts, path, read_only)).clone()
                });
                // Whoever asked may have stopped waiting.
                if sender.send(found).is_err() {
                    break;
                }
            }
            runner.looking_up.fetch_sub(1, Ordering::SeqCst);
        });
        if asked.is_err() {
            runner.looking_up.fetch_sub(1, Ordering::SeqCst);
        }
        while all.len() < jobs.len() {
            let Ok(found) = answers.recv_timeout(LOOK_UP_WAIT) else {
                let job = &jobs[all.len()];
                log::warn!(
                    "job {}: its directories cannot be looked at; until they can, their paths count",
                    job.job_id
                );
                all.push(by_path(runner, job));
                break;
            };
            all.push(found);
        }
    }
    all
}

/// What cannot be opened is claimed by its path alone; it is refused later, with the reason.
fn look_up(policy: &MountPolicy, path: &str, read_only: bool) -> Claim {
    match policy.look_up(path) {
        Some(dir) => of_dir(policy, path, read_only, &dir),
        None => Claim::of_path(path, &policy.canonical(path), read_only),
    }
}

fn of_dir(policy: &MountPolicy, path: &str, read_only: bool, dir: &Dir) -> Claim {
    let mut claim = Claim::of_path(path, &policy.canonical(path), read_only);
    if let (Ok(stat), Ok(above)) = (dir.stat(), ids_above(dir)) {
        claim.own.push(Key::Inode(stat.id.0, stat.id.1));
        claim.above.extend(above.into_iter().map(|(device, inode)| Key::Inode(device, inode)));
    }
    if let Ok(place) = place::Place::of(dir) {
        let device: Arc<str> = place.device.into();
        claim.own.push(Key::Place(device.clone(), place.path.clone()));
        claim.above.extend(place.path.ancestors().skip(1).map(|above| Key::Place(device.clone(), above.to_owned())));
    }
    claim
}
