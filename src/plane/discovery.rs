//! Pure: which questions DNS is asked, when, and which addresses follow from the answers.
//!
//! An operator's name is two questions, A and AAAA, and each is judged on its own: a server that
//! fails to answer for one family says nothing about the other. SRV records lead to further
//! questions about the names in them. Their additional section is not used, because it is
//! optional, often cut off, and has TTLs of its own.
//!
//! Invariants
//! - A question stays exactly as long as a target or an SRV answer in use needs it.
//! - While the hosts of an SRV answer are unresolved, those of the answer before stay in use.
//! - At most [`QUESTIONS_RUNNING_MAX`] questions are running.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::Instant,
};

use super::{
    PlaneEvent, Refresh,
    dns::{Query, QueryKind, QuestionId, Resolution, Service},
    journal::Journal,
    question::{Clock, Question, Records, State, canonical},
};
use crate::model::{Rng, Target, Weight};

/// Questions that may be running at once, so that an SRV answer with thousands of hosts does not
/// become as many packets in one burst.
const QUESTIONS_RUNNING_MAX: usize = 32;

/// How an address shall be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) priority: u16,
    pub(super) weight: Weight,
    /// The host of the SRV record that led here: asked again when a connect fails.
    pub(super) host: Option<Arc<str>>,
    /// Where its health is asked for, as its target says.
    pub(super) health_port: Option<NonZeroU16>,
}

/// All questions, and when they are due.
#[derive(Debug)]
pub(super) struct Discovery {
    sources: Vec<Source>,
    refresh: Refresh,
    questions: BTreeMap<QuestionId, Question>,
    ids: BTreeMap<Query, QuestionId>,
    schedule: BTreeSet<(Instant, QuestionId)>,
    running: BTreeSet<QuestionId>,
    next_id: u64,
}

/// One target of the operator.
#[derive(Debug)]
enum Source {
    Address {
        address: SocketAddr,
        share: Share,
    },
    Host {
        host: Arc<str>,
        port: u16,
        share: Share,
    },
    Services {
        name: Arc<str>,
        health_port: Option<NonZeroU16>,
        /// Services of an earlier answer, until those of the current one are resolved.
        retiring: Vec<Service>,
    },
}

impl Discovery {
    pub(super) fn new(targets: &[Target], refresh: Refresh, now: Instant) -> Self {
        let source = |target: &Target| match target {
            Target::Address { address, weight, health_port } => {
                Source::Address { address: *address, share: Share::plain(*weight, *health_port) }
            }
            Target::Name { host, port, weight, health_port } => Source::Host {
                host: canonical(host),
                port: *port,
                share: Share::plain(*weight, *health_port),
            },
            Target::Srv { name, health_port } => Source::Services {
                name: canonical(name),
                health_port: *health_port,
                retiring: Vec::new(),
            },
        };
        let mut discovery = Self {
            sources: targets.iter().map(source).collect(),
            refresh,
            questions: BTreeMap::new(),
            ids: BTreeMap::new(),
            schedule: BTreeSet::new(),
            running: BTreeSet::new(),
            next_id: 0,
        };
        discovery.align_questions(now);
        discovery
    }

    /// Number of questions.
    #[cfg(debug_assertions)]
    pub(super) fn len(&self) -> usize {
        self.questions.len()
    }

