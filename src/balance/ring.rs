//! Pure: from a key to a candidate, so that few keys move when candidates come and go.
//!
//! Multi-probe consistent hashing (Appleton and O'Reilly, 2015), extended by weights. Every
//! candidate has [`POINTS`] points on a ring, which follow from its address alone. A key is tried
//! at [`PROBES`] places of the ring, which follow from the key alone. The candidate that has a
//! point at the shortest way behind one of these places, divided by its weight, has the key.
//!
//! That way does not depend on anybody else: when a candidate leaves only its keys move, and when
//! one joins keys move only to it. Weights are kept as closely as keys are spread. A plain ring
//! promises the same, but needs hundreds of points per candidate to be as even; a Maglev table is
//! more even, but moves keys that need not move, and must be filled anew at each change (ADR 24).
//!
//! Invariants
//! - The points are sorted, and are those of the candidates.
//! - Where a key leads depends on addresses and full weights only: not on the process, its history,
//!   the order of candidates or the version of the program.

use std::num::NonZeroU32;

use super::{Candidates, Choice, Condition, Member};
use crate::model::{BackendId, Rng, hash_of_address};

/// Points of a candidate. More are more even; 10,000 candidates have 160,000 in 2.5 MB.
const POINTS: usize = 16;

/// Places where a key is tried. More are more even and cost time in each pick.
const PROBES: usize = 24;

/// Points that are passed from one place because their candidates are excluded or full. Where so
/// many are, the least loaded is found better without the ring.
const PASSED_MAX: usize = 64;

/// Loads that are read per pick to know their sum.
const SUMMED_MAX: usize = 64;

/// The points, and who they lead to.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<Point>,
    /// For equal sections of the ring, the first point in or behind each.
    sections: Vec<u32>,
    /// Bits by which a place is shifted to find its section.
    section_shift: u32,
    seats: Vec<Seat>,
    free: Vec<u32>,
    /// Seats of the candidates, in their order.
    seated: Vec<u32>,
    weights: Weights,
    /// That of the heaviest.
    inverse_weight_min: u64,
    bound: Option<Bound>,
}

/// Equal weights, which are most common, spare half of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    Equal,
    Different,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    place: u64,
    seat: u32,
}

/// A number that stays with a candidate while its place in the order of candidates changes.
#[derive(Clone, Copy, Debug)]
struct Seat {
    id: BackendId,
    candidate: u32,
    /// 2^32 divided by the weight.
    inverse_weight: u64,
    is_taken: bool,
}

/// What keeps popular keys from filling a candidate (Mirrokni, Thorup, Zadimoghaddam: Consistent
/// Hashing with Bounded Loads, 2018).
#[derive(Debug)]
struct Bound {
    percent: NonZeroU32,
    /// Full weights of the candidates, and their sum.
    weights: Vec<u32>,
    weights_sum: u64,
    /// Loads as they were read last, and their sum.
    loads: Vec<u64>,
    sum: u64,
    next: usize,
}

impl Ring {
    pub(super) fn new(balance: Option<NonZeroU32>) -> Self {
        let bound = balance.map(|percent| Bound {
            percent,
            weights: Vec::new(),
            weights_sum: 0,
            loads: Vec::new(),
            sum: 0,
            next: 0,
        });
        Self {
            points: Vec::new(),
            sections: Vec::new(),
            section_shift: 0,
            seats: Vec::new(),
            free: Vec::new(),
            seated: Vec::new(),
            weights: Weights::Equal,
            inverse_weight_min: 0,
            bound,
        }
    }

