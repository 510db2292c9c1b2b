//! Many event streams at once through the real program, every event checked octet for octet.
//!
//! Backends and clients are those of the stream driver in `benches/streaming`. What a client gets
//! follows from what it has ordered, so that an event that is lost, doubled, torn or another
//! stream's is seen at once. Nothing is asserted about speed: what a test waits for has a deadline
//! that only passes when something is broken.
//!
//! Small and short with `cargo test`; `scripts/stream-soak.sh` runs the same tests with thousands
//! of streams for minutes. `STREAMS_LOAD_STREAMS` and `STREAMS_LOAD_SECONDS` say how many and how
//! long, `STREAMS_LOAD_SEED` draws the same streams and clients again (though the machine decides
//! their timing), `STEPFLOW_LB_BIN` names the program.

#![expect(clippy::print_stdout, reason = "a run tells how it goes")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

mod lab;
mod mixture;
mod rehearsal;
mod stalled;
#[allow(dead_code, reason = "the driver measures with the rest of it")]
#[path = "../../benches/streaming/mod.rs"]
mod streaming;
#[allow(dead_code, unused_imports, reason = "the other suites use more of the shared support")]
#[path = "../support/mod.rs"]
mod support;
