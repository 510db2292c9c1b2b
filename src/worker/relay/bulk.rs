//! Step 7 of a large body, and the pace of both directions.
//!
//! Each piece of a body has a price besides its octets: a wake-up, two operations, an
//! acknowledgement that lets the sender go on. In pieces of 512 KiB, with as much in the kernel's
//! buffers, a large body costs a third less than in pieces of 64 KiB (docs/PERFORMANCE.md). That
//! much memory is not for everybody: a worker has a few *lanes*, and a body has one while it is
//! large and both sides are fast. Whoever finds none free, or is slow, goes on in smaller pieces.
//!
//! Invariants: a lane is given back on every way out, and both connections are as they were; nobody
//! holds a buffer while nothing arrives.

use std::{cell::Cell, future::poll_fn, io, pin::pin};

use super::{Relay, body_failure, is_for_nothing};
use crate::{
    exchange::{Failure, ResponsePlan, Tick, Timer},
    http1::Transfer,
    sys::{Duplex, Readiness, Room},
    worker::{Worker, buffer::Size},
};

/// Lanes of one worker, and its largest buffers: 2 MiB, and some more in the kernel on either side
/// of each lane. More gain little: a worker moves one piece at a time.
pub(in crate::worker) const LANES_MAX: usize = 4;

/// A body of known length is large while so much of it is to come. In less there are too few pieces
/// for a lane to pay.
const LARGE_BYTES: u64 = 256 * 1024;

/// A body of unknown length is large when so many large buffers have come back full.
const FULL_PIECES: u32 = 2;

/// A fifth of a second. Who takes longer for a piece has no use for a lane, nor has a body for
/// which nothing arrives for longer.
const PIECE_TICKS_MAX: u32 = 4;

/// The lanes of one worker.
#[derive(Debug, Default)]
pub(in crate::worker) struct Lanes {
    holders: [Cell<Holder>; LANES_MAX],
    bodies: Cell<u64>,
    /// Buffers of [`Size::Bulk`] that are in use.
    buffers: Cell<usize>,
}

/// Who has a lane.
#[derive(Clone, Copy, Debug, Default)]
enum Holder {
    #[default]
    Nobody,
    /// The body with this number, which is being sent.
    Moving(u64),
    /// The body with this number, for which nothing has arrived since then.
    Waiting(u64, Tick),
}

/// A lane, from one connection to another.
struct Lane<'a> {
    holder: &'a Cell<Holder>,
    body: u64,
    from: &'a Duplex,
    to: &'a Duplex,
}

impl Lanes {
    /// A lane that is free, or whose body nothing has arrived for: it holds no buffer, and gives up
    /// the rest when something does.
    fn take<'a>(&'a self, now: Tick, from: &'a Duplex, to: &'a Duplex) -> Option<Lane<'a>> {
        let is_free = |holder: &&Cell<Holder>| match holder.get() {
            Holder::Nobody => true,
            Holder::Moving(_) => false,
            Holder::Waiting(_, since) => is_long(since, now),
        };
        let holder = self.holders.iter().find(is_free)?;
        let body = self.bodies.get() + 1;
        self.bodies.set(body);
        holder.set(Holder::Moving(body));
        from.receive_into(Room::Bulk);
        to.send_from(Room::Bulk);
        Some(Lane { holder, body, from, to })
    }
}

impl Lane<'_> {
    /// Nobody else has taken it over.
    fn is_ours(&self) -> bool {
        match self.holder.get() {
            Holder::Nobody => false,
            Holder::Moving(body) | Holder::Waiting(body, _) => body == self.body,
        }
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.from.receive_into(Room::Usual);
        self.to.send_from(Room::Usual);
        if self.is_ours() {
            self.holder.set(Holder::Nobody);
        }
    }
}

fn is_long(since: Tick, now: Tick) -> bool {
    now.0.saturating_sub(since.0) > PIECE_TICKS_MAX
}

/// How one body goes from one connection to another.
pub(super) struct Pace<'a> {
    worker: &'a Worker,
    from: &'a Duplex,
    to: &'a Duplex,
    lane: Option<Lane<'a>>,
    full_pieces: u32,
    /// The last attempt to receive gave octets, or there was none.
    gave: bool,
    sending_since: Tick,
    /// It has turned out to be large, and stays so to its end.
    is_large: bool,
    /// A piece took too long.
    is_slow: bool,
    /// It has one of the few largest buffers.
    has_buffer: bool,
}

