//! D1_STABLE markers in a payload's output: finding them, and thinning them out. Pure.

use std::time::Duration;

/// A line that begins with this is a marker.
pub const MARKER_PREFIX: &[u8] = b"[D1_STABLE]";
/// Bytes of a marker's line that are kept.
pub const MARKER_LINE_BYTES_MAX: usize = 1024;
/// Markers per second that become events, at most.
pub const MARKERS_PER_S_MAX: u32 = 20;

/// Which of a payload's two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The word in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// 0 for stdout, 1 for stderr.
    pub fn index(self) -> usize {
        usize::from(self == Self::Stderr)
    }
}

/// One marker line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The line without its end, at most [`MARKER_LINE_BYTES_MAX`] bytes; what is not UTF-8 became U+FFFD.
    pub line: String,
    /// Where it was printed.
    pub stream: Stream,
    /// Offset in the stream of the line's first byte.
    pub offset: u64,
}

/// Finds the markers of one stream, fed chunk by chunk. Memory is bounded by one line's [`MARKER_LINE_BYTES_MAX`].
#[derive(Debug)]
pub struct MarkerScanner {
    stream: Stream,
    /// Bytes fed so far.
    position: u64,
    /// Offset of the current line's first byte.
    line_start: u64,
    /// The current line's beginning; never longer than [`MARKER_LINE_BYTES_MAX`].
    line: Vec<u8>,
    /// The current line is known to be no marker.
    plain: bool,
}

impl MarkerScanner {
    /// A scanner whose first byte has the given offset in the stream and begins a line.
    pub fn new(stream: Stream, offset: u64) -> Self {
        Self { stream, position: offset, line_start: offset, line: Vec::new(), plain: false }
    }

    /// Feeds the next bytes; `found` gets every marker whose line ends in them.
    pub fn push(&mut self, mut bytes: &[u8], found: &mut dyn FnMut(Marker)) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let (part, rest) = bytes.split_at(newline.unwrap_or(bytes.len()));
            self.keep(part);
            self.position += part.len() as u64;
            bytes = rest;
            if newline.is_some() {
                self.end_line(found);
                self.position += 1;
                self.line_start = self.position;
                bytes = &bytes[1..];
            }
        }
    }

    /// The stream has ended: an unterminated line counts now.
    pub fn finish(mut self, found: &mut dyn FnMut(Marker)) {
        self.end_line(found);
    }

    /// Where to resume after a restart: the offset of the first line that has not ended.
    pub fn resume_offset(&self) -> u64 {
        self.line_start
    }

    fn keep(&mut self, part: &[u8]) {
        if self.plain {
            return;
        }
        let room = MARKER_LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        let compared = self.line.len().min(MARKER_PREFIX.len());
        if self.line[..compared] != MARKER_PREFIX[..compared] {
            self.plain = true;
            self.line.clear();
        }
    }

    fn end_line(&mut self, found: &mut dyn FnMut(Marker)) {
        if !self.plain && self.line.starts_with(MARKER_PREFIX) {
            let kept = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
            let mut line = String::from_utf8_lossy(kept).into_owned();
            // U+FFFD is longer than the byte it stands for, so the limit is applied again.
            line.truncate(char_boundary(&line, MARKER_LINE_BYTES_MAX));
            found(Marker { line, stream: self.stream, offset: self.line_start });
        }
        self.line.clear();
        self.plain = false;
    }
}

