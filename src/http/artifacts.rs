//! Sealed files, byte for byte as they were sealed, or not at all.

use std::io;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};
use tiny_http::{Header, Response};

use super::api::Call;
use super::files::{parse_range, unreadable, unsatisfiable};
use super::reply::{Reply, StreamWriter, header};
use super::request::Request;
use super::routes::{Answer, App};
use crate::hash::Hash;
use crate::ledger::event::{Detail, Event, Received, Sealed, State, Stored};
use crate::ledger::lifecycle::Job;
use crate::manifest::{self, Manifest};
use crate::rejection::Rejection;
use crate::runner::sealed::{self, Absent, Artifact, OpenFile, SealedDirs, path_text};

/// How much is read, compared and sent at once, in bytes.
const PIECE_BYTES: usize = 128 << 10;
/// Longest file name that is proposed to who downloads, in bytes.
const FILENAME_BYTES_MAX: usize = 150;

/// A file that the ledger vouches for.
struct Vouched<'a> {
    file: OpenFile,
    size: u64,
    sha256: Hash,
    /// What is said where its bytes are others now, which the text tells.
    changed: &'a dyn Fn(&str) -> Rejection,
    /// For the log.
    name: String,
}

impl App {
    /// `GET /api/jobs/{id}/artifacts/{path}`.
    pub(super) fn artifact(&self, call: &Call<'_>) -> Answer {
        let (request, id) = (call.request, call.id);
        let job = self.find(id)?;
        let sealed = self.sealed(&job)?;
        if call.path.is_empty() {
            let message =
                format!("name a file, as /api/jobs/{id}/artifacts/job/workdir/FILE; /api/jobs/{id}/seal lists them");
            return Err(Rejection::new(404, "no_such_artifact", message));
        }
        let path = [b"/", call.path].concat();
        let artifact = self.look_up(id, &sealed, &path)?;
        if let Some(reply) = not_modified(request, artifact.sha256) {
            return Ok(reply);
        }
        let mut dirs = SealedDirs::new(self.admission.mounts.clone(), id, &self.manifest_of(&job)?);
        if dirs.is_own(&path) {
            self.check_kept(&job, "the artifacts")?;
        }
        let vouched = Vouched {
            file: dirs.open(&path).map_err(|absent| refusal(&artifact, absent))?,
            size: artifact.size,
            sha256: artifact.sha256,
            changed: &|now| changed(&artifact, now),
            name: path_text(&path).escape_debug().to_string(),
        };
        self.send_vouched(call, vouched, download("application/octet-stream", &safe_name(&path)))
    }

