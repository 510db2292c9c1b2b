//! Asks one backend whether it is healthy: one connection, one `GET` unless connecting is enough,
//! one verdict.
//!
//! Reads the answer with the same machines as the workers do, so a backend that is healthy here
//! speaks a protocol that they will accept. What the answer means is decided in [`health::judge`].

use std::{io, net::SocketAddr, num::NonZeroU16, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    config::{HealthCheck, HealthChecks},
    health::{self, BODY_BYTES_MAX, Expectation, ProbeFailure, ProbeSuccess, ProbeVerdict},
    http1::{
        Body, FIELDS_MAX, Field, Framing, FramingFields, HeadScan, HeadWriter, LeadingLine, Step,
        field_storage, parse_response, response_framing,
    },
};

/// Most octets of a response head, interim responses in front of it included.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Octets read at once. A component server's whole answer has about 350.
const READ_BYTES: usize = 4 * 1024;

/// How probes are made.
#[derive(Clone, Debug)]
pub struct Prober {
    /// What is asked for; `None` only connects.
    pub question: Option<Question>,
    /// Port that is asked unless the backend's target names one; `None` is the backend's own.
    pub port: Option<u16>,
    /// Longest a probe may take, connect included.
    pub timeout: Duration,
}

/// What is asked for over HTTP, and what a healthy backend answers.
#[derive(Clone, Debug)]
pub struct Question {
    /// Path, with or without a query.
    pub path: String,
    /// `Host`; `None` is the address that is asked.
    pub host: Option<String>,
    /// The answer of a healthy backend.
    pub expected: Expectation,
}

impl Prober {
    /// A prober as it is configured, if anybody is to be asked.
    pub fn new(config: &HealthChecks) -> Option<Self> {
        let question = match config.check {
            HealthCheck::Off => return None,
            HealthCheck::Tcp => None,
            HealthCheck::Http => Some(Question {
                path: config.path.clone()?,
                host: config.host.clone(),
                expected: Expectation { statuses: config.statuses, body: config.body.clone() },
            }),
        };
        Some(Self { question, port: config.port, timeout: config.timeout })
    }

    /// Asks the backend at `address`, on `port` if its target names one.
    ///
    /// # Errors
    /// Why it is not healthy.
    pub async fn probe(&self, mut address: SocketAddr, port: Option<NonZeroU16>) -> ProbeVerdict {
        if let Some(port) = port.map(NonZeroU16::get).or(self.port) {
            address.set_port(port);
        }
        let deadline = Instant::now() + self.timeout;
        let mut stream = timeout_at(deadline, TcpStream::connect(address))
            .await
            .map_err(|_| ProbeFailure::ConnectTimeout)?
            .map_err(|error| connect_failure(&error))?;
        let Some(question) = &self.question else { return Ok(ProbeSuccess::default()) };
        let (status, body) = timeout_at(deadline, question.ask(&mut stream, address))
            .await
            .map_err(|_| ProbeFailure::ResponseTimeout)??;
        health::judge(&question.expected, status, &body)
    }
}

impl Question {
    async fn ask(
        &self,
        stream: &mut TcpStream,
        address: SocketAddr,
    ) -> Result<(u16, Vec<u8>), ProbeFailure> {
        let mut request = Vec::with_capacity(256);
        let host = self.host.clone().unwrap_or_else(|| address.to_string());
        let mut head = HeadWriter::request(&mut request, b"GET", self.path.as_bytes());
        head.field(b"Host", host.as_bytes())
            .field(b"User-Agent", USER_AGENT.as_bytes())
            .field(b"Accept", b"application/json, */*")
            .field(b"Connection", b"close");
        head.end();
        stream.write_all(&request).await.map_err(|_| ProbeFailure::Closed)?;
        read_answer(stream, |status| self.expected.statuses.contains(status)).await
    }
}

const USER_AGENT: &str = concat!("stepflow-load-balancer/", env!("CARGO_PKG_VERSION"));

