//! Pure: what the outcomes of real requests say about a backend, which no probe needs to notice.
//!
//! Owns one [`OutlierMachine`] per backend: rows of failures, the share of failures over a window,
//! event streams that fall silent together, and how long an ejection lasts. Does not own how many
//! backends may be out at once, because that is a matter of all of them (`plane::roster`), nor when
//! one stream counts as silent, because only its worker hears it.
//!
//! Invariants
//! - Nobody is ejected for a row of failures in which a success stands: where the order of two
//!   outcomes is not known, the shorter row is believed.
//! - What happened before a backend was readmitted, or while it took no new work, is not held
//!   against it.
//! - Nobody is ejected for silence that others keep as well.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::stats::{OutcomeReading, SilenceReading};

/// Parts into which the window is cut. What is older than the window is forgotten in parts of this
/// size, so the window covers between nine tenths and all of its length.
const BUCKETS: usize = 10;
const BUCKETS_IN_WINDOW: u32 = 10;
const _: () = assert!(BUCKETS == BUCKETS_IN_WINDOW as usize);

/// Longest time between two looks at the counts of a backend that nobody has reported: a bound on
/// how long a bad one goes unnoticed.
const READING_PERIOD_MAX: Duration = Duration::from_secs(1);

/// Shortest time between two looks, however short the window.
const READING_PERIOD_MIN: Duration = Duration::from_millis(50);

/// Event streams, of a backend as of all others together, below which their share of silent ones
/// says nothing: a few streams can be silent at the same time by chance.
pub const STREAMS_JUDGED_MIN: u64 = 5;

/// How long streams must be silent together before that counts: every worker walks over its streams
/// once a second, so by then all of them have looked at the same silence.
pub const SILENCE_CONFIRMED: Duration = Duration::from_secs(2);

/// When a backend is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row; `None` does not count them.
    pub failures_in_a_row: Option<NonZeroU32>,
    /// Failed connects in a row; `None` does not count them apart from others.
    pub connect_failures_in_a_row: Option<NonZeroU32>,
    /// Share of failures within the window, in percent; `None` does not look at it.
    pub failure_percent: Option<u8>,
    /// Length of the window.
    pub window: Duration,
    /// Requests within the window below which its share says nothing.
    pub requests_min: NonZeroU32,
    /// Share of event streams that are silent at the same time, in percent; `None` does not look at
    /// it.
    pub silent_percent: Option<u8>,
    /// Length of the first ejection; each further one is longer by this much.
    pub ejection: Duration,
    /// Longest ejection.
    pub ejection_max: Duration,
    /// Most backends that may be out at once, in percent of those that are present.
    pub ejected_percent_max: u8,
    /// What ends an ejection.
    pub ends: Ends,
}

/// What ends an ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Its time.
    ByTime,
    /// Its time, or a health check that began after it and passed.
    ByProbe,
}

/// Why a backend is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Failed connects in a row.
    ConnectFailures,
    /// Failures in a row.
    ConsecutiveFailures,
    /// Too large a share of failures.
    FailureRate,
    /// Event streams that fell silent together.
    StreamsStalled,
}

impl Reason {
    /// One label per reason, in the order of [`Reason::index`].
    pub const LABELS: [&'static str; 4] =
        ["connect_failures", "consecutive_failures", "failure_rate", "streams_stalled"];

    /// Index below the length of [`Reason::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Self::ConnectFailures => 0,
            Self::ConsecutiveFailures => 1,
            Self::FailureRate => 2,
            Self::StreamsStalled => 3,
        }
    }

    /// The reason, for logs and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

impl Policy {
    /// Time between two looks at the counts of every backend.
    pub fn reading_period(&self) -> Duration {
        self.bucket().clamp(READING_PERIOD_MIN, READING_PERIOD_MAX)
    }

    /// How many of so many backends may be out at once. With two or more one always may, or small
    /// clusters would have no use of it.
    pub fn ejected_max(&self, present: usize) -> usize {
        let share = present * usize::from(self.ejected_percent_max) / 100;
        let least = usize::from(present > 1 && self.ejected_percent_max > 0);
        share.max(least)
    }

    fn bucket(&self) -> Duration {
        self.window / BUCKETS_IN_WINDOW
    }
}

