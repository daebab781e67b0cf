//! Completes a payload's output from the engine's log after the CLI that wrote it died or lost the engine.
//!
//! What the CLI captured is exact, and is a prefix of what the engine logged, with three known exceptions:
//! * the `local` log driver of Engine 20.10 drops the newline that ends a line of 16 KiB or more;
//! * a CLI that loses the engine appends its own words to the payload's stderr;
//! * a CLI may begin stderr with warnings of its own.
//!
//! Where none of them explains a difference, the captured bytes stay as they are and the difference is reported.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Cuts, OutputPaths, WORDS_BYTES_MAX};
use crate::runner::docker::{CliEnd, ContainerState, Docker, EngineError};

/// How well a file holds what the payload wrote to one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// Every byte.
    Complete {
        /// Bytes that came from the engine's log.
        appended: u64,
    },
    /// Every byte, but newlines after lines of 16 KiB or more may be missing from `at` on: there the engine's log is
    /// the only source.
    LongLines {
        /// Bytes that came from the engine's log.
        appended: u64,
        /// Offset in the file.
        at: u64,
    },
    /// The engine's log says something else (rotated, altered or lost): the captured bytes were kept, nothing was added.
    Differs {
        /// Offset in the file of the first byte that differs.
        at: u64,
    },
}

/// What [`settle`] and [`follow`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Standard output.
    pub stdout: Completeness,
    /// Standard error.
    pub stderr: Completeness,
    /// Docker's own words that stood in the payload's stderr; they are no longer there, except for warnings at its
    /// beginning (`leading_warnings`).
    pub dockers_words: String,
    /// Bytes of Docker's warnings with which the stderr file begins. They stay, since offsets that were already
    /// published must go on meaning the same bytes.
    pub leading_warnings: u64,
}

