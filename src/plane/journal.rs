//! Pure: what the plane has to say, in the order in which it came to say it.

use std::collections::VecDeque;

use super::{Output, PlaneCounters, PlaneEvent};

/// Outputs that wait for the shell, and the counters that it may read at any time.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub(super) outputs: VecDeque<Output>,
    pub(super) counters: PlaneCounters,
}

impl Journal {
    pub(super) fn event(&mut self, event: PlaneEvent) {
        self.outputs.push_back(Output::Event(event));
    }
}
