//! Who is connected, what each connection is doing, and whether one more may come in. Caps are decided under one lock.

use super::server::Limits;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a connection is doing, as far as a drain must know.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Phase {
    /// It has come, and its first request has not.
    Fresh,
    /// Between two requests.
    Idle,
    Busy,
    Streaming,
}

pub(super) struct Connection {
    id: u64,
    pub(super) socket: Arc<TcpStream>,
    pub(super) remote: SocketAddr,
    phase: AtomicU8,
}

impl Connection {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::SeqCst) == phase as u8
    }
}

/// The open connections.
#[derive(Default)]
pub(super) struct Slots {
    next_id: u64,
    pub(super) open: HashMap<u64, Arc<Connection>>,
    per_address: HashMap<IpAddr, usize>,
}

/// Which cap stands against one more connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Address,
}

impl Slots {
    pub(super) fn check(&self, remote: IpAddr, limits: &Limits) -> Result<(), Full> {
        let reserved = if remote.to_canonical().is_loopback() { 0 } else { limits.reserved_for_loopback };
        if self.open.len() + reserved >= limits.max_connections {
            return Err(Full::All);
        }
        match self.per_address.get(&share_of(remote)) {
            Some(&n) if n >= limits.max_per_address => Err(Full::Address),
            _ => Ok(()),
        }
    }

    pub(super) fn take(&mut self, socket: Arc<TcpStream>, remote: SocketAddr) -> Arc<Connection> {
        self.next_id += 1;
        let phase = AtomicU8::new(Phase::Fresh as u8);
        let connection = Arc::new(Connection { id: self.next_id, socket, remote, phase });
        self.open.insert(connection.id, Arc::clone(&connection));
        *self.per_address.entry(share_of(remote.ip())).or_default() += 1;
        connection
    }

    pub(super) fn free(&mut self, connection: &Connection) {
        self.open.remove(&connection.id);
        let share = share_of(connection.remote.ip());
        if let Some(n) = self.per_address.get_mut(&share) {
            *n -= 1;
            if *n == 0 {
                self.per_address.remove(&share);
            }
        }
    }
}

/// What one client is taken to own: an IPv4 address, or an IPv6 /64, within which addresses are free to choose.
fn share_of(address: IpAddr) -> IpAddr {
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
        assert_eq!(slots.per_address[&address("192.0.2.1")], 1);
    }

    #[test]
    fn an_ipv6_client_owns_its_whole_64() {
        assert_eq!(share_of(address("2001:db8::1")), share_of(address("2001:db8::ffff:2")));
        assert_ne!(share_of(address("2001:db8::1")), share_of(address("2001:db8:0:1::1")));
        assert_eq!(share_of(address("::ffff:192.0.2.1")), address("192.0.2.1"));
        assert_eq!(share_of(address("::1")), address("::1"));
    }
}
