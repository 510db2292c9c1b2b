//! wip
pub mod config;
pub mod http1;
pub mod link;
pub mod model;
pub mod stats;
