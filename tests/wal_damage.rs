//! Every bit of damage: each bit, sector, block and file of a small log altered, lost or put back. It is refused, or costs nothing,
//! or costs what docs/wal-format.md says cannot be told. Prints the table of outcomes (`--nocapture`).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod agent;
mod memory;
mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::{Ended, Site, hackbrain};
use hackbrain::engine::Recovered;
use hackbrain::ledger::event::Genesis;
use hackbrain::ledger::lifecycle::{Command, Limits};
use hackbrain::manifest;
use hackbrain::sys::block::Caching;
use hackbrain::wal::frame::{
    BLOCK, SECTOR, SEGMENT_DATA_START, decode_header, decode_segment_header, parse_segment_name, segment_name,
};
use hackbrain::wal::recovery::{Corruption, Ending, ScanError, recover, scan};
use hackbrain::wal::segments::WITNESS;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};
use memory::{Files, MemoryDir};
use sim::SimDisk;

/// Six blocks for the first segment and the one that recovery opens, seven for the third; the mark is written only at the end.
const OPTIONS: Options = Options {
    segment_size: 7 * BLOCK as u64,
    first_segment_size: 6 * BLOCK as u64,
    mark_after: Some(Duration::from_secs(3600)),
};
/// One bit in so many is also shown to recovery, which copies the log; of other damages one in `RECOVERED`.
const RECOVERED_BITS: usize = 997;
const RECOVERED: u64 = 7;

fn record(seq: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("record {seq} ").into_bytes();
    bytes.resize(len.max(bytes.len()), b'a' + (seq % 26) as u8);
    bytes
}

fn open(disk: &SimDisk, options: Options) -> Wal {
    Wal::open(Arc::new(disk.clone()), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap().0
}

fn without_prepared(mut files: Files) -> Files {
    files.retain(|name, _| !name.ends_with(".tmp"));
    files
}

/// A log of three segments with everything in it: frames of one and of several blocks, of one and of many records, one that
/// was torn, room that nobody used.
struct Log {
    /// At the end, with a mark behind the last records.
    marked: Files,
    /// Just before that.
    unmarked: Files,
    /// After each commit until then.
    states: Vec<Files>,
    records: Vec<Vec<u8>>,
    /// Seq of the first record of the last frame that has any.
    last_frame_seq: u64,
}

impl Log {
    fn new() -> Self {
        let disk = SimDisk::default();
        let mut log = Self {
            marked: Files::new(),
            unmarked: Files::new(),
            states: Vec::new(),
            records: Vec::new(),
            last_frame_seq: 0,
        };
        let wal = open(&disk, Options { mark_after: None, ..OPTIONS });
        log.commit(&wal, &disk, &[30, 12, 500]);
        log.commit(&wal, &disk, &[9, 8]);
        // Killed in the middle of this one: of its sectors some are new, some old, one is garbage.
        let before = without_prepared(disk.files());
        wal.append(|_, _, body| body.extend_from_slice(&record(99, 3000))).unwrap();
        wal.close();
        let mut torn = without_prepared(disk.files());
        let at = first_difference(&torn[&segment_name(1)], &before[&segment_name(1)]);
        assert_eq!(at % BLOCK, 0);
        let segment = torn.get_mut(&segment_name(1)).unwrap();
        segment[at + SECTOR..at + 3 * SECTOR].fill(0);
        segment[at + 4 * SECTOR..at + 5 * SECTOR].fill(0x6B);

        let disk = SimDisk::from_files(&torn);
        let wal = open(&disk, OPTIONS);
        log.commit(&wal, &disk, &[20; 60]);
        log.commit(&wal, &disk, &[4000]);
        log.commit(&wal, &disk, &[90, 1, 33]);
        // The third segment before its first frame: nobody has time to look at that moment.
        let mut opened = log.states[log.states.len() - 1].clone();
        opened.get_mut(&segment_name(3)).unwrap()[SEGMENT_DATA_START as usize..].fill(0);
        log.states.push(opened);
        log.commit(&wal, &disk, &[20, 3900]);
        log.unmarked = without_prepared(disk.files());
        wal.close();
        log.marked = without_prepared(disk.files());
        log
    }

    /// One frame with records of these lengths.
    fn commit(&mut self, wal: &Wal, disk: &SimDisk, lengths: &[usize]) {
        let first = self.records.len() as u64 + 1;
        self.records.extend((first..).zip(lengths).map(|(seq, len)| record(seq, *len)));
        let records = &self.records;
        wal.append_all(lengths.len(), |_, seq, _, body| body.extend_from_slice(&records[seq as usize - 1]), |_, _| ())
            .unwrap();
        wal.wait(self.records.len() as u64).unwrap();
        self.last_frame_seq = first;
        self.states.push(without_prepared(disk.files()));
    }

    fn head(&self) -> u64 {
        self.records.len() as u64
    }
}

fn first_difference(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).position(|(a, b)| a != b).unwrap()
}

