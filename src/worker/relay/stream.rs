//! Step 7 of an event stream: its events go down as they come, and what is ours goes between them.
//!
//! Invariants
//! - A silent stream holds no buffer, and what it was asked with only while it may be asked again.
//! - A stream goes on from another backend where its client stands, or not at all.
//! - Nothing of ours is written inside an event: [`EventBody`] sees to that.

use std::{
    future::poll_fn,
    io::ErrorKind,
    pin::{Pin, pin},
    rc::Rc,
    time::Duration,
};

use super::{Relay, Replay, Told, Turn, body_failure};
use crate::{
    exchange::{
        Attempt, Broken, Continue, Failure, Fate, Nature, ResponsePlan, Retry, Tick, Timer,
        ask_from, may_continue,
    },
    http1::{BodyError, Framing},
    sse::{Cut, EventBody, Pushed, Reading},
    stats::Held,
    sys::{Ending, Readiness},
    worker::{
        Worker,
        alarm::Alarm,
        buffer::Size,
        hearing::Ear,
        http::Request,
        table::{Slot, Tried},
    },
};

/// An event stream whose head the client has. Outlives the backends that it comes from.
pub(in crate::worker) struct Stream {
    body: EventBody,
    /// What it was asked with, while it may be asked again.
    asked: Option<Box<[u8]>>,
    /// The client has had content.
    has_content: bool,
    /// The backend has sent an event, or an id: asked from there, another one is asked for
    /// something else.
    has_moved: bool,
    last_id: LastId,
    /// What listens to the backend that it comes from, where anything does.
    ear: Option<Rc<Ear>>,
    /// When it began and how old it may become, where it may not become any age.
    age: Option<(Tick, Duration)>,
}

/// The id of the last event that the client has had.
enum LastId {
    /// There was none, or it cannot be known.
    Unknown,
    Known(Box<[u8]>),
}

/// Room that a piece needs besides its content, so that what it becomes fits into a buffer like its
/// own: the size and the end of a chunk, and an unfinished character.
const CHUNK_BYTES_MAX: usize = 64;

/// What a silent stream waits for.
#[derive(Clone, Copy)]
enum Arrival {
    /// The next piece, which is in the input.
    Octets,
    /// The backend ended its body, or broke off.
    End { is_broken: bool },
    /// It has been silent for long enough.
    Silence,
    /// It is to end.
    Told(Told),
}

impl Relay<'_, '_> {
    /// Relays an event stream. `out` holds the head; `input` what has arrived behind it.
    pub(super) async fn stream(
        &mut self,
        plan: &ResponsePlan,
        request: &mut Request,
        out: &mut Vec<u8>,
        input: &mut Vec<u8>,
    ) -> Result<(Fate, Fate), Failure> {
        let worker = self.worker;
        let mut head_is_out = request.stream.is_some();
        if head_is_out {
            worker.buffers.give(std::mem::take(out));
        }
        self.begin(plan, request)?;
        let is_tied = request.ties();
        let Some(stream) = request.stream.as_deref_mut() else {
            return Err(Failure::ResponseTruncated);
        };
        let _open: Held<'_> = worker.stats().event_streams_open.hold();
        self.departure_ends = true;
        self.account.become_event_stream(worker);
        // It left before anybody could know that this would be a stream.
        if self.client.half_closed {
            return Err(self.client_left());
        }
        let nature = Nature::of(&request.plan, plan, is_tied);
        let _reconnectable: Option<Held<'_>> =
            nature.reconnects().then(|| worker.stats().event_streams_reconnectable.hold());
        self.list(nature, stream.age);
        let mut early_end = None;
        stream.ear = self.attend();
        let mut arrivals = pin!(self.upstream.readiness());
        let mut size = Size::Small;
        let stray_octets = loop {
            if let Some(introducing) = &mut self.account.introducing {
                introducing.note(input);
            }
            if out.capacity() == 0 && !input.is_empty() {
                *out = worker.buffers.take(Size::holding(input.len() + CHUNK_BYTES_MAX));
            }
            let pushed = stream.push(input, out, worker.config.streams.resume);
            let error = pushed.err();
            let pushed = pushed.unwrap_or_default();
            let is_stray = pushed.taken < input.len() && error.is_none();
            worker.buffers.give(std::mem::take(input));
            if pushed.taken > 0 {
                self.account.note_piece(pushed, stream.body.ends_whole());
            }
            worker.stats().trailer_fields_dropped.add(u64::from(stream.body.take_dropped()));
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
            let is_done = stream.body.is_done();
            if is_done {
                self.introduced(plan.status);
            }
            stream.note_piece(pushed, self.client.alarm);
            self.send_event(std::mem::take(out)).await?;
            stream.note_taken(self.client.alarm);
            if let Some(error) = error {
                return Err(body_failure(error));
            }
            if stream.body.is_cut() {
                self.account.early_end = early_end;
                break false;
            }
            if is_done {
                break is_stray;
            }
            // What is sent in an arm is boxed: it is rare, and every connection would have room for
            // it beside what a silent stream keeps.
            let arrival = self.next_piece(arrivals.as_mut(), size, input).await?;
            match arrival {
                Arrival::Octets => {
                    // A burst is read in larger pieces, until it is over.
                    let is_full = input.len() == size.bytes() - CHUNK_BYTES_MAX;
                    size = if is_full { Size::Medium } else { Size::Small };
                }
                Arrival::Silence => {
                    *out = worker.buffers.take(Size::Small);
                    stream.body.heartbeat(out);
                }
                Arrival::Told(Told { why, is_last_call }) => {
                    early_end = early_end.or(Some(why));
                    let retry = worker.drain.retry(&worker.config);
                    let mut end = worker.buffers.take(Size::Small);
                    let cut = stream.body.cut(Some(retry), &mut end);
                    Box::pin(self.send_event(end)).await?;
                    match cut {
                        Cut::Done => {
                            self.account.early_end = early_end;
                            break false;
                        }
                        Cut::Awaited if is_last_call => return Err(Failure::BackendDrainTimeout),
                        Cut::Awaited | Cut::Impossible => {}
                    }
                }
                Arrival::End { is_broken } => {
                    *out = worker.buffers.take(Size::Small);
                    // A body that ends with its connection is complete unless the connection broke
                    // (RFC 9112 §8).
                    if is_broken || stream.body.end_of_input(out).is_err() {
                        return Err(Failure::ResponseTruncated);
                    }
                    self.introduced(plan.status);
                    Box::pin(self.send_event(std::mem::take(out))).await?;
                    break false;
                }
            }
        };
        if plan.ends_by_closing() {
            self.end_as(Ending::Orderly)?;
        }
        Ok(self.conclude(plan, stray_octets))
    }

