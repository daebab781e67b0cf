//! Evidence: what a job was given, and what it left behind, as digests in durable files.
//!
//! `DATA/inputs/<job_id>.json` lists the mounts as they were when the job was scheduled; `DATA/seals/<job_id>.json` lists
//! every file that is new or changed since, with the digests of the logs; `DATA/seals/<job_id>.sha256` is the same list for
//! `sha256sum -c`.

pub mod compare;
mod durable;
mod files;
pub mod listing;
pub mod text;
pub mod tree;
mod walk;

use crate::canonical::to_canonical;
use crate::hash::Hash;
use crate::ledger::event::LogDigest;
use crate::ledger::reproduction::Reproduction;
use crate::manifest::Manifest;
use crate::sys::dir::Dir;
use crate::sys::kill_point;
use durable::{file_of, invalid};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

pub use tree::{Entry, Kind, Progress, Tree, hash_tree};

/// Version of the inputs and seal files.
pub const FORMAT: u32 = 1;
const INPUTS_DIR: &str = "inputs";
const SEALS_DIR: &str = "seals";
/// Mode bits beyond read, write and execute that a sealed file may carry, and the note for each.
const SPECIAL_BITS: [(u32, Note); 2] = [(0o4000, Note::Setuid), (0o2000, Note::Setgid)];

/// Why a tree could not be hashed, or a job not be sealed.
#[derive(Debug)]
pub enum SealError {
    /// Reading or writing failed.
    Io {
        /// Where; relative to the tree for a tree's entry.
        path: Vec<u8>,
        /// The system's error.
        source: io::Error,
    },
    /// Something changed while it was hashed: its digest would be of no moment in time.
    Changed {
        /// Relative to the tree; empty for its root.
        path: Vec<u8>,
    },
    /// A tree beyond the bounds of [`hash_tree`].
    TooLarge {
        /// Where the bound was met, relative to the tree.
        path: Vec<u8>,
        /// Which bound.
        limit: &'static str,
    },
    /// It was asked not to go on.
    Stopped,
}

impl SealError {
    fn io(path: &[u8], source: io::Error) -> Self {
        Self::Io { path: path.to_vec(), source }
    }

    /// An error about an entry that was there a moment ago.
    fn vanished(path: &[u8], source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => Self::Changed { path: path.to_vec() },
            _ => Self::io(path, source),
        }
    }
}

impl fmt::Display for SealError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |path: &[u8]| if path.is_empty() { "the directory itself".to_owned() } else { text::shown(path) };
        match self {
            Self::Io { path, source } => write!(f, "{}: {source}", name(path)),
            Self::Changed { path } => write!(f, "{} changed while it was hashed", name(path)),
            Self::TooLarge { path, limit } => write!(f, "{limit}, at {:.200}", name(path)),
            Self::Stopped => f.write_str("it is not wanted any more"),
        }
    }
}

impl std::error::Error for SealError {}

impl From<SealError> for io::Error {
    fn from(error: SealError) -> Self {
        match error {
            SealError::Io { ref source, .. } => Self::new(source.kind(), error.to_string()),
            other => Self::other(other.to_string()),
        }
    }
}

/// A mount as it goes into the hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountTree<'a> {
    /// Path inside the container.
    pub container: &'a str,
    /// Whether the payload may only read it.
    pub read_only: bool,
    /// Its tree hash; of a `job:` mount, the parent's `artifacts_root`.
    pub tree: Hash,
    /// Whether it is a `job:` mount.
    pub is_artifacts: bool,
}

