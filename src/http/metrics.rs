//! `GET /metrics`. What tells of an event comes from the view, and so exists only once that is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tiny_http::Response;

use super::api::Call;
use super::reply::{Reply, header};
use super::routes::{Answer, App};
use super::server::Counters;
use super::sse;
use crate::ledger::event::State;
use crate::metrics::{CONTENT_TYPE, Family, Kind, Process, encode, seconds};
use crate::view::{ENDS, Figures};

/// What does not change while the agent runs, and what its front counts.
#[derive(Debug)]
pub struct Observed {
    /// Shared with the [`Server`](super::server::Server).
    pub counters: Arc<Counters>,
    /// When the agent started, since 1970.
    pub started: Duration,
    /// What reading the ledger took when it started.
    pub recovery: Duration,
    /// Events that were read then.
    pub recovered_events: u64,
    /// `--max-queue`.
    pub max_queue: usize,
}

impl App {
    pub(super) fn metrics(&self, _: &Call<'_>) -> Answer {
        let text = encode(&self.families());
        Ok(Reply::Full(Response::from_data(text).with_header(header("Content-Type", CONTENT_TYPE)).boxed()))
    }

    /// Everything that is told, in the order in which it is written.
    fn families(&self) -> Vec<Family> {
        let mut families = vec![
            Family::new(Kind::Gauge, "hackbrain_build_info", "Always 1; the label tells the version.")
                .with(&[("version", env!("CARGO_PKG_VERSION"))], 1),
        ];
        families.extend(jobs(&self.engine.view().figures()));
        families.extend(self.ledger_families());
        families.extend(self.runner_families());
        families.extend(front(&self.observed.counters));
        families.extend(subscribers(self.events.counters()));
        families.extend(self.process_families());
        families
    }

    fn ledger_families(&self) -> [Family; 14] {
        let (meters, view) = (self.engine.log_meters(), self.engine.view());
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (waiting, waiting_max) = self.engine.commands_waiting();
        [
            Family::histogram(
                "hackbrain_ledger_commit_duration_seconds",
                "From the staging of a frame's first record until the frame was durable.",
                &meters.commit,
            ),
            Family::histogram(
                "hackbrain_ledger_sync_duration_seconds",
                "Writing and fdatasync of a frame, marks included.",
                &meters.sync,
            ),
            Family::counter("hackbrain_ledger_frames_total", "Frames written, marks included.", load(&meters.frames)),
            Family::counter("hackbrain_ledger_records_total", "Records written.", load(&meters.records)),
            Family::counter(
                "hackbrain_ledger_bytes_total",
                "Bytes of frames written, padding included.",
                load(&meters.bytes),
            ),
            Family::gauge("hackbrain_ledger_segments", "Segments of the ledger.", load(&meters.segments)),
            Family::gauge(
                "hackbrain_ledger_latched",
                "1 once the ledger takes no more events, after an I/O error.",
                u8::from(view.latched().is_some()),
            ),
            Family::gauge(
                "hackbrain_ledger_out_of_space",
                "1 while the disk is too full for the next segment.",
                u8::from(meters.out_of_space.load(Ordering::Relaxed)),
            ),
            Family::gauge("hackbrain_ledger_commands_waiting", "Commands that wait to be decided.", waiting),
            Family::gauge("hackbrain_ledger_commands_waiting_max", "How many may wait.", waiting_max),
            Family::gauge(
                "hackbrain_ledger_recovery_seconds",
                "What reading the ledger took at the agent's start.",
                duration(self.observed.recovery),
            ),
            Family::gauge(
                "hackbrain_ledger_recovered_events",
                "Events that were read at the agent's start.",
                self.observed.recovered_events,
            ),
            Family::gauge(
                "hackbrain_ready",
                "1 once the agent's start is recorded and it takes work.",
                u8::from(self.ready.get().is_some()),
            ),
            Family::gauge(
                "hackbrain_jobs_open_max",
                "Jobs that may be unfinished: --max-queue.",
                self.observed.max_queue,
            ),
        ]
    }

    fn runner_families(&self) -> [Family; 5] {
        let (slots, workers) = self.runner.slots();
        let depths = Family::new(
            Kind::Gauge,
            "hackbrain_runner_queue_entries",
            "Entries of the queues that hand work out; some may be void.",
        );
        [
            self.runner
                .queue_depths()
                .iter()
                .fold(depths, |family, (queue, len)| family.with(&[("queue", queue)], len)),
            Family::gauge("hackbrain_runner_containers", "Containers that are looked after now.", slots),
            Family::gauge("hackbrain_runner_workers", "Containers at once: --workers.", workers),
            Family::gauge(
                "hackbrain_runner_containers_to_remove",
                "Containers that have ended and are not removed yet.",
                self.runner.cleaning(),
            ),
            Family::gauge(
                "hackbrain_container_engine_available",
                "Whether the container engine answered when it was asked last.",
                u8::from(self.runner.engine_is_available()),
            ),
        ]
    }

    fn process_families(&self) -> [Family; 5] {
        let process = Process::read();
        [
            Family::gauge("hackbrain_process_resident_memory_bytes", "Resident memory.", process.resident_bytes),
            Family::gauge(
                "hackbrain_process_resident_memory_peak_bytes",
                "Most resident memory since the start.",
                process.resident_peak_bytes,
            ),
            Family::gauge("hackbrain_process_threads", "Threads.", process.threads),
            Family::gauge("hackbrain_process_open_fds", "Open file descriptors.", process.descriptors),
            Family::gauge(
                "hackbrain_process_start_time_seconds",
                "When the agent started, in seconds since 1970.",
                duration(self.observed.started),
            ),
        ]
    }
}

