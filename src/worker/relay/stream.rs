//! Step 7 of an event stream: its events go down as they come, and what is ours goes between them.
//!
//! Invariants
//! - A silent stream holds no buffer.
//! - Nothing of ours is written inside an event: [`EventBody`] sees to that.

use std::{
    future::poll_fn,
    io::ErrorKind,
    pin::{Pin, pin},
};

use super::{Relay, Turn, body_failure};
use crate::{
    exchange::{Failure, Fate, ResponsePlan, Timer},
    sse::{EventBody, Reading},
    stats::Held,
    sys::{Ending, Readiness},
    worker::buffer::Size,
};

/// What a silent stream waits for.
enum Arrival {
    Octets(Vec<u8>),
    /// The backend ended its body, or broke off.
    End {
        is_broken: bool,
    },
    /// It has been silent for long enough.
    Silence,
}

impl Relay<'_, '_> {
    /// Relays an event stream. `out` holds the head; `input` what has arrived behind it.
    pub(super) async fn stream(
        &mut self,
        plan: &ResponsePlan,
        mut out: Vec<u8>,
        mut input: Vec<u8>,
    ) -> Result<(Fate, Fate), Failure> {
        let worker = self.worker;
        let _open: Held<'_> = worker.stats().event_streams_open.hold();
        self.departure_ends = true;
        self.account.become_event_stream();
        // It left before anybody could know that this would be a stream.
        if self.client.half_closed {
            return Err(Failure::ClientGone);
        }
        // Boxed: every connection would have room for it, and few have a stream.
        let mut body = Box::new(EventBody::new(plan.transfer, plan.coding, reading(plan)));
        let mut arrivals = pin!(self.upstream.readiness());
        let mut size = Size::Small;
        let mut head_is_out = false;
        let stray_octets = loop {
            if let Some(introducing) = &mut self.account.introducing {
                introducing.note(&input);
            }
            if out.capacity() == 0 && !input.is_empty() {
                // Room for a chunk's size and end besides its content.
                let fits = input.len() + 64 <= Size::Small.bytes();
                out = worker.buffers.take(if fits { Size::Small } else { Size::Large });
            }
            let pushed = body.push(&input, &mut out, |_| ());
            let error = pushed.err();
            let taken = pushed.unwrap_or_default().taken;
            let is_stray = taken < input.len() && error.is_none();
            worker.buffers.give(std::mem::take(&mut input));
            self.account.bytes_down += taken as u64;
            worker.stats().trailer_fields_dropped.add(u64::from(body.take_dropped()));
            if !head_is_out {
                // While the head is still here, the client can get a proper error.
                if let Some(error) = error {
                    return Err(body_failure(error));
                }
                if plan.ends_by_closing() {
                    // Until the body has ended, no end of ours may pass for its end, whatever
                    // brings it about.
                    self.end_as(Ending::Broken)?;
                }
                self.account.status = plan.status;
                head_is_out = true;
            }
            let is_done = body.is_done();
            if is_done {
                self.introduced(plan.status);
            }
            self.send_event(std::mem::take(&mut out)).await?;
            if let Some(error) = error {
                return Err(body_failure(error));
            }
            if is_done {
                break is_stray;
            }
            match self.next_piece(arrivals.as_mut(), size).await? {
                Arrival::Octets(octets) => {
                    // A burst is read in larger pieces, until it is over.
                    let is_full = octets.len() == octets.capacity();
                    size = if is_full { Size::Large } else { Size::Small };
                    input = octets;
                }
                Arrival::Silence => {
                    out = worker.buffers.take(Size::Small);
                    body.heartbeat(&mut out);
                }
                Arrival::End { is_broken } => {
                    out = worker.buffers.take(Size::Small);
                    // A body that ends with its connection is complete unless the connection broke
                    // (RFC 9112 §8).
                    if is_broken || body.end_of_input(&mut out).is_err() {
                        return Err(Failure::ResponseTruncated);
                    }
                    self.introduced(plan.status);
                    self.send_event(out).await?;
                    break false;
                }
            }
        };
        if plan.ends_by_closing() {
            self.end_as(Ending::Orderly)?;
        }
        Ok(self.conclude(plan, stray_octets))
    }

    /// Whoever reads a stream may pause over an event; whoever takes nothing for long holds a place
    /// on the backend that others could have.
    async fn send_event(&mut self, octets: Vec<u8>) -> Result<(), Failure> {
        self.send_within(octets, self.worker.config.timeouts.client_stall).await
    }

    /// Waits for the next piece, holding no buffer meanwhile.
    async fn next_piece(
        &mut self,
        mut arrivals: Pin<&mut impl Readiness>,
        size: Size,
    ) -> Result<Arrival, Failure> {
        if let Some(silence) = self.worker.config.streams.heartbeat {
            self.client.alarm.set(Timer::Heartbeat, silence);
        }
        loop {
            let mut arrival = pin!(poll_fn(|cx| arrivals.as_mut().poll_ready(cx)));
            match self.turn(arrival.as_mut()).await? {
                Turn::Done(()) => {}
                Turn::Due => return Ok(Arrival::Silence),
            }
            let mut buffer = self.worker.buffers.take(size);
            match self.upstream.try_recv(&mut buffer) {
                Ok(0) => return Ok(Arrival::End { is_broken: false }),
                Ok(_) => return Ok(Arrival::Octets(buffer)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.worker.buffers.give(buffer);
                }
                Err(_) => return Ok(Arrival::End { is_broken: true }),
            }
        }
    }
}

/// What can be known of a stream.
fn reading(plan: &ResponsePlan) -> Reading {
    match plan.body_bytes {
        _ if plan.is_coded => Reading::Coded,
        Some(_) => Reading::Fixed,
        None => Reading::Open,
    }
}