impl<'a> Pace<'a> {
    /// Of a body that has filled so many large buffers already.
    pub(super) fn new(
        worker: &'a Worker,
        (from, to): (&'a Duplex, &'a Duplex),
        body: &Transfer,
        full_pieces: u32,
    ) -> Self {
        let mut pace = Self {
            worker,
            from,
            to,
            lane: None,
            full_pieces,
            gave: true,
            sending_since: worker.alarms.now(),
            is_large: false,
            is_slow: false,
            has_buffer: false,
        };
        // Before anything is waited for: with more room, more comes at once.
        pace.seek_lane(body);
        pace
    }

    /// Takes a lane for what is left of `body`, if it is for one and there is one.
    fn seek_lane(&mut self, body: &Transfer) {
        self.is_large |= is_large(body, self.full_pieces);
        if self.lane.as_ref().is_some_and(|lane| !lane.is_ours()) {
            self.lane = None;
        }
        if self.lane.is_none() && self.is_in_bulk() {
            self.lane = self.worker.lanes.take(self.worker.alarms.now(), self.from, self.to);
        }
    }

    fn is_in_bulk(&self) -> bool {
        self.is_large && !self.is_slow
    }

    /// More octets may lie ready by now: they are asked for before they are waited for.
    pub(super) fn flows(&self) -> bool {
        self.gave && self.is_in_bulk()
    }

    /// An empty buffer for the next piece of `body`. The largest go from piece to piece and not
    /// from body to body, so that with more bodies than buffers each has its turn.
    pub(super) fn buffer(&mut self, body: &Transfer) -> Vec<u8> {
        self.seek_lane(body);
        let in_use = &self.worker.lanes.buffers;
        if !self.is_in_bulk() || in_use.get() == LANES_MAX {
            return self.worker.buffers.take(Size::Large);
        }
        in_use.set(in_use.get() + 1);
        self.has_buffer = true;
        self.worker.buffers.take(Size::Bulk)
    }

    /// The buffer has been given back, or will be by the operation that holds it.
    fn note_buffer_given(&mut self) {
        if std::mem::take(&mut self.has_buffer) {
            let in_use = &self.worker.lanes.buffers;
            in_use.set(in_use.get() - 1);
        }
    }

    /// So many octets were received, and are about to be sent.
    pub(super) fn note_received(&mut self, bytes: usize) {
        self.gave = true;
        self.full_pieces += u32::from(bytes >= Size::Large.bytes());
        self.sending_since = self.worker.alarms.now();
        if let Some(lane) = &self.lane {
            lane.holder.set(Holder::Moving(lane.body));
        }
    }

    /// Nothing lay ready.
    pub(super) fn note_nothing(&mut self) {
        self.gave = false;
        self.note_buffer_given();
        if let Some(lane) = &self.lane {
            lane.holder.set(Holder::Waiting(lane.body, self.worker.alarms.now()));
        }
    }

    /// What was received has been sent.
    pub(super) fn note_sent(&mut self) {
        self.note_buffer_given();
        if is_long(self.sending_since, self.worker.alarms.now()) {
            self.is_slow = true;
            self.lane = None;
        }
    }
}

impl Drop for Pace<'_> {
    fn drop(&mut self) {
        self.note_buffer_given();
    }
}

fn is_large(body: &Transfer, full_pieces: u32) -> bool {
    body.left_bytes().map_or(full_pieces >= FULL_PIECES, |left| left >= LARGE_BYTES)
}

