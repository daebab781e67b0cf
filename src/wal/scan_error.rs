//! Why a log was not opened: what is damaged and where, another version, or a medium that does not answer.

use std::fmt;
use std::io;

use super::frame::FORMAT_VERSION;

/// Damage that no crash explains. The log is not opened; no byte of it is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The damaged or missing file.
    pub file: String,
    /// Byte offset of the first frame that cannot be trusted.
    pub offset: u64,
    /// The seq that should be there.
    pub expected_seq: u64,
    /// What does not hold.
    pub reason: String,
    /// The next frame that can be read, if there is one.
    pub next_sound: Option<SoundFrame>,
}

/// A frame that is intact although something before it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoundFrame {
    /// Its file.
    pub file: String,
    /// Where it starts.
    pub offset: u64,
    /// Seq of its first record.
    pub first_seq: u64,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, offset, expected_seq, reason, next_sound } = self;
        write!(f, "{file}: byte offset {offset}: expected seq {expected_seq}: {reason}; ")?;
        match next_sound {
            Some(next) => {
                write!(f, "next sound frame: seq {} at byte offset {} of {}", next.first_seq, next.offset, next.file)
            }
            None => write!(f, "no sound frame behind it"),
        }
    }
}

/// Why a log was not opened.
#[derive(Debug)]
pub enum ScanError {
    /// It is damaged.
    Corrupt(Box<Corruption>),
    /// It was written by another version of the format.
    Version {
        /// The file.
        file: String,
        /// The version found.
        version: u32,
    },
    /// Its records are sound, and what they hold cannot be used: why.
    Unreadable(String),
    /// The medium did not answer.
    Io {
        /// What was being done, and to which file.
        what: String,
        /// The error.
        error: io::Error,
    },
}

impl fmt::Display for ScanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt(corruption) => corruption.fmt(f),
            Self::Version { file, version } => {
                write!(f, "{file}: format version {version}; this program reads version {FORMAT_VERSION}")
            }
            Self::Unreadable(reason) => f.write_str(reason),
            Self::Io { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for ScanError {}

pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> ScanError {
    let what = what.into();
    move |error| ScanError::Io { what, error }
}
