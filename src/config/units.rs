//! How a value is written: durations, sizes, counts, paths, addresses and fixed words.
//!
//! Each parser takes trimmed text that is not empty. Beside each stands the sentence that tells an
//! operator what it accepts, so that the two can be compared at a glance.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

/// Why a parser does not take a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It does not have the accepted form.
    Form,
    /// It has, but not in this respect.
    Because(String),
}

/// What a parser returns.
pub(super) type Parsed<T> = Result<T, Refusal>;

/// Accepted by [`positive_duration`].
pub(super) const POSITIVE_DURATION: &str = "a duration such as 10, 500ms, 1m; greater than 0";
/// Accepted by [`duration`].
pub(super) const DURATION: &str = "a duration such as 10, 500ms, 1m; 0 is allowed";
/// Accepted by [`duration_or_off`].
pub(super) const DURATION_OR_OFF: &str = "a duration such as 10, 500ms, 1m; greater than 0; or off";
/// Accepted by [`SocketAddr`]'s parser.
pub(super) const ADDRESS: &str = "ip:port such as 0.0.0.0:8080 or [::]:8080";
/// Accepted by [`path_or_off`].
pub(super) const PATH_OR_OFF: &str = "a path that starts with /, such as /health, or off";
/// Accepted by [`percent`].
pub(super) const PERCENT: &str = "a share such as 50%, from 0% to 100%";
/// Accepted by [`server_list`].
pub(super) const SERVER_LIST: &str =
    "IP addresses, each with a port unless it is 53, with commas between";

/// Longest duration that is taken. Far beyond any use, and far below where adding one to a clock
/// reading could overflow.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A duration. A number without a unit is seconds; `ms`, `s`, `m` and `h` are units. The resolution
/// is a millisecond, which is that of the timers behind it.
///
/// # Errors
/// When the text is not a duration, is finer than a millisecond, or longer than a year.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_ms = match unit.trim_start() {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        _ => return Err(Refusal::Form),
    };
    let too_long = || Refusal::Because("it is longer than a year".to_owned());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let (whole, fraction) = (digits(whole)?, fraction.trim_end_matches('0'));
    let whole_ms = whole.checked_mul(unit_ms).ok_or_else(too_long)?;
    // Nine decimals are more than an hour has milliseconds, and keep the product below in range.
    let too_fine = || Refusal::Because("it is finer than a millisecond".to_owned());
    let scale = u32::try_from(fraction.len()).ok().filter(|decimals| *decimals <= 9);
    let scale = 10_u64.pow(scale.ok_or_else(too_fine)?);
    let fraction_ms = match fraction {
        // `1.` is not a number, `1.0` is.
        "" if number.ends_with('.') => return Err(Refusal::Form),
        "" => 0,
        _ => digits(fraction)? * unit_ms,
    };
    if !fraction_ms.is_multiple_of(scale) {
        return Err(too_fine());
    }
    let duration = whole_ms
        .checked_add(fraction_ms / scale)
        .map(Duration::from_millis)
        .ok_or_else(too_long)?;
    if duration > DURATION_MAX { Err(too_long()) } else { Ok(duration) }
}

/// A duration that is not zero.
///
/// # Errors
/// As [`duration`], and for zero.
pub(super) fn positive_duration(text: &str) -> Parsed<Duration> {
    duration(text).and_then(|d| if d.is_zero() { Err(Refusal::Form) } else { Ok(d) })
}

/// A duration that is not zero, or `off`.
///
/// # Errors
/// As [`positive_duration`].
pub(super) fn duration_or_off(text: &str) -> Parsed<Option<Duration>> {
    or_off(text, positive_duration)
}

/// `off`, or what another parser takes.
///
/// # Errors
/// Those of the other parser.
pub(super) fn or_off<T>(text: &str, parse: impl FnOnce(&str) -> Parsed<T>) -> Parsed<Option<T>> {
    if text.eq_ignore_ascii_case("off") { Ok(None) } else { parse(text).map(Some) }
}

/// A number of octets between two bounds. `kB`, `MB` and `GB` are powers of 1000, `KiB`, `MiB`
/// and `GiB` of 1024; upper and lower case mean the same.
///
/// # Errors
/// When the text is not a size or lies outside the bounds.
pub(super) fn bytes(text: &str, min: usize, max: usize) -> Parsed<usize> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_bytes = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "kib" => 1024,
        "mb" => 1000 * 1000,
        "mib" => 1024 * 1024,
        "gb" => 1000 * 1000 * 1000,
        "gib" => 1024 * 1024 * 1024,
        _ => return Err(Refusal::Form),
    };
    let size = digits(number)?.checked_mul(unit_bytes).and_then(|size| usize::try_from(size).ok());
    size.filter(|size| (min..=max).contains(size)).ok_or(Refusal::Form)
}

