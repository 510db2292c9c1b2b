//! The fuzz corpus through the fuzz targets, without a fuzzer: every input that was ever worth
//! keeping, each of its beginnings, and a few thousand cheap changes to it.
//!
//! `fuzz/README.md` tells how an input gets here. A failing input is printed with its file.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]
#![allow(clippy::print_stderr, reason = "which input failed")]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::{collections::BTreeSet, fs, path::PathBuf};

use fuzz::{TARGETS, Verdict};
use stepflow_load_balancer::model::Rng;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");

/// Longer inputs are not cut at every octet: their beginnings are tried at this many places.
const CUTS_MAX: usize = 256;
/// Changed copies of each input.
const CHANGES: usize = 24;
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

    let seed = entries.len() as u64;
    let mut rng = Rng::new(seed);
    let mut below = |bound: usize| usize::try_from(rng.below(bound as u64)).unwrap();
    let interesting = *b"\0\t\n\r ,:;0Aax\x7f\x80\xff";
    for (name, octets) in entries.iter().filter(|(_, octets)| !octets.is_empty()) {
        for _ in 0..CHANGES {
            let mut changed = octets.clone();
            let (at, other) = (below(changed.len()), &entries[below(entries.len())].1);
            match below(5) {
                0 => changed[at] = interesting[below(interesting.len())],
                1 => changed[at] ^= 1 << below(8),
                2 => drop(changed.remove(at)),
                3 => changed.insert(at, interesting[below(interesting.len())]),
                _ => {
                    changed.truncate(at);
                    changed.extend_from_slice(&other[below(other.len() + 1)..]);
                }
            }
            let _looking = Looking("a change", name, &changed);
            run(&changed);
        }
    }
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
