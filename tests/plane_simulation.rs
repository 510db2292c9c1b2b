//! The control plane under random weather, against a model that is too simple to be wrong.
//!
//! Every seed is one run: random answers and failures of DNS, probe results with hints, reports,
//! exchanges and sessions that begin, end and fail, drains, clock jumps and the end of the process,
//! in random order. After each step the last snapshot is compared with what the model expects. A
//! run that fails prints its seed and step; `LB_SIM_SEED=<seed> cargo test --test plane_simulation`
//! plays it again and prints what led to it, and `LB_SIM_RUNS=<n>` plays so many instead of two
//! thousand.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]
#![allow(clippy::print_stderr, reason = "what a failed run must show")]

#[path = "plane_simulation/conduct.rs"]
mod conduct;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use stepflow_load_balancer::{
    health::{Policy, ProbeFailure, ProbeSuccess, ProbeVerdict, outlier},
    model::{
        Backend, BackendId, DrainCause, Health, Hint, Hints, Initialisation, Initialize,
        InstanceId, Panic, Phase, Presence, Recording, Report, Rng, Snapshot, Standing, Target,
        Version,
    },
    plane::{
        Absence, DrainScope, DrainTimes, Input, Output, PanicPolicy, PanicScope, Plane, PlaneEvent,
        Query, QueryKind, QuestionId, Refresh, ReplayFailure, Resolution, ResolveFailure, Service,
        Settings,
    },
    stats::BackendStats,
};

use conduct::{Conduct, Outcome};

const RUNS: u64 = 2000;
const STEPS: usize = 400;
const SECOND: Duration = Duration::from_secs(1);

/// What a run is about. Chosen by the seed.
struct Scenario {
    settings: Settings,
    /// With SRV the order of first answers decides when old hosts retire, so there the model only
    /// knows bounds.
    has_srv: bool,
}

fn scenario(rng: &mut Rng) -> Scenario {
    let upstreams = [
        ("10.0.0.1:80", false),
        ("workers:80", false),
        ("workers:80,others:80,10.0.0.1:80", false),
        ("workers:80,workers:81", false),
        ("srv:services", true),
        ("srv:services,workers:80", true),
    ];
    let (upstream, has_srv) = pick(rng, &upstreams);
    let policy = Policy {
        interval: SECOND * number(rng, 1, 10),
        interval_failing: SECOND * number(rng, 1, 10),
        max_failures: NonZeroU32::new(number(rng, 1, 4)).unwrap(),
        healthy_threshold: NonZeroU32::new(number(rng, 1, 3)).unwrap(),
    };
    let settings = Settings {
        targets: Target::parse_list(upstream).unwrap(),
        refresh: Refresh { min: SECOND, max: 30 * SECOND },
        health: (rng.below(4) > 0).then_some(policy),
        outliers: (rng.below(4) > 0).then(|| outliers(rng)),
        panic: PanicPolicy {
            threshold_percent: *pick(rng, &[0, 1, 50, 50, 100]),
            scope: *pick(rng, &[PanicScope::Ejections, PanicScope::Everything]),
        },
        drain: DrainTimes { grace: 5 * SECOND, drain: 30 * SECOND },
        session_idle: (rng.below(2) == 0).then(|| SECOND * number(rng, 1, 60)),
        workers: 2,
    };
    Scenario { settings, has_srv: *has_srv }
}

fn outliers(rng: &mut Rng) -> outlier::Policy {
    let some_of = |rng: &mut Rng, most| {
        let limit = NonZeroU32::new(number(rng, 1, most));
        limit.filter(|_| rng.below(4) > 0)
    };
    outlier::Policy {
        failures_in_a_row: some_of(rng, 6),
        connect_failures_in_a_row: some_of(rng, 4),
        failure_percent: (rng.below(2) == 0).then(|| *pick(rng, &[1, 50, 100])),
        window: Duration::from_millis(*pick(rng, &[300, 5_000, 10_000, 20_000])),
        requests_min: NonZeroU32::new(number(rng, 1, 20)).unwrap(),
        silent_percent: (rng.below(3) > 0).then(|| *pick(rng, &[50, 80, 100])),
        ejection: Duration::from_millis(rng.below(20_000) + 1),
        ejection_max: Duration::from_secs(20 + rng.below(60)),
        ejected_percent_max: *pick(rng, &[0, 10, 50, 50, 100]),
        ends: *pick(rng, &[outlier::Ends::ByTime, outlier::Ends::ByProbe]),
    }
}

fn number(rng: &mut Rng, low: u32, high: u32) -> u32 {
    low + u32::try_from(rng.below(u64::from(high - low + 1))).unwrap()
}

fn index(rng: &mut Rng, len: usize) -> usize {
    usize::try_from(rng.below(len as u64)).unwrap()
}

fn pick<'a, T>(rng: &mut Rng, values: &'a [T]) -> &'a T {
    &values[index(rng, values.len())]
}

/// What one DNS question has led to, by the rules and nothing else.
#[derive(Default)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    services: BTreeSet<Service>,
    absences: u32,
}

