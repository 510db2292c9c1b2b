//! Pure: the series of event streams that are listened to, because their silence may eject a
//! backend.
//!
//! A backend of whose streams none is judged has none of them: that is every backend unless
//! `outlier_silent_streams` is set.

use std::{collections::BTreeMap, net::SocketAddr};

use super::{
    super::exposition::{Kind, Page},
    Scrape,
};
use crate::stats::SilenceReading;

type Row = (&'static str, &'static str, fn(&SilenceReading) -> u64);

const ROWS: [Row; 2] = [
    (
        "stepflow_lb_streams_judged",
        "Event streams heard for long enough that their silence would count",
        |streams| streams.judged,
    ),
    (
        "stepflow_lb_streams_silent",
        "Of these, the ones that are silent for longer than they ever were",
        |streams| streams.silent,
    ),
];

pub(super) fn render(page: &mut Page, scrape: &Scrape<'_>) {
    let mut by_address = BTreeMap::<SocketAddr, SilenceReading>::new();
    for backend in &scrape.snapshot.backends {
        let reading = by_address.entry(backend.address).or_default();
        *reading = reading.with(backend.stats.silence());
    }
    by_address.retain(|_, streams| streams.judged > 0);
    for (name, help, of) in ROWS {
        let mut family = page.family(name, help, Kind::Gauge);
        for (backend, streams) in &by_address {
            family.sample(&[("backend", backend)], of(streams));
        }
    }
}
