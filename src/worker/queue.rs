//! Step 4 when every backend is full: requests that wait for a place, in the order of their coming.
//!
//! Each worker has a queue of its own and tells the others the number of its first. All numbers
//! come from one counter, so the lowest of them belongs to whoever has waited longest anywhere.
//! Whoever frees a place calls that one: at once where it waits here, by ringing its worker's bell
//! where it does not. Whoever takes a place, or leaves without one, calls the next, so one call
//! serves as many as there are places. Counting is by atomic operations; there is no lock.
//!
//! Owns who waits, and in what order. Does not own what full means, nor what a place is: that is
//! [`super::upstream`].
//!
//! Invariants
//! - While anybody waits, only the first of all takes a place.
//! - Nobody sleeps beside a free place for longer than a tick: a request is announced before it
//!   looks for a place a last time, and a place is free before its owner looks for who was
//!   announced.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    io::{self, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence},
    },
    task::{Poll, Waker},
    time::Instant,
};

use super::{
    Worker,
    client::{Client, Departure},
    table::Tried,
    upstream::{self, Bounds, Freshness, NoPlace, Place},
};
use crate::exchange::{Failure, Timer};

/// What the workers tell each other about their queues.
#[derive(Debug)]
pub struct Queues {
    numbers: AtomicU64,
    waiting: AtomicU32,
    firsts: Box<[First]>,
    bells: Box<[UnixStream]>,
}

/// Number of a worker's first. Only that worker writes it, and it has its cache lines for itself.
#[derive(Debug)]
#[repr(align(128))]
struct First(AtomicU64);

/// The number of a queue in which nobody waits: higher than any other.
const NOBODY: u64 = u64::MAX;

impl Queues {
    /// Queues for so many workers, and the bell of each: readable when it should look at its queue.
    ///
    /// # Errors
    /// When the process may not open `2 * workers` more descriptors.
    pub fn new(workers: usize) -> io::Result<(Arc<Self>, Vec<UnixStream>)> {
        let pairs = (0..workers).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?;
        let (ringers, bells): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        ringers.iter().try_for_each(|ringer| ringer.set_nonblocking(true))?;
        let queues = Self {
            numbers: AtomicU64::new(0),
            waiting: AtomicU32::new(0),
            firsts: (0..workers).map(|_| First(AtomicU64::new(NOBODY))).collect(),
            bells: ringers.into(),
        };
        Ok((Arc::new(queues), bells))
    }

    /// One more who waits, unless so many do already. Gives its number.
    fn enter(&self, waiting_max: u32) -> Option<u64> {
        let one_more = |waiting| (waiting < waiting_max).then_some(waiting + 1);
        self.waiting.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(self.numbers.fetch_add(1, Relaxed))
    }

    fn leave(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    fn is_empty(&self) -> bool {
        self.waiting.load(Relaxed) == 0
    }

    /// Tells everybody the number of a worker's first. What follows sees every place that was freed
    /// by whoever did not see this number.
    fn announce(&self, worker: usize, number: u64) {
        self.firsts[worker].0.store(number, Relaxed);
        fence(SeqCst);
    }

    /// The worker on which the first of all waits. Sees everybody who was announced without having
    /// seen what the caller freed before.
    fn first(&self) -> Option<usize> {
        fence(SeqCst);
        let numbers = self.firsts.iter().map(|first| first.0.load(Relaxed)).enumerate();
        let (worker, number) = numbers.min_by_key(|(_, number)| *number)?;
        (number != NOBODY).then_some(worker)
    }

    /// A full socket means that the bell is ringing already.
    fn ring(&self, worker: usize) {
        let _ = (&self.bells[worker]).write(&[1]);
    }
}

/// One worker's queue.
#[derive(Debug)]
pub(super) struct Queue {
    worker: usize,
    waiting_max: u32,
    shared: Arc<Queues>,
    entries: RefCell<VecDeque<Rc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    waker: RefCell<Option<Waker>>,
    was_called: Cell<bool>,
    /// Its client has octets that nobody has read, so that its leaving wakes nobody.
    is_blind: Cell<bool>,
}

impl Queue {
    pub(super) fn new(worker: usize, waiting_max: u32, shared: Arc<Queues>) -> Self {
        Self { worker, waiting_max, shared, entries: RefCell::default() }
    }

