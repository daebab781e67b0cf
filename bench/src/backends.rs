//! The stores: this project's log, and each of its peers as its own documentation would have it set for durability.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use hackbrain::sys::block::Caching;
use hackbrain::wal::frame::parse_segment_name;
use hackbrain::wal::storage::Directory;
use hackbrain::wal::writer::{Options, Wal};

use crate::Fault;
use crate::group_commit::{Batched, Plain, Store};

/// As `hackbrain serve` has it by default.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Something that keeps what it was given.
pub trait Backend: Send + Sync {
    /// Returns when the payload is durable.
    fn append(&self, payload: &[u8]) -> Result<(), Fault>;
}

/// The name of a backend; `-b` is behind a batching thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kind {
    Hackbrain,
    Sqlite,
    SqliteB,
    Redb,
    RedbB,
    Okaywal,
    Fjall,
    FjallB,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Hackbrain,
        Self::Sqlite,
        Self::SqliteB,
        Self::Redb,
        Self::RedbB,
        Self::Okaywal,
        Self::Fjall,
        Self::FjallB,
    ];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hackbrain => "hackbrain",
            Self::Sqlite => "sqlite",
            Self::SqliteB => "sqlite-b",
            Self::Redb => "redb",
            Self::RedbB => "redb-b",
            Self::Okaywal => "okaywal",
            Self::Fjall => "fjall",
            Self::FjallB => "fjall-b",
        }
    }

    /// Whether it is a peer that commits appends of several threads together.
    pub fn is_batched_peer(self) -> bool {
        matches!(self, Self::SqliteB | Self::RedbB | Self::Okaywal | Self::FjallB)
    }

    /// Opens a new store in the empty directory `dir`, for payloads of about this many bytes.
    pub fn open(self, dir: &Path, payload: usize) -> Result<Box<dyn Backend>, Fault> {
        Ok(match self {
            Self::Hackbrain => Box::new(open_log(dir)?),
            Self::Sqlite => Box::new(Plain(Sqlite::open(dir)?)),
            Self::SqliteB => Box::new(Batched::new(Sqlite::open(dir)?)?),
            Self::Redb => Box::new(Plain(Redb::open(dir)?)),
            Self::RedbB => Box::new(Batched::new(Redb::open(dir)?)?),
            Self::Okaywal => Box::new(Okaywal::open(dir, payload)?),
            Self::Fjall => Box::new(Plain(Fjall::open(dir)?)),
            Self::FjallB => Box::new(Batched::new(Fjall::open(dir)?)?),
        })
    }
}

/// Creates this project's log in `dir`, just as the agent does.
pub fn open_log(dir: &Path) -> Result<Wal, Fault> {
    let storage = Arc::new(Directory::open(dir, Caching::Direct)?);
    let (wal, _) = Wal::open(storage, Options::new(SEGMENT_BYTES), &mut |_| Ok(()), Box::new(|_| {}))?;
    Ok(wal)
}

/// Segments of this project's log in `dir`; none where another store lies there.
pub fn segments(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir)? {
        count += usize::from(entry?.file_name().to_str().and_then(parse_segment_name).is_some());
    }
    Ok(count)
}

impl Backend for Wal {
    fn append(&self, payload: &[u8]) -> Result<(), Fault> {
        let (seq, _) = Wal::append(self, |_, _, body| body.extend_from_slice(payload))?;
        Ok(self.wait(seq)?)
    }
}

/// One connection behind a mutex: a connection for each thread spends its time in the busy handler's sleeps.
struct Sqlite(Mutex<rusqlite::Connection>);

impl Sqlite {
    fn open(dir: &Path) -> Result<Self, Fault> {
        let connection = rusqlite::Connection::open(dir.join("log.sqlite"))?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "full")?;
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0))?;
        if (mode.as_str(), synchronous) != ("wal", 2) {
            return Err(format!("SQLite took journal_mode={mode}, synchronous={synchronous}").into());
        }
        connection.execute("CREATE TABLE log (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL)", [])?;
        Ok(Self(Mutex::new(connection)))
    }
}

impl Store for Sqlite {
    fn commit<'p>(&self, payloads: impl Iterator<Item = &'p [u8]>) -> Result<(), Fault> {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut insert = connection.prepare_cached("INSERT INTO log (payload) VALUES (?1)")?;
        for payload in payloads {
            insert.execute([payload])?;
        }
        connection.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }
}

const REDB_TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("log");

struct Redb {
    database: redb::Database,
    next: AtomicU64,
}

impl Redb {
    fn open(dir: &Path) -> Result<Self, Fault> {
        Ok(Self { database: redb::Database::create(dir.join("log.redb"))?, next: AtomicU64::new(1) })
    }
}

impl Store for Redb {
    fn commit<'p>(&self, payloads: impl Iterator<Item = &'p [u8]>) -> Result<(), Fault> {
        // Waits for the transaction before; its durability is `Immediate` unless another is asked for.
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(REDB_TABLE)?;
            for payload in payloads {
                table.insert(self.next.fetch_add(1, Ordering::Relaxed), payload)?;
            }
        }
        Ok(transaction.commit()?)
    }
}

struct Fjall {
    database: fjall::Database,
    log: fjall::Keyspace,
    next: AtomicU64,
}

impl Fjall {
    fn open(dir: &Path) -> Result<Self, Fault> {
        let database = fjall::Database::builder(dir.join("fjall")).open()?;
        let log = database.keyspace("log", fjall::KeyspaceCreateOptions::default)?;
        Ok(Self { database, log, next: AtomicU64::new(1) })
    }
}

impl Store for Fjall {
    fn commit<'p>(&self, payloads: impl Iterator<Item = &'p [u8]>) -> Result<(), Fault> {
        // SyncData is fdatasync: as durable as SyncAll for a file's content, and never slower.
        let mut batch = self.database.batch().durability(Some(fjall::PersistMode::SyncData));
        for payload in payloads {
            batch.insert(&self.log, self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes(), payload);
        }
        Ok(batch.commit()?)
    }
}

struct Okaywal(okaywal::WriteAheadLog);

impl Okaywal {
    fn open(dir: &Path, payload: usize) -> Result<Self, Fault> {
        // So large that no slice meets the end of the file, where it would write the next one's zeros under its lock.
        let bytes = (payload << 16).clamp(64 << 20, 256 << 20) as u32;
        let log = okaywal::Configuration::default_for(dir.join("okaywal"))
            .preallocate_bytes(bytes)
            .checkpoint_after_bytes(u64::from(bytes) / 16 * 15)
            .open(okaywal::LogVoid)?;
        let opened = Self(log);
        // Syncs the file's zeros too, which it leaves in the page cache.
        opened.append(&[0])?;
        Ok(opened)
    }
}

impl Backend for Okaywal {
    fn append(&self, payload: &[u8]) -> Result<(), Fault> {
        let mut entry = self.0.begin_entry()?;
        entry.write_chunk(payload)?;
        entry.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_call_a_backend_as_the_command_line_does() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_str(kind.name(), false), Ok(kind));
        }
        assert_eq!(Kind::ALL.len(), Kind::value_variants().len());
    }
}
