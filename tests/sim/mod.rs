//! A disk that remembers every write and sync, can fail any of them, and can be cut at any point.
//!
//! It models what the log may assume and no more: a write is durable after the sync of its file, a name after the sync of
//! the directory; before that each 512-byte sector is old, new or garbage, and of the pending changes of names any first
//! part has happened.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use hackbrain::wal::frame::{BLOCK, SECTOR};
use hackbrain::wal::storage::{BlockFile, Storage};

/// What was done to the disk, in order.
#[derive(Clone, Debug)]
pub enum Op {
    Create {
        name: String,
        file: usize,
    },
    Write {
        file: usize,
        offset: usize,
        bytes: Vec<u8>,
    },
    Sync {
        file: usize,
    },
    Rename {
        from: String,
        to: String,
    },
    Remove {
        name: String,
    },
    SyncDir,
    /// Not an operation: the log told that every record below this seq is durable.
    Acknowledged(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error(io::ErrorKind),
    ShortWrite,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    contents: Vec<Vec<u8>>,
    ops: Vec<Op>,
    /// Writes, syncs, creations and renames so far.
    calls: usize,
    fault: Option<(usize, Fault)>,
    failed: bool,
    /// So many creations find the disk full.
    full_for: usize,
}

#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimDisk {
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let disk = Self::default();
        let mut state = disk.0.lock().unwrap();
        for (name, content) in files {
            let file = state.contents.len();
            state.contents.push(content.clone());
            state.names.insert(name.clone(), file);
        }
        drop(state);
        disk
    }

    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.names.iter().map(|(name, file)| (name.clone(), state.contents[*file].clone())).collect()
    }

    pub fn fail_at(&self, call: usize, fault: Fault) {
        self.0.lock().unwrap().fault = Some((call, fault));
    }

    /// The next `creations` find the disk full; what is allocated already can still be written.
    pub fn fill_up(&self, creations: usize) {
        self.0.lock().unwrap().full_for = creations;
    }

    pub fn is_full(&self) -> bool {
        self.0.lock().unwrap().full_for > 0
    }

    pub fn heal(&self) {
        let mut state = self.0.lock().unwrap();
        state.fault = None;
        state.failed = false;
    }

    pub fn calls(&self) -> usize {
        self.0.lock().unwrap().calls
    }

    pub fn note_acknowledged(&self, below: u64) {
        self.0.lock().unwrap().ops.push(Op::Acknowledged(below));
    }

    pub fn ops(&self) -> Vec<Op> {
        self.0.lock().unwrap().ops.clone()
    }

    /// Counts a call and fails it if its turn has come. A device that failed once goes on failing.
    fn call(state: &mut State) -> io::Result<()> {
        let number = state.calls;
        state.calls += 1;
        match state.fault {
            Some((at, Fault::Error(kind))) if number == at || state.failed => {
                state.failed = true;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }
}

impl BlockFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().contents[self.file].len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock().unwrap();
        let content = &state.contents[self.file];
        let from = offset as usize;
        match content.get(from..from + buf.len()) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!(buf.as_ptr() as usize % BLOCK, 0, "O_DIRECT wants aligned memory");
        assert!(buf.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64), "O_DIRECT wants whole blocks");
        let mut state = self.disk.0.lock().unwrap();
        let short = state.fault == Some((state.calls, Fault::ShortWrite));
        SimDisk::call(&mut state)?;
        let (from, len) = (offset as usize, if short { buf.len() / 2 / SECTOR * SECTOR } else { buf.len() });
        let content = &mut state.contents[self.file];
        if content.len() < from + len {
            content.resize(from + len, 0);
        }
        content[from..from + len].copy_from_slice(&buf[..len]);
        state.ops.push(Op::Write { file: self.file, offset: from, bytes: buf[..len].to_vec() });
        if short { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        SimDisk::call(&mut state)?;
        state.ops.push(Op::Sync { file: self.file });
        Ok(())
    }
}

