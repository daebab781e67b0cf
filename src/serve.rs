//! The control agent: starts its threads in order, stops them in reverse.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::admission::Admission;
use crate::config::{DRAIN, FAULT_GRACE, QUEUED_MANIFEST_BYTES_MAX, Serve};
use crate::engine::{Engine, Recovered};
use crate::host::Host;
use crate::http::access::Access;
use crate::http::metrics::Observed;
use crate::http::routes::App;
use crate::http::server::{Counters, Limits as HttpLimits, Server};
use crate::http::sse::Hub;
use crate::ledger::event::{EVENT_FORMAT, Genesis, NodeDown, NodeUp};
use crate::ledger::lifecycle::{Command, Job, Ledger, Limits};
use crate::lists::{self, Shared};
use crate::log_lines::JobLog;
use crate::resources::ResourceLimits;
use crate::runner::docker::Docker;
use crate::runner::mounts::MountPolicy;
use crate::runner::sealed::Verified;
use crate::runner::{Queues, Runner, Setup};
use crate::sys::block::{Caching, give_to_owner, raise_descriptor_limit, random_bytes, sync_dir};
use crate::sys::listen::deepen_backlog;
use crate::sys::lock::{make_backup_lock, try_lock_exclusive};
use crate::sys::service_manager::{inherited_listeners, notify};
use crate::verify::wal_dir;
use crate::wal::recovery::{Ending, ScanError};
use crate::wal::storage::Directory;
use crate::wal::writer::Options;

/// Connections that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const LISTEN_BACKLOG: u16 = 4096;

/// Why the agent ended without being asked to; each has its exit code (sysexits).
#[derive(Debug)]
pub enum Fault {
    /// 64: flags, or what they name.
    Usage(String),
    /// 65: the ledger is damaged.
    Corrupt(String),
    /// 74: files, sockets, threads.
    Io(String),
    /// 75: another agent has the data directory.
    InUse(String),
}

impl Fault {
    /// Exit code and message.
    pub fn code_and_message(&self) -> (u8, &str) {
        match self {
            Self::Usage(message) => (64, message),
            Self::Corrupt(message) => (65, message),
            Self::Io(message) => (74, message),
            Self::InUse(message) => (75, message),
        }
    }
}

impl From<ScanError> for Fault {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Corrupt(_) | ScanError::Version { .. } => {
                Self::Corrupt(format!("the ledger is damaged and was not touched: {error}"))
            }
            ScanError::Io { error: source, .. } if source.kind() == io::ErrorKind::Unsupported => {
                Self::Usage(format!("{source} (or use --wal-buffered)"))
            }
            ScanError::Unreadable(reason) => Self::Corrupt(format!("the ledger is sound and cannot be used: {reason}")),
            ScanError::Io { .. } => Self::Io(format!("the ledger cannot be opened: {error}")),
        }
    }
}

/// How often a start that waits for the ledger looks for signals.
const START_LOOK: Duration = Duration::from_secs(1);

/// How long, and how often, a taken data directory is asked for: one that an agent has just been killed in gets free.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_LOOK: Duration = Duration::from_millis(10);

