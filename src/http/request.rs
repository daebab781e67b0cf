//! Bytes to [`Request`]: the head, and how its body is framed. Pure.
//!
//! Stricter than RFC 9112 wherever leniency lets two parsers disagree on where a request ends (request smuggling): bare
//! line feeds, obsolete folding, lists or signs in `Content-Length`, and a length beside a transfer coding are refused.

use crate::rejection::Rejection;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::str::FromStr;
use std::sync::Weak;
use tiny_http::Method;

/// Most header fields in a head.
pub const MAX_HEADERS: usize = 64;
/// Most `key=value` pairs in a query. Bounds what a 16 KiB head can make us allocate.
pub const MAX_QUERY_PAIRS: usize = 64;

/// A request whose head and body have arrived whole.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method; names are upper case, as sent.
    pub method: Method,
    /// Percent-decoded path, no NUL; starts with `/`, or is `*` for `OPTIONS *`. Dot segments are left as sent, and
    /// what is not UTF-8 is U+FFFD: see [`Request::path_bytes`].
    pub path: String,
    /// The path as sent, ASCII, without the query. Tells an encoded slash from a separator.
    pub raw_path: String,
    /// Decoded query pairs in order; a key without `=` has an empty value.
    pub query: Vec<(String, String)>,
    /// Header fields in order, names in lower case, values without surrounding white space.
    pub headers: Vec<(String, String)>,
    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub minor_version: u8,
    /// The body, after transfer decoding; empty where there is none.
    pub body: Vec<u8>,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Its connection, where there is one.
    pub(super) socket: Weak<TcpStream>,
}

impl Request {
    /// The `Range` field; of GET only, since it has no meaning elsewhere (RFC 9110 §14.2).
    pub fn range(&self) -> Option<&str> {
        self.header("range").filter(|_| self.method == Method::Get)
    }

    /// The first value of a header. `lower_name` is in lower case.
    pub fn header(&self, lower_name: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == lower_name).map(|(_, value)| value.as_str())
    }

    /// Every value of a header, in order. `lower_name` is in lower case.
    pub fn header_values<'a>(&'a self, lower_name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(name, _)| name == lower_name).map(|(_, value)| value.as_str())
    }

    /// The bytes of the percent-decoded path.
    pub fn path_bytes(&self) -> Vec<u8> {
        decode_bytes(&self.raw_path, false).unwrap_or_default()
    }

    /// Looks, without waiting, whether the peer has closed or reset the connection. Ask before work that takes long.
    pub fn peer_gone(&self) -> bool {
        let Some(socket) = self.socket.upgrade() else { return false };
        if socket.set_nonblocking(true).is_err() {
            return true;
        }
        // What it has sent already is its next request, and stays where it is.
        let gone = match socket.peek(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        socket.set_nonblocking(false).is_err() || gone
    }

    /// Whether the client wants the connection kept: the default of HTTP/1.1, an option of HTTP/1.0.
    pub fn keep_alive(&self) -> bool {
        let asks = |wanted: &str| {
            self.header_values("connection").flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(wanted))
        };
        !asks("close") && (self.minor_version >= 1 || asks("keep-alive"))
    }
}

/// How the body that follows a head is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// Exactly this many bytes, at least 1 and at most the body limit.
    Length(usize),
    /// Chunked transfer coding.
    Chunked,
}

/// A parsed head.
#[derive(Debug, Clone)]
pub struct Head {
    /// The request, its body still empty.
    pub request: Request,
    /// How the body is delimited.
    pub framing: Framing,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Bytes of the input that the head took, its last empty line included.
    pub consumed: usize,
}

/// Finds and parses one head in a buffer that grows. Each byte is looked at once until the head is whole, so a client
/// that sends byte by byte costs no more than one that sends all.
#[derive(Debug)]
pub struct HeadParser {
    max_head: usize,
    max_body: usize,
    scanned: usize,
    line_start: usize,
    /// Length of the empty line before the request line: RFC 9112 §2.2 wants one tolerated.
    skip: usize,
}

impl HeadParser {
    /// A parser for one head of at most `max_head` bytes, whose body may be at most `max_body` bytes.
    pub fn new(max_head: usize, max_body: usize) -> Self {
        Self { max_head, max_body, scanned: 0, line_start: 0, skip: 0 }
    }

