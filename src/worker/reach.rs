//! Steps 4 and 5 for a request that any backend may serve: a place, a connection, and
//! whether another backend is asked when there is none.

use std::rc::Rc;

use super::{
    Worker,
    client::Client,
    http::{Account, Request},
    queue,
    table::{Slot, Tried},
    upstream::{self, Checkout, Freshness, InFlight, NoPlace, Opening, Place},
};
use crate::{
    exchange::{Failure, Retry},
    telemetry::Routed,
};

/// Why a request has no connection.
pub(super) enum Unreached {
    /// Nobody is left who could take it.
    Nobody,
    /// It gets none.
    Failed(Failure),
    /// Not to the backend that has its session; any other may do.
    Moves,
    /// Not to this backend; another one may do.
    Unconnected(Slot, Failure),
}

/// How a request that any backend may serve gets its connection.
pub(super) enum Reach {
    /// It has it.
    Here(Slot, Checkout),
    /// It waits for one to this backend.
    Opens(Slot, Opening),
    /// All are full: it waits for its turn.
    Queues,
}

/// Steps 4 and 5 for a request that any backend may serve that has not been tried; one that asks
/// the same again comes with the place that it held. Most find a connection that is open, and do
/// not wait: whoever does goes on with [`reach_later`].
pub(super) fn reach_any(
    worker: &Rc<Worker>,
    account: &mut Account,
    request: &Request,
    tried: &Tried,
    freshness: Freshness,
    held: Option<InFlight>,
) -> Result<Reach, Unreached> {
    let found = match held.and_then(|held| upstream::same_place(worker, held)) {
        Some(place) => {
            // Whatever was picked last, was picked for somebody else.
            drop(worker.table.borrow().explained());
            Ok(place)
        }
        None => upstream::place(worker, tried, request.key(), freshness),
    };
    match found {
        Ok(Place { in_flight, opening }) => {
            let slot = settle(worker, account, request, in_flight);
            Ok(match opening {
                Opening::Idle(connection) => Reach::Here(slot, Checkout::reused(connection)),
                opening @ Opening::Counted(_) => Reach::Opens(slot, opening),
            })
        }
        Err(NoPlace::Nobody) => Err(Unreached::Nobody),
        Err(NoPlace::Full) => Ok(Reach::Queues),
    }
}

/// The same for a request that has to wait. What it keeps meanwhile must not lie beside what an
/// exchange needs later.
pub(super) async fn reach_later(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    account: &mut Account,
    request: &Request,
    tried: &Tried,
    freshness: Freshness,
    reach: Reach,
) -> Result<(Slot, Checkout), Unreached> {
    let (slot, opening) = match reach {
        Reach::Here(slot, checkout) => return Ok((slot, checkout)),
        Reach::Opens(slot, opening) => (slot, opening),
        Reach::Queues => {
            // Whoever waits holds no place.
            account.in_flight = None;
            account.explain(|explanation, age| explanation.note_queued(age));
            let waited = queue::wait(worker, client, tried, request.key(), freshness).await;
            account.explain(|explanation, age| explanation.note_unqueued(age));
            let Place { in_flight, opening } = waited.map_err(|failure| match failure {
                Failure::NoHealthyBackend => Unreached::Nobody,
                _ => Unreached::Failed(failure),
            })?;
            (settle(worker, account, request, in_flight), opening)
        }
    };
    let opened = upstream::open(worker, client, request, slot, opening, freshness).await;
    opened.map(|checkout| (slot, checkout)).map_err(|e| Unreached::Unconnected(slot, e))
}

/// Notes which backend the request has a place on.
fn settle(worker: &Worker, account: &mut Account, request: &Request, in_flight: InFlight) -> Slot {
    let slot = in_flight.slot();
    let is_sound = worker.table.borrow().backend(slot).takes_new_work();
    account.routed = match &request.session {
        _ if !is_sound => Routed::Panic,
        Some(session) => session.routed(),
        None => Routed::Balanced,
    };
    account.explain(|explanation, _| {
        explanation.note_panic(!is_sound);
        // Without a pick it is where it was, for the reason for which it was there.
        if let Some(pick) = worker.table.borrow().explained() {
            explanation.note_pick(pick);
        }
    });
    account.in_flight = Some(in_flight);
    if let Some(session) = &request.session {
        session.place(slot);
    }
    slot
}

/// Whether another attempt follows by this verdict: there is somebody to ask, and the budget allows
/// it.
pub(super) fn goes_on(
    worker: &Worker,
    verdict: Retry,
    failure: Failure,
    slot: Slot,
    tried: &mut Tried,
) -> bool {
    if verdict == Retry::NextBackend {
        tried.note(slot);
        if !worker.table.borrow().has_others_than(tried) {
            if failure != Failure::ConnectTimeout {
                return false;
            }
            // A backend too busy to answer a handshake in time is still better than none.
            tried.forget();
        }
    }
    verdict != Retry::GiveUp && worker.may_try_again()
}