    /// `GET /api/jobs/{id}/seal`.
    pub(super) fn seal(&self, call: &Call<'_>) -> Answer {
        let sealed = self.sealed(&*self.find(call.id)?)?;
        if let Some(reply) = not_modified(call.request, sealed.seal_hash) {
            return Ok(reply);
        }
        let path = sealed::seal_path(&self.data, call.id).map_err(|error| unreadable(&error))?;
        let file = OpenFile::own(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => seal_changed("seal", "is missing"),
            _ => unreadable(&error),
        })?;
        let vouched = Vouched {
            size: file.size(),
            file,
            sha256: sealed.seal_hash,
            changed: &|_| seal_changed("seal", "is not the one that the SEALED event names"),
            name: "the seal".into(),
        };
        self.send_vouched(call, vouched, vec![header("Content-Type", "application/json")])
    }

    /// The whole file, or the `Range` that was asked for, once it is known to be what the ledger vouches for.
    fn send_vouched(&self, call: &Call<'_>, vouched: Vouched<'_>, mut headers: Vec<Header>) -> Answer {
        self.compare(call.request, &vouched)?;
        let Vouched { file, size, sha256, name, .. } = vouched;
        let etag = etag(sha256);
        headers.extend([header("ETag", &etag), header("Accept-Ranges", "bytes")]);
        let same = call.request.header("if-range").is_none_or(|value| value == etag);
        let (status, first, length) = match call.request.range().filter(|_| same) {
            None => (200, 0, size),
            Some(value) => match parse_range(value, size) {
                Ok(None) => (200, 0, size),
                Ok(Some((first, last))) => {
                    headers.push(header("Content-Range", &format!("bytes {first}-{last}/{size}")));
                    (206, first, last + 1 - first)
                }
                Err(()) => return Ok(unsatisfiable(size)),
            },
        };
        let id = call.id.to_owned();
        let run = move |to: &mut StreamWriter<'_>| {
            let whole = (length == size).then_some(sha256);
            send(&file, first, length, whole, to).inspect_err(|error| {
                if error.kind() == io::ErrorKind::InvalidData {
                    log::error!("http: job {id}: sending {name} is cut off: {error}");
                }
            })
        };
        Ok(Reply::Sized { status, headers, length, run: Box::new(run) })
    }

    /// What the SEALED event of a job tells.
    pub(super) fn sealed(&self, job: &Job) -> Result<Sealed, Rejection> {
        if job.state != State::Sealed {
            let message = format!("job {:?} is {}; only SEALED jobs have a seal and artifacts", job.job_id, job.state);
            return Err(Rejection::new(404, "not_sealed", message));
        }
        match self.event(job.seq)?.detail {
            Detail::Sealed(sealed) => Ok(sealed),
            _ => Err(Rejection::new(500, "unreadable", "the job's SEALED event cannot be read back")),
        }
    }

    /// The manifest in the job's RECEIVED event.
    pub(super) fn manifest_of(&self, job: &Job) -> Result<Manifest, Rejection> {
        match self.event(job.received_seq)?.detail {
            Detail::Received(Received { manifest, .. }) => Ok(manifest::parse(manifest.get().as_bytes())?.manifest),
            _ => Err(Rejection::new(500, "unreadable", "the job's RECEIVED event cannot be read back")),
        }
    }

    fn event(&self, seq: u64) -> Result<Event, Rejection> {
        let mut stored = Err("it is not there".to_owned());
        let read = self.engine.view().ledger(seq, seq, &mut |_, bytes| {
            stored = Stored::parse(bytes);
            false
        });
        read.map_err(|error| unreadable(&error))?;
        stored
            .map(|stored| stored.event)
            .map_err(|error| unreadable(&io::Error::other(format!("event {seq}: {error}"))))
    }

    /// The artifact at `path` in the seal that `sealed` vouches for.
    fn look_up(&self, id: &str, sealed: &Sealed, path: &[u8]) -> Result<Artifact, Rejection> {
        let found = match sealed::find(&self.data, id, path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(seal_changed("seal", "is missing")),
            found => found.map_err(|error| unreadable(&error))?,
        };
        if found.seal_hash != sealed.seal_hash {
            return Err(seal_changed("seal", "is not the one that the SEALED event names"));
        }
        found.artifact.map_err(|error| unreadable(&error))?.ok_or_else(|| {
            let text = path_text(path);
            let message = format!("{text:?} is no artifact of job {id:?}; /api/jobs/{id}/seal lists them");
            Rejection::new(404, "no_such_artifact", message)
        })
    }

    /// Whether the file is what the ledger vouches for: before a byte of it goes out.
    fn compare(&self, request: &Request, vouched: &Vouched<'_>) -> Result<(), Rejection> {
        let Vouched { file, changed, .. } = vouched;
        let size = file.size();
        if size != vouched.size {
            return Err(changed(&format!("now there are {size} bytes")));
        }
        let keep_on = || !request.peer_gone() && !self.stopping.load(Ordering::Relaxed);
        match self.verified.digest(file, &keep_on) {
            Ok(Some(hash)) if hash == vouched.sha256 => Ok(()),
            Ok(Some(hash)) => Err(changed(&format!("now there are as many with the SHA-256 {hash}"))),
            Ok(None) if self.stopping.load(Ordering::Relaxed) => {
                Err(Rejection::new(503, "stopping", "the agent is stopping; ask again when it is back"))
            }
            Ok(None) => Err(client_gone()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(changed("now it is being changed")),
            Err(error) => Err(unreadable(&error)),
        }
    }
}

/// The entity tag of bytes with this digest: a strong one, since no two contents share it.
fn etag(sha256: Hash) -> String {
    format!("\"{sha256}\"")
}

/// 304 where `If-None-Match` names the bytes: whoever holds them holds what was sealed, whatever lies there now.
fn not_modified(request: &Request, sha256: Hash) -> Option<Reply> {
    let etag = etag(sha256);
    let holds = request.header_values("if-none-match").any(|value| names(value, &etag));
    let response = Response::from_data(Vec::new()).with_status_code(304).with_header(header("ETag", &etag));
    holds.then(|| Reply::Full(response.boxed()))
}

