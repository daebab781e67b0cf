//! The event stream's hub over a real ledger and real sockets: joining while events come, falling behind, caps, ends.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;
mod sse_support;

use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hackbrain::engine::{Engine, EngineThread, Recovered};
use hackbrain::http::server::{Handler, Limits as HttpLimits, Reply, Request, Server};
use hackbrain::http::sse::{Counters, Hub};
use hackbrain::ledger::event::Genesis;
use hackbrain::ledger::lifecycle::{Command, Limits};
use hackbrain::manifest;
use hackbrain::wal::writer::Options;
use sim::{Fault, SimDisk};
use sse_support::{Message, PATIENCE, Stream};

/// The route without its checks.
struct Route(Arc<Hub>);

impl Handler for Route {
    fn handle(&self, request: &Request) -> Reply {
        let text = |name| request.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let after = text("after").map_or(0, |after| after.parse().unwrap());
        match self.0.subscribe(after, text("job"), || true) {
            Ok(subscription) => Reply::Stream {
                status: 200,
                headers: Vec::new(),
                ends: false,
                run: Box::new(move |to| subscription.stream(to)),
            },
            Err(rejection) => Reply::rejection(&rejection),
        }
    }
}

struct World {
    engine: Engine,
    thread: Option<EngineThread>,
    hub: Arc<Hub>,
    server: Server,
    address: SocketAddr,
    disk: SimDisk,
}

impl World {
    fn new(max_subscribers: u64) -> Self {
        let disk = SimDisk::default();
        let recovered = Recovered::open(Arc::new(disk.clone()), Options::new(4 << 20)).unwrap();
        let limits = Limits { jobs_open_max: 1000, manifest_bytes_max: 16 << 20 };
        let (engine, thread) = recovered.start(limits, Box::new(|_| ()), Box::new(|_| ())).unwrap();
        engine.execute(Command::Genesis(Genesis { log_id: "0".repeat(32), format: 1 })).unwrap();
        let hub = Hub::start(engine.view(), &Arc::default(), &Arc::default(), max_subscribers).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::start(vec![listener], Arc::new(Route(hub.clone())), HttpLimits::default()).unwrap();
        Self { engine, thread: Some(thread), hub, server, address, disk }
    }

