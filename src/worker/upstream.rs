//! Step 5: a connection to the chosen backend, from the pool or fresh.

use std::{future::Future, future::poll_fn, io, rc::Rc, task::Poll};

use super::{Worker, client::Client, http::Request, table::Slot};
use crate::{
    exchange::{Failure, Timer},
    link::Report,
    sys::{Duplex, Peek, socket},
};

/// Counts one exchange against one backend for as long as it lives.
pub(super) struct InFlight {
    worker: Rc<Worker>,
    slot: Slot,
    is_event_stream: bool,
}

impl InFlight {
    pub(super) fn new(worker: &Rc<Worker>, slot: Slot) -> Self {
        worker.table.borrow_mut().acquire(slot);
        Self { worker: Rc::clone(worker), slot, is_event_stream: false }
    }

    /// The exchange has turned out to be an event stream, and is counted as one until it ends.
    pub(super) fn become_event_stream(&mut self) {
        if !std::mem::replace(&mut self.is_event_stream, true) {
            self.worker.table.borrow().cell(self.slot).event_streams.increment();
        }
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
    }
}

/// A connection and where it came from.
pub(super) struct Checkout {
    pub(super) connection: Duplex,
    pub(super) reused: bool,
}

/// Whether a pooled connection will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Any.
    Any,
    /// Only one that is opened now.
    Fresh,
}

/// Takes an idle connection that is still good, or opens one. A client that leaves meanwhile ends
/// the wait.
pub(super) async fn checkout(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    request: &Request,
    slot: Slot,
    freshness: Freshness,
) -> Result<Checkout, Failure> {
    if freshness == Freshness::Any
        && let Some(connection) = take_good(worker, slot)
    {
        return Ok(Checkout { connection, reused: true });
    }
    connect(worker, client, request, slot, freshness).await
}

/// The newest idle connection that is still good.
fn take_good(worker: &Worker, slot: Slot) -> Option<Duplex> {
    loop {
        let connection = take_idle(worker, slot)?;
        match connection.peek() {
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

fn take_idle(worker: &Worker, slot: Slot) -> Option<Duplex> {
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
) -> Result<Checkout, Failure> {
    let address = worker.table.borrow().backend(slot).address;
    let waiter = worker.waiting.waiter(slot);
    let alarm = client.alarm;
    alarm.set(Timer::Connect, worker.config.timeouts.connect);
    let mut opening = std::pin::pin!(Duplex::connect(address, Rc::clone(&worker.turns)));
    let opened = poll_fn(|cx| {
        if let Poll::Ready(result) = opening.as_mut().poll(cx) {
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
        Opened::Released(connection) => Ok(Checkout { connection, reused: true }),
        Opened::Fresh(Ok(connection)) => {
            worker.stats().upstream_connects.add(1);
            Ok(Checkout { connection, reused: false })
        }
        Opened::Fresh(Err(error)) if socket::is_exhaustion(&error) => {
            Err(Failure::DescriptorsExhausted)
        }
        Opened::Fresh(Err(error)) => Err(note_failure(worker, slot, failure_of(&error))),
        // The backend has nothing to do with it.
        Opened::Gone(failure) => Err(failure),
        Opened::Expired => Err(note_failure(worker, slot, Failure::ConnectTimeout)),
    }
}

enum Opened {
    Fresh(io::Result<Duplex>),
    Released(Duplex),
    /// The client has left.
    Gone(Failure),
    Expired,
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
    let backend = {
        let mut table = worker.table.borrow_mut();
        table.avoid(slot, worker.alarms.now());
        table.backend(slot).id
    };
    worker.report(Report::ConnectFailed(backend));
    failure
}

/// Puts a connection back that ended its exchange at a message boundary.
pub(super) fn give_back(worker: &Worker, slot: Slot, connection: Duplex) {
    if !worker.table.borrow().is_known(slot) {
        return;
    }
    let expires = worker.alarms.now().after(worker.config.timeouts.upstream_idle);
    let mut pool = worker.pool.borrow_mut();
    pool.put(slot, connection, expires);
    worker.stats().upstream_idle.set(pool.len() as u64);
    drop(pool);
    worker.waiting.wake_one(slot);
}
