//! Pure: one question to DNS, its last good answer, and what each further answer does to it.
//!
//! Invariants
//! - A failure never takes a record away. "Nothing there" takes them only at the third time in a
//!   row, without an answer or a failure in between.
//! - Exactly one of these holds: the question is running, or it has a time.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    PlaneEvent, Refresh,
    dns::{Absence, Query, QueryKind, Resolution, ResolveFailure, Service},
    journal::Journal,
};
use crate::model::Rng;

/// Answers in a row that there is nothing, before that is believed.
const ABSENCES_MAX: u32 = 3;

/// Shortest time between two times that a question is asked, when the second is out of turn.
const DEMAND_SPACING: Duration = Duration::from_secs(1);

/// Refreshes are spread over this fraction of their pause.
const JITTER_FRACTION: u32 = 10;

#[derive(Debug)]
pub(super) struct Question {
    pub(super) query: Query,
    pub(super) records: Records,
    pub(super) state: State,
    pub(super) clock: Clock,
    ttl: Duration,
    last_asked: Option<Instant>,
}

/// The last good set. Sorted, without duplicates.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Records {
    Addresses(Vec<IpAddr>),
    Services(Vec<Service>),
}

/// How the last attempts ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Unanswered,
    Answered,
    Absent { absence: Absence, in_a_row: u32 },
    Failed { in_a_row: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clock {
    Due(Instant),
    Running { again: bool },
}

/// A resolution with everything unusable taken out.
enum Usable {
    Records(Records, Duration),
    Absent(Absence),
    Failed(ResolveFailure),
}

impl Records {
    fn none(kind: QueryKind) -> Self {
        match kind {
            QueryKind::A | QueryKind::Aaaa => Self::Addresses(Vec::new()),
            QueryKind::Srv => Self::Services(Vec::new()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Addresses(addresses) => addresses.len(),
            Self::Services(services) => services.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Question {
    pub(super) fn new(query: Query, now: Instant) -> Self {
        Self {
            records: Records::none(query.kind),
            query,
            state: State::Unanswered,
            clock: Clock::Due(now),
            ttl: Duration::ZERO,
            last_asked: None,
        }
    }

    /// It is being asked.
    pub(super) fn begin(&mut self, now: Instant) {
        self.clock = Clock::Running { again: false };
        self.last_asked = Some(now);
    }

    /// Something made the answer doubtful: asks as soon as [`DEMAND_SPACING`] allows.
    pub(super) fn demand(&mut self, now: Instant) {
        let earliest = self.earliest(now);
        match &mut self.clock {
            Clock::Due(at) => *at = earliest.min(*at),
            Clock::Running { again } => *again = true,
        }
    }

    /// Takes in how the asking ended and sets the time of the next one. Gives back the records
    /// that were replaced.
    pub(super) fn take_in(
        &mut self,
        resolution: Resolution,
        refresh: &Refresh,
        now: Instant,
        rng: &mut Rng,
        journal: &mut Journal,
    ) -> Option<Records> {
        let replaced = match usable(self.query.kind, resolution) {
            Usable::Records(records, ttl) => self.answered(records, ttl, journal),
            Usable::Absent(absence) => self.absent(absence, journal),
            Usable::Failed(reason) => {
                self.failed(reason, journal);
                None
            }
        };
        let is_demanded = matches!(self.clock, Clock::Running { again: true });
        self.clock = Clock::Due(if is_demanded {
            self.earliest(now)
        } else {
            now + self.pause(refresh, rng)
        });
        replaced
    }

    fn answered(
        &mut self,
        records: Records,
        ttl: Duration,
        journal: &mut Journal,
    ) -> Option<Records> {
        let was_failing = matches!(self.state, State::Failed { .. } | State::Absent { .. });
        let is_same = records == self.records;
        (self.state, self.ttl) = (State::Answered, ttl);
        if !is_same || was_failing {
            journal
                .event(PlaneEvent::Resolved { query: self.query.clone(), records: records.len() });
        }
        (!is_same).then(|| std::mem::replace(&mut self.records, records))
    }

    fn absent(&mut self, absence: Absence, journal: &mut Journal) -> Option<Records> {
        let in_a_row = match self.state {
            State::Absent { in_a_row, .. } => in_a_row.saturating_add(1),
            State::Unanswered | State::Answered | State::Failed { .. } => 1,
        };
        self.state = State::Absent { absence, in_a_row };
        if self.records.is_empty() {
            return None;
        }
        let (query, kept) = (self.query.clone(), self.records.len());
        if in_a_row < ABSENCES_MAX {
            journal.event(PlaneEvent::ResolveEmptyKept { query, absence, in_a_row, kept });
            return None;
        }
        journal.event(PlaneEvent::ResolveEmptied { query, absence });
        Some(std::mem::replace(&mut self.records, Records::none(self.query.kind)))
    }

    fn failed(&mut self, reason: ResolveFailure, journal: &mut Journal) {
        let in_a_row = match self.state {
            State::Failed { in_a_row } => in_a_row.saturating_add(1),
            State::Unanswered | State::Answered | State::Absent { .. } => 1,
        };
        self.state = State::Failed { in_a_row };
        let (query, kept) = (self.query.clone(), self.records.len());
        journal.event(PlaneEvent::ResolveFailedKept { query, reason, in_a_row, kept });
    }

    /// Follows the TTL while there is an answer, also while "nothing there" is not believed yet:
    /// asking faster would only meet the same cached answer three times. Without an answer the
    /// pause doubles from the shortest to the longest.
    fn pause(&self, refresh: &Refresh, rng: &mut Rng) -> Duration {
        let attempts = match self.state {
            State::Unanswered | State::Answered => 0,
            State::Absent { .. } if !self.records.is_empty() => 0,
            State::Absent { in_a_row, .. } | State::Failed { in_a_row } => in_a_row,
        };
        let nominal = match attempts {
            0 => self.ttl,
            n => refresh.min.saturating_mul(1_u32.checked_shl(n - 1).unwrap_or(u32::MAX)),
        };
        refresh.spread(nominal, rng)
    }

    fn earliest(&self, now: Instant) -> Instant {
        self.last_asked.map_or(now, |asked| now.max(asked + DEMAND_SPACING))
    }
}

impl Refresh {
    /// Clamps a pause and spreads it without leaving the bounds. Late rather than early, because a
    /// caching server answers an early question with the old records and the rest of their TTL.
    fn spread(&self, nominal: Duration, rng: &mut Rng) -> Duration {
        let pause = nominal.clamp(self.min, self.max);
        let high = (pause + pause / JITTER_FRACTION).min(self.max);
        let low = (high - high / (JITTER_FRACTION + 1)).max(self.min);
        rng.between(low.min(high), high)
    }
}

fn usable(kind: QueryKind, resolution: Resolution) -> Usable {
    let (records, ttl) = match (resolution, kind) {
        (Resolution::Absent(absence), _) => return Usable::Absent(absence),
        (Resolution::Failed(reason), _) => return Usable::Failed(reason),
        (Resolution::Addresses { addresses, ttl }, QueryKind::A | QueryKind::Aaaa) => {
            let is_usable = |ip: &IpAddr| {
                ip.is_ipv4() == (kind == QueryKind::A) && !ip.is_unspecified() && !ip.is_multicast()
            };
            (Records::Addresses(sorted(addresses.into_iter().filter(is_usable).collect())), ttl)
        }
        (Resolution::Services { services, ttl }, QueryKind::Srv) => {
            // RFC 2782: a target of "." says that the service is decidedly not available.
            let is_usable = |service: &Service| service.port != 0 && &*service.host != ".";
            let canonical =
                |service: Service| Service { host: canonical(&service.host), ..service };
            let services = services.into_iter().filter(is_usable).map(canonical);
            (Records::Services(sorted(services.collect())), ttl)
        }
        (Resolution::Addresses { .. } | Resolution::Services { .. }, _) => {
            return Usable::Failed(ResolveFailure::Internal);
        }
    };
    match records.is_empty() {
        true => Usable::Absent(Absence::NoRecords),
        false => Usable::Records(records, ttl),
    }
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}

/// A name as a key: DNS compares names without case (RFC 4343).
pub(super) fn canonical(name: &str) -> Arc<str> {
    Arc::from(name.to_ascii_lowercase())
}
