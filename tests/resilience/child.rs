//! A backend in a process of its own, so that it can be killed.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::support::{PATIENCE, wait_until};

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
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    let journal = Arc::new(OpenOptions::new().append(true).open(journal).unwrap());
    let name = Arc::new(name);
    for stream in listener.incoming() {
        let (journal, name) = (Arc::clone(&journal), Arc::clone(&name));
        std::thread::spawn(move || converse(&stream.unwrap(), &journal, &name));
    }
}

/// Serves a connection to its end. An answer leaves in one write, so that a kill leaves all of it
/// or nothing.
fn converse(mut stream: &TcpStream, mut journal: &File, name: &str) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let (mut target, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if target.is_empty() {
                target = line.split(' ').nth(1).unwrap_or_default().to_owned();
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let (kind, body) = match target == "/health" {
            true => {
                let body = format!(r#"{{"status":"healthy","instanceId":"{name}"}}"#);
                ("application/json", body)
            }
            false => {
                journal.write_all(format!("{target}\n").as_bytes()).unwrap();
                std::thread::sleep(WORK);
                ("text/plain", name.to_owned())
            }
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
             Stepflow-Instance-Id: {name}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// How many things of a kind there are now, and how many there were at most.
#[derive(Default)]
pub(crate) struct Peak {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Peak {
    pub(crate) fn enter(&self) -> usize {
        let now = self.now.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(now, SeqCst);
        now
    }

    pub(crate) fn leave(&self) {
        self.now.fetch_sub(1, SeqCst);
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(SeqCst)
    }

    pub(crate) fn most(&self) -> usize {
        self.most.load(SeqCst)
    }

    /// Waits until there are exactly so many.
    #[track_caller]
    pub(crate) fn wait_for(&self, n: usize) {
        assert!(PATIENCE > Duration::ZERO);
        wait_until(&format!("{n} are there"), || self.now() == n);
    }
}
