//! Pure: tests of what requests ask for and what their responses give.

use proptest::prelude::*;

use super::*;
use crate::http1::{Edit, FieldLine, Method};

fn settings() -> Settings {
    Settings {
        instance_header: Settings::INSTANCE_HEADER.into(),
        header: None,
        cookie: None,
        application_cookie: None,
        keys: Vec::new(),
        lost: LostRules::default(),
        idle: std::time::Duration::from_secs(60),
    }
}

fn key(number: u8) -> Key {
    Key::new(std::array::from_fn(|place| number ^ u8::try_from(place).unwrap()))
}

fn mcp() -> Settings {
    Settings { header: Some("Mcp-Session-Id".into()), ..settings() }
}

fn all_kinds() -> Settings {
    Settings {
        cookie: CookieSpec::parse("lb").ok(),
        application_cookie: Some("SID".into()),
        ..mcp()
    }
}

fn rules(settings: &Settings) -> Rules {
    Rules::new(settings, &[key(1)])
}

fn named(instance: &'static str) -> Named<'static> {
    Named { instance: Some(instance), address: "10.0.0.1:80".parse().unwrap() }
}

type Lines = Vec<(String, Vec<u8>)>;

fn lines<V: AsRef<[u8]>>(lines: &[(&str, V)]) -> Lines {
    lines.iter().map(|(name, value)| ((*name).to_owned(), value.as_ref().to_vec())).collect()
}

fn borrowed(lines: &Lines) -> Vec<FieldLine<'_>> {
    lines.iter().map(|(name, value)| FieldLine { name, value }).collect()
}

/// The lines as they go on.
fn edited(lines: &Lines, edits: &crate::http1::Edits) -> Lines {
    let kept = (0_u8..).zip(lines).filter_map(|(index, (name, value))| match edits.of(index) {
        None | Some(Edit::Keep) => Some((name.clone(), value.clone())),
        Some(Edit::Value(value)) => Some((name.clone(), value.clone())),
        Some(Edit::Drop) => None,
    });
    let added = edits.added();
    let added =
        added.map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()));
    kept.chain(added).collect()
}

fn read_method(rules: &Rules, request: &Lines, method: Method) -> (Reading, Lines) {
    let mut reading = rules.read(&borrowed(request), method, None).unwrap();
    let edits = std::mem::take(&mut reading.edits);
    (reading, edited(request, &edits))
}

fn read(rules: &Rules, request: &Lines) -> (Reading, Lines) {
    read_method(rules, request, Method::Post)
}

fn answer(
    rules: &Rules,
    reading: &Reading,
    response: &Lines,
    from: Named<'_>,
    seed: u8,
) -> (Answered, Lines) {
    let mut number = 0;
    let nonce = || {
        number += 1;
        let mut nonce = [seed; 24];
        nonce[0] = number;
        nonce
    };
    let asked = (Method::Post, 200, false);
    let answered = rules.answer(reading, asked, &borrowed(response), from, nonce).unwrap();
    let lines = edited(response, &answered.edits);
    (answered, lines)
}

fn value<'l>(lines: &'l Lines, name: &str) -> Option<&'l [u8]> {
    lines.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_slice())
}

/// A session header that `instance` gave as `id`.
fn token(rules: &Rules, instance: &'static str, id: &str) -> Vec<u8> {
    let (_, given) =
        answer(rules, &Reading::default(), &lines(&[("Mcp-Session-Id", id)]), named(instance), 9);
    value(&given, "mcp-session-id").unwrap().to_vec()
}

