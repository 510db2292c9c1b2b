//! Where requests go: each algorithm as clients and backends see it.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use crate::{
    streams::{Streaming, spread},
    support::{Backend, Balancer, Client, Health, wait_until},
};

/// Opens streams from several threads at once; each has its head when this returns.
fn open_at_once(address: SocketAddr, threads: usize, each: usize) -> Vec<Client> {
    let open = || {
        let mut clients: Vec<_> = (0..each).map(|_| Client::connect(address)).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
        }
        for client in &mut clients {
            assert_eq!(client.head().status(), 200);
        }
        clients
    };
    std::thread::scope(|scope| {
        let opening: Vec<_> = (0..threads).map(|_| scope.spawn(open)).collect();
        opening.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_thousand_streams_opened_at_once_through_four_workers_differ_by_at_most_one() {
    let backends: Vec<_> = (0..5).map(|_| Streaming::start()).collect();
    let refs: Vec<_> = backends.iter().map(|streaming| &streaming.backend).collect();
    // The number of workers is part of the promise, and more than there are CPUs makes it harder:
    // workers lose their CPU in the middle of choosing.
    let balancer = Balancer::before(&refs).with("workers", "4").with("max_failures", "1").start();
    let mut streams = Vec::new();
    for round in 1..=4 {
        streams.extend(open_at_once(balancer.address, 4, 25));
        assert_eq!(spread(&backends), [20 * round; 5]);
    }
    // 99 do not go into five: somebody has one less, and nobody has two.
    streams.extend(open_at_once(balancer.address, 3, 33));
    let after_499 = spread(&backends);
    assert!(after_499.iter().all(|n| [99, 100].contains(n)), "{after_499:?}");
    streams.extend(open_at_once(balancer.address, 1, 1));
    assert_eq!(spread(&backends), [100; 5]);

    // While one is out, and while snapshots change again and again, the others stay even.
    let ejected = &backends[4].backend;
    ejected.set_health(Health::Failing);
    balancer.wait_for_healthy(4);
    let goes_on = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let before = balancer.metrics().sum("stepflow_lb_snapshot_version_published", &[]);
            let mut version = before;
            while goes_on.load(Ordering::SeqCst) || version < before + 4 {
                for health in [Health::Anonymous, Health::Failing] {
                    backends[4].backend.set_health(health);
                    wait_until("a snapshot shows it", || {
                        let metrics = balancer.metrics();
                        let now = metrics.sum("stepflow_lb_snapshot_version_published", &[]);
                        let is_news = now > version;
                        version = version.max(now);
                        is_news
                    });
                }
            }
        });
        streams.extend(open_at_once(balancer.address, 4, 50));
        goes_on.store(false, Ordering::SeqCst);
    });
    let others = &spread(&backends)[..4];
    let (min, max) = (others.iter().min().unwrap(), others.iter().max().unwrap());
    assert!(max - min <= 1, "{others:?}");

    // Back again, it gets just what it lacks.
    ejected.set_health(Health::Anonymous);
    balancer.wait_for_healthy(5);
    streams.extend(open_at_once(balancer.address, 4, 75));
    assert_eq!(streams.len(), 1000);
    assert_eq!(spread(&backends), [200; 5]);
    let active = balancer.metrics().sum("stepflow_lb_active_connections", &[]);
    assert_eq!(active, 1000);
}

#[test]
fn weights_in_the_list_are_kept_to_the_stream() {
    let backends: Vec<_> = (0..3).map(|_| Streaming::start()).collect();
    let refs: Vec<_> = backends.iter().map(|streaming| &streaming.backend).collect();
    let entry =
        |(weight, backend): (u32, &&Backend)| format!("{};weight={weight}", backend.address);
    let upstream = (1..).zip(&refs).map(entry).collect::<Vec<_>>().join(",");
    let balancer = Balancer::before(&refs)
        .with("upstream_service", &upstream)
        .with("algorithm", "weighted_least_connections")
        .with("workers", "4")
        .start();
    let _streams = open_at_once(balancer.address, 4, 30);
    assert_eq!(spread(&backends), [20, 40, 60]);
}

