//! Buffers that go round: taken for one read or write, given back after it.
//!
//! An idle connection holds none. What a worker keeps is bounded, and what it has had no use for
//! it lets go of, so a burst does not pin its peak for ever.

use std::{
    cell::{Cell, RefCell},
    time::Duration,
};

use crate::exchange::Tick;

use super::relay::LANES_MAX;

/// How much a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Heads of requests, which are kept while the backend thinks, and single events.
    Tiny,
    /// Heads, events, small bodies.
    Small,
    /// Events in a burst: a stream whose client stops reading holds one of these for as long.
    Medium,
    /// Bodies that do not fit.
    Large,
    /// Large bodies at speed: only for who has a lane, of which there are few.
    Bulk,
}

impl Size {
    const ALL: [Self; 5] = [Self::Tiny, Self::Small, Self::Medium, Self::Large, Self::Bulk];

    /// Octets a fresh buffer of this size has room for.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Tiny => 1024,
            Self::Small => 4 * 1024,
            Self::Medium => 16 * 1024,
            Self::Large => 64 * 1024,
            Self::Bulk => 512 * 1024,
        }
    }

    /// The smallest that holds so many octets, or the largest that anybody may take.
    pub(super) fn holding(bytes: usize) -> Self {
        let fits = |size: &Self| bytes <= size.bytes();
        [Self::Tiny, Self::Small, Self::Medium].into_iter().find(fits).unwrap_or(Self::Large)
    }

    /// Buffers of this size kept for reuse.
    const fn kept_max(self) -> usize {
        match self {
            Self::Tiny | Self::Small => 128,
            Self::Medium => 32,
            Self::Large => 16,
            Self::Bulk => LANES_MAX,
        }
    }

    /// How many of them are kept where there is no use for them: as many as one exchange at a time
    /// takes, and some more.
    const fn kept_min(self) -> usize {
        match self {
            Self::Tiny | Self::Small => 16,
            Self::Medium => 4,
            Self::Large => 2,
            Self::Bulk => 0,
        }
    }
}

/// How long a spare buffer may be without use.
const UNUSED_MAX: Duration = Duration::from_secs(1);

/// One worker's spare buffers.
#[derive(Debug)]
pub(super) struct Buffers {
    /// In the order of [`Size::ALL`].
    spares: [RefCell<Spare>; Size::ALL.len()],
    /// When to look next for what had no use.
    look: Cell<Tick>,
}

#[derive(Debug, Default)]
struct Spare {
    buffers: Vec<Vec<u8>>,
    /// The fewest that there have been since the last look: so many had no use.
    unused: usize,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { spares: Default::default(), look: Cell::new(Tick(0)) }
    }
}

impl Buffers {
    /// An empty buffer with at least that much room.
    pub(super) fn take(&self, size: Size) -> Vec<u8> {
        let mut spare = self.spare(size).borrow_mut();
        let buffer = spare.buffers.pop();
        spare.unused = spare.unused.min(spare.buffers.len());
        buffer.unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    /// Takes a buffer back. One that has grown beyond its class is let go.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        let fits = |size: &Size| size.bytes() == buffer.capacity();
        let Some(size) = Size::ALL.into_iter().find(fits) else { return };
        let mut spare = self.spare(size).borrow_mut();
        if spare.buffers.len() < size.kept_max() {
            buffer.clear();
            spare.buffers.push(buffer);
        }
    }

    /// Lets go of what had no use for [`UNUSED_MAX`]. To be called every tick.
    pub(super) fn tick(&self, now: Tick) {
        if now < self.look.get() {
            return;
        }
        self.look.set(now.after(UNUSED_MAX));
        for size in Size::ALL {
            self.spare(size).borrow_mut().let_go(size.kept_min());
        }
    }

    fn spare(&self, size: Size) -> &RefCell<Spare> {
        &self.spares[size as usize]
    }
}

impl Spare {
    /// Lets go of what had no use since this was done last, but for so many.
    fn let_go(&mut self, kept_min: usize) {
        let kept = (self.buffers.len() - self.unused).max(kept_min);
        if kept < self.buffers.len() {
            // Neighbours are kept: whole pages must become free to be given back.
            self.buffers.sort_unstable_by_key(|buffer| buffer.as_ptr());
            self.buffers.truncate(kept);
        }
        self.unused = self.buffers.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_at_their_place() {
        for (place, size) in Size::ALL.into_iter().enumerate() {
            assert_eq!(size as usize, place);
        }
    }

    #[test]
    fn the_smallest_size_that_holds_it_is_enough() {
        let cases = [(0, Size::Tiny), (1024, Size::Tiny), (1025, Size::Small), (4096, Size::Small)];
        let more = [(4097, Size::Medium), (16_384, Size::Medium), (16_385, Size::Large)];
        for (bytes, size) in cases.into_iter().chain(more).chain([(1 << 20, Size::Large)]) {
            assert_eq!(Size::holding(bytes), size, "{bytes}");
        }
    }

    #[test]
    fn a_buffer_comes_back_empty_and_an_odd_one_is_let_go() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(Size::Small);
        buffer.extend_from_slice(b"secret");
        let place = buffer.as_ptr();
        buffers.give(buffer);
        let again = buffers.take(Size::Small);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        buffers.give(Vec::with_capacity(5000));
        assert_ne!(buffers.take(Size::Small).capacity(), 5000);
    }

    #[test]
    fn what_had_no_use_goes_and_what_had_stays() {
        let buffers = Buffers::default();
        let spare = || buffers.spare(Size::Small).borrow().buffers.len();
        let use_at_once = |count: usize| {
            let taken: Vec<_> = (0..count).map(|_| buffers.take(Size::Small)).collect();
            taken.into_iter().for_each(|buffer| buffers.give(buffer));
        };
        let mut now = Tick(0);
        let mut look = || {
            now = now.after(UNUSED_MAX);
            buffers.tick(now);
        };
        use_at_once(100);
        look();
        assert_eq!(spare(), 100, "all of them had a use");
        use_at_once(40);
        buffers.tick(Tick(0));
        assert_eq!(spare(), 100, "it is not time yet");
        look();
        assert_eq!(spare(), 40);
        look();
        assert_eq!(spare(), Size::Small.kept_min());
        use_at_once(1);
        look();
        assert_eq!(spare(), Size::Small.kept_min());
    }
}
