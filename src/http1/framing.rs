//! Pure: how long a body is (RFC 9112 §6.3), as one decision table.
//!
//! Invariant: a message whose length has two readings is refused. Repeated equal lengths have one
//! reading, but a proxy that collapses them and one that does not already disagree about the octets
//! of the head, so they are refused too.

use super::{Version, field::trim_ows};

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After this many octets; zero is "no body".
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection. Responses only.
    UntilClose,
}

/// Why a body's end cannot be told, or not in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramingError {
    /// Content-Length is not one run of digits.
    LengthInvalid,
    /// Content-Length does not fit 64 bits.
    LengthOverflow,
    /// More than one Content-Length, as lines or as a list.
    LengthRepeated,
    /// Content-Length and Transfer-Encoding together.
    LengthAndCoding,
    /// A transfer coding other than `chunked`: 501 for a request (RFC 9112 §6.1).
    CodingUnknown,
    /// `chunked` more than once, or with something behind it.
    ChunkedNotLast,
    /// Transfer-Encoding in an HTTP/1.0 message (RFC 9112 §6.1).
    CodingInHttp10,
}

/// What the field lines of one head say about framing, collected in one pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingFields {
    length: Option<Result<u64, FramingError>>,
    coding: Option<Result<(), FramingError>>,
}

impl FramingFields {
    /// Takes in one Content-Length value.
    pub fn content_length(&mut self, value: &[u8]) {
        self.length = Some(match self.length {
            Some(_) => Err(FramingError::LengthRepeated),
            None => parse_length(value),
        });
    }

    /// Takes in one Transfer-Encoding value.
    pub fn transfer_encoding(&mut self, value: &[u8]) {
        for coding in value.split(|b| *b == b',').map(trim_ows) {
            self.coding = Some(match self.coding {
                Some(Err(first)) => Err(first),
                // Whatever stands behind `chunked`, it is not the last one (RFC 9112 §6.1).
                Some(Ok(())) => Err(FramingError::ChunkedNotLast),
                None if coding.eq_ignore_ascii_case(b"chunked") => Ok(()),
                None => Err(FramingError::CodingUnknown),
            });
        }
    }

    /// The declared length, if there is a valid one. For responses whose fields describe a body
    /// that is not there (HEAD, 304).
    pub fn declared_length(&self) -> Option<u64> {
        self.length.and_then(Result::ok)
    }

    fn settle(&self, version: Version) -> Result<Option<Framing>, FramingError> {
        match (self.length, self.coding) {
            (Some(_), Some(_)) => Err(FramingError::LengthAndCoding),
            (None, Some(_)) if version == Version::Http10 => Err(FramingError::CodingInHttp10),
            (None, Some(coding)) => coding.map(|()| Some(Framing::Chunked)),
            (Some(length), None) => length.map(|n| Some(Framing::Length(n))),
            (None, None) => Ok(None),
        }
    }
}

/// The body of a request. Without a word about it there is none (RFC 9112 §6.3, 7).
///
/// # Errors
/// Which row of the table refuses it.
pub fn request_framing(version: Version, fields: &FramingFields) -> Result<Framing, FramingError> {
    Ok(fields.settle(version)?.unwrap_or(Framing::Length(0)))
}

/// The body of a response, which depends on the request's method and on the status
/// (RFC 9112 §6.3, 1 and 8).
///
/// # Errors
/// Which row of the table refuses it. Also for responses without a body: a head that contradicts
/// itself is not believed on any point.
pub fn response_framing(
    version: Version,
    status: u16,
    request_is_head: bool,
    fields: &FramingFields,
) -> Result<Framing, FramingError> {
    let declared = fields.settle(version)?;
    let has_no_body = request_is_head || matches!(status, 100..=199 | 204 | 304);
    Ok(match declared {
        _ if has_no_body => Framing::Length(0),
        Some(framing) => framing,
        None => Framing::UntilClose,
    })
}

/// Digits only: no sign, no list, no white space within (RFC 9110 §8.6).
fn parse_length(value: &[u8]) -> Result<u64, FramingError> {
    let value = trim_ows(value);
    let number = value.iter().try_fold(0_u64, |n, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    });
    number.filter(|_| !value.is_empty()).ok_or_else(|| length_error(value))
}

