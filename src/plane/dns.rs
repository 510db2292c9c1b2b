//! Pure: the words in which the plane and whoever asks DNS for it speak. No library's types.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Query {
    /// Name as the operator or an SRV record wrote it, lower case. Without a trailing dot the
    /// resolver's search list applies.
    pub name: Arc<str>,
    /// Record type.
    pub kind: QueryKind,
}

/// Record types that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueryKind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Services.
    Srv,
}

impl fmt::Display for QueryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Srv => "SRV",
        })
    }
}

/// Names one question. Never reused, so a late answer cannot reach another question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(pub(super) u64);

/// How a question ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Records of the family that was asked for, at least one.
    Addresses {
        /// In any order, duplicates allowed.
        addresses: Vec<IpAddr>,
        /// Lowest TTL among the records and the aliases that led to them.
        ttl: Duration,
    },
    /// SRV records, at least one.
    Services {
        /// In any order, duplicates allowed.
        services: Vec<Service>,
        /// Lowest TTL.
        ttl: Duration,
    },
    /// The server is sure that there is nothing.
    Absent(Absence),
    /// There is no answer.
    Failed(ResolveFailure),
}

/// One SRV record (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Name of the host.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// Lower is preferred.
    pub priority: u16,
    /// Share among equal priorities.
    pub weight: u16,
}

/// In which way there is nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// NXDOMAIN: the name does not exist.
    NoSuchName,
    /// The name exists, without usable records of this type.
    NoRecords,
}

impl Absence {
    /// For the end of a log line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSuchName => "the name does not exist (NXDOMAIN)",
            Self::NoRecords => "the name has no such records",
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveFailure {
    /// Nobody answered in time, or nobody listens there.
    Timeout,
    /// The server said SERVFAIL.
    ServerFailure,
    /// The server said REFUSED.
    Refused,
    /// The server answered with another error code.
    ErrorCode,
    /// The answer cannot be read.
    Malformed,
    /// No server could be reached.
    Unreachable,
    /// The name cannot be asked for.
    InvalidName,
    /// Our own side failed.
    Internal,
}

impl ResolveFailure {
    /// For the end of a log line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Timeout => "no DNS server answered in time",
            Self::ServerFailure => "the DNS server failed (SERVFAIL)",
            Self::Refused => "the DNS server refused to answer (REFUSED)",
            Self::ErrorCode => "the DNS server answered with an error code",
            Self::Malformed => "the answer of the DNS server cannot be read",
            Self::Unreachable => "no DNS server can be reached",
            Self::InvalidName => "the name cannot be asked for",
            Self::Internal => "the resolver itself failed",
        }
    }
}
