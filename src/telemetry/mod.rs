//! Log lines: where they go, how they look, and the access log that never makes a worker wait.
//!
//! A worker hands over a small [`AccessRecord`] per exchange through a bounded queue and goes on;
//! when the queue is full the record is dropped and the worker counts it. One thread turns records
//! into `tracing` events, so formatting and slow terminals cost no request anything.
//!
//! Owns the subscriber and that thread. Does not own which exchanges are worth a record beyond
//! [`AccessLogger::wants`], nor what is logged elsewhere.

mod access;
mod subscriber;
mod time;

pub use access::{
    ACCESS_TARGET, AccessLogger, AccessRecord, AccessWriter, McpRecord, Routed, StreamRecord,
    loggable, loggable_path,
};
pub use subscriber::{TelemetryError, install};

#[cfg(test)]
mod tests;
