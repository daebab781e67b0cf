//! What an attempt's measurements say: its `usage`, and whether memory that ran out ended it. Pure.

use std::time::Duration;

use super::super::cgroup::Sample;
use super::super::telemetry::{Measured, Witnesses};
use crate::ledger::event::Usage;

/// An attempt that lived on for so long after the OOM killer took a process of it was ended by something else. Generous,
/// since a payload may tidy up before it passes its child's 137 on.
const LIVED_ON: Duration = Duration::from_secs(60);

/// For the ledger; none where nothing could be measured.
pub(super) fn usage(measured: &Measured) -> Option<Usage> {
    let sample = &measured.sample;
    if sample.is_empty() {
        return None;
    }
    let mut not_measured = Vec::new();
    let mut figure = |name: &str, value: Option<u64>| {
        value.unwrap_or_else(|| {
            not_measured.push(name.to_owned());
            0
        })
    };
    let Sample { cpu_ns, memory_peak_bytes, io_read_bytes, io_write_bytes, pids_peak, .. } = *sample;
    Some(Usage {
        cpu_ns: figure("cpu_ns", cpu_ns),
        memory_peak_bytes: figure("memory_peak_bytes", memory_peak_bytes),
        io_read_bytes: figure("io_read_bytes", io_read_bytes),
        io_write_bytes: figure("io_write_bytes", io_write_bytes),
        pids_peak: figure("pids_peak", pids_peak),
        oom_kills: Some(measured.witnesses.kills()),
        not_measured,
    })
}

/// Whether SIGKILL, if that is how the payload ended, came from its own memory limit. Any witness is enough, unless what is
/// known for certain speaks against it: all kills were for want of the host's memory, or the attempt went on for long after
/// the last one.
pub(super) fn memory_ended_it(witnesses: &Witnesses) -> bool {
    let kills = witnesses.kills();
    let is_hosts = witnesses.log.is_some_and(|log| log.own_limit == 0 && log.total() == kills);
    kills > 0 && !is_hosts && witnesses.lived_on.is_none_or(|time| time < LIVED_ON)
}

#[cfg(test)]
mod tests {
    use super::super::super::kernel_log::Kills;
    use super::*;

    #[test]
    fn who_is_believed() {
        let log = |own_limit, from_outside| Some(Kills { own_limit, from_outside });
        let second = Some(Duration::from_secs(1));
        let hour = Some(Duration::from_secs(3600));
        // Engine, counted, log, lived on; kills, and whether they ended it.
        for (engine, counted, log, lived_on, kills, ended_it) in [
            (false, 0, None, None, 0, false),
            (false, 0, log(0, 0), None, 0, false),
            (true, 0, None, None, 1, true),
            (true, 0, log(0, 0), None, 1, true),
            (false, 1, None, None, 1, true),
            (false, 0, log(1, 0), None, 1, true),
            (true, 2, log(3, 0), None, 3, true),
            (true, 5, log(3, 0), None, 5, true),
            (false, 0, log(0, 1), None, 1, false),
            (true, 1, log(0, 1), None, 1, false),
            (true, 2, log(0, 1), None, 2, true),
            (true, 2, log(1, 1), None, 2, true),
            (true, 1, log(1, 0), second, 1, true),
            (true, 1, log(1, 0), hour, 1, false),
        ] {
            let witnesses = Witnesses { engine, counted, log, lived_on };
            assert_eq!((witnesses.kills(), memory_ended_it(&witnesses)), (kills, ended_it), "{witnesses:?}");
        }
    }

    #[test]
    fn what_was_not_measured_is_named() {
        assert_eq!(usage(&Measured::default()), None);
        let sample = Sample { cpu_ns: Some(5), pids_peak: Some(0), ..Sample::default() };
        let witnesses = Witnesses { engine: true, ..Witnesses::default() };
        let expected = Usage {
            cpu_ns: 5,
            oom_kills: Some(1),
            not_measured: ["memory_peak_bytes", "io_read_bytes", "io_write_bytes"].map(str::to_owned).to_vec(),
            ..Usage::default()
        };
        assert_eq!(usage(&Measured { sample, witnesses }), Some(expected));
    }
}
