//! Deadlines without timers: one sleeping task per worker walks over all deadlines of all
//! connections, twenty times a second.
//!
//! The places lie side by side, so a walk over 10,000 of them takes some ten microseconds; a
//! deadline is set with one store. monoio's own `Sleep` would cost 640 octets in every connection's
//! future and would not fire while its worker is busy.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::exchange::{DeadlineTable, Tick, Timer};

/// Most ticks that pass for deadlines between two walks. When the process or the thread could not
/// run, peers may have been in time for all that it knows: time in which nobody looked is not
/// theirs to answer for.
const TICKS_PER_WALK_MAX: u32 = 5;

/// All deadlines of one worker, and its coarse clock.
#[derive(Debug)]
pub(super) struct Alarms {
    started: Instant,
    now: Cell<Tick>,
    /// The clock of deadlines, which stands still while the thread does.
    clock: Cell<Tick>,
    places: RefCell<Vec<Place>>,
    free: RefCell<Vec<u32>>,
}

#[derive(Debug)]
struct Place {
    /// No deadline is earlier. It may be too early: a deadline that is taken back, as nearly all
    /// are, leaves it where it is, and whoever is woken for nothing puts it right.
    at: Tick,
    waker: Option<Waker>,
    /// What somebody else wants the connection to hear.
    rung: Option<Timer>,
}

impl Place {
    const EMPTY: Self = Self { at: Tick::NEVER, waker: None, rung: None };

    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            waker @ None => *waker = Some(cx.waker().clone()),
        }
    }
}

/// The deadlines of one connection.
#[derive(Debug)]
pub(super) struct Alarm {
    alarms: Rc<Alarms>,
    place: u32,
    table: RefCell<DeadlineTable>,
    /// When it wants to be woken, whatever its deadlines are.
    glance: Cell<Tick>,
    /// What the peer of each write had not acknowledged when its deadline was extended last.
    client_backlog: Cell<Option<u32>>,
    backend_backlog: Cell<Option<u32>>,
}

impl Alarms {
    /// A clock that starts at `started`.
    pub(super) fn new(started: Instant) -> Rc<Self> {
        Rc::new(Self {
            started,
            now: Cell::new(Tick(0)),
            clock: Cell::new(Tick(0)),
            places: RefCell::default(),
            free: RefCell::default(),
        })
    }

    /// Coarse time, as of the last walk.
    pub(super) fn now(&self) -> Tick {
        self.now.get()
    }

    /// The time in which deadlines are counted.
    pub(super) fn clock(&self) -> Tick {
        self.clock.get()
    }

    /// A place for one connection.
    pub(super) fn register(self: &Rc<Self>) -> Alarm {
        let place = match self.free.borrow_mut().pop() {
            Some(place) => place,
            None => {
                let mut places = self.places.borrow_mut();
                places.push(Place::EMPTY);
                u32::try_from(places.len() - 1).unwrap_or(u32::MAX)
            }
        };
        Alarm {
            alarms: Rc::clone(self),
            place,
            table: RefCell::default(),
            glance: Cell::new(Tick::NEVER),
            client_backlog: Cell::default(),
            backend_backlog: Cell::default(),
        }
    }

    /// Wakes every connection that waits, whatever for.
    pub(super) fn wake_all(&self) {
        for waker in self.places.borrow_mut().iter_mut().filter_map(|place| place.waker.take()) {
            waker.wake();
        }
    }

    /// Lets one connection hear of `timer` at its next turn, as if its deadline had passed, and
    /// wakes it. What was rung before and not yet heard gives way.
    pub(super) fn ring(&self, place: u32, timer: Timer) {
        self.places.borrow_mut()[place as usize].rung = Some(timer);
        self.wake(place);
    }

    /// Wakes one connection.
    pub(super) fn wake(&self, place: u32) {
        if let Some(waker) = self.places.borrow_mut()[place as usize].waker.take() {
            waker.wake();
        }
    }

    /// Sets the clocks and wakes every connection whose next deadline has come.
    pub(super) fn walk(&self, now: Instant) {
        let now = Tick::at(now.duration_since(self.started));
        let passed = now.0.saturating_sub(self.now.replace(now).0).min(TICKS_PER_WALK_MAX);
        let clock = Tick(self.clock.get().0.saturating_add(passed));
        self.clock.set(clock);
        for place in self.places.borrow_mut().iter_mut() {
            if place.at <= clock
                && let Some(waker) = place.waker.take()
            {
                waker.wake();
            }
        }
    }
}

