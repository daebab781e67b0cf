//! Every file that a sound ledger vouches for: logs, seals, lists, inputs files and artifacts, and the hashes in SCHEDULED.
//!
//! Sealed jobs go from the latest to the earliest, so that what later ones did is known. Of a job no more is kept than where
//! its events stand; they are read again when its turn comes.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::content::{Content, Found, Judgement, Task, Vouched, file_below, judge_all, leads_down, vouched};
use super::given::{INPUTS_BYTES_MAX, InputMount, Scheduled, read_inputs};
use super::report::{Kind, PrunedFile, Report, Stop};
use super::shared::{Dirs, Others, Trace, host_dirs, joined};
use crate::hash::Hash;
use crate::ledger::event::{LogDigest, Sealed, State};
use crate::ledger::fact::{Change, Fact};
use crate::ledger::lifecycle::{Job, Ledger};
use crate::manifest::{self, Manifest, PlaceSource};
use crate::seal::{self, Artifact, FORMAT, Kind as EntryKind, Seal};
use crate::sys::dir::Dir;
use crate::wal::reader::Reader;

/// What is kept of the ledger while it is scanned.
#[derive(Default)]
pub(super) struct Index {
    events: Vec<Place>,
    dirs: Dirs,
}

/// Where an event stands that tells of files.
struct Place {
    seq: u64,
    /// The job's number.
    job: u32,
    state: State,
}

impl Index {
    /// The directories that a RECEIVED names; for any thread.
    pub(super) fn dirs_of(fact: &Fact, bytes: &[u8]) -> Vec<Box<str>> {
        let Change::Received { manifest, .. } = &fact.change else { return Vec::new() };
        manifest::parse(manifest.of(bytes).as_bytes()).map_or(Vec::new(), |parsed| host_dirs(&parsed.manifest))
    }

    /// Takes in an event of a job.
    pub(super) fn note(&mut self, seq: u64, job: u32, state: State, dirs: &[Box<str>]) {
        if tells_of_files(state) {
            self.events.push(Place { seq, job, state });
        }
        for dir in dirs {
            self.dirs.add(dir);
        }
    }
}

fn tells_of_files(state: State) -> bool {
    use State::{Cancelled, Completed, Crash, Failed, Scheduled, Sealed};
    matches!(state, Scheduled | Crash | Completed | Failed | Cancelled | Sealed)
}

/// An event, as far as one is read here.
#[derive(Deserialize)]
struct Event<D> {
    attempt: u32,
    detail: D,
}

#[derive(Deserialize)]
struct Received {
    manifest: Box<RawValue>,
}

#[derive(Deserialize)]
struct Ending {
    stdout: Option<LogDigest>,
    stderr: Option<LogDigest>,
}

/// Checks the files of every job; what it finds goes to `report`.
pub(super) fn check(
    data: &Path,
    ledger: &Ledger,
    index: Index,
    reader: &Reader,
    report: &mut Report<'_, '_>,
) -> Result<(), Stop> {
    let Index { mut events, dirs } = index;
    events.sort_unstable_by_key(|event| (event.job, event.seq));
    let mut jobs: Vec<Arc<Job>> = ledger.jobs();
    jobs.retain(|job| job.state.is_end() || job.has_seen(State::Scheduled));
    jobs.sort_unstable_by_key(|job| Reverse(job.seq));
    report.jobs.0 = jobs.len();
    let mut others = Others::default();
    for job in jobs.iter().filter(|job| !job.state.is_end()) {
        if let Some(manifest) = job.open.as_ref().and_then(|open| open.manifest.read().ok()) {
            for place in manifest.places().iter().filter(|place| !place.read_only) {
                if let PlaceSource::Host(dir) = place.source {
                    others.uses(dir);
                }
            }
        }
    }
    let root = Dir::open(data)?;
    let mut check = Check { root, ledger, events: &events, dirs: &dirs, reader, report, others };
    for job in &jobs {
        check.report.meter.go_on()?;
        check.job(job)?;
        check.report.jobs.1 += 1;
        check.report.tick();
    }
    Ok(())
}