/// Why this is no length.
#[cold]
fn length_error(value: &[u8]) -> FramingError {
    if value.contains(&b',') {
        return FramingError::LengthRepeated;
    }
    match !value.is_empty() && value.iter().all(u8::is_ascii_digit) {
        true => FramingError::LengthOverflow,
        false => FramingError::LengthInvalid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> FramingFields {
        let mut fields = FramingFields::default();
        for (name, value) in lines {
            match *name {
                "cl" => fields.content_length(value.as_bytes()),
                _ => fields.transfer_encoding(value.as_bytes()),
            }
        }
        fields
    }

    #[test]
    fn request_table() {
        use FramingError::*;
        let cases: &[(&[(&str, &str)], Result<Framing, FramingError>)] = &[
            (&[], Ok(Framing::Length(0))),
            (&[("cl", "0")], Ok(Framing::Length(0))),
            (&[("cl", "18446744073709551615")], Ok(Framing::Length(u64::MAX))),
            (&[("cl", "18446744073709551616")], Err(LengthOverflow)),
            (&[("cl", "+3")], Err(LengthInvalid)),
            (&[("cl", "-3")], Err(LengthInvalid)),
            (&[("cl", "0x3")], Err(LengthInvalid)),
            (&[("cl", "3 3")], Err(LengthInvalid)),
            (&[("cl", "")], Err(LengthInvalid)),
            (&[("cl", "3, 3")], Err(LengthRepeated)),
            (&[("cl", "3"), ("cl", "3")], Err(LengthRepeated)),
            (&[("cl", "3"), ("cl", "5")], Err(LengthRepeated)),
            (&[("te", "chunked")], Ok(Framing::Chunked)),
            (&[("te", " Chunked\t")], Ok(Framing::Chunked)),
            (&[("te", "gzip, chunked")], Err(CodingUnknown)),
            (&[("te", "gzip"), ("te", "chunked")], Err(CodingUnknown)),
            (&[("te", "identity")], Err(CodingUnknown)),
            (&[("te", "")], Err(CodingUnknown)),
            (&[("te", "xchunked")], Err(CodingUnknown)),
            (&[("te", "chunked, gzip")], Err(ChunkedNotLast)),
            (&[("te", "chunked, chunked")], Err(ChunkedNotLast)),
            (&[("te", "chunked"), ("te", "chunked")], Err(ChunkedNotLast)),
            (&[("te", "chunked,")], Err(ChunkedNotLast)),
            (&[("te", "chunked;q=1")], Err(CodingUnknown)),
            (&[("cl", "3"), ("te", "chunked")], Err(LengthAndCoding)),
            (&[("te", "identity"), ("cl", "3")], Err(LengthAndCoding)),
            (&[("te", "chunked"), ("cl", "junk")], Err(LengthAndCoding)),
        ];
        for (lines, want) in cases {
            assert_eq!(&request_framing(Version::Http11, &fields(lines)), want, "{lines:?}");
        }
        let chunked = fields(&[("te", "chunked")]);
        assert_eq!(request_framing(Version::Http10, &chunked), Err(CodingInHttp10));
    }

    #[test]
    fn response_table() {
        let length = fields(&[("cl", "5")]);
        let chunked = fields(&[("te", "chunked")]);
        let none = FramingFields::default();
        let of =
            |status, is_head, fields| response_framing(Version::Http11, status, is_head, fields);
        assert_eq!(of(200, false, &length), Ok(Framing::Length(5)));
        assert_eq!(of(200, false, &chunked), Ok(Framing::Chunked));
        assert_eq!(of(200, false, &none), Ok(Framing::UntilClose));
        for status in [100, 101, 103, 199, 204, 304] {
            assert_eq!(of(status, false, &length), Ok(Framing::Length(0)), "{status}");
        }
        assert_eq!(of(200, true, &length), Ok(Framing::Length(0)));
        assert_eq!(of(200, true, &chunked), Ok(Framing::Length(0)));
        let both = fields(&[("cl", "5"), ("te", "chunked")]);
        assert_eq!(of(204, true, &both), Err(FramingError::LengthAndCoding));
    }
}
