//! Pure: one worker's copy of the backends, by slot.
//!
//! A slot is a small number that stays with a backend for as long as it is known *or* has exchanges
//! running on this worker; pools and guards are indexed by it.
//!
//! Invariants
//! - A slot's `in_flight` equals the exchanges that hold it, and is what this worker has written
//!   into its cell of the backend's counts.
//! - A backend that left takes no new exchange.
//! - A slot is given to another backend only when nobody holds it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::{Ordering::SeqCst, fence},
};

use crate::{
    balance::{Candidates, Picker},
    exchange::Tick,
    model::{
        Backend, BackendId, Health, HealthCounts, InitialisationProgress, InstanceId, Presence,
        Rng, Snapshot, Version,
    },
    stats::{BackendCell, BackendStats},
};

/// Index of a backend in one worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

/// How long a backend that refused a connection is avoided by this worker, if others will do. Long
/// enough to spare the next requests the wait, short enough not to overrule the health checks.
const AVOIDED_AFTER_CONNECT_FAILURE: std::time::Duration = std::time::Duration::from_secs(1);

/// The backends as this worker sees them.
#[derive(Debug)]
pub(super) struct BackendTable {
    worker: usize,
    version: Version,
    counts: HealthCounts,
    initialisation: InitialisationProgress,
    entries: Vec<Entry>,
    free: Vec<Slot>,
    by_id: HashMap<BackendId, Slot>,
    by_instance: HashMap<InstanceId, Slot>,
    /// Those that have told no instance: they are known by where they are.
    nameless: HashMap<SocketAddr, Slot>,
    /// Those that may take new work: healthy, present, and of the best priority that has any.
    eligible: Vec<Slot>,
    picker: Picker,
    rng: Rng,
}

#[derive(Debug)]
struct Entry {
    backend: Backend,
    in_flight: u32,
    is_known: bool,
    avoided_until: Tick,
    /// When the control thread may be told again that requests fail.
    told_until: Tick,
}

impl Entry {
    /// What runs on it, as far as we know.
    fn load(&self) -> u64 {
        let stats = &self.backend.stats;
        stats.in_flight() + stats.unseen_load.get()
    }

    /// It has as much to do as it says that it can.
    fn is_full(&self) -> bool {
        self.backend.hints.capacity.is_some_and(|most| self.load() >= u64::from(most.get()))
    }
}

/// Backends that this request has tried.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tried {
    slots: [Option<Slot>; 4],
    /// The request may begin a session, which counts against the backend that gets it.
    begins_session: bool,
}

impl Tried {
    /// Nobody, for a request that may begin a session.
    pub(super) fn for_session() -> Self {
        Self { begins_session: true, ..Self::default() }
    }

    /// All of them may be asked again.
    pub(super) fn forget(&mut self) {
        self.slots = Default::default();
    }

    /// Notes a backend. More than four are not tried per request (`exchange::may_retry`).
    pub(super) fn note(&mut self, slot: Slot) {
        if let Some(place) = self.slots.iter_mut().find(|place| place.is_none()) {
            *place = Some(slot);
        }
    }

    fn contains(&self, slot: Slot) -> bool {
        self.slots.contains(&Some(slot))
    }
}

struct View<'a> {
    entries: &'a [Entry],
    eligible: &'a [Slot],
    tried: &'a Tried,
    /// Backends avoided until later than this, and those that say that they are full, are excluded;
    /// `None` excludes only the tried.
    now: Option<Tick>,
    /// Backends that have no room are excluded too.
    room: Option<Room<'a>>,
    /// Backends with relatively more sessions than this one are excluded as well.
    fewest: Option<Sessions>,
}

/// What makes a backend full.
#[derive(Clone, Copy)]
pub(super) struct Room<'a> {
    /// Exchanges that may run on it.
    pub(super) requests_max: u64,
    /// Connections that may be open to it.
    pub(super) connections_max: u64,
    /// Whether one of these can be used again by this worker.
    pub(super) has_idle: &'a dyn Fn(Slot) -> bool,
}

impl Room<'_> {
    fn is_full(&self, slot: Slot, backend: &Backend) -> bool {
        backend.stats.in_flight() >= self.requests_max
            || (backend.stats.connections() >= self.connections_max && !(self.has_idle)(slot))
    }
}

