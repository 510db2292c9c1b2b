use std::{
    fs::File,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::Wake,
    time::{Duration, Instant},
};

use monoio::{IoUringDriver, RuntimeBuilder};

use super::*;
use crate::sys::{
    Peek, Readiness,
    testing::{connection, pair},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// `None`, said aloud, where the kernel grants no ring.
fn polls(completions: u32) -> Option<Polls> {
    Polls::with_room_for(completions)
        .inspect_err(|error| eprintln!("SKIPPED: no ring for standing polls: {error}"))
        .ok()
}

struct Sleeper;

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {}
}

/// A connection that has waited once, so that it stands with the next.
fn watch() -> Watch {
    Watch(Cell::new(Manner::Once))
}

fn look(watch: &Watch, polls: &Polls, stream: &TcpStream) -> Option<Poll<()>> {
    watch.poll(Some(polls), stream.as_fd(), &mut Context::from_waker(Waker::noop()))
}

/// A connection that stands, and of which nothing is known.
fn standing(polls: &Polls, stream: &TcpStream) -> Watch {
    let watch = watch();
    assert_eq!(look(&watch, polls, stream), Some(Poll::Pending));
    watch
}

fn wait_until(polls: &Polls, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
        polls.take_up();
    }
}

fn wait(watch: &Watch, polls: &Polls, stream: &TcpStream) {
    wait_until(polls, "it is ready", || look(watch, polls, stream) == Some(Poll::Ready(())));
}

#[test]
fn a_source_is_ready_until_a_read_finds_nothing_left() {
    let Some(polls) = polls(16) else { return };
    let (ours, mut peer) = pair();
    let watch = watch();
    for round in 0..3 {
        assert_eq!(look(&watch, &polls, &ours), Some(Poll::Pending), "round {round}");
        assert!(watch.is_quiet(Some(&polls)));
        peer.write_all(b"octets").unwrap();
        wait(&watch, &polls, &ours);
        assert_eq!(look(&watch, &polls, &ours), Some(Poll::Ready(())), "it is asked again");
        assert!(!watch.is_quiet(Some(&polls)));
        (&ours).read_exact(&mut [0; 6]).unwrap();
        watch.is_exhausted(Some(&polls));
    }
    watch.release(Some(&polls));
}

#[test]
fn what_came_before_the_watch_is_told() {
    let Some(polls) = polls(16) else { return };
    let (ours, mut peer) = pair();
    peer.write_all(b"early").unwrap();
    ours.peek(&mut [0]).unwrap();
    wait(&watch(), &polls, &ours);
}

#[test]
fn an_end_and_a_reset_stay() {
    let Some(polls) = polls(16) else { return };
    for is_reset in [false, true] {
        let (ours, peer) = pair();
        let watch = standing(&polls, &ours);
        match is_reset {
            true => {
                socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
                drop(peer);
            }
            false => peer.shutdown(Shutdown::Write).unwrap(),
        }
        wait(&watch, &polls, &ours);
        watch.is_exhausted(Some(&polls));
        assert_eq!(look(&watch, &polls, &ours), Some(Poll::Ready(())), "reset: {is_reset}");
        watch.release(Some(&polls));
    }
}

#[test]
fn an_end_behind_octets_is_told_when_they_have_been_read() {
    let Some(polls) = polls(16) else { return };
    let (ours, mut peer) = pair();
    let watch = standing(&polls, &ours);
    peer.write_all(b"last").unwrap();
    wait(&watch, &polls, &ours);
    peer.shutdown(Shutdown::Write).unwrap();
    let mut buffer = [0; 64];
    assert_eq!((&ours).read(&mut buffer).unwrap(), 4);
    watch.is_exhausted(Some(&polls));
    wait(&watch, &polls, &ours);
    assert_eq!((&ours).read(&mut buffer).unwrap(), 0);
}

