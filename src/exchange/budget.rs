//! Pure: how much may be tried again in all, whatever each request by itself would be allowed.
//!
//! A backend that fails most of what it gets would, with every request tried four times, get four
//! times the traffic at the moment when it can serve least. So retries are a share of the requests
//! of the last ten seconds. Seconds are counted apart and forgotten one by one, so that a burst is
//! neither forgiven at a stroke nor held against anybody for longer than the window.

use super::Tick;

/// Seconds of the window.
const WINDOW_SECONDS: usize = 10;

#[expect(clippy::cast_possible_truncation, reason = "a second has twenty ticks")]
const TICKS_PER_SECOND: u32 = (1000 / Tick::LENGTH.as_millis()) as u32;

/// What one worker has tried again lately, and how much of that it may.
#[derive(Debug)]
pub struct RetryBudget {
    share_percent: u64,
    retries_min: u64,
    /// One place for each second of the window, by the second modulo their number.
    seconds: [Second; WINDOW_SECONDS],
    /// The sums over all places.
    sum: Second,
    now: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// A budget of `share_percent` of the requests, plus this worker's part of so many retries per
    /// second that the process may make however little traffic it has.
    pub fn new(share_percent: u32, retries_per_second_min: u32, workers: usize) -> Self {
        let in_window = u64::from(retries_per_second_min) * WINDOW_SECONDS as u64;
        Self {
            share_percent: share_percent.into(),
            // Rounded up: a worker that may never try again would fail what others would not.
            retries_min: in_window.div_ceil(workers.max(1) as u64),
            seconds: [Second::default(); WINDOW_SECONDS],
            sum: Second::default(),
            now: 0,
        }
    }

    /// Counts a request, however often it will be tried.
    pub fn note_request(&mut self, now: Tick) {
        self.place(now).requests += 1;
        self.sum.requests += 1;
    }

    /// Whether one more retry is within the budget; if so, it is counted.
    pub fn take_retry(&mut self, now: Tick) -> bool {
        self.place(now);
        let allowed = self.share_percent * self.sum.requests + 100 * self.retries_min;
        let permits = 100 * (self.sum.retries + 1) <= allowed;
        if permits {
            self.place(now).retries += 1;
            self.sum.retries += 1;
        }
        permits
    }

    /// The place of the present second, once those that have left the window are empty.
    fn place(&mut self, now: Tick) -> &mut Second {
        let second = now.0 / TICKS_PER_SECOND;
        let passed = second.saturating_sub(self.now) as usize;
        // Beyond the whole window every place is emptied once.
        for step in 1..=passed.min(WINDOW_SECONDS) {
            let place = &mut self.seconds[(self.now as usize + step) % WINDOW_SECONDS];
            let old = std::mem::take(place);
            self.sum.requests -= old.requests;
            self.sum.retries -= old.retries;
        }
        self.now = self.now.max(second);
        &mut self.seconds[self.now as usize % WINDOW_SECONDS]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tick(seconds: u32) -> Tick {
        Tick(seconds * TICKS_PER_SECOND)
    }

    #[test]
    fn a_second_has_its_ticks() {
        assert_eq!(Tick::LENGTH * TICKS_PER_SECOND, std::time::Duration::from_secs(1));
    }

    #[test]
    fn a_share_of_the_requests_and_no_more_may_be_tried_again() {
        let mut budget = RetryBudget::new(20, 0, 4);
        assert!(!budget.take_retry(tick(0)), "nothing has been asked");
        let mut taken = 0;
        for _ in 0..1000 {
            budget.note_request(tick(3));
            taken += u32::from(budget.take_retry(tick(3)));
        }
        assert_eq!(taken, 200);
        // The rest of the window belongs to them.
        assert!(!budget.take_retry(tick(12)));
        for _ in 0..5 {
            budget.note_request(tick(13));
        }
        assert!(budget.take_retry(tick(13)));
        assert!(!budget.take_retry(tick(13)));
    }

    #[test]
    fn little_traffic_has_the_floor_shared_by_the_workers() {
        for (workers, per_window) in [(1, 100), (4, 25), (64, 2), (1000, 1)] {
            let mut budget = RetryBudget::new(20, 10, workers);
            let taken = (0..1000).filter(|_| budget.take_retry(tick(1))).count();
            assert_eq!(taken, per_window, "{workers} workers");
            assert!(!budget.take_retry(tick(10)));
            assert!(budget.take_retry(tick(11)));
        }
        assert!(!RetryBudget::new(100, 0, 1).take_retry(tick(0)));
    }

    proptest! {
        /// Over any window of any history, retries are within the share and the floor of it.
        #[test]
        fn any_history_agrees_with_a_plain_recount(
            share in 0_u32..=100,
            floor in 0_u32..3,
            steps in proptest::collection::vec((0_u32..8, 0_u8..4), 1..400),
        ) {
            let mut budget = RetryBudget::new(share, floor, 1);
            let (mut now, mut requests, mut retries) = (0, Vec::new(), Vec::new());
            for (pause, what) in steps {
                // Mostly in the same second, sometimes beyond the window.
                now += [0, 0, 0, 0, 1, 1, 5, 30][pause as usize];
                let since = now.max(9) - 9;
                let within = |at: &Vec<u32>| at.iter().filter(|at| **at >= since).count() as u64;
                if what == 0 {
                    budget.note_request(tick(now));
                    requests.push(now);
                } else {
                    let allowed = u64::from(share) * within(&requests) + u64::from(floor) * 1000;
                    let want = 100 * (within(&retries) + 1) <= allowed;
                    prop_assert_eq!(budget.take_retry(tick(now)), want, "at {}", now);
                    retries.extend(want.then_some(now));
                }
            }
        }
    }
}
