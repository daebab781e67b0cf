//! `hackbrain prune`: removes, where no agent has the data directory, what sealed jobs have left there.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{LISTEN_DEFAULT, Prune, QUEUE_MAX_DEFAULT, QUEUED_MANIFEST_BYTES_MAX};
use crate::engine::Recovered;
use crate::ledger::lifecycle::{Job, Limits};
use crate::runner::prune::{Done, Wish, look, prune};
use crate::serve::{Fault, take_data_dir};
use crate::sys::block::Caching;
use crate::sys::dir::Counted;
use crate::verify::{self, VerifyError, wal_dir};
use crate::wal::storage::Directory;
use crate::wal::writer::{Options, SEGMENT_BYTES_MIN};

/// Prunes, and prints a line for each job and one for all.
///
/// # Errors
/// See [`Fault`]; 75 also where a backup is being made.
pub fn run(options: &Prune, interrupted: &AtomicBool, out: &mut dyn Write) -> Result<(), Fault> {
    let data = &options.data;
    if !wal_dir(data).is_dir() {
        return Err(Fault::Usage(format!("{} is not a data directory: it has no wal/ below it", data.display())));
    }
    let mut printed = Ok(());
    let is_over = || interrupted.load(Ordering::Relaxed);
    let wish = Wish { by: "command", older_than_s: options.older_than, is_over: &is_over };
    let mut each = |job: &Job, counted: Counted, outcome: io::Result<()>| {
        let Counted { files, bytes } = counted;
        let mut line = format!("{}: {files} files, {bytes} bytes", job.job_id);
        if let Err(error) = outcome {
            line += &format!("; not all: {error}");
        }
        if printed.is_ok() {
            printed = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    };
    let done = if options.dry_run {
        let ledger = verify::ledger(data).map_err(unreadable)?;
        look(data, &ledger.jobs(), ledger.pruned(), &wish, &mut each)
            .map_err(|error| Fault::Io(format!("{}: {error}", data.display())))?
    } else {
        let _lock = take_data_dir(data).map_err(|fault| in_use(fault, options))?;
        offline(data, &wish, &mut each)?
    };
    let interrupted = is_over();
    let Done { jobs, files, bytes, left, events } = done;
    let mut line = match options.dry_run {
        true => format!("would prune {jobs} jobs: {files} files, {bytes} bytes"),
        false => format!("pruned {jobs} jobs: {files} files, {bytes} bytes"),
    };
    if !events.is_empty() {
        let seqs: Vec<String> = events.iter().map(u64::to_string).collect();
        line += &format!("; recorded as {} {}", if seqs.len() == 1 { "event" } else { "events" }, seqs.join(", "));
    }
    if interrupted {
        line += "; interrupted, the next prune or start goes on";
    }
    // Who does not read it any more has got what was asked for.
    let _ = printed.and_then(|()| writeln!(out, "{line}")).and_then(|()| out.flush());
    match left {
        0 => Ok(()),
        _ if options.dry_run => Err(Fault::Io(format!("{left} jobs could not be counted wholly"))),
        _ => Err(Fault::Io(format!("of {left} jobs something is left; the next prune or start tries again"))),
    }
}

/// With the data directory's lock held.
fn offline(data: &Path, wish: &Wish<'_>, each: &mut dyn FnMut(&Job, Counted, io::Result<()>)) -> Result<Done, Fault> {
    let dir = wal_dir(data);
    let storage = match Directory::open(&dir, Caching::Direct) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => Directory::open(&dir, Caching::Buffered),
        other => other,
    };
    let storage = storage.map_err(|error| Fault::Io(format!("the ledger's directory {}: {error}", dir.display())))?;
    // Where the disk is nearly full, a large segment may be what does not fit.
    let recovered = Recovered::open(Arc::new(storage), Options::new(SEGMENT_BYTES_MIN))?;
    let limits = Limits { jobs_open_max: QUEUE_MAX_DEFAULT, manifest_bytes_max: QUEUED_MANIFEST_BYTES_MAX };
    let (engine, thread) = recovered
        .start(limits, Box::new(|_| {}), Box::new(|_| {}))
        .map_err(|error| Fault::Io(format!("starting the ledger's thread: {error}")))?;
    let outcome = prune(&engine, data, wish, each);
    engine.close(thread, None);
    outcome.map_err(|rejection| match rejection.code {
        "backup_running" => Fault::InUse(rejection.message),
        _ => Fault::Io(rejection.message),
    })
}

fn in_use(fault: Fault, options: &Prune) -> Fault {
    match fault {
        Fault::InUse(_) => Fault::InUse(format!(
            "{} is in use by an agent; ask that one, at its --listen, with its token if it has some:\n  curl -X POST \
             http://{LISTEN_DEFAULT}/api/prune -H 'Content-Type: application/json' -d '{{\"older_than\":\"{}s\"}}'",
            options.data.display(),
            options.older_than
        )),
        other => other,
    }
}

fn unreadable(error: VerifyError) -> Fault {
    match error {
        VerifyError::Scan(error) => error.into(),
        VerifyError::Io(error) => Fault::Io(error.to_string()),
    }
}
