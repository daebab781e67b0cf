//! How much an attempt gets: what the host has, what the operator allows, what a manifest asks for. Pure.

use serde_json::{Value, json};

use crate::config::{MEMORY_MIB_MIN, PIDS_DEFAULT, ResourceFlags};
use crate::host::Host;
use crate::manifest::{MAX_CPUS, MAX_GPUS, MAX_MEMORY_MIB, MAX_PIDS, MIN_CPUS, MIN_MEMORY_MIB, Resources};
use crate::rejection::Rejection;

/// Fewest processes with which a payload starts at all: the container's init is one of them.
pub const PIDS_MIN: u64 = 2;

/// What the container engine says it can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineCapacity {
    /// CPUs of its host.
    pub cpus: u32,
    /// Memory of its host in MiB.
    pub memory_mib: u64,
    /// Whether it has an NVIDIA runtime.
    pub nvidia: bool,
}

/// What one attempt gets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grant {
    /// CPUs, e.g. 1.5.
    pub cpus: f64,
    /// Memory in MiB, swap included.
    pub memory_mib: u64,
    /// Processes and threads, the container's init included.
    pub pids: u64,
    /// GPUs.
    pub gpus: u32,
}

/// Defaults and ceilings of one agent. Every number is exact as a double: the manifest's own bounds see to that.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceLimits {
    cpus: Bound,
    memory_mib: Bound,
    pids: Bound,
    gpus: Bound,
    default: Grant,
}

/// The most there may be of one resource.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bound {
    /// Member of the manifest's `resources`; the flags are named after it.
    field: &'static str,
    /// For a person.
    noun: &'static str,
    /// What the engine, or a payload, needs at least.
    least: f64,
    /// What a manifest can ask for at all.
    most: f64,
    /// What the host has; none where it does not tell.
    host: Option<f64>,
    /// What the operator's flag says.
    operator: Option<f64>,
}

impl ResourceLimits {
    /// What flags make of what the host has. A ceiling above that changes nothing, so that hosts of different sizes can
    /// share their flags.
    ///
    /// # Errors
    /// Flags that contradict each other, the host or the engine: which, and what to change.
    pub fn new(flags: &ResourceFlags, host: &Host, workers: usize) -> Result<Self, String> {
        let bound = |field, noun, least: f64, most: f64, host: Option<f64>, operator: Option<f64>| Bound {
            field,
            noun,
            least,
            most,
            host,
            operator,
        };
        let known = |number: u64| (number > 0).then_some(number as f64);
        let (memory, pids) = (known(host.memory_mib), known(host.pids_max));
        let cpus = bound("cpus", "CPUs", MIN_CPUS, MAX_CPUS, Some(host.cpus.into()), flags.max_cpus);
        let memory_mib = bound(
            "memory_mib",
            "MiB of memory",
            MIN_MEMORY_MIB as f64,
            MAX_MEMORY_MIB as f64,
            memory,
            flags.max_memory_mib.map(|mib| mib as f64),
        );
        let pids = bound(
            "pids",
            "processes",
            PIDS_MIN as f64,
            MAX_PIDS as f64,
            pids,
            flags.max_pids.map(|number| number as f64),
        );
        let gpus = bound("gpus", "GPUs", 0.0, MAX_GPUS.into(), host.gpus.map(f64::from), flags.max_gpus.map(f64::from));
        for bound in [&cpus, &memory_mib, &pids, &gpus] {
            bound.check_flags(None)?;
        }
        let share = (host.memory_mib / workers.max(1) as u64).max(MEMORY_MIB_MIN);
        let default = Grant {
            cpus: cpus.default(flags.default_cpus, host.cpus.into())?,
            memory_mib: memory_mib.default(flags.default_memory_mib.map(|mib| mib as f64), share as f64)? as u64,
            pids: pids.default(flags.default_pids.map(|number| number as f64), PIDS_DEFAULT as f64)? as u64,
            gpus: 0,
        };
        Ok(Self { cpus, memory_mib, pids, gpus, default })
    }

