//! Pure: what a request asks of the proxy, and what a response means for both sides.

use super::{Failure, SELF_NAME};
use crate::http1::{
    Coding, Edits, Field, Framing, FramingFields, Method, RequestHead, ResponseHead, Target,
    Transfer, Version, connection_tokens, list_contains, request_framing, response_framing,
};

/// Interim responses forwarded per request. 100 and 103 come once or twice; a backend that sends
/// more than this is looping.
pub(super) const INTERIM_RESPONSES_MAX: u8 = 32;

/// Times that a request may have come through balancers of our name. Two or three in a row are
/// built on purpose, one behind the other; more are a circle, and every round costs connections.
const VIA_OURS_MAX: usize = 4;

/// Whether a side wants its connection to outlive the exchange (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// It may be used again.
    Keep,
    /// It ends with this exchange.
    Close,
}

/// How an answer of our own is worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorFormat {
    /// A JSON-RPC 2.0 error, for clients that send or accept JSON.
    JsonRpc,
    /// One line of text.
    Text,
}

/// Facts about a request that outlive its head.
#[derive(Clone, Copy, Debug)]
pub struct RequestPlan {
    /// What the method means.
    pub method: Method,
    /// Version of the message.
    pub version: Version,
    /// Where the body ends. Never `UntilClose`.
    pub framing: Framing,
    /// What the client wants of its connection.
    pub persistence: Persistence,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The client asks to switch protocols.
    pub upgrade: bool,
    /// The client accepts an event stream: if it closes, nobody is left to read one.
    pub accepts_event_stream: bool,
    /// How to word an answer of our own.
    pub error_format: ErrorFormat,
}

/// An admitted request: the facts, and what still borrows from the head.
#[derive(Debug)]
pub struct Admission<'a> {
    /// Facts that outlive the head.
    pub plan: RequestPlan,
    /// Authority to forward as Host: of the target if it has one, else of the Host field.
    pub authority: Option<&'a [u8]>,
    /// The instance that the request names.
    pub instance: Option<&'a [u8]>,
    /// `Connection` names fields besides the well-known ones, which must be looked for.
    pub(super) connection_lists_fields: bool,
    /// Value of `Upgrade` to forward.
    pub(super) upgrade: Option<&'a [u8]>,
    /// Who answers.
    pub recipient: Recipient,
    /// `Max-Forwards` to forward in place of the one received.
    pub(super) forwards_left: Option<u64>,
    /// The client takes trailers.
    pub(super) takes_trailers: bool,
    /// What sessions change in the head that goes on. Nothing, as admitted.
    pub edits: Edits,
}

/// Who answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipient {
    /// A backend.
    Backend,
    /// We, because its `Max-Forwards` says that it ends here.
    Ourselves,
}

/// Decides whether a request is served, and what it asks for.
///
/// # Errors
/// Why it is refused. The connection must close afterwards: octets behind a head that has no
/// single reading have none either.
pub fn admit<'a>(head: &RequestHead<'a>) -> Result<Admission<'a>, Failure> {
    if head.method == Method::Connect {
        return Err(Failure::ConnectRefused);
    }
    let mut seen = Seen::default();
    for line in head.fields {
        seen.field(line.name.as_bytes(), line.value)?;
    }
    let framing = request_framing(head.version, &seen.framing)?;
    let authority = check_authority(head, seen.host)?;
    if seen.via_ours > VIA_OURS_MAX {
        return Err(Failure::ViaLoop);
    }
    let expects_continue = match seen.expectation {
        // RFC 9110 §10.1.1: an HTTP/1.0 expectation is ignored.
        Some(_) if head.version == Version::Http10 => false,
        Some(Expectation::Continue) => true,
        Some(Expectation::Unknown) => return Err(Failure::ExpectationUnknown),
        None => false,
    };
    let persistence = match head.version {
        _ if seen.tokens.close => Persistence::Close,
        Version::Http11 => Persistence::Keep,
        Version::Http10 if seen.tokens.keep_alive => Persistence::Keep,
        Version::Http10 => Persistence::Close,
    };
    let upgrade = seen.upgrade.filter(|protocol| {
        head.version == Version::Http11
            && seen.tokens.upgrade
            // A request with a body would leave it open which protocol the body's octets are in.
            && framing == Framing::Length(0)
            // Towards a backend that speaks it, `h2c` would open a tunnel past every check here.
            && !names_h2c(protocol)
    });
    let forwards = seen.max_forwards.number_for(head.method)?;
    let recipient = match forwards {
        // RFC 9110 §9.3.8: an answer would repeat the request, cookies and credentials included.
        Some(0) if head.method == Method::Trace => return Err(Failure::TraceRefused),
        Some(0) => Recipient::Ourselves,
        Some(_) | None => Recipient::Backend,
    };
    let plan = RequestPlan {
        method: head.method,
        version: head.version,
        framing,
        persistence,
        expects_continue,
        upgrade: upgrade.is_some(),
        accepts_event_stream: seen.accepts_event_stream,
        error_format: if seen.speaks_json { ErrorFormat::JsonRpc } else { ErrorFormat::Text },
    };
    Ok(Admission {
        plan,
        authority,
        instance: seen.instance,
        connection_lists_fields: seen.tokens.lists_fields,
        upgrade,
        recipient,
        forwards_left: forwards.and_then(|forwards| forwards.checked_sub(1)),
        // HTTP/1.0 has no chunks, and so no place for trailers.
        takes_trailers: seen.takes_trailers && head.version == Version::Http11,
        edits: Edits::NONE,
    })
}

