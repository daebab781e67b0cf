//! Who may call: bearer tokens, the names under which the agent may be addressed, the origins whose pages may call it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::request::Request;
use crate::hash::Hash;
use crate::rejection::Rejection;

/// Who may call.
#[derive(Debug, Default)]
pub struct Access {
    /// SHA-256 of each token. Hashes are compared, so that neither content nor length of a token shows in the time taken.
    tokens: Option<Vec<Hash>>,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Access {
    /// Reads `token_file`, where there is one.
    ///
    /// # Errors
    /// The file cannot be read, holds no token, or others may read it; the message says what to change.
    pub fn new(token_file: Option<&Path>, hosts: &[String], origins: &[String]) -> io::Result<Self> {
        let tokens = token_file.map(read_tokens).transpose()?;
        let lower = |list: &[String]| list.iter().map(|entry| entry.to_ascii_lowercase()).collect();
        Ok(Self { tokens, hosts: lower(hosts), origins: lower(origins) })
    }

    /// Whether tokens are asked for at all.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Checks `Host` and `Origin`, which every request must pass: a page of a foreign site, or one that got our address by
    /// DNS rebinding, names itself there.
    ///
    /// # Errors
    /// 403.
    pub fn check_origin(&self, request: &Request) -> Result<(), Rejection> {
        let host = request.header("host").unwrap_or_default().to_ascii_lowercase();
        if !host.is_empty() && !self.host_is_ours(&host) {
            let message =
                format!("this agent is not addressed as {host:?}; start it with --allow-host to allow that name");
            return Err(Rejection::new(403, "foreign_host", message).field("Host"));
        }
        match request.header("origin") {
            Some(origin) if self.allowed_origin(request).is_none() => {
                let message = format!(
                    "pages of {origin:?} may not call this agent; start it with --allow-origin {origin} to allow them"
                );
                Err(Rejection::new(403, "foreign_origin", message).field("Origin"))
            }
            _ => Ok(()),
        }
    }

    /// The request's `Origin`, where its page may call us.
    pub fn allowed_origin<'r>(&self, request: &'r Request) -> Option<&'r str> {
        let origin = request.header("origin")?;
        let lower = origin.to_ascii_lowercase();
        let host = request.header("host").unwrap_or_default();
        let is_own = lower
            .strip_prefix("http://")
            .or_else(|| lower.strip_prefix("https://"))
            .is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host));
        (is_own || self.origins.contains(&lower)).then_some(origin)
    }

    /// Checks the bearer token.
    ///
    /// # Errors
    /// 401.
    pub fn check_token(&self, request: &Request) -> Result<(), Rejection> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        let given = request.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Hash::of(token.trim().as_bytes()))
        });
        let matches = given.is_some_and(|given| tokens.iter().fold(false, |found, token| found | same(token, &given)));
        if matches {
            return Ok(());
        }
        let message = "send one of the tokens of --token-file as `Authorization: Bearer TOKEN`";
        Err(Rejection::new(401, "unauthorized", message).field("Authorization"))
    }

    /// A literal address cannot be the work of DNS, and `localhost` does not leave the machine.
    fn host_is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.hosts.iter().any(|own| own == name || own == host)
    }
}

fn same(a: &Hash, b: &Hash) -> bool {
    a.0.iter().zip(&b.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn read_tokens(path: &Path) -> io::Result<Vec<Hash>> {
    let fault = |kind, what: &str| io::Error::new(kind, format!("--token-file {}: {what}", path.display()));
    let mode = fs::metadata(path).map_err(|e| fault(e.kind(), &e.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(fault(io::ErrorKind::PermissionDenied, "others may read it; chmod 600 it"));
    }
    let text = fs::read_to_string(path).map_err(|e| fault(e.kind(), &e.to_string()))?;
    let tokens: Vec<Hash> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| Hash::of(line.as_bytes())).collect();
    if tokens.is_empty() {
        return Err(fault(io::ErrorKind::InvalidData, "it holds no token; put one on a line of its own"));
    }
    Ok(tokens)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request {
        Request {
            method: tiny_http::Method::Get,
            path: "/".into(),
            raw_path: "/".into(),
            query: Vec::new(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            minor_version: 1,
            body: Vec::new(),
            remote: "127.0.0.1:1".parse().unwrap(),
            socket: std::sync::Weak::new(),
        }
    }

    #[test]
    fn hosts_and_origins() {
        let access = Access::new(None, &["node.mesh".into()], &["https://lab.example".into()]).unwrap();
        for (host, origin, allowed) in [
            ("127.0.0.1:4005", None, true),
            ("localhost:4005", None, true),
            ("[::1]:4005", None, true),
            ("100.64.0.7:4005", None, true),
            ("node.mesh:4005", None, true),
            ("evil.example:4005", None, false),
            ("127.0.0.1:4005", Some("http://127.0.0.1:4005"), true),
            ("127.0.0.1:4005", Some("http://127.0.0.1:8080"), false),
            ("127.0.0.1:4005", Some("https://lab.example"), true),
            ("127.0.0.1:4005", Some("https://lab.example.evil"), false),
            ("127.0.0.1:4005", Some("null"), false),
        ] {
            let mut headers = vec![("host", host)];
            headers.extend(origin.map(|origin| ("origin", origin)));
            let got = access.check_origin(&request(&headers)).is_ok();
            assert_eq!(got, allowed, "{host} {origin:?}");
        }
    }

    #[test]
    fn tokens() {
        let path = std::env::temp_dir().join(format!("hb-tokens-{}", std::process::id()));
        fs::write(&path, "alpha\n\n beta \n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Access::new(Some(&path), &[], &[]).is_err(), "others may read it");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let access = Access::new(Some(&path), &[], &[]).unwrap();
        for (header, allowed) in [
            (Some("Bearer alpha"), true),
            (Some("bearer beta"), true),
            (Some("Bearer alph"), false),
            (Some("Basic alpha"), false),
            (Some("alpha"), false),
            (None, false),
        ] {
            let headers: Vec<_> = header.map(|value| ("authorization", value)).into_iter().collect();
            assert_eq!(access.check_token(&request(&headers)).is_ok(), allowed, "{header:?}");
        }
        fs::write(&path, "\n").unwrap();
        assert!(Access::new(Some(&path), &[], &[]).is_err(), "no token");
        fs::remove_file(&path).unwrap();
    }
}
