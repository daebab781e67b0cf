//! A strict client of the event stream: it takes the bytes apart itself, and tells an end from a cut.
#![allow(clippy::unwrap_used, dead_code)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest wait for anything that must happen; far above what it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What stands between two empty lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub id: Option<u64>,
    pub event: Option<String>,
    pub data: Option<String>,
    pub comment: Option<String>,
    pub retry: Option<String>,
}

/// Takes a body apart as it comes; bytes may end anywhere.
#[derive(Debug, Default)]
pub struct Parser {
    chunked: bool,
    raw: Vec<u8>,
    text: Vec<u8>,
    /// The last chunk has come.
    pub ended: bool,
}

impl Parser {
    pub fn new(chunked: bool) -> Self {
        Self { chunked, ..Self::default() }
    }

    pub fn push(&mut self, bytes: &[u8]) -> Vec<Message> {
        if self.chunked {
            self.raw.extend_from_slice(bytes);
            self.unchunk();
        } else {
            self.text.extend_from_slice(bytes);
        }
        let mut messages = Vec::new();
        let mut from = 0;
        while let Some(length) = self.text[from..].windows(2).position(|pair| pair == b"\n\n") {
            messages.push(parse(std::str::from_utf8(&self.text[from..from + length]).unwrap()));
            from += length + 2;
        }
        self.text.drain(..from);
        messages
    }

    fn unchunk(&mut self) {
        let mut from = 0;
        while let Some(line) = self.raw[from..].windows(2).position(|pair| pair == b"\r\n") {
            assert!(!self.ended, "something comes behind the last chunk");
            let size = std::str::from_utf8(&self.raw[from..from + line]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("the size of a chunk: {size:?}"));
            let start = from + line + 2;
            let Some(chunk) = self.raw.get(start..start + size + 2) else { break };
            assert!(chunk.ends_with(b"\r\n"), "a chunk is longer than it says");
            self.text.extend_from_slice(&chunk[..size]);
            self.ended = size == 0;
            from = start + size + 2;
        }
        self.raw.drain(..from);
    }
}

fn parse(text: &str) -> Message {
    let mut message = Message::default();
    for line in text.split('\n') {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a line without a colon: {text:?}"));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        let field = match name {
            "id" => {
                assert_eq!(message.id.replace(value.parse().unwrap()), None, "{text:?}");
                continue;
            }
            "event" => &mut message.event,
            "data" => &mut message.data,
            "retry" => &mut message.retry,
            "" => &mut message.comment,
            other => panic!("a field {other:?}: {text:?}"),
        };
        assert_eq!(field.replace(value), None, "{text:?}");
    }
    message
}

/// An open event stream.
pub struct Stream {
    pub socket: TcpStream,
    pub head: String,
    parser: Parser,
    waiting: std::collections::VecDeque<Message>,
}

impl Stream {
    /// Asks for `path`; HTTP/1.0 if `old`.
    pub fn open(address: SocketAddr, path: &str, old: bool) -> io::Result<Self> {
        let version = if old { "1.0" } else { "1.1" };
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.write_all(format!("GET {path} HTTP/{version}\r\nHost: {address}\r\n\r\n").as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked\r\n");
        assert!(!(old && chunked), "HTTP/1.0 knows no chunks: {head}");
        Ok(Self { socket, head, parser: Parser::new(chunked), waiting: Default::default() })
    }

    pub fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// The next message, reading at most `piece` bytes at once; `None` at the proper end.
    pub fn next_by(&mut self, piece: usize) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; piece];
        loop {
            if let Some(message) = self.waiting.pop_front() {
                return Ok(Some(message));
            }
            if self.parser.ended {
                return Ok(None);
            }
            match self.socket.read(&mut bytes)? {
                // Without chunks the close is the end.
                0 if self.parser.chunked => return Err(io::ErrorKind::UnexpectedEof.into()),
                0 => return Ok(None),
                count => self.waiting.extend(self.parser.push(&bytes[..count])),
            }
        }
    }

    pub fn next(&mut self) -> io::Result<Option<Message>> {
        self.next_by(64 << 10)
    }

    /// The next event: seq and data.
    pub fn event(&mut self) -> (u64, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Comments come for ever.
            assert!(Instant::now() < deadline, "no event came");
            let message = self.next().unwrap().expect("the stream goes on");
            if let (Some(id), None, Some(data)) = (message.id, &message.event, &message.data) {
                return (id, data.clone());
            }
        }
    }
}
