//! Pure: the backends there are, who answers at each, and whether it is healthy.
//!
//! Owns identity: an address has one backend at a time, and another instance id at the same
//! address is another backend with a new [`BackendId`] and fresh counts.
//!
//! Invariants
//! - One backend per address; ids rise and are never used again.
//! - A backend that discovery drops is removed only when nothing runs on it, and it is not kept for
//!   its sessions: see `leaving`.
//! - Ejections are bounded: see `outliers`.
//! - Every backend that is probed either has a probe running or a time for the next one, and at
//!   most [`PROBES_RUNNING_MAX`] are running.

mod hints;
mod leaving;
mod outliers;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{PlaneEvent, claims::Claims, discovery::Share, journal::Journal};
use crate::{
    health::{
        HealthMachine, Outcome, Policy, ProbeFailure, ProbeVerdict, Transition,
        outlier::{self, OutlierMachine},
    },
    model::{
        Backend, BackendId, DrainCause, Health, Hints, Initialisation, InstanceId, Presence, Rng,
        Standing,
    },
    stats::BackendStats,
};

/// Probes that may be running at once. Each holds a descriptor and up to 80 KiB; and when a whole
/// subnet hangs, this many per timeout are still asked, oldest first.
const PROBES_RUNNING_MAX: usize = 128;

/// How often responses may change who answers at one address. An address in front of several
/// instances would otherwise become a new backend with every response.
const SEEN_CHANGE_SPACING: Duration = Duration::from_secs(1);

/// All backends.
#[derive(Debug)]
pub(super) struct Roster {
    entries: BTreeMap<BackendId, Entry>,
    by_address: BTreeMap<SocketAddr, BackendId>,
    claims: Claims,
    /// Those that waited for an initialisation when the last picture was made.
    uninitialised: BTreeSet<BackendId>,
    leaving: BTreeSet<BackendId>,
    schedule: BTreeSet<(Instant, BackendId)>,
    running: BTreeSet<BackendId>,
    next_id: u64,
    workers: usize,
    /// `None`: nobody is probed, everybody is healthy.
    policy: Option<Policy>,
    /// `None`: nobody is ejected.
    outlier_policy: Option<outlier::Policy>,
    /// How long those that left may be kept for their sessions. `None`: there are none.
    session_idle: Option<Duration>,
    /// Who is out, by when that ends.
    ejected: BTreeSet<(Instant, BackendId)>,
    /// Something that a snapshot shows has changed since [`Roster::take_changed`].
    is_changed: bool,
}

#[derive(Debug)]
struct Entry {
    backend: Backend,
    host: Option<Arc<str>>,
    /// Where its health is asked for, if its target says so.
    health_port: Option<NonZeroU16>,
    machine: Option<HealthMachine>,
    /// How often another process has taken this address.
    changes: u32,
    last_seen_change: Option<Instant>,
    is_fault_told: bool,
    is_hint_told: bool,
    outlier: OutlierMachine,
    /// It ought to be ejected, but too many are.
    is_ejection_withheld: bool,
    /// The operator wants it emptied.
    ordered_drain: Option<DrainScope>,
    /// Until when it is kept for sessions that nobody has shown yet, if it left and has a name.
    kept_until: Option<Instant>,
    /// Were it to leave, nothing would be left to wait for.
    looks_gone: bool,
}

/// What an operator named who wants a backend drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainScope {
    /// The process: whoever takes its address afterwards serves.
    Instance,
    /// The address: whoever answers there, until the order is taken back or discovery drops it.
    Address,
}

impl Entry {
    /// Who wants it emptied. The operator comes first: the backend cannot take that back.
    fn wanted_drain(&self) -> Option<DrainCause> {
        let hinted = self.backend.hints.wants_no_work().then_some(DrainCause::Backend);
        self.ordered_drain.map(|_| DrainCause::Operator).or(hinted)
    }
}

/// Where an instance id was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    HealthBody,
    Response,
}

impl Roster {
    pub(super) fn new(
        workers: usize,
        policy: Option<Policy>,
        outlier_policy: Option<outlier::Policy>,
        session_idle: Option<Duration>,
    ) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_address: BTreeMap::new(),
            claims: Claims::default(),
            uninitialised: BTreeSet::new(),
            leaving: BTreeSet::new(),
            schedule: BTreeSet::new(),
            running: BTreeSet::new(),
            next_id: 1,
            workers,
            policy,
            outlier_policy,
            session_idle,
            ejected: BTreeSet::new(),
            is_changed: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The backends as a snapshot shows them, in order of identity.
    pub(super) fn backends(&self) -> Vec<Backend> {
        self.entries.values().map(|entry| entry.backend.clone()).collect()
    }

