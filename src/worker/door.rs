//! Step 1, second half: who may stay. `connections_max` counts all clients, and
//! `connections_per_client_max` each; whoever is over one of them is told so and closed. A
//! connection that is open is never closed for another one.
//!
//! Each worker counts in cells of its own, first, and then adds up everybody's. Of two workers that
//! do so at the same time at least one sees the other, so a limit is never exceeded; where both
//! do, both refuse, and the last place stays free for the next.

use std::{
    cell::RefCell,
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::atomic::{Ordering, fence},
    time::{Duration, SystemTime},
};

use monoio::net::TcpStream;

use super::{Worker, buffer::Size};
use crate::{
    exchange::{Announced, Answer, ErrorContext, ErrorFormat, Failure, Tick},
    http1::Method,
    stats::{ClientCounts, ClientKey, StatusKey},
    sys::Duplex,
    telemetry::{AccessRecord, Routed, loggable_path},
};

/// Refused connections that are kept for a moment. Closing one whose request lies unread resets it
/// and may take the answer along (RFC 9112 §9.6). In a flood the oldest go at once: they are
/// what the descriptors were kept for.
const REFUSED_MAX: usize = 16;

/// How long a refused client may take to read why.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// One worker's limits on who comes in.
pub(super) struct Door {
    connections_max: u64,
    per_client_max: Option<u64>,
    /// The same in every worker, and another in every process: nobody can choose addresses that
    /// share a count.
    hasher: RandomState,
    refused: RefCell<VecDeque<(Duplex, Tick)>>,
}

/// A connection that is counted, until this is dropped.
pub(super) struct Guest {
    pub(super) worker: Rc<Worker>,
    key: Option<ClientKey>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.worker.stats().connections_open.decrement();
        if let Some(key) = self.key {
            self.worker.stats().clients.decrement(key);
        }
    }
}

impl Door {
    pub(super) fn new(
        connections_max: u64,
        per_client_max: Option<u32>,
        hasher: RandomState,
    ) -> Self {
        let per_client_max = per_client_max.map(u64::from);
        Self { connections_max, per_client_max, hasher, refused: RefCell::default() }
    }

    /// Lets go of refused connections whose time has passed.
    pub(super) fn expire(&self, now: Tick) {
        let mut refused = self.refused.borrow_mut();
        while refused.front().is_some_and(|(_, until)| *until <= now) {
            refused.pop_front();
        }
    }
}

/// Counts a connection, if it may stay.
pub(super) fn admit(worker: &Rc<Worker>, address: SocketAddr) -> Result<Guest, Failure> {
    let door = &worker.door;
    let stats = worker.stats();
    stats.connections_open.increment();
    let key = door.per_client_max.map(|_| ClientKey(door.hasher.hash_one(client(address.ip()))));
    if let Some(key) = key {
        stats.clients.increment(key);
    }
    let guest = Guest { worker: Rc::clone(worker), key };
    // Every worker counts before its fence and adds up behind it: of two, the later sees both.
    fence(Ordering::SeqCst);
    let all = worker.all_stats.iter();
    if all.clone().map(|stats| stats.connections_open.get()).sum::<u64>() > door.connections_max {
        return Err(Failure::TooManyConnections);
    }
    if let (Some(key), Some(max)) = (key, door.per_client_max)
        && ClientCounts::sum(all.map(|stats| &stats.clients), key) > max
    {
        return Err(Failure::TooManyConnectionsOfClient);
    }
    Ok(guest)
}

/// Who counts as one client: an IPv4 address, or an IPv6 network, because whoever has one address
/// of a /64 has all of them.
fn client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// Tells a client that it cannot stay. Waits for nothing: what the kernel does not take at once is
/// not sent.
pub(super) fn refuse(worker: &Worker, stream: TcpStream, address: SocketAddr, failure: Failure) {
    let Some(status) = failure.status() else { return };
    let context = ErrorContext::default();
    let (body, content_type) = failure.body(ErrorFormat::Text, &context);
    let mut out = worker.buffers.take(Size::Small);
    let answer = Answer { status, content_type: Some(content_type), body: &body };
    answer.write(&mut out, Method::Get, &worker.date.borrow(), Announced::Close);
    if let Ok(connection) = Duplex::new(stream, Rc::clone(&worker.turns)) {
        // A client that does not take this much into an empty buffer has gone.
        let _ = connection.try_send(&out);
        connection.finish_sending();
        let mut refused = worker.door.refused.borrow_mut();
        if refused.len() >= REFUSED_MAX {
            refused.pop_front();
        }
        refused.push_back((connection, worker.alarms.now().after(REFUSED_FOR)));
    }
    worker.buffers.give(out);
    let stats = worker.stats();
    stats.failures.at(failure.index()).add(1);
    stats.own.record(StatusKey { method: Method::Other.index(), status }, Duration::ZERO);
    let label = Some(failure.label());
    if !worker.logger.wants(label) {
        return;
    }
    let was_logged = worker.logger.log(AccessRecord {
        finished: SystemTime::now(),
        method: Method::Other.label(),
        path: loggable_path(b""),
        status,
        backend: None,
        instance: None,
        routed: Routed::None,
        decision: None,
        mcp: None,
        stream: None,
        duration: Duration::ZERO,
        bytes_up: 0,
        bytes_down: body.len() as u64,
        failure: label,
        stage: failure.stage().label(),
        client: address,
        worker: worker.index,
    });
    if !was_logged {
        stats.log_records_dropped.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        let same = |a: &str, b: &str| client(a.parse().unwrap()) == client(b.parse().unwrap());
        assert!(same("192.0.2.1", "192.0.2.1"));
        assert!(!same("192.0.2.1", "192.0.2.2"));
        assert!(same("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(!same("0.0.0.1", "::1"));
    }
}
