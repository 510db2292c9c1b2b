//! Pure: which fields of a trailer section go on (RFC 9110 §6.5.1).
//!
//! A recipient may merge trailers into the head, after everybody in between has judged the head
//! without them. So what frames, routes, authenticates, attributes or describes a message is
//! dropped from its trailers; everything else goes on in order, octet for octet.
//!
//! Invariants
//! - The input has been checked by [`super::Body`]: it is field lines.
//! - What goes on does not depend on how the input was split.
//! - What is held back is the beginning of a name in [`KNOWN`], which is why nothing is stored but
//!   which one, how much of it, and in which case.

use Pattern::{Allowed, Front, Whole};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pattern {
    /// A field of this name must not be a trailer.
    Whole,
    /// Nor one whose name begins so.
    Front,
    /// But one of this name may.
    Allowed,
}

/// The names that matter, in lower case.
const KNOWN: &[(Pattern, &str)] = &[
    // Framing.
    (Whole, "transfer-encoding"),
    (Whole, "trailer"),
    // Routing, and what belongs to one connection.
    (Whole, "host"),
    (Whole, "connection"),
    (Whole, "keep-alive"),
    (Whole, "te"),
    (Whole, "upgrade"),
    (Whole, "via"),
    (Whole, "forwarded"),
    (Whole, "x-real-ip"),
    (Whole, "stepflow-instance-id"),
    // Request modifiers: controls and conditions.
    (Whole, "accept"),
    (Whole, "cache-control"),
    (Whole, "expect"),
    (Whole, "origin"),
    (Whole, "max-forwards"),
    (Whole, "pragma"),
    (Whole, "range"),
    // Authentication and cookies.
    (Whole, "authorization"),
    (Whole, "authentication-info"),
    (Whole, "cookie"),
    (Whole, "set-cookie"),
    (Whole, "www-authenticate"),
    // What controls a response.
    (Whole, "age"),
    (Whole, "allow"),
    (Whole, "alt-svc"),
    (Whole, "date"),
    (Whole, "expires"),
    (Whole, "location"),
    (Whole, "refresh"),
    (Whole, "retry-after"),
    (Whole, "strict-transport-security"),
    (Whole, "vary"),
    (Whole, "warning"),
    (Front, "access-control-"),
    // How the content is to be read, its length above all.
    (Front, "content-"),
    (Front, "if-"),
    (Front, "proxy-"),
    (Front, "sec-"),
    (Front, "x-accel-"),
    (Front, "x-forwarded-"),
    (Front, "x-stepflow-"),
    // Known only when the content has ended, and made for trailers (RFC 9530 §2).
    (Allowed, "content-digest"),
];

// Its index fits an octet; the case of its letters fits 32 bits.
const _: () = {
    assert!(KNOWN.len() <= u8::MAX as usize);
    let mut at = 0;
    while at < KNOWN.len() {
        assert!(KNOWN[at].1.len() <= 32);
        at += 1;
    }
};

/// Follows one trailer section. As small as can be: it is part of every exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct TrailerFilter {
    /// Which octets of the name so far are capitals.
    capitals: u32,
    /// Lines dropped since this was asked last. A buffer of 64 KiB holds no more of them.
    dropped: u16,
    /// A name that begins like the one that is being read.
    known: u8,
    /// Octets of the name so far.
    name_bytes: u8,
    place: Place,
    /// What the names are makes no difference: no line goes on.
    drops_all: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a name that may still turn out to be known.
    Name,
    /// In one of a refused family, which may still turn out to be its exception.
    Family,
    /// In a line that goes on.
    Kept,
    /// In a line that does not.
    Dropped,
}

impl TrailerFilter {
    pub(super) const fn new() -> Self {
        Self {
            capitals: 0,
            dropped: 0,
            known: 0,
            name_bytes: 0,
            place: Place::Name,
            drops_all: false,
        }
    }

    /// For messages whose `Connection` names fields of its own. A trailer of such a name must not
    /// go on (RFC 9110 §7.6.1), and to remember names for the length of a body costs more than
    /// trailers are worth that nobody needs to hand on (RFC 9110 §6.5.1).
    pub(super) const fn dropping_all() -> Self {
        Self { drops_all: true, ..Self::new() }
    }