    /// Whether nobody waits, on any worker.
    pub(super) fn is_empty(&self) -> bool {
        self.shared.is_empty()
    }

    /// A place may be free: calls whoever is first of all.
    pub(super) fn call(&self) {
        match self.shared.first() {
            Some(worker) if worker == self.worker => self.call_own(),
            Some(worker) => self.shared.ring(worker),
            None => {}
        }
    }

    /// The bell has rung, or a tick has passed: calls the first of all if it waits here.
    pub(super) fn look(&self) {
        if self.is_first_of_all() {
            self.call_own();
        }
    }

    /// Whether somebody waits elsewhere who comes before all that wait here.
    pub(super) fn others_come_first(&self) -> bool {
        self.shared.first().is_some_and(|worker| worker != self.worker)
    }

    /// Asks the other workers to look, and so to part with what they do not need.
    fn ask_others(&self) {
        (0..self.shared.bells.len())
            .filter(|worker| *worker != self.worker)
            .for_each(|worker| self.shared.ring(worker));
    }

    /// Wakes those that would not be woken by their client's leaving.
    pub(super) fn wake_blind(&self) {
        for entry in self.entries.borrow().iter().filter(|entry| entry.is_blind.get()) {
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }

    fn is_first_of_all(&self) -> bool {
        self.shared.first() == Some(self.worker)
    }

    fn call_own(&self) {
        if let Some(entry) = self.entries.borrow().front() {
            entry.was_called.set(true);
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }

    /// Queues up, if there is room.
    fn enter(&self) -> Option<Ticket<'_>> {
        let number = self.shared.enter(self.waiting_max)?;
        let entry = Rc::new(Entry {
            number,
            waker: RefCell::default(),
            was_called: Cell::new(false),
            is_blind: Cell::new(false),
        });
        self.entries.borrow_mut().push_back(Rc::clone(&entry));
        self.announce();
        Some(Ticket { queue: self, entry })
    }

    fn announce(&self) {
        let first = self.entries.borrow().front().map_or(NOBODY, |entry| entry.number);
        self.shared.announce(self.worker, first);
    }
}

/// A place in the queue. Leaves it when dropped, and calls the next.
struct Ticket<'a> {
    queue: &'a Queue,
    entry: Rc<Entry>,
}

impl Ticket<'_> {
    fn is_first(&self) -> bool {
        let is_front =
            self.queue.entries.borrow().front().is_some_and(|front| Rc::ptr_eq(front, &self.entry));
        is_front && self.queue.is_first_of_all()
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.queue.entries.borrow_mut().retain(|entry| !Rc::ptr_eq(entry, &self.entry));
        self.queue.shared.leave();
        self.queue.announce();
        self.queue.call();
    }
}

/// Waits until it is this request's turn and a backend has a place for it.
pub(super) async fn wait(
    worker: &Rc<Worker>,
    client: &mut Client<'_>,
    tried: &Tried,
    key: Option<u64>,
    freshness: Freshness,
) -> Result<Place, Failure> {
    // Without bounds nobody is ever full.
    let Some(bounds) = &worker.bounds else { return Err(Failure::NoHealthyBackend) };
    let Some(ticket) = bounds.queue.enter() else { return Err(Failure::QueueFull) };
    let _waiting = worker.stats().queue_waiting.hold();
    let began = Instant::now();
    client.alarm.set(Timer::Queue, worker.config.resilience.queue_timeout);
    let ended = wait_with(worker, bounds, client, &ticket, tried, key, freshness).await;
    client.alarm.clear(Timer::Queue);
    worker.stats().queue_waits.observe(began.elapsed());
    ended
}

