//! The real binary as a user meets it: a data directory, agents on it, and a plain HTTP client.
//!
//! `$HACKBRAIN_BIN` names another binary than the one Cargo has built. Needs `docker` on PATH to clean up, nothing else.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest wait for anything that must happen; far above what it takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A command that runs the binary. The environment is cleared of what would change its meaning.
pub fn hackbrain() -> Command {
    let binary = std::env::var("HACKBRAIN_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_hackbrain").to_owned());
    let mut command = Command::new(binary);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HACKBRAIN_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// The same command for the debug build, whatever `$HACKBRAIN_BIN` names: only that one has kill points.
pub fn debug_build(command: &Command) -> Command {
    let mut debug = Command::new(env!("CARGO_BIN_EXE_hackbrain"));
    debug.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => debug.env(name, value),
            None => debug.env_remove(name),
        };
    }
    debug
}

/// A job id that no other run of the tests uses.
pub fn job_id(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("t.{what}.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The least manifest there is: runs `command` in busybox, in a scratch directory.
pub fn manifest(job_id: &str, command: &[&str]) -> Value {
    json!({ "job_id": job_id, "image_hash": "busybox:latest", "command": command })
}

/// How a command ended that was expected to end by itself.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        // Both pipes are emptied while it runs, or it would block on a full one.
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = |from: &mut dyn Read| {
            let mut bytes = Vec::new();
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = thread::scope(|scope| {
            let stdout = scope.spawn(move || read(&mut out));
            let stderr = scope.spawn(move || read(&mut err));
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > deadline {
                    let _ = child.kill();
                }
                thread::sleep(Duration::from_millis(5));
            }
            (stdout.join().unwrap(), stderr.join().unwrap())
        });
        Self { code: child.wait().unwrap().code(), stdout, stderr }
    }
}

/// A data directory and a directory to mount from. Gone at the end, with the containers of its ledgers and no others.
pub struct Site {
    dir: PathBuf,
    log_ids: Mutex<BTreeSet<String>>,
}

impl Site {
    pub fn new(what: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hb-{}", job_id(what)));
        fs::create_dir_all(dir.join("root")).unwrap();
        // Some tests run the binary as nobody, whatever the umask.
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        Self { dir: dir.canonicalize().unwrap(), log_ids: Mutex::default() }
    }

