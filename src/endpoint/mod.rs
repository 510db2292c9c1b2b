//! HTTP/1.1 served on Tokio, for places that see little traffic: the metrics port and the component
//! servers of the demo.
//!
//! Requests are parsed with [`crate::http1`], so what is refused on the data port is refused here.
//! Bodies are held whole, in bounded memory; every wait has a deadline. Traffic for backends never
//! comes through here: that is the workers' business.

mod connection;
mod request;

pub use connection::{Connection, Limits};
pub use request::{Refusal, Request, Response};
