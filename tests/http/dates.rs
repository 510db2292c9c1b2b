//! When a response was made: what its backend says, else when it came (RFC 9110 §6.6.1).

use std::time::{Duration, SystemTime};

use crate::support::{Backend, Balancer, Client, wait_until};

/// A date has seconds, and the clock that it is read from ticks.
const COARSE: Duration = Duration::from_secs(2);

/// Sends a request, and checks that the response to it says that it was made meanwhile.
#[track_caller]
fn expect_ours(client: &mut Client, request: &str) {
    let before = SystemTime::now() - COARSE;
    let head = client.ask(request).head;
    let date = head.date();
    assert!(date >= before && date <= SystemTime::now(), "{date:?} in {head:?}");
}

#[test]
fn a_final_response_without_a_date_says_when_it_came() {
    let [get, head] = ["GET", "HEAD"].map(|m| format!("{m} / HTTP/1.1\r\nHost: a\r\n\r\n"));
    let [old, kept] =
        ["", "Connection: keep-alive\r\n"].map(|f| format!("GET / HTTP/1.0\r\n{f}\r\n"));
    let length = "Content-Length: 2";
    let (coding, chunks) = ("Transfer-Encoding: chunked", "9\r\ndata: a\n\n\r\n0\r\n\r\n");
    let stream = format!("Content-Type: text/event-stream\r\n{coding}");
    let cases = [
        (&get, "HTTP/1.1 200 OK", length, "hi"),
        (&get, "HTTP/1.1 200 OK", coding, chunks),
        (&get, "HTTP/1.1 200 OK", &stream, chunks),
        (&get, "HTTP/1.0 200 OK", length, "hi"),
        (&get, "HTTP/1.1 204 No Content", "A: b", ""),
        (&get, "HTTP/1.1 304 Not Modified", "ETag: \"1\"", ""),
        (&get, "HTTP/1.1 404 Not Found", length, "hi"),
        (&get, "HTTP/1.1 500 Broken", length, "hi"),
        (&head, "HTTP/1.1 200 OK", length, ""),
        (&head, "HTTP/1.1 200 OK", &stream, ""),
        (&old, "HTTP/1.1 200 OK", length, "hi"),
        (&old, "HTTP/1.1 200 OK", coding, chunks),
        (&old, "HTTP/1.1 200 OK", &stream, chunks),
        (&kept, "HTTP/1.1 200 OK", length, "hi"),
    ];
    for (request, status, fields, body) in cases {
        let backend = Backend::answering(format!("{status}\r\n{fields}\r\n\r\n{body}"));
        let balancer = Balancer::start(&[&backend]);
        expect_ours(&mut balancer.connect(), request);
    }
}

#[test]
fn the_date_of_a_backend_stays_as_it_is() {
    let good = "Date: Sat, 01 Jan 2000 00:00:00 GMT\r\n";
    // Whoever receives an invalid one may replace it. What its backend said tells more.
    let cases = [
        good.to_owned(),
        "dATE: Saturday, 01-Jan-00 00:00:00 GMT\r\n".to_owned(),
        "Date: yesterday\r\n".to_owned(),
        "Date: \r\n".to_owned(),
        format!("{good}X-A: b\r\n{good}"),
        format!("{good}date: Sun, 02 Jan 2000 00:00:00 GMT\r\n"),
    ];
    for fields in cases {
        for status in ["200 OK", "503 Service Unavailable"] {
            let answer = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: 0\r\n\r\n");
            // It cannot be taken away by being named, either.
            for listed in ["", "Connection: date\r\n"] {
                let backend =
                    Backend::answering(answer.replacen("\r\n", &format!("\r\n{listed}"), 1));
                let balancer = Balancer::start(&[&backend]);
                let head = balancer.get("/").head;
                assert_eq!(String::from_utf8_lossy(&head.octets), answer);
            }
        }
    }
}

#[test]
fn a_date_behind_the_body_is_none_of_the_head() {
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nTrailer: Date\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\
         Date: Sat, 01 Jan 2000 00:00:00 GMT\r\nX-Sum: 1\r\n\r\n",
    );
    let balancer = Balancer::start(&[&backend]);
    let response = balancer.get("/");
    let want = "HTTP/1.1 200 OK\r\nTrailer: Date\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&response.head.without_date()), want);
    assert_eq!(String::from_utf8_lossy(&response.trailers), "X-Sum: 1\r\n");
}

#[test]
fn what_is_not_final_gets_no_date() {
    let interim =
        ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"];
    let last = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let backend = Backend::answering([interim[0], interim[1], last].concat());
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n");
    for want in interim {
        assert_eq!(String::from_utf8_lossy(&client.head().octets), want);
    }
    assert_eq!(String::from_utf8_lossy(&client.head().without_date()), last);
    // Nor what ends HTTP.
    let backend = Backend::played();
    let balancer = Balancer::start(&[&backend]);
    let mut client = balancer.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let mut peer = backend.next();
    let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
    peer.send(switch);
    assert_eq!(String::from_utf8_lossy(&client.head().octets), switch);
}

/// Answers of the workers, and of the control thread.
#[test]
fn every_answer_of_our_own_says_when_it_was_made() {
    let backend = Backend::scripted(|peer| peer.close());
    let balancer = Balancer::before(&[&backend]).with("connections_max", "2").start();
    let requests = [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\n\r\n",
        "HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: nobody\r\n\r\n",
    ];
    for request in requests {
        expect_ours(&mut balancer.connect(), request);
        balancer.wait_until_quiet();
    }
    // Before a word is said.
    let guests = [balancer.connect(), balancer.connect()];
    wait_until("both are counted", || {
        balancer.metrics().sum("stepflow_lb_connections_open", &[]) == 2
    });
    let mut refused = balancer.connect();
    let response = refused.response();
    assert_eq!((response.status(), response.label().as_str()), (503, "too_many_connections"));
    assert!(response.head.date() + COARSE >= SystemTime::now(), "{response:?}");
    drop(guests);
    let ports = [balancer.metrics_address, balancer.admin_address.unwrap()];
    for (port, target) in ports
        .into_iter()
        .flat_map(|port| ["/health", "/ready", "/metrics", "/backends", "/?"].map(|t| (port, t)))
    {
        for method in ["GET", "HEAD", "POST"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: {port}\r\n\r\n");
            expect_ours(&mut Client::connect(port), &request);
        }
        expect_ours(&mut Client::connect(port), "nonsense\r\n\r\n");
    }
}

#[test]
fn the_clock_of_dates_goes_on() {
    let backend = Backend::fine();
    let balancer = Balancer::before(&[&backend]).with("workers", "1").start();
    let mut client = balancer.connect();
    let first = client.get("/").head.date();
    wait_until("the second has passed", || {
        let date = client.get("/").head.date();
        assert!(date >= first);
        date > first
    });
}
