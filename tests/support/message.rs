//! Heads and bodies, read strictly and without the product's codec.

use std::time::{Duration, SystemTime};

use super::show;

/// How old the `Date` of a head may be that was just received.
const DATE_AGE_MAX: Duration = Duration::from_secs(30);

/// The head of a request or a response, as it was received.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) octets: Vec<u8>,
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Head {
    /// Takes octets that end in an empty line.
    pub(crate) fn new(octets: Vec<u8>) -> Self {
        assert!(octets.ends_with(b"\r\n\r\n"), "no head: {}", show(&octets));
        Self { octets }
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let text = &self.octets[..self.octets.len() - 4];
        let mut rest = Some(text);
        std::iter::from_fn(move || {
            let text = rest?;
            let end = text.windows(2).position(|pair| pair == b"\r\n");
            rest = end.map(|end| &text[end + 2..]);
            Some(&text[..end.unwrap_or(text.len())])
        })
    }

    /// The request line or the status line.
    pub(crate) fn start(&self) -> String {
        self.lines().next().unwrap_or_default().escape_ascii().to_string()
    }

    /// Field lines as they were received, in order.
    pub(crate) fn fields(&self) -> Vec<(&[u8], &[u8])> {
        let split = |line: &'_ [u8]| line.iter().position(|b| *b == b':');
        self.lines()
            .skip(1)
            .map(|line| {
                let colon = split(line).unwrap_or_else(|| panic!("no field: {}", show(line)));
                (&line[..colon], line[colon + 1..].trim_ascii())
            })
            .collect()
    }

    /// Every value of a field, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        self.fields()
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.escape_ascii().to_string())
            .collect()
    }

    /// The value of a field that appears at most once.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        assert!(all.len() < 2, "{name} appears {} times in {self:?}", all.len());
        all.pop()
    }

    /// Whether a field appears.
    pub(crate) fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// The method, of a request.
    pub(crate) fn method(&self) -> String {
        self.start().split(' ').next().unwrap_or_default().to_owned()
    }

    /// The target, of a request.
    pub(crate) fn target(&self) -> String {
        self.start().split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// The status, of a response.
    pub(crate) fn status(&self) -> u16 {
        let start = self.start();
        let digits = start.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = digits.and_then(|digits| digits.parse().ok());
        status.unwrap_or_else(|| panic!("no status line: {start:?}"))
    }

    /// When a response was made, as its one `Date` says in the one form in which dates are to be
    /// written (RFC 9110 §5.6.7).
    pub(crate) fn date(&self) -> SystemTime {
        let text = self.field("date").unwrap_or_else(|| panic!("no date in {self:?}"));
        let date = httpdate::parse_http_date(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        assert_eq!(httpdate::fmt_http_date(date), text, "another form of date");
        date
    }

    /// The octets of a response whose backend has sent no `Date`, without the line that the
    /// balancer has added: one, of a moment that has just passed.
    pub(crate) fn without_date(&self) -> Vec<u8> {
        let age = SystemTime::now().duration_since(self.date());
        assert!(age.as_ref().is_ok_and(|age| *age < DATE_AGE_MAX), "{age:?} in {self:?}");
        let is_date = |line: &[u8]| line.starts_with(b"Date: ");
        assert!(self.lines().any(is_date), "not written as the balancer does: {self:?}");
        self.lines()
            .filter(|line| !is_date(line))
            .chain([&b""[..], b""])
            .collect::<Vec<_>>()
            .join(&b"\r\n"[..])
    }

    /// Every final response that comes out of the balancer says when it was made, whoever made it.
    pub(crate) fn expect_date(&self) {
        let is_response = self.octets.starts_with(b"HTTP/");
        let lacks_date = is_response && self.status() >= 200 && !self.has("date");
        assert!(!lacks_date, "no date in {self:?}");
    }

    /// Where the body ends, if there can be one. Contradictions fail the test.
    pub(crate) fn framing(&self) -> Option<Framing> {
        let (length, coding) = (self.field("content-length"), self.field("transfer-encoding"));
        match (length, coding.as_deref()) {
            (Some(length), None) => {
                let length = length.parse();
                Some(Framing::Length(length.unwrap_or_else(|_| panic!("length in {self:?}"))))
            }
            (None, Some("chunked")) => Some(Framing::Chunked),
            (None, None) => None,
            _ => panic!("two framings, or an unknown one, in {self:?}"),
        }
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&show(&self.octets))
    }
}

/// Wraps `content` into chunks of `size` octets, last chunk included.
pub(crate) fn chunked(content: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / size * 8 + 16);
    for piece in content.chunks(size) {
        out.extend_from_slice(&chunk(piece));
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// One chunk.
pub(crate) fn chunk(content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut out = format!("{:x}\r\n", content.len()).into_bytes();
    out.extend_from_slice(content);
    out.extend_from_slice(b"\r\n");
    out
}
