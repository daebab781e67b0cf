//! Answers on their way from the ledger thread to those who asked, and how these are woken.
//!
//! A channel would do, but its receivers look and yield a few times before they sleep: of sixty-four that wait for one sync
//! nearly all the time went there. Here who waits sleeps at once. Of many that one sync lets go the ledger thread wakes two,
//! and each that leaves wakes two more, so that it can take the next commands meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;

use super::Answer;

/// So few are woken by the ledger thread itself.
const FEW: usize = 4;

/// An answer that is to come, for the one who asked.
pub struct Asked {
    slot: Arc<Slot>,
    waking: Arc<Waking>,
}

/// The ledger thread's end of it. Dropping it without an answer hangs up.
pub(super) struct Reply(Arc<Slot>);

/// Those whose answers are there, and who may be asleep.
#[derive(Default)]
pub(super) struct Waking(Mutex<Vec<(Thread, Arc<Slot>)>>);

struct Slot(Mutex<State>);

enum State {
    /// With the thread that sleeps until it comes, if there is one.
    Awaited(Option<Thread>),
    Answered(Answer),
    HungUp,
    Taken,
}

/// Both ends of an answer.
pub(super) fn answer(waking: &Arc<Waking>) -> (Reply, Asked) {
    let slot = Arc::new(Slot(Mutex::new(State::Awaited(None))));
    (Reply(slot.clone()), Asked { slot, waking: waking.clone() })
}

impl Asked {
    /// Waits for the answer; `None` where the ledger thread has ended without one.
    pub fn wait(self) -> Option<Answer> {
        loop {
            if let Some(outcome) = self.look() {
                return outcome;
            }
            thread::park();
        }
    }

    /// The same for so long at most; may be asked again after a timeout.
    ///
    /// # Errors
    /// The time is over, or the ledger thread has ended.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Answer, RecvTimeoutError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(outcome) = self.look() {
                return outcome.ok_or(RecvTimeoutError::Disconnected);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && self.give_up_waiting() {
                return Err(RecvTimeoutError::Timeout);
            }
            thread::park_timeout(left);
        }
    }

    /// Takes the thread out again: one that was counted on to wake others, and does not wait any more, would let them sleep
    /// on. False where the answer has come meanwhile.
    fn give_up_waiting(&self) -> bool {
        match &mut *self.slot.lock() {
            State::Awaited(thread) => {
                *thread = None;
                true
            }
            _ => false,
        }
    }

    /// What has come of it so far; enters the present thread where that is nothing.
    fn look(&self) -> Option<Option<Answer>> {
        let mut state = self.slot.lock();
        let answer = match std::mem::replace(&mut *state, State::Taken) {
            State::Answered(answer) => Some(answer),
            State::HungUp | State::Taken => None,
            State::Awaited(_) => {
                *state = State::Awaited(Some(thread::current()));
                return None;
            }
        };
        drop(state);
        // After the answer was taken: whoever finds it still there relies on this thread to wake others.
        self.waking.wake(2);
        Some(answer)
    }
}

impl Reply {
    /// Puts the answer there. Who sleeps until it comes is woken by the next [`Waking::begin`].
    pub(super) fn send(self, answer: Answer, waking: &Waking) {
        let before = std::mem::replace(&mut *self.0.lock(), State::Answered(answer));
        if let State::Awaited(Some(thread)) = before {
            waking.lock().push((thread, self.0.clone()));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let State::Awaited(thread) = &mut *state {
            let thread = thread.take();
            *state = State::HungUp;
            drop(state);
            if let Some(thread) = thread {
                thread.unpark();
            }
        }
    }
}

impl Waking {
    /// Sees to it that everyone whose answer has been sent wakes up.
    pub(super) fn begin(&self) {
        let count = self.lock().len();
        self.wake(if count <= FEW { count } else { 2 });
    }

