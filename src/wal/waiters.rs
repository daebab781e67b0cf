//! Threads that wait for a record to be durable, and how they are woken without holding up the next frame.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// So few are woken by the writer itself, in one go. More of them wake each other: each that leaves wakes two.
pub(super) const FEW: usize = 16;

/// The threads that wait.
#[derive(Default)]
pub(super) struct Waiters {
    waiting: Mutex<Vec<Arc<Waiter>>>,
    /// Their records are durable, and they may be asleep.
    to_wake: Mutex<Vec<Arc<Waiter>>>,
}

/// One that waits.
pub(super) struct Waiter {
    seq: u64,
    thread: Thread,
    /// It has left, or is about to and will then wake others: to wake it would end the chain.
    gone: AtomicBool,
}

impl Waiters {
    /// Enters the present thread. It must look once more whether the record is durable before it parks, and leave at last.
    pub fn enter(&self, seq: u64) -> Arc<Waiter> {
        let waiter = Arc::new(Waiter { seq, thread: thread::current(), gone: AtomicBool::new(false) });
        lock(&self.waiting).push(waiter.clone());
        waiter
    }

    /// Takes the thread out, whether it slept or not, and wakes the next two.
    pub fn leave(&self, waiter: &Waiter) {
        // First this, then that: whoever finds it still there relies on it to wake others.
        waiter.gone.store(true, Ordering::Release);
        self.wake(2);
    }

    /// Sees to it that everyone who waits for a record below this seq wakes up.
    pub fn durable_below(&self, below: u64) {
        let mut waiting = lock(&self.waiting);
        let mut to_wake = lock(&self.to_wake);
        to_wake.extend(waiting.extract_if(.., |waiter| waiter.seq < below));
        let count = to_wake.len();
        drop((to_wake, waiting));
        self.wake(if count <= FEW { count } else { 2 });
    }

    /// Wakes everyone whose record is not durable and never will be.
    pub fn wake_all(&self) {
        for waiter in lock(&self.waiting).drain(..) {
            waiter.thread.unpark();
        }
    }

    fn wake(&self, mut count: usize) {
        while count > 0 {
            let next = lock(&self.to_wake).pop();
            let Some(waiter) = next else { return };
            if !waiter.gone.load(Ordering::Acquire) {
                waiter.thread.unpark();
                count -= 1;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Sleepers that leave once they are woken, among `early` that leave before anybody is.
    fn all_wake(sleepers: usize, early: usize) {
        let waiters = Arc::new(Waiters::default());
        let (entered, awake) = (channel(), channel());
        let threads: Vec<_> = (0..sleepers)
            .map(|_| {
                let (waiters, entered, awake) = (waiters.clone(), entered.0.clone(), awake.0.clone());
                thread::spawn(move || {
                    let waiter = waiters.enter(1);
                    entered.send(()).unwrap();
                    thread::park();
                    waiters.leave(&waiter);
                    awake.send(()).unwrap();
                })
            })
            .collect();
        (0..sleepers).for_each(|_| entered.1.recv().unwrap());
        // The last that enter are the first to be woken: they have seen for themselves that the record is durable.
        for _ in 0..early {
            let waiter = waiters.enter(1);
            waiters.leave(&waiter);
        }
        waiters.durable_below(2);
        for count in 0..sleepers {
            awake.1.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{count} of {sleepers} woke up"));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }

    #[test]
    fn all_wake_up_though_some_have_left_by_themselves() {
        for early in [0, 1, 2, 3, 40] {
            for sleepers in [1, 2, FEW, FEW + 1, 64] {
                all_wake(sleepers, early);
            }
        }
    }

    #[test]
    fn who_waits_for_a_later_record_sleeps_on() {
        let waiters = Waiters::default();
        let (_first, _second) = (waiters.enter(1), waiters.enter(2));
        waiters.durable_below(2);
        assert_eq!(lock(&waiters.waiting).len(), 1);
        waiters.wake_all();
        assert!(lock(&waiters.waiting).is_empty());
    }
}
