//! Readers as they are found in the wild: each forgives other mistakes, and each resolves
//! contradictions in its own way. Smuggling needs two of them that differ.
//!
//! They are written to be wrong. Where the product accepts a message, all of them must read it
//! alike: then it does not matter which of them stands in front of us or behind us.

use httparse::ParserConfig;

use crate::reading::{Kind, Message, Reading, Start, by_name};

/// One way to read HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Personality {
    head: HeadBy,
    wins: Wins,
    length: Which,
    coding: CodingBy,
    chunk: ChunkBy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeadBy {
    /// httparse with everything allowed that it can allow.
    Httparse,
    /// Lines that end in LF, names trimmed, folded lines joined.
    Lines,
}

/// Which of Content-Length and Transfer-Encoding is believed if both are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wins {
    Coding,
    Length,
}

/// Which of several equal fields is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    First,
    Last,
}

/// What counts as chunked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CodingBy {
    /// The word anywhere in any line.
    Mention,
    /// The first line is the word.
    FirstLine,
    /// The last member of the last line is the word.
    LastMember,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkBy {
    /// httparse's chunk sizes.
    Httparse,
    /// Like `strtol`: white space, a sign, `0x`, then as many digits as there are. Nothing is zero.
    Strtol,
}

/// Every combination.
pub(crate) fn all() -> Vec<Personality> {
    let mut all = Vec::new();
    for head in [HeadBy::Httparse, HeadBy::Lines] {
        for wins in [Wins::Coding, Wins::Length] {
            for length in [Which::First, Which::Last] {
                for coding in [CodingBy::Mention, CodingBy::FirstLine, CodingBy::LastMember] {
                    for chunk in [ChunkBy::Httparse, ChunkBy::Strtol] {
                        all.push(Personality { head, wins, length, coding, chunk });
                    }
                }
            }
        }
    }
    all
}

struct Head {
    start: Start,
    lines: Vec<(String, Vec<u8>)>,
    end: usize,
}

impl Personality {
    pub(crate) fn read(self, kind: Kind, octets: &[u8]) -> Reading {
        let mut from = 0;
        loop {
            let head = match (self.head, kind) {
                (HeadBy::Lines, _) => head_by_lines(kind, &octets[from..]),
                (HeadBy::Httparse, Kind::Request) => request_by_httparse(&octets[from..]),
                (HeadBy::Httparse, Kind::ResponseTo(_)) => response_by_httparse(&octets[from..]),
            };
            let mut head = match head {
                Ok(head) => head,
                Err(reading) => return reading,
            };
            head.end += from;
            if matches!(head.start, Start::Status(100..=199)) {
                from = head.end;
                continue;
            }
            return match self.body(kind, &head, octets) {
                Ok((content, end)) => {
                    let lines = head.lines.iter().map(|(name, value)| (&**name, &**value));
                    let fields = by_name(lines);
                    Reading::Whole(Message { start: head.start, fields, content, end })
                }
                Err(reading) => reading,
            };
        }
    }

    fn body(self, kind: Kind, head: &Head, octets: &[u8]) -> Result<(Vec<u8>, usize), Reading> {
        let values = |wanted: &str| -> Vec<&[u8]> {
            let lines = head.lines.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
            lines.map(|(_, value)| &**value).collect()
        };
        let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
        if matches!(head.start, Start::Status(204 | 304)) || kind == Kind::ResponseTo("HEAD") {
            return Ok((Vec::new(), head.end));
        }
        let is_chunked = self.is_chunked(&codings);
        let length = match self.length {
            Which::First => lengths.first(),
            Which::Last => lengths.last(),
        };
        let body = &octets[head.end..];
        match length {
            Some(length) if self.wins == Wins::Length || !is_chunked => {
                let length = leading_number(length, 10).0;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let content = body.get(..length).ok_or(Reading::Unfinished)?;
                Ok((content.to_vec(), head.end + length))
            }
            _ if is_chunked => self.chunks(octets, head.end),
            _ if kind == Kind::Request => Ok((Vec::new(), head.end)),
            _ => Ok((body.to_vec(), octets.len())),
        }
    }

    fn is_chunked(self, codings: &[&[u8]]) -> bool {
        let is_word = |value: &[u8]| value.trim_ascii().eq_ignore_ascii_case(b"chunked");
        match self.coding {
            CodingBy::Mention => codings.iter().any(|value| {
                let value = value.to_ascii_lowercase();
                value.windows(7).any(|window| window == b"chunked")
            }),
            CodingBy::FirstLine => codings.first().is_some_and(|value| is_word(value)),
            CodingBy::LastMember => codings
                .last()
                .and_then(|value| value.rsplit(|b| *b == b',').next())
                .is_some_and(is_word),
        }
    }

