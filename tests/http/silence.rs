//! Backends whose event streams fall silent together get no new work until they speak.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Balancer, Client, Metrics,
    balancer::Setup,
    message::chunk,
    process::{before, command},
    wait_until,
};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Streams on each backend.
const STREAMS: usize = 8;
const EVENT_PAUSE: Duration = Duration::from_millis(40);

/// How long may pass until streams are judged, or their silence is. A machine that is busy with
/// other tests makes pauses longer, and then each takes a multiple of the longest.
const JUDGEMENT: Duration = Duration::from_secs(240);

/// A backend that holds streams, and answers everything else with its name. Health checks pass all
/// the while.
struct Speaking {
    backend: Backend,
    /// So many of its streams speak; the others are open and say nothing.
    speaking: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Speaking {
    fn start(name: &'static str) -> Self {
        let speaking = Arc::new(AtomicUsize::new(usize::MAX));
        let is_over = Arc::new(AtomicBool::new(false));
        let (speaks, ends) = (Arc::clone(&speaking), Arc::clone(&is_over));
        let count = AtomicUsize::new(0);
        let backend = Backend::scripted(move |peer| {
            peer.read_body();
            if peer.head.all("accept").is_empty() {
                let _ =
                    peer.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}"));
                return;
            }
            let number = count.fetch_add(1, Relaxed);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                        Transfer-Encoding: chunked\r\n\r\n";
            let mut is_there = peer.try_send(head).is_ok();
            while is_there && !ends.load(Relaxed) {
                // A server goes on to send its keep-alive while it waits for what hangs.
                let octets = if number < speaks.load(Relaxed) { "data: 1\n\n" } else { ": \n\n" };
                is_there = peer.try_send(chunk(octets)).is_ok();
                std::thread::sleep(EVENT_PAUSE);
            }
            peer.close();
        });
        Self { backend: backend.healthy_as(name), speaking, is_over }
    }

    fn let_speak(&self, streams: usize) {
        self.speaking.store(streams, Relaxed);
    }
}

impl Drop for Speaking {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
    }
}

/// Three backends with streams that all speak.
struct Ward {
    balancer: Balancer,
    backends: [Speaking; 3],
    /// By backend.
    streams: Vec<Client>,
}

fn setup(backends: &[Speaking; 3]) -> Setup {
    let [a, b, c] = backends;
    Balancer::before(&[&a.backend, &b.backend, &c.backend])
        .with("algorithm", "round_robin")
        .with("outlier_silent_streams", "80%")
        .with("outlier_silence_min", "400ms")
        .with("outlier_ejection_time", "5m")
}

fn open_streams(connect: impl Fn() -> Client) -> Vec<Client> {
    let names = NAMES.iter().flat_map(|name| [name; STREAMS]);
    let open = |name| {
        let mut client = connect();
        client.send(format!(
            "GET /e HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
             Stepflow-Instance-Id: {name}\r\n\r\n"
        ));
        assert_eq!(client.head().status(), 200);
        // On a busy machine several are read at once.
        assert!(client.chunk().starts_with(b"data: 1\n\n"));
        client
    };
    names.map(open).collect()
}