#[test]
fn a_session_header_is_sealed_for_the_client_and_opened_for_the_backend() {
    let rules = rules(&mcp());
    let sealed = token(&rules, "pod-1", "id-1");
    assert!(!sealed.windows(4).any(|part| part == b"id-1" || part == b"pod-"));
    let (reading, forwarded) =
        read(&rules, &lines(&[("mcp-SESSION-id", sealed.clone()), ("X", b"y".to_vec())]));
    assert_eq!(forwarded, lines(&[("mcp-SESSION-id", "id-1"), ("X", "y")]));
    assert_eq!(reading.route, Route::Owner(Kind::Header));
    assert_eq!(reading.owner().unwrap().instance.as_deref(), Some("pod-1"));
    // A response that repeats the id gives the client the one that it has.
    let repeated = lines(&[("Mcp-Session-Id", "id-1")]);
    let (answered, given) = answer(&rules, &reading, &repeated, named("pod-1"), 7);
    assert_eq!(value(&given, "Mcp-Session-Id"), Some(sealed.as_slice()));
    assert_eq!(answered.begun, None);
    // Another id, or another instance, is another session.
    for (id, instance) in [("id-2", "pod-1"), ("id-1", "pod-2")] {
        let (answered, given) =
            answer(&rules, &reading, &lines(&[("Mcp-Session-Id", id)]), named(instance), 7);
        assert_ne!(value(&given, "Mcp-Session-Id"), Some(sealed.as_slice()));
        assert_eq!(answered.begun, Some((Kind::Header, id.as_bytes().to_vec())));
    }
}

#[test]
fn a_session_header_that_does_not_open_names_nobody_and_goes_nowhere() {
    let (ours, others) = (rules(&mcp()), Rules::new(&mcp(), &[key(2)]));
    let foreign = token(&others, "pod-1", "id-1");
    let mut damaged = token(&ours, "pod-1", "id-1");
    damaged[40] ^= 1;
    for text in [foreign, damaged, b"plain".to_vec(), b"".to_vec(), vec![b'A'; 100_000]] {
        let (reading, forwarded) = read(&ours, &lines(&[("Mcp-Session-Id", text)]));
        assert_eq!(reading.route, Route::Nobody(Kind::Header));
        assert_eq!(forwarded, lines::<&str>(&[]));
    }
    let twice = lines(&[("Mcp-Session-Id", "a"), ("mcp-session-id", "b")]);
    let error = ours.read(&borrowed(&twice), Method::Get, None).unwrap_err();
    assert_eq!(error, ReadError::SessionRepeated);
}

#[test]
fn since_july_2026_the_session_header_of_mcp_means_nothing() {
    let rules = rules(&all_kinds());
    let sealed = token(&rules, "pod-1", "id-1");
    let request = |version: &str| {
        lines(&[
            ("Mcp-Session-Id", sealed.clone()),
            ("MCP-Protocol-Version", version.as_bytes().to_vec()),
            ("Cookie", b"lb=x; SID=y".to_vec()),
        ])
    };
    let (reading, forwarded) = read(&rules, &request("2026-07-28"));
    assert_eq!(forwarded, request("2026-07-28"));
    assert_eq!(reading.route, Route::Anybody);
    let response = lines(&[("Mcp-Session-Id", "id-9"), ("Set-Cookie", "SID=z")]);
    let (answered, given) = answer(&rules, &reading, &response, named("pod-1"), 1);
    assert_eq!((given, answered.begun), (response, None));
    for version in ["2025-11-25", "2024-11-05", "nonsense"] {
        let (reading, _) = read(&rules, &request(version));
        assert_eq!(reading.route, Route::Owner(Kind::Header), "{version}");
    }
    // Elsewhere the field means nothing.
    let other = Settings { header: Some("X-Session".into()), ..settings() };
    let era = lines(&[("MCP-Protocol-Version", "2026-07-28")]);
    assert_eq!(read(&Rules::new(&other, &[key(1)]), &era).0.route, Route::Begins);
}

#[test]
fn sessions_of_mcp_begin_with_a_post_and_others_with_anything() {
    let route = |settings: &Settings, method| {
        read_method(&rules(settings), &lines::<&str>(&[]), method).0.route
    };
    assert_eq!(route(&mcp(), Method::Post), Route::Begins);
    for method in [Method::Get, Method::Delete, Method::Options] {
        assert_eq!(route(&mcp(), method), Route::Anybody, "{method:?}");
        assert_eq!(route(&all_kinds(), method), Route::Begins, "{method:?}");
        let other = Settings { header: Some("X-Session".into()), ..settings() };
        assert_eq!(route(&other, method), Route::Begins, "{method:?}");
    }
}

