//! What is asked of backends, and what their answers lead to.

use crate::support::{Backend, Balancer, Health, wait_until};

fn answer(status: u16, body: &str) -> Health {
    Health::Answer(status, body.to_owned())
}

#[test]
fn a_connection_is_enough_for_tcp_checks() {
    let mut backend = Backend::fine();
    backend.set_health(Health::Failing);
    let balancer = Balancer::before(&[&backend]).with("health_check", "tcp").start();
    assert_eq!(balancer.get("/").text(), "ok");
    backend.refuse();
    balancer.wait_for_healthy(0);
    backend.listen();
    balancer.wait_for_healthy(1);
    assert_eq!(backend.probes(), 0, "nothing was asked");
}

#[test]
fn a_healthy_answer_is_as_expected() {
    let cases = [
        ("health_check_status", "401,404", answer(401, "no"), answer(200, "{}")),
        ("health_check_status", "200", answer(200, ""), answer(204, "")),
        ("health_check_body", "all is well", answer(200, "ah, all is well!"), answer(200, "well")),
        ("health_check_body", "\"db\": true", answer(200, r#"{"db": true}"#), answer(200, "{}")),
    ];
    for (key, value, good, bad) in cases {
        let backend = Backend::fine();
        backend.set_health(good.clone());
        let balancer = Balancer::before(&[&backend]).with(key, value).start();
        assert_eq!(balancer.get("/").text(), "ok", "{key} = {value}");
        backend.set_health(bad);
        balancer.wait_for_healthy(0);
        backend.set_health(good);
        balancer.wait_for_healthy(1);
    }
}

#[test]
fn another_port_can_be_asked() {
    let (backend, beside) = (Backend::fine(), Backend::fine());
    backend.set_health(Health::Failing);
    let port = beside.address.port().to_string();
    let balancer = Balancer::before(&[&backend]).with("health_check_port_number", &port).start();
    assert_eq!(balancer.get("/").text(), "ok");
    beside.set_health(Health::Failing);
    balancer.wait_for_healthy(0);
    assert_eq!(backend.probes(), 0);
    beside.assert_untouched();
}

#[test]
fn each_backend_can_be_asked_on_a_port_of_its_own() {
    let backends = [Backend::fine(), Backend::fine(), Backend::fine()];
    // The third is asked where those are asked that say nothing.
    let beside = [Backend::fine(), Backend::fine(), Backend::fine()];
    for backend in &backends {
        backend.set_health(Health::Failing);
    }
    let [a, b, c] = backends.each_ref().map(|backend| backend.address);
    let [port_of_a, port_of_b, port_of_c] = beside.each_ref().map(|one| one.address.port());
    let upstream = format!("{a};health_port={port_of_a},{b};weight=2;health_port={port_of_b},{c}");
    let balancer = Balancer::before(&backends.each_ref())
        .with("upstream_service", &upstream)
        .with("health_check_port_number", &port_of_c.to_string())
        .start();
    for (out, left) in [(1, 2), (0, 1), (2, 0)] {
        beside[out].set_health(Health::Failing);
        balancer.wait_for_healthy(left);
        let response = balancer.get("/health").json();
        assert_eq!(response["backends"]["healthy"], left, "{response}");
    }
    assert!(backends.iter().all(|backend| backend.probes() == 0));
    assert!(beside.iter().all(|one| one.requests() == 0));
}

#[test]
fn probes_are_not_multiplied_by_workers() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("workers", "4").start();
    let asked = || {
        let metrics = balancer.metrics();
        usize::try_from(metrics.sum("stepflow_lb_probes_total", &[])).unwrap()
    };
    wait_until("it has been asked ten times", || asked() >= 10);
    let before = asked();
    let seen = backend.probes();
    // One may be under way.
    assert!((before..=asked() + 1).contains(&seen), "{seen} of {before}");
}

#[test]
fn a_backend_that_says_that_it_drains_gets_no_new_work_and_keeps_its_instance() {
    let (one, two) = (Backend::saying("one"), Backend::saying("two"));
    let balancer = Balancer::start(&[&one, &two]);
    one.set_health(answer(200, r#"{"status":"healthy","instanceId":"one","draining":true}"#));
    balancer.wait_for_healthy(1);
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_backends", &[r#"state="draining""#]), 1);
    for _ in 0..20 {
        assert_eq!(balancer.get("/").text(), "two");
    }
    let named = balancer.ask("GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n");
    assert_eq!(named.text(), "one");
    one.set_health(Health::Named("one".to_owned()));
    balancer.wait_for_healthy(2);
    wait_until("it gets work again", || balancer.get("/").text() == "one");
}

#[test]
fn load_that_came_through_others_counts_and_odd_hints_do_not() {
    let (one, two) = (Backend::saying("one"), Backend::saying("two"));
    let balancer = Balancer::start(&[&one, &two]);
    one.set_health(answer(200, r#"{"instanceId":"one","activeStreams":5,"weight":"lots"}"#));
    // Nothing shows what is only a load: it is there behind the next check that ends.
    let probes = one.probes();
    wait_until("it has said so", || one.probes() >= probes + 3);
    for _ in 0..50 {
        assert_eq!(balancer.get("/").text(), "two");
    }
    one.set_health(answer(200, r#"{"instanceId":"one","activeStreams":-5}"#));
    wait_until("it gets work again", || balancer.get("/").text() == "one");
}
