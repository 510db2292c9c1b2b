//! Pure: our reading of event streams against a reader that was written from the specification
//! alone: the cases of the web platform, and properties that hold for any octets.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::http1::{Body, Coding, Framing, Step, Transfer};

#[allow(unreachable_pub, reason = "the fuzz target has it too, where it is public")]
#[path = "../../fuzz/src/reader.rs"]
mod reader;

use reader::{Reading as Read, read};

/// What is dispatched: types and data; then the last event id, and the reconnection time.
type Want<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<&'a str>);

/// What the web platform's tests of event streams are about (their names in front), and the rest of
/// the grammar.
const CASES: &[(&str, &str, Want<'_>)] = &[
    ("bom", "\u{feff}data:1\n\n\u{feff}data:2\n\ndata:3\n\n", (&[M1, M3], "", None)),
    ("bom-2", "\u{feff}\u{feff}data:1\n\ndata:2\n\ndata:3\n\n", (&[M2, M3], "", None)),
    ("bom alone", "\u{feff}", (&[], "", None)),
    ("bom, empty line", "\u{feff}\r\n\r\ndata:1\r\n\r\n", (&[M1], "", None)),
    (
        "comments",
        "data:1\r:\0\n:\r\ndata:2\n:xxxxxxxxxxxxxxxx\rdata:3\n:data:no\r:\ndata:4\n\n",
        (&[("message", "1\n2\n3\n4")], "", None),
    ),
    ("comments only", ": a\n\n:\n\n:data: x\n\n", (&[], "", None)),
    (
        "data-before-final-empty-line",
        "retry:1000\ndata:1\n\nid:test\ndata:2",
        (&[M1], "", Some("1000")),
    ),
    ("a last line without its empty one", "id:1\ndata:1\n\nid:2\ndata:2\n", (&[M1], "1", None)),
    (
        "field-data",
        "data:\n\ndata\ndata\n\ndata:test\n\n",
        (&[("message", ""), ("message", "\n"), ("message", "test")], "", None),
    ),
    ("field-event", "event:test\ndata:1\n\ndata:2\n\n", (&[("test", "1"), M2], "", None)),
    ("field-event-empty", "event: \ndata:1\n\n", (&[M1], "", None)),
    ("field-event, the last counts", "event:a\nevent:b\ndata:1\n\n", (&[("b", "1")], "", None)),
    ("field-event without data", "event:test\n\ndata:1\n\n", (&[M1], "", None)),
    ("field-id", "id:1\ndata:1\n\n", (&[M1], "1", None)),
    ("field-id-2", "data:1\nid:a\n\ndata:2\n\nid:b\ndata:3\n\n", (&[M1, M2, M3], "b", None)),
    ("field-id-3, it is taken back", "id:a\ndata:1\n\nid\ndata:2\n\n", (&[M1, M2], "", None)),
    ("field-id without data", "id:a\n\n: c\n\n", (&[], "a", None)),
    ("field-id, the last counts", "id:a\nid:b\ndata:1\n\n", (&[M1], "b", None)),
    ("field-id-null", "id:a\n\nid:\0\ndata:1\n\nid:b\0c\ndata:2\n\n", (&[M1, M2], "a", None)),
    ("field-id, one space goes", "id:  \u{20ac} \n\n", (&[], " \u{20ac} ", None)),
    (
        "field-parsing",
        "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\r\
         data:\r\n data:32\ndata:4\n\n",
        (&[("message", "\0\n 2\n1\n3\n\n4")], "", None),
    ),
    ("names have a case", "DATA:1\n\nData:1\n\nID:1\n\n", (&[], "", None)),
    ("names have no space", "data :1\n\nid :1\n\n", (&[], "", None)),
    ("field-retry", "retry:3000\ndata:1\n\n", (&[M1], "", Some("3000"))),
    ("field-retry-bogus", "retry:3000\nretry:1000x\ndata:1\n\n", (&[M1], "", Some("3000"))),
    ("field-retry-bogus signs", "retry:-1\nretry:+1\nretry:1.5\n\n", (&[], "", None)),
    ("field-retry-empty", "retry\nretry:\ndata:1\n\n", (&[M1], "", None)),
    ("field-retry at once", "retry:5\n", (&[], "", Some("5"))),
    (
        "field-unknown",
        "data:1\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacomment\ndata:2\n\n",
        (&[("message", "1\n\n2")], "", None),
    ),
    (
        "leading-space",
        "data:\ttest\rdata: \ndata:  x\ndata:y\n\n",
        (&[("message", "\ttest\n\n x\ny")], "", None),
    ),
    ("newlines", "data:1\r\ndata\ndata:2\r\n\r", (&[("message", "1\n\n2")], "", None)),
    ("newlines, CR alone", "data:1\r\rdata:2\r\r", (&[M1, M2], "", None)),
    ("newlines, CRLF behind an end", "data:1\n\r\ndata:2\r\r\n\n", (&[M1, M2], "", None)),
    ("newlines, LF CR", "data:1\n\rdata:2\n\r", (&[M1, M2], "", None)),
    ("other separators are none", "data:1\u{85}\u{2028}\x0b\x0c\n\n", (&[SEPARATORS], "", None)),
    ("null-character", "data:\0\n\n\n\n", (&[("message", "\0")], "", None)),
    ("utf-8", "data:ok\u{2026}\n\n", (&[("message", "ok\u{2026}")], "", None)),
    ("empty lines", "\n\r\n\r\r\n\n", (&[], "", None)),
    ("nothing", "", (&[], "", None)),
];

const M1: (&str, &str) = ("message", "1");
const M2: (&str, &str) = ("message", "2");
const M3: (&str, &str) = ("message", "3");
const SEPARATORS: (&str, &str) = ("message", "1\u{85}\u{2028}\x0b\x0c");

/// Streams are put together from these: whatever comes of it, two readers must agree about it.
const PIECES: &[&[u8]] = &[
    b"data: a\n",
    b"data: a\n\n",
    b"data:b\r\n",
    b"data\r",
    b"id: 1\n",
    b"id: 1\ndata: x\n\n",
    b"id:2\r\n\r\n",
    b"id",
    b"id:\0\n",
    b"event: e\n",
    b"retry: 5\n",
    b"unknown: u\n",
    b": comment\n",
    b":\n\n",
    b"\n",
    b"\n",
    b"\r",
    b"\r\n",
    b"\n\n",
    b"\r\n\r\n",
    b"dat",
    b"a:",
    b" ",
    b":",
    b"\xEF\xBB\xBF",
    b"\xEF",
    b"\xBB\xBF",
    b"\xE2\x82",
    b"\xAC",
    b"\xF0\x9F\x98\x80",
    b"\xFF",
    b"\0",
    b"0",
];

fn streams() -> impl Strategy<Value = Vec<u8>> {
    let bom = prop_oneof![3 => Just(&b""[..]), 1 => Just(&b"\xEF\xBB\xBF"[..])];
    let pieces = proptest::collection::vec(proptest::sample::select(PIECES), 0..14);
    prop_oneof![
        8 => (bom, pieces).prop_map(|(bom, pieces)| [bom, &pieces.concat()].concat()),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

fn cuts() -> impl Strategy<Value = Vec<u16>> {
    proptest::collection::vec(any::<u16>(), 0..8)
}

/// `octets` cut at places that `cuts` name.
fn cut<'a>(octets: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|cut| usize::from(*cut) % (octets.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(octets.len());
    let mut begin = 0;
    let pieces = ends.into_iter().map(|end| &octets[std::mem::replace(&mut begin, end)..end]);
    pieces.collect()
}

/// A whole body of chunks with this content.
fn chunks(content: &[u8], chunk_bytes: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in content.chunks(chunk_bytes) {
        Transfer::write_content(Coding::Chunked, chunk, &mut body);
    }
    body.extend_from_slice(b"0\r\n\r\n");
    body
}

/// The content of what was written so far, and whether its end was. Panics if its framing is wrong.
fn written(coding: Coding, out: &[u8]) -> (Vec<u8>, bool) {
    if coding == Coding::Identity {
        return (out.to_vec(), false);
    }
    let (mut body, mut content, mut at) = (Body::new(Framing::Chunked), Vec::new(), 0);
    loop {
        let rest = &out[at..];
        match body.step(rest).expect("valid framing") {
            Step::Framing(n) | Step::Trailer(n) => at += n,
            Step::Data(n) => {
                content.extend_from_slice(&rest[..n]);
                at += n;
            }
            Step::NeedMore => return (content, false),
            Step::Done => {
                assert!(rest.is_empty(), "behind the end: {}", rest.escape_ascii());
                return (content, true);
            }
        }
    }
}

/// How a stream comes and goes.
#[derive(Clone, Debug)]
struct Way {
    comes: Framing,
    goes: Coding,
    is_whole: bool,
    chunk_bytes: usize,
    cuts: Vec<u16>,
}

fn ways() -> impl Strategy<Value = Way> {
    (any::<[bool; 3]>(), 1_usize..12, cuts()).prop_map(|([comes, goes, is_whole], size, cuts)| {
        Way {
            comes: if comes { Framing::Chunked } else { Framing::UntilClose },
            goes: if goes { Coding::Chunked } else { Coding::Identity },
            is_whole,
            chunk_bytes: size,
            cuts,
        }
    })
}

impl Way {
    fn transfer(&self) -> Transfer {
        Transfer::text(self.comes, self.goes)
    }

    fn body(&self) -> EventBody {
        let body = EventBody::new(self.transfer(), self.goes, Reading::Open);
        if self.is_whole { body.in_whole_events() } else { body }
    }

    /// The octets in which a content comes.
    fn wire(&self, content: &[u8]) -> Vec<u8> {
        match self.comes {
            Framing::Chunked => chunks(content, self.chunk_bytes),
            Framing::Length(_) | Framing::UntilClose => content.to_vec(),
        }
    }
}

/// A body on its way, and what became of it.
struct Run<'a> {
    way: &'a Way,
    body: EventBody,
    out: Vec<u8>,
    events: usize,
    noted: Option<String>,
}

impl<'a> Run<'a> {
    fn new(way: &'a Way) -> Self {
        Self { way, body: way.body(), out: Vec::new(), events: 0, noted: Some(String::new()) }
    }

    fn push(&mut self, piece: &[u8]) {
        let noted = &mut self.noted;
        let note = |id: Option<&[u8]>| {
            *noted = id.map(|id| String::from_utf8_lossy(id).into_owned());
        };
        let pushed = self.body.push(piece, &mut self.out, note).unwrap();
        assert!(pushed.taken == piece.len() || self.body.is_done());
        self.events += pushed.events as usize;
    }

    fn end(&mut self) {
        self.body.end_of_input(&mut self.out).unwrap();
        assert!(self.body.is_done());
    }

    fn content(&self) -> Vec<u8> {
        let (content, has_ended) = written(self.way.goes, &self.out);
        assert_eq!(has_ended, self.way.goes == Coding::Chunked && self.body.is_done());
        content
    }

    fn reading(&self) -> Read {
        read(&self.content())
    }
}

fn kinds_and_data(reading: &Read) -> Vec<(&str, &str)> {
    reading.events.iter().map(|event| (event.kind.as_str(), event.data.as_str())).collect()
}

/// The same for readers of every kind, as far as it goes.
fn is_beginning(some: &Read, of: &Read) -> bool {
    of.events.starts_with(&some.events) && of.blocks.starts_with(&some.blocks)
}

#[test]
fn the_cases_of_the_web_platform_are_read_as_they_should_be() {
    for (name, stream, (events, last_id, retry_ms)) in CASES {
        let reading = read(stream.as_bytes());
        assert_eq!(kinds_and_data(&reading), *events, "{name}");
        assert_eq!(reading.last_event_id, *last_id, "{name}");
        assert_eq!(reading.retry_ms.as_deref(), *retry_ms, "{name}");

        let mut tracker = EventTracker::new();
        let octets = stream.as_bytes();
        let passed = tracker.step(octets);
        assert_eq!(passed.events as usize, events.len(), "{name}");
        let whole = &octets[..passed.boundary.unwrap_or(0)];
        let readable = whole.strip_prefix("\u{feff}".as_bytes()).unwrap_or(whole);
        let noted = last_event_id(readable).unwrap_or_default();
        assert_eq!(noted, last_id.as_bytes(), "{name}");
    }
}

#[test]
fn the_cases_of_the_web_platform_pass_with_heartbeats_behind_every_octet() {
    for (name, stream, (events, last_id, retry_ms)) in CASES {
        for is_whole in [false, true] {
            let (comes, goes) = (Framing::UntilClose, Coding::Chunked);
            let way = Way { comes, goes, is_whole, chunk_bytes: 1, cuts: Vec::new() };
            let mut run = Run::new(&way);
            let mut heartbeats = u32::from(run.body.heartbeat(&mut run.out));
            for octet in stream.as_bytes().chunks(1) {
                run.push(octet);
                heartbeats += u32::from(run.body.heartbeat(&mut run.out));
            }
            run.end();
            assert!(heartbeats > 0, "{name}");
            let reading = run.reading();
            assert_eq!(kinds_and_data(&reading), *events, "{name}");
            assert_eq!(reading.last_event_id, *last_id, "{name}");
            assert_eq!(reading.retry_ms.as_deref(), *retry_ms, "{name}");
            assert_eq!(run.events, events.len(), "{name}");
        }
    }
}

/// What may come behind a place: one of these tells whether it was inside of something.
const CONTINUATIONS: &[&[u8]] = &[
    b"",
    b"\n\n",
    b"\r\n\r\n",
    b"data: x\n\n",
    b"x\n\n",
    b"\nevent: x\ndata: x\n\n",
    b": x\nid: x\n\n",
    b"\xBB\xBFdata: x\n\n",
    b"\xBFdata: x\n\n",
    b"\xEF\xBB\xBFdata: x\n\n",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_tracker_counts_what_a_reader_dispatches_wherever_the_stream_is_cut(
        stream in streams(),
        cuts in cuts(),
    ) {
        let mut whole = EventTracker::new();
        let passed = whole.step(&stream);
        prop_assert_eq!(passed.events as usize, read(&stream).events.len());
        let mut splits: Vec<Vec<&[u8]>> =
            (0..=stream.len()).map(|at| vec![&stream[..at], &stream[at..]]).collect();
        splits.push(stream.chunks(1).collect());
        splits.push(cut(&stream, &cuts));
        for pieces in splits {
            let mut tracker = EventTracker::new();
            let (mut events, mut boundary, mut at) = (0, None, 0);
            for piece in pieces {
                let passed = tracker.step(piece);
                events += passed.events;
                boundary = passed.boundary.map(|n| at + n).or(boundary);
                at += piece.len();
                let last = boundary.unwrap_or(0);
                prop_assert_eq!(tracker.is_at_boundary(), last == at);
            }
            prop_assert_eq!((tracker, events, boundary), (whole, passed.events, passed.boundary));
        }
    }

    #[test]
    fn boundaries_are_the_places_where_no_reader_notices_what_is_written(stream in streams()) {
        for at in 0..=stream.len() {
            let (before, rest) = stream.split_at(at);
            let mut tracker = EventTracker::new();
            tracker.step(before);
            let mut is_noticed = false;
            for behind in [&[rest], CONTINUATIONS].concat() {
                let plain = read(&[before, behind].concat());
                // In front of the first octet a BOM is left out, as it would have been by a reader.
                let behind = match tracker.is_untouched() {
                    true => behind.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(behind),
                    false => behind,
                };
                let with_comment = read(&[before, b": \n\n", behind].concat());
                is_noticed |= with_comment != plain;
                if tracker.is_at_boundary() {
                    prop_assert_eq!(&with_comment, &plain, "at {} before {:?}", at, behind);
                    let with_retry = read(&[before, b"retry: 71\n\n", behind].concat());
                    prop_assert_eq!(&with_retry.events, &plain.events, "at {}", at);
                    prop_assert_eq!(&with_retry.last_event_id, &plain.last_event_id);
                    let with_retry = read(&[before, b"retry: 71\n\n"].concat());
                    prop_assert_eq!(with_retry.retry_ms.as_deref(), Some("71"));
                }
            }
            prop_assert_eq!(is_noticed, !tracker.is_at_boundary(), "at {}", at);
        }
    }

    #[test]
    fn every_octet_goes_on_and_pieces_are_cut_at_characters(stream in streams(), way in ways()) {
        let mut run = Run::new(&way);
        let is_text = std::str::from_utf8(&stream).is_ok();
        let wire = way.wire(&stream);
        let mut before = 0;
        for piece in cut(&wire, &way.cuts) {
            run.push(piece);
            let content = run.content();
            prop_assert!(stream.starts_with(&content));
            let piece = &content[before..];
            prop_assert!(!is_text || std::str::from_utf8(piece).is_ok(), "{piece:?}");
            before = content.len();
        }
        run.end();
        prop_assert_eq!(run.content(), stream.clone());
        prop_assert_eq!(run.events, read(&stream).events.len());
        // Nothing follows the end.
        let ended = run.out.clone();
        prop_assert!(!run.body.heartbeat(&mut run.out));
        prop_assert_eq!(run.body.cut(Some(Duration::ZERO), &mut run.out), Cut::Impossible);
        prop_assert_eq!(run.body.push(b"data: x\n\n", &mut run.out, |_| ()).unwrap().taken, 0);
        prop_assert_eq!(run.out, ended);
    }

    #[test]
    fn heartbeats_at_any_moment_change_nothing_for_readers(
        stream in streams(),
        way in ways(),
        moments: u16,
    ) {
        let mut run = Run::new(&way);
        let wire = way.wire(&stream);
        for (n, piece) in cut(&wire, &way.cuts).into_iter().enumerate() {
            if moments >> n & 1 == 1 {
                let is_open = run.body.is_open();
                prop_assert_eq!(run.body.heartbeat(&mut run.out), is_open);
            }
            run.push(piece);
            prop_assert!(is_beginning(&run.reading(), &read(&stream)));
        }
        run.end();
        prop_assert_eq!(run.reading(), read(&stream));
    }

    #[test]
    fn a_cut_at_any_moment_leaves_whole_events_and_all_that_were_before(
        stream in streams(),
        way in ways(),
        moment in 0_usize..9,
        starts_silent: bool,
    ) {
        let mut run = Run::new(&way);
        let (wire, uncut) = (way.wire(&stream), read(&stream));
        let (mut cut_at, mut verdict) = (None, None);
        if starts_silent {
            run.body.heartbeat(&mut run.out);
        }
        for (n, piece) in cut(&wire, &way.cuts).into_iter().enumerate() {
            if n == moment && !run.body.is_done() {
                let before = run.reading();
                let done = run.body.cut(Some(Duration::from_millis(71)), &mut run.out);
                prop_assert_ne!(done, Cut::Impossible);
                prop_assert_eq!(done == Cut::Done, run.body.is_cut());
                // Again is the same.
                prop_assert_eq!(run.body.cut(None, &mut run.out), done);
                (cut_at, verdict) = (Some(before), Some(done));
            }
            if run.body.is_cut() {
                let out = run.out.clone();
                prop_assert_eq!(run.body.push(piece, &mut run.out, |_| ()).unwrap().taken, 0);
                prop_assert_eq!(&run.out, &out);
            } else {
                run.push(piece);
            }
        }
        run.end();
        let content = run.content();
        let mut reading = read(&content);
        if run.body.is_cut() {
            prop_assert!(content.ends_with(b"retry: 71\n\n"));
            prop_assert_eq!(reading.retry_ms.as_deref(), Some("71"));
            // Nothing was left unfinished: an empty line would end nothing.
            prop_assert_eq!(&read(&[&content[..], b"\n\n"].concat()), &reading);
            prop_assert!(reading.blocks.pop().is_some_and(|block| block[0].0 == "retry"));
        } else {
            prop_assert_ne!(verdict, Some(Cut::Done));
            prop_assert_eq!(&reading.blocks, &uncut.blocks, "nothing is left out of its own end");
        }
        prop_assert!(is_beginning(&reading, &uncut));
        prop_assert_eq!(run.events, reading.events.len());
        if let Some(before) = cut_at {
            prop_assert!(is_beginning(&before, &reading), "what was sent stays");
            let more = reading.blocks.len() - before.blocks.len();
            prop_assert!(verdict == Some(Cut::Awaited) || more == 0, "cut means cut");
        }
    }

    #[test]
    fn a_continued_stream_is_the_whole_events_of_the_first_and_then_the_second(
        first in streams(),
        second in streams(),
        way in ways(),
        death: u16,
        moments: u16,
    ) {
        let way = Way { is_whole: true, ..way };
        let mut run = Run::new(&way);
        let death = usize::from(death) % (first.len() + 1);
        // What came of the first, without its end.
        let wire = way.wire(&first[..death]);
        let end = if way.comes == Framing::Chunked { b"0\r\n\r\n".len() } else { 0 };
        let wires = [&wire[..wire.len() - end], &way.wire(&second)];
        for (n, wire) in wires.into_iter().enumerate() {
            if n == 1 {
                prop_assert!(run.body.continue_with(way.transfer()), "small events are held");
                prop_assert!(run.body.is_untouched());
            }
            for (n, piece) in cut(wire, &way.cuts).into_iter().enumerate() {
                run.push(piece);
                if moments >> n & 1 == 1 {
                    run.body.heartbeat(&mut run.out);
                }
                let held = run.reading().last_event_id;
                prop_assert_eq!(run.noted.as_ref(), Some(&held));
            }
        }
        run.end();
        let (before, after, both) = (read(&first[..death]), read(&second), run.reading());
        prop_assert_eq!(both.blocks, [&before.blocks[..], &after.blocks].concat());
        let both = run.reading();
        let events = [kinds_and_data(&before), kinds_and_data(&after)].concat();
        prop_assert_eq!(kinds_and_data(&both), events);
        prop_assert_eq!(run.noted, Some(both.last_event_id));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn long_events_go_on_in_pieces_and_no_wrong_id_is_noted(
        parts in proptest::collection::vec((streams(), 0_usize..3), 1..5),
        cuts in proptest::collection::vec(any::<u16>(), 0..30),
        second in streams(),
    ) {
        let long = "\u{20ac}".repeat(HELD_BYTES_MAX / 5);
        let stream: Vec<u8> = parts
            .iter()
            .flat_map(|(stream, times)| [&stream[..], long.repeat(*times).as_bytes()].concat())
            .collect();
        let (comes, goes) = (Framing::UntilClose, Coding::Identity);
        let way = Way { comes, goes, is_whole: true, chunk_bytes: 1, cuts };
        let mut run = Run::new(&way);
        let mut came = 0;
        for piece in cut(&stream, &way.cuts) {
            run.push(piece);
            came += piece.len();
            prop_assert!(came - run.out.len() <= HELD_BYTES_MAX, "held");
            prop_assert!(stream.starts_with(&run.out));
            if let Some(noted) = &run.noted {
                prop_assert_eq!(noted, &run.reading().last_event_id);
            }
        }
        let before = run.out.clone();
        if run.body.continue_with(way.transfer()) {
            run.push(&second);
            let blocks = [read(&before).blocks, read(&second).blocks].concat();
            prop_assert_eq!(run.reading().blocks, blocks);
        } else {
            let mut tracker = EventTracker::new();
            tracker.step(&before);
            prop_assert!(!tracker.is_at_boundary(), "it could have gone on");
            run.end();
            prop_assert_eq!(run.out, stream);
        }
    }
}
