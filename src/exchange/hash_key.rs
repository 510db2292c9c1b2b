//! Pure: the key of a request, where requests are hashed.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU64,
};

use crate::{
    http1::{Field, RequestHead},
    model::{HashOn, Trust, TrustedProxies, address_octets, hash_of_key},
};

/// The hash of what the request is hashed on; `None` when it has no such part, or an empty one:
/// then nothing binds it to a backend. Values are hashed as they were sent, without decoding; of
/// several fields, cookies or parameters of one name the first counts. `client` is the address that
/// the connection came from.
pub fn hash_key(
    head: &RequestHead<'_>,
    on: &HashOn,
    client: IpAddr,
    trusted: &TrustedProxies,
) -> Option<NonZeroU64> {
    let octets = match on {
        HashOn::ClientAddress => {
            let address = client_address(head, client, trusted).to_canonical();
            return Some(number(hash_of_key(&address_octets(address))));
        }
        HashOn::Header(name) => values(head, name).next(),
        HashOn::Cookie(name) => cookie(head, name.as_bytes()),
        HashOn::Query(name) => parameter(head.target.forwarded(), name.as_bytes()),
        HashOn::Path => Some(head.target.path()),
    };
    octets.filter(|octets| !octets.is_empty()).map(|octets| number(hash_of_key(octets)))
}

/// Every connection has room for a key, which costs nothing more if none of them is zero.
fn number(hash: u64) -> NonZeroU64 {
    NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN)
}

/// Who the client is, as far as it can be believed. A trusted proxy is believed about whom it got
/// the request from, which may be another trusted proxy: so `X-Forwarded-For` is read from behind,
/// for as long as those in it are trusted. What stands before the first stranger is that stranger's
/// claim; hashed on, it would let anybody choose a backend with every request.
fn client_address(head: &RequestHead<'_>, client: IpAddr, trusted: &TrustedProxies) -> IpAddr {
    let lines = head.fields.iter().rev();
    let lines = lines.filter(|line| Field::of(line.name.as_bytes()) == Field::XForwardedFor);
    let mut told = lines.flat_map(|line| line.value.rsplit(|b| *b == b','));
    let mut believed = client;
    while trusted.trust(believed) == Trust::Believed {
        match told.next().and_then(forwarded_address) {
            Some(address) => believed = address,
            // The proxy says nothing, or nothing that is an address: then it is all we know.
            None => break,
        }
    }
    believed
}

/// A member of `X-Forwarded-For`: an address, with or without brackets and a port, as proxies write
/// it.
fn forwarded_address(member: &[u8]) -> Option<IpAddr> {
    let member = std::str::from_utf8(member.trim_ascii()).ok()?;
    let bare = member.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(member).parse().ok();
    address.or_else(|| member.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

fn values<'a>(head: &RequestHead<'a>, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let is_named = move |line: &&_| is_called(line, name);
    fn is_called(line: &crate::http1::FieldLine<'_>, name: &str) -> bool {
        line.name.eq_ignore_ascii_case(name)
    }
    head.fields.iter().filter(is_named).map(|line| line.value)
}

/// RFC 6265 §4.2.1: pairs with `; ` between. Some clients send several lines.
fn cookie<'a>(head: &RequestHead<'a>, name: &[u8]) -> Option<&'a [u8]> {
    let pairs = values(head, "cookie").flat_map(|value| value.split(|b| *b == b';'));
    value_of(pairs.map(<[u8]>::trim_ascii), name)
}

fn parameter<'a>(target: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let start = target.iter().position(|b| *b == b'?')? + 1;
    value_of(target[start..].split(|b| *b == b'&'), name)
}

fn value_of<'a>(mut pairs: impl Iterator<Item = &'a [u8]>, name: &[u8]) -> Option<&'a [u8]> {
    pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{field_storage, parse_request};

    const STRANGER: &str = "203.0.113.9";

    fn key(on: &str, lines: &str, client: &str) -> Option<NonZeroU64> {
        let octets = format!("GET /a/b?x=1&user=u7&user=u8 HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        let mut storage = field_storage();
        let head = parse_request(octets.as_bytes(), &mut storage, 100).unwrap();
        let trusted = TrustedProxies::parse("private").unwrap();
        hash_key(&head, &HashOn::parse(on).unwrap(), client.parse().unwrap(), &trusted)
    }

    #[test]
    fn each_part_of_a_request_is_found_as_it_was_sent() {
        for (on, lines, want) in [
            ("path", "", Some("/a/b")),
            ("query:x", "", Some("1")),
            ("query:user", "", Some("u7")),
            ("query:use", "", None),
            ("query:b", "", None),
            ("header:x-session", "X-Session: s 1 \r\n", Some("s 1")),
            ("header:x-session", "X-Session: a\r\nx-session: b\r\n", Some("a")),
            ("header:x-session", "X-Session:\r\n", None),
            ("header:x-session", "X-Sessions: a\r\n", None),
            ("cookie:SID", "Cookie: a=b; SID=31d4; SIDE=1\r\n", Some("31d4")),
            ("cookie:SID", "Cookie: SIDE=1\r\nCookie: SID=2\r\n", Some("2")),
            ("cookie:SID", "Cookie: sid=1; SID; SID=\r\n", None),
            ("cookie:SID", "", None),
        ] {
            let want = want.map(|text: &str| number(hash_of_key(text.as_bytes())));
            assert_eq!(key(on, lines, STRANGER), want, "{on} in {lines:?}");
        }
    }

    #[test]
    fn a_client_is_who_trusted_proxies_say_and_nobody_can_choose_to_be_another() {
        let own = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            Some(number(hash_of_key(&address_octets(address))))
        };
        let proxy = "10.0.0.1";
        for (client, lines, want) in [
            (STRANGER, "", STRANGER),
            (STRANGER, "X-Forwarded-For: 198.51.100.1\r\n", STRANGER),
            (proxy, "", proxy),
            (proxy, "X-Forwarded-For: 198.51.100.1\r\n", "198.51.100.1"),
            (proxy, "X-Forwarded-For: 198.51.100.1, 192.168.0.7\r\n", "198.51.100.1"),
            // What a stranger put in front of itself.
            (proxy, "X-Forwarded-For: 198.51.100.1, 203.0.113.5\r\n", "203.0.113.5"),
            (
                proxy,
                "X-Forwarded-For: 198.51.100.1\r\nx-forwarded-for: 203.0.113.5\r\n",
                "203.0.113.5",
            ),
            (proxy, "X-Forwarded-For: 192.168.0.1, 192.168.0.2\r\n", "192.168.0.1"),
            (proxy, "X-Forwarded-For: 198.51.100.1, unknown, 10.0.0.2\r\n", "10.0.0.2"),
            (proxy, "X-Forwarded-For: 198.51.100.1:4711\r\n", "198.51.100.1"),
            (proxy, "X-Forwarded-For: [2001:db8::1]:4711\r\n", "2001:db8::1"),
            (proxy, "X-Forwarded-For: [2001:db8::1]\r\n", "2001:db8::1"),
            (proxy, "X-Forwarded-For: 2001:db8::1\r\n", "2001:db8::1"),
            (proxy, "X-Forwarded-For: ::ffff:198.51.100.1\r\n", "198.51.100.1"),
            ("::ffff:203.0.113.9", "", STRANGER),
        ] {
            assert_eq!(key("client_address", lines, client), own(want), "{client} {lines:?}");
        }
    }
}
