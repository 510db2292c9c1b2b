//! The control thread: a Tokio runtime of one thread that drives the [`Plane`].
//!
//! Owns the DNS client, the probes, the replays, the doorbell of the workers' reports, the signals
//! and the admin server. Decides nothing: facts go into the plane with the time, and what comes out
//! is done. It may be slow or fail; traffic continues on the last snapshot.
//!
//! Invariants
//! - Every question, every probe and every replay that the plane asks for is answered exactly once,
//!   even when the task that asks panics.
//! - The admin view shows a snapshot only after the workers were given it.

pub mod admin;
mod probe;
mod replay;
mod report;
pub mod resolve;

use std::{
    cell::RefCell,
    future::Future,
    hash::{BuildHasher, RandomState},
    io,
    os::unix::net::UnixStream,
    rc::Rc,
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::{Duration, Instant},
};

pub use probe::Prober;
pub use replay::Replayer;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::LocalSet,
    time::{Interval, MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info};

use crate::{
    config::{self, Config, EjectionEnds, HealthCheck, Outliers},
    exchange::shortfall,
    health::{Policy, ProbeFailure, outlier},
    link::Publisher,
    model::{Snapshot, Version},
    plane::{
        DrainTimes, Input, Output, PanicPolicy, PanicScope, Plane, PlaneCounters, PlaneEvent,
        Refresh, ReplayFailure, ReplayStep, Resolution, ResolveFailure, Settings,
    },
    stats::WorkerStats,
};
use admin::Port;
use resolve::Resolver;

pub use crate::plane::ExitReason;

/// How often open connections are counted while the process drains.
const DRAIN_READING_PERIOD: Duration = Duration::from_millis(50);

/// Reports taken in one go, so that a flood of them cannot hold up answers and timers.
const REPORTS_PER_TURN_MAX: usize = 256;

/// What the control thread needs.
pub struct ControlParts {
    /// Everything the process was told.
    pub config: Arc<Config>,
    /// Reaches every worker and hears their reports.
    pub publisher: Publisher,
    /// Readable when reports wait. Non-blocking.
    pub report_bell: UnixStream,
    /// What each worker counts.
    pub workers: Arc<[WorkerStats]>,
    /// The I/O driver that each worker runs on.
    pub drivers: Vec<String>,
    /// Where metrics are served.
    pub metrics_listener: std::net::TcpListener,
    /// Where the admin calls are served.
    pub admin_listener: Option<std::net::TcpListener>,
    /// Each message is one request to shut down.
    pub shutdown: UnboundedReceiver<()>,
    /// Whether signals are requests to shut down as well.
    pub signals: Signals,
}

/// What SIGTERM and SIGINT do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signals {
    /// Each is a request to shut down.
    Handle,
    /// Whatever they did before.
    Ignore,
}

/// What the admin server shows. Lives on the control thread.
pub struct AdminView {
    /// Everything the process was told.
    pub config: Arc<Config>,
    /// What each worker counts.
    pub workers: Arc<[WorkerStats]>,
    /// The I/O driver that each worker runs on.
    pub drivers: Vec<String>,
    /// The snapshot that was published last.
    pub snapshot: RefCell<Arc<Snapshot>>,
    /// The newest that every worker was seen to have when health was asked for.
    pub known: RefCell<Arc<Snapshot>>,
    /// What the plane has counted.
    pub counters: RefCell<PlaneCounters>,
    /// Tells the plane what an admin call wants. What follows shows in the snapshot.
    pub inputs: UnboundedSender<Input>,
    /// When the control thread started.
    pub started: Instant,
}

/// Why the control thread could not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The runtime could not be built.
    #[error("cannot start the control thread's runtime")]
    Runtime(#[source] io::Error),
    /// A descriptor could not be registered with the runtime.
    #[error("cannot watch {what}")]
    Watch {
        /// Which descriptor.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Runs until the process shall end.
///
/// # Errors
/// When it cannot start. Once it runs, it ends only by being told to.
pub fn run(parts: ControlParts) -> Result<ExitReason, ControlError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ControlError::Runtime)?;
    LocalSet::new().block_on(&runtime, drive(parts))
}

/// Everything that can wake the control thread, apart from its timers.
struct Wakers {
    inputs: UnboundedReceiver<Input>,
    bell: tokio::net::UnixStream,
    shutdown: UnboundedReceiver<()>,
    signals: Option<[Signal; 2]>,
    reading: Interval,
}

/// The hands of the plane.
struct Hands {
    publisher: Publisher,
    resolver: Rc<Resolver>,
    prober: Option<Rc<Prober>>,
    replayer: Replayer,
    inputs: UnboundedSender<Input>,
    view: Rc<AdminView>,
}

