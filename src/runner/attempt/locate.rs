//! Finds the control group of a container that has none of the attempt's own above it, as with the `systemd` driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::super::Runner;
use super::super::cgroup::{AttemptGroup, Hierarchies, Unavailable};
use super::super::docker::{ContainerState, Inspect};
use super::super::telemetry::Meter;

/// Pauses between two looks: the first, while the container is being started, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Looks for the container in a thread of its own until it runs, then hands its group to the meter. Ends with the attempt.
pub(super) fn start(runner: &Arc<Runner>, container: &str, meter: &Arc<Meter>, ended: &Arc<AtomicBool>) {
    let (runner, container, meter, ended) = (runner.clone(), container.to_owned(), meter.clone(), ended.clone());
    let spawned = thread::Builder::new().name("locate".into()).stack_size(128 << 10).spawn(move || {
        let is_over = || ended.load(Ordering::Relaxed) || runner.is_stopping();
        let mut pause = PAUSE.0;
        while !is_over() {
            match (runner.setup.docker.inspect(&container), runner.host_hierarchies()) {
                (Ok(Inspect::Present(state)), Some(hierarchies)) if state.running && state.pid != 0 => {
                    match hierarchies.and_then(|hierarchies| group_of(&hierarchies, &state)) {
                        Ok(group) => meter.found(group),
                        Err(error) => log::warn!("{container}: {error}"),
                    }
                    return;
                }
                (Ok(Inspect::Present(state)), _) if state.started && !state.running => return,
                // Not made yet, or the engine is away.
                _ => {}
            }
            runner.pause(pause, &is_over);
            pause = (pause * 5 / 4).min(PAUSE.1);
        }
    });
    if let Err(error) = spawned {
        log::warn!("no thread to find a container's control group: {error}");
    }
}

fn group_of(hierarchies: &Hierarchies, state: &ContainerState) -> Result<AttemptGroup, Unavailable> {
    let file = format!("/proc/{}/cgroup", state.pid);
    let text = std::fs::read_to_string(&file).map_err(|error| Unavailable(format!("{file}: {error}")))?;
    // The pid is of the engine's host, which may be another one, and may be somebody else's by now. The engine names the
    // group after the container.
    if !text.contains(&state.id) {
        return Err(Unavailable(format!("{file} is not of container {}", state.id)));
    }
    AttemptGroup::of_process(hierarchies, &text)
}
