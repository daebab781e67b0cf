//! What an attempt's container is seen to be, and what that means: wait, start, follow, or a verdict.

use std::io::{Read, Seek, SeekFrom};
use std::sync::atomic::Ordering;

use super::super::docker::{
    CliEnd, ContainerState, EngineError, Inspect, StopReason, Verdict, init, verdict, verdict_gone,
};
use super::super::output::{Completeness, SettleError, Settled, Stream, settle, was_attached};
use super::super::stray;
use super::usage::{memory_ended_it, usage};
use super::{Attempt, Next, Over, Writer};
use crate::ledger::event::{Ending, LogDigest};
use crate::ledger::lifecycle::{Job, Outcome};
use crate::ledger::time::Time;
use crate::seal;
use crate::sys::kill_point;

/// How often a log that the engine cannot give is asked for, before the output counts as incomplete.
const SETTLE_TRIES_MAX: u32 = 5;
/// How often a container that was created is asked to start before that counts as the engine's crash.
const STARTS_MAX: u32 = 3;

impl Attempt<'_> {
    /// Looks at the container by its name and says what is to be done. `cli` is how our CLI ended, if it was ours.
    pub(super) fn look(&self, cli: Option<CliEnd>, starts: &mut u32) -> Next {
        loop {
            // A writer that lives may be about to create, start or complete: what is seen under it may be half done.
            match self.paths.writer_alive() {
                Ok(false) => {}
                Ok(true) => return Next::Wait(Writer::Adopted),
                Err(error) => {
                    let why = format!("its output files cannot be probed: {error}");
                    if !self.try_again_later(&why) {
                        return Next::LetGo;
                    }
                    continue;
                }
            }
            let Some(found) = self.ask(|docker| docker.inspect(&self.container)) else { return Next::LetGo };
            let state = match found {
                Inspect::Absent => return self.absent(cli),
                Inspect::Present(state) => state,
            };
            if let Some(owner) = self.foreign_owner(&state) {
                let words = self.paths.take_dockers_words().unwrap_or_default();
                let message = format!(
                    "container {} belongs to {owner}; remove it, or use another job_id. {words}",
                    self.container
                );
                return failed("not_started", message);
            }
            if state.started {
                self.seen_started.store(true, Ordering::Relaxed);
            }
            if state.running {
                return Next::Follow;
            }
            let may_start = !state.started && state.exit_code == 0 && *starts < STARTS_MAX && !self.is_stop_asked();
            if may_start {
                let Some(is_certain) = self.engine_has_seen_all() else { return Next::LetGo };
                if !is_certain {
                    return self.judge(&state, cli);
                }
                // Its CLI died between create and start.
                // A created container cannot be started attached without passing on the agent's signals, so it makes way
                // for one that is run. Nothing of the payload has run yet.
                *starts += 1;
                match self.docker().remove(&state.id, false) {
                    Ok(()) => return self.launch(),
                    // Perhaps it is being started after all: look again, and never launch on an old look.
                    Err(error) if self.try_again_later(&format!("the container engine says: {error}")) => continue,
                    Err(_) => return Next::LetGo,
                }
            }
            return self.judge(&state, cli);
        }
    }

    /// Whether the engine was there all the time since this attempt began. One that started later has read from the disk what
    /// its predecessor had written, and that may have started the payload without writing it. `None`: the agent stops.
    fn engine_has_seen_all(&self) -> Option<bool> {
        self.runner.know_engine(&self.job.job_id, Time::now())?;
        let began = self.job.open.as_ref().map_or(Time(0), |open| open.attempt_began);
        Some(!self.runner.outages().is_younger_than(began))
    }

    /// Ends what runs on of the container though the engine does not know it: the next attempt works in the same directory.
    /// `false`: the agent stops.
    pub(super) fn end_strays(&self) -> bool {
        let container_id = std::fs::read_to_string(&self.paths.cidfile).unwrap_or_default();
        loop {
            let why = match stray::end(container_id.trim()) {
                Ok(0) => return true,
                Ok(count) => {
                    format!("{count} of its processes, which the container engine has lost sight of, are killed")
                }
                Err(error) => {
                    format!("its processes, which the container engine has lost sight of, do not end: {error}")
                }
            };
            if !self.try_again_later(&why) {
                return false;
            }
        }
    }

    /// There is no container of this name.
    fn absent(&self, cli: Option<CliEnd>) -> Next {
        let asked = self.stop_reason();
        let was_started = self.seen_started.load(Ordering::Relaxed)
            || self.marks != [None; 2]
            || self.paths.was_created()
            || std::fs::metadata(&self.paths.stdout).is_ok_and(|meta| meta.len() > 0);
        // There was one, and somebody removed it; or nothing was started, and nobody wants it any more.
        if was_started {
            let measured = self.metered.finish("", false);
            let oom_seen = measured.witnesses.kills() > 0;
            return gone(asked, cli, Ending { usage: usage(&measured), oom_seen, ..Ending::default() });
        }
        if asked.is_some() {
            return end(verdict_gone(asked), &untouched(), Ending::default());
        }
        // Nothing was created, so what is in stderr are Docker's own words.
        let words = self.paths.take_dockers_words().unwrap_or_default();
        let later = |words: &str| if self.try_again_later(words) { self.launch() } else { Next::LetGo };
        match (EngineError::from_words(&words), cli) {
            (EngineError::Unavailable(words), _) => later(&words),
            // The engine still makes what a CLI asked for that was killed since. Whose it is will be seen once it can be.
            (EngineError::Other(words), _) if is_name_taken(&words) => later(&words),
            // The CLI was killed before it could ask: the intent stands, so it is started now, in the same attempt.
            (EngineError::Other(words), None | Some(CliEnd::Signalled(_))) if words.is_empty() => self.launch(),
            (EngineError::Other(words), _) => failed(reason_without_container(&words), words),
        }
    }

    fn judge(&self, state: &ContainerState, cli: Option<CliEnd>) -> Next {
        kill_point::reached("container-judged");
        let mut tries = 0;
        let mut settled = loop {
            match settle(self.docker(), &self.container, &self.paths, state, cli) {
                Ok(settled) => break settled,
                Err(SettleError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                    break if state.started { incomplete() } else { untouched() };
                }
                // The engine has lost its log, perhaps with the container: what was captured stays, and is called incomplete.
                Err(SettleError::Engine(error)) if tries == SETTLE_TRIES_MAX => {
                    log::warn!("job {}: its output may be incomplete: {error}", self.job.job_id);
                    break incomplete();
                }
                Err(error) => {
                    // An engine that answers and cannot give the log is not away, whatever words it has for that.
                    let is_there = || self.docker().ping().is_ok();
                    tries += u32::from(matches!(error, SettleError::Engine(_)) && is_there());
                    if !self.try_again_later(&format!("its output cannot be completed yet: {error}")) {
                        return Next::LetGo;
                    }
                }
            }
        };
        kill_point::reached("output-settled");
        let Some(evidence) = self.runner.evidence(&self.job.job_id, state) else { return Next::LetGo };
        if evidence.output_at_risk && !was_attached(cli, state.exit_code) {
            // The engine's log lacks what was printed while there was no engine, and does not say so.
            settled = Settled { dockers_words: settled.dockers_words, ..incomplete() };
        }
        let asked = self.stop_reason();
        let measured = self.metered.finish(&state.id, state.oom_killed);
        let ending = Ending {
            exit_code: (state.started || state.exit_code != 0).then_some(state.exit_code),
            usage: usage(&measured),
            oom_seen: measured.witnesses.kills() > 0,
            ..Ending::default()
        };
        // The engine may have heard of the exit before it heard of the memory.
        let state = &ContainerState { oom_killed: memory_ended_it(&measured.witnesses), ..state.clone() };
        let boot_id_now = &self.runner.setup.host.boot_id;
        let over = end(verdict(state, asked, &self.boot_id, boot_id_now, evidence), &settled, ending);
        match (over, self.never_executed(state, &settled)) {
            (Next::End(over), Some(message)) if matches!(&over.outcome, Outcome::Failed { reason, .. } if reason == "exit") =>
            {
                let outcome = Outcome::Failed { reason: "not_started".into(), message };
                Next::End(Box::new(Over { outcome, ..*over }))
            }
            (next, _) => next,
        }
    }

    /// What the container's init said, if the command could not be executed.
    fn never_executed(&self, state: &ContainerState, settled: &Settled) -> Option<String> {
        let stdout_bytes = std::fs::metadata(&self.paths.stdout).ok()?.len();
        let mut stderr = std::fs::File::open(&self.paths.stderr).ok()?;
        // Behind the CLI's own warnings, where there are any.
        stderr.seek(SeekFrom::Start(settled.leading_warnings)).ok()?;
        let mut words = Vec::new();
        stderr.take(init::WORDS_BYTES_MAX + 1).read_to_end(&mut words).ok()?;
        init::never_executed(state.exit_code, stdout_bytes, &words)
    }

    /// Who owns the container, if it is not this attempt of this ledger.
    fn foreign_owner(&self, state: &ContainerState) -> Option<String> {
        match label(state, "hackbrain.log") {
            _ if is_of(state, &self.runner.setup.log_id, &self.job) => None,
            "" => Some("somebody else".to_owned()),
            other => Some(format!("another ledger ({other})")),
        }
    }

    /// Syncs the output, since the ledger is about to vouch for it, and adds its digests.
    pub(super) fn with_digests(&self, mut ending: Ending, complete: [bool; 2]) -> Ending {
        let named = self.paths.sync_names();
        let digest = |stream, complete| {
            let path = self.paths.of(stream);
            let synced = self.paths.sync(stream).is_ok() && named.is_ok();
            if !synced {
                log::warn!("{}: it cannot be synced, and may be lost with the host", path.display());
            }
            let (bytes, sha256) = seal::digest_file(path).ok()?;
            Some(LogDigest { bytes, sha256, complete: complete && synced })
        };
        ending.stdout = digest(Stream::Stdout, complete[0]);
        ending.stderr = digest(Stream::Stderr, complete[1]);
        ending
    }
}

