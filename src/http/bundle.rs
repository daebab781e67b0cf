//! Everything about one job that has ended, as a tar, for whoever has no access to the agent: see docs/evidence.md.
//!
//! SHA256SUMS comes before what it vouches for. So digests and lengths are known before the first byte goes out, from
//! the ledger, from the seal, or from a first pass over what is the agent's own. What is sent is hashed once more on
//! its way, and a transfer whose content is not what was said is cut. Nothing that grows with the job is held: two
//! passes read the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::api::Call;
use super::artifacts::{client_gone, download, not_opened, seal_changed, send};
use super::files::unreadable;
use super::reply::{Reply, StreamWriter};
use super::request::Request;
use super::routes::{Answer, App};
use super::tar::{self, Kind};
use crate::hash::Hash;
use crate::ledger::event::{Detail, LogDigest, Sealed, State, Stored};
use crate::ledger::lifecycle::{Job, Phase};
use crate::rejection::Rejection;
use crate::runner::output::OutputPaths;
use crate::runner::sealed::{self, Absent, Artifact, Identity, Listing, OpenFile, SealedDirs, path_text};
use crate::view::View;

/// README.txt, with `{JOB}` for the job's id.
const README: &str = include_str!("bundle.txt");
/// What checks a bundle.
const VERIFIER: &[u8] = include_bytes!("../../scripts/verify.py");
/// Paths that a refusal lists.
const LISTED_MAX: usize = 20;
/// How many things are looked at between two looks whether the client is still there.
const LOOK_EVERY: u64 = 4096;
/// How much goes out at once of what is put together, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// Where the artifacts lie.
const ARTIFACTS: &[u8] = b"artifacts/";
/// An event's state stands within this many bytes: seq, prev, time, the longest job id, attempt.
const HEAD_BYTES: usize = 400;

/// A bundle before it is sent: what must be held, and where the rest is read from.
struct Bundle {
    job_id: String,
    view: Arc<View>,
    /// Small files, whose bytes are held: README.txt, and those that follow SHA256SUMS.
    readme: Vec<u8>,
    node: Vec<u8>,
    manifest: Vec<u8>,
    events: Events,
    inputs: Option<OwnFile>,
    seal: Option<SealFiles>,
    logs: Vec<(String, OwnFile)>,
    /// SHA256SUMS but for its lines about artifacts.
    sums: Vec<u8>,
}

/// The job's events up to that of `last_seq`.
struct Events {
    last_seq: u64,
    bytes: u64,
    sha256: Hash,
}

/// A file of the data directory, and what it must be when it is sent. Opened again then: a slow reader holds no more
/// descriptors than one.
struct OwnFile {
    path: PathBuf,
    identity: Identity,
    bytes: u64,
    sha256: Hash,
}

struct SealFiles {
    json: OwnFile,
    list: OwnFile,
    /// `None` where the artifacts are left out.
    artifacts: Option<Artifacts>,
}

struct Artifacts {
    files: u64,
    dirs: SealedDirs,
}

/// An entry's content.
enum Body<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Sums,
    Events,
    Own(&'a OwnFile),
    Artifact(&'a Artifact),
}

/// An entry of the archive.
struct Entry<'a> {
    name: &'a [u8],
    kind: Kind,
    size: u64,
    body: Body<'a>,
}

