//! One end of a connection that does exactly what it is told, and the client made of it.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    ops::{Deref, DerefMut},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use socket2::SockRef;

use super::{
    PATIENCE,
    message::{Framing, Head},
    show, wait_until,
};

/// How the other side ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It will send no more.
    Closed,
    /// It broke the connection.
    Reset,
}

/// Is shown everything that is received.
pub(crate) type Witness = Box<dyn FnMut(&[u8]) + Send>;

/// One end of a connection.
pub(crate) struct Wire {
    stream: Option<TcpStream>,
    inbox: Vec<u8>,
    witness: Option<Witness>,
}

/// A complete response.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// The trailer section, without the empty line.
    pub(crate) trailers: Vec<u8>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an open socket takes options");
        stream.set_write_timeout(Some(PATIENCE)).expect("an open socket takes options");
        Self { stream: Some(stream), inbox: Vec::new(), witness: None }
    }

    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect_timeout(&address, PATIENCE).expect("the balancer accepts"))
    }

    pub(crate) fn shown_to(mut self, witness: Witness) -> Self {
        self.witness = Some(witness);
        self
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.stream.as_ref().expect("the test has not closed this side")
    }

    pub(crate) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Sends all of it.
    pub(crate) fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.try_send(octets).expect("the other side takes what is sent");
    }

    /// Sends all of it, to somebody who may be gone.
    pub(crate) fn try_send(&mut self, octets: impl AsRef<[u8]>) -> io::Result<()> {
        let mut stream = self.stream();
        stream.write_all(octets.as_ref())
    }

    /// Ends sending; receiving goes on.
    pub(crate) fn finish_sending(&mut self) {
        self.stream().shutdown(Shutdown::Write).expect("the other side is there");
    }

    /// Waits until the other side's kernel has all that was sent, the end included: from then on
    /// whoever looks at the connection sees it.
    pub(crate) fn wait_until_received(&self) {
        wait_until("everything sent has been received", || self.is_received());
    }

    /// Whether that is so. Asked of the socket: `/proc/net/tcp` would tell it too, and takes a
    /// tenth of a second to read where tests have left ten thousands of connections behind.
    #[expect(unsafe_code, reason = "no safe interface to it is among the dependencies")]
    pub(crate) fn is_received(&self) -> bool {
        let mut octets: libc::c_int = 0;
        let descriptor = self.stream().as_raw_fd();
        // SAFETY: the descriptor is open while `self` is borrowed, and `TIOCOUTQ` writes one
        // `c_int` to where it is pointed.
        let result = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut octets) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        octets == 0
    }

    /// Waits until something has arrived, and leaves it where it is.
    pub(crate) fn wait_until_something_arrives(&self) {
        self.stream().set_read_timeout(Some(PATIENCE)).expect("an open socket takes options");
        let arrived = self.stream().peek(&mut [0; 1]).expect("something arrives");
        assert_eq!(arrived, 1, "the other side ended");
    }

    /// Closes both directions.
    pub(crate) fn close(&mut self) {
        self.stream = None;
    }

    /// Breaks the connection with a RST.
    pub(crate) fn reset(&mut self) {
        let linger = SockRef::from(self.stream()).set_linger(Some(Duration::ZERO));
        linger.expect("an open socket takes options");
        self.stream = None;
    }

    /// Receives something before the deadline; without one, whenever it comes.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<(), End> {
        let mut buffer = [0; 16 * 1024];
        let wait = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let wait = wait.map(|wait| wait.max(Duration::from_millis(1)));
        self.stream().set_read_timeout(wait).expect("an open socket takes options");
        let mut stream = self.stream();
        match stream.read(&mut buffer) {
            Ok(0) => Err(End::Closed),
            Ok(n) => {
                if let Some(witness) = &mut self.witness {
                    witness(&buffer[..n]);
                }
                self.inbox.extend_from_slice(&buffer[..n]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                panic!("nothing arrived; waiting behind {}", show(&self.inbox))
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(_) => Err(End::Reset),
        }
    }

    /// Receives until `found` gives the length of what is wanted, and takes that from the front.
    fn take_when(
        &mut self,
        deadline: Option<Instant>,
        mut found: impl FnMut(&[u8]) -> Option<usize>,
    ) -> Result<Vec<u8>, End> {
        loop {
            if let Some(n) = found(&self.inbox) {
                let rest = self.inbox.split_off(n);
                return Ok(std::mem::replace(&mut self.inbox, rest));
            }
            self.receive(deadline)?;
        }
    }

    fn take_by(&mut self, found: impl FnMut(&[u8]) -> Option<usize>) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        self.take_when(Some(deadline), found).unwrap_or_else(|end| {
            panic!("the other side ended ({end:?}) behind {}", show(&self.inbox))
        })
    }

    /// The next `n` octets.
    pub(crate) fn take(&mut self, n: usize) -> Vec<u8> {
        self.take_by(|inbox| (inbox.len() >= n).then_some(n))
    }

    /// Everything up to and with `end`.
    pub(crate) fn take_through(&mut self, end: impl AsRef<[u8]>) -> Vec<u8> {
        let end = end.as_ref();
        let mut searched = 0;
        self.take_by(|inbox| {
            let from = searched;
            searched = inbox.len().saturating_sub(end.len() - 1);
            let tail = inbox.get(from..)?;
            tail.windows(end.len()).position(|w| w == end).map(|at| from + at + end.len())
        })
    }

    /// Whatever has arrived or arrives next: at least one octet.
    pub(crate) fn take_some(&mut self) -> Vec<u8> {
        self.take_by(|inbox| (!inbox.is_empty()).then_some(inbox.len()))
    }

    /// The next head, or how the other side ended instead. Without a deadline.
    pub(crate) fn head_or_end(&mut self) -> Result<Head, End> {
        self.take_when(None, end_of_head).map(checked)
    }

    /// The next head.
    pub(crate) fn head(&mut self) -> Head {
        checked(self.take_by(end_of_head))
    }

    /// The body that a head announces. `UntilClose` where it announces none is the caller's say.
    pub(crate) fn body(&mut self, framing: Framing) -> (Vec<u8>, Vec<u8>) {
        match framing {
            Framing::Length(n) => (self.take(n), Vec::new()),
            Framing::Chunked => self.chunks(),
            Framing::UntilClose => {
                let (octets, end) = self.rest();
                assert_eq!(end, End::Closed, "cut behind {}", show(&octets));
                (octets, Vec::new())
            }
        }
    }

    fn chunks(&mut self) -> (Vec<u8>, Vec<u8>) {
        let mut content = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                break;
            }
            content.extend_from_slice(&chunk);
        }
        let mut trailers = Vec::new();
        loop {
            let line = self.take_through("\r\n");
            if line == b"\r\n" {
                return (content, trailers);
            }
            trailers.extend_from_slice(&line);
        }
    }

    /// The content of the next chunk; nothing for the last, whose trailers are still to come.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let line = self.take_through("\r\n");
        let digits = line.split(|b| matches!(b, b';' | b'\r')).next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).expect("a chunk size is text");
        let size = usize::from_str_radix(digits, 16);
        let size = size.unwrap_or_else(|_| panic!("no chunk size: {}", show(&line)));
        if size == 0 {
            return Vec::new();
        }
        let content = self.take(size);
        assert_eq!(self.take(2), b"\r\n", "a chunk ends in CRLF");
        content
    }

    /// Everything until the other side ends, and how it does.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, End) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Err(end) = self.receive(Some(deadline)) {
                return (std::mem::take(&mut self.inbox), end);
            }
        }
    }

    /// Takes whatever comes until the other side ends. Without a deadline.
    pub(crate) fn drain(&mut self) {
        while self.receive(None).is_ok() {
            self.inbox.clear();
        }
    }

    /// The other side ends without another octet.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) -> End {
        let (rest, end) = self.rest();
        assert!(rest.is_empty(), "instead of the end came {}", show(&rest));
        end
    }

    /// Nothing arrives for a moment, and the other side stays. For what must not happen.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self, moment: Duration) {
        self.stream().set_read_timeout(Some(moment)).expect("an open socket takes options");
        let mut stream = self.stream();
        let mut octet = [0; 1];
        match stream.read(&mut octet) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => panic!("instead of silence came {other:?} {}", show(&octet)),
        }
    }

    /// A response to a request with this method.
    pub(crate) fn response_to(&mut self, method: &str) -> Response {
        let head = self.head();
        let status = head.status();
        assert!(status >= 200, "an interim response where a final one was wanted: {head:?}");
        let framing = match head.framing() {
            _ if method == "HEAD" || matches!(status, 204 | 304) => Framing::Length(0),
            Some(framing) => framing,
            None => Framing::UntilClose,
        };
        let (body, trailers) = self.body(framing);
        Response { head, body, trailers }
    }

    /// A response to anything but HEAD.
    pub(crate) fn response(&mut self) -> Response {
        self.response_to("GET")
    }
}

