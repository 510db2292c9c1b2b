//! What is asked and what is answered, apart from how it travels.

use std::time::SystemTime;

use crate::http1::{
    BodyError, DateLine, Field, FramingError, FramingFields, HeadError, HeadWriter, Method,
    RequestHead, ScanError, Version, list_contains, reason_phrase,
};

/// A request, complete with its body.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub target: Box<[u8]>,
    /// Value of `Host`, as sent; empty without one.
    pub host: Box<[u8]>,
    /// Value of the first `Stepflow-Instance-Id`.
    pub instance: Option<Box<[u8]>>,
    /// A web page sent it: browsers say so in `Origin`.
    pub has_origin: bool,
    /// The body's octets.
    pub body: Vec<u8>,
    /// Whether the client wants the connection to end with the response.
    pub closes: bool,
    /// Whether it sends the body only when asked to (RFC 9110 §10.1.1).
    pub(super) expects_continue: bool,
}

/// A response that is known whole.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Media type of the body.
    pub content_type: &'static str,
    /// Further field lines.
    pub fields: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a request cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The octets are not an HTTP/1 request, or one with two readings.
    Malformed,
    /// An HTTP version other than 1.0 and 1.1.
    Version,
    /// A transfer coding other than chunked.
    Coding,
    /// The head is longer than any that belongs here.
    HeadTooLarge,
    /// The body is longer than allowed.
    BodyTooLarge,
    /// The request did not arrive in time.
    Timeout,
}

impl Refusal {
    /// What the client is told. The connection ends with it.
    pub fn response(self) -> Response {
        let (status, reason) = match self {
            Self::Malformed => (400, "this is not a valid HTTP/1.1 request"),
            Self::Version => (505, "only HTTP/1.1 and HTTP/1.0 are spoken here"),
            Self::Coding => (501, "chunked is the only transfer coding here"),
            Self::HeadTooLarge => (431, "the request head is too large"),
            Self::BodyTooLarge => (413, "the request body is too large"),
            Self::Timeout => (408, "the request did not arrive in time"),
        };
        Response::text(status, format!("{reason}\n"))
    }
}

impl From<ScanError> for Refusal {
    fn from(_: ScanError) -> Self {
        Self::Malformed
    }
}

impl From<HeadError> for Refusal {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Version => Self::Version,
            HeadError::TooManyFields => Self::HeadTooLarge,
            _ => Self::Malformed,
        }
    }
}

impl From<FramingError> for Refusal {
    fn from(error: FramingError) -> Self {
        match error {
            FramingError::CodingUnknown => Self::Coding,
            _ => Self::Malformed,
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(_: BodyError) -> Self {
        Self::Malformed
    }
}

impl Request {
    /// The request that a head begins, still without its body, and how that body is framed.
    pub(super) fn begin(head: &RequestHead<'_>) -> Result<(Self, FramingFields), Refusal> {
        let mut framing = FramingFields::default();
        let mut request = Self {
            method: head.method,
            target: head.target.forwarded().into(),
            host: Box::default(),
            instance: None,
            has_origin: false,
            body: Vec::new(),
            closes: head.version == Version::Http10,
            expects_continue: false,
        };
        let mut hosts = 0;
        for line in head.fields {
            match Field::of(line.name.as_bytes()) {
                Field::Host => {
                    hosts += 1;
                    request.host = line.value.into();
                }
                Field::ContentLength => framing.content_length(line.value),
                Field::TransferEncoding => framing.transfer_encoding(line.value),
                Field::Connection => request.closes |= list_contains(line.value, b"close"),
                Field::Expect if head.version == Version::Http11 => {
                    request.expects_continue |= list_contains(line.value, b"100-continue");
                }
                Field::StepflowInstanceId if request.instance.is_none() => {
                    request.instance = Some(line.value.into());
                }
                _ => request.has_origin |= line.name.eq_ignore_ascii_case("origin"),
            }
        }
        // RFC 9112 §3.2: a server must refuse both.
        if hosts > 1 || hosts == 0 && head.version == Version::Http11 {
            return Err(Refusal::Malformed);
        }
        Ok((request, framing))
    }

    /// The target without its query.
    pub fn path(&self) -> &[u8] {
        self.target.split(|b| *b == b'?').next().unwrap_or_default()
    }

    /// What follows the first `?` of the target.
    pub fn query(&self) -> Option<&[u8]> {
        self.target.splitn(2, |b| *b == b'?').nth(1)
    }
}

impl Response {
    /// A response of plain text.
    pub fn text(status: u16, body: String) -> Self {
        let content_type = "text/plain; charset=utf-8";
        Self { status, content_type, fields: Vec::new(), body: body.into_bytes() }
    }

    /// A response of JSON.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        let content_type = "application/json";
        Self { status, content_type, fields: Vec::new(), body: body.into() }
    }

    /// The same with one more field line. The value must not hold control characters.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.fields.push((name, value));
        self
    }

    /// Appends head and body. A HEAD request gets the head alone (RFC 9110 §9.3.2).
    pub(super) fn write(&self, out: &mut Vec<u8>, method: Method, closes: bool) {
        let mut head = self.begin_head(out);
        head.field_number(b"Content-Length", self.body.len() as u64);
        if closes {
            head.field(b"Connection", b"close");
        }
        head.end();
        if method != Method::Head {
            out.extend_from_slice(&self.body);
        }
    }

    /// Appends the lines that do not depend on how the body is framed.
    pub(super) fn begin_head<'a>(&self, out: &'a mut Vec<u8>) -> HeadWriter<'a> {
        let reason = reason_phrase(self.status);
        let mut head = HeadWriter::response(out, self.status, reason.as_bytes());
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        head.line(DateLine::at(now).as_bytes());
        head.field(b"Content-Type", self.content_type.as_bytes());
        for (name, value) in &self.fields {
            head.field(name.as_bytes(), value.as_bytes());
        }
        head
    }
}
