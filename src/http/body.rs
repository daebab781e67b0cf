//! The chunked transfer coding, decoded over slices. Pure.
//!
//! Everything that has no length of its own is bounded: size lines, extensions (ignored) and trailers (dropped).

use super::request::body_too_large;
use crate::rejection::Rejection;

/// Longest chunk-size line, extensions included, in bytes without its CRLF.
pub const MAX_SIZE_LINE: usize = 256;
/// Longest trailer section in bytes.
pub const MAX_TRAILERS: usize = 4096;

/// Decodes one chunked body, piece by piece.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
    max_body: usize,
    trailers: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size,
    Data(usize),
    DataEnd,
    Trailers,
    Done,
}

impl ChunkDecoder {
    /// A decoder for a body of at most `max_body` bytes after decoding.
    pub fn new(max_body: usize) -> Self {
        Self { state: State::Size, max_body, trailers: 0 }
    }

    /// Whether the last chunk and its trailers have been taken; what follows belongs to the next request.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Appends what `input` holds to `body` and returns the number of bytes taken. Bytes not taken must be offered
    /// again, with more behind them. At most [`MAX_TRAILERS`] + 2 bytes are ever left waiting.
    ///
    /// # Errors
    /// 400 malformed, 413 over the body limit: refused at the size line, before the data.
    pub fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<usize, Rejection> {
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            match self.state {
                State::Size => {
                    let Some(line) = line(rest, MAX_SIZE_LINE)? else { return Ok(taken) };
                    taken += line.len() + 2;
                    self.state = match chunk_size(line, self.max_body)? {
                        0 => State::Trailers,
                        n if n > self.max_body - body.len() => return Err(body_too_large(self.max_body)),
                        n => State::Data(n),
                    };
                }
                State::Data(left) => {
                    let n = left.min(rest.len());
                    body.extend_from_slice(&rest[..n]);
                    taken += n;
                    if n < left {
                        self.state = State::Data(left - n);
                        return Ok(taken);
                    }
                    self.state = State::DataEnd;
                }
                State::DataEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        taken += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(taken),
                    _ => return Err(bad_chunk("a chunk is longer than its size line says")),
                },
                State::Trailers => {
                    let Some(line) = line(rest, MAX_TRAILERS - self.trailers)? else { return Ok(taken) };
                    taken += line.len() + 2;
                    // The two bytes of each line end count too, or empty names could go on for ever.
                    self.trailers = (self.trailers + line.len() + 2).min(MAX_TRAILERS);
                    match line {
                        [] => self.state = State::Done,
                        _ if is_field(line) => {}
                        _ => return Err(bad_chunk("a trailer is malformed")),
                    }
                }
                State::Done => return Ok(taken),
            }
        }
    }
}

fn bad_chunk(message: &str) -> Rejection {
    Rejection::new(400, "bad_chunk", message).field("transfer-encoding")
}

/// The line at the front, without its CRLF; `None` while its end has not arrived.
fn line(input: &[u8], max: usize) -> Result<Option<&[u8]>, Rejection> {
    let window = &input[..input.len().min(max + 2)];
    match window.iter().position(|&b| b == b'\r' || b == b'\n') {
        Some(at) if window[at] == b'\r' && window.get(at + 1) == Some(&b'\n') => Ok(Some(&window[..at])),
        Some(at) if window[at] == b'\r' && at + 1 == input.len() && at <= max => Ok(None),
        None if window.len() < max + 2 => Ok(None),
        None => Err(bad_chunk("a chunk-size line or the trailers are too long")),
        Some(_) => Err(bad_chunk("a line of the chunked body does not end in CRLF")),
    }
}

fn chunk_size(line: &[u8], max_body: usize) -> Result<usize, Rejection> {
    let end = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let extension_sound = match extension {
        [] => true,
        [b';', rest @ ..] => rest.iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f)),
        _ => false,
    };
    if digits.is_empty() || !extension_sound {
        return Err(bad_chunk("a chunk size must be hex digits alone"));
    }
    // Digits by the hundred are legal and may all be zeros; what does not fit 64 bits is simply too large.
    let mut size: u64 = 0;
    for &digit in digits {
        let digit = (digit as char).to_digit(16).map_or(0, u64::from);
        size = size.checked_mul(16).map(|n| n + digit).ok_or_else(|| body_too_large(max_body))?;
    }
    usize::try_from(size).map_err(|_| body_too_large(max_body))
}

