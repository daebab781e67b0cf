//! Which jobs' files may go, and that they do. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::super::event::{PRUNED_JOBS_MAX, Pruned};
use super::super::fact::Text;
use super::{Job, Ledger, State, Time};

/// What somebody wants to be removed.
#[derive(Debug)]
pub struct Prune {
    /// See [`Pruned::by`].
    pub by: String,
    /// See [`Pruned::older_than_s`].
    pub older_than_s: u64,
    /// Each job with the number of its files and their bytes. Those that must stay, as it turns out, are passed over; so
    /// are those beyond [`PRUNED_JOBS_MAX`].
    pub jobs: Vec<(Arc<str>, u64, u64)>,
}

/// Which jobs were pruned, by their number, and the seq of the PRUNED event that names each. Beside the jobs, of which a
/// ledger may hold millions: most of them are not in it.
#[derive(Debug, Clone, Default)]
pub struct Prunings(HashMap<u32, u64>);

impl Prunings {
    /// The seq of the event that names a job: its logs and its own directories are gone, or being removed.
    pub fn of(&self, job: &Job) -> Option<u64> {
        self.0.get(&job.number).copied()
    }

    /// Notes that the event `seq` names a job.
    pub fn note(&mut self, number: u32, seq: u64) {
        self.0.insert(number, seq);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether a job was sealed so long ago. The clock is compared as it is: where it was set back
/// behind the job's end, the job is new.
fn is_old(job: &Job, now: Time, older_than_s: u64) -> bool {
    let age_us = job.ended.map(|ended| now.0.saturating_sub(ended.0));
    job.state == State::Sealed && age_us.is_some_and(|age| age >= older_than_s.saturating_mul(1_000_000))
}

/// Of all jobs those whose files may be removed: sealed so long ago, not pruned yet, and needed by no job that has not
/// ended, neither as a parent nor to be repeated.
pub fn prunable(jobs: &[Arc<Job>], pruned: &Prunings, now: Time, older_than_s: u64) -> Vec<Arc<Job>> {
    let needed: HashSet<&str> = jobs.iter().flat_map(|job| needs(job)).map(|id| &**id).collect();
    let may_go =
        |job: &&Arc<Job>| is_old(job, now, older_than_s) && pruned.of(job).is_none() && !needed.contains(&*job.job_id);
    jobs.iter().filter(may_go).cloned().collect()
}

/// The jobs that a job needs as long as it has not ended. One may come twice.
fn needs(job: &Job) -> impl Iterator<Item = &Arc<str>> {
    let parents = if job.open.is_some() { job.parents() } else { &[] };
    parents.iter().chain(job.open.as_ref().and_then(|open| open.reproduces.as_ref()))
}

/// Notes what a job needs that is open from now on.
pub(super) fn need(needed: &mut HashMap<Arc<str>, u32>, job: &Job) {
    for id in needs(job) {
        *needed.entry(id.clone()).or_default() += 1;
    }
}

/// Takes back what [`need`] has noted of a job that is still open.
pub(super) fn need_no_more(needed: &mut HashMap<Arc<str>, u32>, job: &Job) {
    for id in needs(job) {
        match needed.get_mut(id) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(needed.remove(id)),
        }
    }
}

impl Ledger {
    /// The event that is to be written; `None` where nothing may be removed.
    pub(super) fn prune(&self, prune: Prune, now: Time) -> Option<Pruned> {
        let mut pruned =
            Pruned { by: prune.by, older_than_s: prune.older_than_s, jobs: Vec::new(), files: 0, bytes: 0 };
        for (id, files, bytes) in prune.jobs.into_iter().take(PRUNED_JOBS_MAX) {
            let may_go = |job: &Arc<Job>| is_old(job, now, prune.older_than_s) && self.pruned.of(job).is_none();
            if self.jobs.get(&id).is_some_and(may_go) && !self.needed.contains_key(&id) {
                pruned.jobs.push(id.to_string());
                pruned.files += files;
                pruned.bytes += bytes;
            }
        }
        Some(pruned).filter(|pruned| !pruned.jobs.is_empty())
    }

    /// Takes in a PRUNED event. The error says which rule it breaks; then nothing has changed.
    pub(super) fn apply_pruned(&mut self, seq: u64, jobs: &[Text], bytes: &[u8]) -> Result<(), String> {
        let mut named = HashSet::with_capacity(jobs.len());
        for id in jobs.iter().map(|id| id.of(bytes)) {
            let job = self.jobs.get(id).ok_or_else(|| format!("PRUNED of an unknown job {id:?}"))?;
            if job.state != State::Sealed {
                return Err(format!("PRUNED of job {id:?}, which is {}", job.state));
            }
            if self.pruned.of(job).is_some() || !named.insert(job.number) {
                return Err(format!("PRUNED of job {id:?} a second time"));
            }
            if self.needed.contains_key(id) {
                return Err(format!("PRUNED of job {id:?}, which a job that has not ended needs"));
            }
        }
        named.into_iter().for_each(|number| self.pruned.note(number, seq));
        Ok(())
    }
}
