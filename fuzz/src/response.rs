//! Target `response`: octets as a backend sends them, in answer to a request.
//!
//! Input: one octet of flags (bit 0 HEAD, bit 1 an HTTP/1.0 client, bit 2 the client asked to switch
//! protocols, bit 3 the connection closes, bit 4 an instance was asked for, bit 5 many interim
//! responses came before), then the octets.

use std::time::Duration;

use stepflow_load_balancer::{
    exchange::{
        Failure, Origin, Persistence, RequestPlan, ResponseFacts, ResponsePlan, Then, admit,
        plan_response, write_response,
    },
    http1::{
        Coding, DateLine, Edits, FIELDS_MAX, Framing, LeadingLine, Method, ResponseHead, Version,
        field_storage, parse_request, parse_response,
    },
};

use super::{
    Verdict, body,
    head::scan,
    naive::{self, Lines},
    rules::{goes_on, is_one_of, lists, values},
};

const INSTANCE: &[u8] = b"pod-1";

/// When every response is received, in both of the forms in which it is told.
const RECEIVED: (Duration, &[u8]) =
    (Duration::from_secs(784_111_777), b"Sun, 06 Nov 1994 08:49:37 GMT");

/// Fields that the product writes itself or leaves out for a reason of its own.
const OURS: [&str; 7] = [
    "connection",
    "upgrade",
    "transfer-encoding",
    "content-length",
    "cache-control",
    "x-accel-buffering",
    "x-stepflow-routed-instance",
];

/// Properties: what a client gets is one head, says the same as the backend's, and ends its body
/// where we end it; the body that follows is the one that came.
pub fn run(octets: &[u8]) -> Verdict {
    let Some((flags, octets)) = octets.split_first() else { return Verdict::Refused };
    let has = |bit: u8| flags & 1 << bit != 0;
    let request = request(has(0), has(1), has(2));
    let Ok(Some(found)) = scan(LeadingLine::Refuse, octets) else { return Verdict::Refused };
    assert_eq!(found.start, 0, "a response has no leading line");
    let (head, behind) = octets.split_at(found.end);
    relay(&request, head, behind, has(3), has(4).then_some(INSTANCE), if has(5) { 32 } else { 0 })
}

/// What is decided about an ordinary request of this kind.
fn request(is_head: bool, is_http10: bool, upgrades: bool) -> RequestPlan {
    let method = if is_head { "HEAD" } else { "GET" };
    let version = if is_http10 { "1.0" } else { "1.1" };
    let upgrade = if upgrades { "Connection: upgrade\r\nUpgrade: websocket\r\n" } else { "" };
    let head = format!("{method} / HTTP/{version}\r\nHost: h\r\n{upgrade}\r\n");
    let mut storage = field_storage();
    let head = parse_request(head.as_bytes(), &mut storage, FIELDS_MAX).expect("a request");
    admit(&head).expect("nothing is wrong with it").plan
}

fn relay(
    request: &RequestPlan,
    octets: &[u8],
    behind: &[u8],
    closes: bool,
    routed: Option<&[u8]>,
    interims: u8,
) -> Verdict {
    let shown = octets.escape_ascii();
    let mut storage = field_storage();
    let Ok(head) = parse_response(octets, &mut storage, FIELDS_MAX) else {
        return Verdict::Refused;
    };
    let naive = naive::head(octets).unwrap_or_else(|| panic!("only we read {shown}"));
    assert_eq!(owned(&head), naive.fields, "{shown}");
    let said = naive.start_line.get(9..12).unwrap_or_default();
    assert_eq!(said, head.status.to_string().as_bytes(), "{shown}");
    let plan = match plan_response(request, &head, interims) {
        Ok(plan) => plan,
        Err(failure) => {
            assert_eq!(failure.origin(), Origin::Upstream);
            assert_eq!(failure.status(), Some(502));
            let is_contradiction = failure == Failure::ResponseFraming;
            let has_framing = values(&naive.fields, "content-length").count() > 0
                || values(&naive.fields, "transfer-encoding").count() > 0;
            assert!(!is_contradiction || has_framing, "{shown}");
            return Verdict::Refused;
        }
    };
    assert!(plan.then == Then::Relay || head.status < 200, "{shown}");
    assert!(plan.then != Then::Tunnel || (request.upgrade && head.status == 101), "{shown}");
    assert!(interims < 32 || head.status >= 200 || plan.then == Then::Tunnel, "{shown}");
    let mut out = Vec::new();
    let facts = ResponseFacts {
        closes,
        routed_instance: routed,
        received: &DateLine::at(RECEIVED.0),
        edits: &Edits::NONE,
    };
    write_response(&mut out, &head, request, &plan, &facts);
    let again = naive::head(&out).unwrap_or_else(|| panic!("no head: {}", out.escape_ascii()));
    same_message(&naive, &again, &head, &plan, &out);
    let framing = framing_for_client(request, head.status, &again.fields);
    says_how_it_ends(request, &plan, framing, &again.fields, closes);
    if let Some(instance) = routed.filter(|_| matches!(plan.then, Then::Relay | Then::Tunnel)) {
        let said: Vec<_> = values(&again.fields, "x-stepflow-routed-instance").collect();
        assert_eq!(said, [instance]);
    }
    if plan.then == Then::Relay {
        let backend = framing_of_backend(request, head.status, &naive);
        same_body(&plan, framing, backend, behind, &naive.fields);
    }
    Verdict::Accepted
}

