//! Nothing observable before it is durable: the ledger thread over a disk whose sync can be held back, or fails.
#![allow(clippy::unwrap_used, missing_docs)]

mod sim;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hackbrain::config::Verify;
use hackbrain::engine::{Accepted, Engine, EngineThread, Recovered};
use hackbrain::ledger::event::{Genesis, State};
use hackbrain::ledger::lifecycle::{Command, Job, Limits};
use hackbrain::manifest;
use hackbrain::rejection::Rejection;
use hackbrain::sys::block::Caching;
use hackbrain::verify::{Verdict, verify, wal_dir};
use hackbrain::wal::storage::{BlockFile, Directory, Storage};
use hackbrain::wal::writer::Options;
use sim::{Fault, SimDisk};

/// Long enough for any reply that does not wait for the sync to arrive.
const SETTLE: Duration = Duration::from_millis(300);

/// A disk that tells when a sync of a segment begins, and lets it end only when told to.
struct Gate {
    disk: SimDisk,
    closed: Arc<AtomicBool>,
    began: Mutex<Sender<()>>,
    let_go: Arc<Mutex<Receiver<()>>>,
}

struct GatedFile {
    inner: Arc<dyn BlockFile>,
    closed: Arc<AtomicBool>,
    began: Sender<()>,
    let_go: Arc<Mutex<Receiver<()>>>,
}

impl Gate {
    fn wrap(&self, inner: Arc<dyn BlockFile>) -> Arc<dyn BlockFile> {
        let began = self.began.lock().unwrap().clone();
        Arc::new(GatedFile { inner, closed: self.closed.clone(), began, let_go: self.let_go.clone() })
    }
}

impl BlockFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(buf, offset)
    }
    fn sync(&self) -> io::Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            self.began.send(()).unwrap();
            self.let_go.lock().unwrap().recv().unwrap();
        }
        self.inner.sync()
    }
}

