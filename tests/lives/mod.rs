//! Lives of jobs as the lifecycle allows them, by chance: for tests, and for ledgers to try things on. The same seed gives
//! the same lives.
#![allow(dead_code)]

use std::error::Error;
use std::sync::Arc;

use hackbrain::hash::Hash;
use hackbrain::ledger::event::{
    D1Stable, Ending, Event, Genesis, LogDigest, MountTotals, NodeDown, NodeUp, Scheduled, Sealed, State, Stopping,
    Usage,
};
use hackbrain::ledger::fact::Fact;
use hackbrain::ledger::lifecycle::{Command, Job, Ledger, Limits, Outcome};
use hackbrain::ledger::time::Time;
use hackbrain::manifest;
use serde_json::value::RawValue;

/// Whatever went wrong.
pub type Fault = Box<dyn Error + Send + Sync>;

/// A generator of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `most`.
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % most
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn one_of<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len() as u64) as usize]
    }
}

/// Limits that are never reached.
const LIMITS: Limits = Limits { jobs_open_max: usize::MAX, manifest_bytes_max: usize::MAX };

/// A ledger that commands drive; where its events go is its user's affair.
pub struct Lives {
    pub ledger: Ledger,
    pub random: Random,
    seed: u64,
}

/// Takes an event, gives it its place in the chain, and returns its bytes.
pub type Append<'a> = &'a mut dyn FnMut(&Event) -> Result<Vec<u8>, Fault>;

impl Lives {
    /// Without any event.
    pub fn new(seed: u64) -> Self {
        Self { ledger: Ledger::default(), random: Random::new(seed), seed }
    }

    /// Carries a command out at `time`; how many events came of it. None where the lifecycle refuses it.
    pub fn run(&mut self, command: Command, time: Time, append: Append<'_>) -> Result<Option<usize>, Fault> {
        let Ok(events) = self.ledger.decide(command, time, LIMITS) else { return Ok(None) };
        for event in &events {
            let bytes = append(event)?;
            self.ledger.apply(&Fact::parse(&bytes)?, &bytes)?;
        }
        Ok(Some(events.len()))
    }

    /// The first event of a ledger.
    pub fn genesis(&self) -> Command {
        let id = Hash::of(format!("ledger {}", self.seed).as_bytes()).to_string();
        Command::Genesis(Genesis { log_id: id[..32].to_owned(), format: 1 })
    }

    /// An agent starts.
    pub fn node_up(&self, last_run: &str) -> Command {
        Command::NodeUp(NodeUp {
            node_name: "generated".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: "00000000-0000-4000-8000-000000000000".into(),
            last_run: last_run.into(),
            host: serde_json::json!({}),
            engine: serde_json::json!({}),
            mount_protection: "bind".into(),
        })
    }

    /// It stops.
    pub fn node_down(&self) -> Command {
        Command::NodeDown(NodeDown { reason: "SIGTERM".into() })
    }

    /// What could happen next to a job: nothing to one that has ended for good. `is_patient` jobs print a marker rather than
    /// end.
    pub fn next(&mut self, job: &Job, is_patient: bool) -> Option<Command> {
        let (id, attempt, seq) = (job.job_id.clone(), job.attempt, job.seq);
        let random = &mut self.random;
        let refused = |random: &mut Random| {
            let (reason, message) = [
                ("image", "no such image: registry.example/physics:7"),
                ("inputs", "/srv/data/run_7 changes while it is hashed"),
                ("mount", "/srv/data/run_7 is not there"),
            ][random.below(3) as usize];
            Command::Refuse(job.job_id.clone(), seq, reason.into(), message.into())
        };
        let stop = |random: &mut Random| {
            let (asked, by) = if random.percent(60) { ("cancel", "127.0.0.1") } else { ("timeout", "timeout_s") };
            Command::Stop(job.job_id.clone(), Stopping { asked: asked.into(), by: by.into() })
        };
        let chance = random.below(100);
        Some(match job.state {
            State::Received | State::Scheduled | State::Retriggered | State::Crash if chance < 3 => stop(random),
            State::Received | State::Scheduled | State::Retriggered if chance < 5 => refused(random),
            State::Received => Command::Schedule(id, seq, scheduled(random, job)),
            State::Retriggered if job.image_id.is_none() => Command::Schedule(id, seq, scheduled(random, job)),
            State::Scheduled | State::Retriggered | State::Crash => Command::Start(id, seq),
            _ if job.stop().is_some() => match chance {
                0..25 => Command::Mark(id, attempt, mark(random, job)),
                25..60 => Command::End(id, attempt, Outcome::Completed, ending(random, Some(0))),
                _ => Command::End(id, attempt, crashed(random), ending(random, Some(143))),
            },
            State::Running | State::Recovery | State::D1Stable if is_patient && chance < 92 => {
                Command::Mark(id, attempt, mark(random, job))
            }
            State::Running | State::Recovery | State::D1Stable | State::Stopping => match chance % 20 {
                0..13 => Command::End(id, attempt, Outcome::Completed, ending(random, Some(0))),
                13 => {
                    let code = 1 + random.below(100) as i32;
                    let failed = Outcome::Failed { reason: "exit".into(), message: format!("exit code {code}") };
                    Command::End(id, attempt, failed, ending(random, Some(code)))
                }
                14..19 => {
                    let code = random.percent(70).then_some(137);
                    Command::End(id, attempt, crashed(random), ending(random, code))
                }
                _ => stop(random),
            },
            State::Completed if chance < 2 => Command::SealFailed(id, attempt, "result.csv changes".into()),
            State::Completed if chance < 4 => stop(random),
            State::Completed => Command::Seal(id, attempt, sealed(random)),
            State::Failed | State::Cancelled if random.percent(30) => {
                Command::Retrigger(id, "127.0.0.1".into(), self.manifest_of(job)?)
            }
            State::Failed | State::Cancelled | State::Sealed => return None,
            State::Genesis | State::NodeUp | State::NodeDown | State::Pruned => return None,
        })
    }

