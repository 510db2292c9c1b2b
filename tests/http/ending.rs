//! Event streams that we end: because a backend or the balancer drains, or because of their age.
//! Between two events, with a `retry` of their own, and only those whose clients connect again.

use std::{
    ops::RangeInclusive,
    thread,
    time::{Duration, Instant},
};

use stepflow_load_balancer::control::ExitReason;

use crate::{
    support::{
        Backend, Balancer, Client, End, Health, Peer, Process,
        message::chunk,
        process::{before, command},
        wait_until,
    },
    zone::{SERVICE, Zone},
};

const STREAM: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
/// As `EventSource` asks.
const GET: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n";
/// As a client of a language model asks.
const POST: &str =
    "POST /v1 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nContent-Length: 0\r\n\r\n";
/// As somebody asks who must have this instance.
const TIED: &str = "GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
                    Stepflow-Instance-Id: one\r\n\r\n";

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What clients are told by default, in milliseconds.
const RETRY_MS: RangeInclusive<u64> = 1000..=5000;

/// How long nothing happens that is not to happen. Workers look at their streams every 50 ms.
const MOMENT: Duration = Duration::from_millis(400);

/// Two backends, of which the first has all streams that were opened before the second is let in.
struct Pair {
    one: Backend,
    two: Backend,
    balancer: Balancer,
}

impl Pair {
    fn with(options: &[(&str, &str)]) -> Self {
        let (one, two) = (Backend::played().healthy_as("one"), Backend::played());
        two.set_health(Health::Failing);
        let setup = Balancer::before(&[&one, &two]).with("max_failures", "1");
        let setup = options.iter().fold(setup, |setup, (key, value)| setup.with(key, value));
        let balancer = setup.start_unready();
        balancer.wait_for_healthy(1);
        Self { one, two, balancer }
    }

    fn open(&self, request: &str) -> Stream {
        Stream::open(self.balancer.connect(), &self.one, request, STREAM)
    }

    fn let_the_second_in(&self) {
        self.two.set_health(Health::Named("two".to_owned()));
        self.balancer.wait_for_healthy(2);
    }

    fn drain(&self) {
        call(&self.balancer, "POST", "/backends/one/drain");
    }
}

/// How many streams have ended for this reason. Counted before the connection is closed.
fn ends(balancer: &Balancer, reason: &str) -> u64 {
    let label = format!("reason=\"{reason}\"");
    balancer.metrics().sum("stepflow_lb_stream_ends_total", &[&label])
}

fn call(balancer: &Balancer, method: &str, path: &str) {
    let mut admin = Client::connect(balancer.admin_address.expect("admin calls are served"));
    let response = admin.ask(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(matches!(response.status(), 200 | 202), "{response:?}");
}

/// An event stream, and the backend's side of it.
struct Stream {
    client: Client,
    peer: Peer,
}

impl Stream {
    fn open(mut client: Client, backend: &Backend, request: &str, head: &str) -> Self {
        client.send(request);
        let mut peer = backend.next();
        peer.send(head);
        assert_eq!(client.head().status(), 200);
        Self { client, peer }
    }

    /// Hands an event through.
    fn carry(&mut self, event: &str) {
        self.peer.send(chunk(event));
        assert_eq!(self.client.chunk(), event.as_bytes());
    }

    fn goes_on(&mut self) {
        self.client.expect_silence(MOMENT);
        self.carry("data: goes on\n\n");
    }

    /// The stream ends here: with a wait for the client, as a body ends, and then the connection.
    fn ends(&mut self) -> u64 {
        let last = String::from_utf8(self.client.chunk()).unwrap();
        let retry = last.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix("\n\n"));
        let retry = retry.unwrap_or_else(|| panic!("no retry: {last:?}"));
        assert_eq!(self.client.take(5), LAST_CHUNK);
        assert_eq!(self.client.expect_end(), End::Closed);
        let (_, end) = self.peer.until_gone();
        assert!(matches!(end, End::Closed | End::Reset));
        retry.parse().unwrap()
    }
}

