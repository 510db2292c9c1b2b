//! What an orchestrator says to one backend in `initialize` reaches all of them, once and in order,
//! before they get anything else.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde_json::json;

use crate::support::{Backend, Balancer, Client, Health, wait_until};

const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"initialized","params":{}}"#;

fn initialize(url: &str) -> String {
    json!({
        "jsonrpc": "2.0", "id": "01a1fdf5", "method": "initialize",
        "params": {"runtimeProtocolVersion": 1, "capabilities": {"blobApiUrl": url}},
    })
    .to_string()
}

fn execute(text: &str) -> String {
    let params = json!({"component": "/echo", "input": text});
    json!({"jsonrpc": "2.0", "id": 7, "method": "components/execute", "params": params}).to_string()
}

/// As Stepflow's orchestrator sends it.
fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST / HTTP/1.1\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\nhost: lb\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// A worker: says yes to what it is asked, and tells the test what that was.
struct Worker {
    backend: Backend,
    heard: Receiver<String>,
}

/// What it says to an `initialize`.
type Answer = fn(usize) -> &'static str;

const YES: &str = r#"{"jsonrpc":"2.0","id":"01a1fdf5","result":{"serverProtocolVersion":1}}"#;
const NO: &str = r#"{"jsonrpc":"2.0","id":"01a1fdf5","error":{"code":-32000,"message":"no"}}"#;

impl Worker {
    fn named(name: &str) -> Self {
        Self::answering(name, |_| YES)
    }

    /// One whose answer to the n-th `initialize`, from 0, is this.
    fn answering(name: &str, answer: Answer) -> Self {
        let (told, heard) = unbounded();
        Self { backend: listening(told, answer).healthy_as(name), heard }
    }

    /// Everything it has been asked so far, in order, by method; `initialize` with its URL.
    fn heard(&self) -> Vec<String> {
        self.heard.try_iter().collect()
    }

    /// Waits for so many requests.
    #[track_caller]
    fn hears(&self, n: usize) -> Vec<String> {
        let next = |_| self.heard.recv_timeout(Duration::from_secs(20)).expect("a request");
        (0..n).map(next).collect()
    }
}

fn listening(told: Sender<String>, answer: Answer) -> Backend {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    Backend::scripted(move |peer| {
        let (body, _) = peer.read_body();
        let message: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let method = message["method"].as_str().unwrap_or("no method").to_owned();
        let url = message["params"]["capabilities"]["blobApiUrl"].as_str();
        let _ = told.send(match url {
            Some(url) => format!("{method} {url}"),
            None => method.clone(),
        });
        let answer = match method.as_str() {
            "initialize" => answer(asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            "initialized" => {
                let _ = peer.try_send("HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n\"\"");
                return;
            }
            _ => r#"{"jsonrpc":"2.0","id":7,"result":{}}"#,
        };
        if !answer.is_empty() {
            let length = answer.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
            let _ = peer.try_send(head + answer);
        }
    })
}

fn backends<'a>(workers: &[&'a Worker]) -> Vec<&'a Backend> {
    workers.iter().map(|worker| &worker.backend).collect()
}

/// An orchestrator starts. It goes on only when both answers are to its liking.
fn start_orchestrator(client: &mut Client, url: &str) {
    let response = client.ask(post(&initialize(url)));
    assert_eq!((response.status(), response.text().as_str()), (200, YES));
    let response = client.ask(post(INITIALIZED));
    assert_eq!((response.status(), response.text().as_str()), (202, "\"\""));
}

fn pair(url: &str) -> Vec<String> {
    vec![format!("initialize {url}"), "initialized".to_owned()]
}

