//! Discovery against real DNS servers: the resolver and the plane together, over sockets.
//!
//! The server is hickory's own with a zone that each test edits, bound to a free port of the
//! loopback interface; one test asks dnsmasq as well, where it is installed. Nothing here waits
//! for a fixed time: every step waits for a condition, with a deadline.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its world has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_server::{
    Server,
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Header, HeaderCounts, Metadata, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{CNAME, NS, SOA, SRV},
        },
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use stepflow_load_balancer::{
    config::Dns,
    control::resolve::Resolver,
    model::{Phase, Presence, Report, Snapshot, Target},
    plane::{
        Absence, DrainTimes, Input, Output, PanicPolicy, PanicScope, Plane, PlaneEvent, Query,
        QueryKind, Refresh, Resolution, ResolveFailure, Settings,
    },
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::LocalSet,
    time::{sleep, timeout},
};

/// Longest that any condition may take to come true.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the server says to one question.
#[derive(Clone)]
enum Reply {
    Records(Vec<Record>),
    Code(ResponseCode),
    NoRecords,
    Referral,
    Silence,
}

/// One question as it arrived.
#[derive(Clone, Debug)]
struct Asked {
    name: String,
    kind: RecordType,
    protocol: Protocol,
    at: Instant,
}

#[derive(Default)]
struct Zone {
    replies: BTreeMap<(String, RecordType), Reply>,
    asked: Vec<Asked>,
}

/// A DNS server on the loopback interface. Names it does not know do not exist.
#[derive(Clone)]
struct Dnsd {
    zone: Arc<Mutex<Zone>>,
    address: SocketAddr,
}

struct Handler(Arc<Mutex<Zone>>);

// Spelled out: the trait is declared with a macro that this project has no other use for.
impl RequestHandler for Handler {
    fn handle_request<'s, 'r, 'f, R, T>(
        &'s self,
        request: &'r Request,
        response: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'f>>
    where
        's: 'f,
        'r: 'f,
        Self: 'f,
        R: ResponseHandler + 'f,
        T: Time + 'f,
    {
        Box::pin(async move { self.answer(request, response).await })
    }
}

impl Handler {
    async fn answer<R: ResponseHandler>(&self, request: &Request, mut response: R) -> ResponseInfo {
        let query = request.request_info().expect("one question").query;
        let key = (query.name().to_string(), query.query_type());
        let reply = {
            let mut zone = self.0.lock().await;
            zone.asked.push(Asked {
                name: key.0.clone(),
                kind: key.1,
                protocol: request.protocol(),
                at: Instant::now(),
            });
            zone.replies.get(&key).cloned().unwrap_or(Reply::Code(ResponseCode::NXDomain))
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let owner = Name::from_ascii("test.").unwrap();
        let (answers, authorities): (Vec<Record>, Vec<Record>) = match reply {
            Reply::Records(records) => (records, Vec::new()),
            Reply::NoRecords => {
                let soa = SOA::new(owner.clone(), owner.clone(), 1, 1, 1, 1, 1);
                (Vec::new(), vec![Record::from_rdata(owner, 1, RData::SOA(soa))])
            }
            Reply::Referral => {
                let ns = NS(Name::from_ascii("elsewhere.test.").unwrap());
                (Vec::new(), vec![Record::from_rdata(owner, 1, RData::NS(ns))])
            }
            Reply::Code(code) => {
                metadata.response_code = code;
                (Vec::new(), Vec::new())
            }
            Reply::Silence => return Header { metadata, counts: HeaderCounts::default() }.into(),
        };
        let builder = MessageResponseBuilder::from_message_request(request);
        let message = builder.build(metadata, &answers, &authorities, [], []);
        response.send_response(message).await.expect("a reply that can be sent")
    }
}

fn absolute(name: &str) -> Name {
    Name::from_ascii(name).unwrap()
}

fn ips(name: &str, ttl: u32, addresses: &[&str]) -> Reply {
    let record = |address: &&str| {
        let address: IpAddr = address.parse().unwrap();
        Record::from_rdata(absolute(name), ttl, RData::from(address))
    };
    Reply::Records(addresses.iter().map(record).collect())
}

fn srvs(name: &str, records: &[(u16, u16, u16, &str)]) -> Reply {
    let record = |&(priority, weight, port, host): &(u16, u16, u16, &str)| {
        let srv = SRV::new(priority, weight, port, absolute(host));
        Record::from_rdata(absolute(name), 0, RData::SRV(srv))
    };
    Reply::Records(records.iter().map(record).collect())
}

const SERVFAIL: Reply = Reply::Code(ResponseCode::ServFail);
const NXDOMAIN: Reply = Reply::Code(ResponseCode::NXDomain);

impl Dnsd {
    async fn start() -> Self {
        let zone = Arc::new(Mutex::new(Zone::default()));
        let mut server = Server::new(Handler(Arc::clone(&zone)));
        // A TCP port that is free for UDP as well.
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = tokio::net::UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        let address = udp.local_addr().unwrap();
        server.register_socket(udp);
        server.register_listener(tcp, DEADLINE, 64 * 1024);
        tokio::spawn(async move { server.block_until_done().await });
        Self { zone, address }
    }

