//! What a container's end means for its attempt. Pure.

use super::inspect::ContainerState;
use crate::runner::outage::Evidence;

/// Why the agent asked a container to stop. The request was a ledger event before the signal was sent, so it decides
/// whatever the exit code: a SIGTERM handler may well exit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A cancel request.
    Cancel,
    /// `timeout_s` ran out.
    Timeout,
}

/// Why an attempt ended without a verdict of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashCause {
    /// SIGKILL by somebody else; the payload's own `exit 137` reads the same.
    Killed,
    /// The kernel's OOM killer ended the payload.
    Oom,
    /// The host went down.
    Host,
    /// The engine could not start the container, ended it when it stopped or started itself, or lost track of it.
    Engine,
    /// The container is gone.
    Lost,
}

impl CrashCause {
    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Oom => "oom",
            Self::Host => "host",
            Self::Engine => "engine",
            Self::Lost => "lost",
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Exit 0.
    Completed {
        /// The OOM killer took a process of the attempt, though its first process ended well.
        oom_seen: bool,
    },
    /// The payload's own failure, a timeout, or a command that cannot be executed.
    Failed {
        /// `exit`, `timeout` or `not started: ` with Docker's own words.
        reason: String,
        /// Exit code 0 to 255; none where nothing ran, or the container is gone.
        exit_code: Option<i32>,
    },
    /// A cancel request took effect.
    Cancelled,
    /// No verdict of its own.
    Crash {
        /// Why.
        cause: CrashCause,
        /// Exit code 0 to 255; none where nothing ran, or the container is gone.
        exit_code: Option<i32>,
    },
}

/// Exit code of a command that is not executable, given by the engine before anything ran.
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit code of a command that does not exist, given by the engine before anything ran.
const EXIT_NOT_FOUND: i32 = 127;
/// With this an engine begins that was asked for GPUs and has no driver for them.
const NO_DEVICE_DRIVER: &str = "could not select device driver";
/// 128 + SIGKILL.
const EXIT_SIGKILL: i32 = 137;
/// 128 + SIGTERM.
const EXIT_SIGTERM: i32 = 143;
/// What the engine writes for a container that ran when the host went down.
const EXIT_UNKNOWN: i32 = 255;

/// The verdict on a container that no longer runs. `asked` is the first stop request of this attempt, boot ids are
/// the host's when the attempt was started and now, `evidence` is what is known of the engine around that end: where the engine
/// ended it the exit code says nothing, since a SIGTERM handler may well exit 0.
///
/// The CLI's exit code has no say: its 125 may be the payload's own, a lost engine, or a name conflict.
/// A container that was created and not yet started must be started instead of judged; asked about one, this says
/// crash by the engine.
pub fn verdict(
    state: &ContainerState,
    asked: Option<StopReason>,
    boot_id_at_start: &str,
    boot_id_now: &str,
    evidence: Evidence,
) -> Verdict {
    let exit_code = (state.started || state.exit_code != 0).then_some(state.exit_code);
    let crash = |cause| Verdict::Crash { cause, exit_code };
    match asked {
        Some(StopReason::Cancel) => return Verdict::Cancelled,
        Some(StopReason::Timeout) => return Verdict::Failed { reason: "timeout".into(), exit_code },
        None => {}
    }
    if !state.started {
        return match state.exit_code {
            EXIT_NOT_EXECUTABLE | EXIT_NOT_FOUND => {
                Verdict::Failed { reason: format!("not started: {}", state.error), exit_code }
            }
            // Every further attempt would hear the same.
            _ if state.error.starts_with(NO_DEVICE_DRIVER) => {
                Verdict::Failed { reason: format!("not started: {}", state.error), exit_code }
            }
            _ => crash(CrashCause::Engine),
        };
    }
    let rebooted = boot_id_at_start != boot_id_now;
    match state.exit_code {
        EXIT_SIGKILL if state.oom_killed => crash(CrashCause::Oom),
        // `docker rm --force`: the removal is noted before the kill, and the container is about to be gone.
        EXIT_SIGKILL if is_being_removed(state) => crash(CrashCause::Lost),
        // A host that goes down in order stops its engine first.
        EXIT_SIGKILL | EXIT_SIGTERM | EXIT_UNKNOWN if rebooted => crash(CrashCause::Host),
        _ if rebooted && (evidence.by_engine || evidence.near_start) => crash(CrashCause::Host),
        _ if evidence.by_engine => crash(CrashCause::Engine),
        EXIT_SIGKILL => crash(CrashCause::Killed),
        0 => Verdict::Completed { oom_seen: state.oom_killed },
        _ => Verdict::Failed { reason: "exit".into(), exit_code },
    }
}

fn is_being_removed(state: &ContainerState) -> bool {
    matches!(state.status.as_str(), "removing" | "dead")
}

