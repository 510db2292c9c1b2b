//! Requests that wait because every backend is full.

use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::{Backend, Balancer, Client, Health, Peer, try_in_time, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// An answer whose connection ends with it, so that the next request comes on another one.
const LAST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn get(target: impl std::fmt::Display) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
}

fn waiting(balancer: &Balancer) -> u64 {
    balancer.metrics().sum("stepflow_lb_queue_waiting", &[])
}

#[track_caller]
fn wait_for_waiting(balancer: &Balancer, n: u64) {
    wait_until(&format!("{n} requests wait"), || waiting(balancer) == n);
}

/// A backend that may run one request, which runs: its two ends come along.
fn filled(options: &[(&str, &str)]) -> (Backend, Balancer, Client, Peer) {
    let backend = Backend::played();
    let setup = Balancer::before(&[&backend]).with("requests_per_backend_max", "1");
    // By default nobody waits in vain for longer than the test has patience.
    let setup = setup.with("workers", "1").with("queue_timeout", "10m");
    let setup = options.iter().fold(setup, |setup, (key, value)| setup.with(key, value));
    let balancer = setup.start();
    let mut client = balancer.connect();
    client.send(get("/running"));
    let peer = backend.next();
    (backend, balancer, client, peer)
}

#[test]
fn requests_are_served_in_the_order_of_their_coming_over_all_workers() {
    for workers in ["1", "4"] {
        let (backend, balancer, mut running, mut peer) = filled(&[("workers", workers)]);
        let mut clients: Vec<_> = (0..12).map(|_| balancer.connect()).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(get(format!("/{n}")));
            wait_for_waiting(&balancer, n as u64 + 1);
        }
        assert!(!backend.has_next());
        peer.send(LAST);
        assert_eq!(running.response().status(), 200);
        for (n, client) in clients.iter_mut().enumerate() {
            let mut peer = backend.next();
            assert_eq!(peer.head.target(), format!("/{n}"), "{workers} workers");
            assert_eq!(waiting(&balancer), 11 - n as u64);
            peer.send(LAST);
            assert_eq!(client.response().status(), 200);
        }
        let metrics = balancer.metrics();
        assert_eq!(metrics.observations("stepflow_lb_queue_wait_ms"), 12);
    }
}