#[test]
fn a_session_of_mcp_ends_with_delete_or_with_404() {
    let rules = rules(&mcp());
    let sealed = token(&rules, "pod-1", "id-1");
    let (reading, _) = read(&rules, &lines(&[("Mcp-Session-Id", sealed)]));
    let ended = |reading: &Reading, method, status| {
        let asked = (method, status, false);
        rules.answer(reading, asked, &[], named("pod-1"), || [0; 24]).unwrap().ended
    };
    assert!(ended(&reading, Method::Delete, 200) && ended(&reading, Method::Delete, 204));
    assert!(ended(&reading, Method::Post, 404) && ended(&reading, Method::Get, 404));
    assert!(!ended(&reading, Method::Delete, 405) && !ended(&reading, Method::Post, 200));
    assert!(!ended(&Reading::default(), Method::Delete, 200));
}

#[test]
fn an_id_that_is_too_long_is_an_error_and_not_passed_on() {
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    let rules = rules(&mcp());
    let response = lines(&[("Mcp-Session-Id", long)]);
    let asked = (Method::Post, 200, false);
    let fields = borrowed(&response);
    let from = named("a");
    let answered = rules.answer(&Reading::default(), asked, &fields, from, || [0; 24]);
    assert_eq!(answered.map(|a| a.begun), Err(TooLong));
}

#[test]
fn the_balancer_s_own_cookie_is_given_once_and_never_forwarded() {
    let own = Settings { cookie: CookieSpec::parse("lb; Path=/").ok(), ..settings() };
    let rules = rules(&own);
    let (reading, _) = read(&rules, &lines(&[("Cookie", "a=1")]));
    assert_eq!(reading.route, Route::Begins);
    let (answered, given) = answer(&rules, &reading, &lines::<&str>(&[]), named("pod-1"), 5);
    let set = String::from_utf8(value(&given, "set-cookie").unwrap().to_vec()).unwrap();
    let sealed = set.strip_prefix("lb=").unwrap().strip_suffix("; Path=/").unwrap();
    assert_eq!(answered.begun.as_ref().unwrap().0, Kind::Cookie);
    let spellings = [
        (format!("lb={sealed}"), None),
        (format!("a=1; lb={sealed}; b=2"), Some("a=1; b=2")),
        (format!("lb=\"{sealed}\";b"), Some("b")),
        (format!("  a=1 ;  lb = {sealed} "), Some("a=1 ")),
        (format!("lb=forged; lb={sealed}; a=1"), Some("a=1")),
    ];
    for (cookie, want) in spellings {
        let (reading, forwarded) = read(&rules, &lines(&[("Cookie", cookie.clone())]));
        assert_eq!(reading.route, Route::Owner(Kind::Cookie), "{cookie}");
        assert_eq!(value(&forwarded, "cookie"), want.map(str::as_bytes), "{cookie}");
        let begun =
            Identity::begun(Kind::Cookie, named("pod-1"), &answered.begun.as_ref().unwrap().1);
        assert_eq!(reading.identity(), Some(begun));
        let (_, given) = answer(&rules, &reading, &lines::<&str>(&[]), named("pod-1"), 6);
        assert_eq!(given, lines::<&str>(&[]), "{cookie}");
        // Another backend answers: the client gets a cookie for that one.
        let (_, given) = answer(&rules, &reading, &lines::<&str>(&[]), named("pod-2"), 6);
        assert!(value(&given, "set-cookie").is_some(), "{cookie}");
    }
    // In a line of its own, as HTTP/2 front ends leave it.
    let split = lines(&[("Cookie", "a=1".to_owned()), ("cookie", format!("lb={sealed}"))]);
    let (reading, forwarded) = read(&rules, &split);
    assert_eq!(reading.route, Route::Owner(Kind::Cookie));
    assert_eq!(forwarded, lines(&[("Cookie", "a=1")]));
    for forged in ["lb=", "lb=x", "lb=forged; lb=forged; lb=forged", &format!("lb={sealed}A")] {
        let (reading, forwarded) = read(&rules, &lines(&[("Cookie", forged)]));
        assert_eq!(reading.route, Route::Nobody(Kind::Cookie), "{forged}");
        assert_eq!(forwarded, lines::<&str>(&[]), "{forged}");
    }
}

