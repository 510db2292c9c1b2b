//! A DNS server that knows one service, whose one backend is where the test says.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};

/// The service, as `upstream_service` names it.
pub(crate) const SERVICE: &str = "srv:_http._tcp.workers.test.";

/// The host of its backend.
const HOST: &[u8] = b"\x04host\x04test\x00";

const SRV: [u8; 2] = [0, 33];
const A: [u8; 2] = [0, 1];

/// Answers on a free port of 127.0.0.1, until it is dropped.
pub(crate) struct Zone {
    pub(crate) address: SocketAddr,
    port: Arc<AtomicU16>,
    thread: Option<JoinHandle<()>>,
}

impl Zone {
    /// One that names this port of 127.0.0.1.
    pub(crate) fn naming(port: u16) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("a bound socket has an address");
        let named = Arc::new(AtomicU16::new(port));
        let shown = Arc::clone(&named);
        let thread = thread::spawn(move || serve(&socket, &shown));
        Self { address, port: named, thread: Some(thread) }
    }

    /// From now on it names this one.
    pub(crate) fn set(&self, port: u16) {
        self.port.store(port, SeqCst);
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        // An empty datagram ends it.
        let sent = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.send_to(&[], self.address));
        if sent.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let ended = thread.join();
            assert!(thread::panicking() || ended.is_ok(), "the server panicked");
        }
    }
}

fn serve(socket: &UdpSocket, port: &AtomicU16) {
    let mut buffer = [0; 1500];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).expect("a bound socket receives");
        if n == 0 {
            return;
        }
        let reply = answer(&buffer[..n], port.load(SeqCst));
        // Whoever asked may be gone.
        let _ = socket.send_to(&reply, from);
    }
}

/// The answer to a query with one question (RFC 1035 §4.1), with no name servers to speak of.
fn answer(query: &[u8], port: u16) -> Vec<u8> {
    let name_end = 12 + query[12..].iter().position(|octet| *octet == 0).expect("a name") + 1;
    let question = &query[12..name_end + 4];
    let kind = [query[name_end], query[name_end + 1]];
    let record = match kind {
        SRV => Some([&[0, 0, 0, 1], &port.to_be_bytes()[..], HOST].concat()),
        A => Some(vec![127, 0, 0, 1]),
        _ => None,
    };
    let count = [0, u8::from(record.is_some())];
    // An authoritative answer to a recursive question, without an error.
    let mut reply = [&query[..2], &[0x85, 0x80, 0, 1], &count, &[0, 0, 0, 0], question].concat();
    if let Some(record) = record {
        let length = u16::try_from(record.len()).expect("short").to_be_bytes();
        // The name of the question, class IN, a TTL of 0.
        reply.extend([&[0xc0, 12], &kind[..], &[0, 1, 0, 0, 0, 0], &length, &record].concat());
    }
    reply
}
