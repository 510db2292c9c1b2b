//! What has two readings, or none, is refused: towards clients before a backend hears of it, from
//! backends before a client does.

use crate::support::{Backend, Balancer, Client, End, Peer, Process, process, show};

/// Sends each request on a connection of its own; the answer must have this status and label, close
/// the connection, and come without the backend having seen an octet.
fn refused(cases: &[(&[u8], u16, &str)]) {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for (request, status, label) in cases {
        let mut client = balancer.connect();
        client.send(request);
        let response = client.response();
        let got = (response.status(), response.label());
        assert_eq!(got, (*status, (*label).to_owned()), "{}", show(request));
        assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
        assert_eq!(client.expect_end(), End::Closed, "{}", show(request));
        backend.assert_untouched();
    }
}

#[test]
fn a_start_line_with_a_mistake_is_refused() {
    refused(&[
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET / HTTP/1.1x\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET /\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET\r\n\r\n", 400, "head_start_line"),
        (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_start_line"),
        (b"\x00\x01\x02", 400, "head_not_http"),
        (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_not_http"),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "head_version"),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "head_version"),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, "head_version"),
    ]);
}

#[test]
fn a_target_that_fits_no_form_is_refused() {
    refused(&[
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"GET http://a?q HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "head_target"),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405, "connect_refused"),
    ]);
}

#[test]
fn a_field_line_with_a_mistake_is_refused() {
    refused(&[
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: c\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n folded\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\tA: b\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA\xe9: b\r\n\r\n", 400, "head_field_name"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x00c\r\n\r\n", 400, "head_field_value"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\x7f\r\n\r\n", 400, "head_field_value"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\rC: d\r\n\r\n", 400, "head_field_value"),
    ]);
}

#[test]
fn a_line_that_ends_in_a_bare_line_feed_is_refused() {
    refused(&[
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, "head_bare_lf"),
        (b"GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n", 400, "head_bare_lf"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, "head_bare_lf"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\nX: Y\r\n\r\n", 400, "head_bare_lf"),
    ]);
}

#[test]
fn a_host_that_is_missing_repeated_or_ambiguous_is_refused() {
    refused(&[
        (b"GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
        (b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "host_missing"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "host_repeated"),
        (b"GET / HTTP/1.0\r\nHost: a\r\nhOST: b\r\n\r\n", 400, "host_repeated"),
        (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a:8x\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "host_invalid"),
        (b"GET / HTTP/1.1\r\nHost: a\xe9\r\n\r\n", 400, "host_invalid"),
    ]);
}

#[test]
fn a_length_with_two_readings_is_refused() {
    refused(&[
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400, "length_invalid"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nabc", 400, "length_invalid"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", 400, "length_invalid"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3 3\r\n\r\nabc", 400, "length_invalid"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabc", 400, "length_invalid"),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n",
            400,
            "length_invalid",
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            400,
            "length_repeated",
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400, "length_repeated"),
    ]);
}

#[test]
fn a_transfer_coding_other_than_one_chunked_is_refused() {
    let with = |fields: &str| {
        format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n").into_bytes()
    };
    let cases: Vec<(Vec<u8>, u16, &str)> = [
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400, "length_and_coding"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400, "length_and_coding"),
        ("Transfer-Encoding: gzip, chunked", 501, "coding_unknown"),
        ("Transfer-Encoding: identity", 501, "coding_unknown"),
        ("Transfer-Encoding: xchunked", 501, "coding_unknown"),
        ("Transfer-Encoding:", 501, "coding_unknown"),
        ("Transfer-Encoding: \u{b}chunked", 400, "head_field_value"),
        ("Transfer-Encoding: chunked, chunked", 400, "coding_not_last"),
        ("Transfer-Encoding: chunked, identity", 400, "coding_not_last"),
        ("Transfer-Encoding: chunked\r\ntransfer-encoding: chunked", 400, "coding_not_last"),
    ]
    .map(|(fields, status, label)| (with(fields), status, label))
    .into();
    let cases: Vec<_> = cases.iter().map(|(r, status, label)| (&r[..], *status, *label)).collect();
    refused(&cases);
    refused(&[(
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "coding_in_http10",
    )]);
}

