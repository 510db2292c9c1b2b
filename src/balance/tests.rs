use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    sync::Barrier,
};

use super::*;
use crate::{model::hash_of_key, stats::BackendStats};

/// Seed of every test here. Each claim was tried with a thousand others.
const SEED: u64 = 1;

/// A world of candidates that a test may change between picks.
struct Table {
    loads: RefCell<Vec<u64>>,
    weights: Vec<u32>,
    latencies_us: RefCell<Vec<Option<u32>>>,
    excluded: RefCell<HashSet<usize>>,
    /// Other workers: let so many conditions fail.
    interference: Cell<u32>,
}

impl Table {
    fn new(weights: &[u32]) -> Self {
        Self {
            loads: vec![0; weights.len()].into(),
            weights: weights.to_vec(),
            latencies_us: vec![None; weights.len()].into(),
            excluded: RefCell::default(),
            interference: Cell::new(0),
        }
    }

    fn even(n: usize) -> Self {
        Self::new(&vec![1; n])
    }

    fn loaded(loads: &[u64]) -> Self {
        Self { loads: loads.to_vec().into(), ..Self::even(loads.len()) }
    }

    fn members(&self) -> Vec<Member> {
        let member = |(id, weight): (u64, &u32)| member(id, *weight);
        (1..).zip(&self.weights).map(member).collect()
    }

    fn leave(&self, candidate: usize) {
        self.loads.borrow_mut()[candidate] -= 1;
    }

    fn exclude(&self, candidates: impl IntoIterator<Item = usize>) {
        *self.excluded.borrow_mut() = candidates.into_iter().collect();
    }
}

impl Candidates for Table {
    fn count(&self) -> usize {
        self.weights.len()
    }
    fn load(&self, candidate: usize) -> u64 {
        self.loads.borrow()[candidate]
    }
    fn weight(&self, candidate: usize) -> u32 {
        self.weights[candidate]
    }
    fn latency_us(&self, candidate: usize) -> Option<u32> {
        self.latencies_us.borrow()[candidate]
    }
    fn is_excluded(&self, candidate: usize) -> bool {
        self.excluded.borrow().contains(&candidate)
    }
    fn enter(&self, candidate: usize, condition: Condition) -> bool {
        let load = &mut self.loads.borrow_mut()[candidate];
        match condition {
            Condition::Load(_) if self.interference.get() > 0 => {
                self.interference.set(self.interference.get() - 1);
                return false;
            }
            Condition::Load(seen) => assert_eq!(seen, *load),
            Condition::Any => {}
        }
        *load += 1;
        true
    }
}

fn address(id: u64) -> SocketAddr {
    let [.., a, b] = id.to_be_bytes();
    SocketAddr::from(([10, 1, a, b], 8080))
}

fn member(id: u64, weight: u32) -> Member {
    Member { id: BackendId(id), address: address(id), weight, full_weight: weight }
}

fn prepared(mut picker: Picker, table: &Table) -> Picker {
    picker.prepare(&table.members(), &mut Rng::new(SEED));
    picker
}

fn every_picker() -> Vec<Picker> {
    vec![
        Picker::least_connections(),
        Picker::least_response_time(),
        Picker::round_robin(),
        Picker::random(),
        Picker::power_of_two(),
        Picker::consistent_hash(None),
        Picker::consistent_hash(NonZeroU32::new(125)),
    ]
}

/// How often each candidate is picked for requests that end at once.
fn shares(picker: Picker, table: &Table, picks: usize) -> Vec<usize> {
    let (mut picker, mut rng) = (prepared(picker, table), Rng::new(SEED));
    let mut counts = vec![0; table.count()];
    for _ in 0..picks {
        let key = rng.next_u64();
        let picked = picker.pick(table, Some(key), &mut rng).unwrap();
        table.leave(picked);
        counts[picked] += 1;
    }
    counts
}