/// The hash of what makes an execution this execution: SHA-256 of the RFC 8785 form of
/// `{"command","env","image_id","mounts":[{"container","mode","tree"}…],"network","resources"}`. No job id, no host path.
/// A `job:` mount has the key `artifacts` in place of `tree`.
/// `env` is what the payload gets from the manifest and the agent together; `mounts` are in the manifest's order, of which
/// the first is the working directory. `resources` has the limits that were asked for.
pub fn execution_hash(
    image_id: &str,
    manifest: &Manifest,
    env: &BTreeMap<String, String>,
    mounts: &[MountTree<'_>],
) -> Hash {
    hash_json(&json!({
        "command": manifest.command,
        "env": env,
        "image_id": image_id,
        "mounts": mounts_json(mounts),
        "network": manifest.network.as_str(),
        "resources": manifest.resources.to_json(),
    }))
}

/// The hash of a job's inputs: SHA-256 of the RFC 8785 form of `[{"container","mode","tree"}…]`, in the manifest's order.
pub fn input_hash(mounts: &[MountTree<'_>]) -> Hash {
    hash_json(&mounts_json(mounts))
}

/// Length and SHA-256 of the agent's own file at `path`.
///
/// # Errors
/// What `open` and `read` give.
pub fn digest_file(path: &Path) -> io::Result<(u64, Hash)> {
    tree::digest(&mut File::open(path)?)
}

/// What a job was given: `DATA/inputs/<job_id>.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// [`FORMAT`].
    pub format: u32,
    /// The job.
    pub job_id: String,
    /// In the manifest's order; a scratch directory is listed with [`Tree::empty`].
    pub mounts: Vec<InputMount>,
}

/// A mount as it was when the job was scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputMount {
    /// Path inside the container.
    pub container: String,
    /// Whether the payload may only read it.
    pub read_only: bool,
    /// What it held.
    pub tree: Tree,
    /// Whose sealed artifacts it showed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts_of: Option<ArtifactsOf>,
}

/// What a `job:` mount showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactsOf {
    /// The parent.
    pub job_id: String,
    /// Hash of its seal file.
    pub seal_hash: Hash,
    /// The seal's `artifacts_root`.
    pub artifacts_root: Hash,
}

/// Writes `DATA/inputs/<job_id>.json`; durable when this returns, the old file or the new one at every moment before.
///
/// # Errors
/// What writing gives, e.g. ENOSPC.
pub fn write_inputs(data_dir: &Path, inputs: &Inputs) -> io::Result<()> {
    let path = file_of(data_dir, INPUTS_DIR, &inputs.job_id, "json")?;
    durable::write(&path, |out| Ok(serde_json::to_writer(out, inputs)?)).map(drop)
}

/// Reads what [`write_inputs`] wrote.
///
/// # Errors
/// `NotFound`; `InvalidData` where it is not what was written: other format or job, or entries that do not give the tree hash.
pub fn read_inputs(data_dir: &Path, job_id: &str) -> io::Result<Inputs> {
    let path = file_of(data_dir, INPUTS_DIR, job_id, "json")?;
    let inputs: Inputs = durable::read_json(&path)?.0;
    if inputs.format != FORMAT
        || inputs.job_id != job_id
        || !inputs.mounts.iter().all(|mount| mount.tree.is_consistent())
    {
        return Err(invalid(&path, "the recorded inputs are damaged"));
    }
    Ok(inputs)
}

/// What a job left behind: `DATA/seals/<job_id>.json`. The seal hash is the SHA-256 of that file's bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    /// [`FORMAT`].
    pub format: u32,
    /// The job.
    pub job_id: String,
    /// The attempt that completed.
    pub attempt: u32,
    /// Seq of the NODE_UP under which that attempt ran; none in seals of versions that did not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_up: Option<u64>,
    /// See [`execution_hash`].
    pub execution_hash: Hash,
    /// `sha256:…`; what ran.
    pub image_id: String,
    /// SHA-256 of `DATA/seals/<job_id>.sha256`: of one line `<64 hex>  <path>` per artifact, in the order of `artifacts`.
    pub artifacts_root: Hash,
    /// Number of artifacts.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Regular files of the writable mounts that are new or changed, sorted by the bytes of the path.
    pub artifacts: Vec<Artifact>,
    /// Regular files that were there when the job was scheduled and are not any more, sorted likewise.
    pub removed: Vec<ContainerPath>,
    /// What a person should know of the writable mounts; none of it was followed or opened. Sorted likewise.
    pub notes: Vec<Noted>,
    /// The writable mounts after the run.
    pub mounts: Vec<SealedMount>,
    /// Every attempt's output.
    pub logs: Vec<AttemptLogs>,
    /// What the attempt used, as the runner measured it.
    pub usage: Value,
    /// Of a job that repeats another's execution: how the two compare, every artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reproduction: Option<Reproduction>,
}