/// What the bytes at some place of a sound log are there for.
#[derive(Clone, Debug, PartialEq)]
enum Region {
    /// One of two that say the same.
    Copy,
    /// Records from this seq on; it starts at this offset.
    Frame { first_seq: u64, offset: u64 },
    /// Read by nobody, or only to see that nothing is there.
    Unused,
}

/// The region of each block of each file. Frames are found by the lengths in their headers.
fn regions(files: &Files) -> BTreeMap<String, Vec<Region>> {
    let last = files.keys().filter_map(|name| parse_segment_name(name)).max().unwrap();
    let of = |(name, bytes): (&String, &Vec<u8>)| {
        let mut regions = vec![Region::Unused; bytes.len() / BLOCK];
        regions[..2].fill(Region::Copy);
        let Some(segno) = parse_segment_name(name) else { return (name.clone(), regions) };
        let next = files.get(&segment_name(segno + 1)).map(|next| decode_segment_header(&next[..BLOCK]).unwrap());
        assert_eq!(next.is_none(), segno == last);
        let mut at = SEGMENT_DATA_START as usize;
        while next.as_ref().is_none_or(|next| next.prev_end != at as u64) {
            let Some(header) = bytes.get(at..).and_then(decode_header) else { break };
            let end = at + header.blocks as usize * BLOCK;
            regions[at / BLOCK..end / BLOCK].fill(Region::Frame { first_seq: header.first_seq, offset: at as u64 });
            at = end;
        }
        (name.clone(), regions)
    };
    files.iter().map(of).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Refused,
    /// Every record is there.
    Harmless,
    /// Every record but those of the last frame that has any.
    LastFrameLost,
    /// Some first part of the records, and more than the last frame is missing.
    Earlier,
}

/// A log in one state, damaged in all ways, and what came of it.
struct Trial<'l> {
    log: &'l Log,
    files: &'l Files,
    tally: BTreeMap<&'static str, [u64; 4]>,
    offsets: BTreeSet<u64>,
    shown: u64,
}

impl<'l> Trial<'l> {
    fn new(log: &'l Log, files: &'l Files) -> Self {
        // A refusal names one of these: a file's start, a frame's, or the end of the last.
        let mut offsets = BTreeSet::from([0]);
        for regions in regions(files).values() {
            for (index, region) in regions.iter().enumerate() {
                if let Region::Frame { offset, .. } = region {
                    offsets.extend([*offset, ((index + 1) * BLOCK) as u64]);
                }
            }
        }
        Self { log, files, tally: BTreeMap::new(), offsets, shown: 0 }
    }

    /// Opens a damaged log. Panics where the answer is none of those that there may be.
    fn answer(&self, what: &dyn Fn() -> String, dir: &MemoryDir) -> (Answer, Option<Corruption>) {
        let mut count = 0;
        let outcome = scan(dir, &mut |found| {
            count += 1;
            let expected = self.log.records.get(found.seq as usize - 1);
            if found.seq != count || expected.is_none_or(|expected| found.bytes != expected) {
                panic!("{}: record {} is not what was written", what(), found.seq);
            }
            Ok(())
        });
        match outcome {
            Ok(scan) => (self.sound(what, count, scan.as_ref().map_or(&Ending::Clean, |scan| &scan.ending)), None),
            Err(ScanError::Corrupt(corruption)) => {
                let Corruption { file, offset, expected_seq, .. } = &*corruption;
                let expected = if file == WITNESS { 1 } else { count + 1 };
                let known = file == WITNESS || parse_segment_name(file).is_some();
                assert!(
                    known && *expected_seq == expected && self.offsets.contains(offset),
                    "{}: {corruption}",
                    what()
                );
                let text = corruption.to_string();
                let named = format!("{file}: byte offset {offset}: expected seq {expected}: ");
                assert!(text.starts_with(&named), "{}: {text}", what());
                (Answer::Refused, Some(*corruption))
            }
            Err(other) => panic!("{}: {other}", what()),
        }
    }

