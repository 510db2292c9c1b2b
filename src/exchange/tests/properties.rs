//! Pure: properties that hold for every head, hostile ones included. A failing case is printed.

use proptest::{prelude::*, strategy::ValueTree};

use super::*;
use crate::http1::{
    Edits, FieldLine, Framing, FramingFields, HeadError, Method, Version, response_framing,
};

type Lines = Vec<(String, Vec<u8>)>;

/// RFC 9110 §7.6.1, and what ends at a proxy (§11.7).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// May not be removed by listing them in `Connection`.
const PROTECTED: [&str; 17] = [
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "host",
    "max-forwards",
    "stepflow-instance-id",
    "via",
    "x-forwarded-by",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// What a client says about others.
const TESTIMONY: [&str; 7] = [
    "forwarded",
    "x-forwarded-by",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
];

/// Names that mean something to the proxy, in odd case.
const NAMES: &[&str] = &[
    "Accept",
    "cache-Control",
    "CONNECTION",
    "Connection",
    "Content-Encoding",
    "content-length",
    "Content-Type",
    "Date",
    "dATE",
    "Expect",
    "Host",
    "host",
    "Keep-Alive",
    "Proxy-Authorization",
    "TE",
    "te",
    "Max-Forwards",
    "Stepflow-Instance-Id",
    "Transfer-Encoding",
    "transfer-encoding",
    "Upgrade",
    "Via",
    "X-Accel-Buffering",
    "X-Forwarded-By",
    "X-Forwarded-For",
    "x-forwarded-for",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Real-IP",
    "Forwarded",
    "X-Stepflow-Routed-Instance",
    "Content_Length",
    "x_forwarded_for",
    "Stepflow-Instance_Id",
    "X_A",
    "X-A",
    "x-b",
];

/// Values that mean something to the proxy.
const VALUES: &[&str] = &[
    "",
    "0",
    "5",
    "chunked",
    "gzip",
    "close",
    "keep-alive",
    "upgrade",
    "x-a, X-B",
    "websocket",
    "h2c",
    "100-continue",
    "h:1",
    "text/event-stream",
    "application/json",
    "10.0.0.1",
    "connection, host, content-length, upgrade",
    "keep-alive, upgrade, x-a",
    "date",
    "1.1 stepflow-load-balancer",
    "trailers",
    "gzip;q=0.5, Trailers",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => proptest::sample::select(NAMES).prop_map(str::to_owned),
        1 => "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}",
    ]
}

/// Any octets: most that are not allowed end in a refusal, the others must come through.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => proptest::sample::select(VALUES).prop_map(|v| v.as_bytes().to_vec()),
        2 => proptest::collection::vec(
            prop_oneof![20 => 0x20_u8..0x7f, 4 => 0x80_u8..=0xff, 1 => Just(b'\t')], 0..12),
        1 => proptest::collection::vec(any::<u8>(), 0..6),
    ]
}

fn lines() -> impl Strategy<Value = Lines> {
    proptest::collection::vec((name(), value()), 0..10)
}

fn target() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "/[!-~]{0,12}",
        1 => "(http|HTTPS)://[a-z.]{1,5}(:[0-9]{0,3})?(/[!-~]{0,6})?",
        1 => Just("*".to_owned()),
        1 => "[ -~]{0,8}",
    ]
}

fn raw_head(start_line: &str, lines: &Lines) -> Vec<u8> {
    let mut octets = format!("{start_line}\r\n").into_bytes();
    for (name, value) in lines {
        octets.extend_from_slice(name.as_bytes());
        octets.extend_from_slice(b":");
        octets.extend_from_slice(value);
        octets.extend_from_slice(b"\r\n");
    }
    octets.extend_from_slice(b"\r\n");
    octets
}

