//! Waits for a descriptor that something can be read from: `poll`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::dir::retry;

/// Blocks until something can be read from `a` or from `b`, or their other side has gone; tells for each.
///
/// # Errors
/// What `poll` reports; an interruption by a signal is gone round.
pub fn readable(a: &impl AsFd, b: &impl AsFd) -> io::Result<(bool, bool)> {
    let entry = |fd: &dyn AsFd| libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut entries = [entry(a), entry(b)];
    // SAFETY: the pointer is to a local array of two entries; both descriptors are borrowed, so they stay open.
    retry(|| unsafe { libc::poll(entries.as_mut_ptr(), 2, -1) })?;
    Ok((entries[0].revents != 0, entries[1].revents != 0))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_tells_who_has_something_and_who_was_left() {
        let ((a, mut to_a), (b, to_b)) = (io::pipe().unwrap(), io::pipe().unwrap());
        to_a.write_all(b"x").unwrap();
        assert_eq!(readable(&a, &b).unwrap(), (true, false));
        drop(to_b);
        assert_eq!(readable(&a, &b).unwrap(), (true, true));
    }
}
