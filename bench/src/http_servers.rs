//! The servers under load, each a process of its own: an agent, and a minimal axum server.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Fault;

/// Longest wait for a server to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(10);

/// A server that ends with this value.
pub struct ServerProcess {
    child: Child,
    log: Option<PathBuf>,
    pub address: SocketAddr,
}

impl ServerProcess {
    /// An agent on a new data directory. Its engine cannot be reached, so that jobs stay RECEIVED and nothing but taking
    /// them in is measured.
    pub fn agent(binary: &Path, dir: &Path) -> Result<Self, Fault> {
        let log = dir.join("agent.log");
        let child = Command::new(binary)
            .arg("serve")
            .arg("--data")
            .arg(dir.join("data"))
            .args(["--listen", "127.0.0.1:0", "--pull", "never"])
            .env("DOCKER_HOST", "unix:///nonexistent")
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .map_err(|error| format!("starting {}: {error}", binary.display()))?;
        let mut server = Self { child, log: Some(log.clone()), address: ([127, 0, 0, 1], 0).into() };
        server.until("the agent listens", |server| {
            let text = fs::read_to_string(&log)?;
            let port = text.split("listening on http://127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
            if let Some(port) = port.and_then(|digits| digits.parse().ok()) {
                server.address.set_port(port);
            }
            Ok(server.address.port() != 0)
        })?;
        server
            .until("the agent is ready", |server| Ok(get(server.address, "/readyz")?.starts_with("HTTP/1.1 200 ")))?;
        Ok(server)
    }

    /// The same program as this, as the axum server.
    pub fn axum() -> Result<Self, Fault> {
        let mut child =
            Command::new(std::env::current_exe()?).arg("axum").stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let mut server = Self { child, log: None, address: ([127, 0, 0, 1], 0).into() };
        server.address = line.trim().parse().map_err(|_| format!("the axum server said {line:?}, not its address"))?;
        server.until("the axum server answers", |server| {
            Ok(get(server.address, "/healthz")?.contains("{\"ok\":true}"))
        })?;
        Ok(server)
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> Result<bool, Fault>) -> Result<(), Fault> {
        let end = Instant::now() + PATIENCE;
        while !holds(self)? {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{what}: it ended with {status}").into());
            }
            if Instant::now() > end {
                return Err(format!("{what}: not within {PATIENCE:?}").into());
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// What is to be known of it where something went wrong: whether it still runs, and the end of its log.
    pub fn state(&mut self) -> String {
        let log = self.log.as_ref().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let status = match self.child.try_wait() {
            Ok(None) => "it runs".to_owned(),
            Ok(Some(status)) => format!("it ended with {status}"),
            Err(error) => error.to_string(),
        };
        format!("{status}; its log ends with\n{}", lines[lines.len().saturating_sub(20)..].join("\n"))
    }

    /// CPU time used so far, in clock ticks of 10 ms.
    pub fn cpu(&self) -> Result<Duration, Fault> {
        let path = PathBuf::from(format!("/proc/{}/stat", self.child.id()));
        let text = fs::read_to_string(&path)?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).ok_or_else(|| format!("{} is malformed", path.display()))?;
        Ok(Duration::from_millis((user + system) * 10))
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Its data goes with it: there is nothing to end in good order.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own; the whole answer.
pub fn get(address: SocketAddr, path: &str) -> Result<String, Fault> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Serves `/healthz` as an axum program of a few lines does, and says where on stdout; never returns but with a fault.
pub fn serve_axum() -> Result<(), Fault> {
    use axum::serve::ListenerExt;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let healthz = || async { axum::Json(std::collections::BTreeMap::from([("ok", true)])) };
        let router = axum::Router::new().route("/healthz", axum::routing::get(healthz));
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        axum::serve(listener, router).await?;
        Ok(())
    })
}