/// How many requests each of these backends has got.
fn requests(backends: &[Backend]) -> Vec<usize> {
    backends.iter().map(Backend::requests).collect()
}

fn fine(n: usize) -> Vec<Backend> {
    (0..n).map(|_| Backend::fine()).collect()
}

#[test]
fn round_robin_takes_turns_by_weight() {
    let backends = fine(3);
    let refs: Vec<_> = backends.iter().collect();
    let [a, b, c] = [0, 1, 2].map(|i| refs[i].address);
    let balancer = Balancer::before(&refs)
        .with("upstream_service", &format!("{a};weight=4,{b},{c};weight=2"))
        .with("algorithm", "weighted_round_robin")
        .with("workers", "1")
        .start();
    let mut client = balancer.connect();
    for round in 1..=10 {
        for _ in 0..7 {
            assert_eq!(client.get("/").status(), 200);
        }
        for (n, want) in requests(&backends).into_iter().zip([4 * round, round, 2 * round]) {
            assert!(n.abs_diff(want) <= 1, "{n}, not {want}, in round {round}");
        }
    }
}

#[test]
fn chance_and_the_better_of_two_serve_with_everybody() {
    for algorithm in ["random", "power_of_two"] {
        let backends = fine(3);
        let refs: Vec<_> = backends.iter().collect();
        let balancer = Balancer::before(&refs).with("algorithm", algorithm).start();
        let mut client = balancer.connect();
        for _ in 0..300 {
            assert_eq!(client.get("/").status(), 200);
        }
        // Once in a billion times one of three gets less than 50 of 300 by chance.
        assert!(requests(&backends).iter().all(|n| *n > 50), "{algorithm}");
    }
}

#[test]
fn a_slow_backend_gets_few_requests_where_the_response_time_counts() {
    let slow = Backend::scripted(|peer| {
        // Slowness is what this backend is made of; nothing waits for it to end. On a busy machine
        // the others are slow as well, and not as slow as this.
        std::thread::sleep(Duration::from_secs(3));
        peer.answer("ok");
    });
    let [quick, other] = [Backend::fine(), Backend::fine()];
    let balancer = Balancer::before(&[&slow, &quick, &other])
        .with("algorithm", "least_response_time")
        .with("response_time_half_life", "1h")
        .with("workers", "1")
        .start();
    let mut client = balancer.connect();
    for _ in 0..300 {
        assert_eq!(client.get("/").status(), 200);
    }
    // One to learn from. A quick one has to be as slow as that before the slow one is tried again.
    assert_eq!(slow.requests(), 1);
    assert_eq!(quick.requests() + other.requests(), 299);
}

/// The backend that answered, by its place in the list.
fn answered_by(backends: &[Backend], ask: impl FnOnce()) -> usize {
    let before = requests(backends);
    ask();
    let after = requests(backends);
    (0..before.len()).find(|i| after[*i] > before[*i]).expect("a backend was asked")
}

fn hashing(backends: &[Backend], on: &str) -> Balancer {
    let refs: Vec<_> = backends.iter().collect();
    Balancer::before(&refs).with("algorithm", "consistent_hash").with("hash_on", on).start()
}

