//! Steps 4 and 5: a place on a backend, and a connection to it, from the pool or fresh.
//!
//! A request that any backend may serve gets both at once, its count and a connection
//! or the right to open one; where there are bounds and no room, it waits ([`super::queue`]). A
//! request that names its instance is counted and never held back: the stream that holds the place
//! may be waiting for it (ADR 20).
//!
//! Invariant: what is counted is held by a guard, and what is counted last is what is open: a
//! connection ends before its count does.

use std::{
    cell::RefCell, future::Future, future::poll_fn, io, ops::Deref, rc::Rc, sync::Arc, task::Poll,
};

use super::{
    Worker,
    client::Client,
    http::Request,
    queue::Queue,
    table::{Room, Slot, Tried},
};
use crate::{
    exchange::{Failure, Timer},
    link::Report,
    model::Fault,
    stats::BackendStats,
    sys::{Duplex, Peek, socket},
};

/// Picks after which a worker stops racing for the last places. The next tick finds what is left.
const PICKS_MAX: u32 = 8;

/// What one backend may be given at once, and who waits when all have that.
pub(super) struct Bounds {
    pub(super) requests_max: u64,
    pub(super) connections_max: u64,
    pub(super) queue: Queue,
    /// Connections that were given up while they were being opened. The ring lets go of them in its
    /// own time, and until then they count.
    parting: RefCell<Vec<Counted>>,
}

impl Bounds {
    pub(super) fn new(requests_max: u64, connections_max: u64, queue: Queue) -> Self {
        Self { requests_max, connections_max, queue, parting: RefCell::default() }
    }
}

/// Counts one exchange against one backend for as long as it lives.
pub(super) struct InFlight {
    worker: Rc<Worker>,
    slot: Slot,
    is_event_stream: bool,
}

impl InFlight {
    pub(super) fn new(worker: &Rc<Worker>, slot: Slot) -> Self {
        worker.table.borrow_mut().acquire(slot);
        Self::picked(worker, slot)
    }

    /// The exchange has turned out to be an event stream, and is counted as one until it ends.
    pub(super) fn become_event_stream(&mut self) {
        if !std::mem::replace(&mut self.is_event_stream, true) {
            self.worker.table.borrow().cell(self.slot).event_streams.increment();
        }
    }

    /// The guard of an exchange that was counted when its backend was picked.
    fn picked(worker: &Rc<Worker>, slot: Slot) -> Self {
        Self { worker: Rc::clone(worker), slot, is_event_stream: false }
    }

    pub(super) fn slot(&self) -> Slot {
        self.slot
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Only a panic inside the table itself finds it borrowed; its counts are void then.
        if let Ok(mut table) = self.worker.table.try_borrow_mut() {
            if self.is_event_stream {
                table.cell(self.slot).event_streams.decrement();
            }
            table.release(self.slot);
        }
        // Its connection was closed or given back before, so there is a place.
        if let Some(bounds) = &self.worker.bounds {
            bounds.queue.call();
        }
    }
}

/// Counts one connection against one backend for as long as it lives.
pub(super) struct Counted {
    stats: Arc<BackendStats>,
    is_bounded: bool,
}

impl Counted {
    /// Whatever is open.
    fn any(worker: &Worker, slot: Slot) -> Self {
        let stats = Arc::clone(&worker.table.borrow().backend(slot).stats);
        stats.open();
        Self { stats, is_bounded: worker.bounds.is_some() }
    }

    /// If no more than `most` are open with it.
    fn below(worker: &Worker, slot: Slot, most: u64) -> Option<Self> {
        let table = worker.table.borrow();
        let stats = &table.backend(slot).stats;
        stats.open_below(most).then(|| Self { stats: Arc::clone(stats), is_bounded: true })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.stats.close();
    }
}

/// A connection to a backend, and its count.
pub(super) struct Upstream {
    connection: Duplex,
    counted: Counted,
}

impl Deref for Upstream {
    type Target = Duplex;

