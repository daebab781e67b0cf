//! Flags, their environment variables, and the limits that are nobody's choice. Every limit is a constant with its unit.

mod resources;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ledger::time::{AGE_FORM, parse_age};
use crate::wal::frame::BLOCK;
use crate::wal::writer::SEGMENT_BYTES_MIN;

pub use resources::ResourceFlags;

/// Where the agent listens unless told otherwise.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:4005";
/// Bytes of a full-grown ledger segment.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;
/// Jobs that have not ended, unless told otherwise.
pub const QUEUE_MAX_DEFAULT: usize = 1_000_000;
/// Bytes of the manifests of jobs that have not ended: a million of the usual size, or a few hundred of the largest.
pub const QUEUED_MANIFEST_BYTES_MAX: usize = 512 << 20;
/// Memory of an attempt whose manifest names none is its share of the host; at least this many MiB.
pub const MEMORY_MIB_MIN: u64 = 256;
/// Processes and threads of an attempt whose manifest names none.
pub const PIDS_DEFAULT: u64 = 512;
/// Between SIGTERM and SIGKILL of an attempt that is asked to stop, in seconds.
pub const STOP_GRACE_S: u32 = 10;
/// How long the agent lets open requests end when it stops.
pub const DRAIN: Duration = Duration::from_millis(1500);
/// How long waiters get to hear of a ledger fault before the process ends.
pub const FAULT_GRACE: Duration = Duration::from_millis(300);

/// An execution ledger for runs of many days.
#[derive(Debug, Parser)]
#[command(name = "hackbrain", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the control agent.
    Serve(Box<Serve>),
    /// Offline: checks frames, hash chain and lifecycle of a ledger and, with --artifacts, its files.
    Verify(Verify),
    /// Offline: prints the ledger, one event per line, exactly the stored bytes.
    Dump(Dump),
    /// Copies a data directory, also while its agent runs; `verify` accepts the copy.
    Backup(Backup),
    /// Removes logs and scratch directories of jobs that were sealed long ago, and records that.
    Prune(Prune),
}

/// Flags of `serve`. Each is also an environment variable: `--mount-root` is `HACKBRAIN_MOUNT_ROOT`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// Ledger, logs, seals, scratch workspaces.
    #[arg(long, value_name = "DIR", env = "HACKBRAIN_DATA", default_value = "./hackbrain-data")]
    pub data: PathBuf,
    /// Address and port; repeatable. A non-loopback one needs --token-file or --trust-network
    /// [env: HACKBRAIN_LISTEN, split on `,`] [default: 127.0.0.1:4005].
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub listen: Vec<SocketAddr>,
    /// Nobody named an address.
    #[arg(skip)]
    pub listen_is_default: bool,
    /// Bearer tokens, one a line; read again on SIGHUP. A group- or world-readable file is refused.
    #[arg(long, value_name = "FILE", env = "HACKBRAIN_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Listens on non-loopback addresses without tokens: everyone who can reach them may submit jobs.
    #[arg(long, env = "HACKBRAIN_TRUST_NETWORK")]
    pub trust_network: bool,
    /// Only directories below one of these may be mounted; repeatable [env: HACKBRAIN_MOUNT_ROOT, split on `:`].
    #[arg(long, value_name = "DIR")]
    pub mount_root: Vec<PathBuf>,
    /// Images that manifests may name, `*` matching any characters; repeatable. @FILE holds one a line and is read again
    /// on SIGHUP, as are those of --allow-origin and --allow-host and the tokens
    /// [env: HACKBRAIN_ALLOW_IMAGE, split on `:`] [default: *].
    #[arg(long, value_name = "GLOB")]
    pub allow_image: Vec<String>,
    /// Lets a manifest ask for "network":"bridge".
    #[arg(long, env = "HACKBRAIN_ALLOW_NETWORK")]
    pub allow_network: bool,
    /// Origins whose pages may call the API, such as https://lab.example, or @FILE; repeatable
    /// [env: HACKBRAIN_ALLOW_ORIGIN, split on `,`].
    #[arg(long, value_name = "ORIGIN")]
    pub allow_origin: Vec<String>,
    /// Further names under which the agent may be addressed, such as node.mesh, or @FILE; repeatable
    /// [env: HACKBRAIN_ALLOW_HOST, split on `,`].
    #[arg(long, value_name = "HOST")]
    pub allow_host: Vec<String>,
    /// Whether an absent image is pulled before SCHEDULED.
    #[arg(long, value_name = "POLICY", env = "HACKBRAIN_PULL", default_value = "missing")]
    pub pull: Pull,
    /// Containers at once [default: cores].
    #[arg(long, value_name = "N", env = "HACKBRAIN_WORKERS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Resources of attempts.
    #[command(flatten)]
    pub resources: ResourceFlags,
    /// Jobs not yet ended; above it submissions get 429.
    #[arg(long, value_name = "N", env = "HACKBRAIN_MAX_QUEUE", default_value_t = QUEUE_MAX_DEFAULT)]
    pub max_queue: usize,
    /// Written into the ledger [default: host name].
    #[arg(long, value_name = "NAME", env = "HACKBRAIN_NODE_NAME")]
    pub node_name: Option<String>,
    /// Bytes of a ledger segment, a multiple of 4096, at least 4 MiB.
    #[arg(long, value_name = "BYTES", env = "HACKBRAIN_SEGMENT_SIZE", default_value_t = SEGMENT_BYTES_DEFAULT, value_parser = segment_size)]
    pub segment_size: u64,
    /// Writes the ledger through the page cache, for file systems without O_DIRECT; every commit is still synced.
    #[arg(long, env = "HACKBRAIN_WAL_BUFFERED")]
    pub wal_buffered: bool,
}