    /// Looks at all that has arrived so far, `input`, which begins with the bytes of the call before. `None`: more is
    /// needed.
    ///
    /// # Errors
    /// 400 malformed, 411 a POST without length, 413 the body is over the limit, 417 an unknown `Expect`, 431 the head
    /// is over its limit, 501 a transfer coding other than chunked, 505 neither HTTP/1.0 nor 1.1. After an error the
    /// position of the next request is unknown: the connection must be closed.
    pub fn feed(&mut self, input: &[u8], remote: SocketAddr) -> Result<Option<Head>, Rejection> {
        match self.end_of_head(input)? {
            Some(end) => self.parse(&input[self.skip..end], remote).map(|head| Some(Head { consumed: end, ..head })),
            None if input.len() >= self.max_head => Err(self.head_too_large()),
            None => Ok(None),
        }
    }

    fn end_of_head(&mut self, input: &[u8]) -> Result<Option<usize>, Rejection> {
        while let Some(&byte) = input.get(self.scanned) {
            let at = self.scanned;
            self.scanned += 1;
            if at == self.skip && !(byte.is_ascii_uppercase() || (byte == b'\r' && self.skip == 0)) {
                return Err(bad_request("the request must begin with a method in upper case, over plain HTTP"));
            }
            if byte != b'\n' {
                continue;
            }
            if at == self.line_start || input[at - 1] != b'\r' {
                return Err(bad_request("a line ends in LF alone; end every line with CRLF"));
            }
            let empty = at - 1 == self.line_start;
            self.line_start = at + 1;
            match (empty, at) {
                (true, 1) => self.skip = 2,
                (true, _) if at + 1 > self.max_head => return Err(self.head_too_large()),
                (true, _) => return Ok(Some(at + 1)),
                (false, _) => {}
            }
        }
        Ok(None)
    }

    fn head_too_large(&self) -> Rejection {
        let message = format!("the request head is over {} bytes or {MAX_HEADERS} fields; send less", self.max_head);
        Rejection::new(431, "head_too_large", message)
    }

    fn parse(&self, head: &[u8], remote: SocketAddr) -> Result<Head, Rejection> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut fields);
        match parsed.parse(head) {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            // The end was found by our own scan; a parser that finds another one is a disagreement to refuse.
            Ok(_) => return Err(bad_request("the head is malformed")),
            Err(httparse::Error::TooManyHeaders) => return Err(self.head_too_large()),
            Err(httparse::Error::Version) if names_http_version(head) => {
                return Err(Rejection::new(505, "version_not_supported", "use HTTP/1.1 or HTTP/1.0"));
            }
            Err(e) => return Err(bad_request(&format!("the head is malformed: {e}"))),
        }
        let (Some(method), Some(target), Some(minor_version)) = (parsed.method, parsed.path, parsed.version) else {
            return Err(bad_request("the request line is incomplete"));
        };
        if !method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err(bad_request("the method must be in upper case"));
        }
        let method = Method::from_str(method).map_err(|()| bad_request("the method is malformed"))?;
        let headers = parsed.headers.iter().map(header).collect::<Result<Vec<_>, _>>()?;
        let host = host(&headers, minor_version)?;
        let (raw_path, raw_query) = split_target(target, &method, host)?;
        let path = String::from_utf8_lossy(&decode_bytes(raw_path, false)?).into_owned();
        let query = parse_query(raw_query)?;
        let framing = framing(&method, &headers, minor_version, self.max_body)?;
        let expect_continue = expect_continue(&headers, minor_version)?;
        let raw_path = raw_path.to_owned();
        let request = Request {
            method,
            path,
            raw_path,
            query,
            headers,
            minor_version,
            body: Vec::new(),
            remote,
            socket: Weak::new(),
        };
        Ok(Head { request, framing, expect_continue, consumed: head.len() })
    }
}

pub(super) fn body_too_large(max_body: usize) -> Rejection {
    Rejection::new(413, "body_too_large", format!("the body is over {max_body} bytes; send less"))
}

fn bad_request(message: &str) -> Rejection {
    Rejection::new(400, "bad_request", message)
}

fn bad_target(message: &str) -> Rejection {
    Rejection::new(400, "bad_target", message)
}

fn bad_framing(field: &str, message: &str) -> Rejection {
    Rejection::new(400, "bad_framing", message).field(field)
}

