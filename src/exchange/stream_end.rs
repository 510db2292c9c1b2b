//! Pure: how an event stream ended, for whoever counts streams.

use super::{EarlyEnd, Failure, Origin, Stage};
use crate::stats::STREAM_ENDS;

/// How an event stream ended. A failure says what went wrong with an exchange; streams also end
/// well, and by a decision, and what their operator wants to know first is on whose side it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The backend ended it where its body ends.
    Finished,
    /// The client left. Whether it had read enough only the client knows: many leave behind the
    /// last event, and before the last octet.
    ClientLeft,
    /// The backend closed in the middle of it, broke off or said nothing where it had promised
    /// more, and nobody went on with it.
    BackendDied,
    /// Its backend or the balancer drains.
    Drained,
    /// The client read so slowly that it was given up.
    TooSlow,
    /// It had reached the age that streams may reach.
    Aged,
    /// Anything else, which `stepflow_lb_failures_total` tells apart.
    Failed,
}

// Every end has a counter.
const _: () = assert!(StreamEnd::ALL.len() == STREAM_ENDS);

impl StreamEnd {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 7] = [
        Self::Finished,
        Self::ClientLeft,
        Self::BackendDied,
        Self::Drained,
        Self::TooSlow,
        Self::Aged,
        Self::Failed,
    ];

    /// The end that a stream comes to by a failure, or by a decision of ours, or by neither.
    pub fn of(failure: Option<Failure>, early: Option<EarlyEnd>) -> Self {
        match failure {
            None => match early {
                None => Self::Finished,
                Some(EarlyEnd::Drained) => Self::Drained,
                Some(EarlyEnd::Aged) => Self::Aged,
            },
            Some(Failure::BackendDrainTimeout) => Self::Drained,
            Some(Failure::ClientGone | Failure::RequestTruncated) => Self::ClientLeft,
            Some(Failure::ClientStalled) => Self::TooSlow,
            Some(failure) => match (failure.origin(), failure.stage()) {
                // Whoever has a stream looks for another backend only when the first one died.
                (Origin::Upstream, _) | (_, Stage::Pick | Stage::Connect) => Self::BackendDied,
                _ => Self::Failed,
            },
        }
    }

    /// Place in tables that have one entry per end.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Label for logs and metrics. Part of the public interface.
    pub fn label(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::ClientLeft => "client_left",
            Self::BackendDied => "backend_died",
            Self::Drained => "drained",
            Self::TooSlow => "too_slow",
            Self::Aged => "aged",
            Self::Failed => "failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_place_and_a_label_of_its_own() {
        let mut labels = std::collections::BTreeSet::new();
        for (index, end) in StreamEnd::ALL.into_iter().enumerate() {
            assert_eq!(end.index(), index);
            assert!(labels.insert(end.label()), "{end:?}");
        }
    }

    #[test]
    fn a_failure_says_on_whose_side_the_end_was() {
        let cases = [
            (Failure::ClientGone, StreamEnd::ClientLeft),
            (Failure::RequestTruncated, StreamEnd::ClientLeft),
            (Failure::ClientStalled, StreamEnd::TooSlow),
            (Failure::ResponseTruncated, StreamEnd::BackendDied),
            (Failure::ResponseBody, StreamEnd::BackendDied),
            (Failure::ResponseBodyTimeout, StreamEnd::BackendDied),
            (Failure::ConnectFailed, StreamEnd::BackendDied),
            (Failure::NoHealthyBackend, StreamEnd::BackendDied),
            (Failure::QueueTimeout, StreamEnd::BackendDied),
            (Failure::BackendDrainTimeout, StreamEnd::Drained),
            (Failure::Panicked, StreamEnd::Failed),
            (Failure::RequestBody, StreamEnd::Failed),
        ];
        for (failure, end) in cases {
            assert_eq!(StreamEnd::of(Some(failure), None), end, "{failure:?}");
        }
    }

    #[test]
    fn without_a_failure_it_is_we_who_ended_it_or_the_backend() {
        let of = |early| StreamEnd::of(None, early);
        assert_eq!(of(None), StreamEnd::Finished);
        assert_eq!(of(Some(EarlyEnd::Drained)), StreamEnd::Drained);
        assert_eq!(of(Some(EarlyEnd::Aged)), StreamEnd::Aged);
    }

    #[test]
    fn no_failure_is_a_good_end() {
        for failure in Failure::ALL {
            let end = StreamEnd::of(Some(*failure), None);
            assert!(
                !matches!(end, StreamEnd::Finished | StreamEnd::Aged),
                "{failure:?} is {end:?}"
            );
        }
    }
}