struct Check<'c, 'r, 'o> {
    /// The data directory.
    root: Dir,
    ledger: &'c Ledger,
    /// Sorted by job, then seq.
    events: &'c [Place],
    dirs: &'c Dirs,
    reader: &'c Reader,
    report: &'c mut Report<'r, 'o>,
    others: Others,
}

/// A mount that the payload could write.
struct Writable<'m> {
    container: &'m str,
    source: PlaceSource<'m>,
    dir: PathBuf,
    open: Found<Dir>,
}

impl Writable<'_> {
    /// The directory's path on the host, where jobs may share it.
    fn host(&self) -> Option<&[u8]> {
        matches!(self.source, PlaceSource::Host(_)).then(|| self.dir.as_os_str().as_bytes())
    }
}

impl Check<'_, '_, '_> {
    fn job(&mut self, job: &Job) -> Result<(), Stop> {
        let from = self.events.partition_point(|event| event.job < job.number);
        let events = &self.events[from..];
        let events = &events[..events.partition_point(|event| event.job == job.number)];
        let (mut scheduled, mut sealed) = (None, None);
        for event in events {
            match event.state {
                State::Scheduled => scheduled = Some(self.event::<Scheduled>(event.seq)?),
                State::Sealed => sealed = Some(self.event::<Sealed>(event.seq)?),
                // What an attempt under way writes is not vouched for yet.
                _ if job.state.is_end() => {
                    let ending = self.event::<Ending>(event.seq)?;
                    self.logs(job, event.seq, ending)?;
                }
                _ => {}
            }
        }
        let Some(scheduled) = scheduled else { return Ok(()) };
        let manifest = self.manifest(job)?;
        let scheduled = match (scheduled, &manifest) {
            (Ok(scheduled), Ok(manifest)) => {
                let fault = scheduled.detail.fault(manifest, &|parent| self.artifacts_root(parent));
                self.execution_fault(job, fault)?;
                scheduled.detail
            }
            (Err(error), _) => return self.execution_fault(job, Some(format!("it cannot be read ({error})"))),
            (_, Err(error)) => {
                return self.execution_fault(job, Some(format!("the manifest cannot be read ({error})")));
            }
        };
        match (sealed, manifest) {
            (Some(Ok(sealed)), Ok(manifest)) => self.sealed(job, &manifest, &scheduled, &sealed),
            (Some(Err(error)), _) => {
                let why = format!("what SEALED tells cannot be read ({error}); compare the ledger with a noted head");
                Ok(self.report.fault(Kind::SealChanged, &job.job_id, &seal_path(job), &why)?)
            }
            _ => Ok(()),
        }
    }

    fn execution_fault(&mut self, job: &Job, fault: Option<String>) -> Result<(), Stop> {
        if let Some(fault) = fault {
            let why = format!(
                "{fault}; the agent never wrote this SCHEDULED, so compare the ledger with a noted head or a backup"
            );
            self.report.fault(Kind::ExecutionHash, &job.job_id, b"-", &why)?;
        }
        Ok(())
    }

    fn logs(&mut self, job: &Job, seq: u64, ending: Result<Event<Ending>, String>) -> Result<(), Stop> {
        let Event { attempt, detail } = match ending {
            Ok(event) => event,
            Err(error) => {
                let why = format!("the digests in event {seq} cannot be read ({error}); compare it with a noted head");
                let path = format!("logs/{}", job.job_id);
                return Ok(self.report.fault(Kind::LogChanged, &job.job_id, path.as_bytes(), &why)?);
            }
        };
        for (stream, digest) in [("stdout", detail.stdout), ("stderr", detail.stderr)] {
            let Some(digest) = digest else { continue };
            let path = format!("logs/{}/{attempt}.{stream}", job.job_id);
            let task =
                Task { root: &self.root, path: path.as_bytes(), size: digest.bytes, mode: None, sha256: digest.sha256 };
            let report = &mut *self.report;
            let judged = judge_all(&[task], report.meter, &mut || report.tick());
            match judged.into_iter().next() {
                Some(Judgement::Absent) if let Some(pruned) = self.ledger.pruned().of(job) => {
                    report.pruned(pruned, job.number, PrunedFile::Log);
                }
                Some(Judgement::Absent) => {
                    let why = format!("the output that event {seq} has the digest of is gone; look for it in a backup");
                    report.fault(Kind::LogMissing, &job.job_id, path.as_bytes(), &why)?;
                }
                Some(Judgement::Differs(how, _)) => {
                    let why = format!(
                        "it is not the output that event {seq} tells of ({how}); restore it, and ask who may write there"
                    );
                    report.fault(Kind::LogChanged, &job.job_id, path.as_bytes(), &why)?;
                }
                Some(Judgement::Unreadable(error)) => report.unreadable(&job.job_id, path.as_bytes(), &error)?,
                Some(Judgement::Same) => {}
                Some(Judgement::Unjudged) | None => return Err(Stop::Interrupted),
            }
        }
        Ok(())
    }

    fn sealed(
        &mut self,
        job: &Job,
        manifest: &Manifest,
        scheduled: &Scheduled,
        told: &Event<Sealed>,
    ) -> Result<(), Stop> {
        let seal = self.seal(job, scheduled, told)?;
        self.list(job, told)?;
        let inputs = self.inputs(job, scheduled)?;
        if let Some(seal) = &seal {
            self.artifacts(job, manifest, seal, inputs.as_deref())?;
        }
        self.remember(manifest, seal.as_ref(), inputs.as_deref());
        Ok(())
    }

    /// The seal, where it is the one that SEALED names.
    fn seal(&mut self, job: &Job, scheduled: &Scheduled, told: &Event<Sealed>) -> Result<Option<Seal>, Stop> {
        let path = seal_path(job);
        let Some(bytes) = self.own(job, &path, told.detail.seal_hash, (Kind::SealMissing, Kind::SealChanged))? else {
            return Ok(None);
        };
        let fault = match serde_json::from_slice::<Seal>(&bytes) {
            Ok(seal) if is_of(&seal, job, scheduled, told) => return Ok(Some(seal)),
            Ok(_) => "it has the hash that SEALED tells and does not agree with the ledger's events".to_owned(),
            Err(error) => format!("it has the hash that SEALED tells and is no seal ({error})"),
        };
        let why = format!("{fault}; the agent never wrote this SEALED, so compare the ledger with a noted head");
        self.report.fault(Kind::SealChanged, &job.job_id, &path, &why)?;
        Ok(None)
    }

    fn list(&mut self, job: &Job, told: &Event<Sealed>) -> Result<(), Stop> {
        let path = format!("seals/{}.sha256", job.job_id);
        let kinds = (Kind::ListMissing, Kind::ListChanged);
        self.own(job, path.as_bytes(), told.detail.artifacts_root, kinds).map(drop)
    }

    /// The bytes of a file of the data directory that an event has the hash of.
    fn own(&mut self, job: &Job, path: &[u8], hash: Hash, kinds: (Kind, Kind)) -> Result<Option<Vec<u8>>, Stop> {
        let report = &mut *self.report;
        let outcome = match file_below(&self.root, path) {
            Found::There((mut file, stat)) => vouched(&mut file, stat.size, hash, report.meter, &mut || report.tick()),
            Found::Absent => {
                let why = "it is gone; the ledger still has its hash, so look for it in a backup";
                report.fault(kinds.0, &job.job_id, path, why)?;
                return Ok(None);
            }
            Found::Unreadable(error) => Err(error),
        };
        match outcome {
            Ok(Vouched::Bytes(bytes)) => return Ok(Some(bytes)),
            Ok(Vouched::Unjudged) => return Err(Stop::Interrupted),
            Ok(Vouched::Other) => {
                let why = format!("its SHA-256 is not {hash}, which SEALED tells; restore it from a backup");
                report.fault(kinds.1, &job.job_id, path, &why)?;
            }
            Err(error) => report.unreadable(&job.job_id, path, &error)?,
        }
        Ok(None)
    }

    /// The inputs, where they are those that SCHEDULED tells of.
    fn inputs(&mut self, job: &Job, scheduled: &Scheduled) -> Result<Option<Vec<InputMount>>, Stop> {
        let path = format!("inputs/{}.json", job.job_id);
        let outcome = match file_below(&self.root, path.as_bytes()) {
            Found::There((_, stat)) if stat.size > INPUTS_BYTES_MAX => {
                Err(std::io::Error::other(format!("it has {} bytes, more than are read", stat.size)))
            }
            Found::There((file, _)) => read_inputs(&file, &job.job_id, scheduled),
            Found::Absent => {
                let why = "it is gone; SCHEDULED still has the tree hashes, so look for it in a backup";
                self.report.fault(Kind::InputsMissing, &job.job_id, path.as_bytes(), why)?;
                return Ok(None);
            }
            Found::Unreadable(error) => Err(error),
        };
        match outcome {
            Ok(Ok(inputs)) => return Ok(Some(inputs)),
            Ok(Err(fault)) => {
                let why = format!("{fault}; it is not what the job was given, so restore it from a backup");
                self.report.fault(Kind::InputsChanged, &job.job_id, path.as_bytes(), &why)?;
            }
            Err(error) => self.report.unreadable(&job.job_id, path.as_bytes(), &error)?,
        }
        Ok(None)
    }

    fn artifacts(
        &mut self,
        job: &Job,
        manifest: &Manifest,
        seal: &Seal,
        inputs: Option<&[InputMount]>,
    ) -> Result<(), Stop> {
        let mut mounts = Vec::new();
        for place in manifest.places().into_iter().filter(|place| !place.read_only) {
            let dir = place.dir(&job.job_id);
            let open = Found::of(match place.source {
                // The operator's path, up to the mount.
                PlaceSource::Host(_) => Dir::open(&dir),
                _ => self.root.open_beneath(&dir),
            });
            if let Found::Unreadable(error) = &open {
                self.report.unreadable(&job.job_id, place.container.as_bytes(), error)?;
            }
            mounts.push(Writable { container: place.container, source: place.source, dir, open });
        }
        self.judge(job, &mounts, &seal.artifacts)?;
        if let Some(inputs) = inputs {
            let artifacts = seal.artifacts.iter().map(|artifact| artifact.path.0.as_slice()).collect();
            for mount in &mounts {
                self.extras(job, mount, &artifacts, inputs)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, job: &Job, mounts: &[Writable<'_>], artifacts: &[Artifact]) -> Result<(), Stop> {
        // Whose own directories are gone, or going.
        let pruned = self.ledger.pruned().of(job);
        // Each artifact with its path on the host, where other jobs may have to do with it.
        let mut judged: Vec<(&Artifact, Option<Vec<u8>>, Judgement)> = Vec::with_capacity(artifacts.len());
        let (mut tasks, mut at) = (Vec::new(), Vec::new());
        for artifact in artifacts {
            let Some((mount, below)) = locate(mounts, &artifact.path.0) else {
                judged.push((artifact, None, Judgement::Absent));
                continue;
            };
            let host = mount.host().map(|dir| joined(dir, below));
            let judgement = match &mount.open {
                // It was told of.
                Found::Unreadable(_) => continue,
                Found::Absent => Judgement::Absent,
                Found::There(root) => {
                    let (size, sha256) = (artifact.size, artifact.sha256);
                    let task = Task { root, path: below, size, mode: Some(artifact.mode), sha256 };
                    let known = host.as_ref().and_then(|host| self.others.content(host));
                    match known.map(|content| (content, task.difference(&content))) {
                        Some((_, None)) => Judgement::Same,
                        Some((content, Some(difference))) => Judgement::Differs(difference, Some(content)),
                        None => {
                            at.push(judged.len());
                            tasks.push(task);
                            Judgement::Unjudged
                        }
                    }
                }
            };
            judged.push((artifact, host, judgement));
        }
        let report = &mut *self.report;
        for (at, judgement) in at.into_iter().zip(judge_all(&tasks, report.meter, &mut || report.tick())) {
            judged[at].2 = judgement;
        }
        for (artifact, host, judgement) in judged {
            let excuse = host.as_ref().and_then(|host| self.others.excuse_artifact(host));
            let path = &artifact.path.0;
            if let Some(host) = host.filter(|host| self.dirs.is_shared(host)) {
                let Artifact { size, mode, sha256, .. } = *artifact;
                match &judgement {
                    Judgement::Same => self.others.keep_content(&host, Content { size, mode, sha256 }),
                    Judgement::Differs(_, Some(content)) => self.others.keep_content(&host, *content),
                    _ => {}
                }
            }
            let id = &job.job_id;
            match (judgement, excuse) {
                (Judgement::Same, _) => {}
                (Judgement::Unjudged, _) => return Err(Stop::Interrupted),
                (Judgement::Unreadable(error), _) => self.report.unreadable(id, path, &error)?,
                (Judgement::Absent, None)
                    if let (Some(seq), Some((mount, _))) = (pruned, locate(mounts, path))
                        && mount.host().is_none() =>
                {
                    self.report.pruned(seq, job.number, PrunedFile::Artifact);
                }
                (Judgement::Absent, Some(excuse)) => self.report.note(excuse, id, path, "it is gone")?,
                (Judgement::Differs(how, _), Some(excuse)) => self.report.note(excuse, id, path, &how)?,
                (Judgement::Absent, None) => {
                    let hash = artifact.sha256;
                    let why = format!("the sealed file is gone; whoever has one with SHA-256 {hash} can put it back");
                    self.report.fault(Kind::ArtifactMissing, id, path, &why)?;
                }
                (Judgement::Differs(how, _), None) => {
                    let why = format!("it is not the sealed file ({how}); restore it, or ask who may write there");
                    self.report.fault(Kind::ArtifactChanged, id, path, &why)?;
                }
            }
        }
        Ok(())
    }

    fn extras(
        &mut self,
        job: &Job,
        mount: &Writable<'_>,
        artifacts: &BTreeSet<&[u8]>,
        inputs: &[InputMount],
    ) -> Result<(), Stop> {
        let Found::There(open) = &mount.open else { return Ok(()) };
        let before = inputs.iter().find(|given| given.container == mount.container).map(|given| &given.tree);
        let shared = mount.host().is_some_and(|dir| self.dirs.is_shared(dir));
        let listing = self.others.listing(&mount.dir, open, shared, self.report.meter)?;
        let container = mount.container.as_bytes();
        for (below, error) in &listing.unreadable {
            self.report.unreadable(&job.job_id, &joined(container, below), error)?;
        }
        for below in &listing.files {
            let was_there = before.and_then(|tree| tree.get(below)).is_some_and(|entry| entry.kind == EntryKind::File);
            let path = joined(container, below);
            if was_there || artifacts.contains(path.as_slice()) {
                continue;
            }
            let excuse = mount.host().and_then(|dir| self.others.excuse_extra(&joined(dir, below)));
            if let Some(excuse) = excuse {
                self.report.note(excuse, &job.job_id, &path, "the job neither found nor made it")?;
            } else {
                let why = "the job neither found nor made it; ask who may write there, or move it away";
                self.report.fault(Kind::ArtifactExtra, &job.job_id, &path, why)?;
            }
        }
        Ok(())
    }

    /// Keeps what jobs that were sealed earlier must know of this one.
    fn remember(&mut self, manifest: &Manifest, seal: Option<&Seal>, inputs: Option<&[InputMount]>) {
        for place in manifest.places() {
            let PlaceSource::Host(dir) = place.source else { continue };
            if !self.dirs.is_shared(dir.as_bytes()) {
                continue;
            }
            let mut note = |below: &[u8], trace| self.others.note(&joined(dir.as_bytes(), below), trace);
            if let Some(seal) = seal.filter(|_| !place.read_only) {
                let artifacts = seal.artifacts.iter().map(|artifact| (&artifact.path, Trace::Artifact));
                for (path, trace) in artifacts.chain(seal.removed.iter().map(|path| (path, Trace::Removed))) {
                    if let Some(below) = below(place.container, &path.0) {
                        note(below, trace);
                    }
                }
            }
            let given = inputs.into_iter().flatten().find(|given| given.container == place.container);
            for entry in given.iter().flat_map(|given| &given.tree.entries) {
                if entry.kind == EntryKind::File {
                    note(&entry.path, Trace::Input);
                }
            }
        }
    }

    /// What a sealed job's artifacts come to, as its SEALED event tells.
    fn artifacts_root(&self, job_id: &str) -> Option<Hash> {
        let job = self.ledger.job(job_id).filter(|job| job.state == State::Sealed)?;
        Some(self.event::<Sealed>(job.seq).ok()?.ok()?.detail.artifacts_root)
    }

    fn manifest(&self, job: &Job) -> Result<Result<Manifest, String>, Stop> {
        let received = self.event::<Received>(job.received_seq)?;
        Ok(received.and_then(|event| {
            let parsed = manifest::parse(event.detail.manifest.get().as_bytes());
            parsed.map(|parsed| parsed.manifest).map_err(|rejection| rejection.to_string())
        }))
    }

    fn event<D: DeserializeOwned>(&self, seq: u64) -> Result<Result<Event<D>, String>, Stop> {
        let bytes = self.reader.get(seq)?;
        Ok(serde_json::from_slice(&bytes).map_err(|error| error.to_string()))
    }
}

fn seal_path(job: &Job) -> Vec<u8> {
    format!("seals/{}.json", job.job_id).into_bytes()
}

/// Whether a seal is the one that the ledger's events tell of, and agrees with itself.
fn is_of(seal: &Seal, job: &Job, scheduled: &Scheduled, told: &Event<Sealed>) -> bool {
    let sizes = seal.artifacts.iter().try_fold(0_u64, |sum, artifact| sum.checked_add(artifact.size));
    let Sealed { artifacts_root, files, bytes, .. } = told.detail;
    (seal.format, &*seal.job_id, seal.attempt) == (FORMAT, &*job.job_id, told.attempt)
        && (seal.execution_hash, &*seal.image_id) == (scheduled.execution_hash, &*scheduled.image_id)
        && (seal.artifacts_root, seal.files, seal.bytes) == (artifacts_root, files, bytes)
        && (seal.artifacts.len() as u64, sizes) == (files, Some(bytes))
        && Hash::of(&seal::checksum_list(&seal.artifacts)) == artifacts_root
}

/// The mount that a path in the container lies in, and the path below it; `None` where it leads elsewhere.
fn locate<'m, 'p>(mounts: &'m [Writable<'m>], path: &'p [u8]) -> Option<(&'m Writable<'m>, &'p [u8])> {
    mounts.iter().find_map(|mount| Some((mount, below(mount.container, path)?)))
}

fn below<'p>(container: &str, path: &'p [u8]) -> Option<&'p [u8]> {
    path.strip_prefix(container.as_bytes())?.strip_prefix(b"/").filter(|below| leads_down(below))
}
