//! The artifacts of a seal file one at a time: a seal of a hundred thousand files is not held to answer for one.

use super::{Artifact, INPUTS_DIR, SEALS_DIR, file_of};
use crate::hash::Hash;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// What stands before the first artifact. No field before that holds a quotation mark, so it stands nowhere else first.
const START: &[u8] = b",\"artifacts\":[";
/// The fields before the artifacts are shorter than this, in bytes.
const HEAD_BYTES_MAX: usize = 4096;
/// How much of a seal file is read at once, in bytes.
const BUFFER_BYTES: usize = 64 << 10;

/// `DATA/seals/<job_id>.json`.
///
/// # Errors
/// `InvalidInput` where it is no job id.
pub fn seal_path(data_dir: &Path, job_id: &str) -> io::Result<PathBuf> {
    file_of(data_dir, SEALS_DIR, job_id, "json")
}

/// `DATA/seals/<job_id>.sha256`.
///
/// # Errors
/// `InvalidInput` where it is no job id.
pub fn list_path(data_dir: &Path, job_id: &str) -> io::Result<PathBuf> {
    file_of(data_dir, SEALS_DIR, job_id, "sha256")
}

/// `DATA/inputs/<job_id>.json`.
///
/// # Errors
/// `InvalidInput` where it is no job id.
pub fn inputs_path(data_dir: &Path, job_id: &str) -> io::Result<PathBuf> {
    file_of(data_dir, INPUTS_DIR, job_id, "json")
}

/// The artifacts of a seal file, in its order. Whether it is the seal that was written, only its hash tells.
pub struct Listing<R> {
    from: R,
    text: Vec<u8>,
    ended: bool,
}

impl<R: BufRead> Listing<R> {
    /// Reads up to the first artifact.
    ///
    /// # Errors
    /// What reading gives; `InvalidData` where it is no seal file.
    pub fn new(mut from: R) -> io::Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(START) {
            let mut byte = [0];
            if head.len() == HEAD_BYTES_MAX || from.read(&mut byte)? == 0 {
                return Err(not_a_seal());
            }
            head.push(byte[0]);
        }
        Ok(Self { from, text: Vec::new(), ended: false })
    }

    /// What is left to read.
    pub fn into_inner(self) -> R {
        self.from
    }

    /// The JSON of the next artifact into `text`; `false` at the end.
    fn read_object(&mut self) -> io::Result<bool> {
        self.text.clear();
        // An artifact has no object in it, so it ends with the first brace that is not part of a string.
        let (mut in_string, mut escaped) = (false, false);
        loop {
            let buffer = self.from.fill_buf()?;
            if buffer.is_empty() {
                return Err(not_a_seal());
            }
            let mut end = None;
            for (index, &byte) in buffer.iter().enumerate() {
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = in_string,
                    b'"' => in_string = !in_string,
                    b'}' | b']' if !in_string => {
                        end = Some(index + 1);
                        break;
                    }
                    _ => {}
                }
            }
            let taken = end.unwrap_or(buffer.len());
            self.text.extend_from_slice(&buffer[..taken]);
            self.from.consume(taken);
            if end.is_some() {
                return Ok(self.text != b"]");
            }
        }
    }
}

impl<R: BufRead> Iterator for Listing<R> {
    type Item = io::Result<Artifact>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let artifact = match self.read_object() {
            Ok(true) => serde_json::from_slice(self.text.strip_prefix(b",").unwrap_or(&self.text))
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Ok(false) => {
                self.ended = true;
                return None;
            }
            Err(error) => Err(error),
        };
        self.ended = artifact.is_err();
        Some(artifact)
    }
}

/// What [`find`] has read.
pub struct Found {
    /// The artifact at the path, or why the seal file cannot be read as one.
    pub artifact: io::Result<Option<Artifact>>,
    /// SHA-256 of the whole seal file: compare it with the ledger's before anything else.
    pub seal_hash: Hash,
}

