//! Event streams: passed on as they come, never cut inside a character, ended when either side is.

use crate::support::{Backend, Balancer, Client, End, Peer, message::chunk, show};

const ASK: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";

struct Stream {
    client: Client,
    peer: Peer,
    balancer: Balancer,
    _backend: Backend,
}

/// A stream whose head has reached the client.
fn stream_with(head: &str) -> Stream {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(ASK);
    let mut peer = backend.next();
    peer.send(head);
    Stream { client, peer, balancer, _backend: backend }
}

fn stream() -> Stream {
    let mut stream = stream_with(CHUNKED);
    assert_eq!(stream.client.head().status(), 200);
    stream
}

fn open_streams(balancer: &Balancer) -> u64 {
    balancer.metrics().sum("stepflow_lb_event_streams_open", &[])
}

#[test]
fn each_event_arrives_before_the_backend_sends_the_next() {
    let Stream { client, peer, .. } = &mut stream();
    for n in 0..50 {
        let event = format!("id: {n}\ndata: {{\"n\":{n}}}\n\n");
        peer.send(chunk(&event));
        assert_eq!(client.chunk(), event.as_bytes());
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    // Both connections are used again.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.next_request();
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn the_head_of_a_stream_does_not_wait_for_its_first_event() {
    let Stream { client, peer, .. } = &mut stream();
    peer.send(chunk("data: late\n\n"));
    assert_eq!(client.chunk(), b"data: late\n\n");
}

#[test]
fn a_stream_tells_proxies_in_front_neither_to_buffer_nor_to_cache() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream\r\ncache-control: max-age=9\r\n\
                X-Accel-Buffering: yes\r\nX-Kept: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let Stream { client, .. } = &mut stream_with(head);
    let got = client.head();
    assert_eq!(got.field("X-Accel-Buffering").as_deref(), Some("no"));
    assert_eq!(got.field("Cache-Control").as_deref(), Some("no-cache"));
    assert_eq!(got.field("Content-Type").as_deref(), Some("Text/Event-Stream"));
    assert_eq!(got.field("X-Kept").as_deref(), Some("1"));
}

#[test]
fn a_stream_in_any_framing_is_passed_on_event_by_event() {
    let length = "Content-Length: 27\r\n";
    for framing in ["Transfer-Encoding: chunked\r\n", "", length] {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n");
        let Stream { client, peer, .. } = &mut stream_with(&head);
        let head = client.head();
        for event in ["data: 1\n\n", "data: 2\n\n", "data: 3\n\n"] {
            if framing.starts_with("Transfer") {
                peer.send(chunk(event));
            } else {
                peer.send(event);
            }
            let got = match framing {
                "Content-Length: 27\r\n" => client.take(event.len()),
                _ => client.chunk(),
            };
            assert_eq!(got, event.as_bytes(), "{framing}");
        }
        assert_eq!(head.has("Content-Length"), framing == length, "{head:?}");
    }
}

#[test]
fn an_http10_client_gets_a_stream_that_ends_with_its_connection() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET /events HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n");
    let mut peer = backend.next();
    peer.send(CHUNKED);
    let head = client.head();
    assert_eq!(head.framing(), None);
    assert_eq!(head.field("Connection").as_deref(), Some("close"));
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        peer.send(chunk(event));
        assert_eq!(client.take(event.len()), event.as_bytes());
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.expect_end(), End::Closed);
}

/// Text whose characters have one to four octets.
const TEXT: &str = "data: aé€😀 ж漢🦀z\n\n";

#[test]
fn no_piece_ends_inside_a_character_wherever_the_backend_s_chunks_end() {
    let text = TEXT.as_bytes();
    let Stream { client, peer, .. } = &mut stream();
    for cut in 1..text.len() {
        // In two segments, so that the balancer cannot put them together again unless it waits.
        for piece in [&text[..cut], &text[cut..]] {
            peer.send(chunk(piece));
        }
        let mut got = Vec::new();
        while got.len() < text.len() {
            let piece = client.chunk();
            assert!(std::str::from_utf8(&piece).is_ok(), "cut {cut}: {}", show(&piece));
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, text, "cut {cut}");
    }
}

#[test]
fn no_piece_ends_inside_a_character_wherever_a_segment_ends() {
    let text = TEXT.as_bytes();
    let octets = chunk(text);
    let Stream { client, peer, .. } = &mut stream();
    for cut in 1..octets.len() {
        peer.send(&octets[..cut]);
        // What of the text is complete arrives at once, before the rest is sent.
        let sent = cut.saturating_sub(4).min(text.len());
        let complete = match std::str::from_utf8(&text[..sent]) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let mut got = Vec::new();
        while got.len() < complete {
            got.extend_from_slice(&client.chunk());
        }
        assert_eq!(got, &text[..complete], "cut {cut}");
        peer.send(&octets[cut..]);
        while got.len() < text.len() {
            let piece = client.chunk();
            assert!(std::str::from_utf8(&piece).is_ok(), "cut {cut}: {}", show(&piece));
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, text, "cut {cut}");
    }
}

#[test]
fn octets_that_are_no_text_are_passed_on_in_the_end() {
    let Stream { client, peer, .. } = &mut stream();
    peer.send(chunk(b"data: \xff\xfe\xe2\x82"));
    peer.send("0\r\n\r\n");
    let mut got = Vec::new();
    loop {
        match client.chunk() {
            piece if piece.is_empty() => break,
            piece => got.extend_from_slice(&piece),
        }
    }
    assert_eq!(got, b"data: \xff\xfe\xe2\x82");
}

