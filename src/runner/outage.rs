//! When the engine was there, as which process, and so whether it was the engine that ended a container. Pure.
//!
//! What an engine without live-restore does (measured with Engine 20.10):
//! * Asked to stop, it first closes its socket, then sends SIGTERM to every container, SIGKILL ten seconds later, and ends when
//!   all have ended. So what it stopped ended after the last question it took and before its process was gone.
//! * Killed, it ends nothing. What still runs when it starts again it ends before it answers. So that ended between the start of
//!   its process and its first answer.
//!
//! What ended between the two ended by itself. With live-restore an engine ends nothing at all.

use crate::ledger::time::Time;

/// Process lives that are remembered.
const LIVES_MAX: usize = 64;
/// How long an engine takes to stop its containers: ten seconds of grace, and its own limit of fifteen for all of it.
const STOP_SPAN: u64 = 20 * SECOND;
/// How long an engine takes from its start to its first answer while it ends containers: ten seconds of grace, and its start.
const START_SPAN: u64 = 20 * SECOND;
/// How long before the engine's start on a host that was rebooted the host may have begun to go down.
const REBOOT_SPAN: u64 = 600 * SECOND;
/// Microseconds.
const SECOND: u64 = 1_000_000;
/// 128 + SIGKILL, 128 + SIGTERM: how a payload without a handler ends when the engine stops it.
const EXITS_BY_SIGNAL: [i32; 2] = [137, 143];
/// What an engine writes for a container that ended with its shim, when or by what it cannot know.
const EXIT_UNKNOWN: i32 = 255;

/// The engine's process.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it started, in the kernel's ticks since boot: with the id, an identity.
    pub ticks: u64,
    /// When it started.
    pub started: Time,
}

impl PartialEq for Process {
    fn eq(&self, other: &Self) -> bool {
        // The time is derived from a clock that may be set.
        (self.pid, self.ticks) == (other.pid, other.ticks)
    }
}

/// Who listens where the engine should.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Listener {
    /// Nobody.
    Nobody,
    /// Somebody whose process is not known to be the engine: a proxy, a service manager, another host.
    Unknown,
    /// The engine.
    Engine(Process),
}

/// What is known of a container's end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// The engine ended it, or lost sight of it.
    pub by_engine: bool,
    /// It ended shortly before an engine start that this agent did not see: on a host that was rebooted, by that.
    pub near_start: bool,
    /// It ended while no engine read its output.
    pub output_at_risk: bool,
}

/// A time as the engine tells it: RFC 3339 in UTC, with up to nine decimals.
pub fn parse(text: &str) -> Option<Time> {
    let (seconds, decimals) = match text.strip_suffix('Z')?.split_once('.') {
        Some((seconds, decimals)) => (seconds, decimals.get(..6).unwrap_or(decimals)),
        None => (text.strip_suffix('Z')?, ""),
    };
    Time::parse(&format!("{seconds}.{decimals:0<6}Z"))
}

/// The lives of the engine, oldest first. Time is the host's clock, by which containers' ends are told, too.
#[derive(Debug, Default)]
pub struct Outages {
    lives: Vec<Life>,
}

#[derive(Debug)]
struct Life {
    process: Option<Process>,
    /// When its first answer came.
    answered: Time,
    /// When the last question that it answered was asked.
    asked: Time,
    /// When its process was first seen to be gone.
    gone: Option<Time>,
    /// Nobody listened since its last answer.
    nobody: bool,
    /// Whether it has live-restore; `None` until it told.
    keeps: Option<bool>,
}

impl Outages {
    /// An answer came. `listeners` are who listened when it was asked for, and when it had come. Whether it could be told whose
    /// answer it was.
    pub fn answered(&mut self, listeners: [Listener; 2], asked: Time, came: Time) -> bool {
        let process = match listeners {
            [Listener::Engine(before), Listener::Engine(after)] if before == after => Some(after),
            [Listener::Unknown, Listener::Unknown] => None,
            // Either may have answered.
            _ => return false,
        };
        let known = self.lives.iter().rposition(|life| match process {
            Some(_) => life.process == process,
            // Without a process to go by, it is another only where nobody listened in between.
            None => !life.nobody && life.gone.is_none(),
        });
        match known {
            Some(at) if process.is_some() || at + 1 == self.lives.len() => {
                let life = &mut self.lives[at];
                life.asked = life.asked.max(asked);
                life.nobody = false;
            }
            _ => {
                if self.lives.len() == LIVES_MAX {
                    self.lives.remove(0);
                }
                self.lives.push(Life { process, answered: came, asked, gone: None, nobody: false, keeps: None });
            }
        }
        true
    }