async fn drive(parts: ControlParts) -> Result<ExitReason, ControlError> {
    let (inputs, answers) = mpsc::unbounded_channel();
    let watch = |what| move |source| ControlError::Watch { what, source };
    let mut wakers = Wakers {
        inputs: answers,
        bell: tokio::net::UnixStream::from_std(parts.report_bell)
            .map_err(watch("the workers' reports"))?,
        shutdown: parts.shutdown,
        signals: match parts.signals {
            Signals::Ignore => None,
            Signals::Handle => Some([
                signal(SignalKind::terminate()).map_err(watch("SIGTERM"))?,
                signal(SignalKind::interrupt()).map_err(watch("SIGINT"))?,
            ]),
        },
        reading: interval(DRAIN_READING_PERIOD),
    };
    wakers.reading.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let listen = |listener: std::net::TcpListener, what| {
        let listening = listener.set_nonblocking(true);
        listening.and_then(|()| tokio::net::TcpListener::from_std(listener)).map_err(watch(what))
    };
    let metrics_listener = listen(parts.metrics_listener, "the metrics listener")?;
    let admin_listener = match parts.admin_listener {
        Some(listener) => Some(listen(listener, "the admin listener")?),
        None => None,
    };
    let hands = Hands {
        publisher: parts.publisher,
        resolver: Rc::new(Resolver::new(&parts.config.dns)),
        prober: Prober::new(&parts.config.health).map(Rc::new),
        replayer: Replayer { timeout: parts.config.health.timeout },
        inputs: inputs.clone(),
        view: Rc::new(AdminView {
            inputs,
            workers: parts.workers,
            drivers: parts.drivers,
            snapshot: RefCell::new(Arc::new(Snapshot::empty())),
            known: RefCell::new(Arc::new(Snapshot::empty())),
            counters: RefCell::default(),
            started: Instant::now(),
            config: parts.config,
        }),
    };
    let serve = |listener, port| {
        tokio::task::spawn_local(admin::serve(listener, Rc::clone(&hands.view), port));
    };
    serve(metrics_listener, Port::Metrics);
    if let Some(listener) = admin_listener {
        serve(listener, Port::Admin);
    }
    let settings = settings(&hands.view.config, hands.view.workers.len());
    for target in &settings.targets {
        info!(upstream_service = %target, "Starting backend discovery");
    }
    let mut plane = Plane::new(&settings, seed(), Instant::now());
    loop {
        while let Some(output) = plane.poll_output() {
            if let Some(reason) = hands.carry_out(output) {
                return Ok(reason);
            }
        }
        hands.view.counters.replace(*plane.counters());
        wakers.wait(&mut plane, &hands).await;
    }
}

impl Wakers {
    /// Waits for the next thing to happen and tells the plane.
    async fn wait(&mut self, plane: &mut Plane, hands: &Hands) {
        let timeout = plane.poll_timeout();
        let is_draining = plane.is_draining();
        tokio::select! {
            Some(input) = self.inputs.recv() => plane.handle(input, Instant::now()),
            () = sleep_to(timeout) => plane.handle_timeout(Instant::now()),
            () = ring(&mut self.bell) => {
                for _ in 0..REPORTS_PER_TURN_MAX {
                    let Some(report) = hands.publisher.next_report() else { break };
                    debug!(?report, "A worker reports");
                    plane.handle(Input::Reported(report), Instant::now());
                }
            }
            Some(()) = self.shutdown.recv() => plane.handle(Input::Shutdown, Instant::now()),
            () = any_signal(&mut self.signals) => plane.handle(Input::Shutdown, Instant::now()),
            _ = self.reading.tick(), if is_draining => {
                plane.handle(reading(&hands.view.workers), Instant::now());
            }
        }
    }
}

impl Hands {
    /// Does what the plane wants. Gives back the reason if that is to end.
    fn carry_out(&self, output: Output) -> Option<ExitReason> {
        match output {
            Output::Resolve { question, query } => {
                let resolver = Rc::clone(&self.resolver);
                let failed = Resolution::Failed(ResolveFailure::Internal);
                self.ask(
                    async move {
                        let resolution = resolver.resolve(&query).await;
                        Input::Resolved { question, resolution }
                    },
                    Input::Resolved { question, resolution: failed },
                );
            }
            Output::Probe { backend, address, port } => {
                let prober = self.prober.clone();
                self.ask(
                    async move {
                        let verdict = match prober {
                            Some(prober) => prober.probe(address, port).await,
                            None => Err(ProbeFailure::Local),
                        };
                        Input::Probed { backend, verdict }
                    },
                    Input::Probed { backend, verdict: Err(ProbeFailure::Local) },
                );
            }
            Output::Replay(replay) => {
                let (replayer, backend) = (self.replayer, replay.backend);
                let panicked =
                    Err(ReplayFailure::Unanswered(ReplayStep::Initialize, ProbeFailure::Local));
                self.ask(
                    async move {
                        let outcome = replayer.replay(&replay).await;
                        Input::Replayed { backend, outcome }
                    },
                    Input::Replayed { backend, outcome: panicked },
                );
            }
            Output::Publish(snapshot) => {
                self.publisher.publish(&snapshot);
                self.view.snapshot.replace(snapshot);
            }
            Output::Event(event) => {
                report::log(&event);
                if matches!(event, PlaneEvent::AcceptingStopped) {
                    self.foretell();
                }
            }
            Output::Exit(reason) => return Some(reason),
        }
        None
    }

