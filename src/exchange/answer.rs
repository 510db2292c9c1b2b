//! Pure: the responses that the balancer makes itself.

use serde_json::json;

use super::{ErrorFormat, Failure, Origin};
use crate::{
    http1::{DateLine, HeadWriter, Method, reason_phrase},
    model::{HealthCounts, Phase},
};

/// Seconds after which a client that was answered 429 or 503 should try again: half a health
/// interval.
const RETRY_AFTER_SECONDS: u64 = 5;

/// JSON-RPC error codes. Stepflow 0.10 and later retry −32300 to −32399 ("transport"), and −32302
/// is its "connection error"; an unknown code would fail the flow at once, and a body without
/// `jsonrpc` and a string `id` is not read at all.
mod code {
    pub(super) const INVALID_REQUEST: i32 = -32600;
    pub(super) const TRANSPORT: i32 = -32300;
    pub(super) const TRANSPORT_CONNECTION: i32 = -32302;
    /// What the servers of MCP's SDKs say to a session that they do not know.
    pub(super) const SESSION_NOT_FOUND: i32 = -32001;
}

/// What an answer is about, beyond the failure itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorContext<'a> {
    /// The instance that the request named.
    pub instance: Option<&'a str>,
    /// How many backends there are.
    pub backends: HealthCounts,
}

/// What an answer says about its connection (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It ends.
    Close,
    /// It goes on, which an HTTP/1.0 client must be told.
    KeepAlive,
    /// It goes on, as an HTTP/1.1 client expects.
    Nothing,
}

/// A complete response of our own.
#[derive(Debug)]
pub struct Answer<'a> {
    /// Status code.
    pub status: u16,
    /// Media type of the body, if there is one.
    pub content_type: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl Answer<'_> {
    /// Appends head and body. `date` is the moment at which this is written.
    pub fn write(&self, out: &mut Vec<u8>, method: Method, date: &DateLine, announced: Announced) {
        let mut head =
            HeadWriter::response(out, self.status, reason_phrase(self.status).as_bytes());
        head.line(date.as_bytes());
        if let Some(content_type) = self.content_type {
            head.field(b"Content-Type", content_type.as_bytes());
        }
        head.field_number(b"Content-Length", self.body.len() as u64);
        head.field(b"Cache-Control", b"no-store");
        if matches!(self.status, 429 | 503) {
            head.field_number(b"Retry-After", RETRY_AFTER_SECONDS);
        }
        // RFC 9110 §10.2.1: to a method that is not served, and to whoever asks which are.
        if self.status == 405 || (method == Method::Options && self.status == 200) {
            head.field(b"Allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH");
        }
        match announced {
            Announced::Close => {
                head.field(b"Connection", b"close");
            }
            Announced::KeepAlive => {
                head.field(b"Connection", b"keep-alive");
            }
            Announced::Nothing => {}
        }
        head.end();
        if method != Method::Head {
            out.extend_from_slice(self.body);
        }
    }
}

impl Failure {
    /// The body that explains this failure to a client, and its media type.
    pub fn body(self, format: ErrorFormat, context: &ErrorContext<'_>) -> (Vec<u8>, &'static str) {
        match format {
            ErrorFormat::Text => (self.text_body(context), "text/plain; charset=utf-8"),
            ErrorFormat::JsonRpc => (self.json_rpc_body(context), "application/json"),
        }
    }

    fn text_body(self, context: &ErrorContext<'_>) -> Vec<u8> {
        let detail = match self {
            Self::InstanceUnknown | Self::InstanceUnreachable => context
                .instance
                .map(|instance| format!(" (instance {instance:?})"))
                .unwrap_or_default(),
            Self::NoHealthyBackend => {
                let HealthCounts { total, healthy, .. } = context.backends;
                format!(" ({total} known, {healthy} healthy)")
            }
            _ => String::new(),
        };
        format!("{}: {}{detail}\n", self.label(), self.reason()).into_bytes()
    }

    fn json_rpc_body(self, context: &ErrorContext<'_>) -> Vec<u8> {
        let (code, message) = match self {
            Self::InstanceUnknown | Self::InstanceUnreachable | Self::SessionUnavailable => {
                (code::TRANSPORT_CONNECTION, "Instance not available")
            }
            Self::SessionLost => (code::SESSION_NOT_FOUND, "Session not found"),
            Self::NoHealthyBackend => (code::TRANSPORT_CONNECTION, "No healthy backend"),
            Self::QueueFull | Self::QueueTimeout => (code::TRANSPORT, "Every backend is full"),
            // By blame, not by status: 501 and 505 are refusals too, and trying again will not
            // help.
            _ if self.origin() == Origin::Downstream => (code::INVALID_REQUEST, "Request refused"),
            _ => (code::TRANSPORT, "Backend failed"),
        };
        let mut data = json!({ "reason": self.reason(), "label": self.label() });
        if let Some(instance) = context.instance {
            data["instanceId"] = instance.into();
        }
        if self == Self::NoHealthyBackend {
            data["backends"] = json!({
                "total": context.backends.total,
                "healthy": context.backends.healthy,
            });
        }
        let error = json!({ "code": code, "message": message, "data": data });
        json!({ "jsonrpc": "2.0", "id": super::SELF_NAME, "error": error }).to_string().into_bytes()
    }
}

/// Status and body of the balancer's own health endpoint: ready when it is serving and at least one
/// backend is given work, be it in panic: to be taken out of service for that would undo it.
pub fn health_answer(phase: Phase, counts: HealthCounts) -> (u16, Vec<u8>) {
    let HealthCounts { total, healthy, usable } = counts;
    let (status, word) = match phase {
        Phase::Unready | Phase::Draining => (503, "draining"),
        Phase::Serving if usable == 0 => (503, "unhealthy"),
        Phase::Serving => (200, "healthy"),
    };
    let body = format!(
        r#"{{"status":"{word}","backends":{{"total":{total},"healthy":{healthy},"unhealthy":{}}}}}"#,
        total - healthy
    );
    (status, body.into_bytes())
}
