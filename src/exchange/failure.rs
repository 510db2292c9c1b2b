//! Pure: everything that can go wrong with an exchange, in one table.
//!
//! The labels are public: they appear in logs, in metrics and in `docs/ERRORS.md`, and a test keeps
//! that page and this table the same.

use crate::{
    http1::{BodyError, FramingError, HeadError, ScanError},
    stats::FAILURES_MAX,
};

/// Who caused it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client.
    Downstream,
    /// The backend.
    Upstream,
    /// The balancer, or the state it is in.
    Internal,
}

impl Origin {
    /// Label for logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
        }
    }
}

/// The step of an exchange in which it happened (docs/LIFECYCLE.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the steps are described in docs/LIFECYCLE.md")]
pub enum Stage {
    Accept,
    Head,
    Admit,
    Pick,
    Connect,
    Forward,
    Relay,
}

impl Stage {
    /// Label for logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Head => "head",
            Self::Admit => "admit",
            Self::Pick => "pick",
            Self::Connect => "connect",
            Self::Forward => "forward",
            Self::Relay => "relay",
        }
    }
}

macro_rules! failures {
    ($(
        $(#[$doc:meta])+
        $name:ident: $origin:ident, $stage:ident, $status:expr, $label:literal, $reason:literal;
    )+) => {
        /// What went wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Failure { $($(#[$doc])+ $name,)+ }

        impl Failure {
            /// Every failure, in the order of [`Failure::index`].
            pub const ALL: &[Self] = &[$(Self::$name,)+];
            /// Every label, in the same order.
            pub const LABELS: &[&str] = &[$($label,)+];

            /// Who caused it.
            pub fn origin(self) -> Origin {
                match self { $(Self::$name => Origin::$origin,)+ }
            }

            /// Where it happened.
            pub fn stage(self) -> Stage {
                match self { $(Self::$name => Stage::$stage,)+ }
            }

            /// Status of the answer, if the client can still get one; `None` when there is nobody
            /// to answer or the response had begun.
            pub fn status(self) -> Option<u16> {
                match self { $(Self::$name => $status,)+ }
            }

            /// One sentence for the client, without a full stop.
            pub fn reason(self) -> &'static str {
                match self { $(Self::$name => $reason,)+ }
            }
        }
    };
}

