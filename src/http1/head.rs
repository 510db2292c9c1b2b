//! Pure: what a complete head says.
//!
//! Borrows from the octets it was parsed from and lives for one synchronous stretch of code: the
//! caller draws its conclusions, writes the outgoing head, and keeps only small `Copy` facts.

use std::mem::MaybeUninit;

use memchr::{memchr, memrchr};

use super::Method;

/// One field line: `name` as sent, `value` without the optional white space around it.
pub use httparse::Header as FieldLine;

/// Most field lines that any configuration may allow.
pub const FIELDS_MAX: usize = 256;

/// Room for the field lines of one head. Uninitialised, so it costs stack space and no time.
pub type FieldStorage<'a> = [MaybeUninit<FieldLine<'a>>; FIELDS_MAX];

/// Room for the field lines of one head.
pub fn field_storage<'a>() -> FieldStorage<'a> {
    [const { MaybeUninit::uninit() }; FIELDS_MAX]
}

/// Protocol version of a message. Others are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// What the method means.
    pub method: Method,
    /// The method as sent.
    pub method_token: &'a [u8],
    /// The target as sent.
    pub target: Target<'a>,
    /// Version of the message.
    pub version: Version,
    /// Field lines in order.
    pub fields: &'a [FieldLine<'a>],
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead<'a> {
    /// Version of the message.
    pub version: Version,
    /// Three digits, at least 100.
    pub status: u16,
    /// Reason phrase as sent, often empty.
    pub reason: &'a [u8],
    /// Field lines in order.
    pub fields: &'a [FieldLine<'a>],
}

/// A request target (RFC 9112 §3.2), octets preserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// `/path?query`
    Origin(&'a [u8]),
    /// `http://authority/path?query`, taken apart. An empty path is given as `/`, or as `*` for
    /// OPTIONS (RFC 9112 §3.2.4).
    Absolute {
        /// What names the host; wins over the Host field.
        authority: &'a [u8],
        /// What a backend gets.
        path: &'a [u8],
    },
    /// `host:port`, for CONNECT only.
    Authority(&'a [u8]),
    /// `*`, for OPTIONS only.
    Asterisk,
}

impl<'a> Target<'a> {
    /// The target to put into the request line towards a backend.
    pub fn forwarded(self) -> &'a [u8] {
        match self {
            Self::Origin(path) | Self::Absolute { path, .. } => path,
            Self::Authority(authority) => authority,
            Self::Asterisk => b"*",
        }
    }

    /// The path without the query.
    pub fn path(self) -> &'a [u8] {
        let target = self.forwarded();
        &target[..memchr(b'?', target).unwrap_or(target.len())]
    }
}

/// Why a complete head has no reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// More field lines than allowed.
    TooManyFields,
    /// A field name that is not a token, white space before the colon, or a folded line.
    FieldName,
    /// A control octet in a field value.
    FieldValue,
    /// The start line has not its three parts with one space between.
    StartLine,
    /// A target that fits no form, or not the form that the method asks for.
    Target,
    /// An `HTTP/` version other than 1.0 and 1.1.
    Version,
    /// A status that is not three digits from 100 up.
    Status,
}

/// Parses a head that [`super::HeadScan`] found complete.
///
/// # Errors
/// What is wrong with it.
pub fn parse_request<'a>(
    octets: &'a [u8],
    storage: &'a mut FieldStorage<'a>,
    fields_max: usize,
) -> Result<RequestHead<'a>, HeadError> {
    let mut parsed = httparse::Request::new(&mut []);
    let room = &mut storage[..fields_max.min(FIELDS_MAX)];
    let config = httparse::ParserConfig::default();
    let status = config.parse_request_with_uninit_headers(&mut parsed, octets, room);
    completed(status, octets).map_err(|error| request_error(octets, error))?;
    let (Some(method_token), Some(target), Some(minor)) =
        (parsed.method, parsed.path, parsed.version)
    else {
        return Err(HeadError::StartLine);
    };
    // httparse would skip empty lines in front, and take a LF for the end of a line.
    let line_bytes = method_token.len() + target.len() + b"  HTTP/1.1".len();
    if octets.first() != method_token.as_bytes().first()
        || octets.get(line_bytes..line_bytes + 2) != Some(b"\r\n")
    {
        return Err(HeadError::StartLine);
    }
    let method = Method::of(method_token.as_bytes());
    Ok(RequestHead {
        method,
        method_token: method_token.as_bytes(),
        target: target_form(method, target.as_bytes())?,
        version: if minor == 0 { Version::Http10 } else { Version::Http11 },
        fields: parsed.headers,
    })
}

