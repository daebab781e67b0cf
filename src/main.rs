//! Subcommands and exit codes; everything else is in the library.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hackbrain::backup::{self, BackupError};
use hackbrain::config::{Backup, Cli, Command, Dump, Prune, Verify};
use hackbrain::ledger::time::Time;
use hackbrain::prune;
use hackbrain::serve::{Fault, serve};
use hackbrain::verify::{self, Verdict, VerifyError};
use hackbrain::wal::recovery::ScanError;

/// Exit codes beside success (sysexits).
const USAGE: u8 = 64;
const CORRUPT: u8 = 65;
const IO: u8 = 74;
const IN_USE: u8 = 75;
/// 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap prints them to standard output.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let filter = env_logger::Env::default().default_filter_or("info");
    env_logger::Builder::from_env(filter)
        .format(|out, record| {
            // The ledger's own clock format, so that log and events can be laid side by side.
            writeln!(out, "{} {} {}: {}", Time::now(), record.level(), record.target(), record.args())
        })
        .init();
    match cli.command {
        Command::Serve(config) => ended(serve(&config)),
        Command::Verify(options) => run_verify(&options),
        Command::Dump(options) => run_dump(&options),
        Command::Backup(options) => run_backup(&options),
        Command::Prune(options) => run_prune(&options),
    }
}

fn ended(outcome: Result<(), Fault>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let (code, message) = fault.code_and_message();
            complain(message);
            ExitCode::from(code)
        }
    }
}

fn run_prune(options: &Prune) -> ExitCode {
    let interrupted = interruption();
    let outcome = prune::run(options, &interrupted, &mut io::stdout().lock());
    match interrupted.load(Ordering::Relaxed) && outcome.is_ok() {
        true => ExitCode::from(INTERRUPTED),
        false => ended(outcome),
    }
}

/// What Ctrl-C sets.
fn interruption() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    if let Err(error) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
        log::debug!("Ctrl-C ends it at once: {error}");
    }
    interrupted
}

fn run_backup(options: &Backup) -> ExitCode {
    let interrupted = interruption();
    let mut stderr = io::stderr();
    let progress: Option<&mut dyn Write> = if stderr.is_terminal() { Some(&mut stderr) } else { None };
    let error = match backup::backup(options, &interrupted, &mut |note| complain(&format!("note: {note}")), progress) {
        Ok(made) => {
            // It is made, whether or not anybody hears of it.
            let _ = write!(io::stdout(), "{made}");
            return ExitCode::SUCCESS;
        }
        Err(error) => error,
    };
    complain(&error.to_string());
    ExitCode::from(match error {
        BackupError::Usage(_) => USAGE,
        BackupError::Damaged(_) => CORRUPT,
        BackupError::InUse(_) => IN_USE,
        BackupError::Io(_) => IO,
        BackupError::Interrupted => INTERRUPTED,
    })
}

fn run_verify(options: &Verify) -> ExitCode {
    let interrupted = interruption();
    let mut stderr = io::stderr();
    let progress: Option<&mut dyn Write> = if stderr.is_terminal() { Some(&mut stderr) } else { None };
    let mut out = io::stdout().lock();
    match verify::verify(options, &interrupted, &mut out, progress) {
        Ok(Verdict::Sound) => ExitCode::SUCCESS,
        Ok(Verdict::NotSound) => ExitCode::from(CORRUPT),
        Ok(Verdict::Unreadable) => ExitCode::from(IO),
        Ok(Verdict::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => failed(&error),
    }
}

fn run_dump(options: &Dump) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = verify::dump(&options.data, options.from, options.job.as_deref(), &mut out);
    match outcome.and_then(|printed| out.flush().map(|()| printed).map_err(VerifyError::from)) {
        Ok(printed) => {
            // Nothing on standard output is an answer that a misspelt id has too.
            if printed == 0 {
                let of = options.job.as_ref().map_or_else(String::new, |job| format!(" of job {job:?}"));
                complain(&format!("note: this ledger has no event{of} from seq {} on", options.from));
            }
            ExitCode::SUCCESS
        }
        Err(VerifyError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &VerifyError) -> ExitCode {
    complain(&error.to_string());
    match error {
        VerifyError::Scan(ScanError::Corrupt(_) | ScanError::Version { .. } | ScanError::Unreadable(_)) => {
            ExitCode::from(CORRUPT)
        }
        VerifyError::Io(error) if error.kind() == io::ErrorKind::NotFound => ExitCode::from(USAGE),
        VerifyError::Scan(ScanError::Io { .. }) | VerifyError::Io(_) => ExitCode::from(IO),
    }
}

/// The one line that says why the program ends.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "hackbrain: {message}");
}
