//! Requests that wait for a connection to a backend.
//!
//! A backend whose accept queue is full drops handshakes, and the kernel tries again after a second
//! and after three. Meanwhile its other connections come free many times over, so a request that
//! waits for a connection of its own also takes one that another exchange gives back.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    task::{Context, Waker},
};

use super::table::Slot;

/// Who waits, by slot, in the order of coming.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_slot: RefCell<Vec<VecDeque<Rc<Cell>>>>,
}

/// Empty once it has been woken, or has stopped waiting.
type Cell = RefCell<Option<Waker>>;

/// One request's place in a queue. Leaves it when dropped.
#[derive(Debug)]
pub(super) struct Waiter<'a> {
    waiting: &'a Waiting,
    slot: Slot,
    cell: Rc<Cell>,
}

impl Waiting {
    /// A place that is not in the queue yet.
    pub(super) fn waiter(&self, slot: Slot) -> Waiter<'_> {
        Waiter { waiting: self, slot, cell: Rc::default() }
    }

    /// A connection to this backend is free: wakes the first who waits for one.
    pub(super) fn wake_one(&self, slot: Slot) {
        let mut queues = self.by_slot.borrow_mut();
        let Some(queue) = queues.get_mut(slot.0 as usize) else { return };
        while let Some(cell) = queue.pop_front() {
            if let Some(waker) = cell.take() {
                waker.wake();
                return;
            }
        }
    }
}

impl Waiter<'_> {
    /// Queues up, unless it is in the queue already.
    pub(super) fn wait(&self, cx: &Context<'_>) {
        let is_queued = self.cell.borrow().is_some();
        self.cell.replace(Some(cx.waker().clone()));
        if is_queued {
            return;
        }
        let mut queues = self.waiting.by_slot.borrow_mut();
        let index = self.slot.0 as usize;
        if queues.len() <= index {
            queues.resize_with(index + 1, VecDeque::new);
        }
        queues[index].push_back(Rc::clone(&self.cell));
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.cell.replace(None);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicU32);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn the_first_who_still_waits_is_woken_once() {
        let waiting = Waiting::default();
        let counters: [Arc<Counter>; 3] = std::array::from_fn(|_| Arc::default());
        let counts = || counters.each_ref().map(|counter| counter.0.load(Relaxed));
        let queue = |waiter: &Waiter<'_>, index: usize| {
            let waker = Waker::from(Arc::clone(&counters[index]));
            waiter.wait(&Context::from_waker(&waker));
        };
        let [first, second, third] = [Slot(7), Slot(7), Slot(7)].map(|slot| waiting.waiter(slot));
        queue(&first, 0);
        queue(&second, 1);
        queue(&third, 2);
        queue(&second, 1);
        drop(first);
        waiting.wake_one(Slot(8));
        waiting.wake_one(Slot(7));
        assert_eq!(counts(), [0, 1, 0]);
        queue(&second, 1);
        waiting.wake_one(Slot(7));
        assert_eq!(counts(), [0, 1, 1]);
        waiting.wake_one(Slot(7));
        waiting.wake_one(Slot(7));
        assert_eq!(counts(), [0, 2, 1]);
    }
}