/// Reads up to the end of the body, or up to the head if its status says enough.
pub(super) async fn read_answer(
    stream: &mut TcpStream,
    wants_body: impl Fn(u16) -> bool,
) -> Result<(u16, Vec<u8>), ProbeFailure> {
    let mut received = Vec::with_capacity(READ_BYTES);
    let mut head_bytes = 0;
    let (status, framing) = loop {
        let mut scan = HeadScan::new(LeadingLine::Refuse);
        let head = loop {
            match scan.advance(&received).map_err(|_| ProbeFailure::Malformed)? {
                Some(head) if head_bytes + head.end <= HEAD_BYTES_MAX => break head,
                None if head_bytes + received.len() <= HEAD_BYTES_MAX => {}
                Some(_) | None => return Err(ProbeFailure::HeadTooLarge),
            }
            if read_more(stream, &mut received).await? == 0 {
                return Err(ProbeFailure::Closed);
            }
        };
        let end = head.end;
        let (status, framing) = read_head(&received[head])?;
        received.drain(..end);
        head_bytes += end;
        // Interim responses come before the final one (RFC 9110 §15.2); nobody asked for 101.
        if !(100..=199).contains(&status) || status == 101 {
            break (status, framing);
        }
    };
    if !wants_body(status) {
        return Ok((status, Vec::new()));
    }
    Ok((status, read_body(stream, received, Body::new(framing)).await?))
}

fn read_head(octets: &[u8]) -> Result<(u16, Framing), ProbeFailure> {
    let mut storage = field_storage();
    let head =
        parse_response(octets, &mut storage, FIELDS_MAX).map_err(|_| ProbeFailure::Malformed)?;
    let mut fields = FramingFields::default();
    for line in head.fields {
        match Field::of(line.name.as_bytes()) {
            Field::ContentLength => fields.content_length(line.value),
            Field::TransferEncoding => fields.transfer_encoding(line.value),
            _ => {}
        }
    }
    let framing = response_framing(head.version, head.status, false, &fields)
        .map_err(|_| ProbeFailure::Malformed)?;
    Ok((head.status, framing))
}

async fn read_body(
    stream: &mut TcpStream,
    mut received: Vec<u8>,
    mut body: Body,
) -> Result<Vec<u8>, ProbeFailure> {
    let mut content = Vec::new();
    loop {
        let mut at = 0;
        loop {
            match body.step(&received[at..]).map_err(|_| ProbeFailure::Malformed)? {
                Step::Data(n) => {
                    content.extend_from_slice(&received[at..at + n]);
                    at += n;
                }
                Step::Framing(n) | Step::Trailer(n) => at += n,
                Step::NeedMore => break,
                Step::Done => return Ok(content),
            }
            if content.len() > BODY_BYTES_MAX {
                return Err(ProbeFailure::BodyTooLarge);
            }
        }
        received.clear();
        if read_more(stream, &mut received).await? == 0 {
            return match body.end_of_input() {
                Ok(()) => Ok(content),
                Err(_) => Err(ProbeFailure::Closed),
            };
        }
    }
}

async fn read_more(stream: &mut TcpStream, into: &mut Vec<u8>) -> Result<usize, ProbeFailure> {
    into.reserve(READ_BYTES);
    stream.read_buf(into).await.map_err(|_| ProbeFailure::Closed)
}

