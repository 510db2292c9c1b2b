//! Pure: every series, from what was counted to the text that a scrape gets.
//!
//! The first six families are those of the original balancer: names, labels, buckets and help texts
//! are its, because dashboards and alerts name them. All of them are documented in
//! `docs/METRICS.md`, and a test compares.
//!
//! Counts belong to a backend's identity; series are labelled by address. When two identities share
//! an address, as after a restart while exchanges of the old process still run, their counts are
//! added up. What only event streams have is in `streams`.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use super::{
    exposition::{Family, Kind, Page},
    process::ProcessReading,
};
use crate::{
    health::{ProbeFailure, outlier::Reason},
    http1::Method,
    model::{Backend, BackendState, Panic, Phase, Presence, Snapshot},
    plane::PlaneCounters,
    stats::{
        Counter, DURATION_BUCKETS_MS, Gauge, HistogramReading, LOST_REASONS, Scale, SeriesReading,
        StatusKey, TimingsReading, WorkerStats,
    },
};

/// Everything that a scrape shows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scrape<'a> {
    /// What each worker counts.
    pub(super) workers: &'a [WorkerStats],
    /// The I/O driver of each worker.
    pub(super) drivers: &'a [String],
    /// The snapshot that was published last.
    pub(super) snapshot: &'a Snapshot,
    /// What the plane has counted.
    pub(super) plane: &'a PlaneCounters,
    /// Labels of the failures, in the order of their counters.
    pub(super) failures: &'a [&'static str],
    /// Name under which the balancer's own responses are counted among the backends'.
    pub(super) own_name: &'a str,
    /// What the kernel says about the process.
    pub(super) process: &'a ProcessReading,
}

/// The page.
pub(super) fn render(scrape: &Scrape<'_>) -> String {
    let mut page = Page::default();
    traffic(&mut page, scrape);
    streams::render(&mut page, scrape);
    backends(&mut page, scrape);
    silence::render(&mut page, scrape);
    discovery_and_health(&mut page, scrape.plane);
    exchanges(&mut page, scrape);
    connections(&mut page, scrape.workers);
    threads(&mut page, scrape);
    process(&mut page, scrape.process);
    page.into_text()
}

/// What one address has served and is serving.
#[derive(Debug, Default)]
struct Served {
    series: SeriesReading,
    in_flight: u64,
    connections: u64,
}

fn traffic(page: &mut Page, scrape: &Scrape<'_>) {
    let mut by_address = BTreeMap::<SocketAddr, Served>::new();
    for backend in &scrape.snapshot.backends {
        let served = by_address.entry(backend.address).or_default();
        backend.stats.series().for_each(|series| served.series.merge(series));
        served.in_flight += backend.stats.in_flight();
        served.connections += backend.stats.connections();
    }
    let mut own = SeriesReading::default();
    scrape.workers.iter().for_each(|worker| own.merge(&worker.own));
    let of_backends = by_address.iter().map(|(address, served)| (address.to_string(), served));
    let of_backends: Vec<_> = of_backends.collect();
    let mut readings: Vec<_> =
        of_backends.iter().map(|(name, served)| (name.as_str(), &served.series)).collect();
    readings.push((scrape.own_name, &own));

    let mut family = page.family(
        "stepflow_lb_requests_total",
        "Total number of requests received by the load balancer",
        Kind::Counter,
    );
    for (backend, reading) in &readings {
        for (StatusKey { method, status }, count) in &reading.requests {
            let method = method_label(usize::from(*method));
            match *status {
                StatusKey::OTHER => family.sample(
                    &[("backend", backend), ("status", &"other"), ("method", &method)],
                    count,
                ),
                status => family.sample(
                    &[("backend", backend), ("status", &status), ("method", &method)],
                    count,
                ),
            }
        }
    }
    let mut family = page.family(
        "stepflow_lb_request_duration_ms",
        "Request duration in milliseconds",
        Kind::Histogram,
    );
    for (backend, reading) in &readings {
        let in_use = reading.durations.iter().enumerate().filter(|(_, h)| h.count() > 0);
        for (method, histogram) in in_use {
            let method = method_label(method);
            duration_samples(&mut family, &[("backend", backend), ("method", &method)], histogram);
        }
    }
    let mut family = page.family(
        "stepflow_lb_active_connections",
        "Current number of active connections per backend",
        Kind::Gauge,
    );
    for (backend, served) in &of_backends {
        family.sample(&[("backend", backend)], served.in_flight);
    }
    let mut family = page.family(
        "stepflow_lb_upstream_open",
        "Connections open per backend, unused ones included",
        Kind::Gauge,
    );
    for (backend, served) in &of_backends {
        family.sample(&[("backend", backend)], served.connections);
    }
}

