//! What worker threads allocate, and what they ask the ring for, in the steady state.

#![expect(clippy::disallowed_types, reason = "tests of one process wait for each other")]

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    REQUESTS, Stream, backend,
    counting::during,
    request,
    ring::{Known, Operations, Ring},
    support::{Backend, Balancer, balancer::Setup},
};

/// Enough for every pool, table and counter to have grown to its size.
const WARM_UP: usize = 200;

/// Requests or events whose allocations are counted.
const COUNTED: u64 = 1000;

/// Requests or events whose operations are counted: the ring remembers its last 1024, less where
/// the kernel grants no ring of that size.
const IN_THE_RING: u64 = 50;

/// Allocations of one exchange. Whatever is here is a wait that is boxed so that not every
/// connection has room for it, and is paid only by those who need it.
const ALLOCATIONS: [(&str, u64); 5] = [
    ("GET", 0),
    ("POST", 0),
    ("chunked POST", 0),
    // The wait for its backend, `reach_owner`.
    ("GET of an instance", 1),
    ("GET of 100 kB", 0),
];

/// Of a request whose body comes later than its head: `Request::rest` and the upload.
const ALLOCATIONS_WITH_A_LATE_BODY: u64 = 2;

/// Operations of the ring for one exchange by itself: the client's octets are waited for (`poll`,
/// of the ring of standing polls, one for all who are told at the same time; a plain `recv`
/// follows, see `system_calls.rs`), the request goes up in one `send`, the answer is waited for in
/// the same way unless it is there at once, and goes down in one `send`, with its body where that
/// is small.
const OPERATIONS: [(&str, &[(&str, u64)]); 5] = [
    ("GET", &[("poll", 2), ("send", 2)]),
    ("POST", &[("poll", 2), ("send", 2)]),
    ("chunked POST", &[("poll", 2), ("send", 2)]),
    ("GET of an instance", &[("poll", 2), ("send", 2)]),
    // Head and 4 kB, then twice 64 kB at most; head and body go down apart from each other.
    ("GET of 100 kB", &[("poll", 2), ("recv", 3), ("send", 5)]),
];

/// Operations of the ring for one event.
const OPERATIONS_PER_EVENT: [(&str, u64); 2] = [("poll", 1), ("send", 1)];

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The allocator counts what any worker does, so only one test may have workers.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One worker, and nothing going on beside what the test does.
fn before(backend: &Backend, driver: &str) -> Setup {
    let setup = Balancer::before(&[backend]).with("workers", "1").with("io_driver", driver);
    setup.with("health_check_interval", "1h")
}

/// Checks that `act`, told how often, makes so many allocations each time.
#[track_caller]
fn check_allocations(name: &str, budget: u64, mut act: impl FnMut(u64)) {
    let found = during(|| act(COUNTED));
    assert_eq!(
        found.count,
        budget * COUNTED,
        "{name}: {COUNTED} times made {} allocations of {} octets, from\n{}",
        found.count,
        found.bytes,
        found.places()
    );
}

#[test]
fn a_keep_alive_request_allocates_nothing() {
    let _alone = alone();
    for driver in ["auto", "epoll"] {
        let backend = backend();
        let balancer = before(&backend, driver).start();
        let first = during(|| {
            assert_eq!(balancer.connect().get("/first").status(), 200);
        });
        assert!(first.count > 0, "a new connection has a task and buffers: the count is broken");
        let mut client = balancer.connect();
        for (name, budget) in ALLOCATIONS {
            let text = request(name, "x");
            let mut ask = |n| (0..n).for_each(|_| assert_eq!(client.ask(&text).status(), 200));
            ask(WARM_UP as u64);
            check_allocations(&format!("{driver}: {name}"), budget, ask);
        }
    }
}

#[test]
fn a_late_body_allocates_its_upload() {
    let _alone = alone();
    for driver in ["auto", "epoll"] {
        let backend = Backend::played();
        let balancer = before(&backend, driver).start();
        let mut client = balancer.connect();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
        client.send(head);
        let mut peer = backend.next();
        client.send("hello");
        peer.read_body();
        peer.answer("ok");
        assert_eq!(client.response().status(), 200);
        let mut ask = |n| {
            for _ in 0..n {
                client.send(head);
                peer.next_request();
                client.send("hello");
                peer.read_body();
                peer.answer("ok");
                assert_eq!(client.response().status(), 200);
            }
        };
        ask(WARM_UP as u64);
        check_allocations(driver, ALLOCATIONS_WITH_A_LATE_BODY, ask);
    }
}