    /// Takes points of those who left out and merges those of newcomers in. Linear in the number of
    /// points, without sorting those that stay.
    pub(super) fn prepare(&mut self, members: &[Member]) {
        let known = std::mem::take(&mut self.seated);
        let mut known = known.into_iter().peekable();
        let (mut has_left, mut arrived) = (false, Vec::new());
        let mut leave = |seats: &mut Vec<Seat>, seat: u32| {
            seats[seat as usize].is_taken = false;
            has_left = true;
        };
        for (candidate, member) in (0..).zip(members) {
            while let Some(seat) = known.next_if(|s| self.seats[*s as usize].id < member.id) {
                leave(&mut self.seats, seat);
            }
            let seat = known.next_if(|s| self.seats[*s as usize].id == member.id);
            let seat = seat.unwrap_or_else(|| {
                let seat = self.free.pop().unwrap_or_else(|| {
                    let seat = Seat::of(member, candidate);
                    self.seats.push(seat);
                    u32::try_from(self.seats.len() - 1).unwrap_or(u32::MAX)
                });
                let mut places = Rng::new(hash_of_address(member.address));
                arrived.extend((0..POINTS).map(|_| Point { place: places.next_u64(), seat }));
                seat
            });
            self.seats[seat as usize] = Seat::of(member, candidate);
            self.seated.push(seat);
        }
        for seat in known {
            leave(&mut self.seats, seat);
        }
        if has_left {
            // Before anybody new gets a seat that was left: `free` is filled only below.
            let seats = &self.seats;
            self.points.retain(|point| seats[point.seat as usize].is_taken);
            let is_free = |seat: &u32| !self.seats[*seat as usize].is_taken;
            let count = u32::try_from(self.seats.len()).unwrap_or(u32::MAX);
            self.free = (0..count).filter(is_free).collect();
        }
        let has_arrived = !arrived.is_empty();
        if has_arrived {
            self.merge(arrived);
        }
        if has_left || has_arrived {
            self.divide();
        }
        let are_equal = members.windows(2).all(|pair| pair[0].full_weight == pair[1].full_weight);
        self.weights = if are_equal { Weights::Equal } else { Weights::Different };
        let inverse_weights = self.seated.iter().map(|s| self.seats[*s as usize].inverse_weight);
        self.inverse_weight_min = inverse_weights.min().unwrap_or(0);
        if let Some(bound) = &mut self.bound {
            bound.weights = members.iter().map(|member| member.full_weight).collect();
            bound.weights_sum = bound.weights.iter().map(|weight| u64::from(*weight)).sum();
            bound.loads.clear();
            bound.sum = 0;
            bound.next = 0;
        }
    }

    fn merge(&mut self, mut arrived: Vec<Point>) {
        arrived.sort_unstable_by_key(|point| point.place);
        let stayed = std::mem::take(&mut self.points);
        self.points.reserve_exact(stayed.len() + arrived.len());
        let mut arrived = arrived.into_iter().peekable();
        for point in stayed {
            while let Some(earlier) = arrived.next_if(|p| p.place < point.place) {
                self.points.push(earlier);
            }
            self.points.push(point);
        }
        self.points.extend(arrived);
    }

    /// About one section per point: a place is then one lookup away from its point.
    fn divide(&mut self) {
        let bits = self.points.len().next_power_of_two().trailing_zeros().max(1);
        self.section_shift = u64::BITS - bits;
        self.sections.clear();
        let mut index = 0;
        for section in 0..1_u64 << bits {
            let begins = section << self.section_shift;
            while self.points.get(index).is_some_and(|point| point.place < begins) {
                index += 1;
            }
            self.sections.push(u32::try_from(index).unwrap_or(u32::MAX));
        }
    }

    /// Where the key leads. `None` where too many are excluded or full to tell.
    pub(super) fn choose(&mut self, candidates: &impl Candidates, key: u64) -> Option<Choice> {
        if let Some(bound) = &mut self.bound {
            bound.sum_up(candidates);
        }
        let room = |candidate: usize, load: u64| match &self.bound {
            Some(bound) => load < bound.most(candidate),
            None => true,
        };
        let choice = |candidate: usize| {
            if candidates.is_excluded(candidate) {
                return None;
            }
            if self.bound.is_none() {
                return Some((candidate, Condition::Any));
            }
            let load = candidates.load(candidate);
            room(candidate, load).then_some((candidate, Condition::Load(load)))
        };
        // Mostly the first answer stands, and nobody else needs to be looked at.
        let first = self.nearest(key, |_| true)?;
        choice(first).or_else(|| {
            let next = self.nearest(key, |candidate| choice(candidate).is_some())?;
            choice(next)
        })
    }

