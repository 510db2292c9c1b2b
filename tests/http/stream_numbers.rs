//! What is counted of event streams, on the metrics port and in the access log.

use std::{process::Command, time::Duration};

use crate::support::{
    Backend, Balancer, Client, Metrics, Peer, Process,
    message::chunk,
    process::{before, command},
    wait_until,
};

const ASK: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                      Transfer-Encoding: chunked\r\n\r\n";

fn open(client: &mut Client, backend: &Backend) -> Peer {
    client.send(ASK);
    let mut peer = backend.next();
    peer.send(STREAM);
    assert_eq!(client.head().status(), 200);
    peer
}

#[track_caller]
fn send(peer: &mut Peer, client: &mut Client, events: &str) {
    peer.send(chunk(events));
    assert_eq!(client.chunk(), events.as_bytes());
}

fn ended(metrics: &Metrics, reason: &str) -> u64 {
    metrics.sum("stepflow_lb_stream_ends_total", &[&format!(r#"reason="{reason}""#)])
}

fn logging(backend: &Backend) -> Command {
    let mut command = before(command(), &[backend]);
    command.env("STEPFLOW_LB_ACCESS_LOG", "all").env("STEPFLOW_LOG_FORMAT", "json");
    command
}

/// A stream whose head has reached its client, through a balancer that logs every request.
struct Logged {
    client: Client,
    peer: Peer,
    balancer: Process,
    _backend: Backend,
}

fn logged() -> Logged {
    let backend = Backend::played();
    let balancer = Process::start(logging(&backend));
    balancer.wait_for_healthy(1);
    let mut client = balancer.connect();
    let peer = open(&mut client, &backend);
    Logged { client, peer, balancer, _backend: backend }
}

/// The line about the one request that there was.
fn line(balancer: &mut Process, message: &str) -> serde_json::Value {
    serde_json::from_str(&balancer.wait_for_line(message)).expect("a line is an object")
}

#[test]
fn events_octets_and_times_are_counted_by_backend() {
    let (backend, other) = (Backend::played(), Backend::played());
    let balancer = Balancer::before(&[&backend, &other]).with("algorithm", "round_robin").start();
    let mut client = balancer.connect();
    let mut peers = [backend.has_next(), false];
    client.send(ASK);
    wait_until("one of them is asked", || {
        peers = [backend.has_next(), other.has_next()];
        peers != [false, false]
    });
    let (asked, idle) = if peers[0] { (&backend, &other) } else { (&other, &backend) };
    let mut peer = asked.next();
    peer.send(STREAM);
    assert_eq!(client.head().status(), 200);
    send(&mut peer, &mut client, "data: 1\n\n");
    // A comment, an event in two pieces, and two events in one.
    for piece in [": c\n\n", "data: ", "2\n\n", "data: 3\n\ndata: 4\n\n"] {
        send(&mut peer, &mut client, piece);
    }
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    wait_until("the stream has ended", || ended(&balancer.metrics(), "finished") == 1);
    let metrics = balancer.metrics();
    let label = format!(r#"backend="{}""#, asked.address);
    let sum =
        |name: &str, label: &str| metrics.sum(&format!("stepflow_lb_stream_{name}"), &[label]);
    assert_eq!(sum("events_total", &label), 4);
    assert_eq!(sum("octets_total", &label), 4 * 9 + 5);
    assert_eq!(sum("stalls_total", &label), 0);
    for (name, n) in [("time_to_first_octet", 1), ("time_to_first_event", 1), ("event_gap", 3)] {
        assert_eq!(metrics.observations(&format!("stepflow_lb_stream_{name}_ms")), n, "{name}");
    }
    // Who had no stream has no series of streams.
    let none = format!(r#"backend="{}""#, idle.address);
    assert!(!metrics.has("stepflow_lb_stream_events_total", &none));
    assert!(metrics.has("stepflow_lb_stream_events_total", &label));
}

#[test]
fn a_stream_is_told_of_in_the_log_with_all_its_numbers() {
    let Logged { mut client, mut peer, mut balancer, _backend } = logged();
    send(&mut peer, &mut client, "data: 1\n\n");
    send(&mut peer, &mut client, "data: 2\n\ndata: half");
    client.close();
    peer.wait_for_end();
    let line = line(&mut balancer, "request completed");
    let want = serde_json::json!({"events": 2, "stalls": 0, "stream_end": "client_left",
                                  "at_boundary": false});
    for (field, value) in want.as_object().unwrap() {
        assert_eq!(&line[field], value, "{line}");
    }
    let ms = |field: &str| line[field].as_f64().unwrap_or_else(|| panic!("no {field}: {line}"));
    assert!(ms("ttfb_ms") <= ms("ttfe_ms") && ms("ttfe_ms") <= ms("duration_ms"), "{line}");
    assert!(ms("gap_max_ms") <= ms("duration_ms"), "{line}");
}

#[test]
fn a_request_that_is_no_stream_has_none_of_its_numbers() {
    let backend = Backend::fine();
    let mut balancer = Process::start(logging(&backend));
    balancer.wait_for_healthy(1);
    assert_eq!(balancer.connect().get("/").status(), 200);
    let line = line(&mut balancer, "request completed");
    for field in ["ttfb_ms", "ttfe_ms", "events", "gap_max_ms", "stalls", "stream_end"] {
        assert!(line.get(field).is_none(), "{line}");
    }
    assert!(!balancer.metrics().has("stepflow_lb_stream_ends_total", "backend"));
}

#[test]
fn a_client_that_leaves_behind_an_event_leaves_at_a_boundary() {
    let Logged { mut client, mut peer, mut balancer, _backend } = logged();
    send(&mut peer, &mut client, "data: [DONE]\n\n");
    client.reset();
    peer.wait_for_end();
    let line = line(&mut balancer, "request completed");
    assert_eq!((&line["stream_end"], &line["at_boundary"]), (&"client_left".into(), &true.into()));
    assert!(line.get("gap_max_ms").is_none(), "one event has no gap: {line}");
}

#[test]
fn a_backend_that_dies_is_said_to_have_died() {
    let Logged { mut client, mut peer, mut balancer, _backend } = logged();
    send(&mut peer, &mut client, "data: 1\n\n");
    peer.reset();
    client.rest();
    let line = line(&mut balancer, "request failed");
    assert_eq!(line["stream_end"], "backend_died", "{line}");
    wait_until("it is counted", || ended(&balancer.metrics(), "backend_died") == 1);
}

#[test]
fn a_client_that_is_given_up_was_too_slow_and_its_backend_did_not_stall() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend])
        .with("client_stall_timeout", "300ms")
        .with("stream_stall", "100ms")
        .start();
    let mut client = balancer.connect();
    let mut peer = open(&mut client, &backend);
    // More than all buffers between take: the client reads nothing of it.
    let event = format!("data: {}\n\n", "x".repeat(60_000));
    while peer.try_send(chunk(&event)).is_ok() {}
    wait_until("the client is given up", || ended(&balancer.metrics(), "too_slow") == 1);
    drop(client);
}

#[test]
fn a_silence_is_counted_when_it_ends_and_comments_do_not_break_it() {
    let backend = Backend::played();
    let mut command = logging(&backend);
    command.env("STEPFLOW_LB_STREAM_STALL", "2s");
    let mut balancer = Process::start(command);
    balancer.wait_for_healthy(1);
    let mut client = balancer.connect();
    let mut peer = open(&mut client, &backend);
    send(&mut peer, &mut client, "data: 1\n\n");
    std::thread::sleep(Duration::from_millis(1200));
    send(&mut peer, &mut client, ": still here\n\n");
    std::thread::sleep(Duration::from_millis(1200));
    let stalls =
        |balancer: &Process| balancer.metrics().sum("stepflow_lb_stream_stalls_total", &[]);
    assert_eq!(stalls(&balancer), 0);
    send(&mut peer, &mut client, "data: 2\n\n");
    wait_until("the stall is counted", || stalls(&balancer) == 1);
    std::thread::sleep(Duration::from_millis(2600));
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    // The second one ended with the stream.
    let line = line(&mut balancer, "request completed");
    assert_eq!((&line["stalls"], &line["stream_end"]), (&2.into(), &"finished".into()), "{line}");
    assert!(line["gap_max_ms"].as_f64().unwrap() >= 2400.0, "{line}");
}

#[test]
fn of_a_stream_with_a_content_coding_only_octets_are_known() {
    let backend = Backend::played();
    let mut balancer = Process::start(logging(&backend));
    balancer.wait_for_healthy(1);
    let mut client = balancer.connect();
    client.send(ASK);
    let mut peer = backend.next();
    peer.send(STREAM.replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n"));
    assert_eq!(client.head().status(), 200);
    send(&mut peer, &mut client, "data: no event\n\n");
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    let line = line(&mut balancer, "request completed");
    assert!(line.get("events").is_none() && line.get("at_boundary").is_none(), "{line}");
    assert_eq!(line["stream_end"], "finished");
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_stream_octets_total", &[]), 16);
    assert_eq!(metrics.sum("stepflow_lb_stream_events_total", &[]), 0);
}

#[test]
fn a_stream_that_we_end_says_what_for() {
    let cases: [(&str, &[(&str, &str)]); 2] = [
        ("aged", &[("STEPFLOW_LB_STREAM_AGE_MAX", "2s")]),
        ("drained", &[("STEPFLOW_LB_DRAIN_GRACE", "0s")]),
    ];
    for (end, options) in cases {
        let backend = Backend::played();
        let mut command = logging(&backend);
        command.envs(options.iter().copied());
        let mut balancer = Process::start(command);
        balancer.wait_for_healthy(1);
        let mut client = balancer.connect();
        let mut peer = open(&mut client, &backend);
        send(&mut peer, &mut client, "data: 1\n\n");
        if end == "drained" {
            balancer.signal("TERM");
        }
        let last = client.chunk();
        assert!(last.starts_with(b"retry: "), "{}", String::from_utf8_lossy(&last));
        let line = line(&mut balancer, "request completed");
        let told = (&line["stream_end"], &line["at_boundary"], &line["events"]);
        assert_eq!(told, (&end.into(), &true.into(), &1.into()), "{line}");
    }
}

#[test]
fn a_stream_that_goes_on_from_another_backend_is_one_stream() {
    let (one, two) = (Backend::played(), Backend::played());
    let balancer = Balancer::before(&[&one, &two]).with("stream_resume", "on").start();
    let mut client = balancer.connect();
    client.send(ASK);
    let mut first = None;
    wait_until("one of them is asked", || {
        first = [&one, &two].into_iter().position(|backend| backend.has_next());
        first.is_some()
    });
    let [asked, other] = if first == Some(0) { [&one, &two] } else { [&two, &one] };
    let mut peer = asked.next();
    peer.send(STREAM);
    assert_eq!(client.head().status(), 200);
    send(&mut peer, &mut client, "id: 1\ndata: 1\n\n");
    peer.reset();
    let mut peer = other.next();
    peer.send(STREAM);
    send(&mut peer, &mut client, "id: 2\ndata: 2\n\n");
    peer.send("0\r\n\r\n");
    assert_eq!(client.take(5), b"0\r\n\r\n");
    wait_until("the stream has ended", || ended(&balancer.metrics(), "finished") == 1);
    let metrics = balancer.metrics();
    for backend in [asked, other] {
        let label = format!(r#"backend="{}""#, backend.address);
        assert_eq!(metrics.sum("stepflow_lb_stream_events_total", &[&label]), 1);
    }
    assert_eq!(metrics.observations("stepflow_lb_stream_time_to_first_octet_ms"), 1);
    assert_eq!(metrics.observations("stepflow_lb_stream_event_gap_ms"), 1);
    assert_eq!(ended(&metrics, "backend_died"), 0);
}
