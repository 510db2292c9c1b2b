//! A backend in a process of its own, so that it can be killed.

#![expect(clippy::disallowed_types, reason = "streams wait for what other connections say")]

use std::{
    collections::HashSet,
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

/// Says that this process is a backend: its name, and where it writes what it has executed.
pub(crate) const ROLE: &str = "RESILIENCE_TEST_BACKEND";

/// How long a request is at work, so that some are whenever it is killed.
const WORK: Duration = Duration::from_millis(2);

/// A running backend. Killed when it is dropped.
pub(crate) struct Backend {
    child: Child,
    pub(crate) address: SocketAddr,
    journal: PathBuf,
}

impl Backend {
    /// Starts one on this address, whose port may be 0.
    pub(crate) fn start(name: &str, address: &str) -> Self {
        let journal = std::env::temp_dir().join(format!("{name}-{}.log", std::process::id()));
        File::create(&journal).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child::serves_when_it_is_told_to", "--nocapture"])
            .env(ROLE, format!("{name}|{address}|{}", journal.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.map_while(Result::ok).find_map(|line| {
            line.split_once("listening on ").map(|(_, address)| address.parse().unwrap())
        });
        Self { child, address: said.expect("the backend listens"), journal }
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What has been executed, by the targets of the requests, in order.
    pub(crate) fn executed(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.journal).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.journal);
    }
}

/// No test when it is run as one.
#[test]
fn serves_when_it_is_told_to() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split('|');
    let mut next = || words.next().unwrap().to_owned();
    let (name, address, journal) = (next(), next(), next());
    let listener = TcpListener::bind(address).unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    // Whoever started it holds the other end: it ends with the test, however that ends.
    std::thread::spawn(|| {
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let journal = OpenOptions::new().append(true).open(journal).unwrap();
    let server =
        Arc::new(Server { name, journal, streams: Mutex::default(), ended: Condvar::new() });
    for stream in listener.incoming() {
        let server = Arc::clone(&server);
        std::thread::spawn(move || server.converse(&stream.unwrap()));
    }
}

/// What the connections of a backend share.
struct Server {
    name: String,
    journal: File,
    /// Names of the streams that are open.
    streams: Mutex<HashSet<String>>,
    ended: Condvar,
}

impl Server {
    /// Serves a connection to its end. An answer leaves in one write, so that a kill leaves all of
    /// it or nothing.
    fn converse(&self, stream: &TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut reader = BufReader::new(stream);
        while let Some(target) = read_request(&mut reader) {
            let answered = match target.split('/').collect::<Vec<_>>()[..] {
                ["", "health"] => {
                    let name = &self.name;
                    let body = format!(r#"{{"status":"healthy","instanceId":"{name}"}}"#);
                    self.answer(stream, 200, &body)
                }
                ["", "stream", session] => self.stream(stream, session),
                ["", "call", session] => {
                    let is_here = self.streams.lock().unwrap().contains(session);
                    self.answer(stream, if is_here { 200 } else { 404 }, &self.name)
                }
                ["", "end", session] => {
                    let was_here = self.streams.lock().unwrap().remove(session);
                    self.ended.notify_all();
                    self.answer(stream, if was_here { 200 } else { 404 }, &self.name)
                }
                _ => {
                    (&self.journal).write_all(format!("{target}\n").as_bytes()).unwrap();
                    std::thread::sleep(WORK);
                    self.answer(stream, 200, &self.name)
                }
            };
            if answered.is_err() {
                return;
            }
        }
    }

    fn answer(&self, mut stream: &TcpStream, status: u16, body: &str) -> io::Result<()> {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nStepflow-Instance-Id: {}\r\n\r\n{body}",
            body.len(),
            self.name
        );
        stream.write_all(answer.as_bytes())
    }

    /// An event stream that lasts until somebody ends it.
    fn stream(&self, mut stream: &TcpStream, session: &str) -> io::Result<()> {
        self.streams.lock().unwrap().insert(session.to_owned());
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
             Stepflow-Instance-Id: {}\r\n\r\nd\r\ndata: begun\n\n\r\n",
            self.name
        );
        stream.write_all(head.as_bytes())?;
        let open = self.streams.lock().unwrap();
        let is_open = |streams: &mut HashSet<String>| streams.contains(session);
        drop(self.ended.wait_while(open, is_open).unwrap());
        stream.write_all(b"d\r\ndata: ended\n\n\r\n0\r\n\r\n")
    }
}

/// Reads a request to its end; gives its target.
fn read_request(reader: &mut BufReader<&TcpStream>) -> Option<String> {
    let (mut target, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return None;
        }
        if target.is_empty() {
            target = line.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some(target)
}

/// How many things of a kind there are now, and how many there were at most.
#[derive(Default)]
pub(crate) struct Peak {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Peak {
    pub(crate) fn enter(&self) {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.now.fetch_sub(1, SeqCst);
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}
