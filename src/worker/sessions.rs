//! Sessions: whom a request must reach by what it brings, what its response gives to the client,
//! and which sessions are live on which backend.
//!
//! What decides is in [`crate::session`]; here are the nonces, the clock, the table of the worker
//! and the counts. Nothing is kept that a request needs: a worker, a replica or a process that has
//! never met a session serves it all the same.

use std::{
    cell::{Cell, RefCell},
    hash::{BuildHasher, RandomState},
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Worker,
    table::{BackendTable, Slot},
};
use crate::{
    exchange::{Admission, Failure},
    http1::{Edits, Method, RequestHead, ResponseHead},
    model::{BackendId, InstanceId, Presence},
    session::{
        Identity, Key, Kind, Lost, Mcp, Named, Nonce, Owner, ReadError, Reading, Route, Rules,
        Settings,
    },
    stats::{BackendStats, LOST_REASONS, LiveSessions, SessionOwner, SessionTag},
    telemetry::{McpRecord, Routed, loggable},
};

/// Time in which every entry of the table of live sessions is looked at once.
const SWEEP: Duration = Duration::from_secs(5);

/// Where [`LOST_REASONS`] says that another process is where the owner was.
const RESTARTED: usize = 0;

/// What all workers share about sessions.
#[derive(Clone, Debug)]
pub struct SharedSessions {
    rules: Arc<Rules>,
    live: Arc<LiveSessions>,
    /// Makes numbers of sessions. Another in every process: nobody can choose ids that meet.
    hasher: RandomState,
    /// From when on the seconds of the table are counted.
    epoch: Instant,
    idle_seconds: u32,
}

impl SharedSessions {
    /// What the settings ask for; `None` where they ask for nothing. Without keys one is drawn.
    ///
    /// # Errors
    /// When the system gives no random octets.
    pub fn new(settings: &Settings) -> io::Result<Option<Self>> {
        if settings.is_plain() {
            return Ok(None);
        }
        let mut keys = settings.keys.clone();
        if keys.is_empty() {
            keys.push(Key::new(random()?));
        }
        Ok(Some(Self {
            rules: Arc::new(Rules::new(settings, &keys)),
            live: Arc::default(),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            idle_seconds: u32::try_from(settings.idle.as_secs()).unwrap_or(u32::MAX),
        }))
    }
}

fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut octets = [0; BYTES];
    getrandom::fill(&mut octets).map_err(io::Error::from)?;
    Ok(octets)
}

/// One worker's part in sessions.
pub(super) struct Sessions {
    shared: SharedSessions,
    /// Drawn once per worker and process. With a count behind it no nonce comes twice, in however
    /// many replicas that have the same key: two draws of 128 bits do not meet.
    nonce_front: [u8; 16],
    nonces: Cell<u64>,
    /// The group of the table that is looked at next.
    next_group: Cell<usize>,
}

impl Sessions {
    /// # Errors
    /// When the system gives no random octets.
    pub(super) fn new(shared: SharedSessions, worker: usize) -> io::Result<Self> {
        let next_group = Cell::new(worker);
        Ok(Self { shared, nonce_front: random()?, nonces: Cell::new(0), next_group })
    }

    /// What decides.
    pub(super) fn rules(&self) -> &Rules {
        &self.shared.rules
    }

    fn nonce(&self) -> Nonce {
        let number = self.nonces.get();
        self.nonces.set(number + 1);
        let mut nonce = [0; 24];
        nonce[..16].copy_from_slice(&self.nonce_front);
        nonce[16..].copy_from_slice(&number.to_be_bytes());
        nonce
    }

    fn now(&self) -> u32 {
        // The table's clock goes round long before.
        u32::try_from(self.shared.epoch.elapsed().as_secs() & u64::from(u32::MAX))
            .unwrap_or_default()
    }

    fn tag(&self, identity: &Identity<'_>) -> SessionTag {
        SessionTag(self.shared.hasher.hash_one(identity))
    }

