//! Pure: request durations in the buckets that Stepflow's dashboards expect.

use std::time::Duration;

use super::Counter;

/// Upper bounds in milliseconds, inclusive (Prometheus `le`). The original balancer's, because
/// existing dashboards and alerts name them. A last bucket without bound follows.
pub const DURATION_BUCKETS_MS: [u64; 12] =
    [1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/// Durations of finished exchanges, from the first octet of the head to the last of the response.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; DURATION_BUCKETS_MS.len() + 1],
    sum_us: Counter,
}

/// A sum over the histograms of several workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramReading {
    /// Observations per bucket, *not* cumulative; the last has no upper bound.
    pub buckets: [u64; DURATION_BUCKETS_MS.len() + 1],
    /// Sum of all durations in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Counts one duration.
    #[inline]
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BUCKETS_MS.partition_point(|bound_ms| bound_ms * 1000 < us);
        self.buckets[bucket].add(1);
        self.sum_us.add(us);
    }
}

impl HistogramReading {
    /// Adds what one worker counted.
    pub fn merge(&mut self, histogram: &Histogram) {
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.get();
        }
        self.sum_us += histogram.sum_us.get();
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        let histogram = Histogram::default();
        for us in [0, 1000, 1001, 5000, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let mut reading = HistogramReading::default();
        reading.merge(&histogram);
        assert_eq!(reading.buckets, [2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(reading.count(), 6);
        assert_eq!(reading.sum_us, 20_007_002);
    }
}
