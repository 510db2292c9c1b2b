//! Pure: idle upstream connections, by slot, newest first.
//!
//! The newest is the one the backend is least likely to have given up, and taking it lets the
//! others grow old and go. Generic over the connection, so that it can be tested with numbers.
//!
//! Invariant: a pooled connection is at a message boundary and has no unread octet *that we know
//! of*; whoever takes one checks again, because the backend may have closed it meanwhile.

use super::table::Slot;
use crate::exchange::Tick;

/// Idle connections of one worker.
#[derive(Debug)]
pub(super) struct Pool<C> {
    by_slot: Vec<Vec<Idle<C>>>,
    per_slot_max: usize,
    len: usize,
}

#[derive(Debug)]
struct Idle<C> {
    connection: C,
    expires: Tick,
}

impl<C> Pool<C> {
    /// Keeps at most `per_slot_max` connections to each backend.
    pub(super) fn new(per_slot_max: usize) -> Self {
        Self { by_slot: Vec::new(), per_slot_max, len: 0 }
    }

    /// How many connections are idle, over all backends.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether anything is idle for a backend.
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.by_slot.get(slot.0 as usize).is_some_and(|idle| !idle.is_empty())
    }

    /// Takes the newest that has not expired.
    pub(super) fn take(&mut self, slot: Slot, now: Tick) -> Option<C> {
        let idle = self.by_slot.get_mut(slot.0 as usize)?;
        let newest = idle.pop_if(|idle| idle.expires > now)?;
        self.len -= 1;
        Some(newest.connection)
    }

    /// Keeps a connection until `expires`. If there are enough, the oldest makes room.
    pub(super) fn put(&mut self, slot: Slot, connection: C, expires: Tick) {
        let index = slot.0 as usize;
        if self.by_slot.len() <= index {
            self.by_slot.resize_with(index + 1, Vec::new);
        }
        let idle = &mut self.by_slot[index];
        idle.push(Idle { connection, expires });
        self.len += 1;
        if idle.len() > self.per_slot_max {
            idle.remove(0);
            self.len -= 1;
        }
    }

    /// Drops everything that is idle for a backend.
    pub(super) fn clear(&mut self, slot: Slot) {
        if let Some(idle) = self.by_slot.get_mut(slot.0 as usize) {
            self.len -= idle.len();
            idle.clear();
        }
    }

    /// Drops the oldest that is idle for each backend of which this is true. Returns how many.
    pub(super) fn drop_oldest_where(&mut self, is_so: impl Fn(Slot) -> bool) -> usize {
        let slots = (0..).map(Slot).zip(&mut self.by_slot);
        let chosen = slots.filter(|(slot, idle)| !idle.is_empty() && is_so(*slot));
        let dropped = chosen.map(|(_, idle)| idle.remove(0)).count();
        self.len -= dropped;
        dropped
    }

    /// Drops what has expired. The oldest are in front.
    pub(super) fn expire(&mut self, now: Tick) {
        for idle in self.by_slot.iter_mut().filter(|idle| !idle.is_empty()) {
            let expired = idle.partition_point(|idle| idle.expires <= now);
            idle.drain(..expired);
            self.len -= expired;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_first_and_never_an_expired_one() {
        let mut pool = Pool::new(8);
        for (connection, expires) in [(1, Tick(10)), (2, Tick(20)), (3, Tick(30))] {
            pool.put(Slot(4), connection, expires);
        }
        assert_eq!(pool.take(Slot(4), Tick(15)), Some(3));
        assert_eq!(pool.len(), 2);
        pool.expire(Tick(10));
        assert_eq!(pool.len(), 1);
        assert_eq!(pool.take(Slot(4), Tick(20)), None);
        assert_eq!(pool.take(Slot(4), Tick(19)), Some(2));
        assert_eq!(pool.take(Slot(4), Tick(0)), None);
        assert_eq!(pool.take(Slot(9), Tick(0)), None);
    }

    #[test]
    fn the_oldest_of_chosen_backends_go() {
        let mut pool = Pool::new(8);
        for (slot, connection) in [(0, 1), (0, 2), (2, 3), (3, 4)] {
            pool.put(Slot(slot), connection, Tick(9));
        }
        assert_eq!(pool.drop_oldest_where(|slot| slot != Slot(2)), 2);
        assert_eq!(pool.len(), 2);
        let mut take = |slot| pool.take(Slot(slot), Tick(0));
        assert_eq!([take(0), take(0), take(2), take(3)], [Some(2), None, Some(3), None]);
        assert_eq!(pool.drop_oldest_where(|_| true), 0);
    }

    #[test]
    fn a_full_pool_lets_the_oldest_go_and_a_cleared_one_is_empty() {
        let mut pool = Pool::new(1);
        pool.put(Slot(0), 1, Tick(9));
        pool.put(Slot(0), 2, Tick(9));
        pool.put(Slot(1), 3, Tick(9));
        assert_eq!((pool.take(Slot(0), Tick(0)), pool.len()), (Some(2), 1));
        pool.put(Slot(0), 4, Tick(9));
        pool.clear(Slot(0));
        assert_eq!((pool.take(Slot(0), Tick(0)), pool.len()), (None, 1));
        let mut none = Pool::new(0);
        none.put(Slot(0), 1, Tick(9));
        assert_eq!((none.take(Slot(0), Tick(0)), none.len()), (None, 0));
    }
}
