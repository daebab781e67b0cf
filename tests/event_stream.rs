//! The event stream of a real agent: log growth of real payloads, who never reads, kills and broken connections.
#![allow(clippy::unwrap_used, clippy::print_stderr, missing_docs)]

mod agent;
mod sse_support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent::{Agent, PATIENCE, Site, eventually, job_id, manifest};
use serde_json::Value;
use sse_support::{Message, Parser, Stream};

fn open(agent: &Agent, path: &str) -> Stream {
    let stream = Stream::open(agent.address, path, false).unwrap();
    assert_eq!(stream.status(), 200, "{}", stream.head);
    stream
}

/// Everything up to the event of this state, with the time at which it came.
fn until(stream: &mut Stream, state: &str) -> Vec<(Instant, Message)> {
    let mut messages = Vec::new();
    let sign = format!("\"state\":\"{state}\"");
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Comments come for ever.
        assert!(Instant::now() < deadline, "{state} never came: {messages:?}");
        let message = stream.next().unwrap().expect("the stream goes on");
        let is_last = message.id.is_some() && message.data.as_ref().unwrap().contains(&sign);
        messages.push((Instant::now(), message));
        if is_last {
            return messages;
        }
    }
}

/// The sizes told of a job, and how many of them before the event of this state.
fn sizes(messages: &[(Instant, Message)], id: &str) -> Vec<(Instant, u64, u64)> {
    let told = messages.iter().filter(|(_, message)| message.event.as_deref() == Some("log"));
    let told = told.map(|(at, message)| {
        assert_eq!(message.id, None, "it is no part of the ledger");
        let data: Value = serde_json::from_str(message.data.as_ref().unwrap()).unwrap();
        assert_eq!((data["job_id"].as_str(), data["attempt"].as_u64()), (Some(id), Some(1)), "{data}");
        assert_eq!(data.as_object().unwrap().len(), 4, "{data}");
        (*at, data["stdout"].as_u64().unwrap(), data["stderr"].as_u64().unwrap())
    });
    told.collect()
}

