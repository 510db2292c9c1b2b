//! Connections to backends: used again while that is safe, replaced when it is not, and no request
//! delivered twice that must not be.

use std::thread;

use crate::support::{Backend, Balancer, End, show, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

/// One worker, so that every request finds the same pool.
fn single(backends: &[&Backend]) -> Balancer {
    Balancer::before(backends).with("workers", "1").start()
}

fn idle(balancer: &Balancer) -> u64 {
    balancer.metrics().sum("stepflow_lb_upstream_idle", &[])
}

#[test]
fn one_connection_serves_many_requests_of_many_clients() {
    let backend = Backend::fine();
    let balancer = single(&[&backend]);
    for _ in 0..10 {
        assert_eq!(balancer.get("/").text(), "ok");
        assert_eq!(balancer.ask(POST).text(), "ok");
    }
    assert_eq!(backend.connections().len(), 1);
    assert_eq!(balancer.metrics().sum("stepflow_lb_upstream_reuses_total", &[]), 19);
}

#[test]
fn an_idle_connection_is_closed_after_its_limit() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("upstream_idle_timeout", "200ms").start();
    let mut client = balancer.connect();
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("ok");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(peer.until_gone().0, b"");
    wait_until("no connection is idle", || idle(&balancer) == 0);
    client.send(GET);
    let mut next = backend.next();
    assert_ne!(next.connection, peer.connection);
    next.answer("ok");
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn no_more_connections_stay_idle_than_allowed() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend])
        .with("workers", "1")
        .with("idle_connections_per_backend_max", "2")
        .start();
    let mut clients: Vec<_> = (0..5).map(|_| balancer.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(GET));
    let mut peers: Vec<_> = (0..5).map(|_| backend.next()).collect();
    peers.iter_mut().for_each(|peer| peer.answer("ok"));
    clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "ok"));
    wait_until("three connections are closed", || idle(&balancer) == 2);
}