#[test]
fn a_client_that_leaves_closes_the_backend_s_side() {
    for rudely in [false, true] {
        let Stream { client, peer, balancer, .. } = &mut stream();
        peer.send(chunk("data: 1\n\n"));
        assert_eq!(client.chunk(), b"data: 1\n\n");
        assert_eq!(open_streams(balancer), 1);
        if rudely {
            client.reset();
        } else {
            client.close();
        }
        // The backend is silent: nothing that it sends tells the balancer.
        assert_eq!(peer.until_gone().0, b"");
        balancer.wait_until_quiet();
        assert_eq!(open_streams(balancer), 0);
        // Whoever reads a stream decides when it has read enough.
        balancer.wait_for_failures("client_gone", 0);
    }
}

#[test]
fn a_client_that_leaves_before_the_first_event_closes_the_backend_s_side() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(ASK);
    let mut peer = backend.next();
    client.close();
    assert_eq!(peer.until_gone().0, b"");
    balancer.wait_until_quiet();
}

#[test]
fn a_client_that_left_before_it_could_be_known_for_a_stream_closes_the_backend_s_side() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    client.close();
    // A second client, served by the way, makes sure that the first one's end has been seen.
    assert_eq!(balancer.get("/health").status(), 200);
    peer.send(CHUNKED);
    peer.send(chunk("data: 1\n\n"));
    // Nothing is sent behind that, so no failing write tells the balancer.
    assert_eq!(peer.until_gone().0, b"");
    balancer.wait_until_quiet();
}

#[test]
fn a_client_that_leaves_a_stream_it_posted_for_closes_the_backend_s_side() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab");
    let mut peer = backend.next();
    client.send("cd");
    assert_eq!(peer.read_body().0, b"abcd");
    peer.send(CHUNKED);
    assert_eq!(client.head().status(), 200);
    client.close();
    assert_eq!(peer.until_gone().0, b"");
}

#[test]
fn a_client_that_leaves_a_stream_it_posted_much_for_closes_the_backend_s_side() {
    // More than is read at once: the rest waits in the socket while the head goes up.
    for body_bytes in [5_000, 100_000] {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {body_bytes}\r\n\r\n");
        client.send([head.as_bytes(), &vec![b'x'; body_bytes]].concat());
        let mut peer = backend.next();
        assert_eq!(peer.read_body().0.len(), body_bytes);
        peer.send(CHUNKED);
        assert_eq!(client.head().status(), 200);
        client.close();
        assert_eq!(peer.until_gone().0, b"");
    }
}

#[test]
fn a_client_that_had_sent_more_than_its_request_is_still_seen_to_leave() {
    let Stream { client, peer, balancer, .. } = &mut stream();
    // Old clients send an empty line behind a body; others their next request.
    client.send("\r\n");
    peer.send(chunk("data: 1\n\n"));
    assert_eq!(client.chunk(), b"data: 1\n\n");
    client.reset();
    peer.until_gone();
    balancer.wait_until_quiet();
}

#[test]
fn a_backend_that_dies_inside_a_stream_ends_it_without_its_last_chunk() {
    for reset in [false, true] {
        let Stream { client, peer, balancer, .. } = &mut stream();
        peer.send(chunk("data: 1\n\n"));
        assert_eq!(client.chunk(), b"data: 1\n\n");
        if reset {
            peer.reset();
        } else {
            peer.close();
        }
        client.expect_end();
        balancer.wait_until_quiet();
        let metrics = balancer.metrics();
        assert_eq!(metrics.failures("response_truncated"), 1);
        assert_eq!(metrics.sum("stepflow_lb_active_connections", &[]), 0);
    }
}

#[test]
fn a_stream_counts_against_its_backend_until_it_ends() {
    let Stream { client, peer, balancer, .. } = &mut stream();
    peer.send(chunk("data: 1\n\n"));
    assert_eq!(client.chunk(), b"data: 1\n\n");
    assert_eq!(balancer.metrics().sum("stepflow_lb_active_connections", &[]), 1);
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    crate::support::wait_until("the stream is no longer counted", || {
        balancer.metrics().sum("stepflow_lb_active_connections", &[]) == 0
    });
    assert_eq!(open_streams(balancer), 0);
}

#[test]
fn an_event_larger_than_every_buffer_arrives_whole() {
    let Stream { client, peer, .. } = &mut stream();
    let event = format!("data: {}\n\n", "é漢🦀x".repeat(100_000));
    peer.send(chunk(&event));
    let mut got = Vec::new();
    while got.len() < event.len() {
        let piece = client.chunk();
        assert!(std::str::from_utf8(&piece).is_ok());
        got.extend_from_slice(&piece);
    }
    assert!(got == event.as_bytes());
}

#[test]
fn an_encoded_stream_is_not_taken_for_text() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    let Stream { client, peer, .. } = &mut stream_with(head);
    assert_eq!(client.head().status(), 200);
    // The first octet of a character that never comes must not be held back.
    peer.send(chunk(b"\x1f\x8b\xe2"));
    assert_eq!(client.chunk(), b"\x1f\x8b\xe2");
}