/// A sealed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Artifact {
    /// Path inside the container.
    pub path: ContainerPath,
    /// Bytes.
    pub size: u64,
    /// Permission, setuid, setgid and sticky bits, octal.
    #[serde(with = "text::octal")]
    pub mode: u32,
    /// SHA-256 of the content.
    pub sha256: Hash,
    /// Whether there was a regular file of that name before.
    pub change: Change,
}

/// How an artifact came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Change {
    New,
    Changed,
}

/// Something other than a plain file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noted {
    /// Path inside the container.
    pub path: ContainerPath,
    /// What it is.
    pub note: Note,
    /// A symlink's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<ContainerPath>,
    /// Names the file has, for a hard link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<u64>,
}

/// Why something is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Note {
    Symlink,
    Fifo,
    Socket,
    Device,
    Setuid,
    Setgid,
    /// The same bytes have further names, perhaps outside the mount, through which they can change.
    HardLink,
}

/// A writable mount after the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedMount {
    /// Path inside the container.
    pub container: String,
    /// Its tree hash when the job was scheduled.
    pub before: Hash,
    /// Its tree hash after the run.
    pub after: Hash,
}

/// The output of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttemptLogs {
    /// From 1.
    pub attempt: u32,
    /// Null where nothing ran.
    pub stdout: Option<LogDigest>,
    /// Null where nothing ran.
    pub stderr: Option<LogDigest>,
}

/// A path in bytes, in JSON as [`text::encode`] writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerPath(#[serde(with = "text::path")] pub Vec<u8>);

/// What [`write_seal`] is given.
pub struct SealRequest<'a> {
    /// The job.
    pub job_id: &'a str,
    /// The attempt that completed.
    pub attempt: u32,
    /// Seq of the NODE_UP under which that attempt ran.
    pub node_up: Option<u64>,
    /// See [`execution_hash`].
    pub execution_hash: Hash,
    /// `sha256:…`; what ran.
    pub image_id: &'a str,
    /// Every writable mount: its path inside the container, and the directory as the payload saw it.
    pub writable: &'a [(&'a str, &'a Dir)],
    /// Every attempt's output, in order.
    pub logs: &'a [AttemptLogs],
    /// What the attempt used.
    pub usage: &'a Value,
    /// The seal of the job whose execution this one repeats, and that seal's hash.
    pub original: Option<(&'a Seal, Hash)>,
}

/// What the SEALED event tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealSummary {
    /// SHA-256 of the seal file.
    pub seal_hash: Hash,
    /// SHA-256 of the `sha256sum` list.
    pub artifacts_root: Hash,
    /// Number of artifacts.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How it compares with the original, if it has one.
    pub reproduction: Option<Reproduction>,
}

