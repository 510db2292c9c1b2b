//! Pure: counters with one writer each, summed by whoever reads them.
//!
//! A worker counts in cells that only it writes; the control thread adds the cells up when somebody
//! scrapes. Nothing here takes a lock, and counting does no atomic read-modify-write: on x86 and
//! arm an increment is a plain load, add and store. Two things are exceptions and say why: what
//! pickers decide by, the load of a [`BackendStats`], which all workers write (ADR 23), and the
//! table of live sessions. Readers may see a torn *set* of counters (a request counted, its
//! duration not yet), but never a torn number.
//!
//! Owns the counts. Does not own their names: labels are put on in `control::admin::metrics`.

mod backend;
mod cell;
mod clients;
mod histogram;
mod latency;
mod outcome;
mod series;
mod sessions;
mod silence;
mod streams;
mod timings;
mod worker;

pub use backend::{BackendCell, BackendStats};
pub use cell::{Counter, Gauge, Held};
pub use clients::{ClientCounts, ClientKey};
pub use histogram::{DURATION_BUCKETS_MS, Histogram, HistogramReading};
pub use latency::{PeakLatency, Sample};
pub use outcome::{OutcomeCell, OutcomeReading};
pub use series::{METHODS, Series, SeriesReading, StatusKey};
pub use sessions::{Begun, LiveSessions, SessionOwner, SessionTag};
pub use silence::{SilenceCell, SilenceReading};
pub use streams::{STREAM_ENDS, StreamReading, StreamSeries};
pub use timings::{CancelScale, Scale, StreamScale, Timings, TimingsReading};
pub use worker::{FAILURES_MAX, LOST_REASONS, WorkerStats};
