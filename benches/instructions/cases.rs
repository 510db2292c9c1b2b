//! What is counted. Each case is one step of an exchange as the program takes it, on input as it
//! comes: what Stepflow's orchestrator sends, what a browser or a benchmark sends, and the worst
//! that is admitted.

use std::{
    hint::black_box,
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use stepflow_load_balancer::{
    balance::Picker,
    exchange::{
        ClientFacts, ResponseFacts, Via, admit, plan_response, write_request, write_response,
    },
    http1::{
        Coding, DateLine, Edits, FIELDS_MAX, Framing, HeadScan, LeadingLine, Method, Transfer,
        field_storage, parse_request, parse_response,
    },
    model::{
        Backend, BackendId, Health, Hints, Initialisation, InitialisationProgress, InstanceId,
        Panic, Phase, Presence, Rng, Snapshot, Standing, Trust, Version, Weight,
    },
    session::{Affinity, Key, LostRules, Named, Rules, Settings},
    sse::{EventBody, EventTracker, Pushed, Reading},
    stats::{BackendStats, StatusKey},
    worker::{MeasuredMeter, MeasuredTable},
};

use crate::callgrind::Cases;

const SMALL_GET: &str = "GET /api/v1/components?page=2 HTTP/1.1\r\nHost: lb.example.com\r\n\
    User-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// As Stepflow's orchestrator calls a component.
const STEPFLOW_POST: &str = "POST / HTTP/1.1\r\ncontent-type: application/json\r\n\
    accept: application/json, text/event-stream\r\n\
    stepflow-instance-id: 0197b2c5-9d5e-7c3a-b1aa-6b8e1f0a2c4d\r\nhost: components:8080\r\n\
    content-length: 312\r\n\r\n";

const SMALL_ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: uvicorn\r\n\
    Date: Sat, 21 Nov 2026 12:00:00 GMT\r\nContent-Type: application/json\r\n\
    Content-Length: 27\r\n\r\n";

/// The same of a backend that has no clock, or does not say what it shows.
const UNDATED_ANSWER: &str = "HTTP/1.1 200 OK\r\nServer: uvicorn\r\n\
    Content-Type: application/json\r\nContent-Length: 27\r\n\r\n";

const EVENT_STREAM: &str = "HTTP/1.1 200 OK\r\nServer: uvicorn\r\n\
    Date: Sat, 21 Nov 2026 12:00:00 GMT\r\nCache-Control: no-store\r\n\
    Content-Type: text/event-stream; charset=utf-8\r\n\
    Stepflow-Instance-Id: 0197b2c5-9d5e-7c3a-b1aa-6b8e1f0a2c4d\r\n\
    Transfer-Encoding: chunked\r\n\r\n";

/// What a component says while it works: a little JSON.
const EVENT: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":\"7\",\"method\":\"progress\",\
    \"params\":{\"step\":12,\"of\":40}}\n\n";

fn hundred_fields() -> String {
    let fields: String =
        (0..100).map(|n| format!("X-Field-{n}: value of field number {n}\r\n")).collect();
    format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
}

/// An answer on a connection that goes on, to a request that named nobody.
fn facts<'a>(received: &'a DateLine, edits: &'a Edits) -> ResponseFacts<'a> {
    ResponseFacts { closes: false, routed_instance: None, received, edits }
}

/// Octets as they lie in a buffer of a worker. What a search costs depends on how its input is
/// aligned, and that of a constant is the linker's.
fn received(text: &str) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    buffer.extend_from_slice(text.as_bytes());
    buffer
}

pub(crate) fn run_all(cases: &mut Cases) {
    heads(cases);
    bodies(cases);
    events(cases);
    picks(cases);
    affinity(cases);
    sessions(cases);
    snapshots(cases);
    metrics(cases);
}

