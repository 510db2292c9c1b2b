//! Pure: the ways in which a probe fails.

use std::fmt;

/// Why a probe did not find a healthy backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// Nobody listens on that port.
    Refused,
    /// No route, host down, or another error of the network while connecting.
    Unreachable,
    /// No connection within the timeout.
    ConnectTimeout,
    /// Connected, but no complete answer within the timeout: a backend that is too busy to answer
    /// looks like this.
    ResponseTimeout,
    /// The connection ended before the answer was complete.
    Closed,
    /// The answer is not HTTP/1.
    Malformed,
    /// The head of the answer is over its limit.
    HeadTooLarge,
    /// The body of the answer is over [`super::BODY_BYTES_MAX`].
    BodyTooLarge,
    /// A final status other than those expected.
    Status(u16),
    /// 2xx, but the JSON in the body has a `status` that is not a healthy one.
    SaysUnhealthy,
    /// The body does not hold the text that is expected.
    BodyUnexpected,
    /// We had no descriptor, port or memory left to ask. Says nothing about the backend.
    Local,
}

impl ProbeFailure {
    /// One label per kind, in the order of [`ProbeFailure::index`].
    pub const LABELS: [&'static str; 12] = [
        "refused",
        "unreachable",
        "connect_timeout",
        "response_timeout",
        "closed",
        "malformed",
        "head_too_large",
        "body_too_large",
        "status",
        "says_unhealthy",
        "body_unexpected",
        "local",
    ];

    /// Index below the length of [`ProbeFailure::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::Unreachable => 1,
            Self::ConnectTimeout => 2,
            Self::ResponseTimeout => 3,
            Self::Closed => 4,
            Self::Malformed => 5,
            Self::HeadTooLarge => 6,
            Self::BodyTooLarge => 7,
            Self::Status(_) => 8,
            Self::SaysUnhealthy => 9,
            Self::BodyUnexpected => 10,
            Self::Local => 11,
        }
    }

    /// The kind, for logs and metrics.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable => f.write_str("host or network unreachable"),
            Self::ConnectTimeout => f.write_str("no connection within the timeout"),
            Self::ResponseTimeout => f.write_str("connected, but no answer within the timeout"),
            Self::Closed => f.write_str("connection closed before the answer was complete"),
            Self::Malformed => f.write_str("the answer is not HTTP/1"),
            Self::HeadTooLarge => f.write_str("the head of the answer is too large"),
            Self::BodyTooLarge => f.write_str("the body of the answer is too large"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::SaysUnhealthy => f.write_str("the body says that it is not healthy"),
            Self::BodyUnexpected => f.write_str("the body does not hold health_check_body"),
            Self::Local => f.write_str("no descriptor, port or memory left to ask"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_label() {
        let kinds = [
            ProbeFailure::Refused,
            ProbeFailure::Unreachable,
            ProbeFailure::ConnectTimeout,
            ProbeFailure::ResponseTimeout,
            ProbeFailure::Closed,
            ProbeFailure::Malformed,
            ProbeFailure::HeadTooLarge,
            ProbeFailure::BodyTooLarge,
            ProbeFailure::Status(503),
            ProbeFailure::SaysUnhealthy,
            ProbeFailure::BodyUnexpected,
            ProbeFailure::Local,
        ];
        assert_eq!(kinds.map(ProbeFailure::label), ProbeFailure::LABELS);
        assert_eq!(ProbeFailure::Status(503).to_string(), "status 503");
    }
}
