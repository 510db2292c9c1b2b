//! Counts how requests turn out for their backends, for the outlier detection. Which of them count
//! is configured; what follows is decided on the control thread.

use super::{Worker, table::Slot};
use crate::{link::Report, model::Fault};

impl Worker {
    /// A backend answered with this final status.
    #[inline]
    pub(super) fn note_answer(&self, slot: Slot, status: u16) {
        let outliers = &self.config.outliers;
        if !outliers.is_on {
            return;
        }
        if outliers.faults.contains(Fault::Status(status)) {
            self.note_fault(slot, Fault::Status(status));
        } else {
            self.table.borrow().cell(slot).outcomes.pass();
        }
    }

    /// A backend failed a request. A failed connect is reported by whoever made it.
    pub(super) fn note_fault(&self, slot: Slot, fault: Fault) {
        let outliers = &self.config.outliers;
        if !outliers.is_on || !outliers.faults.contains(fault) {
            return;
        }
        let mut table = self.table.borrow_mut();
        if fault == Fault::Connect {
            table.cell(slot).outcomes.fail_connect();
            return;
        }
        table.cell(slot).outcomes.fail();
        if table.may_tell_of(slot, self.alarms.now()) {
            let backend = table.backend(slot).id;
            drop(table);
            self.report(Report::Failing(backend));
        }
    }
}
