//! The removal of what sealed jobs have left in the data directory: their logs, with the samples beside them, their scratch
//! directories, and copies made for them. Never a directory of the host, a seal, a listing of inputs, or the ledger.
//!
//! **Architecture Invariant**: a job's files are removed only once the PRUNED event that names it is durable. What a crash
//! has left of such a job, the next removal and the next start of an agent remove.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;

use super::Runner;
use crate::engine::Engine;
use crate::ledger::event::PRUNED_JOBS_MAX;
use crate::ledger::lifecycle::{Command, Job, Prune, Prunings, prunable};
use crate::ledger::time::Time;
use crate::rejection::Rejection;
use crate::sys::dir::{self, Counted, Dir};
use crate::sys::kill_point;
use crate::sys::lock::{Guard, backup_guard};

/// Where what may be removed lies below the data directory, each in a directory named like its job.
const PLACES: [&str; 3] = ["logs", "scratch", "staged"];

/// How often whoever waits looks again: for the event whether it is still worth it, and for the end of a backup.
const LOOK: Duration = Duration::from_secs(1);

/// What somebody asks for.
pub struct Wish<'w> {
    /// `command` or `request`, for the event.
    pub by: &'w str,
    /// How long ago, in seconds, the jobs must have been sealed at least.
    pub older_than_s: u64,
    /// Asked between two jobs: whether to stop there.
    pub is_over: &'w dyn Fn() -> bool,
}

/// What was removed of a job, and what went wrong.
pub type Each<'e> = &'e mut dyn FnMut(&Job, Counted, io::Result<()>);

/// What came of it, or would.
#[derive(Debug, Default)]
pub struct Done {
    /// Jobs that were pruned.
    pub jobs: u64,
    /// Their files that are gone.
    pub files: u64,
    /// The bytes of those.
    pub bytes: u64,
    /// Jobs of which something could not be removed.
    pub left: u64,
    /// Seqs of the events.
    pub events: Vec<u64>,
}

impl Done {
    fn add(&mut self, counted: Counted, outcome: &io::Result<()>) {
        self.jobs += 1;
        self.files += counted.files;
        self.bytes += counted.bytes;
        self.left += u64::from(outcome.is_err());
    }
}

/// What [`Dir::count_tree`] and [`Dir::remove_tree`] give.
type Tree = (Counted, io::Result<()>);

