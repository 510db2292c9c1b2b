//! Pure: tests of the head that a backend gets, octet by octet.

use super::*;

/// What every forwarded head ends with if the client named a host and no proxy stood before us.
const OURS: [&str; 5] = [
    "X-Forwarded-For: 192.0.2.7",
    "X-Forwarded-Proto: http",
    "X-Forwarded-Host: h",
    "X-Forwarded-By: stepflow-load-balancer",
    "Via: 1.1 stepflow-load-balancer",
];

fn check(lines: &[&str], want: &[&str]) {
    check_for(&CLIENT, lines, want);
}

fn check_for(client: &ClientFacts<'_>, lines: &[&str], want: &[&str]) {
    let got = forwarded_for(&head(lines), client);
    let want = head(want);
    assert_eq!(got.escape_ascii().to_string(), want.escape_ascii().to_string(), "{lines:?}");
    assert_is_one_head(&got);
}

/// Checks the fields only: an ordinary start line and Host in front, ours behind.
fn check_fields(fields: &[&str], want: &[&str]) {
    let front = ["GET / HTTP/1.1", "Host: h"];
    check(&[&front, fields].concat(), &[&front, want, &OURS].concat());
}

#[test]
fn what_is_not_ours_to_change_keeps_octets_case_and_order() {
    check_fields(&[], &[]);
    check_fields(
        &["x-LOWER-Upper: a  b\tc", "B: 2", "A: 1", "B: 1", "Empty:", "Cookie: a=b; c=d"],
        &["x-LOWER-Upper: a  b\tc", "B: 2", "A: 1", "B: 1", "Empty: ", "Cookie: a=b; c=d"],
    );
    check_fields(
        &["traceparent: 00-a-b-01", "tracestate: x=1", "tracestate: y=2", "baggage: k=v;p"],
        &["traceparent: 00-a-b-01", "tracestate: x=1", "tracestate: y=2", "baggage: k=v;p"],
    );
    // Space around a value is no part of it.
    check_fields(&["A: \t padded \t "], &["A: padded"]);
    check_fields(&["Expect: 100-continue"], &["Expect: 100-continue"]);
    check_fields(&["Content-Length: 007"], &["Content-Length: 007"]);
    check_fields(
        &["Trailer: X", "Stepflow-Instance-ID: i"],
        &["Trailer: X", "Stepflow-Instance-ID: i"],
    );
}

#[test]
fn octets_beyond_ascii_pass_in_values() {
    let octets = b"GET / HTTP/1.1\r\nHost: h\r\nA: \xc3\xa9\xff\r\n\r\n";
    let got = forwarded(octets);
    assert!(got.windows(8).any(|w| w == b"A: \xc3\xa9\xff\r\n"), "{}", got.escape_ascii());
}

#[test]
fn what_belongs_to_one_connection_ends_here() {
    check_fields(
        &[
            "Connection: keep-alive",
            "KEEP-ALIVE: timeout=5",
            "Proxy-Connection: keep-alive",
            "TE: gzip;q=0.5, deflate",
            "Upgrade: websocket",
            "Proxy-Authorization: Basic x",
            "Proxy-Authenticate: Basic",
            "A: 1",
        ],
        &["A: 1"],
    );
}

#[test]
fn what_some_would_take_for_a_field_that_was_judged_ends_here() {
    check_fields(
        &[
            "Content_Length: 5",
            "transfer_encoding: chunked",
            "X_Forwarded_For: 203.0.113.9",
            "x_forwarded_anything: 1",
            "X-Real_IP: 203.0.113.9",
            "Stepflow_Instance_Id: i",
            "X_Request_Id: 1",
            "user_agent: a",
            // This is one that is judged, under its own name.
            "X-Forwarded-A_b: 1",
        ],
        &["X_Request_Id: 1", "user_agent: a", "X-Forwarded-A_b: 1"],
    );
}

