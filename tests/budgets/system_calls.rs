//! What one exchange and one event ask the kernel for by system calls, seen by strace from outside.

use crate::{
    REQUESTS, Stream, backend, request,
    strace::{Calls, Traced, calls, is_there},
    support::Backend,
};

/// Requests or events between the first and the last that are looked at: with the last of them it
/// is so many cycles.
const CYCLES: u64 = 50;

/// Calls of one exchange with a small request and a small answer that is not there yet when it is
/// looked for. On io_uring octets are received by a plain call once a standing poll has said that
/// they are there, because who waits for a client or a backend holds no buffer; what is submitted
/// is in `allocations.rs` by name. There is no timer, and one `send` for head and body.
const ON_IO_URING: [(&str, u64); 2] = [("recv", 2), ("submitted to the ring", 4)];

/// On epoll `poll` asks whether octets are there: monoio does that before it believes its own
/// notes. The peek is the look at a connection from the pool: whether the backend has closed it, or
/// sent what nobody asked for. A standing poll would have told.
const ON_EPOLL: [(&str, u64); 4] = [("peek", 1), ("poll", 2), ("recv", 2), ("send", 2)];

const OF_AN_EVENT_ON_IO_URING: [(&str, u64); 2] = [("recv", 1), ("submitted to the ring", 2)];

const OF_AN_EVENT_ON_EPOLL: [(&str, u64); 3] = [("poll", 1), ("recv", 1), ("send", 1)];

fn has_strace() -> bool {
    let has = is_there();
    if !has {
        eprintln!("SKIPPED: strace is not installed, or may not trace");
    }
    has
}

/// A driver by its name in the configuration, if the kernel grants it.
fn drivers() -> impl Iterator<Item = &'static str> {
    // Its rings are in this process, and must not be taken for those of a test that counts.
    let _alone = crate::allocations::alone();
    let backend = Backend::fine();
    let balancer = crate::support::Balancer::before(&[&backend]).with("io_driver", "auto").start();
    let has_ring = balancer.drivers[0].starts_with("io_uring");
    if !has_ring {
        eprintln!("SKIPPED for io_uring: the kernel grants no ring");
    }
    ["io_uring", "epoll"].into_iter().filter(move |driver| has_ring || *driver == "epoll")
}

/// An answer that is there at the first look saves the wait: adds it, so that what is compared does
/// not depend on how quick the backend was. `wait` is the kind of call that a wait takes, `waits`
/// how many of it `CYCLES` exchanges take that always wait. A look in vain is not counted.
fn as_if_always_waited(mut found: Calls, (wait, waits): (&str, u64)) -> Calls {
    let count = found.entry(wait.to_owned()).or_default();
    *count += waits.saturating_sub(*count).min(CYCLES);
    found
}

#[track_caller]
fn check(name: &str, found: &Calls, budget: &[(&str, u64)]) {
    // What is in the way of a whole number are the ticks of the worker, which are not ours to time.
    let each: Calls =
        found.iter().map(|(kind, n)| (kind.clone(), (n + CYCLES / 2) / CYCLES)).collect();
    let budget: Calls = budget.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
    assert_eq!(each, budget, "{name}: calls in each of {CYCLES} cycles, in all {found:?}");
}

#[test]
fn a_keep_alive_request_takes_no_call_too_many() {
    if !has_strace() {
        return;
    }
    for driver in drivers() {
        let backend = backend();
        let traced = Traced::start("requests", driver, &backend);
        let mut client = traced.process.connect();
        for (number, (name, _)) in REQUESTS[..4].iter().enumerate() {
            let mut ask = |target: &str| {
                let text = request(name, &format!("{target}-{number}"));
                assert_eq!(client.ask(text).status(), 200);
            };
            (0..20).for_each(|_| ask("warm-up"));
            ask("begin");
            (1..CYCLES).for_each(|_| ask("counted"));
            ask("end");
        }
        drop(client);
        let traces = traced.end();
        for (number, (name, _)) in REQUESTS[..4].iter().enumerate() {
            let lines = traces.between(&format!("/begin-{number} "), &format!("/end-{number} "));
            let (budget, waits) = match driver {
                "epoll" => (&ON_EPOLL[..], ("poll", 2 * CYCLES)),
                _ => (&ON_IO_URING[..], ("submitted to the ring", 4 * CYCLES)),
            };
            let calls = as_if_always_waited(calls(&lines), waits);
            check(&format!("{name} on {driver}"), &calls, budget);
        }
    }
}

#[test]
fn an_event_takes_no_call_too_many() {
    if !has_strace() {
        return;
    }
    for driver in drivers() {
        let backend = Backend::played();
        let traced = Traced::start("events", driver, &backend);
        let mut stream = Stream::begin(traced.process.connect(), &backend);
        (0..20).for_each(|_| stream.tell("warm-up"));
        stream.tell("begin");
        (1..CYCLES).for_each(|_| stream.tell("counted"));
        stream.tell("end");
        let traces = traced.end();
        let budget =
            if driver == "epoll" { &OF_AN_EVENT_ON_EPOLL[..] } else { &OF_AN_EVENT_ON_IO_URING };
        let lines = traces.between("data: begin", "data: end");
        check(&format!("an event on {driver}"), &calls(&lines), budget);
    }
}
