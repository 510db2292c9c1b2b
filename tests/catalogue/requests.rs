//! Rude clients: `requests.txt`, and the requests of the corpus.

use crossbeam_channel::{Receiver, unbounded};

use crate::{
    notation::{self, OF_REQUESTS},
    rows::{self, Row},
    stage::{Stage, address, play_all},
    support::{
        Backend, Client, End, PATIENCE,
        message::{Framing, Head},
        show,
    },
};

fn table() -> Vec<Row> {
    rows::rows("requests.txt", include_str!("requests.txt"), &OF_REQUESTS)
}

pub(crate) fn names() -> Vec<String> {
    table().into_iter().map(|row| row.name).collect()
}

/// A request as a backend read it.
#[derive(Debug)]
struct Arrived {
    head: Head,
    content: Vec<u8>,
}

impl Arrived {
    fn told(&self) -> Vec<u8> {
        tell(&self.head.method(), &self.head.target(), &self.content)
    }
}

/// `METHOD TARGET[ CONTENT]`.
fn tell(method: &str, target: &str, content: &[u8]) -> Vec<u8> {
    let mut told = format!("{method} {target}").into_bytes();
    if !content.is_empty() {
        told.push(b' ');
        told.extend_from_slice(content);
    }
    told
}

/// A backend that reads each request strictly and says what it read.
fn telling() -> (Backend, Receiver<Arrived>) {
    let (sender, arrivals) = unbounded();
    let backend = Backend::scripted(move |peer| {
        let (content, _) = peer.read_body();
        let arrived = Arrived { head: peer.head.clone(), content };
        let told = arrived.told();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", told.len());
        let mut answer = head.into_bytes();
        if arrived.head.method() != "HEAD" {
            answer.extend_from_slice(&told);
        }
        // The test has ended if it takes no more.
        let _ = sender.send(arrived);
        let _ = peer.try_send(answer);
    });
    (backend, arrivals)
}

/// A backend that takes whatever comes until the balancer leaves, and answers nothing.
fn swallowing() -> (Backend, Receiver<(Head, Vec<u8>)>) {
    let (sender, swallowed) = unbounded();
    let backend = Backend::scripted(move |peer| {
        let (rest, _) = peer.until_gone();
        let _ = sender.send((peer.head.clone(), rest));
        peer.close();
    });
    (backend, swallowed)
}

/// Whether these octets behind a head are a whole body, read strictly.
fn is_whole(head: &Head, mut octets: &[u8]) -> bool {
    match head.framing() {
        None => return true,
        Some(Framing::Length(n)) => return octets.len() >= n,
        Some(Framing::Chunked) => {}
        Some(Framing::UntilClose) => unreachable!("a request has an end"),
    }
    let line = |octets: &[u8]| octets.windows(2).position(|w| w == b"\r\n");
    loop {
        let Some(end) = line(octets) else { return false };
        let size = octets[..end].split(|b| *b == b';').next().unwrap_or_default();
        let size = std::str::from_utf8(size).ok().and_then(|s| usize::from_str_radix(s, 16).ok());
        let Some(size) = size else { return false };
        octets = &octets[end + 2..];
        if size == 0 {
            return octets.starts_with(b"\r\n") || octets.windows(4).any(|w| w == b"\r\n\r\n");
        }
        let Some(rest) = octets.get(size..).and_then(|rest| rest.strip_prefix(b"\r\n")) else {
            return false;
        };
        octets = rest;
    }
}

/// Clients are strangers here, though they are near.
fn stage_before(backend: &Backend) -> Stage {
    Stage::with(backend, &[("trusted_proxies", "none")])
}

/// The whole stage: what is refused or served, and what breaks off, are seen by different backends.
struct Theatre {
    telling: Stage,
    arrivals: Receiver<Arrived>,
    swallowing: Stage,
    swallowed: Receiver<(Head, Vec<u8>)>,
    swallower: Backend,
    _teller: Backend,
    /// Of what was swallowed, so much has been looked at.
    looked_at: usize,
    told_failures: Vec<String>,
    swallowed_failures: Vec<String>,
}

impl Theatre {
    fn new() -> Self {
        let (teller, arrivals) = telling();
        let (swallower, swallowed) = swallowing();
        Self {
            telling: stage_before(&teller),
            arrivals,
            swallowing: stage_before(&swallower),
            swallowed,
            swallower,
            _teller: teller,
            looked_at: 0,
            told_failures: Vec::new(),
            swallowed_failures: Vec::new(),
        }
    }