    async fn set(&self, name: &str, kind: RecordType, reply: Reply) {
        self.zone.lock().await.replies.insert((name.to_owned(), kind), reply);
    }

    /// Questions for this name and type so far.
    async fn asked(&self, name: &str, kind: RecordType) -> Vec<Asked> {
        let zone = self.zone.lock().await;
        zone.asked.iter().filter(|a| a.name == name && a.kind == kind).cloned().collect()
    }

    fn dns(&self) -> Dns {
        dns(&[self.address])
    }
}

fn dns(servers: &[SocketAddr]) -> Dns {
    Dns {
        servers: servers.to_vec(),
        refresh_min: Duration::from_millis(20),
        refresh_max: Duration::from_secs(30),
    }
}

/// A directory for the files that a resolver reads.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stepflow-lb-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).unwrap();
    }

    fn resolver(&self, dns: &Dns) -> Resolver {
        Resolver::with_files(dns, &self.path("resolv.conf"), &self.path("hosts"))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A resolver that reads no file of the system.
fn resolver(dns: &Dns) -> Resolver {
    Resolver::with_files(dns, Path::new("/nonexistent"), Path::new("/nonexistent"))
}

/// The control thread in small: a plane without health checks, and a resolver.
struct Lab {
    plane: Plane,
    resolver: Rc<Resolver>,
    inputs: (mpsc::UnboundedSender<Input>, mpsc::UnboundedReceiver<Input>),
    snapshot: Arc<Snapshot>,
    events: Vec<PlaneEvent>,
}

impl Lab {
    fn new(upstream: &str, dns: &Dns, resolver: Resolver) -> Self {
        let settings = Settings {
            targets: Target::parse_list(upstream).unwrap(),
            refresh: Refresh { min: dns.refresh_min, max: dns.refresh_max },
            health: None,
            outliers: None,
            panic: PanicPolicy { threshold_percent: 50, scope: PanicScope::Ejections },
            drain: DrainTimes { grace: Duration::ZERO, drain: Duration::ZERO },
            session_idle: None,
            workers: 1,
        };
        Self {
            plane: Plane::new(&settings, 1, Instant::now()),
            resolver: Rc::new(resolver),
            inputs: mpsc::unbounded_channel(),
            snapshot: Arc::new(Snapshot::empty()),
            events: Vec::new(),
        }
    }

    async fn turn(&mut self) {
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Resolve { question, query } => {
                    let (inputs, resolver) = (self.inputs.0.clone(), Rc::clone(&self.resolver));
                    tokio::task::spawn_local(async move {
                        let resolution = resolver.resolve(&query).await;
                        let _ = inputs.send(Input::Resolved { question, resolution });
                    });
                }
                Output::Publish(snapshot) => self.snapshot = snapshot,
                Output::Event(event) => self.events.push(event),
                Output::Probe { .. } | Output::Replay(_) | Output::Exit(_) => {
                    panic!("unexpected {output:?}")
                }
            }
        }
        let pause = self
            .plane
            .poll_timeout()
            .map_or(DEADLINE, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            Some(input) = self.inputs.1.recv() => self.plane.handle(input, Instant::now()),
            () = sleep(pause) => self.plane.handle_timeout(Instant::now()),
        }
    }

    /// Runs until `is_so`, or fails after [`DEADLINE`].
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !is_so(self) {
            assert!(
                Instant::now() < deadline,
                "{what} did not happen: {:?} {:?}",
                self.addresses(),
                self.events
            );
            let _ = timeout(Duration::from_millis(50), self.turn()).await;
        }
    }

    fn addresses(&self) -> BTreeSet<String> {
        self.snapshot.backends.iter().map(|b| b.address.to_string()).collect()
    }

    async fn until_addresses(&mut self, want: &[&str]) {
        let want: BTreeSet<String> = want.iter().map(|a| (*a).to_owned()).collect();
        self.until(&format!("{want:?}"), |lab| lab.addresses() == want).await;
    }

    fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }
}

