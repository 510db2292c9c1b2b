//! Pure: whom one request has tried.

use super::Slot;

/// Backends that this request has tried. Every connection has room for it, so it has no flags.
#[derive(Clone, Copy, Debug)]
pub(in crate::worker) struct Tried {
    slots: [Slot; 4],
    /// The request may begin a session, which counts against the backend that gets it.
    pub(super) begins_session: bool,
}

/// A slot that no table has.
const NO_SLOT: Slot = Slot(u32::MAX);

impl Default for Tried {
    fn default() -> Self {
        Self { slots: [NO_SLOT; 4], begins_session: false }
    }
}

impl Tried {
    /// Nobody, for a request that may begin a session.
    pub(in crate::worker) fn for_session() -> Self {
        Self { begins_session: true, ..Self::default() }
    }

    /// All of them may be asked again.
    pub(in crate::worker) fn forget(&mut self) {
        self.slots = [NO_SLOT; 4];
    }

    /// Notes a backend. More than four are not tried per request (`exchange::may_retry`).
    pub(in crate::worker) fn note(&mut self, slot: Slot) {
        if let Some(place) = self.slots.iter_mut().find(|place| **place == NO_SLOT) {
            *place = slot;
        }
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.slots.contains(&slot)
    }
}