fn owned(head: &ResponseHead<'_>) -> Lines {
    head.fields.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect()
}

fn same_message(
    naive: &naive::Head,
    again: &naive::Head,
    head: &ResponseHead<'_>,
    plan: &ResponsePlan,
    out: &[u8],
) {
    let shown = out.escape_ascii();
    let mut storage = field_storage();
    let ours = parse_response(out, &mut storage, FIELDS_MAX);
    // A head of the most fields that there can be has no room for those that we add.
    if naive.fields.len() + OURS.len() + 1 < FIELDS_MAX {
        let ours = ours.unwrap_or_else(|e| panic!("{e:?}: {shown}"));
        assert_eq!((ours.status, ours.reason), (head.status, head.reason), "{shown}");
        assert_eq!(owned(&ours), again.fields, "{shown}");
    }
    assert!(again.start_line.starts_with(b"HTTP/1.1 "), "{shown}");
    let theirs = |fields: &Lines| -> Lines {
        fields.iter().filter(|(name, _)| !is_one_of(name, &OURS)).cloned().collect()
    };
    let mut want = theirs(&naive.fields);
    want.retain(|(name, _)| goes_on(name, &naive.fields));
    // RFC 9110 §6.6.1: a final response without a date gets one.
    if plan.then == Then::Relay && values(&want, "date").next().is_none() {
        want.push(("Date".to_owned(), RECEIVED.1.to_vec()));
    }
    assert_eq!(theirs(&again.fields), want, "{shown}");
}

/// Where a client sees the end of the body (RFC 9112 §6.3).
fn framing_for_client(request: &RequestPlan, status: u16, fields: &Lines) -> Framing {
    let codings: Vec<_> = values(fields, "transfer-encoding").collect();
    let lengths: Vec<_> = values(fields, "content-length").collect();
    assert!(codings.is_empty() || (codings == [b"chunked"] && lengths.is_empty()), "{fields:?}");
    assert!(lengths.len() <= 1, "{fields:?}");
    let is_http10 = request.version == Version::Http10;
    assert!(!is_http10 || codings.is_empty(), "chunks for an HTTP/1.0 client");
    let number = |value: &[u8]| String::from_utf8_lossy(value).parse().expect("a number");
    if request.method == Method::Head || status < 200 || status == 204 || status == 304 {
        Framing::Length(0)
    } else if !codings.is_empty() {
        Framing::Chunked
    } else {
        lengths.first().map_or(Framing::UntilClose, |value| Framing::Length(number(value)))
    }
}

/// Where the backend sees it, given that what it says has been accepted.
fn framing_of_backend(request: &RequestPlan, status: u16, head: &naive::Head) -> Framing {
    let codings: Vec<_> = values(&head.fields, "transfer-encoding").collect();
    let lengths: Vec<_> = values(&head.fields, "content-length").collect();
    let number = |value: &[u8]| String::from_utf8_lossy(value).parse().expect("a number");
    match (&codings[..], &lengths[..]) {
        _ if request.method == Method::Head || status == 204 || status == 304 => Framing::Length(0),
        ([], []) => Framing::UntilClose,
        ([], [length]) => Framing::Length(number(length)),
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        _ => panic!("accepted: {:?}", head.fields),
    }
}

fn says_how_it_ends(
    request: &RequestPlan,
    plan: &ResponsePlan,
    framing: Framing,
    fields: &Lines,
    closes: bool,
) {
    let is_relayed = plan.then == Then::Relay;
    let ends = is_relayed && (closes || plan.ends_with_connection);
    assert_eq!(lists(fields, "connection", "close"), ends, "{fields:?}");
    let is_told = is_relayed && request.version == Version::Http10 && !ends;
    assert_eq!(lists(fields, "connection", "keep-alive"), is_told, "{fields:?}");
    assert_eq!(lists(fields, "connection", "upgrade"), plan.then == Then::Tunnel);
    assert!(is_relayed || plan.then == Then::Tunnel || plan.transfer.is_done());
    assert!(framing != Framing::UntilClose || plan.ends_with_connection || !is_relayed);
    if plan.ends_with_connection && is_relayed {
        assert_eq!(framing, Framing::UntilClose);
    }
}

/// The client reads the content that the backend sent, wherever each sees it end.
fn same_body(
    plan: &ResponsePlan,
    framing: Framing,
    backend: Framing,
    behind: &[u8],
    fields: &Lines,
) {
    let seen = body::read(behind, backend);
    let coding = match framing {
        Framing::Chunked => Coding::Chunked,
        Framing::Length(_) | Framing::UntilClose => Coding::Identity,
    };
    let pieces: Vec<&[u8]> = behind.chunks(7).collect();
    let is_verbatim_chunked = plan.transfer.is_verbatim() && framing == Framing::Chunked;
    assert!(!is_verbatim_chunked || backend == Framing::Chunked);
    assert!(
        !plan.transfer.is_verbatim()
            || (framing == Framing::Chunked) == (backend == Framing::Chunked)
    );
    assert!(backend != Framing::UntilClose || plan.upstream_persistence == Persistence::Close);
    body::hand_on(plan.transfer, backend, coding, plan.is_event_stream, &pieces, &seen, fields);
}
