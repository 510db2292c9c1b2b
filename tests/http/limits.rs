//! What a client may make the balancer hold, and for how long.

use std::{io::Write, time::Duration};

use crate::support::{Backend, Balancer, Client, End, wait_until};

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
    for (beginning, more, refusal) in [
        ("GET / HTTP/1.1\r\nX: ", 32, (431, "head_too_large")),
        ("GET /", 17, (414, "head_line_too_long")),
        ("\r\nM", 17, (414, "head_line_too_long")),
    ] {
        let mut client = balancer.connect();
        client.send(beginning);
        client.send("x".repeat(more * 1024));
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), refusal);
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

/// Short, and yet longer than a busy machine takes from one line of a test to the next.
const HEAD_TIMEOUT: &str = "1s";

#[test]
fn a_head_that_does_not_end_in_time_is_refused_with_408() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", HEAD_TIMEOUT).start();
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
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", HEAD_TIMEOUT).start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\n");
    let mut sending = client.stream().try_clone().unwrap();
    let dripping = std::thread::spawn(move || {
        // Never pauses for as long as the deadline, and never ends by itself.
        while sending.write_all(b"X: y\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert_eq!(client.response().label(), "head_timeout");
    client.close();
    dripping.join().unwrap();
}

#[test]
fn a_connection_that_never_asks_is_closed_without_a_word() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_timeout", HEAD_TIMEOUT).start();
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
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "3s").start();
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    let mut peer = backend.next();
    // Longer than the timeout as a whole, far from it between two octets.
    for n in 0..6_u8 {
        std::thread::sleep(Duration::from_millis(600));
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
    balancer.wait_for_failures("response_body_timeout", 1);
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
        client.expect_silence(Duration::from_millis(700));
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
    balancer.wait_for_failures("client_stalled", 1);
}

#[test]
fn a_backend_that_stops_taking_the_request_becomes_504() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("body_timeout", "300ms").start();
    let mut client = balancer.connect();
    let mut sending = client.stream().try_clone().unwrap();
    let uploading = std::thread::spawn(move || {
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

#[test]
fn a_backend_that_does_not_answer_becomes_504_and_is_not_asked_again() {
    let (backend, other) = (Backend::played(), Backend::played());
    let balancer =
        Balancer::before(&[&backend, &other]).with("response_head_timeout", "300ms").start();
    let mut client = balancer.connect();
    // Idempotent or not: the backend may be at work. The connection goes on.
    for method in ["GET", "POST"] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"));
        let response = client.response();
        assert_eq!(
            (response.status(), response.label().as_str()),
            (504, "response_head_timeout"),
            "{method}"
        );
    }
    balancer.wait_for_failures("response_head_timeout", 2);
    assert_eq!(backend.requests() + other.requests(), 2);
    assert_eq!(balancer.metrics().sum("stepflow_lb_retries_total", &[]), 0);
    let mut peer = if backend.has_next() { backend.next() } else { other.next() };
    peer.wait_for_end();
}

#[test]
fn neither_a_part_of_a_head_nor_an_interim_response_prolongs_the_wait_for_a_response() {
    for (beginning, statuses) in [
        ("HTTP/1.1 200 OK\r\nContent-Le", &[504_u16][..]),
        ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", &[103, 504]),
    ] {
        let backend = Backend::played();
        let balancer = Balancer::before(&[&backend]).with("response_head_timeout", "1s").start();
        let mut client = balancer.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut peer = backend.next();
        peer.send(beginning);
        for status in &statuses[..statuses.len() - 1] {
            assert_eq!(client.head().status(), *status);
        }
        assert_eq!(client.response().label(), "response_head_timeout", "{beginning}");
        peer.wait_for_end();
    }
}

#[test]
fn the_wait_for_a_response_begins_when_the_request_has_been_sent() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("response_head_timeout", "2s").start();
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n");
    let mut peer = backend.next();
    // The upload as a whole takes longer than the backend may.
    for n in 0..6_u8 {
        std::thread::sleep(Duration::from_millis(400));
        client.send([n]);
        assert_eq!(peer.take(1), [n]);
    }
    peer.answer("in time");
    assert_eq!(client.response().text(), "in time");
    // And a body may then take longer than that to come.
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    peer.next_request();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    client.expect_silence(Duration::from_millis(2300));
    peer.send("late");
    assert_eq!(client.take(4), b"late");
}

#[test]
fn a_request_line_over_its_limit_is_refused_with_414() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_line_bytes_max", "100").start();
    let with_line = |bytes: usize| {
        let target = "x".repeat(bytes - "GET / HTTP/1.1".len());
        // What follows the line does not count as part of it.
        format!("GET /{target} HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "x".repeat(200))
    };
    let mut client = balancer.connect();
    assert_eq!(client.ask(with_line(100)).status(), 200);
    let response = client.ask(with_line(101));
    assert_eq!((response.status(), response.label().as_str()), (414, "head_line_too_long"));
    assert_eq!(client.expect_end(), End::Closed);
    assert_eq!(backend.requests(), 1);
    balancer.wait_for_failures("head_line_too_long", 1);
}

#[test]
fn a_body_whose_length_is_over_the_limit_is_refused_before_a_backend_hears_of_it() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_body_bytes_max", "5").start();
    let mut client = balancer.connect();
    let post =
        |length: usize| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n");
    assert_eq!(client.ask(format!("{}\r\nhello", post(5))).status(), 200);
    assert_eq!(backend.requests(), 1);
    // Nor is it invited to send what nobody will read.
    client.send(format!("{}Expect: 100-continue\r\n\r\n", post(6)));
    let response = client.response();
    assert_eq!((response.status(), response.label().as_str()), (413, "request_too_large"));
    assert_eq!(client.expect_end(), End::Closed);
    assert_eq!(backend.requests(), 1);
    balancer.wait_for_failures("request_too_large", 1);
}

