//! An orchestrator introduces itself (ADR 21): its `initialize` is noted when a backend has taken
//! it, and its `initialized` goes on when every other backend has had both.
//!
//! Owns the recording and the wait. What is recognised is decided in [`exchange`](crate::exchange),
//! who is to get a replay in `plane`, and it is sent by the control thread.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{Worker, client::Client, table::Slot, upstream::InFlight};
use crate::{
    exchange::{HANDSHAKE_BYTES_MAX, Handshake, RequestPlan, is_refusal, may_be_handshake},
    http1::RequestHead,
    link::Report,
    model::{Initialize, Recording},
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
    /// Its `initialize`.
    Begins(Box<Introduction>),
    /// Its `initialized`.
    Ends(Recording),
}

/// An `initialize` on its way, and what its answer says.
pub(super) struct Introduction {
    initialize: Initialize,
    answer: Vec<u8>,
}

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

/// Looks whether a request whose body is complete is one of the two. `outgoing` is what the backend
/// gets.
pub(super) fn recognise(
    worker: &Worker,
    client: SocketAddr,
    head: &RequestHead<'_>,
    body: &[u8],
    outgoing: &[u8],
) -> Option<Introducing> {
    let request = || Recording::of(outgoing);
    Some(match worker.handshakes.as_ref()?.read(head, body)? {
        Handshake::Initialized => Introducing::Ends(request()),
        Handshake::Initialize(terms) => {
            let client = client.ip().to_canonical();
            let initialize = Initialize { client, terms, request: request() };
            Introducing::Begins(Box::new(Introduction { initialize, answer: Vec::new() }))
        }
    })
}

impl Introduction {
    /// Notes octets of the answer's body, as far as they may matter.
    pub(super) fn note(&mut self, octets: &[u8]) {
        let room = HANDSHAKE_BYTES_MAX.saturating_sub(self.answer.len());
        self.answer.extend_from_slice(&octets[..octets.len().min(room)]);
    }

    /// The answer is complete, and the client has not had the end of it: whatever it does next, the
    /// control thread knows of its `initialize` before.
    pub(super) fn answered(
        self,
        worker: &Worker,
        client: &mut Client<'_>,
        slot: Slot,
        status: u16,
    ) {
        if !(200..=299).contains(&status) || is_refusal(&self.answer) {
            return;
        }
        let id = worker.table.borrow().backend(slot).id;
        client.introduced_to = Some(id);
        worker.report(Report::InitializeAnswered(id, Box::new(self.initialize)));
    }
}

/// Holds an `initialized` back until nobody waits for a replay any more and every worker knows it,
/// so that what its client asks next finds every backend initialised. Gives a place on the backend
/// that has answered the `initialize` before it: nobody else has a use for it.
pub(super) async fn settle(
    worker: &Rc<Worker>,
    client: &Client<'_>,
    initialized: Recording,
) -> Option<InFlight> {
    let started = Instant::now();
    let before = worker.table.borrow().initialisation().confirmed;
    let client_address = client.address.ip().to_canonical();
    let mut unsent =
        Some(Report::InitializedReceived { client: client_address, request: initialized });
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
            let by =
                client.introduced_to.or_else(|| progress.answered_by.filter(|_| is_confirmed))?;
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
