//! Connections that are opened and closed, thousands after thousands.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::{
    inbox::{Inbox, PATIENCE},
    product::Product,
    support::{Backend, message::Framing, wait_until},
};

/// In all. Each stays in TIME_WAIT if it is closed in order, and a machine has 28,000 ports.
const CONNECTIONS: usize = 20_000;
const ROUNDS: usize = 5;
/// Rounds that the allocator may take to settle.
const ROUNDS_OF_WARMING_UP: usize = 2;
/// Most that the rounds after these may add in all: what a leak of 88 octets for each connection
/// would.
const GROWTH_KIB_MAX: u64 = 1024;
/// At once, so that what is held at the same time is the same in all rounds.
const THREADS: usize = 8;

/// How far a connection goes, and how it ends.
const MANNERS: [fn(SocketAddr); 6] = [
    |address| drop(connect(address)),
    |address| connect(address).reset(),
    |address| {
        let inbox = connect(address);
        inbox.send("GET / HTTP/1.1\r\nHost: a\r\nX").unwrap();
        inbox.reset();
    },
    |address| asked(address).reset(),
    |address| drop(answered(address)),
    |address| answered(address).reset(),
];

fn connect(address: SocketAddr) -> Inbox {
    Inbox::connect(address).expect("the balancer accepts")
}

fn asked(address: SocketAddr) -> Inbox {
    let inbox = connect(address);
    inbox.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("the balancer is there");
    inbox
}

fn answered(address: SocketAddr) -> Inbox {
    let mut inbox = asked(address);
    let head = inbox.head(Some(PATIENCE)).expect("an answer");
    assert_eq!(head.status(), 200, "{head:?}");
    let body = inbox.body(head.framing().unwrap_or(Framing::UntilClose));
    assert_eq!(body.expect("a body"), b"ok");
    inbox
}

#[test]
fn twenty_thousand_connections_leave_memory_and_descriptors_as_they_were() {
    let backend = Backend::fine();
    let upstream = backend.address.to_string();
    let product = Product::start(&[
        ("UPSTREAM_SERVICE", &upstream),
        // Nothing else shall open or close anything meanwhile.
        ("HEALTH_CHECK_INTERVAL", "1h"),
        ("STEPFLOW_LB_ACCESS_LOG", "off"),
        ("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "500ms"),
    ]);
    wait_until("the backend is healthy", || {
        let metrics = product.metrics();
        metrics.sum("stepflow_lb_backend_pool_size", &[]) == 1 && metrics.workers_are_up_to_date()
    });
    let base = product.holding();
    println!("before: {base:?}");
    let mut resident = Vec::new();
    for round in 1..=ROUNDS {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Relaxed);
                        if number >= CONNECTIONS / ROUNDS {
                            return;
                        }
                        MANNERS[number % MANNERS.len()](product.address);
                    }
                });
            }
        });
        wait_until("nothing is open", || {
            let metrics = product.metrics();
            let open = ["connections_open", "active_connections", "upstream_idle"];
            open.iter().all(|gauge| metrics.sum(&format!("stepflow_lb_{gauge}"), &[]) == 0)
        });
        wait_until("every descriptor is closed", || {
            product.holding().descriptors <= base.descriptors
        });
        let holding = product.holding();
        println!("round {round}: {holding:?}");
        resident.push(holding.resident_kib);
    }
    let accepted = product.metrics().sum("stepflow_lb_connections_accepted_total", &[]);
    // One that is reset while it waits to be accepted never was.
    assert!(accepted > CONNECTIONS as u64 / 2, "{accepted} were accepted");
    assert_eq!(product.metrics().sum("stepflow_lb_panics_total", &[]), 0);
    let growth = resident[ROUNDS - 1].saturating_sub(resident[ROUNDS_OF_WARMING_UP - 1]);
    assert!(growth <= GROWTH_KIB_MAX, "{growth} KiB more, round by round {resident:?}");
    let alarming = product.with_log(|log| log.alarming.clone());
    assert!(alarming.is_empty(), "{alarming:#?}");
}