impl App {
    /// `GET /api/jobs/{id}/bundle`.
    pub(super) fn bundle(&self, call: &Call<'_>) -> Answer {
        let (request, id) = (call.request, call.id);
        let with_artifacts = call.query.text("artifacts") != Some("no");
        let job = self.find(id)?;
        if job.phase() != Phase::Ended {
            let message = format!("job {id:?} is {}; it has a bundle once it has ended", job.state);
            return Err(Rejection::new(409, "not_ended", message));
        }
        self.check_kept(&job, "the logs")?;
        let mut bundle = self.gather(request, &job, with_artifacts)?;
        let length = bundle.measure(request)?;
        let headers = download("application/x-tar", &format!("{id}.tar"));
        let run = move |to: &mut StreamWriter<'_>| {
            bundle.send(to).inspect_err(|error| {
                if error.kind() == io::ErrorKind::InvalidData {
                    log::error!("http: the bundle of job {} is cut off: {error}", bundle.job_id);
                }
            })
        };
        Ok(Reply::Sized { status: 200, headers, length, run: Box::new(run) })
    }

    /// Reads what the ledger tells, and compares the agent's own files with it.
    fn gather(&self, request: &Request, job: &Job, with_artifacts: bool) -> Result<Bundle, Rejection> {
        let id = &*job.job_id;
        let view = self.engine.view().clone();
        let told = Told::read(&view, job, &|| request.peer_gone()).map_err(|error| not_gathered(&error))?;
        let seal = match &told.sealed {
            Some(sealed) => Some(self.seal_files(job, sealed, with_artifacts)?),
            None => None,
        };
        let inputs = match job.has_seen(State::Scheduled) {
            true => Some(self.inputs_file(id)?),
            false => None,
        };
        let mut node = Vec::new();
        for seq in told.node_events {
            let read = view.ledger(seq, seq, &mut |_, bytes| {
                node.extend_from_slice(bytes);
                node.push(b'\n');
                false
            });
            read.map_err(|error| unreadable(&error))?;
        }
        let mut bundle = Bundle {
            job_id: id.to_owned(),
            view,
            readme: README.replace("{JOB}", id).into_bytes(),
            node,
            manifest: told.manifest,
            events: told.events,
            inputs,
            seal,
            logs: logs(&self.data.join("logs").join(id), &told.logs)?,
            sums: Vec::new(),
        };
        bundle.sums = bundle.own_sums();
        Ok(bundle)
    }

    fn seal_files(&self, job: &Job, sealed: &Sealed, with_artifacts: bool) -> Result<SealFiles, Rejection> {
        let id = &*job.job_id;
        let check = |path: io::Result<PathBuf>, what: &str, hash: Hash| {
            let path = path.map_err(|error| unreadable(&error))?;
            match OwnFile::hashed(path) {
                Ok(file) if file.sha256 == hash => Ok(file),
                Ok(_) => Err(seal_changed(what, "is not the one that the SEALED event names")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(seal_changed(what, "is missing")),
                Err(error) => Err(unreadable(&error)),
            }
        };
        let json = check(sealed::seal_path(&self.data, id), "seal", sealed.seal_hash)?;
        let list = check(sealed::list_path(&self.data, id), "seal list", sealed.artifacts_root)?;
        let artifacts = match with_artifacts {
            true => Some(Artifacts {
                files: sealed.files,
                dirs: SealedDirs::new(self.admission.mounts.clone(), id, &self.manifest_of(job)?),
            }),
            false => None,
        };
        Ok(SealFiles { json, list, artifacts })
    }

    fn inputs_file(&self, id: &str) -> Result<OwnFile, Rejection> {
        let file = sealed::inputs_path(&self.data, id).and_then(OwnFile::hashed);
        file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Rejection::new(409, "inputs_changed", "the job's inputs file is missing; restore DATA/inputs")
            }
            _ => unreadable(&error),
        })
    }
}

