//! Pure: one worker's copy of the backends, by slot.
//!
//! A slot is a small number that stays with a backend for as long as it is known *or* has exchanges
//! running on this worker; pools and guards are indexed by it.
//!
//! Invariants
//! - A slot's `in_flight` equals the exchanges that hold it, and is what this worker has added to
//!   the backend's count.
//! - A backend that left takes no new exchange.
//! - A slot is given to another backend only when nobody holds it.

mod tried;

use std::{collections::HashMap, net::SocketAddr, num::NonZeroU32, time::Duration};

pub(in crate::worker) use tried::Tried;

use super::{
    explain::{Pick, Witness},
    tenure::{Tenure, WEIGHT_PARTS, Window},
};
use crate::{
    balance::{Candidates, Condition, Member, Picker},
    exchange::{Takers, Tick},
    model::{
        Backend, BackendId, Health, HealthCounts, InitialisationProgress, InstanceId, Presence,
        Rng, Snapshot, Version,
    },
    stats::{BackendCell, BackendStats, Sample},
};

/// Index of a backend in one worker's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

/// How long a backend that refused a connection is avoided by this worker, if others will do. Long
/// enough to spare the next requests the wait, short enough not to overrule the health checks.
const AVOIDED_AFTER_CONNECT_FAILURE: Duration = Duration::from_secs(1);

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
    /// Those that may take new work: healthy, present, and of the best priority that has any. In
    /// order of identity, which is what pickers number them by.
    eligible: Vec<Slot>,
    /// When the weights of those that ramp up are looked at next; `None` while nobody does.
    next_ramp_step: Option<Tick>,
    is_any_emptied: bool,
    pacing: Pacing,
    picker: Picker,
    /// Sees what picks rest on, where they are explained.
    witness: Option<Box<Witness>>,
    rng: Rng,
}

/// What the table knows about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pacing {
    slow_start: Window,
    latency_half_life_ticks: NonZeroU32,
}

impl Pacing {
    /// `slow_start`: how long a backend that joins others takes to come to its full weight, where
    /// not at once. `latency_half_life`: the time in which a measured latency comes to count half.
    pub(super) fn new(slow_start: Option<Duration>, latency_half_life: Duration) -> Self {
        let half_life_ticks = NonZeroU32::new(Tick::count(latency_half_life));
        Self {
            slow_start: Window(slow_start.map_or(0, Tick::count)),
            latency_half_life_ticks: half_life_ticks.unwrap_or(NonZeroU32::MIN),
        }
    }
}

#[derive(Debug)]
struct Entry {
    backend: Backend,
    in_flight: u32,
    is_known: bool,
    avoided_until: Tick,
    /// When the control thread may be told again that requests fail.
    told_until: Tick,
    tenure: Tenure,
    /// Since when it is being emptied.
    emptied_since: Option<Tick>,
    /// Share of new work at this moment, in parts of [`WEIGHT_PARTS`].
    weight: u32,
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

struct View<'a> {
    entries: &'a [Entry],
    eligible: &'a [Slot],
    tried: &'a Tried,
    avoids: Avoids,
    now: Tick,
    half_life_ticks: NonZeroU32,
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

/// Whether backends that refused a connection lately, or say that they are full, are excluded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Avoids {
    Refusers,
    Nobody,
}

