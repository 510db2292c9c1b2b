//! Pure: finished exchanges by method and status, in bounded memory.

use std::{
    sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    time::Duration,
};

use super::{Counter, Histogram, HistogramReading};

/// Number of method labels. The worker's method index is below this; the last is "OTHER".
pub const METHODS: usize = 10;

/// Distinct (method, status) pairs kept per cell. A backend that invents more gets the rest
/// counted under [`StatusKey::OTHER`], so a hostile one cannot grow our memory or the scrape.
const PAIRS_MAX: usize = 64;

/// A method index and a status code, packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatusKey {
    /// Index below [`METHODS`].
    pub method: u8,
    /// Status code; 0 when the client left before there was one; [`Self::OTHER`] when the table
    /// was full.
    pub status: u16,
}

impl StatusKey {
    /// Status that stands for all that found the table full.
    pub const OTHER: u16 = u16::MAX;

    // Never zero, which marks a free place.
    fn pack(self) -> u32 {
        1 << 31 | u32::from(self.method) << 16 | u32::from(self.status)
    }

    fn unpack(packed: u32) -> Self {
        let method = (packed >> 16 & 0xff) as u8;
        let status = (packed & 0xffff) as u16;
        Self { method, status }
    }
}

/// Counts of finished exchanges. One writer.
#[derive(Debug)]
pub struct Series {
    // Filled front to back and never emptied: a reader stops at the first zero key.
    keys: [AtomicU32; PAIRS_MAX],
    counts: [Counter; PAIRS_MAX],
    overflow: [Counter; METHODS],
    durations: [Histogram; METHODS],
}

/// A sum over the series of several workers.
#[derive(Clone, Debug, Default)]
pub struct SeriesReading {
    /// Exchanges per pair, in order of the pair.
    pub requests: std::collections::BTreeMap<StatusKey, u64>,
    /// Durations per method index.
    pub durations: [HistogramReading; METHODS],
}

impl Default for Series {
    fn default() -> Self {
        Self {
            keys: std::array::from_fn(|_| AtomicU32::new(0)),
            counts: std::array::from_fn(|_| Counter::default()),
            overflow: Default::default(),
            durations: Default::default(),
        }
    }
}

impl Series {
    /// Counts one finished exchange.
    #[inline]
    pub fn record(&self, key: StatusKey, duration: Duration) {
        self.counter(key).add(1);
        self.durations[usize::from(key.method)].observe(duration);
    }

    // A handful of pairs is in use in practice, so a scan from the front beats hashing.
    fn counter(&self, key: StatusKey) -> &Counter {
        let packed = key.pack();
        for (place, count) in self.keys.iter().zip(&self.counts) {
            match place.load(Relaxed) {
                0 => {
                    // Release: a reader that sees the key sees a count that belongs to it.
                    place.store(packed, Release);
                    return count;
                }
                taken if taken == packed => return count,
                _ => {}
            }
        }
        &self.overflow[usize::from(key.method)]
    }
}

impl SeriesReading {
    /// Adds what one worker counted.
    pub fn merge(&mut self, series: &Series) {
        for (place, count) in series.keys.iter().zip(&series.counts) {
            match place.load(Acquire) {
                0 => break,
                packed => {
                    *self.requests.entry(StatusKey::unpack(packed)).or_default() += count.get()
                }
            }
        }
        for (method, overflow) in (0_u8..).zip(&series.overflow) {
            if overflow.get() > 0 {
                let key = StatusKey { method, status: StatusKey::OTHER };
                *self.requests.entry(key).or_default() += overflow.get();
            }
        }
        for (total, histogram) in self.durations.iter_mut().zip(&series.durations) {
            total.merge(histogram);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(method: u8, status: u16) -> StatusKey {
        StatusKey { method, status }
    }

    #[test]
    fn pairs_are_counted_apart_and_summed_over_workers() {
        let (a, b) = (Series::default(), Series::default());
        a.record(key(0, 200), Duration::ZERO);
        a.record(key(0, 200), Duration::ZERO);
        a.record(key(1, 200), Duration::ZERO);
        b.record(key(0, 200), Duration::ZERO);
        b.record(key(0, 0), Duration::ZERO);
        let mut reading = SeriesReading::default();
        reading.merge(&a);
        reading.merge(&b);
        let want = [(key(0, 0), 1), (key(0, 200), 3), (key(1, 200), 1)];
        assert_eq!(reading.requests.into_iter().collect::<Vec<_>>(), want);
        assert_eq!(reading.durations[0].count(), 4);
    }

    #[test]
    fn a_backend_that_invents_statuses_is_bounded_and_nothing_is_lost() {
        let series = Series::default();
        for status in 100..1000 {
            series.record(key(3, status), Duration::ZERO);
        }
        let mut reading = SeriesReading::default();
        reading.merge(&series);
        assert_eq!(reading.requests.len(), PAIRS_MAX + 1);
        assert_eq!(reading.requests.values().sum::<u64>(), 900);
        assert_eq!(reading.requests[&key(3, StatusKey::OTHER)], 900 - PAIRS_MAX as u64);
    }
}