#[test]
fn a_poll_that_found_no_room_is_armed_again() {
    const ROOM: u32 = 4;
    let Some(polls) = polls(ROOM) else { return };
    let mut all: Vec<_> = (0..8 * ROOM).map(|_| (pair(), watch())).collect();
    let mut has_ended = false;
    for round in 0..3 {
        for ((ours, _), watch) in &all {
            assert_eq!(look(watch, &polls, ours), Some(Poll::Pending), "round {round}");
        }
        for ((_, peer), _) in &mut all {
            peer.write_all(b"x").unwrap();
        }
        for ((ours, _), watch) in &all {
            wait(watch, &polls, ours);
        }
        let sources = polls.sources.borrow();
        has_ended |= sources.all.iter().any(|source| source.poll == Kept::Over);
        drop(sources);
        for ((ours, _), watch) in &mut all {
            ours.read_exact(&mut [0]).unwrap();
            watch.is_exhausted(Some(&polls));
        }
    }
    assert!(has_ended, "the queue of completions was never full");
}

#[test]
fn a_number_that_is_used_again_hears_nothing_of_its_former_owner() {
    let Some(polls) = polls(16) else { return };
    let (former, mut peer) = pair();
    let first = standing(&polls, &former);
    let Manner::Standing(number) = first.0.get() else { panic!("{first:?}") };
    peer.write_all(b"news").unwrap();
    former.peek(&mut [0]).unwrap();
    first.release(Some(&polls));
    let (ours, _peer) = pair();
    let second = standing(&polls, &ours);
    assert_eq!(second.0.get(), Manner::Standing(number));
    for _ in 0..100 {
        assert!(second.is_quiet(Some(&polls)));
    }
}

#[test]
fn what_cannot_be_watched_is_waited_for_in_another_way() {
    let Some(polls) = polls(16) else { return };
    let file = File::options().read(true).custom_flags(libc::O_PATH).open("/").unwrap();
    let watch = watch();
    wait_until(&polls, "the kernel has refused", || {
        watch.poll(Some(&polls), file.as_fd(), &mut Context::from_waker(Waker::noop())).is_none()
    });
    assert_eq!(watch.0.get(), Manner::Each);
    assert_eq!(polls.sources.borrow().free.len(), 1, "its number is free");
}

#[test]
fn a_connection_at_rest_keeps_no_task_in_memory() {
    let Some(polls) = polls(16) else { return };
    let (ours, _peer) = pair();
    let (watch, task) = (watch(), Arc::new(Sleeper));
    let waker = Waker::from(Arc::clone(&task));
    for _ in 0..2 {
        let polled = watch.poll(Some(&polls), ours.as_fd(), &mut Context::from_waker(&waker));
        assert_eq!(polled, Some(Poll::Pending));
        assert_eq!(Arc::strong_count(&task), 3, "one wake-up is kept, however often it asks");
    }
    watch.rest(Some(&polls), ours.as_fd());
    assert_eq!(Arc::strong_count(&task), 2);
}

#[test]
fn what_comes_to_a_connection_at_rest_is_known() {
    let Some(polls) = polls(16) else { return };
    let (ours, mut peer) = pair();
    let watch = Watch::default();
    assert!(!watch.is_quiet(Some(&polls)), "nobody knows");
    watch.rest(Some(&polls), ours.as_fd());
    assert!(watch.is_quiet(Some(&polls)));
    peer.write_all(b"poison").unwrap();
    ours.peek(&mut [0]).unwrap();
    // Whoever returns from the kernel has been told: there is nothing to wait for.
    assert!(!watch.is_quiet(Some(&polls)));
}

/// Waits on a ring, as workers do: the first time with a poll for one wait, then with one that
/// stands, while the runtime sleeps in the other ring.
#[test]
fn a_connection_waits_reads_and_is_closed() {
    if polls(16).is_none() {
        return;
    }
    let builder = ring::builder(ring::usable_flags().unwrap());
    let runtime = RuntimeBuilder::<IoUringDriver>::new();
    let mut runtime = runtime.uring_builder(builder).with_entries(64).build().unwrap();
    runtime.block_on(async {
        let (connection, turns, mut peer) = connection();
        turns.stand(Polls::new().unwrap());
        let heeded = std::rc::Rc::clone(&turns);
        monoio::spawn(async move {
            let polls = heeded.polls().unwrap();
            let bell = polls.bell().unwrap();
            while bell.readable(false).await.is_ok() {
                polls.take_up();
            }
        });
        let mut buffer = Vec::with_capacity(64);
        for (round, text) in ["one", "two", "three", "four"].into_iter().enumerate() {
            let mut ready = pin!(connection.readiness());
            let mut writes = Some(&mut peer);
            std::future::poll_fn(|cx| {
                turns.begin();
                let polled = ready.as_mut().poll_ready(cx);
                // Not before somebody waits.
                if let Some(peer) = writes.take() {
                    assert!(polled.is_pending());
                    peer.write_all(text.as_bytes()).unwrap();
                }
                polled
            })
            .await;
            buffer.clear();
            assert_eq!(connection.try_recv(&mut buffer).unwrap(), text.len());
            assert_eq!(buffer, text.as_bytes());
            let watched = turns.polls().unwrap().sources.borrow().all.len();
            assert_eq!(watched, usize::from(round > 0));
            assert_eq!((connection.is_quiet(), connection.peek()), (round > 0, Peek::Nothing));
        }
        drop(connection);
        // The poll stood: had it not been removed, it would keep the connection open.
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    });
}

