//! Either side leaves, at any point of an exchange and in any manner.

use crossbeam_channel::unbounded;

use crate::{
    stage::{Stage, address, play_all},
    support::{Backend, Client, PATIENCE},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Close,
    Reset,
}
use Manner::{Close, Reset};

const BOTH: [Manner; 2] = [Close, Reset];

/// What a client has sent and got when it leaves, and what that is called. Where the backend has
/// not been asked, its part is `None`.
struct ClientLeaves {
    when: &'static str,
    request: &'static str,
    answer: Option<&'static str>,
    /// Empty for what is no failure: an event stream ends when its client leaves.
    label: &'static str,
}

impl ClientLeaves {
    /// Who closes may only have closed the sending side, and still gets a response unless it is an
    /// event stream; that everything was closed is not seen before there is more to send.
    fn manners(&self) -> &'static [Manner] {
        match self.label {
            "client_gone" => &[Reset],
            _ => &BOTH,
        }
    }
}

const CLIENT_LEAVES: [ClientLeaves; 14] = [
    ClientLeaves {
        when: "inside a request line",
        request: "GET / HT",
        answer: None,
        label: "head_truncated",
    },
    ClientLeaves {
        when: "inside a field",
        request: "GET / HTTP/1.1\r\nHost: a\r\nX",
        answer: None,
        label: "head_truncated",
    },
    ClientLeaves {
        when: "before the body",
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "inside the body",
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "inside a chunk size",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "inside a chunk",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "between chunks",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "inside trailers",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "while it waits for 100",
        request: "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        answer: Some(""),
        label: "request_truncated",
    },
    ClientLeaves {
        when: "behind the head of a response with a length",
        request: "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        label: "client_gone",
    },
    ClientLeaves {
        when: "inside a chunked response",
        request: "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        answer: Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"),
        label: "client_gone",
    },
    ClientLeaves {
        when: "inside a response that ends with its connection",
        request: "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        answer: Some("HTTP/1.1 200 OK\r\n\r\nab"),
        label: "client_gone",
    },
    ClientLeaves {
        when: "inside an event stream",
        request: "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        answer: Some("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"),
        label: "",
    },
    ClientLeaves {
        when: "inside a response to a POST",
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n1234"),
        label: "client_gone",
    },
];

/// What a backend has sent when it leaves, and what the client gets: a status and a label instead,
/// or, once the head has gone on, a body without an end.
struct BackendLeaves {
    when: &'static str,
    answer: &'static str,
    status: u16,
    label: &'static str,
}

const BACKEND_LEAVES: [BackendLeaves; 11] = [
    BackendLeaves { when: "at once", answer: "", status: 502, label: "backend_closed" },
    BackendLeaves { when: "behind an octet", answer: "H", status: 502, label: "response_head" },
    BackendLeaves {
        when: "inside a status line",
        answer: "HTTP/1.1 200",
        status: 502,
        label: "response_head",
    },
    BackendLeaves {
        when: "inside a field",
        answer: "HTTP/1.1 200 OK\r\nContent-Len",
        status: 502,
        label: "response_head",
    },
    BackendLeaves {
        when: "before the last line of its head",
        answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n",
        status: 502,
        label: "response_head",
    },
    BackendLeaves {
        when: "behind a head with a length",
        answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        status: 200,
        label: "response_truncated",
    },
    BackendLeaves {
        when: "inside a body with a length",
        answer: "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1234",
        status: 200,
        label: "response_truncated",
    },
    BackendLeaves {
        when: "behind a head with chunks",
        answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        status: 200,
        label: "response_truncated",
    },
    BackendLeaves {
        when: "inside a chunk",
        answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n1234",
        status: 200,
        label: "response_truncated",
    },
    BackendLeaves {
        when: "between chunks",
        answer: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        status: 200,
        label: "response_truncated",
    },
    BackendLeaves {
        when: "inside a chunked event stream",
        answer: "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
            Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
        status: 200,
        label: "response_truncated",
    },
];

