//! The client's side of a connection: its octets, its deadlines, and whether it is still there.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use super::{Worker, alarm::Alarm, buffer::Size, crowd::Ticket, http::Request};
use crate::{
    exchange::{Failure, RequestPlan, Tick, Timer, head_falls_behind},
    http1::{HeadScan, LeadingLine},
    model::{Phase, Trust},
    sys::{Duplex, Peek, Readiness},
};

/// How long a client that was told to close may take to do so. A bound in octets would not do: one
/// that uploads at full speed sends megabytes before it looks at the answer.
const LINGER: Duration = Duration::from_secs(1);

/// How long, from its beginning, a connection that has asked for nothing may wait for its first
/// request once the process drains. Browsers keep connections in reserve that they have not used:
/// one that is older closes at once, or a stream that is sent elsewhere would come back by it.
const LAST_CALL: Duration = Duration::from_secs(1);

/// How long a request that is its client's last may take before anybody watches whether the client
/// leaves. A departure is then noticed twice as late at most.
const UNWATCHED_FOR: Duration = Tick::LENGTH;

/// One client connection between and during exchanges.
pub(super) struct Client<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) connection: &'a Duplex,
    /// One poll, armed all the time: between exchanges it waits for the next request, during one
    /// it notices that the client leaves.
    arrivals: Pin<&'a mut dyn Readiness>,
    pub(super) alarm: &'a Alarm,
    /// Received octets that no exchange has consumed.
    pub(super) inbox: Vec<u8>,
    pub(super) address: &'a SocketAddr,
    /// The address without port, as forwarded to backends.
    pub(super) address_text: String,
    /// Whether what it says about its own client is believed.
    pub(super) trust: Trust,
    /// The path of the current request, cut to what is logged. Kept here so that it is allocated
    /// once per connection.
    pub(super) path: Vec<u8>,
    /// The client has closed its sending side.
    pub(super) half_closed: bool,
    /// It has said that the current request is its last.
    pub(super) announces_end: bool,
    /// Its departure is watched for from here on, if it has said that the request is its last.
    watched_from: Tick,
    /// Nothing more is to be learnt by watching: octets lie unread, or the end has been seen.
    watch_is_over: bool,
    requests: u64,
    /// When it came.
    begun: Tick,
    /// Its place in the crowd, while a head is incomplete.
    ticket: Option<Ticket>,
    /// The connection is coming to its end by a deadline of its own.
    is_closing: bool,
    /// It was looked for octets of it.
    has_been_heard: bool,
}

/// What a client does while an exchange is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It closed its sending side, and perhaps more: the two look the same from here.
    Closed,
    /// Its connection is broken.
    Broken,
}

/// What the client sends while an exchange is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ahead {
    /// The next requests, of which a little is taken in.
    NextRequests,
    /// The rest of the body, which is left where it is.
    Body,
}

/// Why there is no head to serve.
pub(super) enum NoHead {
    /// The connection ends here, between two requests.
    Ended,
    /// What arrived is refused.
    Refused(Failure),
}

