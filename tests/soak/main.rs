//! The program under everything at once, for as long as one likes.
//!
//! Clients that keep to the protocol and clients that do not, backends that do what each request
//! tells them, a name server that lies, processes that die: all at random, from one seed. Every
//! response that a well-behaved client gets is compared octet for octet with what the backend
//! meant, or is a failure that docs/ERRORS.md gives for the fault that was asked for. After each
//! phase the load stops, and what the program holds must go back to where it was.
//!
//! Runs for a few seconds with `cargo test`. `scripts/soak.sh` runs it for minutes or hours:
//! `SOAK_SECONDS` is the length, `SOAK_SEED` repeats the plans of an earlier run (though not its
//! timing), `SOAK_LOG` is a file for the log, `STEPFLOW_LB_BIN` names the program; where that is
//! slow, `SOAK_CLIENTS` and `SOAK_TIMEOUT_SECONDS` give it less to do and more time, and
//! `SOAK_GROWTH_KIB_MAX` more memory. Nothing here shares code with the product.

#![expect(clippy::disallowed_types, reason = "the threads of a run share what they have seen")]
#![expect(clippy::print_stdout, reason = "a run tells how it goes")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

mod backend;
mod chaos;
mod churn;
mod client;
mod dns;
mod inbox;
mod plan;
mod product;
mod rude;
#[expect(dead_code, unused_imports, reason = "the suite in tests/http uses all of it")]
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use backend::{Backend, Process};
use client::{Client, Manner};
use dns::NameServer;
use plan::{Answer, Plan};
use product::{Holding, Product};
use rude::Rude;
use world::World;

const BACKENDS: u8 = 4;
/// Clients of either kind, unless `SOAK_CLIENTS` says how many: two in seven are rude.
const CLIENTS: u64 = 56;
/// Streams of random numbers: clients count from 0, rude ones from here.
const RUDE_STREAMS: u64 = 1_000;
const CHAOS_STREAM: u64 = 2_000;

/// Length of a run that nobody has said more about.
const USUAL_SECONDS: u64 = 4;
/// A phase is a sixth of the run, within these.
const PHASE_SECONDS: std::ops::RangeInclusive<u64> = 2..=300;

/// Most that the resident memory may grow from the end of the first phase to that of the last: the
/// allocator's pages settle for a while, a leak of 100 octets per exchange would be ten times that
/// within half an hour.
const GROWTH_KIB_MAX: u64 = 8 * 1024;
/// Longest that everything may take to go back to nothing once the load has stopped: the timeouts
/// below, twice over, and what a busy machine adds.
const SETTLING: Duration = Duration::from_secs(60);

/// Every timeout of the balancer's is a tenth of the run within these: long enough that a busy
/// machine does not make one expire that should not, and short enough for a short run.
const TIMEOUT_SECONDS: std::ops::RangeInclusive<u64> = 3..=8;
const TIMEOUTS: [&str; 4] = [
    "STEPFLOW_LB_REQUEST_HEAD_TIMEOUT",
    "STEPFLOW_LB_BODY_TIMEOUT",
    "STEPFLOW_LB_RESPONSE_HEAD_TIMEOUT",
    "STEPFLOW_LB_CLIENT_STALL_TIMEOUT",
];
const OPTIONS: &[(&str, &str)] = &[
    ("HEALTH_CHECK_INTERVAL", "500ms"),
    ("STEPFLOW_LB_DNS_REFRESH_MIN", "200ms"),
    ("STEPFLOW_LB_DNS_REFRESH_MAX", "1s"),
    ("STEPFLOW_LB_UPSTREAM_IDLE_TIMEOUT", "2s"),
    ("STEPFLOW_LB_DRAIN_GRACE", "0s"),
    ("STEPFLOW_LB_DRAIN_TIMEOUT", "20s"),
    ("RUST_LOG", "info"),
];

/// Gauges that are 0 when nobody asks for anything.
const GAUGES: [&str; 6] = [
    "stepflow_lb_connections_open",
    "stepflow_lb_active_connections",
    "stepflow_lb_event_streams_open",
    "stepflow_lb_event_streams_reconnectable",
    "stepflow_lb_tunnels_open",
    "stepflow_lb_upstream_idle",
];

