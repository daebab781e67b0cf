//! What the log asks of a medium, and the directory of `O_DIRECT` files behind it.
//!
//! The traits' contract is what recovery relies on: a write is durable only after [`BlockFile::sync`] returned, a name only
//! after [`Storage::sync_dir`]. Before that the medium may hold each written sector, or not, or garbage in its place.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sys::block::{self, Caching, DirectFile};

/// A file of whole blocks.
pub trait BlockFile: Send + Sync {
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Fills `buf` from `offset`; both aligned to blocks unless the file was opened for look-ups.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `buf`, whole blocks from aligned memory, at an aligned offset. A short write is an error.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// On return, everything written before is durable. After an error nothing may be assumed, and it is never repeated.
    fn sync(&self) -> io::Result<()>;
}

/// A flat directory of block files.
pub trait Storage: Send + Sync {
    /// The names in the directory, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens for writing, and for reading what the medium holds.
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>>;
    /// Opens for reading at any alignment.
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>>;
    /// Creates an empty file; an existing one is an error.
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>>;
    /// Renames, replacing the target.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// On return, every name created, renamed or removed before is durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// For messages: where a file of this name is.
    fn describe(&self, name: &str) -> String;
}

/// The real thing: a directory on a file system.
pub struct Directory {
    path: PathBuf,
    caching: Caching,
    /// Held open, so that a commit never needs a new descriptor to make a name durable.
    handle: Option<File>,
}

impl Directory {
    /// Opens `path`, creating it (durably) where it is missing. Fails where the file system refuses `O_DIRECT`, naming it.
    pub fn open(path: &Path, caching: Caching) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        // Also where it exists: an earlier start may have died before this.
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            block::sync_dir(parent)?;
        }
        let directory = Self { path: path.to_owned(), caching, handle: Some(File::open(path)?) };
        directory.probe()?;
        Ok(directory)
    }

    /// For offline readers: creates and probes nothing.
    pub fn read_only(path: &Path) -> Self {
        Self { path: path.to_owned(), caching: Caching::Buffered, handle: None }
    }

    /// An `O_DIRECT` open may succeed where writes then fail, so one block is really written.
    fn probe(&self) -> io::Result<()> {
        const PROBE: &str = "probe.tmp";
        let path = self.path.join(PROBE);
        let _ = std::fs::remove_file(&path);
        let outcome = DirectFile::create(&path, self.caching)
            .and_then(|file| file.write_at(&block::AlignedBuf::new(block::ALIGNMENT), 0));
        let _ = std::fs::remove_file(&path);
        match outcome {
            // A full disk stops new segments, not an agent with a ledger to serve.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && self.caching == Caching::Direct => {
                Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!(
                        "the file system below {} refuses O_DIRECT; put --data on a local file system such as ext4 or xfs",
                        self.path.display()
                    ),
                ))
            }
            other => other,
        }
    }
}

impl BlockFile for DirectFile {
    fn len(&self) -> io::Result<u64> {
        self.size()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        DirectFile::read_at(self, buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        DirectFile::write_at(self, buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        DirectFile::sync(self)
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(DirectFile::open(&self.path.join(name), self.caching)?))
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(DirectFile::open_for_lookup(&self.path.join(name))?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(DirectFile::create(&self.path.join(name), self.caching)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }
    fn sync_dir(&self) -> io::Result<()> {
        match &self.handle {
            Some(handle) => handle.sync_all(),
            None => block::sync_dir(&self.path),
        }
    }
    fn describe(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}
