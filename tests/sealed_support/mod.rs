//! Jobs that leave files of any name behind, and what is read of an answer.
#![allow(clippy::unwrap_used, dead_code)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::Value;

use super::agent::{Agent, Site, manifest};

/// Names that somebody will use: relative, with what is to stand in the file.
pub fn odd_files() -> Vec<(Vec<u8>, Vec<u8>)> {
    let deep = "directory/".repeat(60) + "leaf";
    let mut names: Vec<Vec<u8>> = [
        "plain.csv",
        "with space",
        "100%",
        "%41",
        "line\nbreak",
        "\nfirst",
        "back\\slash\r",
        "ü/näme.txt",
        "-rf",
        "#?&+;=\"'",
        "a/b",
        "a-b",
        "}],{",
    ]
    .iter()
    .map(|name| name.as_bytes().to_vec())
    .collect();
    names.extend([b"caf\xc3".to_vec(), b"\xff\xfe/\x01".to_vec(), vec![b'n'; 150], deep.into_bytes()]);
    names.extend((84..90).map(|length| vec![b'0' + (length % 10) as u8; length]));
    let mut files: Vec<_> = names.into_iter().map(|name| (name.clone(), [b"in ", name.as_slice()].concat())).collect();
    files.push((b"empty".to_vec(), Vec::new()));
    files
}

/// A shell line that writes such a file. Every byte is an octal escape, so that no shell makes anything of it.
pub fn write_file(name: &[u8], content: &[u8]) -> String {
    let octal = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\{byte:03o}")).collect::<String>();
    let mut line = format!("f=$(printf '{}x'); f=./${{f%x}}; ", octal(name));
    if name.contains(&b'/') {
        line += "mkdir -p \"${f%/*}\"; ";
    }
    line + &format!("printf '{}' > \"$f\"\n", octal(content))
}

/// A job that runs a shell line in a directory of its own; the directory.
pub fn shell(site: &Site, id: &str, line: &str) -> (Value, PathBuf) {
    let dir = site.mountable(id);
    let mut job = manifest(id, &["sh", "-ec", line]);
    job["mount_spec"] = format!("{}:/job/workdir", dir.display()).into();
    (job, dir)
}

/// Runs such a job to its seal.
pub fn sealed(agent: &Agent, site: &Site, id: &str, line: &str) -> PathBuf {
    let (job, dir) = shell(site, id, line);
    agent.accepted(&job);
    assert_eq!(agent.ended(id)["state"], "SEALED", "{}", agent.get(&format!("/api/jobs/{id}/stderr")).text());
    dir
}

/// Where the file `name` of a job is served.
pub fn url(id: &str, name: &[u8]) -> String {
    let mut url = format!("/api/jobs/{id}/artifacts/job/workdir/");
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url += &format!("%{byte:02x}");
        }
    }
    url
}

pub fn path(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// Status and error code.
#[track_caller]
pub fn refused(agent: &Agent, path: &str) -> (u16, String, String) {
    let answer = agent.get(path);
    let error = &answer.json()["error"];
    let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
    (answer.status, text("code"), text("message"))
}
