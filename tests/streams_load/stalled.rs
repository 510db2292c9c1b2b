//! Clients that read nothing: what they cost, that it is nobody else's cost, and how they end.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::task::JoinSet;

use crate::{
    lab::{Lab, allow_streams, number, on_one_thread, seed, until},
    streaming::{
        client::{Method, Position, Progress, Trouble, Visit},
        event::{Framing, Order},
    },
    support::{PATIENCE, wait_until},
};

/// Clients that read nothing, unless the environment says how many.
const STALLED: u64 = 300;
const NEIGHBOURS: u64 = 40;

/// Memory that a stalled client may cost the balancer, its part of the kernel's buffers apart: one
/// piece of its stream, of 16 KiB at most, its framing, and its task.
pub(crate) const STALLED_KIB_MAX: u64 = 30;
/// What the allocator may keep of what was in use at the same time before, however few they are.
pub(crate) const ALLOCATOR_KIB_MAX: u64 = 12 * 1024;

/// Octets of a stream that a backend gets rid of while its client reads nothing: what the kernel
/// holds at the three sockets on the way, which the balancer bounds at its own, and what the
/// balancer holds.
const ACCEPTED_OCTETS_MAX: u64 = 2 * 1024 * 1024;

/// What the kernel holds for a client that does not read.
const RECEIVE_BUFFER: u32 = 16 * 1024;

/// A stream that is sent as fast as it is taken.
fn flood(seed: u64, stream: u64) -> Order {
    Order {
        stream,
        seed,
        period: Duration::ZERO,
        events: u64::MAX,
        size: 2000,
        framing: if stream.is_multiple_of(2) { Framing::Chunked } else { Framing::Close },
        since_ns: 0,
    }
}

/// A stream of so many events, ten a second.
fn steady(seed: u64, stream: u64, events: u64) -> Order {
    let period = Duration::from_millis(100);
    Order { period, events, size: 100, ..flood(seed, stream) }
}

/// Asks for floods and reads nothing of them; gives the connections.
async fn stall(lab: &Lab, seed: u64, streams: u64) -> Vec<(Visit, Position)> {
    let mut stalled = Vec::new();
    for stream in 0..streams {
        let position = Position::start(flood(seed, stream));
        let method = if stream.is_multiple_of(3) { Method::Post } else { Method::Get };
        let visit =
            Visit::begin_with(lab.balancer.address, method, &position, Some(RECEIVE_BUFFER)).await;
        stalled.push((visit.expect("the balancer accepts"), position));
    }
    until("the backends have them all", 6 * PATIENCE, || lab.open() == streams).await;
    stalled
}

/// Reads streams to their ends at the same time; each must be whole.
async fn read_neighbours(lab: &Lab, seed: u64, events: u64) {
    let mut reading = JoinSet::new();
    for n in 0..NEIGHBOURS {
        let address = lab.balancer.address;
        reading.spawn_local(async move {
            let mut position = Position::start(steady(seed, 1_000_000 + n, events));
            let mut visit = Visit::begin(address, Method::Get, &position).await?;
            let mut buffer = [0; 4096];
            while visit.read(&mut position, &mut buffer, |_| {}).await? == Progress::Open {}
            assert!(position.is_complete(), "{} of {events} events have come", position.next);
            Ok::<_, Trouble>(())
        });
    }
    while let Some(read) = reading.join_next().await {
        read.expect("a reader does not panic").expect("a neighbour's stream is whole");
    }
}

#[test]
fn stalled_clients_cost_a_bounded_amount_and_their_neighbours_nothing() {
    let (seed, streams) = (seed(), number("STREAMS_LOAD_STALLED", STALLED));
    allow_streams(streams + NEIGHBOURS);
    // All of them share one worker.
    let lab = Lab::start(2, &[("STEPFLOW_LB_WORKERS", "1")]);
    on_one_thread(async {
        let mut stalled = stall(&lab, seed, streams).await;
        let accepted = || lab.sources.iter().map(|source| source.ledger.octets()).sum::<u64>();
        let mut last = 0;
        until("the backends get rid of nothing more", 6 * PATIENCE, || {
            // The pause between two looks is long for somebody who could write.
            std::thread::sleep(Duration::from_millis(200));
            let is_same = last == accepted();
            last = accepted();
            is_same
        })
        .await;
        read_neighbours(&lab, seed, 30).await;
        let growth_kib = lab.growth_kib();
        let most = (0..streams).map(|stream| {
            let records = lab.sources.iter().map(|source| source.ledger.of(stream));
            records.map(|record| record.octets.load(Relaxed)).sum::<u64>()
        });
        let most = most.max().unwrap_or(0);
        println!(
            "{streams} stalled clients: {growth_kib} KiB ({} octets each), at most {most} octets \
             taken of a backend",
            growth_kib * 1024 / streams
        );
        assert!(
            growth_kib <= streams * STALLED_KIB_MAX + ALLOCATOR_KIB_MAX,
            "{growth_kib} KiB for {streams} stalled clients"
        );
        assert!(most <= ACCEPTED_OCTETS_MAX, "{most} octets taken of one backend");
        // One that reads after all finds everything in its place, and its backend goes on.
        let (visit, position) = &mut stalled[0];
        let mut buffer = vec![0; 64 * 1024];
        let behind = most / 1000;
        while position.next < behind {
            let progress = visit.read(position, &mut buffer, |_| {}).await;
            assert_eq!(progress.expect("the stream is whole"), Progress::Open);
        }
    });
    lab.finish();
}

#[test]
fn stalled_clients_are_ended_with_their_reason_and_their_neighbours_are_not() {
    const STALLED: u64 = 30;
    let seed = seed();
    let options = [("STEPFLOW_LB_WORKERS", "1"), ("STEPFLOW_LB_CLIENT_STALL_TIMEOUT", "1s")];
    let mut lab = Lab::start(2, &options);
    on_one_thread(async {
        let stalled = stall(&lab, seed, STALLED).await;
        read_neighbours(&lab, seed, 40).await;
        until("only their places are free again", PATIENCE, || lab.open() == 0).await;
        drop(stalled);
    });
    let line = lab.balancer.wait_for_line("client_stalled");
    assert!(line.contains("WARN"), "{line}");
    wait_until("all of them are counted", || {
        lab.balancer.metrics().failures("client_stalled") == STALLED
    });
    lab.finish();
}
