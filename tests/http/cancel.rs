//! A client that leaves ends the work that is done for it, at once, and it is counted how soon.

use std::{io::Read, net::TcpListener, time::Duration};

use crate::support::{Backend, Balancer, Client, End, Metrics, Peer, message::chunk, wait_until};

const ASK: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                      Transfer-Encoding: chunked\r\n\r\n";
const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Closes its connection.
    Close,
    /// Closes its sending side only.
    Fin,
    /// Breaks its connection.
    Reset,
}

const LEAVES: [Leave; 3] = [Leave::Close, Leave::Fin, Leave::Reset];

fn leave(client: &mut Client, how: Leave) {
    match how {
        Leave::Close => client.close(),
        Leave::Fin => client.finish_sending(),
        Leave::Reset => client.reset(),
    }
}

fn cancels(metrics: &Metrics) -> u64 {
    metrics.observations("stepflow_lb_cancel_latency_ms")
}

#[track_caller]
fn expect_cancels(balancer: &Balancer, n: u64) {
    wait_until("the cancel is counted", || cancels(&balancer.metrics()) >= n);
    balancer.wait_until_quiet();
    assert_eq!(cancels(&balancer.metrics()), n);
}

/// The backend, to which nothing happens but this, hears of the end.
#[track_caller]
fn expect_told(peer: &mut Peer, how: Leave, place: &str) {
    let (rest, end) = peer.until_gone();
    assert_eq!((rest, end), (Vec::new(), End::Closed), "{how:?} {place}");
}

#[test]
fn the_backend_of_an_idle_stream_is_told_wherever_the_stream_stands_and_however_the_client_leaves()
{
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let places = ["", "data: 1\n\n", "data: 1\n\ndata: half of"];
    let mut n = 0;
    for (how, sent) in LEAVES.into_iter().flat_map(|how| places.map(|sent| (how, sent))) {
        let mut client = balancer.connect();
        client.send(ASK);
        let mut peer = backend.next();
        peer.send(STREAM);
        assert_eq!(client.head().status(), 200);
        if !sent.is_empty() {
            peer.send(chunk(sent));
            assert_eq!(client.chunk(), sent.as_bytes());
        }
        leave(&mut client, how);
        expect_told(&mut peer, how, sent);
        n += 1;
        expect_cancels(&balancer, n);
    }
    let metrics = balancer.metrics();
    let left = metrics.sum("stepflow_lb_stream_ends_total", &[r#"reason="client_left""#]);
    assert_eq!(left, n);
    assert_eq!(metrics.failures("client_gone"), 0);
    assert_eq!(metrics.sum("stepflow_lb_event_streams_open", &[]), 0);
}

#[test]
fn a_backend_that_has_not_answered_yet_is_told() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let plain = "GET /long HTTP/1.1\r\nHost: a\r\n\r\n";
    // Whoever only ends sending may still be waiting, unless it asked for a stream.
    let cases =
        [(ASK, Leave::Close), (ASK, Leave::Fin), (ASK, Leave::Reset), (plain, Leave::Reset)];
    for (n, (ask, how)) in (1..).zip(cases) {
        let mut client = balancer.connect();
        client.send(ask);
        let mut peer = backend.next();
        leave(&mut client, how);
        expect_told(&mut peer, how, "before its answer");
        balancer.wait_for_failures("client_gone", n);
        expect_cancels(&balancer, n);
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_last_request_is_noticed() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let ask = ASK.replace("Accept", "Connection: close\r\nAccept");
    let mut n = 0;
    for (how, has_begun) in LEAVES.into_iter().flat_map(|how| [(how, false), (how, true)]) {
        let mut client = balancer.connect();
        client.send(&ask);
        let mut peer = backend.next();
        if has_begun {
            peer.send(STREAM);
            assert_eq!(client.head().status(), 200);
        }
        leave(&mut client, how);
        expect_told(&mut peer, how, "in its last request");
        n += 1;
        expect_cancels(&balancer, n);
    }
}

#[test]
fn a_backend_in_the_middle_of_a_plain_response_is_told() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET /long HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.chunk(), b"first");
    client.reset();
    expect_told(&mut peer, Leave::Reset, "in a response");
    balancer.wait_for_failures("client_gone", 1);
    expect_cancels(&balancer, 1);
}

#[test]
fn a_backend_that_waits_for_the_rest_of_an_upload_is_told() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    for (n, how) in (1..).zip(LEAVES) {
        let mut client = balancer.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nbegin");
        let mut peer = backend.next();
        assert_eq!(peer.take(5), b"begin");
        leave(&mut client, how);
        expect_told(&mut peer, how, "in an upload");
        // It left in the middle of what it was saying.
        balancer.wait_for_failures("request_truncated", n);
        expect_cancels(&balancer, n);
    }
}

#[test]
fn the_backend_of_a_tunnel_is_told_and_a_broken_client_counts() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    for (how, n) in [(Leave::Fin, 0), (Leave::Close, 0), (Leave::Reset, 1)] {
        let mut client = balancer.connect();
        client.send(UPGRADE);
        let mut peer = backend.next();
        peer.send(SWITCHED);
        assert_eq!(client.head().status(), 101);
        leave(&mut client, how);
        expect_told(&mut peer, how, "in a tunnel");
        // An end of one direction is handed on and leaves the other alone.
        peer.close();
        expect_cancels(&balancer, n);
    }
}

#[test]
fn a_backend_that_breaks_a_tunnel_is_no_client_that_left() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(UPGRADE);
    let mut peer = backend.next();
    peer.send(SWITCHED);
    assert_eq!(client.head().status(), 101);
    peer.reset();
    client.rest();
    expect_cancels(&balancer, 0);
}

#[test]
fn a_client_that_leaves_while_a_connection_is_being_opened_sends_no_request_to_anybody() {
    // Nobody accepts, and the kernel answers no attempt once its queue is full.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let socket = socket2::SockRef::from(&listener);
    socket.listen(0).unwrap();
    let fill = || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200));
    let filling: Vec<_> = std::iter::from_fn(|| fill().ok()).take(64).collect();
    assert!(filling.len() < 64, "the queue of the listener is never full");
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend])
        .with("upstream_service", &address.to_string())
        .with("health_check_path", "off")
        .with("connect_timeout", "60s")
        .start();
    for (n, how) in (1..).zip(LEAVES) {
        let mut client = balancer.connect();
        client.send(ASK);
        let opening = || balancer.metrics().sum("stepflow_lb_upstream_open", &[]);
        wait_until("a connection is being opened", || opening() == 1);
        leave(&mut client, how);
        balancer.wait_for_failures("client_gone", n);
        wait_until("the attempt is given up", || opening() == 0);
    }
    // Nobody had begun to work for them.
    assert_eq!(cancels(&balancer.metrics()), 0);
    for (mut accepted, _) in filling.iter().map(|_| listener.accept().unwrap()) {
        accepted.set_nonblocking(true).unwrap();
        let mut octets = [0; 16];
        assert!(!matches!(accepted.read(&mut octets), Ok(n) if n > 0), "a request arrived");
    }
}

#[test]
fn whoever_stays_to_the_end_is_no_cancel() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    assert_eq!(client.get("/").status(), 200);
    client.close();
    expect_cancels(&balancer, 0);
}
