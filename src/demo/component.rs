//! What a component server of the demo makes of a request, apart from sockets and time.

use serde_json::{Value, json};

use crate::{
    endpoint::{Request, Response},
    http1::Method,
};

/// What to do with a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// Send this.
    Whole(Response),
    /// Stream events for the call with this JSON-RPC id.
    Stream {
        /// The call's id, whatever kind of JSON it is.
        id: Value,
    },
    /// Hand this answer to the stream that waits for it.
    Callback {
        /// Id of the stream's question.
        id: String,
        /// Result or error, as sent.
        answer: Value,
    },
}

/// Decides. `instance` is who answers.
pub(super) fn reply(instance: &str, request: &Request) -> Reply {
    match (request.method, request.path()) {
        (Method::Post, b"/") => json_rpc(instance, &request.body),
        (Method::Get | Method::Head, b"/health") => Reply::Whole(health(instance)),
        _ => Reply::Whole(mirror(instance, request)),
    }
}

fn json_rpc(instance: &str, body: &[u8]) -> Reply {
    let Ok(message) = serde_json::from_slice::<Value>(body) else {
        return Reply::Whole(json_rpc_error(400, &Value::Null, -32700, "the body is not JSON"));
    };
    let id = message.get("id").cloned().unwrap_or(Value::Null);
    let Some(method) = message.get("method").and_then(Value::as_str) else {
        return callback(&message, &id);
    };
    let component = message.pointer("/params/component").and_then(Value::as_str);
    match (method, component) {
        ("components/execute", Some("/demo/echo")) => {
            let input = message.pointer("/params/input").cloned().unwrap_or(Value::Null);
            let output = json!({ "instance": instance, "input": input });
            Reply::Whole(json_rpc_result(&id, &json!({ "output": output })))
        }
        ("components/execute", Some("/demo/stream")) => Reply::Stream { id },
        ("components/execute", _) => {
            let text = "the components here are /demo/echo and /demo/stream";
            Reply::Whole(json_rpc_error(200, &id, -32602, text))
        }
        _ => Reply::Whole(json_rpc_error(200, &id, -32601, "the method is components/execute")),
    }
}

fn callback(message: &Value, id: &Value) -> Reply {
    let answer = message.get("result").or_else(|| message.get("error"));
    match (id.as_str(), answer) {
        (Some(id), Some(answer)) => Reply::Callback { id: id.to_owned(), answer: answer.clone() },
        _ => {
            let text = "a JSON-RPC message has a method, or a string id and a result or an error";
            Reply::Whole(json_rpc_error(400, id, -32600, text))
        }
    }
}

/// Answer to a callback that somebody waited for: 202 with an empty JSON string, as Stepflow's
/// component servers do.
pub(super) fn callback_taken() -> Response {
    Response::json(202, "\"\"")
}

/// Answer to a callback that nobody here waits for, which is what a callback at the wrong instance
/// gets.
pub(super) fn callback_unknown(instance: &str, id: &str) -> Response {
    let text = format!("Response with id '{id}' has no pending request at {instance}");
    Response::json(400, json!({ "error": text }).to_string())
}

fn health(instance: &str) -> Response {
    let body = json!({ "status": "healthy", "instanceId": instance, "service": "stepflow-demo" });
    Response::json(200, body.to_string())
}

fn mirror(instance: &str, request: &Request) -> Response {
    let body = json!({
        "instance": instance,
        "method": request.method.label(),
        "target": String::from_utf8_lossy(&request.target),
        "host": String::from_utf8_lossy(&request.host),
        "bodyBytes": request.body.len(),
    });
    Response::json(200, body.to_string())
}

fn json_rpc_result(id: &Value, result: &Value) -> Response {
    Response::json(200, json!({ "jsonrpc": "2.0", "id": id, "result": result }).to_string())
}

fn json_rpc_error(status: u16, id: &Value, code: i32, message: &str) -> Response {
    let error = json!({ "code": code, "message": message });
    Response::json(status, json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string())
}

/// The events of a stream, each complete with its framing.
pub(super) mod event {
    use serde_json::{Value, json};

    fn data(message: &Value) -> String {
        format!("data: {message}\n\n")
    }

    /// The component's question, and as a comment the command that answers it.
    pub(in super::super) fn question(instance: &str, id: &str, host: &str, wait_s: u64) -> String {
        let params = json!({ "data": { "from": instance, "text": "héllo" }, "blob_type": "data" });
        let message =
            json!({ "jsonrpc": "2.0", "id": id, "method": "blobs/put", "params": params });
        let answer = json!({ "jsonrpc": "2.0", "id": id, "result": { "blob_id": "b-1" } });
        format!(
            ": {instance} asks for a blob to be stored and waits {wait_s} s for the answer. To \
             answer, paste into another terminal:\n\
             : curl -sS http://{host}/ -H 'Stepflow-Instance-Id: {instance}' -H 'Content-Type: \
             application/json' -d '{answer}'\n{}",
            data(&message)
        )
    }

    /// Progress after the answer.
    pub(in super::super) fn progress(step: u32, of: u32) -> String {
        let params = json!({ "step": step, "of": of });
        data(&json!({ "jsonrpc": "2.0", "method": "demo/progress", "params": params }))
    }

    /// The last event: the call's result.
    pub(in super::super) fn result(id: &Value, instance: &str, answer: &Value) -> String {
        let output = json!({ "instance": instance, "answer": answer });
        data(&json!({ "jsonrpc": "2.0", "id": id, "result": { "output": output } }))
    }

    /// The last event when nobody answered.
    pub(in super::super) fn gave_up(id: &Value, wait_s: u64) -> String {
        let message = format!("no answer arrived within {wait_s} s");
        data(
            &json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32000, "message": message } }),
        )
    }
}

/// The host to name in a command to paste: the one that the client used, if it is one.
pub(super) fn pastable_host(request: &Request) -> String {
    let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(b);
    match std::str::from_utf8(&request.host) {
        Ok(host) if !host.is_empty() && host.bytes().all(|b| is_plain(&b)) => host.to_owned(),
        _ => "HOST:PORT".to_owned(),
    }
}
