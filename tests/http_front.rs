//! The HTTP front over real sockets: framing attacks, limits, deadlines, bursts, recovery.
#![allow(clippy::unwrap_used, unsafe_code)]

mod http_support;

use hackbrain::http::server::Limits;
use http_support::*;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn framing_attacks() {
    let (server, address) = start(Limits::default());
    const POST: &str = "POST /x HTTP/1.1\r\nHost: a\r\n";
    const CHUNKED: &str = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    const NEXT: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let many = "X: y\r\n".repeat(65);
    let long = "x".repeat(20_000);
    // Bytes in; statuses out, in order; whether the server then closes.
    let rows: Vec<(String, &[u16], bool)> = vec![
        (get("/"), &[200], false),
        (format!("{}{}", get("/"), get("/")), &[200, 200], false),
        (format!("{POST}Content-Length: 3\r\n\r\nabc{NEXT}"), &[200, 200], false),
        (format!("{CHUNKED}3\r\nabc\r\n0\r\nT: u\r\n\r\n{NEXT}"), &[200, 200], false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".into(), &[200], true),
        ("GET / HTTP/1.0\r\n\r\n".into(), &[200], true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".into(), &[200], false),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n{NEXT}"), &[200], true),
        // Lengths.
        (format!("{POST}Content-Length: 1152921504606846976\r\n\r\n"), &[413], true),
        (format!("{POST}Content-Length: 18446744073709551615\r\n\r\n{NEXT}"), &[413], true),
        (format!("{POST}Content-Length: 99999999999999999999999999\r\n\r\n{NEXT}"), &[413], true),
        (format!("{POST}Content-Length: -5\r\n\r\n{NEXT}"), &[400], true),
        (format!("{POST}Content-Length: +5\r\n\r\nabcde{NEXT}"), &[400], true),
        (format!("{POST}Content-Length: 3, 3\r\n\r\nabc{NEXT}"), &[400], true),
        (format!("{POST}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc{NEXT}"), &[200, 200], false),
        (format!("{POST}Content-Length: 3\r\nContent-Length: 0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{POST}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{POST}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{POST}\r\n{NEXT}"), &[411], true),
        // Transfer codings.
        (format!("{POST}Transfer-Encoding: gzip\r\n\r\n{NEXT}"), &[501], true),
        (format!("{POST}Transfer-Encoding: chunked, identity\r\n\r\n{NEXT}"), &[501], true),
        (format!("{POST}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{POST}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{NEXT}"), &[400], true),
        ("POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), &[400], true),
        (format!("{CHUNKED}3\r\nabcd\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{CHUNKED}3\r\nab\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{CHUNKED}3\nabc\n0\n\n{NEXT}"), &[400], true),
        (format!("{CHUNKED}0x3\r\nabc\r\n0\r\n\r\n{NEXT}"), &[400], true),
        (format!("{CHUNKED}-1\r\n{NEXT}"), &[400], true),
        (format!("{CHUNKED}ffffffffffffffff1\r\n{NEXT}"), &[413], true),
        (format!("{CHUNKED}100001\r\n{NEXT}"), &[413], true),
        (format!("{CHUNKED}3;{long}"), &[400], true),
        (format!("{CHUNKED}0\r\n{}", "T: u\r\n".repeat(5_000)), &[400], true),
        // Heads.
        ("GET / HTTP/1.1\r\n\r\n".into(), &[400], true),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(), &[400], true),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n".into(), &[400], true),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), &[400], true),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), &[431], true),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), &[431], true),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), &[431], true),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[400], true),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[400], true),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), &[505], true),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[505], true),
        ("\x16\x03\x01\x02\x00\x01".into(), &[400], true),
        (format!("{POST}Content-Length: 3\r\nExpect: magic\r\n\r\nabc{NEXT}"), &[417], true),
        (format!("HEAD / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n{NEXT}"), &[417], true),
        // A client's bytes that a handler lets into a header.
        (get("/inject?x=fine"), &[200], false),
        (get("/inject?x=a%0d%0aContent-Length:0%0d%0a%0d%0aHTTP/1.1+200+OK"), &[], true),
    ];
    for (bytes, statuses, closes) in &rows {
        let (answers, closed) = exchange(address, bytes.as_bytes());
        let got: Vec<u16> = answers.iter().map(|a| a.status).collect();
        let name = &bytes[..bytes.len().min(160)];
        assert_eq!((got.as_slice(), closed), (*statuses, *closes), "{name:?}");
        for answer in &answers {
            assert!(answer.has("X-Content-Type-Options: nosniff"), "{name:?}: {}", answer.head);
            let close = answer.has("Connection: close");
            assert_eq!(close, *closes, "{name:?}: {}", answer.head);
            if answer.status >= 400 {
                assert!(answer.has("Content-Type: application/json"), "{name:?}: {}", answer.head);
                assert!(bytes.starts_with("HEAD") || is_json(&answer.body), "{name:?}");
            }
        }
    }
    assert_eq!(count(&server.counters().handler_panics), 0);
    assert!(count(&server.counters().rejected) > 20);
}