/// Parses a response head that [`super::HeadScan`] found complete.
///
/// # Errors
/// What is wrong with it.
pub fn parse_response<'a>(
    octets: &'a [u8],
    storage: &'a mut FieldStorage<'a>,
    fields_max: usize,
) -> Result<ResponseHead<'a>, HeadError> {
    let mut parsed = httparse::Response::new(&mut []);
    let room = &mut storage[..fields_max.min(FIELDS_MAX)];
    let config = httparse::ParserConfig::default();
    let status = config.parse_response_with_uninit_headers(&mut parsed, octets, room);
    completed(status, octets)?;
    let (Some(minor), Some(status)) = (parsed.version, parsed.code) else {
        return Err(HeadError::StartLine);
    };
    if status < 100 {
        return Err(HeadError::Status);
    }
    Ok(ResponseHead {
        version: if minor == 0 { Version::Http10 } else { Version::Http11 },
        status,
        reason: parsed.reason.unwrap_or_default().as_bytes(),
        fields: parsed.headers,
    })
}

/// The whole head must have been read: a parser that stops earlier or wants more disagrees with
/// [`super::HeadScan`] about where the message ends, and then neither is believed.
fn completed(status: httparse::Result<usize>, octets: &[u8]) -> Result<(), HeadError> {
    use httparse::Error;
    match status {
        Ok(httparse::Status::Complete(n)) if n == octets.len() => Ok(()),
        Ok(_) => Err(HeadError::StartLine),
        Err(Error::TooManyHeaders) => Err(HeadError::TooManyFields),
        Err(Error::HeaderName) => Err(HeadError::FieldName),
        Err(Error::HeaderValue) => Err(HeadError::FieldValue),
        Err(Error::Version) => Err(HeadError::Version),
        Err(Error::Status) => Err(HeadError::Status),
        Err(Error::NewLine | Error::Token) => Err(HeadError::StartLine),
    }
}

/// httparse reports an unknown version as a token error; an operator wants to know that an HTTP/2
/// client with prior knowledge, or a very old one, is knocking.
#[cold]
fn request_error(octets: &[u8], error: HeadError) -> HeadError {
    let line = &octets[..memchr(b'\r', octets).unwrap_or(octets.len())];
    let last_word = &line[memrchr(b' ', line).map_or(0, |space| space + 1)..];
    match (last_word, error) {
        // The version is right, so something else stands in its place: a space in the target.
        (b"HTTP/1.1" | b"HTTP/1.0", HeadError::Version) => HeadError::StartLine,
        (b"HTTP/1.1" | b"HTTP/1.0", error) => error,
        ([b'H', b'T', b'T', b'P', b'/', major, b'.', minor], _)
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            HeadError::Version
        }
        _ => HeadError::StartLine,
    }
}

fn target_form(method: Method, target: &[u8]) -> Result<Target<'_>, HeadError> {
    match (method, target) {
        (Method::Connect, _) if target.contains(&b'/') => Err(HeadError::Target),
        (Method::Connect, _) => Ok(Target::Authority(target)),
        (Method::Options, b"*") => Ok(Target::Asterisk),
        // RFC 9112 §3.2: a fragment is not part of any target form.
        _ if target.contains(&b'#') => Err(HeadError::Target),
        (_, [b'/', ..]) => Ok(Target::Origin(target)),
        _ => absolute_form(method, target).ok_or(HeadError::Target),
    }
}