/// What to do about an absent image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// Pull it.
    Missing,
    /// Refuse the job.
    Never,
}

/// Flags of `verify`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit: 0 sound, 65 not sound, 74 some file could not be read, 130 interrupted. The last line is the ledger's head."
)]
pub struct Verify {
    /// The agent's data directory.
    #[arg(long, value_name = "DIR", env = "HACKBRAIN_DATA", default_value = "./hackbrain-data")]
    pub data: PathBuf,
    /// Fails unless the ledger holds an event with this seq and hash, e.g. a head that was noted elsewhere.
    #[arg(long, value_name = "SEQ:HASH", value_parser = expectation)]
    pub expect: Vec<Expectation>,
    /// Checks every file that the ledger vouches for, too: logs, inputs, seals, artifacts.
    #[arg(long)]
    pub artifacts: bool,
}

/// `SEQ:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Seq of an event.
    pub seq: u64,
    /// SHA-256 of its bytes.
    pub hash: crate::hash::Hash,
}

/// Flags of `dump`.
#[derive(Debug, Args)]
pub struct Dump {
    /// The agent's data directory.
    #[arg(long, value_name = "DIR", env = "HACKBRAIN_DATA", default_value = "./hackbrain-data")]
    pub data: PathBuf,
    /// Begins with this event.
    #[arg(long, value_name = "SEQ", default_value_t = 1)]
    pub from: u64,
    /// Only this job's events.
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,
}

/// Flags of `backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// The copy. It must not exist, or be an empty directory; until it is whole it is made under DEST.partial.
    #[arg(value_name = "DEST")]
    pub dest: PathBuf,
    /// The agent's data directory.
    #[arg(long, value_name = "DIR", env = "HACKBRAIN_DATA", default_value = "./hackbrain-data")]
    pub data: PathBuf,
}

/// Flags of `prune`.
#[derive(Debug, Args)]
pub struct Prune {
    /// The data directory, which no agent must have; one that runs is asked with POST /api/prune.
    #[arg(long, value_name = "DIR", env = "HACKBRAIN_DATA", default_value = "./hackbrain-data")]
    pub data: PathBuf,
    /// How long ago the jobs were sealed at least, e.g. 30d, 12h, 90m, 45s; in seconds.
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: u64,
    /// Only tells what would be removed; also while an agent runs.
    #[arg(long)]
    pub dry_run: bool,
}

impl Cli {
    /// Reads flags, then environment variables for what no flag named.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut cli = Self::try_parse_from(args)?;
        if let Command::Serve(serve) = &mut cli.command {
            serve.fill_lists(&|name| std::env::var(name).ok())?;
        }
        Ok(cli)
    }
}

