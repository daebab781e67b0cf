//! Scenarios: what is done to a log, recorded call by call. Their shape depends on the seed alone.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use hackbrain::wal::frame::{Digest, parse_segment_name, segment_name};
use hackbrain::wal::recovery::recover;
use hackbrain::wal::segments::tmp_name;
use hackbrain::wal::storage::Storage;
use hackbrain::wal::writer::{Options, Outcome, Wal};

use crate::sim::{Image, Op, Random, SimDisk};

/// What is appended, and its SHA-256.
pub type Record = (Vec<u8>, Digest);

/// A disk to begin with.
#[derive(Clone)]
pub struct Start {
    /// What is durable.
    pub image: Image,
    /// All below this seq was acknowledged by then.
    pub below: u64,
    /// What was done since, and can be seen although it may not be durable.
    pub ops: Vec<Op>,
    /// All that were ever written.
    pub records: Vec<Record>,
}

/// What was done to a disk.
pub struct Run {
    pub scenario: &'static str,
    pub options: Options,
    pub start: Start,
    /// Those of the start, and those that were appended.
    pub records: Vec<Record>,
    pub ops: Vec<Op>,
    pub end: Image,
    pub capacity: Option<usize>,
}

/// Records by their lengths.
pub enum Step {
    /// A frame of one record.
    One(usize),
    /// A frame of records that were appended together.
    Batch(Vec<usize>),
    /// The first has a frame of its own; the others gather while that one is being written.
    Gather(Vec<usize>),
    /// Closes the log, which leaves a mark, and opens it again.
    Reopen,
}

impl Run {
    /// The log as it is after the run, all of it durable.
    pub fn ended(&self) -> Start {
        let below = self.records.len() as u64 + 1;
        Start { image: self.end.clone(), below, ops: Vec::new(), records: self.records.clone() }
    }

    /// The process is killed after this operation and the machine goes on: what was written can be seen, durable or not.
    pub fn killed_after(&self, op: usize) -> Start {
        Start { ops: self.ops[..=op].to_vec(), records: self.records.clone(), ..self.start.clone() }
    }
}

impl Default for Start {
    fn default() -> Self {
        Self { image: Image::new(), below: 1, ops: Vec::new(), records: Vec::new() }
    }
}

impl Start {
    /// Opens the log, which may need a recovery, and appends.
    pub fn play(&self, scenario: &'static str, options: Options, steps: &[Step], random: &mut Random) -> Run {
        let disk = SimDisk::replayed(&self.image, &self.ops);
        let mut player = Player::open(&disk, options, self.records.clone());
        for step in steps {
            match step {
                Step::One(len) => player.append(&[*len], random),
                Step::Batch(lens) => player.append(lens, random),
                Step::Gather(lens) => player.gather(lens, random),
                Step::Reopen => {
                    let records = player.close();
                    player = Player::open(&disk, options, records);
                }
            }
        }
        let records = player.close();
        self.run(scenario, options, &disk, records, random)
    }

    /// Recovers the log on a disk with room for `spare` more bytes, if that is limited.
    pub fn recover(&self, scenario: &'static str, options: Options, spare: Option<usize>, random: &mut Random) -> Run {
        let disk = SimDisk::replayed(&self.image, &self.ops);
        // What was being prepared is removed first.
        let kept = disk.image().into_iter().filter(|(name, _)| !name.ends_with(".tmp"));
        let used: usize = kept.map(|(_, content)| content.len()).sum();
        let capacity = spare.map(|spare| used + spare);
        disk.limit(capacity);
        let scan = recover(&disk, options.first_segment_size, &mut |_| Ok(())).unwrap();
        // From here on it is told to everyone who asks.
        disk.note_acknowledged(scan.position.next_seq);
        Run { capacity, ..self.run(scenario, options, &disk, self.records.clone(), random) }
    }

