//! Pure: what may be tried again, and where.

use super::{Failure, RequestPlan};

/// How much of the request a backend may have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Nothing: the connection was never open.
    Nothing,
    /// Some octets, all of which are still in our buffer.
    Replayable,
    /// Some octets, not all of which we still have.
    Gone,
}

/// What is known about the attempt that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of this attempt, from 1.
    pub number: u32,
    /// How much of the request went out.
    pub sent: Sent,
    /// The connection came from the pool.
    pub reused: bool,
    /// The request was sent once before, to the end of its first connection.
    pub replayed: bool,
    /// The request was sent before to another backend, which closed without an answer.
    pub moved: bool,
    /// A response octet was received.
    pub response_begun: bool,
    /// The request names an instance: no other backend will do.
    pub pinned: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Answer with the failure.
    GiveUp,
    /// Once more to the same backend, on a fresh connection.
    SameBackend,
    /// To a backend that has not been tried; on a fresh connection, if octets of it were sent.
    NextBackend,
}

/// Attempts per request, whatever the reason.
pub(super) const ATTEMPTS_MAX: u32 = 4;

impl Attempt {
    /// The first attempt, before anything is known about it.
    pub fn first(pinned: bool) -> Self {
        Self {
            number: 1,
            sent: Sent::Nothing,
            reused: false,
            replayed: false,
            moved: false,
            response_begun: false,
            pinned,
        }
    }

    /// The attempt that follows on this one by a verdict other than [`Retry::GiveUp`].
    #[must_use]
    pub fn after(&self, verdict: Retry) -> Self {
        let was_sent = self.sent != Sent::Nothing || self.replayed;
        Self {
            number: self.number + 1,
            replayed: self.replayed || verdict == Retry::SameBackend,
            moved: self.moved || (verdict == Retry::NextBackend && was_sent),
            ..Self::first(self.pinned)
        }
    }

    /// Whether the request might be sent again after its octets were sent: until it cannot be, they
    /// must be kept.
    pub fn may_be_followed(&self, request: &RequestPlan) -> bool {
        let closed = Self { sent: Sent::Replayable, response_begun: false, ..*self };
        may_retry(Failure::BackendClosed, request, &closed) != Retry::GiveUp
    }

    /// Octets of the request were sent before: only a connection that is opened for it will do,
    /// because it cannot have been closed while idle.
    pub fn needs_fresh_connection(&self) -> bool {
        self.replayed || self.moved
    }
}

/// Decides after a failed attempt.
///
/// A connection that never opened has executed nothing, so any method may go to the next backend.
/// Whether a backend that closed before the first response octet has read the request cannot be
/// known, so only an idempotent one (RFC 9110 §9.2.2) is sent again, and only if every octet is
/// still here. A *pooled* connection was most likely closed while idle, which says nothing about
/// its backend: that one is asked once more. A *fresh* one was closed by a backend that is coming
/// to its end, as after a kill: another one is asked, once, because a request that ends whoever
/// reads it must not go from backend to backend. Everything else is final: a POST is never
/// delivered twice.
pub fn may_retry(failure: Failure, request: &RequestPlan, attempt: &Attempt) -> Retry {
    if attempt.response_begun || attempt.number >= ATTEMPTS_MAX {
        return Retry::GiveUp;
    }
    match (failure, attempt.sent) {
        // The shell waits and tries the instance again; another backend would not know the state.
        (Failure::ConnectFailed | Failure::ConnectTimeout, Sent::Nothing) if attempt.pinned => {
            Retry::GiveUp
        }
        (Failure::ConnectFailed | Failure::ConnectTimeout, Sent::Nothing) => Retry::NextBackend,
        (Failure::BackendClosed, Sent::Nothing | Sent::Replayable)
            if request.method.is_idempotent() && !attempt.moved =>
        {
            match (attempt.reused && !attempt.replayed, attempt.pinned) {
                (true, _) => Retry::SameBackend,
                (false, false) => Retry::NextBackend,
                (false, true) => Retry::GiveUp,
            }
        }
        _ => Retry::GiveUp,
    }
}
