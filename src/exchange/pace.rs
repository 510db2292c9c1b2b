//! Pure: how many streams may be told to end at once, and how long that takes for all of them.
//!
//! One token bucket for the whole process. Workers take from the same number, by
//! compare-and-exchange: shares of a rate that is smaller than the number of workers would have to
//! be rounded, and a worker that has no streams would keep its share from one that has many. It is
//! asked only while something drains.
//!
//! Law: in any span of `t` seconds at most `1 + rate / 10 + rate * t` are let go, which is when
//! they are told to end: one inside an event takes as long as that. The burst is one, and what a
//! tenth of a second brings: so much may come between two looks of a worker at its streams, and
//! nothing of the rate is lost to their distance.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// One token, in the unit that a millisecond brings `rate` of: nothing is ever rounded.
const TOKEN: u64 = 1000;

/// How long what is not used is saved.
const SAVED_MS: u64 = 100;

/// The bucket.
#[derive(Debug)]
pub struct Pace {
    rate: u64,
    began: Instant,
    /// All that was taken, together with all that ran over.
    taken: AtomicU64,
}

/// What there is no time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// How long all of them would take.
    pub needs: Duration,
    /// How many would be left when time is up.
    pub left: u64,
}

/// What the bucket holds.
fn capacity(rate: u64) -> u64 {
    TOKEN + rate * SAVED_MS
}

impl Pace {
    /// Lets so many go per second.
    pub fn new(rate: NonZeroU32, now: Instant) -> Self {
        Self { rate: rate.get().into(), began: now, taken: AtomicU64::new(0) }
    }

