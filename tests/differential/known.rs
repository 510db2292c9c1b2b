//! What others read wrongly: a test each, which shows their reading and ours. That of monoio-http
//! is listed in docs/adr/0002 as well; it is why that is a peer of the tests and no part of the
//! product.

use crate::{
    Others, monoio_http_reader as theirs, ours,
    reading::{Kind, Message, Reading},
};

const GET: Kind = Kind::ResponseTo("GET");

fn whole(reading: &Reading) -> &Message {
    reading.message().unwrap_or_else(|| panic!("no whole message: {reading:?}"))
}

#[track_caller]
fn we_refuse(kind: Kind, octets: &[u8], label: &str) {
    assert_eq!(ours::read(kind, octets), Reading::Refused(label.to_owned()));
}

/// They read this much content, and the rest as the next message.
#[track_caller]
fn they_read(kind: Kind, octets: &[u8], content: &[u8], next: &[u8]) {
    let reading = theirs::read(kind, octets);
    let message = whole(&reading);
    assert_eq!(message.content.escape_ascii().to_string(), content.escape_ascii().to_string());
    assert_eq!(octets[message.end..].escape_ascii().to_string(), next.escape_ascii().to_string());
}

#[track_caller]
fn we_read(kind: Kind, octets: &[u8], content: &[u8], next: &[u8]) {
    let reading = ours::read(kind, octets);
    let message = whole(&reading);
    assert_eq!(message.content.escape_ascii().to_string(), content.escape_ascii().to_string());
    assert_eq!(octets[message.end..].escape_ascii().to_string(), next.escape_ascii().to_string());
}

#[test]
fn a_long_field_name_makes_them_panic_and_not_us() {
    let name = "x".repeat(65_536);
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: y\r\n\r\n");
    assert_eq!(theirs::read(Kind::Request, request.as_bytes()), Reading::refused("it panicked"));
    we_read(Kind::Request, request.as_bytes(), b"", b"");
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{name}: y\r\n\r\n");
    assert_eq!(theirs::read(GET, response.as_bytes()), Reading::refused("it panicked"));
    we_read(GET, response.as_bytes(), b"", b"");
}

#[test]
fn a_body_that_ends_with_the_connection_is_lost_to_them_and_not_to_us() {
    let response = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n";
    they_read(GET, response, b"", b"data: 1\n\n");
    we_read(GET, response, b"data: 1\n\n", b"");
}

#[test]
fn a_response_without_body_eats_the_next_with_them_and_not_with_us() {
    let next = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx";
    let cases =
        [(GET, "304 Not Modified"), (GET, "204 No Content"), (Kind::ResponseTo("HEAD"), "200 OK")];
    for (kind, status) in cases {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 17\r\n\r\n");
        let octets = [head.as_bytes(), next].concat();
        they_read(kind, &octets, b"HTTP/1.1 200 OK\r\n", &next[17..]);
        we_read(kind, &octets, b"", next);
    }
}

#[test]
fn only_the_first_coding_counts_for_them_and_we_refuse() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\
        Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n\
        0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n";
    they_read(Kind::Request, request, b"0\r\n\r\n", b"GET /smuggled HTTP/1.1\r\n\r\n");
    we_refuse(Kind::Request, request, "length_and_coding");
}

#[test]
fn an_empty_line_is_a_last_chunk_to_them_and_we_refuse() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
        \r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n";
    they_read(Kind::Request, request, b"", b"GET /smuggled HTTP/1.1\r\n\r\n");
    we_refuse(Kind::Request, request, "request_body");
}

#[test]
fn the_first_of_two_lengths_counts_for_them_and_we_refuse() {
    let request =
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nhello";
    they_read(Kind::Request, request, b"hel", b"lo");
    we_refuse(Kind::Request, request, "length_repeated");
}

#[test]
fn chunked_wins_over_a_length_with_them_and_we_refuse() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\
        Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n";
    they_read(Kind::Request, request, b"a", b"");
    we_refuse(Kind::Request, request, "length_and_coding");
}

#[test]
fn a_coding_in_http10_counts_for_them_and_we_refuse() {
    let request = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    they_read(Kind::Request, request, b"", b"");
    we_refuse(Kind::Request, request, "coding_in_http10");
}