impl Serve {
    /// Lists are not left to clap: their separator would also split what stands on the command line. Paths and globs are
    /// split on `:`; addresses, origins and hosts hold colons, so those are split on commas.
    fn fill_lists(&mut self, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), clap::Error> {
        let list = |name: &str, separator: char| -> Vec<String> {
            let text = variable(name).unwrap_or_default();
            text.split(separator).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
        };
        if self.mount_root.is_empty() {
            self.mount_root = list("HACKBRAIN_MOUNT_ROOT", ':').into_iter().map(PathBuf::from).collect();
        }
        if self.allow_image.is_empty() {
            self.allow_image = list("HACKBRAIN_ALLOW_IMAGE", ':');
        }
        if self.allow_origin.is_empty() {
            self.allow_origin = list("HACKBRAIN_ALLOW_ORIGIN", ',');
        }
        if self.allow_host.is_empty() {
            self.allow_host = list("HACKBRAIN_ALLOW_HOST", ',');
        }
        if self.listen.is_empty() {
            let mut texts = list("HACKBRAIN_LISTEN", ',');
            if texts.is_empty() {
                self.listen_is_default = true;
                texts.push(LISTEN_DEFAULT.to_owned());
            }
            for text in texts {
                self.listen.push(address(&text).map_err(|says| {
                    let message = format!("HACKBRAIN_LISTEN: {text:?} {says}\n");
                    clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
                })?);
            }
        }
        if self.allow_image.is_empty() {
            self.allow_image.push("*".to_owned());
        }
        Ok(())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("must be a literal address and a port, such as {LISTEN_DEFAULT} or [::1]:4005"))
}

fn segment_size(text: &str) -> Result<u64, String> {
    let size: u64 = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    if size < SEGMENT_BYTES_MIN || !size.is_multiple_of(BLOCK as u64) {
        return Err(format!("must be a multiple of {BLOCK} and at least {SEGMENT_BYTES_MIN}"));
    }
    Ok(size)
}

fn age(text: &str) -> Result<u64, String> {
    parse_age(text).ok_or_else(|| format!("must be {AGE_FORM}"))
}

fn expectation(text: &str) -> Result<Expectation, String> {
    let shape = || "must be SEQ:HASH, as the last line of `hackbrain verify` has it".to_owned();
    let (seq, hash) = text.split_once(':').ok_or_else(shape)?;
    Ok(Expectation { seq: seq.parse().map_err(|_| shape())?, hash: hash.parse().map_err(|_| shape())? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn serve(args: &[&str], env: &[(&str, &str)]) -> Result<Serve, clap::Error> {
        let words = ["hackbrain", "serve"].iter().chain(args).map(OsString::from);
        let Command::Serve(mut serve) = Cli::try_parse_from(words)?.command else { panic!("serve was asked for") };
        serve.fill_lists(&|name| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))?;
        Ok(*serve)
    }

    #[test]
    fn defaults_are_the_contracts() {
        let serve = serve(&[], &[]).unwrap();
        assert_eq!(serve.listen, [LISTEN_DEFAULT.parse().unwrap()]);
        assert_eq!(serve.allow_image, ["*"]);
        assert_eq!(serve.segment_size, 64 << 20);
        assert_eq!(serve.max_queue, 1_000_000);
        assert_eq!(serve.pull, Pull::Missing);
        assert!(serve.mount_root.is_empty() && !serve.allow_network);
    }

    #[test]
    fn flags_go_before_the_environment_and_lists_are_split() {
        let env = [("HACKBRAIN_MOUNT_ROOT", "/a:/b"), ("HACKBRAIN_LISTEN", "127.0.0.1:1, [::1]:2")];
        let from_env = serve(&[], &env).unwrap();
        assert_eq!(from_env.mount_root, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(from_env.listen.len(), 2);
        let from_flags = serve(&["--mount-root", "/c:d", "--listen", "127.0.0.1:3"], &env).unwrap();
        assert_eq!(from_flags.mount_root, [PathBuf::from("/c:d")]);
        assert_eq!(from_flags.listen, ["127.0.0.1:3".parse().unwrap()]);
    }

    #[test]
    fn bad_values_are_refused() {
        for bad in [
            &["--segment-size", "4194305"][..],
            &["--segment-size", "1048576"],
            &["--workers", "0"],
            &["--listen", "localhost:4005"],
            &["--pull", "always"],
            &["--unknown"],
        ] {
            assert!(serve(bad, &[]).is_err(), "{bad:?}");
        }
        assert!(serve(&[], &[("HACKBRAIN_LISTEN", "nowhere")]).is_err());
    }
}
