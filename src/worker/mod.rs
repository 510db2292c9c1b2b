//! The data plane: one thread, its rings, one copy of the backend table.
//!
//! Owns its listener, its connections, its pool of idle upstream connections and its counters.
//! Shares nothing that is written: what it knows arrives as snapshots through [`crate::link`], what
//! it counts is read by others but written by nobody else.
//!
//! Invariants
//! - No lock, no `Arc` clone, no allocation, no log line and no formatting on the path of a
//!   successful exchange in the steady state.
//! - A snapshot is applied between requests, never inside the synchronous part of one.
//! - A panic costs one connection.

mod accept;
mod alarm;
mod buffer;
mod client;
mod crowd;
mod door;
mod drain;
mod driver;
mod explain;
mod handover;
mod handshake;
mod hearing;
mod http;
mod measured;
mod meter;
mod outcome;
mod owner;
mod pool;
mod pulse;
mod queue;
mod reach;
mod relay;
mod sessions;
mod streams;
mod table;
mod tenure;
mod tunnel;
mod upstream;
mod waiting;

use std::{
    cell::{Cell, RefCell},
    future::Future,
    hash::RandomState,
    io,
    net::{SocketAddr, TcpListener},
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};

pub use drain::SharedPace;
pub use driver::{ActiveDriver, Fallback};
pub use handover::{Handovers, Inbox};
#[doc(hidden)]
pub use measured::{MeasuredMeter, MeasuredTable};
use monoio::io::AsyncReadRent;
use pin_project_lite::pin_project;
pub use queue::Queues;
pub use sessions::SharedSessions;
use tracing::{debug, error};

use crate::{
    balance::Picker,
    config::{Algorithm, Config, Resilience},
    exchange::{Failure, HandshakeReader, RetryBudget, Tick},
    http1::{BodyLimits, DateLine},
    link::{Report, Subscriber},
    model::{BackendId, InstanceId, Phase},
    stats::WorkerStats,
    sys::{Polls, Turns, cpu},
    telemetry::AccessLogger,
};
use alarm::Alarms;
use buffer::Buffers;
use crowd::Crowd;
use door::{Door, Guest};
use drain::Drain;
use handover::Handover;
use hearing::Hearing;
use pool::Pool;
use queue::Queue;
use relay::Lanes;
use sessions::Sessions;
use streams::Streams;
use table::{BackendTable, Pacing};
use upstream::{Bounds, Upstream};
use waiting::Waiting;

/// What a worker needs to start.
pub struct WorkerParts {
    /// Number of the worker, from 0.
    pub index: usize,
    /// Everything the process was told.
    pub config: Arc<Config>,
    /// Where it accepts.
    pub listener: TcpListener,
    /// CPU to stay on.
    pub core: Option<cpu::CoreId>,
    /// Its end of the link.
    pub subscriber: Subscriber,
    /// Readable when a snapshot waits.
    pub bell: std::os::unix::net::UnixStream,
    /// The counters of every worker; it writes its own.
    pub stats: Arc<[WorkerStats]>,
    /// Where it logs exchanges.
    pub logger: AccessLogger,
    /// Seed of its random choices.
    pub seed: u64,
    /// Client connections that all workers together may have.
    pub connections_max: u64,
    /// Makes numbers of client addresses; the same in every worker.
    pub client_hasher: RandomState,
    /// The queues of all workers, and what rings when this one should look at its own. Only where
    /// backends can be full ([`can_be_full`]).
    pub queues: Option<(Arc<Queues>, std::os::unix::net::UnixStream)>,
    /// The ways to all workers, and this one's end. Only where there are others, and connections
    /// are handed over.
    pub handovers: Option<(Arc<Handovers>, Inbox)>,
    /// Sessions, if there are any.
    pub sessions: Option<SharedSessions>,
    /// How many streams all workers together may end while something drains.
    pub drain_pace: SharedPace,
}

/// Whether requests may have to wait for a backend that has room.
pub fn can_be_full(config: &Config) -> bool {
    let resilience = &config.resilience;
    resilience.requests_per_backend_max.is_some()
        || resilience.connections_per_backend_max.is_some()
}

