//! What the tests of this module share: heads written as lines, and what is decided about them.

use std::time::Duration;

use super::*;
use crate::{
    http1::{
        DateLine, HeadScan, LeadingLine, RequestHead, ResponseHead, field_storage, parse_request,
        parse_response,
    },
    model::Trust,
};

mod admit;
mod answer;
mod drain;
mod forward;
mod properties;
mod respond;
mod response;
mod resume;
mod retry;
mod reuse;

/// The client in every test that does not say otherwise.
const CLIENT: ClientFacts<'static> = ClientFacts {
    address: "192.0.2.7",
    trust: Trust::Believed,
    local_authority: "198.51.100.1:8080",
    via: Via::Said,
};

/// The same, when it may be anybody.
const STRANGER: ClientFacts<'static> = ClientFacts { trust: Trust::Hearsay, ..CLIENT };

/// When every response here is received or written.
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

/// The same as a field line.
fn date() -> DateLine {
    DateLine::at(Duration::from_secs(784_111_777))
}

/// A head of these lines, the start line first.
fn head(lines: &[&str]) -> Vec<u8> {
    let mut octets = lines.join("\r\n").into_bytes();
    octets.extend_from_slice(b"\r\n\r\n");
    octets
}

fn with_request<T>(octets: &[u8], look: impl FnOnce(&RequestHead<'_>) -> T) -> T {
    let mut storage = field_storage();
    let shown = octets.escape_ascii();
    look(&parse_request(octets, &mut storage, 64).unwrap_or_else(|e| panic!("{e:?} in {shown}")))
}

fn with_response<T>(octets: &[u8], look: impl FnOnce(&ResponseHead<'_>) -> T) -> T {
    let mut storage = field_storage();
    let shown = octets.escape_ascii();
    look(&parse_response(octets, &mut storage, 64).unwrap_or_else(|e| panic!("{e:?} in {shown}")))
}

/// What is decided about a request of these lines.
fn request(lines: &[&str]) -> RequestPlan {
    with_request(&head(lines), |head| admit(head).unwrap().plan)
}

/// What is decided about a response of these lines to `request`.
fn response(request: &RequestPlan, lines: &[&str]) -> Result<ResponsePlan, Failure> {
    with_response(&head(lines), |head| plan_response(request, head, 0))
}

/// The head that a backend gets for a request of these octets.
fn forwarded(octets: &[u8]) -> Vec<u8> {
    forwarded_for(octets, &CLIENT)
}

/// The head that a backend gets for a request of these octets from this client.
fn forwarded_for(octets: &[u8], client: &ClientFacts<'_>) -> Vec<u8> {
    with_request(octets, |head| {
        let mut out = Vec::new();
        write_request(&mut out, head, &admit(head).unwrap(), client);
        out
    })
}

/// The octets are exactly one head, whoever looks for its end.
fn assert_is_one_head(octets: &[u8]) {
    let found = HeadScan::new(LeadingLine::Refuse).advance(octets);
    assert_eq!(found, Ok(Some(0..octets.len())), "{}", octets.escape_ascii());
}
