//! Every call of the log to its medium fails once, in three ways, while nine threads wait: who hears of it, and what is kept.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use hackbrain::sys::block::AlignedBuf;
use hackbrain::wal::frame::{BLOCK, SECTOR, SEGMENT_DATA_START};
use hackbrain::wal::recovery::ScanError;
use hackbrain::wal::storage::{BlockFile, Storage};
use hackbrain::wal::writer::{Latched, Options, Outcome, Wal};
use sim::SimDisk;

/// Segments so small that a scenario of a few rounds changes them twice.
const SEGMENT_BYTES: u64 = 128 << 10;
const FIRST_SEGMENT_BYTES: u64 = 32 << 10;
/// Threads that wait for a record of their own, beside the one whose write is held until all of theirs are staged.
const WAITERS: usize = 8;
const ROUNDS: usize = 5;
/// Far above what an answer takes; without one by then, a waiter hangs.
const PATIENCE: Duration = Duration::from_secs(60);

type Files = BTreeMap<String, Vec<u8>>;

/// A call by what it does, to which file, and how many of that kind came before. One thread makes all the calls of one kind,
/// so a call has the same name in every run, whatever other threads do meanwhile.
type Call = (&'static str, String, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Eio,
    Enospc,
    ShortWrite,
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Eio => io::Error::from_raw_os_error(5),
            Self::Enospc => io::Error::from_raw_os_error(28),
            Self::ShortWrite => io::ErrorKind::WriteZero.into(),
        }
    }
}

enum Event {
    /// A frame's write has begun and is held.
    AtGate,
    Staged,
    Answered(u64, Result<(), Latched>),
    Refused(Latched),
}

