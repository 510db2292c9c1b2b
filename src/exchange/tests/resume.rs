//! Pure: tests of when a stream goes on from another backend.

use super::*;
use crate::exchange::{
    resume::{Broken, Continue, ask_from, may_continue},
    retry::ATTEMPTS_MAX,
};

/// Every combination, with the rule in other words.
#[test]
fn a_stream_goes_on_only_where_its_client_cannot_tell() {
    let mut gone_on = 0;
    for bits in 0..128_u32 {
        let bit = |n: u32| bits >> n & 1 == 1;
        for number in 1..=ATTEMPTS_MAX {
            for method in ["GET", "PUT", "POST"] {
                for failure in
                    [Failure::ResponseTruncated, Failure::BackendClosed, Failure::ClientGone]
                {
                    let broken = Broken {
                        has_content: bit(0),
                        has_moved: bit(1),
                        is_whole: bit(2),
                        knows_id: bit(3),
                        is_bound: bit(4),
                        resumes: bit(5),
                        number,
                        moved: bit(6),
                    };
                    let got = may_continue(
                        failure,
                        &request(&[&format!("{method} / HTTP/1.1"), "Host: h"]),
                        &broken,
                    );
                    let may_at_all = failure != Failure::ClientGone
                        && broken.is_whole
                        && !broken.is_bound
                        && method != "POST";
                    let want = match broken {
                        _ if !may_at_all => Continue::GiveUp,
                        Broken { has_content: false, moved: false, .. } => Continue::FromStart,
                        Broken { has_content: false, .. } => Continue::GiveUp,
                        _ if method != "GET" => Continue::GiveUp,
                        Broken { resumes: true, knows_id: true, has_moved: true, .. } => {
                            Continue::FromLastId { number: 1 }
                        }
                        Broken { resumes: true, knows_id: true, number: 1..4, .. } => {
                            Continue::FromLastId { number: number + 1 }
                        }
                        _ => Continue::GiveUp,
                    };
                    assert_eq!(got, want, "{method} {failure:?} {broken:?}");
                    gone_on += u32::from(got != Continue::GiveUp);
                }
            }
        }
    }
    assert!(gone_on > 0);
}

#[test]
fn a_request_asks_from_the_id_instead_of_from_an_earlier_one() {
    let cases: [(&str, &str, Option<&str>); 7] = [
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "7",
            Some("GET / HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 7\r\n\r\n"),
        ),
        (
            "GET / HTTP/1.1\r\nlast-event-ID:3\r\nHost: a\r\n\r\n",
            "7 8",
            Some("GET / HTTP/1.1\r\nHost: a\r\nLast-Event-ID: 7 8\r\n\r\n"),
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", None),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", " 7", None),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "7\t", None),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a\u{1}b", None),
        (
            "GET / HTTP/1.1\r\nLast-Event-IDs: 1\r\n\r\n",
            "\u{20ac}",
            Some("GET / HTTP/1.1\r\nLast-Event-IDs: 1\r\nLast-Event-ID: \u{20ac}\r\n\r\n"),
        ),
    ];
    for (head, id, want) in cases {
        let got = ask_from(head.as_bytes(), id.as_bytes());
        assert_eq!(got.as_deref(), want.map(str::as_bytes), "{id:?}");
    }
}
