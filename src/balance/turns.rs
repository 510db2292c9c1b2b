//! Pure: weighted round robin without bursts, in time logarithmic in the number of candidates.
//!
//! Each candidate's turns are as far apart as its weight says. A turn begins when it is due and not
//! before, and of those that are due the one that must end first comes first: worst-case fair
//! queueing (Bennett and Zhang, WF²Q+, 1997). So at any moment each has had what its weight
//! promises, give or take one turn; with equal weights this is plain round robin. The well-known
//! smooth round robin of nginx is as smooth, but looks at everybody at each pick.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Candidates, Member};
use crate::model::{BackendId, Rng};

/// Length of the pause between two turns of a candidate of weight one, in virtual time. So long
/// that the pauses of the greatest weights are still long to many digits.
const PAUSE_OF_ONE: u128 = 1 << 64;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Virtual time. A pause of weight one passes when everybody has had turns by weight.
    now: u128,
    /// How much of it passes with one turn of anybody.
    step: u128,
    candidates: Vec<Waiting>,
    /// Candidates whose turn has not begun, by when it will.
    early: BinaryHeap<Reverse<(u128, u32)>>,
    /// Candidates whose turn has begun, by when it must end.
    due: BinaryHeap<Reverse<(u128, u32)>>,
    /// Room for those that are passed over.
    passed_over: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: BackendId,
    /// When its turn begins.
    begins: u128,
    pause: u128,
}

impl Turns {
    /// Those who stay keep their place in the round; newcomers start at a random one, or all
    /// workers would begin every round with the same backend.
    pub(super) fn prepare(&mut self, members: &[Member], rng: &mut Rng) {
        let known = std::mem::take(&mut self.candidates);
        let mut known = known.into_iter().peekable();
        let total: u128 = members.iter().map(|member| u128::from(member.weight)).sum();
        self.step = PAUSE_OF_ONE / total.max(1);
        for member in members {
            let pause = PAUSE_OF_ONE / u128::from(member.weight.max(1));
            while known.next_if(|waiting| waiting.id < member.id).is_some() {}
            let begins = match known.next_if(|waiting| waiting.id == member.id) {
                // A greater weight than before shortens the wait for the next turn as well.
                Some(waiting) => waiting.begins.min(self.now + pause),
                None => self.now + ((pause * u128::from(rng.next_u64())) >> 64),
            };
            self.candidates.push(Waiting { id: member.id, begins, pause });
        }
        self.due.clear();
        let begins = |(index, waiting): (u32, &Waiting)| Reverse((waiting.begins, index));
        self.early = (0..).zip(&self.candidates).map(begins).collect();
    }

    /// The one whose turn it is. Who is excluded loses the turn, but does not collect turns.
    pub(super) fn choose(&mut self, candidates: &impl Candidates) -> Option<usize> {
        let chosen = loop {
            let Some(index) = self.next_due() else { break None };
            match candidates.is_excluded(index as usize) {
                true => self.passed_over.push(index),
                false => break Some(index),
            }
        };
        if let Some(index) = chosen {
            let waiting = &mut self.candidates[index as usize];
            waiting.begins += waiting.pause;
            self.early.push(Reverse((waiting.begins, index)));
            self.now += self.step;
        }
        while let Some(index) = self.passed_over.pop() {
            let waiting = &mut self.candidates[index as usize];
            waiting.begins = waiting.begins.max(self.now);
            self.early.push(Reverse((waiting.begins, index)));
        }
        chosen.map(|index| index as usize)
    }

    fn next_due(&mut self) -> Option<u32> {
        loop {
            while let Some(Reverse((begins, index))) = self.early.peek().copied()
                && begins <= self.now
            {
                self.early.pop();
                let ends = begins + self.candidates[index as usize].pause;
                self.due.push(Reverse((ends, index)));
            }
            if let Some(Reverse((_, index))) = self.due.pop() {
                return Some(index);
            }
            // Nobody's turn has begun, because somebody was passed over or a division was rounded:
            // time jumps to the first.
            let Reverse((begins, _)) = self.early.peek()?;
            self.now = *begins;
        }
    }
}
