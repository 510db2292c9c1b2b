//! Pure: tests of the head that a client gets, octet by octet.

use super::*;
use crate::http1::Edits;

/// A response on its way to a client.
struct Case<'a> {
    request: &'a [&'a str],
    closes: bool,
    routed: Option<&'a str>,
}

const GET: Case<'_> = Case { request: &["GET / HTTP/1.1", "Host: h"], closes: false, routed: None };
const GET_10: Case<'_> = Case { request: &["GET / HTTP/1.0"], closes: true, routed: None };
const HEAD: Case<'_> = Case { request: &["HEAD / HTTP/1.1", "Host: h"], ..GET };
const UPGRADE: Case<'_> = Case {
    request: &["GET / HTTP/1.1", "Host: h", "Connection: upgrade", "Upgrade: websocket"],
    ..GET
};

/// The `Date` that a final response without one is given is looked for and left out of `want`.
fn check(case: &Case<'_>, lines: &[&str], want: &[&str]) {
    let out = written(case, lines);
    let ours = format!("Date: {DATE}\r\n");
    let is_final = plan(case, lines).then == Then::Relay;
    let is_dated = want.iter().any(|line| line.to_ascii_lowercase().starts_with("date:"));
    let text = out.escape_ascii().to_string();
    let found = text.matches(&ours.escape_default().to_string()).count();
    assert_eq!(found, usize::from(is_final && !is_dated), "{text}");
    let out = text.replace(&ours.escape_default().to_string(), "");
    assert_eq!(out, head(want).escape_ascii().to_string(), "{lines:?}");
}

fn plan(case: &Case<'_>, lines: &[&str]) -> ResponsePlan {
    response(&request(case.request), lines).unwrap()
}

/// The head that the client gets for a response of these lines.
fn written(case: &Case<'_>, lines: &[&str]) -> Vec<u8> {
    let request = request(case.request);
    let mut out = Vec::new();
    with_response(&head(lines), |head| {
        let plan = plan_response(&request, head, 0).unwrap();
        let facts = ResponseFacts {
            closes: case.closes,
            routed_instance: case.routed.map(str::as_bytes),
            received: &date(),
            edits: &Edits::NONE,
        };
        write_response(&mut out, head, &request, &plan, &facts);
    });
    assert_is_one_head(&out);
    out
}

#[test]
fn what_is_not_ours_to_change_keeps_octets_case_and_order() {
    let lines = [
        "HTTP/1.1 200 Very  fine",
        "date: X",
        "SET-cookie: b",
        "set-cookie: a",
        "Content-Length: 05",
        "Cache-Control: max-age=1",
        "X-Accel-Buffering: yes",
        "X-Stepflow-Routed-Instance: theirs",
        "Empty:",
    ];
    let mut want = lines;
    want[8] = "Empty: ";
    check(&GET, &lines, &want);
    check(&GET, &["HTTP/1.1 599", "Content-Length: 0"], &["HTTP/1.1 599 ", "Content-Length: 0"]);
}

