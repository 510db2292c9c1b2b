//! Pure: hashes on which every process of every version agrees.
//!
//! Replicas of the balancer send equal keys to equal backends without talking to each other, also
//! while one of them is being upgraded. That takes one function with a fixed seed, for ever: XXH3
//! is specified to the bit, and its seed here is zero. It is no secret: whoever may choose keys may
//! choose where they lead, as they could by repeating one key.

use std::net::SocketAddr;

use twox_hash::XxHash3_64;

/// Hash of what a request is hashed on.
#[inline]
pub fn hash_of_key(octets: &[u8]) -> u64 {
    XxHash3_64::oneshot(octets)
}

/// Hash of where a backend is. IPv4 addresses count as IPv4-mapped ones, so that it does not matter
/// how somebody wrote them.
pub fn hash_of_address(address: SocketAddr) -> u64 {
    let mut octets = [0; 18];
    octets[..16].copy_from_slice(&address_octets(address.ip()));
    octets[16..].copy_from_slice(&address.port().to_be_bytes());
    XxHash3_64::oneshot(&octets)
}

/// An IP address as sixteen octets, IPv4 ones mapped (RFC 4291 §2.5.5.2).
pub fn address_octets(address: std::net::IpAddr) -> [u8; 16] {
    match address {
        std::net::IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the reference implementation of XXH3, and ours. If one changes, replicas of two
    /// versions disagree, and every key moves once.
    #[test]
    fn hashes_are_the_same_for_ever() {
        assert_eq!(hash_of_key(b""), 0x2d06_8005_38d3_94c2);
        let address = |text: &str| hash_of_address(text.parse().unwrap());
        assert_eq!(address("10.0.0.1:80"), address("[::ffff:10.0.0.1]:80"));
        assert_ne!(address("10.0.0.1:80"), address("10.0.0.1:81"));
        assert_eq!(hash_of_key(b"session-1"), 13_870_706_736_031_703_813);
        assert_eq!(address("10.0.0.1:80"), 12_696_379_816_737_388_838);
    }
}
