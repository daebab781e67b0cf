//! Why a job's workspace or output cannot be had, and whether that may pass.

use std::io;

use crate::seal::SealError;

/// Why a job's workspace or output cannot be had.
pub(super) struct Fault {
    /// One of the reasons of FAILED.
    pub(super) reason: &'static str,
    /// For a person.
    pub(super) message: String,
    /// It passes once there is space.
    pub(super) disk_is_full: bool,
    /// A file changed while it was hashed, somebody else may be writing there; or the host lacks descriptors.
    pub(super) may_hold_still: bool,
    /// Given up in the middle: the agent stops, or the job is not any more what it was.
    pub(super) given_up: bool,
}

/// Descriptors or memory that the host lacks at this moment, for which no job is to blame.
fn is_passing(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    error.kind() == io::ErrorKind::OutOfMemory || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

impl Fault {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), disk_is_full: false, may_hold_still: false, given_up: false }
    }

    /// Nobody wants it any more, or the agent stops.
    pub(super) fn abandoned() -> Self {
        Self { given_up: true, ..Self::new("inputs", "given up") }
    }

    pub(super) fn of_seal(reason: &'static str, what: &str, error: &SealError) -> Self {
        let disk_is_full = match error {
            SealError::Io { source, .. } => Self::io(reason, what, source).disk_is_full,
            _ => false,
        };
        let may_hold_still = match error {
            SealError::Changed { .. } => true,
            SealError::Io { source, .. } => is_passing(source),
            _ => false,
        };
        let given_up = matches!(error, SealError::Stopped);
        Self { disk_is_full, may_hold_still, given_up, ..Self::new(reason, format!("{what}: {error}")) }
    }

    pub(super) fn io(reason: &'static str, what: &str, error: &io::Error) -> Self {
        let disk_is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Self { disk_is_full, may_hold_still: is_passing(error), ..Self::new(reason, format!("{what}: {error}")) }
    }
}
