//! Who may use which directories, and who waits for whom. Pure.
//!
//! A claim locks its directory and says to each directory above that something below is locked: the intention locks of
//! databases. So whether a directory, what it lies in, or what lies in it is in use is a look-up at the claim's own nodes.
//!
//! Invariants: no two holders conflict, except where [`Table::hold`] or a forced [`Table::extend`] said so. Whoever waits
//! waits for one blocker that conflicts with it and came before, or holds; so there is no cycle, and whoever came first goes first.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One name of a directory. Two directories are the same one if any of their names is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// Device and inode number.
    Inode(u64, u64),
    /// The path by which jobs name it; a directory that was replaced keeps it.
    Path(PathBuf),
    /// File system, and path within it, whatever mount it is reached through.
    Place(Arc<str>, PathBuf),
}

/// What one mount of a job needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The directory as the manifest names it; for messages.
    pub name: Arc<str>,
    /// Names of the directory itself.
    pub own: Vec<Key>,
    /// Names of the directories above it.
    pub above: Vec<Key>,
    /// Readers do not conflict with each other.
    pub read_only: bool,
}

/// In whose way something stands, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// The job that must end first.
    pub job: Arc<str>,
    /// Whether it holds its claims, rather than waiting for them.
    pub holds: bool,
    /// The directory that is wanted.
    pub wanted: Arc<str>,
    /// The directory of the other job that is, holds, or lies in that one.
    pub claimed: Arc<str>,
}

/// All claims of jobs that have not ended.
#[derive(Debug, Default)]
pub struct Table {
    entries: HashMap<Turn, Entry>,
    turns: HashMap<Arc<str>, Turn>,
    /// Places in `nodes`.
    named: HashMap<Arc<Key>, usize>,
    nodes: Vec<Node>,
    /// Places in `nodes` that nothing uses.
    unused: Vec<usize>,
    next_turn: Turn,
}

/// Counts the requests.
type Turn = u64;

#[derive(Debug)]
struct Entry {
    job: Arc<str>,
    /// Names of its claims, for messages.
    names: Vec<Arc<str>>,
    locks: Vec<Lock>,
    /// Whom it waits for; `None` once it holds its claims.
    waits_for: Option<Conflict>,
    /// Who waits for it.
    waiters: Vec<Turn>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lock {
    node: u32,
    mode: Mode,
    /// Index in the entry's names.
    claim: u32,
}

#[derive(Debug, Clone, Copy)]
struct Conflict {
    turn: Turn,
    /// Indices in the names of either.
    own_claim: u32,
    their_claim: u32,
}

/// How a directory is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Something below is read.
    ReadBelow,
    /// Something below is written.
    WriteBelow,
    Read,
    Write,
}

impl Mode {
    const ALL: [Self; 4] = [Self::ReadBelow, Self::WriteBelow, Self::Read, Self::Write];

    fn conflicts(self, other: Self) -> bool {
        matches!((self.min(other), self.max(other)), (_, Self::Write) | (Self::WriteBelow, Self::Read))
    }
}

/// The locks on one directory name, by mode.
#[derive(Debug, Default)]
struct Node {
    key: Option<Arc<Key>>,
    held: [BTreeSet<Turn>; 4],
    waiting: [BTreeSet<Turn>; 4],
}

impl Node {
    fn is_unused(&self) -> bool {
        self.held.iter().chain(&self.waiting).all(BTreeSet::is_empty)
    }

    /// The latest turn before which `turn` may not have a lock of `mode`. The latest, since those who came first end first:
    /// by the time it has ended, most of the others have.
    fn latest_conflict(&self, turn: Turn, mode: Mode, with_waiting: bool) -> Option<(Turn, Mode)> {
        let conflicting = Mode::ALL.into_iter().filter(|other| mode.conflicts(*other));
        let latest = |other: Mode| {
            let held = self.held[other as usize].iter().rev().find(|holder| **holder != turn);
            let waiting = self.waiting[other as usize].range(..turn).next_back().filter(|_| with_waiting);
            Some((*held.max(waiting)?, other))
        };
        conflicting.filter_map(latest).max()
    }
}

