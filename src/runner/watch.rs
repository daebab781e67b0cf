//! Watches an attempt's output for D1_STABLE markers and records them, at most so many a second.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::growth::{Grows, Growth};
use super::output::{CountedMarker, Cuts, Marker, MarkerLimiter, MarkerScanner, OutputPaths, Stream, Tail};
use crate::engine::Engine;
use crate::ledger::event::D1Stable;
use crate::ledger::lifecycle::{Command, Job};
use crate::sys::kill_point;

const GO_ON: u8 = 0;
const FINISH: u8 = 1;
const ABANDON: u8 = 2;

/// Pauses between two looks: the longest, and the shortest while a marker waits for its time.
const PAUSE_MAX: Duration = Duration::from_millis(100);
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Bytes of one stream that are taken in before the other has its turn.
const LOOK_BYTES_MAX: u64 = 1 << 20;

/// The thread that watches.
pub(super) struct OutputWatch {
    thread: Option<JoinHandle<()>>,
    order: Arc<AtomicU8>,
}

impl OutputWatch {
    /// Starts behind the markers that are recorded already: `marks` are their last offsets on stdout and stderr.
    pub(super) fn start(
        engine: Engine,
        growth: Arc<Growth>,
        job: &Job,
        paths: OutputPaths,
        marks: [Option<u64>; 2],
    ) -> Self {
        let order = Arc::new(AtomicU8::new(GO_ON));
        let (their_order, job_id, attempt) = (order.clone(), job.job_id.clone(), job.attempt);
        let spawned = thread::Builder::new().name("watch".into()).stack_size(256 << 10).spawn(move || {
            let is_named = Cell::new(false);
            let record = |out: CountedMarker| {
                // The event tells of output: that is durable first, as everything else that an event tells of.
                let named = if is_named.get() { Ok(()) } else { paths.sync_names() };
                is_named.set(named.is_ok());
                if let Err(error) = named.and_then(|()| paths.sync(out.marker.stream)) {
                    log::warn!("job {job_id}: its output cannot be synced, and may be lost with the host: {error}");
                }
                kill_point::reached("marked-output-durable");
                let mark = D1Stable {
                    line: out.marker.line,
                    stream: out.marker.stream.as_str().to_owned(),
                    offset: out.marker.offset,
                    count: out.count,
                };
                let recorded = engine.execute(Command::Mark(job_id.clone(), attempt, mark)).is_ok();
                kill_point::reached("marker-durable");
                recorded
            };
            let mut pace = Pace::new(marks, &record);
            let mut grows = Grows::new(growth, job_id.clone(), attempt, &paths);
            let view = engine.view();
            let mut streams = [
                Watched::new(Stream::Stdout, &paths.stdout, marks[0], paths.cuts.clone()),
                Watched::new(Stream::Stderr, &paths.stderr, marks[1], paths.cuts.clone()),
            ];
            loop {
                // Read before the output is: all that was written when the order came is taken in.
                let order = their_order.load(Ordering::SeqCst);
                let (mut is_behind, mut pause) = (false, PAUSE_MAX);
                for stream in &mut streams {
                    is_behind |= stream.look(&mut pace);
                    pause = pause.min(stream.pause());
                }
                pace.send_what_is_due();
                if grows.look() {
                    view.ring();
                }
                match order {
                    _ if pace.refused => return,
                    ABANDON => return,
                    _ if is_behind => {}
                    FINISH => {
                        streams.into_iter().for_each(|stream| stream.finish(&mut pace));
                        if grows.finish() {
                            view.ring();
                        }
                        return pace.flush();
                    }
                    _ => thread::park_timeout(pause.min(pace.time_to_next().unwrap_or(pause))),
                }
            }
        });
        if let Err(error) = &spawned {
            log::error!("job {}: no thread to watch its output: {error}", job.job_id);
        }
        Self { thread: spawned.ok(), order }
    }

    /// The output is complete: records what is left, then ends. Returns once every marker is durable.
    pub(super) fn finish(&mut self) {
        self.end(FINISH);
    }

    /// Ends where it stands; the next agent goes on from the last recorded marker.
    pub(super) fn abandon(&mut self) {
        self.end(ABANDON);
    }

