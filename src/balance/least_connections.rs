//! Pure: fewest running exchanges relative to weight.

use std::cmp::Ordering;

use super::Candidates;
use crate::model::Rng;

/// Up to this many candidates every one is looked at. Beyond, two drawn at random are compared:
/// the sums are exact either way, and a pick stays cheap with 10,000 backends.
const SCAN_MAX: usize = 64;

/// Draws that may hit an excluded candidate before all are looked at after all.
const DRAWS_MAX: usize = 8;

pub(super) fn pick(candidates: &impl Candidates, rng: &mut Rng) -> Option<usize> {
    if candidates.count() > SCAN_MAX
        && let (Some(a), Some(b)) = (draw(candidates, rng), draw(candidates, rng))
    {
        return Some(lighter(candidates, rng, a, b));
    }
    let mut ties = 0;
    let mut best = None;
    for candidate in (0..candidates.count()).filter(|c| !candidates.is_excluded(*c)) {
        let order = best.map_or(Ordering::Less, |leader| compare(candidates, candidate, leader));
        match order {
            Ordering::Less => (best, ties) = (Some(candidate), 1),
            Ordering::Equal => {
                // Reservoir of one: each of the tied is kept with equal chance.
                ties += 1;
                if rng.below(ties) == 0 {
                    best = Some(candidate);
                }
            }
            Ordering::Greater => {}
        }
    }
    best
}

fn draw(candidates: &impl Candidates, rng: &mut Rng) -> Option<usize> {
    let count = candidates.count() as u64;
    (0..DRAWS_MAX)
        .map(|_| usize::try_from(rng.below(count)).unwrap_or(0))
        .find(|candidate| !candidates.is_excluded(*candidate))
}

fn lighter(candidates: &impl Candidates, rng: &mut Rng, a: usize, b: usize) -> usize {
    match compare(candidates, a, b) {
        Ordering::Less => a,
        Ordering::Greater => b,
        Ordering::Equal if rng.below(2) == 0 => a,
        Ordering::Equal => b,
    }
}

/// Compares `(load + 1) / weight` without dividing. The one is the exchange about to begin; without
/// it, weights would mean nothing while everybody is idle.
fn compare(candidates: &impl Candidates, a: usize, b: usize) -> Ordering {
    let cost = |this: usize, other: usize| {
        (u128::from(candidates.load(this)) + 1) * u128::from(candidates.weight(other))
    };
    cost(a, b).cmp(&cost(b, a))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Table, *};

    #[test]
    fn the_least_loaded_is_picked() {
        let table = Table(vec![(3, 1, false), (1, 1, false), (0, 1, true), (2, 1, false)]);
        assert_eq!(pick(&table, &mut Rng::new(1)), Some(1));
    }

    #[test]
    fn ties_are_shared_evenly() {
        let table = Table(vec![(2, 1, false), (5, 1, false), (2, 1, false), (2, 1, false)]);
        let (mut rng, mut counts) = (Rng::new(1), [0; 4]);
        for _ in 0..30_000 {
            counts[pick(&table, &mut rng).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!([0, 2, 3].iter().all(|i| (9_500..10_500).contains(&counts[*i])), "{counts:?}");
    }

    #[test]
    fn held_exchanges_spread_in_proportion_to_weight() {
        let mut table = Table(vec![(0, 1, false), (0, 2, false), (0, 3, false)]);
        let mut rng = Rng::new(1);
        for _ in 0..600 {
            let picked = pick(&table, &mut rng).unwrap();
            table.0[picked].0 += 1;
        }
        let loads: Vec<u64> = table.0.iter().map(|row| row.0).collect();
        assert!((99..=101).contains(&loads[0]) && (299..=301).contains(&loads[2]), "{loads:?}");
    }

    #[test]
    fn large_clusters_stay_nearly_even() {
        let mut table = Table(vec![(0, 1, false); 1000]);
        let mut rng = Rng::new(1);
        for _ in 0..100_000 {
            let picked = pick(&table, &mut rng).unwrap();
            table.0[picked].0 += 1;
        }
        let max = table.0.iter().map(|row| row.0).max().unwrap();
        // Two choices keep the fullest within ln ln n of the mean; one choice would reach 130.
        assert!(max <= 105, "{max}");
    }
}
