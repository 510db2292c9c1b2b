//! Pure: tests of what may be tried again, over every combination there is.

use super::*;
use crate::http1::Method;

/// The rule once more, in other words than the code's: what may be tried again. All else may not.
struct Allowed {
    failures: &'static [Failure],
    sent: &'static [Sent],
    methods: &'static [Method],
    reused: &'static [bool],
    pinned: &'static [bool],
    verdict: Retry,
}

/// Attempts that may be followed by another one.
const NOT_THE_LAST: [u32; 3] = [1, 2, 3];

const ALLOWED: [Allowed; 2] = [
    // Nothing was sent, so nothing can happen twice.
    Allowed {
        failures: &[Failure::ConnectFailed, Failure::ConnectTimeout],
        sent: &[Sent::Nothing],
        methods: &Method::ALL,
        reused: &[false, true],
        pinned: &[false],
        verdict: Retry::NextBackend,
    },
    // Something may happen twice, and twice is as good as once (RFC 9110 §9.2.2).
    Allowed {
        failures: &[Failure::BackendClosed],
        sent: &[Sent::Nothing, Sent::Replayable],
        methods: &[
            Method::Get,
            Method::Head,
            Method::Put,
            Method::Delete,
            Method::Options,
            Method::Trace,
        ],
        reused: &[true],
        pinned: &[false, true],
        verdict: Retry::SameBackend,
    },
];

fn expected(failure: Failure, method: Method, attempt: &Attempt) -> Retry {
    let rule = ALLOWED.iter().find(|rule| {
        !attempt.response_begun
            && NOT_THE_LAST.contains(&attempt.number)
            && rule.failures.contains(&failure)
            && rule.sent.contains(&attempt.sent)
            && rule.methods.contains(&method)
            && rule.reused.contains(&attempt.reused)
            && rule.pinned.contains(&attempt.pinned)
            && !(attempt.replayed && rule.verdict == Retry::SameBackend)
    });
    rule.map_or(Retry::GiveUp, |rule| rule.verdict)
}

fn plan(method: Method) -> RequestPlan {
    RequestPlan { method, ..request(&["GET / HTTP/1.1", "Host: h"]) }
}

const SENT: [Sent; 3] = [Sent::Nothing, Sent::Replayable, Sent::Gone];

fn every_attempt(number: u32) -> impl Iterator<Item = Attempt> {
    SENT.into_iter().flat_map(move |sent| {
        (0..16).map(move |bits| Attempt {
            number,
            sent,
            reused: bits & 1 != 0,
            response_begun: bits & 2 != 0,
            pinned: bits & 4 != 0,
            replayed: bits & 8 != 0,
        })
    })
}

#[test]
fn only_what_is_allowed_is_tried_again() {
    let mut allowed = 0;
    for method in Method::ALL {
        let plan = plan(method);
        for failure in Failure::ALL {
            for attempt in [1, 2, 3, 4, 5, u32::MAX].into_iter().flat_map(every_attempt) {
                let want = expected(*failure, method, &attempt);
                let got = may_retry(*failure, &plan, &attempt);
                assert_eq!(got, want, "{failure:?} {method:?} {attempt:?}");
                allowed += usize::from(got != Retry::GiveUp);
            }
        }
    }
    // 2 failures × 10 methods × reused or not × replayed or not × 3 attempts, and 2 × 6 methods ×
    // pinned or not × 3.
    assert_eq!(allowed, 2 * 10 * 2 * 2 * 3 + 2 * 6 * 2 * 3);
}

#[test]
fn nothing_of_which_an_octet_was_sent_is_sent_again_unless_it_is_idempotent() {
    for method in [Method::Post, Method::Patch, Method::Connect, Method::Other] {
        for failure in Failure::ALL {
            for attempt in [1, 2, 3, 4].into_iter().flat_map(every_attempt) {
                if attempt.sent != Sent::Nothing {
                    let got = may_retry(*failure, &plan(method), &attempt);
                    assert_eq!(got, Retry::GiveUp, "{failure:?} {method:?} {attempt:?}");
                }
            }
        }
    }
}

/// Most deliveries that can come of a request: every attempt may end in every way that the shell
/// can report, and the verdict leads to the next.
fn deliveries_max(plan: &RequestPlan, number: u32, may_reuse: bool, replayed: bool) -> u32 {
    assert!(number <= 4, "a request is tried without end");
    let attempts = every_attempt(number)
        .filter(|attempt| attempt.replayed == replayed && (may_reuse || !attempt.reused));
    let ends = attempts.flat_map(|attempt| Failure::ALL.iter().map(move |f| (*f, attempt)));
    ends.filter(|(failure, attempt)| {
        // A connection that was never open has taken nothing; one that was has taken something.
        (failure.stage() == Stage::Connect) == (attempt.sent == Sent::Nothing)
    })
    .map(|(failure, attempt)| {
        let delivered = u32::from(attempt.sent != Sent::Nothing);
        delivered
            + match may_retry(failure, plan, &attempt) {
                Retry::GiveUp => 0,
                // On a connection that is opened for it.
                Retry::SameBackend => deliveries_max(plan, number + 1, false, true),
                Retry::NextBackend => deliveries_max(plan, number + 1, true, replayed),
            }
    })
    .max()
    .unwrap_or_default()
}

#[test]
fn no_chain_of_failures_delivers_a_post_twice() {
    for method in Method::ALL {
        let got = deliveries_max(&plan(method), 1, true, false);
        assert_eq!(got, if method.is_idempotent() { 2 } else { 1 }, "{method:?}");
    }
}
