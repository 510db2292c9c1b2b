//! The product's reading, with the functions that the data path calls, and what it would forward.

use std::time::Duration;

use stepflow_load_balancer::{
    exchange::{
        Admission, ClientFacts, Failure, RequestPlan, ResponseFacts, ResponsePlan, Then, Via,
        admit, plan_response, write_request, write_response,
    },
    http1::{
        Body, DateLine, Edits, FIELDS_MAX, HeadScan, LeadingLine, RequestHead, ResponseHead, Step,
        Target, field_storage, parse_request, parse_response,
    },
    model::Trust,
};

use crate::reading::{Kind, Message, Reading, Start, by_name};

/// What a reading leads to: the message, and the octets that go on.
pub(crate) struct Passage {
    pub(crate) message: Message,
    pub(crate) forwarded: Vec<u8>,
}

pub(crate) fn read(kind: Kind, octets: &[u8]) -> Reading {
    match pass(kind, octets) {
        Ok(passage) => Reading::Whole(passage.message),
        Err(Stopped::Unfinished) => Reading::Unfinished,
        Err(Stopped::Refused(failure)) => Reading::Refused(failure.label().to_owned()),
    }
}

/// Why nothing whole goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Unfinished,
    Refused(Failure),
}

impl<F: Into<Failure>> From<F> for Stopped {
    fn from(failure: F) -> Self {
        Self::Refused(failure.into())
    }
}

pub(crate) fn pass(kind: Kind, octets: &[u8]) -> Result<Passage, Stopped> {
    match kind {
        Kind::Request => pass_request(octets),
        Kind::ResponseTo(method) => pass_response(octets, method),
    }
}

fn pass_request(octets: &[u8]) -> Result<Passage, Stopped> {
    let found = HeadScan::new(LeadingLine::Skip).advance(octets)?.ok_or(Stopped::Unfinished)?;
    let mut storage = field_storage();
    let head = parse_request(&octets[found.clone()], &mut storage, FIELDS_MAX)?;
    let admission = admit(&head)?;
    let (content, end) = read_body(Body::new(admission.plan.framing), octets, found.end)?;
    let mut forwarded = Vec::new();
    forward(&mut forwarded, &head, &admission);
    // What goes on is the body as it is, without trailers that must not be.
    let mut transfer = admission.transfer();
    let copied = transfer.copy(&octets[found.end..], &mut forwarded);
    assert_eq!(copied.map(|n| found.end + n), Ok(end), "what goes on is what was read");
    let method = String::from_utf8_lossy(head.method_token).into_owned();
    let target = match head.target {
        Target::Origin(target) => Some(target.to_vec()),
        Target::Asterisk => Some(b"*".to_vec()),
        Target::Absolute { .. } | Target::Authority(_) => None,
    };
    let start = Start::Request { method, target };
    let fields = by_name(head.fields.iter().map(|line| (line.name, line.value)));
    Ok(Passage { message: Message { start, fields, content, end }, forwarded })
}

fn forward(out: &mut Vec<u8>, head: &RequestHead<'_>, admission: &Admission<'_>) {
    let client = ClientFacts {
        address: "192.0.2.1",
        trust: Trust::Hearsay,
        local_authority: "192.0.2.2:8080",
        via: Via::Said,
    };
    write_request(out, head, admission, &client);
}

fn read_body(mut body: Body, octets: &[u8], start: usize) -> Result<(Vec<u8>, usize), Stopped> {
    let (mut content, mut at) = (Vec::new(), start);
    loop {
        match body.step(&octets[at..])? {
            Step::Framing(n) | Step::Trailer(n) => at += n,
            Step::Data(n) => {
                content.extend_from_slice(&octets[at..at + n]);
                at += n;
            }
            Step::NeedMore => return Err(Stopped::Unfinished),
            Step::Done => return Ok((content, at)),
        }
    }
}

/// The response is read as for a client of HTTP/1.0, which gets the plain content whatever the
/// framing was, and forwarded as for one of HTTP/1.1.
fn pass_response(octets: &[u8], method: &str) -> Result<Passage, Stopped> {
    let (to_old, to_client) = (request_plan(method, "1.0"), request_plan(method, "1.1"));
    let (mut forwarded, mut at, mut interims) = (Vec::new(), 0, 0);
    loop {
        let rest = &octets[at..];
        let found = HeadScan::new(LeadingLine::Refuse).advance(rest);
        let found = found.map_err(|_| Failure::ResponseHead)?.ok_or(Stopped::Unfinished)?;
        let mut storage = field_storage();
        let head = parse_response(&rest[found.clone()], &mut storage, FIELDS_MAX);
        let head = head.map_err(|_| Failure::ResponseHead)?;
        let as_plain = plan_response(&to_old, &head, interims)?;
        let as_forwarded = plan_response(&to_client, &head, interims)?;
        let facts = ResponseFacts {
            closes: false,
            routed_instance: None,
            received: &DateLine::at(Duration::from_secs(784_111_777)),
            edits: &Edits::NONE,
        };
        write_response(&mut forwarded, &head, &to_client, &as_forwarded, &facts);
        match as_plain.then {
            Then::Interim | Then::Skip => {
                at += found.end;
                interims += 1;
            }
            Then::Tunnel => unreachable!("the request did not ask for it"),
            Then::Relay => {
                let body = &rest[found.end..];
                let (content, body_bytes) = hand_on(as_plain, body)?;
                let (body_forwarded, _) = hand_on(as_forwarded, body)?;
                forwarded.extend_from_slice(&body_forwarded);
                let end = at + found.end + body_bytes;
                return Ok(Passage { message: message_of(&head, content, end), forwarded });
            }
        }
    }
}

fn message_of(head: &ResponseHead<'_>, content: Vec<u8>, end: usize) -> Message {
    let fields = by_name(head.fields.iter().map(|line| (line.name, line.value)));
    Message { start: Start::Status(head.status), fields, content, end }
}

/// What becomes of a body, and how many octets of the input it was.
fn hand_on(plan: ResponsePlan, input: &[u8]) -> Result<(Vec<u8>, usize), Stopped> {
    let (mut transfer, mut out) = (plan.transfer, Vec::new());
    let broken = |_| Stopped::Refused(Failure::ResponseBody);
    let taken = match transfer.is_verbatim() {
        true => transfer.copy(input, &mut out).map_err(broken)?,
        false => transfer.push(input, &mut out).map_err(broken)?,
    };
    if !transfer.is_done() {
        transfer.end_of_input(&mut out).map_err(|_| Stopped::Unfinished)?;
    }
    Ok((out, taken))
}

fn request_plan(method: &str, version: &str) -> RequestPlan {
    let octets = format!("{method} / HTTP/{version}\r\nHost: a\r\n\r\n");
    let mut storage = field_storage();
    let head = parse_request(octets.as_bytes(), &mut storage, FIELDS_MAX);
    admit(&head.expect("a request")).expect("an admissible one").plan
}
