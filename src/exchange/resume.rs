//! Pure: when an event stream whose backend broke off goes on from another one, unseen by its
//! client.

use super::{Failure, RequestPlan, retry::ATTEMPTS_MAX};
use crate::http1::Method;

/// How far a stream had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The client has had content of it.
    pub has_content: bool,
    /// This backend has sent an event, or an id.
    pub has_moved: bool,
    /// What the client has had ends between two events.
    pub is_whole: bool,
    /// The id that the client holds is known, and it can be asked from there.
    pub knows_id: bool,
    /// The request must reach one instance, or belongs to a session: what it reads is nobody
    /// else's.
    pub is_bound: bool,
    /// Streams are resumed here.
    pub resumes: bool,
    /// Number of the attempt that broke off, from 1.
    pub number: u32,
    /// The request was sent before to another backend, which closed.
    pub moved: bool,
}

/// How it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continue {
    /// It does not: the client's side is cut.
    GiveUp,
    /// Asked for as it was before. It is one more attempt.
    FromStart,
    /// With `Last-Event-ID`. It is one more attempt, or the first if this backend had sent content.
    FromLastId {
        /// The number of the next attempt.
        number: u32,
    },
}

/// Decides for a stream whose head the client has.
///
/// Before its first octet of content, nothing tells a second answer to an idempotent request
/// (RFC 9110 §9.2.2) from the first; but a request that ends whoever reads it must not go from
/// backend to backend, so one other is asked.
///
/// Behind that, only a `GET` may be asked again from where the client stands, as its own reader
/// would, and only where the operator says that backends share their ids: a wrong one would lose
/// events in silence.
pub fn may_continue(failure: Failure, request: &RequestPlan, broken: &Broken) -> Continue {
    let is_left = broken.number < ATTEMPTS_MAX;
    match () {
        () if !is_death(failure) || broken.is_bound || !broken.is_whole => Continue::GiveUp,
        () if !broken.has_content => match request.method.is_idempotent() && !broken.moved {
            true => Continue::FromStart,
            false => Continue::GiveUp,
        },
        () if !broken.resumes || !broken.knows_id || request.method != Method::Get => {
            Continue::GiveUp
        }
        () if broken.has_moved => Continue::FromLastId { number: 1 },
        () if is_left => Continue::FromLastId { number: broken.number + 1 },
        () => Continue::GiveUp,
    }
}

/// Whether a backend has gone, rather than said something wrong or the client has.
fn is_death(failure: Failure) -> bool {
    matches!(failure, Failure::ResponseTruncated | Failure::BackendClosed)
}

/// A request head as it was sent, asking from `id` on; `None` if such an id cannot stand in a
/// field: EventSource's ids are any text, and field values are not (RFC 9110 §5.5).
pub fn ask_from(head: &[u8], id: &[u8]) -> Option<Vec<u8>> {
    const NAME: &[u8] = b"last-event-id";
    let fits = |octet: &u8| matches!(octet, b'\t' | b' '..=b'~' | 0x80..);
    let is_value = id.iter().all(fits) && id.trim_ascii().len() == id.len() && !id.is_empty();
    if !is_value {
        return None;
    }
    let mut out = Vec::with_capacity(head.len() + NAME.len() + id.len() + 4);
    for line in head.split_inclusive(|octet| *octet == b'\n') {
        let name = line.split(|octet| *octet == b':').next().unwrap_or_default();
        if line == b"\r\n" {
            out.extend_from_slice(b"Last-Event-ID: ");
            out.extend_from_slice(id);
            out.extend_from_slice(b"\r\n");
        } else if name.eq_ignore_ascii_case(NAME) {
            continue;
        }
        out.extend_from_slice(line);
    }
    Some(out)
}
