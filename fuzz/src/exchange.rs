//! Target `exchange`: one request from a client's octets to a backend's, and what is decided about
//! retries and connections on the way.
//!
//! Input: one octet (bit 0 a head made of known names and values instead of octets as a client sends
//! them, bit 1 a client that is believed, bit 2 no `Via`); three octets of facts (the attempt that failed, the response, how the exchange
//! ended); then the octets, or the choices.

use arbitrary::Unstructured;
use stepflow_load_balancer::{
    exchange::{
        Admission, Attempt, ClientFacts, ExchangeEnd, Failure, Fate, Persistence, Recipient,
        RequestPlan, Retry, SELF_NAME, Sent, Via, admit, conclude, may_retry, plan_response,
        write_request,
    },
    http1::{
        FIELDS_MAX, Framing, LeadingLine, Method, RequestHead, Version, field_storage,
        parse_request, parse_response,
    },
    model::Trust,
};

use super::{
    Verdict, body,
    head::scan,
    naive::{self, Lines},
    rules::{goes_on, is_alias, is_testimony, lists, values},
};

/// Properties: a request that is admitted goes on with the fields that should go on and no others,
/// is read by us and by others as it was read here, and is never sent twice where that could be
/// executed twice.
pub fn run(octets: &[u8]) -> Verdict {
    let mut input = Unstructured::new(octets);
    let mut octet = || input.arbitrary::<u8>().unwrap_or_default();
    let (mode, facts) = (octet(), [octet(), octet(), octet()]);
    let made;
    let octets = match mode & 1 {
        0 => input.take_rest(),
        _ => {
            made = make(&mut input);
            &made
        }
    };
    let Ok(Some(found)) = scan(LeadingLine::Skip, octets) else { return Verdict::Refused };
    let mut storage = field_storage();
    let Ok(head) = parse_request(&octets[found.clone()], &mut storage, FIELDS_MAX) else {
        return Verdict::Refused;
    };
    let Ok(admission) = admit(&head) else { return Verdict::Refused };
    assert!(rounds(&head) <= ROUNDS_MAX, "a loop goes on");
    if admission.recipient == Recipient::Ourselves {
        assert!(matches!(head.method, Method::Options | Method::Trace));
        return Verdict::Accepted;
    }
    let client = ClientFacts {
        address: "192.0.2.7",
        local_authority: "198.51.100.1:8080",
        trust: if mode & 2 == 0 { Trust::Hearsay } else { Trust::Believed },
        via: if mode & 4 == 0 { Via::Said } else { Via::Unsaid },
    };
    forwarded(&head, &admission, &client, &octets[found.end..]);
    for failure in Failure::ALL {
        retries(&admission.plan, facts[0], *failure);
    }
    endings(&admission.plan, facts[1], facts[2]);
    Verdict::Accepted
}

/// Times that a request may have come through balancers of this name.
const ROUNDS_MAX: usize = 4;

/// How often `Via` names us as the one that received the request (RFC 9110 §7.6.3).
fn rounds(head: &RequestHead<'_>) -> usize {
    let via = head.fields.iter().filter(|line| line.name.eq_ignore_ascii_case("via"));
    let values: Vec<_> = via.map(|line| String::from_utf8_lossy(line.value)).collect();
    let received_by = |member: &&str| {
        let mut words = member.split([' ', '\t']).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(SELF_NAME))
    };
    values.iter().flat_map(|value| value.split(',')).filter(received_by).count()
}

/// Names that mean something to the proxy, in odd case, and two that do not.
const NAMES: [&[u8]; 32] = [
    b"Accept",
    b"cache-Control",
    b"CONNECTION",
    b"Connection",
    b"Content-Encoding",
    b"content-length",
    b"Content-Type",
    b"Expect",
    b"Host",
    b"host",
    b"Keep-Alive",
    b"Proxy-Connection",
    b"TE",
    b"Stepflow-Instance-Id",
    b"Transfer-Encoding",
    b"Trailer",
    b"Upgrade",
    b"Via",
    b"X-Forwarded-By",
    b"X-Forwarded-For",
    b"x-forwarded-for",
    b"X-Forwarded-Host",
    b"X-Forwarded-Proto",
    b"X-Stepflow-Routed-Instance",
    b"X-A",
    b"x-b",
    b"max-forwards",
    b"Forwarded",
    b"X-Real-IP",
    b"X-Forwarded-Port",
    b"x_Forwarded-for",
    b"Content_length",
];