#[test]
fn a_request_behind_bare_line_feeds_disappears_with_them_and_we_refuse() {
    let request = b"GET / HTTP/1.1\nHost: a\n\nPOST /lost HTTP/1.1\r\nHost: a\r\n\r\n";
    they_read(Kind::Request, request, b"", b"");
    we_refuse(Kind::Request, request, "head_bare_lf");
}

#[test]
fn they_refuse_extensions_and_trailers_and_we_read_them() {
    for body in ["1;a=b\r\nx\r\n0\r\n\r\n", "1\r\nx\r\n0\r\nA: b\r\n\r\n"] {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = format!("{head}{body}");
        let reading = theirs::read(Kind::Request, request.as_bytes());
        assert!(matches!(reading, Reading::Refused(_)), "{reading:?}");
        we_read(Kind::Request, request.as_bytes(), b"x", b"");
    }
}

#[test]
fn they_withhold_a_body_until_it_is_whole_and_we_do_not() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\nsome of it";
    assert_eq!(theirs::read(Kind::Request, request), Reading::Unfinished);
    assert_eq!(ours::read(Kind::Request, request), Reading::Unfinished);
    // What there is can go on at once.
    use stepflow_load_balancer::http1::{Body, Framing, Step};
    let mut body = Body::new(Framing::Length(1 << 40));
    assert_eq!(body.step(b"some of it"), Ok(Step::Data(10)));
}

/// Whether a Transfer-Encoding line has white space other than spaces.
pub(crate) fn has_tab_beside_coding(octets: &[u8]) -> bool {
    octets.split(|octet| *octet == b'\n').any(|line| {
        let name = line.get(..18).unwrap_or_default();
        name.eq_ignore_ascii_case(b"transfer-encoding:") && line.contains(&b'\t')
    })
}

#[test]
fn a_coding_beside_a_tab_is_lost_to_llhttp_and_never_sent_by_us() {
    let request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \tchunked\t\r\n\r\n\
        1\r\nx\r\n0\r\n\r\nGET /next HTTP/1.1\r\n\r\n";
    assert!(has_tab_beside_coding(request));
    we_read(Kind::Request, request, b"x", b"GET /next HTTP/1.1\r\n\r\n");
    let Ok(passage) = ours::pass(Kind::Request, request) else { panic!("it is read above") };
    assert!(!has_tab_beside_coding(&passage.forwarded));
    for (who, reading) in Others::new().read(Kind::Request, request) {
        match who.as_str() {
            // RFC 9110 §5.5: a tab is as good as a space there.
            "llhttp (strict)" => assert!(matches!(reading, Reading::Refused(_)), "{reading:?}"),
            "llhttp (lenient_transfer_encoding)" => {
                assert_eq!(whole(&reading).end, request.len());
            }
            _ => {}
        }
    }
    let response =
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\t\r\n\r\n1\r\nx\r\n0\r\n\r\n0\r\n\r\n";
    we_read(GET, response, b"x", b"0\r\n\r\n");
    let Ok(passage) = ours::pass(GET, response) else { panic!("it is read above") };
    assert!(!has_tab_beside_coding(&passage.forwarded));
    let strict = |(who, _): &(String, Reading)| who == "llhttp (strict)";
    for (_, reading) in Others::new().read(GET, response).iter().filter(|reading| strict(reading)) {
        assert_eq!(whole(reading).end, response.len(), "it reads to the end of the connection");
    }
}

/// Why real readers refuse messages that we forward. None of it concerns where a message ends.
const HARMLESS_REFUSALS: &[&str] = &[
    // llhttp knows a list of methods.
    "Invalid method encountered",
    "Expected space after method",
    // h11 takes at most twenty digits, leading zeros or not.
    "bad Content-Length",
    // llhttp wants a name behind the semicolon of a chunk extension.
    "Invalid character in chunk extensions",
];

/// Whether a refusal is one of those.
pub(crate) fn is_harmless_refusal(why: &str) -> bool {
    HARMLESS_REFUSALS.iter().any(|known| why.contains(known))
}
