//! The hot path: one client connection, exchange by exchange, in the eight steps of
//! `docs/LIFECYCLE.md`. Steps 7 and 8's pumps are in [`super::relay`].

use std::{
    num::{NonZeroU32, NonZeroU64},
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use monoio::net::TcpStream;

use super::{
    Worker,
    buffer::Size,
    client::{Arrived, Client, NoHead},
    explain::Explanation,
    handshake::{self, Introducing, Patience},
    meter::StreamMeter,
    owner::reach_owner,
    reach::{Reach, Unreached, goes_on, reach_any, reach_later},
    relay::{self, Delivery, Replay, Stream},
    sessions::{Pin, Session},
    table::{Slot, Tried},
    upstream::{self, Freshness, InFlight},
};
use crate::{
    exchange::{
        Announced, Answer, Attempt, ClientFacts, CloseReason, EarlyEnd, ErrorContext, ErrorFormat,
        Failure, Fate, Origin, Persistence, Recipient, RequestPlan, Retry, Sent, StreamEnd, Via,
        admit, error_format, fault_of, hash_key, health_answer, may_retry, write_request,
    },
    http1::{Framing, Method, Transfer, Version, field_storage, parse_request},
    model::{InstanceId, Phase},
    session::Affinity,
    sse::Pushed,
    stats::{METHODS, StatusKey},
    sys::Duplex,
    telemetry::{AccessRecord, McpRecord, Routed, loggable_path},
};

// Each method has its place in the counters.
const _: () = assert!(Method::ALL.len() == METHODS);

/// Octets of a path that are kept for the log.
const LOGGED_PATH_BYTES_MAX: usize = 256;

/// Octets that a request's head gains on its way, as a rule: the fields about its client, and its
/// host once more. Where it is more, the buffer grows.
const ADDED_BYTES_MAX: usize = 384;

/// Serves one client connection to its end.
pub(super) fn serve(
    worker: Rc<Worker>,
    stream: TcpStream,
    address: std::net::SocketAddr,
) -> impl Future<Output = ()> {
    // Made out here, or every task would have room for the stream beside what becomes of it.
    let connection = Duplex::accepted(stream, Rc::clone(&worker.turns));
    async move {
        let arrivals = pin!(connection.readiness());
        let alarm = worker.alarms.register();
        let mut client = Client::new(&worker, &connection, arrivals, &alarm, &address);
        let end = loop {
            match exchange(&worker, &mut client).await {
                Fate::Keep => {}
                Fate::Close(reason) => break reason,
            }
        };
        match end {
            // The client is gone, or must notice that its response was cut: nothing to wait for.
            CloseReason::Incomplete => {}
            CloseReason::Announced if client.is_done() => {}
            CloseReason::Announced
            | CloseReason::RequestUnread
            | CloseReason::Stray
            | CloseReason::HalfClosed
            | CloseReason::Draining
            | CloseReason::EndedEarly
            | CloseReason::ContentOverlooked => client.close().await,
        }
    }
}

/// What an exchange was about and how it went, for counters and the log.
pub(super) struct Account {
    started: Instant,
    /// When the backend had all it gets, in microseconds from the start: half the room of a time.
    asked_us: Option<NonZeroU32>,
    method: Method,
    version: Version,
    error_format: ErrorFormat,
    /// Counts the exchange against its backend, until the account is closed.
    pub(super) in_flight: Option<InFlight>,
    pub(super) routed: Routed,
    /// Why it went there, where that is explained. Boxed: mostly it is not.
    pub(super) explanation: Option<Box<Explanation>>,
    /// The connection ends with the exchange: the client wants it so, or its body is not read.
    closes: bool,
    /// The client is an orchestrator, and this is part of its handshake.
    pub(super) introducing: Option<Box<Introducing>>,
    /// What MCP's own fields say that it is about.
    mcp: Option<Box<McpRecord>>,
    /// Measures the event stream that the client is getting.
    stream: Option<Box<StreamMeter>>,
    /// We ended that stream before its backend did.
    pub(super) early_end: Option<EarlyEnd>,
    /// Status that the client got; 0 for none.
    pub(super) status: u16,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

/// A request that is ready to go to a backend. Nothing in it borrows from what was received.
pub(super) struct Request {
    pub(super) plan: RequestPlan,
    /// The instance that it names.
    pub(super) instance: Option<InstanceId>,
    /// Its sessions, where there are such. Boxed: most have none.
    pub(super) session: Option<Box<Session>>,
    /// The hash of what it is hashed on, where requests are hashed and it has that.
    key: Option<NonZeroU64>,
    /// The head as the backend gets it, and what had arrived of the body.
    pub(super) octets: Vec<u8>,
    /// Follows the part of the body that is still to come. Boxed, because most have none, and what
    /// is in here every connection pays for.
    pub(super) rest: Option<Box<Transfer>>,
    /// The event stream that the client is getting already.
    pub(super) stream: Option<Box<Stream>>,
}

impl Request {
    /// Whom it must reach.
    pub(super) fn pin(&self) -> Option<Pin<'_>> {
        match &self.session {
            Some(session) => session.pin(),
            None => self.instance.as_ref().map(Pin::Instance),
        }
    }

    /// Whether whoever sends it again reaches the same backend.
    pub(super) fn ties(&self) -> bool {
        match &self.session {
            Some(session) => session.ties(),
            None => self.instance.is_some(),
        }
    }

    /// Whether it is anybody's: it names an instance, or has to do with a session, if only one that
    /// may begin.
    pub(super) fn is_bound(&self) -> bool {
        self.pin().is_some() || self.session.is_some()
    }

    pub(super) fn key(&self) -> Option<u64> {
        self.key.map(NonZeroU64::get)
    }
}

enum Prepared {
    Forward(Request),
    Answer(Own),
    Refuse(Failure),
    /// It names an instance by a name that no instance can have.
    Nobody(String),
    /// It is worth a moment's wait for the rest of its body: so many octets, head included.
    Incomplete(usize),
}

/// What the balancer answers itself without a failure.
#[derive(Clone, Copy)]
enum Own {
    /// Its health.
    Health,
    /// What may be asked, to an `OPTIONS` that ends here.
    Options,
}

async fn exchange(worker: &Rc<Worker>, client: &mut Client<'_>) -> Fate {
    // Step 2: head.
    let arrived = match client.next_head().await {
        Ok(arrived) => arrived,
        Err(NoHead::Ended) => return Fate::Close(CloseReason::HalfClosed),
        Err(NoHead::Refused(failure)) => {
            client.path.clear();
            let account = Account::new(Instant::now());
            return refuse(worker, client, account, failure, Then::Close, None).await;
        }
    };
    // Step 3: admit. Synchronous: what borrows from the head does not outlive it.
    let mut account = Account::new(arrived.at);
    let mut patience = Patience::Left;
    // What is not forwarded is answered behind the loop, and the request stays where it is: what a
    // match has taken apart keeps its room in every task for as long as the exchange lasts.
    let mut prepared = {
        // Moved in here, where it ends: further out it would have room in every task.
        #[expect(clippy::redundant_locals, reason = "what counts is where it ends")]
        let arrived = arrived;
        loop {
            match prepare(worker, client, &arrived, &mut account, patience) {
                Prepared::Incomplete(octets) => {
                    handshake::gather(client, octets).await;
                    patience = Patience::Spent;
                }
                prepared => break prepared,
            }
        }
    };
    let request = match &mut prepared {
        Prepared::Forward(request) => request,
        Prepared::Answer(own) => return answer_own(worker, client, account, *own).await,
        ended => {
            let (failure, named) = match ended {
                Prepared::Refuse(failure) => (*failure, None),
                Prepared::Nobody(named) => (Failure::InstanceUnknown, Some(named.as_str())),
                _ => (Failure::RequestTruncated, None),
            };
            return refuse(worker, client, account, failure, Then::Close, named).await;
        }
    };
    if let Some(settling) = handshake::settle(worker, client, account.introducing.as_deref()) {
        account.in_flight = settling.await;
    }
    match deliver(worker, client, &mut account, request).await {
        // Step 8: conclude.
        Ok(fate) => {
            account.close(worker, client, None);
            fate
        }
        Err(Undelivered { failure, request_complete }) => {
            client.alarm.clear_all();
            if account.status != 0 {
                account.close(worker, client, Some(failure));
                return Fate::Close(CloseReason::Incomplete);
            }
            let blameless = failure.origin() != Origin::Downstream;
            let then = match blameless && request_complete && !client.must_close(&request.plan) {
                true => Then::Continue,
                false => Then::Close,
            };
            refuse(
                worker,
                client,
                account,
                failure,
                then,
                request.instance.as_ref().map(InstanceId::as_str),
            )
            .await
        }
    }
}

/// What follows an answer of our own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Continue,
    Close,
}

