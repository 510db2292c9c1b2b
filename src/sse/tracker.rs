//! Pure: where one event ends and the next begins.
//!
//! Follows the grammar of <https://html.spec.whatwg.org/multipage/server-sent-events.html>
//! (§9.2.5, §9.2.6), as far as boundaries need it: lines end in LF, CR or CRLF, a BOM may stand in
//! front, an empty line ends a block, and a block with a `data` field is an event.

use memchr::memchr2;

/// What may stand in front of a stream, and is then no part of its first line.
pub(super) const BOM: &[u8] = b"\xEF\xBB\xBF";

/// The field that makes an event of a block.
const DATA: &[u8] = b"data";

/// Follows the content of one event stream. Small and `Copy`; holds no octet of it.
///
/// Invariants
/// - Results do not depend on how the content was split.
/// - The work is linear in the content; long lines are searched, not stepped through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTracker {
    place: Place,
    /// The line before ended in CR: an LF here belongs to its end.
    after_cr: bool,
    /// A field line has come since the last empty line: this is inside an event.
    has_fields: bool,
    /// One of them was `data`.
    has_data: bool,
}

/// What a piece of a stream held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Events that ended in it: blocks that a reader dispatches, which are those with `data`.
    pub events: u32,
    /// Octets of it up to the last place between two events, if there was such a place behind an
    /// octet of it. Where a CR ends the piece, its LF may still be to come.
    pub boundary: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Within what may be a BOM, of which so many octets have come.
    Bom(u8),
    LineStart,
    /// Within a field name that so far is as much of [`DATA`].
    Name(u8),
    /// Within a line whose kind is known.
    Line,
}

impl Default for EventTracker {
    fn default() -> Self {
        Self::new()
    }
}

impl EventTracker {
    /// In front of the first octet.
    pub const fn new() -> Self {
        Self { place: Place::Bom(0), after_cr: false, has_fields: false, has_data: false }
    }

    /// Between two events, or in front of the first. What is written here must be whole lines, and
    /// an empty one last.
    pub fn is_at_boundary(&self) -> bool {
        matches!(self.place, Place::LineStart | Place::Bom(0)) && !self.has_fields
    }

    /// No octet has come yet: what is written here takes a BOM that follows its meaning.
    pub fn is_untouched(&self) -> bool {
        self.place == Place::Bom(0)
    }

    /// Follows `content`, which continues what came before.
    pub fn step(&mut self, content: &[u8]) -> Passed {
        let mut passed = Passed::default();
        let mut at = 0;
        while let Some(octet) = content.get(at).copied() {
            match self.place {
                Place::Bom(n) if octet == BOM[usize::from(n)] => {
                    at += 1;
                    let is_whole = usize::from(n) + 1 == BOM.len();
                    self.place = if is_whole { Place::LineStart } else { Place::Bom(n + 1) };
                }
                Place::Bom(0) => self.place = Place::LineStart,
                // Not a BOM after all: the octets begin the name of a field that nobody knows.
                Place::Bom(_) => self.begin_field(),
                Place::LineStart if octet == b'\n' && self.after_cr => {
                    self.after_cr = false;
                    at += 1;
                }
                Place::LineStart => {
                    self.after_cr = false;
                    match octet {
                        b'\r' | b'\n' => {
                            passed.events += u32::from(self.has_data);
                            (self.has_fields, self.has_data) = (false, false);
                            self.after_cr = octet == b'\r';
                            at += 1;
                        }
                        b':' => self.place = Place::Line,
                        _ => self.place = Place::Name(0),
                    }
                }
                Place::Name(n) if DATA.get(usize::from(n)) == Some(&octet) => {
                    self.place = Place::Name(n + 1);
                    at += 1;
                }
                Place::Name(n) => {
                    let is_end = matches!(octet, b':' | b'\r' | b'\n');
                    self.has_data |= is_end && usize::from(n) == DATA.len();
                    self.begin_field();
                }
                Place::Line => match memchr2(b'\r', b'\n', &content[at..]) {
                    Some(line) => {
                        at += line + 1;
                        self.after_cr = content[at - 1] == b'\r';
                        self.place = Place::LineStart;
                    }
                    None => at = content.len(),
                },
            }
            if at > 0 && self.place == Place::LineStart && !self.has_fields {
                passed.boundary = Some(at);
            }
        }
        passed
    }

    fn begin_field(&mut self) {
        self.has_fields = true;
        self.place = Place::Line;
    }
}

/// The id that a reader of these whole events holds afterwards: the value of the last `id` field,
/// which may be empty; `None` if there was no such field. `events` begins in front of an event, a
/// BOM aside, and ends behind one.
pub fn last_event_id(events: &[u8]) -> Option<&[u8]> {
    let mut rest = events;
    let mut last = None;
    while !rest.is_empty() {
        let end = memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
        let (line, behind) = rest.split_at(end);
        // An LF behind a CR reads as an empty line here, which says nothing.
        rest = behind.get(1..).unwrap_or_default();
        let value = match line.strip_prefix(b"id") {
            Some([]) => &line[line.len()..],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            Some(_) | None => continue,
        };
        // An id with a NUL is no id.
        if !value.contains(&0) {
            last = Some(value);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_block_with_data() {
        let cases = [
            ("data: a\n\n", 1),
            ("data\n\n", 1),
            ("data:a\rdata:b\r\r", 1),
            ("data: a\r\n\r\ndata: b\r\n\r\n", 2),
            ("dat: a\n\n", 0),
            ("datax: a\n\n", 0),
            (" data: a\n\n", 0),
            ("event: x\nid: 3\n\n", 0),
            (": data: a\n\n", 0),
            ("\n\n\n", 0),
            ("data: a", 0),
            ("data: a\n", 0),
            ("\u{feff}data: a\n\n", 1),
            ("\u{feff}\u{feff}data: a\n\n", 0),
        ];
        for (text, events) in cases {
            assert_eq!(EventTracker::new().step(text.as_bytes()).events, events, "{text:?}");
            let mut tracker = EventTracker::new();
            let each = text.as_bytes().chunks(1).map(|octet| tracker.step(octet).events);
            assert_eq!(each.sum::<u32>(), events, "{text:?} octet by octet");
        }
    }

    #[test]
    fn a_boundary_is_where_no_field_waits_for_its_empty_line() {
        let cases = [
            ("data: a\n\n", Some(9)),
            ("data: a\r\n\r", Some(10)),
            ("data: a\r\n\r\n", Some(11)),
            ("data: a\n\ndata: b\n", Some(9)),
            (": c\n", Some(4)),
            (": c", None),
            ("id: 1\n: c\n", None),
            ("\n", Some(1)),
            ("\u{feff}", Some(3)),
        ];
        for (text, boundary) in cases {
            assert_eq!(EventTracker::new().step(text.as_bytes()).boundary, boundary, "{text:?}");
        }
    }

    #[test]
    fn the_last_id_counts_and_one_with_nul_does_not() {
        let cases: [(&str, Option<&str>); 8] = [
            ("id: 1\ndata: a\n\nid:2\n\n", Some("2")),
            ("id:  x \r\n\r\n", Some(" x ")),
            ("id\n\n", Some("")),
            ("id:\n\n", Some("")),
            ("id: 1\n\nid: a\0b\n\n", Some("1")),
            ("idx: 1\n\n", None),
            ("data: id: 1\n\n", None),
            ("", None),
        ];
        for (text, id) in cases {
            assert_eq!(last_event_id(text.as_bytes()), id.map(str::as_bytes), "{text:?}");
        }
    }
}
