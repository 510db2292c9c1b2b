//! The only home of `unsafe`: what the safe wrappers of our dependencies do not offer.
//!
//! Owns thin, safe functions over sockets, CPUs and the ring. Does not own any decision.

#![allow(unsafe_code, reason = "this module is where it lives; every block says why it is sound")]

pub mod cpu;
mod duplex;
mod memory;
mod polls;
pub mod ring;
pub mod socket;
#[cfg(test)]
pub(crate) mod testing;
mod turns;

pub use duplex::{Duplex, Ending, Peek, Readiness, Room};
pub use polls::Polls;
pub use turns::Turns;