impl Alarm {
    /// Where [`Alarms::wake`] finds it.
    pub(super) fn place(&self) -> u32 {
        self.place
    }

    /// Sets a deadline, in place of an earlier one of the same timer.
    pub(super) fn set(&self, timer: Timer, wait: Duration) {
        self.set_since(self.now(), timer, wait);
        if let Some(backlog) = self.backlog(timer) {
            backlog.set(None);
        }
    }

    /// The time in which deadlines are counted, for [`Alarm::set_since`].
    pub(super) fn now(&self) -> Tick {
        self.alarms.clock()
    }

    /// As [`Alarm::set`], for a wait that began earlier.
    pub(super) fn set_since(&self, begun: Tick, timer: Timer, wait: Duration) {
        let at = begun.after(wait);
        self.table.borrow_mut().set(timer, at);
        let place = &mut self.alarms.places.borrow_mut()[self.place as usize];
        place.at = place.at.min(at);
    }

    /// Sets the deadline of a write that has passed anew, if the peer has acknowledged something
    /// since it was extended last. Whoever is asked for the first time gets a second chance.
    pub(super) fn extend(&self, timer: Timer, wait: Duration, unacknowledged: u32) -> bool {
        let Some(backlog) = self.backlog(timer) else { return false };
        let moves = backlog.get().is_none_or(|earlier| unacknowledged < earlier);
        if moves {
            self.set(timer, wait);
            backlog.set(Some(unacknowledged));
        }
        moves
    }

    fn backlog(&self, timer: Timer) -> Option<&Cell<Option<u32>>> {
        match timer {
            Timer::ClientWrite => Some(&self.client_backlog),
            Timer::BackendWrite => Some(&self.backend_backlog),
            _ => None,
        }
    }

    /// Takes a deadline back.
    pub(super) fn clear(&self, timer: Timer) {
        self.table.borrow_mut().clear(timer);
    }

    /// Wakes the task at `at`, or as soon as one of its deadlines has passed.
    pub(super) fn glance_at(&self, cx: &Context<'_>, at: Tick) {
        self.glance.set(at);
        let place = &mut self.alarms.places.borrow_mut()[self.place as usize];
        place.at = place.at.min(at);
        place.wait(cx);
    }

    /// Takes all deadlines back.
    pub(super) fn clear_all(&self) {
        self.glance.set(Tick::NEVER);
        self.table.borrow_mut().clear_all();
    }

    /// Takes back what was rung and not yet heard.
    pub(super) fn silence(&self) {
        self.alarms.places.borrow_mut()[self.place as usize].rung = None;
    }