    /// Whether a manifest may ask for this much here.
    ///
    /// # Errors
    /// 400 with the ceiling: `resources_exceed_host`, `resources_exceed_limit`, or `invalid_value` for what is too little to
    /// start with.
    pub fn check(&self, asked: &Resources) -> Result<(), Rejection> {
        for (bound, number) in self.asked(asked) {
            bound.check(number)?;
        }
        Ok(())
    }

    /// Whether the engine can give this much. What no manifest named is fitted to it instead.
    ///
    /// # Errors
    /// 400: `no_gpus`, `resources_exceed_host`.
    pub fn check_engine(&self, asked: &Resources, engine: &EngineCapacity) -> Result<(), Rejection> {
        let gpus = asked.gpus.unwrap_or(0);
        if gpus > 0 && !engine.nvidia {
            let message = format!(
                "{} asked for; the container engine here has no NVIDIA runtime: leave resources.gpus out, or have the NVIDIA \
                 Container Toolkit installed (nvidia-ctk runtime configure --runtime=docker) and the engine restarted",
                if gpus == 1 { "1 GPU was".to_owned() } else { format!("{gpus} GPUs were") }
            );
            return Err(Rejection::new(400, "no_gpus", message).field("resources.gpus"));
        }
        let has = |number: f64| (number > 0.0).then_some(number);
        let of_engine = |bound: &Bound, host| Bound { host, operator: None, ..*bound };
        for (bound, number) in self.asked(asked) {
            match bound.field {
                "cpus" => of_engine(bound, has(engine.cpus.into())).check(number)?,
                "memory_mib" => of_engine(bound, has(engine.memory_mib as f64)).check(number)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// What an attempt gets. What was asked for was let in once and is given, whatever the ceilings are now; what was not is
    /// the default, fitted to the engine.
    pub fn grant(&self, asked: &Resources, engine: Option<&EngineCapacity>) -> Grant {
        let engine_cpus = engine.map(|engine| f64::from(engine.cpus)).filter(|cpus| *cpus > 0.0);
        Grant {
            cpus: asked.cpus.unwrap_or(self.default.cpus.min(engine_cpus.unwrap_or(f64::INFINITY))),
            memory_mib: asked.memory_mib.unwrap_or(self.default.memory_mib),
            pids: asked.pids.unwrap_or(self.default.pids),
            gpus: asked.gpus.unwrap_or(self.default.gpus),
        }
    }

    /// For `/api/node`, named after the flags; null where only the engine knows.
    pub fn to_json(&self) -> Value {
        let whole = |bound: &Bound| bound.ceiling().map(|most| most as u64);
        json!({
            "default_cpus": self.default.cpus,
            "default_memory_mib": self.default.memory_mib,
            "default_pids": self.default.pids,
            "max_cpus": self.cpus.ceiling(),
            "max_memory_mib": whole(&self.memory_mib),
            "max_pids": whole(&self.pids),
            "max_gpus": whole(&self.gpus),
        })
    }

    fn asked(&self, asked: &Resources) -> Vec<(&Bound, f64)> {
        let numbers = [
            (&self.cpus, asked.cpus),
            (&self.memory_mib, asked.memory_mib.map(|mib| mib as f64)),
            (&self.pids, asked.pids.map(|number| number as f64)),
            (&self.gpus, asked.gpus.map(f64::from)),
        ];
        numbers.into_iter().filter_map(|(bound, number)| Some((bound, number?))).collect()
    }
}

impl Bound {
    fn ceiling(&self) -> Option<f64> {
        self.host.into_iter().chain(self.operator).reduce(f64::min)
    }

    fn check(&self, asked: f64) -> Result<(), Rejection> {
        let (field, noun) = (self.field, self.noun);
        let refuse = |code, message| Err(Rejection::new(400, code, message).field(format!("resources.{field}")));
        match (self.operator, self.host) {
            _ if asked < self.least => {
                // Only of processes: the manifest's own rules have the other minimums.
                let message = format!("{asked} {noun} are too few to start with; ask for {} or more", self.least);
                refuse("invalid_value", message)
            }
            (Some(most), host) if asked > most && host.is_none_or(|has| most <= has) => {
                let message =
                    format!("{asked} {noun} were asked for; this agent allows at most {most} ({})", self.flag("max"));
                refuse("resources_exceed_limit", message)
            }
            (_, Some(has)) if asked > has => {
                refuse("resources_exceed_host", format!("{asked} {noun} were asked for; this host has {has}"))
            }
            _ => Ok(()),
        }
    }

    /// The operator's own default where it makes sense; else the built-in one, brought below the ceiling.
    fn default(&self, asked: Option<f64>, built_in: f64) -> Result<f64, String> {
        self.check_flags(asked)?;
        Ok(asked.unwrap_or_else(|| self.ceiling().map_or(built_in, |most| built_in.min(most))))
    }

    /// Whether `--max-…`, and `--default-…` if given, can be meant.
    fn check_flags(&self, default: Option<f64>) -> Result<(), String> {
        let noun = self.noun;
        for (flag, number) in [(self.flag("max"), self.operator), (self.flag("default"), default)] {
            // Also of what is no number: "nan" is one to the parser.
            let Some(number) = number.filter(|number| !(self.least..=self.most).contains(number)) else { continue };
            return Err(format!("{flag} is {number}; an attempt can have from {} to {} {noun}", self.least, self.most));
        }
        let thousandths = |number: f64| (number * 1000.0 - (number * 1000.0).round()).abs() > 1e-6;
        for (flag, number) in [(self.flag("max"), self.operator), (self.flag("default"), default)] {
            if let Some(number) = number.filter(|number| thousandths(*number)) {
                return Err(format!("{flag} is {number}; give at most three decimals"));
            }
        }
        let Some(default) = default else { return Ok(()) };
        let flag = self.flag("default");
        match (self.operator, self.host) {
            (Some(most), _) if default > most => Err(format!(
                "{flag} is {default}, and {} is {most}; lower the one or raise the other",
                self.flag("max")
            )),
            (_, Some(has)) if default > has => {
                Err(format!("{flag} is {default}; this host has {has} {noun}: lower it, or leave it out"))
            }
            _ => Ok(()),
        }
    }

    fn flag(&self, kind: &str) -> String {
        format!("--{kind}-{}", self.field.replace('_', "-"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host { name: "h".into(), boot_id: String::new(), cpus: 4, memory_mib: 8192, pids_max: 32_768, gpus: Some(2) }
    }

    const ENGINE: EngineCapacity = EngineCapacity { cpus: 4, memory_mib: 8192, nvidia: true };

    fn limits(flags: &ResourceFlags) -> ResourceLimits {
        ResourceLimits::new(flags, &host(), 2).unwrap()
    }

    #[test]
    fn defaults_and_ceilings_without_flags_are_the_hosts() {
        let limits = limits(&ResourceFlags::default());
        let expected = Grant { cpus: 4.0, memory_mib: 4096, pids: 512, gpus: 0 };
        assert_eq!(limits.grant(&Resources::default(), None), expected);
        let json = limits.to_json();
        assert_eq!(
            (&json["max_cpus"], &json["max_memory_mib"], &json["max_pids"]),
            (&4.0.into(), &8192.into(), &32_768.into())
        );
        assert_eq!((&json["default_cpus"], &json["max_gpus"]), (&4.0.into(), &2.into()));
        // Many workers on a small host, and a host that does not tell.
        let small = Host { memory_mib: 300, pids_max: 100, gpus: None, ..host() };
        let limits = ResourceLimits::new(&ResourceFlags::default(), &small, 8).unwrap();
        assert_eq!(limits.grant(&Resources::default(), None).memory_mib, 256);
        assert_eq!(limits.grant(&Resources::default(), None).pids, 100);
        assert!(limits.to_json()["max_gpus"].is_null());
        let tiny = Host { memory_mib: 200, ..small };
        let limits = ResourceLimits::new(&ResourceFlags::default(), &tiny, 1).unwrap();
        assert_eq!(limits.grant(&Resources::default(), None).memory_mib, 200);
    }

    #[test]
    fn what_is_asked_for_is_given_and_the_rest_is_fitted() {
        let limits = limits(&ResourceFlags {
            default_cpus: Some(1.5),
            default_memory_mib: Some(100),
            default_pids: Some(50),
            max_cpus: Some(2.0),
            ..ResourceFlags::default()
        });
        let engine = EngineCapacity { cpus: 1, ..ENGINE };
        let expected = Grant { cpus: 1.0, memory_mib: 100, pids: 50, gpus: 0 };
        assert_eq!(limits.grant(&Resources::default(), Some(&engine)), expected);
        // As of a job that was let in under other flags.
        let asked = Resources { cpus: Some(3.0), memory_mib: Some(7), pids: Some(9), gpus: Some(1) };
        assert_eq!(limits.grant(&asked, Some(&engine)), Grant { cpus: 3.0, memory_mib: 7, pids: 9, gpus: 1 });
    }

    #[test]
    fn ceilings_name_whose_they_are() {
        let none = ResourceFlags::default();
        let operator = ResourceFlags {
            max_cpus: Some(1.5),
            max_memory_mib: Some(1024),
            max_pids: Some(100),
            max_gpus: Some(0),
            ..none.clone()
        };
        let above = ResourceFlags {
            max_cpus: Some(64.0),
            max_memory_mib: Some(1 << 20),
            max_pids: Some(1 << 20),
            max_gpus: Some(8),
            ..none.clone()
        };
        let cpus = |n| Resources { cpus: Some(n), ..Resources::default() };
        let memory = |n| Resources { memory_mib: Some(n), ..Resources::default() };
        let pids = |n| Resources { pids: Some(n), ..Resources::default() };
        let gpus = |n| Resources { gpus: Some(n), ..Resources::default() };
        let (host, limit) = ("resources_exceed_host", "resources_exceed_limit");
        for (flags, asked, expected) in [
            (&none, cpus(4.0), None),
            (&none, cpus(4.001), Some((host, "resources.cpus", "4.001 CPUs were asked for; this host has 4"))),
            (&none, memory(8192), None),
            (&none, memory(8193), Some((host, "resources.memory_mib", "this host has 8192"))),
            (&none, pids(32_768), None),
            (&none, pids(32_769), Some((host, "resources.pids", "this host has 32768"))),
            (&none, pids(1), Some(("invalid_value", "resources.pids", "ask for 2 or more"))),
            (&none, gpus(2), None),
            (&none, gpus(3), Some((host, "resources.gpus", "this host has 2"))),
            (&operator, cpus(1.5), None),
            (&operator, cpus(2.0), Some((limit, "resources.cpus", "at most 1.5 (--max-cpus)"))),
            // The lower ceiling is what helps a person.
            (&operator, cpus(100.0), Some((limit, "resources.cpus", "at most 1.5"))),
            (&operator, memory(1025), Some((limit, "resources.memory_mib", "1024 (--max-memory-mib)"))),
            (&operator, pids(101), Some((limit, "resources.pids", "100 (--max-pids)"))),
            (&operator, gpus(0), None),
            (&operator, gpus(1), Some((limit, "resources.gpus", "0 (--max-gpus)"))),
            (&above, cpus(5.0), Some((host, "resources.cpus", "this host has 4"))),
            (&above, memory(8193), Some((host, "resources.memory_mib", "this host has 8192"))),
            (&above, gpus(3), Some((host, "resources.gpus", "this host has 2"))),
        ] {
            let outcome = limits(flags).check(&asked);
            match expected {
                None => assert_eq!(outcome, Ok(()), "{asked:?}"),
                Some((code, field, says)) => {
                    let rejection = outcome.unwrap_err();
                    assert_eq!((rejection.status, rejection.code), (400, code), "{asked:?}: {rejection}");
                    assert_eq!(rejection.field.as_deref(), Some(field));
                    assert!(rejection.message.contains(says), "{rejection}");
                }
            }
        }
    }

    #[test]
    fn what_the_engine_cannot_give_is_told() {
        let limits = limits(&ResourceFlags::default());
        let small = EngineCapacity { cpus: 2, memory_mib: 1024, nvidia: false };
        let unknown = EngineCapacity { cpus: 0, memory_mib: 0, nvidia: false };
        let asked = |cpus, memory_mib, gpus| Resources { cpus, memory_mib, gpus, pids: None };
        for (asked, engine, code) in [
            (asked(Some(2.0), Some(1024), Some(0)), &small, None),
            (asked(Some(2.5), None, None), &small, Some("resources_exceed_host")),
            (asked(None, Some(1025), None), &small, Some("resources_exceed_host")),
            (asked(None, None, Some(1)), &small, Some("no_gpus")),
            (asked(Some(4.0), Some(8192), Some(2)), &ENGINE, None),
            (asked(Some(4.0), Some(8192), None), &unknown, None),
        ] {
            assert_eq!(limits.check_engine(&asked, engine).err().map(|r| r.code), code, "{asked:?} {engine:?}");
        }
    }

    #[test]
    fn flags_that_contradict_something_are_refused() {
        let none = ResourceFlags::default;
        for (flags, says) in [
            (ResourceFlags { default_cpus: Some(4.5), ..none() }, "--default-cpus is 4.5; this host has 4 CPUs"),
            (ResourceFlags { default_cpus: Some(0.0), ..none() }, "--default-cpus is 0; an attempt can have from 0.01"),
            (ResourceFlags { default_cpus: Some(f64::NAN), ..none() }, "--default-cpus is NaN"),
            (ResourceFlags { default_cpus: Some(1.2345), ..none() }, "three decimals"),
            (
                ResourceFlags { default_cpus: Some(2.0), max_cpus: Some(1.0), ..none() },
                "--default-cpus is 2, and --max-cpus is 1",
            ),
            (ResourceFlags { max_cpus: Some(f64::INFINITY), ..none() }, "--max-cpus is inf"),
            (ResourceFlags { max_cpus: Some(0.001), ..none() }, "--max-cpus is 0.001; an attempt can have from 0.01"),
            (
                ResourceFlags { default_memory_mib: Some(5), ..none() },
                "--default-memory-mib is 5; an attempt can have from 6",
            ),
            (ResourceFlags { default_memory_mib: Some(8193), ..none() }, "this host has 8192 MiB of memory"),
            (
                ResourceFlags { default_memory_mib: Some(64), max_memory_mib: Some(32), ..none() },
                "--default-memory-mib is 64, and --max-memory-mib is 32",
            ),
            (ResourceFlags { max_memory_mib: Some(5), ..none() }, "--max-memory-mib is 5"),
            (ResourceFlags { default_pids: Some(1), ..none() }, "--default-pids is 1; an attempt can have from 2"),
            (ResourceFlags { default_pids: Some(40_000), ..none() }, "this host has 32768 processes"),
            (ResourceFlags { default_pids: Some(9), max_pids: Some(8), ..none() }, "--max-pids is 8"),
            (ResourceFlags { max_pids: Some(0), ..none() }, "--max-pids is 0"),
            (ResourceFlags { max_gpus: Some(2000), ..none() }, "--max-gpus is 2000"),
        ] {
            let words = ResourceLimits::new(&flags, &host(), 2).unwrap_err();
            assert!(words.contains(says), "{flags:?}: {words}");
        }
    }
}
