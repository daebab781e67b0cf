//! `mount_spec`: its syntax, and what a path may be. Pure; whether a host path may be mounted is the mount policy's matter.

use super::reference::is_job_id;
use super::{Mount, MountSource, quoted};

/// Mounts of one job at most.
pub const MAX_MOUNTS: usize = 16;
/// Longest path, in bytes (Linux PATH_MAX, its NUL not counted).
const MAX_PATH_BYTES: usize = 4095;
/// Longest component of a path, in bytes (Linux NAME_MAX).
const MAX_NAME_BYTES: usize = 255;
/// A mount here would replace what the image or the sandbox needs to be what they say they are.
const RESERVED: [&str; 13] = [
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/usr/bin",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/tmp",
    "/run",
    "/var/run",
    "/usr/sbin",
];

/// One entry: `HOST:CONTAINER[:ro|:rw]` or `job:<job_id>:CONTAINER[:ro]`.
///
/// # Errors
/// What is wrong and what to write instead, as a clause that follows the field's name.
pub fn parse(entry: &str) -> Result<Mount, String> {
    let parts: Vec<&str> = entry.split(':').collect();
    let (source, container, mode) = match parts[..] {
        ["job", job_id, container] => (MountSource::Job(job_id.to_owned()), container, Some("ro")),
        ["job", job_id, container, mode] => (MountSource::Job(job_id.to_owned()), container, Some(mode)),
        [host, container] => (MountSource::Host(host.to_owned()), container, None),
        [host, container, mode] => (MountSource::Host(host.to_owned()), container, Some(mode)),
        _ => {
            return Err(format!(
                "is {}; write HOST:CONTAINER, HOST:CONTAINER:ro or job:<job_id>:CONTAINER (no path may hold a colon)",
                quoted(entry)
            ));
        }
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(other) => return Err(format!("ends in {}; the mode is `ro` or `rw`", quoted(other))),
    };
    match &source {
        MountSource::Host(host) => check_path("host path", host)?,
        MountSource::Job(job_id) if !is_job_id(job_id) => {
            return Err(format!("names the job {}; an id is [A-Za-z0-9][A-Za-z0-9_.-]{{0,99}}", quoted(job_id)));
        }
        MountSource::Job(_) if !read_only => {
            return Err("mounts sealed artifacts, which are read-only; leave out `:rw`".to_owned());
        }
        MountSource::Job(_) => {}
    }
    check_path("container path", container)?;
    if let Some(reserved) = RESERVED.iter().find(|reserved| overlaps(reserved, container)) {
        return Err(format!(
            "would cover {reserved} in the container; choose another container path, e.g. /job/workdir"
        ));
    }
    Ok(Mount { source, container: container.to_owned(), read_only })
}

/// The one way to write a mount, so that equal mounts give equal manifests.
pub fn to_text(mount: &Mount) -> String {
    match (&mount.source, mount.read_only) {
        (MountSource::Job(job_id), _) => format!("job:{job_id}:{}", mount.container),
        (MountSource::Host(host), true) => format!("{host}:{}:ro", mount.container),
        (MountSource::Host(host), false) => format!("{host}:{}", mount.container),
    }
}

