//! A backend of streams, and its account of what its clients did.

#![expect(clippy::disallowed_types, reason = "a backend's thread tells others what it has seen")]

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, tcp::ReadHalf, tcp::WriteHalf},
    sync::oneshot,
    task::LocalSet,
};

use super::{
    event::{Framing, Order},
    now_ns,
};

/// Connections that may wait to be accepted: thousands come at once.
const BACKLOG: u32 = 8192;
/// Octets of a stream that the kernel holds for its backend, as the kernel counts; it takes twice as
/// many. A thousand clients that read nothing are not to take up the machine's memory.
const SEND_BUFFER_OCTETS: usize = 32 * 1024;
/// Longest request, body included. Ours are a few hundred octets.
const REQUEST_OCTETS_MAX: usize = 16 * 1024;
/// Events that are due together leave in writes of about this size.
const WRITE_OCTETS: usize = 16 * 1024;

/// What a backend has seen. Read by other threads while it runs.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    streams: Mutex<BTreeMap<u64, Record>>,
    /// Streams that are open now.
    open: AtomicU64,
}

/// What a backend has seen of one stream, over all connections on which it was asked for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Requests for it.
    pub(crate) requests: u64,
    /// Of these, those whose stream was sent to its end.
    pub(crate) finished: u64,
    /// When the last request for it came.
    pub(crate) asked: Option<Instant>,
    /// When the client last went away before the end.
    pub(crate) left: Option<Instant>,
    /// Octets that the kernel has taken of it so far.
    pub(crate) octets: Arc<AtomicU64>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Record>> {
        self.streams.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Streams that are open now.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// What has been seen of a stream.
    pub(crate) fn of(&self, stream: u64) -> Record {
        self.lock().get(&stream).cloned().unwrap_or_default()
    }

    /// Requests for streams.
    pub(crate) fn requests(&self) -> u64 {
        self.lock().values().map(|record| record.requests).sum()
    }

    /// Octets that the kernel has taken, of all streams.
    pub(crate) fn octets(&self) -> u64 {
        self.lock().values().map(|record| record.octets.load(Relaxed)).sum()
    }
}

/// A backend on a thread of its own. Stops when it is dropped, and breaks what is open then.
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    pub(crate) ledger: Arc<Ledger>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts one on this address, whose port may be 0, under this instance id.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn start(address: SocketAddr, name: &str) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _guard = runtime.enter();
            listen(address)?
        };
        let address = listener.local_addr()?;
        let ledger = Arc::new(Ledger::default());
        let (stop, stopped) = oneshot::channel();
        let (seen, name) = (Arc::clone(&ledger), name.to_owned());
        let serving = move || {
            LocalSet::new().block_on(&runtime, async {
                tokio::select! {
                    () = serve(listener, seen, &name) => {}
                    // That the sender has gone means the same.
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("source".to_owned()).spawn(serving)?;
        Ok(Self { address, ledger, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "a backend panicked");
        }
    }
}

/// Binds an address for [`serve`].
///
/// # Errors
/// The kernel's.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // One that is restarted finds connections of its predecessor in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves streams for ever, on a [`LocalSet`].
pub(crate) async fn serve(listener: TcpListener, ledger: Arc<Ledger>, name: &str) {
    let name: Rc<str> = name.into();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (ledger, name) = (Arc::clone(&ledger), Rc::clone(&name));
                tokio::task::spawn_local(async move {
                    // How a connection ends is the other side's to say: the ledger has it.
                    let _ = converse(stream, &ledger, &name).await;
                });
            }
            // Whoever was to be accepted has gone again, or descriptors have run out for a while.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// A request, as far as it matters here.
struct Request {
    target: String,
    /// What a client that comes back says it has had.
    last_event_id: Option<u64>,
    /// Whether its body, if there is one, says what its target says.
    is_whole: bool,
}

async fn converse(mut stream: TcpStream, ledger: &Ledger, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER_OCTETS)?;
    let (mut receiving, mut sending) = stream.split();
    let mut inbox = Vec::new();
    while let Some(request) = next_request(&mut receiving, &mut inbox).await? {
        match Order::from_target(&request.target) {
            _ if request.target == "/health" => {
                let body = serde_json::json!({"status": "healthy", "instanceId": name});
                answer(&mut sending, "200 OK", &body.to_string()).await?;
            }
            _ if !request.is_whole => answer(&mut sending, "400 Bad Request", "").await?,
            None => answer(&mut sending, "404 Not Found", "").await?,
            Some(order) => {
                let first = request.last_event_id.map_or(0, |last| last + 1);
                let open = Open::begin(ledger, order.stream);
                let sent = tokio::select! {
                    biased;
                    sent = send(&order, first, &mut sending, &open.octets) => sent,
                    gone = receiving.read_u8() => Err(match gone {
                        Ok(_) => io::Error::other("octets behind the request of a stream"),
                        Err(gone) => gone,
                    }),
                };
                open.end(sent.is_ok());
                sent?;
                if order.framing == Framing::Close {
                    return sending.shutdown().await;
                }
            }
        }
    }
    Ok(())
}

/// Reads a request and takes it out of the inbox; nothing if the other side has ended before one
/// began.
async fn next_request(
    receiving: &mut ReadHalf<'_>,
    inbox: &mut Vec<u8>,
) -> io::Result<Option<Request>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    loop {
        let end = inbox.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4);
        if let Some(end) = end {
            let head = std::str::from_utf8(&inbox[..end]).map_err(|_| bad("a head in UTF-8"))?;
            let field = |name: &str| {
                let mut fields = head.lines().filter_map(|line| line.split_once(": "));
                let found = fields.find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.parse::<u64>().map_err(|_| bad(name))).transpose()
            };
            let length = usize::try_from(field("content-length")?.unwrap_or(0)).unwrap_or(0);
            if let Some(body) = inbox.get(end..end + length) {
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let is_whole = length == 0 || body == target.as_bytes();
                let last_event_id = field("last-event-id")?;
                inbox.drain(..end + length);
                return Ok(Some(Request { target, last_event_id, is_whole }));
            }
        }
        if inbox.len() > REQUEST_OCTETS_MAX {
            return Err(bad("a request of ours"));
        }
        if receiving.read_buf(inbox).await? == 0 {
            return if inbox.is_empty() { Ok(None) } else { Err(bad("a whole request")) };
        }
    }
}

