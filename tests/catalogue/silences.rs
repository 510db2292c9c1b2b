//! Either side falls silent, and stays.

use crate::{
    stage::{Stage, address},
    support::Backend,
};

/// What the client and the backend have sent when both fall silent, and what ends the exchange.
struct Silence {
    when: &'static str,
    /// The deadline that is short; all others are their defaults.
    option: &'static str,
    request: &'static str,
    /// `None` if the backend is not asked.
    answer: Option<&'static str>,
    /// Status and label of the answer, if there is one.
    status: Option<u16>,
    label: Option<&'static str>,
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";

const SILENCES: [Silence; 20] = [
    Silence {
        when: "a connection without a request",
        option: "request_head_timeout",
        request: "",
        answer: None,
        status: None,
        label: None,
    },
    Silence {
        when: "behind an octet",
        option: "request_head_timeout",
        request: "G",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "behind an empty line",
        option: "request_head_timeout",
        request: "\r\n",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "inside a request line",
        option: "request_head_timeout",
        request: "GET / HT",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "inside a field",
        option: "request_head_timeout",
        request: "GET / HTTP/1.1\r\nHost: a\r\nX: ",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "before the last line of a head",
        option: "request_head_timeout",
        request: "GET / HTTP/1.1\r\nHost: a\r\n",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "before the last octet of a head",
        option: "request_head_timeout",
        request: "GET / HTTP/1.1\r\nHost: a\r\n\r",
        answer: None,
        status: Some(408),
        label: Some("head_timeout"),
    },
    Silence {
        when: "before a body",
        option: "body_timeout",
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
        answer: Some(""),
        status: Some(408),
        label: Some("request_body_timeout"),
    },
    Silence {
        when: "inside a body",
        option: "body_timeout",
        request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n1234",
        answer: Some(""),
        status: Some(408),
        label: Some("request_body_timeout"),
    },
    Silence {
        when: "inside a chunk size",
        option: "body_timeout",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1",
        answer: Some(""),
        status: Some(408),
        label: Some("request_body_timeout"),
    },
    Silence {
        when: "inside a chunk",
        option: "body_timeout",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n12",
        answer: Some(""),
        status: Some(408),
        label: Some("request_body_timeout"),
    },
    Silence {
        when: "before the last line of a chunked body",
        option: "body_timeout",
        request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        answer: Some(""),
        status: Some(408),
        label: Some("request_body_timeout"),
    },
    Silence {
        when: "a backend that says nothing",
        option: "response_head_timeout",
        request: GET,
        answer: Some(""),
        status: Some(504),
        label: Some("response_head_timeout"),
    },
    Silence {
        when: "a backend inside its status line",
        option: "response_head_timeout",
        request: GET,
        answer: Some("HTTP/1.1 2"),
        status: Some(504),
        label: Some("response_head_timeout"),
    },
    Silence {
        when: "a backend inside its head",
        option: "response_head_timeout",
        request: GET,
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n"),
        status: Some(504),
        label: Some("response_head_timeout"),
    },
    Silence {
        when: "a backend before its body",
        option: "body_timeout",
        request: GET,
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
        status: Some(200),
        label: Some("response_body_timeout"),
    },
    Silence {
        when: "a backend inside its body",
        option: "body_timeout",
        request: GET,
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n1234"),
        status: Some(200),
        label: Some("response_body_timeout"),
    },
    Silence {
        when: "a client behind its response",
        option: "keep_alive_timeout",
        request: GET,
        answer: Some("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        status: Some(200),
        label: None,
    },
    Silence {
        when: "a tunnel",
        option: "tunnel_idle_timeout",
        request: UPGRADE,
        answer: Some(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        ),
        status: Some(101),
        label: Some("tunnel_idle"),
    },
    Silence {
        when: "a tunnel that was used",
        option: "tunnel_idle_timeout",
        request: UPGRADE,
        answer: Some(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
        ),
        status: Some(101),
        label: Some("tunnel_idle"),
    },
];

/// Short, and yet longer than a busy machine takes from one line of a test to the next.
const DEADLINE: &str = "500ms";

pub(crate) fn names() -> Vec<String> {
    SILENCES.iter().map(|row| row.when.to_owned()).collect()
}

#[test]
fn every_silence_ends_at_its_deadline() {
    let mut options: Vec<_> = SILENCES.iter().map(|row| row.option).collect();
    options.sort_unstable();
    options.dedup();
    for option in options {
        let backend = Backend::played();
        let mut stage = Stage::with(&backend, &[(option, DEADLINE)]);
        let mut failures = Vec::new();
        for row in SILENCES.iter().filter(|row| row.option == option) {
            let name = row.when;
            let mut client = stage.connect();
            let who = address(&client);
            client.send(row.request);
            let mut peer = row.answer.map(|answer| {
                let mut peer = backend.next();
                peer.send(answer);
                peer
            });
            if let Some(status) = row.status {
                let head = client.head();
                assert_eq!(head.status(), status, "{name}");
            }
            // Whose request was read keeps its connection, though the answer is late.
            match row.status {
                Some(504) => client.close(),
                _ => drop(client.rest()),
            }
            if let Some(label) = row.label {
                stage.wait_for_failure(who, label);
                failures.push(label.to_owned());
            }
            // The backend's connection goes too, unless its exchange was whole.
            if let Some(peer) = &mut peer
                && row.label.is_some()
            {
                peer.wait_for_end();
            }
        }
        stage.assert_counted(&failures);
    }
}
