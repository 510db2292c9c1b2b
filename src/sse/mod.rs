//! Pure: event streams (WHATWG Server-Sent Events): where their events are, and how a stream is
//! handed on by somebody who knows it.
//!
//! Owns the grammar of events, and what may be written into a stream that somebody else makes.
//! Does not own HTTP's framing of it, which is [`http1`](crate::http1)'s, nor when something is
//! written or a stream ends, which is decided by whoever relays it.

mod body;
#[cfg(test)]
mod tests;
mod tracker;

pub use body::{Cut, EventBody, HELD_BYTES_MAX, Pushed, Reading};
pub use tracker::{EventTracker, Passed, last_event_id};
