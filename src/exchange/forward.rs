//! Pure: which fields go on, and which the balancer says itself.
//!
//! Names keep their case, values their octets, lines their order. What is removed is what RFC 9110
//! §7.6.1 says belongs to one connection; what is added is listed in `docs/LIFECYCLE.md`.

use std::cmp::Ordering;

use super::{Admission, RequestPlan, ResponsePlan, Then};
use crate::{
    http1::{
        Coding, DateLine, Edit, Edits, FIELDS_MAX, Field, FieldLine, Framing, HeadWriter,
        RequestHead, ResponseHead, Version, connection_tokens, is_alias,
    },
    model::Trust,
};

/// What the balancer calls itself, as a literal, of which lines are made at compile time.
macro_rules! self_name {
    () => {
        "stepflow-load-balancer"
    };
}

/// What the balancer calls itself in `X-Forwarded-By` and `Via`.
pub const SELF_NAME: &str = self_name!();

const FORWARDED_BY: &str = concat!("X-Forwarded-By: ", self_name!(), "\r\n");

/// What it says in `Via`: the version in which the message came, and its name (RFC 9110 §7.6.3).
const VIA_HTTP_10: &str = concat!("1.0 ", self_name!());
const VIA_HTTP_11: &str = concat!("1.1 ", self_name!());

/// The same as a line, where nobody has said it before us.
const VIA_HTTP_10_LINE: &str = concat!("Via: 1.0 ", self_name!(), "\r\n");
const VIA_HTTP_11_LINE: &str = concat!("Via: 1.1 ", self_name!(), "\r\n");

/// What is known about the client besides its request.
#[derive(Clone, Copy, Debug)]
pub struct ClientFacts<'a> {
    /// Address without port, as text.
    pub address: &'a str,
    /// Whether what it says about its own client stands (ADR 17).
    pub trust: Trust,
    /// Host for a request that names none (HTTP/1.0): the address it was sent to.
    pub local_authority: &'a str,
    /// Whether we say that the request came through us.
    pub via: Via,
}

/// Whether requests get a `Via`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Behind what earlier proxies say.
    Said,
    /// What earlier proxies say goes on as it is.
    Unsaid,
}

/// Appends the head that a backend gets.
pub fn write_request(
    out: &mut Vec<u8>,
    head: &RequestHead<'_>,
    admission: &Admission<'_>,
    client: &ClientFacts<'_>,
) {
    let mut writer = HeadWriter::request(out, head.method_token, head.target.forwarded());
    let authority = admission.authority.unwrap_or(client.local_authority.as_bytes());
    let listed = admission.connection_lists_fields.then(|| Listed::among(head.fields));
    let mut kept = Kept::default();
    for (index, line) in (0..=u8::MAX).zip(head.fields) {
        let name = line.name.as_bytes();
        if write_edited(&mut writer, line, admission.edits.of(index)) {
            continue;
        }
        let field = Field::of(name);
        match field {
            Field::Host => {
                kept.host = true;
                writer.field(name, authority);
            }
            Field::XForwardedFor => kept.forwarded_for = true,
            Field::XForwardedBy => {}
            Field::Via if client.via == Via::Said => kept.via = true,
            _ if client.trust == Trust::Hearsay && field.is_testimony() => {}
            Field::MaxForwards if admission.forwards_left.is_some() => {
                writer.field_number(name, admission.forwards_left.unwrap_or_default());
            }
            Field::Expect if !admission.plan.expects_continue => {}
            _ if field.is_hop_by_hop() => {}
            _ if takes_away(listed.as_ref(), index, field) => {}
            Field::Other if is_alias(name) => {}
            _ => {
                kept.note(field);
                writer.field(name, line.value);
            }
        }
    }
    if !kept.host {
        writer.field(b"Host", authority);
    }
    if admission.plan.framing == Framing::Chunked {
        writer.line(b"Transfer-Encoding: chunked\r\n");
    }
    write_connection(&mut writer, admission);
    // A chain that is not believed is no chain: whoever reads the first address of the list would
    // otherwise read what the client made up.
    match client.trust == Trust::Believed && kept.forwarded_for {
        true => write_behind(&mut writer, b"X-Forwarded-For", head.fields, client.address),
        false => {
            writer.field(b"X-Forwarded-For", client.address.as_bytes());
        }
    }
    // A proxy that is believed knows the scheme and host that the user saw; we only know our own.
    if !kept.forwarded_proto {
        writer.line(b"X-Forwarded-Proto: http\r\n");
    }
    if !kept.forwarded_host {
        writer.field(b"X-Forwarded-Host", authority);
    }
    writer.line(FORWARDED_BY.as_bytes());
    if client.via == Via::Said {
        let (ours, line) = match head.version {
            Version::Http10 => (VIA_HTTP_10, VIA_HTTP_10_LINE),
            Version::Http11 => (VIA_HTTP_11, VIA_HTTP_11_LINE),
        };
        match kept.via {
            true => write_behind(&mut writer, b"Via", head.fields, ours),
            false => {
                writer.line(line.as_bytes());
            }
        }
    }
    writer.end();
}

