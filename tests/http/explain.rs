//! Why a request went to its backend, as its client and the access log are told.

use crate::support::{
    Backend, Balancer, Client, Health, Process, Response,
    balancer::Setup,
    process::{before, command},
    wait_until,
};

const DECISION: &str = "X-Stepflow-Routing-Decision";
const ADDRESS: &str = "X-Stepflow-Backend-Address";

/// What a backend says that wants to be believed.
const FORGED: &str = "HTTP/1.1 200 OK\r\nx-stepflow-routing-decision: mine\r\n\
                      X-Stepflow-Backend-Address: 10.0.0.1:1\r\n\
                      X-STEPFLOW-ROUTING-DECISION: and mine\r\nContent-Length: 0\r\n\r\n";

fn explained(backends: &[&Backend]) -> Setup {
    Balancer::before(backends).with("explain", "on")
}

#[track_caller]
fn decision(response: &Response) -> String {
    response.head.field(DECISION).unwrap_or_else(|| panic!("no decision: {response:?}"))
}

fn streams() -> Backend {
    Backend::scripted(|peer| {
        peer.send(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
             Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        );
        peer.wait_for_end();
        peer.close();
    })
}

/// Opens a stream: its client, and why it went where.
fn open(balancer: &Balancer) -> (Client, String, String) {
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    let head = client.head();
    (client, head.field(DECISION).unwrap(), head.field(ADDRESS).unwrap())
}

#[test]
fn nothing_is_explained_unless_it_is_asked_for() {
    let backend = Backend::fine();
    let response = Balancer::start(&[&backend]).get("/");
    assert!(!response.head.has(DECISION) && !response.head.has(ADDRESS), "{response:?}");
    // A backend's own fields are then fields like any other.
    let forger = Backend::answering(FORGED);
    let response = Balancer::start(&[&forger]).get("/");
    assert_eq!(response.head.all(DECISION), ["mine", "and mine"]);
}

#[test]
fn a_backend_cannot_forge_an_explanation() {
    let backend = Backend::answering(format!(
        "HTTP/1.1 103 Early Hints\r\n{DECISION}: mine\r\n{ADDRESS}: 10.0.0.1:1\r\n\r\n{FORGED}"
    ));
    let balancer = explained(&[&backend]).start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let interim = client.head();
    assert_eq!(interim.status(), 103);
    assert!(!interim.has(DECISION) && !interim.has(ADDRESS), "{interim:?}");
    let head = client.head();
    assert_eq!(head.all(DECISION), ["least_connections 0 of [0]"]);
    assert_eq!(head.all(ADDRESS), [backend.address.to_string()]);
    // What the balancer answers itself comes from no backend.
    let own = balancer.get("/health");
    assert!(!own.head.has(DECISION) && !own.head.has(ADDRESS), "{own:?}");
}

#[test]
fn the_loads_shown_are_those_from_before_the_request_was_counted() {
    let backends = [streams(), streams()];
    let balancer = explained(&[&backends[0], &backends[1]]).start();
    let addresses = backends.each_ref().map(|backend| backend.address.to_string());
    let mut open_on = [0, 0];
    let mut clients = Vec::new();
    for _ in 0..6 {
        let (client, decision, address) = open(&balancer);
        let [a, b] = open_on;
        let least = a.min(b);
        let possible =
            [[a, b], [b, a]].map(|[x, y]| format!("least_connections {least} of [{x},{y}]"));
        assert!(possible.contains(&decision), "{decision} with {open_on:?}");
        let place = addresses.iter().position(|other| *other == address).unwrap();
        assert_eq!(open_on[place], least, "{decision} went to {address}");
        open_on[place] += 1;
        clients.push(client);
    }
    assert_eq!(open_on, [3, 3]);
}

