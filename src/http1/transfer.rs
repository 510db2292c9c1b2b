//! Pure: hands a body on, possibly in another coding.
//!
//! Most bodies go through verbatim and never come here with a copy: [`Transfer::is_verbatim`] says
//! so and [`Transfer::measure`] only counts, but for a trailer section, from which it drops what
//! must not be a trailer. A body is rewritten where the two sides need different
//! framing, and where it is an event stream: Stepflow's client decodes every received piece as
//! UTF-8 on its own and drops one that ends inside a character, so pieces are cut at characters.

use super::{Body, BodyError, BodyLimits, Framing, Step, trailer::TrailerFilter};

/// How the outgoing body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// The content as it is, ended by its length or by the connection.
    Identity,
    /// Chunks.
    Chunked,
}

/// Follows an incoming body and produces the outgoing one.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    body: Body,
    trailers: TrailerFilter,
    coding: Coding,
    verbatim: bool,
    text: bool,
    /// Octets of an unfinished character, kept until the rest arrives.
    held: [u8; 3],
    held_bytes: u8,
    /// The outgoing body has begun with something else: a BOM would be none any more.
    drops_bom: bool,
    written: Written,
}

/// How far the outgoing body has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Content,
    LastChunk,
    All,
}

impl Transfer {
    /// Takes in a body framed as `framing` and hands it on in the same way.
    pub fn alike(framing: Framing) -> Self {
        let coding = match framing {
            Framing::Chunked => Coding::Chunked,
            Framing::Length(_) | Framing::UntilClose => Coding::Identity,
        };
        Self::new(framing, coding)
    }

    /// Takes in a body framed as `framing` and hands it on as `coding`.
    pub fn new(framing: Framing, coding: Coding) -> Self {
        let same = (framing == Framing::Chunked) == (coding == Coding::Chunked);
        Self::build(framing, coding, same, false)
    }

    /// Like [`Transfer::new`] for text that must never be cut inside a UTF-8 character. Holds back
    /// at most three octets.
    pub fn text(framing: Framing, coding: Coding) -> Self {
        Self::build(framing, coding, false, true)
    }

    /// Like [`Transfer::new`], but never verbatim: for who wants to see the content, or to write
    /// between its pieces.
    pub fn rewriting(framing: Framing, coding: Coding) -> Self {
        Self::build(framing, coding, false, false)
    }

    fn build(framing: Framing, coding: Coding, verbatim: bool, text: bool) -> Self {
        let body = Body::new(framing);
        Self {
            body,
            trailers: TrailerFilter::new(),
            coding,
            verbatim,
            text,
            held: [0; 3],
            held_bytes: 0,
            drops_bom: false,
            written: Written::Content,
        }
    }

    /// The same, within limits. Only before the first octet.
    #[must_use]
    pub fn within(mut self, limits: BodyLimits) -> Self {
        self.body = self.body.within(limits);
        self
    }

    /// The same, without trailers: all of them are dropped. Only before the first octet.
    #[must_use]
    pub fn without_trailers(mut self) -> Self {
        self.trailers = TrailerFilter::dropping_all();
        self
    }

    /// Incoming octets may be forwarded as they are: use [`Transfer::measure`].
    pub fn is_verbatim(&self) -> bool {
        self.verbatim
    }

    /// The incoming body has ended.
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// How many octets at the front of `input` are to be forwarded; what follows them belongs to
    /// the next message. Only for verbatim bodies. Trailers that must not be such are taken out of
    /// `input`; nothing else is moved or copied.
    ///
    /// # Errors
    /// As [`Body::step`].
    pub fn measure(&mut self, input: &mut Vec<u8>) -> Result<usize, BodyError> {
        debug_assert!(self.verbatim, "a body that is rewritten must go through push");
        let mut at = 0;
        loop {
            match self.body.step(&input[at..])? {
                Step::Framing(n) | Step::Data(n) => at += n,
                Step::Trailer(n) => {
                    let mut kept = Vec::new();
                    self.trailers.push(&input[at..at + n], &mut kept);
                    let kept_bytes = kept.len();
                    input.splice(at..at + n, kept);
                    at += kept_bytes;
                }
                Step::NeedMore | Step::Done => return Ok(at),
            }
        }
    }

