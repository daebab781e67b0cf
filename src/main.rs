//! The control agent.
fn main() {}
