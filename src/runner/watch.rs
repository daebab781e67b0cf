//! Watches an attempt's output for D1_STABLE markers and records them, at most so many a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::output::{CountedMarker, Cuts, MarkerLimiter, MarkerScanner, OutputPaths, Stream, Tail};
use crate::engine::Engine;
use crate::ledger::event::D1Stable;
use crate::ledger::lifecycle::{Command, Job};
use crate::sys::kill_point;

const GO_ON: u8 = 0;
const FINISH: u8 = 1;
const ABANDON: u8 = 2;

/// Pause while nothing comes and nothing is held back.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// The thread that watches.
pub(super) struct OutputWatch {
    thread: Option<JoinHandle<()>>,
    order: Arc<AtomicU8>,
}

impl OutputWatch {
    /// Starts behind the markers that are recorded already: `marks` are their last offsets on stdout and stderr.
    pub(super) fn start(engine: Engine, job: &Job, paths: OutputPaths, marks: [Option<u64>; 2]) -> Self {
        let order = Arc::new(AtomicU8::new(GO_ON));
        let (their_order, job_id, attempt) = (order.clone(), job.job_id.clone(), job.attempt);
        let spawned = thread::Builder::new().name("watch".into()).stack_size(256 << 10).spawn(move || {
            let mut streams = [
                Watched::new(Stream::Stdout, &paths.stdout, marks[0], paths.cuts.clone()),
                Watched::new(Stream::Stderr, &paths.stderr, marks[1], paths.cuts.clone()),
            ];
            let record = |out: CountedMarker| {
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
            let began = Instant::now();
            loop {
                // Read before the output is: all that was written when the order came is taken in.
                let order = their_order.load(Ordering::SeqCst);
                let mut pause = PAUSE_MAX;
                for stream in &mut streams {
                    if !stream.look(began, &record) {
                        return;
                    }
                    pause = pause.min(stream.pause());
                }
                match order {
                    ABANDON => return,
                    FINISH => {
                        let [stdout, stderr] = streams;
                        let _ = stdout.finish(&record) && stderr.finish(&record);
                        return;
                    }
                    _ => thread::sleep(pause),
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
            let _ = thread.join();
        }
    }
}

impl Drop for OutputWatch {
    fn drop(&mut self) {
        self.end(ABANDON);
    }
}

struct Watched {
    stream: Stream,
    path: std::path::PathBuf,
    /// Offset of the last recorded marker.
    known: Option<u64>,
    cuts: Cuts,
    /// Their number when reading began at `known`.
    cuts_seen: u64,
    tail: Option<Tail>,
    scanner: MarkerScanner,
    limiter: MarkerLimiter,
}

impl Watched {
    fn new(stream: Stream, path: &std::path::Path, known: Option<u64>, cuts: Cuts) -> Self {
        Self {
            stream,
            path: path.to_owned(),
            known,
            cuts_seen: cuts.count(),
            cuts,
            tail: None,
            scanner: MarkerScanner::new(stream, known.unwrap_or(0)),
            limiter: MarkerLimiter::new(),
        }
    }

    /// Reads again from the last recorded marker: what was read since may have been cut off and replaced.
    fn start_over(&mut self) {
        self.cuts_seen = self.cuts.count();
        self.tail = None;
        self.scanner = MarkerScanner::new(self.stream, self.known.unwrap_or(0));
        self.limiter = MarkerLimiter::new();
    }

    /// Takes in what is there. `false`: the ledger takes no more markers of this attempt.
    fn look(&mut self, began: Instant, record: &dyn Fn(CountedMarker) -> bool) -> bool {
        if self.cuts.count() != self.cuts_seen {
            self.start_over();
        }
        if self.cuts_seen % 2 == 1 {
            // A cut is under way; what is read now may be neither the old nor the new.
            return true;
        }
        if self.tail.is_none() {
            // Not there before the CLI is started.
            self.tail = Tail::open(&self.path, self.known.unwrap_or(0)).ok();
        }
        let mut out = Vec::new();
        if let Some(tail) = &mut self.tail {
            let (scanner, limiter, known) = (&mut self.scanner, &mut self.limiter, self.known);
            let (cuts, cuts_seen) = (&self.cuts, self.cuts_seen);
            let polled = tail.poll(&mut |_, chunk| {
                // Asked after reading and before believing.
                if cuts.count() != cuts_seen {
                    return Err(std::io::ErrorKind::Interrupted.into());
                }
                scanner.push(chunk, &mut |marker| {
                    if Some(marker.offset) != known {
                        out.extend(limiter.offer(marker, began.elapsed()));
                    }
                });
                Ok(())
            });
            match polled {
                Err(error) if error.kind() != std::io::ErrorKind::Interrupted => {
                    log::warn!("{}: cannot be read: {error}", self.path.display());
                }
                _ => {}
            }
        }
        out.extend(self.limiter.due(began.elapsed()));
        out.into_iter().all(|out| self.record(out, record))
    }

    fn record(&mut self, out: CountedMarker, record: &dyn Fn(CountedMarker) -> bool) -> bool {
        let offset = out.marker.offset;
        let recorded = record(out);
        if recorded {
            self.known = Some(offset);
        }
        recorded
    }

    fn pause(&self) -> Duration {
        let held_back = self.limiter.due_at().is_some();
        self.tail
            .as_ref()
            .map_or(PAUSE_MAX, |tail| if held_back { tail.pause().min(PAUSE_MAX / 2) } else { tail.pause() })
    }

    fn finish(mut self, record: &dyn Fn(CountedMarker) -> bool) -> bool {
        let mut last = Vec::new();
        let scanner = std::mem::replace(&mut self.scanner, MarkerScanner::new(self.stream, 0));
        scanner.finish(&mut |marker| last.push(marker));
        for marker in last.into_iter().filter(|marker| Some(marker.offset) != self.known) {
            // Time does not matter any more: what is held back goes out together with the last one.
            if let Some(out) = self.limiter.offer(marker, Duration::ZERO) {
                record(out);
            }
        }
        self.limiter.flush().is_none_or(record)
    }
}
