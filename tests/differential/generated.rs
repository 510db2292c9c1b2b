//! Messages from a grammar that knows the usual tricks, and then spoiled here and there.

#![expect(clippy::print_stdout, reason = "a run that fails must have said its seed")]

use std::cell::Cell;

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{RngSeed, TestCaseError, TestRunner},
};

use crate::{Others, ours, reading::Kind};

/// Runs of each property, unless `LB_DIFFERENTIAL_CASES` says otherwise.
const CASES: u32 = 3000;

const REQUEST_LINES: &[&str] = &[
    "POST / HTTP/1.1",
    "POST /a?b=c HTTP/1.1",
    "PUT http://h/p HTTP/1.1",
    "GET / HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "X-Y /%0d%0a HTTP/1.1",
    "POST / HTTP/1.0",
];

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 ",
    "HTTP/1.1 404 Not Found",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
];

/// Field lines that say nothing about the body.
const HARMLESS: &[&str] = &[
    "X: y",
    "X:",
    "x-long: 0123456789 abcdef; a=\"b, c\"",
    "Content-Type: text/event-stream",
    "Content-Type: application/json",
    "Connection: close",
    "Connection: keep-alive, X",
    "Connection: Content-Length",
    "Trailer: A",
    "TE: trailers",
    "Expect: 100-continue",
    "Stepflow-Instance-Id: a",
    "X-Forwarded-For: 192.0.2.9",
    "Content_Length: 7",
];

/// Lines about the body; `{n}` is the length that it has.
const FRAMING: &[&str] = &[
    "Content-Length: {n}",
    "content-length:{n}",
    "Content-Length: 00{n}",
    "Content-Length: 0",
    "Content-Length: +{n}",
    "Content-Length: {n}, {n}",
    "Content-Length: 1",
    "Content-Length : {n}",
    "Content-Length: {n}\r\n 0",
    "Content-Length:",
    "Transfer-Encoding: chunked",
    "TRANSFER-ENCODING:  Chunked ",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\r\n chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "Transfer-Encoding:\x0bchunked",
];

/// What may stand between `\n` and what is not the end of a line to everybody.
const LINE_ENDS: &[&str] = &["\n", "\r", "\r\r\n", "\r\n ", " \r\n", "\n\n"];

/// How a chunk of `{x}` octets may be announced.
const SIZES: &[&str] = &[
    "{x}",
    "0{x}",
    "{x};a=b",
    "{x};a=\"b;c\"",
    "{x} ",
    " {x}",
    "0x{x}",
    "+{x}",
    "{x}\t;a",
    "{x};\n",
    "000000000000000000{x}",
    "{x}g",
    "",
];

const CHUNK_ENDS: &[&str] = &["\n", "", "\r", "XX", "\r\n\r\n"];

const ENDS: &[&str] = &[
    "0\r\n\r\n",
    "00\r\n\r\n",
    "0;a\r\n\r\n",
    "0\r\nA: b\r\n\r\n",
    "0\r\nContent-Length: 9\r\nB: c\r\n\r\n",
    "0\r\n",
    "\r\n\r\n",
    "0\n\n",
    "0\r\n\n",
    "0\r\nA\r\n\r\n",
    "0\r\n b: c\r\n\r\n",
];

/// What comes behind the message.
const BEHIND: &[&str] = &[
    "",
    "GET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
    "\r\n\r\n",
    "0\r\n\r\n",
    "junk",
];

/// What spoils a message if it is put somewhere.
const PIECES: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b":",
    b",",
    b";",
    b"0",
    b"5",
    b"\r\n\r\n",
    b"\x0b",
    b"\xff",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
];

/// Mostly what `common` gives, now and then something of `rare`.
fn mostly(
    common: &'static str,
    rare: &'static [&'static str],
    weight: u32,
) -> impl Strategy<Value = &'static str> {
    prop_oneof![weight => Just(common), 1 => select(rare)]
}

