//! The catalogue: attacks and accidents by name, each through the real program, with nothing but
//! raw sockets on both sides.
//!
//! `tests/http` tells stories, one a test. Here are tables: a row has a name, the octets that one
//! side sends, and what becomes of them. [`requests`] is about clients that smuggle, [`responses`]
//! about backends that split and poison, [`aborts`] about either side leaving at any point, and
//! [`silences`] about either side falling silent. What a row expects is seen in four places: what
//! arrived at the backend, octet for octet; what the client got; whether the connections live on;
//! and the label of the failure in the access log and in the metrics.
//!
//! The entries of `tests/corpus`, which the codec is tested with, go over the wire as well.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

// The suite in `tests/http` uses all of it.
#[expect(dead_code, unused_imports, reason = "only the process and the two ends are needed here")]
#[path = "../support/mod.rs"]
mod support;

#[path = "../support/notation.rs"]
mod notation;

mod aborts;
mod requests;
mod responses;
mod rows;
mod silences;
mod stage;

/// Fewer rows than this would be another catalogue.
const ROWS_MIN: usize = 500;

#[test]
fn every_row_has_a_name_of_its_own_and_is_counted() {
    let tables = [
        ("requests", requests::names()),
        ("responses", responses::names()),
        ("aborts", aborts::names()),
        ("silences", silences::names()),
    ];
    let mut total = 0;
    for (table, names) in tables {
        println!("{table}: {} rows", names.len());
        total += names.len();
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), names.len(), "{table}: two rows have one name");
    }
    println!("{total} rows, and {} entries of tests/corpus", rows::corpus().len());
    assert!(total >= ROWS_MIN, "only {total} rows");
}
