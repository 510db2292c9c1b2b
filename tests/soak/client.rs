//! Clients that keep to the protocol, and judge every octet that they get.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    inbox::{Ended, Inbox, PATIENCE},
    plan::{Answer, Expect, Plan, Rng, Upload, content},
    support::message::{Framing, Head},
    world::World,
};

/// Labels of failures that the death of a backend explains, beside a response that is cut.
const OF_A_KILL: &[&str] = &[
    "backend_closed",
    "connect_failed",
    "connect_timeout",
    "response_truncated",
    "backend_stalled",
];
/// Labels of failures that a request with an instance may meet, if that instance comes or goes.
const OF_AN_INSTANCE: &[&str] = &["instance_unknown", "instance_unreachable"];

/// Nothing but a stall takes this long. That a busy machine does is counted, and no violation.
const SLOW: Duration = Duration::from_secs(1);

/// What a client got for one request.
#[derive(Debug)]
enum Got {
    /// A head, what there was of the body, and whether it was all.
    Response { head: Head, body: Vec<u8>, ended: Option<Ended> },
    /// No octet.
    Nothing(Ended),
}

/// One client that goes on asking.
pub(crate) struct Client {
    world: Arc<World>,
    address: SocketAddr,
    rng: Rng,
    connection: Option<Inbox>,
}

/// How a request is sent and its response read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Plain,
    Pinned,
    HalfClose,
    SlowSend,
    SlowRead,
}

impl Client {
    pub(crate) fn new(world: &Arc<World>, address: SocketAddr, stream: u64) -> Self {
        let rng = Rng::new(world.seed, stream);
        Self { world: Arc::clone(world), address, rng, connection: None }
    }

    /// Asks until the run ends.
    pub(crate) fn run(mut self) {
        while !self.world.is_stopping() {
            if self.rng.percent(8) {
                self.pipeline();
            } else {
                let plan = Plan::draw(&mut self.rng, self.world.next_id());
                let manner = match self.rng.below(100) {
                    0..12 => Manner::Pinned,
                    12..16 if may_half_close(&plan) => Manner::HalfClose,
                    16..20 => Manner::SlowSend,
                    20..24 => Manner::SlowRead,
                    _ => Manner::Plain,
                };
                self.exchange(&plan, manner);
            }
            if self.rng.percent(3) {
                self.connection = None;
            }
            std::thread::sleep(Duration::from_millis(self.rng.next() % 100));
        }
    }

    fn connect(&mut self) -> Option<Inbox> {
        if let Some(inbox) = self.connection.take() {
            return Some(inbox);
        }
        match Inbox::connect(self.address) {
            Ok(inbox) => {
                self.world.count("clients: connections");
                Some(inbox)
            }
            Err(error) => {
                self.world.violation(&format!("the balancer does not accept: {error}"));
                None
            }
        }
    }

    /// One request and its response.
    pub(crate) fn exchange(&mut self, plan: &Plan, manner: Manner) {
        let Some(mut inbox) = self.connect() else { return };
        let world = Arc::clone(&self.world);
        let pinned = match manner {
            Manner::Pinned => {
                let backend = self.rng.pick(&world.backends);
                backend.is_settled().then(|| (backend.instance(), backend))
            }
            _ => None,
        };
        let pinned = pinned.filter(|(_, backend)| backend.is_settled());
        let began = Instant::now();
        let head = plan.head(pinned.as_ref().map(|(instance, _)| instance.as_str()));
        let upload = plan.upload_octets(&mut self.rng.clone());
        // Whoever answers early may close before all is sent: the answer is what counts.
        let mut sent_all = true;
        match (manner, plan.upload) {
            (_, Upload::Expected(_)) => {
                sent_all = inbox.send(head).is_ok();
            }
            (Manner::SlowSend, _) => {
                let octets = [head.as_bytes(), &upload].concat();
                let mut rest = &octets[..];
                while !rest.is_empty() && sent_all {
                    let n = match rest.len() {
                        1..2000 => self.rng.between(1, rest.len()),
                        len => len / 4,
                    };
                    sent_all = inbox.send(&rest[..n]).is_ok();
                    rest = &rest[n..];
                    std::thread::sleep(Duration::from_millis(self.rng.next() % 8));
                }
            }
            _ if self.rng.percent(50) => {
                sent_all = inbox.send([head.as_bytes(), &upload].concat()).is_ok();
            }
            _ => {
                sent_all &= inbox.send(head).is_ok();
                sent_all &= upload.is_empty() || inbox.send(&upload).is_ok();
            }
        }
        if manner == Manner::HalfClose {
            inbox.finish_sending();
        }
        if manner == Manner::SlowRead {
            let octets = 1 + plan.size / 100;
            inbox.slowness = Some((Duration::from_millis(2), octets.clamp(64, 16 * 1024)));
        }
        let got = self.receive(&mut inbox, plan, &upload);
        inbox.slowness = None;
        let goes_on = self.judge(plan, &got, began, pinned.is_some());
        if let Some((instance, backend)) = &pinned {
            self.judge_pinned(plan, &got, instance, backend.has_changed_since(began));
        }
        if goes_on && sent_all && manner != Manner::HalfClose && plan.answer != Answer::Tunnel {
            if inbox.is_empty() {
                self.connection = Some(inbox);
            } else {
                self.world.violation(&format!("{plan:?}: octets behind the response"));
            }
        }
    }

