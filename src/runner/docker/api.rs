//! Short questions to the engine over its unix socket, one connection each: about a millisecond, where a CLI takes twenty and
//! a good part of a core. HTTP/1.0, so that an answer ends with its connection and is never chunked. Paths carry no version:
//! engines drop old ones, and what is read here has not changed since they have had one.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::process::EngineError;

/// Longest head of an answer, bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Longest answer, bytes: the inspection of a container has a few kilobytes.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Header lines of an answer.
const HEADERS_MAX: usize = 64;

/// The engine behind a unix socket.
#[derive(Debug, Clone)]
pub(super) struct Api {
    socket: PathBuf,
}

/// What the engine said to one request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Its body.
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Api {
    /// The engine at `host`, if that names a unix socket.
    pub fn at(host: &str) -> Option<Self> {
        host.strip_prefix("unix://").map(|socket| Self { socket: socket.into() })
    }

    /// Sends one request and reads the answer, all within `timeout`. `path` is absolute, its parts escaped ([`escape`]).
    ///
    /// # Errors
    /// `Unavailable` where no whole answer came.
    pub fn ask(&self, method: &str, path: &str, timeout: Duration) -> Result<Answer, EngineError> {
        exchange(&self.socket, method, path, timeout)
            .map_err(|error| EngineError::Unavailable(format!("{}: {error}", self.socket.display())))
    }
}

impl Answer {
    /// The body of a success; none where the engine knows no such thing.
    ///
    /// # Errors
    /// The engine's own words for any other answer.
    pub fn found(self) -> Result<Option<Vec<u8>>, EngineError> {
        match self.status {
            200..=299 => Ok(Some(self.body)),
            // In the engine's own words, since a proxy has a 404 of its own.
            404 if self.words().to_ascii_lowercase().contains("no such") => Ok(None),
            // A proxy without an engine behind it, or an engine without its containerd.
            502..=504 => Err(EngineError::Unavailable(self.words())),
            _ => Err(EngineError::from_words(&self.words())),
        }
    }

    /// What the engine said instead of doing it.
    pub fn words(&self) -> String {
        match serde_json::from_slice(&self.body) {
            Ok(Refusal { message }) => message,
            Err(_) => format!("the engine answered {}: {}", self.status, String::from_utf8_lossy(&self.body).trim()),
        }
    }
}

/// A part of a path, with all that could mean something else in one escaped. A slash separates the parts of an image's name,
/// and stays.
pub(super) fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' | b':' | b'@' => {
                escaped.push(byte.into())
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn exchange(socket: &Path, method: &str, path: &str, timeout: Duration) -> io::Result<Answer> {
    let deadline = Instant::now() + timeout;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(timeout))?;
    let request = format!("{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\n\r\n");
    // In one piece: an engine that refuses at the first words must not break off the rest.
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    let head = loop {
        if let Some(head) = Head::parse(&bytes)? {
            break head;
        }
        if bytes.len() > HEAD_BYTES_MAX || read_some(&mut stream, &mut buffer, &mut bytes, deadline)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ended in its head"));
        }
    };
    // A peer that says how long its answer is keeps the connection open at its own discretion.
    let whole = |bytes: &[u8]| head.length.is_some_and(|length| bytes.len() - head.bytes >= length);
    while !whole(&bytes) && bytes.len() as u64 <= ANSWER_BYTES_MAX {
        if read_some(&mut stream, &mut buffer, &mut bytes, deadline)? == 0 {
            break;
        }
    }
    if bytes.len() as u64 > ANSWER_BYTES_MAX || head.length.is_some() && !whole(&bytes) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut off, or too long"));
    }
    Ok(Answer { status: head.status, body: bytes.split_off(head.bytes) })
}

struct Head {
    status: u16,
    /// Of the head itself.
    bytes: usize,
    /// Of the body, where it is told.
    length: Option<usize>,
}

