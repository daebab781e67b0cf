//! Untrusted JSON → [`Manifest`] and its canonical form. Pure.

mod batch;
mod fields;
mod mount_spec;
mod place;
mod reference;
mod strict_json;

use crate::canonical::to_canonical;
use crate::hash::Hash;
use crate::rejection::Rejection;
use fields::{Fields, integer, string, strings};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

pub use batch::{MAX_JOBS, parse_all};
pub use mount_spec::MAX_MOUNTS;
pub use place::{Place, PlaceSource, scratch, staged};
pub use reference::is_job_id;

/// Longest body, and longest canonical manifest, in bytes.
pub const MAX_BODY_BYTES: usize = 1 << 20;
/// Strings in `command` at most.
pub const MAX_COMMAND_STRINGS: usize = 256;
/// Entries of `env` at most.
pub const MAX_ENV_ENTRIES: usize = 1024;
/// Job ids in `depends_on` at most.
pub const MAX_DEPENDS_ON: usize = 1024;
/// Longest single string of `command`, or `NAME=value` of `env`, in bytes: Linux's MAX_ARG_STRLEN less its NUL.
pub const MAX_ARGUMENT_BYTES: usize = 131_071;
/// All of `command` and `env` together, in bytes: a quarter of the least ARG_MAX, since the engine's own flags share it.
pub const MAX_ARGUMENTS_BYTES: usize = 512 << 10;
/// `max_attempts` where the manifest gives none.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 3;
/// Highest `max_attempts`.
pub const MAX_ATTEMPTS: u32 = 100;
/// Highest `timeout_s`: a year of 365 days, in seconds.
pub const MAX_TIMEOUT_S: u64 = 31_536_000;
/// Fewest `cpus`: the least the kernel's CFS quota can express.
pub const MIN_CPUS: f64 = 0.01;
/// Most `cpus`.
pub const MAX_CPUS: f64 = 65_536.0;
/// Least `memory_mib`: the engine refuses less.
pub const MIN_MEMORY_MIB: u64 = 6;
/// Most `memory_mib`: a pebibyte.
pub const MAX_MEMORY_MIB: u64 = 1 << 30;
/// Most `pids`: Linux's own limit.
pub const MAX_PIDS: u64 = 1 << 22;
/// Most `gpus`.
pub const MAX_GPUS: u32 = 1024;

const FIELDS: [&str; 11] = [
    "job_id",
    "image_hash",
    "command",
    "mount_spec",
    "env",
    "depends_on",
    "resources",
    "timeout_s",
    "max_attempts",
    "network",
    "reproduces",
];
const RESOURCES: [&str; 4] = ["cpus", "memory_mib", "pids", "gpus"];

/// A validated job manifest (contract §3).
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `[A-Za-z0-9][A-Za-z0-9_.-]{0,99}`.
    pub job_id: String,
    /// Tag, `name@sha256:…` or `sha256:<image id>`, as the user wrote it.
    pub image_hash: String,
    /// 1 to 256 strings; what runs in the container.
    pub command: Vec<String>,
    /// In the user's order; the first is the working directory. Empty: a scratch directory at `/job/workdir`.
    pub mounts: Vec<Mount>,
    /// Environment of the payload, sorted by name.
    pub env: BTreeMap<String, String>,
    /// Job ids that must be SEALED first.
    pub depends_on: Vec<String>,
    /// Limits asked for.
    pub resources: Resources,
    /// Seconds per attempt; none means without limit.
    pub timeout_s: Option<u64>,
    /// Attempts at most, 1 or more.
    pub max_attempts: u32,
    /// Whether the payload may reach a network.
    pub network: Network,
    /// The sealed job whose execution this one repeats: what it may write begins as a copy of that job's inputs.
    pub reproduces: Option<String>,
}

/// One entry of `mount_spec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path inside the container.
    pub container: String,
    /// `:ro`.
    pub read_only: bool,
}

/// The left side of a `mount_spec` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// An absolute directory on the host.
    Host(String),
    /// The sealed artifacts of a parent job.
    Job(String),
}

/// `resources`; `None` means the agent's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// CPUs, e.g. 1.5.
    pub cpus: Option<f64>,
    /// Memory in MiB, swap included.
    pub memory_mib: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// GPUs.
    pub gpus: Option<u32>,
}

/// `network`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// No network but loopback.
    #[default]
    None,
    /// Docker's bridge; only where the agent allows it.
    Bridge,
}

impl Manifest {
    /// The jobs this one needs: `depends_on`, and those whose artifacts it mounts.
    pub fn parents(&self) -> BTreeSet<&str> {
        let mounted = self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Job(job_id) => Some(job_id.as_str()),
            MountSource::Host(_) => None,
        });
        self.depends_on.iter().map(String::as_str).chain(mounted).collect()
    }
}

