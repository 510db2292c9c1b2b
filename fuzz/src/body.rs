//! Target `body`: what each octet of a body is, and what becomes of it.
//!
//! Input: one octet of flags (bits 0 and 1 the framing: length, chunked, until close, chunked; bit 2
//! chunks go out; bit 3 text; bit 4 a length near 2^64), one octet of length, one octet that says
//! into how many pieces more (up to 7) the body is cut, as many lengths of pieces, and the body.

use arbitrary::Unstructured;
use stepflow_load_balancer::http1::{Body, BodyError, BodyLimits, Coding, Framing, Step, Transfer};

use super::{
    Verdict,
    naive::{self, End, Lines, Seen},
    rules::trailers_that_go_on,
};

/// Properties: however the input is split, content, trailers and end are those that the naive
/// reader sees; what goes out decodes to the same content; text is never cut inside a character; a
/// body that is cut short or broken is never finished.
pub fn run(octets: &[u8]) -> Verdict {
    let mut input = Unstructured::new(octets);
    let mut octet = || input.arbitrary::<u8>().unwrap_or_default();
    let (flags, length) = (octet(), u64::from(octet()));
    let cuts = (0..octet() % 8).map(|_| usize::from(octet())).collect::<Vec<_>>();
    let framing = match flags & 3 {
        0 if flags & 16 != 0 => Framing::Length(u64::MAX - length),
        0 => Framing::Length(length),
        2 => Framing::UntilClose,
        _ => Framing::Chunked,
    };
    let coding = if flags & 4 == 0 { Coding::Identity } else { Coding::Chunked };
    let transfer = match flags & 8 {
        0 => Transfer::new(framing, coding),
        _ => Transfer::text(framing, coding),
    };
    let body = input.take_rest();

    let seen = read(body, framing);
    let mut pieces = Vec::new();
    let mut rest = body;
    for cut in cuts {
        let (piece, behind) = rest.split_at(cut.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces.push(rest);
    // With an empty piece in front: what is over before it begins is ended by the first push.
    let bytewise: Vec<&[u8]> = [&body[..0]].into_iter().chain(body.chunks(1)).collect();
    for pieces in [&[body][..], &pieces, &bytewise] {
        follow(Body::new(framing), pieces, &seen);
        limit(Body::new(framing), pieces, &seen);
        hand_on(transfer, framing, coding, flags & 8 != 0, pieces, &seen, &Lines::new());
    }
    if seen.end == End::Bad { Verdict::Refused } else { Verdict::Accepted }
}

/// The naive reading.
pub fn read(body: &[u8], framing: Framing) -> Seen {
    match framing {
        Framing::Length(length) => naive::sized(body, length),
        Framing::Chunked => naive::chunked(body),
        Framing::UntilClose => naive::sized(body, u64::MAX),
    }
}

fn follow(mut body: Body, pieces: &[&[u8]], seen: &Seen) {
    let mut measured = body;
    let (mut content, mut trailers, mut consumed) = (Vec::new(), Vec::new(), 0);
    let mut end = End::Partial;
    'pieces: for piece in pieces {
        let mut at = 0;
        loop {
            let rest = &piece[at..];
            let n = match body.step(rest) {
                Ok(Step::Framing(n)) => n,
                Ok(Step::Data(n)) => {
                    content.extend_from_slice(&rest[..n]);
                    n
                }
                Ok(Step::Trailer(n)) => {
                    trailers.extend_from_slice(&rest[..n]);
                    n
                }
                Ok(Step::NeedMore) => {
                    assert!(rest.is_empty(), "octets are left over");
                    break;
                }
                Ok(Step::Done) => {
                    end = End::Complete(consumed);
                    break 'pieces;
                }
                Err(_) => {
                    end = End::Bad;
                    break 'pieces;
                }
            };
            assert!(0 < n && n <= rest.len(), "no progress");
            at += n;
            consumed += n;
        }
    }
    // An empty rest is not asked about.
    if end == End::Partial && body.is_done() {
        end = End::Complete(consumed);
    }
    assert_eq!(end, seen.end);
    assert_eq!(content, seen.content());
    assert_eq!(body.is_done(), matches!(end, End::Complete(_)) && end != End::Bad);
    let sum = pieces.iter().try_fold(0, |sum, piece| Ok(sum + measured.measure(piece)?));
    match end {
        End::Complete(n) => {
            assert_eq!(trailers, seen.trailers);
            assert_eq!((sum, body.step(b"GET / HTTP/1.1\r\n")), (Ok(n), Ok(Step::Done)));
        }
        End::Partial => assert_eq!(sum, Ok(consumed)),
        End::Bad => assert!(sum.is_err_and(|error: BodyError| error != BodyError::Truncated)),
    }
}

/// A limit on the content is one on the content: neither less nor other octets count.
fn limit(body: Body, pieces: &[&[u8]], seen: &Seen) {
    let content = seen.content().len() as u64;
    let within = |bytes_max: u64| {
        let limits = BodyLimits { content_bytes_max: bytes_max, ..BodyLimits::default() };
        let mut body = body.within(limits);
        pieces.iter().try_fold(0, |sum, piece| body.measure(piece).map(|n| sum + n))
    };
    let enough = within(content);
    match seen.end {
        End::Complete(n) => assert_eq!(enough, Ok(n)),
        End::Partial => assert_eq!(enough, Ok(pieces.concat().len())),
        End::Bad => assert!(enough.is_err_and(|error| error != BodyError::ContentTooLong)),
    }
    if content > 0 {
        assert_eq!(within(content - 1), Err(BodyError::ContentTooLong));
    }
}

/// Hands a body on and holds what comes out against what went in. `head` is that of the message.
pub fn hand_on(
    mut transfer: Transfer,
    framing: Framing,
    coding: Coding,
    is_text: bool,
    pieces: &[&[u8]],
    seen: &Seen,
    head: &Lines,
) {
    if transfer.is_verbatim() {
        return hand_on_alike(transfer, pieces, seen, head);
    }
    let content = seen.content();
    let is_utf8 = is_text && std::str::from_utf8(&content).is_ok();
    let (mut out, mut taken, mut error) = (Vec::new(), 0, None);
    for piece in pieces {
        let before = out.len();
        match transfer.push(piece, &mut out) {
            Ok(n) => {
                taken += n;
                assert!(n == piece.len() || transfer.is_done());
            }
            Err(because) => {
                error = Some(because);
                break;
            }
        }
        if is_utf8 && coding == Coding::Identity {
            assert!(std::str::from_utf8(&out[before..]).is_ok(), "a piece cuts a character");
        }
    }
    let before_end = outgoing(&out, coding);
    assert_ne!(before_end.end, End::Bad, "{}", out.escape_ascii());
    let sent = before_end.content();
    assert!(content.starts_with(&sent), "{}", out.escape_ascii());
    if is_utf8 && coding == Coding::Chunked {
        let is_whole = |chunk: &Vec<u8>| std::str::from_utf8(chunk).is_ok();
        assert!(before_end.chunks.iter().all(is_whole), "a chunk cuts a character");
    }
    assert_eq!(error.is_some(), seen.end == End::Bad);
    if error.is_some() {
        assert!(coding == Coding::Identity || before_end.end == End::Partial, "finished");
        return;
    }
    let held = content.len() - sent.len();
    assert!(held <= if is_text { 3 } else { 0 }, "{held} octets held back");
    assert_eq!(transfer.is_done(), matches!(seen.end, End::Complete(_)));
    let before = out.len();
    let ended = transfer.end_of_input(&mut out);
    match seen.end {
        End::Complete(n) => {
            assert_eq!((taken, ended, out.len()), (n, Ok(()), before));
            assert_eq!(transfer.push(b"next", &mut out), Ok(0));
            assert_eq!(out.len(), before, "something behind the end");
        }
        End::Partial if framing == Framing::UntilClose => assert_eq!(ended, Ok(())),
        _ => {
            assert_eq!((ended, out.len()), (Err(BodyError::Truncated), before));
            assert!(coding == Coding::Identity || before_end.end == End::Partial, "finished");
            return;
        }
    }
    let after_end = outgoing(&out, coding);
    assert_eq!(after_end.content(), content);
    if coding == Coding::Chunked {
        assert_eq!(after_end.end, End::Complete(out.len()));
        assert_eq!(after_end.trailers, trailers_that_go_on(&seen.trailers, head));
    }
}

/// What goes on verbatim does so octet for octet but for trailers, in place and copied alike.
pub fn hand_on_alike(transfer: Transfer, pieces: &[&[u8]], seen: &Seen, head: &Lines) {
    let (mut in_place, mut copying) = (transfer, transfer);
    let (mut out, mut behind, mut copied, mut taken) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for piece in pieces {
        let mut octets = piece.to_vec();
        let measured = in_place.measure(&mut octets);
        let copied_in = copying.copy(piece, &mut copied);
        assert_eq!(measured.is_err(), copied_in.is_err());
        let (Ok(n), Ok(copied_in)) = (measured, copied_in) else {
            assert_eq!(seen.end, End::Bad);
            return;
        };
        taken += copied_in;
        out.extend_from_slice(&octets[..n]);
        behind.extend_from_slice(&octets[n..]);
    }
    assert_ne!(seen.end, End::Bad);
    assert_eq!(out.escape_ascii().to_string(), copied.escape_ascii().to_string());
    let input = pieces.concat();
    match seen.end {
        End::Complete(n) => {
            let (body, rest) = input.split_at(n);
            let front = body.len() - seen.trailers.len();
            // The trailers stand before the last line end, if there are any.
            let end = if seen.trailers.is_empty() { 0 } else { 2 };
            let kept = trailers_that_go_on(&seen.trailers, head);
            let want = [&body[..front - end], &kept, &body[n - end..]].concat();
            assert_eq!(out.escape_ascii().to_string(), want.escape_ascii().to_string());
            assert_eq!((taken, behind.as_slice()), (n, rest));
        }
        End::Partial | End::Bad => {
            assert_eq!((taken, behind.len()), (input.len(), 0));
            assert!(out.len() <= input.len());
        }
    }
    assert_eq!(in_place.is_done(), matches!(seen.end, End::Complete(_)));
}

/// The naive reading of what goes out.
pub fn outgoing(out: &[u8], coding: Coding) -> Seen {
    match coding {
        Coding::Identity => naive::sized(out, u64::MAX),
        Coding::Chunked => naive::chunked(out),
    }
}
