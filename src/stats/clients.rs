//! Pure: how many connections each client has, counted without a lock and without a list of
//! clients.
//!
//! A count-min sketch per worker (Cormode and Muthukrishnan, 2005): a key has one cell in each row,
//! shares each with other keys, and its count is the smallest of its cells. Cells go down as they
//! went up, so a count is never too low, and too high only where a key meets others in every row:
//! with 10,000 clients that is one in 200, which then share one count.
//!
//! Invariant: only the worker that owns the cells writes them; everybody may add them up.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering::Relaxed},
};

const ROWS: u32 = 4;
/// Cells in a row, as a power of two.
const COLUMN_BITS: u32 = 15;
const COLUMNS: usize = 1 << COLUMN_BITS;

/// A client, as a number that must be spread evenly over all numbers: a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientKey(pub u64);

/// Connections of each client on one worker.
#[derive(Debug, Default)]
pub struct ClientCounts {
    // Half a mebibyte, allocated with the first count: who has no limit per client has none of it.
    cells: OnceLock<Box<[AtomicU32]>>,
}

impl ClientCounts {
    /// One more connection of this client.
    pub fn increment(&self, key: ClientKey) {
        let cells = self.cells.get_or_init(|| {
            std::iter::repeat_with(AtomicU32::default).take(ROWS as usize * COLUMNS).collect()
        });
        for cell in places(key).map(|place| &cells[place]) {
            cell.store(cell.load(Relaxed).saturating_add(1), Relaxed);
        }
    }

    /// One less.
    pub fn decrement(&self, key: ClientKey) {
        let Some(cells) = self.cells.get() else { return };
        for cell in places(key).map(|place| &cells[place]) {
            let value = cell.load(Relaxed);
            debug_assert!(value > 0, "a client's count was decremented below zero");
            cell.store(value.saturating_sub(1), Relaxed);
        }
    }

    /// Connections of this client on all of these workers.
    pub fn sum<'a>(workers: impl Iterator<Item = &'a Self> + Clone, key: ClientKey) -> u64 {
        let in_row = |place: usize| {
            let cells = workers.clone().filter_map(|worker| worker.cells.get());
            cells.map(|cells| u64::from(cells[place].load(Relaxed))).sum()
        };
        places(key).map(in_row).min().unwrap_or_default()
    }
}

/// The cells of a key, one in each row.
fn places(key: ClientKey) -> impl Iterator<Item = usize> {
    (0..ROWS).map(move |row| {
        let column = (key.0 >> (row * COLUMN_BITS)) & (COLUMNS as u64 - 1);
        row as usize * COLUMNS + usize::try_from(column).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_the_sum_over_workers_and_returns_to_zero() {
        let workers = [ClientCounts::default(), ClientCounts::default()];
        let (one, other) = (ClientKey(0x0123_4567_89ab_cdef), ClientKey(u64::MAX));
        let sum = |key| ClientCounts::sum(workers.iter(), key);
        assert_eq!(sum(one), 0);
        workers[0].increment(one);
        workers[1].increment(one);
        workers[1].increment(other);
        assert_eq!((sum(one), sum(other)), (2, 1));
        workers[0].decrement(one);
        workers[1].decrement(one);
        assert_eq!((sum(one), sum(other)), (0, 1));
    }

    #[test]
    fn keys_that_share_some_cells_are_told_apart_and_those_that_share_all_are_not() {
        let counts = ClientCounts::default();
        let sum = |key| ClientCounts::sum(std::iter::once(&counts), key);
        counts.increment(ClientKey(0));
        // All but the last row.
        assert_eq!(sum(ClientKey(1 << (3 * COLUMN_BITS))), 0);
        // The bits above the rows are not looked at.
        assert_eq!(sum(ClientKey(1 << (4 * COLUMN_BITS))), 1);
    }
}
