//! The lines of a log: where they begin, and which hold a text. Read in blocks and in turns, so that neither memory nor
//! anybody else's wait grows with the log.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;

use memchr::memmem::Finder;
use memchr::{memchr, memchr_iter, memrchr};
use serde_json::json;

use super::api::Call;
use super::artifacts::client_gone;
use super::files::{behind_end, gone, unreadable};
use super::pieces::{EachPiece, Turn, pieces};
use super::reply::header;
use super::routes::{Answer, App, with_headers};
use crate::rejection::Rejection;
use crate::runner::sealed::OpenFile;

/// Lines that a search tells, unless asked otherwise.
const MATCHES: u64 = 1000;
/// Bytes of a log that one request looks at: more only to the end of a line that is longer.
const STRETCH_BYTES: u64 = 256 << 20;
/// Bytes that are read at once.
const BLOCK_BYTES: usize = 256 << 10;
/// Blocks that one turn looks at, about a millisecond's work: whoever needs a turn for next to nothing waits so long.
const BLOCKS_A_TURN: usize = 4;
/// Offsets of an index, at most; the least distance of their lines.
const OFFSETS_MAX: usize = 4096;
const EVERY_MIN: u64 = 1024;
/// Newlines are counted in so many bytes at once, and looked at singly only where an offset is wanted among them.
const COUNTED_BYTES: usize = 4096;

impl App {
    /// `GET /api/jobs/{id}/stdout/lines` and `/stderr/lines`.
    pub(super) fn lines(&self, call: &Call<'_>, stream: &str) -> Answer {
        let (path, attempt, may_lack) = self.log(call, stream)?;
        let whose = vec![header("X-Attempt", &attempt.to_string())];
        let file = match OpenFile::own(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound && may_lack => None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            Err(error) => return Err(unreadable(&error)),
        };
        // Taken once: what the payload writes meanwhile is the next request's.
        let size = file.as_ref().map_or(0, OpenFile::size);
        let from = call.query.number("from").unwrap_or(0);
        if from > size {
            let message = format!("the log has {size} bytes; let from be an offset of one of its lines, or its length");
            let rejection = Rejection::new(416, "range", message).field("from");
            return Ok(with_headers(behind_end(&rejection, size), whose));
        }
        let limit = call.query.number("limit").unwrap_or(MATCHES);
        let mut scan = Scan::new(from..size, STRETCH_BYTES, call.query.text("find").map(str::as_bytes), limit);
        while let (Some(file), false) = (&file, scan.is_done()) {
            let turn = Turn::take();
            let mut buffer = vec![0; BLOCK_BYTES];
            for _ in 0..BLOCKS_A_TURN {
                scan.block(&mut buffer, &|into, at| file.read_at(into, at)).map_err(|error| unreadable(&error))?;
            }
            drop(turn);
            if self.stopping.load(Ordering::Relaxed) {
                return Err(Rejection::new(503, "stopping", "the agent is stopping; ask again when it is back"));
            }
            if !scan.is_done() && call.request.peer_gone() {
                return Err(client_gone());
            }
        }
        let found = scan.finish();
        let reply = pieces("application/json", move |each| {
            found.write(each);
            Ok(())
        })?;
        Ok(with_headers(reply, whose))
    }
}

/// Numbers of which none is less than the one before, in a byte or two each: a thousand clients may take their answers
/// slowly.
#[derive(Debug, Default)]
struct Rising {
    bytes: Vec<u8>,
    last: u64,
    count: usize,
}

impl Rising {
    fn push(&mut self, number: u64) {
        let mut step = number - self.last;
        while step >= 0x80 {
            self.bytes.push(step as u8 | 0x80);
            step >>= 7;
        }
        self.bytes.push(step as u8);
        (self.last, self.count) = (number, self.count + 1);
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        let (mut bytes, mut last) = (self.bytes.iter(), 0);
        std::iter::from_fn(move || {
            let (mut step, mut shift) = (0, 0);
            loop {
                let byte = *bytes.next()?;
                step |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    last += step;
                    return Some(last);
                }
            }
        })
    }

    fn every_second(&self) -> Self {
        let mut kept = Self::default();
        self.iter().step_by(2).for_each(|number| kept.push(number));
        kept
    }
}

/// A stretch of a log, looked at block by block.
struct Scan {
    from: u64,
    size: u64,
    /// Behind this, no further line is looked at.
    until: u64,
    find: Option<Finder<'static>>,
    limit: usize,
    /// So far everything was looked at.
    at: u64,
    /// The end of what was looked at, where the text may begin: shorter than the text, and of the line that is begun.
    carried: Vec<u8>,
    /// Lines that have ended, and where the next begins.
    lines: u64,
    line_start: u64,
    /// Whether the line that is begun holds the text.
    is_match: bool,
    every: u64,
    offsets: Rising,
    matching: u64,
    match_lines: Rising,
    match_offsets: Rising,
}

impl Scan {
    /// Of the bytes in `stretch`, about the first `most`.
    fn new(stretch: Range<u64>, most: u64, find: Option<&[u8]>, limit: u64) -> Self {
        let mut offsets = Rising::default();
        offsets.push(stretch.start);
        Self {
            from: stretch.start,
            size: stretch.end,
            until: stretch.start.saturating_add(most),
            find: find.map(|text| Finder::new(text).into_owned()),
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            at: stretch.start,
            carried: Vec::new(),
            lines: 0,
            line_start: stretch.start,
            is_match: false,
            every: EVERY_MIN,
            offsets,
            matching: 0,
            match_lines: Rising::default(),
            match_offsets: Rising::default(),
        }
    }

    /// A stretch has at least one line, however long that is: who goes on behind it must get on.
    fn is_done(&self) -> bool {
        self.at >= self.size || (self.at >= self.until && self.lines > 0)
    }

