//! Pure: hands a body on, possibly in another coding.
//!
//! Most bodies go through verbatim and never come here with a copy: [`Transfer::is_verbatim`] says
//! so and [`Transfer::measure`] only counts. A body is rewritten where the two sides need different
//! framing, and where it is an event stream: Stepflow's client decodes every received piece as
//! UTF-8 on its own and drops one that ends inside a character, so pieces are cut at characters.

use super::{Body, BodyError, Framing, Step};

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
    coding: Coding,
    verbatim: bool,
    text: bool,
    /// Octets of an unfinished character, kept until the rest arrives.
    held: [u8; 3],
    held_bytes: u8,
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

    fn build(framing: Framing, coding: Coding, verbatim: bool, text: bool) -> Self {
        let body = Body::new(framing);
        Self {
            body,
            coding,
            verbatim,
            text,
            held: [0; 3],
            held_bytes: 0,
            written: Written::Content,
        }
    }

    /// Incoming octets may be forwarded as they are: use [`Transfer::measure`].
    pub fn is_verbatim(&self) -> bool {
        self.verbatim
    }

    /// The incoming body has ended.
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// How many octets at the front of `input` belong to the body. Only for verbatim bodies.
    ///
    /// # Errors
    /// As [`Body::step`].
    pub fn measure(&mut self, input: &[u8]) -> Result<usize, BodyError> {
        debug_assert!(self.verbatim, "a body that is rewritten must go through push");
        self.body.measure(input)
    }

    /// Takes octets from the front of `input`, appends what they become to `out`, and returns how
    /// many were taken. Fewer than given means that the body has ended.
    ///
    /// # Errors
    /// As [`Body::step`]. What was appended before the error is valid output.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, BodyError> {
        let mut consumed = 0;
        let mut chunk = ChunkWriter::begin(self.coding, out);
        out.extend_from_slice(&self.held[..usize::from(self.held_bytes)]);
        self.held_bytes = 0;
        let end = loop {
            let rest = &input[consumed..];
            match self.body.step(rest) {
                Ok(Step::Framing(n)) => consumed += n,
                Ok(Step::Data(n)) => {
                    out.extend_from_slice(&rest[..n]);
                    consumed += n;
                }
                Ok(Step::Trailer(n)) => {
                    chunk.end(out);
                    self.begin_trailers(out);
                    // A body without chunks has no place for trailers (RFC 9110 §6.5.1).
                    if self.coding == Coding::Chunked {
                        out.extend_from_slice(&rest[..n]);
                    }
                    chunk = ChunkWriter::begin_after_last(out);
                    consumed += n;
                }
                Ok(Step::NeedMore) => {
                    self.hold_back(chunk.content_mut(out));
                    break Ok(consumed);
                }
                Ok(Step::Done) => break Ok(consumed),
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

    fn begin_trailers(&mut self, out: &mut Vec<u8>) {
        if self.coding == Coding::Chunked && self.written == Written::Content {
            out.extend_from_slice(b"0\r\n");
            self.written = Written::LastChunk;
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
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

/// How many octets at the end are the beginning of a UTF-8 character that the text does not finish.
/// Octets that cannot become a character are left alone: they are the sender's business.
fn unfinished_character(text: &[u8]) -> usize {
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
