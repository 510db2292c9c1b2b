//! One client connection: request in, response out, in turn.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use super::request::{Refusal, Request, Response};
use crate::http1::{
    Body, HeadScan, LeadingLine, Method, Step, field_storage, parse_request, request_framing,
};

/// Octets of a request head; those who ask here have short ones.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Field lines of a request head.
const FIELDS_MAX: usize = 64;
/// How long a refused client gets to read its refusal, and how much of what it still sends is
/// thrown away meanwhile.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 256 * 1024;

/// What a client may make us hold, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets of a request body.
    pub body_bytes_max: usize,
    /// Longest wait for a request to begin.
    pub idle: Duration,
    /// Longest time from a request's first octet to its last, and for a write to be taken.
    pub transfer: Duration,
}

/// A connection between two requests, or between a request and its response.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    limits: Limits,
    received: Vec<u8>,
}

impl Connection {
    /// Takes over an accepted connection.
    pub fn new(stream: TcpStream, limits: Limits) -> Self {
        // Refused only when the peer has gone already, which the next read tells.
        let _ = stream.set_nodelay(true);
        Self { stream, limits, received: Vec::new() }
    }

    /// The next request. `None` when the client has closed, gone silent between two requests, or
    /// sent something that was refused: it has been told so, and the connection is over.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next_request(&mut self) -> io::Result<Option<Request>> {
        if self.received.is_empty() {
            match timeout(self.limits.idle, self.receive()).await {
                Err(_) | Ok(Ok(0)) => return Ok(None),
                Ok(outcome) => outcome?,
            };
        }
        let deadline = Instant::now() + self.limits.transfer;
        let refusal = match timeout_at(deadline, self.complete_request()).await {
            Ok(Ok(Ok(request))) => return Ok(Some(request)),
            Ok(Ok(Err(refusal))) => refusal,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_) => Refusal::Timeout,
        };
        self.respond(Method::Get, &refusal.response(), true).await?;
        self.linger().await;
        Ok(None)
    }

    async fn complete_request(&mut self) -> io::Result<Result<Request, Refusal>> {
        let mut scan = HeadScan::new(LeadingLine::Skip);
        let head = loop {
            match scan.advance(&self.received) {
                Ok(Some(head)) => break head,
                Ok(None) if self.received.len() >= HEAD_BYTES_MAX => {
                    return Ok(Err(Refusal::HeadTooLarge));
                }
                Ok(None) => self.receive_more().await?,
                Err(error) => return Ok(Err(error.into())),
            }
        };
        let (mut request, mut body) = match parse_head(&self.received[head.clone()]) {
            Ok(parsed) => parsed,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let mut consumed = head.end;
        if request.expects_continue && !body.is_done() && consumed == self.received.len() {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        loop {
            match body.step(&self.received[consumed..]) {
                Ok(Step::Framing(n) | Step::Trailer(n)) => consumed += n,
                Ok(Step::Data(n)) => {
                    if request.body.len() + n > self.limits.body_bytes_max {
                        return Ok(Err(Refusal::BodyTooLarge));
                    }
                    request.body.extend_from_slice(&self.received[consumed..consumed + n]);
                    consumed += n;
                }
                Ok(Step::NeedMore) => {
                    self.received.drain(..consumed);
                    consumed = 0;
                    self.receive_more().await?;
                }
                Ok(Step::Done) => break,
                Err(error) => return Ok(Err(error.into())),
            }
        }
        self.received.drain(..consumed);
        Ok(Ok(request))
    }

    async fn receive_more(&mut self) -> io::Result<()> {
        match self.receive().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    // Grows by what is needed only: an idle connection holds nothing.
    async fn receive(&mut self) -> io::Result<usize> {
        self.received.reserve(4096);
        self.stream.read_buf(&mut self.received).await
    }

    /// Sends a response, head and body in one write.
    ///
    /// # Errors
    /// When the connection breaks or the client takes too long to read.
    pub async fn respond(
        &mut self,
        method: Method,
        response: &Response,
        closes: bool,
    ) -> io::Result<()> {
        let mut out = Vec::with_capacity(256 + response.body.len());
        response.write(&mut out, method, closes);
        self.send(&out).await
    }

    /// Sends the head of a response whose body follows in pieces; `response.body` is not sent.
    ///
    /// # Errors
    /// As [`Connection::respond`].
    pub async fn begin_stream(&mut self, response: &Response, closes: bool) -> io::Result<()> {
        let mut out = Vec::with_capacity(256);
        let mut head = response.begin_head(&mut out);
        head.field(b"Transfer-Encoding", b"chunked");
        if closes {
            head.field(b"Connection", b"close");
        }
        head.end();
        self.send(&out).await
    }

    /// Sends one piece, as one chunk. Nothing is sent for an empty one, which would end the stream.
    ///
    /// # Errors
    /// As [`Connection::respond`].
    pub async fn send_piece(&mut self, piece: &[u8]) -> io::Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let mut out = format!("{:x}\r\n", piece.len()).into_bytes();
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
        self.send(&out).await
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// As [`Connection::respond`].
    pub async fn end_stream(&mut self) -> io::Result<()> {
        self.send(b"0\r\n\r\n").await
    }

    /// Completes when the client has closed or broken the connection, or sends out of turn.
    pub async fn client_left(&self) {
        let mut octet = [0];
        let _ = self.stream.peek(&mut octet).await;
    }

    async fn send(&mut self, octets: &[u8]) -> io::Result<()> {
        timeout(self.limits.transfer, self.stream.write_all(octets)).await?
    }

    /// Lets the client read what it was sent. Closing at once while octets of the request are still
    /// arriving would reset the connection and take the response away with it (RFC 9112 §9.6).
    async fn linger(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let drain = async {
            let mut discarded = 0;
            let mut room = [0; 4096];
            while discarded < LINGER_BYTES_MAX {
                match self.stream.read(&mut room).await {
                    Ok(0) | Err(_) => break,
                    Ok(n) => discarded += n,
                }
            }
        };
        let _ = timeout(LINGER, drain).await;
    }
}

fn parse_head(octets: &[u8]) -> Result<(Request, Body), Refusal> {
    let mut storage = field_storage();
    let head = parse_request(octets, &mut storage, FIELDS_MAX)?;
    let (request, framing) = Request::begin(&head)?;
    Ok((request, Body::new(request_framing(head.version, &framing)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        body_bytes_max: 10,
        idle: Duration::from_secs(5),
        transfer: Duration::from_secs(5),
    };

    /// Answers every request with its method, target and body, and returns all that a client gets
    /// for some octets before the server closes.
    fn converse(limits: Limits, octets: &[u8]) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let address = listener.local_addr().expect("an address");
            let server = async {
                let (stream, _) = listener.accept().await.expect("a client");
                let mut connection = Connection::new(stream, limits);
                while let Ok(Some(request)) = connection.next_request().await {
                    let target = String::from_utf8_lossy(&request.target).into_owned();
                    let body = String::from_utf8_lossy(&request.body).into_owned();
                    let answer = format!("{} {target} {body}\n", request.method.label());
                    let response = Response::text(200, answer);
                    if connection.respond(request.method, &response, request.closes).await.is_err()
                        || request.closes
                    {
                        break;
                    }
                }
            };
            let client = async {
                let mut stream = TcpStream::connect(address).await.expect("a connection");
                stream.write_all(octets).await.expect("room for a request");
                let mut answer = Vec::new();
                let _ = stream.read_to_end(&mut answer).await;
                String::from_utf8_lossy(&answer).into_owned()
            };
            tokio::join!(server, client).1
        })
    }

    fn statuses(answer: &str) -> Vec<&str> {
        answer.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")).map(|l| &l[..3]).collect()
    }

    #[test]
    fn requests_on_one_connection_are_answered_in_turn() {
        let answer = converse(
            LIMITS,
            b"GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n\
              POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nxyz\
              POST /d HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nuv\r\n0\r\n\r\n\
              HEAD /e HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
        );
        assert_eq!(statuses(&answer), ["200"; 4]);
        for part in ["GET /a?b \n", "POST /c xyz\n", "POST /d uv\n", "Connection: close"] {
            assert!(answer.contains(part), "{part:?} in {answer}");
        }
        assert!(answer.ends_with("\r\n\r\n"), "HEAD gets no body: {answer}");
    }

    #[test]
    fn what_cannot_be_served_is_refused_and_ends_the_connection() {
        let long_field = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let many_fields = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1));
        let cases: &[(&[u8], &str)] = &[
            (b"GET / HTTP/1.1\r\n\r\n", "400"),
            (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
            (b"GET /\r\n\r\n", "400"),
            (b"\x16\x03\x01\x00\x00", "400"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
            (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "501"),
            (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n01234567890", "413"),
            (
                b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\
                  Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                "400",
            ),
            (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n\r\n", "400"),
            (long_field.as_bytes(), "431"),
            (many_fields.as_bytes(), "431"),
        ];
        for (octets, want) in cases {
            let answer = converse(LIMITS, octets);
            assert_eq!(statuses(&answer), [*want], "{}", String::from_utf8_lossy(octets));
            assert!(answer.contains("Connection: close\r\n"));
        }
    }

    #[test]
    fn a_client_that_waits_with_its_body_is_asked_for_it() {
        let head =
            b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        let hasty = Limits { transfer: Duration::from_millis(20), ..LIMITS };
        assert_eq!(statuses(&converse(hasty, head)), ["100", "408"]);
        let with_body = [&head[..], b"abGET / HTTP/1.0\r\n\r\n"].concat();
        assert_eq!(statuses(&converse(LIMITS, &with_body)), ["200", "200"]);
    }

    #[test]
    fn http_1_0_clients_are_served_once() {
        let answer = converse(LIMITS, b"GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n");
        assert_eq!(statuses(&answer), ["200"]);
    }

    #[test]
    fn a_client_that_stops_in_mid_request_is_told_that_it_is_late() {
        let hasty = Limits { transfer: Duration::from_millis(20), ..LIMITS };
        assert_eq!(statuses(&converse(hasty, b"GET / HT")), ["408"]);
        let impatient = Limits { idle: Duration::from_millis(20), ..LIMITS };
        assert_eq!(converse(impatient, b""), "");
    }
}
