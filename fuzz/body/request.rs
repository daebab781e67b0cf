//! Any bytes as a request: however they are cut, the same is read; what is accepted, a second and lenient reader frames alike.

use std::net::SocketAddr;

use hackbrain::http::body::{ChunkDecoder, MAX_SIZE_LINE};
use hackbrain::http::request::{Framing, Head, HeadParser, MAX_HEADERS};
use hackbrain::rejection::Rejection;

/// Small, so that every limit is met by short inputs.
const MAX_HEAD: usize = 1024;
const MAX_BODY: usize = 512;
const REMOTE: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

type Outcome<T> = Result<T, (u16, &'static str)>;

pub fn run(data: &[u8]) {
    head(data);
    let whole = decode(data, &[usize::MAX]);
    for steps in [&[1][..], &steps(data)] {
        assert_eq!(decode(data, steps), whole, "cut another way, the chunked body reads otherwise");
    }
    if let Ok((body, taken, true)) = &whole {
        assert_eq!(plainly_decoded(&data[..*taken]), *body);
    }
    round_trip(data);
}

fn head(data: &[u8]) {
    let remote = SocketAddr::from(REMOTE);
    let refused = |rejection: Rejection| (rejection.status, rejection.code);
    let whole = HeadParser::new(MAX_HEAD, MAX_BODY).feed(data, remote).map_err(refused);
    let mut parser = HeadParser::new(MAX_HEAD, MAX_BODY);
    let mut piecewise = Ok(None);
    for end in 0..=data.len() {
        piecewise = parser.feed(&data[..end], remote).map_err(refused);
        if !matches!(piecewise, Ok(None)) {
            break;
        }
    }
    let told = |outcome: &Outcome<Option<Head>>| format!("{outcome:?}");
    // Beyond the limit, what is wrong besides is seen only by who has it all.
    if data.len() < MAX_HEAD || whole.is_ok() {
        assert_eq!(told(&piecewise), told(&whole), "byte by byte, the head reads otherwise");
    }
    assert_eq!(piecewise.is_ok(), whole.is_ok());
    if let Ok(Some(head)) = whole {
        accepted(&head, &data[..head.consumed]);
    }
}

fn accepted(head: &Head, bytes: &[u8]) {
    let request = &head.request;
    assert!(bytes.len() <= MAX_HEAD && bytes.ends_with(b"\r\n\r\n"));
    assert!(request.path.starts_with('/') || (request.path == "*" && request.method.as_str() == "OPTIONS"));
    assert!(!request.path.contains('\0') && !request.path_bytes().contains(&0));
    assert!(request.raw_path.bytes().all(|b| b.is_ascii_graphic() && b != b'?' && b != b'#'));
    assert!(request.query.iter().all(|(key, value)| !key.contains('\0') && !value.contains('\0')));
    assert!(request.body.is_empty() && request.headers.len() <= MAX_HEADERS && request.minor_version <= 1);
    for (name, value) in &request.headers {
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        assert!(!name.is_empty() && name.bytes().all(|b| is_token(b) && !b.is_ascii_uppercase()), "{name:?}");
        assert!(!value.contains(['\r', '\n', '\0']) && value.trim_matches([' ', '\t']) == value, "{value:?}");
    }
    let hosts = request.header_values("host").count();
    assert!(hosts == 1 || (hosts == 0 && request.minor_version == 0));
    let method = request.method.as_str();
    assert_eq!(head.framing, lenient_framing(bytes, method), "{:?}", String::from_utf8_lossy(bytes));
}

/// How a reader frames the body that lets pass all that ours refuses: bare line feeds, space before the colon, lists.
/// Whatever would let it come to two answers must not have been accepted.
fn lenient_framing(bytes: &[u8], method: &str) -> Framing {
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    let mut lines = bytes.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.by_ref().find(|line| !line.is_empty()).unwrap();
    assert_eq!(first.split(|b| *b == b' ').count(), 3, "a request line of other than three words");
    for line in lines.take_while(|line| !line.is_empty()) {
        assert!(!line.starts_with(b" ") && !line.starts_with(b"\t"), "a folded line");
        assert!(!line.contains(&b'\r') && !line.contains(&0), "a stray control");
        let colon = line.iter().position(|b| *b == b':').expect("a line without colon");
        let name = String::from_utf8_lossy(&line[..colon]).trim().to_lowercase();
        let value = String::from_utf8_lossy(&line[colon + 1..]).into_owned();
        let values = value.split(',').map(|one| one.trim().to_lowercase());
        match name.as_str() {
            "content-length" => lengths.extend(values),
            "transfer-encoding" => codings.extend(values),
            _ => {}
        }
    }
    if !codings.is_empty() {
        assert!(codings == ["chunked"] && lengths.is_empty(), "{codings:?} {lengths:?}");
        return Framing::Chunked;
    }
    let number = |text: &String| {
        assert!(!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()), "a length {text:?}");
        text.trim_start_matches('0').to_owned()
    };
    let mut numbers: Vec<_> = lengths.iter().map(number).collect();
    numbers.dedup();
    match numbers.as_slice() {
        [] => {
            assert!(!matches!(method, "POST" | "PUT" | "PATCH"), "a body without length");
            Framing::None
        }
        [zero] if zero.is_empty() => Framing::None,
        [one] => Framing::Length(one.parse().unwrap()),
        more => panic!("lengths that differ: {more:?}"),
    }
}

