//! Reading a frame in parts: what is held of it does not grow with it, and every sector is checked whenever it is read.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::frame::{FrameHeader, SECTOR, sectors_are_sound, sectors_of, unpack_sectors};
use super::storage::BlockFile;

/// Sectors read at once, 32 KiB: an answer's piece and the record that ends it. Only a single larger record needs more.
const READ_SECTORS: usize = 64;
/// Sectors read at once where all of a frame are only to be checked.
const CHECK_SECTORS: usize = 128;
/// Parts kept for the next reader: about as many as read at once.
const SPARE_PARTS: usize = 2;

/// Room for parts that nobody uses just now. Fresh room for each piece would leave holes in the heap between what hundreds
/// of slow readers hold: a seventh of what they take.
#[derive(Default)]
pub(super) struct Spare(Mutex<Vec<Part>>);

impl Spare {
    /// Lends a part to `work`.
    pub fn lend<T>(&self, work: impl FnOnce(&mut Part) -> T) -> T {
        let mut part = self.parts().pop().unwrap_or_default();
        let done = work(&mut part);
        let mut parts = self.parts();
        if parts.len() < SPARE_PARTS && part.sectors.len() <= CHECK_SECTORS * SECTOR {
            parts.push(part);
        }
        done
    }

    fn parts(&self) -> MutexGuard<'_, Vec<Part>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of one frame's body, and room for others.
#[derive(Default)]
pub(super) struct Part {
    sectors: Vec<u8>,
    body: Vec<u8>,
    /// Where in the frame's body `body` begins.
    start: usize,
}

impl Part {
    /// Whether every sector of the frame is sound. From here on parts of this frame may be asked for.
    pub fn check(&mut self, file: &dyn BlockFile, header: &FrameHeader) -> io::Result<bool> {
        let all = header.sectors();
        for first in (0..all).step_by(CHECK_SECTORS) {
            if !self.load(file, header, first..all.min(first + CHECK_SECTORS))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes `range` of the body of the frame, always the same frame since the last [`Part::check`]. `None` where it is
    /// shorter, or where a sector that was read for them is not sound.
    pub fn get(
        &mut self,
        file: &dyn BlockFile,
        header: &FrameHeader,
        range: Range<usize>,
    ) -> io::Result<Option<&[u8]>> {
        if range.end > header.body_len as usize {
            return Ok(None);
        }
        if range.start < self.start || range.end > self.start + self.body.len() {
            let needed = sectors_of(&range);
            let end = needed.end.max(header.sectors().min(needed.start + READ_SECTORS));
            if !self.load(file, header, needed.start..end)? {
                return Ok(None);
            }
        }
        Ok(self.body.get(range.start - self.start..range.end - self.start))
    }

    /// What is held is not of the frame that is read next.
    pub fn forget(&mut self) {
        self.body.clear();
    }

    fn load(&mut self, file: &dyn BlockFile, header: &FrameHeader, sectors: Range<usize>) -> io::Result<bool> {
        let (offset, len) = (header.offset + (sectors.start * SECTOR) as u64, sectors.len() * SECTOR);
        self.forget();
        self.sectors.resize(len.max(self.sectors.len()), 0);
        let bytes = &mut self.sectors[..len];
        file.read_at(bytes, offset)?;
        let is_sound = sectors_are_sound(bytes, header.salt, offset, header.commit);
        if is_sound {
            self.start = unpack_sectors(header, sectors.start, bytes, &mut self.body);
        }
        Ok(is_sound)
    }
}