#[test]
fn a_drained_backend_s_streams_end_between_two_events_and_answers_go_on_to_their_end() {
    let pair = Pair::with(&[]);
    let [mut silent, mut busy] = [GET, GET].map(|request| pair.open(request));
    let mut answer = pair.open(POST);
    let mut tied = pair.open(TIED);
    busy.carry("id: 1\ndata: a\n\n");
    answer.carry("data: {}\n\n");
    let reconnectable = |balancer: &Balancer| {
        balancer.metrics().sum("stepflow_lb_event_streams_reconnectable", &[])
    };
    assert_eq!(reconnectable(&pair.balancer), 3);
    pair.let_the_second_in();
    pair.drain();
    for stream in [&mut silent, &mut busy] {
        assert!(RETRY_MS.contains(&stream.ends()));
    }
    assert_eq!((ends(&pair.balancer, "drained"), ends(&pair.balancer, "finished")), (2, 0));
    // Whoever was sent away is served elsewhere.
    let mut again = Stream::open(pair.balancer.connect(), &pair.two, GET, STREAM);
    again.carry("data: b\n\n");
    answer.goes_on();
    tied.goes_on();
    for stream in [&mut answer, &mut tied] {
        stream.peer.send(LAST_CHUNK);
        assert_eq!(stream.client.take(5), LAST_CHUNK);
    }
    wait_until("one stream is left", || reconnectable(&pair.balancer) == 1);
    assert_eq!(pair.balancer.metrics().sum("stepflow_lb_failures_total", &[]), 0);
}

#[test]
fn a_backend_whose_health_body_says_that_it_drains_is_drained_likewise() {
    let pair = Pair::with(&[]);
    let (mut stream, mut answer) = (pair.open(GET), pair.open(POST));
    pair.let_the_second_in();
    let body = r#"{"status":"healthy","instanceId":"one","draining":true}"#;
    pair.one.set_health(Health::Answer(200, body.to_owned()));
    assert!(RETRY_MS.contains(&stream.ends()));
    answer.goes_on();
}

#[test]
fn a_backend_that_discovery_drops_is_drained_likewise() {
    let (one, two) = (Backend::played(), Backend::played());
    let zone = Zone::naming(one.address.port());
    let balancer = Balancer::before(&[])
        .with("upstream_service", SERVICE)
        .with("dns_servers", &zone.address.to_string())
        .with("dns_refresh_min", "100ms")
        .with("dns_refresh_max", "200ms")
        .start_unready();
    balancer.wait_for_healthy(1);
    let [mut stream, mut answer] =
        [GET, POST].map(|request| Stream::open(balancer.connect(), &one, request, STREAM));
    zone.set(two.address.port());
    assert!(RETRY_MS.contains(&stream.ends()));
    answer.goes_on();
    Stream::open(balancer.connect(), &two, GET, STREAM).carry("data: b\n\n");
}

#[test]
fn a_stream_inside_an_event_ends_when_that_event_has() {
    let pair = Pair::with(&[]);
    let mut stream = pair.open(GET);
    stream.carry("data: first half");
    pair.let_the_second_in();
    pair.drain();
    stream.client.expect_silence(MOMENT);
    // The event that follows in the same piece would be cut, so it is left out.
    stream.peer.send(chunk(", second half\n\ndata: next"));
    let mut rest = Vec::new();
    loop {
        match stream.client.chunk() {
            last if last.is_empty() => break,
            octets => rest.extend_from_slice(&octets),
        }
    }
    let rest = String::from_utf8(rest).unwrap();
    let retry = rest.strip_prefix(", second half\n\nretry: ").expect("the event, and the wait");
    assert!(RETRY_MS.contains(&retry.trim_end().parse().unwrap()), "{rest:?}");
    assert_eq!(stream.client.take(2), b"\r\n", "there are no trailers");
    assert_eq!(stream.client.expect_end(), End::Closed);
}

