//! Pure: tells the two messages with which Stepflow's orchestrator introduces itself from all
//! others (ADR 21).
//!
//! Owns what counts as such a message and what an answer to it means. Does not own what is done
//! about it: that is decided in `plane`.
//!
//! Other protocols over JSON-RPC have an `initialize` as well, which means something else: in MCP
//! it begins one client's session, and sending it to anybody a second time would be wrong. So the
//! method's name is not enough; the parameters must be Stepflow's.

use std::sync::Arc;

use memchr::memmem::Finder;
use serde_json::{Deserializer, Value};

use super::{ErrorFormat, RequestPlan};
use crate::http1::{Field, Framing, Method, RequestHead, list_contains};

/// Longest body that is looked at, in octets. The orchestrator's own have about 200.
pub const HANDSHAKE_BYTES_MAX: usize = 16 * 1024;

/// In both messages, and in hardly any other.
const NEEDLE: &[u8] = b"\"initialize";

/// Parameters of which Stepflow's `initialize` has one: from 0.10 on, and before.
const STEPFLOW_PARAMS: [&str; 2] = ["runtimeProtocolVersion", "runtime_protocol_version"];

/// Parameters that MCP requires of its own `initialize`, in every version that has one.
const MCP_PARAMS: [&str; 2] = ["protocolVersion", "clientInfo"];

/// One of the two messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// The request `initialize`, with its parameters in one form: members sorted, no white space.
    Initialize(Arc<str>),
    /// The notification `initialized`, which follows when the answer was to the client's liking.
    Initialized,
}

/// Recognises them. Made once, because preparing the search costs more than searching.
#[derive(Debug)]
pub struct HandshakeReader {
    needle: Finder<'static>,
}

impl Default for HandshakeReader {
    fn default() -> Self {
        Self { needle: Finder::new(NEEDLE) }
    }
}

impl HandshakeReader {
    /// Reads a request whose body is complete. For nearly all requests this is a comparison, or a
    /// search of a small body; only what has the word in it is parsed.
    pub fn read(&self, head: &RequestHead<'_>, body: &[u8]) -> Option<Handshake> {
        if head.method != Method::Post || body.is_empty() || body.len() > HANDSHAKE_BYTES_MAX {
            return None;
        }
        self.needle.find(body)?;
        let is_json = head.fields.iter().any(|line| {
            Field::of(line.name.as_bytes()) == Field::ContentType
                && list_contains(line.value, b"application/json")
        });
        if is_json { message(body) } else { None }
    }
}

/// Whether a request whose body has not arrived may turn out to be one of the two: then it is
/// worth waiting a moment for the rest. Gives the length of its body.
pub fn may_be_handshake(plan: &RequestPlan) -> Option<usize> {
    let Framing::Length(bytes) = plan.framing else { return None };
    let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= HANDSHAKE_BYTES_MAX)?;
    // Whoever waits to be told to continue sends nothing meanwhile.
    let may_be = plan.method == Method::Post
        && plan.error_format == ErrorFormat::JsonRpc
        && !plan.expects_continue;
    may_be.then_some(bytes)
}

/// Whether the answer to `initialize` says no: a JSON-RPC error, in JSON or in the first event of a
/// stream. An answer that cannot be read, because it is compressed or cut, does not say no: the
/// client, who can read it, sends `initialized` only if it was content.
pub fn is_refusal(answer: &[u8]) -> bool {
    let Some(start) = memchr::memchr(b'{', answer) else { return false };
    // Only the first value: chunks and events have something behind it.
    let first = Deserializer::from_slice(&answer[start..]).into_iter::<Value>().next();
    match first {
        Some(Ok(Value::Object(members))) => {
            members.get("error").is_some_and(|error| !error.is_null())
        }
        Some(_) | None => false,
    }
}