#[test]
fn a_connection_that_the_backend_closes_is_not_used_again() {
    for fields in ["Connection: close\r\n", "Connection: x, Close\r\n"] {
        let backend = Backend::played();
        let balancer = single(&[&backend]);
        let mut client = balancer.connect();
        client.send(GET);
        let mut peer = backend.next();
        peer.send(format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"));
        let response = client.response();
        assert_eq!(response.text(), "ok");
        // That is between the balancer and its backend.
        assert!(!response.head.has("Connection"), "{response:?}");
        assert_eq!(peer.until_gone().0, b"");
        wait_until("no connection is idle", || idle(&balancer) == 0);
    }
}

#[test]
fn requests_do_not_fail_because_a_backend_closed_an_idle_connection() {
    for request in [GET, POST] {
        let backend = Backend::played();
        let balancer = single(&[&backend]);
        let mut client = balancer.connect();
        client.send(request);
        let mut peer = backend.next();
        peer.read_body();
        peer.answer("first");
        assert_eq!(client.response().text(), "first");
        peer.finish_sending();
        peer.wait_until_received();
        client.send(request);
        let mut next = backend.next();
        next.read_body();
        next.answer("second");
        assert_eq!(client.response().text(), "second");
        assert_eq!(backend.requests(), 2);
    }
}

#[test]
fn octets_on_an_idle_connection_never_reach_a_client() {
    let stray = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for late in [false, true] {
        let backend = Backend::played();
        let balancer = single(&[&backend]);
        let mut client = balancer.connect();
        client.send(GET);
        let mut peer = backend.next();
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        if late {
            peer.send(answer);
            assert_eq!(client.response().text(), "ok");
            peer.send(stray);
            peer.wait_until_received();
        } else {
            peer.send(format!("{answer}{stray}"));
            assert_eq!(client.response().text(), "ok");
        }
        client.send(GET);
        let mut next = backend.next();
        assert_ne!(next.connection, peer.connection);
        next.answer("clean");
        assert_eq!(client.response().text(), "clean");
        let poisoned = balancer.metrics().sum("stepflow_lb_upstream_poisoned_total", &[]);
        assert_eq!(poisoned, 1, "late: {late}");
    }
}

#[test]
fn a_body_that_a_backend_sends_where_none_can_be_never_reaches_a_client() {
    let backend = Backend::scripted(|peer| {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
    });
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    for _ in 0..3 {
        client.ask("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.get("/").text(), "poison");
    }
}

/// It answers the content of a `GET` as if that were a request, and takes its time.
#[test]
fn the_response_to_content_that_a_backend_takes_for_a_request_reaches_nobody() {
    let backend = Backend::played();
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{text}");
    for method in ["GET", "DELETE", "OPTIONS"] {
        let length = smuggled.len();
        client.send(format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{smuggled}"
        ));
        let mut peer = backend.next();
        assert_eq!(peer.read_body().0, smuggled.as_bytes());
        peer.send(answer("first!"));
        assert_eq!(client.response().text(), "first!");
        client.send(GET);
        // Nothing has come on the first connection yet that would give it away.
        let mut next = backend.next();
        assert_ne!(next.connection, peer.connection, "{method}");
        let _ = peer.try_send(answer("poison"));
        next.send(answer("clean!"));
        assert_eq!(client.response().text(), "clean!", "{method}");
    }
}

/// Makes one exchange whose connection is pooled, then a request on it that the backend reads and
/// does not answer.
fn dies_on_reuse(request: &str, reset: bool) -> (Backend, Balancer, crate::support::Client) {
    let backend = Backend::played();
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("first");
    assert_eq!(client.response().text(), "first");
    client.send(request);
    peer.next_request();
    peer.read_body();
    if reset {
        peer.reset();
    } else {
        peer.close();
    }
    (backend, balancer, client)
}

#[test]
fn an_idempotent_request_whose_reused_connection_dies_is_sent_once_more() {
    let requests = [
        GET,
        "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
        "DELETE / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
    ];
    for request in requests {
        for reset in [false, true] {
            let (backend, balancer, mut client) = dies_on_reuse(request, reset);
            let mut again = backend.next();
            let method = again.head.method();
            let body = again.read_body().0;
            assert!(request.as_bytes().ends_with(&body));
            again.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Second: yes\r\n\r\n");
            let response = client.response_to(&method);
            assert!(response.head.has("X-Second"));
            assert_eq!(balancer.metrics().sum("stepflow_lb_retries_total", &[]), 1);
            assert!(!backend.has_next());
        }
    }
}

#[test]
fn a_request_is_sent_once_more_and_no_more() {
    let (backend, _balancer, mut client) = dies_on_reuse(GET, false);
    backend.next().close();
    let response = client.response();
    assert_eq!((response.status(), response.label().as_str()), (502, "backend_closed"));
    assert!(!backend.has_next());
}

#[test]
fn a_post_is_never_delivered_twice() {
    for reset in [false, true] {
        let (backend, balancer, mut client) = dies_on_reuse(POST, reset);
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), (502, "backend_closed"));
        // The client's connection goes on.
        client.send(POST);
        let mut next = backend.next();
        next.read_body();
        next.answer("next");
        assert_eq!(client.response().text(), "next");
        let sent = String::from_utf8(backend.connections().concat()).unwrap();
        assert_eq!(sent.matches("POST / ").count(), 2, "{sent}");
        assert_eq!(balancer.metrics().sum("stepflow_lb_retries_total", &[]), 0);
    }
}

#[test]
fn a_request_on_a_fresh_connection_that_dies_is_not_sent_again() {
    let backend = Backend::played();
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    client.send(GET);
    backend.next().close();
    assert_eq!(client.response().label(), "backend_closed");
    assert!(!backend.has_next());
}