#[test]
fn what_connection_lists_ends_here_unless_it_is_protected() {
    check_fields(
        &[
            "X-A: 1",
            "Connection: x-a, close ,X-B",
            "x-b: 2",
            "X-B: 3",
            "X-C: 4",
            "connection: X-D",
            "X-D: 5",
        ],
        &["X-C: 4"],
    );
    // A client could otherwise choose how its request is framed, routed, attributed or
    // authenticated.
    let kept = [
        "Authorization: Basic eA==",
        "Cookie: a=b",
        "Expect: 100-continue",
        "Origin: http://h",
        "Content-Length: 0",
        "Content-Type: a/b",
        "Content-Encoding: gzip",
        "Cache-Control: no-store",
        "Stepflow-Instance-Id: i",
        "X-Forwarded-Port: 443",
        "X-Real-IP: 203.0.113.9",
        "Forwarded: for=203.0.113.9",
    ];
    let listing = "Connection: host, content-length, content-type, content-encoding, cache-control,\
                   stepflow-instance-id, x-forwarded-for, x-forwarded-host, x-forwarded-proto,\
                   x-forwarded-by, x-forwarded-port, x-real-ip, forwarded, via, transfer-encoding,\
                   authorization, cookie, expect, origin";
    check_fields(&[&[listing], &kept[..]].concat(), &kept);
    check(
        &[
            "POST / HTTP/1.1",
            "Host: h",
            "Connection: transfer-encoding",
            "Transfer-Encoding: chunked",
        ],
        &[&["POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked"], &OURS[..]].concat(),
    );
}

/// Dozens of fields, and thousands of tokens of which some name them.
#[test]
fn what_connection_lists_is_found_among_many_fields_and_tokens() {
    let names: Vec<String> =
        (0..61).map(|n| format!("{}-{}", ["x", "Y", "zz"][n % 3], n / 2)).collect();
    let is_listed = |n: usize| n.is_multiple_of(5);
    let listed = names.iter().enumerate().filter(|(n, _)| is_listed(*n));
    let listed: Vec<String> = listed.map(|(_, name)| name.to_ascii_uppercase()).collect();
    let tokens = format!("{0}, {1}, {0}", "q,x-99,".repeat(5000), listed.join(" ,\t"));
    let fields: Vec<String> = names.iter().map(|name| format!("{name}: v")).collect();
    let connection = format!("Connection: {tokens}");
    let mut lines = vec!["GET / HTTP/1.1", "Host: h", &connection];
    lines.extend(fields.iter().map(String::as_str));
    let mut want = vec!["GET / HTTP/1.1", "Host: h"];
    let stays = |field: &&String| {
        let name = field.strip_suffix(": v").unwrap();
        !listed.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    };
    want.extend(fields.iter().filter(stays).map(String::as_str));
    want.extend(OURS);
    check(&lines, &want);
}

#[test]
fn the_clients_address_goes_behind_those_of_earlier_proxies() {
    let cases: &[(&[&str], &str)] = &[
        (&["X-Forwarded-For: 10.0.0.1"], "10.0.0.1, 192.0.2.7"),
        (&["x-forwarded-for: 10.0.0.1, 10.0.0.2"], "10.0.0.1, 10.0.0.2, 192.0.2.7"),
        (
            &["X-Forwarded-For: a", "X-FORWARDED-FOR: b", "X-Forwarded-For:", "X-Forwarded-For: c"],
            "a, b, c, 192.0.2.7",
        ),
        (&["X-Forwarded-For:"], "192.0.2.7"),
    ];
    for (fields, want) in cases {
        let line = format!("X-Forwarded-For: {want}");
        let front = ["GET / HTTP/1.1", "Host: h"];
        check(&[&front[..], fields].concat(), &[&front[..], &[line.as_str()], &OURS[1..]].concat());
    }
}

#[test]
fn scheme_and_host_of_an_earlier_proxy_stand_and_its_name_does_not() {
    check(
        &[
            "GET / HTTP/1.1",
            "Host: h",
            "X-Forwarded-Proto: https",
            "x-forwarded-host: user.example",
            "X-Forwarded-By: somebody",
        ],
        &[
            "GET / HTTP/1.1",
            "Host: h",
            "X-Forwarded-Proto: https",
            "x-forwarded-host: user.example",
            OURS[0],
            OURS[3],
            OURS[4],
        ],
    );
}