#[test]
fn each_algorithm_says_what_it_went_by() {
    let backend = Backend::fine();
    let cases = [
        ("least_connections", "least_connections 0 of [0]"),
        ("round_robin", "round_robin"),
        ("random", "random"),
        ("power_of_two", "power_of_two 0 of [0]"),
        ("least_response_time", "least_response_time 0@? of [0@?]"),
        ("ip_hash", "ip_hash"),
        // The request has no such field.
        ("consistent_hash", "least_connections 0 of [0]"),
    ];
    for (algorithm, want) in cases {
        let setup = explained(&[&backend]).with("algorithm", algorithm);
        let setup = match algorithm {
            "consistent_hash" => setup.with("hash_on", "header:X-Key"),
            _ => setup,
        };
        let balancer = setup.start();
        let mut client = balancer.connect();
        assert_eq!(decision(&client.get("/")), want, "{algorithm}");
        let keyed = client.ask("GET / HTTP/1.1\r\nHost: a\r\nX-Key: k\r\n\r\n");
        match algorithm {
            "consistent_hash" => assert_eq!(decision(&keyed), "consistent_hash header:x-key"),
            "least_response_time" => {
                let text = decision(&keyed);
                let latency = text.strip_prefix("least_response_time 0@");
                let latency = latency.and_then(|rest| rest.split_once("us of [0@")).unwrap().0;
                assert!(latency.parse::<u32>().is_ok(), "{text}");
            }
            _ => assert_eq!(decision(&keyed), want),
        }
    }
}

#[test]
fn weights_are_shown_where_they_differ() {
    let backends = [Backend::fine(), Backend::fine()];
    let [a, b] = backends.each_ref().map(|backend| backend.address);
    let balancer = explained(&[&backends[0], &backends[1]])
        .with("upstream_service", &format!("{a};weight=3,{b}"))
        .start();
    let response = balancer.get("/");
    let possible = ["[0/3,0/1]", "[0/1,0/3]"].map(|of| format!("least_connections 0/3 of {of}"));
    assert!(possible.contains(&decision(&response)), "{response:?}");
    assert_eq!(response.head.field(ADDRESS), Some(a.to_string()));
}