    /// Reads what a request brings, and decides how its head goes on.
    pub(super) fn read(
        &self,
        worker: &Rc<Worker>,
        head: &RequestHead<'_>,
        admission: &mut Admission<'_>,
    ) -> Result<Session, Failure> {
        let read = self.rules().read(head.fields, head.method, admission.instance);
        let mut reading = read.map_err(|error| match error {
            ReadError::InstanceRepeated => Failure::InstanceRepeated,
            ReadError::SessionRepeated => Failure::SessionRepeated,
        })?;
        admission.edits = std::mem::take(&mut reading.edits);
        let instance = reading.owner().and_then(|owner| owner.instance.as_deref());
        let instance = instance.and_then(|instance| worker.instance_id(instance));
        Ok(Session {
            worker: Rc::clone(worker),
            reading,
            method: head.method,
            instance,
            has_moved: false,
            has_restarted: Cell::new(false),
            held: Cell::new(None),
            pending: RefCell::new(None),
        })
    }

    /// Closes sessions that nobody has used for long, a part of them at each tick.
    pub(super) fn sweep(&self, worker: &Worker, tick: Duration) {
        let workers = worker.all_stats.len();
        let ticks = (SWEEP.as_millis() / tick.as_millis()).max(1);
        let part = LiveSessions::GROUPS / workers / usize::try_from(ticks).unwrap_or(1) + 1;
        let (now, idle) = (self.now(), self.shared.idle_seconds);
        let table = worker.table.borrow();
        for _ in 0..part {
            let group = self.next_group.get();
            self.shared.live.expire(group, now, idle, |owner| {
                worker.stats().sessions_expired.add(1);
                count_closed(worker, &table, owner);
            });
            // Each worker has the groups of its own number, and one more number, and so on.
            let next = group + workers;
            let first = worker.index % LiveSessions::GROUPS;
            self.next_group.set(if next < LiveSessions::GROUPS { next } else { first });
        }
    }
}

/// Whom a request must reach.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pin<'a> {
    /// This instance.
    Instance(&'a InstanceId),
    /// Whoever is where the owner of its session was, which had no name.
    Address(std::net::SocketAddr),
    /// Nobody: its session cannot be read.
    Nobody,
}

/// What becomes of a request whose session is not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is refused.
    Refused(Failure),
    /// Another backend will do.
    Moves,
}

/// The sessions of one exchange.
pub(super) struct Session {
    worker: Rc<Worker>,
    reading: Reading,
    method: Method,
    /// The instance that it must reach.
    instance: Option<InstanceId>,
    /// Its session was lost, and it goes to another backend.
    has_moved: bool,
    /// Another process was met where its owner was.
    has_restarted: Cell<bool>,
    /// The session that counts as running for as long as this lives.
    held: Cell<Option<SessionTag>>,
    /// Counts the session that may begin, against the backend that was chosen for it.
    pending: RefCell<Option<Pending>>,
}

impl Session {
    fn sessions(&self) -> &Sessions {
        self.worker.sessions.as_ref().expect("only they make a session")
    }

    fn kind(&self) -> Option<Kind> {
        match self.reading.route {
            Route::Owner(kind) | Route::Nobody(kind) => Some(kind),
            Route::Anybody | Route::Begins => None,
        }
    }

    /// The instance that the request names in plain words.
    pub(super) fn named_instance(&self) -> Option<InstanceId> {
        let is_named = self.reading.route == Route::Owner(Kind::Instance);
        self.instance.clone().filter(|_| is_named)
    }

    /// How the access log tells where the request goes.
    pub(super) fn routed(&self) -> Routed {
        match self.reading.route {
            _ if self.has_moved => Routed::SessionMoved,
            Route::Owner(Kind::Instance) => Routed::Affinity,
            Route::Owner(_) => Routed::Session,
            Route::Nobody(_) => Routed::SessionLost,
            Route::Begins => Routed::SessionBegins,
            Route::Anybody => Routed::Balanced,
        }
    }