/// What one backend's probes, its own words and its operator have led to.
#[derive(Clone)]
struct Patient {
    health: Health,
    passed: u32,
    failed: u32,
    hints: Hints,
    order: Option<DrainScope>,
    /// When it left, if it had a name then.
    left: Option<Instant>,
    looks_gone: bool,
}

impl Patient {
    fn new(health: Health) -> Self {
        Self {
            health,
            passed: 0,
            failed: 0,
            hints: Hints::default(),
            order: None,
            left: None,
            looks_gone: false,
        }
    }

    fn draining(&self) -> Option<DrainCause> {
        let wants_rest = self.hints.draining || self.hints.weight_percent == Some(0);
        let own = wants_rest.then_some(DrainCause::Backend);
        self.order.map(|_| DrainCause::Operator).or(own)
    }
}

/// What one step was about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Probe,
    Outcome,
    Other,
}

struct Run {
    seed: u64,
    step: usize,
    rng: Rng,
    now: Instant,
    scenario: Scenario,
    plane: Plane,

    /// What was done and said, where that is wanted: it costs more than the run itself.
    trace: Option<Vec<String>>,
    /// Names of what has happened.
    covered: BTreeSet<&'static str>,
    questions: Vec<(QuestionId, Query)>,
    probes: Vec<BackendId>,
    replays: Vec<BackendId>,
    /// Some client has confirmed its `initialize`.
    is_initialised: bool,
    answered: u64,
    probed: u64,
    asked_at: BTreeMap<QuestionId, Instant>,

    snapshot: Option<Arc<Snapshot>>,
    known: BTreeMap<Query, Known>,
    srv_addresses: BTreeSet<SocketAddr>,
    patients: BTreeMap<BackendId, Patient>,
    seen: BTreeMap<BackendId, (SocketAddr, Arc<BackendStats>)>,
    replaced: BTreeSet<BackendId>,
    running: Vec<Arc<BackendStats>>,
    /// Sessions that live somewhere.
    sessions: Vec<Arc<BackendStats>>,
    idle_since: BTreeMap<BackendId, Instant>,
    conduct: Conduct,
    /// How bad each backend is, in percent of its requests.
    badness: BTreeMap<BackendId, u64>,
    kind: Kind,
    shutdowns: u32,
    is_over: bool,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nfailed at step {}; LB_SIM_SEED={} tells the rest", self.step, self.seed);
            let lines = self.trace.iter().flatten();
            for line in lines.collect::<Vec<_>>().iter().rev().take(20).rev() {
                eprintln!("  {line}");
            }
        }
    }
}

impl Run {
    fn new(seed: u64, start: Instant, is_traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let scenario = scenario(&mut rng);
        let mut run = Self {
            plane: Plane::new(&scenario.settings, seed, start),
            seed,
            step: 0,
            rng,
            now: start,
            trace: is_traced.then(Vec::new),
            covered: BTreeSet::new(),
            questions: Vec::new(),
            probes: Vec::new(),
            replays: Vec::new(),
            is_initialised: false,
            answered: 0,
            probed: 0,
            asked_at: BTreeMap::new(),
            snapshot: None,
            known: BTreeMap::new(),
            srv_addresses: BTreeSet::new(),
            patients: BTreeMap::new(),
            seen: BTreeMap::new(),
            replaced: BTreeSet::new(),
            running: Vec::new(),
            sessions: Vec::new(),
            idle_since: BTreeMap::new(),
            conduct: Conduct::new(scenario.settings.outliers, start),
            badness: BTreeMap::new(),
            kind: Kind::Other,
            shutdowns: 0,
            is_over: false,
            scenario,
        };
        run.conduct.is_reading_due(start);
        run.collect();
        run.check();
        run
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }

    fn play(&mut self) {
        while self.step < STEPS && !self.is_over {
            self.step += 1;
            self.kind = Kind::Other;
            self.conduct.begin_step();
            match self.rng.below(100) {
                0..18 => self.answer_question(),
                18..38 => self.end_probe(),
                38..43 => self.report(),
                43..46 => self.end_replay(),
                46..54 => self.begin_or_end_exchange(),
                54..70 => self.fare(),
                70..77 => self.sound(),
                77..97 => self.pass_time(),
                _ => self.rare(),
            }
            self.check();
        }
        self.end();
    }

    fn handle(&mut self, input: Input) {
        self.note(|| format!("> {input:?}"));
        let was = self.backends();
        let reported = match &input {
            Input::Reported(Report::Failing(id) | Report::ConnectFailed(id)) => Some(*id),
            _ => None,
        };
        if let Input::Reported(Report::ConnectFailed(id)) = &input
            && self.scenario.settings.health.is_none()
        {
            let patient = self.patients.get_mut(id).expect("a patient");
            patient.looks_gone |= patient.left.is_some();
        }
        self.plane.handle(input, self.now);
        self.collect();
        if let Some(id) = reported {
            self.conduct.read(Some(id), &was, &self.backends(), self.now);
        }
        self.read_all_if_due(&was);
    }

