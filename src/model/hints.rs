//! Pure: what a backend says about its own load.

use std::num::NonZeroU32;

/// Hints of one backend, from its last health body that passed. All of them are optional, and a
/// backend that sends none is treated as ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `weight`: how much of its usual share of new work it wants, from 0 for none to 100 for all.
    pub weight_percent: Option<u8>,
    /// `capacity`: exchanges that it can run at once, whoever sends them.
    pub capacity: Option<NonZeroU32>,
    /// `draining`: it wants no new work, and to be left in peace to finish what it has.
    pub draining: bool,
}

/// A hint, by its name in the health body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// `weight`.
    Weight,
    /// `capacity`.
    Capacity,
    /// `activeStreams`.
    ActiveStreams,
    /// `draining`.
    Draining,
}

impl Hints {
    /// The usual share of new work.
    pub const WEIGHT_PERCENT_MAX: u8 = 100;

    /// It wants no new work, whichever way it says so.
    pub fn wants_no_work(&self) -> bool {
        self.draining || self.weight_percent == Some(0)
    }
}

impl Hint {
    /// Its name in the health body.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Capacity => "capacity",
            Self::ActiveStreams => "activeStreams",
            Self::Draining => "draining",
        }
    }

    /// What is accepted.
    pub fn accepted(self) -> &'static str {
        match self {
            Self::Weight => "a whole number from 0 to 100",
            Self::Capacity => "a whole number from 1 to 4294967295",
            Self::ActiveStreams => "a whole number from 0 to 4294967295",
            Self::Draining => "true or false",
        }
    }
}