#[derive(Default)]
struct State {
    made: Vec<Call>,
    counts: HashMap<(&'static str, String), usize>,
    fault: Option<(Call, Fault)>,
    /// How many calls had been made when the fault was met.
    met_at: Option<usize>,
    gate: Option<Sender<Event>>,
}

/// A disk of which one call fails, once: whoever goes on afterwards would find it sound again, and be caught acknowledging.
#[derive(Clone)]
struct Faulty {
    disk: SimDisk,
    state: Arc<(Mutex<State>, Condvar)>,
}

struct FaultyFile {
    storage: Faulty,
    /// Under which it was opened or created.
    name: String,
    file: Arc<dyn BlockFile>,
}

impl Faulty {
    fn new(disk: SimDisk, fault: Option<(Call, Fault)>) -> Self {
        let state = State { fault, ..State::default() };
        Self { disk, state: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    fn call(&self, what: &'static str, name: &str) -> Option<Fault> {
        let mut state = self.state.0.lock().unwrap();
        let count = state.counts.entry((what, name.to_owned())).or_default();
        let call = (what, name.to_owned(), *count);
        *count += 1;
        state.made.push(call.clone());
        let (_, fault) = state.fault.take_if(|(at, _)| *at == call)?;
        state.met_at = Some(state.made.len());
        Some(fault)
    }

    fn check(&self, what: &'static str, name: &str) -> io::Result<()> {
        self.call(what, name).map_or(Ok(()), |fault| Err(fault.error()))
    }

    fn calls(&self) -> Vec<Call> {
        self.state.0.lock().unwrap().made.clone()
    }

    fn hold_writes_of_frames(&self, events: Sender<Event>) {
        self.state.0.lock().unwrap().gate = Some(events);
    }

    fn let_go(&self) {
        self.state.0.lock().unwrap().gate = None;
        self.state.1.notify_all();
    }

    fn pass_gate(&self) {
        let mut state = self.state.0.lock().unwrap();
        if let Some(events) = &state.gate {
            events.send(Event::AtGate).unwrap();
        }
        while state.gate.is_some() {
            state = self.state.1.wait(state).unwrap();
        }
    }

    fn file(&self, name: &str, file: Arc<dyn BlockFile>) -> Arc<dyn BlockFile> {
        Arc::new(FaultyFile { storage: self.clone(), name: name.to_owned(), file })
    }
}

impl FaultyFile {
    /// Its first sectors arrive, the rest does not.
    fn write_half(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let half = buf.len() / 2 / SECTOR * SECTOR;
        let mut bytes = AlignedBuf::new(half.next_multiple_of(BLOCK));
        // Beyond the end of the file there is nothing to keep.
        let _ = self.file.read_at(&mut bytes, offset);
        bytes[..half].copy_from_slice(&buf[..half]);
        self.file.write_at(&bytes, offset)
    }
}

impl BlockFile for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.storage.check("len", &self.name)?;
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.storage.check("read", &self.name)?;
        self.file.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.storage.is_frame(&self.name, offset) {
            self.storage.pass_gate();
        }
        match self.storage.call("write", &self.name) {
            Some(Fault::ShortWrite) => self.write_half(buf, offset).and(Err(Fault::ShortWrite.error())),
            Some(fault) => Err(fault.error()),
            None => self.file.write_at(buf, offset),
        }
    }
    fn sync(&self) -> io::Result<()> {
        self.storage.check("sync", &self.name)?;
        self.file.sync()
    }
}

impl Faulty {
    /// Zeros go to a name that ends in `.tmp` as well; but a frame never goes to the front, and zeros always do.
    fn is_frame(&self, name: &str, offset: u64) -> bool {
        name.starts_with("wal-") && offset >= SEGMENT_DATA_START
    }
}

impl Storage for Faulty {
    fn list(&self) -> io::Result<Vec<String>> {
        self.check("list", "")?;
        self.disk.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.check("open", name)?;
        Ok(self.file(name, self.disk.open(name)?))
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.check("open for look-up", name)?;
        Ok(self.file(name, self.disk.open_for_lookup(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.check("create", name)?;
        Ok(self.file(name, self.disk.create(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.check("rename", from)?;
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.check("remove", name)?;
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.check("sync directory", "")?;
        self.disk.sync_dir()
    }
    fn describe(&self, name: &str) -> String {
        name.to_owned()
    }
}

/// Without marks, whose moment is the clock's: so the calls are the same in every run.
const OPTIONS: Options =
    Options { segment_size: SEGMENT_BYTES, first_segment_size: FIRST_SEGMENT_BYTES, mark_after: None };

fn record(seq: u64) -> Vec<u8> {
    let len = [3, 300, 504, 5000, 9000][(seq % 5) as usize];
    let mut bytes = format!("record {seq} ").into_bytes();
    bytes.resize(bytes.len() + len, b'a' + (seq % 26) as u8);
    bytes
}

fn open(storage: Arc<dyn Storage>, outcomes: &Arc<Mutex<Vec<Outcome>>>) -> Result<(Wal, u64), ScanError> {
    let noting = outcomes.clone();
    let mut found = 0;
    let (wal, _) = Wal::open(
        storage,
        OPTIONS,
        &mut |found_record| {
            found += 1;
            assert_eq!(found_record.bytes, record(found), "record {found}");
            Ok(())
        },
        Box::new(move |outcome| noting.lock().unwrap().push(outcome)),
    )?;
    Ok((wal, found))
}

fn append_and_wait(wal: &Wal, events: &Sender<Event>) {
    let event = match wal.append(|seq, _, body| body.extend_from_slice(&record(seq))) {
        Err(latched) => Event::Refused(latched),
        Ok((seq, _)) => {
            events.send(Event::Staged).unwrap();
            Event::Answered(seq, wal.wait(seq))
        }
    };
    events.send(event).unwrap();
}

/// What the threads of one run were told.
#[derive(Default)]
struct Told {
    /// Seq of a record, and what its waiter got.
    answers: BTreeMap<u64, Result<(), Latched>>,
    refused: Vec<Latched>,
}

impl Told {
    fn note(&mut self, event: Event) {
        match event {
            Event::Answered(seq, answer) => assert!(self.answers.insert(seq, answer).is_none(), "one answer each"),
            Event::Refused(latched) => self.refused.push(latched),
            Event::AtGate | Event::Staged => {}
        }
    }

    fn count(&self) -> usize {
        self.answers.len() + self.refused.len()
    }
}

/// One record's write is held until eight more are staged behind it: so the frames are the same in every run.
fn round(wal: &Arc<Wal>, storage: &Faulty, told: &mut Told, what: &str) {
    let (sender, events) = channel();
    let next =
        |events: &Receiver<Event>| events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: a waiter hangs"));
    let start = |sender: &Sender<Event>| {
        let (wal, sender) = (wal.clone(), sender.clone());
        thread::spawn(move || append_and_wait(&wal, &sender));
    };
    let (before, mut begun) = (told.count(), 0);
    let mut take = |told: &mut Told| {
        let event = next(&events);
        // Each thread's first word.
        begun += usize::from(matches!(event, Event::Staged | Event::Refused(_)));
        let held = matches!(event, Event::AtGate);
        told.note(event);
        (held, begun)
    };
    storage.hold_writes_of_frames(sender.clone());
    start(&sender);
    // Answered without having been held: the log has latched on the way.
    while !take(told).0 && told.count() == before {}
    (0..WAITERS).for_each(|_| start(&sender));
    while take(told).1 < 1 + WAITERS {}
    storage.let_go();
    while told.count() - before < 1 + WAITERS {
        take(told);
    }
}

/// Ends the log, in bounded time.
fn close(wal: Arc<Wal>, what: &str) {
    let (sender, closed) = channel();
    thread::spawn(move || {
        let mut wal = wal;
        // A thread that has sent its answer may hold it for an instant more.
        let wal = loop {
            match Arc::try_unwrap(wal) {
                Ok(wal) => break wal,
                Err(shared) => wal = shared,
            }
            thread::yield_now();
        };
        wal.close();
        sender.send(()).unwrap();
    });
    assert!(closed.recv_timeout(PATIENCE).is_ok(), "{what}: closing hangs");
}

struct Run {
    calls: Vec<Call>,
    opened: bool,
    /// Whether the fault was met before the log was open.
    met_early: bool,
    latched: bool,
}

/// The whole scenario with one fault, and every promise checked.
fn run(start: &Files, fault: Option<(Call, Fault)>) -> Run {
    let what = &format!("{fault:?}");
    let disk = SimDisk::from_files(start);
    let storage = Faulty::new(disk.clone(), fault);
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let mut told = Told::default();
    let outcome = open(Arc::new(storage.clone()), &outcomes);
    let (opened, met_early) = (outcome.is_ok(), storage.state.0.lock().unwrap().met_at.is_some());
    match outcome {
        Ok((wal, _)) => {
            let wal = Arc::new(wal);
            for _ in 0..ROUNDS {
                round(&wal, &storage, &mut told, what);
            }
            let heard = !told.refused.is_empty() || told.answers.values().any(Result::is_err);
            let (sender, events) = channel();
            let (late, refused) = (wal.clone(), told.refused.len());
            thread::spawn(move || append_and_wait(&late, &sender));
            let before = told.count();
            while told.count() == before {
                told.note(events.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: the last waiter hangs")));
            }
            assert!(!heard || told.refused.len() > refused, "{what}: an append was taken after the end");
            close(wal, what);
            check_told(&told, &outcomes.lock().unwrap(), what);
        }
        // Not corruption: that would tell a user to give up a ledger that is sound.
        Err(error) => assert!(matches!(error, ScanError::Io { .. }), "{what}: {error}"),
    }
    let outcomes = outcomes.lock().unwrap().clone();
    let latched = matches!(outcomes.last(), Some(Outcome::Failed(_)));
    let ends = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    assert!(ends == usize::from(latched), "{what}: the end is told once, and last: {outcomes:?}");
    let state = storage.state.0.lock().unwrap();
    if let Some(met_at) = state.met_at.filter(|at| latched && !prepares(&state.made[at - 1])) {
        let later = state.made[met_at..].iter().find(|call| !prepares(call) && call.0 != "remove");
        assert!(later.is_none(), "{what}: the log went on to {later:?}");
    }
    drop(state);

    let sound = Arc::new(Mutex::new(Vec::new()));
    let (wal, found) = open(Arc::new(disk), &sound).unwrap_or_else(|error| panic!("{what}: after a restart: {error}"));
    let acknowledged = told.answers.iter().filter(|(_, answer)| answer.is_ok()).map(|(seq, _)| *seq).max();
    assert!(Some(found) >= acknowledged, "{what}: acknowledged up to {acknowledged:?}, found up to {found}");
    let (seq, _) = wal.append(|seq, _, body| body.extend_from_slice(&record(seq))).unwrap();
    assert_eq!((seq, wal.wait(seq)), (found + 1, Ok(())), "{what}: after a restart it goes on");
    wal.close();
    Run { calls: storage.calls(), opened, met_early, latched }
}

/// Whether a call belongs to the preparation of a segment, whose failure harms nobody before the segment is needed. The
/// thread that commits makes the same file's second write and second sync: those of its headers.
fn prepares((what, name, count): &Call) -> bool {
    let making = matches!((*what, count), ("create" | "remove", _) | ("write" | "sync", 0));
    name.starts_with("wal-") && name.ends_with(".tmp") && making
}

fn check_told(told: &Told, outcomes: &[Outcome], what: &str) {
    let durable_below = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::DurableBelow(below) => Some(*below),
        Outcome::Failed(_) => None,
    });
    let durable_below = durable_below.max().unwrap_or(1);
    let failed = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Failed(latched) => Some(latched.clone()),
        Outcome::DurableBelow(_) => None,
    });
    for (seq, answer) in &told.answers {
        let expected = if *seq < durable_below { Ok(()) } else { Err(failed.clone().unwrap()) };
        assert_eq!(*answer, expected, "{what}: record {seq}, durable below {durable_below}");
    }
    for refused in &told.refused {
        assert_eq!(Some(refused), failed.as_ref(), "{what}: the first error is everyone's");
    }
}

/// A sound log of several segments, without what was being prepared.
fn some_log() -> Files {
    let disk = SimDisk::default();
    let (wal, _) = open(Arc::new(disk.clone()), &Arc::default()).unwrap();
    for _ in 0..20 {
        let (seq, _) = wal.append(|seq, _, body| body.extend_from_slice(&record(seq))).unwrap();
        wal.wait(seq).unwrap();
    }
    wal.close();
    let mut files = disk.files();
    files.retain(|name, _| !name.ends_with(".tmp"));
    assert!(files.len() >= 3, "two segments and the witness: {:?}", files.keys());
    files
}

/// The same, with its last frame torn: recovery opens a segment.
fn torn_log() -> Files {
    let mut files = some_log();
    let (_, last) = files.iter_mut().rfind(|(name, _)| name.ends_with(".log")).unwrap();
    let end = last.len() - last.iter().rev().take_while(|byte| **byte == 0).count();
    last[end.next_multiple_of(BLOCK) - SECTOR..].fill(0);
    files
}

/// Runs the scenario once for each of its calls and each kind of fault.
fn every_call(start: &Files) {
    let plain = run(start, None);
    assert!(plain.opened && !plain.latched);
    let changes = plain.calls.iter().filter(|(what, ..)| *what == "rename").count();
    assert!(changes >= 2, "the scenario changes segments: {changes}");
    let faults = [Fault::Eio, Fault::Enospc, Fault::ShortWrite];
    let points: Vec<(Call, Fault)> =
        plain.calls.iter().flat_map(|call| faults.map(|fault| (call.clone(), fault))).collect();
    // Only a write can be short.
    let points: Vec<_> =
        points.into_iter().filter(|((what, ..), fault)| *fault != Fault::ShortWrite || *what == "write").collect();
    let (next, latched) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Where a segment waits for space a run sleeps for a second, so several go on at once.
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some(point) = points.get(next.fetch_add(1, Ordering::Relaxed)) {
                    check_point(start, point, &latched);
                }
            });
        }
    });
    // Preparations that are not needed, look-ups that have a second chance, and full disks do not latch; the rest does.
    let latched = latched.into_inner();
    assert!(latched >= 3 * ROUNDS * 2, "{latched} of {} faults ended the log", points.len());
}

