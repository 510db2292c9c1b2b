//! What a backend gets of a request head, and a client of a response head.

use std::sync::{Arc, OnceLock};

use crate::support::{Backend, Balancer, Client, Peer};

/// One exchange, seen from both sides.
struct Exchange {
    client: Client,
    peer: Peer,
    _balancer: Balancer,
    _backend: Backend,
}

/// Sends a request through a balancer and answers it as the backend.
fn exchange(request: impl AsRef<[u8]>, answer: impl AsRef<[u8]>) -> Exchange {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(request);
    let mut peer = backend.next();
    peer.read_body();
    peer.send(answer);
    Exchange { client, peer, _balancer: balancer, _backend: backend }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn a_request_head_goes_on_octet_for_octet_with_the_forwarded_fields_behind_it() {
    let Exchange { peer, .. } = &mut exchange(
        "GET /a/%2e%2E/b?q=%zz&r=a+b HTTP/1.1\r\nHost: Example.COM:80\r\nuSER-aGENT: x\r\n\
         X-Dup: 1\r\nEmpty:\r\nx-dup:  2 \r\nX-Dup: 1\r\n\r\n",
        OK,
    );
    let want = "GET /a/%2e%2E/b?q=%zz&r=a+b HTTP/1.1\r\nHost: Example.COM:80\r\nuSER-aGENT: x\r\n\
        X-Dup: 1\r\nEmpty: \r\nx-dup: 2\r\nX-Dup: 1\r\nX-Forwarded-For: 127.0.0.1\r\n\
        X-Forwarded-Proto: http\r\nX-Forwarded-Host: Example.COM:80\r\n\
        X-Forwarded-By: stepflow-load-balancer\r\nVia: 1.1 stepflow-load-balancer\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&peer.head.octets), want);
}

#[test]
fn a_response_head_goes_on_octet_for_octet() {
    let answer = "HTTP/1.1 299 Odd  reason\r\nServer: b\r\nX-Dup: 1\r\nx-dup: 2\r\nX-Dup: 1\r\n\
        Set-Cookie: a=b; path=/\r\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n";
    let Exchange { client, .. } = &mut exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n", answer);
    assert_eq!(String::from_utf8_lossy(&client.head().without_date()), answer);
}

#[test]
fn values_may_hold_octets_beyond_ascii_in_both_directions() {
    let value: Vec<u8> = (0x80..=0xff).collect();
    let request = [b"GET / HTTP/1.1\r\nHost: a\r\nX-Raw: ", &value[..], b"\r\n\r\n"].concat();
    let answer =
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Raw: ", &value[..], b"\r\n\r\n"].concat();
    let Exchange { client, peer, .. } = &mut exchange(&request, &answer);
    assert!(peer.head.fields().contains(&(b"X-Raw", &value)), "{:?}", peer.head);
    assert_eq!(client.head().without_date(), answer);
}

#[test]
fn targets_are_forwarded_as_they_were_sent() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let targets = [
        "/",
        "/a//b/./../c",
        "/%00%ff%2F%5c",
        "/?",
        "/??&&==",
        "/a;b=c,d'(e)!*@:$",
        "/a|b{c}\"<d>^`\\",
        "//host/path",
    ];
    let mut client = balancer.connect();
    for target in targets {
        assert_eq!(client.get(target).status(), 200, "{target}");
    }
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    let forwarded: Vec<_> = seen
        .lines()
        .filter_map(|line| line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1"))
        .collect();
    assert_eq!(forwarded, targets);
}

#[test]
fn any_method_goes_through_but_connect() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "get", "M!#"] {
        let response = balancer.ask(format!("{method} /m HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(response.status(), 200, "{method}");
    }
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    for method in ["PROPFIND /m ", "get /m ", "M!# /m "] {
        assert!(seen.contains(method), "{method} in {seen}");
    }
    let before = backend.requests();
    let response = balancer.ask("CONNECT host:443 HTTP/1.1\r\nHost: host:443\r\n\r\n");
    assert_eq!((response.status(), response.label().as_str()), (405, "connect_refused"));
    assert!(response.head.has("Allow"));
    assert_eq!(backend.requests(), before);
}

#[test]
fn fields_of_one_connection_stay_on_it() {
    let Exchange { client, peer, .. } = &mut exchange(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nconnection: x-other\r\n\
         X-Hop: 1\r\nX-OTHER: 2\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
         Proxy-Authenticate: Basic\r\nX-Stays: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: x\r\nContent-Length: 0\r\nX-Stays: 3\r\n\r\n",
    );
    let gone = ["Connection", "X-Hop", "X-Other", "Keep-Alive", "TE", "Proxy-Connection"];
    let response = client.head();
    for name in gone.into_iter().chain(["Proxy-Authorization", "Proxy-Authenticate"]) {
        assert!(!peer.head.has(name), "{name} in {:?}", peer.head);
        assert!(!response.has(name), "{name} in {response:?}");
    }
    assert_eq!(peer.head.field("X-Stays").as_deref(), Some("3"));
    assert_eq!(response.field("X-Stays").as_deref(), Some("3"));
}

#[test]
fn what_frames_routes_or_attributes_a_request_cannot_be_stripped_by_listing_it() {
    let backend = Backend::played().healthy_as("pod-1");
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Type: text/plain\r\n\
         Stepflow-Instance-Id: pod-1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: outer\r\n\
         X-Forwarded-For: 192.0.2.1\r\nConnection: Host, Content-Length, Content-Type\r\n\
         Connection: Stepflow-Instance-Id, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, \
         X-Forwarded-By, Authorization, Cookie\r\nAuthorization: Basic eA==\r\nCookie: a=b\r\n\
         \r\nhi",
    );
    let mut peer = backend.next();
    assert_eq!(peer.read_body().0, b"hi");
    let want = [
        ("Host", "a"),
        ("Content-Length", "2"),
        ("Content-Type", "text/plain"),
        ("Stepflow-Instance-Id", "pod-1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "outer"),
        ("X-Forwarded-For", "192.0.2.1, 127.0.0.1"),
        ("X-Forwarded-By", "stepflow-load-balancer"),
        ("Authorization", "Basic eA=="),
        ("Cookie", "a=b"),
    ];
    for (name, value) in want {
        assert_eq!(peer.head.field(name).as_deref(), Some(value), "{name}");
    }
    peer.send(
        "HTTP/1.1 401 No\r\nConnection: Set-Cookie, WWW-Authenticate, Content-Length\r\n\
         Set-Cookie: c=d\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.head.field("Set-Cookie").as_deref(), Some("c=d"));
    assert_eq!(response.head.field("WWW-Authenticate").as_deref(), Some("Basic"));
}

#[test]
fn forwarded_for_is_one_line_with_our_client_at_its_end() {
    let Exchange { peer, .. } = &mut exchange(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2\r\nA: b\r\n\
         x-forwarded-for: 192.0.2.3\r\nX-Forwarded-By: liar\r\n\r\n",
        OK,
    );
    let chain = peer.head.field("X-Forwarded-For");
    assert_eq!(chain.as_deref(), Some("192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1"));
    assert_eq!(peer.head.field("X-Forwarded-By").as_deref(), Some("stepflow-load-balancer"));
}

/// The same request from the same address, under each list of trusted proxies.
#[test]
fn only_a_trusted_proxy_is_believed_about_its_client() {
    let request = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\n\
                   X-Forwarded-Proto: https\r\nX-Forwarded-Host: outer\r\n\
                   Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\n\r\n";
    let ours = ("127.0.0.1", "http", "a", None);
    let theirs = ("192.0.2.1, 127.0.0.1", "https", "outer", Some("192.0.2.1"));
    let cases = [
        ("private", theirs),
        ("127.0.0.1", theirs),
        ("192.0.2.0/24, 127.0.0.0/31", theirs),
        ("none", ours),
        ("192.0.2.0/24, ::1, 127.0.0.2", ours),
    ];
    for (list, (chain, scheme, host, real)) in cases {
        let backend = Backend::played();
        let balancer = Balancer::before(&[&backend]).with("trusted_proxies", list).start();
        let mut client = balancer.connect();
        // On one connection, which is judged once.
        for _ in 0..2 {
            client.send(request);
            let mut peer = backend.next();
            let field = |name: &str| peer.head.field(name);
            assert_eq!(field("X-Forwarded-For").as_deref(), Some(chain), "{list}");
            assert_eq!(field("X-Forwarded-Proto").as_deref(), Some(scheme), "{list}");
            assert_eq!(field("X-Forwarded-Host").as_deref(), Some(host), "{list}");
            assert_eq!(field("X-Real-IP").as_deref(), real, "{list}");
            assert_eq!(peer.head.has("Forwarded"), real.is_some(), "{list}");
            peer.send(OK);
            peer.close();
            assert_eq!(client.head().status(), 200);
        }
    }
}

#[test]
fn an_underscore_does_not_smuggle_a_field_past_us() {
    let Exchange { peer, .. } = &mut exchange(
        "GET / HTTP/1.1\r\nHost: a\r\nX_Forwarded_For: 192.0.2.1\r\nX-Real_IP: 192.0.2.1\r\n\
         Content_Length: 5\r\nStepflow_Instance_Id: pod-1\r\nX_Request_Id: 7\r\n\r\n",
        OK,
    );
    for name in ["X_Forwarded_For", "X-Real_IP", "Content_Length", "Stepflow_Instance_Id"] {
        assert!(!peer.head.has(name), "{name} in {:?}", peer.head);
    }
    assert_eq!(peer.head.field("X-Forwarded-For").as_deref(), Some("127.0.0.1"));
    assert_eq!(peer.head.field("X_Request_Id").as_deref(), Some("7"));
}

#[test]
fn via_says_the_version_that_was_received_unless_it_is_switched_off() {
    let ours = |version: &str| format!("1.0 fred, {version} stepflow-load-balancer");
    for (via, version, want) in [
        ("on", "1.1", ours("1.1")),
        ("on", "1.0", ours("1.0")),
        ("off", "1.1", "1.0 fred".to_owned()),
    ] {
        let backend = Backend::played();
        let balancer = Balancer::before(&[&backend]).with("via", via).start();
        let mut client = balancer.connect();
        client.send(format!("GET / HTTP/{version}\r\nHost: a\r\nVia: 1.0 fred\r\n\r\n"));
        let mut peer = backend.next();
        assert_eq!(peer.head.field("Via").as_deref(), Some(want.as_str()), "{via}");
        peer.send("HTTP/1.1 200 OK\r\nVia: 1.1 inner\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.head().field("Via").as_deref(), Some("1.1 inner"), "responses get none");
    }
}

/// A backend that asks the balancer, as one does that is a balancer with a wrong target.
#[test]
fn a_request_that_goes_in_circles_is_answered_508() {
    let address = Arc::new(OnceLock::new());
    let target = Arc::clone(&address);
    let backend = Backend::scripted(move |peer| {
        let mut onwards = Client::connect(*target.get().unwrap());
        onwards.send(&peer.head.octets);
        let response = onwards.response();
        peer.send([response.head.octets, response.body].concat());
    });
    let balancer = Balancer::start(&[&backend]);
    address.set(balancer.address).unwrap();
    let mut client = balancer.connect();
    let response = client.get("/");
    assert_eq!((response.status(), response.label().as_str()), (508, "via_loop"));
    assert_eq!(backend.requests(), 5);
    balancer.wait_for_failures("via_loop", 1);
}

#[test]
fn a_client_that_takes_trailers_says_so_to_the_backend() {
    let Exchange { peer, .. } = &mut exchange(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers, gzip\r\n\r\n",
        OK,
    );
    assert_eq!(peer.head.field("Connection").as_deref(), Some("TE"));
    assert_eq!(peer.head.field("TE").as_deref(), Some("trailers"));
}

#[test]
fn max_forwards_counts_down_and_ends_here_at_zero() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let ask = |client: &mut Client, method: &str, hops: &str| {
        client.ask(format!(
            "{method} /x HTTP/1.1\r\nHost: a\r\nMax-Forwards: {hops}\r\nContent-Length: 2\r\n\r\nhi"
        ))
    };
    for (method, hops, want) in [("OPTIONS", "1", "0"), ("TRACE", "3", "2"), ("GET", "0", "0")] {
        assert_eq!(ask(&mut client, method, hops).text(), "ok", "{method}");
        let seen = String::from_utf8(backend.connections().concat()).unwrap();
        let line = format!("Max-Forwards: {want}\r\n");
        let head = seen.rsplit(&format!("{method} /x ")).next().unwrap();
        assert!(head.contains(&line), "{line:?} not in {head:?}");
    }
    let before = backend.requests();
    // The answer of the last station; the connection goes on.
    for _ in 0..2 {
        let response = ask(&mut client, "OPTIONS", "0");
        assert_eq!((response.status(), response.text().as_str()), (200, ""));
        assert!(response.head.field("Allow").unwrap().contains("POST"), "{response:?}");
        assert!(!response.head.has("Content-Type"), "{response:?}");
        assert_eq!(response.head.field("Content-Length").as_deref(), Some("0"));
    }
    let response = ask(&mut client, "TRACE", "0");
    assert_eq!((response.status(), response.label().as_str()), (405, "trace_refused"));
    assert!(response.head.has("Allow"));
    client.expect_end();
    let response = ask(&mut balancer.connect(), "OPTIONS", "x");
    assert_eq!((response.status(), response.label().as_str()), (400, "max_forwards_invalid"));
    assert_eq!(backend.requests(), before);
}

#[test]
fn an_answer_that_comes_before_its_body_ends_the_connection() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let head = "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n";
    client.send(format!("{head}Content-Length: 50\r\n\r\nGET / HTTP/1.1\r\n"));
    let response = client.response();
    assert_eq!(response.status(), 200);
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    client.expect_end();
    backend.assert_untouched();
}

#[test]
fn trace_context_passes_whole_with_every_duplicate() {
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let Exchange { peer, .. } = &mut exchange(
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\ntraceparent: {parent}\r\ntracestate: a=1\r\n\
             baggage: x=1;p\r\ntracestate: b=2\r\nbaggage: y=%20\r\n\r\n"
        ),
        OK,
    );
    assert_eq!(peer.head.all("traceparent"), [parent]);
    assert_eq!(peer.head.all("tracestate"), ["a=1", "b=2"]);
    assert_eq!(peer.head.all("baggage"), ["x=1;p", "y=%20"]);
}

