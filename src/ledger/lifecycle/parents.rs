//! Submissions, alone or many together, and what the parents of a job allow.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::super::fact::Text;
use super::super::graph::{self, Fate, Lineage, Standing};
use super::{Change, Detail, Ending, Event, Fact, Failed, Job, Ledger, Limits, State, Subject, Time};
use crate::ledger::event::Received;
use crate::manifest::{Manifest, Parsed};
use crate::rejection::Rejection;

/// Bytes that the RECEIVED events of one submission may take: they become durable together.
pub const BATCH_BYTES_MAX: usize = 2 << 20;
/// Bytes of a RECEIVED event besides its manifest, at most.
const EVENT_BYTES_MAX: usize = 512;
/// Ancestors that are looked at for a cycle, whose only use is a better message.
const CYCLE_LOOK_MAX: usize = 100_000;

/// A fault of one manifest of a batch, by its index.
type At<T> = Result<T, (usize, Rejection)>;

impl Ledger {
    pub(super) fn submit(&self, parsed: &Parsed, time: Time, limits: Limits) -> Result<Vec<Event>, Rejection> {
        let batch = std::slice::from_ref(parsed);
        self.receive_all(batch, &[0], time, limits).map_err(|(_, rejection)| rejection)
    }

    pub(super) fn submit_all(&self, batch: &[Parsed], time: Time, limits: Limits) -> Result<Vec<Event>, Rejection> {
        let bytes: usize = batch.iter().map(|parsed| parsed.canonical.len() + EVENT_BYTES_MAX).sum();
        if bytes > BATCH_BYTES_MAX {
            let message =
                format!("the jobs take {bytes} bytes together, at most {BATCH_BYTES_MAX} fit; submit fewer at once");
            return Err(Rejection::new(400, "too_large", message).field("jobs"));
        }
        let order = order(batch)?;
        self.receive_all(batch, &order, time, limits).map_err(|(index, rejection)| match rejection.status {
            429 => rejection,
            _ => rejection.within(&format!("jobs[{index}]")),
        })
    }

    /// The RECEIVED events of those that are not known yet, in this order of their indices: parents before children.
    fn receive_all(&self, batch: &[Parsed], order: &[usize], time: Time, limits: Limits) -> At<Vec<Event>> {
        let own: HashMap<&str, &Parsed> =
            batch.iter().map(|parsed| (parsed.manifest.job_id.as_str(), parsed)).collect();
        let (mut events, mut bytes, mut last) = (Vec::new(), 0, 0);
        for &index in order {
            let Parsed { manifest, canonical, hash } = &batch[index];
            if let Some(job) = self.jobs.get(manifest.job_id.as_str()) {
                if job.manifest_hash != *hash {
                    return Err((index, self.other_manifest(job, &own)));
                }
                continue;
            }
            self.check_parents_known(manifest, &own).map_err(|rejection| (index, rejection))?;
            let raw = RawValue::from_string(canonical.clone())
                .map_err(|_| (index, Rejection::new(400, "bad_json", "the manifest is not JSON")))?;
            let subject = Some(Subject { job_id: manifest.job_id.as_str().into(), attempt: 0 });
            let detail = Detail::Received(Received { manifest: raw, manifest_hash: *hash });
            events.push(Event { time, subject, detail });
            (bytes, last) = (bytes + canonical.len(), index);
        }
        if !events.is_empty() {
            self.check_room(events.len(), bytes, limits).map_err(|rejection| (last, rejection))?;
        }
        Ok(events)
    }

    /// A job_id that is taken: by the way, its new manifest may want the job to wait for itself.
    fn other_manifest(&self, job: &Job, own: &HashMap<&str, &Parsed>) -> Rejection {
        let parents_of = |id: &str| match (own.get(id), self.jobs.get(id)) {
            (Some(parsed), _) => parsed.manifest.parents().into_iter().collect(),
            (None, Some(job)) => job.parents().iter().map(|parent| &**parent).collect(),
            (None, None) => Vec::new(),
        };
        let start = own.get_key_value(&*job.job_id).map_or("", |(id, _)| *id);
        match graph::cycle_through(start, parents_of, CYCLE_LOOK_MAX) {
            Some(cycle) => cyclic(&cycle).field("depends_on"),
            None => {
                let message = format!(
                    "job_id {:?} was submitted before with another manifest (hash {}); choose another job_id",
                    job.job_id, job.manifest_hash
                );
                Rejection::new(409, "job_exists", message).field("job_id")
            }
        }
    }

