mod leaving;
mod outliers;
mod silence;

use std::{net::IpAddr, num::NonZeroU32};

use super::*;
use crate::{
    health::{ProbeFailure, ProbeSuccess},
    model::{Backend, DrainCause, Health, InstanceId, Phase, Presence},
};

const SECOND: Duration = Duration::from_secs(1);

/// A plane, a clock, and everything that came out.
struct World {
    plane: Plane,
    now: Instant,
    snapshots: Vec<Arc<Snapshot>>,
    events: Vec<PlaneEvent>,
    asked: Vec<(QuestionId, String)>,
    probes: Vec<(BackendId, SocketAddr)>,
    replays: Vec<Replay>,
    exit: Option<ExitReason>,
}

fn settings(upstream: &str) -> Settings {
    Settings {
        targets: Target::parse_list(upstream).unwrap(),
        refresh: Refresh { min: SECOND, max: 30 * SECOND },
        health: Some(Policy {
            interval: 10 * SECOND,
            interval_failing: 10 * SECOND,
            max_failures: NonZeroU32::new(3).unwrap(),
            healthy_threshold: NonZeroU32::MIN,
        }),
        outliers: None,
        panic: PanicPolicy { threshold_percent: 50, scope: PanicScope::Ejections },
        drain: DrainTimes { grace: 5 * SECOND, drain: 30 * SECOND },
        session_idle: None,
        workers: 2,
    }
}

fn unprobed(upstream: &str) -> Settings {
    Settings { health: None, ..settings(upstream) }
}

fn addresses(ips: &[&str]) -> Resolution {
    let addresses = ips.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect();
    Resolution::Addresses { addresses, ttl: 10 * SECOND }
}

fn services(records: &[(&str, u16, u16, u16)]) -> Resolution {
    let service = |&(host, port, priority, weight): &(&str, u16, u16, u16)| Service {
        host: Arc::from(host),
        port,
        priority,
        weight,
    };
    Resolution::Services { services: records.iter().map(service).collect(), ttl: 10 * SECOND }
}

const NO_RECORDS: Resolution = Resolution::Absent(Absence::NoRecords);
const NO_SUCH_NAME: Resolution = Resolution::Absent(Absence::NoSuchName);
const TIMEOUT: Resolution = Resolution::Failed(ResolveFailure::Timeout);

fn instance(id: &str) -> InstanceId {
    InstanceId::parse(id.as_bytes()).unwrap()
}

fn healthy_as(id: &str) -> ProbeVerdict {
    Ok(ProbeSuccess { instance: Some(instance(id)), ignored: None, ..ProbeSuccess::default() })
}

fn healthy() -> ProbeVerdict {
    Ok(ProbeSuccess::default())
}

fn refused() -> ProbeVerdict {
    Err(ProbeFailure::Refused)
}

impl World {
    fn new(settings: &Settings) -> Self {
        let now = Instant::now();
        let mut world = Self {
            plane: Plane::new(settings, 1, now),
            now,
            snapshots: Vec::new(),
            events: Vec::new(),
            asked: Vec::new(),
            probes: Vec::new(),
            replays: Vec::new(),
            exit: None,
        };
        world.collect();
        world
    }

