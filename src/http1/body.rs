//! Pure: what each octet of a body is (RFC 9112 §6–7).
//!
//! [`Body::step`] never copies and never buffers: it says what the octets at the front of its input
//! *are*. The caller decides what to do with them: forward all of them verbatim, forward only the
//! content, or count. One machine, one set of tests, three uses.
//!
//! Invariants
//! - `0 < n <= input.len()` for every span: a step always makes progress.
//! - After `Done`, further input belongs to the next message and is never consumed.
//! - The spans do not depend on how the input was split, except in how finely they are cut.

use super::{Framing, field::is_token_octet};

/// How much one body may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyLimits {
    /// Octets of content. Framing and trailers have limits of their own and are not content.
    pub content_bytes_max: u64,
    /// Octets of chunk extensions, without the semicolon that begins them. RFC 9112 §7.1.1 asks for
    /// a limit: extensions are free space that nobody reads.
    pub chunk_extension_bytes_max: u32,
    /// Octets of the trailer section, line ends included.
    pub trailer_bytes_max: u32,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self {
            content_bytes_max: u64::MAX,
            chunk_extension_bytes_max: 4 * 1024,
            trailer_bytes_max: 8 * 1024,
        }
    }
}

/// What the octets at the front of the input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Chunk sizes, extensions and line ends.
    Framing(usize),
    /// Content.
    Data(usize),
    /// Field lines of the trailer section, line ends included.
    Trailer(usize),
    /// Nothing can be said before more octets arrive.
    NeedMore,
    /// The body has ended; the input belongs to what follows.
    Done,
}

/// Why the octets are not a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// A chunk size that is not 1 to 16 hex digits and CRLF, or an extension.
    ChunkSize,
    /// A seventeenth digit.
    ChunkSizeOverflow,
    /// A control octet or a bare LF in a chunk extension.
    ChunkExtension,
    /// More than [`BodyLimits::chunk_extension_bytes_max`].
    ChunkExtensionTooLong,
    /// Chunk data without CRLF behind it.
    ChunkEnd,
    /// A trailer line that is not a field line.
    Trailer,
    /// More than [`BodyLimits::trailer_bytes_max`].
    TrailerTooLong,
    /// More than [`BodyLimits::content_bytes_max`].
    ContentTooLong,
    /// The peer closed before the end.
    Truncated,
}

/// Follows one body. Small and `Copy`: it is part of every exchange.
#[derive(Clone, Copy, Debug)]
pub struct Body {
    state: State,
    /// What is left of each limit.
    left: BodyLimits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length { left: u64 },
    UntilClose,
    Size { value: u64, digits: u8 },
    Extension { value: u64 },
    SizeLf { value: u64 },
    Chunk { left: u64 },
    ChunkCr,
    ChunkLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
}

