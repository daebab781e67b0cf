//! Writes the ledger of a node that has run many jobs: `generate_ledger DATA JOBS`.
//!
//! The jobs exist in the ledger only; nothing ran, and no logs or seals lie beside it. Every event is one that the lifecycle
//! decided, so that an agent can be started on it. Sixty-four jobs are always in flight, so their events are interleaved.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use hackbrain::hash::Hash;
use hackbrain::ledger::event::{
    D1Stable, Ending, Event, Genesis, LogDigest, MountTotals, NodeDown, NodeUp, Scheduled, Sealed, Usage,
};
use hackbrain::ledger::fact::Fact;
use hackbrain::ledger::lifecycle::{Command, Ledger, Limits, Outcome};
use hackbrain::ledger::time::Time;
use hackbrain::manifest;
use hackbrain::sys::block::Caching;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};

const IN_FLIGHT: usize = 64;
/// Events between two waits: far more than one commit takes.
const BATCH: u64 = 4096;
const LIMITS: Limits = Limits { jobs_open_max: IN_FLIGHT + 1, manifest_bytes_max: 1 << 20 };

struct Generator {
    wal: Wal,
    ledger: Ledger,
    /// Microseconds since the epoch.
    clock: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: generate_ledger DATA JOBS";
    let mut args = std::env::args().skip(1);
    let data = args.next().ok_or(usage)?;
    let jobs: usize = args.next().ok_or(usage)?.parse()?;
    let storage = Directory::open(&Path::new(&data).join("wal"), Caching::Direct)?;
    let mut fresh = true;
    let (wal, _) = Wal::open(
        Arc::new(storage),
        Options::new(64 << 20),
        &mut |_| {
            fresh = false;
            Ok(())
        },
        Box::new(|_| {}),
    )?;
    if !fresh {
        return Err(format!("there is a ledger below {data} already; name an empty directory").into());
    }
    let mut generator = Generator { wal, ledger: Ledger::default(), clock: 1_760_000_000_000_000 };
    generator.run(jobs)?;
    let (next, head) = generator.wal.staged_head();
    generator.wal.close();
    println!("head {} {}", next - 1, Hash(head));
    Ok(())
}

impl Generator {
    fn run(&mut self, jobs: usize) -> Result<(), Box<dyn Error>> {
        self.carry_out(Command::Genesis(Genesis { log_id: "0123456789abcdef0123456789abcdef".into(), format: 1 }))?;
        self.carry_out(Command::NodeUp(NodeUp {
            node_name: "generated".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: "00000000-0000-4000-8000-000000000000".into(),
            last_run: "none".into(),
            host: serde_json::json!({}),
            engine: serde_json::json!({}),
            mount_protection: "bind".into(),
        }))?;
        // Each job in flight, with the step that it takes next.
        let mut flight: Vec<(usize, u32)> = Vec::new();
        let mut begun = 0;
        let mut turn = 0;
        while begun < jobs || !flight.is_empty() {
            if begun < jobs && flight.len() < IN_FLIGHT {
                flight.push((begun, 0));
                begun += 1;
            }
            turn = (turn + 7) % flight.len();
            let (number, step) = flight[turn];
            self.step(number, step)?;
            flight[turn].1 += 1;
            if step == 5 {
                flight.swap_remove(turn);
            }
            let next = self.wal.staged_head().0;
            if next.is_multiple_of(BATCH) {
                self.wal.wait(next - 1)?;
            }
        }
        self.carry_out(Command::NodeDown(NodeDown { reason: "SIGTERM".into() }))?;
        let last = self.wal.staged_head().0 - 1;
        Ok(self.wal.wait(last)?)
    }

    fn step(&mut self, number: usize, step: u32) -> Result<(), Box<dyn Error>> {
        let id: Arc<str> = format!("job_{number:07}").into();
        let seq = |id: &str| self.ledger.job(id).map_or(0, |job| job.seq);
        let told = |what: &str| Hash::of(format!("{what} of job {number}").as_bytes());
        let command = match step {
            0 => {
                let body = format!(
                    r#"{{"job_id":"{id}","image_hash":"python:3.9-slim","command":["python","/job/wal_physics.py","--seed","{number}"],"mount_spec":["/srv/data/run_{}:/job"],"resources":{{"cpus":2,"memory_mib":4096}},"timeout_s":864000}}"#,
                    number / 10
                );
                Command::Submit(Box::new(manifest::parse(body.as_bytes())?))
            }
            1 => {
                let mounts = vec![MountTotals {
                    container: "/job".into(),
                    mode: "rw".into(),
                    tree: told("tree"),
                    files: 12,
                    bytes: 34_567,
                    artifacts_of: None,
                }];
                let (input_hash, execution_hash) = (told("input"), told("execution"));
                let image_id = format!("sha256:{}", Hash::of(b"image"));
                Command::Schedule(id.clone(), seq(&id), Scheduled { image_id, input_hash, execution_hash, mounts })
            }
            2 => Command::Start(id.clone(), seq(&id)),
            3 => {
                let line = format!("[D1_STABLE] step={} checkpoint written", number % 10_000);
                Command::Mark(id, 1, D1Stable { line, stream: "stdout".into(), offset: 81_920, count: 1 })
            }
            4 => {
                let usage = Usage {
                    cpu_ns: 86_400_000_000_000,
                    memory_peak_bytes: 3 << 30,
                    io_read_bytes: 1 << 30,
                    io_write_bytes: 1 << 33,
                    pids_peak: 9,
                    oom_kills: Some(0),
                    not_measured: vec![],
                };
                let log = |what| Some(LogDigest { bytes: 123_456, sha256: told(what), complete: true });
                let ending = Ending {
                    exit_code: Some(0),
                    usage: Some(usage),
                    stdout: log("stdout"),
                    stderr: log("stderr"),
                    oom_seen: false,
                };
                Command::End(id, 1, Outcome::Completed, ending)
            }
            _ => Command::Seal(
                id,
                1,
                Sealed {
                    seal_hash: told("seal"),
                    artifacts_root: told("artifacts"),
                    files: 14,
                    bytes: 9_876_543,
                    reproduction: None,
                },
            ),
        };
        self.carry_out(command)
    }

    fn carry_out(&mut self, command: Command) -> Result<(), Box<dyn Error>> {
        self.clock += 1_000;
        for event in self.ledger.decide(command, Time(self.clock), LIMITS)? {
            self.append(&event)?;
        }
        Ok(())
    }

    fn append(&mut self, event: &Event) -> Result<(), Box<dyn Error>> {
        let mut bytes = Vec::new();
        self.wal.append(|seq, prev, out| {
            event.write(seq, &Hash(*prev), &mut bytes);
            out.extend_from_slice(&bytes);
        })?;
        self.ledger.apply(&Fact::parse(&bytes)?, &bytes)?;
        Ok(())
    }
}
