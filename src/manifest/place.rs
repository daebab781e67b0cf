//! Where a job's mounts lie: the one answer for the runner, for readers of artifacts, and for whoever checks them later. Pure.

use std::path::{Path, PathBuf};

use super::{Manifest, MountSource};

/// Where a job without a directory of the host works.
pub const SCRATCH_CONTAINER: &str = "/job/workdir";
/// Below the data directory, `<job>` or `<job>/<index>`: what belongs to one job and stays after it.
const SCRATCH_DIR: &str = "scratch";
/// Below the data directory, `<job>/<index>`: copies of parents' artifacts, which go when the job has ended.
const STAGED_DIR: &str = "staged";

/// One mount of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'m> {
    /// Path inside the container.
    pub container: &'m str,
    /// Whether the payload may only read it.
    pub read_only: bool,
    /// What is there.
    pub source: PlaceSource<'m>,
    /// Its number among the job's places.
    pub index: usize,
}

/// What a place shows the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaceSource<'m> {
    /// A directory of the host.
    Host(&'m str),
    /// A directory of the job's own, empty at first.
    Scratch,
    /// A directory of the job's own, at first with what another job found in this directory of the host: see
    /// [`Manifest::reproduces`].
    CopyOf(&'m str),
    /// What this parent has sealed.
    ArtifactsOf(&'m str),
}

impl Manifest {
    /// Every mount, in order; the first is the working directory. A job without a directory of the host gets a scratch
    /// directory, before whatever else it mounts.
    pub fn places(&self) -> Vec<Place<'_>> {
        let is_host = |source: &MountSource| matches!(source, MountSource::Host(_));
        let scratch = (!self.mounts.iter().any(|mount| is_host(&mount.source))).then_some(Place {
            container: SCRATCH_CONTAINER,
            read_only: false,
            source: PlaceSource::Scratch,
            index: 0,
        });
        let mounts = self.mounts.iter().map(|mount| Place {
            container: &mount.container,
            read_only: mount.read_only,
            source: match &mount.source {
                MountSource::Job(parent) => PlaceSource::ArtifactsOf(parent),
                MountSource::Host(path) if self.reproduces.is_some() && !mount.read_only => PlaceSource::CopyOf(path),
                MountSource::Host(path) => PlaceSource::Host(path),
            },
            index: 0,
        });
        let all = scratch.into_iter().chain(mounts).enumerate();
        all.map(|(index, place)| Place { index, ..place }).collect()
    }
}

impl Place<'_> {
    /// The directory, relative to the data directory where it is one of the agent's own; absolute where it is the host's.
    pub fn dir(&self, job_id: &str) -> PathBuf {
        match self.source {
            PlaceSource::Host(path) => path.into(),
            PlaceSource::Scratch => scratch(job_id),
            PlaceSource::CopyOf(_) => scratch(job_id).join(self.index.to_string()),
            PlaceSource::ArtifactsOf(_) => staged(job_id).join(self.index.to_string()),
        }
    }
}

/// Where what a job writes lies, if it is not a directory of the host, relative to the data directory.
pub fn scratch(job_id: &str) -> PathBuf {
    Path::new(SCRATCH_DIR).join(job_id)
}

/// Where copies of parents' artifacts lie for a job, relative to the data directory.
pub fn staged(job_id: &str) -> PathBuf {
    Path::new(STAGED_DIR).join(job_id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::parse;

    fn dirs(more: &str) -> Vec<(String, bool, String)> {
        let text = format!(r#"{{"job_id":"j","image_hash":"i","command":["c"]{more}}}"#);
        let manifest = parse(text.as_bytes()).unwrap().manifest;
        let of = |place: &super::Place<'_>| {
            (place.container.to_owned(), place.read_only, place.dir("j").display().to_string())
        };
        manifest.places().iter().map(of).collect()
    }

    fn place(container: &str, read_only: bool, dir: &str) -> (String, bool, String) {
        (container.into(), read_only, dir.into())
    }

    #[test]
    fn every_kind_of_place() {
        assert_eq!(dirs(""), [place("/job/workdir", false, "scratch/j")]);
        assert_eq!(
            dirs(r#","mount_spec":["/d:/w","/r:/ref:ro","job:p:/in"]"#),
            [place("/w", false, "/d"), place("/ref", true, "/r"), place("/in", true, "staged/j/2")]
        );
        assert_eq!(
            dirs(r#","mount_spec":["job:p:/job/in/p","job:q:/job/in/q"]"#),
            [
                place("/job/workdir", false, "scratch/j"),
                place("/job/in/p", true, "staged/j/1"),
                place("/job/in/q", true, "staged/j/2")
            ]
        );
        assert_eq!(
            dirs(r#","mount_spec":["/d:/w","/r:/ref:ro"],"reproduces":"o""#),
            [place("/w", false, "scratch/j/0"), place("/ref", true, "/r")]
        );
        assert_eq!(dirs(r#","reproduces":"o""#), [place("/job/workdir", false, "scratch/j")]);
    }
}