/// Looks for the artifact at `path`, inside the container, in one pass over the job's seal file.
///
/// # Errors
/// `NotFound`; what reading gives.
pub fn find(data_dir: &Path, job_id: &str, path: &[u8]) -> io::Result<Found> {
    let file = File::open(seal_path(data_dir, job_id)?)?;
    let mut from = BufReader::with_capacity(BUFFER_BYTES, Hashing { from: file, hasher: Sha256::new() });
    // They are sorted: behind its place there is nothing to look for.
    let artifact = Listing::new(&mut from).and_then(|listing| {
        let mut ahead = listing.skip_while(|artifact| artifact.as_ref().is_ok_and(|a| a.path.0.as_slice() < path));
        ahead.next().transpose().map(|artifact| artifact.filter(|artifact| artifact.path.0 == path))
    });
    io::copy(&mut from, &mut io::sink())?;
    Ok(Found { artifact, seal_hash: Hash::finish(from.into_inner().hasher) })
}

/// Hashes what passes through.
struct Hashing<R> {
    from: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

fn not_a_seal() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a seal file")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::{Change, ContainerPath, FORMAT, Seal};
    use super::*;
    use serde_json::json;

    fn seal(paths: &[&[u8]]) -> Seal {
        let artifact = |path: &&[u8]| Artifact {
            path: ContainerPath(path.to_vec()),
            size: path.len() as u64,
            mode: 0o644,
            sha256: Hash::of(path),
            change: Change::New,
        };
        Seal {
            format: FORMAT,
            job_id: "j".into(),
            attempt: 1,
            node_up: None,
            execution_hash: Hash::ZERO,
            image_id: "sha256:x".into(),
            artifacts_root: Hash::ZERO,
            files: paths.len() as u64,
            bytes: 0,
            artifacts: paths.iter().map(artifact).collect(),
            removed: vec![ContainerPath(b"/}]{[\"".to_vec())],
            notes: Vec::new(),
            mounts: Vec::new(),
            logs: Vec::new(),
            usage: json!({ "artifacts": [{ "path": "/none" }] }),
            reproduction: None,
        }
    }

    #[test]
    fn every_artifact_comes_back_whatever_its_name_and_the_buffer() {
        let odd: [&[u8]; 5] = [b"/a\"}],{\\", b"/b\\\\\"", b"/c\n\xff%", b"/d}}}", b"/e]"];
        for paths in [&odd[..0], &odd[3..4], &odd] {
            let seal = seal(paths);
            let bytes = serde_json::to_vec(&seal).unwrap();
            for capacity in [1, 7, 4096] {
                let listing = Listing::new(BufReader::with_capacity(capacity, bytes.as_slice())).unwrap();
                let artifacts: Vec<Artifact> = listing.map(Result::unwrap).collect();
                assert_eq!(artifacts, seal.artifacts, "{capacity}");
            }
            for length in 0..bytes.len() - 1 {
                let cut = Listing::new(&bytes[..length]).map(|listing| listing.collect::<io::Result<Vec<_>>>());
                let whole = matches!(&cut, Ok(Ok(artifacts)) if *artifacts == seal.artifacts);
                assert!(whole || !matches!(cut, Ok(Ok(_))), "cut at {length}: an error, or all of them");
            }
        }
    }

    #[test]
    fn one_is_found_and_the_whole_file_hashed() {
        let dir = std::env::temp_dir().join(format!("hackbrain-listing-{}", std::process::id()));
        std::fs::create_dir_all(dir.join(SEALS_DIR)).unwrap();
        let paths: Vec<Vec<u8>> = (0..3000).map(|n| format!("/job/{n:05}").into_bytes()).collect();
        let bytes = serde_json::to_vec(&seal(&paths.iter().map(Vec::as_slice).collect::<Vec<_>>())).unwrap();
        std::fs::write(seal_path(&dir, "j").unwrap(), &bytes).unwrap();
        let look = |path: &[u8]| {
            let found = find(&dir, "j", path).unwrap();
            assert_eq!(found.seal_hash, Hash::of(&bytes));
            found.artifact.unwrap().map(|artifact| artifact.sha256)
        };
        for path in [&paths[0], &paths[1500], &paths[2999]] {
            assert_eq!(look(path), Some(Hash::of(path)));
        }
        for none in [&b"/"[..], b"/job/01500x", b"/zzz", b""] {
            assert_eq!(look(none), None);
        }
        std::fs::write(seal_path(&dir, "j").unwrap(), b"{}").unwrap();
        let found = find(&dir, "j", b"/job/00000").unwrap();
        assert!(found.artifact.is_err() && found.seal_hash == Hash::of(b"{}"));
        assert_eq!(find(&dir, "k", b"/").err().unwrap().kind(), io::ErrorKind::NotFound);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
