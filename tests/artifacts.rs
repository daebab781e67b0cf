//! Sealed files over HTTP: the sealed bytes or none, whatever happens to the files. Real agent, real containers.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;
mod sealed_support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::Command;
use std::time::SystemTime;

use agent::{Agent, PATIENCE, Site, eventually, hackbrain, job_id, manifest};
use sealed_support::{odd_files, refused, sealed, shell, url, write_file};

#[track_caller]
fn is_refused(agent: &Agent, path: &str, status: u16, code: &str) {
    let (found, text, message) = refused(agent, path);
    assert_eq!((found, text.as_str()), (status, code), "{message}");
}

/// Range, if any, of what is served at `path`.
fn range(agent: &Agent, path: &str, range: &str) -> agent::Answer {
    agent.request("GET", path, &[("Range", range)], b"")
}

#[test]
fn every_name_is_served_and_nothing_else() {
    let site = Site::new("artifact-names");
    let agent = site.start(&[]);
    let id = job_id("names");
    let lines: String = odd_files().iter().map(|(name, content)| write_file(name, content)).collect();
    sealed(&agent, &site, &id, &(lines + "ln -s plain.csv link; mkdir dir"));
    for (name, content) in odd_files() {
        let shown = String::from_utf8_lossy(&name).into_owned();
        let answer = agent.get(&url(&id, &name));
        assert_eq!((answer.status, &answer.body), (200, &content), "{shown:?}");
        assert_eq!(answer.header("content-length"), Some(content.len().to_string().as_str()));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let disposition = answer.header("content-disposition").unwrap();
        let filename = disposition.strip_prefix("attachment; filename=\"").unwrap().strip_suffix('"').unwrap();
        let safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        assert!(filename.chars().all(safe) && !filename.starts_with(['.', '-']), "{disposition}");
        let etag = answer.header("etag").unwrap();
        let not_modified = agent.request("GET", &url(&id, &name), &[("If-None-Match", etag)], b"");
        assert_eq!((not_modified.status, not_modified.body.len()), (304, 0));
        let head = agent.request("HEAD", &url(&id, &name), &[("Range", "bytes=0-0")], b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), answer.header("content-length"));
    }

    let plain = url(&id, b"plain.csv");
    let etag = agent.get(&plain).header("etag").unwrap().to_owned();
    let part = range(&agent, &plain, "bytes=3-5");
    assert_eq!((part.status, part.text().as_str()), (206, "pla"));
    assert_eq!(part.header("content-range"), Some("bytes 3-5/12"));
    assert_eq!(range(&agent, &plain, "bytes=12-").status, 416);
    for (tag, status) in [(etag.as_str(), 206), ("\"another\"", 200)] {
        let answer = agent.request("GET", &plain, &[("Range", "bytes=0-1"), ("If-Range", tag)], b"");
        assert_eq!(answer.status, status, "If-Range: {tag}");
    }

    for name in ["none", "link", "dir", "plain.csv/", "/plain.csv", "PLAIN.CSV", "a/../plain.csv"] {
        let (status, code, message) = refused(&agent, &url(&id, name.as_bytes()));
        assert_eq!((status, code.as_str()), (404, "no_such_artifact"), "{name}");
        assert!(message.contains(&format!("/api/jobs/{id}/seal")), "{message}");
    }
    for tail in ["", "/"] {
        let (status, code, message) = refused(&agent, &format!("/api/jobs/{id}/artifacts{tail}"));
        assert_eq!((status, code.as_str()), (404, "no_such_artifact"));
        assert!(message.contains("/seal"), "{message}");
    }
    assert_eq!(refused(&agent, "/api/jobs/none/artifacts/x").1, "no_such_job");
    for not_text in ["/api/jobs/%ff", "/api/jobs/n%ffne/artifacts/x", "/%ff", "/api/jobs/x/artifacts/x?%ff"] {
        is_refused(&agent, not_text, 400, "bad_target");
    }
    assert_eq!(refused(&agent, &format!("{plain}?x=1")).1, "unknown_parameter");
    let post = agent.post(&plain, b"{}");
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD, OPTIONS")));

    let failing = job_id("failing");
    let (job, _) = shell(&site, &failing, "echo x > file; exit 3");
    agent.accepted(&job);
    assert_eq!(agent.ended(&failing)["state"], "FAILED");
    is_refused(&agent, &url(&failing, b"file"), 404, "not_sealed");
}