/// Methods whose requests a backend leaves.
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];

pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    for row in &CLIENT_LEAVES {
        let manners = row.manners().iter();
        names.extend(manners.map(|manner| format!("a client, {}: {manner:?}", row.when)));
    }
    for manner in BOTH {
        for method in METHODS {
            let backends = BACKEND_LEAVES.iter().map(|row| format!("{method}, {}", row.when));
            names.extend(backends.map(|name| format!("{name}: {manner:?}")));
        }
    }
    names
}

fn leave(client: &mut Client, manner: Manner) {
    match manner {
        Close => client.close(),
        Reset => client.reset(),
    }
}

#[test]
fn a_client_may_leave_at_any_point_in_any_manner() {
    let backend = Backend::played();
    let mut stage = Stage::before(&backend);
    let mut failures = Vec::new();
    let manners = |row: &'static ClientLeaves| row.manners().iter().map(move |how| (row, *how));
    let rows = CLIENT_LEAVES.iter().flat_map(manners);
    play_all(rows, |(row, manner)| {
        let manner = *manner;
        let name = format!("{}: {manner:?}", row.when);
        let mut client = stage.connect();
        let who = address(&client);
        client.send(row.request);
        let mut peer = row.answer.map(|answer| {
            let mut peer = backend.next();
            peer.send(answer);
            peer
        });
        if row.answer.is_some_and(|answer| !answer.is_empty()) {
            assert_eq!(client.head().status(), 200, "{name}");
        }
        client.wait_until_received();
        leave(&mut client, manner);
        match row.label {
            "" => stage.wait_for_success(who),
            label => {
                stage.wait_for_failure(who, label);
                failures.push(label.to_owned());
            }
        }
        if let Some(peer) = &mut peer {
            let (rest, _) = peer.until_gone();
            let is_end = rest.ends_with(b"0\r\n\r\n");
            assert!(!is_end, "{name}: the backend got an end that nobody sent");
        }
    });
    stage.assert_counted(&failures);
}

#[test]
fn a_backend_may_leave_at_any_point_in_any_manner() {
    let (rows, taking) = unbounded::<(usize, Manner)>();
    let backend = Backend::scripted(move |peer| {
        let (row, manner) = taking.recv_timeout(PATIENCE).expect("the test says what is next");
        peer.send(BACKEND_LEAVES[row].answer);
        if BACKEND_LEAVES[row].status == 200 {
            // The head must have gone on, or it would be a 502 as well.
            let (_, _) = taking.recv_timeout(PATIENCE).expect("the client has the head");
        }
        match manner {
            Close => peer.close(),
            Reset => peer.reset(),
        }
    });
    let mut stage = Stage::before(&backend);
    let mut failures = Vec::new();
    let manners = || METHODS.iter().flat_map(|method| BOTH.map(|manner| (*method, manner)));
    for (number, row) in BACKEND_LEAVES.iter().enumerate() {
        play_all(manners(), |&(method, manner)| {
            let name = format!("{method}, {}: {manner:?}", row.when);
            let mut client = stage.connect();
            rows.send((number, manner)).unwrap();
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"));
            if row.status == 200 {
                assert_eq!(client.head().status(), 200, "{name}");
                rows.send((number, manner)).unwrap();
                let (rest, _) = client.rest();
                assert!(!rest.ends_with(b"0\r\n\r\n"), "{name}: an end that nobody sent");
            } else {
                let response = client.response_to(method);
                let got = (response.status(), response.label());
                assert_eq!(got, (row.status, row.label.to_owned()), "{name}");
            }
            stage.wait_for_failure(address(&client), row.label);
            failures.push(row.label.to_owned());
        });
    }
    // A fresh connection that ends is not tried again, whatever the method.
    assert_eq!(backend.requests(), failures.len());
    stage.assert_counted(&failures);
}
