//! Backends on which requests fail are ejected, within bounds, and come back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Balancer, Health, Metrics, Process,
    balancer::Setup,
    process::{before, command},
    try_in_time, wait_until,
};

const BAD: &str = "HTTP/1.1 500 Bad\r\nContent-Length: 3\r\n\r\nbad";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Health checks come too seldom to explain anything here.
fn setup(backends: &[&Backend]) -> Setup {
    Balancer::before(backends)
        .with("max_failures", "1000")
        .with("algorithm", "round_robin")
        .with("outlier_faults", "connect,reset,timeout,500-502,504-599")
}

fn ejected(metrics: &Metrics) -> u64 {
    metrics.sum("stepflow_lb_backends", &[r#"state="ejected""#])
}

/// Sends requests until so many backends are ejected and every worker knows.
#[track_caller]
fn ask_until_ejected(balancer: &Balancer, n: u64) {
    wait_until(&format!("{n} are ejected"), || {
        for _ in 0..4 {
            balancer.get("/");
        }
        let metrics = balancer.metrics();
        ejected(&metrics) == n && metrics.workers_are_up_to_date()
    });
}

/// How long the backend of the next test is out.
const EJECTION: Duration = Duration::from_secs(4);

#[test]
fn a_backend_that_answers_only_500s_is_out_within_a_second_and_comes_back() {
    let is_bad = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&is_bad);
    let bad = Backend::scripted(move |peer| {
        peer.read_body();
        let _ = peer.try_send(if asked.load(Relaxed) { BAD } else { OK });
    });
    let good = Backend::fine();
    let (balancer, begun) = try_in_time("it is out", || {
        let balancer = setup(&[&bad, &good]).with("outlier_ejection_time", "4s").start();
        let begun = Instant::now();
        ask_until_ejected(&balancer, 1);
        // A reading comes each second; a machine that is busy with other tests may be late.
        (begun.elapsed() < EJECTION / 2).then_some((balancer, begun))
    });
    let of_bad = bad.requests();
    for _ in 0..20 {
        let text = balancer.get("/").text();
        // It may be back by now, if this took long.
        if begun.elapsed() >= EJECTION {
            break;
        }
        assert_eq!((text.as_str(), bad.requests()), ("ok", of_bad), "nothing reaches it");
    }
    is_bad.store(false, Relaxed);
    wait_until("it is back", || ejected(&balancer.metrics()) == 0);
    bad.wait_for_requests(of_bad);
    wait_until("it works again", || {
        balancer.get("/");
        bad.requests() > of_bad
    });
    let metrics = balancer.metrics();
    let reason = r#"reason="consecutive_failures""#;
    assert!(metrics.sum("stepflow_lb_ejections_total", &[reason]) >= 1);
}

#[test]
fn every_way_to_fail_before_the_response_head_ejects_without_a_word_of_configuration() {
    type Fail = fn(&mut crate::support::Peer);
    let ways: [(&str, Fail); 3] = [
        ("closes", |peer| peer.close()),
        ("resets", |peer| peer.reset()),
        ("speaks something else", |peer| {
            let _ = peer.try_send("220 mail ready\r\n\r\n");
            peer.close();
        }),
    ];
    for (way, fail) in ways {
        let bad = Backend::scripted(move |peer| {
            peer.read_body();
            fail(peer);
        });
        let good = Backend::fine();
        let balancer = Balancer::before(&[&bad, &good]).with("algorithm", "round_robin").start();
        ask_until_ejected(&balancer, 1);
        let of_bad = bad.requests();
        for _ in 0..20 {
            assert_eq!(balancer.get("/").text(), "ok", "{way}");
        }
        assert_eq!(bad.requests(), of_bad, "{way}");
    }
}

#[test]
fn a_backend_that_answers_too_late_is_ejected() {
    let late = Backend::scripted(|peer| peer.wait_for_end());
    let good = Backend::fine();
    let balancer = setup(&[&late, &good]).with("response_head_timeout", "500ms").start();
    ask_until_ejected(&balancer, 1);
    assert_eq!(balancer.get("/").text(), "ok");
}

#[test]
fn a_backend_that_refuses_connections_is_ejected_before_its_health_checks_notice() {
    let (mut bad, good) = (Backend::fine(), Backend::fine());
    let balancer = setup(&[&bad, &good]).start();
    bad.refuse();
    ask_until_ejected(&balancer, 1);
    let reason = r#"reason="connect_failures""#;
    assert_eq!(balancer.metrics().sum("stepflow_lb_ejections_total", &[reason]), 1);
    let health = r#"state="unhealthy""#;
    assert_eq!(balancer.metrics().sum("stepflow_lb_backends", &[health]), 0);
}

#[test]
fn a_busy_backend_is_not_ejected() {
    let busy = Backend::answering("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy");
    let (bad, good) = (Backend::answering(BAD), Backend::fine());
    let balancer = setup(&[&busy, &bad, &good]).start();
    ask_until_ejected(&balancer, 1);
    // Both have failed as often, and the other one is out.
    let of_busy = busy.requests();
    assert!(of_busy >= 4, "{of_busy}");
    wait_until("the busy one goes on", || {
        balancer.get("/");
        busy.requests() > of_busy + 10
    });
    assert_eq!(ejected(&balancer.metrics()), 1);
}

#[test]
fn statuses_count_only_where_they_are_named() {
    let (bad, refusing) = (Backend::answering(BAD), Backend::scripted(|peer| peer.reset()));
    let good = Backend::fine();
    let balancer =
        Balancer::before(&[&bad, &refusing, &good]).with("algorithm", "round_robin").start();
    ask_until_ejected(&balancer, 1);
    let of_bad = bad.requests();
    wait_until("500s go on", || {
        balancer.get("/");
        bad.requests() > of_bad + 20
    });
    assert_eq!(ejected(&balancer.metrics()), 1);
}

#[test]
fn of_three_backends_that_fail_two_stay() {
    let backends = [Backend::answering(BAD), Backend::answering(BAD), Backend::answering(BAD)];
    let balancer = setup(&[&backends[0], &backends[1], &backends[2]]).start();
    wait_until("two are withheld", || {
        for _ in 0..6 {
            assert_eq!(balancer.get("/").status(), 500);
        }
        balancer.metrics().sum("stepflow_lb_ejections_withheld_total", &[]) == 2
    });
    assert_eq!(ejected(&balancer.metrics()), 1);
    assert_eq!(balancer.metrics().sum("stepflow_lb_backend_pool_size", &[]), 2);
}

#[test]
fn the_last_backend_is_never_ejected() {
    let backend = Backend::answering(BAD);
    let balancer = setup(&[&backend]).with("outlier_ejected_max", "100%").start();
    wait_until("its ejection is withheld", || {
        assert_eq!(balancer.get("/").status(), 500);
        balancer.metrics().sum("stepflow_lb_ejections_withheld_total", &[]) == 1
    });
    assert_eq!(balancer.get("/").status(), 500);
    assert_eq!(ejected(&balancer.metrics()), 0);
}

#[test]
fn an_ejected_instance_is_still_reached_by_those_who_name_it() {
    let (bad, good) = (Backend::answering(BAD).healthy_as("bad"), Backend::fine());
    let balancer = setup(&[&bad, &good]).start();
    ask_until_ejected(&balancer, 1);
    let named = balancer.ask("GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: bad\r\n\r\n");
    assert_eq!((named.status(), named.text().as_str()), (500, "bad"));
}

#[test]
fn detection_can_be_off() {
    let (bad, good) = (Backend::scripted(|peer| peer.reset()), Backend::fine());
    let balancer = setup(&[&bad, &good]).with("outlier_detection", "off").start();
    wait_until("thirty requests have failed", || {
        balancer.get("/");
        bad.requests() >= 30
    });
    assert_eq!(ejected(&balancer.metrics()), 0);
    assert_eq!(balancer.metrics().sum("stepflow_lb_ejections_total", &[]), 0);
}

#[test]
fn in_panic_unhealthy_backends_are_used_and_it_is_said() {
    let backend = Backend::fine();
    backend.set_health(Health::Failing);
    let mut command = before(command(), &[&backend]);
    command
        .env("STEPFLOW_LB_PANIC_SCOPE", "everything")
        .env("STEPFLOW_LB_ACCESS_LOG", "all")
        .env("MAX_FAILURES", "1");
    let mut process = Process::start(command);
    process.wait_for_line("panic_began");
    wait_until("every worker knows", || process.metrics().workers_are_up_to_date());
    assert_eq!(process.metrics().sum("stepflow_lb_panic", &[]), 1);
    assert_eq!(process.connect().get("/").text(), "ok");
    let line = process.wait_for_line("request completed");
    assert!(line.contains("routed=panic"), "{line}");
    let health = process.connect().get("/health");
    assert_eq!((health.status(), &health.json()["backends"]["healthy"]), (200, &0.into()));
    backend.set_health(Health::Anonymous);
    process.wait_for_line("panic_ended");
    assert_eq!(process.metrics().sum("stepflow_lb_panic", &[]), 0);
}