fn owned(fields: &[FieldLine<'_>]) -> Lines {
    fields.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect()
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// Whether a `Connection` line lists the name.
fn is_listed(name: &str, lines: &Lines) -> bool {
    let connections = lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    connections
        .flat_map(|(_, value)| value.split(|b| *b == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
}

/// Whether a line goes on, as far as both directions have it in common.
fn goes_on(name: &str, lines: &Lines) -> bool {
    !is_one_of(name, &HOP_BY_HOP) && (is_one_of(name, &PROTECTED) || !is_listed(name, lines))
}

/// Whether some would take the name for another one that means something to the proxy.
fn is_alias(name: &str) -> bool {
    let other = name.replace('_', "-");
    other != name
        && [&HOP_BY_HOP[..], &PROTECTED, &TESTIMONY].iter().any(|known| is_one_of(&other, known))
}

/// What a backend must get, told line by line: the lines that go on, in order, then ours.
fn expected_request(
    method: Method,
    version: Version,
    lines: &Lines,
    admission: &Admission<'_>,
    trust: Trust,
) -> Lines {
    let is_believed =
        |(name, _): &&(String, Vec<u8>)| trust == Trust::Believed || !is_one_of(name, &TESTIMONY);
    let believed: Lines = lines.iter().filter(is_believed).cloned().collect();
    // What is removed for lack of trust is as if it had never been there.
    let lines = &believed;
    let authority = admission.authority.unwrap_or(CLIENT.local_authority.as_bytes()).to_vec();
    let has = |wanted: &str| lines.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut want = Lines::new();
    for (name, value) in lines.iter().filter(|(name, _)| goes_on(name, lines)) {
        match name.to_ascii_lowercase().as_str() {
            "x-forwarded-for" | "x-forwarded-by" | "via" => {}
            _ if is_alias(name) => {}
            "expect" if version == Version::Http10 => {}
            "host" => want.push((name.clone(), authority.clone())),
            "max-forwards" if method == Method::Options => {
                let number: u64 = std::str::from_utf8(value).unwrap().parse().unwrap();
                want.push((name.clone(), (number - 1).to_string().into_bytes()));
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
    let takes_trailers = version == Version::Http11
        && lines.iter().any(|(name, value)| {
            name.eq_ignore_ascii_case("te") && value.to_ascii_lowercase().ends_with(b"trailers")
        });
    let connection = [(admission.upgrade.is_some(), "upgrade"), (takes_trailers, "TE")];
    let connection = connection.iter().filter(|(is_asked, _)| *is_asked);
    let connection: Vec<&str> = connection.map(|(_, token)| *token).collect();
    if !connection.is_empty() {
        say("Connection", connection.join(", ").as_bytes());
    }
    if let Some(protocol) = admission.upgrade {
        say("Upgrade", protocol);
    }
    if takes_trailers {
        say("TE", b"trailers");
    }
    let behind = |wanted: &str, last: &[u8]| {
        let earlier = lines.iter().filter(|(n, v)| n.eq_ignore_ascii_case(wanted) && !v.is_empty());
        earlier
            .map(|(_, value)| value.as_slice())
            .chain([last])
            .collect::<Vec<_>>()
            .join(&b", "[..])
    };
    say("X-Forwarded-For", &behind("x-forwarded-for", CLIENT.address.as_bytes()));
    if !has("x-forwarded-proto") {
        say("X-Forwarded-Proto", b"http");
    }
    if !has("x-forwarded-host") {
        say("X-Forwarded-Host", &authority);
    }
    say("X-Forwarded-By", b"stepflow-load-balancer");
    let protocol = if version == Version::Http10 { "1.0" } else { "1.1" };
    say("Via", &behind("via", format!("{protocol} stepflow-load-balancer").as_bytes()));
    want
}

/// What is decided about a request, as far as a backend must see it in the same way.
fn decided(admission: &Admission<'_>) -> (Method, Framing, bool, Option<Vec<u8>>, Option<Vec<u8>>) {
    let plan = admission.plan;
    let instance = admission.instance.map(<[u8]>::to_vec);
    let upgrade = admission.upgrade.map(<[u8]>::to_vec);
    (plan.method, plan.framing, plan.expects_continue, instance, upgrade)
}

/// Forwards a request and holds the result against what was asked. False if it was refused.
fn check_request(octets: &[u8], client: &ClientFacts<'_>) -> Result<bool, TestCaseError> {
    let mut storage = field_storage();
    let parsed = match parse_request(octets, &mut storage, 64) {
        Ok(parsed) => parsed,
        // The property is about what goes on; that the rest has a reason is its business.
        Err(error) => {
            prop_assert_ne!(error, HeadError::TooManyFields);
            return Ok(false);
        }
    };
    let Ok(admission) = admit(&parsed) else { return Ok(false) };
    if admission.recipient == Recipient::Ourselves {
        return Ok(false);
    }
    let mut out = Vec::new();
    write_request(&mut out, &parsed, &admission, client);

    let found = HeadScan::new(LeadingLine::Refuse).advance(&out);
    prop_assert_eq!(found, Ok(Some(0..out.len())), "{}", out.escape_ascii());
    let mut storage = field_storage();
    let again = parse_request(&out, &mut storage, 64);
    prop_assert!(again.is_ok(), "{:?}: {}", again, out.escape_ascii());
    let again = again.unwrap();
    prop_assert_eq!(again.method_token, parsed.method_token);
    prop_assert_eq!(again.target.forwarded(), parsed.target.forwarded());
    prop_assert_eq!(again.version, Version::Http11);
    let want = expected_request(
        parsed.method,
        parsed.version,
        &owned(parsed.fields),
        &admission,
        client.trust,
    );
    prop_assert_eq!(owned(again.fields), want);

    // A backend that reads as we do decides as we did: no smuggling past our own eyes.
    let seen = admit(&again).map(|admission| decided(&admission));
    prop_assert_eq!(seen, Ok(decided(&admission)));
    Ok(true)
}

/// What a client concludes from a head about where the body ends.
fn read_by_client(request: &RequestPlan, head: &ResponseHead<'_>) -> Option<Framing> {
    let mut fields = FramingFields::default();
    for line in head.fields {
        match line.name.to_ascii_lowercase().as_str() {
            "content-length" => fields.content_length(line.value),
            "transfer-encoding" => fields.transfer_encoding(line.value),
            _ => {}
        }
    }
    let is_head = request.method == Method::Head;
    response_framing(Version::Http11, head.status, is_head, &fields).ok()
}

/// Relays a response head and holds the result against what came.
fn check_response(
    request: &RequestPlan,
    octets: &[u8],
    closes: bool,
    routed: Option<&str>,
) -> Result<bool, TestCaseError> {
    let mut storage = field_storage();
    let Ok(parsed) = parse_response(octets, &mut storage, 64) else { return Ok(false) };
    let Ok(plan) = plan_response(request, &parsed, 0) else { return Ok(false) };
    if plan.then == Then::Skip {
        return Ok(true);
    }
    let mut out = Vec::new();
    let facts = ResponseFacts {
        closes,
        routed_instance: routed.map(str::as_bytes),
        received: &date(),
        edits: &Edits::NONE,
    };
    write_response(&mut out, &parsed, request, &plan, &facts);

    let found = HeadScan::new(LeadingLine::Refuse).advance(&out);
    prop_assert_eq!(found, Ok(Some(0..out.len())), "{}", out.escape_ascii());
    let mut storage = field_storage();
    let again = parse_response(&out, &mut storage, 64);
    prop_assert!(again.is_ok(), "{:?}: {}", again, out.escape_ascii());
    let again = again.unwrap();
    prop_assert_eq!((again.status, again.reason), (parsed.status, parsed.reason));
    prop_assert_eq!(again.version, Version::Http11);

    // Where the client sees the body end is where we end it.
    let end = match (plan.transfer.is_done(), plan.body_bytes) {
        (true, _) => Framing::Length(0),
        (false, Some(bytes)) => Framing::Length(bytes),
        (false, None) if plan.ends_with_connection => Framing::UntilClose,
        (false, None) => Framing::Chunked,
    };
    let is_until_close_for_http_1_0 = request.version == Version::Http10 && end == Framing::Chunked;
    prop_assert!(!is_until_close_for_http_1_0, "chunks for HTTP/1.0");
    prop_assert_eq!(read_by_client(request, &again), Some(end), "{}", out.escape_ascii());

    // What is not in the way of the framing goes on, in order.
    let lines = owned(parsed.fields);
    let ours = [
        "connection",
        "upgrade",
        "transfer-encoding",
        "content-length",
        "cache-control",
        "x-accel-buffering",
        "x-stepflow-routed-instance",
    ];
    let theirs = |lines: &Lines| -> Lines {
        lines.iter().filter(|(name, _)| !is_one_of(name, &ours)).cloned().collect()
    };
    let mut want: Lines =
        theirs(&lines).into_iter().filter(|(name, _)| goes_on(name, &lines)).collect();
    // Behind it is ours, if nobody has said when it was made (RFC 9110 §6.6.1).
    if plan.then == Then::Relay && !want.iter().any(|(name, _)| is_one_of(name, &["date"])) {
        want.push(("Date".to_owned(), DATE.into()));
    }
    prop_assert_eq!(theirs(&owned(again.fields)), want);
    Ok(true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_forwarded_request_is_the_one_that_came(
        method in prop_oneof![Just("GET"), Just("POST"), Just("OPTIONS"), Just("x-Y")],
        target in target(),
        version in prop_oneof![Just("1.1"), Just("1.0")],
        mut lines in lines(),
        has_host in proptest::bool::weighted(0.8),
        client in prop_oneof![Just(CLIENT), Just(STRANGER)],
    ) {
        if has_host {
            lines.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
            lines.push(("Host".to_owned(), b"h".to_vec()));
        }
        check_request(&raw_head(&format!("{method} {target} HTTP/{version}"), &lines), &client)?;
    }

    #[test]
    fn a_relayed_response_is_the_one_that_came(
        method in prop_oneof![Just("GET"), Just("HEAD"), Just("POST")],
        client in prop_oneof![3 => Just("1.1"), 1 => Just("1.0")],
        backend in prop_oneof![3 => Just("1.1"), 1 => Just("1.0")],
        status in prop_oneof![
            Just(100_u16), Just(101), Just(103), Just(204), Just(304), Just(200), 100_u16..=999],
        reason in "[ -~]{0,9}",
        lines in lines(),
        upgrades in any::<bool>(),
        closes in any::<bool>(),
        routed in proptest::option::of(Just("pod-1")),
    ) {
        let start_line = format!("{method} / HTTP/{client}");
        let asked = [&start_line, "Host: h", "Connection: upgrade", "Upgrade: websocket"];
        let request = request(if upgrades { &asked } else { &asked[..2] });
        let start_line = format!("HTTP/{backend} {status} {reason}");
        check_response(&request, &raw_head(&start_line, &lines), closes, routed)?;
    }
}

/// The generators are worth nothing if what they make is always refused.
#[test]
fn the_properties_are_not_empty() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut requests, mut responses) = (0, 0);
    let get = request(&["GET / HTTP/1.1", "Host: h"]);
    for _ in 0..500 {
        let mut lines = lines().new_tree(&mut runner).unwrap().current();
        let octets = raw_head("HTTP/1.1 200 OK", &lines);
        responses += usize::from(check_response(&get, &octets, false, None).unwrap());
        lines.retain(|(name, _)| !name.eq_ignore_ascii_case("host"));
        lines.push(("Host".to_owned(), b"h".to_vec()));
        let octets = raw_head("GET / HTTP/1.1", &lines);
        requests += usize::from(check_request(&octets, &CLIENT).unwrap());
    }
    assert!(requests > 50 && responses > 50, "{requests} requests, {responses} responses of 500");
}

#[test]
fn a_line_break_in_any_part_is_refused_before_it_can_be_forwarded() {
    for octet in [b'\r', b'\n', 0, 0x0b, 0x7f] {
        let name = [b"GET / HTTP/1.1\r\nHost: h\r\nA", &[octet][..], b": b\r\n\r\n"].concat();
        let value = [b"GET / HTTP/1.1\r\nHost: h\r\nA: b", &[octet][..], b"c: d\r\n\r\n"].concat();
        let target = [b"GET /a", &[octet][..], b"b HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
        let method = [b"G", &[octet][..], b"T / HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
        for octets in [name, value, target, method] {
            let scanned = HeadScan::new(LeadingLine::Refuse).advance(&octets);
            let is_refused = match scanned {
                Ok(Some(found)) => parse_request(&octets[found], &mut field_storage(), 64).is_err(),
                Ok(None) | Err(_) => true,
            };
            assert!(is_refused, "{}", octets.escape_ascii());
        }
    }
}