fn on_the_control_thread<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn backends_follow_records_that_come_and_go() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.1"])).await;
        server.set("workers.test.", RecordType::AAAA, Reply::NoRecords).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:8080", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:8080"]).await;
        let both = ips("workers.test.", 0, &["10.0.0.1", "10.0.0.2"]);
        server.set("workers.test.", RecordType::A, both).await;
        lab.until_addresses(&["10.0.0.1:8080", "10.0.0.2:8080"]).await;
        server.set("workers.test.", RecordType::AAAA, ips("workers.test.", 0, &["fd00::1"])).await;
        lab.until_addresses(&["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"]).await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.2"])).await;
        lab.until_addresses(&["10.0.0.2:8080", "[fd00::1]:8080"]).await;
        assert_eq!(lab.count("backend_gone"), 1);
        assert_eq!(lab.snapshot.phase, Phase::Serving);
    });
}

#[test]
fn records_are_asked_for_again_when_their_ttl_is_over_and_not_before() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let alias = CNAME(absolute("real.test."));
        let mut records = vec![Record::from_rdata(
            absolute("workers.test."),
            // The alias is what expires first.
            1,
            RData::CNAME(alias),
        )];
        let Reply::Records(real) = ips("real.test.", 300, &["10.0.0.1"]) else { unreachable!() };
        records.extend(real);
        server.set("workers.test.", RecordType::A, Reply::Records(records)).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:80"]).await;
        let deadline = Instant::now() + DEADLINE;
        let asked = loop {
            let asked = server.asked("workers.test.", RecordType::A).await;
            if asked.len() >= 3 {
                break asked;
            }
            assert!(Instant::now() < deadline, "asked only {asked:?}");
            let _ = timeout(Duration::from_millis(50), lab.turn()).await;
        };
        for pair in asked.windows(2) {
            let pause = pair[1].at - pair[0].at;
            assert!(pause >= Duration::from_millis(990), "asked again after {pause:?}");
        }
    });
}

#[test]
fn srv_records_give_ports_and_weights_and_are_followed() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let name = "_http._tcp.workers.test.";
        let both = srvs(name, &[(0, 3, 8081, "a.test."), (1, 0, 8082, "b.test.")]);
        server.set(name, RecordType::SRV, both).await;
        for (host, address) in [("a.test.", "10.0.0.1"), ("b.test.", "10.0.0.2")] {
            server.set(host, RecordType::A, ips(host, 0, &[address])).await;
            server.set(host, RecordType::AAAA, Reply::NoRecords).await;
        }
        let dns = server.dns();
        let mut lab = Lab::new("srv:_http._tcp.workers.test.", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:8081", "10.0.0.2:8082"]).await;
        let shares: Vec<_> =
            lab.snapshot.backends.iter().map(|b| (b.priority, b.weight.get())).collect();
        assert!(shares.contains(&(0, 3)) && shares.contains(&(1, 1)), "{shares:?}");
        server.set(name, RecordType::SRV, srvs(name, &[(1, 0, 8082, "b.test.")])).await;
        lab.until_addresses(&["10.0.0.2:8082"]).await;
        server.set("b.test.", RecordType::A, ips("b.test.", 0, &["10.0.0.9"])).await;
        lab.until_addresses(&["10.0.0.9:8082"]).await;
    });
}

#[test]
fn no_kind_of_failure_takes_a_backend_away() {
    on_the_control_thread(async {
        let kinds = [
            (SERVFAIL, ResolveFailure::ServerFailure),
            (Reply::Code(ResponseCode::Refused), ResolveFailure::Refused),
            (Reply::Code(ResponseCode::NotImp), ResolveFailure::ErrorCode),
            (Reply::Referral, ResolveFailure::Refused),
        ];
        for (reply, reason) in kinds {
            let server = Dnsd::start().await;
            let good = ips("workers.test.", 0, &["10.0.0.1"]);
            server.set("workers.test.", RecordType::A, good).await;
            let dns = server.dns();
            let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
            lab.until_addresses(&["10.0.0.1:80"]).await;
            server.set("workers.test.", RecordType::A, reply).await;
            lab.until("five failures", |lab| lab.count("resolve_failed_kept") >= 5).await;
            assert_eq!(lab.addresses().len(), 1);
            let is_named = |event: &PlaneEvent| {
                matches!(event, PlaneEvent::ResolveFailedKept { reason: got, kept: 1, .. }
                    if *got == reason)
            };
            assert!(lab.events.iter().any(is_named), "{reason:?}: {:?}", lab.events);
        }
    });
}

