//! A second reading of HTTP/1.1, by the letter and without regard to speed: whole inputs only,
//! split at line ends, no states. What the product accepts must mean the same to it.

/// One field line: name as written, value without the white space around it.
pub type Lines = Vec<(String, Vec<u8>)>;

/// A head, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub start_line: Vec<u8>,
    pub fields: Lines,
}

/// Reads octets that are exactly one head (RFC 9112 §2.1), the empty line included.
pub fn head(octets: &[u8]) -> Option<Head> {
    let lines = octets.strip_suffix(b"\r\n\r\n")?;
    let mut lines = split_lines(lines);
    let start_line = lines.remove(0).to_vec();
    let is_clean = |line: &[u8]| !line.iter().any(|b| matches!(b, b'\r' | b'\n' | 0));
    if start_line.is_empty() || !is_clean(&start_line) {
        return None;
    }
    let fields = lines.into_iter().map(|line| {
        let colon = line.iter().position(|b| *b == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        (is_token(name) && is_clean(value))
            .then(|| (String::from_utf8_lossy(name).into_owned(), trim(value).to_vec()))
    });
    Some(Head { start_line, fields: fields.collect::<Option<Lines>>()? })
}

fn split_lines(octets: &[u8]) -> Vec<&[u8]> {
    let (mut lines, mut rest) = (Vec::new(), octets);
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    lines
}

/// RFC 9110 §5.6.2.
pub fn is_token(octets: &[u8]) -> bool {
    const SEPARATORS: &[u8] = b"\"(),/:;<=>?@[\\]{}";
    !octets.is_empty()
        && octets.iter().all(|b| (0x21..=0x7e).contains(b) && !SEPARATORS.contains(b))
}

/// RFC 9110 §5.6.3.
pub fn trim(value: &[u8]) -> &[u8] {
    let is_inner = |b: &u8| !matches!(b, b' ' | b'\t');
    let Some(first) = value.iter().position(is_inner) else { return &[] };
    let last = value.iter().rposition(is_inner).unwrap_or(first);
    &value[first..=last]
}

/// How far a body goes in some octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It ends here; this many octets belong to it.
    Complete(usize),
    /// Nothing is wrong so far.
    Partial,
    /// It is no body.
    Bad,
}

/// What a body holds.
#[derive(Debug)]
pub struct Seen {
    /// One entry per chunk, or all of a body without chunks. The last may be unfinished.
    pub chunks: Vec<Vec<u8>>,
    /// Field lines behind the last chunk, line ends included. Only told if the body is complete.
    pub trailers: Vec<u8>,
    pub end: End,
}

impl Seen {
    pub fn content(&self) -> Vec<u8> {
        self.chunks.concat()
    }
}

/// Reads a body of known length.
pub fn sized(octets: &[u8], length: u64) -> Seen {
    let end = match usize::try_from(length) {
        Ok(length) if length <= octets.len() => End::Complete(length),
        _ => End::Partial,
    };
    let content = match end {
        End::Complete(length) => &octets[..length],
        _ => octets,
    };
    Seen { chunks: vec![content.to_vec()], trailers: Vec::new(), end }
}

/// Octets of chunk extensions per message that the product takes (behind the first semicolon of
/// each chunk), and of trailers.
const EXTENSION_BYTES_MAX: usize = 4096;
const TRAILER_BYTES_MAX: usize = 8192;

/// Reads a chunked body (RFC 9112 §7.1) with the strictness that the product promises: no bad white
/// space, 16 digits, extensions of visible octets, trailers that are field lines.
pub fn chunked(octets: &[u8]) -> Seen {
    let mut seen = Seen { chunks: Vec::new(), trailers: Vec::new(), end: End::Bad };
    seen.end = read_chunks(octets, &mut seen).map_or_else(|end| end, End::Complete);
    if !matches!(seen.end, End::Complete(_)) {
        seen.trailers.clear();
    }
    seen
}

fn read_chunks(octets: &[u8], seen: &mut Seen) -> Result<usize, End> {
    let (mut at, mut extension_bytes) = (0, 0);
    loop {
        let (line, is_whole) = until_cr(&octets[at..]);
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        if digits > 16 || (digits == 0 && (is_whole || !line.is_empty())) {
            return Err(End::Bad);
        }
        if let Some((first, extension)) = extension.split_first() {
            extension_bytes += extension.len();
            if *first != b';' || !is_text(extension) || extension_bytes > EXTENSION_BYTES_MAX {
                return Err(End::Bad);
            }
        }
        if !is_whole {
            return Err(End::Partial);
        }
        at = line_feed(octets, at + line.len() + 1)?;
        let size = std::str::from_utf8(size).map_err(|_| End::Bad)?;
        let size = u64::from_str_radix(size, 16).map_err(|_| End::Bad)?;
        if size == 0 {
            return read_trailers(octets, at, seen);
        }
        let left = (octets.len() - at) as u64;
        if left < size {
            seen.chunks.push(octets[at..].to_vec());
            return Err(End::Partial);
        }
        let end = at + usize::try_from(size).map_err(|_| End::Bad)?;
        seen.chunks.push(octets[at..end].to_vec());
        match octets[end..] {
            [] | [b'\r'] => return Err(End::Partial),
            [b'\r', b'\n', ..] => at = end + 2,
            _ => return Err(End::Bad),
        }
    }
}

fn read_trailers(octets: &[u8], mut at: usize, seen: &mut Seen) -> Result<usize, End> {
    loop {
        let (line, is_whole) = until_cr(&octets[at..]);
        if line.is_empty() && is_whole {
            return line_feed(octets, at + 1);
        }
        match line.iter().position(|b| *b == b':') {
            Some(colon) if is_token(&line[..colon]) && is_text(&line[colon + 1..]) => {}
            None if line.is_empty() || (!is_whole && is_token(line)) => {}
            _ => return Err(End::Bad),
        }
        let begun = at;
        let end = match is_whole {
            true => line_feed(octets, at + line.len() + 1),
            false => Err(End::Partial),
        };
        // The limit is reached before the line ends, whatever follows.
        let taken = end.unwrap_or(octets.len()) - begun;
        let is_bad = end == Err(End::Bad);
        if seen.trailers.len() + taken - usize::from(is_bad) > TRAILER_BYTES_MAX {
            return Err(End::Bad);
        }
        at = end?;
        seen.trailers.extend_from_slice(&octets[begun..at]);
    }
}

/// The octets before the first CR, and whether there is one.
fn until_cr(octets: &[u8]) -> (&[u8], bool) {
    match octets.iter().position(|b| *b == b'\r') {
        Some(at) => (&octets[..at], true),
        None => (octets, false),
    }
}

/// The place behind the LF that must stand at `at`.
fn line_feed(octets: &[u8], at: usize) -> Result<usize, End> {
    match octets.get(at) {
        None => Err(End::Partial),
        Some(b'\n') => Ok(at + 1),
        Some(_) => Err(End::Bad),
    }
}

/// Field content and white space (RFC 9110 §5.5).
fn is_text(octets: &[u8]) -> bool {
    octets.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f))
}
