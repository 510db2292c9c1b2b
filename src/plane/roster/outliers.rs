//! Pure: ejections, as far as they are a matter of all backends: who is out until when, and how
//! many may be.
//!
//! Invariants
//! - No more are out than the policy's share of those that are present; and nobody is put out who
//!   is the last to take new work.
//! - Only a backend that takes new work is put out.
//! - Whoever is out has a time at which that ends.
//! - Whoever is out because its streams were silent is let in by its time, or by its streams:
//!   health checks passed all the while, so they say nothing.

use std::time::Instant;

use super::{Entry, Roster};
use crate::{
    health::outlier::{Ends, Policy, Reason},
    model::{Backend, BackendId, Initialisation, Standing},
    plane::{PlaneEvent, journal::Journal},
    stats::SilenceReading,
};

impl Roster {
    /// When the next ejection ends.
    pub(in crate::plane) fn next_readmission(&self) -> Option<Instant> {
        self.ejected.first().map(|(at, _)| *at)
    }

    /// Who waits for its initialisation, as this picture of all backends has it: whoever does takes
    /// no new work, so it is no reserve for one that is ejected.
    pub(in crate::plane) fn note_initialisations(&mut self, backends: &[Backend]) {
        let waits = |b: &&Backend| b.initialisation == Initialisation::Pending;
        self.uninitialised = backends.iter().filter(waits).map(|b| b.id).collect();
    }

    /// Looks at the counts of every backend.
    pub(in crate::plane) fn read_outcomes(&mut self, now: Instant, journal: &mut Journal) {
        if let Some(policy) = self.outlier_policy.filter(|policy| policy.silent_percent.is_some()) {
            self.listen(&policy, now, journal);
        }
        for id in self.entries.keys().copied().collect::<Vec<_>>() {
            self.read_outcomes_of(id, now, journal);
        }
    }

    /// Listens to the event streams of every backend, each beside those of all others that take new
    /// work, and lets those in that were out for silence and speak.
    fn listen(&mut self, policy: &Policy, now: Instant, journal: &mut Journal) {
        // Read once: workers write meanwhile, and a part must not be larger than its sum.
        let hear = |entry: &Entry| (self.takes_work(&entry.backend), entry.backend.stats.silence());
        let heard: Vec<(bool, SilenceReading)> = self.entries.values().map(hear).collect();
        let of_takers = heard.iter().filter(|(takes_work, _)| *takes_work);
        let all = of_takers.fold(SilenceReading::default(), |sum, (_, own)| sum.with(*own));
        let mut returning = Vec::new();
        for ((id, entry), (takes_work, own)) in self.entries.iter_mut().zip(heard) {
            let others = if takes_work { all.without(own) } else { all };
            entry.outlier.listen(own, others, now, policy);
            if entry.outlier.speaks_again(own) {
                returning.push(*id);
            }
        }
        for id in returning {
            self.readmit(id, now, journal);
        }
    }

    /// Looks at the counts of one backend.
    pub(in crate::plane) fn read_outcomes_of(
        &mut self,
        id: BackendId,
        now: Instant,
        journal: &mut Journal,
    ) {
        let Some(policy) = self.outlier_policy else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let reading = entry.backend.stats.outcomes();
        if !entry.backend.passes_checks() {
            entry.outlier.skip(reading, now);
            entry.is_ejection_withheld = false;
            return;
        }
        let Some(reason) = entry.outlier.observe(reading, now, &policy) else {
            entry.is_ejection_withheld = false;
            return;
        };
        if self.may_eject_one_more(&policy) {
            self.eject(id, reason, now, &policy, journal);
        } else if let Some(entry) = self.entries.get_mut(&id)
            && !std::mem::replace(&mut entry.is_ejection_withheld, true)
        {
            journal.counters.ejections_withheld += 1;
            let address = entry.backend.address;
            journal.event(PlaneEvent::EjectionWithheld { id, address, reason });
        }
    }

    fn may_eject_one_more(&self, policy: &Policy) -> bool {
        let backends = self.entries.values().map(|entry| &entry.backend);
        let is_one_left = backends.filter(|b| self.takes_work(b)).nth(1).is_some();
        is_one_left && self.ejected_present() < policy.ejected_max(self.present())
    }

    fn takes_work(&self, backend: &Backend) -> bool {
        backend.takes_new_work() && !self.uninitialised.contains(&backend.id)
    }

    fn present(&self) -> usize {
        self.entries.len() - self.leaving.len()
    }

    fn ejected_present(&self) -> usize {
        self.ejected.iter().filter(|(_, id)| !self.leaving.contains(id)).count()
    }

    fn eject(
        &mut self,
        id: BackendId,
        reason: Reason,
        now: Instant,
        policy: &Policy,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (length, ejections) = entry.outlier.eject(reason, now, policy);
        entry.backend.standing = Standing::Ejected;
        entry.is_ejection_withheld = false;
        self.ejected.insert((now + length, id));
        self.is_changed = true;
        journal.counters.ejections[reason.index()] += 1;
        let (address, instance) = (entry.backend.address, entry.backend.instance.clone());
        journal.event(PlaneEvent::BackendEjected {
            id,
            address,
            instance,
            reason,
            length,
            ejections,
        });
        if policy.ends == Ends::ByProbe {
            self.demand(id, now);
        }
    }

    /// Lets those in whose time is over, and those that are out beyond the share, the first to end
    /// first: it shrinks with the number of backends.
    pub(in crate::plane) fn readmit_due(&mut self, now: Instant, journal: &mut Journal) {
        let Some(policy) = self.outlier_policy else { return };
        while let Some(&(at, id)) = self.ejected.first()
            && at <= now
        {
            self.readmit(id, now, journal);
        }
        let mut beyond = self.ejected_present().saturating_sub(policy.ejected_max(self.present()));
        while beyond > 0 {
            let is_present = |(_, id): &&(Instant, BackendId)| !self.leaving.contains(id);
            let Some(&(_, id)) = self.ejected.iter().find(is_present) else { break };
            self.readmit(id, now, journal);
            beyond -= 1;
        }
    }

    /// A probe that began at `began` has passed.
    pub(super) fn readmit_after_probe(
        &mut self,
        id: BackendId,
        began: Option<Instant>,
        now: Instant,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.entries.get(&id) else { return };
        let Some(out_since) = entry.outlier.out_since() else { return };
        if self.outlier_policy.is_some_and(|policy| policy.ends == Ends::ByProbe)
            && entry.outlier.out_for() != Some(Reason::StreamsStalled)
            && began.is_some_and(|began| began >= out_since)
        {
            self.readmit(id, now, journal);
        }
    }

    fn readmit(&mut self, id: BackendId, now: Instant, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let Some(until) = entry.outlier.out_until() else { return };
        self.ejected.remove(&(until, id));
        entry.outlier.readmit(entry.backend.stats.outcomes(), now);
        entry.backend.standing = Standing::Admitted;
        self.is_changed = true;
        let (address, instance) = (entry.backend.address, entry.backend.instance.clone());
        journal.event(PlaneEvent::BackendReadmitted { id, address, instance });
    }

    #[cfg(debug_assertions)]
    pub(super) fn check_ejections(&self) {
        for (until, id) in &self.ejected {
            assert_eq!(self.entries[id].outlier.out_until(), Some(*until));
        }
        for (id, entry) in &self.entries {
            let is_out = entry.backend.standing == Standing::Ejected;
            assert_eq!(entry.outlier.is_out(), is_out);
            let until = entry.outlier.out_until();
            assert!(until.is_none_or(|until| self.ejected.contains(&(until, *id))));
        }
    }
}
