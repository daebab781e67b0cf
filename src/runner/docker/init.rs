//! What the container's init (docker-init, which is tini) says when it cannot run the command. Pure.
//!
//! With an init the engine starts that, and so every command looks started: a missing one reads exit 127, just as what a
//! shell says of a command that it misses. The init's own words, alone on stderr, tell them apart.

/// With this the init's last words begin; its process id follows.
const FATAL: &[u8] = b"[FATAL tini (";
/// Exit codes it ends with: it could not fork, or whatever; not executable; not found.
const EXITS: [i32; 3] = [1, 126, 127];
/// Longest words that are believed to be the init's: one line with a path in it.
pub const WORDS_BYTES_MAX: u64 = 8 << 10;

/// Why the payload was never executed, if so. `stderr` is all of it, up to [`WORDS_BYTES_MAX`] and a byte.
///
/// A payload that imitates it has failed just the same; it only gets another reason.
pub fn never_executed(exit_code: i32, stdout_bytes: u64, stderr: &[u8]) -> Option<String> {
    if !EXITS.contains(&exit_code) || stdout_bytes > 0 || stderr.len() as u64 > WORDS_BYTES_MAX {
        return None;
    }
    let rest = stderr.strip_prefix(FATAL)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let words = rest[digits..].strip_prefix(b")] ").filter(|_| digits > 0)?;
    let words = String::from_utf8_lossy(words.strip_suffix(b"\n")?).into_owned();
    if words.starts_with("fork failed") {
        return Some(format!("{words}; raise resources.pids"));
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_inits_own_words_count() {
        let not_found = "[FATAL tini (7)] exec /no/such failed: No such file or directory\n";
        for (exit_code, stdout_bytes, stderr, expected) in [
            (127, 0, not_found, Some("exec /no/such failed: No such file or directory")),
            (
                126,
                0,
                "[FATAL tini (12)] exec /w failed: Permission denied\n",
                Some("exec /w failed: Permission denied"),
            ),
            // The path may hold what it likes.
            (127, 0, "[FATAL tini (7)] exec a\nb failed: No\n", Some("exec a\nb failed: No")),
            (
                1,
                0,
                "[FATAL tini (1)] fork failed: Resource temporarily unavailable\n",
                Some("fork failed: Resource temporarily unavailable; raise resources.pids"),
            ),
            (127, 1, not_found, None),
            (3, 0, not_found, None),
            (0, 0, not_found, None),
            (127, 0, "sh: nope: not found\n", None),
            (127, 0, "x[FATAL tini (7)] exec x failed: y\n", None),
            (127, 0, "[FATAL tini ()] exec x failed: y\n", None),
            (127, 0, "[FATAL tini (7)] cut off", None),
            (127, 0, "", None),
        ] {
            assert_eq!(never_executed(exit_code, stdout_bytes, stderr.as_bytes()).as_deref(), expected, "{stderr:?}");
        }
        let long = format!("[FATAL tini (7)] {}\n", "x".repeat(WORDS_BYTES_MAX as usize));
        assert_eq!(never_executed(127, 0, long.as_bytes()), None);
    }
}
