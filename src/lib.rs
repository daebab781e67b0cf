//! HackBrain Studio: the execution ledger.

pub mod admission;
pub mod canonical;
pub mod config;
pub mod engine;
pub mod hash;
pub mod host;
pub mod http;
pub mod ledger;
pub mod manifest;
pub mod rejection;
pub mod runner;
pub mod seal;
pub mod serve;
pub mod sys;
pub mod verify;
pub mod view;
pub mod wal;
