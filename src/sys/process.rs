//! Ends a process that is no child, without mistaking another for it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A process that stays the same one whatever becomes of its number.
#[derive(Debug)]
pub struct Process(OwnedFd);

impl Process {
    /// The process that has this id now. Whoever wants a certain one asks after this whether it is that.
    ///
    /// # Errors
    /// `ESRCH`: there is none; or what else `pidfd_open` reports.
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: pidfd_open takes no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// SIGKILL. One that has ended is a success.
    ///
    /// # Errors
    /// `EPERM`, or what else `pidfd_send_signal` reports.
    pub fn kill(&self) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a null siginfo asks for that of kill(2); the descriptor is open as long as `self`.
        let outcome = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, none, 0) };
        match outcome {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn it_is_killed_once_and_then_that_is_no_fault() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        process.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        process.kill().unwrap();
        assert!(Process::open(u32::MAX).is_err());
    }
}
