//! wip
pub mod balance;
pub mod config;
pub mod control;
pub mod demo;
pub mod endpoint;
pub mod exchange;
pub mod health;
pub mod http1;
pub mod link;
pub mod model;
pub mod plane;
pub mod server;
pub mod session;
pub mod stats;
pub mod sys;
pub mod telemetry;
pub mod worker;
