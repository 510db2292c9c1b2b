//! The page as a scraper reads it. A small parser holds every page to the format first.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::*;
use crate::{
    exchange::StreamEnd,
    model::{DrainCause, Health, Initialisation, InstanceId, Standing, Version},
    plane::ReplayCounters,
    stats::BackendStats,
};

/// A page that kept to the format: samples by name and labels as written.
struct Scraped {
    families: Vec<(String, String)>,
    samples: HashMap<String, f64>,
}

impl Scraped {
    /// Reads a page and checks the format: HELP, then TYPE, then the samples of that family and of
    /// no other; no family twice, no series twice; histograms cumulative with `+Inf` last and equal
    /// to the count.
    fn read(text: &str) -> Self {
        let mut scraped = Self { families: Vec::new(), samples: HashMap::new() };
        let mut seen = HashSet::new();
        let mut help_of = None;
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(!help.is_empty() && seen.insert(name.to_owned()), "{line}");
                help_of = Some(name);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert_eq!(help_of.take(), Some(name), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                scraped.families.push((name.to_owned(), kind.to_owned()));
            } else {
                scraped.sample(line);
            }
        }
        scraped.check_histograms();
        scraped
    }

    fn sample(&mut self, line: &str) {
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let name = series.split('{').next().expect("a name");
        let (family, kind) = self.families.last().expect("a family before its samples");
        let suffixes: &[&str] =
            if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.iter().any(|s| *name == format!("{family}{s}")), "{line}");
        labels(series);
        let value = value.parse().expect("a number");
        assert!(self.samples.insert(series.to_owned(), value).is_none(), "twice: {series}");
    }

    fn check_histograms(&self) {
        for (family, _) in self.families.iter().filter(|(_, kind)| kind == "histogram") {
            let infinite = r#"le="+Inf"}"#;
            let prefix = format!("{family}_bucket{{");
            let ends = self.samples.iter().filter(|(s, _)| s.ends_with(infinite));
            for (series, total) in ends.filter(|(s, _)| s.starts_with(&prefix)) {
                let stem = series.strip_suffix(infinite).expect("checked above");
                let of_stem = |(series, count): (&String, &f64)| {
                    let le = series.strip_prefix(stem)?.strip_prefix("le=\"")?;
                    Some((le.strip_suffix("\"}")?.parse::<f64>().expect("a bound"), *count))
                };
                let mut buckets: Vec<_> = self.samples.iter().filter_map(of_stem).collect();
                buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
                assert!(buckets.len() > 10 && buckets.is_sorted_by_key(|b| b.1), "{buckets:?}");
                let count = match stem.strip_suffix(',') {
                    Some(stem) => format!("{}}}", stem.replace("_bucket{", "_count{")),
                    None => format!("{family}_count"),
                };
                assert_eq!(self.samples[&count], *total, "{series}");
                assert!(self.samples.contains_key(&count.replace("_count", "_sum")));
            }
        }
    }

    fn value(&self, series: &str) -> Option<f64> {
        self.samples.get(series).copied()
    }

    fn of(&self, name: &str) -> HashMap<&str, f64> {
        let mine = |(series, value): (&'_ String, &f64)| -> Option<(&str, f64)> {
            let labels = self.samples.get_key_value(series)?.0.strip_prefix(name)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        };
        self.samples.iter().filter_map(mine).collect()
    }
}

/// Names and unescaped values of a series' labels.
fn labels(series: &str) -> Vec<(String, String)> {
    let Some((_, rest)) = series.split_once('{') else { return Vec::new() };
    let mut rest = rest.strip_suffix('}').expect("a closing brace");
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (name, tail) = rest.split_once("=\"").expect("a value in quotes");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        let (mut value, mut chars) = (String::new(), tail.char_indices());
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect("an escaped character").1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("\\{c} is no escape"),
                },
                (_, c) => value.push(c),
            }
        };
        found.push((name.to_owned(), value));
        rest = &tail[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    found
}

const WORKERS: usize = 2;
const OWN: &str = "stepflow-load-balancer";

