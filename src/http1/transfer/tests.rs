//! A body handed on in every coding, at every split.

use proptest::prelude::*;

use super::*;

/// Pushes `input` in pieces ended at `ends`; returns all that came out, piece by piece.
fn run(
    mut transfer: Transfer,
    input: &[u8],
    ends: impl Iterator<Item = usize>,
) -> Result<Vec<Vec<u8>>, BodyError> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    for end in ends.chain([input.len()]) {
        let mut out = Vec::new();
        at += transfer.push(&input[at..end], &mut out)?;
        pieces.push(out);
    }
    if !transfer.is_done() {
        let mut out = Vec::new();
        transfer.end_of_input(&mut out)?;
        pieces.push(out);
    }
    Ok(pieces)
}

fn content_of_chunks(octets: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut transfer = Transfer::new(Framing::Chunked, Coding::Identity);
    assert_eq!(transfer.push(octets, &mut out), Ok(octets.len()));
    assert!(transfer.is_done());
    out
}

#[test]
fn the_four_combinations() {
    let chunks: &[u8] = b"2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n";
    let cases: &[(Framing, Coding, &[u8], &[u8])] = &[
        (Framing::Chunked, Coding::Identity, chunks, b"abc"),
        (Framing::Chunked, Coding::Chunked, chunks, b"3\r\nabc\r\n0\r\nT: v\r\n\r\n"),
        (Framing::UntilClose, Coding::Chunked, b"abc", b"3\r\nabc\r\n0\r\n\r\n"),
        (Framing::Length(3), Coding::Chunked, b"abc", b"3\r\nabc\r\n0\r\n\r\n"),
        (Framing::Length(3), Coding::Identity, b"abc", b"abc"),
        (Framing::UntilClose, Coding::Identity, b"abc", b"abc"),
    ];
    for (framing, coding, input, want) in cases {
        let got = run(Transfer::text(*framing, *coding), input, std::iter::empty()).unwrap();
        assert_eq!(got.concat(), *want, "{framing:?} to {coding:?}");
    }
}

#[test]
fn same_coding_is_verbatim_unless_it_is_text() {
    assert!(Transfer::new(Framing::Chunked, Coding::Chunked).is_verbatim());
    assert!(Transfer::new(Framing::Length(9), Coding::Identity).is_verbatim());
    assert!(Transfer::new(Framing::UntilClose, Coding::Identity).is_verbatim());
    assert!(!Transfer::new(Framing::UntilClose, Coding::Chunked).is_verbatim());
    assert!(!Transfer::text(Framing::Chunked, Coding::Chunked).is_verbatim());
}

