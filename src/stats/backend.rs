//! Pure: what every worker counts about one backend.

use std::sync::OnceLock;

use super::{Gauge, Series};

/// The counts of one backend: one cell per worker.
///
/// Shared by reference between the control thread, which allocates it together with the backend's
/// identity, and the workers. It lives as long as the identity, so a discovery refresh can neither
/// reset a count nor let a late decrement wrap.
#[derive(Debug)]
pub struct BackendStats {
    cells: Box<[BackendCell]>,
}

/// What one worker counts about one backend. Only that worker writes it.
///
/// Two cache lines apart from its neighbours, because adjacent-line prefetch would otherwise make
/// two workers fight over one backend's counts.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BackendCell {
    /// Exchanges running now, streams included, until their last octet.
    pub in_flight: Gauge,
    /// Of these, event streams.
    pub event_streams: Gauge,
    // Allocated with the first finished exchange: a backend that a worker never uses costs one
    // cell.
    series: OnceLock<Box<Series>>,
}

impl BackendStats {
    /// Cells for `workers` workers.
    pub fn new(workers: usize) -> Self {
        Self { cells: (0..workers).map(|_| BackendCell::default()).collect() }
    }

    /// The cell that worker number `worker` writes.
    ///
    /// # Panics
    /// If there is no such worker.
    #[inline]
    pub fn cell(&self, worker: usize) -> &BackendCell {
        &self.cells[worker]
    }

    /// Exchanges running now on all workers. Exact up to increments that happen during the sum.
    #[inline]
    pub fn in_flight(&self) -> u64 {
        self.cells.iter().map(|cell| cell.in_flight.get()).sum()
    }

    /// Event streams running now on all workers.
    pub fn event_streams(&self) -> u64 {
        self.cells.iter().map(|cell| cell.event_streams.get()).sum()
    }

    /// The finished exchanges of every worker that has any.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.cells.iter().filter_map(|cell| cell.series.get()).map(|series| &**series)
    }
}

impl BackendCell {
    /// Where the owning worker counts finished exchanges.
    #[inline]
    pub fn series(&self) -> &Series {
        self.series.get_or_init(Box::default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_flight_is_the_sum_over_workers() {
        let stats = BackendStats::new(3);
        stats.cell(0).in_flight.increment();
        stats.cell(2).in_flight.increment();
        stats.cell(2).in_flight.increment();
        assert_eq!(stats.in_flight(), 3);
        stats.cell(2).in_flight.decrement();
        assert_eq!(stats.in_flight(), 2);
    }

    #[test]
    fn an_unused_backend_costs_one_cell_per_worker() {
        assert_eq!(size_of::<BackendCell>(), 128);
        assert_eq!(BackendStats::new(2).series().count(), 0);
    }
}
