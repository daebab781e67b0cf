//! What the kernel's log tells of memory that ran out: how many processes of a control group the OOM killer ended.
//!
//! The engine may hear of an exit before it hears of the memory, and version 1 of cgroups forgets the count with the
//! container. The kernel writes its line before it sends the signal, so by the time an end is seen the line is there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};

use crate::sys::kmsg;

/// Longest record that the kernel gives (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8192;
/// Groups whose kills are remembered; beyond that, those longest without one are forgotten.
const GROUPS_MAX: usize = 1024;
/// Records read in one go. A ring holds some ten thousand.
const RECORDS_MAX: usize = 100_000;
/// Errors passed over in one go: each stands for records that were overwritten, or one too long.
const ERRORS_MAX: usize = 100;

/// How often the OOM killer struck in a group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kills {
    /// Because the group, or one in it, had reached its own limit.
    pub own_limit: u64,
    /// Because the host, or a group above, had no memory left.
    pub from_outside: u64,
}

impl Kills {
    /// All of them.
    pub fn total(self) -> u64 {
        self.own_limit.saturating_add(self.from_outside)
    }
}

/// Whether the group at `path` is `group`, e.g. `/hackbrain-1f2e3d4c/hb-job-1`, or below it.
pub fn is_in(path: &str, group: &str) -> bool {
    path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether the group at `path` is of the container with this id, or below it: `/docker/<id>`,
/// `/system.slice/docker-<id>.scope`.
pub fn is_of(path: &str, id: &str) -> bool {
    let named =
        |part: &str| part == id || part.strip_suffix(".scope").is_some_and(|part| part.ends_with(&format!("-{id}")));
    !id.is_empty() && path.split('/').any(named)
}

/// The kernel's log, read on from time to time.
#[derive(Debug, Default)]
pub struct KernelLog(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// `None` until first opened.
    device: Option<File>,
    told: bool,
    tally: Tally,
}

impl KernelLog {
    /// Takes in what was logged since the last call; the first one reads all that the kernel still has. About a microsecond
    /// where there is nothing new.
    pub fn read_on(&self) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = inner.read_on() {
            if !inner.told {
                log::info!("the kernel's log cannot be read, so it tells nothing of memory that runs out: {error}");
            }
            inner.told = true;
            inner.device = None;
        }
    }

    /// The kills in the groups that are `ours`, see [`is_in`] and [`is_of`]. None where the log cannot be read.
    pub fn kills(&self, ours: &dyn Fn(&str) -> bool) -> Option<Kills> {
        self.read_on();
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.device.as_ref().map(|_| inner.tally.kills(ours))
    }
}

impl Inner {
    fn read_on(&mut self) -> io::Result<()> {
        if self.device.is_none() {
            // What was counted before would be read and counted once more.
            self.tally = Tally::default();
        }
        let device = match &mut self.device {
            Some(device) => device,
            none => none.insert(kmsg::open()?),
        };
        take_in(device, &mut self.tally)
    }
}

/// Reads to the end of what there is.
fn take_in(device: &mut impl Read, tally: &mut Tally) -> io::Result<()> {
    let (mut record, mut errors) = ([0; RECORD_BYTES_MAX], 0);
    for _ in 0..RECORDS_MAX {
        match device.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]);
                if let Some(kill) = parse(&text) {
                    tally.add(&kill);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied || errors == ERRORS_MAX => return Err(error),
            Err(_) => errors += 1,
        }
    }
    Ok(())
}

/// One line of the OOM killer.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Kill<T> {
    /// The group of the process that was killed.
    group: T,
    /// The group whose limit was reached; none where it was the host's memory.
    limit: Option<T>,
}