/// Which fields the client sent that we would otherwise add.
#[derive(Default)]
struct Kept {
    host: bool,
    forwarded_for: bool,
    forwarded_proto: bool,
    forwarded_host: bool,
    via: bool,
}

impl Kept {
    fn note(&mut self, field: Field) {
        match field {
            Field::XForwardedProto => self.forwarded_proto = true,
            Field::XForwardedHost => self.forwarded_host = true,
            _ => {}
        }
    }
}

/// What this one connection is asked for. Of `TE` only `trailers` goes on, because transfer codings
/// end at us; it needs its place in `Connection` (RFC 9110 §10.1.4).
fn write_connection(writer: &mut HeadWriter<'_>, admission: &Admission<'_>) {
    match (admission.upgrade, admission.takes_trailers) {
        (None, false) => return,
        (Some(_), false) => writer.line(b"Connection: upgrade\r\n"),
        (None, true) => writer.line(b"Connection: TE\r\n"),
        (Some(_), true) => writer.field_list(b"Connection", [&b"upgrade"[..], b"TE"]),
    };
    if let Some(protocol) = admission.upgrade {
        writer.field(b"Upgrade", protocol);
    }
    if admission.takes_trailers {
        writer.line(b"TE: trailers\r\n");
    }
}

/// One line with every member of this list so far, and `last` at the end.
fn write_behind(writer: &mut HeadWriter<'_>, name: &[u8], fields: &[FieldLine<'_>], last: &str) {
    let field = Field::of(name);
    let earlier = fields.iter().filter(|line| Field::of(line.name.as_bytes()) == field);
    let earlier = earlier.map(|line| line.value).filter(|value| !value.is_empty());
    writer.field_list(name, earlier.chain([last.as_bytes()]));
}

/// The field lines that `Connection` names, by index.
#[derive(Default)]
struct Listed([u64; FIELDS_MAX.div_ceil(64)]);

// An index of a field line fits an octet.
const _: () = assert!(FIELDS_MAX - 1 <= u8::MAX as usize);

impl Listed {
    /// Sorts the names once and looks each token up among them. To look each name up among the
    /// tokens is simpler, and lets one head of many names and many tokens occupy a worker for
    /// longer than a thousand ordinary ones.
    fn among(fields: &[FieldLine<'_>]) -> Self {
        let mut listed = Self::default();
        let name = |index: u8| fields[usize::from(index)].name.as_bytes();
        let mut room = [0_u8; FIELDS_MAX];
        let order = &mut room[..fields.len()];
        for (place, index) in order.iter_mut().zip(0_u8..=u8::MAX) {
            *place = index;
        }
        order.sort_unstable_by(|a, b| by_name(name(*a), name(*b)));
        let is_connection =
            |line: &&FieldLine<'_>| Field::of(line.name.as_bytes()) == Field::Connection;
        let connections = fields.iter().filter(is_connection);
        for token in connections.flat_map(|line| connection_tokens(line.value)) {
            let from = order.partition_point(|index| by_name(name(*index), token).is_lt());
            for index in &order[from..] {
                // Lines of one name are listed together: a repeated token ends at the first.
                if by_name(name(*index), token).is_ne() || listed.contains(*index) {
                    break;
                }
                listed.insert(*index);
            }
        }
        listed
    }

    fn insert(&mut self, index: u8) {
        self.0[usize::from(index) / 64] |= 1 << (index % 64);
    }

    fn contains(&self, index: u8) -> bool {
        self.0[usize::from(index) / 64] & (1 << (index % 64)) != 0
    }
}

/// An order in which names that differ only in case are equal.
fn by_name(a: &[u8], b: &[u8]) -> Ordering {
    let lower = u8::to_ascii_lowercase;
    a.len().cmp(&b.len()).then_with(|| a.iter().map(lower).cmp(b.iter().map(lower)))
}

/// Writes a line that is edited. Returns whether it was: what a session needs is decided before,
/// and no `Connection` line can take it away.
#[inline]
fn write_edited(writer: &mut HeadWriter<'_>, line: &FieldLine<'_>, edit: Option<&Edit>) -> bool {
    let value = match edit {
        None => return false,
        Some(Edit::Keep) => line.value,
        Some(Edit::Value(value)) => value,
        Some(Edit::Drop) => return true,
    };
    writer.field(line.name.as_bytes(), value);
    true
}

/// Whether some `Connection` line names this field, and may.
fn takes_away(listed: Option<&Listed>, index: u8, field: Field) -> bool {
    !field.is_protected() && listed.is_some_and(|listed| listed.contains(index))
}

/// What is known about a response besides what its backend said.
#[derive(Clone, Copy, Debug)]
pub struct ResponseFacts<'a> {
    /// The client's connection ends behind it, which is announced.
    pub closes: bool,
    /// The instance that the request asked for and reached.
    pub routed_instance: Option<&'a [u8]>,
    /// When it was received.
    pub received: &'a DateLine,
    /// What sessions change.
    pub edits: &'a Edits,
}

