//! Pure: which connections outlive an exchange.

use super::{Persistence, RequestPlan, ResponsePlan};
use crate::http1::Framing;

/// How an exchange ended that was answered by a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeEnd {
    /// Every octet of the request was sent.
    pub request_complete: bool,
    /// Every octet of the response was forwarded.
    pub response_complete: bool,
    /// The backend sent octets behind its response.
    pub stray_octets: bool,
    /// The client closed its sending side.
    pub client_half_closed: bool,
    /// The process is on its way out.
    pub draining: bool,
    /// We ended the response before its backend did, so that its client connects anew.
    pub is_early: bool,
}

/// What becomes of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conclusion {
    /// The client's.
    pub downstream: Fate,
    /// The backend's.
    pub upstream: Fate,
}

/// What becomes of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Used again.
    Keep,
    /// Closed, for this reason.
    Close(CloseReason),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// One side announced it, or its protocol version implies it.
    Announced,
    /// A response on it did not reach its end.
    Incomplete,
    /// The response came before the request had been read to its end.
    RequestUnread,
    /// Octets arrived that belong to no message.
    Stray,
    /// The client will send no more.
    HalfClosed,
    /// The process is on its way out.
    Draining,
    /// Its stream was ended so that its client connects anew, perhaps to somebody else.
    EndedEarly,
    /// The request had content where some servers expect none: what was read as the end of its
    /// response may be followed by the response to that content.
    ContentOverlooked,
}

impl RequestPlan {
    /// Whether the response must announce the end of the connection, as far as the request and the
    /// state of the process decide it.
    pub fn closes_after(&self, client_half_closed: bool, draining: bool) -> bool {
        self.persistence == Persistence::Close || client_half_closed || draining
    }

    /// Whether a backend may have read a request where we have read content.
    fn may_be_two_requests(&self) -> bool {
        self.framing != Framing::Length(0) && self.method.content_may_be_overlooked()
    }
}

/// Decides what becomes of both connections.
pub fn conclude(request: &RequestPlan, response: &ResponsePlan, end: &ExchangeEnd) -> Conclusion {
    let complete = end.request_complete && end.response_complete;
    let downstream = match () {
        () if !end.response_complete => Fate::Close(CloseReason::Incomplete),
        () if !end.request_complete => Fate::Close(CloseReason::RequestUnread),
        () if request.persistence == Persistence::Close || response.ends_with_connection => {
            Fate::Close(CloseReason::Announced)
        }
        () if end.client_half_closed => Fate::Close(CloseReason::HalfClosed),
        () if end.draining => Fate::Close(CloseReason::Draining),
        () if end.is_early => Fate::Close(CloseReason::EndedEarly),
        () => Fate::Keep,
    };
    let upstream = match () {
        () if !complete || end.is_early => Fate::Close(CloseReason::Incomplete),
        () if end.stray_octets => Fate::Close(CloseReason::Stray),
        () if response.upstream_persistence == Persistence::Close => {
            Fate::Close(CloseReason::Announced)
        }
        // RFC 9110 §9.3.1 names the danger. Stray octets show it only once they have come.
        () if request.may_be_two_requests() => Fate::Close(CloseReason::ContentOverlooked),
        () => Fate::Keep,
    };
    Conclusion { downstream, upstream }
}
