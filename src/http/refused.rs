//! Connections over a cap: kept open for a moment after their 503, which must survive what the client sends.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Most refused connections kept open for a moment so that their 503 is read.
pub(super) const MAX_REFUSED_HELD: usize = 64;
/// How often held refused connections are looked at.
const REFUSED_POLL: Duration = Duration::from_millis(20);

/// Lingering close for refused connections, all of them in one thread: their 503 must survive what the client sends.
pub(super) fn hold_refused(arriving: &Receiver<Arc<TcpStream>>, linger: Duration) {
    let mut held: VecDeque<(Arc<TcpStream>, Instant)> = VecDeque::new();
    let mut scratch = [0; 4096];
    loop {
        let next = if held.is_empty() {
            arriving.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            arriving.recv_timeout(REFUSED_POLL)
        };
        let first = match next {
            Ok(socket) => Some(socket),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let until = Instant::now() + linger;
        held.extend(first.into_iter().chain(arriving.try_iter().take(MAX_REFUSED_HELD)).map(|socket| (socket, until)));
        held.drain(..held.len().saturating_sub(MAX_REFUSED_HELD));
        held.retain(|(socket, until)| {
            let open = match (&**socket).read(&mut scratch) {
                Ok(n) => n > 0,
                Err(e) => e.kind() == io::ErrorKind::WouldBlock,
            };
            open && Instant::now() < *until
        });
    }
}
