//! The Stepflow Load Balancer, as a library; `main.rs` only starts it.
//!
//! *One control thread decides; N worker threads move octets; they share nothing but immutable
//! snapshots and counters with one writer each.*
//!
//! - A **worker** is a thread with its own ring (or epoll), listener, connections, pool and table
//!   of backends. It serves a client connection from accept to close and asks nobody.
//! - The **control thread** asks DNS, probes the backends, and publishes what it found as a
//!   [`model::Snapshot`] to every worker over [`link`]. When it is slow, traffic goes on with the
//!   last one.
//! - A **backend** is one process at one address. Stepflow calls it a worker or component server.
//! - An **exchange** is one request and its response, streams included. It is counted against its
//!   backend until its last octet.
//!
//! Code comes in three kinds: *parse in machines, decide in pure functions, sequence in async.*
//! Files that begin with `//! Pure:` hold the first two: no sockets, no clock, no randomness, no
//! log. The others are shells, straight-line code from top to bottom. `tests/tidy.rs` holds every
//! file to its kind and every module to the modules above it.
//!
//! Where to begin: [`worker`]'s `http.rs` is one request from top to bottom, its steps numbered as
//! in `docs/LIFECYCLE.md`; [`plane`] is every decision of the control thread; [`server`] is the
//! wiring. `docs/ARCHITECTURE.md` is the long form of this page, `docs/adr` has the reasons.

// The modules in reading order: each may use those above it, as far as tests/tidy.rs allows. Empty
// lines between them keep rustfmt from sorting.

// HTTP/1.1 as functions and machines over octets.
pub mod http1;

// Event streams: where their events are, and what may be written between them.
pub mod sse;

// Counters and gauges with one writer each.
pub mod stats;

// The nouns: backend, instance, snapshot, target.
pub mod model;

// The decisions of one exchange, and the one table of failures.
pub mod exchange;

// Whom a request must reach: `Stepflow-Instance-Id`.
pub mod session;

// Which of several backends gets a request.
pub mod balance;

// When a backend is probed, and how many answers change the verdict.
pub mod health;

// Discovery, identity, health and drain as one machine.
pub mod plane;

// Options from flags, environment and file to one validated configuration.
pub mod config;

// Snapshots down, reports up.
pub mod link;

// The only `unsafe`: sockets, CPUs, the ring.
pub mod sys;

// Log lines, and an access log that makes no worker wait.
pub mod telemetry;

// HTTP/1.1 on Tokio, for places that see little traffic.
pub mod endpoint;

// The data plane: one thread, one ring.
pub mod worker;

// The control thread: DNS, probes, signals, metrics.
pub mod control;

// From a configuration to running threads, and back to an exit.
pub mod server;

// Three component servers to try it with; no part of the balancer.
pub mod demo;