fn checked(octets: Vec<u8>) -> Head {
    let head = Head::new(octets);
    head.expect_date();
    head
}

fn end_of_head(inbox: &[u8]) -> Option<usize> {
    inbox.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

impl Response {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    /// The body, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is text")
    }

    /// The body, as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The label of the failure that the balancer answers with.
    pub(crate) fn label(&self) -> String {
        match self.head.field("content-type").as_deref() {
            Some("application/json") => {
                let json = self.json();
                json["error"]["data"]["label"].as_str().expect("a label").to_owned()
            }
            _ => self.text().split(':').next().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}{}", self.head, show(&self.body))
    }
}

/// A client of the balancer.
pub(crate) struct Client(Wire);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self(Wire::connect(address))
    }

    /// From this address of ours.
    pub(crate) fn connect_from(from: std::net::IpAddr, address: SocketAddr) -> Self {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None);
        let socket = socket.expect("descriptors are left");
        socket.bind(&SocketAddr::new(from, 0).into()).expect("the address is ours");
        socket.connect(&address.into()).expect("somebody listens");
        Self(Wire::new(socket.into()))
    }

    /// Sends a request, and reads the response to it.
    pub(crate) fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        let request = request.as_ref();
        self.send(request);
        let method = request.split(|b| *b == b' ').next().unwrap_or_default();
        self.response_to(&String::from_utf8_lossy(method))
    }

    /// `GET target`, with field lines in between.
    pub(crate) fn get(&mut self, target: &str) -> Response {
        self.ask(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }
}

impl Deref for Client {
    type Target = Wire;

    fn deref(&self) -> &Wire {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Wire {
        &mut self.0
    }
}
