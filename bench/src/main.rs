//! Measures the write-ahead log: beside other durable stores, the cost of its hash chain, the speed of its recovery. And the
//! tree hash beside `sha256sum`, and the HTTP front beside axum's.

mod backends;
mod chain;
mod compare;
mod floor;
mod group_commit;
mod http;
mod http_load;
mod http_servers;
mod machine;
mod recovery;
mod slice;
mod sse;
mod stats;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backends::Kind;
use clap::{Args, Parser, Subcommand};

/// Whatever went wrong, told to the person who started the measurement.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Set by Ctrl-C: the running slice ends, the tables show what was measured until then, the data is removed.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Set once; 128 + SIGINT.
const INTERRUPTED_STATUS: u8 = 130;

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures the write-ahead log and the tree hash. Every number is of this machine and this minute."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Appends per second of this log and of other stores, each append acknowledged when durable
    Wal(Wal),
    /// What SHA-256 and CRC-32C of the records cost at 64 threads and 256 bytes, as a share of one core
    Chain(Chain),
    /// How fast a log is read back with every check, from the page cache
    Recovery(Recovery),
    /// How fast a tree is hashed, beside `find | xargs sha256sum` on the same files; takes 2 GiB
    Hash(Hash),
    /// Requests per second of an agent beside a minimal axum server, and durable submissions beside both and the device
    Http(Http),
    /// The axum server that `http` starts
    #[command(hide = true)]
    Axum,
    /// How long after it is durable an event is with each subscriber of the event stream, beside a bare broadcaster
    Sse(Sse),
}

#[derive(Args)]
struct Place {
    /// Where the data goes while measuring; a directory of its own below it is made and removed
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench-data"))]
    dir: PathBuf,
}

#[derive(Args)]
struct Wal {
    #[command(flatten)]
    place: Place,
    /// Measured time of each slice
    #[arg(long, value_name = "N", default_value_t = 0.9, value_parser = seconds)]
    seconds: f64,
    /// Time before it in which the load runs and is not measured
    #[arg(long, value_name = "N", default_value_t = 0.3, value_parser = seconds)]
    warm_up: f64,
    /// Slices of each backend, payload and number of threads
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// One round of short slices: shows that it works, measures little
    #[arg(long, conflicts_with_all = ["seconds", "warm_up", "rounds", "patience"])]
    quick: bool,
    /// Only these backends
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<Kind>,
    /// Bytes per append
    #[arg(long, value_name = "BYTES,…", value_delimiter = ',', default_values_t = [256, 4096],
        value_parser = clap::value_parser!(u32).range(slice::PAYLOAD_MIN as i64..=1 << 20))]
    payloads: Vec<u32>,
    /// Threads that append
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [1, 8, 64],
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Vec<u32>,
    /// How long a slice waits at most for a throttled device
    #[arg(long, value_name = "SECONDS", default_value_t = slice::FULL.patience.as_secs())]
    patience: u64,
    /// Repeats the order of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

#[derive(Args)]
struct Chain {
    #[command(flatten)]
    place: Place,
    /// Slices that find the rate
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

#[derive(Args)]
struct Recovery {
    #[command(flatten)]
    place: Place,
    /// Size of the log, in MiB of records
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    mib: u64,
    /// Measured passes over it
    #[arg(long, value_name = "N", default_value_t = 5)]
    passes: usize,
}

#[derive(Args)]
struct Http {
    #[command(flatten)]
    place: Place,
    /// The agent's binary, as scripts/build makes it
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Measured time of each slice
    #[arg(long, value_name = "N", default_value_t = 1.5, value_parser = seconds)]
    seconds: f64,
    /// Time before it in which the load runs and is not measured
    #[arg(long, value_name = "N", default_value_t = 0.5, value_parser = seconds)]
    warm_up: f64,
    /// Rounds, in each of which all slices take turns
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
    /// Repeats the order of an earlier run
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

#[derive(Args)]
struct Hash {
    #[command(flatten)]
    place: Place,
    /// Rounds on each of the trees
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: usize,
}

#[derive(Args)]
struct Sse {
    #[command(flatten)]
    place: Place,
    /// The agent's binary
    #[arg(long, value_name = "FILE")]
    agent: PathBuf,
    /// Subscribers that read
    #[arg(long, value_name = "N", default_value_t = 200)]
    subscribers: usize,
    /// Subscribers that never read
    #[arg(long, value_name = "N", default_value_t = 0)]
    silent: usize,
    /// Submissions a second
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    per_second: u64,
    /// Measured time of each round
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds of each
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.01 to 600".into()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed)).map_err(Fault::from);
    match outcome.and_then(|()| run(cli.command)) {
        Ok(()) if INTERRUPTED.load(Ordering::Relaxed) => ExitCode::from(INTERRUPTED_STATUS),
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Fault> {
    match command {
        Command::Wal(options) => {
            let timing = if options.quick { slice::QUICK } else { timing(&options) };
            let plan = compare::Plan {
                kinds: if options.only.is_empty() { Kind::ALL.to_vec() } else { options.only },
                payloads: options.payloads.iter().map(|bytes| *bytes as usize).collect(),
                threads: options.threads.iter().map(|threads| *threads as usize).collect(),
                rounds: if options.quick { 1 } else { options.rounds },
                seed: options.seed.unwrap_or_else(seed_of_the_clock),
                timing,
            };
            compare::run(&options.place.dir, &plan)
        }
        Command::Chain(options) => chain::run(&options.place.dir, options.rounds),
        Command::Recovery(options) => recovery::run(&options.place.dir, options.mib, options.passes),
        Command::Http(options) => {
            let plan = http::Plan {
                rounds: options.rounds,
                warm_up: Duration::from_secs_f64(options.warm_up),
                measured: Duration::from_secs_f64(options.seconds),
                seed: options.seed.unwrap_or_else(seed_of_the_clock),
            };
            http::run(&options.place.dir, &options.agent, &plan)
        }
        Command::Axum => http_servers::serve_axum(),
        Command::Hash(options) => tree::run(&options.place.dir, options.rounds),
        Command::Sse(options) => {
            let Sse { place, agent, subscribers, silent, per_second, seconds, rounds } = options;
            sse::run(&place.dir, &sse::Plan { agent, subscribers, silent, per_second, seconds, rounds })
        }
    }
}

fn timing(options: &Wal) -> slice::Timing {
    slice::Timing {
        warm_up: Duration::from_secs_f64(options.warm_up),
        measured: Duration::from_secs_f64(options.seconds),
        patience: Duration::from_secs(options.patience),
        ..slice::FULL
    }
}

fn seed_of_the_clock() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Short enough to be typed again.
    since.as_micros() as u64 % 1_000_000_000
}