/// Chi square against shares by weight, and what it exceeds once in a thousand times (Wilson and
/// Hilferty).
#[track_caller]
fn assert_fits_weights(counts: &[usize], weights: &[u32]) {
    let picks: usize = counts.iter().sum();
    let sum: f64 = weights.iter().copied().map(f64::from).sum();
    let term = |(count, weight): (&usize, &u32)| {
        let expected = picks as f64 * f64::from(*weight) / sum;
        (*count as f64 - expected).powi(2) / expected
    };
    let chi_square: f64 = counts.iter().zip(weights).map(term).sum();
    let freedom = (counts.len() - 1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    let critical = freedom * (1.0 - spread + 3.09 * spread.sqrt()).powi(3);
    assert!(chi_square < critical, "{chi_square} of {critical}: {counts:?}");
}

#[test]
fn no_picker_returns_an_excluded_candidate_or_fails_to_find_the_last_one() {
    let mut rng = Rng::new(SEED);
    for n in [1, 2, 5, 64, 65, 200] {
        let table = Table::even(n);
        for picker in every_picker() {
            let mut picker = prepared(picker, &table);
            for last in 0..n {
                table.exclude((0..n).filter(|c| *c != last));
                for key in [None, Some(rng.next_u64())] {
                    assert_eq!(picker.pick(&table, key, &mut rng), Some(last), "{picker:?}");
                    table.leave(last);
                }
            }
            table.exclude(0..n);
            for key in [None, Some(7)] {
                assert_eq!(picker.pick(&table, key, &mut rng), None, "{n} {picker:?}");
            }
            table.exclude([]);
        }
    }
    for picker in every_picker() {
        let table = Table::even(0);
        assert_eq!(prepared(picker, &table).pick(&table, Some(1), &mut rng), None);
    }
}

#[test]
fn a_pick_is_counted_once_also_when_others_enter_at_the_same_moment() {
    let table = Table::loaded(&[3, 1, 2]);
    let mut picker = prepared(Picker::least_connections(), &table);
    for failures in [0, 1, ATTEMPTS_MAX - 1, ATTEMPTS_MAX] {
        table.interference.set(failures);
        assert_eq!(picker.pick(&table, None, &mut Rng::new(SEED)), Some(1));
        assert_eq!(*table.loads.borrow(), [3, 2, 2]);
        table.leave(1);
    }
}

#[test]
fn nobody_starves_with_any_picker() {
    for (n, picks) in [(3, 600), (100, 20_000)] {
        for picker in every_picker() {
            let table = Table::even(n);
            let counts = shares(picker, &table, picks);
            assert!(counts.iter().all(|count| *count > picks / n / 4), "{n} {counts:?}");
        }
    }
}

// ---- Least connections -------------------------------------------------------------------------

#[test]
fn the_least_loaded_is_picked() {
    let table = Table::loaded(&[3, 1, 0, 2]);
    table.exclude([2]);
    let mut picker = prepared(Picker::least_connections(), &table);
    assert_eq!(picker.pick(&table, None, &mut Rng::new(SEED)), Some(1));
}

#[test]
fn ties_are_shared_evenly() {
    let table = Table::loaded(&[2, 5, 2, 2]);
    let counts = shares(Picker::least_connections(), &table, 30_000);
    assert_eq!(counts[1], 0);
    assert_fits_weights(&[counts[0], counts[2], counts[3]], &[1; 3]);
}

#[test]
fn held_exchanges_spread_in_proportion_to_weight() {
    let table = Table::new(&[1, 2, 3]);
    let mut picker = prepared(Picker::least_connections(), &table);
    let mut rng = Rng::new(SEED);
    for held in 1..=600 {
        picker.pick(&table, None, &mut rng).unwrap();
        for (load, weight) in table.loads.borrow().iter().zip(&table.weights) {
            let share = f64::from(held * weight) / 6.0;
            assert!((*load as f64 - share).abs() <= 1.5, "{load} of {share}");
        }
    }
}

#[test]
fn large_clusters_stay_nearly_even() {
    let table = Table::even(1000);
    let mut picker = prepared(Picker::least_connections(), &table);
    let mut rng = Rng::new(SEED);
    for _ in 0..100_000 {
        picker.pick(&table, None, &mut rng).unwrap();
    }
    let max = table.loads.borrow().iter().max().copied().unwrap();
    // Two choices keep the fullest within ln ln n of the mean; one choice would reach 130.
    assert!(max <= 105, "{max}");
}

/// Backends as several workers share them.
struct Shared<'a> {
    backends: &'a [BackendStats],
    weights: &'a [u32],
}