/// The data directory, as far as it is pruned.
struct Places(Vec<(&'static str, Dir)>);

impl Places {
    fn open(data: &Path) -> io::Result<Self> {
        // One that is missing is not the same as a data directory that is not there.
        let dir = Dir::open(data)?;
        let mut places = Vec::new();
        for name in PLACES {
            // The operator may have put it elsewhere, by a mount or a symlink; no payload can write in DATA itself.
            match Dir::open(&dir.proc_path().join(name)) {
                Ok(dir) => places.push((name, dir)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self(places))
    }

    /// Counts what there is of a job.
    fn count(&self, job_id: &str) -> Tree {
        self.each(job_id, &Dir::count_tree)
    }

    /// Removes what there is of a job.
    fn remove(&self, job_id: &str) -> Tree {
        // What is mounted below is somebody's own.
        for (_, dir) in &self.0 {
            let mounted = dir.real_path().and_then(|path| dir::mounts_below(&path.join(job_id)));
            match mounted.as_deref() {
                Ok([]) => {}
                Ok([first, ..]) => {
                    let message = format!("something is mounted at {}; unmount it", first.display());
                    return (Counted::default(), Err(io::Error::other(message)));
                }
                Err(error) => return (Counted::default(), Err(io::Error::other(error.to_string()))),
            }
        }
        self.each(job_id, &|dir, name| {
            let removed = dir.remove_tree(name);
            kill_point::reached("pruned-in-part");
            removed
        })
    }

    fn each(&self, job_id: &str, tree: &dyn Fn(&Dir, &OsStr) -> Tree) -> Tree {
        let (mut all, mut outcome) = (Counted::default(), Ok(()));
        for (place, dir) in &self.0 {
            let (counted, result) = tree(dir, OsStr::new(job_id));
            all.files += counted.files;
            all.bytes += counted.bytes;
            if let (Ok(()), Err(error)) = (&outcome, result) {
                outcome = Err(io::Error::new(error.kind(), format!("{place}/{job_id}: {error}")));
            }
        }
        (all, outcome)
    }

    /// The names that there are, each once.
    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for (_, dir) in &self.0 {
            names.extend(dir.names()?.into_iter().filter_map(|name| name.into_string().ok()));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Tells what [`prune`] would remove of these jobs now, and changes nothing.
///
/// # Errors
/// The data directory cannot be read.
pub fn look(data: &Path, jobs: &[Arc<Job>], pruned: &Prunings, wish: &Wish<'_>, each: Each<'_>) -> io::Result<Done> {
    let (places, mut done) = (Places::open(data)?, Done::default());
    for job in prunable(jobs, pruned, Time::now(), wish.older_than_s) {
        if (wish.is_over)() {
            break;
        }
        let (counted, outcome) = places.count(&job.job_id);
        done.add(counted, &outcome);
        each(&job, counted, outcome);
    }
    Ok(done)
}

/// Records what is to be removed, and removes it. What an earlier one has left goes first, without being told of.
///
/// # Errors
/// 409 `backup_running`; 503 where the ledger takes no events, or the disk is too full for one; 500 where the data directory
/// cannot be read.
pub fn prune(engine: &Engine, data: &Path, wish: &Wish<'_>, each: Each<'_>) -> Result<Done, Rejection> {
    let fault = |error: io::Error| {
        log::error!("prune: {}: {error}", data.display());
        Rejection::new(500, "unreadable", format!("the data directory cannot be pruned: {error}"))
    };
    let Some(_guard) = backup_guard(data, true).map_err(fault)? else {
        let message = "a backup is being made, or verify reads the files; prune when it has ended";
        return Err(Rejection::new(409, "backup_running", message));
    };
    let (view, places, mut done) = (engine.view(), Places::open(data).map_err(fault)?, Done::default());
    finish(engine, &places, wish.is_over).map_err(fault)?;
    let old = prunable(&view.jobs(), &view.prunings(), Time::now(), wish.older_than_s);
    for batch in old.chunks(PRUNED_JOBS_MAX) {
        if (wish.is_over)() {
            break;
        }
        let counted = batch.iter().map(|job| {
            let (counted, _) = places.count(&job.job_id);
            (job.job_id.clone(), counted.files, counted.bytes)
        });
        let jobs = counted.collect();
        record(engine, Prune { by: wish.by.into(), older_than_s: wish.older_than_s, jobs }, wish.is_over)?;
        kill_point::reached("prune-durable");
        for job in batch {
            // Some may be needed by now; those the event does not name.
            let Some(seq) = view.pruned(job) else { continue };
            if done.events.last() != Some(&seq) {
                done.events.push(seq);
            }
            if (wish.is_over)() {
                break;
            }
            let (counted, outcome) = places.remove(&job.job_id);
            done.add(counted, &outcome);
            told(job, &outcome);
            each(job, counted, outcome);
        }
    }
    log::info!("prune: {} jobs, {} files, {} bytes, by {}", done.jobs, done.files, done.bytes, wish.by);
    Ok(done)
}

/// Records what is to be removed. A full disk does not hold up who wants to make space: that is told.
fn record(engine: &Engine, prune: Prune, is_over: &dyn Fn() -> bool) -> Result<(), Rejection> {
    let asked = engine.ask(Command::Prune(prune));
    let gives_up = |why: &str, what: &str| {
        let message = format!(
            "{why}, so it is not recorded what is to be removed, and that stays: {what} (should it be recorded yet, the \
             next prune or start removes it)"
        );
        Err(Rejection::new(503, "ledger_full", message))
    };
    loop {
        match asked.wait_timeout(LOOK) {
            Ok(answer) => return answer.map(drop),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Rejection::new(503, "ledger_latched", "the ledger takes no more events"));
            }
            Err(RecvTimeoutError::Timeout) if engine.log_meters().out_of_space.load(Ordering::Relaxed) => {
                return gives_up("the disk is full", "free some 8 MiB below --data, and prune again");
            }
            Err(RecvTimeoutError::Timeout) if is_over() => return gives_up("interrupted", "prune again"),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Removes what there still is of jobs that were pruned. Only what is there is looked at, however many jobs there are.
fn finish(engine: &Engine, places: &Places, is_over: &dyn Fn() -> bool) -> io::Result<()> {
    let view = engine.view();
    if view.prunings().is_empty() {
        return Ok(());
    }
    for name in places.names()? {
        if is_over() {
            break;
        }
        let Some(job) = view.job(&name).filter(|job| view.pruned(job).is_some()) else { continue };
        let (counted, outcome) = places.remove(&name);
        told(&job, &outcome);
        if counted != Counted::default() {
            log::info!("prune: {} files of job {name}, whose removal is recorded, were still there", counted.files);
        }
    }
    Ok(())
}

fn told(job: &Job, outcome: &io::Result<()>) {
    if let Err(error) = outcome {
        log::warn!("prune: job {}: {error}; the next prune or start tries again", job.job_id);
    }
}

impl Runner {
    /// Prunes at somebody's request; one at a time. With `dry_run` nothing is changed.
    ///
    /// # Errors
    /// As [`prune`], and 503 `busy` where another prune is under way.
    pub fn prune(&self, older_than_s: u64, dry_run: bool) -> Result<Done, Rejection> {
        let wish = Wish { by: "request", older_than_s, is_over: &|| self.is_stopping() };
        let (engine, data) = (&self.setup.engine, &self.setup.data);
        let each: Each<'_> = &mut |_, _, _| {};
        if dry_run {
            let view = engine.view();
            return look(data, &view.jobs(), &view.prunings(), &wish, each).map_err(|error| {
                Rejection::new(500, "unreadable", format!("the data directory cannot be read: {error}"))
            });
        }
        let Ok(_turn) = self.pruning.try_lock() else {
            return Err(Rejection::new(503, "busy", "another prune is under way; ask again when it has ended"));
        };
        prune(engine, data, &wish, each)
    }

    /// Removes what a prune that was cut off has left.
    pub(super) fn finish_pruning(self: &Arc<Self>) {
        if self.setup.engine.view().prunings().is_empty() {
            return;
        }
        let (data, mut told) = (&self.setup.data, false);
        while !self.is_stopping() {
            let Ok(turn) = self.pruning.lock() else { return };
            let outcome = Places::open(data).and_then(|places| {
                let guard: Option<Guard> = backup_guard(data, true)?;
                guard.map(|_guard| finish(&self.setup.engine, &places, &|| self.is_stopping())).transpose()
            });
            drop(turn);
            match outcome {
                Ok(Some(())) => return,
                Ok(None) if told => {}
                Ok(None) => {
                    log::info!(
                        "prune: a backup is being made, or verify reads the files; what an earlier one may have left \
                         stays meanwhile"
                    )
                }
                Err(error) => {
                    log::warn!("prune: what an earlier one may have left stays for now: {error}");
                    return;
                }
            }
            told = true;
            // Also where only a process that a killed agent was just starting holds its descriptors still.
            self.pause(LOOK, &|| false);
        }
    }
}
