//! Listens to the event streams of this worker, where their silence may eject a backend.
//!
//! Once a second it walks over all of them and writes into the cells of their backends how many are
//! judged and how many of these are silent. What follows is decided on the control thread.
//!
//! Invariants
//! - What a cell shows is what the last walk found; a backend without streams shows none.
//! - A stream that ended is looked at once more: it may have spoken after its silence was counted.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use super::{
    pulse::{Listened, Pulse},
    table::{BackendTable, Slot},
};
use crate::{config::Outliers, exchange::Tick, model::BackendId};

/// Time between two walks. A silence counts from some seconds on, so more often would tell nothing.
const WALK_PERIOD: Duration = Duration::from_secs(1);

/// All event streams of one worker.
#[derive(Debug)]
pub(super) struct Hearing {
    silence_min_ticks: u32,
    ears: RefCell<Vec<Rc<Ear>>>,
    next_walk: Cell<Tick>,
    /// By slot.
    tallies: RefCell<Vec<Tally>>,
}

/// What listens to one event stream: held here, and by its task for as long as it runs.
#[derive(Debug)]
pub(super) struct Ear {
    slot: Slot,
    /// The slot may be another's when a stream that has ended is looked at.
    backend: BackendId,
    pub(super) pulse: Pulse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    judged: u64,
    silent: u64,
    /// The cell shows something that this walk may not find any more.
    is_shown: bool,
}

impl Hearing {
    /// `None` where nobody wants to know.
    pub(super) fn new(outliers: &Outliers) -> Option<Self> {
        (outliers.is_on && outliers.silent_percent.is_some()).then(|| Self {
            silence_min_ticks: Tick::count(outliers.silence_min),
            ears: RefCell::default(),
            next_walk: Cell::new(Tick(0)),
            tallies: RefCell::default(),
        })
    }

    /// An event stream begins.
    pub(super) fn attend(&self, slot: Slot, backend: BackendId, now: Tick) -> Rc<Ear> {
        let ear = Rc::new(Ear { slot, backend, pulse: Pulse::new(now) });
        self.ears.borrow_mut().push(Rc::clone(&ear));
        ear
    }

    /// Walks over all streams, if it is time. `now` stands still while this thread does, so nobody
    /// is silent because nobody listened.
    pub(super) fn tick(&self, table: &BackendTable, now: Tick) {
        if now < self.next_walk.get() {
            return;
        }
        self.next_walk.set(Tick(now.0.saturating_add(Tick::count(WALK_PERIOD))));
        let mut tallies = self.tallies.borrow_mut();
        self.ears.borrow_mut().retain(|ear| {
            let is_open = Rc::strong_count(ear) > 1;
            if table.backend(ear.slot).id != ear.backend {
                return is_open;
            }
            let has_resumed = match is_open {
                true => self.count(ear, now, &mut tallies),
                false => ear.pulse.has_resumed(),
            };
            if has_resumed {
                table.cell(ear.slot).silence.resume();
            }
            is_open
        });
        for (slot, tally) in (0_u32..).map(Slot).zip(tallies.iter_mut()) {
            let Tally { judged, silent, is_shown } = std::mem::take(tally);
            if is_shown || judged > 0 {
                table.cell(slot).silence.set(judged, silent);
            }
            tally.is_shown = judged > 0;
        }
    }

    /// Counts a stream that is open. Gives whether it had been silent and has spoken since.
    fn count(&self, ear: &Ear, now: Tick, tallies: &mut Vec<Tally>) -> bool {
        let look = ear.pulse.look(now, self.silence_min_ticks);
        let slot = ear.slot.0 as usize;
        if tallies.len() <= slot {
            tallies.resize(slot + 1, Tally::default());
        }
        tallies[slot].judged += u64::from(look.state != Listened::Unjudged);
        tallies[slot].silent += u64::from(look.state == Listened::Silent);
        look.has_resumed
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        balance::Picker,
        model::{Backend, Snapshot, Version},
        stats::SilenceReading,
        worker::table::Pacing,
    };

    /// Two backends, and streams on them that speak ten times a second.
    struct Ward {
        hearing: Hearing,
        table: BackendTable,
        backends: [Backend; 2],
        slots: [Slot; 2],
        now: Tick,
    }