/// A whole number between two bounds.
///
/// # Errors
/// When the text is not a number or lies outside the bounds.
pub(super) fn count(text: &str, min: usize, max: usize) -> Parsed<usize> {
    let number = usize::try_from(digits(text)?).map_err(|_| Refusal::Form)?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(Refusal::Form) }
}

/// As [`count`], for numbers of 32 bits.
///
/// # Errors
/// As [`count`].
pub(super) fn count_u32(text: &str, min: u32, max: u32) -> Parsed<u32> {
    let number = u32::try_from(digits(text)?).map_err(|_| Refusal::Form)?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(Refusal::Form) }
}

/// A share of a whole, in whole percent and with its sign, so that nobody takes it for a count.
///
/// # Errors
/// When the text is not such a share, or more than the whole.
pub(super) fn percent(text: &str) -> Parsed<u32> {
    let number = text.strip_suffix('%').ok_or(Refusal::Form)?;
    count_u32(number.trim_end(), 0, 100)
}

/// As [`percent`], between a lowest share and the whole.
///
/// # Errors
/// As [`percent`], and below the lowest.
pub(super) fn share(text: &str, min: u8) -> Parsed<u8> {
    let share = u8::try_from(percent(text)?).map_err(|_| Refusal::Form)?;
    if share >= min { Ok(share) } else { Err(Refusal::Form) }
}

/// What stands in a `Host` field: a name or address, with or without a port (RFC 9110 §7.2).
///
/// # Errors
/// When the text could not stand there.
pub(super) fn host(text: &str) -> Parsed<String> {
    let may_stand = |b: u8| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b);
    if text.bytes().all(may_stand) { Ok(text.to_owned()) } else { Err(Refusal::Form) }
}

/// A port, but for 0.
///
/// # Errors
/// When the text is not such a number.
pub(super) fn port(text: &str) -> Parsed<u16> {
    let port = u16::try_from(digits(text)?).map_err(|_| Refusal::Form)?;
    if port == 0 { Err(Refusal::Form) } else { Ok(port) }
}

/// A whole number from one up.
///
/// # Errors
/// When the text is not such a number.
pub(super) fn positive_u32(text: &str) -> Parsed<NonZeroU32> {
    let number = u32::try_from(digits(text)?).map_err(|_| Refusal::Form)?;
    NonZeroU32::new(number).ok_or(Refusal::Form)
}

/// An address with a port.
///
/// # Errors
/// When the text is not an IP address and a port; names are not resolved here.
pub(super) fn address(text: &str) -> Parsed<SocketAddr> {
    text.parse().map_err(|_| Refusal::Form)
}

/// A path that is asked for over HTTP, with or without a query, or `off`.
///
/// # Errors
/// When the text is neither, or could not stand in a request line (RFC 9112 §3.2.1).
pub(super) fn target_or_off(text: &str) -> Parsed<Option<String>> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    if !text.starts_with('/') {
        return Err(Refusal::Form);
    }
    match text.chars().find(|c| !c.is_ascii_graphic() || *c == '#') {
        Some(c) => Err(Refusal::Because(format!("{c:?} cannot stand in a path"))),
        None => Ok(Some(text.to_owned())),
    }
}

/// A path on which we answer, or `off`. What is compared with it has no query.
///
/// # Errors
/// As [`target_or_off`], and for a query.
pub(super) fn path_or_off(text: &str) -> Parsed<Option<String>> {
    if text.contains('?') {
        return Err(Refusal::Because("a query is not part of this path".to_owned()));
    }
    target_or_off(text)
}

/// Addresses of name servers, with commas between.
///
/// # Errors
/// Names the first entry that is not one.
pub(super) fn server_list(text: &str) -> Parsed<Vec<SocketAddr>> {
    const DNS_PORT: u16 = 53;
    let server = |entry: &str| {
        let with_port = entry.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let alone = || entry.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS_PORT));
        with_port.or_else(alone).ok_or_else(|| {
            Refusal::Because(format!("{entry:?} is not an IP address, alone or with a port"))
        })
    };
    text.split(',').map(|entry| server(entry.trim())).collect()
}

/// One of some fixed words, in upper or lower case.
///
/// # Errors
/// When the text is none of them.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Parsed<T> {
    let found = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
    found.map(|(_, meaning)| *meaning).ok_or(Refusal::Form)
}