    /// From here on it can be told to end, because something drains or because of its age.
    fn list(&mut self, nature: Nature, age: Option<(Tick, Duration)>) {
        self.enroll();
        if let Some(enrolled) = &self.enrolled {
            enrolled.with(|entry| entry.nature.set(nature));
        }
        if let Some((begun, age)) = age.filter(|_| nature.reconnects()) {
            self.client.alarm.set_since(begun, Timer::StreamAge, age);
        }
    }

    /// What listens to this stream, where anything does.
    fn attend(&self) -> Option<Rc<Ear>> {
        let (hearing, slot) = self.worker.hearing.as_ref().zip(self.account.slot())?;
        let backend = self.worker.table.borrow().backend(slot).id;
        Some(hearing.attend(slot, backend, self.client.alarm.now()))
    }

    /// Whoever reads a stream may pause over an event; whoever takes nothing for long holds a place
    /// on the backend that others could have.
    async fn send_event(&mut self, octets: Vec<u8>) -> Result<(), Failure> {
        let begun = self.worker.alarms.now();
        self.send_within(octets, self.worker.config.timeouts.client_stall).await?;
        // A whole tick went by, at least.
        if self.worker.alarms.now().0 > begun.0 + 1 {
            self.account.note_slow_client();
        }
        Ok(())
    }

    /// Waits for the next piece, holding no buffer meanwhile, and puts it into `input`.
    async fn next_piece(
        &mut self,
        mut arrivals: Pin<&mut impl Readiness>,
        size: Size,
        input: &mut Vec<u8>,
    ) -> Result<Arrival, Failure> {
        if let Some(silence) = self.worker.config.streams.heartbeat {
            self.client.alarm.set(Timer::Heartbeat, silence);
        }
        loop {
            // Perhaps while the last piece was being sent.
            if let Some(told) = self.told.take() {
                return Ok(Arrival::Told(told));
            }
            self.awaits_event = true;
            let mut arrival = pin!(poll_fn(|cx| arrivals.as_mut().poll_ready(cx)));
            let turn = self.turn(arrival.as_mut()).await;
            self.awaits_event = false;
            match turn? {
                Turn::Done(()) => {}
                Turn::Due if self.told.is_some() => continue,
                Turn::Due => return Ok(Arrival::Silence),
            }
            let mut buffer = self.worker.buffers.take(size);
            let room = size.bytes() - CHUNK_BYTES_MAX;
            match self.upstream.try_recv_within(&mut buffer, room) {
                Ok(0) => return Ok(Arrival::End { is_broken: false }),
                Ok(_) => {
                    *input = buffer;
                    return Ok(Arrival::Octets);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.worker.buffers.give(buffer);
                }
                Err(_) => return Ok(Arrival::End { is_broken: true }),
            }
        }
    }
}

