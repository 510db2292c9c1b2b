//! The fuzz corpus through the fuzz targets, without a fuzzer: every input that was ever worth
//! keeping, each of its beginnings, and then for a few seconds whatever changes make of them.
//!
//! `fuzz/README.md` tells how an input gets here. A failing input is printed with its file. The
//! changes are drawn anew every time: `LB_FUZZ_SEED` draws those of an earlier run, and
//! `LB_FUZZ_SECONDS` says how long each target gets.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]
#![allow(clippy::print_stderr, reason = "which input failed")]
#![allow(clippy::print_stdout, reason = "a run that fails must have said its seed")]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use fuzz::{TARGETS, Verdict};
use stepflow_load_balancer::model::Rng;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");

/// Longer inputs are not cut at every octet: their beginnings are tried at this many places.
const CUTS_MAX: usize = 256;
/// How long each target gets changed inputs, unless `LB_FUZZ_SECONDS` says otherwise.
const SECONDS: u64 = 3;
/// Changes to one input, at most.
const CHANGES_MAX: usize = 4;
/// Octets of a changed input. Longer ones say little more, and take long.
const CHANGED_BYTES_MAX: usize = 4096;
/// However slow the machine is, so many changed inputs are tried.
const CHANGED_MIN: u32 = 200;
/// A corpus is source code: small enough to be read.
const CORPUS_BYTES_MAX: u64 = 300 * 1000;

/// Says which input was being looked at when a property did not hold.
struct Looking<'a>(&'a str, &'a str, &'a [u8]);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(what, name, octets) = self;
            eprintln!("\n{what} of fuzz/corpus/{name}: b\"{}\"", octets.escape_ascii());
        }
    }
}

fn entries(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = PathBuf::from(CORPUS).join(target);
    let listed = fs::read_dir(&directory);
    let listed = listed.unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut entries: Vec<_> = listed
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (format!("{target}/{name}"), fs::read(path).unwrap())
        })
        .collect();
    entries.sort();
    entries
}

fn replay(target: &str) {
    let (_, run) = *TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    let entries = entries(target);
    let (mut accepted, mut refused) = (0, 0);
    for (name, octets) in &entries {
        let _looking = Looking("all", name, octets);
        match run(octets) {
            Verdict::Accepted => accepted += 1,
            Verdict::Refused => refused += 1,
        }
    }
    // A corpus of which everything is refused at the door tests the door.
    assert!(accepted >= 5 && refused >= 1, "{target}: {accepted} accepted, {refused} refused");

    for (name, octets) in &entries {
        for end in (0..octets.len()).step_by(octets.len() / CUTS_MAX + 1) {
            let _looking = Looking("a beginning", name, &octets[..end]);
            run(&octets[..end]);
        }
    }

    smoke(target, run, &entries);
}

/// Changed inputs, as many as there is time for.
fn smoke(target: &str, run: fn(&[u8]) -> Verdict, entries: &[(String, Vec<u8>)]) {
    let seed = number("LB_FUZZ_SEED").unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap();
        u64::from(now.subsec_nanos()) ^ now.as_secs() << 30
    });
    println!("{target}: replay with LB_FUZZ_SEED={seed}");
    let time = Duration::from_secs(number("LB_FUZZ_SECONDS").unwrap_or(SECONDS));
    let (words, began) = (words(target), Instant::now());
    let (mut rng, mut runs, mut accepted) = (Rng::new(seed), 0_u32, 0_u32);
    while began.elapsed() < time || runs < CHANGED_MIN {
        let (name, octets) = &entries[below(&mut rng, entries.len())];
        let mut changed = octets.clone();
        for _ in 0..=below(&mut rng, CHANGES_MAX) {
            let (_, other) = &entries[below(&mut rng, entries.len())];
            change(&mut rng, &mut changed, &words, other);
        }
        changed.truncate(CHANGED_BYTES_MAX);
        let _looking = Looking("a change", name, &changed);
        accepted += u32::from(matches!(run(&changed), Verdict::Accepted));
        runs += 1;
    }
    println!("{target}: {runs} changed inputs, {accepted} of them accepted");
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn below(rng: &mut Rng, bound: usize) -> usize {
    usize::try_from(rng.below(bound as u64)).unwrap()
}