#[test]
fn the_stream_tells_how_much_a_payload_has_printed() {
    let site = Site::new("growth");
    let agent = site.start(&[]);
    let (id, other) = (job_id("growth"), job_id("growth-other"));
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.25; done; echo oh >&2; printf end";
    let mut all = open(&agent, "/api/events");
    // It may be asked for before it is there.
    let mut filtered = open(&agent, &format!("/api/events?job={other}"));
    agent.accepted(&manifest(&id, &["sh", "-c", script]));
    let messages = until(&mut all, "COMPLETED");
    let sizes_told = sizes(&messages, &id);
    let seen: Vec<(u64, u64)> = sizes_told.iter().map(|(_, stdout, stderr)| (*stdout, *stderr)).collect();
    assert!(seen.len() >= 3, "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1 && pair[0] != pair[1]));
    assert_eq!(seen.last(), Some(&(19, 3)), "the last size comes before the end: {seen:?}");
    let logs = site.data().join("logs").join(&id);
    let length = |name: &str| fs::metadata(logs.join(name)).unwrap().len();
    assert_eq!((length("1.stdout"), length("1.stderr")), (19, 3));

    // Of the past nothing is told, and nothing of other jobs.
    let mut later = open(&agent, &format!("/api/events?after=0&job={id}"));
    agent.accepted(&manifest(&other, &["echo", "other"]));
    let messages = until(&mut filtered, "COMPLETED");
    assert_eq!(sizes(&messages, &other).iter().map(|size| size.1).collect::<Vec<_>>(), [6]);
    assert!(messages.iter().all(|(_, message)| message.data.as_ref().is_none_or(|data| data.contains(&other))));
    let messages = until(&mut later, "COMPLETED");
    assert_eq!(sizes(&messages, &id), []);
}

#[test]
fn a_payload_that_floods_is_told_of_a_few_times_a_second() {
    let site = Site::new("flood");
    let agent = site.start(&[]);
    let id = job_id("flood");
    let mut stream = open(&agent, "/api/events");
    let script =
        "end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do head -c 4000000 /dev/zero | tr '\\0' x; done";
    agent.accepted(&manifest(&id, &["sh", "-c", script]));
    let began = Instant::now();
    let messages = until(&mut stream, "COMPLETED");
    let told = sizes(&messages, &id);
    let length = fs::metadata(site.data().join("logs").join(&id).join("1.stdout")).unwrap().len();
    assert_eq!(told.last().unwrap().1, length, "the last size is the file's");
    assert!(length > 4_000_000 && told.len() >= 4, "{told:?}");
    // Longer than it printed: when a size was received tells little on a busy machine.
    let took = began.elapsed();
    // Received late, they may lie closer together, but on the whole there are no more.
    let most = 2.0 + took.as_secs_f64() / 0.334;
    assert!(told.len() as f64 <= most, "{} in {took:?}", told.len());
}

#[test]
fn who_never_reads_costs_an_agent_nothing_for_long() {
    let site = Site::new("silent");
    let mut command = site.serve(&[]);
    let agent = site.start_command(command.env("DOCKER_HOST", "unix:///nonexistent"));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let pad: serde_json::Map<String, Value> = (0..5).map(|n| (format!("P{n}"), "x".repeat(100_000).into())).collect();
    let mut job = manifest(&job_id("silent"), &["true"]);
    job["env"] = pad.into();
    let submit = |n: u32| {
        job["job_id"] = format!("silent-{n}").into();
        agent.accepted(&job);
    };
    let mut submit = submit;
    submit(0);
    let (threads, fds) = (agent.status("Threads"), descriptors());
    let silent: Vec<Stream> = (0..120).map(|_| open(&agent, "/api/events")).collect();
    let left: Vec<Stream> = (0..60).map(|_| open(&agent, "/api/events")).collect();
    assert!(agent.status("Threads") > threads + 100);
    drop(left);
    (1..6).for_each(&mut submit);
    // Cut by the agent: these sockets are all still open here.
    eventually("the threads have ended", || (agent.status("Threads") <= threads + 1).then_some(()));
    eventually("the descriptors are closed", || (descriptors() <= fds + 1).then_some(()));
    let peak = agent.memory_kib("VmHWM");
    assert!(peak < 64 << 10, "{peak} KiB");
    drop(silent);
    let mut stream = open(&agent, "/api/events?after=0");
    for expected in 1..=8 {
        assert_eq!(stream.event().0, expected);
    }
}

#[test]
fn what_is_asked_for_is_checked() {
    let site = Site::new("ask");
    let mut command = site.serve(&[]);
    let agent = site.start_command(command.env("DOCKER_HOST", "unix:///nonexistent"));
    for (path, status, code) in [
        ("/api/events?job=", 400, "bad_parameter"),
        ("/api/events?job=a%20b", 400, "bad_parameter"),
        ("/api/events?job=..%2Fa", 400, "bad_parameter"),
        ("/api/events?after=3", 409, "ahead_of_ledger"),
    ] {
        let answer = agent.get(path);
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)), "{path}");
    }
    // To HEAD there is no stream, and the connection ends at once.
    let mut head = TcpStream::connect(agent.address).unwrap();
    head.set_read_timeout(Some(PATIENCE)).unwrap();
    head.write_all(format!("HEAD /api/events HTTP/1.1\r\nHost: {}\r\n\r\n", agent.address).as_bytes()).unwrap();
    let mut answer = String::new();
    head.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\nContent-Type: text/event-stream\r\n"));
    assert!(answer.ends_with("\r\n\r\n") && answer.matches("\r\n\r\n").count() == 1, "{answer}");
    // The head may be asked for, and HTTP/1.0 gets the bytes as they are.
    let mut old = Stream::open(agent.address, "/api/events?after=2", true).unwrap();
    agent.accepted(&manifest("asked", &["true"]));
    assert_eq!(old.event().0, 3);
    let mut both = Stream::open(agent.address, "/api/events?after=2&job=asked", false).unwrap();
    assert_eq!(both.event().0, 3);
    assert_eq!(agent.terminate(), Some(0));
    for mut stream in [old, both] {
        let last = std::iter::from_fn(|| stream.next().unwrap()).last().unwrap();
        assert_eq!(last.comment.as_deref(), Some("the agent stops; resume with the last id"));
    }
}

