//! Pure: tests of what a response means for both sides.

use super::{super::plan::INTERIM_RESPONSES_MAX, *};
use crate::http1::Coding;

/// A request by method and version.
fn asked(method: &str, version: &str) -> RequestPlan {
    request(&[&format!("{method} / HTTP/{version}"), "Host: h"])
}

fn asked_to_upgrade() -> RequestPlan {
    request(&["GET / HTTP/1.1", "Host: h", "Connection: upgrade", "Upgrade: websocket"])
}

const GET: (&str, &str) = ("GET", "1.1");
const GET_10: (&str, &str) = ("GET", "1.0");
const HEAD: (&str, &str) = ("HEAD", "1.1");
const HEAD_10: (&str, &str) = ("HEAD", "1.0");
const POST: (&str, &str) = ("POST", "1.1");

const LENGTH: &str = "Content-Length: 5";
const EMPTY: &str = "Content-Length: 0";
const CHUNKED: &str = "Transfer-Encoding: chunked";

/// How the client sees the body end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    /// With the head.
    AtOnce,
    /// After its length.
    Length,
    /// With the last chunk.
    Chunk,
    /// With the connection.
    Close,
}

fn ends(plan: &ResponsePlan) -> Ends {
    match (plan.transfer.is_done(), plan.coding, plan.ends_with_connection) {
        (true, Coding::Identity, false) => Ends::AtOnce,
        (false, Coding::Identity, false) => Ends::Length,
        (false, Coding::Chunked, false) => Ends::Chunk,
        (false, Coding::Identity, true) => Ends::Close,
        shape => panic!("{shape:?} cannot be"),
    }
}

#[test]
fn the_body_ends_as_version_method_status_and_framing_say() {
    use Ends::*;
    use Persistence::{Close as Dies, Keep};
    let cases: &[((&str, &str), &str, &[&str], Ends, Option<u64>, Persistence)] = &[
        // Framing by what the client can read.
        (GET, "1.1 200", &[LENGTH], Length, Some(5), Keep),
        (GET, "1.1 200", &[EMPTY], AtOnce, Some(0), Keep),
        (GET, "1.1 200", &[CHUNKED], Chunk, None, Keep),
        (GET, "1.1 200", &[], Chunk, None, Dies),
        (POST, "1.1 200", &[CHUNKED], Chunk, None, Keep),
        (POST, "1.1 500", &[], Chunk, None, Dies),
        (GET_10, "1.1 200", &[LENGTH], Length, Some(5), Keep),
        (GET_10, "1.1 200", &[EMPTY], AtOnce, Some(0), Keep),
        (GET_10, "1.1 200", &[CHUNKED], Close, None, Keep),
        (GET_10, "1.1 200", &[], Close, None, Dies),
        // A backend that speaks HTTP/1.0.
        (GET, "1.0 200", &[LENGTH], Length, Some(5), Dies),
        (GET, "1.0 200", &[LENGTH, "Connection: keep-alive"], Length, Some(5), Keep),
        (GET, "1.0 200", &[], Chunk, None, Dies),
        (GET_10, "1.0 200", &[], Close, None, Dies),
        // Its length unknown, its word to keep the connection is worth nothing.
        (GET, "1.0 200", &["Connection: keep-alive"], Chunk, None, Dies),
        (GET, "1.1 200", &["Connection: keep-alive"], Chunk, None, Dies),
        // Its wish to close is not the client's affair.
        (GET, "1.1 200", &[LENGTH, "Connection: close"], Length, Some(5), Dies),
        (GET, "1.1 200", &[CHUNKED, "Connection: x, Close"], Chunk, None, Dies),
        (GET, "1.0 200", &[LENGTH, "Connection: keep-alive, close"], Length, Some(5), Dies),
        // No body, whatever the fields describe (RFC 9112 §6.3, 1).
        (HEAD, "1.1 200", &[LENGTH], AtOnce, Some(0), Keep),
        (HEAD, "1.1 200", &[CHUNKED], AtOnce, Some(0), Keep),
        (HEAD, "1.1 200", &[], AtOnce, Some(0), Keep),
        (HEAD_10, "1.1 200", &[CHUNKED], AtOnce, Some(0), Keep),
        (HEAD, "1.0 200", &[], AtOnce, Some(0), Dies),
        (GET, "1.1 204", &[], AtOnce, Some(0), Keep),
        (GET, "1.1 204", &[LENGTH], AtOnce, Some(0), Keep),
        (GET, "1.1 304", &[LENGTH], AtOnce, Some(0), Keep),
        (GET, "1.1 304", &[CHUNKED], AtOnce, Some(0), Keep),
        (GET_10, "1.0 304", &[], AtOnce, Some(0), Dies),
        // 205 may have none either, but its framing says so (RFC 9110 §15.3.6).
        (GET, "1.1 205", &[EMPTY], AtOnce, Some(0), Keep),
        // Statuses that nobody has heard of are those of their class.
        (GET, "1.1 299", &[LENGTH], Length, Some(5), Keep),
        (GET, "1.1 999", &[CHUNKED], Chunk, None, Keep),
    ];
    for ((method, version), status, fields, want, bytes, persistence) in cases {
        let line = format!("HTTP/{status} X");
        let lines = [&[line.as_str()], *fields].concat();
        let plan = response(&asked(method, version), &lines).unwrap();
        let shown = format!("{method} {version}: {lines:?}");
        assert_eq!(plan.then, Then::Relay, "{shown}");
        assert_eq!((ends(&plan), plan.body_bytes), (*want, *bytes), "{shown}");
        assert_eq!(plan.upstream_persistence, *persistence, "{shown}");
        assert_eq!(plan.has_body_deadline(), *want == Length, "{shown}");
    }
}