impl Admission<'_> {
    /// Follows the body and hands it on as it is, without what must not be a trailer.
    pub fn transfer(&self) -> Transfer {
        let transfer = Transfer::alike(self.plan.framing);
        match self.connection_lists_fields {
            true => transfer.without_trailers(),
            false => transfer,
        }
    }
}

/// Whether a member of `Via` is ours: `received-protocol RWS received-by [RWS comment]` (RFC 9110
/// §7.6.3). A comma in a comment makes members that are none; they name us only if somebody wants
/// them to, who could as well say so plainly.
fn names_us(member: &&[u8]) -> bool {
    let mut words = member.split(|b| matches!(b, b' ' | b'\t')).filter(|word| !word.is_empty());
    words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(SELF_NAME.as_bytes()))
}

/// Whether an `Upgrade` value offers HTTP/2, in any version: `name ["/" version]` (RFC 9110 §7.8).
fn names_h2c(protocols: &[u8]) -> bool {
    protocols.split(|b| *b == b',').any(|protocol| {
        let name = protocol.split(|b| matches!(b, b'/' | b';')).next().unwrap_or(protocol);
        name.trim_ascii().eq_ignore_ascii_case(b"h2c")
    })
}

/// How to word an answer to a request that is not admitted.
pub fn error_format(head: &RequestHead<'_>) -> ErrorFormat {
    let speaks_json = head.fields.iter().any(|line| {
        matches!(Field::of(line.name.as_bytes()), Field::Accept | Field::ContentType)
            && list_contains(line.value, b"application/json")
    });
    if speaks_json { ErrorFormat::JsonRpc } else { ErrorFormat::Text }
}

/// What one pass over the field lines finds.
#[derive(Default)]
struct Seen<'a> {
    framing: FramingFields,
    tokens: ConnectionTokens,
    host: Option<&'a [u8]>,
    expectation: Option<Expectation>,
    upgrade: Option<&'a [u8]>,
    instance: Option<&'a [u8]>,
    accepts_event_stream: bool,
    speaks_json: bool,
    /// Members of `Via` that name us.
    via_ours: usize,
    max_forwards: MaxForwards<'a>,
    takes_trailers: bool,
}

/// `Max-Forwards`, before it is known whether it means anything.
#[derive(Clone, Copy, Default)]
enum MaxForwards<'a> {
    #[default]
    Absent,
    Once(&'a [u8]),
    Repeated,
}