/// Steps 2, 3 and 6: heads.
fn heads(cases: &mut Cases) {
    let hundred = hundred_fields();
    let requests =
        [("small_get", SMALL_GET), ("stepflow_post", STEPFLOW_POST), ("100_fields", &hundred)];
    for (name, text) in requests {
        let octets = received(text);
        cases.case(&format!("request/scan_and_parse/{name}"), 1, || {
            let mut scan = HeadScan::new(LeadingLine::Skip);
            let found = scan.advance(black_box(&octets)).unwrap().unwrap();
            let mut storage = field_storage();
            black_box(parse_request(&octets[found], &mut storage, FIELDS_MAX).unwrap());
        });
        let mut storage = field_storage();
        let head = parse_request(&octets, &mut storage, FIELDS_MAX).unwrap();
        cases.case(&format!("request/admit/{name}"), 1, || {
            black_box(admit(black_box(&head)).unwrap());
        });
        let admission = admit(&head).unwrap();
        let facts = ClientFacts {
            address: "192.0.2.17",
            trust: Trust::Hearsay,
            local_authority: "127.0.0.1:8080",
            via: Via::Unsaid,
        };
        let mut out = Vec::with_capacity(16 * 1024);
        cases.case(&format!("request/write/{name}"), 1, || {
            out.clear();
            write_request(&mut out, black_box(&head), &admission, &facts);
        });
    }
    let mut storage = field_storage();
    let request = parse_request(STEPFLOW_POST.as_bytes(), &mut storage, FIELDS_MAX).unwrap();
    let request = admit(&request).unwrap().plan;
    let date = DateLine::at(Duration::from_secs(1_795_262_400));
    let answers =
        [("small", SMALL_ANSWER), ("undated", UNDATED_ANSWER), ("event_stream", EVENT_STREAM)];
    for (name, text) in answers {
        let octets = received(text);
        cases.case(&format!("response/scan_and_parse/{name}"), 1, || {
            let mut scan = HeadScan::new(LeadingLine::Refuse);
            let found = scan.advance(black_box(&octets)).unwrap().unwrap();
            let mut storage = field_storage();
            black_box(parse_response(&octets[found], &mut storage, FIELDS_MAX).unwrap());
        });
        let mut storage = field_storage();
        let head = parse_response(&octets, &mut storage, FIELDS_MAX).unwrap();
        let mut out = Vec::with_capacity(4 * 1024);
        cases.case(&format!("response/plan_and_write/{name}"), 1, || {
            out.clear();
            let plan = plan_response(&request, black_box(&head), 0).unwrap();
            write_response(&mut out, &head, &request, &plan, &facts(&date, &Edits::NONE));
        });
    }
}

/// Steps 6 and 7: bodies that go on as they are. 16 kB in each, as one read brings them.
fn bodies(cases: &mut Cases) {
    let mut plain = vec![b'x'; 16 * 1024];
    let chunk = |size: usize| format!("{size:x}\r\n{}\r\n", "x".repeat(size));
    let chunks = |size: usize| chunk(size).repeat(16 * 1024 / size) + "0\r\n\r\n";
    cases.case("body/length/16_kB", 1, || {
        let mut transfer = Transfer::alike(Framing::Length(16 * 1024));
        assert_eq!(transfer.measure(black_box(&mut plain)), Ok(16 * 1024));
    });
    for size in [64, 4096] {
        let mut octets = chunks(size).into_bytes();
        let all = octets.len();
        cases.case(&format!("body/chunked/16_kB_by_{size}"), 1, || {
            let mut transfer = Transfer::alike(Framing::Chunked);
            assert_eq!(transfer.measure(black_box(&mut octets)), Ok(all));
        });
    }
    let octets = chunks(4096).into_bytes();
    let mut out = Vec::with_capacity(64 * 1024);
    cases.case("body/unchunked/16_kB_by_4096", 1, || {
        out.clear();
        let mut transfer = Transfer::new(Framing::Chunked, Coding::Identity);
        assert_eq!(transfer.push(black_box(&octets), &mut out), Ok(octets.len()));
    });
}