fn backend(id: u64, address: &str, instance: &str) -> Backend {
    Backend {
        instance: InstanceId::parse(instance.as_bytes()).ok(),
        stats: Arc::new(BackendStats::new(WORKERS)),
        ..Backend::sample(id, address.parse().expect("an address"))
    }
}

fn served(backend: &Backend, worker: usize, method: Method, status: u16, ms: u64) {
    let key = StatusKey { method: method.index(), status };
    backend.stats.cell(worker).series().record(key, Duration::from_millis(ms));
}

struct World {
    workers: Vec<WorkerStats>,
    snapshot: Snapshot,
    plane: PlaneCounters,
}

fn world(backends: Vec<Backend>) -> World {
    World {
        workers: (0..WORKERS).map(|_| WorkerStats::default()).collect(),
        snapshot: Snapshot { version: Version(7), backends, ..Snapshot::empty() },
        plane: PlaneCounters::default(),
    }
}

impl World {
    fn text(&self) -> String {
        let reading = ProcessReading {
            start_time_since_epoch: Duration::from_millis(1_500),
            cpu_time: Some(Duration::from_millis(250)),
            resident_bytes: Some(1024),
            open_fds: Some(9),
            max_fds: None,
            threads: Some(4),
        };
        render(&Scrape {
            workers: &self.workers,
            drivers: &["io_uring(1024)".to_owned(), "epoll".to_owned()],
            snapshot: &self.snapshot,
            plane: &self.plane,
            failures: &["head_timeout", "connect_refused"],
            own_name: OWN,
            process: &reading,
        })
    }

    fn scrape(&self) -> Scraped {
        Scraped::read(&self.text())
    }
}

