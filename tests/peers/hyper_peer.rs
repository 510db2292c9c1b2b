//! hyper as a client and as a backend, on Tokio.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    client::conn::http1::SendRequest,
    header::{
        ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, TRAILER, UPGRADE,
    },
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};

use crate::{
    before, echo,
    echo::{Echo, Exchange, FRAMING, METHOD, Sent, TARGET, framing_of},
    server::Server,
    support::{Backend, Balancer, PATIENCE, noise},
};

type Content = BoxBody<Bytes, hyper::Error>;

fn nothing() -> Content {
    Empty::new().map_err(|never: Infallible| match never {}).boxed()
}

fn full(content: impl Into<Bytes>) -> Content {
    Full::new(content.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// A body of unknown length whose frames come from a channel.
struct Frames(UnboundedReceiver<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// A body of exactly these frames.
fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Content {
    let (sender, receiver) = unbounded_channel();
    for frame in frames {
        sender.send(frame).expect("the receiver is below");
    }
    Frames(receiver).boxed()
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .expect("descriptors are left")
        .block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("it ends in time") })
}

async fn connect(address: SocketAddr) -> SendRequest<Content> {
    let stream = TcpStream::connect(address).await.expect("the balancer accepts");
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.expect("nothing is sent yet");
    // How it ends is seen by whoever waits for an answer.
    tokio::spawn(async move { drop(connection.with_upgrades().await) });
    sender
}

async fn send(sender: &mut SendRequest<Content>, request: Request<Content>) -> Response<Incoming> {
    sender.ready().await.expect("the connection stays open");
    sender.send_request(request).await.expect("an answer that it understands")
}

fn get(target: &str) -> Request<Content> {
    Request::get(target).header(HOST, "test").body(nothing()).expect("a request")
}

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.expect("a whole body").to_bytes();
    String::from_utf8(body.to_vec()).expect("text")
}

/// Asks one thing after the other on one connection.
pub(crate) fn ask(address: SocketAddr, exchanges: &[Exchange]) -> Vec<Echo> {
    run(async {
        let mut sender = connect(address).await;
        let mut echoes = Vec::new();
        for exchange in exchanges {
            let body = match &exchange.body {
                Sent::Nothing => nothing(),
                Sent::WithLength(content) => full(content.clone()),
                Sent::InChunks(chunks) => {
                    frames(chunks.iter().map(|chunk| Frame::data(chunk.clone().into())))
                }
            };
            let request = Request::builder().method(exchange.method).uri(exchange.target);
            let request = request.header(HOST, "test").body(body).expect("a request");
            let (parts, body) = send(&mut sender, request).await.into_parts();
            let body = body.collect().await.expect("a whole body").to_bytes();
            echoes.push(Echo::new(parts.status.as_u16(), parts.headers, body.to_vec()));
        }
        echoes
    })
}

/// Serves every connection with this; requests carry the number of their connection.
fn serve<F, R>(listener: std::net::TcpListener, answer: F)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
    R: Future<Output = Response<Content>> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("descriptors are left").block_on(async {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let connections = Arc::new(AtomicUsize::new(0));
        while let Ok((stream, _)) = listener.accept().await {
            let number = connections.fetch_add(1, Ordering::Relaxed);
            let answer = answer.clone();
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(Connection(number));
                let answered = answer(request);
                async { Ok::<_, Infallible>(answered.await) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            // A balancer that shuts down breaks what is left.
            tokio::spawn(async move { drop(connection.with_upgrades().await) });
        }
    });
}

#[derive(Clone, Copy)]
struct Connection(usize);

/// Echoes every request.
pub(crate) fn serve_echo(listener: std::net::TcpListener) {
    serve(listener, |request| async move {
        let (parts, body) = request.into_parts();
        let framing = framing_of(&parts.headers);
        let has_length = parts.headers.contains_key(CONTENT_LENGTH);
        let Ok(content) = body.collect().await else {
            // Nobody waits for this.
            return status(StatusCode::BAD_REQUEST);
        };
        let trailers = content.trailers().cloned().unwrap_or_default();
        let content = content.to_bytes();
        let body = match content.is_empty() {
            true => nothing(),
            false if has_length => full(content),
            false => frames([Frame::data(content)]),
        };
        let Connection(number) = parts.extensions.get().copied().expect("serve puts it there");
        let mut response = Response::builder()
            .header(METHOD, parts.method.as_str())
            .header(TARGET, parts.uri.path_and_query().map_or("/", |target| target.as_str()))
            .header(FRAMING, framing)
            .header(echo::CONNECTION, number)
            .body(body)
            .expect("a response");
        response.headers_mut().extend(trailers);
        response
    });
}

