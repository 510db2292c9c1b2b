//! Pure: a response that is an event stream, read strictly, however its octets are cut.

use memchr::memchr;

/// Longest head, and longest line of a chunk's size, that a reader takes.
const LINE_OCTETS_MAX: usize = 16 * 1024;

/// What a stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// The octets of an event, the empty line included; comments and `retry` left out.
    Event(&'a [u8]),
    /// How long to wait before connecting again, in milliseconds.
    Retry(u64),
    /// A line that says nothing.
    Comment,
}

/// Why a response is none that we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("no head of a response: {0:?}")]
    Head(String),
    #[error("status {0}")]
    Status(u16),
    #[error("the size of a chunk: {0:?}")]
    ChunkSize(String),
    #[error("no line end behind a chunk")]
    ChunkEnd,
    #[error("octets behind the end")]
    BehindTheEnd,
    #[error("retry: {0:?}")]
    Retry(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    ChunkSize,
    Chunk { left: usize },
    ChunkEnd { left: u8 },
    Trailers,
    UntilClose,
    Done,
}

/// Reads one response.
#[derive(Debug)]
pub(crate) struct Reader {
    state: State,
    /// A line that has not ended yet, of the framing.
    framing: Vec<u8>,
    /// A line that has not ended yet, of the stream.
    line: Vec<u8>,
    /// An event that has not ended yet.
    event: Vec<u8>,
}

impl Reader {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, framing: Vec::new(), line: Vec::new(), event: Vec::new() }
    }

    /// Takes octets in, and hands out what they complete.
    ///
    /// # Errors
    /// What they say is no event stream, or the receiver of the items will have no more.
    pub(crate) fn push<E: From<Malformed>>(
        &mut self,
        mut octets: &[u8],
        each: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !octets.is_empty() {
            match self.state {
                State::Head | State::ChunkSize | State::Trailers => {
                    octets = self.framing_line(octets)?;
                }
                State::Chunk { left } => {
                    let (content, rest) = octets.split_at(left.min(octets.len()));
                    octets = rest;
                    let left = left - content.len();
                    self.state = match left {
                        0 => State::ChunkEnd { left: 2 },
                        left => State::Chunk { left },
                    };
                    self.content(content, each)?;
                }
                State::ChunkEnd { left } => {
                    let expected = if left == 2 { b'\r' } else { b'\n' };
                    if octets[0] != expected {
                        return Err(Malformed::ChunkEnd.into());
                    }
                    octets = &octets[1..];
                    self.state = match left {
                        2 => State::ChunkEnd { left: 1 },
                        _ => State::ChunkSize,
                    };
                }
                State::UntilClose => {
                    self.content(octets, each)?;
                    return Ok(());
                }
                State::Done => return Err(Malformed::BehindTheEnd.into()),
            }
        }
        Ok(())
    }

    /// Takes in a line of the head, of a chunk's size or of the trailers; gives what is behind it.
    fn framing_line<'a>(&mut self, octets: &'a [u8]) -> Result<&'a [u8], Malformed> {
        let end = memchr(b'\n', octets);
        let taken = end.map_or(octets.len(), |end| end + 1);
        self.framing.extend_from_slice(&octets[..taken]);
        let text = || self.framing.escape_ascii().to_string();
        if self.framing.len() > LINE_OCTETS_MAX {
            return Err(Malformed::Head(text()));
        }
        if end.is_none() {
            return Ok(&octets[taken..]);
        }
        self.state = match self.state {
            State::Head if !self.framing.ends_with(b"\r\n\r\n") => return Ok(&octets[taken..]),
            State::Head => body_of(&self.framing)?,
            State::ChunkSize => {
                let line = self.framing.trim_ascii_end();
                let digits = std::str::from_utf8(line).unwrap_or_default();
                match usize::from_str_radix(digits, 16) {
                    Ok(0) => State::Trailers,
                    Ok(left) => State::Chunk { left },
                    Err(_) => return Err(Malformed::ChunkSize(text())),
                }
            }
            _ if self.framing == b"\r\n" => State::Done,
            state => state,
        };
        self.framing.clear();
        Ok(&octets[taken..])
    }

    /// Takes in octets of the stream itself.
    fn content<E: From<Malformed>>(
        &mut self,
        mut octets: &[u8],
        each: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = memchr(b'\n', octets) {
            let (line, rest) = octets.split_at(end + 1);
            octets = rest;
            self.line.extend_from_slice(line);
            match &self.line[..self.line.len() - 1] {
                b"" if self.event.is_empty() => {}
                b"" => {
                    self.event.push(b'\n');
                    each(Item::Event(&self.event))?;
                    self.event.clear();
                }
                [b':', ..] => each(Item::Comment)?,
                line if line.starts_with(b"retry:") => {
                    let digits = line[6..].trim_ascii();
                    let number = std::str::from_utf8(digits).ok().and_then(|n| n.parse().ok());
                    let text = || line.escape_ascii().to_string();
                    each(Item::Retry(number.ok_or_else(|| Malformed::Retry(text()))?))?;
                }
                _ => self.event.extend_from_slice(&self.line),
            }
            self.line.clear();
        }
        self.line.extend_from_slice(octets);
        Ok(())
    }

    /// Whether the response is over although its connection is open.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the end of the connection is the end of the response, and not a cut.
    pub(crate) fn may_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Whether no event has begun that has not ended.
    pub(crate) fn is_between_events(&self) -> bool {
        self.event.is_empty() && self.line.is_empty()
    }
}

