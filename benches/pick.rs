//! What a choice costs: nanoseconds and, under callgrind, instructions per pick; and what it costs
//! to take in another set of backends. `docs/BALANCING.md` holds a table of its figures.
//!
//! `cargo bench --bench pick` prints the nanoseconds. For instructions a run does nothing but
//! picks: `pick PICKER BACKENDS PICKS`; the difference of two runs that differ in PICKS leaves out
//! all the rest. `scripts/pick-instructions.sh` does that.

#![allow(clippy::unwrap_used, reason = "a bench that cannot set up its world has failed")]
#![allow(clippy::print_stdout, reason = "its output is what it is for")]
#![allow(clippy::disallowed_methods, reason = "a bench reads the clock")]

use std::{
    hint::black_box,
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use stepflow_load_balancer::{
    balance::{Candidates, Condition, Member, Picker},
    model::{BackendId, Rng},
    stats::{BackendStats, Sample},
};

const SIZES: [usize; 3] = [3, 100, 10_000];

/// Each measurement goes on for so long.
const PATIENCE: Duration = Duration::from_millis(300);

const HALF_LIFE_TICKS: NonZeroU32 = NonZeroU32::new(100).unwrap();

/// Backends as a worker's table shows them to a picker.
struct World {
    backends: Vec<Arc<BackendStats>>,
    weights: Vec<u32>,
}

impl Candidates for World {
    fn count(&self) -> usize {
        self.backends.len()
    }
    fn load(&self, candidate: usize) -> u64 {
        self.backends[candidate].in_flight()
    }
    fn weight(&self, candidate: usize) -> u32 {
        self.weights[candidate]
    }
    fn latency_us(&self, candidate: usize) -> Option<u32> {
        self.backends[candidate].latency().average_us(3, HALF_LIFE_TICKS)
    }
    fn is_excluded(&self, _: usize) -> bool {
        false
    }
    fn enter(&self, candidate: usize, condition: Condition) -> bool {
        match condition {
            Condition::Any => {
                self.backends[candidate].enter();
                true
            }
            Condition::Load(seen) => self.backends[candidate].enter_if(seen),
        }
    }
}

impl World {
    /// Some load everywhere, and answers that take some time.
    fn new(n: usize, is_weighted: bool) -> Self {
        let mut rng = Rng::new(1);
        let weight =
            |i: usize| if is_weighted { 256 * (1 + u32::try_from(i % 5).unwrap()) } else { 256 };
        let backend = |_| {
            let stats = BackendStats::new(0);
            (0..rng.below(20)).for_each(|_| stats.enter());
            let took = Duration::from_micros(1000 + rng.below(9000));
            stats.latency().observe(Sample::Served, took, 1, HALF_LIFE_TICKS);
            Arc::new(stats)
        };
        Self { backends: (0..n).map(backend).collect(), weights: (0..n).map(weight).collect() }
    }

    fn members(&self) -> Vec<Member> {
        let member = |(id, weight): (u64, &u32)| {
            let [.., a, b] = id.to_be_bytes();
            let address = SocketAddr::from(([10, 1, a, b], 80));
            Member { id: BackendId(id), address, weight: *weight, full_weight: *weight }
        };
        (1..).zip(&self.weights).map(member).collect()
    }
}

fn pickers() -> Vec<(&'static str, Picker)> {
    vec![
        ("least_connections", Picker::least_connections()),
        ("round_robin", Picker::round_robin()),
        ("least_response_time", Picker::least_response_time()),
        ("random", Picker::random()),
        ("power_of_two", Picker::power_of_two()),
        ("consistent_hash", Picker::consistent_hash(None)),
        ("consistent_hash_bounded", Picker::consistent_hash(NonZeroU32::new(125))),
    ]
}

/// Picks and ends what was picked.
fn pick(picker: &mut Picker, world: &World, picks: u64, rng: &mut Rng) {
    for _ in 0..picks {
        let key = Some(rng.next_u64());
        let picked = picker.pick(world, key, rng).unwrap();
        world.backends[black_box(picked)].leave();
    }
}

fn ns_per_pick(mut picker: Picker, world: &World) -> f64 {
    let mut rng = Rng::new(2);
    picker.prepare(&world.members(), &mut rng);
    pick(&mut picker, world, 10_000, &mut rng);
    // The best of several: whatever disturbs only makes it slower.
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < PATIENCE {
        let began = Instant::now();
        pick(&mut picker, world, 1000, &mut rng);
        best = best.min(began.elapsed().as_nanos() as f64 / 1000.0);
    }
    best
}

/// Microseconds for a whole set that is new, and for the same set without its last member.
fn us_to_prepare(mut picker: Picker, world: &World) -> (f64, f64) {
    let mut rng = Rng::new(3);
    let members = world.members();
    let began = Instant::now();
    picker.prepare(black_box(&members), &mut rng);
    let anew = began.elapsed();
    let began = Instant::now();
    let mut best = Duration::MAX;
    while began.elapsed() < PATIENCE {
        let began = Instant::now();
        picker.prepare(black_box(&members[..members.len() - 1]), &mut rng);
        best = best.min(began.elapsed());
        picker.prepare(black_box(&members), &mut rng);
    }
    (anew.as_nanos() as f64 / 1000.0, best.as_nanos() as f64 / 1000.0)
}

fn main() {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    if let [name, n, picks] = words.as_slice() {
        let world = World::new(n.parse().unwrap(), false);
        let found = pickers().into_iter().find(|(known, _)| known == name);
        let (_, mut picker) = found.expect("the name of a picker");
        let mut rng = Rng::new(2);
        picker.prepare(&world.members(), &mut rng);
        pick(&mut picker, &world, picks.parse().unwrap(), &mut rng);
        return;
    }
    println!("ns per pick, the end of the exchange included; weights equal | 1 to 5");
    for (name, _) in pickers() {
        print!("{name:24}");
        for n in SIZES {
            let fresh = || pickers().into_iter().find(|(known, _)| *known == name).unwrap().1;
            let even = ns_per_pick(fresh(), &World::new(n, false));
            let weighted = ns_per_pick(fresh(), &World::new(n, true));
            print!("  {n:6}: {even:7.1} | {weighted:7.1}");
        }
        println!();
    }
    println!("µs to take in a set: all new | one less");
    for (name, _) in pickers() {
        print!("{name:24}");
        for n in SIZES {
            let fresh = pickers().into_iter().find(|(known, _)| *known == name).unwrap().1;
            let (anew, less) = us_to_prepare(fresh, &World::new(n, false));
            print!("  {n:6}: {anew:8.1} | {less:8.1}");
        }
        println!();
    }
}
