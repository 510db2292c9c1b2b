//! Pure: cookies, as far as a session may be in one (RFC 6265).
//!
//! A `Cookie` line is a list with semicolons between; quotes do not hide one, in RFC 6265 as in
//! every server that was looked at. What is not ours keeps its octets, odd spaces included.

use std::{fmt, ops::Range};

use super::TOKEN_BYTES_MAX;

/// One pair of a `Cookie` line, by places in the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// All of it, with the space around, without semicolons.
    pub(super) all: Range<usize>,
    /// Its value without the space around.
    pub(super) value: Range<usize>,
}

/// The pairs of a line that have this name.
pub(super) fn pairs<'a>(line: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = Pair> + 'a {
    segments(line).filter_map(move |all| {
        let segment = &line[all.clone()];
        let equals = segment.iter().position(|b| *b == b'=')?;
        if trim(segment, 0..equals).1 != name {
            return None;
        }
        let (value, _) = trim(line, all.start + equals + 1..all.end);
        Some(Pair { all, value })
    })
}

/// The line with some pairs changed: each has a new value, or is left out. `None` if nothing is
/// left. The changes are in the order of the line, which makes this linear.
pub(super) fn rewrite(line: &[u8], changes: &[(Pair, Option<Vec<u8>>)]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(line.len());
    let mut is_empty = true;
    let mut changes = changes.iter().peekable();
    for segment in segments(line) {
        let change = changes.next_if(|(pair, _)| pair.all == segment);
        if let Some((_, None)) = change {
            continue;
        }
        if !std::mem::take(&mut is_empty) {
            out.push(b';');
        }
        match change {
            Some((pair, Some(value))) => {
                out.extend_from_slice(&line[segment.start..pair.value.start]);
                out.extend_from_slice(value);
                out.extend_from_slice(&line[pair.value.end..segment.end]);
            }
            Some((_, None)) | None => out.extend_from_slice(&line[segment]),
        }
    }
    let (kept, octets) = trim(&out, 0..out.len());
    if octets.is_empty() {
        return None;
    }
    // A field value begins with no space; the one in front belonged to a pair that is gone.
    out.drain(..kept.start);
    Some(out)
}

/// A value as it was before somebody put quotes around it.
pub(super) fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

/// The value in a `Set-Cookie` that sets the cookie of this name, by its place.
pub(super) fn set_value(line: &[u8], name: &[u8]) -> Option<Range<usize>> {
    let first = segments(line).next()?;
    pairs(&line[first], name).next().map(|pair| pair.value)
}

/// Whether a `Set-Cookie` takes its cookie away: an empty value, an age that has passed, or the
/// usual date at the beginning of the epoch.
pub(super) fn is_removal(line: &[u8], value: &Range<usize>) -> bool {
    value.is_empty()
        || segments(line).skip(1).any(|attribute| {
            let attribute = &line[attribute];
            let equals = attribute.iter().position(|b| *b == b'=').unwrap_or(attribute.len());
            let (_, name) = trim(attribute, 0..equals);
            let (_, value) = trim(attribute, (equals + 1).min(attribute.len())..attribute.len());
            match name {
                name if name.eq_ignore_ascii_case(b"max-age") => {
                    matches!(value, [b'-', ..]) || (!value.is_empty() && is_zero(value))
                }
                name if name.eq_ignore_ascii_case(b"expires") => {
                    value.windows(4).any(|year| year == b"1970")
                }
                _ => false,
            }
        })
}

fn is_zero(digits: &[u8]) -> bool {
    digits.iter().all(|digit| *digit == b'0')
}

/// A `Set-Cookie` with another value; its attributes keep their octets.
pub(super) fn with_value(line: &[u8], place: &Range<usize>, value: &[u8]) -> Vec<u8> {
    [&line[..place.start], value, &line[place.end..]].concat()
}

fn segments(line: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut next = Some(0);
    std::iter::from_fn(move || {
        let start = next?;
        let length = line[start..].iter().position(|b| *b == b';');
        next = length.map(|length| start + length + 1);
        Some(start..length.map_or(line.len(), |length| start + length))
    })
}

fn trim(octets: &[u8], mut range: Range<usize>) -> (Range<usize>, &[u8]) {
    let is_space = |b: u8| matches!(b, b' ' | b'\t');
    while range.start < range.end && is_space(octets[range.start]) {
        range.start += 1;
    }
    while range.start < range.end && is_space(octets[range.end - 1]) {
        range.end -= 1;
    }
    let inner = &octets[range.clone()];
    (range, inner)
}

/// The cookie that the balancer inserts: its name, and what it says besides its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieSpec {
    name: Box<str>,
    attributes: Box<str>,
}

