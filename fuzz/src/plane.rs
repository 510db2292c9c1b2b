//! Target `plane`: any order of DNS answers, probe results, reports, time and signals.
//!
//! Input: one octet that chooses the upstream, one the health policy, then operations, each an octet
//! with the octets that it asks for. In a build with debug assertions the plane checks its own
//! invariants behind every one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use arbitrary::Unstructured;
use stepflow_load_balancer::{
    health::{Expectation, Policy, ProbeFailure, ProbeSuccess, judge},
    model::{
        Backend, BackendId, Initialize, InstanceId, Phase, Presence, Recording, Report, Snapshot,
        StatusSet, Target, Version,
    },
    plane::{
        Absence, DrainTimes, Input, Output, PanicPolicy, PanicScope, Plane, PlaneEvent, Query,
        QueryKind, QuestionId, Refresh, ReplayFailure, Resolution, ResolveFailure, Service,
        Settings,
    },
    stats::BackendStats,
};

use super::Verdict;

const UPSTREAMS: [&str; 8] = [
    "workers:80",
    "10.0.0.1:80",
    "workers:80,others:80,10.0.0.1:80",
    "workers:80,workers:81",
    "srv:services",
    "srv:services,workers:80",
    "srv:services,srv:more",
    "WORKERS:80,workers.:80,[::1]:1",
];

const OPERATIONS_MAX: usize = 256;
const SECOND: Duration = Duration::from_secs(1);

/// The shortest interval that a policy here has, less its jitter; on demand it is a second. The
/// probe behind a first success comes at any time, so that backends that start together are not
/// asked together ever after.
const PROBE_SPACING_MIN: Duration = Duration::from_millis(900);

/// Properties: versions rise by one and nothing is published twice; a failure to resolve empties
/// nothing; of a backend one probe and of a question one asking runs at a time, and the next waits
/// its time; what runs on a backend keeps it; a timeout that was handled is over; nothing follows an
/// exit.
pub fn run(octets: &[u8]) -> Verdict {
    let mut input = Unstructured::new(octets);
    let start = Instant::now();
    let mut world = World::new(octet(&mut input), octet(&mut input), start);
    world.collect();
    for _ in 0..OPERATIONS_MAX {
        if input.is_empty() || world.is_over {
            break;
        }
        world.operate(&mut input);
        world.check();
    }
    if world.published > 1 { Verdict::Accepted } else { Verdict::Refused }
}

/// What `health_check_status` and `health_check_body` say unless they are set.
fn expected() -> Expectation {
    let statuses = StatusSet::parse("200-299").expect("the default");
    Expectation { statuses, body: String::new() }
}

fn octet(input: &mut Unstructured<'_>) -> u8 {
    input.arbitrary().unwrap_or_default()
}

fn pick<'a, T>(input: &mut Unstructured<'_>, from: &'a [T]) -> Option<&'a T> {
    from.get(usize::from(octet(input)) % from.len().max(1))
}

/// What the answers to one question have led to.
#[derive(Default)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    absences: u32,
}

impl Known {
    /// An answer replaces, three absences in a row empty, a failure does neither.
    fn learn(&mut self, resolution: &Resolution) {
        self.absences = match resolution {
            // The only addresses here that cannot be used.
            Resolution::Addresses { addresses, .. } if addresses[0].is_unspecified() => {
                self.absences + 1
            }
            Resolution::Addresses { addresses, .. } => {
                self.addresses = addresses.iter().copied().collect();
                0
            }
            Resolution::Absent(_) => self.absences + 1,
            Resolution::Failed(_) | Resolution::Services { .. } => 0,
        };
        if self.absences >= 3 {
            self.addresses.clear();
        }
    }
}

struct World {
    plane: Plane,
    has_health: bool,
    targets: Vec<Target>,
    known: BTreeMap<Query, Known>,
    now: Instant,
    asked_at: BTreeMap<QuestionId, Instant>,
    probed_at: BTreeMap<BackendId, [Option<Instant>; 2]>,
    questions: Vec<(QuestionId, Query)>,
    probes: Vec<BackendId>,
    replays: Vec<BackendId>,
    is_initialised: bool,
    ids: Vec<BackendId>,
    seen: BTreeMap<BackendId, SocketAddr>,
    running: Vec<Arc<BackendStats>>,
    snapshot: Arc<Snapshot>,
    published: u32,
    shutdowns: u32,
    is_over: bool,
}

