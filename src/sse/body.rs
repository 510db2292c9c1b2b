//! Pure: hands an event stream on, knows between which of its events it is, and writes what is
//! ours there.
//!
//! Content goes on as it comes, event or not, so a reader waits for nothing. From the moment that
//! a stream is to end at a boundary, or from its beginning where it may be continued from another
//! backend, only whole events go on, because what was sent of an event cannot be taken back.

use std::time::Duration;

use super::{EventTracker, last_event_id, tracker::BOM};
use crate::http1::{BodyError, Coding, Transfer, unfinished_character};

/// A comment, which readers skip, and an empty line: every reader is behind it where it was before.
const HEARTBEAT: &[u8] = b": \n\n";

/// Octets of one event that are held until it is whole. A longer one goes on in pieces.
pub const HELD_BYTES_MAX: usize = 64 * 1024;

/// Follows an incoming event stream and produces the outgoing one.
///
/// Invariants
/// - Nothing of ours is written inside an event, and nothing at all into a body that we cannot read
///   or whose length is fixed.
/// - What goes on is what came, octet for octet and in order, but for trailers where whole events
///   are wanted, a BOM behind something that we wrote, and the events that a cut leaves out.
/// - At most [`HELD_BYTES_MAX`] octets and one piece of input are held.
#[derive(Debug)]
pub struct EventBody {
    transfer: Transfer,
    coding: Coding,
    tracker: EventTracker,
    reading: Reading,
    /// The unfinished event at the end of what came, where whole events are wanted.
    held: Vec<u8>,
    /// What was written so far ends between two events.
    is_out_whole: bool,
    /// Something was written: a BOM would not be at the beginning any more.
    has_begun: bool,
    manner: Manner,
    end: End,
}

/// What can be known of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It has a content coding: nothing.
    Coded,
    /// Its events, but its length was promised, so nothing can be added or left out.
    Fixed,
    /// Its events; it may be added to, and ended.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    AsItComes,
    WholeEvents,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With the incoming body.
    Natural,
    /// Behind the event that is on its way, with this `retry`.
    AtBoundary(Option<Duration>),
    /// It has been cut.
    Cut,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Octets that were taken from the front of the input. Fewer than given means that the body
    /// has ended.
    pub taken: usize,
    /// Events that ended in it.
    pub events: u32,
}

/// Whether a stream that was to end has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Its end has been written.
    Done,
    /// It is inside an event, and ends behind it.
    Awaited,
    /// It cannot be ended by us: see [`Reading`].
    Impossible,
}

impl EventBody {
    /// Hands on what `transfer` reads, delimited as `coding`. `transfer` must be one that rewrites.
    pub fn new(transfer: Transfer, coding: Coding, reading: Reading) -> Self {
        debug_assert!(!transfer.is_verbatim(), "a body that goes through verbatim is not read");
        Self {
            transfer,
            coding,
            tracker: EventTracker::new(),
            reading,
            held: Vec::new(),
            is_out_whole: true,
            has_begun: false,
            manner: Manner::AsItComes,
            end: End::Natural,
        }
    }

    /// The same, of which only whole events go on, so that it can be continued. Only before the
    /// first octet.
    #[must_use]
    pub fn in_whole_events(mut self) -> Self {
        if self.reading == Reading::Open {
            self.manner = Manner::WholeEvents;
        }
        self
    }

    /// What can be known of the content.
    pub fn reading(&self) -> Reading {
        self.reading
    }

    /// The outgoing body has ended.
    pub fn is_done(&self) -> bool {
        self.end == End::Cut || self.transfer.is_done()
    }

    /// How many fields were dropped from its trailer section since this was asked last.
    pub fn take_dropped(&mut self) -> u16 {
        self.transfer.take_dropped()
    }

    /// We ended it, and the incoming one goes on.
    pub fn is_cut(&self) -> bool {
        self.end == End::Cut
    }

    /// No octet of content has come.
    pub fn is_untouched(&self) -> bool {
        self.tracker.is_untouched()
    }

