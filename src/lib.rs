//! wip
pub mod model;
pub mod stats;
pub mod link;
pub mod config;