    impl Ward {
        fn new() -> Self {
            let backends = [1, 2].map(|n| {
                Backend::sample(n, SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap())))
            });
            let pacing = Pacing::new(None, Tick::LENGTH);
            let mut table = BackendTable::new(0, Picker::least_connections(), pacing, 1);
            let mut ward = Self {
                hearing: Hearing {
                    silence_min_ticks: 100,
                    ears: RefCell::default(),
                    next_walk: Cell::new(Tick(0)),
                    tallies: RefCell::default(),
                },
                slots: [0, 1].map(|n: usize| {
                    let version = Version(n as u64 + 1);
                    let backends = backends[..=n].to_vec();
                    table.apply(&Snapshot { version, backends, ..Snapshot::empty() }, Tick(0));
                    table.nameless(table.backend(Slot(u32::try_from(n).unwrap())).address).unwrap()
                }),
                backends,
                table,
                now: Tick(0),
            };
            for slot in ward.slots {
                ward.table.acquire(slot);
            }
            ward
        }

        fn attend(&self, n: usize) -> Rc<Ear> {
            self.hearing.attend(self.slots[n], self.backends[n].id, self.now)
        }

        /// Lets time pass in which these streams speak.
        fn pass(&mut self, seconds: u32, speaking: &[&Rc<Ear>]) {
            for tick in 1..=seconds * 20 {
                self.now.0 += 1;
                for ear in speaking.iter().filter(|_| tick % 2 == 0) {
                    ear.pulse.hear(self.now);
                }
                self.hearing.tick(&self.table, self.now);
            }
        }

        /// Judged, silent and resumed.
        fn shown(&self, n: usize) -> (u64, u64, u64) {
            let SilenceReading { judged, silent, resumed } = self.backends[n].stats.silence();
            (judged, silent, resumed)
        }
    }

    #[test]
    fn cells_show_what_is_judged_and_silent_and_nothing_of_what_has_ended() {
        let mut ward = Ward::new();
        let (a, b, c) = (ward.attend(0), ward.attend(0), ward.attend(1));
        ward.pass(15, &[&a, &b, &c]);
        assert_eq!((ward.shown(0), ward.shown(1)), ((0, 0, 0), (0, 0, 0)), "too young");
        ward.pass(10, &[&a, &b, &c]);
        assert_eq!((ward.shown(0), ward.shown(1)), ((2, 0, 0), (1, 0, 0)));
        ward.pass(7, &[&a, &c]);
        assert_eq!((ward.shown(0), ward.shown(1)), ((2, 1, 0), (1, 0, 0)));
        // A walk later it is heard again, which is told once; its pause is long now.
        ward.pass(3, &[&a, &b, &c]);
        assert_eq!(ward.shown(0), (1, 0, 1));
        drop((a, b));
        ward.pass(1, &[&c]);
        assert_eq!((ward.shown(0), ward.shown(1)), ((0, 0, 1), (1, 0, 0)));
        assert_eq!(ward.hearing.ears.borrow().len(), 1);
    }

    #[test]
    fn a_stream_that_ends_between_two_walks_has_spoken_again_only_if_it_has() {
        let mut ward = Ward::new();
        let (a, b) = (ward.attend(0), ward.attend(0));
        ward.pass(25, &[&a, &b]);
        ward.pass(7, &[]);
        assert_eq!(ward.shown(0), (2, 2, 0));
        a.pulse.hear(ward.now);
        drop((a, b));
        ward.pass(1, &[]);
        assert_eq!(ward.shown(0), (0, 0, 1));
    }

    #[test]
    fn what_is_left_of_an_ended_stream_is_not_counted_for_who_has_its_slot() {
        let mut ward = Ward::new();
        let a = ward.attend(0);
        ward.pass(25, &[&a]);
        ward.pass(7, &[]);
        a.pulse.hear(ward.now);
        drop(a);
        // The first backend leaves, and another comes into its slot before the next walk.
        let third = Backend::sample(3, SocketAddr::from(([127, 0, 0, 1], 3)));
        for (version, heir) in [(3, None), (4, Some(&third))] {
            let backends = [&ward.backends[1]].into_iter().chain(heir).cloned().collect();
            let snapshot = Snapshot { version: Version(version), backends, ..Snapshot::empty() };
            ward.table.apply(&snapshot, ward.now);
            if heir.is_none() {
                ward.table.release(ward.slots[0]);
            }
        }
        assert_eq!(ward.table.backend(ward.slots[0]).id, third.id);
        ward.pass(1, &[]);
        assert_eq!(third.stats.silence(), SilenceReading::default());
    }
}