#[test]
fn a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit() {
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("request_body_bytes_max", "5").start();
    // At once: no backend hears of it.
    let response = balancer.ask(format!("{HEAD}6\r\n123456"));
    assert_eq!((response.status(), response.label().as_str()), (413, "request_too_large"));
    assert!(!backend.has_next());
    // Framing is not content.
    let mut client = balancer.connect();
    client.send(format!("{HEAD}2;long=extension\r\n12\r\n"));
    let mut peer = backend.next();
    client.send("3\r\n345\r\n0\r\nX-Last: here\r\n\r\n");
    peer.take_through("here\r\n\r\n");
    peer.answer("fits");
    assert_eq!(client.response().text(), "fits");
    // While it is uploaded: the backend gets an end instead of the rest.
    client.send(format!("{HEAD}2\r\n12\r\n"));
    peer.next_request();
    client.send("4\r\n3456\r\n0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status(), response.label().as_str()), (413, "request_too_large"));
    assert_eq!(client.expect_end(), End::Closed);
    assert_eq!(peer.until_gone().0, b"2\r\n12\r\n");
    balancer.wait_for_failures("request_too_large", 2);
}

#[test]
fn a_body_that_goes_over_the_limit_behind_a_response_that_has_begun_cuts_it() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("request_body_bytes_max", "5").start();
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n");
    let mut peer = backend.next();
    peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nbeginning");
    assert_eq!(client.head().status(), 200);
    assert_eq!(client.take(9), b"beginning");
    client.send("4\r\n3456\r\n");
    assert_eq!(client.rest().0, b"");
    peer.wait_for_end();
    balancer.wait_for_failures("request_too_large", 1);
}

#[test]
fn the_last_request_of_a_connection_is_answered_with_its_end() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("requests_per_connection_max", "3").start();
    for target in ["/", "/health"] {
        let asked = backend.requests();
        let mut client = balancer.connect();
        // The fourth lies behind the third already, and is never served.
        client.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(4));
        for n in 1..=3 {
            let response = client.response();
            assert_eq!(response.status(), 200, "{target} {n}");
            let closes = response.head.field("Connection").as_deref() == Some("close");
            assert_eq!(closes, n == 3, "{target} {n}");
        }
        client.expect_end();
        assert_eq!(backend.requests() - asked, if target == "/" { 3 } else { 0 });
    }
    // The backend's connection is none of the client's business.
    assert!(balancer.metrics().sum("stepflow_lb_upstream_reuses_total", &[]) >= 2);
    // HTTP/1.0 clients that keep theirs alive are told by silence.
    let mut client = balancer.connect();
    let ask = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    for n in 1..=3 {
        let kept = client.ask(ask).head.field("Connection").as_deref() == Some("keep-alive");
        assert_eq!(kept, n < 3);
    }
    client.expect_end();
}