/// Sessions of a backend and its weight.
#[derive(Clone, Copy)]
struct Sessions {
    count: u64,
    weight: u16,
}

impl Sessions {
    fn of(backend: &Backend) -> Self {
        Self { count: backend.stats.sessions(), weight: backend.weight.get() }
    }

    /// Whether it has more for its weight.
    fn exceeds(self, other: Self) -> bool {
        let scaled = |count: u64, weight: u16| u128::from(count) * u128::from(weight);
        scaled(self.count, other.weight) > scaled(other.count, self.weight)
    }
}

impl View<'_> {
    fn entry(&self, candidate: usize) -> &Entry {
        &self.entries[self.eligible[candidate].0 as usize]
    }

    /// The fewest sessions for its weight that any candidate has which is not excluded.
    fn fewest_sessions(&self) -> Option<Sessions> {
        let candidates = (0..self.count()).filter(|candidate| !self.is_excluded(*candidate));
        let sessions = candidates.map(|candidate| Sessions::of(&self.entry(candidate).backend));
        sessions.reduce(|best, other| if best.exceeds(other) { other } else { best })
    }
}

impl Candidates for View<'_> {
    fn count(&self) -> usize {
        self.eligible.len()
    }

    fn load(&self, candidate: usize) -> u64 {
        self.entry(candidate).load()
    }

    fn weight(&self, candidate: usize) -> u32 {
        self.entry(candidate).backend.weight_hundredths()
    }

    fn is_excluded(&self, candidate: usize) -> bool {
        self.tried.contains(self.eligible[candidate])
            || self.now.is_some_and(|now| {
                let entry = self.entry(candidate);
                entry.avoided_until > now || entry.is_full()
            })
            || self.room.is_some_and(|room| {
                room.is_full(self.eligible[candidate], &self.entry(candidate).backend)
            })
            || self
                .fewest
                .is_some_and(|fewest| Sessions::of(&self.entry(candidate).backend).exceeds(fewest))
    }
}

/// Of several backends that claim one instance id, the one with the smallest claim has it: an
/// instance that moved is found where it is, not where it was; among equals the oldest stays.
fn claim(backend: &Backend) -> (bool, bool, BackendId) {
    let is_present = backend.presence == Presence::Present;
    (!is_present, backend.health != Health::Healthy, backend.id)
}

impl BackendTable {
    /// A table of worker number `worker` that knows nobody.
    pub(super) fn new(worker: usize, picker: Picker, seed: u64) -> Self {
        Self {
            worker,
            version: Version::NONE,
            counts: HealthCounts::default(),
            initialisation: InitialisationProgress::default(),
            entries: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            by_instance: HashMap::new(),
            nameless: HashMap::new(),
            eligible: Vec::new(),
            picker,
            rng: Rng::new(seed),
        }
    }

    pub(super) fn counts(&self) -> HealthCounts {
        self.counts
    }

    /// Version of the snapshot that it shows.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// How far the newest initialisation has come.
    pub(super) fn initialisation(&self) -> InitialisationProgress {
        self.initialisation
    }

    /// Where a backend is, if it is still known.
    pub(super) fn slot_of(&self, id: BackendId) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    /// Takes over a snapshot. Backends that stay keep their slot and their counts. Returns the
    /// slots whose backend is no longer known: nothing idle may be kept for them.
    pub(super) fn apply(&mut self, snapshot: &Snapshot) -> Vec<Slot> {
        debug_assert!(snapshot.version > self.version, "a snapshot older than the table");
        self.version = snapshot.version;
        self.counts = snapshot.health_counts();
        self.initialisation = snapshot.initialisation;
        for entry in &mut self.entries {
            entry.is_known = false;
        }
        for backend in &snapshot.backends {
            self.upsert(backend);
        }
        let mut left = Vec::new();
        for (index, entry) in (0..).map(Slot).zip(&self.entries) {
            if !entry.is_known && self.by_id.get(&entry.backend.id) == Some(&index) {
                left.push(index);
            }
        }
        for slot in &left {
            let entry = &self.entries[slot.0 as usize];
            self.by_id.remove(&entry.backend.id);
            if entry.in_flight == 0 {
                self.free.push(*slot);
            }
        }
        self.index(snapshot);
        self.check_invariants();
        left
    }