/// A request that no backend has answered, or not completely.
pub(super) struct Undelivered {
    pub(super) failure: Failure,
    /// The request was read to its end, so the next one can be read.
    pub(super) request_complete: bool,
}

fn prepare(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    arrived: &Arrived,
    account: &mut Account,
    patience: Patience,
) -> Prepared {
    let mut storage = field_storage();
    let octets = &client.inbox[arrived.head.clone()];
    let head = match parse_request(octets, &mut storage, worker.config.limits.fields_max) {
        Ok(head) => head,
        Err(error) => return Prepared::Refuse(error.into()),
    };
    let path = head.target.path();
    account.method = head.method;
    account.version = head.version;
    client.path.clear();
    client.path.extend_from_slice(&path[..path.len().min(LOGGED_PATH_BYTES_MAX)]);
    let mut admission = match admit(&head) {
        Ok(admission) => admission,
        Err(failure) => {
            account.error_format = error_format(&head);
            return Prepared::Refuse(failure);
        }
    };
    let mut plan = admission.plan;
    client.announces_end = plan.persistence == Persistence::Close;
    if client.is_at_last_request() {
        // As if the client had asked for it: whoever writes or concludes looks there.
        plan.persistence = Persistence::Close;
    }
    account.error_format = plan.error_format;
    account.closes = plan.persistence == Persistence::Close;
    let limits = worker.body_limits();
    if matches!(plan.framing, Framing::Length(bytes) if bytes > limits.content_bytes_max) {
        return Prepared::Refuse(Failure::RequestTooLarge);
    }
    let mut body = admission.transfer().within(limits);
    let is_health = worker.config.health_endpoint.as_ref().is_some_and(|p| p.as_bytes() == path)
        && matches!(plan.method, Method::Get | Method::Head)
        && body.is_done();
    let own = match admission.recipient {
        Recipient::Ourselves => Some(Own::Options),
        Recipient::Backend => is_health.then_some(Own::Health),
    };
    let mut session = None;
    let instance = match (&worker.sessions, Affinity::read(admission.instance)) {
        (Some(sessions), _) => match sessions.read(worker, &head, &mut admission) {
            Ok(read) => {
                account.mcp = read.mcp();
                session.insert(Box::new(read)).named_instance()
            }
            Err(failure) => return Prepared::Refuse(failure),
        },
        (None, Affinity::Any) => None,
        (None, Affinity::Nobody) => {
            let named = admission.instance.unwrap_or_default();
            return Prepared::Nobody(String::from_utf8_lossy(named).into_owned());
        }
        (None, Affinity::Instance(id)) => worker.instance_id(id),
    };
    let lacks = || handshake::lacks(worker, &plan, arrived.head.end, client.inbox.len());
    if let Some(octets) = lacks().filter(|_| patience == Patience::Left && instance.is_none()) {
        return Prepared::Incomplete(octets);
    }
    let is_pinned = instance.is_some() || session.as_ref().is_some_and(|s| s.pin().is_some());
    let hash_on = worker.config.hash_on().filter(|_| !is_pinned);
    let key = hash_on
        .and_then(|on| hash_key(&head, on, client.address.ip(), &worker.config.trusted_proxies));
    // Kept until the backend answers, which may take it long.
    let mut outgoing = worker.buffers.take(Size::holding(client.inbox.len() + ADDED_BYTES_MAX));
    if own.is_none() {
        let facts = ClientFacts {
            address: &client.address_text,
            trust: client.trust,
            local_authority: &worker.local_authority,
            via: if worker.config.via { Via::Said } else { Via::Unsaid },
        };
        write_request(&mut outgoing, &head, &admission, &facts);
    }
    let head_octets = outgoing.len();
    let body_octets = match body.copy(&client.inbox[arrived.head.end..], &mut outgoing) {
        Ok(n) => n,
        Err(error) => return Prepared::Refuse(error.into()),
    };
    // The end that it has announced is behind its body.
    client.announces_end &= body.is_done();
    account.bytes_up = (outgoing.len() - head_octets) as u64;
    worker.stats().trailer_fields_dropped.add(u64::from(body.take_dropped()));
    if body.is_done() && instance.is_none() && own.is_none() {
        let body = &outgoing[head_octets..];
        account.introducing = handshake::recognise(worker, *client.address, &head, body, &outgoing);
    }
    account.routed = match (&session, &instance) {
        (Some(session), _) => session.routed(),
        (None, Some(_)) => Routed::Affinity,
        (None, None) => Routed::Balanced,
    };
    client.consume(arrived.head.end + body_octets);
    match own {
        Some(own) => {
            worker.buffers.give(outgoing);
            // A body that nobody reads hides where the next request begins.
            account.closes |= !body.is_done();
            Prepared::Answer(own)
        }
        None => {
            let rest = (!body.is_done()).then(|| Box::new(body));
            Prepared::Forward(Request {
                plan,
                instance,
                session,
                key,
                octets: outgoing,
                rest,
                stream: None,
            })
        }
    }
}

