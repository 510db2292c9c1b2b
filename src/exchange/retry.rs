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
    /// To a backend that has not been tried.
    NextBackend,
}

/// Attempts per request, whatever the reason.
const ATTEMPTS_MAX: u32 = 4;

/// Decides after a failed attempt.
///
/// A connection that never opened has executed nothing, so any method may go to the next backend.
/// A *pooled* connection that died before the first response octet was most likely closed by the
/// backend while idle; whether it read the request cannot be known, so only an idempotent one
/// (RFC 9110 §9.2.2) is sent again, once, and only if every octet is still here. Everything else
/// is final: a POST is never delivered twice.
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
            if attempt.reused && !attempt.replayed && request.method.is_idempotent() =>
        {
            Retry::SameBackend
        }
        _ => Retry::GiveUp,
    }
}