/// Unlike [`str::parse`], takes no sign, so `+5` and `-5` are refused alike.
fn digits(text: &str) -> Parsed<u64> {
    let all_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if all_digits { text.parse().map_err(|_| Refusal::Form) } else { Err(Refusal::Form) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_with_and_without_a_unit() {
        let cases = [
            ("10", 10_000),
            ("0", 0),
            ("500ms", 500),
            ("500 ms", 500),
            ("1m", 60_000),
            ("1.5s", 1500),
            ("1.50", 1500),
            ("0.001", 1),
            ("0.5m", 30_000),
            ("2h", 7_200_000),
            ("8760h", 31_536_000_000),
        ];
        for (text, ms) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_duration_is_refused() {
        for text in ["abc", "-1", "+1", "1d", "1M", ".5", "1.", "1.2.3", "1e3", "s", "1s2", "٣"] {
            assert_eq!(duration(text), Err(Refusal::Form), "{text}");
        }
        for text in ["0.0005", "1.5ms", "0.0000000001h", "8761h", "999999999999999h"] {
            assert!(matches!(duration(text), Err(Refusal::Because(_))), "{text}");
        }
        for text in ["0", "0ms", "0.000"] {
            assert_eq!(positive_duration(text), Err(Refusal::Form), "{text}");
        }
    }

    #[test]
    fn off_is_no_value_and_zero_is_none() {
        assert_eq!(duration_or_off("Off"), Ok(None));
        assert_eq!(duration_or_off("1m"), Ok(Some(Duration::from_secs(60))));
        for text in ["0", "none", "of", "-1"] {
            assert_eq!(duration_or_off(text), Err(Refusal::Form), "{text}");
        }
    }

    #[test]
    fn sizes_in_octets_and_their_multiples() {
        let cases = [
            ("32768", 32_768),
            ("32KiB", 32_768),
            ("32kB", 32_000),
            ("1 mib", 1 << 20),
            ("2GiB", 2 << 30),
        ];
        for (text, want) in cases {
            assert_eq!(bytes(text, 1, usize::MAX), Ok(want), "{text}");
        }
        for text in ["", "1.5KiB", "32k", "KiB", "-1", "99999999999999999999", "1TiB", "9"] {
            assert_eq!(bytes(text, 10, usize::MAX), Err(Refusal::Form), "{text}");
        }
        assert_eq!(bytes("11", 1, 10), Err(Refusal::Form));
    }

    #[test]
    fn shares_ports_and_hosts() {
        assert_eq!(share("1%", 1), Ok(1));
        assert_eq!(share("0%", 1), Err(Refusal::Form));
        assert_eq!(port("8081"), Ok(8081));
        for text in ["0", "65536", "http", "-1"] {
            assert_eq!(port(text), Err(Refusal::Form), "{text}");
        }
        assert_eq!(host("health.internal:80"), Ok("health.internal:80".to_owned()));
        assert_eq!(host("[::1]:80"), Ok("[::1]:80".to_owned()));
        for text in ["a b", "a/b", "a\r\nX: y", "ü", "a@b"] {
            assert_eq!(host(text), Err(Refusal::Form), "{text:?}");
        }
    }

    #[test]
    fn paths_are_such_that_they_fit_into_a_request_line() {
        assert_eq!(path_or_off("/a/b"), Ok(Some("/a/b".to_owned())));
        assert_eq!(path_or_off("OFF"), Ok(None));
        assert_eq!(target_or_off("/a?b"), Ok(Some("/a?b".to_owned())));
        assert_eq!(path_or_off("health"), Err(Refusal::Form));
        for text in ["/a b", "/a?b", "/a#b", "/ü", "/a\r\nb"] {
            assert!(matches!(path_or_off(text), Err(Refusal::Because(_))), "{text}");
        }
    }

    #[test]
    fn name_servers_listen_on_port_53_unless_told() {
        let want: Vec<SocketAddr> =
            ["10.0.0.1:53", "10.0.0.2:5353", "[::1]:53"].map(|a| a.parse().unwrap()).into();
        assert_eq!(server_list("10.0.0.1, 10.0.0.2:5353,::1"), Ok(want));
        for text in ["dns.local", "10.0.0.1,", "10.0.0.1:0", "10.0.0.1:x"] {
            assert!(matches!(server_list(text), Err(Refusal::Because(_))), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gets_a_verdict(text in ".{0,40}") {
            let _ = duration(&text);
            let _ = bytes(&text, 0, usize::MAX);
            let _ = path_or_off(&text);
            let _ = server_list(&text);
        }

        #[test]
        fn a_duration_means_the_same_in_every_unit(ms in 0_u64..=31_536_000_000) {
            let want = Ok(Duration::from_millis(ms));
            prop_assert_eq!(duration(&format!("{ms}ms")), want.clone());
            prop_assert_eq!(duration(&format!("{}.{:03}", ms / 1000, ms % 1000)), want.clone());
            prop_assert_eq!(duration(&format!("{}.{:03}0s", ms / 1000, ms % 1000)), want);
        }

        #[test]
        fn an_accepted_duration_is_between_zero_and_a_year(
            text in "[0-9]{0,12}(\\.[0-9]{0,12})?(ms|s|m|h)?",
        ) {
            if let Ok(d) = duration(&text) {
                prop_assert!(d <= DURATION_MAX);
                prop_assert_eq!(d.subsec_nanos() % 1_000_000, 0);
            }
        }
    }
}
