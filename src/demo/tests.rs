//! The component servers as a balancer meets them, without one.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::{Value, json};

use super::*;

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, request: &str) {
        self.0.get_mut().write_all(request.as_bytes()).expect("room");
    }

    fn post(&mut self, body: &Value) {
        let body = body.to_string();
        let head = "POST / HTTP/1.1\r\nHost: lb:8080\r\nContent-Type: application/json\r\n";
        self.send(&format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()));
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Status and field lines, in lower case.
    fn head(&mut self) -> (u16, Vec<String>) {
        let status = self.line()[9..12].parse().expect("a status");
        let mut fields = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => return (status, fields),
                line => fields.push(line.to_ascii_lowercase()),
            }
        }
    }

    fn answer(&mut self) -> (u16, Value) {
        let (status, fields) = self.head();
        let length = fields.iter().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.and_then(|n| n.parse().ok()).expect("a length")];
        self.0.read_exact(&mut body).expect("a body");
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    /// One chunk, which is one event, or `None` for the last.
    fn event(&mut self) -> Option<String> {
        let length = usize::from_str_radix(&self.line(), 16).expect("a chunk size");
        let mut chunk = vec![0; length + 2];
        self.0.read_exact(&mut chunk).expect("a chunk");
        chunk.truncate(length);
        (length > 0).then(|| String::from_utf8(chunk).expect("UTF-8"))
    }
}

fn message(event: &str) -> Value {
    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).expect("data");
    assert!(event.ends_with("\n\n"), "{event:?}");
    serde_json::from_str(data).expect("JSON")
}

fn execute(component: &str) -> Value {
    let params = json!({ "component": component, "input": { "a": 1 } });
    json!({ "jsonrpc": "2.0", "id": "7", "method": "components/execute", "params": params })
}

#[test]
fn each_server_answers_for_its_own_instance() {
    let demo = DemoBackends::start().unwrap();
    assert_eq!(demo.backends.len(), BACKENDS);
    for (instance, address) in &demo.backends {
        let mut client = Client::connect(*address);
        client.send("GET /health HTTP/1.1\r\nHost: h\r\n\r\n");
        let (status, health) = client.answer();
        assert_eq!((status, &health["status"]), (200, &json!("healthy")));
        assert_eq!(health["instanceId"], *instance.as_str());
        // The same connection goes on.
        client.post(&execute("/demo/echo"));
        let output = json!({ "instance": instance, "input": { "a": 1 } });
        let want = json!({ "jsonrpc": "2.0", "id": "7", "result": { "output": output } });
        assert_eq!(client.answer(), (200, want));
        client.send("GET /x?y HTTP/1.1\r\nHost: h\r\n\r\n");
        let (_, mirror) = client.answer();
        assert_eq!((&mirror["instance"], &mirror["target"]), (&json!(instance), &json!("/x?y")));
    }
}

#[test]
fn a_stream_asks_waits_for_the_callback_and_finishes_with_it() {
    let demo = DemoBackends::start().unwrap();
    let (instance, address) = &demo.backends[0];
    let mut stream = Client::connect(*address);
    stream.post(&execute("/demo/stream"));
    let (status, fields) = stream.head();
    assert_eq!(status, 200);
    assert!(fields.contains(&format!("stepflow-instance-id: {instance}")), "{fields:?}");
    assert!(fields.contains(&"content-type: text/event-stream; charset=utf-8".to_owned()));
    let event = stream.event().unwrap();
    assert!(event.contains("curl -sS http://lb:8080/ "), "{event}");
    let question = message(&event);
    assert_eq!(question["method"], "blobs/put");
    let answer = json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "blob_id": "x" } });

    let mut wrong = Client::connect(demo.backends[1].1);
    wrong.post(&answer);
    let (status, body) = wrong.answer();
    assert_eq!(status, 400);
    assert!(body["error"].as_str().unwrap().contains("has no pending request"), "{body}");

    let mut callback = Client::connect(*address);
    callback.post(&answer);
    assert_eq!(callback.answer(), (202, json!("")));
    callback.post(&answer);
    assert_eq!(callback.answer().0, 400, "an answer counts once");

    let mut events = std::iter::from_fn(|| stream.event()).map(|event| message(&event));
    for step in 1..=3 {
        assert_eq!(events.next().unwrap()["params"]["step"], step);
    }
    let result = events.next().unwrap();
    assert_eq!(result["id"], "7");
    assert_eq!(result["result"]["output"]["answer"], json!({ "blob_id": "x" }));
    assert_eq!(events.next(), None);
    // The connection is free for the next call.
    stream.post(&execute("/demo/echo"));
    assert_eq!(stream.answer().0, 200);
}

