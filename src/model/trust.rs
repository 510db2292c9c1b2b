//! Pure: which clients are proxies whose word about *their* client is believed (ADR 17).

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Whether what a client says about others is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// It is a proxy of ours: what it says about its client stands.
    Believed,
    /// It may be anybody: only what we see ourselves stands.
    Hearsay,
}

/// The networks of the proxies that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

/// Why a text names no networks. Carries the entry as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustedProxiesError {
    /// Neither an address, nor a network, nor a keyword.
    Entry(String),
    /// Bits are set behind the prefix, so either the address or the prefix is a mistake.
    HostBits(String, IpNet),
    /// `none` beside something else.
    NoneAndMore,
}

/// What `private` stands for: loopback (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3), private use
/// (RFC 1918, RFC 4193) and link-local (RFC 3927, RFC 4291 §2.5.6).
const PRIVATE: [&str; 8] = [
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

impl TrustedProxies {
    /// What [`TrustedProxies::parse`] accepts, for error messages.
    pub const ACCEPTED: &'static str = "private, none, or addresses and networks such as 192.0.2.7 and 2001:db8::/32, with commas \
         between";

    /// Reads addresses, networks and keywords, with commas between.
    ///
    /// # Errors
    /// The first entry that is wrong, as written, and why.
    pub fn parse(text: &str) -> Result<Self, TrustedProxiesError> {
        let mut networks = Vec::new();
        let entries: Vec<&str> = text.split(',').map(str::trim).collect();
        for entry in &entries {
            match *entry {
                entry if entry.eq_ignore_ascii_case("none") => {
                    if entries.len() > 1 {
                        return Err(TrustedProxiesError::NoneAndMore);
                    }
                }
                entry if entry.eq_ignore_ascii_case("private") => {
                    for network in PRIVATE {
                        networks.push(parse_network(network)?);
                    }
                }
                entry => networks.push(parse_network(entry)?),
            }
        }
        Ok(Self(networks))
    }

    /// Whether a client at this address is believed. Asked once per connection.
    pub fn trust(&self, address: IpAddr) -> Trust {
        // An IPv4 client of a `[::]` listener is an IPv4 client.
        let address = address.to_canonical();
        match self.0.iter().any(|network| network.contains(&address)) {
            true => Trust::Believed,
            false => Trust::Hearsay,
        }
    }
}

impl fmt::Display for TrustedProxiesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry(entry) => write!(f, "{entry:?} is neither an address nor a network"),
            Self::HostBits(entry, network) => {
                write!(f, "{entry:?} has bits behind its prefix; the network is {network}")
            }
            Self::NoneAndMore => f.write_str("\"none\" stands alone"),
        }
    }
}

fn parse_network(entry: &str) -> Result<IpNet, TrustedProxiesError> {
    let unknown = || TrustedProxiesError::Entry(entry.to_owned());
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let network: IpNet = entry.parse().map_err(|_| unknown())?;
    if network.trunc() != network {
        return Err(TrustedProxiesError::HostBits(entry.to_owned(), network.trunc()));
    }
    Ok(canonical(network))
}