fn is_field(line: &[u8]) -> bool {
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    match line.iter().position(|&b| b == b':') {
        None | Some(0) => false,
        Some(at) => line[..at].iter().all(token) && line[at..].iter().all(|&b| b == b'\t' || (b >= b' ' && b != 0x7f)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Decodes with the input cut into pieces of `step` bytes; gives body, bytes taken and whether it is done.
    fn run(input: &[u8], step: usize, max_body: usize) -> Result<(Vec<u8>, usize, bool), u16> {
        let (mut decoder, mut body, mut taken, mut end) = (ChunkDecoder::new(max_body), Vec::new(), 0, 0);
        while end < input.len() && !decoder.is_done() {
            end = (end + step).min(input.len());
            taken += decoder.decode(&input[taken..end], &mut body).map_err(|r| r.status)?;
        }
        Ok((body, taken, decoder.is_done()))
    }

    #[test]
    fn table() {
        let long_line = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_SIZE_LINE - 2));
        let too_long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(MAX_SIZE_LINE - 1));
        let zeros = format!("{}1\r\na\r\n0\r\n\r\n", "0".repeat(200));
        let trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(MAX_TRAILERS / 6 + 2));
        let endless = format!("0\r\nA: {}", "b".repeat(MAX_TRAILERS));
        let rows: &[(&str, Result<&str, u16>)] = &[
            ("0\r\n\r\n", Ok("")),
            ("3\r\nabc\r\n0\r\n\r\n", Ok("abc")),
            ("3;x=\"y\"\r\nabc\r\n0A\r\n0123456789\r\n000\r\nT: u\r\n\r\n", Ok("abc0123456789")),
            (&long_line, Ok("a")),
            (&zeros, Ok("a")),
            (&too_long, Err(400)),
            (&trailers, Err(400)),
            (&endless, Err(400)),
            ("3\r\nabcd\r\n0\r\n\r\n", Err(400)),
            ("3\r\nab\r\n0\r\n\r\n", Err(400)),
            ("3\nabc\n0\n\n", Err(400)),
            ("3\r\r\nabc\r\n", Err(400)),
            ("\r\nabc", Err(400)),
            ("-3\r\nabc\r\n", Err(400)),
            ("+3\r\nabc\r\n", Err(400)),
            ("0x3\r\nabc\r\n", Err(400)),
            ("3 \r\nabc\r\n", Err(400)),
            (" 3\r\nabc\r\n", Err(400)),
            ("3;\0\r\nabc\r\n", Err(400)),
            ("zz\r\n", Err(400)),
            ("0\r\nGET / HTTP/1.1\r\n\r\n", Err(400)),
            ("0\r\n: b\r\n\r\n", Err(400)),
            ("0\r\nA : b\r\n\r\n", Err(400)),
            ("11\r\n0123456789abcdef0\r\n0\r\n\r\n", Err(413)),
            ("8\r\n01234567\r\n9\r\n012345678\r\n0\r\n\r\n", Err(413)),
            ("ffffffffffffffff\r\n", Err(413)),
            ("fffffffffffffffff\r\n", Err(413)),
        ];
        for (input, expected) in rows {
            for step in [1, 2, 3, 7, input.len()] {
                let got = run(input.as_bytes(), step, 16).map(|(body, _, done)| {
                    assert!(done, "{input:?} by {step}");
                    String::from_utf8(body).unwrap()
                });
                let name = &input[..input.len().min(80)];
                assert_eq!(got.as_deref().map_err(|s| *s), *expected, "{name:?} by {step}");
            }
        }
    }

    #[test]
    fn leaves_the_next_request_alone() {
        let input = b"3\r\nabc\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        for step in 1..=input.len() {
            assert_eq!(run(input, step, 16).unwrap(), (b"abc".to_vec(), 13, true), "by {step}");
        }
    }
}