#[test]
fn a_stranger_is_believed_in_nothing_that_it_says_about_others() {
    let front = ["GET / HTTP/1.1", "Host: h"];
    let lies: &[&[&str]] = &[
        &["X-Forwarded-For: 10.0.0.1"],
        &["x-forwarded-for: 10.0.0.1, 10.0.0.2", "X-Forwarded-For: 127.0.0.1"],
        &["X-Forwarded-For:"],
        &["X-Forwarded-Proto: https", "X-FORWARDED-PROTO: wss"],
        &["x-forwarded-host: admin.internal"],
        &["X-Forwarded-By: somebody"],
        &["X-Forwarded-Port: 443", "X-Forwarded-Prefix: /admin", "X-Forwarded-Server: s"],
        &["X-Real-IP: 10.0.0.1", "Forwarded: for=10.0.0.1;proto=https", "forwarded: by=x"],
        // Nor by naming them in Connection, which only removes.
        &["Connection: X-Forwarded-For, X-Real-IP", "X-Forwarded-For: a", "X-Real-IP: b"],
    ];
    for lie in lies {
        let lines = [&front[..], &["A: 1"], lie, &["B: 2"]].concat();
        check_for(&STRANGER, &lines, &[&front[..], &["A: 1", "B: 2"], &OURS].concat());
    }
    // What only sounds like testimony is not.
    let sounds = ["X-Forwarder: a", "X-Real-IPs: b", "Forwarded-For: c", "X-Forwarded: d"];
    let lines = [&front[..], &sounds].concat();
    check_for(&STRANGER, &lines, &[&front[..], &sounds, &OURS].concat());
}

#[test]
fn a_proxy_that_is_believed_keeps_what_it_says() {
    check_fields(
        &["X-Forwarded-Port: 443", "X-Real-IP: 203.0.113.9", "Forwarded: for=203.0.113.9"],
        &["X-Forwarded-Port: 443", "X-Real-IP: 203.0.113.9", "Forwarded: for=203.0.113.9"],
    );
}

#[test]
fn via_names_every_proxy_so_far_with_us_at_the_end() {
    let front = ["GET / HTTP/1.1", "Host: h"];
    let cases: &[(&[&str], &str)] = &[
        (&["Via: 1.0 fred"], "1.0 fred, 1.1 stepflow-load-balancer"),
        (
            &["via: 1.0 fred (a, b), HTTP/2 p.example:80", "VIA:", "Via: 1.1 x"],
            "1.0 fred (a, b), HTTP/2 p.example:80, 1.1 x, 1.1 stepflow-load-balancer",
        ),
        (&["Via:"], "1.1 stepflow-load-balancer"),
        (
            &["Connection: Via", "Via: 1.1 stepflow-load-balancer"],
            "1.1 stepflow-load-balancer, 1.1 stepflow-load-balancer",
        ),
    ];
    for (fields, want) in cases {
        let lines = [&front[..], fields, &["A: 1"]].concat();
        let via = format!("Via: {want}");
        check(&lines, &[&front[..], &["A: 1"], &OURS[..4], &[via.as_str()]].concat());
        // The same from a stranger: where a request has been is not who its client is.
        check_for(&STRANGER, &lines, &[&front[..], &["A: 1"], &OURS[..4], &[&via]].concat());
    }
}

#[test]
fn where_we_say_no_via_that_of_others_stands() {
    let silent = ClientFacts { via: Via::Unsaid, ..CLIENT };
    let front = ["GET / HTTP/1.1", "Host: h"];
    let fields = ["Via: 1.0 fred", "A: 1", "via: 1.1 x"];
    let listing = ["Connection: via"];
    check_for(
        &silent,
        &[&front[..], &listing, &fields].concat(),
        &[&front[..], &fields, &OURS[..4]].concat(),
    );
}

#[test]
fn chunks_are_announced_once_in_our_words() {
    check(
        &["POST / HTTP/1.1", "Host: h", "transfer-encoding:  Chunked", "A: 1"],
        &[&["POST / HTTP/1.1", "Host: h", "A: 1", "Transfer-Encoding: chunked"], &OURS[..]]
            .concat(),
    );
}

#[test]
fn an_upgrade_is_asked_for_anew() {
    check(
        &[
            "GET /chat HTTP/1.1",
            "Host: h",
            "Upgrade: websocket",
            "Connection: keep-alive, Upgrade",
            "Sec-WebSocket-Key: x",
        ],
        &[
            &[
                "GET /chat HTTP/1.1",
                "Host: h",
                "Sec-WebSocket-Key: x",
                "Connection: upgrade",
                "Upgrade: websocket",
            ],
            &OURS[..],
        ]
        .concat(),
    );
    // One that is not admitted leaves no trace.
    check_fields(
        &["Connection: upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"],
        &[],
    );
}