/// Steps 4 to 7, as often as [`may_retry`] allows.
async fn deliver(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    account: &mut Account,
    request: &mut Request,
) -> Result<Fate, Undelivered> {
    let request_complete = request.rest.is_none();
    let undelivered = |failure| Undelivered { failure, request_complete };
    if let Some(budget) = &mut *worker.budget.borrow_mut() {
        budget.note_request(worker.alarms.now());
    }
    let mut tried = match &request.session {
        Some(session) if session.begins() => Tried::for_session(),
        Some(_) | None => Tried::default(),
    };
    let mut attempt = Attempt::first(request.pin().is_some());
    if worker.config.explain {
        account.explanation = Some(Box::new(Explanation::new(account.routed)));
    }
    let mut last = None;
    // Who has a place already, has it where it must be.
    let mut asks_again = account.in_flight.is_some();
    loop {
        let freshness = match attempt.needs_fresh_connection() {
            true => Freshness::Fresh,
            false => Freshness::Any,
        };
        // Steps 4 and 5: pick and connect.
        let (slot, checkout) = {
            let reached = match request.pin() {
                Some(_) => {
                    // Boxed: its waits would cost every connection room.
                    Box::pin(reach_owner(worker, client, account, request, freshness)).await
                }
                None => {
                    let place = if asks_again { account.in_flight.take() } else { None };
                    match reach_any(worker, account, request, &tried, freshness, place) {
                        Ok(Reach::Here(slot, checkout)) => Ok((slot, checkout)),
                        Ok(reach) => {
                            let (tried, request) = (&tried, &*request);
                            // Boxed likewise.
                            Box::pin(reach_later(
                                worker, client, account, request, tried, freshness, reach,
                            ))
                            .await
                        }
                        Err(unreached) => Err(unreached),
                    }
                }
            };
            match reached {
                Ok(reached) => reached,
                Err(Unreached::Nobody) => {
                    return Err(undelivered(last.unwrap_or(Failure::NoHealthyBackend)));
                }
                Err(Unreached::Moves) => {
                    attempt.pinned = false;
                    tried = Tried::for_session();
                    continue;
                }
                Err(Unreached::Failed(failure)) => return Err(undelivered(failure)),
                Err(Unreached::Unconnected(slot, failure)) => {
                    attempt.sent = Sent::Nothing;
                    let verdict = may_retry(failure, &request.plan, &attempt);
                    if !goes_on(worker, verdict, failure, slot, &mut tried) {
                        return Err(undelivered(failure));
                    }
                    (last, asks_again) = (Some(failure), false);
                    attempt = attempt.after(verdict);
                    account.explain(|explanation, _| explanation.note_retry());
                    continue;
                }
            }
        };
        // Steps 6 and 7: forward and relay.
        attempt.reused = checkout.reused;
        let replay = match attempt.may_be_followed(&request.plan) {
            true => Replay::Possible,
            false => Replay::Never,
        };
        let delivery =
            relay::run(worker, client, account, request, &checkout.connection, replay).await;
        match delivery {
            Delivery::Done { downstream, upstream } => {
                if upstream == Fate::Keep {
                    upstream::give_back(worker, slot, checkout.connection);
                }
                return Ok(downstream);
            }
            Delivery::Failed { failure, sent, response_begun, request_complete } => {
                if let Some(fault) = fault_of(failure, attempt.reused, response_begun) {
                    worker.note_fault(slot, fault);
                }
                attempt = Attempt { sent, response_begun, ..attempt };
                if request.stream.is_some() {
                    // The client has its head, and knows of no attempts; the log does. What was set
                    // for the stream means nothing to whoever connects.
                    client.alarm.clear_all();
                    let Some(next) = relay::go_on(worker, request, failure, slot, attempt) else {
                        return Err(Undelivered { failure, request_complete });
                    };
                    (attempt, tried) = next;
                    (last, asks_again) = (Some(failure), false);
                    account.explain(|explanation, _| explanation.note_retry());
                    continue;
                }
                let verdict = may_retry(failure, &request.plan, &attempt);
                if !goes_on(worker, verdict, failure, slot, &mut tried) {
                    return Err(Undelivered { failure, request_complete });
                }
                asks_again = verdict == Retry::SameBackend;
                last = Some(failure);
                attempt = attempt.after(verdict);
                account.explain(|explanation, _| explanation.note_retry());
            }
        }
    }
}

