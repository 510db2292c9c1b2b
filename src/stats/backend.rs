//! Pure: what every worker counts about one backend.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    Counter, Gauge, OutcomeCell, OutcomeReading, PeakLatency, Series, SilenceCell, SilenceReading,
    StreamSeries,
};

/// The counts of one backend.
///
/// Shared by reference between the control thread, which allocates it together with the backend's
/// identity, and the workers. It lives as long as the identity, so a discovery refresh can neither
/// reset a count nor let a late decrement wrap.
///
/// What pickers read is one cache line for all workers, written with atomic read-modify-writes:
/// two workers that choose at the same moment must not both find the same place free (ADR 23).
/// Everything else stays in cells with one writer each.
#[derive(Debug)]
pub struct BackendStats {
    load: Load,
    cells: Box<[BackendCell]>,
    connections: Connections,
    /// Load that this balancer does not see, such as streams that came through another one: as the
    /// backend last said, less what ran through us then. Only the control thread writes it.
    pub unseen_load: Gauge,
}

/// Connections of all workers. One number for all of them, because a bound that two workers meet at
/// the same moment must let one of them have the last place; it changes only when a connection is
/// opened or closed.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Connections(AtomicU64);
/// Two cache lines apart from its neighbours, because adjacent-line prefetch would otherwise make
/// workers that choose different backends fight over them.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Load {
    in_flight: AtomicU64,
    latency: PeakLatency,
}

/// What one worker counts about one backend. Only that worker writes it.
///
/// Two cache lines apart from its neighbours, for the same reason.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct BackendCell {
    /// Event streams running now.
    pub event_streams: Gauge,
    /// How requests have turned out. Untouched while nobody wants to know.
    pub outcomes: OutcomeCell,
    /// How its event streams sound. Untouched while nobody wants to know.
    pub silence: SilenceCell,
    /// Requests running now that may begin a session, and have not yet.
    pub sessions_pending: Gauge,
    /// Sessions that became live.
    pub sessions_opened: Counter,
    /// Sessions that are live no more, whoever opened them.
    pub sessions_closed: Counter,
    // Allocated with the first finished exchange: a backend that a worker never uses costs one
    // cell.
    series: OnceLock<Box<Series>>,
    // Likewise, with the first event stream.
    streams: OnceLock<Box<StreamSeries>>,
}

impl BackendStats {
    /// Cells for `workers` workers.
    pub fn new(workers: usize) -> Self {
        let cells = (0..workers).map(|_| BackendCell::default()).collect();
        Self {
            load: Load::default(),
            cells,
            connections: Connections::default(),
            unseen_load: Gauge::default(),
        }
    }

    /// The cell that worker number `worker` writes.
    ///
    /// # Panics
    /// If there is no such worker.
    #[inline]
    pub fn cell(&self, worker: usize) -> &BackendCell {
        &self.cells[worker]
    }

    /// Exchanges running now on all workers, streams included, until their last octet. Exact.
    #[inline]
    pub fn in_flight(&self) -> u64 {
        // Relaxed everywhere: the number guards no other memory, and whether a choice was right
        // depends on this one number alone (`enter_if`).
        self.load.in_flight.load(Relaxed)
    }

    /// One more exchange, whatever is running.
    #[inline]
    pub fn enter(&self) {
        self.load.in_flight.fetch_add(1, Relaxed);
    }

    /// One more exchange, if exactly `seen` are running still. False when the number has changed
    /// since it was read: then the choice that rests on it must be made again.
    ///
    /// Why this makes least connections exact: while exchanges only begin, a number that was read
    /// for some other backend is at most what that backend has at the end. So whoever enters here
    /// at `seen`, having found no lower number elsewhere, never lifts a backend more than one above
    /// any other, however many workers do the same at the same time.
    #[inline]
    pub fn enter_if(&self, seen: u64) -> bool {
        self.load.in_flight.compare_exchange(seen, seen + 1, Relaxed, Relaxed).is_ok()
    }