/// A complete head at the front of the inbox.
pub(super) struct Arrived {
    pub(super) head: Range<usize>,
    /// When its first octet arrived.
    pub(super) at: Instant,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        worker: &'a Rc<Worker>,
        connection: &'a Duplex,
        arrivals: Pin<&'a mut dyn Readiness>,
        alarm: &'a Alarm,
        address: &'a SocketAddr,
    ) -> Self {
        Self {
            worker,
            connection,
            arrivals,
            alarm,
            inbox: Vec::new(),
            address,
            // An IPv4 client of a `[::]` listener is an IPv4 client.
            trust: worker.config.trusted_proxies.trust(address.ip()),
            address_text: address.ip().to_canonical().to_string(),
            path: Vec::new(),
            half_closed: false,
            announces_end: false,
            watched_from: Tick::NEVER,
            watch_is_over: false,
            requests: 0,
            begun: alarm.now(),
            ticket: None,
            is_closing: false,
            has_been_heard: false,
        }
    }

    /// Whether the client has closed its sending side, and everything that it sent has been served.
    pub(super) fn has_ended(&self) -> bool {
        self.half_closed && self.inbox.is_empty()
    }

    /// Whether the client has said that it has no more to say, and nothing else lies here: then its
    /// connection can be closed at once. Octets that a closed socket receives, or that nobody has
    /// read from it, would reset it, and the response with it if that is still on its way
    /// (RFC 9112 §9.6).
    pub(super) fn is_done(&self) -> bool {
        self.announces_end
            && self.inbox.is_empty()
            && matches!(self.connection.peek(), Peek::Nothing | Peek::EndOfInput)
    }

    /// Whether the response to this request must announce the end of the connection.
    pub(super) fn must_close(&self, request: &RequestPlan) -> bool {
        request.closes_after(self.has_ended(), self.worker.phase() != Phase::Serving)
    }

    /// Whether `requests_per_connection_max` lets this request be the last.
    pub(super) fn is_at_last_request(&self) -> bool {
        let max = self.worker.config.limits.requests_per_connection_max;
        max.is_some_and(|max| self.requests >= u64::from(max.get()))
    }

    /// Step 2: waits for the next head, under the deadlines for idling and for reading.
    pub(super) async fn next_head(&mut self) -> Result<Arrived, NoHead> {
        let timeouts = &self.worker.config.timeouts;
        let limits = self.worker.config.limits;
        self.alarm.clear_all();
        // A connection that has never asked for anything has no claim to the longer wait.
        match self.requests {
            0 => self.alarm.set(Timer::RequestHead, timeouts.request_head),
            _ => self.alarm.set(Timer::KeepAlive, timeouts.keep_alive),
        }
        self.watch_is_over = false;
        let mut scan = HeadScan::new(LeadingLine::Skip);
        let (mut first_octet_at, mut begun) = (None, None);
        loop {
            if !self.inbox.is_empty() {
                let at = *first_octet_at.get_or_insert_with(|| {
                    self.alarm.clear(Timer::KeepAlive);
                    Instant::now()
                });
                let found = scan.advance(&self.inbox).map_err(|e| NoHead::Refused(e.into()))?;
                let end = found.as_ref().map_or(self.inbox.len(), |head| head.end);
                if scan.start_line_bytes() > limits.request_line_bytes_max {
                    return Err(NoHead::Refused(Failure::HeadLineTooLong));
                }
                if end > limits.request_head_bytes_max {
                    return Err(NoHead::Refused(Failure::HeadTooLarge));
                }
                if let Some(head) = found {
                    self.requests += 1;
                    self.leave_crowd();
                    self.alarm.clear_all();
                    self.watched_from = self.alarm.now().after(UNWATCHED_FOR);
                    return Ok(Arrived { head, at });
                }
                // Most heads come whole and never have a deadline of their own.
                let begun = *begun.get_or_insert_with(|| {
                    self.alarm.set(Timer::RequestHead, timeouts.request_head);
                    self.alarm.now()
                });
                self.join_crowd();
                if let Some(rate_min) = limits.request_head_rate_min {
                    let late = head_falls_behind(self.inbox.len(), rate_min);
                    self.alarm.set_since(begun, Timer::HeadRate, late);
                }
            }
            match self.receive().await {
                Received::Octets => {}
                Received::End if self.inbox.is_empty() => return Err(NoHead::Ended),
                Received::End => return Err(NoHead::Refused(Failure::HeadTruncated)),
                Received::Expired(_) if self.inbox.is_empty() => return Err(NoHead::Ended),
                Received::Expired(Timer::HeadRate) => {
                    return Err(NoHead::Refused(Failure::HeadTooSlow));
                }
                Received::Expired(_) => return Err(NoHead::Refused(Failure::HeadTimeout)),
                Received::CrowdedOut => return Err(NoHead::Refused(Failure::HeadCrowdedOut)),
                Received::Draining => return Err(NoHead::Ended),
            }
        }
    }

    /// Waits a moment for what the current request still lacks, until so many octets have arrived
    /// with those of its head. Whether they have is for the caller to see.
    pub(super) async fn gather(&mut self, octets: usize, wait: Duration) {
        self.alarm.set(Timer::Coalesce, wait);
        while self.inbox.len() < octets && matches!(self.receive().await, Received::Octets) {}
        self.alarm.clear(Timer::Coalesce);
    }

    /// A head that has begun and not ended counts, and may cost another its place.
    fn join_crowd(&mut self) {
        if self.ticket.is_some() {
            return;
        }
        let (ticket, evicted) = self.worker.crowd.borrow_mut().enter(self.alarm.place());
        self.ticket = Some(ticket);
        if let Some(place) = evicted {
            self.worker.alarms.wake(place);
        }
    }

    fn leave_crowd(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.worker.crowd.borrow_mut().leave(ticket);
        }
    }

    /// Takes the front of the inbox away. An empty inbox holds no buffer: the exchange may be a
    /// stream that lasts for hours.
    pub(super) fn consume(&mut self, octets: usize) {
        self.inbox.drain(..octets);
        if self.inbox.is_empty() {
            self.worker.buffers.give(std::mem::take(&mut self.inbox));
        }
    }

    /// Appends to the inbox what the client sends next.
    async fn receive(&mut self) -> Received {
        // Who has just connected speaks first, and mostly has by now: a look in vain costs less
        // than to arm a poll and be woken by it.
        let mut may_lie_here = self.requests == 0 && !self.has_been_heard;
        self.has_been_heard = true;
        loop {
            self.consume(0);
            if !std::mem::take(&mut may_lie_here)
                && let Some(instead) = self.wait_for_octets().await
            {
                return instead;
            }
            if self.inbox.capacity() == 0 {
                self.inbox = self.worker.buffers.take(Size::Small);
            } else if self.inbox.capacity() == self.inbox.len() {
                self.inbox.reserve(self.inbox.len());
            }
            match self.connection.try_recv(&mut self.inbox) {
                Ok(0) => {
                    self.half_closed = true;
                    return Received::End;
                }
                Ok(_) => return Received::Octets,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return Received::End,
            }
        }
    }

    async fn wait_for_octets(&mut self) -> Option<Received> {
        let Self { arrivals, alarm, connection, worker, ticket, begun, .. } = self;
        let (is_idle, is_new) = (self.inbox.is_empty(), self.requests == 0);
        let is_closing = &mut self.is_closing;
        poll_fn(|cx| {
            if ticket.is_some_and(|ticket| worker.crowd.borrow().is_evicted(ticket)) {
                return Poll::Ready(Some(Received::CrowdedOut));
            }
            if arrivals.as_mut().poll_ready(cx).is_ready() {
                return Poll::Ready(None);
            }
            if is_idle && !*is_closing && worker.phase() == Phase::Draining {
                // A request may lie here already, as it does behind the accept queue, before the
                // ring has said so.
                if connection.peek() == Peek::Octets {
                    return Poll::Ready(None);
                }
                if !is_new {
                    return Poll::Ready(Some(Received::Draining));
                }
                // Whoever has just connected came with a request, which may be on its way.
                *is_closing = true;
                alarm.set_since(*begun, Timer::RequestHead, LAST_CALL);
            }
            alarm.poll_expired(cx).map(|timer| Some(Received::Expired(timer)))
        })
        .await
    }

    /// Notices that the client leaves while its request waits for a backend.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, request: &Request) -> Poll<Failure> {
        let (is_whole, is_live) = (request.rest.is_none(), request.plan.accepts_event_stream);
        let ahead = if is_whole { Ahead::NextRequests } else { Ahead::Body };
        match ready!(self.poll_departure(cx, ahead)) {
            Departure::Closed if !is_whole => Poll::Ready(Failure::RequestTruncated),
            Departure::Closed if !is_live => Poll::Pending,
            Departure::Closed | Departure::Broken => Poll::Ready(Failure::ClientGone),
        }
    }

    /// Watches again, after the octets that were in the way have been read.
    pub(super) fn watch_again(&mut self) {
        self.watch_is_over = self.half_closed;
    }

    /// Notices that the client leaves while its exchange is running.
    pub(super) fn poll_departure(&mut self, cx: &mut Context<'_>, ahead: Ahead) -> Poll<Departure> {
        // Between requests the watch would be needed anyway. Behind the last there is no next, and
        // most are answered before anything could be noticed: arming a poll and cancelling it would
        // cost more than receiving the request.
        if self.announces_end && self.inbox.is_empty() {
            if self.alarm.now() < self.watched_from {
                self.alarm.glance_at(cx, self.watched_from);
                return Poll::Pending;
            }
            self.alarm.glance_at(cx, Tick::NEVER);
        }
        while !self.watch_is_over && self.arrivals.as_mut().poll_ready(cx).is_ready() {
            match self.connection.peek() {
                Peek::Nothing => {}
                Peek::Octets if ahead == Ahead::Body => self.watch_is_over = true,
                Peek::Octets => self.read_ahead(),
                Peek::EndOfInput => {
                    self.watch_is_over = true;
                    self.half_closed = true;
                    return Poll::Ready(Departure::Closed);
                }
                Peek::Broken => return Poll::Ready(Departure::Broken),
            }
        }
        Poll::Pending
    }

    /// How the client has left, if it has, without taking an octet of what it sent.
    pub(super) fn departed(&self) -> Option<Departure> {
        match self.connection.ending() {
            Peek::Nothing | Peek::Octets => None,
            Peek::EndOfInput => Some(Departure::Closed),
            Peek::Broken => Some(Departure::Broken),
        }
    }

    /// Notices that the client leaves while its request waits, without taking an octet of what it
    /// sends: that may be a body which whoever forwards it will read. Octets that lie unread hide
    /// the end from the ring: then `is_blind` is set, and the caller has to ask from time to time.
    pub(super) fn poll_departed(
        &mut self,
        cx: &mut Context<'_>,
        is_blind: &Cell<bool>,
    ) -> Poll<Departure> {
        loop {
            if let Some(departure) = self.departed() {
                return Poll::Ready(departure);
            }
            if is_blind.get() || self.arrivals.as_mut().poll_ready(cx).is_pending() {
                return Poll::Pending;
            }
            is_blind.set(self.connection.peek() == Peek::Octets);
        }
    }

    /// Takes in octets that belong to no exchange yet, because the end of a connection hides behind
    /// them. A client that sends more than a little ahead is no longer watched.
    fn read_ahead(&mut self) {
        let max = self.worker.config.limits.pipelined_bytes_max;
        let room = max.saturating_sub(self.inbox.len());
        if room == 0 {
            self.watch_is_over = true;
            return;
        }
        let mut buffer = self.worker.buffers.take(Size::Small);
        // What it cannot take now, it meets again at the next poll.
        if self.connection.try_recv_within(&mut buffer, room).is_ok() {
            match self.inbox.is_empty() {
                true => self.worker.buffers.give(std::mem::replace(&mut self.inbox, buffer)),
                false => self.inbox.extend_from_slice(&buffer),
            }
        }
    }

    /// Sends one of our own answers. A client that does not take it is not waited for longer than
    /// the body timeout.
    pub(super) async fn send_answer(&mut self, octets: Vec<u8>) -> Result<(), Failure> {
        self.alarm.set(Timer::ClientWrite, self.worker.config.timeouts.body);
        let mut sending = std::pin::pin!(self.connection.send_all(octets));
        let sent = poll_fn(|cx| match sending.as_mut().poll(cx) {
            Poll::Ready((Ok(()), octets)) => {
                self.worker.buffers.give(octets);
                Poll::Ready(Ok(()))
            }
            Poll::Ready((Err(_), _)) => Poll::Ready(Err(Failure::ClientGone)),
            Poll::Pending => self.alarm.poll_expired(cx).map(|_| Err(Failure::ClientStalled)),
        })
        .await;
        self.alarm.clear(Timer::ClientWrite);
        sent
    }

    /// Ends the connection so that the client can read what was sent to it: closing with unread
    /// octets would reset the connection and take the response with it (RFC 9112 §9.6).
    pub(super) async fn close(mut self) {
        self.leave_crowd();
        self.connection.finish_sending();
        if self.half_closed {
            return;
        }
        self.is_closing = true;
        self.alarm.clear_all();
        self.alarm.set(Timer::Linger, LINGER);
        loop {
            self.inbox.clear();
            match self.receive().await {
                Received::Octets => {}
                Received::End
                | Received::Expired(_)
                | Received::Draining
                | Received::CrowdedOut => return,
            }
        }
    }
}

enum Received {
    Octets,
    End,
    Expired(Timer),
    Draining,
    /// Too many others are sending heads.
    CrowdedOut,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        self.leave_crowd();
        self.worker.buffers.give(std::mem::take(&mut self.inbox));
    }
}
