//! Header fields that keep a browser from making more of an answer than it is.

use tiny_http::Header;

use super::reply::{Reply, header};
use super::routes::with_headers;

/// Of every answer. What a payload printed or wrote comes from our own origin, and would have the viewer's rights if a
/// browser ran it as a page.
const ALWAYS: [(&str, &str); 4] = [
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
];
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
    let missing: Vec<Header> = ALWAYS.iter().chain(data).filter(|(n, _)| !has(n)).map(|(n, v)| header(n, v)).collect();
    with_headers(reply, missing)
}
