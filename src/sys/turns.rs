//! Turns: how much one connection may do before the others have theirs.
//!
//! On epoll an operation is ready at once for as long as its socket has octets or room. A client
//! that downloads as fast as its backend sends, or that pipelines without end, would never let go
//! of the thread: no other connection, no deadline and no snapshot would be seen until it pauses.
//! So operations are counted, and whoever has spent a turn waits until the driver has been entered
//! once. On io_uring most operations wait for their completions anyway; a connection with a
//! standing poll is ready at once for as long as octets lie there, as on epoll.
//!
//! A task that wakes itself will not do: monoio 0.2.4 puts it in front of the queue, and a queue
//! that never empties keeps timers from firing. A bell that rings through the driver does.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::{Future, poll_fn},
    io::{self, Write},
    os::unix::net::UnixStream,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use super::Polls;

/// Operations in one turn. With large buffers it is a megabyte, which takes about as long as
/// entering the driver a hundred times.
const OPERATIONS_PER_TURN: u32 = 16;

/// Octets that count as one operation.
const OPERATION_BYTES: usize = 64 * 1024;

/// Tasks that wait for their turn, as a rule, at most: all of them come to wait within one round.
const WAITING_USUALLY: usize = 64;

/// The turns of one thread, and its standing polls, where it has such: all that its connections
/// share.
#[derive(Debug)]
pub struct Turns {
    left: Cell<u32>,
    waiting: RefCell<Vec<Waker>>,
    ringer: UnixStream,
    polls: OnceCell<Polls>,
}

impl Turns {
    /// The turns, and their bell: whenever it can be read, [`Turns::wake_waiting`] is due.
    ///
    /// # Errors
    /// When the process may not open two more descriptors.
    pub fn new() -> io::Result<(Rc<Self>, UnixStream)> {
        let (ringer, bell) = UnixStream::pair()?;
        ringer.set_nonblocking(true)?;
        let left = Cell::new(OPERATIONS_PER_TURN);
        // Who comes to wait is a matter of timing: the first should not be who allocates.
        let waiting = RefCell::new(Vec::with_capacity(WAITING_USUALLY));
        Ok((Rc::new(Self { left, waiting, ringer, polls: OnceCell::new() }), bell))
    }

    /// Has connections that are made from here on wait with standing polls, if they wait often. The
    /// first that are given stay.
    pub fn stand(&self, polls: Polls) {
        self.polls.get_or_init(|| polls);
    }

    /// The standing polls.
    pub fn polls(&self) -> Option<&Polls> {
        self.polls.get()
    }

    /// A task is about to be polled: its turn begins.
    pub fn begin(&self) {
        self.left.set(OPERATIONS_PER_TURN);
    }

    /// Wakes whoever has spent its turn.
    pub fn wake_waiting(&self) {
        let mut waiting = self.waiting.take();
        for waker in waiting.drain(..) {
            waker.wake();
        }
        // Its room is kept, because turns are spent as long as there is traffic. Waking polls
        // nobody, so nobody has come to wait meanwhile.
        self.waiting.replace(waiting);
    }

    /// Waits until everybody else has had a turn and the driver has been entered.
    pub fn pass(&self) -> impl Future<Output = ()> {
        let mut has_passed = false;
        poll_fn(move |cx| {
            self.left.set(if has_passed { OPERATIONS_PER_TURN } else { 0 });
            has_passed = true;
            self.poll_lasts(cx)
        })
    }

    /// An operation has been done.
    pub(super) fn spend(&self) {
        self.spend_on(0);
    }

    /// An operation has been done that moved so many octets. A large one counts as several, or a
    /// turn would be longer the larger the buffers are.
    pub(super) fn spend_on(&self, bytes: usize) {
        let operations = u32::try_from(bytes / OPERATION_BYTES).unwrap_or(u32::MAX).max(1);
        self.left.set(self.left.get().saturating_sub(operations));
    }

    /// Ready while the turn lasts.
    pub(super) fn poll_lasts(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.left.get() > 0 {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.borrow_mut();
        // One task asks for each of its operations.
        if !waiting.last().is_some_and(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        if waiting.len() == 1 {
            // A full socket means that the bell is ringing already.
            let _ = (&self.ringer).write(&[1]);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        pin::pin,
        time::{Duration, Instant},
    };

    use monoio::{LegacyDriver, RuntimeBuilder, io::AsyncReadRent};

    use super::*;
    use crate::sys::{Duplex, Readiness};

    /// On epoll, a socket whose octets nobody takes is ready whenever it is asked.
    #[test]
    fn a_task_that_is_always_ready_leaves_room_for_timers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(b"never read").unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        let (turns, bell) = Turns::new().unwrap();
        bell.set_nonblocking(true).unwrap();
        let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().unwrap();
        runtime.block_on(async {
            let fired = Rc::new(Cell::new(false));
            let to_fire = Rc::clone(&fired);
            monoio::spawn(async move {
                monoio::time::sleep(Duration::from_millis(1)).await;
                to_fire.set(true);
            });
            let waiting = Rc::clone(&turns);
            monoio::spawn(async move {
                let mut bell = monoio::net::UnixStream::from_std(bell).unwrap();
                while bell.read(vec![0; 8]).await.0.is_ok_and(|n| n > 0) {
                    waiting.wake_waiting();
                }
            });
            let stream = monoio::net::TcpStream::from_std(stream).unwrap();
            let connection = Duplex::new(stream, Rc::clone(&turns)).unwrap();
            let busy = monoio::spawn(async move {
                let deadline = Instant::now() + Duration::from_secs(10);
                let mut work = pin!(async {
                    let mut ready = pin!(connection.readiness());
                    while !fired.get() && Instant::now() < deadline {
                        poll_fn(|cx| ready.as_mut().poll_ready(cx)).await;
                    }
                    fired.get()
                });
                poll_fn(|cx| {
                    turns.begin();
                    work.as_mut().poll(cx)
                })
                .await
            });
            assert!(busy.await, "the timer fires while the task is busy");
        });
    }
}
