//! Pure: tests of the responses that the balancer makes itself.

use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::{
    http1::Method,
    model::{HealthCounts, Phase},
};

const COUNTS: HealthCounts = HealthCounts { total: 3, healthy: 1, usable: 1 };

/// Would end a string, a member, a line and a head, if it were let.
const HOSTILE: &str = "\"},\"x\":[\\\r\n\r\n\u{1}\u{7f}</script>\u{2028}é";

fn json(failure: Failure, instance: Option<&str>) -> Value {
    let context = ErrorContext { instance, backends: COUNTS };
    let (body, content_type) = failure.body(ErrorFormat::JsonRpc, &context);
    assert_eq!(content_type, "application/json");
    serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{failure:?}: {error}"))
}

fn text(failure: Failure, instance: Option<&str>) -> String {
    let context = ErrorContext { instance, backends: COUNTS };
    let (body, content_type) = failure.body(ErrorFormat::Text, &context);
    assert_eq!(content_type, "text/plain; charset=utf-8");
    String::from_utf8(body).unwrap()
}

#[test]
fn every_failure_is_a_json_rpc_error_that_stepflow_reads() {
    for failure in Failure::ALL {
        let body = json(*failure, None);
        let keys: Vec<_> = body.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["error", "id", "jsonrpc"], "{failure:?}");
        assert_eq!(body["jsonrpc"], "2.0");
        // A body whose id is null or a number is not read at all.
        assert!(body["id"].as_str().is_some_and(|id| !id.is_empty()), "{failure:?}");
        assert!(body["error"]["code"].is_i64(), "{failure:?}");
        assert!(body["error"]["message"].as_str().is_some_and(|m| !m.is_empty()), "{failure:?}");
        let data = &body["error"]["data"];
        assert_eq!(data["reason"], failure.reason(), "{failure:?}");
        assert_eq!(data["label"], failure.label(), "{failure:?}");
        assert!(data.get("instanceId").is_none(), "{failure:?}");
        assert_eq!(data.get("backends").is_some(), *failure == Failure::NoHealthyBackend);
    }
}

#[test]
fn the_code_says_whether_trying_again_can_help() {
    let codes = Failure::ALL.iter().filter(|failure| failure.status().is_some()).map(|failure| {
        let code = json(*failure, None)["error"]["code"].as_i64().unwrap();
        (failure.label(), (code, *failure))
    });
    for (label, (code, failure)) in codes.collect::<BTreeMap<_, _>>() {
        let want = match failure {
            Failure::InstanceUnknown
            | Failure::InstanceUnreachable
            | Failure::SessionUnavailable
            | Failure::NoHealthyBackend => -32302,
            // What MCP's own servers say.
            Failure::SessionLost => -32001,
            // What the client did wrong, it will do wrong again.
            failure if failure.origin() == Origin::Downstream => -32600,
            // Stepflow retries from −32300 to −32399.
            _ => -32300,
        };
        assert_eq!(code, want, "{label}");
    }
}

#[test]
fn a_missing_instance_is_named_and_a_missing_backend_is_counted() {
    for failure in [Failure::InstanceUnknown, Failure::InstanceUnreachable] {
        let error = &json(failure, Some("pod-1"))["error"];
        assert_eq!(error["message"], "Instance not available");
        assert_eq!(error["data"]["instanceId"], "pod-1");
        assert!(text(failure, Some("pod-1")).contains("\"pod-1\""));
        assert_eq!(text(failure, None), format!("{}: {}\n", failure.label(), failure.reason()));
    }
    let error = &json(Failure::NoHealthyBackend, None)["error"];
    assert_eq!(error["message"], "No healthy backend");
    assert_eq!(error["data"]["backends"], serde_json::json!({ "total": 3, "healthy": 1 }));
    assert!(text(Failure::NoHealthyBackend, None).contains("(3 known, 1 healthy)"));
}

#[test]
fn a_hostile_instance_id_stays_inside_its_string() {
    for failure in Failure::ALL {
        let body = json(*failure, Some(HOSTILE));
        assert_eq!(body["error"]["data"]["instanceId"], HOSTILE, "{failure:?}");
        let text = text(*failure, Some(HOSTILE));
        assert_eq!(text.lines().count(), 1, "{text:?}");
        assert!(!text.trim_end().contains(char::is_control), "{text:?}");
    }
}