    fn run(
        &self,
        scenario: &'static str,
        options: Options,
        disk: &SimDisk,
        records: Vec<Record>,
        random: &mut Random,
    ) -> Run {
        let (ops, end) = (disk.ops_interleaved(random), disk.image());
        Run { scenario, options, start: self.clone(), records, ops, end, capacity: None }
    }
}

/// An open log whose commit thread can be held up where it tells of a commit.
struct Player {
    disk: SimDisk,
    wal: Arc<Wal>,
    records: Vec<Record>,
    told: Receiver<u64>,
    hold: Arc<Mutex<()>>,
}

impl Player {
    fn open(disk: &SimDisk, options: Options, mut records: Vec<Record>) -> Self {
        let hold = Arc::new(Mutex::new(()));
        let (tell, told) = channel();
        let (noting, held) = (disk.clone(), hold.clone());
        let on_outcome = Box::new(move |outcome: Outcome| {
            let Outcome::DurableBelow(below) = outcome else { panic!("nothing fails here: {outcome:?}") };
            noting.note_acknowledged(below);
            // A log that is being closed has nobody who listens.
            let _ = tell.send(below);
            drop(held.lock().unwrap());
        });
        let (wal, scan) = Wal::open(Arc::new(disk.clone()), options, &mut |_| Ok(()), on_outcome).unwrap();
        // From here on what was found is told to everyone who asks; what was not is gone.
        disk.note_acknowledged(scan.position.next_seq);
        records.truncate(scan.position.next_seq as usize - 1);
        Self { disk: disk.clone(), wal: Arc::new(wal), records, told, hold }
    }

    fn close(self) -> Vec<Record> {
        Arc::into_inner(self.wal).expect("nobody waits any more").close();
        self.records
    }

    /// Records that become durable together. Returns the last one's seq.
    fn stage(&mut self, lens: &[usize], random: &mut Random) -> u64 {
        let new: Vec<_> = lens.iter().map(|len| bytes_of_a_record(*len, random)).collect();
        let first = self.records.len();
        let outcome = self.wal.append_all(
            lens.len(),
            |index, seq, _, body| {
                assert_eq!(seq as usize, first + index + 1);
                body.extend_from_slice(&new[index]);
            },
            |_, _| {},
        );
        outcome.unwrap();
        self.records.extend(new.into_iter().map(|bytes| {
            let hash = Sha256::digest(&bytes).into();
            (bytes, hash)
        }));
        self.records.len() as u64
    }

    fn append(&mut self, lens: &[usize], random: &mut Random) {
        let seq = self.stage(lens, random);
        self.wal.wait(seq).unwrap();
        self.await_preparation();
    }

    fn gather(&mut self, lens: &[usize], random: &mut Random) {
        let hold = self.hold.clone();
        let held = hold.lock().unwrap();
        let first = self.stage(&lens[..1], random);
        // Whoever commits, this waiter or the log's own thread, is held up once the first record is durable.
        let waiter = std::thread::spawn({
            let wal = self.wal.clone();
            move || wal.wait(first).unwrap()
        });
        while self.told.recv().unwrap() <= first {}
        self.await_preparation();
        let last = lens[1..].iter().map(|len| self.stage(&[*len], random)).max().unwrap();
        drop(held);
        self.wal.wait(last).unwrap();
        waiter.join().unwrap();
        self.await_preparation();
    }

    /// The next segment is prepared beside all this. Waiting for it makes the recorded calls the same each time; they are
    /// moved to where they could have been later.
    fn await_preparation(&self) {
        let segno = self.disk.list().unwrap().iter().filter_map(|name| parse_segment_name(name)).max().unwrap();
        while !self.disk.has_prepared(&tmp_name(&segment_name(segno + 1))) {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// Text, zeros, padding or noise.
fn bytes_of_a_record(len: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![[b'a', 0, 0xA5, 0xFF][random.below(4) as usize]; len];
    if random.one_in(2) {
        random.fill(&mut bytes);
    }
    bytes
}
