//! Files written past the page cache: aligned memory, `O_DIRECT`, `pwrite`, `fdatasync`, directory sync.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;
use std::ptr::NonNull;

use super::dir::effective_uid;

/// What `O_DIRECT` asks of addresses, lengths and offsets here: the page size, which every logical block size divides.
pub const ALIGNMENT: usize = 4096;

/// Zeroed bytes whose address and length are multiples of [`ALIGNMENT`].
pub struct AlignedBuf {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the buffer owns its allocation exclusively, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads; writing needs `&mut`.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// Allocates `len` zero bytes, rounded up to [`ALIGNMENT`], at least one block.
    pub fn new(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(ALIGNMENT);
        let layout = Self::layout(len);
        // SAFETY: the layout's size is not zero.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(raw) else { handle_alloc_error(layout) };
        Self { start, len }
    }

    /// Makes room for at least `len` bytes; what was in the buffer is gone if it had to grow.
    pub fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::new(len);
        }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT).expect("a buffer fits in the address space")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `start` was allocated by `new` with this very layout and is freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.len)) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `len` initialised bytes owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// How a [`DirectFile`] treats the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// `O_DIRECT`: a write goes to the device's queue, nothing lingers in the page cache.
    Direct,
    /// Through the page cache; only `fdatasync` makes it durable. For file systems without `O_DIRECT`.
    Buffered,
}

/// A file of whole blocks.
pub struct DirectFile(File);

impl DirectFile {
    /// Opens an existing file for reading and writing.
    pub fn open(path: &Path, caching: Caching) -> io::Result<Self> {
        Self::options(caching).open(path).map(Self)
    }

    /// Creates a file that must not exist yet.
    pub fn create(path: &Path, caching: Caching) -> io::Result<Self> {
        let file = Self::options(caching).create_new(true).mode(0o640).open(path)?;
        if let Some(above) = path.parent() {
            give_to_owner(&file, above);
        }
        Ok(Self(file))
    }

    /// Opens for reading through the page cache, at any alignment.
    pub fn open_for_lookup(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    fn options(caching: Caching) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        if caching == Caching::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options
    }

    /// Length in bytes.
    pub fn size(&self) -> io::Result<u64> {
        self.0.metadata().map(|m| m.len())
    }

    /// Fills `buf` from `offset`; the end of the file before that is an error.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    /// Writes all of `buf` at `offset` with one `pwrite`. A short write is an error, never continued: the caller latches.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        loop {
            return match self.0.write_at(buf, offset) {
                Ok(n) if n == buf.len() => Ok(()),
                Ok(n) => Err(io::Error::new(
                    io::ErrorKind::WriteZero,
                    format!("short write: {n} of {} bytes at offset {offset}", buf.len()),
                )),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => Err(e),
            };
        }
    }

    /// `fdatasync`: on return everything written is on the medium, the device's cache included.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open for as long as self lives.
        match unsafe { libc::fdatasync(self.0.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Gives a file that root has just made to the owner of its directory `dir`, as far as that can be had: an agent that is not
/// root must be able to go on after a command that was.
pub fn give_to_owner(file: &File, dir: &Path) {
    let given = || {
        let (owner, made) = (dir.metadata()?, file.metadata()?);
        if owner.uid() == made.uid() { Ok(()) } else { fchown(file, Some(owner.uid()), Some(owner.gid())) }
    };
    if effective_uid() == 0
        && let Err(error) = given()
    {
        log::debug!("a file in {} is not given to its owner: {error}", dir.display());
    }
}

/// Makes names created, renamed or removed in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Whether an error says that descriptors or memory are short, and not that anything is wrong with a file.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Raises the limit on open descriptors as far as this process may; gives the limit then in force.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours to write.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid limit, read only.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Fills `buf` from the kernel's random source.
pub fn random_bytes(buf: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buf.len() {
        let rest = &mut buf[filled..];
        // SAFETY: pointer and length describe memory that is ours to write.
        let n = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(n) {
            Ok(n) => filled += n,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_rounded_up() {
        for len in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buf = AlignedBuf::new(len);
            assert_eq!(buf.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buf.len(), len.max(1).next_multiple_of(ALIGNMENT));
            assert!(buf.iter().all(|b| *b == 0));
            buf.fill(7);
        }
    }

    #[test]
    fn random_bytes_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        random_bytes(&mut a).expect("random");
        random_bytes(&mut b).expect("random");
        assert_ne!(a, b);
    }
}
