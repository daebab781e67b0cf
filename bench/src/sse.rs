//! The event stream: how long after it is durable an event is with each of many subscribers, beside a bare broadcaster that
//! writes as many bytes to as many sockets at the same pace.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hackbrain::sys::socket::{Poller, receive_now, send_now};

use crate::stats::{Spread, grouped, percentile};
use crate::{Fault, INTERRUPTED};

/// Connections that submit.
const SUBMITTERS: usize = 8;
/// Of subscribers, so many use IPv4, the others IPv6: no address has more connections than it may.
const SUBSCRIBERS_V4: usize = 246;
/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same pause between writes as the agent's.
const ROUND: Duration = Duration::from_millis(2);

/// What is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    pub agent: PathBuf,
    pub subscribers: usize,
    /// Subscribers beside them that never read.
    pub silent: usize,
    pub per_second: u64,
    pub seconds: u64,
    pub rounds: usize,
}

/// When every event reached every subscriber, as nanoseconds since `epoch`.
struct Arrivals {
    /// Seq of the first event that counts.
    first: u64,
    events: usize,
    at: Vec<Vec<u64>>,
}

/// One subscriber's stream, as far as it was read.
struct Reader {
    socket: TcpStream,
    /// An unfinished line.
    rest: Vec<u8>,
    got: usize,
    tail: [u8; 5],
    ended: bool,
}

/// Reads all streams in one thread until `events` have reached everyone, then until they end.
fn read_all(
    sockets: Vec<TcpStream>,
    epoch: Instant,
    first: u64,
    events: usize,
    all_there: &AtomicBool,
) -> Result<Arrivals, Fault> {
    let poller = Poller::new()?;
    let mut readers = Vec::with_capacity(sockets.len());
    for (token, socket) in sockets.into_iter().enumerate() {
        poller.add(&socket, token as u64)?;
        readers.push(Reader { socket, rest: Vec::new(), got: 0, tail: [0; 5], ended: false });
    }
    let mut arrivals = Arrivals { first, events, at: vec![Vec::with_capacity(events); readers.len()] };
    let (mut ready, mut piece) = (Vec::new(), vec![0; 256 << 10]);
    let (mut whole, mut ended) = (0, 0);
    while ended < readers.len() {
        poller.wait(Some(Duration::from_millis(100)), &mut ready)?;
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        for token in &ready {
            let token = *token as usize;
            let reader = &mut readers[token];
            while let Some(count) = receive_now(&reader.socket, &mut piece)? {
                if count == 0 {
                    if reader.tail != *b"0\r\n\r\n" || reader.got < events {
                        return Err(format!("stream {token} was cut after {} of {events} events", reader.got).into());
                    }
                    (reader.ended, ended) = (true, ended + usize::from(!reader.ended));
                    break;
                }
                let now = epoch.elapsed().as_nanos() as u64;
                let before = reader.got;
                reader.take(&piece[..count], now, &mut arrivals, token)?;
                whole += usize::from(before < events && reader.got >= events);
            }
        }
        if whole == readers.len() {
            all_there.store(true, Ordering::SeqCst);
        }
    }
    Ok(arrivals)
}