impl Candidates for Shared<'_> {
    fn count(&self) -> usize {
        self.backends.len()
    }
    fn load(&self, candidate: usize) -> u64 {
        let load = self.backends[candidate].in_flight();
        // As if the worker lost its CPU between looking and choosing, which is when errors happen.
        std::thread::yield_now();
        load
    }
    fn weight(&self, candidate: usize) -> u32 {
        self.weights[candidate]
    }
    fn latency_us(&self, _: usize) -> Option<u32> {
        None
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

/// Four threads pick 1,000 times in all, `rounds` times.
fn picked_by_four_threads(weights: &[u32], rounds: u64, check: impl Fn(&[u64])) {
    for round in 0..rounds {
        let backends: Vec<_> = weights.iter().map(|_| BackendStats::new(0)).collect();
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (backends, barrier) = (backends.as_slice(), &barrier);
                scope.spawn(move || {
                    let mut picker = Picker::least_connections();
                    let mut rng = Rng::new(round * 4 + worker);
                    let world = Shared { backends, weights };
                    let members = (1..).zip(weights).map(|(id, weight)| member(id, *weight));
                    picker.prepare(&members.collect::<Vec<_>>(), &mut rng);
                    barrier.wait();
                    // Unequal workers: 100, 200, 300 and 400.
                    for _ in 0..100 * (worker + 1) {
                        picker.pick(&world, None, &mut rng).unwrap();
                    }
                });
            }
        });
        check(&backends.iter().map(BackendStats::in_flight).collect::<Vec<_>>());
    }
}

#[test]
fn four_workers_that_pick_at_once_differ_by_at_most_one_between_backends() {
    picked_by_four_threads(&[1; 5], 20, |loads| assert_eq!(loads, [200; 5]));
    picked_by_four_threads(&[1; 7], 20, |loads| {
        let (min, max) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
        assert!(max - min <= 1 && loads.iter().sum::<u64>() == 1000, "{loads:?}");
    });
}

#[test]
fn four_workers_that_pick_at_once_keep_weights_exactly() {
    let weights = [1, 2, 3, 4];
    picked_by_four_threads(&weights, 20, |loads| assert_eq!(loads, [100, 200, 300, 400]));
}

// ---- Least response time -----------------------------------------------------------------------

#[test]
fn who_answers_faster_holds_more_in_proportion() {
    let table = Table::even(3);
    *table.latencies_us.borrow_mut() = vec![Some(10_000), Some(20_000), Some(40_000)];
    let mut picker = prepared(Picker::least_response_time(), &table);
    let mut rng = Rng::new(SEED);
    for _ in 0..700 {
        picker.pick(&table, None, &mut rng).unwrap();
    }
    // Latency times load is equal where loads are as 4 : 2 : 1.
    let loads = table.loads.borrow();
    assert!(loads[0].abs_diff(400) <= 2 && loads[2].abs_diff(100) <= 2, "{loads:?}");
}

#[test]
fn who_was_never_measured_gets_one_exchange_and_no_second_before_it_is() {
    let table = Table::even(3);
    *table.latencies_us.borrow_mut() = vec![Some(1), None, Some(1)];
    let mut picker = prepared(Picker::least_response_time(), &table);
    let mut rng = Rng::new(SEED);
    assert_eq!(picker.pick(&table, None, &mut rng), Some(1));
    for _ in 0..1000 {
        assert_ne!(picker.pick(&table, None, &mut rng), Some(1));
    }
    table.latencies_us.borrow_mut()[1] = Some(1);
    assert_eq!(picker.pick(&table, None, &mut rng), Some(1));
}

#[test]
fn where_nobody_was_measured_it_is_least_connections() {
    let table = Table::even(5);
    let mut picker = prepared(Picker::least_response_time(), &table);
    let mut rng = Rng::new(SEED);
    for _ in 0..500 {
        picker.pick(&table, None, &mut rng).unwrap();
    }
    assert_eq!(*table.loads.borrow(), [100; 5]);
}

// ---- Round robin -------------------------------------------------------------------------------

#[test]
fn equal_weights_take_turns() {
    let table = Table::even(7);
    let mut picker = prepared(Picker::round_robin(), &table);
    let mut round = || -> Vec<usize> {
        (0..7).map(|_| picker.pick(&table, None, &mut Rng::new(0)).unwrap()).collect()
    };
    let first = round();
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), 7);
    for _ in 0..1000 {
        assert_eq!(round(), first);
    }
}