    fn chunks(self, octets: &[u8], start: usize) -> Result<(Vec<u8>, usize), Reading> {
        let (mut content, mut at) = (Vec::new(), start);
        loop {
            let size = match self.chunk {
                ChunkBy::Httparse => match httparse::parse_chunk_size(&octets[at..]) {
                    Ok(httparse::Status::Complete((n, size))) => {
                        at += n;
                        size
                    }
                    Ok(httparse::Status::Partial) => return Err(Reading::Unfinished),
                    Err(error) => return Err(Reading::refused(error)),
                },
                ChunkBy::Strtol => {
                    let line = take_line(octets, &mut at)?;
                    leading_number(line, 16).0
                }
            };
            if size == 0 {
                break;
            }
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let end = at.checked_add(size).ok_or(Reading::Unfinished)?;
            content.extend_from_slice(octets.get(at..end).ok_or(Reading::Unfinished)?);
            at = end;
            // Whatever stands there, as long as it ends a line.
            let line = take_line(octets, &mut at)?;
            if !line.is_empty() {
                return Err(Reading::refused("octets behind a chunk"));
            }
        }
        while !take_line(octets, &mut at)?.is_empty() {}
        Ok((content, at))
    }
}

/// The next line without its end, which is LF or CRLF.
fn take_line<'a>(octets: &'a [u8], at: &mut usize) -> Result<&'a [u8], Reading> {
    let rest = &octets[*at..];
    let end = rest.iter().position(|b| *b == b'\n').ok_or(Reading::Unfinished)?;
    *at += end + 1;
    Ok(rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]))
}

/// The number in front, as C reads it, and how many digits it has.
fn leading_number(text: &[u8], radix: u32) -> (u64, usize) {
    let mut text = text.trim_ascii_start();
    text = text.strip_prefix(b"+").unwrap_or(text);
    if radix == 16 {
        text = text.strip_prefix(b"0x").unwrap_or(text);
    }
    let digits = text.iter().map_while(|b| char::from(*b).to_digit(radix));
    let (mut value, mut count) = (0_u64, 0);
    for digit in digits {
        value = value.saturating_mul(u64::from(radix)).saturating_add(u64::from(digit));
        count += 1;
    }
    (value, count)
}

fn head_by_lines(kind: Kind, octets: &[u8]) -> Result<Head, Reading> {
    let mut at = 0;
    let mut first = take_line(octets, &mut at)?;
    while first.is_empty() {
        first = take_line(octets, &mut at)?;
    }
    let mut words = first.split(|b| *b == b' ').filter(|word| !word.is_empty());
    let (one, two) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let start = match kind {
        Kind::Request => request_start(&String::from_utf8_lossy(one), two),
        Kind::ResponseTo(_) => match leading_number(two, 10) {
            (status, 3) if one.starts_with(b"HTTP/") => {
                Start::Status(u16::try_from(status).expect("three digits"))
            }
            _ => return Err(Reading::refused("no status line")),
        },
    };
    let mut lines: Vec<(String, Vec<u8>)> = Vec::new();
    loop {
        let line = take_line(octets, &mut at)?;
        match (line, lines.last_mut()) {
            ([], _) => return Ok(Head { start, lines, end: at }),
            ([b' ' | b'\t', ..], Some((_, value))) => {
                value.push(b' ');
                value.extend_from_slice(line.trim_ascii());
            }
            _ => {
                let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
                let name = String::from_utf8_lossy(line[..colon].trim_ascii()).into_owned();
                let value = line.get(colon + 1..).unwrap_or_default();
                lines.push((name, trim_blanks(value).to_vec()));
            }
        }
    }
}

fn trim_blanks(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn request_start(method: &str, target: &[u8]) -> Start {
    let target = matches!(target, [b'/', ..] | b"*").then(|| target.to_vec());
    Start::Request { method: method.to_owned(), target }
}

fn generous() -> ParserConfig {
    let mut config = ParserConfig::default();
    config
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_multiple_spaces_in_request_line_delimiters(true)
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_space_before_first_header_name(true)
        .ignore_invalid_headers_in_requests(true)
        .ignore_invalid_headers_in_responses(true);
    config
}

fn request_by_httparse(octets: &[u8]) -> Result<Head, Reading> {
    let mut storage = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut storage);
    let end = end_of(generous().parse_request(&mut request, octets))?;
    let target = request.path.unwrap_or_default().as_bytes();
    let start = request_start(request.method.unwrap_or_default(), target);
    Ok(Head { start, lines: owned(request.headers), end })
}

fn response_by_httparse(octets: &[u8]) -> Result<Head, Reading> {
    let mut storage = [httparse::EMPTY_HEADER; 256];
    let mut response = httparse::Response::new(&mut storage);
    let end = end_of(generous().parse_response(&mut response, octets))?;
    let start = Start::Status(response.code.unwrap_or_default());
    Ok(Head { start, lines: owned(response.headers), end })
}

fn end_of(status: httparse::Result<usize>) -> Result<usize, Reading> {
    match status {
        Ok(httparse::Status::Complete(end)) => Ok(end),
        Ok(httparse::Status::Partial) => Err(Reading::Unfinished),
        Err(error) => Err(Reading::refused(error)),
    }
}

fn owned(lines: &[httparse::Header<'_>]) -> Vec<(String, Vec<u8>)> {
    lines.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect()
}