    fn collect(&mut self) {
        while let Some(output) = self.plane.poll_output() {
            assert_eq!(self.exit, None, "nothing follows an exit");
            match output {
                Output::Resolve { question, query } => {
                    self.asked.push((question, format!("{} {}", query.kind, query.name)));
                }
                Output::Probe { backend, address, .. } => self.probes.push((backend, address)),
                Output::Replay(replay) => self.replays.push(replay),
                Output::Publish(snapshot) => self.snapshots.push(snapshot),
                Output::Event(event) => self.events.push(event),
                Output::Exit(reason) => self.exit = Some(reason),
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.plane.handle(input, self.now);
        self.collect();
    }

    /// Lets time pass, with every timeout that falls into it.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.plane.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.plane.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
    }

    fn has_asked(&self, question: &str) -> bool {
        self.asked.iter().any(|(_, asked)| asked == question)
    }

    /// Answers a question that is running, waiting for it if need be.
    fn answer(&mut self, question: &str, resolution: Resolution) {
        let deadline = self.now + 40 * SECOND;
        while !self.has_asked(question) {
            let at = self.plane.poll_timeout().expect("a timeout");
            assert!(at <= deadline, "{question} is not asked; running: {:?}", self.asked);
            let time = at.saturating_duration_since(self.now);
            self.pass(time);
        }
        let index = self.asked.iter().position(|(_, asked)| asked == question).unwrap();
        let (question, _) = self.asked.remove(index);
        self.handle(Input::Resolved { question, resolution });
    }

    /// Ends a probe of this address, waiting for it if need be.
    fn probe(&mut self, address: &str, verdict: ProbeVerdict) {
        let address: SocketAddr = address.parse().unwrap();
        let deadline = self.now + 40 * SECOND;
        while !self.probes.iter().any(|(_, probed)| *probed == address) {
            let at = self.plane.poll_timeout().expect("a timeout");
            assert!(at <= deadline, "{address} is not probed");
            self.pass(at.saturating_duration_since(self.now));
        }
        let index = self.probes.iter().position(|(_, probed)| *probed == address).unwrap();
        let (backend, _) = self.probes.remove(index);
        self.handle(Input::Probed { backend, verdict });
    }

    fn snapshot(&self) -> &Snapshot {
        self.snapshots.last().expect("a snapshot")
    }

    fn backend(&self, address: &str) -> &Backend {
        let address: SocketAddr = address.parse().unwrap();
        let mut found = self.snapshot().backends.iter().filter(|b| b.address == address);
        let backend = found.next().unwrap_or_else(|| panic!("{address} is not there"));
        assert!(found.next().is_none(), "one backend per address");
        backend
    }

    /// Addresses in the last snapshot, sorted.
    fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self.snapshots.last().map_or_else(Vec::new, |snapshot| {
            snapshot.backends.iter().map(|b| b.address.to_string()).collect()
        });
        addresses.sort();
        addresses
    }

    /// Names of the events since the last call.
    fn events(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.events).iter().map(PlaneEvent::name).collect()
    }
}

#[test]
fn a_literal_address_is_there_at_once_and_never_reaches_dns() {
    let mut world = World::new(&settings("127.0.0.1:80"));
    assert_eq!(world.addresses(), ["127.0.0.1:80"]);
    assert_eq!(world.backend("127.0.0.1:80").health, Health::Unprobed);
    world.pass(100 * SECOND);
    assert_eq!(world.asked, []);
}

#[test]
fn without_health_checks_every_backend_is_healthy_and_never_probed() {
    let mut world = World::new(&unprobed("127.0.0.1:80"));
    assert!(world.backend("127.0.0.1:80").takes_new_work());
    let id = world.backend("127.0.0.1:80").id;
    world.handle(Input::Reported(Report::ConnectFailed(id)));
    world.handle(Input::Reported(Report::InstanceUnknown));
    world.pass(100 * SECOND);
    assert_eq!(world.probes, []);
}

#[test]
fn each_family_is_judged_on_its_own() {
    let mut world = World::new(&unprobed("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1"]));
    world.answer("AAAA workers", addresses(&["fd00::1"]));
    assert_eq!(world.addresses(), ["10.0.0.1:80", "[fd00::1]:80"]);
    for _ in 0..10 {
        world.answer("AAAA workers", TIMEOUT);
        world.answer("A workers", addresses(&["10.0.0.2"]));
    }
    assert_eq!(world.addresses(), ["10.0.0.2:80", "[fd00::1]:80"]);
}

#[test]
fn a_family_that_never_had_records_is_normal_and_silent() {
    let mut world = World::new(&unprobed("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1"]));
    world.events();
    for _ in 0..5 {
        world.answer("AAAA workers", NO_RECORDS);
        world.answer("A workers", addresses(&["10.0.0.1"]));
    }
    assert_eq!(world.events(), [""; 0]);
    assert_eq!(world.addresses(), ["10.0.0.1:80"]);
}

#[test]
fn a_name_that_does_not_exist_is_said_once() {
    let mut world = World::new(&unprobed("workers:80"));
    for _ in 0..5 {
        world.answer("A workers", NO_SUCH_NAME);
        world.answer("AAAA workers", NO_SUCH_NAME);
    }
    assert_eq!(world.events(), ["name_empty"]);
    world.answer("A workers", addresses(&["10.0.0.1"]));
    assert_eq!(world.addresses(), ["10.0.0.1:80"], "and it heals");
}

