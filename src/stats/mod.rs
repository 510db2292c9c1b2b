//! Pure: counters with one writer each, summed by whoever reads them.
//!
//! A worker counts in cells that only it writes; the control thread adds the cells up when somebody
//! scrapes. Nothing here takes a lock or does an atomic read-modify-write: on x86 and arm an
//! increment is a plain load, add and store. Readers may see a torn *set* of counters (a request
//! counted, its duration not yet), but never a torn number. The table of live sessions is the
//! exception that says why.
//!
//! Owns the counts. Does not own their names: labels are put on in `control::admin::metrics`.

mod backend;
mod cell;
mod clients;
mod histogram;
mod outcome;
mod series;
mod sessions;
mod worker;

pub use backend::{BackendCell, BackendStats};
pub use cell::{Counter, Gauge, Held};
pub use clients::{ClientCounts, ClientKey};
pub use histogram::{DURATION_BUCKETS_MS, Histogram, HistogramReading};
pub use outcome::{OutcomeCell, OutcomeReading};
pub use series::{METHODS, Series, SeriesReading, StatusKey};
pub use sessions::{Begun, LiveSessions, SessionOwner, SessionTag};
pub use worker::{FAILURES_MAX, LOST_REASONS, WorkerStats};
