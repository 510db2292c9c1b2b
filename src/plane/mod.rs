//! Pure: the control plane as one machine.
//!
//! Owns every decision about discovery, health, instances and the life of the process. Facts come
//! in as [`Input`] together with the time, actions leave as [`Output`]; the shell (`control`) asks
//! DNS, probes, publishes and logs, and decides nothing. DNS libraries, sockets and clocks are
//! unknown here, and equal inputs at equal times with an equal seed give equal outputs.
//!
//! Invariants
//! - Versions only grow; a published snapshot never changes; nothing is published if nothing
//!   changed.
//! - A failure to resolve never empties the set of backends.
//! - A verdict on health never bypasses its threshold.
//! - Ejections never exceed their share, nor take the last backend that takes new work.
//! - The phase of the process only moves forward.

mod claims;
mod discovery;
mod dns;
mod event;
mod initialisation;
mod journal;
mod life;
mod panic;
mod question;
mod roster;

use std::{
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

pub use dns::{Absence, Query, QueryKind, QuestionId, Resolution, ResolveFailure, Service};
pub use event::{PlaneCounters, PlaneEvent};
pub use initialisation::{Replay, ReplayCounters, ReplayFailure, ReplayStep};
pub use life::{DrainTimes, ExitReason};
pub use panic::{PanicPolicy, PanicScope};

use crate::{
    health::{Policy, ProbeVerdict, outlier},
    model::{BackendId, HealthCounts, Panic, Report, Rng, Snapshot, Target, Version},
};
use discovery::Discovery;
use initialisation::Initialisations;
use journal::Journal;
use life::{Life, Step};
pub use roster::DrainScope;
use roster::Roster;

/// How often backends that are leaving are looked at.
const LEAVING_PERIOD: Duration = Duration::from_secs(1);

/// Below this many backends a change is published within the call that brings it.
const PROMPT_BACKENDS_MAX: usize = 256;

/// Above it, pictures keep this distance per backend: making one costs time in proportion to their
/// number, so thousands of backends that come up one by one must share pictures. At 10,000
/// backends it is 20 ms.
const PICTURE_SPACING_PER_BACKEND: Duration = Duration::from_micros(2);

/// When a request names an instance that nobody knows, all backends are asked who they are. That
/// happens at most once a second, and less often where it would mean more than a hundred probes a
/// second: made-up ids must not become a flood of probes.
const SWEEP_SPACING_MIN: Duration = Duration::from_secs(1);
const SWEEP_SPACING_PER_BACKEND: Duration = Duration::from_millis(10);

/// What the plane must know of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the backends are.
    pub targets: Vec<Target>,
    /// Bounds of the pause between two questions to DNS.
    pub refresh: Refresh,
    /// Health checks; `None` takes every discovered backend as healthy and probes nobody.
    pub health: Option<Policy>,
    /// Ejections by the outcomes of requests; `None` ejects nobody.
    pub outliers: Option<outlier::Policy>,
    /// What is overlooked when too few backends are left.
    pub panic: PanicPolicy,
    /// How long the phases of the end last.
    pub drain: DrainTimes,
    /// How long a session lives that nobody uses; `None` where no backend has any. A backend that
    /// left discovery is kept for as long, in case that it has some.
    pub session_idle: Option<Duration>,
    /// Number of workers: each gets its cell in the counts of every backend.
    pub workers: usize,
}

/// Bounds of the pause between two refreshes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refresh {
    /// Shortest pause.
    pub min: Duration,
    /// Longest pause. Not below `min`.
    pub max: Duration,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A question that [`Output::Resolve`] asked has ended.
    Resolved {
        /// Which one.
        question: QuestionId,
        /// How.
        resolution: Resolution,
    },
    /// A probe that [`Output::Probe`] started has ended.
    Probed {
        /// Of which backend.
        backend: BackendId,
        /// What it found.
        verdict: ProbeVerdict,
    },
    /// A replay that [`Output::Replay`] started has ended.
    Replayed {
        /// To which backend.
        backend: BackendId,
        /// How.
        outcome: Result<(), ReplayFailure>,
    },
    /// A worker reports.
    Reported(Report),
    /// The operator wants a backend drained, or no longer.
    DrainOrdered {
        /// Which one.
        backend: BackendId,
        /// What was named; `None` takes the order back.
        order: Option<DrainScope>,
    },
    /// SIGTERM or its like.
    Shutdown,
    /// How many client connections are open, fed repeatedly while the process is draining.
    ConnectionsOpen {
        /// Sum over all workers.
        open: u64,
        /// Version of the oldest snapshot that any worker still runs, read *before* `open`.
        applied: Version,
    },
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Output {
    /// Ask DNS. Answered by [`Input::Resolved`], always.
    Resolve {
        /// Names the question in the answer.
        question: QuestionId,
        /// What to ask.
        query: Query,
    },
    /// Probe a backend. Answered by [`Input::Probed`], always.
    Probe {
        /// Names the backend in the answer.
        backend: BackendId,
        /// Where it is.
        address: SocketAddr,
        /// The port to ask there, if its target names one.
        port: Option<NonZeroU16>,
    },
    /// Initialise a backend. Answered by [`Input::Replayed`], always.
    Replay(Replay),
    /// Give this to every worker.
    Publish(Arc<Snapshot>),
    /// Say this.
    Event(PlaneEvent),
    /// End the process. Nothing follows.
    Exit(ExitReason),
}

