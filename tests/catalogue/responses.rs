//! Rude backends: `responses.txt`, the responses of the corpus, and octets that nobody asked for.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::{
    notation::{self, OF_RESPONSES},
    rows::{self, Row},
    stage::{Stage, address, play_all},
    support::{
        Backend, Client, PATIENCE, Peer,
        message::{Framing, Head},
        show,
    },
};

fn table() -> Vec<Row> {
    rows::rows("responses.txt", include_str!("responses.txt"), &OF_RESPONSES)
}

pub(crate) fn names() -> Vec<String> {
    let named = POISONS.iter().map(|(name, _)| format!("poison: {name}"));
    table().into_iter().map(|row| row.name).chain(named).collect()
}

/// What a backend does with one request.
struct Part {
    octets: Vec<u8>,
    /// Sent when the client has got what was sent before.
    later: Option<Vec<u8>>,
    /// Sent likewise, when no request is outstanding any more.
    stray: Option<Vec<u8>>,
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    StayOpen,
    Close,
    Reset,
}

/// A backend that answers `/N` with its part N, and anything else with the number of the
/// connection.
struct Company {
    backend: Backend,
    stage: Stage,
    /// Says that what was sent has arrived.
    cue: Sender<()>,
    /// Numbers of the connections on which parts were played.
    played: Receiver<usize>,
    /// Says that stray octets have arrived at the balancer, or the first of them.
    strayed: Receiver<()>,
    failures: Vec<String>,
}

impl Company {
    fn new(parts: Vec<Part>) -> Self {
        let (cue, cued) = unbounded();
        let (playing, played) = unbounded();
        let (straying, strayed) = unbounded();
        let parts = Arc::new(parts);
        let backend = Backend::scripted(move |peer| {
            let target = peer.head.target();
            let number = target.strip_prefix('/').and_then(|number| number.parse::<usize>().ok());
            match number {
                None => peer.answer(peer.connection.to_string()),
                Some(number) => {
                    // The test has ended if it takes no more.
                    let _ = playing.send(peer.connection);
                    play_part(peer, &parts[number], &cued, &straying);
                }
            }
        });
        let stage = Stage::before(&backend);
        Self { backend, stage, cue, played, strayed, failures: Vec::new() }
    }

    /// Asks for a part, and waits until the backend has been asked.
    fn ask(&mut self, method: &str, number: usize) -> (Client, usize) {
        let mut client = self.stage.connect();
        // The last row may have been tried again.
        self.played.try_iter().for_each(drop);
        client.send(format!("{method} /{number} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let connection = self.played.recv_timeout(PATIENCE).expect("the backend is asked");
        (client, connection)
    }

    #[track_caller]
    fn has_failed(&mut self, client: &Client, label: &str) {
        self.stage.wait_for_failure(address(client), label);
        self.failures.push(label.to_owned());
    }

    /// The client's connection goes on; gives the connection to the backend that serves it.
    #[track_caller]
    fn goes_on(&self, place: &str, client: &mut Client) -> usize {
        let response = client.get("/again");
        assert_eq!(response.status(), 200, "{place}: {response:?}");
        response.text().parse().unwrap_or_else(|_| panic!("{place}: {response:?}"))
    }
}

fn play_part(peer: &mut Peer, part: &Part, cued: &Receiver<()>, straying: &Sender<()>) {
    // The balancer may leave in the middle of it.
    let _ = peer.try_send(&part.octets);
    if let Some(later) = &part.later {
        cued.recv_timeout(PATIENCE).expect("the test gives the cue");
        let _ = peer.try_send(later);
    }
    if let Some(stray) = &part.stray {
        cued.recv_timeout(PATIENCE).expect("the test gives the cue");
        // More than that may not have room before somebody reads it.
        let (first, rest) = stray.split_at(stray.len().min(1000));
        peer.send(first);
        peer.wait_until_received();
        let _ = straying.send(());
        let _ = peer.try_send(rest);
    }
    match part.then {
        Then::StayOpen => {}
        Then::Close => peer.close(),
        Then::Reset => peer.reset(),
    }
}

/// The final head and the body, and every octet of the interim ones before it.
fn response_to(client: &mut Client, method: &str) -> (Head, Vec<u8>, Vec<u8>) {
    let mut octets = Vec::new();
    loop {
        let head = client.head();
        octets.extend_from_slice(&head.octets);
        if head.status() < 200 {
            continue;
        }
        let framing = match head.framing() {
            _ if method == "HEAD" || matches!(head.status(), 204 | 304) => Framing::Length(0),
            Some(framing) => framing,
            None => Framing::UntilClose,
        };
        let (content, _) = client.body(framing);
        return (head, content, octets);
    }
}

/// `[HEAD ] [then close |then reset ]WORD REST`.
struct Verdict<'a> {
    method: &'static str,
    then: Then,
    word: &'a str,
    rest: &'a str,
}

fn verdict(text: &str) -> Verdict<'_> {
    let (method, text) = match text.strip_prefix("HEAD ") {
        Some(text) => ("HEAD", text),
        None => ("GET", text),
    };
    let (then, text) = match (text.strip_prefix("then close "), text.strip_prefix("then reset ")) {
        (Some(text), _) => (Then::Close, text),
        (_, Some(text)) => (Then::Reset, text),
        _ => (Then::StayOpen, text),
    };
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    Verdict { method, then, word, rest }
}

