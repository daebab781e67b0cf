//! The event stream: resumes from any seq ever written, from memory or from disk, and never blocks the ledger.
//!
//! Subscribers pull. One that reads slowly falls back to the segments and costs a thread and its socket's buffer, no queue;
//! one that does not read at all is cut by the write deadline and can resume.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::reply::StreamWriter;
use crate::runner::telemetry::Telemetry;
use crate::view::View;

/// A comment goes out when there was nothing else for this long.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a waiting stream looks whether its peer left or the agent stops.
const LOOK: Duration = Duration::from_millis(500);
/// Events taken at once; a burst is coalesced into few writes.
const BATCH: usize = 512;
/// What a browser waits before it reconnects, in milliseconds.
const RETRY_MS: u32 = 2000;

/// Writes every durable event after `after` (with `job`, only that job's), then those to come. In between come the newest
/// telemetry samples, without an id: they are no part of the ledger, and who is too slow for some of them misses them.
/// Ends once it is not `is_allowed` any more.
///
/// # Errors
/// The peer is gone or too slow, or the ledger cannot be read back.
pub fn stream(
    view: &Arc<View>,
    telemetry: &Telemetry,
    mut after: u64,
    job: Option<&str>,
    is_allowed: &dyn Fn() -> bool,
    to: &mut StreamWriter<'_>,
) -> io::Result<()> {
    let mut text = format!("retry: {RETRY_MS}\n: after {after}\n\n").into_bytes();
    to.send(&text)?;
    let mut sent = Instant::now();
    // A batch from before may be of long ago.
    let mut batch = telemetry.newest().number;
    loop {
        if to.stopping() || view.latched().is_some() {
            return to.send(b": the agent stops; resume with the last id\n\n");
        }
        if !is_allowed() {
            return to.send(b": the token is not valid any more\n\n");
        }
        let (events, reached) = view.events_after(after, job, BATCH)?;
        let idle = reached == after;
        after = reached;
        if !events.is_empty() {
            text.clear();
            for (seq, bytes) in &events {
                // An event is one line, so its bytes are one `data:` field as they are.
                write!(text, "id: {seq}\ndata: ")?;
                text.extend_from_slice(bytes);
                text.extend_from_slice(b"\n\n");
            }
            to.send(&text)?;
            sent = Instant::now();
        }
        // Events that are there already go first.
        if events.len() < BATCH {
            let newest = telemetry.newest();
            if newest.number != batch {
                batch = newest.number;
                text.clear();
                for (_, line) in newest.lines.iter().filter(|(id, _)| job.is_none_or(|job| *job == **id)) {
                    write!(text, "event: telemetry\ndata: {line}\n\n")?;
                }
                if !text.is_empty() {
                    to.send(&text)?;
                    sent = Instant::now();
                }
            }
        }
        if idle {
            view.wait_past(after, LOOK);
            if to.peer_gone() {
                return Ok(());
            }
        }
        if sent.elapsed() >= HEARTBEAT {
            to.send(b": still here\n\n")?;
            sent = Instant::now();
        }
    }
}
