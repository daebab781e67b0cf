//! Which process the engine is: asked of the kernel, not of the engine.
//!
//! The kernel tells who made the socket listen. Where that is a service manager (systemd's `docker.socket`), the engine's pid
//! file says who serves it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::ledger::time::Time;
use crate::runner::outage::{Listener, Process};
use crate::sys::peer::{listener_pid, ticks_per_second};

/// Where an engine that was not told otherwise listens, and the file that holds its process id.
const DEFAULT: ([&str; 2], &str) = (["/var/run/docker.sock", "/run/docker.sock"], "/var/run/docker.pid");
/// The name of the engine's program, as the kernel knows it.
const PROGRAM: &str = "dockerd";

/// Who listens at `socket`. Takes well under a millisecond: it does not wait to be accepted.
pub(super) fn listener(socket: &Path) -> Listener {
    let Ok(stream) = UnixStream::connect(socket) else { return Listener::Nobody };
    let of_socket = listener_pid(&stream).ok().and_then(process);
    let of_file = || {
        let is_default = DEFAULT.0.iter().any(|path| Path::new(path) == socket);
        let pid = is_default.then(|| fs::read_to_string(DEFAULT.1).ok()).flatten()?;
        process(pid.trim().parse().ok()?)
    };
    of_socket.or_else(of_file).map_or(Listener::Unknown, Listener::Engine)
}

/// Whether it runs.
pub fn is_alive(known: Process) -> bool {
    process(known.pid).is_some_and(|now| now == known)
}

/// The engine's process of this id; `None` where there is none, or it is another program's, or it has ended.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    parse(pid, &stat, &uptime, ticks_per_second(), Time::now())
}

fn parse(pid: u32, stat: &str, uptime: &str, ticks_per_second: u64, now: Time) -> Option<Process> {
    // The name stands in brackets and may hold any character.
    let (head, rest) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    // The 22nd field; the state is the third.
    let ticks: u64 = fields.nth(18)?.parse().ok()?;
    if name != PROGRAM || has_ended {
        return None;
    }
    let (seconds, hundredths) = uptime.split_ascii_whitespace().next()?.split_once('.')?;
    let uptime = seconds.parse::<u64>().ok()? * 1_000_000 + hundredths.parse::<u64>().ok()? * 10_000;
    let age = uptime.saturating_sub(ticks * 1_000_000 / ticks_per_second);
    Some(Process { pid, ticks, started: Time(now.0.saturating_sub(age)) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_process_is_told_by_its_name_its_state_and_its_start() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 12345 100 200 0 0\n")
        };
        let parsed = |stat: &str| parse(7, stat, "223.45 400.00\n", 100, Time(1_000_000_000));
        let dockerd = parsed(&stat("dockerd", "S")).unwrap();
        assert_eq!((dockerd.pid, dockerd.ticks, dockerd.started), (7, 12345, Time(900_000_000)));
        for (name, state) in [("dockerd", "Z"), ("dockerd", "X"), ("systemd", "S"), ("a) S dockerd", "S")] {
            assert_eq!(parsed(&stat(name, state)), None, "{name} {state}");
        }
        assert_eq!(parsed(""), None);
    }

    #[test]
    fn who_listens_may_be_somebody_else_or_nobody() {
        let path = std::env::temp_dir().join(format!("hb-daemon-{}.sock", std::process::id()));
        let socket = UnixListener::bind(&path).unwrap();
        assert_eq!(listener(&path), Listener::Unknown, "this is not the engine");
        drop(socket);
        assert_eq!(listener(&path), Listener::Nobody);
        fs::remove_file(&path).unwrap();
        assert_eq!(listener(&path), Listener::Nobody);
    }
}
