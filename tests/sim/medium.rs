//! What may be on the medium after a power cut: built op by op, then cut, by enumeration or at random.
//!
//! Each sector written since the last sync of its file is old, new or garbage; of the pending changes of names any first
//! part has happened; a file that grew has any length between the old and the new one.

use std::collections::{BTreeMap, BTreeSet};

use hackbrain::wal::frame::{BLOCK, SECTOR, SECTOR_PAYLOAD, SEGMENT_DATA_START, decode_header, frame_is_sound};

use super::content::Content;
use super::{Image, Op, Random};

/// What became of one sector that was being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    Old,
    New,
    Garbage,
    /// Torn inside, against the assumptions: the first bytes new and the rest old, or the other way round.
    Half,
}

/// Which kinds of garbage a state has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Garbage {
    pub noise: bool,
    /// A sector of an earlier frame of the same segment.
    pub stale_here: bool,
    /// A sector of another file.
    pub stale_elsewhere: bool,
    /// A sector has parts of the old and of the new.
    pub torn_inside: bool,
    /// A block begins with an old frame header.
    pub stale_header: bool,
    /// A stale sector has the mark of the commit that was being written: a torn commit's number is given again.
    pub same_mark: bool,
}

impl Garbage {
    /// More than the format assumes that a crash can leave: recovery may refuse then, but still must not lose anything.
    pub fn beyond_assumptions(&self) -> bool {
        self.torn_inside || self.stale_header || self.same_mark
    }
}

/// A frame that was written.
#[derive(Clone, Debug)]
pub struct FrameAt {
    pub file: usize,
    pub offset: usize,
    pub blocks: usize,
    pub commit: u64,
    pub first_seq: u64,
    pub records: u64,
    pub durable: bool,
}

#[derive(Default, Clone)]
struct MediumFile {
    durable: Content,
    live: Content,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

pub struct Medium {
    names: BTreeMap<String, usize>,
    pending_names: Vec<Op>,
    files: BTreeMap<usize, MediumFile>,
    pub frames: Vec<FrameAt>,
    pub acknowledged_below: u64,
    /// No record of this seq, or a later one, was ever written.
    pub written_below: u64,
}

/// The medium after some first part of the pending changes of names.
pub struct View {
    pub names: Vec<(String, usize)>,
    /// Every sector that is not decided, by file and number, and whether it was overwritten with what it held.
    pub open: Vec<(usize, usize, bool)>,
}

impl View {
    /// The files with a final name.
    pub fn of_the_log(&self) -> Vec<(String, usize)> {
        self.names.iter().filter(|(name, _)| !name.ends_with(".tmp")).cloned().collect()
    }
}

impl Medium {
    /// What is on a disk that was just started with `image`, and of which all below `below` was acknowledged.
    pub fn new(image: &Image, below: u64) -> Self {
        let names = image.keys().cloned().zip(0..).collect();
        let mut files = BTreeMap::new();
        let mut frames = Vec::new();
        for (file, (name, content)) in image.iter().enumerate() {
            if name.ends_with(".log") {
                frames.extend(sound_frames(file, content));
            }
            files.insert(file, MediumFile { durable: content.clone(), live: content.clone(), dirty: BTreeSet::new() });
        }
        Self { names, pending_names: Vec::new(), files, frames, acknowledged_below: below, written_below: below }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { file, .. } => {
                self.files.insert(*file, MediumFile::default());
                self.pending_names.push(op.clone());
            }
            Op::Write { file, offset, bytes } => {
                let content = self.files.get_mut(file).unwrap();
                content.live.write(*offset, bytes);
                content.dirty.extend(offset / SECTOR..(offset + bytes.len()) / SECTOR);
                if *offset >= SEGMENT_DATA_START as usize
                    && let Some(header) = decode_header(bytes)
                {
                    self.written_below = header.first_seq + u64::from(header.records);
                    self.frames.push(frame_at(*file, &header, false));
                }
            }
            Op::Sync { file } => {
                let content = self.files.get_mut(file).unwrap();
                content.durable = content.live.clone();
                content.dirty.clear();
                self.frames.iter_mut().filter(|frame| frame.file == *file).for_each(|frame| frame.durable = true);
            }
            Op::Rename { .. } | Op::Remove { .. } => self.pending_names.push(op.clone()),
            Op::SyncDir => {
                for op in std::mem::take(&mut self.pending_names) {
                    change_names(&mut self.names, &op);
                }
            }
            Op::Acknowledged(below) => self.acknowledged_below = self.acknowledged_below.max(*below),
        }
    }

