//! Initialises one backend: one connection, the two requests as another backend got them.
//!
//! Their octets are sent as they were recorded. The answers are read as those of probes are; what
//! they mean is decided in [`exchange::is_refusal`] and by the plane.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::probe::{connect_failure, read_answer};
use crate::{
    exchange,
    health::ProbeFailure,
    model::Recording,
    plane::{Replay, ReplayFailure, ReplayStep},
};

/// How replays are made.
#[derive(Clone, Copy, Debug)]
pub struct Replayer {
    /// Longest that both requests together may take, connect included.
    pub timeout: Duration,
}

impl Replayer {
    /// Sends both requests, the second if the first succeeds.
    ///
    /// # Errors
    /// Why the backend is not initialised.
    pub async fn replay(self, replay: &Replay) -> Result<(), ReplayFailure> {
        let deadline = Instant::now() + self.timeout;
        let mut stream = connect(replay.address, deadline)
            .await
            .map_err(|failure| ReplayFailure::Unanswered(ReplayStep::Initialize, failure))?;
        let answer =
            send(&mut stream, deadline, ReplayStep::Initialize, &replay.initialize).await?;
        if exchange::is_refusal(&answer) {
            return Err(ReplayFailure::Refused);
        }
        send(&mut stream, deadline, ReplayStep::Initialized, &replay.initialized).await?;
        Ok(())
    }
}

async fn connect(address: SocketAddr, deadline: Instant) -> Result<TcpStream, ProbeFailure> {
    timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| ProbeFailure::ConnectTimeout)?
        .map_err(|error| connect_failure(&error))
}

/// One request, and the body of its answer.
async fn send(
    stream: &mut TcpStream,
    deadline: Instant,
    step: ReplayStep,
    request: &Recording,
) -> Result<Vec<u8>, ReplayFailure> {
    let answered = async {
        stream.write_all(request.octets()).await.map_err(|_| ProbeFailure::Closed)?;
        read_answer(stream, |status| (200..=299).contains(&status)).await
    };
    let (status, body) = timeout_at(deadline, answered)
        .await
        .unwrap_or(Err(ProbeFailure::ResponseTimeout))
        .map_err(|failure| ReplayFailure::Unanswered(step, failure))?;
    match status {
        200..=299 => Ok(body),
        _ => Err(ReplayFailure::Status(step, status)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::model::BackendId;

    const INITIALIZE: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nfrst";
    const INITIALIZED: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nscnd";

    /// Answers the requests of one connection with `answers`; gives what came.
    async fn answered(
        answers: &[&'static str],
        timeout: Duration,
    ) -> (Result<(), ReplayFailure>, Vec<u8>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answers = answers.to_vec();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut received = Vec::new();
            for answer in answers {
                let end = received.len() + INITIALIZE.len();
                while received.len() < end {
                    let mut octet = [0];
                    stream.read_exact(&mut octet).unwrap();
                    received.push(octet[0]);
                }
                stream.write_all(answer.as_bytes()).unwrap();
            }
            // Until the other side closes, whatever else it sends.
            let _ = stream.read_to_end(&mut received);
            received
        });
        let replay = Replay {
            backend: BackendId(1),
            address,
            initialize: Recording::of(INITIALIZE),
            initialized: Recording::of(INITIALIZED),
        };
        let outcome = Replayer { timeout }.replay(&replay).await;
        (outcome, server.join().unwrap())
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"result\":{}}";
    const ACCEPTED: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n\"\"";
    const ERROR: &str = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"error\":{\"code\":1}}";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
    const PATIENT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn both_requests_go_out_in_order_and_octet_for_octet() {
        for answer in [OK, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
            let (outcome, received) = answered(&[answer, ACCEPTED], PATIENT).await;
            assert_eq!(outcome, Ok(()));
            assert_eq!(received, [INITIALIZE, INITIALIZED].concat());
        }
    }

    #[tokio::test]
    async fn the_second_request_waits_for_the_success_of_the_first() {
        let first = ReplayStep::Initialize;
        for (answer, want) in [
            (ERROR, ReplayFailure::Refused),
            (BUSY, ReplayFailure::Status(first, 503)),
            ("SSH-2.0\r\n\r\n", ReplayFailure::Unanswered(first, ProbeFailure::Malformed)),
        ] {
            let (outcome, received) = answered(&[answer], PATIENT).await;
            assert_eq!((outcome, received), (Err(want), INITIALIZE.to_vec()), "{answer}");
        }
        let (outcome, received) = answered(&[""], Duration::from_millis(300)).await;
        let silent = ReplayFailure::Unanswered(first, ProbeFailure::ResponseTimeout);
        assert_eq!((outcome, received), (Err(silent), INITIALIZE.to_vec()));
    }

    #[tokio::test]
    async fn a_failure_says_at_which_request() {
        let (outcome, _) = answered(&[OK, BUSY], PATIENT).await;
        assert_eq!(outcome, Err(ReplayFailure::Status(ReplayStep::Initialized, 503)));
        assert_eq!(outcome.unwrap_err().to_string(), "initialized: status 503");
    }
}
