//! Emptying a backend with the admin calls, as an operator or a preStop hook does it.

use std::thread;

use serde_json::Value;

use crate::support::{
    Backend, Balancer, Client, Health, Peer, Response, message::chunk, wait_until,
};

const STREAM_HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn admin(balancer: &Balancer) -> Client {
    Client::connect(balancer.admin_address.expect("admin calls are served"))
}

fn call(balancer: &Balancer, method: &str, path: &str) -> Response {
    admin(balancer).ask(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
}

/// The one backend of this name, as the admin port shows it.
fn shown(balancer: &Balancer, name: &str) -> Value {
    let response = call(balancer, "GET", &format!("/backends/{name}"));
    assert_eq!(response.status(), 200, "{response:?}");
    let backends = response.json()["backends"].clone();
    assert_eq!(backends.as_array().map(Vec::len), Some(1), "{backends}");
    backends[0].clone()
}

/// Opens an event stream, which must finish, whose backend, which must be `backend`, holds it open.
fn open_stream(balancer: &Balancer, backend: &Backend) -> (Client, Peer) {
    let mut client = balancer.connect();
    client.send(
        "POST /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
         Content-Length: 0\r\n\r\n",
    );
    let mut peer = backend.next();
    peer.send(STREAM_HEAD);
    peer.send(chunk("data: 1\n\n"));
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"data: 1\n\n");
    (client, peer)
}

#[test]
fn a_drained_backend_takes_no_new_work_and_keeps_its_streams_and_its_callbacks() {
    let (one, two) = (Backend::played().healthy_as("one"), Backend::saying("two"));
    two.set_health(Health::Failing);
    let balancer = Balancer::before(&[&one, &two]).with("max_failures", "1").start_unready();
    balancer.wait_for_healthy(1);
    let (mut stream, mut peer) = open_stream(&balancer, &one);
    two.set_health(Health::Named("two".to_owned()));
    balancer.wait_for_healthy(2);

    let answer = call(&balancer, "POST", "/backends/one/drain");
    assert_eq!(answer.status(), 202, "it is not empty: {answer:?}");
    let backend = shown(&balancer, "one");
    assert_eq!(backend["state"], "draining");
    assert_eq!(backend["drain_wanted_by"], "operator");
    assert_eq!((&backend["takes_new_work"], &backend["sessions"]), (&false.into(), &0.into()));
    assert_eq!((&backend["in_flight"], &backend["event_streams"]), (&1.into(), &1.into()));
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_backends", &[r#"state="draining""#]), 1);
    assert_eq!(metrics.sum("stepflow_lb_backend_pool_size", &[]), 1);

    // The answer to a drain means that every worker knows.
    for _ in 0..20 {
        assert_eq!(balancer.get("/").text(), "two");
    }
    // What runs there still finds its instance.
    let mut client = balancer.connect();
    client.send(
        "POST /cb HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\nContent-Length: 0\r\n\r\n",
    );
    let mut callback = one.next();
    callback.answer("called back");
    assert_eq!(client.response_to("POST").text(), "called back");
    peer.send(chunk("data: 2\n\n"));
    assert_eq!(stream.chunk(), b"data: 2\n\n");

    // Whoever waits is answered when the last stream ends.
    thread::scope(|scope| {
        let waiting = scope.spawn(|| call(&balancer, "POST", "/backends/one/drain?wait=60"));
        peer.send("0\r\n\r\n");
        assert_eq!(stream.chunk(), b"");
        let answer = waiting.join().expect("the call is answered");
        assert_eq!(answer.status(), 200, "{answer:?}");
        assert_eq!(answer.json()["backends"][0]["in_flight"], 0);
    });

    assert_eq!(call(&balancer, "POST", "/backends/one/undrain").status(), 200);
    assert_eq!(shown(&balancer, "one")["state"], "healthy");
    balancer.wait_for_healthy(2);
}

#[test]
fn a_wait_that_is_over_says_what_is_left() {
    let one = Backend::played().healthy_as("one");
    let balancer = Balancer::start(&[&one]);
    let _stream = open_stream(&balancer, &one);
    let answer = call(&balancer, "POST", "/backends/one/drain?wait=1s");
    assert_eq!(answer.status(), 202, "{answer:?}");
    assert_eq!(answer.json()["backends"][0]["event_streams"], 1);
}

