//! An answer, in tiny_http's types, back into bytes.
//!
//! tiny_http's own `Response::raw_print` cannot say `Connection: close`, would read a body of unknown length into memory
//! for HTTP/1.0, holds back 8 KiB, and allocates a dozen times for each head. What it leaves out is left out here, too: the
//! fields that concern the connection or the framing.

use super::date::http_date;
use super::request::Request;
use super::wire::{Wire, WriteDeadline};
use crate::ledger::time::Time;
use crate::rejection::Rejection;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tiny_http::{Header, Method, Response, ResponseBox, StatusCode};

/// Body bytes held at once while a response is written.
const BODY_PIECE: usize = 32 * 1024;

/// Room for the usual head.
const HEAD_BYTES: usize = 512;

/// What writes a stream: called once, in the connection's thread. An error or a panic cuts the connection, so that the
/// client sees a truncated stream and not an ended one.
pub type StreamBody = Box<dyn FnOnce(&mut StreamWriter<'_>) -> io::Result<()> + Send>;

/// A handler's answer. Header fields that concern the connection or the framing are the server's and are ignored here.
pub enum Reply {
    /// A whole response. A body of unknown length goes out chunked, or up to the close on HTTP/1.0.
    Full(ResponseBox),
    /// A response written as it comes about, each piece sent at once, after which the connection is closed. Chunked, or
    /// raw on HTTP/1.0. To HEAD only the head is sent, and `run` is not called.
    Stream {
        /// HTTP status, 200 to 599.
        status: u16,
        /// Header fields.
        headers: Vec<Header>,
        /// Whether the body ends by itself, soon: then its reader is held to a pace, and the connection can be kept.
        ends: bool,
        /// Writes the body.
        run: StreamBody,
    },
    /// A response of a length that is known beforehand, written as it comes about. To HEAD only the head is sent, and
    /// `run` is not called.
    Sized {
        /// HTTP status, 200 to 599.
        status: u16,
        /// Header fields.
        headers: Vec<Header>,
        /// Bytes of the body. Where `run` ends short of them, the connection is cut, so that the client sees a
        /// truncated body and not a whole one.
        length: u64,
        /// Writes the body.
        run: StreamBody,
    },
}

impl Reply {
    /// A JSON document.
    pub fn json(status: u16, body: Vec<u8>) -> Reply {
        let content_type = header("Content-Type", "application/json");
        Reply::Full(Response::from_data(body).with_status_code(status).with_header(content_type).boxed())
    }

    /// The error document of a rejection; a 503 asks the client to come back after a second.
    pub fn rejection(rejection: &Rejection) -> Reply {
        match Reply::json(rejection.status, rejection.to_json()) {
            Reply::Full(r) if matches!(rejection.status, 429 | 503) => {
                Reply::Full(r.with_header(header("Retry-After", "1")))
            }
            reply => reply,
        }
    }
}

/// The writing end of a stream.
pub struct StreamWriter<'a> {
    wire: &'a mut Wire,
    socket: &'a Arc<TcpStream>,
    draining: &'a AtomicBool,
    limits: WriteLimits,
    chunked: bool,
    sized: Option<Sized>,
    /// Of a body that ends: when it must be out, and since when its peer has not been waited for.
    pace: Option<(WriteDeadline, Instant)>,
    scratch: Vec<u8>,
    taken_over: bool,
}

/// What is left of a body whose length was told.
struct Sized {
    left: u64,
    deadline: WriteDeadline,
    /// Since when the peer has not been waited for.
    idle: Instant,
}

