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

fn chunked() -> EventBody {
    let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
    EventBody::new(transfer, Coding::Chunked, Reading::Open)
}

/// Pushes pieces into a body of whole events and returns what was noted, in order.
fn noted(body: &mut EventBody, pieces: &[&[u8]]) -> Vec<Option<String>> {
    let mut ids = Vec::new();
    for piece in pieces {
        let note = |id: Option<&[u8]>| ids.push(id.map(|id| String::from_utf8_lossy(id).into()));
        body.push(piece, &mut Vec::new(), note).unwrap();
    }
    ids
}

#[test]
fn a_bom_that_comes_in_pieces_hides_no_id() {
    let stream = b"\xEF\xBB\xBFid: 1\n\n";
    for at in 0..stream.len() {
        let mut body = body().in_whole_events();
        let ids = noted(&mut body, &[&stream[..at], &stream[at..]]);
        assert_eq!(ids, [Some("1".to_owned())], "cut at {at}");
    }
    // Anywhere else it is the beginning of a name.
    let mut body = body().in_whole_events();
    assert_eq!(noted(&mut body, &[b"\n", stream]), []);
}

#[test]
fn an_id_is_known_behind_an_event_that_was_too_long_to_hold_where_it_stands_in_a_line_of_its_own() {
    let long = "data: ".to_owned() + &"x".repeat(HELD_BYTES_MAX);
    let known = |id: &str| Some(id.to_owned());
    let cases: [(&[&[u8]], &[Option<String>]); 6] = [
        (&[b"id: 1\n\n", long.as_bytes(), b"\n\n"], &[known("1"), None]),
        (&[long.as_bytes(), b"id: 1\n\n"], &[None]),
        (&[long.as_bytes(), b"\nid: 1\n\n"], &[known("1")]),
        (&[long.as_bytes(), b"\r\nid: 1\r\n\r\nid: 2\r\n\r\n"], &[known("2")]),
        (&[long.as_bytes(), b"\n\n", b"data: y\n\n"], &[None]),
        (&[long.as_bytes(), b"\n\n", b"id\n\n"], &[None, known("")]),
    ];
    for (n, (pieces, want)) in cases.into_iter().enumerate() {
        assert_eq!(noted(&mut body().in_whole_events(), pieces), want, "case {n}");
    }
}

#[test]
fn nothing_is_written_behind_the_first_trailer() {
    let mut body = chunked();
    let mut out = Vec::new();
    body.push(b"9\r\ndata: a\n\n\r\n0\r\nX: 1\r\n", &mut out, |_| ()).unwrap();
    assert_eq!(out, b"9\r\ndata: a\n\n\r\n0\r\nX: 1\r\n");
    assert!(!body.is_done() && !body.is_open());
    assert!(!body.heartbeat(&mut out));
    assert_eq!(body.cut(Some(Duration::ZERO), &mut out), Cut::Impossible);
    assert!(!body.continue_with(Transfer::text(Framing::UntilClose, Coding::Chunked)));
    body.push(b"\r\n", &mut out, |_| ()).unwrap();
    assert_eq!(out, b"9\r\ndata: a\n\n\r\n0\r\nX: 1\r\n\r\n");
}

#[test]
fn nothing_is_written_behind_a_cut() {
    for body in [chunked(), chunked().in_whole_events()] {
        let (mut body, mut out) = (body, Vec::new());
        body.push(b"9\r\ndata: a\n\n\r\n", &mut out, |_| ()).unwrap();
        assert_eq!(body.cut(None, &mut out), Cut::Done);
        assert_eq!(out, b"9\r\ndata: a\n\n\r\n0\r\n\r\n");
        let ended = out.clone();
        let pushed = body.push(b"9\r\ndata: b\n\n\r\nnonsense", &mut out, |_| panic!("no id"));
        assert_eq!(pushed, Ok(Pushed::default()));
        assert!(!body.heartbeat(&mut out) && !body.is_open());
        assert_eq!(body.cut(Some(Duration::ZERO), &mut out), Cut::Done);
        assert!(!body.continue_with(Transfer::text(Framing::UntilClose, Coding::Chunked)));
        // The sender was inside of a chunk, which is its affair.
        assert_eq!(body.end_of_input(&mut out), Ok(()));
        assert_eq!(out, ended);
    }
}

#[test]
fn a_cut_stands_although_the_sender_breaks_the_framing_behind_it() {
    let mut body = chunked();
    let mut out = Vec::new();
    body.push(b"7\r\ndata: a\r\n", &mut out, |_| ()).unwrap();
    assert_eq!(body.cut(None, &mut out), Cut::Awaited);
    let pushed = body.push(b"2\r\n\n\n\r\nnonsense", &mut out, |_| ());
    assert_eq!(pushed, Ok(Pushed { taken: 15, content: 2, events: 1 }));
    assert!(body.is_cut());
    assert_eq!(out, b"7\r\ndata: a\r\n2\r\n\n\n\r\n0\r\n\r\n");
}

