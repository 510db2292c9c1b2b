//! A client that reads one stream on one connection and checks every octet.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use super::{
    event::Order,
    reader::{Item, Malformed, Reader},
};

/// How a stream is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// As `EventSource` does: such a stream can be asked for again.
    Get,
    /// As one asks for an answer that streams; the body says what the target says.
    Post,
}

/// What a client knows of a stream, over all its connections.
#[derive(Clone, Debug)]
pub(crate) struct Position {
    pub(crate) order: Order,
    /// The event that comes next.
    pub(crate) next: u64,
    /// How long the stream says to wait before connecting again, in milliseconds.
    pub(crate) retry_ms: Option<u64>,
    scratch: Vec<u8>,
}

/// One connection of a client.
#[derive(Debug)]
pub(crate) struct Visit {
    stream: TcpStream,
    reader: Reader,
}

/// What a read has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more.
    Open,
    /// The response is over, as its sender meant it.
    Ended,
}

/// Why a stream is not what was ordered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    #[error("the connection ended before the response did")]
    Cut,
    #[error("an event has begun that did not end")]
    CutEvent,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("stream {stream}: instead of event {event}: {got:?}")]
    NotTheEvent { stream: u64, event: u64, got: String },
}

impl Position {
    /// Before the first event.
    pub(crate) fn start(order: Order) -> Self {
        Self { order, next: 0, retry_ms: None, scratch: Vec::new() }
    }

    /// Whether everything that was ordered has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.next >= self.order.events
    }

    /// Takes an item; gives when an event was sent.
    fn take(&mut self, item: Item<'_>) -> Result<Option<u64>, Trouble> {
        match item {
            Item::Comment => Ok(None),
            Item::Retry(retry_ms) => {
                self.retry_ms = Some(retry_ms);
                Ok(None)
            }
            Item::Event(octets) => {
                let sent = self.order.check(self.next, octets, &mut self.scratch);
                let sent_ns = sent.map_err(|_| Trouble::NotTheEvent {
                    stream: self.order.stream,
                    event: self.next,
                    got: octets.escape_ascii().to_string(),
                })?;
                self.next += 1;
                Ok(Some(sent_ns))
            }
        }
    }
}

impl Visit {
    /// Connects and asks for a stream, from where the client has got to.
    ///
    /// # Errors
    /// Nobody accepts, or the connection breaks.
    pub(crate) async fn begin(
        address: SocketAddr,
        method: Method,
        position: &Position,
    ) -> Result<Self, Trouble> {
        Self::begin_with(address, method, position, None).await
    }

    /// The same, and the kernel holds about so many octets for a client that does not read.
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn begin_with(
        address: SocketAddr,
        method: Method,
        position: &Position,
        receive_buffer: Option<u32>,
    ) -> Result<Self, Trouble> {
        let connecting = async {
            let v4 = address.is_ipv4();
            let socket = if v4 { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(octets) = receive_buffer {
                // Before it connects, or the window has been offered already.
                socket.set_recv_buffer_size(octets)?;
            }
            let stream = socket.connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let mut stream: TcpStream = connecting.await.map_err(Trouble::Connect)?;
        let request = request(address, method, position);
        stream.write_all(request.as_bytes()).await.map_err(Trouble::Broken)?;
        Ok(Self { stream, reader: Reader::new() })
    }

    /// Reads once, up to as much as the buffer holds, and tells when each event that came was sent.
    ///
    /// # Errors
    /// What came is not what was ordered, or the connection ended in the middle.
    pub(crate) async fn read(
        &mut self,
        position: &mut Position,
        buffer: &mut [u8],
        mut sent_ns: impl FnMut(u64),
    ) -> Result<Progress, Trouble> {
        let n = self.stream.read(buffer).await.map_err(Trouble::Broken)?;
        if n > 0 {
            self.reader.push(&buffer[..n], &mut |item| {
                if let Some(sent) = position.take(item)? {
                    sent_ns(sent);
                }
                Ok::<_, Trouble>(())
            })?;
            if !self.reader.is_done() {
                return Ok(Progress::Open);
            }
        } else if !self.reader.may_close() {
            return Err(Trouble::Cut);
        }
        match self.reader.is_between_events() {
            true => Ok(Progress::Ended),
            false => Err(Trouble::CutEvent),
        }
    }

    /// The connection, for a client that does something else with it.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

fn request(address: SocketAddr, method: Method, position: &Position) -> String {
    let target = position.order.target();
    let last = match position.next.checked_sub(1) {
        Some(last) => format!("Last-Event-ID: {last}\r\n"),
        None => String::new(),
    };
    let fields = format!("Host: {address}\r\nAccept: text/event-stream\r\n{last}");
    match method {
        Method::Get => format!("GET {target} HTTP/1.1\r\n{fields}\r\n"),
        Method::Post => {
            let length = target.len();
            format!("POST {target} HTTP/1.1\r\n{fields}Content-Length: {length}\r\n\r\n{target}")
        }
    }
}
