//! Who may call: bearer tokens, the names under which the agent may be addressed, the origins whose pages may call it.
//! What files say of that can be read again while requests go on.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::mask::Mask;
use super::request::Request;
use crate::hash::Hash;
use crate::lists::{self, Shared};
use crate::rejection::Rejection;

/// Shorter tokens, in characters, are warned of: they can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;

/// Who may call.
#[derive(Default)]
pub struct Access {
    sources: Sources,
    rules: Shared<Rules>,
    generation: AtomicU64,
    tell: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// What was given when the agent started: entries, and files.
#[derive(Debug, Default)]
struct Sources {
    token_file: Option<PathBuf>,
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// What those say.
#[derive(Debug, Default)]
pub struct Rules {
    /// SHA-256 of each token. Hashes are compared, so that neither content nor length of a token shows in the time taken.
    tokens: Option<Vec<Hash>>,
    mask: Mask,
    hosts: Vec<String>,
    origins: Vec<String>,
}

/// Which token a request came with: to ask later whether that is still one. `None` in it: no tokens were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenId(Option<Hash>);

impl TokenId {
    /// Where none is asked for.
    pub fn none() -> Self {
        Self(None)
    }
}

impl Rules {
    /// How many tokens, hosts and origins there are.
    pub fn counts(&self) -> [usize; 3] {
        [self.tokens.as_ref().map_or(0, Vec::len), self.hosts.len(), self.origins.len()]
    }

    /// Whether tokens are asked for at all.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    fn read(sources: &Sources) -> io::Result<Self> {
        // One that no request can match would be refused to its owner's surprise, and long after the start.
        let lower = |flag: &str, list: &[String], fits: fn(&str) -> bool, form: &str| -> io::Result<Vec<String>> {
            let entries = lists::expand(flag, list)?;
            match entries.iter().find(|entry| !fits(entry)) {
                Some(entry) => {
                    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{flag} {entry:?}: must be {form}")))
                }
                None => Ok(entries.iter().map(|entry| entry.to_ascii_lowercase()).collect()),
            }
        };
        let form = "a name, or a name and a port, such as node.mesh or node.mesh:4005";
        let hosts = lower("--allow-host", &sources.hosts, is_host, form)?;
        let form =
            "`null`, or what a browser's address begins with, such as https://lab.example or http://node.mesh:4005";
        let origins = lower("--allow-origin", &sources.origins, is_origin, form)?;
        let Some(path) = &sources.token_file else {
            return Ok(Self { tokens: None, mask: Mask::default(), hosts, origins });
        };
        let tokens = lists::tokens("--token-file", path)?;
        let short = tokens.iter().filter(|token| token.chars().count() < TOKEN_CHARACTERS_MIN).count();
        if short > 0 {
            log::warn!(
                "--token-file {}: {short} of {} tokens have fewer than {TOKEN_CHARACTERS_MIN} characters and may be \
                 guessed; use random ones, such as `openssl rand -base64 24` makes",
                path.display(),
                tokens.len()
            );
        }
        let mask = Mask::new(&tokens);
        Ok(Self { tokens: Some(tokens.iter().map(|token| Hash::of(token.as_bytes())).collect()), mask, hosts, origins })
    }

    /// Looks at all tokens, whichever it is.
    fn has_token(tokens: &[Hash], given: &Hash) -> bool {
        tokens.iter().fold(false, |found, token| found | same(token, given))
    }
}

impl Access {
    /// Reads `token_file`, where there is one, and the files that `hosts` and `origins` name as `@FILE`.
    ///
    /// # Errors
    /// A file cannot be read, holds no token, or others may read it; the message says what to change.
    pub fn new(token_file: Option<&Path>, hosts: &[String], origins: &[String]) -> io::Result<Self> {
        let sources = Sources {
            token_file: token_file.map(Path::to_owned),
            hosts: hosts.to_owned(),
            origins: origins.to_owned(),
        };
        let rules = Shared::new(Rules::read(&sources)?);
        Ok(Self { sources, rules, generation: AtomicU64::new(0), tell: OnceLock::new() })
    }

    /// Reads the files again, without changing anything.
    ///
    /// # Errors
    /// As [`Access::new`].
    pub fn read_again(&self) -> io::Result<Rules> {
        Rules::read(&self.sources)
    }

    /// What applies from now on.
    pub fn install(&self, rules: Rules) {
        self.rules.set(rules);
        self.generation.fetch_add(1, Ordering::Release);
        if let Some(tell) = self.tell.get() {
            tell();
        }
    }

