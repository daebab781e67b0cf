//! A disk that remembers every write and sync, can fail any of them, can be full, and can be cut at any point.
//!
//! It models what the log may assume and no more: a write is durable after the sync of its file, a name after the sync of
//! the directory; `medium` has what may be left of everything else.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod content;
pub mod log;
pub mod medium;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use content::Content;
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

/// The named files of a disk.
pub type Image = BTreeMap<String, Content>;

#[derive(Default)]
struct State {
    names: BTreeMap<String, usize>,
    contents: Vec<Content>,
    /// `None`: nobody wants to know.
    ops: Option<Vec<Recorded>>,
    /// Writes, syncs, creations and renames so far.
    calls: usize,
    fault: Option<(usize, Fault)>,
    failed: bool,
    /// So many creations find the disk full.
    full_for: usize,
    /// Bytes that all files together may have.
    capacity: Option<usize>,
}

struct Recorded {
    op: Op,
    /// By the thread that prepares segments, which runs beside everything else.
    by_preparer: bool,
}

#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> Self {
        Self::recording(&Image::new())
    }
}

struct SimFile {
    disk: SimDisk,
    file: usize,
}

impl SimDisk {
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Self {
        Self::recording(&files.iter().map(|(name, bytes)| (name.clone(), Content::from(&bytes[..]))).collect())
    }

    /// A disk that remembers what is done to it.
    pub fn recording(image: &Image) -> Self {
        let disk = Self::forgetful(image);
        disk.0.lock().unwrap().ops = Some(Vec::new());
        disk
    }

    /// A disk that remembers, to which `ops` were done since it held `image`.
    pub fn replayed(image: &Image, ops: &[Op]) -> Self {
        let disk = Self::recording(image);
        let mut state = disk.0.lock().unwrap();
        for op in ops {
            match op {
                Op::Create { name, file } => {
                    assert_eq!(*file, state.contents.len(), "files are numbered as they are created");
                    state.contents.push(Content::default());
                    state.names.insert(name.clone(), *file);
                }
                Op::Write { file, offset, bytes } => state.contents[*file].write(*offset, bytes),
                Op::Rename { from, to } => {
                    let file = state.names.remove(from).unwrap();
                    state.names.insert(to.clone(), file);
                }
                Op::Remove { name } => drop(state.names.remove(name).unwrap()),
                Op::Sync { .. } | Op::SyncDir | Op::Acknowledged(_) => {}
            }
            state.ops.as_mut().unwrap().push(Recorded { op: op.clone(), by_preparer: false });
        }
        drop(state);
        disk
    }

    /// A disk that only holds files. Their numbers are their places in `image`.
    pub fn forgetful(image: &Image) -> Self {
        let names = image.keys().cloned().zip(0..).collect();
        let contents = image.values().cloned().collect();
        Self(Arc::new(Mutex::new(State { names, contents, ..State::default() })))
    }

    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.image().into_iter().map(|(name, content)| (name, content.to_vec())).collect()
    }

    pub fn image(&self) -> Image {
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

    /// All files together may have so many bytes.
    pub fn limit(&self, capacity: Option<usize>) {
        self.0.lock().unwrap().capacity = capacity;
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
        self.0.lock().unwrap().record(|| Op::Acknowledged(below));
    }

    pub fn ops(&self) -> Vec<Op> {
        self.0.lock().unwrap().ops.iter().flatten().map(|recorded| recorded.op.clone()).collect()
    }

    /// Whether the preparing thread has made a file of this name ready.
    pub fn has_prepared(&self, name: &str) -> bool {
        let state = self.0.lock().unwrap();
        let last = state.ops.iter().flatten().rfind(|recorded| recorded.by_preparer);
        match (last.map(|recorded| &recorded.op), state.names.get(name)) {
            (Some(Op::Sync { file }), Some(named)) => file == named,
            _ => false,
        }
    }

    /// What was done, with the operations of the preparing thread moved to other places that they could have had: from
    /// where they were wanted (they were recorded there, if the scenario waited for them) up to where their file is used.
    pub fn ops_interleaved(&self, random: &mut Random) -> Vec<Op> {
        let state = self.0.lock().unwrap();
        let (mut main, mut moved) = (Vec::new(), Vec::<(usize, Op)>::new());
        for Recorded { op, by_preparer } in state.ops.iter().flatten() {
            if *by_preparer {
                // Whether it came before or after a word of what is durable, which is no operation, is chance.
                let last = main.iter().rposition(|op| !matches!(op, Op::Acknowledged(_)));
                moved.push((last.map_or(0, |last| last + 1), op.clone()));
            } else {
                main.push(op.clone());
            }
        }
        let (mut earliest, mut preparing) = (0, (String::new(), usize::MAX));
        for (place, op) in &mut moved {
            if let Op::Create { name, file } = op {
                preparing = (name.clone(), *file);
            }
            let ends = |other: &Op| match other {
                Op::Write { file, .. } => *file == preparing.1,
                Op::Remove { name } => *name == preparing.0,
                _ => false,
            };
            let latest = main[*place..].iter().position(ends).map_or(main.len(), |at| *place + at);
            earliest = earliest.max(*place);
            assert!(earliest <= latest, "a segment is prepared before it is used");
            // Leaning to early places: with late ones the creation is cut only together with the end of a segment.
            let room = (latest - earliest) as u64 + 1;
            earliest += random.below(room).min(random.below(room)) as usize;
            *place = earliest;
        }
        let mut ops = Vec::with_capacity(main.len() + moved.len());
        let mut moved = moved.into_iter().peekable();
        for (at, op) in main.into_iter().enumerate() {
            while let Some((_, early)) = moved.next_if(|(place, _)| *place <= at) {
                ops.push(early);
            }
            ops.push(op);
        }
        ops.extend(moved.map(|(_, op)| op));
        ops
    }
}