/// Drives a verbatim body over pieces ended at `ends`, in place and by copying; both must
/// agree. Returns what goes on, what follows the body, and how many fields were dropped.
fn run_verbatim(input: &[u8], ends: &[usize]) -> (Vec<u8>, Vec<u8>, u16) {
    let fresh = Transfer::alike(Framing::Chunked);
    let (mut in_place, mut copying) = (fresh, fresh);
    let (mut out, mut behind, mut copied, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut dropped = 0;
    for end in ends.iter().chain([&input.len()]) {
        let mut piece = input[at..*end].to_vec();
        let n = in_place.measure(&mut piece).unwrap();
        out.extend_from_slice(&piece[..n]);
        behind.extend_from_slice(&piece[n..]);
        dropped += in_place.take_dropped();
        copying.copy(&input[at..*end], &mut copied).unwrap();
        at = *end;
    }
    assert!(in_place.is_done() && copying.is_done());
    assert_eq!(copied.escape_ascii().to_string(), out.escape_ascii().to_string());
    assert_eq!(copying.take_dropped(), dropped);
    (out, behind, dropped)
}

#[test]
fn verbatim_bodies_lose_forbidden_trailers_and_nothing_else_wherever_they_are_cut() {
    let body = "3;x=\"y\"\r\nab\n\r\n0A\r\n0123456789\r\n000;z\r\n";
    let trailers = "A: 1\r\nHost: h\r\nb:  2 \r\nContent-Length: 3\r\n";
    let input = format!("{body}{trailers}\r\nGET /");
    let want = (format!("{body}A: 1\r\nb:  2 \r\n\r\n").into_bytes(), b"GET /".to_vec(), 2);
    for first in 0..=input.len() {
        for second in first..=input.len() {
            let got = run_verbatim(input.as_bytes(), &[first, second]);
            assert_eq!(got, want, "cut {first} {second}");
        }
    }
    let every: Vec<usize> = (0..input.len()).collect();
    assert_eq!(run_verbatim(input.as_bytes(), &every), want);
}

#[test]
fn a_verbatim_body_is_neither_moved_nor_grown() {
    let mut input = format!("ffff\r\n{}\r\n0\r\n\r\n", "x".repeat(0xffff)).into_bytes();
    let (before, place, room) = (input.clone(), input.as_ptr(), input.capacity());
    let n = Transfer::alike(Framing::Chunked).measure(&mut input).unwrap();
    assert!(n == before.len() && input == before);
    assert_eq!((input.as_ptr(), input.capacity()), (place, room));
    // Trailers that go on whole leave the buffer where it is, too.
    input.truncate(n - 2);
    input.extend_from_slice(b"A: 1\r\nHost: h\r\n\r\n");
    let (place, room) = (input.as_ptr(), input.capacity());
    Transfer::alike(Framing::Chunked).measure(&mut input).unwrap();
    assert!(input.ends_with(b"\r\n0\r\nA: 1\r\n\r\n"));
    assert_eq!((input.as_ptr(), input.capacity()), (place, room));
}

#[test]
fn a_body_keeps_within_its_limits_to_the_octet() {
    let body = "1;ab\r\nx\r\n1;cd\r\nx\r\n0\r\nA: 1\r\nHost: h\r\n\r\n";
    let (extensions, trailers) = (4, 15);
    for (chunk_extension_bytes_max, trailer_bytes_max, want) in [
        (extensions, trailers, Ok(body.len())),
        (extensions - 1, trailers, Err(BodyError::ChunkExtensionTooLong)),
        (0, trailers, Err(BodyError::ChunkExtensionTooLong)),
        // What is dropped counts, too.
        (extensions, trailers - 1, Err(BodyError::TrailerTooLong)),
        (extensions, 0, Err(BodyError::TrailerTooLong)),
    ] {
        let limits =
            BodyLimits { chunk_extension_bytes_max, trailer_bytes_max, ..BodyLimits::default() };
        let alike = Transfer::alike(Framing::Chunked).within(limits);
        let rewritten = Transfer::text(Framing::Chunked, Coding::Chunked).within(limits);
        assert_eq!({ alike }.copy(body.as_bytes(), &mut Vec::new()), want, "{limits:?}");
        assert_eq!({ rewritten }.push(body.as_bytes(), &mut Vec::new()), want, "{limits:?}");
    }
    // None at all is within any limit.
    let limits =
        BodyLimits { content_bytes_max: 1, chunk_extension_bytes_max: 0, trailer_bytes_max: 0 };
    let mut bare = b"1\r\nx\r\n0\r\n\r\n".to_vec();
    assert_eq!(Transfer::alike(Framing::Chunked).within(limits).measure(&mut bare), Ok(11));
}

#[test]
fn a_body_without_trailers_has_none_in_either_coding_wherever_it_is_cut() {
    let input = b"2\r\nab\r\n0\r\nA: 1\r\nHost: h\r\nB: 2\r\n\r\n";
    let want = b"2\r\nab\r\n0\r\n\r\n";
    for cut in 0..=input.len() {
        let mut alike = Transfer::alike(Framing::Chunked).without_trailers();
        let mut out = Vec::new();
        for piece in [&input[..cut], &input[cut..]] {
            alike.copy(piece, &mut out).unwrap();
        }
        assert_eq!((&*out, alike.take_dropped()), (&want[..], 3), "cut {cut}");
        let text = Transfer::text(Framing::Chunked, Coding::Chunked).without_trailers();
        let pieces = run(text, input, [cut].into_iter()).unwrap().concat();
        assert_eq!(content_of_chunks(&pieces), b"ab");
        assert!(pieces.ends_with(b"\r\n0\r\n\r\n"), "{}", pieces.escape_ascii());
    }
}

#[test]
fn rewritten_bodies_lose_forbidden_trailers_too() {
    let input = b"2\r\nab\r\n0\r\nSet-Cookie: a\r\nX: 1\r\nTE: x\r\n\r\n";
    for cut in 0..=input.len() {
        let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
        let pieces = run(transfer, input, [cut].into_iter()).unwrap().concat();
        assert!(pieces.ends_with(b"0\r\nX: 1\r\n\r\n"), "{}", pieces.escape_ascii());
        assert_eq!(content_of_chunks(&pieces), b"ab");
    }
}

#[test]
fn no_piece_ends_inside_a_character_wherever_the_input_was_cut() {
    let text = "data: aé€😀z\n\n";
    let mut input = Vec::new();
    for octet in text.bytes() {
        input.extend_from_slice(
            format!("1\r\n{}", octet as char).as_bytes().first_chunk::<3>().unwrap(),
        );
        input.push(octet);
        input.extend_from_slice(b"\r\n");
    }
    input.extend_from_slice(b"0\r\n\r\n");
    for cut in 0..=input.len() {
        let transfer = Transfer::text(Framing::Chunked, Coding::Identity);
        let pieces = run(transfer, &input, [cut].into_iter()).unwrap();
        assert!(pieces.iter().all(|p| std::str::from_utf8(p).is_ok()), "cut {cut}");
        assert_eq!(pieces.concat(), text.as_bytes());
    }
}

#[test]
fn octets_that_are_not_text_are_passed_on() {
    for input in [&b"\xff\xff\xff\xff"[..], b"\x80\x80\x80\x80\x80", b"\xe2\x82", b"a\xf0"] {
        let transfer = Transfer::text(Framing::UntilClose, Coding::Identity);
        let pieces = run(transfer, input, 0..input.len()).unwrap();
        assert_eq!(pieces.concat(), input);
    }
}

#[test]
fn nothing_follows_the_end() {
    let mut transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
    let mut out = Vec::new();
    assert_eq!(transfer.push(b"1\r\nx\r\n0\r\n\r\nnext", &mut out), Ok(11));
    let whole = out.clone();
    assert_eq!(transfer.push(b"next", &mut out), Ok(0));
    assert_eq!(transfer.end_of_input(&mut out), Ok(()));
    assert_eq!(out, whole);
}

#[test]
fn a_truncated_body_is_never_finished() {
    let mut out = Vec::new();
    let mut transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
    transfer.push(b"5\r\nab", &mut out).unwrap();
    assert_eq!(transfer.end_of_input(&mut out), Err(BodyError::Truncated));
    assert_eq!(out, b"2\r\nab\r\n");
}

proptest! {
    #[test]
    fn rechunking_keeps_content_and_splits_do_not_matter(
        content in proptest::collection::vec(any::<u8>(), 0..200),
        sizes in proptest::collection::vec(1_usize..40, 0..20),
        cuts in proptest::collection::vec(0_usize..400, 0..8),
    ) {
        let (mut input, mut rest) = (Vec::new(), &content[..]);
        for size in sizes {
            let (chunk, tail) = rest.split_at(size.min(rest.len()));
            if !chunk.is_empty() {
                input.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            rest = tail;
        }
        let content = &content[..content.len() - rest.len()];
        input.extend_from_slice(b"0\r\n\r\n");
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(input.len())).collect();
        cuts.sort_unstable();
        let transfer = Transfer::text(Framing::Chunked, Coding::Chunked);
        let pieces = run(transfer, &input, cuts.into_iter());
        prop_assert_eq!(content_of_chunks(&pieces.unwrap().concat()), content);
    }
}