impl MaxForwards<'_> {
    /// How often the request may still be forwarded, where that is limited. For methods other than
    /// these two the field is to be ignored (RFC 9110 §7.6.2).
    fn number_for(self, method: Method) -> Result<Option<u64>, Failure> {
        if !matches!(method, Method::Options | Method::Trace) {
            return Ok(None);
        }
        match self {
            Self::Absent => Ok(None),
            Self::Once(digits) if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => {
                // A number beyond ours is forwarded as the greatest that we know.
                let number = digits.iter().fold(0_u64, |number, digit| {
                    number.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
                });
                Ok(Some(number))
            }
            Self::Once(_) | Self::Repeated => Err(Failure::MaxForwardsInvalid),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expectation {
    Continue,
    Unknown,
}

#[derive(Default)]
struct ConnectionTokens {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    lists_fields: bool,
}

impl ConnectionTokens {
    fn take_in(&mut self, value: &[u8]) {
        for token in connection_tokens(value) {
            match token {
                t if t.eq_ignore_ascii_case(b"close") => self.close = true,
                t if t.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                t if t.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                // These go, or stay, without being listed.
                t if Field::of(t).is_hop_by_hop() || Field::of(t).is_protected() => {}
                _ => self.lists_fields = true,
            }
        }
    }
}

impl<'a> Seen<'a> {
    fn field(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), Failure> {
        match Field::of(name) {
            Field::ContentLength => self.framing.content_length(value),
            Field::TransferEncoding => self.framing.transfer_encoding(value),
            Field::Connection => self.tokens.take_in(value),
            Field::Host if self.host.replace(value).is_some() => return Err(Failure::HostRepeated),
            // Every line goes on, so one that we do not know is not outweighed by one that we do.
            Field::Expect if self.expectation != Some(Expectation::Unknown) => {
                self.expectation = Some(match value.eq_ignore_ascii_case(b"100-continue") {
                    true => Expectation::Continue,
                    false => Expectation::Unknown,
                });
            }
            Field::Upgrade => self.upgrade = Some(value),
            Field::Accept => {
                self.accepts_event_stream |= list_contains(value, b"text/event-stream");
                self.speaks_json |= list_contains(value, b"application/json");
            }
            Field::ContentType => self.speaks_json |= list_contains(value, b"application/json"),
            Field::StepflowInstanceId if self.instance.replace(value).is_some() => {
                return Err(Failure::InstanceRepeated);
            }
            Field::MaxForwards => {
                self.max_forwards = match self.max_forwards {
                    MaxForwards::Absent => MaxForwards::Once(value),
                    MaxForwards::Once(_) | MaxForwards::Repeated => MaxForwards::Repeated,
                };
            }
            // A member with parameters is no `trailers` (RFC 9110 §10.1.4).
            Field::Te => {
                let mut members = connection_tokens(value);
                self.takes_trailers |= members.any(|m| m.eq_ignore_ascii_case(b"trailers"));
            }
            Field::Via => self.via_ours += value.split(|b| *b == b',').filter(names_us).count(),
            _ => {}
        }
        Ok(())
    }
}

/// RFC 9112 §3.2: exactly one valid Host in HTTP/1.1; an absolute target overrides it.
fn check_authority<'a>(
    head: &RequestHead<'a>,
    host: Option<&'a [u8]>,
) -> Result<Option<&'a [u8]>, Failure> {
    match host {
        None if head.version == Version::Http11 => return Err(Failure::HostMissing),
        Some(host) if !is_authority(host) => return Err(Failure::HostInvalid),
        _ => {}
    }
    match head.target {
        Target::Absolute { authority, .. } if !is_authority(authority) => Err(Failure::HeadTarget),
        Target::Absolute { authority, .. } => Ok(Some(authority)),
        Target::Origin(_) | Target::Authority(_) | Target::Asterisk => Ok(host),
    }
}

/// `uri-host [":" port]` (RFC 9110 §7.2), checked by its octets: whatever could end a host in one
/// reader and not in another is refused. Empty is allowed, for targets without authority.
fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', ..] => match value.iter().position(|b| *b == b']') {
            Some(end) => value.split_at(end + 1),
            None => return false,
        },
        // RFC 9110 §4.2.1: without a host there is nothing for a port to belong to.
        [b':', ..] => return false,
        // No name has a colon: where the name ends, a port begins, or what may not be there.
        _ => {
            let is_outside = |b: &u8| !IN_REG_NAME[usize::from(*b)];
            value.split_at(value.iter().position(is_outside).unwrap_or(value.len()))
        }
    };
    let port_is_valid = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let host_is_valid = match host {
        [b'[', address @ .., b']'] => {
            !address.is_empty()
                && address.iter().all(|b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.'))
        }
        _ => true,
    };
    host_is_valid && port_is_valid
}

/// Which octets a name of a host may have: unreserved / pct-encoded / sub-delims (RFC 3986 §3.2.2),
/// without the comma that would make two hosts of one line.
const IN_REG_NAME: [bool; 256] = {
    let (mut table, mut octet) = ([false; 256], 0_u8);
    loop {
        table[octet as usize] = octet.is_ascii_alphanumeric()
            || matches!(octet, b'-' | b'.' | b'_' | b'~' | b'%')
            || matches!(
                octet,
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b';' | b'='
            );
        if octet == u8::MAX {
            break table;
        }
        octet += 1;
    }
};

/// What follows a response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another head: this one was 1xx and is forwarded on its own.
    Interim,
    /// Another head: this one was 1xx and the client's version does not know such.
    Skip,
    /// Opaque octets in both directions.
    Tunnel,
    /// The body.
    Relay,
}

