//! Sessions in sealed headers and cookies: every request of a session reaches the instance that
//! has it, through whichever worker and replica, or its client is told that it is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::support::{Backend, Balancer, Client, Health, Response, balancer::Setup, wait_until};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
const OLD_KEY: &str = "aa0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A server of MCP: gives a session to whoever brings none, and knows only its own. Says its name
/// and the session that it saw.
fn mcp_server(name: &'static str) -> Backend {
    let given = AtomicUsize::new(0);
    let server = Backend::scripted(move |peer| {
        peer.read_body();
        let session = peer.head.field("Mcp-Session-Id");
        let (status, session) = match session {
            None => {
                let number = given.fetch_add(1, Ordering::Relaxed);
                ("200 OK", format!("{name}-session-{number}"))
            }
            Some(session) if session.starts_with(&format!("{name}-session-")) => {
                ("200 OK", session)
            }
            Some(session) => ("404 Not Found", session),
        };
        let body = format!("{name} {session}");
        let length = body.len();
        let _ = peer.try_send(format!(
            "HTTP/1.1 {status}\r\nMcp-Session-Id: {session}\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
    });
    server.healthy_as(name)
}

fn mcp(backends: &[&Backend]) -> Setup {
    Balancer::before(backends).with("session_header", "Mcp-Session-Id").with("session_keys", KEY)
}

fn request(method: &str, fields: &str) -> String {
    let length = if method == "POST" { "Content-Length: 2\r\n" } else { "" };
    let body = if method == "POST" { "{}" } else { "" };
    format!(
        "{method} /mcp HTTP/1.1\r\nHost: a\r\nAccept: application/json, text/event-stream\r\n\
         {fields}{length}\r\n{body}"
    )
}

fn post(balancer: &Balancer, fields: &str) -> Response {
    balancer.ask(request("POST", fields))
}

fn with_session(token: &str) -> String {
    format!("Mcp-Session-Id: {token}\r\n")
}

/// Opens a session: its token, and what the server said.
#[track_caller]
fn open(balancer: &Balancer) -> (String, String) {
    let response = post(balancer, "");
    assert_eq!(response.status(), 200, "{response:?}");
    (response.head.field("Mcp-Session-Id").unwrap(), response.text())
}

#[track_caller]
fn assert_lost(response: &Response) {
    assert_eq!(response.status(), 404, "{response:?}");
    let json = response.json();
    assert_eq!(json["error"]["code"], -32001, "{json}");
    assert_eq!(json["error"]["message"], "Session not found");
    assert_eq!(json["error"]["data"]["label"], "session_lost");
    assert!(json["error"]["data"].get("instanceId").is_none(), "{json}");
}

fn lost(balancer: &Balancer, reason: &str) -> u64 {
    let label = format!(r#"reason="{reason}""#);
    balancer.metrics().sum("stepflow_lb_sessions_lost_total", &[&label])
}

fn live(balancer: &Balancer, instance: &str) -> u64 {
    let label = format!(r#"instance_id="{instance}""#);
    balancer.metrics().sum("stepflow_lb_sessions_live", &[&label])
}

#[track_caller]
fn wait_for_live(balancer: &Balancer, instance: &str, want: u64) {
    wait_until(&format!("{want} sessions are live on {instance}"), || {
        live(balancer, instance) == want
    });
}

#[test]
fn every_request_of_a_session_reaches_its_instance_and_the_backend_sees_its_own_id() {
    let (one, two, three) = (mcp_server("one"), mcp_server("two"), mcp_server("three"));
    let balancer = mcp(&[&one, &two, &three]).start();
    let sessions: Vec<_> = (0..9).map(|_| open(&balancer)).collect();
    for (token, said) in &sessions {
        let (name, id) = said.split_once(' ').unwrap();
        assert!(!token.contains(name) && !token.contains(id), "{token}");
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{token}");
        // DELETE last: it ends the session.
        for method in ["POST", "GET", "DELETE"] {
            let response = balancer.ask(request(method, &with_session(token)));
            assert_eq!((response.status(), response.text()), (200, said.clone()), "{method}");
            // The id of a session stays what it is, however often it is said.
            assert_eq!(response.head.field("Mcp-Session-Id").as_ref(), Some(token));
            assert!(!response.head.has("X-Stepflow-Routed-Instance"), "{response:?}");
        }
    }
    let names: BTreeSet<_> = sessions.iter().map(|(_, said)| said.split(' ').next()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_get_stream_of_a_session_goes_to_its_instance() {
    let (one, two) = (Backend::played().healthy_as("one"), Backend::played().healthy_as("two"));
    let balancer = mcp(&[&one, &two]).start();
    let mut client = balancer.connect();
    client.send(request("POST", ""));
    wait_until("one of them is asked", || one.has_next() || two.has_next());
    let (first, other) = if one.has_next() { (&one, &two) } else { (&two, &one) };
    let mut peer = first.next();
    peer.send("HTTP/1.1 200 OK\r\nMcp-Session-Id: own-id\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    peer.close();
    let token = client.response().head.field("Mcp-Session-Id").unwrap();
    for _ in 0..5 {
        let mut client = balancer.connect();
        client.send(request("GET", &with_session(&token)));
        let mut peer = first.next();
        assert_eq!(peer.head.field("Mcp-Session-Id").as_deref(), Some("own-id"));
        peer.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n\
             d\r\ndata: hello\n\n\r\n",
        );
        assert_eq!(client.head().status(), 200);
        client.close();
        peer.wait_for_end();
    }
    other.assert_untouched();
}

#[test]
fn sessions_opened_through_one_replica_are_used_through_another_without_one_misroute() {
    const SESSIONS: usize = 100;
    const REQUESTS: usize = 10_000;
    let servers = [mcp_server("one"), mcp_server("two"), mcp_server("three")];
    let backends: Vec<_> = servers.iter().collect();
    let (here, there) = (mcp(&backends).start(), mcp(&backends).start());
    let mut opening = here.connect();
    let sessions: Vec<(String, String)> = (0..SESSIONS)
        .map(|_| {
            let response = opening.ask(request("POST", ""));
            (response.head.field("Mcp-Session-Id").unwrap(), response.text())
        })
        .collect();
    let sessions = Arc::new(sessions);
    let clients: Vec<_> = (0..8)
        .map(|number| {
            let (sessions, address) = (Arc::clone(&sessions), there.address);
            std::thread::spawn(move || {
                let mut client = Client::connect(address);
                let mut misroutes = Vec::new();
                for round in 0..REQUESTS / 8 {
                    let (token, said) = &sessions[(round * 7 + number * 13) % SESSIONS];
                    let response = client.ask(request("POST", &with_session(token)));
                    if (response.status(), &response.text()) != (200, said) {
                        misroutes.push(response);
                    }
                }
                misroutes
            })
        })
        .collect();
    let misroutes: Vec<_> = clients.into_iter().flat_map(|c| c.join().unwrap()).collect();
    assert!(misroutes.is_empty(), "{} misroutes: {:?}", misroutes.len(), misroutes[0]);
    for reason in ["gone", "restarted", "forged", "unreachable"] {
        assert_eq!(lost(&there, reason), 0, "{reason}");
    }
    assert_eq!(there.metrics().sum("stepflow_lb_affinity_hits_total", &[]), REQUESTS as u64);
    // Both know of all of them: the one that opened them, and the one that met them.
    for balancer in [&here, &there] {
        wait_until("every session is live", || {
            balancer.metrics().sum("stepflow_lb_sessions_live", &[]) == SESSIONS as u64
        });
    }
}

#[test]
fn a_token_that_does_not_open_is_a_lost_session_and_reaches_nobody() {
    let one = mcp_server("one");
    let balancer = mcp(&[&one]).start();
    let elsewhere = mcp(&[&one]).with("session_keys", OLD_KEY).start();
    let (token, _) = open(&balancer);
    let (foreign, _) = open(&elsewhere);
    let before = one.requests();
    let mut flipped = token.clone().into_bytes();
    flipped[50] = if flipped[50] == b'A' { b'B' } else { b'A' };
    let forged = [
        foreign,
        String::from_utf8(flipped).unwrap(),
        token[..token.len() - 1].to_owned(),
        format!("{token}A"),
        token.to_ascii_lowercase(),
        "one-session-0".to_owned(),
        String::new(),
        "A".repeat(20_000),
        "../../etc/passwd".to_owned(),
        "\u{fc}".to_owned(),
    ];
    let mut client = balancer.connect();
    for token in &forged {
        for method in ["POST", "GET", "DELETE"] {
            // The client keeps its connection: it has done nothing to it.
            assert_lost(&client.ask(request(method, &with_session(token))));
        }
    }
    assert_eq!(one.requests(), before);
    assert_eq!(lost(&balancer, "forged"), 3 * forged.len() as u64);
    balancer.wait_for_failures("session_lost", 3 * forged.len() as u64);
    let text = balancer.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", with_session("x")));
    assert_eq!((text.status(), text.text().as_str()), (404, "session_lost: Session not found\n"));
}

#[test]
fn two_session_headers_are_refused() {
    let one = mcp_server("one");
    let balancer = mcp(&[&one]).start();
    let (token, _) = open(&balancer);
    let before = one.requests();
    for second in [token.as_str(), "other", ""] {
        let twice = format!("{}mcp-session-id: {second}\r\n", with_session(&token));
        let response = post(&balancer, &twice);
        assert_eq!((response.status(), response.label().as_str()), (400, "session_repeated"));
    }
    assert_eq!(one.requests(), before);
}

#[test]
fn a_connection_field_cannot_take_the_session_away() {
    let (one, two) = (mcp_server("one"), mcp_server("two"));
    let balancer = mcp(&[&one, &two]).start();
    for _ in 0..4 {
        let (token, said) = open(&balancer);
        let fields = format!("Connection: mcp-session-id\r\n{}", with_session(&token));
        assert_eq!(post(&balancer, &fields).text(), said);
    }
}

#[test]
fn keys_are_rotated_without_losing_a_session() {
    let (one, two) = (mcp_server("one"), mcp_server("two"));
    let backends = [&one, &two];
    let with_keys = |keys: &str| mcp(&backends).with("session_keys", keys).start();
    let (old, new) = (with_keys(OLD_KEY), with_keys(KEY));
    let both = [format!("{OLD_KEY},{KEY}"), format!("{KEY},{OLD_KEY}")].map(|k| with_keys(&k));
    let (of_old, of_new) = (open(&old), open(&new));
    for balancer in &both {
        for (token, said) in [&of_old, &of_new] {
            assert_eq!(post(balancer, &with_session(token)).text(), *said);
        }
    }
    // The first key seals.
    let (token, said) = open(&both[0]);
    assert_eq!(post(&old, &with_session(&token)).text(), said);
    assert_lost(&post(&new, &with_session(&token)));
    let (token, said) = open(&both[1]);
    assert_eq!(post(&new, &with_session(&token)).text(), said);
    assert_lost(&post(&old, &with_session(&token)));
}

#[test]
fn a_restarted_backend_at_the_same_address_gets_no_session_of_its_predecessor() {
    let one = mcp_server("one");
    let balancer = mcp(&[&one]).start();
    let (token, _) = open(&balancer);
    one.set_health(Health::Named("one-again".to_owned()));
    wait_until("the new instance is known", || {
        let health = balancer.metrics();
        health.sum("stepflow_lb_backend_health", &[r#"instance_id="one-again""#]) == 1
            && health.workers_are_up_to_date()
    });
    let before = one.requests();
    assert_lost(&post(&balancer, &with_session(&token)));
    assert_eq!(one.requests(), before);
    assert_eq!((lost(&balancer, "restarted"), lost(&balancer, "gone")), (1, 0));
    assert_eq!(live(&balancer, "one-again"), 0);
    let (token, said) = open(&balancer);
    assert_eq!(post(&balancer, &with_session(&token)).text(), said);
}

#[test]
fn what_a_stranger_answers_at_the_address_of_a_session_is_not_given_to_its_client() {
    // It restarts under another name, and no health check has noticed yet.
    let name = Arc::new(AtomicUsize::new(0));
    let says = Arc::clone(&name);
    let one = Backend::scripted(move |peer| {
        peer.read_body();
        let number = says.load(Ordering::Relaxed);
        let _ = peer.try_send(format!(
            "HTTP/1.1 200 OK\r\nStepflow-Instance-Id: pod-{number}\r\nMcp-Session-Id: id\r\n\
             Content-Length: 6\r\n\r\nsecret"
        ));
    });
    let balancer = mcp(&[&one]).with("health_check_path", "off").start();
    let (token, said) = open(&balancer);
    assert_eq!(post(&balancer, &with_session(&token)).text(), said);
    name.store(1, Ordering::Relaxed);
    assert_lost(&post(&balancer, &with_session(&token)));
    assert_eq!(lost(&balancer, "restarted"), 1);
}

#[test]
fn a_session_of_an_instance_that_left_is_lost() {
    let (one, two) = (mcp_server("one"), mcp_server("two"));
    let both = mcp(&[&one, &two]).start();
    let sessions = [open(&both), open(&both)];
    let gone = sessions.iter().find(|(_, said)| said.starts_with("two")).expect("one each");
    let alone = mcp(&[&one]).start();
    let before = one.requests();
    assert_lost(&post(&alone, &with_session(&gone.0)));
    assert_eq!((one.requests(), lost(&alone, "gone")), (before, 1));
    // What it gets instead is for the operator to say.
    let retry = mcp(&[&one]).with("session_lost", "header=503").start();
    let response = post(&retry, &with_session(&gone.0));
    assert_eq!((response.status(), response.label().as_str()), (503, "session_unavailable"));
    assert_eq!(response.head.field("Retry-After").as_deref(), Some("5"));
    assert_eq!(response.json()["error"]["code"], -32302);
    let moves = mcp(&[&one]).with("session_lost", "rebalance").start();
    let response = post(&moves, &with_session(&gone.0));
    assert!(response.text().starts_with("one two-session"), "{response:?}");
    assert_ne!(response.head.field("Mcp-Session-Id").as_ref(), Some(&gone.0));
}

#[test]
fn an_instance_that_only_refuses_connections_is_waited_for_and_never_declared_lost() {
    let (mut one, two) = (mcp_server("one"), mcp_server("two"));
    let balancer = mcp(&[&one, &two])
        .with("instance_retry", "300ms")
        // Connections that were pooled would still serve it.
        .with("idle_connections_per_backend_max", "0")
        .start();
    let sessions = [open(&balancer), open(&balancer)];
    let (token, said) = sessions.iter().find(|(_, said)| said.starts_with("one")).unwrap();
    one.refuse();
    balancer.wait_for_healthy(1);
    let before = two.requests();
    let response = post(&balancer, &with_session(token));
    assert_eq!((response.status(), response.label().as_str()), (503, "instance_unreachable"));
    assert!(response.head.has("Retry-After"));
    assert!(response.json()["error"]["data"].get("instanceId").is_none(), "{response:?}");
    assert_eq!(two.requests(), before);
    one.listen();
    assert_eq!(post(&balancer, &with_session(token)).text(), *said);
}

#[test]
fn since_july_2026_requests_of_mcp_belong_to_no_session() {
    let (one, two) = (mcp_server("one"), mcp_server("two"));
    let balancer = mcp(&[&one, &two]).with("algorithm", "round_robin").start();
    let modern = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: add\r\n";
    for _ in 0..10 {
        // The field goes on as it came, both ways.
        let response = post(&balancer, &format!("{modern}Mcp-Session-Id: anything\r\n"));
        assert_eq!(response.head.field("Mcp-Session-Id").as_deref(), Some("anything"));
        assert!(response.text().ends_with(" anything"), "{response:?}");
        let response = post(&balancer, modern);
        assert!(response.head.field("Mcp-Session-Id").unwrap().contains("-session-"));
    }
    assert!(one.requests() > 0 && two.requests() > 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_sessions_opened_total", &[]), 0);
    assert_eq!(lost(&balancer, "forged"), 0);
    let legacy = "MCP-Protocol-Version: 2025-11-25\r\nMcp-Session-Id: anything\r\n";
    assert_lost(&post(&balancer, legacy));
}

#[test]
fn a_post_of_either_era_is_never_sent_twice() {
    for version in ["2025-11-25", "2026-07-28"] {
        let (one, two) = (Backend::played().healthy_as("one"), Backend::played().healthy_as("two"));
        let balancer = mcp(&[&one, &two]).with("workers", "1").start();
        let mut client = balancer.connect();
        client.send(request("POST", &format!("MCP-Protocol-Version: {version}\r\n")));
        wait_until("one of them is asked", || one.has_next() || two.has_next());
        let (first, other) = if one.has_next() { (&one, &two) } else { (&two, &one) };
        let mut peer = first.next();
        peer.read_body();
        peer.close();
        assert_eq!(client.response().status(), 502, "{version}");
        other.assert_untouched();
        assert_eq!(first.requests(), 1, "{version}");
    }
}

#[test]
fn new_sessions_go_to_the_instance_with_the_fewest_until_they_end() {
    let (one, two, three) = (mcp_server("one"), mcp_server("two"), mcp_server("three"));
    let balancer = mcp(&[&one, &two, &three]).start();
    let mut of = BTreeMap::<String, Vec<String>>::new();
    let mut client = balancer.connect();
    for _ in 0..30 {
        let response = client.ask(request("POST", ""));
        let token = response.head.field("Mcp-Session-Id").unwrap();
        of.entry(response.text().split(' ').next().unwrap().to_owned()).or_default().push(token);
    }
    for name in ["one", "two", "three"] {
        assert_eq!(of[name].len(), 10, "{of:?}");
        assert_eq!(live(&balancer, name), 10);
    }
    // Whoever loses sessions gets the next ones, though nobody else has more to do.
    for token in of["two"].iter().take(6) {
        let response = balancer.ask(request("DELETE", &with_session(token)));
        assert_eq!(response.status(), 200);
    }
    wait_for_live(&balancer, "two", 4);
    for _ in 0..6 {
        assert!(open(&balancer).1.starts_with("two "));
    }
    assert_eq!(balancer.metrics().sum("stepflow_lb_sessions_ended_total", &[]), 6);
    assert_eq!(balancer.metrics().sum("stepflow_lb_sessions_opened_total", &[]), 36);
}

#[test]
fn sessions_that_begin_at_the_same_time_are_counted_before_they_have() {
    let backends = ["one", "two", "three"].map(|name| Backend::played().healthy_as(name));
    let refs: Vec<_> = backends.iter().collect();
    let balancer = mcp(&refs).with("workers", "1").start();
    let mut clients: Vec<_> = (0..9).map(|_| balancer.connect()).collect();
    for client in &mut clients {
        client.send(request("POST", ""));
    }
    let peers = backends.each_ref().map(|backend| {
        backend.wait_for_requests(3);
        (0..3).map(|_| backend.next()).collect::<Vec<_>>()
    });
    assert!(backends.iter().all(|backend| backend.requests() == 3));
    drop(peers);
}

#[test]
fn a_session_that_nobody_uses_no_longer_counts_and_works_all_the_same() {
    let one = mcp_server("one");
    let balancer = mcp(&[&one]).with("session_idle", "3s").start();
    let (token, said) = open(&balancer);
    wait_for_live(&balancer, "one", 1);
    wait_for_live(&balancer, "one", 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_sessions_expired_total", &[]), 1);
    assert_eq!(post(&balancer, &with_session(&token)).text(), said);
    wait_for_live(&balancer, "one", 1);
}

#[test]
fn an_id_that_is_too_long_to_be_sealed_is_a_bad_gateway() {
    let id = "x".repeat(3000);
    let one = Backend::answering(format!(
        "HTTP/1.1 200 OK\r\nMcp-Session-Id: {id}\r\nContent-Length: 0\r\n\r\n"
    ));
    let balancer = mcp(&[&one]).start();
    let response = post(&balancer, "");
    assert_eq!((response.status(), response.label().as_str()), (502, "session_id_too_long"));
}

/// Says its name and the cookies that it saw.
fn shop(name: &'static str) -> Backend {
    let shop = Backend::scripted(move |peer| {
        peer.read_body();
        let cookies = peer.head.all("cookie").join(" | ");
        let body = format!("{name}: {cookies}");
        let length = body.len();
        let _ = peer.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"));
    });
    shop.healthy_as(name)
}

fn get(balancer: &Balancer, fields: &str) -> Response {
    balancer.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

#[test]
fn a_client_stays_where_its_cookie_says_and_the_backend_never_sees_it() {
    let (one, two) = (shop("one"), shop("two"));
    let cookie = "lb; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=60";
    let setup = || Balancer::before(&[&one, &two]).with("session_keys", KEY);
    let (here, there) = (
        setup().with("session_cookie", cookie).start(),
        setup().with("session_cookie", cookie).start(),
    );
    for _ in 0..6 {
        let first = get(&here, "Cookie: a=1\r\n");
        let set = first.head.field("Set-Cookie").unwrap();
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=60");
        let name = first.text().split(':').next().unwrap().to_owned();
        let token = pair.strip_prefix("lb=").unwrap();
        let spellings = [
            (format!("Cookie: {pair}\r\n"), String::new()),
            (format!("Cookie: a=1; {pair}; b=\"2 3\"\r\n"), "a=1; b=\\\"2 3\\\"".to_owned()),
            (format!("Cookie:a=1;lb = \"{token}\" ;b=2\r\n"), "a=1;b=2".to_owned()),
            (format!("Cookie: a=1\r\ncookie: {pair}\r\nCookie: b=2\r\n"), "a=1 | b=2".to_owned()),
            (format!("Cookie: lb=forged; {pair}\r\n"), String::new()),
        ];
        for (fields, seen) in &spellings {
            for balancer in [&here, &there] {
                let response = get(balancer, fields);
                assert_eq!(response.text(), format!("{name}: {seen}"), "{fields}");
                assert!(!response.head.has("Set-Cookie"), "{fields}");
            }
        }
    }
}

#[test]
fn a_cookie_that_is_of_no_use_is_replaced_and_its_client_served_elsewhere() {
    let (one, mut two) = (shop("one"), shop("two"));
    let setup = |backends: &[&Backend]| {
        Balancer::before(backends)
            .with("session_keys", KEY)
            .with("session_cookie", "lb")
            .with("instance_retry", "100ms")
    };
    let both = setup(&[&one, &two]).start();
    let sets = [0, 1].map(|_| get(&both, ""));
    let of_two = sets.iter().find(|response| response.text().starts_with("two")).unwrap();
    let set = of_two.head.field("Set-Cookie").unwrap();
    let pair = set.split(';').next().unwrap();
    let alone = setup(&[&one]).start();
    for cookie in [pair, "lb=forged", "lb="] {
        let response = get(&alone, &format!("Cookie: {cookie}\r\n"));
        assert_eq!(response.text(), "one: ", "{cookie}");
        let set = response.head.field("Set-Cookie").unwrap();
        assert!(!set.starts_with(pair), "{cookie}");
    }
    assert_eq!((lost(&alone, "gone"), lost(&alone, "forged")), (1, 2));
    // One that takes no connections is waited for a while, and then left.
    two.refuse();
    both.wait_for_healthy(1);
    wait_until("it is not reached", || {
        get(&both, &format!("Cookie: {pair}\r\n")).text().starts_with("one")
    });
    assert!(lost(&both, "unreachable") >= 1);
}

#[test]
fn a_cookie_of_the_application_keeps_its_client_where_it_was_set() {
    let app = |name: &'static str| {
        let app = Backend::scripted(move |peer| {
            peer.read_body();
            let cookies = peer.head.all("cookie").join(" | ");
            let set = match cookies.contains("SID=") {
                true => String::new(),
                false => format!("Set-Cookie: SID=\"{name} 1\"; Path=/x;  HttpOnly\r\n"),
            };
            let body = format!("{name}: {cookies}");
            let length = body.len();
            let _ = peer.try_send(format!(
                "HTTP/1.1 200 OK\r\n{set}Set-Cookie: theme=dark\r\nContent-Length: {length}\r\n\r\n{body}"
            ));
        });
        app.healthy_as(name)
    };
    let (one, two) = (app("one"), app("two"));
    let setup = || {
        Balancer::before(&[&one, &two])
            .with("session_keys", KEY)
            .with("session_application_cookie", "SID")
    };
    let (here, there) = (setup().start(), setup().start());
    for _ in 0..6 {
        let first = get(&here, "");
        let name = first.text().split(':').next().unwrap().to_owned();
        let sets = first.head.all("Set-Cookie");
        assert_eq!(sets[1], "theme=dark");
        let (pair, attributes) = sets[0].split_once(';').unwrap();
        assert_eq!(attributes, " Path=/x;  HttpOnly");
        assert!(!pair.contains(&name), "{pair}");
        for balancer in [&here, &there] {
            let response = get(balancer, &format!("Cookie: theme=dark;  {pair}\r\n"));
            let want = format!("{name}: theme=dark;  SID=\\\"{name} 1\\\"");
            assert_eq!(response.text(), want);
        }
    }
}

#[test]
fn instances_are_told_in_whichever_header_the_operator_names() {
    let named = |name: &'static str| {
        Backend::scripted(move |peer| {
            peer.read_body();
            let length = name.len();
            peer.send(format!(
                "HTTP/1.1 200 OK\r\nX-Pod: {name}\r\nContent-Length: {length}\r\n\r\n{name}"
            ));
        })
    };
    let (one, two) = (named("one"), named("two"));
    let balancer = Balancer::before(&[&one, &two])
        .with("instance_header", "X-Pod")
        .with("health_check_path", "off")
        .start();
    for _ in 0..6 {
        let first = get(&balancer, "Stepflow-Instance-Id: somebody\r\n");
        let name = first.head.field("X-Pod").unwrap();
        let response = get(&balancer, &format!("Connection: x-pod\r\nx-pod: {name}\r\n"));
        assert_eq!(response.text(), name);
        assert_eq!(response.head.field("X-Stepflow-Routed-Instance"), Some(name));
    }
    let response = get(&balancer, "X-Pod: nobody\r\n");
    assert_eq!((response.status(), response.label().as_str()), (503, "instance_unknown"));
    assert_eq!(get(&balancer, "X-Pod: a\r\nX-Pod: a\r\n").label(), "instance_repeated");
}

#[test]
fn without_sessions_in_the_configuration_their_fields_are_only_fields() {
    let one = mcp_server("one");
    let balancer = Balancer::start(&[&one]);
    let response = post(&balancer, "");
    assert_eq!(response.head.field("Mcp-Session-Id").as_deref(), Some("one-session-0"));
    let response = post(&balancer, "Mcp-Session-Id: one-session-7\r\nCookie: lb=x; SID=y\r\n");
    assert_eq!(response.text(), "one one-session-7");
}
