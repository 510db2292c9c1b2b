//! Pure: what the operator named as upstream, before discovery turns it into addresses.

use std::{fmt, net::SocketAddr, num::NonZeroU16};

use super::Weight;

/// One entry of `UPSTREAM_SERVICE`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// `ip:port`: used as it is.
    Address {
        /// The address.
        address: SocketAddr,
        /// Its share of new work.
        weight: Weight,
        /// Where its health is asked for, if not there nor where all others are asked.
        health_port: Option<NonZeroU16>,
    },
    /// `name:port`: A and AAAA records, refreshed.
    Name {
        /// Host name, without a trailing dot unless the operator wrote one.
        host: String,
        /// Port that every resolved address gets.
        port: u16,
        /// Share of new work that each resolved address gets.
        weight: Weight,
        /// Where each of them is asked for its health, as above.
        health_port: Option<NonZeroU16>,
    },
    /// `srv:_service._proto.name`: port, priority and weight come from the records.
    Srv {
        /// The name to ask for.
        name: String,
        /// Where each address is asked for its health, as above.
        health_port: Option<NonZeroU16>,
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
    /// Something behind `;` that is neither `weight=` nor `health_port=`.
    UnknownParameter,
    /// A weight that is not in `1..=65535`.
    InvalidWeight,
    /// A port for health checks that is not in `1..=65535`.
    InvalidHealthPort,
    /// `weight=` twice.
    RepeatedWeight,
    /// `health_port=` twice.
    RepeatedHealthPort,
    /// A weight for SRV records, which have their own.
    WeightOfSrv,
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
            Self::UnknownParameter => "only ;weight= and ;health_port= may follow the port",
            Self::InvalidWeight => {
                "the weight is not a number from 1 to 65535; leave out who shall get nothing"
            }
            Self::InvalidHealthPort => {
                "the port of the health checks is not a number from 1 to 65535"
            }
            Self::RepeatedWeight => "the weight is given twice",
            Self::RepeatedHealthPort => "the port of the health checks is given twice",
            Self::WeightOfSrv => "SRV records bring their own weights",
        }
    }
}

impl Target {
    /// What [`Target::parse_list`] accepts, for error messages.
    pub const ACCEPTED: &'static str = "name:port or ip:port, with ;weight=1 to 65535 behind or without, or srv:_service._proto.name; each with ;health_port=1 to 65535 behind or without; or several of these with commas between";

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
        let mut parts = entry.split(';').map(str::trim);
        let entry = parts.next().unwrap_or_default();
        let Parameters { weight, health_port } = Parameters::parse(parts)?;
        if let Some(name) = entry.strip_prefix("srv:") {
            if weight.is_some() {
                return Err(TargetError::WeightOfSrv);
            }
            return match is_dns_name(name) {
                true => Ok(Self::Srv { name: name.to_owned(), health_port }),
                false => Err(TargetError::InvalidHost),
            };
        }
        let weight = weight.unwrap_or(Weight::ONE);
        if let Ok(address) = entry.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(TargetError::InvalidPort),
                _ => Ok(Self::Address { address, weight, health_port }),
            };
        }
        let (host, port) = entry.rsplit_once(':').ok_or(TargetError::MissingPort)?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or(TargetError::InvalidPort)?;
        // A dotted quad that did not parse as an address above is a typing error, not a name.
        let looks_like_ip = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if looks_like_ip || !is_dns_name(host) {
            return Err(TargetError::InvalidHost);
        }
        Ok(Self::Name { host: host.to_owned(), port, weight, health_port })
    }
}

/// What stands behind the semicolons.
#[derive(Default)]
struct Parameters {
    weight: Option<Weight>,
    health_port: Option<NonZeroU16>,
}

