//! What the fuzz targets do with their input, apart from libFuzzer.
//!
//! Each target is one function from octets to a [`Verdict`] that panics when a property does not
//! hold. `fuzz_targets/` hands them to libFuzzer, which needs a nightly compiler;
//! `tests/corpus_replay.rs` includes this file and runs the corpus through them with the stable one,
//! so that every input that was ever interesting is tested on every change.
//!
//! The oracles in [`naive`], [`rules`] and [`reader`] are written from the specifications and share
//! nothing with the product: an oracle that calls what it judges agrees with it in every mistake.

// Public in the fuzz crate, private in the test that includes this file.
#![allow(unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod body;
pub mod config;
pub mod events;
pub mod exchange;
pub mod framing;
pub mod head;
pub mod naive;
pub mod plane;
pub mod reader;
pub mod response;
pub mod rules;

/// Whether the product took the input. Tells a corpus that tests something from one that is always
/// refused at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The properties of what was accepted have been checked.
    Accepted,
    /// Refused; that it was refused in an orderly way has been checked.
    Refused,
}

/// A target: its name, which is that of its directory in `corpus/`, and what it does.
pub type Target = (&'static str, fn(&[u8]) -> Verdict);

/// Every target.
pub const TARGETS: &[Target] = &[
    ("head", head::run),
    ("response", response::run),
    ("body", body::run),
    ("events", events::run),
    ("framing", framing::run),
    ("exchange", exchange::run),
    ("config", config::run),
    ("plane", plane::run),
];