/// What the view has published.
fn jobs(figures: &Figures) -> [Family; 7] {
    let of_jobs = || State::ALL.into_iter().filter(|state| !state.is_of_node());
    let sum = |states: &[State]| states.iter().map(|state| figures.jobs[*state as usize]).sum::<u64>();
    let waiting = sum(&[State::Received, State::Scheduled, State::Retriggered]);
    let ended = sum(&[State::Sealed, State::Failed, State::Cancelled]);
    let tally = &figures.tally;
    let ends = |name, help, counts: &[u64; ENDS.len()], wanted: fn(State) -> bool| {
        let family = Family::new(Kind::Counter, name, help);
        ENDS.iter()
            .zip(counts)
            .filter(|((state, _), _)| wanted(*state))
            .fold(family, |family, ((state, reason), count)| {
                family.with(&[("state", state.as_str()), ("reason", reason)], count)
            })
    };
    [
        of_jobs().fold(
            Family::new(Kind::Gauge, "hackbrain_jobs", "Jobs by the state of their last event."),
            |family, state| family.with(&[("state", state.as_str())], figures.jobs[state as usize]),
        ),
        Family::new(Kind::Gauge, "hackbrain_jobs_by_phase", "Jobs that wait, are active, and have ended.")
            .with(&[("phase", "waiting")], waiting)
            .with(&[("phase", "active")], figures.jobs.iter().sum::<u64>() - waiting - ended)
            .with(&[("phase", "ended")], ended),
        State::ALL.into_iter().fold(
            Family::new(Kind::Counter, "hackbrain_events_total", "Events published since the agent's start."),
            |family, state| family.with(&[("state", state.as_str())], tally.events[state as usize]),
        ),
        Family::counter(
            "hackbrain_attempts_begun_total",
            "Attempts whose intent became durable since the agent's start.",
            tally.attempts_begun,
        ),
        ends(
            "hackbrain_attempts_ended_total",
            "Attempts that ended since the agent's start: CRASH by its cause, FAILED by its reason.",
            &tally.attempts_ended,
            |state| state != State::Sealed,
        ),
        ends(
            "hackbrain_jobs_ended_total",
            "Jobs that ended since the agent's start: FAILED by its reason.",
            &tally.jobs_ended,
            State::is_end,
        ),
        Family::gauge("hackbrain_ledger_head_seq", "Seq of the last durable event.", figures.head),
    ]
}

/// What the front has done.
fn front(counters: &Counters) -> [Family; 11] {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let refused = Family::new(
        Kind::Counter,
        "hackbrain_http_connections_refused_total",
        "Connections answered 503 at once, by what was short.",
    );
    let by_code = Family::new(
        Kind::Counter,
        "hackbrain_http_requests_refused_total",
        "Requests and connections that were refused, by the code of their error.",
    );
    [
        Family::counter("hackbrain_http_connections_total", "Connections accepted.", load(&counters.accepted)),
        Family::gauge("hackbrain_http_connections", "Connections open now.", load(&counters.active)),
        refused
            .with(&[("cause", "full")], load(&counters.refused_full))
            .with(&[("cause", "address")], load(&counters.refused_address))
            .with(&[("cause", "no_thread")], load(&counters.refused_no_thread)),
        Family::counter(
            "hackbrain_http_connections_evicted_total",
            "Connections that asked for nothing and gave way to another.",
            load(&counters.evicted),
        ),
        Family::counter("hackbrain_http_accept_errors_total", "Failed accepts.", load(&counters.accept_errors)),
        Family::counter("hackbrain_http_requests_total", "Requests that arrived whole.", load(&counters.requests)),
        Family::counter(
            "hackbrain_http_requests_unread_total",
            "Requests refused before they were whole: malformed, too large or too slow.",
            load(&counters.rejected),
        ),
        counters.refusals.counts().iter().fold(by_code, |family, (code, count)| family.with(&[("code", code)], count)),
        Family::counter(
            "hackbrain_http_handler_panics_total",
            "Requests that a fault of the agent ended.",
            load(&counters.handler_panics),
        ),
        Family::counter(
            "hackbrain_http_responses_cut_total",
            "Responses cut off: the peer left or was too slow, or the body failed.",
            load(&counters.responses_cut),
        ),
        Family::gauge("hackbrain_http_streams", "Streams open now.", load(&counters.streams)),
    ]
}

fn subscribers(counters: &sse::Counters) -> [Family; 7] {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let ended = Family::new(
        Kind::Counter,
        "hackbrain_sse_subscribers_ended_total",
        "Subscribers of the event stream whose stream has ended, by why.",
    );
    [
        Family::gauge("hackbrain_sse_subscribers", "Subscribers of the event stream now.", load(&counters.subscribers)),
        Family::counter("hackbrain_sse_subscriptions_total", "Subscriptions taken.", load(&counters.subscribed)),
        ended
            .with(&[("cause", "slow")], load(&counters.slow))
            .with(&[("cause", "stalled")], load(&counters.stalled))
            .with(&[("cause", "left")], load(&counters.left))
            .with(&[("cause", "stopping")], load(&counters.draining))
            .with(&[("cause", "revoked")], load(&counters.revoked))
            .with(&[("cause", "unreadable")], load(&counters.unreadable)),
        Family::counter(
            "hackbrain_sse_behind_total",
            "How often a subscriber was too slow for live events and went back to reading by itself.",
            load(&counters.behind),
        ),
        Family::counter("hackbrain_sse_events_total", "Events sent, once for each subscriber.", load(&counters.events)),
        Family::counter("hackbrain_sse_sent_bytes_total", "Bytes of streams sent.", load(&counters.bytes)),
        Family::counter(
            "hackbrain_sse_rounds_total",
            "Rounds in which live events were sent.",
            load(&counters.batches),
        ),
    ]
}

fn duration(time: Duration) -> String {
    seconds(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}