/// How long it takes until eight who wait on four workers are served one after the other.
fn eight_in_turn() -> Duration {
    let (backend, balancer, mut running, mut peer) = filled(&[("workers", "4")]);
    let mut clients: Vec<_> = (0..8).map(|_| balancer.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    wait_for_waiting(&balancer, 8);
    peer.send(LAST);
    assert_eq!(running.response().status(), 200);
    let began = Instant::now();
    for _ in 0..8 {
        let mut peer = backend.next();
        peer.send(LAST);
    }
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
    began.elapsed()
}

#[test]
fn a_place_that_another_worker_frees_is_taken_at_once() {
    // By ticks alone most of them would wait for up to 50 ms each. A machine that is busy with
    // other things is slow now and then, and not every time.
    try_in_time("eight are served within 100 ms", || {
        (eight_in_turn() < Duration::from_millis(100)).then_some(())
    });
}

#[test]
fn whoever_waits_too_long_is_answered_503_and_may_ask_again() {
    let (backend, balancer, mut running, mut peer) = filled(&[("queue_timeout", "200ms")]);
    let mut client = balancer.connect();
    let began = Instant::now();
    let response = client.ask(GET);
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!((response.status(), response.label().as_str()), (503, "queue_timeout"));
    assert_eq!(response.head.field("retry-after").as_deref(), Some("5"));
    let json = "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                Content-Length: 2\r\n\r\n{}";
    let response = client.ask(json);
    assert_eq!((response.status(), response.label().as_str()), (503, "queue_timeout"));
    // Stepflow tries these again.
    assert_eq!(response.json()["error"]["code"], -32300);
    balancer.wait_for_failures("queue_timeout", 2);
    assert_eq!(waiting(&balancer), 0);
    // The one that runs was not touched.
    peer.answer("done");
    assert_eq!(running.response().text(), "done");
    client.send(GET);
    peer.next_request();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
    assert!(!backend.has_next(), "what had waited too long was served");
}

#[test]
fn no_more_wait_than_queue_max_lets() {
    let (_backend, balancer, mut running, mut peer) = filled(&[("queue_max", "2")]);
    let mut clients = [(); 2].map(|()| balancer.connect());
    clients.iter_mut().for_each(|client| client.send(GET));
    wait_for_waiting(&balancer, 2);
    let response = balancer.get("/");
    assert_eq!((response.status(), response.label().as_str()), (503, "queue_full"));
    assert_eq!(response.head.field("retry-after").as_deref(), Some("5"));
    peer.answer("done");
    assert_eq!(running.response().text(), "done");
    drop(clients);
    let (_backend, balancer, _running, _peer) = filled(&[("queue_max", "0")]);
    assert_eq!(balancer.get("/").label(), "queue_full");
}

#[test]
fn a_client_that_leaves_gives_its_place_in_the_queue_up() {
    let long = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n";
    let part = "x".repeat(100_000);
    for (beginning, more) in [(GET, ""), (GET, GET), (long, &part)] {
        // Whether it is the first who waits, and whether it leaves with a reset.
        for (is_first, reset) in [(false, false), (false, true), (true, false), (true, true)] {
            let (backend, balancer, mut running, mut peer) = filled(&[("workers", "1")]);
            let [mut leaving, mut staying] = [(); 2].map(|()| balancer.connect());
            let order = if is_first { [true, false] } else { [false, true] };
            for (n, leaves) in (1..).zip(order) {
                match leaves {
                    true => leaving.send([beginning, more].concat()),
                    false => staying.send(get("/staying")),
                }
                wait_for_waiting(&balancer, n);
            }
            match reset {
                true => leaving.reset(),
                false => leaving.close(),
            }
            wait_for_waiting(&balancer, 1);
            balancer.wait_for_failures("client_gone", 1);
            peer.answer("done");
            assert_eq!(running.response().text(), "done");
            assert_eq!(peer.next_request().target(), "/staying");
            peer.answer("stayed");
            assert_eq!(staying.response().text(), "stayed");
            assert_eq!(backend.requests(), 1, "on its first connection");
        }
    }
}

#[test]
fn a_client_that_closes_its_sending_side_with_its_request_is_served() {
    let (_backend, balancer, mut running, mut peer) = filled(&[]);
    let mut client = balancer.connect();
    // What is held back leaves with the end, in one packet.
    SockRef::from(client.stream()).set_tcp_cork(true).unwrap();
    client.send(get("/half-closed"));
    client.finish_sending();
    wait_for_waiting(&balancer, 1);
    peer.answer("done");
    assert_eq!(running.response().text(), "done");
    assert_eq!(peer.next_request().target(), "/half-closed");
    peer.answer("served");
    assert_eq!(client.response().text(), "served");
}

#[test]
fn a_backend_that_comes_back_takes_those_who_wait() {
    let (full, sick) = (Backend::played(), Backend::played());
    sick.set_health(Health::Failing);
    let balancer = Balancer::before(&[&full, &sick])
        .with("workers", "1")
        .with("requests_per_backend_max", "2")
        .with("queue_timeout", "10m")
        .start_unready();
    balancer.wait_for_healthy(1);
    let mut running = [(); 2].map(|()| balancer.connect());
    running.iter_mut().for_each(|client| client.send(GET));
    let _peers = [(); 2].map(|()| full.next());
    let mut waiting = [(); 3].map(|()| balancer.connect());
    waiting.iter_mut().for_each(|client| client.send(GET));
    wait_for_waiting(&balancer, 3);
    sick.set_health(Health::Anonymous);
    let mut peers = [(); 2].map(|()| sick.next());
    wait_for_waiting(&balancer, 1);
    peers[0].answer("back");
    peers[0].next_request();
    peers[0].answer("back");
    peers[1].answer("back");
    waiting.iter_mut().for_each(|client| assert_eq!(client.response().text(), "back"));
}

#[test]
fn a_request_whose_backend_died_waits_for_another_that_is_full() {
    let (dying, other) = (Backend::played(), Backend::played());
    let balancer = Balancer::before(&[&dying, &other])
        .with("workers", "1")
        .with("requests_per_backend_max", "1")
        .with("queue_timeout", "10m")
        .start();
    let mut clients = [(); 2].map(|()| balancer.connect());
    clients.iter_mut().for_each(|client| client.send(GET));
    let (lost, mut busy) = (dying.next(), other.next());
    drop(dying);
    drop(lost);
    wait_for_waiting(&balancer, 1);
    busy.answer("one");
    // Never on a connection that may have died as well.
    other.next().answer("two");
    let mut texts = clients.map(|mut client| client.response().text());
    texts.sort();
    assert_eq!(texts, ["one", "two"]);
}