#[test]
fn nothing_is_sent_again_once_an_octet_of_the_response_has_come() {
    let backend = Backend::played();
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("first");
    assert_eq!(client.response().text(), "first");
    client.send(GET);
    peer.next_request();
    peer.send("H");
    peer.close();
    assert_eq!(client.response().status(), 502);
    assert!(!backend.has_next());
    assert_eq!(backend.requests(), 1);
}

#[test]
fn a_request_whose_body_came_later_is_not_sent_again() {
    let backend = Backend::played();
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("first");
    assert_eq!(client.response().text(), "first");
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
    assert_eq!(peer.next_request().method(), "PUT");
    assert_eq!(peer.take(2), b"ab");
    client.send("cd");
    assert_eq!(peer.take(2), b"cd");
    peer.close();
    assert_eq!(client.response().label(), "backend_closed");
    assert!(!backend.has_next());
}

#[test]
fn a_refused_connect_goes_to_the_next_backend() {
    let mut down = Backend::fine();
    let up = Backend::saying("up");
    // No check notices in time.
    let balancer = Balancer::before(&[&down, &up]).with("health_check_interval", "1h").start();
    down.refuse();
    for request in [GET, POST] {
        for _ in 0..10 {
            let mut client = balancer.connect();
            assert_eq!(client.ask(request).text(), "up");
        }
    }
}

#[test]
fn a_post_with_a_body_still_to_come_also_goes_to_the_next_backend() {
    let mut down = Backend::fine();
    let up = Backend::scripted(|peer| {
        let (body, _) = peer.read_body();
        peer.answer(body);
    });
    let balancer = Balancer::before(&[&down, &up])
        .with("health_check_interval", "1h")
        .with("algorithm", "round_robin")
        .start();
    down.refuse();
    for _ in 0..10 {
        let mut client = balancer.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
        client.send("cd");
        assert_eq!(client.response().text(), "abcd");
    }
}

#[test]
fn when_every_backend_refuses_the_answer_is_502_and_the_client_may_go_on() {
    let (mut one, mut two) = (Backend::fine(), Backend::fine());
    let balancer = Balancer::before(&[&one, &two])
        .with("health_check_interval", "1h")
        .with("max_failures", "1000")
        .start();
    one.refuse();
    two.refuse();
    let mut client = balancer.connect();
    let response = client.get("/");
    assert_eq!((response.status(), response.label().as_str()), (502, "connect_failed"));
    assert!(!response.head.has("Connection"), "{response:?}");
    one.listen();
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn a_post_whose_body_comes_late_costs_no_connection() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 50;
    let backend = Backend::scripted(|peer| {
        let (body, _) = peer.read_body();
        peer.answer(body);
    });
    let balancer = single(&[&backend]);
    // Enough clients that a worker finds the end of a body and its answer in one turn.
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = balancer.connect();
                for n in 0..REQUESTS {
                    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc");
                    client.send("def");
                    let response = client.response();
                    assert_eq!(response.text(), "abcdef");
                    assert!(!response.head.has("Connection"), "request {n}: {response:?}");
                }
            });
        }
    });
    assert_eq!(backend.requests(), CLIENTS * REQUESTS);
    let connections = backend.connections().len();
    assert!(connections <= CLIENTS, "{connections} connections for {CLIENTS} clients");
}

#[test]
fn a_backend_that_leaves_while_idle_takes_its_connections_with_it() {
    let backend = Backend::played().healthy_as("first");
    let balancer = single(&[&backend]);
    let mut client = balancer.connect();
    client.send(GET);
    let mut peer = backend.next();
    peer.answer("ok");
    assert_eq!(client.response().text(), "ok");
    // Another process at the same address is another backend.
    backend.set_health(crate::support::Health::Named("restarted".to_owned()));
    let (rest, end) = peer.until_gone();
    assert!(rest.is_empty(), "{}", show(&rest));
    assert_eq!(end, End::Closed);
}
