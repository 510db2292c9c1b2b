//! Pure: who has been initialised, and who is still to be (ADR 21).
//!
//! Stepflow's orchestrator says `initialize` once, to whichever backend the balancer picks, and
//! `initialized` when the answer pleased it. From then on the pair is replayed to every other
//! backend, and to each that comes later.
//!
//! Invariants
//! - Only a pair whose second half the client itself has sent is ever replayed; the newest wins.
//! - A backend that has had no initialisation while there is one is [`Initialisation::Pending`],
//!   until it has had it or has failed [`TRIES_PATIENT`] times; then never again.
//! - At most one replay per backend and [`REPLAYS_RUNNING_MAX`] in all are running, and of one
//!   initialisation a backend sees at most [`TRIES_MAX`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{PlaneEvent, journal::Journal};
use crate::{
    health::ProbeFailure,
    model::{Backend, BackendId, Initialisation, InitialisationProgress, Initialize, Recording},
};

/// Clients whose `initialize` was answered and whose `initialized` is on its way. Beyond, the
/// oldest is forgotten.
const CANDIDATES_MAX: usize = 16;

/// Replays that may be running at once. Each holds a descriptor.
const REPLAYS_RUNNING_MAX: usize = 16;

/// Failures in a row after which a backend takes work all the same: one that cannot be initialised
/// may still be good for most requests, and must not be kept out for ever.
const TRIES_PATIENT: u32 = 4;

/// Failures in a row after which a backend is left alone, until there is another initialisation or
/// another process. With the pauses between them they take about four minutes.
const TRIES_MAX: u32 = 12;

/// Pause behind the first failure. Each further one doubles it.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause behind a failure.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Between two replays to one backend that succeed: clients that contradict each other without end
/// must not become a flood of requests.
const REPLAY_SPACING: Duration = Duration::from_secs(1);

/// A backend that has answered an `initialize` which its client does not confirm for this long
/// gets the one that counts again.
const UNCONFIRMED_WAIT: Duration = Duration::from_secs(5);

/// A pair of requests for one backend. Answered by [`super::Input::Replayed`], always.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Names the backend in the answer.
    pub backend: BackendId,
    /// Where it is.
    pub address: SocketAddr,
    /// What it gets first. Must succeed before the other is sent.
    pub initialize: Recording,
    /// What it gets then.
    pub initialized: Recording,
}

/// Which of the two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayStep {
    /// The request.
    Initialize,
    /// The notification.
    Initialized,
}

/// Why a backend has not been initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFailure {
    /// It could not be asked, or did not answer.
    Unanswered(ReplayStep, ProbeFailure),
    /// It answered with a status other than 2xx.
    Status(ReplayStep, u16),
    /// It answered with a JSON-RPC error.
    Refused,
}

impl ReplayFailure {
    /// The kind, for metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unanswered(..) => "unanswered",
            Self::Status(..) => "status",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for ReplayStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initialize => "initialize",
            Self::Initialized => "initialized",
        })
    }
}

impl fmt::Display for ReplayFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(step, failure) => write!(f, "{step}: {failure}"),
            Self::Status(step, status) => write!(f, "{step}: status {status}"),
            Self::Refused => f.write_str("initialize: a JSON-RPC error"),
        }
    }
}

/// What is counted about replays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayCounters {
    /// Initialisations learned that differ from the one before.
    pub learned: u64,
    /// Replays that a backend has taken.
    pub passed: u64,
    /// Replays to which there was no answer.
    pub unanswered: u64,
    /// Replays whose answer had another status than 2xx.
    pub status: u64,
    /// Replays that were answered with a JSON-RPC error.
    pub refused: u64,
    /// Backends that took work without, because they had failed too often.
    pub excused: u64,
}

/// Everything about it.
#[derive(Debug, Default)]
pub(super) struct Initialisations {
    candidates: VecDeque<Candidate>,
    current: Option<Current>,
    members: BTreeMap<BackendId, Member>,
    schedule: BTreeSet<(Instant, BackendId)>,
    /// With the generation that is on its way.
    running: BTreeMap<BackendId, u64>,
    progress: InitialisationProgress,
}

/// An `initialize` that was answered.
#[derive(Debug)]
struct Candidate {
    by: BackendId,
    initialize: Initialize,
}

/// The pair that everybody is to have.
#[derive(Debug)]
struct Current {
    generation: u64,
    terms: Arc<str>,
    initialize: Recording,
    initialized: Recording,
}