    /// Ready with a timer whose deadline has passed, or that was rung; it is cleared.
    pub(super) fn poll_expired(&self, cx: &mut Context<'_>) -> Poll<Timer> {
        let now = self.now();
        let place = &mut self.alarms.places.borrow_mut()[self.place as usize];
        if place.at <= now {
            let mut table = self.table.borrow_mut();
            let expired = table.take_expired(now);
            let glance = Some(self.glance.get()).filter(|glance| *glance > now);
            place.at = table.next().min(glance.unwrap_or(Tick::NEVER));
            if let Some(timer) = expired {
                return Poll::Ready(timer);
            }
        }
        if let Some(timer) = place.rung.take() {
            return Poll::Ready(timer);
        }
        place.wait(cx);
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut places = self.alarms.places.borrow_mut();
        places[self.place as usize] = Place::EMPTY;
        self.alarms.free.borrow_mut().push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_has_time_for_as_long_as_its_peer_acknowledges() {
        let alarms = Alarms::new(Instant::now());
        let alarm = alarms.register();
        let wait = Duration::from_secs(60);
        alarm.set(Timer::ClientWrite, wait);
        assert!(alarm.extend(Timer::ClientWrite, wait, 900), "nothing to compare with");
        assert!(alarm.extend(Timer::ClientWrite, wait, 899));
        assert!(!alarm.extend(Timer::ClientWrite, wait, 899), "it has stopped");
        alarm.set(Timer::ClientWrite, wait);
        assert!(alarm.extend(Timer::ClientWrite, wait, 2000), "this is another write");
        assert!(!alarm.extend(Timer::RequestBody, wait, 0), "no write at all");
    }

    #[test]
    fn time_in_which_the_thread_could_not_run_does_not_count_for_deadlines() {
        let started = Instant::now();
        let alarms = Alarms::new(started);
        let alarm = alarms.register();
        let mut cx = Context::from_waker(Waker::noop());
        let at = |ms: u64| started + Duration::from_millis(ms);
        alarms.walk(at(1000));
        alarm.set(Timer::RequestHead, Duration::from_secs(2));
        let begun = alarm.now();
        alarms.walk(at(61_000));
        assert_eq!(alarms.now(), Tick(61 * 20), "other ages are true");
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Pending, "nobody looked");
        alarm.set_since(begun, Timer::HeadRate, Duration::from_secs(2));
        for ms in (61_050..=62_750).step_by(50) {
            alarms.walk(at(ms));
        }
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Pending, "not yet");
        alarms.walk(at(62_850));
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Ready(Timer::RequestHead));
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Ready(Timer::HeadRate));
    }

    #[test]
    fn a_glance_wakes_without_a_deadline_and_once() {
        let started = Instant::now();
        let alarms = Alarms::new(started);
        let alarm = alarms.register();
        let mut cx = Context::from_waker(Waker::noop());
        let sleeps = || alarms.places.borrow()[0].waker.is_some();
        alarm.set(Timer::ResponseHead, Duration::from_secs(60));
        alarm.glance_at(&cx, Tick(2));
        alarms.walk(started + Duration::from_millis(50));
        assert!(sleeps(), "not yet");
        alarms.walk(started + Duration::from_millis(100));
        assert!(!sleeps());
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Pending, "no deadline has passed");
        alarm.glance_at(&cx, Tick::NEVER);
        alarms.walk(started + Duration::from_millis(150));
        assert!(sleeps(), "only the deadline is waited for");
    }

    #[test]
    fn what_is_rung_is_heard_once_and_by_nobody_who_comes_later() {
        let alarms = Alarms::new(Instant::now());
        let (one, two) = (alarms.register(), alarms.register());
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(one.poll_expired(&mut cx), Poll::Pending);
        alarms.ring(one.place(), Timer::Drain);
        alarms.ring(one.place(), Timer::DrainOver);
        assert_eq!(two.poll_expired(&mut cx), Poll::Pending);
        assert_eq!(one.poll_expired(&mut cx), Poll::Ready(Timer::DrainOver));
        assert_eq!(one.poll_expired(&mut cx), Poll::Pending);
        alarms.ring(one.place(), Timer::Drain);
        let place = one.place();
        drop(one);
        let heir = alarms.register();
        assert_eq!(heir.place(), place);
        assert_eq!(heir.poll_expired(&mut cx), Poll::Pending);
    }

    #[test]
    fn a_deadline_that_was_taken_back_wakes_at_most_once_and_hides_no_later_one() {
        let started = Instant::now();
        let alarms = Alarms::new(started);
        let alarm = alarms.register();
        let mut cx = Context::from_waker(Waker::noop());
        let at_of = |alarm: &Alarm| alarms.places.borrow()[alarm.place as usize].at;
        alarm.set(Timer::Coalesce, Duration::from_millis(100));
        alarm.set(Timer::KeepAlive, Duration::from_secs(1));
        alarm.clear(Timer::Coalesce);
        alarms.walk(started + Duration::from_millis(250));
        assert!(at_of(&alarm) <= alarms.clock(), "the walk finds it due");
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Pending);
        assert!(at_of(&alarm) > alarms.clock(), "once");
        for ms in (300..=1300).step_by(50) {
            alarms.walk(started + Duration::from_millis(ms));
        }
        assert_eq!(alarm.poll_expired(&mut cx), Poll::Ready(Timer::KeepAlive));
        assert_eq!(at_of(&alarm), Tick::NEVER);
    }

    #[test]
    fn only_who_is_due_is_woken_and_places_are_reused() {
        let started = Instant::now();
        let alarms = Alarms::new(started);
        let (early, late) = (alarms.register(), alarms.register());
        early.set(Timer::KeepAlive, Duration::from_millis(100));
        late.set(Timer::KeepAlive, Duration::from_secs(100));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(early.poll_expired(&mut cx), Poll::Pending);
        assert_eq!(late.poll_expired(&mut cx), Poll::Pending);
        alarms.walk(started + Duration::from_millis(200));
        assert_eq!(early.poll_expired(&mut cx), Poll::Ready(Timer::KeepAlive));
        assert_eq!(early.poll_expired(&mut cx), Poll::Pending);
        assert_eq!(late.poll_expired(&mut cx), Poll::Pending);
        let place = early.place;
        drop(early);
        assert_eq!(alarms.register().place, place);
    }
}
