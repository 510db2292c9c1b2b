//! Steps 4 and 5 for a request that any backend may serve: a place, a connection, and
//! whether another backend is asked when there is none.

use std::rc::Rc;

use super::{
    Worker,
    client::Client,
    http::{Account, Request},
    queue,
    table::{Slot, Tried},
    upstream::{self, Checkout, Freshness, InFlight, NoPlace, Place},
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

/// Steps 4 and 5 for a request that any backend may serve that has not been tried; one that asks
/// the same again comes with the place that it held. A function of its own also because what it
/// keeps while it waits must not lie beside what an exchange needs later.
pub(super) async fn reach_any(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    account: &mut Account,
    request: &Request,
    tried: &Tried,
    freshness: Freshness,
    held: Option<InFlight>,
) -> Result<(Slot, Checkout), Unreached> {
    let found = match held.and_then(|held| upstream::same_place(worker, held)) {
        Some(place) => {
            // Whatever was picked last, was picked for somebody else.
            drop(worker.table.borrow().explained());
            Ok(place)
        }
        None => upstream::place(worker, tried, request.key(), freshness),
    };
    let Place { in_flight, opening } = match found {
        Ok(place) => place,
        Err(NoPlace::Nobody) => return Err(Unreached::Nobody),
        Err(NoPlace::Full) => {
            // Whoever waits holds no place.
            account.in_flight = None;
            account.explain(|explanation, age| explanation.note_queued(age));
            let wait = queue::wait(worker, client, tried, request.key(), freshness);
            let waited = Box::pin(wait).await;
            account.explain(|explanation, age| explanation.note_unqueued(age));
            waited.map_err(|failure| match failure {
                Failure::NoHealthyBackend => Unreached::Nobody,
                _ => Unreached::Failed(failure),
            })?
        }
    };
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
    let opened = upstream::open(worker, client, request, slot, opening, freshness).await;
    opened.map(|checkout| (slot, checkout)).map_err(|e| Unreached::Unconnected(slot, e))
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