impl Mount {
    /// `ro` or `rw`, as hashes and listings write it.
    pub fn mode(&self) -> &'static str {
        if self.read_only { "ro" } else { "rw" }
    }
}

impl Network {
    /// As the manifest writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bridge => "bridge",
        }
    }
}

impl Resources {
    /// The limits that were asked for, as the manifest writes them.
    pub fn to_json(&self) -> Value {
        let members = [
            ("cpus", self.cpus.map(Value::from)),
            ("memory_mib", self.memory_mib.map(Value::from)),
            ("pids", self.pids.map(Value::from)),
            ("gpus", self.gpus.map(Value::from)),
        ];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// A manifest that passed every check, with the bytes that stand for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// What was asked for, defaults filled in.
    pub manifest: Manifest,
    /// RFC 8785 of the fields that were given: nulls dropped, `mount_spec` a list, its `:rw` left out. [`parse`] accepts
    /// this text and gives it back unchanged.
    pub canonical: String,
    /// SHA-256 of `canonical`.
    pub hash: Hash,
}

/// Checks a submitted body against contract §3.
///
/// # Errors
/// Status 400 and one of the codes `not_json`, `not_an_object`, `duplicate_field`, `unknown_field`, `missing_field`,
/// `wrong_type`, `invalid_value`, `invalid_mount`, `too_large`; `field` is a path such as `command[2]` or `env.HOME`.
pub fn parse(body: &[u8]) -> Result<Parsed, Rejection> {
    if body.len() > MAX_BODY_BYTES {
        return Err(reject(
            "too_large",
            format!("the manifest has {} bytes; at most {MAX_BODY_BYTES} are accepted", body.len()),
        ));
    }
    let Value::Object(object) = strict_json::parse(body)? else {
        return Err(reject(
            "not_an_object",
            "the body must be one JSON object: {\"job_id\": …, \"image_hash\": …, \"command\": […]}",
        ));
    };
    let mut fields = Fields::new(object, "", &FIELDS)?;

    let job_id =
        fields.required("job_id", |field, value| string(field, value).and_then(|id| check_job_id(field, id)))?;
    let image_hash = fields.required("image_hash", |field, value| {
        let image = string(field, value)?;
        match reference::image_fault(&image) {
            Some(fault) => Err(invalid(field, format!("is no image reference: {}; {fault}", quoted(&image)))),
            None => Ok(image),
        }
    })?;
    let command = fields.required("command", parse_command)?;
    let mounts = fields.optional("mount_spec", parse_mounts)?;
    let env = fields.optional("env", parse_env)?;
    let depends_on = fields.optional("depends_on", |field, value| parse_depends_on(field, value, &job_id))?;
    let resources = fields.optional("resources", parse_resources)?;
    let timeout_s = fields.optional("timeout_s", |field, value| integer(field, &value, 1, MAX_TIMEOUT_S))?;
    let max_attempts = fields.optional("max_attempts", |field, value| small(field, &value, 1, MAX_ATTEMPTS))?;
    let network = fields.optional("network", parse_network)?;
    let reproduces = fields.optional("reproduces", |field, value| {
        let of = string(field, value).and_then(|id| check_job_id(field, id))?;
        if of == job_id { Err(invalid(field, "is the job's own id; name the job to repeat")) } else { Ok(of) }
    })?;
    check_arguments(&command, env.as_ref())?;
    if mounts.iter().flatten().any(|mount| mount.source == MountSource::Job(job_id.clone())) {
        return Err(reject(
            "invalid_mount",
            format!("a job cannot mount its own artifacts ({job_id} → {job_id}); name a parent job"),
        )
        .field("mount_spec"));
    }
    check_scratch(mounts.as_deref().unwrap_or_default())?;

    let mut given = json!({ "job_id": job_id, "image_hash": image_hash, "command": command });
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            given[name] = value;
        }
    };
    put("mount_spec", mounts.as_ref().map(|mounts| mounts.iter().map(mount_spec::to_text).collect()));
    put("env", env.as_ref().map(|env| json!(env)));
    put("depends_on", depends_on.as_ref().map(|ids| json!(ids)));
    put("resources", resources.as_ref().map(Resources::to_json));
    put("timeout_s", timeout_s.map(Value::from));
    put("max_attempts", max_attempts.map(Value::from));
    put("network", network.map(|network| network.as_str().into()));
    put("reproduces", reproduces.as_ref().map(|of| json!(of)));
    let canonical = to_canonical(&given)
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .filter(|text| text.len() <= MAX_BODY_BYTES)
        .ok_or_else(|| {
            reject("too_large", format!("the canonical manifest may have at most {MAX_BODY_BYTES} bytes"))
        })?;

    let manifest = Manifest {
        job_id,
        image_hash,
        command,
        mounts: mounts.unwrap_or_default(),
        env: env.unwrap_or_default(),
        depends_on: depends_on.unwrap_or_default(),
        resources: resources.unwrap_or_default(),
        timeout_s,
        max_attempts: max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS),
        network: network.unwrap_or_default(),
        reproduces,
    };
    Ok(Parsed { manifest, hash: Hash::of(canonical.as_bytes()), canonical })
}