    /// No answer came. `listener` is who listens now.
    pub fn silent(&mut self, listener: Listener) {
        if let Some(life) = self.lives.last_mut() {
            life.nobody |= listener == Listener::Nobody;
        }
    }

    /// The process that answered last, as long as it was not seen to be gone.
    pub fn process(&self) -> Option<Process> {
        self.lives.last().filter(|life| life.gone.is_none()).and_then(|life| life.process)
    }

    /// `process` was seen to be gone.
    pub fn gone(&mut self, process: Process, now: Time) {
        if let Some(life) = self.lives.iter_mut().find(|life| life.process == Some(process)) {
            life.gone.get_or_insert(now);
        }
    }

    /// Whether the engine that answers now has not told whether it has live-restore.
    pub fn is_to_be_asked(&self) -> bool {
        self.lives.last().is_some_and(|life| life.keeps.is_none())
    }

    /// The engine that answers now told whether it has live-restore.
    pub fn told(&mut self, live_restore: bool) {
        if let Some(life) = self.lives.last_mut() {
            life.keeps = Some(live_restore);
        }
    }

    /// Whether a question that was asked at `since` or later was answered, and it is known by whom.
    pub fn has_answered(&self, since: Time) -> bool {
        self.lives.last().is_some_and(|life| life.asked >= since)
    }

    /// Whether the engine that answers now was started after `time`: what it says of a container from before, it has read from
    /// what its predecessor had written.
    pub fn is_younger_than(&self, time: Time) -> bool {
        self.lives.last().is_some_and(|life| match life.process {
            Some(process) => process.started > time,
            None => self.lives.len() > 1 && life.answered > time,
        })
    }

    /// What is known of the end of a container that ran from `started` to `ended`.
    pub fn evidence(&self, started: Time, ended: Time, exit_code: i32) -> Evidence {
        let mut found = Evidence::default();
        for (at, next) in self.lives.iter().enumerate() {
            let before = at.checked_sub(1).map(|at| &self.lives[at]);
            // Whoever is younger than this engine, or outlived its start, was not ended by that.
            let is_younger = started >= next.process.map_or(next.answered, |process| process.started);
            if !is_younger && ended <= next.answered {
                next.look_back(before, ended, exit_code, &mut found);
            }
        }
        found
    }
}

