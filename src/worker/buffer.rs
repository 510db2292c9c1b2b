//! Buffers that go round: taken for one read or write, given back after it.
//!
//! An idle connection holds none. What a worker keeps is bounded, so a burst does not pin its
//! peak for ever.

use std::cell::RefCell;

/// How much a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// Heads, events, small bodies.
    Small,
    /// Events in a burst: a stream whose client stops reading holds one of these for as long.
    Medium,
    /// Bodies in bulk.
    Large,
}

impl Size {
    /// Octets a fresh buffer of this size has room for.
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Small => 4 * 1024,
            Self::Medium => 16 * 1024,
            Self::Large => 64 * 1024,
        }
    }

    /// The smallest that holds so many octets, or the largest.
    pub(super) fn holding(bytes: usize) -> Self {
        let fits = |size: &Self| bytes <= size.bytes();
        [Self::Small, Self::Medium].into_iter().find(fits).unwrap_or(Self::Large)
    }

    /// Buffers of this size kept for reuse.
    const fn kept_max(self) -> usize {
        match self {
            Self::Small => 128,
            Self::Medium => 32,
            Self::Large => 16,
        }
    }
}

/// One worker's spare buffers.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    small: RefCell<Vec<Vec<u8>>>,
    medium: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty buffer with at least that much room.
    pub(super) fn take(&self, size: Size) -> Vec<u8> {
        let spare = self.spare(size).borrow_mut().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(size.bytes()))
    }

    /// Takes a buffer back. One that has grown beyond its class is let go.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        let size = match buffer.capacity() {
            n if n == Size::Small.bytes() => Size::Small,
            n if n == Size::Medium.bytes() => Size::Medium,
            n if n == Size::Large.bytes() => Size::Large,
            _ => return,
        };
        let mut spare = self.spare(size).borrow_mut();
        if spare.len() < size.kept_max() {
            buffer.clear();
            spare.push(buffer);
        }
    }

    fn spare(&self, size: Size) -> &RefCell<Vec<Vec<u8>>> {
        match size {
            Size::Small => &self.small,
            Size::Medium => &self.medium,
            Size::Large => &self.large,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_size_that_holds_it_is_enough() {
        let cases = [(0, Size::Small), (4096, Size::Small), (4097, Size::Medium)];
        let more = [(16_384, Size::Medium), (16_385, Size::Large), (1 << 20, Size::Large)];
        for (bytes, size) in cases.into_iter().chain(more) {
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
}