impl StreamWriter<'_> {
    /// Sends bytes as one chunk, at once; a body whose length was told goes out in larger pieces. Blocks while the peer
    /// reads slowly, up to the write deadline. Empty input sends nothing, since an empty chunk would end the stream.
    ///
    /// # Errors
    /// The peer is gone or too slow, or there are more bytes than were told; the stream cannot go on.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(sized) = &mut self.sized {
            let left = sized.left.checked_sub(bytes.len() as u64);
            sized.left = left.ok_or_else(|| io::Error::other("a body is longer than its declared length"))?;
            if self.scratch.len() + bytes.len() > BODY_PIECE {
                self.flush()?;
            }
            self.scratch.extend_from_slice(bytes);
            return Ok(());
        }
        for piece in bytes.chunks(BODY_PIECE) {
            self.scratch.clear();
            append(&mut self.scratch, piece, self.chunked);
            match &mut self.pace {
                Some((deadline, idle)) => {
                    deadline.paused(idle.elapsed());
                    self.wire.write_all(&self.scratch, deadline)?;
                    *idle = Instant::now();
                }
                None => self.wire.write_all(&self.scratch, &mut self.limits.deadline())?,
            }
        }
        Ok(())
    }

    /// Sends what is held of a body whose length was told.
    fn flush(&mut self) -> io::Result<()> {
        if let Some(sized) = &mut self.sized {
            sized.deadline.paused(sized.idle.elapsed());
            self.wire.write_all(&self.scratch, &mut sized.deadline)?;
            sized.idle = Instant::now();
            self.scratch.clear();
        }
        Ok(())
    }

    /// Gives the socket to who writes the rest of the body by himself, with the end of it; and whether that is chunked.
    pub fn take_over(&mut self) -> (Arc<TcpStream>, bool) {
        self.taken_over = true;
        (self.socket.clone(), self.chunked)
    }

    /// Looks, without waiting, whether the peer has closed or reset the connection. Ask before each heartbeat: writing
    /// alone notices only at the second write after the peer left.
    pub fn peer_gone(&mut self) -> bool {
        self.wire.peer_gone()
    }

    /// Whether the server is stopping: the stream should send what it must and return.
    pub fn stopping(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// A handle with which another thread can cut this connection at once, e.g. one that finds the subscriber too slow.
    pub fn closer(&self) -> StreamCloser {
        StreamCloser(Arc::downgrade(self.socket))
    }
}

/// Cuts a stream's connection from another thread. Does not keep the connection open.
#[derive(Debug, Clone)]
pub struct StreamCloser(Weak<TcpStream>);

impl StreamCloser {
    /// Shuts the socket down, also under a write that blocks; does nothing where the connection has already ended.
    pub fn close(&self) {
        if let Some(socket) = self.0.upgrade() {
            // An error means that it is down already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// How long a response may take to write.
#[derive(Debug, Clone, Copy)]
pub(super) struct WriteLimits {
    pub(super) stall: Duration,
    pub(super) bytes_per_second: u64,
}

impl WriteLimits {
    pub(super) fn deadline(self) -> WriteDeadline {
        WriteDeadline::new(self.stall, self.bytes_per_second)
    }
}

/// Where a reply goes, and how.
pub(super) struct Target<'a> {
    pub(super) wire: &'a mut Wire,
    pub(super) socket: &'a Arc<TcpStream>,
    pub(super) draining: &'a AtomicBool,
    pub(super) limits: WriteLimits,
    pub(super) head_only: bool,
    pub(super) minor_version: u8,
    pub(super) keep: bool,
}

impl<'a> Target<'a> {
    pub(super) fn shape(mut self, request: &Request, keep: bool) -> Self {
        self.head_only = request.method == Method::Head;
        self.minor_version = request.minor_version;
        self.keep = keep && request.keep_alive();
        self
    }

    /// Writes a reply whole; true where the connection can serve another request.
    pub(super) fn write(self, reply: Reply) -> io::Result<bool> {
        match reply {
            Reply::Full(response) => self.write_full(response),
            Reply::Stream { status, headers, ends, run } => self.write_stream(status, &headers, ends, run),
            Reply::Sized { status, headers, length, run } => self.write_sized(status, &headers, length, run),
        }
    }

    fn write_full(mut self, response: ResponseBox) -> io::Result<bool> {
        let status = response.status_code().0;
        let length = response.data_length();
        let framing = match length {
            _ if status == 204 || status == 304 => Framing::None,
            Some(n) => Framing::Length(n),
            None if self.minor_version >= 1 => Framing::Chunked,
            None => Framing::UntilClose,
        };
        self.keep &= framing != Framing::UntilClose;
        let mut out = self.wire.take_scratch();
        encode_head(&mut out, status, response.headers(), framing, self.connection())?;
        let mut deadline = self.limits.deadline();
        let has_body = !self.head_only && framing != Framing::None;
        let mut left = if has_body { length.unwrap_or(usize::MAX) } else { 0 };
        let mut body = response.into_reader();
        let mut piece = if framing == Framing::Chunked && has_body { vec![0; BODY_PIECE] } else { Vec::new() };
        while left > 0 {
            let (at, want) = (out.len(), BODY_PIECE.min(left));
            let into = match framing {
                Framing::Chunked => &mut piece[..want],
                _ => {
                    out.resize(at + want, 0);
                    &mut out[at..]
                }
            };
            let n = match body.read(into) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                    out.truncate(at);
                    continue;
                }
                n => n?,
            };
            out.truncate(at + n);
            if n == 0 {
                break;
            }
            left -= n;
            if framing == Framing::Chunked {
                append(&mut out, &piece[..n], true);
            }
            if out.len() >= BODY_PIECE {
                self.wire.write_all(&out, &mut deadline)?;
                out.clear();
            }
        }
        if framing == Framing::Chunked && has_body {
            out.extend_from_slice(LAST_CHUNK);
        }
        self.wire.write_all(&out, &mut deadline)?;
        self.wire.give_scratch(out);
        if length.is_some() && left > 0 {
            return Err(cut_short());
        }
        Ok(self.keep)
    }

