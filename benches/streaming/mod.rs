//! Event streams from both ends: backends that send them and clients that read them.
//!
//! Every event follows from a few numbers that a client puts into its request, so that a backend
//! needs to be told nothing else, any backend can go on where another one stopped, and a client
//! checks what it reads octet for octet. Backends and clients are tasks on a Tokio runtime of one
//! thread each: ten thousand events a second, both ends together, cost a fifth of one core.
//!
//! Owns what an event holds, when it is due, and what is seen of it on either side. Does not own
//! who asks for what; `benches/streams.rs` and `tests/streams_load` do. Nothing here shares code
//! with the product.

pub(crate) mod client;
pub(crate) mod event;
pub(crate) mod figures;
pub(crate) mod reader;
pub(crate) mod source;

use std::time::SystemTime;

/// Nanoseconds since 1970: the one clock that processes share and that needs no unsafe code.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    // Before 1970 there are no streams, and behind 2554 there is somebody else.
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
