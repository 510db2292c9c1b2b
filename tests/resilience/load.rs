//! Clients that ask as fast as they are answered, and what became of each request.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::support::PATIENCE;

/// One request that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) target: String,
    /// Status, and body as text; `None` when the connection ended instead.
    pub(crate) answer: Option<(u16, String)>,
}

impl Asked {
    pub(crate) fn succeeded(&self) -> bool {
        matches!(self.answer, Some((200, _)))
    }
}

/// Clients at work.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Asked>>>,
}

impl Load {
    /// So many clients, each on one connection for as long as it lasts. `fields` are those of every
    /// request of a client, by its number.
    pub(crate) fn start(
        address: SocketAddr,
        clients: usize,
        method: &'static str,
        fields: impl Fn(usize) -> String,
    ) -> Self {
        let (stop, answered) = (Arc::default(), Arc::default());
        let ask = |client: usize| {
            let (stop, answered): (Arc<AtomicBool>, Arc<AtomicUsize>) =
                (Arc::clone(&stop), Arc::clone(&answered));
            let fields = fields(client);
            std::thread::spawn(move || {
                let mut asked = Vec::new();
                let mut connection = None;
                while !stop.load(SeqCst) {
                    let target = format!("/{client}/{}", asked.len());
                    let request = format!(
                        "{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n{fields}\r\n"
                    );
                    let answer = ask(&mut connection, address, &request);
                    asked.push(Asked { target, answer });
                    answered.fetch_add(1, SeqCst);
                }
                asked
            })
        };
        let clients = (0..clients).map(ask).collect();
        Self { stop, answered, clients }
    }

    /// Waits until so many more requests have ended.
    #[track_caller]
    pub(crate) fn wait_for_more(&self, n: usize) {
        let want = self.answered.load(SeqCst) + n;
        // Many hundreds of them take longer on a busy machine than anything else does.
        let deadline = Instant::now() + 6 * PATIENCE;
        while self.answered.load(SeqCst) < want {
            assert!(Instant::now() < deadline, "waited in vain until {n} more have ended");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Everything that was asked.
    pub(crate) fn stop(self) -> Vec<Asked> {
        self.stop.store(true, SeqCst);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn ask(
    connection: &mut Option<TcpStream>,
    address: SocketAddr,
    request: &str,
) -> Option<(u16, String)> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).expect("the balancer accepts");
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        }
    };
    stream.write_all(request.as_bytes()).ok()?;
    let mut octets = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).ok().filter(|n| *n > 0)?;
        octets.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&octets);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let lower = head.to_ascii_lowercase();
        let (_, length) = lower.split_once("content-length: ").expect("every answer has one");
        let length: usize = length.lines().next().unwrap().parse().unwrap();
        if body.len() < length {
            continue;
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if !lower.contains("connection: close") {
            *connection = Some(stream);
        }
        return Some((status, body.to_owned()));
    }
}