#[test]
fn a_name_that_is_gone_empties_its_set_the_third_time_and_heals() {
    on_the_control_thread(async {
        for reply in [NXDOMAIN, Reply::NoRecords] {
            let server = Dnsd::start().await;
            let good = || ips("workers.test.", 0, &["10.0.0.1"]);
            server.set("workers.test.", RecordType::A, good()).await;
            let dns = server.dns();
            let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
            lab.until_addresses(&["10.0.0.1:80"]).await;
            server.set("workers.test.", RecordType::A, reply).await;
            lab.until_addresses(&[]).await;
            assert_eq!(lab.count("resolve_empty_kept"), 2);
            assert_eq!(lab.count("resolve_emptied"), 1);
            server.set("workers.test.", RecordType::A, good()).await;
            lab.until_addresses(&["10.0.0.1:80"]).await;
        }
    });
}

#[test]
fn ipv6_backends_survive_while_only_their_family_fails() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.1"])).await;
        server.set("workers.test.", RecordType::AAAA, ips("workers.test.", 0, &["fd00::1"])).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:80", "[fd00::1]:80"]).await;
        server.set("workers.test.", RecordType::AAAA, SERVFAIL).await;
        lab.until("failures", |lab| lab.count("resolve_failed_kept") >= 3).await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.2"])).await;
        lab.until_addresses(&["10.0.0.2:80", "[fd00::1]:80"]).await;
    });
}

#[test]
fn an_answer_too_long_for_udp_is_fetched_over_tcp() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let many: Vec<String> = (0..300).map(|n| format!("10.1.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        server.set("workers.test.", RecordType::A, ips("workers.test.", 60, &many)).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
        lab.until("300 backends", |lab| lab.snapshot.backends.len() == 300).await;
        let asked = server.asked("workers.test.", RecordType::A).await;
        let protocols: Vec<Protocol> = asked.iter().map(|asked| asked.protocol).collect();
        assert_eq!(protocols, [Protocol::Udp, Protocol::Tcp]);
    });
}

#[test]
fn a_failed_connect_refreshes_long_before_the_ttl() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 600, &["10.0.0.1"])).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:80"]).await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 600, &["10.0.0.2"])).await;
        let reported = Instant::now();
        let id = lab.snapshot.backends[0].id;
        lab.plane.handle(Input::Reported(Report::ConnectFailed(id)), Instant::now());
        lab.until_addresses(&["10.0.0.2:80"]).await;
        assert!(reported.elapsed() < Duration::from_secs(10), "the TTL would have been 30 s");
    });
}

#[test]
fn a_leaving_backend_stays_while_something_runs_on_it() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.1"])).await;
        let dns = server.dns();
        let mut lab = Lab::new("workers.test.:80", &dns, resolver(&dns));
        lab.until_addresses(&["10.0.0.1:80"]).await;
        let stats = Arc::clone(&lab.snapshot.backends[0].stats);
        stats.enter();
        server.set("workers.test.", RecordType::A, ips("workers.test.", 0, &["10.0.0.2"])).await;
        lab.until_addresses(&["10.0.0.1:80", "10.0.0.2:80"]).await;
        assert_eq!(lab.snapshot.backends[0].presence, Presence::Leaving);
        stats.leave();
        lab.until_addresses(&["10.0.0.2:80"]).await;
    });
}

fn query(name: &str, kind: QueryKind) -> Query {
    Query { name: Arc::from(name), kind }
}

fn found(resolution: &Resolution) -> Vec<IpAddr> {
    match resolution {
        Resolution::Addresses { addresses, .. } => addresses.clone(),
        _ => panic!("no addresses: {resolution:?}"),
    }
}