impl Reader {
    fn take(&mut self, bytes: &[u8], now: u64, arrivals: &mut Arrivals, token: usize) -> Result<(), Fault> {
        for byte in &bytes[bytes.len().saturating_sub(5)..] {
            self.tail.rotate_left(1);
            self.tail[4] = *byte;
        }
        let mut left = bytes;
        while !left.is_empty() {
            let mut after = left;
            let length = after.skip_until(b'\n')?;
            let line = &left[..length];
            left = after;
            if !line.ends_with(b"\n") {
                self.rest.extend_from_slice(line);
                return Ok(());
            }
            let joined;
            let line = if self.rest.is_empty() {
                line
            } else {
                self.rest.extend_from_slice(line);
                joined = std::mem::take(&mut self.rest);
                &joined
            };
            let Some(id) = line.strip_prefix(b"id: ") else { continue };
            let id: u64 = std::str::from_utf8(id)?.trim().parse()?;
            if id < arrivals.first {
                continue;
            }
            if id != arrivals.first + self.got as u64 {
                return Err(format!("subscriber {token} got {id} where {} was next", self.got).into());
            }
            self.got += 1;
            if self.got <= arrivals.events {
                arrivals.at[token].push(now);
            }
        }
        Ok(())
    }
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    fn of(arrivals: &Arrivals, began: &[i64]) -> Result<Self, Fault> {
        let all = arrivals.at.iter().flat_map(|at| at.iter().zip(began).map(|(at, began)| *at as i64 - began));
        let mut all: Vec<i64> = all.collect();
        all.sort_unstable();
        let at = |share| percentile(&all, share).map(|ns| ns as f64 / 1e6).ok_or("nothing was received");
        Ok(Self { p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }

    fn medians(rounds: &[Self]) -> Option<Self> {
        let median = |of: fn(&Self) -> f64| Spread::of(rounds.iter().map(of)).map(|spread| spread.median);
        Some(Self { p50: median(|l| l.p50)?, p99: median(|l| l.p99)?, max: median(|l| l.max)? })
    }
}

/// A directory that goes when this value goes.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Agent {
    child: Child,
    addresses: Vec<SocketAddr>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    fn start(binary: &Path, data: &Path) -> Result<Self, Fault> {
        let mut command = Command::new(binary);
        command.arg("serve").arg("--data").arg(data).args(["--listen", "127.0.0.1:0", "--listen", "[::1]:0"]);
        // No container engine: the jobs stay RECEIVED, and one submission is one event.
        command.env("DOCKER_HOST", "unix:///nonexistent").env("RUST_LOG", "info");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stderr.take().ok_or("no standard error")?);
        let mut agent = Self { child, addresses: Vec::new() };
        let mut line = String::new();
        while agent.addresses.is_empty() {
            line.clear();
            if said.read_line(&mut line)? == 0 {
                return Err(format!("{} did not start", binary.display()).into());
            }
            let Some((_, addresses)) = line.split_once("listening on ") else { continue };
            let words = addresses.split([',', ' ']).filter_map(|word| word.strip_prefix("http://"));
            agent.addresses = words.map(str::parse).collect::<Result<_, _>>()?;
        }
        // Who does not take what it says would hold it up.
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(agent)
    }

    fn connect(&self, number: usize) -> Result<TcpStream, Fault> {
        let address = self.addresses[usize::from(number >= SUBSCRIBERS_V4)];
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let request = format!("GET /api/events?after=0 HTTP/1.1\r\nHost: {address}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        Ok(socket)
    }

    fn peak_kib(&self) -> Result<u64, Fault> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    fn cpu_seconds(&self) -> Result<f64, Fault> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / hackbrain::sys::peer::ticks_per_second() as f64)
    }

    fn get(&self, path: &str) -> Result<String, Fault> {
        let mut socket = TcpStream::connect(self.addresses[0])?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let host = self.addresses[0];
        socket.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
        if head.starts_with("HTTP/1.1 200 ") { Ok(body.to_owned()) } else { Err(head.to_owned().into()) }
    }
}