impl World {
    fn new(upstream: u8, health: u8, now: Instant) -> Self {
        let upstream = UPSTREAMS[usize::from(upstream) % UPSTREAMS.len()];
        let number = |bits: u8| NonZeroU32::new(u32::from(bits & 3) + 1).expect("from one up");
        let policy = Policy {
            interval: SECOND * number(health >> 1).get(),
            interval_failing: SECOND * number(health >> 1).get(),
            max_failures: number(health >> 3),
            healthy_threshold: number(health >> 5),
        };
        let settings = Settings {
            targets: Target::parse_list(upstream).expect("upstreams"),
            refresh: Refresh { min: SECOND, max: 30 * SECOND },
            health: (health & 1 != 0).then_some(policy),
            outliers: None,
            panic: PanicPolicy { threshold_percent: 50, scope: PanicScope::Ejections },
            drain: DrainTimes { grace: 5 * SECOND, drain: 30 * SECOND },
            session_idle: None,
            workers: 2,
        };
        Self {
            plane: Plane::new(&settings, u64::from(health), now),
            has_health: settings.health.is_some(),
            targets: settings.targets,
            known: BTreeMap::new(),
            now,
            asked_at: BTreeMap::new(),
            probed_at: BTreeMap::new(),
            questions: Vec::new(),
            probes: Vec::new(),
            replays: Vec::new(),
            is_initialised: false,
            ids: Vec::new(),
            seen: BTreeMap::new(),
            running: Vec::new(),
            snapshot: Arc::new(Snapshot::empty()),
            published: 0,
            shutdowns: 0,
            is_over: false,
        }
    }

