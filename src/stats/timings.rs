//! Pure: times in buckets of their own scale, for what the dashboards' buckets are too coarse or
//! too short for.

use std::{fmt, marker::PhantomData, time::Duration};

use super::Counter;

/// The buckets of a kind of time.
pub trait Scale {
    /// Upper bounds in microseconds, inclusive and ascending. A last bucket without bound follows.
    const BOUNDS_US: &'static [u64];
    /// One counter per bucket, the last included.
    type Buckets: AsRef<[Counter]> + Default + fmt::Debug;
}

/// What is felt by whoever reads a stream: the dashboards' buckets, and beyond them half a minute
/// and a minute, which a model at work may well be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamScale;

impl Scale for StreamScale {
    const BOUNDS_US: &'static [u64] = &[
        1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
        5_000_000, 10_000_000, 30_000_000, 60_000_000,
    ];
    type Buckets = [Counter; 15];
}

/// What the balancer itself takes where it ought to take no time at all: from 50 µs to a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CancelScale;

impl Scale for CancelScale {
    const BOUNDS_US: &'static [u64] = &[
        50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
        1_000_000,
    ];
    type Buckets = [Counter; 15];
}

/// Times by bucket. One writer.
pub struct Timings<S: Scale> {
    buckets: S::Buckets,
    sum_us: Counter,
}

/// A sum over the times that several workers have counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimingsReading<S> {
    /// Observations per bucket, *not* cumulative; the last has no upper bound.
    pub buckets: Vec<u64>,
    /// Sum of all times in microseconds.
    pub sum_us: u64,
    scale: PhantomData<S>,
}

impl<S: Scale> Timings<S> {
    /// Counts one time.
    #[inline]
    pub fn observe(&self, time: Duration) {
        self.observe_us(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts one time, given in microseconds.
    #[inline]
    pub fn observe_us(&self, us: u64) {
        let bucket = S::BOUNDS_US.partition_point(|bound_us| *bound_us < us);
        self.buckets.as_ref()[bucket].add(1);
        self.sum_us.add(us);
    }

    /// Counts `n` times of no length at all.
    #[inline]
    pub fn observe_zeros(&self, n: u64) {
        self.buckets.as_ref()[0].add(n);
    }
}

impl<S: Scale> TimingsReading<S> {
    /// Adds what one worker counted.
    pub fn merge(&mut self, timings: &Timings<S>) {
        for (total, bucket) in self.buckets.iter_mut().zip(timings.buckets.as_ref()) {
            *total += bucket.get();
        }
        self.sum_us = self.sum_us.wrapping_add(timings.sum_us.get());
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

impl<S: Scale> Default for Timings<S> {
    fn default() -> Self {
        let buckets = S::Buckets::default();
        debug_assert_eq!(buckets.as_ref().len(), S::BOUNDS_US.len() + 1);
        Self { buckets, sum_us: Counter::default() }
    }
}

impl<S: Scale> Default for TimingsReading<S> {
    fn default() -> Self {
        Self { buckets: vec![0; S::BOUNDS_US.len() + 1], sum_us: 0, scale: PhantomData }
    }
}

impl<S: Scale> fmt::Debug for Timings<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timings")
            .field("buckets", &self.buckets)
            .field("sum_us", &self.sum_us)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds_hold<S: Scale>() {
        assert!(S::BOUNDS_US.is_sorted_by(|a, b| a < b));
        let timings = Timings::<S>::default();
        // One on each bound, one just above it.
        for bound_us in S::BOUNDS_US {
            timings.observe_us(*bound_us);
            timings.observe(Duration::from_micros(bound_us + 1));
        }
        timings.observe_zeros(2);
        let (mut once, mut twice) = (TimingsReading::<S>::default(), TimingsReading::default());
        once.merge(&timings);
        twice.merge(&timings);
        twice.merge(&timings);
        let mut want = vec![2; S::BOUNDS_US.len()];
        // The first has its bound and the zeros, the last what is above the last bound.
        (want[0], want[S::BOUNDS_US.len() - 1]) = (3, 2);
        want.push(1);
        assert_eq!(once.buckets, want);
        let n = S::BOUNDS_US.len() as u64;
        assert_eq!(once.sum_us, 2 * S::BOUNDS_US.iter().sum::<u64>() + n);
        assert_eq!((twice.count(), twice.sum_us), (2 * once.count(), 2 * once.sum_us));
    }

    #[test]
    fn bounds_are_inclusive_on_every_scale() {
        bounds_hold::<StreamScale>();
        bounds_hold::<CancelScale>();
    }
}