#[test]
fn workers_begin_their_rounds_with_different_backends() {
    let table = Table::even(10);
    let mut counts = [0; 10];
    for worker in 0..5000 {
        let mut picker = Picker::round_robin();
        picker.prepare(&table.members(), &mut Rng::new(worker));
        counts[picker.pick(&table, None, &mut Rng::new(0)).unwrap()] += 1;
    }
    assert_fits_weights(&counts, &[1; 10]);
}

#[test]
fn at_any_moment_everybody_has_had_its_share_of_turns() {
    let cases: [&[u32]; 6] =
        [&[5, 1, 1], &[1, 2, 3], &[1, 1, 1, 97], &[7, 7, 7], &[65_535, 1, 300], &[2560, 256, 26]];
    for weights in cases {
        let table = Table::new(weights);
        let mut picker = prepared(Picker::round_robin(), &table);
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        let mut counts = vec![0.0; weights.len()];
        for picks in 1..=20_000 {
            counts[picker.pick(&table, None, &mut Rng::new(0)).unwrap()] += 1.0;
            for (count, weight) in counts.iter().zip(weights) {
                let due = f64::from(picks) * f64::from(*weight) / sum;
                let off: f64 = count - due;
                assert!(off.abs() < 2.0, "{weights:?}: {count} of {due} after {picks}");
            }
        }
    }
}

#[test]
fn who_was_excluded_gets_no_burst_when_it_is_back() {
    let table = Table::even(4);
    let mut picker = prepared(Picker::round_robin(), &table);
    let mut rng = Rng::new(SEED);
    table.exclude([2]);
    for _ in 0..1000 {
        picker.pick(&table, None, &mut rng).unwrap();
    }
    table.exclude([]);
    let mut last = None;
    for _ in 0..100 {
        let picked = picker.pick(&table, None, &mut rng);
        assert_ne!(picked, last);
        last = picked;
    }
    let loads = table.loads.borrow();
    assert!((24..=26).contains(&loads[2]), "{loads:?}");
}

#[test]
fn rounds_go_on_through_changes_of_the_set() {
    let table = Table::even(5);
    let mut picker = prepared(Picker::round_robin(), &table);
    let mut rng = Rng::new(SEED);
    // Each pick is followed by a change: numbers 1 to 4 stay, the fifth is always another.
    for round in 0..1000 {
        picker.pick(&table, None, &mut rng).unwrap();
        let mut members = table.members();
        members[4] = member(100 + round, 1);
        picker.prepare(&members, &mut rng);
    }
    let loads = table.loads.borrow();
    assert!(loads[..4].iter().all(|load| load.abs_diff(loads[0]) <= 1), "{loads:?}");
}

// ---- Random and power of two -------------------------------------------------------------------

#[test]
fn chance_is_fair_and_follows_weights() {
    for weights in [vec![1; 3], vec![1; 100], vec![1, 2, 3, 10], vec![300, 1, 1]] {
        let counts = shares(Picker::random(), &Table::new(&weights), 100_000);
        assert_fits_weights(&counts, &weights);
    }
}

#[test]
fn chance_follows_weights_also_where_most_are_excluded() {
    let weights: Vec<u32> = (0..200).map(|i| 1 + i % 3).collect();
    let table = Table::new(&weights);
    table.exclude(3..200);
    let counts = shares(Picker::random(), &table, 30_000);
    assert_fits_weights(&counts[..3], &[1, 2, 3]);
}

#[test]
fn the_better_of_two_is_fair_and_keeps_loads_close() {
    let counts = shares(Picker::power_of_two(), &Table::even(20), 100_000);
    assert_fits_weights(&counts, &[1; 20]);
    for weights in [vec![1; 200], (0..200).map(|i| 1 + i % 3).collect()] {
        let table = Table::new(&weights);
        let mut picker = prepared(Picker::power_of_two(), &table);
        let mut rng = Rng::new(SEED);
        let picks = 100 * weights.iter().sum::<u32>();
        for _ in 0..picks {
            picker.pick(&table, None, &mut rng).unwrap();
        }
        for (load, weight) in table.loads.borrow().iter().zip(&weights) {
            let per_weight = *load as f64 / f64::from(*weight);
            assert!((90.0..106.0).contains(&per_weight), "{load} at weight {weight}");
        }
    }
}

// ---- Consistent hashing ------------------------------------------------------------------------

