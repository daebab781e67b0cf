//! The only room with `unsafe` and libc: everything the standard library does not offer.
#![allow(unsafe_code)]

pub mod block;
pub mod dir;
pub mod lock;
pub mod place;