impl Table {
    /// Asks for all of a job's claims at once: it gets them, or waits behind whom it names. A job that has asked before keeps
    /// its turn and its claims.
    pub fn request(&mut self, job: &Arc<str>, claims: &[Claim]) -> Result<(), Blocker> {
        if let Some(turn) = self.turns.get(job) {
            return self.blocker(*turn).map_or(Ok(()), Err);
        }
        let turn = self.enter(job);
        for lock in self.locks(turn, claims) {
            self.nodes[lock.node as usize].waiting[lock.mode as usize].insert(turn);
            self.entry(turn).locks.push(lock);
        }
        if self.try_grant(turn) { Ok(()) } else { self.blocker(turn).map_or(Ok(()), Err) }
    }

    /// Gives a job claims that it has had all along, whoever else has them: what an earlier agent granted.
    pub fn hold(&mut self, job: &Arc<str>, claims: &[Claim]) {
        if !self.turns.contains_key(job) {
            self.enter(job);
        }
        let _ = self.extend(job, claims, true);
    }

    /// Adds what else a job's directories turn out to be. Nothing for a job that holds no claims: one that has ended.
    ///
    /// # Errors
    /// Another job holds it; then nothing is added. Never where `forced`.
    pub fn extend(&mut self, job: &Arc<str>, claims: &[Claim], forced: bool) -> Result<(), Blocker> {
        let Some(&turn) = self.turns.get(job) else { return Ok(()) };
        if self.entries[&turn].waits_for.is_some() {
            return Ok(());
        }
        let locks = self.locks(turn, claims);
        let conflict = locks.iter().find_map(|lock| self.conflict(turn, lock, false)).filter(|_| !forced);
        if conflict.is_none() {
            for lock in locks {
                self.nodes[lock.node as usize].held[lock.mode as usize].insert(turn);
                self.entry(turn).locks.push(lock);
            }
            return Ok(());
        }
        let refused = conflict.map(|conflict| self.words(turn, conflict));
        for lock in locks {
            self.drop_if_unused(lock.node as usize);
        }
        refused.map_or(Ok(()), Err)
    }

    /// Lets go of all that a job claims or waits for. Gives those who have their claims now, in the order they came.
    pub fn release(&mut self, job: &str) -> Vec<Arc<str>> {
        let Some(entry) = self.turns.remove(job).and_then(|turn| {
            let entry = self.entries.remove(&turn)?;
            for lock in &entry.locks {
                let node = &mut self.nodes[lock.node as usize];
                node.held[lock.mode as usize].remove(&turn);
                node.waiting[lock.mode as usize].remove(&turn);
                self.drop_if_unused(lock.node as usize);
            }
            Some(entry)
        }) else {
            return Vec::new();
        };
        let mut waiters = entry.waiters;
        waiters.sort_unstable();
        // One that has been released meanwhile is not there any more.
        waiters.retain(|turn| self.entries.contains_key(turn) && self.try_grant(*turn));
        waiters.iter().map(|turn| self.entries[turn].job.clone()).collect()
    }

    /// Whom a job waits for, if it does.
    pub fn waits_for(&self, job: &str) -> Option<Blocker> {
        self.blocker(*self.turns.get(job)?)
    }

    fn enter(&mut self, job: &Arc<str>) -> Turn {
        let turn = self.next_turn;
        self.next_turn += 1;
        self.turns.insert(job.clone(), turn);
        let entry =
            Entry { job: job.clone(), names: Vec::new(), locks: Vec::new(), waits_for: None, waiters: Vec::new() };
        self.entries.insert(turn, entry);
        turn
    }

    fn entry(&mut self, turn: Turn) -> &mut Entry {
        self.entries.get_mut(&turn).expect("whoever has a turn has an entry")
    }

