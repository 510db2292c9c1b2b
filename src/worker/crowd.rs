//! Pure: who is in the middle of sending a request head, in the order in which they began.
//!
//! A head that arrives at once never comes here. Whoever is one too many costs the *oldest* its
//! place: a head takes milliseconds, so among many the one that has taken longest is the one that
//! means to, and turning newcomers away instead would give the attacker what it wants. Running
//! exchanges are not in here.
//!
//! Invariant: at most `max` are in the crowd; who lost its place is told once, and holds its
//! ticket until it gives it back.

/// A place in the crowd, kept or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u32);

/// No neighbour.
const NOBODY: u32 = u32::MAX;

/// The readers of one worker. A list through a slab: no step allocates once it has been this large.
#[derive(Debug)]
pub(super) struct Crowd {
    max: usize,
    len: usize,
    entries: Vec<Entry>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Entry {
    /// Whom to wake.
    place: u32,
    older: u32,
    newer: u32,
    has_place: bool,
}

impl Crowd {
    /// Room for so many, but at least for one.
    pub(super) fn new(max: usize) -> Self {
        let (entries, free) = (Vec::new(), Vec::new());
        Self { max: max.max(1), len: 0, entries, free, oldest: NOBODY, newest: NOBODY }
    }

    /// A newcomer, and who loses its place to it.
    pub(super) fn enter(&mut self, place: u32) -> (Ticket, Option<u32>) {
        let evicted = (self.len >= self.max).then(|| {
            let oldest = self.oldest;
            self.unlink(oldest);
            self.entries[oldest as usize].place
        });
        let entry = Entry { place, older: self.newest, newer: NOBODY, has_place: true };
        let index = match self.free.pop() {
            Some(index) => {
                self.entries[index as usize] = entry;
                index
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).unwrap_or(NOBODY)
            }
        };
        match self.newest {
            NOBODY => self.oldest = index,
            newest => self.entries[newest as usize].newer = index,
        }
        self.newest = index;
        self.len += 1;
        (Ticket(index), evicted)
    }

    /// Whether this one has lost its place.
    pub(super) fn is_evicted(&self, ticket: Ticket) -> bool {
        !self.entries[ticket.0 as usize].has_place
    }

    /// Gives a ticket back, with or without its place.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        if self.entries[ticket.0 as usize].has_place {
            self.unlink(ticket.0);
        }
        self.free.push(ticket.0);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { older, newer, .. } = self.entries[index as usize];
        match older {
            NOBODY => self.oldest = newer,
            older => self.entries[older as usize].newer = newer,
        }
        match newer {
            NOBODY => self.newest = older,
            newer => self.entries[newer as usize].older = older,
        }
        self.entries[index as usize].has_place = false;
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::model::Rng;

    #[test]
    fn the_oldest_goes_first_and_whoever_has_finished_does_not_count() {
        let mut crowd = Crowd::new(2);
        let (one, nobody) = crowd.enter(1);
        let (two, _) = crowd.enter(2);
        assert_eq!(nobody, None);
        let (three, evicted) = crowd.enter(3);
        assert_eq!(evicted, Some(1));
        assert_eq!([one, two, three].map(|t| crowd.is_evicted(t)), [true, false, false]);
        crowd.leave(two);
        let (_, evicted) = crowd.enter(4);
        assert_eq!(evicted, None);
        crowd.leave(one);
        assert_eq!(crowd.enter(5).1, Some(3));
    }

    #[test]
    fn random_runs_agree_with_a_queue() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut pick = |n: usize| usize::try_from(rng.next_u64() % n as u64).unwrap();
            let mut crowd = Crowd::new(5);
            let mut model: VecDeque<u32> = VecDeque::new();
            let mut held: Vec<(u32, Ticket)> = Vec::new();
            for place in 0..500 {
                if pick(2) == 0 && !held.is_empty() {
                    let (place, ticket) = held.swap_remove(pick(held.len()));
                    assert_eq!(crowd.is_evicted(ticket), !model.contains(&place), "seed {seed}");
                    crowd.leave(ticket);
                    model.retain(|other| *other != place);
                } else {
                    let want = (model.len() == 5).then(|| model.pop_front().unwrap());
                    let (ticket, evicted) = crowd.enter(place);
                    assert_eq!(evicted, want, "seed {seed}");
                    model.push_back(place);
                    held.push((place, ticket));
                }
                assert_eq!(crowd.len, model.len(), "seed {seed}");
            }
        }
    }
}