/// Answers with the failure, if there is anybody to answer, and accounts for it.
async fn refuse(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    mut account: Account,
    failure: Failure,
    then: Then,
    instance: Option<&str>,
) -> Fate {
    let Some(status) = failure.status() else {
        account.close(worker, client, Some(failure));
        return Fate::Close(CloseReason::Incomplete);
    };
    let context = ErrorContext { instance, backends: worker.table.borrow().counts() };
    let (body, content_type) = failure.body(account.error_format, &context);
    let answer = Answer { status, content_type: Some(content_type), body: &body };
    let fate = send(worker, client, &mut account, &answer, then).await;
    account.close(worker, client, Some(failure));
    fate
}

async fn answer_own(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    mut account: Account,
    own: Own,
) -> Fate {
    let (phase, counts) = (worker.phase(), worker.table.borrow().counts());
    let (status, content_type, body) = match own {
        Own::Health => {
            let (status, body) = health_answer(phase, counts);
            (status, Some("application/json"), body)
        }
        Own::Options => (200, None, Vec::new()),
    };
    let closes = phase != Phase::Serving || client.has_ended() || account.closes;
    let then = if closes { Then::Close } else { Then::Continue };
    account.routed = Routed::Own;
    let answer = Answer { status, content_type, body: &body };
    let fate = send(worker, client, &mut account, &answer, then).await;
    account.close(worker, client, None);
    fate
}

