//! Every limit of the front, with its default.

use std::time::Duration;

use super::reply::WriteLimits;

/// Every limit of the front.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at once, and so most threads.
    pub max_connections: usize,
    /// Most connections at once from one address; of IPv6, from one /64.
    pub max_per_address: usize,
    /// Slots of `max_connections` that only loopback may take, so that its operator can reach a besieged node.
    pub reserved_for_loopback: usize,
    /// From the accept, or from the first byte on a kept connection, to the end of the head.
    pub head_deadline: Duration,
    /// From the end of the head to the end of the body.
    pub body_deadline: Duration,
    /// Between two requests on a kept connection.
    pub idle_deadline: Duration,
    /// For a response to be taken, beside the allowance of `write_bytes_per_second`; also the longest single stall.
    pub write_deadline: Duration,
    /// Slowest reader tolerated in bytes per second: each such many bytes taken earn one more second.
    pub write_bytes_per_second: u64,
    /// Longest lingering close.
    pub linger: Duration,
    /// Largest head in bytes.
    pub max_head: usize,
    /// Largest body in bytes, after transfer decoding.
    pub max_body: usize,
    /// Stack of a connection's thread in bytes.
    pub stack: usize,
}

impl Limits {
    /// Default of [`Limits::max_connections`].
    pub const MAX_CONNECTIONS: usize = 1024;
    /// Default of [`Limits::max_per_address`].
    pub const MAX_PER_ADDRESS: usize = 256;
    /// Default of [`Limits::reserved_for_loopback`].
    pub const RESERVED_FOR_LOOPBACK: usize = 16;
    /// Default of [`Limits::head_deadline`].
    pub const HEAD_DEADLINE: Duration = Duration::from_secs(10);
    /// Default of [`Limits::body_deadline`].
    pub const BODY_DEADLINE: Duration = Duration::from_secs(15);
    /// Default of [`Limits::idle_deadline`].
    pub const IDLE_DEADLINE: Duration = Duration::from_secs(30);
    /// Default of [`Limits::write_deadline`].
    pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);
    /// Default of [`Limits::write_bytes_per_second`]: 64 KiB.
    pub const WRITE_BYTES_PER_SECOND: u64 = 64 * 1024;
    /// Default of [`Limits::linger`].
    pub const LINGER: Duration = Duration::from_secs(1);
    /// Default of [`Limits::max_head`]: 16 KiB.
    pub const MAX_HEAD: usize = 16 * 1024;
    /// Default of [`Limits::max_body`]: 1 MiB.
    pub const MAX_BODY: usize = 1024 * 1024;
    /// Default of [`Limits::stack`]: 256 KiB.
    pub const STACK: usize = 256 * 1024;

    /// The default limits, where the process may have `descriptors` open: at most half of them for connections, so that
    /// the rest of the process, and each connection's own files, never lack one because of strangers.
    pub fn within(descriptors: u64) -> Self {
        let half = usize::try_from(descriptors / 2).unwrap_or(usize::MAX);
        let max_connections = Self::MAX_CONNECTIONS.min(half);
        Self {
            max_connections,
            max_per_address: Self::MAX_PER_ADDRESS.min(max_connections / 2),
            reserved_for_loopback: Self::RESERVED_FOR_LOOPBACK.min(max_connections / 4),
            ..Self::default()
        }
    }

    pub(super) fn write_limits(&self) -> WriteLimits {
        WriteLimits { stall: self.write_deadline, bytes_per_second: self.write_bytes_per_second }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: Self::MAX_CONNECTIONS,
            max_per_address: Self::MAX_PER_ADDRESS,
            reserved_for_loopback: Self::RESERVED_FOR_LOOPBACK,
            head_deadline: Self::HEAD_DEADLINE,
            body_deadline: Self::BODY_DEADLINE,
            idle_deadline: Self::IDLE_DEADLINE,
            write_deadline: Self::WRITE_DEADLINE,
            write_bytes_per_second: Self::WRITE_BYTES_PER_SECOND,
            linger: Self::LINGER,
            max_head: Self::MAX_HEAD,
            max_body: Self::MAX_BODY,
            stack: Self::STACK,
        }
    }
}