/// What a backend has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Had {
    /// None that we know of.
    Nothing,
    /// Another than the current one.
    Another,
    /// The current one.
    Current,
}

#[derive(Debug)]
struct Member {
    address: SocketAddr,
    /// Would take work if it were initialised.
    is_up: bool,
    had: Had,
    failures: u32,
    /// It has failed so often that it takes work without.
    is_excused: bool,
    not_before: Instant,
    /// Its place in the schedule.
    due: Option<Instant>,
}

impl Initialisations {
    /// A backend has answered a client's `initialize`.
    pub(super) fn answered(&mut self, by: BackendId, initialize: Initialize, now: Instant) {
        if let (Some(current), Some(member)) = (&self.current, self.members.get_mut(&by)) {
            match current.terms == initialize.terms {
                true => member.had = Had::Current,
                false => {
                    member.had = Had::Another;
                    member.not_before = now + UNCONFIRMED_WAIT;
                }
            }
            self.plan(by, now);
        }
        self.candidates.retain(|candidate| candidate.initialize.client != initialize.client);
        if self.candidates.len() == CANDIDATES_MAX {
            self.candidates.pop_front();
        }
        self.candidates.push_back(Candidate { by, initialize });
    }

    /// A client has sent `initialized`, and so is content with the answer that it had. Changes what
    /// a snapshot shows.
    pub(super) fn confirmed(
        &mut self,
        client: IpAddr,
        initialized: Recording,
        now: Instant,
        journal: &mut Journal,
    ) {
        self.progress.confirmed += 1;
        let found = self.candidates.iter().position(|c| c.initialize.client == client);
        let candidate = found.and_then(|at| self.candidates.remove(at));
        self.progress.answered_by = candidate.as_ref().map(|candidate| candidate.by);
        // Without an `initialize` there is nothing to replay.
        let Some(Candidate { by, initialize }) = candidate else { return };
        let generation = match &self.current {
            Some(current) if current.terms == initialize.terms => current.generation,
            _ => {
                journal.counters.replays.learned += 1;
                journal.event(PlaneEvent::InitialisationLearned { client, id: by });
                for (id, member) in &mut self.members {
                    if member.had == Had::Current {
                        member.had = Had::Another;
                    }
                    // Another chance, but no faster than replays that succeed.
                    member.failures = 0;
                    member.not_before = member.not_before.min(now + REPLAY_SPACING);
                    if let Some(at) = member.due.take() {
                        self.schedule.remove(&(at, *id));
                    }
                }
                self.current.as_ref().map_or(1, |current| current.generation + 1)
            }
        };
        let Initialize { terms, request, .. } = initialize;
        self.current = Some(Current { generation, terms, initialize: request, initialized });
        let member = self.members.entry(by).or_insert_with(|| Member::new(now));
        // Whoever answers is up, until the next snapshot says otherwise.
        (member.had, member.is_up) = (Had::Current, true);
        for id in self.members.keys().copied().collect::<Vec<_>>() {
            self.plan(id, now);
        }
    }

    /// These are the backends of the next snapshot, in order of identity. Marks those that have to
    /// wait. Does nothing until there is something to replay.
    pub(super) fn reconcile(
        &mut self,
        backends: &mut [Backend],
        now: Instant,
    ) -> InitialisationProgress {
        if self.current.is_none() {
            return self.progress;
        }
        let is_there = |id: BackendId| backends.binary_search_by_key(&id, |b| b.id).is_ok();
        let gone: Vec<BackendId> =
            self.members.keys().copied().filter(|id| !is_there(*id)).collect();
        for id in gone {
            if let Some(at) = self.members.remove(&id).and_then(|member| member.due) {
                self.schedule.remove(&(at, id));
            }
        }
        self.progress.awaited = 0;
        for backend in backends {
            let member = self.members.entry(backend.id).or_insert_with(|| Member::new(now));
            member.address = backend.address;
            let was_up = std::mem::replace(&mut member.is_up, backend.takes_new_work());
            // Of one without an id nobody can tell whether it is still the same process.
            if !was_up && member.is_up && backend.instance.is_none() {
                member.had = Had::Nothing;
            }
            backend.initialisation = member.state();
            self.progress.awaited += usize::from(member.is_awaited());
            self.plan(backend.id, now);
        }
        self.progress
    }