    fn upsert(&mut self, backend: &Backend) {
        let entry = match self.by_id.get(&backend.id) {
            Some(slot) => &mut self.entries[slot.0 as usize],
            None => {
                let fresh = Entry {
                    backend: backend.clone(),
                    in_flight: 0,
                    is_known: true,
                    avoided_until: Tick(0),
                    told_until: Tick(0),
                };
                let slot = match self.free.pop() {
                    Some(slot) => {
                        self.entries[slot.0 as usize] = fresh;
                        slot
                    }
                    None => {
                        self.entries.push(fresh);
                        Slot(u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX))
                    }
                };
                self.by_id.insert(backend.id, slot);
                return;
            }
        };
        entry.is_known = true;
        entry.backend = backend.clone();
    }

    fn index(&mut self, snapshot: &Snapshot) {
        let best =
            snapshot.backends.iter().filter(|b| snapshot.is_usable(b)).map(|b| b.priority).min();
        self.eligible.clear();
        self.by_instance.clear();
        self.nameless.clear();
        for backend in &snapshot.backends {
            let slot = self.by_id[&backend.id];
            if snapshot.is_usable(backend) && Some(backend.priority) == best {
                self.eligible.push(slot);
            }
            if backend.instance.is_none() {
                self.nameless.insert(backend.address, slot);
            }
            if let Some(instance) = &backend.instance {
                let claims = self.by_instance.entry(instance.clone()).or_insert(slot);
                if claim(backend) < claim(&self.entries[claims.0 as usize].backend) {
                    *claims = slot;
                }
            }
        }
    }

    /// Chooses a backend for a request that any may serve; where there are bounds, one with room.
    /// For one that may begin a session, it is one of those with the fewest sessions: all are
    /// looked at, because a session is placed once, and stays where it is.
    pub(super) fn pick(
        &mut self,
        tried: &Tried,
        now: Tick,
        room: Option<Room<'_>>,
    ) -> Option<Slot> {
        let Self { entries, eligible, picker, rng, .. } = self;
        let mut view = View { entries, eligible, tried, now: Some(now), room, fewest: None };
        if tried.begins_session {
            view.fewest = view.fewest_sessions();
        }
        let picked = picker.pick(&view, rng).or_else(|| {
            view.fewest = None;
            // Who is only full will have room; waiting for that is better than asking the avoided.
            if view.room.take().is_some() && (0..view.count()).any(|i| !view.is_excluded(i)) {
                return None;
            }
            // Everybody refused a connection lately, or says that it is full: better such a backend
            // than none.
            (view.now, view.room) = (None, room);
            picker.pick(&view, rng)
        })?;
        Some(self.eligible[picked])
    }

    /// Whether anybody could take a request that these have not served, were they not full.
    pub(super) fn has_others_than(&self, tried: &Tried) -> bool {
        self.eligible.iter().any(|slot| !tried.contains(*slot))
    }

    /// The backend that answers under this instance id.
    pub(super) fn instance(&self, id: &str) -> Option<Slot> {
        self.by_instance.get(id).copied()
    }

    /// The backend at this address, if it has told no instance.
    pub(super) fn nameless(&self, address: SocketAddr) -> Option<Slot> {
        self.nameless.get(&address).copied()
    }

    /// Whoever is at this address. Looks at all of them.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&Backend> {
        let known = self.entries.iter().filter(|entry| entry.is_known);
        known.map(|entry| &entry.backend).find(|backend| backend.address == address)
    }

    /// The counts of a backend that is known.
    pub(super) fn stats_of(&self, id: BackendId) -> Option<&BackendStats> {
        let slot = self.by_id.get(&id)?;
        Some(&self.entries[slot.0 as usize].backend.stats)
    }

    /// The backend in a slot.
    pub(super) fn backend(&self, slot: Slot) -> &Backend {
        &self.entries[slot.0 as usize].backend
    }

    /// Whether the slot still belongs to a backend that is known.
    pub(super) fn is_known(&self, slot: Slot) -> bool {
        self.entries[slot.0 as usize].is_known
    }

    /// This backend refused a connection.
    pub(super) fn avoid(&mut self, slot: Slot, now: Tick) {
        self.entries[slot.0 as usize].avoided_until = now.after(AVOIDED_AFTER_CONNECT_FAILURE);
    }

    /// Whether the control thread is to be told that requests fail on this backend: a bad one would
    /// otherwise fill its queue.
    pub(super) fn may_tell_of(&mut self, slot: Slot, now: Tick) -> bool {
        let told_until = &mut self.entries[slot.0 as usize].told_until;
        let may_tell = *told_until <= now;
        if may_tell {
            *told_until = Tick(now.0.saturating_add(1));
        }
        may_tell
    }

    /// Counts an exchange against the slot.
    pub(super) fn acquire(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.in_flight += 1;
        entry.backend.stats.cell(self.worker).in_flight.increment();
    }

    /// Counts an exchange against the slot, unless so many run there already. Of two workers that
    /// do so at the same time the later sees both.
    pub(super) fn acquire_below(&mut self, slot: Slot, requests_max: u64) -> bool {
        self.acquire(slot);
        // Every worker counts before its fence and adds up behind it.
        fence(SeqCst);
        let has_room = self.backend(slot).stats.in_flight() <= requests_max;
        if !has_room {
            self.release(slot);
        }
        has_room
    }

    /// Takes an exchange back that [`Self::acquire`] counted.
    pub(super) fn release(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.in_flight -= 1;
        entry.backend.stats.cell(self.worker).in_flight.decrement();
        if entry.in_flight == 0 && !entry.is_known {
            self.free.push(slot);
        }
    }

    /// The slot's cell in the counts of its backend.
    pub(super) fn cell(&self, slot: Slot) -> &BackendCell {
        self.entries[slot.0 as usize].backend.stats.cell(self.worker)
    }

    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            for (id, slot) in &self.by_id {
                let entry = &self.entries[slot.0 as usize];
                debug_assert_eq!(entry.backend.id, *id, "a slot holds another backend");
                debug_assert!(entry.is_known, "an unknown backend is indexed");
            }
            for slot in &self.free {
                let entry = &self.entries[slot.0 as usize];
                debug_assert!(!entry.is_known && entry.in_flight == 0, "a free slot is in use");
            }
            let known = self.entries.iter().filter(|e| e.is_known).count();
            debug_assert_eq!(known, self.by_id.len(), "a known backend is not indexed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::model::{Hints, Initialisation, Panic, Standing, Weight};

    fn backend(id: u64, instance: &str) -> Backend {
        Backend {
            id: BackendId(id),
            address: format!("127.0.0.1:{}", 1000 + id).parse().unwrap(),
            instance: InstanceId::parse(instance.as_bytes()).ok(),
            health: Health::Healthy,
            presence: Presence::Present,
            draining: None,
            standing: Standing::Admitted,
            hints: Hints::default(),
            initialisation: Initialisation::Settled,
            weight: Weight::ONE,
            priority: 0,
            stats: Arc::new(BackendStats::new(1)),
        }
    }

    fn snapshot(version: u64, backends: &[Backend]) -> Snapshot {
        Snapshot { version: Version(version), backends: backends.to_vec(), ..Snapshot::empty() }
    }

    fn table() -> BackendTable {
        BackendTable::new(0, Picker::LeastConnections, 1)
    }

    #[test]
    fn counts_and_slots_survive_a_refresh() {
        let (a, b) = (backend(1, "a"), backend(2, "b"));
        let mut table = table();
        table.apply(&snapshot(1, &[a.clone(), b.clone()]));
        let slot = table.instance("b").unwrap();
        table.acquire(slot);
        assert_eq!(table.apply(&snapshot(2, &[b.clone(), backend(3, "c")])).len(), 1);
        assert_eq!(table.instance("b"), Some(slot));
        assert_eq!(b.stats.in_flight(), 1);
        table.release(slot);
        assert_eq!(b.stats.in_flight(), 0);
        assert_eq!(table.instance("a"), None);
    }

    #[test]
    fn a_slot_in_use_is_not_given_away() {
        let (a, b) = (backend(1, "a"), backend(2, "b"));
        let mut table = table();
        table.apply(&snapshot(1, std::slice::from_ref(&a)));
        let slot = table.pick(&Tried::default(), Tick(0), None).unwrap();
        table.acquire(slot);
        assert_eq!(table.apply(&snapshot(2, &[b])), [slot]);
        assert_ne!(table.instance("b"), Some(slot));
        assert!(!table.is_known(slot));
        table.release(slot);
        assert_eq!(a.stats.in_flight(), 0);
        table.apply(&snapshot(3, &[backend(3, "c")]));
        assert_eq!(table.instance("c"), Some(slot));
    }

    #[test]
    fn an_unhealthy_instance_is_reachable_by_name_only() {
        let mut table = table();
        let sick = Backend { health: Health::Unhealthy, ..backend(1, "a") };
        let leaving = Backend { presence: Presence::Leaving, ..backend(2, "b") };
        table.apply(&snapshot(1, &[sick, leaving]));
        assert_eq!(table.pick(&Tried::default(), Tick(0), None), None);
        assert!(table.instance("a").is_some() && table.instance("b").is_some());
        assert_eq!(table.counts(), HealthCounts { total: 1, healthy: 0, usable: 0 });
    }

    #[test]
    fn a_lower_priority_serves_only_when_no_higher_one_can() {
        let mut table = table();
        let spare = Backend { priority: 10, ..backend(1, "spare") };
        let main = backend(2, "main");
        table.apply(&snapshot(1, &[spare.clone(), main.clone()]));
        assert_eq!(table.pick(&Tried::default(), Tick(0), None), table.instance("main"));
        let main = Backend { health: Health::Unhealthy, ..main };
        table.apply(&snapshot(2, &[spare, main]));
        assert_eq!(table.pick(&Tried::default(), Tick(0), None), table.instance("spare"));
    }

    #[test]
    fn an_ejected_instance_is_reachable_by_name_only_unless_there_is_panic() {
        let mut table = table();
        let bad = Backend { standing: Standing::Ejected, ..backend(1, "bad") };
        let sick = Backend { health: Health::Unhealthy, ..backend(2, "sick") };
        let good = backend(3, "good");
        let mut picks = |version, panic| {
            let backends = [bad.clone(), sick.clone(), good.clone()];
            table.apply(&Snapshot { panic, ..snapshot(version, &backends) });
            let names = ["bad", "sick", "good"];
            assert!(names.iter().all(|name| table.instance(name).is_some()));
            let mut pick = || table.pick(&Tried::default(), Tick(0), None);
            let slots: Vec<Slot> = (0..100).filter_map(|_| pick()).collect();
            let name = |slot: &Slot| table.backend(*slot).instance.as_ref().unwrap().to_string();
            let mut picked: Vec<String> = slots.iter().map(name).collect();
            picked.sort();
            picked.dedup();
            (picked, table.counts())
        };
        let counts = |usable| HealthCounts { total: 3, healthy: 1, usable };
        assert_eq!(picks(1, Panic::Off), (vec!["good".to_owned()], counts(1)));
        let both = ["bad", "good"].map(str::to_owned);
        assert_eq!(picks(2, Panic::Ejections), (both.to_vec(), counts(2)));
        let all = ["bad", "good", "sick"].map(str::to_owned);
        assert_eq!(picks(3, Panic::Everything), (all.to_vec(), counts(3)));
    }

    #[test]
    fn what_a_backend_says_about_its_load_is_heeded() {
        let small = Hints { capacity: std::num::NonZeroU32::new(2), ..Hints::default() };
        let (a, b) = (Backend { hints: small, ..backend(1, "a") }, backend(2, "b"));
        let mut table = table();
        table.apply(&snapshot(1, &[a.clone(), b.clone()]));
        let slot = |table: &BackendTable, name| table.instance(name).unwrap();
        let (slot_a, slot_b) = (slot(&table, "a"), slot(&table, "b"));
        let pick = |table: &mut BackendTable| table.pick(&Tried::default(), Tick(0), None).unwrap();
        for _ in 0..5 {
            table.acquire(slot_b);
        }
        table.acquire(slot_a);
        assert_eq!(pick(&mut table), slot_a);
        table.acquire(slot_a);
        assert_eq!(pick(&mut table), slot_b, "the other one is full, though it has less to do");
        table.release(slot_a);
        // Streams that came through somebody else count as ours do.
        a.stats.unseen_load.set(1);
        assert_eq!(pick(&mut table), slot_b);
        a.stats.unseen_load.set(0);
        b.stats.unseen_load.set(7);
        assert_eq!(pick(&mut table), slot_a);
        // Whoever is full is still better than nobody.
        table.apply(&snapshot(2, std::slice::from_ref(&a)));
        table.acquire(slot_a);
        assert_eq!(pick(&mut table), slot_a);
    }

    #[test]
    fn work_is_shared_as_backends_ask_for_it() {
        let half = Hints { weight_percent: Some(50), ..Hints::default() };
        let (a, b) = (Backend { hints: half, ..backend(1, "a") }, backend(2, "b"));
        let mut table = table();
        table.apply(&snapshot(1, &[a.clone(), b.clone()]));
        for _ in 0..300 {
            let slot = table.pick(&Tried::default(), Tick(0), None).unwrap();
            table.acquire(slot);
        }
        assert!((99..=101).contains(&a.stats.in_flight()), "{}", a.stats.in_flight());
    }

    #[test]
    fn the_control_thread_is_told_once_a_tick_of_a_backend_that_fails() {
        let mut table = table();
        table.apply(&snapshot(1, &[backend(1, "a"), backend(2, "b")]));
        let (a, b) = (table.instance("a").unwrap(), table.instance("b").unwrap());
        let told = |table: &mut BackendTable, slot, tick| table.may_tell_of(slot, Tick(tick));
        assert!(told(&mut table, a, 7));
        assert!(!told(&mut table, a, 7));
        assert!(told(&mut table, b, 7));
        assert!(told(&mut table, a, 8));
    }

    #[test]
    fn a_backend_that_refused_is_avoided_unless_it_is_the_last() {
        let mut table = table();
        table.apply(&snapshot(1, &[backend(1, "a"), backend(2, "b")]));
        let a = table.instance("a").unwrap();
        let b = table.instance("b").unwrap();
        table.avoid(a, Tick(0));
        assert!((0..50).all(|_| table.pick(&Tried::default(), Tick(1), None) == Some(b)));
        let mut tried = Tried::default();
        tried.note(b);
        assert_eq!(table.pick(&tried, Tick(1), None), Some(a));
        tried.note(a);
        assert_eq!(table.pick(&tried, Tick(1), None), None);
    }

    #[test]
    fn of_those_that_claim_one_instance_a_present_healthy_and_old_one_has_it() {
        let leaving = Backend { presence: Presence::Leaving, ..backend(1, "same") };
        let sick = Backend { health: Health::Unhealthy, ..backend(2, "same") };
        let (old, young) = (backend(3, "same"), backend(4, "same"));
        let mut table = table();
        let mut owner = |version, backends: &[Backend]| {
            table.apply(&snapshot(version, backends));
            table.backend(table.instance("same").unwrap()).id.0
        };
        assert_eq!(owner(1, std::slice::from_ref(&leaving)), 1);
        assert_eq!(owner(2, &[leaving.clone(), sick.clone()]), 2);
        assert_eq!(owner(3, &[leaving, sick, old, young]), 3);
    }

    proptest! {
        /// Any sequence of refreshes, acquisitions and releases: the cells hold exactly the
        /// exchanges that are held.
        #[test]
        fn cells_equal_guards(steps in proptest::collection::vec((0_u8..3, 0_u64..6), 1..200)) {
            let all: Vec<Backend> = (0..6).map(|id| backend(id, &format!("i{id}"))).collect();
            let mut table = table();
            let mut held: Vec<(Slot, BackendId)> = Vec::new();
            let mut version = 0;
            for (what, choice) in steps {
                match what {
                    0 => {
                        version += 1;
                        let some: Vec<Backend> = all
                            .iter()
                            .filter(|b| (b.id.0 * 7 + choice * 5 + version) % 3 != 0)
                            .cloned()
                            .collect();
                        table.apply(&snapshot(version, &some));
                    }
                    1 => {
                        if let Some(slot) = table.pick(&Tried::default(), Tick(0), None) {
                            table.acquire(slot);
                            held.push((slot, table.backend(slot).id));
                        }
                    }
                    _ if !held.is_empty() => {
                        let index = usize::try_from(choice).unwrap() % held.len();
                        table.release(held.swap_remove(index).0);
                    }
                    _ => {}
                }
                table.check_invariants();
                for b in &all {
                    let want = held.iter().filter(|(_, id)| *id == b.id).count();
                    prop_assert_eq!(b.stats.in_flight(), want as u64);
                }
            }
        }
    }
}
