//! Several manifests in one body. Pure.

use serde::Deserialize;
use serde_json::error::Category;
use serde_json::value::RawValue;

use super::{Parsed, invalid, parse, reject};
use crate::rejection::Rejection;

/// Manifests of one body at most.
pub const MAX_JOBS: usize = 1000;

const SHAPE: &str = "send {\"jobs\":[manifest, …]}";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    jobs: Vec<&'a RawValue>,
}

/// Checks `{"jobs":[manifest, …]}`, each manifest as [`parse`] does.
///
/// # Errors
/// Status 400; `field` begins with `jobs[N].` where one manifest is at fault.
pub fn parse_all(body: &[u8]) -> Result<Vec<Parsed>, Rejection> {
    // Serde would take a list for the object's members.
    let is_object = body.trim_ascii_start().first() == Some(&b'{');
    let Body { jobs } = serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => reject("wrong_type", format!("{error}; {SHAPE}")),
        _ => reject("not_json", format!("the body is not JSON: {error}; {SHAPE}")),
    })?;
    if !is_object {
        return Err(reject("not_an_object", format!("the body must be one JSON object: {SHAPE}")));
    }
    if jobs.is_empty() {
        return Err(invalid("jobs", "is empty; give one manifest at least"));
    }
    if jobs.len() > MAX_JOBS {
        let fault = format!("has {} manifests; at most {MAX_JOBS} are accepted at once", jobs.len());
        return Err(invalid("jobs", fault));
    }
    let parse = |(index, raw): (usize, &&RawValue)| {
        parse(raw.get().as_bytes()).map_err(|rejection| rejection.within(&format!("jobs[{index}]")))
    };
    jobs.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn manifest(more: &str) -> String {
        format!(r#"{{"job_id":"a","image_hash":"busybox","command":["true"]{more}}}"#)
    }

    #[test]
    fn each_is_what_it_is_alone() {
        let (one, other) = (manifest(""), manifest(r#", "timeout_s" : 5 "#));
        let body = format!(" {{\"jobs\":[{one},\n {other} ]}} ");
        let alone = [one, other].map(|text| parse(text.as_bytes()).unwrap());
        assert_eq!(parse_all(body.as_bytes()), Ok(alone.to_vec()));
    }

    #[test]
    fn faults_name_the_manifest_and_the_field() {
        let sound = manifest("");
        let with = |more: &str| format!("{{\"jobs\":[{sound},{}]}}", manifest(more));
        let many = vec![sound.as_str(); MAX_JOBS + 1].join(",");
        for (body, code, field) in [
            (with(r#","command":["true"]"#), "duplicate_field", Some("jobs[1].command")),
            (with(r#","mounts":[]"#), "unknown_field", Some("jobs[1].mounts")),
            (with(r#","depends_on":["x","a"]"#), "invalid_value", Some("jobs[1].depends_on[1]")),
            (format!("{{\"jobs\":[{sound},5]}}"), "not_an_object", Some("jobs[1]")),
            (format!("{{\"jobs\":[{sound}],\"jobs\":[]}}"), "wrong_type", None),
            (format!("{{\"jobs\":[{sound}],\"more\":1}}"), "wrong_type", None),
            (format!("[[{sound}]]"), "not_an_object", None),
            (sound.clone(), "wrong_type", None),
            ("{\"jobs\":{}}".into(), "wrong_type", None),
            ("{\"jobs\":[]}".into(), "invalid_value", Some("jobs")),
            ("{}".into(), "wrong_type", None),
            ("{\"jobs\":[".into(), "not_json", None),
            (String::new(), "not_json", None),
            (format!("{{\"jobs\":[{many}]}}"), "invalid_value", Some("jobs")),
        ] {
            let rejection = parse_all(body.as_bytes()).unwrap_err();
            let shown = &body[..body.len().min(300)];
            assert_eq!((rejection.status, rejection.code, rejection.field.as_deref()), (400, code, field), "{shown}");
        }
        assert!(parse_all(b"{\"jobs\":[\"\xff\"]}").is_err());
    }
}