#[test]
fn a_failure_within_the_search_list_is_not_mistaken_for_absence() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let files = Files::new("search");
        files.write("resolv.conf", "search a.test b.test\noptions ndots:2\n");
        let resolver = files.resolver(&server.dns());
        let workers = query("workers", QueryKind::A);

        let absent = Resolution::Absent(Absence::NoSuchName);
        assert_eq!(resolver.resolve(&workers).await, absent, "nobody knows it");
        for name in ["workers.a.test.", "workers.b.test.", "workers."] {
            assert_eq!(server.asked(name, RecordType::A).await.len(), 1, "{name}");
        }
        server.set("workers.a.test.", RecordType::A, SERVFAIL).await;
        let failed = Resolution::Failed(ResolveFailure::ServerFailure);
        assert_eq!(resolver.resolve(&workers).await, failed, "absent elsewhere");

        // Found further down while the first domain is broken: as other programs would.
        server
            .set("workers.b.test.", RecordType::A, ips("workers.b.test.", 0, &["10.0.0.2"]))
            .await;
        assert_eq!(found(&resolver.resolve(&workers).await), [Ipv4Addr::new(10, 0, 0, 2)]);

        // Once it is known in the first domain, a failure there is not answered by another.
        server
            .set("workers.a.test.", RecordType::A, ips("workers.a.test.", 0, &["10.0.0.1"]))
            .await;
        assert_eq!(found(&resolver.resolve(&workers).await), [Ipv4Addr::new(10, 0, 0, 1)]);
        server.set("workers.a.test.", RecordType::A, SERVFAIL).await;
        assert_eq!(resolver.resolve(&workers).await, failed);

        // An absolute name is asked as it is.
        let absolute = query("workers.b.test.", QueryKind::A);
        assert_eq!(found(&resolver.resolve(&absolute).await), [Ipv4Addr::new(10, 0, 0, 2)]);
    });
}

#[test]
fn names_with_enough_dots_are_tried_as_they_are_first() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let files = Files::new("ndots");
        files.write("resolv.conf", "nameserver 127.0.0.9\nsearch a.test\noptions ndots:2\n");
        let resolver = files.resolver(&server.dns());
        server.set("x.y.z.", RecordType::A, ips("x.y.z.", 0, &["10.0.0.1"])).await;
        server.set("x.y.z.a.test.", RecordType::A, ips("x.y.z.a.test.", 0, &["10.0.0.2"])).await;
        server.set("x.y.a.test.", RecordType::A, ips("x.y.a.test.", 0, &["10.0.0.3"])).await;
        let three = resolver.resolve(&query("x.y.z", QueryKind::A)).await;
        assert_eq!(found(&three), [Ipv4Addr::new(10, 0, 0, 1)]);
        let two = resolver.resolve(&query("x.y", QueryKind::A)).await;
        assert_eq!(found(&two), [Ipv4Addr::new(10, 0, 0, 3)]);
    });
}

#[test]
fn the_hosts_file_comes_first_and_changes_are_noticed() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.", RecordType::A, ips("workers.", 0, &["10.9.9.9"])).await;
        server.set("workers.", RecordType::AAAA, Reply::Silence).await;
        let files = Files::new("hosts");
        files.write("hosts", "10.0.0.1 workers # first\n10.0.0.2 other workers\n");
        let dns = server.dns();
        let mut lab = Lab::new("workers:80", &dns, files.resolver(&dns));
        lab.until_addresses(&["10.0.0.1:80", "10.0.0.2:80"]).await;
        let aaaa = lab.resolver.resolve(&query("workers", QueryKind::Aaaa)).await;
        assert_eq!(aaaa, Resolution::Absent(Absence::NoRecords), "the file knows the name");
        assert_eq!(server.asked("workers.", RecordType::A).await.len(), 0);

        files.write("hosts", "10.0.0.3 workers\n");
        // The file's records hold for long, so somebody has to ask.
        let id = lab.snapshot.backends[0].id;
        let deadline = Instant::now() + DEADLINE;
        while lab.addresses() != BTreeSet::from(["10.0.0.3:80".to_owned()]) {
            assert!(Instant::now() < deadline, "{:?}", lab.addresses());
            lab.plane.handle(Input::Reported(Report::ConnectFailed(id)), Instant::now());
            let _ = timeout(Duration::from_millis(50), lab.turn()).await;
        }
    });
}

#[test]
fn a_missing_resolver_configuration_heals_when_it_appears() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        let name = "workers.late.test.";
        server.set(name, RecordType::A, ips(name, 0, &["10.0.0.1"])).await;
        let files = Files::new("heals");
        let dns = server.dns();
        let mut lab = Lab::new("workers:80", &dns, files.resolver(&dns));
        lab.until("the name is unknown", |lab| lab.count("name_empty") == 1).await;
        files.write("resolv.conf", "search late.test\n");
        lab.until_addresses(&["10.0.0.1:80"]).await;
    });
}