    fn write_stream(mut self, status: u16, headers: &[Header], ends: bool, run: StreamBody) -> io::Result<bool> {
        let chunked = self.minor_version >= 1;
        self.keep &= ends && chunked;
        let framing = if chunked { Framing::Chunked } else { Framing::UntilClose };
        let mut head = Vec::with_capacity(HEAD_BYTES);
        encode_head(&mut head, status, headers, framing, self.connection())?;
        self.wire.write_all(&head, &mut self.limits.deadline())?;
        if self.head_only {
            return Ok(self.keep);
        }
        let Target { wire, socket, draining, limits, keep, .. } = self;
        let (sized, scratch, taken_over) = (None, Vec::new(), false);
        let pace = ends.then(|| (limits.deadline(), Instant::now()));
        let mut to = StreamWriter { wire, socket, draining, limits, chunked, sized, pace, scratch, taken_over };
        run(&mut to)?;
        if chunked && !to.taken_over {
            wire.write_all(LAST_CHUNK, &mut limits.deadline())?;
        }
        Ok(keep)
    }

    fn write_sized(self, status: u16, headers: &[Header], length: u64, run: StreamBody) -> io::Result<bool> {
        let framing = Framing::Length(usize::try_from(length).map_err(io::Error::other)?);
        let mut head = Vec::with_capacity(HEAD_BYTES);
        encode_head(&mut head, status, headers, framing, self.connection())?;
        let mut deadline = self.limits.deadline();
        if self.head_only {
            self.wire.write_all(&head, &mut deadline)?;
            return Ok(self.keep);
        }
        let Target { wire, socket, draining, limits, keep, .. } = self;
        let sized = Some(Sized { left: length, deadline, idle: Instant::now() });
        let mut to = StreamWriter {
            wire,
            socket,
            draining,
            limits,
            chunked: false,
            sized,
            pace: None,
            scratch: head,
            taken_over: false,
        };
        let written = run(&mut to);
        // What was sound goes out, so that who is cut off has all that can be had.
        to.flush()?;
        written?;
        if to.sized.is_some_and(|sized| sized.left > 0) {
            return Err(cut_short());
        }
        Ok(keep)
    }

    fn connection(&self) -> &'static str {
        match (self.keep, self.minor_version) {
            (false, _) => "Connection: close\r\n",
            (true, 0) => "Connection: keep-alive\r\n",
            (true, _) => "",
        }
    }
}

/// The client must not take the next response for the rest of this one.
fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a body ended before its declared length")
}