    fn sound(&self, what: &dyn Fn() -> String, count: u64, ending: &Ending) -> Answer {
        if count == self.log.head() {
            return Answer::Harmless;
        }
        if count == self.log.last_frame_seq - 1 {
            return Answer::LastFrameLost;
        }
        assert!(count < self.log.head(), "{}: {count} records, {ending:?}", what());
        Answer::Earlier
    }

    /// Damages a copy, opens it, and sees to it that recovery says the same and leaves alone what it refuses.
    fn damage(&mut self, class: &'static str, what: &str, damage: impl FnOnce(&mut Files)) -> Answer {
        let mut files = self.files.clone();
        damage(&mut files);
        if files == *self.files {
            return Answer::Harmless;
        }
        let dir = MemoryDir::of(&files);
        let (answer, _) = self.answer(&|| format!("{class}: {what}"), &dir);
        self.tally.entry(class).or_default()[answer as usize] += 1;
        self.shown += 1;
        if self.shown.is_multiple_of(RECOVERED) {
            self.recover(&format!("{class}: {what}"), &dir, &files, answer);
        }
        answer
    }

    fn recover(&self, what: &str, dir: &MemoryDir, files: &Files, answer: Answer) {
        let mut count = 0;
        let outcome = recover(dir, OPTIONS.first_segment_size, &mut |_| {
            count += 1;
            Ok(())
        });
        assert_eq!(outcome.is_err(), answer == Answer::Refused, "{what}: recovery says {outcome:?}");
        match outcome {
            Err(_) => assert!(dir.changes() == 0 && dir.files() == *files, "{what}: what is refused is not touched"),
            Ok(scan) => assert_eq!(self.sound(&|| what.to_owned(), count, &scan.ending), answer, "{what}"),
        }
    }

    /// Flips each bit of these files. Where it lies decides the answer, to the byte offset.
    fn bits(&mut self, names: &BTreeSet<&String>) {
        let dir = MemoryDir::of(self.files);
        let mut number = 0;
        for (name, regions) in regions(self.files).into_iter().filter(|(name, _)| names.contains(name)) {
            for (block, region) in regions.iter().enumerate() {
                for bit in block * BLOCK * 8..(block + 1) * BLOCK * 8 {
                    dir.flip(&name, bit);
                    let what = || format!("bit {bit} of {name}");
                    let (answer, corruption) = self.answer(&what, &dir);
                    match (region, corruption) {
                        (Region::Frame { first_seq, offset }, Some(found)) => {
                            let named = (found.file.as_str(), found.offset, found.expected_seq);
                            assert_eq!(named, (name.as_str(), *offset, *first_seq), "{}", what());
                        }
                        (Region::Copy | Region::Unused, None) => assert_eq!(answer, Answer::Harmless, "{}", what()),
                        other => panic!("{}: {other:?}", what()),
                    }
                    number += 1;
                    if number % RECOVERED_BITS == 0 {
                        let files = dir.files();
                        self.recover(&what(), &MemoryDir::of(&files), &files, answer);
                    }
                    dir.flip(&name, bit);
                    self.tally.entry("bit flipped").or_default()[answer as usize] += 1;
                }
            }
        }
        assert!(dir.files() == *self.files, "each bit was flipped back");
        assert_eq!(number, names.iter().map(|name| self.files[*name].len()).sum::<usize>() * 8);
    }

    /// Zeroes each piece of `size` bytes, and swaps and copies every two, whatever their files. Returns what each loss was.
    fn pieces(&mut self, size: usize, zeroed: &'static str, swapped: &'static str, copied: Option<&'static str>) {
        let pieces: Vec<(String, usize)> =
            self.files.iter().flat_map(|(name, b)| (0..b.len()).step_by(size).map(|at| (name.clone(), at))).collect();
        let bytes: Vec<Vec<u8>> = pieces.iter().map(|(name, at)| self.files[name][*at..at + size].to_vec()).collect();
        let put = |files: &mut Files, (name, at): &(String, usize), bytes: &[u8]| {
            files.get_mut(name).unwrap()[*at..at + size].copy_from_slice(bytes);
        };
        for (i, one) in pieces.iter().enumerate() {
            let answer = self.damage(zeroed, &format!("{one:?}"), |files| put(files, one, &vec![0; size]));
            self.residue_of(&[one], answer);
            for (j, other) in pieces.iter().enumerate() {
                let what = format!("{one:?}, {other:?}");
                // Many unwritten pieces are alike; to swap those is nothing.
                if bytes[i] == bytes[j] {
                    continue;
                }
                if i < j {
                    let answer = self.damage(swapped, &what, |files| {
                        put(files, one, &bytes[j]);
                        put(files, other, &bytes[i]);
                    });
                    self.residue_of(&[one, other], answer);
                }
                if let Some(copied) = copied {
                    let answer = self.damage(copied, &what, |files| put(files, other, &bytes[i]));
                    self.residue_of(&[other], answer);
                }
            }
        }
    }

