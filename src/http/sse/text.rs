//! What subscribers read, as bytes: each message is a chunk of its own, so that the bytes of an event are the same in every
//! batch, and who was cut off within one goes on there.

use std::io::Write;

/// Messages one behind the other, framed for the wire.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// The bytes.
    pub bytes: Vec<u8>,
    chunked: bool,
    marks: Vec<Mark>,
}

/// The end of a message.
#[derive(Debug, Clone, Copy)]
struct Mark {
    end: usize,
    /// Of an event.
    seq: Option<u64>,
}

/// Where a stream stands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Every event up to here is out.
    pub after: u64,
    /// Bytes of the next event's message that are out, too.
    pub skip: usize,
    /// What comes before it: the rest of a message that is no event.
    pub rest: Vec<u8>,
}

impl Text {
    /// No messages yet. `chunked` says that HTTP/1.1 frames them.
    pub fn new(chunked: bool) -> Self {
        Self { chunked, ..Self::default() }
    }

    /// Adds an event. It is one line, so its bytes are one `data:` field as they are.
    pub fn event(&mut self, seq: u64, bytes: &[u8]) {
        // More than the digits of any seq.
        let mut id = [0; 32];
        let mut rest = &mut id[..];
        let written = write!(rest, "id: {seq}\ndata: ").map(|()| 32 - rest.len()).unwrap_or(0);
        let id = id;
        self.message(Some(seq), &[&id[..written], bytes, b"\n\n"]);
    }

    /// Adds a line that is no part of the ledger.
    pub fn aside(&mut self, name: &str, line: &str) {
        self.message(None, &[b"event: ", name.as_bytes(), b"\ndata: ", line.as_bytes(), b"\n\n"]);
    }

    /// Adds lines as they are, e.g. a comment; an empty one ends them.
    pub fn lines(&mut self, lines: &str) {
        self.message(None, &[lines.as_bytes(), b"\n\n"]);
    }

    /// Adds the end of the body.
    pub fn end(&mut self) {
        if self.chunked {
            self.bytes.extend_from_slice(b"0\r\n\r\n");
            self.marks.push(Mark { end: self.bytes.len(), seq: None });
        }
    }

    fn message(&mut self, seq: Option<u64>, parts: &[&[u8]]) {
        if self.chunked {
            let length: usize = parts.iter().map(|part| part.len()).sum();
            self.bytes.extend_from_slice(format!("{length:x}\r\n").as_bytes());
        }
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        if self.chunked {
            self.bytes.extend_from_slice(b"\r\n");
        }
        self.marks.push(Mark { end: self.bytes.len(), seq });
    }

    /// How many events are whole within the first `sent` bytes.
    pub fn events_within(&self, sent: usize) -> u64 {
        let whole = self.marks.partition_point(|mark| mark.end <= sent);
        self.marks[..whole].iter().filter(|mark| mark.seq.is_some()).count() as u64
    }

    /// Where a stream stands of which these messages were sent up to `sent`; before the first of them it stood behind the
    /// event `after`.
    pub fn place(&self, sent: usize, after: u64) -> Place {
        let whole = self.marks.partition_point(|mark| mark.end <= sent);
        let (before, from) = self.marks.split_at(whole);
        let begun = sent - before.last().map_or(0, |mark| mark.end);
        let after = before.iter().rev().find_map(|mark| mark.seq).unwrap_or(after);
        match from.first() {
            // Of one job's events others lie between, which are none of this stream's.
            Some(Mark { seq: Some(seq), .. }) => Place { after: seq - 1, skip: begun, rest: Vec::new() },
            Some(Mark { end, seq: None }) if begun > 0 => {
                Place { after, skip: 0, rest: self.bytes[sent..*end].to_vec() }
            }
            _ => Place { after, ..Place::default() },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn text(chunked: bool, asides: &[&str], events: &[u64]) -> Text {
        let mut text = Text::new(chunked);
        asides.iter().for_each(|line| text.aside("log", line));
        events.iter().for_each(|seq| text.event(*seq, format!("{{\"seq\":{seq}}}").as_bytes()));
        text
    }

    #[test]
    fn messages_are_framed_one_by_one() {
        let raw = text(false, &["{}"], &[7]);
        assert_eq!(String::from_utf8_lossy(&raw.bytes), "event: log\ndata: {}\n\nid: 7\ndata: {\"seq\":7}\n\n");
        let mut chunked = text(true, &[], &[7]);
        chunked.end();
        assert_eq!(String::from_utf8_lossy(&chunked.bytes), "17\r\nid: 7\ndata: {\"seq\":7}\n\n\r\n0\r\n\r\n");
        let longest = text(false, &[], &[u64::MAX]);
        assert!(longest.bytes.starts_with(b"id: 18446744073709551615\ndata: "));
    }

    #[test]
    fn whoever_is_cut_off_at_any_byte_goes_on_there() {
        for chunked in [false, true] {
            // Of one job's: the others lie between.
            let events = [5, 9, 10];
            let whole = text(chunked, &["{\"a\":1}", "{\"b\":2}"], &events);
            let aside_end = text(chunked, &["{\"a\":1}", "{\"b\":2}"], &[]).bytes.len();
            for sent in 0..=whole.bytes.len() {
                let Place { after, skip, rest } = whole.place(sent, 3);
                let mut got = whole.bytes[..sent].to_vec();
                got.extend_from_slice(&rest);
                let left: Vec<u64> = events.into_iter().filter(|seq| *seq > after).collect();
                got.extend_from_slice(&text(chunked, &[], &left).bytes[skip..]);
                assert_eq!(whole.events_within(sent), (events.len() - left.len()) as u64, "at {sent}");
                // Asides that were not begun are missed; everything else is there once.
                if sent >= aside_end {
                    assert_eq!(got, whole.bytes, "at {sent}");
                } else {
                    let events_only = text(chunked, &[], &events).bytes;
                    assert!(got.ends_with(&events_only), "at {sent}");
                    assert!(whole.bytes.starts_with(&got[..got.len() - events_only.len()]), "at {sent}");
                }
            }
        }
    }
}
