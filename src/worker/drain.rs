//! What runs here and is to end, because the process, its backend or it itself has come so far.
//!
//! Nobody is told anything while nothing drains: a tick looks at the phase and at one flag of the
//! table. While something does, it looks at every entry of [`super::streams`], asks [`verdict`],
//! and rings whose turn it is; one bucket for all workers says how many that are. Ages are
//! deadlines of the connections themselves.
//!
//! Does not own: how a stream is ended, which is [`super::relay`]'s business.

use std::{cell::RefCell, sync::Arc, time::Duration, time::Instant};

use super::{Worker, streams::Order};
use crate::{
    config::Config,
    exchange::{DrainTerm, Pace, Takers, Timer, Verdict, age_of_one, verdict},
    model::{Phase, Rng},
};

/// How long a stream is given that is old enough and whose client nobody would take in: as long as
/// it takes to look again.
pub(super) const AGE_RESPITE: Duration = Duration::from_secs(1);

/// The bucket of all workers.
#[derive(Clone, Debug)]
pub struct SharedPace(Arc<Pace>);

impl SharedPace {
    /// At the rate that the configuration names.
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Pace::new(config.streams.drain_rate, Instant::now())))
    }
}

/// What one worker knows about ends that do not come by themselves.
#[derive(Debug)]
pub(super) struct Drain {
    pace: SharedPace,
    term: Option<DrainTerm>,
    rng: RefCell<Rng>,
}

impl Drain {
    /// As the configuration wants it. `pace` is that of all workers.
    pub(super) fn new(config: &Config, pace: SharedPace, seed: u64) -> Self {
        let term = config.timeouts.backend_drain.map(DrainTerm::new);
        // Not the sequence of the table, which has the same seed.
        Self { pace, term, rng: RefCell::new(Rng::new(!seed)) }
    }

    /// Whether anything but event streams may be ended before its time.
    pub(super) fn concerns_everything(&self) -> bool {
        self.term.is_some()
    }

    /// How long the client of one stream is told to wait before it comes again.
    pub(super) fn retry(&self, config: &Config) -> Duration {
        let streams = &config.streams;
        self.rng.borrow_mut().between(streams.retry_min, streams.retry_max)
    }

    /// How old one stream may become.
    pub(super) fn age(&self, config: &Config) -> Option<Duration> {
        config.streams.age_max.map(|most| age_of_one(most, &mut self.rng.borrow_mut()))
    }
}

/// What is due every tick.
pub(super) fn tick(worker: &Worker, now: Instant) {
    let phase = worker.phase();
    let table = worker.table.borrow();
    if phase != Phase::Draining && !table.is_any_emptied() {
        return;
    }
    let Drain { pace, term, .. } = &worker.drain;
    let (tick, takers): (_, Takers) = (worker.alarms.now(), table.takers());
    let mut has_room = true;
    worker.streams.each(|entry| {
        let since = table.emptied_since(entry.slot);
        let stretch = DrainTerm::stretch(*term, since, entry.begun, tick);
        let (order, timer) = match verdict(entry.nature.get(), phase, stretch, takers) {
            Verdict::Stays => return,
            Verdict::EndsInTurn => (Order::End, Timer::Drain),
            Verdict::EndsNow => (Order::EndNow, Timer::DrainOver),
        };
        if entry.order.get() >= order {
            return;
        }
        if order == Order::End {
            // Asked until it says no for the first time: the rest of them wait for a later tick.
            has_room = has_room && pace.0.take(now);
            if !has_room {
                return;
            }
        }
        entry.order.set(order);
        worker.alarms.ring(entry.place, timer);
    });
}