impl State {
    fn record(&mut self, op: impl FnOnce() -> Op) {
        if let Some(ops) = &mut self.ops {
            let by_preparer = std::thread::current().name() == Some("wal-prepare");
            ops.push(Recorded { op: op(), by_preparer });
        }
    }

    /// Counts a call and fails it if its turn has come. A device that failed once goes on failing.
    fn call(&mut self) -> io::Result<()> {
        let number = self.calls;
        self.calls += 1;
        match self.fault {
            Some((at, Fault::Error(kind))) if number == at || self.failed => {
                self.failed = true;
                Err(kind.into())
            }
            _ => Ok(()),
        }
    }

    fn has_room_for(&self, more: usize) -> bool {
        let used = || self.names.values().map(|file| self.contents[*file].len()).sum::<usize>();
        self.capacity.is_none_or(|capacity| more == 0 || used() + more <= capacity)
    }
}

impl BlockFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().contents[self.file].len() as u64)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.0.lock().unwrap();
        let whole = state.contents[self.file].read(buf, offset as usize);
        if whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert_eq!(buf.as_ptr() as usize % BLOCK, 0, "O_DIRECT wants aligned memory");
        assert!(buf.len().is_multiple_of(BLOCK) && offset.is_multiple_of(BLOCK as u64), "O_DIRECT wants whole blocks");
        let mut state = self.disk.0.lock().unwrap();
        let short = state.fault == Some((state.calls, Fault::ShortWrite));
        state.call()?;
        let (from, len) = (offset as usize, if short { buf.len() / 2 / SECTOR * SECTOR } else { buf.len() });
        if !state.has_room_for((from + len).saturating_sub(state.contents[self.file].len())) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.contents[self.file].write(from, &buf[..len]);
        state.record(|| Op::Write { file: self.file, offset: from, bytes: buf[..len].to_vec() });
        if short { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock().unwrap();
        state.call()?;
        state.record(|| Op::Sync { file: self.file });
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
        state.call()?;
        if state.full_for > 0 {
            state.full_for -= 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.contents.len();
        assert!(!state.names.contains_key(name), "create means new");
        state.contents.push(Content::default());
        state.names.insert(name.to_owned(), file);
        state.record(|| Op::Create { name: name.to_owned(), file });
        Ok(Arc::new(SimFile { disk: self.clone(), file }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.call()?;
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        state.record(|| Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.record(|| Op::Remove { name: name.to_owned() });
        Ok(())
    }
    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        state.call()?;
        state.record(|| Op::SyncDir);
        Ok(())
    }
    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// A small generator: tests print their seed and repeat exactly. The seed must not be zero.
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
        // The low bits of this generator are its weak ones.
        (self.next() >> 11) % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}