/// Runs a worker until its end of the link is closed. `started` is called on the way, once the
/// kernel has granted a driver.
///
/// # Errors
/// When no driver can be had, or no descriptors, or no random octets for sessions.
pub fn run(
    parts: WorkerParts,
    started: impl FnOnce(ActiveDriver, Vec<Fallback>),
) -> io::Result<()> {
    if let Some(core) = parts.core
        && !cpu::pin_to(core)
    {
        debug!(worker = parts.index, "the kernel did not pin this worker to its CPU");
    }
    let turns = Turns::new()?;
    let sessions = parts.sessions.clone().map(|shared| Sessions::new(shared, parts.index));
    let sessions = sessions.transpose()?;
    driver::run_on(parts.config.io_driver, |active, fallbacks| {
        started(active, fallbacks);
        live(parts, active, turns, sessions)
    })
}

/// One worker's state. Everything that runs on its thread holds it by `Rc`.
struct Worker {
    index: usize,
    config: Arc<Config>,
    driver: ActiveDriver,
    all_stats: Arc<[WorkerStats]>,
    table: RefCell<BackendTable>,
    pool: RefCell<Pool<Upstream>>,
    /// What a backend may be given at once; `None` where nothing is bounded.
    bounds: Option<Bounds>,
    /// What may be tried again; `None` where only each request is bounded.
    budget: RefCell<Option<RetryBudget>>,
    waiting: Waiting,
    door: Door,
    /// Hands connections to workers that have fewer.
    handover: Option<Handover>,
    /// Recognises orchestrators that introduce themselves, unless that is switched off.
    handshakes: Option<HandshakeReader>,
    /// On which connection, by the place of its alarm, an `initialize` was answered last, and who
    /// did. Here, because nearly no connection has a use for it.
    introduced: Cell<Option<(u32, BackendId)>>,
    /// Clients in the middle of a request head.
    crowd: RefCell<Crowd>,
    sessions: Option<Sessions>,
    /// What runs here and may have to be told something.
    streams: Streams,
    drain: Drain,
    /// Listens to event streams, where their silence may eject a backend.
    hearing: Option<Hearing>,
    alarms: Rc<Alarms>,
    /// The time of day as responses say it, as of the last tick.
    date: RefCell<DateLine>,
    buffers: Buffers,
    /// For large bodies at speed.
    lanes: Lanes,
    turns: Rc<Turns>,
    subscriber: Subscriber,
    logger: AccessLogger,
    /// Host for requests that name none.
    local_authority: String,
    phase: Cell<Phase>,
    /// Wakes whoever accepts, to look at the phase.
    accepting: RefCell<Option<Waker>>,
}

impl Worker {
    fn stats(&self) -> &WorkerStats {
        &self.all_stats[self.index]
    }

    /// What a request body may hold.
    fn body_limits(&self) -> BodyLimits {
        let limits = &self.config.limits;
        BodyLimits {
            content_bytes_max: limits.request_body_bytes_max.unwrap_or(u64::MAX),
            chunk_extension_bytes_max: limits.chunk_extension_bytes_max,
            trailer_bytes_max: limits.trailer_bytes_max,
        }
    }

    fn phase(&self) -> Phase {
        self.phase.get()
    }

    fn report(&self, report: Report) {
        if self.subscriber.reporter().report(report).is_err() {
            self.stats().reports_dropped.add(1);
        }
    }

    /// Whether the budget allows one more retry; if so, it is counted.
    fn may_try_again(&self) -> bool {
        let now = self.alarms.now();
        let mut budget = self.budget.borrow_mut();
        let may = budget.as_mut().is_none_or(|budget| budget.take_retry(now));
        let counter =
            if may { &self.stats().retries } else { &self.stats().retry_budget_exhausted };
        counter.add(1);
        may
    }

    /// The id as the table has it, without an allocation; else a copy of its own.
    fn instance_id(&self, id: &str) -> Option<InstanceId> {
        let table = self.table.borrow();
        let known = table.instance(id).and_then(|slot| table.backend(slot).instance.clone());
        known.or_else(|| InstanceId::parse(id.as_bytes()).ok())
    }