#[test]
fn of_te_only_trailers_goes_on() {
    let asked = ["Connection: TE", "TE: trailers"];
    let cases: &[(&[&str], &[&str])] = &[
        (&["TE: trailers"], &asked),
        (&["Connection: TE", "te: gzip;q=0.5 , Trailers"], &asked),
        (&["TE: gzip", "TE: trailers"], &asked),
        (&["TE:"], &[]),
        (&["Connection: TE", "TE: chunked"], &[]),
        // A weight makes a coding of it, which is none.
        (&["TE: trailers;q=0"], &[]),
        (&["TE: x-trailers, \"trailers\""], &[]),
        (
            &["TE: trailers", "Connection: upgrade, te", "Upgrade: websocket"],
            &["Connection: upgrade, TE", "Upgrade: websocket", "TE: trailers"],
        ),
    ];
    for (fields, want) in cases {
        check_fields(fields, want);
    }
    let got = forwarded(&head(&["GET / HTTP/1.0", "Host: h", "TE: trailers", "Connection: TE"]));
    assert!(!got.escape_ascii().to_string().contains("TE:"), "{}", got.escape_ascii());
}

#[test]
fn max_forwards_counts_down_where_it_means_something() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("OPTIONS", &["Max-Forwards: 1"], &["Max-Forwards: 0"]),
        ("TRACE", &["max-FORWARDS:  010 ", "A: 1"], &["max-FORWARDS: 9", "A: 1"]),
        // No Connection line can hide how far it has come.
        ("TRACE", &["Connection: Max-Forwards", "Max-Forwards: 7"], &["Max-Forwards: 6"]),
        ("OPTIONS", &["A: 1"], &["A: 1"]),
        // The lesser of one less and the greatest that we know.
        (
            "OPTIONS",
            &["Max-Forwards: 99999999999999999999999"],
            &["Max-Forwards: 18446744073709551614"],
        ),
        // Elsewhere it means nothing, whatever it says.
        ("GET", &["Max-Forwards: 0"], &["Max-Forwards: 0"]),
        ("POST", &["Max-Forwards: x", "Max-Forwards: 1"], &["Max-Forwards: x", "Max-Forwards: 1"]),
        ("options", &["Max-Forwards: 3"], &["Max-Forwards: 3"]),
    ];
    for (method, fields, want) in cases {
        let line = format!("{method} / HTTP/1.1");
        let front = [line.as_str(), "Host: h"];
        check(&[&front[..], fields].concat(), &[&front[..], want, &OURS].concat());
    }
}

#[test]
fn http_1_0_goes_on_as_http_1_1() {
    let via = "Via: 1.0 stepflow-load-balancer";
    let ours = [OURS[0], OURS[1], "X-Forwarded-Host: 198.51.100.1:8080", OURS[3], via];
    check(
        &["GET /x?y HTTP/1.0", "A: 1", "Connection: keep-alive", "Expect: 100-continue"],
        &[&["GET /x?y HTTP/1.1", "A: 1", "Host: 198.51.100.1:8080"], &ours[..]].concat(),
    );
    check(
        &["GET / HTTP/1.0", "host: h"],
        &[&["GET / HTTP/1.1", "host: h"], &OURS[..4], &[via]].concat(),
    );
}

#[test]
fn targets_go_on_as_they_came_and_absolute_ones_without_their_host() {
    for target in ["/", "//a//b/../c", "/%2e%2E/%00?a=b&c=%20", "/a?b?c", "/\"<>\\^`{|}"] {
        let line = format!("GET {target} HTTP/1.1");
        check(&[&line, "Host: h"], &[&[line.as_str(), "Host: h"], &OURS[..]].concat());
    }
    check(
        &["OPTIONS * HTTP/1.1", "Host: h"],
        &[&["OPTIONS * HTTP/1.1", "Host: h"], &OURS[..]].concat(),
    );
    check(
        &["BREW http://h/pot?milk HTTP/1.1", "HOST: elsewhere", "A: 1"],
        &[&["BREW /pot?milk HTTP/1.1", "HOST: h", "A: 1"], &OURS[..]].concat(),
    );
    check(
        &["OPTIONS http://h HTTP/1.1", "Host: elsewhere"],
        &[&["OPTIONS * HTTP/1.1", "Host: h"], &OURS[..]].concat(),
    );
}
