//! Bodies in both directions: every framing, any size, at whatever pace.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Balancer, Client, End, Peer,
    message::{Framing, chunk, chunked},
    noise, show, try_in_time,
};

const MIB: usize = 1024 * 1024;

/// How long the balancer goes on to take what a client sends that has its last answer.
const LINGER: Duration = Duration::from_secs(1);

/// How long a response head waits for its small body.
const COALESCE_WAIT: Duration = Duration::from_millis(50);

#[test]
fn an_early_refusal_reaches_a_client_that_is_still_uploading_its_last_request() {
    for version in ["1.0", "1.1"] {
        let mut backend = Backend::fine();
        // However long this takes, the backend is tried each time.
        let balancer = Balancer::before(&[&backend])
            .with("health_check_interval", "1h")
            .with("max_failures", "1000")
            .start();
        backend.refuse();
        let request = format!(
            "POST / HTTP/{version}\r\nHost: a\r\nConnection: close\r\nContent-Length: 30009\r\n\r\nthe first"
        );
        let status = try_in_time("three pieces are sent behind the answer", || {
            let began = Instant::now();
            let mut client = balancer.connect();
            client.send(&request);
            // What arrives behind the answer must not reset it away before it is read.
            client.wait_until_something_arrives();
            for _ in 0..3 {
                let mut is_broken = client.try_send([b'x'; 10_000]).is_err();
                while is_broken || !client.is_received() {
                    if began.elapsed() >= LINGER {
                        return None;
                    }
                    assert!(!is_broken, "HTTP/{version}: the balancer broke the connection");
                    thread::yield_now();
                    is_broken = client.stream().peer_addr().is_err();
                }
            }
            Some(client.response().head.status())
        });
        assert_eq!(status, 502, "HTTP/{version}");
    }
}

#[test]
fn a_request_body_arrives_verbatim_with_its_chunks_extensions_and_trailers() {
    let body = "3;name=value;q=\"a;b\"\r\nabc\r\n00a\r\n0123456789\r\n0;last\r\nX-Sum: 1\r\n\
                X-Sum: 2\r\n\r\n";
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = balancer.connect();
    assert_eq!(client.ask(format!("{head}{body}")).status(), 200);
    // And once more in pieces that respect nothing.
    client.send(head);
    for octet in body.bytes() {
        client.send([octet]);
    }
    assert_eq!(client.response().status(), 200);
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    assert_eq!(seen.matches(body).count(), 2, "{seen}");
    assert_eq!(seen.matches("Trailer: X-Sum\r\n").count(), 2, "{seen}");
    assert_eq!(seen.matches("Transfer-Encoding: chunked\r\n").count(), 2, "{seen}");
}

#[test]
fn a_chunked_response_arrives_verbatim_with_extensions_and_trailers() {
    let head = "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = "3;x=y\r\nabc\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n";
    let backend = Backend::answering(format!("{head}{body}"));
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&client.head().without_date()), head);
        assert_eq!(String::from_utf8_lossy(&client.take(body.len())), body);
    }
    assert_eq!(backend.connections().len(), 1);
}

#[test]
fn an_http10_client_gets_chunked_content_without_the_chunks() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\
         X-Trailer: 1\r\n\r\n",
    );
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let response = client.ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(response.text(), "abcde");
    assert!(!response.head.has("Transfer-Encoding"));
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
}