/// Whether a container is of this ledger's present attempt of a job.
pub(super) fn is_of(state: &ContainerState, log_id: &str, job: &Job) -> bool {
    label(state, "hackbrain.log") == log_id
        && label(state, "hackbrain.job") == &*job.job_id
        && label(state, "hackbrain.attempt") == job.attempt.to_string()
}

fn label<'s>(state: &'s ContainerState, name: &str) -> &'s str {
    state.labels.get(name).map_or("", String::as_str)
}

/// Whether Docker's words are that a container of this name exists, or is being made.
fn is_name_taken(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    words.contains("container name") && words.contains("already in use")
}

/// Which of FAILED's reasons Docker's words are, where it did not even make the container.
fn reason_without_container(words: &str) -> &'static str {
    // Somebody removed it after the job was scheduled.
    if words.to_ascii_lowercase().contains("no such image") { "image" } else { "not_started" }
}

pub(super) fn failed(reason: &str, message: String) -> Next {
    let outcome = Outcome::Failed { reason: reason.into(), message };
    Next::End(Box::new(Over { outcome, ending: Ending::default(), complete: [true; 2] }))
}

fn end(verdict: Verdict, settled: &Settled, ending: Ending) -> Next {
    let outcome = match verdict {
        Verdict::Completed { .. } => Outcome::Completed,
        // A stop was asked for, and what was asked decides; the ledger knows it.
        Verdict::Cancelled => Outcome::Crashed { cause: "killed".into() },
        Verdict::Crash { cause, .. } => Outcome::Crashed { cause: cause.as_str().into() },
        Verdict::Failed { reason, .. } => match reason.strip_prefix("not started: ") {
            Some(words) => Outcome::Failed { reason: "not_started".into(), message: words.into() },
            None => {
                let message = match ending.exit_code {
                    Some(code) if reason == "exit" => format!("the payload exited with {code}"),
                    _ => settled.dockers_words.clone(),
                };
                Outcome::Failed { reason, message }
            }
        },
    };
    let complete =
        [settled.stdout, settled.stderr].map(|completeness| matches!(completeness, Completeness::Complete { .. }));
    Next::End(Box::new(Over { outcome, ending, complete }))
}

/// The end of an attempt whose container is gone. Only a CLI that passed an exit code on is known to have written all of
/// the output, and no words of its own; 125 is its own, too.
fn gone(asked: Option<StopReason>, cli: Option<CliEnd>, ending: Ending) -> Next {
    let settled = match cli {
        Some(CliEnd::Exited(code)) if code != 125 => untouched(),
        _ => incomplete(),
    };
    end(verdict_gone(asked), &settled, ending)
}

fn incomplete() -> Settled {
    let differs = Completeness::Differs { at: 0 };
    Settled { stdout: differs, stderr: differs, ..untouched() }
}

fn untouched() -> Settled {
    let nothing = Completeness::Complete { appended: 0 };
    Settled { stdout: nothing, stderr: nothing, dockers_words: String::new(), leading_warnings: 0 }
}
