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

    /// Octets that are still to come, of an incoming body that has a length.
    pub fn left_bytes(&self) -> Option<u64> {
        self.body.left_bytes()
    }

    /// The outgoing body has room for content: neither a trailer nor its end has been written.
    pub fn takes_content(&self) -> bool {
        self.written == Written::Content
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

    /// Takes octets from the front of `input`, appends their content alone to `content`, and
    /// returns how many were taken. Trailers are left out. Nothing is written of the outgoing body:
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
        // A BOM that is to be left out is recognised only when it is whole.
        if !self.text && !self.drops_bom {
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
mod tests;