async fn answer(sending: &mut WriteHalf<'_>, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    sending.write_all(head.as_bytes()).await
}

/// Counts a stream as open until it is dropped, whatever ends it.
struct Open<'a> {
    ledger: &'a Ledger,
    stream: u64,
    octets: Arc<AtomicU64>,
}

impl<'a> Open<'a> {
    fn begin(ledger: &'a Ledger, stream: u64) -> Self {
        ledger.open.fetch_add(1, Relaxed);
        let mut streams = ledger.lock();
        let record = streams.entry(stream).or_default();
        record.requests += 1;
        record.asked = Some(Instant::now());
        Self { ledger, stream, octets: Arc::clone(&record.octets) }
    }

    fn end(self, is_finished: bool) {
        let mut streams = self.ledger.lock();
        let record = streams.entry(self.stream).or_default();
        if is_finished {
            record.finished += 1;
        } else {
            record.left = Some(Instant::now());
        }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.ledger.open.fetch_sub(1, Relaxed);
    }
}

/// Sends what a client has ordered, from its event `first` on, each when it is due.
async fn send(
    order: &Order,
    first: u64,
    sending: &mut WriteHalf<'_>,
    octets: &AtomicU64,
) -> io::Result<()> {
    let head = match order.framing {
        Framing::Chunked => "Transfer-Encoding: chunked",
        Framing::Close => "Connection: close",
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n\
         {head}\r\n\r\n"
    );
    write(sending, head.as_bytes(), octets).await?;
    let since_ns = match order.since_ns {
        // Streams that begin now take their turns as if all had begun together.
        0 => {
            let period = u64::try_from(order.period.as_nanos()).unwrap_or(u64::MAX).max(1);
            now_ns() / period * period
        }
        since_ns => since_ns,
    };
    let (mut out, mut one) = (Vec::new(), Vec::new());
    let mut event = first;
    while event < order.events {
        let due = order.due_ns(since_ns, event);
        let mut now = now_ns();
        if let Some(early @ 1..) = due.checked_sub(now) {
            tokio::time::sleep(Duration::from_nanos(early)).await;
            // The two clocks need not agree to the nanosecond.
            now = now_ns().max(due);
        }
        out.clear();
        let is_due = |event| event < order.events && order.due_ns(since_ns, event) <= now;
        while is_due(event) && out.len() < WRITE_OCTETS {
            one.clear();
            order.write(event, now, &mut one);
            append(order.framing, &one, &mut out);
            event += 1;
        }
        write(sending, &out, octets).await?;
    }
    if order.framing == Framing::Chunked {
        write(sending, b"0\r\n\r\n", octets).await?;
    }
    Ok(())
}

/// Appends a piece of a body as it is framed.
fn append(framing: Framing, piece: &[u8], out: &mut Vec<u8>) {
    match framing {
        Framing::Chunked => {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Close => out.extend_from_slice(piece),
    }
}

/// Writes all, and counts what the kernel takes as it takes it.
async fn write(sending: &mut WriteHalf<'_>, mut out: &[u8], octets: &AtomicU64) -> io::Result<()> {
    while !out.is_empty() {
        let taken = sending.write(out).await?;
        octets.fetch_add(u64::try_from(taken).expect("a usize is no longer"), Relaxed);
        out = &out[taken..];
    }
    Ok(())
}