/// Why output could not be settled now; nothing is lost, and it can be tried again.
#[derive(Debug)]
pub enum SettleError {
    /// The engine's log cannot be read.
    Engine(EngineError),
    /// The files cannot be read or written.
    Io(io::Error),
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SettleError {}

impl From<io::Error> for SettleError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<EngineError> for SettleError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

/// Lines of at least this many bytes are split by the engine's log copier.
const LONG_LINE_BYTES: u64 = 16 << 10;
/// The first line of a CLI that warns before it runs the payload.
const WARNING: &[u8] = b"WARNING: ";
/// With these a CLI's own words begin.
const WORDS: [&[u8]; 9] = [
    b"docker: ",
    // CLI 20.10; later ones begin with the daemon's.
    b"Error: No such container",
    b"error waiting for container",
    b"error during connect",
    b"Error response from daemon",
    b"error from daemon in stream",
    b"Cannot connect to the Docker daemon",
    b"unexpected EOF",
    b"time=\"",
];
/// How far before a difference the CLI's words may begin: they may share their first bytes with the payload's next.
const WORDS_OVERLAP_MAX: u64 = 64;
/// Longest time in which the engine sends nothing of an ended container's log.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How often the log's reader is looked after.
const STEP: Duration = Duration::from_millis(10);

/// Makes the files of an ended attempt hold the payload's bytes, as far as they can be had. Idempotent.
///
/// `state` is of a container that does not run, `cli` how its CLI ended, none where that is unknown (adopted).
/// The lock must be free: call it only when [`OutputPaths::writer_alive`] says no.
///
/// # Errors
/// See [`SettleError`].
pub fn settle(
    docker: &Docker,
    container: &str,
    paths: &OutputPaths,
    state: &ContainerState,
    cli: Option<CliEnd>,
) -> Result<Settled, SettleError> {
    let untouched = Settled {
        stdout: Completeness::Complete { appended: 0 },
        stderr: Completeness::Complete { appended: 0 },
        dockers_words: String::new(),
        leading_warnings: 0,
    };
    if !state.started {
        return Ok(Settled { dockers_words: paths.take_dockers_words()?, ..untouched });
    }
    if was_attached(cli, state.exit_code) && leading_warnings(&File::open(&paths.stderr)?)?.is_empty() {
        return Ok(untouched);
    }
    complete(docker, container, paths, false, &AtomicBool::new(false))
}

/// Whether the CLI passed the payload's exit code on, and so was attached, and wrote, to the end.
pub fn was_attached(cli: Option<CliEnd>, exit_code: i32) -> bool {
    // 125 may also be its own failure, and 1 is what it ends with when it cannot write the files, e.g. on a full disk.
    cli == Some(CliEnd::Exited(exit_code)) && !matches!(exit_code, 1 | 125)
}

/// Goes on with the files of a container that runs while its CLI is dead, until it ends or `give_up` is set.
/// [`settle`] has the last word after that, also on what this one wrote.
///
/// # Errors
/// See [`SettleError`]; call it again when the engine is back.
pub fn follow(
    docker: &Docker,
    container: &str,
    paths: &OutputPaths,
    give_up: &AtomicBool,
) -> Result<Settled, SettleError> {
    complete(docker, container, paths, true, give_up)
}

fn complete(
    docker: &Docker,
    container: &str,
    paths: &OutputPaths,
    follow: bool,
    give_up: &AtomicBool,
) -> Result<Settled, SettleError> {
    let mut stdout = Merge::open(&paths.stdout, false, paths.cuts.clone())?;
    let mut stderr = Merge::open(&paths.stderr, true, paths.cuts.clone())?;
    let mut child = docker.spawn_logs(container, follow)?;
    let (stdout_pipe, stderr_pipe) = child.pipes();
    let progress = AtomicU64::new(0);
    let (ended, stalled) = thread::scope(|scope| {
        let readers = [
            scope.spawn(|| stdout.drain(stdout_pipe, &progress)),
            scope.spawn(|| stderr.drain(stderr_pipe, &progress)),
        ];
        let mut last = (0, Instant::now());
        let mut stalled = false;
        while !readers.iter().all(thread::ScopedJoinHandle::is_finished) {
            let now = progress.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, Instant::now());
            }
            stalled = !follow && last.1.elapsed() > STALL_MAX;
            if stalled || give_up.load(Ordering::Relaxed) {
                child.kill();
            }
            thread::sleep(STEP);
        }
        let results = readers.map(|reader| reader.join().unwrap_or_else(|_| Err(io::Error::other("reader panicked"))));
        (results.into_iter().collect::<io::Result<()>>(), stalled)
    });
    ended?;
    if child.wait()? != CliEnd::Exited(0) && !give_up.load(Ordering::Relaxed) {
        // `docker logs` too writes its own words to stderr, where they look like the payload's.
        let words = stderr.take_back_words()?;
        return Err(SettleError::Engine(if stalled {
            EngineError::Unavailable(format!("docker logs stood still for {STALL_MAX:?}"))
        } else {
            EngineError::from_words(&format!("docker logs: {words}"))
        }));
    }
    let (stdout_end, stderr_end) = (stdout.end()?, stderr.end()?);
    Ok(Settled {
        stdout: stdout_end,
        stderr: stderr_end,
        dockers_words: String::from_utf8_lossy(&stderr.words).trim().to_owned(),
        leading_warnings: stderr.leading,
    })
}

/// Steps through captured and logged bytes side by side, and forgives the newlines that the log driver drops. Pure.
#[derive(Debug, Default)]
struct Aligner {
    /// Bytes of the current captured line so far.
    line: u64,
    /// Only newlines came since a long line: which of them was dropped cannot be told until another byte comes.
    slack: bool,
}

impl Aligner {
    /// How many captured and logged bytes belong together, and whether the next ones differ.
    fn step(&mut self, captured: &[u8], logged: &[u8]) -> (usize, usize, bool) {
        let (mut c, mut l) = (0, 0);
        while let (Some(have), Some(said)) = (captured.get(c), logged.get(l)) {
            if have == said {
                self.pass(*have);
                l += 1;
            } else if !self.may_be_dropped(*have) {
                return (c, l, true);
            } else {
                *self = Self::default();
            }
            c += 1;
        }
        (c, l, false)
    }

    fn may_be_dropped(&self, byte: u8) -> bool {
        byte == b'\n' && (self.line >= LONG_LINE_BYTES || (self.slack && self.line == 0))
    }