#[test]
fn same_framing_on_both_sides_is_handed_on_verbatim() {
    let cases: &[((&str, &str), &[&str], bool)] = &[
        (GET, &[LENGTH], true),
        (GET, &[CHUNKED], true),
        (GET, &[], false),
        (GET_10, &[LENGTH], true),
        (GET_10, &[CHUNKED], false),
        (GET_10, &[], true),
    ];
    for ((method, version), fields, want) in cases {
        let lines = [&["HTTP/1.1 200 OK"], *fields].concat();
        let plan = response(&asked(method, version), &lines).unwrap();
        assert_eq!(plan.transfer.is_verbatim(), *want, "{method} {version}: {lines:?}");
    }
}

#[test]
fn a_response_without_a_single_length_is_refused_even_where_it_has_no_body() {
    let cases: &[&[&str]] = &[
        &["HTTP/1.1 200 OK", LENGTH, CHUNKED],
        &["HTTP/1.1 200 OK", LENGTH, LENGTH],
        &["HTTP/1.1 200 OK", "Content-Length: 5, 5"],
        &["HTTP/1.1 200 OK", "Content-Length: -5"],
        &["HTTP/1.1 200 OK", "Content-Length: 99999999999999999999"],
        &["HTTP/1.1 200 OK", "Transfer-Encoding: gzip"],
        &["HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"],
        &["HTTP/1.1 200 OK", "Transfer-Encoding: chunked, chunked"],
        &["HTTP/1.0 200 OK", CHUNKED],
        &["HTTP/1.1 204 No Content", LENGTH, CHUNKED],
        &["HTTP/1.1 100 Continue", LENGTH, CHUNKED],
    ];
    for lines in cases {
        for (method, version) in [GET, GET_10, HEAD] {
            let got = response(&asked(method, version), lines).err();
            assert_eq!(got, Some(Failure::ResponseFraming), "{method} {version}: {lines:?}");
        }
    }
}

#[test]
fn an_event_stream_is_known_by_its_type() {
    let cases: &[(&[&str], bool)] = &[
        (&["Content-Type: text/event-stream", CHUNKED], true),
        (&["content-TYPE: Text/Event-Stream;charset=utf-8", CHUNKED], true),
        (&["Content-Type: text/event-stream ; charset=utf-8"], true),
        (&["Content-Type: text/event-stream", LENGTH], true),
        (&["Content-Type: text/event-stream", EMPTY], false),
        (&["Content-Type: text/event-streams", CHUNKED], false),
        (&["Content-Type: application/json", CHUNKED], false),
        (&["Accept: text/event-stream", CHUNKED], false),
        (&[CHUNKED], false),
    ];
    for (fields, want) in cases {
        let lines = [&["HTTP/1.1 200 OK"], *fields].concat();
        let plan = response(&asked("POST", "1.1"), &lines).unwrap();
        assert_eq!(plan.is_event_stream, *want, "{lines:?}");
        // Silence in a stream means nothing, even where it has a length.
        assert!(!(plan.is_event_stream && plan.has_body_deadline()), "{lines:?}");
    }
    for (method, status) in [("HEAD", "200 OK"), ("GET", "204 No"), ("GET", "304 No")] {
        let line = format!("HTTP/1.1 {status}");
        let lines = [line.as_str(), "Content-Type: text/event-stream", CHUNKED];
        let plan = response(&asked(method, "1.1"), &lines).unwrap();
        assert!(!plan.is_event_stream, "{lines:?}");
    }
}