const VALUES: [&[u8]; 25] = [
    b"",
    b"0",
    b"5",
    b"chunked",
    b"gzip",
    b"close",
    b"keep-alive",
    b"upgrade",
    b"x-a, X-B",
    b"websocket",
    b"h2c",
    b"100-continue",
    b"h:1",
    b"[::1]:80",
    b"text/event-stream",
    b"application/json",
    b"10.0.0.1",
    b"connection, host, content-length, upgrade",
    b"keep-alive, upgrade, x-a",
    b"transfer-encoding, x-forwarded-for",
    b"pod-1-0a1b2c3d",
    b"trailers, deflate;q=0.5",
    b"1.1 stepflow-load-balancer",
    b"via, max-forwards, x-real-ip, x-forwarded-port",
    b"18446744073709551617",
];

const START_LINES: [&[u8]; 9] = [
    b"GET / HTTP/1.1",
    b"POST / HTTP/1.1",
    b"GET /a?b HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"GET http://other:1/x HTTP/1.1",
    b"OPTIONS http://other HTTP/1.1",
    b"DELETE /x%20y HTTP/1.1",
    b"x-Y /\xc3\xa9 HTTP/1.1",
    b"TRACE / HTTP/1.1",
];

/// A head of known parts: octets alone hardly ever combine two fields that mean something.
fn make(input: &mut Unstructured<'_>) -> Vec<u8> {
    let mut choose = |from: &[&[u8]]| {
        let at = usize::from(input.arbitrary::<u8>().unwrap_or_default());
        // Beyond the table, octets of the input stand for themselves.
        match from.get(at % (from.len() + 2)) {
            Some(known) => known.to_vec(),
            None => {
                let length = usize::from(input.arbitrary::<u8>().unwrap_or_default() % 24);
                input.bytes(length.min(input.len())).unwrap_or_default().to_vec()
            }
        }
    };
    let mut head = choose(&START_LINES);
    head.extend_from_slice(b"\r\nHost: h\r\n");
    let lines = choose(&[b"", b"1", b"22", b"333", b"4444", b"55555", b"666666"]).len();
    for _ in 0..lines {
        head.extend_from_slice(&choose(&NAMES));
        head.extend_from_slice(b": ");
        head.extend_from_slice(&choose(&VALUES));
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(input.bytes(input.len()).unwrap_or_default());
    head
}

fn forwarded(
    head: &RequestHead<'_>,
    admission: &Admission<'_>,
    client: &ClientFacts<'_>,
    behind: &[u8],
) {
    let mut out = Vec::new();
    write_request(&mut out, head, admission, client);
    let shown = out.escape_ascii().to_string();
    let again = naive::head(&out).unwrap_or_else(|| panic!("no head: {shown}"));
    assert_eq!(scan(LeadingLine::Refuse, &out), Ok(Some(0..out.len())), "{shown}");
    let line = [head.method_token, head.target.forwarded(), b"HTTP/1.1"].join(&b' ');
    assert_eq!(again.start_line, line, "{shown}");
    let lines: Lines =
        head.fields.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect();
    assert_eq!(again.fields, expected(head, &lines, admission, client), "{shown}");

    // The most fields that there can be leave no room for ours: a backend with the same limit
    // would refuse them, which is no business of this property.
    if again.fields.len() <= FIELDS_MAX {
        let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut other = httparse::Request::new(&mut room);
        assert_eq!(other.parse(&out), Ok(httparse::Status::Complete(out.len())), "{shown}");
        let fields: Lines =
            other.headers.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect();
        assert_eq!(fields, again.fields, "{shown}");

        let mut storage = field_storage();
        let ours = parse_request(&out, &mut storage, FIELDS_MAX);
        let ours = ours.unwrap_or_else(|e| panic!("{e:?}: {shown}"));
        read_by_next(&admit(&ours), &again.fields, admission, &shown);
    }
    same_body(admission, &lines, &again.fields, behind);
}

/// A balancer behind this one decides as this one did, unless the journey ends there.
fn read_by_next(
    next: &Result<Admission<'_>, Failure>,
    fields: &Lines,
    admission: &Admission<'_>,
    shown: &str,
) {
    let next = match next {
        Ok(next) => next,
        Err(Failure::ViaLoop) => {
            let via = values(fields, "via").collect::<Vec<_>>().join(&b","[..]);
            let via = String::from_utf8_lossy(&via).to_ascii_lowercase();
            assert!(via.matches(SELF_NAME).count() > 4, "{shown}");
            return;
        }
        Err(Failure::TraceRefused) => {
            assert_eq!(values(fields, "max-forwards").collect::<Vec<_>>(), [b"0"], "{shown}");
            return;
        }
        Err(failure) => panic!("{failure:?}: {shown}"),
    };
    let facts = |admission: &Admission<'_>| {
        let plan = admission.plan;
        (plan.method, plan.framing, plan.expects_continue, plan.upgrade)
    };
    assert_eq!(facts(next), facts(admission), "{shown}");
    assert_eq!(next.instance, admission.instance, "{shown}");
}