/// The machine.
#[derive(Debug)]
pub struct Plane {
    discovery: Discovery,
    roster: Roster,
    initialisations: Initialisations,
    life: Life,
    journal: Journal,
    rng: Rng,
    version: Version,
    /// Discovery may name other addresses than the roster has.
    is_unreconciled: bool,
    /// The roster or the phase differs from the last picture.
    is_unpublished: bool,
    next_picture: Instant,
    next_leaving_check: Option<Instant>,
    next_sweep: Instant,
    outliers: Option<outlier::Policy>,
    /// When the counts of all backends are looked at.
    next_reading: Instant,
    panic_policy: PanicPolicy,
    panic: Panic,
    counts: HealthCounts,
}

impl Plane {
    /// Starts. What must be done first waits in [`Plane::poll_output`].
    pub fn new(settings: &Settings, seed: u64, now: Instant) -> Self {
        let mut plane = Self {
            discovery: Discovery::new(&settings.targets, settings.refresh, now),
            roster: Roster::new(
                settings.workers,
                settings.health,
                settings.outliers,
                settings.session_idle,
            ),
            initialisations: Initialisations::default(),
            life: Life::new(settings.drain),
            journal: Journal::default(),
            rng: Rng::new(seed),
            version: Version::NONE,
            is_unreconciled: true,
            is_unpublished: false,
            next_picture: now,
            next_leaving_check: None,
            next_sweep: now,
            outliers: settings.outliers,
            next_reading: now,
            panic_policy: settings.panic,
            panic: Panic::Off,
            counts: HealthCounts::default(),
        };
        plane.advance(now);
        plane
    }

