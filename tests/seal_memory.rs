//! What a seal of very many files needs of memory, with the real agent and the real engine.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;

use agent::{Agent, Site, job_id, manifest};
use serde_json::Value;

/// Most that the agent may ever have had in memory, idle memory included, in bytes.
const MEMORY_MAX: u64 = 100_000_000;
const FILES: u64 = 100_000;

/// `VmHWM` of the agent in bytes: the most that was ever resident.
fn peak(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

fn sealed(agent: &Agent, mount: &str, command: &[&str]) -> Value {
    let id = job_id("many");
    let mut job = manifest(&id, command);
    job["image_hash"] = "python:3.9-slim".into();
    job["mount_spec"] = mount.into();
    agent.accepted(&job);
    // Making so many files may take a slow disk longer than other jobs take.
    let wait = || agent.get(&format!("/api/jobs/{id}?wait=SEALED&timeout_s=50")).json();
    let summary = (0..6).map(|_| wait()).find(|job| job["phase"] == "ended").expect("it ends");
    assert_eq!(summary["state"], "SEALED", "{summary} {}", agent.get(&format!("/api/jobs/{id}/stderr")).text());
    agent.get(&format!("/api/jobs/{id}/seal")).json()
}

#[test]
fn a_hundred_thousand_files_fit_in_a_hundred_megabytes() {
    let site = Site::new("memory");
    let mount = format!("{}:/w", site.mountable("tree").display());
    let agent = site.start(&[]);
    let idle = peak(&agent);
    // Nearly all of them empty: blocks would have to be written, and count for nothing here.
    let script = format!(
        "import os\nfor d in range(100):\n os.mkdir(f'part-{{d:02}}')\n for f in range({FILES} // 100):\n  \
         fd = os.open(f'part-{{d:02}}/result-{{f:04}}.txt', os.O_CREAT | os.O_WRONLY)\n  \
         if f == d: os.write(fd, b'%d' % d)\n  os.close(fd)"
    );
    let seal = sealed(&agent, &mount, &["python3", "-c", &script]);
    assert_eq!((seal["files"].as_u64(), seal["removed"].as_array().map(Vec::len)), (Some(FILES), Some(0)));
    assert_eq!(seal["artifacts"].as_array().map(Vec::len), Some(FILES as usize));
    let new = peak(&agent);
    // The same files once more, now as inputs that nobody touches.
    let seal = sealed(&agent, &mount, &["true"]);
    assert_eq!(seal["files"], 0, "nothing is new");
    assert_eq!(seal["mounts"][0]["before"], seal["mounts"][0]["after"]);
    let unchanged = peak(&agent);
    assert!(
        unchanged <= MEMORY_MAX,
        "{idle} bytes idle, {new} with {FILES} new files sealed, {unchanged} with as many inputs unchanged"
    );
}
