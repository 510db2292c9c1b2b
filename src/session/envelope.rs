//! Pure: the sealed envelope that a client carries in place of a backend's own session id.
//!
//! `base64url(version ‖ nonce ‖ ciphertext ‖ tag)`, with XChaCha20-Poly1305 (ADR 18). Inside are
//! the name of the backend, which is its instance id and its address, and the value that the
//! backend gave. Whoever has a key can open it, so replicas need nothing else in common.
//!
//! Invariants
//! - An envelope has one spelling: whatever differs from it in one bit does not open.
//! - It opens only for the purpose for which it was sealed.
//! - It is visible ASCII, needs no quoting in a cookie, and has at most [`TOKEN_BYTES_MAX`] octets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce, aead::AeadInOut};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER_PERMISSIVE};

use crate::model::InstanceId;

/// Longest value that is sealed, in octets. With it and the longest instance id, an envelope still
/// fits into a cookie, for which browsers have 4096.
pub const VALUE_BYTES_MAX: usize = 2048;

/// Longest envelope, in octets of text.
pub const TOKEN_BYTES_MAX: usize = (SEALED_BYTES_MAX * 4).div_ceil(3);

// A cookie has room for its name and attributes.
const _: () = assert!(TOKEN_BYTES_MAX < 4000);

const VERSION: u8 = 1;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const OVERHEAD_BYTES: usize = 1 + NONCE_BYTES + TAG_BYTES;
/// Form, length of the instance id, and an IPv6 address with its port.
const NAME_BYTES_MAX: usize = 2 + InstanceId::BYTES_MAX + 18;
const SEALED_BYTES_MAX: usize = OVERHEAD_BYTES + NAME_BYTES_MAX + VALUE_BYTES_MAX;

/// A secret of 256 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; Self::BYTES]);

/// Why a text is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// Not 64 hexadecimal digits.
    Form,
    /// One octet again and again: a placeholder, not a secret.
    Placeholder,
}

impl Key {
    /// Octets of a key.
    pub const BYTES: usize = 32;

    /// Takes a key as it was drawn.
    pub fn new(octets: [u8; Self::BYTES]) -> Self {
        Self(octets)
    }

    /// Reads 64 hexadecimal digits.
    ///
    /// # Errors
    /// Says what is wrong, without repeating the text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let octets = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map_err(|_| KeyError::Form)?;
        let octets: [u8; Self::BYTES] = octets.try_into().map_err(|_| KeyError::Form)?;
        match octets.iter().all(|octet| *octet == octets[0]) {
            true => Err(KeyError::Placeholder),
            false => Ok(Self(octets)),
        }
    }
}

impl KeyError {
    /// The reason in words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Form => "a key is 64 hexadecimal digits",
            Self::Placeholder => "a key that repeats one octet is no secret",
        }
    }
}

// A key is in no log, whoever prints a configuration.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(not shown)")
    }
}

/// Keys in use: the first seals, all open.
#[derive(Debug)]
pub struct Keys(Vec<XChaCha20Poly1305>);

/// Never used twice with one key: drawn at random, or random in front and counted behind.
pub type Nonce = [u8; NONCE_BYTES];

/// What an envelope is for: an envelope for one purpose does not open for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purpose(Box<[u8]>);

impl Purpose {
    /// Of a kind, under a name that is compared octet by octet.
    pub(super) fn new(kind: u8, name: &[u8]) -> Self {
        Self([&[VERSION, kind], name].concat().into())
    }
}

/// Who has a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named<'a> {
    /// The instance, if the backend has told its name.
    pub instance: Option<&'a str>,
    /// Where it was. All there is where nobody tells instances; else only for the record.
    pub address: SocketAddr,
}

/// What was in an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Who has the session.
    pub named: Named<'a>,
    /// What the backend called it.
    pub value: &'a [u8],
    /// Sealed with the first key: needs no renewal.
    pub is_current: bool,
    /// Tells two envelopes apart that hold the same.
    pub nonce: Nonce,
}