#[test]
fn text_is_one_line_with_label_and_reason() {
    for failure in Failure::ALL {
        let text = text(*failure, None);
        let start = format!("{}: {}", failure.label(), failure.reason());
        assert!(text.starts_with(&start) && text.ends_with('\n'), "{text:?}");
        assert_eq!(text.lines().count(), 1, "{text:?}");
    }
}

fn written(status: u16, method: Method, closes: bool) -> Vec<u8> {
    let mut out = Vec::new();
    Answer { status, content_type: Some("text/plain"), body: b"body\n" }.write(
        &mut out,
        method,
        &date(),
        if closes { Announced::Close } else { Announced::Nothing },
    );
    out
}

#[test]
fn an_answer_is_written_as_it_should_be_read() {
    let want = "HTTP/1.1 502 Bad Gateway\r\n\
                Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                Content-Type: text/plain\r\n\
                Content-Length: 5\r\n\
                Cache-Control: no-store\r\n\
                Connection: close\r\n\
                \r\n\
                body\n";
    assert_eq!(
        written(502, Method::Post, true).escape_ascii().to_string(),
        want.escape_default().to_string()
    );
}

#[test]
fn every_answer_parses_and_carries_what_its_status_asks_for() {
    let statuses = Failure::ALL.iter().filter_map(|failure| failure.status()).chain([200]);
    for status in statuses {
        for method in Method::ALL {
            for closes in [false, true] {
                let octets = written(status, method, closes);
                let body = octets.strip_suffix(b"body\n");
                assert_eq!(body.is_none(), method == Method::Head, "{status} {method:?}");
                let head = body.unwrap_or(&octets);
                assert_is_one_head(head);
                with_response(head, |head| {
                    let values = |name: &str| -> Vec<&[u8]> {
                        let lines = head.fields.iter().filter(|l| l.name == name);
                        lines.map(|line| line.value).collect()
                    };
                    assert_eq!(head.status, status);
                    assert!(!head.reason.is_empty(), "{status} has no reason phrase");
                    assert_eq!(values("Date"), [DATE.as_bytes()]);
                    // HEAD tells the length of the body that it leaves out.
                    assert_eq!(values("Content-Length"), [b"5"]);
                    let retry: &[&[u8]] = if matches!(status, 429 | 503) { &[b"5"] } else { &[] };
                    assert_eq!(values("Retry-After"), retry, "{status}");
                    // RFC 9110 §15.5.6: a 405 must say what is allowed; §9.3.7: OPTIONS asks.
                    let allows = status == 405 || (method, status) == (Method::Options, 200);
                    assert_eq!(values("Allow").len(), usize::from(allows), "{status} {method:?}");
                    assert_eq!(values("Connection").len(), usize::from(closes), "{status}");
                });
            }
        }
    }
}

#[test]
fn a_refused_method_is_not_among_the_allowed_ones() {
    let octets = written(405, Method::Connect, true);
    let text = String::from_utf8(octets).unwrap();
    let allow = text.lines().find_map(|line| line.strip_prefix("Allow: ")).unwrap();
    assert!(allow.split(", ").all(|m| m != "CONNECT" && Method::of(m.as_bytes()) != Method::Other));
}

#[test]
fn own_health_is_that_of_the_whole() {
    let cases = [
        (Phase::Serving, 3, 3, 3, 200, "healthy"),
        (Phase::Serving, 3, 1, 1, 200, "healthy"),
        (Phase::Serving, 3, 0, 0, 503, "unhealthy"),
        (Phase::Serving, 0, 0, 0, 503, "unhealthy"),
        // In panic it serves, so it must not be taken out of service.
        (Phase::Serving, 3, 0, 3, 200, "healthy"),
        (Phase::Unready, 3, 3, 3, 503, "draining"),
        (Phase::Draining, 3, 0, 0, 503, "draining"),
    ];
    for (phase, total, healthy, usable, status, word) in cases {
        let (got, body) = health_answer(phase, HealthCounts { total, healthy, usable });
        let body: Value = serde_json::from_slice(&body).unwrap();
        let want = serde_json::json!({
            "status": word,
            "backends": { "total": total, "healthy": healthy, "unhealthy": total - healthy },
        });
        assert_eq!((got, body), (status, want), "{phase:?} {healthy}/{total}");
    }
}