    /// Like [`Transfer::measure`], but appends what is to be forwarded to `out` and returns how
    /// many octets were taken from the front of `input`.
    ///
    /// # Errors
    /// As [`Body::step`].
    pub fn copy(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyError> {
        debug_assert!(self.verbatim, "a body that is rewritten must go through push");
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match self.body.step(rest)? {
                Step::Framing(n) | Step::Data(n) => {
                    out.extend_from_slice(&rest[..n]);
                    at += n;
                }
                Step::Trailer(n) => {
                    self.trailers.push(&rest[..n], out);
                    at += n;
                }
                Step::NeedMore | Step::Done => return Ok(at),
            }
        }
    }

    /// How many fields were dropped from the trailer section since this was asked last.
    pub fn take_dropped(&mut self) -> u16 {
        self.trailers.take_dropped()
    }

    /// Takes octets from the front of `input`, appends what they become to `out`, and returns how
    /// many were taken. Fewer than given means that the body has ended.
    ///
    /// # Errors
    /// As [`Body::step`]. What was appended before the error is valid output.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyError> {
        self.push_seen(input, out, |_| ())
    }

    /// As [`Transfer::push`], and shows the content to `see` as it is read, in order.
    ///
    /// # Errors
    /// As [`Transfer::push`].
    pub fn push_seen(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut see: impl FnMut(&[u8]),
    ) -> Result<usize, BodyError> {
        let mut consumed = 0;
        let mut chunk = ChunkWriter::begin(self.coding, out);
        out.extend_from_slice(&self.held[..usize::from(self.held_bytes)]);
        self.held_bytes = 0;
        let end = loop {
            let rest = &input[consumed..];
            match self.body.step(rest) {
                Ok(Step::Framing(n)) => consumed += n,
                Ok(Step::Data(n)) => {
                    see(&rest[..n]);
                    out.extend_from_slice(&rest[..n]);
                    consumed += n;
                }
                Ok(Step::Trailer(n)) => {
                    self.strip_bom(chunk.content_mut(out));
                    chunk.end(out);
                    self.begin_trailers(out);
                    // A body without chunks has no place for trailers (RFC 9110 §6.5.1).
                    if self.coding == Coding::Chunked {
                        self.trailers.push(&rest[..n], out);
                    }
                    chunk = ChunkWriter::begin_after_last(out);
                    consumed += n;
                }
                Ok(Step::NeedMore) => {
                    self.hold_back(chunk.content_mut(out));
                    self.strip_bom(chunk.content_mut(out));
                    break Ok(consumed);
                }
                Ok(Step::Done) => {
                    self.strip_bom(chunk.content_mut(out));
                    break Ok(consumed);
                }
                Err(error) => break Err(error),
            }
        };
        chunk.end(out);
        if end.is_ok() && self.body.is_done() {
            self.finish(out);
        }
        end
    }

    /// The sender closed: appends the end of the outgoing body if that was the body's end.
    ///
    /// # Errors
    /// `Truncated` when it was not.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        let was_done = self.body.is_done();
        self.body.end_of_input()?;
        if !was_done && !self.verbatim {
            let mut chunk = ChunkWriter::begin(self.coding, out);
            out.extend_from_slice(&self.held[..usize::from(self.held_bytes)]);
            self.held_bytes = 0;
            chunk.end(out);
            self.finish(out);
        }
        Ok(())
    }

    /// Takes octets from the front of `input`, appends their content alone to `content`, and returns
    /// how many were taken. Trailers are left out. Nothing is written of the outgoing body:
    /// [`Transfer::write_content`] and [`Transfer::finish`] do that.
    ///
    /// # Errors
    /// As [`Body::step`].
    pub fn decode(&mut self, input: &[u8], content: &mut Vec<u8>) -> Result<usize, BodyError> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            match self.body.step(rest)? {
                Step::Framing(n) | Step::Trailer(n) => consumed += n,
                Step::Data(n) => {
                    content.extend_from_slice(&rest[..n]);
                    consumed += n;
                }
                Step::NeedMore | Step::Done => return Ok(consumed),
            }
        }
    }

    /// Appends `content` to an outgoing body.
    pub fn write_content(coding: Coding, content: &[u8], out: &mut Vec<u8>) {
        let mut chunk = ChunkWriter::begin(coding, out);
        out.extend_from_slice(content);
        chunk.end(out);
    }

    /// Moves an unfinished character that was kept to the end of `content`.
    pub fn take_held(&mut self, content: &mut Vec<u8>) {
        content.extend_from_slice(&self.held[..usize::from(self.held_bytes)]);
        self.held_bytes = 0;
    }

    /// From here on a BOM at the beginning is left out: the outgoing body has begun without it.
    pub fn drop_bom(&mut self) {
        self.drops_bom = true;
    }

    /// Whether a BOM is to be left out of the content that comes first, which this is.
    pub fn take_drop_bom(&mut self) -> bool {
        std::mem::take(&mut self.drops_bom)
    }

    fn strip_bom(&mut self, content: Content<'_>) {
        if self.drops_bom && !content.octets().is_empty() {
            self.drops_bom = false;
            if content.octets().starts_with(BOM) {
                content.out.drain(content.start..content.start + BOM.len());
            }
        }
    }

    fn begin_trailers(&mut self, out: &mut Vec<u8>) {
        if self.coding == Coding::Chunked && self.written == Written::Content {
            out.extend_from_slice(b"0\r\n");
            self.written = Written::LastChunk;
        }
    }

    /// Ends the outgoing body.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.begin_trailers(out);
        if self.coding == Coding::Chunked && self.written != Written::All {
            out.extend_from_slice(b"\r\n");
        }
        self.written = Written::All;
    }

    /// Moves an unfinished character at the end of `content` into `held`; returns nothing because
    /// `content` knows its own length.
    fn hold_back(&mut self, mut content: Content<'_>) {
        if !self.text {
            return;
        }
        let tail = unfinished_character(content.octets());
        let at = content.octets().len() - tail;
        self.held[..tail].copy_from_slice(&content.octets()[at..]);
        self.held_bytes = u8::try_from(tail).unwrap_or(0);
        content.shorten(tail);
    }
}