/// Why a text describes no cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CookieError {
    /// The name is no token.
    Name,
    /// An attribute that is not known, or that has the wrong kind of value.
    Attribute(Box<str>),
    /// An attribute twice.
    Repeated(Box<str>),
    /// `SameSite=None`, `Partitioned`, or a prefix of the name that browsers take only together
    /// with others.
    Rejected(&'static str),
    /// Longer than a browser keeps, together with the value.
    TooLong,
}

impl fmt::Display for CookieError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => f.write_str("the name of a cookie is one token"),
            Self::Attribute(text) => write!(f, "{text:?} is no attribute that can be set"),
            Self::Repeated(text) => write!(f, "{text} is set twice"),
            Self::Rejected(reason) => f.write_str(reason),
            Self::TooLong => f.write_str("longer than browsers keep"),
        }
    }
}

/// What browsers keep of a cookie, attributes included.
const COOKIE_BYTES_MAX: usize = 4096;

impl CookieSpec {
    /// Reads `NAME`, or `NAME; attribute; attribute=value` as in a `Set-Cookie`. Without
    /// attributes it is `Path=/; HttpOnly; SameSite=Lax`.
    ///
    /// # Errors
    /// What a browser, or a reader of the manual, would not understand.
    pub fn parse(text: &str) -> Result<Self, CookieError> {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if !is_cookie_name(name) {
            return Err(CookieError::Name);
        }
        let mut said = Said::default();
        let mut attributes = String::new();
        for part in parts.filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key.trim(), Some(value.trim())),
                None => (part, None),
            };
            said.note(key, value)?;
            attributes.push_str("; ");
            attributes.push_str(key);
            if let Some(value) = value {
                attributes.push('=');
                attributes.push_str(value);
            }
        }
        if attributes.is_empty() {
            attributes.push_str("; Path=/; HttpOnly; SameSite=Lax");
            said.path = Some("/");
        }
        said.check(name)?;
        if name.len() + 1 + TOKEN_BYTES_MAX + attributes.len() > COOKIE_BYTES_MAX {
            return Err(CookieError::TooLong);
        }
        Ok(Self { name: name.into(), attributes: attributes.into() })
    }

    /// The name of the cookie.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value of a `Set-Cookie` that sets it.
    pub(super) fn set(&self, token: &str) -> Vec<u8> {
        let Self { name, attributes } = self;
        [name.as_bytes(), b"=", token.as_bytes(), attributes.as_bytes()].concat()
    }
}

/// Whether a cookie may be called so: a token (RFC 6265 §4.1.1).
pub fn is_cookie_name(name: &str) -> bool {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !name.is_empty() && name.len() <= 256 && name.bytes().all(is_token)
}

#[derive(Default)]
struct Said<'a> {
    seen: Vec<&'a str>,
    secure: bool,
    partitioned: bool,
    same_site_none: bool,
    domain: bool,
    path: Option<&'a str>,
}

impl<'a> Said<'a> {
    fn note(&mut self, key: &'a str, value: Option<&'a str>) -> Result<(), CookieError> {
        let is = |known: &str| key.eq_ignore_ascii_case(known);
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let understood = match value {
            None if is("secure") => {
                self.secure = true;
                true
            }
            None if is("partitioned") => {
                self.partitioned = true;
                true
            }
            None => is("httponly"),
            Some(value) if is("path") => {
                self.path = Some(value);
                value.starts_with('/') && is_plain(value)
            }
            Some(value) if is("domain") => {
                self.domain = true;
                is_plain(value)
            }
            Some(value) if is("max-age") => {
                value.parse::<u32>().is_ok_and(|seconds| seconds > 0)
                    && value.bytes().all(|b| b.is_ascii_digit())
            }
            Some(value) if is("samesite") => {
                self.same_site_none = value.eq_ignore_ascii_case("none");
                ["strict", "lax", "none"].iter().any(|word| value.eq_ignore_ascii_case(word))
            }
            Some(_) => false,
        };
        if !understood {
            let text = value.map_or_else(|| key.to_owned(), |value| format!("{key}={value}"));
            return Err(CookieError::Attribute(text.into()));
        }
        if self.seen.iter().any(|seen| seen.eq_ignore_ascii_case(key)) {
            return Err(CookieError::Repeated(key.into()));
        }
        self.seen.push(key);
        Ok(())
    }