#[test]
fn an_event_allocates_nothing() {
    let _alone = alone();
    for driver in ["auto", "epoll"] {
        let backend = Backend::played();
        let balancer = before(&backend, driver).start();
        let mut stream = Stream::begin(balancer.connect(), &backend);
        let mut tell = |n| (0..n).for_each(|_| stream.tell("something"));
        tell(WARM_UP as u64);
        check_allocations(driver, 0, tell);
    }
}

/// A balancer on io_uring and the ring of its worker; `None`, and a word about it, where the kernel
/// grants none.
fn on_a_ring(backend: &Backend) -> Option<(Balancer, Ring)> {
    let known = Known::look();
    let balancer = before(backend, "auto").start();
    if !balancer.drivers[0].starts_with("io_uring") {
        eprintln!("SKIPPED: the kernel grants no ring: {:?}", balancer.drivers);
        return None;
    }
    Some((balancer, known.newcomer()))
}

/// Checks that each time takes exactly these operations of the ring. None of them is a timer.
#[track_caller]
fn check_operations(name: &str, budget: &[(&str, u64)], operations: &Operations) {
    let budget: BTreeMap<_, _> =
        budget.iter().map(|(op, n)| ((*op).to_owned(), n * IN_THE_RING)).collect();
    assert_eq!(*operations, budget, "{name}: operations of the ring in {IN_THE_RING} times");
}

#[test]
fn a_keep_alive_request_takes_four_operations_of_the_ring() {
    let _alone = alone();
    let backend = backend();
    let Some((balancer, ring)) = on_a_ring(&backend) else { return };
    let mut client = balancer.connect();
    for ((name, _), (of, budget)) in REQUESTS.into_iter().zip(OPERATIONS) {
        assert_eq!(name, of, "the tables are in the same order");
        let text = request(name, "x");
        let mut ask = |n| (0..n).for_each(|_| assert_eq!(client.ask(&text).status(), 200));
        ask(WARM_UP as u64);
        let mut operations = ring.during(|| ask(IN_THE_RING));
        as_if_always_waited(&mut operations, 2 * IN_THE_RING);
        check_operations(name, budget, &operations);
    }
}

/// An answer that is there at once is not waited for: adds what that saved. What comes while the
/// ring receives a piece of a body is told by the standing poll too: takes away what that costs.
fn as_if_always_waited(operations: &mut Operations, polls: u64) {
    let pieces = operations.get("recv").copied().unwrap_or(0);
    let found = operations.entry("poll".to_owned()).or_default();
    *found -= found.saturating_sub(polls).min(pieces);
    let saved = polls.saturating_sub(*found).min(IN_THE_RING);
    *found += saved;
}

#[test]
fn a_request_on_a_connection_of_its_own_takes_one_operation_of_the_ring_and_the_waiting() {
    let _alone = alone();
    let backend = backend();
    let Some((balancer, ring)) = on_a_ring(&backend) else { return };
    let text = request("GET", "x").replace("Host", "Connection: close\r\nHost");
    let ask = |n| (0..n).for_each(|_| assert_eq!(balancer.ask(&text).status(), 200));
    ask(WARM_UP as u64);
    let mut operations = ring.during(|| ask(IN_THE_RING));
    let mut take = |name| operations.remove(name).unwrap_or(0);
    // A machine that stops for longer than such a request is left unwatched has it watched.
    let (polls, watched) = (take("poll"), take("cancel"));
    assert!(watched <= IN_THE_RING / 10, "{watched} were watched");
    // For the connection, and for the answer and the request unless they have come by then.
    let waits = IN_THE_RING..=3 * IN_THE_RING;
    assert!(waits.contains(&(polls - watched)), "{polls} polls, {watched} of them cancelled");
    // No operation to accept, none to send the answer, none to close, none to cancel that.
    check_operations("GET", &[("send", 1)], &operations);
}

#[test]
fn an_event_takes_two_operations_of_the_ring() {
    let _alone = alone();
    let backend = Backend::played();
    let Some((balancer, ring)) = on_a_ring(&backend) else { return };
    let mut stream = Stream::begin(balancer.connect(), &backend);
    let mut tell = |n| (0..n).for_each(|_| stream.tell("something"));
    tell(WARM_UP as u64);
    check_operations("event", &OPERATIONS_PER_EVENT, &ring.during(|| tell(IN_THE_RING)));
}
