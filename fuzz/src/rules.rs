//! Which field lines go on, told from RFC 9110 and the product's documentation.

use super::naive::{Lines, trim};

/// RFC 9110 §7.6.1, and what ends at a proxy (§11.7).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// May not be removed by listing them in `Connection`: what frames, routes or describes a message,
/// and what ends a loop.
const PROTECTED: [&str; 8] = [
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
    "max-forwards",
    "stepflow-instance-id",
    "via",
];

/// What a client says about others: not removed either, and not believed of everybody.
pub fn is_testimony(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let forwards = name.strip_prefix("x-forwarded-").is_some_and(|rest| !rest.is_empty());
    forwards || name == "forwarded" || name == "x-real-ip"
}

pub fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// The values of every line with this name.
pub fn values<'a>(lines: &'a Lines, wanted: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let is_wanted = move |(name, _): &&(String, Vec<u8>)| name.eq_ignore_ascii_case(wanted);
    lines.iter().filter(is_wanted).map(|(_, value)| value.as_slice())
}

/// Whether a list has this member.
pub fn lists(lines: &Lines, field: &str, member: &str) -> bool {
    values(lines, field)
        .flat_map(|value| value.split(|b| *b == b','))
        .any(|token| trim(token).eq_ignore_ascii_case(member.as_bytes()))
}

/// Whether a line goes on, as far as both directions have it in common.
pub fn goes_on(name: &str, lines: &Lines) -> bool {
    !is_one_of(name, &HOP_BY_HOP)
        && (is_one_of(name, &PROTECTED) || is_testimony(name) || !lists(lines, "connection", name))
}
