//! Pure: where a session is written and how it is read.
//!
//! Owns the four kinds of session, the meaning of the header that names an instance, the envelope
//! in which a backend's own ids travel, and the eras of MCP. Does not own who has which instance
//! id: that is in the snapshot, and each worker's table looks it up. Keeps nothing: what a session
//! needs is in the request.

mod affinity;
mod cookie;
mod envelope;
mod era;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

pub use affinity::{Affinity, instance_in};
pub use cookie::{CookieError, CookieSpec, is_cookie_name};
pub use envelope::{
    Key, KeyError, Keys, Named, Nonce, OpenError, Opened, Purpose, TOKEN_BYTES_MAX, VALUE_BYTES_MAX,
};
pub use era::{Era, MCP_SESSION_ID};
pub use rules::{Answered, Identity, Mcp, Owner, ReadError, Reading, Route, Rules, TooLong};
pub use settings::{Kind, Lost, LostRules, LostRulesError, Settings};
