//! Target `events`: an event stream from a backend to its readers, with what happens on the way.
//!
//! Input: one octet of flags (bit 0 chunks come, bit 1 chunks go, bit 2 whole events, bit 3 pieces
//! may end inside characters, bit 4 coded, bit 5 a fixed length, bit 6 the octets are what comes on
//! the wire instead of the content); one octet for the size of chunks, or the length; one octet that
//! says how many steps there are (up to 15), as many pairs of the length of a piece and of what
//! happens behind it (1 heartbeat, 2 cut, 3 cut with `retry`, 4 the backend dies and another goes on
//! with what is left); and the octets.

use std::time::Duration;

use arbitrary::Unstructured;
use stepflow_load_balancer::{
    http1::{Coding, Framing, Transfer},
    sse::{Cut, EventBody, Reading},
};

use super::{
    Verdict,
    body::{self, outgoing},
    naive::End,
    reader::read,
};

const RETRY: Duration = Duration::from_millis(71);
const RETRY_BLOCK: &[u8] = b"retry: 71\n\n";

/// Properties: readers get the whole events that came, in order, each once, from one backend or
/// from several, whatever was written between them, and nothing partial where the stream was cut;
/// the id that was noted is the one that they hold; what goes out is framed; text is never cut
/// inside a character; what cannot be read goes on octet for octet.
pub fn run(octets: &[u8]) -> Verdict {
    let mut input = Unstructured::new(octets);
    let mut octet = || input.arbitrary::<u8>().unwrap_or_default();
    let (flags, size) = (octet(), octet());
    let steps: Vec<_> = (0..octet() % 16).map(|_| (usize::from(octet()), octet() % 5)).collect();
    let octets = input.take_rest();

    let is = |bit: u8| flags >> bit & 1 == 1;
    let reading = match (is(4), is(5)) {
        (true, _) => Reading::Coded,
        (false, true) => Reading::Fixed,
        (false, false) => Reading::Open,
    };
    let comes = match (is(5), is(0)) {
        (true, _) => Framing::Length(u64::from(size)),
        (false, true) => Framing::Chunked,
        (false, false) => Framing::UntilClose,
    };
    let goes = if is(1) { Coding::Chunked } else { Coding::Identity };
    let transfer =
        if is(3) { Transfer::rewriting(comes, goes) } else { Transfer::text(comes, goes) };
    let wire = |content: &[u8]| match comes {
        Framing::Chunked if !is(6) => chunks(content, usize::from(size % 32) + 1),
        _ => content.to_vec(),
    };

    let body = EventBody::new(transfer, goes, reading);
    let mut stream = Stream {
        body: if is(2) { body.in_whole_events() } else { body },
        comes,
        goes,
        is_whole: is(2) && reading == Reading::Open,
        is_text: !is(3),
        out: Vec::new(),
        earlier: Vec::new(),
        came: Vec::new(),
        taken: 0,
        events: 0,
        noted: Some(String::new()),
        is_awaited: false,
        retry: false,
        is_pure: true,
    };
    stream.check();
    let mut rest = wire(octets);
    let mut left = octets;
    for (length, action) in steps {
        let behind = rest.split_off(length.min(rest.len()));
        if !stream.push(&std::mem::replace(&mut rest, behind)) {
            return Verdict::Refused;
        }
        match action {
            1 => stream.heartbeat(),
            2 => stream.cut(None),
            3 => stream.cut(Some(RETRY)),
            4 => {
                if !is(6) {
                    left = &left[stream.content_came().len().min(left.len())..];
                } else {
                    left = &left[left.len() - rest.len()..];
                }
                if !stream.go_on(transfer) {
                    return Verdict::Accepted;
                }
                rest = wire(left);
            }
            _ => {}
        }
        stream.check();
    }
    if !stream.push(&rest) {
        return Verdict::Refused;
    }
    stream.check();
    stream.end();
    Verdict::Accepted
}

