//! What files hold, one entry a line: allowed images, origins and hosts, tokens; and the cell in which such a list is
//! exchanged while others read it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use crate::sys::private;

/// Bytes of a file, at most.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Entries of a list, at most, those of its files included: each request may be compared with all of them.
const ENTRIES_MAX: usize = 4096;
/// Tokens of a file, at most.
const TOKENS_MAX: usize = 1024;
/// Bytes of a token, at most.
const TOKEN_BYTES_MAX: usize = 1024;

/// A value that is exchanged as a whole. Whoever has got it keeps what it was then.
#[derive(Debug, Default)]
pub struct Shared<T>(RwLock<Arc<T>>);

impl<T> Shared<T> {
    /// Holds `value`.
    pub fn new(value: T) -> Self {
        Self(RwLock::new(Arc::new(value)))
    }

    /// What it holds now.
    pub fn get(&self) -> Arc<T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Holds `value` from now on.
    pub fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

/// The entries of a flag, those of the files that it names as `@FILE` in their place. In a file, empty lines and those
/// that begin with `#` are left out.
///
/// # Errors
/// A file cannot be read, others may write it, or it does not hold a list; the message names the flag and the file.
pub fn expand(flag: &str, given: &[String]) -> io::Result<Vec<String>> {
    let mut entries = Vec::new();
    for entry in given {
        let Some(path) = entry.strip_prefix('@') else {
            entries.push(entry.clone());
            continue;
        };
        let fault = |kind, what: &str| io::Error::new(kind, format!("{flag} @{path}: {what}"));
        let file = open(Path::new(path), 0o002, "others may write it; chmod o-w it")
            .map_err(|error| fault(error.kind(), &error.to_string()))?;
        let text = read(file).map_err(|error| fault(error.kind(), &error.to_string()))?;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(fault(
                    io::ErrorKind::InvalidData,
                    &format!("line {number}: one entry a line, without blanks"),
                ));
            }
            entries.push(line.to_owned());
        }
    }
    if entries.len() > ENTRIES_MAX {
        let message = format!("{flag}: {} entries, at most {ENTRIES_MAX} are taken", entries.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    Ok(entries)
}

/// The tokens in a file, one a line.
///
/// # Errors
/// It cannot be read, is not the agent's own or root's, others may read it, or it holds no token; the message names the
/// flag and the file, and never a token.
pub fn tokens(flag: &str, path: &Path) -> io::Result<Vec<String>> {
    let fault = |kind, what: &str| io::Error::new(kind, format!("{flag} {}: {what}", path.display()));
    let text = open(path, 0o077, "others may read it; chmod 600 it")
        .and_then(read)
        .map_err(|error| fault(error.kind(), &error.to_string()))?;
    let tokens: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let bad = |what: &str| Err(fault(io::ErrorKind::InvalidData, what));
    match &tokens[..] {
        [] => bad("it holds no token; put one on a line of its own"),
        _ if tokens.len() > TOKENS_MAX => bad(&format!("it holds more than {TOKENS_MAX} tokens")),
        _ if tokens.iter().any(|token| token.len() > TOKEN_BYTES_MAX) => {
            bad(&format!("it holds a token of more than {TOKEN_BYTES_MAX} bytes"))
        }
        _ => Ok(tokens),
    }
}

/// Opens a regular file of root's or the agent's own, none of whose mode bits are among `forbidden`. Looks at the file that
/// was opened, not at what the name means a moment later.
fn open(path: &Path, forbidden: u32, advice: &str) -> io::Result<File> {
    let refused = |message: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    let file = private::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return refused("it is no regular file".to_owned());
    }
    if found.uid() != 0 && found.uid() != private::user() {
        return refused(format!("it belongs to user {}; chown it to root or to the agent's user", found.uid()));
    }
    if found.mode() & forbidden != 0 {
        return refused(advice.to_owned());
    }
    Ok(file)
}

fn read(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    struct Temporary(PathBuf);

    impl Temporary {
        fn new(what: &str, bytes: &[u8], mode: u32) -> Self {
            let path = std::env::temp_dir().join(format!("hb-lists-{what}-{}", std::process::id()));
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Self(path)
        }

        fn expanded(&self) -> Result<Vec<String>, String> {
            let given = ["first".to_owned(), format!("@{}", self.0.display()), "last".to_owned()];
            expand("--allow-host", &given).map_err(|error| error.to_string())
        }

        fn tokens(&self) -> Result<Vec<String>, String> {
            tokens("--token-file", &self.0).map_err(|error| error.to_string())
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_file_stands_for_its_lines() {
        let file = Temporary::new("lines", b"# hosts\n\n a.mesh \r\nb.mesh:4005\n#c\n", 0o644);
        assert_eq!(file.expanded().unwrap(), ["first", "a.mesh", "b.mesh:4005", "last"]);
        let long = "x\n".repeat(ENTRIES_MAX - 1);
        for (what, bytes, mode, says) in [
            ("blanks", &b"a\nb c\n"[..], 0o644, "line 2"),
            ("control", b"a\x1bb\n", 0o644, "line 1"),
            ("bytes", b"\xff\n", 0o644, "UTF-8"),
            ("writable", b"a\n", 0o646, "chmod o-w"),
            ("many", long.as_bytes(), 0o644, "at most 4096"),
            ("large", &[b'#'; FILE_BYTES_MAX as usize + 1], 0o644, "bytes"),
        ] {
            let said = Temporary::new(what, bytes, mode).expanded().unwrap_err();
            assert!(said.contains(says) && said.contains("--allow-host"), "{what}: {said}");
        }
        assert!(
            expand("--allow-host", &["@/nonexistent".to_owned()]).unwrap_err().to_string().contains("/nonexistent")
        );
        assert!(expand("--allow-host", &["@/dev/null".to_owned()]).unwrap_err().to_string().contains("regular file"));
    }

    #[test]
    fn tokens_are_their_owners_alone() {
        let file = Temporary::new("tokens", b"alpha\n\n beta \n", 0o600);
        assert_eq!(file.tokens().unwrap(), ["alpha", "beta"]);
        let (many, long) = ("x\n".repeat(TOKENS_MAX + 1), "x".repeat(TOKEN_BYTES_MAX + 1));
        for (what, bytes, mode, says) in [
            ("group", &b"secret\n"[..], 0o640, "chmod 600"),
            ("others", b"secret\n", 0o604, "chmod 600"),
            ("none", b"\n \n", 0o600, "no token"),
            ("crowd", many.as_bytes(), 0o600, "1024 tokens"),
            ("length", long.as_bytes(), 0o600, "1024 bytes"),
        ] {
            let said = Temporary::new(what, bytes, mode).tokens().unwrap_err();
            assert!(said.contains(says) && said.contains("--token-file") && !said.contains("secret"), "{what}: {said}");
        }
        // Only root may give a file away.
        if private::user() == 0 {
            let file = Temporary::new("foreign", b"secret\n", 0o600);
            std::os::unix::fs::chown(&file.0, Some(65534), None).unwrap();
            assert!(file.tokens().unwrap_err().contains("belongs to user 65534"));
        }
    }

    #[test]
    fn who_has_a_value_keeps_it() {
        let shared = Shared::new(1);
        let before = shared.get();
        shared.set(2);
        assert_eq!((*before, *shared.get()), (1, 2));
    }
}
