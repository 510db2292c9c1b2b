//! Pure: what the operator named as upstream, before discovery turns it into addresses.

use std::{fmt, net::SocketAddr};

/// One entry of `UPSTREAM_SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `ip:port`: used as it is.
    Address(SocketAddr),
    /// `name:port`: A and AAAA records, refreshed.
    Name {
        /// Host name, without a trailing dot unless the operator wrote one.
        host: String,
        /// Port that every resolved address gets.
        port: u16,
    },
    /// `srv:_service._proto.name`: port, priority and weight come from the records.
    Srv {
        /// The name to ask for.
        name: String,
    },
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetError {
    /// Nothing between two commas, or nothing at all.
    Empty,
    /// A host without `:port`.
    MissingPort,
    /// A port that is not in `1..=65535`.
    InvalidPort,
    /// A host that is not a DNS name (RFC 1035 §2.3.4, letters, digits, `-`, `_`, `.`).
    InvalidHost,
    /// A scheme such as `http://`, which this option does not take.
    HasScheme,
    /// A path or query behind the port.
    HasPath,
}

impl TargetError {
    /// What is wrong, for the end of an error line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Empty => "an entry is empty",
            Self::MissingPort => "the port is missing",
            Self::InvalidPort => "the port is not a number from 1 to 65535",
            Self::InvalidHost => "the host is not a DNS name or an IP address",
            Self::HasScheme => "a scheme such as http:// is not part of an upstream",
            Self::HasPath => "a path is not part of an upstream",
        }
    }
}

impl Target {
    /// What [`Target::parse_list`] accepts, for error messages.
    pub const ACCEPTED: &'static str =
        "name:port, ip:port, srv:_service._proto.name, or several of these with commas between";

    /// Parses the value of `UPSTREAM_SERVICE`.
    ///
    /// # Errors
    /// The first entry that is wrong, as written, and why.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, (String, TargetError)> {
        text.split(',')
            .map(str::trim)
            .map(|entry| Self::parse(entry).map_err(|error| (entry.to_owned(), error)))
            .collect()
    }

    fn parse(entry: &str) -> Result<Self, TargetError> {
        if entry.is_empty() {
            return Err(TargetError::Empty);
        }
        if entry.contains("://") {
            return Err(TargetError::HasScheme);
        }
        if entry.contains(['/', '?', '#']) {
            return Err(TargetError::HasPath);
        }
        if let Some(name) = entry.strip_prefix("srv:") {
            return match is_dns_name(name) {
                true => Ok(Self::Srv { name: name.to_owned() }),
                false => Err(TargetError::InvalidHost),
            };
        }
        if let Ok(address) = entry.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(TargetError::InvalidPort),
                _ => Ok(Self::Address(address)),
            };
        }
        let (host, port) = entry.rsplit_once(':').ok_or(TargetError::MissingPort)?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or(TargetError::InvalidPort)?;
        // A dotted quad that did not parse as an address above is a typing error, not a name.
        let looks_like_ip = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if looks_like_ip || !is_dns_name(host) {
            return Err(TargetError::InvalidHost);
        }
        Ok(Self::Name { host: host.to_owned(), port })
    }
}

/// Letters, digits, `-` and `_` in labels of 1 to 63 octets, 253 in all, one trailing dot allowed.
fn is_dns_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Srv { name } => write!(f, "srv:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: u16) -> Target {
        Target::Name { host: host.to_owned(), port }
    }

    #[test]
    fn every_documented_form_is_read() {
        let cases: &[(&str, Vec<Target>)] = &[
            ("workers:8080", vec![name("workers", 8080)]),
            ("workers.ns.svc.cluster.local.:80", vec![name("workers.ns.svc.cluster.local.", 80)]),
            ("127.0.0.1:80", vec![Target::Address("127.0.0.1:80".parse().unwrap())]),
            ("[::1]:80", vec![Target::Address("[::1]:80".parse().unwrap())]),
            ("srv:_http._tcp.x", vec![Target::Srv { name: "_http._tcp.x".to_owned() }]),
            ("a:1, b:2", vec![name("a", 1), name("b", 2)]),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse_list(text).as_ref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn every_wrong_form_says_what_is_wrong() {
        let cases = [
            ("", TargetError::Empty),
            ("a:1,,b:2", TargetError::Empty),
            ("workers", TargetError::MissingPort),
            ("workers:http", TargetError::InvalidPort),
            ("workers:0", TargetError::InvalidPort),
            ("127.0.0.1:0", TargetError::InvalidPort),
            ("workers:65536", TargetError::InvalidPort),
            ("http://workers:80", TargetError::HasScheme),
            ("workers:80/path", TargetError::HasPath),
            ("wor kers:80", TargetError::InvalidHost),
            ("127.0.0.300:80", TargetError::InvalidHost),
            ("::1:80", TargetError::InvalidHost),
            (".:80", TargetError::InvalidHost),
            ("srv:", TargetError::InvalidHost),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse_list(text).unwrap_err().1, want, "{text}");
        }
    }

    #[test]
    fn display_is_what_the_operator_would_write() {
        for text in ["workers:8080", "127.0.0.1:80", "[::1]:80", "srv:_http._tcp.x"] {
            assert_eq!(Target::parse_list(text).unwrap()[0].to_string(), text);
        }
    }
}