/// A record of `/dev/kmsg`: `LEVEL,SEQ,MICROSECONDS,FLAGS;TEXT`, then lines of its own keys.
fn parse(record: &str) -> Option<Kill<&str>> {
    let (prefix, rest) = record.split_once(';')?;
    // The kernel's own facility is 0; whoever may write to the device has another.
    let level: u32 = prefix.split(',').next()?.parse().ok()?;
    let text = rest.lines().next()?;
    // The line is put together from pieces, and another CPU may get in between: the piece that matters is enough. What
    // comes behind `task=` is the payload's to choose.
    let (before, group) = text.split_once(",task_memcg=")?;
    let group = group.split_once(",task=").map_or(group, |(group, _)| group);
    let limit = match before.split_once(",oom_memcg=") {
        Some((_, limit)) => Some(limit),
        None if before.ends_with(",global_oom") => None,
        None => Some(group),
    };
    (level < 8 && group.starts_with('/')).then_some(Kill { group, limit })
}

/// How often each kind of kill was seen, and which number the last of them had.
#[derive(Debug, Default)]
struct Tally {
    kinds: HashMap<Kill<String>, (u64, u64)>,
    number: u64,
}

impl Tally {
    fn add(&mut self, kill: &Kill<&str>) {
        self.number += 1;
        let kind = Kill { group: kill.group.to_owned(), limit: kill.limit.map(str::to_owned) };
        let (count, last) = self.kinds.entry(kind).or_default();
        *count += 1;
        *last = self.number;
        if self.kinds.len() > GROUPS_MAX {
            let oldest = self.kinds.values().map(|(_, last)| *last).min();
            self.kinds.retain(|_, (_, last)| Some(*last) != oldest);
        }
    }