/// Where keys 0 to `keys` lead, as addresses.
fn homes(picker: &mut Picker, members: &[Member], keys: u64) -> Vec<SocketAddr> {
    let table = Table::new(&members.iter().map(|member| member.weight).collect::<Vec<_>>());
    picker.prepare(members, &mut Rng::new(SEED));
    let mut home = |key: u64| {
        let key = hash_of_key(&key.to_be_bytes());
        let picked = picker.pick(&table, Some(key), &mut Rng::new(SEED)).unwrap();
        table.leave(picked);
        members[picked].address
    };
    (0..keys).map(&mut home).collect()
}

fn homes_anew(members: &[Member], keys: u64) -> Vec<SocketAddr> {
    homes(&mut Picker::consistent_hash(None), members, keys)
}

#[test]
fn keys_spread_evenly_over_addresses() {
    for (n, low, high) in [(3, 0.85, 1.15), (10, 0.85, 1.15), (100, 0.75, 1.25)] {
        let members: Vec<_> = (1..=n).map(|id| member(id, 1)).collect();
        let homes = homes_anew(&members, 100_000);
        let mean = 100_000.0 / n as f64;
        for member in &members {
            let keys = homes.iter().filter(|home| **home == member.address).count() as f64;
            assert!((low * mean..high * mean).contains(&keys), "{keys} of {mean}");
        }
    }
}

#[test]
fn keys_follow_weights() {
    let heavy_among_many: Vec<u32> = [100].into_iter().chain([1; 99]).collect();
    for weights in [&[1, 2, 3, 10], &[256, 512, 256, 25_600], heavy_among_many.as_slice()] {
        let members: Vec<_> = (1..).zip(weights).map(|(id, weight)| member(id, *weight)).collect();
        let homes = homes_anew(&members, 100_000);
        let sum: u32 = weights.iter().sum();
        for member in &members {
            let keys = homes.iter().filter(|home| **home == member.address).count() as f64;
            let share = keys / 100_000.0 * f64::from(sum) / f64::from(member.full_weight);
            assert!((0.7..1.3).contains(&share), "{share} at weight {}", member.full_weight);
        }
    }
}

#[test]
fn who_leaves_moves_its_own_keys_and_no_others() {
    for n in [3, 10, 100] {
        let all: Vec<_> = (1..=n).map(|id| member(id, 1 + (id % 3) as u32)).collect();
        let before = homes_anew(&all, 20_000);
        for leaver in [0, all.len() / 2, all.len() - 1] {
            let mut left = all.clone();
            let gone = left.remove(leaver).address;
            let after = homes_anew(&left, 20_000);
            let mut moved = 0;
            for (before, after) in before.iter().zip(&after) {
                match *before == gone {
                    true => moved += 1,
                    false => assert_eq!(before, after, "a key moved that had no reason to"),
                }
            }
            // What it had, spread over the others: not one key more, and about its share.
            let share = 20_000.0 * f64::from(all[leaver].weight)
                / f64::from(all.iter().map(|member| member.weight).sum::<u32>());
            assert!(f64::from(moved) < 1.5 * share, "{moved} of {share} with {n}");
        }
    }
}

#[test]
fn who_joins_takes_its_share_and_moves_no_other_key() {
    for n in [3, 10, 100] {
        let before: Vec<_> = (1..=n).map(|id| member(id, 1)).collect();
        let mut after = before.clone();
        let joined = member(n + 1, 1);
        after.push(joined);
        let (before, after) = (homes_anew(&before, 20_000), homes_anew(&after, 20_000));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        let moved: Vec<_> = moved.map(|(_, after)| *after).collect();
        assert!(moved.iter().all(|home| *home == joined.address));
        let (moved, share) = (moved.len() as u64, 20_000 / (n + 1));
        assert!((share / 2..share * 3 / 2).contains(&moved), "{moved} of {share}");
    }
}

#[test]
fn replicas_agree_whatever_they_have_been_through() {
    let mut rng = Rng::new(SEED);
    let mut picker = Picker::consistent_hash(None);
    for _ in 0..100 {
        let mut ids: Vec<u64> = (1..=20).filter(|_| rng.below(3) > 0).collect();
        ids.push(21);
        let members: Vec<_> = ids.iter().map(|id| member(*id, 1 + (*id % 2) as u32)).collect();
        // The other replica met the same backends in the opposite order.
        let reversed = |(id, member): (u64, &Member)| Member { id: BackendId(id), ..*member };
        let other: Vec<_> = (1..).zip(members.iter().rev()).map(reversed).collect();
        let here = homes(&mut picker, &members, 200);
        assert_eq!(here, homes_anew(&other, 200));
    }
}