fn body() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
    let octet = prop_oneof![4 => select(&b"0123456789abcdefG \r\n:;"[..]), 1 => any::<u8>()];
    let chunk = (vec(octet, 1..20), mostly("{x}", SIZES, 6), mostly("\r\n", CHUNK_ENDS, 12));
    (vec(chunk, 0..4), mostly("0\r\n\r\n", ENDS, 2)).prop_map(|(chunks, end)| {
        let mut chunked = Vec::new();
        for (content, size, chunk_end) in &chunks {
            chunked.extend(size.replace("{x}", &format!("{:x}", content.len())).bytes());
            chunked.extend_from_slice(b"\r\n");
            chunked.extend_from_slice(content);
            chunked.extend_from_slice(chunk_end.as_bytes());
        }
        chunked.extend_from_slice(end.as_bytes());
        (chunks.into_iter().map(|(content, ..)| content).collect(), chunked)
    })
}

/// How the framing is announced: rightly, or with lines that were drawn.
#[derive(Clone, Debug)]
enum Announced {
    Length,
    Chunked,
    With(Vec<&'static str>),
}

fn message(start: &'static [&'static str], host: bool) -> impl Strategy<Value = Vec<u8>> {
    let announced = prop_oneof![
        3 => Just(Announced::Length),
        4 => Just(Announced::Chunked),
        3 => vec(select(FRAMING), 0..3).prop_map(Announced::With),
    ];
    let lines = vec((select(HARMLESS), mostly("\r\n", LINE_ENDS, 60)), 0..4);
    let parts = (select(start), announced, lines, body(), any::<bool>(), select(BEHIND));
    parts.prop_map(move |(start, announced, lines, (contents, chunked), is_last, behind)| {
        let plain = contents.concat();
        let (framing, body) = match announced {
            Announced::Length => (vec!["Content-Length: {n}"], plain),
            Announced::Chunked => (vec!["Transfer-Encoding: chunked"], chunked),
            Announced::With(lines) if is_last => (lines, plain),
            Announced::With(lines) => (lines, chunked),
        };
        let length = body.len().to_string();
        let framing = framing.iter().map(|line| line.replace("{n}", &length) + "\r\n");
        let harmless = lines.iter().map(|(line, end)| format!("{line}{end}"));
        let mut head = format!("{start}\r\n");
        head.extend(host.then_some("Host: a\r\n"));
        match is_last {
            true => head.extend(harmless.chain(framing)),
            false => head.extend(framing.chain(harmless)),
        }
        [head.as_bytes(), b"\r\n", &body, behind.as_bytes()].concat()
    })
}