    fn kills(&self, ours: &dyn Fn(&str) -> bool) -> Kills {
        let mut kills = Kills::default();
        for (kind, (count, _)) in self.kinds.iter().filter(|(kind, _)| ours(&kind.group)) {
            match &kind.limit {
                Some(limit) if ours(limit) => kills.own_limit += count,
                _ => kills.from_outside += count,
            }
        }
        kills
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// As Linux 6.18 wrote it, with cgroup version 1.
    const REAL: &str = "6,411,1267602297,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=557855ee,\
        mems_allowed=0,oom_memcg=/hackbrain-1f2e3d4c/hb-a-1/557855ee,task_memcg=/hackbrain-1f2e3d4c/hb-a-1/557855ee,\
        task=tail,pid=2270,uid=0\n SUBSYSTEM=x\n";

    #[test]
    fn records() {
        let own = |group| Some(Kill { group, limit: Some(group) });
        let real = "/hackbrain-1f2e3d4c/hb-a-1/557855ee";
        for (record, expected) in [
            (REAL, own(real)),
            (
                "6,1,2,-;oom-kill:x,global_oom,task_memcg=/a/b,task=t,pid=1,uid=0\n",
                Some(Kill { group: "/a/b", limit: None }),
            ),
            (
                "6,1,2,-;oom-kill:x,oom_memcg=/a,task_memcg=/a/b,task=t,pid=1,uid=0\n",
                Some(Kill { group: "/a/b", limit: Some("/a") }),
            ),
            // A name that the payload gave itself.
            ("6,1,2,-;x,oom_memcg=/a,task_memcg=/a,task=,task_memcg=/b,pid=1\n", own("/a")),
            // Pieces, where another CPU got in between.
            ("6,1,2,c;,task_memcg=/a\n", own("/a")),
            ("6,1,2,c;,oom_memcg=/a,task_memcg=/a,task=x,pid=1\n", own("/a")),
            // Written by a process.
            ("14,1,2,-;oom-kill:x,oom_memcg=/a,task_memcg=/a,task=t,pid=1\n", None),
            ("6,1,2,-;Memory cgroup out of memory: Killed process 2270 (tail)\n", None),
            ("6,1,2,-;oom-kill:x,task_memcg=a,task=t\n", None),
            ("6,1,2,-;other\n KEY=,task_memcg=/a,task=t\n", None),
            ("", None),
            (";", None),
        ] {
            assert_eq!(parse(record), expected, "{record}");
        }
    }

    #[test]
    fn kills_are_those_of_the_group_and_below() {
        let mut tally = Tally::default();
        for (group, limit) in [
            ("/h/hb-a-1/c", Some("/h/hb-a-1/c")),
            ("/h/hb-a-1/c", Some("/h/hb-a-1/c")),
            ("/h/hb-a-1/c/inner", Some("/h/hb-a-1/c")),
            ("/h/hb-a-1/c", None),
            ("/h/hb-a-1/c", Some("/h")),
            ("/h/hb-a-10/c", Some("/h/hb-a-10/c")),
            ("/h/hb-a-1", Some("/h/hb-a-1")),
            ("/x/h/hb-a-1", Some("/x/h/hb-a-1")),
        ] {
            tally.add(&Kill { group, limit });
        }
        assert_eq!(tally.kills(&|path| is_in(path, "/h/hb-a-1")), Kills { own_limit: 4, from_outside: 2 });
        assert_eq!(tally.kills(&|path| is_in(path, "/h/hb-a-10")), Kills { own_limit: 1, from_outside: 0 });
        assert_eq!(tally.kills(&|path| is_in(path, "/h/hb-a")), Kills::default());
    }

    #[test]
    fn a_containers_group_is_known_by_its_id() {
        let id = "0123456789abcdef";
        for (path, expected) in [
            ("/docker/0123456789abcdef", true),
            ("/hackbrain-1/hb-a-1/0123456789abcdef/inner", true),
            ("/system.slice/docker-0123456789abcdef.scope", true),
            ("/machine.slice/libpod-0123456789abcdef.scope/container", true),
            ("/system.slice/docker-0123456789abcdef", false),
            ("/docker/0123456789abcdef0", false),
            ("/system.slice/docker-f0123456789abcdef.scope", false),
            ("/docker", false),
        ] {
            assert_eq!(is_of(path, id), expected, "{path}");
            assert!(!is_of(path, ""), "{path}");
        }
    }

    #[test]
    fn the_groups_remembered_are_bounded() {
        let mut tally = Tally::default();
        for n in 0..GROUPS_MAX * 2 {
            tally.add(&Kill { group: "/kept", limit: None });
            tally.add(&Kill { group: &format!("/{n}"), limit: None });
        }
        assert_eq!(tally.kinds.len(), GROUPS_MAX);
        assert_eq!(tally.kills(&|path| is_in(path, "/kept")).total(), 2 * GROUPS_MAX as u64);
        assert_eq!(tally.kills(&|path| is_in(path, "/0")).total(), 0);
    }

    /// Answers from a list, as the device does: a record for each read, or an error.
    struct Script(Vec<Result<&'static str, io::ErrorKind>>);

    impl Read for Script {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let text = self.0.remove(0)?;
            buffer[..text.len()].copy_from_slice(text.as_bytes());
            Ok(text.len())
        }
    }

    #[test]
    fn reading_goes_on_behind_what_was_overwritten_and_stops_where_nothing_is_left() {
        let mut tally = Tally::default();
        let mut device = Script(vec![
            Ok(REAL),
            Err(io::ErrorKind::BrokenPipe),
            Ok(REAL),
            Err(io::ErrorKind::InvalidInput),
            Ok(REAL),
            Err(io::ErrorKind::WouldBlock),
            Ok(REAL),
        ]);
        take_in(&mut device, &mut tally).unwrap();
        let group = "/hackbrain-1f2e3d4c/hb-a-1";
        assert_eq!(tally.kills(&|path| is_in(path, group)).own_limit, 3);
        take_in(&mut device, &mut tally).unwrap();
        assert_eq!(tally.kills(&|path| is_in(path, group)).own_limit, 4, "read on, not again");
        assert!(take_in(&mut Script(vec![Err(io::ErrorKind::PermissionDenied)]), &mut tally).is_err());
        assert!(take_in(&mut Script(vec![Err(io::ErrorKind::BrokenPipe); 1000]), &mut tally).is_err(), "bounded");
    }
}