/// Appends the head that the client gets.
pub fn write_response(
    out: &mut Vec<u8>,
    head: &ResponseHead<'_>,
    request: &RequestPlan,
    plan: &ResponsePlan,
    facts: &ResponseFacts<'_>,
) {
    let ResponseFacts { closes, routed_instance, received, edits } = *facts;
    let mut writer = HeadWriter::response(out, head.status, head.reason);
    let listed = plan.connection_lists_fields.then(|| Listed::among(head.fields));
    let is_final = matches!(plan.then, Then::Relay | Then::Tunnel);
    for (index, line) in (0..=u8::MAX).zip(head.fields) {
        let name = line.name.as_bytes();
        if write_edited(&mut writer, line, edits.of(index)) {
            continue;
        }
        let field = Field::of(name);
        match field {
            // RFC 9110 §8.6: not in 1xx and 204. Elsewhere it is the framing, or describes the
            // body that HEAD and 304 leave out.
            Field::ContentLength if head.status < 200 || head.status == 204 => {}
            Field::ContentLength if plan.coding == Coding::Chunked => {}
            Field::XAccelBuffering | Field::CacheControl if plan.is_event_stream => {}
            Field::XStepflowRoutedInstance if routed_instance.is_some() => {}
            Field::Upgrade if plan.then == Then::Tunnel => {
                writer.field(name, line.value);
            }
            _ if field.is_hop_by_hop() => {}
            _ if takes_away(listed.as_ref(), index, field) => {}
            _ => {
                writer.field(name, line.value);
            }
        }
    }
    // RFC 9110 §6.6.1: whoever forwards a response without `Date` appends when it came, and may
    // replace one that is no date. That is not done: what its origin said, be it wrong or twice,
    // tells a reader more.
    if plan.then == Then::Relay && !plan.has_date {
        writer.line(received.as_bytes());
    }
    if plan.coding == Coding::Chunked {
        writer.line(b"Transfer-Encoding: chunked\r\n");
    }
    if plan.is_event_stream {
        // A proxy in front of us that buffers would undo everything (nginx obeys the first).
        writer.line(b"X-Accel-Buffering: no\r\n").line(b"Cache-Control: no-cache\r\n");
    }
    if let Some(instance) = routed_instance.filter(|_| is_final) {
        writer.field(b"X-Stepflow-Routed-Instance", instance);
    }
    for (name, value) in edits.added() {
        writer.field(name, value);
    }
    match plan.then {
        Then::Tunnel => {
            writer.line(b"Connection: upgrade\r\n");
        }
        Then::Relay if closes || plan.ends_with_connection => {
            writer.line(b"Connection: close\r\n");
        }
        Then::Relay if request.version == Version::Http10 => {
            writer.line(b"Connection: keep-alive\r\n");
        }
        Then::Relay | Then::Interim | Then::Skip => {}
    }
    writer.end();
}
