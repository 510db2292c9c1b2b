//! Pure: where a session is written and how it is read.
//!
//! Owns the meaning of `Stepflow-Instance-Id`. Does not own who has which id: that is in the
//! snapshot, and each worker's table looks it up.

mod affinity;

pub use affinity::{Affinity, instance_in};
