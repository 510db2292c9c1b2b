//! The model of ejections: what each backend's requests have met, in order, and what must follow.
//!
//! The product sees sums per worker at certain moments; the model sees every outcome in its order.
//! So it knows two rows of failures: the true one, which an ejection must have, and a sure one of
//! failures that no success can lie between, which must lead to an ejection.
//!
//! Likewise for silence: the model knows since when a backend's streams have been silent at every
//! reading, which an ejection must have, and since when they surely were while those of others were
//! not, which must lead to one.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    time::{Duration, Instant},
};

use stepflow_load_balancer::{
    health::outlier::{Ends, Policy, Reason, SILENCE_CONFIRMED, STREAMS_JUDGED_MIN},
    model::{Backend, BackendId, Presence, Standing},
};

/// How a request turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    ConnectFailed,
}

pub(crate) struct Conduct {
    policy: Option<Policy>,
    next_reading: Instant,
    backends: BTreeMap<BackendId, Record>,
    /// Let in before their time, in this step, and why they had been out.
    early: Vec<(BackendId, Reason)>,
    has_ejected: bool,
    /// Put out for silence, and not yet compared with what others sounded like.
    put_out: Vec<BackendId>,
    pub(crate) ejections: u64,
    pub(crate) withheld: u64,
}

struct Record {
    row: u64,
    connect_row: u64,
    /// Every outcome, and when the counts were first looked at behind it: nobody knows better.
    history: Vec<(Instant, Outcome)>,
    /// Outcomes since the last look at the counts.
    unread: Vec<Outcome>,
    sure_row: u64,
    sure_connect_row: u64,
    ejections: u32,
    in_since: Instant,
    out_until: Option<(Instant, Reason)>,
    sound: Sound,
    /// Since when the streams have been silent at every reading.
    silent_since: Option<Instant>,
    /// Since when, surely, and those of others were not.
    alone_since: Option<Instant>,
    /// Streams that had spoken again at the last reading while it was in, and when it was put out.
    resumed_read: u64,
    resumed_when_put_out: u64,
}

/// How the streams of a backend sound: judged and silent ones on each worker, and how often one has
/// spoken again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sound {
    pub(crate) on_workers: [(u64, u64); 2],
    pub(crate) resumed: u64,
}

impl Sound {
    fn judged(&self) -> u64 {
        self.on_workers.iter().map(|(judged, _)| judged).sum()
    }

    fn silent(&self) -> u64 {
        self.on_workers.iter().map(|(_, silent)| silent).sum()
    }
}

impl Conduct {
    pub(crate) fn new(policy: Option<Policy>, now: Instant) -> Self {
        Self {
            policy,
            next_reading: now,
            backends: BTreeMap::new(),
            early: Vec::new(),
            has_ejected: false,
            put_out: Vec::new(),
            ejections: 0,
            withheld: 0,
        }
    }

    /// A process that nobody knew.
    pub(crate) fn arrived(&mut self, id: BackendId, now: Instant) {
        let record = Record {
            row: 0,
            connect_row: 0,
            history: Vec::new(),
            unread: Vec::new(),
            sure_row: 0,
            sure_connect_row: 0,
            ejections: 0,
            in_since: now,
            out_until: None,
            sound: Sound::default(),
            silent_since: None,
            alone_since: None,
            resumed_read: 0,
            resumed_when_put_out: 0,
        };
        self.backends.insert(id, record);
    }

    pub(crate) fn count(&mut self, id: BackendId, outcome: Outcome) {
        let Some(record) = self.backends.get_mut(&id) else { return };
        (record.row, record.connect_row) = match outcome {
            Outcome::Passed => (0, 0),
            Outcome::Failed => (record.row + 1, 0),
            Outcome::ConnectFailed => (record.row + 1, record.connect_row + 1),
        };
        record.unread.push(outcome);
    }

    /// Gives how the streams of a backend sound, to be changed.
    pub(crate) fn sound(&mut self, id: BackendId) -> Option<&mut Sound> {
        self.backends.get_mut(&id).map(|record| &mut record.sound)
    }

    /// A step begins.
    pub(crate) fn begin_step(&mut self) {
        self.early.clear();
        self.has_ejected = false;
    }

