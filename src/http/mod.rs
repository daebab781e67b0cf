//! The front door: accept loop, requests, routes, event streams.

pub mod access;
mod artifacts;
mod body;
mod bundle;
mod files;
mod graph;
mod mask;
pub mod metrics;
mod protect;
mod query;
pub mod refusals;
pub mod reply;
mod reproduce;
pub mod request;
pub mod routes;
pub mod server;
mod slots;
mod sse;
mod tar;
mod wire;