    fn pass(&mut self, byte: u8) {
        if byte == b'\n' {
            self.slack = self.line >= LONG_LINE_BYTES || (self.slack && self.line == 0);
            self.line = 0;
        } else {
            self.line += 1;
            self.slack = false;
        }
    }
}

/// One stream's file being compared with, then completed from, the engine's log.
#[derive(Debug)]
struct Merge {
    file: File,
    cuts: Cuts,
    /// Bytes the file had at the beginning; lowered where Docker's words are cut off.
    captured: u64,
    /// Captured bytes compared so far.
    position: u64,
    /// Log bytes held back while it is open whether the file begins with Docker's warnings or the payload's.
    undecided: Option<Vec<u8>>,
    /// The CLI writes words of its own to this stream.
    is_stderr: bool,
    aligner: Aligner,
    appended: u64,
    long_lines_from: Option<u64>,
    differs: bool,
    words: Vec<u8>,
    leading: u64,
    /// The beginning of the file that may be Docker's warnings.
    warnings: Vec<u8>,
}

impl Merge {
    fn open(path: &Path, is_stderr: bool, cuts: Cuts) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).append(true).open(path)?;
        let warnings = if is_stderr { leading_warnings(&file)? } else { Vec::new() };
        Ok(Self {
            captured: file.metadata()?.len(),
            file,
            cuts,
            position: 0,
            undecided: (!warnings.is_empty()).then(Vec::new),
            is_stderr,
            aligner: Aligner::default(),
            appended: 0,
            long_lines_from: None,
            differs: false,
            words: Vec::new(),
            leading: 0,
            warnings,
        })
    }

    fn drain(&mut self, pipe: Option<impl Read>, progress: &AtomicU64) -> io::Result<()> {
        let Some(mut pipe) = pipe else { return Ok(()) };
        let mut buffer = vec![0; 64 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => {
                    self.push(&buffer[..length])?;
                    progress.fetch_add(length as u64, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn push(&mut self, logged: &[u8]) -> io::Result<()> {
        let Some(mut held) = self.undecided.take() else { return self.merge(logged) };
        held.extend_from_slice(logged);
        if held.len() < self.warnings.len() && self.warnings.starts_with(&held) {
            self.undecided = Some(held);
            return Ok(());
        }
        if !held.starts_with(&self.warnings) {
            self.skip_warnings();
        }
        self.merge(&held)
    }

    fn skip_warnings(&mut self) {
        self.words.clone_from(&self.warnings);
        self.leading = self.warnings.len() as u64;
        self.position = self.leading;
    }

    fn merge(&mut self, mut logged: &[u8]) -> io::Result<()> {
        let mut buffer = vec![0; 64 << 10];
        while !self.differs && !logged.is_empty() && self.position < self.captured {
            let room = buffer.len().min((self.captured - self.position) as usize);
            let length = self.file.read_at(&mut buffer[..room], self.position)?;
            if length == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "an output file shrank while it was read"));
            }
            let (compared, used, differs) = self.aligner.step(&buffer[..length], logged);
            self.position += compared as u64;
            logged = &logged[used..];
            if differs {
                self.differs = !self.cut_words()?;
            }
        }
        if self.differs || logged.is_empty() {
            return Ok(());
        }
        self.file.write_all(logged)?;
        for (i, byte) in logged.iter().enumerate() {
            self.aligner.pass(*byte);
            if self.aligner.line >= LONG_LINE_BYTES && self.long_lines_from.is_none() {
                self.long_lines_from = Some(self.captured + self.appended + i as u64 + 1);
            }
        }
        self.appended += logged.len() as u64;
        Ok(())
    }

    /// At a difference: whether the rest of the file is Docker's words, which are then cut off.
    fn cut_words(&mut self) -> io::Result<bool> {
        if !self.is_stderr || self.captured - self.position > WORDS_BYTES_MAX {
            return Ok(false);
        }
        let from = self.position.saturating_sub(WORDS_OVERLAP_MAX);
        let mut rest = vec![0; (self.captured - from) as usize];
        self.file.read_exact_at(&mut rest, from)?;
        let overlap = (self.position - from) as usize;
        let Some(at) = find_words(&rest).filter(|at| *at <= overlap) else { return Ok(false) };
        self.words.extend_from_slice(&rest[at..]);
        self.cuts.cut(&self.file, self.position)?;
        self.captured = self.position;
        Ok(true)
    }

    /// The log has ended: the result.
    fn end(&mut self) -> io::Result<Completeness> {
        if let Some(held) = self.undecided.take() {
            // The log stopped within what may be warnings. An empty one proves that they are Docker's.
            if held.is_empty() {
                self.skip_warnings();
            }
            self.merge(&held)?;
        }
        if !self.differs && self.position < self.captured {
            let mut next = [0; 1];
            self.file.read_exact_at(&mut next, self.position)?;
            let dropped = self.captured - self.position == 1 && self.aligner.may_be_dropped(next[0]);
            self.differs = !dropped && !self.cut_words()?;
        }
        let appended = self.appended;
        Ok(match self.long_lines_from {
            _ if self.differs => Completeness::Differs { at: self.position },
            Some(at) => Completeness::LongLines { appended, at },
            None => Completeness::Complete { appended },
        })
    }

    /// After `docker logs` failed: cuts its words off the end of what was appended from it, and gives them.
    fn take_back_words(&mut self) -> io::Result<String> {
        let length = self.captured + self.appended;
        let from = length - self.appended.min(WORDS_BYTES_MAX);
        let mut tail = vec![0; (length - from) as usize];
        self.file.read_exact_at(&mut tail, from)?;
        let Some(at) = find_words(&tail) else { return Ok("ended early".into()) };
        self.cuts.cut(&self.file, from + at as u64)?;
        Ok(String::from_utf8_lossy(&tail[at..]).trim().to_owned())
    }
}

