//! Pure: hands an event stream on, knows between which of its events it is, and writes what is
//! ours there.
//!
//! Content goes on as it comes, event or not, so a reader waits for nothing. From the moment that
//! a stream is to end at a boundary, or from its beginning where it may be continued from another
//! backend, only whole events go on, because what was sent of an event cannot be taken back.

use std::time::Duration;

use memchr::memchr2;

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
    /// No octet of the incoming content has come.
    is_untouched: bool,
    /// What is held, if anything, begins where the incoming content does.
    is_held_from_start: bool,
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
    /// Octets of content among them.
    pub content: usize,
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
    /// It cannot be ended by us: see [`Reading`]; or it has ended, or is in its trailers.
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
            is_untouched: true,
            is_held_from_start: true,
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

    /// No octet of content has come, whatever its coding.
    pub fn is_untouched(&self) -> bool {
        self.is_untouched
    }

    /// What was written so far ends between two events, and more may be written.
    pub fn is_open(&self) -> bool {
        // Trailers go on as they come: behind the first of them there is no place for content.
        let takes_content = self.transfer.takes_content() && !self.is_done();
        self.reading == Reading::Open && self.is_whole() && takes_content
    }

    /// Whether what was written so far ends between two events; `None` when nobody can tell.
    pub fn ends_whole(&self) -> Option<bool> {
        (self.reading != Reading::Coded).then(|| self.is_whole())
    }

    fn is_whole(&self) -> bool {
        match self.manner {
            Manner::AsItComes => self.tracker.is_at_boundary(),
            Manner::WholeEvents => self.is_out_whole,
        }
    }

    /// Takes octets from the front of `input` and appends what they become to `out`. Where only
    /// whole events go on, `note` is told the id that readers hold from now on; `None` when it
    /// cannot be known. Nothing is taken once the stream has been cut.
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
            // A sender that goes on behind the end has nothing to add to it.
            _ if self.is_cut() => Ok(Pushed::default()),
            Manner::AsItComes => {
                let (tracker, mut octets, mut events) = (&mut self.tracker, 0, 0);
                let (is_coded, is_untouched) =
                    (self.reading == Reading::Coded, &mut self.is_untouched);
                let taken = self.transfer.push_seen(input, out, |content| {
                    *is_untouched = false;
                    octets += content.len();
                    if !is_coded {
                        events += tracker.step(content).events;
                    }
                })?;
                self.has_begun |= !self.is_untouched;
                Ok(Pushed { taken, content: octets, events })
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
        let before = self.held.len();
        let decoded = self.transfer.decode(input, &mut self.held);
        let content = self.held.len() - before;
        self.is_untouched &= content == 0;
        let passed = self.tracker.step(&self.held[before..]);
        let whole = passed.boundary.map_or(0, |n| before + n);
        if whole > 0 {
            let events = &self.held[..whole];
            if self.is_out_whole {
                let bom = if self.is_held_from_start { BOM } else { &[] };
                if let Some(id) = last_event_id(events.strip_prefix(bom).unwrap_or(events)) {
                    note(Some(id));
                }
            } else {
                // The beginning of the first of them has been sent, and may have held an id. What
                // is held of it begins inside a line, and an id behind that line is one.
                let line = memchr2(b'\r', b'\n', events).unwrap_or(events.len());
                note(last_event_id(&events[line..]));
            }
            self.write_held(whole, out);
            self.is_out_whole = true;
            if let End::AtBoundary(retry) = self.end {
                self.write_end(retry, out);
                // Where the sender broke the framing behind it, nobody reads on.
                let taken = decoded.unwrap_or(input.len());
                return Ok(Pushed { taken, content, events: passed.events });
            }
        }
        let taken = decoded?;
        let pushed = Pushed { taken, content, events: passed.events };
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
    /// `Truncated` when it was not, and the stream had not been cut.
    pub fn end_of_input(&mut self, out: &mut Vec<u8>) -> Result<(), BodyError> {
        if self.is_cut() {
            return Ok(());
        }
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
        if self.is_cut() {
            return Cut::Done;
        }
        let is_ending = self.transfer.is_done() || !self.transfer.takes_content();
        if self.reading != Reading::Open || is_ending {
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
        self.held = Vec::new();
        (self.is_untouched, self.is_held_from_start) = (true, true);
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
        if octets == 0 {
            return;
        }
        self.has_begun = true;
        self.is_held_from_start = false;
        // The rest moves to a buffer of its own size: a silent stream holds no more than it must.
        let rest = self.held.split_off(octets);
        let content = std::mem::replace(&mut self.held, rest);
        let drops_bom = self.transfer.take_drop_bom();
        let content = content.strip_prefix(BOM).filter(|_| drops_bom).unwrap_or(&content);
        Transfer::write_content(self.coding, content, out);
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
mod tests;
