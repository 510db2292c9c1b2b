//! Pure: where a head ends.

use std::ops::Range;

use memchr::memchr;

/// Looks for the empty line that ends a head, without ever looking at an octet twice: a client that
/// sends one octet at a time costs us no more than one that sends all at once.
///
/// It also refuses a line that ends in a bare LF. RFC 9112 §2.2 lets a recipient accept those;
/// that two recipients may differ about it is what request smuggling is made of.
#[derive(Clone, Copy, Debug)]
pub struct HeadScan {
    leading: LeadingLine,
    start: usize,
    line_start: usize,
    scanned: usize,
    /// Octets of the start line without its end; 0 until it has ended.
    start_line_bytes: u32,
}

/// Whether one empty line in front of the head is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeadingLine {
    /// For requests: old clients send a CRLF behind a body (RFC 9112 §2.2).
    Skip,
    /// For responses.
    Refuse,
}

/// Why the octets so far cannot become a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanError {
    /// A LF without CR in front.
    BareLf,
    /// An empty line where the start line must be.
    EmptyLine,
    /// The first octet cannot start a start line: this is not HTTP/1.
    NotHttp,
    /// The first octets are those of a TLS handshake.
    Tls,
}

impl HeadScan {
    /// A scan that has seen nothing.
    pub fn new(leading: LeadingLine) -> Self {
        Self { leading, start: 0, line_start: 0, scanned: 0, start_line_bytes: 0 }
    }

    /// Octets of the start line that have been seen, without its end: a line that is too long can
    /// be refused before it has ended.
    pub fn start_line_bytes(&self) -> usize {
        match self.start_line_bytes {
            // A CR at the end may be half of the line's end.
            0 => self.scanned.saturating_sub(self.start + 1),
            ended => ended as usize,
        }
    }

    /// Where the head lies in `input`, the empty line included, once it is complete. `input` is
    /// everything received so far: each call must pass the octets of the calls before, and more.
    ///
    /// # Errors
    /// As soon as no further octet could make this a head.
    pub fn advance(&mut self, input: &[u8]) -> Result<Option<Range<usize>>, ScanError> {
        // First, because octets that are no HTTP may hold what looks like the end of a line.
        self.check_first_octets(input)?;
        while let Some(offset) = line_feed(&input[self.scanned..]) {
            let line_feed = self.scanned + offset;
            if line_feed == self.line_start || input[line_feed - 1] != b'\r' {
                return Err(ScanError::BareLf);
            }
            let line_is_empty = line_feed - 1 == self.line_start;
            self.scanned = line_feed + 1;
            if self.line_start == self.start && !line_is_empty {
                let bytes = line_feed - 1 - self.start;
                self.start_line_bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            }
            if line_is_empty && self.line_start > self.start {
                return Ok(Some(self.start..self.scanned));
            }
            self.line_start = self.scanned;
            if line_is_empty {
                self.start = self.scanned;
                self.check_first_octets(input)?;
            }
        }
        self.scanned = input.len();
        Ok(None)
    }

    // Without this, a TLS client on the plain port would wait for the head deadline and the
    // operator would learn nothing.
    #[inline]
    fn check_first_octets(&self, input: &[u8]) -> Result<(), ScanError> {
        match input.get(self.start) {
            Some(first) if super::field::is_token_octet(*first) => Ok(()),
            _ => self.judge_first_octets(input.get(self.start..).unwrap_or_default()),
        }
    }

    /// The same where they begin no start line, or have not come.
    fn judge_first_octets(&self, octets: &[u8]) -> Result<(), ScanError> {
        let may_skip = self.leading == LeadingLine::Skip && self.start == 0;
        match octets {
            [] | [b'\r'] | [0x16] => Ok(()),
            [b'\r', b'\n', ..] if may_skip => Ok(()),
            [b'\r', ..] => Err(ScanError::EmptyLine),
            [b'\n', ..] => Err(ScanError::BareLf),
            [0x16, 0x03, ..] => Err(ScanError::Tls),
            _ => Err(ScanError::NotHttp),
        }
    }
}

