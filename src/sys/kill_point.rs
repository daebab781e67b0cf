//! Named points at which a debug build kills itself with SIGKILL, so that tests can put the agent's death exactly there.
//!
//! `HACKBRAIN_KILL_AT=POINT` or `POINT:N` for the n-th time. A release build has none of this.

/// This point is reached.
#[cfg(debug_assertions)]
pub fn reached(point: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static WANTED: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("HACKBRAIN_KILL_AT").ok()?;
        let (point, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((point.to_owned(), times.parse().unwrap_or(1)))
    });
    if let Some((_, times)) = wanted.as_ref().filter(|(wanted, _)| wanted == point)
        && TIMES.fetch_add(1, Ordering::SeqCst) + 1 == *times
    {
        // SAFETY: kill takes no pointers, and a process may always signal itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        // The signal takes effect before this thread returns to user code.
        std::process::abort();
    }
}

/// This point is reached.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reached(_point: &str) {}