#[test]
fn an_expectation_that_nobody_can_meet_is_refused() {
    refused(&[(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\nContent-Length: 1\r\n\r\n",
        417,
        "expectation_unknown",
    )]);
}

#[test]
fn other_protocols_are_told_so_at_once() {
    // A ClientHello, whose random octets may hold line feeds.
    let mut hello = b"\x16\x03\x01\x00\x41\x01\x00\x00\x3d\x03\x03".to_vec();
    hello.extend_from_slice(b"\x11\x22\n\x33\r\n\x44\r\n\r\n");
    hello.resize(70, 0x55);
    refused(&[
        (&hello, 400, "head_tls"),
        (b"\x16\x03\x01", 400, "head_tls"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "head_version"),
    ]);
}

#[test]
fn an_answer_is_json_for_clients_that_speak_it() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let response = balancer
        .ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nExpect: no\r\n\r\n");
    assert_eq!(response.status(), 417);
    assert_eq!(response.head.field("Content-Type").as_deref(), Some("application/json"));
    let json = response.json();
    assert_eq!(json["jsonrpc"], "2.0");
    assert!(json["id"].is_string(), "{json}");
    assert_eq!(json["error"]["code"], -32600);
    assert_eq!(json["error"]["data"]["label"], "expectation_unknown");
    assert!(json["error"]["data"]["reason"].is_string());
}

#[test]
fn octets_behind_a_refused_head_are_never_served() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    assert_eq!(client.response().status(), 400);
    client.expect_end();
    backend.assert_untouched();
}

#[test]
fn a_refused_client_that_goes_on_sending_still_reads_why() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n");
    for _ in 0..10 {
        client.send([b'x'; 10_000]);
    }
    assert_eq!(client.response().label(), "host_missing");
    assert_eq!(client.expect_end(), End::Closed);
    backend.assert_untouched();
}

/// Sends a chunked request whose body breaks its framing; the client hears 400 and the backend gets
/// neither the broken octets nor anything behind them.
#[test]
fn a_chunked_body_with_a_mistake_is_refused_and_not_passed_on() {
    let bodies: &[&[u8]] = &[
        b"g\r\n",
        b"-1\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b" 3\r\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc0\r\n\r\n",
        b"\r\n3\r\nabc\r\n0\r\n\r\n",
        b"11111111111111111\r\n",
        b"ffffffffffffffff1\r\n",
        b"3;a=\x00\r\nabc\r\n0\r\n\r\n",
        b"3;a=b\nabc\r\n0\r\n\r\n",
        b"0\r\nA b: c\r\n\r\n",
        b"0\r\nA: b\n\r\n",
    ];
    let backend = Backend::scripted(|peer| {
        // Whatever comes of it, there is no end of this body.
        peer.until_gone();
        peer.close();
    });
    let balancer = Balancer::start(&[&backend]);
    for body in bodies {
        let mut client = balancer.connect();
        client.send("POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(body);
        client.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = client.response();
        let got = (response.status(), response.label());
        assert_eq!(got, (400, "request_body".to_owned()), "{}", show(body));
        assert_eq!(client.expect_end(), End::Closed, "{}", show(body));
    }
    let seen = backend.connections().concat();
    assert!(!seen.windows(8).any(|w| w == b"smuggled"), "{}", show(&seen));
}

/// Has a backend answer with these octets. The client gets a whole 502 with this label, keeps its
/// connection, and the backend's is not used again.
fn bad_responses(cases: &[(&[u8], &str)]) {
    for (answer, label) in cases {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(answer);
        let response = client.response();
        let got = (response.status(), response.label());
        assert_eq!(got, (502, (*label).to_owned()), "{}", show(answer));
        peer.until_gone();
        continues_on_another_connection(&mut client, &backend, peer.connection);
        balancer.wait_for_failures(label, 1);
    }
}

fn continues_on_another_connection(client: &mut Client, backend: &Backend, used: usize) {
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut next = backend.next();
    assert_ne!(next.connection, used);
    next.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn a_response_without_a_single_length_becomes_502() {
    bad_responses(&[
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "response_framing",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
            "response_framing",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
            "response_framing",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab", "response_framing"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "response_framing"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "response_framing"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "response_framing"),
    ]);
}

#[test]
fn a_response_head_with_a_mistake_becomes_502() {
    bad_responses(&[
        (b"garbage\r\n\r\n", "response_head"),
        (b"\x00\x01\x02", "response_head"),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "response_head"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "response_head"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "response_head"),
        (b"HTTP/2 200 OK\r\n\r\n", "response_head"),
        (b"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "response_head"),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "response_head"),
        (b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n", "response_head"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n", "response_head"),
    ]);
}

#[test]
fn a_response_head_over_its_limits_becomes_502() {
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Field: x\r\n".repeat(101));
    bad_responses(&[
        (long.as_bytes(), "response_head"),
        (&long.as_bytes()[..69_000], "response_head"),
        (many.as_bytes(), "response_head"),
    ]);
}

#[test]
fn a_chunk_that_is_broken_in_the_first_octets_becomes_502() {
    for chunk in ["xyz\r\nabc", "3\r\nabcd\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n"] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}");
        bad_responses(&[(answer.as_bytes(), "response_body")]);
    }
}