    /// Whether one more may go now; if so, it is counted.
    pub fn take(&self, now: Instant) -> bool {
        let ms = now.saturating_duration_since(self.began).as_millis();
        let ms = u64::try_from(ms).unwrap_or(u64::MAX);
        // Everything that was ever brought, and one token to begin with.
        let brought = ms.saturating_mul(self.rate).saturating_add(TOKEN);
        let ran_over = brought.saturating_sub(capacity(self.rate));
        let take = |taken: u64| {
            let after = taken.max(ran_over) + TOKEN;
            (after <= brought).then_some(after)
        };
        self.taken.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

/// Whether so many streams cannot all go within `time`, at this rate.
pub fn shortfall(streams: u64, rate: NonZeroU32, time: Duration) -> Option<Shortfall> {
    let rate = u64::from(rate.get());
    let needs_ms = streams.saturating_mul(TOKEN).saturating_sub(capacity(rate)).div_ceil(rate);
    let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let goes = time_ms.saturating_mul(rate).saturating_add(capacity(rate)) / TOKEN;
    (needs_ms > time_ms).then(|| Shortfall {
        needs: Duration::from_millis(needs_ms),
        left: streams.saturating_sub(goes),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rate(rate: u32) -> NonZeroU32 {
        NonZeroU32::new(rate).unwrap()
    }

    /// Milliseconds at which streams go if workers ask for as many as they get at these times.
    fn departures(pace: &Pace, began: Instant, asked_ms: impl Iterator<Item = u64>) -> Vec<u64> {
        let mut departures = Vec::new();
        for ms in asked_ms {
            while pace.take(began + Duration::from_millis(ms)) {
                departures.push(ms);
            }
        }
        departures
    }

    #[test]
    fn three_workers_that_share_one_per_second_let_one_go_per_second() {
        let began = Instant::now();
        let pace = Pace::new(rate(1), began);
        // Three workers with ticks of their own, over ten minutes.
        let asked = (0..600_000).filter(|ms| [0, 17, 31].contains(&(ms % 50)));
        let departures = departures(&pace, began, asked);
        let want: Vec<_> = (0..600).map(|second| second * 1000).collect();
        assert_eq!(departures, want);
    }

    #[test]
    fn no_rate_drifts_over_a_year() {
        let began = Instant::now();
        let year_seconds = 365 * 24 * 3600_u64;
        for per_second in [1, 3, 7, 97] {
            let pace = Pace::new(rate(per_second), began);
            // The last millisecond before each token is too early, the next is not.
            for token in [1, 2, 3, 1000, year_seconds * u64::from(per_second)] {
                let due_ms = (token * 1000).div_ceil(u64::from(per_second));
                pace.taken.store(token * TOKEN, Relaxed);
                assert!(!pace.take(began + Duration::from_millis(due_ms - 1)), "{per_second}");
                assert!(pace.take(began + Duration::from_millis(due_ms)), "{per_second}");
            }
        }
    }

    #[test]
    fn what_is_not_used_is_not_saved_beyond_the_burst() {
        let began = Instant::now();
        for (per_second, most) in [(1, 1), (9, 1), (10, 2), (100, 11), (1_000_000, 100_001)] {
            let pace = Pace::new(rate(per_second), began);
            for ms in [1000, 3_600_000] {
                assert_eq!(departures(&pace, began, [ms].into_iter()).len(), most, "{per_second}");
            }
        }
    }

    #[test]
    fn ticks_lose_nothing_of_the_rate() {
        let began = Instant::now();
        for per_second in [1, 9, 10, 100, 333, 10_000] {
            let pace = Pace::new(rate(per_second), began);
            let departures = departures(&pace, began, (0..=60_000).step_by(50));
            assert_eq!(departures.len(), 1 + 60 * per_second as usize, "{per_second}");
        }
    }

    proptest! {
        /// The law of the bucket, in every window of every way to ask.
        #[test]
        fn no_window_lets_more_go_than_the_law_says(
            per_second in 1_u32..500,
            pauses in proptest::collection::vec(0_u64..400, 1..60),
        ) {
            let began = Instant::now();
            let pace = Pace::new(rate(per_second), began);
            let mut now = 0;
            let mut asked = Vec::new();
            for pause in pauses {
                now += pause;
                let departed = departures(&pace, began, [now].into_iter()).len() as u64;
                asked.push((now, departed));
            }
            let rate = u64::from(per_second);
            for (index, (from, _)) in asked.iter().enumerate() {
                let mut count = 0;
                for (to, departed) in &asked[index..] {
                    count += departed;
                    let most = 1000 + 100 * rate + (to - from) * rate;
                    prop_assert!(count * 1000 <= most, "{} between {} and {} ms", count, from, to);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_known_beforehand() {
        let seconds = Duration::from_secs;
        let cases = [
            // (streams, rate, time), (needs, left)
            ((0, 1, seconds(0)), None),
            ((11, 100, seconds(0)), None),
            ((12, 100, seconds(0)), Some((Duration::from_millis(10), 1))),
            ((3011, 100, seconds(30)), None),
            ((3012, 100, seconds(30)), Some((Duration::from_millis(30_010), 1))),
            ((10_011, 100, seconds(30)), Some((seconds(100), 7000))),
        ];
        for ((streams, per_second, time), want) in cases {
            let got = shortfall(streams, rate(per_second), time);
            assert_eq!(got.map(|s| (s.needs, s.left)), want, "{streams} at {per_second}");
        }
        assert!(shortfall(u64::MAX, rate(u32::MAX), seconds(30)).is_some());
        assert_eq!(shortfall(u64::MAX, rate(1), Duration::MAX), None);
    }

    #[test]
    fn what_is_foretold_is_what_happens() {
        let began = Instant::now();
        let hour_ms = 3_600_000;
        for (streams, per_second, time_ms) in [(500, 100, 3000), (31, 10, 2000), (7, 3, 1000)] {
            let pace = Pace::new(rate(per_second), began);
            let asked = hour_ms..=hour_ms + time_ms;
            let departed = departures(&pace, began, asked).len() as u64;
            let foretold = shortfall(streams, rate(per_second), Duration::from_millis(time_ms));
            assert_eq!(foretold.map(|s| s.left), Some(streams - departed));
        }
    }
}
