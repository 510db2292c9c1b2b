//! The table of attacks: `tests/corpus/requests.txt` and `responses.txt`, which explain themselves.

use crate::{
    Others, notation,
    ours::{self, Stopped},
    reading::{Kind, difference},
};

struct Entry {
    /// File and line.
    place: String,
    kind: Kind,
    verdict: Verdict,
    octets: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Refused(String),
    Unfinished,
    Read { content: Vec<u8>, end: usize },
}

const FILES: [(&str, &str); 2] = [
    ("requests.txt", include_str!("../corpus/requests.txt")),
    ("responses.txt", include_str!("../corpus/responses.txt")),
];

fn entries() -> Vec<Entry> {
    let lines = FILES.iter().flat_map(|(file, text)| {
        let numbered = text.lines().enumerate();
        numbered.map(move |(index, line)| (*file, format!("{file}:{}", index + 1), line))
    });
    let lines = lines.filter(|(_, _, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(file, place, line)| entry(file, place, line)).collect()
}

fn entry(file: &str, place: String, line: &str) -> Entry {
    let (verdict, octets) = line.split_once(":: ").unwrap_or_else(|| panic!("{place}: no `:: `"));
    let (kind, verdict) = match (file, verdict.strip_prefix("HEAD ")) {
        ("requests.txt", _) => (Kind::Request, verdict),
        (_, None) => (Kind::ResponseTo("GET"), verdict),
        (_, Some(rest)) => (Kind::ResponseTo("HEAD"), rest),
    };
    let (head, next) = match octets.split_once('|') {
        Some((head, next)) => (unescape(&place, kind, head), unescape(&place, kind, next)),
        None => (unescape(&place, kind, octets), Vec::new()),
    };
    let verdict = match verdict.trim_end().split_once(' ') {
        Some(("refused", label)) => Verdict::Refused(label.to_owned()),
        Some(("read", content)) => {
            Verdict::Read { content: unescape(&place, kind, content), end: head.len() }
        }
        None if verdict.starts_with("read") => {
            Verdict::Read { content: Vec::new(), end: head.len() }
        }
        None if verdict.starts_with("unfinished") => Verdict::Unfinished,
        _ => panic!("{place}: {verdict:?} is no verdict"),
    };
    let has_mark = octets.contains('|');
    assert_eq!(matches!(verdict, Verdict::Read { .. }), has_mark, "{place}: `|` is for `read`");
    Entry { place, kind, verdict, octets: [head, next].concat() }
}

fn unescape(place: &str, kind: Kind, text: &str) -> Vec<u8> {
    match kind {
        Kind::Request => notation::octets(place, text, &notation::OF_REQUESTS),
        Kind::ResponseTo(_) => notation::octets(place, text, &notation::OF_RESPONSES),
    }
}

fn ours(entry: &Entry) -> Verdict {
    match ours::pass(entry.kind, &entry.octets) {
        Ok(passage) => Verdict::Read { content: passage.message.content, end: passage.message.end },
        Err(Stopped::Unfinished) => Verdict::Unfinished,
        Err(Stopped::Refused(failure)) => Verdict::Refused(failure.label().to_owned()),
    }
}

#[test]
fn every_entry_gets_its_verdict() {
    let entries = entries();
    assert!(entries.len() >= 150, "only {} entries", entries.len());
    let wrong: Vec<_> = entries
        .iter()
        .map(|entry| (entry, ours(entry)))
        .filter(|(entry, got)| *got != entry.verdict)
        .map(|(entry, got)| format!("{}: {got:?}, not {:?}", entry.place, entry.verdict))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nobody_reads_what_we_accept_differently() {
    let others = Others::new();
    let objections: Vec<_> = entries()
        .iter()
        .flat_map(|entry| {
            let objections = others.objections(entry.kind, &entry.octets);
            objections.into_iter().map(|what| format!("{}: {what}", entry.place))
        })
        .collect();
    assert!(objections.is_empty(), "\n{}", objections.join("\n"));
}

/// Attacks that nobody falls for would prove nothing.
#[test]
fn others_differ_about_most_of_what_we_refuse() {
    let others = Others::new();
    let (mut refused, mut accepted_by_some, mut contested) = (0, 0, 0);
    for entry in entries().iter().filter(|e| matches!(e.verdict, Verdict::Refused(_))) {
        refused += 1;
        let readings = others.read(entry.kind, &entry.octets);
        let whole: Vec<_> = readings.iter().filter(|(_, r)| r.message().is_some()).collect();
        accepted_by_some += usize::from(!whole.is_empty());
        let first = whole.first();
        contested += usize::from(whole.iter().any(|(_, reading)| {
            first.is_some_and(|(_, first)| difference(first, reading).is_some())
        }));
    }
    println!("{refused} refused, {accepted_by_some} accepted by some, {contested} contested");
    assert!(accepted_by_some * 10 >= refused * 8, "{accepted_by_some} of {refused}");
    assert!(contested * 3 >= refused, "{contested} of {refused}");
}