    fn deref(&self) -> &Duplex {
        &self.connection
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        // The ring closes a socket in its own time; another worker may open one at once.
        if self.counted.is_bounded {
            self.connection.finish_sending();
        }
    }
}

/// A connection and where it came from.
pub(super) struct Checkout {
    pub(super) connection: Upstream,
    pub(super) reused: bool,
}

impl Checkout {
    /// A connection that has served others.
    pub(super) fn reused(connection: Upstream) -> Self {
        Self { connection, reused: true }
    }
}

/// What a request needs before it can be sent.
pub(super) struct Place {
    pub(super) in_flight: InFlight,
    pub(super) opening: Opening,
}

/// How a request comes to its connection.
pub(super) enum Opening {
    /// It is here.
    Idle(Upstream),
    /// It is counted, and may be opened.
    Counted(Counted),
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlace {
    /// Nobody may take the request.
    Nobody,
    /// Whoever may is full, or others wait already.
    Full,
}

/// Whether a pooled connection will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Any.
    Any,
    /// Only one that is opened now.
    Fresh,
}

/// A place on a backend that has not been tried, for a request that any may serve.
pub(super) fn place(
    worker: &Rc<Worker>,
    tried: &Tried,
    key: Option<u64>,
    freshness: Freshness,
) -> Result<Place, NoPlace> {
    match &worker.bounds {
        None => {
            let slot = worker.table.borrow_mut().pick(tried, key, worker.alarms.now(), None);
            let in_flight = InFlight::picked(worker, slot.ok_or(NoPlace::Nobody)?);
            let opening = unbounded(worker, in_flight.slot(), freshness);
            Ok(Place { in_flight, opening })
        }
        // Who comes first is served first.
        Some(bounds) if !bounds.queue.is_empty() => Err(no_place(worker, tried)),
        Some(bounds) => place_within(worker, bounds, tried, key, freshness),
    }
}

/// The same where there are bounds, for the request whose turn it is.
pub(super) fn place_within(
    worker: &Rc<Worker>,
    bounds: &Bounds,
    tried: &Tried,
    key: Option<u64>,
    freshness: Freshness,
) -> Result<Place, NoPlace> {
    let &Bounds { requests_max, connections_max, .. } = bounds;
    for _ in 0..PICKS_MAX {
        let has_idle = |slot| worker.pool.borrow().has(slot);
        let room = Room { requests_max, connections_max, has_idle: &has_idle };
        let now = worker.alarms.now();
        let picked = worker.table.borrow_mut().pick(tried, key, now, Some(room));
        let Some(slot) = picked else { break };
        match bounded(worker, slot, freshness, connections_max) {
            Some(opening) => {
                return Ok(Place { in_flight: InFlight::picked(worker, slot), opening });
            }
            // Not through the guard, which would call somebody to the place that is none.
            None => worker.table.borrow_mut().release(slot),
        }
    }
    Err(no_place(worker, tried))
}

fn no_place(worker: &Worker, tried: &Tried) -> NoPlace {
    match worker.table.borrow().has_others_than(tried) {
        true => NoPlace::Full,
        false => NoPlace::Nobody,
    }
}

/// The same place once more, on a connection of its own; `None` if there is no room for one.
pub(super) fn same_place(worker: &Worker, in_flight: InFlight) -> Option<Place> {
    let slot = in_flight.slot();
    let opening = match &worker.bounds {
        Some(bounds) => bounded(worker, slot, Freshness::Fresh, bounds.connections_max)?,
        None => unbounded(worker, slot, Freshness::Fresh),
    };
    Some(Place { in_flight, opening })
}

/// An idle connection if one will do, else the right to open one, whatever is open.
fn unbounded(worker: &Worker, slot: Slot, freshness: Freshness) -> Opening {
    let idle = if freshness == Freshness::Any { take_good(worker, slot) } else { None };
    idle.map_or_else(|| Opening::Counted(Counted::any(worker, slot)), Opening::Idle)
}