#[test]
fn the_original_s_series_keep_names_labels_help_and_buckets() {
    let a = backend(1, "10.0.0.1:80", "pod-1");
    served(&a, 0, Method::Post, 200, 3);
    served(&a, 1, Method::Post, 200, 700);
    served(&a, 1, Method::Get, 0, 20_000);
    a.stats.enter();
    let world = World {
        plane: PlaneCounters { discovery_operations: 5, ..PlaneCounters::default() },
        ..world(vec![a])
    };
    let text = world.text();
    let want = r#"# HELP stepflow_lb_requests_total Total number of requests received by the load balancer
# TYPE stepflow_lb_requests_total counter
stepflow_lb_requests_total{backend="10.0.0.1:80",status="0",method="GET"} 1
stepflow_lb_requests_total{backend="10.0.0.1:80",status="200",method="POST"} 2
# HELP stepflow_lb_request_duration_ms Request duration in milliseconds
# TYPE stepflow_lb_request_duration_ms histogram
stepflow_lb_request_duration_ms_bucket{backend="10.0.0.1:80",method="GET",le="1"} 0
"#;
    assert!(text.starts_with(want), "{text}");
    for part in [
        "# HELP stepflow_lb_active_connections Current number of active connections per backend\n",
        "# HELP stepflow_lb_backend_health Backend health status (1 = healthy, 0 = unhealthy)\n",
        "# HELP stepflow_lb_backend_pool_size Total number of healthy backends in the pool\n",
        "# HELP stepflow_lb_discovery_operations_total Total number of backend discovery operations\n",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let scraped = world.scrape();
    let post = r#"{backend="10.0.0.1:80",method="POST""#;
    let expectations = [
        (format!(r#"stepflow_lb_request_duration_ms_bucket{post},le="1"}}"#), 0.0),
        (format!(r#"stepflow_lb_request_duration_ms_bucket{post},le="5"}}"#), 1.0),
        (format!(r#"stepflow_lb_request_duration_ms_bucket{post},le="1000"}}"#), 2.0),
        (format!(r#"stepflow_lb_request_duration_ms_bucket{post},le="+Inf"}}"#), 2.0),
        (format!("stepflow_lb_request_duration_ms_count{post}}}"), 2.0),
        (format!("stepflow_lb_request_duration_ms_sum{post}}}"), 703.0),
        (r#"stepflow_lb_active_connections{backend="10.0.0.1:80"}"#.to_owned(), 1.0),
        (
            r#"stepflow_lb_backend_health{backend="10.0.0.1:80",instance_id="pod-1"}"#.to_owned(),
            1.0,
        ),
        ("stepflow_lb_backend_pool_size".to_owned(), 1.0),
        ("stepflow_lb_discovery_operations_total".to_owned(), 5.0),
    ];
    for (series, value) in expectations {
        assert_eq!(scraped.value(&series), Some(value), "{series}");
    }
}

#[test]
fn two_identities_at_one_address_are_one_series() {
    let (mut old, new) = (backend(1, "10.0.0.1:80", "pod-1"), backend(2, "10.0.0.1:80", "pod-2"));
    old.presence = Presence::Leaving;
    served(&old, 0, Method::Post, 200, 1);
    served(&new, 1, Method::Post, 200, 1);
    old.stats.enter();
    new.stats.enter();
    let scraped = world(vec![old, new]).scrape();
    let requests = scraped.of("stepflow_lb_requests_total");
    assert_eq!(requests.len(), 1);
    assert!(requests.values().all(|n| *n == 2.0));
    assert!(scraped.of("stepflow_lb_active_connections").values().eq([&2.0]));
    // Only the process that discovery names has a health to speak of.
    let health = scraped.of("stepflow_lb_backend_health");
    let want = HashMap::from([(r#"{backend="10.0.0.1:80",instance_id="pod-2"}"#, 1.0)]);
    assert_eq!(health, want);
}

#[test]
fn health_falls_to_zero_and_series_leave_with_their_backend() {
    let mut sick = backend(1, "10.0.0.1:80", "pod-1");
    sick.health = Health::Unhealthy;
    let mut fresh = backend(2, "10.0.0.2:80", "");
    fresh.health = Health::Unprobed;
    let mut world = world(vec![sick, fresh]);
    let scraped = world.scrape();
    let health = scraped.of("stepflow_lb_backend_health");
    assert_eq!(health.len(), 2);
    assert!(health.values().all(|n| *n == 0.0));
    assert!(health.contains_key(r#"{backend="10.0.0.2:80",instance_id=""}"#));
    assert_eq!(scraped.value("stepflow_lb_backend_pool_size"), Some(0.0));
    assert_eq!(scraped.value(r#"stepflow_lb_backends{state="unprobed"}"#), Some(1.0));
    world.snapshot.backends.clear();
    let text = world.text();
    assert!(!text.contains("10.0.0."), "{text}");
}

#[test]
fn every_backend_is_in_one_state() {
    let states = [
        ("healthy", 1),
        ("unhealthy", 2),
        ("unprobed", 3),
        ("draining", 2),
        ("ejected", 1),
        ("uninitialised", 1),
        ("leaving", 2),
    ];
    let mut backends = Vec::new();
    for (state, count) in states {
        for n in 0..count {
            let id = backends.len() as u64;
            let mut backend = backend(id, &format!("10.0.0.{id}:80"), "");
            match state {
                "unhealthy" => {
                    backend.health = Health::Unhealthy;
                    backend.standing = if n == 0 { Standing::Ejected } else { Standing::Admitted };
                }
                "unprobed" => backend.health = Health::Unprobed,
                "draining" => {
                    backend.draining = Some(DrainCause::Backend);
                    backend.standing = if n == 0 { Standing::Ejected } else { Standing::Admitted };
                }
                "ejected" => backend.standing = Standing::Ejected,
                "uninitialised" => backend.initialisation = Initialisation::Pending,
                "leaving" => {
                    backend.presence = Presence::Leaving;
                    backend.draining = (n == 0).then_some(DrainCause::Backend);
                }
                _ => {}
            }
            backends.push(backend);
        }
    }
    let mut world = world(backends);
    let scraped = world.scrape();
    let shown = scraped.of("stepflow_lb_backends");
    let want: HashMap<String, f64> = states
        .iter()
        .map(|(state, count)| (format!("{{state=\"{state}\"}}"), f64::from(*count)))
        .collect();
    assert_eq!(shown.len(), want.len());
    assert!(shown.iter().all(|(state, count)| want[*state] == *count), "{shown:?}");
    assert_eq!(scraped.value("stepflow_lb_panic"), Some(0.0));
    for panic in [Panic::Ejections, Panic::Everything] {
        world.snapshot.panic = panic;
        assert_eq!(world.scrape().value("stepflow_lb_panic"), Some(1.0));
    }
}

#[test]
fn the_balancer_s_own_responses_have_their_own_backend() {
    let world = world(Vec::new());
    let own = StatusKey { method: Method::Post.index(), status: 503 };
    world.workers[0].own.record(own, Duration::from_millis(1));
    world.workers[1].own.record(own, Duration::from_millis(1));
    let scraped = world.scrape();
    let series =
        format!(r#"stepflow_lb_requests_total{{backend="{OWN}",status="503",method="POST"}}"#);
    assert_eq!(scraped.value(&series), Some(2.0));
    // It is not a backend, so it has neither health nor load.
    assert_eq!(scraped.of("stepflow_lb_active_connections").len(), 0);
}

#[test]
fn streams_have_series_of_their_own_and_backends_without_streams_none() {
    let (a, b) = (backend(1, "10.0.0.1:80", ""), backend(2, "10.0.0.2:80", ""));
    served(&b, 0, Method::Get, 200, 1);
    let again = backend(3, "10.0.0.1:80", "");
    for (backend, worker) in [(&a, 0), (&a, 1), (&again, 0)] {
        let streams = backend.stats.cell(worker).streams();
        streams.to_first_octet.observe(Duration::from_micros(1_500));
        streams.to_first_event.observe(Duration::from_secs(45));
        streams.gaps.observe_zeros(2);
        streams.gaps.observe(Duration::from_millis(70));
        streams.events.add(4);
        streams.octets.add(100);
        streams.stalls.add(5);
        streams.ends[StreamEnd::Aged.index()].add(6);
    }
    let world = world(vec![a, b, again]);
    world.workers[1].cancel_latency.observe(Duration::from_micros(70));
    let scraped = world.scrape();
    let of = r#"{backend="10.0.0.1:80""#;
    let expectations = [
        (format!(r#"stepflow_lb_stream_time_to_first_octet_ms_bucket{of},le="1"}}"#), 0.0),
        (format!(r#"stepflow_lb_stream_time_to_first_octet_ms_bucket{of},le="5"}}"#), 3.0),
        (format!(r#"stepflow_lb_stream_time_to_first_octet_ms_sum{of}}}"#), 4.5),
        (format!(r#"stepflow_lb_stream_time_to_first_event_ms_bucket{of},le="30000"}}"#), 0.0),
        (format!(r#"stepflow_lb_stream_time_to_first_event_ms_bucket{of},le="60000"}}"#), 3.0),
        (format!(r#"stepflow_lb_stream_event_gap_ms_bucket{of},le="1"}}"#), 6.0),
        (format!(r#"stepflow_lb_stream_event_gap_ms_count{of}}}"#), 9.0),
        (format!("stepflow_lb_stream_events_total{of}}}"), 12.0),
        (format!("stepflow_lb_stream_octets_total{of}}}"), 300.0),
        (format!("stepflow_lb_stream_stalls_total{of}}}"), 15.0),
        (format!(r#"stepflow_lb_stream_ends_total{of},reason="aged"}}"#), 18.0),
        (format!(r#"stepflow_lb_stream_ends_total{of},reason="finished"}}"#), 0.0),
        (r#"stepflow_lb_cancel_latency_ms_bucket{le="0.05"}"#.to_owned(), 0.0),
        (r#"stepflow_lb_cancel_latency_ms_bucket{le="0.1"}"#.to_owned(), 1.0),
        (r#"stepflow_lb_cancel_latency_ms_bucket{le="2.5"}"#.to_owned(), 1.0),
        ("stepflow_lb_cancel_latency_ms_sum".to_owned(), 0.07),
    ];
    for (series, value) in expectations {
        assert_eq!(scraped.value(&series), Some(value), "{series}");
    }
    let of_streams = |series: &&String| series.starts_with("stepflow_lb_stream_");
    let mut streams = scraped.samples.keys().filter(of_streams);
    assert!(streams.all(|series| series.contains("10.0.0.1")), "{:?}", scraped.samples);
}

#[test]
fn bounds_are_as_short_as_they_can_be() {
    let bounds = [50, 100, 250, 1_000, 2_500, 1_001, 60_000_000].map(|us| Bound(us).to_string());
    assert_eq!(bounds, ["0.05", "0.1", "0.25", "1", "2.5", "1.001", "60000"]);
}

#[test]
fn a_backend_that_invents_statuses_and_instance_ids_cannot_break_the_page() {
    let a = backend(1, "[::1]:80", r#"a"b\c{}=,"#);
    for status in 100..1000 {
        served(&a, 0, Method::Other, status, 1);
    }
    let world = world(vec![a]);
    let scraped = world.scrape();
    let requests = scraped.of("stepflow_lb_requests_total");
    assert_eq!(requests.values().sum::<f64>(), 900.0);
    assert!(requests.contains_key(r#"{backend="[::1]:80",status="other",method="OTHER"}"#));
    let text = world.text();
    let line = text.lines().find(|l| l.starts_with("stepflow_lb_backend_health{"));
    let series = line.and_then(|line| line.rsplit_once(' ')).map(|(series, _)| series);
    let instance = labels(series.expect("a health series")).pop();
    assert_eq!(instance, Some(("instance_id".to_owned(), r#"a"b\c{}=,"#.to_owned())));
}

#[test]
fn counts_are_summed_over_workers_or_shown_for_each() {
    let mut world = world(Vec::new());
    world.plane.probes_passed = 3;
    world.plane.probes_failed[2] = 4;
    for (index, worker) in world.workers.iter().enumerate() {
        worker.failures.at(1).add(1);
        worker.upstream_reuses.add(10);
        worker.connections_open.set(index as u64);
        worker.snapshot_version.set(6 + index as u64);
    }
    let scraped = world.scrape();
    let outcome = ProbeFailure::LABELS[2];
    let expectations = [
        (r#"stepflow_lb_failures_total{reason="head_timeout"}"#, 0.0),
        (r#"stepflow_lb_failures_total{reason="connect_refused"}"#, 2.0),
        ("stepflow_lb_upstream_reuses_total", 20.0),
        (r#"stepflow_lb_connections_open{worker="0"}"#, 0.0),
        (r#"stepflow_lb_connections_open{worker="1"}"#, 1.0),
        (r#"stepflow_lb_snapshot_version{worker="0"}"#, 6.0),
        (r#"stepflow_lb_snapshot_version{worker="1"}"#, 7.0),
        ("stepflow_lb_snapshot_version_published", 7.0),
        ("stepflow_lb_workers", 2.0),
        (r#"stepflow_lb_worker_driver{worker="0",driver="io_uring(1024)"}"#, 1.0),
        (r#"stepflow_lb_worker_driver{worker="1",driver="epoll"}"#, 1.0),
        (r#"stepflow_lb_probes_total{outcome="passed"}"#, 3.0),
        (&format!(r#"stepflow_lb_probes_total{{outcome="{outcome}"}}"#), 4.0),
        ("stepflow_lb_draining", 0.0),
        ("process_start_time_seconds", 1.5),
        ("process_cpu_seconds_total", 0.25),
        ("process_threads", 4.0),
    ];
    for (series, value) in expectations {
        assert_eq!(scraped.value(series), Some(value), "{series}");
    }
    assert_eq!(scraped.value("process_max_fds"), None, "unknown is absent, not zero");
    assert_eq!(scraped.of("stepflow_lb_build_info").len(), 1);
}

/// Every field of the workers' and the plane's counts is somewhere on the page: each is given a
/// number of its own, which must then be found.
#[test]
fn nothing_that_is_counted_is_forgotten() {
    let world = world(Vec::new());
    let worker = &world.workers[0];
    let counters = [
        &worker.connections_accepted,
        &worker.connections_handed_over,
        &worker.connections_taken_over,
        &worker.accept_backoffs,
        &worker.panics,
        &worker.upstream_connects,
        &worker.upstream_connect_failures,
        &worker.upstream_reuses,
        &worker.upstream_poisoned,
        &worker.retries,
        &worker.trailer_fields_dropped,
        &worker.affinity_requests,
        &worker.affinity_hits,
        &worker.reports_dropped,
        &worker.log_records_dropped,
    ];
    let gauges = [
        &worker.connections_open,
        &worker.snapshot_version,
        &worker.upstream_idle,
        &worker.event_streams_open,
        &worker.event_streams_reconnectable,
        &worker.tunnels_open,
    ];
    let mut wanted = HashSet::new();
    for (number, counter) in (100_001_u64..).zip(counters) {
        counter.add(number);
        wanted.insert(number);
    }
    for (number, gauge) in (200_001_u64..).zip(gauges) {
        gauge.set(number);
        wanted.insert(number);
    }
    let plane = PlaneCounters {
        discovery_operations: 300_001,
        resolve_failures: 300_002,
        resolve_absences: 300_003,
        probes_passed: 300_004,
        probes_failed: std::array::from_fn(|i| 400_001 + i as u64),
        instance_clashes: 300_005,
        instance_changes: 300_006,
        publishes: 300_007,
        ejections: std::array::from_fn(|i| 500_001 + i as u64),
        ejections_withheld: 300_008,
        replays: ReplayCounters {
            learned: 300_009,
            passed: 300_010,
            unanswered: 300_011,
            status: 300_012,
            refused: 300_013,
            excused: 300_014,
        },
    };
    wanted.extend(300_001..=300_014);
    wanted.extend(plane.probes_failed);
    wanted.extend(plane.ejections);
    let scraped = World { plane, ..world }.scrape();
    let shown: HashSet<String> = scraped.samples.values().map(f64::to_string).collect();
    let forgotten: Vec<_> = wanted.iter().filter(|n| !shown.contains(&n.to_string())).collect();
    assert!(forgotten.is_empty(), "{forgotten:?}");
}

#[test]
fn streams_are_shown_as_judged_and_silent_where_any_is_judged() {
    let (a, b) = (backend(1, "127.0.0.1:1", "a"), backend(2, "127.0.0.1:2", "b"));
    a.stats.cell(0).silence.set(3, 1);
    a.stats.cell(1).silence.set(4, 1);
    let scraped = world(vec![a, b]).scrape();
    let want = |value| HashMap::from([(r#"{backend="127.0.0.1:1"}"#, value)]);
    assert_eq!(scraped.of("stepflow_lb_streams_judged"), want(7.0));
    assert_eq!(scraped.of("stepflow_lb_streams_silent"), want(2.0));
}

#[test]
fn the_documentation_lists_exactly_the_series_there_are() {
    let root = env!("CARGO_MANIFEST_DIR");
    let text = std::fs::read_to_string(format!("{root}/docs/METRICS.md")).expect("the page");
    let row = |line: &str| -> Option<(String, String)> {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?.to_owned();
        Some((name, cells.next()?.to_owned()))
    };
    let documented: Vec<_> = text.lines().filter_map(row).collect();
    let unique: HashSet<_> = documented.iter().cloned().collect();
    assert_eq!(unique.len(), documented.len(), "a series is documented twice");
    let served: HashSet<_> = world(Vec::new()).scrape().families.into_iter().collect();
    let undocumented: Vec<_> = served.difference(&unique).collect();
    let invented: Vec<_> = unique.difference(&served).collect();
    assert!(undocumented.is_empty(), "not documented: {undocumented:?}");
    assert!(invented.is_empty(), "documented but not served: {invented:?}");
    for outcome in ProbeFailure::LABELS {
        assert!(text.contains(&format!("`{outcome}`")), "{outcome} is not documented");
    }
}