async fn wait_with(
    worker: &Rc<Worker>,
    bounds: &Bounds,
    client: &mut Client<'_>,
    ticket: &Ticket<'_>,
    tried: &Tried,
    key: Option<u64>,
    freshness: Freshness,
) -> Result<Place, Failure> {
    // Whoever has closed its sending side by now does so with its request and waits for the answer
    // (ADR 14). Whoever does it later has given up, and others wait for what it would get.
    let closes_early = client.departed() == Some(Departure::Closed);
    loop {
        if ticket.is_first() {
            match upstream::place_within(worker, bounds, tried, key, freshness) {
                Ok(place) => return Ok(place),
                Err(NoPlace::Nobody) => return Err(Failure::NoHealthyBackend),
                // Their unused connections may be all that is in the way.
                Err(NoPlace::Full) => ticket.queue.ask_others(),
            }
        }
        let ended = poll_fn(|cx| {
            ticket.entry.waker.replace(Some(cx.waker().clone()));
            if ticket.entry.was_called.take() {
                return Poll::Ready(None);
            }
            match client.poll_departed(cx, &ticket.entry.is_blind) {
                Poll::Ready(Departure::Closed) if closes_early => {}
                Poll::Ready(_) => return Poll::Ready(Some(Failure::ClientGone)),
                Poll::Pending => {}
            }
            client.alarm.poll_expired(cx).map(|_| Some(Failure::QueueTimeout))
        })
        .await;
        if let Some(failure) = ended {
            return Err(failure);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn queues<const N: usize>(waiting_max: u32) -> ([Queue; N], Vec<UnixStream>) {
        let (shared, bells) = Queues::new(N).unwrap();
        bells.iter().for_each(|bell| bell.set_nonblocking(true).unwrap());
        (std::array::from_fn(|worker| Queue::new(worker, waiting_max, Arc::clone(&shared))), bells)
    }

    fn has_rung(mut bell: &UnixStream) -> bool {
        bell.read(&mut [0; 64]).is_ok_and(|n| n > 0)
    }

    #[test]
    fn the_first_of_all_workers_is_called_and_then_the_next() {
        let ([a, b], bells) = queues::<2>(9);
        let tickets = [a.enter(), b.enter(), b.enter(), a.enter()].map(Option::unwrap);
        let called = |tickets: &[Ticket<'_>]| -> Vec<bool> {
            tickets.iter().map(|ticket| ticket.entry.was_called.get()).collect()
        };
        a.call();
        assert_eq!(called(&tickets), [true, false, false, false]);
        assert!(!has_rung(&bells[0]) && !has_rung(&bells[1]));
        assert!(tickets[0].is_first() && !tickets[1].is_first() && b.others_come_first());
        let [first, second, third, fourth] = tickets;
        // It takes its place, and so calls the next, who waits elsewhere.
        drop(first);
        assert!(has_rung(&bells[1]) && !second.entry.was_called.get());
        assert!(second.is_first() && !third.is_first() && !fourth.is_first());
        a.look();
        assert!(!fourth.entry.was_called.get(), "it is not the first of all");
        b.look();
        assert!(second.entry.was_called.get() && !third.entry.was_called.get());
        // Whoever leaves from the middle of a queue changes nobody's turn.
        drop(third);
        drop(second);
        assert!(has_rung(&bells[0]) && fourth.is_first());
        drop(fourth);
        assert!(a.is_empty() && b.is_empty() && a.shared.first().is_none());
    }

    #[test]
    fn no_more_wait_than_may_over_all_workers() {
        let ([a, b], _bells) = queues::<2>(2);
        let first = a.enter();
        let second = b.enter();
        assert!(first.is_some() && second.is_some());
        assert!(a.enter().is_none() && b.enter().is_none());
        drop(first);
        assert!(b.enter().is_some());
        assert!(queues::<1>(0).0[0].enter().is_none());
    }

    #[test]
    fn nobody_is_rung_for_when_nobody_waits() {
        let ([a, _b], bells) = queues::<2>(2);
        a.call();
        drop(a.enter());
        assert!(bells.iter().all(|bell| !has_rung(bell)));
    }
}