pub(super) fn connect_failure(error: &io::Error) -> ProbeFailure {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL) => {
            ProbeFailure::Local
        }
        Some(libc::ECONNREFUSED) => ProbeFailure::Refused,
        Some(libc::ECONNRESET) => ProbeFailure::Closed,
        Some(libc::ETIMEDOUT) => ProbeFailure::ConnectTimeout,
        _ => ProbeFailure::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::model::StatusSet;

    const PATIENT: Duration = Duration::from_secs(20);

    fn question() -> Question {
        let statuses = StatusSet::parse("200-299").unwrap();
        Question {
            path: "/health?deep=1".to_owned(),
            host: None,
            expected: Expectation { statuses, body: String::new() },
        }
    }

    /// Answers one connection with `pieces`, each in its own segment, and returns the request.
    async fn answered(pieces: &[&[u8]], close: bool, timeout: Duration) -> (ProbeVerdict, String) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut octet = [0];
                stream.read_exact(&mut octet).unwrap();
                request.push(octet[0]);
            }
            for piece in pieces {
                // The prober may have seen enough and be gone.
                if stream.write_all(&piece).is_err() {
                    break;
                }
            }
            if close {
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            // Until the prober closes.
            let _ = stream.read(&mut [0; 64]);
            String::from_utf8(request).unwrap()
        });
        let prober = Prober { question: Some(question()), port: None, timeout };
        let verdict = prober.probe(address, None).await;
        let request = server.join().unwrap();
        assert!(request.contains(&format!("\r\nHost: {address}\r\n")), "{request}");
        (verdict, request)
    }

    #[tokio::test]
    async fn request_is_what_is_documented() {
        let (_, request) = answered(&[b"HTTP/1.1 204 No Content\r\n\r\n"], true, PATIENT).await;
        assert!(request.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{request}");
        let agent =
            format!("\r\nUser-Agent: stepflow-load-balancer/{}\r\n", env!("CARGO_PKG_VERSION"));
        assert!(request.contains(&agent), "{request}");
        assert!(request.contains("\r\nConnection: close\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_probe_goes_to_the_port_and_asks_for_the_name_that_are_configured() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 4\r\n\r\ngood").unwrap();
            String::from_utf8(request[..length].to_vec()).unwrap()
        });
        let prober = Prober {
            question: Some(Question {
                host: Some("health.internal".to_owned()),
                expected: Expectation {
                    statuses: StatusSet::parse("401").unwrap(),
                    body: "good".to_owned(),
                },
                ..question()
            }),
            port: Some(address.port()),
            timeout: PATIENT,
        };
        let backend = SocketAddr::new(address.ip(), 1);
        assert_eq!(prober.probe(backend, None).await, Ok(ProbeSuccess::default()));
        let request = server.join().unwrap();
        assert!(request.contains("\r\nHost: health.internal\r\n"), "{request}");
    }

    #[tokio::test]
    async fn without_a_question_a_connection_is_enough() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let prober = Prober { question: None, port: None, timeout: PATIENT };
        let verdict = prober.probe(listener.local_addr().unwrap(), None).await;
        assert_eq!(verdict, Ok(ProbeSuccess::default()));
        let (mut stream, _) = listener.accept().unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it asks nothing and closes");
    }

    #[tokio::test]
    async fn every_framing_leads_to_the_same_verdict() {
        let body = r#"{"status":"healthy","instanceId":"pod-1"}"#;
        let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let chunked = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        );
        let until_close = format!("HTTP/1.0 200 OK\r\n\r\n{body}");
        let interim = format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n{length}");
        for answer in [length, chunked, until_close, interim] {
            let whole = answered(&[answer.as_bytes()], true, PATIENT).await.0;
            let bytewise: Vec<&[u8]> = answer.as_bytes().chunks(1).collect();
            let split = answered(&bytewise, true, PATIENT).await.0;
            let success = whole.clone().unwrap();
            assert_eq!(success.instance.unwrap().as_str(), "pod-1", "{answer}");
            assert_eq!(whole, split, "{answer}");
        }
    }

    #[tokio::test]
    async fn every_failure_has_its_name() {
        let long_line = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let endless = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
        let long_body = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(BODY_BYTES_MAX + 1));
        let cases: &[(&str, bool, ProbeFailure)] = &[
            ("HTTP/1.1 503 Busy\r\nContent-Length: 5\r\n\r\n", false, ProbeFailure::Status(503)),
            ("HTTP/1.1 101 Switching\r\n\r\n", false, ProbeFailure::Status(101)),
            ("", true, ProbeFailure::Closed),
            ("HTTP/1.1 200 OK\r\n", true, ProbeFailure::Closed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", true, ProbeFailure::Closed),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", true, ProbeFailure::Malformed),
            ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", true, ProbeFailure::Malformed),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                true,
                ProbeFailure::Malformed,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
                true,
                ProbeFailure::Malformed,
            ),
            (&long_line, true, ProbeFailure::HeadTooLarge),
            (&endless, true, ProbeFailure::HeadTooLarge),
            (&long_body, true, ProbeFailure::BodyTooLarge),
            ("", false, ProbeFailure::ResponseTimeout),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
                false,
                ProbeFailure::ResponseTimeout,
            ),
            ("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"busy\"}", true, ProbeFailure::SaysUnhealthy),
        ];
        for (answer, close, want) in cases {
            let timeout = match want {
                ProbeFailure::ResponseTimeout => Duration::from_millis(300),
                _ => PATIENT,
            };
            let (verdict, _) = answered(&[answer.as_bytes()], *close, timeout).await;
            assert_eq!(verdict, Err(*want), "{answer:.60}");
        }
    }

    #[tokio::test]
    async fn a_port_without_listener_is_refused() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        for question in [None, Some(question())] {
            let prober = Prober { question, port: None, timeout: PATIENT };
            assert_eq!(prober.probe(address, None).await, Err(ProbeFailure::Refused));
        }
    }

    #[test]
    fn lack_of_our_own_resources_is_told_apart() {
        let cases = [
            (libc::EMFILE, ProbeFailure::Local),
            (libc::EADDRNOTAVAIL, ProbeFailure::Local),
            (libc::EHOSTUNREACH, ProbeFailure::Unreachable),
            (libc::ENETUNREACH, ProbeFailure::Unreachable),
            (libc::ETIMEDOUT, ProbeFailure::ConnectTimeout),
        ];
        for (errno, want) in cases {
            assert_eq!(connect_failure(&io::Error::from_raw_os_error(errno)), want);
        }
    }
}
