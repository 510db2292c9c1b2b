//! What `benches/` counts instructions of and nobody outside may use: a worker's table of backends,
//! and what measures an event stream.
//!
//! Here so that the counts are those of the code that serves, not of a copy beside it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    meter::StreamMeter,
    table::{BackendTable, Pacing, Tried},
};
use crate::{balance::Picker, exchange::Tick, model::Snapshot, sse::Pushed, stats::BackendStats};

/// A worker's table of backends.
#[doc(hidden)]
#[derive(Debug)]
pub struct MeasuredTable(BackendTable);

#[doc(hidden)]
#[allow(missing_docs, reason = "each hands its arguments on to the method of its name")]
impl MeasuredTable {
    pub fn new(picker: Picker, seed: u64) -> Self {
        Self(BackendTable::new(0, picker, Pacing::new(None, Tick::LENGTH), seed))
    }

    #[inline]
    pub fn apply(&mut self, snapshot: &Snapshot) -> usize {
        self.0.apply(snapshot, Tick(1)).len()
    }

    /// Picks for a request with this key, and ends the exchange at once.
    #[inline]
    pub fn pick(&mut self, key: Option<u64>) -> Option<u32> {
        let slot = self.0.pick(&Tried::default(), key, Tick(1), None)?;
        self.0.release(slot);
        Some(slot.0)
    }

    #[inline]
    pub fn instance(&self, id: &str) -> Option<u32> {
        self.0.instance(id).map(|slot| slot.0)
    }
}

/// What measures an event stream.
#[doc(hidden)]
#[derive(Debug)]
pub struct MeasuredMeter(StreamMeter);

#[doc(hidden)]
#[allow(missing_docs, reason = "each hands its arguments on to the method of its name")]
impl MeasuredMeter {
    pub fn begin(stats: Arc<BackendStats>, started: Instant) -> Self {
        Self(StreamMeter::begin(stats, 0, started, started, Some(Duration::from_secs(10))))
    }

    #[inline]
    pub fn content(&mut self, piece: Pushed, now: Instant) {
        self.0.content(piece, Some(true), now);
    }
}
