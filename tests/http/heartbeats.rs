//! Comments that keep a silent stream alive: between two events, and nowhere else.

use crate::support::{Backend, Balancer, Client, Peer, message::chunk};

const HEARTBEAT: &[u8] = b": \n\n";

struct Stream {
    client: Client,
    peer: Peer,
    _balancer: Balancer,
    _backend: Backend,
}

fn stream(version: &str, head: &str) -> Stream {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("stream_heartbeat", "200ms").start();
    let mut client = balancer.connect();
    client.send(format!("GET /e HTTP/{version}\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n"));
    let mut peer = backend.next();
    peer.send(format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{head}\r\n"));
    assert_eq!(client.head().status(), 200);
    Stream { client, peer, _balancer: balancer, _backend: backend }
}

/// The next chunk that is no heartbeat. How many of those come while the test sends something is
/// up to the machine.
fn event(client: &mut Client) -> Vec<u8> {
    loop {
        let octets = client.chunk();
        if octets != HEARTBEAT {
            return octets;
        }
    }
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[test]
fn a_silent_stream_gets_comments_before_its_first_event_and_between_events() {
    let Stream { client, peer, .. } = &mut stream("1.1", CHUNKED);
    assert_eq!(client.chunk(), HEARTBEAT);
    assert_eq!(client.chunk(), HEARTBEAT);
    peer.send(chunk("data: a\n\n"));
    assert_eq!(event(client), b"data: a\n\n");
    assert_eq!(client.chunk(), HEARTBEAT);
    peer.send("0\r\n\r\n");
    assert_eq!(event(client), b"");
    assert_eq!(client.take(2), b"\r\n");
}

#[test]
fn nothing_is_sent_inside_an_event_however_long_its_silence() {
    let Stream { client, peer, .. } = &mut stream("1.1", CHUNKED);
    for inside in ["data: a", "b\r", "\n", "id: 1\n"] {
        peer.send(chunk(inside));
        // Before the event there may be any number.
        match inside {
            "data: a" => assert_eq!(event(client), inside.as_bytes()),
            _ => assert_eq!(client.chunk(), inside.as_bytes()),
        }
        client.expect_silence(std::time::Duration::from_millis(500));
    }
    peer.send(chunk("\n"));
    assert_eq!(client.chunk(), b"\n");
    assert_eq!(client.chunk(), HEARTBEAT);
}

#[test]
fn a_stream_that_ends_with_its_connection_gets_them_as_they_are() {
    let Stream { client, peer, .. } = &mut stream("1.0", CHUNKED);
    assert_eq!(client.take(4), HEARTBEAT);
    peer.send(chunk("data: a\n\n"));
    let mut octets = client.take(4);
    while octets == HEARTBEAT {
        octets = client.take(4);
    }
    assert_eq!([octets, client.take(5)].concat(), b"data: a\n\n");
    assert_eq!(client.take(4), HEARTBEAT);
}

#[test]
fn a_bom_behind_a_comment_would_spoil_the_first_event_and_is_left_out() {
    let Stream { client, peer, .. } = &mut stream("1.1", CHUNKED);
    assert_eq!(client.chunk(), HEARTBEAT);
    peer.send(chunk("\u{feff}data: a\n\n"));
    assert_eq!(event(client), b"data: a\n\n");
}

#[test]
fn a_stream_with_a_content_coding_or_a_length_gets_none() {
    for head in ["Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n", "Content-Length: 9\r\n"]
    {
        let Stream { client, peer, .. } = &mut stream("1.1", head);
        client.expect_silence(std::time::Duration::from_millis(700));
        match head.contains("chunked") {
            true => {
                peer.send(chunk("data: a\n\n"));
                assert_eq!(client.chunk(), b"data: a\n\n");
            }
            false => {
                peer.send("data: a\n\n");
                assert_eq!(client.take(9), b"data: a\n\n");
            }
        }
    }
}