/// Writes one chunk whose size is not known beforehand: leaves room for the size line, and closes
/// the gap afterwards.
struct ChunkWriter {
    coding: Coding,
    start: usize,
}

/// Sixteen hex digits and CRLF.
const SIZE_LINE_BYTES_MAX: usize = 18;

struct Content<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Content<'_> {
    fn octets(&self) -> &[u8] {
        &self.out[self.start..]
    }

    fn shorten(&mut self, by: usize) {
        let len = self.out.len() - by;
        self.out.truncate(len);
    }
}

impl ChunkWriter {
    fn begin(coding: Coding, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        if coding == Coding::Chunked {
            out.resize(start + SIZE_LINE_BYTES_MAX, 0);
        }
        Self { coding, start }
    }

    /// Behind the last chunk only trailers follow: there is no further chunk to write.
    fn begin_after_last(out: &[u8]) -> Self {
        Self { coding: Coding::Identity, start: out.len() }
    }

    fn content_mut<'a>(&self, out: &'a mut Vec<u8>) -> Content<'a> {
        let start = match self.coding {
            Coding::Chunked => self.start + SIZE_LINE_BYTES_MAX,
            Coding::Identity => self.start,
        };
        Content { out, start }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.coding == Coding::Identity {
            return;
        }
        let content = self.start + SIZE_LINE_BYTES_MAX;
        let size = out.len() - content;
        // An empty chunk would end the body.
        if size == 0 {
            out.truncate(self.start);
            return;
        }
        let mut line = [0_u8; SIZE_LINE_BYTES_MAX];
        let line = super::write::chunk_size_line(size, &mut line);
        out[self.start..self.start + line.len()].copy_from_slice(line);
        let len = out.len();
        out.copy_within(content..len, self.start + line.len());
        out.truncate(self.start + line.len() + size);
        out.extend_from_slice(b"\r\n");
    }
}