#[test]
fn a_connection_too_many_is_refused_with_503_and_the_others_go_on() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("connections_max", "4").start();
    // Asking makes sure that each has been counted before the next comes.
    let mut clients: Vec<_> = (0..4)
        .map(|_| {
            let mut client = balancer.connect();
            assert_eq!(client.get("/").status(), 200);
            client
        })
        .collect();
    for n in 1..=20 {
        let mut refused = balancer.connect();
        let response = refused.response();
        assert_eq!((response.status(), response.label().as_str()), (503, "too_many_connections"));
        assert_eq!(response.head.field("Retry-After").as_deref(), Some("5"));
        assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
        refused.expect_end();
        balancer.wait_for_failures("too_many_connections", n);
    }
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    assert_eq!(balancer.metrics().sum("stepflow_lb_connections_open", &[]), 4);
    clients.remove(0).close();
    wait_until("there is room again", || balancer.get("/").status() == 200);
}

#[test]
fn a_client_with_too_many_connections_is_refused_with_429_and_others_are_not() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("connections_per_client_max", "3").start();
    let from = |last: u8| Client::connect_from([127, 0, 0, last].into(), balancer.address);
    let mut clients = Vec::new();
    for last in [2, 3] {
        for _ in 0..3 {
            let mut client = from(last);
            assert_eq!(client.get("/").status(), 200);
            clients.push(client);
        }
        let mut refused = from(last);
        let response = refused.response();
        assert_eq!(
            (response.status(), response.label().as_str()),
            (429, "too_many_connections_of_client")
        );
        assert_eq!(response.head.field("Retry-After").as_deref(), Some("5"));
        refused.expect_end();
    }
    balancer.wait_for_failures("too_many_connections_of_client", 2);
    assert_eq!(from(4).get("/").status(), 200);
    clients.remove(0).close();
    wait_until("there is room again", || from(2).get("/").status() == 200);
}

/// A backend whose stream of events never ends, as long as somebody takes them.
fn flooding() -> Backend {
    Backend::scripted(|peer| {
        let mut octets = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n".to_vec();
        while peer.try_send(&octets).is_ok() {
            octets = b"data: more and more\n\n".repeat(4096);
        }
        peer.close();
    })
}

#[test]
fn a_client_that_takes_nothing_of_its_stream_is_given_up() {
    let backend = flooding();
    let balancer = Balancer::before(&[&backend])
        .with("client_stall_timeout", "300ms")
        .with("body_timeout", "1h")
        .start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    balancer.wait_until_quiet();
    balancer.wait_for_failures("client_stalled", 1);
    assert_eq!(balancer.metrics().sum("stepflow_lb_event_streams_open", &[]), 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_active_connections", &[]), 0);
}

#[test]
fn a_client_may_stop_reading_its_stream_where_that_is_wanted() {
    let backend = flooding();
    let balancer = Balancer::before(&[&backend])
        .with("client_stall_timeout", "off")
        .with("body_timeout", "100ms")
        .start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(balancer.metrics().failures("client_stalled"), 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_event_streams_open", &[]), 1);
}

#[test]
fn the_oldest_of_too_many_heads_makes_room_and_running_exchanges_are_not_touched() {
    let backend = Backend::played();
    // One worker, so that all of them share one crowd.
    let balancer = Balancer::before(&[&backend])
        .with("heads_in_reading_max", "2")
        .with("workers", "1")
        .start();
    let mut running = balancer.connect();
    running.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n");
    let mut peer = backend.next();
    let mut slow: Vec<_> = (0..2).map(|_| balancer.connect()).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHo");
        // It is read before the next one begins.
        client.wait_until_received();
        assert_eq!(balancer.get("/health").status(), 200);
    }
    let mut newcomer = balancer.connect();
    newcomer.send("GET /health HT");
    let response = slow[0].response();
    assert_eq!((response.status(), response.label().as_str()), (408, "head_crowded_out"));
    slow[0].expect_end();
    balancer.wait_for_failures("head_crowded_out", 1);
    newcomer.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(newcomer.response().status(), 200);
    slow[1].send("st: a\r\n");
    running.send("hi");
    assert_eq!(peer.take(2), b"hi");
    peer.answer("done");
    assert_eq!(running.response().text(), "done");
    assert_eq!(balancer.metrics().failures("head_crowded_out"), 1);
}

#[test]
fn a_head_that_falls_behind_its_pace_is_refused_with_408_and_a_fast_one_is_not() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("request_head_rate_min", "100").start();
    let (mut slow, mut fast) = (balancer.connect(), balancer.connect());
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n");
    // Ten seconds' worth of octets.
    fast.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n", "x".repeat(1000)));
    let response = slow.response();
    assert_eq!((response.status(), response.label().as_str()), (408, "head_too_slow"));
    slow.expect_end();
    fast.send("\r\n");
    assert_eq!(fast.response().status(), 200);
    balancer.wait_for_failures("head_too_slow", 1);
}