fn names_http_version(head: &[u8]) -> bool {
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let word = line.rsplit(|&b| b == b' ').next().unwrap_or_default();
    matches!(word, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit())
}

fn header(field: &httparse::Header<'_>) -> Result<(String, String), Rejection> {
    let name = field.name.to_ascii_lowercase();
    match std::str::from_utf8(field.value) {
        Ok(value) => Ok((name, value.trim_matches([' ', '\t']).to_owned())),
        Err(_) => Err(Rejection::new(400, "bad_header", "the header's value is not UTF-8").field(name)),
    }
}

fn values<'a>(headers: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
}

fn host(headers: &[(String, String)], minor_version: u8) -> Result<Option<&str>, Rejection> {
    let bad = |message: &str| Err(Rejection::new(400, "bad_host", message).field("host"));
    let mut hosts = values(headers, "host");
    let host = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return bad("send exactly one Host header"),
        (None, None) if minor_version >= 1 => return bad("HTTP/1.1 needs a Host header"),
        (None, None) => return Ok(None),
        (Some(host), None) => host,
    };
    // Only what a registered name, an address and a port are made of; `/`, `@` or `,` would split readers' opinions.
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(&b)) {
        return bad("the Host header must be a name or an address, with a port at most");
    }
    Ok(Some(host))
}

/// Splits the request target into path and query. The absolute form is for proxies, yet RFC 9112 §3.2.2 wants servers
/// to take it; it must agree with Host, or a check of Host would guard another site than the one addressed.
fn split_target<'a>(target: &'a str, method: &Method, host: Option<&str>) -> Result<(&'a str, &'a str), Rejection> {
    if !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(bad_target("the request target must be percent-encoded ASCII without a fragment"));
    }
    if target == "*" && *method == Method::Options {
        return Ok((target, ""));
    }
    let mut rest = target;
    let scheme_end =
        target.find("://").filter(|&n| ["http", "https"].iter().any(|s| target[..n].eq_ignore_ascii_case(s)));
    if let Some(n) = scheme_end {
        let after = &target[n + 3..];
        let (authority, tail) = after.split_at(after.find(['/', '?']).unwrap_or(after.len()));
        if authority.is_empty() || host.is_some_and(|h| !h.eq_ignore_ascii_case(authority)) {
            return Err(bad_target("the target names another host than the Host header"));
        }
        rest = tail;
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    match path {
        "" if scheme_end.is_some() => Ok(("/", query)),
        _ if path.starts_with('/') => Ok((path, query)),
        _ => Err(bad_target("the request target must begin with /")),
    }
}

fn parse_query(raw: &str) -> Result<Vec<(String, String)>, Rejection> {
    let mut pairs = Vec::new();
    for piece in raw.split('&').filter(|piece| !piece.is_empty()) {
        if pairs.len() == MAX_QUERY_PAIRS {
            return Err(bad_target(&format!("the query has more than {MAX_QUERY_PAIRS} parameters")));
        }
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        pairs.push((percent_decode(key, true)?, percent_decode(value, true)?));
    }
    Ok(pairs)
}

fn percent_decode(raw: &str, plus_is_space: bool) -> Result<String, Rejection> {
    String::from_utf8(decode_bytes(raw, plus_is_space)?).map_err(|_| not_utf8())
}

/// What is said of a path or a query that must be text, and is not.
pub(super) fn not_utf8() -> Rejection {
    bad_target("the target does not decode to UTF-8")
}

/// Decodes `%XX`. Refuses NUL, which no path and no name may hold.
pub(super) fn decode_bytes(raw: &str, plus_is_space: bool) -> Result<Vec<u8>, Rejection> {
    let hex = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16)).map(|d| d as u8);
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => match (hex(bytes.next()), hex(bytes.next())) {
                (Some(high), Some(low)) => high << 4 | low,
                _ => return Err(bad_target("a % in the target is not followed by two hex digits")),
            },
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    if out.contains(&0) {
        return Err(bad_target("the target contains a NUL byte"));
    }
    Ok(out)
}