/// What is held against one backend.
#[derive(Clone, Debug)]
pub struct OutlierMachine {
    /// The counts at the last look.
    seen: OutcomeReading,
    failed_in_a_row: u64,
    connect_failed_in_a_row: u64,
    window: Window,
    /// Since when its streams are silent together, and those of others are not.
    silent_since: Option<Instant>,
    /// They have been for long enough.
    is_stalled: bool,
    /// Streams that had spoken again when somebody listened last while it was in.
    resumed_seen: u64,
    /// Ejections that are not forgiven yet.
    ejections: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    In { since: Instant },
    Out { since: Instant, until: Instant, reason: Reason },
}

impl OutlierMachine {
    /// A backend against which nothing is held.
    pub fn new(now: Instant) -> Self {
        Self {
            seen: OutcomeReading::default(),
            failed_in_a_row: 0,
            connect_failed_in_a_row: 0,
            window: Window::new(now),
            silent_since: None,
            is_stalled: false,
            resumed_seen: 0,
            ejections: 0,
            state: State::In { since: now },
        }
    }

    /// Listens to its event streams, beside those of all others that take new work. What follows
    /// shows in the next [`OutlierMachine::observe`].
    pub fn listen(
        &mut self,
        own: SilenceReading,
        others: SilenceReading,
        now: Instant,
        policy: &Policy,
    ) {
        if self.is_out() {
            return;
        }
        self.resumed_seen = own.resumed;
        let is_silent = |percent| is_silent_alone(own, others, percent);
        self.silent_since = match policy.silent_percent.is_some_and(is_silent) {
            true => self.silent_since.or(Some(now)),
            false => None,
        };
        self.is_stalled = self.silent_since.is_some_and(|since| now >= since + SILENCE_CONFIRMED);
    }

    /// Whether it is out because its streams were silent, and most of those that are left have
    /// spoken since. Streams that ended meanwhile say nothing: their clients may have given up.
    pub fn speaks_again(&self, own: SilenceReading) -> bool {
        let resumed = own.resumed.saturating_sub(self.resumed_seen);
        self.out_for() == Some(Reason::StreamsStalled) && resumed > own.silent
    }

    /// Looks at the counts. Gives the reason if the backend ought to be ejected now.
    pub fn observe(
        &mut self,
        reading: OutcomeReading,
        now: Instant,
        policy: &Policy,
    ) -> Option<Reason> {
        let seen = std::mem::replace(&mut self.seen, reading);
        if self.is_out() {
            return None;
        }
        let passed = reading.passed.saturating_sub(seen.passed);
        let failed = reading.failed.saturating_sub(seen.failed);
        let connect_failed = reading.connect_failed.saturating_sub(seen.connect_failed);
        self.failed_in_a_row = match passed {
            0 => self.failed_in_a_row + failed,
            _ => reading.failed_in_a_row_min.min(failed),
        };
        self.connect_failed_in_a_row = match reading.opened().saturating_sub(seen.opened()) {
            0 => self.connect_failed_in_a_row + connect_failed,
            _ => reading.connect_failed_in_a_row_min.min(connect_failed),
        };
        self.window.add(passed, failed, now, policy.bucket());
        self.verdict(policy)
    }

    fn verdict(&self, policy: &Policy) -> Option<Reason> {
        let has_row = |row: u64, limit: Option<NonZeroU32>| {
            limit.is_some_and(|limit| row >= u64::from(limit.get()))
        };
        if has_row(self.connect_failed_in_a_row, policy.connect_failures_in_a_row) {
            return Some(Reason::ConnectFailures);
        }
        if has_row(self.failed_in_a_row, policy.failures_in_a_row) {
            return Some(Reason::ConsecutiveFailures);
        }
        let (passed, failed) = self.window.sum();
        let total = passed + failed;
        let is_bad = |percent: u8| failed * 100 >= total * u64::from(percent);
        if total >= u64::from(policy.requests_min.get())
            && failed > 0
            && policy.failure_percent.is_some_and(is_bad)
        {
            return Some(Reason::FailureRate);
        }
        self.is_stalled.then_some(Reason::StreamsStalled)
    }

