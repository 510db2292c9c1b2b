//! A deploy: every backend is drained and restarted in turn, then the balancer is replaced, while
//! clients like a browser's `EventSource` read on.
//!
//! The backends share one log of events for each stream, addressed by ids: whoever is asked with
//! `Last-Event-ID` goes on behind it, with what was due meanwhile at once. The new balancer takes
//! over as in Kubernetes: it is started beside the old one, whoever connects is led to it, and only
//! then is the old one told to end.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use crate::{
    lab::{Lab, allow_streams, number, on_one_thread, seed, start_balancer, until},
    streaming::{
        client::{Method, Position, Progress, Trouble, Visit},
        event::{Framing, Order},
        now_ns,
        source::Source,
    },
    support::{Client, Metrics, PATIENCE},
};

const CLIENTS: u64 = 100;
const BACKENDS: usize = 3;

/// Streams that the balancer may end per second.
const DRAIN_RATE: u64 = 40;
/// What the clients of such streams are told to wait.
const RETRY_MS: std::ops::RangeInclusive<u64> = 100..=1000;

/// From one event of a stream to the next.
const PERIOD_MS: u64 = 200;

/// Longest that a client may wait beyond what it was told: the machine may have much else to do.
const SLACK_MS: u64 = 10_000;

/// What clients share.
struct World {
    /// Where whoever connects is led.
    balancer: Cell<SocketAddr>,
    seed: u64,
    since_ns: u64,
    /// The event with which clients are content, once the deploy is over.
    goal: Cell<Option<u64>>,
    ends: RefCell<Vec<End>>,
    /// Connections that were refused, broken or cut: none in a deploy like this.
    troubles: RefCell<Vec<String>>,
}

/// A stream that was ended before its time.
#[derive(Clone, Copy, Debug)]
struct End {
    at: Instant,
    told_ms: u64,
    /// From there until the client had the next head.
    waited: Option<Duration>,
}

impl World {
    /// One client, until it has every event up to the goal.
    async fn follow(&self, stream: u64) {
        let order = Order {
            stream,
            seed: self.seed,
            period: Duration::from_millis(PERIOD_MS),
            events: u64::MAX,
            size: 100,
            framing: if stream.is_multiple_of(3) { Framing::Close } else { Framing::Chunked },
            since_ns: self.since_ns,
        };
        let mut position = Position::start(order);
        let mut ended = None;
        while !self.is_content(&position) {
            match self.visit(&mut position, &mut ended).await {
                Ok(()) => {}
                // As a browser does.
                Err(trouble) => {
                    let next = position.next;
                    let line = format!("stream {stream}, at event {next}: {trouble}");
                    self.troubles.borrow_mut().push(line);
                }
            }
            if !self.is_content(&position) {
                let told_ms = position.retry_ms.unwrap_or(*RETRY_MS.end());
                ended = Some(self.ends.borrow().len());
                let at = Instant::now();
                self.ends.borrow_mut().push(End { at, told_ms, waited: None });
                sleep(Duration::from_millis(told_ms)).await;
            }
        }
    }

    /// Reads on one connection until the stream ends or the client is content.
    async fn visit(
        &self,
        position: &mut Position,
        ended: &mut Option<usize>,
    ) -> Result<(), Trouble> {
        let mut visit = Visit::begin(self.balancer.get(), Method::Get, position).await?;
        let mut buffer = [0; 4096];
        loop {
            let progress = visit.read(position, &mut buffer, |_| {}).await?;
            if let Some(ended) = ended.take() {
                let end = &mut self.ends.borrow_mut()[ended];
                end.waited = Some(end.at.elapsed());
            }
            if progress == Progress::Ended || self.is_content(position) {
                return Ok(());
            }
        }
    }

    fn is_content(&self, position: &Position) -> bool {
        self.goal.get().is_some_and(|goal| position.next > goal)
    }
}