    /// What is not durable at this point, in words.
    pub fn unsynced(&self) -> Vec<&'static str> {
        let mut live = self.names.clone();
        self.pending_names.iter().for_each(|op| change_names(&mut live, op));
        let mut kinds = BTreeSet::new();
        for (name, file) in &live {
            let file_id = *file;
            let file = &self.files[file];
            let Some(first) = file.dirty.first() else { continue };
            let frame = self.frames.iter().rfind(|frame| frame.file == file_id && !frame.durable);
            kinds.insert(match frame {
                Some(frame) if frame.records == 0 => "mark",
                Some(frame) if frame.blocks == 1 => "frame of one block",
                Some(_) => "frame of many blocks",
                None if name == "segments" => "witness",
                None if name == "segments.tmp" => "new witness",
                None if file.live.sector(*first).iter().any(|byte| *byte != 0) => "segment header",
                None => "zeros",
            });
        }
        if !self.pending_names.is_empty() {
            kinds.insert("names");
        }
        kinds.into_iter().collect()
    }

    /// One for each first part of the pending changes of names.
    pub fn views(&self) -> impl Iterator<Item = View> {
        (0..=self.pending_names.len()).map(|happened| {
            let mut names = self.names.clone();
            self.pending_names[..happened].iter().for_each(|op| change_names(&mut names, op));
            let names: Vec<_> = names.into_iter().collect();
            let mut open = Vec::new();
            for (_, id) in &names {
                let file = &self.files[id];
                let same = |sector| file.durable.sector(sector) == file.live.sector(sector);
                open.extend(file.dirty.iter().map(|sector| (*id, *sector, same(*sector))));
            }
            View { names, open }
        })
    }

    /// The state in which each open sector met its fate. A `wild` one has garbage beyond what the format assumes, too, and
    /// files that grew may have any length in between.
    pub fn cut(&self, view: &View, fates: &[Fate], wild: bool, random: &mut Random) -> (Image, Garbage) {
        let mut garbage = Garbage::default();
        let mut open = view.open.iter().zip(fates).peekable();
        let image = view.names.iter().map(|(name, id)| {
            let file = &self.files[id];
            let mut content = file.live.clone();
            while let Some(((_, sector, _), fate)) = open.next_if(|((of, ..), _)| of == id) {
                let (old, new) = (file.durable.sector(*sector), file.live.sector(*sector));
                match fate {
                    Fate::New => {}
                    Fate::Old => content.write(sector * SECTOR, old),
                    Fate::Garbage => {
                        let mut seen = garbage;
                        let mut bytes = self.garbage(view, *id, *sector, random, &mut seen);
                        if seen.beyond_assumptions() && !wild {
                            seen = Garbage { noise: true, ..garbage };
                            random.fill(&mut bytes);
                        }
                        garbage = seen;
                        content.write(sector * SECTOR, &bytes);
                    }
                    Fate::Half => {
                        garbage.torn_inside = true;
                        let keep = 1 + random.below(SECTOR as u64 - 1) as usize;
                        let (front, back) = if random.one_in(2) { (old, new) } else { (new, old) };
                        content.write(sector * SECTOR, &[&front[..keep], &back[keep..]].concat());
                    }
                }
            }
            let (old, new) = (file.durable.len() / BLOCK, file.live.len() / BLOCK);
            if wild && old < new {
                content.resize((old + random.below((new - old) as u64 + 1) as usize) * BLOCK);
            }
            (name.clone(), content)
        });
        let image = image.collect();
        (image, garbage)
    }

    fn garbage(&self, view: &View, id: usize, sector: usize, random: &mut Random, seen: &mut Garbage) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let kind = random.below(4);
        let here = kind == 2;
        let stale = match kind {
            0 | 1 => None,
            2 => self.stale_frame_sector(id, random).map(|at| (id, at)),
            _ => self.stale_sector_elsewhere(view, id, random),
        };
        let Some((from, at)) = stale else {
            random.fill(&mut bytes);
            seen.noise = true;
            return bytes;
        };
        bytes.copy_from_slice(self.files[&from].durable.sector(at));
        *(if here { &mut seen.stale_here } else { &mut seen.stale_elsewhere }) = true;
        let being_written = self.files[&id].live.sector(sector);
        seen.same_mark |= bytes[SECTOR_PAYLOAD..][..4] == being_written[SECTOR_PAYLOAD..][..4];
        seen.stale_header |= decode_header(&bytes).is_some() && (sector * SECTOR).is_multiple_of(BLOCK);
        bytes
    }

    fn stale_frame_sector(&self, id: usize, random: &mut Random) -> Option<usize> {
        let here: Vec<_> = self.frames.iter().filter(|frame| frame.file == id && frame.durable).collect();
        let frame = here.get(random.below(here.len().max(1) as u64) as usize)?;
        Some((frame.offset + random.below((frame.blocks * BLOCK) as u64) as usize) / SECTOR)
    }

    fn stale_sector_elsewhere(&self, view: &View, id: usize, random: &mut Random) -> Option<(usize, usize)> {
        let (_, other) = &view.names[random.below(view.names.len() as u64) as usize];
        let content = &self.files[other].durable;
        let at = random.below(content.len().max(SECTOR) as u64) as usize / SECTOR;
        (*other != id && content.sector(at).iter().any(|byte| *byte != 0)).then_some((*other, at))
    }

    /// The name of a file in a view.
    pub fn name_of(view: &View, id: usize) -> Option<&str> {
        view.names.iter().find(|(_, file)| *file == id).map(|(name, _)| name.as_str())
    }
}

fn frame_at(file: usize, header: &hackbrain::wal::frame::FrameHeader, durable: bool) -> FrameAt {
    FrameAt {
        file,
        offset: header.offset as usize,
        blocks: header.blocks as usize,
        commit: header.commit,
        first_seq: header.first_seq,
        records: u64::from(header.records),
        durable,
    }
}

/// The frames of a segment, up to where a torn one may be.
fn sound_frames(file: usize, content: &Content) -> Vec<FrameAt> {
    let bytes = content.to_vec();
    let mut frames = Vec::new();
    let mut at = SEGMENT_DATA_START as usize;
    while let Some(header) = bytes.get(at..).and_then(decode_header) {
        let end = at + header.blocks as usize * BLOCK;
        let Some(frame) = bytes.get(at..end) else { break };
        if !frame_is_sound(frame, header.salt, at as u64, header.commit) {
            break;
        }
        frames.push(frame_at(file, &header, true));
        at = end;
    }
    frames
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