#[test]
fn a_cut_that_waits_for_an_event_that_never_ends_ends_with_the_sender() {
    let mut body = body();
    push(&mut body, "data: a");
    let mut out = Vec::new();
    assert_eq!(body.cut(Some(Duration::ZERO), &mut out), Cut::Awaited);
    assert_eq!(push(&mut body, "b\nid: 1"), "");
    assert_eq!(body.end_of_input(&mut out), Ok(()));
    assert_eq!(out, b"b\nid: 1", "an event that never ended is not ended by us");
    assert!(body.is_done() && !body.is_cut());
    assert_eq!(body.cut(None, &mut out), Cut::Impossible);
}

#[test]
fn a_body_of_any_coding_is_touched_by_its_first_octet_of_content() {
    for reading in [Reading::Coded, Reading::Fixed, Reading::Open] {
        for is_whole in [false, true] {
            let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
            let body = EventBody::new(transfer, Coding::Chunked, reading);
            let mut body = if is_whole { body.in_whole_events() } else { body };
            let mut out = Vec::new();
            body.heartbeat(&mut out);
            body.push(b"2\r\n", &mut out, |_| ()).unwrap();
            assert!(body.is_untouched(), "{reading:?}");
            body.push(b"\x1f", &mut out, |_| ()).unwrap();
            assert!(!body.is_untouched(), "{reading:?}");
        }
    }
}

#[test]
fn what_was_begun_with_a_heartbeat_can_be_continued() {
    for is_whole in [false, true] {
        let body = if is_whole { body().in_whole_events() } else { body() };
        let (mut body, mut out) = (body, Vec::new());
        assert!(body.heartbeat(&mut out));
        assert!(body.continue_with(Transfer::text(Framing::UntilClose, Coding::Identity)));
        assert!(body.heartbeat(&mut out));
        body.push(b"\xEF\xBB", &mut out, |_| ()).unwrap();
        // Part of a BOM is held: whether it may be dropped depends on whether it was handed on.
        assert_eq!(body.is_open(), is_whole);
        body.push(b"\xBFdata: a\n\n", &mut out, |_| ()).unwrap();
        assert_eq!(out, b": \n\n: \n\ndata: a\n\n");
    }
}

#[test]
fn a_bom_behind_our_own_beginning_is_left_out_of_a_body_that_may_be_cut_anywhere() {
    let transfer = Transfer::rewriting(Framing::UntilClose, Coding::Identity);
    let mut body = EventBody::new(transfer, Coding::Identity, Reading::Open);
    let mut out = Vec::new();
    assert!(body.heartbeat(&mut out));
    for octet in "\u{feff}data: \u{20ac}\n\n".as_bytes() {
        body.push(&[*octet], &mut out, |_| ()).unwrap();
    }
    assert_eq!(String::from_utf8(out).unwrap(), ": \n\ndata: \u{20ac}\n\n");
}

#[test]
fn a_stream_without_a_line_end_is_held_up_to_the_limit_and_never_more() {
    const PIECE_BYTES: usize = 16 * 1024;
    let piece = "\u{20ac}".repeat(PIECE_BYTES / 3 + 1);
    let piece = &piece.as_bytes()[..PIECE_BYTES];
    let mut body = body().in_whole_events();
    let (mut out, mut came, mut went) = (Vec::new(), 0, 0);
    for _ in 0..1024 {
        body.push(piece, &mut out, |_| panic!("no id")).unwrap();
        came += piece.len();
        went += out.len();
        out.clear();
        assert_eq!(body.held.len(), came - went);
        assert!(body.held.len() <= HELD_BYTES_MAX);
        assert!(body.held.capacity() <= 2 * (HELD_BYTES_MAX + PIECE_BYTES));
    }
    body.end_of_input(&mut out).unwrap();
    assert_eq!((went + out.len(), body.held.capacity()), (came, 0));
}

#[test]
fn what_is_held_of_an_event_takes_no_more_memory_than_it_must() {
    let mut body = body().in_whole_events();
    let events = "data: a\n\n".repeat(10_000) + "data: b";
    push(&mut body, &events);
    assert_eq!(body.held, b"data: b");
    assert!(body.held.capacity() < 64, "{}", body.held.capacity());
    push(&mut body, "\n\n");
    assert_eq!(body.held.capacity(), 0);
}
