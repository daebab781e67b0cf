//! Does everybody who waits for a record wake up, when nothing more is appended that could wake them by chance?
#![allow(clippy::unwrap_used, missing_docs)]

mod memory;

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use hackbrain::wal::storage::{BlockFile, Storage};
use hackbrain::wal::writer::{Options, Wal};
use memory::MemoryDir;

/// More than are woken in one go.
const WAITERS: usize = 48;
const ROUNDS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory in memory whose syncs take a while, so that others stage and go to sleep meanwhile.
struct Slow(MemoryDir);

struct SlowFile(Arc<dyn BlockFile>);

impl BlockFile for SlowFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        thread::sleep(Duration::from_micros(100));
        self.0.sync()
    }
}

impl Storage for Slow {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(SlowFile(self.0.open(name)?)))
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.0.open_for_lookup(name)
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        Ok(Arc::new(SlowFile(self.0.create(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.0.sync_dir()
    }
    fn describe(&self, name: &str) -> String {
        self.0.describe(name)
    }
}

#[test]
fn everybody_who_waits_wakes_up_though_nobody_comes_after() {
    // No marks: a mark's own commit must not be what wakes somebody.
    let options = Options { mark_after: None, ..Options::new(4 << 20) };
    let (wal, _) = Wal::open(Arc::new(Slow(MemoryDir::default())), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
    let wal = Arc::new(wal);
    let (start, end) = (Arc::new(Barrier::new(WAITERS + 1)), Arc::new(Barrier::new(WAITERS + 1)));
    let (awake, woken) = channel();
    let threads: Vec<_> = (0..WAITERS)
        .map(|number| {
            let (wal, start, end, awake) = (wal.clone(), start.clone(), end.clone(), awake.clone());
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    start.wait();
                    let (seq, _) = wal.append(|_, _, body| body.extend([number as u8; 300])).unwrap();
                    // Some are at the point of going to sleep when their record becomes durable.
                    for _ in 0..(number * round) % 97 {
                        std::hint::spin_loop();
                    }
                    wal.wait(seq).unwrap();
                    awake.send(()).unwrap();
                    end.wait();
                }
            })
        })
        .collect();
    for round in 0..ROUNDS {
        start.wait();
        for count in 0..WAITERS {
            woken.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("round {round}: only {count} of {WAITERS} woke up"));
        }
        end.wait();
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}
