//! What one request and one event may cost: operations of the kernel, writes, allocations.
//!
//! Instructions are counted elsewhere (`benches/README.md`); here are costs that hide in a profile
//! of one's own code. The numbers are exact and the same on every machine, so they are compared for
//! equality: whoever saves an operation lowers its budget in the same commit.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]
#![allow(clippy::print_stderr, reason = "a test that cannot run here says so")]

#[allow(dead_code, unused_imports, reason = "not every suite needs everything")]
#[path = "../support/mod.rs"]
mod support;

mod allocations;
mod counting;
mod ring;
mod strace;
mod system_calls;

use support::{Backend, Peer, wire::Client};

/// Requests that are measured, by what they are called here.
const REQUESTS: [(&str, &str); 5] = [
    ("GET", "GET /TARGET HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("POST", "POST /TARGET HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
    (
        "chunked POST",
        "POST /TARGET HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n",
    ),
    ("GET of an instance", "GET /TARGET HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n"),
    ("GET of 100 kB", "GET /TARGET/large HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// A request as it is sent. The target says in a trace which one it is.
fn request(name: &str, target: &str) -> String {
    let (_, text) = REQUESTS.iter().find(|(known, _)| *known == name).unwrap();
    text.replace("TARGET", target)
}

/// A backend that answers them in one piece.
fn backend() -> Backend {
    let large = "x".repeat(100_000);
    let answer = move |peer: &mut Peer| {
        peer.read_body();
        let is_large = peer.head.target().ends_with("/large");
        peer.answer(if is_large { &large[..] } else { "ok" });
    };
    Backend::scripted(answer).healthy_as("one")
}

/// An event stream that has begun.
struct Stream {
    client: Client,
    peer: Peer,
}

impl Stream {
    fn begin(mut client: Client, backend: &Backend) -> Self {
        client.send("GET /stream HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
        let mut peer = backend.next();
        peer.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
        );
        client.head();
        Self { client, peer }
    }

    /// Sends one event through and waits until it has arrived.
    fn tell(&mut self, what: &str) {
        let event = format!("data: {what}\n\n");
        self.peer.send(support::message::chunk(&event));
        assert_eq!(self.client.chunk(), event.as_bytes());
    }
}