fn check_point(start: &Files, (call, fault): &(Call, Fault), latched: &AtomicUsize) {
    let run = run(start, Some((call.clone(), *fault)));
    latched.fetch_add(usize::from(run.latched), Ordering::Relaxed);
    let needed = matches!(call.0, "write" | "sync" | "rename" | "sync directory");
    if prepares(call) && call.0 == "write" && *fault != Fault::Eio {
        assert!(run.opened, "{fault:?} at {call:?}: a smaller segment will do");
    }
    if run.met_early {
        assert!(!run.latched, "{fault:?} at {call:?}: a start that met it and went on had no need of that call");
    } else if prepares(call) && call.0 != "remove" && *fault != Fault::Eio {
        assert!(!run.latched, "{fault:?} at {call:?}: a full disk heals");
    } else if needed && !prepares(call) {
        assert!(run.latched, "{fault:?} at {call:?}: it must end the log");
    }
}

#[test]
fn no_fault_in_a_new_log_goes_unheard_or_loses_what_was_acknowledged() {
    every_call(&Files::new());
}

#[test]
fn no_fault_in_a_log_that_is_opened_again_goes_unheard_or_loses_what_was_acknowledged() {
    every_call(&some_log());
}

#[test]
fn no_fault_in_the_recovery_from_a_torn_tail_goes_unheard_or_loses_what_was_acknowledged() {
    every_call(&torn_log());
}

