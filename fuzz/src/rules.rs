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

/// May not be removed by listing them in `Connection`: what frames, routes, describes or
/// authenticates a message, what its sender waits for, what ends a loop, and when a message was
/// made.
const PROTECTED: [&str; 15] = [
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "max-forwards",
    "origin",
    "set-cookie",
    "stepflow-instance-id",
    "via",
    "www-authenticate",
];

/// What a client says about others: not removed either, and not believed of everybody.
pub fn is_testimony(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let forwards = name.strip_prefix("x-forwarded-").is_some_and(|rest| !rest.is_empty());
    forwards || name == "forwarded" || name == "x-real-ip"
}

/// Has `_` where a name that means something to a proxy has `-`, and ends there: some take the two
/// for one.
pub fn is_alias(name: &str) -> bool {
    const OTHERS: [&str; 2] = ["x-accel-buffering", "x-stepflow-routed-instance"];
    let other = name.replace('_', "-");
    other != name
        && !is_testimony(name)
        && (is_testimony(&other)
            || [&HOP_BY_HOP[..], &PROTECTED, &OTHERS].iter().any(|known| is_one_of(&other, known)))
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

/// Must not be trailers (RFC 9110 §6.5.1): what frames, routes, modifies a request, authenticates,
/// controls a response or says how to read its content.
const NO_TRAILERS: [&str; 34] = [
    "accept",
    "age",
    "allow",
    "alt-svc",
    "authentication-info",
    "authorization",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "keep-alive",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "range",
    "refresh",
    "retry-after",
    "set-cookie",
    "stepflow-instance-id",
    "strict-transport-security",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-real-ip",
];

/// Nor may names that begin so.
const NO_TRAILER_FAMILIES: [&str; 8] = [
    "access-control-",
    "content-",
    "if-",
    "proxy-",
    "sec-",
    "x-accel-",
    "x-forwarded-",
    "x-stepflow-",
];

/// The trailers of a message with this head that go on: none, if `Connection` names fields that do
/// not belong to connections anyway.
pub fn trailers_that_go_on(trailers: &[u8], head: &Lines) -> Vec<u8> {
    let options = values(head, "connection").flat_map(|value| value.split(|b| *b == b','));
    let options = options.map(|option| String::from_utf8_lossy(trim(option)).into_owned());
    let names_a_field = options.filter(|option| !option.is_empty()).any(|option| {
        !is_one_of(&option, &["close"])
            && !is_one_of(&option, &HOP_BY_HOP)
            && !is_one_of(&option, &PROTECTED)
            && !is_testimony(&option)
    });
    if names_a_field {
        return Vec::new();
    }
    let goes_on = |line: &&[u8]| {
        let name = line.split(|b| *b == b':').next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let is_refused = is_one_of(&name, &NO_TRAILERS)
            || NO_TRAILER_FAMILIES.iter().any(|family| name.starts_with(family));
        // RFC 9530 §2 makes this one for trailers.
        !is_refused || name == "content-digest"
    };
    trailers.split_inclusive(|b| *b == b'\n').filter(goes_on).collect::<Vec<_>>().concat()
}