    /// The candidate with the shortest way from any place of the key, among those that will do.
    fn nearest(&self, key: u64, will_do: impl Fn(usize) -> bool) -> Option<usize> {
        let will_do = |point: &&Point| will_do(self.seats[point.seat as usize].candidate as usize);
        let mut best: Option<(u64, u32)> = None;
        let mut note = |place: u64, point: &Point| {
            let seat = &self.seats[point.seat as usize];
            let way = weighted(point.place.wrapping_sub(place), seat.inverse_weight);
            if best.is_none_or(|(shortest, _)| way < shortest) {
                best = Some((way, seat.candidate));
            }
            best.map_or(u64::MAX, |(shortest, _)| shortest)
        };
        let mut shortest = u64::MAX;
        for place in places(key) {
            if let Some(point) = self.behind(place).take(PASSED_MAX).find(will_do) {
                shortest = note(place, point);
            }
        }
        if self.weights == Weights::Different {
            // A heavier one further on may still be nearer, but no further than this.
            for place in places(key) {
                for point in self.behind(place) {
                    let way = point.place.wrapping_sub(place);
                    if weighted(way, self.inverse_weight_min) >= shortest {
                        break;
                    }
                    if will_do(&point) {
                        shortest = note(place, point);
                    }
                }
            }
        }
        best.map(|(_, candidate)| candidate as usize)
    }

    /// The points behind a place, round the ring.
    fn behind(&self, place: u64) -> impl Iterator<Item = &Point> {
        let section = usize::try_from(place >> self.section_shift).unwrap_or(0);
        let mut index = self.sections.get(section).map_or(0, |index| *index as usize);
        while self.points.get(index).is_some_and(|point| point.place < place) {
            index += 1;
        }
        let (before, behind) = self.points.split_at(index.min(self.points.len()));
        behind.iter().chain(before)
    }
}

/// Where a key is tried.
fn places(key: u64) -> impl Iterator<Item = u64> {
    let mut places = Rng::new(key);
    (0..PROBES).map(move |_| places.next_u64())
}

/// A way divided by a weight. The way is below 2^64 and the inverse at most 2^32, so it fits.
fn weighted(way: u64, inverse_weight: u64) -> u64 {
    let product = u128::from(way) * u128::from(inverse_weight);
    u64::try_from(product >> 32).unwrap_or(u64::MAX)
}

impl Seat {
    fn of(member: &Member, candidate: u32) -> Self {
        let inverse_weight = (1 << 32) / u64::from(member.full_weight.max(1));
        Self { id: member.id, candidate, inverse_weight, is_taken: true }
    }
}

impl Bound {
    /// Keeps the sum of all loads. Exact where they are few; where they are many, each is read
    /// again every so many picks, because to read them all would take longer than the request.
    fn sum_up(&mut self, candidates: &impl Candidates) {
        let count = candidates.count();
        if self.loads.len() != count {
            self.loads.clear();
            self.loads.extend((0..count).map(|candidate| candidates.load(candidate)));
            self.sum = self.loads.iter().sum();
            return;
        }
        for _ in 0..count.min(SUMMED_MAX) {
            self.next = if self.next + 1 < count { self.next + 1 } else { 0 };
            let load = candidates.load(self.next);
            self.sum = self.sum + load - self.loads[self.next];
            self.loads[self.next] = load;
        }
    }

    /// How many exchanges may run on a candidate: its share of all, the one about to begin
    /// included, times the factor, rounded up.
    fn most(&self, candidate: usize) -> u64 {
        let share = u128::from(self.weights[candidate]) * u128::from(self.sum + 1);
        let most = share * u128::from(self.percent.get());
        let most = most.div_ceil(u128::from(self.weights_sum.max(1)) * 100);
        u64::try_from(most).unwrap_or(u64::MAX)
    }
}