/// Facts about a response that outlive its head.
#[derive(Clone, Copy, Debug)]
pub struct ResponsePlan {
    /// Status code.
    pub status: u16,
    /// What follows the head.
    pub then: Then,
    /// Follows the body and hands it on.
    pub transfer: Transfer,
    /// An event stream: it is counted as one, and may be silent for as long as it likes.
    pub is_event_stream: bool,
    /// The content has a coding, so nobody but its reader knows what it says.
    pub is_coded: bool,
    /// Octets of the body, where the head tells.
    pub body_bytes: Option<u64>,
    /// How the outgoing body is delimited.
    pub coding: Coding,
    /// The outgoing body ends with the client's connection.
    pub ends_with_connection: bool,
    /// What the backend wants of its connection.
    pub upstream_persistence: Persistence,
    /// `Connection` names fields besides the well-known ones.
    pub(super) connection_lists_fields: bool,
    /// Its backend says when it was made.
    pub(super) has_date: bool,
}

impl ResponsePlan {
    /// A body of known length is a promise to deliver, so silence within it has a deadline. Bodies
    /// without a length may be streams, whose silence means nothing.
    pub fn has_body_deadline(&self) -> bool {
        self.body_bytes.is_some_and(|bytes| bytes > 0) && !self.is_event_stream
    }

    /// The client sees the end of the body in the end of its connection, and nowhere else.
    pub fn ends_by_closing(&self) -> bool {
        self.then == Then::Relay && self.body_bytes.is_none() && self.coding == Coding::Identity
    }
}

/// Decides what a response means. `interims` counts the 1xx heads before this one.
///
/// # Errors
/// When the response has no single reading, or is not an answer to this request.
pub fn plan_response(
    request: &RequestPlan,
    head: &ResponseHead<'_>,
    interims: u8,
) -> Result<ResponsePlan, Failure> {
    let mut framing_fields = FramingFields::default();
    let mut tokens = ConnectionTokens::default();
    let (mut is_event_stream, mut is_encoded, mut names_protocol) = (false, false, false);
    let mut has_date = false;
    for line in head.fields {
        match Field::of(line.name.as_bytes()) {
            Field::ContentLength => framing_fields.content_length(line.value),
            Field::TransferEncoding => framing_fields.transfer_encoding(line.value),
            Field::Connection => tokens.take_in(line.value),
            Field::ContentType => is_event_stream = list_contains(line.value, b"text/event-stream"),
            Field::ContentEncoding => is_encoded |= !line.value.eq_ignore_ascii_case(b"identity"),
            Field::Upgrade => names_protocol = true,
            Field::Date => has_date = true,
            _ => {}
        }
    }
    let is_head = request.method == Method::Head;
    let framing = response_framing(head.version, head.status, is_head, &framing_fields)
        .map_err(|_| Failure::ResponseFraming)?;
    let then = match head.status {
        101 if request.upgrade && names_protocol => Then::Tunnel,
        101 => return Err(Failure::ResponseUpgrade),
        100..=199 if interims >= INTERIM_RESPONSES_MAX => return Err(Failure::ResponseHead),
        100..=199 if request.version == Version::Http10 => Then::Skip,
        100..=199 => Then::Interim,
        _ => Then::Relay,
    };
    let has_body = framing != Framing::Length(0);
    let is_event_stream = is_event_stream && has_body;
    let coding = match framing {
        Framing::Length(_) => Coding::Identity,
        Framing::Chunked | Framing::UntilClose if request.version == Version::Http11 => {
            Coding::Chunked
        }
        Framing::Chunked | Framing::UntilClose => Coding::Identity,
    };
    let mut transfer = match (is_event_stream, is_encoded) {
        (true, false) => Transfer::text(framing, coding),
        (true, true) => Transfer::rewriting(framing, coding),
        (false, _) => Transfer::new(framing, coding),
    };
    if tokens.lists_fields {
        transfer = transfer.without_trailers();
    }
    let upstream_persistence = match head.version {
        _ if tokens.close || framing == Framing::UntilClose || then == Then::Tunnel => {
            Persistence::Close
        }
        Version::Http11 => Persistence::Keep,
        Version::Http10 if tokens.keep_alive => Persistence::Keep,
        Version::Http10 => Persistence::Close,
    };
    Ok(ResponsePlan {
        status: head.status,
        then,
        transfer,
        is_event_stream,
        is_coded: is_encoded,
        body_bytes: match framing {
            Framing::Length(bytes) => Some(bytes),
            Framing::Chunked | Framing::UntilClose => None,
        },
        coding,
        ends_with_connection: then == Then::Tunnel
            || (coding == Coding::Identity && !matches!(framing, Framing::Length(_))),
        upstream_persistence,
        connection_lists_fields: tokens.lists_fields,
        has_date,
    })
}
