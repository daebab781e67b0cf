//! Who may know whom: reads the `use` lines of every room. lib.rs has the reasons.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};

/// Room, and the rooms it may name. A room may always name itself.
const ALLOWED: &[(&str, &[&str])] = &[
    ("admission", &["lists", "manifest", "rejection", "resources", "runner"]),
    ("backup", &["config", "engine", "hash", "ledger", "manifest", "sys", "verify", "wal"]),
    ("canonical", &[]),
    ("config", &["hash", "ledger", "wal"]),
    ("engine", &["hash", "ledger", "manifest", "rejection", "view", "wal"]),
    ("hash", &[]),
    ("host", &["hash"]),
    (
        "http",
        &[
            "admission",
            "engine",
            "hash",
            "ledger",
            "lists",
            "log_lines",
            "manifest",
            "metrics",
            "rejection",
            "resources",
            "runner",
            "sys",
            "view",
        ],
    ),
    ("ledger", &["hash", "manifest", "rejection"]),
    ("lists", &["sys"]),
    ("log_lines", &["engine", "ledger"]),
    ("manifest", &["canonical", "hash", "rejection"]),
    ("metrics", &[]),
    ("prune", &["config", "engine", "ledger", "runner", "serve", "sys", "verify", "wal"]),
    ("rejection", &[]),
    ("resources", &["config", "host", "manifest", "rejection"]),
    ("runner", &["config", "engine", "hash", "host", "ledger", "manifest", "rejection", "resources", "seal", "sys"]),
    ("seal", &["canonical", "hash", "ledger", "manifest", "sys"]),
    ("sys", &[]),
    ("verify", &["canonical", "config", "engine", "hash", "ledger", "manifest", "seal", "sys", "wal"]),
    ("view", &["hash", "ledger", "wal"]),
    ("wal", &["metrics", "sys"]),
];
/// Files that join the rooms.
const JOINERS: &[&str] = &["lib.rs", "main.rs", "serve.rs"];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    assert!(found.len() > 30, "the sources were found");
    found
        .into_iter()
        .map(|path| (path.strip_prefix(&root).unwrap().display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect()
}

#[test]
fn rooms_know_only_whom_they_may() {
    let mut wrong = Vec::new();
    for (file, text) in all_sources().into_iter().filter(|(file, _)| !JOINERS.contains(&file.as_str())) {
        let room = file.split(['/', '.']).next().unwrap();
        let allowed = ALLOWED.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("{room} has no rule")).1;
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for part in line.split("crate::").skip(1) {
                let named: String = part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if named != room && !allowed.contains(&named.as_str()) {
                    wrong.push(format!("{file}:{}: {room} may not know {named:?}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_and_processes_stay_in_their_rooms() {
    for (file, text) in all_sources() {
        let code =
            |needle: &str| text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(needle));
        assert!(
            file.starts_with("sys/") || !(code("libc::") || code("unsafe {")),
            "{file}: only sys/ has unsafe or libc"
        );
        let spawns = code("process::Command") || code("Command::new(");
        let is_test = text.contains("mod tests {") || file.ends_with("tests.rs");
        assert!(file.starts_with("runner/docker") || !spawns || is_test, "{file}: only runner/docker spawns processes");
    }
}

/// Files that a person wrote below a directory, by their paths from the root.
fn written(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is = |names: &[&str]| path.file_name().is_some_and(|name| names.iter().any(|other| name == *other));
        if path.is_dir() {
            if !is(&["node_modules", "target", "corpus", "golden", "__pycache__"]) {
                written(&path, found);
            }
        } else if path.extension().is_none_or(|kind| ["rs", "py", "sh", "js", "mjs", "css"].iter().any(|k| kind == *k))
        {
            found.push(path);
        }
    }
}

#[test]
fn files_stay_small() {
    for (file, text) in all_sources() {
        assert!(text.lines().count() <= 600, "{file} has {} lines; is it one room?", text.lines().count());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("CONTRIBUTING.md")).unwrap();
    let allowed = text.lines().find(|line| line.contains("more than 600 lines")).unwrap();
    let mut files = Vec::new();
    for place in ["bench", "chaos", "examples", "fuzz", "scripts", "static", "tests"] {
        written(&root.join(place), &mut files);
    }
    assert!(files.len() > 100, "{}", files.len());
    for file in files {
        let lines = fs::read(&file).unwrap().iter().filter(|byte| **byte == b'\n').count();
        let name = file.strip_prefix(root).unwrap().display();
        assert!(lines <= 600 || allowed.contains(&format!("`{name}`")), "{name} has {lines} lines");
    }
}
