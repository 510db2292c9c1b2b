//! Pure: what one worker counts about itself.

use super::{CancelScale, ClientCounts, Counter, Gauge, Histogram, Series, Timings};

/// Places for failure labels; `exchange::FailureKind` asserts that it needs no more.
pub const FAILURES_MAX: usize = 96;

/// Ways in which a request finds that its session is lost, by label: another process is where its
/// instance was, nobody is, its instance takes no connections (where the request then goes
/// elsewhere), or its envelope does not open.
pub const LOST_REASONS: [&str; 4] = ["restarted", "gone", "unreachable", "forged"];

/// Counts of one worker. Only that worker writes them.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    /// Connections accepted since start.
    pub connections_accepted: Counter,
    /// Of these, connections that it handed to another worker.
    pub connections_handed_over: Counter,
    /// Connections that another worker had accepted and handed to this one.
    pub connections_taken_over: Counter,
    /// Client connections open now.
    pub connections_open: Gauge,
    /// Client connections open now, by client; only where there is a limit.
    pub clients: ClientCounts,
    /// Accept calls that failed because descriptors or memory ran out.
    pub accept_backoffs: Counter,
    /// Connections that a panic ended.
    pub panics: Counter,
    /// Version of the snapshot in use.
    pub snapshot_version: Gauge,
    /// Exchanges that ended as a failure, by `FailureKind` index.
    pub failures: FailureCounters,
    /// Responses that the balancer made itself: errors and its own endpoints.
    pub own: Series,
    /// Upstream connections opened.
    pub upstream_connects: Counter,
    /// Upstream connections that could not be opened.
    pub upstream_connect_failures: Counter,
    /// Exchanges that found a pooled connection.
    pub upstream_reuses: Counter,
    /// Idle upstream connections held now.
    pub upstream_idle: Gauge,
    /// Pooled connections dropped because octets arrived that nobody had asked for.
    pub upstream_poisoned: Counter,
    /// Trailer fields that were not handed on because they must not be trailers.
    pub trailer_fields_dropped: Counter,
    /// Exchanges sent again, to the same or another backend.
    pub retries: Counter,
    /// Retries that were not made because the budget was used up.
    pub retry_budget_exhausted: Counter,
    /// Requests that wait now because every backend is full.
    pub queue_waiting: Gauge,
    /// How long those waited that wait no more, whatever came of it.
    pub queue_waits: Histogram,
    /// Requests that named an instance.
    pub affinity_requests: Counter,
    /// Of these, requests that reached it.
    pub affinity_hits: Counter,
    /// Sessions that became live.
    pub sessions_opened: Counter,
    /// Sessions that their client or backend ended.
    pub sessions_ended: Counter,
    /// Sessions that nobody used for `session_idle`.
    pub sessions_expired: Counter,
    /// Requests whose session was lost, in the order of [`LOST_REASONS`].
    pub sessions_lost: [Counter; LOST_REASONS.len()],
    /// Event streams open now.
    pub event_streams_open: Gauge,
    /// Event streams that went on from another backend.
    pub streams_continued: Counter,
    /// Of these, those whose client connects again when they end.
    pub event_streams_reconnectable: Gauge,
    /// Tunnels open now.
    pub tunnels_open: Gauge,
    /// From when a client's departure was noticed to when the backend that worked for it was told.
    pub cancel_latency: Timings<CancelScale>,
    /// Reports to the control thread that found its queue full.
    pub reports_dropped: Counter,
    /// Access-log records that found the writer's queue full.
    pub log_records_dropped: Counter,
}

/// One counter per failure label.
#[derive(Debug)]
pub struct FailureCounters([Counter; FAILURES_MAX]);

impl Default for FailureCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl FailureCounters {
    /// The counter of the label with this index.
    pub fn at(&self, index: usize) -> &Counter {
        &self.0[index]
    }
}
