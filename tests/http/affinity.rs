//! A request that names an instance reaches that instance or is told that it is gone.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Backend, Balancer, Health, Response, try_in_time, wait_until};

fn callback(balancer: &Balancer, instance: &str) -> Response {
    balancer.ask(format!(
        "POST /cb HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: {instance}\r\n\
         Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    ))
}

fn is_known(balancer: &Balancer, instance: &str) -> bool {
    let label = format!(r#"instance_id="{instance}""#);
    balancer.metrics().sum("stepflow_lb_backend_health", &[&label]) == 1
        && balancer.metrics().workers_are_up_to_date()
}

#[track_caller]
fn assert_gone(response: &Response, instance: &str, label: &str, reason: &str) {
    assert_eq!(response.status(), 503, "{response:?}");
    assert_eq!(response.head.field("Retry-After").as_deref(), Some("5"));
    assert!(!response.head.has("X-Stepflow-Routed-Instance"), "{response:?}");
    let want = json!({
        "jsonrpc": "2.0",
        "id": "stepflow-load-balancer",
        "error": {
            "code": -32302,
            "message": "Instance not available",
            "data": {"instanceId": instance, "reason": reason, "label": label},
        },
    });
    assert_eq!(response.json(), want);
}

#[track_caller]
fn assert_unknown(balancer: &Balancer, instance: &str) {
    let response = callback(balancer, instance);
    assert_gone(&response, instance, "instance_unknown", "Instance not found in healthy backends");
}

#[test]
fn a_request_reaches_the_instance_it_names() {
    let (one, two) = (Backend::saying("one"), Backend::saying("two"));
    let balancer = Balancer::start(&[&one, &two]);
    for _ in 0..10 {
        for name in ["one", "two"] {
            let response = callback(&balancer, name);
            assert_eq!(response.text(), name);
            let routed = response.head.field("X-Stepflow-Routed-Instance");
            assert_eq!(routed.as_deref(), Some(name));
        }
    }
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_affinity_requests_total", &[]), 20);
    assert_eq!(metrics.sum("stepflow_lb_affinity_hits_total", &[]), 20);
}

#[test]
fn a_request_that_names_nobody_is_not_told_where_it_went() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    assert!(!balancer.get("/").head.has("X-Stepflow-Routed-Instance"));
}

#[test]
fn a_backend_cannot_forge_where_a_request_was_routed() {
    let one = Backend::answering(
        "HTTP/1.1 200 OK\r\nX-Stepflow-Routed-Instance: other\r\nContent-Length: 0\r\n\r\n",
    )
    .healthy_as("one");
    let balancer = Balancer::start(&[&one]);
    let response = callback(&balancer, "one");
    assert_eq!(response.head.field("X-Stepflow-Routed-Instance").as_deref(), Some("one"));
}

/// How long a callback waits for an instance that its worker does not know: the snapshot that tells
/// of it may be on its way.
const UNKNOWN_INSTANCE_WAIT: Duration = Duration::from_millis(250);

#[test]
fn an_instance_is_known_before_the_client_reads_the_response_that_names_it() {
    // No check tells the id: it stands in the responses only.
    for path in ["/health", "off"] {
        let named = |name: &'static str| {
            Backend::scripted(move |peer| {
                peer.read_body();
                let id = format!("Stepflow-Instance-Id: {name}\r\n");
                let length = name.len();
                let head = format!("HTTP/1.1 200 OK\r\n{id}Content-Length: {length}\r\n\r\n");
                peer.send(head + name);
            })
        };
        let backends = [named("pod-a"), named("pod-b"), named("pod-c")];
        let refs: Vec<_> = backends.iter().collect();
        // A new balancer each time: the old one knows them by then.
        try_in_time("the control thread runs while a callback waits for it", || {
            let balancer = Balancer::before(&refs).with("health_check_path", path).start();
            for _ in 0..10 {
                let first = balancer.get("/start");
                let name = first.head.field("Stepflow-Instance-Id").unwrap();
                assert_eq!(first.text(), name);
                let began = Instant::now();
                let second = callback(&balancer, &name);
                if second.text() != name {
                    assert_eq!(second.label(), "instance_unknown");
                    assert!(began.elapsed() >= UNKNOWN_INSTANCE_WAIT, "it was not waited for");
                    return None;
                }
            }
            Some(())
        });
    }
}

#[test]
fn an_unhealthy_instance_is_still_reached_by_those_who_name_it() {
    let (sick, well) = (Backend::saying("sick"), Backend::saying("well"));
    let balancer = Balancer::start(&[&sick, &well]);
    for health in [Health::Failing, Health::Silent] {
        sick.set_health(health);
        if balancer.metrics().sum("stepflow_lb_backend_pool_size", &[]) == 2 {
            balancer.wait_for_healthy(1);
        }
        for _ in 0..5 {
            assert_eq!(callback(&balancer, "sick").text(), "sick");
            assert_eq!(balancer.get("/").text(), "well");
        }
    }
}

#[test]
fn an_unknown_instance_is_answered_503_and_sent_nowhere() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    assert_unknown(&balancer, "nobody");
    let text = balancer.ask("GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: nobody\r\n\r\n");
    assert_eq!((text.status(), text.label().as_str()), (503, "instance_unknown"));
    assert!(text.text().contains("nobody"), "{text:?}");
    one.assert_untouched();
    balancer.wait_for_failures("instance_unknown", 2);
}