fn message(body: &[u8]) -> Option<Handshake> {
    let Ok(Value::Object(members)) = serde_json::from_slice(body) else { return None };
    if members.get("jsonrpc")?.as_str() != Some("2.0") {
        return None;
    }
    let is_notification = !members.contains_key("id");
    match (members.get("method")?.as_str()?, is_notification) {
        ("initialize", false) => {
            let Some(Value::Object(params)) = members.get("params") else { return None };
            let version = STEPFLOW_PARAMS.iter().find_map(|name| params.get(*name))?;
            if !version.is_u64() || MCP_PARAMS.iter().any(|name| params.contains_key(*name)) {
                return None;
            }
            serde_json::to_string(params).ok().map(|terms| Handshake::Initialize(Arc::from(terms)))
        }
        ("initialized", true) => Some(Handshake::Initialized),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{FIELDS_MAX, field_storage, parse_request};

    const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":"01a1fdf5-cb99-7180-b574-73e5abb883b6","method":"initialize","params":{"runtimeProtocolVersion":1,"capabilities":{"blobApiUrl":"http://127.0.0.1:44859/api/v1/blobs","blobThreshold":1048576}}}"#;
    const TERMS: &str = r#"{"capabilities":{"blobApiUrl":"http://127.0.0.1:44859/api/v1/blobs","blobThreshold":1048576},"runtimeProtocolVersion":1}"#;

    fn read(method: &str, content_type: &str, body: &[u8]) -> Option<Handshake> {
        let head =
            format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Type: {content_type}\r\n\r\n");
        let mut storage = field_storage();
        let head = parse_request(head.as_bytes(), &mut storage, FIELDS_MAX).unwrap();
        HandshakeReader::default().read(&head, body)
    }

    fn posted(body: &str) -> Option<Handshake> {
        read("POST", "application/json", body.as_bytes())
    }

    fn initialize(terms: &str) -> Option<Handshake> {
        Some(Handshake::Initialize(Arc::from(terms)))
    }

    #[test]
    fn the_orchestrator_s_messages_are_recognised() {
        // As sent by 0.11, and by 0.9.
        assert_eq!(posted(INITIALIZE), initialize(TERMS));
        let older = r#"{"jsonrpc":"2.0","id":"a","method":"initialize","params":{"runtime_protocol_version":1}}"#;
        assert_eq!(posted(older), initialize(r#"{"runtime_protocol_version":1}"#));
        let initialized = r#"{"jsonrpc":"2.0","method":"initialized","params":{}}"#;
        assert_eq!(posted(initialized), Some(Handshake::Initialized));
        assert_eq!(
            posted(r#"{"method":"initialized","jsonrpc":"2.0"}"#),
            Some(Handshake::Initialized)
        );
    }

    #[test]
    fn parameters_that_agree_have_equal_terms() {
        let other = r#" {"params": {"capabilities": {"blobThreshold": 1048576,
            "blobApiUrl": "http:\/\/127.0.0.1:44859\/api\/v1\/blobs"}, "runtimeProtocolVersion": 1},
            "method": "initialize", "id": 7, "jsonrpc": "2.0"} "#;
        assert_eq!(posted(other), initialize(TERMS));
        let changed = INITIALIZE.replace("44859", "44860");
        assert_ne!(posted(&changed), initialize(TERMS));
    }

    #[test]
    fn every_other_message_is_left_alone() {
        let mcp = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"a","version":"1"}}}"#;
        let both = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"1","runtimeProtocolVersion":1}}"#;
        let nested = r#"{"jsonrpc":"2.0","id":1,"method":"components/execute","params":{"input":{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"runtimeProtocolVersion":1}}}}"#;
        let quoted = r#"{"jsonrpc":"2.0","id":1,"method":"components/execute","params":{"input":"{\"method\":\"initialize\"}"}}"#;
        let batch = format!("[{INITIALIZE}]");
        let cut = &INITIALIZE[..INITIALIZE.len() - 1];
        let long =
            INITIALIZE.replace("1048576", &format!("1048576{}", " ".repeat(HANDSHAKE_BYTES_MAX)));
        let deep = format!(r#"{{"method":"initialize","params":{}"#, "[".repeat(8000));
        let others = [
            "",
            "{}",
            mcp,
            both,
            nested,
            quoted,
            &batch,
            cut,
            &long,
            &deep,
            // MCP's own notification, and one that is a request.
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialized","params":{}}"#,
            // A request without id has no answer, so nobody knows whether it succeeded.
            r#"{"jsonrpc":"2.0","method":"initialize","params":{"runtimeProtocolVersion":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":[1]}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"processId":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"runtimeProtocolVersion":"1"}}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"initialize","params":{"runtimeProtocolVersion":1}}"#,
            r#"{"id":1,"method":"initialize","params":{"runtimeProtocolVersion":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"Initialize","params":{"runtimeProtocolVersion":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"initializeAll","params":{"runtimeProtocolVersion":1}}"#,
            // Nobody writes it so, and whoever does has it his way.
            r#"{"jsonrpc":"2.0","id":1,"method":"\u0069nitialize","params":{"runtimeProtocolVersion":1}}"#,
        ];
        for body in others {
            assert_eq!(posted(body), None, "{body:.120}");
        }
        for (method, content_type) in
            [("PUT", "application/json"), ("GET", "application/json"), ("POST", "text/plain")]
        {
            assert_eq!(read(method, content_type, INITIALIZE.as_bytes()), None, "{method}");
        }
        for content_type in ["application/json; charset=utf-8", "Application/JSON"] {
            let read = read("POST", content_type, INITIALIZE.as_bytes());
            assert_eq!(read, initialize(TERMS), "{content_type}");
        }
        let binary = [INITIALIZE.as_bytes(), b"\xff"].concat();
        assert_eq!(read("POST", "application/json", &binary), None);
    }

    #[test]
    fn only_what_can_be_read_as_an_error_is_a_refusal() {
        let result = r#"{"id":"a","result":{"serverProtocolVersion":1},"jsonrpc":"2.0"}"#;
        let error = r#"{"jsonrpc":"2.0","id":"a","error":{"code":-32000,"message":"no"}}"#;
        let null = r#"{"jsonrpc":"2.0","id":"a","result":{},"error":null}"#;
        for (answer, want) in [
            (result.to_owned(), false),
            (error.to_owned(), true),
            (null.to_owned(), false),
            (format!("42\r\n{error}\r\n0\r\n\r\n"), true),
            (format!("data: {error}\n\n"), true),
            (format!("data: {result}\n\n"), false),
            (String::new(), false),
            (error[..20].to_owned(), false),
            ("\"\"".to_owned(), false),
            ("[1]".to_owned(), false),
        ] {
            assert_eq!(is_refusal(answer.as_bytes()), want, "{answer}");
        }
    }
}