    fn end(&mut self, order: u8) {
        self.order.store(order, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // An attempt that ends need not wait for the next look.
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for OutputWatch {
    fn drop(&mut self) {
        self.end(ABANDON);
    }
}

/// Records the markers of both streams, at the pace of one attempt.
struct Pace<'r> {
    limiter: MarkerLimiter,
    began: Instant,
    /// Offsets of the last recorded markers.
    recorded: [Option<u64>; 2],
    record: &'r dyn Fn(CountedMarker) -> bool,
    /// The ledger takes no more markers of this attempt.
    refused: bool,
}

impl<'r> Pace<'r> {
    fn new(recorded: [Option<u64>; 2], record: &'r dyn Fn(CountedMarker) -> bool) -> Self {
        Self { limiter: MarkerLimiter::new(), began: Instant::now(), recorded, record, refused: false }
    }

    fn offer(&mut self, marker: Marker) {
        if let Some(out) = self.limiter.offer(marker, self.began.elapsed()) {
            self.send(out);
        }
    }

    fn send_what_is_due(&mut self) {
        if let Some(out) = self.limiter.due(self.began.elapsed()) {
            self.send(out);
        }
    }

    /// Time does not matter any more.
    fn flush(mut self) {
        for out in self.limiter.flush().into_iter().flatten() {
            self.send(out);
        }
    }

    fn send(&mut self, out: CountedMarker) {
        let (stream, offset) = (out.marker.stream.index(), out.marker.offset);
        // After a refusal nothing is counted as recorded any more; the thread ends soon.
        if self.refused || !(self.record)(out) {
            self.refused = true;
            return;
        }
        self.recorded[stream] = Some(offset);
        self.limiter.sent(self.began.elapsed());
    }

    fn time_to_next(&self) -> Option<Duration> {
        let due_at = self.limiter.due_at()?;
        Some(due_at.saturating_sub(self.began.elapsed()).max(PAUSE_MIN))
    }
}

struct Watched {
    stream: Stream,
    path: PathBuf,
    /// Offset of the recorded marker at which reading began; it comes first, and is not counted again.
    from: Option<u64>,
    cuts: Cuts,
    /// Their number when reading began at `from`.
    cuts_seen: u64,
    tail: Option<Tail>,
    scanner: MarkerScanner,
}

impl Watched {
    fn new(stream: Stream, path: &Path, from: Option<u64>, cuts: Cuts) -> Self {
        Self {
            stream,
            path: path.to_owned(),
            from,
            cuts_seen: cuts.count(),
            cuts,
            tail: None,
            scanner: MarkerScanner::new(stream, from.unwrap_or(0)),
        }
    }

    /// Reads again from the last recorded marker: what was read since may have been cut off and replaced.
    fn start_over(&mut self, pace: &mut Pace<'_>) {
        pace.limiter.forget(self.stream);
        *self = Self::new(self.stream, &self.path, pace.recorded[self.stream.index()], self.cuts.clone());
    }

    /// Takes in some of what is there; whether there may be more.
    fn look(&mut self, pace: &mut Pace<'_>) -> bool {
        if self.cuts.count() != self.cuts_seen {
            self.start_over(pace);
        }
        if self.cuts_seen % 2 == 1 {
            // A cut is under way; what is read now may be neither the old nor the new.
            return false;
        }
        if self.tail.is_none() {
            // Not there before the CLI is started.
            self.tail = Tail::open(&self.path, self.from.unwrap_or(0)).ok();
        }
        let Some(tail) = &mut self.tail else { return false };
        let (scanner, from) = (&mut self.scanner, self.from);
        let (cuts, cuts_seen) = (&self.cuts, self.cuts_seen);
        let polled = tail.poll_some(LOOK_BYTES_MAX, &mut |_, chunk| {
            // Asked after reading and before believing.
            if cuts.count() != cuts_seen {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            scanner.push(chunk, &mut |marker| {
                if Some(marker.offset) != from {
                    pace.offer(marker);
                }
            });
            Ok(())
        });
        match polled {
            Ok(read) => read >= LOOK_BYTES_MAX,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => false,
            Err(error) => {
                log::warn!("{}: cannot be read: {error}", self.path.display());
                false
            }
        }
    }

    fn pause(&self) -> Duration {
        self.tail.as_ref().map_or(PAUSE_MAX, Tail::pause)
    }

    /// The stream has ended: an unterminated line counts now.
    fn finish(self, pace: &mut Pace<'_>) {
        let from = self.from;
        self.scanner.finish(&mut |marker| {
            if Some(marker.offset) != from {
                pace.limiter.hold(marker);
            }
        });
    }
}
