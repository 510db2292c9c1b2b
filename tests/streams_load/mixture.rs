//! Well-behaved, slow, stalled and leaving clients, all at once.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    lab::{Lab, allow_streams, number, on_one_thread, seed},
    stalled::{ALLOCATOR_KIB_MAX, STALLED_KIB_MAX},
    streaming::{
        client::{Method, Position, Progress, Trouble, Visit},
        event::{Framing, Order, Random},
        figures,
        source::Record,
    },
    support::PATIENCE,
};

const STREAMS: u64 = 400;
const SECONDS: u64 = 6;
const BACKENDS: usize = 4;

/// From one event to the next, of streams that keep a pace.
const PERIOD: Duration = Duration::from_millis(500);
/// How often a slow client reads, and how many octets.
const SLOW: (Duration, usize) = (Duration::from_millis(250), 8);
/// What the kernel holds for clients that hardly read.
const RECEIVE_BUFFER: u32 = 8 * 1024;

/// Memory that a stream may cost the balancer whose client reads: a buffer while an event passes,
/// and its task.
const STREAM_KIB_MAX: u64 = 16;

/// How long the backend may take to see a client leave, whatever the machine has to do besides.
const DEPARTURE_MAX: Duration = PATIENCE;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    /// Reads one stream after the other to its end.
    Good,
    /// Reads a few octets a second.
    Slow,
    /// Asks, and reads nothing.
    Stalled,
    /// Closes its connection somewhere, and comes back for another stream.
    Leaving,
    /// Breaks its connection somewhere, and comes back for another stream.
    Resetting,
}

impl Manner {
    fn of(client: u64) -> Self {
        match client % 20 {
            0..12 => Self::Good,
            12..14 => Self::Slow,
            14 => Self::Stalled,
            15..18 => Self::Leaving,
            _ => Self::Resetting,
        }
    }
}

/// What clients share.
struct World {
    address: SocketAddr,
    seed: u64,
    end: Instant,
    tally: RefCell<Tally>,
}

/// What they have seen.
#[derive(Default)]
struct Tally {
    events: u64,
    /// Streams that were read to their end.
    finished: Vec<u64>,
    /// Streams whose client left, how, and when.
    left: Vec<(u64, Manner, Instant)>,
    next_stream: u64,
}

impl World {
    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Draws a stream that ends before the end of the run, or just behind it.
    fn draw(&self, random: &mut Random, manner: Manner) -> (Order, Method) {
        let stream = {
            let mut tally = self.tally.borrow_mut();
            tally.next_stream += 1;
            tally.next_stream
        };
        let longest = self.left().as_millis() / PERIOD.as_millis();
        let longest = u64::try_from(longest).unwrap_or(1).max(1);
        let order = Order {
            stream,
            seed: self.seed,
            period: if manner == Manner::Stalled { Duration::ZERO } else { PERIOD },
            events: match manner {
                Manner::Good => 1 + random.below(longest),
                _ => u64::MAX,
            },
            size: if manner == Manner::Stalled { 4000 } else { 150 },
            framing: if random.below(3) == 0 { Framing::Close } else { Framing::Chunked },
            since_ns: 0,
        };
        (order, if random.below(2) == 0 { Method::Get } else { Method::Post })
    }

    async fn play(&self, client: u64) -> Result<(), Trouble> {
        let manner = Manner::of(client);
        let mut random = Random(self.seed ^ client);
        // They do not come all at once.
        sleep(self.left().mul_f64(random.below(1000) as f64 / 8000.0)).await;
        while !self.left().is_zero() {
            let (order, method) = self.draw(&mut random, manner);
            let mut position = Position::start(order);
            let buffer = matches!(manner, Manner::Slow | Manner::Stalled).then_some(RECEIVE_BUFFER);
            let visit = Visit::begin_with(self.address, method, &position, buffer).await?;
            let stay = Duration::from_millis(random.below(3_000)).min(self.left());
            let read = match manner {
                Manner::Good => self.read(visit, &mut position).await,
                Manner::Slow => self.read_slowly(visit, &mut position).await,
                Manner::Stalled => {
                    sleep(self.left()).await;
                    self.leave(visit, &position, manner)
                }
                Manner::Leaving | Manner::Resetting => {
                    self.read_and_leave(visit, &mut position, manner, stay).await
                }
            };
            self.tally.borrow_mut().events += position.next;
            read?;
        }
        Ok(())
    }

    /// Reads to the end.
    async fn read(&self, mut visit: Visit, position: &mut Position) -> Result<(), Trouble> {
        let mut buffer = [0; 4096];
        while visit.read(position, &mut buffer, |_| {}).await? == Progress::Open {}
        let Order { stream, events, .. } = position.order;
        assert_eq!(position.next, events, "stream {stream} ended before its last event");
        self.tally.borrow_mut().finished.push(stream);
        Ok(())
    }

    async fn read_slowly(&self, mut visit: Visit, position: &mut Position) -> Result<(), Trouble> {
        let mut buffer = [0; SLOW.1];
        while !self.left().is_zero() {
            let progress = visit.read(position, &mut buffer, |_| {}).await?;
            assert_eq!(progress, Progress::Open, "a stream without end has ended");
            sleep(SLOW.0).await;
        }
        self.leave(visit, position, Manner::Slow)
    }

