//! Pure: backends that discovery no longer names, and how long they are kept.
//!
//! In Kubernetes a pod is out of DNS as soon as it terminates or is not ready, while its process
//! goes on and has everything that its sessions need. So where there are sessions a backend that
//! left is kept for them, unless it looks gone (ADR 29).
//!
//! Invariants
//! - Whoever has exchanges running is kept.
//! - Who has none is kept only if it has a name: at an address that discovery does not name
//!   anybody may be next, and a name is what tells him apart.
//! - Who has none and looks gone is not kept, nor who has no session left when the time is over in
//!   which sessions that are known to others would have shown.

use std::time::Instant;

use super::{DrainScope, Entry, Roster};
use crate::{
    health::ProbeFailure,
    model::{Backend, BackendId, Health, Presence},
    plane::{PlaneEvent, journal::Journal},
};

/// Whether a backend looks gone behind this probe, which has led to this verdict: who takes no
/// connection is, and who has failed in some other way often enough. Who takes one and is slow is
/// busy.
pub(super) fn looks_gone(before: bool, failure: Option<ProbeFailure>, health: Health) -> bool {
    match failure {
        None | Some(ProbeFailure::ResponseTimeout) => false,
        Some(ProbeFailure::Local) => before,
        Some(ProbeFailure::Refused | ProbeFailure::Unreachable | ProbeFailure::ConnectTimeout) => {
            true
        }
        Some(_) => health == Health::Unhealthy,
    }
}

impl Entry {
    /// Whether it must be kept although discovery does not name it.
    fn is_needed(&self, now: Instant) -> bool {
        let stats = &self.backend.stats;
        let may_have_sessions =
            || self.kept_until.is_some_and(|until| now < until || stats.sessions_live() > 0);
        stats.in_flight() > 0 || (!self.looks_gone && may_have_sessions())
    }
}

impl Roster {
    /// Discovery names this backend no more.
    pub(super) fn leave(&mut self, id: BackendId, now: Instant, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let backend = &mut entry.backend;
        if backend.presence == Presence::Leaving {
            return;
        }
        self.is_changed = true;
        backend.presence = Presence::Leaving;
        self.leaving.insert(id);
        let idle = self.session_idle.filter(|_| backend.instance.is_some());
        entry.kept_until = idle.map(|idle| now + idle);
        if !entry.is_needed(now) {
            self.remove_gone(id, journal);
            return;
        }
        let Backend { address, instance, stats, .. } = &entry.backend;
        let (address, instance) = (*address, instance.clone());
        let (in_flight, sessions) = (stats.in_flight(), stats.sessions_live());
        journal.event(PlaneEvent::BackendLeft { id, address, instance, in_flight, sessions });
        self.settle_claim(id, journal);
        // Whoever is gone should not be waited for.
        self.demand(id, now);
    }

    /// Somebody is leaving, so [`Roster::release_left`] has something to look at.
    pub(in crate::plane) fn is_anybody_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Removes those that were leaving and are not needed any more.
    pub(in crate::plane) fn release_left(&mut self, now: Instant, journal: &mut Journal) {
        let is_free =
            |id: &&BackendId| self.entries.get(id).is_none_or(|entry| !entry.is_needed(now));
        for id in self.leaving.iter().filter(is_free).copied().collect::<Vec<_>>() {
            self.remove_gone(id, journal);
        }
    }

    /// An order to drain whoever is at an address held until discovery dropped it.
    pub(super) fn end_order_for_address(&mut self, id: BackendId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if entry.ordered_drain == Some(DrainScope::Address) {
            entry.ordered_drain = None;
            self.settle_drain(id, journal);
        }
    }

    fn remove_gone(&mut self, id: BackendId, journal: &mut Journal) {
        if let Some(entry) = self.remove(id) {
            let Backend { address, instance, .. } = entry.backend;
            journal.event(PlaneEvent::BackendGone { id, address, instance });
        }
    }
}