    fn read_all_if_due(&mut self, was: &[Backend]) {
        if !self.is_over && self.conduct.is_reading_due(self.now) {
            self.conduct.read(None, was, &self.backends(), self.now);
        }
    }

    fn collect(&mut self) {
        while let Some(output) = self.plane.poll_output() {
            assert!(!self.is_over, "nothing follows an exit, but {output:?}");
            self.note(|| match &output {
                Output::Publish(snapshot) => shown(snapshot),
                output => format!("{output:?}"),
            });
            match output {
                Output::Resolve { question, query } => self.asked(question, query),
                Output::Probe { backend, address, .. } => {
                    assert!(self.scenario.settings.health.is_some());
                    assert!(!self.probes.contains(&backend), "one probe of a backend at a time");
                    assert_eq!(self.seen_backend(backend).0, address);
                    self.probes.push(backend);
                    assert!(self.probes.len() <= 128);
                }
                Output::Replay(replay) => {
                    assert!(self.is_initialised, "nobody has said initialize");
                    assert!(!self.replays.contains(&replay.backend), "one at a time");
                    assert_eq!(self.seen_backend(replay.backend).0, replay.address);
                    self.replays.push(replay.backend);
                    assert!(self.replays.len() <= 16);
                }
                Output::Publish(snapshot) => self.published(snapshot),
                Output::Event(event) => self.said(&event),
                Output::Exit(_) => {
                    assert!(self.shutdowns > 0);
                    self.is_over = true;
                }
            }
        }
    }

    fn seen_backend(&self, id: BackendId) -> &(SocketAddr, Arc<BackendStats>) {
        &self.seen[&id]
    }

    fn asked(&mut self, question: QuestionId, query: Query) {
        assert!(!self.questions.iter().any(|(id, _)| *id == question), "asked twice at once");
        if let Some(last) = self.asked_at.insert(question, self.now) {
            let pause = self.now - last;
            assert!(pause >= SECOND, "{query:?} asked again after {pause:?}");
        }
        self.questions.push((question, query));
    }

    fn published(&mut self, snapshot: Arc<Snapshot>) {
        let before = self.snapshot.as_deref();
        let (version, phase) =
            before.map_or((Version(0), Phase::Serving), |s| (s.version, s.phase));
        assert_eq!(snapshot.version, version.next(), "versions rise by one");
        assert!(snapshot.phase >= phase, "phases move forward");
        assert!(snapshot.backends.is_sorted_by_key(|b| b.id), "in order of identity");
        for backend in &snapshot.backends {
            let newest = self.seen.last_key_value().map_or(0, |(id, _)| id.0);
            match self.seen.get(&backend.id) {
                Some((address, stats)) => {
                    assert_eq!(*address, backend.address, "an id never changes its address");
                    assert!(Arc::ptr_eq(stats, &backend.stats), "an id keeps its counts");
                    let is_there =
                        before.is_some_and(|s| s.backends.iter().any(|b| b.id == backend.id));
                    assert!(is_there, "{:?} was gone and is back", backend.id);
                }
                None => {
                    assert!(backend.id.0 > newest, "ids rise");
                    assert_eq!(backend.stats.in_flight(), 0, "fresh counts");
                    let seen = (backend.address, Arc::clone(&backend.stats));
                    self.seen.insert(backend.id, seen);
                }
            }
        }
        for old in before.map_or(&[][..], |s| &s.backends) {
            let is_gone = snapshot.backends.iter().all(|b| b.id != old.id);
            let may_go = !self.is_needed(old) || self.replaced.contains(&old.id);
            assert!(!is_gone || may_go, "{old:?} went while it was needed");
        }
        self.snapshot = Some(snapshot);
    }

    /// Whether a backend that discovery does not name must be there all the same.
    fn is_needed(&self, backend: &Backend) -> bool {
        let Patient { left, looks_gone, .. } = self.patients[&backend.id];
        let idle = self.scenario.settings.session_idle;
        let may_have_sessions = left.zip(idle).is_some_and(|(left, idle)| {
            let lives = self.sessions.iter().any(|stats| Arc::ptr_eq(stats, &backend.stats));
            lives || self.now < left + idle
        });
        backend.stats.in_flight() > 0 || (may_have_sessions && !looks_gone)
    }