#[test]
fn equal_keys_lead_to_one_backend_through_all_workers_and_replicas() {
    let cases: [(&str, fn(usize) -> String); 5] = [
        ("header:x-user", |n| format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: u{n}\r\n\r\n")),
        ("cookie:SID", |n| format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; SID={n}\r\n\r\n")),
        ("query:user", |n| format!("GET /?x=y&user={n} HTTP/1.1\r\nHost: a\r\n\r\n")),
        ("path", |n| format!("GET /items/{n}?x=y HTTP/1.1\r\nHost: a\r\n\r\n")),
        // The test is a client at a loopback address, and so a trusted proxy.
        ("client_address", |n| {
            format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.{n}\r\n\r\n")
        }),
    ];
    let backends = fine(4);
    for (on, request) in cases {
        let (here, there) = (hashing(&backends, on), hashing(&backends, on));
        let mut homes = HashSet::new();
        for n in 1..=40 {
            let home = answered_by(&backends, || {
                assert_eq!(here.ask(request(n)).status(), 200);
            });
            for replica in [&here, &there, &here] {
                let again = answered_by(&backends, || {
                    assert_eq!(replica.ask(request(n)).status(), 200);
                });
                assert_eq!(again, home, "{on} {n}");
            }
            homes.insert(home);
        }
        assert_eq!(homes.len(), 4, "{on}");
        // Without a key any will do.
        assert_eq!(here.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status(), 200);
    }
}

#[test]
fn only_keys_of_a_backend_that_fails_move_and_they_come_home() {
    let backends = fine(4);
    let balancer = hashing(&backends, "header:x-user");
    let homes = || -> Vec<usize> {
        let mut client = balancer.connect();
        let mut home = |n: usize| {
            answered_by(&backends, || {
                let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: u{n}\r\n\r\n");
                assert_eq!(client.ask(request).status(), 200);
            })
        };
        (0..60).map(&mut home).collect()
    };
    let before = homes();
    backends[2].set_health(Health::Failing);
    balancer.wait_for_healthy(3);
    for (before, now) in before.iter().zip(homes()) {
        assert!(*before == now || (*before == 2 && now != 2), "from {before} to {now}");
    }
    backends[2].set_health(Health::Anonymous);
    balancer.wait_for_healthy(4);
    assert_eq!(homes(), before);
}

#[test]
fn one_popular_key_fills_no_backend_beyond_its_bound() {
    let backends: Vec<_> = (0..4).map(|_| Streaming::start()).collect();
    let refs: Vec<_> = backends.iter().map(|streaming| &streaming.backend).collect();
    let balancer = Balancer::before(&refs)
        .with("algorithm", "consistent_hash")
        .with("hash_on", "path")
        .with("hash_balance_percent", "150")
        .with("workers", "4")
        .start();
    // All ask for the same path.
    let _streams = open_at_once(balancer.address, 4, 20);
    let spread = spread(&backends);
    // Twenty is the mean; the bound is half as much again.
    assert!(spread.iter().all(|n| *n <= 30), "{spread:?}");
    assert!(spread.contains(&30), "{spread:?}");
}

#[test]
fn a_backend_that_comes_back_gets_little_at_first() {
    const WINDOW: Duration = Duration::from_secs(5);
    let backends: Vec<_> = (0..3).map(|_| Streaming::start()).collect();
    let refs: Vec<_> = backends.iter().map(|streaming| &streaming.backend).collect();
    let balancer = Balancer::before(&refs)
        .with("slow_start", &format!("{}s", WINDOW.as_secs()))
        .with("max_failures", "1")
        .start();
    let started = Instant::now();
    // All are new: nobody is held back.
    drop(open_at_once(balancer.address, 1, 30));
    wait_until("the streams have ended", || spread(&backends) == [0; 3]);
    backends[2].backend.set_health(Health::Failing);
    balancer.wait_for_healthy(2);
    // A worker's clock is coarse, and late where the worker is.
    let lag = Duration::from_millis(500);
    wait_until("the others have been there for a while", || started.elapsed() > WINDOW + lag);
    let back = Instant::now() - lag;
    backends[2].backend.set_health(Health::Anonymous);
    balancer.wait_for_healthy(3);
    let _streams = open_at_once(balancer.address, 1, 60);
    // A tenth, and as much more as the time that this has taken: of 60, the third of three.
    let parts = 0.1 + 0.9 * back.elapsed().as_secs_f64() / WINDOW.as_secs_f64();
    let most = 60.0 * parts / (2.0 + parts) + 1.0;
    let spread = spread(&backends);
    assert!((spread[2] as f64) <= most.min(20.0), "{spread:?}, {most}");
    assert!(spread[0].abs_diff(spread[1]) <= 1, "{spread:?}");
}