#[test]
fn failure_keeps_the_last_good_set_for_ever() {
    let mut world = World::new(&unprobed("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    world.events();
    for _ in 0..20 {
        world.answer("A workers", TIMEOUT);
    }
    assert_eq!(world.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(world.events(), ["resolve_failed_kept"; 20]);
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    assert_eq!(world.events(), ["resolved"], "recovery is said even if nothing changed");
    assert_eq!(world.plane.counters().resolve_failures, 20);
    assert_eq!(world.plane.counters().discovery_operations, 22);
}

#[test]
fn absence_empties_only_the_third_time_in_a_row() {
    let good = || addresses(&["10.0.0.1"]);
    let cases: &[(&str, Vec<Resolution>, bool)] = &[
        ("two", vec![NO_SUCH_NAME, NO_SUCH_NAME], true),
        ("three", vec![NO_SUCH_NAME, NO_SUCH_NAME, NO_SUCH_NAME], false),
        ("three of both kinds", vec![NO_SUCH_NAME, NO_RECORDS, NO_SUCH_NAME], false),
        ("answer between", vec![NO_RECORDS, NO_RECORDS, good(), NO_RECORDS, NO_RECORDS], true),
        ("failure between", vec![NO_RECORDS, NO_RECORDS, TIMEOUT, NO_RECORDS], true),
        ("failures are no absences", vec![TIMEOUT, TIMEOUT, NO_RECORDS], true),
        ("unusable counts as none", vec![addresses(&["0.0.0.0"]); 3], false),
        ("wrong family counts as none", vec![addresses(&["fd00::1"]); 3], false),
    ];
    for (name, resolutions, is_kept) in cases {
        let mut world = World::new(&unprobed("workers:80"));
        world.answer("A workers", good());
        for resolution in resolutions {
            world.answer("A workers", resolution.clone());
        }
        assert_eq!(world.addresses() == ["10.0.0.1:80"], *is_kept, "{name}");
        let said = world.events.iter().any(|e| e.name() == "resolve_emptied");
        assert_eq!(said, !is_kept, "{name}");
    }
}

#[test]
fn refresh_follows_the_ttl_within_its_bounds() {
    let secs = Duration::from_secs_f64;
    for (ttl, low, high) in
        [(0.0, 1.0, 1.1), (5.0, 5.0, 5.5), (28.0, 27.2, 30.0), (3600.0, 27.2, 30.0)]
    {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let now = Instant::now();
            let query = Query { name: Arc::from("workers"), kind: QueryKind::A };
            let mut question = question::Question::new(query, now);
            question.begin(now);
            let resolution =
                Resolution::Addresses { addresses: vec![[10, 0, 0, 1].into()], ttl: secs(ttl) };
            let refresh = Refresh { min: SECOND, max: 30 * SECOND };
            question.take_in(resolution, &refresh, now, &mut rng, &mut Journal::default());
            let question::Clock::Due(at) = question.clock else { panic!("not due") };
            assert!((secs(low)..=secs(high)).contains(&(at - now)), "{ttl}: {:?}", at - now);
        }
    }
}

#[test]
fn retries_back_off_within_the_bounds() {
    let mut world = World::new(&unprobed("127.0.0.1:9,workers:80"));
    let mut last = world.now;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        world.answer("A workers", TIMEOUT);
        pauses.push((world.now - last).as_secs_f64());
        last = world.now;
    }
    let nominal = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0];
    for (pause, nominal) in pauses.iter().zip(nominal) {
        assert!((nominal * 0.9..=nominal * 1.11).contains(pause), "{pauses:?}");
    }
}

#[test]
fn duplicate_addresses_are_one_backend() {
    let mut world = World::new(&unprobed("10.0.0.1:80,Workers:80,workers:80,10.0.0.1:80,other:80"));
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.1", "10.0.0.2"]));
    world.answer("A other", addresses(&["10.0.0.2"]));
    assert_eq!(world.addresses(), ["10.0.0.1:80", "10.0.0.2:80"]);
}

#[test]
fn a_backend_that_one_of_two_names_drops_stays() {
    let mut world = World::new(&unprobed("workers:80,other:80"));
    world.answer("A workers", addresses(&["10.0.0.1"]));
    world.answer("A other", addresses(&["10.0.0.1"]));
    let id = world.backend("10.0.0.1:80").id;
    world.answer("A workers", addresses(&["10.0.0.2"]));
    assert_eq!(world.backend("10.0.0.1:80").id, id);
    assert_eq!(world.backend("10.0.0.1:80").presence, Presence::Present);
}

