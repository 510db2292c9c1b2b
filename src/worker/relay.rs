//! Steps 6 and 7: the request goes up, the response comes down, and nothing else is forgotten
//! meanwhile: the rest of the request body, the client's departure, the deadlines.
//!
//! Event streams have a pump of their own in [`stream`], and so have large bodies in [`bulk`].
//!
//! Invariant: no read that was handed to the kernel is dropped on a connection that will be used
//! again. Every early return from here ends the upstream connection.

mod bulk;
mod stream;

use bulk::Pace;
pub(super) use bulk::{LANES_MAX, Lanes};
pub(super) use stream::{Stream, go_on};

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use monoio::buf::IoBuf;

use super::{
    ActiveDriver, Worker,
    alarm::Alarm,
    buffer::Size,
    client::{Ahead, Client, Departure},
    drain::AGE_RESPITE,
    explain,
    http::{Account, Request},
    streams::Enrolled,
    tunnel::{self, Copied},
};
use crate::{
    config::Algorithm,
    exchange::{
        EarlyEnd, ExchangeEnd, Failure, Fate, Nature, Origin, Persistence, RequestPlan,
        ResponseFacts, ResponsePlan, Sent, Then, Timer, conclude, ends_by_age, plan_response,
        write_response,
    },
    http1::{
        BodyError, BodyLimits, Edits, Field, HeadScan, LeadingLine, ResponseHead, Transfer,
        field_storage, parse_response,
    },
    link::Report,
    model::Phase,
    session::instance_in,
    stats::Sample,
    sys::{Duplex, Ending, Readiness},
};

/// Bodies up to this size leave together with their head, if they arrive soon enough: Stepflow's
/// client gives up a connection on which a small body comes in a piece of its own.
const COALESCED_BYTES_MAX: u64 = 16 * 1024;

/// How long a head waits for its small body.
const COALESCE_WAIT: Duration = Duration::from_millis(50);

/// Octets that a response's head gains on its way, as a rule: when it came, who it comes from, and
/// what becomes of its connection. Where it is more, the buffer grows.
const ADDED_BYTES_MAX: usize = 256;

/// How long the client of a stream whose time is over may take for what is being sent.
const LAST_SEND: Duration = Duration::from_secs(1);

/// Whether the request might be sent once more after octets of it were sent. One that never will
/// be need not be kept while the backend thinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replay {
    Possible,
    Never,
}

/// How an attempt ended.
pub(super) enum Delivery {
    /// The client got a response; what becomes of the connections.
    Done { downstream: Fate, upstream: Fate },
    /// It did not, or not all of it.
    Failed { failure: Failure, sent: Sent, response_begun: bool, request_complete: bool },
}

/// Sends the request over `upstream` and relays the response. Not an `async fn`, which would hold
/// its arguments beside what becomes of them.
pub(super) fn run<'r>(
    worker: &'r Rc<Worker>,
    client: &'r mut Client<'_>,
    account: &'r mut Account,
    request: &'r mut Request,
    upstream: &'r Duplex,
    replay: Replay,
) -> impl Future<Output = Delivery> {
    // What arrived with the head is all there is: it can be sent again as it is.
    let is_whole = request.rest.is_none();
    let mut relay = Relay {
        worker,
        replay,
        request: request.plan,
        request_complete: is_whole,
        upload: None,
        departure_ends: request.plan.accepts_event_stream || request.stream.is_some(),
        response_begun: false,
        awaits_head: false,
        write_wait: None,
        enrolled: None,
        told: None,
        awaits_event: false,
        client,
        account,
        upstream,
    };
    if worker.drain.concerns_everything() {
        relay.enroll();
    }
    async move {
        match relay.run(request).await {
            Ok((downstream, upstream)) => Delivery::Done { downstream, upstream },
            Err(failure) => {
                let Relay { request_complete, response_begun, .. } = relay;
                let sent = match request.octets.is_empty() || !is_whole {
                    true => Sent::Gone,
                    false => Sent::Replayable,
                };
                Delivery::Failed { failure, sent, response_begun, request_complete }
            }
        }
    }
}

/// Tells a backend, at once, that nobody waits for what it is doing, and counts how long that took.
/// Closing would not do: a ring closes a socket in its own time, when the operations on it have
/// been cancelled.
pub(super) fn cancel(worker: &Worker, upstream: &Duplex) {
    let noticed = Instant::now();
    upstream.finish_sending();
    worker.stats().cancel_latency.observe(noticed.elapsed());
}

