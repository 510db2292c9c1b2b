//! Pure: how long a backend takes to answer, as a moving average that believes bad news at once.
//!
//! Peak EWMA, as in Finagle and linkerd: a sample above the average replaces it, one below draws it
//! down as fast as time passes, so that a thousand quick answers in a millisecond do not outweigh a
//! slow one. Without samples it fades: a backend that was slow once is tried again.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The average, and when it was last touched, in one word: any number of workers may write it, and
/// whoever reads it sees both parts of the same moment.
#[derive(Debug, Default)]
pub struct PeakLatency(AtomicU64);

/// A reading in time: the average as it was at `at_ticks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Microseconds, at least one; zero stands for "never measured".
    average_us: u32,
    at_ticks: u32,
}

/// What a sample may do to the average.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// The backend did what it was asked: the average follows in both directions.
    Served,
    /// It answered with an error. A backend that refuses everything within a millisecond is not
    /// fast, so this raises the average but never lowers it.
    Failed,
}

impl PeakLatency {
    /// Takes in how long an answer took. Ticks are those of any clock that all workers share, to a
    /// fraction of the half-life; coarse ones will do.
    pub fn observe(
        &self,
        sample: Sample,
        took: Duration,
        now_ticks: u32,
        half_life_ticks: NonZeroU32,
    ) {
        let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let next = |word: u64| {
            let old = Reading::of(word);
            let at_ticks = old.at_ticks.max(now_ticks);
            let idle_ticks = now_ticks.saturating_sub(old.at_ticks);
            let faded_us = faded(old.average_us, idle_ticks, half_life_ticks);
            let average_us = match sample {
                Sample::Served if took_us >= faded_us => took_us,
                // The part of the average that is above the sample fades, the rest is confirmed.
                Sample::Served => {
                    took_us
                        + faded(old.average_us.saturating_sub(took_us), idle_ticks, half_life_ticks)
                }
                Sample::Failed if took_us > faded_us => took_us,
                Sample::Failed => return None,
            };
            Some(Reading { average_us, at_ticks }.word())
        };
        // The closure says no only where nothing is to be changed.
        let _unchanged = self.0.fetch_update(Relaxed, Relaxed, next);
    }

    /// The average in microseconds at `now_ticks`; `None` while nothing was measured.
    #[inline]
    pub fn average_us(&self, now_ticks: u32, half_life_ticks: NonZeroU32) -> Option<u32> {
        let reading = Reading::of(self.0.load(Relaxed));
        let idle_ticks = now_ticks.saturating_sub(reading.at_ticks);
        (reading.average_us > 0)
            .then(|| faded(reading.average_us, idle_ticks, half_life_ticks).max(1))
    }
}

impl Reading {
    fn of(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
        Self {
            average_us: u32::from_be_bytes([a, b, c, d]),
            at_ticks: u32::from_be_bytes([e, f, g, h]),
        }
    }

    fn word(self) -> u64 {
        u64::from(self.average_us) << 32 | u64::from(self.at_ticks)
    }
}

/// What is left of a value after some time: a half at every half-life, and a straight line in
/// between, which is at most 6.2 % above the true curve and costs a division instead of `exp`.
fn faded(value: u32, passed_ticks: u32, half_life_ticks: NonZeroU32) -> u32 {
    let (halvings, rest_ticks) = (passed_ticks / half_life_ticks, passed_ticks % half_life_ticks);
    let Some(whole) = value.checked_shr(halvings) else { return 0 };
    let part = u64::from(whole / 2) * u64::from(rest_ticks) / u64::from(half_life_ticks.get());
    // A part of a half never exceeds the whole.
    whole - u32::try_from(part).unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF_LIFE: NonZeroU32 = NonZeroU32::new(5000).unwrap();

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn average(latency: &PeakLatency, now_ticks: u32) -> Option<u32> {
        latency.average_us(now_ticks, HALF_LIFE)
    }

    #[test]
    fn a_spike_is_believed_at_once_and_forgotten_by_halves() {
        let latency = PeakLatency::default();
        assert_eq!(average(&latency, 0), None);
        latency.observe(Sample::Served, ms(10), 100, HALF_LIFE);
        latency.observe(Sample::Served, ms(400), 100, HALF_LIFE);
        assert_eq!(average(&latency, 100), Some(400_000));
        // In the same tick no number of quick answers undoes it.
        for _ in 0..1000 {
            latency.observe(Sample::Served, ms(10), 100, HALF_LIFE);
        }
        assert_eq!(average(&latency, 100), Some(400_000));
        assert_eq!(average(&latency, 5100), Some(200_000));
        assert_eq!(average(&latency, 10_100), Some(100_000));
        assert_eq!(average(&latency, u32::MAX), Some(1), "measured, long ago");
    }

    #[test]
    fn steady_samples_draw_the_average_to_themselves() {
        let latency = PeakLatency::default();
        latency.observe(Sample::Served, ms(400), 0, HALF_LIFE);
        latency.observe(Sample::Served, ms(10), 5000, HALF_LIFE);
        // Half of the 390 ms above the sample are left.
        assert_eq!(average(&latency, 5000), Some(205_000));
        for second in 6..60 {
            latency.observe(Sample::Served, ms(10), second * 1000, HALF_LIFE);
        }
        let settled = average(&latency, 59_000).unwrap();
        assert!((10_000..11_000).contains(&settled), "{settled}");
    }

    #[test]
    fn a_quick_error_is_no_praise_and_a_slow_one_is_blame() {
        let latency = PeakLatency::default();
        latency.observe(Sample::Served, ms(50), 0, HALF_LIFE);
        latency.observe(Sample::Failed, ms(1), 0, HALF_LIFE);
        assert_eq!(average(&latency, 0), Some(50_000));
        latency.observe(Sample::Failed, ms(90), 0, HALF_LIFE);
        assert_eq!(average(&latency, 0), Some(90_000));
    }

    #[test]
    fn fading_is_close_to_the_true_curve_and_never_rises() {
        let mut last = u32::MAX;
        for passed_ticks in (0..200_000).step_by(37) {
            let value = faded(1_000_000, passed_ticks, HALF_LIFE);
            let truth = 1e6 * (-f64::from(passed_ticks) / 5000.0 * 2_f64.ln()).exp();
            assert!(value <= last);
            assert!((f64::from(value) - truth).abs() <= 0.062 * truth + 2.0, "{passed_ticks}");
            last = value;
        }
        assert_eq!(faded(u32::MAX, u32::MAX, NonZeroU32::MIN), 0);
    }

    #[test]
    fn a_clock_that_lags_behind_another_worker_s_does_no_harm() {
        let latency = PeakLatency::default();
        latency.observe(Sample::Served, ms(10), 1000, HALF_LIFE);
        latency.observe(Sample::Served, ms(10), 900, HALF_LIFE);
        assert_eq!(average(&latency, 950), Some(10_000));
        assert_eq!(average(&latency, 1000), Some(10_000));
    }
}