fn status(status: StatusCode) -> Response<Content> {
    let mut response = Response::new(nothing());
    *response.status_mut() = status;
    response
}

fn is_probe(request: &Request<Incoming>) -> bool {
    request.uri().path() == "/health"
}

#[test]
fn trailers_of_a_request_reach_a_hyper_backend() {
    let server = Server::start(serve_echo);
    let balancer = before(&server);
    run(async {
        let mut sender = connect(balancer.address).await;
        for sum in ["1", "2"] {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static(sum));
            let body = frames([Frame::data("hello".into()), Frame::trailers(trailers)]);
            let request = Request::post("/").header(HOST, "test").header(TRAILER, "x-sum");
            let response = send(&mut sender, request.body(body).expect("a request")).await;
            assert_eq!(response.headers()["x-sum"], sum);
            assert_eq!(text(response).await, "hello");
        }
    });
}

#[test]
fn trailers_of_a_response_reach_a_hyper_client() {
    // hyper as a backend sends trailers only to whom says `TE: trailers`, and that field is for one
    // connection only.
    let backend = Backend::answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let balancer = Balancer::start(&[&backend]);
    run(async {
        let mut sender = connect(balancer.address).await;
        for _ in 0..2 {
            let body = send(&mut sender, get("/")).await.into_body();
            let collected = body.collect().await.expect("a whole body");
            assert_eq!(collected.trailers().expect("trailers")["x-sum"], "1");
            assert_eq!(collected.to_bytes(), "hello");
        }
    });
}

