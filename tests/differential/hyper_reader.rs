//! hyper's server and client, each on a connection in memory.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    client::conn::http1 as client,
    header::{CONNECTION, HeaderValue},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::Runtime,
};

use crate::reading::{Kind, Message, Reading, Start, by_name};

/// Both ends of hyper, on a runtime of their own.
pub(crate) struct Hyper {
    runtime: Runtime,
}

impl Hyper {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        Self { runtime: runtime.expect("threads and descriptors are left") }
    }

    pub(crate) fn read(&self, kind: Kind, octets: &[u8]) -> Reading {
        match kind {
            Kind::Request => self.runtime.block_on(read_request(octets)),
            Kind::ResponseTo(method) => self.runtime.block_on(read_response(octets, method)),
        }
    }
}

async fn read_request(octets: &[u8]) -> Reading {
    let seen = RefCell::new(None);
    let record = async |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        let target = match parts.uri.authority() {
            Some(_) => None,
            None => parts.uri.path_and_query().map(|target| target.as_str().as_bytes().to_vec()),
        };
        let start = Start::Request { method: parts.method.to_string(), target };
        let content = body.collect().await.map(|body| body.to_bytes());
        *seen.borrow_mut() = Some((start, parts.headers, content));
        // Ends the connection behind this request: what is left over then is the next message.
        let mut response = Response::new(Empty::<Bytes>::new());
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        Ok::<_, hyper::Error>(response)
    };
    let service = service_fn(|request| Box::pin(record(request)));
    let wire = Wire::carrying(octets, Talks::AtOnce);
    let mut connection = server::Builder::new()
        .half_close(true)
        .max_headers(256)
        .serve_connection(TokioIo::new(wire), service);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    let parts = connection.into_parts();
    let left = parts.read_buf.len() + parts.io.into_inner().left();
    reading(seen.into_inner(), octets.len() - left, ended)
}

async fn read_response(octets: &[u8], method: &'static str) -> Reading {
    // hyper takes what comes before it has asked for an error.
    let wire = Wire::carrying(octets, Talks::WhenAsked);
    let handshake = client::Builder::new().max_headers(256).handshake(TokioIo::new(wire)).await;
    let (mut sender, mut connection) = handshake.expect("nothing is sent yet");
    let request = Request::builder().method(method).uri("/").header("Host", "a");
    let request = request.body(Empty::<Bytes>::new()).expect("a request");
    let asking = async {
        let (parts, body) = match sender.send_request(request).await {
            Ok(response) => response.into_parts(),
            Err(_) => return None,
        };
        let start = Start::Status(parts.status.as_u16());
        let content = body.collect().await.map(|body| body.to_bytes());
        drop(sender);
        Some((start, parts.headers, content))
    };
    let driving = async {
        let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
        let parts = connection.into_parts();
        (ended, parts.read_buf.len() + parts.io.into_inner().left())
    };
    let (seen, (ended, left)) = tokio::join!(asking, driving);
    reading(seen, octets.len() - left, ended)
}

fn reading(
    seen: Option<(Start, HeaderMap, hyper::Result<Bytes>)>,
    end: usize,
    ended: hyper::Result<()>,
) -> Reading {
    match (seen, ended) {
        (Some((start, headers, Ok(content))), _) => {
            let lines = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
            let (fields, content) = (by_name(lines), content.to_vec());
            Reading::Whole(Message { start, fields, content, end })
        }
        (Some((_, _, Err(error))), _) | (None, Err(error)) if error.is_incomplete_message() => {
            Reading::Unfinished
        }
        (Some((_, _, Err(error))), _) | (None, Err(error)) => Reading::refused(error),
        (None, Ok(())) => Reading::Unfinished,
    }
}

/// A connection on which these octets come, and then the end. What is sent is dropped.
struct Wire<'a> {
    octets: &'a [u8],
    talks: Talks,
    waiting: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Talks {
    AtOnce,
    WhenAsked,
}

impl<'a> Wire<'a> {
    fn carrying(octets: &'a [u8], talks: Talks) -> Self {
        Self { octets, talks, waiting: None }
    }

    fn left(&self) -> usize {
        self.octets.len()
    }
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.talks == Talks::WhenAsked {
            self.waiting = Some(context.waker().clone());
            return Poll::Pending;
        }
        let n = room.remaining().min(self.octets.len());
        let (now, later) = self.octets.split_at(n);
        room.put_slice(now);
        self.octets = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.talks = Talks::AtOnce;
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
        Poll::Ready(Ok(octets.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
