//! Backends that do what the request tells them, however bad, and that die and come back.

use std::{
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    inbox::Inbox,
    plan::{Answer, Plan, Rng, STRAY, event, event_chunk},
    support::message::{Framing, Head, chunk, chunked},
    world::{World, lock},
};

/// How health checks are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Fine,
    Failing,
    Garbage,
}

/// Whose name a backend answers under when it accepts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Process {
    /// One that it has not had before: it was restarted.
    Another,
    /// The old one: it was only out of reach.
    Same,
}

/// One backend. Its address stays; its process, so to speak, comes and goes.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// Keeps the address ours between two processes.
    _reservation: Socket,
    state: Mutex<State>,
    /// Connections that are open.
    open: AtomicUsize,
}

struct State {
    generation: usize,
    health: Health,
    /// Whether DNS names it.
    is_listed: bool,
    /// When any of this last changed.
    changed: Instant,
    listening: Option<Listening>,
    connections: Vec<Weak<TcpStream>>,
}

struct Listening {
    socket: TcpListener,
    thread: JoinHandle<()>,
}

impl Backend {
    pub(crate) fn at(reservation: Socket) -> Self {
        let address = reservation.local_addr().ok().and_then(|address| address.as_socket());
        let address = address.expect("a bound socket has an address");
        let state = State {
            generation: 0,
            health: Health::Fine,
            is_listed: true,
            changed: Instant::now(),
            listening: None,
            connections: Vec::new(),
        };
        Self { address, _reservation: reservation, state: state.into(), open: AtomicUsize::new(0) }
    }

    /// Its name for as long as it is not restarted.
    pub(crate) fn instance(&self) -> String {
        let SocketAddr::V4(address) = self.address else { unreachable!("it is on 127.0.0.0/8") };
        format!("soak-{}-{}", address.ip().octets()[3], lock(&self.state).generation)
    }

    pub(crate) fn open_connections(&self) -> usize {
        self.open.load(SeqCst)
    }

    pub(crate) fn is_listed(&self) -> bool {
        lock(&self.state).is_listed
    }

    /// Whether a balancer has had time to learn all there is to know about it since it changed.
    pub(crate) fn is_settled(&self) -> bool {
        let state = lock(&self.state);
        let is_there = state.listening.is_some() && state.is_listed;
        is_there && state.changed.elapsed() > Duration::from_secs(4)
    }

    pub(crate) fn has_changed_since(&self, then: Instant) -> bool {
        lock(&self.state).changed > then
    }

    pub(crate) fn set_listed(&self, is_listed: bool) {
        let mut state = lock(&self.state);
        state.is_listed = is_listed;
        state.changed = Instant::now();
    }

    pub(crate) fn set_health(&self, health: Health) {
        lock(&self.state).health = health;
    }

