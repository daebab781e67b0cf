//! Events and what they mean. Pure: knows neither disk nor HTTP nor Docker; time comes in as data.

pub mod event;
pub mod fact;
pub mod graph;
mod head;
pub mod job;
pub mod lifecycle;
pub mod reproduction;
pub mod time;
