//! Trailer sections in both directions: what goes on, what does not, and how much there may be.

use crate::support::{Backend, Balancer, End, show};

const TRAILERS: &str = "X-Sum: 1\r\nContent-Length: 5\r\nstepflow-instance-id: pod-2\r\n\
                        Grpc-Status: 0\r\nHOST: evil\r\nX-Forwarded-For: 10.0.0.1\r\n\
                        Authorization: Basic eA==\r\nX-Sum: 2\r\n";
const TRAILERS_THAT_GO_ON: &str = "X-Sum: 1\r\nGrpc-Status: 0\r\nX-Sum: 2\r\n";
const TRAILERS_DROPPED: u64 = 5;

#[test]
fn what_must_not_be_a_trailer_does_not_reach_the_backend() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "3;x=y\r\nabc\r\n0\r\n";
    let mut client = balancer.connect();
    // With the head, behind it, and in pieces that respect nothing; each time another follows.
    assert_eq!(client.ask(format!("{head}{body}{TRAILERS}\r\n")).status(), 200);
    client.send(head);
    client.send(format!("{body}{TRAILERS}\r\n{head}"));
    assert_eq!(client.response().status(), 200);
    for octet in format!("{body}{TRAILERS}\r\n").bytes() {
        client.send([octet]);
    }
    assert_eq!(client.response().status(), 200);
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    let want = format!("{body}{TRAILERS_THAT_GO_ON}\r\n");
    assert_eq!(seen.matches(&want).count(), 3, "{seen}");
    let dropped = balancer.metrics().sum("stepflow_lb_trailer_fields_dropped_total", &[]);
    assert_eq!(dropped, 3 * TRAILERS_DROPPED);
}

#[test]
fn what_must_not_be_a_trailer_does_not_reach_the_client() {
    for (content_type, tail) in
        [("text/plain", false), ("text/plain", true), ("text/event-stream", true)]
    {
        let backend = Backend::scripted(move |peer| {
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n\
                 Transfer-Encoding: chunked\r\n\r\n"
            ));
            let body = format!("6\r\nabc\n\n!\r\n0\r\n{TRAILERS}Set-Cookie: a=b\r\n\r\n");
            match tail {
                true => body.bytes().for_each(|octet| peer.send([octet])),
                false => peer.send(body),
            }
        });
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        for _ in 0..2 {
            let response = client.get("/");
            assert_eq!(response.text(), "abc\n\n!");
            let got = String::from_utf8_lossy(&response.trailers).into_owned();
            assert_eq!(got, TRAILERS_THAT_GO_ON, "{content_type} {tail}");
        }
        assert_eq!(backend.connections().len(), 1);
        let dropped = balancer.metrics().sum("stepflow_lb_trailer_fields_dropped_total", &[]);
        assert_eq!(dropped, 2 * (TRAILERS_DROPPED + 1));
    }
}

#[test]
fn a_message_whose_connection_names_fields_hands_on_no_trailers() {
    let nominates = ["X-Sum", "close, x-other"];
    let does_not = ["close", "keep-alive", "TE", "Host, Upgrade"];
    let body = "1\r\nx\r\n0\r\nX-Sum: 1\r\nX-Y: 2\r\n\r\n";
    for (options, goes_on) in
        nominates.map(|options| (options, false)).into_iter().chain(does_not.map(|o| (o, true)))
    {
        let want = if goes_on { "X-Sum: 1\r\nX-Y: 2\r\n" } else { "" };
        let backend = Backend::answering(format!(
            "HTTP/1.1 200 OK\r\nConnection: {options}\r\nTransfer-Encoding: chunked\r\n\r\n{body}"
        ));
        let balancer = Balancer::start(&[&backend]);
        let response = balancer.ask(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nConnection: {options}\r\n\
             Transfer-Encoding: chunked\r\n\r\n{body}"
        ));
        assert_eq!(String::from_utf8_lossy(&response.trailers), want, "{options}");
        let seen = String::from_utf8(backend.connections().concat()).unwrap();
        assert!(seen.ends_with(&format!("\r\n\r\n1\r\nx\r\n0\r\n{want}\r\n")), "{options}: {seen}");
        let dropped = balancer.metrics().sum("stepflow_lb_trailer_fields_dropped_total", &[]);
        assert_eq!(dropped, if goes_on { 0 } else { 4 }, "{options}");
    }
}

#[test]
fn the_next_request_behind_dropped_trailers_is_read_from_its_first_octet() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let post = "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                1\r\nx\r\n0\r\nHost: evil\r\n\r\n";
    let get = "GET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    let input = format!("{post}{get}");
    // Cut wherever a read may end: inside the name, inside the line, before the empty line.
    for cut in (post.len() - 20..post.len() + 4).step_by(3) {
        let mut client = balancer.connect();
        client.send(&input[..cut]);
        client.send(&input[cut..]);
        assert_eq!(client.response().status(), 200, "{cut}");
        assert_eq!(client.response().status(), 200, "{cut}");
    }
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    assert_eq!(seen.matches("POST /a ").count(), seen.matches("GET /b ").count(), "{seen}");
    assert!(!seen.contains("evil"), "{seen}");
}

#[test]
fn chunk_extensions_and_trailers_have_limits_in_both_directions() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (extensions, trailers) =
        (Some((400, "chunk_extensions_too_long")), Some((431, "trailers_too_long")));
    let bodies = [
        ("1;1234\r\nx\r\n0\r\nA: 1\r\n\r\n", None),
        ("1;12345\r\nx\r\n0\r\nA: 1\r\n\r\n", extensions),
        ("1;12\r\nx\r\n1;345\r\nx\r\n0\r\n\r\n", extensions),
        ("1\r\nx\r\n0\r\nAb: 1\r\n\r\n", trailers),
        // What is dropped counts.
        ("1\r\nx\r\n0\r\nTe: 1\r\n\r\n", trailers),
        ("1\r\nx\r\n0\r\n\r\n", None),
    ];
    for (body, refusal) in bodies {
        let backend = Backend::answering(format!("{answer}{body}"));
        let balancer = Balancer::before(&[&backend])
            .with("chunk_extension_bytes_max", "4")
            .with("trailer_bytes_max", "6")
            .start();
        let response = balancer.get("/");
        let want = if refusal.is_none() { (200, "x") } else { (502, "response_body") };
        assert_eq!((response.status(), response.label().as_str()), want, "{body:?}");
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let Some((status, label)) = refusal else { continue };
        // With the head, and behind it: while it is uploaded the backend has the head already.
        let mut client = balancer.connect();
        let response = client.ask(format!("{head}{body}"));
        assert_eq!((response.status(), response.label().as_str()), (status, label), "{body:?}");
        assert_eq!(client.expect_end(), End::Closed);
        let mut client = balancer.connect();
        client.send(head);
        backend.wait_for_requests(2);
        client.send(body);
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), (status, label), "{body:?}");
        balancer.wait_for_failures(label, 2);
    }
}

#[test]
fn a_stream_whose_trailers_are_too_long_has_no_last_chunk() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("trailer_bytes_max", "99").start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
         Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
    );
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"data: a\n\n");
    // Only now: what comes with the head would still become a 502.
    peer.send(format!("0\r\nA: {}\r\n\r\n", "x".repeat(100)));
    let (rest, _) = client.rest();
    assert!(!rest.ends_with(b"\r\n\r\n"), "{}", show(&rest));
    balancer.wait_for_failures("response_body", 1);
}