impl Body {
    /// A body that ends as `framing` says, within the limits that are the default.
    pub fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, left: BodyLimits::default() }
    }

    /// The same body within other limits. Only before its first octet.
    #[must_use]
    pub fn within(self, limits: BodyLimits) -> Self {
        Self { left: limits, ..self }
    }

    /// The last octet has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Octets that are still to come, of a body that has a length.
    pub fn left_bytes(&self) -> Option<u64> {
        match self.state {
            State::Length { left } => Some(left),
            _ => None,
        }
    }

    /// What the octets at the front of `input` are.
    ///
    /// # Errors
    /// When they break the framing. The machine must not be used afterwards.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Done => Ok(Step::Done),
            _ if input.is_empty() => Ok(Step::NeedMore),
            State::UntilClose => self.content(input.len()),
            State::Length { left } => {
                let (n, left) = take(left, input);
                self.state = if left == 0 { State::Done } else { State::Length { left } };
                self.content(n)
            }
            State::Chunk { left } => {
                let (n, left) = take(left, input);
                self.state = if left == 0 { State::ChunkCr } else { State::Chunk { left } };
                self.content(n)
            }
            _ if self.at_trailer(input[0]) => self.span(input).map(Step::Trailer),
            _ => self.span(input).map(Step::Framing),
        }
    }

    /// Measures how many octets at the front of `input` belong to this body, for forwarding them
    /// verbatim.
    ///
    /// # Errors
    /// As [`Body::step`].
    pub fn measure(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        let mut measured = 0;
        loop {
            match self.step(&input[measured..])? {
                Step::Framing(n) | Step::Data(n) | Step::Trailer(n) => measured += n,
                Step::NeedMore | Step::Done => return Ok(measured),
            }
        }
    }

    /// The peer closed. Only a close-delimited body may end this way (RFC 9112 §8).
    ///
    /// # Errors
    /// `Truncated` for every other.
    pub fn end_of_input(&mut self) -> Result<(), BodyError> {
        match self.state {
            State::UntilClose | State::Done => {
                self.state = State::Done;
                Ok(())
            }
            _ => Err(BodyError::Truncated),
        }
    }

    fn content(&mut self, n: usize) -> Result<Step, BodyError> {
        let left = self.left.content_bytes_max.checked_sub(n as u64);
        self.left.content_bytes_max = left.ok_or(BodyError::ContentTooLong)?;
        Ok(Step::Data(n))
    }

    fn at_trailer(&self, next: u8) -> bool {
        match self.state {
            State::TrailerStart => next != b'\r',
            State::TrailerName | State::TrailerValue | State::TrailerLf => true,
            _ => false,
        }
    }

    /// Octets that are all framing or all trailer, whichever the first one is.
    fn span(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        let is_trailer = self.at_trailer(input[0]);
        let mut n = 0;
        while n < input.len()
            && !matches!(self.state, State::Chunk { .. } | State::Done)
            && self.at_trailer(input[n]) == is_trailer
        {
            self.state = self.next(input[n])?;
            n += 1;
        }
        debug_assert!(n > 0 && n <= input.len());
        Ok(n)
    }

    fn next(&mut self, b: u8) -> Result<State, BodyError> {
        use State::*;
        Ok(match self.state {
            Size { value, digits } => match (hex(b), b) {
                // Sixteen digits fill 64 bits; a seventeenth is an attack or a bug, not a chunk.
                (Some(_), _) if digits == 16 => return Err(BodyError::ChunkSizeOverflow),
                (Some(digit), _) => {
                    Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
                }
                (None, b'\r') if digits > 0 => SizeLf { value },
                (None, b';') if digits > 0 => Extension { value },
                _ => return Err(BodyError::ChunkSize),
            },
            Extension { value } => match b {
                b'\r' => SizeLf { value },
                // A bare LF here, read as a line end by one side only, is a known desync.
                b'\t' | b' '..=b'~' | 0x80..=0xff => {
                    let left = self.left.chunk_extension_bytes_max.checked_sub(1);
                    self.left.chunk_extension_bytes_max =
                        left.ok_or(BodyError::ChunkExtensionTooLong)?;
                    Extension { value }
                }
                _ => return Err(BodyError::ChunkExtension),
            },
            SizeLf { value } => match (b, value) {
                (b'\n', 0) => TrailerStart,
                (b'\n', left) => Chunk { left },
                _ => return Err(BodyError::ChunkSize),
            },
            ChunkCr if b == b'\r' => ChunkLf,
            ChunkLf if b == b'\n' => Size { value: 0, digits: 0 },
            ChunkCr | ChunkLf => return Err(BodyError::ChunkEnd),
            TrailerStart if b == b'\r' => EndLf,
            TrailerStart | TrailerName | TrailerValue | TrailerLf => {
                let left = self.left.trailer_bytes_max.checked_sub(1);
                self.left.trailer_bytes_max = left.ok_or(BodyError::TrailerTooLong)?;
                return self.next_in_trailer(b);
            }
            EndLf if b == b'\n' => Done,
            EndLf => return Err(BodyError::Trailer),
            Length { .. } | UntilClose | Chunk { .. } | Done => unreachable!("not framing"),
        })
    }

    fn next_in_trailer(&self, b: u8) -> Result<State, BodyError> {
        match (self.state, b) {
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerStart | State::TrailerName, _) if is_token_octet(b) => {
                Ok(State::TrailerName)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..=0xff) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(BodyError::Trailer),
        }
    }
}

