//! The order of exchanges on one client connection, and how it ends.

use crate::support::{Backend, Balancer, End};

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::scripted(|peer| {
        let target = peer.head.target();
        peer.read_body();
        peer.answer(target);
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let mut requests = String::new();
    for n in 0..50 {
        requests += &match n % 3 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
            1 => format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"),
            _ => format!(
                "PUT /{n} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                 2\r\nab\r\n0\r\n\r\n"
            ),
        };
    }
    client.send(requests);
    for n in 0..50 {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
    assert_eq!(client.get("/last").text(), "/last");
}

#[test]
fn a_request_that_comes_behind_a_body_in_one_segment_is_served_next() {
    let backend = Backend::scripted(|peer| {
        let (body, _) = peer.read_body();
        peer.answer(body);
    });
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234");
    backend.wait_for_requests(1);
    client.send("56789POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET / HT");
    assert_eq!(client.response().text(), "0123456789");
    assert_eq!(client.response().text(), "abc");
    client.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "");
}

#[test]
fn a_half_closed_client_is_served() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    client.finish_sending();
    let mut peer = backend.next();
    assert_eq!(peer.read_body().0, b"hi");
    peer.answer("served");
    let response = client.response();
    assert_eq!(response.text(), "served");
    assert_eq!(client.expect_end(), End::Closed);
}

#[test]
fn every_pipelined_request_of_a_half_closed_client_is_answered() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for n in 0..3 {
        client.send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    client.finish_sending();
    let mut peer = backend.next();
    // Time enough to notice that the client has closed its side.
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    peer.send("0");
    assert_eq!(client.take(1), b"0");
    for n in ["1", "2"] {
        assert_eq!(peer.next_request().target(), format!("/{n}"));
        peer.answer(n);
        assert_eq!(client.response().text(), n);
    }
    assert_eq!(client.expect_end(), End::Closed);
}

#[test]
fn a_client_that_leaves_during_a_plain_request_costs_nobody_else_anything() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    client.reset();
    // A broken connection is noticed while the backend still thinks.
    peer.until_gone();
    balancer.wait_until_quiet();
    let metrics = balancer.metrics();
    assert_eq!(metrics.failures("client_gone"), 1);
    assert_eq!(metrics.sum("stepflow_lb_active_connections", &[]), 0);
}

#[test]
fn an_idle_client_connection_is_closed_after_its_timeout_without_a_word() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("keep_alive_timeout", "200ms").start();
    let mut client = balancer.connect();
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(client.expect_end(), End::Closed);
}
