//! Pure: tests of what a request asks for, and of every reason to refuse it.

use std::collections::BTreeSet;

use super::*;
use crate::http1::{Framing, Method};

const HOST: &str = "Host: h";

fn check_refused(lines: &[&str], want: Failure) {
    let got = with_request(&head(lines), |head| admit(head).err());
    assert_eq!(got, Some(want), "{lines:?}");
}

const REFUSED: &[(&[&str], Failure)] = &[
    (&["CONNECT h:1 HTTP/1.1", "Host: h:1"], Failure::ConnectRefused),
    // Refused for what it is, whatever else is wrong with it.
    (&["CONNECT h:1 HTTP/1.1", "Host: a", "Host: b", "Content-Length: x"], Failure::ConnectRefused),
    (&["GET / HTTP/1.1"], Failure::HostMissing),
    (&["GET http://h/ HTTP/1.1"], Failure::HostMissing),
    (&["GET / HTTP/1.1", HOST, HOST], Failure::HostRepeated),
    (&["GET / HTTP/1.1", HOST, "hOST: h"], Failure::HostRepeated),
    (&["GET / HTTP/1.0", HOST, "Host:"], Failure::HostRepeated),
    (&["GET / HTTP/1.1", "Host: a b"], Failure::HostInvalid),
    (&["GET / HTTP/1.0", "Host: a/b"], Failure::HostInvalid),
    // A valid target does not make an invalid Host valid.
    (&["GET http://h/ HTTP/1.1", "Host: a,b"], Failure::HostInvalid),
    (&["GET http://h,i/ HTTP/1.1", HOST], Failure::HeadTarget),
    (&["GET http://h:x/ HTTP/1.1", HOST], Failure::HeadTarget),
    // RFC 9110 §4.2.1: a target with an empty host must be rejected.
    (&["GET http://:80/ HTTP/1.1", HOST], Failure::HeadTarget),
    (&["POST / HTTP/1.1", HOST, "Content-Length: +1"], Failure::LengthInvalid),
    (&["POST / HTTP/1.1", HOST, "Content-Length: 18446744073709551616"], Failure::LengthInvalid),
    (&["POST / HTTP/1.1", HOST, "Content-Length:"], Failure::LengthInvalid),
    (&["POST / HTTP/1.1", HOST, "Content-Length: 1, 1"], Failure::LengthRepeated),
    (&["POST / HTTP/1.1", HOST, "Content-Length: 1", "content-length: 1"], Failure::LengthRepeated),
    (
        &["POST / HTTP/1.1", HOST, "Content-Length: 1", "Transfer-Encoding: chunked"],
        Failure::LengthAndCoding,
    ),
    (
        &["POST / HTTP/1.0", HOST, "Transfer-Encoding: chunked", "Content-Length: 1"],
        Failure::LengthAndCoding,
    ),
    (&["POST / HTTP/1.1", HOST, "Transfer-Encoding: gzip, chunked"], Failure::CodingUnknown),
    (&["POST / HTTP/1.1", HOST, "Transfer-Encoding: \"chunked\""], Failure::CodingUnknown),
    (&["POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked, gzip"], Failure::CodingNotLast),
    (
        &["POST / HTTP/1.1", HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        Failure::CodingNotLast,
    ),
    (&["POST / HTTP/1.0", HOST, "Transfer-Encoding: chunked"], Failure::CodingInHttp10),
    (&["GET / HTTP/1.1", HOST, "Expect: 200-ok"], Failure::ExpectationUnknown),
    (&["GET / HTTP/1.1", HOST, "Expect: 100-continue, x"], Failure::ExpectationUnknown),
    (&["GET / HTTP/1.1", HOST, "Expect: x", "Expect: 100-continue"], Failure::ExpectationUnknown),
    (
        &["GET / HTTP/1.1", HOST, "Stepflow-Instance-Id: a", "stepflow-instance-id: a"],
        Failure::InstanceRepeated,
    ),
    (&["OPTIONS * HTTP/1.1", HOST, "Max-Forwards: -1"], Failure::MaxForwardsInvalid),
    (&["OPTIONS * HTTP/1.1", HOST, "Max-Forwards:"], Failure::MaxForwardsInvalid),
    (&["TRACE / HTTP/1.1", HOST, "Max-Forwards: 1, 1"], Failure::MaxForwardsInvalid),
    (&["TRACE / HTTP/1.1", HOST, "Max-Forwards: 1.0"], Failure::MaxForwardsInvalid),
    (
        &["TRACE / HTTP/1.1", HOST, "Max-Forwards: 1", "max-forwards: 1"],
        Failure::MaxForwardsInvalid,
    ),
    (&["TRACE / HTTP/1.1", HOST, "Max-Forwards: 0"], Failure::TraceRefused),
    (&["TRACE / HTTP/1.0", HOST, "Max-Forwards: 00"], Failure::TraceRefused),
    (
        &[
            "GET / HTTP/1.1",
            HOST,
            VIA_US_TWICE,
            VIA_US_TWICE,
            "via: 1.0 A, 1.0 STEPFLOW-load-balancer",
        ],
        Failure::ViaLoop,
    ),
    (
        &[
            "GET / HTTP/1.1",
            HOST,
            "Via: 1.1 stepflow-load-balancer,1.1\tstepflow-load-balancer (c) ,HTTP/1.1  stepflow-load-balancer,",
            VIA_US_TWICE,
        ],
        Failure::ViaLoop,
    ),
];

/// A request that came through us twice.
const VIA_US_TWICE: &str =
    "Via: 1.1 stepflow-load-balancer, 1.1 other, 1.1 stepflow-load-balancer (x)";

#[test]
fn a_request_ends_here_when_it_may_not_be_forwarded() {
    let cases: &[(&[&str], Recipient)] = &[
        (&["OPTIONS * HTTP/1.1", HOST, "Max-Forwards: 0"], Recipient::Ourselves),
        (&["OPTIONS /x HTTP/1.0", "Max-Forwards: 000"], Recipient::Ourselves),
        (&["OPTIONS * HTTP/1.1", HOST, "Max-Forwards: 1"], Recipient::Backend),
        (&["OPTIONS * HTTP/1.1", HOST], Recipient::Backend),
        (&["TRACE / HTTP/1.1", HOST, "Max-Forwards: 1"], Recipient::Backend),
        (&["TRACE / HTTP/1.1", HOST], Recipient::Backend),
        (&["GET / HTTP/1.1", HOST, "Max-Forwards: 0"], Recipient::Backend),
        (&["Options / HTTP/1.1", HOST, "Max-Forwards: 0"], Recipient::Backend),
    ];
    for (lines, want) in cases {
        let got = with_request(&head(lines), |head| admit(head).unwrap().recipient);
        assert_eq!(got, *want, "{lines:?}");
    }
}

#[test]
fn a_chain_of_several_balancers_is_no_loop() {
    for fields in [
        &[VIA_US_TWICE, VIA_US_TWICE][..],
        // Names that are not ours, or not where a name stands.
        &[VIA_US_TWICE, VIA_US_TWICE, "Via: 1.1 stepflow-load-balancer.example"],
        &[
            VIA_US_TWICE,
            VIA_US_TWICE,
            "Via: stepflow-load-balancer",
            "Via: 1.1 x stepflow-load-balancer",
        ],
        &[VIA_US_TWICE, VIA_US_TWICE, "X-Via: 1.1 stepflow-load-balancer"],
    ] {
        request(&[&["GET / HTTP/1.1", HOST], fields].concat());
    }
}

#[test]
fn what_has_no_single_reading_is_refused() {
    for (lines, want) in REFUSED {
        check_refused(lines, *want);
    }
}

#[test]
fn every_refusal_of_this_step_has_a_case() {
    let tested: BTreeSet<_> = REFUSED.iter().map(|(_, failure)| failure.label()).collect();
    let admits = Failure::ALL.iter().filter(|failure| failure.stage() == Stage::Admit);
    // Which header holds a session is not known here: `session` refuses it.
    let admits = admits.filter(|failure| **failure != Failure::SessionRepeated);
    for failure in admits.chain([&Failure::HeadTarget]) {
        assert!(tested.contains(failure.label()), "{failure:?} has no case");
    }
}

#[test]
fn persistence_is_by_version_unless_connection_says_otherwise() {
    use Persistence::{Close, Keep};
    let cases: &[(&str, &[&str], Persistence)] = &[
        ("1.1", &[], Keep),
        ("1.0", &[], Close),
        ("1.1", &["Connection: close"], Close),
        ("1.1", &["Connection: keep-alive"], Keep),
        ("1.0", &["Connection: keep-alive"], Keep),
        ("1.0", &["Connection: Keep-Alive"], Keep),
        ("1.0", &["Connection: close"], Close),
        ("1.1", &["connection: x, \tCLOSE ,y"], Close),
        ("1.1", &["Connection: x", "Connection: close"], Close),
        // Close wins over keep-alive (RFC 9112 §9.3).
        ("1.1", &["Connection: keep-alive, close"], Close),
        ("1.0", &["Connection: close", "Connection: keep-alive"], Close),
        // Whole tokens only, and of no other field.
        ("1.1", &["Connection: closed"], Keep),
        ("1.1", &["Connection: \"close\""], Keep),
        ("1.1", &["Connection: ,, ,"], Keep),
        ("1.1", &["Proxy-Connection: close"], Keep),
        ("1.0", &["Keep-Alive: timeout=5"], Close),
    ];
    for (version, fields, want) in cases {
        let line = format!("GET / HTTP/{version}");
        let lines = [&[line.as_str(), HOST], *fields].concat();
        assert_eq!(request(&lines).persistence, *want, "{lines:?}");
    }
}

#[test]
fn an_expectation_is_met_in_http_1_1_and_ignored_in_http_1_0() {
    let expects = |lines: &[&str]| request(lines).expects_continue;
    assert!(!expects(&["POST / HTTP/1.1", HOST]));
    assert!(expects(&["POST / HTTP/1.1", HOST, "Expect: 100-continue"]));
    assert!(expects(&["POST / HTTP/1.1", HOST, "expect:\t100-Continue "]));
    assert!(!expects(&["POST / HTTP/1.0", HOST, "Expect: 100-continue"]));
    assert!(!expects(&["POST / HTTP/1.0", HOST, "Expect: anything"]));
}

#[test]
fn an_upgrade_needs_everything_that_belongs_to_it() {
    const UPGRADE: &str = "Connection: upgrade";
    let cases: &[(&str, &[&str], Option<&str>)] = &[
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: websocket"], Some("websocket")),
        (
            "GET / HTTP/1.1",
            &["Connection: keep-alive, UPGRADE", "upgrade: WebSocket"],
            Some("WebSocket"),
        ),
        ("POST / HTTP/1.1", &[UPGRADE, "Upgrade: a/1, b", "Content-Length: 0"], Some("a/1, b")),
        // The token is missing, or the field is, or the version knows no upgrade.
        ("GET / HTTP/1.1", &["Upgrade: websocket"], None),
        ("GET / HTTP/1.1", &["Connection: close", "Upgrade: websocket"], None),
        ("GET / HTTP/1.1", &[UPGRADE], None),
        ("GET / HTTP/1.0", &[UPGRADE, "Upgrade: websocket"], None),
        // Of several lines the last is offered, alone.
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: h2c", "Upgrade: websocket"], Some("websocket")),
        // A body, whose octets would be in neither protocol.
        ("POST / HTTP/1.1", &[UPGRADE, "Upgrade: websocket", "Content-Length: 1"], None),
        ("POST / HTTP/1.1", &[UPGRADE, "Upgrade: websocket", "Transfer-Encoding: chunked"], None),
        // HTTP/2 behind our back, in any company.
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: h2c"], None),
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: H2C"], None),
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: websocket, h2c"], None),
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: h2c ,websocket"], None),
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: h2c/2"], None),
        ("GET / HTTP/1.1", &[UPGRADE, "Upgrade: websocket", "Upgrade: h2c"], None),
    ];
    for (line, fields, want) in cases {
        let lines = [&[*line, HOST], *fields].concat();
        with_request(&head(&lines), |head| {
            let admission = admit(head).unwrap();
            assert_eq!(admission.upgrade, want.map(str::as_bytes), "{lines:?}");
            assert_eq!(admission.plan.upgrade, want.is_some(), "{lines:?}");
        });
    }
}

#[test]
fn an_authority_has_one_reading() {
    let good = [
        "h",
        "h:8080",
        "h:",
        "example.com",
        "a-b_c.d~e",
        "127.0.0.1:80",
        "[::1]",
        "[::1]:8080",
        "[2001:db8::192.0.2.1]:65535",
        "xn--bcher-kva.example",
        "a%2Db",
        "!$&'()*+;=",
    ];
    let bad = [
        ":",
        ":80",
        "a:b",
        "a:1:2",
        "a:123456",
        "a:+1",
        "a: 1",
        "a b",
        "a\tb",
        "a,b",
        "h,",
        "a/b",
        "a?b",
        "a#b",
        "a@b",
        "u:p@h",
        "a\\b",
        "a\"b",
        "<a>",
        "[::1",
        "[]",
        "::1",
        "[::1]x",
        "[::1]:x",
        "[::1%25eth0]",
        "[v1.a]",
        "[a]b]",
        "a[",
        "http://h",
        "h\u{e9}",
    ];
    let of_host = |value: &str| {
        let lines = ["GET / HTTP/1.1".to_owned(), format!("Host: {value}")];
        let octets = head(&lines.each_ref().map(String::as_str));
        with_request(&octets, |head| admit(head).map(|a| a.authority.map(<[u8]>::to_vec)))
    };
    for value in good {
        assert_eq!(of_host(value), Ok(Some(value.as_bytes().to_vec())), "{value}");
    }
    for value in bad {
        assert_eq!(of_host(value), Err(Failure::HostInvalid), "{value}");
    }
    // RFC 9112 §3.2: a target without authority has an empty Host.
    assert_eq!(of_host(""), Ok(Some(Vec::new())));
}

#[test]
fn an_absolute_target_names_the_host() {
    let cases: &[(&[&str], Option<&str>)] = &[
        (&["GET http://t:81/x HTTP/1.1", "Host: other"], Some("t:81")),
        (&["GET HTTPS://T HTTP/1.1", "Host:"], Some("T")),
        (&["OPTIONS http://[::1]:81 HTTP/1.1", "Host: other"], Some("[::1]:81")),
        (&["GET http://t/ HTTP/1.0"], Some("t")),
        (&["GET / HTTP/1.0"], None),
        (&["GET / HTTP/1.0", "Host: o"], Some("o")),
        (&["OPTIONS * HTTP/1.1", "Host: o"], Some("o")),
    ];
    for (lines, want) in cases {
        with_request(&head(lines), |head| {
            assert_eq!(admit(head).unwrap().authority, want.map(str::as_bytes), "{lines:?}");
        });
    }
}

#[test]
fn who_speaks_json_is_answered_in_json() {
    let cases: &[(&[&str], ErrorFormat)] = &[
        (&[], ErrorFormat::Text),
        (&["Accept: */*"], ErrorFormat::Text),
        (&["Accept: text/html, text/plain"], ErrorFormat::Text),
        (&["Content-Type: application/x-www-form-urlencoded"], ErrorFormat::Text),
        (&["Content-Type: application/jsonx"], ErrorFormat::Text),
        (&["X: application/json"], ErrorFormat::Text),
        (&["Accept: application/json"], ErrorFormat::JsonRpc),
        (&["accept: text/html, Application/JSON;q=0.5"], ErrorFormat::JsonRpc),
        (&["Accept: text/html", "Accept: application/json"], ErrorFormat::JsonRpc),
        (&["Content-Type: application/json; charset=utf-8"], ErrorFormat::JsonRpc),
        (&["Accept: text/html", "Content-Type: application/json"], ErrorFormat::JsonRpc),
    ];
    for (fields, want) in cases {
        let lines = [&["POST / HTTP/1.1", HOST], *fields].concat();
        assert_eq!(request(&lines).error_format, *want, "{fields:?}");
    }
}

#[test]
fn who_accepts_an_event_stream_is_known() {
    let cases: &[(&[&str], bool)] = &[
        (&[], false),
        (&["Accept: */*"], false),
        (&["Content-Type: text/event-stream"], false),
        (&["Accept: text/event-streams"], false),
        (&["Accept: application/json, text/event-stream"], true),
        (&["Accept: application/json", "ACCEPT: Text/Event-Stream;q=1"], true),
    ];
    for (fields, want) in cases {
        let lines = [&["GET / HTTP/1.1", HOST], *fields].concat();
        assert_eq!(request(&lines).accepts_event_stream, *want, "{fields:?}");
    }
}

#[test]
fn an_ordinary_request_is_understood() {
    let octets =
        head(&["PUT /x HTTP/1.1", HOST, "Content-Length: 12", "stepflow-INSTANCE-id: \tpod-1 "]);
    with_request(&octets, |head| {
        let admission = admit(head).unwrap();
        assert_eq!(admission.plan.method, Method::Put);
        assert_eq!(admission.plan.framing, Framing::Length(12));
        assert_eq!(admission.instance, Some(&b"pod-1"[..]));
    });
    let chunked = ["POST / HTTP/1.1", HOST, "transfer-encoding: Chunked"];
    assert_eq!(request(&chunked).framing, Framing::Chunked);
    assert_eq!(request(&["POST / HTTP/1.1", HOST]).framing, Framing::Length(0));
}
