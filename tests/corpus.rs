//! Everything the fuzzer found worth keeping, once more, with the fuzz targets' own bodies. scripts/fuzz grows it.
#![allow(clippy::unwrap_used)]

#[path = "../fuzz/body/mod.rs"]
mod body;
mod memory;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::read(&path).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&data)));
        assert!(outcome.is_ok(), "{}: see the panic above", path.display());
        count += 1;
    }
    assert!(count >= 10, "{} holds {count} inputs", dir.display());
}

#[test]
fn frame() {
    replay("frame", body::frame::run);
}

#[test]
fn recovery() {
    replay("recovery", body::recovery::run);
}

#[test]
fn request() {
    replay("request", body::request::run);
}