#[test]
fn a_response_that_breaks_later_ends_without_its_last_chunk() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"abc");
    peer.send("nonsense\r\n0\r\n\r\n");
    client.expect_end();
    peer.until_gone();
    balancer.wait_for_failures("response_body", 1);
}

#[test]
fn a_response_that_is_cut_stays_recognisably_cut() {
    let cut = [
        ("Content-Length: 10\r\n", "12345"),
        ("Transfer-Encoding: chunked\r\n", "5\r\n12345\r\n"),
        ("Transfer-Encoding: chunked\r\n", "a\r\n12345"),
        ("Transfer-Encoding: chunked\r\n", "5\r\n12345\r\n0\r\n"),
    ];
    for (framing, body) in cut {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n"));
        // The head goes alone when its body is late.
        assert_eq!(client.head().status(), 200);
        peer.send(body);
        let got = client.take(body.len());
        assert_eq!(got, body.as_bytes());
        peer.close();
        client.expect_end();
        balancer.wait_for_failures("response_truncated", 1);
    }
}

#[test]
fn a_response_cut_before_any_of_it_was_passed_on_becomes_502() {
    for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345", "HTTP/1.1 200 OK\r\nX: "] {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(answer);
        peer.close();
        assert_eq!(client.response().status(), 502, "{answer}");
        continues_on_another_connection(&mut client, &backend, peer.connection);
    }
}

#[test]
fn a_close_delimited_response_that_ends_in_a_reset_is_not_passed_off_as_whole() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\n\r\nhalf of");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"half of");
    peer.reset();
    // RFC 9112 §8: complete unless an error was indicated by the underlying connection.
    client.expect_end();
}

#[test]
fn a_client_that_sees_no_end_but_the_connections_sees_a_cut_response_end_in_a_reset() {
    // What the backend says, what the client gets of it, and how the backend goes on.
    let cut: [(&str, &str, fn(&mut Peer)); 4] = [
        ("\r\nhello", "hello", |peer| peer.reset()),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello", |peer| peer.close()),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello", |peer| peer.send("nonsense")),
        (
            "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
             9\r\ndata: a\n\n\r\n",
            "data: a\n\n",
            |peer| peer.close(),
        ),
    ];
    for (says, gets, goes_on) in cut {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.0\r\n\r\n");
        let mut peer = backend.next();
        peer.send(format!("HTTP/1.1 200 OK\r\n{says}"));
        assert_eq!(client.head().framing(), None);
        assert_eq!(String::from_utf8_lossy(&client.take(gets.len())), gets);
        goes_on(&mut peer);
        assert_eq!(client.expect_end(), End::Reset, "{says:?}");
    }
}

#[test]
fn a_client_that_sees_no_end_but_the_connections_sees_ours_as_a_reset() {
    let backend = Backend::played();
    let process = Process::start(process::before(process::command(), &[&backend]));
    process.wait_for_healthy(1);
    let mut client = process.connect();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\n\r\nhalf of");
    client.take_through("half of");
    process.signal("KILL");
    assert_eq!(client.expect_end(), End::Reset);
}