impl Parameters {
    fn parse<'a>(parameters: impl Iterator<Item = &'a str>) -> Result<Self, TargetError> {
        let mut parsed = Self::default();
        for parameter in parameters {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (name, digits) = (name.trim_end(), value.trim_start());
            let is_number = digits.bytes().all(|b| b.is_ascii_digit());
            let number = digits.parse::<u16>().ok().filter(|_| is_number);
            if name.eq_ignore_ascii_case("weight") {
                let weight = number.and_then(Weight::new).ok_or(TargetError::InvalidWeight)?;
                if parsed.weight.replace(weight).is_some() {
                    return Err(TargetError::RepeatedWeight);
                }
            } else if name.eq_ignore_ascii_case("health_port") {
                let port = number.and_then(NonZeroU16::new);
                let port = port.ok_or(TargetError::InvalidHealthPort)?;
                if parsed.health_port.replace(port).is_some() {
                    return Err(TargetError::RepeatedHealthPort);
                }
            } else {
                return Err(TargetError::UnknownParameter);
            }
        }
        Ok(parsed)
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
        let (weight, health_port) = match self {
            Self::Address { address, weight, health_port } => {
                write!(f, "{address}")?;
                (*weight, health_port)
            }
            Self::Name { host, port, weight, health_port } => {
                write!(f, "{host}:{port}")?;
                (*weight, health_port)
            }
            Self::Srv { name, health_port } => {
                write!(f, "srv:{name}")?;
                (Weight::ONE, health_port)
            }
        };
        if weight != Weight::ONE {
            write!(f, ";weight={}", weight.get())?;
        }
        health_port.map_or(Ok(()), |port| write!(f, ";health_port={port}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(host: &str, port: u16) -> Target {
        Target::Name { host: host.to_owned(), port, weight: Weight::ONE, health_port: None }
    }

    fn address(text: &str, weight: u16) -> Target {
        let weight = Weight::new(weight).unwrap();
        Target::Address { address: text.parse().unwrap(), weight, health_port: None }
    }

    fn srv(health_port: Option<u16>) -> Target {
        let health_port = health_port.and_then(NonZeroU16::new);
        Target::Srv { name: "_http._tcp.x".to_owned(), health_port }
    }

    #[test]
    fn every_documented_form_is_read() {
        let cases: &[(&str, Vec<Target>)] = &[
            ("workers:8080", vec![name("workers", 8080)]),
            ("workers.ns.svc.cluster.local.:80", vec![name("workers.ns.svc.cluster.local.", 80)]),
            ("127.0.0.1:80", vec![address("127.0.0.1:80", 1)]),
            ("[::1]:80", vec![address("[::1]:80", 1)]),
            ("srv:_http._tcp.x", vec![srv(None)]),
            ("srv:_http._tcp.x;health_port=9", vec![srv(Some(9))]),
            ("a:1, b:2", vec![name("a", 1), name("b", 2)]),
            ("10.0.0.1:80;weight=3", vec![address("10.0.0.1:80", 3)]),
            ("[::1]:80 ; Weight = 65535,b:2", vec![address("[::1]:80", 65_535), name("b", 2)]),
            (
                "a:1;weight=7",
                vec![Target::Name {
                    host: "a".to_owned(),
                    port: 1,
                    weight: Weight::new(7).unwrap(),
                    health_port: None,
                }],
            ),
            (
                "a:1; Health_Port = 9000;weight=7",
                vec![Target::Name {
                    host: "a".to_owned(),
                    port: 1,
                    weight: Weight::new(7).unwrap(),
                    health_port: NonZeroU16::new(9000),
                }],
            ),
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
            ("a:1;", TargetError::UnknownParameter),
            ("a:1;wight=1", TargetError::UnknownParameter),
            ("a:1;weight", TargetError::InvalidWeight),
            ("a:1;weight=", TargetError::InvalidWeight),
            ("a:1;weight=0", TargetError::InvalidWeight),
            ("a:1;weight=+1", TargetError::InvalidWeight),
            ("a:1;weight=1.5", TargetError::InvalidWeight),
            ("a:1;weight=65536", TargetError::InvalidWeight),
            ("a:1;weight=1;weight=1", TargetError::RepeatedWeight),
            ("srv:_a._tcp.b;weight=2", TargetError::WeightOfSrv),
            ("a;weight=2", TargetError::MissingPort),
            ("a:1;health_port=", TargetError::InvalidHealthPort),
            ("a:1;health_port=0", TargetError::InvalidHealthPort),
            ("a:1;health_port=65536", TargetError::InvalidHealthPort),
            ("a:1;health_port=same", TargetError::InvalidHealthPort),
            ("a:1;health_port=9;health_port=9", TargetError::RepeatedHealthPort),
            ("srv:_a._tcp.b;health_port=9;weight=2", TargetError::WeightOfSrv),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse_list(text).unwrap_err().1, want, "{text}");
        }
    }

    #[test]
    fn display_is_what_the_operator_would_write() {
        for text in [
            "workers:8080",
            "127.0.0.1:80",
            "[::1]:80",
            "srv:_http._tcp.x",
            "a:1;weight=2",
            "a:1;weight=2;health_port=9",
            "127.0.0.1:80;health_port=9",
            "srv:_http._tcp.x;health_port=9",
        ] {
            assert_eq!(Target::parse_list(text).unwrap()[0].to_string(), text);
        }
    }
}