#[test]
fn srv_gives_port_priority_and_weight() {
    let mut world = World::new(&unprobed("srv:_http._tcp.x"));
    world.answer("SRV _http._tcp.x", services(&[("A.x.", 81, 0, 3), ("b.x.", 82, 1, 0)]));
    world.answer("A a.x.", addresses(&["10.0.0.1"]));
    world.answer("AAAA b.x.", addresses(&["fd00::2"]));
    assert_eq!(world.addresses(), ["10.0.0.1:81", "[fd00::2]:82"]);
    let a = world.backend("10.0.0.1:81");
    assert_eq!((a.priority, a.weight.get()), (0, 3));
    let b = world.backend("[fd00::2]:82");
    assert_eq!((b.priority, b.weight.get()), (1, 1));

    let id = a.id;
    world.answer("SRV _http._tcp.x", services(&[("a.x.", 81, 0, 5), ("b.x.", 82, 1, 0)]));
    let a = world.backend("10.0.0.1:81");
    assert_eq!((a.weight.get(), a.id), (5, id), "a new weight is not a new backend");
}

#[test]
fn srv_address_named_twice_takes_the_better_share() {
    let mut world = World::new(&unprobed("srv:x"));
    world.answer("SRV x", services(&[("a.", 80, 1, 9), ("b.", 80, 0, 2), ("c.", 80, 0, 3)]));
    for host in ["a.", "b.", "c."] {
        world.answer(&format!("A {host}"), addresses(&["10.0.0.1"]));
    }
    let backend = world.backend("10.0.0.1:80");
    assert_eq!((backend.priority, backend.weight.get()), (0, 3));
}

#[test]
fn srv_hosts_stay_until_their_successors_are_resolved() {
    let mut world = World::new(&unprobed("srv:x"));
    world.answer("SRV x", services(&[("old.", 80, 0, 0)]));
    world.answer("A old.", addresses(&["10.0.0.1"]));
    world.answer("AAAA old.", NO_RECORDS);
    world.answer("SRV x", services(&[("new.", 80, 0, 0)]));
    assert_eq!(world.addresses(), ["10.0.0.1:80"]);
    world.answer("A new.", TIMEOUT);
    world.answer("AAAA new.", NO_RECORDS);
    assert_eq!(world.addresses(), ["10.0.0.1:80"], "a failure does not end the old ones");
    world.answer("A new.", addresses(&["10.0.0.2"]));
    assert_eq!(world.addresses(), ["10.0.0.2:80"]);
    world.asked.clear();
    world.pass(60 * SECOND);
    assert!(!world.has_asked("A old."), "nobody asks for a host that is no longer needed");
}

#[test]
fn srv_target_dot_and_port_zero_are_no_service() {
    let mut world = World::new(&unprobed("srv:x"));
    world.answer("SRV x", services(&[(".", 0, 0, 0), ("a.", 0, 0, 0)]));
    assert_eq!(world.events(), ["name_empty"]);
    assert!(!world.has_asked("A a."));
}