    /// Accepts connections.
    pub(crate) fn start(&self, world: &Arc<World>, index: usize, process: Process) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("descriptors are left");
        socket.set_reuse_address(true).expect("a socket takes options");
        socket.bind(&self.address.into()).expect("the address is ours");
        socket.listen(1024).expect("it is bound");
        let socket: TcpListener = socket.into();
        let accepting = socket.try_clone().expect("descriptors are left");
        let world = Arc::clone(world);
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let (world, stream) = (Arc::clone(&world), Arc::new(stream));
                world.backends[index].remember(&stream);
                std::thread::spawn(move || {
                    let backend = &world.backends[index];
                    backend.open.fetch_add(1, SeqCst);
                    // A connection that was reset in the queue takes no options.
                    if let Ok(inbox) = Inbox::new(stream) {
                        Conversation { world: &world, backend, inbox }.run();
                    }
                    backend.open.fetch_sub(1, SeqCst);
                });
            }
        });
        let mut state = lock(&self.state);
        if process == Process::Another {
            state.generation += 1;
        }
        state.changed = Instant::now();
        state.health = Health::Fine;
        state.listening = Some(Listening { socket, thread });
    }

    fn remember(&self, stream: &Arc<TcpStream>) {
        let mut state = lock(&self.state);
        state.connections.retain(|stream| stream.strong_count() > 0);
        state.connections.push(Arc::downgrade(stream));
    }

    /// Connections are refused from here on; those that are open stay.
    pub(crate) fn refuse(&self) {
        let listening = {
            let mut state = lock(&self.state);
            state.changed = Instant::now();
            state.listening.take()
        };
        if let Some(Listening { socket, thread }) = listening {
            // On Linux this ends a blocked accept, which closing would not.
            SockRef::from(&socket).shutdown(Shutdown::Both).expect("it was listening");
            drop(socket);
            thread.join().expect("accepting does not panic");
        }
    }

    /// Refuses connections, and ends those that are open wherever they are.
    pub(crate) fn kill(&self) {
        self.refuse();
        let connections = std::mem::take(&mut lock(&self.state).connections);
        for stream in connections.iter().filter_map(Weak::upgrade) {
            // Its thread may have closed it already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

struct Conversation<'a> {
    world: &'a World,
    backend: &'a Backend,
    inbox: Inbox,
}

/// What becomes of the connection after an answer.
enum Then {
    Keep,
    Close,
    Reset,
}

impl Conversation<'_> {
    fn run(mut self) {
        loop {
            let head = match self.inbox.head(None) {
                Ok(head) => head,
                Err((octets, _)) if octets.is_empty() => return,
                // The balancer has given up in the middle of a write, or was told to.
                Err(_) => return self.world.count("backends: heads cut"),
            };
            let then = match self.is_probe(&head) {
                true => self.answer_probe(),
                false => self.serve(&head),
            };
            match then {
                Then::Keep => {}
                Then::Close => return,
                Then::Reset => return self.inbox.reset(),
            }
        }
    }

    fn is_probe(&self, head: &Head) -> bool {
        head.target() == "/health"
    }

    fn answer_probe(&self) -> Then {
        let health = lock(&self.backend.state).health;
        let instance = self.backend.instance();
        let (status, body) = match health {
            Health::Fine => {
                ("200 OK", format!(r#"{{"status":"healthy","instanceId":"{instance}"}}"#))
            }
            Health::Failing => ("503 Service Unavailable", r#"{"status":"unhealthy"}"#.to_owned()),
            Health::Garbage => ("2OO", "\0\0".to_owned()),
        };
        let length = body.len();
        self.send(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"));
        Then::Keep
    }

    /// The balancer may have gone: the next read tells.
    fn send(&self, octets: impl AsRef<[u8]>) -> bool {
        self.inbox.send(octets).is_ok()
    }

    fn serve(&mut self, head: &Head) -> Then {
        let (method, target) = (head.method(), head.target());
        let Some(plan) = Plan::from_target(&method, &target) else {
            self.world.violation(&format!("a backend got what nobody had sent: {head:?}"));
            return Then::Close;
        };
        let times = self.world.delivered(plan.id);
        // One that may be repeated is, if a reused connection ends under it and then a new one.
        let most = if method == "POST" { 1 } else { 3 };
        if times > most {
            self.world.violation(&format!("{plan:?} was delivered {times} times"));
        }
        let is_ours =
            head.all("x-soak-id") == [plan.id.to_string()] && head.all("host") == ["soak"];
        if !is_ours {
            self.world.violation(&format!("{plan:?} was changed: {head:?}"));
        }
        let mut rng = Rng::new(self.world.seed, plan.id);
        match plan.answer {
            Answer::EarlyPolite => {
                self.send(whole(&plan, &self.backend.instance(), "Connection: close\r\n"));
                self.inbox.finish_sending();
                self.inbox.drain();
                return Then::Close;
            }
            Answer::EarlyReset => {
                self.send(whole(&plan, &self.backend.instance(), ""));
                return Then::Reset;
            }
            Answer::ResetBeforeHead if rng.percent(50) => return Then::Reset,
            Answer::CloseBeforeHead if rng.percent(50) => return Then::Close,
            _ => {}
        }
        if head.has("expect") {
            self.send("HTTP/1.1 100 Continue\r\n\r\n");
        }
        let framing = head.framing().unwrap_or(Framing::Length(0));
        match self.inbox.body(framing) {
            Ok(content) if content == plan.upload_content() => {}
            Ok(content) => {
                let octets = content.len();
                let what = format!("{plan:?} came with another body of {octets} octets");
                self.world.violation(&what);
            }
            Err(_) => {
                self.world.count("backends: uploads cut");
                return Then::Close;
            }
        }
        self.answer(&plan, &mut rng)
    }

    fn answer(&mut self, plan: &Plan, rng: &mut Rng) -> Then {
        let instance = self.backend.instance();
        let body = plan.response_body();
        let cut = &body[..plan.cut.min(body.len())];
        let head = |fields: &str| head(plan, &instance, fields);
        let length = format!("Content-Length: {}\r\n", body.len());
        let events = "Content-Type: text/event-stream\r\n";
        let chunks = "Transfer-Encoding: chunked\r\n";
        match plan.answer {
            Answer::Length | Answer::CloseUnannounced => {
                if rng.percent(50) || plan.method == "HEAD" {
                    self.send(whole(plan, &instance, ""));
                } else {
                    self.send(head(&length));
                    self.send(&body);
                }
                if plan.answer == Answer::Length { Then::Keep } else { Then::Close }
            }
            Answer::CloseAnnounced => {
                self.send(whole(plan, &instance, "Connection: close\r\n"));
                Then::Close
            }
            Answer::Stray => {
                self.send([&whole(plan, &instance, "")[..], STRAY].concat());
                Then::Keep
            }
            Answer::Interim => {
                self.send("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n");
                self.send(whole(plan, &instance, ""));
                Then::Keep
            }
            Answer::NoContent | Answer::NotModified => {
                self.send(head(""));
                Then::Keep
            }
            Answer::Dribble => {
                self.send(head(&length));
                for octet in body {
                    std::thread::sleep(Duration::from_millis(rng.next() % 5));
                    self.send([octet]);
                }
                Then::Keep
            }
            Answer::Chunked => {
                self.send(head(chunks));
                if plan.method != "HEAD" {
                    self.send(chunked(&body, rng.between(1, 20_000).max(body.len() / 64 + 1)));
                }
                Then::Keep
            }
            Answer::UntilClose => {
                self.send(head("Connection: close\r\n"));
                self.send(body);
                Then::Close
            }
            Answer::Old => {
                let old = head("").replacen("HTTP/1.1", "HTTP/1.0", 1);
                self.send(old);
                self.send(body);
                Then::Close
            }
            Answer::Events | Answer::EventsUntilClose => {
                let has_chunks = plan.answer == Answer::Events;
                self.send(head(&format!("{events}{}", if has_chunks { chunks } else { "" })));
                for number in 0..plan.size {
                    if rng.percent(30) {
                        std::thread::sleep(Duration::from_millis(rng.next() % 20));
                    }
                    match has_chunks {
                        true => self.send(event_chunk(plan.id, number)),
                        false => self.send(event(plan.id, number)),
                    };
                }
                if !has_chunks {
                    return Then::Close;
                }
                self.send("0\r\n\r\n");
                Then::Keep
            }
            Answer::Endless => {
                self.send(head(&format!("{events}{chunks}")));
                let mut number = 0;
                while self.send(event_chunk(plan.id, number)) {
                    if !self.inbox.drain_for(Duration::from_millis(20)) {
                        break;
                    }
                    number += 1;
                }
                Then::Close
            }
            Answer::Tunnel => {
                self.send(head("Connection: upgrade\r\nUpgrade: soak\r\n"));
                while let Ok(octets) = self.inbox.some() {
                    self.send(octets);
                }
                Then::Close
            }
            Answer::ResetBeforeHead => Then::Reset,
            Answer::CloseBeforeHead => Then::Close,
            Answer::HalfCloseBeforeHead => {
                self.inbox.finish_sending();
                self.inbox.drain();
                Then::Close
            }
            Answer::Garbage => {
                self.send(rng.pick(GARBAGE));
                Then::Close
            }
            Answer::TwoLengths => {
                self.send(head(&format!("{length}Content-Length: {}\r\n", body.len() + 1)));
                self.send(body);
                Then::Close
            }
            Answer::HugeHead => {
                self.send(head(&format!("X-Huge: {}\r\n{length}", "x".repeat(70 * 1024))));
                Then::Close
            }
            Answer::UnaskedUpgrade => {
                self.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                );
                self.inbox.drain();
                Then::Close
            }
            Answer::StallHead => {
                self.inbox.drain();
                Then::Close
            }
            Answer::CutLength | Answer::ResetLength | Answer::StallBody => {
                self.send(head(&length));
                self.send(cut);
                match plan.answer {
                    Answer::CutLength => return Then::Close,
                    Answer::ResetLength => return Then::Reset,
                    _ => self.inbox.drain(),
                }
                Then::Close
            }
            Answer::CutChunked | Answer::ResetChunked | Answer::BadChunk | Answer::CutEvents => {
                let kind = if plan.answer == Answer::CutEvents { events } else { "" };
                self.send(head(&format!("{kind}{chunks}")));
                if !cut.is_empty() {
                    self.send(chunk(cut));
                }
                match plan.answer {
                    Answer::ResetChunked => return Then::Reset,
                    Answer::BadChunk => {
                        self.send(rng.pick(BAD_CHUNKS));
                    }
                    _ => {}
                }
                Then::Close
            }
            Answer::EarlyPolite | Answer::EarlyReset => unreachable!("they come before the body"),
        }
    }
}

/// Heads that no reader may make sense of.
const GARBAGE: &[&str] = &[
    "\0\x01\x02\x03\r\n\r\n",
    "ICY 200 OK\r\n\r\n",
    "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
];

/// What is no chunk.
const BAD_CHUNKS: &[&str] =
    &["zz\r\n", "-1\r\n", "0x1\r\nz\r\n", "1\nz\r\n", "1\r\nzz\r\n", "\r\n"];

fn head(plan: &Plan, instance: &str, fields: &str) -> String {
    let (status, id) = (plan.status(), plan.id);
    format!(
        "HTTP/1.1 {status} Soak\r\nX-Soak-Id: {id}\r\nStepflow-Instance-Id: {instance}\r\n{fields}\r\n"
    )
}

/// A response with a length, in one piece.
fn whole(plan: &Plan, instance: &str, fields: &str) -> Vec<u8> {
    let body = plan.response_body();
    let length = format!("{fields}Content-Length: {}\r\n", body.len());
    let mut octets = head(plan, instance, &length).into_bytes();
    if plan.method != "HEAD" {
        octets.extend_from_slice(&body);
    }
    octets
}