/// What the ledger tells of a job that goes into its bundle.
struct Told {
    manifest: Vec<u8>,
    events: Events,
    /// GENESIS, and each NODE_UP that an attempt ran under.
    node_events: BTreeSet<u64>,
    /// By attempt and stream.
    logs: BTreeMap<(u32, &'static str), LogDigest>,
    sealed: Option<Sealed>,
}

impl Told {
    fn read(view: &View, job: &Job, gone: &dyn Fn() -> bool) -> io::Result<Self> {
        let mut told = Self {
            manifest: Vec::new(),
            events: Events { last_seq: job.seq, bytes: 0, sha256: Hash::ZERO },
            node_events: BTreeSet::from([1]),
            logs: BTreeMap::new(),
            sealed: None,
        };
        let (mut hasher, mut count, mut outcome) = (Sha256::new(), 0_u64, Ok(()));
        job_events(view, &job.job_id, job.seq, &mut |bytes| {
            hasher.update(bytes);
            hasher.update(b"\n");
            told.events.bytes += bytes.len() as u64 + 1;
            count += 1;
            // A run of many days has millions of these, and they tell nothing that is needed here.
            let head = &bytes[..HEAD_BYTES.min(bytes.len())];
            let marker = b",\"state\":\"D1_STABLE\",";
            if !head.windows(marker.len()).any(|window| window == marker) {
                outcome = Stored::parse(bytes).map(|stored| told.take(stored)).map_err(io::Error::other);
            }
            if count.is_multiple_of(LOOK_EVERY) && gone() {
                outcome = Err(io::ErrorKind::ConnectionAborted.into());
            }
            outcome.is_ok()
        })?;
        outcome?;
        told.events.sha256 = Hash::finish(hasher);
        Ok(told)
    }

    fn take(&mut self, stored: Stored) {
        let attempt = stored.event.subject.map_or(0, |subject| subject.attempt);
        let ending = match stored.event.detail {
            Detail::Received(received) => {
                self.manifest = received.manifest.get().as_bytes().to_vec();
                return;
            }
            Detail::Running(intent) | Detail::Recovery(intent) => {
                self.node_events.insert(intent.node_up);
                return;
            }
            Detail::Sealed(sealed) => {
                self.sealed = Some(sealed);
                return;
            }
            Detail::Completed(ending) => ending,
            Detail::Crash(crash) => crash.ending,
            Detail::Failed(failed) => failed.ending,
            Detail::Cancelled(cancelled) => cancelled.ending,
            _ => return,
        };
        for (stream, digest) in [("stdout", ending.stdout), ("stderr", ending.stderr)] {
            if let Some(digest) = digest {
                self.logs.insert((attempt, stream), digest);
            }
        }
    }
}

/// Calls `each` with the stored bytes of the job's events up to that of `last`, until it returns `false`. Later
/// ones, of a job that was retriggered meanwhile, are left out.
fn job_events(view: &View, job_id: &str, last: u64, each: &mut dyn FnMut(&[u8]) -> bool) -> io::Result<()> {
    let prefix = format!("{{\"seq\":{last},");
    let mut more = true;
    view.trace(job_id, &mut |bytes| {
        let is_last = bytes.starts_with(prefix.as_bytes());
        more = more && each(bytes) && !is_last;
        more
    })
}

/// The logs that events have digests of. They are hashed when they are sent; here their lengths must fit.
fn logs(dir: &Path, digests: &BTreeMap<(u32, &str), LogDigest>) -> Result<Vec<(String, OwnFile)>, Rejection> {
    let of = |(&(attempt, stream), digest): (&(u32, &str), &LogDigest)| {
        let changed = |now: &str| {
            let message = format!(
                "{stream} of attempt {attempt} has {} bytes in the ledger, and {now}; restore DATA/logs",
                digest.bytes
            );
            Rejection::new(409, "log_changed", message)
        };
        let paths = OutputPaths::new(dir, attempt);
        let path = if stream == "stdout" { paths.stdout } else { paths.stderr };
        let file = OpenFile::own(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => changed("its file is missing"),
            _ => unreadable(&error),
        })?;
        if file.size() != digest.bytes {
            return Err(changed(&format!("its file has {}", file.size())));
        }
        let own = OwnFile { path, identity: file.identity(), bytes: digest.bytes, sha256: digest.sha256 };
        Ok((format!("logs/{attempt}.{stream}"), own))
    };
    digests.iter().map(of).collect()
}

