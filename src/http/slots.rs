//! Who is connected, what each connection is doing, and whether one more may come in. Caps are decided under one lock.
//!
//! At a cap, a connection that asks for nothing gives way to one that may: the one that has waited longest, of the client
//! that holds most. So thousands of idle or dribbling connections keep nobody out, and none that is being answered is cut.

use super::server::Limits;
use crate::sys::socket::has_unread;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Instant;

/// What a connection is doing, as far as a drain and an eviction must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// It has come, and its first request has not.
    Fresh,
    /// Between two requests.
    Idle,
    /// A part of a head has arrived.
    Head,
    /// A whole head has arrived, and not all of its body.
    Body,
    /// Answered for the last time; what still comes is thrown away.
    Lingering,
    /// A whole request has arrived, and is being answered.
    Busy,
    /// A stream is written.
    Streaming,
    /// It has given way to another; its thread is about to end.
    Evicted,
}

pub(super) struct Connection {
    id: u64,
    pub(super) socket: Arc<TcpStream>,
    pub(super) remote: SocketAddr,
    phase: AtomicU8,
    /// Since when it asks for nothing: microseconds after `epoch`.
    waits_since: AtomicU64,
    epoch: Instant,
    /// How many connections its client has.
    share: Arc<AtomicUsize>,
    thread: OnceLock<Thread>,
}

impl Connection {
    /// Called in the connection's own thread alone. False where the connection has been evicted: it must end.
    #[must_use]
    pub(super) fn enter(&self, phase: Phase) -> bool {
        let now = self.phase.load(Ordering::SeqCst);
        // Before the phase, so that nobody takes a request just answered for a long wait.
        if gives_way(phase as u8) && !gives_way(now) {
            self.waits_since.store(self.epoch.elapsed().as_micros() as u64, Ordering::SeqCst);
        }
        // Beside this thread only an eviction changes the phase, and for good.
        now != Phase::Evicted as u8
            && self.phase.compare_exchange(now, phase as u8, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// To be called in the connection's own thread, before it waits for anything.
    pub(super) fn is_served_here(&self) {
        let _ = self.thread.set(thread::current());
    }

    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::SeqCst) == phase as u8
    }

    fn gives_way(&self) -> bool {
        gives_way(self.phase.load(Ordering::SeqCst))
    }

    fn evict(&self) -> bool {
        let evict = |phase| gives_way(phase).then_some(Phase::Evicted as u8);
        self.phase.fetch_update(Ordering::SeqCst, Ordering::SeqCst, evict).is_ok()
    }
}

fn gives_way(phase: u8) -> bool {
    phase <= Phase::Lingering as u8
}

/// The open connections.
pub(super) struct Slots {
    next_id: u64,
    epoch: Instant,
    pub(super) open: HashMap<u64, Arc<Connection>>,
    per_address: HashMap<IpAddr, Arc<AtomicUsize>>,
    /// Evicted connections whose threads have not ended.
    leaving: usize,
}

impl Default for Slots {
    fn default() -> Self {
        let (open, per_address) = Default::default();
        Self { next_id: 0, epoch: Instant::now(), open, per_address, leaving: 0 }
    }
}

/// How many are spared, in one search, because something that they sent has not been read yet.
const SPARED_MAX: usize = 16;

/// Which cap stands against one more connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Address,
}

impl Slots {
    pub(super) fn check(&self, remote: IpAddr, limits: &Limits) -> Result<(), Full> {
        let reserved = if remote.to_canonical().is_loopback() { 0 } else { limits.reserved_for_loopback };
        match self.per_address.get(&share_of(remote)) {
            // Asked first: who is over its own share makes nobody else give way.
            Some(n) if n.load(Ordering::Relaxed) >= limits.max_per_address => Err(Full::Address),
            _ if self.open.len() + reserved >= limits.max_connections => Err(Full::All),
            _ => Ok(()),
        }
    }

