//! Clients that break off, stall, lie and leave.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    inbox::{Ended, Inbox, PATIENCE},
    plan::{Answer, Plan, Rng, Upload},
    support::message::Framing,
    world::World,
};

/// What the balancer must refuse, and how.
const REFUSED: &[(&str, u16, &str)] = &[
    ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", 400, "head_tls"),
    ("GET / HTTP/1.1\nHost: soak\n\n", 400, "head_bare_lf"),
    ("\0\x01\x02\x03\r\n\r\n", 400, "head_not_http"),
    ("GET / HTTP/2.0\r\nHost: soak\r\n\r\n", 505, "head_version"),
    ("GET / HTTP/1.1\r\nHost : soak\r\n\r\n", 400, "head_field_name"),
    ("GET / HTTP/1.1\r\nHost: soak\r\nA: \0\r\n\r\n", 400, "head_field_value"),
    ("GET / HTTP/1.1\r\n\r\n", 400, "host_missing"),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "host_repeated"),
    ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405, "connect_refused"),
    ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx", 400, "length_invalid"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        400,
        "length_repeated",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        400,
        "length_and_coding",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        501,
        "coding_unknown",
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        400,
        "coding_not_last",
    ),
    ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "coding_in_http10"),
    ("GET / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\n\r\n", 417, "expectation_unknown"),
];

/// One client that goes on being rude.
pub(crate) struct Rude {
    world: Arc<World>,
    address: SocketAddr,
    rng: Rng,
}

impl Rude {
    pub(crate) fn new(world: &Arc<World>, address: SocketAddr, stream: u64) -> Self {
        Self { world: Arc::clone(world), address, rng: Rng::new(world.seed, stream) }
    }

    /// Goes on until the run ends.
    pub(crate) fn run(mut self) {
        while !self.world.is_stopping() {
            let kind = match self.rng.below(100) {
                0..12 => self.leave_inside_a_head(),
                12..24 => self.leave_inside_a_body(),
                24..36 => self.leave_inside_a_response(),
                36..50 => self.leave_a_stream(),
                50..54 => self.half_close_a_stream(),
                54..66 => self.be_refused(),
                66..70 => self.be_too_large(),
                70..74 => self.break_chunks(),
                74..80 => self.leave_a_pipeline(),
                80..86 => self.say_nothing(),
                86..92 => self.leave_a_tunnel(),
                92..97 => self.burst(),
                97 => self.stall_inside_a_head(),
                98 => self.stall_inside_a_body(),
                _ => self.stop_reading(),
            };
            self.world.count(&format!("rude: {kind}"));
            std::thread::sleep(Duration::from_millis(self.rng.next() % 60));
        }
    }

    fn connect(&self) -> Inbox {
        match Inbox::connect(self.address) {
            Ok(inbox) => inbox,
            Err(error) => {
                self.world.violation(&format!("the balancer does not accept: {error}"));
                panic!("without a connection there is nothing to be rude on: {error}");
            }
        }
    }

    /// Sends to somebody who may have had enough.
    fn send(&self, inbox: &Inbox, octets: impl AsRef<[u8]>) {
        let _ = inbox.send(octets);
    }

    /// Sends a beginning of it, at most all but `left_out`.
    fn send_a_part(&mut self, inbox: &Inbox, octets: impl AsRef<[u8]>, left_out: usize) {
        let octets = octets.as_ref();
        let end = self.rng.between(0, octets.len() - left_out);
        self.send(inbox, &octets[..end]);
    }

    fn leave(&mut self, inbox: Inbox) {
        if self.rng.percent(50) {
            inbox.reset();
        }
    }

    fn plan(&mut self, answer: Answer, size: usize) -> Plan {
        Plan::simple(self.world.next_id(), answer, size)
    }

