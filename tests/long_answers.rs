//! Long answers, in pieces, from a real agent: `/api/ledger` and `/api/jobs/{id}/trace` of a ledger whose frames are larger
//! than a piece, to readers of every pace, and to those who leave.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod lives;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use agent::{Agent, PATIENCE, Site};
use hackbrain::hash::Hash;
use hackbrain::ledger::event::{State, Stopping};
use hackbrain::ledger::lifecycle::Command;
use hackbrain::ledger::time::Time;
use hackbrain::manifest;
use hackbrain::sys::block::Caching;
use hackbrain::verify::wal_dir;
use hackbrain::wal::frame::{BLOCK, decode_header};
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use lives::{Lives, submission};
use serde_json::json;

/// Bytes of a ledger that no connection's buffers hold: Linux lets them grow to 4 MiB where the reader's stay small.
const MORE_THAN_BUFFERS: usize = 8 << 20;

struct Node {
    lives: Lives,
    wal: Wal,
    /// What `/api/ledger` must say, and the traces.
    ledger: Vec<u8>,
    events: u64,
    traces: BTreeMap<String, Vec<u8>>,
}

impl Node {
    fn carry_out(&mut self, job: Option<&str>, command: Command) {
        let (wal, events) = (&self.wal, &mut self.events);
        let trace = job.map(|id| self.traces.entry(id.to_owned()).or_default());
        let mut added = Vec::new();
        let done = self.lives.run(command, Time::now(), &mut |event| {
            let mut bytes = Vec::new();
            wal.append(|seq, prev, out| {
                event.write(seq, &Hash(*prev), &mut bytes);
                out.extend_from_slice(&bytes);
            })?;
            added.extend_from_slice(&bytes);
            added.push(b'\n');
            *events += 1;
            Ok(bytes)
        });
        assert!(done.unwrap().is_some(), "the lifecycle allows it");
        self.ledger.extend_from_slice(&added);
        if let Some(trace) = trace {
            trace.extend_from_slice(&added);
        }
    }

    /// The next step of the job's life: a marker, or whatever brings it to its end.
    fn step(&mut self, id: &str, mark: bool) -> bool {
        let job = self.lives.ledger.job(id).unwrap().clone();
        let marks_now = matches!(job.state, State::Running | State::Recovery | State::D1Stable);
        loop {
            let Some(command) = self.lives.next(&job, mark) else { return false };
            let is_wanted = match &command {
                Command::Mark(..) => mark,
                Command::Schedule(..) | Command::Start(..) => true,
                _ => !mark,
            };
            if is_wanted && (!mark || !marks_now || matches!(command, Command::Mark(..))) {
                self.carry_out(Some(id), command);
                return true;
            }
        }
    }

    /// A job with a manifest of almost half a MiB, never run.
    fn large(&mut self, id: &str) {
        let arguments: Vec<String> = (0..4).map(|n| format!("{id} {n} ").repeat(110_000 / (id.len() + 3))).collect();
        let text = json!({ "job_id": id, "image_hash": "busybox:latest", "command": arguments }).to_string();
        let parsed = manifest::parse(text.as_bytes()).unwrap();
        self.carry_out(Some(id), Command::Submit(Box::new(parsed)));
        let stopping = Stopping { asked: "cancel".into(), by: "127.0.0.1".into() };
        self.carry_out(Some(id), Command::Stop(id.into(), stopping));
    }
}

