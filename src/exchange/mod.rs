//! Pure: the decisions of one request and its response.
//!
//! Everything here takes facts and returns a verdict; the order in which the verdicts are asked for
//! is the business of `worker::http`. Owns: what a request asks of us ([`admit`]), what a response
//! means for both sides ([`plan_response`]), which fields go on ([`write_request`],
//! [`write_response`]), what may be tried again ([`may_retry`]), which connections live on
//! ([`conclude`]), who is ended when something drains ([`verdict`]) and at what pace ([`Pace`]),
//! which requests introduce an orchestrator ([`HandshakeReader`]), how a stream ended
//! ([`StreamEnd`]), and the one vocabulary of failure ([`Failure`]). Does not own: syntax
//! ([`crate::http1`]), the choice of a backend, sockets.
//!
//! Invariants
//! - Nothing is retried after a response octet went downstream, but for an event stream that goes
//!   on where its client stands ([`may_continue`]).
//! - A body that was partly sent is never replayed, and nothing that is not idempotent is sent
//!   twice after an octet of it was sent.
//! - A side is reused only if both messages on it ended at their own boundary.

mod answer;
mod budget;
mod deadline;
mod drain;
mod failure;
mod forward;
mod handshake;
mod hash_key;
mod outcome;
mod pace;
mod plan;
mod resume;
mod retry;
mod reuse;
mod stream_end;
#[cfg(test)]
mod tests;

pub use answer::{Announced, Answer, ErrorContext, health_answer};
pub use budget::RetryBudget;
pub use deadline::{DeadlineTable, Tick, Timer, head_falls_behind};
pub use drain::{
    DrainTerm, EarlyEnd, Nature, Stretch, Takers, Verdict, age_of_one, ends_by_age, verdict,
};
pub use failure::{Failure, Origin, Stage};
pub use forward::{ClientFacts, ResponseFacts, SELF_NAME, Via, write_request, write_response};
pub use handshake::{
    HANDSHAKE_BYTES_MAX, Handshake, HandshakeReader, is_refusal, may_be_handshake,
};
pub use hash_key::hash_key;
pub use outcome::fault_of;
pub use pace::{Pace, Shortfall, shortfall};
pub use plan::{
    Admission, ErrorFormat, Persistence, Recipient, RequestPlan, ResponsePlan, Then, admit,
    error_format, plan_response,
};
pub use resume::{Broken, Continue, ask_from, may_continue};
pub use retry::{Attempt, Retry, Sent, may_retry};
pub use reuse::{CloseReason, Conclusion, ExchangeEnd, Fate, conclude};
pub use stream_end::StreamEnd;