impl Head {
    /// `None` while it is not whole.
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut answer = httparse::Response::new(&mut headers);
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        match answer.parse(bytes).map_err(|error| invalid(format!("no HTTP: {error}")))? {
            httparse::Status::Partial => Ok(None),
            httparse::Status::Complete(length) => {
                let named = |name: &str| answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                if named("transfer-encoding").is_some() {
                    return Err(invalid("a transfer coding in an answer to HTTP/1.0".into()));
                }
                Ok(Some(Self {
                    status: answer.code.unwrap_or(0),
                    bytes: length,
                    length: named("content-length")
                        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok()),
                }))
            }
        }
    }
}

fn read_some(stream: &mut UnixStream, buffer: &mut [u8], bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // One that sends a byte now and then must not hold the caller beyond its deadline.
        stream.set_read_timeout(Some(left))?;
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            outcome => return outcome.inspect(|length| bytes.extend_from_slice(&buffer[..*length])),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    /// What a client makes of an engine that says `parts`, with a pause before each.
    fn said(parts: &'static [&'static str], pause: Duration, timeout: Duration) -> Result<Answer, EngineError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("hb-api-{}-{number}.sock", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let api = Api::at(&format!("unix://{}", path.display())).unwrap();
        let engine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 512]).unwrap() > 0);
            for part in parts {
                thread::sleep(pause);
                // The client may have had enough.
                drop(stream.write_all(part.as_bytes()));
            }
        });
        let answer = api.ask("GET", "/x", timeout);
        engine.join().unwrap();
        std::fs::remove_file(path).unwrap();
        answer
    }

    #[test]
    fn answers_are_whole_or_none() {
        let soon = Duration::from_secs(10);
        let quick = Duration::ZERO;
        let ok = said(&["HTTP/1.0 200 OK\r\n", "A: b\r\n\r\n{", "}"], quick, soon).unwrap();
        assert_eq!((ok.status, ok.body.as_slice()), (200, &b"{}"[..]));
        let told = said(&["HTTP/1.1 409 no\r\nContent-Length: 15\r\n\r\n{\"message\":\"m\"}"], quick, soon).unwrap();
        assert_eq!((told.status, told.words().as_str()), (409, "m"));
        let absent = "HTTP/1.0 404 no\r\n\r\n{\"message\":\"No such container: x\"}";
        assert_eq!(said(Box::leak(Box::new([absent])), quick, soon).unwrap().found(), Ok(None));
        let proxy = said(&["HTTP/1.0 404 no\r\n\r\npage not found"], quick, soon).unwrap();
        assert!(matches!(proxy.found(), Err(EngineError::Other(_))));
        let behind = said(&["HTTP/1.0 502 no\r\n\r\nbad gateway"], quick, soon).unwrap();
        assert!(matches!(behind.found(), Err(EngineError::Unavailable(_))));
        assert!(matches!(
            said(&["HTTP/1.0 500 no\r\n\r\nhm"], quick, soon).unwrap().found(),
            Err(EngineError::Other(_))
        ));
        let parts: [&'static [&'static str]; 5] = [
            &[],
            &["HTTP/1.0 200 OK\r\n"],
            &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"],
            &["HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
            &["what?\r\n\r\n"],
        ];
        for cut in parts {
            assert!(matches!(said(cut, quick, soon), Err(EngineError::Unavailable(_))), "{cut:?}");
        }
        let drip: &'static [&'static str] = &["H", "T", "T", "P", "/", "1", ".", "0", " ", "2", "0", "0", "\r\n\r\n"];
        assert!(said(drip, Duration::from_millis(50), Duration::from_millis(200)).is_err(), "the deadline is absolute");
        let nobody = Api::at("unix:///nonexistent.sock").unwrap().ask("GET", "/x", soon);
        assert!(matches!(nobody, Err(EngineError::Unavailable(_))));
        assert!(Api::at("tcp://127.0.0.1:1").is_none());
    }

    #[test]
    fn parts_of_a_path_stay_parts() {
        assert_eq!(escape("a/b:1@sha256:0_x-y.z"), "a/b:1@sha256:0_x-y.z");
        assert_eq!(escape("a?b#c d%\r\n"), "a%3Fb%23c%20d%25%0D%0A");
    }
}