enum End {
    Asked(&'static str),
    Fault(String),
}

/// Runs the agent until it is asked to stop.
///
/// # Errors
/// See [`Fault`].
pub fn serve(config: &Serve) -> Result<(), Fault> {
    let started = Instant::now();
    // Before anything else is opened.
    let inherited = inherited_listeners().map_err(|error| Fault::Usage(error.to_string()))?;
    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    crate::sys::memory::return_large_allocations();
    let http_limits = match raise_descriptor_limit() {
        Ok(descriptors) => HttpLimits::within(descriptors),
        Err(error) => {
            log::warn!("the limit on open files stays as it is: {error}");
            HttpLimits::default()
        }
    };
    let access = Access::new(config.token_file.as_deref(), &config.allow_host, &config.allow_origin)
        .map_err(|error| Fault::Usage(error.to_string()))?;
    let access = Arc::new(access);
    let usage = |error: io::Error| Fault::Usage(error.to_string());
    let images = Arc::new(Shared::new(lists::expand("--allow-image", &config.allow_image).map_err(usage)?));
    let handed: Vec<SocketAddr> = inherited.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    check_exposure(config, &handed, access.has_tokens())?;
    let host = Host::read();
    let workers = config.workers.map_or(host.cpus as usize, usize::from);
    let resources = Arc::new(ResourceLimits::new(&config.resources, &host, workers).map_err(Fault::Usage)?);
    let _lock = take_data_dir(&config.data)?;
    let data = fs::canonicalize(&config.data).map_err(|error| io_fault("--data", &config.data, &error))?;
    // Bound before the ledger is read: a client that comes early waits instead of being refused.
    let listeners = listen(config, inherited)?;
    let (ends, ended) = bounded(4);
    let reload = {
        let (config, access, images) = (config.clone(), access.clone(), images.clone());
        move || reload(&config, &handed, &access, &images)
    };
    let signals = watch_signals(ends.clone(), reload)?;
    // Ends after whoever writes to it.
    let job_log = JobLog::start().map_err(|error| Fault::Io(format!("starting the log's thread: {error}")))?;
    let mounts =
        MountPolicy::new(&config.mount_root, &data).map_err(|error| Fault::Usage(format!("--mount-root: {error}")))?;
    let mounts = Arc::new(mounts);

    let caching = if config.wal_buffered { Caching::Buffered } else { Caching::Direct };
    let storage = Directory::open(&wal_dir(&data), caching).map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => Fault::Usage(format!("{error}, or use --wal-buffered")),
        _ => io_fault("the ledger's directory", &wal_dir(&data), &error),
    })?;
    let reading = Instant::now();
    let recovered = Recovered::open(Arc::new(storage), Options::new(config.segment_size))?;
    let (recovery, recovered_events) = (reading.elapsed(), recovered.scan.position.next_seq - 1);
    let last_run = last_run(recovered.ledger(), &recovered.scan.ending);
    let unfinished = recovered.ledger().unfinished();
    let known_log_id = recovered.ledger().log_id().map(str::to_owned);
    log::info!(
        "ledger: {} events, {} jobs, {} not ended; the last run: {last_run}",
        recovered_events,
        recovered.ledger().len(),
        unfinished.len()
    );

    let queues = Queues::default();
    let on_fault = Box::new(move |latched: &crate::wal::writer::Latched| {
        // Never blocks: who is already told to end need not be told again.
        let _ = ends.try_send(End::Fault(latched.to_string()));
    });
    let ledger_limits = Limits { jobs_open_max: config.max_queue, manifest_bytes_max: QUEUED_MANIFEST_BYTES_MAX };
    let (mut act, mut tell) = (queues.on_job(), job_log.on_job());
    let on_job = Box::new(move |job: &Arc<Job>| {
        act(job);
        tell(job);
    });
    let (engine, engine_thread) =
        recovered.start(ledger_limits, on_job, on_fault).map_err(|error| Fault::Io(error.to_string()))?;
    let log_id = match known_log_id {
        Some(log_id) => log_id,
        None => begin_ledger(&engine, &ended)?,
    };
    let setup = Setup {
        engine: engine.clone(),
        docker: Docker::from_env(),
        mounts: mounts.clone(),
        data: data.clone(),
        log_id: log_id.clone(),
        host: host.clone(),
        resources: resources.clone(),
        workers,
        pull: config.pull,
    };
    let runner = Runner::new(setup, queues);
    let node_name = config.node_name.clone().unwrap_or_else(|| host.name.clone());
    let fingerprint = host.fingerprint();
    let stopping = Arc::new(AtomicBool::new(false));
    let ready = Arc::new(OnceLock::new());
    let addresses: Vec<String> =
        listeners.iter().filter_map(|l| l.local_addr().ok()).map(|address| format!("http://{address}")).collect();
    let mut limits = resources.to_json();
    let others = json!({
        "workers": workers,
        "max_queue": config.max_queue,
        "cpus": host.cpus,
        "memory_mib": host.memory_mib,
        "allow_network": config.allow_network,
    });
    if let (Some(limits), serde_json::Value::Object(others)) = (limits.as_object_mut(), others) {
        limits.extend(others);
    }
    let counters: Arc<Counters> = Arc::default();
    let events = Hub::start(engine.view(), runner.telemetry(), runner.growth(), Hub::MAX_SUBSCRIBERS)
        .map_err(|error| Fault::Io(format!("starting the event stream: {error}")))?;
    let hub = Arc::downgrade(&events);
    access.on_install(Box::new(move || {
        if let Some(hub) = hub.upgrade() {
            hub.ask_again();
        }
    }));
    let app = App {
        engine: engine.clone(),
        runner: runner.clone(),
        events: events.clone(),
        admission: Admission {
            images,
            network: config.allow_network,
            mounts: mounts.clone(),
            resources: resources.clone(),
        },
        access,
        verified: Verified::default(),
        data,
        node: json!({
            "name": &node_name,
            "version": env!("CARGO_PKG_VERSION"),
            "log_id": log_id,
            "host": &fingerprint,
            "limits": limits,
            "mount_roots": config.mount_root,
            "mount_protection": mounts.protection().to_string(),
        }),
        observed: Observed {
            counters: counters.clone(),
            started: started_at,
            recovery,
            recovered_events,
            max_queue: config.max_queue,
        },
        started,
        ready: ready.clone(),
        stopping: stopping.clone(),
    };
    let server = Server::start_counting(listeners, Arc::new(app), http_limits, counters)
        .map_err(|error| Fault::Io(format!("starting the HTTP front: {error}")))?;
    // An engine that is slow to tell of itself holds up submissions, which wait for NODE_UP, and nothing else.
    log::info!("listening on {} after {} ms", addresses.join(", "), started.elapsed().as_millis());

    let up = NodeUp {
        node_name,
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id: host.boot_id.clone(),
        last_run,
        host: fingerprint,
        engine: runner.fingerprint(),
        mount_protection: mounts.protection().to_string(),
    };
    record(&engine, &ended, Command::NodeUp(up))?;
    runner.start(&unfinished).map_err(|error| Fault::Io(format!("starting the runner: {error}")))?;
    let _ = ready.set(());
    tell_manager("READY=1");

    let end = wait_for_end(&ended);
    tell_manager("STOPPING=1");
    stopping.store(true, Ordering::SeqCst);
    runner.stop();
    let outcome = match end {
        End::Asked(reason) => {
            log::info!("stopping on {reason}; containers go on");
            let deadline = Instant::now() + DRAIN;
            events.drain();
            server.drain(DRAIN);
            runner.finish_cleaning(deadline);
            let last = Command::NodeDown(NodeDown { reason: reason.into() });
            engine.close(engine_thread, Some(last));
            match engine.view().latched() {
                None => Ok(()),
                Some(reason) => Err(Fault::Io(format!("the ledger could not be closed: {reason}"))),
            }
        }
        End::Fault(reason) => {
            engine.view().wake_all();
            // Waiters get their 503 before the process, and with it their connections, ends.
            thread::sleep(FAULT_GRACE);
            engine.close(engine_thread, None);
            Err(Fault::Io(reason))
        }
    };
    signals.close();
    outcome
}

