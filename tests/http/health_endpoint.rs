//! What the balancer answers itself on the data port.

use serde_json::json;

use crate::support::{Backend, Balancer, Health};

#[test]
fn health_tells_how_many_backends_there_are() {
    let backends = [Backend::fine(), Backend::fine(), Backend::fine()];
    let balancer = Balancer::start(&[&backends[0], &backends[1], &backends[2]]);
    let all = json!({"status": "healthy", "backends": {"total": 3, "healthy": 3, "unhealthy": 0}});
    for target in ["/health", "/health?verbose", "http://any/health"] {
        let response = balancer.get(target);
        assert_eq!((response.status(), response.json()), (200, all.clone()), "{target}");
        assert_eq!(response.head.field("Content-Type").as_deref(), Some("application/json"));
    }
    backends[1].set_health(Health::Failing);
    balancer.wait_for_healthy(2);
    let some = json!({"status": "healthy", "backends": {"total": 3, "healthy": 2, "unhealthy": 1}});
    assert_eq!(balancer.get("/health").json(), some);
    backends.iter().for_each(Backend::assert_untouched);
}

#[test]
fn health_is_503_when_no_backend_is_healthy() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    backend.set_health(Health::Failing);
    balancer.wait_for_healthy(0);
    let response = balancer.get("/health");
    assert_eq!(response.status(), 503);
    let want =
        json!({"status": "unhealthy", "backends": {"total": 1, "healthy": 0, "unhealthy": 1}});
    assert_eq!(response.json(), want);
    backend.set_health(Health::Anonymous);
    balancer.wait_for_healthy(1);
    assert_eq!(balancer.get("/health").status(), 200);
}

#[test]
fn health_can_be_asked_for_by_head_and_on_a_connection_that_goes_on() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let length = client.get("/health").head.field("Content-Length");
    let response = client.ask("HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((response.status(), response.head.field("Content-Length")), (200, length));
    assert_eq!(client.get("/").text(), "ok");
    assert_eq!(client.get("/health").status(), 200);
}

#[test]
fn only_get_and_head_of_exactly_that_path_are_our_own() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for target in ["/healthz", "/health/", "/Health", "//health", "/a/health", "/%68ealth"] {
        assert_eq!(balancer.get(target).text(), "ok", "{target}");
    }
    let post = "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(balancer.ask(post).text(), "ok");
    assert_eq!(backend.requests(), 7);
}

#[test]
fn the_path_can_be_another_or_left_to_the_backends() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("health_endpoint", "/-/ready").start();
    assert_eq!(balancer.get("/-/ready").json()["status"], "healthy");
    assert_eq!(balancer.get("/health").text(), "ok");
    let balancer = Balancer::before(&[&backend]).with("health_endpoint", "off").start();
    assert_eq!(balancer.get("/health").text(), "ok");
}

#[test]
fn without_a_healthy_backend_requests_are_answered_503() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    backend.set_health(Health::Failing);
    balancer.wait_for_healthy(0);
    let mut client = balancer.connect();
    let text = client.get("/");
    assert_eq!((text.status(), text.label().as_str()), (503, "no_healthy_backend"));
    assert_eq!(text.head.field("Retry-After").as_deref(), Some("5"));
    assert!(text.text().contains("1 known, 0 healthy"), "{text:?}");
    let json = client.ask(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
         Content-Length: 2\r\n\r\n{}",
    );
    assert_eq!(json.status(), 503);
    assert_eq!(json.head.field("Retry-After").as_deref(), Some("5"));
    let want = json!({
        "jsonrpc": "2.0",
        "id": "stepflow-load-balancer",
        "error": {
            "code": -32302,
            "message": "No healthy backend",
            "data": {
                "reason": "No healthy backend",
                "label": "no_healthy_backend",
                "backends": {"total": 1, "healthy": 0},
            },
        },
    });
    assert_eq!(json.json(), want);
    // Nothing was wrong with the client.
    backend.set_health(Health::Anonymous);
    balancer.wait_for_healthy(1);
    assert_eq!(client.get("/").text(), "ok");
    backend.set_health(Health::Failing);
}

#[test]
fn every_answer_of_our_own_is_dated_and_not_to_be_stored() {
    let backend = Backend::fine();
    let balancer = Balancer::start(&[&backend]);
    for response in [balancer.get("/health"), balancer.ask("GET / HTTP/1.1\r\n\r\n")] {
        let date = response.head.field("Date").unwrap();
        assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
        assert_eq!(response.head.field("Cache-Control").as_deref(), Some("no-store"));
    }
}