    /// Events tell the model what it cannot see in time: who succeeds whom.
    fn said(&mut self, event: &PlaneEvent) {
        self.covered.insert(event.name());
        match event {
            PlaneEvent::InitialisationLearned { .. } => self.is_initialised = true,
            PlaneEvent::BackendDiscovered { id, .. } => {
                let health = match self.scenario.settings.health {
                    Some(_) => Health::Unprobed,
                    None => Health::Healthy,
                };
                self.patients.insert(*id, Patient::new(health));
                self.conduct.arrived(*id, self.now);
            }
            PlaneEvent::BackendLeft { id, instance, .. } => {
                let patient = self.patients.get_mut(id).expect("a patient");
                patient.left = instance.as_ref().map(|_| self.now);
            }
            PlaneEvent::BackendReturned { id, .. } => {
                let patient = self.patients.get_mut(id).expect("a patient");
                (patient.left, patient.looks_gone) = (None, false);
                patient.order = patient.order.filter(|scope| *scope == DrainScope::Instance);
            }
            PlaneEvent::BackendEjected { id, reason, length, ejections, .. } => {
                if *reason == outlier::Reason::StreamsStalled {
                    self.covered.insert("streams_stalled");
                }
                self.conduct.ejected(*id, *reason, *length, *ejections, self.now);
            }
            PlaneEvent::BackendReadmitted { id, .. } => self.conduct.readmitted(*id, self.now),
            PlaneEvent::EjectionWithheld { .. } => self.conduct.withheld += 1,
            PlaneEvent::InstanceChanged { id, address, old, new, .. } => {
                assert_ne!(old, new);
                let predecessor = self.backends().into_iter().find(|b| b.address == *address);
                let predecessor = predecessor.expect("somebody to succeed").id;
                self.replaced.insert(predecessor);
                let Patient { health, order, .. } = self.patients[&predecessor];
                let order = order.filter(|scope| *scope == DrainScope::Address);
                self.patients.insert(*id, Patient { order, ..Patient::new(health) });
                self.conduct.arrived(*id, self.now);
            }
            _ => {}
        }
    }

    fn backends(&self) -> Vec<Backend> {
        self.snapshot.as_ref().map_or_else(Vec::new, |snapshot| snapshot.backends.clone())
    }

    fn answer_question(&mut self) {
        if self.questions.is_empty() {
            return;
        }
        let at = index(&mut self.rng, self.questions.len());
        let (question, query) = self.questions.swap_remove(at);
        let resolution = self.resolution(query.kind);
        let present_before = self.present();
        let is_failure = matches!(resolution, Resolution::Failed(_));
        self.learn(&query, &resolution);
        self.answered += 1;
        self.handle(Input::Resolved { question, resolution });
        if is_failure {
            let present = self.present();
            assert!(present_before.is_empty() || !present.is_empty(), "a failure emptied the set");
            assert!(self.scenario.has_srv || present == present_before, "a failure changed it");
        }
        // A second answer to a question that is not asked again is nobody's.
        let is_asked_again = self.questions.iter().any(|(id, _)| *id == question);
        if !is_asked_again && self.rng.below(20) == 0 {
            let resolution = self.resolution(query.kind);
            self.handle(Input::Resolved { question, resolution });
        }
    }

