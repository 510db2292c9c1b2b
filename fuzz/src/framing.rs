//! Target `framing`: what Content-Length and Transfer-Encoding say together.
//!
//! Input: one octet of flags (bit 0 HTTP/1.0, bit 1 a response, bit 2 to HEAD, bits 3 to 5 its
//! status), then lines: `C` and a Content-Length, or anything else and a Transfer-Encoding.

use stepflow_load_balancer::http1::{
    Framing, FramingError, FramingFields, Version, request_framing, response_framing,
};

use super::{Verdict, naive::trim};

const STATUSES: [u16; 8] = [200, 204, 304, 100, 199, 205, 404, 503];

/// Property: the product and a table written from RFC 9112 §6.3 come to the same result.
pub fn run(octets: &[u8]) -> Verdict {
    let Some((flags, rest)) = octets.split_first() else { return Verdict::Refused };
    let version = if flags & 1 == 0 { Version::Http11 } else { Version::Http10 };
    let (mut lengths, mut codings) = (Vec::new(), Vec::new());
    let mut fields = FramingFields::default();
    for line in rest.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let (kind, value) = (line[0], &line[1..]);
        if kind == b'C' {
            fields.content_length(value);
            lengths.push(value);
        } else {
            fields.transfer_encoding(value);
            codings.extend(value.split(|b| *b == b',').map(trim));
        }
    }
    let want = table(version, &lengths, &codings);
    let status = STATUSES[usize::from(flags >> 3 & 7)];
    let (got, want) = match (flags & 2 == 0, want) {
        (true, want) => (
            request_framing(version, &fields),
            want.map(|framing| framing.unwrap_or(Framing::Length(0))),
        ),
        (false, want) => {
            let is_head = flags & 4 != 0;
            let is_bodiless = is_head || status < 200 || status == 204 || status == 304;
            let want = want.map(|framing| match framing {
                _ if is_bodiless => Framing::Length(0),
                Some(framing) => framing,
                None => Framing::UntilClose,
            });
            (response_framing(version, status, is_head, &fields), want)
        }
    };
    assert_eq!(got, want, "{}", octets.escape_ascii());
    if let (Ok(Some(Framing::Length(length))), true) = (table(version, &lengths, &[]), got.is_ok())
    {
        assert_eq!(fields.declared_length(), Some(length));
    }
    if got.is_ok() { Verdict::Accepted } else { Verdict::Refused }
}

/// The rows of RFC 9112 §6.3 that do not depend on the status, from the top.
fn table(
    version: Version,
    lengths: &[&[u8]],
    codings: &[&[u8]],
) -> Result<Option<Framing>, FramingError> {
    match (lengths, codings) {
        ([], []) => Ok(None),
        ([_, ..], [_, ..]) => Err(FramingError::LengthAndCoding),
        ([], [_, ..]) if version == Version::Http10 => Err(FramingError::CodingInHttp10),
        ([], [only]) if only.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        ([], [first, ..]) if first.eq_ignore_ascii_case(b"chunked") => {
            Err(FramingError::ChunkedNotLast)
        }
        ([], _) => Err(FramingError::CodingUnknown),
        ([length], []) => number(trim(length)).map(|n| Some(Framing::Length(n))),
        (_, []) => Err(FramingError::LengthRepeated),
    }
}

fn number(text: &[u8]) -> Result<u64, FramingError> {
    let text = String::from_utf8_lossy(text);
    if text.contains(',') {
        return Err(FramingError::LengthRepeated);
    }
    if text.is_empty() || text.contains(|c: char| !c.is_ascii_digit()) {
        return Err(FramingError::LengthInvalid);
    }
    match text.trim_start_matches('0') {
        "" => Ok(0),
        // The text has nothing but digits, so all that can be wrong is its size.
        digits => digits.parse().map_err(|_| FramingError::LengthOverflow),
    }
}