#[test]
fn every_instance_is_initialised_once_and_in_order_before_anything_else() {
    let workers = ["a", "b", "c"].map(Worker::named);
    let [a, b, c] = &workers;
    let balancer = Balancer::start(&backends(&[a, b, c]));
    let mut client = balancer.connect();
    start_orchestrator(&mut client, "http://o/1");
    // The orchestrator goes on at once, on several connections.
    for number in 0..30 {
        assert_eq!(balancer.ask(post(&execute(&number.to_string()))).status(), 200);
    }
    let mut executed = 0;
    for worker in &workers {
        let heard = worker.heard();
        assert_eq!(heard[..2], pair("http://o/1"), "{heard:?}");
        assert!(heard[2..].iter().all(|method| method == "components/execute"), "{heard:?}");
        executed += heard.len() - 2;
    }
    assert_eq!(executed, 30);
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_initializations_total", &[]), 1);
    let passed = [r#"outcome="passed""#];
    assert_eq!(metrics.sum("stepflow_lb_initialize_replays_total", &passed), 2);
    assert_eq!(metrics.sum("stepflow_lb_initialize_replays_total", &[]), 2);
}

#[test]
fn the_replay_is_octet_for_octet_what_the_first_one_got() {
    let (one, two) = (Backend::played(), Backend::played());
    let balancer = Balancer::before(&[&one, &two]).with("workers", "1").start();
    let mut client = balancer.connect();
    client.send(post(&initialize("http://o/1")));
    let mut first = wait_for_either(&one, &two);
    let body = first.0.read_body().0;
    first.0.answer(YES);
    assert_eq!(client.response_to("POST").status(), 200);
    client.send(post(INITIALIZED));
    // The notification waits for the other one to be initialised.
    let other = if first.1 { &two } else { &one };
    let mut replay = other.next();
    assert_eq!(replay.head, first.0.head);
    assert_eq!(replay.read_body().0, body);
    replay.answer(YES);
    replay.next_request();
    assert_eq!(replay.read_body().0, INITIALIZED.as_bytes());
    client.expect_silence(Duration::from_millis(100));
    replay.answer("\"\"");
    // It goes to the one that had the other half, on the connection that is there.
    assert_eq!(first.0.next_request(), &replay.head);
    assert_eq!(first.0.read_body().0, INITIALIZED.as_bytes());
    first.0.answer("\"\"");
    assert_eq!(client.response_to("POST").status(), 200);
}

fn wait_for_either(one: &Backend, two: &Backend) -> (crate::support::Peer, bool) {
    wait_until("one of them has a request", || one.has_next() || two.has_next());
    match one.has_next() {
        true => (one.next(), true),
        false => (two.next(), false),
    }
}

#[test]
fn a_restarted_process_at_the_same_address_is_initialised_before_it_gets_work() {
    let workers = ["a", "b"].map(Worker::named);
    let balancer = Balancer::start(&backends(&[&workers[0], &workers[1]]));
    start_orchestrator(&mut balancer.connect(), "http://o/1");
    for worker in &workers {
        assert_eq!(worker.hears(2), pair("http://o/1"));
    }
    workers[1].backend.set_health(Health::Named("b-again".to_owned()));
    assert_eq!(workers[1].hears(2), pair("http://o/1"));
    balancer.wait_for_healthy(2);
    for _ in 0..20 {
        assert_eq!(balancer.ask(post(&execute("x"))).status(), 200);
    }
    assert!(workers[1].heard().iter().all(|method| method == "components/execute"));
    assert!(!workers[0].heard().is_empty());
}

#[test]
fn a_newcomer_is_initialised_before_it_gets_work() {
    let workers = ["a", "late"].map(Worker::named);
    workers[1].backend.set_health(Health::Failing);
    let setup = Balancer::before(&backends(&[&workers[0], &workers[1]]));
    let balancer = setup.start_unready();
    balancer.wait_for_healthy(1);
    start_orchestrator(&mut balancer.connect(), "http://o/1");
    assert_eq!(workers[0].hears(2), pair("http://o/1"));
    workers[1].backend.set_health(Health::Named("late".to_owned()));
    // Traffic goes on while it comes up.
    wait_until("the newcomer has work", || {
        assert_eq!(balancer.ask(post(&execute("x"))).status(), 200);
        workers[1].heard.len() > 2
    });
    let heard = workers[1].heard();
    assert_eq!(heard[..2], pair("http://o/1"), "{heard:?}");
    assert!(heard[2..].iter().all(|method| method == "components/execute"), "{heard:?}");
}

#[test]
fn who_will_not_be_initialised_is_tried_again_and_takes_work_in_the_end() {
    // The first to answer is always the willing one: the other is not healthy yet.
    let willing = Worker::named("willing");
    for (answer, outcome) in
        [((|_| NO) as Answer, r#"outcome="refused""#), (|_| "", r#"outcome="unanswered""#)]
    {
        let unwilling = Worker::answering("unwilling", answer);
        unwilling.backend.set_health(Health::Failing);
        let setup = Balancer::before(&backends(&[&willing, &unwilling]));
        let balancer = setup.with("health_check_timeout", "500ms").start_unready();
        balancer.wait_for_healthy(1);
        start_orchestrator(&mut balancer.connect(), "http://o/1");
        willing.hears(2);
        unwilling.backend.set_health(Health::Named("unwilling".to_owned()));
        assert_eq!(unwilling.hears(4), ["initialize http://o/1"; 4]);
        balancer.wait_for_healthy(2);
        let metrics = balancer.metrics();
        assert_eq!(metrics.sum("stepflow_lb_initialize_excused_total", &[]), 1);
        assert!(metrics.sum("stepflow_lb_initialize_replays_total", &[outcome]) >= 4);
        wait_until("it has work", || {
            assert_eq!(balancer.ask(post(&execute("x"))).status(), 200);
            unwilling.heard().contains(&"components/execute".to_owned())
        });
        willing.heard();
    }
}

#[test]
fn a_failed_replay_is_tried_again_until_it_succeeds() {
    let willing = Worker::named("willing");
    let hesitant = Worker::answering("hesitant", |n| if n < 2 { NO } else { YES });
    hesitant.backend.set_health(Health::Failing);
    let balancer = Balancer::before(&backends(&[&willing, &hesitant])).start_unready();
    balancer.wait_for_healthy(1);
    start_orchestrator(&mut balancer.connect(), "http://o/1");
    hesitant.backend.set_health(Health::Named("hesitant".to_owned()));
    balancer.wait_for_healthy(2);
    let mut want = vec!["initialize http://o/1".to_owned(); 3];
    want.push("initialized".to_owned());
    assert_eq!(hesitant.hears(4), want);
    assert_eq!(balancer.metrics().sum("stepflow_lb_initialize_excused_total", &[]), 0);
}

#[test]
fn the_latest_initialisation_wins_on_every_instance() {
    let workers = ["a", "b", "c"].map(Worker::named);
    let [a, b, c] = &workers;
    let balancer = Balancer::start(&backends(&[a, b, c]));
    start_orchestrator(&mut balancer.connect(), "http://o/1");
    workers.iter().for_each(|worker| assert_eq!(worker.hears(2), pair("http://o/1")));
    // The same orchestrator again, whose words have not changed: nobody else hears of it.
    start_orchestrator(&mut balancer.connect(), "http://o/1");
    let again: Vec<_> = workers.iter().map(Worker::heard).filter(|h| !h.is_empty()).collect();
    assert_eq!(again, [pair("http://o/1")]);
    // Another one.
    start_orchestrator(&mut balancer.connect(), "http://o/2");
    workers.iter().for_each(|worker| assert_eq!(worker.hears(2), pair("http://o/2")));
    assert_eq!(balancer.metrics().sum("stepflow_lb_initializations_total", &[]), 2);
}

/// Asks in front of two workers that say this to `initialize`, and gives all that they heard.
/// Nothing of it may have been replayed.
fn heard_without_replay(answer: Answer, requests: &[String]) -> Vec<String> {
    let workers = ["a", "b"].map(|name| Worker::answering(name, answer));
    let balancer = Balancer::start(&backends(&[&workers[0], &workers[1]]));
    let mut client = balancer.connect();
    for request in requests {
        assert!((200..=299).contains(&client.ask(request).status()));
    }
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_initializations_total", &[]), 0);
    assert_eq!(metrics.sum("stepflow_lb_initialize_replays_total", &[]), 0);
    workers.iter().flat_map(Worker::heard).collect()
}

#[test]
fn mcp_s_initialize_is_left_alone() {
    let params = json!({"protocolVersion": "2025-06-18", "clientInfo": {"name": "x"}});
    let mcp = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let pair = [post(&mcp.to_string()), post(initialized)];
    let heard = heard_without_replay(|_| YES, &[pair.clone(), pair].concat());
    assert_eq!(heard.len(), 4, "{heard:?}");
}

#[test]
fn an_initialize_that_was_refused_or_meant_for_one_instance_is_not_replayed() {
    let refused = [post(&initialize("http://o/1")), post(INITIALIZED)];
    assert_eq!(heard_without_replay(|_| NO, &refused).len(), 2);
    let named = "host: lb\r\nstepflow-instance-id: a";
    let named = refused[0].replacen("host: lb", named, 1);
    let heard = heard_without_replay(|_| YES, &[named, refused[1].clone()]);
    assert_eq!(heard.len(), 2, "{heard:?}");
    // Its client has not said that it is content.
    assert_eq!(heard_without_replay(|_| YES, &refused[..1]).len(), 1);
}

#[test]
fn a_handshake_in_pieces_is_recognised_as_well() {
    let workers = ["a", "b"].map(Worker::named);
    let balancer = Balancer::start(&backends(&[&workers[0], &workers[1]]));
    let mut client = balancer.connect();
    for body in [initialize("http://o/1"), INITIALIZED.to_owned()] {
        let request = post(&body);
        let (head, body) = request.split_at(request.len() - body.len());
        client.send(head);
        for piece in body.as_bytes().chunks(40) {
            client.send(piece);
        }
        assert!(matches!(client.response_to("POST").status(), 200 | 202));
    }
    workers.iter().for_each(|worker| assert_eq!(worker.hears(2), pair("http://o/1")));
}

#[test]
fn a_small_body_that_does_not_come_holds_its_head_back_only_for_a_moment() {
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    let request = post("{\"a\":1}");
    client.send(&request[..request.len() - 4]);
    // The head and a part of the body go on without the rest.
    let mut peer = backend.next();
    assert_eq!(peer.take(3), b"{\"a");
    client.send(&request[request.len() - 4..]);
    assert_eq!(peer.take(4), b"\":1}");
    peer.answer("ok");
    assert_eq!(client.response_to("POST").text(), "ok");
}

#[test]
fn an_initialisation_on_several_connections_reaches_everybody_as_well() {
    for workers in ["1", "4"] {
        let backends_ = ["a", "b", "c"].map(Worker::named);
        let [a, b, c] = &backends_;
        let balancer = Balancer::before(&backends(&[a, b, c])).with("workers", workers).start();
        let response = balancer.ask(post(&initialize("http://o/1")));
        assert_eq!(response.text(), YES);
        assert_eq!(balancer.ask(post(INITIALIZED)).status(), 202);
        for worker in &backends_ {
            assert_eq!(worker.heard(), pair("http://o/1"));
        }
    }
}

#[test]
fn without_initialize_replay_one_backend_is_initialised_and_nobody_else() {
    let workers = ["a", "b"].map(Worker::named);
    let setup = Balancer::before(&backends(&[&workers[0], &workers[1]]));
    let balancer = setup.with("initialize_replay", "off").start();
    let mut client = balancer.connect();
    assert_eq!(client.ask(post(&initialize("http://o/1"))).status(), 200);
    assert_eq!(client.ask(post(INITIALIZED)).status(), 202);
    let heard: Vec<_> = workers.iter().flat_map(Worker::heard).collect();
    assert_eq!(heard.len(), 2, "{heard:?}");
    let metrics = balancer.metrics();
    assert_eq!(metrics.sum("stepflow_lb_initializations_total", &[]), 0);
    assert_eq!(metrics.sum("stepflow_lb_initialize_replays_total", &[]), 0);
}
