//! Many streams at once: where they go, and that they stay.

use std::{
    ops::Range,
    sync::Arc,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::support::{Backend, Balancer, Client, Health, wait_until};

/// Counts the streams that are open on it.
pub(crate) struct Streaming {
    pub(crate) backend: Backend,
    open: Arc<AtomicUsize>,
}

impl Streaming {
    pub(crate) fn start() -> Self {
        let open = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&open);
        let backend = Backend::scripted(move |peer| {
            counted.fetch_add(1, Ordering::SeqCst);
            peer.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            );
            peer.wait_for_end();
            counted.fetch_sub(1, Ordering::SeqCst);
            peer.close();
        });
        Self { backend, open }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Opens streams one after the other; each has its first event when the next is asked for.
fn open_streams(balancer: &Balancer, n: usize) -> Vec<Client> {
    (0..n)
        .map(|_| {
            let mut client = balancer.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
            assert_eq!(client.head().status(), 200);
            assert_eq!(client.chunk(), b"data: 1\n\n");
            client
        })
        .collect()
}

pub(crate) fn spread(backends: &[Streaming]) -> Vec<usize> {
    backends.iter().map(Streaming::open).collect()
}

#[track_caller]
fn assert_even(backends: &[Streaming], around: Range<usize>) {
    let spread = spread(backends);
    assert!(spread.iter().all(|n| around.contains(n)), "{spread:?} not in {around:?}");
}

fn three() -> (Vec<Streaming>, Balancer) {
    let backends: Vec<_> = (0..3).map(|_| Streaming::start()).collect();
    let refs: Vec<_> = backends.iter().map(|b| &b.backend).collect();
    // The workers' number is part of the promise: each sees the counts of the others.
    let balancer = Balancer::before(&refs).with("workers", "2").start();
    (backends, balancer)
}

#[test]
fn three_hundred_streams_are_spread_evenly_over_three_backends() {
    let (backends, balancer) = three();
    let _streams = open_streams(&balancer, 300);
    assert_even(&backends, 98..103);
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_event_streams_open", &[]), 300);
    for b in &backends {
        let label = format!(r#"backend="{}""#, b.backend.address);
        let counted = metrics.sum("stepflow_lb_active_connections", &[&label]);
        assert_eq!(counted, b.open() as u64);
    }
}

#[test]
fn streams_opened_at_the_same_time_are_spread_evenly_too() {
    let (backends, balancer) = three();
    let mut clients: Vec<_> = (0..300).map(|_| balancer.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.head().status(), 200);
    }
    assert_even(&backends, 98..103);
}

#[test]
fn the_spread_stays_even_when_streams_end_and_others_come() {
    let (backends, balancer) = three();
    let mut streams = open_streams(&balancer, 90);
    for round in 0..5 {
        // Every third, which is mostly one backend's.
        let mut n = 0;
        streams.retain(|_| {
            n += 1;
            n % 3 != round % 3
        });
        wait_until("the backends have seen them leave", || {
            spread(&backends).iter().sum::<usize>() == streams.len()
        });
        wait_until("the balancer no longer counts them", || {
            let active = balancer.metrics().sum("stepflow_lb_active_connections", &[]);
            active == streams.len() as u64
        });
        let missing = 90 - streams.len();
        streams.extend(open_streams(&balancer, missing));
        assert_even(&backends, 28..33);
    }
}

#[test]
fn streams_survive_a_failing_backend_and_count_when_it_is_back() {
    let (backends, balancer) = three();
    let mut streams = open_streams(&balancer, 150);
    assert_even(&backends, 48..53);
    backends[0].backend.set_health(Health::Failing);
    balancer.wait_for_healthy(2);
    let others = open_streams(&balancer, 50);
    // The failing one keeps what it has and gets nothing new.
    let before = spread(&backends);
    assert!((48..53).contains(&before[0]), "{before:?}");
    assert!((73..78).contains(&before[1]) && (73..78).contains(&before[2]), "{before:?}");
    backends[0].backend.set_health(Health::Anonymous);
    balancer.wait_for_healthy(3);
    // Its old streams still count: it gets just what it lacks.
    streams.extend(others);
    streams.extend(open_streams(&balancer, 100));
    assert_even(&backends, 98..103);
}

#[test]
fn the_spread_is_exact_across_many_snapshots() {
    let (backends, balancer) = three();
    let mut streams = Vec::new();
    for round in 0..10 {
        // Each change of an instance id makes a new snapshot of everybody, and of one backend a new
        // identity; the other two keep their counts.
        let name = format!("process-{round}");
        backends[2].backend.set_health(Health::Named(name.clone()));
        wait_until("the new name is known", || {
            let label = format!(r#"instance_id="{name}""#);
            balancer.metrics().sum("stepflow_lb_backend_health", &[&label]) == 1
        });
        balancer.wait_for_healthy(3);
        streams.extend(open_streams(&balancer, 12));
    }
    let spread = spread(&backends);
    assert_eq!(spread.iter().sum::<usize>(), 120);
    assert!(spread[0].abs_diff(spread[1]) <= 1, "{spread:?}");
}