failures! {
    /// More connections than `connections_max`.
    TooManyConnections: Internal, Accept, Some(503), "too_many_connections", "the balancer has as many connections as connections_max lets it";
    /// More connections of one client than `connections_per_client_max`.
    TooManyConnectionsOfClient: Downstream, Accept, Some(429), "too_many_connections_of_client", "this client has as many connections as connections_per_client_max lets it";
    /// A line of the head ends in LF without CR.
    HeadBareLf: Downstream, Head, Some(400), "head_bare_lf", "a line of the head ends in LF without CR";
    /// Octets that cannot begin an HTTP/1 request.
    HeadNotHttp: Downstream, Head, Some(400), "head_not_http", "this is not an HTTP/1.1 request";
    /// A TLS handshake on the plain port.
    HeadTls: Downstream, Head, Some(400), "head_tls", "this port speaks plain HTTP, not TLS";
    /// The request line does not parse.
    HeadStartLine: Downstream, Head, Some(400), "head_start_line", "the request line is not `method SP target SP HTTP/1.1`";
    /// The target fits no form.
    HeadTarget: Downstream, Head, Some(400), "head_target", "the request target has no form that fits the method";
    /// A version other than 1.0 and 1.1, such as HTTP/2 with prior knowledge.
    HeadVersion: Downstream, Head, Some(505), "head_version", "only HTTP/1.1 and HTTP/1.0 are spoken here";
    /// A malformed field name.
    HeadFieldName: Downstream, Head, Some(400), "head_field_name", "a field name is not a token directly followed by a colon";
    /// A control octet in a field value.
    HeadFieldValue: Downstream, Head, Some(400), "head_field_value", "a field value holds a control octet";
    /// Larger than `request_head_bytes_max`.
    HeadTooLarge: Downstream, Head, Some(431), "head_too_large", "the request head is larger than request_head_bytes_max";
    /// A request line longer than `request_line_bytes_max`.
    HeadLineTooLong: Downstream, Head, Some(414), "head_line_too_long", "the request line is longer than request_line_bytes_max";
    /// More fields than `fields_max`.
    HeadTooManyFields: Downstream, Head, Some(431), "head_too_many_fields", "the request has more fields than fields_max";
    /// The head did not arrive within `request_head_timeout`.
    HeadTimeout: Downstream, Head, Some(408), "head_timeout", "the request head did not arrive in time";
    /// The head arrived more slowly than `request_head_rate_min`.
    HeadTooSlow: Downstream, Head, Some(408), "head_too_slow", "the request head arrives more slowly than request_head_rate_min";
    /// Too many heads were being read, and this one for the longest time.
    HeadCrowdedOut: Downstream, Head, Some(408), "head_crowded_out", "of more than heads_in_reading_max request heads this one was the slowest";
    /// The client closed inside a head.
    HeadTruncated: Downstream, Head, None, "head_truncated", "the client closed inside a request head";
    /// An HTTP/1.1 request without Host.
    HostMissing: Downstream, Admit, Some(400), "host_missing", "an HTTP/1.1 request needs a Host field";
    /// More than one Host.
    HostRepeated: Downstream, Admit, Some(400), "host_repeated", "the Host field appears more than once";
    /// A Host that is not `host[:port]`.
    HostInvalid: Downstream, Admit, Some(400), "host_invalid", "the Host field is not host[:port]";
    /// A Content-Length that is not one number.
    LengthInvalid: Downstream, Admit, Some(400), "length_invalid", "Content-Length is not one run of digits that fits 64 bits";
    /// More than one Content-Length.
    LengthRepeated: Downstream, Admit, Some(400), "length_repeated", "Content-Length appears more than once";
    /// Content-Length together with Transfer-Encoding.
    LengthAndCoding: Downstream, Admit, Some(400), "length_and_coding", "Content-Length and Transfer-Encoding exclude each other";
    /// A transfer coding other than chunked.
    CodingUnknown: Downstream, Admit, Some(501), "coding_unknown", "the only transfer coding accepted is chunked";
    /// `chunked` repeated or not last.
    CodingNotLast: Downstream, Admit, Some(400), "coding_not_last", "chunked must be the last transfer coding, once";
    /// Transfer-Encoding in HTTP/1.0.
    CodingInHttp10: Downstream, Admit, Some(400), "coding_in_http10", "HTTP/1.0 has no Transfer-Encoding";
    /// CONNECT.
    ConnectRefused: Downstream, Admit, Some(405), "connect_refused", "CONNECT is not served here";
    /// An expectation other than 100-continue.
    ExpectationUnknown: Downstream, Admit, Some(417), "expectation_unknown", "the only expectation accepted is 100-continue";
    /// More than one Stepflow-Instance-Id.
    InstanceRepeated: Downstream, Admit, Some(400), "instance_repeated", "Stepflow-Instance-Id appears more than once";
    /// A Max-Forwards that is not one number, where it counts.
    MaxForwardsInvalid: Downstream, Admit, Some(400), "max_forwards_invalid", "Max-Forwards is not one run of digits";
    /// TRACE whose last station we are.
    TraceRefused: Downstream, Admit, Some(405), "trace_refused", "TRACE is not answered here";
    /// We stand in its Via too often.
    ViaLoop: Downstream, Admit, Some(508), "via_loop", "the request has come through this balancer again and again (see Via)";
    /// The named instance is not known, or gone.
    InstanceUnknown: Internal, Pick, Some(503), "instance_unknown", "Instance not found in healthy backends";
    /// The named instance is known, and does not accept connections.
    InstanceUnreachable: Upstream, Connect, Some(503), "instance_unreachable", "Instance does not accept connections";
    /// The request brings two session headers.
    SessionRepeated: Downstream, Admit, Some(400), "session_repeated", "the session header appears more than once";
    /// The session's instance is gone, or nobody can tell which it is; the client must begin anew.
    SessionLost: Internal, Pick, Some(404), "session_lost", "Session not found";
    /// The same, where the client is to try again.
    SessionUnavailable: Internal, Pick, Some(503), "session_unavailable", "the session's instance is not there";
    /// The backend gave an id of a session that is too long to be sealed.
    SessionIdTooLong: Upstream, Relay, Some(502), "session_id_too_long", "the backend's session id is too long to be sealed";
    /// No backend can take the request.
    NoHealthyBackend: Internal, Pick, Some(503), "no_healthy_backend", "No healthy backend";
    /// Every backend is full, and so is the queue.
    QueueFull: Internal, Pick, Some(503), "queue_full", "every backend is full, and as many requests wait as queue_max lets";
    /// Every backend was full for as long as a request may wait.
    QueueTimeout: Internal, Pick, Some(503), "queue_timeout", "every backend was full for as long as queue_timeout";
    /// Every backend that was tried refused the connection.
    ConnectFailed: Upstream, Connect, Some(502), "connect_failed", "the backend does not accept connections";
    /// Every backend that was tried did not answer the connection in time.
    ConnectTimeout: Upstream, Connect, Some(504), "connect_timeout", "the backend does not answer the connection attempt";
    /// This process may not open more descriptors.
    DescriptorsExhausted: Internal, Connect, Some(503), "descriptors_exhausted", "the balancer has no descriptors left";
    /// The backend closed before it answered.
    BackendClosed: Upstream, Forward, Some(502), "backend_closed", "the backend closed the connection before it answered";
    /// The response head does not parse or is too large.
    ResponseHead: Upstream, Relay, Some(502), "response_head", "the backend's response head is malformed or too large";
    /// The backend did not answer within `response_head_timeout`.
    ResponseHeadTimeout: Upstream, Relay, Some(504), "response_head_timeout", "the backend did not answer within response_head_timeout";
    /// The response's length has no one reading.
    ResponseFraming: Upstream, Relay, Some(502), "response_framing", "the backend's response has no single length";
    /// 101 that nobody asked for.
    ResponseUpgrade: Upstream, Relay, Some(502), "response_upgrade", "the backend switched protocols unasked";
    /// More content than `request_body_bytes_max`.
    RequestTooLarge: Downstream, Relay, Some(413), "request_too_large", "the request body is larger than request_body_bytes_max";
    /// More octets of chunk extensions than `chunk_extension_bytes_max`.
    ChunkExtensionsTooLong: Downstream, Relay, Some(400), "chunk_extensions_too_long", "the request body has longer chunk extensions than chunk_extension_bytes_max";
    /// A trailer section longer than `trailer_bytes_max`.
    TrailersTooLong: Downstream, Relay, Some(431), "trailers_too_long", "the request body has a longer trailer section than trailer_bytes_max";
    /// The request body breaks its framing.
    RequestBody: Downstream, Relay, Some(400), "request_body", "the request body breaks its chunked framing";
    /// The request body stopped arriving.
    RequestBodyTimeout: Downstream, Relay, Some(408), "request_body_timeout", "the request body stopped arriving";
    /// The client left inside its own request body.
    RequestTruncated: Downstream, Relay, None, "request_truncated", "the client closed inside a request body";
    /// The backend stopped taking the request.
    BackendStalled: Upstream, Forward, Some(504), "backend_stalled", "the backend stopped reading the request";
    /// The response body broke its framing or a limit.
    ResponseBody: Upstream, Relay, Some(502), "response_body", "the backend's response body breaks its chunked framing or its limits";
    /// The response body of known length stopped arriving.
    ResponseBodyTimeout: Upstream, Relay, None, "response_body_timeout", "the backend's response body stopped arriving";
    /// The backend closed inside the response.
    ResponseTruncated: Upstream, Relay, None, "response_truncated", "the backend closed inside its response";
    /// Asked for the rest of an event stream, another backend answered something else.
    StreamNotContinued: Upstream, Relay, None, "stream_not_continued", "the backend that was to go on with the stream answered something else";
    /// Its backend has drained for as long as `backend_drain_timeout`.
    BackendDrainTimeout: Internal, Relay, Some(503), "backend_drain_timeout", "the backend is being emptied, and backend_drain_timeout has passed";
    /// A tunnel carried nothing for `tunnel_idle_timeout`.
    TunnelIdle: Internal, Relay, None, "tunnel_idle", "the tunnel carried nothing within tunnel_idle_timeout";
    /// The client left before the response ended.
    ClientGone: Downstream, Relay, None, "client_gone", "the client left before the response ended";
    /// The client stopped taking the response.
    ClientStalled: Downstream, Relay, None, "client_stalled", "the client stopped reading the response";
    /// A broken invariant of ours.
    Panicked: Internal, Relay, None, "panicked", "an internal error ended the connection";
}

