//! Pure: tests of what may be tried again, over every combination there is.

use super::*;
use crate::http1::Method;

/// The rule once more, in other words than the code's: what may be tried again. All else may not.
struct Allowed {
    failures: &'static [Failure],
    sent: &'static [Sent],
    methods: &'static [Method],
    reused: &'static [bool],
    replayed: &'static [bool],
    moved: &'static [bool],
    pinned: &'static [bool],
    verdict: Retry,
}

/// Attempts that may be followed by another one.
const NOT_THE_LAST: [u32; 3] = [1, 2, 3];

const EITHER: &[bool] = &[false, true];
const IDEMPOTENT: &[Method] =
    &[Method::Get, Method::Head, Method::Put, Method::Delete, Method::Options, Method::Trace];

const ALLOWED: [Allowed; 4] = [
    // Nothing was sent, so nothing can happen twice.
    Allowed {
        failures: &[Failure::ConnectFailed, Failure::ConnectTimeout],
        sent: &[Sent::Nothing],
        methods: &Method::ALL,
        reused: EITHER,
        replayed: EITHER,
        moved: EITHER,
        pinned: &[false],
        verdict: Retry::NextBackend,
    },
    // Something may happen twice, and twice is as good as once (RFC 9110 §9.2.2). An old connection
    // says nothing about its backend.
    Allowed {
        failures: &[Failure::BackendClosed],
        sent: &[Sent::Nothing, Sent::Replayable],
        methods: IDEMPOTENT,
        reused: &[true],
        replayed: &[false],
        moved: &[false],
        pinned: EITHER,
        verdict: Retry::SameBackend,
    },
    // A fresh one says that its backend ends; nobody else has what an instance has.
    Allowed {
        failures: &[Failure::BackendClosed],
        sent: &[Sent::Nothing, Sent::Replayable],
        methods: IDEMPOTENT,
        reused: &[false],
        replayed: EITHER,
        moved: &[false],
        pinned: &[false],
        verdict: Retry::NextBackend,
    },
    // The same, should the second connection have been an old one as well.
    Allowed {
        failures: &[Failure::BackendClosed],
        sent: &[Sent::Nothing, Sent::Replayable],
        methods: IDEMPOTENT,
        reused: &[true],
        replayed: &[true],
        moved: &[false],
        pinned: &[false],
        verdict: Retry::NextBackend,
    },
];

fn expected(failure: Failure, method: Method, attempt: &Attempt) -> Retry {
    let mut rules = ALLOWED.iter().filter(|rule| {
        !attempt.response_begun
            && NOT_THE_LAST.contains(&attempt.number)
            && rule.failures.contains(&failure)
            && rule.sent.contains(&attempt.sent)
            && rule.methods.contains(&method)
            && rule.reused.contains(&attempt.reused)
            && rule.replayed.contains(&attempt.replayed)
            && rule.moved.contains(&attempt.moved)
            && rule.pinned.contains(&attempt.pinned)
    });
    let verdict = rules.next().map_or(Retry::GiveUp, |rule| rule.verdict);
    assert!(rules.next().is_none(), "two rules for {failure:?} {method:?} {attempt:?}");
    verdict
}

fn plan(method: Method) -> RequestPlan {
    RequestPlan { method, ..request(&["GET / HTTP/1.1", "Host: h"]) }
}

const SENT: [Sent; 3] = [Sent::Nothing, Sent::Replayable, Sent::Gone];

fn every_attempt(number: u32) -> impl Iterator<Item = Attempt> {
    SENT.into_iter().flat_map(move |sent| {
        (0..32).map(move |bits| Attempt {
            number,
            sent,
            reused: bits & 1 != 0,
            response_begun: bits & 2 != 0,
            pinned: bits & 4 != 0,
            replayed: bits & 8 != 0,
            moved: bits & 16 != 0,
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
    // Connects: 2 failures × 10 methods × reused, replayed and moved or not × 3 attempts. Closed:
    // 2 kinds of sent × 6 methods × 3 attempts, for 2 + 2 + 1 of what else there is.
    assert_eq!(allowed, 2 * 10 * 8 * 3 + 2 * 6 * 3 * (2 + 2 + 1));
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

/// Most deliveries that can come of a request, and most backends that can get it: every attempt may
/// end in every way that the shell can report, and the verdict leads to the next. `is_known` says
/// that the backend that is asked has got it before.
fn deliveries_max(plan: &RequestPlan, next: Attempt, is_known: bool) -> (u32, u32) {
    assert!(next.number <= 4, "a request is tried without end");
    let attempts = every_attempt(next.number).filter(|attempt| {
        (attempt.replayed, attempt.moved, attempt.pinned)
            == (next.replayed, next.moved, next.pinned)
            && !(attempt.reused && next.needs_fresh_connection())
    });
    let ends = attempts.flat_map(|attempt| Failure::ALL.iter().map(move |f| (*f, attempt)));
    ends.filter(|(failure, attempt)| {
        // A connection that was never open has taken nothing; one that was has taken something.
        (failure.stage() == Stage::Connect) == (attempt.sent == Sent::Nothing)
    })
    .map(|(failure, attempt)| {
        let was_delivered = attempt.sent != Sent::Nothing;
        let verdict = may_retry(failure, plan, &attempt);
        let (deliveries, backends) = match verdict {
            Retry::GiveUp => (0, 0),
            Retry::SameBackend => deliveries_max(plan, attempt.after(verdict), true),
            Retry::NextBackend => deliveries_max(plan, attempt.after(verdict), false),
        };
        let is_new = was_delivered && !is_known;
        (deliveries + u32::from(was_delivered), backends + u32::from(is_new))
    })
    .reduce(|one, other| (one.0.max(other.0), one.1.max(other.1)))
    .unwrap_or_default()
}

#[test]
fn no_chain_of_failures_delivers_a_post_twice() {
    for method in Method::ALL {
        for (pinned, most) in [(false, (3, 2)), (true, (2, 1))] {
            let got = deliveries_max(&plan(method), Attempt::first(pinned), false);
            // To the first backend on an old connection and on a new one, then to another one.
            assert_eq!(got, if method.is_idempotent() { most } else { (1, 1) }, "{method:?}");
        }
    }
}