impl Storage for Gate {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        // Only what commits is held back: the segment that the log writes to.
        let file = self.disk.open(name)?;
        Ok(if name.ends_with(".log") { self.wrap(file) } else { file })
    }
    fn open_for_lookup(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.disk.open_for_lookup(name)
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn BlockFile>> {
        self.disk.create(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn describe(&self, name: &str) -> String {
        self.disk.describe(name)
    }
}

type Seen = Arc<Mutex<Vec<State>>>;

fn start(storage: Arc<dyn Storage>) -> (Engine, EngineThread, Seen, Receiver<String>) {
    let seen = Seen::default();
    let (noting, (faults, told)) = (seen.clone(), channel());
    let on_job = Box::new(move |job: &Arc<Job>| noting.lock().unwrap().push(job.state));
    let on_fault = Box::new(move |latched: &hackbrain::wal::writer::Latched| drop(faults.send(latched.to_string())));
    let recovered = Recovered::open(storage, Options::new(4 << 20)).unwrap();
    let (engine, thread) =
        recovered.start(Limits { jobs_open_max: 100, manifest_bytes_max: 1 << 20 }, on_job, on_fault).unwrap();
    (engine, thread, seen, told)
}

fn submit(engine: &Engine, job_id: &str) -> Result<Accepted, Rejection> {
    let body = format!(r#"{{"job_id":"{job_id}","image_hash":"busybox","command":["true"]}}"#);
    engine.execute(Command::Submit(Box::new(manifest::parse(body.as_bytes()).unwrap())))
}

fn genesis(engine: &Engine) {
    engine.execute(Command::Genesis(Genesis { log_id: "0".repeat(32), format: 1 })).unwrap();
}

#[test]
fn no_reply_no_view_and_no_action_before_the_sync_has_ended() {
    let (began_sender, began) = channel();
    let (let_go, gate_receiver) = channel();
    let closed = Arc::new(AtomicBool::new(false));
    let storage = Gate {
        disk: SimDisk::default(),
        closed: closed.clone(),
        began: Mutex::new(began_sender),
        let_go: Arc::new(Mutex::new(gate_receiver)),
    };
    let (engine, thread, seen, _told) = start(Arc::new(storage));
    genesis(&engine);
    closed.store(true, Ordering::SeqCst);

    let (reply_sender, reply) = channel();
    let asking = engine.clone();
    let asker = thread::spawn(move || reply_sender.send(submit(&asking, "held")).unwrap());
    began.recv().unwrap();
    // The bytes are written, the sync has begun and not ended: whatever is seen now was shown too early.
    thread::sleep(SETTLE);
    assert!(reply.try_recv().is_err(), "the submitter was answered before the sync ended");
    // A refusal that tells of the job tells of an event, too.
    let (refusal_sender, refusal) = channel();
    let other = engine.clone();
    let refused = thread::spawn(move || {
        let body = br#"{"job_id":"held","image_hash":"other","command":["true"]}"#;
        let answer = other.execute(Command::Submit(Box::new(manifest::parse(body).unwrap())));
        refusal_sender.send(answer).unwrap();
    });
    thread::sleep(SETTLE);
    assert!(refusal.try_recv().is_err(), "a refusal told of the job before the sync ended");
    assert_eq!(engine.view().head().0, 1, "the head was moved before the sync ended");
    assert!(engine.view().job("held").is_none(), "the job was shown before the sync ended");
    assert!(
        engine.view().events_after(1, None, 10).unwrap().0.is_empty(),
        "an event was streamed before the sync ended"
    );
    assert!(seen.lock().unwrap().is_empty(), "work was handed out before the sync ended");

    closed.store(false, Ordering::SeqCst);
    let_go.send(()).unwrap();
    asker.join().unwrap();
    let accepted = reply.recv().unwrap().unwrap();
    assert!(accepted.changed);
    refused.join().unwrap();
    assert_eq!(refusal.recv().unwrap().unwrap_err().code, "job_exists");
    assert_eq!(engine.view().head().0, 2);
    assert_eq!(*seen.lock().unwrap(), [State::Received]);
    engine.close(thread, None);
}

#[test]
fn a_failing_sync_is_told_to_every_waiter_and_shown_to_nobody() {
    let disk = SimDisk::default();
    let (engine, thread, seen, told) = start(Arc::new(disk.clone()));
    genesis(&engine);
    submit(&engine, "before").unwrap();
    // The write of the next frame passes, its sync fails.
    disk.fail_at(disk.calls() + 1, Fault::Error(io::ErrorKind::Other));
    let askers: Vec<_> = (0..8)
        .map(|n| {
            let engine = engine.clone();
            thread::spawn(move || submit(&engine, &format!("after-{n}")))
        })
        .collect();
    for asker in askers {
        let rejection = asker.join().unwrap().expect_err("nothing may be acknowledged after a failed sync");
        assert_eq!((rejection.status, rejection.code), (503, "ledger_latched"));
    }
    assert!(told.recv().unwrap().contains("syncing"), "the agent is told to end");
    assert_eq!(engine.view().head().0, 2);
    assert_eq!(engine.view().latched().map(|reason| reason.contains("syncing")), Some(true));
    assert_eq!(*seen.lock().unwrap(), [State::Received], "only what was durable was acted on");
    engine.close(thread, None);

    disk.heal();
    let (engine, thread, ..) = start(Arc::new(disk));
    assert!(engine.view().job("before").is_some(), "what was acknowledged is there");
    engine.close(thread, None);
}

#[test]
fn two_submissions_of_one_id_in_one_batch_are_one_job() {
    let (engine, thread, seen, _told) = start(Arc::new(SimDisk::default()));
    genesis(&engine);
    let askers: Vec<_> = (0..16)
        .map(|_| {
            let engine = engine.clone();
            thread::spawn(move || submit(&engine, "twin").unwrap())
        })
        .collect();
    let accepted: Vec<Accepted> = askers.into_iter().map(|asker| asker.join().unwrap()).collect();
    assert_eq!(accepted.iter().filter(|a| a.changed).count(), 1);
    assert!(accepted.iter().all(|a| a.job.as_ref().unwrap().received_seq == 2));
    assert_eq!(seen.lock().unwrap().len(), 1);
    engine.close(thread, None);
}

#[test]
fn a_subscriber_gets_every_event_once_and_in_order_from_disk_and_from_memory() {
    let (engine, thread, ..) = start(Arc::new(SimDisk::default()));
    genesis(&engine);
    let view = engine.view().clone();
    let (news, rung) = sync_channel(1);
    view.on_news(Box::new(move || {
        let _ = news.try_send(());
    }));
    let reader = thread::spawn(move || {
        let (mut after, mut got) = (0, Vec::new());
        while after < 6001 {
            let (events, reached) = view.events_after(after, None, 97).unwrap();
            got.extend(events.iter().map(|(seq, _)| *seq));
            if reached == after {
                rung.recv_timeout(Duration::from_secs(60)).unwrap();
            }
            after = reached;
        }
        got
    });
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let engine = engine.clone();
            thread::spawn(move || {
                for n in 0..1500 {
                    let id = format!("w{writer}-{n}");
                    // The queue takes 100 open jobs: each is refused again at once, and so ended.
                    let seq = submit(&engine, &id).unwrap().job.unwrap().seq;
                    let refuse = Command::Refuse(id.as_str().into(), seq, "image".into(), "none".into());
                    engine.execute(refuse).unwrap();
                }
            })
        })
        .collect();
    let got = reader.join().unwrap();
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(got.windows(2).all(|pair| pair[1] == pair[0] + 1), "a gap or a repeat");
    assert_eq!(got[0], 1);
    // Far behind the memory: all of it from the segments, and of one job only its own.
    let (events, _) = engine.view().events_after(0, None, 100).unwrap();
    assert_eq!(events.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=100).collect::<Vec<_>>());
    let (events, reached) = engine.view().events_after(0, Some("w0-0"), 500).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(reached, engine.view().head().0);
    engine.close(thread, None);
}

#[test]
fn a_ledger_that_is_being_written_is_never_called_damaged() {
    let data = std::env::temp_dir().join(format!("hb-live-{}", std::process::id()));
    let storage = Directory::open(&wal_dir(&data), Caching::Direct).unwrap();
    let (engine, thread, ..) = start(Arc::new(storage));
    genesis(&engine);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (engine, stop) = (engine.clone(), stop.clone());
            thread::spawn(move || {
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let id = format!("w{writer}-{n}");
                    let seq = submit(&engine, &id).unwrap().job.unwrap().seq;
                    engine.execute(Command::Refuse(id.as_str().into(), seq, "image".into(), "none".into())).unwrap();
                }
            })
        })
        .collect();
    let options = Verify { data: data.clone(), expect: Vec::new(), artifacts: true };
    let (mut seen, mut looks) = (0, 0);
    // On a slow disk it takes more looks until there was something to see.
    while (looks < 60 || seen <= 100) && looks < 3000 {
        looks += 1;
        let mut out = Vec::new();
        let verdict = verify(&options, &AtomicBool::new(false), &mut out, None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(matches!(verdict, Verdict::Sound), "{text}");
        let head: u64 = text.lines().last().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        assert!(head >= seen, "the ledger never gets shorter: {head} after {seen}");
        seen = head;
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    engine.close(thread, None);
    std::fs::remove_dir_all(&data).unwrap();
    assert!(seen > 100, "the ledger grew meanwhile: {seen}");
}