impl Storage for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        let state = self.0.lock().unwrap();
        let file = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.open(name)
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        let mut state = self.0.lock().unwrap();
        SimDisk::call(&mut state)?;
        if state.full_for > 0 {
            state.full_for -= 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.contents.len();
        assert!(!state.names.contains_key(name), "create means new");
        state.contents.push(Vec::new());
        state.names.insert(name.to_owned(), file);
        state.ops.push(Op::Create { name: name.to_owned(), file });
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        SimDisk::call(&mut state)?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        state.ops.push(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.ops.push(Op::Remove { name: name.to_owned() });
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        SimDisk::call(&mut state)?;
        state.ops.push(Op::SyncDir);
        Ok(())
    }
    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A small generator: tests print their seed and repeat exactly.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // xorshift64*, S. Vigna.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// What may be on the medium: built op by op, then cut.
pub struct Medium {
    names: BTreeMap<String, usize>,
    pending_names: Vec<Op>,
    files: BTreeMap<usize, MediumFile>,
    pub acknowledged_below: u64,
}

#[derive(Default, Clone)]
struct MediumFile {
    durable: Vec<u8>,
    live: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: Vec<usize>,
}

impl Medium {
    pub fn new(start: &BTreeMap<String, Vec<u8>>) -> Self {
        let mut medium =
            Self { names: BTreeMap::new(), pending_names: Vec::new(), files: BTreeMap::new(), acknowledged_below: 1 };
        // The numbers match those that `SimDisk::from_files` gives.
        for (file, (name, content)) in start.iter().enumerate() {
            medium.names.insert(name.clone(), file);
            let kept = MediumFile { durable: content.clone(), live: content.clone(), dirty: Vec::new() };
            medium.files.insert(file, kept);
        }
        medium
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { file, .. } => {
                self.files.insert(*file, MediumFile::default());
                self.pending_names.push(op.clone());
            }
            Op::Write { file, offset, bytes } => {
                let file = self.files.get_mut(file).unwrap();
                let end = offset + bytes.len();
                if file.live.len() < end {
                    file.live.resize(end, 0);
                }
                file.live[*offset..end].copy_from_slice(bytes);
                file.dirty.extend(offset / SECTOR..end / SECTOR);
            }
            Op::Sync { file } => {
                let file = self.files.get_mut(file).unwrap();
                file.durable = file.live.clone();
                file.dirty.clear();
            }
            Op::Rename { .. } | Op::Remove { .. } => self.pending_names.push(op.clone()),
            Op::SyncDir => {
                for op in std::mem::take(&mut self.pending_names) {
                    change_names(&mut self.names, &op);
                }
            }
            Op::Acknowledged(below) => self.acknowledged_below = *below,
        }
    }

    /// One of the states that a power cut at this point may leave.
    pub fn cut(&self, random: &mut Random) -> BTreeMap<String, Vec<u8>> {
        let mut names = self.names.clone();
        let happened = random.below(self.pending_names.len() as u64 + 1) as usize;
        for op in &self.pending_names[..happened] {
            change_names(&mut names, op);
        }
        // Some cuts lean to one side, so that "all old" and "all new but one" occur even in long writes.
        let (old, garbage) = [(1, 1), (9, 0), (0, 0), (1, 0), (0, 1), (9, 9)][random.below(6) as usize];
        names.into_iter().map(|(name, file)| (name, self.files[&file].cut(random, old, garbage))).collect()
    }
}

impl MediumFile {
    fn cut(&self, random: &mut Random, old: u64, garbage: u64) -> Vec<u8> {
        let mut content = self.live.clone();
        for sector in &self.dirty {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let pick = random.below(old + garbage + 2);
            if pick < old {
                match self.durable.get(range.clone()) {
                    Some(before) => content[range].copy_from_slice(before),
                    None => content[range].fill(0),
                }
            } else if pick < old + garbage {
                content[range].iter_mut().for_each(|byte| *byte = random.next() as u8);
            }
        }
        content
    }
}

fn change_names(names: &mut BTreeMap<String, usize>, op: &Op) {
    match op {
        Op::Create { name, file } => drop(names.insert(name.clone(), *file)),
        Op::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Op::Remove { name } => drop(names.remove(name)),
        _ => {}
    }
}
