//! The write-ahead log: opaque records in, durable and in order, or an error that ends everything. Knows no jobs.
//!
//! **Architecture Invariant**: a block that holds acknowledged bytes is never written again, and recovery never writes into
//! an old segment. docs/wal-format.md has the format and the argument for each case of recovery.

mod ahead;
mod commit;
pub mod duplicate;
pub mod frame;
pub mod meters;
mod part;
mod prepare;
pub mod reader;
pub mod recovery;
mod scan_error;
pub mod segments;
pub mod storage;
mod waiters;
pub mod writer;

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) use crate::sys::AbortOnPanic;