// Every failure has a counter.
const _: () = assert!(Failure::ALL.len() <= FAILURES_MAX);

impl Failure {
    /// Place in tables that have one entry per failure.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Label for logs and metrics. Part of the public interface.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

impl From<ScanError> for Failure {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::BareLf => Self::HeadBareLf,
            ScanError::EmptyLine => Self::HeadStartLine,
            ScanError::NotHttp => Self::HeadNotHttp,
            ScanError::Tls => Self::HeadTls,
        }
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::TooManyFields => Self::HeadTooManyFields,
            HeadError::FieldName => Self::HeadFieldName,
            HeadError::FieldValue => Self::HeadFieldValue,
            HeadError::StartLine | HeadError::Status => Self::HeadStartLine,
            HeadError::Target => Self::HeadTarget,
            HeadError::Version => Self::HeadVersion,
        }
    }
}

/// For requests; a response that cannot be framed is [`Failure::ResponseFraming`] whatever the row.
impl From<FramingError> for Failure {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::LengthInvalid | FramingError::LengthOverflow => Self::LengthInvalid,
            FramingError::LengthRepeated => Self::LengthRepeated,
            FramingError::LengthAndCoding => Self::LengthAndCoding,
            FramingError::CodingUnknown => Self::CodingUnknown,
            FramingError::ChunkedNotLast => Self::CodingNotLast,
            FramingError::CodingInHttp10 => Self::CodingInHttp10,
        }
    }
}