/// What becomes of the octets of a chunk that ends inside a character.
fn handed_on(fields: &[&str]) -> Vec<u8> {
    let lines = [&["HTTP/1.1 200 OK", "Content-Type: text/event-stream", CHUNKED], fields].concat();
    let mut plan = response(&asked("GET", "1.0"), &lines).unwrap();
    let mut out = Vec::new();
    assert_eq!(plan.transfer.push(b"3\r\na\xe2\x82\r\n", &mut out), Ok(8));
    out
}

#[test]
fn only_a_stream_that_is_not_encoded_is_cut_at_characters() {
    assert_eq!(handed_on(&[]), b"a");
    assert_eq!(handed_on(&["Content-Encoding: identity"]), b"a");
    assert_eq!(handed_on(&["Content-Encoding: Identity"]), b"a");
    let encoded: [&[&str]; 3] = [
        &["Content-Encoding: gzip"],
        &["content-encoding: identity, br"],
        &["Content-Encoding: br", "Content-Encoding: identity"],
    ];
    for fields in encoded {
        assert_eq!(handed_on(fields), b"a\xe2\x82", "{fields:?}");
    }
}

#[test]
fn interim_heads_go_to_clients_that_know_them() {
    for status in ["100 Continue", "102 Processing", "103 Early Hints", "199 X"] {
        let line = format!("HTTP/1.1 {status}");
        for (method, version, want) in [
            ("GET", "1.1", Then::Interim),
            ("HEAD", "1.1", Then::Interim),
            ("POST", "1.1", Then::Interim),
            ("POST", "1.0", Then::Skip),
        ] {
            let plan = response(&asked(method, version), &[&line, "Link: </x>"]).unwrap();
            assert_eq!(plan.then, want, "{status} {method} {version}");
            assert!(plan.transfer.is_done() && !plan.ends_with_connection);
        }
    }
}

#[test]
fn interim_heads_come_to_an_end() {
    let request = asked("GET", "1.1");
    for interims in 0..=u8::MAX {
        let of = |status: &str| {
            let line = format!("HTTP/1.1 {status}");
            with_response(&head(&[&line]), |head| plan_response(&request, head, interims))
        };
        let is_over = of("103 Early Hints").err() == Some(Failure::ResponseHead);
        assert_eq!(is_over, interims >= INTERIM_RESPONSES_MAX, "{interims}");
        // A final head is welcome at any time.
        assert!(of("200 OK").is_ok(), "{interims}");
    }
}

#[test]
fn protocols_are_switched_only_when_asked_and_named() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols";
    let with_body = [
        "POST / HTTP/1.1",
        "Host: h",
        "Connection: upgrade",
        "Upgrade: websocket",
        "Content-Length: 1",
    ];
    let refused = [
        (asked("GET", "1.1"), &[SWITCH, "Connection: upgrade", "Upgrade: websocket"][..]),
        (asked("GET", "1.0"), &[SWITCH, "Upgrade: websocket"]),
        (request(&with_body), &[SWITCH, "Upgrade: websocket"]),
        (asked_to_upgrade(), &[SWITCH]),
        (asked_to_upgrade(), &[SWITCH, "Connection: upgrade"]),
    ];
    for (request, lines) in refused {
        let got = response(&request, lines).err();
        assert_eq!(got, Some(Failure::ResponseUpgrade), "{lines:?}");
    }
    let lines = [SWITCH, "Connection: upgrade", "Upgrade: websocket"];
    let plan = response(&asked_to_upgrade(), &lines).unwrap();
    assert_eq!(plan.then, Then::Tunnel);
    assert_eq!(plan.upstream_persistence, Persistence::Close);
    assert!(plan.ends_with_connection);
    // Who asks may be refused, and told so like anybody.
    let plan = response(&asked_to_upgrade(), &["HTTP/1.1 403 No", LENGTH]).unwrap();
    assert_eq!((plan.then, plan.upstream_persistence), (Then::Relay, Persistence::Keep));
}