    /// Looks away: it takes no new work for another reason, and what it meets meanwhile is not held
    /// against it.
    pub fn skip(&mut self, reading: OutcomeReading, now: Instant) {
        self.seen = reading;
        self.failed_in_a_row = 0;
        self.connect_failed_in_a_row = 0;
        self.window = Window::new(now);
        self.silent_since = None;
        self.is_stalled = false;
    }

    /// Puts it out. Gives how long, and how many ejections are counted against it, this one
    /// included: one is forgiven for every length of the first that it has been in.
    pub fn eject(&mut self, reason: Reason, now: Instant, policy: &Policy) -> (Duration, u32) {
        let good_for = match self.state {
            State::In { since } => now.saturating_duration_since(since),
            State::Out { .. } => Duration::ZERO,
        };
        let forgiven = good_for.as_millis() / policy.ejection.as_millis().max(1);
        let forgiven = u32::try_from(forgiven).unwrap_or(u32::MAX);
        self.ejections = self.ejections.saturating_sub(forgiven).saturating_add(1);
        let length = policy.ejection.saturating_mul(self.ejections).min(policy.ejection_max);
        self.state = State::Out { since: now, until: now + length, reason };
        (length, self.ejections)
    }

    /// Lets it in again, with a clean slate but for the number of its ejections. `reading` is where
    /// the slate begins.
    pub fn readmit(&mut self, reading: OutcomeReading, now: Instant) {
        self.skip(reading, now);
        self.state = State::In { since: now };
    }

    /// Whether it is out.
    pub fn is_out(&self) -> bool {
        matches!(self.state, State::Out { .. })
    }

    /// When its ejection ends, if it is out.
    pub fn out_until(&self) -> Option<Instant> {
        match self.state {
            State::In { .. } => None,
            State::Out { until, .. } => Some(until),
        }
    }

    /// Why it is out, if it is.
    pub fn out_for(&self) -> Option<Reason> {
        match self.state {
            State::In { .. } => None,
            State::Out { reason, .. } => Some(reason),
        }
    }

    /// When its ejection began, if it is out.
    pub fn out_since(&self) -> Option<Instant> {
        match self.state {
            State::In { .. } => None,
            State::Out { since, .. } => Some(since),
        }
    }
}

/// Whether enough of its own streams are silent, and less than half as large a share of those of
/// others. Silence that most others keep as well has a cause that they share: the network on this
/// side, or nothing that there is to say. Who has nobody to be compared with is not silent alone.
fn is_silent_alone(own: SilenceReading, others: SilenceReading, percent: u8) -> bool {
    let percent = u64::from(percent);
    own.judged >= STREAMS_JUDGED_MIN
        && others.judged >= STREAMS_JUDGED_MIN
        && own.silent * 100 >= own.judged * percent
        && others.silent * 200 < others.judged * percent
}

/// Outcomes of the last while, in buckets of equal length.
#[derive(Clone, Debug)]
struct Window {
    /// Passed and failed.
    buckets: [(u32, u32); BUCKETS],
    current: usize,
    /// When the current bucket began.
    began: Instant,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { buckets: [(0, 0); BUCKETS], current: 0, began: now }
    }

    fn add(&mut self, passed: u64, failed: u64, now: Instant, bucket: Duration) {
        let over = now.saturating_duration_since(self.began).as_nanos() / bucket.as_nanos().max(1);
        let over = usize::try_from(over).unwrap_or(usize::MAX);
        for _ in 0..over.min(BUCKETS) {
            self.current = (self.current + 1) % BUCKETS;
            self.buckets[self.current] = (0, 0);
        }
        self.began = match u32::try_from(over) {
            Ok(over) if (over as usize) < BUCKETS => self.began + bucket * over,
            // Nothing that was counted is left, so the buckets may begin anew.
            _ => now,
        };
        let (all_passed, all_failed) = &mut self.buckets[self.current];
        *all_passed = all_passed.saturating_add(clamped(passed));
        *all_failed = all_failed.saturating_add(clamped(failed));
    }

    fn sum(&self) -> (u64, u64) {
        let add = |(a, b), (passed, failed): &(u32, u32)| {
            (a + u64::from(*passed), b + u64::from(*failed))
        };
        self.buckets.iter().fold((0, 0), add)
    }
}

fn clamped(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