/// The verdict on an attempt whose container was started and no longer exists.
pub fn verdict_gone(asked: Option<StopReason>) -> Verdict {
    match asked {
        Some(StopReason::Cancel) => Verdict::Cancelled,
        Some(StopReason::Timeout) => Verdict::Failed { reason: "timeout".into(), exit_code: None },
        None => Verdict::Crash { cause: CrashCause::Lost, exit_code: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StopReason::{Cancel, Timeout};

    fn ended(exit_code: i32, oom_killed: bool) -> ContainerState {
        ContainerState { status: "exited".into(), started: true, exit_code, oom_killed, ..Default::default() }
    }

    fn removing(exit_code: i32) -> ContainerState {
        ContainerState { status: "removing".into(), ..ended(exit_code, false) }
    }

    fn never_started(exit_code: i32, error: &str) -> ContainerState {
        ContainerState { status: "created".into(), exit_code, error: error.into(), ..Default::default() }
    }

    fn crash(cause: CrashCause, exit_code: i32) -> Verdict {
        Verdict::Crash { cause, exit_code: Some(exit_code) }
    }

    fn failed(reason: &str, exit_code: i32) -> Verdict {
        Verdict::Failed { reason: reason.into(), exit_code: Some(exit_code) }
    }

    #[test]
    fn every_known_end_has_its_verdict() {
        let not_found = "exec: \"nope\": executable file not found in $PATH";
        let same = ("b1", "b1");
        let rebooted = ("b1", "b2");
        let table = [
            ("exit 0", ended(0, false), None, same, Verdict::Completed { oom_seen: false }),
            ("OOM of a child, PID 1 survives", ended(0, true), None, same, Verdict::Completed { oom_seen: true }),
            ("exit 0 after a reboot", ended(0, false), None, rebooted, Verdict::Completed { oom_seen: false }),
            ("OOM of PID 1", ended(137, true), None, same, crash(CrashCause::Oom, 137)),
            ("docker kill or host kill -9", ended(137, false), None, same, crash(CrashCause::Killed, 137)),
            ("docker rm -f, seen before it is gone", removing(137), None, same, crash(CrashCause::Lost, 137)),
            ("removed just after it ended", removing(0), None, same, Verdict::Completed { oom_seen: false }),
            ("OOM of PID 1, then a reboot", ended(137, true), None, rebooted, crash(CrashCause::Oom, 137)),
            ("host power loss", ended(255, false), None, rebooted, crash(CrashCause::Host, 255)),
            ("the payload's own exit 255", ended(255, false), None, same, failed("exit", 255)),
            ("the payload's own exit 125", ended(125, false), None, same, failed("exit", 125)),
            ("the payload's own exit 127", ended(127, false), None, same, failed("exit", 127)),
            ("exit 300 reads 44", ended(44, false), None, same, failed("exit", 44)),
            ("OOM seen, then exit 3", ended(3, true), None, same, failed("exit", 3)),
            ("SIGTERM from elsewhere", ended(143, false), None, same, failed("exit", 143)),
            ("stopped on cancel", ended(143, false), Some(Cancel), same, Verdict::Cancelled),
            ("cancel, handler exits 0", ended(0, false), Some(Cancel), same, Verdict::Cancelled),
            ("cancel, grace ran out", ended(137, false), Some(Cancel), same, Verdict::Cancelled),
            ("timeout, handler exits 0", ended(0, false), Some(Timeout), same, failed("timeout", 0)),
            ("timeout, grace ran out", ended(137, true), Some(Timeout), same, failed("timeout", 137)),
            ("an orderly reboot", ended(143, false), None, rebooted, crash(CrashCause::Host, 143)),
            ("an orderly reboot, grace ran out", ended(137, false), None, rebooted, crash(CrashCause::Host, 137)),
            ("exit 7 before a reboot", ended(7, false), None, rebooted, failed("exit", 7)),
            ("cancel, then a reboot", ended(255, false), Some(Cancel), rebooted, Verdict::Cancelled),
            (
                "command not found",
                never_started(127, not_found),
                None,
                same,
                failed(&format!("not started: {not_found}"), 127),
            ),
            ("not executable", never_started(126, "denied"), None, same, failed("not started: denied", 126)),
            (
                "no driver for GPUs",
                never_started(128, "could not select device driver \"\""),
                None,
                same,
                failed("not started: could not select device driver \"\"", 128),
            ),
            ("runtime failed", never_started(128, "runc: busy"), None, same, crash(CrashCause::Engine, 128)),
            ("cancelled before the start", never_started(0, ""), Some(Cancel), same, Verdict::Cancelled),
        ];
        for (case, state, asked, (at_start, now), expected) in table {
            assert_eq!(verdict(&state, asked, at_start, now, Evidence::default()), expected, "{case}");
        }
    }

    #[test]
    fn what_the_engine_ended_has_no_verdict_of_its_own() {
        let by_engine = Evidence { by_engine: true, ..Default::default() };
        let near_start = Evidence { near_start: true, ..Default::default() };
        let (same, rebooted) = (("b1", "b1"), ("b1", "b2"));
        for code in [0, 1, 99, 137, 143, 255] {
            let state = ended(code, false);
            let told = |asked, boots: (&str, &str), evidence| verdict(&state, asked, boots.0, boots.1, evidence);
            assert_eq!(told(None, same, by_engine), crash(CrashCause::Engine, code), "{code}");
            assert_eq!(told(None, rebooted, by_engine), crash(CrashCause::Host, code), "{code}");
            assert_eq!(told(None, rebooted, near_start), crash(CrashCause::Host, code), "{code}");
            assert_eq!(told(None, same, near_start), told(None, same, Evidence::default()), "{code}");
            assert_eq!(told(Some(Cancel), same, by_engine), Verdict::Cancelled, "{code}");
            assert_eq!(told(Some(Timeout), rebooted, by_engine), failed("timeout", code), "{code}");
        }
        assert_eq!(verdict(&ended(137, true), None, "b1", "b1", by_engine), crash(CrashCause::Oom, 137));
        let never = never_started(127, "no such file");
        assert_eq!(verdict(&never, None, "b1", "b1", by_engine), failed("not started: no such file", 127));
    }

    #[test]
    fn a_container_that_is_gone() {
        assert_eq!(verdict_gone(None), Verdict::Crash { cause: CrashCause::Lost, exit_code: None });
        assert_eq!(verdict_gone(Some(Timeout)), Verdict::Failed { reason: "timeout".into(), exit_code: None });
        assert_eq!(verdict_gone(Some(Cancel)), Verdict::Cancelled);
    }
}