/// A mark that some put in front of UTF-8.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// How many octets at the end are the beginning of a UTF-8 character that the text does not finish.
/// Octets that cannot become a character are left alone: they are the sender's business.
pub fn unfinished_character(text: &[u8]) -> usize {
    for back in 1..=text.len().min(3) {
        let wanted = match text[text.len() - back] {
            0b1000_0000..=0b1011_1111 => continue,
            0b1100_0000..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0111 => 4,
            _ => return 0,
        };
        return if wanted > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pushes `input` in pieces ended at `ends`; returns all that came out, piece by piece.
    fn run(
        mut transfer: Transfer,
        input: &[u8],
        ends: impl Iterator<Item = usize>,
    ) -> Result<Vec<Vec<u8>>, BodyError> {
        let (mut pieces, mut at) = (Vec::new(), 0);
        for end in ends.chain([input.len()]) {
            let mut out = Vec::new();
            at += transfer.push(&input[at..end], &mut out)?;
            pieces.push(out);
        }
        if !transfer.is_done() {
            let mut out = Vec::new();
            transfer.end_of_input(&mut out)?;
            pieces.push(out);
        }
        Ok(pieces)
    }

    fn content_of_chunks(octets: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut transfer = Transfer::new(Framing::Chunked, Coding::Identity);
        assert_eq!(transfer.push(octets, &mut out), Ok(octets.len()));
        assert!(transfer.is_done());
        out
    }

    #[test]
    fn the_four_combinations() {
        let chunks: &[u8] = b"2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n";
        let cases: &[(Framing, Coding, &[u8], &[u8])] = &[
            (Framing::Chunked, Coding::Identity, chunks, b"abc"),
            (Framing::Chunked, Coding::Chunked, chunks, b"3\r\nabc\r\n0\r\nT: v\r\n\r\n"),
            (Framing::UntilClose, Coding::Chunked, b"abc", b"3\r\nabc\r\n0\r\n\r\n"),
            (Framing::Length(3), Coding::Chunked, b"abc", b"3\r\nabc\r\n0\r\n\r\n"),
            (Framing::Length(3), Coding::Identity, b"abc", b"abc"),
            (Framing::UntilClose, Coding::Identity, b"abc", b"abc"),
        ];
        for (framing, coding, input, want) in cases {
            let got = run(Transfer::text(*framing, *coding), input, std::iter::empty()).unwrap();
            assert_eq!(got.concat(), *want, "{framing:?} to {coding:?}");
        }
    }

    #[test]
    fn same_coding_is_verbatim_unless_it_is_text() {
        assert!(Transfer::new(Framing::Chunked, Coding::Chunked).is_verbatim());
        assert!(Transfer::new(Framing::Length(9), Coding::Identity).is_verbatim());
        assert!(Transfer::new(Framing::UntilClose, Coding::Identity).is_verbatim());
        assert!(!Transfer::new(Framing::UntilClose, Coding::Chunked).is_verbatim());
        assert!(!Transfer::text(Framing::Chunked, Coding::Chunked).is_verbatim());
    }

    /// Drives a verbatim body over pieces ended at `ends`, in place and by copying; both must
    /// agree. Returns what goes on, what follows the body, and how many fields were dropped.
    fn run_verbatim(input: &[u8], ends: &[usize]) -> (Vec<u8>, Vec<u8>, u16) {
        let fresh = Transfer::alike(Framing::Chunked);
        let (mut in_place, mut copying) = (fresh, fresh);
        let (mut out, mut behind, mut copied, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let mut dropped = 0;
        for end in ends.iter().chain([&input.len()]) {
            let mut piece = input[at..*end].to_vec();
            let n = in_place.measure(&mut piece).unwrap();
            out.extend_from_slice(&piece[..n]);
            behind.extend_from_slice(&piece[n..]);
            dropped += in_place.take_dropped();
            copying.copy(&input[at..*end], &mut copied).unwrap();
            at = *end;
        }
        assert!(in_place.is_done() && copying.is_done());
        assert_eq!(copied.escape_ascii().to_string(), out.escape_ascii().to_string());
        assert_eq!(copying.take_dropped(), dropped);
        (out, behind, dropped)
    }

    #[test]
    fn verbatim_bodies_lose_forbidden_trailers_and_nothing_else_wherever_they_are_cut() {
        let body = "3;x=\"y\"\r\nab\n\r\n0A\r\n0123456789\r\n000;z\r\n";
        let trailers = "A: 1\r\nHost: h\r\nb:  2 \r\nContent-Length: 3\r\n";
        let input = format!("{body}{trailers}\r\nGET /");
        let want = (format!("{body}A: 1\r\nb:  2 \r\n\r\n").into_bytes(), b"GET /".to_vec(), 2);
        for first in 0..=input.len() {
            for second in first..=input.len() {
                let got = run_verbatim(input.as_bytes(), &[first, second]);
                assert_eq!(got, want, "cut {first} {second}");
            }
        }
        let every: Vec<usize> = (0..input.len()).collect();
        assert_eq!(run_verbatim(input.as_bytes(), &every), want);
    }

    #[test]
    fn a_verbatim_body_is_neither_moved_nor_grown() {
        let mut input = format!("ffff\r\n{}\r\n0\r\n\r\n", "x".repeat(0xffff)).into_bytes();
        let (before, place, room) = (input.clone(), input.as_ptr(), input.capacity());
        let n = Transfer::alike(Framing::Chunked).measure(&mut input).unwrap();
        assert!(n == before.len() && input == before);
        assert_eq!((input.as_ptr(), input.capacity()), (place, room));
        // Trailers that go on whole leave the buffer where it is, too.
        input.truncate(n - 2);
        input.extend_from_slice(b"A: 1\r\nHost: h\r\n\r\n");
        let (place, room) = (input.as_ptr(), input.capacity());
        Transfer::alike(Framing::Chunked).measure(&mut input).unwrap();
        assert!(input.ends_with(b"\r\n0\r\nA: 1\r\n\r\n"));
        assert_eq!((input.as_ptr(), input.capacity()), (place, room));
    }

    #[test]
    fn a_body_keeps_within_its_limits_to_the_octet() {
        let body = "1;ab\r\nx\r\n1;cd\r\nx\r\n0\r\nA: 1\r\nHost: h\r\n\r\n";
        let (extensions, trailers) = (4, 15);
        for (chunk_extension_bytes_max, trailer_bytes_max, want) in [
            (extensions, trailers, Ok(body.len())),
            (extensions - 1, trailers, Err(BodyError::ChunkExtensionTooLong)),
            (0, trailers, Err(BodyError::ChunkExtensionTooLong)),
            // What is dropped counts, too.
            (extensions, trailers - 1, Err(BodyError::TrailerTooLong)),
            (extensions, 0, Err(BodyError::TrailerTooLong)),
        ] {
            let limits = BodyLimits {
                chunk_extension_bytes_max,
                trailer_bytes_max,
                ..BodyLimits::default()
            };
            let alike = Transfer::alike(Framing::Chunked).within(limits);
            let rewritten = Transfer::text(Framing::Chunked, Coding::Chunked).within(limits);
            assert_eq!({ alike }.copy(body.as_bytes(), &mut Vec::new()), want, "{limits:?}");
            assert_eq!({ rewritten }.push(body.as_bytes(), &mut Vec::new()), want, "{limits:?}");
        }
        // None at all is within any limit.
        let limits =
            BodyLimits { content_bytes_max: 1, chunk_extension_bytes_max: 0, trailer_bytes_max: 0 };
        let mut bare = b"1\r\nx\r\n0\r\n\r\n".to_vec();
        assert_eq!(Transfer::alike(Framing::Chunked).within(limits).measure(&mut bare), Ok(11));
    }

    #[test]
    fn a_body_without_trailers_has_none_in_either_coding_wherever_it_is_cut() {
        let input = b"2\r\nab\r\n0\r\nA: 1\r\nHost: h\r\nB: 2\r\n\r\n";
        let want = b"2\r\nab\r\n0\r\n\r\n";
        for cut in 0..=input.len() {
            let mut alike = Transfer::alike(Framing::Chunked).without_trailers();
            let mut out = Vec::new();
            for piece in [&input[..cut], &input[cut..]] {
                alike.copy(piece, &mut out).unwrap();
            }
            assert_eq!((&*out, alike.take_dropped()), (&want[..], 3), "cut {cut}");
            let text = Transfer::text(Framing::Chunked, Coding::Chunked).without_trailers();
            let pieces = run(text, input, [cut].into_iter()).unwrap().concat();
            assert_eq!(content_of_chunks(&pieces), b"ab");
            assert!(pieces.ends_with(b"\r\n0\r\n\r\n"), "{}", pieces.escape_ascii());
        }
    }

    #[test]
    fn rewritten_bodies_lose_forbidden_trailers_too() {
        let input = b"2\r\nab\r\n0\r\nSet-Cookie: a\r\nX: 1\r\nTE: x\r\n\r\n";
        for cut in 0..=input.len() {
            let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
            let pieces = run(transfer, input, [cut].into_iter()).unwrap().concat();
            assert!(pieces.ends_with(b"0\r\nX: 1\r\n\r\n"), "{}", pieces.escape_ascii());
            assert_eq!(content_of_chunks(&pieces), b"ab");
        }
    }

    #[test]
    fn no_piece_ends_inside_a_character_wherever_the_input_was_cut() {
        let text = "data: aé€😀z\n\n";
        let mut input = Vec::new();
        for octet in text.bytes() {
            input.extend_from_slice(
                format!("1\r\n{}", octet as char).as_bytes().first_chunk::<3>().unwrap(),
            );
            input.push(octet);
            input.extend_from_slice(b"\r\n");
        }
        input.extend_from_slice(b"0\r\n\r\n");
        for cut in 0..=input.len() {
            let transfer = Transfer::text(Framing::Chunked, Coding::Identity);
            let pieces = run(transfer, &input, [cut].into_iter()).unwrap();
            assert!(pieces.iter().all(|p| std::str::from_utf8(p).is_ok()), "cut {cut}");
            assert_eq!(pieces.concat(), text.as_bytes());
        }
    }

    #[test]
    fn octets_that_are_not_text_are_passed_on() {
        for input in [&b"\xff\xff\xff\xff"[..], b"\x80\x80\x80\x80\x80", b"\xe2\x82", b"a\xf0"] {
            let transfer = Transfer::text(Framing::UntilClose, Coding::Identity);
            let pieces = run(transfer, input, 0..input.len()).unwrap();
            assert_eq!(pieces.concat(), input);
        }
    }

    #[test]
    fn nothing_follows_the_end() {
        let mut transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
        let mut out = Vec::new();
        assert_eq!(transfer.push(b"1\r\nx\r\n0\r\n\r\nnext", &mut out), Ok(11));
        let whole = out.clone();
        assert_eq!(transfer.push(b"next", &mut out), Ok(0));
        assert_eq!(transfer.end_of_input(&mut out), Ok(()));
        assert_eq!(out, whole);
    }

    #[test]
    fn a_truncated_body_is_never_finished() {
        let mut out = Vec::new();
        let mut transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
        transfer.push(b"5\r\nab", &mut out).unwrap();
        assert_eq!(transfer.end_of_input(&mut out), Err(BodyError::Truncated));
        assert_eq!(out, b"2\r\nab\r\n");
    }

    proptest! {
        #[test]
        fn rechunking_keeps_content_and_splits_do_not_matter(
            content in proptest::collection::vec(any::<u8>(), 0..200),
            sizes in proptest::collection::vec(1_usize..40, 0..20),
            cuts in proptest::collection::vec(0_usize..400, 0..8),
        ) {
            let (mut input, mut rest) = (Vec::new(), &content[..]);
            for size in sizes {
                let (chunk, tail) = rest.split_at(size.min(rest.len()));
                if !chunk.is_empty() {
                    input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    input.extend_from_slice(chunk);
                    input.extend_from_slice(b"\r\n");
                }
                rest = tail;
            }
            let content = &content[..content.len() - rest.len()];
            input.extend_from_slice(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(input.len())).collect();
            cuts.sort_unstable();
            let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
            let pieces = run(transfer, &input, cuts.into_iter());
            prop_assert_eq!(content_of_chunks(&pieces.unwrap().concat()), content);
        }
    }
}
