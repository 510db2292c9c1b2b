//! The control thread as the workers meet it: a link, a health server, and nothing else.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread::JoinHandle,
};

use tokio::sync::mpsc::unbounded_channel;

use super::*;
use crate::{
    config::{Environment, Flags},
    link::{self, Reporter, Subscriber},
    model::{Backend, Health, InstanceId, Phase, Report},
};

const DEADLINE: Duration = Duration::from_secs(30);

/// A control thread, and the only worker it knows.
struct Controlled {
    thread: JoinHandle<Result<ExitReason, ControlError>>,
    subscriber: Subscriber,
    _bell: UnixStream,
    stats: Arc<[WorkerStats]>,
    shutdown: UnboundedSender<()>,
    metrics: SocketAddr,
    snapshot: Arc<Snapshot>,
}

impl Controlled {
    fn start(upstream: SocketAddr, adjust: impl FnOnce(&mut Config)) -> Self {
        let upstream = upstream.to_string();
        let environment = Environment::from_pairs([
            ("UPSTREAM_SERVICE", upstream.as_str()),
            ("HEALTH_CHECK_INTERVAL", "200ms"),
        ]);
        let mut config = Config::resolve(Flags::default(), environment, None).expect("valid");
        adjust(&mut config);
        let mut links = link::connect(1).expect("descriptors");
        let (subscriber, bell) = links.workers.remove(0);
        let stats: Arc<[WorkerStats]> = Arc::from([WorkerStats::default()]);
        let (shutdown, shutdowns) = unbounded_channel();
        let metrics_listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let metrics = metrics_listener.local_addr().expect("an address");
        let parts = ControlParts {
            config: Arc::new(config),
            publisher: links.publisher,
            report_bell: links.report_bell,
            workers: Arc::clone(&stats),
            drivers: vec!["epoll".to_owned()],
            metrics_listener,
            admin_listener: None,
            shutdown: shutdowns,
            signals: Signals::Ignore,
        };
        let thread = std::thread::spawn(move || run(parts));
        let snapshot = Arc::new(Snapshot::empty());
        Self { thread, subscriber, _bell: bell, stats, shutdown, metrics, snapshot }
    }

    fn reporter(&self) -> &Reporter {
        self.subscriber.reporter()
    }

    /// Applies snapshots as a worker does, until one is as wanted.
    fn until(&mut self, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(&self.snapshot) {
            assert!(Instant::now() < deadline, "{what} did not happen: {:?}", self.snapshot);
            match self.subscriber.newest() {
                Some(newest) => {
                    self.stats[0].snapshot_version.set(newest.version.0);
                    self.snapshot = newest;
                }
                None => std::thread::yield_now(),
            }
        }
        Arc::clone(&self.snapshot)
    }

    fn until_backend(&mut self, what: &str, is_so: impl Fn(&Backend) -> bool) -> Backend {
        let snapshot = self.until(what, |snapshot| snapshot.backends.iter().any(&is_so));
        snapshot.backends.iter().find(|backend| is_so(backend)).expect("just seen").clone()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = std::net::TcpStream::connect(self.metrics).expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }
}

/// Answers `probes` connections as a component server with this id, then stops listening.
fn component_server(id: &'static str, probes: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().take(probes) {
            let mut stream = stream.expect("a connection");
            let _ = stream.read(&mut [0; 1024]);
            let body = format!(r#"{{"status":"healthy","instanceId":"{id}"}}"#);
            let length = body.len();
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        }
    });
    address
}

#[test]
fn a_backend_is_found_named_lost_and_the_process_drained() {
    let address = component_server("pod-1", 3);
    let mut control = Controlled::start(address, |config| {
        config.timeouts.drain_grace = Duration::from_millis(1);
    });
    let healthy = control.until_backend("healthy", |b| b.health == Health::Healthy);
    assert_eq!(healthy.address, address);
    assert_eq!(healthy.instance.map(|id| id.to_string()).as_deref(), Some("pod-1"));

    let restarted = InstanceId::parse(b"pod-2").expect("valid");
    let seen = Report::InstanceSeen(healthy.id, restarted.clone());
    control.reporter().report(seen).expect("room");
    let is_restarted = |b: &Backend| b.instance.as_ref() == Some(&restarted);
    let successor = control.until_backend("a restart", is_restarted);
    assert!(successor.id > healthy.id);

    // After its third answer nobody listens any more.
    let lost = control.until_backend("unhealthy", |b| b.health == Health::Unhealthy);
    assert_eq!(lost.address, address);
    let metrics = control.get("/metrics");
    assert!(metrics.contains("stepflow_lb_backend_health{"), "{metrics}");

    control.stats[0].connections_open.set(1);
    control.shutdown.send(()).expect("the control thread listens");
    control.until("draining", |snapshot| snapshot.phase == Phase::Draining);
    assert!(!control.thread.is_finished(), "one connection is open");
    control.stats[0].connections_open.set(0);
    let reason = control.thread.join().expect("no panic").expect("it had started");
    assert_eq!(reason, ExitReason::Drained);
}

#[test]
fn a_second_request_to_shut_down_ends_at_once() {
    let address = component_server("pod-1", usize::MAX);
    let control = Controlled::start(address, |config| {
        config.timeouts.drain_grace = Duration::from_secs(3600);
    });
    control.stats[0].connections_open.set(1);
    for _ in 0..2 {
        control.shutdown.send(()).expect("the control thread listens");
    }
    let reason = control.thread.join().expect("no panic").expect("it had started");
    assert_eq!(reason, ExitReason::Forced { cut: 0 });
}

#[tokio::test]
async fn a_bell_whose_workers_are_gone_never_rings() {
    let (mut ringer, bell) = UnixStream::pair().expect("descriptors");
    bell.set_nonblocking(true).expect("a socket");
    let mut bell = tokio::net::UnixStream::from_std(bell).expect("a runtime");
    ringer.write_all(&[1]).expect("room");
    ring(&mut bell).await;
    drop(ringer);
    // A bell that rang for ever would keep the thread at full speed doing nothing.
    let rung = tokio::time::timeout(Duration::from_millis(50), ring(&mut bell)).await;
    assert!(rung.is_err());
}

#[tokio::test]
async fn a_question_that_panics_is_answered_all_the_same() {
    LocalSet::new()
        .run_until(async {
            let answer = outcome(async { panic!("a bug in a resolver") }, Input::Shutdown).await;
            assert!(matches!(answer, Input::Shutdown));
            let answer = outcome(async { Input::Reported(Report::InstanceUnknown) }, answer).await;
            assert!(matches!(answer, Input::Reported(Report::InstanceUnknown)));
        })
        .await;
}
