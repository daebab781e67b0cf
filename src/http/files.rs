//! The viewer's files, embedded, and files of the data directory with `Range`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use tiny_http::{Header, Response, StatusCode};

use super::reply::{Reply, header};
use super::request::Request;
use super::routes::{Answer, with_headers};
use crate::rejection::Rejection;

/// What the viewer may load and reach; the same stands in its page for `file://`.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self' http: https:; worker-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types hackbrain";

macro_rules! embedded {
    ($($name:literal),* $(,)?) => {
        /// Name and bytes of each file of the viewer.
        pub const VIEWER: &[(&str, &[u8])] = &[$(($name, include_bytes!(concat!("../../static/", $name)))),*];
    };
}

embedded!(
    "actions.js",
    "api.js",
    "app.js",
    "artifacts.js",
    "chain.js",
    "charts.js",
    "check.js",
    "dom.js",
    "events.js",
    "format.js",
    "graph.js",
    "index.html",
    "job.js",
    "keys.js",
    "list.js",
    "log.js",
    "model.js",
    "nodes.js",
    "replay.js",
    "sha256.js",
    "stream.js",
    "style.css",
    "timeline.js",
    "trace.js",
    "window.js",
    "worker.js",
);

/// The bytes of a file of the viewer, and its name: `/` is `index.html`.
fn viewer_file(path: &str) -> Option<(&'static str, &'static [u8])> {
    let name = if path == "/" { "index.html" } else { path.strip_prefix('/')? };
    VIEWER.iter().find(|(known, _)| *known == name).copied()
}

/// Whether a file of the viewer is at this path.
pub(super) fn is_viewer(path: &str) -> bool {
    viewer_file(path).is_some()
}

/// A file of the viewer.
///
/// # Errors
/// 404.
pub(super) fn viewer(path: &str) -> Answer {
    let (name, bytes) = viewer_file(path).ok_or_else(gone)?;
    let content_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("svg") => "image/svg+xml",
        _ => "application/octet-stream",
    };
    let more = vec![
        header("Content-Security-Policy", CONTENT_SECURITY_POLICY),
        header("Referrer-Policy", "no-referrer"),
        header("Cross-Origin-Opener-Policy", "same-origin"),
    ];
    Ok(with_headers(embedded(bytes, content_type), more))
}

/// A file that is a part of this program.
pub(super) fn embedded(bytes: &'static [u8], content_type: &str) -> Reply {
    let response = Response::from_data(bytes)
        .with_header(header("Content-Type", content_type))
        // The files have no version in their names, and the next agent brings its own.
        .with_header(header("Cache-Control", "no-cache"));
    Reply::Full(response.boxed())
}

/// The bytes of a file that may still grow, whole or the `Range` that was asked for. Such a file has no validator: whoever
/// sends one with `If-Range` has it from elsewhere, and gets the whole.
///
/// # Errors
/// 404 where there is no such file, 416 where the range begins behind its end.
pub fn serve(path: &Path, content_type: &str, request: &Request) -> Result<Reply, Rejection> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
        other => other.map_err(|error| unreadable(&error))?,
    };
    let len = file.metadata().map_err(|error| unreadable(&error))?.len();
    let headers = vec![header("Content-Type", content_type), header("Accept-Ranges", "bytes")];
    let range = request.range().filter(|_| request.header("if-range").is_none());
    match range.map_or(Ok(None), |value| parse_range(value, len)) {
        Ok(None) => Ok(part(file, 0, len, 200, headers)),
        Ok(Some((first, last))) => {
            let mut headers = headers;
            headers.push(header("Content-Range", &format!("bytes {first}-{last}/{len}")));
            Ok(part(file, first, last + 1 - first, 206, headers))
        }
        Err(()) => Ok(unsatisfiable(len)),
    }
}

/// What is said where a range begins behind the end.
pub(super) fn unsatisfiable(len: u64) -> Reply {
    let message = format!("the file has {len} bytes; ask for a range that begins before that");
    behind_end(&Rejection::new(416, "range", message).field("Range"), len)
}

/// A 416 of a file of so many bytes.
pub(super) fn behind_end(rejection: &Rejection, len: u64) -> Reply {
    let response = Response::from_data(rejection.to_json())
        .with_status_code(416)
        .with_header(header("Content-Type", "application/json"))
        .with_header(header("Content-Range", &format!("bytes */{len}")));
    Reply::Full(response.boxed())
}

fn part(mut file: File, first: u64, len: u64, status: u16, headers: Vec<Header>) -> Reply {
    if let Err(error) = file.seek(SeekFrom::Start(first)) {
        return Reply::rejection(&unreadable(&error));
    }
    let body: Box<dyn Read + Send> = Box::new(file.take(len));
    Reply::Full(Response::new(StatusCode(status), headers, body, usize::try_from(len).ok(), None))
}

/// `Ok(None)`: no range that we serve, so the whole file (RFC 9110 lets a server ignore the field). `Err`: unsatisfiable.
pub(super) fn parse_range(value: &str, len: u64) -> Result<Option<(u64, u64)>, ()> {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|spec| spec.split_once('-')) else {
        return Ok(None);
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let range = match (first, last) {
        ("", suffix) => match number(suffix) {
            Some(0) => return Err(()),
            Some(suffix) => (len.saturating_sub(suffix), len.saturating_sub(1)),
            None => return Ok(None),
        },
        (first, "") => match number(first) {
            Some(first) => (first, len.saturating_sub(1)),
            None => return Ok(None),
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.min(len.saturating_sub(1))),
            _ => return Ok(None),
        },
    };
    if range.0 >= len { Err(()) } else { Ok(Some(range)) }
}

pub(super) fn gone() -> Rejection {
    Rejection::new(404, "no_such_file", "there is no such file; it may not have been written yet, or was removed")
}

/// What is said where data that should be there cannot be read.
pub(super) fn unreadable(error: &io::Error) -> Rejection {
    log::error!("http: reading a file of the data directory: {error}");
    Rejection::new(500, "unreadable", "the file cannot be read; the agent's log says why")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (value, len, expected) in [
            ("bytes=0-", 10, Ok(Some((0, 9)))),
            ("bytes=4-", 10, Ok(Some((4, 9)))),
            ("bytes=2-3", 10, Ok(Some((2, 3)))),
            ("bytes=2-99", 10, Ok(Some((2, 9)))),
            ("bytes=-4", 10, Ok(Some((6, 9)))),
            ("bytes=-40", 10, Ok(Some((0, 9)))),
            ("bytes=10-", 10, Err(())),
            ("bytes=0-", 0, Err(())),
            ("bytes=-0", 10, Err(())),
            ("bytes=-4", 0, Err(())),
            ("bytes=3-2", 10, Ok(None)),
            ("bytes=0-1,3-4", 10, Ok(None)),
            ("bytes=a-", 10, Ok(None)),
            ("bytes=-", 10, Ok(None)),
            ("bytes=99999999999999999999-", 10, Ok(None)),
            ("lines=0-1", 10, Ok(None)),
        ] {
            assert_eq!(parse_range(value, len), expected, "{value} of {len}");
        }
    }

    #[test]
    fn every_file_of_the_viewer_is_embedded() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("static");
        let mut on_disk: Vec<String> = std::fs::read_dir(dir)
            .expect("static/")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        on_disk.sort();
        let mut embedded: Vec<String> = VIEWER.iter().map(|(name, _)| (*name).to_owned()).collect();
        embedded.sort();
        assert_eq!(embedded, on_disk);
    }
}
