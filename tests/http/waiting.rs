//! What happens while a request waits for a backend: its client may leave, or go on sending.

use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::support::{Backend, Balancer, Client, Process, process, wait_until};

/// Listens in place of a backend that refuses, and answers no handshake: its queue is full.
struct Mute {
    _listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Mute {
    fn in_place_of(backend: &mut Backend) -> Self {
        backend.refuse();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_reuse_address(true).unwrap();
        listener.bind(&backend.address.into()).unwrap();
        listener.listen(0).unwrap();
        let mut queue = Vec::new();
        while let Ok(taken) =
            TcpStream::connect_timeout(&backend.address, Duration::from_millis(200))
        {
            queue.push(taken);
        }
        Self { _listener: listener, _queue: queue }
    }
}

type Leave = fn(&mut Client);

const SSE: &str = "Accept: text/event-stream\r\n\r\n";

/// Requests whose clients leave in a way that shows, and what that is counted as.
const DEPARTURES: [(&str, Leave, &str); 6] = [
    ("\r\n", |client| client.reset(), "client_gone"),
    (SSE, |client| client.reset(), "client_gone"),
    (SSE, |client| client.close(), "client_gone"),
    ("Content-Length: 9\r\n\r\nabc", |client| client.reset(), "client_gone"),
    ("Content-Length: 9\r\n\r\nabc", |client| client.close(), "request_truncated"),
    // Its departure hides behind the beginning of the next request.
    ("\r\nGET /next HT", |client| client.reset(), "client_gone"),
];

fn nothing_is_left(balancer: &Balancer) {
    balancer.wait_until_quiet();
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_active_connections", &[]), 0);
    assert_eq!(metrics.sum("stepflow_lb_upstream_connect_failures_total", &[]), 0);
}

#[test]
fn a_client_that_leaves_while_we_connect_is_noticed_at_once() {
    let mut backend = Backend::fine().healthy_as("one");
    let balancer = Balancer::before(&[&backend])
        .with("health_check_interval", "1h")
        // Longer than the test is ready to wait.
        .with("connect_timeout", "60s")
        .with("instance_retry", "60s")
        .start();
    let _mute = Mute::in_place_of(&mut backend);
    for instance in ["", "Stepflow-Instance-Id: one\r\n"] {
        for (rest, leave, label) in DEPARTURES {
            let before = balancer.metrics().failures(label);
            let mut client = balancer.connect();
            client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{instance}{rest}"));
            wait_until("it is connecting", || {
                balancer.metrics().sum("stepflow_lb_active_connections", &[]) == 1
            });
            leave(&mut client);
            balancer.wait_for_failures(label, before + 1);
            nothing_is_left(&balancer);
        }
    }
}

#[test]
fn a_client_that_leaves_while_its_instance_is_awaited_is_noticed_at_once() {
    let mut backend = Backend::fine().healthy_as("one");
    let balancer = Balancer::before(&[&backend])
        .with("health_check_interval", "1h")
        .with("instance_retry", "60s")
        .start();
    backend.refuse();
    for (rest, leave, label) in DEPARTURES {
        let before = balancer.metrics().failures(label);
        let failed = balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]);
        let mut client = balancer.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n{rest}"));
        wait_until("a connect has failed", || {
            balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]) > failed
        });
        leave(&mut client);
        balancer.wait_for_failures(label, before + 1);
        balancer.wait_until_quiet();
        assert_eq!(balancer.metrics().sum("stepflow_lb_active_connections", &[]), 0);
    }
}

#[test]
fn a_half_closed_client_that_reads_no_stream_is_connected_for() {
    let mut backend = Backend::fine().healthy_as("one");
    let balancer = Balancer::before(&[&backend])
        .with("health_check_interval", "1h")
        .with("instance_retry", "60s")
        .start();
    backend.refuse();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n");
    client.finish_sending();
    wait_until("connects have failed", || {
        balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]) > 2
    });
    backend.listen();
    assert_eq!(client.response().text(), "ok");
}

