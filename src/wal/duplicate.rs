//! A second log that is the first one up to a place: the same segments, nothing of what was written behind it.

use std::io;

use super::frame::{BLOCK, segment_name};
use super::segments::{Position, WITNESS, Witness};
use super::storage::Storage;
use crate::sys::block::AlignedBuf;

const CHUNK: usize = 1 << 20;

/// The files that a log up to `end` has.
pub fn names(end: &Position) -> impl Iterator<Item = String> {
    (1..=end.segno).map(segment_name).chain([WITNESS.to_owned()])
}

/// Makes durable what a scan has seen of a log that somebody may be writing, up to `end`: a frame that can be read may still
/// be waiting for its sync.
///
/// # Errors
/// Those of the medium.
pub fn settle_up_to(storage: &dyn Storage, end: &Position) -> io::Result<()> {
    storage.open_for_lookup(&segment_name(end.segno))?.sync()?;
    match storage.open_for_lookup(WITNESS) {
        // Of a log whose creation never ended.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        witness => witness?.sync()?,
    }
    storage.sync_dir()
}

/// Copies the log `from` up to `end`, where a scan of it has ended, into the empty directory `to`. Segments before the last
/// are copied byte for byte; of the last, what lies behind `end` is zeros, as where nothing was ever written, and really
/// written: no later commit waits for the file system to allocate. Durable on return, but for the directory's own name. `each`
/// is asked again and again whether to go on. Returns how many bytes there are.
///
/// # Errors
/// Those of the two media, and of `each`.
pub fn duplicate(
    from: &dyn Storage,
    end: &Position,
    to: &dyn Storage,
    each: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<u64> {
    let mut bytes = AlignedBuf::new(CHUNK);
    let mut written = 0;
    for segno in 1..=end.segno {
        let name = segment_name(segno);
        let source = from.open_for_lookup(&name)?;
        let size = source.len()?;
        let known = if segno == end.segno { end.offset } else { size };
        let target = to.create(&name)?;
        let mut offset = 0;
        while offset < size {
            let len = (size - offset).min(CHUNK as u64) as usize;
            let read = known.saturating_sub(offset).min(len as u64) as usize;
            source.read_at(&mut bytes[..read], offset)?;
            bytes[read..len].fill(0);
            target.write_at(&bytes[..len], offset)?;
            offset += len as u64;
            written += len as u64;
            each()?;
        }
        target.sync()?;
    }
    Witness { log_id: end.log_id, last: end.segno }.create(to)?;
    Ok(written + 2 * BLOCK as u64)
}
