//! Jobs that wait for others: where one stands, in what order many can be received, who is around whom. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

/// Whom a job waits for. Only jobs with parents have one: a ledger may hold millions without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// Ids of the parents, sorted, each once, never none.
    pub parents: Box<[Arc<str>]>,
    /// Where it is FAILED because of one of them: the job whose own end began it.
    pub ancestor: Option<Arc<str>>,
}

/// What a child needs to know of a parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It has not ended.
    Open,
    /// It is SEALED, for ever.
    Sealed,
    /// It is FAILED or CANCELLED.
    Over {
        /// The job whose own end began it: this one, or one that it failed because of.
        ancestor: Arc<str>,
    },
}

/// Where a job stands that waits for its parents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// All of them are SEALED.
    Ready,
    /// Some have not ended, and none has ended otherwise.
    Waits {
        /// The first that has not ended.
        on: Arc<str>,
        /// How many others have not ended.
        more: usize,
    },
    /// One is FAILED or CANCELLED, so it can never be ready as things are.
    Fails {
        /// The job whose own end began it.
        ancestor: Arc<str>,
        /// The parent through which it comes; the first of several.
        parent: Arc<str>,
    },
}

/// Where a job with these parents stands.
pub fn standing<'a>(parents: impl IntoIterator<Item = (&'a Arc<str>, Fate)>) -> Standing {
    let (mut first_open, mut open) = (None, 0);
    for (parent, fate) in parents {
        match fate {
            Fate::Sealed => {}
            Fate::Open => {
                first_open = first_open.or(Some(parent));
                open += 1;
            }
            Fate::Over { ancestor } => return Standing::Fails { ancestor, parent: parent.clone() },
        }
    }
    match first_open {
        None => Standing::Ready,
        Some(on) => Standing::Waits { on: on.clone(), more: open - 1 },
    }
}

/// An order in which each comes behind its parents, where `parents[i]` are those of `i`; of those that may come next,
/// the first. The error is a cycle: each is a parent of the next, and the last one of the first.
pub fn order(parents: &[Vec<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut children = vec![Vec::new(); parents.len()];
    let mut missing: Vec<usize> = parents.iter().map(Vec::len).collect();
    for (child, parents) in parents.iter().enumerate() {
        parents.iter().for_each(|parent| children[*parent].push(child));
    }
    let free = |missing: &[usize]| (0..missing.len()).filter(|i| missing[*i] == 0).map(Reverse).collect();
    let mut next: BinaryHeap<Reverse<usize>> = free(&missing);
    let mut ordered = Vec::with_capacity(parents.len());
    while let Some(Reverse(job)) = next.pop() {
        ordered.push(job);
        for child in &children[job] {
            missing[*child] -= 1;
            if missing[*child] == 0 {
                next.push(Reverse(*child));
            }
        }
    }
    let Some(left) = missing.iter().position(|missing| *missing > 0) else { return Ok(ordered) };
    // Whoever is left has a parent that is left, so the way up comes back to itself.
    let (mut way, mut at) = (Vec::new(), HashMap::new());
    let mut job = left;
    while !at.contains_key(&job) {
        at.insert(job, way.len());
        way.push(job);
        job = *parents[job].iter().find(|parent| missing[**parent] > 0).expect("a parent is left, too");
    }
    let mut cycle = way.split_off(at[&job]);
    cycle.reverse();
    let first = (0..cycle.len()).min_by_key(|i| cycle[*i]).unwrap_or(0);
    cycle.rotate_left(first);
    Err(cycle)
}

/// The shortest way from `start` up over parents back to `start`, as a cycle: each is a parent of the next, and the last
/// one of the first, which is `start`. None if there is none, or none is found among the first `look_at_max` ancestors.
pub fn cycle_through<'a>(
    start: &'a str,
    parents_of: impl Fn(&'a str) -> Vec<&'a str>,
    look_at_max: usize,
) -> Option<Vec<&'a str>> {
    // Of each ancestor, the child over which it was come to.
    let mut over: HashMap<&str, &str> = HashMap::new();
    let mut next = VecDeque::from([start]);
    let mut looked_at = 0;
    while let Some(job) = next.pop_front() {
        for parent in parents_of(job) {
            looked_at += 1;
            if looked_at > look_at_max {
                return None;
            }
            if parent == start {
                let mut cycle = vec![start];
                let mut at = job;
                while at != start {
                    cycle.push(at);
                    at = over[at];
                }
                return Some(cycle);
            }
            if !over.contains_key(parent) {
                over.insert(parent, job);
                next.push_back(parent);
            }
        }
    }
    None
}

/// `a → b → a`, with the middle left out where it is long.
pub fn cycle_text(cycle: &[&str]) -> String {
    const SHOWN: usize = 16;
    let mut names: Vec<String> = cycle.iter().chain(cycle.first()).map(|name| (*name).to_owned()).collect();
    if names.len() > SHOWN {
        let left_out = names.len() - SHOWN;
        names.splice(SHOWN / 2..SHOWN / 2 + left_out, [format!("… ({left_out} more) …")]);
    }
    names.join(" → ")
}

/// The ancestors and descendants of `start`, itself first, then by distance, at most `limit` of them; and whether there
/// are more.
pub fn around<P, C>(
    start: u32,
    limit: usize,
    parents: impl Fn(u32) -> P,
    children: impl Fn(u32) -> C,
) -> (Vec<u32>, bool)
where
    P: IntoIterator<Item = u32>,
    C: IntoIterator<Item = u32>,
{
    let (mut members, mut seen) = (vec![start], HashSet::from([start]));
    let (mut above, mut below) = (vec![start], vec![start]);
    while !above.is_empty() || !below.is_empty() {
        let (mut next_above, mut next_below) = (Vec::new(), Vec::new());
        let steps = above.iter().flat_map(|job| parents(*job)).map(|job| (true, job));
        for (is_above, job) in steps.chain(below.iter().flat_map(|job| children(*job)).map(|job| (false, job))) {
            if !seen.insert(job) {
                continue;
            }
            if members.len() >= limit {
                return (members, true);
            }
            members.push(job);
            if is_above { next_above.push(job) } else { next_below.push(job) }
        }
        (above, below) = (next_above, next_below);
    }
    (members, false)
}

/// Names for a message: the first few, and how many more.
pub fn names(ids: &BTreeSet<&str>) -> String {
    const SHOWN: usize = 5;
    let mut text = ids.iter().take(SHOWN).map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ");
    if ids.len() > SHOWN {
        text += &format!(" and {} more", ids.len() - SHOWN);
    }
    text
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
