//! What runs on this worker, with one small entry each: every event stream, and where something may
//! end them, the other exchanges as well.
//!
//! An entry begins with the attempt that it is about and ends with it, on every way out. Whoever
//! walks over them sees what was true at the last turn of each; nobody waits for anybody.
//!
//! Invariant: an entry's place is that of an alarm which lives at least as long, and what was rung
//! there for an exchange does not outlive it.

use std::cell::{Cell, RefCell};

use super::{alarm::Alarm, table::Slot};
use crate::exchange::{Nature, Tick, Timer};

/// All entries of one worker.
#[derive(Debug, Default)]
pub(super) struct Streams {
    entries: RefCell<Vec<Option<Entry>>>,
    free: RefCell<Vec<u32>>,
}

/// One exchange. What changes is in cells, so that nobody needs it to himself.
#[derive(Debug)]
pub(super) struct Entry {
    /// Of the alarm of its connection.
    pub(super) place: u32,
    /// Of its backend.
    pub(super) slot: Slot,
    /// When its attempt began.
    pub(super) begun: Tick,
    /// What it is. [`Nature::Other`] until its head is known.
    pub(super) nature: Cell<Nature>,
    /// What it was told last.
    pub(super) order: Cell<Order>,
}

/// What an exchange was told about its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    /// Nothing.
    None,
    /// To end between two events.
    End,
    /// To end at once.
    EndNow,
}

/// Keeps an entry for as long as it lives.
#[derive(Debug)]
pub(super) struct Enrolled<'a> {
    streams: &'a Streams,
    alarm: &'a Alarm,
    at: u32,
}

impl Streams {
    /// Enters an exchange, which hears of its end by this alarm.
    pub(super) fn enroll<'a>(&'a self, alarm: &'a Alarm, slot: Slot, begun: Tick) -> Enrolled<'a> {
        let entry = Entry {
            place: alarm.place(),
            slot,
            begun,
            nature: Cell::new(Nature::Other),
            order: Cell::new(Order::None),
        };
        let mut entries = self.entries.borrow_mut();
        let at = self.free.borrow_mut().pop();
        let at = at.unwrap_or_else(|| {
            entries.push(None);
            u32::try_from(entries.len() - 1).unwrap_or(u32::MAX)
        });
        entries[at as usize] = Some(entry);
        Enrolled { streams: self, alarm, at }
    }

    /// Shows every entry. Nothing may be enrolled meanwhile.
    pub(super) fn each(&self, look: impl FnMut(&Entry)) {
        self.entries.borrow().iter().flatten().for_each(look);
    }
}

impl Enrolled<'_> {
    /// Shows its entry.
    pub(super) fn with<T>(&self, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        self.streams.entries.borrow()[self.at as usize].as_ref().map(look)
    }

    /// What it is.
    pub(super) fn nature(&self) -> Nature {
        self.with(|entry| entry.nature.get()).unwrap_or(Nature::Other)
    }
}

impl Drop for Enrolled<'_> {
    fn drop(&mut self) {
        self.alarm.silence();
        self.alarm.clear(Timer::StreamAge);
        // Only a panic inside a walk finds them borrowed; the worker ends with it.
        if let Ok(mut entries) = self.streams.entries.try_borrow_mut() {
            entries[self.at as usize] = None;
            self.streams.free.borrow_mut().push(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        task::{Context, Poll, Waker},
        time::Instant,
    };

    use super::*;
    use crate::worker::alarm::Alarms;

    fn places(streams: &Streams) -> Vec<u32> {
        let mut places = Vec::new();
        streams.each(|entry| places.push(entry.place));
        places
    }

    fn alarms() -> [Alarm; 4] {
        let alarms = Alarms::new(Instant::now());
        [(); 4].map(|()| alarms.register())
    }

    #[test]
    fn an_entry_is_there_for_as_long_as_its_guard_and_its_room_is_used_again() {
        let (streams, alarms) = (Streams::default(), alarms());
        let first = streams.enroll(&alarms[0], Slot(0), Tick(1));
        let second = streams.enroll(&alarms[1], Slot(1), Tick(2));
        assert_eq!(places(&streams), [0, 1]);
        drop(first);
        assert_eq!(places(&streams), [1]);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _third = streams.enroll(&alarms[2], Slot(1), Tick(3));
            panic!("on purpose");
        }));
        assert!(caught.is_err());
        let _fourth = streams.enroll(&alarms[3], Slot(2), Tick(4));
        assert_eq!(places(&streams), [3, 1]);
        drop(second);
        assert_eq!(streams.entries.borrow().len(), 2);
    }

    #[test]
    fn what_is_said_to_an_entry_is_heard_by_its_guard_and_not_by_what_follows() {
        let alarms = Alarms::new(Instant::now());
        let (streams, alarm) = (Streams::default(), alarms.register());
        let mut cx = Context::from_waker(Waker::noop());
        for told in [false, true] {
            let guard = streams.enroll(&alarm, Slot(0), Tick(1));
            assert_eq!(guard.nature(), Nature::Other);
            streams.each(|entry| {
                entry.nature.set(Nature::Free);
                entry.order.set(Order::End);
                alarms.ring(entry.place, Timer::Drain);
            });
            assert_eq!(guard.nature(), Nature::Free);
            assert_eq!(guard.with(|entry| entry.order.get()), Some(Order::End));
            if told {
                assert_eq!(alarm.poll_expired(&mut cx), Poll::Ready(Timer::Drain));
            }
            drop(guard);
            assert_eq!(alarm.poll_expired(&mut cx), Poll::Pending);
        }
        assert!(Order::None < Order::End && Order::End < Order::EndNow);
    }

    #[test]
    fn an_entry_fits_a_cache_line() {
        let bytes = size_of::<Option<Entry>>();
        assert!(bytes <= 64, "{bytes} octets");
    }
}