#[test]
fn a_cookie_of_the_application_is_sealed_with_its_attributes_untouched() {
    let settings = Settings { application_cookie: Some("SID".into()), ..settings() };
    let rules = rules(&settings);
    let response = lines(&[
        ("Set-Cookie", "other=1; Path=/"),
        ("Set-Cookie", "SID=\"a b\";  Path=/app; HttpOnly"),
        ("Set-Cookie", "SID=; Max-Age=0"),
    ]);
    let (answered, given) = answer(&rules, &Reading::default(), &response, named("pod-1"), 5);
    assert_eq!(answered.begun, Some((Kind::ApplicationCookie, b"\"a b\"".to_vec())));
    assert_eq!((&given[0], &given[2]), (&response[0], &response[2]));
    let set = String::from_utf8(given[1].1.clone()).unwrap();
    let sealed = set.strip_prefix("SID=").unwrap().strip_suffix(";  Path=/app; HttpOnly").unwrap();
    let cookie = format!("a=1;SID={sealed};  SID=plain; b=\"x\"");
    let (reading, forwarded) = read(&rules, &lines(&[("Cookie", cookie)]));
    assert_eq!(value(&forwarded, "cookie").unwrap(), b"a=1;SID=\"a b\";  SID=plain; b=\"x\"");
    assert_eq!(reading.route, Route::Owner(Kind::ApplicationCookie));
    // The application sets what is set: nothing changes for the client.
    let (answered, again) = answer(&rules, &reading, &response, named("pod-1"), 6);
    assert_eq!((again, answered.begun, answered.ended), (given, None, true));
    // A cookie from before the balancer was there goes on as it is.
    let plain = lines(&[("Cookie", "SID=plain")]);
    let (reading, forwarded) = read(&rules, &plain);
    assert_eq!((reading.route, forwarded), (Route::Begins, plain));
    // One that was sealed by somebody else is nobody's.
    let theirs = Rules::new(&settings, &[key(2)]);
    let (_, given) = answer(&theirs, &Reading::default(), &response, named("pod-1"), 5);
    let set = String::from_utf8(given[1].1.clone()).unwrap();
    let foreign = lines(&[("Cookie", set.split(';').next().unwrap())]);
    let (reading, forwarded) = read(&rules, &foreign);
    assert_eq!(reading.route, Route::Nobody(Kind::ApplicationCookie));
    assert_eq!(forwarded, lines::<&str>(&[]));
}

#[test]
fn cookies_are_sealed_anew_under_a_new_key_and_session_headers_are_not() {
    let before = Rules::new(&all_kinds(), &[key(1)]);
    let after = Rules::new(&all_kinds(), &[key(2), key(1)]);
    let response = lines(&[("Mcp-Session-Id", "id-1"), ("Set-Cookie", "SID=s")]);
    let (_, given) = answer(&before, &Reading::default(), &response, named("pod-1"), 5);
    let cookie = |index: usize| {
        let set = String::from_utf8(given[index].1.clone()).unwrap();
        set.split(';').next().unwrap().to_owned()
    };
    let id = given[0].1.clone();
    let request = lines(&[
        ("Mcp-Session-Id", id.clone()),
        ("Cookie", format!("{}; {}", cookie(1), cookie(2)).into_bytes()),
    ]);
    let (reading, _) = read(&after, &request);
    assert_eq!(reading.route, Route::Owner(Kind::Header));
    let (answered, renewed) = answer(&after, &reading, &response, named("pod-1"), 6);
    assert_eq!((&renewed[0].1, answered.begun), (&id, None));
    assert_ne!(renewed[1], given[1]);
    assert_eq!(renewed.len(), 3);
}

