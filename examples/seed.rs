//! Writes the data directory of a node that has run many jobs of every fate, spread over days up to now: `seed DIR --jobs N`.
//!
//! The jobs exist in the ledger only; nothing ran, and no logs or seals lie beside it. Every event is one that the lifecycle
//! decided, so that `hackbrain verify` accepts it and an agent can be started on it. All jobs have ended but those that
//! `--waiting` asks for: their image is on no host, so an agent with `--pull never` and an engine fails them.
#![allow(clippy::print_stdout)]

#[path = "../tests/lives/mod.rs"]
mod lives;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Parser;
use hackbrain::hash::Hash;
use hackbrain::ledger::event::State;
use hackbrain::ledger::lifecycle::Command;
use hackbrain::ledger::time::Time;
use hackbrain::sys::block::Caching;
use hackbrain::verify::wal_dir;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use lives::{Fault, Lives, submission};

/// Events between two waits for the disk.
const BATCH: u64 = 4096;
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
/// An ended job without a marker has so many events.
const EVENTS_MIN: u64 = 5;

/// Writes a data directory with the ledger of a node that has run many jobs
#[derive(Parser)]
struct Args {
    /// The data directory; it must not hold a ledger
    dir: PathBuf,
    /// Jobs, of which most end SEALED, some FAILED or CANCELLED
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    jobs: u64,
    /// Events of a job, on average: about five, and its D1_STABLE
    #[arg(long, value_name = "M", default_value_t = 6, value_parser = clap::value_parser!(u64).range(5..=100_000))]
    events_per_job: u64,
    /// Over how many days up to now they are spread
    #[arg(long, value_name = "D", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
    /// How many jobs more are RECEIVED last and wait
    #[arg(long, value_name = "N", default_value_t = 0)]
    waiting: u64,
    /// Another ledger for each
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<(), Fault> {
    let args = Args::parse();
    let storage = Directory::open(&wal_dir(&args.dir), Caching::Buffered)?;
    let mut events = 0_u64;
    let (wal, _) = Wal::open(
        Arc::new(storage),
        Options::new(4 << 20),
        &mut |_| {
            events += 1;
            Ok(())
        },
        Box::new(|_| {}),
    )?;
    if events > 0 {
        return Err(format!("{} holds a ledger of {events} events; name another directory", args.dir.display()).into());
    }
    let mut node = Node { wal, lives: Lives::new(args.seed), ended: [0; State::ALL.len()] };
    node.run(&args)?;
    let (next, head) = node.wal.staged_head();
    node.wal.close();
    let of = |state: State| node.ended[state as usize];
    println!(
        "{} events, {} jobs: {} SEALED, {} FAILED, {} CANCELLED, {} RECEIVED",
        next - 1,
        args.jobs + args.waiting,
        of(State::Sealed),
        of(State::Failed),
        of(State::Cancelled),
        args.waiting
    );
    println!("head {} {}", next - 1, Hash(head));
    Ok(())
}

struct Node {
    wal: Wal,
    lives: Lives,
    /// Jobs by the state in which they ended.
    ended: [u64; State::ALL.len()],
}

impl Node {
    fn run(&mut self, args: &Args) -> Result<(), Fault> {
        let now = Time::now().0;
        let begin = now - args.days * DAY;
        self.carry_out(self.lives.genesis(), begin)?;
        self.carry_out(self.lives.node_up("none"), begin)?;
        // What happens next, the earliest first: when, to which job, how many markers it still has.
        let mut due: BinaryHeap<Reverse<(u64, u64, u64)>> = BinaryHeap::new();
        for number in 0..args.jobs {
            // None begins so late that it has to hurry.
            let span = args.days * DAY - 2 * HOUR;
            let received = begin + SECOND + self.lives.random.below(1 << 20) * (span >> 20);
            let marks = self.lives.random.below(2 * (args.events_per_job - EVENTS_MIN) + 1);
            due.push(Reverse((received, number, marks)));
        }
        while let Some(Reverse((time, number, marks))) = due.pop() {
            let id = name(number);
            let Some(job) = self.lives.ledger.job(&id).cloned() else {
                let image = self.lives.random.one_of(&["python:3.9-slim", "busybox:latest", "physics:2026-11"]);
                self.carry_out(submission(&id, image, &[])?.1, time)?;
                due.push(Reverse((time + self.lives.random.below(60 * SECOND), number, marks)));
                continue;
            };
            let Some(command) = self.lives.next(&job, marks > 0) else {
                self.ended[job.state as usize] += 1;
                continue;
            };
            let is_mark = matches!(command, Command::Mark(..));
            self.carry_out(command, time)?;
            let after = self.lives.ledger.job(&id).map_or(State::Received, |job| job.state);
            let pause = match after {
                State::Running | State::Recovery | State::D1Stable => {
                    self.lives.random.below(600 * SECOND / (1 + marks)) + SECOND / 10
                }
                State::Cancelled | State::Failed => self.lives.random.below(900 * SECOND),
                _ => self.lives.random.below(5 * SECOND),
            };
            due.push(Reverse(((time + pause).min(now), number, marks - u64::from(is_mark && marks > 0))));
        }
        for number in 0..args.waiting {
            let id = format!("waiting.{number:05}");
            self.carry_out(submission(&id, "registry.invalid/nowhere:1", &[])?.1, now)?;
        }
        self.carry_out(self.lives.node_down(), now)?;
        let last = self.wal.staged_head().0 - 1;
        Ok(self.wal.wait(last)?)
    }

    fn carry_out(&mut self, command: Command, time: u64) -> Result<(), Fault> {
        let wal = &self.wal;
        self.lives.run(command, Time(time), &mut |event| {
            let mut bytes = Vec::new();
            wal.append(|seq, prev, out| {
                event.write(seq, &Hash(*prev), &mut bytes);
                out.extend_from_slice(&bytes);
            })?;
            Ok(bytes)
        })?;
        let next = self.wal.staged_head().0;
        if next.is_multiple_of(BATCH) {
            self.wal.wait(next - 1)?;
        }
        Ok(())
    }
}

/// Names of a few families, as people give them.
fn name(number: u64) -> String {
    let family = ["lattice", "orbit", "sweep", "train", "chaos"][(number % 5) as usize];
    format!("{family}.{number:06}")
}
