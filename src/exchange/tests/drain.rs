//! Pure: tests of which streams come again when they are ended.

use super::*;

const CHUNKED: &str = "Transfer-Encoding: chunked";

fn nature(method: &str, accept: &str, status: u16, fields: &[&str], is_tied: bool) -> Nature {
    let line = format!("{method} /events HTTP/1.1");
    let accept = format!("Accept: {accept}");
    let request = request(&[&line, "Host: h", &accept]);
    let status = format!("HTTP/1.1 {status}");
    let lines = [&[status.as_str()], fields].concat();
    Nature::of(&request, &response(&request, &lines).unwrap(), is_tied)
}

#[test]
fn only_a_stream_that_is_asked_for_again_and_may_be_written_into_reconnects() {
    const STREAM: &str = "Content-Type: text/event-stream";
    const EVENTS: &str = "text/event-stream";
    let cases: &[(&str, &str, u16, &[&str], Nature)] = &[
        ("GET", EVENTS, 200, &[STREAM, CHUNKED], Nature::Free),
        ("GET", "application/json, text/event-stream", 200, &[STREAM, CHUNKED], Nature::Free),
        // It ends with the backend's connection.
        ("GET", EVENTS, 200, &[STREAM], Nature::Free),
        ("GET", EVENTS, 203, &[STREAM, CHUNKED], Nature::Free),
        ("GET", EVENTS, 200, &[STREAM, CHUNKED, "Content-Encoding: identity"], Nature::Free),
        // Nobody asks a second time for what was answered.
        ("POST", EVENTS, 200, &[STREAM, CHUNKED], Nature::Finite),
        ("PUT", EVENTS, 200, &[STREAM, CHUNKED], Nature::Finite),
        // Who did not ask for one may not know what to do when it ends.
        ("GET", "*/*", 200, &[STREAM, CHUNKED], Nature::Finite),
        ("GET", EVENTS, 404, &[STREAM, CHUNKED], Nature::Finite),
        ("GET", EVENTS, 500, &[STREAM, CHUNKED], Nature::Finite),
        // Nothing of ours may stand in these.
        ("GET", EVENTS, 200, &[STREAM, CHUNKED, "Content-Encoding: br"], Nature::Finite),
        ("GET", EVENTS, 200, &[STREAM, "Content-Length: 9"], Nature::Finite),
        ("GET", EVENTS, 200, &["Content-Type: text/plain", CHUNKED], Nature::Other),
        ("GET", EVENTS, 204, &[STREAM], Nature::Other),
        ("HEAD", EVENTS, 200, &[STREAM, CHUNKED], Nature::Other),
    ];
    for (method, accept, status, fields, want) in cases {
        let got = nature(method, accept, *status, fields, false);
        assert_eq!(got, *want, "{method} {accept} {status} {fields:?}");
        let tied = if *want == Nature::Free { Nature::Tied } else { *want };
        let got = nature(method, accept, *status, fields, true);
        assert_eq!(got, tied, "tied: {method} {accept} {status} {fields:?}");
    }
}
