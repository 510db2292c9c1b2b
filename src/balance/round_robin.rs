//! Pure: smooth weighted round robin, as nginx does it: no bursts towards the heaviest.

use super::Candidates;

/// Where the round stands.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// What each candidate is owed. Starts anew when the number of candidates changes.
    owed: Vec<i64>,
}

impl RoundRobin {
    pub(super) fn pick(&mut self, candidates: &impl Candidates) -> Option<usize> {
        if self.owed.len() != candidates.count() {
            self.owed.clear();
            self.owed.resize(candidates.count(), 0);
        }
        let mut total = 0;
        let mut best: Option<usize> = None;
        for candidate in (0..candidates.count()).filter(|c| !candidates.is_excluded(*c)) {
            let weight = i64::from(candidates.weight(candidate));
            self.owed[candidate] += weight;
            total += weight;
            if best.is_none_or(|leader| self.owed[candidate] > self.owed[leader]) {
                best = Some(candidate);
            }
        }
        let best = best?;
        self.owed[best] -= total;
        Some(best)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::Table, *};

    fn picks(table: &Table, count: usize) -> Vec<usize> {
        let mut state = RoundRobin::default();
        (0..count).map(|_| state.pick(table).unwrap()).collect()
    }

    #[test]
    fn equal_weights_take_turns() {
        let table = Table(vec![(9, 1, false), (0, 1, false), (0, 1, false)]);
        assert_eq!(picks(&table, 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn heavy_candidates_are_interleaved_with_light_ones() {
        let table = Table(vec![(0, 5, false), (0, 1, false), (0, 1, false)]);
        assert_eq!(picks(&table, 7), [0, 0, 1, 0, 2, 0, 0]);
    }
}