#[test]
fn the_wait_that_clients_are_told_is_drawn_from_the_range_for_each_of_them() {
    let options = [("stream_retry_min", "2s"), ("stream_retry_max", "2.9s")];
    let pair = Pair::with(&options);
    let mut streams: Vec<_> = (0..10).map(|_| pair.open(GET)).collect();
    pair.let_the_second_in();
    pair.drain();
    let mut retries: Vec<_> = streams.iter_mut().map(Stream::ends).collect();
    assert!(retries.iter().all(|retry| (2000..=2900).contains(retry)), "{retries:?}");
    retries.sort_unstable();
    retries.dedup();
    // That more than half of ten draws from 901 numbers are the same does not happen.
    assert!(retries.len() > 5, "{retries:?}");
}

#[test]
fn while_nobody_else_takes_work_a_stream_goes_on() {
    let pair = Pair::with(&[]);
    let mut stream = pair.open(GET);
    pair.drain();
    // Its client would be refused, and a browser that is refused does not ask again.
    stream.goes_on();
    pair.two.set_health(Health::Named("two".to_owned()));
    assert!(RETRY_MS.contains(&stream.ends()));
}

#[test]
fn a_stream_that_cannot_be_written_into_or_was_not_asked_for_goes_on() {
    let coded = STREAM.replace("\r\n\r\n", "\r\nContent-Encoding: br\r\n\r\n");
    let measured =
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n";
    let unasked = "GET /events HTTP/1.1\r\nHost: a\r\n\r\n";
    let pair = Pair::with(&[]);
    let cases = [(GET, coded.as_str()), (GET, measured), (unasked, STREAM)];
    let mut streams = cases.map(|(request, head)| {
        (Stream::open(pair.balancer.connect(), &pair.one, request, head), head)
    });
    pair.let_the_second_in();
    pair.drain();
    for (stream, head) in &mut streams {
        stream.client.expect_silence(MOMENT);
        if *head == measured {
            stream.peer.send("data: a\n\n");
            assert_eq!(stream.client.take(9), b"data: a\n\n");
        } else {
            stream.carry("data: a\n\n");
        }
    }
}

#[test]
fn a_stream_with_a_session_goes_on_because_it_would_come_straight_back() {
    let key = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let pair = Pair::with(&[("session_cookie", "lb"), ("session_keys", key)]);
    // This one gets its session with the head of the stream.
    let mut client = pair.balancer.connect();
    client.send(GET);
    let mut peer = pair.one.next();
    peer.send(STREAM);
    let head = client.head();
    let cookie = head.field("Set-Cookie").expect("a session begins");
    let cookie = cookie.split(';').next().unwrap();
    // And this one brings it.
    let bringing = GET.replace("\r\n\r\n", &format!("\r\nCookie: {cookie}\r\n\r\n"));
    let mut streams = [Stream { client, peer }, pair.open(&bringing)];
    pair.let_the_second_in();
    pair.drain();
    streams.iter_mut().for_each(Stream::goes_on);
}

#[test]
fn a_client_of_http_1_0_sees_the_wait_and_an_orderly_end() {
    let pair = Pair::with(&[]);
    let mut stream = pair.open(&GET.replace("HTTP/1.1", "HTTP/1.0"));
    pair.let_the_second_in();
    pair.drain();
    let (rest, end) = stream.client.rest();
    let rest = String::from_utf8(rest).unwrap();
    let retry = rest.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix("\n\n"));
    assert!(RETRY_MS.contains(&retry.unwrap().parse().unwrap()), "{rest:?}");
    assert_eq!(end, End::Closed, "a reset would say that something is missing");
}