    /// The octets are answered so, and the connection ends, without an octet for the backend.
    #[track_caller]
    fn refused(&mut self, place: &str, octets: &[u8], status: Option<u16>, label: &str) {
        let mut client = self.telling.connect();
        // It may be refused before all of it has been sent.
        let _ = client.try_send(octets);
        let response = client.response();
        let got = (status.map(|_| response.status()), response.label());
        assert_eq!(got, (status, label.to_owned()), "{place}");
        assert_eq!(response.head.field("Connection").as_deref(), Some("close"), "{place}");
        assert_eq!(client.expect_end(), End::Closed, "{place}");
        self.telling.wait_for_failure(address(&client), label);
        self.told_failures.push(label.to_owned());
        assert!(self.arrivals.is_empty(), "{place}: {:?}", self.arrivals.try_recv());
    }

    /// The same, but the connection goes on.
    #[track_caller]
    fn answered(&mut self, place: &str, octets: &[u8], status: u16, label: &str) {
        let mut client = self.telling.connect();
        let response = client.ask(octets);
        assert_eq!((response.status(), response.label()), (status, label.to_owned()), "{place}");
        self.telling.wait_for_failure(address(&client), label);
        self.told_failures.push(label.to_owned());
        assert!(self.arrivals.is_empty(), "{place}: {:?}", self.arrivals.try_recv());
        self.goes_on(place, &mut client);
    }

    /// These requests arrive, in this order, and each is answered. Gives what arrived.
    #[track_caller]
    fn served(&mut self, place: &str, octets: &[u8], requests: &[Vec<u8>]) -> (Client, Vec<u8>) {
        let mut client = self.telling.connect();
        client.send(octets);
        let mut arrived = Vec::new();
        for want in requests {
            let got = self.arrivals.recv_timeout(PATIENCE);
            let got = got.unwrap_or_else(|_| panic!("{place}: {} never came", show(want)));
            assert_eq!(show(&got.told()), show(want), "{place}");
            let response = client.response_to(&got.head.method());
            assert_eq!(response.status(), 200, "{place}: {response:?}");
            if got.head.method() != "HEAD" {
                assert_eq!(show(&response.body), show(want), "{place}");
            }
            arrived.extend_from_slice(&got.head.octets);
            arrived.extend_from_slice(&got.content);
        }
        (client, arrived)
    }

    #[track_caller]
    fn goes_on(&mut self, place: &str, client: &mut Client) {
        assert_eq!(client.get("/again").text(), "GET /again", "{place}");
        let again = self.arrivals.recv_timeout(PATIENCE).unwrap();
        // Anything else that had come would be in front of it.
        assert_eq!(again.told(), b"GET /again", "{place}");
        assert!(self.arrivals.is_empty(), "{place}: {:?}", self.arrivals.try_recv());
    }

    /// The head goes on, then the body turns out to be wrong: it is answered so, and both sides
    /// end.
    #[track_caller]
    fn broken(&mut self, place: &str, octets: &[u8], status: u16, label: &str) {
        let head_end = octets.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
        let (head, body) = octets.split_at(head_end);
        // Once with the head gone before, and once in one piece.
        for is_late in [true, false] {
            let mut client = self.swallowing.connect();
            if is_late {
                // Earlier ones that came in one piece.
                while self.looked_at < self.swallower.requests() {
                    self.nothing_whole(place);
                }
                let before = self.swallower.requests();
                client.send(head);
                self.swallower.wait_for_requests(before + 1);
                let _ = client.try_send(body);
            } else {
                let _ = client.try_send(octets);
            }
            let response = client.response();
            let got = (response.status(), response.label());
            assert_eq!(got, (status, label.to_owned()), "{place}");
            assert_eq!(client.expect_end(), End::Closed, "{place}");
            self.swallowing.wait_for_failure(address(&client), label);
            self.swallowed_failures.push(label.to_owned());
            if is_late {
                let rest = self.nothing_whole(place);
                let is_smuggled = rest.windows(8).any(|w| w == b"smuggled");
                assert!(!is_smuggled, "{place}: {}", show(&rest));
            }
        }
    }

    /// The client stops in the middle: nobody answers it.
    #[track_caller]
    fn cut(&mut self, octets: &[u8], label: Option<&str>) {
        let mut client = self.swallowing.connect();
        client.send(octets);
        client.finish_sending();
        client.expect_end();
        let is_in_head = !octets.windows(4).any(|w| w == b"\r\n\r\n");
        let label = label.unwrap_or(match is_in_head {
            true => "head_truncated",
            false => "request_truncated",
        });
        self.swallowing.wait_for_failure(address(&client), label);
        self.swallowed_failures.push(label.to_owned());
    }