    /// When [`Initialisations::next_replay`] has something to start.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let may_replay = self.running.len() < REPLAYS_RUNNING_MAX;
        self.schedule.first().filter(|_| may_replay).map(|(at, _)| *at)
    }

    /// The next replay to start now. It counts as running until [`Initialisations::replayed`].
    pub(super) fn next_replay(&mut self, now: Instant) -> Option<Replay> {
        self.timeout().filter(|at| *at <= now)?;
        let current = self.current.as_ref()?;
        let (_, backend) = self.schedule.pop_first()?;
        let member = self.members.get_mut(&backend)?;
        member.due = None;
        self.running.insert(backend, current.generation);
        Some(Replay {
            backend,
            address: member.address,
            initialize: current.initialize.clone(),
            initialized: current.initialized.clone(),
        })
    }

    /// A replay ended. Gives back whether a snapshot would show it.
    pub(super) fn replayed(
        &mut self,
        id: BackendId,
        outcome: Result<(), ReplayFailure>,
        now: Instant,
        journal: &mut Journal,
    ) -> bool {
        let Some(generation) = self.running.remove(&id) else { return false };
        let counters = &mut journal.counters.replays;
        match outcome {
            Ok(()) => counters.passed += 1,
            Err(ReplayFailure::Unanswered(..)) => counters.unanswered += 1,
            Err(ReplayFailure::Status(..)) => counters.status += 1,
            Err(ReplayFailure::Refused) => counters.refused += 1,
        }
        let is_current = self.current.as_ref().is_some_and(|c| c.generation == generation);
        let Some(member) = self.members.get_mut(&id) else { return false };
        let address = member.address;
        let before = (member.state(), member.is_awaited());
        match outcome {
            Ok(()) => {
                member.had = if is_current { Had::Current } else { Had::Another };
                (member.failures, member.is_excused) = (0, false);
                member.not_before = now + REPLAY_SPACING;
                journal.event(PlaneEvent::InitialisationReplayed { id, address });
            }
            // It failed at what nobody wants of it any more.
            Err(_) if !is_current => {}
            Err(reason) => {
                member.failures += 1;
                let failures = member.failures;
                let doubled = RETRY_PAUSE.saturating_mul(1 << (failures - 1).min(16));
                member.not_before = now + doubled.min(RETRY_PAUSE_MAX);
                if failures == TRIES_PATIENT && !std::mem::replace(&mut member.is_excused, true) {
                    journal.counters.replays.excused += 1;
                    journal.event(PlaneEvent::InitialisationExcused { id, address, reason });
                } else {
                    journal.event(PlaneEvent::InitialisationFailed {
                        id,
                        address,
                        reason,
                        failures,
                    });
                }
            }
        }
        let is_news = before != (member.state(), member.is_awaited());
        self.plan(id, now);
        is_news
    }

    /// Puts a backend into the schedule or takes it out, as its state demands.
    fn plan(&mut self, id: BackendId, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let wants = member.is_up
            && member.had != Had::Current
            && member.failures < TRIES_MAX
            && !self.running.contains_key(&id);
        let due = wants.then(|| member.not_before.max(member.due.unwrap_or(now)));
        if due != member.due {
            if let Some(at) = member.due {
                self.schedule.remove(&(at, id));
            }
            if let Some(at) = due {
                self.schedule.insert((at, id));
            }
            member.due = due;
        }
    }

    #[cfg(debug_assertions)]
    pub(super) fn check_invariants(&self) {
        assert!(self.running.len() <= REPLAYS_RUNNING_MAX);
        assert!(self.candidates.len() <= CANDIDATES_MAX);
        let scheduled = self.members.iter().filter_map(|(id, m)| m.due.map(|at| (at, *id)));
        assert_eq!(scheduled.collect::<BTreeSet<_>>(), self.schedule);
        for (id, member) in &self.members {
            assert!(member.due.is_none() || !self.running.contains_key(id), "one at a time");
            assert!(member.failures <= TRIES_MAX);
            if member.is_up && member.had != Had::Current && member.failures < TRIES_MAX {
                let is_on_its_way = member.due.is_some() || self.running.contains_key(id);
                assert!(is_on_its_way, "{id:?} would wait for ever");
            }
        }
    }
}

impl Member {
    fn new(now: Instant) -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 0)),
            is_up: false,
            had: Had::Nothing,
            failures: 0,
            is_excused: false,
            not_before: now,
            due: None,
        }
    }

    /// Whether somebody who initialises waits for it.
    fn is_awaited(&self) -> bool {
        self.is_up && self.had != Had::Current && !self.is_excused
    }

    fn state(&self) -> Initialisation {
        match self.had == Had::Nothing && !self.is_excused {
            true => Initialisation::Pending,
            false => Initialisation::Settled,
        }
    }
}

#[cfg(test)]
mod tests;