    /// Whether a snapshot would differ from the one made at the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.is_changed)
    }

    /// Discovery names exactly these addresses.
    pub(super) fn reconcile(
        &mut self,
        addresses: BTreeMap<SocketAddr, Share>,
        now: Instant,
        journal: &mut Journal,
    ) {
        let unnamed: Vec<BackendId> = self
            .by_address
            .iter()
            .filter(|(address, _)| !addresses.contains_key(address))
            .map(|(_, id)| *id)
            .collect();
        for id in unnamed {
            self.leave(id, now, journal);
        }
        for (address, share) in addresses {
            match self.by_address.get(&address) {
                None => self.discover(address, share, now, journal),
                Some(id) => self.keep(*id, share, journal),
            }
        }
    }

    fn discover(&mut self, address: SocketAddr, share: Share, now: Instant, journal: &mut Journal) {
        let machine = self.policy.map(|_| HealthMachine::new(now));
        let id = self.insert(Entry {
            backend: Backend {
                id: BackendId(0),
                address,
                instance: None,
                health: machine.as_ref().map_or(Health::Healthy, HealthMachine::health),
                presence: Presence::Present,
                draining: None,
                standing: Standing::Admitted,
                hints: Hints::default(),
                // The plane puts it in where a snapshot is made.
                initialisation: Initialisation::Settled,
                weight: share.weight,
                priority: share.priority,
                stats: Arc::new(BackendStats::new(self.workers)),
            },
            host: share.host,
            health_port: share.health_port,
            machine,
            changes: 0,
            last_seen_change: None,
            is_fault_told: false,
            ordered_drain: None,
            is_hint_told: false,
            outlier: OutlierMachine::new(now),
            is_ejection_withheld: false,
            kept_until: None,
            looks_gone: false,
        });
        journal.event(PlaneEvent::BackendDiscovered { id, address });
    }

    fn keep(&mut self, id: BackendId, share: Share, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let backend = &mut entry.backend;
        (entry.host, entry.health_port) = (share.host, share.health_port);
        if (backend.weight, backend.priority) != (share.weight, share.priority) {
            (backend.weight, backend.priority) = (share.weight, share.priority);
            self.is_changed = true;
        }
        if backend.presence == Presence::Leaving {
            backend.presence = Presence::Present;
            (entry.kept_until, entry.looks_gone) = (None, false);
            self.is_changed = true;
            self.leaving.remove(&id);
            let address = backend.address;
            journal.event(PlaneEvent::BackendReturned { id, address });
            self.settle_claim(id, journal);
            self.end_order_for_address(id, journal);
        }
    }

    /// When [`Roster::next_probe`] has something to start.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let may_probe = self.running.len() < PROBES_RUNNING_MAX;
        self.schedule.first().filter(|_| may_probe).map(|(at, _)| *at)
    }

    /// The next backend to probe now, where it is, and the port to ask if its target names one. It
    /// counts as running until [`Roster::probed`].
    pub(super) fn next_probe(
        &mut self,
        now: Instant,
    ) -> Option<(BackendId, SocketAddr, Option<NonZeroU16>)> {
        self.timeout().filter(|at| *at <= now)?;
        let (_, id) = self.schedule.pop_first()?;
        let entry = self.entries.get_mut(&id)?;
        entry.machine.as_mut()?.begin(now);
        self.running.insert(id);
        Some((id, entry.backend.address, entry.health_port))
    }

    /// A probe ended.
    pub(super) fn probed(
        &mut self,
        id: BackendId,
        verdict: ProbeVerdict,
        now: Instant,
        rng: &mut Rng,
        journal: &mut Journal,
    ) {
        if !self.running.remove(&id) {
            return;
        }
        match verdict {
            Ok(_) => journal.counters.probes_passed += 1,
            Err(failure) => journal.counters.probes_failed[failure.index()] += 1,
        }
        // Who answered comes first: the verdict belongs to the process that gave it.
        let mut id = id;
        if let Ok(success) = &verdict {
            let began = self.entries.get(&id).and_then(|e| e.machine.as_ref()?.last_start());
            if let Some(instance) = &success.instance {
                id = self.learn(id, instance, Source::HealthBody, now, journal);
            }
            if let Some(fault) = success.ignored
                && let Some(entry) = self.entries.get_mut(&id)
                && !std::mem::replace(&mut entry.is_fault_told, true)
            {
                let address = entry.backend.address;
                journal.event(PlaneEvent::InstanceIgnored { address, fault });
            }
            self.take_hints(id, success, journal);
            self.readmit_after_probe(id, began, now, journal);
        }
        self.judge(id, verdict.err(), now, rng, journal);
    }

    fn judge(
        &mut self,
        id: BackendId,
        failure: Option<ProbeFailure>,
        now: Instant,
        rng: &mut Rng,
        journal: &mut Journal,
    ) {
        let Some(policy) = self.policy else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(machine) = &mut entry.machine else { return };
        if let Some(at) = machine.due() {
            self.schedule.remove(&(at, id));
        }
        let transition = match failure {
            None => machine.observe(Outcome::Passed, now, &policy, rng),
            Some(ProbeFailure::Local) => {
                machine.postpone(now, &policy, rng);
                None
            }
            Some(_) => machine.observe(Outcome::Failed, now, &policy, rng),
        };
        if let Some(at) = machine.due() {
            self.schedule.insert((at, id));
        }
        entry.looks_gone = leaving::looks_gone(entry.looks_gone, failure, machine.health());
        let backend = &mut entry.backend;
        if backend.health != machine.health() {
            backend.health = machine.health();
            self.is_changed = true;
        }
        let (address, instance) = (backend.address, backend.instance.clone());
        let failures = machine.failures_in_a_row();
        if let Some(reason) = failure
            && transition.is_none()
        {
            let is_counting = backend.health != Health::Unhealthy;
            journal.event(PlaneEvent::ProbeFailed {
                address,
                reason,
                in_a_row: failures,
                is_counting,
            });
        }
        match (transition, failure) {
            (Some(Transition::BecameHealthy), _) => {
                journal.event(PlaneEvent::BackendHealthy { id, address, instance });
            }
            (Some(Transition::BecameUnhealthy), Some(reason)) => {
                journal.event(PlaneEvent::BackendUnhealthy {
                    id,
                    address,
                    instance,
                    reason,
                    failures,
                });
            }
            (Some(Transition::BecameUnhealthy) | None, _) => {}
        }
    }

    /// The operator wants this backend drained, or no longer. An order that is in force already
    /// changes nothing but its scope.
    pub(super) fn order_drain(
        &mut self,
        id: BackendId,
        order: Option<DrainScope>,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.ordered_drain = order;
        self.settle_drain(id, journal);
    }

    /// A worker could not connect: asks the backend at once. Gives back the host to resolve anew.
    pub(super) fn connect_failed(&mut self, id: BackendId, now: Instant) -> Option<Arc<str>> {
        self.demand(id, now);
        let entry = self.entries.get_mut(&id)?;
        // Where nobody is asked nobody can say that it was a moment's weakness.
        entry.looks_gone |= entry.machine.is_none() && entry.kept_until.is_some();
        entry.host.clone()
    }

    /// A response named the instance that sent it.
    pub(super) fn instance_seen(
        &mut self,
        id: BackendId,
        instance: &InstanceId,
        now: Instant,
        journal: &mut Journal,
    ) {
        self.learn(id, instance, Source::Response, now, journal);
    }

    /// Asks every backend at once who it is.
    pub(super) fn demand_all(&mut self, now: Instant) {
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            self.demand(id, now);
        }
    }

    fn demand(&mut self, id: BackendId, now: Instant) {
        let Some(machine) = self.entries.get_mut(&id).and_then(|entry| entry.machine.as_mut())
        else {
            return;
        };
        if let Some(at) = machine.due() {
            self.schedule.remove(&(at, id));
        }
        machine.demand(now);
        if let Some(at) = machine.due() {
            self.schedule.insert((at, id));
        }
    }

    /// `instance` answered at the address of `id`. Gives back the backend that this is about: the
    /// same, or its successor.
    fn learn(
        &mut self,
        id: BackendId,
        instance: &InstanceId,
        source: Source,
        now: Instant,
        journal: &mut Journal,
    ) -> BackendId {
        let Some(entry) = self.entries.get_mut(&id) else { return id };
        let address = entry.backend.address;
        match &entry.backend.instance {
            Some(known) if known == instance => id,
            Some(known) => {
                let is_too_soon = |at: Instant| now < at + SEEN_CHANGE_SPACING;
                if source == Source::Response && entry.last_seen_change.is_some_and(is_too_soon) {
                    return id;
                }
                let old = known.clone();
                self.succeed(id, old, instance.clone(), source, now, journal)
            }
            None => {
                entry.backend.instance = Some(instance.clone());
                self.is_changed = true;
                self.claims.add(instance, id);
                let instance = instance.clone();
                journal.event(PlaneEvent::InstanceLearned { id, address, instance });
                self.settle_claim(id, journal);
                id
            }
        }
    }

    /// Another process has taken the address: a new backend replaces the old one at once. It
    /// inherits the verdict, because a response or a probe has just come from it.
    fn succeed(
        &mut self,
        id: BackendId,
        old: InstanceId,
        new: InstanceId,
        source: Source,
        now: Instant,
        journal: &mut Journal,
    ) -> BackendId {
        let Some(mut entry) = self.remove(id) else { return id };
        journal.counters.instance_changes += 1;
        entry.changes = entry.changes.saturating_add(1);
        entry.is_fault_told = false;
        entry.is_hint_told = false;
        // Nothing that is held against the old process, or that it said, is true of the new one.
        entry.outlier = OutlierMachine::new(now);
        entry.is_ejection_withheld = false;
        // Nor has it sessions, if its predecessor had left.
        entry.kept_until = None;
        entry.looks_gone = false;
        entry.backend.standing = Standing::Admitted;
        entry.backend.hints = Hints::default();
        if source == Source::Response {
            entry.last_seen_change = Some(now);
        }
        entry.backend.instance = Some(new.clone());
        entry.backend.stats = Arc::new(BackendStats::new(self.workers));
        if let Some(machine) = &mut entry.machine {
            machine.restart(now);
        }
        if entry.ordered_drain == Some(DrainScope::Instance) {
            entry.ordered_drain = None;
            entry.backend.draining = None;
        }
        let (address, changes) = (entry.backend.address, entry.changes);
        let id = self.insert(entry);
        journal.event(PlaneEvent::InstanceChanged { id, address, old, new, changes });
        if source == Source::Response {
            self.settle_drain(id, journal);
        }
        self.settle_claim(id, journal);
        id
    }

    /// Looks whether the instance of `id` is claimed by two backends that discovery names. One
    /// that is leaving does not count: an instance may move to another address.
    fn settle_claim(&mut self, id: BackendId, journal: &mut Journal) {
        let Some(instance) = self.entries.get(&id).and_then(|e| e.backend.instance.clone()) else {
            return;
        };
        let backend = |id: &BackendId| self.entries.get(id).map(|entry| &entry.backend);
        let counts = |id| backend(&id).is_some_and(|b| b.presence == Presence::Present);
        let clash = self.claims.new_clash(&instance, counts);
        if let Some((first, second)) = clash
            && let (Some(first), Some(second)) = (backend(&first), backend(&second))
        {
            journal.counters.instance_clashes += 1;
            let (first, second) = (first.address, second.address);
            journal.event(PlaneEvent::InstanceClash { instance, first, second });
        }
    }

    fn insert(&mut self, mut entry: Entry) -> BackendId {
        let id = BackendId(self.next_id);
        self.next_id += 1;
        entry.backend.id = id;
        self.by_address.insert(entry.backend.address, id);
        if let Some(instance) = &entry.backend.instance {
            self.claims.add(instance, id);
        }
        if entry.backend.presence == Presence::Leaving {
            self.leaving.insert(id);
        }
        if let Some(at) = entry.machine.as_ref().and_then(HealthMachine::due) {
            self.schedule.insert((at, id));
        }
        self.entries.insert(id, entry);
        self.is_changed = true;
        id
    }

    /// A probe of it that is running stays in `running` until it ends, because it still holds its
    /// descriptor; its verdict then finds nobody.
    fn remove(&mut self, id: BackendId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.by_address.remove(&entry.backend.address);
        self.leaving.remove(&id);
        if let Some(instance) = &entry.backend.instance {
            self.claims.remove(instance, id);
        }
        if let Some(at) = entry.machine.as_ref().and_then(HealthMachine::due) {
            self.schedule.remove(&(at, id));
        }
        if let Some(until) = entry.outlier.out_until() {
            self.ejected.remove(&(until, id));
        }
        self.is_changed = true;
        Some(entry)
    }

    #[cfg(debug_assertions)]
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.by_address.len(), self.entries.len(), "one backend per address");
        assert!(self.running.len() <= PROBES_RUNNING_MAX);
        assert!(self.schedule.len() <= self.entries.len());
        self.claims.check_invariants();
        self.check_ejections();
        for (id, entry) in &self.entries {
            let backend = &entry.backend;
            assert_eq!(backend.id, *id);
            assert!(id.0 < self.next_id);
            assert_eq!(self.by_address.get(&backend.address), Some(id));
            assert_eq!(backend.presence == Presence::Leaving, self.leaving.contains(id));
            assert_eq!(backend.draining, entry.wanted_drain());
            if let Some(instance) = &backend.instance {
                assert!(self.claims.has(instance, *id));
            }
            match &entry.machine {
                None => assert_eq!(backend.health, Health::Healthy),
                Some(machine) => {
                    assert_eq!(machine.health(), backend.health);
                    match machine.due() {
                        Some(at) => assert!(self.schedule.contains(&(at, *id))),
                        None => assert!(self.running.contains(id)),
                    }
                }
            }
        }
    }
}