/// The complete bytes of a rejection, after which the connection is closed.
pub(super) fn encode_refusal(rejection: &Rejection) -> Vec<u8> {
    let Reply::Full(response) = Reply::rejection(rejection) else { return Vec::new() };
    let body = rejection.to_json();
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    let framing = Framing::Length(body.len());
    match encode_head(&mut out, rejection.status, response.headers(), framing, "Connection: close\r\n") {
        Ok(()) => out.extend_from_slice(&body),
        Err(_) => out.clear(),
    }
    out
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// A header field. What a header cannot carry (it must be ASCII) makes it empty.
pub fn header(name: &'static str, value: &str) -> Header {
    Header::from_bytes(name, value)
        .or_else(|()| Header::from_bytes(name, ""))
        .expect("the name of a header is an ASCII literal")
}

fn append(out: &mut Vec<u8>, bytes: &[u8], chunked: bool) {
    if chunked {
        out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
    }
    out.extend_from_slice(bytes);
    if chunked {
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends status line and header fields, ended by the empty line. `connection` is empty or a whole line.
///
/// # Errors
/// A status below 200 or above 599, or a header that holds a control character: a handler that lets a client's bytes into
/// a header would otherwise let it write headers and answers of its own.
fn encode_head(
    out: &mut Vec<u8>,
    status: u16,
    headers: &[Header],
    framing: Framing,
    connection: &str,
) -> io::Result<()> {
    let sound = |h: &Header| {
        let name = h.field.as_str().as_str();
        let value = h.value.as_str();
        !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
            && value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
    };
    if !(200..600).contains(&status) || !headers.iter().all(sound) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a handler's status or header cannot be sent"));
    }
    let given = |name: &'static str| headers.iter().any(|h| h.field.equiv(name));
    let reason = StatusCode(status).default_reason_phrase();
    write!(out, "HTTP/1.1 {status} {reason}\r\n")?;
    if !given("Date") {
        field(out, "Date", &http_date(Time::now()));
    }
    for (name, value) in ALWAYS {
        if !given(name) {
            field(out, name, value.as_bytes());
        }
    }
    for (index, header) in headers.iter().enumerate() {
        let is = |name| header.field.equiv(name);
        // A type that is given again replaces the one before.
        let replaced = || is("Content-Type") && headers[index + 1..].iter().any(|h| h.field.equiv("Content-Type"));
        if !(SERVERS_OWN.into_iter().any(is) || replaced()) {
            field(out, header.field.as_str().as_str(), header.value.as_str().as_bytes());
        }
    }
    match framing {
        Framing::Length(n) => write!(out, "Content-Length: {n}\r\n")?,
        Framing::Chunked => field(out, "Transfer-Encoding", b"chunked"),
        Framing::None | Framing::UntilClose => {}
    }
    out.extend_from_slice(connection.as_bytes());
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Of every answer, if its handler does not say otherwise. What a payload printed or wrote comes from our own origin, and would
/// have the viewer's rights if a browser ran it as a page.
const ALWAYS: [(&str, &str); 6] = [
    ("Server", "hackbrain"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
];

/// What a handler has no say in.
const SERVERS_OWN: [&str; 5] = ["Connection", "Content-Length", "Trailer", "Transfer-Encoding", "Upgrade"];

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lines(framing: Framing, headers: &[Header], connection: &str) -> Vec<String> {
        let mut head = Vec::new();
        encode_head(&mut head, 200, headers, framing, connection).unwrap();
        let head = String::from_utf8(head).unwrap();
        let head = head.strip_suffix("\r\n\r\n").unwrap();
        head.split("\r\n").filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect()
    }

    #[test]
    fn framing_and_connection_are_the_servers_and_not_the_handlers() {
        let own: Vec<String> = ALWAYS.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let start: Vec<&str> = std::iter::once("HTTP/1.1 200 OK").chain(own.iter().map(String::as_str)).collect();
        for (framing, connection, rest) in [
            (Framing::None, "", vec![]),
            (Framing::UntilClose, "Connection: close\r\n", vec!["Connection: close"]),
            (Framing::Length(7), "", vec!["Content-Length: 7"]),
            (Framing::Chunked, "Connection: close\r\n", vec!["Transfer-Encoding: chunked", "Connection: close"]),
        ] {
            assert_eq!(lines(framing, &[], connection), [&start[..], &rest[..]].concat());
        }
        let claims = [
            header("content-length", "99"),
            header("Connection", "keep-alive"),
            header("Content-Type", "a/b"),
            header("ETag", "x"),
            header("Transfer-Encoding", "gzip"),
            header("Trailer", "X"),
            header("Upgrade", "h2c"),
            header("content-type", "c/d"),
        ];
        let rest = ["ETag: x", "content-type: c/d", "Content-Length: 7"];
        assert_eq!(lines(Framing::Length(7), &claims, ""), [&start[..], &rest].concat());
        let given = [header("server", "other"), header("Date", "never")];
        let head = lines(Framing::None, &given, "");
        assert_eq!(head[0], "HTTP/1.1 200 OK");
        assert_eq!(head[1..], [&own[1..], &["server: other".to_owned()]].concat());
    }

    #[test]
    fn a_header_cannot_carry_another_one() {
        for (name, value) in [("X", "a\r\nSet-Cookie: b"), ("X", "a\n"), ("X\r\nY", "a"), ("X:", "a"), ("", "a")] {
            let header = Header::from_bytes(name, value).unwrap();
            assert!(encode_head(&mut Vec::new(), 200, &[header], Framing::None, "").is_err(), "{name:?} {value:?}");
        }
        assert!(encode_head(&mut Vec::new(), 101, &[], Framing::None, "").is_err());
    }

    #[test]
    fn a_refusal_is_a_whole_response() {
        let rejection = Rejection::new(503, "busy", "come back");
        let text = String::from_utf8(encode_refusal(&rejection)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\nConnection: close", body.len())), "{head}");
        assert!(head.contains("\r\nContent-Type: application/json\r\n") && head.contains("\r\nRetry-After: 1\r\n"));
        assert_eq!(body.as_bytes(), rejection.to_json());
    }
}