fn framing(
    method: &Method,
    headers: &[(String, String)],
    minor_version: u8,
    max_body: usize,
) -> Result<Framing, Rejection> {
    let length = content_length(headers)?;
    let mut codings = values(headers, "transfer-encoding");
    if let Some(coding) = codings.next() {
        if length.is_some() {
            return Err(bad_framing("content-length", "send Content-Length or Transfer-Encoding, not both"));
        }
        if minor_version == 0 {
            return Err(bad_framing("transfer-encoding", "HTTP/1.0 has no transfer codings; send Content-Length"));
        }
        if codings.next().is_some() || !coding.eq_ignore_ascii_case("chunked") {
            let message = "the only transfer coding taken is a single chunked";
            return Err(Rejection::new(501, "coding_not_supported", message).field("transfer-encoding"));
        }
        return Ok(Framing::Chunked);
    }
    match length {
        None if matches!(method, Method::Post | Method::Put | Method::Patch) => {
            let message = "send Content-Length (0 for an empty body) or Transfer-Encoding: chunked";
            Err(Rejection::new(411, "length_required", message).field("content-length"))
        }
        None | Some(0) => Ok(Framing::None),
        Some(n) => match usize::try_from(n) {
            Ok(n) if n <= max_body => Ok(Framing::Length(n)),
            _ => Err(body_too_large(max_body)),
        },
    }
}

/// The declared length; one too large for 64 bits counts as the largest, so that it is answered 413.
fn content_length(headers: &[(String, String)]) -> Result<Option<u64>, Rejection> {
    let mut length = None;
    for value in values(headers, "content-length") {
        if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad_framing("content-length", "Content-Length must be decimal digits alone"));
        }
        let n = value.parse().unwrap_or(u64::MAX);
        if length.is_some_and(|before| before != n) {
            return Err(bad_framing("content-length", "two Content-Length headers disagree"));
        }
        length = Some(n);
    }
    Ok(length)
}