/// Hashes the writable mounts, compares them with the recorded inputs and writes both seal files; they are durable when this
/// returns. Called again after a crash it writes the same bytes, unless somebody changed the mounts since. `progress` hears how
/// far it is with which mount, and may end it; see [`hash_tree`].
///
/// # Errors
/// [`SealError`]; `InvalidData` where a writable mount has no recorded inputs, or they are damaged.
pub fn write_seal(
    data_dir: &Path,
    request: &SealRequest<'_>,
    progress: &dyn Fn(&str, Progress) -> ControlFlow<()>,
) -> Result<SealSummary, SealError> {
    let inputs = read_inputs(data_dir, request.job_id).map_err(|error| SealError::io(b"inputs", error))?;
    let mut recorded: BTreeMap<String, Tree> =
        inputs.mounts.into_iter().filter(|mount| !mount.read_only).map(|mount| (mount.container, mount.tree)).collect();
    let (mut artifacts, mut removed, mut notes, mut mounts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(container, dir) in request.writable {
        // Out of memory as soon as it is compared.
        let before = recorded.remove(container).ok_or_else(|| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "not among the recorded inputs");
            SealError::io(container.as_bytes(), error)
        })?;
        let after = hash_tree(dir, &|done| progress(container, done)).map_err(|error| error.within(container))?;
        mounts.push(SealedMount { container: container.to_owned(), before: before.root, after: after.root });
        let is_gone = |entry: &&Entry| {
            entry.kind == Kind::File && after.get(&entry.path).is_none_or(|now| now.kind != Kind::File)
        };
        removed.extend(before.entries.iter().filter(is_gone).map(|entry| in_container(container, &entry.path)));
        for entry in after.entries {
            artifacts.extend(artifact(container, &entry, &before));
            notes.extend(notes_on(container, &entry));
        }
    }
    artifacts.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    removed.sort_unstable();
    notes.sort_by(|a, b| a.path.cmp(&b.path));
    store(data_dir, request, artifacts, removed, notes, mounts)
        .map_err(|error| SealError::io(SEALS_DIR.as_bytes(), error))
}

/// Writes both files. The seal goes last: where it is, the list is.
fn store(
    data_dir: &Path,
    request: &SealRequest<'_>,
    artifacts: Vec<Artifact>,
    removed: Vec<ContainerPath>,
    notes: Vec<Noted>,
    mounts: Vec<SealedMount>,
) -> io::Result<SealSummary> {
    let list = file_of(data_dir, SEALS_DIR, request.job_id, "sha256")?;
    let artifacts_root = durable::write(&list, |out| write_checksum_list(&artifacts, out))?;
    kill_point::reached("checksums-written");
    let reproduction =
        request.original.map(|original| compare::reproduction(original, &artifacts, request.attempt, request.logs));
    let seal = Seal {
        format: FORMAT,
        job_id: request.job_id.to_owned(),
        attempt: request.attempt,
        node_up: request.node_up,
        execution_hash: request.execution_hash,
        image_id: request.image_id.to_owned(),
        artifacts_root,
        files: artifacts.len() as u64,
        bytes: artifacts.iter().map(|artifact| artifact.size).sum(),
        artifacts,
        removed,
        notes,
        mounts,
        logs: request.logs.to_vec(),
        usage: request.usage.clone(),
        reproduction,
    };
    let path = file_of(data_dir, SEALS_DIR, request.job_id, "json")?;
    let seal_hash = durable::write(&path, |out| Ok(serde_json::to_writer(out, &seal)?))?;
    let Seal { files, bytes, reproduction, .. } = seal;
    Ok(SealSummary { seal_hash, artifacts_root, files, bytes, reproduction })
}

/// Reads a seal, with its hash.
///
/// # Errors
/// `NotFound`; `InvalidData` where it is no seal of this job, or does not agree with itself. Compare the hash with the
/// ledger's: only that tells whether it is the seal that was written.
pub fn read_seal(data_dir: &Path, job_id: &str) -> io::Result<(Seal, Hash)> {
    let path = file_of(data_dir, SEALS_DIR, job_id, "json")?;
    let (seal, hash): (Seal, Hash) = durable::read_json(&path)?;
    let agrees = seal.artifacts_root == durable::hash_of(|out| write_checksum_list(&seal.artifacts, out))?
        && seal.files == seal.artifacts.len() as u64
        && seal.bytes == seal.artifacts.iter().map(|artifact| artifact.size).sum::<u64>();
    if seal.format != FORMAT || seal.job_id != job_id || !agrees {
        return Err(invalid(&path, "the seal is damaged"));
    }
    Ok((seal, hash))
}

/// The list that `sha256sum -c` reads, in a directory that holds the artifacts below their container path without its first
/// slash. GNU's escapes: a line whose path holds a backslash, newline or carriage return begins with a backslash.
pub fn checksum_list(artifacts: &[Artifact]) -> Vec<u8> {
    let mut list = Vec::new();
    write_checksum_list(artifacts, &mut list).expect("memory takes everything");
    list
}

