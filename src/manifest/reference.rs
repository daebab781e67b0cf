//! What a job id and an image reference look like. Pure.

/// Longest image reference, in bytes; longer than any registry accepts.
const MAX_IMAGE_BYTES: usize = 512;
/// Longest tag, in bytes (Docker's own limit).
const MAX_TAG_BYTES: usize = 128;
/// Longest job id, in bytes (contract §3).
const MAX_JOB_ID_BYTES: usize = 100;

/// Whether `text` is `[A-Za-z0-9][A-Za-z0-9_.-]{0,99}`. Such an id is safe as a file name and in a container's name.
pub fn is_job_id(text: &str) -> bool {
    text.len() <= MAX_JOB_ID_BYTES
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Why `text` is no image reference, as what to write instead; `None` where it is one.
///
/// Accepted: `[host[:port]/]path[:tag][@sha256:<64 hex>]` and `sha256:<64 hex>`. What begins with `-` never passes, so a
/// reference cannot be taken for an option of the engine's command line.
pub fn image_fault(text: &str) -> Option<String> {
    if text.len() > MAX_IMAGE_BYTES {
        return Some(format!("an image reference has at most {MAX_IMAGE_BYTES} bytes, this one {}", text.len()));
    }
    if let Some(id) = text.strip_prefix("sha256:") {
        return (!is_sha256(id)).then(|| "after `sha256:` an image id has 64 lower-case hex digits".to_owned());
    }
    if is_sha256(text) {
        return Some(format!("for an image id write `sha256:{text}`"));
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (text, None),
    };
    if digest.is_some_and(|digest| !digest.strip_prefix("sha256:").is_some_and(is_sha256)) {
        return Some("after `@` comes `sha256:` and 64 lower-case hex digits".to_owned());
    }
    let (name, tag) = match named.rsplit_once(':') {
        // A colon before the last slash belongs to the registry's port.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some(
            "the tag after `:` is letters, digits, `_`, `.`, `-`, at most 128, e.g. `python:3.9-slim`".to_owned(),
        );
    }
    let mut components: Vec<&str> = name.split('/').collect();
    if components.len() > 1 && is_registry(components[0]) {
        components.remove(0);
    }
    (!components.into_iter().all(is_path_component))
        .then(|| "write it as `name:tag`, `name@sha256:<64 hex>` or `sha256:<64 hex>`; names are lower case".to_owned())
}

fn is_sha256(text: &str) -> bool {
    text.parse::<crate::hash::Hash>().is_ok()
}

fn is_tag(text: &str) -> bool {
    (1..=MAX_TAG_BYTES).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Docker's rule: the first component is a host if it has a dot, a port, or is `localhost`.
fn is_registry(text: &str) -> bool {
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let named = host.split('.').all(|label| {
        label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    let numbered = port.is_none_or(|port| port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit()));
    named && numbered && (port.is_some() || host.contains('.') || host == "localhost")
}

/// `[a-z0-9]+` joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    text.as_bytes().first().copied().is_some_and(alphanumeric)
        && text.as_bytes().last().copied().is_some_and(alphanumeric)
        && separators.into_iter().all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids() {
        let longest = "a".repeat(100);
        for good in ["job_9999_chaos_test", "0", "A.b-c_d", "a..b", &longest] {
            assert!(is_job_id(good), "{good}");
        }
        let too_long = "a".repeat(101);
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "é", "a\n", "a\0", "a:b", &too_long] {
            assert!(!is_job_id(bad), "{bad:?}");
        }
    }

    #[test]
    fn image_references() {
        let hex = "0123456789abcdef".repeat(4);
        for good in [
            "python:3.9-slim".to_owned(),
            "busybox".to_owned(),
            "library/a__b".to_owned(),
            "a--b.c_d/e:V1_.-".to_owned(),
            "registry.example:5000/team/app:1".to_owned(),
            "localhost/app".to_owned(),
            "Host.Example/app".to_owned(),
            format!("python@sha256:{hex}"),
            format!("python:3@sha256:{hex}"),
            format!("sha256:{hex}"),
        ] {
            assert_eq!(image_fault(&good), None, "{good}");
        }
        for bad in [
            String::new(),
            "-- --privileged".to_owned(),
            "--privileged".to_owned(),
            "-v".to_owned(),
            "Python".to_owned(),
            "a b".to_owned(),
            "a//b".to_owned(),
            "/a".to_owned(),
            "a/".to_owned(),
            "a:".to_owned(),
            ":a".to_owned(),
            "a:b:c".to_owned(),
            "a:-x".to_owned(),
            "a___b".to_owned(),
            "a.-b".to_owned(),
            "a..b".to_owned(),
            "a\0".to_owned(),
            "host:99999/a".to_owned(),
            "host:+80/a".to_owned(),
            "é".to_owned(),
            hex.clone(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{}", hex.to_uppercase()),
            format!("a@sha512:{hex}"),
            format!("a@sha256:{hex}0"),
            format!("@sha256:{hex}"),
            format!("a:{}", "t".repeat(129)),
            "a".repeat(513),
        ] {
            assert!(image_fault(&bad).is_some(), "{bad:?}");
        }
    }
}
