//! Steps 4 and 5 for requests that must reach one backend: by the instance that they name, or by
//! the session that they bring. No other will do, so it is worth some patience.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::Poll,
    time::{Duration, Instant},
};

use super::{
    Worker,
    client::Client,
    http::{Account, Request},
    reach::Unreached,
    sessions::{Outcome, Pin},
    table::Slot,
    upstream::{self, Checkout, Freshness, InFlight},
};
use crate::{exchange::Failure, link::Report, model::Presence};

/// How long a request waits for an instance that nobody knows yet. A process that has just been
/// met by another worker is in this worker's table a moment later.
const UNKNOWN_INSTANCE_WAIT: Duration = Duration::from_millis(250);

/// Whether nothing can be hoped of a backend that has just refused a connection: discovery does not
/// name it, and nothing else runs there.
fn is_gone(worker: &Worker, slot: Slot) -> bool {
    let table = worker.table.borrow();
    let backend = table.backend(slot);
    backend.presence == Presence::Leaving && backend.stats.in_flight() <= 1
}

/// Reaches whom the request must reach.
pub(super) async fn reach_owner(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    account: &mut Account,
    request: &mut Request,
    freshness: Freshness,
) -> Result<(Slot, Checkout), Unreached> {
    let reached = owner(worker, client, account, request, freshness).await;
    let Some(session) = &mut request.session else { return reached.map_err(Unreached::Failed) };
    match reached {
        Ok((slot, checkout)) => {
            session.hold(slot);
            Ok((slot, checkout))
        }
        Err(failure) => {
            let outcome = session.missed(failure);
            account.note_restart(session);
            match outcome {
                Outcome::Refused(failure) => Err(Unreached::Failed(failure)),
                Outcome::Moves => {
                    account.routed = session.routed();
                    account.in_flight = None;
                    if let Some(explanation) = &mut account.explanation {
                        explanation.note_move();
                    }
                    Err(Unreached::Moves)
                }
            }
        }
    }
}

/// An instance whose connects fail is tried again until `instance_retry` has passed; one that
/// nobody knows may be in the snapshot that is on its way.
async fn owner(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    account: &mut Account,
    request: &Request,
    freshness: Freshness,
) -> Result<(Slot, Checkout), Failure> {
    worker.stats().affinity_requests.add(1);
    let started = Instant::now();
    let mut reported = false;
    let mut pause = Duration::from_millis(10);
    loop {
        let found = match request.pin() {
            Some(Pin::Instance(instance)) => worker.table.borrow().instance(instance.as_str()),
            Some(Pin::Address(address)) => worker.table.borrow().nameless(address),
            // Nothing that arrives later can help.
            Some(Pin::Nobody) | None => return Err(Failure::InstanceUnknown),
        };
        let (failure, patience) = match found {
            Some(slot) => {
                account.in_flight = Some(InFlight::new(worker, slot));
                match upstream::checkout(worker, client, request, slot, freshness).await {
                    Ok(checkout) => {
                        worker.stats().affinity_hits.add(1);
                        return Ok((slot, checkout));
                    }
                    Err(
                        failure @ (Failure::DescriptorsExhausted
                        | Failure::ClientGone
                        | Failure::RequestTruncated),
                    ) => return Err(failure),
                    Err(_) if is_gone(worker, slot) => (Failure::InstanceUnknown, Duration::ZERO),
                    Err(_) => (Failure::InstanceUnreachable, worker.config.timeouts.instance_retry),
                }
            }
            None => {
                if !reported {
                    worker.report(Report::InstanceUnknown);
                    reported = true;
                }
                (Failure::InstanceUnknown, UNKNOWN_INSTANCE_WAIT)
            }
        };
        if started.elapsed() >= patience {
            return Err(failure);
        }
        // It runs nowhere meanwhile: one that left is not kept for those who cannot reach it.
        account.in_flight = None;
        let mut sleeping = pin!(monoio::time::sleep(pause));
        poll_fn(|cx| match client.poll_gone(cx, request) {
            Poll::Ready(failure) => Poll::Ready(Err(failure)),
            Poll::Pending => sleeping.as_mut().poll(cx).map(Ok),
        })
        .await?;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}
