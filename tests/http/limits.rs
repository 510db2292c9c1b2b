//! What a client may make the balancer hold, and for how long.

use crate::support::{Backend, Balancer, End};

#[test]
fn a_head_over_its_size_limit_is_refused_with_431() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_bytes_max", "4KiB").start();
    let base = "GET / HTTP/1.1\r\nHost: a\r\nX-Long: \r\n\r\n".len();
    let with_size = |size: usize| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(size - base))
    };
    let mut client = balancer.connect();
    assert_eq!(client.ask(with_size(4096)).status(), 200);
    let response = client.ask(with_size(4097));
    assert_eq!((response.status(), response.label().as_str()), (431, "head_too_large"));
    assert_eq!(client.expect_end(), End::Closed);
}

#[test]
fn a_head_without_an_end_is_refused_as_soon_as_it_is_too_large() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for beginning in ["GET / HTTP/1.1\r\nX: ", "GET /", "M"] {
        let mut client = balancer.connect();
        client.send(beginning);
        client.send("x".repeat(32 * 1024));
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), (431, "head_too_large"));
        client.expect_end();
    }
    backend.assert_untouched();
}

#[test]
fn a_head_with_too_many_fields_is_refused_with_431() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    // With Host.
    let with_fields =
        |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-Field: x\r\n".repeat(n - 1));
    let mut client = balancer.connect();
    assert_eq!(client.ask(with_fields(100)).status(), 200);
    let response = client.ask(with_fields(101));
    assert_eq!((response.status(), response.label().as_str()), (431, "head_too_many_fields"));
    assert_eq!(client.expect_end(), End::Closed);
}

#[test]
fn a_head_that_does_not_end_in_time_is_refused_with_408() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", "200ms").start();
    let mut first = balancer.connect();
    first.send("GET / HTTP/1.1\r\nHo");
    let mut second = balancer.connect();
    assert_eq!(second.get("/").status(), 200);
    second.send("GET / HTTP/1.1\r\nHo");
    for client in [&mut first, &mut second] {
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), (408, "head_timeout"));
        assert_eq!(client.expect_end(), End::Closed);
    }
}

#[test]
fn a_head_that_drips_is_refused_by_its_beginning_not_by_its_last_octet() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", "300ms").start();
    let mut client = balancer.connect();
    let started = std::time::Instant::now();
    client.send("GET / HTTP/1.1\r\n");
    // As fast as it can without ever ending; the balancer must not take that for progress.
    let mut dripped = 0;
    while client.try_send("X: y\r\n").is_ok() && dripped < 5_000 {
        dripped += 1;
        std::thread::sleep(std::time::Duration::from_millis(5));
        if started.elapsed() > std::time::Duration::from_secs(2) {
            break;
        }
    }
    // By time or, had it been quicker, by size: either way it was cut off while still sending.
    assert!(started.elapsed() < std::time::Duration::from_secs(2), "{dripped} lines were taken");
}

#[test]
fn a_connection_that_never_asks_is_closed_without_a_word() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", "200ms").start();
    assert_eq!(balancer.connect().expect_end(), End::Closed);
}

#[test]
fn a_request_body_that_stops_arriving_is_refused_with_408() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "300ms").start();
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    let mut peer = backend.next();
    let response = client.response();
    assert_eq!((response.status(), response.label().as_str()), (408, "request_body_timeout"));
    assert_eq!(client.expect_end(), End::Closed);
    assert_eq!(peer.until_gone().0, b"12345");
}

#[test]
fn a_request_body_that_makes_progress_may_take_its_time() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "400ms").start();
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n");
    let mut peer = backend.next();
    for n in 0..10_u8 {
        std::thread::sleep(std::time::Duration::from_millis(100));
        client.send([n]);
        assert_eq!(peer.take(1), [n]);
    }
    peer.answer("done");
    assert_eq!(client.response().text(), "done");
}

#[test]
fn a_response_body_of_known_length_that_stops_arriving_is_given_up() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "300ms").start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.rest().0, b"12345");
    peer.until_gone();
    assert_eq!(balancer.metrics().failures("response_body_timeout"), 1);
}

#[test]
fn a_response_without_a_length_may_be_silent_for_longer_than_the_body_timeout() {
    for content_type in ["text/event-stream", "application/octet-stream"] {
        let backend = Backend::played();
        let balancer = Balancer::before(&[&backend]).with("body_timeout", "200ms").start();
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        ));
        assert_eq!(client.head().status(), 200);
        client.expect_silence(std::time::Duration::from_millis(700));
        peer.send("3\r\nabc\r\n0\r\n\r\n");
        assert_eq!(client.chunk(), b"abc", "{content_type}");
    }
}

#[test]
fn a_client_that_stops_reading_is_given_up() {
    let backend = Backend::scripted(|peer| {
        let mut octets = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n".to_vec();
        while peer.try_send(&octets).is_ok() {
            octets = vec![b'x'; 1024 * 1024];
        }
        peer.close();
    });
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "300ms").start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    balancer.wait_until_quiet();
    assert_eq!(balancer.metrics().failures("client_stalled"), 1);
}

#[test]
fn a_backend_that_stops_taking_the_request_becomes_504() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "300ms").start();
    let mut client = balancer.connect();
    let mut sending = client.stream().try_clone().unwrap();
    let uploading = std::thread::spawn(move || {
        use std::io::Write;
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        let mut octets = &head[..];
        // It ends with an error: the balancer stops taking it.
        while sending.write_all(octets).is_ok() {
            octets = &[b'x'; 64 * 1024];
        }
    });
    let peer = backend.next();
    let response = client.response();
    assert_eq!((response.status(), response.label().as_str()), (504, "backend_stalled"));
    client.close();
    uploading.join().unwrap();
    drop(peer);
}