#[test]
fn a_body_that_begins_to_arrive_while_we_connect_arrives_whole() {
    let mut backend = Backend::fine().healthy_as("one");
    let balancer = Balancer::before(&[&backend])
        .with("health_check_interval", "1h")
        .with("instance_retry", "60s")
        // Though connects fail for long, it is asked for what comes next.
        .with("max_failures", "1000")
        .start();
    backend.refuse();
    let mut client = balancer.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\nContent-Length: 9\r\n\r\nabc",
    );
    wait_until("a connect has failed", || {
        balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]) > 0
    });
    client.send("def");
    client.wait_until_received();
    backend.listen();
    backend.wait_for_requests(1);
    client.send("ghiGET /next HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
    assert_eq!(client.response().text(), "ok");
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    assert!(seen.contains("\r\n\r\nabcdefghiGET /next "), "{seen}");
}

#[test]
fn a_client_that_pipelines_without_end_is_slowed_down_and_served_in_order() {
    for pipelined_bytes_max in ["0", "4KiB", "100kB"] {
        let backend = Backend::played();
        let balancer =
            Balancer::before(&[&backend]).with("pipelined_bytes_max", pipelined_bytes_max).start();
        let client = balancer.connect();
        SockRef::from(client.stream()).set_send_buffer_size(16 * 1024).unwrap();
        // The first is in the hands of its backend, which says nothing.
        // Not too short: of segments with a few octets in them the kernel must drop some when
        // they fill a whole buffer, and then both sides wait for its timers.
        let padding = "x".repeat(1000);
        let request = |n: usize| {
            format!("GET /{n:09} HTTP/1.1\r\nHost: a\r\nX: {padding}\r\n\r\n").into_bytes()
        };
        let mut stream = client.stream();
        stream.write_all(&request(0)).unwrap();
        let mut peer = backend.next();
        stream.set_nonblocking(true).unwrap();
        let (mut taken, mut n, mut rest) = (0, 0, Vec::new());
        let mut idle_since = Instant::now();
        // Until nothing is taken any more for a while.
        while idle_since.elapsed() < Duration::from_millis(300) {
            if rest.is_empty() {
                n += 1;
                rest = request(n);
            }
            match stream.write(&rest) {
                Ok(written) => {
                    taken += written;
                    rest.drain(..written);
                    idle_since = Instant::now();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            assert!(taken < 2 * 1024 * 1024, "there is no bound: {taken}");
        }
        stream.set_nonblocking(false).unwrap();
        // Every request that was sent is answered, in order.
        let mut client = client;
        peer.answer("/000000000");
        assert_eq!(client.response().text(), "/000000000");
        for number in 1..n {
            let target = peer.next_request().target();
            assert_eq!(target, format!("/{number:09}"));
            peer.answer(&target);
            assert_eq!(client.response().text(), target);
        }
        client.send(&rest);
        let target = peer.next_request().target();
        peer.answer(&target);
        assert_eq!(client.response().text(), target);
    }
}

#[test]
fn time_in_which_the_process_was_stopped_is_not_the_clients() {
    let backend = Backend::fine();
    let mut command = process::before(process::command(), &[&backend]);
    command.env("STEPFLOW_LB_REQUEST_HEAD_TIMEOUT", "3s");
    let process = Process::start(command);
    process.wait_for_healthy(1);
    let mut client = process.connect();
    client.send("GET / HTTP/1.1\r\nHo");
    wait_until("the head is being read", || {
        process.metrics().sum("stepflow_lb_connections_open", &[]) == 1
    });
    let stopped = Instant::now();
    process.signal("STOP");
    // Longer than the head may take.
    std::thread::sleep(Duration::from_millis(3500).saturating_sub(stopped.elapsed()));
    process.signal("CONT");
    // Each answer is at least one turn of the control thread; the workers tick meanwhile.
    client.expect_silence(Duration::from_millis(500));
    client.send("st: a\r\n\r\n");
    assert_eq!(client.response().text(), "ok");
}