    fn operate(&mut self, input: &mut Unstructured<'_>) {
        match octet(input) % 16 {
            0..4 => self.answer(input),
            4..7 => self.end_probe(input),
            7 => self.report(input),
            8 => self.begin_exchange(input),
            9 => {
                if let Some(stats) = self.running.pop() {
                    stats.leave();
                }
            }
            10..12 => self.pass_time(Duration::from_millis(10 * u64::from(octet(input)))),
            12 => self.pass_time(SECOND * u32::from(octet(input))),
            13 => self.next_timeout(),
            14 => {
                let (open, old) = (u64::from(octet(input) % 3), u64::from(octet(input) % 2));
                let applied = Version(self.snapshot.version.0.saturating_sub(old));
                self.handle(Input::ConnectionsOpen { open, applied });
            }
            _ => {
                // Rare: most of what can happen happens before.
                if octet(input).is_multiple_of(8) {
                    self.shutdowns += 1;
                    self.handle(Input::Shutdown);
                    assert!(self.is_over || self.shutdowns == 1, "a second word ends it");
                }
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.plane.handle(input, self.now);
        self.collect();
    }

    fn collect(&mut self) {
        while let Some(output) = self.plane.poll_output() {
            assert!(!self.is_over, "{output:?} behind an exit");
            match output {
                Output::Resolve { question, query } => {
                    assert!(self.questions.iter().all(|(id, _)| *id != question), "asked twice");
                    let last = self.asked_at.insert(question, self.now);
                    assert!(last.is_none_or(|at| self.now >= at + SECOND), "asked too often");
                    self.questions.push((question, query));
                    assert!(self.questions.len() <= 32, "too many questions at once");
                }
                Output::Probe { backend, address, .. } => {
                    assert!(self.has_health && !self.probes.contains(&backend), "probed twice");
                    assert_eq!(self.seen.get(&backend), Some(&address), "probes a stranger");
                    let starts = self.probed_at.entry(backend).or_default();
                    let is_due = starts[1].is_none_or(|at| self.now >= at + PROBE_SPACING_MIN);
                    assert!(is_due, "probed too often");
                    *starts = [Some(self.now), starts[0]];
                    self.probes.push(backend);
                }
                Output::Replay(replay) => {
                    assert_eq!(self.seen.get(&replay.backend), Some(&replay.address), "a stranger");
                    assert!(self.is_initialised && !self.replays.contains(&replay.backend));
                    self.replays.push(replay.backend);
                }
                Output::Publish(snapshot) => self.publish(snapshot),
                Output::Event(PlaneEvent::InitialisationLearned { .. }) => {
                    self.is_initialised = true;
                }
                Output::Event(_) => {}
                Output::Exit(_) => {
                    assert!(self.shutdowns > 0, "nobody said to stop");
                    self.is_over = true;
                }
            }
        }
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        let before = std::mem::replace(&mut self.snapshot, Arc::clone(&snapshot));
        self.published += 1;
        assert_eq!(snapshot.version, before.version.next(), "versions rise by one");
        assert!(snapshot.phase >= before.phase, "phases move forward");
        assert!(snapshot.backends.is_sorted_by_key(|backend| backend.id));
        let shown = |snapshot: &Snapshot| {
            let Snapshot { phase, initialisation, backends, .. } = snapshot;
            format!("{phase:?} {initialisation:?} {backends:?}")
        };
        assert!(self.published == 1 || shown(&snapshot) != shown(&before), "nothing changed");
        for (at, backend) in snapshot.backends.iter().enumerate() {
            let others = &snapshot.backends[at + 1..];
            assert!(
                others.iter().all(|other| other.address != backend.address),
                "an address twice"
            );
            let known = self.seen.insert(backend.id, backend.address);
            match known {
                Some(address) => assert_eq!(address, backend.address, "an id moved"),
                None => {
                    assert!(self.ids.last().is_none_or(|last| *last < backend.id), "ids rise");
                    assert_eq!(backend.stats.in_flight(), 0);
                    self.ids.push(backend.id);
                }
            }
        }
        for old in &before.backends {
            let same = snapshot.backends.iter().find(|backend| backend.id == old.id);
            let successor = snapshot.backends.iter().find(|other| other.address == old.address);
            let may_go = old.stats.in_flight() == 0 || successor.is_some();
            assert!(same.is_some() || may_go, "{old:?} went while something runs on it");
            assert!(same.is_none_or(|same| Arc::ptr_eq(&same.stats, &old.stats)), "counts lost");
        }
    }

    fn answer(&mut self, input: &mut Unstructured<'_>) {
        if self.questions.is_empty() {
            return;
        }
        let at = usize::from(octet(input)) % self.questions.len();
        let (question, query) = self.questions.swap_remove(at);
        let resolution = resolution(input, query.kind);
        let is_failure = matches!(resolution, Resolution::Failed(_));
        let before = self.present();
        self.known.entry(query).or_default().learn(&resolution);
        self.handle(Input::Resolved { question, resolution });
        let after = self.present();
        assert!(!is_failure || before.is_empty() || !after.is_empty(), "a failure emptied the set");
        if let Some(wanted) = self.wanted()
            && !self.is_over
        {
            assert_eq!(after, wanted, "not what the answers say");
        }
    }

    /// The addresses that follow from all answers so far. SRV answers have an order in which old
    /// hosts retire; for them that is left to the plane's own invariants.
    fn wanted(&self) -> Option<BTreeSet<SocketAddr>> {
        let mut wanted = BTreeSet::new();
        for target in &self.targets {
            match target {
                Target::Address { address, .. } => drop(wanted.insert(*address)),
                Target::Name { host, port, .. } => {
                    let host = host.to_ascii_lowercase();
                    let known = self.known.iter().filter(|(query, _)| *query.name == *host);
                    let addresses = known.flat_map(|(_, known)| &known.addresses);
                    wanted.extend(addresses.map(|ip| SocketAddr::new(*ip, *port)));
                }
                Target::Srv { .. } => return None,
            }
        }
        Some(wanted)
    }

    fn present(&self) -> BTreeSet<SocketAddr> {
        let is_present = |backend: &&Backend| backend.presence == Presence::Present;
        self.snapshot.backends.iter().filter(is_present).map(|b| b.address).collect()
    }

    fn end_probe(&mut self, input: &mut Unstructured<'_>) {
        if self.probes.is_empty() {
            return;
        }
        let at = usize::from(octet(input)) % self.probes.len();
        let backend = self.probes.swap_remove(at);
        let verdict = match octet(input) % 8 {
            0 => Err(ProbeFailure::Refused),
            1 => Err(ProbeFailure::ResponseTimeout),
            2 => Err(ProbeFailure::Local),
            3 => Ok(ProbeSuccess::default()),
            4 => judge(&expected(), 200, br#"{"status":"healthy","instanceId":"a b"}"#),
            // The body of a health check as it comes over the wire.
            5 => {
                let length = usize::from(octet(input)).min(input.len());
                judge(&expected(), 200, input.bytes(length).unwrap_or_default())
            }
            _ => Ok(ProbeSuccess {
                instance: Some(instance(input)),
                ignored: None,
                ..ProbeSuccess::default()
            }),
        };
        self.handle(Input::Probed { backend, verdict });
    }

    fn report(&mut self, input: &mut Unstructured<'_>) {
        let kind = octet(input);
        if kind >= 0x80 {
            return self.initialise(input, kind);
        }
        // Any backend that ever was, and one that never was: reports travel slowly.
        let id = pick(input, &self.ids).copied().unwrap_or(BackendId(u64::MAX));
        let report = match kind % 3 {
            0 => Report::InstanceUnknown,
            1 => Report::ConnectFailed(id),
            _ => Report::InstanceSeen(id, instance(input)),
        };
        self.handle(Input::Reported(report));
    }

    /// A client's handshake, or the end of a replay.
    fn initialise(&mut self, input: &mut Unstructured<'_>, kind: u8) {
        let client = IpAddr::from([10, 1, 0, kind >> 4 & 1]);
        let request = Recording::of(b"request");
        let report = match kind & 3 {
            0 => {
                let by = pick(input, &self.ids).copied().unwrap_or(BackendId(u64::MAX));
                let terms = Arc::from(if kind & 4 == 0 { "a" } else { "b" });
                Report::InitializeAnswered(by, Box::new(Initialize { client, terms, request }))
            }
            1 => Report::InitializedReceived { client, request },
            _ => {
                let Some(backend) = self.replays.pop() else { return };
                let outcome = if kind & 4 == 0 { Ok(()) } else { Err(ReplayFailure::Refused) };
                return self.handle(Input::Replayed { backend, outcome });
            }
        };
        self.handle(Input::Reported(report));
    }

    fn begin_exchange(&mut self, input: &mut Unstructured<'_>) {
        if let Some(backend) = pick(input, &self.snapshot.backends) {
            backend.stats.enter();
            self.running.push(Arc::clone(&backend.stats));
        }
    }

    fn pass_time(&mut self, time: Duration) {
        self.now += time;
        self.plane.handle_timeout(self.now);
        self.collect();
        self.nothing_is_due();
    }

    fn next_timeout(&mut self) {
        if let Some(at) = self.plane.poll_timeout() {
            self.pass_time(at.saturating_duration_since(self.now));
        }
    }

    /// Otherwise the shell would call again and again.
    fn nothing_is_due(&self) {
        let next = self.plane.poll_timeout();
        assert!(next.is_none_or(|at| at > self.now), "a timeout that is not over");
        assert!(next.is_none() || !self.is_over);
    }

    fn check(&self) {
        assert!(self.snapshot.phase == Phase::Serving || self.shutdowns > 0);
        let (health, present) = (self.snapshot.health_counts(), self.present());
        assert_eq!(health.total, present.len());
        assert!(health.healthy <= health.total);
        let takes_all = !self.has_health && !self.is_initialised;
        assert!(!takes_all || self.is_over || health.healthy == health.total);
    }
}

fn instance(input: &mut Unstructured<'_>) -> InstanceId {
    let name = ["a", "b", "c", "pod-1-0a1b2c3d"][usize::from(octet(input) % 4)];
    InstanceId::parse(name.as_bytes()).expect("an id")
}

fn resolution(input: &mut Unstructured<'_>, kind: QueryKind) -> Resolution {
    let choice = octet(input);
    let ttl = SECOND * [0, 1, 5, 30, 3600, u32::MAX][usize::from(choice >> 5) % 6];
    let count = usize::from(choice >> 3 & 3) + 1;
    match choice & 7 {
        0 => Resolution::Failed(ResolveFailure::Timeout),
        1 => Resolution::Failed(ResolveFailure::ServerFailure),
        2 => Resolution::Absent(Absence::NoSuchName),
        3 => Resolution::Absent(Absence::NoRecords),
        // What the server should not have sent for this question.
        4 => Resolution::Addresses { addresses: vec![IpAddr::from([0, 0, 0, 0])], ttl },
        _ => match kind {
            QueryKind::A | QueryKind::Aaaa => {
                let is_v4 = kind == QueryKind::A;
                let addresses = (0..count).map(|_| match octet(input) % 8 {
                    last if is_v4 => IpAddr::from([10, 0, 0, last]),
                    last => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
                });
                Resolution::Addresses { addresses: addresses.collect(), ttl }
            }
            QueryKind::Srv => {
                let services = (0..count).map(|_| {
                    let bits = octet(input);
                    Service {
                        host: Arc::from(["a.", "b.", "C.", "."][usize::from(bits & 3)]),
                        port: [80, 81, 0, 80][usize::from(bits >> 2 & 3)],
                        priority: u16::from(bits >> 4 & 1),
                        weight: u16::from(bits >> 5),
                    }
                });
                Resolution::Services { services: services.collect(), ttl }
            }
        },
    }
}