    /// Only RETRIGGERED asks for it; what it was made of is the job's id.
    fn manifest_of(&self, job: &Job) -> Option<Box<RawValue>> {
        let parents: Vec<&str> = job.parents().iter().map(|parent| &**parent).collect();
        let parsed = manifest::parse(manifest_text(&job.job_id, &job.image_hash, &parents).as_bytes()).ok()?;
        (parsed.hash == job.manifest_hash).then(|| RawValue::from_string(parsed.canonical).ok()).flatten()
    }
}

/// A manifest, as somebody would write it. What stands in it follows from the id alone.
pub fn manifest_text(id: &str, image: &str, parents: &[&str]) -> String {
    let number = Hash::of(id.as_bytes()).0[0];
    serde_json::json!({
        "job_id": id,
        "image_hash": image,
        "command": ["python", "/job/workdir/wal_physics.py", "--seed", number.to_string()],
        "env": { "STEPS": (100 * u64::from(number)).to_string() },
        "depends_on": parents,
        "resources": { "cpus": 1, "memory_mib": 256 << (number % 3) },
        "max_attempts": 2 + number % 3,
    })
    .to_string()
}

/// Of a thing that was never there.
fn digest(random: &mut Random, what: &str) -> Hash {
    Hash::of(format!("{what} {}", random.below(1 << 31)).as_bytes())
}

fn scheduled(random: &mut Random, job: &Job) -> Scheduled {
    let mounts = vec![MountTotals {
        container: "/job/workdir".into(),
        mode: "rw".into(),
        tree: digest(random, "tree"),
        files: random.below(100),
        bytes: random.below(1 << 30),
        artifacts_of: None,
    }];
    Scheduled {
        image_id: format!("sha256:{}", Hash::of(job.image_hash.as_bytes())),
        input_hash: digest(random, "input"),
        execution_hash: digest(random, "execution"),
        mounts,
    }
}

fn mark(random: &mut Random, job: &Job) -> D1Stable {
    let step = 1 + random.below(100_000);
    let line = match random.below(8) {
        0 => format!("[D1_STABLE] énergie=\"{step}\"\t≈ 1\u{1}"),
        1 => "[D1_STABLE]".to_owned(),
        _ => format!("[D1_STABLE] step={step} energy={}", random.below(1 << 31)),
    };
    let stream = if random.percent(80) { "stdout" } else { "stderr" };
    let offset = job.seq * 80 + random.below(80);
    D1Stable { line, stream: stream.into(), offset, count: 1 + random.below(20) }
}

fn crashed(random: &mut Random) -> Outcome {
    Outcome::Crashed { cause: random.one_of(&["killed", "killed", "killed", "host", "engine", "lost", "oom"]).into() }
}

fn ending(random: &mut Random, exit_code: Option<i32>) -> Ending {
    let usage = random.percent(90).then(|| Usage {
        cpu_ns: random.below(1 << 31) << 20,
        memory_peak_bytes: random.below(1 << 31),
        io_read_bytes: random.below(1 << 31),
        io_write_bytes: random.below(1 << 31),
        pids_peak: 1 + random.below(40),
        oom_kills: Some(0),
        not_measured: vec![],
    });
    let mut log = |what| Some(LogDigest { bytes: random.below(1 << 24), sha256: digest(random, what), complete: true });
    let (stdout, stderr) = (log("stdout"), log("stderr"));
    Ending { exit_code, usage, stdout, stderr, oom_seen: false }
}

fn sealed(random: &mut Random) -> Sealed {
    Sealed {
        seal_hash: digest(random, "seal"),
        artifacts_root: digest(random, "artifacts"),
        files: random.below(30),
        bytes: random.below(1 << 30),
        reproduction: None,
    }
}

/// A job's id and its submission.
pub fn submission(id: &str, image: &str, parents: &[&str]) -> Result<(Arc<str>, Command), Fault> {
    let parsed = manifest::parse(manifest_text(id, image, parents).as_bytes())?;
    Ok((id.into(), Command::Submit(Box::new(parsed))))
}