    /// What MCP's own fields say that the request is about, for the access log.
    pub(super) fn mcp(&self) -> Option<Box<McpRecord>> {
        let Mcp { method, name } = &self.reading.mcp;
        let is_said = method.is_some() || name.is_some();
        let text = |octets: &Option<Box<[u8]>>| octets.as_deref().map(loggable);
        is_said.then(|| Box::new(McpRecord { method: text(method), name: text(name) }))
    }

    pub(super) fn pin(&self) -> Option<Pin<'_>> {
        if self.has_moved {
            return None;
        }
        match (self.reading.route, &self.instance) {
            (Route::Anybody | Route::Begins, _) => None,
            (Route::Nobody(_), _) => Some(Pin::Nobody),
            (Route::Owner(_), Some(instance)) => Some(Pin::Instance(instance)),
            (Route::Owner(_), None) => {
                let address = self.reading.owner().and_then(|owner| owner.address);
                Some(address.map_or(Pin::Nobody, Pin::Address))
            }
        }
    }

    /// Whoever sends the request again reaches the same backend.
    pub(super) fn ties(&self) -> bool {
        self.pin().is_some() || self.held.get().is_some()
    }

    /// The backend to be chosen may get a session more than it has.
    pub(super) fn begins(&self) -> bool {
        self.has_moved || self.reading.route == Route::Begins
    }

    /// This backend was chosen, for a session that may begin.
    pub(super) fn place(&self, slot: Slot) {
        if self.begins() {
            let stats = Arc::clone(&self.worker.table.borrow().backend(slot).stats);
            self.pending.replace(Some(Pending::new(stats, self.worker.index)));
        }
    }

    /// The backend that has the session is reached: it is live there.
    pub(super) fn hold(&self, slot: Slot) {
        if self.held.get().is_none()
            && let Some(identity) = self.reading.identity()
        {
            self.begin(self.sessions().tag(&identity), slot);
        }
    }

    fn begin(&self, tag: SessionTag, slot: Slot) {
        let sessions = self.sessions();
        let table = self.worker.table.borrow();
        let backend = table.backend(slot);
        let owner = SessionOwner::of(backend.id.0);
        let begun = sessions.shared.live.begin(tag, owner, sessions.now());
        if begun.opened.is_some() {
            self.worker.stats().sessions_opened.add(1);
            backend.stats.cell(self.worker.index).sessions_opened.add(1);
        }
        for owner in begun.closed.into_iter().flatten() {
            count_closed(&self.worker, &table, owner);
        }
        self.held.set(begun.is_held.then_some(tag));
    }

    fn close(&self, tag: SessionTag) {
        self.held.set(None);
        if let Some(owner) = self.sessions().shared.live.close(tag) {
            self.worker.stats().sessions_ended.add(1);
            count_closed(&self.worker, &self.worker.table.borrow(), owner);
        }
    }

    /// The session's owner was not reached, for this reason: decides what the client gets, and
    /// counts what was lost.
    pub(super) fn missed(&mut self, failure: Failure) -> Outcome {
        let Some(kind) = self.kind() else { return Outcome::Refused(failure) };
        let lost = self.sessions().rules().lost(kind);
        match failure {
            Failure::InstanceUnknown => self.count_lost(self.how_lost()),
            // It may come back with everything: whoever must not lose it tries again.
            Failure::InstanceUnreachable if lost == Lost::Rebalance => self.count_lost(2),
            _ => return Outcome::Refused(failure),
        }
        self.refused_as(kind, lost).map_or_else(
            || {
                self.has_moved = true;
                Outcome::Moves
            },
            Outcome::Refused,
        )
    }

    fn refused_as(&self, kind: Kind, lost: Lost) -> Option<Failure> {
        match lost {
            Lost::Rebalance => None,
            Lost::NotFound => Some(Failure::SessionLost),
            Lost::Unavailable if kind == Kind::Instance => Some(Failure::InstanceUnknown),
            Lost::Unavailable => Some(Failure::SessionUnavailable),
        }
    }

    /// Whether another process was met where the owner of its session was.
    pub(super) fn has_restarted(&self) -> bool {
        self.has_restarted.get()
    }

    fn count_lost(&self, reason: usize) {
        self.has_restarted.set(reason == RESTARTED);
        // An instance that is named is in other counters, as it always was.
        if self.kind() != Some(Kind::Instance) {
            self.worker.stats().sessions_lost[reason].add(1);
            tracing::debug!(
                worker = self.worker.index,
                reason = LOST_REASONS[reason],
                kind = self.kind().map(Kind::label),
                "a session is lost"
            );
        }
    }

    fn how_lost(&self) -> usize {
        let Some(owner) = self.reading.owner() else { return 3 };
        let table = self.worker.table.borrow();
        let is_there = owner.address.is_some_and(|address| {
            table.at(address).is_some_and(|backend| backend.presence == Presence::Present)
        });
        usize::from(!is_there)
    }

    /// Draws the conclusions of a final response, which comes from the backend in this slot.
    ///
    /// # Errors
    /// When the response is none for this session: it comes from another process than the one that
    /// has it, or gives an id that cannot be sealed.
    pub(super) fn answer(&self, slot: Slot, head: &ResponseHead<'_>) -> Result<Edits, Failure> {
        let rules = self.sessions().rules();
        let named = head.fields.iter().find(|line| rules.names_instance(line.name));
        let named = named.and_then(|line| InstanceId::parse(line.value).ok());
        let (known, address) = {
            let table = self.worker.table.borrow();
            let backend = table.backend(slot);
            (backend.instance.clone(), backend.address)
        };
        let instance = named.or(known);
        let from = Named { instance: instance.as_ref().map(InstanceId::as_str), address };
        self.refuse_stranger(from)?;
        let answered = rules
            .answer(
                &self.reading,
                (self.method, head.status, self.has_moved),
                head.fields,
                from,
                || self.sessions().nonce(),
            )
            .map_err(|_| Failure::SessionIdTooLong)?;
        if let Some(tag) = self.held.get().filter(|_| answered.ended || answered.begun.is_some()) {
            self.close(tag);
        }
        if let Some((kind, value)) = &answered.begun {
            let tag = self.sessions().tag(&Identity::begun(*kind, from, value));
            self.begin(tag, slot);
        }
        self.pending.replace(None);
        Ok(answered.edits)
    }

    /// A process that has taken the address of the session's owner knows nothing of it, and what it
    /// says is not for this client.
    fn refuse_stranger(&self, from: Named<'_>) -> Result<(), Failure> {
        let Some(kind) = self.kind().filter(|kind| *kind != Kind::Instance && !self.has_moved)
        else {
            return Ok(());
        };
        let is_stranger = |owner: &Owner| !owner.is(from);
        if !self.reading.owner().is_some_and(is_stranger) {
            return Ok(());
        }
        self.count_lost(RESTARTED);
        self.refused_as(kind, self.sessions().rules().lost(kind)).map_or(Ok(()), Err)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(tag) = self.held.get() {
            self.sessions().shared.live.end(tag, self.sessions().now());
        }
    }
}

fn count_closed(worker: &Worker, table: &BackendTable, owner: SessionOwner) {
    // A backend that is gone took its counts along.
    if let Some(stats) = table.stats_of(BackendId(owner.identity())) {
        stats.cell(worker.index).sessions_closed.add(1);
    }
}

/// Counts a session that may begin, until it has or has not.
struct Pending {
    stats: Arc<BackendStats>,
    worker: usize,
}

impl Pending {
    fn new(stats: Arc<BackendStats>, worker: usize) -> Self {
        stats.cell(worker).sessions_pending.increment();
        Self { stats, worker }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.stats.cell(self.worker).sessions_pending.decrement();
    }
}
