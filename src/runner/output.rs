//! A payload's output: two files that the CLI writes, followed while they grow and completed where the CLI died.
//!
//! The files are written by the CLI process alone, so a killed agent loses nothing and no reader can block the
//! payload. Each file carries a `flock` that lives exactly as long as that CLI: whoever adopts the attempt asks the
//! kernel, not a pid file, whether the writer still lives.

pub mod complete;
pub mod markers;
pub mod tail;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::block::sync_dir;
use crate::sys::lock;

pub use complete::{Completeness, SettleError, Settled, follow, settle, was_attached};
pub use markers::{CountedMarker, Marker, MarkerLimiter, MarkerScanner, Stream};
pub use tail::Tail;

/// Mode of a new output file.
const FILE_MODE: u32 = 0o640;
/// Most bytes of Docker's own words that are kept.
const WORDS_BYTES_MAX: u64 = 4096;

/// Where one attempt's output lies. Clones share what is known of cuts.
#[derive(Debug, Clone)]
pub struct OutputPaths {
    /// Standard output.
    pub stdout: PathBuf,
    /// Standard error.
    pub stderr: PathBuf,
    /// Where the CLI writes the container's id once there is one, before it is started.
    pub cidfile: PathBuf,
    /// How often the files were cut short.
    pub cuts: Cuts,
}

/// Counts how often Docker's words were cut off an attempt's files: whoever follows them must then go back to what it
/// knows for certain. Odd while a cut is under way.
#[derive(Debug, Clone, Default)]
pub struct Cuts(Arc<AtomicU64>);

impl Cuts {
    /// How often so far, counting beginnings and ends.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Cuts `file` to `length` bytes.
    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let outcome = file.set_len(length);
        self.0.fetch_add(1, Ordering::SeqCst);
        outcome
    }
}

impl OutputPaths {
    /// `<dir>/<attempt>.stdout` and `.stderr`; `dir` is the job's, `DATA/logs/<job>`.
    pub fn new(dir: &Path, attempt: u32) -> Self {
        Self {
            stdout: dir.join(format!("{attempt}.stdout")),
            stderr: dir.join(format!("{attempt}.stderr")),
            cidfile: dir.join(format!("{attempt}.cid")),
            cuts: Cuts::default(),
        }
    }

    /// Whether the engine ever made this attempt's container: then its absence means that somebody removed it.
    pub fn was_created(&self) -> bool {
        fs::metadata(&self.cidfile).is_ok_and(|meta| meta.len() > 0)
    }

    /// Syncs what a stream has written: an event is about to tell of it.
    ///
    /// # Errors
    /// The file cannot be opened or synced.
    pub fn sync(&self, stream: Stream) -> io::Result<()> {
        File::open(self.of(stream))?.sync_data()
    }

    /// Syncs the names of the files, and that of their directory.
    ///
    /// # Errors
    /// A directory cannot be opened or synced.
    pub fn sync_names(&self) -> io::Result<()> {
        self.stdout.ancestors().skip(1).take(2).try_for_each(sync_dir)
    }

    /// The file of a stream.
    pub fn of(&self, stream: Stream) -> &Path {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Whether the CLI that writes these files still lives. Files that were never made have no writer.
    ///
    /// # Errors
    /// A file cannot be opened or probed.
    pub fn writer_alive(&self) -> io::Result<bool> {
        for path in [&self.stdout, &self.stderr] {
            match File::open(path) {
                Ok(file) if lock::try_lock_exclusive(&file)? => {}
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Empties the stderr of a container that never started, and gives what was in it: a payload that did not run
    /// has printed nothing, so all of it is Docker's.
    ///
    /// # Errors
    /// The file cannot be read or cut.
    pub fn take_dockers_words(&self) -> io::Result<String> {
        let mut words = Vec::new();
        let file = OpenOptions::new().read(true).write(true).open(&self.stderr)?;
        (&file).take(WORDS_BYTES_MAX).read_to_end(&mut words)?;
        self.cuts.cut(&file, 0)?;
        Ok(String::from_utf8_lossy(&words).trim().to_owned())
    }
}

/// The two files, opened for a CLI. Hand both to it and keep no duplicate: the lock must end with the CLI.
#[derive(Debug)]
pub struct OutputFiles {
    /// Standard output, for appending, locked.
    pub stdout: File,
    /// Standard error, for appending, locked.
    pub stderr: File,
}

impl OutputFiles {
    /// Makes the files of an attempt that is about to start, and their directory. What an earlier CLI left in them is
    /// dropped: it never started this attempt's container, or this one would not be started now.
    ///
    /// # Errors
    /// `WouldBlock` where a CLI still writes them; else what the file system reports.
    pub fn create(paths: &OutputPaths) -> io::Result<Self> {
        if let Some(dir) = paths.stdout.parent() {
            fs::create_dir_all(dir)?;
        }
        let files = Self { stdout: open_locked(paths, &paths.stdout)?, stderr: open_locked(paths, &paths.stderr)? };
        match fs::remove_file(&paths.cidfile) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        has_space_beside(&paths.cidfile)?;
        Ok(files)
    }
}

/// On a full disk the CLI creates the container, cannot write the file with its id, and gives up: better not to ask it.
fn has_space_beside(cidfile: &Path) -> io::Result<()> {
    // Under a name of its own: a file with content under that of the other would say that there was a container.
    let probe = cidfile.with_extension("probe");
    let written = fs::write(&probe, [0; 64]);
    let _ = fs::remove_file(&probe);
    written
}

fn open_locked(paths: &OutputPaths, path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path)?;
    if !lock::try_lock_exclusive(&file)? {
        let message = format!("{} is still being written by another process", path.display());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
    }
    paths.cuts.cut(&file, 0)?;
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_lock_lives_as_long_as_the_process_that_inherited_the_file() {
        let dir = std::env::temp_dir().join(format!("hb-output-{}", std::process::id()));
        let paths = OutputPaths::new(&dir, 1);
        assert!(!paths.writer_alive().unwrap(), "no file, no writer");
        let mut files = OutputFiles::create(&paths).unwrap();
        assert_eq!(OutputFiles::create(&paths).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        files.stderr.write_all(b"docker: no such image\n").unwrap();
        let mut writer = Command::new("cat");
        writer.stdin(Stdio::piped()).stdout(files.stdout).stderr(files.stderr);
        let mut child = writer.spawn().unwrap();
        drop(writer);
        assert!(paths.writer_alive().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!paths.writer_alive().unwrap());
        assert_eq!(paths.take_dockers_words().unwrap(), "docker: no such image");
        assert_eq!(fs::metadata(&paths.stderr).unwrap().len(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }
}