    /// What was written so far ends between two events, and more may be written.
    pub fn is_open(&self) -> bool {
        let is_whole = match self.manner {
            Manner::AsItComes => self.tracker.is_at_boundary(),
            Manner::WholeEvents => self.is_out_whole,
        };
        self.reading == Reading::Open && is_whole && !self.is_done()
    }

    /// Takes octets from the front of `input` and appends what they become to `out`. Where only
    /// whole events go on, `note` is told the id that readers hold from now on; `None` when it
    /// cannot be known.
    ///
    /// # Errors
    /// As [`Transfer::push`].
    pub fn push(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        note: impl FnMut(Option<&[u8]>),
    ) -> Result<Pushed, BodyError> {
        match self.manner {
            Manner::AsItComes => {
                let (tracker, mut events) = (&mut self.tracker, 0);
                let is_coded = self.reading == Reading::Coded;
                let taken = self.transfer.push_seen(input, out, |content| {
                    if !is_coded {
                        events += tracker.step(content).events;
                    }
                })?;
                self.has_begun |= !self.tracker.is_untouched();
                Ok(Pushed { taken, events })
            }
            Manner::WholeEvents => self.push_whole_events(input, out, note),
        }
    }

    fn push_whole_events(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut note: impl FnMut(Option<&[u8]>),
    ) -> Result<Pushed, BodyError> {
        let (before, is_first) = (self.held.len(), self.tracker.is_untouched());
        let decoded = self.transfer.decode(input, &mut self.held);
        let passed = self.tracker.step(&self.held[before..]);
        let whole = passed.boundary.map_or(0, |n| before + n);
        if whole > 0 {
            let events = &self.held[..whole];
            let readable = events.strip_prefix(BOM).filter(|_| is_first).unwrap_or(events);
            match (self.is_out_whole, last_event_id(readable)) {
                (true, Some(id)) => note(Some(id)),
                (true, None) => {}
                // The beginning of the first of them has been sent, and may have held an id.
                (false, _) => note(None),
            }
            self.write_held(whole, out);
            self.is_out_whole = true;
        }
        let taken = decoded?;
        let pushed = Pushed { taken, events: passed.events };
        if let End::AtBoundary(retry) = self.end
            && whole > 0
        {
            self.write_end(retry, out);
            return Ok(pushed);
        }
        if self.transfer.is_done() {
            // What is left of a stream that has ended is no event, but it was sent.
            self.write_held(self.held.len(), out);
            self.transfer.finish(out);
        } else if self.held.len() > HELD_BYTES_MAX {
            let characters = self.held.len() - unfinished_character(&self.held);
            self.write_held(characters, out);
            self.is_out_whole = false;
        }
        Ok(pushed)
    }