#[test]
fn a_failed_connect_asks_dns_and_the_backend_at_once_but_not_more_than_once_a_second() {
    let mut world = World::new(&settings("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    world.answer("AAAA workers", NO_RECORDS);
    for address in ["10.0.0.1:80", "10.0.0.2:80"] {
        world.probe(address, healthy());
    }
    world.pass(SECOND);
    world.asked.clear();
    world.probes.clear();
    // Later, in a quiet moment.
    let quiet = world.now;
    while world.plane.poll_timeout().unwrap() <= world.now {
        world.pass(Duration::from_millis(1));
    }
    assert!(world.now - quiet < SECOND);
    let id = world.backend("10.0.0.1:80").id;
    for _ in 0..1000 {
        world.handle(Input::Reported(Report::ConnectFailed(id)));
    }
    assert_eq!(world.asked.len(), 2, "both families: {:?}", world.asked);
    assert_eq!(world.probes, [(id, "10.0.0.1:80".parse().unwrap())]);
    for _ in 0..1000 {
        world.answer("A workers", TIMEOUT);
        world.probe("10.0.0.1:80", healthy());
        world.handle(Input::Reported(Report::ConnectFailed(id)));
        if world.now - quiet > 10 * SECOND {
            return;
        }
        assert!(!world.has_asked("A workers"), "asked again within a second");
    }
    panic!("a thousand probes and questions in {:?}", world.now - quiet);
}

#[test]
fn an_unknown_instance_makes_everybody_say_who_they_are() {
    let mut world = World::new(&settings("10.0.0.1:80,10.0.0.2:80"));
    world.probe("10.0.0.1:80", healthy_as("a"));
    world.probe("10.0.0.2:80", healthy_as("b"));
    world.pass(Duration::from_millis(1001));
    world.probes.clear();
    world.handle(Input::Reported(Report::InstanceUnknown));
    assert_eq!(world.probes.len(), 2);
    world.probe("10.0.0.1:80", healthy_as("c"));
    assert_eq!(world.backend("10.0.0.1:80").instance, Some(instance("c")));
}

#[test]
fn health_follows_probes_and_is_published_at_its_threshold() {
    let mut world = World::new(&settings("10.0.0.1:80"));
    let address = "10.0.0.1:80";
    world.probe(address, refused());
    assert_eq!(world.backend(address).health, Health::Unprobed);
    world.probe(address, healthy_as("a"));
    assert!(world.backend(address).takes_new_work());
    assert_eq!(world.backend(address).instance, Some(instance("a")));
    let events = world.events();
    let want = [
        "backend_discovered",
        "probe_failed",
        "instance_learned",
        "backend_healthy",
        "healthy_changed",
    ];
    assert_eq!(events, want);
    let published = world.snapshots.len();
    world.probe(address, refused());
    world.probe(address, refused());
    assert_eq!(world.snapshots.len(), published, "nothing is published if nothing changed");
    world.probe(address, refused());
    assert_eq!(world.backend(address).health, Health::Unhealthy);
    assert_eq!(world.backend(address).instance, Some(instance("a")), "it keeps its name");
    world.probe(address, refused());
    let want =
        ["probe_failed", "probe_failed", "backend_unhealthy", "healthy_changed", "probe_failed"];
    assert_eq!(world.events(), want);
    let counters = world.plane.counters();
    assert_eq!(counters.probes_passed, 1);
    assert_eq!(counters.probes_failed[ProbeFailure::Refused.index()], 5);
}

#[test]
fn lack_of_our_own_descriptors_is_not_held_against_a_backend() {
    let mut world = World::new(&settings("10.0.0.1:80"));
    world.probe("10.0.0.1:80", healthy());
    for _ in 0..10 {
        world.probe("10.0.0.1:80", Err(ProbeFailure::Local));
    }
    assert!(world.backend("10.0.0.1:80").takes_new_work());
}

#[test]
fn an_idle_backend_that_leaves_dns_goes_at_once() {
    let mut world = World::new(&unprobed("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    world.events();
    world.answer("A workers", addresses(&["10.0.0.2"]));
    assert_eq!(world.addresses(), ["10.0.0.2:80"]);
    assert_eq!(world.events(), ["resolved", "backend_gone", "healthy_changed"]);
}

#[test]
fn a_busy_backend_that_leaves_dns_stays_reachable_until_it_is_idle() {
    let mut world = World::new(&unprobed("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1", "10.0.0.2"]));
    let stats = Arc::clone(&world.backend("10.0.0.1:80").stats);
    stats.enter();
    world.answer("A workers", addresses(&["10.0.0.2"]));
    let leaving = world.backend("10.0.0.1:80");
    assert_eq!(leaving.presence, Presence::Leaving);
    assert!(!leaving.takes_new_work());
    world.pass(10 * SECOND);
    assert_eq!(world.addresses().len(), 2);
    stats.leave();
    let idle = world.now;
    world.pass(SECOND);
    assert_eq!(world.addresses(), ["10.0.0.2:80"]);
    assert!(world.now - idle <= SECOND);
    assert_eq!(world.plane.next_leaving_check, None, "nobody leaves, nobody looks");
}

#[test]
fn a_leaving_backend_that_returns_keeps_its_identity_and_counts() {
    let mut world = World::new(&settings("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1"]));
    world.probe("10.0.0.1:80", healthy_as("a"));
    let before = world.backend("10.0.0.1:80").clone();
    before.stats.enter();
    for _ in 0..3 {
        world.answer("A workers", NO_RECORDS);
    }
    assert_eq!(world.backend("10.0.0.1:80").presence, Presence::Leaving);
    world.answer("A workers", addresses(&["10.0.0.1"]));
    let after = world.backend("10.0.0.1:80");
    assert_eq!((after.id, after.presence), (before.id, Presence::Present));
    assert!(Arc::ptr_eq(&after.stats, &before.stats));
    assert!(after.takes_new_work());
    assert!(world.events().contains(&"backend_returned"));
}

#[test]
fn another_instance_at_an_address_is_another_backend() {
    let mut world = World::new(&settings("10.0.0.1:80"));
    let address = "10.0.0.1:80";
    world.probe(address, healthy_as("a"));
    let old = world.backend(address).clone();
    old.stats.enter();
    world.probe(address, healthy_as("b"));
    let new = world.backend(address);
    assert!(new.id > old.id);
    assert_eq!(new.instance, Some(instance("b")));
    assert_eq!(new.stats.in_flight(), 0, "fresh counts");
    assert!(new.takes_new_work(), "the verdict is inherited");
    assert!(world.events().contains(&"instance_changed"));
    assert_eq!(world.plane.counters().instance_changes, 1);
    // What is still said about the old one reaches nobody.
    let published = world.snapshots.len();
    world.handle(Input::Reported(Report::InstanceSeen(old.id, instance("a"))));
    world.handle(Input::Probed { backend: old.id, verdict: refused() });
    assert_eq!(world.snapshots.len(), published);
}

#[test]
fn a_restart_seen_in_a_response_is_probed_at_once_and_keeps_the_verdict() {
    let mut world = World::new(&settings("10.0.0.1:80"));
    let address = "10.0.0.1:80";
    world.probe(address, healthy_as("a"));
    let old = world.backend(address).id;
    world.pass(SECOND);
    world.probes.clear();
    world.handle(Input::Reported(Report::InstanceSeen(old, instance("b"))));
    let new = world.backend(address);
    assert_eq!((new.instance.clone(), new.health), (Some(instance("b")), Health::Healthy));
    assert_eq!(world.probes, [(new.id, address.parse().unwrap())]);
}

#[test]
fn a_restart_while_a_probe_runs_does_not_lose_the_next_probe() {
    let mut world = World::new(&settings("10.0.0.1:80"));
    let address = "10.0.0.1:80";
    world.probe(address, healthy_as("a"));
    world.pass(12 * SECOND);
    let (old, _) = world.probes[0];
    world.handle(Input::Reported(Report::InstanceSeen(old, instance("b"))));
    world.pass(2 * SECOND);
    let new = world.backend(address).id;
    assert!(world.probes.iter().any(|(id, _)| *id == new));
    world.handle(Input::Probed { backend: old, verdict: refused() });
    assert_eq!(world.backend(address).health, Health::Healthy);
}

#[test]
fn responses_change_an_instance_at_most_once_a_second() {
    let mut world = World::new(&unprobed("10.0.0.1:80"));
    let address = "10.0.0.1:80";
    let first = world.backend(address).id;
    world.handle(Input::Reported(Report::InstanceSeen(first, instance("a"))));
    assert_eq!(world.backend(address).id, first, "the first name is no change");
    for round in 0..1000 {
        let id = world.backend(address).id;
        let seen = instance(if round % 2 == 0 { "b" } else { "a" });
        world.handle(Input::Reported(Report::InstanceSeen(id, seen)));
        world.pass(Duration::from_millis(10));
    }
    let changes = world.plane.counters().instance_changes;
    assert!((9..=10).contains(&changes), "{changes} in ten seconds");
    let last = world.events.iter().rev().find(|e| e.name() == "instance_changed");
    let Some(PlaneEvent::InstanceChanged { changes: counted, .. }) = last else { panic!() };
    assert_eq!(u64::from(*counted), changes);
}

#[test]
fn two_backends_with_one_instance_are_both_used_and_said_once() {
    let mut world = World::new(&settings("10.0.0.1:80,10.0.0.2:80,10.0.0.3:80"));
    for _ in 0..3 {
        for address in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"] {
            world.probe(address, healthy_as("same"));
        }
    }
    assert_eq!(world.snapshot().health_counts().healthy, 3);
    let events = world.events();
    assert_eq!(events.iter().filter(|name| **name == "instance_clash").count(), 1);
    assert_eq!(world.plane.counters().instance_clashes, 1);
    // Once it is over, the next one is news.
    world.probe("10.0.0.1:80", healthy_as("a"));
    world.probe("10.0.0.2:80", healthy_as("b"));
    world.probe("10.0.0.1:80", healthy_as("b"));
    assert_eq!(world.plane.counters().instance_clashes, 2);
}

#[test]
fn an_instance_that_moves_to_another_address_is_no_clash() {
    let mut world = World::new(&settings("workers:80"));
    world.answer("A workers", addresses(&["10.0.0.1"]));
    world.probe("10.0.0.1:80", healthy_as("a"));
    world.backend("10.0.0.1:80").stats.enter();
    world.answer("A workers", addresses(&["10.0.0.2"]));
    world.probe("10.0.0.2:80", healthy_as("a"));
    assert_eq!(world.addresses().len(), 2, "the old one is leaving");
    assert_eq!(world.plane.counters().instance_clashes, 0);
}

#[test]
fn an_unusable_instance_id_is_said_once_per_process() {
    let fault = crate::health::InstanceIdFault::NotText;
    let verdict =
        || Ok(ProbeSuccess { instance: None, ignored: Some(fault), ..ProbeSuccess::default() });
    let mut world = World::new(&settings("10.0.0.1:80"));
    for _ in 0..5 {
        world.probe("10.0.0.1:80", verdict());
    }
    let events = world.events();
    assert_eq!(events.iter().filter(|name| **name == "instance_ignored").count(), 1);
    assert!(world.backend("10.0.0.1:80").takes_new_work());
}

#[test]
fn shutdown_goes_through_its_phases() {
    let mut world = World::new(&unprobed("10.0.0.1:80"));
    let reading = |world: &World, open, version| Input::ConnectionsOpen {
        open,
        applied: Version(world.snapshot().version.0 - version),
    };
    world.handle(Input::Shutdown);
    assert_eq!(world.snapshot().phase, Phase::Unready);
    world.handle(reading(&world, 0, 0));
    world.handle(reading(&world, 0, 0));
    world.pass(Duration::from_millis(4999));
    assert_eq!(world.snapshot().phase, Phase::Unready, "the grace is for others to notice");
    world.pass(Duration::from_millis(1));
    assert_eq!(world.snapshot().phase, Phase::Draining);
    assert!(world.plane.is_draining());
    world.handle(reading(&world, 3, 0));
    world.handle(reading(&world, 0, 0));
    world.handle(reading(&world, 1, 0));
    world.handle(reading(&world, 0, 0));
    assert_eq!(world.exit, None, "one quiet reading is not enough");
    world.handle(reading(&world, 0, 0));
    assert_eq!(world.exit, Some(ExitReason::Drained));
    assert_eq!(world.plane.poll_timeout(), None);
    let want = ["drain_started", "accepting_stopped", "drain_finished"];
    assert_eq!(world.events()[2..], want);
}

#[test]
fn a_worker_that_has_not_stopped_accepting_keeps_the_process_alive() {
    let mut world = World::new(&unprobed("10.0.0.1:80"));
    world.handle(Input::Shutdown);
    world.pass(5 * SECOND);
    let before = Version(world.snapshot().version.0 - 1);
    for _ in 0..10 {
        world.handle(Input::ConnectionsOpen { open: 0, applied: before });
    }
    assert_eq!(world.exit, None);
    world.handle(Input::ConnectionsOpen { open: 7, applied: before });
    world.pass(30 * SECOND);
    assert_eq!(world.exit, Some(ExitReason::DrainTimeout { cut: 7 }));
}

#[test]
fn a_second_shutdown_ends_at_once() {
    for wait in [Duration::ZERO, 6 * SECOND] {
        let mut world = World::new(&unprobed("10.0.0.1:80"));
        world.handle(Input::Shutdown);
        world.pass(wait);
        world.handle(Input::Shutdown);
        assert_eq!(world.exit, Some(ExitReason::Forced { cut: 0 }));
        world.handle(Input::Shutdown);
        world.pass(100 * SECOND);
    }
}

#[test]
fn an_ordered_drain_ends_new_work_until_it_is_taken_back() {
    let mut world = World::new(&unprobed("10.0.0.1:80"));
    let id = world.snapshot().backends[0].id;
    let order = |order| Input::DrainOrdered { backend: id, order };
    let published = world.snapshots.len();
    world.handle(order(None));
    assert_eq!(world.snapshots.len(), published, "nothing was ordered, nothing changes");
    world.handle(order(Some(DrainScope::Address)));
    assert_eq!(world.snapshot().backends[0].draining, Some(DrainCause::Operator));
    assert_eq!(world.snapshot().health_counts(), HealthCounts { total: 1, healthy: 0, usable: 0 });
    world.handle(order(Some(DrainScope::Instance)));
    assert_eq!(world.snapshots.len(), published + 1, "an order in force is no news");
    world.handle(order(None));
    assert!(world.snapshot().backends[0].takes_new_work());
    assert_eq!(world.snapshots.len(), published + 2);
}

#[test]
fn a_drain_by_instance_ends_with_the_process_and_one_by_address_does_not() {
    for (scope, still) in [(DrainScope::Instance, false), (DrainScope::Address, true)] {
        let mut world = World::new(&unprobed("10.0.0.1:80"));
        let id = world.snapshot().backends[0].id;
        world.handle(Input::Reported(Report::InstanceSeen(id, instance("old"))));
        world.handle(Input::DrainOrdered { backend: id, order: Some(scope) });
        world.pass(2 * SECOND);
        world.handle(Input::Reported(Report::InstanceSeen(id, instance("new"))));
        let successor = &world.snapshot().backends[0];
        assert_ne!(successor.id, id);
        assert_eq!(successor.draining.is_some(), still, "{scope:?}");
    }
}

#[test]
fn no_grace_and_no_drain_end_at_once() {
    let drain = DrainTimes { grace: Duration::ZERO, drain: Duration::ZERO };
    let mut world = World::new(&Settings { drain, ..unprobed("10.0.0.1:80") });
    world.handle(Input::Shutdown);
    assert_eq!(world.exit, Some(ExitReason::DrainTimeout { cut: 0 }));
}

#[test]
fn versions_rise_by_one_from_one() {
    let mut world = World::new(&settings("10.0.0.1:80,10.0.0.2:80"));
    for address in ["10.0.0.1:80", "10.0.0.2:80"] {
        world.probe(address, healthy());
    }
    let versions: Vec<_> = world.snapshots.iter().map(|s| s.version.0).collect();
    assert_eq!(versions, [1, 2, 3]);
    assert_eq!(world.plane.counters().publishes, 3);
}

#[test]
fn ten_thousand_backends_stay_cheap_and_their_probes_spread() {
    let ips: Vec<_> = (0..10_000).map(|n| format!("10.0.{}.{}", n / 250, n % 250 + 1)).collect();
    let mut world = World::new(&settings("workers:80"));
    world.answer("A workers", addresses(&ips.iter().map(String::as_str).collect::<Vec<_>>()));
    // Every probe takes a millisecond, and DNS is quick as well.
    let mut starts = Vec::new();
    let begin = world.now;
    while world.now - begin < 40 * SECOND {
        for (backend, _) in std::mem::take(&mut world.probes) {
            starts.push(world.now - begin);
            world.handle(Input::Probed { backend, verdict: healthy() });
        }
        for (question, _) in std::mem::take(&mut world.asked) {
            world.handle(Input::Resolved { question, resolution: TIMEOUT });
        }
        world.pass(Duration::from_millis(1));
    }
    assert_eq!(world.snapshot().health_counts().healthy, 10_000);
    let publishes = world.plane.counters().publishes;
    assert!(publishes < 30, "{publishes} pictures of 10,000 backends for one start");
    let mut per_second = [0_usize; 40];
    for start in &starts {
        per_second[usize::try_from(start.as_secs()).unwrap().min(39)] += 1;
    }
    let settled = &per_second[12..];
    assert!(settled.iter().all(|n| (700..1500).contains(n)), "probes per second: {per_second:?}");
}

#[test]
fn at_most_so_many_probes_run_at_once() {
    let ips: Vec<_> = (0..400).map(|n| format!("10.0.{}.{}:80", n / 250, n % 250 + 1)).collect();
    let mut world = World::new(&settings(&ips.join(",")));
    assert_eq!(world.probes.len(), 128);
    world.pass(10 * SECOND);
    assert_eq!(world.probes.len(), 128, "and waiting starts no more");
    let (backend, _) = world.probes[0];
    world.handle(Input::Probed { backend, verdict: healthy() });
    assert_eq!(world.probes.len(), 129);
}