async fn send(
    worker: &Worker,
    client: &mut Client<'_>,
    account: &mut Account,
    answer: &Answer<'_>,
    then: Then,
) -> Fate {
    let mut out = worker.buffers.take(Size::Small);
    let announced = match then {
        Then::Close => Announced::Close,
        Then::Continue if account.version == Version::Http10 => Announced::KeepAlive,
        Then::Continue => Announced::Nothing,
    };
    answer.write(&mut out, account.method, &worker.date.borrow(), announced);
    account.status = answer.status;
    account.bytes_down = answer.body.len() as u64;
    match client.send_answer(out).await {
        Ok(()) if then == Then::Continue => Fate::Keep,
        Ok(()) => Fate::Close(CloseReason::Announced),
        Err(_) => Fate::Close(CloseReason::Incomplete),
    }
}

impl Account {
    fn new(started: Instant) -> Self {
        Self {
            started,
            asked_us: None,
            method: Method::Other,
            version: Version::Http11,
            error_format: ErrorFormat::Text,
            in_flight: None,
            routed: Routed::None,
            explanation: None,
            closes: false,
            introducing: None,
            mcp: None,
            stream: None,
            early_end: None,
            status: 0,
            bytes_up: 0,
            bytes_down: 0,
        }
    }

    /// The backend has all it will get.
    pub(super) fn note_asked(&mut self) {
        let us = u32::try_from(self.started.elapsed().as_micros());
        self.asked_us = us.ok().and_then(NonZeroU32::new);
    }

    /// How long ago that was. `None` also for what took more than an hour to send.
    pub(super) fn since_asked(&self) -> Option<Duration> {
        let asked = Duration::from_micros(self.asked_us?.get().into());
        Some(self.started.elapsed().saturating_sub(asked))
    }

    /// Notes something in the explanation, if there is one. `note` is told how old the exchange is.
    pub(super) fn explain(&mut self, note: impl FnOnce(&mut Explanation, Duration)) {
        if let Some(explanation) = &mut self.explanation {
            note(explanation, self.started.elapsed());
        }
    }

    /// Explains whom the session met, if that was somebody else than its owner.
    pub(super) fn note_restart(&self, session: &Session) {
        if let Some(explanation) = self.explanation.as_ref().filter(|_| session.has_restarted()) {
            explanation.note_restart();
        }
    }

