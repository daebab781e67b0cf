//! The front door: accept loop, requests, routes, event streams.

pub mod access;
mod artifacts;
mod body;
mod bundle;
mod files;
mod graph;
mod query;
pub mod reply;
mod reproduce;
pub mod request;
pub mod routes;
pub mod server;
mod slots;
pub mod sse;
mod tar;
mod wire;