type Label<'a> = (&'static str, &'a dyn std::fmt::Display);

fn duration_samples(family: &mut Family<'_>, labels: &[Label<'_>], histogram: &HistogramReading) {
    bucket_samples(family, labels, &DURATION_BUCKETS_MS, &histogram.buckets, histogram.sum_us);
}

fn timing_samples<S: Scale>(
    family: &mut Family<'_>,
    labels: &[Label<'_>],
    timings: &TimingsReading<S>,
) {
    let bounds: Vec<_> = S::BOUNDS_US.iter().map(|us| Bound(*us)).collect();
    bucket_samples(family, labels, &bounds, &timings.buckets, timings.sum_us);
}

// One reading feeds all samples, so that `+Inf` and `_count` agree even while workers count on.
fn bucket_samples(
    family: &mut Family<'_>,
    labels: &[Label<'_>],
    bounds: &[impl std::fmt::Display],
    buckets: &[u64],
    sum_us: u64,
) {
    let mut cumulative = 0;
    let mut bucket = |bound: &dyn std::fmt::Display, count| {
        let labels: Vec<_> = labels.iter().copied().chain([("le", bound)]).collect();
        family.suffixed("_bucket", &labels, count);
    };
    for (bound, count) in bounds.iter().zip(buckets) {
        cumulative += count;
        bucket(bound, cumulative);
    }
    let count: u64 = buckets.iter().sum();
    bucket(&"+Inf", count);
    family.suffixed("_sum", labels, Milliseconds(sum_us));
    family.suffixed("_count", labels, count);
}

fn method_label(index: usize) -> &'static str {
    Method::ALL.get(index).unwrap_or(&Method::Other).label()
}

fn backends(page: &mut Page, scrape: &Scrape<'_>) {
    let present = || scrape.snapshot.backends.iter().filter(|b| b.presence == Presence::Present);
    let mut health = BTreeMap::<(SocketAddr, &str), bool>::new();
    for backend in present() {
        let instance = backend.instance.as_ref().map_or("", |instance| instance.as_str());
        *health.entry((backend.address, instance)).or_default() |= backend.takes_new_work();
    }
    let mut family = page.family(
        "stepflow_lb_backend_health",
        "Backend health status (1 = healthy, 0 = unhealthy)",
        Kind::Gauge,
    );
    for ((address, instance), is_healthy) in health {
        let labels: &[(_, &dyn std::fmt::Display)] =
            &[("backend", &address), ("instance_id", &instance)];
        family.sample(labels, u8::from(is_healthy));
    }
    let mut live = BTreeMap::<(SocketAddr, &str), u64>::new();
    for backend in &scrape.snapshot.backends {
        let instance = backend.instance.as_ref().map_or("", |instance| instance.as_str());
        *live.entry((backend.address, instance)).or_default() += backend.stats.sessions_live();
    }
    let mut family =
        page.family("stepflow_lb_sessions_live", "Sessions live on a backend now", Kind::Gauge);
    for ((address, instance), count) in live {
        let labels: &[(_, &dyn std::fmt::Display)] =
            &[("backend", &address), ("instance_id", &instance)];
        family.sample(labels, count);
    }
    let counts = scrape.snapshot.health_counts();
    page.single(
        "stepflow_lb_backend_pool_size",
        "Total number of healthy backends in the pool",
        Kind::Gauge,
        counts.healthy as u64,
    );
    page.single(
        "stepflow_lb_discovery_operations_total",
        "Total number of backend discovery operations",
        Kind::Counter,
        scrape.plane.discovery_operations,
    );
    let mut family = page.family("stepflow_lb_backends", "Backends by state", Kind::Gauge);
    for state in BackendState::ALL {
        let of = |backend: &&Backend| BackendState::of(backend) == state;
        let count = scrape.snapshot.backends.iter().filter(of).count();
        family.sample(&[("state", &state.label())], count);
    }
    page.single(
        "stepflow_lb_panic",
        "Whether backends are used although something is held against them (1) or not (0)",
        Kind::Gauge,
        u64::from(scrape.snapshot.panic != Panic::Off),
    );
}

fn discovery_and_health(page: &mut Page, plane: &PlaneCounters) {
    let counters = [
        (
            "stepflow_lb_discovery_failures_total",
            "Discovery operations that got no answer",
            plane.resolve_failures,
        ),
        (
            "stepflow_lb_discovery_absences_total",
            "Discovery operations whose answer was that there is nothing",
            plane.resolve_absences,
        ),
        (
            "stepflow_lb_instance_clashes_total",
            "Times that two backends began to claim one instance id",
            plane.instance_clashes,
        ),
        (
            "stepflow_lb_instance_changes_total",
            "Times that another process answered at a known address",
            plane.instance_changes,
        ),
        (
            "stepflow_lb_ejections_withheld_total",
            "Ejections that were due and withheld, because too few other backends were left",
            plane.ejections_withheld,
        ),
        ("stepflow_lb_snapshots_published_total", "Snapshots published", plane.publishes),
    ];
    for (name, help, count) in counters {
        page.single(name, help, Kind::Counter, count);
    }
    let mut family =
        page.family("stepflow_lb_probes_total", "Health checks by outcome", Kind::Counter);
    family.sample(&[("outcome", &"passed")], plane.probes_passed);
    for (outcome, count) in ProbeFailure::LABELS.iter().zip(plane.probes_failed) {
        family.sample(&[("outcome", outcome)], count);
    }
    let mut family = page.family(
        "stepflow_lb_ejections_total",
        "Backends that were ejected because requests failed on them, by reason",
        Kind::Counter,
    );
    for (reason, count) in Reason::LABELS.iter().zip(plane.ejections) {
        family.sample(&[("reason", reason)], count);
    }
    let replays = &plane.replays;
    page.single(
        "stepflow_lb_initializations_total",
        "Times that clients initialised a backend in other words than before",
        Kind::Counter,
        replays.learned,
    );
    let mut family = page.family(
        "stepflow_lb_initialize_replays_total",
        "Replays of initialize to backends, by outcome",
        Kind::Counter,
    );
    for (outcome, count) in [
        ("passed", replays.passed),
        ("unanswered", replays.unanswered),
        ("status", replays.status),
        ("refused", replays.refused),
    ] {
        family.sample(&[("outcome", &outcome)], count);
    }
    page.single(
        "stepflow_lb_initialize_excused_total",
        "Backends that take work although they could not be initialised",
        Kind::Counter,
        replays.excused,
    );
}

fn exchanges(page: &mut Page, scrape: &Scrape<'_>) {
    let mut family = page.family(
        "stepflow_lb_failures_total",
        "Exchanges that ended as a failure, by reason",
        Kind::Counter,
    );
    for (index, reason) in scrape.failures.iter().enumerate() {
        let count: u64 = scrape.workers.iter().map(|worker| worker.failures.at(index).get()).sum();
        family.sample(&[("reason", reason)], count);
    }
    let mut family = page.family(
        "stepflow_lb_sessions_lost_total",
        "Requests whose session was lost, by reason",
        Kind::Counter,
    );
    for (index, reason) in LOST_REASONS.iter().enumerate() {
        let of = |worker: &WorkerStats| worker.sessions_lost.get(index).map_or(0, Counter::get);
        family.sample(&[("reason", reason)], scrape.workers.iter().map(of).sum::<u64>());
    }
    counters(
        page,
        scrape.workers,
        &[
            ("stepflow_lb_retries_total", "Exchanges sent again", |w| &w.retries),
            (
                "stepflow_lb_streams_continued_total",
                "Event streams that went on from another backend",
                |w| &w.streams_continued,
            ),
            (
                "stepflow_lb_trailer_fields_dropped_total",
                "Trailer fields dropped because they must not be trailers",
                |w| &w.trailer_fields_dropped,
            ),
            (
                "stepflow_lb_retry_budget_exhausted_total",
                "Retries that were not made because retry_budget was used up",
                |w| &w.retry_budget_exhausted,
            ),
            ("stepflow_lb_affinity_requests_total", "Requests that named an instance", |w| {
                &w.affinity_requests
            }),
            ("stepflow_lb_affinity_hits_total", "Requests that reached the instance they named", {
                |w| &w.affinity_hits
            }),
            ("stepflow_lb_sessions_opened_total", "Sessions that became live", |w| {
                &w.sessions_opened
            }),
            ("stepflow_lb_sessions_ended_total", "Sessions that client or backend ended", |w| {
                &w.sessions_ended
            }),
            ("stepflow_lb_sessions_expired_total", "Sessions unused for session_idle", |w| {
                &w.sessions_expired
            }),
            ("stepflow_lb_log_records_dropped_total", "Access-log records that found no room", {
                |w| &w.log_records_dropped
            }),
            (
                "stepflow_lb_reports_dropped_total",
                "Reports of workers to the control thread that found no room",
                |w| &w.reports_dropped,
            ),
        ],
    );
    gauges(
        page,
        scrape.workers,
        &[
            ("stepflow_lb_event_streams_open", "Event streams open", |w| &w.event_streams_open),
            (
                "stepflow_lb_event_streams_reconnectable",
                "Event streams open whose clients connect again when they end",
                |w| &w.event_streams_reconnectable,
            ),
            ("stepflow_lb_tunnels_open", "Tunnels open", |w| &w.tunnels_open),
            ("stepflow_lb_queue_waiting", "Requests that wait because every backend is full", {
                |w| &w.queue_waiting
            }),
        ],
    );
    let mut waits = HistogramReading::default();
    scrape.workers.iter().for_each(|worker| waits.merge(&worker.queue_waits));
    let mut family = page.family(
        "stepflow_lb_queue_wait_ms",
        "Time that requests waited because every backend was full, in milliseconds",
        Kind::Histogram,
    );
    duration_samples(&mut family, &[], &waits);
}

fn connections(page: &mut Page, workers: &[WorkerStats]) {
    let help = "Client connections open, by worker";
    by_worker(page, workers, "stepflow_lb_connections_open", help, Kind::Gauge, |w| {
        w.connections_open.get()
    });
    let rows: [Row<Counter>; 3] = [
        ("stepflow_lb_connections_accepted_total", "Client connections accepted, by worker", |w| {
            &w.connections_accepted
        }),
        (
            "stepflow_lb_connections_handed_over_total",
            "Client connections handed to another worker that had fewer, by the worker that accepted",
            |w| &w.connections_handed_over,
        ),
        (
            "stepflow_lb_connections_taken_over_total",
            "Client connections taken over from another worker, by the worker that serves them",
            |w| &w.connections_taken_over,
        ),
    ];
    for (name, help, of) in rows {
        by_worker(page, workers, name, help, Kind::Counter, |w| of(w).get());
    }
    counters(
        page,
        workers,
        &[
            (
                "stepflow_lb_accept_backoffs_total",
                "Times that accepting paused because descriptors or memory ran out",
                |w| &w.accept_backoffs,
            ),
            ("stepflow_lb_panics_total", "Connections that a panic ended", |w| &w.panics),
            ("stepflow_lb_upstream_connects_total", "Connections to backends opened", |w| {
                &w.upstream_connects
            }),
            (
                "stepflow_lb_upstream_connect_failures_total",
                "Connections to backends that could not be opened",
                |w| &w.upstream_connect_failures,
            ),
            ("stepflow_lb_upstream_reuses_total", "Exchanges on a connection used before", |w| {
                &w.upstream_reuses
            }),
            (
                "stepflow_lb_upstream_poisoned_total",
                "Idle connections dropped because a backend sent octets out of turn",
                |w| &w.upstream_poisoned,
            ),
        ],
    );
    gauges(
        page,
        workers,
        &[("stepflow_lb_upstream_idle", "Idle connections to backends", |w| &w.upstream_idle)],
    );
}

fn threads(page: &mut Page, scrape: &Scrape<'_>) {
    let workers = scrape.workers.len() as u64;
    page.single("stepflow_lb_workers", "Worker threads", Kind::Gauge, workers);
    let mut family = page.family(
        "stepflow_lb_worker_driver",
        "Kernel interface that a worker runs on, always 1",
        Kind::Gauge,
    );
    for (worker, driver) in scrape.drivers.iter().enumerate() {
        family.sample(&[("worker", &worker), ("driver", driver)], 1);
    }
    let mut family = page.family(
        "stepflow_lb_snapshot_version",
        "Version of the snapshot that a worker uses",
        Kind::Gauge,
    );
    for (worker, stats) in scrape.workers.iter().enumerate() {
        family.sample(&[("worker", &worker)], stats.snapshot_version.get());
    }
    page.single(
        "stepflow_lb_snapshot_version_published",
        "Version of the snapshot that was published last",
        Kind::Gauge,
        scrape.snapshot.version.0,
    );
    page.single(
        "stepflow_lb_draining",
        "Whether the process has been told to stop (1) or not (0)",
        Kind::Gauge,
        u64::from(scrape.snapshot.phase != Phase::Serving),
    );
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let labels: &[(_, &dyn std::fmt::Display)] = &[
        ("version", &env!("CARGO_PKG_VERSION")),
        ("arch", &std::env::consts::ARCH),
        ("build", &build),
    ];
    page.family("stepflow_lb_build_info", "What is running, always 1", Kind::Gauge)
        .sample(labels, 1);
}

fn process(page: &mut Page, process: &ProcessReading) {
    let start = Seconds(process.start_time_since_epoch);
    page.family(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds",
        Kind::Gauge,
    )
    .sample(&[], start);
    // What the kernel does not tell has a family without samples: absent, not zero.
    let mut family = page.family(
        "process_cpu_seconds_total",
        "Total user and system CPU time spent in seconds",
        Kind::Counter,
    );
    if let Some(cpu_time) = process.cpu_time {
        family.sample(&[], Seconds(cpu_time));
    }
    let gauges = [
        ("process_resident_memory_bytes", "Resident memory size in bytes", process.resident_bytes),
        ("process_open_fds", "Number of open file descriptors", process.open_fds),
        ("process_max_fds", "Maximum number of open file descriptors", process.max_fds),
        ("process_threads", "Number of threads", process.threads),
    ];
    for (name, help, value) in gauges {
        let mut family = page.family(name, help, Kind::Gauge);
        if let Some(value) = value {
            family.sample(&[], value);
        }
    }
}

/// A row for a number that every worker has: name, help and where it is.
type Row<T> = (&'static str, &'static str, fn(&WorkerStats) -> &T);

/// One family with a sample for each worker.
fn by_worker(
    page: &mut Page,
    workers: &[WorkerStats],
    name: &'static str,
    help: &'static str,
    kind: Kind,
    of: impl Fn(&WorkerStats) -> u64,
) {
    let mut family = page.family(name, help, kind);
    for (worker, stats) in workers.iter().enumerate() {
        family.sample(&[("worker", &worker)], of(stats));
    }
}

fn counters(page: &mut Page, workers: &[WorkerStats], rows: &[Row<Counter>]) {
    for (name, help, of) in rows {
        page.single(name, help, Kind::Counter, workers.iter().map(|w| of(w).get()).sum());
    }
}

fn gauges(page: &mut Page, workers: &[WorkerStats], rows: &[Row<Gauge>]) {
    for (name, help, of) in rows {
        page.single(name, help, Kind::Gauge, workers.iter().map(|w| of(w).get()).sum());
    }
}

/// Microseconds, shown as milliseconds without going through a float, so that a sum stays exact.
struct Milliseconds(u64);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// A bound in microseconds, shown in milliseconds as short as it can be: `0.05`, `1`.
struct Bound(u64);

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (ms, us) = (self.0 / 1000, self.0 % 1000);
        match (us % 100, us % 10) {
            _ if us == 0 => write!(f, "{ms}"),
            (0, _) => write!(f, "{ms}.{}", us / 100),
            (_, 0) => write!(f, "{ms}.{:02}", us / 10),
            _ => write!(f, "{ms}.{us:03}"),
        }
    }
}

/// A duration in seconds.
struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

mod silence;
mod streams;
#[cfg(test)]
mod tests;