    fn resolution(&mut self, kind: QueryKind) -> Resolution {
        let rng = &mut self.rng;
        let ttl = SECOND * *pick(rng, &[0, 1, 5, 30, 3600]);
        match rng.below(10) {
            0..2 => Resolution::Failed(*pick(
                rng,
                &[ResolveFailure::Timeout, ResolveFailure::ServerFailure],
            )),
            2..5 => Resolution::Absent(*pick(rng, &[Absence::NoSuchName, Absence::NoRecords])),
            _ => {
                let count = 1 + rng.below(4);
                match kind {
                    QueryKind::A => {
                        let ip =
                            |_| IpAddr::from([10, 0, 0, 1 + u8::try_from(rng.below(6)).unwrap()]);
                        Resolution::Addresses { addresses: (0..count).map(ip).collect(), ttl }
                    }
                    QueryKind::Aaaa => {
                        let ip = |_| {
                            let last = 1 + u16::try_from(rng.below(6)).unwrap();
                            IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])
                        };
                        Resolution::Addresses { addresses: (0..count).map(ip).collect(), ttl }
                    }
                    QueryKind::Srv => {
                        let service = |_| Service {
                            host: Arc::from(*pick(rng, &["a.", "b.", "c.", "d."])),
                            port: *pick(rng, &[80, 81]),
                            priority: *pick(rng, &[0, 1]),
                            weight: *pick(rng, &[0, 5]),
                        };
                        Resolution::Services { services: (0..count).map(service).collect(), ttl }
                    }
                }
            }
        }
    }

    fn learn(&mut self, query: &Query, resolution: &Resolution) {
        let known = self.known.entry(query.clone()).or_default();
        match resolution {
            Resolution::Addresses { addresses, .. } => {
                known.addresses = addresses.iter().copied().collect();
                known.absences = 0;
                for (ip, port) in addresses.iter().flat_map(|ip| [(*ip, 80), (*ip, 81)]) {
                    self.srv_addresses.insert(SocketAddr::new(ip, port));
                }
            }
            Resolution::Services { services, .. } => {
                known.services = services.iter().cloned().collect();
                known.absences = 0;
            }
            Resolution::Absent(_) => {
                known.absences += 1;
                if known.absences >= 3 {
                    known.addresses.clear();
                    known.services.clear();
                }
            }
            Resolution::Failed(_) => known.absences = 0,
        }
    }

    /// Addresses that must be present, without those that only SRV records name.
    fn wanted(&self) -> BTreeSet<SocketAddr> {
        let mut wanted = BTreeSet::new();
        for target in &self.scenario.settings.targets {
            match target {
                Target::Address { address, .. } => {
                    wanted.insert(*address);
                }
                Target::Name { host, port, .. } => {
                    for kind in [QueryKind::A, QueryKind::Aaaa] {
                        let query = Query { name: Arc::from(host.as_str()), kind };
                        let addresses = self.known.get(&query).map(|known| &known.addresses);
                        let addresses = addresses.into_iter().flatten();
                        wanted.extend(addresses.map(|ip| SocketAddr::new(*ip, *port)));
                    }
                }
                Target::Srv { .. } => {}
            }
        }
        wanted
    }

    fn present(&self) -> BTreeSet<SocketAddr> {
        let backends = self.backends();
        let present = backends.iter().filter(|b| b.presence == Presence::Present);
        present.map(|b| b.address).collect()
    }

    fn end_probe(&mut self) {
        if self.probes.is_empty() {
            return;
        }
        self.kind = Kind::Probe;
        let at = index(&mut self.rng, self.probes.len());
        let backend = self.probes.swap_remove(at);
        let verdict = self.verdict();
        self.probed += 1;
        // The model: who answered first, then what the answer says.
        let is_current = self.backends().iter().any(|b| b.id == backend);
        let old = self.backends().into_iter().find(|b| b.id == backend);
        let instance = verdict.as_ref().ok().and_then(|success| success.instance.clone());
        let address = self.seen_backend(backend).0;
        // Whoever fails is who he was, and what follows may follow at once.
        if is_current && verdict.is_err() {
            self.observe(backend, &verdict);
        }
        self.handle(Input::Probed { backend, verdict: verdict.clone() });
        let judged = match (old.and_then(|b| b.instance), instance) {
            (Some(old), Some(new)) if old != new => {
                self.backends().iter().find(|b| b.address == address).expect("a successor").id
            }
            _ => backend,
        };
        if is_current && verdict.is_ok() {
            self.observe(judged, &verdict);
        }
    }

    fn observe(&mut self, id: BackendId, verdict: &ProbeVerdict) {
        let policy = self.scenario.settings.health.expect("who is probed is judged");
        let patient = self.patients.get_mut(&id).expect("a patient");
        match verdict {
            Ok(success) => {
                patient.hints = success.hints;
                (patient.passed, patient.failed) = (patient.passed + 1, 0);
                if patient.passed >= policy.healthy_threshold.get() {
                    patient.health = Health::Healthy;
                }
                patient.looks_gone = false;
            }
            Err(ProbeFailure::Local) => {}
            Err(failure) => {
                (patient.passed, patient.failed) = (0, patient.failed + 1);
                if patient.failed >= policy.max_failures.get() {
                    patient.health = Health::Unhealthy;
                }
                patient.looks_gone = match failure {
                    ProbeFailure::Refused => true,
                    ProbeFailure::ResponseTimeout => false,
                    _ => patient.health == Health::Unhealthy,
                };
            }
        }
    }

    fn verdict(&mut self) -> ProbeVerdict {
        let rng = &mut self.rng;
        match rng.below(10) {
            0..3 => Err(*pick(
                rng,
                &[ProbeFailure::Refused, ProbeFailure::ResponseTimeout, ProbeFailure::Status(503)],
            )),
            3 => Err(ProbeFailure::Local),
            4..6 => Ok(ProbeSuccess::default()),
            6 => Ok(ProbeSuccess { hints: hints(rng), ..ProbeSuccess::default() }),
            _ => Ok(ProbeSuccess {
                instance: Some(instance(rng)),
                ignored: None,
                hints: hints(rng),
                active_streams: (rng.below(2) == 0).then(|| number(rng, 0, 9)),
                ignored_hint: (rng.below(8) == 0).then_some(Hint::Capacity),
            }),
        }
    }

    fn report(&mut self) {
        // Any backend that ever was: reports travel slowly.
        let ids: Vec<BackendId> = self.seen.keys().copied().collect();
        let client = IpAddr::from([10, 1, 0, u8::try_from(self.rng.below(3)).unwrap()]);
        let request = Recording::of(b"request");
        let report = match self.rng.below(5) {
            0 => Report::InstanceUnknown,
            _ if ids.is_empty() => Report::InstanceUnknown,
            3 => {
                let terms = Arc::from(*pick(&mut self.rng, &["a", "b"]));
                let by = *pick(&mut self.rng, &ids);
                Report::InitializeAnswered(by, Box::new(Initialize { client, terms, request }))
            }
            4 => Report::InitializedReceived { client, request },
            1 => Report::ConnectFailed(*pick(&mut self.rng, &ids)),
            _ => {
                let id = *pick(&mut self.rng, &ids);
                Report::InstanceSeen(id, instance(&mut self.rng))
            }
        };
        self.handle(Input::Reported(report));
    }

    fn end_replay(&mut self) {
        if self.replays.is_empty() {
            return;
        }
        let at = index(&mut self.rng, self.replays.len());
        let backend = self.replays.swap_remove(at);
        // Mostly failures: patience is to end now and then.
        let outcome = match self.rng.below(6) {
            0 => Ok(()),
            _ => Err(ReplayFailure::Refused),
        };
        self.handle(Input::Replayed { backend, outcome });
    }

    /// Requests turn out well or badly, and a worker may say so.
    fn fare(&mut self) {
        self.kind = Kind::Outcome;
        // Of the replaced as well: what ran on them still ends.
        let ids: Vec<BackendId> = self.seen.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let current = self.backends();
        let id = match current.is_empty() || self.rng.below(20) == 0 {
            true => *pick(&mut self.rng, &ids),
            false => pick(&mut self.rng, &current).id,
        };
        let rng = &mut self.rng;
        if rng.below(20) == 0 {
            self.badness.insert(id, *pick(rng, &[0, 0, 50, 95, 100]));
        }
        let badness = *self.badness.entry(id).or_insert_with(|| *pick(rng, &[0, 50, 95, 100]));
        for _ in 0..1 + rng.below(12) {
            let outcome = match (rng.below(100) < badness, rng.below(3)) {
                (false, _) => Outcome::Passed,
                (true, 0) => Outcome::Failed,
                (true, _) if badness == 100 => Outcome::ConnectFailed,
                (true, _) => Outcome::Failed,
            };
            let cell = &self.seen[&id].1.cell(index(rng, 2)).outcomes;
            match outcome {
                Outcome::Passed => cell.pass(),
                Outcome::Failed => cell.fail(),
                Outcome::ConnectFailed => cell.fail_connect(),
            }
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{id:?} {outcome:?}"));
            }
            self.conduct.count(id, outcome);
        }
        match rng.below(3) {
            0 => self.handle(Input::Reported(Report::Failing(id))),
            1 => self.handle(Input::Reported(Report::ConnectFailed(id))),
            _ => {}
        }
    }

    /// A worker has walked over the streams of some backends.
    fn sound(&mut self) {
        let backends = self.backends();
        let rng = &mut self.rng;
        // Most speak, or nobody would be silent alone.
        let silent_one = (rng.below(2) == 0).then(|| index(rng, backends.len().max(1)));
        for (n, Backend { id, stats, .. }) in backends.iter().enumerate() {
            let Some(sound) = self.conduct.sound(*id) else { continue };
            let judged = rng.below(12);
            let silent = match silent_one == Some(n) {
                true => judged - rng.below(3).min(judged),
                false => rng.below(3).min(judged),
            };
            let worker = index(rng, 2);
            stats.cell(worker).silence.set(judged, silent);
            sound.on_workers[worker] = (judged, silent);
            for _ in 0..rng.below(4).saturating_sub(2) * rng.below(10) {
                stats.cell(worker).silence.resume();
                sound.resumed += 1;
            }
            if let Some(trace) = &mut self.trace {
                trace.push(format!("{id:?} sounds {sound:?}"));
            }
        }
    }

    fn begin_or_end_exchange(&mut self) {
        let backends = self.backends();
        if self.rng.below(4) == 0 {
            return self.begin_or_end_session(&backends);
        }
        if self.rng.below(2) == 0 && !self.running.is_empty() {
            let at = index(&mut self.rng, self.running.len());
            self.running.swap_remove(at).leave();
        } else if !backends.is_empty() {
            let stats = Arc::clone(&pick(&mut self.rng, &backends).stats);
            stats.enter();
            self.running.push(stats);
        }
    }

    fn begin_or_end_session(&mut self, backends: &[Backend]) {
        let worker = index(&mut self.rng, 2);
        if self.rng.below(2) == 0 && !self.sessions.is_empty() {
            let at = index(&mut self.rng, self.sessions.len());
            self.sessions.swap_remove(at).cell(worker).sessions_closed.add(1);
        } else if !backends.is_empty() {
            let stats = Arc::clone(&pick(&mut self.rng, backends).stats);
            stats.cell(worker).sessions_opened.add(1);
            self.sessions.push(stats);
        }
    }

    fn pass_time(&mut self) {
        let ms = match self.rng.below(20) {
            0 => self.rng.below(7_200_000),
            1..10 => self.rng.below(10_000),
            _ => self.rng.below(500),
        };
        let end = self.now + Duration::from_millis(ms);
        // Looks at the counts come each second, which is too often for hours.
        let is_long = ms > 60_000 && self.scenario.settings.outliers.is_some();
        let is_jump = self.rng.below(4) == 0 || is_long;
        self.note(|| format!("-- {ms} ms{}", if is_jump { ", in one jump" } else { "" }));
        if is_jump {
            self.now = end;
            self.tick();
        } else {
            while let Some(at) = self.plane.poll_timeout().filter(|at| *at <= end) {
                self.now = self.now.max(at);
                self.tick();
            }
            self.now = end;
        }
    }

    fn tick(&mut self) {
        let was = self.backends();
        self.plane.handle_timeout(self.now);
        self.collect();
        self.read_all_if_due(&was);
        if let Some(at) = self.plane.poll_timeout() {
            assert!(at > self.now, "a timeout that is not over after it was handled");
        }
        self.note_idle();
    }

    fn rare(&mut self) {
        match self.rng.below(10) {
            8.. if !self.seen.is_empty() => {
                let ids: Vec<BackendId> = self.seen.keys().copied().collect();
                let backend = *pick(&mut self.rng, &ids);
                let scopes = [None, Some(DrainScope::Instance), Some(DrainScope::Address)];
                let order = *pick(&mut self.rng, &scopes);
                if self.backends().iter().any(|b| b.id == backend) {
                    self.patients.get_mut(&backend).unwrap().order = order;
                }
                self.handle(Input::DrainOrdered { backend, order });
            }
            0 => {
                self.shutdowns += 1;
                self.handle(Input::Shutdown);
                assert_eq!(self.is_over, self.shutdowns > 1);
            }
            1 if !self.seen.is_empty() => {
                // A probe that nobody started, or that ended before.
                let ids: Vec<BackendId> = self.seen.keys().copied().collect();
                let backend = *pick(&mut self.rng, &ids);
                if !self.probes.contains(&backend) {
                    let verdict = self.verdict();
                    self.handle(Input::Probed { backend, verdict });
                }
            }
            _ => {
                let open = self.rng.below(3);
                let newest = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.version.0);
                let applied = Version(newest - self.rng.below(2).min(newest));
                self.handle(Input::ConnectionsOpen { open, applied });
            }
        }
    }

    /// Since when each leaving backend has not been needed.
    fn note_idle(&mut self) {
        let mut idle_since = BTreeMap::new();
        for backend in self.backends() {
            if backend.presence == Presence::Leaving && !self.is_needed(&backend) {
                let since = self.idle_since.get(&backend.id).copied().unwrap_or(self.now);
                idle_since.insert(backend.id, since);
            }
        }
        self.idle_since = idle_since;
    }

    fn check(&mut self) {
        // After the end nothing more is done, so nothing more can be expected.
        if self.is_over {
            return;
        }
        self.note_idle();
        let backends = self.backends();
        let mut addresses = BTreeSet::new();
        for backend in &backends {
            assert!(addresses.insert(backend.address), "one backend per address");
            let patient = &self.patients[&backend.id];
            assert_eq!(backend.health, patient.health, "{backend:?}");
            assert_eq!(backend.hints, patient.hints, "{backend:?}");
            assert_eq!(backend.draining, patient.draining(), "{backend:?}");
            let is_free = backend.presence == Presence::Present
                && backend.draining.is_none()
                && backend.initialisation == Initialisation::Settled;
            let is_good = backend.health == Health::Healthy && is_free;
            let is_in = backend.standing == Standing::Admitted;
            assert_eq!(backend.takes_new_work(), is_good && is_in, "{backend:?}");
            if backend.presence == Presence::Leaving {
                assert!(!backend.takes_new_work());
                let is_kept = backend.stats.in_flight() == 0
                    && patient.left.is_some_and(|left| self.now - left > 5 * SECOND);
                if is_kept {
                    self.covered.insert("kept_for_sessions");
                }
            }
            if backend.initialisation == Initialisation::Pending {
                assert!(self.is_initialised && !backend.takes_new_work());
            }
            if let Some(since) = self.idle_since.get(&backend.id) {
                assert!(self.now - *since <= 2 * SECOND, "{backend:?} is not needed any more");
            }
        }
        let (present, wanted) = (self.present(), self.wanted());
        assert!(present.is_superset(&wanted), "missing: {present:?} {wanted:?}");
        if self.scenario.has_srv {
            let extra: Vec<_> = present.difference(&wanted).collect();
            assert!(extra.iter().all(|a| self.srv_addresses.contains(a)), "{extra:?}");
        } else {
            assert_eq!(present, wanted);
        }
        self.check_panic();
        let is_probe = self.kind == Kind::Probe;
        self.conduct.check(&backends, self.now, is_probe);
        if self.kind == Kind::Outcome {
            self.conduct.check_somebody_is_left(&backends);
        }
        let counters = self.plane.counters();
        assert_eq!(counters.ejections.iter().sum::<u64>(), self.conduct.ejections);
        assert_eq!(counters.ejections_withheld, self.conduct.withheld);
        assert_eq!(counters.publishes, self.snapshot.as_ref().map_or(0, |s| s.version.0));
        assert_eq!(counters.discovery_operations, self.answered);
        assert_eq!(
            counters.probes_passed + counters.probes_failed.iter().sum::<u64>(),
            self.probed
        );
    }

    /// What is overlooked follows from the picture alone.
    fn check_panic(&self) {
        let Some(snapshot) = &self.snapshot else { return };
        let policy = self.scenario.settings.panic;
        let may = |b: &&Backend| {
            b.presence == Presence::Present
                && b.draining.is_none()
                && b.initialisation == Initialisation::Settled
                && b.health != Health::Unprobed
        };
        let judged: Vec<&Backend> = snapshot.backends.iter().filter(may).collect();
        let healthy: Vec<_> = judged.iter().filter(|b| b.health == Health::Healthy).collect();
        let taking = healthy.iter().filter(|b| b.standing == Standing::Admitted).count();
        let whole = match policy.scope {
            PanicScope::Ejections => healthy.len(),
            PanicScope::Everything => judged.len(),
        };
        let too_few = |n: usize| n * 100 < whole * usize::from(policy.threshold_percent);
        let (want, used) = match (too_few(taking), too_few(healthy.len())) {
            (false, _) => (Panic::Off, taking),
            (true, false) => (Panic::Ejections, healthy.len()),
            (true, true) => (Panic::Everything, judged.len()),
        };
        assert_eq!(snapshot.panic, want);
        assert_eq!(snapshot.health_counts().usable, used);
    }

    /// The process can always be ended, whatever state it is in.
    fn end(&mut self) {
        for stats in std::mem::take(&mut self.running) {
            stats.leave();
        }
        for _ in 0..2 {
            if !self.is_over {
                self.shutdowns += 1;
                self.handle(Input::Shutdown);
            }
        }
        assert!(self.is_over);
        assert_eq!(self.plane.poll_timeout(), None);
    }
}

