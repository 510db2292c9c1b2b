//! An orchestrator introduces itself (ADR 21): its `initialize` is noted when a backend has taken
//! it, and its `initialized` goes on when every other backend has had both.
//!
//! Owns the recording and the wait. What is recognised is decided in [`exchange`](crate::exchange),
//! who is to get a replay in `plane`, and it is sent by the control thread.

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Worker, client::Client, table::Slot, upstream::InFlight};
use crate::{
    exchange::{HANDSHAKE_BYTES_MAX, Handshake, RequestPlan, is_refusal, may_be_handshake},
    http1::RequestHead,
    link::Report,
    model::{BackendId, Initialize, Recording},
};

/// Longest that an `initialized` waits for the replays to all other backends. Whoever has not had
/// one by then takes no work if it never had any, so what is lost by going on is only its share.
const REPLAYS_WAIT_MAX: Duration = Duration::from_secs(5);

/// First and longest pause between two looks at how far the replays are. One takes a millisecond.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(20);

/// How long the head of a request with a small body in JSON waits for it. Most come together; the
/// two in one piece are what an orchestrator is recognised by.
pub(super) const BODY_WAIT: Duration = Duration::from_millis(200);

/// Whether a request may be waited for once more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Left,
    Spent,
}

/// A request of an orchestrator that introduces itself.
pub(super) enum Introducing {
    /// Its `initialize`, and what has come of the answer.
    Begins { initialize: Box<Initialize>, answer: Vec<u8> },
    /// Its `initialized`.
    Ends(Recording),
}

/// A wait that is boxed, because it is rare and every connection would pay for its room.
type Wait<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The length of a request that may be one of the two, if it is not all there: worth a moment's
/// wait.
pub(super) fn lacks(
    worker: &Worker,
    request: &RequestPlan,
    head_octets: usize,
    arrived: usize,
) -> Option<usize> {
    worker.handshakes.as_ref()?;
    let octets = head_octets + may_be_handshake(request)?;
    (arrived < octets).then_some(octets)
}

/// Waits for the rest of it.
pub(super) fn gather<'a>(client: &'a mut Client<'_>, octets: usize) -> Wait<'a, ()> {
    Box::pin(client.gather(octets, BODY_WAIT))
}

/// Looks whether a request whose body is complete is one of the two. `outgoing` is what the backend
/// gets.
pub(super) fn recognise(
    worker: &Worker,
    client: SocketAddr,
    head: &RequestHead<'_>,
    body: &[u8],
    outgoing: &[u8],
) -> Option<Box<Introducing>> {
    let request = || Recording::of(outgoing);
    Some(Box::new(match worker.handshakes.as_ref()?.read(head, body)? {
        Handshake::Initialized => Introducing::Ends(request()),
        Handshake::Initialize(terms) => {
            let client = client.ip().to_canonical();
            let initialize = Box::new(Initialize { client, terms, request: request() });
            Introducing::Begins { initialize, answer: Vec::new() }
        }
    }))
}

impl Introducing {
    /// Notes octets of the answer's body, as far as they may matter.
    pub(super) fn note(&mut self, octets: &[u8]) {
        if let Self::Begins { answer, .. } = self {
            let room = HANDSHAKE_BYTES_MAX.saturating_sub(answer.len());
            answer.extend_from_slice(&octets[..octets.len().min(room)]);
        }
    }

    /// The answer is complete, and the client has not had the end of it: whatever it does next, the
    /// control thread knows of its `initialize` before.
    pub(super) fn answered(self, worker: &Worker, client: &Client<'_>, slot: Slot, status: u16) {
        let Self::Begins { initialize, answer } = self else { return };
        if !(200..=299).contains(&status) || is_refusal(&answer) {
            return;
        }
        let id = worker.table.borrow().backend(slot).id;
        worker.introduced.set(Some((client.alarm.place(), id)));
        worker.report(Report::InitializeAnswered(id, initialize));
    }
}

/// If the request is an `initialized`: holds it back until nobody waits for a replay any more and
/// every worker knows it, so that what its client asks next finds every backend initialised. Gives
/// a place on the backend that has answered the `initialize` before it: nobody else has a use for
/// it.
pub(super) fn settle<'a>(
    worker: &'a Rc<Worker>,
    client: &Client<'_>,
    introducing: Option<&Introducing>,
) -> Option<Wait<'a, Option<InFlight>>> {
    let Introducing::Ends(request) = introducing? else { return None };
    let report = Report::InitializedReceived {
        client: client.address.ip().to_canonical(),
        request: request.clone(),
    };
    let place = client.alarm.place();
    let here = worker.introduced.get().filter(|(at, _)| *at == place).map(|(_, by)| by);
    if here.is_some() {
        worker.introduced.set(None);
    }
    Some(Box::pin(confirm(worker, report, here)))
}

/// `here` has answered the `initialize` that came on the same connection.
async fn confirm(worker: &Rc<Worker>, report: Report, here: Option<BackendId>) -> Option<InFlight> {
    let started = Instant::now();
    let before = worker.table.borrow().initialisation().confirmed;
    let mut unsent = Some(report);
    let mut pause = LOOK_PAUSE;
    loop {
        // Other reports are hints; this one is tried again.
        if let Some(report) = unsent.take() {
            unsent = worker.subscriber.reporter().report(report).err();
        }
        let is_late = started.elapsed() >= REPLAYS_WAIT_MAX;
        let progress = worker.table.borrow().initialisation();
        let is_confirmed = progress.confirmed > before;
        if is_late || is_confirmed && progress.awaited == 0 && is_known_to_all(worker) {
            if unsent.is_some() {
                worker.stats().reports_dropped.add(1);
            }
            let by = here.or_else(|| progress.answered_by.filter(|_| is_confirmed))?;
            let slot = worker.table.borrow().slot_of(by)?;
            return Some(InFlight::new(worker, slot));
        }
        monoio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_PAUSE_MAX);
    }
}

/// Whether every worker has the snapshot that this one has.
fn is_known_to_all(worker: &Worker) -> bool {
    let version = worker.table.borrow().version().0;
    worker.all_stats.iter().all(|stats| stats.snapshot_version.get() >= version)
}