fn ward(configure: impl FnOnce(Setup) -> Setup) -> Ward {
    let backends = NAMES.map(Speaking::start);
    let balancer = configure(setup(&backends)).start();
    wait_until("every worker knows every instance", || {
        let metrics = balancer.metrics();
        let is_known = |name: &&str| {
            let label = format!(r#"instance_id="{name}""#);
            metrics.sum("stepflow_lb_backend_health", &[&label]) == 1
        };
        NAMES.iter().all(is_known) && metrics.workers_are_up_to_date()
    });
    let streams = open_streams(|| balancer.connect());
    Ward { balancer, backends, streams }
}

fn ejected(metrics: &Metrics) -> u64 {
    metrics.sum("stepflow_lb_backends", &[r#"state="ejected""#])
}

fn judged(metrics: &Metrics) -> u64 {
    metrics.sum("stepflow_lb_streams_judged", &[])
}

fn silent(metrics: &Metrics) -> u64 {
    metrics.sum("stepflow_lb_streams_silent", &[])
}

fn wait_for_judgement(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + JUDGEMENT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(EVENT_PAUSE);
    }
}

fn wait_until_judged(metrics: impl Fn() -> Metrics) {
    wait_for_judgement("all streams are judged, and speak", || {
        let metrics = metrics();
        judged(&metrics) == (NAMES.len() * STREAMS) as u64 && silent(&metrics) == 0
    });
}

impl Ward {
    /// Whoever takes requests that name nobody.
    fn takers(&self) -> String {
        let mut takers: Vec<_> = (0..30).map(|_| self.balancer.get("/").text()).collect();
        takers.sort();
        takers.dedup();
        takers.concat()
    }

    /// Reads what has come on the streams of a backend until all of them have said `event`.
    fn expect(&mut self, backend: usize, event: &[u8]) {
        for client in &mut self.streams[backend * STREAMS..][..STREAMS] {
            while client.chunk() != event {}
        }
    }
}

#[test]
fn a_backend_whose_streams_fall_silent_gets_no_new_work_until_they_speak_again() {
    let mut ward = ward(|setup| setup);
    wait_until_judged(|| ward.balancer.metrics());
    assert_eq!(ward.takers(), "abc");
    ward.backends[1].let_speak(0);
    wait_for_judgement("it is out", || {
        let metrics = ward.balancer.metrics();
        ejected(&metrics) == 1 && metrics.workers_are_up_to_date()
    });
    assert_eq!(ward.takers(), "ac");
    let metrics = ward.balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_ejections_total", &[r#"reason="streams_stalled""#]), 1);
    // Its streams stay, and so does its instance for those who name it.
    assert_eq!(metrics.sum("stepflow_lb_event_streams_open", &[]), 24);
    let named = "GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: b\r\n\r\n";
    assert_eq!(ward.balancer.ask(named).text(), "b");
    ward.expect(1, b": \n\n");
    ward.expect(0, b"data: 1\n\n");
    // Its time is five minutes; its streams are faster.
    ward.backends[1].let_speak(usize::MAX);
    wait_until("it is back", || {
        let metrics = ward.balancer.metrics();
        ejected(&metrics) == 0 && metrics.workers_are_up_to_date()
    });
    ward.expect(1, b"data: 1\n\n");
    assert_eq!(ward.takers(), "abc");
    assert_eq!(ward.balancer.metrics().sum("stepflow_lb_event_streams_open", &[]), 24);
}

#[test]
fn neither_a_silent_stream_among_others_nor_silence_everywhere_ejects_anybody() {
    let ward = ward(|setup| setup);
    wait_until_judged(|| ward.balancer.metrics());
    // One on each backend, then all of them everywhere.
    for left in [STREAMS - 1, 0] {
        ward.backends.iter().for_each(|backend| backend.let_speak(left));
        let want = (NAMES.len() * (STREAMS - left)) as u64;
        wait_for_judgement("they are silent", || silent(&ward.balancer.metrics()) == want);
        let begun = Instant::now();
        wait_until("longer than it takes to be believed", || {
            assert_eq!(ejected(&ward.balancer.metrics()), 0, "{left} left");
            begun.elapsed() > Duration::from_millis(3500)
        });
    }
    assert_eq!(ward.takers(), "abc");
    assert_eq!(ward.balancer.metrics().sum("stepflow_lb_ejections_withheld_total", &[]), 0);
}

#[test]
fn nobody_listens_unless_told() {
    for off in [("outlier_silent_streams", "off"), ("outlier_detection", "off")] {
        let mut ward = ward(|setup| setup.with(off.0, off.1));
        for backend in 0..3 {
            (0..60).for_each(|_| ward.expect(backend, b"data: 1\n\n"));
        }
        ward.backends[1].let_speak(0);
        (0..60).for_each(|_| ward.expect(1, b": \n\n"));
        let metrics = ward.balancer.metrics();
        assert_eq!((judged(&metrics), silent(&metrics), ejected(&metrics)), (0, 0, 0));
        assert_eq!(ward.takers(), "abc");
    }
}

#[test]
fn the_program_says_why_a_silent_backend_is_out_and_that_it_is_back() {
    let backends = NAMES.map(Speaking::start);
    let [a, b, c] = &backends;
    let mut command = before(command(), &[&a.backend, &b.backend, &c.backend]);
    command
        .env("STEPFLOW_LB_OUTLIER_SILENT_STREAMS", "80%")
        .env("STEPFLOW_LB_OUTLIER_SILENCE_MIN", "400ms");
    let mut process = crate::support::Process::start(command);
    wait_until("every worker knows every instance", || {
        process.metrics().sum("stepflow_lb_backend_pool_size", &[]) == 3
            && process.metrics().workers_are_up_to_date()
    });
    let _streams = open_streams(|| process.connect());
    wait_until_judged(|| process.metrics());
    b.let_speak(0);
    wait_for_judgement("it is out", || ejected(&process.metrics()) == 1);
    let line = process.wait_for_line("backend_ejected");
    assert!(line.contains("streams_stalled") && line.contains("WARN"), "{line}");
    b.let_speak(usize::MAX);
    process.wait_for_line("backend_readmitted");
}