/// What a part of the deploy ended, and that it kept to the pace and to what clients are promised.
struct Stage<'a> {
    world: &'a World,
    name: &'a str,
    began: Instant,
    before: usize,
}

impl<'a> Stage<'a> {
    fn begin(world: &'a World, name: &'a str) -> Self {
        Self { world, name, began: Instant::now(), before: world.ends.borrow().len() }
    }

    /// Waits until everybody is back, and judges.
    async fn judge(self, ended: usize) {
        let Self { world, name, began, before } = self;
        let back = |ends: &[End]| ends.len() >= ended && ends.iter().all(|e| e.waited.is_some());
        until("everybody is back", 6 * PATIENCE, || {
            let troubles = world.troubles.borrow();
            assert!(troubles.is_empty(), "{name}: {} troubles, {}", troubles.len(), troubles[0]);
            back(&world.ends.borrow()[before..])
        })
        .await;
        let mut ends = world.ends.borrow()[before..].to_vec();
        assert_eq!(ends.len(), ended, "{name}: so many were open");
        ends.sort_by_key(|end| end.at);
        let slack = Duration::from_millis(number("STREAMS_LOAD_SLACK_MS", SLACK_MS));
        let mut late = Duration::ZERO;
        for (n, end) in ends.iter().enumerate() {
            // What is seen late is not seen early: this holds however busy the machine is.
            let after = (n as f64 - DRAIN_RATE as f64 / 10.0) / DRAIN_RATE as f64;
            let at = end.at.duration_since(began).as_secs_f64();
            assert!(at + 0.002 >= after, "{name}: end {n} came after {at} s, not {after} s");
            assert!(RETRY_MS.contains(&end.told_ms), "{name}: told to wait {} ms", end.told_ms);
            let waited = end.waited.unwrap_or_default();
            late = late.max(waited.saturating_sub(Duration::from_millis(end.told_ms)));
        }
        assert!(late <= slack, "{name}: waited {late:?} more than told");
        let last = ends.last().map_or(Duration::ZERO, |end| end.at - began);
        println!(
            "{name}: {ended} streams ended within {last:.1?}, nobody waited more than {late:.1?} \
             longer than told"
        );
        // Told the same, all would come back at once.
        let first_half = ends.iter().filter(|end| end.told_ms < (*RETRY_MS.end() / 2)).count();
        assert!((1..ended).contains(&first_half), "{name}: {first_half} of {ended} in one half");
    }
}