impl OwnFile {
    /// A file whose digest is told nowhere, or must be compared beforehand.
    fn hashed(path: PathBuf) -> io::Result<Self> {
        let file = OpenFile::own(&path)?;
        let sha256 = file.digest(&|| true)?.ok_or_else(|| io::Error::other("hashing was given up"))?;
        Ok(Self { path, identity: file.identity(), bytes: file.size(), sha256 })
    }

    fn open(&self) -> io::Result<OpenFile> {
        OpenFile::own(&self.path)
    }

    fn check(&self, file: &OpenFile) -> io::Result<()> {
        if file.is_unchanged()? && file.identity() == self.identity {
            return Ok(());
        }
        Err(changed(&self.path.display().to_string()))
    }
}

impl Bundle {
    /// The lines of SHA256SUMS but for artifacts.
    fn own_sums(&self) -> Vec<u8> {
        let mut sums = Vec::new();
        let mut line = |name: &str, hash: Hash| sums.extend_from_slice(format!("{hash}  {name}\n").as_bytes());
        line("README.txt", Hash::of(&self.readme));
        line("verify.py", Hash::of(VERIFIER));
        line("events.jsonl", self.events.sha256);
        line("node.jsonl", Hash::of(&self.node));
        line("manifest.json", Hash::of(&self.manifest));
        self.inputs.iter().for_each(|file| line("inputs.json", file.sha256));
        if let Some(seal) = &self.seal {
            line("seal.json", seal.json.sha256);
            line("seal.sha256", seal.list.sha256);
        }
        self.logs.iter().for_each(|(name, file)| line(name, file.sha256));
        sums
    }

    /// Bytes of SHA256SUMS: each artifact's line is that of the seal's list, with the name of their directory put in.
    fn sums_bytes(&self) -> u64 {
        let of_artifacts = self.seal.as_ref().and_then(|seal| {
            let files = seal.artifacts.as_ref()?.files;
            Some(seal.list.bytes + files * ARTIFACTS.len() as u64)
        });
        self.sums.len() as u64 + of_artifacts.unwrap_or(0)
    }

