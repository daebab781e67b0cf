//! How much each attempt under way has printed, for the event stream: so that a viewer asks for what is new and no more.
//!
//! It is told by the files' sizes, a few times a second whatever a payload prints, and nobody waits for whom it is told to.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::output::OutputPaths;

/// Shortest time between two tellings of an attempt. With the last one, which does not wait, at most four fall into a second.
const EVERY: Duration = Duration::from_millis(334);

/// Sizes of an attempt's output so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grown {
    /// The job.
    pub job_id: Arc<str>,
    /// Which of its attempts.
    pub attempt: u32,
    /// Bytes of standard output.
    pub stdout: u64,
    /// Bytes of standard error.
    pub stderr: u64,
}

impl Grown {
    /// The JSON line of the event stream.
    pub fn line(&self) -> String {
        let Self { job_id, attempt, stdout, stderr } = self;
        // A job id has nothing that JSON would escape.
        format!(r#"{{"job_id":"{job_id}","attempt":{attempt},"stdout":{stdout},"stderr":{stderr}}}"#)
    }
}

/// What is to be told. There is one who takes it.
#[derive(Debug, Default)]
pub struct Growth(Mutex<Vec<Grown>>);

impl Growth {
    /// Takes all that was noted since the last time, one for each attempt.
    pub fn take(&self) -> Vec<Grown> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn note(&self, grown: Grown) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match noted.iter_mut().find(|other| (&other.job_id, other.attempt) == (&grown.job_id, grown.attempt)) {
            Some(other) => *other = grown,
            None => noted.push(grown),
        }
    }
}

/// One attempt's output, looked at by who follows it.
pub(super) struct Grows {
    growth: Arc<Growth>,
    files: [PathBuf; 2],
    told: Grown,
    told_at: Option<Instant>,
}

impl Grows {
    /// An attempt of which nothing was told yet.
    pub fn new(growth: Arc<Growth>, job_id: Arc<str>, attempt: u32, paths: &OutputPaths) -> Self {
        let told = Grown { job_id, attempt, stdout: 0, stderr: 0 };
        Self { growth, files: [paths.stdout.clone(), paths.stderr.clone()], told, told_at: None }
    }

    /// Notes what has grown, if it is time for that; whether it noted something.
    pub fn look(&mut self) -> bool {
        if self.told_at.is_some_and(|at| at.elapsed() < EVERY) {
            return false;
        }
        let now = self.sizes();
        (now.stdout > self.told.stdout || now.stderr > self.told.stderr) && self.tell(now)
    }

    /// Notes the last sizes, if they are not told yet; whether it noted something.
    pub fn finish(&mut self) -> bool {
        let now = self.sizes();
        now != self.told && self.tell(now)
    }

    fn tell(&mut self, now: Grown) -> bool {
        self.growth.note(now.clone());
        (self.told, self.told_at) = (now, Some(Instant::now()));
        true
    }

    fn sizes(&self) -> Grown {
        // One that is not there holds nothing.
        let [stdout, stderr] = self.files.each_ref().map(|path| fs::metadata(path).map_or(0, |meta| meta.len()));
        Grown { stdout, stderr, ..self.told.clone() }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_growth_is_told_not_too_often_and_the_last_size_always() {
        let dir = std::env::temp_dir().join(format!("hb-growth-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let paths = OutputPaths::new(&dir, 2);
        let growth = Arc::<Growth>::default();
        let mut grows = Grows::new(growth.clone(), "a".into(), 2, &paths);
        assert!(!grows.look(), "there are no files");
        fs::write(&paths.stdout, "").unwrap();
        fs::write(&paths.stderr, "").unwrap();
        assert!(!grows.look(), "nothing was printed");
        fs::write(&paths.stdout, "one\n").unwrap();
        assert!(grows.look());
        fs::write(&paths.stderr, "error\n").unwrap();
        assert!(!grows.look(), "not yet time");
        assert!(grows.finish(), "the end does not wait");
        assert!(!grows.finish(), "told already");
        let told = growth.take();
        assert_eq!(told.len(), 1, "one for each attempt: {told:?}");
        assert_eq!(told[0].line(), r#"{"job_id":"a","attempt":2,"stdout":4,"stderr":6}"#);
        assert_eq!(growth.take(), []);
        // What was cut off again is told once it is certain.
        grows.told_at = None;
        fs::write(&paths.stderr, "").unwrap();
        assert!(!grows.look());
        assert!(grows.finish());
        assert_eq!((growth.take()[0].stderr, grows.told.stdout), (0, 4));
        fs::remove_dir_all(&dir).unwrap();
    }
}