    fn check_parents_known(&self, manifest: &Manifest, own: &HashMap<&str, &Parsed>) -> Result<(), Rejection> {
        let is_unknown = |id: &&str| !self.jobs.contains_key(*id) && !own.contains_key(id);
        let unknown: BTreeSet<&str> = manifest.parents().into_iter().filter(is_unknown).collect();
        let Some(first) = unknown.first() else { return Ok(()) };
        let field = if manifest.depends_on.iter().any(|id| id == first) { "depends_on" } else { "mount_spec" };
        let message = format!(
            "job {:?} names jobs that this ledger does not know: {}; submit them before it, or all together with POST \
             /api/submit_jobs",
            manifest.job_id,
            graph::names(&unknown)
        );
        Err(Rejection::new(400, "unknown_dependency", message).field(field))
    }

    /// Where a job stands, given how its parents do.
    fn standing(&self, job: &Job) -> Standing {
        // Parents are received before their children, so they are there.
        let fate = |id| self.jobs.get(id).map_or(Fate::Open, |parent| parent.fate());
        graph::standing(job.parents().iter().map(|id| (id, fate(id))))
    }

    pub(super) fn expect_ready(&self, job: &Job) -> Result<(), Rejection> {
        match self.standing(job) {
            Standing::Ready => Ok(()),
            Standing::Waits { on: parent, .. } | Standing::Fails { parent, .. } => {
                let message = format!("job {:?} waits for job {parent:?}, which is not SEALED", job.job_id);
                Err(Rejection::new(409, "wrong_state", message))
            }
        }
    }

    /// A job whose parent has ended and is not SEALED would only fail again.
    pub(super) fn expect_parents(&self, job: &Job) -> Result<(), Rejection> {
        match self.standing(job) {
            Standing::Fails { ancestor, parent } => {
                let first = if self.jobs.get(&ancestor).is_some_and(|job| job.fate() == Fate::Sealed) {
                    &parent
                } else {
                    &ancestor
                };
                let message = format!(
                    "job {:?} would fail again: {}; retrigger {first:?} first",
                    job.job_id,
                    self.why(&ancestor, &parent)
                );
                Err(Rejection::new(409, "dependency", message))
            }
            Standing::Ready | Standing::Waits { .. } => Ok(()),
        }
    }

    pub(super) fn fail_by_dependency(&self, job: &Job) -> Result<Failed, Rejection> {
        match self.standing(job) {
            Standing::Fails { ancestor, parent } if job.waits_for_parents() => {
                let message = self.why(&ancestor, &parent);
                let ancestor = Some(ancestor.to_string());
                Ok(Failed { ancestor, ..Failed::new("dependency", message, Ending::default()) })
            }
            _ => {
                let message = format!("job {:?} does not wait for a job that has failed", job.job_id);
                Err(Rejection::new(409, "wrong_state", message))
            }
        }
    }

    /// Whose end it is that a job fails because of.
    fn why(&self, ancestor: &str, parent: &str) -> String {
        let ended = |id: &str| {
            let Some(job) = self.jobs.get(id) else { return "is unknown".to_owned() };
            let code = job.exit_code.map_or(String::new(), |code| format!(", exit code {code}"));
            match (&job.reason, job.state) {
                (Some(reason), State::Failed) => format!("ended FAILED ({reason}{code})"),
                (_, state) if state.is_end() => format!("ended {state}"),
                (_, state) => format!("is {state} by now"),
            }
        };
        match ancestor == parent {
            true => format!("parent {parent:?} {}", ended(parent)),
            false => format!("ancestor {ancestor:?} {}; through parent {parent:?}", ended(ancestor)),
        }
    }

