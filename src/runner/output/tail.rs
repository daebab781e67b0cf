//! Follows a growing file by polling: works on every file system, and costs one `read` at its end per look.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Bytes read at once, and the only buffer.
const BUFFER_BYTES: usize = 64 << 10;
/// Shortest pause between two looks, right after something came.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest pause between two looks, while nothing comes.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A reader that stands at an offset of a file that another process appends to.
#[derive(Debug)]
pub struct Tail {
    file: File,
    offset: u64,
    buffer: Vec<u8>,
    pause: Duration,
}

impl Tail {
    /// A tail whose first byte is the one at `offset`.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, offset: u64) -> io::Result<Self> {
        Ok(Self { file: File::open(path)?, offset, buffer: vec![0; BUFFER_BYTES], pause: PAUSE_MIN })
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Hands on, in chunks with their offsets, all that is there now; gives the number of bytes.
    ///
    /// # Errors
    /// What reading reports, or `sink`; after an error of `sink` its chunk comes again.
    pub fn poll(&mut self, sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
        self.poll_some(u64::MAX, sink)
    }

    /// The same, but ends after the chunk with which it has handed on `bytes_max` bytes: a writer that is faster than the
    /// reader must not hold it here.
    ///
    /// # Errors
    /// As for [`Tail::poll`].
    pub fn poll_some(&mut self, bytes_max: u64, sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
        let began_at = self.offset;
        while self.offset - began_at < bytes_max {
            let length = match self.file.read_at(&mut self.buffer, self.offset) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            sink(self.offset, &self.buffer[..length])?;
            self.offset += length as u64;
        }
        let read = self.offset - began_at;
        self.pause = if read > 0 { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        Ok(read)
    }

    /// How long to wait before the next look: 10 ms after something came, up to 200 ms while nothing does.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// Polls until `done`, then once more: what was written before `done` turned true is handed on.
    ///
    /// # Errors
    /// As for [`Tail::poll`].
    pub fn follow(
        &mut self,
        done: &dyn Fn() -> bool,
        sink: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let last = done();
            self.poll(sink)?;
            if last {
                return Ok(());
            }
            thread::sleep(self.pause);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn everything_written_before_the_end_arrives_once_and_in_order() {
        let path = std::env::temp_dir().join(format!("hb-tail-{}", std::process::id()));
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"skipped").unwrap();
        let done = AtomicBool::new(false);
        let mut seen = Vec::new();
        thread::scope(|scope| {
            let done = &done;
            scope.spawn(move || {
                for i in 0..200_u32 {
                    writer.write_all(&vec![i as u8; 1 + (i as usize * 97) % 5_000]).unwrap();
                    if i % 50 == 0 {
                        thread::sleep(Duration::from_millis(30));
                    }
                }
                done.store(true, Ordering::Release);
            });
            let mut tail = Tail::open(&path, 7).unwrap();
            tail.follow(&|| done.load(Ordering::Acquire), &mut |offset, bytes| {
                assert_eq!(offset, 7 + seen.len() as u64);
                assert!(bytes.len() <= BUFFER_BYTES);
                seen.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        });
        assert!(seen == std::fs::read(&path).unwrap()[7..]);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn the_pause_grows_while_nothing_comes() {
        let path = std::env::temp_dir().join(format!("hb-tail-pause-{}", std::process::id()));
        let mut writer = File::create(&path).unwrap();
        let mut tail = Tail::open(&path, 0).unwrap();
        for _ in 0..10 {
            assert_eq!(tail.poll(&mut |_, _| Ok(())).unwrap(), 0);
        }
        assert_eq!(tail.pause(), PAUSE_MAX);
        writer.write_all(b"x").unwrap();
        assert!(tail.poll(&mut |_, _| Err(io::Error::other("full"))).is_err());
        assert_eq!(tail.poll(&mut |_, _| Ok(())).unwrap(), 1, "what the sink refused comes again");
        assert_eq!(tail.pause(), PAUSE_MIN);
        writer.write_all(&vec![b'y'; 3 * BUFFER_BYTES]).unwrap();
        assert_eq!(tail.poll_some(1, &mut |_, _| Ok(())).unwrap(), BUFFER_BYTES as u64, "no further than asked");
        assert_eq!(tail.poll(&mut |_, _| Ok(())).unwrap(), 2 * BUFFER_BYTES as u64);
        std::fs::remove_file(&path).unwrap();
    }
}
