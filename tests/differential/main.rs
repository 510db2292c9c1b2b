//! Our reading of HTTP/1.1 against everybody else's.
//!
//! The statement: *we may refuse more, but wherever we and another reader both accept a message,
//! both see the same start line, the same fields, the same content and the same start of the next
//! message*; and *what we forward is exactly one message to everybody who reads it*. The two
//! together leave nothing to smuggle a request in.
//!
//! The other readers are hyper's server and client, monoio-http's decoders, llhttp and h11 in
//! processes of their own ([`foreign`]), and 48 invented ones that forgive different mistakes
//! ([`personalities`]). The octets come from a table of classic
//! attacks (`tests/corpus`) and from a generator that writes messages and then spoils them. What
//! monoio-http is known to misread is listed in [`known`], a test each.
//!
//! `LB_DIFFERENTIAL_SEED` repeats a generated run, `LB_DIFFERENTIAL_CASES` makes it longer.

mod corpus;
mod dates;
mod foreign;
mod generated;
mod hyper_reader;
mod known;
mod monoio_http_reader;
mod ours;
mod personalities;
mod reading;

#[path = "../support/notation.rs"]
mod notation;

use std::cell::RefCell;

use foreign::Foreign;
use hyper_reader::Hyper;
use personalities::Personality;
use reading::{Kind, Message, Reading, difference};

/// Everybody but us.
struct Others {
    hyper: Hyper,
    personalities: Vec<Personality>,
    foreign: RefCell<Vec<Foreign>>,
}

impl Others {
    fn new() -> Self {
        Self {
            hyper: Hyper::new(),
            personalities: personalities::all(),
            foreign: RefCell::new(Foreign::all()),
        }
    }

    /// What each makes of the octets, by its name.
    fn read(&self, kind: Kind, octets: &[u8]) -> Vec<(String, Reading)> {
        let mut foreign = self.foreign.borrow_mut();
        foreign.iter_mut().for_each(|reader| reader.ask(kind, octets));
        let mut readings = vec![
            ("hyper".to_owned(), self.hyper.read(kind, octets)),
            ("monoio-http".to_owned(), monoio_http_reader::read(kind, octets)),
        ];
        readings
            .extend(self.personalities.iter().map(|p| (format!("{p:?}"), p.read(kind, octets))));
        readings.extend(foreign.iter_mut().flat_map(Foreign::answer));
        readings
    }

    /// Where others differ from our reading of the octets, or of what we would forward.
    fn objections(&self, kind: Kind, octets: &[u8]) -> Vec<String> {
        let Ok(passage) = ours::pass(kind, octets) else { return Vec::new() };
        let ours = Reading::Whole(passage.message.clone());
        let mut objections = Vec::new();
        for (who, theirs) in self.read(kind, octets) {
            if is_excused(&who, kind, octets, &passage.message) {
                continue;
            }
            objections.extend(difference(&ours, &theirs).map(|what| format!("{who}: {what}")));
        }
        // Read with something behind it, so that a reader that goes too far is seen to.
        let behind = match kind {
            Kind::Request => &b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            Kind::ResponseTo(_) => b"HTTP/1.1 299 Behind\r\nContent-Length: 0\r\n\r\n",
        };
        let sent = [&passage.forwarded[..], behind].concat();
        for (who, theirs) in self.read(kind, &sent) {
            let theirs = match &theirs {
                Reading::Whole(theirs) => theirs,
                Reading::Refused(why) if !must_read(&who, why) => continue,
                Reading::Unfinished if !must_read(&who, "") => continue,
                Reading::Unfinished | Reading::Refused(_) => {
                    objections.push(format!("{who}: {theirs:?} of what is forwarded"));
                    continue;
                }
            };
            if is_excused(&who, kind, &sent, theirs) {
                continue;
            }
            let (want, got) = (passage.forwarded.len(), theirs.end);
            if want != got {
                objections.push(format!("{who}: forwarded {want} octets, which end at {got}"));
            } else if passage.message.content != theirs.content {
                objections.push(format!("{who}: other content in what is forwarded"));
            }
        }
        objections
    }
}

/// Whether this reader has to read what we forward: it may not refuse it but for a reason that says
/// nothing about where a message ends. The others refuse much that is allowed.
fn must_read(who: &str, why: &str) -> bool {
    matches!(who, "llhttp (strict)" | "h11") && !known::is_harmless_refusal(why)
}

/// Whether a difference is one of those in [`known`] that concern messages which we accept.
fn is_excused(who: &str, kind: Kind, octets: &[u8], message: &Message) -> bool {
    let has = |name: &str| message.fields.contains_key(name);
    let is_delimited = has("content-length") || has("transfer-encoding");
    match (kind, message.status()) {
        // It overlooks a coding beside a tab, but in requests when it is strict; it never gets one
        // from us.
        (Kind::ResponseTo(_), _) if who.starts_with("llhttp") => {
            known::has_tab_beside_coding(octets)
        }
        (Kind::Request, _) if who.starts_with("llhttp (lenient") => {
            known::has_tab_beside_coding(octets)
        }
        (Kind::ResponseTo(method), Some(status)) if who == "monoio-http" => {
            // It reads a body where there is none, and none that ends with the connection.
            method == "HEAD" || matches!(status, 204 | 304) || !is_delimited
        }
        _ => false,
    }
}