    /// The lineage of a job whose RECEIVED event names these parents. The error says which rule that breaks.
    pub(super) fn lineage_of(&self, parents: &[Text], bytes: &[u8]) -> Result<Option<Arc<Lineage>>, String> {
        if parents.is_empty() {
            return Ok(None);
        }
        let known = |parent: &Text| {
            let id = parent.of(bytes);
            self.jobs.get(id).map(|job| job.job_id.clone()).ok_or_else(|| format!("its parent {id:?} is unknown"))
        };
        let mut parents: Vec<Arc<str>> = parents.iter().map(known).collect::<Result<_, _>>()?;
        parents.sort_unstable();
        parents.dedup();
        Ok(Some(Arc::new(Lineage { parents: parents.into(), ancestor: None })))
    }

    /// A job's lineage behind this event of it. The error says which rule the event breaks.
    pub(super) fn lineage_after(&self, job: &Job, fact: &Fact, bytes: &[u8]) -> Result<Option<Arc<Lineage>>, String> {
        let ancestor = match &fact.change {
            Change::Scheduled { .. } => match self.standing(job) {
                Standing::Ready => None,
                Standing::Waits { on: parent, .. } | Standing::Fails { parent, .. } => {
                    return Err(format!("SCHEDULED before its parent {parent:?} is SEALED"));
                }
            },
            Change::Ended { reason, ancestor, .. } if fact.state == State::Failed => {
                let by_dependency = reason.as_ref().is_some_and(|reason| reason.of(bytes) == "dependency");
                match ancestor {
                    None if by_dependency => return Err("FAILED (dependency) without an ancestor".into()),
                    Some(_) if !by_dependency => return Err("an ancestor, and FAILED for another reason".into()),
                    None => None,
                    Some(ancestor) => Some(self.cause(job, ancestor.of(bytes))?),
                }
            }
            Change::Retriggered { .. } => None,
            _ => return Ok(job.lineage.clone()),
        };
        match &job.lineage {
            Some(lineage) if lineage.ancestor != ancestor => {
                Ok(Some(Arc::new(Lineage { parents: lineage.parents.clone(), ancestor })))
            }
            lineage => Ok(lineage.clone()),
        }
    }

    /// The ancestor of that name, if a parent of `job` has ended because of it.
    fn cause(&self, job: &Job, named: &str) -> Result<Arc<str>, String> {
        let fates = job.parents().iter().filter_map(|parent| self.jobs.get(parent)).map(|parent| parent.fate());
        let mut causes = fates.filter_map(|fate| match fate {
            Fate::Over { ancestor } if *ancestor == *named => Some(ancestor),
            _ => None,
        });
        let cause = causes.next().filter(|_| job.waits_for_parents());
        cause.ok_or_else(|| format!("FAILED (dependency), and no parent of it has ended because of {named:?}"))
    }
}

/// Indices of a batch in an order in which each comes behind its parents.
fn order(batch: &[Parsed]) -> Result<Vec<usize>, Rejection> {
    let mut index_of: HashMap<&str, usize> = HashMap::new();
    for (index, parsed) in batch.iter().enumerate() {
        let id = parsed.manifest.job_id.as_str();
        if let Some(first) = index_of.insert(id, index) {
            let message = format!("{id:?} is the job_id of jobs[{first}], too; submit each job once");
            return Err(Rejection::new(400, "duplicate_job", message).field(format!("jobs[{index}].job_id")));
        }
    }
    let within =
        |parsed: &Parsed| parsed.manifest.parents().iter().filter_map(|id| index_of.get(id).copied()).collect();
    let parents: Vec<Vec<usize>> = batch.iter().map(within).collect();
    graph::order(&parents).map_err(|cycle| {
        let names: Vec<&str> = cycle.iter().map(|index| batch[*index].manifest.job_id.as_str()).collect();
        cyclic(&names).field(format!("jobs[{}].depends_on", cycle[0]))
    })
}

fn cyclic(cycle: &[&str]) -> Rejection {
    let message = format!(
        "these jobs wait for each other in a circle: {} (each must be SEALED before the next); leave one of them out of \
         the next one's depends_on and mount_spec",
        graph::cycle_text(cycle)
    );
    Rejection::new(400, "dependency_cycle", message)
}