    async fn read_and_leave(
        &self,
        mut visit: Visit,
        position: &mut Position,
        manner: Manner,
        stay: Duration,
    ) -> Result<(), Trouble> {
        let mut buffer = [0; 4096];
        // One that does not wait for the head may leave before the backend hears of it.
        let reading = async {
            loop {
                let progress = visit.read(position, &mut buffer, |_| {}).await?;
                assert_eq!(progress, Progress::Open, "a stream without end has ended");
            }
        };
        if let Ok(read) = timeout(stay, reading).await {
            return read;
        }
        self.leave(visit, position, manner)
    }

    fn leave(&self, visit: Visit, position: &Position, manner: Manner) -> Result<(), Trouble> {
        let stream = visit.into_stream();
        if manner == Manner::Resetting {
            let linger = Some(Duration::ZERO);
            SockRef::from(&stream).set_linger(linger).map_err(Trouble::Broken)?;
        }
        self.tally.borrow_mut().left.push((position.order.stream, manner, Instant::now()));
        drop(stream);
        Ok(())
    }
}

/// Plays all clients to the end of the run; gives the most memory that the balancer took for them.
///
/// # Errors
/// What went wrong for the first client for which something did.
async fn run(world: &Rc<World>, clients: u64, lab: &Lab) -> Result<u64, String> {
    let mut playing = JoinSet::new();
    for client in 0..clients {
        let world = Rc::clone(world);
        playing.spawn_local(async move { (client, world.play(client).await) });
    }
    let mut growth_kib = 0;
    let deadline = sleep(world.left() + 6 * PATIENCE);
    tokio::pin!(deadline);
    let mut look = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            played = playing.join_next() => {
                let Some(played) = played else { break };
                let (client, outcome) = played.expect("a client does not panic");
                outcome.map_err(|trouble| {
                    let left = world.left();
                    format!("client {client}, {:?}, {left:.1?} left: {trouble}", Manner::of(client))
                })?;
            }
            _ = look.tick() => growth_kib = growth_kib.max(lab.growth_kib()),
            () = &mut deadline => panic!("{} clients have not come to an end", playing.len()),
        }
    }
    Ok(growth_kib)
}

#[test]
fn of_a_mixture_of_clients_the_good_ones_get_every_event_once_and_nothing_is_left() {
    let seed = seed();
    let clients = number("STREAMS_LOAD_STREAMS", STREAMS);
    let seconds = number("STREAMS_LOAD_SECONDS", SECONDS);
    allow_streams(clients);
    // Stalled clients stay stalled, however long it takes.
    let options = [
        ("STEPFLOW_LB_CLIENT_STALL_TIMEOUT", "off"),
        ("HEALTH_CHECK_INTERVAL", "1s"),
        ("HEALTH_CHECK_TIMEOUT", "10s"),
    ];
    let mut lab = Lab::start(BACKENDS, &options);
    let world = Rc::new(World {
        address: lab.balancer.address,
        seed,
        end: Instant::now() + Duration::from_secs(seconds),
        tally: RefCell::default(),
    });
    let growth_kib = on_one_thread(run(&world, clients, &lab));
    let growth_kib = growth_kib.unwrap_or_else(|trouble| {
        panic!("seed {seed}: {trouble}; the balancer says {:#?}", lab.last_words())
    });
    let tally = world.tally.take();
    let of = |stream: u64| {
        let records = lab.sources.iter().map(|source| source.ledger.of(stream));
        let mut asked: Vec<_> = records.filter(|record| record.requests > 0).collect();
        assert!(asked.len() <= 1, "stream {stream} was asked for on several backends");
        asked.pop()
    };
    for stream in &tally.finished {
        let record = of(*stream).expect("somebody has sent it");
        assert_eq!((record.requests, record.finished), (1, 1), "stream {stream}");
    }
    let mut latencies = BTreeMap::<_, Vec<u32>>::new();
    let deadline = Instant::now() + DEPARTURE_MAX;
    for (stream, manner, left) in &tally.left {
        let took = loop {
            match of(*stream) {
                // It left before its request went on.
                None => break Duration::ZERO,
                Some(Record { asked: Some(asked), left: Some(seen), .. }) => {
                    // A busy backend may have read the request when its client was gone already.
                    break seen.saturating_duration_since(asked.max(*left));
                }
                Some(_) if Instant::now() > deadline => panic!("stream {stream} is still sent"),
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let before_end = world.end.saturating_duration_since(*left);
        assert!(
            took < DEPARTURE_MAX,
            "stream {stream} was sent for {took:?} more: {manner:?}, {before_end:?} before the end"
        );
        let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        latencies.entry(*manner).or_default().push(took_us);
    }
    println!(
        "{clients} clients for {seconds} s: {} events, {} streams read to their end, at most \
         {growth_kib} KiB of memory",
        tally.events,
        tally.finished.len(),
    );
    for (manner, mut latencies) in latencies {
        latencies.sort_unstable();
        let within = [0.5, 0.99, 1.0].map(|share| figures::quantile(&latencies, share));
        let departures = latencies.len();
        println!("{departures} {manner:?} seen to leave within {within:?} µs (half, 99 %, all)");
    }
    assert!(!tally.finished.is_empty() && !tally.left.is_empty(), "nothing has happened");
    let stalled = (0..clients).filter(|client| Manner::of(*client) == Manner::Stalled).count();
    let stalled = stalled as u64;
    let most_kib =
        stalled * STALLED_KIB_MAX + (clients - stalled) * STREAM_KIB_MAX + ALLOCATOR_KIB_MAX;
    assert!(growth_kib <= most_kib, "{growth_kib} KiB, {most_kib} are promised");
    lab.finish();
}
