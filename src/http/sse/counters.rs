//! What the event stream has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the event stream has done so far. All but `subscribers` only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Subscribers now, those included that are catching up.
    pub subscribers: AtomicU64,
    /// Subscriptions that were taken.
    pub subscribed: AtomicU64,
    /// Subscriptions answered 503 because there were as many as there may be.
    pub refused: AtomicU64,
    /// How often a subscriber's socket was full, so that it went back to catching up by itself.
    pub behind: AtomicU64,
    /// Subscribers cut because they were behind and took less than the minimum rate.
    pub slow: AtomicU64,
    /// Subscribers cut because they took nothing at all.
    pub stalled: AtomicU64,
    /// Subscribers that left.
    pub left: AtomicU64,
    /// Subscribers whose stream ended because the agent stops, whether or not they took the end.
    pub draining: AtomicU64,
    /// Subscribers whose token was taken away.
    pub revoked: AtomicU64,
    /// Subscribers cut because the ledger could not be read back.
    pub unreadable: AtomicU64,
    /// Events sent, once for each subscriber.
    pub events: AtomicU64,
    /// Bytes sent after the heads of the responses.
    pub bytes: AtomicU64,
    /// Rounds in which the hub sent something.
    pub batches: AtomicU64,
}

impl Counters {
    pub(super) fn sent(&self, events: u64, bytes: u64) {
        self.events.fetch_add(events, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
