//! Bodies so large that they go in bulk: as promised of all others, and in bounded memory.

use std::{sync::Arc, thread, time::Duration};

use crate::support::{Backend, Balancer, End, message::chunked, noise};

const MIB: usize = 1024 * 1024;

/// Long enough to be large by its length and by its pieces, and no multiple of any buffer.
const SIZE: usize = 3 * MIB + 4321;

/// More than a worker has lanes.
const CLIENTS: usize = 10;

/// A backend that says whether the body that came was noise, and answers with noise framed as the
/// request's target says.
fn echoing(content: &Arc<Vec<u8>>) -> Backend {
    let content = Arc::clone(content);
    Backend::scripted(move |peer| {
        let target = peer.head.target();
        let is_same = peer.read_body().0 == *content;
        let (field, octets) = match target.as_str() {
            "/chunked" => ("Transfer-Encoding: chunked".to_owned(), chunked(&content, 300_001)),
            "/small-chunks" => ("Transfer-Encoding: chunked".to_owned(), chunked(&content, 1009)),
            "/length" => (format!("Content-Length: {SIZE}"), content.to_vec()),
            _ => ("Connection: close".to_owned(), content.to_vec()),
        };
        peer.send(format!("HTTP/1.1 200 OK\r\n{field}\r\nX-Same: {is_same}\r\n\r\n"));
        peer.send(octets);
        if target == "/close" {
            peer.close();
        }
    })
}

#[test]
fn more_large_bodies_than_there_are_lanes_go_both_ways_octet_for_octet() {
    let content = Arc::new(noise(SIZE));
    for driver in ["auto", "epoll"] {
        let backend = echoing(&content);
        let setup = Balancer::before(&[&backend]).with("workers", "1").with("io_driver", driver);
        let balancer = Arc::new(setup.start());
        let clients = (0..CLIENTS).map(|number| {
            let (balancer, content) = (Arc::clone(&balancer), Arc::clone(&content));
            thread::spawn(move || {
                for target in ["/length", "/chunked", "/small-chunks", "/close"] {
                    let mut client = balancer.connect();
                    let (field, octets) = match number % 2 {
                        0 => (format!("Content-Length: {SIZE}"), content.to_vec()),
                        _ => ("Transfer-Encoding: chunked".to_owned(), chunked(&content, 70_001)),
                    };
                    client.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
                    client.send(octets);
                    let response = client.response();
                    let same = response.head.field("X-Same");
                    assert_eq!(same.as_deref(), Some("true"), "{target} {:?}", response.head);
                    assert!(response.body == *content, "{target}: not what was sent");
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.join().unwrap();
        }
        balancer.wait_until_quiet();
    }
}

#[test]
fn what_follows_a_large_body_is_the_next_message() {
    let content = Arc::new(noise(SIZE));
    let backend = echoing(&content);
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let mut octets =
        format!("POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n").into_bytes();
    octets.extend_from_slice(&content);
    // Both requests at once, so that the second begins in the last piece of the first.
    let twice = octets.repeat(2);
    let mut sending = client.stream().try_clone().unwrap();
    let sender = thread::spawn(move || std::io::Write::write_all(&mut sending, &twice).unwrap());
    for _ in 0..2 {
        let response = client.response();
        assert_eq!(response.head.field("X-Same").as_deref(), Some("true"));
        assert!(response.body == *content, "not what was sent");
    }
    sender.join().unwrap();
    assert_eq!(backend.connections().len(), 1, "the connection to the backend is kept");
}

#[test]
fn a_large_response_that_is_cut_or_broken_ends_the_clients_side_and_is_told_of() {
    let content = noise(2 * MIB);
    let length = "Content-Length: 8000000";
    let cases = [
        ("response_truncated", length, content.clone(), content.len()),
        // What came in one piece with the break is not forwarded: how much did is open.
        (
            "response_body",
            "Transfer-Encoding: chunked",
            [&chunked(&content, content.len())[..content.len() + 10], b"broken"].concat(),
            0,
        ),
    ];
    for (label, field, octets, least) in cases {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"));
        let sender = thread::spawn(move || {
            // The balancer may close before it has taken all.
            let _ = peer.try_send(octets);
            peer.close();
        });
        assert_eq!(client.head().status(), 200);
        let (rest, _) = client.rest();
        assert!(rest.len() >= least, "{label}: {} octets came", rest.len());
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{label}: nothing says that this was all");
        sender.join().unwrap();
        balancer.wait_for_failures(label, 1);
        balancer.wait_until_quiet();
    }
}

#[test]
fn a_large_body_that_stops_arriving_is_given_up_in_either_direction() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "2s").start();
    // Ready beforehand: what takes time here would be time in which nothing arrives.
    let content = Arc::new(noise(2 * MIB));
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    let sent = Arc::clone(&content);
    let sender = thread::spawn(move || {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n");
        peer.send(sent.as_slice());
        peer.until_gone();
    });
    assert_eq!(client.head().status(), 200);
    assert!(client.rest().0 == *content);
    sender.join().unwrap();
    balancer.wait_for_failures("response_body_timeout", 1);

    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n");
    let mut peer = backend.next();
    let taker = thread::spawn(move || peer.until_gone().0.len());
    client.send(content.as_slice());
    assert_eq!(client.response().status(), 408);
    assert_eq!(taker.join().unwrap(), 2 * MIB);
    balancer.wait_for_failures("request_body_timeout", 1);
}

#[test]
fn a_client_that_leaves_inside_a_large_body_takes_the_backend_connection_with_it() {
    let content = noise(2 * MIB);
    for resets in [false, true] {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n");
        let mut peer = backend.next();
        let taker = thread::spawn(move || peer.until_gone().0.len());
        client.send(&content);
        client.wait_until_received();
        if resets {
            client.reset();
        } else {
            client.finish_sending();
            assert_eq!(client.expect_end(), End::Closed);
        }
        assert!(taker.join().unwrap() <= 2 * MIB);
        balancer.wait_for_failures("request_truncated", 1);

        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
        let sender = thread::spawn(move || while peer.try_send(vec![0; MIB]).is_ok() {});
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.take(2 * MIB).len(), 2 * MIB);
        client.reset();
        sender.join().unwrap();
        balancer.wait_until_quiet();
        balancer.wait_for_failures("client_gone", 1);
    }
}

/// Stalled clients keep their lanes; whoever comes later has to do without, and does.
#[test]
fn clients_that_stop_reading_large_bodies_do_not_hold_up_others() {
    let content = Arc::new(noise(SIZE));
    let large = Arc::clone(&content);
    let backend = Backend::scripted(move |peer| {
        if peer.head.target() == "/stalled" {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            while peer.try_send(vec![0; MIB]).is_ok() {}
        } else {
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
            peer.send(large.as_slice());
        }
    });
    let balancer = Balancer::before(&[&backend]).with("workers", "1").start();
    let stalled: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = balancer.connect();
            client.send("GET /stalled HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.head().status(), 200);
            // By now its body goes in bulk.
            client.take(MIB);
            client
        })
        .collect();
    for _ in 0..3 {
        let mut client = balancer.connect();
        assert!(client.get("/").body == *content, "not what was sent");
        client.expect_silence(Duration::from_millis(50));
    }
    drop(stalled);
    balancer.wait_until_quiet();
}