/// Body, bytes taken, and whether it ended; the input offered in pieces of `steps`, again and again.
fn decode(input: &[u8], steps: &[usize]) -> Outcome<(Vec<u8>, usize, bool)> {
    let (mut decoder, mut body, mut taken, mut end) = (ChunkDecoder::new(MAX_BODY), Vec::new(), 0, 0_usize);
    for step in steps.iter().cycle() {
        end = end.saturating_add(*step).min(input.len());
        taken += decoder.decode(&input[taken..end], &mut body).map_err(|r| (r.status, r.code))?;
        assert!(taken <= end && body.len() <= MAX_BODY);
        if end == input.len() || decoder.is_done() {
            break;
        }
    }
    Ok((body, taken, decoder.is_done()))
}

/// Sizes from the bytes themselves, none of them zero.
fn steps(data: &[u8]) -> Vec<usize> {
    let steps: Vec<_> = data.iter().rev().take(16).map(|b| usize::from(*b % 37) + 1).collect();
    if steps.is_empty() { vec![1] } else { steps }
}

/// The plainest decoder there is, for what is known to be sound.
fn plainly_decoded(mut input: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = input.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let line = std::str::from_utf8(&input[..end]);
        let digits = match line {
            Ok(line) => line.split(';').next().unwrap().to_owned(),
            Err(_) => String::from_utf8_lossy(&input[..end]).split(';').next().unwrap().to_owned(),
        };
        let size = usize::from_str_radix(&digits, 16).unwrap();
        input = &input[end + 2..];
        if size == 0 {
            assert!(input.ends_with(b"\r\n") && (input.len() == 2 || input.ends_with(b"\r\n\r\n")));
            return body;
        }
        body.extend_from_slice(&input[..size]);
        assert_eq!(input[size..size + 2], *b"\r\n");
        input = &input[size + 2..];
    }
}

/// The bytes as a sound body, in chunks as they say, with extensions and trailers: it comes back, and no byte behind it.
fn round_trip(data: &[u8]) {
    let data = &data[..data.len().min(MAX_BODY)];
    let (mut coded, mut rest) = (Vec::new(), data);
    for (step, zeros) in steps(data).into_iter().cycle().zip((0..4).cycle()) {
        if rest.is_empty() {
            break;
        }
        let (chunk, behind) = rest.split_at(step.min(rest.len()));
        let extension = if zeros == 2 { ";a=\"b\"" } else { "" };
        let line = format!("{}{:X}{extension}\r\n", "0".repeat(zeros), chunk.len());
        assert!(line.len() < MAX_SIZE_LINE);
        coded.extend_from_slice(line.as_bytes());
        coded.extend_from_slice(chunk);
        coded.extend_from_slice(b"\r\n");
        rest = behind;
    }
    coded.extend_from_slice(if data.len().is_multiple_of(2) { b"0\r\n\r\n" } else { b"000;x\r\nT: u\r\n\r\n" });
    let length = coded.len();
    coded.extend_from_slice(b"GET / HTTP/1.1\r\n");
    for pieces in [&[usize::MAX][..], &[1], &steps(data)] {
        assert_eq!(decode(&coded, pieces), Ok((data.to_vec(), length, true)));
    }
}