#[test]
fn a_name_that_no_instance_can_have_names_nobody() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    for name in ["", "a b", "one\u{e9}", &"x".repeat(300)] {
        let response = callback(&balancer, name);
        assert_eq!(response.status(), 503, "{name:?}");
        assert_eq!(response.json()["error"]["code"], -32302, "{name:?}");
    }
    let twice = "GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\
                 stepflow-instance-id: one\r\n\r\n";
    assert_eq!(balancer.ask(twice).label(), "instance_repeated");
    one.assert_untouched();
}

#[test]
fn a_client_that_was_told_503_keeps_its_connection() {
    let one = Backend::saying("one");
    let balancer = Balancer::start(&[&one]);
    let mut client = balancer.connect();
    let unknown = "GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: nobody\r\n\r\n";
    assert_eq!(client.ask(unknown).status(), 503);
    assert_eq!(client.get("/").text(), "one");
}

#[test]
fn a_restarted_backend_is_another_instance() {
    let one = Backend::saying("before");
    let balancer = Balancer::start(&[&one]);
    assert_eq!(callback(&balancer, "before").status(), 200);
    one.set_health(Health::Named("after".to_owned()));
    wait_until("the new instance is known", || is_known(&balancer, "after"));
    assert_unknown(&balancer, "before");
    let response = callback(&balancer, "after");
    assert_eq!(response.status(), 200);
    assert_eq!(response.head.field("X-Stepflow-Routed-Instance").as_deref(), Some("after"));
}

#[test]
fn an_instance_that_nobody_knows_yet_is_looked_for() {
    let one = Backend::saying("before");
    let balancer = Balancer::before(&[&one]).with("health_check_interval", "1h").start();
    one.set_health(Health::Named("after".to_owned()));
    // The next check would come in an hour: requests are the reason to ask, once a second at most.
    wait_until("the instance is known", || callback(&balancer, "after").status() == 200);
}

#[test]
fn a_connect_that_fails_is_tried_again_on_the_same_instance_for_a_while() {
    let (mut one, two) = (Backend::saying("one"), Backend::saying("two"));
    let balancer = Balancer::before(&[&one, &two])
        .with("health_check_interval", "1h")
        .with("instance_retry", "60s")
        .start();
    one.refuse();
    let mut client = balancer.connect();
    client.send("GET /cb HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n");
    wait_until("a connect has failed", || {
        balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]) >= 2
    });
    one.listen();
    let response = client.response();
    assert_eq!(response.text(), "one");
    two.assert_untouched();
}

#[test]
fn an_instance_that_stays_unreachable_is_answered_503_and_nobody_else_gets_its_requests() {
    let (mut one, two) = (Backend::saying("one"), Backend::saying("two"));
    let balancer = Balancer::before(&[&one, &two])
        .with("health_check_interval", "1h")
        .with("instance_retry", "300ms")
        .start();
    one.refuse();
    let response = callback(&balancer, "one");
    let reason = "Instance does not accept connections";
    assert_gone(&response, "one", "instance_unreachable", reason);
    two.assert_untouched();
}

#[test]
fn a_reused_connection_that_dies_is_replaced_by_one_to_the_same_instance() {
    let (one, two) = (Backend::played().healthy_as("one"), Backend::saying("two"));
    let balancer = Balancer::before(&[&one, &two]).with("workers", "1").start();
    let mut client = balancer.connect();
    let get = "GET /cb HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n";
    client.send(get);
    let mut peer = one.next();
    peer.answer("first");
    assert_eq!(client.response().text(), "first");
    client.send(get);
    peer.next_request();
    peer.close();
    let mut again = one.next();
    assert_eq!(again.head.field("Stepflow-Instance-Id").as_deref(), Some("one"));
    again.answer("second");
    assert_eq!(client.response().text(), "second");
    two.assert_untouched();
}

#[test]
fn a_stream_names_the_instance_that_it_was_routed_to() {
    let one = Backend::played().healthy_as("one");
    let balancer = Balancer::start(&[&one]);
    let mut client = balancer.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
         stepflow-instance-id: one\r\n\r\n",
    );
    let mut peer = one.next();
    peer.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let head = client.head();
    assert_eq!(head.field("X-Stepflow-Routed-Instance").as_deref(), Some("one"));
}

#[test]
fn two_backends_that_claim_one_id_are_both_balanced_over() {
    let (one, two) = (Backend::fine().healthy_as("same"), Backend::fine().healthy_as("same"));
    let balancer = Balancer::before(&[&one, &two]).with("algorithm", "round_robin").start();
    for _ in 0..20 {
        assert_eq!(balancer.get("/").status(), 200);
    }
    assert!(one.requests() > 0 && two.requests() > 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_instance_clashes_total", &[]), 1);
    // A request that names the id always reaches the same one of them.
    let before = (one.requests(), two.requests());
    for _ in 0..10 {
        assert_eq!(callback(&balancer, "same").status(), 200);
    }
    let after = (one.requests() - before.0, two.requests() - before.1);
    assert!(matches!(after, (10, 0) | (0, 10)), "{after:?}");
}