/// Step 7: one event of a stream that goes on.
fn events(cases: &mut Cases) {
    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    let mut out = Vec::with_capacity(4096);
    for (name, framing, input) in
        [("chunked", Framing::Chunked, chunk.as_str()), ("until_close", Framing::UntilClose, EVENT)]
    {
        let input = received(input);
        let mut transfer = Transfer::text(framing, Coding::Chunked);
        cases.case(&format!("event/transfer/{name}"), 1, || {
            out.clear();
            assert_eq!(transfer.push(black_box(&input), &mut out), Ok(input.len()));
        });
    }
    let input = received(&chunk);
    let transfer = || Transfer::text(Framing::Chunked, Coding::Chunked);
    let mut as_it_comes = EventBody::new(transfer(), Coding::Chunked, Reading::Open);
    cases.case("event/hand_on/as_it_comes", 1, || {
        out.clear();
        assert_eq!(as_it_comes.push(black_box(&input), &mut out, |_| ()).unwrap().events, 1);
    });
    let mut whole = EventBody::new(transfer(), Coding::Chunked, Reading::Open).in_whole_events();
    cases.case("event/hand_on/in_whole_events", 1, || {
        out.clear();
        assert_eq!(whole.push(black_box(&input), &mut out, |_| ()).unwrap().events, 1);
    });
    let event = received(EVENT);
    let mut tracker = EventTracker::new();
    cases.case("event/track", 1, || {
        assert_eq!(tracker.step(black_box(&event)).events, 1);
    });
    let mut now = Instant::now();
    let mut meter = MeasuredMeter::begin(Arc::new(BackendStats::new(1)), now);
    let piece = Pushed { taken: input.len(), content: event.len(), events: 1 };
    cases.case("event/measure", 1, || {
        now += Duration::from_millis(20);
        meter.content(black_box(piece), black_box(now));
    });
}

fn instance(n: usize) -> String {
    format!("0197b2c5-9d5e-7c3a-b1aa-{n:012}")
}

/// Backends as a snapshot shows them, with something running on each.
fn snapshot(version: u64, n: usize) -> Snapshot {
    let mut rng = Rng::new(1);
    let backend = |index: usize| {
        let stats = BackendStats::new(1);
        (0..rng.below(20)).for_each(|_| stats.enter());
        let [.., a, b] = index.to_be_bytes();
        Backend {
            id: BackendId(index as u64 + 1),
            address: SocketAddr::from(([10, 1, a, b], 80)),
            instance: InstanceId::parse(instance(index).as_bytes()).ok(),
            health: Health::Healthy,
            presence: Presence::Present,
            draining: None,
            standing: Standing::Admitted,
            hints: Hints::default(),
            initialisation: Initialisation::default(),
            weight: Weight::new(1).unwrap(),
            priority: 0,
            stats: Arc::new(stats),
        }
    };
    Snapshot {
        version: Version(version),
        phase: Phase::Serving,
        panic: Panic::Off,
        initialisation: InitialisationProgress::default(),
        backends: (0..n).map(backend).collect(),
    }
}

fn table(picker: Picker, n: usize) -> MeasuredTable {
    let mut table = MeasuredTable::new(picker, 1);
    table.apply(&snapshot(1, n));
    table
}

/// Step 4: a choice, its count, and the end of the exchange.
fn picks(cases: &mut Cases) {
    let pickers: [(&str, fn() -> Picker); 7] = [
        ("least_connections", Picker::least_connections),
        ("least_response_time", Picker::least_response_time),
        ("round_robin", Picker::round_robin),
        ("random", Picker::random),
        ("power_of_two", Picker::power_of_two),
        ("consistent_hash", || Picker::consistent_hash(None)),
        ("bounded_hash", || Picker::consistent_hash(NonZeroU32::new(125))),
    ];
    for (name, picker) in pickers {
        for n in [3, 100, 10_000] {
            let mut table = table(picker(), n);
            let mut rng = Rng::new(2);
            cases.case(&format!("pick/{name}/{n}"), 1000, || {
                black_box(table.pick(Some(rng.next_u64())).unwrap());
            });
        }
    }
}