#[test]
fn an_instance_is_drained_as_a_process_and_an_address_as_an_address() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    let address = one.address.to_string();
    for (name, want) in [("one".to_owned(), "healthy"), (address.clone(), "draining")] {
        one.set_health(Health::Named("one".to_owned()));
        wait_until("the first process answers", || shown(&balancer, &address)["instance"] == "one");
        assert_eq!(call(&balancer, "POST", &format!("/backends/{name}/drain")).status(), 200);
        assert_eq!(shown(&balancer, &address)["state"], "draining");
        // Another process takes the address.
        one.set_health(Health::Named("successor".to_owned()));
        wait_until("the successor answers", || {
            shown(&balancer, &address)["instance"] == "successor"
        });
        assert_eq!(shown(&balancer, &address)["state"], want, "drained as {name}");
        call(&balancer, "POST", &format!("/backends/{address}/undrain"));
    }
}

#[test]
fn with_everybody_drained_new_work_is_refused_and_health_says_so() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    assert_eq!(call(&balancer, "POST", "/backends/one/drain").status(), 200);
    assert_eq!(balancer.get("/").status(), 503);
    assert_eq!(balancer.get("/health").status(), 503);
    assert_eq!(call(&balancer, "POST", "/backends/one/undrain").status(), 200);
    assert_eq!(balancer.get("/").text(), "one");
}

#[test]
fn wrong_calls_are_told_what_is_right() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    let cases = [
        ("GET", "/", "404"),
        ("GET", "/metrics", "404"),
        ("GET", "/backends/nobody", "404"),
        ("POST", "/backends/nobody/drain", "404"),
        ("GET", "/backends/one/drain", "405"),
        ("POST", "/backends", "405"),
        ("POST", "/backends/one/drain?wait=for-ever", "400"),
    ];
    for (method, path, status) in cases {
        let answer = call(&balancer, method, path);
        assert_eq!(answer.status().to_string(), status, "{method} {path}");
        let error = answer.json()["error"].as_str().map(str::to_owned).unwrap_or_default();
        let accepted = ["/backends", "wait=SECONDS"].iter().any(|hint| error.contains(hint));
        assert!(accepted, "{method} {path}: {error:?}");
    }
    let page = "POST /backends/one/drain HTTP/1.1\r\nHost: a\r\nOrigin: http://evil.example\r\n\
                Content-Length: 0\r\n\r\n";
    assert_eq!(admin(&balancer).ask(page).status(), 403);
    assert_eq!(shown(&balancer, "one")["state"], "healthy");
}

#[test]
fn nothing_fails_while_every_backend_is_drained_and_restarted_in_turn() {
    let mut backends = ["a", "b", "c"].map(Backend::saying);
    let balancer = Balancer::start(&backends.each_ref());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let served = std::sync::atomic::AtomicU64::new(0);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    thread::scope(|scope| {
        for number in 0..8 {
            let (balancer, stop, served) = (&balancer, &stop, &served);
            scope.spawn(move || {
                let mut client = balancer.connect();
                while !stop.load(relaxed) {
                    let (method, body) = if number % 2 == 0 { ("GET", "") } else { ("POST", "x") };
                    client.send(format!(
                        "{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    let response = client.response_to(method);
                    assert_eq!(response.status(), 200, "{response:?}");
                    served.fetch_add(1, relaxed);
                }
            });
        }
        for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
            let before = served.load(relaxed);
            wait_until("traffic flows", || served.load(relaxed) > before + 200);
            let answer = call(&balancer, "POST", &format!("/backends/{name}/drain?wait=30"));
            assert_eq!(answer.status(), 200, "{answer:?}");
            backends[index].refuse();
            let before = served.load(relaxed);
            wait_until("traffic flows without it", || served.load(relaxed) > before + 200);
            backends[index].set_health(Health::Named(format!("{name}-2")));
            backends[index].listen();
            balancer.wait_for_healthy(3);
        }
        stop.store(true, relaxed);
    });
    assert_eq!(balancer.metrics().sum("stepflow_lb_failures_total", &[]), 0);
}