    /// Grows with each [`Access::install`]: as long as it is the same, everyone who was let in still is.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether a request that was let in with this would still be.
    pub fn is_still_allowed(&self, token: &TokenId) -> bool {
        match (&self.rules.get().tokens, token.0) {
            (None, _) => true,
            (Some(tokens), Some(given)) => Rules::has_token(tokens, &given),
            (Some(_), None) => false,
        }
    }

    /// Tells, as often as it is asked, whether a request that was let in with this would still be. Costs next to nothing
    /// while nothing is read again.
    pub fn watch(self: &Arc<Self>, token: TokenId) -> impl Fn() -> bool + Send + Sync + use<> {
        // Behind every generation.
        let (access, seen) = (self.clone(), AtomicU64::new(u64::MAX));
        move || {
            // Before the rules: those of a later generation only make it look once more.
            let generation = access.generation();
            let allowed = seen.load(Ordering::Relaxed) == generation || access.is_still_allowed(&token);
            seen.store(if allowed { generation } else { u64::MAX }, Ordering::Relaxed);
            allowed
        }
    }

    /// Is called after every [`Access::install`]; only the first one is kept.
    pub fn on_install(&self, tell: Box<dyn Fn() + Send + Sync>) {
        let _ = self.tell.set(tell);
    }

    /// The text without any token that it holds.
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.rules.get().mask.apply(text)
    }

    /// The same of what a rejection says.
    pub fn mask_rejection(&self, mut rejection: Rejection) -> Rejection {
        let rules = self.rules.get();
        if let Cow::Owned(masked) = rules.mask.apply(&rejection.message) {
            rejection.message = masked;
        }
        rejection.field = rejection.field.map(|field| rules.mask.apply(&field).into_owned());
        rejection
    }

    /// Whether tokens are asked for at all.
    pub fn has_tokens(&self) -> bool {
        self.rules.get().has_tokens()
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
        if !host.is_empty() && !self.host_is_ours(&host.to_ascii_lowercase()) {
            return None;
        }
        let is_own = lower
            .strip_prefix("http://")
            .or_else(|| lower.strip_prefix("https://"))
            .is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host));
        (is_own || self.rules.get().origins.contains(&lower)).then_some(origin)
    }

    /// Checks the bearer token.
    ///
    /// # Errors
    /// 401.
    pub fn check_token(&self, request: &Request) -> Result<TokenId, Rejection> {
        let rules: Arc<Rules> = self.rules.get();
        let Some(tokens) = &rules.tokens else { return Ok(TokenId(None)) };
        let given = request.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| Hash::of(token.trim().as_bytes()))
        });
        match given {
            Some(given) if Rules::has_token(tokens, &given) => Ok(TokenId(Some(given))),
            _ => {
                let message = "send one of the tokens of --token-file as `Authorization: Bearer TOKEN`";
                Err(Rejection::new(401, "unauthorized", message).field("Authorization"))
            }
        }
    }

    /// A literal address cannot be the work of DNS, and `localhost` does not leave the machine.
    fn host_is_ours(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name == "localhost"
            || name.parse::<IpAddr>().is_ok()
            || self.rules.get().hosts.iter().any(|own| own == name || own == host)
    }
}

/// Whether a `Host` can be that.
fn is_host(entry: &str) -> bool {
    !entry.is_empty() && !entry.contains(|c: char| c.is_whitespace() || c.is_control() || "/*@?#".contains(c))
}

/// Whether an `Origin` can be that: no browser sends a path, nor a slash at its end.
fn is_origin(entry: &str) -> bool {
    entry.eq_ignore_ascii_case("null")
        || entry.split_once("://").is_some_and(|(scheme, host)| is_host(scheme) && is_host(host))
}

fn same(a: &Hash, b: &Hash) -> bool {
    a.0.iter().zip(&b.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
        let alpha = access.check_token(&request(&[("authorization", "Bearer alpha")])).unwrap();
        fs::write(&path, "beta\n").unwrap();
        let rules = access.read_again().unwrap();
        assert!(access.is_still_allowed(&alpha) && access.generation() == 0, "it is read, and not yet in force");
        access.install(rules);
        assert!(!access.is_still_allowed(&alpha) && access.generation() == 1);
        assert!(access.check_token(&request(&[("authorization", "Bearer alpha")])).is_err());
        assert_eq!(access.mask("beta alpha"), "[token] alpha");
        let rejection = Rejection::new(400, "x", "\"beta\" is bad").field("beta");
        assert_eq!(access.mask_rejection(rejection), Rejection::new(400, "x", "\"[token]\" is bad").field("[token]"));
        fs::write(&path, "\n").unwrap();
        assert!(access.read_again().is_err(), "no token");
        assert!(Access::new(Some(&path), &[], &[]).is_err(), "no token");
        fs::remove_file(&path).unwrap();
    }
}
