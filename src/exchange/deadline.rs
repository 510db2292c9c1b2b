//! Pure: the deadlines of one connection.
//!
//! Time is counted in coarse ticks, so that setting a deadline is one store, and one timer per
//! worker serves every connection. A deadline never fires early; it fires at most one tick late.

use std::{num::NonZeroU32, time::Duration};

/// A point in coarse time: ticks since the worker started. Wraps after six years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick(pub u32);

impl Tick {
    /// Length of a tick.
    pub const LENGTH: Duration = Duration::from_millis(TICK_MILLIS);
    /// Later than any deadline.
    pub const NEVER: Self = Self(u32::MAX);

    /// The tick in which `wait` has certainly passed since this one began.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        let ticks = whole_millis(wait).div_ceil(TICK_MILLIS).saturating_add(1);
        Self(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)).min(u32::MAX - 1))
    }

    /// How many ticks a duration has, at least one.
    pub fn count(duration: Duration) -> u32 {
        let ticks = whole_millis(duration).div_ceil(TICK_MILLIS).max(1);
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }

    /// The tick that `elapsed` since the worker's start falls into.
    pub fn at(elapsed: Duration) -> Self {
        let ticks = whole_millis(elapsed) / TICK_MILLIS;
        Self(u32::try_from(ticks).unwrap_or(u32::MAX - 1))
    }
}

const TICK_MILLIS: u64 = 50;

/// Milliseconds in 64 bits: deadlines are set several times in every exchange, and a division of
/// 128 bits costs more than all the rest of it.
fn whole_millis(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1000).saturating_add(duration.subsec_millis().into())
}

/// What a connection may be waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The first octet of the next request.
    KeepAlive,
    /// The rest of a request head.
    RequestHead,
    /// As much of a request head as its pace asks for.
    HeadRate,
    /// A place on a backend, while all are full.
    Queue,
    /// A connection to a backend.
    Connect,
    /// The next octet of a request body.
    RequestBody,
    /// The backend taking what we sent.
    BackendWrite,
    /// The head of the final response.
    ResponseHead,
    /// The next octet of a response body of known length.
    ResponseBody,
    /// The rest of a small body, so that it leaves together with its head.
    Coalesce,
    /// The client taking what we sent.
    ClientWrite,
    /// An octet in either direction of a tunnel.
    TunnelIdle,
    /// A client that was told to close, closing.
    Linger,
    /// A silence in an event stream that has lasted long enough. No deadline: nobody has failed.
    Heartbeat,
    /// An event stream growing as old as it may.
    StreamAge,
    /// Its turn to end between two events, because something drains. Rung, never set.
    Drain,
    /// The end of the time that things have on a backend that drains. Rung, never set.
    DrainOver,
}

const TIMERS: [Timer; 17] = [
    Timer::KeepAlive,
    Timer::RequestHead,
    Timer::HeadRate,
    Timer::Queue,
    Timer::Connect,
    Timer::RequestBody,
    Timer::BackendWrite,
    Timer::ResponseHead,
    Timer::ResponseBody,
    Timer::Coalesce,
    Timer::ClientWrite,
    Timer::TunnelIdle,
    Timer::Linger,
    Timer::Heartbeat,
    Timer::StreamAge,
    Timer::Drain,
    Timer::DrainOver,
];

/// How long any head may take, whatever its pace: a lost packet is sent again after a second.
const HEAD_RATE_GRACE: Duration = Duration::from_secs(2);

/// When, counted from its first octet, a head of which so many octets have arrived falls behind a
/// pace in octets per second.
pub fn head_falls_behind(octets: usize, rate_min: NonZeroU32) -> Duration {
    let millis = (octets as u64).saturating_mul(1000) / u64::from(rate_min.get());
    Duration::from_millis(millis).max(HEAD_RATE_GRACE)
}

/// The deadlines that are set, at most one per timer.
#[derive(Clone, Copy, Debug)]
pub struct DeadlineTable([Tick; TIMERS.len()]);

impl Default for DeadlineTable {
    fn default() -> Self {
        Self([Tick::NEVER; TIMERS.len()])
    }
}

impl DeadlineTable {
    /// Sets a deadline, in place of an earlier one of the same timer.
    #[inline]
    pub fn set(&mut self, timer: Timer, at: Tick) {
        self.0[timer as usize] = at;
    }

    /// Takes a deadline back.
    pub fn clear(&mut self, timer: Timer) {
        self.set(timer, Tick::NEVER);
    }

    /// Takes all deadlines back.
    pub fn clear_all(&mut self) {
        *self = Self::default();
    }

    /// When the next one fires; [`Tick::NEVER`] if none is set.
    pub fn next(&self) -> Tick {
        self.0.into_iter().fold(Tick::NEVER, Tick::min)
    }

    /// One that has fired; it is cleared.
    pub fn take_expired(&mut self, now: Tick) -> Option<Timer> {
        let timer = TIMERS.into_iter().find(|timer| self.0[*timer as usize] <= now)?;
        self.clear(timer);
        Some(timer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_are_at_their_place() {
        for (place, timer) in TIMERS.into_iter().enumerate() {
            assert_eq!(timer as usize, place);
        }
    }

    #[test]
    fn a_deadline_never_fires_early_and_at_most_one_tick_late() {
        for elapsed_ms in [0, 1, 49, 50, 51, 99] {
            for wait_ms in [0, 1, 49, 50, 51, 1000] {
                let start = Duration::from_millis(elapsed_ms);
                let wait = Duration::from_millis(wait_ms);
                let at = Tick::at(start).after(wait);
                let fires = Tick::LENGTH * at.0;
                assert!(fires >= start + wait, "{elapsed_ms}+{wait_ms}");
                assert!(fires <= start + wait + 2 * Tick::LENGTH, "{elapsed_ms}+{wait_ms}");
            }
        }
    }

    #[test]
    fn a_head_falls_behind_its_pace_but_not_within_its_grace() {
        let cases = [((1, 100), 2000), ((200, 100), 2000), ((201, 100), 2010), ((300, 1), 300_000)];
        for ((octets, rate), ms) in cases {
            let rate = NonZeroU32::new(rate).unwrap();
            assert_eq!(head_falls_behind(octets, rate), Duration::from_millis(ms), "{octets}");
        }
    }

    #[test]
    fn the_earliest_is_next_and_each_fires_once() {
        let mut table = DeadlineTable::default();
        assert_eq!(table.next(), Tick::NEVER);
        table.set(Timer::RequestBody, Tick(9));
        table.set(Timer::ClientWrite, Tick(5));
        assert_eq!(table.next(), Tick(5));
        assert_eq!(table.take_expired(Tick(4)), None);
        assert_eq!(table.take_expired(Tick(5)), Some(Timer::ClientWrite));
        assert_eq!(table.take_expired(Tick(5)), None);
        table.clear(Timer::RequestBody);
        assert_eq!(table.next(), Tick::NEVER);
    }
}