fn expect_continue(headers: &[(String, String)], minor_version: u8) -> Result<bool, Rejection> {
    let mut expected = false;
    for value in values(headers, "expect") {
        if !value.eq_ignore_ascii_case("100-continue") {
            let message = "the only expectation known is 100-continue";
            return Err(Rejection::new(417, "expectation_failed", message).field("expect"));
        }
        expected = true;
    }
    Ok(expected && minor_version >= 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MAX_HEAD: usize = 16 * 1024;
    const MAX_BODY: usize = 1024 * 1024;

    fn parse(bytes: &[u8]) -> Result<Option<Head>, Rejection> {
        HeadParser::new(MAX_HEAD, MAX_BODY).feed(bytes, SocketAddr::from(([127, 0, 0, 1], 9)))
    }

    fn target(target: &str) -> Result<Request, u16> {
        let head = parse(format!("GET {target} HTTP/1.1\r\nHost: a:1\r\n\r\n").as_bytes());
        head.map(|h| h.unwrap().request).map_err(|r| r.status)
    }

    #[test]
    fn statuses_and_framing() {
        let many = "X: y\r\n".repeat(MAX_HEADERS);
        let rows: &[(&str, Result<Framing, u16>)] = &[
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Framing::None)),
            ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(Framing::None)),
            ("GET / HTTP/1.0\r\n\r\n", Ok(Framing::None)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", Ok(Framing::Length(5))),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 05\r\n\r\n", Ok(Framing::Length(5))),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n", Ok(Framing::Length(MAX_BODY))),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Ok(Framing::Chunked)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", Err(413)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1152921504606846976\r\n\r\n", Err(413)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", Err(413)),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", Err(411)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(400)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Err(501)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Err(501)),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", Err(501)),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 200-ok\r\n\r\n", Err(417)),
            ("GET / HTTP/1.1\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Err(400)),
            ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\nHost: a\n\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n folded\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", Err(400)),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("GET /\r\nHost: a\r\n\r\n", Err(400)),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Err(400)),
            ("GET / FTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("get / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("GeT / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(400)),
            ("\n", Err(400)),
            ("\x16\x03\x01", Err(400)),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Err(505)),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Err(505)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(505)),
            (&format!("GET / HTTP/1.0\r\n{many}\r\n"), Ok(Framing::None)),
            (&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), Err(431)),
            (&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD)), Err(431)),
            (&"G".repeat(MAX_HEAD), Err(431)),
        ];
        for (bytes, expected) in rows {
            let got = parse(bytes.as_bytes()).map(|head| head.unwrap().framing).map_err(|r| r.status);
            assert_eq!(got, *expected, "{:?}", &bytes[..bytes.len().min(120)]);
        }
    }

    #[test]
    fn every_split_gives_the_same_head() {
        let bytes =
            b"\r\nPOST /a%20b?x=1&y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\nabcGET";
        let mut parser = HeadParser::new(MAX_HEAD, MAX_BODY);
        let remote = SocketAddr::from(([127, 0, 0, 1], 9));
        let end = bytes.len() - "abcGET".len();
        for n in 0..end {
            assert!(parser.feed(&bytes[..n], remote).unwrap().is_none(), "whole after {n} bytes");
        }
        let head = parser.feed(bytes, remote).unwrap().unwrap();
        assert_eq!((head.consumed, head.framing, head.expect_continue), (end, Framing::Length(3), true));
        assert_eq!((head.request.path.as_str(), head.request.raw_path.as_str()), ("/a b", "/a%20b"));
        assert_eq!(head.request.query, [("x".into(), "1".into()), ("y".into(), String::new())]);
        assert_eq!(head.request.header("host"), Some("a"));
    }

    #[test]
    fn a_head_of_exactly_the_limit_passes_and_one_more_byte_does_not() {
        let head = |n: usize| format!("GET / HTTP/1.0\r\nX: {}\r\n\r\n", "x".repeat(n - 23));
        assert_eq!(head(MAX_HEAD).len(), MAX_HEAD);
        assert!(parse(head(MAX_HEAD).as_bytes()).unwrap().is_some());
        assert_eq!(parse(head(MAX_HEAD + 1).as_bytes()).unwrap_err().status, 431);
    }

    #[test]
    fn targets() {
        for (raw, path) in [
            ("/", "/"),
            ("/%c3%a9", "/é"),
            ("/a+b", "/a+b"),
            ("/a%2Fb", "/a/b"),
            ("http://a:1", "/"),
            ("HTTP://A:1/x?y", "/x"),
            ("http://a:1?y", "/"),
        ] {
            assert_eq!(target(raw).unwrap().path, path, "{raw}");
        }
        let bytes = target("/%ff%C3%a9%0a%25").unwrap();
        assert_eq!((bytes.path.as_str(), bytes.path_bytes()), ("/\u{fffd}é\n%", b"/\xff\xc3\xa9\n%".to_vec()));
        for raw in
            ["x", "*", "/%", "/%4", "/%zz", "/%+1", "/%00", "/?%ff", "/é", "/#f", "http://b/", "http:///", "ftp://a:1/"]
        {
            assert_eq!(target(raw).unwrap_err(), 400, "{raw}");
        }
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(target("/?a=b+c%2b&&d=e=f").unwrap().query, [pair("a", "b c+"), pair("d", "e=f")]);
        assert_eq!(target(&format!("/?{}", "a&".repeat(MAX_QUERY_PAIRS))).unwrap().query.len(), MAX_QUERY_PAIRS);
        assert_eq!(target(&format!("/?{}", "a&".repeat(MAX_QUERY_PAIRS + 1))).unwrap_err(), 400);
        assert_eq!(parse(b"OPTIONS * HTTP/1.0\r\n\r\n").unwrap().unwrap().request.path, "*");
    }

    #[test]
    fn a_peer_that_left_is_noticed_and_one_that_asks_more_is_not_gone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = std::sync::Arc::new(listener.accept().unwrap().0);
        let mut request = target("/").unwrap();
        assert!(!request.peer_gone(), "there is no connection to look at");
        request.socket = std::sync::Arc::downgrade(&socket);
        assert!(!request.peer_gone());
        std::io::Write::write_all(&mut client, b"x").unwrap();
        assert_eq!(socket.peek(&mut [0]).unwrap(), 1);
        assert!(!request.peer_gone());
        std::io::Read::read_exact(&mut &*socket, &mut [0]).unwrap();
        drop(client);
        assert_eq!(socket.peek(&mut [0]).unwrap(), 0, "the end has arrived");
        assert!(request.peer_gone());
    }

    #[test]
    fn keep_alive_follows_version_and_header() {
        for (version, connection, kept) in [
            (1, "", true),
            (1, "close", false),
            (1, "Keep-Alive, CLOSE", false),
            (0, "", false),
            (0, "Keep-Alive", true),
            (0, "keep-alive, close", false),
        ] {
            let bytes = format!("GET / HTTP/1.{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
            let request = parse(bytes.as_bytes()).unwrap().unwrap().request;
            assert_eq!(request.keep_alive(), kept, "1.{version} {connection:?}");
        }
    }
}