#[test]
fn waiters_outlast_a_disk_that_is_full_for_as_long_as_it_takes() {
    /// Their records do not fit into the first segment, even together.
    const THREADS: usize = 3 * WAITERS;
    let disk = SimDisk::default();
    let (wal, _) = open(Arc::new(disk.clone()), &Arc::default()).unwrap();
    let wal = Arc::new(wal);
    disk.fill_up(usize::MAX);
    let (sender, events) = channel();
    for _ in 0..THREADS {
        let (wal, sender) = (wal.clone(), sender.clone());
        thread::spawn(move || append_and_wait(&wal, &sender));
    }
    let mut told = Told::default();
    for _ in 0..PATIENCE.as_millis() {
        if wal.is_stuck() && wal.out_of_space().is_some() {
            break;
        }
        if let Ok(event) = events.recv_timeout(Duration::from_millis(1)) {
            told.note(event);
        }
    }
    assert!(wal.is_stuck() && told.count() < THREADS, "some wait for space");
    disk.fill_up(0);
    while told.count() < THREADS {
        told.note(events.recv_timeout(PATIENCE).expect("a waiter hangs"));
    }
    assert!(told.refused.is_empty() && told.answers.values().all(Result::is_ok), "{:?}", told.answers);
    close(wal, "after a full disk");
}

