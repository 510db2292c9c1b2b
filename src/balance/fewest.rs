//! Pure: the candidate that costs least.

use std::cmp::Ordering;

use super::{Candidates, Choice, Condition, draw::Draw};
use crate::model::Rng;

/// Up to this many candidates every one is looked at. Beyond, two drawn by weight are compared: the
/// loads are exact either way, a pick stays cheap with 10,000 backends, and the fullest of them
/// stays within a few exchanges of the mean (Mitzenmacher, The Power of Two Choices, 2001).
const SCAN_MAX: usize = 64;

/// What one more exchange on a candidate costs, before its weight divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cost {
    /// Running exchanges, and one for the exchange about to begin: without it, weights would mean
    /// nothing while everybody is idle.
    Load,
    /// The same times the latency.
    LatencyAndLoad,
}

/// A candidate with what was read of it. Loads change under our hands, so each is read once.
#[derive(Clone, Copy)]
struct Offer {
    candidate: usize,
    load: u64,
    cost: u64,
    weight: u32,
}

/// The cheapest of all, or of two if they are many.
pub(super) fn choose(
    candidates: &impl Candidates,
    cost: Cost,
    draw: &Draw,
    rng: &mut Rng,
) -> Option<Choice> {
    if candidates.count() > SCAN_MAX {
        return of_two(candidates, cost, draw, rng);
    }
    let (mut best, mut ties): (Option<Offer>, u64) = (None, 0);
    for candidate in (0..candidates.count()).filter(|c| !candidates.is_excluded(*c)) {
        let offer = Offer::of(candidates, cost, candidate);
        match best.map_or(Ordering::Less, |best| offer.compare(&best)) {
            Ordering::Less => (best, ties) = (Some(offer), 1),
            Ordering::Equal => {
                // Reservoir of one: each of the tied is kept with equal chance.
                ties += 1;
                if rng.below(ties) == 0 {
                    best = Some(offer);
                }
            }
            Ordering::Greater => {}
        }
    }
    best.map(Offer::choice)
}

/// The cheaper of two that are drawn by weight.
pub(super) fn of_two(
    candidates: &impl Candidates,
    cost: Cost,
    draw: &Draw,
    rng: &mut Rng,
) -> Option<Choice> {
    let first = Offer::of(candidates, cost, draw.one(candidates, None, rng)?);
    let Some(second) = draw.one(candidates, Some(first.candidate), rng) else {
        return Some(first.choice());
    };
    let second = Offer::of(candidates, cost, second);
    Some(match first.compare(&second) {
        Ordering::Less => first.choice(),
        Ordering::Greater => second.choice(),
        Ordering::Equal if rng.below(2) == 0 => first.choice(),
        Ordering::Equal => second.choice(),
    })
}

impl Offer {
    fn of(candidates: &impl Candidates, cost: Cost, candidate: usize) -> Self {
        let load = candidates.load(candidate);
        let weight = candidates.weight(candidate);
        let latency_us: u32 = match cost {
            Cost::Load => 1,
            Cost::LatencyAndLoad => match candidates.latency_us(candidate) {
                Some(latency_us) => latency_us,
                // Nobody knows until somebody tries: the first exchange goes there at once, further
                // ones only when that one was answered. As in Finagle.
                None if load == 0 => 0,
                None => u32::MAX,
            },
        };
        // Nobody runs as many exchanges as would make it overflow.
        let cost = load.saturating_add(1).saturating_mul(latency_us.into());
        Self { candidate, load, cost, weight }
    }

    /// Compares `cost / weight` without dividing.
    fn compare(&self, other: &Self) -> Ordering {
        let scaled = |cost: u64, weight: u32| u128::from(cost) * u128::from(weight);
        scaled(self.cost, other.weight).cmp(&scaled(other.cost, self.weight))
    }

    fn choice(self) -> Choice {
        (self.candidate, Condition::Load(self.load))
    }
}