/// Whether one path is the other or lies below it. Both are absolute and without `.`, `..` or empty components.
pub fn overlaps(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    long.strip_prefix(short).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn check_path(what: &str, path: &str) -> Result<(), String> {
    let fault = |why: String| Err(format!("has the {what} {}; {why}", quoted(path)));
    let Some(relative) = path.strip_prefix('/') else {
        return fault("it must be absolute, beginning with `/`".to_owned());
    };
    if path.len() > MAX_PATH_BYTES {
        return fault(format!("it may have at most {MAX_PATH_BYTES} bytes, not {}", path.len()));
    }
    if let Some(character) = path.chars().find(|&c| c.is_control() || matches!(c, ',' | ':' | '"')) {
        return fault(format!("it may not hold {character:?}: rename the directory"));
    }
    if relative.is_empty() {
        return fault("the root directory cannot be mounted: name a directory below it".to_owned());
    }
    for component in relative.split('/') {
        match component {
            "" => return fault("leave out the empty component (`//`, or the `/` at its end)".to_owned()),
            "." | ".." => return fault("write it without `.` and `..`".to_owned()),
            long if long.len() > MAX_NAME_BYTES => {
                return fault(format!("a component may have at most {MAX_NAME_BYTES} bytes"));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sound_entries() {
        let host = |path: &str| MountSource::Host(path.to_owned());
        for (text, source, container, read_only, canonical) in [
            ("/data/a:/job/workdir", host("/data/a"), "/job/workdir", false, "/data/a:/job/workdir"),
            ("/data/a:/w:rw", host("/data/a"), "/w", false, "/data/a:/w"),
            ("/data/a:/w:ro", host("/data/a"), "/w", true, "/data/a:/w:ro"),
            ("/d/ä ö:/in put", host("/d/ä ö"), "/in put", false, "/d/ä ö:/in put"),
            ("/job:/job", host("/job"), "/job", false, "/job:/job"),
            ("/d:/usr/local/x", host("/d"), "/usr/local/x", false, "/d:/usr/local/x"),
            ("/d:/processed", host("/d"), "/processed", false, "/d:/processed"),
            ("/proc/x:/w", host("/proc/x"), "/w", false, "/proc/x:/w"),
            ("job:p.1:/in", MountSource::Job("p.1".into()), "/in", true, "job:p.1:/in"),
            ("job:p.1:/in:ro", MountSource::Job("p.1".into()), "/in", true, "job:p.1:/in"),
        ] {
            let mount = parse(text).unwrap();
            assert_eq!(mount, Mount { source, container: container.into(), read_only }, "{text}");
            assert_eq!(to_text(&mount), canonical);
            assert_eq!(parse(canonical).unwrap(), mount);
        }
    }

    #[test]
    fn refused_entries() {
        let long = format!("/d:/{}", "x".repeat(256));
        let longer = format!("{}:/w", "/x".repeat(2048));
        for (text, says) in [
            ("", "write HOST:CONTAINER"),
            ("/a", "write HOST:CONTAINER"),
            ("/a:/b:ro:z", "write HOST:CONTAINER"),
            ("/a:/b:", "`ro` or `rw`"),
            ("/a:/b:RO", "`ro` or `rw`"),
            ("/a:/b:ro,z", "`ro` or `rw`"),
            ("/a:/b:rw,shared", "`ro` or `rw`"),
            ("a:/b", "absolute"),
            ("./a:/b", "absolute"),
            ("~/a:/b", "absolute"),
            ("/a:b", "absolute"),
            (":/b", "absolute"),
            ("/a:", "absolute"),
            ("/:/b", "root directory"),
            ("/a:/", "root directory"),
            ("/a/../b:/w", "`..`"),
            ("/a/.:/w", "`..`"),
            ("/a:/w/..", "`..`"),
            ("/a//b:/w", "empty component"),
            ("/a/:/w", "empty component"),
            ("/a:/w/", "empty component"),
            ("/a,b:/w", "','"),
            ("/a:/w,readonly", "','"),
            ("/a\"b:/w", "'\"'"),
            ("/a\nb:/w", "'\\n'"),
            ("/a\0b:/w", "'\\0'"),
            ("/a\u{85}b:/w", "\\u{85}"),
            ("job::/w", "names the job"),
            ("job:../x:/w", "names the job"),
            ("job:p:/w:rw", "read-only"),
            ("job:p:w", "absolute"),
            ("job:p:/etc", "would cover /etc"),
            (&long, "at most 255"),
            (&longer, "at most 4095"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(says), "{text:?}: {message}");
        }
    }

    #[test]
    fn reserved_container_paths() {
        for reserved in
            ["/proc", "/sys", "/dev", "/etc", "/usr/bin", "/bin", "/sbin", "/lib", "/lib64", "/tmp", "/run", "/var/run"]
        {
            for path in [reserved.to_owned(), format!("{reserved}/x")] {
                let message = parse(&format!("/a:{path}")).unwrap_err();
                assert!(message.contains("would cover"), "{path}: {message}");
            }
        }
        for hiding in ["/usr", "/var"] {
            assert!(parse(&format!("/a:{hiding}")).is_err(), "{hiding} would hide a reserved path");
        }
    }

    #[test]
    fn overlap() {
        for (a, b, expected) in [
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a/b", "/a", true),
            ("/a", "/ab", false),
            ("/a/b", "/a/c", false),
        ] {
            assert_eq!(overlaps(a, b), expected, "{a} {b}");
        }
    }
}