/// Where the CLI's own words begin, if they are there.
fn find_words(bytes: &[u8]) -> Option<usize> {
    (0..bytes.len()).find(|at| WORDS.iter().any(|words| bytes[*at..].starts_with(words)))
}

/// The whole lines at the beginning of a file that look like the CLI's warnings.
fn leading_warnings(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; WORDS_BYTES_MAX as usize];
    let length = file.read_at(&mut head, 0)?;
    head.truncate(length);
    let mut end = 0;
    while head[end..].starts_with(WARNING) {
        let Some(newline) = head[end..].iter().position(|byte| *byte == b'\n') else { break };
        end += newline + 1;
    }
    head.truncate(end);
    Ok(head)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Merges with the log cut into chunks; gives the result and the file's bytes.
    fn merge(captured: &[u8], logged: &[u8], is_stderr: bool, chunk: usize) -> (Completeness, Vec<u8>, String, u64) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("hb-merge-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, captured).unwrap();
        let mut merge = Merge::open(&path, is_stderr, Cuts::default()).unwrap();
        for part in logged.chunks(chunk) {
            merge.push(part).unwrap();
        }
        let end = merge.end().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (end, bytes, String::from_utf8(merge.words).unwrap(), merge.leading)
    }

    #[test]
    fn a_prefix_is_completed_at_every_cut() {
        let payload: Vec<u8> = (0..=255).chain(*b"\nlast, no newline").collect();
        for cut in 0..=payload.len() {
            for is_stderr in [false, true] {
                let appended = (payload.len() - cut) as u64;
                let (end, bytes, ..) = merge(&payload[..cut], &payload, is_stderr, 1 + cut % 50);
                assert_eq!((end, &bytes), (Completeness::Complete { appended }, &payload), "cut at {cut}");
            }
        }
    }

    #[test]
    fn dropped_newlines_after_long_lines_are_forgiven_and_announced() {
        let long = vec![b'a'; LONG_LINE_BYTES as usize];
        let exact = [&long[..], b"\n\n\nb\n", &long, b"c\n", b"end\n"].concat();
        let logged = [&long[..], b"\n\nb\n", &long, b"c", b"end\n"].concat();
        for chunk in [1_000, 16_384, 16_385, 100_000] {
            // All captured: what was captured is right, whatever the log dropped.
            let (end, bytes, ..) = merge(&exact, &logged, false, chunk);
            assert_eq!((end, bytes == exact), (Completeness::Complete { appended: 0 }, true));
            // Captured up to after the second long line.
            let cut = exact.len() - 4;
            let (end, bytes, ..) = merge(&exact[..cut], &logged, false, chunk);
            assert_eq!((end, bytes == exact), (Completeness::Complete { appended: 4 }, true));
            // Captured before it: its newline comes from the log, and may be missing.
            let at = long.len() as u64 * 2 + 5;
            let (end, bytes, ..) = merge(&exact[..long.len() + 5], &logged, false, chunk);
            let appended = long.len() as u64 + 5;
            assert_eq!(end, Completeness::LongLines { appended, at });
            assert!(bytes == [&long[..], b"\n\n\nb\n", &long, b"cend\n"].concat());
        }
        // The long line is the last one, its newline dropped.
        let (end, ..) = merge(&exact[..=long.len()], &long, false, 9_999);
        assert_eq!(end, Completeness::Complete { appended: 0 });
        // A shorter line never loses its newline.
        let (end, ..) = merge(b"aa\nb", b"aab", false, 10);
        assert_eq!(end, Completeness::Differs { at: 2 });
    }

    #[test]
    fn an_unexplained_difference_changes_nothing() {
        for (captured, logged, at) in
            [(&b"one\ntwo\n"[..], &b"one\ntwx\nthree\n"[..], 6), (b"one\ntwo\n", b"one\n", 4), (b"\xff!", b"\xef", 0)]
        {
            for is_stderr in [false, true] {
                let (end, bytes, words, _) = merge(captured, logged, is_stderr, 3);
                assert_eq!((end, &bytes[..], &words[..]), (Completeness::Differs { at }, captured, ""));
            }
        }
    }

    #[test]
    fn dockers_words_leave_the_payloads_stderr() {
        let words = "error waiting for container: unexpected EOF\n";
        for (printed, logged) in [
            ("", "late\n"),
            ("one\n", "one\ntwo\n"),
            ("one\n", "one\n"),
            ("unterminated", "unterminated line\n"),
            // The payload's next line shares its first bytes with the words.
            ("one\n", "one\nerror in step 7\n"),
        ] {
            for chunk in [1, 7, 100] {
                let captured = format!("{printed}{words}");
                let (end, bytes, cut, _) = merge(captured.as_bytes(), logged.as_bytes(), true, chunk);
                assert!(matches!(end, Completeness::Complete { .. }), "{printed:?} {logged:?}: {end:?}");
                assert_eq!((String::from_utf8(bytes).unwrap().as_str(), cut.as_str()), (logged, words));
            }
        }
        // The payload's own words, which the log confirms, stay.
        let own = format!("one\n{words}");
        let (end, bytes, cut, _) = merge(own.as_bytes(), own.as_bytes(), true, 10);
        assert_eq!(
            (end, bytes, cut),
            (Completeness::Complete { appended: 0 }, own.clone().into_bytes(), String::new())
        );
        // Nothing of Docker's is ever in stdout.
        assert_eq!(merge(own.as_bytes(), b"one\n", false, 10).0, Completeness::Differs { at: 4 });
    }

    #[test]
    fn leading_warnings_are_told_from_the_payloads() {
        let warning = "WARNING: No swap limit support\n";
        for chunk in [1, 5, 100] {
            for logged in ["", "W", "WARNING: mine\n", "payload\nmore\n"] {
                let captured = format!("{warning}{}", &logged[..logged.len() / 2]);
                let (end, bytes, words, leading) = merge(captured.as_bytes(), logged.as_bytes(), true, chunk);
                let whole = format!("{warning}{logged}");
                if logged == "W" {
                    // The log could be the beginning of either; nothing is cut or added.
                    assert_eq!((end, String::from_utf8(bytes).unwrap()), (Completeness::Differs { at: 1 }, captured));
                    continue;
                }
                assert!(matches!(end, Completeness::Complete { .. }), "{logged:?}: {end:?}");
                assert_eq!((String::from_utf8(bytes).unwrap(), words.as_str()), (whole, warning));
                assert_eq!(leading, warning.len() as u64);
            }
            let (end, _, words, leading) = merge(warning.as_bytes(), format!("{warning}x").as_bytes(), true, chunk);
            assert_eq!((end, words.as_str(), leading), (Completeness::Complete { appended: 1 }, "", 0));
        }
    }
}
