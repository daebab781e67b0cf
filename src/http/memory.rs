//! Memory that strangers may make us hold: shared among all connections, with a share of each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::rejection::Rejection;

/// Largest body that every connection may send without asking for memory.
pub(super) const SMALL_BODY: usize = 8 * 1024;
/// Bytes of larger bodies in memory at once, in all and of one client.
const BODIES: (usize, usize) = (4 * 1024 * 1024, 2 * 1024 * 1024);
/// How many times its size a body may take once parsed: lists of many small things.
pub(super) const PARSED: usize = 8;
/// Bytes that parsed bodies may take at once.
const PARSED_BYTES: usize = 16 * 1024 * 1024;
/// How long a large body waits for its turn to be handled.
pub(super) const TURN_WAIT: Duration = Duration::from_secs(15);
/// Bytes that may be held at once, in all and by one client. Who finds none left waits for others to give theirs back.
#[derive(Debug)]
pub(super) struct Budget {
    all: usize,
    each: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by: HashMap<IpAddr, usize>,
    /// Who waits for some to be given back.
    waiting: Vec<Thread>,
}

/// Bytes held; they are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    budget: Arc<Budget>,
    client: IpAddr,
    bytes: usize,
}

/// For bodies as they arrive.
pub(super) fn of_bodies(body_max: usize) -> Arc<Budget> {
    Budget::new(BODIES.0.max(body_max), BODIES.1.max(body_max))
}

/// For what becomes of them.
pub(super) fn of_parsed(body_max: usize) -> Arc<Budget> {
    Budget::new(PARSED_BYTES.max(body_max * PARSED), usize::MAX)
}

pub(super) fn too_many_bodies() -> Rejection {
    let message = "the node holds as many large bodies as it may; send it again, or in smaller parts";
    Rejection::new(503, "too_many_bodies", message)
}

impl Budget {
    pub(super) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all, each, held: Mutex::default() })
    }

    /// `bytes` for `client`, at once or until `deadline`; `None` where they did not come free. All that one request will
    /// need must be asked for at once: who held a part and waited for the rest would keep others from ever finishing.
    /// `None` also where the asker `is_over`; whoever brings that about unparks his thread.
    pub(super) fn lease(
        self: &Arc<Self>,
        client: IpAddr,
        bytes: usize,
        deadline: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> Option<Lease> {
        let me = thread::current();
        loop {
            let mut held = self.lock();
            held.waiting.retain(|other| other.id() != me.id());
            let own = held.by.get(&client).copied().unwrap_or_default();
            if held.all.saturating_add(bytes) <= self.all && own.saturating_add(bytes) <= self.each {
                held.all += bytes;
                held.by.insert(client, own + bytes);
                return Some(Lease { budget: Arc::clone(self), client, bytes });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || is_over() {
                return None;
            }
            // Under the lock: what is given back from now on unparks this thread.
            held.waiting.push(me.clone());
            drop(held);
            thread::park_timeout(left);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.budget.lock();
        held.all -= self.bytes;
        let own = held.by.get(&self.client).copied().unwrap_or_default() - self.bytes;
        if own == 0 {
            held.by.remove(&self.client);
        } else {
            held.by.insert(self.client, own);
        }
        // In the order in which they came; who finds too little waits again.
        held.waiting.drain(..).for_each(|thread| thread.unpark());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nobody_holds_more_than_a_share_nor_all_more_than_there_is() {
        let budget = Budget::new(10, 6);
        let ip = |n: u8| IpAddr::from([192, 0, 2, n]);
        let ask = |n, bytes| budget.lease(ip(n), bytes, Instant::now(), &|| false);
        let first = ask(1, 4).unwrap();
        assert!(ask(1, 3).is_none(), "over the share of one");
        let second = ask(1, 2).unwrap();
        assert!(ask(2, 5).is_none(), "over what there is");
        let third = ask(2, 4).unwrap();
        drop(first);
        assert!(ask(1, 5).is_none());
        drop((second, third));
        assert!(budget.held.lock().unwrap().by.is_empty() && budget.held.lock().unwrap().all == 0);
        let all = ask(1, 6).unwrap();
        let waits = thread::scope(|scope| {
            let waiting =
                scope.spawn(|| budget.lease(ip(1), 6, Instant::now() + Duration::from_secs(60), &|| false).is_some());
            drop(all);
            waiting.join().unwrap()
        });
        assert!(waits, "who waits is told");
        let _all = ask(1, 6).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        let is_over = || over.load(std::sync::atomic::Ordering::SeqCst);
        let until = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.lease(ip(1), 6, until, &is_over).is_some());
            over.store(true, std::sync::atomic::Ordering::SeqCst);
            waiting.thread().unpark();
            assert!(!waiting.join().unwrap(), "with whom it is over goes");
        });
    }
}