#[test]
fn the_continue_of_a_hyper_backend_reaches_a_client_that_waits_for_it() {
    let server = Server::start(serve_echo);
    let balancer = before(&server);
    let mut client = balancer.connect();
    for _ in 0..2 {
        client.send(
            "POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        );
        assert_eq!(client.head().status(), 100);
        client.send("hello");
        assert_eq!(client.response().text(), "hello");
    }
}

#[test]
fn a_refusal_of_a_hyper_backend_comes_instead_of_its_continue() {
    let server = Server::start(|listener| {
        serve(listener, |request| async move {
            // The body is not asked for, so hyper sends no 100.
            status(if is_probe(&request) { StatusCode::OK } else { StatusCode::EXPECTATION_FAILED })
        });
    });
    let balancer = before(&server);
    let mut client = balancer.connect();
    client
        .send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    let response = client.response();
    assert_eq!(response.status(), 417);
    assert_eq!(response.head.field("Connection").as_deref(), Some("close"));
    client.expect_end();
}

#[test]
fn a_hyper_client_reads_an_answer_that_comes_before_its_upload_has_ended() {
    let server = Server::start(|listener| {
        serve(listener, |request| async move {
            if is_probe(&request) {
                return status(StatusCode::OK);
            }
            let mut response = Response::new(full("too much"));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response
        });
    });
    let balancer = before(&server);
    run(async {
        for _ in 0..3 {
            let mut sender = connect(balancer.address).await;
            let (upload, upload_source) = unbounded_channel();
            upload.send(Frame::data(noise(100_000).into())).expect("the receiver is here");
            let body = Frames(upload_source).boxed();
            let request = Request::post("/").header(HOST, "test").body(body);
            let response = send(&mut sender, request.expect("a request")).await;
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(response.headers()[CONNECTION], "close");
            assert_eq!(text(response).await, "too much");
            drop(upload);
        }
    });
}

#[test]
fn a_hyper_client_that_uploads_at_full_speed_reads_an_early_answer() {
    let server = Server::start(|listener| {
        serve(listener, |request| async move {
            status(if is_probe(&request) { StatusCode::OK } else { StatusCode::PAYLOAD_TOO_LARGE })
        });
    });
    let balancer = before(&server);
    run(async {
        for _ in 0..20 {
            let mut sender = connect(balancer.address).await;
            let request = Request::post("/").header(HOST, "test").body(full(noise(4 << 20)));
            let response = send(&mut sender, request.expect("a request")).await;
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        }
    });
}

#[test]
fn a_body_passes_hyper_in_both_directions_at_once() {
    // The backend answers with the body as it comes, so what it sends is limited by what is read.
    let server = Server::start(|listener| {
        serve(listener, |request| async move { Response::new(request.into_body().boxed()) });
    });
    let balancer = before(&server);
    let content = Bytes::from(noise(8 << 20));
    run(async {
        let pieces = || (0..content.len()).step_by(100_000);
        let piece = |from: usize| content.slice(from..content.len().min(from + 100_000));
        let chunked = frames(pieces().map(|from| Frame::data(piece(from))));
        for body in [full(content.clone()), chunked] {
            // An answer that begins before its request has ended is the last on its connection.
            let mut sender = connect(balancer.address).await;
            let request = Request::post("/").header(HOST, "test").body(body);
            let response = send(&mut sender, request.expect("a request")).await;
            let echoed = response.into_body().collect().await.expect("a whole body").to_bytes();
            assert_eq!(echoed.len(), content.len());
            assert!(echoed == content, "other octets");
        }
    });
}

#[test]
fn a_hyper_client_gets_each_event_before_the_next_is_sent() {
    let (events, event_source) = unbounded_channel();
    let (hand_over, sources) = crossbeam_channel::bounded::<UnboundedReceiver<_>>(1);
    hand_over.send(event_source).expect("the receiver is below");
    let server = Server::start(|listener| {
        serve(listener, move |request| {
            let source = (!is_probe(&request)).then(|| sources.try_recv().expect("one request"));
            async move {
                let Some(source) = source else { return status(StatusCode::OK) };
                let mut response = Response::new(Frames(source).boxed());
                let kind = HeaderValue::from_static("text/event-stream");
                response.headers_mut().insert(CONTENT_TYPE, kind);
                response
            }
        });
    });
    let balancer = before(&server);
    run(async {
        let mut sender = connect(balancer.address).await;
        let mut request = get("/events");
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        let response = send(&mut sender, request).await;
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body();
        for number in 0..20 {
            let event = format!("id: {number}\ndata: äöü €\n\n");
            push(&events, &event);
            let frame = body.frame().await.expect("an event").expect("a whole one");
            assert_eq!(frame.into_data().expect("data"), event.as_bytes());
        }
        drop(events);
        assert!(body.frame().await.is_none(), "the stream has ended");
    });
}

fn push(events: &UnboundedSender<Frame<Bytes>>, event: &str) {
    events.send(Frame::data(event.to_owned().into())).expect("the stream is open");
}

#[test]
fn a_connection_that_hyper_upgrades_at_both_ends_is_a_tunnel() {
    let server = Server::start(|listener| {
        serve(listener, |mut request| async move {
            if !request.headers().contains_key(UPGRADE) {
                return status(StatusCode::OK);
            }
            tokio::spawn(async move {
                let upgraded = hyper::upgrade::on(&mut request).await.expect("an upgrade");
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                tokio::io::copy(&mut from, &mut to).await.expect("the tunnel stays");
                to.shutdown().await.expect("the tunnel ends in order");
            });
            let mut response = status(StatusCode::SWITCHING_PROTOCOLS);
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static("echo"));
            response
        });
    });
    let balancer = before(&server);
    run(async {
        let mut sender = connect(balancer.address).await;
        let mut request = get("/tunnel");
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("echo"));
        let response = send(&mut sender, request).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(response.headers()[UPGRADE], "echo");
        let upgraded = hyper::upgrade::on(response).await.expect("an upgrade");
        let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
        // What looks like HTTP is none of our business in a tunnel.
        for said in ["ping", "GET / HTTP/1.1\r\n\r\n", "\0\x01"] {
            to.write_all(said.as_bytes()).await.expect("the tunnel stays");
            let mut heard = vec![0; said.len()];
            from.read_exact(&mut heard).await.expect("the tunnel stays");
            assert_eq!(heard, said.as_bytes());
        }
        let content = noise(1 << 20);
        let mut heard = Vec::new();
        let saying = async {
            to.write_all(&content).await.expect("the tunnel stays");
            to.shutdown().await.expect("the tunnel ends in order");
        };
        let ((), heard_bytes) = tokio::join!(saying, from.read_to_end(&mut heard));
        assert_eq!(heard_bytes.expect("the tunnel ends in order"), content.len());
        assert!(heard == content, "other octets");
    });
}

#[test]
fn responses_without_a_body_leave_the_connections_of_hyper_in_step() {
    let server = Server::start(|listener| {
        serve(listener, |request| async move {
            match request.uri().path() {
                "/204" => status(StatusCode::NO_CONTENT),
                "/304" => status(StatusCode::NOT_MODIFIED),
                _ => Response::new(full("hello")),
            }
        });
    });
    let balancer = before(&server);
    run(async {
        let mut sender = connect(balancer.address).await;
        for _ in 0..3 {
            let head = Request::head("/").header(HOST, "test").body(nothing());
            let response = send(&mut sender, head.expect("a request")).await;
            assert_eq!(response.headers()[CONTENT_LENGTH], "5");
            assert_eq!(text(response).await, "");
            for (target, status) in [("/204", 204), ("/304", 304)] {
                let response = send(&mut sender, get(target)).await;
                assert_eq!(response.status().as_u16(), status);
                assert_eq!(text(response).await, "");
            }
            assert_eq!(text(send(&mut sender, get("/")).await).await, "hello");
        }
    });
}