fn check_job_id(field: &str, id: String) -> Result<String, Rejection> {
    if is_job_id(&id) {
        return Ok(id);
    }
    Err(invalid(
        field,
        format!(
            "is {}; a job id begins with a letter or digit, goes on with letters, digits, `_`, `.`, `-`, and has at most 100 characters",
            quoted(&id)
        ),
    ))
}

fn parse_command(field: &str, value: Value) -> Result<Vec<String>, Rejection> {
    let command = strings(field, value)?;
    if command.is_empty() {
        return Err(invalid(field, "is empty; give the program and its arguments, e.g. [\"python\", \"main.py\"]"));
    }
    if command.len() > MAX_COMMAND_STRINGS {
        return Err(invalid(
            field,
            format!(
                "has {} strings; at most {MAX_COMMAND_STRINGS} are accepted: put the rest into a script",
                command.len()
            ),
        ));
    }
    if command[0].is_empty() {
        return Err(invalid(&format!("{field}[0]"), "is empty; it names the program to run"));
    }
    Ok(command)
}

/// A string or a list of strings; no two mounts may meet in the container.
fn parse_mounts(field: &str, value: Value) -> Result<Vec<Mount>, Rejection> {
    let entries: Vec<(String, String)> = match value {
        Value::String(entry) => vec![(field.to_owned(), entry)],
        Value::Array(_) => {
            let entries = strings(field, value)?;
            entries.into_iter().enumerate().map(|(index, entry)| (format!("{field}[{index}]"), entry)).collect()
        }
        other => {
            return Err(fields::wrong_type(field, "a string \"HOST:CONTAINER\" or a list of such strings", &other));
        }
    };
    if entries.len() > MAX_MOUNTS {
        return Err(invalid_mount(field, format!("has {} mounts; at most {MAX_MOUNTS} are accepted", entries.len())));
    }
    let mut mounts: Vec<Mount> = Vec::new();
    for (field, entry) in entries {
        let mount = mount_spec::parse(&entry).map_err(|fault| invalid_mount(&field, fault))?;
        if let Some(other) = mounts.iter().find(|other| mount_spec::overlaps(&other.container, &mount.container)) {
            return Err(invalid_mount(
                &field,
                format!(
                    "has the container path {}, another mount has {}; choose paths of which none lies in another",
                    quoted(&mount.container),
                    quoted(&other.container)
                ),
            ));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// A job that mounts parents' artifacts and no directory of the host works in a scratch directory, which they must not meet.
fn check_scratch(mounts: &[Mount]) -> Result<(), Rejection> {
    if mounts.iter().any(|mount| matches!(mount.source, MountSource::Host(_))) {
        return Ok(());
    }
    match mounts.iter().find(|mount| mount_spec::overlaps(&mount.container, place::SCRATCH_CONTAINER)) {
        None => Ok(()),
        Some(mount) => Err(invalid_mount(
            "mount_spec",
            format!(
                "mounts artifacts at {}, and the job works at {}; choose a path such as /job/in/{}",
                quoted(&mount.container),
                place::SCRATCH_CONTAINER,
                match &mount.source {
                    MountSource::Job(parent) | MountSource::Host(parent) => parent,
                }
            ),
        )),
    }
}

fn parse_env(field: &str, value: Value) -> Result<BTreeMap<String, String>, Rejection> {
    let Value::Object(members) = value else {
        return Err(fields::wrong_type(field, "an object of strings", &value));
    };
    if members.len() > MAX_ENV_ENTRIES {
        return Err(invalid(field, format!("has {} entries; at most {MAX_ENV_ENTRIES} are accepted", members.len())));
    }
    let mut env = BTreeMap::new();
    for (name, value) in members {
        let first_is_sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first_is_sound || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(invalid(field, format!("has the name {}; a name is [A-Za-z_][A-Za-z0-9_]*", quoted(&name))));
        }
        let value = string(&format!("{field}.{name}"), value)?;
        env.insert(name, value);
    }
    Ok(env)
}

fn parse_depends_on(field: &str, value: Value, own: &str) -> Result<Vec<String>, Rejection> {
    let ids = strings(field, value)?;
    if ids.len() > MAX_DEPENDS_ON {
        return Err(invalid(field, format!("has {} ids; at most {MAX_DEPENDS_ON} are accepted", ids.len())));
    }
    let mut seen = BTreeSet::new();
    for (index, id) in ids.iter().enumerate() {
        let field = format!("{field}[{index}]");
        check_job_id(&field, id.clone())?;
        if id == own {
            return Err(invalid(&field, format!("is the job's own id; a job cannot wait for itself ({own} → {own})")));
        }
        if !seen.insert(id) {
            return Err(invalid(&field, format!("names {} a second time; name each job once", quoted(id))));
        }
    }
    Ok(ids)
}

fn parse_resources(field: &str, value: Value) -> Result<Resources, Rejection> {
    let Value::Object(object) = value else {
        return Err(fields::wrong_type(field, "an object", &value));
    };
    let mut fields = Fields::new(object, field, &RESOURCES)?;
    Ok(Resources {
        cpus: fields.optional("cpus", |f, v| parse_cpus(f, &v))?,
        memory_mib: fields.optional("memory_mib", |f, v| integer(f, &v, MIN_MEMORY_MIB, MAX_MEMORY_MIB))?,
        pids: fields.optional("pids", |f, v| integer(f, &v, 1, MAX_PIDS))?,
        gpus: fields.optional("gpus", |f, v| small(f, &v, 0, MAX_GPUS))?,
    })
}

/// Thousandths only: such a number has one double whatever the JSON parser's rounding, so its canonical text is stable.
fn parse_cpus(field: &str, value: &Value) -> Result<f64, Rejection> {
    let Some(cpus) = value.as_f64() else {
        return Err(fields::wrong_type(field, "a number such as 1.5", value));
    };
    if !(MIN_CPUS..=MAX_CPUS).contains(&cpus) {
        return Err(invalid(field, format!("is {cpus}; it must be from {MIN_CPUS} to {MAX_CPUS}")));
    }
    let rounded = (cpus * 1000.0).round() / 1000.0;
    if (cpus - rounded).abs() > 1e-9 {
        return Err(invalid(field, format!("is {cpus}; give at most three decimals")));
    }
    Ok(rounded)
}

fn parse_network(field: &str, value: Value) -> Result<Network, Rejection> {
    let name = string(field, value)?;
    [Network::None, Network::Bridge]
        .into_iter()
        .find(|network| network.as_str() == name)
        .ok_or_else(|| invalid(field, format!("is {}; it is `none` or `bridge`", quoted(&name))))
}

/// The kernel's bounds on what a process can be started with.
fn check_arguments(command: &[String], env: Option<&BTreeMap<String, String>>) -> Result<(), Rejection> {
    let commands = command.iter().enumerate().map(|(index, argument)| (format!("command[{index}]"), argument.len()));
    let variables =
        env.into_iter().flatten().map(|(name, value)| (format!("env.{name}"), name.len() + 1 + value.len()));
    let mut total = 0;
    for (field, bytes) in commands.chain(variables) {
        if bytes > MAX_ARGUMENT_BYTES {
            let message =
                format!("{} has {bytes} bytes; at most {MAX_ARGUMENT_BYTES} fit: put it into a file", quoted(&field));
            return Err(reject("too_large", message).field(field));
        }
        total += bytes;
    }
    if total > MAX_ARGUMENTS_BYTES {
        let message =
            format!("`command` and `env` have {total} bytes together; at most {MAX_ARGUMENTS_BYTES} fit: use a file");
        return Err(reject("too_large", message).field("command"));
    }
    Ok(())
}

fn small(field: &str, value: &Value, least: u32, most: u32) -> Result<u32, Rejection> {
    let wide = integer(field, value, least.into(), most.into())?;
    u32::try_from(wide).map_err(|_| invalid(field, format!("is above {most}")))
}

fn reject(code: &'static str, message: impl Into<String>) -> Rejection {
    Rejection::new(400, code, message)
}

fn invalid(field: &str, fault: impl AsRef<str>) -> Rejection {
    reject("invalid_value", format!("{} {}", quoted(field), fault.as_ref())).field(field)
}

fn invalid_mount(field: &str, fault: impl AsRef<str>) -> Rejection {
    reject("invalid_mount", format!("{} {}", quoted(field), fault.as_ref())).field(field)
}

/// The user's text in backquotes, control characters escaped, cut where it is long.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    let shown: String = text.chars().take(SHOWN).map(escape).collect();
    let more = if text.chars().nth(SHOWN).is_some() { "…" } else { "" };
    format!("`{shown}{more}`")
}

#[cfg(test)]
mod tests;