/// Everyone who can reach a port may use it, unless there are tokens; so that must be asked for.
fn check_exposure(config: &Serve, handed: &[SocketAddr], has_tokens: bool) -> Result<(), Fault> {
    if has_tokens || config.trust_network {
        return Ok(());
    }
    let given = config.listen.iter().map(|address| (format!("--listen {address}"), *address));
    let handed = handed.iter().map(|address| (format!("the service manager's socket {address}"), *address));
    match given.chain(handed).find(|(_, address)| !address.ip().to_canonical().is_loopback()) {
        Some((what, _)) => Err(Fault::Usage(format!(
            "{what} is not a loopback address: give --token-file, or --trust-network if everyone who can reach it may \
             submit jobs"
        ))),
        None => Ok(()),
    }
}

/// Creates the data directory and takes its lock, which lives as long as the file returned.
///
/// # Errors
/// [`Fault::InUse`], [`Fault::Io`].
pub fn take_data_dir(data: &Path) -> Result<File, Fault> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(data)
        .map_err(|error| io_fault("creating --data", data, &error))?;
    let parent = fs::canonicalize(data).ok().and_then(|path| path.parent().map(Path::to_owned));
    if let Some(parent) = parent {
        sync_dir(&parent).map_err(|error| io_fault("syncing", &parent, &error))?;
    }
    let path = data.join("LOCK");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o640)
        .open(&path)
        .map_err(|error| io_fault("opening", &path, &error))?;
    give_to_owner(&file, data);
    // `verify` makes none, and needs it to keep a removal away.
    make_backup_lock(data);
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match try_lock_exclusive(&file) {
            Ok(true) => return Ok(file),
            // A process that a killed agent was just starting holds its descriptors until it has become another program.
            Ok(false) if Instant::now() < deadline => thread::sleep(LOCK_LOOK),
            Ok(false) => {
                return Err(Fault::InUse(format!(
                    "{} is in use by another agent; stop it, or give this one a --data of its own",
                    data.display()
                )));
            }
            Err(error) => return Err(io_fault("locking", &path, &error)),
        }
    }
}