#[test]
fn keys_lead_where_they_led_in_every_version() {
    let members: Vec<_> = (1..=5).map(|id| member(id, 1)).collect();
    let homes = homes_anew(&members, 20);
    let homes: Vec<u8> = homes
        .iter()
        .map(|home| match home {
            SocketAddr::V4(home) => home.ip().octets()[3],
            SocketAddr::V6(_) => 0,
        })
        .collect();
    assert_eq!(homes, [1, 3, 5, 3, 5, 4, 5, 1, 5, 4, 1, 1, 3, 4, 5, 1, 5, 5, 2, 3]);
}

#[test]
fn a_ramp_moves_no_key() {
    let full: Vec<_> = (1..=5).map(|id| member(id, 256)).collect();
    let ramping: Vec<_> = full.iter().map(|m| Member { weight: 26, ..*m }).collect();
    assert_eq!(homes_anew(&full, 500), homes_anew(&ramping, 500));
}

#[test]
fn a_key_whose_home_is_excluded_has_one_next_home() {
    let table = Table::even(10);
    let mut picker = prepared(Picker::consistent_hash(None), &table);
    let mut rng = Rng::new(SEED);
    for key in 0..200 {
        let key = Some(hash_of_key(&u64::to_be_bytes(key)));
        table.exclude([]);
        let home = picker.pick(&table, key, &mut rng).unwrap();
        table.exclude([home]);
        let next = picker.pick(&table, key, &mut rng).unwrap();
        assert!((0..5).all(|_| picker.pick(&table, key, &mut rng) == Some(next)));
        // The home of the key where the excluded one does not exist.
        let mut others = table.members();
        let others_home = others.remove(home).id;
        let mut without = Picker::consistent_hash(None);
        without.prepare(&others, &mut rng);
        let smaller = Table::even(9);
        let there = without.pick(&smaller, key, &mut rng).unwrap();
        assert_eq!(others[there].id, table.members()[next].id, "without {others_home:?}");
    }
}

#[test]
fn without_a_key_the_least_loaded_is_picked() {
    let table = Table::loaded(&[3, 1, 2]);
    let mut picker = prepared(Picker::consistent_hash(None), &table);
    assert_eq!(picker.pick(&table, None, &mut Rng::new(SEED)), Some(1));
}

#[test]
fn a_bounded_load_is_never_exceeded() {
    for (percent, weights) in
        [(125, vec![1; 5]), (110, vec![1; 40]), (150, vec![1, 2, 3]), (100, vec![1; 7])]
    {
        let table = Table::new(&weights);
        let picker = Picker::consistent_hash(NonZeroU32::new(percent));
        let mut picker = prepared(picker, &table);
        let mut rng = Rng::new(SEED);
        let sum: u64 = weights.iter().copied().map(u64::from).sum();
        let mut held = Vec::new();
        for step in 0..20_000_u64 {
            // Ends come in bunches, or the set would never get uneven.
            if !held.is_empty() && step / 100 % 3 == 2 {
                let at = usize::try_from(rng.below(held.len() as u64)).unwrap();
                table.leave(held.swap_remove(at));
                continue;
            }
            // Half of all requests have the same key.
            let key = rng.below(2) * rng.next_u64();
            let picked = picker.pick(&table, Some(key), &mut rng).unwrap();
            held.push(picked);
            let share = u64::from(percent) * held.len() as u64 * u64::from(weights[picked]);
            let most = share.div_ceil(100 * sum);
            let load = table.load(picked);
            assert!(load <= most, "{load} of {most} at step {step}");
        }
    }
}

#[test]
fn a_bound_holds_nearly_where_loads_are_summed_up_in_parts() {
    let table = Table::even(1000);
    let mut picker = prepared(Picker::consistent_hash(NonZeroU32::new(125)), &table);
    let mut rng = Rng::new(SEED);
    for _ in 0..50_000 {
        let key = rng.below(2) * rng.next_u64();
        picker.pick(&table, Some(key), &mut rng).unwrap();
    }
    let max = table.loads.borrow().iter().max().copied().unwrap();
    assert!(max <= 64, "{max} of 50 on average");
}