impl Life {
    /// Adds what is known of a container that was started before this life began and ended before this life's first answer.
    fn look_back(&self, before: Option<&Life>, ended: Time, exit_code: i32, found: &mut Evidence) {
        let ends_containers = self.keeps != Some(true);
        let Some(before) = before else {
            // The agent was away as well, so that it is not known when the engine stopped.
            let Some(Process { started: began, .. }) = self.process else { return };
            let in_start = ended >= began;
            found.near_start |= ended.0 + REBOOT_SPAN >= began.0;
            found.output_at_risk = true;
            found.by_engine |= match exit_code {
                EXIT_UNKNOWN if in_start => true,
                _ if !ends_containers => false,
                code => EXITS_BY_SIGNAL.contains(&code) || ended.0 + STOP_SPAN >= began.0,
            };
            return;
        };
        if ended < before.asked {
            return;
        }
        found.output_at_risk = true;
        let began = self.process.map_or(self.answered.0.saturating_sub(START_SPAN), |process| process.started.0);
        let stopped = before.gone.map_or((before.asked.0 + STOP_SPAN).min(began), |gone| gone.0);
        let in_stop = ended.0 <= stopped;
        let in_start = ended.0 >= began;
        found.by_engine |=
            in_stop && before.keeps != Some(true) || in_start && (ends_containers || exit_code == EXIT_UNKNOWN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of an hour.
    fn at(second: f64) -> Time {
        Time(1_800_000_000_000_000 + (second * 1e6) as u64)
    }

    fn process(pid: u32, started: f64) -> Process {
        Process { pid, ticks: u64::from(pid), started: at(started) }
    }

    fn engine(pid: u32, started: f64) -> Listener {
        Listener::Engine(process(pid, started))
    }

    fn answer(outages: &mut Outages, listener: Listener, asked: f64, came: f64) {
        assert!(outages.answered([listener; 2], at(asked), at(came)));
    }

    fn of(outages: &Outages, started: f64, ended: f64, code: i32) -> (bool, bool) {
        let found = outages.evidence(at(started), at(ended), code);
        (found.by_engine, found.output_at_risk)
    }

    /// One engine, which answered last at 100 and was gone at `gone`; another, started at `began`, which answered at `back`.
    fn outage(gone: f64, began: f64, back: f64, live_restore: bool) -> Outages {
        let mut outages = Outages::default();
        answer(&mut outages, engine(1, 0.0), 50.0, 50.1);
        outages.told(live_restore);
        answer(&mut outages, engine(1, 0.0), 100.0, 100.1);
        outages.silent(Listener::Nobody);
        assert_eq!(outages.process(), Some(process(1, 0.0)));
        outages.gone(process(1, 0.0), at(gone));
        assert_eq!(outages.process(), None);
        answer(&mut outages, engine(2, began), back - 0.5, back);
        assert!(outages.is_to_be_asked());
        outages.told(live_restore);
        answer(&mut outages, engine(2, began), back + 60.0, back + 60.1);
        outages
    }

    #[test]
    fn an_end_belongs_to_whom_its_time_says() {
        let stopped = outage(110.5, 160.0, 171.0, false);
        let killed = outage(100.2, 160.0, 171.0, false);
        let keeps = outage(101.0, 160.0, 161.0, true);
        let by_engine = (true, true);
        let own = (false, false);
        let own_unheard = (false, true);
        let table = [
            ("while it answers", &stopped, 99.0, own),
            ("stopped at once", &stopped, 100.3, by_engine),
            ("stopped when the grace ran out", &stopped, 110.4, by_engine),
            ("by itself in the outage", &stopped, 130.0, own_unheard),
            ("ended by the start", &stopped, 160.3, by_engine),
            ("ended by the start when the grace ran out", &stopped, 170.3, by_engine),
            ("long after", &stopped, 200.0, own),
            ("by itself, soon after the engine was killed", &killed, 101.0, own_unheard),
            ("by itself, just before the start", &killed, 159.9, own_unheard),
            ("ended by the start, engine killed before", &killed, 160.3, by_engine),
            ("live-restore: soon after the stop", &keeps, 100.3, own_unheard),
            ("live-restore: in the outage", &keeps, 130.0, own_unheard),
            ("live-restore: during the start", &keeps, 160.5, own_unheard),
            ("live-restore: after it", &keeps, 163.0, own),
        ];
        for (case, outages, ended, expected) in table {
            // Whatever the code: what ended it decides.
            for code in [0, 7, 99, 137, 143] {
                assert_eq!(of(outages, 60.0, ended, code), expected, "{case}: exit {code}");
            }
        }
        assert_eq!(of(&keeps, 60.0, 160.5, EXIT_UNKNOWN), by_engine, "its shim was gone, too");
        assert_eq!(of(&stopped, 172.0, 173.0, 143), own, "it is younger than the outage");
    }

    #[test]
    fn an_engine_that_only_hangs_ends_nothing() {
        let mut outages = Outages::default();
        answer(&mut outages, engine(1, 0.0), 100.0, 100.1);
        outages.silent(engine(1, 0.0));
        answer(&mut outages, engine(1, 0.0), 400.0, 400.1);
        assert_eq!(of(&outages, 60.0, 100.5, 143), (false, false));
        assert_eq!(of(&outages, 60.0, 399.0, 0), (false, false));
    }

    #[test]
    fn an_agent_that_was_away_goes_by_the_start_of_the_engine() {
        for (live_restore, ended, code, expected) in [
            (false, 20.0, 143, true),
            (false, 20.0, 137, true),
            // Ended long before the engine was started: perhaps long before it was stopped.
            (false, 20.0, 0, false),
            (false, 20.0, 255, false),
            (false, 90.0, 0, true),
            (false, 101.0, 0, true),
            (false, 101.0, 255, true),
            (false, 120.0, 143, false),
            (true, 20.0, 143, false),
            (true, 101.0, 0, false),
            (true, 101.0, 255, true),
        ] {
            let mut outages = Outages::default();
            answer(&mut outages, engine(2, 100.0), 110.0, 110.1);
            outages.told(live_restore);
            let found = of(&outages, 10.0, ended, code).0;
            assert_eq!(found, expected, "live-restore {live_restore}, ended at {ended}, exit {code}");
            assert!(!of(&outages, 105.0, ended.max(106.0), code).0, "it is younger than the engine");
        }
        // Whose process nobody knows tells nothing.
        let mut outages = Outages::default();
        answer(&mut outages, Listener::Unknown, 110.0, 110.1);
        assert_eq!(of(&outages, 10.0, 90.0, 143), (false, false));
        assert_eq!(Outages::default().evidence(at(1.0), at(2.0), 143), Evidence::default());
    }

    #[test]
    fn a_reboot_shows_in_ends_that_lie_shortly_before_the_start() {
        let mut outages = Outages::default();
        answer(&mut outages, engine(2, 1000.0), 1010.0, 1010.1);
        let near = |ended: f64| outages.evidence(at(10.0), at(ended), 0).near_start;
        assert!(near(500.0) && near(999.0) && !near(300.0));
    }

    #[test]
    fn without_a_process_to_go_by_an_outage_needs_that_nobody_listened() {
        let outage = |listener| {
            let mut outages = Outages::default();
            answer(&mut outages, Listener::Unknown, 100.0, 100.1);
            outages.silent(listener);
            answer(&mut outages, Listener::Unknown, 199.0, 200.0);
            outages.told(false);
            outages
        };
        let slow = outage(Listener::Unknown);
        let away = outage(Listener::Nobody);
        for (ended, expected) in
            [(99.0, false), (103.0, true), (119.0, true), (150.0, false), (185.0, true), (201.0, false)]
        {
            assert_eq!(of(&away, 60.0, ended, 0).0, expected, "{ended}");
            assert_eq!(of(&slow, 60.0, ended, 143), (false, false), "{ended}");
        }
        assert!(away.is_younger_than(at(150.0)) && !away.is_younger_than(at(201.0)) && !slow.is_younger_than(at(50.0)));
    }

    #[test]
    fn an_answer_between_two_engines_is_nobodys() {
        let mut outages = Outages::default();
        let now = at(1.0);
        assert!(!outages.answered([engine(1, 0.0), engine(2, 0.5)], now, now));
        assert!(!outages.answered([Listener::Nobody, engine(2, 0.5)], now, now));
        assert!(!outages.answered([engine(1, 0.0), Listener::Unknown], now, now));
        assert!(!outages.is_to_be_asked() && !outages.has_answered(now));
        answer(&mut outages, engine(2, 0.5), 3.0, 3.1);
        assert!(outages.has_answered(at(2.9)) && !outages.has_answered(at(3.05)));
        assert!(outages.is_younger_than(at(0.4)) && !outages.is_younger_than(at(0.6)));
        // One that comes late, of the engine before, changes no order.
        answer(&mut outages, engine(3, 5.0), 6.0, 6.1);
        answer(&mut outages, engine(2, 0.5), 4.0, 4.1);
        outages.told(true);
        assert_eq!(outages.process(), Some(process(3, 5.0)));
        assert_eq!(of(&outages, 1.0, 3.5, 0), (false, false));
        for pid in 10..10 + 2 * LIVES_MAX as u32 {
            answer(&mut outages, engine(pid, f64::from(pid)), f64::from(pid) + 1.0, f64::from(pid) + 1.1);
        }
        assert_eq!(outages.lives.len(), LIVES_MAX);
    }

    #[test]
    fn times_as_the_engine_tells_them() {
        for (text, decimals) in [
            ("2026-11-26T15:20:55.472448298Z", "472448"),
            ("2026-11-26T15:20:55.47Z", "470000"),
            ("2026-11-26T15:20:55Z", "000000"),
        ] {
            assert_eq!(parse(text), Time::parse(&format!("2026-11-26T15:20:55.{decimals}Z")), "{text}");
        }
        for text in ["", "Z", "0001-01-01T00:00:00Z", "2026-11-26T15:20:55+01:00"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