#[test]
fn expect_continue_is_sent_before_the_body_and_never_for_a_refused_one() {
    let (_server, address) = start(Limits::default());
    let head = |length: u64| {
        format!("POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut client = connect(address);
    client.write_all(head(3).as_bytes()).unwrap();
    assert_eq!(read_answer(&mut client, false).unwrap().status, 100);
    client.write_all(b"abc").unwrap();
    assert_eq!(read_answer(&mut client, false).unwrap().body, b"POST /x abc");
    client.write_all(head(1 << 40).as_bytes()).unwrap();
    assert_eq!(read_answer(&mut client, false).unwrap().status, 413);
}

#[test]
fn head_has_the_length_and_no_body() {
    let (_server, address) = start(Limits::default());
    let mut client = connect(address);
    for (path, line) in [("/x", "Content-Length: 8"), ("/big", "Content-Length: 67108864")] {
        client.write_all(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        let answer = read_answer(&mut client, true).unwrap();
        assert!(answer.has(line), "{}", answer.head);
    }
    // Were a body byte left in between, this would not parse.
    assert_eq!(ask(&mut client, "/y").body, b"GET /y ");
    client.write_all(b"HEAD /three HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(read_answer(&mut client, true).unwrap().has("Content-Type: text/event-stream"));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn bodies_of_every_shape() {
    let (server, address) = start(Limits::default());
    let mut client = connect(address);
    let answer = ask(&mut client, "/unknown-length");
    assert!(answer.has("Transfer-Encoding: chunked") && answer.body == [b'u'; 100_000]);
    let answer = ask(&mut client, "/empty");
    assert!(answer.status == 204 && !answer.head.to_ascii_lowercase().contains("content-length"), "{}", answer.head);
    assert_eq!(ask(&mut client, "/big").body.len(), BIG);
    let answer = ask(&mut client, "/three");
    assert!(answer.has("Transfer-Encoding: chunked") && answer.has("Connection: close"), "{}", answer.head);
    assert_eq!((answer.body.as_slice(), client.read(&mut [0]).unwrap()), (&b"onetwothree"[..], 0));
    for (path, body) in [("/three", &b"onetwothree"[..]), ("/unknown-length", &[b'u'; 100_000])] {
        let mut client = connect(address);
        client.write_all(format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").as_bytes()).unwrap();
        let answer = read_answer(&mut client, false).unwrap();
        assert!(answer.has("Connection: close") && answer.body == body, "{}", answer.head);
    }
    assert_eq!(count(&server.counters().responses_cut), 0);
    let mut client = connect(address);
    client.write_all(get("/short").as_bytes()).unwrap();
    let cut = read_answer(&mut client, false).map_err(|e| e.kind());
    assert!(matches!(cut, Err(io::ErrorKind::UnexpectedEof)), "a body cut short must not look whole: {cut:?}");
}

#[test]
fn fifty_pipelined_requests_are_answered_in_order() {
    let (_server, address) = start(Limits::default());
    let mut client = connect(address);
    let post = |n| format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{n:02}");
    let all: String = (0..50).map(|n| if n % 2 == 0 { get(&format!("/{n}")) } else { post(n) }).collect();
    client.write_all(all.as_bytes()).unwrap();
    for n in 0..50 {
        let expected = if n % 2 == 0 { format!("GET /{n} ") } else { format!("POST /{n} {n:02}") };
        assert_eq!(read_answer(&mut client, false).unwrap().body, expected.as_bytes());
    }
}

#[test]
fn endless_pipelining_by_a_client_that_never_reads_is_cut() {
    let (server, address) = start(Limits { write_deadline: Duration::from_millis(300), ..Limits::default() });
    let mut client = connect(address);
    let batch = get("/").repeat(1000);
    let end = Instant::now() + PATIENCE;
    while client.write_all(batch.as_bytes()).is_ok() {
        assert!(Instant::now() < end, "never cut");
    }
    slots_come_back(server.counters());
}

#[test]
fn refusals_arrive_although_the_client_sends_all_before_it_reads() {
    let (_server, address) = start(Limits::default());
    let body = vec![b'x'; 4 << 20];
    let declared = format!("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let chunked = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n400000\r\n".to_owned();
    let header = "GET / HTTP/1.1\r\nHost: a\r\nX: ".to_owned();
    for (head, status) in [(declared, 413), (chunked, 413), (header, 431)] {
        for _ in 0..5 {
            let mut client = connect(address);
            client.write_all(head.as_bytes()).unwrap();
            client.write_all(&body).unwrap();
            let answer = read_answer(&mut client, false).unwrap();
            assert!(answer.status == status && is_json(&answer.body), "{status}: {answer:?}");
        }
    }
}

#[test]
fn a_body_of_exactly_the_limit_is_taken() {
    let (_server, address) = start(Limits::default());
    let mut client = connect(address);
    let body = vec![b'x'; Limits::MAX_BODY];
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    let declared = [format!("{head}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat();
    let coding = format!("{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    let chunked = [coding.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    for request in [declared, chunked] {
        client.write_all(&request).unwrap();
        assert_eq!(read_answer(&mut client, false).unwrap().body.len(), "POST / ".len() + body.len());
    }
}

#[test]
fn large_bodies_wait_for_memory_and_small_ones_do_not() {
    let (server, address) = start(Limits { body_deadline: PATIENCE * 2, ..Limits::default() });
    let body = vec![b'x'; Limits::MAX_BODY];
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let chunked = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len());
    // Many times what one client may have in memory, none of it whole; what is not taken stays in the sockets.
    let mut clients: Vec<_> = (0..12)
        .map(|n| {
            let mut client = connect(address);
            client.write_all(if n % 2 == 0 { &head } else { &chunked }.as_bytes()).unwrap();
            let mut writer = client.try_clone().unwrap();
            let bytes = body[1..].to_vec();
            let sends = thread::spawn(move || writer.write_all(&bytes).unwrap());
            (client, sends)
        })
        .collect();
    let mut small = connect(address);
    small.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc").unwrap();
    assert_eq!(read_answer(&mut small, false).unwrap().body, b"POST / abc");
    drop(small);
    let ends: Vec<_> = clients
        .drain(..)
        .enumerate()
        .map(|(n, (mut client, sends))| {
            thread::spawn(move || {
                sends.join().unwrap();
                client.write_all(if n % 2 == 0 { b"x" } else { b"x\r\n0\r\n\r\n" }).unwrap();
                read_answer(&mut client, false).unwrap()
            })
        })
        .collect();
    for end in ends {
        let answer = end.join().unwrap();
        assert_eq!((answer.status, answer.body.len()), (200, "POST / ".len() + Limits::MAX_BODY));
    }
    slots_come_back(server.counters());
}

#[test]
fn who_finds_no_memory_for_a_large_body_is_told_to_come_back() {
    let (server, address) = start(Limits { body_deadline: Duration::from_secs(2), ..Limits::default() });
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", Limits::MAX_BODY);
    let begun = [head.as_bytes(), &[b'x'; 16 * 1024]].concat();
    let mut clients: Vec<_> = (0..20).map(|_| connect(address)).collect();
    clients.iter_mut().for_each(|client| client.write_all(&begun).unwrap());
    let answers: Vec<_> = clients.iter_mut().map(|client| read_answer(client, false).unwrap()).collect();
    let told = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert!(answers.iter().all(|answer| is_json(&answer.body)));
    // Two found room and did not send the rest; of the others, some may have found theirs at the last moment.
    assert!(told(408) >= 2 && told(503) >= 1 && told(408) + told(503) == 20, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.status == 408 || answer.has("Retry-After: 1")));
    slots_come_back(server.counters());
}

#[test]
fn a_burst_of_forty_connections_is_answered_in_full_while_all_stay_open() {
    let (server, address) = start(Limits::default());
    for _ in 0..5 {
        let mut clients: Vec<_> = (0..40).map(|_| connect(address)).collect();
        for client in &mut clients {
            client.write_all(get("/burst").as_bytes()).unwrap();
        }
        for client in &mut clients {
            assert_eq!(read_answer(client, false).unwrap().status, 200);
        }
    }
    slots_come_back(server.counters());
}

/// Limits under which nothing ends by a deadline while a test lasts: once by address, once over all.
fn patient_caps() -> [(usize, Limits); 2] {
    let deadline = PATIENCE * 2;
    let patient =
        Limits { head_deadline: deadline, body_deadline: deadline, idle_deadline: deadline, ..Limits::default() };
    let by_all = Limits { max_per_address: usize::MAX, max_connections: 300, ..patient.clone() };
    [(patient.max_per_address, patient), (by_all.max_connections, by_all)]
}

#[test]
fn six_hundred_idle_connections_give_way_oldest_first_and_go_without_a_trace() {
    for (cap, limits) in patient_caps() {
        let (server, address) = start(limits);
        let counters = server.counters();
        // Never used, a part of a head, kept after an answer: none of them asks for anything.
        let mut waiting: Vec<_> = (0..600)
            .map(|n| {
                let mut client = connect(address);
                match n % 3 {
                    0 => {}
                    1 => client.write_all(b"GET / HTTP/1.1\r\nHo").unwrap(),
                    _ => assert_eq!(ask(&mut client, "/").status, 200),
                }
                client
            })
            .collect();
        eventually("all are accepted", || count(&counters.accepted) == 600);
        eventually("as many gave way as were too many", || count(&counters.evicted) == 600 - cap as u64);
        assert_eq!(count(&counters.active), cap as u64);
        assert_eq!((count(&counters.refused_full), count(&counters.refused_address)), (0, 0));
        let gone = |client: &mut TcpStream| matches!(client.read(&mut [0]), Ok(0) | Err(_));
        // One may have been scheduled late and so have waited less; far from the border that changes nothing.
        assert!(waiting[..200].iter_mut().all(gone), "the oldest have gone");
        for client in waiting[500..].iter_mut().skip(1).step_by(3) {
            assert_eq!(ask(client, "/").status, 200, "the youngest are served");
        }
        // Who comes now is served as well, as often as he likes, and as quickly.
        for _ in 0..200 {
            assert_eq!(ask(&mut connect(address), "/").status, 200);
        }
        waiting.clear();
        slots_come_back(counters);
        assert_eq!(ask(&mut connect(address), "/").status, 200);
    }
}

#[test]
fn connections_that_are_being_answered_never_give_way_and_leave_503_for_the_rest() {
    for (cap, limits) in patient_caps() {
        let (server, address) = start(limits);
        let counters = server.counters();
        HELD.store(true, Ordering::SeqCst);
        let mut busy: Vec<_> = (0..cap)
            .map(|n| {
                let mut client = connect(address);
                client.write_all(get(if n % 50 == 0 { "/watch" } else { "/hold" }).as_bytes()).unwrap();
                client
            })
            .collect();
        eventually("all are being answered", || count(&counters.requests) == cap as u64);
        eventually("the streams begin", || count(&counters.streams) == cap.div_ceil(50) as u64);
        let before = count(&counters.refused_full) + count(&counters.refused_address);
        for _ in 0..100 {
            let mut refused = connect(address);
            // The answer is there before the question; a reset now would fail the second write, and the client's reading.
            refused.peek(&mut [0]).unwrap();
            refused.write_all(get("/").as_bytes()).unwrap();
            refused.write_all(get("/").as_bytes()).unwrap();
            let answer = read_answer(&mut refused, false).unwrap();
            assert!(answer.status == 503 && is_json(&answer.body), "{answer:?}");
            assert!(answer.has("Retry-After: 1") && answer.has("Connection: close"), "{}", answer.head);
        }
        assert_eq!(count(&counters.refused_full) + count(&counters.refused_address), before + 100);
        assert_eq!((count(&counters.evicted), count(&counters.active)), (0, cap as u64));
        HELD.store(false, Ordering::SeqCst);
        for client in &mut busy {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_answer(client, false).unwrap().status, 200);
        }
        busy.clear();
        slots_come_back(counters);
        assert_eq!(ask(&mut connect(address), "/").status, 200);
    }
}

#[test]
fn bodies_that_do_not_come_keep_nobody_out() {
    let limits = Limits { max_connections: 20, max_per_address: 20, reserved_for_loopback: 0, ..Limits::default() };
    let (server, address) = start(limits);
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let mut dribbling: Vec<_> = (0..20).map(|_| connect(address)).collect();
    for client in &mut dribbling {
        client.write_all(head).unwrap();
        assert_eq!(read_answer(client, false).unwrap().status, 100);
    }
    for _ in 0..20 {
        assert_eq!(ask(&mut connect(address), "/").status, 200);
    }
    let counters = server.counters();
    assert!(count(&counters.evicted) >= 1 && count(&counters.refused_full) + count(&counters.refused_address) == 0);
    dribbling.clear();
    slots_come_back(counters);
}

#[test]
fn a_thread_that_cannot_be_started_is_answered_503() {
    // Half of all the address space there is, beside everything else: no mapping of that size is granted.
    let (server, address) = start(Limits { stack: 1 << 47, ..Limits::default() });
    for _ in 0..3 {
        assert_eq!(ask(&mut connect(address), "/").status, 503);
    }
    assert_eq!((count(&server.counters().refused_no_thread), count(&server.counters().active)), (3, 0));
}

#[test]
fn a_trickle_does_not_stretch_a_deadline() {
    let ms = Duration::from_millis;
    let limits = Limits { head_deadline: ms(400), body_deadline: ms(400), idle_deadline: ms(200), ..Limits::default() };
    let (_server, address) = start(limits);
    for opening in ["G", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"] {
        let mut client = connect(address);
        client.write_all(opening.as_bytes()).unwrap();
        let mut writer = client.try_clone().unwrap();
        let trickle = thread::spawn(move || {
            let end = Instant::now() + PATIENCE;
            while Instant::now() < end && writer.write_all(b"x").is_ok() {
                thread::sleep(ms(20));
            }
        });
        let begun = Instant::now();
        assert_eq!(read_answer(&mut client, false).unwrap().status, 408);
        assert!(begun.elapsed() < PATIENCE / 2);
        client.shutdown(Shutdown::Both).unwrap();
        trickle.join().unwrap();
    }
    // Idle, whether never used or between requests: closed without a word.
    let mut client = connect(address);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let mut client = connect(address);
    assert_eq!(ask(&mut client, "/").status, 200);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_reader_below_the_minimum_rate_is_cut_although_it_never_stalls() {
    let write_deadline = Duration::from_millis(500);
    let (server, address) = start(Limits { write_deadline, write_bytes_per_second: 1 << 40, ..Limits::default() });
    let mut client = connect(address);
    client.write_all(get("/big").as_bytes()).unwrap();
    let mut piece = vec![0; 32 * 1024];
    eventually("the response is cut", || {
        let _ = client.read(&mut piece);
        count(&server.counters().responses_cut) == 1
    });
    slots_come_back(server.counters());
}

#[test]
fn a_client_that_leaves_at_any_byte_harms_nothing() {
    let (server, address) = start(Limits::default());
    let request = b"POST /x?a=b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for n in 0..=request.len() {
        // FIN: an orderly close after n bytes.
        connect(address).write_all(&request[..n]).unwrap();
        // RST: closing with an unread answer in the receive buffer resets the connection.
        let mut client = connect(address);
        client.write_all(get("/").as_bytes()).unwrap();
        client.peek(&mut [0]).unwrap();
        client.write_all(&request[..n]).unwrap();
        drop(client);
    }
    slots_come_back(server.counters());
    assert_eq!(count(&server.counters().accepted), 2 * (request.len() as u64 + 1));
    assert_eq!(count(&server.counters().handler_panics), 0);
    assert_eq!(ask(&mut connect(address), "/").status, 200);
}

#[test]
fn a_panicking_handler_is_answered_500_and_counted() {
    let (server, address) = start(Limits::default());
    for n in 1..=3 {
        let (answers, closed) = exchange(address, get("/panic").as_bytes());
        assert!(closed && answers.len() == 1 && answers[0].status == 500 && is_json(&answers[0].body), "{answers:?}");
        assert_eq!(count(&server.counters().handler_panics), n);
    }
    let (answers, closed) = exchange(address, get("/late-panic").as_bytes());
    assert!(answers.is_empty() && closed);
    assert_eq!(count(&server.counters().handler_panics), 4);
    slots_come_back(server.counters());
    assert_eq!(ask(&mut connect(address), "/").status, 200);
}

#[test]
fn a_stream_sees_its_peer_leave_and_can_be_cut_from_outside() {
    let (server, address) = start(Limits::default());
    let streams = || count(&server.counters().streams);
    for half_close in [true, false] {
        let mut client = connect(address);
        client.write_all(get("/watch").as_bytes()).unwrap();
        eventually("the stream begins", || streams() == 1);
        if half_close {
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_answer(&mut client, false).unwrap().body, b"here\nbye\n");
        }
        drop(client);
        eventually("the stream ends", || streams() == 0);
    }
    let mut client = connect(address);
    client.write_all(get("/cut").as_bytes()).unwrap();
    let cut = read_answer(&mut client, false).map_err(|e| e.kind());
    assert!(matches!(cut, Err(io::ErrorKind::UnexpectedEof)), "a stream cut off must not look ended: {cut:?}");
    slots_come_back(server.counters());
}

#[test]
fn a_drain_ends_idle_connections_and_streams_and_lets_answers_finish() {
    let (server, address) = start(Limits::default());
    let mut idle = connect(address);
    let mut kept = connect(address);
    assert_eq!(ask(&mut kept, "/").status, 200);
    let mut watching = connect(address);
    watching.write_all(get("/watch").as_bytes()).unwrap();
    let mut flooded = connect(address);
    flooded.write_all(get("/flood").as_bytes()).unwrap();
    let mut big = connect(address);
    big.write_all(get("/big").as_bytes()).unwrap();
    eventually("all are under way", || {
        count(&server.counters().streams) == 2 && count(&server.counters().requests) == 4
    });
    let reader = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        read_answer(&mut big, false).map(|a| a.body.len())
    });
    assert_eq!(server.drain(PATIENCE), 0);
    assert_eq!(count(&server.counters().active), 0);
    assert_eq!(read_answer(&mut watching, false).unwrap().body, b"here\nbye\n");
    assert_eq!((idle.read(&mut [0]).unwrap(), kept.read(&mut [0]).unwrap()), (0, 0));
    assert_eq!(reader.join().unwrap().unwrap(), BIG);
    assert!(TcpStream::connect(address).is_err(), "the listener is closed");
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let (server, address) = start(Limits::default());
    let mut client = connect(address);
    client.write_all(get("/big").as_bytes()).unwrap();
    eventually("the response is under way", || count(&server.counters().requests) == 1);
    assert_eq!(server.drain(Duration::from_millis(200)), 1);
    slots_come_back(server.counters());
}

/// Runs one ignored test of this file alone in a process of its own, where descriptors and threads can be counted.
fn isolated(test: &str, prelude: &str) {
    let script = format!("{prelude} exec \"$0\" --exact {test} --ignored --test-threads=1");
    let output = Command::new("sh").arg("-c").arg(script).arg(std::env::current_exe().unwrap()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_stream_to_a_client_that_never_reads_gives_back_its_thread_and_descriptor() {
    isolated("alone_never_reading", "");
}

#[test]
#[ignore = "counts the descriptors of its process: the test above runs it alone"]
fn alone_never_reading() {
    let (server, address) = start(Limits { write_deadline: Duration::from_millis(300), ..Limits::default() });
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    let mut clients: Vec<_> = (0..20).map(|_| connect(address)).collect();
    for client in &mut clients {
        client.write_all(get("/flood").as_bytes()).unwrap();
    }
    eventually("all have begun", || count(&server.counters().requests) == 20);
    eventually("threads and descriptors return while the clients stay", || {
        entries("/proc/self/fd") == descriptors + clients.len() && entries("/proc/self/task") == threads
    });
    assert_eq!(count(&server.counters().responses_cut), 20);
    assert_eq!(ask(&mut connect(address), "/").status, 200);
}

#[test]
fn running_out_of_descriptors_does_not_end_the_accept_loop() {
    isolated("alone_out_of_descriptors", "ulimit -n 64;");
}

#[test]
#[ignore = "uses up the descriptors of its process: the test above runs it alone"]
fn alone_out_of_descriptors() {
    let (server, address) = start(Limits::default());
    let counters = server.counters();
    let descriptors = entries("/proc/self/fd");
    for _ in 0..3 {
        let mut fillers = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            fillers.push(file);
        }
        // A blocked accept already holds the descriptor it will return, so one client still gets in; then none is left.
        let mut early = loop {
            fillers.pop();
            if let Ok(client) = TcpStream::connect(address) {
                break client;
            }
        };
        let errors = count(&counters.accept_errors);
        eventually("accepting fails, again and again", || count(&counters.accept_errors) > errors + 2);
        drop(fillers);
        let mut late = connect(address);
        assert_eq!((ask(&mut early, "/").status, ask(&mut late, "/").status), (200, 200));
        drop((early, late));
        eventually("all descriptors return", || entries("/proc/self/fd") <= descriptors);
    }
}

#[test]
fn pipelined_requests_of_every_shape_are_answered_in_order_and_nothing_follows_a_stream() {
    let (server, address) = start(Limits::default());
    let all = [
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        "HEAD /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x\r\nf\r\n0\r\nT: u\r\n\r\n",
        "GET /sized HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /unknown-length HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /7 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\ng",
        "GET /empty HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /three HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /never HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
    .concat();
    let unknown = [b'u'; 100_000];
    let expected: [&[u8]; 9] =
        [b"GET /1 ", b"POST /2 abc", b"", b"POST /4 def", b"abcdefghi", &unknown, b"POST /7 g", b"", b"onetwothree"];
    // Whole, and cut at places that lie in heads, bodies and size lines.
    for piece in [all.len(), 1, 7, 50] {
        let mut client = connect(address);
        client.set_nodelay(true).unwrap();
        let mut writer = client.try_clone().unwrap();
        let bytes = all.clone();
        let sending = thread::spawn(move || bytes.as_bytes().chunks(piece).try_for_each(|part| writer.write_all(part)));
        for (index, body) in expected.iter().enumerate() {
            let answer = read_answer(&mut client, index == 2).unwrap();
            assert!(answer.body == *body, "{index} by {piece}: {answer:?}");
        }
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "by {piece}");
        // The connection may be gone before the last request is written.
        let _ = sending.join().unwrap();
    }
    slots_come_back(server.counters());
    assert_eq!(count(&server.counters().requests), 4 * 9);
}

#[test]
fn an_http_1_0_client_gets_no_100_continue_and_keeps_its_connection_only_where_it_asks() {
    let (_server, address) = start(Limits { body_deadline: Duration::from_millis(300), ..Limits::default() });
    // The body never comes: whatever is said of the head alone is said before the 408.
    for (version, statuses) in [(1, &[100, 408][..]), (0, &[408])] {
        let mut client = connect(address);
        let head = format!("POST / HTTP/1.{version}\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
        client.write_all(head.as_bytes()).unwrap();
        for status in statuses {
            assert_eq!(read_answer(&mut client, false).unwrap().status, *status, "HTTP/1.{version}");
        }
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
    let mut client = connect(address);
    for path in ["/1", "/sized", "/empty", "/2"] {
        client.write_all(format!("GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").as_bytes()).unwrap();
        let answer = read_answer(&mut client, false).unwrap();
        assert!(answer.has("Connection: keep-alive"), "{path}: {}", answer.head);
    }
    client.write_all(b"GET /last HTTP/1.0\r\n\r\n").unwrap();
    let answer = read_answer(&mut client, false).unwrap();
    assert!(answer.has("Connection: close") && answer.body == b"GET /last ", "{answer:?}");
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn head_gets_the_head_that_get_would_and_no_byte_more_from_every_kind_of_reply() {
    let (_server, address) = start(Limits::default());
    for (path, status, keeps) in [
        ("/big", 200, true),
        ("/sized", 200, true),
        ("/sized-big", 200, true),
        ("/sized-short", 200, true),
        ("/unknown-length", 200, true),
        ("/empty", 204, true),
        ("/late-panic", 200, true),
        ("/three", 200, false),
        ("/flood", 200, false),
        ("/panic", 500, false),
        ("relative", 400, false),
    ] {
        let of = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut client = connect(address);
        client.write_all(of("HEAD").as_bytes()).unwrap();
        let answer = read_answer(&mut client, true).unwrap();
        assert_eq!(answer.status, status, "{path}");
        if keeps {
            // Were a body byte left in between, this would not parse.
            assert_eq!(ask(&mut client, "/y").body, b"GET /y ", "{path}");
        } else {
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "{path}");
        }
        // The head that GET gets, whatever becomes of the body.
        let mut client = connect(address);
        client.write_all(of("GET").as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match client.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                // A body that panics before its first piece takes the head with it.
                _ => break,
            }
        }
        let fields = |text: &str| -> Vec<String> {
            text.split("\r\n").filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect()
        };
        if path != "/late-panic" {
            assert_eq!(fields(&answer.head), fields(std::str::from_utf8(&head).unwrap()), "{path}");
        }
    }
}

#[test]
fn a_client_that_has_said_all_it_will_still_gets_its_answers() {
    let (server, address) = start(Limits::default());
    let post = "POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    for (bytes, bodies) in [
        (get("/a"), vec![&b"GET /a "[..]]),
        (post.to_owned(), vec![b"POST /p abc"]),
        (format!("{}{post}{}", get("/a"), get("/sized")), vec![b"GET /a ", b"POST /p abc", b"abcdefghi"]),
        (format!("{post}{}", get("/three")), vec![b"POST /p abc", b"onetwothree"]),
        ("GET /three HTTP/1.0\r\n\r\n".to_owned(), vec![b"onetwothree"]),
        // Half a request is none.
        (format!("{post}GET /a HTTP/1.1\r\nHo"), vec![b"POST /p abc"]),
        (format!("{post}{}", &post[..post.len() - 1]), vec![b"POST /p abc"]),
    ] {
        let mut client = connect(address);
        client.write_all(bytes.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        for body in bodies {
            assert_eq!(read_answer(&mut client, false).unwrap().body, body, "{bytes:?}");
        }
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "{bytes:?}");
    }
    for path in ["/big", "/sized-big"] {
        let mut client = connect(address);
        client.write_all(get(path).as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_answer(&mut client, false).unwrap().body.len(), BIG);
    }
    assert_eq!(count(&server.counters().responses_cut), 0);
    slots_come_back(server.counters());
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_answer_is_counted_and_gone() {
    let (server, address) = start(Limits::default());
    let counters = server.counters();
    for (n, (path, reset)) in (1..).zip([
        ("/big", false),
        ("/big", true),
        ("/sized-big", false),
        ("/sized-big", true),
        ("/flood", false),
        ("/flood", true),
    ]) {
        let mut client = connect(address);
        client.write_all(get(path).as_bytes()).unwrap();
        client.read_exact(&mut [0; 100_000]).unwrap();
        if reset {
            reset_on_close(&client);
        }
        drop(client);
        eventually("the response is cut", || count(&counters.responses_cut) == n);
    }
    slots_come_back(counters);
    assert_eq!(count(&counters.handler_panics), 0);
    let mut client = connect(address);
    client.write_all(get("/sized-short").as_bytes()).unwrap();
    let cut = read_answer(&mut client, false).map_err(|e| e.kind());
    assert!(matches!(cut, Err(io::ErrorKind::UnexpectedEof)), "a body cut short must not look whole: {cut:?}");
}

/// Makes closing this socket send a reset, whatever is on its way.
fn reset_on_close(socket: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = size_of_val(&linger) as libc::socklen_t;
    // SAFETY: the option's value is a `linger`, of the size given, that lives until the call returns.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size)
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_reset_at_any_byte_leaves_no_thread_and_no_descriptor() {
    isolated("alone_reset_at_any_byte", "");
}

#[test]
#[ignore = "counts the descriptors of its process: the test above runs it alone"]
fn alone_reset_at_any_byte() {
    let (server, address) = start(Limits::default());
    let counters = server.counters();
    // One round to warm up what the process keeps.
    assert_eq!(ask(&mut connect(address), "/").status, 200);
    slots_come_back(counters);
    let (descriptors, threads) = (entries("/proc/self/fd"), entries("/proc/self/task"));
    let request = "POST /x?a=b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3\r\nabc\r\n0\r\nT: u\r\n\r\nGET /big HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut connections = count(&counters.accepted);
    for n in 0..=request.len() {
        // At once, perhaps before the server has looked at it, and once it is being served.
        for served in [false, true] {
            let mut client = connect(address);
            client.write_all(&request.as_bytes()[..n]).unwrap();
            connections += 1;
            if served {
                eventually("it is accepted", || count(&counters.accepted) == connections);
            }
            reset_on_close(&client);
            drop(client);
        }
    }
    eventually("threads and descriptors return", || {
        entries("/proc/self/fd") == descriptors && entries("/proc/self/task") == threads
    });
    slots_come_back(counters);
    assert_eq!((count(&counters.accepted), count(&counters.handler_panics)), (connections, 0));
    assert_eq!(ask(&mut connect(address), "/").status, 200);
}