/// The same, to wherever it goes.
fn write_checksum_list(artifacts: &[Artifact], out: &mut dyn Write) -> io::Result<()> {
    for artifact in artifacts {
        let path = artifact.path.0.strip_prefix(b"/").unwrap_or(&artifact.path.0);
        if path.iter().any(|byte| b"\\\n\r".contains(byte)) {
            out.write_all(b"\\")?;
        }
        write!(out, "{}  ", artifact.sha256)?;
        for part in path.split_inclusive(|byte| b"\\\n\r".contains(byte)) {
            match part.split_last() {
                Some((b'\\', plain)) => [plain, b"\\\\"].iter().try_for_each(|bytes| out.write_all(bytes))?,
                Some((b'\n', plain)) => [plain, b"\\n"].iter().try_for_each(|bytes| out.write_all(bytes))?,
                Some((b'\r', plain)) => [plain, b"\\r"].iter().try_for_each(|bytes| out.write_all(bytes))?,
                _ => out.write_all(part)?,
            }
        }
        out.write_all(b"\n")?;
    }
    Ok(())
}

impl SealError {
    /// The same error, its path inside the container.
    fn within(mut self, container: &str) -> Self {
        if let Self::Io { path, .. } | Self::Changed { path } | Self::TooLarge { path, .. } = &mut self {
            *path = in_container(container, path).0;
        }
        self
    }
}

fn artifact(container: &str, entry: &Entry, before: &Tree) -> Option<Artifact> {
    let old = before.get(&entry.path).filter(|old| old.kind == Kind::File);
    let is_changed = old.is_none_or(|old| (old.sha256, old.mode) != (entry.sha256, entry.mode));
    (entry.kind == Kind::File && is_changed).then(|| Artifact {
        path: in_container(container, &entry.path),
        size: entry.size,
        mode: entry.mode,
        sha256: entry.sha256,
        change: if old.is_some() { Change::Changed } else { Change::New },
    })
}

fn notes_on(container: &str, entry: &Entry) -> Vec<Noted> {
    let kind = match entry.kind {
        Kind::File | Kind::Directory => None,
        Kind::Symlink => Some(Note::Symlink),
        Kind::Fifo => Some(Note::Fifo),
        Kind::Socket => Some(Note::Socket),
        Kind::CharDevice | Kind::BlockDevice => Some(Note::Device),
    };
    // On a directory setgid only hands its group down; it is common and harmless.
    let bits =
        SPECIAL_BITS.iter().filter(|(bit, _)| entry.kind == Kind::File && entry.mode & bit != 0).map(|&(_, note)| note);
    let hard_link = (entry.links > 1).then_some(Note::HardLink);
    let noted = |note| Noted {
        path: in_container(container, &entry.path),
        note,
        target: entry.target.clone().map(ContainerPath),
        links: (note == Note::HardLink).then_some(entry.links),
    };
    kind.into_iter().chain(bits).chain(hard_link).map(noted).collect()
}

fn in_container(container: &str, relative: &[u8]) -> ContainerPath {
    let mut path = container.as_bytes().to_vec();
    if !relative.is_empty() {
        path.push(b'/');
        path.extend_from_slice(relative);
    }
    ContainerPath(path)
}

fn mounts_json(mounts: &[MountTree<'_>]) -> Value {
    let mode = |read_only| if read_only { "ro" } else { "rw" };
    mounts
        .iter()
        .map(|mount| {
            let content = if mount.is_artifacts { "artifacts" } else { "tree" };
            json!({ "container": mount.container, "mode": mode(mount.read_only), content: mount.tree })
        })
        .collect()
}

fn hash_json(value: &Value) -> Hash {
    let bytes = to_canonical(value).expect("strings, and numbers that the manifest's bounds keep exact");
    Hash::of(&bytes)
}

#[cfg(test)]
mod moment_tests;
#[cfg(test)]
mod tests;
