//! Header fields that keep a browser from making more of an answer than it is.

use tiny_http::Header;

use super::reply::{Reply, header};
use super::routes::with_headers;

/// Of every answer that is no file of the viewer.
const DATA: [(&str, &str); 2] = [
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    ),
];

/// The answer with what it lacks of those.
pub(super) fn protect(reply: Reply, of_viewer: bool) -> Reply {
    let has = |name: &str| -> bool {
        let known =
            |headers: &[Header]| headers.iter().any(|known| known.field.as_str().as_str().eq_ignore_ascii_case(name));
        match &reply {
            Reply::Full(response) => known(response.headers()),
            Reply::Stream { headers, .. } | Reply::Sized { headers, .. } => known(headers),
        }
    };
    let data: &[_] = if of_viewer { &[] } else { &DATA };
    let missing: Vec<Header> = data.iter().filter(|(n, _)| !has(n)).map(|(n, v)| header(n, v)).collect();
    with_headers(reply, missing)
}
