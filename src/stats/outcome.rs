//! Pure: how the requests to one backend have turned out, as one worker saw it.

use super::{Counter, Gauge};

/// Counts of outcomes. One writer. What is a failure is its operator's choice; what is neither
/// that nor a success, such as a client that left, is not counted.
#[derive(Debug, Default)]
pub struct OutcomeCell {
    passed: Counter,
    failed: Counter,
    connect_failed: Counter,
    /// Failures since the last success.
    failed_in_a_row: Gauge,
    /// Failed connects since the last connection that opened.
    connect_failed_in_a_row: Gauge,
}

/// Counts of outcomes, over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutcomeReading {
    /// Requests that the backend answered.
    pub passed: u64,
    /// Requests that it failed, failed connects included.
    pub failed: u64,
    /// Of these, failed connects.
    pub connect_failed: u64,
    /// At least so many failures have come behind the last success. Which of two workers was the
    /// last to see one is not known, so this is the smallest count of those that saw any.
    pub failed_in_a_row_min: u64,
    /// The same for failed connects behind the last connection that opened.
    pub connect_failed_in_a_row_min: u64,
}

impl OutcomeCell {
    /// The backend answered.
    #[inline]
    pub fn pass(&self) {
        self.passed.add(1);
        self.failed_in_a_row.set(0);
        self.connect_failed_in_a_row.set(0);
    }

    /// The backend failed on a connection that had opened.
    pub fn fail(&self) {
        self.failed.add(1);
        self.failed_in_a_row.increment();
        self.connect_failed_in_a_row.set(0);
    }

    /// No connection opened.
    pub fn fail_connect(&self) {
        self.failed.add(1);
        self.connect_failed.add(1);
        self.failed_in_a_row.increment();
        self.connect_failed_in_a_row.increment();
    }
}

impl OutcomeReading {
    /// Adds up what several workers counted.
    pub fn sum<'a>(cells: impl Iterator<Item = &'a OutcomeCell>) -> Self {
        let mut sum = Self::default();
        let (mut row_min, mut connect_row_min) = (u64::MAX, u64::MAX);
        for cell in cells {
            let (passed, failed) = (cell.passed.get(), cell.failed.get());
            let connect_failed = cell.connect_failed.get();
            sum.passed += passed;
            sum.failed += failed;
            sum.connect_failed += connect_failed;
            if passed > 0 {
                row_min = row_min.min(cell.failed_in_a_row.get());
            }
            if passed + failed > connect_failed {
                connect_row_min = connect_row_min.min(cell.connect_failed_in_a_row.get());
            }
        }
        // Without a success all failures stand in a row.
        sum.failed_in_a_row_min = if row_min == u64::MAX { sum.failed } else { row_min };
        sum.connect_failed_in_a_row_min =
            if connect_row_min == u64::MAX { sum.connect_failed } else { connect_row_min };
        sum
    }

    /// Connections that opened, whatever came of them.
    pub fn opened(&self) -> u64 {
        // A reading may be torn between the two.
        (self.passed + self.failed).saturating_sub(self.connect_failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_end_with_a_success_and_are_never_overstated() {
        let (a, b) = (OutcomeCell::default(), OutcomeCell::default());
        let sum = || OutcomeReading::sum([&a, &b].into_iter());
        a.fail();
        b.fail_connect();
        let want = OutcomeReading {
            passed: 0,
            failed: 2,
            connect_failed: 1,
            failed_in_a_row_min: 2,
            connect_failed_in_a_row_min: 0,
        };
        assert_eq!(sum(), want);
        b.pass();
        b.fail();
        b.fail();
        // The success of `b` may have come last: only what `b` saw behind it is certain.
        let want = OutcomeReading {
            passed: 1,
            failed: 4,
            connect_failed: 1,
            failed_in_a_row_min: 2,
            connect_failed_in_a_row_min: 0,
        };
        assert_eq!(sum(), want);
        a.pass();
        assert_eq!(sum().failed_in_a_row_min, 0);
        assert_eq!(sum().opened(), 5);
    }
}