#[test]
fn an_absolute_target_wins_over_host_and_goes_on_in_origin_form() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let cases = [
        ("http://real:81/p?q", "GET /p?q HTTP/1.1\r\nHost: real:81\r\n"),
        ("HTTP://real", "GET / HTTP/1.1\r\nHost: real\r\n"),
        ("https://[::1]:8/x", "GET /x HTTP/1.1\r\nHost: [::1]:8\r\n"),
    ];
    for (target, want) in cases {
        let response = balancer.get(target);
        assert_eq!(response.status(), 200, "{target}");
        let seen = String::from_utf8(backend.connections().concat()).unwrap();
        assert!(seen.contains(want), "{target}: {want:?} not in {seen:?}");
    }
}

#[test]
fn options_of_the_whole_server_is_forwarded() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for target in ["*", "http://a"] {
        let request = format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(balancer.ask(request).status(), 200, "{target}");
    }
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    assert_eq!(seen.matches("OPTIONS * HTTP/1.1\r\nHost: a\r\n").count(), 2, "{seen}");
}

#[test]
fn an_http10_client_without_a_host_gets_its_answer_and_the_end() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let response = client.ask("GET /old HTTP/1.0\r\n\r\n");
    assert_eq!(response.text(), "ok");
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    client.expect_end();
    let seen = String::from_utf8(backend.connections().concat()).unwrap();
    let want = format!("GET /old HTTP/1.1\r\nHost: {}\r\n", balancer.address);
    assert!(seen.starts_with(&want), "{seen}");
}

#[test]
fn an_http10_client_may_keep_its_connection_if_it_asks_to() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for _ in 0..3 {
        let response = client.ask("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        assert_eq!(response.text(), "ok");
        assert_eq!(response.head.field("Connection").as_deref(), Some("keep-alive"));
    }
}

#[test]
fn a_client_that_says_close_is_told_so_and_closed() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let response = client.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: foo, CLOSE\r\n\r\n");
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    client.expect_end();
}

#[test]
fn an_empty_line_in_front_of_a_request_is_skipped() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    assert_eq!(client.ask("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
    assert_eq!(client.get("/").status(), 200);
}

#[test]
fn a_head_may_arrive_octet_by_octet() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    for octet in b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" {
        client.send([*octet]);
    }
    assert_eq!(client.response().text(), "ok");
    assert!(backend.connections().concat().ends_with(b"\r\n\r\nabc"));
}