    /// Takes over the newest snapshot, if there is one.
    fn refresh(&self) {
        let Some(snapshot) = self.subscriber.newest() else { return };
        let left = self.table.borrow_mut().apply(&snapshot, self.alarms.now());
        let mut pool = self.pool.borrow_mut();
        for slot in left {
            pool.clear(slot);
        }
        self.stats().upstream_idle.set(pool.len() as u64);
        self.stats().snapshot_version.set(snapshot.version.0);
        drop(pool);
        // A backend may have come, or come back.
        if let Some(bounds) = &self.bounds {
            bounds.queue.look();
        }
        self.enter(snapshot.phase);
    }

    fn enter(&self, phase: Phase) {
        if phase == self.phase.replace(phase) {
            return;
        }
        if phase == Phase::Draining
            && let Some(waker) = self.accepting.take()
        {
            waker.wake();
        }
        // Idle connections look at the phase when they wake.
        self.alarms.wake_all();
    }
}

async fn live(
    parts: WorkerParts,
    driver: ActiveDriver,
    (turns, turns_bell): (Rc<Turns>, std::os::unix::net::UnixStream),
    sessions: Option<Sessions>,
) {
    let WorkerParts { index, config, listener, subscriber, bell, stats, logger, seed, .. } = parts;
    let (bounds, queue_bell) = match parts.queues {
        Some((queues, bell)) => (Some(bounds(index, &config.resilience, queues)), Some(bell)),
        None => (None, None),
    };
    let (handover, inbox) = match parts.handovers.zip(config.worker_imbalance_max) {
        Some(((ways, inbox), max)) => (Some(Handover::new(ways, max.get())), Some(inbox)),
        None => (None, None),
    };
    let workers = stats.len();
    let budget = config
        .resilience
        .retry_budget_percent
        .map(|share| RetryBudget::new(share, config.resilience.retries_per_second_min, workers));
    let per_client_max = config.limits.connections_per_client_max.map(NonZeroU32::get);
    let heads_max = config.limits.heads_in_reading_max.get() as usize / stats.len();
    let door = Door::new(parts.connections_max, per_client_max, parts.client_hasher);
    let picker = match config.algorithm {
        Algorithm::LeastConnections => Picker::least_connections(),
        Algorithm::LeastResponseTime => Picker::least_response_time(),
        Algorithm::RoundRobin => Picker::round_robin(),
        Algorithm::Random => Picker::random(),
        Algorithm::PowerOfTwo => Picker::power_of_two(),
        Algorithm::IpHash | Algorithm::ConsistentHash => {
            Picker::consistent_hash(config.balancing.hash_balance_percent)
        }
    };
    let balancing = &config.balancing;
    let pacing = Pacing::new(balancing.slow_start, balancing.response_time_half_life);
    let mut table = BackendTable::new(index, picker, pacing, seed);
    if config.explain {
        table.explain();
    }
    let worker = Rc::new(Worker {
        index,
        driver,
        all_stats: stats,
        table: RefCell::new(table),
        pool: RefCell::new(Pool::new(config.limits.idle_connections_per_backend_max)),
        bounds,
        budget: RefCell::new(budget),
        waiting: Waiting::default(),
        door,
        handover,
        handshakes: config.initialize_replay.then(HandshakeReader::default),
        introduced: Cell::default(),
        crowd: RefCell::new(Crowd::new(heads_max)),
        sessions,
        streams: Streams::default(),
        drain: Drain::new(&config, parts.drain_pace, seed),
        hearing: Hearing::new(&config.outliers),
        alarms: Alarms::new(Instant::now()),
        date: RefCell::new(DateLine::at(since_epoch())),
        buffers: Buffers::default(),
        lanes: Lanes::default(),
        turns,
        subscriber,
        logger,
        local_authority: listener
            .local_addr()
            .map_or_else(|_| config.bind_address.to_string(), |address| address.to_string()),
        config,
        phase: Cell::new(Phase::Serving),
        accepting: RefCell::new(None),
    });
    monoio::spawn(tick(Rc::clone(&worker)));
    monoio::spawn(give_turns(Rc::clone(&worker), turns_bell));
    if let ActiveDriver::IoUring(_) = worker.driver {
        stand(&worker);
    }
    if let Some(bell) = queue_bell {
        monoio::spawn(heed_queue(Rc::clone(&worker), bell));
    }
    if let Some(inbox) = inbox {
        monoio::spawn(handover::heed(Rc::clone(&worker), inbox));
    }
    monoio::spawn(accept::run(Rc::clone(&worker), listener));
    heed(&worker, bell).await;
}