/// A 502 with this label comes instead, the client goes on, and the backend's connection does not.
#[track_caller]
fn refused(company: &mut Company, place: &str, method: &str, number: usize, label: &str) {
    let (mut client, used) = company.ask(method, number);
    let (head, content, octets) = response_to(&mut client, method);
    assert_eq!(head.status(), 502, "{place}: {head:?}");
    if method != "HEAD" {
        let content = String::from_utf8(content).unwrap();
        assert_eq!(content.split(':').next(), Some(label), "{place}");
    }
    for what in [&b"poisoned"[..], b"Set-Cookie"] {
        assert!(!octets.windows(what.len()).any(|w| w == what), "{place}: {}", show(&octets));
    }
    company.has_failed(&client, label);
    assert_ne!(company.goes_on(place, &mut client), used, "{place}");
}

/// The client gets this content. Gives the octets of the heads.
#[track_caller]
fn relayed(
    company: &mut Company,
    place: &str,
    method: &str,
    number: usize,
    content: &[u8],
    is_kept: bool,
) -> Vec<u8> {
    let (mut client, used) = company.ask(method, number);
    let (head, got, mut octets) = response_to(&mut client, method);
    assert_ne!(head.status(), 502, "{place}: {head:?}{}", show(&got));
    assert_eq!(show(&got), show(content), "{place}");
    octets.extend_from_slice(&got);
    let next = company.goes_on(place, &mut client);
    assert_eq!(next == used, is_kept, "{place}: connection {used}, then {next}");
    octets
}

/// The backend ends in the middle: a 502, or a part that can be told from the whole.
#[track_caller]
fn unfinished(company: &mut Company, place: &str, method: &str, number: usize) {
    let (mut client, used) = company.ask(method, number);
    let head = loop {
        match client.head() {
            head if head.status() >= 200 => break head,
            _ => {}
        }
    };
    if head.status() == 502 {
        let Some(Framing::Length(n)) = head.framing() else { panic!("{place}: {head:?}") };
        let content = String::from_utf8(client.take(n)).unwrap();
        let label = content.split(':').next().unwrap();
        let labels = ["backend_closed", "response_head", "response_truncated"];
        assert!(labels.contains(&label), "{place}: {content}");
        company.has_failed(&client, label);
        assert_ne!(company.goes_on(place, &mut client), used, "{place}");
    } else {
        let (rest, _) = client.rest();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{place}: an end that nobody sent");
        company.has_failed(&client, "response_truncated");
    }
}

const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
const FIRST_CHUNK: &[u8] = b"2\r\nab\r\n";

/// The parts of a row: one, or two if its octets stand in a chunked body.
fn parts(row: &Row) -> Vec<Part> {
    let Verdict { word, then, .. } = verdict(&row.verdict);
    if !matches!(word, "broken" | "late") {
        return vec![Part { octets: row.octets.clone(), later: None, stray: None, then }];
    }
    let at_once = Part { octets: [CHUNKED, &row.octets].concat(), later: None, stray: None, then };
    let before = [CHUNKED, FIRST_CHUNK].concat();
    vec![at_once, Part { octets: before, later: Some(row.octets.clone()), stray: None, then }]
}