/// What the balancer says that it has done.
const COUNTERS: [&str; 9] = [
    "failures_total",
    "retries_total",
    "connections_accepted_total",
    "upstream_connects_total",
    "upstream_connect_failures_total",
    "upstream_reuses_total",
    "upstream_poisoned_total",
    "instance_changes_total",
    "snapshots_published_total",
];

/// As that of `support`, for programs that are slow.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + SETTLING;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is wanted")))
}

struct Run {
    world: Arc<World>,
    names: NameServer,
    product: Product,
    base: Holding,
    clients: u64,
}

impl Run {
    fn start(seed: u64, timeout: u64) -> Self {
        let network = u8::try_from(std::process::id() % 250).unwrap() + 1;
        let addresses: Vec<_> = (1..=BACKENDS).map(|n| Ipv4Addr::new(127, 7, network, n)).collect();
        let (port, reserved) = support::backend::common_port(&addresses);
        let backends = reserved.into_iter().map(Backend::at).collect();
        let world = Arc::new(World::new(seed, backends));
        for (index, backend) in world.backends.iter().enumerate() {
            backend.start(&world, index, Process::Another);
        }
        let names = NameServer::start(&world);
        let service = format!("{}:{port}", dns::NAME);
        let servers = names.address.to_string();
        let timeout = format!("{timeout}s");
        let mut options = OPTIONS.to_vec();
        options.extend(TIMEOUTS.map(|name| (name, &*timeout)));
        options.extend([("UPSTREAM_SERVICE", &*service), ("STEPFLOW_LB_DNS_SERVERS", &*servers)]);
        let product = Product::start(&options);
        let clients = number_from_environment("SOAK_CLIENTS").unwrap_or(CLIENTS);
        let mut run = Self { world, names, base: product.holding(), product, clients };
        run.wait_for_healthy();
        run.base = run.settled(usize::MAX).expect("nothing has happened yet");
        run
    }

    fn wait_for_healthy(&self) {
        wait_until("all backends are healthy", || {
            let metrics = self.product.metrics();
            metrics.sum("stepflow_lb_backend_pool_size", &[]) == u64::from(BACKENDS)
                && metrics.workers_are_up_to_date()
        });
    }

    /// What it holds when nobody asks for anything: the least of some moments, because it checks
    /// its backends and asks for names meanwhile.
    fn holding(&self) -> Holding {
        let moments = (0..20).map(|_| {
            std::thread::sleep(Duration::from_millis(20));
            self.product.holding()
        });
        moments
            .reduce(|a, b| Holding {
                resident_kib: a.resident_kib.min(b.resident_kib),
                descriptors: a.descriptors.min(b.descriptors),
                threads: a.threads.min(b.threads),
            })
            .expect("some moments")
    }