/// The poll has something to tell that the kernel has not told, because octets came from another
/// CPU while this thread was not in the kernel.
#[test]
fn what_is_released_while_octets_come_is_closed() {
    let Some(polls) = polls(256) else { return };
    for round in 0..30 {
        let (ours, mut peer) = pair();
        let watch = standing(&polls, &ours);
        let (may_write, has_written) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !may_write.load(SeqCst) {
                    std::hint::spin_loop();
                }
                let written = (&peer).write_all(b"x");
                has_written.store(true, SeqCst);
                written.unwrap();
            });
            may_write.store(true, SeqCst);
            // Without a call: this thread must not come out of the kernel meanwhile.
            while !has_written.load(SeqCst) {
                std::hint::spin_loop();
            }
            watch.release(Some(&polls));
        });
        drop(ours);
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        // An end or a reset, but not silence.
        let is_silent = peer.read(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        assert!(!is_silent, "connection {round} is open still");
    }
}

#[test]
fn what_found_no_room_is_known_of_a_connection_at_rest() {
    let Some(polls) = polls(4) else { return };
    let mut all: Vec<_> = (0..32).map(|_| (pair(), Watch::default())).collect();
    for ((ours, _), watch) in &all {
        watch.rest(Some(&polls), ours.as_fd());
        assert!(watch.is_quiet(Some(&polls)));
    }
    for ((_, peer), _) in &mut all {
        peer.write_all(b"poison").unwrap();
    }
    for ((ours, _), _) in &all {
        ours.peek(&mut [0]).unwrap();
    }
    for (number, (_, watch)) in all.iter().enumerate().rev() {
        assert!(!watch.is_quiet(Some(&polls)), "{number}");
    }
}

#[test]
fn when_something_was_lost_everybody_looks_and_is_watched_anew() {
    let Some(polls) = polls(16) else { return };
    let mut all: Vec<_> = (0..3).map(|_| (pair(), watch())).collect();
    for ((ours, _), watch) in &all {
        assert_eq!(look(watch, &polls, ours), Some(Poll::Pending));
    }
    let (former, _peer) = pair();
    standing(&polls, &former).release(Some(&polls));
    polls.look_at_all();
    // A number that nobody had meanwhile is as good as new.
    let (fresh, _peer) = pair();
    standing(&polls, &fresh);
    for ((ours, peer), watch) in &mut all {
        assert!(!watch.is_quiet(Some(&polls)));
        assert_eq!(look(watch, &polls, ours), Some(Poll::Ready(())));
        watch.is_exhausted(Some(&polls));
        assert_eq!(look(watch, &polls, ours), Some(Poll::Pending), "it is watched anew");
        peer.write_all(b"x").unwrap();
        wait(watch, &polls, ours);
    }
    for ((ours, mut peer), watch) in all {
        watch.release(Some(&polls));
        ours.peek(&mut [0]).unwrap();
        (&ours).read_exact(&mut [0]).unwrap();
        drop(ours);
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "neither poll keeps it open");
    }
}

#[test]
fn an_order_that_the_kernel_did_not_take_is_given_again() {
    let Some(polls) = polls(16) else { return };
    let (ours, mut peer) = pair();
    let watch = standing(&polls, &ours);
    let Manner::Standing(number) = watch.0.get() else { panic!("{watch:?}") };
    // As if it had not been taken.
    polls.doomed.borrow_mut().push(polls.token(number));
    drop(ours);
    assert!(polls.take_up());
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
}
