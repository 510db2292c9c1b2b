//! What the tests on real sockets are written with.
//!
//! [`Balancer`] is the product, in this process, on free ports. [`Backend`] and [`Client`] are the
//! two ends of a test: plain blocking sockets that do exactly what the test says, however rude, and
//! remember every octet. A test plays both ends from one thread, line by line: it sends as the
//! client, takes up the request as the backend, answers, and reads as the client again. Nothing
//! here shares code with the product, so a misreading of the protocol cannot hide on both sides.
//!
//! Every wait has a deadline of [`PATIENCE`] and panics with what it waited for. Nothing sleeps in
//! order to let something happen; what takes time is asked for until it is so.

pub(crate) mod backend;
pub(crate) mod balancer;
pub(crate) mod message;
pub(crate) mod process;
pub(crate) mod wire;

use std::time::{Duration, Instant};

pub(crate) use backend::{Backend, Health, Peer};
pub(crate) use balancer::{Balancer, Metrics};
pub(crate) use process::Process;
pub(crate) use wire::{Client, End, Response};

/// How long anything may take before the test fails. Generous, because it only ever passes in full
/// when something is broken, and shorter than the thirty seconds and more of the product's default
/// deadlines, so that what happens in time has not happened because of one of them.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// Asks until the answer is yes.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Tries until an attempt says something. One that the machine has held up for so long that it
/// proves nothing says `None`.
#[allow(dead_code, reason = "not every suite has something that must be done in time")]
pub(crate) fn try_in_time<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + 4 * PATIENCE;
    loop {
        if let Some(said) = attempt() {
            return said;
        }
        assert!(Instant::now() < deadline, "never in time: {what}");
    }
}

/// Octets that look random and are the same every time.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut octets = Vec::with_capacity(len + 8);
    while octets.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        octets.extend_from_slice(&state.to_le_bytes());
    }
    octets.truncate(len);
    octets
}

/// The octets as a person reads them.
pub(crate) fn show(octets: &[u8]) -> String {
    const SHOWN_MAX: usize = 2000;
    let text = octets[..octets.len().min(SHOWN_MAX)].escape_ascii().to_string();
    let more = if octets.len() > SHOWN_MAX { "…" } else { "" };
    format!("{}{more} ({} octets)", text.replace("\\r\\n", "\\r\\n\n"), octets.len())
}
