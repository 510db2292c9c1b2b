//! Pure: tests of which connections live on, over every combination there is.

use super::*;
use crate::http1::{Edits, Version};

/// Everything that bears on the fate of the two connections.
#[derive(Clone, Copy, Debug)]
struct Facts {
    end: ExchangeEnd,
    client_closes: bool,
    backend_closes: bool,
    ends_with_connection: bool,
}

fn every_combination() -> impl Iterator<Item = Facts> {
    (0_u16..512).map(|bits| {
        let bit = |n: u16| bits & (1 << n) != 0;
        Facts {
            end: ExchangeEnd {
                request_complete: bit(0),
                response_complete: bit(1),
                stray_octets: bit(2),
                client_half_closed: bit(3),
                draining: bit(4),
                is_early: bit(8),
            },
            client_closes: bit(5),
            backend_closes: bit(6),
            ends_with_connection: bit(7),
        }
    })
}

fn plans(facts: &Facts) -> (RequestPlan, ResponsePlan) {
    let persistence = |closes| if closes { Persistence::Close } else { Persistence::Keep };
    let request = request(&["GET / HTTP/1.1", "Host: h"]);
    let response = response(&request, &["HTTP/1.1 200 OK", "Content-Length: 0"]).unwrap();
    (
        RequestPlan { persistence: persistence(facts.client_closes), ..request },
        ResponsePlan {
            upstream_persistence: persistence(facts.backend_closes),
            ends_with_connection: facts.ends_with_connection,
            ..response
        },
    )
}

fn concluded(facts: &Facts) -> Conclusion {
    let (request, response) = plans(facts);
    conclude(&request, &response, &facts.end)
}

#[test]
fn a_connection_lives_on_only_if_nothing_speaks_against_it() {
    for facts in every_combination() {
        let end = facts.end;
        let against_downstream = [
            !end.request_complete,
            !end.response_complete,
            end.client_half_closed,
            end.draining,
            end.is_early,
            facts.client_closes,
            facts.ends_with_connection,
        ];
        let against_upstream = [
            !end.request_complete,
            !end.response_complete,
            end.stray_octets,
            end.is_early,
            facts.backend_closes,
        ];
        let Conclusion { downstream, upstream } = concluded(&facts);
        assert_eq!(downstream == Fate::Keep, !against_downstream.contains(&true), "{facts:?}");
        assert_eq!(upstream == Fate::Keep, !against_upstream.contains(&true), "{facts:?}");
    }
}

#[test]
fn the_reason_is_true() {
    for facts in every_combination() {
        let end = facts.end;
        let Conclusion { downstream, upstream } = concluded(&facts);
        let is_true = |reason: CloseReason, announced: bool| match reason {
            CloseReason::Announced => announced,
            CloseReason::Incomplete => {
                !end.response_complete || !end.request_complete || end.is_early
            }
            CloseReason::RequestUnread => !end.request_complete && end.response_complete,
            CloseReason::Stray => end.stray_octets,
            CloseReason::HalfClosed => end.client_half_closed,
            CloseReason::Draining => end.draining,
            CloseReason::EndedEarly => end.is_early,
            CloseReason::ContentOverlooked => false,
        };
        if let Fate::Close(reason) = downstream {
            let announced = facts.client_closes || facts.ends_with_connection;
            assert!(is_true(reason, announced), "{reason:?} {facts:?}");
            // Only an incomplete response may be cut off without waiting for the client to read.
            assert_eq!(reason == CloseReason::Incomplete, !end.response_complete, "{facts:?}");
        }
        if let Fate::Close(reason) = upstream {
            assert!(is_true(reason, facts.backend_closes), "{reason:?} {facts:?}");
        }
    }
}

#[test]
fn what_the_head_announces_is_what_happens() {
    for facts in every_combination() {
        let (request, plan) = plans(&facts);
        // What ends early could not be announced.
        let (request_complete, response_complete, is_early) = (true, true, false);
        let end = ExchangeEnd { request_complete, response_complete, is_early, ..facts.end };
        let closes = request.closes_after(end.client_half_closed, end.draining);
        for version in [Version::Http10, Version::Http11] {
            let mut out = Vec::new();
            with_response(&head(&["HTTP/1.1 200 OK", "Content-Length: 0"]), |head| {
                let facts = ResponseFacts {
                    closes,
                    routed_instance: None,
                    received: &date(),
                    edits: &Edits::NONE,
                };
                let request = RequestPlan { version, ..request };
                write_response(&mut out, head, &request, &plan, &facts);
            });
            let text = String::from_utf8(out).unwrap();
            let announces_close = text.contains("\r\nConnection: close\r\n");
            let kept = conclude(&request, &plan, &end).downstream == Fate::Keep;
            assert_eq!(announces_close, !kept, "{facts:?}");
            // HTTP/1.0 takes silence for close.
            let announces_keep = text.contains("\r\nConnection: keep-alive\r\n");
            assert_eq!(announces_keep, kept && version == Version::Http10, "{facts:?}");
        }
    }
}

#[test]
fn a_connection_whose_request_may_have_been_read_as_two_is_not_used_again() {
    let end = ExchangeEnd {
        request_complete: true,
        response_complete: true,
        stray_octets: false,
        client_half_closed: false,
        draining: false,
        is_early: false,
    };
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "FOO"] {
        let takes_content = ["POST", "PUT", "PATCH", "FOO"].contains(&method);
        for (field, is_content) in [
            ("Content-Length: 0", false),
            ("Content-Length: 1", true),
            ("Transfer-Encoding: chunked", true),
        ] {
            let line = format!("{method} / HTTP/1.1");
            let request = request(&[line.as_str(), "Host: h", field]);
            let response = response(&request, &["HTTP/1.1 200 OK", "Content-Length: 0"]).unwrap();
            let want = match is_content && !takes_content {
                true => Fate::Close(CloseReason::ContentOverlooked),
                false => Fate::Keep,
            };
            let Conclusion { downstream, upstream } = conclude(&request, &response, &end);
            assert_eq!((downstream, upstream), (Fate::Keep, want), "{method} {field}");
        }
    }
}