#[test]
fn what_a_request_brings_comes_first() {
    let (one, two) = (Backend::fine().healthy_as("one"), Backend::fine().healthy_as("two"));
    let balancer = explained(&[&one, &two]).with("session_cookie", "lb").start();
    let mut client = balancer.connect();
    let first = client.get("/");
    let begins = "session_begins 0 of [0,0], least_connections 0 of [0,0]";
    assert_eq!(decision(&first), begins);
    // Only who has the fewest sessions is a candidate.
    let second = decision(&client.get("/"));
    let possible = ["[0,1]", "[1,0]"]
        .map(|of| format!("session_begins 0 of {of}, least_connections 0 of [0]"));
    assert!(possible.contains(&second), "{second}");

    let cookie = first.head.field("Set-Cookie").unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let again = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
    let of_session = client.ask(&again);
    assert_eq!(decision(&of_session), "session");
    assert_eq!(of_session.head.field(ADDRESS), first.head.field(ADDRESS));

    // Another process takes the place of its owner.
    let first_on_one = first.head.field(ADDRESS) == Some(one.address.to_string());
    let owner = if first_on_one { &one } else { &two };
    owner.set_health(Health::Named("newcomer".to_owned()));
    wait_until("the newcomer is known", || {
        let metrics = balancer.metrics();
        metrics.sum("stepflow_lb_backend_health", &[r#"instance_id="newcomer""#]) == 1
            && metrics.workers_are_up_to_date()
    });
    let moved = decision(&client.ask(&again));
    let possible = ["[0,1]", "[1,0]"]
        .map(|of| format!("session_moved 0 of {of}, restart_detected, least_connections 0 of [0]"));
    assert!(possible.contains(&moved), "{moved}");

    // Whoever names an instance needs no session.
    let (one, two) = (Backend::fine().healthy_as("one"), Backend::fine().healthy_as("two"));
    let balancer = explained(&[&one, &two]).start();
    let named = balancer.ask("GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: two\r\n\r\n");
    assert_eq!(decision(&named), "affinity");
    assert_eq!(named.head.field(ADDRESS), Some(two.address.to_string()));
}

#[test]
fn a_retry_is_numbered() {
    let (bad, good) = (Backend::scripted(|peer| peer.close()), Backend::fine());
    let balancer = explained(&[&bad, &good])
        .with("algorithm", "round_robin")
        .with("outlier_detection", "off")
        .with("workers", "1")
        .start();
    let mut client = balancer.connect();
    let said: Vec<_> = (0..4).map(|_| decision(&client.get("/"))).collect();
    assert!(said.iter().any(|text| text == "round_robin, retry 2"), "{said:?}");
    assert!(said.iter().all(|text| text.starts_with("round_robin")), "{said:?}");
}

#[test]
fn a_stream_that_went_on_is_told_with_its_last_backend_and_the_number_of_attempts() {
    let [one, two] = [Backend::played(), Backend::played()];
    let mut command = before(command(), &[&one, &two]);
    command.env("STEPFLOW_LB_EXPLAIN", "on").env("STEPFLOW_LB_ACCESS_LOG", "all");
    let mut process = Process::start(command);
    process.wait_for_healthy(2);
    let mut client = process.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    wait_until("a backend is asked", || one.has_next() || two.has_next());
    let (first, second) = if one.has_next() { (&one, &two) } else { (&two, &one) };
    let begin = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n";
    let mut peer = first.next();
    peer.send(begin);
    // What the client has been told is true of the first backend, and cannot be taken back.
    let head = client.head();
    assert_eq!(head.field(DECISION).as_deref(), Some("least_connections 0 of [0,0]"));
    assert_eq!(head.field(ADDRESS), Some(first.address.to_string()));
    peer.close();
    let mut peer = second.next();
    peer.send(format!("{begin}9\r\ndata: 1\n\n\r\n0\r\n\r\n"));
    assert_eq!(client.chunk(), b"data: 1\n\n");
    let line = process.wait_for_line("request completed");
    assert!(line.contains(&format!("backend={}", second.address)), "{line}");
    assert!(line.contains(r#"decision="least_connections 0 of [0], retry 2""#), "{line}");
}

#[test]
fn a_wait_in_the_queue_is_told() {
    let backend = Backend::played();
    let setup = explained(&[&backend]).with("requests_per_backend_max", "1");
    let balancer = setup.with("workers", "1").with("queue_timeout", "10m").start();
    let (mut running, mut waiting) = (balancer.connect(), balancer.connect());
    running.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut peer = backend.next();
    waiting.send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("it waits", || balancer.metrics().sum("stepflow_lb_queue_waiting", &[]) == 1);
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    peer.send(last);
    assert_eq!(decision(&running.response()), "least_connections 0 of [0]");
    backend.next().send(last);
    let text = decision(&waiting.response());
    let ms = text.strip_prefix("least_connections 0 of [0], queued ");
    let ms = ms.and_then(|rest| rest.strip_suffix(" ms")).unwrap_or_else(|| panic!("{text}"));
    assert!(ms.parse::<u32>().is_ok(), "{text}");
}

#[test]
fn panic_and_the_last_resort_are_told() {
    let backend = streams();
    backend.set_health(Health::Answer(200, r#"{"capacity": 1}"#.to_owned()));
    let balancer = explained(&[&backend]).start();
    let (_first, text, _) = open(&balancer);
    assert_eq!(text, "least_connections 0 of [0]");
    let (_second, text, _) = open(&balancer);
    assert_eq!(text, "least_connections 1 of [1], last_resort");

    let backend = Backend::fine();
    backend.set_health(Health::Failing);
    let setup = explained(&[&backend]).with("panic_scope", "everything");
    let balancer = setup.with("max_failures", "1").start_unready();
    wait_until("every worker knows of the panic", || {
        let metrics = balancer.metrics();
        metrics.sum("stepflow_lb_panic", &[]) == 1 && metrics.workers_are_up_to_date()
    });
    assert_eq!(decision(&balancer.get("/")), "least_connections 0 of [0], panic");
}

#[test]
fn a_tunnel_is_explained_too() {
    let backend = Backend::played();
    let balancer = explained(&[&backend]).start();
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    let mut peer = backend.next();
    peer.send(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi",
    );
    let head = client.head();
    assert_eq!((head.status(), head.all(DECISION).len()), (101, 1));
    assert_eq!(head.field(ADDRESS), Some(backend.address.to_string()));
    assert_eq!(client.take(2), b"hi");
}

#[test]
fn the_access_log_tells_the_same() {
    for (explain, want) in [
        (
            "on",
            r#"routed=session_begins decision="session_begins 0 of [0], least_connections 0 of [0]""#,
        ),
        ("off", "routed=session_begins duration_ms="),
    ] {
        let backend = Backend::fine();
        let mut command = before(command(), &[&backend]);
        command
            .env("STEPFLOW_LB_EXPLAIN", explain)
            .env("STEPFLOW_LB_SESSION_COOKIE", "lb")
            .env("STEPFLOW_LB_ACCESS_LOG", "all");
        let mut process = Process::start(command);
        process.wait_for_healthy(1);
        assert_eq!(process.connect().get("/").text(), "ok");
        let line = process.wait_for_line("request completed");
        assert!(line.contains(want), "{line}");
    }
}
