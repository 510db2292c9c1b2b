//! Connections that are handed from the worker that accepted them to the one with the fewest.

use std::{collections::BTreeMap, net::Shutdown};

use stepflow_load_balancer::control::ExitReason;

use crate::support::{
    Backend, Balancer, Client, Metrics, balancer::Setup, message::chunk, wait_until,
};

const WORKERS: usize = 4;
const ASK: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn before(backend: &Backend, driver: &str, imbalance_max: &str) -> Setup {
    Balancer::before(&[backend])
        .with("workers", &WORKERS.to_string())
        .with("io_driver", driver)
        .with("worker_imbalance_max", imbalance_max)
}

/// A count of each worker.
fn each(metrics: &Metrics, family: &str) -> Vec<u64> {
    let of = |worker| metrics.sum(family, &[&format!(r#"worker="{worker}""#)]);
    (0..WORKERS).map(of).collect()
}

fn open(metrics: &Metrics) -> Vec<u64> {
    each(metrics, "stepflow_lb_connections_open")
}

fn handed_over(metrics: &Metrics) -> u64 {
    let sum = |name| metrics.sum(name, &[]);
    let over = sum("stepflow_lb_connections_handed_over_total");
    assert_eq!(over, sum("stepflow_lb_connections_taken_over_total"), "nobody is on the way");
    over
}

/// How far the worker with the most is above the one with the fewest.
fn apart(counts: &[u64]) -> u64 {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn however_the_kernel_spreads_them_no_worker_has_many_more_streams_than_another() {
    for driver in ["auto", "epoll"] {
        let backend = Backend::played();
        let balancer = before(&backend, driver, "2").start();
        let mut streams: Vec<_> = (0..100)
            .map(|n| {
                let mut client = balancer.connect();
                client.send(ASK);
                let mut peer = backend.next();
                peer.send(STREAM);
                assert_eq!(client.head().status(), 200);
                // Whoever has an answer is counted where it is served.
                let counts = open(&balancer.metrics());
                assert!(apart(&counts) <= 2, "{driver}: {counts:?} after {n} streams");
                (client, peer)
            })
            .collect();
        let metrics = balancer.metrics();
        assert_eq!(open(&metrics).iter().sum::<u64>(), 100);
        // A hash leaves four workers so even about once in ten million times.
        assert!(handed_over(&metrics) > 0, "{driver}: nobody was handed over");
        assert_eq!(metrics.sum("stepflow_lb_connections_accepted_total", &[]), 100);
        for (client, peer) in &mut streams {
            peer.send(chunk("data: 1\n\n"));
            assert_eq!(client.chunk(), b"data: 1\n\n");
        }
        drop(streams);
        balancer.wait_until_quiet();
    }
}

#[test]
fn connections_stay_where_the_kernel_put_them_where_that_is_wanted() {
    let backend = Backend::fine();
    let balancer = before(&backend, "auto", "off").start();
    let mut clients: Vec<_> = (0..100).map(|_| balancer.connect()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    assert_eq!(handed_over(&balancer.metrics()), 0);
}

/// Clients that connect and ask all at once.
fn burst(balancer: &Balancer, count: usize) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|_| balancer.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(ASK));
    clients
}

#[test]
fn a_burst_is_served_to_the_last_connection_and_spread_evenly() {
    for driver in ["auto", "epoll"] {
        let backend = Backend::fine();
        let balancer = before(&backend, driver, "1").start();
        for _ in 0..3 {
            let mut clients = burst(&balancer, 200);
            clients.iter_mut().for_each(|client| assert_eq!(client.response().status(), 200));
            let metrics = balancer.metrics();
            let counts = open(&metrics);
            assert_eq!(counts.iter().sum::<u64>(), 200, "{driver}: {counts:?}");
            // Workers that look at the same moment send to the same one: each by one too many.
            let most = WORKERS as u64;
            assert!(apart(&counts) <= 1 + most, "{driver}: {counts:?}");
            handed_over(&metrics);
            // Some leave with an end of sending, others at once.
            clients.drain(..100).for_each(|c| c.stream().shutdown(Shutdown::Write).unwrap());
            drop(clients);
            balancer.wait_until_quiet();
        }
    }
}

#[test]
fn limits_hold_wherever_connections_are_served() {
    for (option, status) in [("connections_max", 503), ("connections_per_client_max", 429)] {
        let backend = Backend::fine();
        let balancer = before(&backend, "auto", "1").with(option, "40").start();
        // One after the other the limit is met exactly.
        let mut kept: Vec<_> = (0..40)
            .map(|_| {
                let mut client = balancer.connect();
                assert_eq!(client.get("/").status(), 200);
                client
            })
            .collect();
        assert_eq!(balancer.connect().response().status(), status, "{option}");
        kept.clear();
        balancer.wait_until_quiet();
        // All at once it is never exceeded.
        let mut statuses = BTreeMap::<u16, usize>::new();
        let mut clients = burst(&balancer, 120);
        for client in &mut clients {
            *statuses.entry(client.response().status()).or_default() += 1;
        }
        let served = statuses.get(&200).copied().unwrap_or(0);
        assert!((1..=40).contains(&served), "{option}: {statuses:?}");
        assert_eq!(served + statuses.get(&status).copied().unwrap_or(0), 120, "{statuses:?}");
        drop(clients);
        balancer.wait_until_quiet();
    }
}

#[test]
fn nobody_is_lost_on_the_way_when_the_process_drains() {
    for driver in ["auto", "epoll"] {
        for _ in 0..5 {
            let backend = Backend::fine();
            let balancer = before(&backend, driver, "1").with("drain_grace", "0s").start();
            let mut clients = burst(&balancer, 60);
            balancer.shut_down();
            for client in &mut clients {
                assert_eq!(client.response().status(), 200);
            }
            assert_eq!(balancer.wait(), ExitReason::Drained);
        }
    }
}

#[test]
fn counts_return_when_clients_come_and_go_while_others_stay() {
    let backend = Backend::fine();
    let balancer = before(&backend, "auto", "1").start();
    let mut stay: Vec<_> = (0..30).map(|_| balancer.connect()).collect();
    stay.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
    for _ in 0..200 {
        assert_eq!(balancer.get("/").status(), 200);
    }
    wait_until("only those that stay are open", || {
        open(&balancer.metrics()).iter().sum::<u64>() == 30
    });
    let counts = open(&balancer.metrics());
    assert!(apart(&counts) <= 1 + WORKERS as u64, "{counts:?}");
    stay.iter_mut().for_each(|client| assert_eq!(client.get("/").status(), 200));
}