/// A ledger in frames of about a MiB: large events, two jobs with thousands of markers, and one that has its own far apart.
fn write(site: &Site) -> Node {
    let storage = Directory::open(&wal_dir(&site.data()), Caching::Buffered).unwrap();
    let options = Options::new(4 << 20);
    let (wal, _) = Wal::open(Arc::new(storage), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
    let lives = Lives::new(11);
    let mut node = Node { lives, wal, ledger: Vec::new(), events: 0, traces: BTreeMap::new() };
    node.carry_out(None, node.lives.genesis());
    node.carry_out(None, node.lives.node_up("none"));
    for id in ["dense", "other", "sparse"] {
        let (_, command) = submission(id, "busybox:latest", &[]).unwrap();
        node.carry_out(Some(id), command);
    }
    for round in 0..2000 {
        node.step("dense", true);
        node.step("other", true);
        if round % 40 == 0 {
            node.step("sparse", true);
        }
        if round % 100 == 0 {
            node.large(&format!("large.{round}"));
        }
    }
    for id in ["dense", "other", "sparse"] {
        while node.step(id, false) {}
    }
    node.carry_out(None, node.lives.node_down());
    node.wal.wait(node.events).unwrap();
    assert!(node.ledger.len() > MORE_THAN_BUFFERS, "{} bytes", node.ledger.len());
    node
}

/// One connection whose answer is read when it pleases its reader. HTTP/1.0: the body ends with the connection.
struct Slow(TcpStream);

impl Slow {
    fn ask(agent: &Agent, path: &str) -> Self {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", agent.address).unwrap();
        Self(stream)
    }

    fn read(mut self, at_once: usize) -> Vec<u8> {
        let (mut answer, mut piece) = (Vec::new(), vec![0; at_once]);
        loop {
            match self.0.read(&mut piece).unwrap() {
                0 => break,
                n => answer.extend_from_slice(&piece[..n]),
            }
        }
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        answer.split_off(end + 4)
    }
}

#[test]
fn long_answers_are_the_same_bytes_to_readers_of_every_pace_and_outlast_those_who_leave() {
    let site = Site::new("long");
    let Node { wal, ledger, events, traces, .. } = write(&site);
    wal.close();
    let frames: Vec<u32> = fs::read_dir(wal_dir(&site.data()))
        .unwrap()
        .flat_map(|entry| {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            bytes.chunks_exact(BLOCK).filter_map(decode_header).map(|header| header.blocks).collect::<Vec<_>>()
        })
        .collect();
    assert!(frames.iter().filter(|&&blocks| blocks > 128).count() > 4, "blocks of frames: {frames:?}");

    let agent = site.start(&["--pull", "never"]);
    let path = format!("/api/ledger?from=1&limit={events}");
    let slow: Vec<Slow> = (0..6).map(|_| Slow::ask(&agent, &path)).collect();
    let slow_trace = Slow::ask(&agent, "/api/jobs/dense/trace");
    // More than have a turn at once, gone in the middle of their answers.
    let leaving: Vec<Slow> = (0..32).map(|_| Slow::ask(&agent, &path)).collect();
    for Slow(stream) in leaving {
        (&stream).read_exact(&mut [0; 1000]).unwrap();
    }

    let whole = agent.get(&path);
    assert_eq!(whole.status, 200);
    assert!(whole.body == ledger, "to who reads at once: {} bytes of {}", whole.body.len(), ledger.len());
    for (id, expected) in &traces {
        let trace = agent.get(&format!("/api/jobs/{id}/trace"));
        assert!(trace.body == *expected, "trace of {id}: {} bytes of {}", trace.body.len(), expected.len());
    }
    // From anywhere in a frame.
    let lines: Vec<&[u8]> = ledger.split_inclusive(|&byte| byte == b'\n').collect();
    for from in (1..events).step_by(397) {
        let rest = agent.get(&format!("/api/ledger?from={from}&limit=300"));
        let end = (from as usize + 299).min(lines.len());
        assert!(rest.body.starts_with(&lines[from as usize - 1..end].concat()), "from {from}");
    }
    for (number, slow) in slow.into_iter().enumerate() {
        assert!(slow.read([700, 20_000][number % 2]) == ledger, "slow reader {number}");
    }
    assert!(slow_trace.read(500) == traces["dense"]);
    assert_eq!(agent.terminate(), Some(0));
}