    /// Only damage to the last frame can look like a torn tail, and only while no mark lies behind it.
    fn residue_of(&self, places: &[&(String, usize)], answer: Answer) {
        assert_ne!(answer, Answer::Earlier, "{places:?}");
        if answer == Answer::LastFrameLost {
            assert!(std::ptr::eq(self.files, &self.log.unmarked), "{places:?}: a mark lies behind the last records");
            let regions = regions(self.files);
            let is_last = |place: &&(String, usize)| match &regions[&place.0][place.1 / BLOCK] {
                Region::Frame { first_seq, .. } => *first_seq == self.log.last_frame_seq,
                _ => false,
            };
            assert!(places.iter().any(is_last), "{places:?}: not the last frame");
        }
    }

    fn lengths(&mut self) {
        for (name, bytes) in self.files {
            let blocks = bytes.len() / BLOCK;
            for keep in 0..blocks {
                for odd in [0, 1, SECTOR] {
                    let len = keep * BLOCK + odd;
                    let answer = self.damage("file cut short", &format!("{name} to {len}"), |files| {
                        files.get_mut(name).unwrap().truncate(len);
                    });
                    assert_eq!(answer, Answer::Refused, "{name} to {len}");
                }
            }
            for more in [1, SECTOR, BLOCK, 9 * BLOCK] {
                for byte in [0, 0xFF] {
                    let answer = self.damage("file made longer", &format!("{name} by {more}"), |files| {
                        let file = files.get_mut(name).unwrap();
                        file.resize(file.len() + more, byte);
                    });
                    assert_eq!(answer, Answer::Refused, "{name} by {more}");
                }
            }
        }
    }

    fn whole_files(&mut self, foreign: &Files) {
        let segments: Vec<&String> = self.files.keys().filter(|name| *name != WITNESS).collect();
        for name in self.files.keys() {
            let answer = self.damage("file removed", name, |files| drop(files.remove(name)));
            assert_eq!(answer, Answer::Refused, "{name}");
            let answer = self.damage("file of another log", name, |files| {
                files.insert(name.clone(), foreign[name].clone());
            });
            assert_eq!(answer, Answer::Refused, "{name}");
            let answer = self.damage("file zeroed", name, |files| files.get_mut(name).unwrap().fill(0));
            assert_eq!(answer, Answer::Refused, "{name}");
        }
        for one in &segments {
            for other in (1..7).map(segment_name).filter(|other| other != *one) {
                let answer = self.damage("segment under another number", &format!("{one} as {other}"), |files| {
                    files.insert(other.clone(), self.files[*one].clone());
                });
                assert_eq!(answer, Answer::Refused, "{one} as {other}");
                let Some(theirs) = self.files.get(&other) else { continue };
                let answer = self.damage("two segments swapped", &format!("{one}, {other}"), |files| {
                    files.insert(other.clone(), self.files[*one].clone());
                    files.insert((*one).clone(), theirs.clone());
                });
                assert_eq!(answer, Answer::Refused, "{one}, {other}");
            }
        }
    }

    /// Every file as it was after an earlier commit.
    fn old_states(&mut self) {
        let last = self.files.keys().rfind(|name| *name != WITNESS).unwrap();
        for (index, state) in self.log.states.iter().enumerate() {
            for (name, old) in state {
                let what = format!("{name} as after commit {index}");
                let put_back = |files: &mut Files| drop(files.insert(name.clone(), old.clone()));
                if name == last {
                    // What remains is a first part of the records: that every one is as written, was seen on the way.
                    self.damage("old state of the last segment", &what, put_back);
                } else if name == WITNESS {
                    let answer = self.damage("old state of the witness", &what, put_back);
                    assert!(matches!(answer, Answer::Refused | Answer::Harmless), "{what}: {answer:?}");
                } else {
                    let answer = self.damage("old state of an earlier segment", &what, put_back);
                    assert_eq!(answer == Answer::Harmless, self.has_the_frames_of(name, old), "{what}: {answer:?}");
                }
            }
            self.damage("old state of the whole log", &format!("after commit {index}"), |files| *files = state.clone());
        }
    }