    /// Looks at the next block, if there is one. `read` reads at an offset; the text must fit into the buffer twice.
    fn block(&mut self, buffer: &mut [u8], read: &dyn Fn(&mut [u8], u64) -> io::Result<usize>) -> io::Result<()> {
        if self.is_done() {
            return Ok(());
        }
        let carried = self.carried.len();
        buffer[..carried].copy_from_slice(&self.carried);
        let end = if self.at < self.until { self.until.min(self.size) } else { self.size };
        let room = (buffer.len() - carried) as u64;
        let want = usize::try_from((end - self.at).min(room)).unwrap_or(0);
        let got = read(&mut buffer[carried..carried + want], self.at)?;
        if got == 0 {
            // What Docker itself had written was cut off.
            self.size = self.at;
        }
        let base = self.at - carried as u64;
        self.at += got as u64;
        self.look(&buffer[..carried + got], carried, base);
        Ok(())
    }

    /// `bytes` begin at `base`; of `seen` of them the lines are counted already.
    fn look(&mut self, bytes: &[u8], seen: usize, base: u64) {
        let Some(find) = self.find.take() else { return self.count(bytes, seen..bytes.len(), base) };
        let (mut at, mut counted) = (0, seen);
        if self.is_match {
            // Nothing of it is carried; what else it holds does not matter.
            at = memchr(b'\n', bytes).map_or(bytes.len(), |newline| newline + 1);
            self.is_match = at == bytes.len() && bytes.last().is_none_or(|&byte| byte != b'\n');
        }
        while let Some(found) = find.find(&bytes[at..]).map(|found| at + found) {
            // One that begins in what was carried is of the line that is begun: it has no newline, and ends behind it.
            if found > counted {
                self.count(bytes, counted..found, base);
                counted = found;
            }
            self.matching += 1;
            if self.match_lines.count < self.limit {
                self.match_lines.push(self.lines);
                self.match_offsets.push(self.line_start);
            }
            match memchr(b'\n', &bytes[found..]) {
                Some(newline) => at = found + newline + 1,
                None => (at, self.is_match) = (bytes.len(), true),
            }
        }
        self.count(bytes, counted..bytes.len(), base);
        let rest = (bytes.len() - at).min(find.needle().len() - 1);
        self.carried.clear();
        self.carried.extend_from_slice(&bytes[bytes.len() - rest..]);
        self.find = Some(find);
    }

    /// Counts the lines that end in `part`.
    fn count(&mut self, bytes: &[u8], part: Range<usize>, base: u64) {
        let mut base = base + part.start as u64;
        for piece in bytes[part].chunks(COUNTED_BYTES) {
            let ended = memchr_iter(b'\n', piece).count() as u64;
            if (self.lines + ended) / self.every == self.lines / self.every {
                self.lines += ended;
            } else {
                for newline in memchr_iter(b'\n', piece) {
                    self.lines += 1;
                    if self.lines.is_multiple_of(self.every) {
                        self.offsets.push(base + newline as u64 + 1);
                        if self.offsets.count > OFFSETS_MAX {
                            self.offsets = self.offsets.every_second();
                            self.every *= 2;
                        }
                    }
                }
            }
            if let Some(newline) = memrchr(b'\n', piece) {
                self.line_start = base + newline as u64 + 1;
            }
            base += piece.len() as u64;
        }
    }

    fn finish(self) -> Found {
        let begun = self.at > self.line_start;
        // At the log's end it is a line as well; elsewhere whoever goes on looks at it whole.
        let (is_last, is_cut) = (begun && self.at >= self.size, begun && self.at < self.size);
        let lines = self.lines + u64::from(is_last);
        let dropped = usize::from(is_cut && self.is_match);
        let matching = self.matching - dropped as u64;
        Found {
            from: self.from,
            end: if is_last { self.at } else { self.line_start },
            size: self.size,
            lines,
            unfinished: is_last.then_some(self.line_start),
            every: self.every,
            // The last newline may have no line behind it.
            offsets: (lines.div_ceil(self.every) as usize, self.offsets),
            matching: self.find.is_some().then_some(matching),
            matches: ((matching as usize).min(self.limit), self.match_lines, self.match_offsets),
        }
    }
}

/// What was found. Of the lists so many count.
struct Found {
    from: u64,
    end: u64,
    size: u64,
    lines: u64,
    unfinished: Option<u64>,
    every: u64,
    offsets: (usize, Rising),
    matching: Option<u64>,
    matches: (usize, Rising, Rising),
}

impl Found {
    /// The answer, in JSON.
    fn write(&self, each: EachPiece<'_>) {
        let Self { from, end, size, lines, every, .. } = self;
        let [unfinished, matching] = [self.unfinished, self.matching].map(|number| json!(number));
        let (offsets, (count, of_lines, of_offsets)) = (&self.offsets, &self.matches);
        let _ = each(format!("{{\"from\":{from},\"end\":{end},\"size\":{size},\"lines\":{lines},").as_bytes())
            && each(format!("\"unfinished\":{unfinished},\"every\":{every},\"offsets\":[").as_bytes())
            && write_all(offsets.1.iter().take(offsets.0).map(|offset| offset.to_string()), each)
            && each(format!("],\"matching\":{matching},\"matches\":[").as_bytes())
            && write_all(
                of_lines.iter().zip(of_offsets.iter()).take(*count).map(|(line, offset)| format!("[{line},{offset}]")),
                each,
            )
            && each(b"]}");
    }
}

/// The items with a comma between each two; `false` as soon as `each` says so.
fn write_all(items: impl Iterator<Item = String>, each: EachPiece<'_>) -> bool {
    items.enumerate().all(|(index, item)| (index == 0 || each(b",")) && each(item.as_bytes()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
