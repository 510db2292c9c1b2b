//! 1xx responses, and responses that come before the request has ended.

use crate::support::{Backend, Balancer, End};

const EXPECTING: &str =
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[test]
fn a_backend_s_100_reaches_the_client_before_it_sends_its_body() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(EXPECTING);
    let mut peer = backend.next();
    assert_eq!(peer.head.field("Expect").as_deref(), Some("100-continue"));
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().octets, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert_eq!(peer.read_body().0, b"hello");
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
    // Both connections live on.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.next_request();
    peer.answer("again");
    assert_eq!(client.response().text(), "again");
}

#[test]
fn a_client_that_waits_for_100_cannot_hide_that_from_the_backend() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Expect, X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\
         Expect: 100-continue\r\n\r\n",
    );
    let mut peer = backend.next();
    assert_eq!(peer.head.field("Expect").as_deref(), Some("100-continue"));
    assert!(!peer.head.has("X-Hop"));
    peer.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().octets, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hi");
    assert_eq!(peer.read_body().0, b"hi");
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn a_backend_may_refuse_a_body_before_it_is_sent() {
    for (status, phrase) in [(417, "Expectation Failed"), (413, "Content Too Large")] {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send(EXPECTING);
        let mut peer = backend.next();
        peer.send(format!("HTTP/1.1 {status} {phrase}\r\nContent-Length: 2\r\n\r\nno"));
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (status, "no"));
        // Nobody knows whether the body will still come, so neither connection is used again.
        assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
        assert_eq!(client.expect_end(), End::Closed);
        peer.until_gone();
    }
}

#[test]
fn a_client_that_does_not_wait_for_100_is_served() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(EXPECTING);
    client.send("hello");
    let mut peer = backend.next();
    assert_eq!(peer.read_body().0, b"hello");
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn an_http10_expectation_is_not_passed_on() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.0\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nhi");
    let mut peer = backend.next();
    assert!(!peer.head.has("Expect"));
    assert_eq!(peer.read_body().0, b"hi");
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn early_hints_are_relayed_to_11_and_dropped_for_10() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n";
    let backend = Backend::answering(format!(
        "{hints}HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    ));
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().octets, hints.as_bytes());
    assert_eq!(client.head().status(), 102);
    assert_eq!(client.response().text(), "ok");
    let mut old = balancer.connect();
    assert_eq!(old.ask("GET / HTTP/1.0\r\n\r\n").text(), "ok");
}

#[test]
fn hints_are_passed_on_before_the_final_response_is_there() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    for n in 0..5 {
        peer.send(format!("HTTP/1.1 103 Early Hints\r\nX-N: {n}\r\n\r\n"));
        assert_eq!(client.head().field("X-N"), Some(n.to_string()));
    }
    peer.answer("ok");
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn endless_interim_responses_become_502() {
    let backend = Backend::scripted(|peer| {
        while peer.try_send("HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {}
        peer.close();
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut interims = 0;
    let last = loop {
        match client.head() {
            head if head.status() == 103 => interims += 1,
            head => break head,
        }
    };
    assert_eq!((interims, last.status()), (32, 502));
}

#[test]
fn a_response_may_begin_and_end_before_the_request_does() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    let mut peer = backend.next();
    assert_eq!(peer.chunk(), b"abc");
    peer.answer("early");
    assert_eq!(client.response().text(), "early");
    client.send("3\r\ndef\r\n");
    assert_eq!(client.expect_end(), End::Closed);
    peer.until_gone();
}

#[test]
fn a_client_whose_upload_is_refused_early_can_read_the_refusal() {
    let backend = Backend::scripted(|peer| {
        peer.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large");
        peer.close();
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 150000\r\n\r\n");
    // It sends for as long as anybody takes it, as most clients do, and reads only then.
    for _ in 0..15 {
        if client.try_send([b'x'; 10_000]).is_err() {
            break;
        }
    }
    let response = client.response();
    assert_eq!((response.status(), response.text().as_str()), (413, "too large"));
}

#[test]
fn a_response_while_the_request_is_still_being_sent_announces_the_end() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    let mut peer = backend.next();
    assert_eq!(peer.take(5), b"12345");
    peer.answer("early");
    // RFC 9112 §9.6: who will close says so in the last response.
    let response = client.response();
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    client.expect_end();
}