    /// Two events of a job: it is submitted, and refused.
    fn job(&self, id: &str, padding: usize) {
        // One variable holds no more.
        let pieces = (0..padding.div_ceil(100_000)).map(|n| (n, "x".repeat((padding - n * 100_000).min(100_000))));
        let env: Vec<String> = pieces.map(|(n, piece)| format!(r#""P{n}":"{piece}""#)).collect();
        let env = env.join(",");
        let body = format!(r#"{{"job_id":"{id}","image_hash":"b","command":["true"],"env":{{{env}}}}}"#);
        let parsed = manifest::parse(body.as_bytes()).unwrap();
        let seq = self.engine.execute(Command::Submit(Box::new(parsed))).unwrap().job.unwrap().seq;
        self.engine.execute(Command::Refuse(id.into(), seq, "image".into(), "none".into())).unwrap();
    }

    fn head(&self) -> u64 {
        self.engine.view().head().0
    }

    fn open(&self, query: &str) -> Stream {
        let stream = Stream::open(self.address, &format!("/events?{query}"), false).unwrap();
        assert_eq!(stream.status(), 200, "{}", stream.head);
        stream
    }

    fn count(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        of(self.hub.counters()).load(Ordering::SeqCst)
    }

    fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "never came about: {what}: {:?}", self.hub.counters());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the ledger has after `after`, of one job or of all.
    fn stored(&self, after: u64, job: Option<&str>) -> Vec<(u64, String)> {
        let (mut after, mut all) = (after, Vec::new());
        loop {
            let (events, reached) = self.engine.view().events_after(after, job, 512).unwrap();
            all.extend(events.iter().map(|(seq, bytes)| (*seq, String::from_utf8(bytes.to_vec()).unwrap())));
            if reached == after {
                return all;
            }
            after = reached;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.hub.drain();
        self.server.drain(PATIENCE);
        if let Some(thread) = self.thread.take() {
            self.engine.close(thread, None);
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn is_last_word(message: &Message) -> bool {
    message.comment.as_deref() == Some("the agent stops; resume with the last id")
}

/// Reads to the proper end, `piece` bytes at once with a pause before each read; gives the events.
fn read_all(mut stream: Stream, piece: usize, pause: Duration) -> Vec<(u64, String)> {
    let (mut events, mut is_over) = (Vec::new(), false);
    let deadline = Instant::now() + 2 * PATIENCE;
    while let Some(message) = {
        thread::sleep(pause);
        stream.next_by(piece).unwrap_or_else(|error| panic!("after {} events: {error}", events.len()))
    } {
        assert!(!is_over, "{message:?} behind the last word");
        // Comments come for ever.
        assert!(Instant::now() < deadline, "no end came after {} events", events.len());
        is_over = is_last_word(&message);
        if let (Some(id), Some(data)) = (message.id, message.data) {
            events.push((id, data));
        }
    }
    assert!(is_over, "the stream says why it ends");
    events
}

#[test]
fn fifty_who_join_anywhere_under_load_miss_nothing_and_get_nothing_twice() {
    let world = World::new(100);
    let jobs = 2500;
    let done = AtomicBool::new(false);
    let (begun, received) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let (world, done, begun, received) = (&world, &done, &begun, &received);
        for number in 0..50_u64 {
            scope.spawn(move || {
                let mut random = Random(0x9E37_79B9 + number);
                // Anywhere in what is to be written, from memory, from disk, and right at the head.
                let at = random.below(2 * jobs);
                world.eventually("the ledger grows", || world.head() >= at);
                let after = if number % 3 == 0 { world.head() } else { random.below(world.head() + 1) };
                let job = (number % 5 == 4).then(|| format!("w{}", random.below(jobs)));
                let filter = job.as_ref().map_or(String::new(), |job| format!("&job={job}"));
                let path = format!("/events?after={after}{filter}");
                begun.lock().unwrap().push((after, job.clone()));
                let stream = Stream::open(world.address, &path, number % 7 == 6).unwrap();
                let (piece, pause) = if number % 10 == 7 { (8000, 2) } else { (64 << 10, 0) };
                let events = read_all(stream, piece, Duration::from_millis(pause));
                received.lock().unwrap().push((number, after, job, events));
            });
        }
        for writer in 0..4 {
            scope.spawn(move || {
                for n in (writer..jobs).step_by(4) {
                    world.job(&format!("w{n}"), (n % 7 * 300) as usize);
                }
                done.store(true, Ordering::SeqCst);
            });
        }
        world.eventually("all is written", || world.head() == 2 * jobs + 1);
        world.eventually("all have come", || begun.lock().unwrap().len() == 50);
        let begun = begun.lock().unwrap().clone();
        let wanted: usize = begun.iter().map(|(after, job)| world.stored(*after, job.as_deref()).len()).sum();
        let wanted = wanted as u64;
        // Whoever is still behind would be told to resume.
        world.eventually("all have everything", || world.count(|counters| &counters.events) == wanted);
        world.hub.drain();
    });
    assert!(done.load(Ordering::SeqCst));
    let received = received.into_inner().unwrap();
    assert_eq!(received.len(), 50);
    for (number, after, job, events) in received {
        let stored = world.stored(after, job.as_deref());
        let seqs = |events: &[(u64, String)]| events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>();
        assert_eq!(seqs(&events), seqs(&stored), "subscriber {number} after {after} of {job:?}");
        assert!(events == stored, "subscriber {number}: other bytes than the ledger has");
    }
    assert_eq!(world.count(|counters| &counters.slow) + world.count(|counters| &counters.stalled), 0);
    world.eventually("all have ended", || world.count(|counters| &counters.subscribers) == 0);
    assert_eq!(world.count(|counters| &counters.draining), 50);
}

#[test]
fn no_event_is_lost_between_catching_up_and_live() {
    let world = World::new(100);
    let stop = AtomicBool::new(false);
    let joins = 400;
    thread::scope(|scope| {
        let (world, stop) = (&world, &stop);
        for writer in 0..2 {
            scope.spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    world.job(&format!("w{writer}-{n}"), 0);
                    n += 1;
                }
            });
        }
        let joiners: Vec<_> = (0..4_u64)
            .map(|joiner| {
                scope.spawn(move || {
                    let mut random = Random(77 + joiner);
                    for _ in 0..joins / 4 {
                        let head = world.head();
                        let after = head - random.below(head.min(30) + 1);
                        let mut stream = world.open(&format!("after={after}"));
                        for expected in after + 1..=after + 20 + random.below(40) {
                            assert_eq!(stream.event().0, expected, "after {after} at head {head}");
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = joiners.into_iter().map(|joiner| joiner.join()).collect();
        stop.store(true, Ordering::Relaxed);
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    world.eventually("those who left are noticed", || world.count(|counters| &counters.subscribers) == 0);
    assert_eq!(world.count(|counters| &counters.left), joins);
}

#[test]
fn an_event_of_half_a_mebibyte_reaches_who_is_live_and_a_full_socket_is_no_end() {
    let world = World::new(100);
    let live: Vec<Stream> =
        (0..8).map(|n| world.open(if n % 2 == 0 { "after=1" } else { "after=1&job=big-3" })).collect();
    world.job("first", 0);
    let batches = || world.count(|counters| &counters.batches);
    world.eventually("they are live", || batches() > 0);
    for n in 0..8 {
        world.job(&format!("big-{n}"), 520_000);
    }
    // Nobody has read yet, and nobody's socket holds as much.
    world.eventually("they are behind", || world.count(|counters| &counters.behind) >= 8);
    let last = world.head();
    thread::scope(|scope| {
        let world = &world;
        let readers: Vec<_> =
            live.into_iter().map(|stream| scope.spawn(move || read_all(stream, 64 << 10, Duration::ZERO))).collect();
        let all = world.stored(1, None).len() as u64;
        let of_one = world.stored(1, Some("big-3")).len() as u64;
        assert_eq!((all, of_one), (last - 1, 2));
        world.eventually("all is sent", || world.count(|counters| &counters.events) == 4 * (all + of_one));
        world.hub.drain();
        for (n, reader) in readers.into_iter().enumerate() {
            let job = (n % 2 == 1).then_some("big-3");
            assert!(reader.join().unwrap() == world.stored(1, job), "reader {n}");
        }
    });
}

#[test]
fn who_never_reads_is_cut_and_who_reads_is_not_kept_waiting() {
    let world = World::new(100);
    let silent: Vec<TcpStream> =
        (0..20).map(|n| world.open(if n % 2 == 0 { "after=0" } else { "after=1" }).socket).collect();
    let mut reader = world.open("after=0");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (world, stop) = (&world, &stop);
        scope.spawn(move || {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                world.job(&format!("w{n}"), 40_000);
                n += 1;
                thread::sleep(Duration::from_millis(5));
            }
        });
        let reading = scope.spawn(move || {
            let mut expected = 1;
            let deadline = Instant::now() + PATIENCE;
            while world.count(|counters| &counters.stalled) < 20 {
                assert!(Instant::now() < deadline, "nobody is cut: {:?}", world.hub.counters());
                assert_eq!(reader.event().0, expected, "{:?}", world.hub.counters());
                expected += 1;
            }
        });
        let ended = reading.join();
        stop.store(true, Ordering::Relaxed);
        ended.unwrap();
    });
    for mut socket in silent {
        let mut bytes = Vec::new();
        // A cut stream must not look ended.
        let outcome = socket.read_to_end(&mut bytes);
        assert!(outcome.is_err() || !bytes.ends_with(b"0\r\n\r\n"));
    }
    world.eventually("their places are free", || world.count(|counters| &counters.subscribers) == 0);
    assert_eq!(world.count(|counters| &counters.slow), 0);
    let active = || world.server.counters().active.load(Ordering::SeqCst);
    world.eventually("their threads have ended", || active() == 0);
}

#[test]
fn places_are_few_and_free_again() {
    let world = World::new(3);
    let mut streams: Vec<Stream> = (0..3).map(|_| world.open("after=0")).collect();
    let mut refused = Stream::open(world.address, "/events?after=0", false).unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.head.contains("\r\nRetry-After: 1\r\n"), "{}", refused.head);
    let mut body = vec![0; 30];
    refused.socket.read_exact(&mut body).unwrap();
    assert!(body.starts_with(br#"{"error":{"code":"too_many_su"#), "{}", String::from_utf8_lossy(&body));
    assert_eq!(world.count(|counters| &counters.refused), 1);
    drop(streams.pop());
    world.eventually("a place is free", || world.count(|counters| &counters.subscribers) == 2);
    assert_eq!(world.count(|counters| &counters.left), 1);
    world.open("after=0");
}

#[test]
fn stray_input_is_thrown_away_and_a_flood_of_it_is_an_end() {
    let world = World::new(3);
    let mut stream = world.open("after=1");
    io::Write::write_all(&mut stream.socket, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    world.job("a", 0);
    assert_eq!(stream.event().0, 2);
    let flood = vec![b'x'; 16 << 10];
    // Far more than all buffers on the way hold.
    let refused = (0..4096).any(|_| io::Write::write_all(&mut stream.socket, &flood).is_err());
    assert!(refused, "all of it was taken");
    world.eventually("it is let go", || world.count(|counters| &counters.subscribers) == 0);
}

#[test]
fn a_comment_comes_when_there_is_nothing_else() {
    let world = World::new(3);
    let mut streams = [world.open("after=1"), world.open("after=1&job=none-such")];
    let words = |stream: &mut Stream| {
        let first = stream.next().unwrap().unwrap();
        assert_eq!((first.retry.as_deref(), first.comment.as_deref()), (Some("2000"), Some("after 1")));
    };
    streams.iter_mut().for_each(words);
    for stream in &mut streams {
        let next = stream.next().unwrap().unwrap();
        assert_eq!(next, Message { comment: Some("still here".into()), ..Message::default() });
    }
}

#[test]
fn a_ledger_that_latches_ends_every_stream_properly() {
    let world = World::new(100);
    let streams: Vec<Stream> = (0..10).map(|_| world.open("after=0")).collect();
    world.job("a", 0);
    world.disk.fail_at(world.disk.calls() + 1, Fault::Error(io::ErrorKind::Other));
    let body = br#"{"job_id":"b","image_hash":"b","command":["true"]}"#;
    let refused = world.engine.execute(Command::Submit(Box::new(manifest::parse(body).unwrap())));
    assert_eq!(refused.unwrap_err().status, 503);
    for stream in streams {
        let events = read_all(stream, 64 << 10, Duration::ZERO);
        assert_eq!(events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [1, 2, 3]);
    }
    world.eventually("all have ended", || world.count(|counters| &counters.subscribers) == 0);
}

#[test]
fn a_drain_reaches_all_who_read_however_many_do_not() {
    let world = World::new(200);
    let silent: Vec<Stream> = (0..40).map(|_| world.open("after=0")).collect();
    let behind = || world.count(|counters| &counters.subscribed) == 40;
    world.eventually("they are there", behind);
    for n in 0..6 {
        world.job(&format!("big-{n}"), 520_000);
    }
    let readers: Vec<Stream> = (0..100).map(|_| world.open(&format!("after={}", world.head()))).collect();
    world.job("last", 0);
    let last = world.head();
    thread::scope(|scope| {
        let readers: Vec<_> =
            readers.into_iter().map(|stream| scope.spawn(|| read_all(stream, 64 << 10, Duration::ZERO))).collect();
        world.hub.drain();
        assert_eq!(world.server.drain(PATIENCE), 0);
        for reader in readers {
            assert_eq!(reader.join().unwrap().last().unwrap().0, last, "what was durable is sent before the end");
        }
    });
    assert_eq!(world.count(|counters| &counters.subscribers), 0);
    assert_eq!(world.count(|counters| &counters.draining), 140);
    drop(silent);
}