    /// What the two balancers have counted is what was expected, and whatever went on was no
    /// message.
    #[track_caller]
    fn finish(mut self) {
        self.telling.assert_counted(&self.told_failures);
        self.swallowing.assert_counted(&self.swallowed_failures);
        while self.looked_at < self.swallower.requests() {
            self.nothing_whole("in one piece");
        }
    }

    /// What was swallowed next is no whole request. Gives what came behind its head.
    #[track_caller]
    fn nothing_whole(&mut self, place: &str) -> Vec<u8> {
        self.looked_at += 1;
        let (head, rest) = self.swallowed.recv_timeout(PATIENCE).expect("the balancer has left");
        let whole = is_whole(&head, &rest);
        assert!(!whole, "{place}: a whole request came of it: {head:?}{}", show(&rest));
        rest
    }
}

fn play(theatre: &mut Theatre, row: &Row) {
    let place = &row.place;
    let (word, rest) = row.verdict.split_once(' ').unwrap_or((&row.verdict, ""));
    let answer = || {
        let (status, label) = rest.split_once(' ').expect("a status and a label");
        (status.parse().expect("a status"), label)
    };
    match word {
        "refused" => {
            let (status, label) = answer();
            theatre.refused(place, &row.octets, Some(status), label);
        }
        "answered" => {
            let (status, label) = answer();
            theatre.answered(place, &row.octets, status, label);
        }
        "served" | "last" | "spoilt" => {
            let (label, rest) = match word {
                "spoilt" => rest.split_once(' ').expect("a label and requests"),
                _ => ("", rest),
            };
            let requests: Vec<_> =
                rest.split("; ").map(|text| notation::octets(place, text, &[])).collect();
            let (mut client, arrived) = theatre.served(place, &row.octets, &requests);
            row.conditions.iter().for_each(|condition| condition.check(place, &arrived));
            match word {
                "served" => theatre.goes_on(place, &mut client),
                "spoilt" => {
                    assert_eq!(client.response().label(), label, "{place}");
                    client.expect_end();
                    theatre.told_failures.push(label.to_owned());
                }
                _ => drop(client.rest()),
            }
            assert!(theatre.arrivals.is_empty(), "{place}: {:?}", theatre.arrivals.try_recv());
        }
        "broken" => {
            let (status, label) = answer();
            theatre.broken(place, &row.octets, status, label);
        }
        "cut" => theatre.cut(&row.octets, Some(rest)),
        _ => panic!("{place}: {word} is no verdict"),
    }
}

#[test]
fn every_request_of_the_catalogue_becomes_what_it_says() {
    let (mut theatre, rows) = (Theatre::new(), table());
    play_all(&rows, |row| play(&mut theatre, row));
    theatre.finish();
    println!("{} requests", rows.len());
}

/// What the codec makes of the corpus is what the program makes of it.
#[test]
fn every_request_of_the_corpus_gets_its_verdict_on_the_wire() {
    let mut theatre = Theatre::new();
    let mut played = 0;
    let entries = rows::corpus().into_iter().filter(|entry| entry.is_request);
    play_all(entries, |entry| {
        played += 1;
        let (place, octets) = (&entry.place, &entry.octets);
        let (word, rest) = entry.verdict.split_once(' ').unwrap_or((&entry.verdict, ""));
        match (word, rest) {
            ("refused", "request_body") => theatre.broken(place, octets, 400, "request_body"),
            ("refused", label) => theatre.refused(place, octets, None, label),
            ("unfinished", _) => theatre.cut(octets, None),
            ("read", content) => {
                let start = octets.strip_prefix(b"\r\n").unwrap_or(octets);
                let mut words = start.split(|b| *b == b' ').map(String::from_utf8_lossy);
                let (method, target) = (words.next().unwrap(), words.next().unwrap());
                let target = target.strip_prefix("http://b").unwrap_or(&target);
                let want = tell(&method, target, &notation::octets(place, content, &[]));
                drop(theatre.served(place, &octets[..entry.end], &[want]));
            }
            (other, _) => panic!("{place}: {other}"),
        }
    });
    theatre.finish();
    println!("{played} requests of the corpus");
    assert!(played > 200, "only {played}");
}