/// Why an envelope stays closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// It has not the form of one: perhaps it never was.
    NoEnvelope,
    /// It has the form, and no key opens it: forged, damaged, for another purpose, or sealed with a
    /// key that is not here.
    Refused,
}

impl Keys {
    /// Makes keys ready for use. Without any, nothing opens and nothing may be sealed.
    pub fn new(keys: &[Key]) -> Self {
        Self(keys.iter().map(|key| XChaCha20Poly1305::new((&key.0).into())).collect())
    }

    /// Seals a value for a backend. `None` if the value is too long.
    pub fn seal(
        &self,
        purpose: &Purpose,
        named: Named<'_>,
        value: &[u8],
        nonce: &Nonce,
    ) -> Option<String> {
        let key = self.0.first().filter(|_| value.len() <= VALUE_BYTES_MAX)?;
        let mut sealed = Vec::with_capacity(OVERHEAD_BYTES + NAME_BYTES_MAX + value.len());
        sealed.push(VERSION);
        sealed.extend_from_slice(nonce);
        write_name(&mut sealed, named);
        sealed.extend_from_slice(value);
        let content = &mut sealed[1 + NONCE_BYTES..];
        let tag = key.encrypt_inout_detached(nonce.into(), &purpose.0, content.into()).ok()?;
        sealed.extend_from_slice(&tag);
        Some(BASE64URL_NOPAD.encode(&sealed))
    }

    /// Opens an envelope into `room`.
    ///
    /// # Errors
    /// Whether it was one at all.
    pub fn open<'r>(
        &self,
        purpose: &Purpose,
        token: &[u8],
        room: &'r mut Vec<u8>,
    ) -> Result<Opened<'r>, OpenError> {
        let bytes = BASE64URL_NOPAD.decode_len(token.len()).map_err(|_| OpenError::NoEnvelope)?;
        if !(OVERHEAD_BYTES..=SEALED_BYTES_MAX).contains(&bytes) {
            return Err(OpenError::NoEnvelope);
        }
        room.clear();
        room.resize(bytes, 0);
        BASE64URL_NOPAD.decode_mut(token, room).map_err(|_| OpenError::NoEnvelope)?;
        let (version, rest) = room.split_first_mut().ok_or(OpenError::NoEnvelope)?;
        if *version != VERSION {
            return Err(OpenError::NoEnvelope);
        }
        let (nonce, rest) = rest.split_at_mut(NONCE_BYTES);
        let (content, tag) = rest.split_at_mut(rest.len() - TAG_BYTES);
        let nonce = XNonce::try_from(&*nonce).map_err(|_| OpenError::NoEnvelope)?;
        let tag = Tag::try_from(&*tag).map_err(|_| OpenError::NoEnvelope)?;
        // A key that does not fit leaves the content as it is: the tag is looked at first.
        let opens = |key: &XChaCha20Poly1305, content: &mut [u8]| {
            key.decrypt_inout_detached(&nonce, &purpose.0, content.into(), &tag).is_ok()
        };
        let by = self.0.iter().position(|key| opens(key, content)).ok_or(OpenError::Refused)?;
        let (named, value) = read_name(content).ok_or(OpenError::Refused)?;
        Ok(Opened { named, value, is_current: by == 0, nonce: nonce.into() })
    }
}

/// Bits of the first octet of a name.
mod form {
    pub(super) const INSTANCE: u8 = 1;
    pub(super) const IPV6: u8 = 2;
}

