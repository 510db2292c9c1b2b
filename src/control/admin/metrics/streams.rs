//! Pure: the series of event streams.
//!
//! A backend that has had no stream has none of them: with three histograms each, thousands of
//! backends that do not stream would otherwise make most of the page.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    super::exposition::{Kind, Page},
    Scrape, timing_samples,
};
use crate::{
    exchange::StreamEnd,
    stats::{CancelScale, StreamReading, StreamScale, TimingsReading},
};

/// A row for a histogram that every backend has: name, help and where it is.
type TimingsRow = (&'static str, &'static str, fn(&StreamReading) -> &TimingsReading<StreamScale>);

/// The same for a counter.
type CounterRow = (&'static str, &'static str, fn(&StreamReading) -> u64);

const TIMINGS: [TimingsRow; 3] = [
    (
        "stepflow_lb_stream_time_to_first_octet_ms",
        "Time from the first octet of a request to the head of its event stream, in milliseconds",
        |streams| &streams.to_first_octet,
    ),
    (
        "stepflow_lb_stream_time_to_first_event_ms",
        "Time from the first octet of a request to the end of its first event, in milliseconds",
        |streams| &streams.to_first_event,
    ),
    (
        "stepflow_lb_stream_event_gap_ms",
        "Time between the ends of two events of one stream, in milliseconds",
        |streams| &streams.gaps,
    ),
];

const COUNTERS: [CounterRow; 3] = [
    ("stepflow_lb_stream_events_total", "Events of event streams", |streams| streams.events),
    ("stepflow_lb_stream_octets_total", "Octets of event streams", |streams| streams.octets),
    (
        "stepflow_lb_stream_stalls_total",
        "Silences in event streams that lasted longer than stream_stall",
        |streams| streams.stalls,
    ),
];

pub(super) fn render(page: &mut Page, scrape: &Scrape<'_>) {
    let mut by_address = BTreeMap::<SocketAddr, StreamReading>::new();
    for backend in &scrape.snapshot.backends {
        for series in backend.stats.streams() {
            by_address.entry(backend.address).or_default().merge(series);
        }
    }
    for (name, help, of) in TIMINGS {
        let mut family = page.family(name, help, Kind::Histogram);
        for (backend, reading) in &by_address {
            timing_samples(&mut family, &[("backend", backend)], of(reading));
        }
    }
    for (name, help, of) in COUNTERS {
        let mut family = page.family(name, help, Kind::Counter);
        for (backend, reading) in &by_address {
            family.sample(&[("backend", backend)], of(reading));
        }
    }
    let mut family = page.family(
        "stepflow_lb_stream_ends_total",
        "Event streams that have ended, by how they ended",
        Kind::Counter,
    );
    for (backend, reading) in &by_address {
        for (end, count) in StreamEnd::ALL.iter().zip(reading.ends) {
            family.sample(&[("backend", backend), ("reason", &end.label())], count);
        }
    }
    let mut latency = TimingsReading::<CancelScale>::default();
    scrape.workers.iter().for_each(|worker| latency.merge(&worker.cancel_latency));
    let mut family = page.family(
        "stepflow_lb_cancel_latency_ms",
        "Time from noticing that a client left to telling its backend, in milliseconds",
        Kind::Histogram,
    );
    timing_samples(&mut family, &[], &latency);
}