#[test]
fn a_close_delimited_response_is_chunked_for_11_and_close_delimited_for_10() {
    let backend = Backend::scripted(|peer| {
        peer.send("HTTP/1.0 200 OK\r\nX-Old: 1\r\n\r\nsome ");
        peer.send("content");
        peer.close();
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for _ in 0..2 {
        let response = client.get("/");
        assert_eq!(response.text(), "some content");
        assert_eq!(response.head.field("Transfer-Encoding").as_deref(), Some("chunked"));
        assert!(!response.head.has("Connection"), "{response:?}");
    }
    let mut old = balancer.connect();
    let response = old.ask("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(response.text(), "some content");
    assert_eq!(response.head.framing(), None);
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
}

#[test]
fn an_http10_backend_may_keep_its_connection() {
    let backend = Backend::answering(
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
    );
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for _ in 0..3 {
        let response = client.get("/");
        assert!(response.head.start().starts_with("HTTP/1.1 "), "{response:?}");
        assert!(!response.head.has("Connection"), "{response:?}");
    }
    assert_eq!(backend.connections().len(), 1);
}

#[test]
fn what_has_no_body_has_none_whatever_its_fields_say() {
    let cases = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", Some("1000")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n\r\n", Some("7")),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: x\r\n\r\n",
            Some("1000"),
        ),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 1000\r\n\r\n", None),
        ("DELETE", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
    ];
    for (method, answer, length) in cases {
        let backend = Backend::answering(answer);
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        // Twice on each side: nobody waits for a body that does not come.
        for _ in 0..2 {
            let response = client.ask(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(response.head.field("Content-Length").as_deref(), length, "{answer}");
            assert!(!response.head.has("Transfer-Encoding"), "{response:?}");
            assert!(!response.head.has("Connection"), "{response:?}");
        }
        assert_eq!(backend.connections().len(), 1, "{method} {answer}");
    }
}

/// Sends noise up and gets the same noise down, framed as given.
fn round_trip(size: usize, framing: Framing) {
    let content = noise(size);
    let (field, octets) = match framing {
        Framing::Length(_) => (format!("Content-Length: {size}\r\n"), content.clone()),
        _ => ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&content, 40_000)),
    };
    let backend = Backend::scripted({
        let (content, field, octets) = (content.clone(), field.clone(), octets.clone());
        move |peer| {
            let is_same = peer.read_body().0 == content;
            peer.send(format!("HTTP/1.1 200 OK\r\n{field}X-Same: {is_same}\r\n\r\n"));
            peer.send(&octets);
        }
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n"));
    for piece in octets.chunks(100_000) {
        client.send(piece);
    }
    let response = client.response();
    assert_eq!(response.head.field("X-Same").as_deref(), Some("true"), "{:?}", response.head);
    assert!(response.body == content, "{} octets came back, not the same", response.body.len());
    assert_eq!(client.get("/again").status(), 200);
}

#[test]
fn a_megabyte_goes_both_ways_by_its_length() {
    round_trip(MIB, Framing::Length(MIB));
}

#[test]
fn a_megabyte_goes_both_ways_in_chunks() {
    round_trip(MIB, Framing::Chunked);
}

#[test]
fn twenty_megabytes_go_both_ways_at_once_past_a_client_that_reads_late() {
    const SIZE: usize = 20 * MIB;
    let backend = Backend::scripted(|peer| {
        // The response begins before the request has ended, and both are long.
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        let mut sending = peer.stream().try_clone().unwrap();
        let answering = thread::spawn(move || sending.write_all(&noise(SIZE)[..SIZE - 1]).unwrap());
        let is_same = peer.read_body().0 == noise(SIZE);
        answering.join().unwrap();
        // The last octet tells whether the request came as it was sent.
        peer.send(&noise(SIZE)[SIZE - usize::from(is_same)..]);
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let mut sending = client.stream().try_clone().unwrap();
    let uploading = thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
        sending.write_all(head.as_bytes()).unwrap();
        sending.write_all(&noise(SIZE)).unwrap();
    });
    // Both directions are full before anything is read.
    let response = client.response();
    uploading.join().unwrap();
    assert!(response.body == noise(SIZE), "the response's body differs");
}

#[test]
fn one_slow_reader_does_not_hold_up_another() {
    const SIZE: usize = 20 * MIB;
    let backend = Backend::scripted(|peer| {
        if peer.head.target() == "/large" {
            let mut answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
            answer.extend_from_slice(&noise(SIZE));
            peer.send(answer);
        } else {
            peer.answer("small");
        }
    });
    // One worker, so that both are served by the same.
    let balancer = Balancer::before(&[&backend]).with("workers", "1").start();
    let mut slow = balancer.connect();
    slow.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = slow.head();
    for _ in 0..20 {
        assert_eq!(balancer.get("/small").text(), "small");
    }
    let (body, _) = slow.body(head.framing().unwrap());
    assert!(body == noise(SIZE), "the response's body differs");
}

/// Answers in two pieces, which the balancer may or may not read together. Gives what the client
/// gets at once, unless the body was late.
fn in_two_pieces(client: &mut Client, peer: &mut Peer, first: &str, second: &str) -> Option<()> {
    let began = Instant::now();
    peer.send(first);
    peer.send(second);
    let piece = client.take_some();
    if piece.ends_with(b"\r\n\r\nhello") {
        return Some(());
    }
    assert!(began.elapsed() >= COALESCE_WAIT, "{}", show(&piece));
    // The head has gone alone.
    while !client.take_some().ends_with(b"o") {}
    None
}

#[test]
fn a_head_and_its_small_body_reach_the_client_in_one_piece() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    // On a connection of its own each time, and on one that is there; and then the same when the
    // body comes in two pieces itself.
    for _ in 0..2 {
        try_in_time("a body follows its head", || {
            client.send(GET);
            let mut peer = backend.next();
            let said = in_two_pieces(&mut client, &mut peer, HEAD, "hello");
            peer.close();
            said
        });
    }
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("ready");
    assert_eq!(client.response().text(), "ready");
    for (first, second) in [(HEAD.to_owned(), "hello"), (format!("{HEAD}he"), "llo")] {
        try_in_time("a body follows its head", || {
            client.send(GET);
            peer.next_request();
            in_two_pieces(&mut client, &mut peer, &first, second)
        });
    }
}

#[test]
fn a_head_does_not_wait_for_a_late_body() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    peer.send("hel");
    assert_eq!(client.take(3), b"hel");
    peer.send("lo");
    assert_eq!(client.take(2), b"lo");
}

#[test]
fn a_chunked_response_is_passed_on_chunk_by_chunk_whatever_its_type() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    for step in 0..20 {
        peer.send(chunk(format!("step {step}")));
        assert_eq!(client.chunk(), format!("step {step}").as_bytes());
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
}

#[test]
fn a_request_body_is_passed_on_as_it_arrives() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut peer = backend.next();
    for step in 0..20 {
        client.send(chunk(format!("step {step}")));
        assert_eq!(peer.chunk(), format!("step {step}").as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(peer.take(5), b"0\r\n\r\n");
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn a_client_that_leaves_inside_its_body_takes_the_backend_connection_with_it() {
    for reset in [false, true] {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
        let mut peer = backend.next();
        assert_eq!(peer.take(5), b"12345");
        if reset {
            client.reset();
        } else {
            client.finish_sending();
            assert_eq!(client.expect_end(), End::Closed);
        }
        peer.until_gone();
        balancer.wait_until_quiet();
        balancer.wait_for_failures("request_truncated", 1);
    }
}
