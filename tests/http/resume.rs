//! Streams that outlive their backend: before their first event, and behind it where ids tell from
//! where to go on.

use crate::support::{Backend, Balancer, Client, Peer, message::chunk, wait_until};

const ASK: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";

/// Two backends, and a stream from one of them whose head has reached the client.
struct Stream {
    client: Client,
    peer: Peer,
    /// The backend that has the stream, and the other one.
    backends: [Backend; 2],
    balancer: Balancer,
}

fn stream(options: &[(&str, &str)], ask: &str) -> Stream {
    let backends = [Backend::played(), Backend::played()];
    let mut setup = Balancer::before(&[&backends[0], &backends[1]]);
    for (key, value) in options {
        setup = setup.with(key, value);
    }
    let balancer = setup.start();
    let mut client = balancer.connect();
    client.send(ask);
    let (at, mut peer) = next_of(&backends);
    peer.send(HEAD);
    assert_eq!(client.head().status(), 200);
    let [a, b] = backends;
    let backends = if at == 0 { [a, b] } else { [b, a] };
    Stream { client, peer, backends, balancer }
}

/// A stream that may go on from another backend, and whose own has died behind its first event.
fn broken_stream() -> (Client, [Backend; 2], Balancer) {
    let Stream { mut client, mut peer, backends, balancer } = stream(RESUME, ASK);
    peer.send(chunk("id: 1\ndata: a\n\n"));
    assert_eq!(client.chunk(), b"id: 1\ndata: a\n\n");
    drop(peer);
    (client, backends, balancer)
}

/// The request that arrives next, and where.
fn next_of(backends: &[Backend; 2]) -> (usize, Peer) {
    wait_until("a backend is asked", || backends.iter().any(Backend::has_next));
    let at = usize::from(!backends[0].has_next());
    (at, backends[at].next())
}

const RESUME: &[(&str, &str)] = &[("stream_resume", "on")];

#[test]
fn a_stream_whose_backend_dies_before_its_first_event_goes_on_from_another() {
    let mut stream = stream(&[], ASK);
    drop(stream.peer);
    let mut peer = stream.backends[1].next();
    assert_eq!(peer.head.field("Last-Event-ID"), None);
    peer.send(HEAD);
    peer.send(chunk("data: a\n\n"));
    assert_eq!(stream.client.chunk(), b"data: a\n\n");
    peer.send("0\r\n\r\n");
    assert_eq!(stream.client.take(5), b"0\r\n\r\n");
    assert_eq!(stream.balancer.metrics().sum("stepflow_lb_streams_continued_total", &[]), 1);
}

#[test]
fn a_post_is_never_asked_again() {
    let ask = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
    let Stream { mut client, peer, balancer, .. } = stream(RESUME, ask);
    drop(peer);
    client.expect_end();
    balancer.wait_for_failures("response_truncated", 1);
    assert_eq!(balancer.metrics().sum("stepflow_lb_retries_total", &[]), 0);
}

#[test]
fn behind_an_event_a_stream_goes_on_only_where_that_is_wanted() {
    let Stream { mut client, mut peer, balancer, .. } = stream(&[], ASK);
    peer.send(chunk("id: 1\ndata: a\n\n"));
    assert_eq!(client.chunk(), b"id: 1\ndata: a\n\n");
    drop(peer);
    client.expect_end();
    balancer.wait_for_failures("response_truncated", 1);
}

