//! What the numbers depend on beside the program: the machine, read from the kernel.

use std::fs::read_to_string;
use std::path::Path;

use hackbrain::ledger::time::Time;

/// Lines of Markdown; what cannot be read is called unknown.
pub fn facts(dir: &Path) -> String {
    let unknown = || "unknown".to_owned();
    let kernel = read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| unknown(), |text| text.trim().to_owned());
    let cpu = read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| text.lines().find(|line| line.starts_with("model name")).map(str::to_owned))
        .and_then(|line| line.split_once(": ").map(|(_, model)| model.to_owned()))
        .unwrap_or_else(unknown);
    let cores = std::thread::available_parallelism().map_or_else(|_| unknown(), |cores| cores.to_string());
    let load = read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next().map(str::to_owned))
        .unwrap_or_else(unknown);
    let file_system = file_system(dir).unwrap_or_else(unknown);
    format!(
        "* {}\n* kernel {kernel}, {cpu}, {cores} cores, load before the run {load}\n* file system: {file_system}",
        Time::now()
    )
}

/// Type, source and options of the mount that `dir` lies on.
fn file_system(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    let mounts = read_to_string("/proc/self/mountinfo").ok()?;
    // Of two mounts on one point the later one is seen.
    let (_, found) = mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(4);
            let point = left.next()?;
            let mut right = right.split(' ');
            let (kind, source) = (right.next()?, right.next()?);
            dir.starts_with(point).then(|| (point.len(), format!("{kind} on {source} ({})", left.next().unwrap_or(""))))
        })
        .max_by_key(|(len, _)| *len)?;
    Some(found)
}