    pub(crate) fn ejected(
        &mut self,
        id: BackendId,
        reason: Reason,
        length: Duration,
        ejections: u32,
        now: Instant,
    ) {
        let policy = self.policy.expect("nobody is ejected without a policy");
        let record = self.backends.get_mut(&id).expect("a backend");
        assert_eq!(record.out_until, None, "ejected twice");
        let reaches = |row: u64, limit: Option<NonZeroU32>| {
            row >= u64::from(limit.expect("a reason that is not switched off").get())
        };
        match reason {
            Reason::ConsecutiveFailures => {
                assert!(reaches(record.row, policy.failures_in_a_row), "{} in a row", record.row);
            }
            Reason::ConnectFailures => {
                let row = record.connect_row;
                assert!(reaches(row, policy.connect_failures_in_a_row), "{row} in a row");
            }
            Reason::FailureRate => {
                let oldest = now.checked_sub(policy.window).expect("clocks began long ago");
                let recent = record.history.iter().filter(|(at, _)| *at >= oldest);
                let recent = recent.map(|(_, outcome)| outcome).chain(&record.unread);
                let failed = recent.filter(|outcome| **outcome != Outcome::Passed).count();
                let percent = u64::from(policy.failure_percent.expect("a share"));
                let least = u64::from(policy.requests_min.get()) * percent;
                assert!(failed as u64 * 100 >= least.max(1), "{failed} failures");
            }
            Reason::StreamsStalled => assert!(policy.silent_percent.is_some()),
        }
        if reason == Reason::StreamsStalled {
            let since = record.silent_since.expect("they were silent");
            assert!(now - since >= SILENCE_CONFIRMED, "not for long enough");
            self.put_out.push(id);
        }
        record.resumed_when_put_out = record.sound.resumed;
        let good_for = (now - record.in_since).as_nanos();
        let forgiven = u32::try_from(good_for / policy.ejection.as_nanos()).unwrap_or(u32::MAX);
        record.ejections = record.ejections.saturating_sub(forgiven) + 1;
        assert_eq!(ejections, record.ejections);
        assert_eq!(length, (policy.ejection * ejections).min(policy.ejection_max));
        record.out_until = Some((now + length, reason));
        self.ejections += 1;
        self.has_ejected = true;
    }

    pub(crate) fn readmitted(&mut self, id: BackendId, now: Instant) {
        let record = self.backends.get_mut(&id).expect("a backend");
        let (until, reason) = record.out_until.take().expect("nobody comes back who was not out");
        let resumed = record.sound.resumed - record.resumed_read;
        let speaks = reason == Reason::StreamsStalled && resumed > record.sound.silent();
        if now < until && !speaks {
            self.early.push((id, reason));
        }
        (record.silent_since, record.alone_since) = (None, None);
        record.in_since = now;
        (record.sure_row, record.sure_connect_row) = (0, 0);
        // They are read with the slate that is wiped here.
        record.history.clear();
        record.unread.clear();
    }

    /// The counts of this backend, or of all, are looked at. `was` and `is` are the pictures before
    /// and behind the step.
    pub(crate) fn read(
        &mut self,
        only: Option<BackendId>,
        was: &[Backend],
        is: &[Backend],
        now: Instant,
    ) {
        let passing = |backends: &[Backend]| -> BTreeSet<BackendId> {
            backends.iter().filter(|b| b.passes_checks()).map(|b| b.id).collect()
        };
        let (was_room, is_room) = (self.has_room(was), self.has_room(is));
        match only {
            None => self.listen(was, is, now),
            // What counts is how they sounded at the last reading.
            Some(_) => self.put_out.clear(),
        }
        let (was, is) = (passing(was), passing(is));
        for (id, record) in &mut self.backends {
            if only.is_some_and(|only| only != *id) {
                continue;
            }
            let unread = std::mem::take(&mut record.unread);
            record.history.extend(unread.iter().map(|outcome| (now, *outcome)));
            let add = |row: u64, ends: fn(Outcome) -> bool, counts: fn(Outcome) -> bool| {
                let news = unread.iter().filter(|o| counts(**o)).count() as u64;
                if unread.iter().any(|o| ends(*o)) { 0 } else { row + news }
            };
            let passed = |o| o == Outcome::Passed;
            let connect_failed = |o| o == Outcome::ConnectFailed;
            record.sure_row = add(record.sure_row, passed, |o| o != Outcome::Passed);
            record.sure_connect_row =
                add(record.sure_connect_row, |o| o != Outcome::ConnectFailed, connect_failed);
            // What is met by whoever takes no new work is forgotten.
            if record.out_until.is_some() || !was.contains(id) || !is.contains(id) {
                (record.sure_row, record.sure_connect_row) = (0, 0);
            }
            let reaches = |row: u64, limit: Option<NonZeroU32>| {
                limit.is_some_and(|limit| row >= u64::from(limit.get()))
            };
            let is_stalled =
                |since: Option<Instant>| since.is_some_and(|at| now - at >= SILENCE_CONFIRMED);
            let is_bad = self.policy.is_some_and(|policy| {
                reaches(record.sure_row, policy.failures_in_a_row)
                    || reaches(record.sure_connect_row, policy.connect_failures_in_a_row)
                    || (only.is_none() && is_stalled(record.alone_since))
            });
            assert!(!is_bad || !was_room || !is_room, "{id:?} fails and is not ejected");
        }
    }