    /// What browsers refuse (RFC 6265bis §4.1.3, §5.7): better said here than by a cookie that
    /// never comes back.
    fn check(&self, name: &str) -> Result<(), CookieError> {
        let has_prefix = |prefix: &str| {
            name.get(..prefix.len()).is_some_and(|front| front.eq_ignore_ascii_case(prefix))
        };
        let reason = if self.same_site_none && !self.secure {
            "browsers take SameSite=None only with Secure"
        } else if self.partitioned && !self.secure {
            "browsers take Partitioned only with Secure"
        } else if has_prefix("__secure-") && !self.secure {
            "browsers take a name with __Secure- only with Secure"
        } else if has_prefix("__host-") && (!self.secure || self.domain || self.path != Some("/")) {
            "browsers take a name with __Host- only with Secure, Path=/ and no Domain"
        } else {
            return Ok(());
        };
        Err(CookieError::Rejected(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(line: &str, name: &str, value: Option<&str>) -> Option<String> {
        let changes: Vec<_> = pairs(line.as_bytes(), name.as_bytes())
            .map(|pair| (pair, value.map(|value| value.as_bytes().to_vec())))
            .collect();
        rewrite(line.as_bytes(), &changes).map(|line| String::from_utf8(line).unwrap())
    }

    #[test]
    fn what_is_not_ours_keeps_its_octets() {
        let cases = [
            ("s=1", None, Some("s=X")),
            ("a=1; s=1; b=2", Some("a=1; b=2"), Some("a=1; s=X; b=2")),
            ("s=1; b=2", Some("b=2"), Some("s=X; b=2")),
            ("a=1; s=1", Some("a=1"), Some("a=1; s=X")),
            ("a=1;s=1;b=2", Some("a=1;b=2"), Some("a=1;s=X;b=2")),
            ("a=1;;  s = 1 ;\tb=2", Some("a=1;;\tb=2"), Some("a=1;;  s = X ;\tb=2")),
            ("s=1; s=2", None, Some("s=X; s=X")),
            ("a=\"x; s=1\"", Some("a=\"x"), Some("a=\"x; s=X")),
            ("ss=1; S=2; a=s=1; s", Some("ss=1; S=2; a=s=1; s"), Some("ss=1; S=2; a=s=1; s")),
            ("s=\"1\"; a=\"q\"", Some("a=\"q\""), Some("s=X; a=\"q\"")),
            ("s=; a", Some("a"), Some("s=X; a")),
        ];
        for (line, without, with) in cases {
            assert_eq!(changed(line, "s", None).as_deref(), without, "{line}");
            assert_eq!(changed(line, "s", Some("X")).as_deref(), with, "{line}");
        }
    }

    #[test]
    fn a_cookie_is_set_in_the_first_pair_and_its_attributes_stay() {
        let line = b"sid = a b ; Path=/x;  HttpOnly; Comment=sid=7";
        let place = set_value(line, b"sid").unwrap();
        assert_eq!(&line[place.clone()], b"a b");
        let set = with_value(line, &place, b"T");
        assert_eq!(set, b"sid = T ; Path=/x;  HttpOnly; Comment=sid=7");
        assert_eq!(set_value(line, b"Comment"), None);
        assert_eq!(set_value(b"sid", b"sid"), None);
    }

    #[test]
    fn a_cookie_that_is_taken_away_is_told_from_one_that_is_given() {
        for (line, want) in [
            ("s=1", false),
            ("s=", true),
            ("s=1; Max-Age=0", true),
            ("s=1; max-age = -1", true),
            ("s=1; Max-Age=10", false),
            ("s=1; Max-Age=", false),
            ("s=1; Max-Age", false),
            ("s=x; Expires=Thu, 01 Jan 1970 00:00:00 GMT", true),
            ("s=1970; Expires=Thu, 01 Jan 2037 00:00:00 GMT", false),
        ] {
            let place = set_value(line.as_bytes(), b"s").unwrap();
            assert_eq!(is_removal(line.as_bytes(), &place), want, "{line}");
        }
    }

    #[test]
    fn a_cookie_is_described_as_in_set_cookie() {
        let set = |text: &str| {
            let spec = CookieSpec::parse(text).unwrap();
            String::from_utf8(spec.set("T")).unwrap()
        };
        assert_eq!(set("lb"), "lb=T; Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(set(" lb ; path=/a;Secure; "), "lb=T; path=/a; Secure");
        assert_eq!(
            set("__Host-lb; Path=/; Secure; SameSite=None; Max-Age=3600; Partitioned"),
            "__Host-lb=T; Path=/; Secure; SameSite=None; Max-Age=3600; Partitioned"
        );
    }

    #[test]
    fn a_cookie_that_browsers_refuse_is_refused() {
        for text in [
            "",
            "; Path=/",
            "a b",
            "a=b",
            "lb; Colour=red",
            "lb; Secure=1",
            "lb; Path",
            "lb; Path=x",
            "lb; Max-Age=0",
            "lb; Max-Age=1d",
            "lb; Max-Age=+1",
            "lb; SameSite=Some",
            "lb; Secure; secure",
            "lb; SameSite=None",
            "lb; Partitioned",
            "__Secure-lb",
            "__Host-lb; Secure",
            "__Host-lb; Secure; Path=/; Domain=x",
        ] {
            assert!(CookieSpec::parse(text).is_err(), "{text}");
        }
        let long = format!("lb; Path=/{}", "x".repeat(COOKIE_BYTES_MAX));
        assert_eq!(CookieSpec::parse(&long), Err(CookieError::TooLong));
    }
}
