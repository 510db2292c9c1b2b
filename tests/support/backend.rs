//! A backend that the test plays itself, or that follows a script.

#![expect(clippy::disallowed_types, reason = "tests wait for what connections have recorded")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Instant,
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    PATIENCE,
    message::{Framing, Head},
    show,
    wire::{End, Wire},
};

/// How `/health` is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// 200, under this instance id.
    Named(String),
    /// 200, without an instance id.
    Anonymous,
    /// This status, with this body.
    Answer(u16, String),
    /// 503.
    Failing,
    /// Never.
    Silent,
}

/// A listener on a free port of 127.0.0.1. Requests to `/health` from the health checks are
/// answered by the way; all others go to the test, or to the script.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    arrivals: Receiver<Peer>,
    script: Script,
    listening: Option<Listening>,
    // Bound, never listening: keeps the port while the backend is down.
    _reservation: Vec<Socket>,
}

/// What a connection's thread does with a request.
#[derive(Clone)]
enum Script {
    HandOver(Sender<Peer>),
    Follow(Arc<dyn Fn(&mut Peer) + Send + Sync>),
}

struct Listening {
    socket: TcpListener,
    thread: JoinHandle<()>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    health: Health,
    connections: Vec<Seen>,
    requests: usize,
}

#[derive(Default)]
struct Seen {
    octets: Vec<u8>,
    is_probe: bool,
}

impl Backend {
    /// A backend that the test plays: every connection's first request waits in [`Backend::next`].
    pub(crate) fn played() -> Self {
        let (sender, arrivals) = unbounded();
        Self::start(Script::HandOver(sender), arrivals)
    }

    /// A backend that does the same with every request. Closing or breaking the connection ends it;
    /// otherwise the next request on it is awaited.
    pub(crate) fn scripted(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        let (_, arrivals) = unbounded();
        Self::start(Script::Follow(Arc::new(script)), arrivals)
    }

    /// A backend that reads every request to its end and answers with these octets.
    pub(crate) fn answering(octets: impl Into<Vec<u8>>) -> Self {
        let octets = octets.into();
        Self::scripted(move |peer| {
            peer.read_body();
            // The balancer may have gone; the test looks at its other side.
            let _ = peer.try_send(&octets);
        })
    }

    /// A backend that answers every request with `ok`.
    pub(crate) fn fine() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// A backend that answers every request with its own name.
    pub(crate) fn saying(name: &str) -> Self {
        let length = name.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{name}");
        Self::answering(answer).healthy_as(name)
    }

    /// Answers health checks under this instance id.
    pub(crate) fn healthy_as(self, instance: &str) -> Self {
        self.set_health(Health::Named(instance.to_owned()));
        self
    }

    fn start(script: Script, arrivals: Receiver<Peer>) -> Self {
        let (port, reservation) = common_port(&[Ipv4Addr::LOCALHOST]);
        let state = State { health: Health::Anonymous, connections: Vec::new(), requests: 0 };
        let mut backend = Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            shared: Arc::new(Shared { state: state.into(), changed: Condvar::new() }),
            arrivals,
            script,
            listening: None,
            _reservation: reservation,
        };
        backend.listen();
        backend
    }

    /// Accepts connections, again after [`Backend::refuse`].
    pub(crate) fn listen(&mut self) {
        let socket = bound_socket(self.address).expect("the address is ours");
        socket.listen(1024).expect("the port is reserved");
        let socket: TcpListener = socket.into();
        let accepting = socket.try_clone().expect("descriptors are left");
        let (shared, script) = (Arc::clone(&self.shared), self.script.clone());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let (shared, script) = (Arc::clone(&shared), script.clone());
                std::thread::spawn(move || converse(stream, &shared, &script));
            }
        });
        self.listening = Some(Listening { socket, thread });
    }

    /// Connections are refused from here on. Those that are open stay.
    pub(crate) fn refuse(&mut self) {
        if let Some(Listening { socket, thread }) = self.listening.take() {
            // On Linux this ends a blocked accept, which closing would not.
            SockRef::from(&socket).shutdown(std::net::Shutdown::Both).expect("it was listening");
            drop(socket);
            thread.join().expect("accepting does not panic");
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.shared.lock().health = health;
    }

    /// The next connection whose first request has arrived.
    #[track_caller]
    pub(crate) fn next(&self) -> Peer {
        self.arrivals.recv_timeout(PATIENCE).expect("the backend gets a request")
    }

    /// Whether a connection with a request waits to be taken up.
    pub(crate) fn has_next(&self) -> bool {
        !self.arrivals.is_empty()
    }

    /// Every connection of the data path, as the octets received on it.
    pub(crate) fn connections(&self) -> Vec<Vec<u8>> {
        let state = self.shared.lock();
        let of_clients = state.connections.iter().filter(|seen| !seen.is_probe);
        of_clients.map(|seen| seen.octets.clone()).filter(|octets| !octets.is_empty()).collect()
    }

    /// Health checks so far.
    pub(crate) fn probes(&self) -> usize {
        self.shared.lock().connections.iter().filter(|seen| seen.is_probe).count()
    }

    /// Requests on the data path so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.lock().requests
    }

    /// Waits until so many requests have come in on the data path.
    #[track_caller]
    pub(crate) fn wait_for_requests(&self, n: usize) {
        self.shared.wait(&format!("{n} requests have come in"), |state| state.requests >= n);
    }

    /// No octet has come in on the data path.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        // A probe that has just come in may not have been told apart yet.
        let is_probe = |octets: &Vec<u8>| octets.starts_with(b"GET /health HTTP/1.1\r\n");
        let mut connections = self.connections();
        connections.retain(|octets| !is_probe(octets));
        assert!(connections.is_empty(), "the backend got {}", show(&connections.concat()));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.refuse();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    #[track_caller]
    fn wait(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        while !is_so(&state) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain until {what}");
            let woken = self.changed.wait_timeout(state, left);
            state = woken.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}