/// A picture in a line of reasonable length.
fn shown(snapshot: &Snapshot) -> String {
    let Snapshot { version, phase, panic, backends, .. } = snapshot;
    let backend = |b: &Backend| {
        let Backend { id, health, presence, draining, standing, .. } = b;
        format!("{} {health:?} {presence:?} {draining:?} {standing:?}", id.0)
    };
    let backends: Vec<String> = backends.iter().map(backend).collect();
    format!("Publish {} {phase:?} {panic:?} [{}]", version.0, backends.join(", "))
}

fn hints(rng: &mut Rng) -> Hints {
    Hints {
        weight_percent: (rng.below(4) == 0).then(|| *pick(rng, &[0, 10, 100])),
        capacity: if rng.below(4) == 0 { NonZeroU32::new(number(rng, 1, 9)) } else { None },
        draining: rng.below(6) == 0,
    }
}

fn instance(rng: &mut Rng) -> InstanceId {
    InstanceId::parse(pick(rng, &["pod-1", "pod-2", "pod-3"]).as_bytes()).unwrap()
}

fn seeds() -> Vec<u64> {
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| {
            text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is not a number"))
        })
    };
    match number("LB_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("LB_SIM_RUNS").unwrap_or(RUNS)).collect(),
    }
}

/// Plays these seeds, and gives the names of what happened.
fn play_all(seeds: &[u64], start: Instant, is_traced: bool) -> BTreeSet<&'static str> {
    let play = |seed| {
        let mut run = Run::new(seed, start, is_traced);
        run.play();
        std::mem::take(&mut run.covered)
    };
    seeds.iter().flat_map(|seed| play(*seed)).collect()
}