/// What a backend must get, told line by line: the lines that go on, in order, then ours.
fn expected(
    head: &RequestHead<'_>,
    lines: &Lines,
    admission: &Admission<'_>,
    client: &ClientFacts<'_>,
) -> Lines {
    let authority = admission.authority.unwrap_or(client.local_authority.as_bytes()).to_vec();
    let is_http10 = head.version == Version::Http10;
    let says_via = client.via == Via::Said;
    // What is not believed is as if it had never been there.
    let mut believed = lines.clone();
    believed.retain(|(name, _)| client.trust == Trust::Believed || !is_testimony(name));
    let has = |wanted: &str| values(&believed, wanted).next().is_some();
    let mut want = Lines::new();
    for (name, value) in believed.iter().filter(|(name, _)| goes_on(name, lines)) {
        match name.to_ascii_lowercase().as_str() {
            "x-forwarded-for" | "x-forwarded-by" => {}
            "expect" if is_http10 => {}
            "via" if says_via => {}
            _ if is_alias(name) => {}
            "host" => want.push((name.clone(), authority.clone())),
            "max-forwards" if matches!(head.method, Method::Options | Method::Trace) => {
                want.push((name.clone(), one_less(value)));
            }
            _ => want.push((name.clone(), value.clone())),
        }
    }
    let mut say = |name: &str, value: &[u8]| want.push((name.to_owned(), value.to_vec()));
    if !has("host") {
        say("Host", &authority);
    }
    if has("transfer-encoding") {
        say("Transfer-Encoding", b"chunked");
    }
    let takes_trailers = !is_http10 && lists(lines, "te", "trailers");
    match (admission.plan.upgrade, takes_trailers) {
        (false, false) => {}
        (true, false) => say("Connection", b"upgrade"),
        (false, true) => say("Connection", b"TE"),
        (true, true) => say("Connection", b"upgrade, TE"),
    }
    if admission.plan.upgrade {
        say("Upgrade", values(lines, "upgrade").last().expect("a protocol to switch to"));
    }
    if takes_trailers {
        say("TE", b"trailers");
    }
    let behind = |name: &str, last: &str| {
        let earlier = values(&believed, name).filter(|value| !value.is_empty());
        earlier.chain([last.as_bytes()]).collect::<Vec<_>>().join(&b", "[..])
    };
    say("X-Forwarded-For", &behind("x-forwarded-for", client.address));
    if !has("x-forwarded-proto") {
        say("X-Forwarded-Proto", b"http");
    }
    if !has("x-forwarded-host") {
        say("X-Forwarded-Host", &authority);
    }
    say("X-Forwarded-By", SELF_NAME.as_bytes());
    if says_via {
        let version = if is_http10 { "1.0" } else { "1.1" };
        say("Via", &behind("via", &format!("{version} {SELF_NAME}")));
    }
    want
}

/// RFC 9110 §7.6.2: one less, or the greatest number that we know.
fn one_less(value: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(value);
    let digits = text.trim_start_matches('0');
    let number: u64 = digits.parse().unwrap_or(u64::MAX);
    (number - 1).to_string().into_bytes()
}

