//! The evidence files: written so that readers see the old bytes or the new ones, and in a stream, so that a listing of very
//! many files is never in memory as text.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::hash::Hash;
use crate::sys::kill_point;

/// Bytes that go to and from a file at once.
const BUFFER_BYTES: usize = 64 << 10;

/// The job id becomes a file name, so it is checked here again.
pub(super) fn file_of(data_dir: &Path, dir: &str, job_id: &str, extension: &str) -> io::Result<PathBuf> {
    if !crate::manifest::is_job_id(job_id) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{job_id:?} is no job id")));
    }
    Ok(data_dir.join(dir).join(format!("{job_id}.{extension}")))
}

/// Writes a file of what `fill` gives, and tells the SHA-256 of it. Readers see the old bytes or the new ones, also after a
/// power loss; when this returns, the new ones.
pub(super) fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Hash> {
    let dir = path.parent().unwrap_or(Path::new("."));
    if !dir.is_dir() {
        fs::create_dir_all(dir)?;
        File::open(dir.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&temporary)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, Hashing::new(file));
    fill(&mut out)?;
    let (file, hash) = out.into_inner().map_err(io::IntoInnerError::into_error)?.finish();
    file.sync_all()?;
    kill_point::reached("before-rename");
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()?;
    Ok(hash)
}

/// The value that a file holds, and the SHA-256 of its bytes.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<(T, Hash)> {
    let mut file = Hashing::new(File::open(path)?);
    let value = serde_json::from_reader(BufReader::with_capacity(BUFFER_BYTES, &mut file));
    let value = value.map_err(|error| match error.is_io() {
        true => error.into(),
        false => invalid(path, &error.to_string()),
    })?;
    // The parser has read up to the end, or it would not know that nothing follows.
    Ok((value, file.finish().1))
}

/// The SHA-256 of what `fill` gives.
pub(super) fn hash_of(fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<Hash> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, Hashing::new(io::sink()));
    fill(&mut out)?;
    Ok(out.into_inner().map_err(io::IntoInnerError::into_error)?.finish().1)
}

pub(super) fn invalid(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

/// Hashes what goes through it.
struct Hashing<T> {
    inner: T,
    hasher: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    fn finish(self) -> (T, Hash) {
        (self.inner, Hash::finish(self.hasher))
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hasher.update(&bytes[..read]);
        Ok(read)
    }
}