    /// The locks that `claims` need and the entry has not. Their names are entered, their nodes made.
    fn locks(&mut self, turn: Turn, claims: &[Claim]) -> Vec<Lock> {
        let mut locks: Vec<Lock> = Vec::new();
        for claim in claims {
            let entry = self.entry(turn);
            let known = entry.names.iter().position(|name| *name == claim.name);
            let index = known.unwrap_or_else(|| {
                entry.names.push(claim.name.clone());
                entry.names.len() - 1
            });
            let (own, above) =
                if claim.read_only { (Mode::Read, Mode::ReadBelow) } else { (Mode::Write, Mode::WriteBelow) };
            let keys = claim.own.iter().map(|key| (key, own)).chain(claim.above.iter().map(|key| (key, above)));
            for (key, mode) in keys {
                let lock = Lock { node: self.node(key) as u32, mode, claim: index as u32 };
                let has = |of: &[Lock]| of.iter().any(|have| have.node == lock.node && have.mode == lock.mode);
                if !has(&locks) && !has(&self.entries[&turn].locks) {
                    locks.push(lock);
                }
            }
        }
        locks
    }

    fn node(&mut self, key: &Key) -> usize {
        if let Some(index) = self.named.get(key) {
            return *index;
        }
        let index = self.unused.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            self.nodes.len() - 1
        });
        let key = Arc::new(key.clone());
        self.nodes[index].key = Some(key.clone());
        self.named.insert(key, index);
        index
    }

    fn drop_if_unused(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.is_unused()
            && let Some(key) = node.key.take()
        {
            self.named.remove(&key);
            self.unused.push(index);
        }
    }

    /// Whether one that waits has its claims now; otherwise it waits for somebody new.
    fn try_grant(&mut self, turn: Turn) -> bool {
        let locks = self.entries[&turn].locks.clone();
        let conflict = locks.iter().filter_map(|lock| self.conflict(turn, lock, true)).max_by_key(|found| found.turn);
        self.entry(turn).waits_for = conflict;
        if let Some(conflict) = conflict {
            self.entry(conflict.turn).waiters.push(turn);
            return false;
        }
        for lock in locks {
            let node = &mut self.nodes[lock.node as usize];
            node.waiting[lock.mode as usize].remove(&turn);
            node.held[lock.mode as usize].insert(turn);
        }
        true
    }

    fn conflict(&self, turn: Turn, lock: &Lock, with_waiting: bool) -> Option<Conflict> {
        let (other, mode) = self.nodes[lock.node as usize].latest_conflict(turn, lock.mode, with_waiting)?;
        let theirs = self.entries[&other].locks.iter().find(|have| have.node == lock.node && have.mode == mode);
        let their_claim = theirs.map_or(0, |lock| lock.claim);
        Some(Conflict { turn: other, own_claim: lock.claim, their_claim })
    }

    fn blocker(&self, turn: Turn) -> Option<Blocker> {
        self.entries[&turn].waits_for.map(|conflict| self.words(turn, conflict))
    }

    fn words(&self, turn: Turn, conflict: Conflict) -> Blocker {
        let (own, other) = (&self.entries[&turn], &self.entries[&conflict.turn]);
        Blocker {
            job: other.job.clone(),
            holds: other.waits_for.is_none(),
            wanted: own.names[conflict.own_claim as usize].clone(),
            claimed: other.names[conflict.their_claim as usize].clone(),
        }
    }
}

impl Claim {
    /// A claim on a path alone, for a directory that cannot be looked at. `path` is absolute and without `.` and `..`.
    pub fn of_path(name: &str, path: &Path, read_only: bool) -> Self {
        Self {
            name: name.into(),
            own: vec![Key::Path(path.to_owned())],
            above: path.ancestors().skip(1).map(|above| Key::Path(above.to_owned())).collect(),
            read_only,
        }
    }
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