/// Where the first line feed is. That of an empty line, with which every head ends, is not searched
/// for.
#[inline]
fn line_feed(octets: &[u8]) -> Option<usize> {
    if octets.starts_with(b"\r\n") { Some(1) } else { memchr(b'\n', octets) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(leading: LeadingLine, input: &[u8]) -> Result<Option<Range<usize>>, ScanError> {
        HeadScan::new(leading).advance(input)
    }

    #[test]
    fn every_split_agrees() {
        let cases: &[(&[u8], Result<Option<Range<usize>>, ScanError>)] = &[
            (b"GET / HTTP/1.1\r\n\r\n", Ok(Some(0..18))),
            (b"GET / HTTP/1.1\r\nA: b\r\n\r\nnext", Ok(Some(0..24))),
            (b"\r\nGET / HTTP/1.1\r\n\r\n", Ok(Some(2..20))),
            (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", Err(ScanError::EmptyLine)),
            (b"GET / HTTP/1.1\n\r\n", Err(ScanError::BareLf)),
            (b"GET / HTTP/1.1\r\nA: b\n\r\n", Err(ScanError::BareLf)),
            (b"GET / HTTP/1.1\r\n\n", Err(ScanError::BareLf)),
            (b"\nGET", Err(ScanError::BareLf)),
            (b"GET / HTTP/1.1\r\nA: b", Ok(None)),
            (b"\x16\x03\x01\x02\x00\x01", Err(ScanError::Tls)),
            // A handshake is full of octets that look like line ends.
            (b"\x16\x03\x01\x00\x0a\x01\x0d\x0a", Err(ScanError::Tls)),
            (b"\r\n\x16\x03\x01\n", Err(ScanError::Tls)),
            (b"\x00\x00", Err(ScanError::NotHttp)),
            (b"\x00\n", Err(ScanError::NotHttp)),
            (b"\x80GET / HTTP/1.1\r\n\r\n", Err(ScanError::NotHttp)),
            (b" GET / HTTP/1.1\r\n\r\n", Err(ScanError::NotHttp)),
            (b"\r\r\n", Err(ScanError::EmptyLine)),
            (b"\r\n\n", Err(ScanError::BareLf)),
            (b"", Ok(None)),
        ];
        for (input, want) in cases {
            assert_eq!(&whole(LeadingLine::Skip, input), want, "{input:?}");
            for cut in 0..=input.len() {
                let mut scan = HeadScan::new(LeadingLine::Skip);
                let first = scan.advance(&input[..cut]);
                let got = match first {
                    Ok(None) => scan.advance(input),
                    settled => settled,
                };
                assert_eq!(&got, want, "cut {cut} of {input:?}");
            }
            let mut scan = HeadScan::new(LeadingLine::Skip);
            let settled =
                (0..=input.len()).map(|n| scan.advance(&input[..n])).find(|r| *r != Ok(None));
            assert_eq!(&settled.unwrap_or(Ok(None)), want, "bytewise {input:?}");
        }
    }

    #[test]
    fn the_length_of_the_start_line_is_known_early_and_stays() {
        let input = b"\r\nGET / HTTP/1.1\r\nA: b\r\nLonger-than-that: x\r\n\r\n";
        let line_ends = 2 + 14;
        let mut scan = HeadScan::new(LeadingLine::Skip);
        for n in 0..=input.len() {
            scan.advance(&input[..n]).unwrap();
            let seen = scan.start_line_bytes();
            match n {
                // At most one octet behind, never ahead.
                _ if n < line_ends + 2 => {
                    let arrived = n.saturating_sub(2);
                    assert!(seen <= arrived.min(14) && seen + 1 >= arrived.min(14), "{n}: {seen}");
                }
                _ => assert_eq!(seen, 14, "{n}"),
            }
        }
    }

    #[test]
    fn responses_have_no_leading_line() {
        assert_eq!(
            whole(LeadingLine::Refuse, b"\r\nHTTP/1.1 200 OK\r\n\r\n"),
            Err(ScanError::EmptyLine)
        );
    }
}
