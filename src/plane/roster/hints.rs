//! Pure: what backends say about their own load, and what follows from it.

use super::Roster;
use crate::{
    health::ProbeSuccess,
    model::BackendId,
    plane::{PlaneEvent, journal::Journal},
};

impl Roster {
    /// Takes over the hints of a health body that passed.
    pub(super) fn take_hints(
        &mut self,
        id: BackendId,
        success: &ProbeSuccess,
        journal: &mut Journal,
    ) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let backend = &mut entry.backend;
        // What runs through us is in our own counts, to the exchange; only the rest is news.
        let ours = backend.stats.event_streams();
        let theirs = success.active_streams.map_or(0, u64::from);
        backend.stats.unseen_load.set(theirs.saturating_sub(ours));
        if backend.hints != success.hints {
            backend.hints = success.hints;
            self.is_changed = true;
        }
        if let Some(hint) = success.ignored_hint
            && !std::mem::replace(&mut entry.is_hint_told, true)
        {
            let address = backend.address;
            journal.event(PlaneEvent::HintIgnored { address, hint });
        }
        self.settle_drain(id, journal);
    }

    /// Whether a backend is being drained follows from who wants it.
    pub(super) fn settle_drain(&mut self, id: BackendId, journal: &mut Journal) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let wanted = entry.wanted_drain();
        let backend = &mut entry.backend;
        let before = std::mem::replace(&mut backend.draining, wanted);
        if before == wanted {
            return;
        }
        self.is_changed = true;
        let (address, instance) = (backend.address, backend.instance.clone());
        let in_flight = backend.stats.in_flight();
        journal.event(match (wanted, before) {
            (Some(cause), _) => {
                PlaneEvent::BackendDraining { id, address, instance, cause, in_flight }
            }
            (None, _) => PlaneEvent::BackendUndrained { id, address, instance },
        });
    }
}