/// The same within a bound.
fn bounded(
    worker: &Worker,
    slot: Slot,
    freshness: Freshness,
    connections_max: u64,
) -> Option<Opening> {
    if freshness == Freshness::Any
        && let Some(connection) = take_good(worker, slot)
    {
        return Some(Opening::Idle(connection));
    }
    let count = || Counted::below(worker, slot, connections_max).map(Opening::Counted);
    let first = count();
    if first.is_some() {
        return first;
    }
    // An old connection of ours makes room for a new one.
    drop(take_idle(worker, slot)?);
    count()
}

/// The connection of a place.
pub(super) async fn open(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    request: &Request,
    slot: Slot,
    opening: Opening,
    freshness: Freshness,
) -> Result<Checkout, Failure> {
    match opening {
        Opening::Idle(connection) => Ok(Checkout::reused(connection)),
        // Boxed: whoever finds a connection should not carry the room that opening one takes.
        Opening::Counted(counted) => {
            Box::pin(connect(worker, client, request, slot, freshness, counted)).await
        }
    }
}

/// Takes an idle connection that is still good, or opens one, whatever is open already. A client
/// that leaves meanwhile ends the wait.
pub(super) async fn checkout(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    request: &Request,
    slot: Slot,
    freshness: Freshness,
) -> Result<Checkout, Failure> {
    open(worker, client, request, slot, unbounded(worker, slot, freshness), freshness).await
}

/// The newest idle connection that is still good.
fn take_good(worker: &Worker, slot: Slot) -> Option<Upstream> {
    loop {
        let connection = take_idle(worker, slot)?;
        // What came before the request did has been told: its octets came later.
        let found = if connection.is_quiet() { Peek::Nothing } else { connection.peek() };
        match found {
            Peek::Nothing => {
                worker.stats().upstream_reuses.add(1);
                return Some(connection);
            }
            // Octets that answer no request would be taken for the answer to this one.
            Peek::Octets => worker.stats().upstream_poisoned.add(1),
            Peek::EndOfInput | Peek::Broken => {}
        }
    }
}

fn take_idle(worker: &Worker, slot: Slot) -> Option<Upstream> {
    let mut pool = worker.pool.borrow_mut();
    let taken = pool.take(slot, worker.alarms.now());
    worker.stats().upstream_idle.set(pool.len() as u64);
    taken
}

/// Opens a connection, or takes one that comes free meanwhile, whichever is sooner.
async fn connect(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    request: &Request,
    slot: Slot,
    freshness: Freshness,
    counted: Counted,
) -> Result<Checkout, Failure> {
    let address = worker.table.borrow().backend(slot).address;
    let waiter = worker.waiting.waiter(slot);
    let alarm = client.alarm;
    alarm.set(Timer::Connect, worker.config.timeouts.connect);
    let mut connecting = std::pin::pin!(Duplex::connect(address, Rc::clone(&worker.turns)));
    let opened = poll_fn(|cx| {
        if let Poll::Ready(result) = connecting.as_mut().poll(cx) {
            return Poll::Ready(Opened::Fresh(result));
        }
        if freshness == Freshness::Any {
            if let Some(connection) = take_good(worker, slot) {
                return Poll::Ready(Opened::Released(connection));
            }
            waiter.wait(cx);
        }
        if let Poll::Ready(failure) = client.poll_gone(cx, request) {
            return Poll::Ready(Opened::Gone(failure));
        }
        // Dropping a connect in flight leaks nothing (measured, ADR 11).
        alarm.poll_expired(cx).map(|_| Opened::Expired)
    })
    .await;
    drop(waiter);
    alarm.clear(Timer::Connect);
    // It may have been woken for a connection that it needs no more.
    if !matches!(opened, Opened::Released(_)) && worker.pool.borrow().has(slot) {
        worker.waiting.wake_one(slot);
    }
    match opened {
        Opened::Released(connection) => {
            part_with(worker, counted);
            Ok(Checkout::reused(connection))
        }
        Opened::Fresh(Ok(connection)) => {
            worker.stats().upstream_connects.add(1);
            Ok(Checkout { connection: Upstream { connection, counted }, reused: false })
        }
        Opened::Fresh(Err(error)) if socket::is_exhaustion(&error) => {
            Err(Failure::DescriptorsExhausted)
        }
        Opened::Fresh(Err(error)) => Err(note_failure(worker, slot, failure_of(&error))),
        // The backend has nothing to do with it.
        Opened::Gone(failure) => {
            part_with(worker, counted);
            Err(failure)
        }
        Opened::Expired => {
            part_with(worker, counted);
            Err(note_failure(worker, slot, Failure::ConnectTimeout))
        }
    }
}