    pub(super) fn take(&mut self, socket: Arc<TcpStream>, remote: SocketAddr) -> Arc<Connection> {
        self.next_id += 1;
        let share = Arc::clone(self.per_address.entry(share_of(remote.ip())).or_default());
        share.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            id: self.next_id,
            socket,
            remote,
            phase: AtomicU8::new(Phase::Fresh as u8),
            waits_since: AtomicU64::new(self.epoch.elapsed().as_micros() as u64),
            epoch: self.epoch,
            share,
            thread: OnceLock::new(),
        });
        self.open.insert(connection.id, Arc::clone(&connection));
        connection
    }

    /// Takes the slot of a connection that waits, and shuts its socket down: of `only` that address's where one is given,
    /// else of the client that holds most; there, of the one that has waited longest. False where all are being answered.
    ///
    /// Looks at every connection, which for a thousand costs less than starting the newcomer's thread.
    pub(super) fn evict(&mut self, only: Option<IpAddr>) -> bool {
        let only = only.map(share_of);
        let mut spared = Vec::new();
        loop {
            let waiting = |c: &&Arc<Connection>| {
                c.gives_way() && only.is_none_or(|share| share_of(c.remote.ip()) == share) && !spared.contains(&c.id)
            };
            let rank = |c: &&Arc<Connection>| {
                (c.share.load(Ordering::Relaxed), Reverse((c.waits_since.load(Ordering::SeqCst), c.id)))
            };
            let Some(chosen) = self.open.values().filter(waiting).max_by_key(rank).cloned() else { return false };
            // It has asked for something, and its thread has not come to it yet.
            if spared.len() < SPARED_MAX && has_unread(&chosen.socket) {
                spared.push(chosen.id);
                continue;
            }
            // Lost where its head has just become whole; then another gives way.
            if chosen.evict() {
                self.remove(&chosen);
                self.leaving += 1;
                // Its thread blocks in a read of this socket, or waits for memory. An error means that the peer was quicker.
                let _ = chosen.socket.shutdown(Shutdown::Both);
                if let Some(thread) = chosen.thread.get() {
                    thread.unpark();
                }
                return true;
            }
        }
    }

    /// Evicted connections whose threads have not ended.
    pub(super) fn leaving(&self) -> usize {
        self.leaving
    }

    /// To be called when a connection's thread has ended. True where it still had its slot.
    pub(super) fn free(&mut self, connection: &Connection) -> bool {
        let had = self.remove(connection);
        if !had {
            self.leaving -= 1;
        }
        had
    }

    fn remove(&mut self, connection: &Connection) -> bool {
        if self.open.remove(&connection.id).is_none() {
            return false;
        }
        if connection.share.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.per_address.remove(&share_of(connection.remote.ip()));
        }
        true
    }
}
/// What one client is taken to own: an IPv4 address, or an IPv6 /64, within which addresses are free to choose.
pub(super) fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn caps_keep_room_for_loopback_and_count_by_address() {
        let limits = Limits { max_connections: 4, max_per_address: 2, reserved_for_loopback: 1, ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Arc::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let mut slots = Slots::default();
        let take = |slots: &mut Slots, ip: &str| {
            slots.check(address(ip), &limits).map(|()| slots.take(Arc::clone(&socket), (address(ip), 1).into()))
        };
        let first = take(&mut slots, "192.0.2.1").unwrap();
        take(&mut slots, "::ffff:192.0.2.1").unwrap();
        assert_eq!(take(&mut slots, "192.0.2.1").err(), Some(Full::Address));
        take(&mut slots, "2001:db8::1").unwrap();
        assert_eq!(take(&mut slots, "192.0.2.9").err(), Some(Full::All), "the last slot is loopback's");
        take(&mut slots, "::ffff:127.0.0.1").unwrap();
        assert_eq!(take(&mut slots, "127.0.0.1").err(), Some(Full::All));
        slots.free(&first);
        assert_eq!(take(&mut slots, "192.0.2.1").err(), Some(Full::All));
        take(&mut slots, "127.0.0.1").unwrap();
        assert_eq!(slots.per_address[&address("192.0.2.1")].load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_holds_most_gives_way_first_and_of_that_client_what_has_waited_longest() {
        let limits = Limits { max_connections: 6, max_per_address: 3, reserved_for_loopback: 0, ..Limits::default() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut slots = Slots::default();
        let take = |slots: &mut Slots, ip: &str| {
            slots.check(address(ip), &limits)?;
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let socket = Arc::new(listener.accept().unwrap().0);
            Ok((slots.take(socket, (address(ip), 1).into()), client))
        };
        let (few, _few) = take(&mut slots, "192.0.2.1").unwrap();
        let many: Vec<_> = (0..3).map(|_| take(&mut slots, "192.0.2.2").unwrap()).collect();
        let (two, _two) = take(&mut slots, "192.0.2.3").unwrap();
        take(&mut slots, "192.0.2.3").unwrap();
        // Answered since, the first of the three has waited least; the second sends a head, which is no less waiting.
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(many[0].0.enter(Phase::Head) && many[0].0.enter(Phase::Busy) && many[0].0.enter(Phase::Idle));
        assert!(many[1].0.enter(Phase::Head));
        assert_eq!(take(&mut slots, "192.0.2.2").err(), Some(Full::Address));
        assert_eq!(take(&mut slots, "192.0.2.4").err(), Some(Full::All));

        assert!(slots.evict(None));
        assert!(many[1].0.is_in(Phase::Evicted) && !many[1].0.enter(Phase::Busy), "it has lost its slot for good");
        assert_eq!(std::io::Read::read(&mut &many[1].1, &mut [0]).unwrap(), 0, "and its socket");
        assert_eq!((slots.open.len(), slots.leaving()), (5, 1));
        // Both have two now: the one that came first gives way, and neither who is answered nor who lingers long.
        assert!(many[2].0.enter(Phase::Busy) && two.enter(Phase::Streaming));
        assert!(slots.evict(Some(address("192.0.2.2"))));
        assert!(many[0].0.is_in(Phase::Evicted));
        assert!(!slots.evict(Some(address("192.0.2.2"))), "all of that address are busy");
        assert!(slots.evict(None) && slots.evict(None) && !slots.evict(None));
        assert!(few.is_in(Phase::Evicted) && two.is_in(Phase::Streaming));
        assert_eq!((slots.open.len(), slots.leaving()), (2, 4));
        assert!(!slots.free(&many[0].0) && slots.free(&two));
        assert_eq!((slots.open.len(), slots.leaving()), (1, 3));
        assert_eq!(slots.per_address.len(), 1);
    }

    #[test]
    fn an_ipv6_client_owns_its_whole_64() {
        assert_eq!(share_of(address("2001:db8::1")), share_of(address("2001:db8::ffff:2")));
        assert_ne!(share_of(address("2001:db8::1")), share_of(address("2001:db8:0:1::1")));
        assert_eq!(share_of(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        assert_eq!(share_of(address("::1")), address("::1"));
    }
}