/// Takes `scheme://authority[/path][?query]` apart. User information is refused: RFC 9110 §4.2.4
/// deprecates it, and it serves to disguise the host.
fn absolute_form(method: Method, target: &[u8]) -> Option<Target<'_>> {
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (head, rest) = target.split_at_checked(scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then_some(rest)
    })?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains(&b'@') {
        return None;
    }
    match (method, path) {
        (Method::Options, b"") => Some(Target::Absolute { authority, path: b"*" }),
        (_, b"") => Some(Target::Absolute { authority, path: b"/" }),
        // `http://host?query` has an empty path, which has no octets to forward in front of `?`.
        (_, [b'?', ..]) => None,
        _ => Some(Target::Absolute { authority, path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(octets: &[u8]) -> Result<(Method, Version, Vec<u8>, usize), HeadError> {
        let mut storage = field_storage();
        let head = parse_request(octets, &mut storage, 4)?;
        Ok((head.method, head.version, head.target.forwarded().to_vec(), head.fields.len()))
    }

    #[test]
    fn target_forms() {
        let ok = |line: &str, want: &str| {
            let octets = format!("{line}\r\nHost: h\r\n\r\n");
            let got = request(octets.as_bytes()).map(|r| String::from_utf8(r.2).unwrap());
            assert_eq!(got.as_deref(), Ok(want), "{line}");
        };
        ok("GET /a%2Fb?c=%00 HTTP/1.1", "/a%2Fb?c=%00");
        ok("GET http://h/x?y HTTP/1.1", "/x?y");
        ok("GET HTTP://h HTTP/1.0", "/");
        ok("OPTIONS http://h HTTP/1.1", "*");
        ok("OPTIONS * HTTP/1.1", "*");
        ok("GET //double HTTP/1.1", "//double");
    }

    #[test]
    fn heads_without_one_reading_are_refused() {
        let cases: &[(&[u8], HeadError)] = &[
            (b"GET /\r\n\r\n", HeadError::StartLine),
            (b"GET  / HTTP/1.1\r\n\r\n", HeadError::StartLine),
            (b"GET / HTTP/1.1 \r\n\r\n", HeadError::StartLine),
            (b"GET /a b HTTP/1.1\r\n\r\n", HeadError::StartLine),
            (b"G@T / HTTP/1.1\r\n\r\n", HeadError::StartLine),
            (b"\r\nGET / HTTP/1.1\r\n\r\n", HeadError::StartLine),
            (b"GET / HTTP/1.1\nA: b\r\n\r\n", HeadError::StartLine),
            (b"G@T / HTTP/2.0\r\n\r\n", HeadError::Version),
            (b"GET /a b HTTP/2.0\r\nA : b\r\n\r\n", HeadError::Version),
            (b"PRI * HTTP/2.0\r\n\r\n", HeadError::Version),
            (b"GET / HTTP/1.2\r\n\r\n", HeadError::Version),
            (b"GET / HTTP/0.9\r\n\r\n", HeadError::Version),
            (b"GET / http/1.1\r\n\r\n", HeadError::StartLine),
            (b"GET * HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"GET a HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"GET /a#b HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"GET ftp://h/ HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"GET http://u@h/ HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"CONNECT / HTTP/1.1\r\n\r\n", HeadError::Target),
            (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\n: b\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\nA: b\x00\r\n\r\n", HeadError::FieldValue),
            (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", HeadError::FieldValue),
            (b"GET / HTTP/1.1\r\nA\r\n\r\n", HeadError::FieldName),
            (b"GET / HTTP/1.1\r\na:\r\nb:\r\nc:\r\nd:\r\ne:\r\n\r\n", HeadError::TooManyFields),
        ];
        for (octets, want) in cases {
            let got = request(octets).err();
            assert_eq!(got, Some(*want), "{}", String::from_utf8_lossy(octets));
        }
    }

    #[test]
    fn responses() {
        let parse = |octets: &[u8]| {
            let mut storage = field_storage();
            parse_response(octets, &mut storage, 4)
                .map(|head| (head.status, String::from_utf8_lossy(head.reason).into_owned()))
        };
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n"), Ok((200, "OK".to_owned())));
        assert_eq!(parse(b"HTTP/1.0 503\r\n\r\n"), Ok((503, String::new())));
        assert_eq!(parse(b"HTTP/1.1 099 X\r\n\r\n"), Err(HeadError::Status));
        assert_eq!(parse(b"HTTP/2 200 OK\r\n\r\n"), Err(HeadError::Version));
        assert_eq!(parse(b"ICY 200 OK\r\n\r\n"), Err(HeadError::Version));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n"), Err(HeadError::FieldName));
    }
}