/// Asks until it is so, without keeping this thread from anything else.
async fn ask_until<T: Send + 'static>(
    what: &str,
    ask: impl Fn() -> Option<T> + Clone + Send + 'static,
) -> T {
    let asking = async {
        loop {
            if let Some(answer) = spawn_blocking(ask.clone()).await.expect("asking does not panic")
            {
                return answer;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let answer = timeout(6 * PATIENCE, asking).await;
    answer.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

/// An admin call on a backend; whether all is as it wants it.
fn is_done(admin: SocketAddr, backend: SocketAddr, call: &str) -> Option<()> {
    let request = format!("POST /backends/{backend}/{call} HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = Client::connect(admin).ask(request);
    assert!(matches!(answer.status(), 200 | 202), "{call}: {answer:?}");
    (answer.status() == 200).then_some(())
}

async fn wait_for_healthy(metrics: SocketAddr, healthy: usize) {
    ask_until("all backends are healthy", move || {
        let metrics = Metrics::read(metrics);
        let is_so = metrics.sum("stepflow_lb_backend_pool_size", &[]) == healthy as u64
            && metrics.workers_are_up_to_date();
        is_so.then_some(())
    })
    .await;
}

/// Drains a backend, restarts it as another process at its address, and takes it in again.
async fn restart(lab: &mut Lab, world: &World, n: usize, admin: SocketAddr) {
    let Source { address, .. } = lab.sources[n];
    let open = usize::try_from(lab.sources[n].ledger.open()).unwrap();
    let stage = Stage::begin(world, "a backend");
    ask_until("nothing runs on it", move || is_done(admin, address, "drain?wait=5")).await;
    // It is answered when it is so for the balancer; the last of them may still be under way.
    until("the backend sees it too", PATIENCE, || lab.sources[n].ledger.open() == 0).await;
    lab.sources.remove(n);
    // For a moment a connection of somebody else's may have the port at its own end.
    let mut successor = None;
    until("its port is free again", PATIENCE, || {
        successor = Source::start(address, &format!("source-{n}-restarted")).ok();
        successor.is_some()
    })
    .await;
    lab.sources.insert(n, successor.expect("it was waited for"));
    ask_until("it is taken back", move || is_done(admin, address, "undrain")).await;
    wait_for_healthy(lab.balancer.metrics_address, BACKENDS).await;
    stage.judge(open).await;
}

#[test]
fn a_deploy_of_everything_loses_no_event_and_sends_nobody_away_too_fast() {
    let seed = seed();
    let clients = number("STREAMS_LOAD_CLIENTS", CLIENTS);
    allow_streams(2 * clients);
    let (rate, min, max) = (DRAIN_RATE, RETRY_MS.start(), RETRY_MS.end());
    let (rate, min, max) = (rate.to_string(), format!("{min}ms"), format!("{max}ms"));
    let options = [
        ("STEPFLOW_LB_STREAM_DRAIN_RATE", &*rate),
        ("STEPFLOW_LB_STREAM_RETRY_MIN", &*min),
        ("STEPFLOW_LB_STREAM_RETRY_MAX", &*max),
        ("STEPFLOW_LB_DRAIN_TIMEOUT", "10m"),
    ];
    let mut lab = Lab::start(BACKENDS, &options);
    let world = Rc::new(World {
        balancer: Cell::new(lab.balancer.address),
        seed,
        since_ns: now_ns(),
        goal: Cell::new(None),
        ends: RefCell::default(),
        troubles: RefCell::default(),
    });
    on_one_thread(async {
        let mut following = JoinSet::new();
        for stream in 0..clients {
            let world = Rc::clone(&world);
            following.spawn_local(async move { world.follow(stream).await });
        }
        until("everybody has a stream", 6 * PATIENCE, || lab.open() == clients).await;
        let line = lab.balancer.wait_for_line("Admin calls available on http://");
        let admin = line.split("http://").nth(1).and_then(|rest| rest.split('/').next());
        let admin = admin.and_then(|address| address.parse().ok()).expect("an address");
        for n in 0..BACKENDS {
            restart(&mut lab, &world, n, admin).await;
        }

        let backends: Vec<_> = lab.sources.iter().map(|source| source.address).collect();
        let options = options.map(|(key, value)| (key, value.to_owned()));
        let successor = spawn_blocking(move || {
            let options = options.each_ref().map(|(key, value)| (*key, &**value));
            start_balancer(&backends, &options)
        });
        let successor = successor.await.expect("it starts");
        let stage = Stage::begin(&world, "the balancer");
        let mut predecessor = std::mem::replace(&mut lab.balancer, successor);
        world.balancer.set(lab.balancer.address);
        predecessor.signal("TERM");
        stage.judge(usize::try_from(clients).unwrap()).await;
        let status = spawn_blocking(move || predecessor.wait()).await;
        assert!(status.expect("it ends by itself").success());

        // Everything that was due until now must come.
        let due = now_ns().saturating_sub(world.since_ns) / (PERIOD_MS * 1_000_000);
        world.goal.set(Some(due));
        let following = async {
            while let Some(followed) = following.join_next().await {
                followed.expect("a client does not panic");
            }
        };
        let all = timeout(6 * PATIENCE, following).await;
        assert!(all.is_ok(), "not everybody has got every event up to {due}");
        println!("{clients} clients have got each of {} events once", (due + 1) * clients);
    });
    let troubles = world.troubles.take();
    assert!(troubles.is_empty(), "{troubles:#?}");
    lab.finish();
}