    /// The sender closed: appends the end of the outgoing body if that was the body's end.
    ///
    /// # Errors
    /// `Truncated` when it was not.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        if self.manner == Manner::WholeEvents && !self.is_done() {
            // Decides first: of a stream that was cut, the unfinished event is dropped.
            let mut probe = self.transfer;
            probe.end_of_input(&mut Vec::new())?;
            self.write_held(self.held.len(), out);
        }
        self.transfer.end_of_input(out)
    }

    /// Writes a comment, if this is between two events.
    pub fn heartbeat(&mut self, out: &mut Vec<u8>) -> bool {
        let is_open = self.is_open();
        if is_open {
            Transfer::write_content(self.coding, HEARTBEAT, out);
            self.begin_as_ours();
        }
        is_open
    }

    /// Ends the stream between two events: here, or behind the event that is on its way. Its reader
    /// is told to come back after `retry`.
    pub fn cut(&mut self, retry: Option<Duration>, out: &mut Vec<u8>) -> Cut {
        if self.reading != Reading::Open || self.transfer.is_done() {
            return Cut::Impossible;
        }
        if self.is_open() {
            self.write_end(retry, out);
        } else if self.end == End::Natural {
            if self.manner == Manner::AsItComes {
                self.manner = Manner::WholeEvents;
                self.is_out_whole = false;
                self.transfer.take_held(&mut self.held);
            }
            self.end = End::AtBoundary(retry);
        }
        if self.is_cut() { Cut::Done } else { Cut::Awaited }
    }

    /// Goes on with another incoming stream, in front of its first octet. The unfinished event of
    /// the one before is dropped. False if part of that event has been sent: then the stream cannot
    /// go on.
    #[must_use]
    pub fn continue_with(&mut self, transfer: Transfer) -> bool {
        if !self.is_open() {
            return false;
        }
        self.transfer = transfer;
        self.tracker = EventTracker::new();
        self.held.clear();
        if self.has_begun {
            self.transfer.drop_bom();
        }
        true
    }

    fn begin_as_ours(&mut self) {
        if !self.has_begun {
            self.has_begun = true;
            self.transfer.drop_bom();
        }
    }

    fn write_held(&mut self, octets: usize, out: &mut Vec<u8>) {
        if octets > 0 {
            self.has_begun = true;
            let mut octets = octets;
            if self.transfer.take_drop_bom() && self.held.starts_with(BOM) {
                self.held.drain(..BOM.len());
                octets -= BOM.len();
            }
            Transfer::write_content(self.coding, &self.held[..octets], out);
            self.held.drain(..octets);
        }
        if self.held.is_empty() {
            // A silent stream holds nothing.
            self.held = Vec::new();
        }
    }

    fn write_end(&mut self, retry: Option<Duration>, out: &mut Vec<u8>) {
        if let Some(retry) = retry {
            let line = format!("retry: {}\n\n", retry.as_millis());
            Transfer::write_content(self.coding, line.as_bytes(), out);
        }
        self.transfer.finish(out);
        self.held = Vec::new();
        self.end = End::Cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Framing;

    fn body() -> EventBody {
        let transfer = Transfer::text(Framing::UntilClose, Coding::Identity);
        EventBody::new(transfer, Coding::Identity, Reading::Open)
    }

    fn push(body: &mut EventBody, input: &str) -> String {
        let mut out = Vec::new();
        let pushed = body.push(input.as_bytes(), &mut out, |_| ()).unwrap();
        assert_eq!(pushed.taken, input.len());
        String::from_utf8(out).unwrap()
    }

    fn heartbeat(body: &mut EventBody) -> String {
        let mut out = Vec::new();
        assert_eq!(body.heartbeat(&mut out), !out.is_empty());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn heartbeats_come_between_events_and_nowhere_else() {
        let mut body = body();
        assert_eq!(heartbeat(&mut body), ": \n\n");
        for inside in ["data: a", "\n", "id: 7\r\n", ": c\n", "da"] {
            assert_eq!(push(&mut body, inside), inside);
            assert_eq!(heartbeat(&mut body), "", "behind {inside:?}");
        }
        push(&mut body, "ta\n\n");
        assert_eq!(heartbeat(&mut body), ": \n\n");
        push(&mut body, ": a comment");
        assert_eq!(heartbeat(&mut body), "");
        push(&mut body, "\n");
        assert_eq!(heartbeat(&mut body), ": \n\n");
    }

    #[test]
    fn a_cut_waits_for_the_end_of_the_event_and_leaves_out_the_unfinished_one_behind_it() {
        let mut body = body();
        assert_eq!(push(&mut body, "data: a\n\ndata: \u{20ac}"), "data: a\n\ndata: \u{20ac}");
        let mut out = Vec::new();
        assert_eq!(body.cut(Some(Duration::from_millis(1500)), &mut out), Cut::Awaited);
        assert_eq!((body.is_done(), out.len()), (false, 0));
        assert_eq!(push(&mut body, "b"), "");
        let more = "c\n\ndata: d\n\ndata: next\n";
        assert_eq!(push(&mut body, more), "bc\n\ndata: d\n\nretry: 1500\n\n");
        assert!(body.is_done() && body.is_cut());
    }

    #[test]
    fn a_cut_inside_a_character_loses_none_of_its_octets() {
        let mut body = body();
        let mut out = Vec::new();
        body.push(b"data: \xE2\x82", &mut out, |_| ()).unwrap();
        assert_eq!(out, b"data: ");
        assert_eq!(body.cut(None, &mut out), Cut::Awaited);
        body.push(b"\xAC\n\nid: 1\n", &mut out, |_| ()).unwrap();
        assert_eq!(out, "data: \u{20ac}\n\n".as_bytes());
        assert!(body.is_cut());
    }

    #[test]
    fn chunks_are_ended_by_a_cut_and_a_coded_or_measured_body_is_left_alone() {
        let chunked = Transfer::text(Framing::Chunked, Coding::Chunked);
        let mut body = EventBody::new(chunked, Coding::Chunked, Reading::Open);
        let mut out = Vec::new();
        body.push(b"9\r\ndata: a\n\n\r\n", &mut out, |_| ()).unwrap();
        assert!(body.heartbeat(&mut out));
        assert_eq!(body.cut(Some(Duration::from_secs(2)), &mut out), Cut::Done);
        let want = "9\r\ndata: a\n\n\r\n4\r\n: \n\n\r\nd\r\nretry: 2000\n\n\r\n0\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), want);
        for reading in [Reading::Coded, Reading::Fixed] {
            let transfer = Transfer::rewriting(Framing::Length(20), Coding::Identity);
            let mut body = EventBody::new(transfer, Coding::Identity, reading);
            assert_eq!((heartbeat(&mut body), body.is_open()), (String::new(), false));
            assert_eq!(body.cut(None, &mut Vec::new()), Cut::Impossible);
        }
    }

    #[test]
    fn whole_events_go_on_with_the_id_that_readers_hold_and_the_rest_is_dropped_when_continued() {
        let mut body = body().in_whole_events();
        let mut ids = Vec::new();
        let mut out = Vec::new();
        let mut note = |id: Option<&[u8]>| ids.push(id.map(<[u8]>::to_vec));
        body.push(b"\xEF\xBB\xBFid: 1\ndata: a\n\nid: 2\nda", &mut out, &mut note).unwrap();
        assert_eq!(out, b"\xEF\xBB\xBFid: 1\ndata: a\n\n");
        assert!(body.is_open(), "what is written is whole");
        assert!(body.continue_with(Transfer::text(Framing::UntilClose, Coding::Identity)));
        body.push(b"\xEF\xBB\xBFid:2\rdata: b\r\r", &mut out, &mut note).unwrap();
        assert_eq!(out, b"\xEF\xBB\xBFid: 1\ndata: a\n\nid:2\rdata: b\r\r");
        assert_eq!(ids, [Some(b"1".to_vec()), Some(b"2".to_vec())]);
    }

    #[test]
    fn an_event_that_is_too_long_to_hold_goes_on_in_pieces_and_cannot_be_continued() {
        let mut body = body().in_whole_events();
        let long = "data: ".to_owned() + &"x".repeat(HELD_BYTES_MAX);
        assert_eq!(push(&mut body, &long), long);
        assert!(!body.continue_with(Transfer::text(Framing::UntilClose, Coding::Identity)));
        assert_eq!(push(&mut body, "y"), "");
        assert_eq!(push(&mut body, "\n\nid"), "y\n\n");
        assert!(body.continue_with(Transfer::text(Framing::UntilClose, Coding::Identity)));
    }

    #[test]
    fn a_bom_behind_our_own_beginning_is_left_out() {
        let mut body = body();
        assert_eq!(heartbeat(&mut body), ": \n\n");
        let mut out = Vec::new();
        for octet in "\u{feff}data: a\n\n".as_bytes() {
            body.push(&[*octet], &mut out, |_| ()).unwrap();
        }
        assert_eq!(out, b"data: a\n\n");
    }
}