    /// Takes in what happened. `now` must not be before the `now` of an earlier call.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.life.has_exited() {
            return;
        }
        match input {
            Input::Resolved { question, resolution } => {
                let (rng, journal) = (&mut self.rng, &mut self.journal);
                self.is_unreconciled |=
                    self.discovery.answer(question, resolution, now, rng, journal);
            }
            Input::Probed { backend, verdict } => {
                self.roster.probed(backend, verdict, now, &mut self.rng, &mut self.journal);
            }
            Input::Replayed { backend, outcome } => {
                let journal = &mut self.journal;
                self.is_unpublished |=
                    self.initialisations.replayed(backend, outcome, now, journal);
            }
            Input::Reported(report) => self.reported(report, now),
            Input::DrainOrdered { backend, order } => {
                self.roster.order_drain(backend, order, &mut self.journal);
            }
            Input::Shutdown => {
                let step = self.life.shutdown(now, &mut self.journal);
                self.follow(step);
            }
            Input::ConnectionsOpen { open, applied } => {
                let step = self.life.connections_open(open, applied, &mut self.journal);
                self.follow(step);
            }
        }
        self.advance(now);
    }

    /// Does what is due. Call at [`Plane::poll_timeout`]; calling more often does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.life.has_exited() {
            self.advance(now);
        }
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.journal.outputs.pop_front()
    }

    /// When [`Plane::handle_timeout`] has something to do. May be in the past: then at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.life.has_exited() {
            return None;
        }
        let reading = self.outliers.map(|_| self.next_reading);
        let picture = (self.is_unreconciled || self.is_unpublished).then_some(self.next_picture);
        [
            self.discovery.timeout(),
            self.roster.timeout(),
            self.initialisations.timeout(),
            self.life.timeout(),
            self.roster.next_readmission(),
            self.next_leaving_check,
            reading,
            picture,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Everything counted since the start.
    pub fn counters(&self) -> &PlaneCounters {
        &self.journal.counters
    }

    /// True from the moment that listeners close: the shell feeds [`Input::ConnectionsOpen`].
    pub fn is_draining(&self) -> bool {
        self.life.is_draining()
    }

    fn reported(&mut self, report: Report, now: Instant) {
        match report {
            Report::ConnectFailed(id) => {
                self.roster.read_outcomes_of(id, now, &mut self.journal);
                self.discovery.demand(now);
                if let Some(host) = self.roster.connect_failed(id, now) {
                    self.discovery.demand_host(&host, now);
                }
            }
            Report::Failing(id) => self.roster.read_outcomes_of(id, now, &mut self.journal),
            Report::InstanceSeen(id, instance) => {
                self.roster.instance_seen(id, &instance, now, &mut self.journal);
            }
            Report::InstanceUnknown => {
                self.discovery.demand(now);
                if now >= self.next_sweep {
                    let backends = u32::try_from(self.roster.len()).unwrap_or(u32::MAX);
                    let spacing = SWEEP_SPACING_PER_BACKEND.saturating_mul(backends);
                    self.next_sweep = now + spacing.max(SWEEP_SPACING_MIN);
                    self.roster.demand_all(now);
                }
            }
            Report::InitializeAnswered(by, initialize) => {
                self.initialisations.answered(by, *initialize, now);
            }
            Report::InitializedReceived { client, request } => {
                self.initialisations.confirmed(client, request, now, &mut self.journal);
                self.is_unpublished = true;
            }
        }
    }

    fn follow(&mut self, step: Option<Step>) {
        match step {
            Some(Step::NextPhase) => self.is_unpublished = true,
            Some(Step::Exit(reason)) => self.journal.outputs.push_back(Output::Exit(reason)),
            None => {}
        }
    }

    /// Everything that follows from the inputs so far and from the time.
    fn advance(&mut self, now: Instant) {
        while let Some(step) = self.life.advance(now, self.version.next(), &mut self.journal) {
            self.follow(Some(step));
        }
        if !self.life.has_exited() {
            self.look(now);
            self.paint(now);
            while let Some((question, query)) = self.discovery.next_due(now) {
                self.journal.outputs.push_back(Output::Resolve { question, query });
            }
            while let Some((backend, address, port)) = self.roster.next_probe(now) {
                self.journal.outputs.push_back(Output::Probe { backend, address, port });
            }
            while let Some(replay) = self.initialisations.next_replay(now) {
                self.journal.outputs.push_back(Output::Replay(replay));
            }
        }
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// Looks at what requests have met, and at whose ejection is over.
    fn look(&mut self, now: Instant) {
        let Some(policy) = &self.outliers else { return };
        // First, because whoever comes back makes room for another.
        self.roster.readmit_due(now, &mut self.journal);
        if self.next_reading <= now {
            self.next_reading = now + policy.reading_period();
            self.roster.read_outcomes(now, &mut self.journal);
        }
    }

    /// Brings the picture up to date and publishes it, if it changed.
    fn paint(&mut self, now: Instant) {
        if self.is_unreconciled && now >= self.next_picture {
            self.is_unreconciled = false;
            let addresses = self.discovery.addresses(now);
            self.roster.reconcile(addresses, now, &mut self.journal);
            self.roster.readmit_due(now, &mut self.journal);
        }
        if self.next_leaving_check.is_some_and(|at| at <= now) {
            self.next_leaving_check = None;
            self.roster.release_left(now, &mut self.journal);
        }
        if self.roster.is_anybody_leaving() {
            self.next_leaving_check.get_or_insert(now + LEAVING_PERIOD);
        }
        self.is_unpublished |= self.roster.take_changed();
        if self.is_unpublished && now >= self.next_picture {
            self.is_unpublished = false;
            self.publish(now);
        }
        if now >= self.next_picture {
            let backends = u32::try_from(self.roster.len()).unwrap_or(u32::MAX);
            self.next_picture = match self.roster.len() {
                ..=PROMPT_BACKENDS_MAX => now,
                _ => now + PICTURE_SPACING_PER_BACKEND.saturating_mul(backends),
            };
        }
    }

    fn publish(&mut self, now: Instant) {
        self.version = self.version.next();
        let mut backends = self.roster.backends();
        let initialisation = self.initialisations.reconcile(&mut backends, now);
        self.roster.note_initialisations(&backends);
        let panic = self.panic_policy.judge(backends.iter());
        let phase = self.life.phase();
        let snapshot = Snapshot { version: self.version, phase, panic, initialisation, backends };
        let counts = snapshot.health_counts();
        let HealthCounts { total, healthy, usable } = counts;
        if healthy != self.counts.healthy {
            self.journal.event(PlaneEvent::HealthyChanged { healthy, usable, total });
        }
        let before = std::mem::replace(&mut self.panic, panic);
        if panic != before {
            self.journal.event(match panic {
                Panic::Off => PlaneEvent::PanicEnded { taking: healthy, total },
                Panic::Ejections | Panic::Everything => {
                    PlaneEvent::PanicBegan { panic, taking: healthy, total }
                }
            });
        }
        self.counts = counts;
        self.journal.counters.publishes += 1;
        self.journal.outputs.push_back(Output::Publish(Arc::new(snapshot)));
    }

    /// Too slow for thousands of backends, and then nothing it would find is new.
    #[cfg(debug_assertions)]
    fn check_invariants(&self) {
        if self.roster.len().max(self.discovery.len()) <= PROMPT_BACKENDS_MAX {
            self.roster.check_invariants();
            self.initialisations.check_invariants();
            self.discovery.check_invariants();
        }
    }
}

#[cfg(test)]
mod tests;
