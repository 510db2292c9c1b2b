//! Pure: which backends claim which instance id, and whether two of them claim the same.
//!
//! Invariants
//! - Every id that is kept has a claimant; every clash has two.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{BackendId, InstanceId};

/// Claims on instance ids.
#[derive(Debug, Default)]
pub(super) struct Claims {
    claimants: BTreeMap<InstanceId, BTreeSet<BackendId>>,
    /// Clashes that have been said.
    clashing: BTreeSet<InstanceId>,
}

impl Claims {
    pub(super) fn add(&mut self, instance: &InstanceId, id: BackendId) {
        self.claimants.entry(instance.clone()).or_default().insert(id);
    }

    pub(super) fn remove(&mut self, instance: &InstanceId, id: BackendId) {
        let Some(claimants) = self.claimants.get_mut(instance) else { return };
        claimants.remove(&id);
        if claimants.len() < 2 {
            self.clashing.remove(instance);
        }
        if claimants.is_empty() {
            self.claimants.remove(instance);
        }
    }

    /// Two claimants that count, if that is news: a clash is said once for as long as it lasts.
    pub(super) fn new_clash(
        &mut self,
        instance: &InstanceId,
        counts: impl Fn(BackendId) -> bool,
    ) -> Option<(BackendId, BackendId)> {
        let claimants = self.claimants.get(instance).into_iter().flatten().copied();
        let mut counting = claimants.filter(|id| counts(*id));
        let (Some(first), Some(second)) = (counting.next(), counting.next()) else {
            self.clashing.remove(instance);
            return None;
        };
        self.clashing.insert(instance.clone()).then_some((first, second))
    }

    #[cfg(debug_assertions)]
    pub(super) fn check_invariants(&self) {
        assert!(self.claimants.values().all(|claimants| !claimants.is_empty()));
        assert!(self.clashing.iter().all(|instance| self.claimants[instance].len() >= 2));
    }

    #[cfg(debug_assertions)]
    pub(super) fn has(&self, instance: &InstanceId, id: BackendId) -> bool {
        self.claimants.get(instance).is_some_and(|claimants| claimants.contains(&id))
    }
}
