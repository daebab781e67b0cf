//! A log's directory in memory, as plain as can be, for tests that open it a million times. It cannot fail and notes changes.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hackbrain::wal::storage::{BlockFile, Storage};

pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
pub struct MemoryDir {
    names: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
    changes: Arc<AtomicU64>,
}

struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    changes: Arc<AtomicU64>,
}

impl MemoryDir {
    pub fn of(files: &Files) -> Self {
        let dir = Self::default();
        for (name, bytes) in files {
            dir.insert(name, bytes.clone());
        }
        dir
    }

    pub fn files(&self) -> Files {
        let names = self.names.lock().unwrap();
        names.iter().map(|(name, file)| (name.clone(), file.bytes.lock().unwrap().clone())).collect()
    }

    /// Damage, in place: a second flip of the same bit undoes it. Does not count as a change.
    pub fn flip(&self, name: &str, bit: usize) {
        self.names.lock().unwrap()[name].bytes.lock().unwrap()[bit / 8] ^= 1 << (bit % 8);
    }

    /// Damage, or its repair. Does not count as a change.
    pub fn overwrite(&self, name: &str, from: usize, with: &[u8]) {
        self.names.lock().unwrap()[name].bytes.lock().unwrap()[from..from + with.len()].copy_from_slice(with);
    }

    /// Files created, renamed and removed, and writes, since it came into being.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    fn insert(&self, name: &str, bytes: Vec<u8>) -> Arc<MemoryFile> {
        let file = Arc::new(MemoryFile { bytes: Mutex::new(bytes), changes: self.changes.clone() });
        self.names.lock().unwrap().insert(name.to_owned(), file.clone());
        file
    }

    fn change(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

impl BlockFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let from = offset as usize;
        let wanted = bytes.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(wanted);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.bytes.lock().unwrap();
        let (from, end) = (offset as usize, offset as usize + buf.len());
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(buf);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Storage for MemoryDir {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().unwrap().keys().cloned().collect())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        let file = self.names.lock().unwrap().get(name).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(file)
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.open(name)
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        assert!(!self.names.lock().unwrap().contains_key(name), "create means new");
        self.change();
        Ok(self.insert(name, Vec::new()))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change();
        let mut names = self.names.lock().unwrap();
        let file = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.to_owned(), file);
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let removed = self.names.lock().unwrap().remove(name);
        removed.ok_or(io::ErrorKind::NotFound)?;
        self.change();
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }
}