impl View<'_> {
    fn entry(&self, candidate: usize) -> &Entry {
        &self.entries[self.eligible[candidate].0 as usize]
    }

    /// The fewest sessions for its weight that any candidate has which is not excluded.
    fn fewest_sessions(&self, witness: Option<&Witness>) -> Option<Sessions> {
        let candidates = (0..self.count()).filter(|candidate| !self.is_excluded(*candidate));
        let sessions = candidates.map(|candidate| {
            let sessions = Sessions::of(&self.entry(candidate).backend);
            if let Some(witness) = witness {
                witness.note_sessions(candidate, sessions.count, sessions.weight);
            }
            sessions
        });
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
        self.entry(candidate).weight
    }

    fn latency_us(&self, candidate: usize) -> Option<u32> {
        let latency = self.entry(candidate).backend.stats.latency();
        latency.average_us(self.now.0, self.half_life_ticks)
    }

    fn is_excluded(&self, candidate: usize) -> bool {
        let slot = self.eligible[candidate];
        let entry = &self.entries[slot.0 as usize];
        let avoids = self.avoids == Avoids::Refusers;
        self.tried.contains(slot)
            || (avoids && (entry.avoided_until > self.now || entry.is_full()))
            || self.room.is_some_and(|room| room.is_full(slot, &entry.backend))
            || self.fewest.is_some_and(|fewest| Sessions::of(&entry.backend).exceeds(fewest))
    }

    fn enter(&self, candidate: usize, condition: Condition) -> bool {
        let stats = &self.entry(candidate).backend.stats;
        let requests_max = self.room.map_or(u64::MAX, |room| room.requests_max);
        match condition {
            Condition::Any => stats.enter_below(requests_max),
            Condition::Load(seen) => {
                // What others run there was part of the choice, and is none of our count.
                let ours = seen.saturating_sub(stats.unseen_load.get());
                ours < requests_max && stats.enter_if(ours)
            }
        }
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
    pub(super) fn new(worker: usize, picker: Picker, pacing: Pacing, seed: u64) -> Self {
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
            next_ramp_step: None,
            is_any_emptied: false,
            pacing,
            picker,
            witness: None,
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
    pub(super) fn apply(&mut self, snapshot: &Snapshot, now: Tick) -> Vec<Slot> {
        debug_assert!(snapshot.version > self.version, "a snapshot older than the table");
        self.version = snapshot.version;
        self.counts = snapshot.health_counts();
        self.initialisation = snapshot.initialisation;
        for entry in &mut self.entries {
            entry.is_known = false;
        }
        for backend in &snapshot.backends {
            self.upsert(backend, now);
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
        let is_emptied = |entry: &Entry| {
            entry.emptied_since.is_some() && (entry.is_known || entry.in_flight > 0)
        };
        self.is_any_emptied = self.entries.iter().any(is_emptied);
        self.index(snapshot);
        self.weigh(now);
        self.check_invariants();
        left
    }

    fn upsert(&mut self, backend: &Backend, now: Tick) {
        let entry = match self.by_id.get(&backend.id) {
            Some(slot) => &mut self.entries[slot.0 as usize],
            None => {
                let fresh = Entry {
                    backend: backend.clone(),
                    in_flight: 0,
                    is_known: true,
                    avoided_until: Tick(0),
                    told_until: Tick(0),
                    tenure: Tenure::Out,
                    emptied_since: backend.is_emptied().then_some(now),
                    weight: WEIGHT_PARTS,
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
        let emptied_since = backend.is_emptied().then_some(now);
        entry.emptied_since = emptied_since.map(|now| entry.emptied_since.unwrap_or(now));
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

    /// Brings tenures and weights up to `now`, and tells the picker.
    fn weigh(&mut self, now: Tick) {
        let Self { entries, eligible, pacing, picker, rng, .. } = self;
        let window = pacing.slow_start;
        let mut takes_work = vec![false; entries.len()];
        for slot in eligible.iter() {
            takes_work[slot.0 as usize] = true;
        }
        let can_carry = |slot: &Slot| entries[slot.0 as usize].tenure.can_carry(now, window);
        let is_carried = eligible.iter().any(can_carry);
        for (entry, takes_work) in entries.iter_mut().zip(takes_work) {
            entry.tenure = entry.tenure.next(takes_work, is_carried, now, window);
            let full_weight = entry.backend.weight_hundredths();
            entry.weight = full_weight * entry.tenure.parts(now, window);
        }
        let member = |slot: &Slot| {
            let Entry { backend, weight, .. } = &entries[slot.0 as usize];
            let full_weight = backend.weight_hundredths();
            Member { id: backend.id, address: backend.address, weight: *weight, full_weight }
        };
        let members: Vec<Member> = eligible.iter().map(member).collect();
        picker.prepare(&members, rng);
        let is_ramping =
            |slot: &Slot| matches!(entries[slot.0 as usize].tenure, Tenure::Ramping(_));
        self.next_ramp_step = eligible.iter().any(is_ramping).then(|| window.next_step(now));
    }

    /// Chooses a backend for a request that any may serve, where there are bounds one with room,
    /// and counts the exchange against it: whoever gets the slot must give it back with
    /// [`Self::release`]. `key` is the hash of what the request is hashed on. For one that may
    /// begin a session, it is one of those with the fewest sessions: all are looked at, because a
    /// session is placed once, and stays where it is.
    pub(super) fn pick(
        &mut self,
        tried: &Tried,
        key: Option<u64>,
        now: Tick,
        room: Option<Room<'_>>,
    ) -> Option<Slot> {
        if self.next_ramp_step.is_some_and(|at| at <= now) {
            self.weigh(now);
        }
        let Self { entries, eligible, picker, pacing, rng, witness, .. } = self;
        let witness = witness.as_deref().inspect(|witness| witness.begin());
        let mut choose = |view: &View<'_>| match witness {
            None => picker.pick(view, key, rng),
            Some(witness) => picker.pick(&witness.beside(view), key, rng),
        };
        let half_life_ticks = pacing.latency_half_life_ticks;
        let mut view = View {
            entries,
            eligible,
            tried,
            avoids: Avoids::Refusers,
            now,
            half_life_ticks,
            room,
            fewest: None,
        };
        if tried.begins_session {
            view.fewest = view.fewest_sessions(witness);
        }
        let picked = choose(&view).or_else(|| {
            view.fewest = None;
            // Who is only full will have room; waiting for that is better than asking the avoided.
            if view.room.take().is_some() && (0..view.count()).any(|i| !view.is_excluded(i)) {
                return None;
            }
            // Everybody refused a connection lately, or says that it is full: better such a backend
            // than none.
            (view.avoids, view.room) = (Avoids::Nobody, room);
            if let Some(witness) = witness {
                witness.note_last_resort();
            }
            choose(&view)
        })?;
        let slot = self.eligible[picked];
        self.entries[slot.0 as usize].in_flight += 1;
        Some(slot)
    }

    /// From here on it is seen what picks rest on.
    pub(super) fn explain(&mut self) {
        self.witness = Some(Box::default());
    }

    /// What the last pick rested on, where that is seen. To be taken before anybody else picks.
    pub(super) fn explained(&self) -> Option<Pick> {
        self.witness.as_ref().and_then(|witness| witness.take())
    }

    /// Takes in how long the backend took to answer.
    pub(super) fn observe(&self, slot: Slot, sample: Sample, took: Duration, now: Tick) {
        let half_life_ticks = self.pacing.latency_half_life_ticks;
        self.backend(slot).stats.latency().observe(sample, took, now.0, half_life_ticks);
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

    /// Since when the backend in a slot is being emptied.
    pub(super) fn emptied_since(&self, slot: Slot) -> Option<Tick> {
        self.entries[slot.0 as usize].emptied_since
    }

    /// Whether any backend is being emptied.
    pub(super) fn is_any_emptied(&self) -> bool {
        self.is_any_emptied
    }

    /// Whether anybody takes work that names no instance.
    pub(super) fn takers(&self) -> Takers {
        if self.eligible.is_empty() { Takers::None } else { Takers::Some }
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

    /// Counts an exchange against a slot that was not picked but named.
    pub(super) fn acquire(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.in_flight += 1;
        entry.backend.stats.enter();
    }

    /// Takes an exchange back that [`Self::pick`] or [`Self::acquire`] counted.
    pub(super) fn release(&mut self, slot: Slot) {
        let entry = &mut self.entries[slot.0 as usize];
        entry.in_flight -= 1;
        entry.backend.stats.leave();
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
            let ordered = self.eligible.iter().map(|slot| self.entries[slot.0 as usize].backend.id);
            debug_assert!(ordered.is_sorted(), "the eligible are out of order");
        }
    }
}

#[cfg(test)]
mod tests;