    /// The streams of all are listened to, in a step between these two pictures.
    fn listen(&mut self, was: &[Backend], is: &[Backend], now: Instant) {
        let Some(percent) = self.policy.and_then(|policy| policy.silent_percent) else { return };
        let percent = u64::from(percent);
        let taking = |backends: &[Backend]| -> BTreeSet<BackendId> {
            backends.iter().filter(|b| b.takes_new_work()).map(|b| b.id).collect()
        };
        let there: BTreeSet<BackendId> = is.iter().map(|b| b.id).collect();
        let (was, is) = (taking(was), taking(is));
        // Who took work when they were listened to is certain if nothing else has changed than that
        // somebody was ejected thereafter.
        let is_certain = is.is_subset(&was)
            && was
                .difference(&is)
                .all(|id| self.backends.get(id).is_some_and(|record| record.out_until.is_some()));
        let sum = |of: fn(&Sound) -> u64| -> u64 {
            was.iter().filter_map(|id| self.backends.get(id)).map(|record| of(&record.sound)).sum()
        };
        let (judged, silent) = (sum(Sound::judged), sum(Sound::silent));
        let put_out = std::mem::take(&mut self.put_out);
        for (id, record) in &mut self.backends {
            let (own_judged, own_silent) = (record.sound.judged(), record.sound.silent());
            let is_silent =
                own_judged >= STREAMS_JUDGED_MIN && own_silent * 100 >= own_judged * percent;
            let since = record.silent_since.unwrap_or(now);
            record.silent_since = is_silent.then_some(since);
            // Whoever waits for its initialisation is judged, and nobody is compared with it.
            let is_taking = was.contains(id);
            let (judged, silent) = match is_taking {
                true => (judged - own_judged, silent - own_silent),
                false => (judged, silent),
            };
            let is_alone = judged >= STREAMS_JUDGED_MIN && silent * 200 < judged * percent;
            let is_wronged = is_certain && put_out.contains(id) && !(is_silent && is_alone);
            assert!(!is_wronged, "{id:?} is out for a silence that others keep");
            let is_due = is_certain && is_taking && record.out_until.is_none();
            let since = record.alone_since.unwrap_or(now);
            record.alone_since = (is_due && is_silent && is_alone).then_some(since);
            match record.out_until {
                None => record.resumed_read = record.sound.resumed,
                Some((_, Reason::StreamsStalled)) if there.contains(id) => {
                    let resumed = record.sound.resumed - record.resumed_when_put_out;
                    assert!(resumed <= own_silent, "{id:?} speaks and is not let in");
                }
                Some(_) => {}
            }
        }
    }

    /// One more could be ejected of these.
    fn has_room(&self, backends: &[Backend]) -> bool {
        let taking = backends.iter().filter(|b| b.takes_new_work()).count();
        taking >= 2 && self.room(backends) > 0
    }

    /// How many more could be out, were there enough that take new work.
    fn room(&self, backends: &[Backend]) -> usize {
        let Some(policy) = self.policy else { return 0 };
        let present: Vec<_> = backends.iter().filter(|b| b.presence == Presence::Present).collect();
        let share = present.len() * usize::from(policy.ejected_percent_max) / 100;
        let least = usize::from(present.len() >= 2 && policy.ejected_percent_max > 0);
        let out = present.iter().filter(|b| b.standing == Standing::Ejected).count();
        share.max(least).checked_sub(out).expect("no more are out than the share")
    }

    /// Whether the counts of all are looked at in a call at this time.
    pub(crate) fn is_reading_due(&mut self, now: Instant) -> bool {
        let Some(policy) = self.policy else { return false };
        let is_due = self.next_reading <= now;
        if is_due {
            self.next_reading = now + policy.reading_period();
        }
        is_due
    }

    /// What must hold of every picture.
    pub(crate) fn check(&self, is: &[Backend], now: Instant, probing: bool) {
        let out: BTreeSet<BackendId> =
            is.iter().filter(|b| b.standing == Standing::Ejected).map(|b| b.id).collect();
        let there = |id: &BackendId| is.iter().any(|b| b.id == *id);
        let believed = self.backends.iter().filter(|(id, r)| r.out_until.is_some() && there(id));
        assert_eq!(out, believed.map(|(id, _)| *id).collect());
        let Some(policy) = self.policy else { return };
        for (id, record) in self.backends.iter().filter(|(id, _)| there(id)) {
            let is_over = record.out_until.is_some_and(|(until, _)| until <= now);
            assert!(!is_over, "{id:?} has been out enough");
        }
        // When others leave or an ejected one returns, as many come back as were too many.
        let may_be_early = |reason| {
            let by_probe = probing && policy.ends == Ends::ByProbe;
            self.room(is) == 0 || (by_probe && reason != Reason::StreamsStalled)
        };
        let is_fair = self.early.iter().all(|(_, reason)| may_be_early(*reason));
        assert!(is_fair, "{:?} came back too early", self.early);
    }

    /// In a step in which nothing else happened than that requests failed, somebody is left.
    pub(crate) fn check_somebody_is_left(&self, is: &[Backend]) {
        assert!(!self.has_ejected || is.iter().any(Backend::takes_new_work), "nobody is left");
    }
}
