//! Processes of a container that its engine has lost sight of.
//!
//! An engine that is killed between starting a payload and writing that down takes the container for one that never ran, when it
//! is back. The payload runs on, and neither `docker stop` nor `docker rm --force` ends it (seen with Engine 20.10). The kernel
//! still knows it by its control group, which is named after the container's id.

use std::fs;
use std::io;

use crate::sys::process::Process;

/// Hex digits of a container's id.
const ID_LENGTH: usize = 64;

/// Kills what still runs of the container, and tells how many processes that were: 0 once nothing is left.
///
/// # Errors
/// A process cannot be killed.
pub(super) fn end(container_id: &str) -> io::Result<usize> {
    if container_id.len() != ID_LENGTH {
        return Ok(0);
    }
    let mut count = 0;
    for pid in fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        // Opened before it is looked at: the number may be another's a moment later.
        let Ok(process) = Process::open(pid) else { continue };
        if is_of(pid, container_id) {
            count += 1;
            process.kill()?;
        }
    }
    Ok(count)
}

fn is_of(pid: u32, container_id: &str) -> bool {
    // A zombie has ended, and its groups are still told.
    let lives = fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X'])));
    lives && fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(container_id))
}