    /// Why the exchange went to its backend, where that is explained.
    pub(super) fn decision(&self, worker: &Worker) -> Option<String> {
        let config = &worker.config;
        let explanation = self.explanation.as_ref()?;
        Some(explanation.text(config.algorithm, config.hash_on()))
    }

    /// The slot of the backend that the exchange is counted against.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.in_flight.as_ref().map(InFlight::slot)
    }

    /// The client is getting an event stream: the exchange is counted as one of its backend.
    pub(super) fn become_event_stream(&mut self, worker: &Worker) {
        let Some(in_flight) = &mut self.in_flight else { return };
        in_flight.become_event_stream();
        let table = worker.table.borrow();
        let stats = &table.backend(in_flight.slot()).stats;
        match &mut self.stream {
            Some(meter) => meter.go_on_from(stats),
            None => {
                let stall = worker.config.streams.stall;
                let (stats, now) = (Arc::clone(stats), Instant::now());
                let meter = StreamMeter::begin(stats, worker.index, self.started, now, stall);
                self.stream = Some(Box::new(meter));
            }
        }
    }

    /// A piece of the event stream has come.
    pub(super) fn note_piece(&mut self, piece: Pushed, at_boundary: Option<bool>) {
        self.bytes_down += piece.taken as u64;
        if let Some(meter) = &mut self.stream {
            meter.content(piece, at_boundary, Instant::now());
        }
    }

    /// The client of the event stream took its time with a piece.
    pub(super) fn note_slow_client(&mut self) {
        if let Some(meter) = &mut self.stream {
            meter.taken(Instant::now());
        }
    }

    /// Counts the exchange and, if it is wanted, logs it.
    fn close(mut self, worker: &Worker, client: &Client<'_>, failure: Option<Failure>) {
        let now = Instant::now();
        let duration = now.duration_since(self.started);
        let end = StreamEnd::of(failure, self.early_end);
        let stream = self.stream.take();
        let stream = stream.map(|meter| Box::new(meter.end(end, now)));
        // Whoever reads a stream decides when it has read enough: Stepflow's client leaves after
        // the last event, often before the last chunk.
        let is_normal = stream.is_some() && self.status != 0;
        let failure = failure.filter(|failure| !is_normal || *failure != Failure::ClientGone);
        let stats = worker.stats();
        if let Some(failure) = failure {
            stats.failures.at(failure.index()).add(1);
        }
        let key = StatusKey { method: self.method.index(), status: self.status };
        let table = worker.table.borrow();
        // An answer of our own counts as ours, even if a backend caused it: dashboards and
        // autoscalers read a backend's 503 as "busy".
        let is_own = failure.is_some_and(|f| f.status() == Some(self.status));
        match self.slot().filter(|_| !is_own) {
            Some(slot) => {
                table.backend(slot).stats.cell(worker.index).series().record(key, duration);
            }
            None => stats.own.record(key, duration),
        }
        let failure_label = failure.map(Failure::label);
        if !worker.logger.wants(failure_label) {
            drop(table);
            return;
        }
        let backend = self.slot().map(|slot| table.backend(slot));
        let was_logged = worker.logger.log(AccessRecord {
            finished: SystemTime::now(),
            method: self.method.label(),
            path: loggable_path(&client.path),
            status: self.status,
            backend: backend.map(|backend| backend.address),
            instance: backend.and_then(|backend| backend.instance.clone()),
            routed: self.routed,
            decision: self.decision(worker).map(String::into_boxed_str),
            mcp: self.mcp,
            stream,
            duration,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            failure: failure_label,
            stage: failure.map_or("conclude", |f| f.stage().label()),
            client: *client.address,
            worker: worker.index,
        });
        if !was_logged {
            stats.log_records_dropped.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<F: Future>(
        _: impl Fn(Rc<Worker>, TcpStream, std::net::SocketAddr) -> F,
    ) -> usize {
        size_of::<F>()
    }

    /// What a task has besides its future: the runtime's words, and the guest.
    const BESIDES: usize = 64;

    #[test]
    fn an_idle_connection_stays_small() {
        let bytes = future_bytes(serve) + BESIDES;
        // The next size that the allocator has is 2,560.
        assert!(bytes <= 2048, "the task of a connection takes {bytes} octets");
    }
}