fn char_boundary(text: &str, bytes_max: usize) -> usize {
    (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// A marker that goes out, with the number of markers it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountedMarker {
    /// The latest of them.
    pub marker: Marker,
    /// 1 or more; the counts of all that went out add up to the number offered.
    pub count: u64,
}

/// Lets at most [`MARKERS_PER_S_MAX`] markers a second through, of both streams together and evenly spaced; the others are
/// folded into the next of their stream. While both wait they take turns. `now` is any clock that does not go back.
#[derive(Debug, Default)]
pub struct MarkerLimiter {
    next_at: Duration,
    /// What is held back of each stream.
    held: [Option<CountedMarker>; 2],
    /// Whose turn it is where both wait.
    turn: usize,
}

/// Shortest time between two markers that go out.
const SPACING: Duration = Duration::from_millis(1000 / MARKERS_PER_S_MAX as u64);

impl MarkerLimiter {
    /// A limiter through which the first marker goes at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a marker, and gives what may go out now: it, or one of the other stream.
    pub fn offer(&mut self, marker: Marker, now: Duration) -> Option<CountedMarker> {
        self.hold(marker);
        self.due(now)
    }

    /// Takes a marker and keeps it.
    pub fn hold(&mut self, marker: Marker) {
        let held = &mut self.held[marker.stream.index()];
        let count = held.take().map_or(0, |folded| folded.count) + 1;
        *held = Some(CountedMarker { marker, count });
    }

    /// What was held back and may go out now.
    pub fn due(&mut self, now: Duration) -> Option<CountedMarker> {
        if now < self.next_at {
            return None;
        }
        let from = if self.held[self.turn].is_some() { self.turn } else { 1 - self.turn };
        let out = self.held[from].take()?;
        self.turn = 1 - from;
        self.next_at = now + SPACING;
        Some(out)
    }

    /// What went out last has its time only now, e.g. because recording it took a while: the pace counts from here.
    pub fn sent(&mut self, now: Duration) {
        self.next_at = self.next_at.max(now + SPACING);
    }

    /// When to ask [`MarkerLimiter::due`] again; none while nothing is held back.
    pub fn due_at(&self) -> Option<Duration> {
        self.held.iter().any(Option::is_some).then_some(self.next_at)
    }

    /// Drops what is held back of a stream, which is going to be read again. The pace stays.
    pub fn forget(&mut self, stream: Stream) {
        self.held[stream.index()] = None;
    }

    /// What is still held back, whatever the time: the last marker of a stream is never lost.
    pub fn flush(&mut self) -> [Option<CountedMarker>; 2] {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(chunks: &[&[u8]]) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut scanner = MarkerScanner::new(Stream::Stdout, 0);
        for chunk in chunks {
            scanner.push(chunk, &mut |marker| found.push((marker.line, marker.offset)));
        }
        scanner.finish(&mut |marker| found.push((marker.line, marker.offset)));
        found
    }

    #[test]
    fn markers_are_found_however_the_bytes_are_cut() {
        let text = b"x [D1_STABLE] no\n[D1_STABLE] a\n\n[D1_STAB] no\n[D1_STABLE]\r\n [D1_STABLE] no\n[D1_STABLE] end";
        let expected: Vec<(String, u64)> =
            [("[D1_STABLE] a", 17), ("[D1_STABLE]", 45), ("[D1_STABLE] end", 74)].map(|(l, o)| (l.into(), o)).into();
        assert_eq!(scan(&[text]), expected);
        for size in 1..text.len() {
            assert_eq!(scan(&text.chunks(size).collect::<Vec<_>>()), expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_unterminated_line_counts_only_at_the_end() {
        let mut found = 0;
        let mut scanner = MarkerScanner::new(Stream::Stderr, 100);
        scanner.push(b"a\n[D1_STABLE] b", &mut |_| found += 1);
        assert_eq!((found, scanner.resume_offset()), (0, 102));
        let mut last = None;
        scanner.finish(&mut |marker| last = Some(marker));
        let line = "[D1_STABLE] b".to_owned();
        assert_eq!(last, Some(Marker { line, stream: Stream::Stderr, offset: 102 }));
        assert!(scan(&[b"[D1_STABLE"]).is_empty());
    }

    #[test]
    fn long_lines_cost_no_memory_and_are_cut() {
        let mut scanner = MarkerScanner::new(Stream::Stdout, 0);
        let mut found = Vec::new();
        let block = vec![0xff; 1 << 20];
        for _ in 0..100 {
            scanner.push(&block, &mut |marker| found.push(marker));
        }
        assert!(scanner.line.capacity() <= 2 * MARKER_LINE_BYTES_MAX, "{}", scanner.line.capacity());
        scanner.push(b"\n[D1_STABLE]", &mut |marker| found.push(marker));
        scanner.push(&block, &mut |marker| found.push(marker));
        assert!(scanner.line.capacity() <= 2 * MARKER_LINE_BYTES_MAX);
        scanner.push(b"\n", &mut |marker| found.push(marker));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].offset, 100 * (1 << 20) + 1);
        assert!(found[0].line.len() <= MARKER_LINE_BYTES_MAX && found[0].line.ends_with('\u{fffd}'));
    }

    fn marker(stream: Stream, offset: u64) -> Marker {
        Marker { line: format!("[D1_STABLE] {offset}"), stream, offset }
    }

    #[test]
    fn a_flood_is_thinned_to_twenty_a_second_of_both_streams_and_counts_add_up() {
        const EACH: u64 = 5_000;
        // How often each stream prints, in microseconds, and how long it takes to record an event. The streams never end
        // within the time, so neither may be quiet for longer than a few turns.
        for (step_us, record_us) in [
            ([1, 1], 0),
            ([1, 700], 0),
            ([700, 1], 30_000),
            ([49_999, 50_000], 0),
            ([25_000, 130_000], 10_000),
            ([60_000, 60_000], 70_000),
        ] {
            let case = format!("{step_us:?} {record_us}");
            let mut limiter = MarkerLimiter::new();
            let mut out: Vec<(Duration, CountedMarker)> = Vec::new();
            let mut busy_until = 0;
            let mut offered = [0; 2];
            while offered.iter().all(|offered| *offered < EACH) {
                let stream = usize::from(offered[1] * step_us[1] < offered[0] * step_us[0]);
                let at = (offered[stream] * step_us[stream]).max(busy_until);
                let now = Duration::from_micros(at);
                for ready in [
                    limiter.due(now),
                    limiter.offer(marker([Stream::Stdout, Stream::Stderr][stream], offered[stream]), now),
                ]
                .into_iter()
                .flatten()
                {
                    busy_until = at + record_us;
                    limiter.sent(Duration::from_micros(busy_until));
                    out.push((Duration::from_micros(busy_until), ready));
                }
                offered[stream] += 1;
            }
            for window in out.windows(MARKERS_PER_S_MAX as usize + 1) {
                assert!(window[MARKERS_PER_S_MAX as usize].0 - window[0].0 >= Duration::from_secs(1), "{case}");
            }
            let last = out.last().expect("the first goes out at once").0;
            for stream in [Stream::Stdout, Stream::Stderr] {
                let mine: Vec<_> = out.iter().filter(|(_, counted)| counted.marker.stream == stream).collect();
                let step = Duration::from_micros(step_us[stream.index()]);
                let patience = 2 * (SPACING + Duration::from_micros(record_us)) + 2 * step;
                assert!(last < patience || mine.len() > 1, "{case}: {stream:?} never had its turn");
                assert!(mine.windows(2).all(|pair| pair[1].0 - pair[0].0 <= patience), "{case}: {stream:?} starved");
                assert!(mine.windows(2).all(|pair| pair[0].1.marker.offset < pair[1].1.marker.offset), "{case}");
            }
            let rest = limiter.flush().into_iter().flatten().map(|counted| (Duration::MAX, counted));
            out.extend(rest);
            for (stream, offered) in [Stream::Stdout, Stream::Stderr].into_iter().zip(offered) {
                let mine: Vec<_> = out.iter().filter(|(_, counted)| counted.marker.stream == stream).collect();
                assert_eq!(mine.iter().map(|(_, counted)| counted.count).sum::<u64>(), offered, "{case}");
                assert_eq!(
                    mine.last().map(|(_, counted)| counted.marker.offset),
                    offered.checked_sub(1),
                    "the latest line wins"
                );
            }
            assert_eq!((limiter.flush(), limiter.due_at()), ([None, None], None));
        }
    }

    #[test]
    fn streams_take_turns_and_one_alone_need_not_wait_for_the_other() {
        use Stream::{Stderr, Stdout};
        let mut limiter = MarkerLimiter::new();
        let at = |spacings: u32| SPACING * spacings;
        let sent = |out: Option<CountedMarker>| out.map(|out| (out.marker.stream, out.marker.offset, out.count));
        assert_eq!(sent(limiter.offer(marker(Stdout, 1), at(0))), Some((Stdout, 1, 1)));
        assert_eq!(limiter.due_at(), None);
        for offset in 2..5 {
            assert_eq!(sent(limiter.offer(marker(Stdout, offset), at(0))), None);
        }
        assert_eq!(sent(limiter.offer(marker(Stderr, 9), at(0))), None);
        assert_eq!(limiter.due_at(), Some(at(1)));
        assert_eq!(sent(limiter.due(at(1))), Some((Stderr, 9, 1)), "the other one's turn");
        assert_eq!(sent(limiter.due(at(2))), Some((Stdout, 4, 3)));
        assert_eq!(sent(limiter.offer(marker(Stdout, 5), at(3))), Some((Stdout, 5, 1)), "alone");
        limiter.hold(marker(Stderr, 10));
        limiter.hold(marker(Stdout, 6));
        limiter.forget(Stdout);
        assert_eq!(limiter.due_at(), Some(at(4)), "the pace outlives what is forgotten");
        limiter.hold(marker(Stdout, 6));
        assert_eq!(limiter.flush().map(sent), [Some((Stdout, 6, 1)), Some((Stderr, 10, 1))]);
    }
}
