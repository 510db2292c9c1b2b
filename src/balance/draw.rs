//! Pure: drawing candidates by weight.

use super::{Candidates, Member};
use crate::model::Rng;

/// Draws that may hit an excluded candidate before all are looked at after all.
const DRAWS_MAX: usize = 8;

/// The weights, added up: a number below the sum belongs to one candidate.
#[derive(Debug, Default)]
pub(super) struct Draw {
    /// Where each candidate's numbers end. Empty while all weigh the same, which needs no search.
    ends: Vec<u64>,
}

impl Draw {
    pub(super) fn prepare(&mut self, members: &[Member]) {
        self.ends.clear();
        if members.windows(2).all(|pair| pair[0].weight == pair[1].weight) {
            return;
        }
        self.ends.extend(members.iter().scan(0, |sum, member| {
            *sum += u64::from(member.weight);
            Some(*sum)
        }));
    }

    /// One that is not excluded and not `other`.
    pub(super) fn one(
        &self,
        candidates: &impl Candidates,
        other: Option<usize>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let is_out = |candidate| Some(candidate) == other || candidates.is_excluded(candidate);
        let mut draws = (0..DRAWS_MAX).map(|_| self.any(candidates.count(), rng));
        draws.find(|c| *c < candidates.count() && !is_out(*c)).or_else(|| {
            // Most are out. A reservoir of one that is filled by weight.
            let (mut kept, mut sum) = (None, 0);
            for candidate in (0..candidates.count()).filter(|c| !is_out(*c)) {
                let weight = u64::from(candidates.weight(candidate));
                sum += weight;
                if rng.below(sum) < weight {
                    kept = Some(candidate);
                }
            }
            kept
        })
    }

    fn any(&self, count: usize, rng: &mut Rng) -> usize {
        match self.ends.last() {
            // Below a `usize` that was one before.
            None => usize::try_from(rng.below(count as u64)).unwrap_or(0),
            Some(sum) => {
                let number = rng.below(*sum);
                self.ends.partition_point(|end| *end <= number)
            }
        }
    }
}
