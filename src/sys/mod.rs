//! The only home of `unsafe`: what the safe wrappers of our dependencies do not offer.
//!
//! Owns thin, safe functions over sockets, CPUs and the ring. Does not own any decision.

#![allow(unsafe_code, reason = "this module is where it lives; every block says why it is sound")]

pub mod cpu;
mod duplex;
mod memory;
pub mod ring;
pub mod socket;
mod turns;

#[cfg(test)]
pub(crate) use duplex::testing;
pub use duplex::{Duplex, Ending, Peek, Readiness, Room};
pub use turns::Turns;