impl Relay<'_, '_> {
    /// What follows a head that the client has, or is about to get.
    fn begin(&mut self, plan: &ResponsePlan, request: &mut Request) -> Result<(), Failure> {
        let resumes = self.worker.config.streams.resume;
        let octets = std::mem::take(&mut request.octets);
        let reading = reading(plan);
        let begun = match request.stream.as_deref_mut() {
            Some(stream) => {
                let fits = plan.is_event_stream && plan.status == 200 && reading == Reading::Open;
                let goes_on = fits && stream.body.continue_with(plan.transfer);
                self.worker.stats().streams_continued.add(u64::from(goes_on));
                goes_on
            }
            None => {
                let age = self.worker.drain.age(&self.worker.config);
                let body = EventBody::new(plan.transfer, plan.coding, reading);
                let may_go_on = self.replay == Replay::Possible
                    && reading == Reading::Open
                    && plan.status == 200
                    && !request.is_bound()
                    // What is kept is a head, and nothing of a body is asked for twice.
                    && request.plan.framing == Framing::Length(0);
                // Boxed: every connection would have room for it, and few have a stream.
                request.stream = Some(Box::new(Stream {
                    body: if may_go_on && resumes { body.in_whole_events() } else { body },
                    asked: may_go_on.then(|| octets.as_slice().into()),
                    has_content: false,
                    has_moved: false,
                    last_id: LastId::Unknown,
                    ear: None,
                    age: age.map(|age| (self.client.alarm.now(), age)),
                }));
                true
            }
        };
        self.worker.buffers.give(octets);
        if begun { Ok(()) } else { Err(Failure::StreamNotContinued) }
    }
}

impl Stream {
    fn push(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        resumes: bool,
    ) -> Result<Pushed, BodyError> {
        let (last_id, has_moved) = (&mut self.last_id, &mut self.has_moved);
        let pushed = self.body.push(input, out, |id| {
            *last_id = LastId::of(id);
            *has_moved = true;
        });
        self.has_moved |= pushed.is_ok_and(|pushed| pushed.events > 0);
        if !self.has_content && !self.body.is_untouched() {
            self.has_content = true;
            if !resumes {
                self.asked = None;
            }
        }
        pushed
    }

    /// A piece has come, and goes to the client.
    fn note_piece(&self, pushed: Pushed, alarm: &Alarm) {
        if let Some(ear) = &self.ear {
            let now = alarm.now();
            if is_sign_of_life(pushed, self.body.reading()) {
                ear.pulse.hear(now);
            }
            ear.pulse.turn_away(now);
        }
    }

    /// The client has taken what there was: the backend is listened to again.
    fn note_taken(&self, alarm: &Alarm) {
        if let Some(ear) = &self.ear {
            ear.pulse.turn_back(alarm.now());
        }
    }
}

impl LastId {
    fn of(id: Option<&[u8]>) -> Self {
        id.map_or(Self::Unknown, |id| Self::Known(id.into()))
    }
}

/// Makes ready what is sent next if the stream, which broke off in `attempt` at `slot`, goes on
/// from another backend; gives that attempt, and whom it leaves out.
pub(in crate::worker) fn go_on(
    worker: &Worker,
    request: &mut Request,
    failure: Failure,
    slot: Slot,
    attempt: Attempt,
) -> Option<(Attempt, Tried)> {
    let is_bound = request.is_bound();
    let stream = request.stream.as_deref_mut()?;
    // This backend is heard no more.
    stream.ear = None;
    let asked = stream.asked.as_deref()?;
    let from_id = match &stream.last_id {
        LastId::Known(id) => ask_from(asked, id),
        LastId::Unknown => None,
    };
    let broken = Broken {
        has_content: stream.has_content,
        // Whoever follows has sent nothing yet, and may never come so far as to send a head.
        has_moved: std::mem::take(&mut stream.has_moved),
        is_whole: stream.body.is_open(),
        knows_id: from_id.is_some(),
        is_bound,
        resumes: worker.config.streams.resume,
        number: attempt.number,
        moved: attempt.moved,
    };
    let verdict = may_continue(failure, &request.plan, &broken);
    let mut tried = Tried::default();
    tried.note(slot);
    if !worker.table.borrow().has_others_than(&tried) {
        return None;
    }
    let (octets, next) = match (verdict, from_id) {
        (Continue::FromStart, _) if worker.may_try_again() => {
            (asked.to_vec(), attempt.after(Retry::NextBackend))
        }
        // Without the budget for retries: its client would ask for it again in a moment.
        (Continue::FromLastId { number }, Some(octets)) => {
            (octets, Attempt { number, ..Attempt::first(false) })
        }
        _ => return None,
    };
    request.octets = octets;
    Some((next, tried))
}

/// Whether a piece shows that what makes the events is alive: an event does. A comment does not,
/// because a server sends it as well while it waits in vain; where events cannot be seen, any octet
/// does.
fn is_sign_of_life(pushed: Pushed, reading: Reading) -> bool {
    pushed.events > 0 || (reading == Reading::Coded && pushed.content > 0)
}

/// What can be known of a stream.
fn reading(plan: &ResponsePlan) -> Reading {
    match plan.body_bytes {
        _ if plan.is_coded => Reading::Coded,
        Some(_) => Reading::Fixed,
        None => Reading::Open,
    }
}