    /// Streams begin to be ended: says if there are too many of them for the time that there is.
    fn foretell(&self) {
        let AdminView { workers, config, .. } = &*self.view;
        let streams = workers.iter().map(|worker| worker.event_streams_reconnectable.get()).sum();
        let (rate, time) = (config.streams.drain_rate, config.timeouts.drain);
        if let Some(shortfall) = shortfall(streams, rate, time) {
            report::shortfall(streams, rate, time, shortfall);
        }
    }

    /// Runs `question` beside everything else and hands its answer to the plane.
    fn ask(&self, question: impl Future<Output = Input> + 'static, panicked: Input) {
        let inputs = self.inputs.clone();
        tokio::task::spawn_local(async move {
            // Nobody listens any more only while the thread ends.
            let _ = inputs.send(outcome(question, panicked).await);
        });
    }
}

/// The answer of `question`, or `panicked` if it comes to none.
async fn outcome(question: impl Future<Output = Input> + 'static, panicked: Input) -> Input {
    tokio::task::spawn_local(question).await.unwrap_or(panicked)
}

fn settings(config: &Config, workers: usize) -> Settings {
    let health = &config.health;
    Settings {
        targets: config.upstream.clone(),
        refresh: Refresh { min: config.dns.refresh_min, max: config.dns.refresh_max },
        health: (health.check != HealthCheck::Off).then_some(Policy {
            interval: health.interval,
            interval_failing: health.interval_failing,
            max_failures: health.max_failures,
            healthy_threshold: health.healthy_threshold,
        }),
        outliers: outlier_policy(&config.outliers),
        panic: PanicPolicy {
            threshold_percent: config.panic.threshold_percent,
            scope: match config.panic.scope {
                config::PanicScope::Ejections => PanicScope::Ejections,
                config::PanicScope::Everything => PanicScope::Everything,
            },
        },
        drain: DrainTimes { grace: config.timeouts.drain_grace, drain: config.timeouts.drain },
        session_idle: config.sessions.seals().then_some(config.sessions.idle),
        workers,
    }
}

fn outlier_policy(outliers: &Outliers) -> Option<outlier::Policy> {
    outliers.is_on.then_some(outlier::Policy {
        failures_in_a_row: outliers.failures_in_a_row,
        connect_failures_in_a_row: outliers.connect_failures_in_a_row,
        failure_percent: outliers.failure_percent,
        window: outliers.window,
        requests_min: outliers.requests_min,
        silent_percent: outliers.silent_percent,
        ejection: outliers.ejection,
        ejection_max: outliers.ejection_max,
        ejected_percent_max: outliers.ejected_percent_max,
        ends: match outliers.ends {
            EjectionEnds::Time => outlier::Ends::ByTime,
            EjectionEnds::Probe => outlier::Ends::ByProbe,
        },
    })
}

/// Another one in every process: balancers that start together shall not ask together.
fn seed() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// The version is read first: connections that a worker accepts before it applies the draining
/// snapshot are then in the count. So are those on their way from one worker to another: what was
/// taken over is read before what was handed over and what is open, so that who arrives meanwhile
/// counts twice rather than never.
fn reading(workers: &[WorkerStats]) -> Input {
    let applied = workers.iter().map(|worker| worker.snapshot_version.get()).min().unwrap_or(0);
    let sum = |count: fn(&WorkerStats) -> u64| workers.iter().map(count).sum::<u64>();
    let taken_over = sum(|worker| worker.connections_taken_over.get());
    fence(Ordering::SeqCst);
    let handed_over = sum(|worker| worker.connections_handed_over.get());
    let served = sum(|worker| worker.connections_open.get());
    let open = served + handed_over.saturating_sub(taken_over);
    Input::ConnectionsOpen { open, applied: Version(applied) }
}

async fn sleep_to(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Until a worker has rung. For ever once all of them are gone.
async fn ring(bell: &mut tokio::net::UnixStream) {
    match bell.read(&mut [0; 64]).await {
        Ok(1..) => {}
        Ok(0) | Err(_) => std::future::pending().await,
    }
}

async fn any_signal(signals: &mut Option<[Signal; 2]>) {
    let Some([terminate, interrupt]) = signals else { return std::future::pending().await };
    tokio::select! {
        Some(()) = terminate.recv() => {}
        Some(()) = interrupt.recv() => {}
        else => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