#[test]
fn servers_are_asked_in_order_and_a_dead_one_is_passed_over() {
    on_the_control_thread(async {
        let (first, second) = (Dnsd::start().await, Dnsd::start().await);
        let good = |ip| ips("workers.test.", 0, &[ip]);
        second.set("workers.test.", RecordType::A, good("10.0.0.2")).await;
        let both = resolver(&dns(&[first.address, second.address]));
        let workers = query("workers.test.", QueryKind::A);

        let absent = Resolution::Absent(Absence::NoSuchName);
        assert_eq!(both.resolve(&workers).await, absent, "the first one's word is enough");
        first.set("workers.test.", RecordType::A, SERVFAIL).await;
        assert_eq!(found(&both.resolve(&workers).await), [Ipv4Addr::new(10, 0, 0, 2)]);
        first.set("workers.test.", RecordType::A, Reply::Silence).await;
        assert_eq!(found(&both.resolve(&workers).await), [Ipv4Addr::new(10, 0, 0, 2)]);
        first.set("workers.test.", RecordType::A, good("10.0.0.1")).await;
        assert_eq!(found(&both.resolve(&workers).await), [Ipv4Addr::new(10, 0, 0, 1)]);
    });
}

#[test]
fn a_silent_server_is_a_timeout_and_not_for_ever() {
    on_the_control_thread(async {
        let server = Dnsd::start().await;
        server.set("workers.test.", RecordType::A, Reply::Silence).await;
        let silent = resolver(&server.dns());
        let begin = Instant::now();
        let resolution = silent.resolve(&query("workers.test.", QueryKind::A)).await;
        assert_eq!(resolution, Resolution::Failed(ResolveFailure::Timeout));
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    });
}

/// dnsmasq on a free port, answering from a file of hosts that it reads again on SIGHUP.
struct Dnsmasq {
    process: Child,
    address: SocketAddr,
}

impl Dnsmasq {
    /// Another test may take the free port before dnsmasq does; then there is another one.
    fn start(files: &Files) -> Option<Self> {
        for _ in 0..20 {
            let mut server = Self::spawn(files)?;
            if server.answers() {
                return Some(server);
            }
        }
        panic!("dnsmasq does not answer on any port");
    }

    /// Whether it answers a question, as opposed to ending because its port is taken.
    fn answers(&mut self) -> bool {
        // One question: the address of a.test.
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01";
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(self.address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline && self.process.try_wait().unwrap().is_none() {
            // Refused until it listens.
            let sent = socket.send(question);
            if sent.is_ok() && socket.recv(&mut [0; 512]).is_ok() {
                return self.process.try_wait().unwrap().is_none();
            }
        }
        false
    }

    fn spawn(files: &Files) -> Option<Self> {
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = Command::new("dnsmasq")
            .args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"])
            .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--local-ttl=0"])
            .args(["--local=/test/", "--srv-host=_http._tcp.test,a.test,8081,0,3"])
            .arg(format!("--port={port}"))
            .arg(format!("--pid-file={}", files.path("pid").display()))
            .arg(format!("--addn-hosts={}", files.path("names").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Self { process, address: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    fn reload(&self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn dnsmasq_is_followed_as_well() {
    on_the_control_thread(async {
        let files = Files::new("dnsmasq");
        files.write("names", "10.0.0.1 a.test\nfd00::1 a.test\n");
        let Some(server) = Dnsmasq::start(&files) else {
            eprintln!("SKIPPED dnsmasq_is_followed_as_well: dnsmasq is not installed");
            return;
        };
        let dns = dns(&[server.address]);
        let mut lab = Lab::new("a.test.:80,srv:_http._tcp.test.", &dns, resolver(&dns));
        let both = ["10.0.0.1:80", "10.0.0.1:8081", "[fd00::1]:80", "[fd00::1]:8081"];
        lab.until_addresses(&both).await;
        files.write("names", "10.0.0.2 a.test\nfd00::1 a.test\n");
        server.reload();
        let both = ["10.0.0.2:80", "10.0.0.2:8081", "[fd00::1]:80", "[fd00::1]:8081"];
        lab.until_addresses(&both).await;
        files.write("names", "10.0.0.2 a.test\n");
        server.reload();
        lab.until_addresses(&["10.0.0.2:80", "10.0.0.2:8081"]).await;
        assert_eq!(lab.count("resolve_emptied"), 1, "the AAAA records");
    });
}
