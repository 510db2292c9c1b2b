//! Pure: since when a backend takes new work, and whether it is held back for that.
//!
//! A backend that joins others begins with a tenth of its weight and has all of it when the window
//! of the slow start has passed. It is spared only what somebody else can carry: one that has been
//! taking work for a whole window. So where all are new, because they or we have just started,
//! nobody is held back, although they come one by one.
//!
//! Time is this worker's. All workers get the same snapshots within moments, and weights that
//! differ between them for a moment cost nothing, while a time in the snapshot would have to
//! outlive every verdict that takes a backend out and brings it back.

use crate::exchange::Tick;

/// Parts of a weight, so that a tenth of one is not nothing.
pub(super) const WEIGHT_PARTS: u32 = 256;

/// With how many of its parts a backend begins: a tenth.
const FIRST_PARTS: u32 = 26;

/// Steps of a ramp. Each makes pickers add up their weights anew, which takes a millisecond with
/// 10,000 backends.
const STEPS: u32 = 64;

/// How long a backend has been taking new work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tenure {
    /// It takes none.
    Out,
    /// With its full weight, since then.
    Full(Tick),
    /// With less, until a window has passed since then.
    Ramping(Tick),
}

/// Length of the slow start, in ticks; zero where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window(pub(super) u32);

impl Window {
    fn has_passed(self, since: Tick, now: Tick) -> bool {
        now.0.saturating_sub(since.0) >= self.0
    }

    /// When weights are looked at again, while anybody ramps.
    pub(super) fn next_step(self, now: Tick) -> Tick {
        Tick(now.0.saturating_add((self.0 / STEPS).max(1)))
    }
}

impl Tenure {
    /// Whether it can carry those who are held back, if it goes on taking work.
    pub(super) fn can_carry(self, now: Tick, window: Window) -> bool {
        match self {
            Self::Out => false,
            Self::Full(since) | Self::Ramping(since) => window.has_passed(since, now),
        }
    }

    /// What becomes of it at `now`. `is_carried`: somebody goes on that can carry others.
    pub(super) fn next(
        self,
        takes_work: bool,
        is_carried: bool,
        now: Tick,
        window: Window,
    ) -> Self {
        match self {
            _ if !takes_work => Self::Out,
            Self::Out if is_carried && window.0 > 0 => Self::Ramping(now),
            Self::Out => Self::Full(now),
            Self::Ramping(since) if !is_carried || window.has_passed(since, now) => {
                Self::Full(since)
            }
            Self::Full(_) | Self::Ramping(_) => self,
        }
    }

    /// How many parts of its weight it has now.
    pub(super) fn parts(self, now: Tick, window: Window) -> u32 {
        let Self::Ramping(since) = self else { return WEIGHT_PARTS };
        let passed = u64::from(now.0.saturating_sub(since.0));
        let come = u64::from(WEIGHT_PARTS - FIRST_PARTS) * passed / u64::from(window.0.max(1));
        (FIRST_PARTS + u32::try_from(come).unwrap_or(WEIGHT_PARTS)).min(WEIGHT_PARTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window(100);

    #[test]
    fn who_joins_others_begins_with_a_tenth_and_has_all_after_the_window() {
        let mut tenure = Tenure::Out.next(true, true, Tick(1000), WINDOW);
        let parts = |tenure: Tenure, now| tenure.parts(Tick(now), WINDOW);
        assert_eq!([1000, 1050, 1099].map(|now| parts(tenure, now)), [26, 141, 253]);
        assert!(!tenure.can_carry(Tick(1099), WINDOW));
        tenure = tenure.next(true, true, Tick(1100), WINDOW);
        assert_eq!((tenure, parts(tenure, 1100)), (Tenure::Full(Tick(1000)), WEIGHT_PARTS));
        assert!(tenure.can_carry(Tick(1100), WINDOW));
    }

    #[test]
    fn where_all_are_new_nobody_is_held_back() {
        let first = Tenure::Out.next(true, false, Tick(5), WINDOW);
        assert_eq!(first, Tenure::Full(Tick(5)));
        // It has not been there for long enough to carry the second, which comes a moment later.
        assert!(!first.can_carry(Tick(7), WINDOW));
        assert_eq!(Tenure::Out.next(true, false, Tick(7), WINDOW), Tenure::Full(Tick(7)));
    }

    #[test]
    fn who_is_held_back_is_let_go_when_nobody_is_left_to_carry() {
        let ramping = Tenure::Ramping(Tick(10));
        assert_eq!(ramping.next(true, true, Tick(20), WINDOW), ramping);
        assert_eq!(ramping.next(true, false, Tick(20), WINDOW), Tenure::Full(Tick(10)));
    }

    #[test]
    fn who_comes_back_begins_anew_and_without_a_window_nobody_is_held_back() {
        let old = Tenure::Full(Tick(0)).next(false, true, Tick(500), WINDOW);
        assert_eq!(old, Tenure::Out);
        assert_eq!(old.next(true, true, Tick(501), WINDOW), Tenure::Ramping(Tick(501)));
        assert_eq!(old.next(true, true, Tick(501), Window(0)), Tenure::Full(Tick(501)));
    }
}