/// `::ffff:192.0.2.0/120` is `192.0.2.0/24`: clients are compared in their canonical form, so that
/// networks must be.
fn canonical(network: IpNet) -> IpNet {
    /// Bits in front of the IPv4 address in an IPv4-mapped one (RFC 4291 §2.5.5.2).
    const MAPPED_PREFIX: u8 = 96;
    let as_ipv4 = |network: Ipv6Net| {
        let prefix = network.prefix_len().checked_sub(MAPPED_PREFIX)?;
        Ipv4Net::new(network.addr().to_ipv4_mapped()?, prefix).ok()
    };
    match network {
        IpNet::V6(network) => as_ipv4(network).map_or(IpNet::V6(network), IpNet::V4),
        IpNet::V4(_) => network,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every boundary of what `private` stands for, from both sides.
    #[test]
    fn private_is_loopback_private_use_and_link_local() {
        let inside = [
            "127.0.0.1",
            "127.255.255.255",
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.0",
            "192.168.255.255",
            "169.254.0.1",
            "::1",
            "fc00::",
            "fdff:ffff::1",
            "fe80::1",
            "febf::1",
            "::ffff:10.1.2.3",
            "::ffff:127.0.0.1",
        ];
        let outside = [
            "126.255.255.255",
            "128.0.0.0",
            "9.255.255.255",
            "11.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "169.253.255.255",
            "169.255.0.0",
            "0.0.0.0",
            "100.64.0.1",
            "192.0.2.1",
            "::",
            "::2",
            "fbff::1",
            "fe00::1",
            "fe7f::1",
            "fec0::1",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "::ffff:11.0.0.0",
            "::7f00:1",
        ];
        for list in ["private", "Private", "192.0.2.7/32, PRIVATE"] {
            let trusted = TrustedProxies::parse(list).unwrap();
            for address in inside {
                assert_eq!(trusted.trust(address.parse().unwrap()), Trust::Believed, "{address}");
            }
            for address in outside {
                assert_eq!(trusted.trust(address.parse().unwrap()), Trust::Hearsay, "{address}");
            }
        }
    }

    #[test]
    fn a_list_trusts_its_members_and_nobody_else() {
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("none", &[], &["127.0.0.1", "::1", "10.0.0.1"]),
            ("192.0.2.7", &["192.0.2.7", "::ffff:192.0.2.7"], &["192.0.2.6", "192.0.2.8", "::1"]),
            ("::ffff:192.0.2.7", &["192.0.2.7"], &["192.0.2.8"]),
            ("::ffff:192.0.2.0/120", &["192.0.2.255"], &["192.0.3.0", "::1"]),
            ("::ffff:0:0/96", &["192.0.2.1", "0.0.0.0"], &["::1"]),
            (
                "192.0.2.128/25 ,2001:db8::/33",
                &["192.0.2.128", "2001:db8:7fff::"],
                &["192.0.2.127", "2001:db8:8000::"],
            ),
            // One family says nothing about the other.
            ("0.0.0.0/0", &["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"], &["::1", "::"]),
            ("::/0", &["::1", "2001:db8::1"], &["192.0.2.1", "::ffff:192.0.2.1"]),
        ];
        for (list, members, others) in cases {
            let trusted = TrustedProxies::parse(list).unwrap();
            for address in *members {
                let trust = trusted.trust(address.parse().unwrap());
                assert_eq!(trust, Trust::Believed, "{address} in {list}");
            }
            for address in *others {
                let trust = trusted.trust(address.parse().unwrap());
                assert_eq!(trust, Trust::Hearsay, "{address} in {list}");
            }
        }
    }

    #[test]
    fn what_names_no_network_is_refused_with_the_entry() {
        for (list, entry) in [
            ("localhost", "localhost"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0/8", "10.0.0/8"),
            ("10.0.0.0/", "10.0.0.0/"),
            ("10.0.0.0/+8", "10.0.0.0/+8"),
            ("::/129", "::/129"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]", "[::1]"),
            ("private,,::1", ""),
            ("10.0.0.0/8 10.0.0.1", "10.0.0.0/8 10.0.0.1"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("010.0.0.1", "010.0.0.1"),
        ] {
            let want = TrustedProxiesError::Entry(entry.to_owned());
            assert_eq!(TrustedProxies::parse(list), Err(want), "{list}");
        }
        let error = TrustedProxies::parse("private, 10.1.2.3/8").unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"10.1.2.3/8\" has bits behind its prefix; the network is 10.0.0.0/8"
        );
        for list in ["none, private", "::1,NONE", "none,none"] {
            assert_eq!(TrustedProxies::parse(list), Err(TrustedProxiesError::NoneAndMore));
        }
    }
}