fn bounds(index: usize, resilience: &Resilience, queues: Arc<Queues>) -> Bounds {
    let most = |max: Option<NonZeroU32>| max.map_or(u64::MAX, |max| max.get().into());
    let queue = Queue::new(index, resilience.queue_max, queues);
    Bounds::new(
        most(resilience.requests_per_backend_max),
        most(resilience.connections_per_backend_max),
        queue,
    )
}

/// Looks at the queue as other workers ask for it. Should the bell ever fail, ticks do the same.
async fn heed_queue(worker: Rc<Worker>, bell: std::os::unix::net::UnixStream) {
    if let Err(error) = each_ring(&worker, bell, || upstream::heed_queue(&worker)).await {
        error!(worker = worker.index, %error, "cannot hear the other workers");
    }
}

/// Applies snapshots as the doorbell rings; ends when the control thread has gone.
async fn heed(worker: &Worker, bell: std::os::unix::net::UnixStream) {
    worker.refresh();
    if let Err(error) = each_ring(worker, bell, || worker.refresh()).await {
        error!(worker = worker.index, %error, "cannot hear the control thread");
    }
}

/// Lets connections go on that have spent their turn, once the driver has been entered.
async fn give_turns(worker: Rc<Worker>, bell: std::os::unix::net::UnixStream) {
    let ended = each_ring(&worker, bell, || worker.turns.wake_waiting()).await;
    // Connections would wait for ever. A restart is better (see `server`).
    panic!("worker {} cannot hear its own bell: {ended:?}", worker.index);
}

/// Lets connections wait with standing polls, unless the kernel grants no ring for them.
fn stand(worker: &Rc<Worker>) {
    match Polls::new().and_then(|polls| Ok((polls.bell()?, polls))) {
        Ok((bell, polls)) => {
            worker.turns.stand(polls);
            monoio::spawn(heed_polls(Rc::clone(worker), bell));
        }
        Err(error) => debug!(worker = worker.index, %error, "each wait takes a poll of its own"),
    }
}

/// Wakes the connections of which the kernel has something to tell.
async fn heed_polls(worker: Rc<Worker>, bell: monoio::net::UnixStream) {
    let Some(polls) = worker.turns.polls() else { return };
    loop {
        if let Err(error) = bell.readable(false).await {
            // As above.
            panic!("worker {} cannot wait for its polls: {error}", worker.index);
        }
        polls.take_up();
    }
}