    /// Parent of the data directory and of the root.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What is given as `--mount-root`.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// A new directory below the root.
    pub fn mountable(&self, name: &str) -> PathBuf {
        let path = self.root().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// `hackbrain serve` on this site, with an ephemeral port.
    pub fn serve(&self, args: &[&str]) -> Command {
        let mut command = hackbrain();
        command.arg("serve").arg("--data").arg(self.data()).arg("--mount-root").arg(self.root());
        command.args(["--segment-size", "4194304"]).args(args);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
    }

    /// An agent that answers. Panics with what it said where it does not come up.
    pub fn start(&self, args: &[&str]) -> Agent {
        self.start_command(&mut self.serve(args))
    }

    /// The same with a command from [`Site::serve`], e.g. with another environment.
    pub fn start_command(&self, command: &mut Command) -> Agent {
        let agent = Agent::spawn(command).unwrap_or_else(|said| panic!("the agent did not come up: {said}"));
        let genesis = self.dump(&[]).stdout;
        let genesis: Value = serde_json::from_str(genesis.lines().next().unwrap()).unwrap();
        self.log_ids.lock().unwrap().insert(genesis["detail"]["log_id"].as_str().unwrap().to_owned());
        agent
    }

    /// What the engine and the kernel still hold of this site's ledgers, where no agent runs and none is wanted: nothing.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left: Vec<String> = mounts_below(&self.dir).iter().map(|path| path.display().to_string()).collect();
        let said =
            |args: &[&str]| String::from_utf8(quietly(Command::new("docker").args(args)).unwrap().stdout).unwrap();
        for log_id in self.log_ids.lock().unwrap().iter() {
            let filter = format!("label=hackbrain.log={log_id}");
            left.extend(said(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]).lines().map(str::to_owned));
            let pins = said(&["images", "--format", "{{.Repository}}:{{.Tag}}", "hackbrain/pin"]);
            left.extend(pins.lines().filter(|pin| pin.contains(&log_id[..8])).map(str::to_owned));
            left.extend(groups_of(log_id).iter().map(|path| path.display().to_string()));
        }
        left
    }

    /// Removes this ledger's containers at the end, too: that of an agent which was not started by [`Site::start`].
    pub fn cleans_up(&self, agent: &Agent) {
        let log_id = agent.get("/api/node").json()["log_id"].as_str().unwrap().to_owned();
        self.log_ids.lock().unwrap().insert(log_id);
    }

    /// Runs an agent that must not come up.
    pub fn refused(&self, args: &[&str]) -> Ended {
        Ended::of(&mut self.serve(args))
    }

    pub fn verify(&self, args: &[&str]) -> Ended {
        Ended::of(hackbrain().arg("verify").arg("--data").arg(self.data()).args(args))
    }

    pub fn dump(&self, args: &[&str]) -> Ended {
        Ended::of(hackbrain().arg("dump").arg("--data").arg(self.data()).args(args))
    }

    /// The ledger's segments in order.
    pub fn segments(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.data().join("wal")).unwrap().map(|entry| entry.unwrap().path());
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let mut segments: Vec<_> = files.filter(is_segment).collect();
        segments.sort();
        assert!(!segments.is_empty(), "the ledger has no segment");
        segments
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for log_id in self.log_ids.lock().unwrap().iter() {
            let filter = format!("label=hackbrain.log={log_id}");
            let Ok(found) = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output() else { continue };
            for id in String::from_utf8_lossy(&found.stdout).split_whitespace() {
                let _ = quietly(Command::new("docker").args(["rm", "-f", id]));
            }
            // What a killed agent has left: control groups, once the containers' own are gone, and names of images.
            for _ in 0..20 {
                for group in groups_of(log_id) {
                    for attempt in fs::read_dir(&group).into_iter().flatten().flatten() {
                        let _ = fs::remove_dir(attempt.path());
                    }
                    let _ = fs::remove_dir(&group);
                }
                if groups_of(log_id).is_empty() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            let Ok(pins) = Command::new("docker").args(["images", "--format", "{{.Tag}}", "hackbrain/pin"]).output()
            else {
                continue;
            };
            for tag in String::from_utf8_lossy(&pins.stdout).lines().filter(|tag| tag.starts_with(&log_id[..8])) {
                let name = format!("hackbrain/pin:{tag}");
                let _ = quietly(Command::new("docker").args(["rmi", "--no-prune", &name]));
            }
        }
        // What is still bound here would otherwise be emptied by the removal.
        for below in mounts_below(&self.dir).iter().rev() {
            let _ = quietly(Command::new("umount").arg(below));
        }
        if mounts_below(&self.dir).is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn quietly(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).output()
}

/// A ledger's control groups.
fn groups_of(log_id: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
    hierarchies.map(|path| path.join(format!("hackbrain-{}", &log_id[..8]))).filter(|path| path.exists()).collect()
}

fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(|place| PathBuf::from(unescape(place)));
    places.filter(|place| place.starts_with(dir)).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits after a backslash.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    pub address: SocketAddr,
    said: Arc<Said>,
}