fn chunks(content: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in content.chunks(chunk_bytes) {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

type Blocks = Vec<Vec<(String, String)>>;

/// The product, and what is known of it from outside.
struct Stream {
    body: EventBody,
    comes: Framing,
    goes: Coding,
    is_whole: bool,
    is_text: bool,
    out: Vec<u8>,
    /// What came whole from backends that have died.
    earlier: Blocks,
    /// Octets from the one that is there.
    came: Vec<u8>,
    taken: usize,
    events: usize,
    /// The id that was noted last.
    noted: Option<String>,
    is_awaited: bool,
    retry: bool,
    /// Nothing was added or left out so far.
    is_pure: bool,
}

impl Stream {
    fn content_came(&self) -> Vec<u8> {
        body::read(&self.came, self.comes).content()
    }

    /// False if the octets are no body.
    fn push(&mut self, piece: &[u8]) -> bool {
        let (was_cut, before) = (self.body.is_cut(), self.out.len());
        let noted = &mut self.noted;
        let note = |id: Option<&[u8]>| {
            *noted = id.map(|id| String::from_utf8_lossy(id).into_owned());
        };
        let pushed = self.body.push(piece, &mut self.out, note);
        if was_cut {
            assert_eq!((pushed.map(|pushed| pushed.taken), self.out.len()), (Ok(0), before));
            return true;
        }
        self.came.extend_from_slice(piece);
        let seen = body::read(&self.came, self.comes);
        let Ok(pushed) = pushed else {
            assert_eq!(seen.end, End::Bad);
            assert!(!self.body.is_cut(), "cut, and an error");
            let out = outgoing(&self.out, self.goes);
            assert!(self.goes == Coding::Identity || out.end == End::Partial, "finished");
            return false;
        };
        assert!(pushed.taken == piece.len() || self.body.is_done());
        self.taken += pushed.taken;
        self.events += pushed.events as usize;
        if !self.body.is_cut() {
            assert_eq!(self.body.is_done(), matches!(seen.end, End::Complete(_)));
            if let End::Complete(n) = seen.end {
                assert_eq!(self.taken, n);
            }
            assert_ne!(seen.end, End::Bad);
        }
        let is_text = |octets: &[u8]| std::str::from_utf8(octets).is_ok();
        if self.is_text && self.is_unended_text() && self.goes == Coding::Identity {
            assert!(is_text(&self.out[before..]), "a piece cuts a character");
        }
        true
    }

    /// What came from this backend is text, but for a character at its end that may be unfinished.
    fn is_unended_text(&self) -> bool {
        let content = self.content_came();
        match std::str::from_utf8(&content) {
            Ok(_) => true,
            Err(error) => error.error_len().is_none() && !self.body.is_done(),
        }
    }

    fn heartbeat(&mut self) {
        let (is_open, before) = (self.body.is_open(), self.out.len());
        assert_eq!(self.body.heartbeat(&mut self.out), is_open);
        assert_eq!(self.out.len() > before, is_open);
        self.is_pure &= !is_open;
    }

    fn cut(&mut self, retry: Option<Duration>) {
        let (is_first, was_done) = (!self.is_awaited, self.body.is_done());
        let (is_open, is_readable) = (self.body.is_open(), self.body.reading() == Reading::Open);
        let before = self.out.len();
        match self.body.cut(retry, &mut self.out) {
            Cut::Done => {
                assert!(self.body.is_cut() && (is_open || was_done));
                if was_done {
                    assert_eq!(self.out.len(), before);
                } else {
                    self.retry = retry.is_some();
                }
            }
            Cut::Awaited => {
                assert!(!is_open && !was_done && is_readable);
                assert_eq!(self.out.len(), before);
                if is_first {
                    self.retry = retry.is_some();
                }
                self.is_awaited = true;
            }
            Cut::Impossible => {
                assert!(!is_open);
                // Trailers have begun, where that can be: they need chunks on both sides.
                let may_trail = self.comes == Framing::Chunked && self.goes == Coding::Chunked;
                assert!(was_done || !is_readable || may_trail);
                assert_eq!(self.out.len(), before);
                return;
            }
        }
        self.is_pure = false;
    }

    /// The backend dies. False if nobody can go on.
    fn go_on(&mut self, transfer: Transfer) -> bool {
        let is_open = self.body.is_open();
        let blocks = read(&self.content_came()).blocks;
        assert_eq!(self.body.continue_with(transfer), is_open);
        if is_open {
            assert!(self.body.is_untouched());
            self.earlier.extend(blocks);
            (self.came, self.taken, self.is_pure) = (Vec::new(), 0, false);
        } else if self.is_whole && !self.is_awaited {
            assert!(self.body.is_done(), "small events are held");
        }
        is_open
    }

    fn check(&self) {
        let out = outgoing(&self.out, self.goes);
        assert_ne!(out.end, End::Bad, "{}", self.out.escape_ascii());
        let has_ended = self.goes == Coding::Chunked && self.body.is_done();
        // A length of nothing is over before anything was said of it.
        if !self.out.is_empty() {
            assert_eq!(out.end == End::Complete(self.out.len()), has_ended);
        }
        let (content, came) = (out.content(), self.content_came());
        if self.is_pure && !self.is_whole {
            assert!(came.starts_with(&content), "{}", content.escape_ascii());
            assert!(came.len() - content.len() <= if self.is_text { 3 } else { 0 });
        }
        assert_eq!(self.body.is_untouched(), came.is_empty());
        if self.body.reading() == Reading::Coded {
            assert_eq!(self.events, 0);
            return;
        }
        let mut seen = read(&content);
        let ours = self.retry && self.body.is_cut();
        if ours {
            assert!(content.ends_with(RETRY_BLOCK));
            assert_eq!(seen.retry_ms.as_deref(), Some("71"));
            seen.blocks.pop();
        }
        let want = [&self.earlier[..], &read(&came).blocks].concat();
        if self.body.is_cut() {
            assert!(want.starts_with(&seen.blocks));
        } else {
            assert_eq!(seen.blocks, want);
            assert!(!self.is_whole || self.noted.as_ref() == Some(&seen.last_event_id));
        }
        assert_eq!(self.events, seen.events.len());
        if self.body.is_open() || self.body.is_cut() {
            assert!(is_between(&content), "{}", content.escape_ascii());
        }
    }

    fn end(&mut self) {
        let (before, was_done) = (self.out.len(), self.body.is_done());
        let ended = self.body.end_of_input(&mut self.out);
        if was_done {
            assert_eq!((ended, self.out.len()), (Ok(()), before));
        } else if self.comes == Framing::UntilClose {
            assert_eq!(ended, Ok(()));
        } else {
            assert!(ended.is_err());
            assert_eq!(self.out.len(), before);
            assert!(self.goes == Coding::Identity || !self.body.is_done());
            let content = outgoing(&self.out, self.goes).content();
            assert!(!self.body.is_open() || is_between(&content));
            return;
        }
        assert!(self.body.is_done() && !self.body.is_open());
        self.check();
        if self.is_pure {
            assert_eq!(outgoing(&self.out, self.goes).content(), self.content_came());
        }
        let ended = self.out.len();
        assert_eq!(self.body.push(b"data: x\n\n", &mut self.out, |_| ()).unwrap().taken, 0);
        assert!(!self.body.heartbeat(&mut self.out) && !self.body.is_open());
        assert!(self.body.cut(Some(RETRY), &mut self.out) != Cut::Awaited);
        assert_eq!(self.out.len(), ended, "something behind the end");
    }
}

/// An empty line here ends nothing, and a field here begins something.
fn is_between(content: &[u8]) -> bool {
    let plain = read(content);
    let more = read(&[content, b"data: x\n\n"].concat());
    let one = vec![("data".to_owned(), "x".to_owned())];
    read(&[content, b"\n\n"].concat()) == plain && more.blocks == [plain.blocks, vec![one]].concat()
}