    /// Calls `each` with every entry, in the archive's order: the one place that knows it.
    fn entries(&self, each: &mut dyn FnMut(&Entry<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut directories = Directories { job_id: &self.job_id, last: Vec::new(), each };
        let mut file = |name: &str, size: u64, body| directories.file(name.as_bytes(), Kind::File, size, body);
        file("README.txt", self.readme.len() as u64, Body::Bytes(&self.readme))?;
        file("SHA256SUMS", self.sums_bytes(), Body::Sums)?;
        file("verify.py", VERIFIER.len() as u64, Body::Bytes(VERIFIER))?;
        file("events.jsonl", self.events.bytes, Body::Events)?;
        file("node.jsonl", self.node.len() as u64, Body::Bytes(&self.node))?;
        file("manifest.json", self.manifest.len() as u64, Body::Bytes(&self.manifest))?;
        if let Some(inputs) = &self.inputs {
            file("inputs.json", inputs.bytes, Body::Own(inputs))?;
        }
        if let Some(seal) = &self.seal {
            file("seal.json", seal.json.bytes, Body::Own(&seal.json))?;
            file("seal.sha256", seal.list.bytes, Body::Own(&seal.list))?;
        }
        for (name, log) in &self.logs {
            file(name, log.bytes, Body::Own(log))?;
        }
        let Some(seal) = self.seal.as_ref().filter(|seal| seal.artifacts.is_some()) else { return Ok(()) };
        let opened = seal.json.open()?;
        for artifact in Listing::new(BufReader::with_capacity(PIECE_BYTES, Sequential { file: &opened, at: 0 }))? {
            let artifact = artifact?;
            let path = artifact.path.0.strip_prefix(b"/").unwrap_or(&artifact.path.0);
            let kind = if artifact.mode & 0o111 == 0 { Kind::File } else { Kind::Executable };
            directories.file(&[ARTIFACTS, path].concat(), kind, artifact.size, Body::Artifact(&artifact))?;
        }
        // It was the right one when it was hashed.
        seal.json.check(&opened)
    }

    /// Bytes of the archive. Looks at every artifact, so that what is not there is told before anything is sent.
    fn measure(&mut self, request: &Request) -> Result<u64, Rejection> {
        let mut dirs =
            self.seal.as_mut().and_then(|seal| seal.artifacts.as_mut().map(|artifacts| artifacts.dirs.take()));
        let (mut length, mut count, mut refused) = (tar::END.len() as u64, 0_u64, None);
        let mut missing = Missing::default();
        let walked = self.entries(&mut |entry| {
            length += tar::length(entry.name, entry.size);
            count += 1;
            if count.is_multiple_of(LOOK_EVERY) && request.peer_gone() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let (Body::Artifact(artifact), Some(dirs)) = (&entry.body, &mut dirs) else { return Ok(()) };
            match dirs.size(&artifact.path.0) {
                Ok(size) if size == artifact.size => {}
                Ok(size) => missing.add(artifact, &format!("{size} bytes instead of {}", artifact.size)),
                Err(Absent::Gone(instead)) => missing.add(artifact, &format!("there is {instead}")),
                Err(absent) => {
                    refused = Some(not_opened(absent));
                    return Err(io::ErrorKind::PermissionDenied.into());
                }
            }
            Ok(())
        });
        if let Some(rejection) = refused {
            return Err(rejection);
        }
        walked.map_err(|error| not_gathered(&error))?;
        if let (Some(artifacts), Some(dirs)) = (self.seal.as_mut().and_then(|seal| seal.artifacts.as_mut()), dirs) {
            artifacts.dirs = dirs;
        }
        missing.rejection(&self.job_id).map_or(Ok(length), Err)
    }

    fn send(&mut self, to: &mut StreamWriter<'_>) -> io::Result<()> {
        let mut dirs =
            self.seal.as_mut().and_then(|seal| seal.artifacts.as_mut().map(|artifacts| artifacts.dirs.take()));
        self.entries(&mut |entry| {
            to.send(&tar::header(entry.name, entry.kind, entry.size))?;
            match &entry.body {
                Body::Nothing => {}
                Body::Bytes(bytes) => to.send(bytes)?,
                Body::Sums => self.send_sums(to)?,
                Body::Events => self.send_events(to)?,
                Body::Own(own) => {
                    let file = own.open()?;
                    own.check(&file)?;
                    send(&file, 0, own.bytes, Some(own.sha256), to).map_err(|error| naming(entry.name, error))?;
                }
                Body::Artifact(artifact) => {
                    let dirs = dirs.as_mut().ok_or_else(|| io::Error::other("the artifacts were left out"))?;
                    let gone = |absent| match absent {
                        Absent::Gone(instead) => changed(&format!("{instead} is now where an artifact was")),
                        Absent::Refused(rejection) => changed(&rejection.message),
                        Absent::Failed(error) => error,
                    };
                    let file = dirs.open(&artifact.path.0).map_err(gone).map_err(|error| naming(entry.name, error))?;
                    if file.size() != artifact.size {
                        return Err(naming(entry.name, changed("its length")));
                    }
                    send(&file, 0, artifact.size, Some(artifact.sha256), to)
                        .map_err(|error| naming(entry.name, error))?;
                }
            }
            to.send(&[0; 512][..tar::padding(entry.size)])
        })?;
        to.send(&tar::END)
    }

    fn send_sums(&self, to: &mut StreamWriter<'_>) -> io::Result<()> {
        to.send(&self.sums)?;
        let Some(seal) = self.seal.as_ref().filter(|seal| seal.artifacts.is_some()) else { return Ok(()) };
        let file = seal.list.open()?;
        let mut lines = BufReader::with_capacity(PIECE_BYTES, Sequential { file: &file, at: 0 });
        let (mut line, mut out, mut hasher) = (Vec::new(), Vec::new(), Sha256::new());
        while lines.read_until(b'\n', &mut line)? > 0 {
            hasher.update(&line);
            if out.len() >= PIECE_BYTES {
                to.send(&out)?;
                out.clear();
            }
            // Behind the digest and two spaces; a backslash before the digest says that the name is escaped.
            let name = (line.iter().position(|&byte| byte == b' ').unwrap_or(0) + 2).min(line.len());
            out.extend_from_slice(&line[..name]);
            out.extend_from_slice(ARTIFACTS);
            out.extend_from_slice(&line[name..]);
            line.clear();
        }
        if Hash::finish(hasher) != seal.list.sha256 {
            return Err(changed("the seal's list"));
        }
        to.send(&out)
    }

    fn send_events(&self, to: &mut StreamWriter<'_>) -> io::Result<()> {
        let (mut out, mut hasher, mut sent) = (Vec::new(), Sha256::new(), Ok(()));
        job_events(&self.view, &self.job_id, self.events.last_seq, &mut |bytes| {
            if out.len() >= PIECE_BYTES {
                hasher.update(&out);
                sent = to.send(&out);
                out.clear();
            }
            out.extend_from_slice(bytes);
            out.push(b'\n');
            sent.is_ok()
        })?;
        sent?;
        hasher.update(&out);
        if Hash::finish(hasher) != self.events.sha256 {
            return Err(changed("the ledger"));
        }
        to.send(&out)
    }
}

/// Puts each directory before the first entry in it. All of a directory are neighbours, since paths are sorted.
struct Directories<'a> {
    job_id: &'a str,
    last: Vec<u8>,
    each: &'a mut dyn FnMut(&Entry<'_>) -> io::Result<()>,
}

