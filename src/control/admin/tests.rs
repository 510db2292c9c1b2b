//! The port as clients meet it, over sockets.

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream as Client},
    time::Instant,
};

use tokio::task::LocalSet;

use super::*;
use crate::{
    config::{Config, Environment, Flags},
    model::{Backend, Phase, Snapshot, Version},
    plane::PlaneCounters,
    stats::WorkerStats,
};

fn view(snapshot: Snapshot) -> AdminView {
    let environment = Environment::from_pairs([("UPSTREAM_SERVICE", "127.0.0.1:1")]);
    let config = Config::resolve(Flags::default(), environment, None).expect("valid");
    let worker = WorkerStats::default();
    worker.snapshot_version.set(snapshot.version.0);
    AdminView {
        config: Arc::new(config),
        workers: Arc::from([worker]),
        drivers: vec!["epoll".to_owned()],
        snapshot: RefCell::new(Arc::new(snapshot)),
        known: RefCell::new(Arc::new(Snapshot::empty())),
        counters: RefCell::new(PlaneCounters::default()),
        started: Instant::now(),
        inputs: tokio::sync::mpsc::unbounded_channel().0,
    }
}

fn healthy() -> Snapshot {
    let backend = Backend::sample(1, SocketAddr::from(([127, 0, 0, 1], 1)));
    Snapshot { version: Version(1), backends: vec![backend], ..Snapshot::empty() }
}

/// Runs `client`, which may block, against a server of this snapshot.
fn serving<T: Send + 'static>(
    snapshot: Snapshot,
    client: impl FnOnce(SocketAddr) -> T + Send + 'static,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        spawn_local(serve(listener, Rc::new(view(snapshot)), Port::Metrics));
        tokio::task::spawn_blocking(move || client(address)).await.expect("the client succeeds")
    })
}

fn connect(address: SocketAddr) -> Client {
    let client = Client::connect(address).expect("a connection");
    client.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
    client
}

/// What one request on a connection of its own is answered.
fn ask(address: SocketAddr, request: &str) -> String {
    let mut client = connect(address);
    client.write_all(request.as_bytes()).expect("room");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    answer
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
}

#[test]
fn every_path_but_two_gives_metrics() {
    for path in ["/metrics", "/", "/anything?x"] {
        let answer = serving(healthy(), move |address| ask(address, &get(path)));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{path}: {answer}");
        assert!(answer.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        assert!(answer.contains("\nstepflow_lb_backend_pool_size 1\n"), "{answer}");
        // The labels of failures are those of the exchange.
        assert!(answer.contains(&format!("failures_total{{reason=\"{}\"}} 0", Failure::LABELS[0])));
    }
}

#[test]
fn good_news_is_told_when_every_worker_has_heard_it_and_bad_news_at_once() {
    let mut view = view(healthy());
    view.workers = Arc::from([WorkerStats::default(), WorkerStats::default()]);
    let publish = |snapshot: Snapshot| view.snapshot.replace(Arc::new(snapshot));
    let status = || health(&view, &view.snapshot.borrow()).0;
    assert_eq!(status(), 503, "nobody has heard");
    view.workers[0].snapshot_version.set(1);
    assert_eq!(status(), 503, "one is behind");
    view.workers[1].snapshot_version.set(1);
    assert_eq!(status(), 200);
    // What comes later is not waited for while the news stays good.
    publish(Snapshot { version: Version(2), ..healthy() });
    assert_eq!(status(), 200);
    publish(Snapshot { version: Version(3), phase: Phase::Unready, ..healthy() });
    assert_eq!(status(), 503, "bad news");
}

#[test]
fn health_is_that_of_the_data_port() {
    let draining = Snapshot { phase: Phase::Unready, ..healthy() };
    let cases = [
        (
            healthy(),
            "200",
            r#"{"status":"healthy","backends":{"total":1,"healthy":1,"unhealthy":0}}"#,
        ),
        (
            Snapshot::empty(),
            "503",
            r#"{"status":"unhealthy","backends":{"total":0,"healthy":0,"unhealthy":0}}"#,
        ),
        (
            draining,
            "503",
            r#"{"status":"draining","backends":{"total":1,"healthy":1,"unhealthy":0}}"#,
        ),
    ];
    for (snapshot, status, body) in cases {
        for path in ["/health", "/ready?verbose"] {
            let answer = serving(snapshot.clone(), move |address| ask(address, &get(path)));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            assert!(answer.ends_with(body), "{answer}");
        }
    }
}

#[test]
fn head_gets_the_head_and_other_methods_are_refused() {
    let answers = serving(healthy(), |address| {
        ["HEAD", "POST", "DELETE", "BREW"].map(|method| {
            let request = format!("{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            ask(address, &request)
        })
    });
    assert!(answers[0].starts_with("HTTP/1.1 200 ") && answers[0].ends_with("\r\n\r\n"));
    for answer in &answers[1..] {
        assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{answer}");
        assert!(answer.contains("\r\nAllow: GET, HEAD\r\n"), "{answer}");
    }
}

#[test]
fn one_connection_serves_many_scrapes() {
    serving(healthy(), |address| {
        let mut client = connect(address);
        let request = "HEAD /metrics HTTP/1.1\r\nHost: h\r\n\r\n";
        for _ in 0..3 {
            client.write_all(request.as_bytes()).expect("room");
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                client.read_exact(&mut octet).expect("an answer");
                answer.push(octet[0]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "));
        }
    });
}

#[test]
fn more_clients_than_places_wait_for_their_turn() {
    serving(healthy(), |address| {
        let mut idle: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(address)).collect();
        // Every place is taken once each of these has been answered.
        for client in &mut idle {
            client.write_all(b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n").expect("room");
            client.read_exact(&mut [0; 12]).expect("an answer");
        }
        let mut late = connect(address);
        late.write_all(get("/health").as_bytes()).expect("room");
        late.set_read_timeout(Some(Duration::from_millis(50))).expect("a socket");
        let early = late.read(&mut [0; 1]).map_err(|error| error.kind());
        assert_eq!(early, Err(io::ErrorKind::WouldBlock), "a 65th client was served");
        drop(idle.pop());
        late.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let mut answer = String::new();
        late.read_to_string(&mut answer).expect("its turn");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}
