//! The end of the process, as an operator and its clients see it.

use std::time::{Duration, Instant};

use stepflow_load_balancer::control::ExitReason;

use crate::support::{
    Backend, Balancer, End, Process,
    message::chunk,
    process::{before, command, run},
    try_in_time, wait_until,
};

const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
/// For a stream that must finish: nobody asks for the rest of an answer.
const ASK: &str = "POST /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
                   Content-Length: 0\r\n\r\n";

/// How long, from its beginning, a connection is waited for that has asked for nothing.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A process in front of this backend, ready.
fn process(backend: &Backend, options: &[(&str, &str)]) -> Process {
    let mut command = before(command(), &[backend]);
    command.envs(options.iter().copied());
    let process = Process::start(command);
    process.wait_for_healthy(1);
    process
}

/// Waits until readiness has turned, which is when the grace has begun on every worker.
fn wait_until_draining(process: &Process) {
    wait_until("the grace has begun", || {
        let metrics = process.metrics();
        metrics.sum("stepflow_lb_draining", &[]) == 1 && metrics.workers_are_up_to_date()
    });
}

#[test]
fn during_the_grace_new_connections_are_served_and_told_to_close() {
    let backend = Backend::fine();
    let mut process = process(&backend, &[("STEPFLOW_LB_DRAIN_GRACE", "60s")]);
    let mut kept = process.connect();
    assert_eq!(kept.get("/").text(), "ok");
    process.signal("TERM");
    wait_until_draining(&process);
    let health = process.connect().get("/health");
    assert_eq!(health.status(), 503);
    assert_eq!(health.json()["status"], "draining");
    for client in [&mut kept, &mut process.connect()] {
        let response = client.get("/");
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
        assert_eq!(client.expect_end(), End::Closed);
    }
    process.signal("TERM");
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn a_running_stream_finishes_and_the_process_ends_with_success() {
    let backend = Backend::played();
    let mut process = process(&backend, &[("STEPFLOW_LB_DRAIN_GRACE", "0s")]);
    let mut client = process.connect();
    client.send(ASK);
    let mut peer = backend.next();
    peer.send(STREAM);
    assert_eq!(client.head().status(), 200);
    let mut idle = process.connect();
    process.signal("TERM");
    // An idle connection is closed, and nobody listens any more.
    assert_eq!(idle.expect_end(), End::Closed);
    wait_until("the port is closed", || std::net::TcpStream::connect(process.address).is_err());
    for n in 0..5 {
        let event = format!("data: {n}\n\n");
        peer.send(chunk(&event));
        assert_eq!(client.chunk(), event.as_bytes());
    }
    assert!(process.is_running());
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    assert_eq!(client.expect_end(), End::Closed);
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn what_does_not_end_in_time_is_cut() {
    let backend = Backend::played();
    let options = [("STEPFLOW_LB_DRAIN_GRACE", "0s"), ("STEPFLOW_LB_DRAIN_TIMEOUT", "500ms")];
    let mut process = process(&backend, &options);
    let mut client = process.connect();
    client.send(ASK);
    let mut peer = backend.next();
    peer.send(STREAM);
    assert_eq!(client.head().status(), 200);
    let started = Instant::now();
    process.signal("TERM");
    client.expect_end();
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(process.wait().code(), Some(0));
    peer.until_gone();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    // Nothing else would end it before the test has lost its patience.
    let options = [("STEPFLOW_LB_DRAIN_GRACE", "10m"), ("STEPFLOW_LB_DRAIN_TIMEOUT", "10m")];
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM")] {
        let backend = Backend::played();
        let mut process = process(&backend, &options);
        let mut client = process.connect();
        client.send(ASK);
        let mut peer = backend.next();
        peer.send(STREAM);
        assert_eq!(client.head().status(), 200);
        process.signal(first);
        wait_until_draining(&process);
        assert!(process.is_running());
        process.signal(second);
        assert_eq!(process.wait().code(), Some(0));
        client.expect_end();
    }
}

#[test]
fn connections_in_the_accept_queue_are_served_before_the_end() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("drain_grace", "0s").start();
    let mut clients: Vec<_> = (0..50).map(|_| balancer.connect()).collect();
    clients.iter_mut().for_each(|c| c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    balancer.shut_down();
    for client in &mut clients {
        assert_eq!(client.response().text(), "ok");
    }
    assert_eq!(balancer.wait(), ExitReason::Drained);
}

#[test]
fn a_connection_in_reserve_is_closed_when_the_process_drains() {
    let backend = Backend::fine();
    try_in_time("it is closed sooner than one that has just come", || {
        let balancer = Balancer::before(&[&backend]).with("drain_grace", "0s").start();
        let mut reserve = balancer.connect();
        reserve.expect_silence(LAST_CALL + Duration::from_millis(200));
        let began = Instant::now();
        balancer.shut_down();
        assert_eq!(reserve.expect_end(), End::Closed);
        let took = began.elapsed();
        assert_eq!(balancer.wait(), ExitReason::Drained);
        // Waited for anew, it would never be closed so soon.
        (took < LAST_CALL).then_some(())
    });
}

#[test]
fn a_body_on_its_way_when_the_process_drains_arrives() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234");
    let mut peer = backend.next();
    balancer.shut_down();
    wait_until("the port is closed", || std::net::TcpStream::connect(balancer.address).is_err());
    client.send("56789");
    assert_eq!(peer.read_body().0, b"0123456789");
    peer.answer("done");
    let response = client.response();
    assert_eq!(response.text(), "done");
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    assert_eq!(balancer.wait(), ExitReason::Drained);
}

#[test]
fn an_address_in_use_ends_the_program_with_one_line_that_names_address_and_option() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (variable, key) in [
        ("BIND_ADDRESS", "bind_address"),
        ("METRICS_ADDRESS", "metrics_address"),
        ("STEPFLOW_LB_ADMIN_ADDRESS", "admin_address"),
    ] {
        let mut command = before(command(), &[]);
        command.env("UPSTREAM_SERVICE", "127.0.0.1:1").env(variable, &address);
        let ended = run(command);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let lines: Vec<_> = ended.stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{ended:?}");
        assert!(lines[0].contains(&address) && lines[0].contains(key), "{ended:?}");
        assert!(lines[0].to_lowercase().contains("in use"), "{ended:?}");
    }
}

#[test]
fn without_an_upstream_the_program_says_what_to_set_and_ends_with_2() {
    let ended = run(command());
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("UPSTREAM_SERVICE"), "{ended:?}");
}

#[test]
fn a_log_file_that_cannot_be_opened_ends_the_program_with_one_clear_line() {
    let mut command = before(command(), &[]);
    command.env("UPSTREAM_SERVICE", "127.0.0.1:1").env("STEPFLOW_LOG_FILE", "/nowhere/lb.log");
    let ended = run(command);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("/nowhere/lb.log"), "{ended:?}");
}