fn write_name(out: &mut Vec<u8>, named: Named<'_>) {
    let instance = named.instance.map(str::as_bytes);
    let ipv6 = if named.address.is_ipv6() { form::IPV6 } else { 0 };
    out.push(ipv6 | if instance.is_some() { form::INSTANCE } else { 0 });
    match named.address.ip() {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    out.extend_from_slice(&named.address.port().to_be_bytes());
    if let Some(instance) = instance {
        // 1 to 256 octets, so the length less one fits.
        out.push(u8::try_from(instance.len() - 1).unwrap_or(u8::MAX));
        out.extend_from_slice(instance);
    }
}

fn read_name(content: &[u8]) -> Option<(Named<'_>, &[u8])> {
    let (form, rest) = content.split_first()?;
    let (ip, rest) = match form & form::IPV6 {
        0 => rest.split_first_chunk().map(|(ip, rest)| (Ipv4Addr::from(*ip).into(), rest))?,
        _ => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            (Ipv6Addr::from(*ip).into(), rest)
        }
    };
    let (port, rest) = rest.split_first_chunk()?;
    let address = SocketAddr::new(ip, u16::from_be_bytes(*port));
    if form & form::INSTANCE == 0 {
        return Some((Named { instance: None, address }, rest));
    }
    let (length, rest) = rest.split_first()?;
    let (instance, value) = rest.split_at_checked(usize::from(*length) + 1)?;
    let instance = std::str::from_utf8(instance).ok()?;
    Some((Named { instance: Some(instance), address }, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Key {
        Key::new(std::array::from_fn(|place| number ^ u8::try_from(place).unwrap()))
    }

    fn keys(numbers: &[u8]) -> Keys {
        Keys::new(&numbers.iter().map(|number| key(*number)).collect::<Vec<_>>())
    }

    fn purpose() -> Purpose {
        Purpose::new(1, b"mcp-session-id")
    }

    fn somebody() -> Named<'static> {
        Named { instance: Some("pod-1-0000abcd"), address: "10.1.2.3:8000".parse().unwrap() }
    }

    fn open(keys: &Keys, purpose: &Purpose, token: &[u8]) -> Result<(Vec<u8>, bool), OpenError> {
        let mut room = Vec::new();
        let opened = keys.open(purpose, token, &mut room)?;
        assert_eq!(opened.named, somebody());
        Ok((opened.value.to_vec(), opened.is_current))
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let keys = keys(&[1]);
        let token = keys.seal(&purpose(), somebody(), b"id-1", &[7; 24]).unwrap();
        assert_eq!(open(&keys, &purpose(), token.as_bytes()), Ok((b"id-1".to_vec(), true)));
        for place in 0..token.len() {
            for bit in 0..8 {
                let mut forged = token.clone().into_bytes();
                forged[place] ^= 1 << bit;
                assert!(open(&keys, &purpose(), &forged).is_err(), "bit {bit} of octet {place}");
            }
        }
        for length in 0..token.len() {
            assert!(open(&keys, &purpose(), &token.as_bytes()[..length]).is_err(), "{length}");
        }
        for behind in ["A", "=", "AA", "AAAA", " "] {
            assert!(open(&keys, &purpose(), format!("{token}{behind}").as_bytes()).is_err());
        }
    }

    #[test]
    fn every_flipped_bit_of_what_is_sealed_is_refused_by_the_tag() {
        let keys = keys(&[1]);
        let token = keys.seal(&purpose(), somebody(), b"id-1", &[7; 24]).unwrap();
        let sealed = BASE64URL_NOPAD.decode(token.as_bytes()).unwrap();
        for place in 0..sealed.len() {
            for bit in 0..8 {
                let mut forged = sealed.clone();
                forged[place] ^= 1 << bit;
                let forged = BASE64URL_NOPAD.encode(&forged);
                let want = if place == 0 { OpenError::NoEnvelope } else { OpenError::Refused };
                assert_eq!(open(&keys, &purpose(), forged.as_bytes()), Err(want), "{place} {bit}");
            }
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let [before, during, after] = [keys(&[1]), keys(&[2, 1]), keys(&[2])];
        let old = before.seal(&purpose(), somebody(), b"x", &[1; 24]).unwrap();
        let new = during.seal(&purpose(), somebody(), b"x", &[2; 24]).unwrap();
        assert_eq!(open(&during, &purpose(), old.as_bytes()), Ok((b"x".to_vec(), false)));
        assert_eq!(open(&during, &purpose(), new.as_bytes()), Ok((b"x".to_vec(), true)));
        assert_eq!(open(&after, &purpose(), new.as_bytes()), Ok((b"x".to_vec(), true)));
        assert_eq!(open(&after, &purpose(), old.as_bytes()), Err(OpenError::Refused));
        assert_eq!(open(&before, &purpose(), new.as_bytes()), Err(OpenError::Refused));
        assert_eq!(keys(&[]).seal(&purpose(), somebody(), b"x", &[3; 24]), None);
    }

    #[test]
    fn an_envelope_opens_for_its_own_purpose_only() {
        let keys = keys(&[1]);
        let token = keys.seal(&purpose(), somebody(), b"x", &[1; 24]).unwrap();
        for other in [Purpose::new(2, b"mcp-session-id"), Purpose::new(1, b"mcp-session-i")] {
            assert_eq!(open(&keys, &other, token.as_bytes()), Err(OpenError::Refused));
        }
    }

    #[test]
    fn the_longest_envelope_keeps_the_bound_and_a_longer_value_is_not_sealed() {
        let keys = keys(&[1]);
        let instance = "i".repeat(InstanceId::BYTES_MAX);
        let named =
            Named { instance: Some(&instance), address: "[2001:db8::1]:65535".parse().unwrap() };
        let token = keys.seal(&purpose(), named, &[0; VALUE_BYTES_MAX], &[1; 24]).unwrap();
        assert_eq!(token.len(), TOKEN_BYTES_MAX);
        let mut room = Vec::new();
        assert_eq!(keys.open(&purpose(), token.as_bytes(), &mut room).unwrap().named, named);
        assert_eq!(keys.seal(&purpose(), named, &[0; VALUE_BYTES_MAX + 1], &[1; 24]), None);
    }

    #[test]
    fn a_key_is_64_digits_that_are_not_all_the_same_and_is_never_shown() {
        let text = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
        let key = Key::parse(text).unwrap();
        assert_eq!(key, Key::new(std::array::from_fn(|place| u8::try_from(place).unwrap())));
        assert!(!format!("{key:?}").contains("0b0c"), "{key:?}");
        for wrong in ["", "00", &text[1..], &format!("{text}00"), &text.replace('0', "g")] {
            assert_eq!(Key::parse(wrong), Err(KeyError::Form), "{wrong}");
        }
        assert_eq!(Key::parse(&"5a".repeat(32)), Err(KeyError::Placeholder));
    }

    proptest! {
        #[test]
        fn what_was_sealed_is_what_opens(
            instance in proptest::option::of("[!-~]{1,256}"),
            v6 in any::<bool>(), ip in any::<u128>(), port in any::<u16>(),
            value in proptest::collection::vec(any::<u8>(), 0..200), nonce in any::<[u8; 24]>(),
        ) {
            let ip = match v6 {
                true => IpAddr::V6(Ipv6Addr::from(ip)),
                false => IpAddr::V4(Ipv4Addr::from(u32::try_from(ip >> 96).unwrap())),
            };
            let address = SocketAddr::new(ip, port);
            let named = Named { instance: instance.as_deref(), address };
            let keys = keys(&[3]);
            let token = keys.seal(&purpose(), named, &value, &nonce).unwrap();
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            prop_assert!(token.len() <= TOKEN_BYTES_MAX);
            let mut room = Vec::new();
            let opened = keys.open(&purpose(), token.as_bytes(), &mut room).unwrap();
            prop_assert_eq!(opened, Opened { named, value: &value, is_current: true, nonce });
        }

        #[test]
        fn no_text_opens_by_chance_or_panics(
            token in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            prop_assert!(keys(&[3]).open(&purpose(), &token, &mut Vec::new()).is_err());
        }
    }
}