/// Submits one job, and gives its seq.
fn submit(socket: &mut TcpStream, host: SocketAddr, id: &str) -> Result<u64, Fault> {
    let body = format!(r#"{{"job_id":"{id}","image_hash":"busybox","command":["true"]}}"#);
    let request = format!(
        "POST /api/submit_job HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = socket.read(&mut piece)?;
        answer.extend_from_slice(&piece[..count]);
        let text = std::str::from_utf8(&answer)?;
        if let Some((head, body)) = text.split_once("\r\n\r\n").filter(|(_, body)| body.ends_with('}')) {
            if !head.starts_with("HTTP/1.1 200 ") {
                return Err(format!("a submission was refused: {body}").into());
            }
            let seq = body.split("\"seq\":").nth(1).ok_or("an answer without seq")?;
            let digits = seq.split(|c: char| !c.is_ascii_digit()).next().unwrap_or("");
            return Ok(digits.parse()?);
        }
        if count == 0 {
            return Err("the agent hung up".into());
        }
    }
}

/// Waits until it is time for the next of the paced events; how late it is then does not shift the others.
fn wait_for(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}

struct Outcome {
    by_answer: Latency,
    by_time: Latency,
    submit_ms: f64,
    drain_ms: f64,
    cut: usize,
    cores: f64,
    peak_kib: u64,
}

fn agent_round(plan: &Plan, dir: &Path) -> Result<Outcome, Fault> {
    let place = Place(dir.join(format!("hackbrain-bench-sse-{}", std::process::id())));
    std::fs::create_dir_all(&place.0)?;
    let mut agent = Agent::start(&plan.agent, &place.0.join("data"))?;
    let head = agent.get("/api/ledger/head")?;
    let digits = head.split("\"seq\":").nth(1).and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
    let mut first = digits.ok_or("no head")?.parse::<u64>()? + 1;
    let silent: Vec<TcpStream> =
        (0..plan.silent).map(|number| agent.connect(SUBSCRIBERS_V4 + number)).collect::<Result<_, _>>()?;
    let numbers = (0..SUBSCRIBERS_V4).chain(SUBSCRIBERS_V4 + plan.silent..);
    let sockets: Vec<TcpStream> =
        numbers.take(plan.subscribers).map(|number| agent.connect(number)).collect::<Result<_, _>>()?;
    let events = (plan.per_second * plan.seconds) as usize;
    let (epoch, wall) = (Instant::now(), SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as i64);
    // One that is not counted: NODE_UP comes while the agent is already listening.
    let mut socket = TcpStream::connect(agent.addresses[0])?;
    first = first.max(submit(&mut socket, agent.addresses[0], "warm-up")? + 1);
    drop(socket);
    let answered = Mutex::new(vec![0_i64; events]);
    let submit_ns = Mutex::new(Vec::with_capacity(events));
    let (next, all_there, stopped) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(None));
    let cpu = agent.cpu_seconds()?;
    let (arrivals, ended, texts, cores, peak_kib) = thread::scope(|scope| {
        let all_there = &all_there;
        let reading = scope.spawn(move || {
            let arrivals = read_all(sockets, epoch, first, events, all_there);
            // Nobody waits for what does not come.
            all_there.store(true, Ordering::SeqCst);
            (arrivals, Instant::now())
        });
        let began = Instant::now() + Duration::from_millis(300);
        let (agent_ref, next, answered, submit_ns) = (&agent, &next, &answered, &submit_ns);
        let submitters: Vec<_> = (0..SUBMITTERS)
            .map(|_| {
                scope.spawn(move || -> Result<(), Fault> {
                    let host = agent_ref.addresses[0];
                    let mut socket = TcpStream::connect(host)?;
                    socket.set_nodelay(true)?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= events as u64 || INTERRUPTED.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        wait_for(began + Duration::from_nanos(number * 1_000_000_000 / plan.per_second));
                        let sent = Instant::now();
                        let seq = submit(&mut socket, host, &format!("job-{number}"))?;
                        let at = epoch.elapsed().as_nanos() as i64;
                        submit_ns.lock().unwrap_or_else(PoisonError::into_inner).push(sent.elapsed().as_nanos() as u64);
                        answered.lock().unwrap_or_else(PoisonError::into_inner)[(seq - first) as usize] = at;
                    }
                })
            })
            .collect();
        for submitter in submitters {
            submitter.join().map_err(|_| "a submitter panicked")??;
        }
        let deadline = Instant::now() + PATIENCE;
        while !all_there.load(Ordering::SeqCst) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        let cores = (agent.cpu_seconds()? - cpu) / began.elapsed().as_secs_f64();
        let texts = agent.get(&format!("/api/ledger?from={first}&limit={events}"))?;
        let peak_kib = agent.peak_kib()?;
        *stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Command::new("kill").args(["-TERM", &agent.child.id().to_string()]).status()?;
        let (arrivals, ended) = reading.join().map_err(|_| "the reader panicked")?;
        Ok::<_, Fault>((arrivals?, ended, texts, cores, peak_kib))
    })?;
    let stopped = stopped.into_inner().unwrap_or_else(PoisonError::into_inner).ok_or("it was not stopped")?;
    agent.child.wait()?;
    let mut times = Vec::with_capacity(events);
    for line in texts.lines() {
        let text = line.split("\"time\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let time = text.and_then(hackbrain::ledger::time::Time::parse).ok_or("an event without time")?;
        times.push(time.0 as i64 * 1000 - wall);
    }
    let answered = answered.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut submit_ns = submit_ns.into_inner().unwrap_or_else(PoisonError::into_inner);
    submit_ns.sort_unstable();
    let mut scratch = vec![0; 64 << 10];
    let is_cut = |socket: &TcpStream, scratch: &mut [u8]| {
        let mut last = Vec::new();
        loop {
            match receive_now(socket, scratch) {
                Ok(Some(0)) => return !last.ends_with(b"0\r\n\r\n"),
                Ok(Some(count)) => last = scratch[count.saturating_sub(5)..count].to_vec(),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    };
    let cut = silent.iter().filter(|socket| is_cut(socket, &mut scratch)).count();
    Ok(Outcome {
        by_answer: Latency::of(&arrivals, &answered)?,
        by_time: Latency::of(&arrivals, &times)?,
        submit_ms: percentile(&submit_ns, 0.5).unwrap_or(0) as f64 / 1e6,
        drain_ms: ended.saturating_duration_since(stopped).as_secs_f64() * 1e3,
        cut,
        cores,
        peak_kib,
    })
}

/// The same bytes, sockets and pace, and nothing else: from the time at which an event is due.
fn floor_round(plan: &Plan) -> Result<Latency, Fault> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for _ in 0..plan.subscribers {
        clients.push(TcpStream::connect(address)?);
        let (server, _) = listener.accept()?;
        server.set_nodelay(true)?;
        servers.push(server);
    }
    let events = (plan.per_second * plan.seconds) as usize;
    let epoch = Instant::now();
    let all_there = AtomicBool::new(false);
    let due: Vec<i64> =
        (0..events as u64).map(|n| (300_000_000 + n * 1_000_000_000 / plan.per_second) as i64).collect();
    // About as long as the agent's event of such a job.
    let data = "x".repeat(480);
    let arrivals = thread::scope(|scope| {
        let all_there = &all_there;
        let reading = scope.spawn(move || read_all(clients, epoch, 1, events, all_there));
        let (mut sent, mut text) = (0, String::new());
        while sent < events {
            let now = epoch.elapsed().as_nanos() as i64;
            text.clear();
            while sent < events && due[sent] <= now {
                let message = format!("id: {}\ndata: {data}\n\n", sent + 1);
                write!(text, "{:x}\r\n{message}\r\n", message.len())?;
                sent += 1;
            }
            if text.is_empty() {
                wait_for(epoch + Duration::from_nanos(due[sent] as u64));
                continue;
            }
            for server in &servers {
                if send_now(server, text.as_bytes())? < text.len() {
                    return Err(Fault::from("the floor's own socket was full"));
                }
            }
            wait_for(epoch + Duration::from_nanos(now as u64) + ROUND);
        }
        for server in &servers {
            send_now(server, b"0\r\n\r\n")?;
        }
        drop(servers);
        reading.join().map_err(|_| Fault::from("the reader panicked"))?
    })?;
    Latency::of(&arrivals, &due)
}

/// Measures, and prints a table.
pub fn run(dir: &Path, plan: &Plan) -> Result<(), Fault> {
    hackbrain::sys::block::raise_descriptor_limit()?;
    let events = grouped((plan.per_second * plan.seconds) as f64);
    println!(
        "{} events/s to {} subscribers, and {} that never read; {events} events a round, medians of {} rounds, ms",
        plan.per_second, plan.subscribers, plan.silent, plan.rounds
    );
    let (mut floors, mut outcomes) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        floors.push(floor_round(plan)?);
        outcomes.push(agent_round(plan, dir)?);
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
    println!("\n| from → received by a subscriber | p50 | p99 | max |\n|---|---|---|---|");
    let of = |pick: fn(&Outcome) -> Latency| outcomes.iter().map(pick).collect::<Vec<_>>();
    for (name, rounds) in [
        ("bare broadcaster: due", floors),
        ("agent: the submitter has the answer", of(|o| o.by_answer)),
        ("agent: the event's own `time`, before fdatasync", of(|o| o.by_time)),
    ] {
        let Latency { p50, p99, max } = Latency::medians(&rounds).ok_or("no round")?;
        let worst = rounds.iter().map(|round| round.p99).fold(0.0, f64::max);
        println!("| {name} | {p50:.2} | {p99:.2} (worst round {worst:.2}) | {max:.2} |");
    }
    let median = |of: fn(&Outcome) -> f64| Spread::of(outcomes.iter().map(of)).map_or(0.0, |spread| spread.median);
    println!(
        "\nsubmission p50 {:.2} ms; agent {:.2} cores, peak {} KiB; SIGTERM to the last stream's proper end {:.0} ms; \
         {} of {} silent ones cut",
        median(|o| o.submit_ms),
        median(|o| o.cores),
        grouped(median(|o| o.peak_kib as f64)),
        median(|o| o.drain_ms),
        median(|o| o.cut as f64),
        plan.silent
    );
    Ok(())
}
