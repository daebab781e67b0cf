//! What the tests of the HTTP front share: a site with every kind of answer, and a strict client.

use hackbrain::http::server::{Counters, Handler, Limits, Reply, Request, Server, StreamWriter};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tiny_http::{Header, Response, StatusCode};

/// Longest wait for anything that must happen; far above what it takes.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Body length of `/big`: more than all socket buffers on the way hold.
pub const BIG: usize = 64 << 20;

pub struct Site;

impl Handler for Site {
    fn handle(&self, request: &Request) -> Reply {
        match request.path.as_str() {
            "/panic" => panic!("as asked"),
            "/late-panic" => full(PanicReader, Some(9)),
            "/short" => full(io::Cursor::new("abc"), Some(9)),
            "/unknown-length" => full(io::repeat(b'u').take(100_000), None),
            "/big" => full(io::repeat(b'b').take(BIG as u64), Some(BIG)),
            "/empty" => Reply::Full(Response::empty(204).boxed()),
            "/inject" => {
                let value = request.query.first().map_or("", |(_, v)| v);
                let header = Header::from_bytes("X-Echo", value).unwrap();
                Reply::Full(Response::from_string("x").with_header(header).boxed())
            }
            "/hold" => {
                while HELD.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(50));
                }
                Reply::Full(Response::from_string("let go").boxed())
            }
            "/sized" => sized(b"abcdefghi", 9),
            "/sized-short" => sized(b"abc", 9),
            "/sized-big" => Reply::Sized {
                status: 200,
                headers: Vec::new(),
                length: BIG as u64,
                run: Box::new(|w| (0..BIG >> 16).try_for_each(|_| w.send(&[b'b'; 1 << 16]))),
            },
            "/three" => stream(|w| ["one", "", "two", "three"].iter().try_for_each(|s| w.send(s.as_bytes()))),
            "/flood" => stream(|w| {
                let bytes = vec![b'f'; 64 * 1024];
                loop {
                    w.send(&bytes)?;
                }
            }),
            "/watch" => stream(|w| {
                w.send(b"here\n")?;
                while !w.peer_gone() && !w.stopping() {
                    thread::sleep(Duration::from_millis(5));
                }
                w.send(b"bye\n")
            }),
            "/cut" => stream(|w| {
                w.send(b"here\n")?;
                let closer = w.closer();
                thread::spawn(move || closer.close()).join().unwrap();
                while !w.peer_gone() {
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }),
            _ => {
                let text = format!("{} {} {}", request.method, request.path, String::from_utf8_lossy(&request.body));
                Reply::Full(Response::from_string(text).boxed())
            }
        }
    }
}

struct PanicReader;

impl Read for PanicReader {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("a body that panics, as asked")
    }
}

fn full(body: impl Read + Send + 'static, length: Option<usize>) -> Reply {
    Reply::Full(Response::new(StatusCode(200), vec![], body, length, None).boxed())
}

fn sized(body: &'static [u8], length: u64) -> Reply {
    Reply::Sized { status: 200, headers: Vec::new(), length, run: Box::new(move |w| w.send(body)) }
}

fn stream(run: impl FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send + 'static) -> Reply {
    let headers = vec![Header::from_bytes("Content-Type", "text/event-stream").unwrap()];
    Reply::Stream { status: 200, headers, ends: false, run: Box::new(run) }
}

/// Whether `/hold` waits.
pub static HELD: AtomicBool = AtomicBool::new(false);

pub fn start(limits: Limits) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (Server::start(vec![listener], Arc::new(Site), limits).unwrap(), address)
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// One response as a strict client reads it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn has(&self, line: &str) -> bool {
        self.head.split("\r\n").any(|l| l.eq_ignore_ascii_case(line))
    }
}

fn read_line(client: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line).unwrap())
}

/// Reads one response: exactly its bytes, so that what follows stays in the socket.
pub fn read_answer(client: &mut impl Read, head_only: bool) -> io::Result<Answer> {
    let mut head = read_line(client)?;
    while !head.ends_with("\r\n\r\n") {
        head += &read_line(client)?;
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if head_only || status == 204 || status == 100 {
        return Ok(Answer { status, head, body });
    }
    if let Some(length) = lower.split("\r\ncontent-length: ").nth(1) {
        body.resize(length.split("\r\n").next().unwrap().parse().unwrap(), 0);
        client.read_exact(&mut body)?;
    } else if lower.contains("\r\ntransfer-encoding: chunked\r\n") {
        loop {
            let size = usize::from_str_radix(read_line(client)?.trim_end(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            client.read_exact(&mut chunk)?;
            assert!(chunk.ends_with(b"\r\n"));
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        assert!(lower.contains("\r\nconnection: close\r\n"), "a body without length must end with the connection");
        client.read_to_end(&mut body)?;
    }
    Ok(Answer { status, head, body })
}

pub fn ask(client: &mut TcpStream, path: &str) -> Answer {
    client.write_all(get(path).as_bytes()).unwrap();
    read_answer(client, false).unwrap()
}

/// Sends bytes and then nothing; gives every answer until the server closes (then true), or has been quiet for a while.
pub fn exchange(address: SocketAddr, bytes: &[u8]) -> (Vec<Answer>, bool) {
    let mut client = connect(address);
    client.write_all(bytes).unwrap();
    let mut answers = Vec::new();
    loop {
        let patience = if answers.is_empty() { PATIENCE } else { Duration::from_millis(150) };
        client.set_read_timeout(Some(patience)).unwrap();
        match read_answer(&mut client, bytes.starts_with(b"HEAD ")) {
            Ok(answer) => answers.push(answer),
            Err(e) => return (answers, e.kind() != io::ErrorKind::WouldBlock),
        }
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "never came about: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

pub fn slots_come_back(counters: &Counters) {
    eventually("all slots come back", || count(&counters.active) == 0);
}

pub fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|v| v["error"]["message"].is_string())
}
