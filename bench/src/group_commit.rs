//! A transactional store as a backend: each append a transaction of its own, or gathered by a thread.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};

use crate::Fault;
use crate::backends::Backend;

/// The most appends that share a transaction.
const BATCH_MAX: usize = 1024;

/// A store with transactions.
pub trait Store: Send + Sync + 'static {
    /// Puts all payloads in, in one transaction; durable on return.
    fn commit<'p>(&self, payloads: impl Iterator<Item = &'p [u8]>) -> Result<(), Fault>;
}

/// Every append is a transaction.
pub struct Plain<S>(pub S);

impl<S: Store> Backend for Plain<S> {
    fn append(&self, payload: &[u8]) -> Result<(), Fault> {
        self.0.commit(std::iter::once(payload))
    }
}

/// Callers hand their payloads to a thread, which commits all that came while it was at the transaction before.
pub struct Batched {
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    failure: Arc<OnceLock<String>>,
}

const PENDING: u8 = 0;
const DURABLE: u8 = 1;
const FAILED: u8 = 2;

struct Ticket {
    state: AtomicU8,
    caller: Thread,
}

struct Request {
    payload: Vec<u8>,
    ticket: Arc<Ticket>,
}

impl Request {
    fn end(&self, state: u8) {
        self.ticket.state.store(state, Ordering::Release);
        self.ticket.caller.unpark();
    }
}

impl Drop for Request {
    /// A request that is given up fails, whatever the reason: no caller waits for ever.
    fn drop(&mut self) {
        if self.ticket.state.load(Ordering::Relaxed) == PENDING {
            self.end(FAILED);
        }
    }
}

impl Batched {
    pub fn new(store: impl Store) -> Result<Self, Fault> {
        let (sender, receiver) = channel();
        let failure = Arc::new(OnceLock::new());
        let noted = failure.clone();
        let thread =
            thread::Builder::new().name("batching".into()).spawn(move || commit_batches(&store, &receiver, &noted))?;
        Ok(Self { requests: Some(sender), thread: Some(thread), failure })
    }

    fn failed(&self) -> Fault {
        self.failure.get().map_or("the batching thread ended", String::as_str).into()
    }
}

fn commit_batches(store: &impl Store, requests: &Receiver<Request>, failure: &OnceLock<String>) {
    let mut batch: Vec<Request> = Vec::new();
    while let Ok(first) = requests.recv() {
        batch.push(first);
        batch.extend(requests.try_iter().take(BATCH_MAX - 1));
        match store.commit(batch.iter().map(|request| request.payload.as_slice())) {
            Ok(()) => batch.iter().for_each(|request| request.end(DURABLE)),
            // The first one is the cause of the others.
            Err(fault) => drop(failure.set(fault.to_string())),
        }
        batch.clear();
    }
}

impl Backend for Batched {
    fn append(&self, payload: &[u8]) -> Result<(), Fault> {
        let ticket = Arc::new(Ticket { state: AtomicU8::new(PENDING), caller: thread::current() });
        let request = Request { payload: payload.to_vec(), ticket: ticket.clone() };
        let sent = self.requests.as_ref().map(|requests| requests.send(request));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.failed());
        }
        loop {
            match ticket.state.load(Ordering::Acquire) {
                PENDING => thread::park(),
                DURABLE => return Ok(()),
                _ => return Err(self.failed()),
            }
        }
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        // The thread ends when nobody can send any more; only then the store is closed.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Fails the transaction that holds the payload `[13]`.
    #[derive(Default)]
    struct Memory(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Store for Memory {
        fn commit<'p>(&self, payloads: impl Iterator<Item = &'p [u8]>) -> Result<(), Fault> {
            let batch: Vec<Vec<u8>> = payloads.map(<[u8]>::to_vec).collect();
            if batch.contains(&vec![13]) {
                return Err("thirteen".into());
            }
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    #[test]
    fn whatever_was_acknowledged_was_committed_once() {
        let store = Memory::default();
        let kept = store.0.clone();
        let backend = Batched::new(store).unwrap();
        thread::scope(|scope| {
            for thread in 0..8u8 {
                let (backend, kept) = (&backend, &kept);
                scope.spawn(move || {
                    for index in 0..100 {
                        backend.append(&[100 + thread, index]).unwrap();
                        assert!(kept.lock().unwrap().contains(&vec![100 + thread, index]));
                    }
                });
            }
        });
        drop(backend);
        let mut kept = kept.lock().unwrap().clone();
        kept.sort();
        kept.dedup();
        assert_eq!(kept.len(), 800);
    }

    #[test]
    fn a_failed_transaction_fails_its_callers_with_the_cause() {
        let backend = Batched::new(Memory::default()).unwrap();
        backend.append(&[1]).unwrap();
        assert_eq!(backend.append(&[13]).unwrap_err().to_string(), "thirteen");
        backend.append(&[2]).unwrap();
    }
}