    /// Several requests in one write; their responses in order.
    fn pipeline(&mut self) {
        let Some(mut inbox) = self.connect() else { return };
        let began = Instant::now();
        let count = self.rng.between(2, 8);
        let (mut plans, mut octets) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let answer = *self.rng.pick(&[Answer::Length, Answer::Chunked, Answer::NoContent]);
            let size = if answer == Answer::NoContent { 0 } else { self.rng.between(0, 20_000) };
            let mut plan = Plan::simple(self.world.next_id(), answer, size);
            if self.rng.percent(30) {
                plan.method = "POST";
                plan.upload = Upload::Chunked(self.rng.between(0, 1000));
            }
            octets.extend_from_slice(plan.head(None).as_bytes());
            octets.extend_from_slice(&plan.upload_octets(&mut self.rng));
            plans.push(plan);
        }
        if inbox.send(octets).is_err() {
            return self.world.violation(&format!("no pipeline is taken: {plans:?}"));
        }
        self.world.count("clients: pipelines");
        for plan in &plans {
            let got = self.receive(&mut inbox, plan, &[]);
            if !self.judge(plan, &got, began, false) {
                return;
            }
        }
        self.connection = Some(inbox);
    }

    fn receive(&self, inbox: &mut Inbox, plan: &Plan, upload: &[u8]) -> Got {
        loop {
            let head = match inbox.head(Some(PATIENCE)) {
                Ok(head) => head,
                Err((octets, ended)) => {
                    if !octets.is_empty() {
                        let octets = crate::support::show(&octets);
                        self.world.violation(&format!("{plan:?}: half a head: {octets}"));
                    }
                    return Got::Nothing(ended);
                }
            };
            match head.status() {
                100 if matches!(plan.upload, Upload::Expected(_)) => {
                    // What comes next tells if it did not take it.
                    let _ = inbox.send(upload);
                }
                103 if plan.answer == Answer::Interim => {}
                101 if plan.answer == Answer::Tunnel => return tunnel(inbox, plan, head),
                status if status < 200 => {
                    self.world.violation(&format!("{plan:?}: unasked {head:?}"));
                }
                status => {
                    let framing = match head.framing() {
                        _ if plan.method == "HEAD" || matches!(status, 204 | 304) => {
                            Framing::Length(0)
                        }
                        Some(framing) => framing,
                        None => Framing::UntilClose,
                    };
                    let (body, ended) = match inbox.body(framing) {
                        Ok(body) => (body, None),
                        Err((body, ended)) => (body, Some(ended)),
                    };
                    return Got::Response { head, body, ended };
                }
            }
        }
    }

    /// Whether the connection can be used again.
    fn judge(&self, plan: &Plan, got: &Got, began: Instant, pinned: bool) -> bool {
        let disturbed = self.world.was_disturbed_since(began);
        let verdict = verdict(plan, got, disturbed, pinned, || self.world.deliveries(plan.id));
        let kind = plan.answer.name();
        let took = began.elapsed();
        if took > SLOW && !matches!(plan.answer, Answer::StallHead | Answer::StallBody) {
            self.world.count("clients: answers that took more than a second");
        }
        match verdict {
            Ok(class) => self.world.count(&format!("{kind}: {class}")),
            Err(why) => {
                let times = self.world.deliveries(plan.id);
                self.world.violation(&format!(
                    "{why}: {plan:?}, delivered {times} times, after {took:?}: {}",
                    describe(got)
                ));
            }
        }
        match got {
            Got::Response { head, ended: None, .. } => {
                let says_close = head.all("connection").iter().any(|value| value == "close");
                let framed = head.framing().is_some() || matches!(head.status(), 204 | 304);
                !says_close && framed
            }
            _ => false,
        }
    }

    fn judge_pinned(&self, plan: &Plan, got: &Got, instance: &str, has_changed: bool) {
        let Got::Response { head, .. } = got else { return };
        let label = label(got);
        if head.has("x-soak-id") {
            let by = head.all("stepflow-instance-id");
            let said = head.all("x-stepflow-routed-instance");
            let is_right =
                by == [instance] && (plan.answer == Answer::Tunnel || said == [instance]);
            if !is_right && !has_changed {
                self.world.violation(&format!("{plan:?} for {instance} went to {by:?}: {head:?}"));
            }
            self.world.count("pinned: reached");
        } else if OF_AN_INSTANCE.contains(&label.as_str()) {
            match has_changed {
                true => self.world.count("pinned: gone"),
                false => self.world.violation(&format!("{plan:?}: {instance} is there: {label}")),
            }
        }
    }
}

