//! Pure: the nouns that the control thread and the workers share. Plain data, no behaviour beyond
//! construction and lookup.
//!
//! Owns the picture of the world that travels from the control thread to every worker: what a
//! backend is, which of them exist, and in which phase of its life the process is. It does not own
//! how that picture is made (`plane`) nor what a worker does with it (`worker::table`).

mod backend;
mod fault;
mod hash;
mod hash_on;
mod hints;
mod initialisation;
mod report;
mod rng;
mod snapshot;
mod status_set;
mod target;
mod trust;

pub use backend::{
    Backend, BackendId, BackendState, DrainCause, Health, InstanceId, InstanceIdError, Presence,
    Standing, Weight,
};
pub use fault::{Fault, FaultSet};
pub use hash::{address_octets, hash_of_address, hash_of_key};
pub use hash_on::{HashOn, HashOnError};
pub use hints::{Hint, Hints};
pub use initialisation::{Initialisation, InitialisationProgress, Initialize, Recording};
pub use report::Report;
pub use rng::Rng;
pub use snapshot::{HealthCounts, Panic, Phase, Snapshot, Version};
pub use status_set::{StatusSet, StatusSetError};
pub use target::{Target, TargetError};
pub use trust::{Trust, TrustedProxies, TrustedProxiesError};