#[derive(Default)]
struct Said {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Agent {
    /// Starts `command` and waits until it says where it listens; an error is what it said instead.
    pub fn spawn(command: &mut Command) -> Result<Self, String> {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let said = Arc::new(Said::default());
        let hears = said.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                hears.text.lock().unwrap().0 += &(line + "\n");
                hears.changed.notify_all();
            }
            hears.text.lock().unwrap().1 = true;
            hears.changed.notify_all();
        });
        let sign = "listening on http://";
        let waits = |(text, ended): &mut (String, bool)| {
            !*ended && !text.split_once(sign).is_some_and(|(_, rest)| rest.contains('\n'))
        };
        let (heard, _) = said.changed.wait_timeout_while(said.text.lock().unwrap(), PATIENCE, waits).unwrap();
        let address = heard.0.split_once(sign).and_then(|(_, rest)| rest.split([',', ' ']).next()?.parse().ok());
        let text = heard.0.clone();
        drop(heard);
        let Some(address) = address else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(text);
        };
        Ok(Self { child, address, said })
    }

    /// What it has said on standard error so far.
    pub fn said(&self) -> String {
        self.said.text.lock().unwrap().0.clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory in KiB, as its `/proc` file `status` tells it: `VmRSS` now, `VmHWM` at most so far.
    pub fn memory_kib(&self, field: &str) -> u64 {
        self.status(field)
    }

    /// A number of its `/proc` file `status`, without the unit: `Threads`.
    pub fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let told = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let told = told.unwrap_or_else(|| panic!("{field} in {status}"));
        told.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(quietly(Command::new("kill").args(["-TERM", &pid])).unwrap().status.success());
        let deadline = Instant::now() + PATIENCE;
        while self.is_running() {
            assert!(Instant::now() < deadline, "SIGTERM does not end it: {}", self.said());
            thread::sleep(Duration::from_millis(5));
        }
        self.child.wait().unwrap().code()
    }

    /// Waits for an end that must come by itself.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the agent ends by itself", || self.child.try_wait().unwrap())
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// One request on a connection of its own. `Host`, `Connection: close` and, for POST, `Content-Length` are added where
    /// `headers` does not have them.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !has("Host") {
            head += &format!("Host: {}\r\n", self.address);
        }
        if method == "POST" && !has("Content-Length") && !has("Transfer-Encoding") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        self.raw(&[head.as_bytes(), b"\r\n", body].concat())
    }

    /// Sends exactly these bytes and reads one answer, up to the close of the connection.
    pub fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // Whoever is refused in the middle of a body is told so; not all of it need be taken.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let outcome = stream.read_to_end(&mut answer);
        Answer::parse(&answer).unwrap_or_else(|| panic!("no answer: {outcome:?} {}", String::from_utf8_lossy(&answer)))
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.request("POST", path, &[("Content-Type", "application/json")], body)
    }

    pub fn submit(&self, manifest: &Value) -> Answer {
        self.post("/api/submit_job", manifest.to_string().as_bytes())
    }

    /// Submits what must be accepted, to an agent that may die at any moment: the receipt, if one came.
    pub fn try_submit(&self, manifest: &Value) -> Option<Value> {
        let body = manifest.to_string();
        let head = format!(
            "POST /api/submit_job HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut stream = TcpStream::connect_timeout(&self.address, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all((head + &body).as_bytes()).ok()?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).ok()?;
        let answer = Answer::parse(&bytes)?;
        assert_eq!(answer.status, 200, "{manifest}: {}", answer.text());
        Some(answer.json())
    }

    /// Submits what must be accepted; the receipt.
    pub fn accepted(&self, manifest: &Value) -> Value {
        let answer = self.submit(manifest);
        assert_eq!(answer.status, 200, "{manifest}: {}", answer.text());
        answer.json()
    }

    /// The job's summary once it has ended.
    pub fn ended(&self, job_id: &str) -> Value {
        let job = self.get(&format!("/api/jobs/{job_id}?wait=SEALED&timeout_s=50")).json();
        assert_eq!(job["phase"], "ended", "{job}\n{}", self.said());
        job
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut answer = Self { status, headers, body: bytes[end + 4..].to_vec() };
        if answer.header("transfer-encoding").is_some() {
            answer.body = unchunk(&answer.body)?;
        }
        Some(answer)
    }

    pub fn header(&self, lower_name: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == lower_name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// `None` where the last chunk has not come: the answer was cut off.
fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        let chunk = rest.get(end + 2..end + 2 + size)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}

/// Asks until the answer is `Some`.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never came about: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
