//! Pure: the end of the process, in phases.
//!
//! Serving, until told to stop. Unready for a grace, because whoever sends traffic here needs a
//! moment to notice. Draining: listeners close and running exchanges finish, until the last client
//! is gone or time is up. A second word to stop ends it at once.

use std::time::{Duration, Instant};

use super::{PlaneEvent, journal::Journal};
use crate::model::{Phase, Version};

/// Readings in a row without an open connection that end the draining. One is not enough: a worker
/// that has applied the last snapshot may be taking a connection from its accept queue just now.
const QUIET_READINGS: u32 = 2;

/// How long the phases of the end last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTimes {
    /// Unready, but accepting.
    pub grace: Duration,
    /// Not accepting, but serving.
    pub drain: Duration,
}

/// Why the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// The last client is gone.
    Drained,
    /// Time is up; this many client connections are cut.
    DrainTimeout {
        /// At the last reading.
        cut: u64,
    },
    /// Told to stop a second time; this many client connections were open when last counted.
    Forced {
        /// Zero as well while nobody counts, which is before listeners close.
        cut: u64,
    },
}

/// What a change in the life of the process means for the plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    NextPhase,
    Exit(ExitReason),
}

#[derive(Debug)]
pub(super) struct Life {
    times: DrainTimes,
    stage: Stage,
    /// At the last reading.
    open: u64,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Serving,
    Unready { until: Instant },
    Draining { until: Instant, from: Version, quiet: u32 },
    Exited,
}

impl Life {
    pub(super) fn new(times: DrainTimes) -> Self {
        Self { times, stage: Stage::Serving, open: 0 }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.stage {
            Stage::Serving => Phase::Serving,
            Stage::Unready { .. } => Phase::Unready,
            Stage::Draining { .. } | Stage::Exited => Phase::Draining,
        }
    }

    pub(super) fn has_exited(&self) -> bool {
        matches!(self.stage, Stage::Exited)
    }

    pub(super) fn is_draining(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. })
    }

    pub(super) fn timeout(&self) -> Option<Instant> {
        match self.stage {
            Stage::Serving | Stage::Exited => None,
            Stage::Unready { until } | Stage::Draining { until, .. } => Some(until),
        }
    }

    pub(super) fn shutdown(&mut self, now: Instant, journal: &mut Journal) -> Option<Step> {
        match self.stage {
            Stage::Serving => {
                self.stage = Stage::Unready { until: now + self.times.grace };
                journal.event(PlaneEvent::DrainStarted);
                Some(Step::NextPhase)
            }
            Stage::Unready { .. } | Stage::Draining { .. } => {
                Some(self.exit(ExitReason::Forced { cut: self.open }, journal))
            }
            Stage::Exited => None,
        }
    }

    /// A reading counts once every worker runs the draining snapshot: before that a listener may
    /// still accept.
    pub(super) fn connections_open(
        &mut self,
        open: u64,
        applied: Version,
        journal: &mut Journal,
    ) -> Option<Step> {
        self.open = open;
        let Stage::Draining { from, quiet, .. } = &mut self.stage else { return None };
        *quiet = if open == 0 && applied >= *from { *quiet + 1 } else { 0 };
        let is_over = *quiet >= QUIET_READINGS;
        is_over.then(|| self.exit(ExitReason::Drained, journal))
    }

    /// Moves on if a phase is over. `next` is the version that a phase beginning now will have.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        next: Version,
        journal: &mut Journal,
    ) -> Option<Step> {
        match self.stage {
            Stage::Unready { until } if until <= now => {
                self.stage =
                    Stage::Draining { until: now + self.times.drain, from: next, quiet: 0 };
                journal.event(PlaneEvent::AcceptingStopped);
                Some(Step::NextPhase)
            }
            Stage::Draining { until, .. } if until <= now => {
                Some(self.exit(ExitReason::DrainTimeout { cut: self.open }, journal))
            }
            Stage::Serving | Stage::Unready { .. } | Stage::Draining { .. } | Stage::Exited => None,
        }
    }

    fn exit(&mut self, reason: ExitReason, journal: &mut Journal) -> Step {
        self.stage = Stage::Exited;
        journal.event(PlaneEvent::DrainFinished { reason });
        Step::Exit(reason)
    }
}