#[test]
fn a_stream_whose_client_left_waits_no_longer() {
    let demo = DemoBackends::start().unwrap();
    let (_, address) = &demo.backends[0];
    let deadline = Instant::now() + Duration::from_secs(10);
    // A callback that comes before the server has noticed is still taken, so each try needs a
    // stream of its own.
    loop {
        let mut stream = Client::connect(*address);
        stream.post(&execute("/demo/stream"));
        stream.head();
        let question = message(&stream.event().unwrap());
        drop(stream);
        let mut callback = Client::connect(*address);
        callback.post(&json!({ "jsonrpc": "2.0", "id": question["id"], "result": {} }));
        match callback.answer().0 {
            400 => break,
            status => assert_eq!(status, 202),
        }
        assert!(Instant::now() < deadline, "streams wait for clients that left");
    }
}

#[test]
fn calls_that_make_no_sense_are_told_why() {
    let demo = DemoBackends::start().unwrap();
    let mut client = Client::connect(demo.backends[0].1);
    let cases = [
        (execute("/demo/nothing"), 200, -32602),
        (json!({ "jsonrpc": "2.0", "id": 1, "method": "runs/get" }), 200, -32601),
        (json!({ "jsonrpc": "2.0", "id": 1 }), 400, -32600),
        (json!([1, 2]), 400, -32600),
    ];
    for (body, status, code) in cases {
        client.post(&body);
        let (got, answer) = client.answer();
        assert_eq!((got, &answer["error"]["code"]), (status, &json!(code)), "{body}");
    }
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n{");
    assert_eq!(client.answer().1["error"]["code"], -32700);
}

#[test]
fn a_port_that_is_taken_is_replaced_by_a_free_one() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(free_or_any(port).port(), 0);
    let demo = DemoBackends::start().unwrap();
    let defaults = demo.defaults();
    for key in ["bind_address", "metrics_address", "admin_address"] {
        let (_, address) = defaults.iter().find(|(k, _)| *k == key).unwrap();
        assert!(address.parse::<SocketAddr>().unwrap().ip().is_loopback(), "{address}");
    }
}

#[test]
fn servers_end_with_their_owner() {
    let demo = DemoBackends::start().unwrap();
    let address = demo.backends[0].1;
    drop(demo);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn the_guide_names_all_that_runs_in_commands_to_paste() {
    let demo = DemoBackends::start().unwrap();
    let data = SocketAddr::from(([127, 0, 0, 1], 8080));
    let metrics = SocketAddr::from(([127, 0, 0, 1], 4444));
    let text = Guide { demo: &demo, data, metrics }.to_string();
    for (instance, address) in &demo.backends {
        assert!(text.contains(&format!("{instance} at {address}")), "{text}");
    }
    assert!(text.contains("http://127.0.0.1:4444/metrics") && text.contains("Not on port 9090"));
    assert!(!text.contains("Not on port 8080"));
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("curl ")).count(), 4);
    let calls = text.lines().filter_map(|line| line.split_once("-d '")?.1.strip_suffix('\''));
    for body in calls {
        let call: Value = serde_json::from_str(body).expect("the body of a command is JSON");
        assert_eq!(call["method"], "components/execute");
    }
}
