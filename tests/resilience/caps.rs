//! What a backend may be given at once is never exceeded, by however many workers and clients.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use socket2::SockRef;

use crate::{
    child::Peak,
    load::Load,
    support::{
        Backend, Balancer, Process,
        process::{before, command},
        wait_until,
    },
};

const CLIENTS: usize = 256;

#[test]
fn no_backend_ever_runs_more_requests_than_it_may() {
    const MOST: usize = 8;
    let peaks: [Arc<Peak>; 3] = Default::default();
    let backends = peaks.each_ref().map(|peak| {
        let peak = Arc::clone(peak);
        Backend::scripted(move |peer| {
            peer.read_body();
            peak.enter();
            std::thread::sleep(Duration::from_millis(1));
            // Before the answer: whoever has that may be sending the next.
            peak.leave();
            peer.answer("ok");
        })
    });
    let mut command = before(command(), &backends.each_ref());
    command.env("STEPFLOW_LB_WORKERS", "4");
    command.env("STEPFLOW_LB_REQUESTS_PER_BACKEND_MAX", MOST.to_string());
    command.env("STEPFLOW_LB_QUEUE_TIMEOUT", "30s");
    let balancer = Process::start(command);
    balancer.wait_for_healthy(3);
    let load = Load::start(balancer.address, CLIENTS, "POST", |_| String::new());
    load.wait_for_more(12 * CLIENTS);
    // Up to its bound, or nearly: two that begin and end at once may not be seen together.
    wait_until("every backend was full", || peaks.iter().all(|peak| peak.most() >= MOST - 2));
    let asked = load.stop();
    let failed: Vec<_> = asked.iter().filter(|asked| !asked.succeeded()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let most = peaks.map(|peak| peak.most());
    assert!(most.iter().all(|most| *most <= MOST), "{most:?}");
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_queue_waiting", &[]), 0);
    assert!(metrics.observations("stepflow_lb_queue_wait_ms") > 0);
}

/// A backend that counts, at each connection it accepts, those that are open then: what the kernel
/// has heard the end of is not.
fn counting_connections(peak: Arc<Peak>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming().map_while(Result::ok) {
            open.retain(|stream| {
                let is_open = is_open(stream);
                if !is_open {
                    peak.leave();
                }
                is_open
            });
            peak.enter();
            open.push(stream.try_clone().unwrap());
            std::thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn is_open(stream: &TcpStream) -> bool {
    let mut octet = [std::mem::MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match SockRef::from(stream).recv_with_flags(&mut octet, flags) {
        Ok(n) => n > 0,
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Answers requests without a body until the connection ends.
fn serve(mut stream: &TcpStream) {
    use std::io::{Read, Write};
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        received.extend_from_slice(&buffer[..n]);
        if received.ends_with(b"\r\n\r\n") {
            received.clear();
            std::thread::sleep(Duration::from_millis(1));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// The program with four workers in front of backends of which each may have so many connections.
/// Health checks would open more, so there are none.
fn bounded(addresses: &[SocketAddr], most: usize) -> Process {
    let mut command = before(command(), &[]);
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    command.env("UPSTREAM_SERVICE", addresses.join(","));
    command.env("STEPFLOW_LB_WORKERS", "4");
    command.env("STEPFLOW_LB_HEALTH_CHECK_PATH", "off");
    command.env("STEPFLOW_LB_CONNECTIONS_PER_BACKEND_MAX", most.to_string());
    // Nothing is closed only because it is old.
    command.env("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "1h");
    command.env("STEPFLOW_LB_QUEUE_TIMEOUT", "30s");
    let balancer = Process::start(command);
    balancer.wait_for_healthy(addresses.len() as u64);
    balancer
}

#[test]
fn no_backend_ever_has_more_connections_than_it_may() {
    const MOST: usize = 6;
    let peaks: [Arc<Peak>; 2] = Default::default();
    let addresses = peaks.each_ref().map(|peak| counting_connections(Arc::clone(peak)));
    let balancer = bounded(&addresses, MOST);
    let load = Load::start(balancer.address, CLIENTS, "GET", |_| String::new());
    load.wait_for_more(8 * CLIENTS);
    wait_until("every backend was full", || peaks.iter().all(|peak| peak.most() >= MOST));
    let asked = load.stop();
    let failed: Vec<_> = asked.iter().filter(|asked| !asked.succeeded()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(peaks.map(|peak| peak.most()), [MOST; 2], "of {} requests", asked.len());
}

#[test]
fn an_unused_connection_of_one_worker_is_in_nobody_s_way() {
    let peak: Arc<Peak> = Arc::default();
    let balancer = bounded(&[counting_connections(Arc::clone(&peak))], 1);
    // Each comes to one of four workers, and one of these has the only connection.
    for _ in 0..40 {
        let mut client = balancer.connect();
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!(peak.most(), 1);
    assert_eq!(balancer.metrics().failures("queue_timeout"), 0);
}

#[test]
fn a_callback_passes_a_backend_that_its_own_stream_fills() {
    let backend = Backend::played().healthy_as("full");
    let balancer = Balancer::before(&[&backend])
        .with("workers", "1")
        .with("requests_per_backend_max", "1")
        .with("connections_per_backend_max", "1")
        .with("queue_timeout", "200ms")
        .start();
    let mut client = balancer.connect();
    client.send("GET /stream HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut stream = backend.next();
    stream.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
         Stepflow-Instance-Id: full\r\n\r\n5\r\nfirst\r\n",
    );
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"first");
    // Whoever may go anywhere waits, and in vain.
    assert_eq!(balancer.get("/").label(), "queue_timeout");
    let mut caller = balancer.connect();
    for _ in 0..2 {
        caller.send("GET /callback HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: full\r\n\r\n");
        let mut callback = backend.next();
        callback.answer("heard");
        assert_eq!(caller.response().text(), "heard");
        // It was one more than there may be, so it is not kept.
        assert!(callback.until_gone().0.is_empty());
    }
    stream.send("4\r\nlast\r\n0\r\n\r\n");
    assert_eq!(client.chunk(), b"last");
    assert_eq!(client.chunk(), b"");
    assert_eq!(client.take(2), b"\r\n");
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    stream.next_request();
    stream.answer("free");
    assert_eq!(client.response().text(), "free");
}
