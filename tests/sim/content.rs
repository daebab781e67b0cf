//! The bytes of a simulated file: blocks that copies share until one of them is written, so that a state costs what differs.

use std::sync::Arc;

use hackbrain::wal::frame::{BLOCK, SECTOR};

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// `None` is a block of zeros; segments are mostly that.
#[derive(Clone, Default)]
pub struct Content {
    len: usize,
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

impl Content {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn resize(&mut self, len: usize) {
        self.len = len;
        self.blocks.resize(len.div_ceil(BLOCK), None);
        // What a later growth shows again must be zeros.
        if !len.is_multiple_of(BLOCK)
            && let Some(Some(last)) = self.blocks.last_mut()
        {
            Arc::make_mut(last)[len % BLOCK..].fill(0);
        }
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.len < end {
            self.resize(end);
        }
        let mut at = offset;
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            let part = &bytes[at - offset..stop - offset];
            let block = &mut self.blocks[at / BLOCK];
            if part == &ZEROS[..] {
                *block = None;
            } else {
                let block = block.get_or_insert_with(|| Arc::new(ZEROS));
                Arc::make_mut(block)[at % BLOCK..][..part.len()].copy_from_slice(part);
            }
            at = stop;
        }
    }

    /// Fills `buf` from `offset`; `false` where the file ends before that.
    pub fn read(&self, buf: &mut [u8], offset: usize) -> bool {
        let end = offset + buf.len();
        if end > self.len {
            return false;
        }
        let mut at = offset;
        while at < end {
            let stop = end.min((at / BLOCK + 1) * BLOCK);
            let part = &mut buf[at - offset..stop - offset];
            match &self.blocks[at / BLOCK] {
                Some(block) => part.copy_from_slice(&block[at % BLOCK..][..stop - at]),
                None => part.fill(0),
            }
            at = stop;
        }
        true
    }

    /// A sector; zeros where the file does not reach.
    pub fn sector(&self, sector: usize) -> &[u8] {
        let at = sector * SECTOR;
        match self.blocks.get(at / BLOCK) {
            Some(Some(block)) => &block[at % BLOCK..][..SECTOR],
            _ => &ZEROS[..SECTOR],
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(&mut bytes, 0);
        bytes
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(0, bytes);
        content
    }
}

impl PartialEq for Content {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self.blocks.iter().zip(&other.blocks).all(|pair| match pair {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
                (None, None) => true,
                (Some(a), None) | (None, Some(a)) => **a == ZEROS,
            })
    }
}