#[test]
fn streams_end_at_the_pace_of_the_bucket() {
    let pair = Pair::with(&[("stream_drain_rate", "10")]);
    let streams: Vec<_> = (0..30).map(|_| pair.open(GET)).collect();
    pair.let_the_second_in();
    let began = Instant::now();
    pair.drain();
    let mut ended: Vec<Duration> = thread::scope(|scope| {
        let readers: Vec<_> = streams
            .into_iter()
            .map(|mut stream| {
                scope.spawn(move || {
                    stream.ends();
                    began.elapsed()
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    ended.sort_unstable();
    for (nth, elapsed) in (1_u32..).zip(&ended) {
        // A burst of two, and ten a second behind it.
        let earliest = Duration::from_millis(100) * nth.saturating_sub(2);
        assert!(*elapsed >= earliest, "number {nth} behind {elapsed:?}");
    }
}

#[test]
fn a_stream_that_is_old_enough_ends_and_an_answer_does_not() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("stream_age_max", "3s").start();
    let open = |request| Stream::open(balancer.connect(), &backend, request, STREAM);
    let mut answer = open(POST);
    let began = Instant::now();
    let mut stream = open(GET);
    stream.carry("data: a\n\n");
    assert!(RETRY_MS.contains(&stream.ends()));
    // A tenth sooner at the earliest, so that not all end at once that began at once.
    assert!(began.elapsed() >= Duration::from_millis(2700), "{:?}", began.elapsed());
    assert_eq!((ends(&balancer, "aged"), ends(&balancer, "drained")), (1, 0));
    answer.goes_on();
    assert_eq!(balancer.metrics().sum("stepflow_lb_failures_total", &[]), 0);
}

#[test]
fn an_old_stream_whose_client_nobody_would_take_in_goes_on() {
    let backend = Backend::played().healthy_as("one");
    let setup = Balancer::before(&[&backend]).with("stream_age_max", "3s");
    let balancer = setup.with("max_failures", "1").with("panic_threshold", "0%").start();
    // Nobody takes work by the time that both are old enough.
    let [mut free, mut tied] = loop {
        backend.set_health(Health::Named("one".to_owned()));
        balancer.wait_for_healthy(1);
        let began = Instant::now();
        let streams =
            [GET, TIED].map(|request| Stream::open(balancer.connect(), &backend, request, STREAM));
        backend.set_health(Health::Failing);
        balancer.wait_for_healthy(0);
        if began.elapsed() < Duration::from_millis(2700) {
            break streams;
        }
    };
    // This one's client comes back to this backend, and is served whatever its health.
    assert!(RETRY_MS.contains(&tied.ends()));
    free.goes_on();
    backend.set_health(Health::Named("one".to_owned()));
    assert!(RETRY_MS.contains(&free.ends()));
}

#[test]
fn a_client_that_takes_nothing_is_cut_when_the_time_of_its_backend_is_over() {
    let pair = Pair::with(&[("backend_drain_timeout", "1s")]);
    let Stream { client, mut peer } = pair.open(GET);
    pair.let_the_second_in();
    let event = chunk(format!("data: {}\n\n", "x".repeat(60_000)));
    thread::scope(|scope| {
        // More than all buffers on the way hold, so it ends only when the connection does.
        scope.spawn(move || while peer.try_send(&event).is_ok() {});
        pair.drain();
        pair.balancer.wait_for_failures("backend_drain_timeout", 1);
    });
    drop(client);
}

#[test]
fn when_its_time_is_over_a_drained_backend_is_left_by_everybody() {
    let pair = Pair::with(&[("backend_drain_timeout", "2s")]);
    let [mut inside, mut tied] = [GET, TIED].map(|request| pair.open(request));
    let (mut answer, mut tied_inside) = (pair.open(POST), pair.open(TIED));
    inside.carry("data: unfinished");
    tied_inside.carry("data: unfinished");
    let mut waiting = pair.balancer.connect();
    waiting.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let mut thinking = pair.one.next();
    let mut tunnel = pair.balancer.connect();
    tunnel.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    let mut far_end = pair.one.next();
    far_end.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n");
    assert_eq!(tunnel.head().status(), 101);
    pair.let_the_second_in();
    let began = Instant::now();
    pair.drain();
    // It comes back to the same backend, so it is let be for as long as that is of use.
    assert!(RETRY_MS.contains(&tied.ends()));
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    for stream in [&mut inside, &mut tied_inside, &mut answer] {
        let (rest, _) = stream.client.rest();
        assert_eq!(rest, b"", "no end that could be taken for the real one");
        assert!(began.elapsed() >= Duration::from_millis(1900), "{:?}", began.elapsed());
        stream.peer.until_gone();
    }
    let refused = waiting.response();
    assert_eq!(refused.status(), 503);
    assert!(refused.text().contains("backend_drain_timeout"), "{}", refused.text());
    thinking.until_gone();
    tunnel.expect_end();
    far_end.until_gone();
    pair.balancer.wait_for_failures("backend_drain_timeout", 5);
    assert_eq!(pair.balancer.metrics().sum("stepflow_lb_failures_total", &[]), 5);
    // Four of them were streams, one of which was no failure.
    assert_eq!(ends(&pair.balancer, "drained"), 4);
    // What must have this instance is still served.
    let mut callback = pair.balancer.connect();
    callback.send("GET /cb HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: one\r\n\r\n");
    let mut peer = pair.one.next();
    callback.expect_silence(MOMENT);
    peer.answer("called back");
    assert_eq!(callback.response().text(), "called back");
}

#[test]
fn a_balancer_that_ends_sends_streams_elsewhere_and_waits_for_answers() {
    let backend = Backend::played().healthy_as("one");
    let mut command = before(command(), &[&backend]);
    command.env("STEPFLOW_LB_DRAIN_GRACE", "500ms").env("STEPFLOW_LB_ACCESS_LOG", "failures");
    let mut process = Process::start(command);
    process.wait_for_healthy(1);
    let open = |request| Stream::open(process.connect(), &backend, request, STREAM);
    let [mut stream, mut tied, mut answer] = [GET, TIED, POST].map(open);
    let began = Instant::now();
    process.signal("TERM");
    for stream in [&mut stream, &mut tied] {
        assert!(RETRY_MS.contains(&stream.ends()));
        // Until listeners close, a client that connects again could come back here.
        assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    }
    answer.goes_on();
    assert!(process.is_running());
    answer.peer.send(LAST_CHUNK);
    assert_eq!(answer.client.take(5), LAST_CHUNK);
    assert_eq!(process.wait().code(), Some(0));
    let lines = process.lines_so_far();
    assert!(!lines.iter().any(|line| line.contains("GET")), "nothing failed: {lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("drain_too_slow")), "{lines:#?}");
}

#[test]
fn a_balancer_that_ends_says_beforehand_what_there_is_no_time_for() {
    let backend = Backend::played();
    let mut command = before(command(), &[&backend]);
    command.env("STEPFLOW_LB_DRAIN_GRACE", "0").env("STEPFLOW_LB_STREAM_DRAIN_RATE", "1");
    command.env("STEPFLOW_LB_DRAIN_TIMEOUT", "1500ms");
    let mut process = Process::start(command);
    process.wait_for_healthy(1);
    let open = |request| Stream::open(process.connect(), &backend, request, STREAM);
    let _streams = [GET, GET, GET, GET, GET, POST].map(open);
    process.signal("TERM");
    let line = process.wait_for_line("drain_too_slow");
    // One and a tenth in the bucket, one and a half to come.
    for told in ["streams=5", "cut=3", "needs_seconds=3.9", "stream_drain_rate=1"] {
        assert!(line.contains(told), "{told}: {line}");
    }
    assert_eq!(process.wait().code(), Some(0));
}

#[test]
fn streams_that_end_are_no_obstacle_to_the_end_of_the_process() {
    let backend = Backend::played();
    let balancer = Balancer::before(&[&backend]).with("drain_timeout", "60s").start();
    let open = |_| Stream::open(balancer.connect(), &backend, GET, STREAM);
    let mut streams: Vec<_> = (0..5).map(open).collect();
    balancer.shut_down();
    streams.iter_mut().for_each(|stream| assert!(RETRY_MS.contains(&stream.ends())));
    assert_eq!(balancer.wait(), ExitReason::Drained);
}
