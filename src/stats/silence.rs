//! Pure: how many event streams of one backend are silent, as one worker saw them last.

use super::{Counter, Gauge};

/// Event streams, as of the last walk over them. One writer; untouched while nobody wants to know.
#[derive(Debug, Default)]
pub struct SilenceCell {
    judged: Gauge,
    silent: Gauge,
    resumed: Counter,
}

/// Event streams, over all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SilenceReading {
    /// Streams that have been heard for long enough to be judged.
    pub judged: u64,
    /// Of these, the ones that have been silent for longer than they ever were.
    pub silent: u64,
    /// Streams that had been silent and spoke again, since the start.
    pub resumed: u64,
}

impl SilenceCell {
    /// Takes in what a walk has found: how many are judged, and how many of these are silent.
    pub fn set(&self, judged: u64, silent: u64) {
        debug_assert!(silent <= judged, "whoever is not judged is not silent");
        self.judged.set(judged);
        self.silent.set(silent);
    }

    /// A stream that was silent has spoken.
    pub fn resume(&self) {
        self.resumed.add(1);
    }
}

impl SilenceReading {
    /// Adds up what several workers saw.
    pub fn sum<'a>(cells: impl Iterator<Item = &'a SilenceCell>) -> Self {
        cells.fold(Self::default(), |sum, cell| {
            sum.with(Self {
                judged: cell.judged.get(),
                silent: cell.silent.get(),
                resumed: cell.resumed.get(),
            })
        })
    }

    /// The streams of both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            judged: self.judged + other.judged,
            silent: self.silent + other.silent,
            resumed: self.resumed + other.resumed,
        }
    }

    /// These streams less those of `part`, which is among them.
    #[must_use]
    pub fn without(self, part: Self) -> Self {
        Self {
            judged: self.judged - part.judged,
            silent: self.silent - part.silent,
            resumed: self.resumed - part.resumed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_saw_last_adds_up() {
        let (a, b) = (SilenceCell::default(), SilenceCell::default());
        a.set(9, 9);
        a.set(5, 1);
        b.set(3, 3);
        b.resume();
        b.resume();
        let sum = SilenceReading::sum([&a, &b].into_iter());
        assert_eq!(sum, SilenceReading { judged: 8, silent: 4, resumed: 2 });
        let part = SilenceReading::sum([&b].into_iter());
        let rest = SilenceReading { judged: 5, silent: 1, resumed: 0 };
        assert_eq!((sum.without(part), rest.with(part)), (rest, sum));
    }
}
