//! Pure: which failed attempts are held against their backend.

use super::Failure;
use crate::model::Fault;

/// What a backend did wrong in an attempt that failed, if it is the one to blame.
///
/// A pooled connection that ends before the first octet of a response was most likely closed while
/// idle, as a backend may at any time (RFC 9112 §9.3.1): that is no fault. What happens behind a
/// response head is none either: that a backend answers is what new work needs to know.
pub fn fault_of(failure: Failure, reused: bool, response_begun: bool) -> Option<Fault> {
    match failure {
        Failure::ConnectFailed | Failure::ConnectTimeout => Some(Fault::Connect),
        Failure::BackendClosed if !reused && !response_begun => Some(Fault::Reset),
        Failure::ResponseHead | Failure::ResponseFraming | Failure::ResponseUpgrade => {
            Some(Fault::Reset)
        }
        Failure::ResponseHeadTimeout => Some(Fault::Timeout),
        Failure::BackendStalled if !response_begun => Some(Fault::Timeout),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Origin;

    #[test]
    fn only_what_a_backend_does_before_its_response_head_is_held_against_it() {
        let cases = [
            (Failure::ConnectFailed, false, false, Some(Fault::Connect)),
            (Failure::ConnectTimeout, false, false, Some(Fault::Connect)),
            (Failure::BackendClosed, false, false, Some(Fault::Reset)),
            (Failure::BackendClosed, true, false, None),
            // The head was there, and counted; only its small body was not.
            (Failure::BackendClosed, false, true, None),
            (Failure::ResponseHead, true, true, Some(Fault::Reset)),
            (Failure::ResponseFraming, false, true, Some(Fault::Reset)),
            (Failure::ResponseHeadTimeout, true, false, Some(Fault::Timeout)),
            // Interim responses do not make it better.
            (Failure::ResponseHeadTimeout, false, true, Some(Fault::Timeout)),
            (Failure::BackendStalled, false, false, Some(Fault::Timeout)),
            (Failure::BackendStalled, false, true, None),
            (Failure::ResponseTruncated, false, true, None),
            (Failure::ResponseBodyTimeout, false, true, None),
        ];
        for (failure, reused, begun, want) in cases {
            assert_eq!(fault_of(failure, reused, begun), want, "{failure:?} {reused} {begun}");
        }
    }

    #[test]
    fn no_client_and_nothing_of_ours_can_make_a_backend_look_bad() {
        for failure in Failure::ALL.iter().filter(|f| f.origin() != Origin::Upstream) {
            for (reused, begun) in [(false, false), (false, true), (true, false), (true, true)] {
                assert_eq!(fault_of(*failure, reused, begun), None, "{failure:?}");
            }
        }
    }
}
