//! What the log tells of jobs, and how a line holds a value: logfmt.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use log::Level;

use crate::engine::OnJob;
use crate::ledger::event::State;
use crate::ledger::lifecycle::Job;

/// Where lines of jobs go.
const TARGET: &str = "hackbrain::job";
/// Lines that may wait to be written. Whoever reads the log so slowly misses some, and is told how many.
const WAITING_MAX: usize = 16 << 10;
/// How long the writer lets lines gather once it has written all: else the ledger's thread would wake it for each.
const GATHER: Duration = Duration::from_millis(5);
/// How long the end waits for the last lines.
const END: Duration = Duration::from_secs(1);

/// A value as logfmt holds it: as it is where it is printable ASCII without a blank, `"`, `=` or `\`; else as a JSON
/// string in ASCII, so that whatever a client sends stays on its line and does nothing to a terminal.
pub fn value(text: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\');
    if !text.is_empty() && text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            ' '..='~' => quoted.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(quoted, "\\u{unit:04x}");
                }
            }
        }
    }
    quoted.push('"');
    Cow::Owned(quoted)
}

enum Message {
    Job(Arc<Job>),
    End,
}

/// Tells of each event of a job, once it is durable. A thread of its own writes: the ledger must not wait for whoever
/// reads the log. Dropping it writes what waits.
pub struct JobLog {
    lines: Sender<Message>,
    left_out: Arc<AtomicU64>,
    /// Hung up once the thread has ended.
    ended: Receiver<()>,
}

impl JobLog {
    /// Starts the thread.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start() -> io::Result<Self> {
        let (lines, waiting) = bounded(WAITING_MAX);
        let (alive, ended) = bounded(0);
        let left_out = Arc::new(AtomicU64::new(0));
        let missing = left_out.clone();
        thread::Builder::new().name("job-log".into()).stack_size(256 << 10).spawn(move || {
            let _alive: Sender<()> = alive;
            write(&waiting, &missing);
        })?;
        Ok(Self { lines, left_out, ended })
    }

    /// To be called with each job whose event has become durable, in order. Does not block.
    pub fn on_job(&self) -> OnJob {
        let (lines, left_out) = (self.lines.clone(), self.left_out.clone());
        Box::new(move |job| {
            if log::log_enabled!(target: TARGET, level(job.state)) {
                match lines.try_send(Message::Job(job.clone())) {
                    Err(TrySendError::Full(_)) => drop(left_out.fetch_add(1, Ordering::Relaxed)),
                    Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                }
            }
        })
    }
}

impl Drop for JobLog {
    fn drop(&mut self) {
        if self.lines.send_timeout(Message::End, END).is_ok() {
            let _ = self.ended.recv_timeout(END);
        }
    }
}

/// A payload may print markers as fast as the ledger takes them.
fn level(state: State) -> Level {
    if state == State::D1Stable { Level::Debug } else { Level::Info }
}

fn write(waiting: &Receiver<Message>, left_out: &AtomicU64) {
    loop {
        match waiting.recv() {
            Ok(Message::Job(job)) => log::log!(target: TARGET, level(job.state), "{}", line(&job)),
            Ok(Message::End) | Err(_) => return tell_left_out(left_out),
        }
        if waiting.is_empty() {
            tell_left_out(left_out);
            thread::sleep(GATHER);
        }
    }
}

fn tell_left_out(left_out: &AtomicU64) {
    let missing = left_out.swap(0, Ordering::Relaxed);
    if missing > 0 {
        log::warn!(target: TARGET, "job lines_left_out={missing}");
    }
}

/// What the event that left the job like this did.
fn line(job: &Job) -> String {
    let Job { job_id, attempt, state, seq, .. } = job;
    let mut line = format!("job job_id={} attempt={attempt} state={state} seq={seq}", value(job_id));
    if let Some(reason) = job.reason.as_deref().filter(|_| matches!(state, State::Crash | State::Failed)) {
        let _ = write!(line, " reason={}", value(reason));
    }
    let ends_attempt = matches!(state, State::Crash | State::Failed | State::Completed | State::Cancelled);
    if let Some(exit_code) = job.exit_code.filter(|_| ends_attempt) {
        let _ = write!(line, " exit_code={exit_code}");
    }
    if let Some(ancestor) = job.ancestor().filter(|_| *state == State::Failed) {
        let _ = write!(line, " ancestor={}", value(ancestor));
    }
    line
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_on_their_line_and_come_back() {
        for plain in ["a", "/api/jobs", "127.0.0.1", "-", "a%20b"] {
            assert_eq!(value(plain), plain);
        }
        for (text, quoted) in [
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("a=b", r#""a=b""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("a\r\nb\t", r#""a\r\nb\t""#),
            ("\x1b[2J\x7f\0", r#""\u001b[2J\u007f\u0000""#),
            ("ä\u{202e}\u{2028}😀", r#""\u00e4\u202e\u2028\ud83d\ude00""#),
        ] {
            assert_eq!(value(text), quoted);
            assert_eq!(serde_json::from_str::<String>(&value(text)).unwrap(), text);
        }
    }
}
