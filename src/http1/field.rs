//! Pure: the field names a proxy must know, and the list syntax of their values.

/// A field name that changes what the proxy does. Everything else is `Other` and passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the field of that name")]
pub enum Field {
    Accept,
    Authorization,
    CacheControl,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentType,
    Cookie,
    Date,
    Expect,
    Forwarded,
    Host,
    KeepAlive,
    MaxForwards,
    Origin,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    SetCookie,
    StepflowInstanceId,
    Te,
    TransferEncoding,
    Upgrade,
    Via,
    WwwAuthenticate,
    XAccelBuffering,
    XForwardedBy,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    /// Any other name that begins with `X-Forwarded-`.
    XForwardedOther,
    XRealIp,
    XStepflowRoutedInstance,
    Other,
}

impl Field {
    /// Field names are case-insensitive (RFC 9110 §5.1). The length decides first, and few names
    /// have the same.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        match name.len() {
            2 if is(name, b"te") => Self::Te,
            3 if is(name, b"via") => Self::Via,
            4 if is(name, b"date") => Self::Date,
            4 if is(name, b"host") => Self::Host,
            6 if is(name, b"accept") => Self::Accept,
            6 if is(name, b"cookie") => Self::Cookie,
            6 if is(name, b"origin") => Self::Origin,
            6 if is(name, b"expect") => Self::Expect,
            7 if is(name, b"upgrade") => Self::Upgrade,
            9 if is(name, b"forwarded") => Self::Forwarded,
            9 if is(name, b"x-real-ip") => Self::XRealIp,
            10 if is(name, b"connection") => Self::Connection,
            10 if is(name, b"set-cookie") => Self::SetCookie,
            10 if is(name, b"keep-alive") => Self::KeepAlive,
            12 if is(name, b"max-forwards") => Self::MaxForwards,
            12 if is(name, b"content-type") => Self::ContentType,
            13 if is(name, b"authorization") => Self::Authorization,
            13 if is(name, b"cache-control") => Self::CacheControl,
            14 if is(name, b"content-length") => Self::ContentLength,
            14 if is(name, b"x-forwarded-by") => Self::XForwardedBy,
            15 if is(name, b"x-forwarded-for") => Self::XForwardedFor,
            16 if is(name, b"x-forwarded-host") => Self::XForwardedHost,
            16 if is(name, b"content-encoding") => Self::ContentEncoding,
            16 if is(name, b"www-authenticate") => Self::WwwAuthenticate,
            16 if is(name, b"proxy-connection") => Self::ProxyConnection,
            17 if is(name, b"transfer-encoding") => Self::TransferEncoding,
            17 if is(name, b"x-accel-buffering") => Self::XAccelBuffering,
            17 if is(name, b"x-forwarded-proto") => Self::XForwardedProto,
            18 if is(name, b"proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is(name, b"proxy-authorization") => Self::ProxyAuthorization,
            20 if is(name, b"stepflow-instance-id") => Self::StepflowInstanceId,
            26 if is(name, b"x-stepflow-routed-instance") => Self::XStepflowRoutedInstance,
            13.. if is(&name[..12], b"x-forwarded-") => Self::XForwardedOther,
            _ => Self::Other,
        }
    }

    /// Says who the client is or what it asked, on its behalf: believed of some and not of others.
    #[inline]
    pub fn is_testimony(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::XForwardedBy
                | Self::XForwardedFor
                | Self::XForwardedHost
                | Self::XForwardedOther
                | Self::XForwardedProto
                | Self::XRealIp
        )
    }

    /// Means something on one connection only and is never forwarded (RFC 9110 §7.6.1). Framing
    /// and upgrades are written anew by the proxy; credentials for a proxy end at the proxy
    /// (RFC 9110 §11.7).
    #[inline]
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }

    /// May not be removed by being listed in `Connection`: a client that could strip these would
    /// choose how its request is framed, routed, attributed or authenticated, also where a proxy
    /// in front of us has said it. `Expect` too: without it nobody would answer a client that waits
    /// for `100 Continue`. And `Date`: it is meant for whoever reads the message, caches above all.
    #[inline]
    pub fn is_protected(self) -> bool {
        self.is_testimony()
            || matches!(
                self,
                Self::Authorization
                    | Self::CacheControl
                    | Self::ContentEncoding
                    | Self::ContentLength
                    | Self::ContentType
                    | Self::Cookie
                    | Self::Date
                    | Self::Expect
                    | Self::Host
                    | Self::MaxForwards
                    | Self::Origin
                    | Self::SetCookie
                    | Self::StepflowInstanceId
                    | Self::Via
                    | Self::WwwAuthenticate
            )
    }
}

