//! What the fuzz targets do with their bytes. One source for the fuzzer and for the test that replays its corpus.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod frame;
pub mod recovery;
pub mod request;
pub mod seal;
