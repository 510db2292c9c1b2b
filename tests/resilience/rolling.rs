//! A rolling restart: each backend in turn leaves DNS, finishes what it has, ends, comes back as
//! another process, and returns to DNS; all of it under load.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::SeqCst},
    },
    thread,
};

use crate::{
    child::Backend,
    load::Load,
    support::{
        Client, Process,
        backend::common_port,
        process::{before, command},
        wait_until,
    },
};

/// The backends' addresses are 127.0.0.2 and the two behind it.
const BACKENDS: u8 = 3;

fn ip(backend: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 2 + backend)
}

/// A name server that knows one name. Which of the backends have it is a bit for each.
struct NameServer {
    address: SocketAddr,
    present: Arc<AtomicU8>,
}

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let present = Arc::new(AtomicU8::new((1 << BACKENDS) - 1));
        let answered = Arc::clone(&present);
        thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((n, asker)) = socket.recv_from(&mut question) {
                let answer = answer(&question[..n], answered.load(SeqCst));
                // Whoever asked may have gone.
                let _ = socket.send_to(&answer, asker);
            }
        });
        Self { address, present }
    }
}

/// An answer to one question (RFC 1035 §4.1): the addresses to A, nothing to anything else.
fn answer(question: &[u8], present: u8) -> Vec<u8> {
    const HEADER: usize = 12;
    let name = question[HEADER..].iter().position(|octet| *octet == 0).expect("a name ends");
    let end = HEADER + name + 5;
    let is_a = question[end - 4..end - 2] == [0, 1];
    let backends = (0..BACKENDS).filter(|n| is_a && present & 1 << n != 0);
    let addresses: Vec<_> = backends.map(|n| ip(n).octets()).collect();
    let count = u8::try_from(addresses.len()).unwrap();
    let mut out = question[..2].to_vec();
    out.extend_from_slice(&[0x84, 0, 0, 1, 0, count, 0, 0, 0, 0]);
    out.extend_from_slice(&question[HEADER..end]);
    for octets in addresses {
        // The name of the question, type A, class IN, a lifetime of 0, four octets.
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&octets);
    }
    out
}

/// A session: a stream on some backend, calls that must reach that one, and the last call, which
/// ends the stream. Gives the instance.
fn session(balancer: SocketAddr, name: &str) -> String {
    let mut stream = Client::connect(balancer);
    stream.send(format!(
        "POST /stream/{name} HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\
         Content-Length: 0\r\n\r\n"
    ));
    let head = stream.head();
    assert_eq!(head.status(), 200, "{head:?}");
    let instance = head.field("stepflow-instance-id").expect("a stream names its instance");
    assert_eq!(stream.chunk(), b"data: begun\n\n");
    let mut caller = Client::connect(balancer);
    for call in ["call", "call", "call", "call", "end"] {
        let response = caller.ask(format!(
            "POST /{call}/{name} HTTP/1.1\r\nHost: a\r\nStepflow-Instance-Id: {instance}\r\n\
             Content-Length: 0\r\n\r\n"
        ));
        assert_eq!((response.status(), response.text()), (200, instance.clone()), "{call}");
    }
    assert_eq!(stream.chunk(), b"data: ended\n\n");
    assert_eq!(stream.chunk(), b"");
    instance
}

fn start(port: u16, backend: u8, generation: u8) -> Backend {
    let name = format!("rolling-{backend}-{generation}");
    Backend::start(&name, &format!("{}:{port}", ip(backend)))
}

#[test]
fn a_rolling_restart_fails_no_request_and_loses_no_session() {
    let names = NameServer::start();
    let (port, _reserved) = common_port(&(0..BACKENDS).map(ip).collect::<Vec<_>>());
    let mut backends: Vec<_> = (0..BACKENDS).map(|n| start(port, n, 0)).collect();
    let mut command = before(command(), &[]);
    command
        .env("UPSTREAM_SERVICE", format!("backends.test:{port}"))
        .env("STEPFLOW_LB_DNS_SERVERS", names.address.to_string())
        .env("STEPFLOW_LB_DNS_REFRESH_MIN", "50ms")
        .env("STEPFLOW_LB_DNS_REFRESH_MAX", "50ms");
    let balancer = Process::start(command);
    balancer.wait_for_healthy(BACKENDS.into());
    let load = |method| Load::start(balancer.address, 12, method, |_| String::new());
    let (gets, posts) = (load("GET"), load("POST"));
    let stop = Arc::new(AtomicBool::new(false));
    let sessions: Vec<_> = (0..6)
        .map(|client| {
            let (stop, address) = (Arc::clone(&stop), balancer.address);
            thread::spawn(move || {
                let sessions = (0..).take_while(|_| !stop.load(SeqCst));
                sessions.map(|n| session(address, &format!("{client}-{n}"))).collect::<Vec<_>>()
            })
        })
        .collect();
    for n in 0..BACKENDS {
        let state = |state: &str| {
            let label = format!(r#"state="{state}""#);
            balancer.metrics().sum("stepflow_lb_backends", &[&label])
        };
        gets.wait_for_more(200);
        names.present.fetch_and(!(1 << n), SeqCst);
        wait_until("the backend has left and has nothing to do", || {
            state("healthy") == u64::from(BACKENDS) - 1
                && state("leaving") == 0
                && balancer.metrics().workers_are_up_to_date()
        });
        backends[usize::from(n)].kill();
        gets.wait_for_more(50);
        backends[usize::from(n)] = start(port, n, 1);
        names.present.fetch_or(1 << n, SeqCst);
        balancer.wait_for_healthy(BACKENDS.into());
    }
    gets.wait_for_more(200);
    stop.store(true, SeqCst);
    let instances =
        sessions.into_iter().flat_map(|client| client.join().expect("no session fails"));
    let instances: BTreeSet<_> = instances.collect();
    for load in [gets, posts] {
        let asked = load.stop();
        let failed: Vec<_> = asked.iter().filter(|asked| !asked.succeeded()).collect();
        assert!(failed.is_empty(), "of {} failed {failed:?}", asked.len());
    }
    // Both processes of each backend had sessions, or the restart was none.
    assert!(instances.len() > usize::from(BACKENDS), "{instances:?}");
}
