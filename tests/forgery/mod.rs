//! A forger: writes any events into a log of its own making, through the library's writer, so that every frame, checksum and
//! the witness are right.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs;
use std::path::Path;
use std::sync::Arc;

use hackbrain::hash::Hash;
use hackbrain::sys::block::Caching;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use serde_json::Value;

/// Events as text, one each.
pub type Events = Vec<String>;

/// Replaces the log at `wal` by one that holds these, each in a frame of its own.
pub fn write(wal: &Path, events: &[String], segment_size: u64) {
    fs::remove_dir_all(wal).unwrap();
    let storage = Arc::new(Directory::open(wal, Caching::Buffered).unwrap());
    let options = Options { first_segment_size: segment_size, ..Options::new(segment_size) };
    let (log, _) = Wal::open(storage, options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
    for event in events {
        let (seq, _) = log.append(|_, _, body| body.extend_from_slice(event.as_bytes())).unwrap();
        log.wait(seq).unwrap();
    }
    log.close();
    for entry in fs::read_dir(wal).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_some_and(|extension| extension == "tmp") {
            fs::remove_file(entry).unwrap();
        }
    }
}

/// The events with `seq` and `prev` made anew: `seq` counts from 1.
pub fn chained(events: &[String]) -> Events {
    let mut prev = Hash::ZERO;
    let mut chained = Events::new();
    for (seq, event) in (1..).zip(events) {
        let rest = &event[event.find(",\"time\":").unwrap()..];
        let event = format!("{{\"seq\":{seq},\"prev\":\"{prev}\"{rest}");
        prev = Hash::of(event.as_bytes());
        chained.push(event);
    }
    chained
}

/// An event's JSON.
pub fn json(event: &str) -> Value {
    serde_json::from_str(event).unwrap()
}

/// The event's text with its detail changed; what stands around it stays, byte for byte. Keys of objects come in the order
/// of their names, which no reader minds.
pub fn with_detail(event: &str, change: impl FnOnce(&mut Value)) -> String {
    let at = event.find(",\"detail\":").unwrap() + ",\"detail\":".len();
    let mut detail: Value = serde_json::from_str(&event[at..event.len() - 1]).unwrap();
    change(&mut detail);
    format!("{}{detail}}}", &event[..at])
}
