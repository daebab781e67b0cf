//! A job of the simplest kind, and what the agent tells of it.
#![allow(clippy::unwrap_used, dead_code)]

use std::path::Path;

use serde_json::{Value, json};

use super::agent::{Agent, manifest};

/// A job that runs a shell line on these mounts.
pub fn shell(id: &str, spec: &[String], line: &str) -> Value {
    let mut job = manifest(id, &["sh", "-c", line]);
    if !spec.is_empty() {
        job["mount_spec"] = json!(spec);
    }
    job
}

/// A writable mount.
pub fn at(host: &Path, container: &str) -> String {
    format!("{}:{container}", host.display())
}

pub fn summary(agent: &Agent, id: &str) -> Value {
    agent.get(&format!("/api/jobs/{id}")).json()
}

/// The job's events.
pub fn trace(agent: &Agent, id: &str) -> Vec<Value> {
    let text = agent.get(&format!("/api/jobs/{id}/trace")).text();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn states(agent: &Agent, id: &str) -> Vec<String> {
    trace(agent, id).iter().map(|event| event["state"].as_str().unwrap().to_owned()).collect()
}

/// The detail of a job's last event with this state.
#[track_caller]
pub fn detail(agent: &Agent, id: &str, state: &str) -> Value {
    let events = trace(agent, id);
    let last = events.iter().rfind(|event| event["state"] == state);
    last.unwrap_or_else(|| panic!("{state} in {events:?}"))["detail"].clone()
}

/// Submits a job that must be sealed; its id, once it is.
#[track_caller]
pub fn sealed(agent: &Agent, job: &Value) -> String {
    agent.accepted(job);
    is_sealed(agent, job["job_id"].as_str().unwrap())
}

/// Waits for a job that must be sealed; its id.
#[track_caller]
pub fn is_sealed(agent: &Agent, id: &str) -> String {
    let summary = agent.ended(id);
    let told = || ["stderr", "trace"].map(|what| agent.get(&format!("/api/jobs/{id}/{what}")).text());
    assert_eq!(summary["state"], "SEALED", "{summary} {:?}", told());
    id.to_owned()
}

/// What FAILED says of a job that cannot have its inputs.
#[track_caller]
pub fn failure(agent: &Agent, id: &str) -> String {
    failed_for(agent, id, "inputs")
}

/// What FAILED says of a job that fails for this reason.
#[track_caller]
pub fn failed_for(agent: &Agent, id: &str, reason: &str) -> String {
    let summary = agent.ended(id);
    assert_eq!((&summary["state"], &summary["reason"]), (&json!("FAILED"), &json!(reason)), "{summary}");
    detail(agent, id, "FAILED")["message"].as_str().unwrap().to_owned()
}
