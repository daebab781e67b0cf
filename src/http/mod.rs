//! The front door: accept loop, requests, routes, event streams.

pub mod access;
pub mod api;
mod artifacts;
pub mod body;
mod bundle;
mod date;
mod files;
mod graph;
mod jobs;
mod limits;
mod memory;
mod pieces;
mod query;
mod refused;
pub mod reply;
mod reproduce;
pub mod request;
pub mod routes;
pub mod server;
mod slots;
mod sse;
mod tar;
mod wire;