    fn leave_inside_a_head(&mut self) -> &'static str {
        let head = self.plan(Answer::Length, 10).head(None);
        let inbox = self.connect();
        self.send_a_part(&inbox, head, 1);
        self.world.pause(Duration::from_millis(self.rng.next() % 100));
        self.leave(inbox);
        "left inside a head"
    }

    fn upload(&mut self) -> (Plan, Vec<u8>) {
        let mut plan = self.plan(Answer::Length, 100);
        plan.method = "POST";
        let len = self.rng.between(2, 200_000);
        let framings = [Upload::Length(len), Upload::Chunked(len)];
        plan.upload = *self.rng.pick(&framings);
        let octets = plan.upload_octets(&mut self.rng);
        (plan, octets)
    }

    fn leave_inside_a_body(&mut self) -> &'static str {
        let (plan, octets) = self.upload();
        let inbox = self.connect();
        self.send(&inbox, plan.head(None));
        self.send_a_part(&inbox, octets, 1);
        self.world.pause(Duration::from_millis(self.rng.next() % 50));
        self.leave(inbox);
        "left inside a body"
    }

    fn leave_inside_a_response(&mut self) -> &'static str {
        let size = self.rng.between(1000, 1_000_000);
        let answers = [Answer::Length, Answer::Chunked, Answer::UntilClose, Answer::Dribble];
        let answer = *self.rng.pick(&answers);
        let plan = self.plan(answer, if answer == Answer::Dribble { 60 } else { size });
        let mut inbox = self.connect();
        self.send(&inbox, plan.head(None));
        if self.rng.percent(70) {
            // Whatever comes: it is not for reading.
            let _ = inbox.head(Some(PATIENCE));
            inbox.drain_for(Duration::from_millis(self.rng.next() % 20));
        }
        self.leave(inbox);
        "left inside a response"
    }

    fn leave_a_stream(&mut self) -> &'static str {
        let plan = self.plan(Answer::Endless, 0);
        let mut inbox = self.connect();
        self.send(&inbox, plan.head(None));
        inbox.drain_for(Duration::from_millis(self.rng.next() % 1500));
        self.leave(inbox);
        "left a stream"
    }

    /// Who stops sending on an event stream has left it.
    fn half_close_a_stream(&mut self) -> &'static str {
        let plan = self.plan(Answer::Endless, 0);
        let mut inbox = self.connect();
        self.send(&inbox, plan.head(None));
        inbox.drain_for(Duration::from_millis(self.rng.next() % 200));
        inbox.finish_sending();
        if inbox.rest().1 == Ended::Late {
            self.world.violation("a stream goes on although its client has half-closed");
        }
        "half-closed a stream"
    }

    fn expect_refusal(&self, mut inbox: Inbox, what: &str, status: u16, labels: &[&str]) {
        let head = match inbox.head(Some(PATIENCE)) {
            Ok(head) => head,
            Err(cut) => return self.world.violation(&format!("{what}: no answer but {cut:?}")),
        };
        let body = inbox.body(head.framing().unwrap_or(Framing::UntilClose));
        let text = String::from_utf8_lossy(&body.unwrap_or_else(|cut| cut.0)).into_owned();
        let label = text.split(':').next().unwrap_or_default();
        if head.status() != status || !labels.contains(&label) {
            self.world.violation(&format!("{what}: wanted {status} {labels:?}: {head:?}{text}"));
        }
        let (rest, ended) = inbox.rest();
        if !rest.is_empty() || ended == Ended::Late {
            self.world.violation(&format!("{what}: the connection goes on: {rest:?} {ended:?}"));
        }
    }

    fn be_refused(&mut self) -> &'static str {
        let (octets, status, label) = self.rng.pick(REFUSED);
        let inbox = self.connect();
        self.send(&inbox, octets);
        self.expect_refusal(inbox, label, *status, &[label]);
        "refused"
    }

    fn be_too_large(&mut self) -> &'static str {
        let long = "x".repeat(40 * 1024);
        let inbox = self.connect();
        if self.rng.percent(50) {
            self.send(&inbox, format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"));
            self.expect_refusal(inbox, "long line", 414, &["head_line_too_long"]);
        } else {
            self.send(&inbox, format!("GET / HTTP/1.1\r\nHost: a\r\nA: {long}\r\n\r\n"));
            self.expect_refusal(inbox, "large head", 431, &["head_too_large"]);
        }
        "too large"
    }

    fn break_chunks(&mut self) -> &'static str {
        let mut plan = self.plan(Answer::Length, 100);
        (plan.method, plan.upload) = ("POST", Upload::Chunked(10));
        let inbox = self.connect();
        let chunk =
            *self.rng.pick(&["zz\r\n", "-1\r\n", "1\r\nabc\r\n", "1\na\r\n", "0x1\r\na\r\n"]);
        self.send(&inbox, format!("{}{chunk}", plan.head(None)));
        self.expect_refusal(inbox, "bad chunk", 400, &["request_body"]);
        "broken chunks"
    }

    fn leave_a_pipeline(&mut self) -> &'static str {
        let mut octets = String::new();
        for _ in 0..self.rng.between(2, 30) {
            let size = self.rng.between(0, 50_000);
            octets += &self.plan(Answer::Length, size).head(None);
        }
        let mut inbox = self.connect();
        self.send(&inbox, octets);
        inbox.drain_for(Duration::from_millis(self.rng.next() % 30));
        self.leave(inbox);
        "left a pipeline"
    }

    fn say_nothing(&mut self) -> &'static str {
        let inbox = self.connect();
        self.world.pause(Duration::from_millis(self.rng.next() % 1000));
        self.leave(inbox);
        "said nothing"
    }

    fn leave_a_tunnel(&mut self) -> &'static str {
        let plan = self.plan(Answer::Tunnel, 0);
        let mut inbox = self.connect();
        self.send(&inbox, plan.head(None));
        let _ = inbox.head(Some(PATIENCE));
        self.send(&inbox, "what comes back is not read");
        self.world.pause(Duration::from_millis(self.rng.next() % 300));
        self.leave(inbox);
        "left a tunnel"
    }

    /// Many at once, each of which leaves at its own point.
    fn burst(&mut self) -> &'static str {
        let mut inboxes: Vec<_> = (0..50).map(|_| self.connect()).collect();
        for inbox in &inboxes {
            let head = self.plan(Answer::Length, 100).head(None);
            self.send_a_part(inbox, head, 0);
        }
        while let Some(inbox) = inboxes.pop() {
            self.leave(inbox);
        }
        "burst of 50"
    }

    fn stall_inside_a_head(&mut self) -> &'static str {
        let inbox = self.connect();
        self.send(&inbox, "GET / HTTP/1.1\r\nHost: so");
        self.expect_refusal(inbox, "stalled head", 408, &["head_timeout"]);
        "stalled inside a head"
    }

    fn stall_inside_a_body(&mut self) -> &'static str {
        let (plan, octets) = self.upload();
        let inbox = self.connect();
        self.send(&inbox, plan.head(None));
        self.send_a_part(&inbox, octets, 1);
        // A backend that dies meanwhile is noticed first.
        let mut inbox = inbox;
        match inbox.head(Some(PATIENCE)) {
            Ok(head) if head.status() == 408 || head.status() == 502 => {}
            other => self.world.violation(&format!("stalled body: {other:?}")),
        }
        "stalled inside a body"
    }

    fn stop_reading(&mut self) -> &'static str {
        let inbox = self.connect();
        // Far more than the kernels hold between us.
        for _ in 0..12 {
            let plan = self.plan(Answer::Length, 1_000_000);
            self.send(&inbox, plan.head(None));
        }
        self.world.pause(Duration::from_millis(self.rng.next() % 12_000));
        self.leave(inbox);
        "stopped reading"
    }
}