#[test]
fn a_stream_goes_on_from_the_last_id_that_its_client_has() {
    let ask = ASK.replace("Accept", "Last-Event-ID: 0\r\nAccept");
    let mut stream = stream(RESUME, &ask);
    assert_eq!(stream.peer.head.field("Last-Event-ID").as_deref(), Some("0"));
    stream.peer.send(chunk("id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\ndata: unfin"));
    assert_eq!(stream.client.chunk(), b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n");
    drop(stream.peer);
    let mut peer = stream.backends[1].next();
    assert_eq!(peer.head.field("Last-Event-ID").as_deref(), Some("2"));
    peer.send(HEAD);
    peer.send(chunk("id: 3\ndata: whole\n\n"));
    assert_eq!(stream.client.chunk(), b"id: 3\ndata: whole\n\n");
    // And once more, the other way round.
    drop(peer);
    let mut peer = stream.backends[0].next();
    assert_eq!(peer.head.field("Last-Event-ID").as_deref(), Some("3"));
    peer.send(HEAD);
    peer.send(chunk("id: 4\ndata: d\n\n"));
    assert_eq!(stream.client.chunk(), b"id: 4\ndata: d\n\n");
    peer.send("0\r\n\r\n");
    assert_eq!(stream.client.take(5), b"0\r\n\r\n");
}

#[test]
fn a_stream_without_ids_is_cut_and_not_begun_anew() {
    let Stream { mut client, mut peer, balancer, .. } = stream(RESUME, ASK);
    peer.send(chunk("data: a\n\n"));
    assert_eq!(client.chunk(), b"data: a\n\n");
    drop(peer);
    client.expect_end();
    balancer.wait_for_failures("response_truncated", 1);
}

#[test]
fn another_answer_than_a_stream_is_not_passed_off_as_its_rest() {
    let (mut client, backends, balancer) = broken_stream();
    let mut peer = backends[1].next();
    peer.send("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone");
    client.expect_end();
    balancer.wait_for_failures("stream_not_continued", 1);
}

#[test]
fn a_stream_that_names_its_instance_is_nobody_elses() {
    let backends = [Backend::played().healthy_as("one"), Backend::played().healthy_as("two")];
    let balancer =
        Balancer::before(&[&backends[0], &backends[1]]).with("stream_resume", "on").start();
    let mut client = balancer.connect();
    client.send(ASK.replace("Accept", "Stepflow-Instance-Id: one\r\nAccept"));
    let mut peer = backends[0].next();
    peer.send(HEAD);
    assert_eq!(client.head().status(), 200);
    drop(peer);
    client.expect_end();
    balancer.wait_for_failures("response_truncated", 1);
}

#[test]
fn backends_that_die_before_their_head_are_not_asked_in_a_circle() {
    let (mut client, backends, balancer) = broken_stream();
    // Four attempts, turn and turn about, and that is the end.
    for at in [1, 0, 1, 0] {
        drop(backends[at].next());
    }
    client.expect_end();
    balancer.wait_until_quiet();
    assert!(!backends.iter().any(Backend::has_next));
    assert_eq!(balancer.metrics().sum("stepflow_lb_streams_continued_total", &[]), 0);
}

#[test]
fn a_request_that_ends_whoever_answers_it_ends_two_backends_and_no_third() {
    let backends = [Backend::played(), Backend::played(), Backend::played()];
    let balancer = Balancer::start(&backends.each_ref());
    let mut client = balancer.connect();
    client.send(ASK);
    for attempt in 0..2 {
        wait_until("a backend is asked", || backends.iter().any(Backend::has_next));
        let at = backends.iter().position(Backend::has_next).unwrap();
        let mut peer = backends[at].next();
        peer.send(HEAD);
        if attempt == 0 {
            assert_eq!(client.head().status(), 200);
        }
    }
    client.expect_end();
    balancer.wait_for_failures("response_truncated", 1);
    assert!(!backends.iter().any(Backend::has_next));
}

#[test]
fn a_request_with_a_body_is_not_asked_again() {
    // The body looks like the end of a head, which an edited head would be cut at.
    let ask = ASK.replace("Accept", "Content-Length: 6\r\nAccept") + "a\r\n\r\nb";
    let mut stream = stream(RESUME, &ask);
    assert_eq!(stream.peer.read_body().0, b"a\r\n\r\nb");
    stream.peer.send(chunk("id: 1\ndata: a\n\n"));
    assert_eq!(stream.client.chunk(), b"id: 1\ndata: a\n\n");
    drop(stream.peer);
    stream.client.expect_end();
    stream.balancer.wait_for_failures("response_truncated", 1);
    assert!(!stream.backends[1].has_next());
}