/// One change: an octet, a bit, a word of the dictionary, a piece that goes, comes twice, or comes
/// from another input.
fn change(rng: &mut Rng, octets: &mut Vec<u8>, words: &[Vec<u8>], other: &[u8]) {
    const INTERESTING: [u8; 16] = *b"\0\t\n\r ,:;0Aax\"\x7f\x80\xff";
    let at = below(rng, octets.len() + 1);
    let end = (at + below(rng, 33)).min(octets.len());
    match below(rng, 8) {
        0 if at < octets.len() => octets[at] = INTERESTING[below(rng, INTERESTING.len())],
        1 if at < octets.len() => octets[at] ^= 1 << below(rng, 8),
        2 => drop(octets.drain(at..end)),
        3 => octets.insert(at, INTERESTING[below(rng, INTERESTING.len())]),
        4 => {
            let again = octets[at..end].to_vec();
            octets.splice(at..at, again);
        }
        5 => {
            octets.truncate(at);
            octets.extend_from_slice(&other[below(rng, other.len() + 1)..]);
        }
        _ if words.is_empty() => octets.truncate(at),
        6 => {
            let word = &words[below(rng, words.len())];
            octets.splice(at..(at + word.len()).min(octets.len()), word.iter().copied());
        }
        _ => {
            octets.splice(at..at, words[below(rng, words.len())].iter().copied());
        }
    }
}

/// The words that the fuzzer is told for a target: `"WORD"` or `NAME="WORD"`, with `\\`, `\"` and
/// `\xNN` for what cannot stand there.
fn words(target: &str) -> Vec<Vec<u8>> {
    let text = match target {
        "config" => include_str!("../fuzz/config.dict"),
        "events" => include_str!("../fuzz/events.dict"),
        "plane" => "",
        _ => include_str!("../fuzz/http.dict"),
    };
    let quoted = |line: &str| Some(line.split_once('"')?.1.rsplit_once('"')?.0.to_owned());
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(quoted).map(|word| unescaped(&word)).collect()
}

fn unescaped(word: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), word.as_bytes());
    while let [first, behind @ ..] = rest {
        (out, rest) = match (first, behind) {
            (b'\\', [b'x', high, low, left @ ..]) => {
                let digits = String::from_utf8(vec![*high, *low]).unwrap();
                out.push(u8::from_str_radix(&digits, 16).unwrap());
                (out, left)
            }
            (b'\\', [octet, left @ ..]) | (octet, left) => {
                out.push(*octet);
                (out, left)
            }
        };
    }
    out
}

#[test]
fn corpus_of_request_heads_holds() {
    replay("head");
}

#[test]
fn corpus_of_responses_holds() {
    replay("response");
}

#[test]
fn corpus_of_bodies_holds() {
    replay("body");
}

#[test]
fn corpus_of_event_streams_holds() {
    replay("events");
}

#[test]
fn corpus_of_framings_holds() {
    replay("framing");
}

#[test]
fn corpus_of_exchanges_holds() {
    replay("exchange");
}

#[test]
fn corpus_of_configurations_holds() {
    replay("config");
}

#[test]
fn corpus_of_control_plane_runs_holds() {
    replay("plane");
}

/// A directory without a target, a target without a binary or without a test here would look as if
/// it were covered.
#[test]
fn every_corpus_has_its_target_and_is_small() {
    let names = |directory: &str, suffix: &str| -> BTreeSet<String> {
        let root = PathBuf::from(CORPUS).with_file_name(directory);
        let listed = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        let names = listed.map(|e| e.unwrap().file_name().to_string_lossy().into_owned());
        names.filter_map(|name| Some(name.strip_suffix(suffix)?.to_owned())).collect()
    };
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus", ""), targets);
    assert_eq!(names("fuzz_targets", ".rs"), targets);
    let here = include_str!("corpus_replay.rs");
    for target in &targets {
        assert!(here.contains(&format!("replay(\"{target}\")")), "{target} is not replayed");
    }
    let sizes = targets.iter().flat_map(|target| entries(target));
    let bytes: u64 = sizes.map(|(_, octets)| octets.len() as u64).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpora have {bytes} octets: minimise them");
}
