//! Refused requests: all of them counted by code, and told in the log at a pace that no flood can raise.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::Level;

use crate::log_lines::value;

/// Where the lines go.
const TARGET: &str = "hackbrain::http";
/// Lines in one window of [`WINDOW`].
const LINES_MAX: u32 = 20;
/// See [`LINES_MAX`].
const WINDOW: Duration = Duration::from_secs(1);
/// Lines that wait to be written, at most; more wait only where the log's reader hangs.
const WAITING_MAX: usize = 64;
/// Characters of a path in a line, and of a method.
const PATH_MAX: usize = 200;
const METHOD_MAX: usize = 20;

/// A request, or a connection, that was refused.
#[derive(Debug)]
pub struct Refused<'a> {
    /// HTTP status.
    pub status: u16,
    /// The rejection's code.
    pub code: &'static str,
    /// `-` where it did not arrive whole.
    pub method: &'a str,
    /// Without the query; `-` where it did not arrive whole.
    pub path: &'a str,
    /// Who sent it.
    pub remote: SocketAddr,
}

/// Counts refusals and tells of them.
#[derive(Debug, Default)]
pub struct Refusals {
    state: Mutex<State>,
    /// The first line of a window was left out, or nobody will write any more.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Codes are literals, so there are few.
    by_code: BTreeMap<&'static str, u64>,
    pace: Pace,
    /// To be written by the thread of [`Refusals::keep`]: whoever refuses must not wait for who reads the log.
    lines: VecDeque<(Level, String)>,
    closed: bool,
}

/// How many lines there may still be.
#[derive(Debug, Default)]
struct Pace {
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Pace {
    /// Whether a line may be written now; and how many were left out in the window that is over, if there were any.
    fn ask(&mut self, now: Instant) -> (bool, Option<u64>) {
        let before = self.due().filter(|due| *due <= now).map(|_| self.take());
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            *self = Self { began: Some(now), ..Self::default() };
        }
        if self.written < LINES_MAX {
            self.written += 1;
            return (true, before);
        }
        self.left_out += 1;
        (false, before)
    }

    /// When it should be told how many were left out.
    fn due(&self) -> Option<Instant> {
        self.began.filter(|_| self.left_out > 0).map(|began| began + WINDOW)
    }

    fn take(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

impl Refusals {
    /// Counts one, and writes its line if the pace allows.
    pub fn note(&self, refused: &Refused<'_>) {
        let level = if refused.status >= 500 { Level::Warn } else { Level::Info };
        let mut state = self.lock();
        *state.by_code.entry(refused.code).or_default() += 1;
        // Lines that nobody wants take nothing of what those may have that somebody does.
        if !log::log_enabled!(target: TARGET, level) {
            return;
        }
        let (may, before) = state.pace.ask(Instant::now());
        state.lines.extend(before.map(left_out));
        if may && state.lines.len() < WAITING_MAX {
            let Refused { status, code, method, path, remote } = refused;
            let (method, path) = (cut(method, METHOD_MAX), cut(path, PATH_MAX));
            let (method, path) = (value(&method), value(&path));
            let remote = remote.ip().to_canonical();
            let line = format!("http status={status} code={code} method={method} path={path} remote={remote}");
            state.lines.push_back((level, line));
        } else if may {
            state.pace.left_out += 1;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// How many there were of each code.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.lock().by_code.iter().map(|(code, count)| (*code, *count)).collect()
    }

    /// Writes the lines, and how many were left out once a flood is over, until [`Refusals::close`].
    pub fn keep(&self) {
        let mut state = self.lock();
        loop {
            if let Some((level, line)) = state.lines.pop_front() {
                drop(state);
                log::log!(target: TARGET, level, "{line}");
                state = self.lock();
                continue;
            }
            if state.closed {
                return;
            }
            state = match state.pace.due().map(|due| due.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let line = left_out(state.pace.take());
                    state.lines.push_back(line);
                    state
                }
                Some(wait) => self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Ends [`Refusals::keep`] once it has written what there is, with how many lines were left out until now.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let missing = state.pace.take();
        if missing > 0 {
            state.lines.push_back(left_out(missing));
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn left_out(count: u64) -> (Level, String) {
    (Level::Info, format!("http lines_left_out={count}"))
}

/// The first characters; an ellipsis tells that there were more.
fn cut(text: &str, max: usize) -> String {
    let mut characters = text.chars();
    let mut short: String = characters.by_ref().take(max).collect();
    if characters.next().is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_lines_a_window_and_the_rest_is_told_once_it_is_over() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut pace = Pace::default();
        let written = (0..1000).filter(|n| pace.ask(at(n / 2)).0).count();
        assert_eq!((written, pace.left_out, pace.due()), (20, 980, Some(at(1000))));
        assert_eq!(pace.ask(at(999)), (false, None));
        assert_eq!(pace.ask(at(1000)), (true, Some(981)));
        assert_eq!(pace.due(), None, "it is told once");
        let written = (0..1000).filter(|_| pace.ask(at(1500)).0).count();
        assert_eq!((written, pace.take(), pace.due()), (19, 981, None));
        assert_eq!(pace.ask(at(60_000)), (true, None));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("äöüß", 3), "äöü...");
    }
}