    fn wake(&self, mut count: usize) {
        while count > 0 {
            let next = self.lock().pop();
            let Some((thread, slot)) = next else { return };
            // One that has taken its answer was awake, and has woken others itself.
            if !matches!(*slot.lock(), State::Taken) {
                thread.unpark();
                count -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Thread, Arc<Slot>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::engine::stopped;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn is_awaited_by_a_thread(reply: &Reply) -> bool {
        matches!(*reply.0.lock(), State::Awaited(Some(_)))
    }

    #[test]
    fn everyone_gets_the_answer_whether_asleep_or_not() {
        let waking = Arc::new(Waking::default());
        for sleepers in [1, FEW, FEW + 1, 64] {
            let (sent, got) = channel();
            let (replies, threads): (Vec<_>, Vec<_>) = (0..sleepers)
                .map(|number| {
                    let (reply, asked) = answer(&waking);
                    let sent = sent.clone();
                    let wait = move || sent.send((number, asked.wait().unwrap().unwrap_err().status)).unwrap();
                    (reply, thread::spawn(wait))
                })
                .unzip();
            while !replies.iter().all(is_awaited_by_a_thread) {
                thread::yield_now();
            }
            // Some wake by themselves once their answer is there, and find it, before they are called.
            for (index, reply) in replies.into_iter().enumerate() {
                reply.send(Err(stopped()), &waking);
                if index % 3 == 0 {
                    threads[index].thread().unpark();
                }
            }
            waking.begin();
            let mut numbers: Vec<usize> = (0..sleepers).map(|_| got.recv_timeout(PATIENCE).unwrap().0).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, (0..sleepers).collect::<Vec<_>>());
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        let (reply, asked) = answer(&waking);
        reply.send(Err(stopped()), &waking);
        assert!(asked.wait().unwrap().is_err(), "an answer that was there first");
    }

    #[test]
    fn an_answer_that_never_comes_is_hung_up_and_one_that_is_late_can_still_be_taken() {
        let waking = Arc::new(Waking::default());
        let (reply, asked) = answer(&waking);
        let waiting = thread::spawn(move || asked.wait());
        while !is_awaited_by_a_thread(&reply) {
            thread::yield_now();
        }
        drop(reply);
        assert!(waiting.join().unwrap().is_none());
        let (reply, asked) = answer(&waking);
        assert!(matches!(asked.wait_timeout(Duration::from_millis(1)), Err(RecvTimeoutError::Timeout)));
        reply.send(Err(stopped()), &waking);
        waking.begin();
        assert!(asked.wait_timeout(PATIENCE).unwrap().is_err());
        let (reply, asked) = answer(&waking);
        drop(reply);
        assert!(matches!(asked.wait_timeout(Duration::ZERO), Err(RecvTimeoutError::Disconnected)));
        let (reply, asked) = answer(&waking);
        drop(reply);
        assert!(matches!(asked.wait_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected)));
        // Nobody wants this one.
        let (reply, asked) = answer(&waking);
        drop(asked);
        reply.send(Err(stopped()), &waking);
    }

    #[test]
    fn those_who_waited_no_longer_let_nobody_sleep_on() {
        let waking = Arc::new(Waking::default());
        let (sent, got) = channel();
        let (replies, threads): (Vec<_>, Vec<_>) = (0..2 * FEW)
            .map(|_| {
                let (reply, asked) = answer(&waking);
                let sent = sent.clone();
                (reply, thread::spawn(move || sent.send(asked.wait().is_some()).unwrap()))
            })
            .unzip();
        while !replies.iter().all(is_awaited_by_a_thread) {
            thread::yield_now();
        }
        let late: Vec<_> = (0..2).map(|_| answer(&waking)).collect();
        assert!(late.iter().all(|(_, asked)| asked.wait_timeout(Duration::from_millis(1)).is_err()));
        let (late, _asked): (Vec<_>, Vec<_>) = late.into_iter().unzip();
        // Answered last, they would be the first to be called.
        replies.into_iter().chain(late).for_each(|reply| reply.send(Err(stopped()), &waking));
        waking.begin();
        assert!(threads.iter().all(|_| got.recv_timeout(PATIENCE).unwrap()));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
