//! The fuzzer's entry; the body is shared with tests/corpus.rs.
#![no_main]

#[path = "../body/mod.rs"]
mod body;
#[path = "../../tests/memory/mod.rs"]
mod memory;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::request::run(data));
