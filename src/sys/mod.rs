//! The only room with `unsafe` and libc: everything the standard library does not offer.
#![allow(unsafe_code)]

pub mod block;
pub mod dir;
pub mod kill_point;
pub mod kmsg;
pub mod lock;
pub mod peer;
pub mod place;
pub mod process;