/// How the body behind a head is framed.
fn body_of(head: &[u8]) -> Result<State, Malformed> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let digits = text.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3));
    match digits.and_then(|digits| digits.parse().ok()) {
        None => Err(Malformed::Head(text)),
        Some(200) if !text.contains("\r\ncontent-type: text/event-stream") => {
            Err(Malformed::Head(text))
        }
        Some(200) if text.contains("\r\ntransfer-encoding: chunked\r\n") => Ok(State::ChunkSize),
        Some(200) if text.contains("\r\ncontent-length:") => Err(Malformed::Head(text)),
        Some(200) => Ok(State::UntilClose),
        Some(status) => Err(Malformed::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n";

    /// What a reader makes of octets that come in pieces of this size, and whether it is content
    /// with an end behind them.
    fn read(octets: &[u8], size: usize) -> Result<(Vec<String>, bool), Malformed> {
        let (mut reader, mut items) = (Reader::new(), Vec::new());
        for piece in octets.chunks(size) {
            reader.push(piece, &mut |item| {
                items.push(match item {
                    Item::Event(octets) => String::from_utf8_lossy(octets).into_owned(),
                    Item::Retry(ms) => format!("retry {ms}"),
                    Item::Comment => "comment".to_owned(),
                });
                Ok::<_, Malformed>(())
            })?;
        }
        Ok((items, reader.may_close() && reader.is_between_events()))
    }

    #[test]
    fn a_stream_is_read_alike_however_it_is_cut() {
        let chunked = format!(
            "{HEAD}Transfer-Encoding: chunked\r\n\r\n\
             11\r\nid: 1\ndata: a\n\n: \r\n1\r\n\n\r\nF\r\n\nretry: 250\n\nid\r\n\
             B\r\n: 2\ndata: b\r\n2\r\n\n\n\r\n0\r\n\r\n"
        );
        let closed = format!("{HEAD}\r\nid: 1\ndata: a\n\n: \n\nretry: 250\n\nid: 2\ndata: b\n\n");
        let items = ["id: 1\ndata: a\n\n", "comment", "retry 250", "id: 2\ndata: b\n\n"];
        for octets in [chunked, closed] {
            for size in 1..=octets.len() {
                let (read, is_whole) = read(octets.as_bytes(), size).unwrap();
                assert_eq!(read, items, "in pieces of {size}");
                assert!(is_whole, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_is_not_whole_is_not_taken_for_whole() {
        let cases = [
            "\r\nid: 1\ndata: a\n",
            "\r\nid: 1\ndata: a\n\nid",
            "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n0\r\n",
        ];
        for octets in cases {
            let (_, is_whole) = read(format!("{HEAD}{octets}").as_bytes(), 7).unwrap();
            assert!(!is_whole, "{octets:?}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
        let cases = [
            ("HTTP/1.1 503 So\r\n\r\n".to_owned(), Malformed::Status(503)),
            (format!("{chunked}g\r\n"), Malformed::ChunkSize("g\\r\\n".to_owned())),
            (format!("{chunked}1\r\nab"), Malformed::ChunkEnd),
            (format!("{chunked}0\r\n\r\nx"), Malformed::BehindTheEnd),
            (format!("{HEAD}\r\nretry: x\n"), Malformed::Retry("retry: x".to_owned())),
        ];
        for (octets, error) in cases {
            assert_eq!(read(octets.as_bytes(), 3), Err(error), "{octets:?}");
        }
    }
}
