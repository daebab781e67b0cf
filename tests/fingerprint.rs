//! NODE_UP's fingerprint says what this host and this engine say themselves.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::fs;
use std::process::Command;

use agent::{Site, eventually};
use serde_json::{Value, json};

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn shell(line: &str) -> String {
    said("sh", &["-c", line])
}

#[test]
fn node_up_agrees_with_the_system() {
    let site = Site::new("fingerprint");
    let agent = site.start(&[]);
    // It is recorded once the agent listens.
    let up = eventually("NODE_UP", || {
        let text = agent.get("/api/ledger").text();
        let mut events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.find(|event| event["state"] == "NODE_UP").map(|event| event["detail"].clone())
    });

    let host = &up["host"];
    assert_eq!(host["kernel"], said("uname", &["-r"]));
    assert_eq!(host["machine"], said("uname", &["-m"]));
    assert_eq!(host["hostname"], said("uname", &["-n"]));
    assert_eq!(host["distribution"], shell(". /etc/os-release && echo \"$PRETTY_NAME\""));
    assert_eq!(host["cpu_model"], shell("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1"));
    let flags = "sed -n 's/^flags[^:]*: //p' /proc/cpuinfo | head -n 1 | tr -d '\\n' | sha256sum | cut -c 1-64";
    assert_eq!(host["cpu_flags_sha256"], shell(flags));
    assert_eq!(host["cpus"].to_string(), said("nproc", &[]));
    assert_eq!(host["memory_mib"].to_string(), shell("awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo"));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!((&host["boot_id"], &up["boot_id"]), (&json!(boot_id.trim()), &json!(boot_id.trim())));
    let cgroups = if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() { 2 } else { 1 };
    assert_eq!(host["cgroup_version"], cgroups);
    let gpus = fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |listed| listed.count());
    assert_eq!(host["gpus"].as_array().map(Vec::len), Some(gpus));
    let driver = host.get("gpu_driver").expect("the field is there");
    assert_eq!(driver.is_null(), gpus == 0 && !fs::exists("/proc/driver/nvidia/version").unwrap());

    let engine = &up["engine"];
    assert_eq!(engine["available"], true, "{engine}");
    let version = |field: &str| said("docker", &["version", "--format", field]);
    let info = |field: &str| said("docker", &["info", "--format", field]);
    let component = |name: &str| {
        version(&format!(
            "{{{{range .Server.Components}}}}{{{{if eq .Name {name:?}}}}}{{{{.Version}}}}{{{{end}}}}{{{{end}}}}"
        ))
    };
    assert_eq!(engine["version"], version("{{.Server.Version}}"));
    assert_eq!(engine["cli_version"], version("{{.Client.Version}}"));
    assert_eq!(engine["api_version"], version("{{.Client.APIVersion}}"));
    assert_eq!(engine["containerd_version"], component("containerd"));
    assert_eq!(engine["runc_version"], component("runc"));
    assert!(["containerd_version", "runc_version"].iter().all(|name| engine[*name] != ""), "{engine}");
    assert_eq!(engine["kernel"], info("{{.KernelVersion}}"));
    assert_eq!(engine["storage_driver"], info("{{.Driver}}"));
    assert_eq!(engine["cgroup_driver"], info("{{.CgroupDriver}}"));
    assert_eq!(engine["cgroup_version"], info("{{.CgroupVersion}}"));
    assert_eq!(engine["default_runtime"], info("{{.DefaultRuntime}}"));
    let as_json = |field: &str| serde_json::from_str::<Value>(&info(field)).unwrap();
    assert_eq!(engine["security_options"], as_json("{{json .SecurityOptions}}"));
    let runtimes: Vec<_> = as_json("{{json .Runtimes}}").as_object().unwrap().keys().cloned().collect();
    assert_eq!(engine["runtimes"], json!(runtimes));
    assert_eq!(agent.get("/api/node").json()["host"], *host, "and the agent says the same at any time");
}
