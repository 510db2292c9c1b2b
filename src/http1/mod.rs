//! Pure: RFC 9112 as functions and machines over octets.
//!
//! Owns the syntax of HTTP/1.1 messages: where a head ends (`scan`), what it says (`head`), how
//! long the body is (`framing`), what each octet of a body is (`body`), how a body is handed on
//! in another coding (`transfer`), which trailers go on (`trailer`), how heads are written
//! (`write`), and which lines differ from the head that came (`edits`). It is the only importer of
//! `httparse`. It does not know routing, retries or connections.
//!
//! Invariants
//! - A step never consumes an octet of the next message.
//! - Results do not depend on how the input was split.
//! - Work is linear in the input; memory is bounded by the caller's limits.
//! - No input panics.
//! - A message that two readers could read differently is refused. There is no lenient mode
//!   (ADR 8).

mod body;
mod date;
mod edits;
mod field;
mod framing;
mod head;
mod method;
mod scan;
#[cfg(test)]
mod tests;
mod trailer;
mod transfer;
mod write;

pub use body::{Body, BodyError, BodyLimits, Step};
pub use date::{CivilDate, DateLine};
pub use edits::{Edit, Edits};
pub use field::{Field, connection_tokens, is_alias, is_token, list_contains};
pub use framing::{Framing, FramingError, FramingFields, request_framing, response_framing};
pub use head::{
    FIELDS_MAX, FieldLine, FieldStorage, HeadError, RequestHead, ResponseHead, Target, Version,
    field_storage, parse_request, parse_response,
};
pub use method::Method;
pub use scan::{HeadScan, LeadingLine, ScanError};
pub use transfer::{Coding, Transfer, unfinished_character};
pub use write::{HeadWriter, reason_phrase};