/// Whether this is the name `known`, which is in lower case, without regard to case. Its length is
/// known where this is called, and so are the masks: a name is compared in a few words.
#[inline(always)]
fn is<const N: usize>(name: &[u8], known: &[u8; N]) -> bool {
    debug_assert!(known.iter().all(|b| b.is_ascii_lowercase() || *b == b'-'), "no known name");
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let (Some(last), Some(last_known)) = (name.last_chunk(), known.last_chunk()) else {
        // As below, for a few octets.
        let octets = name.iter().zip(known);
        return octets.fold(0, |sum, (b, known)| sum | ((b | ((known & 0x40) >> 1)) ^ known)) == 0;
    };
    let words = name.as_chunks().0.iter().zip(known.as_chunks().0);
    // The last word may have octets in common with the one before.
    words.chain([(last, last_known)]).all(|(word, known)| word_is(*word, *known))
}

/// The same for eight octets of them. Of the octets of a known name only letters have this bit,
/// and in letters, and nowhere else, the case is the next one.
#[inline(always)]
fn word_is(word: [u8; 8], known: [u8; 8]) -> bool {
    const LETTER: u64 = u64::from_ne_bytes([0x40; 8]);
    let (word, known) = (u64::from_ne_bytes(word), u64::from_ne_bytes(known));
    word | ((known & LETTER) >> 1) == known
}

/// Longer than every name that [`Field::of`] knows, and than the front of those it knows by that.
const ALIAS_BYTES: usize = 32;

/// Whether some would take this for another field, one that a proxy must know. The interfaces in
/// front of many applications write `_` for `-` (RFC 3875 §4.1.18): to them `X_Forwarded_For` and
/// `X-Forwarded-For` are one field, of which this proxy would have judged the second only.
#[inline]
pub fn is_alias(name: &[u8]) -> bool {
    has_underscore(name) && is_known_with_hyphens(name)
}

/// For names of at least eight octets; the shortest that matters, `x-real-ip`, has nine. Eight at a
/// time, because every field of every request is asked.
#[inline]
fn has_underscore(name: &[u8]) -> bool {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    let Some(last) = name.last_chunk::<8>() else { return false };
    name.as_chunks::<8>().0.iter().chain([last]).any(|octets| {
        // Zero where there is one; below, the high bit of the first octet that is zero comes out.
        let others = u64::from_ne_bytes(*octets) ^ (EACH * u64::from(b'_'));
        others.wrapping_sub(EACH) & !others & (EACH << 7) != 0
    })
}

#[cold]
fn is_known_with_hyphens(name: &[u8]) -> bool {
    let mut hyphenated = [0; ALIAS_BYTES];
    let front = name.iter().map(|b| if *b == b'_' { b'-' } else { *b });
    let bytes = hyphenated.iter_mut().zip(front).map(|(to, b)| *to = b).count();
    Field::of(&hyphenated[..bytes]) != Field::Other
}

/// The non-empty tokens of a `Connection` value (RFC 9110 §5.6.1, §7.6.1).
pub fn connection_tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim_ows).filter(|token| !token.is_empty())
}

/// Whether a comma-separated value has this member, without regard to case or parameters.
pub fn list_contains(value: &[u8], wanted: &[u8]) -> bool {
    // Most values are too short to be looked at.
    value.len() >= wanted.len()
        && value.split(|b| *b == b',').any(|member| {
            let name = member.split(|b| *b == b';').next().unwrap_or(member);
            trim_ows(name).eq_ignore_ascii_case(wanted)
        })
}