/// Submits to an agent that may die at any moment; whether there is a receipt.
fn try_submit(address: SocketAddr, body: &str) -> bool {
    let Ok(mut socket) = TcpStream::connect(address) else { return false };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    let head = format!(
        "POST /api/submit_job HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    let mut answer = Vec::new();
    let outcome = socket.write_all((head + body).as_bytes()).and_then(|()| socket.read_to_end(&mut answer));
    outcome.is_ok() && answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(b"}")
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Small steps of a generator that needs no crate.
fn below(state: &mut u64, bound: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % bound
}

/// `HACKBRAIN_SSE_DISCONNECTS` and `HACKBRAIN_SSE_KILLS` make it longer.
#[test]
fn whoever_resumes_has_the_ledger_whatever_breaks_in_between() {
    let (disconnects, kills) = (number("HACKBRAIN_SSE_DISCONNECTS", 100), number("HACKBRAIN_SSE_KILLS", 5));
    let site = Site::new("resume");
    let start = || site.start_command(site.serve(&[]).env("DOCKER_HOST", "unix:///nonexistent"));
    let agent = Mutex::new(Some(start()));
    let address = Mutex::new(agent.lock().unwrap().as_ref().unwrap().address);
    let (broken, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let acknowledged = AtomicU64::new(0);
    let received = thread::scope(|scope| {
        let (address, broken, is_over, acknowledged) = (&address, &broken, &is_over, &acknowledged);
        let reader = scope.spawn(move || {
            let mut random = 11;
            let mut received: Vec<(u64, String)> = Vec::new();
            while broken.load(Ordering::SeqCst) < disconnects || !is_over.load(Ordering::SeqCst) {
                let last = received.last().map_or(0, |(id, _)| *id);
                let address = *address.lock().unwrap();
                let Ok(mut stream) = Stream::open(address, &format!("/api/events?after={last}"), false) else {
                    thread::sleep(Duration::from_millis(10));
                    continue;
                };
                assert_eq!(stream.status(), 200, "{}", stream.head);
                let mut left = below(&mut random, 30_000) as usize;
                let (mut parser, mut bytes) = (Parser::new(true), vec![0; 4096]);
                stream.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                while left > 0 {
                    let most = left.min(bytes.len());
                    let Ok(count @ 1..) = stream.socket.read(&mut bytes[..most]) else { break };
                    left -= count;
                    for message in parser.push(&bytes[..count]) {
                        let (Some(id), Some(data)) = (message.id, message.data) else { continue };
                        assert_eq!(id, received.last().map_or(0, |(id, _)| *id) + 1, "lost or doubled");
                        received.push((id, data));
                    }
                }
                broken.fetch_add(1, Ordering::SeqCst);
            }
            received
        });
        for submitter in 0..2 {
            scope.spawn(move || {
                let mut n = 0;
                while !is_over.load(Ordering::SeqCst) {
                    n += 1;
                    let body = manifest(&format!("s{submitter}-{n}"), &["true"]).to_string();
                    let address = *address.lock().unwrap();
                    if try_submit(address, &body) {
                        acknowledged.fetch_add(1, Ordering::SeqCst);
                    }
                    thread::sleep(Duration::from_millis(3));
                }
            });
        }
        let mut random = 5;
        for killed in 0..kills {
            let wanted = disconnects * (killed + 1) / (kills + 1);
            eventually("connections break", || (broken.load(Ordering::SeqCst) >= wanted).then_some(()));
            thread::sleep(Duration::from_micros(below(&mut random, 50_000)));
            agent.lock().unwrap().take().unwrap().kill();
            let next = start();
            *address.lock().unwrap() = next.address;
            *agent.lock().unwrap() = Some(next);
        }
        eventually("connections break", || (broken.load(Ordering::SeqCst) >= disconnects).then_some(()));
        is_over.store(true, Ordering::SeqCst);
        reader.join().unwrap()
    });
    let mut received = received;
    let agent = agent.into_inner().unwrap().unwrap();
    let head = agent.get("/api/ledger/head").json()["seq"].as_u64().unwrap();
    let last = received.last().map_or(0, |(id, _)| *id);
    let mut stream = open(&agent, &format!("/api/events?after={last}"));
    while received.last().is_none_or(|(id, _)| *id < head) {
        received.push(stream.event());
    }
    assert_eq!(agent.terminate(), Some(0));
    let dump = site.dump(&[]).stdout;
    let stored: Vec<&str> = dump.lines().take(head as usize).collect();
    assert_eq!(received.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (1..=head).collect::<Vec<_>>());
    assert!(received.iter().map(|(_, data)| data.as_str()).eq(stored), "other bytes than the ledger has");
    let acknowledged = acknowledged.into_inner();
    let submitted = received.iter().filter(|(_, data)| data.contains("\"state\":\"RECEIVED\"")).count() as u64;
    assert!(submitted >= acknowledged && acknowledged > kills, "{submitted} events of {acknowledged} receipts");
    let broken = broken.into_inner();
    eprintln!("{head} events over {broken} broken connections and {kills} kills: 0 lost, 0 doubled");
}