    /// One more exchange, unless `most` are running already.
    #[inline]
    pub fn enter_below(&self, most: u64) -> bool {
        let one_more = |running: u64| (running < most).then_some(running + 1);
        self.load.in_flight.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// One less. Stays at zero in release builds: a count that wraps would starve a backend for
    /// ever, which is how the original balancer lost healthy ones.
    #[inline]
    pub fn leave(&self) {
        let left = self.load.in_flight.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        debug_assert!(left.is_ok(), "an exchange left a backend that none had entered");
    }

    /// How long the backend takes to answer, over all workers.
    #[inline]
    pub fn latency(&self) -> &PeakLatency {
        &self.load.latency
    }

    /// How requests have turned out on all workers.
    pub fn outcomes(&self) -> OutcomeReading {
        OutcomeReading::sum(self.cells.iter().map(|cell| &cell.outcomes))
    }

    /// How its event streams sound on all workers.
    pub fn silence(&self) -> SilenceReading {
        SilenceReading::sum(self.cells.iter().map(|cell| &cell.silence))
    }

    /// Event streams running now on all workers.
    pub fn event_streams(&self) -> u64 {
        self.cells.iter().map(|cell| cell.event_streams.get()).sum()
    }

    /// Connections open now from all workers: idle ones and those being opened included. Exact.
    #[inline]
    pub fn connections(&self) -> u64 {
        // Relaxed everywhere: the number guards no other memory.
        self.connections.0.load(Relaxed)
    }

    /// One more connection, whatever is open.
    pub fn open(&self) {
        self.connections.0.fetch_add(1, Relaxed);
    }

    /// One more connection, unless so many are open already.
    #[must_use]
    pub fn open_below(&self, most: u64) -> bool {
        let one_more = |open| (open < most).then_some(open + 1);
        self.connections.0.fetch_update(Relaxed, Relaxed, one_more).is_ok()
    }

    /// One connection less. Stays at zero in release builds, as a [`super::Gauge`] does.
    pub fn close(&self) {
        let closed = self.connections.0.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
        debug_assert!(closed.is_ok(), "a connection was closed that nobody had opened");
    }

    /// Sessions live now, on all workers. One may be opened on one worker and closed on another, so
    /// only the sum means anything.
    pub fn sessions_live(&self) -> u64 {
        let sum = |of: fn(&BackendCell) -> &Counter| {
            self.cells.iter().map(|cell| of(cell).get()).fold(0, u64::wrapping_add)
        };
        // Closed first: whatever is counted meanwhile can only make the difference larger.
        let closed = sum(|cell| &cell.sessions_closed);
        sum(|cell| &cell.sessions_opened).saturating_sub(closed)
    }

    /// Sessions live now, and those that may begin any moment.
    pub fn sessions(&self) -> u64 {
        let pending: u64 = self.cells.iter().map(|cell| cell.sessions_pending.get()).sum();
        self.sessions_live() + pending
    }

    /// The finished exchanges of every worker that has any.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.cells.iter().filter_map(|cell| cell.series.get()).map(|series| &**series)
    }

    /// The event streams of every worker that has had any.
    pub fn streams(&self) -> impl Iterator<Item = &StreamSeries> {
        self.cells.iter().filter_map(|cell| cell.streams.get()).map(|streams| &**streams)
    }
}

impl BackendCell {
    /// Where the owning worker counts finished exchanges.
    #[inline]
    pub fn series(&self) -> &Series {
        self.series.get_or_init(Box::default)
    }

    /// Where the owning worker counts its event streams.
    #[inline]
    pub fn streams(&self) -> &StreamSeries {
        self.streams.get_or_init(Box::default)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn in_flight_is_what_entered_and_has_not_left() {
        let stats = BackendStats::new(3);
        stats.enter();
        assert!(stats.enter_if(1));
        assert!(!stats.enter_if(1), "two are running");
        assert!(stats.enter_below(3));
        assert!(!stats.enter_below(3));
        assert_eq!(stats.in_flight(), 3);
        stats.leave();
        assert_eq!(stats.in_flight(), 2);
    }

    #[test]
    fn a_bound_on_connections_holds_however_many_threads_open_at_once() {
        let stats = Arc::new(BackendStats::new(0));
        let threads = [0; 4].map(|_| {
            let stats = Arc::clone(&stats);
            std::thread::spawn(move || (0..1000).filter(|_| stats.open_below(700)).count())
        });
        let opened: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!((opened, stats.connections()), (700, 700));
        stats.open();
        assert!(!stats.open_below(701));
        stats.close();
        stats.close();
        assert!(stats.open_below(700) && !stats.open_below(700));
    }

    #[test]
    fn a_session_may_be_opened_on_one_worker_and_closed_on_another() {
        let stats = BackendStats::new(2);
        stats.cell(0).sessions_opened.add(2);
        stats.cell(1).sessions_closed.add(1);
        let pending = stats.cell(1).sessions_pending.hold();
        assert_eq!((stats.sessions_live(), stats.sessions()), (1, 2));
        drop(pending);
        stats.cell(1).sessions_closed.add(1);
        assert_eq!((stats.sessions_live(), stats.sessions()), (0, 0));
    }

    #[test]
    fn a_limit_holds_however_many_threads_enter_at_once() {
        let stats = Arc::new(BackendStats::new(0));
        let enter = || {
            let stats = Arc::clone(&stats);
            move || (0..1000).filter(|_| stats.enter_below(700)).count()
        };
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(enter())).collect();
        let entered: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert_eq!((entered, stats.in_flight()), (700, 700));
    }

    #[test]
    fn an_unused_backend_costs_one_cell_per_worker() {
        assert_eq!(size_of::<BackendCell>(), 128);
        assert_eq!(size_of::<Load>(), 128);
        let stats = BackendStats::new(2);
        assert_eq!((stats.series().count(), stats.streams().count()), (0, 0));
        stats.cell(1).streams().events.add(1);
        assert_eq!((stats.series().count(), stats.streams().count()), (0, 1));
    }
}