#[test]
fn what_was_changed_is_not_served() {
    let site = Site::new("artifact-changed");
    let agent = site.start(&[]);
    let id = job_id("changed");
    let dir = sealed(&agent, &site, &id, "echo sealed > file; mkdir sub; echo below > sub/file");
    let (file, sub) = (url(&id, b"file"), url(&id, b"sub/file"));
    let is_served = || assert_eq!(agent.get(&file).text(), "sealed\n");
    // From here on the agent remembers that it has verified the file.
    let settled = || fs::metadata(dir.join("file")).unwrap().ctime() + 5 < now();
    eventually("the file has been left alone for a while", || settled().then_some(()));
    is_served();
    is_served();

    let times = fs::FileTimes::new().set_modified(fs::metadata(dir.join("file")).unwrap().modified().unwrap());
    fs::write(dir.join("file"), "SEALED\n").unwrap();
    File::options().write(true).open(dir.join("file")).unwrap().set_times(times).unwrap();
    let (status, code, message) = refused(&agent, &file);
    assert_eq!((status, code.as_str()), (409, "artifact_changed"));
    for part in ["job/workdir/file", "7 bytes", &hash("sealed\n"), &hash("SEALED\n")] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(agent.request("HEAD", &file, &[], b"").status, 409);
    assert_eq!(range(&agent, &file, "bytes=0-0").status, 409);

    let conflict = |url: &str, words: &str| {
        let (status, code, message) = refused(&agent, url);
        assert_eq!((status, code.as_str()), (409, "artifact_changed"), "{message}");
        assert!(message.contains(words), "{words}: {message}");
    };
    fs::write(dir.join("file"), "sealed\nand more\n").unwrap();
    conflict(&file, "now there are 16 bytes");
    fs::remove_file(dir.join("file")).unwrap();
    conflict(&file, "it is gone");
    fs::write(dir.join("other"), "sealed\n").unwrap();
    symlink("other", dir.join("file")).unwrap();
    conflict(&file, "a symlink");
    fs::remove_file(dir.join("file")).unwrap();
    assert!(Command::new("mkfifo").arg(dir.join("file")).status().unwrap().success());
    conflict(&file, "a fifo");
    fs::remove_file(dir.join("file")).unwrap();
    fs::create_dir(dir.join("file")).unwrap();
    conflict(&file, "a directory");
    fs::remove_dir(dir.join("file")).unwrap();
    fs::write(dir.join("file"), "sealed\n").unwrap();
    is_served();

    fs::rename(dir.join("sub"), dir.join("moved")).unwrap();
    conflict(&sub, "it is gone");
    symlink("moved", dir.join("sub")).unwrap();
    conflict(&sub, "a symlink");
    let away = site.root().join("away");
    fs::rename(&dir, &away).unwrap();
    conflict(&file, "the mounted directory is gone");
    symlink(&away, &dir).unwrap();
    is_refused(&agent, &file, 403, "mount_symlink");
    fs::remove_file(&dir).unwrap();
    fs::rename(&away, &dir).unwrap();
    is_served();

    let seal = site.data().join(format!("seals/{id}.json"));
    let bytes = fs::read(&seal).unwrap();
    fs::write(&seal, String::from_utf8(bytes.clone()).unwrap().replace(&hash("sealed\n"), &hash("SEALED\n"))).unwrap();
    is_refused(&agent, &file, 409, "seal_changed");
    fs::remove_file(&seal).unwrap();
    is_refused(&agent, &file, 409, "seal_changed");
    fs::write(&seal, bytes).unwrap();
    is_served();

    let scratch = job_id("scratch");
    agent.accepted(&manifest(&scratch, &["sh", "-c", "echo own > file"]));
    agent.ended(&scratch);
    assert_eq!(agent.get(&url(&scratch, b"file")).text(), "own\n");
    assert_eq!(agent.terminate(), Some(0));

    // An agent whose operator allows another root serves nothing of the old one; its own directories it does.
    let other = site.dir().join("other-root");
    fs::create_dir(&other).unwrap();
    let mut command = hackbrain();
    command.arg("serve").arg("--data").arg(site.data()).arg("--mount-root").arg(&other);
    command.args(["--listen", "127.0.0.1:0", "--segment-size", "4194304"]);
    let agent = site.start_command(&mut command);
    is_refused(&agent, &file, 403, "mount_outside_roots");
    assert_eq!(agent.get(&url(&scratch, b"file")).text(), "own\n");
}

#[test]
fn a_large_file_costs_no_memory_and_a_change_under_way_cuts_it() {
    const BYTES: u64 = 200_000_000;
    let site = Site::new("artifact-large");
    let agent = site.start(&[]);
    let id = job_id("large");
    let dir = sealed(&agent, &site, &id, &format!("head -c {BYTES} /dev/urandom > big"));
    let (big, url) = (dir.join("big"), url(&id, b"big"));
    let file = File::options().read(true).write(true).open(&big).unwrap();
    let before = agent.memory_kib("VmHWM");
    let whole = agent.get(&url);
    assert_eq!(whole.status, 200);
    assert!(whole.body == fs::read(&big).unwrap(), "the download is the file");
    drop(whole);
    for (first, last) in [(0, 0), (199_999_000, BYTES - 1), (131_071, 131_073), (50_000_000, 50_500_000)] {
        let part = range(&agent, &url, &format!("bytes={first}-{last}"));
        let mut expected = vec![0; (last + 1 - first) as usize];
        file.read_exact_at(&mut expected, first).unwrap();
        assert!(part.status == 206 && part.body == expected, "{first}-{last}");
    }
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < 16 << 10, "{grown} KiB more memory at most");

    for range in ["", "Range: bytes=1-\r\n"] {
        let mut stream = TcpStream::connect(agent.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("GET {url} HTTP/1.1\r\nHost: {}\r\n{range}\r\n", agent.address);
        stream.write_all(head.as_bytes()).unwrap();
        // The first bytes have come, the agent waits for us to take more, and then the last byte of the file changes.
        stream.read_exact(&mut [0; 4096]).unwrap();
        let mut last = [0];
        file.read_exact_at(&mut last, BYTES - 1).unwrap();
        file.write_all_at(&[!last[0]], BYTES - 1).unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!((rest.len() as u64) < BYTES - 4096, "{range:?}: all of it came: {}", rest.len());
        eventually("the agent's log says so", || agent.said().contains("is cut off").then_some(()));
        file.write_all_at(&last, BYTES - 1).unwrap();
        assert_eq!(agent.request("HEAD", &url, &[], b"").status, 200, "put back, it is served again");
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

fn hash(text: &str) -> String {
    hackbrain::hash::Hash::of(text.as_bytes()).to_string()
}
