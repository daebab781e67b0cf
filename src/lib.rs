//! HackBrain Studio: the execution ledger. The map; docs/architecture/HackBrain_System_Overview.md walks it with one job.
//!
//! | room | what it does |
//! |---|---|
//! | [`config`] | flags, environment, every limit a named constant with its unit |
//! | [`serve`] | the agent: starts threads in order, stops them in reverse |
//! | [`verify`] | offline `verify` and `dump`, over the agent's own recovery and event code |
//! | [`backup`] | a copy of a data directory, also while its agent runs |
//! | [`sys`] | the only `unsafe` and libc: `O_DIRECT` files, descriptors of directories, mounts, locks |
//! | [`wal`] | opaque records in, durable and in order, or an error that ends everything |
//! | [`ledger`] | events, legal transitions, `decide` and `apply`: pure |
//! | [`engine`] | the ledger thread: decides and appends, and only after the sync publishes, replies, acts |
//! | [`view`] | the durable world as readers may see it |
//! | [`manifest`], [`canonical`], [`hash`] | untrusted JSON to a job, RFC 8785, SHA-256: pure |
//! | [`admission`] | what this agent allows beyond that |
//! | [`runner`] | attempts from intent to verdict, adoption, mounts, output, control groups, the Docker CLI |
//! | [`seal`] | tree hash of inputs, seal of artifacts |
//! | [`http`] | accept loop, requests, routes, event stream, the viewer's files |
//! | [`resources`] | what an attempt gets of CPUs, memory, processes and GPUs: pure |
//! | [`host`] | the host's fingerprint |
//! | [`rejection`] | the caller's mistakes |
//! | [`lists`] | lists and tokens that files hold, and what is exchanged when they are read again |
//! | [`log_lines`] | what the log tells of jobs, and how a line holds a value |
//! | [`metrics`] | figures in Prometheus's text form |
//!
//! **Architecture Invariants**, each kept by tests/architecture.rs:
//! `ledger` knows neither disk nor HTTP nor Docker; `wal` carries opaque bytes and knows no jobs; `runner` and `http` never
//! touch `wal`; only `engine` joins ledger and log, only `serve` joins all; only `runner/docker` spawns a process; only `sys`
//! has `unsafe`.

pub mod admission;
pub mod backup;
pub mod canonical;
pub mod config;
pub mod engine;
pub mod hash;
pub mod host;
pub mod http;
pub mod ledger;
pub mod lists;
pub mod log_lines;
pub mod manifest;
pub mod metrics;
pub mod rejection;
pub mod resources;
pub mod runner;
pub mod seal;
pub mod serve;
pub mod sys;
pub mod verify;
pub mod view;
pub mod wal;
