//! Pure: when a backend is asked whether it is healthy, and how many answers change the verdict.
//!
//! Owns one [`HealthMachine`] per backend, the reading of one answer ([`judge`]), and what real
//! requests say about a backend ([`outlier`]). Does not own sockets (`control::probe`), nor what a
//! verdict means for traffic (`plane`, `worker`).
//!
//! Invariants
//! - The verdict changes only at its threshold: `max_failures` failures in a row take a backend
//!   out, `healthy_threshold` successes in a row bring it in, from whatever it was before.
//! - Exactly one of these holds: a probe is running, or the next one has a time.
//! - A backend is never asked more often than the pace that [`HealthMachine::observe`] documents,
//!   and never twice within [`DEMAND_SPACING`] on demand.

mod body;
mod failure;
pub mod outlier;

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

pub use body::{BODY_BYTES_MAX, Expectation, InstanceIdFault, ProbeSuccess, ProbeVerdict, judge};
pub use failure::ProbeFailure;

use crate::model::{Health, Rng};

/// Shortest time between the starts of two probes of one backend when the second one is asked for
/// out of turn: a burst of failed connects must not become a burst of probes.
pub const DEMAND_SPACING: Duration = Duration::from_secs(1);

/// A backend that is out is asked again after this fraction of the interval, so that it comes back
/// soon after it recovers. One that is in is asked at the full interval even while it fails, unless
/// its operator wants that faster: `max_failures` times the interval is a promise to backends that
/// are merely busy.
const RECOVERY_FRACTION: u32 = 4;

/// The recovery pace is never faster than this.
const RECOVERY_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Pauses differ from their nominal length by at most this fraction, either way.
const JITTER_FRACTION: u32 = 10;

/// How often backends are asked and how many answers change the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Pause between two probes, before jitter.
    pub interval: Duration,
    /// Pause behind a failure of a backend that is in, before jitter.
    pub interval_failing: Duration,
    /// Failures in a row that take a backend out.
    pub max_failures: NonZeroU32,
    /// Successes in a row that bring it in.
    pub healthy_threshold: NonZeroU32,
}

/// What one probe says about the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Healthy.
    Passed,
    /// Not healthy.
    Failed,
}

/// A verdict that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Takes new work from now on.
    BecameHealthy,
    /// Takes no new work from now on.
    BecameUnhealthy,
}

/// The verdict on one backend and the time of its next probe.
#[derive(Clone, Debug)]
pub struct HealthMachine {
    health: Health,
    streak: Streak,
    clock: Clock,
    last_start: Option<Instant>,
}

/// Equal outcomes in a row, so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streak {
    Passed(u32),
    Failed(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Due(Instant),
    Running { again: bool },
}

impl HealthMachine {
    /// A backend nobody has asked yet. Its first probe is due at once.
    pub fn new(now: Instant) -> Self {
        Self {
            health: Health::Unprobed,
            streak: Streak::Passed(0),
            clock: Clock::Due(now),
            last_start: None,
        }
    }

    /// The verdict.
    pub fn health(&self) -> Health {
        self.health
    }

    /// When the next probe shall start; `None` while one is running.
    pub fn due(&self) -> Option<Instant> {
        match self.clock {
            Clock::Due(at) => Some(at),
            Clock::Running { .. } => None,
        }
    }

    /// When the last probe started.
    pub fn last_start(&self) -> Option<Instant> {
        self.last_start
    }

    /// Failures since the last success.
    pub fn failures_in_a_row(&self) -> u32 {
        match self.streak {
            Streak::Failed(n) => n,
            Streak::Passed(_) => 0,
        }
    }

    /// A probe starts.
    pub fn begin(&mut self, now: Instant) {
        debug_assert!(self.due().is_some(), "one probe at a time");
        self.clock = Clock::Running { again: false };
        self.last_start = Some(now);
    }

    /// Something made the verdict doubtful: asks as soon as [`DEMAND_SPACING`] allows. While a
    /// probe is running, another one follows it, because the running one may have passed the
    /// backend just before it broke.
    pub fn demand(&mut self, now: Instant) {
        let earliest = self.earliest(now);
        match &mut self.clock {
            Clock::Due(at) => *at = earliest.min(*at),
            Clock::Running { again } => *again = true,
        }
    }

    /// The probe that was running has ended; sets the time of the next one. A backend that is in
    /// is asked after `interval`, or `interval_failing` if it has just failed; one that is out
    /// after a quarter of the interval (not below one second, not above the interval), each with
    /// ±10 % jitter. Behind the very first success comes a random part of the interval instead,
    /// which spreads backends that were discovered together.
    pub fn observe(
        &mut self,
        outcome: Outcome,
        now: Instant,
        policy: &Policy,
        rng: &mut Rng,
    ) -> Option<Transition> {
        let is_first_success = outcome == Outcome::Passed
            && self.health == Health::Unprobed
            && self.streak == Streak::Passed(0);
        self.streak = match (outcome, self.streak) {
            (Outcome::Passed, Streak::Passed(n)) => Streak::Passed(n.saturating_add(1)),
            (Outcome::Passed, Streak::Failed(_)) => Streak::Passed(1),
            (Outcome::Failed, Streak::Failed(n)) => Streak::Failed(n.saturating_add(1)),
            (Outcome::Failed, Streak::Passed(_)) => Streak::Failed(1),
        };
        let transition = match (self.streak, self.health) {
            (Streak::Passed(n), Health::Unprobed | Health::Unhealthy)
                if n >= policy.healthy_threshold.get() =>
            {
                self.health = Health::Healthy;
                Some(Transition::BecameHealthy)
            }
            (Streak::Failed(n), Health::Unprobed | Health::Healthy)
                if n >= policy.max_failures.get() =>
            {
                self.health = Health::Unhealthy;
                Some(Transition::BecameUnhealthy)
            }
            _ => None,
        };
        self.schedule(is_first_success, now, policy, rng);
        transition
    }

    /// The probe that was running told nothing about the backend; the next one comes in its turn.
    pub fn postpone(&mut self, now: Instant, policy: &Policy, rng: &mut Rng) {
        self.schedule(false, now, policy, rng);
    }

    /// Another process answers at this address. It inherits the verdict, but neither the successes
    /// nor the failures of the one before it, and is asked as soon as possible.
    pub fn restart(&mut self, now: Instant) {
        self.streak = Streak::Passed(0);
        self.clock = Clock::Due(self.earliest(now));
    }

    fn schedule(&mut self, spread: bool, now: Instant, policy: &Policy, rng: &mut Rng) {
        let (low, high) = if spread && self.health == Health::Healthy {
            (Duration::ZERO, policy.interval)
        } else {
            let pause = match self.health {
                Health::Healthy if self.failures_in_a_row() > 0 => policy.interval_failing,
                Health::Healthy => policy.interval,
                Health::Unprobed | Health::Unhealthy => {
                    let recovery = policy.interval / RECOVERY_FRACTION;
                    recovery.max(RECOVERY_PAUSE_MIN).min(policy.interval)
                }
            };
            (pause - pause / JITTER_FRACTION, pause + pause / JITTER_FRACTION)
        };
        let is_demanded = matches!(self.clock, Clock::Running { again: true });
        self.clock =
            Clock::Due(if is_demanded { self.earliest(now) } else { now + rng.between(low, high) });
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.last_start.map_or(now, |start| now.max(start + DEMAND_SPACING))
    }
}

#[cfg(test)]
mod tests;