    /// Waits until every gauge is 0, no connection to a backend is open, which is so between two
    /// health checks, and no more descriptors either than these; gives what is held then.
    fn settled(&self, descriptors_max: usize) -> Result<Holding, String> {
        let deadline = Instant::now() + SETTLING;
        loop {
            let metrics = self.product.metrics();
            let left: Vec<_> = GAUGES
                .iter()
                .map(|gauge| (*gauge, metrics.sum(gauge, &[])))
                .filter(|(_, value)| *value > 0)
                .collect();
            let open: usize = self.world.backends.iter().map(Backend::open_connections).sum();
            let is_back = left.is_empty() && open == 0;
            // A slow program is never seen without a check or a question under way.
            if is_back && self.product.holding().descriptors <= descriptors_max {
                return Ok(self.holding());
            }
            if Instant::now() > deadline {
                let (now, base) = (self.product.holding().descriptors, self.base.descriptors);
                return Err(format!(
                    "left when all was over: {left:?}, {open} connections at backends, {now} \
                     descriptors of {base} in the beginning"
                ));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Load for this long, then none, until everything has gone back.
    fn phase(&self, number: u64, length: Duration) -> Holding {
        let (world, address) = (&self.world, self.product.address);
        world.set_stopping(false);
        let stream = |n: u64| number * 10_000 + n;
        std::thread::scope(|scope| {
            let rude = self.clients * 2 / 7;
            for n in rude..self.clients {
                let client = Client::new(world, address, stream(n));
                scope.spawn(|| client.run());
            }
            for n in 0..rude {
                let rude = Rude::new(world, address, stream(RUDE_STREAMS + n));
                scope.spawn(|| rude.run());
            }
            scope.spawn(|| chaos::run(world, &self.names, &self.product, stream(CHAOS_STREAM)));
            let end = Instant::now() + length;
            while Instant::now() < end {
                let left = end.saturating_duration_since(Instant::now());
                std::thread::sleep(left.min(Duration::from_secs(10)));
                self.print("running", self.product.holding());
            }
            world.set_stopping(true);
        });
        let settled = self.settled(self.base.descriptors).unwrap_or_else(|left| {
            world.violation(&left);
            self.product.holding()
        });
        self.print("settled", settled);
        settled
    }

    fn print(&self, what: &str, holding: Holding) {
        let open: usize = self.world.backends.iter().map(Backend::open_connections).sum();
        println!(
            "{:7.1} s  {what}  {:6} KiB resident, {:3} descriptors, {} threads, {open} connections \
             at backends",
            self.world.began.elapsed().as_secs_f32(),
            holding.resident_kib,
            holding.descriptors,
            holding.threads,
        );
    }

    /// A response that is being sent when the program is told to end reaches its end.
    fn end(&mut self) {
        let world = &self.world;
        self.wait_for_healthy();
        let plan = Plan::simple(world.next_id(), Answer::Dribble, 60);
        let mut client = Client::new(world, self.product.address, 0);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| client.exchange(&plan, Manner::Plain));
            wait_until("the request has reached a backend", || world.deliveries(plan.id) == 1);
            self.product.signal("TERM");
            asking.join().expect("a client does not panic");
        });
        let status = self.product.wait();
        if !status.success() {
            world.violation(&format!("the balancer ended with {status}"));
        }
    }
}

#[test]
fn under_random_faults_every_response_is_right_and_nothing_is_left_behind() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number_from_environment("SOAK_SEED").unwrap_or_else(|| now().as_secs());
    let seconds = number_from_environment("SOAK_SECONDS").unwrap_or(USUAL_SECONDS);
    let phase = (seconds / 6).clamp(*PHASE_SECONDS.start(), *PHASE_SECONDS.end());
    println!("soak of {seconds} s in phases of {phase} s: SOAK_SEED={seed}");
    let timeout = (seconds / 10).clamp(*TIMEOUT_SECONDS.start(), *TIMEOUT_SECONDS.end());
    let timeout = number_from_environment("SOAK_TIMEOUT_SECONDS").unwrap_or(timeout);
    let mut run = Run::start(seed, timeout);
    run.print("idle   ", run.base);
    let mut settled = Vec::new();
    for number in 0..(seconds / phase).max(2) {
        settled.push(run.phase(number, Duration::from_secs(phase)).resident_kib);
    }
    let metrics = run.product.metrics();
    let panics = metrics.sum("stepflow_lb_panics_total", &[]);
    let counters = COUNTERS.map(|name| (name, metrics.sum(&format!("stepflow_lb_{name}"), &[])));
    run.end();

    for (what, count) in run.world.tally() {
        println!("{count:9}  {what}");
    }
    for (name, count) in counters {
        println!("{count:9}  {name}");
    }
    let (first, last) = (settled[0], *settled.last().unwrap());
    println!(
        "resident: {} KiB before, {first} KiB after the first phase, {last} KiB after the last",
        run.base.resident_kib
    );
    let alarming = run.product.with_log(|log| {
        println!("log: {:?} {:#?}", log.lines, log.alarming);
        log.alarming.clone()
    });
    let (violations, shown) = run.world.violations();
    println!("{violations} violations");
    assert!(shown.is_empty(), "SOAK_SEED={seed}: {violations} violations: {shown:#?}");
    assert!(alarming.is_empty(), "SOAK_SEED={seed}: the log says {alarming:#?}");
    assert_eq!(panics, 0, "SOAK_SEED={seed}: connections ended in a panic");
    let growth_max = number_from_environment("SOAK_GROWTH_KIB_MAX").unwrap_or(GROWTH_KIB_MAX);
    let growth = last.saturating_sub(first);
    assert!(
        growth <= growth_max,
        "SOAK_SEED={seed}: {growth} KiB more, phase by phase {settled:?}"
    );
}