#[test]
fn the_session_of_one_instance_is_not_shown_to_another_that_is_named() {
    let rules = rules(&mcp());
    let sealed = token(&rules, "pod-1", "id-1");
    let request = lines(&[("Mcp-Session-Id", sealed)]);
    let route =
        |named: &[u8]| rules.read(&borrowed(&request), Method::Post, Some(named)).unwrap().route;
    assert_eq!(route(b"pod-1"), Route::Owner(Kind::Instance));
    assert_eq!(route(b"pod-2"), Route::Nobody(Kind::Header));
    assert_eq!(route(b"no name"), Route::Nobody(Kind::Instance));
}

#[test]
fn instances_may_be_told_in_any_header() {
    let rules = rules(&Settings { instance_header: "X-Pod".into(), ..settings() });
    assert!(rules.names_instance("x-pod") && !rules.names_instance("Stepflow-Instance-Id"));
    let request = lines(&[("x-pod", "pod-1"), ("Stepflow-Instance-Id", "other")]);
    let reading = rules.read(&borrowed(&request), Method::Get, Some(b"other")).unwrap();
    assert_eq!(reading.owner().unwrap().instance.as_deref(), Some("pod-1"));
    assert_eq!(reading.edits.of(0), Some(&Edit::Keep));
    let twice = lines(&[("x-pod", "a"), ("X-POD", "a")]);
    let error = rules.read(&borrowed(&twice), Method::Get, None).unwrap_err();
    assert_eq!(error, ReadError::InstanceRepeated);
}

#[test]
fn backends_without_a_name_are_told_apart_by_their_address() {
    let rules = rules(&mcp());
    let at = |address: &str| Named { instance: None, address: address.parse().unwrap() };
    let response = lines(&[("Mcp-Session-Id", "id-1")]);
    let from = at("10.0.0.1:80");
    let (_, given) = answer(&rules, &Reading::default(), &response, from, 5);
    let (reading, _) = read(&rules, &given);
    let owner = reading.owner().unwrap();
    assert!(owner.is(from) && !owner.is(at("10.0.0.2:80")));
    // Who has a name is not the one who had none.
    assert!(!owner.is(named("pod-1")));
}

proptest! {
    /// Whatever cookies there are besides, they go on octet for octet, and ours never does.
    #[test]
    fn other_cookies_keep_their_octets(
        before in "[a-zA-Z0-9=\" ]{0,12}", after in "[a-zA-Z0-9=\" ;]{0,24}", gap in "[ \t]{0,2}",
    ) {
        prop_assume!(!before.contains("lb") && !after.contains("lb"));
        let own = Settings { cookie: CookieSpec::parse("lb").ok(), ..settings() };
        let line = format!("{before};{gap}lb=x{gap};{after}");
        let (_, forwarded) = read(&rules(&own), &lines(&[("Cookie", line)]));
        let want = format!("{before};{after}");
        let want = want.trim_matches([' ', '\t']);
        let got = value(&forwarded, "cookie").unwrap_or_default();
        prop_assert_eq!(got.trim_ascii(), want.as_bytes());
    }

    /// No request makes reading panic, or keeps a cookie of ours or a session header.
    #[test]
    fn nothing_that_a_client_sends_gets_through_sealed(
        cookie in proptest::collection::vec(0x20_u8..0x7f, 0..80),
        header in proptest::collection::vec(0x21_u8..0x7f, 0..80),
    ) {
        let rules = rules(&all_kinds());
        let request = lines(&[("Cookie", cookie), ("Mcp-Session-Id", header)]);
        let (reading, forwarded) = read(&rules, &request);
        prop_assert_eq!(reading.route, Route::Nobody(Kind::Header));
        prop_assert_eq!(value(&forwarded, "mcp-session-id"), None);
    }
}
