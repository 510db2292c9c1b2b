//! Pure: the two kinds of cell.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A count that only rises. Exactly one thread may call [`Counter::add`].
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. A load and a store, not a locked instruction: the single writer is what makes
    /// this exact.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls. Exactly one thread may write it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    #[inline]
    pub fn increment(&self) {
        self.0.store(self.0.load(Relaxed) + 1, Relaxed);
    }

    /// One less. Stays at zero in release builds: a count that wraps would starve a backend for
    /// ever, which is how the original balancer lost healthy ones.
    #[inline]
    pub fn decrement(&self) {
        let value = self.0.load(Relaxed);
        debug_assert!(value > 0, "a gauge was decremented below zero");
        self.0.store(value.saturating_sub(1), Relaxed);
    }

    /// One more, until the guard is dropped.
    pub fn hold(&self) -> Held<'_> {
        self.increment();
        Held(self)
    }

    /// Replaces the number.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Holds a gauge one higher. Dropping it on every way out, a panic included, is what brings gauges
/// back to zero.
#[derive(Debug)]
pub struct Held<'a>(&'a Gauge);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.decrement();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_gauge_returns_even_through_a_panic() {
        let gauge = Gauge::default();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = gauge.hold();
            assert_eq!(gauge.get(), 1);
            panic!("on purpose");
        }));
        assert!(caught.is_err());
        assert_eq!(gauge.get(), 0);
    }
}
