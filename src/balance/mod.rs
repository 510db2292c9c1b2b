//! Pure: pickers. A picker chooses one of several candidates for a request that any of them may
//! serve, and counts the request against it in the same step.
//!
//! Owns the choice and what must be remembered between choices. Does not own who is a candidate,
//! what runs on it, or how long it takes: [`Candidates`] tells.
//!
//! Invariants
//! - Only a candidate that is not excluded is returned; with none, nothing is.
//! - Ties are broken at random: "the first one wins" sends every idle moment to the same backend.
//! - A choice that rests on a load is entered only while that load still stands, so that any number
//!   of workers may choose at the same moment.
//! - A choice costs at most a look at 64 candidates or, for turns, the depth of a heap, however
//!   many there are. Only where most are excluded all may be looked at.

mod draw;
mod fewest;
mod ring;
#[cfg(test)]
mod tests;
mod turns;

use std::{net::SocketAddr, num::NonZeroU32};

use crate::model::{BackendId, Rng};
use draw::Draw;
use fewest::Cost;
use ring::Ring;
use turns::Turns;

/// Choices that may fail because somebody else entered at the same moment, before one is entered
/// whatever the load. Each failure means that another worker, or an exchange that ended, got on, so
/// this is a guard against a run of bad luck and not a limit that is met.
const ATTEMPTS_MAX: u32 = 64;

/// What a picker may know about those it chooses from. Candidates are numbered from 0, in the order
/// in which [`Picker::prepare`] was told of them.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;
    /// Exchanges running on the candidate now, over all workers.
    fn load(&self, candidate: usize) -> u64;
    /// Share of new work at this moment. At least one; only ratios mean anything.
    fn weight(&self, candidate: usize) -> u32;
    /// How long it takes to answer, in microseconds; `None` while nothing was measured.
    fn latency_us(&self, candidate: usize) -> Option<u32>;
    /// Was tried already, or had better be avoided.
    fn is_excluded(&self, candidate: usize) -> bool;
    /// Counts an exchange against the candidate, if the condition holds at that moment. False when
    /// it does not, and nothing was counted.
    fn enter(&self, candidate: usize, condition: Condition) -> bool;
    /// Hears that requests are hashed and this one is not: it has no key, or one that leads to
    /// nobody. What is read from here on is what the choice rests on.
    fn note_keyless(&self) {}
}

/// What must still be true when a choice is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the choice does not rest on the load.
    Any,
    /// Exactly so many exchanges are running: the load that the choice rests on.
    Load(u64),
}

/// A candidate, for as long as the set of them stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who it is over all sets. Members come in rising order of it.
    pub id: BackendId,
    /// Where it is. This is what keys are hashed to: it outlives a restart, and every replica of
    /// the balancer sees the same one.
    pub address: SocketAddr,
    /// Share of new work at this moment, as [`Candidates::weight`] tells it.
    pub weight: u32,
    /// Share of new work when nothing ramps, in whatever unit. What keys are hashed by: a ramp
    /// would move keys twice.
    pub full_weight: u32,
}

/// One of the algorithms, with the state it keeps between picks.
#[derive(Debug)]
pub struct Picker {
    rule: Rule,
    draw: Draw,
}

#[derive(Debug)]
enum Rule {
    Fewest(Cost),
    Turns(Turns),
    Random,
    PowerOfTwo,
    Hash(Box<Ring>),
}

/// A candidate and what must still be true when it is entered.
type Choice = (usize, Condition);

impl Picker {
    /// Fewest running exchanges relative to weight.
    pub fn least_connections() -> Self {
        Self::new(Rule::Fewest(Cost::Load))
    }

    /// Least response time times running exchanges, relative to weight.
    pub fn least_response_time() -> Self {
        Self::new(Rule::Fewest(Cost::LatencyAndLoad))
    }

    /// In turn, as often as the weights say.
    pub fn round_robin() -> Self {
        Self::new(Rule::Turns(Turns::default()))
    }

    /// By chance, as often as the weights say.
    pub fn random() -> Self {
        Self::new(Rule::Random)
    }

    /// The less loaded of two that are drawn by weight.
    pub fn power_of_two() -> Self {
        Self::new(Rule::PowerOfTwo)
    }

    /// Where the key of the request leads; without a key, as least connections. With `balance`, no
    /// candidate gets more than so many percent of its share of what is running; the key then leads
    /// to the next one.
    pub fn consistent_hash(balance: Option<NonZeroU32>) -> Self {
        Self::new(Rule::Hash(Box::new(Ring::new(balance))))
    }

    fn new(rule: Rule) -> Self {
        Self { rule, draw: Draw::default() }
    }

    /// Takes in another set of candidates, or other weights. Must be called before the first pick
    /// and whenever either changes.
    pub fn prepare(&mut self, members: &[Member], rng: &mut Rng) {
        debug_assert!(members.is_sorted_by(|a, b| a.id < b.id), "members out of order");
        match &mut self.rule {
            Rule::Turns(turns) => turns.prepare(members, rng),
            Rule::Hash(ring) => {
                ring.prepare(members);
                self.draw.prepare(members);
            }
            Rule::Fewest(_) | Rule::Random | Rule::PowerOfTwo => self.draw.prepare(members),
        }
    }

    /// Chooses a candidate and enters it. `key` is the hash of what the request is to be hashed on,
    /// if it has that.
    pub fn pick(
        &mut self,
        candidates: &impl Candidates,
        key: Option<u64>,
        rng: &mut Rng,
    ) -> Option<usize> {
        for _ in 0..ATTEMPTS_MAX {
            let (candidate, condition) = self.choose(candidates, key, rng)?;
            if candidates.enter(candidate, condition) {
                return Some(candidate);
            }
        }
        let (candidate, _) = self.choose(candidates, key, rng)?;
        candidates.enter(candidate, Condition::Any).then_some(candidate)
    }

    fn choose(
        &mut self,
        candidates: &impl Candidates,
        key: Option<u64>,
        rng: &mut Rng,
    ) -> Option<Choice> {
        let Self { rule, draw } = self;
        match rule {
            Rule::Fewest(cost) => fewest::choose(candidates, *cost, draw, rng),
            Rule::Turns(turns) => turns.choose(candidates).map(any),
            Rule::Random => draw.one(candidates, None, rng).map(any),
            Rule::PowerOfTwo => fewest::of_two(candidates, Cost::Load, draw, rng)
                .map(|(candidate, _)| any(candidate)),
            Rule::Hash(ring) => key.and_then(|key| ring.choose(candidates, key)).or_else(|| {
                candidates.note_keyless();
                fewest::choose(candidates, Cost::Load, draw, rng)
            }),
        }
    }
}

fn any(candidate: usize) -> Choice {
    (candidate, Condition::Any)
}
