//! HackBrain Studio: the execution ledger.

pub mod manifest;
pub mod rejection;
pub mod sys;
