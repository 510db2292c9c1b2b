//! `Upgrade`: octets both ways once both sides have agreed, and never before.

use crate::support::{Backend, Balancer, Client, End, Peer, noise};

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: eQ==\r\n\r\n";

struct Tunnel {
    client: Client,
    peer: Peer,
    balancer: Balancer,
    _backend: Backend,
}

fn open() -> Tunnel {
    open_with("1h")
}

fn open_with(tunnel_idle_timeout: &str) -> Tunnel {
    let backend = Backend::played();
    let balancer =
        Balancer::before(&[&backend]).with("tunnel_idle_timeout", tunnel_idle_timeout).start();
    let mut client = balancer.connect();
    client.send(UPGRADE);
    let mut peer = backend.next();
    assert_eq!(peer.head.field("Upgrade").as_deref(), Some("websocket"));
    assert_eq!(peer.head.field("Connection").as_deref(), Some("upgrade"));
    assert_eq!(peer.head.field("Sec-WebSocket-Key").as_deref(), Some("eA=="));
    peer.send(SWITCHED);
    let head = client.head();
    assert_eq!(head.status(), 101);
    assert_eq!(head.field("Upgrade").as_deref(), Some("websocket"));
    assert_eq!(head.field("Connection").as_deref(), Some("upgrade"));
    assert_eq!(head.field("Sec-WebSocket-Accept").as_deref(), Some("eQ=="));
    Tunnel { client, peer, balancer, _backend: backend }
}

#[test]
fn octets_go_both_ways_untouched() {
    let Tunnel { client, peer, balancer, .. } = &mut open();
    assert_eq!(balancer.metrics().sum("stepflow_lb_tunnels_open", &[]), 1);
    for n in 0..10_u8 {
        client.send([n, b'\r', b'\n', 0]);
        assert_eq!(peer.take(4), [n, b'\r', b'\n', 0]);
        peer.send([0xff, n]);
        assert_eq!(client.take(2), [0xff, n]);
    }
    let large = noise(3_000_000);
    let sent = large.clone();
    let mut sending = client.stream().try_clone().unwrap();
    let thread = std::thread::spawn(move || std::io::Write::write_all(&mut sending, &sent));
    assert!(peer.take(large.len()) == large);
    thread.join().unwrap().unwrap();
    client.close();
    assert_eq!(peer.until_gone().0, b"");
    peer.close();
    balancer.wait_until_quiet();
    assert_eq!(balancer.metrics().sum("stepflow_lb_tunnels_open", &[]), 0);
}

#[test]
fn octets_right_behind_the_heads_are_not_lost() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(format!("{UPGRADE}eager client"));
    let mut peer = backend.next();
    peer.send(format!("{SWITCHED}eager backend"));
    assert_eq!(client.head().status(), 101);
    assert_eq!(client.take(13), b"eager backend");
    assert_eq!(peer.take(12), b"eager client");
}

#[test]
fn nothing_behind_the_head_reaches_a_backend_before_it_has_agreed() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(format!("{UPGRADE}GET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
    let mut peer = backend.next();
    assert_eq!(backend.connections().concat(), peer.head.octets);
    // It does not agree: what follows is a request.
    peer.answer("no");
    assert_eq!(client.response().text(), "no");
    assert_eq!(peer.next_request().target(), "/next");
    peer.answer("next");
    assert_eq!(client.response().text(), "next");
}

#[test]
fn each_direction_ends_on_its_own() {
    let Tunnel { client, peer, balancer, .. } = &mut open();
    client.send("last words");
    client.finish_sending();
    assert_eq!(peer.until_gone(), (b"last words".to_vec(), End::Closed));
    peer.send("the answer");
    assert_eq!(client.take(10), b"the answer");
    peer.close();
    assert_eq!(client.expect_end(), End::Closed);
    balancer.wait_until_quiet();
}

#[test]
fn the_backend_may_end_first() {
    let Tunnel { client, peer, balancer, .. } = &mut open();
    peer.send("bye");
    peer.finish_sending();
    assert_eq!(client.rest(), (b"bye".to_vec(), End::Closed));
    client.send("you too");
    client.close();
    assert_eq!(peer.until_gone().0, b"you too");
    balancer.wait_until_quiet();
}

#[test]
fn a_side_that_breaks_takes_the_other_with_it() {
    let Tunnel { client, peer, balancer, .. } = &mut open();
    client.reset();
    peer.until_gone();
    balancer.wait_until_quiet();
    let Tunnel { client, peer, balancer, .. } = &mut open();
    peer.reset();
    client.expect_end();
    balancer.wait_until_quiet();
}

#[test]
fn a_silent_tunnel_has_no_deadline() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend])
        .with("body_timeout", "100ms")
        .with("keep_alive_timeout", "100ms")
        // Not so short that it might pass before the request is sent.
        .with("request_head_timeout", "1s")
        .start();
    let mut client = balancer.connect();
    client.send(UPGRADE);
    let mut peer = backend.next();
    peer.send(SWITCHED);
    assert_eq!(client.head().status(), 101);
    client.expect_silence(std::time::Duration::from_millis(1500));
    peer.send("still there");
    assert_eq!(client.take(11), b"still there");
}

#[test]
fn a_switch_that_nobody_asked_for_becomes_502() {
    let requests = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        // Not listed in Connection.
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n",
        // Listed, but absent.
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ];
    for request in requests {
        let backend = Backend::played();
        let balancer = Balancer::start(&[&backend]);
        let mut client = balancer.connect();
        client.send(request);
        let mut peer = backend.next();
        assert!(!peer.head.has("Upgrade"), "{:?}", peer.head);
        peer.send(SWITCHED);
        let response = client.response();
        assert_eq!((response.status(), response.label().as_str()), (502, "response_upgrade"));
        peer.until_gone();
    }
}

#[test]
fn an_upgrade_to_cleartext_http2_is_not_forwarded() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for value in ["h2c", "H2C", "websocket, h2c"] {
        let response = balancer.ask(format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {value}\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
        ));
        assert_eq!(response.status(), 200);
    }
    let seen = String::from_utf8(backend.connections().concat()).unwrap().to_lowercase();
    assert!(!seen.contains("upgrade") && !seen.contains("http2-settings"), "{seen}");
}

#[test]
fn a_tunnel_that_carries_nothing_is_closed_on_both_sides() {
    let Tunnel { client, peer, balancer, .. } = &mut open_with("1s");
    client.send("ping");
    assert_eq!(peer.take(4), b"ping");
    peer.until_gone();
    client.rest();
    balancer.wait_for_failures("tunnel_idle", 1);
    balancer.wait_until_quiet();
    assert_eq!(balancer.metrics().sum("stepflow_lb_tunnels_open", &[]), 0);
}

#[test]
fn a_tunnel_that_is_used_in_one_direction_lives_on() {
    let Tunnel { client, peer, balancer, .. } = &mut open_with("3s");
    // Far from its deadline each time, and beyond it in all.
    for n in 0..10_u8 {
        std::thread::sleep(std::time::Duration::from_millis(400));
        peer.send([n]);
        assert_eq!(client.take(1), [n]);
    }
    client.send("still here");
    assert_eq!(peer.take(10), b"still here");
    assert_eq!(balancer.metrics().failures("tunnel_idle"), 0);
}

#[test]
fn a_tunnel_may_be_silent_for_ever_where_that_is_wanted() {
    let Tunnel { client, peer, .. } = &mut open_with("off");
    client.expect_silence(std::time::Duration::from_millis(300));
    peer.send("late");
    assert_eq!(client.take(4), b"late");
}
