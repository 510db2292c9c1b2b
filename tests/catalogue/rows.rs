//! Reading the tables, and the corpus.

use crate::notation::{self, OF_REQUESTS, OF_RESPONSES};

/// A line of a table: `NAME :: VERDICT :: OCTETS [:: CONDITION]...`.
pub(crate) struct Row {
    /// File, line and name.
    pub(crate) place: String,
    pub(crate) name: String,
    pub(crate) verdict: String,
    pub(crate) octets: Vec<u8>,
    /// `has TEXT` and `lacks TEXT`.
    pub(crate) conditions: Vec<Condition>,
}

/// What octets that arrived have to have.
pub(crate) struct Condition {
    is_wanted: bool,
    text: Vec<u8>,
}

impl Condition {
    pub(crate) fn check(&self, place: &str, arrived: &[u8]) {
        let found = arrived.windows(self.text.len()).any(|window| window == self.text);
        let text = self.text.escape_ascii();
        let arrived = arrived.escape_ascii();
        assert_eq!(found, self.is_wanted, "{place}: {text} in {arrived}");
    }
}

fn lines(file: &str, text: &'static str) -> impl Iterator<Item = (String, &'static str)> {
    let numbered = text.lines().enumerate();
    let numbered = numbered.map(move |(index, line)| (format!("{file}:{}", index + 1), line));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

/// The rows of a table.
pub(crate) fn rows(
    file: &str,
    text: &'static str,
    abbreviations: &'static [(&str, &str)],
) -> Vec<Row> {
    let row = |(place, line): (String, &'static str)| {
        let mut parts = line.split(" :: ");
        let mut next = || parts.next().unwrap_or_else(|| panic!("{place}: three parts"));
        let (name, verdict, octets) = (next(), next(), next());
        let place = format!("{place}: {name}");
        let conditions = parts.map(|text| condition(&place, text)).collect();
        let octets = notation::octets(&place, octets, abbreviations);
        Row { place, name: name.to_owned(), verdict: verdict.to_owned(), octets, conditions }
    };
    lines(file, text).map(row).collect()
}

fn condition(place: &str, text: &str) -> Condition {
    let (word, text) = text.split_once(' ').unwrap_or_else(|| panic!("{place}: {text}"));
    let is_wanted = match word {
        "has" => true,
        "lacks" => false,
        _ => panic!("{place}: {word} is no condition"),
    };
    Condition { is_wanted, text: notation::octets(place, text, &[]) }
}

/// An entry of `tests/corpus`: where it stands, its verdict, and its octets, of which the first
/// `end` are the message if it is read.
pub(crate) struct Entry {
    pub(crate) place: String,
    pub(crate) is_request: bool,
    pub(crate) verdict: String,
    pub(crate) octets: Vec<u8>,
    pub(crate) end: usize,
}

/// Every entry of the corpus.
pub(crate) fn corpus() -> Vec<Entry> {
    let requests = lines("corpus/requests.txt", include_str!("../corpus/requests.txt"));
    let responses = lines("corpus/responses.txt", include_str!("../corpus/responses.txt"));
    let requests = requests.map(|(place, line)| entry(place, line, true));
    requests.chain(responses.map(|(place, line)| entry(place, line, false))).collect()
}

fn entry(place: String, line: &str, is_request: bool) -> Entry {
    let abbreviations: &[_] = if is_request { &OF_REQUESTS } else { &OF_RESPONSES };
    let (verdict, octets) = line.split_once(":: ").unwrap_or_else(|| panic!("{place}: no `:: `"));
    let (message, behind) = octets.split_once('|').unwrap_or((octets, ""));
    let mut octets = notation::octets(&place, message, abbreviations);
    let end = octets.len();
    octets.extend_from_slice(&notation::octets(&place, behind, abbreviations));
    Entry { place, is_request, verdict: verdict.trim_end().to_owned(), octets, end }
}