    /// Whether `old` is this file but for blocks that nobody reads, such as the rest of a torn frame.
    fn has_the_frames_of(&self, name: &str, old: &[u8]) -> bool {
        let regions = &regions(self.files)[name];
        let mut pairs = regions.iter().zip(self.files[name].chunks(BLOCK).zip(old.chunks(BLOCK)));
        pairs.all(|(region, (now, then))| *region == Region::Unused || now == then)
    }

    fn print(&self, state: &str) {
        let bytes: usize = self.files.values().map(Vec::len).sum();
        println!("\n{state}: {bytes} bytes in {} files, {} records", self.files.len(), self.log.head());
        println!("{:<32}{:>9}{:>10}{:>12}{:>9}", "damage", "refused", "harmless", "last frame", "earlier");
        for (class, [refused, harmless, residue, earlier]) in &self.tally {
            println!("{class:<32}{refused:>9}{harmless:>10}{residue:>12}{earlier:>9}");
        }
    }

    fn total(&self, class: &str, answer: Answer) -> u64 {
        self.tally.get(class).map_or(0, |counts| counts[answer as usize])
    }
}

fn every_damage(state: &str, pick: impl Fn(&Log) -> &Files) {
    let (log, other) = (Log::new(), Log::new());
    let files = pick(&log);
    let mut trial = Trial::new(&log, files);
    let sound = trial.answer(&|| "no damage".into(), &MemoryDir::of(files)).0;
    assert_eq!((sound, files.len()), (Answer::Harmless, 4), "three segments and the witness");
    let marked = std::ptr::eq(files, &log.marked);
    // What a mark does not change is flipped where there is one: the same bits twice would only take the time twice.
    let names: BTreeSet<_> = files.keys().filter(|name| marked || files[*name] != log.marked[*name]).collect();
    assert_eq!(names.len(), if marked { 4 } else { 1 });
    trial.bits(&names);
    trial.pieces(BLOCK, "block zeroed", "two blocks swapped", Some("block copied over another"));
    trial.pieces(SECTOR, "sector zeroed", "two sectors swapped", None);
    trial.lengths();
    trial.whole_files(pick(&other));
    trial.old_states();
    trial.print(state);
    // The table means something: each kind of answer that there should be was given.
    for class in ["block zeroed", "sector zeroed", "two blocks swapped", "block copied over another"] {
        assert!(trial.total(class, Answer::Refused) > 0 && trial.total(class, Answer::Harmless) > 0, "{class}");
        assert_eq!(trial.total(class, Answer::LastFrameLost) > 0, !marked, "{class}");
    }
    for class in ["old state of the last segment", "old state of the whole log"] {
        assert!(trial.total(class, Answer::Earlier) > 0, "{class}: only a witness outside tells");
    }
}

#[test]
fn of_a_log_with_a_mark_behind_its_last_records_no_damage_costs_one() {
    every_damage("with a mark", |log| &log.marked);
}

#[test]
fn of_a_log_without_a_mark_damage_costs_at_most_the_last_frame() {
    every_damage("without a mark", |log| &log.unmarked);
}