impl<'r> Relay<'r, '_>
where
    Self: 'r,
{
    /// Whether what is left of a body is for [`Relay::bulk`].
    pub(super) fn may_go_in_bulk(&self, plan: &ResponsePlan, full_pieces: u32) -> bool {
        // An orchestrator's answer is read by us as well, and a rewritten body is copied.
        self.account.introducing.is_none()
            && plan.transfer.is_verbatim()
            && is_large(&plan.transfer, full_pieces)
    }

    /// Relays the rest of a large body, of which everything that was received has been sent. Says
    /// whether octets lay behind it.
    pub(super) async fn bulk(&mut self, plan: &mut ResponsePlan) -> Result<bool, Failure> {
        let wait = self.worker.config.timeouts.body;
        let way = (self.upstream, self.client.connection);
        let mut pace = Pace::new(self.worker, way, &plan.transfer, FULL_PIECES);
        loop {
            if plan.has_body_deadline() {
                self.client.alarm.set(Timer::ResponseBody, wait);
            }
            let (received, mut buffer) = self.receive_piece(&plan.transfer, &mut pace).await?;
            self.client.alarm.clear(Timer::ResponseBody);
            match received {
                Ok(n) if n > 0 => pace.note_received(n),
                Ok(_) | Err(_) => {
                    self.worker.buffers.give(buffer);
                    let is_broken = received.is_err();
                    // A body that ends with its connection is complete unless the connection broke
                    // (RFC 9112 §8). To what goes through verbatim nothing is added.
                    if is_broken || plan.transfer.end_of_input(&mut Vec::new()).is_err() {
                        return Err(Failure::ResponseTruncated);
                    }
                    return Ok(false);
                }
            }
            let measured = plan.transfer.measure(&mut buffer);
            let dropped = u64::from(plan.transfer.take_dropped());
            self.worker.stats().trailer_fields_dropped.add(dropped);
            let n = measured.map_err(body_failure)?;
            self.account.bytes_down += n as u64;
            let is_done = plan.transfer.is_done();
            let stray_octets = is_done && n < buffer.len();
            self.send_slice(buffer, 0..n, Some(wait)).await?;
            pace.note_sent();
            if is_done {
                return Ok(stray_octets);
            }
        }
    }

    /// Receives the next piece.
    async fn receive_piece(
        &mut self,
        body: &Transfer,
        pace: &mut Pace<'_>,
    ) -> Result<(io::Result<usize>, Vec<u8>), Failure> {
        let mut arrivals = pin!(self.upstream.readiness());
        loop {
            if !pace.flows() {
                let mut ready = pin!(poll_fn(|cx| arrivals.as_mut().poll_ready(cx)));
                self.finish(ready.as_mut()).await?;
            }
            let mut buffer = pace.buffer(body);
            match self.upstream.try_recv(&mut buffer) {
                Err(error) if is_for_nothing(&error) => {
                    pace.note_nothing();
                    self.worker.buffers.give(buffer);
                }
                received => return Ok((received, buffer)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http1::{Coding, Framing},
        sys::testing::with_connection,
    };

    #[test]
    fn a_lane_is_free_when_its_body_ends_and_when_nothing_arrives_for_long() {
        with_connection(async |connection, _peer| {
            let lanes = Lanes::default();
            let take = |now| lanes.take(Tick(now), &connection, &connection);
            let mut held: Vec<_> = (0..LANES_MAX).map(|_| take(10).unwrap()).collect();
            assert!(take(10).is_none());
            drop(held.pop());
            let first = take(10).unwrap();
            assert!(take(10_000).is_none(), "those that are being sent keep theirs");
            first.holder.set(Holder::Waiting(first.body, Tick(20)));
            assert!(take(20 + PIECE_TICKS_MAX).is_none());
            let second = take(21 + PIECE_TICKS_MAX).unwrap();
            assert!(second.is_ours() && !first.is_ours());
            drop(first);
            assert!(second.is_ours(), "who lost a lane does not give it back");
            assert!(take(10_000).is_none());
        });
    }

    #[test]
    fn a_body_is_large_by_what_is_left_of_it_or_by_its_pieces() {
        let cases = [
            (Framing::Length(LARGE_BYTES - 1), FULL_PIECES, false),
            (Framing::Length(LARGE_BYTES), 0, true),
            (Framing::Chunked, FULL_PIECES - 1, false),
            (Framing::Chunked, FULL_PIECES, true),
            (Framing::UntilClose, FULL_PIECES, true),
        ];
        for (framing, full_pieces, want) in cases {
            let body = Transfer::new(framing, Coding::Identity);
            assert_eq!(is_large(&body, full_pieces), want, "{framing:?} {full_pieces}");
        }
    }
}
