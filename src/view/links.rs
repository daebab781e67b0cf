//! Who waits for whom, as readers may see it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::{Inner, View};
use crate::ledger::graph::{self, Fate, Standing};
use crate::ledger::lifecycle::Job;

/// Edges of one answer, at most: a job may have a thousand parents.
const EDGES_MAX: usize = 100_000;

/// The children of each job that has a parent or a child, by their numbers.
#[derive(Default)]
pub(super) struct Links(BTreeMap<u32, Vec<u32>>);

impl Links {
    /// A job was received that has these parents.
    pub(super) fn add(&mut self, child: u32, parents: impl Iterator<Item = u32>) {
        self.0.entry(child).or_default();
        for parent in parents {
            self.0.entry(parent).or_default().push(child);
        }
    }

    fn children(&self, job: u32) -> &[u32] {
        self.0.get(&job).map_or(&[], Vec::as_slice)
    }
}

/// A part of the execution graph.
#[derive(Debug, Default)]
pub struct Graph {
    /// Its jobs.
    pub jobs: Vec<Arc<Job>>,
    /// Parent and child, of those jobs.
    pub edges: Vec<(Arc<str>, Arc<str>)>,
    /// Whether there is more.
    pub truncated: bool,
}

impl View {
    /// A job, and where it stands given how its parents do.
    pub fn standing(&self, job_id: &str) -> Option<(Arc<Job>, Standing)> {
        let inner = self.read();
        let job = inner.entry(job_id)?.job.clone();
        let fate = |id: &str| inner.entry(id).map_or(Fate::Open, |parent| parent.job.fate());
        let standing = graph::standing(job.parents().iter().map(|id| (id, fate(id))));
        Some((job, standing))
    }

    /// The jobs that wait, or waited, for this one, in the order they were received.
    pub fn children(&self, job_id: &str) -> Vec<Arc<Job>> {
        let inner = self.read();
        let Some(number) = inner.numbers.get(job_id) else { return Vec::new() };
        inner.links.children(*number).iter().map(|child| inner.jobs[*child as usize].job.clone()).collect()
    }

    /// A job with its ancestors and descendants, at most `limit` jobs, the nearest first.
    pub fn around(&self, job_id: &str, limit: usize) -> Option<Graph> {
        let inner = self.read();
        let start = *inner.numbers.get(job_id)?;
        let children = |job: u32| inner.links.children(job).iter().copied();
        let (members, truncated) = graph::around(start, limit, |job| inner.parents(job), children);
        Some(inner.graph(&members, truncated))
    }

    /// The jobs that have a parent or a child, at most `limit` of them, the newest first.
    pub fn graph(&self, limit: usize) -> Graph {
        let inner = self.read();
        let members: Vec<u32> = inner.links.0.keys().rev().take(limit).copied().collect();
        inner.graph(&members, members.len() < inner.links.0.len())
    }
}

impl Inner {
    fn parents(&self, job: u32) -> impl Iterator<Item = u32> {
        self.jobs[job as usize].job.parents().iter().filter_map(|parent| self.numbers.get(parent).copied())
    }

    /// Takes in a job that has just been received.
    pub(super) fn link(&mut self, job: &Job) {
        if job.lineage.is_some() {
            let parents: Vec<u32> = self.parents(job.number).collect();
            self.links.add(job.number, parents.into_iter());
        }
    }

    fn graph(&self, members: &[u32], truncated: bool) -> Graph {
        let jobs = members.iter().map(|job| self.jobs[*job as usize].job.clone()).collect();
        let mut graph = Graph { jobs, edges: Vec::new(), truncated };
        let shown: HashSet<u32> = members.iter().copied().collect();
        let mut looked_at = 0;
        for child in members {
            let job = &self.jobs[*child as usize].job;
            for parent in job.parents() {
                // Publishing waits meanwhile, so those that are looked at count, shown or not.
                looked_at += 1;
                if looked_at > EDGES_MAX {
                    graph.truncated = true;
                    return graph;
                }
                if !self.numbers.get(parent).is_some_and(|parent| shown.contains(parent)) {
                    continue;
                }
                graph.edges.push((parent.clone(), job.job_id.clone()));
            }
        }
        graph
    }
}