    /// When [`Discovery::next_due`] has something to ask.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let may_ask = self.running.len() < QUESTIONS_RUNNING_MAX;
        self.schedule.first().filter(|_| may_ask).map(|(at, _)| *at)
    }

    /// The next question to ask now. It counts as running until it is answered.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<(QuestionId, Query)> {
        self.timeout().filter(|at| *at <= now)?;
        let (_, id) = self.schedule.pop_first()?;
        let question = self.questions.get_mut(&id)?;
        question.begin(now);
        self.running.insert(id);
        Some((id, question.query.clone()))
    }

    /// Takes in how a question ended. True if [`Discovery::addresses`] may have changed.
    pub(super) fn answer(
        &mut self,
        id: QuestionId,
        resolution: Resolution,
        now: Instant,
        rng: &mut Rng,
        journal: &mut Journal,
    ) -> bool {
        if !self.running.remove(&id) {
            return false;
        }
        journal.counters.discovery_operations += 1;
        // An SRV answer may have made the question superfluous while it was running.
        let Some(question) = self.questions.get_mut(&id) else { return false };
        let replaced = question.take_in(resolution, &self.refresh, now, rng, journal);
        match question.state {
            State::Absent { .. } => journal.counters.resolve_absences += 1,
            State::Failed { .. } => journal.counters.resolve_failures += 1,
            State::Answered | State::Unanswered => {}
        }
        let query = question.query.clone();
        if let Clock::Due(at) = question.clock {
            self.schedule.insert((at, id));
        }
        let is_changed = replaced.is_some();
        if let Some(Records::Services(old)) = replaced {
            self.replace_services(&query.name, old, now);
        }
        self.tell_nothing(&query, journal);
        let is_retiring = |source: &Source| match source {
            Source::Services { retiring, .. } => !retiring.is_empty(),
            Source::Address { .. } | Source::Host { .. } => false,
        };
        is_changed || self.sources.iter().any(is_retiring)
    }

    /// Something made the operator's names doubtful: asks them as soon as allowed.
    pub(super) fn demand(&mut self, now: Instant) {
        for query in self.sources.iter().flat_map(Source::queries).collect::<Vec<_>>() {
            self.demand_query(&query, now);
        }
    }

    /// Something made the host of an SRV record doubtful: asks for its addresses.
    pub(super) fn demand_host(&mut self, host: &Arc<str>, now: Instant) {
        for query in host_queries(host) {
            self.demand_query(&query, now);
        }
    }

    /// Every address that shall be used, and how. Retires what SRV answers need no more.
    pub(super) fn addresses(&mut self, now: Instant) -> BTreeMap<SocketAddr, Share> {
        self.retire(now);
        let mut addresses = BTreeMap::new();
        let mut add = |address: SocketAddr, share: Share| {
            let known = addresses.entry(address).or_insert_with(|| share.clone());
            if share.is_better_than(known) {
                *known = share;
            }
        };
        for source in &self.sources {
            match source {
                Source::Address { address, share } => add(*address, share.clone()),
                Source::Host { host, port, share } => {
                    for ip in self.host_addresses(host) {
                        add(SocketAddr::new(ip, *port), share.clone());
                    }
                }
                Source::Services { name, health_port, retiring } => {
                    for service in self.services(name).iter().chain(retiring) {
                        for ip in self.host_addresses(&service.host) {
                            let share = Share::of(service, *health_port);
                            add(SocketAddr::new(ip, service.port), share);
                        }
                    }
                }
            }
        }
        addresses
    }

    fn demand_query(&mut self, query: &Query, now: Instant) {
        let Some(&id) = self.ids.get(query) else { return };
        let Some(question) = self.questions.get_mut(&id) else { return };
        if let Clock::Due(at) = question.clock {
            self.schedule.remove(&(at, id));
        }
        question.demand(now);
        if let Clock::Due(at) = question.clock {
            self.schedule.insert((at, id));
        }
    }

    /// The SRV set of `name` changed from `old` to what its question holds. Services in `retiring`
    /// have proven themselves, those in `old` have not if there are any: then `old` was only an
    /// attempt, and what is retiring goes on until an answer leads somewhere.
    fn replace_services(&mut self, name: &Arc<str>, old: Vec<Service>, now: Instant) {
        let current = self.services(name).to_vec();
        for source in &mut self.sources {
            if let Source::Services { name: own, retiring, .. } = source
                && own == name
            {
                if retiring.is_empty() && !current.is_empty() {
                    retiring.clone_from(&old);
                }
                retiring.retain(|service| current.binary_search(service).is_err());
            }
        }
        self.align_questions(now);
    }

    /// Lets go of services of an earlier answer, once the current ones can replace them: all hosts
    /// have been asked, and they lead somewhere, or it is certain that they do not.
    fn retire(&mut self, now: Instant) {
        let mut is_changed = false;
        let mut sources = std::mem::take(&mut self.sources);
        for source in &mut sources {
            if let Source::Services { name, retiring, .. } = source
                && !retiring.is_empty()
                && self.is_resolved(self.services(name))
            {
                retiring.clear();
                is_changed = true;
            }
        }
        self.sources = sources;
        if is_changed {
            self.align_questions(now);
        }
    }

    fn is_resolved(&self, services: &[Service]) -> bool {
        let (mut leads_somewhere, mut is_certain) = (false, true);
        for query in services.iter().flat_map(|service| host_queries(&service.host)) {
            let Some(question) = self.question(&query) else { continue };
            match question.state {
                State::Unanswered => return false,
                State::Failed { .. } => is_certain = false,
                State::Answered | State::Absent { .. } => {}
            }
            leads_somewhere |= !question.records.is_empty();
        }
        leads_somewhere || is_certain
    }

    /// A name without any record is worth a word once, not each family of it, and not when the
    /// other family has records: most names have only one.
    fn tell_nothing(&self, query: &Query, journal: &mut Journal) {
        let state = self.question(query).map(|question| question.state);
        let Some(State::Absent { absence, in_a_row: 1 }) = state else { return };
        let kinds = match query.kind {
            QueryKind::A | QueryKind::Aaaa => [QueryKind::A, QueryKind::Aaaa].as_slice(),
            QueryKind::Srv => &[QueryKind::Srv],
        };
        let has_nothing = |kind: &QueryKind| {
            let sibling = Query { name: Arc::clone(&query.name), kind: *kind };
            self.question(&sibling).is_none_or(|question| {
                matches!(question.state, State::Absent { .. }) && question.records.is_empty()
            })
        };
        if kinds.iter().all(has_nothing) {
            journal.event(PlaneEvent::NameEmpty { query: query.clone(), absence });
        }
    }

    /// Makes the questions those that the targets and the SRV answers need.
    fn align_questions(&mut self, now: Instant) {
        let mut needed: BTreeSet<Query> = self.sources.iter().flat_map(Source::queries).collect();
        for source in &self.sources {
            if let Source::Services { name, retiring, .. } = source {
                let services = self.services(name).iter().chain(retiring);
                needed.extend(services.flat_map(|service| host_queries(&service.host)));
            }
        }
        self.questions.retain(|id, question| {
            let is_needed = needed.contains(&question.query);
            if !is_needed {
                self.ids.remove(&question.query);
                if let Clock::Due(at) = question.clock {
                    self.schedule.remove(&(at, *id));
                }
            }
            is_needed
        });
        for query in needed {
            if !self.ids.contains_key(&query) {
                let id = QuestionId(self.next_id);
                self.next_id += 1;
                self.ids.insert(query.clone(), id);
                self.questions.insert(id, Question::new(query, now));
                self.schedule.insert((now, id));
            }
        }
    }

    fn question(&self, query: &Query) -> Option<&Question> {
        self.questions.get(self.ids.get(query)?)
    }

    fn host_addresses(&self, host: &Arc<str>) -> impl Iterator<Item = IpAddr> {
        let questions = host_queries(host).into_iter().filter_map(|query| self.question(&query));
        questions.flat_map(|question| match &question.records {
            Records::Addresses(addresses) => addresses.iter().copied(),
            Records::Services(_) => [].iter().copied(),
        })
    }

    fn services(&self, name: &Arc<str>) -> &[Service] {
        let query = Query { name: Arc::clone(name), kind: QueryKind::Srv };
        match self.question(&query).map(|question| &question.records) {
            Some(Records::Services(services)) => services,
            Some(Records::Addresses(_)) | None => &[],
        }
    }

    #[cfg(debug_assertions)]
    pub(super) fn check_invariants(&self) {
        assert!(self.running.len() <= QUESTIONS_RUNNING_MAX);
        assert_eq!(self.ids.len(), self.questions.len());
        let due = |(id, question): (&QuestionId, &Question)| match question.clock {
            Clock::Due(at) => Some((at, *id)),
            Clock::Running { .. } => None,
        };
        let due: BTreeSet<_> = self.questions.iter().filter_map(due).collect();
        assert_eq!(due, self.schedule, "a question is running or has a time");
        for (query, id) in &self.ids {
            assert_eq!(&self.questions[id].query, query);
            let is_running = matches!(self.questions[id].clock, Clock::Running { .. });
            assert_eq!(is_running, self.running.contains(id));
        }
    }
}

impl Source {
    fn queries(&self) -> Vec<Query> {
        match self {
            Self::Address { .. } => Vec::new(),
            Self::Host { host, .. } => host_queries(host).to_vec(),
            Self::Services { name, .. } => {
                vec![Query { name: Arc::clone(name), kind: QueryKind::Srv }]
            }
        }
    }
}

fn host_queries(host: &Arc<str>) -> [Query; 2] {
    [QueryKind::A, QueryKind::Aaaa].map(|kind| Query { name: Arc::clone(host), kind })
}

impl Share {
    fn plain(weight: Weight, health_port: Option<NonZeroU16>) -> Self {
        Self { priority: 0, weight, host: None, health_port }
    }

    fn of(service: &Service, health_port: Option<NonZeroU16>) -> Self {
        Self {
            priority: service.priority,
            weight: Weight::from_srv(service.weight),
            host: Some(Arc::clone(&service.host)),
            health_port,
        }
    }

    /// One address that several records name is used as the best of them says.
    fn is_better_than(&self, other: &Self) -> bool {
        (other.priority, self.weight) > (self.priority, other.weight)
    }
}