/// The sockets that a service manager has opened, if any; beside them, or else, those of `--listen`.
fn listen(config: &Serve, mut listeners: Vec<TcpListener>) -> Result<Vec<TcpListener>, Fault> {
    if !listeners.is_empty() && config.listen_is_default {
        return Ok(listeners);
    }
    for address in &config.listen {
        let is_there = |l: &TcpListener| l.local_addr().is_ok_and(|known| known == *address);
        if listeners.iter().any(is_there) {
            continue;
        }
        let listener = TcpListener::bind(address).map_err(|error| {
            let advice = "another program may have it; choose another --listen";
            Fault::Usage(format!("--listen {address}: {error}; {advice}"))
        })?;
        if let Err(error) = deepen_backlog(&listener, LISTEN_BACKLOG) {
            log::warn!("--listen {address}: connections beyond 128 cannot wait to be accepted: {error}");
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Reads the files of tokens, hosts, origins and images again. All of it is sound and comes into force, or nothing changes.
fn reload(config: &Serve, handed: &[SocketAddr], access: &Access, images: &Shared<Vec<String>>) {
    let read = || -> io::Result<_> { Ok((access.read_again()?, lists::expand("--allow-image", &config.allow_image)?)) };
    let outcome = read().map_err(|error| Fault::Usage(error.to_string())).and_then(|(rules, list)| {
        check_exposure(config, handed, rules.has_tokens())?;
        Ok((rules, list))
    });
    match outcome {
        Ok((rules, list)) => {
            let [tokens, hosts, origins] = rules.counts();
            let count = list.len();
            access.install(rules);
            images.set(list);
            log::info!(
                "SIGHUP: read again: {tokens} tokens, {hosts} hosts, {origins} origins and {count} images are allowed"
            );
        }
        Err(fault) => log::error!("SIGHUP: {}; what applied before still does", fault.code_and_message().1),
    }
}

fn watch_signals(
    ends: Sender<End>,
    reload: impl Fn() + Send + 'static,
) -> Result<signal_hook::iterator::Handle, Fault> {
    let fault = |error: io::Error| Fault::Io(format!("watching for signals: {error}"));
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(fault)?;
    let handle = signals.handle();
    thread::Builder::new()
        .name("signals".into())
        .stack_size(256 << 10)
        .spawn(move || {
            for signal in signals.forever() {
                if signal == SIGHUP {
                    reload();
                    continue;
                }
                let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
                let _ = ends.try_send(End::Asked(name));
            }
        })
        .map_err(fault)?;
    Ok(handle)
}

/// A service manager that cannot be told is no reason to end.
fn tell_manager(state: &str) {
    if let Err(error) = notify(state) {
        log::warn!("the service manager cannot be told {state}: {error}");
    }
}

fn wait_for_end(ended: &Receiver<End>) -> End {
    ended.recv().unwrap_or_else(|_| End::Fault("the agent's threads are gone".into()))
}

fn last_run(ledger: &Ledger, ending: &Ending) -> String {
    let word = match ending {
        Ending::Torn { .. } => "torn",
        Ending::Clean if ledger.log_id().is_none() => "none",
        Ending::Clean if ledger.node_is_up() => "killed",
        Ending::Clean => "clean",
    };
    word.to_owned()
}

fn begin_ledger(engine: &Engine, ended: &Receiver<End>) -> Result<String, Fault> {
    let mut id = [0; 16];
    random_bytes(&mut id).map_err(|error| Fault::Io(format!("the kernel's random source: {error}")))?;
    let log_id = crate::wal::hex(&id);
    record(engine, ended, Command::Genesis(Genesis { log_id: log_id.clone(), format: EVENT_FORMAT }))?;
    Ok(log_id)
}

/// Records an event of the agent's own start. On a full disk that takes until there is space, or a signal.
fn record(engine: &Engine, ended: &Receiver<End>, command: Command) -> Result<(), Fault> {
    let answer = engine.ask(command);
    let mut told = false;
    loop {
        match answer.wait_timeout(START_LOOK) {
            Ok(answer) => return answer.map(drop).map_err(|rejection| Fault::Io(rejection.message)),
            Err(RecvTimeoutError::Disconnected) => return Err(Fault::Io("the ledger thread is gone".into())),
            Err(RecvTimeoutError::Timeout) => {}
        }
        match ended.try_recv() {
            Ok(End::Asked(signal)) => return Err(Fault::Io(format!("{signal} came before the start was recorded"))),
            Ok(End::Fault(reason)) => return Err(Fault::Io(reason)),
            Err(_) if !told => log::warn!("the start is not recorded yet: is the disk below --data full?"),
            Err(_) => {}
        }
        told = true;
    }
}

fn io_fault(what: &str, path: &Path, error: &io::Error) -> Fault {
    Fault::Io(format!("{what} {}: {error}", path.display()))
}