#[test]
fn a_mark_that_cannot_be_written_ends_the_log_and_takes_nothing_back() {
    // The first frame is the record's, the second the mark.
    for (call, fault) in [("write", Fault::Eio), ("write", Fault::ShortWrite), ("sync", Fault::Eio)] {
        let call = (call, "wal-0000000000000001.log".to_owned(), 1);
        let disk = SimDisk::default();
        let storage = Faulty::new(disk.clone(), Some((call.clone(), fault)));
        let (sender, outcomes) = channel();
        let options = Options { mark_after: Some(Duration::from_millis(1)), ..OPTIONS };
        let on_outcome = Box::new(move |outcome| sender.send(outcome).unwrap());
        let (wal, _) = Wal::open(Arc::new(storage), options, &mut |_| Ok(()), on_outcome).unwrap();
        let (seq, _) = wal.append(|seq, _, body| body.extend_from_slice(&record(seq))).unwrap();
        assert_eq!(wal.wait(seq), Ok(()));
        assert_eq!(outcomes.recv_timeout(PATIENCE).unwrap(), Outcome::DurableBelow(2));
        let failed = outcomes.recv_timeout(PATIENCE).expect("nobody is told that the mark failed");
        let Outcome::Failed(latched) = failed else { panic!("{call:?}: {failed:?}") };
        assert_eq!(wal.append(|_, _, body| body.push(b'x')), Err(latched), "{call:?}");
        assert_eq!(wal.wait(seq), Ok(()), "what was acknowledged stays so");
        wal.close();
        assert_eq!(open(Arc::new(disk), &Arc::default()).unwrap().1, 1, "{call:?}");
    }
}