/// A ledger of several segments in a data directory, as the agent's own code writes it. Returns its files before the last job.
fn ledger(site: &Site, mark_after: Option<Duration>) -> Files {
    let wal = site.data().join("wal");
    let storage = Arc::new(Directory::open(&wal, Caching::Buffered).unwrap());
    let recovered = Recovered::open(storage, Options { mark_after, ..OPTIONS }).unwrap();
    let limits = Limits { jobs_open_max: 100, manifest_bytes_max: 1 << 20 };
    let (engine, thread) = recovered.start(limits, Box::new(|_| {}), Box::new(|_| {})).unwrap();
    engine.execute(Command::Genesis(Genesis { log_id: "0".repeat(32), format: 1 })).unwrap();
    let mut before_last = Files::new();
    for n in 0..12 {
        before_last = without_prepared(read_dir(&wal));
        let body = format!(r#"{{"job_id":"job-{n}","image_hash":"busybox","command":["true"]}}"#);
        engine.execute(Command::Submit(Box::new(manifest::parse(body.as_bytes()).unwrap()))).unwrap();
    }
    engine.close(thread, None);
    before_last
}

fn read_dir(dir: &Path) -> Files {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn write_dir(dir: &Path, files: &Files) {
    fs::remove_dir_all(dir).unwrap();
    fs::create_dir(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn head_of(verified: &Ended) -> String {
    let line = verified.stdout.lines().last().unwrap_or_else(|| panic!("{verified:?}"));
    line.strip_prefix("head ").unwrap_or_else(|| panic!("{verified:?}")).replace(' ', ":")
}

#[test]
fn the_binary_refuses_and_says_where() {
    let site = Site::new("wal-damage");
    ledger(&site, OPTIONS.mark_after);
    let wal = site.data().join("wal");
    let whole = without_prepared(read_dir(&wal));
    let last = whole.len() as u64 - 1;
    assert!(last >= 3, "{last} segments");
    let before: Vec<(String, Vec<Region>)> = regions(&whole).into_iter().filter(|(name, _)| name != WITNESS).collect();
    let mut rows = 0;
    let mut refused = |what: &str, name: &str, place: &str, damage: &dyn Fn(&mut Files)| {
        let mut files = whole.clone();
        damage(&mut files);
        write_dir(&wal, &files);
        let verified = Ended::of(hackbrain().arg("verify").arg("--data").arg(site.data()));
        assert_eq!(verified.code, Some(65), "{what}: {verified:?}");
        let says = format!("damaged: {}: {place}", wal.join(name).display());
        assert!(verified.stdout.contains(&says), "{what}: should say {says:?}: {verified:?}");
        assert!(read_dir(&wal) == files, "{what}: verify changed a file");
        rows += 1;
    };
    for (name, regions) in &before {
        // The first and the last frame of each segment; the last of all is the mark.
        let frames: Vec<_> = regions.iter().filter(|region| matches!(region, Region::Frame { .. })).collect();
        for region in [frames[0], frames[frames.len() - 1]] {
            let Region::Frame { first_seq, offset } = region else { panic!("{region:?}") };
            let place = format!("byte offset {offset}: expected seq {first_seq}: ");
            refused("a flipped bit", name, &place, &|files| {
                files.get_mut(name).unwrap()[*offset as usize + 140] ^= 0x10;
            });
        }
        refused("a shorter file", name, "byte offset 0: expected seq ", &|files| {
            files.get_mut(name).unwrap().truncate(4 * BLOCK);
        });
        refused("a missing segment", name, "byte offset 0: expected seq ", &|files| drop(files.remove(name)));
    }
    refused("a missing witness", WITNESS, "byte offset 0: expected seq 1: ", &|files| drop(files.remove(WITNESS)));
    let (first, second) = (segment_name(1), segment_name(2));
    refused("swapped segments", &first, "byte offset 0: expected seq 1: ", &|files| {
        files.insert(first.clone(), whole[&second].clone());
        files.insert(second.clone(), whole[&first].clone());
    });
    assert!(rows >= 12, "{rows}");
}

#[test]
fn an_expected_head_tells_of_what_the_log_alone_cannot() {
    let site = Site::new("wal-expect");
    let before_last = ledger(&site, None);
    let wal = site.data().join("wal");
    let whole = without_prepared(read_dir(&wal));
    let head = head_of(&site.verify(&[]));
    assert_eq!(site.verify(&["--expect", &head]).code, Some(0));
    let regions = regions(&whole);
    let name = segment_name(whole.len() as u64 - 1);
    let blocks = &regions[&name];
    let Some(Region::Frame { offset, .. }) = blocks.iter().rfind(|region| matches!(region, Region::Frame { .. }))
    else {
        panic!("{blocks:?}")
    };
    let at = *offset as usize;
    let decayed = |files: &mut Files| files.get_mut(&name).unwrap()[at..at + SECTOR].fill(0);
    let put_back = |files: &mut Files| drop(files.insert(name.clone(), before_last[&name].clone()));
    for what in ["decayed", "put back"] {
        let mut files = whole.clone();
        if what == "decayed" {
            decayed(&mut files)
        } else {
            put_back(&mut files)
        }
        write_dir(&wal, &files);
        let alone = site.verify(&[]);
        assert_eq!(alone.code, Some(0), "{what}: the log alone is sound: {alone:?}");
        assert_ne!(head_of(&alone), head, "{what}: an event is missing");
        let expecting = site.verify(&["--expect", &head]);
        assert_eq!(expecting.code, Some(65), "{what}: {expecting:?}");
        assert!(expecting.stdout.contains(&format!("expected event {head} is not in this ledger")), "{expecting:?}");
    }
}