enum Opened {
    Fresh(io::Result<Duplex>),
    Released(Upstream),
    /// The client has left.
    Gone(Failure),
    Expired,
}

/// The connection is given up while it is being opened.
fn part_with(worker: &Worker, counted: Counted) {
    if let Some(bounds) = &worker.bounds {
        bounds.parting.borrow_mut().push(counted);
    }
}

fn failure_of(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut => Failure::ConnectTimeout,
        _ => Failure::ConnectFailed,
    }
}

/// This worker avoids the backend for a moment; the control thread probes it and asks DNS at once.
fn note_failure(worker: &Worker, slot: Slot, failure: Failure) -> Failure {
    worker.stats().upstream_connect_failures.add(1);
    // Before the report, which makes the control thread look.
    worker.note_fault(slot, Fault::Connect);
    let backend = {
        let mut table = worker.table.borrow_mut();
        table.avoid(slot, worker.alarms.now());
        table.backend(slot).id
    };
    worker.report(Report::ConnectFailed(backend));
    failure
}

/// Puts a connection back that ended its exchange at a message boundary.
pub(super) fn give_back(worker: &Worker, slot: Slot, connection: Upstream) {
    if !worker.table.borrow().is_known(slot) || is_wanted_elsewhere(worker, slot) {
        return;
    }
    connection.rest();
    let expires = worker.alarms.now().after(worker.config.timeouts.upstream_idle);
    let mut pool = worker.pool.borrow_mut();
    pool.put(slot, connection, expires);
    worker.stats().upstream_idle.set(pool.len() as u64);
    drop(pool);
    worker.waiting.wake_one(slot);
}

/// Whether somebody could open a connection if this worker had one less: one that was opened beyond
/// the bound, or one that is at the bound while another worker's request is the first of all.
fn is_wanted_elsewhere(worker: &Worker, slot: Slot) -> bool {
    worker.bounds.as_ref().is_some_and(|bounds| {
        let open = worker.table.borrow().backend(slot).stats.connections();
        open > bounds.connections_max
            || (open == bounds.connections_max && bounds.queue.others_come_first())
    })
}

/// The bell has rung: looks after the queue, and parts with an unused connection to each backend
/// that has no other room, if that helps the first of all.
pub(super) fn heed_queue(worker: &Worker) {
    let Some(bounds) = &worker.bounds else { return };
    bounds.queue.look();
    if !bounds.queue.others_come_first() {
        return;
    }
    let is_in_the_way = |slot| {
        let table = worker.table.borrow();
        let stats = &table.backend(slot).stats;
        stats.connections() >= bounds.connections_max && stats.in_flight() < bounds.requests_max
    };
    let mut pool = worker.pool.borrow_mut();
    let parted = pool.drop_oldest_where(is_in_the_way);
    worker.stats().upstream_idle.set(pool.len() as u64);
    drop(pool);
    if parted > 0 {
        bounds.queue.call();
    }
}

/// What is due every tick where there are bounds.
pub(super) fn tick(worker: &Worker) {
    let Some(bounds) = &worker.bounds else { return };
    bounds.parting.borrow_mut().clear();
    if !bounds.queue.is_empty() {
        bounds.queue.wake_blind();
        heed_queue(worker);
    }
}