/// Whether the octets are a token (RFC 9110 §5.6.2).
pub fn is_token(octets: &[u8]) -> bool {
    !octets.is_empty() && octets.iter().all(|b| is_token_octet(*b))
}

pub(super) fn is_token_octet(b: u8) -> bool {
    matches!(b,
        b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`'
        | b'|' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}

/// Removes optional white space, which is SP and HTAB only (RFC 9110 §5.6.3).
pub(super) fn trim_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_in_any_case_and_nothing_else_does() {
        assert_eq!(Field::of(b"Stepflow-Instance-ID"), Field::StepflowInstanceId);
        assert_eq!(Field::of(b"TRANSFER-ENCODING"), Field::TransferEncoding);
        assert_eq!(Field::of(b"dAtE"), Field::Date);
        assert_eq!(Field::of(b"x-accel-buffering"), Field::XAccelBuffering);
        assert_eq!(Field::of(b"Transfer-Encodin"), Field::Other);
        assert_eq!(Field::of(b"X-FORWARDED-PORT"), Field::XForwardedOther);
        assert_eq!(Field::of(b"x-forwarded-proto"), Field::XForwardedProto);
        assert_eq!(Field::of(b"x-forwarded-"), Field::Other);
        assert_eq!(Field::of(b"x-forwarder-for"), Field::Other);
        assert_eq!(Field::of(b""), Field::Other);
    }

    #[test]
    fn a_name_is_told_from_every_other_of_its_length() {
        fn check<const N: usize>(known: &[u8; N]) {
            for at in 0..N {
                for octet in 0..=u8::MAX {
                    let mut name = *known;
                    name[at] = octet;
                    let want = name.eq_ignore_ascii_case(known);
                    assert_eq!(is(&name, known), want, "{}", name.escape_ascii());
                    name.make_ascii_uppercase();
                    let want = name.eq_ignore_ascii_case(known);
                    assert_eq!(is(&name, known), want, "{}", name.escape_ascii());
                }
            }
            assert!(!is(&known[1..], known) && !is(b"", known));
        }
        check(b"te");
        check(b"via");
        check(b"date");
        check(b"host");
        check(b"expect");
        check(b"forwarded");
        check(b"content-length");
        check(b"transfer-encoding");
        check(b"stepflow-instance-id");
        check(b"x-stepflow-routed-instance");
    }

    #[test]
    fn an_underscore_hides_no_name_that_we_know() {
        let aliases = [
            "Content_Length",
            "transfer_encoding",
            "X_Forwarded_For",
            "X-Forwarded_Proto",
            "x_forwarded_a-name-that-is-longer-than-all-that-are-known",
            "STEPFLOW_INSTANCE-ID",
        ];
        let others = ["User_Agent", "X_Request_Id", "_", "host_", "x_forwarded_", "Content-Length"];
        for (names, want) in [(&aliases[..], true), (&others[..], false)] {
            for name in names {
                assert_eq!(is_alias(name.as_bytes()), want, "{name}");
            }
        }
        for bytes in 8..40 {
            for at in 0..bytes {
                let mut name = vec![b'^'; bytes];
                assert!(!has_underscore(&name));
                name[at] = b'_';
                assert!(has_underscore(&name), "{at} of {bytes}");
            }
        }
        // The room for names is larger than any that is known.
        let long = format!("x_stepflow_routed_instance{}", "x".repeat(ALIAS_BYTES));
        assert!(is_alias(&long.as_bytes()[..26]));
        for bytes in 27..long.len() {
            assert!(!is_alias(&long.as_bytes()[..bytes]), "{bytes}");
        }
    }

    #[test]
    fn lists_are_split_at_commas_and_trimmed() {
        let tokens: Vec<_> = connection_tokens(b" close,, \tX-A ,").collect();
        assert_eq!(tokens, [&b"close"[..], b"X-A"]);
        assert!(list_contains(b"application/json, Text/Event-Stream;q=0.9", b"text/event-stream"));
        assert!(!list_contains(b"text/event-streams", b"text/event-stream"));
    }
}