impl Directories<'_> {
    fn file(&mut self, relative: &[u8], kind: Kind, size: u64, body: Body<'_>) -> io::Result<()> {
        let name = [self.job_id.as_bytes(), b"/", relative].concat();
        for end in (0..name.len()).filter(|&index| name[index] == b'/').map(|index| index + 1) {
            if !self.last.starts_with(&name[..end]) {
                let directory = Entry { name: &name[..end], kind: Kind::Directory, size: 0, body: Body::Nothing };
                (self.each)(&directory)?;
            }
        }
        (self.each)(&Entry { name: &name, kind, size, body })?;
        self.last = name;
        Ok(())
    }
}

/// Reads a file from the beginning on.
struct Sequential<'f> {
    file: &'f OpenFile,
    at: u64,
}

impl Read for Sequential<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Artifacts that are not there as they were sealed.
#[derive(Default)]
struct Missing {
    listed: Vec<String>,
    more: u64,
}

impl Missing {
    fn add(&mut self, artifact: &Artifact, now: &str) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(format!("{:?} ({now})", path_text(&artifact.path.0)));
        } else {
            self.more += 1;
        }
    }

    fn rejection(&self, job_id: &str) -> Option<Rejection> {
        let more = match self.more {
            0 if self.listed.is_empty() => return None,
            0 => String::new(),
            more => format!(", and {more} more"),
        };
        let listed = self.listed.join(", ");
        let message = format!(
            "artifacts of job {job_id:?} are not what was sealed: {listed}{more}. The agent keeps no copies: put them \
             back, or leave the artifacts out with ?artifacts=no"
        );
        Some(Rejection::new(409, "artifacts_changed", message))
    }
}

/// Why there is no bundle.
fn not_gathered(error: &io::Error) -> Rejection {
    match error.kind() {
        io::ErrorKind::ConnectionAborted => client_gone(),
        _ => unreadable(error),
    }
}

/// What was to be sent is not any more what was said beforehand.
fn changed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("changed while the bundle was sent: {what}"))
}

fn naming(name: &[u8], error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            io::Error::new(io::ErrorKind::InvalidData, format!("{:?}: {error}", path_text(name)))
        }
        _ => error,
    }
}