/// For requests.
impl From<BodyError> for Failure {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Truncated => Self::RequestTruncated,
            BodyError::ContentTooLong => Self::RequestTooLarge,
            BodyError::ChunkExtensionTooLong => Self::ChunkExtensionsTooLong,
            BodyError::TrailerTooLong => Self::TrailersTooLong,
            BodyError::ChunkSize
            | BodyError::ChunkSizeOverflow
            | BodyError::ChunkExtension
            | BodyError::ChunkEnd
            | BodyError::Trailer => Self::RequestBody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_snake_case_and_in_index_order() {
        let mut seen = std::collections::BTreeSet::new();
        for (index, failure) in Failure::ALL.iter().enumerate() {
            assert_eq!(failure.index(), index);
            let label = failure.label();
            assert!(
                label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'_' | b'0'..=b'9')),
                "{label}"
            );
            assert!(seen.insert(label), "{label} appears twice");
        }
    }

    #[test]
    fn the_blame_fits_the_status() {
        for failure in Failure::ALL {
            match (failure.origin(), failure.status()) {
                (_, None) => {}
                (Origin::Downstream, Some(status)) => {
                    assert!(status < 500 || matches!(status, 501 | 505 | 508), "{failure:?}");
                }
                (Origin::Upstream | Origin::Internal, Some(status)) => {
                    // A session that is gone with its instance is nobody's fault, and 404 all the
                    // same: that is what tells a client to begin anew.
                    let is_lost = failure == &Failure::SessionLost;
                    assert!((502..=504).contains(&status) || is_lost, "{failure:?}");
                }
            }
        }
    }

    #[test]
    fn every_failure_is_documented_as_it_is() {
        let page = include_str!("../../docs/ERRORS.md");
        for failure in Failure::ALL {
            let status = failure.status().map_or_else(|| "none".to_owned(), |s| s.to_string());
            let row = format!(
                "| `{}` | {status} | {} | {} | {} |",
                failure.label(),
                failure.origin().label(),
                failure.stage().label(),
                failure.reason()
            );
            assert!(page.contains(&row), "docs/ERRORS.md lacks: {row}");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, Failure::ALL.len(), "docs/ERRORS.md lists failures that do not exist");
    }
}