/// Sends a part of a file. Each piece goes out only if the file is still what it was when it was opened, and with the
/// digest of the `whole` only if that is right, too.
///
/// # Errors
/// `InvalidData` where it changed; what reading and sending give.
pub(super) fn send(
    file: &OpenFile,
    first: u64,
    length: u64,
    whole: Option<Hash>,
    to: &mut StreamWriter<'_>,
) -> io::Result<()> {
    let changed = || io::Error::new(io::ErrorKind::InvalidData, "the file changed while it was sent");
    let (mut at, end, mut hasher) = (first, first + length, Sha256::new());
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(length).unwrap_or(PIECE_BYTES))];
    loop {
        let want = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
        let read = if want == 0 { 0 } else { file.read_at(&mut piece[..want], at)? };
        if whole.is_some() {
            hasher.update(&piece[..read]);
        }
        at += read as u64;
        // Looked at after reading: what changed before is not sent.
        if (read == 0 && want > 0) || !file.is_unchanged()? {
            return Err(changed());
        }
        if at < end {
            to.send(&piece[..read])?;
            continue;
        }
        if whole.is_some_and(|hash| hash != Hash::finish(hasher)) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file does not have the digest that is recorded",
            ));
        }
        return to.send(&piece[..read]);
    }
}

/// 409: what is there is not what was sealed.
fn changed(artifact: &Artifact, now: &str) -> Rejection {
    let (size, hash) = (artifact.size, artifact.sha256);
    let message = format!(
        "{:?} was sealed with {size} bytes and the SHA-256 {hash}; {now}. The agent keeps no copies: put the file \
         back, or look for it elsewhere",
        path_text(&artifact.path.0)
    );
    Rejection::new(409, "artifact_changed", message)
}

/// What is said where an artifact cannot be opened.
fn refusal(artifact: &Artifact, absent: Absent) -> Rejection {
    match absent {
        Absent::Gone(instead) => changed(artifact, &format!("it is gone, there is {instead} now")),
        other => not_opened(other),
    }
}

/// What is said where nothing can be told of an artifact.
pub(super) fn not_opened(absent: Absent) -> Rejection {
    match absent {
        Absent::Refused(rejection) => rejection,
        Absent::Gone(instead) => Rejection::new(409, "artifact_changed", format!("there is {instead}")),
        Absent::Failed(error) => {
            log::error!("http: opening an artifact: {error}");
            let message = format!("the artifact cannot be opened: {error}");
            Rejection::new(500, "unreadable", message)
        }
    }
}

/// Why work for an answer was given up. Nobody reads it.
pub(super) fn client_gone() -> Rejection {
    Rejection::new(503, "client_gone", "the client has closed the connection")
}

/// 409: the files that the ledger vouches for are others.
pub(super) fn seal_changed(what: &str, why: &str) -> Rejection {
    let message =
        format!("the job's {what} file {why}; restore DATA/seals, or look with hackbrain verify what else changed");
    Rejection::new(409, "seal_changed", message)
}

/// Whether an `If-None-Match` names the tag.
fn names(value: &str, etag: &str) -> bool {
    value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// The last component of a path, as any header and any file system takes it.
fn safe_name(path: &[u8]) -> String {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    let name: String = String::from_utf8_lossy(name).chars().map(safe).take(FILENAME_BYTES_MAX).collect();
    // Neither hidden nor an option, nor a way up.
    match name.strip_prefix(['.', '-']) {
        Some(rest) => format!("_{rest}"),
        None => name,
    }
}

/// Header fields of a download.
pub(super) fn download(content_type: &str, filename: &str) -> Vec<Header> {
    vec![
        header("Content-Type", content_type),
        header("Content-Disposition", &format!("attachment; filename=\"{filename}\"")),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_become_safe() {
        for (path, name) in [
            (&b"/job/workdir/a.csv"[..], "a.csv"),
            (b"/job/a \"b\"\r\nX: y", "a__b___X__y"),
            ("/job/ü".as_bytes(), "_"),
            (b"/job/\xff%41", "__41"),
            (b"/job/..hidden", "_.hidden"),
            (b"/job/-rf", "_rf"),
        ] {
            assert_eq!(safe_name(path), name);
        }
        assert_eq!(safe_name(&[b'x'; 300]).len(), FILENAME_BYTES_MAX);
    }

    #[test]
    fn tags() {
        for (value, named) in
            [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            assert_eq!(names(value, "\"a\""), named, "{value}");
        }
    }
}