type Upload<'a> = Pin<Box<dyn Future<Output = Result<Uploaded, Failure>> + 'a>>;

struct Uploaded {
    bytes: u64,
    /// What arrived behind the body: the beginning of the next request.
    behind: Vec<u8>,
}

struct Relay<'r, 'c> {
    worker: &'r Rc<Worker>,
    client: &'r mut Client<'c>,
    account: &'r mut Account,
    upstream: &'r Duplex,
    replay: Replay,
    request: RequestPlan,
    request_complete: bool,
    /// The rest of the request body, on its way. Only for bodies that did not arrive with the head.
    upload: Option<Upload<'r>>,
    /// A client that closes its sending side is gone, because what it asked for is read live.
    departure_ends: bool,
    /// An octet of the response was received.
    response_begun: bool,
    /// The final head is still to come.
    awaits_head: bool,
    /// How long the client may take nothing of what is being sent.
    write_wait: Option<Duration>,
    /// Lets it be told to end. Event streams have one, and other exchanges where they may be.
    enrolled: Option<Enrolled<'r>>,
    /// The end that it was told to come to, and has not looked at.
    told: Option<Told>,
    /// It is a stream of which nothing is being sent.
    awaits_event: bool,
}

/// What a stream was told about its end.
#[derive(Clone, Copy)]
struct Told {
    why: EarlyEnd,
    /// If it cannot end at once, it is cut.
    is_last_call: bool,
}