/// Step 4: whom a request must reach by its `Stepflow-Instance-Id`.
fn affinity(cases: &mut Cases) {
    for n in [3, 10_000] {
        let table = table(Picker::least_connections(), n);
        let ids: Vec<String> = (0..n).map(instance).collect();
        let mut next = 0;
        cases.case(&format!("affinity/{n}"), 1000, || {
            next = (next + 1) % n;
            let named = Affinity::read(black_box(Some(ids[next].as_bytes())));
            let Affinity::Instance(id) = named else { panic!("{named:?}") };
            assert!(table.instance(id).is_some());
        });
    }
}

/// Steps 3 and 7: a session of MCP is read from its request, and given with a response.
fn sessions(cases: &mut Cases) {
    let settings = Settings {
        instance_header: Settings::INSTANCE_HEADER.into(),
        header: Some("Mcp-Session-Id".into()),
        cookie: None,
        application_cookie: None,
        keys: Vec::new(),
        lost: LostRules::default(),
        idle: Duration::from_secs(60),
    };
    let rules = Rules::new(&settings, &[Key::new([7; Key::BYTES])]);
    let from = Named { instance: Some("pod-1"), address: ([10, 1, 0, 1], 80).into() };
    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
        Mcp-Session-Id: 5f0c1d1c-6a0e-4f6e-9f5e-0d8a4b8e3a11\r\nContent-Length: 2\r\n\r\n";
    let mut storage = field_storage();
    let answer = parse_response(answer.as_bytes(), &mut storage, FIELDS_MAX).unwrap();
    let begins = rules.read(&[], Method::Post, None).unwrap();
    let seal = || {
        rules.answer(&begins, (Method::Post, 200, false), answer.fields, from, || [9; 24]).unwrap()
    };
    cases.case("session/seal", 1, || {
        black_box(seal());
    });
    let mut out = Vec::new();
    let mut storage = field_storage();
    let request = parse_request(STEPFLOW_POST.as_bytes(), &mut storage, FIELDS_MAX).unwrap();
    let request = admit(&request).unwrap().plan;
    let plan = plan_response(&request, &answer, 0).unwrap();
    let date = DateLine::at(Duration::ZERO);
    write_response(&mut out, &answer, &request, &plan, &facts(&date, &seal().edits));
    let mut storage = field_storage();
    let given = parse_response(&out, &mut storage, FIELDS_MAX).unwrap();
    cases.case("session/open", 1, || {
        let reading = rules.read(black_box(given.fields), Method::Post, None).unwrap();
        assert!(reading.owner().is_some());
    });
}

/// A snapshot in which nothing has changed but its version: the most frequent one.
fn snapshots(cases: &mut Cases) {
    // The maps are seeded at random: the mean of some hundreds of entries settles.
    for (n, times) in [(3, 300), (10_000, 3)] {
        let mut next = snapshot(1, n);
        let mut table = MeasuredTable::new(Picker::least_connections(), 1);
        cases.case(&format!("snapshot/apply/{n}"), times, || {
            next.version = next.version.next();
            assert_eq!(table.apply(black_box(&next)), 0);
        });
    }
}

/// Step 8: what is counted when an exchange ends.
fn metrics(cases: &mut Cases) {
    let stats = BackendStats::new(1);
    let key = |status| StatusKey { method: 0, status };
    let other = [201, 204, 404].map(key);
    other.iter().for_each(|key| stats.cell(0).series().record(*key, Duration::ZERO));
    cases.case("metrics/record", 1, || {
        let cell = stats.cell(black_box(0));
        cell.series().record(key(200), black_box(Duration::from_micros(1234)));
        cell.outcomes.pass();
    });
}
