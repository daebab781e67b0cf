//! Answers that may be long, written piece by piece: what is held of them does not grow with them.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};

use tiny_http::Response;

use super::files::unreadable;
use super::reply::{Reply, StreamWriter, header};
use super::routes::Answer;

/// Answers up to this many bytes are held and sent whole, so that the connection can be kept; longer ones are streamed.
/// Small, since each of a thousand connections may hold so much.
const WHOLE_BYTES: usize = 16 << 10;

/// Lines are read until they have so many bytes.
const LINES_BYTES: usize = 16 << 10;
/// Room for them, and for the most of the line that goes beyond.
const LINES_ROOM: usize = LINES_BYTES + (2 << 10);

/// Takes pieces of an answer; `false` where no more are wanted.
pub(super) type EachPiece<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// An answer of the pieces that `produce` calls back with. It is called once to see whether the answer is short, and once
/// more to stream one that is not: both times with the same pieces.
pub(super) fn pieces(
    content_type: &'static str,
    produce: impl Fn(EachPiece<'_>) -> io::Result<()> + Send + 'static,
) -> Answer {
    let mut whole = Vec::new();
    let turn = Turn::take();
    produce(&mut |piece| {
        whole.extend_from_slice(piece);
        whole.len() <= WHOLE_BYTES
    })
    .map_err(|error| unreadable(&error))?;
    drop(turn);
    let content_type = header("Content-Type", content_type);
    if whole.len() <= WHOLE_BYTES {
        return Ok(Reply::Full(Response::from_data(whole).with_header(content_type).boxed()));
    }
    let run = move |to: &mut StreamWriter<'_>| {
        let (mut buffer, mut sent) = (Vec::with_capacity(WHOLE_BYTES), Ok(()));
        let mut turn = Some(Turn::take());
        produce(&mut |piece| {
            buffer.extend_from_slice(piece);
            if buffer.len() >= WHOLE_BYTES {
                // Nobody's turn is spent on waiting for a client.
                turn = None;
                sent = to.send(&buffer);
                buffer.clear();
                turn = sent.is_ok().then(Turn::take);
            }
            sent.is_ok()
        })?;
        drop(turn);
        sent.and_then(|()| to.send(&buffer))
    };
    Ok(Reply::Stream { status: 200, headers: vec![content_type], ends: true, run: Box::new(run) })
}

/// The right to compute an answer. As many have it as there are processors: hundreds of clients that ask for much would
/// otherwise all compute at once, and a request that needs next to nothing would wait behind every one of them. It goes to
/// who has waited longest: who gives it back and takes it again, piece by piece, lets everybody else go first.
pub(super) struct Turn;

/// Who has a turn, and who waits for one.
struct Turns {
    taken: usize,
    waiting: VecDeque<Arc<Waiting>>,
}

struct Waiting {
    thread: Thread,
    given: AtomicBool,
}

static TURNS: Mutex<Turns> = Mutex::new(Turns { taken: 0, waiting: VecDeque::new() });

impl Turn {
    pub(super) fn take() -> Self {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
        let mut turns = Self::lock();
        if turns.taken < most {
            turns.taken += 1;
            return Self;
        }
        let waiting = Arc::new(Waiting { thread: thread::current(), given: AtomicBool::new(false) });
        turns.waiting.push_back(waiting.clone());
        drop(turns);
        while !waiting.given.load(Ordering::Acquire) {
            thread::park();
        }
        Self
    }

    fn lock() -> MutexGuard<'static, Turns> {
        TURNS.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut turns = Self::lock();
        let Some(next) = turns.waiting.pop_front() else {
            turns.taken -= 1;
            return;
        };
        drop(turns);
        next.given.store(true, Ordering::Release);
        next.thread.unpark();
    }
}

/// Events as JSON lines, of which `next` adds some more each time, about [`LINES_BYTES`], and none at their end. While a
/// client is waited for, no frame of the ledger is held: one may have megabytes.
pub(super) fn lines(mut next: impl FnMut(&mut Vec<u8>) -> io::Result<()> + Send + 'static) -> Answer {
    let mut batch = move |text: &mut Vec<u8>| {
        let _turn = Turn::take();
        // The same room each time, made here: who waits for a turn with the first of it holds nothing. But that of a long
        // line is not kept.
        if text.capacity() != LINES_ROOM {
            *text = Vec::with_capacity(LINES_ROOM);
        }
        text.clear();
        next(text)
    };
    let content_type = header("Content-Type", "application/x-ndjson");
    let mut text = Vec::new();
    batch(&mut text).map_err(|error| unreadable(&error))?;
    // Fewer than there may be are all there are.
    if text.len() < LINES_BYTES {
        return Ok(Reply::Full(Response::from_data(text).with_header(content_type).boxed()));
    }
    let run = move |to: &mut StreamWriter<'_>| {
        while !text.is_empty() {
            to.send(&text)?;
            batch(&mut text)?;
        }
        Ok(())
    };
    Ok(Reply::Stream { status: 200, headers: vec![content_type], ends: true, run: Box::new(run) })
}

/// Adds a line; whether there is room for another.
pub(super) fn add_line(text: &mut Vec<u8>, bytes: &[u8]) -> bool {
    text.extend_from_slice(bytes);
    text.push(b'\n');
    text.len() < LINES_BYTES
}

/// The items of a JSON list, after `[` or a comma each; `false` as soon as `each` says so.
pub(super) fn list<T>(
    items: impl IntoIterator<Item = T>,
    write: impl Fn(T, &mut Vec<u8>) -> io::Result<()>,
    each: EachPiece<'_>,
) -> io::Result<bool> {
    let mut text = Vec::new();
    let mut before = b'[';
    for item in items {
        text.clear();
        text.push(before);
        before = b',';
        write(item, &mut text)?;
        if !each(&text) {
            return Ok(false);
        }
    }
    Ok(each(if before == b'[' { b"[]" } else { b"]" }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_goes_to_who_has_waited_longest() {
        let most = thread::available_parallelism().map_or(1, NonZero::get);
        let mut held: Vec<Turn> = (0..most).map(|_| Turn::take()).collect();
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for number in 0..3 {
                let order = &order;
                scope.spawn(move || {
                    let _turn = Turn::take();
                    order.lock().unwrap().push(number);
                });
                while Turn::lock().waiting.len() <= number {
                    thread::yield_now();
                }
            }
            // Who gives it back and takes it again at once comes last.
            drop(held.pop());
            let _turn = Turn::take();
            order.lock().unwrap().push(3);
            drop(held);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
        let turns = Turn::lock();
        assert_eq!((turns.taken, turns.waiting.len()), (0, 0));
    }
}