#[track_caller]
fn play(company: &mut Company, row: &Row, number: usize) {
    let place = &row.place;
    let Verdict { method, word, rest, .. } = verdict(&row.verdict);
    match word {
        "refused" => refused(company, place, method, number, rest),
        "kept" | "dropped" => {
            let content = notation::octets(place, rest, &[]);
            let got = relayed(company, place, method, number, &content, word == "kept");
            row.conditions.iter().for_each(|condition| condition.check(place, &got));
        }
        "unfinished" => unfinished(company, place, method, number),
        "broken" | "late" => {
            if word == "broken" {
                refused(company, place, method, number, "response_body");
            }
            let (mut client, used) = company.ask(method, number + 1);
            assert_eq!(client.head().status(), 200, "{place}");
            assert_eq!(client.chunk(), b"ab", "{place}");
            company.cue.send(()).unwrap();
            // What is passed on behind it is no end of a body, and nobody else's response.
            let (rest, _) = client.rest();
            let is_end = rest.windows(5).any(|w| w == b"0\r\n\r\n");
            let is_poisoned = rest.windows(8).any(|w| w == b"poisoned");
            assert!(!is_end && !is_poisoned, "{place}: {}", show(&rest));
            company.has_failed(&client, "response_body");
            let mut client = company.stage.connect();
            assert_ne!(company.goes_on(place, &mut client), used, "{place}");
        }
        _ => panic!("{place}: {word} is no verdict"),
    }
}

#[test]
fn every_response_of_the_catalogue_becomes_what_it_says() {
    let rows = table();
    let mut numbers = Vec::new();
    let mut all = Vec::new();
    for row in &rows {
        numbers.push(all.len());
        all.extend(parts(row));
    }
    let mut company = Company::new(all);
    play_all(rows.iter().zip(numbers), |(row, number)| play(&mut company, row, *number));
    company.stage.assert_counted(&company.failures);
    println!("{} responses", rows.len());
}

/// What the codec makes of the corpus is what the program makes of it.
#[test]
fn every_response_of_the_corpus_gets_its_verdict_on_the_wire() {
    let entries: Vec<_> = rows::corpus().into_iter().filter(|entry| !entry.is_request).collect();
    let part = |octets: &[u8]| Part {
        octets: octets.to_vec(),
        later: None,
        stray: None,
        then: Then::Close,
    };
    let mut company = Company::new(entries.iter().map(|entry| part(&entry.octets)).collect());
    play_all(entries.iter().enumerate(), |(number, entry)| {
        let number = *number;
        let place = &entry.place;
        let Verdict { method, word, rest, .. } = verdict(&entry.verdict);
        match word {
            "refused" => refused(&mut company, place, method, number, rest),
            "read" => {
                let content = notation::octets(place, rest, &[]);
                relayed(&mut company, place, method, number, &content, false);
            }
            "unfinished" => unfinished(&mut company, place, method, number),
            _ => panic!("{place}: {word}"),
        }
    });
    company.stage.assert_counted(&company.failures);
    println!("{} responses of the corpus", entries.len());
    assert!(entries.len() > 60, "only {}", entries.len());
}

/// What a backend sends on an idle connection, though nobody asks.
const POISONS: [(&str, &str); 9] = [
    ("a response", "{N}"),
    ("a 408, as some servers say goodbye", "HTTP/1.1 408 Request Timeout\\r\\n\\r\\n"),
    ("a 100", "HTTP/1.1 100 Continue\\r\\n\\r\\n"),
    ("a 103", "HTTP/1.1 103 Early Hints\\r\\n\\r\\n"),
    ("one octet", "H"),
    ("an empty line", "\\r\\n"),
    ("a part of a head", "{R}Content-Le"),
    ("a TLS alert", "\\x15\\x03\\x03\\x00\\x02\\x01\\x00"),
    ("a million octets", "{x*1000000}"),
];

/// RFC 9112 §9.2: what comes where no request is outstanding is no response.
#[test]
fn octets_that_nobody_asked_for_never_reach_a_client() {
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let part = |(name, text): &(&str, &str)| Part {
        octets: ok.to_vec(),
        later: None,
        stray: Some(notation::octets(name, text, &OF_RESPONSES)),
        then: Then::StayOpen,
    };
    let mut company = Company::new(POISONS.iter().map(part).collect());
    for (number, (name, _)) in POISONS.iter().enumerate() {
        let (mut client, used) = company.ask("GET", number);
        let (_, content, _) = response_to(&mut client, "GET");
        assert_eq!(content, b"ok", "{name}");
        company.stage.wait_for_idle(1);
        company.cue.send(()).unwrap();
        company.strayed.recv_timeout(PATIENCE).expect("the octets have come");
        assert_ne!(company.goes_on(name, &mut client), used, "{name}");
        assert_eq!(company.stage.poisoned(), number as u64 + 1, "{name}");
        drop(client);
        // The next row begins with no connection but this one, which is closed by its part.
    }
    company.stage.assert_counted(&[]);
    assert_eq!(company.backend.requests(), 2 * POISONS.len());
}
