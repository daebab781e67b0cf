//! Every state that a crash can leave: scenarios, their states, the promises, and a table of what was covered.

pub mod explore;
pub mod scenario;
pub mod tally;
