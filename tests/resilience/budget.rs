//! How much is tried again in all.

use std::time::{Duration, Instant};

use crate::support::{Backend, Balancer, Peer, try_in_time};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Reads a request and closes without a word.
fn dies(peer: &mut Peer) {
    peer.read_body();
    peer.close();
}

#[test]
fn where_every_backend_dies_retries_stay_within_their_share_of_the_traffic() {
    const REQUESTS: usize = 400;
    for (share, expected) in [("20%", 80), ("off", REQUESTS)] {
        try_in_time("all of it within the ten seconds that a budget is for", || {
            let began = Instant::now();
            let backends = [(); 3].map(|()| Backend::scripted(dies));
            let balancer = Balancer::before(&backends.each_ref())
                .with("workers", "1")
                .with("retry_budget", share)
                .with("retries_per_second_min", "0")
                .start();
            let mut client = balancer.connect();
            for _ in 0..REQUESTS {
                let response = client.ask(GET);
                // What failed is what is told, not that nothing more was tried.
                assert_eq!((response.status(), response.label().as_str()), (502, "backend_closed"));
            }
            if began.elapsed() > Duration::from_secs(9) {
                return None;
            }
            balancer.wait_for_failures("backend_closed", REQUESTS as u64);
            let metrics = balancer.metrics();
            let count = |name| usize::try_from(metrics.sum(name, &[])).unwrap();
            let retries = count("stepflow_lb_retries_total");
            let refused = count("stepflow_lb_retry_budget_exhausted_total");
            assert_eq!((retries, refused), (expected, REQUESTS - expected), "{share}");
            let seen: usize = backends.iter().map(Backend::requests).sum();
            assert_eq!(seen, REQUESTS + retries);
            Some(())
        });
    }
}

#[test]
fn little_traffic_may_be_tried_again_all_the_same() {
    let backends = [Backend::scripted(dies), Backend::scripted(dies)];
    let balancer = Balancer::before(&backends.each_ref())
        .with("workers", "1")
        .with("retry_budget", "0%")
        .with("retries_per_second_min", "1")
        // With one of them ejected there would be nobody to try again on.
        .with("outlier_detection", "off")
        .start();
    for _ in 0..30 {
        assert_eq!(balancer.get("/").label(), "backend_closed");
    }
    balancer.wait_for_failures("backend_closed", 30);
    // Ten for ten seconds; should the test last longer than one, the first of them come again.
    let retries = balancer.metrics().sum("stepflow_lb_retries_total", &[]);
    assert!((10..30).contains(&retries), "{retries}");
}

#[test]
fn of_many_backends_that_refuse_each_is_asked_once_and_four_at_most() {
    let mut down: Vec<_> = (0..6).map(|_| Backend::fine()).collect();
    let refs: Vec<_> = down.iter().collect();
    let balancer = Balancer::before(&refs)
        .with("workers", "1")
        .with("health_check_interval", "1h")
        .with("max_failures", "1000")
        .start();
    down.iter_mut().for_each(Backend::refuse);
    assert_eq!(balancer.get("/").label(), "connect_failed");
    let connects = || balancer.metrics().sum("stepflow_lb_upstream_connect_failures_total", &[]);
    assert_eq!(connects(), 4);
    assert_eq!(balancer.metrics().sum("stepflow_lb_retries_total", &[]), 3);
    // The last two were not among them, and are asked first by the next request.
    down[0].listen();
    down[1].listen();
    down[2].listen();
    down[3].listen();
    assert_eq!(balancer.get("/").status(), 200);
    assert!(connects() <= 6);
}