/// Who asks for events has left when it half-closes, and who has more to say later cannot.
fn may_half_close(plan: &Plan) -> bool {
    let says_more = plan.answer == Answer::Tunnel || matches!(plan.upload, Upload::Expected(_));
    !plan.answer.is_stream() && !says_more
}

fn tunnel(inbox: &mut Inbox, plan: &Plan, head: Head) -> Got {
    let mut body = Vec::new();
    for piece in content(plan.id, plan.size).chunks(8 * 1024) {
        if inbox.send(piece).is_err() {
            return Got::Response { head, body, ended: Some(Ended::Reset) };
        }
        match inbox.exactly(piece.len()) {
            Ok(octets) => body.extend_from_slice(&octets),
            Err((octets, ended)) => {
                body.extend_from_slice(&octets);
                return Got::Response { head, body, ended: Some(ended) };
            }
        }
    }
    Got::Response { head, body, ended: None }
}

/// What kind of good end this is, or what is wrong with it.
fn verdict(
    plan: &Plan,
    got: &Got,
    disturbed: bool,
    pinned: bool,
    deliveries: impl Fn() -> u8,
) -> Result<String, &'static str> {
    let expect = plan.answer.expect();
    let may_be_whole = matches!(expect, Expect::Whole | Expect::WholeOr(_));
    let may_be_cut = matches!(expect, Expect::Cut(_));
    match got {
        Got::Nothing(Ended::Closed | Ended::Reset) if may_be_cut => Ok("nothing".to_owned()),
        Got::Nothing(Ended::Closed | Ended::Reset) if disturbed => {
            Ok("nothing, disturbed".to_owned())
        }
        Got::Nothing(Ended::Late) => Err("no answer came"),
        Got::Nothing(_) => Err("the connection ended without an answer"),
        Got::Response { head, body, ended } if head.has("x-soak-id") => {
            if head.all("x-soak-id") != [plan.id.to_string()] {
                return Err("the answer to another request");
            }
            if head.status() != plan.status() {
                return Err("another status than the backend sent");
            }
            let meant = if plan.method == "HEAD" { Vec::new() } else { plan.response_body() };
            if !meant.starts_with(body) {
                return Err("another body than the backend sent");
            }
            match ended {
                Some(Ended::Late) => Err("the rest of the body did not come"),
                Some(Ended::Malformed) => Err("the body breaks its framing"),
                Some(_) if may_be_cut => Ok("cut".to_owned()),
                Some(_) if disturbed => Ok("cut, disturbed".to_owned()),
                Some(_) => Err("the body was cut"),
                None if body.len() < meant.len() => match disturbed {
                    true if plan.answer.ends_with_connection() => Ok("short, disturbed".to_owned()),
                    _ => Err("a part was passed off as the whole"),
                },
                None if may_be_whole => Ok("whole".to_owned()),
                None if may_be_cut && disturbed => Err("a cut answer that is whole"),
                None => Err("a broken answer was passed off as a good one"),
            }
        }
        Got::Response { ended: Some(_), .. } => Err("the balancer's own answer was cut"),
        Got::Response { head, .. } => {
            let (label, status) = (label(got), head.status());
            let wanted = match expect {
                Expect::Failure(labels) | Expect::Cut(labels) | Expect::WholeOr(labels) => labels,
                Expect::Whole => &[],
            };
            if plan.method == "HEAD" {
                // It has no body, and so no label.
                return match status {
                    502 | 504 if disturbed => Ok(format!("{status}, disturbed")),
                    503 if pinned => Ok("503 for an instance".to_owned()),
                    _ => Err("a failure that nothing explains"),
                };
            }
            if status != status_of(&label) {
                Err("a status that is not its label's")
            } else if wanted.contains(&label.as_str()) {
                Ok(label)
            } else if disturbed && OF_A_KILL.contains(&label.as_str()) {
                Ok(format!("{label}, disturbed"))
            } else if pinned && OF_AN_INSTANCE.contains(&label.as_str()) {
                Ok(label)
            } else if plan.method != "GET" && label == "backend_closed" && deliveries() == 0 {
                // Its connection was closed, unannounced, while the request was on its way. Nobody
                // can know that it was not read, so it may not be sent again.
                Ok(format!("{label}, crossed"))
            } else {
                Err("a failure that nothing explains")
            }
        }
    }
}

/// The status that docs/ERRORS.md gives to a label.
fn status_of(label: &str) -> u16 {
    match label {
        "instance_unknown" | "instance_unreachable" => 503,
        "connect_timeout" | "response_head_timeout" | "backend_stalled" => 504,
        _ => 502,
    }
}

/// The label in the balancer's own answer.
fn label(got: &Got) -> String {
    let Got::Response { body, .. } = got else { return String::new() };
    String::from_utf8_lossy(body).split(':').next().unwrap_or_default().to_owned()
}

fn describe(got: &Got) -> String {
    match got {
        Got::Nothing(ended) => format!("{ended:?}"),
        Got::Response { head, body, ended } => {
            let shown = crate::support::show(&body[..body.len().min(200)]);
            format!("{head:?} and {} octets ({shown}), {ended:?}", body.len())
        }
    }
}