/// Runs `answer` whenever the bell has rung, until nobody can ring it any more.
async fn each_ring(
    worker: &Worker,
    bell: std::os::unix::net::UnixStream,
    answer: impl Fn(),
) -> io::Result<()> {
    bell.set_nonblocking(worker.driver == ActiveDriver::Epoll)?;
    let mut bell = monoio::net::UnixStream::from_std(bell)?;
    let mut buffer = vec![0; 64];
    loop {
        let (result, returned) = bell.read(buffer).await;
        buffer = returned;
        match result {
            Ok(0) => return Ok(()),
            Ok(_) => answer(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The time of day, since 1970. A clock before that is wrong either way.
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Moves the coarse clocks on, wakes what is due, and lets idle upstream connections go.
async fn tick(worker: Rc<Worker>) {
    loop {
        monoio::time::sleep(Tick::LENGTH).await;
        let now = Instant::now();
        // What the kernel did not take is given to it again.
        let _ = worker.turns.polls().map(Polls::take_up);
        worker.alarms.walk(now);
        worker.date.borrow_mut().move_to(since_epoch());
        drain::tick(&worker, now);
        worker.door.expire(worker.alarms.now());
        worker.buffers.tick(worker.alarms.now());
        if let Some(hearing) = &worker.hearing {
            hearing.tick(&worker.table.borrow(), worker.alarms.clock());
        }
        if let Some(sessions) = &worker.sessions {
            sessions.sweep(&worker, Tick::LENGTH);
        }
        let mut pool = worker.pool.borrow_mut();
        if pool.len() > 0 {
            pool.expire(worker.alarms.now());
            worker.stats().upstream_idle.set(pool.len() as u64);
        }
        drop(pool);
        upstream::tick(&worker);
    }
}

pin_project! {
    /// The task of one connection. A panic in it ends that connection and nothing else; monoio
    /// itself would let it end the thread. Written by hand because an `async fn` that pins its
    /// argument holds it twice, and every connection would pay for it.
    struct Isolated<F> {
        #[pin]
        connection: F,
        // Behind the connection, so that it is counted until its sockets are closed.
        guest: Guest,
    }
}

fn isolate<F: Future<Output = ()>>(guest: Guest, connection: F) -> Isolated<F> {
    Isolated { connection, guest }
}

impl<F: Future<Output = ()>> Future for Isolated<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let connection = this.connection;
        this.guest.worker.turns.begin();
        match catch_unwind(AssertUnwindSafe(|| connection.poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let message = panic
                    .downcast_ref::<&str>()
                    .map(|message| (*message).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                this.guest.worker.stats().panics.add(1);
                this.guest.worker.stats().failures.at(Failure::Panicked.index()).add(1);
                error!(worker = this.guest.worker.index, message, "a connection ended in a panic");
                Poll::Ready(())
            }
        }
    }
}

/// An address as it is shown and compared: IPv4 clients of a `[::]` listener are IPv4 clients.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{AccessLog, Environment, Flags, IoDriver},
        link,
        telemetry::AccessWriter,
    };

    fn worker() -> Rc<Worker> {
        let environment = Environment::from_pairs([("UPSTREAM_SERVICE", "127.0.0.1:1")]);
        let config = Config::resolve(Flags::default(), environment, None).unwrap();
        let (subscriber, _bell) = link::connect(1).unwrap().workers.remove(0);
        let logger = AccessWriter::start(AccessLog::Off).unwrap().logger();
        let stats: Arc<[WorkerStats]> = [WorkerStats::default()].into();
        let pacing = Pacing::new(None, Tick::LENGTH);
        let pace = SharedPace::new(&config);
        Rc::new(Worker {
            index: 0,
            driver: ActiveDriver::Epoll,
            all_stats: stats,
            table: RefCell::new(BackendTable::new(0, Picker::least_connections(), pacing, 1)),
            pool: RefCell::new(Pool::new(1)),
            bounds: None,
            budget: RefCell::default(),
            waiting: Waiting::default(),
            door: Door::new(u64::MAX, None, RandomState::new()),
            handover: None,
            handshakes: None,
            introduced: Cell::default(),
            crowd: RefCell::new(Crowd::new(1)),
            sessions: None,
            streams: Streams::default(),
            drain: Drain::new(&config, pace, 1),
            hearing: None,
            alarms: Alarms::new(Instant::now()),
            date: RefCell::new(DateLine::at(since_epoch())),
            buffers: Buffers::default(),
            lanes: Lanes::default(),
            turns: Turns::new().unwrap().0,
            subscriber,
            logger,
            local_authority: String::new(),
            config: Arc::new(config),
            phase: Cell::new(Phase::Serving),
            accepting: RefCell::new(None),
        })
    }

    #[test]
    fn a_panic_costs_one_connection() {
        let worker = worker();
        let served = Rc::new(Cell::new(0));
        let counted = Rc::clone(&served);
        let shared = Rc::clone(&worker);
        driver::run_on(IoDriver::Epoll, |_, _| async move {
            let connections = (0..3).map(|number| {
                let served = Rc::clone(&counted);
                let connection = async move {
                    monoio::time::sleep(Duration::from_millis(1)).await;
                    assert_ne!(number, 1, "on purpose");
                    served.set(served.get() + 1);
                };
                let guest =
                    door::admit(&shared, SocketAddr::from(([127, 0, 0, 1], 1))).ok().unwrap();
                monoio::spawn(isolate(guest, connection))
            });
            let tasks: Vec<_> = connections.collect();
            assert_eq!(shared.stats().connections_open.get(), 3);
            for task in tasks {
                task.await;
            }
        })
        .unwrap();
        assert_eq!(served.get(), 2);
        assert_eq!(worker.stats().panics.get(), 1);
        assert_eq!(worker.stats().failures.at(Failure::Panicked.index()).get(), 1);
        assert_eq!(worker.stats().connections_open.get(), 0);
    }
}
