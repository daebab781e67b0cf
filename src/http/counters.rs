//! What the front counts.

use std::sync::atomic::AtomicU64;

use super::refusals::Refusals;

/// What the front has done so far. All but `active` and `streams` only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted, the refused ones included.
    pub accepted: AtomicU64,
    /// Connections open now, the refused ones not included.
    pub active: AtomicU64,
    /// Streams open now.
    pub streams: AtomicU64,
    /// Connections closed, while they asked for nothing, to make room for another.
    pub evicted: AtomicU64,
    /// Connections answered 503 because all slots were taken.
    pub refused_full: AtomicU64,
    /// Connections answered 503 because their address had its share.
    pub refused_address: AtomicU64,
    /// Connections answered 503 because no thread could be started.
    pub refused_no_thread: AtomicU64,
    /// Failed accepts.
    pub accept_errors: AtomicU64,
    /// Requests handed to the handler.
    pub requests: AtomicU64,
    /// Requests refused before the handler: malformed, too large or too slow.
    pub rejected: AtomicU64,
    /// Panics of the handler, or of the body it gave.
    pub handler_panics: AtomicU64,
    /// Responses cut off: the peer left or was too slow, or the body failed.
    pub responses_cut: AtomicU64,
    /// What was refused, by code.
    pub refusals: Refusals,
}