/// One port that is ours on every one of these addresses for as long as the sockets live. They do
/// not listen, so that whoever is told the port can bind it too, with `SO_REUSEADDR`. A listener
/// that is opened to try a port and closed again may live on for a while, in a child that another
/// thread of this process has just forked.
pub(crate) fn common_port(addresses: &[Ipv4Addr]) -> (u16, Vec<Socket>) {
    for _ in 0..100 {
        let mut sockets = Vec::new();
        let mut port = 0;
        for &address in addresses {
            let Ok(socket) = bound_socket((address, port).into()) else { break };
            let bound = socket.local_addr().ok().and_then(|address| address.as_socket());
            port = bound.expect("a bound socket has an address").port();
            sockets.push(socket);
        }
        if sockets.len() == addresses.len() {
            return (port, sockets);
        }
    }
    panic!("no port is free on all of {addresses:?}");
}

fn bound_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn converse(stream: TcpStream, shared: &Arc<Shared>, script: &Script) {
    let index = {
        let mut state = shared.lock();
        state.connections.push(Seen::default());
        state.connections.len() - 1
    };
    let recorder = Arc::clone(shared);
    let mut wire = Wire::new(stream).shown_to(Box::new(move |octets| {
        recorder.lock().connections[index].octets.extend_from_slice(octets);
    }));
    while wire.is_open() {
        let Ok(head) = wire.head_or_end() else { return };
        if is_probe(&head) {
            let health = {
                let mut state = shared.lock();
                state.connections[index].is_probe = true;
                state.health.clone()
            };
            answer_probe(&mut wire, &health);
            continue;
        }
        let mut peer = Peer { wire, head, connection: index };
        shared.lock().requests += 1;
        match script {
            Script::HandOver(sender) => {
                // The test has ended if it takes no more.
                let _ = sender.send(peer);
                shared.changed.notify_all();
                return;
            }
            Script::Follow(script) => {
                shared.changed.notify_all();
                script(&mut peer);
                wire = peer.wire;
            }
        }
    }
}

fn is_probe(head: &Head) -> bool {
    let agent = head.all("user-agent");
    agent.iter().any(|agent| agent.starts_with("stepflow-load-balancer/"))
}

fn answer_probe(wire: &mut Wire, health: &Health) {
    let (status, body) = match health {
        Health::Named(instance) => {
            ("200 OK", format!(r#"{{"status":"healthy","instanceId":"{instance}"}}"#))
        }
        Health::Anonymous => ("200 OK", r#"{"status":"healthy"}"#.to_owned()),
        Health::Answer(status, body) => {
            let length = body.len();
            let head = format!("HTTP/1.1 {status} So\r\nContent-Length: {length}\r\n\r\n");
            let _ = wire.try_send(head + body);
            return;
        }
        Health::Failing => ("503 Service Unavailable", r#"{"status":"unhealthy"}"#.to_owned()),
        Health::Silent => return,
    };
    let length = body.len();
    // A balancer that shuts down does not wait for its last probe.
    let _ = wire.try_send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"));
}

/// The balancer's connection to a backend, with the head of the request that came on it.
pub(crate) struct Peer {
    wire: Wire,
    pub(crate) head: Head,
    /// Number of the connection, over all that the backend has accepted.
    pub(crate) connection: usize,
}

impl Peer {
    /// The content of the request's body, and its trailers.
    pub(crate) fn read_body(&mut self) -> (Vec<u8>, Vec<u8>) {
        let framing = self.head.framing().unwrap_or(Framing::Length(0));
        self.wire.body(framing)
    }

    /// Waits for the next request on the same connection.
    pub(crate) fn next_request(&mut self) -> &Head {
        self.head = self.wire.head();
        &self.head
    }

    /// Reads until the balancer has closed this connection or ended sending; gives what came.
    pub(crate) fn until_gone(&mut self) -> (Vec<u8>, End) {
        self.wire.rest()
    }

    /// Waits, for as long as it takes, until the balancer has closed or broken this connection.
    pub(crate) fn wait_for_end(&mut self) {
        self.wire.drain();
    }

    /// Answers with this body.
    pub(crate) fn answer(&mut self, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let mut octets =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        octets.extend_from_slice(body);
        self.wire.send(octets);
    }
}

impl Deref for Peer {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.wire
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.wire
    }
}