#[test]
fn random_runs_agree_with_the_model() {
    let start = Instant::now();
    let seeds = seeds();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let is_traced = seeds.len() == 1;
    let covered: BTreeSet<_> = std::thread::scope(|scope| {
        let shares = seeds.chunks(seeds.len().div_ceil(threads));
        let playing: Vec<_> =
            shares.map(|share| scope.spawn(move || play_all(share, start, is_traced))).collect();
        // The run has said what failed.
        playing.into_iter().flat_map(|share| share.join().expect("a run failed")).collect()
    });
    if seeds.len() as u64 >= RUNS {
        // Weather that never blows proves nothing.
        let want = [
            "backend_discovered",
            "backend_left",
            "kept_for_sessions",
            "backend_returned",
            "backend_gone",
            "backend_draining",
            "backend_undrained",
            "backend_ejected",
            "streams_stalled",
            "backend_readmitted",
            "ejection_withheld",
            "panic_began",
            "panic_ended",
            "hint_ignored",
            "backend_healthy",
            "backend_unhealthy",
            "probe_failed",
            "instance_learned",
            "instance_changed",
            "instance_clash",
            "initialisation_learned",
            "initialisation_replayed",
            "initialisation_failed",
            "initialisation_excused",
            "healthy_changed",
            "resolved",
            "resolve_failed_kept",
            "resolve_empty_kept",
            "resolve_emptied",
            "name_empty",
            "drain_started",
            "accepting_stopped",
            "drain_finished",
        ];
        let missing: Vec<_> = want.iter().filter(|name| !covered.contains(**name)).collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

#[test]
fn equal_inputs_give_equal_outputs() {
    let start = Instant::now();
    for seed in seeds().into_iter().take(50) {
        let traces = [start, start + Duration::from_secs(86_400)].map(|start| {
            let mut run = Run::new(seed, start, true);
            run.play();
            run.trace.take().expect("it is traced")
        });
        for (one, other) in traces[0].iter().zip(&traces[1]) {
            assert_eq!(one, other, "LB_SIM_SEED={seed}");
        }
        assert_eq!(traces[0].len(), traces[1].len(), "LB_SIM_SEED={seed}");
    }
}
