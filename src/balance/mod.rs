//! Pure: pickers. A picker chooses one of several candidates for a request that any of them may
//! serve.
//!
//! Invariants
//! - Only a candidate that is not excluded is returned; with none, nothing is.
//! - Ties are broken at random: "the first one wins" sends every idle moment to the same backend.

mod least_connections;
mod round_robin;

use crate::model::Rng;

/// What a picker may know about those it chooses from. Candidates are numbered from 0.
pub trait Candidates {
    /// How many there are.
    fn count(&self) -> usize;
    /// Exchanges running on the candidate now, over all workers.
    fn load(&self, candidate: usize) -> u64;
    /// Share of new work.
    fn weight(&self, candidate: usize) -> u32;
    /// Was tried already, or had better be avoided.
    fn is_excluded(&self, candidate: usize) -> bool;
}

/// One of the algorithms, with the state it keeps between picks.
#[derive(Debug)]
pub enum Picker {
    /// Fewest running exchanges relative to weight.
    LeastConnections,
    /// In turn, as often as the weights say.
    RoundRobin(round_robin::RoundRobin),
}

impl Picker {
    /// In turn, from the beginning.
    pub fn round_robin() -> Self {
        Self::RoundRobin(round_robin::RoundRobin::default())
    }

    /// Chooses a candidate.
    pub fn pick(&mut self, candidates: &impl Candidates, rng: &mut Rng) -> Option<usize> {
        match self {
            Self::LeastConnections => least_connections::pick(candidates, rng),
            Self::RoundRobin(state) => state.pick(candidates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates as (load, weight, excluded).
    pub(super) struct Table(pub(super) Vec<(u64, u16, bool)>);

    impl Candidates for Table {
        fn count(&self) -> usize {
            self.0.len()
        }
        fn load(&self, candidate: usize) -> u64 {
            self.0[candidate].0
        }
        fn weight(&self, candidate: usize) -> u32 {
            self.0[candidate].1.into()
        }
        fn is_excluded(&self, candidate: usize) -> bool {
            self.0[candidate].2
        }
    }

    #[test]
    fn no_picker_returns_an_excluded_candidate_or_fails_to_find_the_last_one() {
        let mut rng = Rng::new(3);
        for mut picker in [Picker::LeastConnections, Picker::round_robin()] {
            assert_eq!(picker.pick(&Table(vec![]), &mut rng), None);
            for n in [1, 2, 5, 64, 65, 200] {
                for last in 0..n {
                    let table = (0..n).map(|i| (0, 1, i != last)).collect();
                    assert_eq!(picker.pick(&Table(table), &mut rng), Some(last), "{n} {last}");
                }
                let none = (0..n).map(|_| (0, 1, true)).collect();
                assert_eq!(picker.pick(&Table(none), &mut rng), None, "{n}");
            }
        }
    }
}