#[test]
fn a_final_response_without_a_date_gets_one_behind_the_fields_of_its_backend() {
    let ours = format!("Date: {DATE}");
    let ours = ours.as_str();
    let (ok, length, close) = ("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: close");
    let stream = "Content-Type: text/event-stream";
    let (unbuffered, uncached) = ("X-Accel-Buffering: no", "Cache-Control: no-cache");
    let chunked = "Transfer-Encoding: chunked";
    let closing = Case { closes: true, ..GET };
    let cases: [(&Case<'_>, &[&str], &[&str]); 10] = [
        (&GET, &[ok], &[ok, ours, chunked]),
        (&closing, &[ok, length, "A: b"], &[ok, length, "A: b", ours, close]),
        (&GET_10, &[ok, length], &[ok, length, ours, close]),
        (&HEAD, &[ok, length], &[ok, length, ours]),
        (&GET, &["HTTP/1.1 204 No"], &["HTTP/1.1 204 No", ours]),
        (&GET, &["HTTP/1.1 304 No"], &["HTTP/1.1 304 No", ours]),
        (&GET, &["HTTP/1.1 500 No", length], &["HTTP/1.1 500 No", length, ours]),
        (&GET, &[ok, stream], &[ok, stream, ours, chunked, unbuffered, uncached]),
        (&GET, &["HTTP/1.1 103 Early", "Link: x"], &["HTTP/1.1 103 Early", "Link: x"]),
        (
            &GET,
            &[ok, length, "Dates: x", "X-Date: x"],
            &[ok, length, "Dates: x", "X-Date: x", ours],
        ),
    ];
    for (case, lines, want) in cases {
        let out = written(case, lines).escape_ascii().to_string();
        assert_eq!(out, head(want).escape_ascii().to_string(), "{lines:?}");
    }
}

#[test]
fn a_date_that_is_there_stays_as_it_is() {
    let (ok, length) = ("HTTP/1.1 200 OK", "Content-Length: 5");
    for dates in [
        &["Date: Sat, 01 Jan 2000 00:00:00 GMT"][..],
        &["dATE: yesterday"],
        &["Date: "],
        &["Date: Sat, 01 Jan 2000 00:00:00 GMT", "date: Sun, 02 Jan 2000 00:00:00 GMT"],
        &["DATE: Saturday, 01-Jan-00 00:00:00 GMT"],
    ] {
        let lines = [&[ok], dates, &[length]].concat();
        // Nor does a `Connection` that names it take it away.
        for listed in [&[][..], &["Connection: date"]] {
            let out = written(&GET, &[&lines, listed].concat()).escape_ascii().to_string();
            assert_eq!(out, head(&lines).escape_ascii().to_string());
        }
    }
}

#[test]
fn the_version_is_ours_and_the_status_theirs() {
    for (line, want) in [
        ("HTTP/1.0 200 OK", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 404 Not Found", "HTTP/1.1 404 Not Found"),
        ("HTTP/1.0 999 ", "HTTP/1.1 999 "),
    ] {
        check(&GET, &[line, "Content-Length: 1"], &[want, "Content-Length: 1"]);
    }
}

#[test]
fn what_belongs_to_one_connection_ends_here() {
    check(
        &GET,
        &[
            "HTTP/1.1 426 Upgrade",
            "Connection: close, x-a, content-length, content-type, Upgrade",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: close",
            "TE: x",
            "Upgrade: h2c",
            "Proxy-Authenticate: Basic",
            "X-A: 1",
            "X-B: 1",
            "Content-Type: a/b",
            "Content-Length: 2",
        ],
        &["HTTP/1.1 426 Upgrade", "X-B: 1", "Content-Type: a/b", "Content-Length: 2"],
    );
}

#[test]
fn framing_is_written_for_the_client_at_hand() {
    const CHUNKED: &str = "Transfer-Encoding: chunked";
    const OK: &str = "HTTP/1.1 200 OK";
    const CLOSE: &str = "Connection: close";
    check(&GET, &[OK, "transfer-encoding: Chunked", "A: 1"], &[OK, "A: 1", CHUNKED]);
    check(&GET, &[OK, "Trailer: T", CHUNKED], &[OK, "Trailer: T", CHUNKED]);
    check(&GET, &[OK, CLOSE], &[OK, CHUNKED]);
    check(&GET, &["HTTP/1.0 200 OK"], &[OK, CHUNKED]);
    check(&GET_10, &[OK, CHUNKED], &[OK, CLOSE]);
    check(&GET_10, &[OK], &[OK, CLOSE]);
    let keeps = Case { request: &["GET / HTTP/1.0", "Connection: keep-alive"], ..GET };
    // A body that only the connection's end can end overrules the wish to keep it.
    check(&keeps, &[OK, CHUNKED], &[OK, CLOSE]);
    check(&keeps, &[OK, "Content-Length: 3"], &[OK, "Content-Length: 3", "Connection: keep-alive"]);
}

#[test]
fn a_length_is_told_where_it_may_be() {
    let length = "Content-Length: 5";
    for line in ["HTTP/1.1 200 OK", "HTTP/1.1 304 Not Modified", "HTTP/1.1 404 No"] {
        check(&HEAD, &[line, length], &[line, length]);
    }
    // HEAD and 304 have no body, so no coding either.
    for line in ["HTTP/1.1 200 OK", "HTTP/1.1 304 Not Modified"] {
        check(&HEAD, &[line, "Transfer-Encoding: chunked"], &[line]);
    }
    check(&GET, &["HTTP/1.1 304 No", length], &["HTTP/1.1 304 No", length]);
    // RFC 9110 §8.6: never in 1xx and 204.
    check(&GET, &["HTTP/1.1 204 No", length, "A: 1"], &["HTTP/1.1 204 No", "A: 1"]);
    check(&GET, &["HTTP/1.1 204 No", "Transfer-Encoding: chunked"], &["HTTP/1.1 204 No"]);
    check(&GET, &["HTTP/1.1 103 Early", length, "Link: x"], &["HTTP/1.1 103 Early", "Link: x"]);
}

#[test]
fn the_end_of_the_connection_is_announced_in_final_heads_only() {
    let closing = Case { closes: true, ..GET };
    let (ok, length) = ("HTTP/1.1 200 OK", "Content-Length: 5");
    check(&closing, &[ok, length], &[ok, length, "Connection: close"]);
    check(&closing, &["HTTP/1.1 204 No"], &["HTTP/1.1 204 No", "Connection: close"]);
    check(&closing, &["HTTP/1.1 100 Continue"], &["HTTP/1.1 100 Continue"]);
    check(&Case { closes: true, ..HEAD }, &[ok, length], &[ok, length, "Connection: close"]);
    // The backend's announcement is for us alone.
    check(&GET, &[ok, length, "Connection: close"], &[ok, length]);
}

#[test]
fn an_event_stream_is_kept_from_buffers_and_caches() {
    let ours = ["X-Accel-Buffering: no", "Cache-Control: no-cache"];
    check(
        &GET,
        &[
            "HTTP/1.1 200 OK",
            "cache-control: max-age=60, no-transform",
            "Content-Type: text/event-stream; charset=utf-8",
            "x-accel-buffering: yes",
            "Transfer-Encoding: chunked",
            "Cache-Control: public",
        ],
        &[
            &[
                "HTTP/1.1 200 OK",
                "Content-Type: text/event-stream; charset=utf-8",
                "Transfer-Encoding: chunked",
            ],
            &ours[..],
        ]
        .concat(),
    );
    check(
        &GET_10,
        &["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Content-Encoding: gzip"],
        &[
            &["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Content-Encoding: gzip"],
            &ours[..],
            &["Connection: close"],
        ]
        .concat(),
    );
    check(
        &GET,
        &["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Content-Length: 9"],
        &[&["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Content-Length: 9"], &ours[..]]
            .concat(),
    );
    // The description of a stream is none.
    let lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Cache-Control: public"];
    check(&HEAD, &lines, &lines);
}

#[test]
fn who_asked_for_an_instance_is_told_which_one_answered() {
    let routed = Case { routed: Some("pod-1"), ..GET };
    let ours = "X-Stepflow-Routed-Instance: pod-1";
    let (ok, length) = ("HTTP/1.1 200 OK", "Content-Length: 5");
    check(&routed, &[ok, length], &[ok, length, ours]);
    check(&routed, &[ok, "x-stepflow-ROUTED-instance: other", length], &[ok, length, ours]);
    check(&routed, &["HTTP/1.1 503 No", length], &["HTTP/1.1 503 No", length, ours]);
    check(&routed, &["HTTP/1.1 103 Early", "Link: x"], &["HTTP/1.1 103 Early", "Link: x"]);
    check(
        &Case { closes: true, ..routed },
        &["HTTP/1.1 204 No"],
        &["HTTP/1.1 204 No", ours, "Connection: close"],
    );
}

#[test]
fn a_tunnel_names_its_protocol_and_nothing_of_http() {
    check(
        &UPGRADE,
        &[
            "HTTP/1.1 101 Switching Protocols",
            "CONNECTION: Upgrade, x-hop",
            "upgrade: WebSocket",
            "Sec-WebSocket-Accept: x",
            "X-Hop: 1",
            "Content-Length: 0",
        ],
        &[
            "HTTP/1.1 101 Switching Protocols",
            "upgrade: WebSocket",
            "Sec-WebSocket-Accept: x",
            "Connection: upgrade",
        ],
    );
    // It is the one response that its request gets, so it says who gave it.
    check(
        &Case { routed: Some("pod-1"), ..UPGRADE },
        &["HTTP/1.1 101 X", "Upgrade: a", "X-Stepflow-Routed-Instance: other"],
        &[
            "HTTP/1.1 101 X",
            "Upgrade: a",
            "X-Stepflow-Routed-Instance: pod-1",
            "Connection: upgrade",
        ],
    );
    // Even while the process is on its way out: the tunnel has no end to announce.
    check(
        &Case { closes: true, ..UPGRADE },
        &["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket"],
        &["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade"],
    );
}
