//! The balancer on real sockets: rude clients, scripted backends, octet for octet.
//!
//! Each module states a part of what the data path promises; each test name is one promise. The
//! suite can be repeated as a whole on another driver or with another number of workers, with
//! `STEPFLOW_LB_IO_DRIVER` and `STEPFLOW_LB_WORKERS`.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

#[path = "../support/mod.rs"]
mod support;

mod affinity;
mod balancing;
mod bodies;
mod cancel;
mod dates;
mod drain;
mod draining;
mod driver;
mod ending;
mod explain;
mod forwarding;
mod framing;
mod handover;
mod health_checks;
mod health_endpoint;
mod heartbeats;
mod initialize;
mod interim;
mod large;
mod leaving;
mod limits;
mod outliers;
mod pooling;
mod resources;
mod responses;
mod resume;
mod sessions;
mod silence;
mod sse;
mod stream_numbers;
mod streams;
mod trailers;
mod tunnel;
mod waiting;
mod zone;