impl<'r> Relay<'r, '_>
where
    Self: 'r,
{
    async fn run(&mut self, request: &mut Request) -> Result<(Fate, Fate), Failure> {
        // Step 6: forward the head and whatever body came with it.
        self.client.alarm.set(Timer::BackendWrite, self.worker.config.timeouts.body);
        let octets = std::mem::take(&mut request.octets);
        let (sent, octets) = {
            let mut sending = pin!(self.upstream.send_all(octets));
            self.finish(sending.as_mut()).await?
        };
        self.client.alarm.clear(Timer::BackendWrite);
        match self.replay {
            Replay::Possible => request.octets = octets,
            Replay::Never => self.worker.buffers.give(octets),
        }
        // A backend may answer and close without reading everything, so a failed write is no
        // verdict: what it said is still worth reading.
        if sent.is_ok()
            && let Some(rest) = &request.rest
        {
            self.begin_upload(**rest);
        }
        // Step 7: relay.
        self.awaits_head = true;
        if self.upload.is_none() {
            self.expect_head();
        }
        let (mut plan, mut out, mut rest) = {
            let answered = self.response_head(request).await;
            self.awaits_head = false;
            self.client.alarm.clear(Timer::ResponseHead);
            self.note_latency(&answered);
            answered?
        };
        if request.stream.is_some() || (plan.is_event_stream && plan.then == Then::Relay) {
            return self.stream(&plan, request, &mut out, &mut rest).await;
        }
        // From here on nothing is sent again.
        self.worker.buffers.give(std::mem::take(&mut request.octets));
        match plan.then {
            Then::Tunnel => self.tunnel(out, rest).await,
            Then::Relay | Then::Interim | Then::Skip => {
                self.body(&mut plan, &mut out, &mut rest).await
            }
        }
    }

    /// From here on it can be told to end.
    fn enroll(&mut self) {
        let (worker, alarm) = (self.worker, self.client.alarm);
        if self.enrolled.is_none()
            && let Some(slot) = self.account.slot()
        {
            self.enrolled = Some(worker.streams.enroll(alarm, slot, worker.alarms.now()));
        }
    }

    /// The backend has all it will get: from here on, it is its turn. Interim responses do not
    /// prolong the wait, or a backend could send one after the other for ever.
    fn expect_head(&mut self) {
        if self.worker.config.algorithm == Algorithm::LeastResponseTime {
            self.account.note_asked();
        }
        if let Some(wait) = self.worker.config.timeouts.response_head {
            self.client.alarm.set(Timer::ResponseHead, wait);
        }
    }

    /// How long a backend takes to answer is known when its head is here: what follows depends on
    /// the client too, and a stream ends when somebody has read enough.
    fn note_latency(&self, answered: &Result<(ResponsePlan, Vec<u8>, Vec<u8>), Failure>) {
        let (Some(took), Some(slot)) = (self.account.since_asked(), self.account.slot()) else {
            return;
        };
        let sample = match answered {
            Ok((plan, ..)) if plan.status < 500 => Sample::Served,
            Ok(_) => Sample::Failed,
            Err(failure) if failure.origin() == Origin::Upstream => Sample::Failed,
            // A client that left says nothing about the backend.
            Err(_) => return,
        };
        let table = self.worker.table.borrow();
        table.observe(slot, sample, took, self.worker.alarms.now());
    }

    /// Reads heads until one is final. Gives its plan, the outgoing head, and the octets that
    /// arrived behind it.
    async fn response_head(
        &mut self,
        request: &Request,
    ) -> Result<(ResponsePlan, Vec<u8>, Vec<u8>), Failure> {
        let head_bytes_max = self.worker.config.limits.response_head_bytes_max;
        let mut scan = HeadScan::new(LeadingLine::Refuse);
        let mut received = Vec::new();
        let mut interims = 0;
        loop {
            let found = scan.advance(&received).map_err(|_| Failure::ResponseHead)?;
            let end = found.as_ref().map_or(received.len(), |head| head.end);
            if end > head_bytes_max {
                return Err(Failure::ResponseHead);
            }
            let Some(head) = found else {
                self.receive_head(&mut received).await?;
                continue;
            };
            // What arrived behind the head goes into it too, if it is little.
            let room = (received.len() + ADDED_BYTES_MAX).max(Size::Small.bytes());
            let mut out = self.worker.buffers.take(Size::holding(room));
            let plan = self.settle(request, &received[..head.end], interims, &mut out)?;
            match plan.then {
                Then::Relay | Then::Tunnel => {
                    received.drain(..head.end);
                    return Ok((plan, out, received));
                }
                Then::Interim if request.stream.is_none() => self.send(out).await?,
                Then::Interim | Then::Skip => self.worker.buffers.give(out),
            }
            interims += 1;
            received.drain(..head.end);
            scan = HeadScan::new(LeadingLine::Refuse);
        }
    }

    /// Waits without a buffer, because a backend may think for minutes; and looks before it waits,
    /// because under load the answer is mostly there by then. On epoll the wait begins with a look,
    /// and a connection that is known to be quiet needs none.
    /// An upload is polled first, as always: an answer must not overtake the news of its end.
    async fn receive_head(&mut self, received: &mut Vec<u8>) -> Result<(), Failure> {
        let mut arrivals = pin!(self.upstream.readiness());
        let is_on_ring = matches!(self.worker.driver, ActiveDriver::IoUring(_));
        let mut may_lie_here = is_on_ring && self.upload.is_none() && !self.upstream.is_quiet();
        let buffer = loop {
            if !std::mem::take(&mut may_lie_here) {
                let mut arrival = poll_fn(|cx| arrivals.as_mut().poll_ready(cx));
                self.finish(Pin::new(&mut arrival)).await?;
            }
            let mut buffer = self.worker.buffers.take(Size::Small);
            match self.upstream.try_recv(&mut buffer) {
                Ok(n) if n > 0 => break buffer,
                Err(error) if is_for_nothing(&error) => self.worker.buffers.give(buffer),
                Ok(_) | Err(_) if received.is_empty() => return Err(Failure::BackendClosed),
                Ok(_) | Err(_) => return Err(Failure::ResponseHead),
            }
        };
        self.response_begun = true;
        match received.is_empty() {
            true => self.worker.buffers.give(std::mem::replace(received, buffer)),
            false => {
                received.extend_from_slice(&buffer);
                self.worker.buffers.give(buffer);
            }
        }
        Ok(())
    }

    /// Draws every conclusion from a response head and writes the outgoing one.
    fn settle(
        &self,
        request: &Request,
        octets: &[u8],
        interims: u8,
        out: &mut Vec<u8>,
    ) -> Result<ResponsePlan, Failure> {
        let mut storage = field_storage();
        let head = parse_response(octets, &mut storage, self.worker.config.limits.fields_max)
            .map_err(|_| Failure::ResponseHead)?;
        let mut plan = plan_response(&request.plan, &head, interims)?;
        // A response may be as long as it likes.
        let limits = BodyLimits { content_bytes_max: u64::MAX, ..self.worker.body_limits() };
        plan.transfer = plan.transfer.within(limits);
        // Whether the rest of the request will ever be read is open: who may close says so
        // (RFC 9112 §9.6).
        plan.ends_with_connection |= plan.then == Then::Relay && !self.request_complete;
        if let Some(slot) = self.account.slot()
            && matches!(plan.then, Then::Relay | Then::Tunnel)
        {
            self.worker.note_answer(slot, plan.status);
        }
        if plan.then == Then::Relay {
            let named = |line: &&_| names_instance(self.worker, line);
            if let Some(line) = head.fields.iter().find(named) {
                self.learn_instance(line.value);
            }
        }
        let closes = self.client.must_close(&request.plan);
        let is_final = matches!(plan.then, Then::Relay | Then::Tunnel);
        let mut edits = match (&request.session, self.account.slot()) {
            (Some(session), Some(slot)) if is_final => {
                let answered = session.answer(slot, &head);
                self.account.note_restart(session);
                answered?
            }
            _ => Edits::NONE,
        };
        if self.account.explanation.is_some() {
            self.explain(&mut edits, &head, is_final);
        }
        let facts = ResponseFacts {
            closes,
            routed_instance: request.instance.as_ref().map(|instance| instance.as_bytes()),
            received: &self.worker.date.borrow(),
            edits: &edits,
        };
        write_response(out, &head, &request.plan, &plan, &facts);
        Ok(plan)
    }

    /// Says in a final response why it comes from where it comes.
    fn explain(&self, edits: &mut Edits, head: &ResponseHead<'_>, is_final: bool) {
        let decision = self.account.decision(self.worker).filter(|_| is_final);
        let address = |slot| self.worker.table.borrow().backend(slot).address;
        explain::edit(edits, head.fields, decision.zip(self.account.slot().map(address)));
    }

    /// A response that names an instance which the table does not is news: reported before a single
    /// octet goes to the client, so that a callback to it finds the way.
    fn learn_instance(&self, value: &[u8]) {
        let Some(slot) = self.account.slot() else { return };
        let table = self.worker.table.borrow();
        let backend = table.backend(slot);
        if let Some(instance) = instance_in(value, backend.instance.as_ref()) {
            self.worker.report(Report::InstanceSeen(backend.id, instance));
        }
    }

    /// Relays a body. `out` holds the head; `input` what has arrived behind it.
    async fn body(
        &mut self,
        plan: &mut ResponsePlan,
        out: &mut Vec<u8>,
        input: &mut Vec<u8>,
    ) -> Result<(Fate, Fate), Failure> {
        // It left before anybody could know that this would be a stream.
        if self.departure_ends && self.client.half_closed {
            return Err(self.client_left());
        }
        let write_wait = Some(self.worker.config.timeouts.body);
        let mut size = Size::Small;
        let mut full_pieces = 0;
        let mut head_is_out = false;
        let stray_octets = loop {
            let company = if head_is_out { Company::None } else { Company::Head };
            if let Some(introducing) = &mut self.account.introducing {
                introducing.note(input);
            }
            let taken = take_in(plan, std::mem::take(input), out, company, self.worker);
            self.account.bytes_down += taken.bytes;
            // While the head is still here, the client can get a proper error.
            if let Some(error) = taken.error.filter(|_| !head_is_out) {
                return Err(body_failure(error));
            }
            let done = plan.transfer.is_done();
            if done {
                self.introduced(plan.status);
            }
            let waits = !head_is_out && !done && may_coalesce(plan);
            if !waits {
                if !head_is_out {
                    if plan.ends_by_closing() {
                        // Until the body has ended, no end of ours may pass for its end, whatever
                        // brings it about.
                        self.end_as(Ending::Broken)?;
                    }
                    self.account.status = plan.status;
                    head_is_out = true;
                }
                let is_last = done && taken.verbatim.is_none() && self.ends_with(plan);
                if !is_last || !self.try_send_last(out) {
                    self.send_within(std::mem::take(out), write_wait).await?;
                }
                if let Some(verbatim) = taken.verbatim {
                    self.send_slice(verbatim.0, verbatim.1, write_wait).await?;
                }
            }
            if let Some(error) = taken.error {
                return Err(body_failure(error));
            }
            if done {
                break taken.stray;
            }
            if head_is_out && self.may_go_in_bulk(plan, full_pieces) {
                // Boxed: few bodies are large, and it would lie beside what all others need.
                let stray_octets = Box::pin(self.bulk(plan)).await?;
                self.introduced(plan.status);
                break stray_octets;
            }
            if waits {
                self.client.alarm.set(Timer::Coalesce, COALESCE_WAIT);
            }
            if plan.has_body_deadline() {
                let wait = self.worker.config.timeouts.body;
                self.client.alarm.set(Timer::ResponseBody, wait);
            }
            let buffer = self.worker.buffers.take(size);
            let mut receiving = pin!(self.upstream.recv(buffer));
            let (received, buffer) = loop {
                match self.turn(receiving.as_mut()).await? {
                    Turn::Done(received) => break received,
                    // The body is late: the head goes alone.
                    Turn::Due => {
                        self.account.status = plan.status;
                        head_is_out = true;
                        let head = std::mem::take(out);
                        // Boxed: it is rare, and would lie beside the read that goes on.
                        Box::pin(self.send_within(head, write_wait)).await?;
                    }
                }
            };
            self.client.alarm.clear(Timer::ResponseBody);
            self.client.alarm.clear(Timer::Coalesce);
            let is_broken = received.is_err();
            match received {
                Ok(1..) => {
                    if buffer.len() == buffer.capacity() {
                        full_pieces += u32::from(size == Size::Large);
                        size = Size::Large;
                    }
                    *input = buffer;
                }
                Ok(0) | Err(_) => {
                    self.worker.buffers.give(buffer);
                    if out.capacity() == 0 {
                        *out = self.worker.buffers.take(Size::Small);
                    }
                    // A body that ends with its connection is complete unless the connection broke
                    // (RFC 9112 §8).
                    if is_broken || plan.transfer.end_of_input(out).is_err() {
                        // While the head is still here, the client can get a proper error.
                        return Err(match head_is_out {
                            true => Failure::ResponseTruncated,
                            false => Failure::BackendClosed,
                        });
                    }
                    self.introduced(plan.status);
                    self.account.status = plan.status;
                    self.send_within(std::mem::take(out), write_wait).await?;
                    break false;
                }
            }
        };
        if plan.ends_by_closing() {
            self.end_as(Ending::Orderly)?;
        }
        Ok(self.conclude(plan, stray_octets))
    }

    /// Whether the connection is certain to be closed as soon as the response has been sent.
    fn ends_with(&self, plan: &ResponsePlan) -> bool {
        self.client.announces_end
            && self.client.inbox.is_empty()
            && self.request_complete
            && self.request.persistence == Persistence::Close
            && !plan.ends_by_closing()
    }

    /// Sends the end of a response, to leave with the end of its connection. Whether all of it was
    /// taken; what was not stays in `out`, and an error is met again by whoever sends that.
    fn try_send_last(&self, out: &mut Vec<u8>) -> bool {
        let taken = self.client.connection.try_send_last(out).unwrap_or(0);
        if taken < out.len() {
            out.drain(..taken);
            return false;
        }
        self.worker.buffers.give(std::mem::take(out));
        true
    }

    fn end_as(&self, ending: Ending) -> Result<(), Failure> {
        self.client.connection.end_as(ending).map_err(|_| self.client_left())
    }

    /// Nobody waits for what the backend is doing, as is known from now on.
    fn client_left(&self) -> Failure {
        cancel(self.worker, self.upstream);
        Failure::ClientGone
    }

    /// The answer has come to its end, and the client has not had all of it.
    fn introduced(&mut self, status: u16) {
        if let Some(introducing) = self.account.introducing.take()
            && let Some(slot) = self.account.slot()
        {
            introducing.answered(self.worker, self.client, slot, status);
        }
    }

    /// Step 8, first half: what becomes of the connections.
    fn conclude(&mut self, plan: &ResponsePlan, stray_octets: bool) -> (Fate, Fate) {
        // An upload that has not ended is cut off here, before its connection is.
        self.upload = None;
        if stray_octets {
            self.worker.stats().upstream_poisoned.add(1);
        }
        let end = ExchangeEnd {
            is_early: self.account.early_end.is_some(),
            request_complete: self.request_complete,
            response_complete: true,
            stray_octets,
            client_half_closed: self.client.has_ended(),
            draining: self.worker.phase() != Phase::Serving,
        };
        let conclusion = conclude(&self.request, plan, &end);
        (conclusion.downstream, conclusion.upstream)
    }

    async fn tunnel(&mut self, out: Vec<u8>, rest: Vec<u8>) -> Result<(Fate, Fate), Failure> {
        self.account.status = 101;
        let to_upstream = std::mem::take(&mut self.client.inbox);
        let mut to_client = out;
        to_client.extend_from_slice(&rest);
        let Self { worker, client, upstream, .. } = self;
        let copied = tunnel::run(worker, client, upstream, to_client, to_upstream);
        // Boxed: two copy loops would otherwise make every connection's task larger.
        let Copied { down, up, ended } = Box::pin(copied).await;
        self.account.bytes_down += down;
        self.account.bytes_up += up;
        ended?;
        let closed = Fate::Close(crate::exchange::CloseReason::Incomplete);
        Ok((closed, closed))
    }

    fn begin_upload(&mut self, body: Transfer) {
        let (worker, alarm) = (self.worker, self.client.alarm);
        let (from, to) = (self.client.connection, self.upstream);
        self.upload = Some(Box::pin(upload(worker, alarm, from, to, body)));
    }

    fn send(&mut self, octets: Vec<u8>) -> impl Future<Output = Result<(), Failure>> {
        let wait = self.worker.config.timeouts.body;
        self.send_within(octets, Some(wait))
    }

    fn send_within(
        &mut self,
        octets: Vec<u8>,
        wait: Option<Duration>,
    ) -> impl Future<Output = Result<(), Failure>> {
        let len = octets.len();
        self.send_slice(octets, 0..len, wait)
    }

    /// Sends part of a buffer to the client, under a deadline if there is one. Not an `async fn`,
    /// which would hold its arguments beside what becomes of them.
    fn send_slice(
        &mut self,
        octets: Vec<u8>,
        range: std::ops::Range<usize>,
        wait: Option<Duration>,
    ) -> impl Future<Output = Result<(), Failure>> {
        self.write_wait = wait;
        if let Some(wait) = wait.filter(|_| !range.is_empty()) {
            self.client.alarm.set(Timer::ClientWrite, wait);
        }
        async move {
            let connection = self.client.connection;
            let mut sending = pin!(connection.send_all(octets.slice(range)));
            let (sent, octets) = self.finish(sending.as_mut()).await?;
            self.client.alarm.clear(Timer::ClientWrite);
            self.worker.buffers.give(octets.into_inner());
            sent.map_err(|_| self.client_left())
        }
    }

    /// Drives an operation to its end, whatever happens beside it.
    fn finish<T>(
        &mut self,
        mut operation: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = Result<T, Failure>> {
        poll_fn(move |cx| {
            loop {
                if let Turn::Done(output) = ready!(self.poll_turn(cx, operation.as_mut()))? {
                    return Poll::Ready(Ok(output));
                }
            }
        })
    }

    fn turn<T>(
        &mut self,
        mut operation: Pin<&mut impl Future<Output = T>>,
    ) -> impl Future<Output = Result<Turn<T>, Failure>> {
        poll_fn(move |cx| self.poll_turn(cx, operation.as_mut()))
    }

    /// Drives an operation, and what goes on beside it: the upload, the watch for the client's
    /// departure, the deadlines.
    fn poll_turn<T>(
        &mut self,
        cx: &mut std::task::Context<'_>,
        mut operation: Pin<&mut impl Future<Output = T>>,
    ) -> Poll<Result<Turn<T>, Failure>> {
        // The upload first: the answer to a body that has just ended must not overtake the
        // news that it has, or the connections would not be used again.
        if let Some(upload) = &mut self.upload
            && let Poll::Ready(uploaded) = upload.as_mut().poll(cx)
        {
            self.upload = None;
            if let Err(failure) = self.uploaded(uploaded) {
                return Poll::Ready(Err(failure));
            }
        }
        if let Poll::Ready(output) = operation.as_mut().poll(cx) {
            return Poll::Ready(Ok(Turn::Done(output)));
        }
        // Until the request has ended, what the client sends is its body: the upload meets it,
        // and the client's end.
        if self.request_complete
            && let Poll::Ready(departure) = self.client.poll_departure(cx, Ahead::NextRequests)
            && (departure == Departure::Broken || self.departure_ends)
        {
            return Poll::Ready(Err(self.client_left()));
        }
        loop {
            match self.client.alarm.poll_expired(cx) {
                Poll::Ready(timer) => {
                    if let Some(turn) = self.heed(timer) {
                        return Poll::Ready(turn);
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// What follows from a timer; `None` if nothing does.
    fn heed<T>(&mut self, timer: Timer) -> Option<Result<Turn<T>, Failure>> {
        let nature = || self.enrolled.as_ref().map_or(Nature::Other, Enrolled::nature);
        match timer {
            Timer::ClientWrite | Timer::BackendWrite if self.extend(timer) => return None,
            Timer::StreamAge if !ends_by_age(nature(), self.worker.table.borrow().takers()) => {
                self.client.alarm.set(Timer::StreamAge, AGE_RESPITE);
                return None;
            }
            Timer::StreamAge => self.tell(EarlyEnd::Aged, false),
            Timer::Drain => self.tell(EarlyEnd::Drained, false),
            Timer::DrainOver if self.awaits_event && nature().reconnects() => {
                self.tell(EarlyEnd::Drained, true);
                return Some(Ok(Turn::Due));
            }
            // What is being sent has a moment to be taken: behind it may be a boundary.
            Timer::DrainOver if nature().reconnects() && !self.is_called_last() => {
                self.tell(EarlyEnd::Drained, true);
                self.client.alarm.set(Timer::DrainOver, LAST_SEND);
                return None;
            }
            _ => {}
        }
        Some(expired(timer))
    }

    fn is_called_last(&self) -> bool {
        self.told.is_some_and(|told| told.is_last_call)
    }

    /// The stream is to end, as soon as what is being done is done.
    fn tell(&mut self, why: EarlyEnd, is_last_call: bool) {
        let why = self.told.map_or(why, |told| told.why);
        self.told = Some(Told { why, is_last_call });
    }

    /// Sets the deadline of a write anew while the peer goes on acknowledging. A slow reader makes
    /// progress that no completed write shows. The first time there is nothing to compare with, so
    /// one that has stopped is cut off between one and two timeouts later.
    fn extend(&self, timer: Timer) -> bool {
        let connection = match timer {
            Timer::ClientWrite => self.client.connection,
            Timer::BackendWrite => self.upstream,
            _ => return false,
        };
        let body = self.worker.config.timeouts.body;
        let wait = match timer {
            Timer::ClientWrite => self.write_wait.unwrap_or(body),
            _ => body,
        };
        self.client.alarm.extend(timer, wait, connection.unacknowledged())
    }

    fn uploaded(&mut self, uploaded: Result<Uploaded, Failure>) -> Result<(), Failure> {
        if self.awaits_head {
            self.expect_head();
        }
        match uploaded {
            Ok(Uploaded { bytes, behind }) => {
                self.account.bytes_up += bytes;
                self.client.inbox.extend_from_slice(&behind);
                self.request_complete = true;
                self.client.watch_again();
                Ok(())
            }
            // The backend reads no more, but may have answered: the answer decides.
            Err(Failure::BackendClosed) => Ok(()),
            Err(failure) => {
                if failure == Failure::RequestTruncated {
                    self.client_left();
                }
                Err(failure)
            }
        }
    }
}

enum Turn<T> {
    /// The operation has ended.
    Done(T),
    /// It has not, and it is time for something else: the timer that the caller had set.
    Due,
}

fn expired<T>(timer: Timer) -> Result<Turn<T>, Failure> {
    match timer {
        Timer::Coalesce | Timer::Heartbeat | Timer::StreamAge | Timer::Drain => Ok(Turn::Due),
        Timer::DrainOver => Err(Failure::BackendDrainTimeout),
        Timer::RequestBody => Err(Failure::RequestBodyTimeout),
        Timer::BackendWrite => Err(Failure::BackendStalled),
        Timer::ResponseBody => Err(Failure::ResponseBodyTimeout),
        Timer::ResponseHead => Err(Failure::ResponseHeadTimeout),
        Timer::TunnelIdle => Err(Failure::TunnelIdle),
        Timer::Queue => Err(Failure::QueueTimeout),
        Timer::Connect => Err(Failure::ConnectTimeout),
        Timer::ClientWrite
        | Timer::KeepAlive
        | Timer::RequestHead
        | Timer::HeadRate
        | Timer::Linger => Err(Failure::ClientStalled),
    }
}

fn body_failure(error: BodyError) -> Failure {
    match error {
        BodyError::Truncated => Failure::ResponseTruncated,
        _ => Failure::ResponseBody,
    }
}

/// There is nothing to be received after all.
fn is_for_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn may_coalesce(plan: &ResponsePlan) -> bool {
    plan.body_bytes.is_some_and(|n| n <= COALESCED_BYTES_MAX)
}

fn names_instance(worker: &Worker, line: &crate::http1::FieldLine<'_>) -> bool {
    match &worker.sessions {
        Some(sessions) => sessions.rules().names_instance(line.name),
        None => Field::of(line.name.as_bytes()) == Field::StepflowInstanceId,
    }
}

/// What else is about to be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    /// The head of the response.
    Head,
    /// Nothing.
    None,
}

/// What became of some received octets.
struct TakenIn {
    /// Octets of the body among them.
    bytes: u64,
    /// To be sent as they are, behind `out`: part of the received buffer.
    verbatim: Option<(Vec<u8>, std::ops::Range<usize>)>,
    /// Octets lay behind the body.
    stray: bool,
    error: Option<BodyError>,
}

/// Turns received octets into outgoing ones: small and rewritten ones are appended to `out`, large
/// verbatim ones stay where they are.
fn take_in(
    plan: &mut ResponsePlan,
    mut input: Vec<u8>,
    out: &mut Vec<u8>,
    company: Company,
    worker: &Worker,
) -> TakenIn {
    let is_small = input.len() <= Size::Small.bytes();
    let result = match plan.transfer.is_verbatim() {
        true => plan.transfer.measure(&mut input),
        false => {
            if out.capacity() == 0 {
                // Room for a chunk's size and end besides its content.
                let fits = input.len() + 64 <= Size::Small.bytes();
                *out = worker.buffers.take(if fits { Size::Small } else { Size::Large });
            }
            plan.transfer.push(&input, out)
        }
    };
    worker.stats().trailer_fields_dropped.add(u64::from(plan.transfer.take_dropped()));
    let (n, error) = match result {
        Ok(n) => (n, None),
        Err(error) => (0, Some(error)),
    };
    let stray = plan.transfer.is_done() && n < input.len();
    let bytes = n as u64;
    let mut verbatim = None;
    if !plan.transfer.is_verbatim() {
        worker.buffers.give(input);
    } else if company == Company::Head && (is_small || may_coalesce(plan)) {
        out.extend_from_slice(&input[..n]);
        worker.buffers.give(input);
    } else {
        verbatim = Some((input, 0..n));
    }
    TakenIn { bytes, verbatim, stray, error }
}

/// Sends the rest of a request body up as it arrives. Ends with the body.
async fn upload(
    worker: &Rc<Worker>,
    alarm: &Alarm,
    from: &Duplex,
    to: &Duplex,
    mut body: Transfer,
) -> Result<Uploaded, Failure> {
    let mut arrivals = pin!(from.readiness());
    let mut bytes = 0;
    let wait = worker.config.timeouts.body;
    let mut pace = Pace::new(worker, (from, to), &body, 0);
    loop {
        alarm.set(Timer::RequestBody, wait);
        if !pace.flows() {
            poll_fn(|cx| arrivals.as_mut().poll_ready(cx)).await;
        }
        let mut buffer = pace.buffer(&body);
        match from.try_recv(&mut buffer) {
            Ok(n) if n > 0 => pace.note_received(n),
            Err(error) if is_for_nothing(&error) => {
                pace.note_nothing();
                worker.buffers.give(buffer);
                continue;
            }
            Ok(_) | Err(_) => {
                worker.buffers.give(buffer);
                return Err(Failure::RequestTruncated);
            }
        }
        alarm.clear(Timer::RequestBody);
        let n = body.measure(&mut buffer)?;
        worker.stats().trailer_fields_dropped.add(u64::from(body.take_dropped()));
        let behind = buffer[n..].to_vec();
        alarm.set(Timer::BackendWrite, wait);
        let (sent, slice) = to.send_all(buffer.slice(..n)).await;
        pace.note_sent();
        alarm.clear(Timer::BackendWrite);
        worker.buffers.give(slice.into_inner());
        if sent.is_err() {
            return Err(Failure::BackendClosed);
        }
        bytes += n as u64;
        if body.is_done() {
            return Ok(Uploaded { bytes, behind });
        }
    }
}