    /// Takes the next octets of the trailer section and appends what goes on to `out`.
    pub(super) fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        for b in input {
            if matches!(self.place, Place::Name | Place::Family) && !self.reads_on(*b) {
                self.judge(*b, out);
            }
            if self.place == Place::Kept {
                out.push(*b);
            }
            if *b == b'\n' {
                self.place = Place::Name;
            }
        }
    }

    /// How many lines were dropped since this was asked last.
    pub(super) fn take_dropped(&mut self) -> u16 {
        std::mem::take(&mut self.dropped)
    }

    /// The name so far, in lower case.
    fn name(&self) -> &'static [u8] {
        &KNOWN[usize::from(self.known)].1.as_bytes()[..usize::from(self.name_bytes)]
    }

    /// Takes one more octet of a name, if a known one goes on so.
    fn reads_on(&mut self, b: u8) -> bool {
        if self.drops_all {
            return false;
        }
        let (name, at) = (self.name(), usize::from(self.name_bytes));
        let goes_on = |(_, known): &(Pattern, &str)| {
            let known = known.as_bytes();
            known.get(at) == Some(&b.to_ascii_lowercase()) && known.starts_with(name)
        };
        let Some(known) = (0..=u8::MAX).zip(KNOWN).find(|(_, known)| goes_on(known)) else {
            return false;
        };
        self.known = known.0;
        self.capitals |= u32::from(b.is_ascii_uppercase()) << at;
        self.name_bytes += 1;
        if self.is_known_as(Front) {
            self.place = Place::Family;
        }
        true
    }

    /// Decides about a line: its name ends with `b`, or goes on as no known one does.
    fn judge(&mut self, b: u8, out: &mut Vec<u8>) {
        let is_whole = b == b':';
        let is_refused = match self.place {
            _ if self.drops_all => true,
            Place::Family => !(is_whole && self.is_known_as(Allowed)),
            _ => is_whole && self.is_known_as(Whole),
        };
        if is_refused {
            self.dropped = self.dropped.saturating_add(1);
            self.place = Place::Dropped;
        } else {
            out.extend((0..).zip(self.name()).map(|(at, b)| match self.capitals >> at & 1 {
                1 => b.to_ascii_uppercase(),
                _ => *b,
            }));
            self.place = Place::Kept;
        }
        (self.capitals, self.name_bytes) = (0, 0);
    }

    /// Whether the name so far is this entry as a whole.
    fn is_known_as(&self, pattern: Pattern) -> bool {
        KNOWN.iter().any(|(kind, known)| *kind == pattern && known.as_bytes() == self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Field;

    fn filtered(input: &[u8], cuts: &[usize]) -> (Vec<u8>, u16) {
        let (mut filter, mut out, mut at) = (TrailerFilter::new(), Vec::new(), 0);
        for cut in cuts.iter().chain([&input.len()]) {
            filter.push(&input[at..*cut], &mut out);
            at = *cut;
        }
        (out, filter.take_dropped())
    }

    const LONG: &str = "a-name-that-is-longer-than-any-that-must-be-known";

    #[test]
    fn every_name_that_must_not_be_a_trailer_is_dropped_in_any_case() {
        let known = |wanted| KNOWN.iter().filter(move |(kind, _)| *kind == wanted).map(|(_, n)| *n);
        let tails = ["", "x", "length", "digest-x", "diges", LONG];
        let families = known(Front).flat_map(|front| tails.map(|tail| format!("{front}{tail}")));
        for name in known(Whole).map(str::to_owned).chain(families) {
            for name in [name.to_ascii_uppercase(), name] {
                let input = format!("A: 1\r\n{name}: x: y\r\nB:\r\n");
                let want = (b"A: 1\r\nB:\r\n".to_vec(), 1);
                assert_eq!(filtered(input.as_bytes(), &[]), want, "{name}");
            }
        }
    }

    #[test]
    fn what_is_kept_or_removed_by_itself_in_a_head_is_no_trailer() {
        // What `Connection` lists of these does not empty a trailer section, so this must hold.
        let names = "authorization cache-control connection content-encoding content-length \
                     content-type cookie expect forwarded host keep-alive max-forwards origin \
                     proxy-authenticate proxy-authorization proxy-connection set-cookie \
                     stepflow-instance-id te transfer-encoding upgrade via www-authenticate \
                     x-forwarded-by x-forwarded-for x-forwarded-host x-forwarded-port \
                     x-forwarded-proto x-real-ip";
        for name in names.split_ascii_whitespace() {
            let field = Field::of(name.as_bytes());
            assert!(field.is_hop_by_hop() || field.is_protected(), "{name}");
            let line = format!("{name}: x\r\n");
            assert_eq!(filtered(line.as_bytes(), &[]), (Vec::new(), 1), "{name}");
        }
    }

    #[test]
    fn what_may_be_a_trailer_goes_on_octet_for_octet() {
        let names =
            ["Server-Timing", "grpc-status", "Digest", "Content-Digest", "ETag", "contents"];
        let odd = ["x", "Hosts", "hos", "IFfy", "X-FORWARDED", "x-content-length", "Ho!st", LONG];
        for name in names.into_iter().chain(odd) {
            let input = format!("{name}: \t a:b \r\n{name}:\r\n");
            assert_eq!(filtered(input.as_bytes(), &[]), (input.into_bytes(), 0), "{name}");
        }
    }

    #[test]
    fn where_the_input_is_cut_does_not_matter() {
        let input = format!(
            "Set-Cookie: a\r\nX: 1\r\nhost:\r\n{LONG}: 2\r\nX-Forwarded-{LONG}: 3\r\nHos: 4\r\n\
             te: 5\r\n"
        );
        let want = (format!("X: 1\r\n{LONG}: 2\r\nHos: 4\r\n").into_bytes(), 4);
        for first in 0..=input.len() {
            for second in first..=input.len() {
                assert_eq!(filtered(input.as_bytes(), &[first, second]), want, "{first} {second}");
            }
        }
        let every: Vec<usize> = (0..input.len()).collect();
        assert_eq!(filtered(input.as_bytes(), &every), want);
    }

    #[test]
    fn a_filter_that_drops_all_keeps_nothing_wherever_the_input_is_cut() {
        let input = b"A: 1\r\nHost: h\r\ncontent-digest: x\r\n";
        for cut in 0..=input.len() {
            let (mut filter, mut out) = (TrailerFilter::dropping_all(), Vec::new());
            filter.push(&input[..cut], &mut out);
            filter.push(&input[cut..], &mut out);
            assert_eq!((out, filter.take_dropped()), (Vec::new(), 3), "cut {cut}");
        }
    }

    #[test]
    fn what_was_dropped_is_told_once() {
        let mut filter = TrailerFilter::new();
        filter.push(b"host: a\r\nhost: b\r\n", &mut Vec::new());
        assert_eq!((filter.take_dropped(), filter.take_dropped()), (2, 0));
    }
}
