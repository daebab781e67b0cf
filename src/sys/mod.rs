//! The only room with `unsafe` and libc: everything the standard library does not offer.
#![allow(unsafe_code)]

pub mod block;
pub mod copy;
pub mod dir;
pub mod kill_point;
pub mod kmsg;
pub mod listen;
pub mod lock;
pub mod memory;
pub mod peer;
pub mod place;
pub mod private;
pub mod process;
pub mod service_manager;
pub mod socket;
pub mod wait;

/// A panic in a thread that owns the ledger, or looks after attempts, is a broken invariant: the process must not go on.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