/// How many octets of `input` belong to the `left` ones, and how many are left then.
fn take(left: u64, input: &[u8]) -> (usize, u64) {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
    (n, left - n as u64)
}

fn hex(b: u8) -> Option<u8> {
    match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        b'A'..=b'F' => Some(b - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a run over some input showed: content, trailers, octets consumed, how it ended.
    #[derive(Debug, PartialEq, Eq)]
    struct Seen {
        content: Vec<u8>,
        trailers: Vec<u8>,
        consumed: usize,
        end: Result<bool, BodyError>,
    }

    /// Drives a body over `input`, handing over octets up to each of `ends` in turn.
    fn drive(mut body: Body, input: &[u8], ends: impl Iterator<Item = usize>) -> Seen {
        let (mut content, mut trailers, mut at) = (Vec::new(), Vec::new(), 0);
        let mut end = Ok(false);
        'input: for upto in ends.chain([input.len()]) {
            loop {
                match body.step(&input[at..upto]) {
                    Ok(Step::Data(n)) => {
                        content.extend_from_slice(&input[at..at + n]);
                        at += n;
                    }
                    Ok(Step::Trailer(n)) => {
                        trailers.extend_from_slice(&input[at..at + n]);
                        at += n;
                    }
                    Ok(Step::Framing(n)) => at += n,
                    Ok(Step::NeedMore) => break,
                    Ok(Step::Done) => {
                        end = Ok(true);
                        break 'input;
                    }
                    Err(error) => {
                        end = Err(error);
                        break 'input;
                    }
                }
            }
        }
        Seen { content, trailers, consumed: at, end }
    }

    const CHUNKED: &[(&[u8], Result<&[u8], BodyError>)] = &[
        (b"0\r\n\r\n", Ok(b"")),
        (b"5\r\nhello\r\n0\r\n\r\n", Ok(b"hello")),
        (b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nx: y\r\n\r\n", Ok(b"hello world")),
        (b"A\r\n0123456789\r\n0\r\na:\r\nB: c d\r\n\r\n", Ok(b"0123456789")),
        (b"0000000000000005\r\nhello\r\n0\r\n\r\n", Ok(b"hello")),
        (b"00000000000000005\r\nhello", Err(BodyError::ChunkSizeOverflow)),
        (b"\r\n", Err(BodyError::ChunkSize)),
        (b"5 \r\nhello", Err(BodyError::ChunkSize)),
        (b" 5\r\nhello", Err(BodyError::ChunkSize)),
        (b"+5\r\nhello", Err(BodyError::ChunkSize)),
        (b"0x5\r\nhello", Err(BodyError::ChunkSize)),
        (b"5\nhello", Err(BodyError::ChunkSize)),
        (b"5\r\rhello", Err(BodyError::ChunkSize)),
        (b"5;a\nhello", Err(BodyError::ChunkExtension)),
        (b"5;a\x00\r\nhello", Err(BodyError::ChunkExtension)),
        (b"5\r\nhelloXX", Err(BodyError::ChunkEnd)),
        (b"5\r\nhello\n0\r\n\r\n", Err(BodyError::ChunkEnd)),
        (b"0\r\na\nb\r\n\r\n", Err(BodyError::Trailer)),
        (b"0\r\na b: c\r\n\r\n", Err(BodyError::Trailer)),
        (b"0\r\na: b\n\r\n", Err(BodyError::Trailer)),
        (b"0\r\n: b\r\n\r\n", Err(BodyError::Trailer)),
        (b"0\r\n a: b\r\n\r\n", Err(BodyError::Trailer)),
        (b"0\r\n\n", Err(BodyError::Trailer)),
        (b"0\r\n\rX", Err(BodyError::Trailer)),
    ];

    #[test]
    fn content_is_what_is_limited_however_it_is_cut() {
        let chunked: &[u8] = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\nnext";
        let plain: &[u8] = b"abcdenext";
        for (framing, input) in [(Framing::Chunked, chunked), (Framing::Length(5), plain)] {
            for cut in 0..=input.len() {
                for (content_bytes_max, want) in [(4, false), (5, true), (u64::MAX, true)] {
                    let limits = BodyLimits { content_bytes_max, ..BodyLimits::default() };
                    let mut body = Body::new(framing).within(limits);
                    let first = body.measure(&input[..cut]);
                    let whole = first.and_then(|n| body.measure(&input[n..]));
                    match want {
                        true => assert!(whole.is_ok() && body.is_done(), "{framing:?} cut {cut}"),
                        false => assert_eq!(whole, Err(BodyError::ContentTooLong), "{cut}"),
                    }
                }
            }
        }
    }

    #[test]
    fn every_split_agrees() {
        for (input, want) in CHUNKED {
            let body = Body::new(Framing::Chunked);
            let whole = drive(body, input, std::iter::empty());
            let shown = String::from_utf8_lossy(input);
            match want {
                Ok(content) => {
                    assert_eq!((&*whole.content, whole.end), (*content, Ok(true)), "{shown:?}");
                    assert_eq!(whole.consumed, input.len());
                }
                Err(error) => assert_eq!(whole.end, Err(*error), "{shown:?}"),
            }
            for cut in 0..=input.len() {
                let split = drive(body, input, [cut].into_iter());
                assert_eq!((&split.content, split.end), (&whole.content, whole.end), "{shown:?}");
                if want.is_ok() {
                    assert_eq!(split.trailers, whole.trailers, "cut {cut} of {shown:?}");
                }
            }
            let bytewise = drive(body, input, 0..input.len());
            assert_eq!((&bytewise.content, bytewise.end), (&whole.content, whole.end), "{shown:?}");
        }
    }

    #[test]
    fn trailer_lines_are_told_apart_from_framing() {
        let input = b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n";
        let seen = drive(Body::new(Framing::Chunked), input, std::iter::empty());
        assert_eq!(seen.trailers, b"A: b\r\nC: d\r\n");
    }

    #[test]
    fn never_consumes_the_next_message() {
        let input = b"5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n";
        let seen = drive(Body::new(Framing::Chunked), input, std::iter::empty());
        assert_eq!((&input[seen.consumed..], seen.end), (&b"GET / HTTP/1.1\r\n"[..], Ok(true)));
        assert_eq!(Body::new(Framing::Chunked).measure(input), Ok(15));
        assert_eq!(Body::new(Framing::Length(3)).measure(b"abcdef"), Ok(3));
        assert_eq!(Body::new(Framing::Length(0)).measure(b"abcdef"), Ok(0));
    }

    #[test]
    fn only_close_delimited_bodies_may_end_with_the_connection() {
        let end = |framing| Body::new(framing).end_of_input();
        assert_eq!(end(Framing::Chunked), Err(BodyError::Truncated));
        assert_eq!(end(Framing::Length(1)), Err(BodyError::Truncated));
        assert_eq!(end(Framing::UntilClose), Ok(()));
        assert_eq!(end(Framing::Length(0)), Ok(()));
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let long = "x".repeat(BodyLimits::default().chunk_extension_bytes_max as usize + 1);
        let extension = format!("1;{long}\r\n");
        let got = Body::new(Framing::Chunked).measure(extension.as_bytes());
        assert_eq!(got, Err(BodyError::ChunkExtensionTooLong));
        let trailer = format!("0\r\na:{long}{long}\r\n\r\n");
        let got = Body::new(Framing::Chunked).measure(trailer.as_bytes());
        assert_eq!(got, Err(BodyError::TrailerTooLong));
    }

    #[test]
    fn every_state_survives_every_octet() {
        // Each prefix of a body with everything in it, followed by each octet: an answer, no panic.
        let input = b"3;e=f\r\nabc\r\n0\r\nA: b\r\n\r\n";
        for prefix in 0..input.len() {
            for octet in 0..=u8::MAX {
                let mut body = Body::new(Framing::Chunked);
                assert_eq!(body.measure(&input[..prefix]), Ok(prefix));
                let _ = body.measure(&[octet]);
            }
        }
    }
}