/// A request body goes on verbatim but for trailers; a backend that frames it by the forwarded head
/// sees its end where we do.
fn same_body(admission: &Admission<'_>, lines: &Lines, fields: &Lines, behind: &[u8]) {
    let framing = admission.plan.framing;
    let codings: Vec<_> = values(fields, "transfer-encoding").collect();
    let lengths: Vec<_> = values(fields, "content-length").collect();
    let read_by_backend = match (&codings[..], &lengths[..]) {
        ([], []) => Framing::Length(0),
        ([], [length]) => {
            Framing::Length(String::from_utf8_lossy(length).parse().expect("a number"))
        }
        ([b"chunked"], []) => Framing::Chunked,
        _ => panic!("two lengths: {fields:?}"),
    };
    assert_eq!(read_by_backend, framing);
    let seen = body::read(behind, read_by_backend);
    let pieces: Vec<&[u8]> = behind.chunks(7).collect();
    body::hand_on_alike(admission.transfer(), &pieces, &seen, lines);
}

fn retries(request: &RequestPlan, attempt: u8, failure: Failure) {
    let has = |bit: u8| attempt & 1 << bit != 0;
    let mut attempt = Attempt {
        number: 1,
        sent: [Sent::Nothing, Sent::Replayable, Sent::Gone, Sent::Nothing]
            [usize::from(attempt & 3)],
        reused: has(2),
        replayed: has(3),
        response_begun: has(4),
        pinned: has(5),
        moved: has(6),
    };
    let (mut tries, mut executions) = (0, 0);
    loop {
        tries += 1;
        executions += u32::from(attempt.sent != Sent::Nothing);
        let verdict = may_retry(failure, request, &attempt);
        match verdict {
            Retry::GiveUp => break,
            _ if attempt.response_begun => panic!("tried again behind a response"),
            _ if attempt.sent == Sent::Gone => panic!("replays what is gone"),
            Retry::NextBackend => {
                assert!(!attempt.pinned, "an instance has no other backend");
                if attempt.sent != Sent::Nothing {
                    assert!(request.method.is_idempotent() && !attempt.moved);
                }
            }
            Retry::SameBackend => {
                assert!(request.method.is_idempotent() && !attempt.replayed && attempt.reused);
            }
        }
        // Whatever happens next happens in the same way, but on a connection that may be reused only
        // if nothing was sent.
        let next = attempt.after(verdict);
        assert_eq!(next.number, attempt.number + 1);
        let reused = attempt.reused && !next.needs_fresh_connection();
        attempt = Attempt { sent: attempt.sent, reused, ..next };
        assert!(tries < 10, "{failure:?} is tried for ever");
    }
    assert!(executions <= 1 || request.method.is_idempotent(), "executed twice");
}

const RESPONSES: [&[u8]; 6] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
];

fn endings(request: &RequestPlan, response: u8, end: u8) {
    let has = |bit: u8| end & 1 << bit != 0;
    let octets = RESPONSES[usize::from(response) % RESPONSES.len()];
    let mut storage = field_storage();
    let head = parse_response(octets, &mut storage, FIELDS_MAX).expect("a response");
    let response = plan_response(request, &head, 0).expect("one reading");
    let end = ExchangeEnd {
        request_complete: has(0),
        response_complete: has(1),
        stray_octets: has(2),
        client_half_closed: has(3),
        draining: has(4),
        is_early: has(5),
    };
    let conclusion = conclude(request, &response, &end);
    let is_whole = end.request_complete && end.response_complete;
    let keeps_client = is_whole
        && request.persistence == Persistence::Keep
        && !response.ends_with_connection
        && !end.client_half_closed
        && !end.draining
        && !end.is_early;
    assert_eq!(conclusion.downstream == Fate::Keep, keeps_client, "{end:?}");
    let keeps_backend = is_whole
        && !end.stray_octets
        && !end.is_early
        && response.upstream_persistence == Persistence::Keep
        // A backend may have read the content as a request.
        && (request.framing == Framing::Length(0)
            || matches!(request.method, Method::Post | Method::Put | Method::Patch | Method::Other));
    assert_eq!(conclusion.upstream == Fate::Keep, keeps_backend, "{end:?}");
    // What closes was announced, wherever it was known when the head was written, which it is not
    // of a stream that is ended early.
    let announced =
        request.closes_after(end.client_half_closed, end.draining) || response.ends_with_connection;
    let closes = conclusion.downstream != Fate::Keep;
    assert!(!is_whole || closes == (announced || end.is_early), "{end:?}");
}