/// A change to some octets. Places count from the front, modulo the length.
#[derive(Clone, Debug)]
enum Spoil {
    Put(u16, &'static [u8]),
    Octet(u16, u8),
    Cut(u16, u8),
    Repeat(u16, u8),
}

impl Spoil {
    fn apply(&self, octets: &mut Vec<u8>) {
        let at = |place: u16, len: usize| usize::from(place) % (len + 1);
        let range = |place, n: u8, len| at(place, len)..(at(place, len) + usize::from(n)).min(len);
        match *self {
            Self::Put(place, piece) => {
                let at = at(place, octets.len());
                octets.splice(at..at, piece.iter().copied());
            }
            Self::Octet(place, octet) => {
                let at = at(place, octets.len());
                if let Some(changed) = octets.get_mut(at) {
                    *changed = octet;
                }
            }
            Self::Cut(place, n) => drop(octets.drain(range(place, n, octets.len()))),
            Self::Repeat(place, n) => {
                let range = range(place, n, octets.len());
                let repeated = octets[range.clone()].to_vec();
                octets.splice(range.start..range.start, repeated);
            }
        }
    }
}

fn spoiled(message: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let spoil = prop_oneof![
        4 => (any::<u16>(), select(PIECES)).prop_map(|(at, piece)| Spoil::Put(at, piece)),
        2 => (any::<u16>(), any::<u8>()).prop_map(|(at, octet)| Spoil::Octet(at, octet)),
        1 => (any::<u16>(), 1_u8..9).prop_map(|(at, n)| Spoil::Cut(at, n)),
        1 => (any::<u16>(), 1_u8..40).prop_map(|(at, n)| Spoil::Repeat(at, n)),
    ];
    let spoils = prop_oneof![1 => Just(Vec::new()), 2 => vec(spoil, 1..3)];
    (message, spoils).prop_map(|(mut octets, spoils)| {
        spoils.iter().for_each(|spoil| spoil.apply(&mut octets));
        octets
    })
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Draws messages and fails with the smallest to which somebody objects.
fn nobody_objects(kind: Kind, messages: impl Strategy<Value = Vec<u8>>) {
    let seed = number("LB_DIFFERENTIAL_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().expect("it is after 1970");
        u64::from(now.subsec_nanos()) ^ now.as_secs() << 30
    });
    println!("replay with LB_DIFFERENTIAL_SEED={seed}");
    let cases =
        number("LB_DIFFERENTIAL_CASES").map_or(CASES, |n| u32::try_from(n).expect("32 bits"));
    let mut runner = TestRunner::new(ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let others = Others::new();
    let (drawn, accepted) = (Cell::new(0_u32), Cell::new(0_u32));
    let outcome = runner.run(&messages, |octets| {
        drawn.set(drawn.get() + 1);
        accepted.set(accepted.get() + u32::from(ours::pass(kind, &octets).is_ok()));
        match others.objections(kind, &octets) {
            objections if objections.is_empty() => Ok(()),
            objections => {
                let shown = octets.escape_ascii();
                Err(TestCaseError::fail(format!("{shown}\n{}", objections.join("\n"))))
            }
        }
    });
    if let Err(error) = outcome {
        panic!("LB_DIFFERENTIAL_SEED={seed}: {error}");
    }
    // Messages that we refuse anyway prove little, and so do messages that everybody accepts.
    let (drawn, accepted) = (drawn.get(), accepted.get());
    println!("{accepted} of {drawn} accepted");
    assert!((drawn / 5..drawn * 4 / 5).contains(&accepted), "{accepted} of {drawn} accepted");
}

#[test]
fn a_request_that_we_accept_is_the_same_to_everybody() {
    nobody_objects(Kind::Request, spoiled(message(REQUEST_LINES, true)));
}

#[test]
fn a_response_that_we_accept_is_the_same_to_everybody() {
    nobody_objects(Kind::ResponseTo("GET"), spoiled(message(STATUS_LINES, false)));
}

#[test]
fn a_response_to_head_that_we_accept_is_the_same_to_everybody() {
    nobody_objects(Kind::ResponseTo("HEAD"), spoiled(message(STATUS_LINES, false)));
}

/// Without this, readers that refuse everything would agree with us as well.
#[test]
fn an_ordinary_message_is_accepted_by_everybody() {
    let others = Others::new();
    let ordinary: [(Kind, &[u8]); 6] = [
        (Kind::Request, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (Kind::Request, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"),
        (
            Kind::Request,
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (Kind::ResponseTo("GET"), b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        (
            Kind::ResponseTo("GET"),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ),
        (Kind::ResponseTo("HEAD"), b"HTTP/1.1 200 OK\r\n\r\n"),
    ];
    for (kind, octets) in ordinary {
        let forwarded = ours::pass(kind, octets).map(|passage| passage.forwarded);
        let forwarded =
            forwarded.unwrap_or_else(|why| panic!("{}: {why:?}", octets.escape_ascii()));
        for octets in [octets, &forwarded] {
            for (who, reading) in others.read(kind, octets) {
                let shown = octets.escape_ascii();
                assert!(reading.message().is_some(), "{who}: {reading:?} of {shown}");
            }
        }
    }
}
